"""What the alarm engine is told beside readings: orders of clinicians, links, time. Pure.

A fact is kept in a log of its own (``fajma.store.facts``) at a place that says after which reading
it came, so that judging readings and facts again gives the same decisions. Times in a fact are
those of whoever noted it; nobody reads a clock later.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final

from fajma.errors import BugError
from fajma.vitals import DeviceId, Kind

_VERSION: Final = 1


class Consciousness(StrEnum):
    """ACVPU, as NEWS2 asks for it (Royal College of Physicians, 2017)."""

    ALERT = "alert"
    CONFUSED = "confused"
    """Newly confused."""
    VOICE = "voice"
    PAIN = "pain"
    UNRESPONSIVE = "unresponsive"


class AgeBand(StrEnum):
    """How old a patient is, as far as limits depend on it; no date of birth is kept."""

    NEWBORN = "newborn"
    """Up to 28 days."""
    INFANT = "infant"
    """Up to 1 year."""
    TODDLER = "toddler"
    """1 to 4 years."""
    CHILD = "child"
    """5 to 11 years."""
    ADOLESCENT = "adolescent"
    """12 to 15 years."""
    ADULT = "adult"
    """16 years and older, for whom NEWS2 is made (Royal College of Physicians, NEWS2, 2017)."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class TimePassed:
    """The engine looked at the clock because something was due.

    Attributes:
        quiet: silence is no news at this time, e.g. in a planned stop.
    """

    at: datetime
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Worn:
    """The patient wears a monitor from now on: its silence is an alarm."""

    at: datetime
    device: DeviceId


@dataclass(frozen=True, slots=True)
class TakenOff:
    """The patient no longer wears a monitor: its silence is none."""

    at: datetime
    device: DeviceId


@dataclass(frozen=True, slots=True)
class Connection:
    """A monitor came to the broker, or left it (``status`` and last will, v2)."""

    at: datetime
    device: DeviceId
    online: bool


@dataclass(frozen=True, slots=True)
class Profiled:
    """What of the patient's record decides on limits and on who is called when.

    Attributes:
        age_band: how old the patient is.
        pregnant: ``None`` if unknown.
        copd: whether the target is 88 to 92 % (BTS 2017: at risk of hypercapnic failure).
        ward: short name of the patient's own ward, if there is one.
    """

    at: datetime
    age_band: AgeBand
    pregnant: bool | None
    copd: bool
    ward: str | None = None


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """Somebody takes care.

    Attributes:
        by: Matrix user id.
        alarm_id: of the episode; ``None``: of all that are open.
        seen: priority in the message that was answered, ``low`` to ``high``, where one was: an
            answer to it is none to what got worse meanwhile.
    """

    at: datetime
    by: str
    alarm_id: str | None
    seen: str | None = None


@dataclass(frozen=True, slots=True)
class Snoozed:
    """No new message about a kind and direction until a time, unless it gets worse.

    Attributes:
        direction: ``low`` or ``high``.
        until: at most 10 min after ``at``.
    """

    at: datetime
    by: str
    kind: Kind
    direction: str
    until: datetime


@dataclass(frozen=True, slots=True)
class LimitSet:
    """A limit of this patient alone, in place of the usual one.

    Attributes:
        direction: ``low`` or ``high``.
        threshold: in the unit of the kind; ``None`` goes back to the usual limits.
        reason: in the words of ``by``.
        until: when it ends at the latest.
        kept: whether it outlives a handover.
    """

    at: datetime
    by: str
    kind: Kind
    direction: str
    threshold: Decimal | None
    reason: str
    until: datetime
    kept: bool


@dataclass(frozen=True, slots=True)
class HandedOver:
    """Duty in the patient's ward went to somebody else: limits that are not kept end."""

    at: datetime
    by: str


@dataclass(frozen=True, slots=True)
class Entered:
    """What no monitor measures, typed by a clinician; ``None`` was not stated.

    Attributes:
        respiration: breaths, /min.
        oxygen: whether the patient gets supplemental oxygen.
    """

    at: datetime
    by: str
    respiration: int | None
    consciousness: Consciousness | None
    oxygen: bool | None


@dataclass(frozen=True, slots=True)
class OutageStarted:
    """Many patients went silent together; it is told once for all of them, not by each."""

    at: datetime


@dataclass(frozen=True, slots=True)
class OutageEnded:
    """That outage is over; who is still silent counts for himself from now on."""

    at: datetime


Fact = (
    TimePassed
    | Worn
    | TakenOff
    | Connection
    | Profiled
    | Acknowledged
    | Snoozed
    | LimitSet
    | HandedOver
    | Entered
    | OutageStarted
    | OutageEnded
)
"""Anything of one patient that is not a reading."""

_TYPES: Final[Mapping[str, type[Fact]]] = {
    "time_passed": TimePassed,
    "worn": Worn,
    "taken_off": TakenOff,
    "connection": Connection,
    "profiled": Profiled,
    "acknowledged": Acknowledged,
    "snoozed": Snoozed,
    "limit_set": LimitSet,
    "handed_over": HandedOver,
    "entered": Entered,
    "outage_started": OutageStarted,
    "outage_ended": OutageEnded,
}
_NAMES: Final = {each: name for name, each in _TYPES.items()}
_READERS: Final = {
    "at": datetime.fromisoformat,
    "until": datetime.fromisoformat,
    "device": DeviceId,
    "kind": Kind,
    "age_band": AgeBand,
    "threshold": Decimal,
    "consciousness": Consciousness,
}


def to_json(fact: Fact) -> str:
    """The fact as one line of JSON; it may say something about the patient, so it is sealed."""
    content: dict[str, Any] = {"version": _VERSION, "fact": _NAMES[type(fact)]}
    for name in fact.__slots__:
        value = getattr(fact, name)
        content[name] = (
            value.astimezone(UTC).isoformat()
            if isinstance(value, datetime)
            else str(value)
            if isinstance(value, Decimal)
            else value
        )
    return json.dumps(content, separators=(",", ":"))


def from_json(text: str) -> Fact:
    """Read what ``to_json`` wrote.

    Raises:
        BugError: ``fact_unreadable``, it is anything else, e.g. of a newer version.
    """
    try:
        content = json.loads(text)
        if content.pop("version") != _VERSION:
            raise ValueError  # noqa: TRY301 - all that is wrong is one error
        made = _TYPES[content.pop("fact")]
        for name, read in _READERS.items():
            if content.get(name) is not None:
                content[name] = read(content[name])
        return made(**content)
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError):
        # The cause is left out: it would quote what is in the fact.
        raise BugError(
            "A fact of the alarm log cannot be read: restore the database or upgrade FAJMA.",
            code="fact_unreadable",
        ) from None
