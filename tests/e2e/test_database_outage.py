"""PostgreSQL killed under a running FAJMA: nothing ends or is lost, alarms come afterwards."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from console.clinic import DOCTOR, SPLIT, Clinic, Options, Ports
from console.observer import Observer
from tests.conftest import Postgres
from tests.e2e.test_readers import recovery_key
from tests.e2e.test_restart import told_once
from tests.e2e.ward import BREATHLESS, PATIENCE_S, SETTINGS, WELL, Ward, follow

pytestmark = pytest.mark.slow

LEASE_S = 3


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def postgres() -> AsyncIterator[Postgres]:
    """A server of our own, that can be killed."""
    directory = Path(tempfile.mkdtemp(prefix="fajma-pg-"))  # where its own user can enter
    server = Postgres(directory)
    try:
        await server.launch()
        yield server
    finally:
        await asyncio.to_thread(server.stop)
        shutil.rmtree(directory)


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=["whole", "split"])
async def ward(
    request: pytest.FixtureRequest, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Ward]:
    """Synapse, Mosquitto and FAJMA over PostgreSQL, in one process or in several."""
    name: str = request.param
    directory = tmp_path_factory.mktemp(name)
    await postgres.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    clinic = Clinic(
        Options(
            directory,
            Ports.free(),
            "mosquitto",
            SETTINGS | {"database": {"lease_s": LEASE_S}},
            database_url=postgres.url(name),
            split=name == "split",
        )
    )
    await clinic.start()
    observer = Observer(clinic.synapse.base_url, clinic.mxid(DOCTOR), directory / "doctor")
    try:
        await observer.start(clinic.password(DOCTOR))
        yield Ward(clinic, observer)
    finally:
        await observer.stop()
        await clinic.stop()


class Logs:
    """What all processes of FAJMA say from now on."""

    def __init__(self, ward: Ward) -> None:
        clinic = ward.clinic
        split = clinic.options.split
        paths = [clinic.process_log(name) for name in SPLIT] if split else [clinic.fajma_log]
        self._marks = {path: path.stat().st_size for path in paths}

    async def say(self, beginning: str) -> None:
        """Wait until one of them says something that begins like this."""
        looking = [
            asyncio.create_task(self._says(path, mark, beginning))
            for path, mark in self._marks.items()
        ]
        done, pending = await asyncio.wait(looking, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for task in done:
            task.result()

    async def _says(self, path: Path, mark: int, beginning: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            async for line in follow(path, mark):
                if line.startswith("{") and json.loads(line)["event"].startswith(beginning):
                    return


def ended(ward: Ward) -> list[str]:
    """Which processes of FAJMA have ended."""
    processes = dict(ward.clinic.processes)
    if ward.clinic.fajma is not None:
        processes["fajma"] = ward.clinic.fajma
    assert processes
    return [name for name, child in processes.items() if child.returncode is not None]


@pytest.mark.parametrize("away", ["shorter than a lease", "longer than a lease"])
async def test_nothing_ends_when_postgresql_is_killed_and_alarms_come_afterwards(
    ward: Ward, postgres: Postgres, away: str
) -> None:
    bedside = await ward.admit()
    async with ward.monitor(bedside) as monitor:
        await monitor.send(WELL, *[BREATHLESS] * 2)
        logs = Logs(ward)
        await postgres.kill()
        try:
            await monitor.send(BREATHLESS)
            await logs.say("commit_failed")
            # Devices of somebody change: our senders ask the records about them.
            async with ward.client_of(
                DOCTOR, ward.clinic.password(DOCTOR), recovery_key=recovery_key(ward.observer)
            ):
                await logs.say("The database is away")
                if away == "longer than a lease":
                    await logs.say("lease_lost")
        finally:
            await postgres.launch()
        await monitor.send(BREATHLESS)
        await ward.alarm(bedside.room_id, "started")
        await monitor.send(*[WELL] * 5)
        await told_once(ward, bedside)
        await ward.all_published(bedside.room_id, monitor.sent)
    assert ended(ward) == []
