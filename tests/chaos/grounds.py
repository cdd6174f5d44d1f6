"""A site to destroy: broker, PostgreSQL, FAJMA and its monitors, each of which can be killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import asyncpg
import psutil

from bridges.mqtt_vitals.subscriber import client_id
from console.clinic import PATIENTS, Clinic, Options, Ports
from console.device_keys import as_text
from console.journal_files import read_ledger
from console.mosquitto import Mosquitto
from console.processes import Child, environment_without_proxies
from fajma.config import DatabaseSettings
from fajma.files import write_private
from fajma.store import Records, Store
from fajma.store.site import site_key
from fajma.vitals import DeviceId
from fajma.wire import Item
from tests.chaos.monitors import Plan
from tests.chaos.watched import marks_of
from tests.conftest import Postgres

EVERY_S: Final = 0.2
WITHIN_S: Final = 60.0
HOLDS_WITHIN_S: Final = 20.0
POLL_S: Final = 0.02


class Component(StrEnum):
    """What can be killed."""

    FAJMA = "fajma"
    """`fajma run ingest`, or the whole of `fajma run`."""
    BROKER = "broker"
    POSTGRESQL = "postgresql"
    MONITORS = "monitors"
    """A process with half of the monitors."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What kind of site.

    Attributes:
        persistence: whether the broker keeps its messages on disk.
        whole: all of `fajma run`, with Synapse; otherwise `fajma run ingest`.
        monitors: how many.
        ingests: how many `fajma run ingest` share them.
    """

    persistence: bool = True
    whole: bool = False
    monitors: int = 6
    ingests: int = 1

    def __str__(self) -> str:
        return (
            f"{'fajma run' if self.whole else 'fajma run ingest'}, broker "
            f"{'saves to disk' if self.persistence else 'in memory only'}"
        )


class ForgetfulMosquitto(Mosquitto):
    """A broker of our configuration that saves nothing."""

    def render(self) -> Path:
        path = super().render()
        text = path.read_text(encoding="utf-8")
        assert "persistence true" in text
        write_private(path, text.replace("persistence true", "persistence false"))
        return path


class ChaosSite:
    """Everything on this machine. Make it with `opened`."""

    def __init__(self, shape: Shape, directory: Path, postgres: Postgres) -> None:
        self.shape = shape
        self.postgres = postgres
        self._settings: Mapping[str, Mapping[str, Any]] = {
            # The session of a killed ingest is free again soon.
            "database": {"lease_s": 3 if shape.whole else 1},
            "mqtt": {"ingests": shape.ingests},
            "publish": {"state_every_s": 5, "batch_every_s": 5},
        }
        self.clinic = Clinic(
            Options(
                directory,
                Ports.free(),
                "mosquitto",
                self._settings,
                postgres.url("chaos"),
                split=not shape.whole,
                command="tests.chaos.watched",
            )
        )
        if not shape.persistence:
            broker = self.clinic.mosquitto
            self.clinic.mosquitto = ForgetfulMosquitto(broker.directory, broker.port)
        worn = [patient.device for patient in PATIENTS] if shape.whole else []
        more = [f"A4CF12F0C{number:03X}" for number in range(shape.monitors - len(worn))]
        self.devices = [DeviceId(device) for device in (*worn, *more)]
        self._plans = [
            Plan(
                port=self.clinic.options.ports.broker,
                pki=str(self.clinic.mosquitto.pki_directory),
                directory=str(directory / "monitors"),
                devices=tuple(self.devices[half::2]),
                every_s=EVERY_S,
            )
            for half in (0, 1)
        ]
        self._monitors: dict[int, Child] = {}
        directory.mkdir(mode=0o700, parents=True)
        self.marks = marks_of(self.clinic.config_path, 1)

    # --- the life of the site --------------------------------------------------------------------

    async def start(self) -> None:
        """Start everything; the monitors measure from now on."""
        await self.postgres.launch()
        await self.postgres.execute("CREATE DATABASE chaos TEMPLATE template0")
        if self.shape.whole:
            await self.clinic.start()
            await self.clinic.open_consultations()
        else:
            self.clinic.secrets_directory.mkdir(parents=True, mode=0o700)
            await self.clinic.mosquitto.start()
            self.clinic.write_settings()
            for number in range(1, self.shape.ingests + 1):
                self.clinic.mosquitto.issue_bridge(client_id(number))
            for number in range(1, self.shape.ingests + 1):
                await self.start_ingest(number)
        await self._enrol()
        for half in range(len(self._plans)):
            await self._start_monitors(half)

    async def stop(self) -> None:
        """Stop whatever runs."""
        for child in self._monitors.values():
            await child.stop()
        await self.clinic.stop()
        await asyncio.to_thread(self.postgres.stop)

    async def _enrol(self) -> None:
        now = datetime.now(UTC)
        directory = Path(self._plans[0].directory)
        directory.mkdir(mode=0o700)
        async with self.records() as records:
            for number, device in enumerate(self.devices):
                self.clinic.mosquitto.issue_device(device)
                raw = os.urandom(64)
                pair = await records.devices.new_keys(device, now=now, raw=raw)
                write_private(self._plans[0].key_file(device), as_text(device, pair.version, raw))
                if await records.devices.wearing(device, now) is None:
                    patient = await records.patients.add(
                        number=f"C-{number}", initials="A.D.", bed=str(number), account=None
                    )
                    before = now - timedelta(hours=1)
                    await records.devices.link(device, patient.key, None, now=before)

    @asynccontextmanager
    async def records(self) -> AsyncIterator[Records]:
        """The database, for who looks from outside."""
        store = await Store.open(DatabaseSettings(url=self.postgres.url("chaos")))
        try:
            key_file = self.clinic.secrets_directory / "site-key"
            yield Records(store, await site_key(store, key_file))
        finally:
            await store.close()

    # --- killing and starting --------------------------------------------------------------------

    @property
    def fajma(self) -> Child:
        """The process that takes readings."""
        child = self.clinic.fajma if self.shape.whole else self.ingest(1)
        assert child is not None
        return child

    def ingest(self, number: int) -> Child:
        """One of several ingests."""
        return self.clinic.processes[_ingest(number)]

    def ingest_log(self, number: int) -> Path:
        """What it says."""
        return self.clinic.process_log(_ingest(number))

    async def start_ingest(self, number: int) -> None:
        """Start one of several ingests, until it takes readings or waits for its turn."""
        name = _ingest(number)
        self.clinic.processes[name] = await self.clinic._started_fajma(
            name, self.clinic.process_log(name), "ingest", "--number", str(number)
        )

    async def kill(self, component: Component) -> None:
        """SIGKILL; returns once it is dead."""
        match component:
            case Component.FAJMA:
                await kill(self.fajma)
            case Component.BROKER:
                assert self.clinic.mosquitto.pid is not None
                os.kill(self.clinic.mosquitto.pid, signal.SIGKILL)
                await self.clinic.mosquitto.stop()  # reaps it
            case Component.POSTGRESQL:
                await self.postgres.kill()
            case Component.MONITORS:
                await kill(self._monitors[0])

    async def start_component(self, component: Component) -> None:
        """Start what was killed."""
        match component:
            case Component.FAJMA if self.shape.whole:
                await self.clinic.start_fajma()
            case Component.FAJMA:
                await self.start_ingest(1)
            case Component.BROKER:
                await self.clinic.mosquitto.start()
            case Component.POSTGRESQL:
                await self.postgres.launch()
            case Component.MONITORS:
                await self._start_monitors(0)

    async def _start_monitors(self, half: int) -> None:
        directory = self.clinic.directory / "monitors"
        path = directory / f"plan-{half}.json"
        self._plans[half].write(path)
        self._monitors[half] = Child.start(
            [sys.executable, "-m", "tests.chaos.monitors", str(path)],
            env=environment_without_proxies(),
            log_path=directory / f"monitors-{half}.log",
            name="monitors",
        )

    async def held(self) -> bool:
        """Wait until FAJMA has stopped itself; whether it did."""
        if await holds(self.fajma):
            return True
        self.marks.hold_nowhere()
        return False

    def go_on(self) -> None:
        """FAJMA need not hold any more."""
        os.kill(self.fajma.pid, signal.SIGCONT)

    # --- looking on ------------------------------------------------------------------------------

    async def settled(self) -> dict[str, int]:
        """Up to where the records of each monitor are settled."""
        connection = await asyncpg.connect(self.postgres.url("chaos"))
        try:
            rows = await connection.fetch("SELECT device_id, contiguous FROM device_sequence")
        finally:
            await connection.close()
        return {row["device_id"]: row["contiguous"] for row in rows}

    async def all_settle(self) -> None:
        """Wait until something new of every monitor is settled."""
        before = await self.settled()
        async with asyncio.timeout(WITHIN_S):
            while True:
                now = await self.settled()
                if all(now.get(one, -1) > before.get(one, -1) for one in self.devices):
                    return
                await asyncio.sleep(5 * POLL_S)

    async def drain(self) -> None:
        """The monitors measure no more; returns once all that they measured is acknowledged."""
        for child in self._monitors.values():
            os.kill(child.pid, signal.SIGTERM)
        async with asyncio.timeout(2 * WITHIN_S):
            for child in self._monitors.values():
                assert await child.wait() == 0

    def measured(self) -> Iterator[tuple[DeviceId, Item]]:
        """What stands in the ledgers of all monitors."""
        for plan in self._plans:
            for device in plan.devices:
                yield from read_ledger(plan.ledger(device))


def _ingest(number: int) -> str:
    return f"ingest-{number}"


async def kill(child: Child) -> None:
    """SIGKILL; returns once it is dead."""
    os.kill(child.pid, signal.SIGKILL)
    await child.wait()


async def holds(child: Child) -> bool:
    """Wait until it has stopped itself; whether it did in time."""
    process = psutil.Process(child.pid)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(HOLDS_WITHIN_S):
            while process.status() != psutil.STATUS_STOPPED:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(POLL_S)
            return True
    return False


@asynccontextmanager
async def opened(shape: Shape, directory: Path) -> AsyncIterator[ChaosSite]:
    """A site that runs, in a directory that does not exist yet."""
    cluster = Path(tempfile.mkdtemp(prefix="fajma-pg-"))  # where its own user can enter
    site = ChaosSite(shape, directory, Postgres(cluster))
    try:
        await site.start()
        yield site
    finally:
        await site.stop()
        shutil.rmtree(cluster)
