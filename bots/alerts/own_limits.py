"""Limits of one patient alone, set by a clinician: their bounds, their end, what they replace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

from bots.alerts.alarm_state import OwnLimit
from bots.alerts.limits import (
    Bands,
    Comparison,
    Direction,
    Limit,
    Limits,
    Priority,
    Rules,
    default_rules,
)
from fajma.errors import InputError
from fajma.facts import LimitSet
from fajma.vitals import Kind

KEPT_AT_MOST: Final = timedelta(days=7)
"""FAJMA default: longer than that a limit is nobody's decision any more."""

# FAJMA defaults, not from a guideline: wide enough for every profile, narrow enough that a slip of
# the finger (9 for 90) is refused.
BOUNDS: Final[Mapping[tuple[Kind, Direction], tuple[Decimal, Decimal]]] = {
    (Kind.HEART_RATE, Direction.LOW): (Decimal(30), Decimal(100)),
    (Kind.HEART_RATE, Direction.HIGH): (Decimal(100), Decimal(220)),
    (Kind.SPO2, Direction.LOW): (Decimal(80), Decimal(97)),
    (Kind.TEMPERATURE, Direction.LOW): (Decimal("32.0"), Decimal("36.5")),
    (Kind.TEMPERATURE, Direction.HIGH): (Decimal("37.5"), Decimal("40.5")),
    (Kind.SYSTOLIC, Direction.LOW): (Decimal(40), Decimal(120)),
    (Kind.SYSTOLIC, Direction.HIGH): (Decimal(100), Decimal(240)),
    (Kind.DIASTOLIC, Direction.LOW): (Decimal(30), Decimal(70)),
    (Kind.DIASTOLIC, Direction.HIGH): (Decimal(70), Decimal(130)),
}
"""Smallest and largest threshold, both allowed, in the unit of the kind."""


def check_limit(kind: Kind, direction: Direction, threshold: Decimal) -> InputError | None:
    """Why nobody may have this limit; ``None`` if it may be set.

    Its codes: ``limit_pointless``, nothing is guarded on that side; ``limit_out_of_bounds``.
    """
    bounds = BOUNDS.get((kind, direction))
    if bounds is None:
        return InputError(
            "There is no alarm on that side of this sign: set a limit on the other side.",
            code="limit_pointless",
        )
    lowest, highest = bounds
    if not (threshold.is_finite() and lowest <= threshold <= highest):
        return InputError(f"Choose a limit from {lowest} to {highest}.", code="limit_out_of_bounds")
    return None


def with_fact(limits: tuple[OwnLimit, ...], fact: LimitSet) -> tuple[OwnLimit, ...]:
    """The patient's limits after one was set, or taken back.

    One that is out of bounds changes nothing: whoever noted it has told its author.
    """
    direction = Direction(fact.direction)
    others = tuple(one for one in limits if (one.kind, one.direction) != (fact.kind, direction))
    if fact.threshold is None:
        return others
    if check_limit(fact.kind, direction, fact.threshold) is not None:
        return limits
    until = min(fact.until, fact.at + KEPT_AT_MOST)
    return (*others, OwnLimit(fact.kind, direction, fact.threshold, until, fact.kept))


def lasting(
    limits: tuple[OwnLimit, ...], now: datetime, *, handed_over: bool = False
) -> tuple[OwnLimit, ...]:
    """Those that hold on; the very same tuple if all do."""
    left = tuple(one for one in limits if now < one.until and (one.kept or not handed_over))
    return limits if len(left) == len(limits) else left


def applied(rules: Rules, limits: tuple[OwnLimit, ...]) -> Rules:
    """The rules with the patient's limits in place of those of the profile."""
    by_key = {bands.key: bands for bands in rules.bands}
    for own in limits:
        side: Limits = {own.kind: ((limit_of(own, Priority.MEDIUM),),)}
        site = rules.bands[0]
        (new,) = default_rules(
            limits=side, extremes={}, dwell=site.dwell, confirmation=site.confirmation
        ).bands
        known = by_key.get(new.key)
        by_key[new.key] = new if known is None else _put(known, own)
    return Rules(tuple(by_key.values()))


def limit_of(own: OwnLimit, priority: Priority) -> Limit:
    """The limit that a clinician set, as urgent as is said."""
    low = own.direction is Direction.LOW
    return Limit(Comparison.BELOW if low else Comparison.ABOVE, own.threshold, priority)


def _put(bands: Bands, own: OwnLimit) -> Bands:
    """One limit in place of all that do not lie beyond it, as urgent as the worst of them.

    One that is milder than all of them is as urgent as the mildest, which it replaces.
    """
    low = own.direction is Direction.LOW
    beyond = [
        limit
        for limit in bands.limits
        if (limit.threshold < own.threshold if low else limit.threshold > own.threshold)
    ]
    replaced = bands.limits[: len(bands.limits) - len(beyond)]
    mine = limit_of(own, replaced[-1].priority if replaced else bands.limits[0].priority)
    limits = (mine, *(limit for limit in beyond if limit.priority > mine.priority))
    still_extreme = bands.extreme is not None and limits[-1].broken_by(bands.extreme)
    return replace(bands, limits=limits, extreme=bands.extreme if still_extreme else None)
