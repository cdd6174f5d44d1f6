"""What the commands about consultations lead to: an errand for the application service, or a word.

Who may order what, and whom or which monitor a line names, is decided here; what becomes of the
room is carried out by ``appservice.errands``, perhaps in another process. The errand is noted in
the transaction that takes the command, and answered when it has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from mautrix.util.async_db import Connection

from bots.alerts.bedside_text import bed_of
from bots.alerts.desk import Asked, Done, RefusedError, is_bed, is_of
from bots.alerts.site_rules import SiteRules
from bots.alerts.situation import not_taken, readable_state, words
from bots.alerts.text import duty_time, unreadable
from bots.alerts.whom import Whom, localpart
from fajma.commands import AT_WARD_RECEPTION, Action, usage
from fajma.errors import BugError
from fajma.language import SEPARATOR, Language, shown, translator
from fajma.life import TREATING, ParticipantRole, Status, Step, may
from fajma.reception import LAST_DIGITS, Reception
from fajma.store import Records
from fajma.store.consultations import Consultation
from fajma.store.errands import Errand, ErrandKind
from fajma.store.patients import Patient
from fajma.store.people import MAX_ACCOUNT, named
from fajma.store.wards import Ward
from fajma.vitals import DeviceId

CONFIRMED_WITHIN: Final = timedelta(minutes=5)
"""How long after the question a consultation can be ended by a yes. FAJMA default."""

MAX_LINES: Final = 60
"""Consultations in one answer; more would not fit into an event."""

_KINDS: Final = {
    Action.INVITE: ErrandKind.INVITE,
    Action.REMOVE: ErrandKind.REMOVE,
    Action.MONITOR_LINK: ErrandKind.LINK,
    Action.MONITOR_UNLINK: ErrandKind.UNLINK,
    Action.CALL: ErrandKind.CALL,
    Action.LANGUAGE: ErrandKind.LANGUAGE,
    Action.ADMIT: ErrandKind.ADMIT,
    Action.END: ErrandKind.END,
    Action.END_DESPITE_ALARM: ErrandKind.END,
}
"""What is ordered in a consultation's room."""

_STEPS: Final = {
    Action.INVITE: Step.INVITE,
    Action.REMOVE: Step.REMOVE,
    Action.MONITOR_LINK: Step.LINK,
    Action.MONITOR_UNLINK: Step.LINK,
    Action.CALL: Step.CALL,
    Action.LANGUAGE: Step.CHANGE_LANGUAGE,
    Action.ADMIT: Step.ADMIT,
    Action.END_ASK: Step.END,
    Action.END: Step.END,
    Action.END_DESPITE_ALARM: Step.END,
    Action.SIGN: Step.SIGN,
}

_COMPANION: Final = {Language.FRENCH: "accompagnant", Language.ENGLISH: "companion"}
"""The word of the grammar, in a line that is shown."""


