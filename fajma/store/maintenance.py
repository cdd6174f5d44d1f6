"""Planned stops of the monitoring: from when, until when, why, and what the rooms were told."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime

from mautrix.util.async_db import Connection, Database

from fajma.errors import InputError
from fajma.sealing import SiteKey
from fajma.store.database import Row, Store, from_ms, to_ms


@dataclass(frozen=True, slots=True)
class Maintenance:
    """One planned stop.

    Attributes:
        id: opaque.
        started_at: aware UTC.
        until: when monitoring is to be back at the latest.
        ended_at: when the operator ended it, if he did.
        told_at: when the rooms were told that it begins.
        closed_at: when the rooms were told that it is over.
        reason: the operator's words.
    """

    id: str
    started_at: datetime
    until: datetime
    ended_at: datetime | None
    told_at: datetime | None
    closed_at: datetime | None
    reason: str

    def is_on(self, now: datetime) -> bool:
        """Whether it lasts at this moment."""
        return self.ended_at is None and self.started_at <= now < self.until


class Maintenances:
    """Repository of planned stops, of which one at most is on."""

    def __init__(self, store: Store, site_key: SiteKey) -> None:
        self._store = store
        self._site_key = site_key

    async def start(
        self, connection: Connection, *, now: datetime, until: datetime, reason: str
    ) -> Maintenance:
        """A planned stop begins, in the transaction that notes who said so.

        Raises:
            InputError: ``maintenance_on``, one is on already.
        """
        last = await self._newest(connection)
        if last is not None and last.is_on(now):
            raise InputError(
                "maintenance is on already: end it first with `fajma maintenance end`",
                code="maintenance_on",
            )
        # The word that an older one is over comes with the end of this one.
        await connection.execute(
            "UPDATE maintenance SET closed_at=$1 WHERE closed_at IS NULL", to_ms(now)
        )
        identity = secrets.token_hex(8)
        await connection.execute(
            "INSERT INTO maintenance (maintenance_id, started_at, until, sealed)"
            " VALUES ($1, $2, $3, $4)",
            identity,
            to_ms(now),
            to_ms(until),
            self._site_key.site.seal(reason.encode(), place=_place(identity)),
        )
        return Maintenance(identity, now, until, None, None, None, reason)

    async def end(self, connection: Connection, *, now: datetime) -> Maintenance:
        """The operator says that it is over.

        Raises:
            InputError: ``maintenance_off``, none is on.
        """
        last = await self._newest(connection)
        if last is None or not last.is_on(now):
            raise InputError(
                "no maintenance is on: see `fajma maintenance status`", code="maintenance_off"
            )
        await connection.execute(
            "UPDATE maintenance SET ended_at=$2 WHERE maintenance_id=$1", last.id, to_ms(now)
        )
        return last

    async def current(self, now: datetime) -> Maintenance | None:
        """The planned stop that is on at this moment."""
        last = await self.newest()
        return last if last is not None and last.is_on(now) else None

    async def newest(self) -> Maintenance | None:
        """The last one, on or not."""
        return await self._newest(self._store.db)

    async def told(self, connection: Connection, one: Maintenance, *, now: datetime) -> None:
        """The rooms will be told that it begins: in the transaction that promises the messages."""
        await self._mark(connection, "told_at", one, now)

    async def closed(self, connection: Connection, one: Maintenance, *, now: datetime) -> None:
        """The rooms will be told that it is over."""
        await self._mark(connection, "closed_at", one, now)

    async def _mark(
        self, connection: Connection, column: str, one: Maintenance, now: datetime
    ) -> None:
        await connection.execute(
            f"UPDATE maintenance SET {column}=$2 WHERE maintenance_id=$1",  # noqa: S608 - one of two words above
            one.id,
            to_ms(now),
        )

    async def _newest(self, source: Connection | Database) -> Maintenance | None:
        row = await source.fetchrow("SELECT * FROM maintenance ORDER BY started_at DESC LIMIT 1")
        return None if row is None else self._opened(row)

    def _opened(self, row: Row) -> Maintenance:
        reason = self._site_key.site.open(bytes(row["sealed"]), place=_place(row["maintenance_id"]))

        def moment(column: str) -> datetime | None:
            return None if row[column] is None else from_ms(row[column])

        return Maintenance(
            id=row["maintenance_id"],
            started_at=from_ms(row["started_at"]),
            until=from_ms(row["until"]),
            ended_at=moment("ended_at"),
            told_at=moment("told_at"),
            closed_at=moment("closed_at"),
            reason=reason.decode(),
        )


def _place(identity: str) -> str:
    return f"maintenance/{identity}"
