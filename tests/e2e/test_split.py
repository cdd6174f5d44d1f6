"""FAJMA in several processes over PostgreSQL: the path is whole, and a dead leader is replaced."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from console.clinic import DOCTOR, Clinic, Options, Ports
from console.observer import Observer
from console.run import opened
from fajma.config import load
from tests.conftest import Postgres, run
from tests.e2e.test_phones import clinician, is_silent, new_team, rings
from tests.e2e.ward import (
    BREATHLESS,
    SETTINGS,
    WELL,
    Bedside,
    Ward,
    ledger,
    lines_sent,
    log_says,
)
from tests.push_gateway import PushGateway

pytestmark = pytest.mark.slow

LEASE_S = 3
STARTING_S = 10
"""What a new leader needs besides the lease, on a busy machine: to log in and catch up."""


@pytest.fixture(scope="module")
def database_url(postgres: Postgres) -> str:
    run(postgres.execute("CREATE DATABASE split TEMPLATE template0"))
    return postgres.url("split")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def ward(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ward]:
    """Synapse, Mosquitto, PostgreSQL; ingest, application service and two of alerts."""
    directory = tmp_path_factory.mktemp("split")
    # What one process does because of another must not wait for the next look.
    settings = SETTINGS | {
        "people": {"look_every_s": 300, "rules_every_s": 300},
        "database": {"lease_s": LEASE_S},
    }
    clinic = Clinic(
        Options(
            directory,
            Ports.free(),
            "mosquitto",
            settings,
            database_url=database_url,
            private_push=True,
            split=True,
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


ALERTS = ("alerts", "alerts-standby")


def leader_and_heir(ward: Ward) -> tuple[str, str]:
    """Which of the two ``alerts`` does the work, and which waits."""
    leading = [name for name in ALERTS if leads(ward, name)]
    assert len(leading) == 1
    return leading[0], next(name for name in ALERTS if name not in leading)


def leads(ward: Ward, name: str) -> bool:
    log = ward.clinic.process_log(name).read_text(encoding="utf-8")
    return log.rfind('"leading"') > log.rfind('"standby"')


class Log:
    """The log of one process from now on."""

    def __init__(self, ward: Ward, name: str) -> None:
        self._path = ward.clinic.process_log(name)
        self._mark = self._path.stat().st_size

    async def says(self, event: str) -> None:
        await log_says(self._path, event, self._mark)


async def kill(ward: Ward, name: str) -> None:
    """``kill -9``, at once."""
    process = ward.clinic.processes.pop(name)
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()


async def told_once(ward: Ward, bedside: Bedside) -> None:
    await ward.alarm(bedside.room_id, "recovered")
    told = [
        one.content.state  # type: ignore[union-attr]
        for one in ward.alarms(bedside.room_id)
    ]
    assert told == ["started", "recovered"]


async def test_readings_and_alarms_go_through_all_processes(ward: Ward) -> None:
    bedside = await ward.admit()
    async with ward.monitor(bedside) as monitor:
        await monitor.send(WELL, *[BREATHLESS] * 4)
        await ward.alarm(bedside.room_id, "started")
        await ward.snapshot_of(bedside.room_id, monitor.sent[-1].at_ms)
        await monitor.send(*[WELL] * 5)
        await told_once(ward, bedside)
        await ward.all_published(bedside.room_id, monitor.sent)


async def test_a_command_that_one_process_takes_is_answered_and_carried_out_by_another(
    ward: Ward,
) -> None:
    team = await new_team(ward)
    async with (
        PushGateway() as gateway,
        clinician(ward, gateway, team) as awa,
        clinician(ward, gateway, team) as binta,
    ):
        await binta.rules_until(rings)  # as long as nobody is on duty
        assert await awa.orders(team.room_id, "!garde prendre")
        await binta.rules_until(is_silent)
        opened = await awa.orders(team.room_id, "!consultation A.D. lit 4 dossier S-1")
        assert opened.startswith("Lit 4 A.D.")


@pytest.mark.parametrize("moment", ["nothing yet", "alarms_decided", "alarm_delivered"])
async def test_when_the_leading_alerts_process_is_killed_in_traffic_the_other_goes_on(
    ward: Ward, moment: str
) -> None:
    dead, heir = leader_and_heir(ward)
    died, inherited = Log(ward, dead), Log(ward, heir)
    bedside = await ward.admit()
    monitor = ward.clinic.start_monitor(
        bedside.device, "--scenario", "desaturation", "--speed", "10", "--count", "36"
    )
    await lines_sent(monitor.log_path, 5)
    if moment != "nothing yet":
        await died.says(moment)
    await kill(ward, dead)
    killed = time.monotonic()
    await inherited.says("ready")
    assert time.monotonic() - killed < 2 * LEASE_S + STARTING_S
    await ward.clinic.start_process(dead)
    assert leader_and_heir(ward) == (heir, dead)
    assert await monitor.wait() == 0

    await told_once(ward, bedside)
    await ward.all_published(bedside.room_id, ledger(monitor.log_path))


async def test_a_leader_that_is_stopped_hands_over_before_its_lease_ends(ward: Ward) -> None:
    old, heir = leader_and_heir(ward)
    inherited = Log(ward, heir)
    bedside = await ward.admit()
    async with ward.monitor(bedside) as monitor:
        await monitor.send(WELL, *[BREATHLESS] * 2)
        stopping = asyncio.create_task(ward.clinic.processes.pop(old).stop())
        await inherited.says("leading")
        await stopping
        await monitor.send(*[BREATHLESS] * 2)
        await ward.alarm(bedside.room_id, "started")
        await monitor.send(*[WELL] * 5)
        await told_once(ward, bedside)
        await ward.clinic.start_process(old)


# From here on the two may share the work.


async def test_a_leader_that_freezes_for_longer_than_its_lease_does_no_harm(ward: Ward) -> None:
    """The other judges meanwhile; the Matrix device is free when the frozen one has let it go."""
    old, heir = leader_and_heir(ward)
    inherited = Log(ward, heir)
    frozen = ward.clinic.processes[old].pid
    bedside = await ward.admit()
    async with ward.monitor(bedside) as monitor:
        await monitor.send(WELL, *[BREATHLESS] * 2)
        os.killpg(frozen, signal.SIGSTOP)
        try:
            await inherited.says("leading")
            await inherited.says("still_held_here")
            await monitor.send(*[BREATHLESS] * 2)
            await inherited.says("alarms_decided")
        finally:
            os.killpg(frozen, signal.SIGCONT)
        await ward.alarm(bedside.room_id, "started")
        await monitor.send(*[WELL] * 5)
        await told_once(ward, bedside)


async def test_who_loses_every_lease_for_a_while_takes_them_up_again(ward: Ward) -> None:
    """As after a database that was away for longer than a lease."""
    log = Log(ward, "appservice")
    async with opened(load(ward.clinic.config_path)) as records:
        await records.store.db.execute(
            "UPDATE lease SET holder='nobody',"
            " until=CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT) + 2000"
        )
    await log.says("lease_lost")
    await log.says("appservice_ready")
    bedside = await ward.admit()
    async with ward.monitor(bedside) as monitor:
        await monitor.send(WELL, *[BREATHLESS] * 4)
        await ward.alarm(bedside.room_id, "started")
        await monitor.send(*[WELL] * 5)
        await told_once(ward, bedside)
        await ward.all_published(bedside.room_id, monitor.sent)
