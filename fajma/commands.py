"""The grammar of what people type: one parser for all bots, French and English.

Written for a nurse at three in the morning on a small phone: strict in meaning, forgiving in
accents, case, blanks and the characters that keyboards put in. The rules:

- A command is one line that begins with ``!`` and a verb. Lines quoted by a reply are dropped
  first. More lines after a command are an error, for a message does one thing.
- Both languages are understood in every room; the verb decides the language of the answer.
- A message whose first word is near a verb is a mistyped command and gets the right line. Any other
  is prose, however many marks it begins with: nobody who types ``!!! vite`` wants a lecture.
- A verb with words that do not belong to it does nothing: ``! test de glycémie`` rings no phone.
- A display name never identifies anybody. A person is an account that was typed, or the one
  account that the client noted in ``m.mentions`` when the name was picked from its list. The name
  that stands there then is handed on (``Person.shown``): a homeserver can hide that a message is a
  reply, whose mention is no pick.

Who may type what, how old or how well encrypted a message may be: that is the caller's to judge.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from fajma import bedside, reception
from fajma.bedside import Bedside, Subject
from fajma.errors import InputError
from fajma.language import Language, translator
from fajma.reception import Reception, Wish
from fajma.typed import (
    UnclearError,
    folded,
    is_blank,
    is_quote,
    trimmed,
    trimmed_blanks,
    words_of,
)


class Owner(StrEnum):
    """Who carries a verb out; the value is the local part of its account."""

    HOST = "fajma"
    ALERTS = "fajma-alerts"


class Verb(StrEnum):
    """The first word of a command, whatever its language."""

    DUTY = "duty"
    HANDOVER = "handover"
    DRILL = "drill"
    HERE = "here"
    IDENTITY = "identity"
    ACKNOWLEDGE = "acknowledge"
    SNOOZE = "snooze"
    LIMITS = "limits"
    VITALS = "vitals"
    ENTER = "enter"
    ALARMS = "alarms"
    CONSULTATION = "consultation"
    INVITE = "invite"
    REMOVE = "remove"
    MONITOR = "monitor"
    CALL = "call"
    LANGUAGE = "language"
    ADMIT = "admit"
    END = "end"
    SIGN = "sign"
    HELP = "help"


class Action(StrEnum):
    """What a command asks for; the value is stable and may be logged."""

    DUTY_SHOW = "duty.show"
    DUTY_TAKE = "duty.take"
    DUTY_LEAVE = "duty.leave"
    HANDOVER_OFFER = "handover.offer"
    HANDOVER_ACCEPT = "handover.accept"
    HANDOVER_DECLINE = "handover.decline"
    HANDOVER_CANCEL = "handover.cancel"
    DRILL_START = "drill.start"
    DRILL_ANSWER = "drill.answer"
    IDENTITY_ACCEPT = "identity.accept"
    ACKNOWLEDGE = "alarm.acknowledge"
    SNOOZE = "alarm.snooze"
    ALARMS_SHOW = "alarm.show"
    LIMITS_SHOW = "limit.show"
    LIMIT_SET = "limit.set"
    LIMIT_RESET = "limit.reset"
    VITALS_SHOW = "vitals.show"
    SIGNS_ENTER = "signs.enter"
    CONSULTATION_OPEN = "consultation.open"
    CONSULTATIONS_SHOW = "consultation.show"
    INVITE = "consultation.invite"
    REMOVE = "consultation.remove"
    MONITOR_LINK = "monitor.link"
    MONITOR_UNLINK = "monitor.unlink"
    CALL = "consultation.call"
    LANGUAGE = "consultation.language"
    ADMIT = "consultation.admit"
    END_ASK = "consultation.ending"
    END = "consultation.end"
    END_DESPITE_ALARM = "consultation.end_despite_alarm"
    SIGN = "consultation.sign"
    HELP = "help"

    @property
    def verb(self) -> Verb:
        """The verb that asks for it."""
        return _VERB_OF[self]


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody a command names; exactly one of the first two is set.

    Attributes:
        mxid: full account, e.g. ``@awa:clinic.example``.
        localpart: its first part, e.g. ``awa``; the caller looks for it among the ward's staff.
        shown: what stands in the line for an account that was picked and not typed; the caller
            makes sure that it is a name of that person.
    """

    mxid: str | None = None
    localpart: str | None = None
    shown: str | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """A line that was understood.

    Attributes:
        action: what is asked.
        language: in which it was typed, so in which to answer.
        person: whom it names; set for what is in ``NAMES_SOMEBODY``.
        code: ``K7QF-2MZT``, in this spelling; set for ``IDENTITY_ACCEPT``.
        about: what the line says about a patient; set for what is in ``AT_BEDSIDE``.
        reception: what the line says about a consultation, if it says more than the action.
    """

    action: Action
    language: Language
    person: Person | None = None
    code: str | None = None
    about: Bedside | None = None
    reception: Reception | None = None

    @property
    def owner(self) -> Owner:
        """The one account that carries it out; all others keep still."""
        return OWNERS[self.action.verb]


