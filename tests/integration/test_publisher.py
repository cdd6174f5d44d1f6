"""From the log to the rooms: every reading once, in order, whatever fails in between."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any, cast

import pytest
from mautrix.errors import MatrixConnectionError
from structlog.testing import capture_logs

from appservice.sender import Sender
from bridges.mqtt_vitals.publisher import (
    MAX_BATCH_READINGS,
    RESEND_AGAIN_S,
    RETRY_S,
    Publisher,
)
from fajma.config import Publish
from fajma.events import VITALS, VITALS_BATCH, VITALS_DAY, Vitals, VitalsBatch
from fajma.store import Hints, Records
from fajma.store.alarms import NewState
from fajma.store.consultations import Consultation, ConsultationId
from fajma.store.followers import Feed, Feeds
from fajma.store.readings import NewReading
from fajma.vitals import Clock, DeviceId, Kind, PatientKey, Reading

Admit = Callable[..., Awaitable[Consultation]]

MINE = DeviceId("A4CF12F03B7E")
OTHER = DeviceId("A4CF12F03B7F")
NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
SETTINGS = Publish(state_every_s=300, batch_every_s=60)


class KilledError(BaseException):
    """Ends the publisher wherever it is, like the end of its process."""


@dataclass(frozen=True)
class Sent:
    """One event as it arrived at the homeserver."""

    event_type: str
    content: Mapping[str, Any]
    event_id: str
    key: str
    """Transaction id of a message, state key of state."""


@dataclass
class RecordingSender:
    """A `Sender` whose homeserver is a list; like a real one it knows repeated transactions."""

    rooms: dict[str, list[Sent]] = field(default_factory=dict)
    attempts: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    failing: dict[str, BaseException] = field(default_factory=dict)
    """By room or event type: what a send fails with, before the homeserver has it."""
    lost_answers: dict[str, BaseException] = field(default_factory=dict)
    """By event type: what a send fails with, after the homeserver has it."""

    async def send(
        self, room_id: str, event_type: str, content: Mapping[str, Any], *, transaction_id: str
    ) -> str:
        self.attempts.append((transaction_id, content))
        return self._arrive(room_id, event_type, content, transaction_id)

    async def set_state(
        self, room_id: str, event_type: str, state_key: str, content: Mapping[str, Any]
    ) -> str:
        return self._arrive(room_id, event_type, content, state_key)

    def _arrive(self, room_id: str, event_type: str, content: Mapping[str, Any], key: str) -> str:
        for failing in (room_id, event_type):
            if failing in self.failing:
                raise self.failing[failing]
        room = self.rooms.setdefault(room_id, [])
        known = [one for one in room if one.key == key and event_type != VITALS]
        if not known:
            known = [Sent(event_type, content, f"${len(room)}-{room_id}", key)]
            room += known
        if event_type in self.lost_answers:
            raise self.lost_answers[event_type]
        return known[0].event_id

    def of_type(self, consultation: Consultation, event_type: str) -> list[Sent]:
        return [
            one
            for one in self.rooms.get(consultation.room_id or "", ())
            if one.event_type == event_type
        ]


class Rounds(Hints):
    """Hints without the poll: the publisher goes round when hinted, or when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self._hint = asyncio.Event()
        self._waits = asyncio.Event()

    async def wait(self, event: asyncio.Event, timeout_s: float = Hints.POLL_S) -> None:
        assert timeout_s <= Hints.POLL_S
        self._hint = event
        self._waits.set()
        await event.wait()
        event.clear()

    async def finished(self, publishing: asyncio.Task[None]) -> None:
        """Until the publisher has gone round; raises what it died of, if it did."""
        waits = asyncio.create_task(self._waits.wait())
        done, _ = await asyncio.wait(
            {waits, publishing}, timeout=10, return_when=asyncio.FIRST_COMPLETED
        )
        waits.cancel()
        assert done
        if publishing in done:
            publishing.result()
        self._waits.clear()

    def go(self) -> None:
        self._hint.set()


