"""Outages: many patients of a ward that went silent together."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

from mautrix.util.async_db import Connection

from fajma.store.database import Row, Store, from_ms, to_ms
from fajma.store.wards import WardId
from fajma.vitals import PatientKey


@dataclass(frozen=True, slots=True)
class Outage:
    """One that is not over.

    Attributes:
        ward: whose patients.
        began_at: aware UTC time of the last reading of those who went silent first.
        told_at: when the ward was last told of it.
        patients: who went silent.
        members: how many of the ward wore a monitor when the last of them did.
        answered_at: when somebody took care; ``None`` again once more patients are concerned.
    """

    ward: WardId
    began_at: datetime
    told_at: datetime
    patients: frozenset[PatientKey]
    members: int
    answered_at: datetime | None = None


class Outages:
    """Repository of outages."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def all(self) -> list[Outage]:
        """Those that are not over."""
        rows = await self._store.db.fetch("SELECT * FROM outage ORDER BY ward_id")
        return [_outage(row) for row in rows]

    async def of(self, ward: WardId) -> Outage | None:
        """The one of a ward that is not over."""
        row = await self._store.db.fetchrow("SELECT * FROM outage WHERE ward_id=$1", ward)
        return _outage(row) if row else None

    async def keep(self, connection: Connection, outage: Outage) -> None:
        """Keep one that began, or that concerns more patients: it waits for an answer."""
        await connection.execute(
            "INSERT INTO outage (ward_id, began_at, told_at, patients, members)"
            " VALUES ($1, $2, $3, $4, $5)"
            " ON CONFLICT (ward_id) DO UPDATE"
            " SET told_at=$3, patients=$4, members=$5, answered_at=NULL",
            outage.ward,
            to_ms(outage.began_at),
            to_ms(outage.told_at),
            json.dumps(sorted(outage.patients)),
            outage.members,
        )

    async def told_again(self, connection: Connection, ward: WardId, now: datetime) -> bool:
        """Note a reminder; False if somebody has answered, perhaps just now."""
        row = await connection.fetchrow(
            "UPDATE outage SET told_at=$2 WHERE ward_id=$1 AND answered_at IS NULL"
            " RETURNING ward_id",
            ward,
            to_ms(now),
        )
        return row is not None

    async def answer(self, connection: Connection, ward: WardId, now: datetime) -> Outage | None:
        """Somebody takes care; ``None`` if there is no outage, or somebody did before."""
        row = await connection.fetchrow(
            "UPDATE outage SET answered_at=$2 WHERE ward_id=$1 AND answered_at IS NULL RETURNING *",
            ward,
            to_ms(now),
        )
        return _outage(row) if row else None

    async def end(self, connection: Connection, ward: WardId) -> None:
        """It is over."""
        await connection.execute("DELETE FROM outage WHERE ward_id=$1", ward)


def _outage(row: Row) -> Outage:
    return Outage(
        WardId(row["ward_id"]),
        from_ms(row["began_at"]),
        from_ms(row["told_at"]),
        frozenset(map(PatientKey, json.loads(row["patients"]))),
        row["members"],
        None if row["answered_at"] is None else from_ms(row["answered_at"]),
    )
