"""Patient records. A patient is a local record; a Matrix account is optional."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass

from fajma.sealing import SiteKey
from fajma.store.database import Row, Store
from fajma.store.keys import PatientKeys
from fajma.vitals import PatientKey


@dataclass(frozen=True, slots=True)
class Patient:
    """One patient record.

    Attributes:
        key: opaque key of the record.
        number: the hospital's record number.
        initials: e.g. ``A.D.``; no name is kept.
        bed: bed label, e.g. ``4``.
        account: Matrix user id of the patient, if there is one.
    """

    key: PatientKey
    number: str
    initials: str
    bed: str
    account: str | None


class Patients:
    """Repository of patient records."""

    def __init__(self, store: Store, keys: PatientKeys, site_key: SiteKey) -> None:
        self._store = store
        self._keys = keys
        self._site_key = site_key

    async def add(self, *, number: str, initials: str, bed: str, account: str | None) -> Patient:
        """Keep a new patient record."""
        patient = Patient(PatientKey(secrets.token_hex(16)), number, initials, bed, account)
        async with self._store.transaction() as connection:
            key = await self._keys.create(patient.key)
            await connection.execute(
                "INSERT INTO patient (patient_key, number_fingerprint, account, sealed)"
                " VALUES ($1, $2, $3, $4)",
                patient.key,
                self._fingerprint(number),
                account,
                key.seal(_clinical(patient), place=f"patient/{patient.key}"),
            )
        return patient

    async def by_number(self, number: str) -> Patient | None:
        """The patient with this record number."""
        row = await self._store.db.fetchrow(
            "SELECT * FROM patient WHERE number_fingerprint=$1", self._fingerprint(number)
        )
        return await self._patient(row) if row else None

    async def get(self, key: PatientKey) -> Patient | None:
        """The patient of this record key."""
        row = await self._store.db.fetchrow("SELECT * FROM patient WHERE patient_key=$1", key)
        return await self._patient(row) if row else None

    def _fingerprint(self, number: str) -> bytes:
        return self._site_key.fingerprint(b"patient number", number.encode())

    async def _patient(self, row: Row) -> Patient:
        patient_key = PatientKey(row["patient_key"])
        key = await self._keys.get(patient_key)
        clinical = json.loads(key.open(bytes(row["sealed"]), place=f"patient/{patient_key}"))
        return Patient(key=patient_key, account=row["account"], **clinical)


def _clinical(patient: Patient) -> bytes:
    values = asdict(patient)
    del values["key"], values["account"]
    return json.dumps(values).encode()
