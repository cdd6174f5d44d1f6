"""Cursors of those who follow the readings log, and what the publisher has published."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from mautrix.util.async_db import Connection

from fajma.life import Status
from fajma.store.consultations import ConsultationId
from fajma.store.database import Store, from_ms, to_ms
from fajma.vitals import PatientKey


class Followers:
    """Repository of named cursors.

    A patient whom a follower left behind has a cursor of his own, ``alarms/<patient>``.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def position(self, name: str) -> int:
        """Up to where a follower has come; 0 at the very start."""
        value = await self._store.db.fetchval("SELECT position FROM follower WHERE name=$1", name)
        return int(value or 0)

    async def move(self, connection: Connection, name: str, position: int) -> None:
        """Move a cursor, in the transaction that holds what was made of the readings."""
        await connection.execute(
            "INSERT INTO follower (name, position) VALUES ($1, $2)"
            " ON CONFLICT (name) DO UPDATE SET position=$2",
            name,
            position,
        )

    async def left_behind(self, name: str) -> dict[PatientKey, int]:
        """Patients that a follower could not deal with, and from which position each is missing."""
        prefix = f"{name}/"
        rows = await self._store.db.fetch(
            "SELECT name, position FROM follower WHERE substr(name, 1, $2)=$1", prefix, len(prefix)
        )
        return {PatientKey(row["name"].removeprefix(prefix)): row["position"] for row in rows}

    async def leave_behind(
        self, connection: Connection, name: str, patient: PatientKey, position: int
    ) -> None:
        """A follower goes on without a patient; who is behind already is so from where he was."""
        await connection.execute(
            "INSERT INTO follower (name, position) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING",
            f"{name}/{patient}",
            position,
        )

    async def caught_up(self, connection: Connection, name: str, patient: PatientKey) -> None:
        """A patient is no longer behind his follower."""
        await connection.execute("DELETE FROM follower WHERE name=$1", f"{name}/{patient}")


@dataclass(frozen=True, slots=True)
class Feed:
    """What has been published of one consultation.

    Attributes:
        published: last log position whose batch is known to be in the room.
        pending: last position of a batch that was sent without known outcome, or ``None``.
        anchor_event: event of the day that batches refer to.
        anchor_day: the day of that event, ``2026-11-22``.
        state_sent_at: when the snapshot in the room was made, aware UTC; ``None`` before the first.
        shown: last log position that this snapshot takes in.
        shown_alarm: when the alarm last changed, as this snapshot knows it; ``None`` if never.
    """

    published: int = 0
    pending: int | None = None
    anchor_event: str | None = None
    anchor_day: str | None = None
    state_sent_at: datetime | None = None
    shown: int = 0
    shown_alarm: datetime | None = None


class Feeds:
    """Repository of the publisher's progress."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get(self, consultation: ConsultationId) -> Feed:
        """Progress of one consultation; it begins where the log was when that was opened."""
        row = await self._store.db.fetchrow(
            "SELECT * FROM feed WHERE consultation_id=$1", consultation
        )
        if row is None:
            return Feed()
        sent, alarm = row["state_sent_at"], row["shown_alarm"]
        return Feed(
            published=row["published"],
            pending=row["pending"],
            anchor_event=row["anchor_event"],
            anchor_day=row["anchor_day"],
            state_sent_at=None if sent is None else from_ms(sent),
            shown=row["shown"],
            shown_alarm=None if alarm is None else from_ms(alarm),
        )

    async def put(self, consultation: ConsultationId, feed: Feed) -> None:
        """Note progress."""
        await self._store.db.execute(
            "INSERT INTO feed (consultation_id, published, pending, anchor_event, anchor_day,"
            " state_sent_at, shown, shown_alarm) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
            " ON CONFLICT (consultation_id) DO UPDATE SET published=$2, pending=$3,"
            " anchor_event=$4, anchor_day=$5, state_sent_at=$6, shown=$7, shown_alarm=$8",
            consultation,
            feed.published,
            feed.pending,
            feed.anchor_event,
            feed.anchor_day,
            None if feed.state_sent_at is None else to_ms(feed.state_sent_at),
            feed.shown,
            None if feed.shown_alarm is None else to_ms(feed.shown_alarm),
        )

    async def lag(self) -> int:
        """How many readings of open consultations are not known to be in their rooms."""
        return int(
            await self._store.db.fetchval(
                "SELECT COUNT(*) FROM consultation"
                " LEFT JOIN feed ON feed.consultation_id=consultation.consultation_id"
                " JOIN reading ON reading.patient_key=consultation.patient_key"
                " AND reading.position>COALESCE(feed.published, 0)"
                " WHERE consultation.status=$1",
                Status.OPEN.value,
            )
        )
