"""Patient records: a patient is known by a number, initials and a bed; an account is optional."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import structlog

from appservice.operator import Operator
from appservice.service import MatrixService
from appservice.wards import WardService
from fajma.errors import InputError
from fajma.language import Language
from fajma.store import Records
from fajma.store.audit import OPERATOR
from fajma.store.patients import AgeBand, Patient
from fajma.store.pins import new_epoch
from fajma.store.wards import WardId
from fajma.vitals import DeviceId

log = structlog.get_logger()


class PatientService:
    """What operators and hospital software do with patient records."""

    def __init__(
        self, records: Records, matrix: MatrixService, operator: Operator, wards: WardService
    ) -> None:
        self._records = records
        self._matrix = matrix
        self._operator = operator
        self._wards = wards

    async def add(
        self,
        *,
        number: str,
        initials: str,
        bed: str,
        ward: str | None,
        age_band: AgeBand,
        pregnant: bool | None,
        language: Language | None,
        time_zone: str | None,
        now: datetime,
    ) -> Patient:
        """Keep a new record.

        Raises:
            InputError: the number is taken, or the ward unknown.
        """
        if await self._records.patients.by_number(number) is not None:
            raise InputError(
                "a patient with this number is known already: see `fajma patient list`",
                code="patient_exists",
            )
        patient = await self._records.patients.add(
            number=number,
            initials=initials,
            bed=bed,
            account=None,
            ward=(await self._wards.get(ward)).id if ward else None,
            age_band=age_band,
            pregnant=pregnant,
            language=language,
            time_zone=time_zone,
        )
        await self._note("patient.add", patient, now)
        return patient

    async def all(self, ward: str | None = None) -> list[Patient]:
        """Every record, or those of a ward, by bed."""
        return await self._records.patients.all(WardId(ward) if ward else None)

    async def change(self, number: str, changes: Mapping[str, Any], *, now: datetime) -> Patient:
        """Change bed, initials, ward, age band, pregnancy, language or time zone.

        Raises:
            InputError: there is no such patient or ward.
        """
        patient = await self._get(number)
        values = dict(changes)
        if values.get("ward"):
            values["ward"] = (await self._wards.get(values["ward"])).id
        changed = replace(patient, **values)
        async with self._records.store.transaction() as connection:
            await self._records.patients.change(connection, changed)
        await self._note("patient.change", changed, now)
        return changed

    async def link_account(self, number: str, account: str, *, now: datetime) -> Patient:
        """From now on the patient takes part with a Matrix account.

        The account gets the telemetry rule and does not ring for alarms.

        Raises:
            InputError: no such patient or account; it belongs to staff or to another patient.
        """
        patient = await self._get(number)
        if patient.account == account:
            return patient
        person = await self._records.people.get(account)
        if person is not None and person.is_active:
            raise InputError(
                "this account belongs to a member of staff: a patient has another one",
                code="account_of_staff",
            )
        other = await self._records.patients.of_account(account)
        if other is not None and other.key != patient.key:
            raise InputError(
                "this account belongs to another patient: unlink it there first",
                code="account_of_patient",
            )
        if self._matrix.is_local(account):
            # First, for without our rules the invitation would ring; refuses an unknown account.
            await self._operator.ring(account, rings=False)
        if patient.account is not None:
            await self.unlink_account(number, now=now)
            patient = await self._get(number)
        changed = replace(patient, account=account)
        async with self._records.store.transaction() as connection:
            await self._records.patients.change(connection, changed)
            await new_epoch(connection)
        room_id = await self._room(changed)
        if room_id is not None:
            await self._matrix.invite(room_id, account)
        await self._note("patient.link_account", changed, now, account=account)
        return changed

    async def unlink_account(self, number: str, *, now: datetime) -> Patient:
        """The patient goes on without account: it leaves the room and gets no key any more.

        The account itself stays on its homeserver.
        """
        patient = await self._get(number)
        if patient.account is None:
            return patient
        changed = replace(patient, account=None)
        async with self._records.store.transaction() as connection:
            await self._records.patients.change(connection, changed)
            await new_epoch(connection)
        room_id = await self._room(patient)
        if room_id is not None:
            await self._matrix.remove(room_id, patient.account)
        await self._note("patient.unlink_account", changed, now, account=patient.account)
        return changed

    async def wear(self, number: str, device: DeviceId, *, now: datetime) -> Patient:
        """From now on the patient wears this monitor.

        Raises:
            InputError: no such patient, or nowhere for the alarms to go.
        """
        patient = await self._get(number)
        ward = await self._records.wards.responsible(patient.key)
        if await self._room(patient) is None and (ward is None or ward.room_id is None):
            raise InputError(
                "nobody would get this patient's alarms: give the patient a ward"
                " (`fajma patient change --ward`) or open a consultation first",
                code="patient_without_room",
            )
        consultation = await self._records.consultations.of_patient(patient.key)
        await self._records.devices.link(
            device, patient.key, consultation.id if consultation else None, now=now
        )
        await self._note("patient.wear", patient, now, device=device)
        return patient

    async def _room(self, patient: Patient) -> str | None:
        consultation = await self._records.consultations.of_patient(patient.key)
        return consultation.room_id if consultation is not None else None

    async def _get(self, number: str) -> Patient:
        patient = await self._records.patients.by_number(number)
        if patient is None:
            raise InputError(
                "no patient has this number: see `fajma patient list`", code="patient_unknown"
            )
        return patient

    async def _note(self, action: str, patient: Patient, now: datetime, **detail: str) -> None:
        async with self._records.store.transaction() as connection:
            await self._records.audit.note(
                connection, actor=OPERATOR, action=action, subject=patient.key, now=now, **detail
            )
        log.info(action.replace(".", "_"), patient=patient.key)
