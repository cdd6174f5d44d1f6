"""Consultations and who takes part in them.

Each change of what a room must show is committed as a new ``revision``, with everything that
follows from it; the room follows, and last ``shown`` says which revision it shows. So a crash at
any moment leaves a row that ``unshown`` finds.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NewType

from mautrix.util.async_db import Connection

from fajma.errors import BugError
from fajma.language import Language
from fajma.life import ALIVE, FROZEN, TREATING, ParticipantRole, Status
from fajma.store.database import Row, Store, from_ms, to_ms
from fajma.store.pins import new_epoch
from fajma.store.readings import LOG
from fajma.vitals import PatientKey

ConsultationId = NewType("ConsultationId", str)
"""Identity of a consultation, 16 hex digits."""


@dataclass(frozen=True, slots=True)
class Participant:
    """Somebody who takes part, other than the patient.

    Attributes:
        account: Matrix user id.
        role: as what.
        invited: whether the homeserver has taken the invitation.
    """

    account: str
    role: ParticipantRole
    invited: bool = True


@dataclass(frozen=True, slots=True)
class Consultation:
    """One consultation.

    Attributes:
        id: its identity.
        patient: key of the patient record.
        room_id: Matrix room, ``None`` until it exists.
        status: where it is in its life.
        language: language of the room and its alarms.
        time_zone: IANA name; alarms state the time in it.
        opened_at: aware UTC; when it was booked, as long as it is not open.
        participants: who takes part now, other than the patient; without those who have left the
            staff. By account.
        revision: grows with each change of what the room must show.
        shown: the revision that the room shows.
        booked_for: aware UTC, if it was booked for a time.
        asked_at: when the patient last asked to be let in, aware UTC.
        admitted_at: when the patient was let in; ``None``: he waits, and may not read.
        ended_at: aware UTC.
    """

    id: ConsultationId
    patient: PatientKey
    room_id: str | None
    status: Status
    language: Language
    time_zone: str
    opened_at: datetime
    participants: tuple[Participant, ...]
    revision: int = 1
    shown: int = 0
    booked_for: datetime | None = None
    asked_at: datetime | None = None
    admitted_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def short_name(self) -> str:
        """What the name of its room ends with, e.g. ``1A2B``."""
        return self.id[:4].upper()

    @property
    def clinicians(self) -> tuple[str, ...]:
        """Matrix user ids of who treats: whom alarms call."""
        return tuple(one.account for one in self.participants if one.role in TREATING)

    def role_of(self, account: str) -> ParticipantRole | None:
        """As what somebody takes part; ``None`` if not, or as the patient."""
        return next((one.role for one in self.participants if one.account == account), None)


@dataclass(frozen=True, slots=True)
class OpenRoom:
    """What the publisher must know of an open consultation; asked for once a second."""

    id: ConsultationId
    patient: PatientKey
    room_id: str
    time_zone: str


@dataclass(frozen=True, slots=True)
class Signature:
    """A clinician has signed the summary."""

    account: str
    signed_at: datetime


def _quoted(statuses: Collection[Status]) -> str:
    return ", ".join(f"'{one.value}'" for one in sorted(statuses))


_ALIVE: Final = _quoted(ALIVE)
_FROZEN: Final = _quoted(FROZEN)

_OF_ACCOUNT: Final = (
    "SELECT DISTINCT consultation.* FROM consultation"
    " JOIN patient ON patient.patient_key=consultation.patient_key"
    " LEFT JOIN participant ON participant.consultation_id=consultation.consultation_id"
    " AND participant.until IS NULL"
    " WHERE (participant.account=$2 OR patient.account=$2)"
)
"""Consultations in which an account takes part or that are about its patient."""


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
        lead: str | None = None,
        booked_for: datetime | None = None,
        waits: bool = False,
    ) -> Consultation:
        """Keep a new consultation, without room yet.

        What the patient's monitor measured before is not published in its room, except for the last
        day, thinned, as for anybody who joins later.

        Args:
            patient: about whom.
            clinicians: Matrix user ids.
            language: of the room.
            time_zone: IANA name.
            now: aware UTC.
            lead: which of the clinicians is responsible.
            booked_for: for when, if it is only booked.
            waits: whether the patient must ask and be let in.
        """
        status = Status.OPENING if booked_for is None else Status.BOOKED
        consultation = ConsultationId(secrets.token_hex(8))
        async with self._store.transaction() as connection:
            await connection.execute(
                "INSERT INTO consultation (consultation_id, patient_key, status, language,"
                " time_zone, opened_at, booked_for, admitted_at)"
                " VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
                consultation,
                patient,
                status.value,
                language.value,
                time_zone,
                to_ms(now),
                to_ms(booked_for) if booked_for is not None else None,
                None if waits else to_ms(now),
            )
            for account in sorted(set(clinicians)):
                role = ParticipantRole.LEAD if account == lead else ParticipantRole.CLINICIAN
                await self._put(connection, consultation, account, role, now)
            await connection.execute(
                "INSERT INTO feed (consultation_id, published)"
                " SELECT $1, position FROM log_head WHERE log=$2",
                consultation,
                LOG,
            )
        return await self._just_changed(consultation)

    async def held_in(self, consultation: ConsultationId, room_id: str) -> None:
        """The room exists. From now on who belongs to the consultation may have its keys."""
        await self._store.db.execute(
            "UPDATE consultation SET room_id=$2 WHERE consultation_id=$1", consultation, room_id
        )

    async def open_in(self, consultation: ConsultationId, room_id: str, *, shown: int = 1) -> None:
        """The room exists and its first messages are in it: the consultation is open.

        Args:
            consultation: which.
            room_id: where.
            shown: the revision that the room was made by; whom it names was invited with it.
        """
        async with self._store.transaction() as connection:
            await connection.execute(
                "UPDATE consultation SET room_id=$2, status=$3, shown=$4 WHERE consultation_id=$1",
                consultation,
                room_id,
                Status.OPEN.value,
                shown,
            )
            if shown:
                await connection.execute(
                    "UPDATE participant SET invited_at=since WHERE consultation_id=$1"
                    " AND invited_at IS NULL",
                    consultation,
                )

    async def moved(self, connection: Connection, before: str, after: str) -> None:
        """The room was upgraded: the consultation goes on in another one."""
        await connection.execute(
            "UPDATE consultation SET room_id=$2, revision=revision+1 WHERE room_id=$1",
            before,
            after,
        )
        await new_epoch(connection)

    # --- one of them -----------------------------------------------------------------------------

    async def of_patient(self, patient: PatientKey) -> Consultation | None:
        """The patient's consultation that is not over: the open one before one that is booked."""
        rows = await self._store.db.fetch(
            "SELECT * FROM consultation WHERE patient_key=$1"  # noqa: S608 - words of ours
            f" AND status IN ({_ALIVE}) ORDER BY CASE status WHEN 'open' THEN 0"
            " WHEN 'opening' THEN 1 ELSE 2 END, opened_at DESC LIMIT 1",
            patient,
        )
        found = await self._many(rows)
        return found[0] if found else None

    async def get(self, consultation: ConsultationId) -> Consultation | None:
        """One consultation."""
        found = await self._many(
            await self._store.db.fetch(
                "SELECT * FROM consultation WHERE consultation_id=$1", consultation
            )
        )
        return found[0] if found else None

    async def in_room(self, room_id: str) -> Consultation | None:
        """The consultation held in a room."""
        found = await self._many(
            await self._store.db.fetch("SELECT * FROM consultation WHERE room_id=$1", room_id)
        )
        return found[0] if found else None

    # --- several ---------------------------------------------------------------------------------

    async def of_account(self, account: str) -> list[Consultation]:
        """The open consultations in which an account takes part, newest first."""
        rows = await self._store.db.fetch(
            f"{_OF_ACCOUNT} AND status=$1 ORDER BY opened_at DESC",
            Status.OPEN.value,
            account,
        )
        return await self._many(rows)

    async def open_ones(self) -> list[Consultation]:
        """Every consultation that has a room, oldest first."""
        return await self.having(Status.OPEN)

    async def having(self, *statuses: Status) -> list[Consultation]:
        """Every consultation that is in one of these states, oldest first."""
        return await self._many(
            await self._store.db.fetch(
                f"SELECT * FROM consultation WHERE status IN ({_quoted(statuses)})"  # noqa: S608
                " ORDER BY opened_at, consultation_id"
            )
        )

    async def unshown(self) -> list[ConsultationId]:
        """Those whose room does not show yet what it must, oldest first."""
        rows = await self._store.db.fetch(
            "SELECT consultation_id FROM consultation WHERE shown<revision"
            " AND room_id IS NOT NULL AND status NOT IN ('booked', 'opening')"
            " ORDER BY opened_at, consultation_id"
        )
        return [ConsultationId(row["consultation_id"]) for row in rows]

    async def to_archive(self, ended_before: datetime) -> list[ConsultationId]:
        """Those that ended before a moment and are not archived, oldest first."""
        rows = await self._store.db.fetch(
            f"SELECT consultation_id FROM consultation WHERE status IN ({_FROZEN})"  # noqa: S608
            " AND ended_at<$1 ORDER BY ended_at, consultation_id",
            to_ms(ended_before),
        )
        return [ConsultationId(row["consultation_id"]) for row in rows]

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

    async def page(
        self,
        *,
        before: str | None,
        limit: int,
        among: Collection[ConsultationId] | None = None,
    ) -> list[Consultation]:
        """Some consultations, whatever their state, the newest first.

        Args:
            before: id of the last one that is known; the newest is first where ``None``.
            limit: how many at most.
            among: only these.
        """
        known = await self.get(ConsultationId(before)) if before is not None else None
        opened = to_ms(known.opened_at) if known is not None else 2**62
        mark = known.id if known is not None else ""
        if among is None:
            rows: Sequence[Row] = await self._store.db.fetch(
                "SELECT * FROM consultation"
                " WHERE opened_at<$1 OR (opened_at=$1 AND consultation_id<$2)"
                " ORDER BY opened_at DESC, consultation_id DESC LIMIT $3",
                opened,
                mark,
                limit,
            )
        else:
            found = await self._store.fetch_among(
                "SELECT * FROM consultation"
                " WHERE (opened_at<$2 OR (opened_at=$2 AND consultation_id<$3))"
                " AND consultation_id",
                among,
                opened,
                mark,
            )
            found.sort(key=lambda row: (row["opened_at"], row["consultation_id"]), reverse=True)
            rows = found[:limit]
        return await self._many(rows)

    async def with_account(self, account: str) -> list[Consultation]:
        """Those in which an account takes part or which are about its patient, not archived."""
        rows = await self._store.db.fetch(
            f"{_OF_ACCOUNT} AND status<>$1",
            Status.ARCHIVED.value,
            account,
        )
        return await self._many(rows)

    # --- changes ---------------------------------------------------------------------------------

    async def locked(
        self, connection: Connection, consultation: ConsultationId
    ) -> Consultation | None:
        """One consultation, locked until the caller's transaction ends; a new revision of it."""
        await connection.execute(
            "UPDATE consultation SET revision=revision+1 WHERE consultation_id=$1", consultation
        )
        return await self.get(consultation)

    async def enter(
        self,
        connection: Connection,
        consultation: ConsultationId,
        status: Status,
        *,
        ended_at: datetime | None = None,
    ) -> None:
        """It is in this state from now on; who may read changes with it."""
        await connection.execute(
            "UPDATE consultation SET status=$2, ended_at=COALESCE($3, ended_at)"
            " WHERE consultation_id=$1",
            consultation,
            status.value,
            to_ms(ended_at) if ended_at is not None else None,
        )
        await new_epoch(connection)

    async def begun(
        self, connection: Connection, consultation: ConsultationId, *, now: datetime
    ) -> None:
        """A booked one is opened from now on; what was measured before is history in it."""
        await connection.execute(
            "UPDATE consultation SET status=$2, opened_at=$3 WHERE consultation_id=$1",
            consultation,
            Status.OPENING.value,
            to_ms(now),
        )
        await connection.execute(
            "UPDATE feed SET published=(SELECT position FROM log_head WHERE log=$2)"
            " WHERE consultation_id=$1",
            consultation,
            LOG,
        )

    async def asked(
        self,
        connection: Connection,
        consultation: ConsultationId,
        *,
        now: datetime,
        again_after: timedelta,
    ) -> bool:
        """The patient asks to be let in; false if he did so within a time."""
        row = await connection.fetchrow(
            "UPDATE consultation SET asked_at=$2 WHERE consultation_id=$1"
            " AND (asked_at IS NULL OR asked_at<=$3 OR asked_at>$2) RETURNING consultation_id",
            consultation,
            to_ms(now),
            to_ms(now - again_after),
        )
        return row is not None

    async def admitted(
        self, connection: Connection, consultation: ConsultationId, *, now: datetime
    ) -> None:
        """The patient was let in: from now on his account may read."""
        await connection.execute(
            "UPDATE consultation SET admitted_at=COALESCE(admitted_at, $2), asked_at=NULL"
            " WHERE consultation_id=$1",
            consultation,
            to_ms(now),
        )
        await new_epoch(connection)

    async def sent_out(self, connection: Connection, consultation: ConsultationId) -> None:
        """The patient waits again: his account may not read."""
        await connection.execute(
            "UPDATE consultation SET admitted_at=NULL WHERE consultation_id=$1", consultation
        )
        await new_epoch(connection)

    async def speak(
        self, connection: Connection, consultation: ConsultationId, language: Language
    ) -> None:
        """Another language from now on."""
        await connection.execute(
            "UPDATE consultation SET language=$2 WHERE consultation_id=$1",
            consultation,
            language.value,
        )

    async def include(
        self,
        connection: Connection,
        consultation: ConsultationId,
        account: str,
        role: ParticipantRole = ParticipantRole.CLINICIAN,
        *,
        now: datetime,
    ) -> None:
        """Somebody takes part from now on, or as something else."""
        await self._put(connection, consultation, account, role, now)
        await new_epoch(connection)

    async def exclude(
        self, connection: Connection, consultation: ConsultationId, account: str, *, now: datetime
    ) -> None:
        """Somebody takes part no more."""
        await connection.execute(
            "UPDATE participant SET until=$3 WHERE consultation_id=$1 AND account=$2"
            " AND until IS NULL",
            consultation,
            account,
            to_ms(now),
        )
        await new_epoch(connection)

    async def _put(
        self,
        connection: Connection,
        consultation: ConsultationId,
        account: str,
        role: ParticipantRole,
        now: datetime,
    ) -> None:
        await connection.execute(
            "INSERT INTO participant (consultation_id, account, role, since)"
            " VALUES ($1, $2, $3, $4) ON CONFLICT (consultation_id, account) DO UPDATE"
            " SET role=excluded.role, until=NULL, invited_at=CASE WHEN participant.until IS NULL"
            " THEN participant.invited_at ELSE NULL END",
            consultation,
            account,
            role.value,
            to_ms(now),
        )

    async def treats_no_more(self, account: str, *, now: datetime) -> None:
        """Somebody takes part in no consultation any more."""
        async with self._store.transaction() as connection:
            await connection.execute(
                "UPDATE consultation SET revision=revision+1 WHERE consultation_id IN"
                " (SELECT consultation_id FROM participant WHERE account=$1 AND until IS NULL)",
                account,
            )
            await connection.execute(
                "UPDATE participant SET until=$2 WHERE account=$1 AND until IS NULL",
                account,
                to_ms(now),
            )

    async def changed(self, connection: Connection, patient: PatientKey) -> None:
        """Something of the patient changed that the rooms of his consultation must show."""
        await connection.execute(
            "UPDATE consultation SET revision=revision+1 WHERE patient_key=$1"  # noqa: S608 - words of ours
            f" AND status IN ({_ALIVE})",
            patient,
        )

    async def now_shows(
        self,
        consultation: ConsultationId,
        revision: int,
        *,
        invited: Collection[str],
        now: datetime,
    ) -> None:
        """The room shows a revision, and these were invited; the last word of each change."""
        async with self._store.transaction() as connection:
            await connection.execute(
                "UPDATE consultation SET shown=$2 WHERE consultation_id=$1 AND shown<$2",
                consultation,
                revision,
            )
            for account in sorted(invited):
                await connection.execute(
                    "UPDATE participant SET invited_at=$3 WHERE consultation_id=$1 AND account=$2"
                    " AND invited_at IS NULL",
                    consultation,
                    account,
                    to_ms(now),
                )

    # --- signatures ------------------------------------------------------------------------------

    async def sign(
        self, connection: Connection, consultation: ConsultationId, account: str, *, now: datetime
    ) -> bool:
        """A clinician signs the summary; returns false if he has before."""
        before = await connection.fetchval(
            "SELECT signed_at FROM signature WHERE consultation_id=$1 AND account=$2",
            consultation,
            account,
        )
        if before is not None:
            return False
        await connection.execute(
            "INSERT INTO signature (consultation_id, account, signed_at) VALUES ($1, $2, $3)",
            consultation,
            account,
            to_ms(now),
        )
        return True

    async def signatures(self, consultation: ConsultationId) -> list[Signature]:
        """Who has signed the summary, in order."""
        rows = await self._store.db.fetch(
            "SELECT account, signed_at FROM signature WHERE consultation_id=$1"
            " ORDER BY signed_at, account",
            consultation,
        )
        return [Signature(row["account"], from_ms(row["signed_at"])) for row in rows]

    async def took_part(self, consultation: ConsultationId) -> list[Participant]:
        """Everybody who ever took part, other than the patient, by account."""
        rows = await self._store.db.fetch(
            "SELECT account, role, invited_at FROM participant WHERE consultation_id=$1"
            " ORDER BY account",
            consultation,
        )
        return [_participant(row) for row in rows]

    # --- chats of patients who wait --------------------------------------------------------------

    async def waits_in(self, room_id: str, account: str) -> None:
        """A patient has begun a chat with us."""
        await self._store.db.execute(
            "INSERT INTO waiting_chat (room_id, account) VALUES ($1, $2)"
            " ON CONFLICT (room_id) DO UPDATE SET account=excluded.account",
            room_id,
            account,
        )

    async def who_waits_in(self, room_id: str) -> str | None:
        """Whose chat with us a room is."""
        account = await self._store.db.fetchval(
            "SELECT account FROM waiting_chat WHERE room_id=$1", room_id
        )
        return str(account) if account is not None else None

    # ---------------------------------------------------------------------------------------------

    async def _just_changed(self, consultation: ConsultationId) -> Consultation:
        found = await self.get(consultation)
        if found is None:
            raise BugError("a consultation is gone; nothing deletes any", code="consultation_gone")
        return found

    async def _many(self, rows: Sequence[Row]) -> list[Consultation]:
        """With one query for all who take part, however many consultations there are."""
        if not rows:
            return []
        of: dict[str, list[Participant]] = {row["consultation_id"]: [] for row in rows}
        found = await self._store.fetch_among(
            "SELECT participant.* FROM participant"
            " LEFT JOIN staff ON staff.account=participant.account"
            " WHERE participant.until IS NULL AND staff.left_at IS NULL"
            " AND (staff.role IS NULL OR staff.role<>'operator') AND participant.consultation_id",
            list(of),
        )
        for row in found:
            of[row["consultation_id"]].append(_participant(row))
        return [_consultation(row, of[row["consultation_id"]]) for row in rows]


def _participant(row: Row) -> Participant:
    return Participant(
        row["account"], ParticipantRole(row["role"]), invited=row["invited_at"] is not None
    )


def _moment(value: int | None) -> datetime | None:
    return None if value is None else from_ms(value)


def _consultation(row: Row, participants: Collection[Participant]) -> Consultation:
    return Consultation(
        id=ConsultationId(row["consultation_id"]),
        patient=PatientKey(row["patient_key"]),
        room_id=row["room_id"],
        status=Status(row["status"]),
        language=Language(row["language"]),
        time_zone=row["time_zone"],
        opened_at=from_ms(row["opened_at"]),
        participants=tuple(sorted(participants, key=lambda one: one.account)),
        revision=row["revision"],
        shown=row["shown"],
        booked_for=_moment(row["booked_for"]),
        asked_at=_moment(row["asked_at"]),
        admitted_at=_moment(row["admitted_at"]),
        ended_at=_moment(row["ended_at"]),
    )
