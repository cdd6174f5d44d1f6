"""Patient records. A patient is a local record; a Matrix account is optional."""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Final

from mautrix.util.async_db import Connection

from fajma.facts import AgeBand, Profiled
from fajma.language import Language
from fajma.sealing import SiteKey
from fajma.store.database import Row, Store
from fajma.store.facts import Facts
from fajma.store.keys import PatientKeys
from fajma.store.wards import WardId
from fajma.typed import in_order
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
        ward: where the patient lies, if that is known; its team gets the alarms.
        age_band: how old the patient is.
        pregnant: whether the patient is pregnant; ``None`` if unknown.
        copd: whether the patient is at risk of hypercapnic failure, so that an SpO2 of 88 to 92 %
            is aimed at (BTS 2017); judged by the limits for it.
        language: of what the patient reads; the site's where ``None``.
        time_zone: IANA name; the ward's or the site's where ``None``.
    """

    key: PatientKey
    number: str
    initials: str
    bed: str
    account: str | None
    ward: WardId | None = None
    age_band: AgeBand = AgeBand.UNKNOWN
    pregnant: bool | None = None
    copd: bool = False
    language: Language | None = None
    time_zone: str | None = None


class Patients:
    """Repository of patient records."""

    def __init__(self, store: Store, keys: PatientKeys, site_key: SiteKey, facts: Facts) -> None:
        self._store = store
        self._keys = keys
        self._site_key = site_key
        self._facts = facts

    async def add(
        self,
        *,
        number: str,
        initials: str,
        bed: str,
        account: str | None,
        ward: WardId | None = None,
        age_band: AgeBand = AgeBand.UNKNOWN,
        pregnant: bool | None = None,
        copd: bool = False,
        language: Language | None = None,
        time_zone: str | None = None,
        now: datetime | None = None,
    ) -> Patient:
        """Keep a new patient record; what decides on limits is told to the alarm engine."""
        patient = Patient(
            key=PatientKey(secrets.token_hex(16)),
            number=number,
            initials=initials,
            bed=bed,
            account=account,
            ward=ward,
            age_band=age_band,
            pregnant=pregnant,
            copd=copd,
            language=language,
            time_zone=time_zone,
        )
        async with self._store.transaction() as connection:
            key = await self._keys.create(patient.key)
            await connection.execute(
                "INSERT INTO patient (patient_key, number_fingerprint, account, ward_id, sealed)"
                " VALUES ($1, $2, $3, $4, $5)",
                patient.key,
                self._fingerprint(number),
                account,
                ward,
                key.seal(_clinical(patient), place=f"patient/{patient.key}"),
            )
            await self._tell(connection, None, patient, now)
        return patient

    async def change(
        self, connection: Connection, patient: Patient, *, now: datetime | None = None
    ) -> None:
        """Keep a changed record; key and number stay what they are."""
        key = await self._keys.get(patient.key)
        row = await connection.fetchrow("SELECT * FROM patient WHERE patient_key=$1", patient.key)
        await self._tell(connection, await self._patient(row) if row else None, patient, now)
        await connection.execute(
            "UPDATE patient SET account=$2, ward_id=$3, sealed=$4 WHERE patient_key=$1",
            patient.key,
            patient.account,
            patient.ward,
            key.seal(_clinical(patient), place=f"patient/{patient.key}"),
        )

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

    async def of_account(self, account: str) -> Patient | None:
        """The patient with this Matrix account."""
        row = await self._store.db.fetchrow("SELECT * FROM patient WHERE account=$1", account)
        return await self._patient(row) if row else None

    async def all(self, ward: WardId | None = None) -> list[Patient]:
        """Every patient, or those of one ward; by bed."""
        rows = await self._store.db.fetch("SELECT * FROM patient")
        found = [await self._patient(row) for row in rows if ward is None or row["ward_id"] == ward]
        return sorted(found, key=lambda one: (in_order(one.bed), one.number))

    async def page(
        self,
        *,
        after: PatientKey,
        limit: int,
        ward: WardId | None = None,
        among: Collection[PatientKey] | None = None,
    ) -> tuple[list[Patient], PatientKey | None]:
        """Some patients, in the order of their keys; without those whose own keys are gone.

        Args:
            after: key of the last one that is known; empty at the beginning.
            limit: how many at most.
            ward: of this ward only.
            among: only these.

        Returns:
            The patients, and ``after`` of the next page, if there may be one.
        """
        if among is None:
            rows: Sequence[Row] = await self._store.db.fetch(
                "SELECT * FROM patient WHERE patient_key>$1 AND (ward_id=$2 OR $2 IS NULL)"
                " ORDER BY patient_key LIMIT $3",
                after,
                ward,
                limit,
            )
        else:
            wanted = [one for one in among if one > after]
            rows = await self._store.fetch_among(
                "SELECT * FROM patient WHERE (ward_id=$2 OR $2 IS NULL) AND patient_key",
                wanted,
                ward,
            )
            rows = sorted(rows, key=lambda row: str(row["patient_key"]))[:limit]
        keys = [PatientKey(row["patient_key"]) for row in rows]
        gone = await self._keys.missing(keys)
        found = [
            await self._patient(row) for row, key in zip(rows, keys, strict=True) if key not in gone
        ]
        return found, keys[-1] if len(keys) == limit else None

    async def keys_of_ward(self, ward: WardId) -> frozenset[PatientKey]:
        """Who lies in a ward."""
        rows = await self._store.db.fetch("SELECT patient_key FROM patient WHERE ward_id=$1", ward)
        return frozenset(PatientKey(row["patient_key"]) for row in rows)

    async def _tell(
        self, connection: Connection, before: Patient | None, after: Patient, now: datetime | None
    ) -> None:
        """Tell the alarm engine of another profile."""
        profile = _profile(after)
        if profile != (_USUAL if before is None else _profile(before)):
            at = now or datetime.now(UTC)
            await self._facts.append(connection, after.key, Profiled(at, *profile))

    def _fingerprint(self, number: str) -> bytes:
        return self._site_key.fingerprint(b"patient number", number.encode())

    async def _patient(self, row: Row) -> Patient:
        patient_key = PatientKey(row["patient_key"])
        key = await self._keys.get(patient_key)
        kept = json.loads(key.open(bytes(row["sealed"]), place=f"patient/{patient_key}"))
        patient = Patient(
            key=patient_key,
            number=kept["number"],
            initials=kept["initials"],
            bed=kept["bed"],
            account=row["account"],
            ward=WardId(row["ward_id"]) if row["ward_id"] is not None else None,
        )
        if "age_band" not in kept:  # a record of the first schema
            return patient
        return replace(
            patient,
            age_band=AgeBand(kept["age_band"]),
            pregnant=kept["pregnant"],
            language=Language(kept["language"]) if kept["language"] else None,
            time_zone=kept["time_zone"],
            copd=kept.get("copd", False),
        )


_USUAL: Final = (AgeBand.UNKNOWN, None, False, None)
"""The profile of somebody of whom nothing is known."""


def _profile(patient: Patient) -> tuple[AgeBand, bool | None, bool, str | None]:
    """What the alarm engine is told of a record: age band, pregnancy, COPD, ward."""
    return (patient.age_band, patient.pregnant, patient.copd, patient.ward)


def _clinical(patient: Patient) -> bytes:
    values = asdict(patient)
    del values["key"], values["account"], values["ward"]
    return json.dumps(values).encode()
