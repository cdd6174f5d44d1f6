"""Patient records and their monitors: from valid requests to their service, and back."""

from __future__ import annotations

from appservice.api import models
from appservice.api.declare import Call, Route
from appservice.api.models import (
    DevicesAnswer,
    LinkAnswer,
    LinksAnswer,
    PatientAnswer,
    PatientInBed,
    PatientListed,
    PatientsAnswer,
    PatientWorn,
    WornDevice,
)
from appservice.api.pages import Cursors, PageQuery
from appservice.api.permissions import Permission
from appservice.api.problems import not_found
from appservice.api.reach import Reaches
from appservice.patients import PatientService, unknown_number
from fajma.store import Records
from fajma.store.patients import Patient
from fajma.vitals import DeviceId, PatientKey


class PatientRoutes:
    """Patient records and their monitors."""

    def __init__(
        self, records: Records, patients: PatientService, reaches: Reaches, cursors: Cursors
    ) -> None:
        self._records = records
        self._patients = patients
        self._reaches = reaches
        self._cursors = cursors

    def routes(self) -> list[Route]:
        """Their declarations."""
        read, write = Permission.READ_PATIENTS, Permission.WRITE_PATIENTS
        one = Route("GET", "/patients/{patient}", read, "One patient record",
                    self._one, PatientAnswer, has_version=True)  # fmt: skip
        return [
            Route("GET", "/patients", read, "Patient records",
                  self._all, PatientsAnswer, query=models.PatientsQuery),
            Route("POST", "/patients", write, "Keep a new patient record",
                  self._add, PatientInBed, models.PatientRequest),
            one,
            Route("PATCH", "/patients/{patient}", write, "Change a patient record",
                  self._patch, PatientAnswer, models.PatientChanges,
                  has_version=True, version_of=one),
            Route("POST", "/patients/find", Permission.FIND_PATIENTS, "The patient of a number",
                  self._find, PatientAnswer, models.PatientNumber),
            Route("POST", "/patients/change", write, "Change a patient record, by number",
                  self._change, PatientInBed, models.PatientChange),
            Route("POST", "/patients/account", write, "Link or unlink the patient's account",
                  self._account, PatientAnswer, models.PatientAccountRequest),
            Route("POST", "/patients/monitor", Permission.LINK_DEVICES,
                  "Put a monitor on, or take it off, by number",
                  self._monitor, PatientWorn, models.PatientMonitor),
            Route("GET", "/devices", read, "Monitors that are worn now",
                  self._worn, DevicesAnswer, query=PageQuery),
            Route("GET", "/patients/{patient}/devices", read, "The patient's monitors",
                  self._devices, LinksAnswer),
            Route("PUT", "/patients/{patient}/devices/{device}", Permission.LINK_DEVICES,
                  "The patient wears this monitor",
                  self._wear, PatientWorn, models.DeviceSince),
            Route("DELETE", "/patients/{patient}/devices/{device}", Permission.LINK_DEVICES,
                  "The patient wears this monitor no more",
                  self._take_off, PatientAnswer),
        ]  # fmt: skip

    async def _all(self, call: Call) -> PatientsAnswer:
        asked = call.asked(models.PatientsQuery)
        among = await self._reaches.patients(call.caller, call.reach)
        page, following = await self._patients.page(
            after=self._cursors.read(call), limit=asked.limit, ward=asked.ward, among=among
        )
        worn = await self._patients.monitors()
        listed = [
            PatientListed(**dict(_patient(one)), monitors=list(worn.get(one.key, [])))
            for one in page
        ]
        return PatientsAnswer(patients=listed, next=self._cursors.make(call, following))

    async def _add(self, call: Call) -> PatientInBed:
        body = call.sent(models.PatientRequest)
        patient = await self._patients.add(
            number=body.number,
            initials=body.initials,
            bed=body.bed,
            ward=body.ward,
            age_band=body.age_band,
            pregnant=body.pregnant,
            copd=bool(body.copd),
            language=body.language,
            time_zone=body.time_zone,
            now=call.now,
            by=call.caller.id,
        )
        return await self._in_bed(patient)

    async def _one(self, call: Call) -> PatientAnswer:
        return _patient(await self._known(call.patient))

    async def _find(self, call: Call) -> PatientAnswer:
        patient = await self._of_number(call, call.sent(models.PatientNumber).number)
        return _patient(patient)

    async def _patch(self, call: Call) -> PatientAnswer:
        patient = await self._known(call.patient)
        changes = call.sent(models.PatientChanges).changes()
        return _patient(
            await self._patients.change(patient.number, changes, now=call.now, by=call.caller.id)
        )

    async def _change(self, call: Call) -> PatientInBed:
        body = call.sent(models.PatientChange)
        return await self._in_bed(
            await self._patients.change(
                body.number, body.changes(), now=call.now, by=call.caller.id
            )
        )

    async def _account(self, call: Call) -> PatientAnswer:
        body = call.sent(models.PatientAccountRequest)
        if body.account is None:
            return _patient(
                await self._patients.unlink_account(body.number, now=call.now, by=call.caller.id)
            )
        return _patient(
            await self._patients.link_account(
                body.number, body.account, now=call.now, by=call.caller.id
            )
        )

    async def _monitor(self, call: Call) -> PatientWorn:
        body = call.sent(models.PatientMonitor)
        await self._of_number(call, body.number)
        device = DeviceId(body.device)
        if body.off:
            patient = await self._patients.take_off(
                body.number, device, now=call.now, by=call.caller.id
            )
            return PatientWorn(**dict(_patient(patient)), worn_before_by=None)
        return await self._put_on(call, body.number, device, body.since)

    async def _worn(self, call: Call) -> DevicesAnswer:
        among = await self._reaches.patients(call.caller, call.reach)
        place, limit = self._cursors.read(call) or "", call.asked(PageQuery).limit
        worn = sorted(
            (device, patient)
            for patient, devices in (await self._patients.monitors()).items()
            if among is None or patient in among
            for device in devices
            if device > place
        )
        page = worn[:limit]
        return DevicesAnswer(
            devices=[WornDevice(device=device, patient=patient) for device, patient in page],
            next=self._cursors.make(call, page[-1][0] if len(worn) > limit else None),
        )

    async def _devices(self, call: Call) -> LinksAnswer:
        await self._known(call.patient)
        links = await self._records.devices.links_of(call.patient)
        return LinksAnswer(
            devices=[
                LinkAnswer(
                    device=one.device,
                    consultation=one.consultation,
                    worn_since=one.since,
                    worn_until=one.until,
                    online=one.online,
                )
                for one in links
            ]
        )

    async def _wear(self, call: Call) -> PatientWorn:
        patient = await self._known(call.patient)
        since = call.sent(models.DeviceSince).since
        return await self._put_on(call, patient.number, call.device, since)

    async def _put_on(
        self, call: Call, number: str, device: DeviceId, since: str | None
    ) -> PatientWorn:
        patient, before = await self._patients.wear(
            number, device, now=call.now, since=since, by=call.caller.id
        )
        shown = None
        if before is not None:
            among = await self._reaches.patients(call.caller, call.reach)
            shown = before.number if among is None or before.key in among else None
        return PatientWorn(**dict(_patient(patient)), worn_before_by=shown)

    async def _take_off(self, call: Call) -> PatientAnswer:
        patient = await self._known(call.patient)
        return _patient(
            await self._patients.take_off(
                patient.number, call.device, now=call.now, by=call.caller.id
            )
        )

    async def _known(self, key: PatientKey) -> Patient:
        patient = await self._records.patients.get(key)
        if patient is None:
            raise not_found()
        return patient

    async def _of_number(self, call: Call, number: str) -> Patient:
        """A patient within the caller's reach; who is not is answered like one who is unknown.

        Raises:
            InputError: ``patient_unknown``.
        """
        patient = await self._patients.of_number(number)
        among = await self._reaches.patients(call.caller, call.reach)
        if among is not None and patient.key not in among:
            raise unknown_number()
        return patient

    async def _in_bed(self, patient: Patient) -> PatientInBed:
        others = [one.number for one in await self._patients.also_in_bed(patient)]
        return PatientInBed(**dict(_patient(patient)), also_in_bed=others)


def _patient(patient: Patient) -> PatientAnswer:
    return PatientAnswer(
        patient=patient.key,
        number=patient.number,
        initials=patient.initials,
        bed=patient.bed,
        ward=patient.ward,
        account=patient.account,
        age_band=patient.age_band,
        pregnant=patient.pregnant,
        copd=patient.copd,
        language=patient.language,
        time_zone=patient.time_zone,
    )