class Desk:
    """A publisher at work under a clock that stands still until it is moved."""

    def __init__(self, records: Records, sender: RecordingSender) -> None:
        self.now = NOON
        self.sender = sender
        self._records = records

    def later(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Desk]:
        """Starts a publisher anew, as after a restart of the process."""
        self._rounds = Rounds()
        self._records.store.hints = self._rounds
        self.publisher = Publisher(
            SETTINGS, self._records, cast("Sender", self.sender), now=lambda: self.now
        )
        self._task = asyncio.create_task(self.publisher.run())
        try:
            await self._rounds.finished(self._task)
            yield self
        finally:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def hinted(self) -> None:
        """Until it has gone round because somebody hinted."""
        await self._rounds.finished(self._task)

    async def round(self) -> None:
        self._rounds.go()
        await self.hinted()


@pytest.fixture
def desk(sqlite_records: Records) -> Desk:
    return Desk(sqlite_records, RecordingSender())


@pytest.fixture
async def mine(sqlite_records: Records, admit: Admit) -> Consultation:
    return await admit(sqlite_records, MINE)


@pytest.fixture
async def other(sqlite_records: Records, admit: Admit) -> Consultation:
    return await admit(sqlite_records, OTHER)


async def measure(
    records: Records, consultation: Consultation, count: int, *, value: int = 97
) -> None:
    """Log readings, one every 5 s since noon, each with its number in its tenths."""
    before = len(await logged(records, consultation.patient))
    device = DeviceId(f"{int(consultation.patient[:12], 16):012X}")
    batch = []
    for number in range(before, before + count):
        at = NOON + timedelta(seconds=5 * number)
        values = {Kind.SPO2: Decimal(value), Kind.HEART_RATE: Decimal(700 + number % 99) / 10}
        reading = Reading(device, at, at, Clock.DEVICE, values)
        batch.append(NewReading(number.to_bytes(16, "big"), consultation.patient, reading))
    async with records.store.transaction() as connection:
        await records.readings.append(connection, batch)


async def logged(records: Records, patient: PatientKey) -> Sequence[Any]:
    return await records.readings.after(0, limit=100_000, patient=patient)


def batches(desk: Desk, consultation: Consultation) -> list[VitalsBatch]:
    return [
        VitalsBatch.from_content(one.content)
        for one in desk.sender.of_type(consultation, VITALS_BATCH)
    ]


def states(desk: Desk, consultation: Consultation) -> list[Vitals]:
    sent = desk.sender.of_type(consultation, VITALS)
    assert {one.key for one in sent} <= {consultation.patient}
    return [Vitals.from_content(one.content) for one in sent]


async def everything_is_published_once(
    records: Records, desk: Desk, consultation: Consultation
) -> None:
    wanted = await logged(records, consultation.patient)
    published = batches(desk, consultation)
    assert {one.patient for one in published} == {consultation.patient}
    for kind in (Kind.SPO2, Kind.HEART_RATE):
        assert [
            (sample.measured_at, sample.value)
            for batch in published
            for sample in batch.samples[kind]
        ] == [(one.reading.measured_at, one.reading.values[kind]) for one in wanted]
    assert published[0].first == wanted[0].position
    assert published[-1].last == wanted[-1].position
    for before, after in pairwise(published):
        assert before.first <= before.last < after.first <= after.last
    feed = await records.feeds.get(consultation.id)
    assert (feed.published, feed.pending) == (wanted[-1].position, None)


# --- batches -------------------------------------------------------------------------------------


async def test_every_reading_is_published_once_and_in_order_in_its_own_room(
    sqlite_records: Records, desk: Desk, mine: Consultation, other: Consultation
) -> None:
    async with desk.open():
        for count in (1, 7, MAX_BATCH_READINGS + 50):
            await measure(sqlite_records, mine, count)
            await measure(sqlite_records, other, count)
            await measure(sqlite_records, mine, 2)
            desk.later(60)
            await desk.round()
    for consultation in (mine, other):
        await everything_is_published_once(sqlite_records, desk, consultation)
    assert set(desk.sender.rooms) == {mine.room_id, other.room_id}


