"""Consultations and the clinicians in them."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NewType

from mautrix.util.async_db import Connection

from fajma.language import Language
from fajma.store.database import Row, Store, from_ms, to_ms
from fajma.store.pins import new_epoch
from fajma.store.readings import LOG
from fajma.vitals import PatientKey

ConsultationId = NewType("ConsultationId", str)
"""Identity of a consultation, 16 hex digits."""


class Status(StrEnum):
    """Where a consultation is in its life (the full state machine is a later issue)."""

    OPENING = "opening"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Consultation:
    """One consultation.

    Attributes:
        id: its identity.
        patient: key of the patient record.
        room_id: Matrix room, ``None`` until it exists.
        status: see ``Status``.
        language: language of the room and its alarms.
        time_zone: IANA name; alarms state the time in it.
        opened_at: aware UTC.
        clinicians: Matrix user ids; without those who have left the staff or treat no more.
    """

    id: ConsultationId
    patient: PatientKey
    room_id: str | None
    status: Status
    language: Language
    time_zone: str
    opened_at: datetime
    clinicians: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OpenRoom:
    """What the publisher must know of an open consultation; asked for once a second."""

    id: ConsultationId
    patient: PatientKey
    room_id: str
    time_zone: str


class Consultations:
    """Repository of consultations."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(
        self,
        *,
        patient: PatientKey,
        clinicians: tuple[str, ...],
        language: Language,
        time_zone: str,
        now: datetime,
    ) -> Consultation:
        """Keep a new consultation, without room yet.

        What the patient's monitor measured before is not published in its room, except for the last
        day, thinned, as for anybody who joins later.
        """
        consultation = Consultation(
            id=ConsultationId(secrets.token_hex(8)),
            patient=patient,
            room_id=None,
            status=Status.OPENING,
            language=language,
            time_zone=time_zone,
            opened_at=now,
            clinicians=tuple(sorted(clinicians)),
        )
        async with self._store.transaction() as connection:
            await connection.execute(
                "INSERT INTO consultation (consultation_id, patient_key, status, language,"
                " time_zone, opened_at) VALUES ($1, $2, $3, $4, $5, $6)",
                consultation.id,
                patient,
                consultation.status.value,
                language.value,
                time_zone,
                to_ms(now),
            )
            for account in consultation.clinicians:
                await connection.execute(
                    "INSERT INTO consultation_clinician (consultation_id, account) VALUES ($1, $2)",
                    consultation.id,
                    account,
                )
            await connection.execute(
                "INSERT INTO feed (consultation_id, published)"
                " SELECT $1, position FROM log_head WHERE log=$2",
                consultation.id,
                LOG,
            )
        return consultation

    async def held_in(self, consultation: ConsultationId, room_id: str) -> None:
        """The room exists. From now on who belongs to the consultation may have its keys."""
        await self._store.db.execute(
            "UPDATE consultation SET room_id=$2 WHERE consultation_id=$1", consultation, room_id
        )

    async def open_in(self, consultation: ConsultationId, room_id: str) -> None:
        """The room exists and its first messages are in it: the consultation is open."""
        await self._store.db.execute(
            "UPDATE consultation SET room_id=$2, status=$3 WHERE consultation_id=$1",
            consultation,
            room_id,
            Status.OPEN.value,
        )

    async def of_patient(self, patient: PatientKey) -> Consultation | None:
        """The patient's newest consultation."""
        row = await self._store.db.fetchrow(
            "SELECT * FROM consultation WHERE patient_key=$1 ORDER BY opened_at DESC LIMIT 1",
            patient,
        )
        return await self._consultation(row) if row else None

    async def get(self, consultation: ConsultationId) -> Consultation | None:
        """One consultation."""
        row = await self._store.db.fetchrow(
            "SELECT * FROM consultation WHERE consultation_id=$1", consultation
        )
        return await self._consultation(row) if row else None

    async def in_room(self, room_id: str) -> Consultation | None:
        """The consultation held in a room."""
        row = await self._store.db.fetchrow("SELECT * FROM consultation WHERE room_id=$1", room_id)
        return await self._consultation(row) if row else None

    async def of_account(self, account: str) -> list[Consultation]:
        """The open consultations in which an account takes part, newest first."""
        rows = await self._store.db.fetch(
            "SELECT DISTINCT consultation.* FROM consultation"
            " JOIN patient ON patient.patient_key=consultation.patient_key"
            " LEFT JOIN consultation_clinician AS clinician"
            " ON clinician.consultation_id=consultation.consultation_id"
            " WHERE status=$1 AND (clinician.account=$2 OR patient.account=$2)"
            " ORDER BY opened_at DESC",
            Status.OPEN.value,
            account,
        )
        return [await self._consultation(row) for row in rows]

    async def page(
        self,
        *,
        before: str | None,
        limit: int,
        among: Collection[ConsultationId] | None = None,
    ) -> list[Consultation]:
        """Some consultations, the newest first.

        Args:
            before: id of the last one that is known; the newest is first where ``None``.
            limit: how many at most.
            among: only these.
        """
        known = await self.get(ConsultationId(before)) if before is not None else None
        latest = to_ms(known.opened_at) if known is not None else 2**62
        mark = known.id if known is not None else ""
        query = (
            "SELECT consultation_id, opened_at FROM consultation"
            " WHERE (opened_at<$1 OR (opened_at=$1 AND consultation_id<$2))"
        )
        order = "ORDER BY opened_at DESC, consultation_id DESC"
        if among is None:
            rows = await self._store.db.fetch(f"{query} {order} LIMIT $3", latest, mark, limit)
            wanted = [ConsultationId(row["consultation_id"]) for row in rows]
        else:
            found = [one for each in among if (one := await self.get(each)) is not None]
            found.sort(key=lambda one: (one.opened_at, one.id), reverse=True)
            wanted = [one.id for one in found if (to_ms(one.opened_at), one.id) < (latest, mark)]
        page = [await self.get(one) for one in wanted[:limit]]
        return [one for one in page if one is not None]

    async def open_ones(self) -> list[Consultation]:
        """Every consultation that has a room, oldest first."""
        rows = await self._store.db.fetch(
            "SELECT * FROM consultation WHERE status=$1 ORDER BY opened_at, consultation_id",
            Status.OPEN.value,
        )
        return [await self._consultation(row) for row in rows]

    async def open_rooms(self) -> list[OpenRoom]:
        """Every open consultation, without its people: one query, however many there are."""
        rows = await self._store.db.fetch(
            "SELECT consultation_id, patient_key, room_id, time_zone FROM consultation"
            " WHERE status=$1 AND room_id IS NOT NULL",
            Status.OPEN.value,
        )
        return [
            OpenRoom(
                ConsultationId(row["consultation_id"]),
                PatientKey(row["patient_key"]),
                row["room_id"],
                row["time_zone"],
            )
            for row in rows
        ]

    async def include(
        self, connection: Connection, consultation: ConsultationId, account: str
    ) -> None:
        """A further clinician belongs to the consultation."""
        await connection.execute(
            "INSERT INTO consultation_clinician (consultation_id, account) VALUES ($1, $2)"
            " ON CONFLICT (consultation_id, account) DO NOTHING",
            consultation,
            account,
        )
        await new_epoch(connection)

    async def treats_no_more(self, account: str) -> None:
        """A clinician belongs to no consultation any more."""
        await self._store.db.execute("DELETE FROM consultation_clinician WHERE account=$1", account)

    async def _consultation(self, row: Row) -> Consultation:
        clinicians = await self._store.db.fetch(
            "SELECT clinician.account AS account FROM consultation_clinician AS clinician"
            " LEFT JOIN staff ON staff.account=clinician.account"
            " WHERE consultation_id=$1 AND staff.left_at IS NULL"
            " AND (staff.role IS NULL OR staff.role<>'operator') ORDER BY clinician.account",
            row["consultation_id"],
        )
        return Consultation(
            id=ConsultationId(row["consultation_id"]),
            patient=PatientKey(row["patient_key"]),
            room_id=row["room_id"],
            status=Status(row["status"]),
            language=Language(row["language"]),
            time_zone=row["time_zone"],
            opened_at=from_ms(row["opened_at"]),
            clinicians=tuple(entry["account"] for entry in clinicians),
        )
