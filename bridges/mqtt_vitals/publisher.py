"""From the readings log to the rooms.

For each open consultation: every reading in timeline batches, and the latest values as encrypted
room state. Once a second the publisher looks at what is new, with a handful of queries for all
rooms together; ``cadence`` says what is due and whose turn it is, ``budget`` how fast. A room has
one send under way at a time, and several rooms have theirs at once, so that a slow room holds up
no other.

What was published is kept per consultation, so the publisher can die, restart, or lag without
losing or repeating a reading. Before a batch is sent its end is noted as pending; after a crash the
same batch is sent again under the same transaction id, and the homeserver answers with the event it
already has (it remembers for a day). Room state has no transaction id: after a send whose outcome
is unknown it is read back.

A row of the log that does not open (altered, or its patient's key is gone) is passed over, counted
and told of: otherwise it would hold up all that follows it in its room.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, Final
from zoneinfo import ZoneInfo

import structlog

from appservice.sender import SealedState, Sender
from bridges.mqtt_vitals.budget import HOMESERVER_PAUSES_S, ROOM_PAUSES_S, Budget, Pause
from bridges.mqtt_vitals.cadence import (
    ALARMING_FOR,
    Cadence,
    Due,
    Standing,
    Urgency,
    What,
    next_of,
)
from bridges.mqtt_vitals.history import LASTS, Thinned
from bridges.mqtt_vitals.snapshot import Snapshot
from bridges.mqtt_vitals.trouble import Whose, is_refusal, whose
from fajma.config import Publish
from fajma.errors import BusyError
from fajma.events import VITALS, VITALS_BATCH, VITALS_DAY, VitalsBatch
from fajma.store import Records, to_ms
from fajma.store.consultations import ConsultationId, OpenRoom
from fajma.store.followers import Feed
from fajma.store.readings import LoggedReading, SealedReading
from fajma.tasks import end
from fajma.vitals import Reading

log = structlog.get_logger()

MAX_BATCH_READINGS: Final = 400
"""Most readings in one event. The largest such event, encrypted, stays under the 64 KiB that an
event may have, with room for what a homeserver adds (tests/unit/test_event_size.py)."""

MAX_HISTORY_READINGS: Final = 500
"""The same for history, in which a reading has mostly one value."""

SNAPSHOT_READINGS: Final = 100
"""Read back at start, so that the first snapshot is complete and has a trend."""

LOOK_READINGS: Final = 5000
"""Most places of readings that are fetched at once when looking what is new."""

PLACES: Final = 4
"""Rooms that are sent to at once. One homeserver process does not answer faster to more, and what
is urgent waits in its queue behind them."""

URGENT_PLACES: Final = 16
"""The same for snapshots of alarming rooms, which so need not wait for slow ones."""

Now = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class _Shown:
    """A snapshot on its way into the room, and what it shows."""

    sealed: SealedState
    as_of: datetime
    position: int
    alarm_at: datetime | None


@dataclass(slots=True)
class _History:
    """What is left to send of the history, for who came until then."""

    came_at: datetime
    parts: Sequence[Sequence[tuple[int, Reading]]]
    sent: int = 0


@dataclass(slots=True)
class _Room:
    """What this process knows about one consultation's room."""

    consultation: OpenRoom
    feed: Feed
    newest: int
    snapshot: Snapshot
    taken: int = 0
    """Log position up to which the snapshot has taken in readings; 0 before it is needed."""
    more: bool = False
    batch_sent_at: datetime | None = None
    alarm_at: datetime | None = None
    watched_until: datetime | None = None
    came_at: datetime | None = None
    unsure: _Shown | None = None
    """A snapshot of which nobody knows whether the homeserver has it."""
    history: _History | None = None
    pause: Pause = field(default_factory=Pause)
    history_pause: Pause = field(default_factory=Pause)

    @property
    def standing(self) -> Standing:
        blank = self.snapshot.is_empty and self.taken >= self.newest
        return Standing(
            newest=self.newest,
            blank=blank,
            shown=self.feed.shown,
            published=self.feed.published,
            pending=self.feed.pending is not None,
            more=self.more,
            state_sent_at=self.feed.state_sent_at,
            batch_sent_at=self.batch_sent_at,
            alarm_at=self.alarm_at,
            shown_alarm=self.feed.shown_alarm,
            watched_until=self.watched_until,
            came_at=self.came_at,
        )