class CommandError(InputError):
    """A line that means to be a command and is none.

    The message is in the language of the person who typed, shows the line to type, and quotes
    nothing of what was typed.

    Attributes:
        verb: what was typed, or what it is near.
        in_ward: the message for a ward's room, where the line to type names the bed.
    """

    def __init__(
        self, sentence: str, *actions: Action, language: Language, code: str, verb: Verb
    ) -> None:
        lines = [usage(action, language) for action in actions]
        super().__init__("\n".join([sentence, *lines]), code=code)
        self.verb = verb
        in_ward = [usage_in_ward(action, language) for action in actions]
        self.in_ward = "\n".join([sentence, *in_ward])


OWNERS: Final[Mapping[Verb, Owner]] = MappingProxyType(dict.fromkeys(Verb, Owner.ALERTS))
"""Who answers which verb: one account each, so that nobody is answered twice."""

AT_BEDSIDE: Final = frozenset(
    {
        Action.ACKNOWLEDGE,
        Action.SNOOZE,
        Action.ALARMS_SHOW,
        Action.LIMITS_SHOW,
        Action.LIMIT_SET,
        Action.LIMIT_RESET,
        Action.VITALS_SHOW,
        Action.SIGNS_ENTER,
    }
)
"""What is about a patient: asked for in the consultation, or in the ward's room with a bed."""

AT_WARD_RECEPTION: Final = frozenset(
    {Action.CONSULTATION_OPEN, Action.CONSULTATIONS_SHOW, Action.SIGN}
)
"""What is about consultations and asked for in the ward's room; a summary is signed there, for a
room whose consultation has ended is only read."""

AT_RECEPTION: Final = AT_WARD_RECEPTION | {
    Action.INVITE,
    Action.REMOVE,
    Action.MONITOR_LINK,
    Action.MONITOR_UNLINK,
    Action.CALL,
    Action.LANGUAGE,
    Action.ADMIT,
    Action.END_ASK,
    Action.END,
    Action.END_DESPITE_ALARM,
}
"""What is about consultations themselves: who, with which monitor, until when."""

IN_CONSULTATION: Final = AT_BEDSIDE | (AT_RECEPTION - AT_WARD_RECEPTION) | {Action.HELP}
"""What can be asked for in a consultation."""

IN_WARD: Final = frozenset(Action) - (AT_RECEPTION - AT_WARD_RECEPTION)
"""What can be asked for in a ward's room."""

BY_PATIENT: Final = frozenset({Action.VITALS_SHOW, Action.HELP})
"""What a patient can ask for, in the own consultation."""

NAMES_SOMEBODY: Final = frozenset(
    {Action.HANDOVER_OFFER, Action.IDENTITY_ACCEPT, Action.INVITE, Action.REMOVE}
)
"""What names a person."""

MAX_BODY: Final = 65_536
"""Longest body that is read, in characters: no Matrix event is larger (in bytes)."""

MAX_LINE: Final = 640
"""Longest command, in characters: a display name or account of 256, the words, and room."""

CODE_LENGTH: Final = 8
"""Characters of a code, without its hyphen."""

_MAX_MXID: Final = 255  # Matrix specification 1.16, appendix "User identifiers", in bytes
_MAX_WORD: Final = 24  # longer first words are not compared with the verbs

_VERB_OF: Final = {
    Action.DUTY_SHOW: Verb.DUTY,
    Action.DUTY_TAKE: Verb.DUTY,
    Action.DUTY_LEAVE: Verb.DUTY,
    Action.HANDOVER_OFFER: Verb.HANDOVER,
    Action.HANDOVER_ACCEPT: Verb.HANDOVER,
    Action.HANDOVER_DECLINE: Verb.HANDOVER,
    Action.HANDOVER_CANCEL: Verb.HANDOVER,
    Action.DRILL_START: Verb.DRILL,
    Action.DRILL_ANSWER: Verb.HERE,
    Action.IDENTITY_ACCEPT: Verb.IDENTITY,
    Action.ACKNOWLEDGE: Verb.ACKNOWLEDGE,
    Action.SNOOZE: Verb.SNOOZE,
    Action.ALARMS_SHOW: Verb.ALARMS,
    Action.LIMITS_SHOW: Verb.LIMITS,
    Action.LIMIT_SET: Verb.LIMITS,
    Action.LIMIT_RESET: Verb.LIMITS,
    Action.VITALS_SHOW: Verb.VITALS,
    Action.SIGNS_ENTER: Verb.ENTER,
    Action.CONSULTATION_OPEN: Verb.CONSULTATION,
    Action.CONSULTATIONS_SHOW: Verb.CONSULTATION,
    Action.INVITE: Verb.INVITE,
    Action.REMOVE: Verb.REMOVE,
    Action.MONITOR_LINK: Verb.MONITOR,
    Action.MONITOR_UNLINK: Verb.MONITOR,
    Action.CALL: Verb.CALL,
    Action.LANGUAGE: Verb.LANGUAGE,
    Action.ADMIT: Verb.ADMIT,
    Action.END_ASK: Verb.END,
    Action.END: Verb.END,
    Action.END_DESPITE_ALARM: Verb.END,
    Action.SIGN: Verb.SIGN,
    Action.HELP: Verb.HELP,
}

