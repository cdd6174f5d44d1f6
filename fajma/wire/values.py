"""What every wire format shares: which values are believed, and why the others are not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal
from enum import StrEnum
from typing import Final

from fajma.errors import DecodeError
from fajma.vitals import MAX_DECIMALS, MEASURES, TELLING_LOW, Kind

REQUIRED: Final = (Kind.HEART_RATE, Kind.SPO2, Kind.TEMPERATURE)
"""Kinds that a monitor should always measure; blood pressure is optional."""

_KINDS: Final = tuple(Kind)  # going through an Enum costs more
_KEPT_DECIMALS: Final = range(MAX_DECIMALS + 1)
_MAX_DIGITS_BEFORE_POINT: Final = 10
_ROUNDING: Final = Context(prec=28, rounding=ROUND_HALF_EVEN)


class Reason(StrEnum):
    """Why one value of a message was kept out."""

    MISSING = "missing"
    """A required value is absent or ``null``."""
    NOT_A_NUMBER = "not_a_number"
    """It is a text, a truth value, an object, NaN, infinity, or an endless row of digits."""
    IMPLAUSIBLE_LOW = "implausible_low"
    IMPLAUSIBLE_HIGH = "implausible_high"
    WRONG_UNIT = "wrong_unit"
    """The message states another unit than ours (v2 only; v1 states none)."""
    INCONSISTENT = "inconsistent"
    """Systolic is not above diastolic, so neither can be believed; or diastolic has no systolic
    beside it that can be: a pressure in kPa betrays itself by its systolic value only."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """One value that was kept out; the value itself is not carried, so this is safe to log."""

    kind: Kind
    reason: Reason


class NoUsableValueError(DecodeError):
    """The message is well formed and from the right device, but says nothing about the patient.

    Attributes:
        rejected: why each value was kept out; none of them is ``unusable``.
    """

    def __init__(self, rejected: tuple[Rejected, ...]) -> None:
        super().__init__(
            "The message holds no usable value: look at the patient, then at the probes.",
            code="no_usable_value",
        )
        self.rejected = rejected


def judge(kind: Kind, stated: object) -> Decimal | Reason:
    """The value, rounded to ``MAX_DECIMALS`` (half to even), or why it is kept out.

    Args:
        kind: what is measured.
        stated: what the message says, in the unit of ``MEASURES``; believed if a finite ``Decimal``
            in the plausible range.
    """
    if not isinstance(stated, Decimal) or not stated.is_finite():
        return Reason.NOT_A_NUMBER
    value = stated
    decimals = -int(stated.as_tuple().exponent)
    if decimals not in _KEPT_DECIMALS and stated.adjusted() < _MAX_DIGITS_BEFORE_POINT:
        kept = MAX_DECIMALS if decimals > MAX_DECIMALS else 0
        value = stated.quantize(Decimal(1).scaleb(-kept), context=_ROUNDING)
    measure = MEASURES[kind]
    if value < measure.lowest:
        return Reason.IMPLAUSIBLE_LOW
    if value > measure.highest:
        return Reason.IMPLAUSIBLE_HIGH
    return value


def part(
    judged: Mapping[Kind, Decimal | Reason],
) -> tuple[dict[Kind, Decimal], tuple[Rejected, ...]]:
    """Part the values that are believed from the others.

    Args:
        judged: what ``judge`` said of each kind that was measured, or ``Reason.MISSING``.

    Returns:
        The values and what was kept out, both in the order of ``Kind``.
    """
    systolic, diastolic = judged.get(Kind.SYSTOLIC), judged.get(Kind.DIASTOLIC)
    if isinstance(systolic, Decimal) and isinstance(diastolic, Decimal) and systolic <= diastolic:
        unbelievable = dict.fromkeys((Kind.SYSTOLIC, Kind.DIASTOLIC), Reason.INCONSISTENT)
        judged = {**judged, **unbelievable}
    elif isinstance(diastolic, Decimal) and not isinstance(systolic, Decimal):
        judged = {**judged, Kind.DIASTOLIC: Reason.INCONSISTENT}
    values: dict[Kind, Decimal] = {}
    rejected: list[Rejected] = []
    for kind in _KINDS:
        found = judged.get(kind)
        if isinstance(found, Decimal):
            values[kind] = found
        elif found is not None:
            rejected.append(Rejected(kind, found))
    return values, tuple(rejected)


def unusable(rejected: Iterable[Rejected]) -> frozenset[Kind]:
    """The kinds whose absurdly low value may be the patient's state (``Reading.unusable``)."""
    return frozenset(
        one.kind
        for one in rejected
        if one.reason is Reason.IMPLAUSIBLE_LOW and one.kind in TELLING_LOW
    )