class Publisher:
    """Publishes the vitals of every open consultation."""

    def __init__(
        self,
        settings: Publish,
        records: Records,
        sender: Sender,
        *,
        now: Now = lambda: datetime.now(UTC),
    ) -> None:
        self._cadence = Cadence(
            state_every_s=settings.state_every_s,
            unwatched_state_every_s=settings.unwatched_state_every_s,
            batch_every_s=settings.batch_every_s,
            watched_every_s=settings.watched_every_s,
        )
        self._history_points = settings.history_points
        self._records = records
        self._sender = sender
        self._now = now
        self._cursor: int | None = None
        self._rooms: dict[ConsultationId, _Room] = {}
        self._due: dict[ConsultationId, Due] = {}
        """What waits for its turn; a room that is being sent to waits for nothing."""
        self._sending: dict[asyncio.Task[None], ConsultationId] = {}
        self._budget = Budget.full(settings.events_per_s, now())
        self._pause = Pause()
        # Woken by nothing but people: telemetry takes its turn once a second, so that an alarm
        # caused by the same reading is in the room before it.
        self._hint = records.store.hints.subscribe("audience")

    async def resend(self, room_id: str) -> None:
        """Somebody can read from now on: snapshot and history are for him, under a new key."""
        await self._records.watching.came(room_id, self._now())
        self._hint.set()

    async def run(self) -> None:
        """Publish until cancelled."""
        look: asyncio.Task[bool] | None = None
        try:
            while True:
                try:
                    await self._look()
                except Exception as error:  # noqa: BLE001 - a database that is away comes back
                    log.error("publisher_failed", error=type(error).__name__)
                wait_s = self._start_due()
                look = asyncio.create_task(self._records.store.hints.wait(self._hint))
                while not look.done():
                    await asyncio.wait(
                        {look, *self._sending},
                        timeout=wait_s,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                    self._take_back()
                    wait_s = self._start_due()
        finally:
            await end([*self._sending, *([look] if look is not None else [])])

    # --- what is new, and whose turn it is -------------------------------------------------------

    async def _look(self) -> None:
        """See what is new in all rooms; a few queries, however many rooms there are."""
        records = self._records
        now = self._now()
        if self._cursor is None:
            self._cursor = await records.readings.head()
        rooms = {}
        for one in await records.consultations.open_rooms():
            rooms[one.id] = self._rooms.get(one.id) or await self._opened(one)
        self._rooms = rooms
        self._due.clear()
        await self._hear_of_readings(self._cursor)
        alarms = await records.alarm_states.changed_since(now - ALARMING_FOR)
        watched = await records.watching.watched(now)
        newcomers = await records.watching.newcomers()
        for consultation, room in rooms.items():
            room.alarm_at = alarms.get(room.consultation.patient)
            room.watched_until = watched.get(consultation)
            room.came_at = newcomers.get(consultation)
        busy = set(self._sending.values())
        for consultation in rooms.keys() - busy:
            self._consider(consultation, now)

    async def _opened(self, consultation: OpenRoom) -> _Room:
        """A room as it stands in our records; its readings are read when they are needed."""
        return _Room(
            consultation,
            await self._records.feeds.get(consultation.id),
            await self._records.readings.head(consultation.patient),
            Snapshot(consultation.patient),
        )

    async def _hear_of_readings(self, cursor: int) -> None:
        """Follow the log: of whom something new was measured; nothing is unsealed for it."""
        worn: dict[str, list[_Room]] = {}
        for room in self._rooms.values():
            worn.setdefault(room.consultation.patient, []).append(room)
        while new := await self._records.readings.whose(cursor, limit=LOOK_READINGS):
            for position, patient in new:
                for room in worn.get(patient, ()):
                    room.newest = max(room.newest, position)
            cursor = self._cursor = new[-1][0]

    def _consider(self, consultation: ConsultationId, now: datetime) -> None:
        room = self._rooms.get(consultation)
        if room is None or room.pause.holds(now):
            return
        due = next_of(room.standing, self._cadence, now)
        if due is None or (due.what is What.HISTORY and room.history_pause.holds(now)):
            return
        self._due[consultation] = due

    def _start_due(self) -> float | None:
        """Start what may start.

        Returns:
            Seconds until there is a token for the next one; ``None`` if it waits for no token.
        """
        now = self._now()
        self._budget = self._budget.filled(now)
        while self._due and not self._pause.holds(now):
            consultation, due = min(self._due.items(), key=itemgetter(1))
            urgent = (due.urgency, due.what) == (Urgency.ALARMING, What.SNAPSHOT)
            if len(self._sending) >= self._places(urgent=urgent):
                return None
            wait_s = self._budget.wait_s(urgent=urgent)
            if wait_s:
                return wait_s
            self._budget = self._budget.spent()
            del self._due[consultation]
            task = asyncio.create_task(self._guarded(self._rooms[consultation], due.what))
            self._sending[task] = consultation
        return None

    def _places(self, *, urgent: bool) -> int:
        if self._pause.failures:
            return 1  # one that tries whether the homeserver is back
        return URGENT_PLACES if urgent else PLACES

    def _take_back(self) -> None:
        """What has been sent makes room for the next; a room may have more to send."""
        now = self._now()
        for task in [task for task in self._sending if task.done()]:
            task.result()
            self._consider(self._sending.pop(task), now)

    # --- one send --------------------------------------------------------------------------------

    async def _guarded(self, room: _Room, what: What) -> None:
        """One send; what fails pauses the room or, if it is the homeserver's trouble, all."""
        send = {
            What.SNAPSHOT: self._send_snapshot,
            What.BATCH: self._send_batch,
            What.HISTORY: self._send_history,
        }[what]
        try:
            sent = await send(room)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other rooms go on
            self._failed(room, what, error)
            return
        room.pause = Pause()
        if sent:
            self._pause = self._pause.succeeded(self._now())

    def _failed(self, room: _Room, what: What, error: Exception) -> None:
        now = self._now()
        trouble = whose(error)
        if trouble is not Whose.ROOM:
            asked_s = error.retry_after_s if isinstance(error, BusyError) else None
            self._pause = self._pause.failed(now, HOMESERVER_PAUSES_S, asked_s=asked_s)
        if trouble is not Whose.HOMESERVER:
            if what is What.HISTORY:  # what is measured now does not wait for it
                room.history_pause = room.history_pause.failed(now, ROOM_PAUSES_S)
            else:
                room.pause = room.pause.failed(now, ROOM_PAUSES_S)
        log.warning(
            "publishing_failed",
            consultation=room.consultation.id,
            what=what.name.lower(),
            error=type(error).__name__,
            trouble=trouble.name.lower(),
        )

    async def _send_snapshot(self, room: _Room) -> bool:
        consultation = room.consultation
        if room.unsure is not None:
            if await self._sender.is_set(room.unsure.sealed):
                await self._note_shown(room, room.unsure)
                return True
            room.unsure = None
        await self._take_new(room)
        if room.snapshot.is_empty:
            return False
        as_of, alarm_at = self._now(), room.alarm_at
        sealed = await self._sender.seal_state(
            consultation.room_id,
            VITALS,
            consultation.patient,
            room.snapshot.vitals(as_of).to_content(),
        )
        room.unsure = shown = _Shown(sealed, as_of, room.taken, alarm_at)
        try:
            await self._sender.put_state(sealed)
        except Exception as error:
            if is_refusal(error):
                room.unsure = None
            raise
        await self._note_shown(room, shown)
        log.info("vitals_published", consultation=consultation.id, position=shown.position)
        return True

    async def _note_shown(self, room: _Room, shown: _Shown) -> None:
        await self._note(
            room,
            replace(
                room.feed,
                state_sent_at=shown.as_of,
                shown=shown.position,
                shown_alarm=shown.alarm_at,
            ),
        )
        room.unsure = None

    async def _take_new(self, room: _Room) -> None:
        """Bring the snapshot up to date."""
        readings = self._records.readings
        patient = room.consultation.patient
        if not room.taken:
            newest = await readings.latest(patient, limit=SNAPSHOT_READINGS)
            self._take(room, await self._open(newest), newest[-1].position if newest else 0)
        while new := await readings.sealed_after(
            room.taken, limit=MAX_BATCH_READINGS, patient=patient
        ):
            self._take(room, await self._open(new), new[-1].position)

    def _take(self, room: _Room, readings: Sequence[LoggedReading], until: int) -> None:
        for one in readings:
            if one.position > room.taken:
                room.snapshot.take(one.reading)
        room.taken = max(room.taken, until)

    async def _open(self, sealed: Sequence[SealedReading]) -> list[LoggedReading]:
        """Open readings of one patient; those that do not open are told of, and left out."""
        opened, unreadable = await self._records.readings.open_all(sealed)
        if unreadable:
            new = await self._records.readings.note_unreadable(unreadable, self._now())
            if new:
                log.critical(
                    "readings_unreadable",
                    patient=sealed[0].patient,
                    count=new,
                    first=unreadable[0],
                    last=unreadable[-1],
                )
        return opened

    async def _send_batch(self, room: _Room) -> bool:
        consultation, feed = room.consultation, room.feed
        page = await self._records.readings.sealed_after(
            feed.published, limit=MAX_BATCH_READINGS, patient=consultation.patient
        )
        if feed.pending is not None:
            page = [one for one in page if one.position <= (feed.pending or 0)]
        readings = await self._open(page)
        if not readings:
            last = page[-1].position if page else feed.pending or room.newest
            await self._note(room, replace(feed, published=last, pending=None))
            return False
        if feed.pending is None and await self._sent_anchor(room):
            return True  # it had the token; the batch has the next
        first, last = page[0].position, page[-1].position
        await self._note(room, replace(room.feed, pending=last))
        await self._send_readings(
            room,
            [(one.position, one.reading) for one in readings],
            transaction_id=f"batch-{consultation.id}-{first}-{last}",
        )
        was_pending = feed.pending is not None
        await self._note(room, replace(room.feed, published=last, pending=None))
        room.more = room.newest > last and (was_pending or len(page) == MAX_BATCH_READINGS)
        room.batch_sent_at = self._now()
        if room.taken:
            self._take(room, readings, last)
        log.info("batch_published", consultation=consultation.id, first=first, last=last)
        return True

    async def _sent_anchor(self, room: _Room) -> bool:
        """Have the event that the day's batches refer to, so that a client can page one day.

        Returns:
            Whether it had to be sent.
        """
        consultation = room.consultation
        day = self._now().astimezone(ZoneInfo(consultation.time_zone)).date().isoformat()
        if room.feed.anchor_day == day:
            return False
        event_id = await self._sender.send(
            consultation.room_id,
            VITALS_DAY,
            {"version": 1, "patient": consultation.patient, "day": day},
            transaction_id=f"day-{consultation.id}-{day}",
        )
        await self._note(room, replace(room.feed, anchor_event=event_id, anchor_day=day))
        return True

    async def _send_readings(
        self,
        room: _Room,
        readings: Sequence[tuple[int, Reading]],
        *,
        transaction_id: str,
        history: bool = False,
    ) -> None:
        content: dict[str, Any] = VitalsBatch.of(
            room.consultation.patient, room.feed.anchor_event or "", readings, history=history
        ).to_content()
        await self._sender.send(
            room.consultation.room_id, VITALS_BATCH, content, transaction_id=transaction_id
        )

    async def _send_history(self, room: _Room) -> bool:
        """The next part of what somebody new could not read."""
        came_at = room.came_at
        if came_at is None:
            return False
        if room.history is None or room.history.came_at != came_at:
            room.history = _History(came_at, await self._thinned(room, came_at))
        history = room.history
        if history.sent < len(history.parts):
            if await self._sent_anchor(room):
                return True
            await self._send_readings(
                room,
                history.parts[history.sent],
                transaction_id=(f"history-{room.consultation.id}-{to_ms(came_at)}-{history.sent}"),
                history=True,
            )
            history.sent += 1
            if history.sent < len(history.parts):
                return True
        await self._records.watching.served(room.consultation.id, came_at)
        room.history, room.history_pause = None, Pause()
        if room.came_at == came_at:
            room.came_at = None
        log.info("history_published", consultation=room.consultation.id, parts=history.sent)
        return history.sent > 0

    async def _thinned(
        self, room: _Room, came_at: datetime
    ) -> Sequence[Sequence[tuple[int, Reading]]]:
        """The day before that moment as far as it is published, in parts that fit into events."""
        if not self._history_points:
            return ()
        thinned = Thinned(came_at, self._history_points)
        until = room.feed.published
        while page := await self._records.readings.latest(
            room.consultation.patient, limit=MAX_BATCH_READINGS, until=until
        ):
            opened = await self._open(page)
            for one in opened:
                thinned.take(one.position, one.reading)
            # Nothing is measured long after it was received.
            if opened and opened[0].reading.received_at < came_at - LASTS:
                break
            until = page[0].position - 1
        kept = thinned.readings()
        return [
            kept[start : start + MAX_HISTORY_READINGS]
            for start in range(0, len(kept), MAX_HISTORY_READINGS)
        ]

    async def _note(self, room: _Room, feed: Feed) -> None:
        await self._records.feeds.put(room.consultation.id, feed)
        room.feed = feed
