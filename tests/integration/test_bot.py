"""The alert bot's delivery, with a client that fails as a homeserver may; the store is real."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any, cast

import nio
import pytest

from bots.alerts import bot as module
from bots.alerts.bot import AlertBot
from bots.alerts.client import SignedClient
from fajma.errors import BusyError, UnavailableError
from fajma.events import DELIVERY
from fajma.store import Records
from fajma.store.alarms import Delivery
from fajma.store.consultations import Consultation
from fajma.store.warnings import About
from fajma.vitals import PatientKey

NOW = datetime(2026, 11, 22, 14, 0, tzinfo=UTC)
HOST = "@fajma:clinic.test"
WITHIN_S = 15.0


class FakeClient:
    """Stands for ``SignedClient``: rooms, joins and sends, each of which can be made to fail."""

    user_id = "@fajma-alerts:clinic.test"

    def __init__(self, *rooms: str) -> None:
        self.rooms = dict.fromkeys(rooms)
        self.ready = asyncio.Event()
        self.ready.set()
        self.sent: list[tuple[str, str]] = []
        self.timeline: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        """What the homeserver shows of each room, newest first."""
        self.looks: list[str] = []
        self.failing_looks = 0
        self.answers: dict[str, Any] = {}
        """What a room answers or raises to every send."""
        self.failing: defaultdict[str, int] = defaultdict(int)
        self.hanging: set[str] = set()
        self.refusing_joins = 0
        self.news = asyncio.Event()
        self.asked: defaultdict[str, int] = defaultdict(int)
        self.question = asyncio.Event()

    def add_event_callback(self, *_: object) -> None:
        return

    async def run_sync(self) -> None:
        await asyncio.Event().wait()

    async def join(self, room_id: str) -> Any:
        if self.refusing_joins > 0:
            self.refusing_joins -= 1
            return nio.JoinError("trouble", "M_UNKNOWN")
        self.rooms[room_id] = None
        return nio.JoinResponse(room_id)

    async def room_send(self, room_id: str, _: str, __: object, tx_id: str) -> Any:
        self.asked[room_id] += 1
        self.question.set()
        if room_id in self.hanging:
            await asyncio.Event().wait()
        if isinstance(answer := self.answers.get(room_id), Exception):
            raise answer
        if answer is not None:
            return answer
        if self.failing[room_id] > 0:
            self.failing[room_id] -= 1
            raise UnavailableError("the homeserver does not answer", code="homeserver_unavailable")
        self.sent.append((room_id, tx_id))
        self.news.set()
        return nio.RoomSendResponse(f"${tx_id}", room_id)

    async def messages(self, room_id: str, _: Mapping[str, str]) -> Mapping[str, Any]:
        self.looks.append(room_id)
        if self.failing_looks > 0:
            self.failing_looks -= 1
            raise UnavailableError("no", code="messages_refused")
        return {"chunk": self.timeline[room_id]}

    async def until_asked(self, room_id: str, count: int) -> None:
        async with asyncio.timeout(WITHIN_S):
            while self.asked[room_id] < count:
                self.question.clear()
                await self.question.wait()

    async def until_sent(self, count: int) -> None:
        async with asyncio.timeout(WITHIN_S):
            while len(self.sent) < count:
                self.news.clear()
                await self.news.wait()


@contextlib.asynccontextmanager
async def running(client: FakeClient, records: Records) -> AsyncIterator[None]:
    task = asyncio.create_task(AlertBot(cast("SignedClient", client), records, host=HOST).run())
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until_delivered(records: Records, count: int) -> None:
    async with asyncio.timeout(WITHIN_S):
        while (await records.outbox.counts())[1] < count:  # noqa: ASYNC110 - a row tells nobody
            await asyncio.sleep(0.01)


@pytest.fixture
async def patient(records: Records, admit: Any) -> PatientKey:
    consultation: Consultation = await admit(records, "A4CF12F03B7E")
    return consultation.patient


async def promise(records: Records, patient: PatientKey | None, room_id: str, *ids: str) -> None:
    async with records.store.transaction() as connection:
        for delivery_id in ids:
            await records.outbox.add(
                connection, Delivery(delivery_id, room_id, patient, {"body": "x"}, NOW)
            )
    records.store.hints.notify("outbox")


async def test_what_fails_is_sent_again_in_order_and_under_the_same_id(
    records: Records, patient: PatientKey
) -> None:
    client = FakeClient("!a")
    client.failing["!a"] = 2
    await promise(records, patient, "!a", "1", "2", "3")
    async with running(client, records):
        await client.until_sent(3)
        await until_delivered(records, 3)
    assert client.sent == [("!a", "1"), ("!a", "2"), ("!a", "3")]
    assert await records.outbox.counts() == (3, 3)


async def test_a_room_that_hangs_or_fails_does_not_hold_up_another(
    records: Records, patient: PatientKey
) -> None:
    client = FakeClient("!hangs", "!fails", "!well")
    client.hanging.add("!hangs")
    client.failing["!fails"] = 1_000_000
    await promise(records, patient, "!hangs", *(f"h{number}" for number in range(120)))
    await promise(records, patient, "!fails", *(f"f{number}" for number in range(120)))
    async with running(client, records):
        await promise(records, patient, "!well", "1")
        await client.until_sent(1)
        await promise(records, patient, "!well", "2")
        await client.until_sent(2)
    assert client.sent == [("!well", "1"), ("!well", "2")]


async def test_a_room_whose_join_failed_is_joined_when_an_alarm_is_for_it(
    records: Records, patient: PatientKey
) -> None:
    client = FakeClient()
    client.refusing_joins = 2
    await promise(records, patient, "!later", "1")
    async with running(client, records):
        await client.until_sent(1)
    assert client.sent == [("!later", "1")]


async def test_a_delivery_that_does_not_open_stays_and_holds_up_nothing(
    records: Records, patient: PatientKey
) -> None:
    client = FakeClient("!a")
    await promise(records, patient, "!a", "1", "2")
    await records.store.db.execute("UPDATE outbox SET sealed=$1 WHERE delivery_id='1'", b"torn")
    async with running(client, records):
        await until_delivered(records, 1)
    assert client.sent == [("!a", "2")]
    assert await records.outbox.counts() == (2, 1)


async def test_a_database_that_fails_for_a_while_ends_nothing(
    records: Records, patient: PatientKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = FakeClient("!a")
    failures = 2
    delivered = records.outbox.delivered

    async def sometimes(delivery_id: str, event_id: str) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError("database is locked")
        await delivered(delivery_id, event_id)

    monkeypatch.setattr(records.outbox, "delivered", sometimes)
    await promise(records, patient, "!a", "1")
    async with running(client, records):
        await until_delivered(records, 1)
    # Sent again under the same id, which the homeserver knows already.
    assert client.sent == [("!a", "1")] * 3
    assert await records.outbox.counts() == (1, 1)


# --- what an earlier process may have sent --------------------------------------------------------


def event(delivery_id: str, *, sender: str = FakeClient.user_id) -> dict[str, Any]:
    return {"event_id": f"$of-{delivery_id}", "sender": sender, "content": {DELIVERY: delivery_id}}


async def test_what_an_earlier_process_sent_is_found_in_the_room_and_not_sent_again(
    records: Records, patient: PatientKey
) -> None:
    client = FakeClient("!a")
    client.timeline["!a"] = [event("1")]
    await promise(records, patient, "!a", "1", "2")
    async with running(client, records):
        await until_delivered(records, 2)
    assert client.sent == [("!a", "2")]
    assert await records.outbox.event_of("1") == "$of-1"
    assert await records.outbox.event_of("2") == "$2"


async def test_what_somebody_else_wrote_under_the_id_of_an_alarm_is_not_the_alarm(
    records: Records, patient: PatientKey
) -> None:
    client = FakeClient("!a")
    client.timeline["!a"] = [event("1", sender="@mallory:clinic.test")]
    await promise(records, patient, "!a", "1")
    async with running(client, records):
        await until_delivered(records, 1)
    assert client.sent == [("!a", "1")]


async def test_what_was_promised_while_it_runs_is_sent_without_looking(
    records: Records, patient: PatientKey
) -> None:
    client = FakeClient("!a", "!b")
    await promise(records, patient, "!a", "1")
    async with running(client, records):
        await until_delivered(records, 1)
        client.failing["!b"] = 1
        await promise(records, patient, "!a", "2")
        await promise(records, patient, "!b", "3")
        await until_delivered(records, 3)
    assert client.looks == ["!a"]


async def test_an_alarm_is_sent_although_the_room_cannot_be_looked_at(
    records: Records, patient: PatientKey
) -> None:
    client = FakeClient("!a")
    client.failing_looks = 1_000_000
    await promise(records, patient, "!a", "1")
    async with running(client, records):
        await until_delivered(records, 1)
    assert client.sent == [("!a", "1")]
    assert client.looks == ["!a"] * 3


# --- a homeserver that is busy, a room that refuses -----------------------------------------------


async def test_a_busy_homeserver_is_left_alone_by_all_rooms_as_long_as_it_asks(
    records: Records, patient: PatientKey
) -> None:
    client = FakeClient("!busy", "!other")
    client.answers["!busy"] = BusyError(0.5)
    async with running(client, records):
        await promise(records, patient, "!busy", "1")
        await client.until_asked("!busy", 1)
        asked_at_s = asyncio.get_running_loop().time()
        del client.answers["!busy"]
        await promise(records, patient, "!other", "2")
        await client.until_sent(2)
        assert asyncio.get_running_loop().time() - asked_at_s >= 0.5
    assert client.asked == {"!busy": 2, "!other": 1}


async def test_after_a_busy_time_alarms_come_before_notices(
    records: Records, patient: PatientKey
) -> None:
    client = FakeClient("!notice", "!alarm")
    client.answers["!notice"] = BusyError(0.3)
    async with running(client, records):
        await promise(records, None, "!notice", "1")
        await client.until_asked("!notice", 1)
        del client.answers["!notice"]
        await promise(records, patient, "!alarm", "2")
        await client.until_sent(2)
    assert client.sent == [("!alarm", "2"), ("!notice", "1")]


@pytest.mark.parametrize(
    ("answer", "is_told"),
    [
        (nio.RoomSendError("no", "M_FORBIDDEN"), True),
        (UnavailableError("no", code="sharing_refused"), True),
        (UnavailableError("no", code="homeserver_unavailable"), False),
    ],
)
async def test_of_a_room_that_goes_on_refusing_somebody_is_told_until_it_takes_alarms(
    records: Records,
    patient: PatientKey,
    monkeypatch: pytest.MonkeyPatch,
    answer: Any,
    is_told: bool,  # noqa: FBT001
) -> None:
    monkeypatch.setattr(module, "TELL_AFTER_S", 0.0)
    client = FakeClient("!refuses", "!well")
    client.answers["!refuses"] = answer
    await promise(records, patient, "!refuses", "1")
    async with running(client, records):
        await client.until_asked("!refuses", 2)
        await promise(records, patient, "!well", "2")
        await client.until_sent(1)
        told = await records.warnings.open(About.UNDELIVERABLE)
        assert [one.subject for one in told] == ["!refuses"] * is_told
        del client.answers["!refuses"]
        await until_delivered(records, 2)
        async with asyncio.timeout(WITHIN_S):
            while await records.warnings.open():  # noqa: ASYNC110 - a row tells nobody
                await asyncio.sleep(0.01)
    assert client.sent == [("!well", "2"), ("!refuses", "1")]


async def test_a_warning_that_is_left_of_an_earlier_process_ends_with_what_it_was_about(
    records: Records,
) -> None:
    await records.warnings.set(About.UNDELIVERABLE, "!a", [""], now=NOW)
    async with running(FakeClient(), records), asyncio.timeout(WITHIN_S):
        while await records.warnings.open():  # noqa: ASYNC110 - a row tells nobody
            await asyncio.sleep(0.01)
    assert not await records.warnings.is_open(About.UNDELIVERABLE, "!a")
