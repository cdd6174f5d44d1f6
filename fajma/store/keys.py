"""Patient keys: made on first use, wrapped by the site key, kept apart from the data."""

from __future__ import annotations

import contextlib
from collections.abc import Collection

from fajma.errors import BugError
from fajma.sealing import Key, SiteKey
from fajma.store.database import Store
from fajma.vitals import PatientKey


class PatientKeys:
    """Gives the key that seals one patient's data."""

    def __init__(self, store: Store, site_key: SiteKey) -> None:
        self._store = store
        self._site_key = site_key
        self._cache: dict[PatientKey, Key] = {}

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
        """Have the keys of many patients at hand with one query.

        A key that is missing or does not unwrap is left out; ``get`` then says so.
        """
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
        """Of which of these patients there is no key that unwraps; one query at most."""
        await self.have(patients)
        return {one for one in patients if one not in self._cache}
