"""What is typed about a consultation, after the verb: for whom, who else, which monitor. Pure.

The verb was read by ``fajma.commands``; the rules are the same: strict in meaning, forgiving in
writing. Nothing is guessed: a record opened under a number with a slip of the finger, or a monitor
linked to the wrong patient, is worse than a line typed twice. The words of both languages are
understood after either verb.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fajma.language import Language, hides_something
from fajma.life import ParticipantRole
from fajma.typed import UnclearError, folded, trimmed


class Problem(StrEnum):
    """Why a line is none; the value is stable and may be logged."""

    WORDS = "command_words"
    INITIALS = "initials_unclear"
    BED = "bed_unclear"
    RECORD = "record_unclear"
    MONITOR = "monitor_unclear"
    PATIENT = "patient_unclear"
    LANGUAGE = "language_unclear"
    TWICE = "said_twice"


class Wish(StrEnum):
    """What a line is about, where one verb does several things."""

    OPEN = "open"
    SHOW = "show"
    INVITE = "invite"
    PUT_ON = "put_on"
    TAKE_OFF = "take_off"
    SPEAK = "speak"
    SIGN = "sign"


@dataclass(frozen=True, slots=True)
class Reception:
    """What a line says about a consultation; what it does not say is ``None``.

    Attributes:
        wish: what it is about.
        initials: of the patient, as ``A.D.``.
        bed: its label as typed.
        record: the hospital's record number, in printable ASCII.
        monitor: its code, twelve upper-case hex digits, or the last four of them.
        patient: Matrix user id of the patient.
        seat: as what somebody is invited.
        language: of the room, from now on.
        consultation: its short name, as in the name of its room: four upper-case hex digits.
    """

    wish: Wish
    initials: str | None = None
    bed: str | None = None
    record: str | None = None
    monitor: str | None = None
    patient: str | None = None
    seat: ParticipantRole | None = None
    language: Language | None = None
    consultation: str | None = None


CODE_DIGITS: Final = 12
"""Of a whole code: a MAC address."""

LAST_DIGITS: Final = 4
"""Of a code that is shortened to its end."""

MAX_INITIALS: Final = 4
"""Letters; more would be a name."""

MAX_LABEL: Final = 32
"""Longest bed or record number that is typed, in characters. FAJMA default."""

# All words as ``folded`` leaves them.

_PARTS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("lit", "bed"), "bed"),
    **dict.fromkeys(("dossier", "record"), "record"),
    **dict.fromkeys(("moniteur", "monitor"), "monitor"),
    "patient": "patient",
    "patiente": "patient",
}
_NUMBER_SIGNS: Final = frozenset({"n", "no", "numero", "number"})
_CODE_SIGNS: Final = frozenset({"code"})
_OFF: Final = frozenset({"retirer", "retire", "enlever", "remove", "off", "unlink"})
_SEATS: Final[Mapping[str, ParticipantRole]] = {
    **dict.fromkeys(("observateur", "observatrice", "observer"), ParticipantRole.OBSERVER),
    **dict.fromkeys(("interprete", "interpreter"), ParticipantRole.INTERPRETER),
    **dict.fromkeys(("accompagnant", "accompagnante", "companion"), ParticipantRole.COMPANION),
}
_LANGUAGES: Final[Mapping[str, Language]] = {
    **dict.fromkeys(("fr", "francais", "french"), Language.FRENCH),
    **dict.fromkeys(("en", "anglais", "english"), Language.ENGLISH),
}
_INITIALS_MARKS: Final = frozenset(". -")
_CODE: Final = re.compile(rf"[0-9A-F]{{{LAST_DIGITS}}}|[0-9A-F]{{{CODE_DIGITS}}}")
_SHORT_NAME: Final = re.compile("[0-9A-F]{4}")
# Matrix specification 1.16, appendix "User identifiers": what new accounts are made of.
_ACCOUNT: Final = re.compile(
    r"@[a-z0-9._=/+-]+:(?:\[[0-9a-f:.]{2,45}\]|[a-z0-9.-]+)(?::[0-9]{1,5})?"
)
_MAX_ACCOUNT: Final = 255


def opened(rest: str) -> Reception:
    """``!consultation``: initials first, then each part after its word, in any order.

    Alone it asks for the open ones.

    Raises:
        UnclearError: something needed is missing, said twice, or cannot be.
    """
    words = rest.split()
    if not any(map(folded, words)):
        return Reception(Wish.SHOW)
    parts: dict[str, list[str]] = {}
    here = parts.setdefault("initials", [])
    for word in words:
        part = _PARTS.get(folded(word))
        if part is None:
            here.append(word)
        elif part in parts:
            raise UnclearError(Problem.TWICE)
        else:
            here = parts.setdefault(part, [])
    monitor, patient = parts.get("monitor"), parts.get("patient")
    return Reception(
        Wish.OPEN,
        initials=_initials(" ".join(parts["initials"])),
        bed=_label(parts.get("bed", []), Problem.BED),
        record=_record(parts.get("record", [])),
        monitor=None if monitor is None else _code(monitor),
        patient=None if patient is None else _account(patient),
    )


def put_on(rest: str) -> Reception:
    """``!moniteur``: a code, or the word to take it off with or without one.

    Raises:
        UnclearError: no code, or one that cannot be.
    """
    words = rest.split()
    off = next((at for at, word in enumerate(words) if folded(word) in _OFF), None)
    if off is not None:
        del words[off]
    if off is not None and not any(map(folded, words)):
        return Reception(Wish.TAKE_OFF)
    return Reception(Wish.PUT_ON if off is None else Wish.TAKE_OFF, monitor=_code(words))


def spoken(rest: str) -> Reception:
    """``!langue``: one language.

    Raises:
        UnclearError: none that we speak.
    """
    language = _LANGUAGES.get(folded("".join(rest.split())))
    if language is None:
        raise UnclearError(Problem.LANGUAGE)
    return Reception(Wish.SPEAK, language=language)


def signed(rest: str) -> Reception:
    """``!signer``: perhaps which consultation, by its short name.

    Raises:
        UnclearError: the words are none.
    """
    words = [word for word in map(trimmed, rest.split()) if folded(word)]
    if words and folded(words[0]) == "consultation":
        words = words[1:]
    if not words:
        return Reception(Wish.SIGN)
    name = unicodedata.normalize("NFKC", words[0]).upper()
    if len(words) > 1 or not _SHORT_NAME.fullmatch(name):
        raise UnclearError(Problem.WORDS)
    return Reception(Wish.SIGN, consultation=name)


def seated(rest: str) -> tuple[str, ParticipantRole]:
    """``!inviter``: who, and perhaps as what, which is the last word.

    Returns:
        What names the person, as typed, and as what: a clinician where nothing is said.
    """
    written = trimmed(rest)
    last = written.split()[-1] if written.split() else ""
    seat = None if last.startswith("@") else _SEATS.get(folded(last))
    if seat is None:
        return rest, ParticipantRole.CLINICIAN
    return written[: -len(last)], seat


# --- parts of a line ------------------------------------------------------------------------------


def _initials(text: str) -> str:
    """One to four letters, however they are set apart."""
    plain = unicodedata.normalize("NFC", trimmed(text))
    letters = [one for one in plain if one.isalpha()]
    if not 1 <= len(letters) <= MAX_INITIALS or not all(
        one.isalpha() or one in _INITIALS_MARKS or one.isspace() for one in plain
    ):
        raise UnclearError(Problem.INITIALS)
    return "".join(f"{one.upper()}." for one in letters)


def _label(words: list[str], problem: Problem) -> str:
    """One word, as typed."""
    label = unicodedata.normalize("NFC", trimmed(" ".join(words)))
    if len(label.split()) != 1 or hides_something(label) or len(label) > MAX_LABEL:
        raise UnclearError(problem)
    return label


def _record(words: list[str]) -> str:
    """One word of printable ASCII: another letter may look the same and is another patient."""
    if len(words) > 1 and folded(words[0]) in _NUMBER_SIGNS:
        words = words[1:]
    number = unicodedata.normalize("NFKC", _label(words, Problem.RECORD))
    if not number.isascii():
        raise UnclearError(Problem.RECORD)
    return number


def _code(words: list[str]) -> str:
    """A monitor's code, or its end; blanks, colons and hyphens do not count."""
    if words and folded(words[0]) in _CODE_SIGNS:
        words = words[1:]
    typed = unicodedata.normalize("NFKC", trimmed(" ".join(words))).upper()
    digits = "".join(
        one
        for one in typed
        if not (one.isspace() or one == ":" or unicodedata.category(one) in ("Pd", "Cf"))
    )
    if not _CODE.fullmatch(digits):
        raise UnclearError(Problem.MONITOR)
    return digits


def _account(words: list[str]) -> str:
    """A whole Matrix user id: what is picked from a list does not say for certain who is meant."""
    account = trimmed(" ".join(words)).lower()
    if not _ACCOUNT.fullmatch(account) or len(account) > _MAX_ACCOUNT:
        raise UnclearError(Problem.PATIENT)
    return account