async def test_a_long_backlog_goes_out_in_events_of_bounded_size(
    sqlite_records: Records, desk: Desk, mine: Consultation
) -> None:
    await measure(sqlite_records, mine, 2 * MAX_BATCH_READINGS + 1)
    async with desk.open():
        pass
    sizes = [len(one.samples[Kind.SPO2]) for one in batches(desk, mine)]
    assert sizes == [MAX_BATCH_READINGS, MAX_BATCH_READINGS, 1]
    await everything_is_published_once(sqlite_records, desk, mine)


async def test_batches_keep_their_cadence_and_none_is_empty(
    sqlite_records: Records, desk: Desk, mine: Consultation
) -> None:
    async with desk.open():
        for seconds, readings, total in (
            (0, 1, 1),  # the first goes out at once
            (59, 1, 1),
            (1, 0, 2),
            (60, 0, 2),  # nothing new
            (600, 1, 3),
            (59, 1, 3),
        ):
            desk.later(seconds)
            await measure(sqlite_records, mine, readings)
            await desk.round()
            assert len(batches(desk, mine)) == total, (seconds, readings)


async def test_a_consultation_that_opens_later_is_published_too(
    sqlite_records: Records, desk: Desk, admit: Admit
) -> None:
    async with desk.open():
        assert desk.sender.rooms == {}
        consultation = await admit(sqlite_records, MINE)
        await desk.round()
        assert desk.sender.rooms == {}  # nothing was measured yet
        await measure(sqlite_records, consultation, 3)
        await desk.round()
    await everything_is_published_once(sqlite_records, desk, consultation)


async def test_batches_refer_to_one_anchor_a_day(
    sqlite_records: Records, desk: Desk, mine: Consultation
) -> None:
    for _ in range(2):  # a restart sends no second anchor
        async with desk.open():
            await measure(sqlite_records, mine, 1)
            desk.later(60)
            await desk.round()
    desk.later(12 * 3600)
    async with desk.open():
        await measure(sqlite_records, mine, 1)
        await desk.round()
    days = desk.sender.of_type(mine, VITALS_DAY)
    assert [one.content["day"] for one in days] == ["2026-03-02", "2026-03-03"]
    anchors = [one.anchor for one in batches(desk, mine)]
    assert anchors == [days[0].event_id, days[0].event_id, days[1].event_id]


async def test_what_the_homeserver_sees_in_clear_holds_no_value(
    sqlite_records: Records, desk: Desk, mine: Consultation
) -> None:
    await measure(sqlite_records, mine, 3)
    async with desk.open():
        pass
    # Identities, positions and the day; of the state it sees the opaque key of the patient.
    assert [transaction_id for transaction_id, _ in desk.sender.attempts] == [
        f"day-{mine.id}-2026-03-02",
        f"batch-{mine.id}-1-3",
    ]
    assert [one.key for one in desk.sender.of_type(mine, VITALS)] == [mine.patient]


