"""A publisher at work in a test: its homeserver is a list, its clock stands still."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any, cast

from appservice.sender import SealedState, Sender
from bridges.mqtt_vitals.publisher import Publisher
from fajma.config import Publish
from fajma.events import (
    VITALS,
    VITALS_BATCH,
    Vitals,
    VitalsBatch,
    encrypted_state_key,
)
from fajma.store import Hints, Records
from fajma.store.alarms import NewState
from fajma.store.consultations import Consultation
from fajma.store.readings import NewReading
from fajma.vitals import Age, Clock, DeviceId, Kind, PatientKey, Reading

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
SETTINGS = Publish(state_every_s=300, unwatched_state_every_s=300, batch_every_s=60)


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
    """By room, event type or ``history``: what a send fails with, before the homeserver has it."""
    lost_answers: dict[str, BaseException] = field(default_factory=dict)
    """By event type: what a send fails with, after the homeserver has it."""
    away: BaseException | None = None
    """What everything fails with, before the homeserver has it."""
    tries: int = 0
    """Requests, whatever became of them."""
    order: list[tuple[str, str]] = field(default_factory=list)
    """Room and event type of what arrived, in all rooms together."""
    state_puts: int = 0
    state_reads: int = 0
    _sealed: int = 0
    _holds: dict[str, asyncio.Event] = field(default_factory=dict)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(
        self, room_id: str, event_type: str, content: Mapping[str, Any], *, transaction_id: str
    ) -> str:
        self.attempts.append((transaction_id, content))
        await self._held(room_id)
        return self._arrive(room_id, event_type, content, transaction_id)

    async def seal_state(
        self, room_id: str, event_type: str, state_key: str, content: Mapping[str, Any]
    ) -> SealedState:
        self._sealed += 1
        outer_key = encrypted_state_key(event_type, state_key)
        return SealedState(room_id, outer_key, {**content, "ciphertext": f"{self._sealed}"})

    async def put_state(self, sealed: SealedState) -> str:
        self.state_puts += 1
        await self._held(sealed.room_id)
        event_type, key = sealed.outer_key.split(":")
        return self._arrive(sealed.room_id, event_type, sealed.content, key)

    async def is_set(self, sealed: SealedState) -> bool:
        self.state_reads += 1
        self._reach(sealed.room_id)
        state = [one for one in self.rooms.get(sealed.room_id, ()) if one.event_type == VITALS]
        return bool(state) and state[-1].content["ciphertext"] == sealed.content["ciphertext"]

    def _arrive(self, room_id: str, event_type: str, content: Mapping[str, Any], key: str) -> str:
        self._reach(room_id, event_type, *(["history"] if content.get("history") else []))
        room = self.rooms.setdefault(room_id, [])
        known = [one for one in room if one.key == key and event_type != VITALS]
        if not known:
            known = [Sent(event_type, content, f"${len(room)}-{room_id}", key)]
            room += known
            self.order.append((room_id, event_type))
            self._news.set()
        if event_type in self.lost_answers:
            raise self.lost_answers[event_type]
        return known[0].event_id

    @contextlib.contextmanager
    def slow(self, room_id: str) -> Iterator[asyncio.Event]:
        """Sends into a room take until the event is set."""
        self._holds[room_id] = asyncio.Event()
        yield self._holds[room_id]

    async def _held(self, room_id: str) -> None:
        if room_id in self._holds:
            await self._holds[room_id].wait()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what arrives."""
        async with asyncio.timeout(10):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def _reach(self, *what: str) -> None:
        self.tries += 1
        if self.away is not None:
            raise self.away
        for failing in what:
            if failing in self.failing:
                raise self.failing[failing]

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

    async def finished(self, publisher: Publisher, publishing: asyncio.Task[None]) -> None:
        """Until the publisher has gone round; raises what it died of, if it did."""
        waits = asyncio.create_task(self._waits.wait())
        async with asyncio.timeout(10):
            await asyncio.wait({waits, publishing}, return_when=asyncio.FIRST_COMPLETED)
            waits.cancel()
            # What is sent may have something after it: the publisher takes it back first.
            while publisher._sending and not publishing.done():
                await asyncio.wait(
                    {*publisher._sending, publishing}, return_when=asyncio.FIRST_COMPLETED
                )
                await asyncio.sleep(0)
        if publishing.done():
            publishing.result()
        self._waits.clear()

    def go(self) -> None:
        self._hint.set()


class Desk:
    """A publisher at work under a clock that stands still until it is moved."""

    def __init__(self, records: Records, sender: RecordingSender) -> None:
        self.now = NOON
        self.settings = SETTINGS
        self.sender = sender
        self._records = records

    def later(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    @contextlib.asynccontextmanager
    async def open(self, *, waits: bool = True) -> AsyncIterator[Desk]:
        """Starts a publisher anew, as after a restart; waits until it has gone round once."""
        self._rounds = Rounds()
        self._records.store.hints = self._rounds
        self.publisher = Publisher(
            self.settings, self._records, cast("Sender", self.sender), now=lambda: self.now
        )
        self._task = asyncio.create_task(self.publisher.run())
        try:
            if waits:
                await self.hinted()
            yield self
        finally:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def hinted(self) -> None:
        """Until it has gone round because somebody hinted."""
        await self._rounds.finished(self.publisher, self._task)

    async def round(self) -> None:
        self._rounds.go()
        await self.hinted()


async def measure(
    records: Records,
    consultation: Consultation,
    count: int,
    *,
    value: int = 97,
    age: Age = Age.LIVE,
    worn: bool = True,
) -> None:
    """Log readings, one every 5 s since noon, each with its number in its tenths."""
    before = await records.store.db.fetchval(
        "SELECT COUNT(*) FROM reading WHERE patient_key=$1", consultation.patient
    )
    device = DeviceId(f"{int(consultation.patient[:12], 16):012X}")
    batch = []
    for number in range(before, before + count):
        at = NOON + timedelta(seconds=5 * number)
        values = {Kind.SPO2: Decimal(value), Kind.HEART_RATE: Decimal(700 + number % 99) / 10}
        reading = Reading(device, at, at, Clock.DEVICE, values if worn else {}, age, contact=worn)
        batch.append(NewReading(number.to_bytes(16, "big"), consultation.patient, reading))
    async with records.store.transaction() as connection:
        await records.readings.append(connection, batch)


async def announce(records: Records, consultation: Consultation, at: datetime | None) -> None:
    """The alarm engine has judged, and has announced something if a moment is given."""
    async with records.store.transaction() as connection:
        await records.alarm_states.put(connection, NewState(consultation.patient, "{}", at))


async def logged(records: Records, patient: PatientKey) -> Sequence[Any]:
    return await records.readings.after(0, limit=100_000, patient=patient)


def batches(desk: Desk, consultation: Consultation, *, history: bool = False) -> list[VitalsBatch]:
    found = [
        VitalsBatch.from_content(one.content)
        for one in desk.sender.of_type(consultation, VITALS_BATCH)
    ]
    return [one for one in found if one.history is history]


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
            for sample in batch.samples.get(kind, ())
        ] == [
            (one.reading.measured_at, one.reading.values[kind])
            for one in wanted
            if one.reading.values
        ]
    for before, after in pairwise(published):
        assert before.first <= before.last < after.first <= after.last
    feed = await records.feeds.get(consultation.id)
    assert (feed.published, feed.pending) == (wanted[-1].position, None)