# First words as ``folded`` leaves them. No language: the word is in both, the room's is meant.
_VERBS: Final[Mapping[str, tuple[Verb, Language | None]]] = {
    "garde": (Verb.DUTY, Language.FRENCH),
    "duty": (Verb.DUTY, Language.ENGLISH),
    "releve": (Verb.HANDOVER, Language.FRENCH),
    "handover": (Verb.HANDOVER, Language.ENGLISH),
    "test": (Verb.DRILL, None),
    "exercice": (Verb.DRILL, Language.FRENCH),
    "drill": (Verb.DRILL, Language.ENGLISH),
    "present": (Verb.HERE, Language.FRENCH),
    "presente": (Verb.HERE, Language.FRENCH),
    "here": (Verb.HERE, Language.ENGLISH),
    "identite": (Verb.IDENTITY, Language.FRENCH),
    "identity": (Verb.IDENTITY, Language.ENGLISH),
    "vu": (Verb.ACKNOWLEDGE, Language.FRENCH),
    "vue": (Verb.ACKNOWLEDGE, Language.FRENCH),
    "ack": (Verb.ACKNOWLEDGE, Language.ENGLISH),
    "seen": (Verb.ACKNOWLEDGE, Language.ENGLISH),
    "pause": (Verb.SNOOZE, None),
    "snooze": (Verb.SNOOZE, Language.ENGLISH),
    "seuil": (Verb.LIMITS, Language.FRENCH),
    "seuils": (Verb.LIMITS, Language.FRENCH),
    "limites": (Verb.LIMITS, Language.FRENCH),
    "limit": (Verb.LIMITS, Language.ENGLISH),
    "limits": (Verb.LIMITS, Language.ENGLISH),
    "constantes": (Verb.VITALS, Language.FRENCH),
    "vitals": (Verb.VITALS, Language.ENGLISH),
    "mesure": (Verb.ENTER, Language.FRENCH),
    "mesures": (Verb.ENTER, Language.FRENCH),
    "enter": (Verb.ENTER, Language.ENGLISH),
    "entered": (Verb.ENTER, Language.ENGLISH),
    "alarme": (Verb.ALARMS, Language.FRENCH),
    "alarmes": (Verb.ALARMS, Language.FRENCH),
    "alarm": (Verb.ALARMS, Language.ENGLISH),
    "alarms": (Verb.ALARMS, Language.ENGLISH),
    "consultation": (Verb.CONSULTATION, None),
    "consultations": (Verb.CONSULTATION, None),
    "inviter": (Verb.INVITE, Language.FRENCH),
    "invite": (Verb.INVITE, Language.ENGLISH),
    "retirer": (Verb.REMOVE, Language.FRENCH),
    "remove": (Verb.REMOVE, Language.ENGLISH),
    "moniteur": (Verb.MONITOR, Language.FRENCH),
    "monitor": (Verb.MONITOR, Language.ENGLISH),
    "appel": (Verb.CALL, Language.FRENCH),
    "appeler": (Verb.CALL, Language.FRENCH),
    "call": (Verb.CALL, Language.ENGLISH),
    "langue": (Verb.LANGUAGE, Language.FRENCH),
    "language": (Verb.LANGUAGE, Language.ENGLISH),
    "admettre": (Verb.ADMIT, Language.FRENCH),
    "admit": (Verb.ADMIT, Language.ENGLISH),
    "terminer": (Verb.END, Language.FRENCH),
    "end": (Verb.END, Language.ENGLISH),
    "signer": (Verb.SIGN, Language.FRENCH),
    "sign": (Verb.SIGN, Language.ENGLISH),
    "aide": (Verb.HELP, Language.FRENCH),
    "help": (Verb.HELP, Language.ENGLISH),
}

# Cries, which are near a verb by their letters alone.
_PROSE: Final = frozenset({"vite", "appelez", "appelle", "appelons"})

# Second words, of both languages after either verb: a mixture has only one meaning.
_WORDS: Final[Mapping[Verb, Mapping[str, Action]]] = {
    Verb.DUTY: {
        **dict.fromkeys(("prendre", "prends", "prise", "oui", "take", "on"), Action.DUTY_TAKE),
        **dict.fromkeys(("quitter", "fin", "leave", "off"), Action.DUTY_LEAVE),
    },
    Verb.HANDOVER: {
        **dict.fromkeys(("accepter", "accepte", "oui", "accept", "yes"), Action.HANDOVER_ACCEPT),
        **dict.fromkeys(("refuser", "refuse", "non", "decline", "no"), Action.HANDOVER_DECLINE),
        **dict.fromkeys(("annuler", "annule", "cancel"), Action.HANDOVER_CANCEL),
    },
    Verb.IDENTITY: dict.fromkeys(("accepter", "accepte", "accept"), Action.IDENTITY_ACCEPT),
    Verb.END: {
        **dict.fromkeys(("oui", "yes"), Action.END),
        **dict.fromkeys(("malgre", "despite"), Action.END_DESPITE_ALARM),
    },
    **dict.fromkeys(
        (Verb.DRILL, Verb.HERE, Verb.INVITE, Verb.REMOVE, Verb.CALL, Verb.ADMIT,
         Verb.HELP),
        MappingProxyType({}),
    ),
}  # fmt: skip

