"""Outages: many patients of a ward that went silent together."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from mautrix.util.async_db import Connection

from fajma.store.database import Store, from_ms, to_ms
from fajma.store.wards import WardId
from fajma.vitals import PatientKey


@dataclass(frozen=True, slots=True)
class Outage:
    """One that is not over.

    Attributes:
        ward: whose patients.
        began_at: aware UTC time at which it was noticed.
        told_at: when the ward was last told of it.
        patients: who went silent.
        members: how many of the ward wore a monitor then.
    """

    ward: WardId
    began_at: datetime
    told_at: datetime
    patients: frozenset[PatientKey]
    members: int


class Outages:
    """Repository of outages."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def all(self) -> list[Outage]:
        """Those that are not over."""
        rows = await self._store.db.fetch("SELECT * FROM outage ORDER BY ward_id")
        return [
            Outage(
                WardId(row["ward_id"]),
                from_ms(row["began_at"]),
                from_ms(row["told_at"]),
                frozenset(map(PatientKey, json.loads(row["patients"]))),
                row["members"],
            )
            for row in rows
        ]

    async def keep(self, connection: Connection, outage: Outage) -> None:
        """Keep one, or what changed of it."""
        await connection.execute(
            "INSERT INTO outage (ward_id, began_at, told_at, patients, members)"
            " VALUES ($1, $2, $3, $4, $5)"
            " ON CONFLICT (ward_id) DO UPDATE SET told_at=$3, patients=$4",
            outage.ward,
            to_ms(outage.began_at),
            to_ms(outage.told_at),
            json.dumps(sorted(outage.patients)),
            outage.members,
        )

    async def end(self, connection: Connection, ward: WardId) -> None:
        """It is over."""
        await connection.execute("DELETE FROM outage WHERE ward_id=$1", ward)

    async def members(self, ward: WardId, also: Collection[PatientKey]) -> frozenset[PatientKey]:
        """Who of a ward wears a monitor now, and these."""
        rows = await self._store.db.fetch(
            "SELECT DISTINCT patient.patient_key FROM patient JOIN device_link"
            " ON device_link.patient_key=patient.patient_key AND device_link.linked_to IS NULL"
            " WHERE patient.ward_id=$1",
            ward,
        )
        return frozenset(PatientKey(row["patient_key"]) for row in rows) | frozenset(also)