# --- whatever dies when --------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before the send", "after the send", "after the answer"])
async def test_a_batch_whose_outcome_is_unknown_is_repeated_and_not_another(
    sqlite_records: Records,
    desk: Desk,
    mine: Consultation,
    moment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await measure(sqlite_records, mine, 1)
    async with desk.open():
        pass
    await measure(sqlite_records, mine, 5)
    put = Feeds.put

    async def die_when_done(self: Feeds, consultation: ConsultationId, feed: Feed) -> None:
        if feed.pending is None:
            raise KilledError
        await put(self, consultation, feed)

    with monkeypatch.context() as patched:
        if moment == "before the send":
            patched.setitem(desk.sender.failing, VITALS_BATCH, KilledError())
        elif moment == "after the send":
            patched.setitem(desk.sender.lost_answers, VITALS_BATCH, KilledError())
        else:
            patched.setattr(Feeds, "put", die_when_done)
        with pytest.raises(KilledError):
            async with desk.open():
                pass
    interrupted = desk.sender.attempts[-1]
    assert (await sqlite_records.feeds.get(mine.id)).pending == 6

    # While it was dead more was measured, and another day began.
    await measure(sqlite_records, mine, 4)
    desk.later(24 * 3600)
    attempted = len(desk.sender.attempts)
    async with desk.open():
        pass
    assert desk.sender.attempts[attempted] == interrupted
    await everything_is_published_once(sqlite_records, desk, mine)
    assert [one.last for one in batches(desk, mine)] == [1, 6, 10]


@pytest.mark.parametrize("event_type", [VITALS, VITALS_DAY])
async def test_a_death_while_sending_anything_else_costs_nothing_either(
    sqlite_records: Records, desk: Desk, mine: Consultation, event_type: str
) -> None:
    await measure(sqlite_records, mine, 3)
    for trouble in (desk.sender.failing, desk.sender.lost_answers):
        trouble[event_type] = KilledError()
        with pytest.raises(KilledError):
            async with desk.open():
                pass
        del trouble[event_type]
    async with desk.open():
        pass
    await everything_is_published_once(sqlite_records, desk, mine)
    assert len(desk.sender.of_type(mine, VITALS_DAY)) == 1


async def test_a_publisher_that_is_killed_at_any_send_publishes_everything_once(
    sqlite_records: Records, desk: Desk, mine: Consultation, other: Consultation
) -> None:
    chance = random.Random(7)
    for _ in range(25):
        await measure(sqlite_records, mine, chance.randint(0, 3))
        await measure(sqlite_records, other, chance.randint(0, 250))
        desk.later(chance.choice((1, 60, 600)))
        trouble = chance.choice((desk.sender.failing, desk.sender.lost_answers))
        trouble[chance.choice((VITALS, VITALS_DAY, VITALS_BATCH))] = KilledError()
        with contextlib.suppress(KilledError):
            async with desk.open():
                pass
        trouble.clear()
    async with desk.open():
        pass
    for consultation in (mine, other):
        await everything_is_published_once(sqlite_records, desk, consultation)


# --- one room's trouble --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [MatrixConnectionError("no answer"), TimeoutError(), OSError(), KeyError("event_id")],
    ids=lambda error: type(error).__name__,
)
async def test_a_room_that_fails_does_not_stop_another_and_is_tried_again(
    sqlite_records: Records,
    desk: Desk,
    mine: Consultation,
    other: Consultation,
    error: Exception,
) -> None:
    for consultation in (mine, other):
        await measure(sqlite_records, consultation, 3)
    desk.sender.failing[mine.room_id or ""] = error
    with capture_logs() as logs:
        async with desk.open():
            await everything_is_published_once(sqlite_records, desk, other)
            assert mine.room_id not in desk.sender.rooms
            desk.sender.failing.clear()
            desk.later(RETRY_S - 1)
            await desk.round()
            assert mine.room_id not in desk.sender.rooms
            desk.later(1)
            await desk.round()
    await everything_is_published_once(sqlite_records, desk, mine)
    assert len(states(desk, mine)) == 1
    failures = [one for one in logs if one["event"] == "publishing_failed"]
    assert [(one["consultation"], one["error"]) for one in failures] == [
        (mine.id, type(error).__name__)
    ]


async def test_a_reading_that_cannot_be_read_does_not_stop_another_room(
    sqlite_records: Records, desk: Desk, mine: Consultation, other: Consultation
) -> None:
    await measure(sqlite_records, mine, 1)
    await sqlite_records.store.db.execute("UPDATE reading SET sealed=$1", b"\x01" * 64)
    await measure(sqlite_records, other, 3)
    async with desk.open():
        pass
    await everything_is_published_once(sqlite_records, desk, other)
    assert mine.room_id not in desk.sender.rooms


