"""How good alarms were: what was told over a patient day, compared with what happened; pure.

Definitions. An *alarm* is a message that somebody must look; a *message* may also say that an
episode is over. An event is *reachable* when the truth breaks the mildest limit of one of its
tracks (for a technical event: when it happens). A reachable event is *found* when an alarm of one
of its tracks comes within its window, from its start to 60 s after its end. The *time to alarm*
runs from the moment the truth breaks the limit to the first such alarm; one that came before counts
as 0 s. An alarm is *false* when no window of an event with its track holds it: so within a benign
event, and at rest, and when it is of another kind or direction than the event.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from benchmarks.patient_days import (
    DAY_S,
    DURING_OUTAGE,
    EVERY_S,
    TECHNICAL,
    TRACKS,
    Cause,
    Event,
    PatientDay,
)
from bots.alerts.limits import DEFAULT_LIMITS, Comparison, Direction, Limit, Priority
from fajma.vitals import Kind

AFTER_S: Final = 60.0
"""How long after the end of an event an alarm still counts as being about it."""

REST: Final = "rest"
"""An alarm while nothing happens."""
REST_BREACH: Final = "rest_true_breach"
"""The same, but right about the value: the truth broke the limit within the last 30 s."""
REST_COPD: Final = "rest_copd"
"""About the SpO2 of a patient who is meant to have 88 to 92 %, and has it."""
OTHER_TRACK: Final = "other_track"
"""In the window of an event, but about something else."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message in a room.

    Attributes:
        at_s: when, seconds since the start of the day.
        track: kind and direction, such as ``spo2-low``, or one of the others of ``patient_days``.
        over: whether it only says that an episode is over.
    """

    at_s: float
    track: str
    over: bool = False


@dataclass(slots=True)
class Score:
    """What many days add up to.

    Attributes:
        days: patient-days.
        delays_s: of each reachable event by cause: the time to alarm; ``None`` if not found.
        already_open: of those not found, how many began while an episode of one of their tracks was
            announced and not over: whoever looked knew, whoever did not was not told again.
        unreachable: events that break no limit.
        false: false alarms, by what happened then.
        alarms: all of them.
        messages: alarms and what else was told.
    """

    days: float = 0.0
    delays_s: dict[Cause, list[float | None]] = field(default_factory=dict)
    already_open: Counter[Cause] = field(default_factory=Counter)
    unreachable: Counter[Cause] = field(default_factory=Counter)
    false: Counter[str] = field(default_factory=Counter)
    alarms: int = 0
    messages: int = 0

    def add(self, other: Score) -> None:
        """Take in the score of other days."""
        self.days += other.days
        for cause, delays in other.delays_s.items():
            self.delays_s.setdefault(cause, []).extend(delays)
        self.already_open.update(other.already_open)
        self.unreachable.update(other.unreachable)
        self.false.update(other.false)
        self.alarms += other.alarms
        self.messages += other.messages


def mildest_limits(*, copd: bool) -> Mapping[str, Limit]:
    """By track, the limit that a clinician wants to be told of.

    They are the mildest defaults, and for COPD the limit of the 88 to 92 % profile whether or not
    an engine knows it, so that all ways to alarm are held against the same truth.
    """
    limits = {
        f"{kind}-{side[0].direction}": side[0]
        for kind, sides in DEFAULT_LIMITS.items()
        for side in sides
    }
    if copd:
        limits["spo2-low"] = Limit(Comparison.BELOW, Decimal(88), Priority.HIGH)
    return limits


def score(day: PatientDay, messages: Sequence[Message]) -> Score:
    """Hold one day's messages, in order, against what happened."""
    alarms = [message for message in messages if not message.over]
    result = Score(days=day.duration_s / DAY_S, alarms=len(alarms), messages=len(messages))
    limits = mildest_limits(copd=day.copd)
    wanted = [event for event in day.events if TRACKS[event.cause]]
    for event in wanted:
        reached_s = _reached_s(day, event, limits)
        if reached_s is None:
            result.unreachable[event.cause] += 1
        else:
            first = next((alarm for alarm in alarms if _is_about(alarm, event)), None)
            delay_s = None if first is None else max(first.at_s - reached_s, 0.0)
            result.delays_s.setdefault(event.cause, []).append(delay_s)
            result.already_open[event.cause] += first is None and _was_open(messages, event)
    for alarm in alarms:
        if not any(_is_about(alarm, event) for event in wanted):
            result.false[_circumstance(day, alarm, limits)] += 1
    return result


