"""What a site judges its patients by: settings, and the limits that follow for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Final

from bots.alerts.alarm_state import OwnLimit, Profile, Standing
from bots.alerts.limits import (
    DEFAULT_CONFIRMATION,
    DWELL,
    Confirmation,
    Priority,
    Rules,
    default_rules,
)
from bots.alerts.own_limits import applied
from bots.alerts.profiles import extremes_of, limits_of
from fajma.errors import InputError


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
    ladder: tuple[timedelta, ...] = (timedelta(0),)

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
    Priority.LOW: Schedule(timedelta(minutes=30)),
}
"""FAJMA defaults, not from a guideline."""

SILENT_AFTER: Final = timedelta(seconds=90)
"""FAJMA default: 18 readings of a monitor that measures every 5 s."""


@dataclass(frozen=True, slots=True, eq=False)
class SiteRules:
    """What a site judges by. Make one and keep it: what follows from it is remembered by identity.

    Attributes:
        confirmation: samples needed to announce a limit; blood pressure never needs more than two.
        dwell: how long a value must be back inside before an episode ends.
        schedules: of every priority.
        wards: schedules of the wards that have their own, by the ward's short name.
        silent_after: the silence of a worn monitor that is told, unless it usually sends so seldom
            that it must be longer (``technical``).
    """

    confirmation: Confirmation = DEFAULT_CONFIRMATION
    dwell: timedelta = DWELL
    schedules: Mapping[Priority, Schedule] = field(default_factory=lambda: SCHEDULES)
    wards: Mapping[str, Mapping[Priority, Schedule]] = field(default_factory=dict)
    silent_after: timedelta = SILENT_AFTER

    def schedules_of(self, ward: str | None) -> Mapping[Priority, Schedule]:
        """When people of a ward are told, of every priority."""
        return self.schedules if ward is None else self.wards.get(ward, self.schedules)

    def of(self, standing: Standing) -> Rules:
        """What a patient is judged by now."""
        return _rules(self, standing.profile, standing.own_limits)


@lru_cache(maxsize=4096)
def _rules(site: SiteRules, profile: Profile, own: tuple[OwnLimit, ...]) -> Rules:
    rules = default_rules(
        confirmation=site.confirmation,
        dwell=site.dwell,
        limits=limits_of(profile),
        extremes=extremes_of(profile),
    )
    return applied(rules, own) if own else rules
