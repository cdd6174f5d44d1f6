"""What a patient has agreed to, and no longer: purpose, when, to whom it was said."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NewType

from mautrix.util.async_db import Connection

from fajma.errors import InputError
from fajma.store.database import Row, Store, from_ms, to_ms
from fajma.store.keys import PatientKeys
from fajma.vitals import PatientKey

ConsentId = NewType("ConsentId", str)
"""Identity of a consent, 16 hex digits."""


class Purpose(StrEnum):
    """What is agreed to."""

    TELECONSULTATION = "teleconsultation"
    """To be treated at a distance."""
    MONITORING = "monitoring"
    """That vitals are sent and kept."""
    SHARING = "sharing"
    """That another hospital takes part."""
    RESEARCH = "research"
    """That data are used beyond care."""


@dataclass(frozen=True, slots=True)
class Consent:
    """One consent.

    Attributes:
        id: its identity.
        patient: of whom.
        purpose: to what.
        given_at: aware UTC.
        given_to: who noted it: a user id, or the name of a key of hospital software.
        withdrawn_at: aware UTC; ``None`` while it holds.
        withdrawn_to: who noted that.
        note: in the words of who noted it; sealed.
    """

    id: ConsentId
    patient: PatientKey
    purpose: Purpose
    given_at: datetime
    given_to: str
    withdrawn_at: datetime | None
    withdrawn_to: str | None
    note: str


class Consents:
    """Repository of consents."""

    def __init__(self, store: Store, keys: PatientKeys) -> None:
        self._store = store
        self._keys = keys

    async def give(
        self,
        connection: Connection,
        patient: PatientKey,
        purpose: Purpose,
        *,
        to: str,
        note: str,
        now: datetime,
    ) -> Consent:
        """Keep a new consent."""
        consent = Consent(
            ConsentId(secrets.token_hex(8)), patient, purpose, now, to, None, None, note
        )
        key = await self._keys.get(patient)
        await connection.execute(
            "INSERT INTO consent (consent_id, patient_key, purpose, given_at, given_to, sealed)"
            " VALUES ($1, $2, $3, $4, $5, $6)",
            consent.id,
            patient,
            purpose.value,
            to_ms(now),
            to,
            key.seal(json.dumps({"note": note}).encode(), place=_place(patient, consent.id)),
        )
        return consent

    async def withdraw(
        self, connection: Connection, patient: PatientKey, consent: ConsentId, *, to: str,
        now: datetime,
    ) -> bool:  # fmt: skip
        """A consent holds no more; one that was withdrawn before stays as it is.

        Returns:
            Whether it held until now.

        Raises:
            InputError: ``consent_unknown``, this patient has no such consent.
        """
        withdrawn = await connection.fetchrow(
            "UPDATE consent SET withdrawn_at=$3, withdrawn_to=$4 WHERE consent_id=$1"
            " AND patient_key=$2 AND withdrawn_at IS NULL RETURNING consent_id",
            consent,
            patient,
            to_ms(now),
            to,
        )
        if withdrawn is None and await self.get(patient, consent) is None:
            raise InputError("this patient has no such consent", code="consent_unknown")
        return withdrawn is not None

    async def get(self, patient: PatientKey, consent: ConsentId) -> Consent | None:
        """One of a patient's consents."""
        row = await self._store.db.fetchrow(
            "SELECT * FROM consent WHERE consent_id=$1 AND patient_key=$2", consent, patient
        )
        return await self._consent(row) if row else None

    async def of(self, patient: PatientKey) -> list[Consent]:
        """All of a patient's consents, oldest first."""
        rows = await self._store.db.fetch(
            "SELECT * FROM consent WHERE patient_key=$1 ORDER BY given_at, consent_id", patient
        )
        return [await self._consent(row) for row in rows]

    async def _consent(self, row: Row) -> Consent:
        patient, identity = PatientKey(row["patient_key"]), ConsentId(row["consent_id"])
        key = await self._keys.get(patient)
        kept = json.loads(key.open(bytes(row["sealed"]), place=_place(patient, identity)))
        return Consent(
            id=identity,
            patient=patient,
            purpose=Purpose(row["purpose"]),
            given_at=from_ms(row["given_at"]),
            given_to=row["given_to"],
            withdrawn_at=from_ms(row["withdrawn_at"]) if row["withdrawn_at"] else None,
            withdrawn_to=row["withdrawn_to"],
            note=kept["note"],
        )


def _place(patient: PatientKey, consent: ConsentId) -> str:
    return f"consent/{patient}/{consent}"
