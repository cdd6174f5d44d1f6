"""From the readings log to the rooms.

For each open consultation: every reading in timeline batches, and the latest values as encrypted
room state. What was published is kept per consultation, so the publisher can die, restart, or lag
without losing or repeating a reading. Before a batch is sent its end is noted as pending; after a
crash the same batch is sent again under the same transaction id, and the homeserver answers with
the event it already has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

import structlog

from appservice.sender import Sender
from bridges.mqtt_vitals.snapshot import Snapshot
from fajma.config import Publish
from fajma.events import VITALS, VITALS_BATCH, VITALS_DAY, VitalsBatch
from fajma.store import Records
from fajma.store.consultations import Consultation, ConsultationId
from fajma.store.followers import Feed

log = structlog.get_logger()

MAX_BATCH_READINGS: Final = 200
"""Of five kinds: about 20 KB of JSON, well under the 64 KiB that an event may have."""

HISTORY_READINGS: Final = 100
"""Read back at start, so that the first snapshot is complete and has a trend."""

RETRY_S: Final = 5.0

RESEND_AGAIN_S: Final = 5.0
"""After somebody came, the snapshot goes out at once and once more: a client that hears the event
before it has looked up our device refuses it, and does not try again (seen with matrix-js-sdk)."""

Now = Callable[[], datetime]


@dataclass(slots=True)
class _Room:
    """What this process knows about one consultation's room."""

    snapshot: Snapshot
    taken: int
    """Log position up to which the snapshot has taken in readings."""
    feed: Feed
    state_sent_at: datetime | None = None
    state_position: int = 0
    alarm_changed_at: int = 0
    batch_sent_at: datetime | None = None
    not_before: datetime | None = None
    """After a failure: when to try again."""
    resend_at: datetime | None = None
    """When the snapshot goes out once more, whatever the cadence."""


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
        self._settings = settings
        self._records = records
        self._sender = sender
        self._now = now
        self._rooms: dict[ConsultationId, _Room] = {}
        self._resend: set[str] = set()
        # Woken by nothing but somebody coming: telemetry takes its turn once a second, so that an
        # alarm caused by the same reading is in the room before it.
        self._hint = records.store.hints.subscribe("audience")

    async def resend(self, room_id: str) -> None:
        """Somebody can read from now on: the snapshot goes out again, under a new key."""
        self._resend.add(room_id)
        self._hint.set()

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            try:
                for consultation in await self._records.consultations.open_ones():
                    await self._guarded(consultation)
            except Exception as error:  # noqa: BLE001 - a database that is away comes back
                log.error("publisher_failed", error=type(error).__name__)
            await self._records.store.hints.wait(self._hint)

    async def _guarded(self, consultation: Consultation) -> None:
        """One room's trouble must not stop the others."""
        room = self._rooms.get(consultation.id)
        now = self._now()
        if room is not None and room.not_before is not None and now < room.not_before:
            return
        try:
            if room is None:
                room = self._rooms[consultation.id] = await self._opened(consultation)
            room.not_before = None
            await self._publish(consultation, room)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other rooms go on
            log.warning(
                "publishing_failed",
                consultation=consultation.id,
                error=type(error).__name__,
                retry_s=RETRY_S,
            )
            if room is not None:
                room.not_before = now + timedelta(seconds=RETRY_S)

    async def _opened(self, consultation: Consultation) -> _Room:
        snapshot = Snapshot(consultation.patient)
        position = 0
        for logged in await self._records.readings.latest(
            consultation.patient, limit=HISTORY_READINGS
        ):
            snapshot.take(logged.reading)
            position = logged.position
        return _Room(snapshot, position, await self._records.feeds.get(consultation.id))

    async def _publish(self, consultation: Consultation, room: _Room) -> None:
        await self._take_new(consultation, room)
        await self._publish_state(consultation, room)
        await self._publish_batches(consultation, room)

    async def _take_new(self, consultation: Consultation, room: _Room) -> None:
        while new := await self._records.readings.after(
            room.taken, limit=MAX_BATCH_READINGS, patient=consultation.patient
        ):
            for logged in new:
                room.snapshot.take(logged.reading)
            room.taken = new[-1].position

    async def _publish_state(self, consultation: Consultation, room: _Room) -> None:
        if room.snapshot.is_empty or consultation.room_id is None:
            return
        alarm_changed_at = await self._records.alarm_states.changed_at(consultation.patient)
        resend = consultation.room_id in self._resend
        alarm_changed = alarm_changed_at != room.alarm_changed_at
        now = self._now()
        again = room.resend_at is not None and now >= room.resend_at
        if again:
            room.resend_at = None
        due = room.taken > room.state_position and self._is_due(
            room.state_sent_at, self._settings.state_every_s
        )
        if not (resend or again or alarm_changed or due):
            return
        self._resend.discard(consultation.room_id)
        try:
            await self._sender.set_state(
                consultation.room_id,
                VITALS,
                consultation.patient,
                room.snapshot.vitals(now).to_content(),
            )
        except BaseException:
            if resend or again:
                self._resend.add(consultation.room_id)
            raise
        if resend:
            room.resend_at = now + timedelta(seconds=RESEND_AGAIN_S)
        room.state_sent_at = self._now()
        room.state_position = room.taken
        room.alarm_changed_at = alarm_changed_at
        log.info("vitals_published", consultation=consultation.id, position=room.taken)

    async def _publish_batches(self, consultation: Consultation, room: _Room) -> None:
        if room.feed.pending is None and not (
            room.taken > room.feed.published
            and self._is_due(room.batch_sent_at, self._settings.batch_every_s)
        ):
            return
        while room.feed.pending is not None or room.taken > room.feed.published:
            await self._publish_batch(consultation, room)
        room.batch_sent_at = self._now()

    async def _publish_batch(self, consultation: Consultation, room: _Room) -> None:
        if consultation.room_id is None:
            return
        await self._have_anchor(consultation, room)
        readings = await self._records.readings.after(
            room.feed.published, limit=MAX_BATCH_READINGS, patient=consultation.patient
        )
        if room.feed.pending is not None:
            readings = [one for one in readings if one.position <= (room.feed.pending or 0)]
        first, last = readings[0].position, readings[-1].position
        await self._note(consultation, room, replace(room.feed, pending=last))
        batch = VitalsBatch.of(
            consultation.patient,
            room.feed.anchor_event or "",
            [(one.position, one.reading) for one in readings],
        )
        await self._sender.send(
            consultation.room_id,
            VITALS_BATCH,
            batch.to_content(),
            transaction_id=f"batch-{consultation.id}-{first}-{last}",
        )
        await self._note(consultation, room, replace(room.feed, published=last, pending=None))
        log.info("batch_published", consultation=consultation.id, first=first, last=last)

    async def _have_anchor(self, consultation: Consultation, room: _Room) -> None:
        """The event that the day's batches refer to, so that a client can page one day."""
        day = self._now().astimezone(ZoneInfo(consultation.time_zone)).date().isoformat()
        if room.feed.anchor_day == day or room.feed.pending is not None:
            return
        event_id = await self._sender.send(
            consultation.room_id or "",
            VITALS_DAY,
            {"version": 1, "patient": consultation.patient, "day": day},
            transaction_id=f"day-{consultation.id}-{day}",
        )
        await self._note(
            consultation, room, replace(room.feed, anchor_event=event_id, anchor_day=day)
        )

    async def _note(self, consultation: Consultation, room: _Room, feed: Feed) -> None:
        await self._records.feeds.put(consultation.id, feed)
        room.feed = feed

    def _is_due(self, last: datetime | None, every_s: float) -> bool:
        return last is None or (self._now() - last).total_seconds() >= every_s