def _reached_s(day: PatientDay, event: Event, limits: Mapping[str, Limit]) -> float | None:
    """When there was something to tell."""
    tracks = TRACKS[event.cause]
    if TECHNICAL in tracks:
        return event.start_s
    if DURING_OUTAGE in tracks:
        return event.end_s  # nobody can know before
    found = None
    for kind, values in day.truth.items():
        for track in tracks:
            limit = limits.get(track)
            if limit is None or track.rpartition("-")[0] != kind:
                continue
            place = _first_broken(limit, values, event)
            if place is not None:
                found = place if found is None else min(found, place)
    return None if found is None else float(found * EVERY_S)


def _first_broken(limit: Limit, values: Sequence[float], event: Event) -> int | None:
    first, last = int(event.start_s) // EVERY_S, math.ceil(event.end_s / EVERY_S)
    places = range(first, min(last, len(values)))
    return next((place for place in places if _breaks(limit, values[place])), None)


def _breaks(limit: Limit, value: float) -> bool:
    """Whether a true value is beyond a limit; being exactly on it is no matter of measurement."""
    threshold = float(limit.threshold)
    return value < threshold if limit.direction is Direction.LOW else value > threshold


def _is_about(alarm: Message, event: Event) -> bool:
    within = event.start_s <= alarm.at_s <= event.end_s + AFTER_S
    return within and alarm.track in TRACKS[event.cause]


def _was_open(messages: Sequence[Message], event: Event) -> bool:
    """Whether an episode of the event's tracks was announced before it and not over."""
    last = {each.track: each for each in messages if each.at_s < event.start_s}
    return any(track in last and not last[track].over for track in TRACKS[event.cause])


def _circumstance(day: PatientDay, alarm: Message, limits: Mapping[str, Limit]) -> str:
    """What happened when a false alarm came; where several things did, the first of these."""
    around = {e.cause for e in day.events if e.start_s <= alarm.at_s <= e.end_s + AFTER_S}
    order = (Cause.OFFLINE, Cause.PROBE_OFF, Cause.MOTION, Cause.EXERCISE)
    known = next((cause for cause in order if cause in around), None)
    if known is not None:
        return known
    if around:
        return OTHER_TRACK
    if _true_lately(day, alarm, limits):
        return REST_BREACH
    return REST_COPD if day.copd and alarm.track == "spo2-low" else REST


def _true_lately(day: PatientDay, alarm: Message, limits: Mapping[str, Limit]) -> bool:
    limit = limits.get(alarm.track)
    if limit is None:
        return False
    values = day.truth[Kind(alarm.track.rpartition("-")[0])]
    place = int(alarm.at_s) // EVERY_S
    return any(_breaks(limit, value) for value in values[max(place - 6, 0) : place + 1])


# --- figures ---


def found_of(delays_s: Iterable[float | None]) -> tuple[int, int]:
    """How many events were found, and how many there were."""
    known = list(delays_s)
    return sum(delay is not None for delay in known), len(known)


def interval(found: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, J Am Stat Assoc 1927;22:209-12); 0 to 1 for none."""
    if of == 0:
        return 0.0, 1.0
    z = 1.96
    share = found / of
    middle = share + z * z / (2 * of)
    half = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    whole = 1 + z * z / of
    return max((middle - half) / whole, 0.0), min((middle + half) / whole, 1.0)


def quantile(delays_s: Iterable[float | None], part: float) -> float | None:
    """The nearest-rank quantile of the times of found events; ``None`` if there is none."""
    known = sorted(delay for delay in delays_s if delay is not None)
    if not known:
        return None
    return known[max(math.ceil(part * len(known)) - 1, 0)]
