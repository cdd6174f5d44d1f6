"""Patient keys: made on first use, wrapped by the site key, kept apart from the data.

A key that was destroyed (ADR 0004) must serve nobody any more, and each process keeps keys in
memory. So ``have``, which comes before each batch and each page of a log, asks the database which
are gone; and a key that is used without it is looked for again after ``LOOKED_EVERY_S``.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Collection
from typing import Final

from fajma.errors import BugError
from fajma.sealing import Key, SiteKey
from fajma.store.database import Store
from fajma.vitals import PatientKey

LOOKED_EVERY_S: Final = 5.0
"""So long at most a key is used that was destroyed meanwhile."""


class PatientKeys:
    """Gives the key that seals one patient's data."""

    def __init__(self, store: Store, site_key: SiteKey) -> None:
        self._store = store
        self._site_key = site_key
        self._cache: dict[PatientKey, Key] = {}
        self._looked_s = time.monotonic()

    async def create(self, patient: PatientKey) -> Key:
        """Make and store the key of a new patient (inside the caller's transaction)."""
        key, wrapped = self._site_key.new_patient_key(patient)
        await self._store.db.execute(
            "INSERT INTO patient_key (patient_key, wrapped) VALUES ($1, $2)", patient, wrapped
        )
        return key

    async def get(self, patient: PatientKey) -> Key:
        """The key of a patient.

        Raises:
            BugError: there is none: the patient was erased, or never existed.
        """
        if time.monotonic() - self._looked_s >= LOOKED_EVERY_S:
            await self._forget_gone(list(self._cache))
            self._looked_s = time.monotonic()
        key = self._cache.get(patient)
        if key is None:
            wrapped = await self._store.db.fetchval(
                "SELECT wrapped FROM patient_key WHERE patient_key=$1", patient
            )
            if wrapped is None:
                raise BugError("a patient without key", code="patient_key_missing")
            key = self._cache[patient] = self._site_key.unwrap(bytes(wrapped), patient=patient)
        return key

    async def have(self, patients: Collection[PatientKey]) -> None:
        """Have the keys of many patients at hand with two queries at most.

        A key that is missing or does not unwrap is left out; ``get`` then says so.
        """
        await self._forget_gone([one for one in patients if one in self._cache])
        unknown = [one for one in patients if one not in self._cache]
        if not unknown:
            return
        for row in await self._store.fetch_among(
            "SELECT patient_key, wrapped FROM patient_key WHERE patient_key", unknown
        ):
            patient = PatientKey(row["patient_key"])
            with contextlib.suppress(BugError):
                self._cache[patient] = self._site_key.unwrap(bytes(row["wrapped"]), patient=patient)

    async def missing(self, patients: Collection[PatientKey]) -> set[PatientKey]:
        """Of which of these patients there is no key that unwraps; as ``have``."""
        await self.have(patients)
        return {one for one in patients if one not in self._cache}

    async def _forget_gone(self, known: Collection[PatientKey]) -> None:
        """Forget those of some keys in memory that are not in the database any more."""
        if not known:
            return
        asked, among = (
            ("SELECT value AS patient FROM json_each($1)", json.dumps(list(known)))
            if self._store.is_sqlite
            else ("SELECT unnest($1::text[]) AS patient", list(known))
        )
        for row in await self._store.db.fetch(
            f"SELECT patient FROM ({asked}) AS asked WHERE NOT EXISTS"  # noqa: S608 - ours
            " (SELECT 1 FROM patient_key WHERE patient_key=patient)",
            among,
        ):
            self._cache.pop(PatientKey(row["patient"]), None)
