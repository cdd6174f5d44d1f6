"""Signs of life: which part of FAJMA worked when, and how far behind the alarms are.

Whoever judges a part looks at whether its row *changes*, by his own steady clock: a clock that is
set forward must not make everything look dead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from mautrix.util.async_db import Connection

from fajma.store.alarms import SentBy
from fajma.store.database import Store, from_ms, to_ms
from fajma.vitals import PatientKey

INGEST: Final = "ingest"
ALARMS: Final = "alarms"
APPSERVICE: Final = "appservice"
DEAD_MAN: Final = "dead-man"
"""Not judged: its row tells the operator whether the homeserver holds what it should."""


def ingest(session: int) -> str:
    """Name of what serves one session at the broker, numbered from 1."""
    return f"{INGEST}-{session}"


def kind_of(name: str) -> str:
    """The part that a name belongs to: all sessions are of one."""
    return INGEST if name.startswith(f"{INGEST}-") else name


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The last sign of life of a part.

    Attributes:
        at: by the clock of the part, aware UTC.
        trouble: why it does not work, ``None`` while it does; a stable word.
    """

    at: datetime
    trouble: str | None


class Heartbeats:
    """Repository of signs of life."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def beat(self, name: str, *, now: datetime, trouble: str | None = None) -> None:
        """A part works, or says why it does not."""
        await self._store.db.execute(
            "INSERT INTO heartbeat (name, at, trouble) VALUES ($1, $2, $3)"
            " ON CONFLICT (name) DO UPDATE SET at=excluded.at, trouble=excluded.trouble",
            name,
            to_ms(now),
            trouble,
        )

    async def all(self) -> dict[str, Heartbeat]:
        """The last sign of each part that ever gave one."""
        rows = await self._store.db.fetch("SELECT name, at, trouble FROM heartbeat")
        return {row["name"]: Heartbeat(from_ms(row["at"]), row["trouble"]) for row in rows}

    async def unjudged_since(self, follower: str) -> datetime | None:
        """When the oldest thing came that a follower should have judged; ``None`` without any.

        That is a reading beyond its place in the log, or a moment at which it was to look.
        """
        received = await self._store.db.fetchval(
            "SELECT received_at FROM reading WHERE position>COALESCE("
            "(SELECT position FROM follower WHERE name=$1), 0) ORDER BY position LIMIT 1",
            follower,
        )
        due = await self._store.db.fetchval(
            "SELECT MIN(due_at) FROM alarm_state WHERE due_at IS NOT NULL"
        )
        waiting = [moment for moment in (received, due) if moment is not None]
        return from_ms(min(waiting)) if waiting else None

    async def last_received(self, patient: PatientKey) -> datetime | None:
        """When the newest reading of a patient came; ``None`` before the first."""
        received = await self._store.db.fetchval(
            "SELECT received_at FROM reading WHERE patient_key=$1 ORDER BY position DESC LIMIT 1",
            patient,
        )
        return None if received is None else from_ms(received)

    async def undelivered_since(self, sender: SentBy) -> dict[str, datetime]:
        """Rooms for which messages wait, and since when the oldest of them."""
        rows = await self._store.db.fetch(
            "SELECT room_id, MIN(created_at) AS since FROM outbox"
            " WHERE event_id IS NULL AND sender=$1 GROUP BY room_id",
            sender.value,
        )
        return {row["room_id"]: from_ms(row["since"]) for row in rows}

    # --- silent parts ----------------------------------------------------------------------------

    async def told_silent(self) -> Mapping[str, datetime]:
        """The parts of whose silence the rooms were told, and when."""
        rows = await self._store.db.fetch("SELECT name, told_at FROM silent_part")
        return {row["name"]: from_ms(row["told_at"]) for row in rows}

    async def tell_silent(self, connection: Connection, name: str, *, now: datetime) -> None:
        """The rooms will be told: in the transaction that promises the messages."""
        await connection.execute(
            "INSERT INTO silent_part (name, told_at) VALUES ($1, $2)", name, to_ms(now)
        )

    async def heard_again(self, connection: Connection, name: str) -> None:
        """A part is silent no more; should it be again, that is told again."""
        await connection.execute("DELETE FROM silent_part WHERE name=$1", name)
