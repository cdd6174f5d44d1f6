"""The limits that vitals are judged by, and how surely and for how long one must be broken.

Where each constant comes from is written beside it and in ``docs/alarms.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal
from enum import IntEnum, StrEnum
from itertools import pairwise
from typing import Final, NewType

from fajma.errors import InputError
from fajma.vitals import Kind

TrackKey = NewType("TrackKey", str)
"""A kind and a direction, e.g. ``heart_rate-high``."""


class Direction(StrEnum):
    """On which side of normal a value is."""

    LOW = "low"
    HIGH = "high"


class Priority(IntEnum):
    """How urgently somebody must look, in the words of IEC 60601-1-8; they compare by urgency."""

    LOW = 1
    MEDIUM = 2
    HIGH = 3


class Comparison(StrEnum):
    """How a value breaks a limit, as a clinician writes it."""

    BELOW = "<"
    AT_MOST = "≤"
    ABOVE = ">"
    AT_LEAST = "≥"


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit: ``< 90, high priority``.

    Attributes:
        comparison: a value breaks the limit when ``value comparison threshold`` holds.
        threshold: in the unit of ``fajma.vitals.MEASURES``.
        priority: of the band that begins here.
    """

    comparison: Comparison
    threshold: Decimal
    priority: Priority

    @property
    def direction(self) -> Direction:
        """On which side the limit guards."""
        low = self.comparison is Comparison.BELOW or self.comparison is Comparison.AT_MOST
        return Direction.LOW if low else Direction.HIGH

    def broken_by(self, value: Decimal) -> bool:
        """Whether the value breaks the limit."""
        comparison = self.comparison
        if comparison is Comparison.BELOW:
            return value < self.threshold
        if comparison is Comparison.AT_MOST:
            return value <= self.threshold
        if comparison is Comparison.ABOVE:
            return value > self.threshold
        return value >= self.threshold

    def cleared_by(self, value: Decimal, hysteresis: Decimal) -> bool:
        """Whether the value is back inside the limit by at least ``hysteresis``."""
        if self.broken_by(value):
            return False
        if self.direction is Direction.LOW:
            return value >= self.threshold + hysteresis
        return value <= self.threshold - hysteresis


MAX_WINDOW: Final = 20
"""Most samples a confirmation may look back on; it bounds what is kept per patient."""


@dataclass(frozen=True, slots=True)
class Confirmation:
    """How many samples must break a limit before anybody is told.

    Attributes:
        needed: samples that must break it, among the last ``window``; 1 announces at once.
        window: good samples looked back on, ``needed`` to 20.
        extreme: samples that suffice beyond the extreme of ``Bands``, if less than ``needed``.

    Raises:
        InputError: ``confirmation_invalid``, the numbers do not fit together.
    """

    # FAJMA default, not from a guideline: at one sample per 5 s a breach is told within about 20 s.
    # The guidelines are written for spot measurements and do not say how long a monitor must wait.
    needed: int = 3
    window: int = 4
    extreme: int = 2

    def __post_init__(self) -> None:
        if not (1 <= self.needed <= self.window <= MAX_WINDOW and 1 <= self.extreme <= self.window):
            raise InputError(
                f"Choose a confirmation with 1 ≤ needed ≤ window ≤ {MAX_WINDOW} and "
                "1 ≤ extreme ≤ window.",
                code="confirmation_invalid",
            )


@dataclass(frozen=True, slots=True)
class Bands:
    """The limits of one kind in one direction, and how they are judged.

    Attributes:
        kind: what is measured.
        limits: mildest first, all of one direction, each beyond the one before.
        confirmation: samples needed to announce a band.
        hysteresis: how far inside a limit a value must be to leave its band, unit of the kind.
        dwell: how long it must stay there.
        gap: largest time between two samples that count as neighbours.
        extreme: at or beyond this value ``confirmation.extreme`` samples confirm the worst band.
        key: the kind and the direction.

    Raises:
        InputError: ``limits_invalid``, the limits do not form such bands.
    """

    kind: Kind
    limits: tuple[Limit, ...]
    confirmation: Confirmation
    hysteresis: Decimal
    dwell: timedelta
    gap: timedelta
    extreme: Decimal | None = None
    key: TrackKey = field(init=False)

    def __post_init__(self) -> None:
        if not self._is_sound():
            raise InputError(
                f"Order the {self.kind} limits from mildest to worst, in one direction, and keep "
                "hysteresis, dwell and gap from being negative.",
                code="limits_invalid",
            )
        object.__setattr__(self, "key", TrackKey(f"{self.kind}-{self.limits[0].direction}"))

    def is_extreme(self, value: Decimal) -> bool:
        """Whether the value lies at or beyond the extreme."""
        if self.extreme is None:
            return False
        low = self.limits[0].direction is Direction.LOW
        return value <= self.extreme if low else value >= self.extreme

    def _is_sound(self) -> bool:
        if not self.limits or self.hysteresis < 0 or min(self.dwell, self.gap) < timedelta(0):
            return False
        for mild, worse in pairwise(self.limits):
            ordered = mild.priority < worse.priority and mild.direction is worse.direction
            beyond = mild.broken_by(worse.threshold) and not worse.broken_by(mild.threshold)
            if not (ordered and beyond):
                return False
        return self.extreme is None or self.limits[-1].broken_by(self.extreme)


