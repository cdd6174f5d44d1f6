"""What is typed about one patient, after the verb: which bed, which sign, how long, how much. Pure.

The verb was read by ``fajma.commands``. The rules here are the same: strict in meaning, forgiving
in writing. A word that could mean something else makes the whole line an error, for a pause of the
wrong alarm or a limit for the wrong patient is worse than a line typed twice.

The bed stands first or last, as ``lit 4``, ``bed 4`` or ``lit Réa 2``. The words of both languages
are understood after either verb.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Final

from fajma.facts import Consciousness
from fajma.typed import UnclearError, folded, trimmed
from fajma.vitals import Kind


class Problem(StrEnum):
    """Why a line is none; the value is stable and may be logged."""

    WORDS = "command_words"
    BED_TWICE = "bed_twice"
    SIGN_MISSING = "sign_missing"
    TIME_UNCLEAR = "time_unclear"
    COMPARISON = "comparison"
    THRESHOLD = "threshold"
    REASON_MISSING = "reason_missing"
    NOTHING_ENTERED = "nothing_entered"


class Subject(StrEnum):
    """What a line is about, where one verb does several things."""

    SHOW = "show"
    SET = "set"
    RESET = "reset"


@dataclass(frozen=True, slots=True)
class Bedside:
    """What a line says about a patient; what it does not say is ``None``.

    Attributes:
        bed: the bed as typed; the caller looks for it.
        kind: the sign.
        sensor: whether it is about alarms of the monitor, not of a sign.
        direction: ``low`` or ``high``.
        lasts: for how long; at least a minute.
        subject: of a line about limits.
        threshold: in the unit of the kind, at most one decimal.
        reason: in the typist's words, at most ``MAX_REASON`` characters.
        kept: whether the limit outlives a handover.
        respiration: breaths, /min, 0 to ``MAX_RESPIRATION``.
        consciousness: ACVPU.
        oxygen: whether the patient gets supplemental oxygen.
    """

    bed: str | None = None
    kind: Kind | None = None
    sensor: bool = False
    direction: str | None = None
    lasts: timedelta | None = None
    subject: Subject = Subject.SHOW
    threshold: Decimal | None = None
    reason: str = ""
    kept: bool = False
    respiration: int | None = None
    consciousness: Consciousness | None = None
    oxygen: bool | None = None


MAX_REASON: Final = 200
"""Longest reason that is kept, in characters."""

MAX_RESPIRATION: Final = 80
"""Breaths, /min. FAJMA default: more is a slip of the finger, also for a newborn."""

# All words as ``folded`` leaves them.

_BED: Final = frozenset({"lit", "bed"})
_KINDS: Final[Mapping[str, Kind]] = {
    **dict.fromkeys(("fc", "hr", "pouls", "pulse"), Kind.HEART_RATE),
    **dict.fromkeys(("spo2", "sat", "sao2", "saturation"), Kind.SPO2),
    **dict.fromkeys(("temp", "temperature"), Kind.TEMPERATURE),
    # Not "pas" for systolic pressure: it also means "not".
    **dict.fromkeys(("ta", "tas", "bp", "sbp", "sys", "systolic", "systolique"), Kind.SYSTOLIC),
    **dict.fromkeys(("tad", "dbp", "dia", "diastolic", "diastolique"), Kind.DIASTOLIC),
}
_SENSOR: Final = frozenset({"capteur", "sensor", "technique", "technical"})
_DIRECTIONS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("<", "bas", "basse", "low"), "low"),
    **dict.fromkeys((">", "haut", "haute", "high"), "high"),
}
_USUAL: Final = frozenset({"normal", "normale", "habituel", "usual", "default", "defaut"})
_KEEP: Final = frozenset({"garder", "keep"})
_RESPIRATION: Final = frozenset({"fr", "rr", "resp", "respiration"})
_CONSCIOUSNESS: Final = frozenset({"conscience", "consciousness", "acvpu", "avpu"})
_OXYGEN: Final = frozenset({"o2", "oxygene", "oxygen"})
_LEVELS: Final[Mapping[str, Consciousness]] = {
    **dict.fromkeys(("a", "alerte", "alert"), Consciousness.ALERT),
    **dict.fromkeys(("c", "confus", "confuse", "confused"), Consciousness.CONFUSED),
    **dict.fromkeys(("v", "voix", "voice"), Consciousness.VOICE),
    **dict.fromkeys(("p", "d", "douleur", "pain"), Consciousness.PAIN),
    **dict.fromkeys(("u", "unresponsive", "areactif", "areactive"), Consciousness.UNRESPONSIVE),
}
_YES_NO: Final[Mapping[str, bool]] = {
    **dict.fromkeys(("oui", "yes"), True),
    **dict.fromkeys(("non", "no", "air"), False),
}
_UNITS: Final = frozenset({"%", "/min", "bpm", "c", "°c", "°", "mmhg"})

_TWO_WORDS: Final = re.compile(r"[^\s0-9]+ [0-9]{1,4}|[0-9]{1,4} [^\W\d_]")
"""A bed with a blank that takes no sign, side or time from the words after it."""
_DURATION: Final = re.compile(r"([0-9]{1,4})(m|mn|min|mins|minutes?|h|heures?|hours?)?")
_NUMBER: Final = re.compile(r"([0-9]{1,3})(?:[.,]([0-9]))?(%|/min|bpm|°?c|°|mmhg)?")
_WHOLE: Final = re.compile(r"([0-9]{1,2})(/min)?")
_COMPARISON: Final = re.compile(r"\s*([<>≤≥=]+)\s*")


# --- one function for each verb -------------------------------------------------------------------


def answered(rest: str) -> Bedside:
    """``!vu``: which alarms somebody takes care of; all of the patient if no more is said.

    Raises:
        UnclearError: the words do not belong there.
    """
    told, words = _with_bed(rest)
    if not words:
        return told
    word = folded(words[0])
    if len(words) == 1 and word in _KINDS:
        return replace(told, kind=_KINDS[word])
    if len(words) == 1 and word in _SENSOR:
        return replace(told, sensor=True)
    if len(words) == 1 and told.bed is None and re.search("[0-9]", word):
        return replace(told, bed=words[0])  # "!vu 4" can mean nothing else
    raise UnclearError(Problem.WORDS)


def paused(rest: str) -> Bedside:
    """``!pause``: one sign, perhaps the side, perhaps for how long.

    Raises:
        UnclearError: the words do not belong there.
    """
    told, words = _with_bed(_apart(rest))
    if not words or folded(words[0]) not in _KINDS:
        raise UnclearError(Problem.SIGN_MISSING)
    told = replace(told, kind=_KINDS[folded(words[0])])
    direction, words = _direction(words[1:])
    if not words:
        return replace(told, direction=direction)
    return replace(told, direction=direction, lasts=_duration(words, minutes=True))


def limited(rest: str) -> Bedside:
    """``!seuils``: shows the limits, sets one, or goes back to the usual one.

    Raises:
        UnclearError: the words do not belong there.
    """
    told, words = _with_bed(_apart(rest))
    if not words:
        return told
    if folded(words[0]) not in _KINDS:
        raise UnclearError(Problem.SIGN_MISSING)
    told = replace(told, kind=_KINDS[folded(words[0])])
    direction, words = _direction(words[1:])
    if not words:
        if direction is not None:
            raise UnclearError(Problem.THRESHOLD)
        return told
    told = replace(told, direction=direction)
    if folded(words[0]) in _USUAL:
        if len(words) > 1:
            raise UnclearError(Problem.WORDS)
        return replace(told, subject=Subject.RESET)
    return _with_limit(told, words)


def _with_limit(told: Bedside, words: list[str]) -> Bedside:
    """A number, perhaps its unit, perhaps the word to keep it, and the reason."""
    threshold = _NUMBER.fullmatch(_plain(words[0]))
    if threshold is None:
        raise UnclearError(Problem.THRESHOLD)
    words = words[1:]
    if words and _plain(words[0]) in _UNITS:
        words = words[1:]
    kept = False
    for place in (0, -1):
        if words and not kept and folded(words[place]) in _KEEP:
            kept = True
            del words[place]
    reason = trimmed(" ".join(words))[:MAX_REASON]
    if sum(map(str.isalpha, reason)) < 2:  # noqa: PLR2004 - a mark or a letter is no reason
        raise UnclearError(Problem.REASON_MISSING)
    whole, tenth, _ = threshold.groups()
    return replace(
        told,
        subject=Subject.SET,
        threshold=Decimal(f"{whole}.{tenth}" if tenth else whole),
        reason=reason,
        kept=kept,
    )


def looked_back(rest: str) -> Bedside:
    """``!constantes``: perhaps over how long.

    Raises:
        UnclearError: the words do not belong there.
    """
    told, words = _with_bed(rest)
    return replace(told, lasts=_duration(words, minutes=False)) if words else told


def listed(rest: str) -> Bedside:
    """``!alarmes``: perhaps of which bed.

    Raises:
        UnclearError: the words do not belong there.
    """
    told, words = _with_bed(rest)
    if words:
        raise UnclearError(Problem.WORDS)
    return told


def entered(rest: str) -> Bedside:
    """``!mesure``: pairs of a sign and what was seen, each sign once.

    Raises:
        UnclearError: the words do not belong there.
    """
    told, words = _with_bed(re.sub("[:=]", " ", rest))
    if not words:
        raise UnclearError(Problem.NOTHING_ENTERED)
    respiration: int | None = None
    consciousness: Consciousness | None = None
    oxygen: bool | None = None
    for sign, value in zip(words[::2], words[1::2], strict=False):
        label, seen = folded(sign), folded(value)
        breaths = _WHOLE.fullmatch(_plain(value))
        if label in _RESPIRATION and respiration is None and breaths is not None:
            respiration = int(breaths[1])
        elif label in _CONSCIOUSNESS and consciousness is None and seen in _LEVELS:
            consciousness = _LEVELS[seen]
        elif label in _OXYGEN and oxygen is None and seen in _YES_NO:
            oxygen = _YES_NO[seen]
        else:
            raise UnclearError(Problem.WORDS)
    if len(words) % 2 or (respiration or 0) > MAX_RESPIRATION:
        raise UnclearError(Problem.WORDS)
    return replace(
        told, respiration=respiration, consciousness=consciousness, oxygen=oxygen
    )  # fmt: skip


# --- parts of a line ------------------------------------------------------------------------------


def _apart(text: str) -> str:
    """The first comparison as a word of its own: what follows may be prose."""
    return _COMPARISON.sub(r" \1 ", unicodedata.normalize("NFKC", text), count=1)


def _with_bed(text: str) -> tuple[Bedside, list[str]]:
    """Take the bed out of the words, which are as typed but for marks around them."""
    words = [
        word
        for word in (one if _COMPARISON.fullmatch(one) else trimmed(one) for one in text.split())
        if word
    ]
    begin, end = _bed_at(words, 0), None
    for back in (3, 2):
        place = len(words) - back
        if place >= 0 and _bed_at(words, place) == len(words):
            end = place
    if begin is not None and end:
        raise UnclearError(Problem.BED_TWICE)
    if begin is not None:
        return Bedside(bed=" ".join(words[1:begin])), words[begin:]
    if end is not None:
        return Bedside(bed=" ".join(words[end + 1 :])), words[:end]
    return Bedside(), words


def _bed_at(words: Sequence[str], place: int) -> int | None:
    """Where a bed ends whose word stands here: ``lit 4``, ``lit Réa 2``, ``lit 4 B``."""
    if len(words) < place + 2 or folded(words[place]) not in _BED:
        return None
    two = _TWO_WORDS.fullmatch(" ".join(words[place + 1 : place + 3]))
    return place + (2 if two is None else 3)


def _direction(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The side that is named, if one is, and the words after it."""
    if not words:
        return None, []
    word = words[0] if _COMPARISON.fullmatch(words[0]) else folded(words[0])
    if word in _DIRECTIONS:
        return _DIRECTIONS[word], list(words[1:])
    if _COMPARISON.fullmatch(word):  # "≤ 88" is not "< 88"
        raise UnclearError(Problem.COMPARISON)
    return None, list(words)


def _duration(words: Sequence[str], *, minutes: bool) -> timedelta:
    """A time in one word or two, such as ``10m``, ``10 min``, ``6h``.

    Args:
        words: all of it.
        minutes: whether a number alone counts minutes, and not hours.
    """
    typed = _DURATION.fullmatch("".join(map(folded, words)))
    if typed is None or len(words) > 2:  # noqa: PLR2004 - number and unit
        raise UnclearError(Problem.TIME_UNCLEAR)
    number, unit = int(typed[1]), typed[2]
    in_minutes = unit.startswith("m") if unit else minutes
    if number == 0:
        raise UnclearError(Problem.TIME_UNCLEAR)
    return timedelta(minutes=number) if in_minutes else timedelta(hours=number)


def _plain(word: str) -> str:
    return unicodedata.normalize("NFKC", word).casefold()
