"""Patient records: a patient is known by a number, initials and a bed; an account is optional."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime, time, tzinfo
from typing import Any, Final
from zoneinfo import ZoneInfo

import structlog
from mautrix.util.async_db import Connection

from appservice.operator import Operator
from appservice.service import MatrixService
from appservice.wards import WardService
from fajma.errors import InputError
from fajma.facts import AgeBand
from fajma.language import Language, hides_something
from fajma.store import Records
from fajma.store.audit import OPERATOR
from fajma.store.patients import Patient
from fajma.store.pins import new_epoch
from fajma.vitals import DeviceId, PatientKey

log = structlog.get_logger()

MAX_INITIALS: Final = 4
"""Letters. FAJMA default: two first names and a double family name."""

_CLOCK: Final = re.compile(r"[0-9]{2}:[0-9]{2}")


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
        copd: bool,
        language: Language | None,
        time_zone: str | None,
        now: datetime,
        by: str = OPERATOR,
    ) -> Patient:
        """Keep a new record.

        Raises:
            InputError: a field that cannot be, a number that is taken, an unknown ward.
        """
        number, initials, bed = checked_number(number), checked_initials(initials), checked_bed(bed)
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
            copd=copd,
            language=language,
            time_zone=time_zone,
            now=now,
        )
        await self._note("patient.add", patient, now, by)
        return patient

    async def all(self, ward: str | None = None) -> list[Patient]:
        """Every record, or those of a ward, by bed.

        Raises:
            InputError: there is no such ward.
        """
        return await self._records.patients.all((await self._wards.get(ward)).id if ward else None)

    async def page(
        self,
        *,
        after: str | None,
        limit: int,
        ward: str | None = None,
        among: Collection[PatientKey] | None = None,
    ) -> tuple[list[Patient], PatientKey | None]:
        """Some records, in the order of their keys.

        Args:
            after: the key of the last one that is known.
            limit: how many at most.
            ward: of this ward only.
            among: only these.

        Returns:
            The records, and ``after`` of the next page, if there may be one.

        Raises:
            InputError: there is no such ward.
        """
        wanted = (await self._wards.get(ward)).id if ward else None
        return await self._records.patients.page(
            after=PatientKey(after or ""), limit=limit, ward=wanted, among=among
        )

    async def monitors(self) -> dict[PatientKey, list[DeviceId]]:
        """What each patient wears now."""
        return await self._records.devices.worn()

    async def also_in_bed(self, patient: Patient) -> list[Patient]:
        """Other patients in the same bed of the same ward: two siblings, or a mistake."""
        if patient.ward is None:
            return []
        return [
            one
            for one in await self._records.patients.all(patient.ward)
            if one.key != patient.key and one.bed.casefold() == patient.bed.casefold()
        ]

    async def change(
        self, number: str, changes: Mapping[str, Any], *, now: datetime, by: str = OPERATOR
    ) -> Patient:
        """Change bed, initials, ward, age band, pregnancy, language or time zone.

        An empty ward is none.

        Raises:
            InputError: there is no such patient or ward, or a field cannot be.
        """
        patient = await self.of_number(number)
        values = dict(changes)
        if "ward" in values:
            name = values["ward"]
            values["ward"] = (await self._wards.get(name)).id if name else None
        for field, checked in (("initials", checked_initials), ("bed", checked_bed)):
            if field in values:
                values[field] = checked(values[field])
        changed = replace(patient, **values)
        async with self._records.store.transaction() as connection:
            await self._records.patients.change(connection, changed, now=now)
        await self._note("patient.change", changed, now, by)
        return changed

    async def link_account(
        self, number: str, account: str, *, now: datetime, by: str = OPERATOR
    ) -> Patient:
        """From now on the patient takes part with a Matrix account.

        The account gets the telemetry rule and does not ring for alarms.

        Raises:
            InputError: no such patient or account; it belongs to staff or to another patient.
        """
        self._matrix.refuse_ours(account)
        patient = await self.of_number(number)
        person = await self._records.people.get(account)
        if person is not None and person.is_active:
            raise InputError(
                "this account belongs to a member of staff: a patient has another one",
                code="account_of_staff",
            )
        if self._matrix.is_local(account):
            # First, for without our rules the invitation would ring; refuses an unknown account.
            await self._operator.ring(account, rings=False)
        if patient.account not in (None, account):
            await self.unlink_account(number, now=now, by=by)
            patient = await self.of_number(number)
        changed = replace(patient, account=account)
        if patient.account is None:
            async with self._records.store.transaction() as connection:
                await self._records.consultations.changed(connection, patient.key)
                # In turn with others who link: the epoch is locked until the commit.
                await new_epoch(connection)
                other = await self._records.patients.of_account(account)
                if other is not None:
                    raise InputError(
                        "this account belongs to another patient: unlink it there first",
                        code="account_of_patient",
                    )
                await self._records.patients.change(connection, changed, now=now)
                await self._note_in(
                    connection, "patient.link_account", changed, now, by, account=account
                )
        consultation = await self._records.consultations.of_patient(changed.key)
        room_id = consultation.room_id if consultation and consultation.admitted_at else None
        if room_id is not None:  # also when it is linked already: a try before may have failed here
            await self._matrix.invite(room_id, account)
        return changed

    async def unlink_account(self, number: str, *, now: datetime, by: str = OPERATOR) -> Patient:
        """The patient goes on without account: it leaves the room and gets no key any more.

        The account itself stays on its homeserver. Safe to repeat.
        """
        patient = await self.of_number(number)
        changed = replace(patient, account=None)
        if patient.account is not None:
            async with self._records.store.transaction() as connection:
                await self._records.consultations.changed(connection, patient.key)
                await new_epoch(connection)
                await self._records.patients.change(connection, changed, now=now)
                await self._note_in(
                    connection, "patient.unlink_account", changed, now, by, account=patient.account
                )
        room_id = await self._room(patient)
        if room_id is not None:
            # By who is there, for a try before may have got no further than the record.
            for stranger in await self._matrix.strangers(room_id):
                await self._matrix.remove(room_id, stranger)
            if patient.account is not None:
                await self._matrix.remove(room_id, patient.account)
        return changed

    async def wear(
        self,
        number: str,
        device: DeviceId,
        *,
        now: datetime,
        since: str | None = None,
        by: str = OPERATOR,
    ) -> tuple[Patient, Patient | None]:
        """From now on, or since a moment in the past, the patient wears this monitor.

        Args:
            number: of the patient.
            device: the monitor.
            now: aware UTC time.
            since: see ``moment``; the time zone is the ward's.
            by: who asks for it, for the audit.

        Returns:
            The patient, and who wore the monitor until now, if it was another one.

        Raises:
            InputError: no such patient, nowhere for the alarms to go, a moment that cannot be, or
                somebody else wore the monitor since then.
        """
        patient = await self.of_number(number)
        ward = await self._records.wards.responsible(patient.key)
        consultation = await self._records.consultations.of_patient(patient.key)
        in_room = consultation is not None and consultation.room_id is not None
        if not in_room and (ward is None or ward.room_id is None):
            raise InputError(
                "nobody would get this patient's alarms: give the patient a ward"
                " (`fajma patient change --ward`) or open a consultation first",
                code="patient_without_room",
            )
        place = ward or consultation
        began = moment(since, ZoneInfo(place.time_zone), now) if since and place else None
        before = await self._records.devices.wearing(device, now, now)
        await self._records.devices.link(
            device, patient.key, consultation.id if consultation else None, now=now, since=began
        )
        detail = {"since": began.isoformat(timespec="seconds")} if began else {}
        await self._note("patient.wear", patient, now, by, device=device, **detail)
        if before is None or before.patient == patient.key:
            return patient, None
        return patient, await self._records.patients.get(before.patient)

    async def take_off(
        self, number: str, device: DeviceId, *, now: datetime, by: str = OPERATOR
    ) -> Patient:
        """From now on the patient does not wear this monitor: its silence is no alarm any more.

        Raises:
            InputError: there is no such patient, or the patient does not wear it.
        """
        patient = await self.of_number(number)
        if not await self._records.devices.unlink(device, patient.key, now=now):
            raise InputError(
                "the patient does not wear this monitor: see `fajma patient list`",
                code="monitor_not_worn",
            )
        await self._note("patient.take_off", patient, now, by, device=device)
        return patient

    async def _room(self, patient: Patient) -> str | None:
        consultation = await self._records.consultations.of_patient(patient.key)
        return consultation.room_id if consultation is not None else None

    async def of_number(self, number: str) -> Patient:
        """The patient with this record number.

        Raises:
            InputError: ``patient_unknown``.
        """
        patient = await self._records.patients.by_number(number)
        if patient is None:
            raise unknown_number()
        return patient

    async def _note(
        self, action: str, patient: Patient, now: datetime, by: str, **detail: str
    ) -> None:
        async with self._records.store.transaction() as connection:
            await self._note_in(connection, action, patient, now, by, **detail)

    async def _note_in(
        self,
        connection: Connection,
        action: str,
        patient: Patient,
        now: datetime,
        by: str,
        **detail: str,
    ) -> None:
        await self._records.audit.note(
            connection, actor=by, action=action, subject=patient.key, now=now, **detail
        )
        log.info(action.replace(".", "_"), patient=patient.key)


def unknown_number() -> InputError:
    """Nobody has this number, as far as whoever asks may know."""
    return InputError(
        "no patient has this number: see `fajma patient list`", code="patient_unknown"
    )


def moment(stated: str, zone: tzinfo, now: datetime) -> datetime:
    """A moment in the past, as people write it.

    Args:
        stated: ``14:05`` (today), ``2026-03-02T14:05``, or that with an offset from UTC.
        zone: of a time without offset.
        now: aware UTC time.

    Raises:
        InputError: it is none, or is not past.
    """
    try:
        if _CLOCK.fullmatch(stated):
            at = datetime.combine(now.astimezone(zone), time.fromisoformat(stated))
        else:
            at = datetime.fromisoformat(stated)
        at = (at if at.tzinfo else at.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InputError(
            "since: write the time as 14:05 or 2026-03-02T14:05", code="since_invalid"
        ) from error
    if at > now:
        raise InputError(
            "since: this is in the future; if it was yesterday, write the date too",
            code="since_in_future",
        )
    return at


def checked_number(number: str) -> str:
    """A record number as it is, for it is what a patient is found by.

    Raises:
        InputError: empty, with blanks around, or with characters that nobody sees.
    """
    _visible(number, "number")
    if number != number.strip():
        raise InputError("number: write it without blanks around it", code="patient_number")
    return number


def checked_bed(bed: str) -> str:
    """A bed's label, fit to be shown in one line.

    Raises:
        InputError: empty, or with characters that nobody sees.
    """
    return _visible(bed, "bed")


def checked_initials(initials: str) -> str:
    """A patient's initials: up to four letters, as alarms may be read by others on a phone.

    Raises:
        InputError: anything longer, which would be a name, or other than letters.
    """
    visible = _visible(initials, "initials")
    letters = [one for one in visible if one.isalpha()]
    if not 1 <= len(letters) <= MAX_INITIALS or not all(
        one in ". -" or unicodedata.category(one)[0] in "LM" for one in visible
    ):
        raise InputError(
            f"initials are 1 to {MAX_INITIALS} letters with dots, blanks or hyphens, e.g. A.D.: no"
            " name of a patient is kept",
            code="patient_initials",
        )
    return visible


def _visible(text: str, field: str) -> str:
    if hides_something(text) or not text.strip():
        raise InputError(
            f"{field}: write one line without invisible characters", code=f"patient_{field}"
        )
    return unicodedata.normalize("NFC", text.strip())