@dataclass(frozen=True, slots=True)
class Rules:
    """Everything the engine judges one patient by.

    Attributes:
        bands: at most one per kind and direction.
        by_kind: the bands of each kind.

    Raises:
        InputError: ``limits_twice``, two bands guard the same kind and direction.
    """

    bands: tuple[Bands, ...]
    by_kind: Mapping[Kind, tuple[Bands, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len({bands.key for bands in self.bands}) != len(self.bands):
            raise InputError(
                "Give each kind and direction its limits only once.", code="limits_twice"
            )
        kinds = {bands.kind for bands in self.bands}
        by_kind = {kind: tuple(b for b in self.bands if b.kind is kind) for kind in kinds}
        object.__setattr__(self, "by_kind", by_kind)


Limits = Mapping[Kind, tuple[tuple[Limit, ...], ...]]
"""Of each kind its sides, of each side its bands, mildest first."""

Extremes = Mapping[tuple[Kind, Direction], Decimal]

# The default limits of an adult. "NEWS2" is: Royal College of Physicians, National Early Warning
# Score (NEWS) 2, 2017, chart 1; "3 points" is its mark for one sign that is enough on its own to
# call for an urgent review. "BTS" is: British Thoracic Society guideline for oxygen use in adults
# in healthcare and emergency settings, Thorax 2017;72(Suppl 1). The owner's requirement names four
# limits that always alarm: heart rate > 120 and < 50, SpO2 < 90, temperature > 38.5.
DEFAULT_LIMITS: Final[Limits] = {
    Kind.HEART_RATE: (
        (
            Limit(Comparison.BELOW, Decimal(50), Priority.MEDIUM),  # owner's requirement
            Limit(Comparison.AT_MOST, Decimal(40), Priority.HIGH),  # NEWS2, 3 points
        ),
        (
            Limit(Comparison.ABOVE, Decimal(120), Priority.MEDIUM),  # owner's requirement
            Limit(Comparison.AT_LEAST, Decimal(131), Priority.HIGH),  # NEWS2, 3 points
        ),
    ),
    Kind.SPO2: (
        (
            # NEWS2 scale 1, 3 points (91 or less); BTS aims at 94-98 %.
            Limit(Comparison.BELOW, Decimal(92), Priority.MEDIUM),
            Limit(Comparison.BELOW, Decimal(90), Priority.HIGH),  # owner's requirement
        ),
    ),
    Kind.TEMPERATURE: (
        (Limit(Comparison.AT_MOST, Decimal("35.0"), Priority.MEDIUM),),  # NEWS2, 3 points
        (
            Limit(Comparison.ABOVE, Decimal("38.5"), Priority.LOW),  # owner's requirement
            Limit(Comparison.ABOVE, Decimal("39.0"), Priority.MEDIUM),  # NEWS2, 2 points (39.1)
        ),
    ),
    Kind.SYSTOLIC: (
        (Limit(Comparison.AT_MOST, Decimal(90), Priority.HIGH),),  # NEWS2, 3 points
        (Limit(Comparison.AT_LEAST, Decimal(220), Priority.HIGH),),  # NEWS2, 3 points
    ),
}

# All that follows is a FAJMA default, not from a guideline.

EXTREMES: Final[Extremes] = {
    (Kind.HEART_RATE, Direction.LOW): Decimal(30),  # 10 /min beyond the high band
    (Kind.HEART_RATE, Direction.HIGH): Decimal(151),  # 20 /min beyond
    (Kind.SPO2, Direction.LOW): Decimal(85),  # 5 points beyond; BTS changes treatment below 85
}
"""Values so far beyond the high band that waiting for a third sample is the greater risk."""

HYSTERESIS: Final[Mapping[Kind, Decimal]] = {
    Kind.HEART_RATE: Decimal(5),
    Kind.SPO2: Decimal(1),  # more would keep an alarm open on many who are well at 93 %
    Kind.TEMPERATURE: Decimal("0.3"),
    Kind.SYSTOLIC: Decimal(5),
    Kind.DIASTOLIC: Decimal(5),
}
"""How far back inside a limit a value must be, in the unit of the kind."""

DWELL: Final = timedelta(seconds=30)
"""How long a value must stay back inside."""

GAP: Final = timedelta(minutes=2)
"""For a worn sensor: wide enough for a device that sends once a minute and misses nothing."""

CUFF_GAP: Final = timedelta(hours=2)
"""For a cuff: wide enough for hourly measurements of which one is missed."""

CUFF_KINDS: Final = frozenset({Kind.SYSTOLIC, Kind.DIASTOLIC})

CUFF_NEEDED: Final = 2
"""A cuff measures minutes apart, so a value that is found again is enough."""

DEFAULT_CONFIRMATION: Final = Confirmation()


def default_rules(
    *,
    confirmation: Confirmation = DEFAULT_CONFIRMATION,
    hysteresis: Mapping[Kind, Decimal] = HYSTERESIS,
    dwell: timedelta = DWELL,
    limits: Limits = DEFAULT_LIMITS,
    extremes: Extremes = EXTREMES,
) -> Rules:
    """Rules made of limits; those of an adult about whom nothing else is known, if none are given.

    Args:
        confirmation: samples needed; blood pressure never needs more than two.
        hysteresis: per kind, in its unit; a kind that is missing keeps its default.
        dwell: how long a value must stay back inside.
        limits: per kind and side.
        extremes: of the kinds and sides that have one.

    Raises:
        InputError: ``limits_invalid``, the limits do not form bands; hysteresis or dwell is
            negative.
    """
    repeated = replace(confirmation, needed=min(confirmation.needed, CUFF_NEEDED))
    return Rules(
        bands=tuple(
            Bands(
                kind=kind,
                limits=side,
                confirmation=repeated if kind in CUFF_KINDS else confirmation,
                hysteresis=hysteresis.get(kind, HYSTERESIS[kind]),
                dwell=dwell,
                gap=CUFF_GAP if kind in CUFF_KINDS else GAP,
                extreme=extremes.get((kind, side[0].direction)),
            )
            for kind, sides in limits.items()
            for side in sides
        ),
    )