# What follows the verbs about a patient.
_READERS: Final[Mapping[Verb, Callable[[str], Bedside]]] = {
    Verb.ACKNOWLEDGE: bedside.answered,
    Verb.SNOOZE: bedside.paused,
    Verb.LIMITS: bedside.limited,
    Verb.VITALS: bedside.looked_back,
    Verb.ENTER: bedside.entered,
    Verb.ALARMS: bedside.listed,
}
_ASKED: Final = {
    Verb.ACKNOWLEDGE: Action.ACKNOWLEDGE,
    Verb.SNOOZE: Action.SNOOZE,
    Verb.VITALS: Action.VITALS_SHOW,
    Verb.ENTER: Action.SIGNS_ENTER,
    Verb.ALARMS: Action.ALARMS_SHOW,
}
_OF_LIMITS: Final = {
    Subject.SHOW: Action.LIMITS_SHOW,
    Subject.SET: Action.LIMIT_SET,
    Subject.RESET: Action.LIMIT_RESET,
}

# What follows the verbs about a consultation.
_RECEIVED: Final[Mapping[Verb, Callable[[str], Reception]]] = {
    Verb.CONSULTATION: reception.opened,
    Verb.MONITOR: reception.put_on,
    Verb.LANGUAGE: reception.spoken,
    Verb.SIGN: reception.signed,
}
_WISHED: Final = {
    Wish.OPEN: Action.CONSULTATION_OPEN,
    Wish.SHOW: Action.CONSULTATIONS_SHOW,
    Wish.PUT_ON: Action.MONITOR_LINK,
    Wish.TAKE_OFF: Action.MONITOR_UNLINK,
    Wish.SPEAK: Action.LANGUAGE,
    Wish.SIGN: Action.SIGN,
}

# The verb alone.
_ALONE: Final = {
    Verb.DUTY: Action.DUTY_SHOW,
    Verb.DRILL: Action.DRILL_START,
    Verb.HERE: Action.DRILL_ANSWER,
    Verb.CALL: Action.CALL,
    Verb.ADMIT: Action.ADMIT,
    Verb.END: Action.END_ASK,
    Verb.HELP: Action.HELP,
}

# What may follow "despite".
_ALARM_WORDS: Final = frozenset({"alarme", "alarmes", "lalarme", "alarm", "alarms"})
_ARTICLES: Final = frozenset({"l", "la", "les", "the"})

# Of verbs that name somebody, the action whose line shows how.
_NAMING: Final = {
    Verb.HANDOVER: Action.HANDOVER_OFFER,
    Verb.IDENTITY: Action.IDENTITY_ACCEPT,
    Verb.INVITE: Action.INVITE,
    Verb.REMOVE: Action.REMOVE,
}

# The lines to type are part of the grammar, not of the translations.
_USAGE: Final[Mapping[Language, Mapping[Action, str]]] = {
    Language.FRENCH: {
        Action.DUTY_SHOW: "!garde",
        Action.DUTY_TAKE: "!garde prendre",
        Action.DUTY_LEAVE: "!garde quitter",
        Action.HANDOVER_OFFER: "!relève @nom",
        Action.HANDOVER_ACCEPT: "!relève accepter",
        Action.HANDOVER_DECLINE: "!relève refuser",
        Action.HANDOVER_CANCEL: "!relève annuler",
        Action.DRILL_START: "!test",
        Action.DRILL_ANSWER: "!présent",
        Action.IDENTITY_ACCEPT: "!identité accepter @nom K7QF-2MZT",
        Action.ACKNOWLEDGE: "!vu",
        Action.SNOOZE: "!pause spo2 10m",
        Action.ALARMS_SHOW: "!alarmes",
        Action.LIMITS_SHOW: "!seuils",
        Action.LIMIT_SET: "!seuils spo2 < 88 raison",
        Action.LIMIT_RESET: "!seuils spo2 normal",
        Action.VITALS_SHOW: "!constantes 6h",
        Action.SIGNS_ENTER: "!mesure fr 18 conscience A o2 non",
        Action.CONSULTATION_OPEN: "!consultation A.D. lit 4 dossier 12345",
        Action.CONSULTATIONS_SHOW: "!consultations",
        Action.INVITE: "!inviter @nom",
        Action.REMOVE: "!retirer @nom",
        Action.MONITOR_LINK: "!moniteur A4CF12F03B7E",
        Action.MONITOR_UNLINK: "!moniteur retirer",
        Action.CALL: "!appel",
        Action.LANGUAGE: "!langue en",
        Action.ADMIT: "!admettre",
        Action.END_ASK: "!terminer",
        Action.END: "!terminer oui",
        Action.END_DESPITE_ALARM: "!terminer malgré alarme",
        Action.SIGN: "!signer",
        Action.HELP: "!aide",
    },
    Language.ENGLISH: {
        Action.DUTY_SHOW: "!duty",
        Action.DUTY_TAKE: "!duty take",
        Action.DUTY_LEAVE: "!duty leave",
        Action.HANDOVER_OFFER: "!handover @name",
        Action.HANDOVER_ACCEPT: "!handover accept",
        Action.HANDOVER_DECLINE: "!handover decline",
        Action.HANDOVER_CANCEL: "!handover cancel",
        Action.DRILL_START: "!test",
        Action.DRILL_ANSWER: "!here",
        Action.IDENTITY_ACCEPT: "!identity accept @name K7QF-2MZT",
        Action.ACKNOWLEDGE: "!ack",
        Action.SNOOZE: "!snooze spo2 10m",
        Action.ALARMS_SHOW: "!alarms",
        Action.LIMITS_SHOW: "!limits",
        Action.LIMIT_SET: "!limits spo2 < 88 reason",
        Action.LIMIT_RESET: "!limits spo2 usual",
        Action.VITALS_SHOW: "!vitals 6h",
        Action.SIGNS_ENTER: "!enter rr 18 avpu A o2 no",
        Action.CONSULTATION_OPEN: "!consultation A.D. bed 4 record 12345",
        Action.CONSULTATIONS_SHOW: "!consultations",
        Action.INVITE: "!invite @name",
        Action.REMOVE: "!remove @name",
        Action.MONITOR_LINK: "!monitor A4CF12F03B7E",
        Action.MONITOR_UNLINK: "!monitor remove",
        Action.CALL: "!call",
        Action.LANGUAGE: "!language fr",
        Action.ADMIT: "!admit",
        Action.END_ASK: "!end",
        Action.END: "!end yes",
        Action.END_DESPITE_ALARM: "!end despite alarm",
        Action.SIGN: "!sign",
        Action.HELP: "!help",
    },
}

