"""Opening a consultation: record, room, first messages, monitor. Safe to repeat after a crash."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime

import structlog

from appservice.operator import Operator
from appservice.patients import (
    PatientService,
    checked_bed,
    checked_initials,
    checked_number,
)
from appservice.rooms import CLINICIAN_POWER, room_request
from appservice.service import GREET_AFTER_S, MatrixService
from fajma.config import Settings
from fajma.errors import InputError
from fajma.events import CONSULTATION, MESSAGE
from fajma.language import Language, translator
from fajma.store import Records, to_ms
from fajma.store.consultations import Consultation, Status
from fajma.store.patients import Patient
from fajma.vitals import DeviceId

log = structlog.get_logger()


class ConsultationService:
    """Opens consultations; what the REST API and, later, the bot's commands call."""

    def __init__(
        self,
        settings: Settings,
        records: Records,
        matrix: MatrixService,
        operator: Operator,
        patients: PatientService,
    ) -> None:
        self._settings = settings
        self._records = records
        self._matrix = matrix
        self._operator = operator
        self._patients = patients
        self._one_at_a_time = asyncio.Lock()

    async def open(
        self,
        *,
        number: str,
        initials: str,
        bed: str,
        patient_account: str | None,
        clinicians: Sequence[str],
        device: DeviceId | None,
        language: Language | None,
        now: datetime,
    ) -> Consultation:
        """Open the patient's consultation, or complete the one that is open.

        Completing makes the room if that was interrupted, and adds clinicians and the patient's
        account where they are new; nobody is removed.

        Args:
            number: record number of the patient; the record is made if it is new.
            initials: shown in alarms.
            bed: shown in alarms.
            patient_account: Matrix user id of the patient, if there is one.
            clinicians: Matrix user ids, at least one.
            device: the monitor that the patient wears from now on.
            language: of the room; the site's where ``None``.
            now: aware UTC.

        Raises:
            InputError: no clinician, one who has left or has no account, an account that cannot be
                a patient's, or a record that cannot be.
        """
        if not clinicians:
            raise InputError("name at least one clinician", code="no_clinician")
        for account in clinicians:
            await self._prepare(account)
        async with self._one_at_a_time:
            patient = await self._records.patients.by_number(number)
            if patient is None:
                patient = await self._records.patients.add(
                    number=checked_number(number),
                    initials=checked_initials(initials),
                    bed=checked_bed(bed),
                    account=None,
                )
            if patient_account is not None:
                patient = await self._patients.link_account(number, patient_account, now=now)
            consultation = await self._records.consultations.of_patient(patient.key)
            if consultation is None:
                consultation = await self._records.consultations.add(
                    patient=patient.key,
                    clinicians=tuple(clinicians),
                    language=language or self._settings.site.language,
                    time_zone=self._settings.site.time_zone,
                    now=now,
                )
            room_id = consultation.room_id
            if consultation.status is not Status.OPEN:
                await self._make_room(consultation, patient)
            elif room_id is not None:
                await self._complete(consultation, room_id, clinicians)
            if device is not None:
                await self._records.devices.link(
                    device, consultation.patient, consultation.id, now=now
                )
        opened = await self._records.consultations.get(consultation.id)
        if opened is None:  # nothing deletes consultations
            raise InputError("the consultation was removed meanwhile", code="consultation_gone")
        return opened

    async def _prepare(self, account: str) -> None:
        """See that somebody may treat, and that the invitation will make no sound.

        Staff have our push rules since they were added; others here get them now.
        """
        self._matrix.refuse_ours(account)
        person = await self._records.people.get(account)
        if person is not None and not person.is_active:
            raise InputError(f"{account} has left the staff", code="clinician_left")
        if person is None and self._matrix.is_local(account):
            await self._operator.ring(account, rings=True)

    async def _complete(
        self, consultation: Consultation, room_id: str, clinicians: Sequence[str]
    ) -> None:
        """Bring in who is new: first into our record, which decides who gets keys.

        Who is in the record already is looked for too: a try before may have got no further.
        """
        new = [one for one in clinicians if one not in consultation.clinicians]
        if new:
            async with self._records.store.transaction() as connection:
                for account in new:
                    await self._records.consultations.include(connection, consultation.id, account)
        for account in clinicians:
            await self._matrix.invite(room_id, account)
            await self._matrix.set_power(room_id, account, CLINICIAN_POWER)
        if not new:
            return
        current = await self._records.consultations.get(consultation.id)
        await self._describe(room_id, current or consultation)
        self._records.store.hints.notify("trust")

    async def greet(self, room_id: str, user: str) -> None:
        """Say to somebody who joined what was said before he could read.

        A little later, because a client refuses what comes before it has looked up our device.
        """
        await asyncio.sleep(GREET_AFTER_S)
        consultation = await self._records.consultations.in_room(room_id)
        if consultation is None:
            return
        who = self._records.site_key.fingerprint(b"greeted", user.encode()).hex()
        await self._describe(room_id, consultation)
        await self._matrix.host.send(
            room_id,
            MESSAGE,
            {"msgtype": "m.notice", "body": welcome(consultation.language)},
            transaction_id=f"welcome-{consultation.id}-{who}",
        )

    async def _describe(self, room_id: str, consultation: Consultation) -> None:
        await self._matrix.host.set_state(
            room_id,
            CONSULTATION,
            "",
            {
                "version": 1,
                "status": Status.OPEN.value,
                "patient": consultation.patient,
                "clinicians": list(consultation.clinicians),
                "time_zone": consultation.time_zone,
                "language": consultation.language.value,
                "since": to_ms(consultation.opened_at),
            },
        )

    async def _make_room(self, consultation: Consultation, patient: Patient) -> None:
        matrix = self._matrix
        request = room_request(
            name=f"Consultation {consultation.id[:4].upper()}",
            creator=matrix.host.mxid,
            bots=(matrix.vitals.mxid, matrix.alerts_mxid),
            clinicians=consultation.clinicians,
            patient=patient.account,
            room_version=self._settings.homeserver.room_version,
        )
        room_id = consultation.room_id
        if room_id is None:
            room_id = await matrix.create_room(request)
            # Before the first message, whose key goes to who belongs to a consultation of ours.
            await self._records.consultations.held_in(consultation.id, room_id)
        await self._describe(room_id, consultation)
        await matrix.host.send(
            room_id,
            MESSAGE,
            {"msgtype": "m.notice", "body": welcome(consultation.language)},
            transaction_id=f"welcome-{consultation.id}",
        )
        # Last, so that a room without its first messages is completed by the next try.
        await self._records.consultations.open_in(consultation.id, room_id)
        log.info("consultation_opened", consultation=consultation.id, room=room_id)


def welcome(language: Language) -> str:
    """The first message of every consultation room."""
    _ = translator(language).gettext
    return _(
        "This consultation is end-to-end encrypted. Vitals and alarms that appear here are a"
        " secondary, investigational notification, not a certified medical device: never rely on"
        " them as the only monitoring. Oximeters overestimate SpO2 in dark skin and with poor"
        " perfusion."
    )
