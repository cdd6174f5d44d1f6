"""FAJMA dies: the homeserver tells the ward, those who may read there that day; once it is over."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio
from aiohttp import web

from console.clinic import DOCTOR, Clinic, Options, Ports
from console.observer import Observer, Seen
from console.processes import free_port
from console.run import opened
from fajma.config import load
from tests.e2e.test_readers import recovery_key
from tests.e2e.ward import PATIENCE_S, SETTINGS, Ward, log_says

SILENCE_S: Final = 5
LEASE_S: Final = 2
SILENT: Final = "SURVEILLANCE SANS SIGNE DE VIE"
BACK: Final = "LA SURVEILLANCE FONCTIONNE DE NOUVEAU"
STOPPING: Final = "ARRÊT PRÉVU DE LA SURVEILLANCE"


class Watchdog:
    """A dead-man service outside: hears pings, and is asked to wait for one."""

    def __init__(self) -> None:
        self.port = free_port()
        self.pings: list[float] = []
        self._news = asyncio.Event()
        app = web.Application()
        app.router.add_get("/ping", self._ping)
        self._runner = web.AppRunner(app)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/ping"

    async def _ping(self, request: web.Request) -> web.Response:
        assert await request.read() == b""
        assert not request.query
        self.pings.append(time.monotonic())
        self._news.set()
        return web.Response()

    async def start(self) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def next(self) -> None:
        self._news.clear()
        async with asyncio.timeout(PATIENCE_S):
            await self._news.wait()


async def made(
    directory: Path, watchdog: Watchdog, silence_s: float, *, database_url: str | None = None
) -> tuple[Ward, str]:
    """A clinic with one doctor in its ward; in several processes where a PostgreSQL is given."""
    alarms = {
        "silence_told_after_s": silence_s,
        "watchdog_url": watchdog.url,
        "watchdog_every_s": 1,
    }
    settings = {
        **SETTINGS,
        "alarms": SETTINGS["alarms"] | alarms,
        "database": {"lease_s": LEASE_S},
    }
    clinic = Clinic(
        Options(
            directory,
            Ports.free(),
            "mosquitto",
            settings,
            database_url=database_url,
            split=database_url is not None,
        )
    )
    await clinic.start()
    observer = Observer(clinic.synapse.base_url, clinic.mxid(DOCTOR), directory / "doctor")
    await observer.start(clinic.password(DOCTOR))
    await clinic.open_ward({DOCTOR: "Dr Awa"})
    ward = Ward(clinic, observer)
    room_id = clinic.ward_room
    assert room_id is not None
    await ward.until(lambda: room_id in observer.client.rooms)
    return ward, room_id


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def watchdog() -> AsyncIterator[Watchdog]:
    service = Watchdog()
    await service.start()
    yield service
    await service.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def place(
    tmp_path_factory: pytest.TempPathFactory, watchdog: Watchdog
) -> AsyncIterator[tuple[Ward, str]]:
    """A clinic that is missed after a few seconds, and its ward's room."""
    ward, room_id = await made(tmp_path_factory.mktemp("silence"), watchdog, SILENCE_S)
    yield ward, room_id
    await ward.observer.stop()
    await ward.clinic.stop()


def keys_of_what_is_held(ward: Ward, room_id: str) -> list[tuple[str, str]]:
    """Sender and id of the room keys of what the homeserver holds for a room."""
    database = ward.clinic.synapse.site.directory / "homeserver.db"
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        rows = connection.execute("SELECT content FROM delayed_events WHERE room_id=?", [room_id])
        contents = [json.loads(content) for (content,) in rows]
    return [(one["sender_key"], one["session_id"]) for one in contents]


def has_key(observer: Observer, room_id: str, key: tuple[str, str]) -> bool:
    return observer.client.olm.inbound_group_store.get(room_id, *key) is not None


async def held(
    ward: Ward, room_id: str, readers: Sequence[Observer], others: Sequence[Observer] = ()
) -> None:
    """Until the homeserver holds one message, which these clients will read and no other."""

    def is_held() -> bool:
        keys = keys_of_what_is_held(ward, room_id)
        return (
            len(keys) == 1
            and all(has_key(one, room_id, keys[0]) for one in readers)
            and not any(has_key(one, room_id, keys[0]) for one in others)
        )

    async with asyncio.timeout(PATIENCE_S):
        while not is_held():  # noqa: ASYNC110 - a row of another's database tells nobody
            await asyncio.sleep(0.05)


