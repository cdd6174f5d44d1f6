"""What somebody must be told once: a changed identity, an unsigned device, a stranger, no duty.

A warning is what it is about: kind, subject and mark. Seeing it again changes nothing; when it is
over it is forgotten, so that it is told again should it come back.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from mautrix.util.async_db import Connection

from fajma.store.database import Row, Store, from_ms, to_ms


class About(StrEnum):
    """What kind of warning."""

    IDENTITY = "identity"
    """Subject: an account; mark: the new master key. Written by ``Pins``."""
    DEVICE = "device"
    """Subject: an account; mark: device id and key of a device that its owner has not signed."""
    STRANGER = "stranger"
    """Subject: a room; mark: an account that is in it and does not belong there."""
    NOBODY_ON_DUTY = "nobody_on_duty"
    """Subject: a ward."""
    NOBODY_REACHABLE = "nobody_reachable"
    """Subject: a ward."""
    DRILL = "drill"
    """Subject: a ward; mark: the drill. Tells the operators, whose channel it tries too."""
    MUTED = "muted"
    """Subject: an account on duty whose phone cannot ring; mark: why."""
    UNDELIVERABLE = "undeliverable"
    """Subject: a room that refuses what the alert bot must tell it. Written by the bot."""
    ROOM_LOST = "room_lost"
    """Subject: a room in which ``@fajma`` cannot do what it must; mark: why."""
    ROOM_CONTESTED = "room_contested"
    """Subject: a room that somebody changes back again and again."""
    NO_RING = "no_ring"
    """Subject: an account of a team, on duty or not, that no alarm can ring now; mark: why. Told to
    nobody: it is what answers in the ward's room are made of."""


@dataclass(frozen=True, slots=True)
class Warn:
    """One warning.

    Attributes:
        kind: what kind.
        subject: whom or what it is about.
        mark: tells it from others about the same subject.
        seen_at: when it was first seen, aware UTC.
        announced_at: when the ward was told.
        told_at: when the person, or the operators, were told.
    """

    kind: About
    subject: str
    mark: str
    seen_at: datetime
    announced_at: datetime | None
    told_at: datetime | None


class Warnings:
    """Repository of warnings."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def set(
        self, kind: About, subject: str, marks: Collection[str], *, now: datetime
    ) -> None:
        """Exactly these warnings of a kind and subject are true now."""
        open_ones = {one.mark for one in await self.open(kind) if one.subject == subject}
        for mark in set(marks) - open_ones:
            await self._store.db.execute(
                "INSERT INTO warning (kind, subject, mark, seen_at) VALUES ($1, $2, $3, $4)"
                " ON CONFLICT (kind, subject, mark) DO NOTHING",
                kind.value,
                subject,
                mark,
                to_ms(now),
            )
        for mark in open_ones - set(marks):
            await self._store.db.execute(
                "DELETE FROM warning WHERE kind=$1 AND subject=$2 AND mark=$3",
                kind.value,
                subject,
                mark,
            )

    async def is_open(self, kind: About, subject: str) -> bool:
        """Whether such a warning is true now."""
        return (
            await self._store.db.fetchval(
                "SELECT mark FROM warning WHERE kind=$1 AND subject=$2", kind.value, subject
            )
            is not None
        )

    async def open(self, kind: About | None = None) -> list[Warn]:
        """What is true now, oldest first."""
        rows = await self._store.db.fetch("SELECT * FROM warning ORDER BY seen_at, subject, mark")
        return [one for one in map(_warning, rows) if kind is None or one.kind is kind]

    async def newest(self) -> int:
        """When the newest of what is true now was first seen (ms since 1970), 0 without any."""
        return int(await self._store.db.fetchval("SELECT MAX(seen_at) FROM warning") or 0)

    async def announced(self, connection: Connection, one: Warn, *, now: datetime) -> None:
        """The ward will be told: in the transaction that promises the message."""
        await self._mark(connection, "announced_at", one, now)

    async def told(self, connection: Connection, one: Warn, *, now: datetime) -> None:
        """The person, or the operators, have been told."""
        await self._mark(connection, "told_at", one, now)

    async def _mark(self, connection: Connection, column: str, one: Warn, now: datetime) -> None:
        await connection.execute(
            f"UPDATE warning SET {column}=$4 WHERE kind=$1 AND subject=$2 AND mark=$3",  # noqa: S608 - one of two words above
            one.kind.value,
            one.subject,
            one.mark,
            to_ms(now),
        )


def _warning(row: Row) -> Warn:
    announced, told = row["announced_at"], row["told_at"]
    return Warn(
        kind=About(row["kind"]),
        subject=row["subject"],
        mark=row["mark"],
        seen_at=from_ms(row["seen_at"]),
        announced_at=from_ms(announced) if announced is not None else None,
        told_at=from_ms(told) if told is not None else None,
    )