class ConsultationDesk:
    """Takes commands about consultations.

    Args:
        records: everything.
        rules: what the site judges by.
        server: name of our homeserver: its accounts are ours to know.
        now: the clock.
    """

    def __init__(
        self,
        records: Records,
        rules: SiteRules,
        *,
        server: str,
        now: Callable[[], datetime],
    ) -> None:
        self._records = records
        self._rules = rules
        self._whom = Whom(records)
        self._server = server
        self._now = now

    async def done(self, connection: Connection, asked: Asked) -> Done:
        """Take a command, inside the transaction that will keep its answer or its errand.

        Raises:
            RefusedError: it is not this person's to give, not here, or names nobody for certain.
        """
        action = asked.command.action
        if action in AT_WARD_RECEPTION:
            ward = self._ward(asked)
            if action is Action.CONSULTATIONS_SHOW:
                return await self._open_ones(ward, asked)
            if action is Action.SIGN:
                return await self._sign(connection, asked)
            return await self._open(connection, ward, asked)
        consultation = self._consultation(asked)
        self._require_right(consultation, asked)
        patient = await self._records.patients.get(consultation.patient)
        if patient is None:
            raise BugError("a consultation has no patient", code="no_patient")
        if action is Action.END_ASK:
            return await self._ask_to_end(connection, consultation, patient, asked)
        said = await self._said(consultation, patient, asked)
        said["consultation"] = consultation.id
        return await self._order(connection, asked, _KINDS[action], said, patient=patient)

    # --- who, and where --------------------------------------------------------------------------

    def _ward(self, asked: Asked) -> Ward:
        _ = translator(asked.command.language).gettext
        ward, person = asked.place.ward, asked.person
        if ward is None:
            raise RefusedError(
                _("This is typed in the ward's room, not in a consultation."), code="wrong_room"
            )
        if person is None or not is_of(person, ward):
            raise RefusedError(
                _("Only doctors and nurses of this ward can do this here."), code="not_of_ward"
            )
        return ward

    def _consultation(self, asked: Asked) -> Consultation:
        _ = translator(asked.command.language).gettext
        if asked.place.consultation is None:
            raise RefusedError(
                _("This is typed in the consultation's room, not in the ward's."),
                code="wrong_room",
            )
        return asked.place.consultation

    def _require_right(self, consultation: Consultation, asked: Asked) -> None:
        """A clinician who takes part, in a role that may take the step."""
        _ = translator(asked.command.language).gettext
        role = consultation.role_of(asked.account)
        is_clinician = asked.person is not None and asked.person.is_clinician
        if not is_clinician or role is None or not may(role, _STEPS[asked.command.action]):
            raise RefusedError(
                _("Only doctors and nurses who take part in this consultation can do this."),
                code="not_treating",
            )

    # --- the ward's room -------------------------------------------------------------------------

    async def _open_ones(self, ward: Ward, asked: Asked) -> Done:
        language = asked.command.language
        _ = translator(language).gettext
        patients = {one.key: one for one in await self._records.patients_of(ward)}
        lines = []
        for one in await self._records.consultations.open_ones():
            if one.patient not in patients:
                continue
            lead = next(
                (who.account for who in one.participants if who.role is ParticipantRole.LEAD),
                next(iter(one.clinicians), None),
            )
            since = duty_time(one.opened_at, ward.time_zone, language, now=self._now())
            parts = [
                bed_of(patients[one.patient], language),
                _("since {time}").format(time=since),
                _("nobody treats")
                if lead is None
                else named(await self._records.people.get(lead), lead),
            ]
            lines.append(SEPARATOR.join(parts))
        head = _("Open consultations: {count}").format(count=len(lines))
        opening = _("Open another: {line}").format(line=usage(Action.CONSULTATION_OPEN, language))
        return Done("\n".join([head, *lines[:MAX_LINES], opening]))

    async def _open(self, connection: Connection, ward: Ward, asked: Asked) -> Done:
        language = asked.command.language
        _ = translator(language).gettext
        wanted = _received(asked)
        initials, bed, record = wanted.initials or "", wanted.bed or "", wanted.record or ""
        patient = await self._on_record(record)
        said: dict[str, str] = {"ward": ward.id}
        if patient is not None:
            self._require_same(patient, ward, initials, language)
        if wanted.monitor is not None:
            said["device"] = await self._free_monitor(wanted.monitor, patient, language)
        if wanted.patient is not None:
            await self._require_patients_account(wanted.patient, patient, language)
            said["account"] = wanted.patient
        if patient is None:
            patient = await self._records.patients.add(
                number=record,
                initials=initials,
                bed=bed,
                account=None,
                ward=ward.id,
                now=self._now(),
            )
            said["record"] = "added"
        elif not is_bed(patient, bed) or patient.ward is None:
            patient = replace(patient, bed=bed, ward=ward.id)
            await self._records.patients.change(connection, patient, now=self._now())
            said["record"] = "moved"
        said["patient"] = patient.key
        return await self._order(connection, asked, ErrandKind.OPEN, said, patient=patient)

    async def _on_record(self, record: str) -> Patient | None:
        """The patient of a number, in whatever case: phones begin with a capital letter."""
        for written in dict.fromkeys((record, record.upper(), record.lower())):
            patient = await self._records.patients.by_number(written)
            if patient is not None:
                return patient
        return None

    def _require_same(
        self, patient: Patient, ward: Ward, initials: str, language: Language
    ) -> None:
        """The record is this patient's and not, by a slip of the finger, another one's."""
        _ = translator(language).gettext
        if _letters(patient.initials) != _letters(initials):
            raise RefusedError(
                _(
                    "Nothing was done: this record number is on record with other initials. Look"
                    " at both and type the line again."
                ),
                code="other_initials",
            )
        if patient.ward not in (None, ward.id):
            raise RefusedError(
                _(
                    "Nothing was done: by our records this patient lies in another ward. Have the"
                    " operator correct that first."
                ),
                code="other_ward",
            )

    async def _require_patients_account(
        self, account: str, patient: Patient | None, language: Language
    ) -> None:
        """An account that is nobody else's."""
        _ = translator(language).gettext
        person = await self._records.people.get(account)
        other = await self._records.patients.of_account(account)
        if person is not None or (
            other is not None and (patient is None or other.key != patient.key)
        ):
            raise RefusedError(
                _("Nothing was done: this account belongs to somebody else."),
                code="account_of_another",
            )
        if patient is not None and patient.account not in (None, account):
            raise RefusedError(
                _(
                    "Nothing was done: this patient has another account on record. Have the"
                    " operator change it first."
                ),
                code="other_account",
            )

    # --- the consultation's room -----------------------------------------------------------------

    async def _said(  # noqa: PLR0911 - one for each action
        self, consultation: Consultation, patient: Patient, asked: Asked
    ) -> dict[str, str]:
        """What the errand must know beside the consultation."""
        language = asked.command.language
        match asked.command.action:
            case Action.INVITE:
                role = _received(asked).seat or ParticipantRole.CLINICIAN
                account = await self._guest(role, patient, asked)
                role = self._seat(role, account, consultation, language)
                return {"account": account, "role": role.value}
            case Action.REMOVE:
                return {"account": await self._participant(consultation, patient, asked)}
            case Action.MONITOR_LINK:
                code = _received(asked).monitor or ""
                return {"device": await self._free_monitor(code, patient, language)}
            case Action.MONITOR_UNLINK:
                return {"device": await self._worn_monitor(asked, patient)}
            case Action.LANGUAGE:
                return {"language": (_received(asked).language or language).value}
            case Action.ADMIT:
                self._require_account(patient, language)
                return {}
            case Action.END | Action.END_DESPITE_ALARM:
                await self._require_asked(patient, asked)
                despite = asked.command.action is Action.END_DESPITE_ALARM
                return {"despite_alarm": "yes"} if despite else {}
            case _:
                return {}

    async def _guest(self, role: ParticipantRole, patient: Patient, asked: Asked) -> str:
        """Who is brought in: of the staff, of a partner hospital, or anybody else by account."""
        language, person = asked.command.language, asked.command.person
        _ = translator(language).gettext
        if person is None or person.mxid is None:
            account = await self._whom.of_staff(person, language)
        else:
            account = person.mxid
        staff = await self._records.people.get(account)
        if person is not None and person.shown is not None:
            if staff is None:
                raise self._whom.another_name(account, Action.INVITE, language)
            await self._whom.require_name(person.shown, staff, Action.INVITE, language)
        if account == patient.account:
            raise RefusedError(
                _("Nothing was done: this is the patient's own account. Let the patient in: {line}")
                .format(line=usage(Action.ADMIT, language)),
                code="account_of_patient",
            )  # fmt: skip
        if staff is not None and not staff.is_clinician:
            raise RefusedError(
                _("{who} is no doctor or nurse of this hospital.").format(
                    who=shown(account, MAX_ACCOUNT)
                ),
                code="not_clinician",
            )
        is_ours = account.endswith(f":{self._server}")
        if staff is None and is_ours and role in TREATING:
            raise RefusedError(
                _(
                    "{who} is not of our staff. Anybody else comes in as observer, interpreter or"
                    " companion: {line}"
                ).format(
                    who=shown(account, MAX_ACCOUNT),
                    line=f"{usage(Action.INVITE, language).split()[0]} {account} {_('companion')}",
                ),
                code="not_staff_account",
            )
        return account

    @staticmethod
    def _seat(
        role: ParticipantRole, account: str, consultation: Consultation, language: Language
    ) -> ParticipantRole:
        """As what somebody comes who may take part already: the lead stays it.

        Raises:
            RefusedError: nobody would be left who treats.
        """
        _ = translator(language).gettext
        if role not in TREATING and consultation.clinicians == (account,):
            raise RefusedError(
                _("Nothing was done: nobody else treats in this consultation."),
                code="last_clinician",
            )
        before = consultation.role_of(account)
        return before if before in TREATING and role in TREATING else role

    async def _participant(self, consultation: Consultation, patient: Patient, asked: Asked) -> str:
        """Who is taken out: somebody who takes part, or the patient, who then waits again."""
        language, person = asked.command.language, asked.command.person
        _ = translator(language).gettext
        here = [one.account for one in consultation.participants]
        here += [patient.account] if patient.account is not None else []
        if person is None:
            found = []
        elif person.mxid is not None:
            found = [one for one in here if one == person.mxid]
        else:
            found = [one for one in here if localpart(one) == person.localpart]
        if len(found) != 1:
            raise RefusedError(
                "\n".join(
                    [_("Nothing was done: name one of those who take part, by the account:"), *here]
                ),
                code="not_taking_part",
            )
        if person is not None and person.shown is not None:
            staff = await self._records.people.get(found[0])
            if staff is None:
                raise self._whom.another_name(found[0], Action.REMOVE, language)
            await self._whom.require_name(person.shown, staff, Action.REMOVE, language)
        return found[0]

    def _require_account(self, patient: Patient, language: Language) -> None:
        _ = translator(language).gettext
        if patient.account is None:
            raise RefusedError(
                _("The patient has no Matrix account, so there is nobody to let in."),
                code="no_account",
            )

    # --- monitors --------------------------------------------------------------------------------

    async def _free_monitor(
        self, code: str, patient: Patient | None, language: Language
    ) -> DeviceId:
        """A monitor that nobody wears, or this patient already.

        Raises:
            RefusedError: somebody else wears it, or its end is not that of exactly one.
        """
        _ = translator(language).gettext
        mine = await self._records.devices.worn_by(patient.key) if patient is not None else []
        if len(code) > LAST_DIGITS:
            device = DeviceId(code)
            worn = await self._records.devices.wearing(device, self._now())
            if worn is not None and (patient is None or worn.patient != patient.key):
                raise RefusedError(
                    _(
                        "Nothing was done: another patient wears this monitor by our records. Take"
                        " it off first, in that patient's consultation: {line}"
                    ).format(line=usage(Action.MONITOR_UNLINK, language)),
                    code="monitor_worn",
                )
            return device
        found = [one for one in mine if one.endswith(code)]
        found += await self._records.devices.unworn(code)
        if len(found) == 1:
            return found[0]
        if found:
            said = _(
                "Nothing was done: more than one monitor ends so. Type the whole code of its label:"
            )
            code = "monitor_ambiguous"
        else:
            said = _(
                "Nothing was done: no monitor that we have heard of and that nobody wears ends so."
                " Type the whole code of its label:"
            )
            code = "monitor_unknown"
        raise RefusedError(f"{said}\n{usage(Action.MONITOR_LINK, language)}", code=code)

    async def _worn_monitor(self, asked: Asked, patient: Patient) -> DeviceId:
        """The monitor of the patient that is taken off.

        Raises:
            RefusedError: the patient wears none, not this one, or several and none was named.
        """
        language, code = asked.command.language, _received(asked).monitor or ""
        _ = translator(language).gettext
        worn = await self._records.devices.worn_by(patient.key)
        found = [one for one in worn if one.endswith(code)]
        if len(found) == 1:
            return found[0]
        if not worn:
            raise RefusedError(
                _("The patient wears no monitor by our records."), code="monitor_not_worn"
            )
        line = usage(Action.MONITOR_UNLINK, language)
        raise RefusedError(
            "\n".join(
                [
                    _("Nothing was done: say which monitor. The patient wears:"),
                    *(f"{line} {one}" for one in worn),
                ]
            ),
            code="monitor_which",
        )

    # --- ending and signing ----------------------------------------------------------------------

    async def _ask_to_end(
        self, connection: Connection, consultation: Consultation, patient: Patient, asked: Asked
    ) -> Done:
        language = asked.command.language
        _ = translator(language).gettext
        if consultation.status is not Status.OPEN:
            raise RefusedError(_("This consultation is not open."), code="consultation_not_open")
        lines = [
            _("End the consultation of {where}?").format(where=bed_of(patient, language)),
            _(
                "Nobody writes here any more, what was written stays readable for those who take"
                " part. The monitor is unlinked: no vitals and no alarms come from then on. A"
                " summary waits for signatures. It never opens again."
            ),
        ]
        open_ones = await self._not_taken(patient, language, asked.place.zone)
        action = Action.END_DESPITE_ALARM if open_ones else Action.END
        if open_ones:
            lines += [self._take_first(language), *open_ones]
        minutes = round(CONFIRMED_WITHIN / timedelta(minutes=1))
        lines.append(
            _("To end it, type within {minutes} minutes: {line}").format(
                minutes=minutes, line=usage(action, language)
            )
        )
        said: dict[str, str] = {"consultation": consultation.id}
        await self._records.errands.propose(
            connection, self._errand(asked, ErrandKind.END, said)
        )  # fmt: skip
        return Done("\n".join(lines), patient)

    async def _require_asked(self, patient: Patient, asked: Asked) -> None:
        """The question was put to the same person just now, and no alarm is passed over."""
        language = asked.command.language
        _ = translator(language).gettext
        proposed = self._errand(asked, ErrandKind.END, {})
        since = self._now() - CONFIRMED_WITHIN
        if not await self._records.errands.is_proposed(proposed, since=since):
            raise RefusedError(
                _("Nothing was done: first type {line}, and read what ending does.").format(
                    line=usage(Action.END_ASK, language)
                ),
                code="not_asked",
            )
        if asked.command.action is Action.END_DESPITE_ALARM:
            return
        open_ones = await self._not_taken(patient, language, asked.place.zone)
        if open_ones:
            line = usage(Action.END_DESPITE_ALARM, language)
            raise RefusedError(
                "\n".join(
                    [
                        self._take_first(language),
                        *open_ones,
                        _("To end it all the same: {line}").format(line=line),
                    ]
                ),
                code="alarm_open",
            )

    @staticmethod
    def _take_first(language: Language) -> str:
        _ = translator(language).gettext
        return _("An alarm of high priority is open and nobody took it ({line}):").format(
            line=usage(Action.ACKNOWLEDGE, language)
        )

    async def _not_taken(self, patient: Patient, language: Language, zone: str) -> list[str]:
        """The words of the open alarms of high priority that nobody took."""
        state = await readable_state(self._records, patient.key, self._rules)
        if state is None:  # who cannot be judged may be in danger
            return [unreadable(patient.bed, patient.initials, language)]
        return [
            words(one, patient, language, zone)
            for one in not_taken(state, self._rules, self._now())
        ]

    async def _sign(self, connection: Connection, asked: Asked) -> Done:
        """The summary of one of this person's consultations that has ended."""
        consultation = await self._to_sign(asked)
        self._require_right(consultation, asked)
        patient = await self._records.patients.get(consultation.patient)
        said: dict[str, str] = {"consultation": consultation.id}
        return await self._order(connection, asked, ErrandKind.SIGN, said, patient=patient)

    async def _to_sign(self, asked: Asked) -> Consultation:
        language = asked.command.language
        _ = translator(language).gettext
        name = _received(asked).consultation
        waiting = [
            one
            for one in await self._records.consultations.having(Status.ENDED)
            if one.role_of(asked.account) in TREATING
            and not await self._has_signed(one, asked.account)
            and name in (None, one.short_name)
        ]
        if len(waiting) == 1:
            return waiting[0]
        if not waiting:
            raise RefusedError(
                _("No summary of this name waits for your signature.")
                if name is not None
                else _("No summary waits for your signature."),
                code="nothing_to_sign",
            )
        line = usage(Action.SIGN, language)
        raise RefusedError(
            "\n".join(
                [
                    _("Nothing was done: several summaries wait for your signature. Type one of:"),
                    *(f"{line} {one.short_name}" for one in waiting[:MAX_LINES]),
                ]
            ),
            code="sign_which",
        )

    async def _has_signed(self, consultation: Consultation, account: str) -> bool:
        signed = await self._records.consultations.signatures(consultation.id)
        return account in {one.account for one in signed}

    # --- the errand ------------------------------------------------------------------------------

    async def _order(
        self,
        connection: Connection,
        asked: Asked,
        kind: ErrandKind,
        said: dict[str, str],
        *,
        patient: Patient | None,
    ) -> Done:
        """Note the errand; the answer comes when it has ended."""
        errand = self._errand(asked, kind, said)
        await self._records.errands.add(connection, errand)
        detail = {"errand": errand.id, "kind": kind.value, **said}
        return Done(None, patient, detail, act="errand.ordered")

    def _errand(self, asked: Asked, kind: ErrandKind, said: dict[str, str]) -> Errand:
        return Errand(
            id=self._records.site_key.fingerprint(b"errand", asked.mark).hex(),
            kind=kind,
            room_id=asked.place.room_id,
            who=asked.account,
            asked_at=self._now(),
            language=asked.command.language,
            event_id=asked.event_id,
            said=said,
        )


def _received(asked: Asked) -> Reception:
    if asked.command.reception is None:
        raise BugError("a command lacks what its verb asks for", code="command_incomplete")
    return asked.command.reception


def _letters(initials: str) -> str:
    return "".join(one for one in initials.casefold() if one.isalpha())