def said(ward: Ward, room_id: str, head: str, observer: Observer | None = None) -> list[Seen]:
    return [one for one in ward.events(room_id, observer) if one.body.startswith(head)]


async def hear(observer: Observer, room_id: str, head: str, *, after: int) -> Seen:
    """The message that follows so many of its kind."""

    def found() -> list[Seen]:
        ours = (one for one in observer.seen if one.room_id == room_id)
        return list({one.event_id: one for one in ours if one.body.startswith(head)}.values())

    await observer.wait_for(lambda _: len(found()) > after, 2 * PATIENCE_S)
    return found()[after]


async def killed_and_heard(ward: Ward, room_id: str, observer: Observer) -> float:
    """Kill all of FAJMA; how long until a client has decrypted the homeserver's word, s."""
    before = len(said(ward, room_id, SILENT, observer))
    started = time.monotonic()
    await ward.kill_fajma()
    await hear(observer, room_id, SILENT, after=before)
    return time.monotonic() - started


async def test_all_of_fajma_killed_is_told_by_the_homeserver_and_over_once(
    place: tuple[Ward, str], watchdog: Watchdog
) -> None:
    ward, room_id = place
    await held(ward, room_id, [ward.observer])
    await watchdog.next()
    took_s = await killed_and_heard(ward, room_id, ward.observer)
    assert took_s < SILENCE_S + 10
    told = said(ward, room_id, SILENT)[-1]
    assert told.sender == ward.clinic.mxid("fajma-alerts")
    assert told.mentions == (ward.clinic.mxid(DOCTOR),)
    assert watchdog.pings[-1] < time.monotonic() - SILENCE_S / 2
    silent_until = len(watchdog.pings)
    await ward.clinic.start_fajma()
    await hear(ward.observer, room_id, BACK, after=0)
    await watchdog.next()
    assert len(watchdog.pings) > silent_until
    assert len(said(ward, room_id, BACK)) == 1
    assert len(said(ward, room_id, SILENT)) == 1


@pytest.mark.slow
async def test_a_planned_stop_is_told_before_and_after_and_rings_nobody_in_between(
    place: tuple[Ward, str],
) -> None:
    ward, room_id = place
    silences, ends = len(said(ward, room_id, SILENT)), len(said(ward, room_id, BACK))
    code, output = await ward.command(
        "maintenance", "start", "--for", "10m", "--reason", "Mise à jour"
    )
    assert (code, output.splitlines()[1:]) == (0, ["the wards are told: FAJMA may be stopped now"])
    told = await hear(ward.observer, room_id, STOPPING, after=0)
    assert "Mise à jour" in told.body
    assert told.mentions == (ward.clinic.mxid(DOCTOR),)
    await ward.clinic.stop_fajma()
    await asyncio.sleep(1.5 * SILENCE_S)  # time itself is the subject
    mark = ward.log_mark()
    await ward.clinic.start_fajma()
    await ward.log_says("dead_man_ready", mark)
    code, output = await ward.command("maintenance", "status")
    assert code == 0
    assert "the wards are told" in output
    assert "the homeserver speaks in 1 room(s) if FAJMA dies" in output
    again, _ = await ward.command("maintenance", "start", "--for", "10m", "--reason", "x")
    assert again == 2
    code, output = await ward.command("maintenance", "end")
    assert (code, output) == (0, "maintenance is over: the wards are told\n")
    await hear(ward.observer, room_id, BACK, after=ends)
    await held(ward, room_id, [ward.observer])
    assert len(said(ward, room_id, SILENT)) == silences
    assert len(said(ward, room_id, STOPPING)) == 1
    assert len(said(ward, room_id, BACK)) == ends + 1
    found = [one for one in await ward.audit("operator") if one.action.startswith("maintenance")]
    assert [one.action for one in found] == ["maintenance.start", "maintenance.end"]
    assert found[0].detail["reason"] == "Mise à jour"