# Matrix specification 1.16, appendix "User identifiers". New local parts have the first set of
# characters; "historical" ones have any printable ASCII but the colon, and may be met for ever.
_LOCALPART: Final = re.compile(r"[a-z0-9._=/+-]+")
_SERVER: Final = r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9.-]+)(?::[0-9]{1,5})?"
_MXID: Final = re.compile(rf"@[!-9;-~]+:{_SERVER}")
_MXID_INSIDE: Final = re.compile(rf"@[^\s:@]+:{_SERVER}")

_DASH: Final = "\N{EN DASH}"
_LOOKS_LIKE: Final = str.maketrans("OIL", "011")  # Crockford's base32 reads them so
_CODE_ALPHABET: Final = frozenset("0123456789ABCDEFGHJKMNPQRSTVWXYZ")


def parse(
    body: str, *, language: Language, mentions: Sequence[str] = (), reply: bool = False
) -> Command | None:
    """Understand a message, or say how to type it.

    Args:
        body: the plain text of the message, of any length.
        language: of the room; that of the answer where the verb is in both languages.
        mentions: user ids of ``m.mentions``. One that was picked from the client's list stands in
            the body as a display name, which may be anything.
        reply: the message answers another one (``m.in_reply_to``). Clients then add the author of
            that message to the mentions, so mentions no longer tell who was picked. A reply that
            quotes in its body is noticed without this.

    Returns:
        The command, or ``None`` when the message is none: it does not begin with ``!``, or its
        first word is not near any verb.

    Raises:
        CommandError: it means to be a command and is none. Nothing else is ever raised.
    """
    if len(body) > MAX_BODY:
        return None
    text, quoted = _without_quote(body)
    first, *more = text.splitlines() or [""]
    line = _after_mark(first[: MAX_LINE + 1])
    if line is None:
        return None
    word = re.split(r"[\s@]", line, maxsplit=1)[0]  # "!relève@awa" is clear enough
    verb_word = folded(word)
    if not verb_word or verb_word in _PROSE or len(word) > _MAX_WORD:
        return None
    if verb_word not in _VERBS:
        near = get_close_matches(verb_word, _VERBS, n=1, cutoff=0.8)
        if near:
            raise _unknown_verb(near[0], language)
        return None
    verb, own = _VERBS[verb_word]
    typed = _Line(verb, line[len(word) :], own or language, tuple(mentions), reply or quoted)
    if len(first) > MAX_LINE:
        raise typed.too_long()
    if more:
        raise typed.more_lines()
    return typed.command()


def usage(action: Action, language: Language) -> str:
    """The line that asks for an action, e.g. ``!relève @nom``."""
    return _USAGE[language][action]


def usage_in_ward(action: Action, language: Language, bed: str = "4") -> str:
    """The same in a ward's room, where the bed must be named: ``!vu lit 4``."""
    if action not in AT_BEDSIDE or action is Action.ALARMS_SHOW:
        return usage(action, language)
    word = "lit" if language is Language.FRENCH else "bed"
    return f"{usage(action, language)} {word} {bed}"


def same_name(one: str, other: str) -> bool:
    """Whether two names differ in case, accents, blanks and marks around words at most."""
    return [folded(word) for word in one.split()] == [folded(word) for word in other.split()]


