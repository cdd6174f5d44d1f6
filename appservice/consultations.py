"""Consultations from booking to archive, on the Matrix side. Safe to repeat after a crash.

Each act is committed first, with all that must be said about it (outbox, audit); then the room
follows (``consultation_rooms.py``), and last our record says that it has. Whatever stops us in
between, ``Keeper`` finds the room behind its record and brings it there. Who may do what is for the
caller to decide (``fajma.life.may``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

import structlog
from mautrix.errors import MatrixError
from mautrix.util.async_db import Connection

from appservice import summary
from appservice.consultation_rooms import ConsultationRooms
from appservice.operator import Operator
from appservice.patients import (
    PatientService,
    checked_bed,
    checked_initials,
    checked_number,
)
from appservice.service import MatrixService
from appservice.summary import Summary
from fajma.config import Settings
from fajma.errors import BugError, DecodeError, FajmaError, InputError
from fajma.events import ALARM, AlarmBlock
from fajma.facts import LimitSet
from fajma.language import Language
from fajma.life import (
    ALIVE,
    FROZEN,
    INVITED,
    TREATING,
    ParticipantRole,
    Status,
    Step,
    next_status,
)
from fajma.store import Records
from fajma.store.alarms import Delivery, SentBy
from fajma.store.audit import OPERATOR
from fajma.store.consultations import Consultation, ConsultationId
from fajma.store.patients import Patient
from fajma.store.people import Role, named
from fajma.vitals import DeviceId, PatientKey

log = structlog.get_logger()

AlarmOpen = Callable[[PatientKey], Awaitable[bool]]
"""Whether a patient has an alarm of high priority that nobody has answered."""

SYSTEM: Final = "fajma"
"""Actor of what the rules do by themselves."""


class ConsultationService:
    """What the REST API and the bot's commands call.

    Attributes:
        rooms: what follows.
        undisturbed: held during each act, and by whoever does something according to our record.

    Args:
        settings: all of them.
        records: all of them.
        matrix: our side of the homeserver.
        operator: its admin account.
        patients: patient records.
        alarm_open: see ``AlarmOpen``.
    """

    def __init__(
        self,
        settings: Settings,
        records: Records,
        matrix: MatrixService,
        operator: Operator,
        patients: PatientService,
        *,
        alarm_open: AlarmOpen,
    ) -> None:
        self._settings = settings
        self._records = records
        self._matrix = matrix
        self._operator = operator
        self._patients = patients
        self.rooms = ConsultationRooms(settings, records, matrix)
        self._alarm_open = alarm_open
        self.undisturbed = asyncio.Lock()

    # --- beginning -------------------------------------------------------------------------------

    async def book(
        self,
        *,
        number: str,
        initials: str,
        bed: str,
        patient_account: str | None,
        clinicians: Sequence[str],
        language: Language | None,
        booked_for: datetime,
        by: str,
        now: datetime,
    ) -> Consultation:
        """Agree on a consultation for a time; there is no room until it is opened.

        A patient with an account then waits until a clinician lets him in (``admit``). Booked again
        before it is open, it is the same consultation.

        Args:
            number: record number of the patient; the record is made if it is new.
            initials: shown in alarms.
            bed: shown in alarms.
            patient_account: Matrix user id of the patient, if there is one.
            clinicians: Matrix user ids, at least one; the first is the lead.
            language: of the room; the site's where ``None``.
            booked_for: aware UTC.
            by: user id, or what calls us.
            now: aware UTC.

        Raises:
            InputError: as ``open``; the patient's consultation is open already
                (``consultation_is_open``).
        """
        await self._prepare_all(clinicians)
        async with self.undisturbed:
            patient = await self._patient(number, initials, bed, patient_account, now)
            found = await self._records.consultations.of_patient(patient.key)
            if found is not None and found.status is not Status.BOOKED:
                raise InputError(
                    "the patient's consultation is open: end it before the next one is booked",
                    code="consultation_is_open",
                )
            if found is None:
                async with self._records.store.transaction() as connection:
                    found = await self._records.consultations.add(
                        patient=patient.key,
                        clinicians=tuple(clinicians),
                        lead=clinicians[0],
                        language=language or self._settings.site.language,
                        time_zone=self._settings.site.time_zone,
                        booked_for=booked_for,
                        waits=True,
                        now=now,
                    )
                    await self._audit(connection, "consultation.book", found, by, now)
        return found

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
        by: str = OPERATOR,
    ) -> Consultation:
        """Open the patient's consultation, or complete the one that is open.

        Completing makes the room if that was interrupted, and adds clinicians and the patient's
        account where they are new; nobody is removed. One that was booked is opened; its patient
        goes on waiting until a clinician lets him in.

        Args:
            number: record number of the patient; the record is made if it is new.
            initials: shown in alarms.
            bed: shown in alarms.
            patient_account: Matrix user id of the patient, if there is one.
            clinicians: Matrix user ids, at least one; the first is the lead of a new consultation.
            device: the monitor that the patient wears from now on.
            language: of the room; the site's where ``None``.
            now: aware UTC.
            by: user id, or what calls us.

        Raises:
            InputError: no clinician, one who has left, has no account or is of no partner
                hospital, an account that cannot be a patient's, or a record that cannot be.
        """
        await self._prepare_all(clinicians)
        async with self.undisturbed:
            patient = await self._patient(number, initials, bed, patient_account, now)
            consultation = await self._records.consultations.of_patient(patient.key)
            if consultation is None:
                consultation = await self._records.consultations.add(
                    patient=patient.key,
                    clinicians=tuple(clinicians),
                    lead=clinicians[0],
                    language=language or self._settings.site.language,
                    time_zone=self._settings.site.time_zone,
                    now=now,
                )
            consultation = await self._include(consultation, clinicians, by, now)
            return await self._opened(consultation, patient, device, by, now)

    async def start(self, consultation: ConsultationId, by: str, now: datetime) -> Consultation:
        """Open a consultation that was booked; nothing if it is open.

        Raises:
            InputError: there is none, or it is over.
        """
        async with self.undisturbed:
            found = await self._get(consultation)
            next_status(found.status, Step.OPEN)
            patient = await self._records.patients.get(found.patient)
            if patient is None:
                raise BugError("a consultation of nobody", code="patient_gone")
            return await self._opened(found, patient, None, by, now)

    async def _opened(
        self,
        consultation: Consultation,
        patient: Patient,
        device: DeviceId | None,
        by: str,
        now: datetime,
    ) -> Consultation:
        """The consultation, open and with its room as it must be."""
        if consultation.status is Status.BOOKED:
            async with self._records.store.transaction() as connection:
                await self._records.consultations.begun(connection, consultation.id, now=now)
            consultation = replace(consultation, status=Status.OPENING, opened_at=now)
        if consultation.status is not Status.OPEN:
            await self.rooms.make(consultation, patient, by, now)
        elif consultation.shown < consultation.revision:
            await self.rooms.settle(consultation, now)
        if device is not None:
            await self._records.devices.link(device, consultation.patient, consultation.id, now=now)
        self._records.store.hints.notify("consultation")
        return await self._get(consultation.id)

    async def _patient(
        self, number: str, initials: str, bed: str, account: str | None, now: datetime
    ) -> Patient:
        patient = await self._records.patients.by_number(number)
        if patient is None:
            patient = await self._records.patients.add(
                number=checked_number(number),
                initials=checked_initials(initials),
                bed=checked_bed(bed),
                account=None,
            )
        if account is not None:
            patient = await self._patients.link_account(number, account, now=now)
        return patient

    async def _prepare_all(self, clinicians: Sequence[str]) -> None:
        if not clinicians:
            raise InputError("name at least one clinician", code="no_clinician")
        for account in clinicians:
            await self._prepare(account, ParticipantRole.CLINICIAN)

    async def _prepare(self, account: str, role: ParticipantRole) -> None:
        """See that somebody may take part, and that the invitation will make no sound.

        Staff have our push rules since they were added; others here get them now.
        """
        self._matrix.refuse_ours(account)
        person = await self._records.people.get(account)
        if person is not None and not person.is_active and role in TREATING:
            raise InputError(f"{account} has left the staff", code="clinician_left")
        if role in TREATING and person is not None and person.role is Role.OPERATOR:
            raise InputError(
                f"{account} is an operator's account: name a doctor or a nurse",
                code="operator_treats_nobody",
            )
        if role in TREATING and await self._records.patients.of_account(account) is not None:
            raise InputError(
                f"{account} is a patient's account: name a doctor or a nurse",
                code="account_of_patient",
            )
        if person is not None and person.is_active:
            return
        if self._matrix.is_local(account):
            await self._operator.ring(account, rings=role in TREATING)
        elif account.split(":", 1)[-1] not in self._settings.federation.partners:
            raise InputError(
                f"{account} is neither of this hospital nor of a partner: an operator names"
                " partner hospitals in federation.partners",
                code="not_a_partner",
            )

    async def _include(
        self, consultation: Consultation, clinicians: Sequence[str], by: str, now: datetime
    ) -> Consultation:
        """Who is new takes part; first in our record, which decides who gets keys."""
        new = [one for one in dict.fromkeys(clinicians) if one not in consultation.clinicians]
        if new:
            async with self._records.store.transaction() as connection:
                await self._records.consultations.locked(connection, consultation.id)
                for account in new:
                    await self._records.consultations.include(
                        connection, consultation.id, account, now=now
                    )
                    await self._audit(
                        connection,
                        "consultation.invite",
                        consultation,
                        by,
                        now,
                        account=account,
                        role=ParticipantRole.CLINICIAN.value,
                    )
            self._records.store.hints.notify("trust")
        elif consultation.status is Status.OPEN and consultation.room_id is not None:
            for account in clinicians:  # he may have left the room
                await self._matrix.invite(consultation.room_id, account)
        return await self._get(consultation.id)

    # --- while it is open ------------------------------------------------------------------------

    async def admit(
        self, consultation: ConsultationId, account: str | None, by: str, now: datetime
    ) -> Consultation:
        """Let the patient in, or in again.

        Args:
            consultation: which.
            account: who asked, so that nobody admits another one by mistake; ``None``: the
                patient, with or without account.
            by: user id, or what calls us.
            now: aware UTC.

        Raises:
            InputError: there is none, it is over, or the account is not the patient's
                (``not_the_patient``).
        """
        async with self.undisturbed:
            found = await self._get(consultation)
            next_status(found.status, Step.ADMIT)
            patient = await self._records.patients.get(found.patient)
            theirs = patient.account if patient is not None else None
            if account not in (None, theirs):
                raise InputError(
                    "this account is not the patient's of this consultation: link it first",
                    code="not_the_patient",
                )
            if found.admitted_at is None or found.asked_at is not None:
                async with self._records.store.transaction() as connection:
                    await self._records.consultations.locked(connection, found.id)
                    await self._records.consultations.admitted(connection, found.id, now=now)
                    await self._audit(connection, "consultation.admit", found, by, now)
                self._told("trust")
            await self._settle_now(found.id, now)
            if theirs is not None and found.room_id is not None:  # he may have left the room
                await self._quietly(self._matrix.invite(found.room_id, theirs), found)
            return await self._get(found.id)

    async def invite(
        self,
        consultation: ConsultationId,
        account: str,
        role: ParticipantRole,
        by: str,
        now: datetime,
    ) -> Consultation:
        """Somebody takes part from now on, or as something else, or is invited again.

        A new lead makes the one before a clinician.

        Raises:
            InputError: there is no such consultation, it is over, the account has left the staff,
                does not exist, is the patient's (``account_of_patient``) or of no partner hospital
                (``not_a_partner``), or the role is the patient's (``role_of_patient``).
        """
        if role not in INVITED:
            raise InputError(
                "the patient is let in, not invited: say for whom the consultation is",
                code="role_of_patient",
            )
        next_status((await self._get(consultation)).status, Step.INVITE)
        await self._prepare(account, role)
        async with self.undisturbed:
            found = await self._get(consultation)
            next_status(found.status, Step.INVITE)
            patient = await self._records.patients.get(found.patient)
            if patient is not None and patient.account == account:
                raise InputError(
                    "this is the account of the patient, who is let in and not invited",
                    code="account_of_patient",
                )
            if found.role_of(account) is not role:
                await self._take_part(found, account, role, by, now)
            await self._settle_now(found.id, now)
            if found.room_id is not None:
                await self._quietly(self._matrix.invite(found.room_id, account), found)
            return await self._get(found.id)

    async def _take_part(
        self, found: Consultation, account: str, role: ParticipantRole, by: str, now: datetime
    ) -> None:
        before = [one.account for one in found.participants if one.role is ParticipantRole.LEAD]
        consultations = self._records.consultations
        async with self._records.store.transaction() as connection:
            await consultations.locked(connection, found.id)
            for lead in before if role is ParticipantRole.LEAD else ():
                await consultations.include(connection, found.id, lead, now=now)
            await consultations.include(connection, found.id, account, role, now=now)
            await self._audit(
                connection, "consultation.invite", found, by, now, account=account, role=role.value
            )
        self._told("trust")

    async def remove(
        self, consultation: ConsultationId, account: str, by: str, now: datetime
    ) -> Consultation:
        """Somebody takes part no more; of the patient: he waits again until he is let in.

        Raises:
            InputError: there is no such consultation, it is over, or nobody would be left who
                treats (``last_clinician``).
        """
        async with self.undisturbed:
            found = await self._get(consultation)
            next_status(found.status, Step.REMOVE)
            patient = await self._records.patients.get(found.patient)
            is_patient = patient is not None and patient.account == account
            if found.clinicians == (account,):
                raise InputError(
                    "nobody else treats in this consultation: invite another clinician first, or"
                    " end it",
                    code="last_clinician",
                )
            if found.role_of(account) is not None or (is_patient and found.admitted_at is not None):
                async with self._records.store.transaction() as connection:
                    await self._records.consultations.locked(connection, found.id)
                    if is_patient:
                        await self._records.consultations.sent_out(connection, found.id)
                    else:
                        await self._records.consultations.exclude(
                            connection, found.id, account, now=now
                        )
                    await self._audit(
                        connection, "consultation.remove", found, by, now, account=account
                    )
                self._told("trust")
            await self._settle_now(found.id, now)
            return await self._get(found.id)

    async def change_language(
        self, consultation: ConsultationId, language: Language, by: str, now: datetime
    ) -> Consultation:
        """The room and its alarms speak another language from now on.

        Raises:
            InputError: there is no such consultation, or it is over.
        """
        async with self.undisturbed:
            found = await self._get(consultation)
            next_status(found.status, Step.CHANGE_LANGUAGE)
            if found.language is not language:
                async with self._records.store.transaction() as connection:
                    await self._records.consultations.locked(connection, found.id)
                    await self._records.consultations.speak(connection, found.id, language)
                    await self._audit(
                        connection,
                        "consultation.change_language",
                        found,
                        by,
                        now,
                        language=language.value,
                    )
            await self._settle_now(found.id, now)
            return await self._get(found.id)

    # --- its end ---------------------------------------------------------------------------------

    async def end(
        self,
        consultation: ConsultationId,
        by: str,
        now: datetime,
        *,
        despite_alarm: bool = False,
    ) -> Consultation:
        """End a consultation: monitors off, room frozen, a summary to be signed.

        Its monitors are worn no more, so open alarms end as monitoring does ("END OF MONITORING",
        told in the ward's room). An alarm that begins between the look at the alarms and the commit
        is not seen; it ends the same way.

        Args:
            consultation: which.
            by: user id, or what calls us.
            now: aware UTC.
            despite_alarm: also while an alarm of high priority is open that nobody has answered.

        Raises:
            InputError: there is no such consultation, it is not open, or there is such an alarm
                (``alarm_open``).
        """
        async with self.undisturbed:
            found = await self._get(consultation)
            if next_status(found.status, Step.END) is not found.status:
                in_alarm = await self._alarm_open(found.patient)
                if in_alarm and not despite_alarm:
                    raise InputError(
                        "an alarm of high priority is open and nobody has answered it: see the"
                        " patient and answer it first; or end the consultation despite the alarm",
                        code="alarm_open",
                    )
                known = await self._summarised(found, now, despite_alarm=in_alarm)
                body = summary.text(known, found.language, found.time_zone)
                await self._close(found, Step.END, body, by, now)
            await self._settle_now(found.id, now)
            return await self._get(found.id)

    async def no_show(self, consultation: ConsultationId, by: str, now: datetime) -> Consultation:
        """The patient did not come; an open room is frozen, as at an end.

        Raises:
            InputError: there is no such consultation, or it is over.
        """
        async with self.undisturbed:
            found = await self._get(consultation)
            if next_status(found.status, Step.NO_SHOW) is not found.status:
                await self._close(found, Step.NO_SHOW, summary.not_come(found.language), by, now)
            await self._settle_now(found.id, now)
            return await self._get(found.id)

    async def cancel(self, consultation: ConsultationId, by: str, now: datetime) -> Consultation:
        """It does not take place.

        Raises:
            InputError: there is no such consultation, or it is open or over.
        """
        async with self.undisturbed:
            found = await self._get(consultation)
            if next_status(found.status, Step.CANCEL) is not found.status:
                await self._close(found, Step.CANCEL, None, by, now)
            await self._settle_now(found.id, now)
            return await self._get(found.id)

    async def sign(self, consultation: ConsultationId, by: str, now: datetime) -> Consultation:
        """A clinician signs the summary; said in the room once.

        Args:
            consultation: which.
            by: user id of a clinician who took part.
            now: aware UTC.

        Raises:
            InputError: there is no such consultation, it has not ended, or he did not treat in it
                (``not_a_clinician``).
        """
        async with self.undisturbed:
            found = await self._get(consultation)
            next_status(found.status, Step.SIGN)
            if by not in found.clinicians:
                raise InputError(
                    "only a clinician who took part signs the summary", code="not_a_clinician"
                )
            person = await self._records.people.get(by)
            body = summary.signed(named(person, by), now, found.language, found.time_zone)
            async with self._records.store.transaction() as connection:
                if await self._records.consultations.sign(connection, found.id, by, now=now):
                    await self._say(connection, found, f"signed {by}", body, now)
                    await self._audit(connection, "consultation.sign", found, by, now)
            self._told("outbox")
            return found

    async def archive(self, consultation: ConsultationId, now: datetime) -> Consultation:
        """Everybody but our bots leaves the room of what ended long ago.

        What of our records is deleted when is decided elsewhere (issue 10).

        Raises:
            InputError: there is no such consultation, or it has not ended.
        """
        async with self.undisturbed:
            found = await self._get(consultation)
            if next_status(found.status, Step.ARCHIVE) is not found.status:
                await self._close(found, Step.ARCHIVE, None, SYSTEM, now)
            await self._settle_now(found.id, now)
            return await self._get(found.id)

    async def archive_due(self, now: datetime) -> None:
        """Archive what the retention rule says; what fails is tried with the next look."""
        before = now - timedelta(days=self._settings.retention.archive_after_days)
        for one in await self._records.consultations.to_archive(before):
            await self.archive(one, now)

    async def _close(
        self, found: Consultation, step: Step, body: str | None, by: str, now: datetime
    ) -> None:
        status = next_status(found.status, step)
        is_end = status in FROZEN
        async with self._records.store.transaction() as connection:
            await self._records.consultations.locked(connection, found.id)
            if found.status in ALIVE:
                await self._records.devices.detach(connection, found.id, now=now)
            await self._records.consultations.enter(
                connection, found.id, status, ended_at=now if is_end else None
            )
            if body is not None and found.status is Status.OPEN:
                await self._say(connection, found, step.value, body, now)
            await self._audit(connection, f"consultation.{step.value}", found, by, now)
        self._told("outbox", "trust", "consultation")
        log.info("consultation_changed", consultation=found.id, status=status.value)

    async def _summarised(
        self, found: Consultation, now: datetime, *, despite_alarm: bool
    ) -> Summary:
        roles = [
            one.role for one in await self._records.consultations.took_part(found.id) if one.invited
        ]
        patient = await self._records.patients.get(found.patient)
        if patient is not None and patient.account is not None and found.admitted_at is not None:
            roles.append(ParticipantRole.PATIENT)
        worn = (await self._records.devices.worn_in(found.id)) if found.room_id else []
        alarms, limits = None, None
        try:
            alarms = summary.counted(await self._alarms(found))
            facts = await self._records.facts.since(found.patient, found.opened_at)
            limits = sum(isinstance(one, LimitSet) for one in facts)
        except BugError as error:  # the key is gone, or a row was altered
            log.error("summary_incomplete", consultation=found.id, code=error.code)
        return Summary(found.opened_at, now, roles, alarms, limits, len(worn), despite_alarm)

    async def _alarms(self, found: Consultation) -> list[AlarmBlock]:
        blocks = []
        for one in await self._records.outbox.about(found.patient, since=found.opened_at):
            try:
                blocks.append(AlarmBlock.from_content(one.content[ALARM]))
            except (KeyError, DecodeError):  # a message about something else
                continue
        return blocks

    # --- the room follows ------------------------------------------------------------------------

    async def settle(self, consultation: ConsultationId, now: datetime) -> None:
        """Bring a room to what our record says.

        Raises:
            FajmaError, MatrixError: the homeserver did not do all of it.
        """
        async with self.undisturbed:
            await self.rooms.settle(await self._get(consultation), now)

    async def _settle_now(self, consultation: ConsultationId, now: datetime) -> None:
        """The same, at once if the homeserver is there; else ``Keeper`` does it later."""
        found = await self._get(consultation)
        if found.shown < found.revision and found.status not in {Status.BOOKED, Status.OPENING}:
            await self._quietly(self.rooms.settle(found, now), found)

    async def _quietly(self, work: Awaitable[None], found: Consultation) -> None:
        try:
            await work
        except (MatrixError, FajmaError, TimeoutError, OSError) as error:
            log.warning("room_follows_later", consultation=found.id, error=type(error).__name__)
            self._told("consultation")

    # --- what is said ----------------------------------------------------------------------------

    async def _say(
        self, connection: Connection, found: Consultation, what: str, body: str, now: datetime
    ) -> None:
        """Promise a notice of ``@fajma`` in the consultation's room."""
        if found.room_id is None:
            return
        mark = (b"consultation", found.id.encode(), what.encode())
        delivery = Delivery(
            delivery_id=self._records.site_key.fingerprint(*mark).hex(),
            room_id=found.room_id,
            patient=found.patient,
            content={"msgtype": "m.notice", "body": body},
            created_at=now,
            sender=SentBy.HOST,
        )
        await self._records.outbox.add(connection, delivery)

    async def _audit(
        self,
        connection: Connection,
        action: str,
        found: Consultation,
        by: str,
        now: datetime,
        **detail: str,
    ) -> None:
        await self._records.audit.note(
            connection, actor=by, action=action, subject=found.id, now=now, **detail
        )

    def _told(self, *topics: str) -> None:
        for topic in topics:
            self._records.store.hints.notify(topic)

    async def _get(self, consultation: ConsultationId) -> Consultation:
        found = await self._records.consultations.get(consultation)
        if found is None:
            raise InputError("there is no such consultation", code="consultation_unknown")
        return found
