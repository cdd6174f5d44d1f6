"""Each alarm once, whatever fails on its way: every HTTP call, every statement, every kill.

What a doctor sees is what her own client decrypts; what is in a room is what the homeserver shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing
import signal
import sqlite3
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import pytest
import pytest_asyncio

from bots.alerts.client import SignedClient
from console.observer import Observer
from console.processes import free_port
from console.run import opened
from console.synapse import Synapse, SynapseSite
from fajma.config import (
    DatabaseSettings,
    Homeserver,
    Mqtt,
    Secrets,
    Settings,
)
from fajma.errors import FajmaError
from fajma.events import ENCRYPTED, AlarmBlock
from fajma.language import Language
from fajma.sealing import generate_site_key
from fajma.store import Records
from fajma.store.alarms import SentBy
from fajma.store.readings import NewReading
from fajma.vitals import Clock, DeviceId, Kind, PatientKey, Reading
from tests.conftest import run
from tests.faults import Call, Fault, Proxy, Statement, run_until_killed, running, tapped

pytestmark = pytest.mark.asyncio(loop_scope="module")

SERVER: Final = "clinic.test"
HOST, ALERTS, DOCTOR = (f"@{name}:{SERVER}" for name in ("fajma", "fajma-alerts", "doctor"))
PASSWORD: Final = "a password of the tests"
DEVICE: Final = DeviceId("A4CF12F03B7E")
EPISODE: Final = (97, *(88,) * 4, *(97,) * 8)
"""Falls under 90 % long enough to be confirmed, and recovers long enough to be over."""

TOLD: Final = ["started", "recovered"]
WITHIN_S: Final = 40.0
POLL_S: Final = 0.02
SOON_S: Final = 15.0
"""Less than the 30 s after which a client that forgot its session would begin anew."""


@dataclass(frozen=True, slots=True)
class Bedside:
    """One patient with a room of his own, in a database of his own, whose alarms are due."""

    settings: Settings
    records: Records
    room_id: str
    patient: PatientKey


class World:
    """A homeserver behind a proxy, a doctor who watches, and new patients."""

    def __init__(self, synapse: Synapse, proxy: Proxy, observer: Observer, directory: Path) -> None:
        self.synapse = synapse
        self.proxy = proxy
        self.observer = observer
        self.directory = directory
        self.secrets = directory / "secrets"
        self._numbers = itertools.count(1)
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {synapse.as_token}"}
        )

    async def close(self) -> None:
        await self._session.close()

    async def prepare(self) -> None:
        """Accounts, and the alert bot's device, which all processes share one after the other."""
        body = {"type": "m.login.application_service", "username": "fajma", "inhibit_login": True}
        await self.as_host("POST", "register", body)
        for name in ("fajma-alerts", "doctor"):
            await self.synapse.register(name, PASSWORD)
            await self.synapse.exempt_from_rate_limits(f"@{name}:{SERVER}")
        client = SignedClient(self.synapse.base_url, ALERTS, self.secrets / "fajma-alerts")
        await client.start_session(PASSWORD)
        await client.close()
        await self.observer.start(PASSWORD)

    async def as_host(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        url = f"{self.synapse.base_url}/_matrix/client/v3/{path}"
        query = {} if path == "register" else {"user_id": HOST}
        async with self._session.request(method, url, params=query, json=body) as answer:
            told: dict[str, Any] = await answer.json()
            return told

    @asynccontextmanager
    async def bedside(self) -> AsyncIterator[Bedside]:
        """A patient, a room that the doctor is in, and readings that call for two messages."""
        directory = self.directory / f"site-{next(self._numbers)}"
        self._forget_olm_sessions()
        settings = self._settings(directory)
        invited = [ALERTS, DOCTOR]
        encryption = {"algorithm": "m.megolm.v1.aes-sha2"}
        created = await self.as_host(
            "POST",
            "createRoom",
            {
                "invite": invited,
                "initial_state": [{"type": "m.room.encryption", "content": encryption}],
            },
        )
        room_id = created["room_id"]
        await self.observer.client.join(room_id)
        async with opened(settings) as records:
            patient = await _admit(records, room_id)
            yield Bedside(settings, records, room_id, patient)
        # So that the next process has fewer rooms to hear of.
        await self.as_host("POST", f"rooms/{quote(room_id)}/kick", {"user_id": ALERTS})

    def _forget_olm_sessions(self) -> None:
        """So that one-time keys are claimed each time, as for a doctor's new device."""
        with contextlib.closing(sqlite3.connect(self.secrets / "fajma-alerts/crypto.db")) as store:
            store.execute("DELETE FROM olmsessions")
            store.commit()

    def _settings(self, directory: Path) -> Settings:
        directory.mkdir()
        for name, text in (("site.key", generate_site_key()), ("password", PASSWORD)):
            (directory / name).touch(mode=0o600)
            (directory / name).write_text(text, encoding="ascii")
        unused = directory / "unused"
        return Settings(
            homeserver=Homeserver(
                url=self.proxy.url,
                server_name=SERVER,
                as_token_file=unused,
                hs_token_file=unused,
                admin_password_file=unused,
            ),
            database=DatabaseSettings(url=f"sqlite://{directory}/fajma.db"),
            secrets=Secrets(
                directory=self.secrets,
                site_key_file=directory / "site.key",
                api_token_file=unused,
                operator_token_file=unused,
                alert_bot_password_file=directory / "password",
            ),
            mqtt=Mqtt(ca_file=unused, cert_file=unused, key_file=unused),
        )

    async def judge(self, bedside: Bedside) -> None:
        """Both alarms are marked, seen by the doctor, and nothing else is in the room."""
        await self.until_marked(bedside)
        shown = await self.shown(bedside.room_id)
        for event_id in shown:
            await self.observer.wait_for(lambda one, wanted=event_id: one.event_id == wanted, 20)
        seen = [one for one in self.observer.seen if one.room_id == bedside.room_id]
        assert [one.event_id for one in seen] == shown
        blocks = [one.content for one in seen if isinstance(one.content, AlarmBlock)]
        assert [one.state for one in blocks] == TOLD
        marked = [await bedside.records.outbox.event_of(one.delivery_id) for one in blocks]
        assert marked == shown

    async def until_marked(self, bedside: Bedside) -> None:
        """Until both are known to be delivered, and nothing is on its way any more."""
        async with asyncio.timeout(WITHIN_S):
            while await _marked(bedside.records) != (len(TOLD), len(TOLD)):  # noqa: ASYNC110 - a row tells nobody
                await asyncio.sleep(POLL_S)
            await self.proxy.settled()

    async def shown(self, room_id: str) -> list[str]:
        """Every encrypted event that the homeserver shows in a room, oldest first."""
        answer = await self.as_host("GET", f"rooms/{quote(room_id)}/messages?dir=b&limit=100")
        events = [one for one in answer["chunk"] if one["type"] == ENCRYPTED]
        return [one["event_id"] for one in reversed(events)]


async def _marked(records: Records) -> tuple[int, int]:
    """How many messages the alert bot has promised, and how many are known to be delivered."""
    row = await records.store.db.fetchrow(
        "SELECT COUNT(*) AS promised, COUNT(event_id) AS delivered FROM outbox WHERE sender=$1",
        SentBy.ALERTS.value,
    )
    return (row["promised"], row["delivered"])


async def _admit(records: Records, room_id: str) -> PatientKey:
    now = datetime.now(UTC)
    patient = await records.patients.add(number="1", initials="A.D.", bed="4", account=None)
    consultation = await records.consultations.add(
        patient=patient.key,
        clinicians=(DOCTOR,),
        language=Language.FRENCH,
        time_zone="Africa/Dakar",
        now=now,
    )
    await records.consultations.open_in(consultation.id, room_id)
    await records.devices.link(DEVICE, patient.key, consultation.id, now=now)
    await measure(records, patient.key, EPISODE, since=now)
    return patient.key


async def measure(
    records: Records, patient: PatientKey, spo2: Sequence[int], *, since: datetime
) -> None:
    """One reading every 5 s."""
    moments = [since + timedelta(seconds=5 * number) for number in range(len(spo2))]
    new = [
        NewReading(
            str(at).encode()[-16:],
            patient,
            Reading(DEVICE, at, at, Clock.DEVICE, {Kind.SPO2: Decimal(value)}),
        )
        for at, value in zip(moments, spo2, strict=True)
    ]
    async with records.store.transaction() as connection:
        await records.readings.append(connection, new)


@pytest.fixture(scope="module")
def synapse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Synapse]:
    """One of its own: the accounts have the names of production."""
    started = Synapse(
        SynapseSite(
            directory=tmp_path_factory.mktemp("synapse"),
            server_name=SERVER,
            port=free_port(),
            appservice_url=f"http://127.0.0.1:{free_port()}",
        )
    )
    run(started.start())
    yield started
    run(started.stop())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(synapse: Synapse, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    directory = tmp_path_factory.mktemp("world")
    observer = Observer(synapse.base_url, DOCTOR, directory / "doctor")
    async with Proxy(synapse.base_url) as proxy:
        one = World(synapse, proxy, observer, directory)
        await one.prepare()
        try:
            yield one
        finally:
            await observer.stop()
            await one.close()


# --- what happens on the way ----------------------------------------------------------------------

UPLOAD: Final = "POST keys upload"
"""Only when the homeserver has few of our one-time keys left; not on the way of an alarm."""

SEND: Final = Call("PUT rooms send m.room.encrypted", 1)
CHANGES: Final = frozenset(
    {
        "POST join",
        "POST keys claim",
        "PUT sendToDevice m.room.encrypted",
        "PUT rooms send m.room.encrypted",
    }
)
"""Calls by which something changes at the homeserver."""

ASKS: Final = frozenset(
    {"POST keys query", "GET sync", "GET rooms messages", "GET rooms joined_members"}
)
ASKING_FAULTS: Final = (Fault.CUT, Fault.ERROR, Fault.BUSY, Fault.NONSENSE, Fault.LATE)
"""What nothing is changed by fails in fewer ways."""

TIMES: Final = 2
"""How many of the same are made to fail, one after the other."""

WRITES: Final = ("INSERT", "UPDATE", "DELETE", "COMMIT")


async def dry_run(world: World) -> tuple[list[Call], list[Statement]]:
    """What happens on the way of two alarms when nothing fails: calls twice, statements once."""
    world.proxy.expect()
    async with world.bedside() as bedside:
        with tapped() as tap:
            async with running(bedside.settings, bedside.records, tap):
                await world.judge(bedside)
        return (
            [one for one in world.proxy.calls if one.number <= TIMES and one.name != UPLOAD],
            [one for one in tap.seen if one.number == 1],
        )


def _begins(statement: Statement, *words: str) -> bool:
    return statement.text.startswith(words)


async def fails_in_http(world: World, call: Call, fault: Fault) -> None:
    async with world.bedside() as bedside:
        world.proxy.expect(call, fault)
        async with running(bedside.settings, bedside.records):
            await world.judge(bedside)
        # How often the same is asked differs a little from run to run.
        assert world.proxy.has_failed or call.number > 1


async def fails_in_sql(world: World, statement: Statement, *, after: bool) -> None:
    world.proxy.expect()
    async with world.bedside() as bedside:
        with tapped(statement, after=after) as tap:
            async with running(bedside.settings, bedside.records, tap):
                async with asyncio.timeout(WITHIN_S):
                    await tap.failed.wait()
                # His monitor goes on; who could not be judged is judged with his next reading.
                later = datetime.now(UTC) + timedelta(minutes=2)
                await measure(bedside.records, bedside.patient, EPISODE[-1:], since=later)
                await world.judge(bedside)


@asynccontextmanager
async def child(
    settings: Settings, at: Statement | None = None, *, after: bool = False
) -> AsyncIterator[BaseProcess]:
    """The process in one of its own, killed at the end if it is not dead yet."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["tests.faults"])
    process = forks.Process(target=run_until_killed, args=(settings, at), kwargs={"after": after})
    process.start()
    try:
        yield process
    finally:
        process.kill()
        await asyncio.to_thread(process.join, WITHIN_S)
        assert process.exitcode == -signal.SIGKILL


async def is_killed_at_call(world: World, call: Call, *, answer: bool) -> None:
    async with world.bedside() as bedside:
        held = world.proxy.hold(call, answer=answer)
        async with child(bedside.settings), asyncio.timeout(WITHIN_S):
            await held.wait()
        world.proxy.expect()
        async with running(bedside.settings, bedside.records):
            await world.judge(bedside)


async def is_killed_at_statement(world: World, statement: Statement, *, after: bool) -> None:
    world.proxy.expect()
    async with world.bedside() as bedside:
        async with child(bedside.settings, statement, after=after) as process:
            await asyncio.to_thread(process.join, WITHIN_S)
            assert not process.is_alive()
        async with running(bedside.settings, bedside.records):
            await world.judge(bedside)


async def failures(cases: Sequence[tuple[str, Coroutine[Any, Any, None]]]) -> list[str]:
    """What went wrong in which case; all are tried."""
    found = []
    for name, case in cases:
        try:
            await case
        except (AssertionError, TimeoutError, FajmaError) as error:
            found.append(f"{name}: {error!r}")
    return found


# --- each of it fails once ------------------------------------------------------------------------


async def test_every_call_on_the_way_of_an_alarm_is_known_here(world: World) -> None:
    calls, _ = await dry_run(world)
    assert {one.name for one in calls} == CHANGES | ASKS


@pytest.mark.parametrize("fault", Fault)
async def test_an_alarm_is_told_once_whatever_becomes_of_its_send(
    world: World, fault: Fault
) -> None:
    await fails_in_http(world, SEND, fault)


@pytest.mark.parametrize("name", ["POST keys claim", "PUT sendToDevice m.room.encrypted"])
@pytest.mark.parametrize("fault", [Fault.CUT, Fault.ERROR, Fault.NONSENSE])
async def test_an_alarm_can_be_read_although_its_key_was_not_passed_on_at_first(
    world: World, name: str, fault: Fault
) -> None:
    async with asyncio.timeout(SOON_S):
        await fails_in_http(world, Call(name, 1), fault)


@pytest.mark.parametrize("after", [False, True])
async def test_an_alarm_is_told_once_although_its_mark_is_lost(
    world: World, *, after: bool
) -> None:
    mark = Statement("UPDATE outbox SET event_id=$2 WHERE delivery_id=$1", 1)
    await fails_in_sql(world, mark, after=after)


async def test_an_alarm_is_told_once_although_the_process_dies_before_it_hears_so(
    world: World,
) -> None:
    await is_killed_at_call(world, SEND, answer=True)


@pytest.mark.slow
async def test_an_alarm_is_told_once_whichever_call_fails_and_how(world: World) -> None:
    calls, _ = await dry_run(world)
    cases = [
        (f"{call} {fault}", fails_in_http(world, call, fault))
        for call in calls
        for fault in (Fault if call.name in CHANGES else ASKING_FAULTS)
    ]
    assert await failures(cases) == []


@pytest.mark.slow
async def test_an_alarm_is_told_once_whichever_statement_fails(world: World) -> None:
    _, statements = await dry_run(world)
    cases = [
        (f"{one} {after=}", fails_in_sql(world, one, after=after))
        for one in statements
        for after in ((False, True) if _begins(one, *WRITES) else (False,))
    ]
    assert await failures(cases) == []


@pytest.mark.slow
async def test_an_alarm_is_told_once_at_whichever_call_the_process_is_killed(world: World) -> None:
    calls, _ = await dry_run(world)
    cases = [
        (f"{call} {answer=}", is_killed_at_call(world, call, answer=answer))
        for call in calls
        for answer in ((False, True) if call.name in CHANGES else (False,))
    ]
    assert await failures(cases) == []


@pytest.mark.slow
async def test_an_alarm_is_told_once_at_whichever_write_the_process_is_killed(world: World) -> None:
    _, statements = await dry_run(world)
    cases = [
        (f"{one} {after=}", is_killed_at_statement(world, one, after=after))
        for one in statements
        if _begins(one, *WRITES)
        for after in (False, True)
    ]
    assert await failures(cases) == []


# --- what the homeserver's memory of transactions does not cover ----------------------------------


async def test_a_client_that_is_set_up_anew_finds_what_the_earlier_one_sent(world: World) -> None:
    async with world.bedside() as bedside:
        held = world.proxy.hold(SEND, answer=True)
        async with child(bedside.settings), asyncio.timeout(WITHIN_S):
            await held.wait()
        world.proxy.expect()
        (world.secrets / "fajma-alerts" / "session.json").unlink()  # as docs say for a lost device
        async with running(bedside.settings, bedside.records):
            await world.judge(bedside)


async def test_an_alarm_that_was_redacted_before_we_knew_of_it_is_not_sent_again(
    world: World,
) -> None:
    async with world.bedside() as bedside:
        held = world.proxy.hold(SEND, answer=True)
        async with child(bedside.settings), asyncio.timeout(WITHIN_S):
            await held.wait()
        world.proxy.expect()
        [event_id] = await world.shown(bedside.room_id)
        path = f"rooms/{quote(bedside.room_id)}/redact/{quote(event_id)}/1"
        await world.as_host("PUT", path, {})
        async with running(bedside.settings, bedside.records):
            await world.until_marked(bedside)
        shown = await world.shown(bedside.room_id)
        assert shown[0] == event_id
        assert len(shown) == len(TOLD)
