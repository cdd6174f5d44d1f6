"""The latest value of each kind and where it is going. Pure.

Trend compares the latest value with the one about five minutes before (at least one minute); a
difference smaller than the kind's noise is steady. FAJMA defaults, not from a guideline.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

from fajma.events import Latest, Quality, Trend, Vitals
from fajma.vitals import Age, Kind, PatientKey, Reading

TREND_OVER: Final = timedelta(minutes=5)
TREND_AT_LEAST: Final = timedelta(minutes=1)
NOISE: Final[Mapping[Kind, Decimal]] = {
    Kind.HEART_RATE: Decimal(5),
    Kind.SPO2: Decimal(2),
    Kind.TEMPERATURE: Decimal("0.3"),
    Kind.SYSTOLIC: Decimal(10),
    Kind.DIASTOLIC: Decimal(10),
}
"""A difference that is no more than this is steady, in the unit of the kind."""


class Snapshot:
    """Follows one patient's readings."""

    def __init__(self, patient: PatientKey) -> None:
        self._patient = patient
        self._history: dict[Kind, deque[tuple[datetime, Decimal]]] = {}
        self._ages: dict[Kind, Age] = {}

    def take(self, reading: Reading) -> None:
        """Take in a reading; one that was measured before the latest changes nothing."""
        for kind, value in reading.values.items():
            history = self._history.setdefault(kind, deque())
            if history and reading.measured_at < history[-1][0]:
                continue
            history.append((reading.measured_at, value))
            self._ages[kind] = reading.age
            while history[0][0] < reading.measured_at - TREND_OVER:
                history.popleft()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever measured."""
        return not self._history

    def vitals(self, as_of: datetime) -> Vitals:
        """The snapshot as it goes into the room."""
        latest = {}
        for kind in Kind:
            history = self._history.get(kind)
            if history:
                measured_at, value = history[-1]
                latest[kind] = Latest(
                    value, measured_at, Quality.UNKNOWN, _trend(kind, history), self._ages[kind]
                )
        return Vitals(self._patient, as_of, latest)


def _trend(kind: Kind, history: deque[tuple[datetime, Decimal]]) -> Trend:
    then, before = history[0]
    now, value = history[-1]
    if now - then < TREND_AT_LEAST:
        return Trend.UNKNOWN
    difference = value - before
    if abs(difference) <= NOISE[kind]:
        return Trend.STEADY
    return Trend.RISING if difference > 0 else Trend.FALLING