def help_text(language: Language, actions: Collection[Action] = tuple(Action)) -> str:
    """The lines that can be typed, one per line of text: the line first, then what it does.

    Args:
        language: of the text.
        actions: those that can be asked for where the text is read.
    """
    _ = translator(language).gettext
    meanings = {
        Action.DUTY_SHOW: _("who is on duty, in the order in which they are called"),
        Action.DUTY_TAKE: _("take duty"),
        Action.DUTY_LEAVE: _("leave duty"),
        Action.HANDOVER_OFFER: _("offer my duty to somebody"),
        Action.HANDOVER_ACCEPT: _("accept the duty offered to me"),
        Action.HANDOVER_DECLINE: _("decline the duty offered to me"),
        Action.HANDOVER_CANCEL: _("take back my offer"),
        Action.DRILL_START: _("drill at the start of a shift: rings on every channel"),
        Action.DRILL_ANSWER: _("answer a drill"),
        Action.IDENTITY_ACCEPT: _(
            "accept the new keys of somebody, after asking this person by voice"
        ),
        Action.ACKNOWLEDGE: _(
            "I take care: all open alarms of the patient, or !ack spo2; quicker: react with ✅ to"
            " the alarm, any other reaction does not count"
        ),
        Action.SNOOZE: _("no message about one sign for at most 10 minutes, unless it gets worse"),
        Action.ALARMS_SHOW: _("open alarms"),
        Action.LIMITS_SHOW: _("the limits of the patient"),
        Action.LIMIT_SET: _(
            "a limit for this patient alone, until the handover (add keep: for 7 days); doctors"
        ),
        Action.LIMIT_RESET: _("back to the usual limit; doctors"),
        Action.VITALS_SHOW: _("the last hours as table and chart"),
        Action.SIGNS_ENTER: _("what no monitor measures: respiration, consciousness, oxygen"),
        Action.CONSULTATION_OPEN: _(
            "open a patient's consultation; may be followed by monitor A4CF12F03B7E and by patient"
            " @account:server"
        ),
        Action.CONSULTATIONS_SHOW: _("the open consultations of the ward"),
        Action.INVITE: _(
            "bring in a colleague, here or of a partner hospital; add observer, interpreter or"
            " companion for anybody else"
        ),
        Action.REMOVE: _("somebody leaves the consultation"),
        Action.MONITOR_LINK: _(
            "the patient wears this monitor: its code, or the last four digits of it"
        ),
        Action.MONITOR_UNLINK: _("the patient wears the monitor no more"),
        Action.CALL: _("how to call here; puts the call in place where there is one for groups"),
        Action.LANGUAGE: _("in which language FAJMA speaks here"),
        Action.ADMIT: _("let the patient in who waits"),
        Action.END_ASK: _("end the consultation; says first what that does"),
        Action.END: _("yes, end it; within 5 minutes of the question"),
        Action.END_DESPITE_ALARM: _("the same while an alarm is open that nobody took"),
        Action.SIGN: _("sign the summary of the consultation that has ended"),
        Action.HELP: _("this help"),
    }
    return "\n".join(
        f"{usage(action, language)} {_DASH} {said}"
        for action, said in meanings.items()
        if action in actions
    )


