"""NEWS2: a score of seven signs, shown only when all of them are known and fresh. Pure.

Source: Royal College of Physicians, National Early Warning Score (NEWS) 2, London 2017, chart 1.
It is not for who is under 16 or pregnant; nobody is scored of whom either is not known to be ruled
out, except that a pregnancy nobody mentioned is taken for none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Final, NamedTuple, TypeVar

from bots.alerts.alarm_state import Latest, Profile
from fajma.facts import AgeBand, Consciousness, Entered
from fajma.vitals import Kind

# How old a sign may be: FAJMA defaults, not from a guideline.

MONITOR_FRESH: Final = timedelta(minutes=5)
"""Heart rate, SpO2, temperature: what a monitor measures all the time."""

CUFF_FRESH: Final = timedelta(hours=2)
"""Systolic pressure: as long as an alarm looks back (``limits.CUFF_GAP``)."""

ENTERED_FRESH: Final = timedelta(hours=4)
"""Respiration, consciousness, oxygen: RCP asks for signs every 4 to 6 h at a low score."""

RED: Final = 3
"""Points for one sign alone that call for an urgent review."""


class Sign(StrEnum):
    """The seven that make the score."""

    RESPIRATION = "respiration"
    SPO2 = "spo2"
    OXYGEN = "oxygen"
    SYSTOLIC = "systolic"
    PULSE = "pulse"
    CONSCIOUSNESS = "consciousness"
    TEMPERATURE = "temperature"


@dataclass(frozen=True, slots=True)
class News2:
    """A complete score.

    Attributes:
        points: of each sign, 0 to 3.
        scale_2: whether SpO2 was judged on the scale for hypercapnic failure.
        oldest: when the oldest of the signs was measured or entered.
    """

    points: Mapping[Sign, int]
    scale_2: bool
    oldest: datetime

    @property
    def total(self) -> int:
        """0 to 20."""
        return sum(self.points.values())

    @property
    def red(self) -> tuple[Sign, ...]:
        """The signs that have 3 points: each is enough on its own for an urgent review."""
        return tuple(sign for sign, points in self.points.items() if points >= RED)


# Chart 1, one row for each sign: the points of all values up to a bound, then those of the rest.
_Row = tuple[tuple[tuple[str, int], ...], int]
_RESPIRATION: Final[_Row] = ((("8", 3), ("11", 1), ("20", 0), ("24", 2)), 3)
_SPO2_SCALE_1: Final[_Row] = ((("91", 3), ("93", 2), ("95", 1)), 0)
_SPO2_SCALE_2_AIR: Final[_Row] = ((("83", 3), ("85", 2), ("87", 1)), 0)
_SPO2_SCALE_2_OXYGEN: Final[_Row] = (
    (("83", 3), ("85", 2), ("87", 1), ("92", 0), ("94", 1), ("96", 2)),
    3,
)
_SYSTOLIC: Final[_Row] = ((("90", 3), ("100", 2), ("110", 1), ("219", 0)), 3)
_PULSE: Final[_Row] = ((("40", 3), ("50", 1), ("90", 0), ("110", 1), ("130", 2)), 3)
_TEMPERATURE: Final[_Row] = ((("35.0", 3), ("36.0", 1), ("38.0", 0), ("39.0", 1)), 2)
_ON_OXYGEN: Final = 2
_NOT_ALERT: Final = 3


def score(
    latest: Sequence[Latest], entered: Sequence[Entered], profile: Profile, now: datetime
) -> News2 | None:
    """The score of a patient now, or ``None`` where there must be none.

    Args:
        latest: live values, newest first (``PatientState.latest``).
        entered: what clinicians typed, newest first (``Standing.entered``).
        profile: of the patient.
        now: aware time.

    Returns:
        ``None`` when a sign is missing or too old, and for whom the score is not made.
    """
    if profile.age_band is not AgeBand.ADULT or profile.pregnant:
        return None
    known = _known(latest, entered, now)
    respiration, spo2, oxygen, systolic, pulse, consciousness, temperature = known
    if (
        pulse is None
        or spo2 is None
        or temperature is None
        or systolic is None
        or respiration is None
        or consciousness is None
        or oxygen is None
    ):
        return None
    return News2(
        points={
            Sign.RESPIRATION: _points(_RESPIRATION, Decimal(respiration[0]), 0),
            Sign.SPO2: _points(_spo2_row(scale_2=profile.copd, oxygen=oxygen[0]), spo2[0], 0),
            Sign.OXYGEN: _ON_OXYGEN if oxygen[0] else 0,
            Sign.SYSTOLIC: _points(_SYSTOLIC, systolic[0], 0),
            Sign.PULSE: _points(_PULSE, pulse[0], 0),
            Sign.CONSCIOUSNESS: 0 if consciousness[0] is Consciousness.ALERT else _NOT_ALERT,
            Sign.TEMPERATURE: _points(_TEMPERATURE, temperature[0], 1),
        },
        scale_2=profile.copd,
        oldest=min(
            pulse[1],
            spo2[1],
            temperature[1],
            systolic[1],
            respiration[1],
            consciousness[1],
            oxygen[1],
        ),
    )


def missing(
    latest: Sequence[Latest], entered: Sequence[Entered], profile: Profile, now: datetime
) -> tuple[Sign, ...]:
    """The signs that a score would need and that are missing or too old.

    Args:
        latest: as for ``score``, as all others.
        entered: what clinicians typed.
        profile: of the patient; none is missing for whom the score is not made. Of unknown age it
            may be.
        now: aware time.
    """
    if profile.age_band not in (AgeBand.ADULT, AgeBand.UNKNOWN) or profile.pregnant:
        return ()
    known = _known(latest, entered, now)
    return tuple(sign for sign in Sign if getattr(known, sign.value) is None)


class _Known(NamedTuple):
    """Each sign with its time, as it is named in ``Sign``; ``None``: missing or too old."""

    respiration: tuple[int, datetime] | None
    spo2: tuple[Decimal, datetime] | None
    oxygen: tuple[bool, datetime] | None
    systolic: tuple[Decimal, datetime] | None
    pulse: tuple[Decimal, datetime] | None
    consciousness: tuple[Consciousness, datetime] | None
    temperature: tuple[Decimal, datetime] | None


def _known(latest: Sequence[Latest], entered: Sequence[Entered], now: datetime) -> _Known:
    stated = [one for one in entered if one.at >= now - ENTERED_FRESH]
    return _Known(
        respiration=_first([(one.respiration, one.at) for one in stated]),
        spo2=_measured(latest, Kind.SPO2, now - MONITOR_FRESH),
        oxygen=_first([(one.oxygen, one.at) for one in stated]),
        systolic=_measured(latest, Kind.SYSTOLIC, now - CUFF_FRESH),
        pulse=_measured(latest, Kind.HEART_RATE, now - MONITOR_FRESH),
        consciousness=_first([(one.consciousness, one.at) for one in stated]),
        temperature=_measured(latest, Kind.TEMPERATURE, now - MONITOR_FRESH),
    )


def _spo2_row(*, scale_2: bool, oxygen: bool) -> _Row:
    if not scale_2:
        return _SPO2_SCALE_1
    return _SPO2_SCALE_2_OXYGEN if oxygen else _SPO2_SCALE_2_AIR


def _points(row: _Row, value: Decimal, decimals: int) -> int:
    bounds, beyond = row
    # The chart knows whole numbers, and tenths of a degree: 91.6 % is its 92, 91.4 % its 91.
    shown = round(value, decimals)
    for bound, points in bounds:
        if shown <= Decimal(bound):
            return points
    return beyond


def _measured(
    latest: Sequence[Latest], kind: Kind, since: datetime
) -> tuple[Decimal, datetime] | None:
    """The newest value of a kind, if it is not older."""
    return _first(
        [
            (one.values[kind], one.measured_at)
            for one in latest
            if kind in one.values and one.measured_at >= since
        ]
    )


_Value = TypeVar("_Value")


def _first(stated: Sequence[tuple[_Value | None, datetime]]) -> tuple[_Value, datetime] | None:
    """The first one that was stated at all."""
    for value, at in stated:
        if value is not None:
            return value, at
    return None
