"""Wards: a team, its room, and its roster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

from mautrix.util.async_db import Connection

from fajma.duty import Roster
from fajma.errors import BugError
from fajma.language import Language
from fajma.store.database import Row, Store
from fajma.vitals import PatientKey

WardId = NewType("WardId", str)
"""A ward's short name, e.g. ``medecine-2``; lower case, stands in the name of its room."""


@dataclass(frozen=True, slots=True)
class Ward:
    """One ward.

    Attributes:
        id: its short name.
        room_id: its team room, ``None`` until it exists.
        space_id: the space in which its team finds its rooms, ``None`` until it exists.
        language: of its room.
        time_zone: IANA name; messages state the time in it.
        roster: who is on duty.
    """

    id: WardId
    room_id: str | None
    language: Language
    time_zone: str
    roster: Roster
    space_id: str | None = None


class Wards:
    """Repository of wards."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(self, ward: Ward) -> None:
        """Keep a new ward; an existing one stays as it is."""
        await self._store.db.execute(
            "INSERT INTO ward (ward_id, room_id, language, time_zone, roster)"
            " VALUES ($1, $2, $3, $4, $5) ON CONFLICT (ward_id) DO NOTHING",
            ward.id,
            ward.room_id,
            ward.language.value,
            ward.time_zone,
            ward.roster.to_json(),
        )

    async def opened(self, ward: WardId, room_id: str) -> None:
        """Its team room exists."""
        await self._store.db.execute("UPDATE ward SET room_id=$2 WHERE ward_id=$1", ward, room_id)

    async def has_space(self, ward: WardId, space_id: str) -> None:
        """Its space exists."""
        await self._store.db.execute("UPDATE ward SET space_id=$2 WHERE ward_id=$1", ward, space_id)

    async def moved(self, connection: Connection, before: str, after: str) -> None:
        """Its team room was upgraded: the team goes on in another one."""
        await connection.execute("UPDATE ward SET room_id=$2 WHERE room_id=$1", before, after)

    async def get(self, ward: WardId) -> Ward | None:
        """One ward."""
        row = await self._store.db.fetchrow("SELECT * FROM ward WHERE ward_id=$1", ward)
        return _ward(row) if row else None

    async def in_room(self, room_id: str) -> Ward | None:
        """The ward whose team room this is."""
        row = await self._store.db.fetchrow("SELECT * FROM ward WHERE room_id=$1", room_id)
        return _ward(row) if row else None

    async def responsible(self, patient: PatientKey) -> Ward | None:
        """The ward whose team answers for a patient: his own, or else a clinician's of his."""
        row = await self._store.db.fetchrow(
            "SELECT ward.* FROM patient JOIN ward ON ward.ward_id=patient.ward_id"
            " WHERE patient.patient_key=$1",
            patient,
        ) or await self._store.db.fetchrow(
            "SELECT ward.* FROM consultation"
            " JOIN participant AS clinician"
            " ON clinician.consultation_id=consultation.consultation_id"
            " AND clinician.role IN ('lead', 'clinician') AND clinician.until IS NULL"
            " JOIN staff ON staff.account=clinician.account AND staff.left_at IS NULL"
            " JOIN ward ON ward.ward_id=staff.ward_id WHERE consultation.patient_key=$1"
            " ORDER BY consultation.opened_at DESC, clinician.role DESC, clinician.account LIMIT 1",
            patient,
        )
        return _ward(row) if row else None

    async def open_rooms(self) -> dict[WardId, list[str]]:
        """By ward, the rooms of the open consultations for whose patients its team answers."""
        rows = await self._store.db.fetch(
            "SELECT consultation.room_id AS room_id, COALESCE(patient.ward_id, ("
            "SELECT staff.ward_id FROM participant AS clinician"
            " JOIN staff ON staff.account=clinician.account AND staff.left_at IS NULL"
            " WHERE clinician.consultation_id=consultation.consultation_id"
            " AND clinician.role IN ('lead', 'clinician') AND clinician.until IS NULL"
            " AND staff.ward_id IS NOT NULL"
            " ORDER BY clinician.role DESC, clinician.account LIMIT 1)) AS ward_id"
            " FROM consultation JOIN patient ON patient.patient_key=consultation.patient_key"
            " WHERE consultation.status='open' AND consultation.room_id IS NOT NULL"
            " ORDER BY consultation.room_id"
        )
        found: dict[WardId, list[str]] = {}
        for row in rows:
            if row["ward_id"] is not None:
                found.setdefault(WardId(row["ward_id"]), []).append(row["room_id"])
        return found

    async def monitored(self, ward: WardId) -> frozenset[PatientKey]:
        """Who wears a monitor of those for whom a ward's team answers."""
        rows = await self._store.db.fetch(
            "SELECT DISTINCT patient.patient_key, patient.ward_id FROM patient JOIN device_link"
            " ON device_link.patient_key=patient.patient_key AND device_link.linked_to IS NULL"
            " WHERE patient.ward_id=$1 OR patient.ward_id IS NULL",
            ward,
        )
        found = {PatientKey(row["patient_key"]) for row in rows if row["ward_id"] == ward}
        for row in rows:
            if row["ward_id"] is None:
                responsible = await self.responsible(PatientKey(row["patient_key"]))
                if responsible is not None and responsible.id == ward:
                    found.add(PatientKey(row["patient_key"]))
        return frozenset(found)

    async def all(self) -> list[Ward]:
        """Every ward, by short name."""
        return [_ward(row) for row in await self._store.db.fetch("SELECT * FROM ward ORDER BY 1")]

    async def roster(self, connection: Connection, ward: WardId) -> Roster:
        """The roster, locked until the caller's transaction ends, so that no change is lost."""
        row = await connection.fetchrow(
            "UPDATE ward SET ward_id=ward_id WHERE ward_id=$1 RETURNING roster", ward
        )
        if row is None:
            raise BugError("a ward that is in use is gone", code="ward_gone")
        return Roster.from_json(row["roster"])

    async def keep(self, connection: Connection, ward: WardId, roster: Roster) -> None:
        """Keep a changed roster."""
        await connection.execute(
            "UPDATE ward SET roster=$2 WHERE ward_id=$1", ward, roster.to_json()
        )


def _ward(row: Row) -> Ward:
    return Ward(
        id=WardId(row["ward_id"]),
        room_id=row["room_id"],
        language=Language(row["language"]),
        time_zone=row["time_zone"],
        roster=Roster.from_json(row["roster"]),
        space_id=row["space_id"],
    )