# --- the snapshot --------------------------------------------------------------------------------


async def test_the_snapshot_keeps_its_cadence_and_is_not_repeated_without_news(
    sqlite_records: Records, desk: Desk, mine: Consultation
) -> None:
    async with desk.open():
        for seconds, readings, total in (
            (0, 0, 0),  # nothing was ever measured
            (0, 1, 1),
            (299, 1, 1),
            (1, 0, 2),
            (3000, 0, 2),
            (0, 1, 3),
        ):
            desk.later(seconds)
            await measure(sqlite_records, mine, readings)
            await desk.round()
            assert len(states(desk, mine)) == total, (seconds, readings)


async def test_the_snapshot_holds_the_latest_values_and_its_time_after_a_restart_too(
    sqlite_records: Records, desk: Desk, mine: Consultation
) -> None:
    await measure(sqlite_records, mine, 5)
    await measure(sqlite_records, mine, 1, value=88)
    for _ in range(2):
        desk.later(1000)
        async with desk.open():
            pass
        newest = states(desk, mine)[-1]
        assert newest.as_of == desk.now
        assert newest.latest[Kind.SPO2].value == 88
        assert newest.latest[Kind.HEART_RATE].value == Decimal("70.5")
        assert newest.latest[Kind.SPO2].measured_at == NOON + timedelta(seconds=25)
    assert len(states(desk, mine)) == 2


async def test_a_change_of_alarm_sends_the_snapshot_at_once(
    sqlite_records: Records, desk: Desk, mine: Consultation
) -> None:
    await measure(sqlite_records, mine, 1)
    async with desk.open():
        for moment, total in ((NOON, 2), (None, 2), (NOON + timedelta(seconds=1), 3)):
            async with sqlite_records.store.transaction() as connection:
                state = NewState(mine.patient, "{}", moment)
                await sqlite_records.alarm_states.put(connection, state)
            await desk.round()
            assert len(states(desk, mine)) == total


async def test_somebody_new_gets_the_snapshot_at_once_and_once_more(
    sqlite_records: Records, desk: Desk, mine: Consultation, other: Consultation
) -> None:
    for consultation in (mine, other):
        await measure(sqlite_records, consultation, 1)
    async with desk.open():
        await desk.publisher.resend(mine.room_id or "")
        await desk.publisher.resend("!elsewhere:clinic.test")
        await desk.hinted()
        assert len(states(desk, mine)) == 2
        for seconds, total in ((0, 2), (RESEND_AGAIN_S, 3), (RESEND_AGAIN_S, 3)):
            desk.later(seconds)
            await desk.round()
            assert len(states(desk, mine)) == total
    assert len(states(desk, other)) == 1
    assert len(batches(desk, mine)) == 1


async def test_a_snapshot_for_somebody_new_that_fails_is_not_forgotten(
    sqlite_records: Records, desk: Desk, mine: Consultation
) -> None:
    await measure(sqlite_records, mine, 1)
    async with desk.open():
        await desk.publisher.resend(mine.room_id or "")
        desk.sender.failing[VITALS] = MatrixConnectionError("no answer")
        await desk.round()
        desk.sender.failing.clear()
        assert len(states(desk, mine)) == 1
        desk.later(RETRY_S)
        await desk.round()
        assert len(states(desk, mine)) == 2


async def test_publishing_logs_no_value(
    sqlite_records: Records, desk: Desk, mine: Consultation
) -> None:
    await measure(sqlite_records, mine, 3, value=88)
    with capture_logs() as logs:
        async with desk.open():
            pass
    assert {one["event"] for one in logs} == {"vitals_published", "batch_published"}
    for secret in ("88", "spo2", "heart_rate", mine.patient):
        assert secret not in str([{**one, "consultation": ""} for one in logs])