@dataclass(frozen=True, slots=True)
class _Line:
    """A command line whose verb is known.

    Attributes:
        verb: its first word.
        rest: all after it, as typed: an account must not be made out of characters like its own.
        language: of the answer.
        mentions: as given to ``parse``.
        reply: the mentions may hold somebody who was not picked.
    """

    verb: Verb
    rest: str
    language: Language
    mentions: tuple[str, ...]
    reply: bool

    def command(self) -> Command:  # noqa: PLR0911 - one for each kind of verb
        words = words_of(self.rest)
        if self.verb is Verb.HELP:  # whoever asks for help gets it, whatever else the line holds
            return Command(Action.HELP, self.language)
        if self.verb in _READERS:
            return self._about_patient()
        if self.verb in _RECEIVED:
            return self._about_consultation()
        if self.verb in (Verb.INVITE, Verb.REMOVE):
            return self._seat()
        second = folded(words[0]) if words and not words[0].startswith("@") else ""
        action = _WORDS[self.verb].get(second)
        if self.verb is Verb.IDENTITY:
            return self._identity(action)
        if self.verb is Verb.HANDOVER:
            return self._handover(action, words, second)
        if action is Action.END_DESPITE_ALARM:
            words = [words[0]] if _is_of_alarm(words[1:]) else [*words, ""]
        if not words and self.verb in _ALONE:
            return Command(_ALONE[self.verb], self.language)
        if action is not None and len(words) == 1:
            return Command(action, self.language)
        raise self._wrong_words(second)

    def _about_patient(self) -> Command:
        try:
            about = _READERS[self.verb](self.rest)
        except UnclearError as error:
            raise self._unclear(error.problem) from None
        action = _ASKED.get(self.verb) or _OF_LIMITS[about.subject]
        return Command(action, self.language, about=about)

    def _about_consultation(self) -> Command:
        try:
            received = _RECEIVED[self.verb](self.rest)
        except UnclearError as error:
            raise self._unclear(error.problem) from None
        return Command(_WISHED[received.wish], self.language, reception=received)

    def _seat(self) -> Command:
        """Who comes in as what, or leaves."""
        if self.verb is Verb.REMOVE:
            return Command(Action.REMOVE, self.language, self._person(self.rest))
        written, seat = reception.seated(self.rest)
        received = Reception(Wish.INVITE, seat=seat)
        return Command(Action.INVITE, self.language, self._person(written), reception=received)

    def _unclear(self, problem: StrEnum) -> CommandError:
        _ = translator(self.language).gettext
        said: dict[StrEnum, str] = {
            bedside.Problem.WORDS: _("Nothing was done: these words are no command. Type:"),
            bedside.Problem.BED_TWICE: _("Nothing was done: name one bed, first or last. Type:"),
            bedside.Problem.SIGN_MISSING: _(
                "Nothing was done: name the sign: hr, spo2, temp, bp (systolic) or dia. Type:"
            ),
            bedside.Problem.TIME_UNCLEAR: _(
                "Nothing was done: for how long? Write 10m or 6h. Type:"
            ),
            bedside.Problem.COMPARISON: _("Nothing was done: write only < or >. Type:"),
            bedside.Problem.THRESHOLD: _("Nothing was done: write the limit as a number. Type:"),
            bedside.Problem.REASON_MISSING: _(
                "Nothing was done: say why, for who takes over. The reason follows the limit:"
            ),
            bedside.Problem.NOTHING_ENTERED: _("Nothing was done: say what you have seen. Type:"),
            reception.Problem.INITIALS: _(
                "Nothing was done: begin with the patient's initials, 1 to 4 letters, as A.D.; no"
                " name. Type:"
            ),
            reception.Problem.BED: _("Nothing was done: say which bed, in one word. Type:"),
            reception.Problem.RECORD: _(
                "Nothing was done: say the record number, in one word of plain letters and digits."
                " Type:"
            ),
            reception.Problem.MONITOR: _(
                "Nothing was done: a monitor's code has 12 digits from 0 to 9 and A to F, as on its"
                " label; the last four are enough where no other ends so. Type:"
            ),
            reception.Problem.PATIENT: _(
                "Nothing was done: write the patient's whole account, as @name:server. Type:"
            ),
            reception.Problem.LANGUAGE: _("Nothing was done: FAJMA speaks fr and en. Type:"),
            reception.Problem.TWICE: _("Nothing was done: this is said twice. Type:"),
        }
        return self._error(problem.value, said[problem])

    def _handover(self, action: Action | None, words: list[str], second: str) -> Command:
        if action is None:
            if not self.mentions and len(words) == 1 and self._near(second):
                raise self._wrong_words(second)  # a person of that name is written with an @
            return Command(Action.HANDOVER_OFFER, self.language, self._person(self.rest))
        # Somebody whose display name is "accepter" may have been picked, which would be an offer.
        # The one mention of a reply is the author of what it answers, which is no pick.
        if self.mentions and (not self.reply or len(set(self.mentions)) > 1):
            raise self._ambiguous_word(action)
        if len(words) > 1:
            raise self._wrong_words(second)
        return Command(action, self.language)

    def _identity(self, action: Action | None) -> Command:
        if action is None:
            raise self._wrong_words("")
        rest = self.rest.lstrip()[len(self.rest.split()[0]) :]
        before, code = _code_at_end(rest)
        if code is None:
            _ = translator(self.language).gettext
            raise self._error(
                "code_missing",
                _(
                    "The line must end with the code of 8 characters of FAJMA's message about the"
                    " new keys. First ask the person by voice:"
                ),
                action,
            )
        return Command(action, self.language, self._person(before), code)

    def _person(self, text: str) -> Person:
        """Whom the text, or the client's list, names.

        Raises:
            CommandError: nobody, several, or somebody who cannot be told for certain.
        """
        written = trimmed(text)
        picked = tuple(dict.fromkeys(self.mentions))
        if not picked:
            return self._written(written)
        _ = translator(self.language).gettext
        if self.reply:
            raise self._person_error(
                "person_in_reply",
                _("Write this as a new message, not as a reply, so that the person is clear:"),
            )
        if len(picked) > 1:
            raise self._person_error("person_several", _("Name one person only:"))
        (mxid,) = picked
        if not _is_mxid(mxid):
            raise self._person_error(
                "person_unusable",
                _("The account that was picked is no valid one. Write the account with an @:"),
            )
        named = [trimmed(found) for found in _MXID_INSIDE.findall(written)]
        if written.startswith("@") and _LOCALPART.fullmatch(written[1:].lower()):
            named.append(f"{written}:{mxid.partition(':')[2]}")
        if any(name.lower() != mxid.lower() for name in named):
            raise self._person_error(
                "person_differs",
                _("The account written and the person picked differ. Name one person only:"),
            )
        return Person(mxid=mxid, shown=None if named else written)

    def _written(self, written: str) -> Person:
        """The person of an account that was typed."""
        _ = translator(self.language).gettext
        account = re.sub(r"^@\s+", "@", written)  # some keyboards put a blank after the sign
        if not folded(account):  # nothing, the sign alone, a picture
            raise self._person_error(
                "person_missing",
                _("Name the person: write the account with an @, or pick it from the list:"),
            )
        one_word = len(account.split()) == 1
        if one_word and not account.isascii():
            raise self._person_error(
                "person_not_ascii",
                _(
                    "An account has only plain letters from a to z, without accents; another "
                    "letter may look the same. Write the account with an @, or pick it from the "
                    "list:"
                ),
            )
        # Phones write a capital first. Who has one in an old account is picked from the list.
        account = account.lower()
        if one_word and len(account) <= _MAX_MXID:
            if _is_mxid(account):
                return Person(mxid=account)
            if _LOCALPART.fullmatch(account.removeprefix("@")):
                return Person(localpart=account.removeprefix("@"))
        raise self._person_error(
            "person_unclear",
            _("A name does not say who is meant. Write the account with an @, or pick it from "
              "the list:"),
        )  # fmt: skip

    def too_long(self) -> CommandError:
        _ = translator(self.language).gettext
        return self._error("command_too_long", _("This line is too long. Type only:"))

    def more_lines(self) -> CommandError:
        _ = translator(self.language).gettext
        return self._error(
            "command_lines", _("Nothing was done: write one command, alone in the message:")
        )

    def _wrong_words(self, second: str) -> CommandError:
        _ = translator(self.language).gettext
        near = self._near(second)
        shown = [_WORDS[self.verb][near]] if near else []
        if near and self.verb is Verb.HANDOVER:
            shown.append(Action.HANDOVER_OFFER)
        return self._error(
            "command_words", _("Nothing was done: these words are no command. Type:"), *shown
        )

    def _ambiguous_word(self, action: Action) -> CommandError:
        _ = translator(self.language).gettext
        return self._error(
            "person_several",
            _("Nothing was done: somebody was picked from the list too. Type one of:"),
            action,
            Action.HANDOVER_OFFER,
        )

    def _person_error(self, code: str, sentence: str) -> CommandError:
        return self._error(code, sentence, _NAMING[self.verb])

    def _error(self, code: str, sentence: str, *actions: Action) -> CommandError:
        """A sentence, then the lines to type; all of the verb where none is chosen."""
        chosen = actions or [action for action in Action if action.verb is self.verb]
        return CommandError(sentence, *chosen, language=self.language, code=code, verb=self.verb)

    def _near(self, second: str) -> str | None:
        """The word of the verb that was probably meant; short ones are too like names."""
        long_ones = [word for word in _WORDS[self.verb] if len(word) > 4]  # noqa: PLR2004
        found = get_close_matches(second[:_MAX_WORD], long_ones, n=1, cutoff=0.8)
        return found[0] if found else None


