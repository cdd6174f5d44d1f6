"""What is told about an alarm after its start, until somebody answers. Pure.

1. Whoever was told is told again after ``Schedule.again``, and each step of the ladder is told in
   its turn, until somebody acknowledges. A message of any of these restarts the wait for the next
   reminder. When time was lost (we were down), the steps still keep their distance.
2. Getting worse is told like a start, to everybody up to the step that was reached, whether or not
   somebody has acknowledged, and the way up the ladder goes on from there. In the worst band worse
   is ``FURTHER`` out than the value that was told last, in ``FURTHER_NEEDED`` samples in a row: who
   was told of 88 %, and answered, knows of no 70 %.
3. A snooze holds for one kind and direction, and for at most ``SNOOZE_AT_MOST``. It silences
   reminders, the ladder, and whatever begins, up to the band it was said in; said while nothing is
   wrong, or once that episode has ended, up to ``SNOOZE_AHEAD``. It is no acknowledgement: when it
   ends and the episode has not, and nobody has acknowledged, people are told again.
4. What is worse than that band breaks a snooze. So do ``FURTHER_NEEDED`` samples in a row that
   break a limit and lie ``FURTHER`` out than the last value before the snooze. Anything less, the
   next reading above all, does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

from bots.alerts.alarm import Reason
from bots.alerts.alarm_state import Care, Snooze
from bots.alerts.limits import Priority, TrackKey
from bots.alerts.site_rules import Schedule

SNOOZE_AT_MOST: Final = timedelta(minutes=10)
"""Design: as long as a procedure at the bed, not as long as a meal."""

SNOOZE_AHEAD: Final = Priority.MEDIUM
"""FAJMA default: nobody silences a high priority alarm that he has not seen."""

FURTHER: Final[Mapping[TrackKey, Decimal]] = {
    TrackKey("spo2-low"): Decimal(3),
    TrackKey("heart_rate-low"): Decimal(10),
    TrackKey("heart_rate-high"): Decimal(20),
    TrackKey("systolic-low"): Decimal(10),
    TrackKey("systolic-high"): Decimal(20),
    TrackKey("diastolic-high"): Decimal(10),
    TrackKey("temperature-low"): Decimal("0.5"),
    TrackKey("temperature-high"): Decimal("0.5"),
}
"""How much further out is news, in the unit of the kind. SpO2: design, about what an oximeter is
accurate to (ISO 80601-2-61: 4 % or better); the others are FAJMA defaults."""

FURTHER_NEEDED: Final = 2
"""FAJMA default: one sample may be an artefact."""


# Until somebody answers


def begun(priority: Priority, at: datetime, *, told: bool, value: Decimal | None = None) -> Care:
    """Of an alarm that begins now."""
    return Care(
        priority, step=0, step_at=at, told_at=at if told else None, value=value if told else None
    )


def worsened(
    care: Care | None,
    priority: Priority,
    at: datetime,
    *,
    told: bool,
    value: Decimal | None = None,
) -> Care:
    """Of an alarm that gets worse now; nobody has answered to that."""
    if care is None:
        return begun(priority, at, told=told, value=value)
    if not told:
        return replace(care, priority=priority, acknowledged=False)
    return Care(priority, care.step, step_at=at, told_at=at, value=value)


def was_told(care: Care | None) -> bool:
    """Whether somebody was told of the alarm; ``None`` is an alarm of which no care was kept."""
    return care is None or (care.told_at is not None and care.told_at >= care.step_at)


def told_again(care: Care, at: datetime, value: Decimal | None) -> Care:
    """Of an alarm about which the same people are told again now, as if it began."""
    return Care(care.priority, care.step, step_at=at, told_at=at, value=value)


def next_due(care: Care, schedule: Schedule) -> datetime | None:
    """When something must be said if nobody answers; ``None``: nothing must."""
    if care.acknowledged or care.told_at is None:
        return None
    again = care.told_at + schedule.again
    climb = _next_step_at(care, schedule)
    return again if climb is None else min(again, climb)


def prompt(
    care: Care, schedule: Schedule, at: datetime, value: Decimal | None
) -> tuple[Care, Reason] | None:
    """What is said now, with the last value, because nobody has answered."""
    due = next_due(care, schedule)
    if due is None or due > at:
        return None
    climb = _next_step_at(care, schedule)
    if climb is not None and climb <= at:
        climbed = replace(care, step=care.step + 1, step_at=at, told_at=at, value=value, drops=0)
        return climbed, Reason.ESCALATED
    return replace(care, told_at=at, value=value, drops=0), Reason.RENOTIFIED


def _next_step_at(care: Care, schedule: Schedule) -> datetime | None:
    ladder, step = schedule.ladder, care.step
    if step + 1 >= len(ladder):
        return None
    return care.step_at + (ladder[step + 1] - ladder[step])


def answered(care: Care, at: datetime) -> Care:
    """After somebody acknowledged; what he had not been told yet, the answer tells him."""
    return replace(care, acknowledged=True, told_at=care.told_at or at)


def watched(care: Care, track: TrackKey, value: Decimal, *, breaks_limit: bool) -> Care | None:
    """After a live sample; ``None`` when it lies so far out that people must be told again."""
    if care.value is None or care.told_at is None:
        return care
    if not (breaks_limit and _is_further(track, care.value, value)):
        return care if care.drops == 0 else replace(care, drops=0)
    return None if care.drops + 1 >= FURTHER_NEEDED else replace(care, drops=care.drops + 1)


def _is_further(track: TrackKey, told: Decimal, value: Decimal) -> bool:
    by = FURTHER.get(track)
    if by is None:
        return False
    return (told - value if track.endswith("-low") else value - told) >= by


# Snoozes


def snooze(
    *, until: datetime, at: datetime, band: Priority | None, value: Decimal | None
) -> Snooze:
    """One that begins now.

    Args:
        until: when it ends, as asked for.
        at: now.
        band: of the open episode; ``None`` if nothing is wrong.
        value: the last one that is known.
    """
    return Snooze(min(until, at + SNOOZE_AT_MOST), band or SNOOZE_AHEAD, value)


def covers(one: Snooze | None, priority: Priority, at: datetime) -> bool:
    """Whether an alarm of this priority is not told now."""
    return one is not None and at < one.until and priority <= one.band


def outlives(one: Snooze) -> Snooze:
    """The snooze once its episode has ended: the next one, nobody has seen yet."""
    return replace(one, band=min(one.band, SNOOZE_AHEAD))


def sampled(one: Snooze, track: TrackKey, value: Decimal, *, breaks_limit: bool) -> Snooze | None:
    """The snooze after a live sample; ``None`` when it breaks."""
    if one.value is None:
        return one
    if not (breaks_limit and _is_further(track, one.value, value)):
        return one if one.drops == 0 else replace(one, drops=0)
    return None if one.drops + 1 >= FURTHER_NEEDED else replace(one, drops=one.drops + 1)