@pytest.mark.slow
async def test_a_homeserver_that_was_away_says_so_itself_and_fajma_once_that_it_is_over(
    place: tuple[Ward, str],
) -> None:
    ward, room_id = place
    await held(ward, room_id, [ward.observer])
    silences, ends = len(said(ward, room_id, SILENT)), len(said(ward, room_id, BACK))
    await ward.clinic.synapse.stop()
    await asyncio.sleep(1.5 * SILENCE_S)  # time itself is the subject
    await ward.clinic.synapse.start()
    await hear(ward.observer, room_id, SILENT, after=silences)
    await hear(ward.observer, room_id, BACK, after=ends)
    await held(ward, room_id, [ward.observer])
    assert len(said(ward, room_id, BACK)) == ends + 1


async def test_a_phone_that_came_meanwhile_reads_it_and_one_that_is_blocked_does_not(
    place: tuple[Ward, str],
) -> None:
    ward, room_id = place
    clinic = ward.clinic
    key = recovery_key(ward.observer)
    async with ward.client_of(DOCTOR, clinic.password(DOCTOR), recovery_key=key) as phone:
        await held(ward, room_id, [ward.observer, phone])
        blocked = ward.observer
        async with (
            opened(load(clinic.config_path)) as records,
            records.store.transaction() as connection,
        ):
            device_id = blocked.client.device_id
            await records.pins.block(connection, clinic.mxid(DOCTOR), [device_id])
        await held(ward, room_id, [phone], others=[blocked])
        before = len(said(ward, room_id, SILENT))
        await killed_and_heard(ward, room_id, phone)
        assert len(said(ward, room_id, SILENT)) == before
        await clinic.start_fajma()
        await hear(phone, room_id, BACK, after=0)


@pytest.mark.slow
async def test_with_the_settings_of_production_a_ward_is_told_within_a_minute(
    tmp_path: Path, watchdog: Watchdog
) -> None:
    ward, room_id = await made(tmp_path, watchdog, 45)
    try:
        await held(ward, room_id, [ward.observer])
        took_s = await killed_and_heard(ward, room_id, ward.observer)
        print(f"told {took_s:.1f} s after the death")  # noqa: T201 - for docs/alarms.md
        assert took_s < 60
        await ward.clinic.start_fajma()
        await hear(ward.observer, room_id, BACK, after=0)
        assert len(said(ward, room_id, SILENT)) == 1
    finally:
        await ward.observer.stop()
        await ward.clinic.stop()


async def kill(ward: Ward, *names: str) -> None:
    """``kill -9`` of processes of a split FAJMA, at once."""
    killed = [ward.clinic.processes.pop(name) for name in names]
    for process in killed:
        os.kill(process.pid, signal.SIGKILL)
    for process in killed:
        await process.wait()


@pytest.mark.slow
async def test_of_several_processes_the_bot_tells_of_one_and_the_homeserver_of_all(
    tmp_path: Path, watchdog: Watchdog, postgres_url: str
) -> None:
    ward, room_id = await made(tmp_path, watchdog, 20, database_url=postgres_url)
    clinic, doctor = ward.clinic, ward.observer
    try:
        await held(ward, room_id, [doctor])
        await watchdog.next()
        await kill(ward, "ingest")
        told = await hear(doctor, room_id, SILENT, after=0)
        assert "ce qui reçoit les mesures, depuis" in told.body
        await clinic.start_process("ingest")
        await hear(doctor, room_id, BACK, after=0)
        # A standby takes over before anybody misses the bot.
        await held(ward, room_id, [doctor])
        mark = clinic.process_log("alerts-standby").stat().st_size
        await kill(ward, "alerts")
        await log_says(clinic.process_log("alerts-standby"), "dead_man_ready", mark)
        assert len(said(ward, room_id, SILENT)) == 1
        await held(ward, room_id, [doctor])
        await kill(ward, *clinic.processes)
        told = await hear(doctor, room_id, SILENT, after=1)
        assert "le serveur n'en a rien entendu pendant les 20" in told.body
        await clinic.start_fajma()
        await hear(doctor, room_id, BACK, after=1)
        await watchdog.next()
        assert len(said(ward, room_id, SILENT)) == 2
        assert len(said(ward, room_id, BACK)) == 2
    finally:
        await doctor.stop()
        await clinic.stop()
