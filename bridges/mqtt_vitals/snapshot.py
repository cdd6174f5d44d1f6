"""The latest value of each kind, where it is going, and what is known of the probe. Pure.

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

OF_PULSE_WAVE: Final = frozenset({Kind.HEART_RATE, Kind.SPO2})
"""The kinds that ``Reading.quality`` is about."""


class Snapshot:
    """Follows one patient's readings."""

    def __init__(self, patient: PatientKey) -> None:
        self._patient = patient
        self._history: dict[Kind, deque[tuple[datetime, Decimal]]] = {}
        self._ages: dict[Kind, Age] = {}
        self._qualities: dict[Kind, Quality] = {}
        self._newest: datetime | None = None
        self._off_since: datetime | None = None
        self._unusable_since: dict[Kind, datetime] = {}

    def take(self, reading: Reading) -> None:
        """Take in a reading; one that was measured before the latest changes nothing."""
        for kind, value in reading.values.items():
            history = self._history.setdefault(kind, deque())
            if history and reading.measured_at < history[-1][0]:
                continue
            history.append((reading.measured_at, value))
            self._ages[kind] = reading.age
            self._qualities[kind] = (
                Quality.of(reading.quality) if kind in OF_PULSE_WAVE else Quality.UNKNOWN
            )
            while history[0][0] < reading.measured_at - TREND_OVER:
                history.popleft()
        at = reading.measured_at
        if self._newest is not None and at < self._newest:
            return
        self._newest = at
        self._off_since = (self._off_since or at) if reading.contact is False else None
        self._unusable_since = {
            kind: self._unusable_since.get(kind, at) for kind in sorted(reading.unusable)
        }

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show: no value, and no word on why there is none."""
        return self._newest is None

    def vitals(self, as_of: datetime) -> Vitals:
        """The snapshot as it goes into the room."""
        latest = {}
        for kind in Kind:
            history = self._history.get(kind)
            if history:
                measured_at, value = history[-1]
                latest[kind] = Latest(
                    value,
                    measured_at,
                    self._qualities[kind],
                    _trend(kind, history),
                    self._ages[kind],
                )
        return Vitals(self._patient, as_of, latest, self._off_since, self._unusable_since)


def _trend(kind: Kind, history: deque[tuple[datetime, Decimal]]) -> Trend:
    then, before = history[0]
    now, value = history[-1]
    if now - then < TREND_AT_LEAST:
        return Trend.UNKNOWN
    difference = value - before
    if abs(difference) <= NOISE[kind]:
        return Trend.STEADY
    return Trend.RISING if difference > 0 else Trend.FALLING
