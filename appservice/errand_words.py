"""What is said of an errand: done, why not, that it takes longer. Pure."""

from __future__ import annotations

from typing import Final

from fajma.commands import Action, usage
from fajma.language import Language, shown, translator
from fajma.life import ParticipantRole
from fajma.store.patients import Patient

MAX_BED: Final = 16
MAX_INITIALS: Final = 8


def whose(patient: Patient, language: Language) -> str:
    """``Lit 4 A.D.``, as an alarm begins."""
    _ = translator(language).gettext
    bed = _("Bed {bed}").format(bed=shown(patient.bed, MAX_BED))
    return f"{bed} {shown(patient.initials, MAX_INITIALS)}"


def opened(where: str, name: str, language: Language, *, is_new: bool, is_shared: bool) -> str:
    """A consultation is open.

    Args:
        where: the patient.
        name: short name of the consultation.
        language: of the text.
        is_new: whether nobody had this record number before.
        is_shared: whether another patient is in this bed by our records.
    """
    _ = translator(language).gettext
    said = _(
        "{where}: the consultation is open. You are invited into its room, Consultation {name}."
        " What can be typed there: {help}"
    ).format(where=where, name=name, help=usage(Action.HELP, language))
    more = []
    if is_new:
        more.append(
            _("The record number was new here. Was the patient here before, look at it again.")
        )
    if is_shared:
        more.append(_("Another patient is in this bed by our records: have that corrected."))
    return "\n".join([said, *more])


def invited(who: str, role: ParticipantRole, language: Language) -> str:
    """Somebody was brought in."""
    _ = translator(language).gettext
    as_what = {
        ParticipantRole.LEAD: _("{who} is invited as clinician."),
        ParticipantRole.CLINICIAN: _("{who} is invited as clinician."),
        ParticipantRole.OBSERVER: _("{who} is invited as observer: reads, decides nothing."),
        ParticipantRole.INTERPRETER: _("{who} is invited as interpreter."),
        ParticipantRole.COMPANION: _("{who} is invited as companion."),
    }
    return as_what[role].format(who=who)


def removed(who: str, language: Language) -> str:
    """Somebody was taken out."""
    _ = translator(language).gettext
    return _("{who} takes part no more, and gets no key of what comes.").format(who=who)


def linked(where: str, device: str, language: Language) -> str:
    """A monitor is worn."""
    _ = translator(language).gettext
    return _("{where} wears monitor {device} from now on.").format(where=where, device=device)


def unlinked(where: str, device: str, language: Language) -> str:
    """A monitor is worn no more."""
    _ = translator(language).gettext
    return _("{where} wears monitor {device} no more: its silence is no alarm.").format(
        where=where, device=device
    )


def admitted(where: str, language: Language) -> str:
    """The patient may come in."""
    _ = translator(language).gettext
    return _("{where} is let in.").format(where=where)


def speaks(language: Language) -> str:
    """Another language from now on; said in that one."""
    _ = translator(language).gettext
    return _("FAJMA speaks English in this room from now on.")


def ended(where: str, language: Language) -> str:
    """A consultation is over."""
    _ = translator(language).gettext
    return _(
        "{where}: the consultation has ended. Sign its summary in the ward's room: {line}"
    ).format(where=where, line=usage(Action.SIGN, language))


def signed(who: str, name: str, language: Language) -> str:
    """A summary is signed."""
    _ = translator(language).gettext
    return _("{who} has signed the summary of Consultation {name}.").format(who=who, name=name)


def how_to_call(language: Language, *, group: bool) -> str:
    """How a call is begun.

    Args:
        language: of the text.
        group: whether a call for several was put into the room.
    """
    _ = translator(language).gettext
    alone = _(
        "Two people: in Element Web or Desktop press the telephone or the camera at the top of the"
        " room; on a thin line the telephone, which sends sound alone. Element X takes no part in"
        " these calls."
    )
    if not group:
        return alone
    together = _(
        "Several: the call is in the room now; open it in Element Web or Desktop at the top of the"
        " room. It is encrypted on the way to the hospital's server, not from end to end."
    )
    return f"{together}\n{alone}"


def takes_longer(time: str, language: Language) -> str:
    """The homeserver does not do it now."""
    _ = translator(language).gettext
    return _(
        "This takes longer: a homeserver does not answer. FAJMA tries again until {time} and says"
        " what became of it."
    ).format(time=time)


def not_done(language: Language) -> str:
    """It was tried for as long as an order counts."""
    _ = translator(language).gettext
    return _(
        "Not done within 10 minutes: a homeserver did not do what it must. What of it is noted"
        " follows when the homeserver works again; look what is there before you type it again."
    )


def too_late(language: Language) -> str:
    """FAJMA was away."""
    _ = translator(language).gettext
    return _("This command came too late to be carried out. If you still want it, type it again.")


def unreadable(language: Language) -> str:
    """Our own fault."""
    _ = translator(language).gettext
    return _(
        "This could not be carried out because of a fault in FAJMA. Type it again; if it happens"
        " again, tell the operator."
    )


def refused(code: str, language: Language) -> str:
    """Why it cannot be; of a reason that is not known here, its code."""
    _ = translator(language).gettext
    reasons = {
        "account_deactivated": _("this account is closed."),
        "account_locked": _("this account is locked: tell the operator."),
        "account_of_fajma": _("this is an account that FAJMA works with: name a person's."),
        "account_of_patient": _("this account belongs to another patient."),
        "account_of_staff": _("this account belongs to the staff: a patient has another one."),
        "alarm_open": _(
            "an alarm of high priority is open and nobody took it. Take it, or type: {line}"
        ).format(line=usage(Action.END_DESPITE_ALARM, language)),
        "clinician_left": _("this person has left the staff."),
        "last_clinician": _(
            "nobody else treats in this consultation: invite another clinician first, or end it."
        ),
        "not_a_clinician": _("only doctors and nurses who treat here can do this."),
        "not_in_consultation": _("only who takes part in this consultation can do this."),
        "not_the_patient": _("this is not the patient's account."),
        "consultation_is_open": _("the consultation is still open: end it first."),
        "consultation_not_ended": _("only a consultation that has ended has a summary to sign."),
        "consultation_not_open": _("the consultation is not open."),
        "consultation_over": _("the consultation is over and never opens again: open a new one."),
        "monitor_not_worn": _("the patient does not wear this monitor any more."),
        "monitor_worn": _("another patient wears this monitor by now. Take it off there first."),
        "no_account": _("the patient has no Matrix account."),
        "no_such_account": _("there is no such account: look how it is written."),
        "not_a_partner": _(
            "this account is on a server that is no partner of the hospital: ask the operator."
        ),
        "m_forbidden": _("the homeserver forbids it: tell the operator."),
    }
    return _("Not done: {reason}").format(
        reason=reasons.get(code) or _("it cannot be ({code}).").format(code=code)
    )