def _is_of_alarm(words: Sequence[str]) -> bool:
    """Whether what follows "despite" is the alarm."""
    said = [word for word in map(folded, words) if word not in _ARTICLES]
    return len(said) == 1 and re.sub(r"\W", "", said[0]) in _ALARM_WORDS


def _unknown_verb(near: str, room: Language) -> CommandError:
    verb, own = _VERBS[near]
    language = own or room
    _ = translator(language).gettext
    meant = next(action for action in Action if action.verb is verb)
    sentence = _("This is no command. Type {help} to see them all. Did you mean:").format(
        help=usage(Action.HELP, language)
    )
    return CommandError(sentence, meant, language=language, code="command_unknown", verb=verb)


def _without_quote(body: str) -> tuple[str, bool]:
    """The text without what a reply quotes before it, and whether it quoted anything.

    "Rich replies" of the Matrix specification up to 1.12: every quoted line begins with ``> ``.
    Clients may still send them.
    """
    lines = body.split("\n")
    quote = 0
    while quote < len(lines) and (lines[quote].startswith("> ") or lines[quote].strip() == ">"):
        quote += 1
    return trimmed_blanks("\n".join(lines[quote:])), quote > 0


def _after_mark(line: str) -> str | None:
    """What follows the mark or marks; ``None`` when the line does not begin with one."""
    if not line or not _is_mark(line[0]):
        return None
    start = next(
        (at for at, c in enumerate(line) if not (_is_mark(c) or is_blank(c))),
        len(line),
    )
    return line[start:]


def _is_mark(character: str) -> bool:
    # Compatibility forms: the full-width mark, the double mark.
    return set(unicodedata.normalize("NFKC", character)) == {"!"}


def _is_mxid(text: str) -> bool:
    return len(text) <= _MAX_MXID and _MXID.fullmatch(text) is not None


def _code_at_end(text: str) -> tuple[str, str | None]:
    """Split off the code: what stands before it, and the code in its one spelling.

    Case, hyphen, blanks and the letters that look like digits are forgiven; a character too few or
    too many is not, for then the code would take from the name before it.
    """
    tail = trimmed(text)
    found: list[str] = []
    at = len(tail)
    while at > 0 and len(found) < CODE_LENGTH:
        at -= 1
        character = tail[at]
        if is_blank(character) or unicodedata.category(character) == "Pd":
            continue
        plain = unicodedata.normalize("NFKC", character).upper().translate(_LOOKS_LIKE)
        if plain not in _CODE_ALPHABET:
            return text, None
        found.append(plain)
    apart = at == 0 or is_blank(tail[at - 1]) or is_quote(tail[at - 1])
    if len(found) < CODE_LENGTH or not apart:
        return text, None
    code = "".join(reversed(found))
    half = CODE_LENGTH // 2
    return tail[:at], f"{code[:half]}-{code[half:]}"
