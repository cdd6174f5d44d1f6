"""Breaches found in readings that came late: told once per kind and direction. Pure.

1. Late readings are confirmed as live ones are, by the times at which they were measured, and apart
   from them: they say nothing about the patient now.
2. They are told when the run of late readings is over: a live reading came and nothing late for
   ``QUIET`` before it (a monitor may send its backlog between live readings), or nothing late came
   for ``OVER``. A run that does not end is told after ``RUN_AT_MOST``.
3. What is told waits for an answer, and people are reminded of it until then, as of an episode;
   only a high one goes up the escalation ladder. Another one of its kind and direction joins it:
   one answer is enough for both.
4. A breach that is no worse than an episode that is open is not told: it was.
5. A reading of unknown age was measured nobody knows when; it is a technical alarm, not a late one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

from bots.alerts.alarm import (
    ReadingFact,
    Reason,
    Reasoned,
    confirmed,
    with_sample,
    worst_broken,
)
from bots.alerts.alarm_state import AlarmId, LateBreach, LateRun, Sample
from bots.alerts.limits import Bands, Direction, Limit, Priority, Rules, TrackKey
from fajma.vitals import Kind

# FAJMA defaults, not from a guideline.

QUIET: Final = timedelta(seconds=10)
"""Time without late readings before a live one that ends the run."""

OVER: Final = timedelta(seconds=60)
"""Time without late readings that ends the run, whatever else comes."""

RUN_AT_MOST: Final = timedelta(minutes=5)
"""A longer run is told in parts."""


@dataclass(frozen=True, slots=True)
class LateDecision(Reasoned):
    """What is said, or not, about a breach that nobody could be told of at the time.

    Attributes:
        reason: why it is announced, or why not.
        kind: what was measured.
        direction: on which side of normal.
        priority: of ``limit``.
        value: the worst one, in the unit of the kind.
        measured_at: when it was measured.
        limit: the worst limit that is confirmed.
        alarm_id: the alarm, which waits for an answer.
        first: when the first breaching sample was measured.
        last: when the last one was.
        at: when this was decided, by our clock.
        step: of the escalation ladder that is reached, from 0; all up to it are told.
    """

    reason: Reason
    kind: Kind
    direction: Direction
    priority: Priority
    value: Decimal
    measured_at: datetime
    limit: Limit
    alarm_id: AlarmId
    first: datetime
    last: datetime
    at: datetime
    step: int = 0

    @property
    def key(self) -> tuple[str, ...]:
        """The subject, then what may be said of it (``alarm.Decision.key``)."""
        subject = f"late-{self.kind}-{self.direction}"
        return (subject, self.reason, self.priority.name, self.alarm_id)


def decide(
    track: TrackKey, breach: LateBreach, reason: Reason, at: datetime, *, step: int = 0
) -> LateDecision:
    """Put into a decision what is known of a late breach."""
    direction = breach.limit.direction
    return LateDecision(
        reason=reason,
        kind=Kind(track.removesuffix(f"-{direction}")),
        direction=direction,
        priority=breach.limit.priority,
        value=breach.worst.value,
        measured_at=breach.worst.measured_at,
        limit=breach.limit,
        alarm_id=breach.alarm_id,
        first=breach.first,
        last=breach.last,
        at=at,
        step=step,
    )


def gather(
    runs: Mapping[TrackKey, LateRun], fact: ReadingFact, rules: Rules
) -> Mapping[TrackKey, LateRun]:
    """Take in a late reading; the very same runs if it tells nothing."""
    reading = fact.reading
    changed = {
        key: replace(run, heard=reading.received_at) for key, run in runs.items()
    }  # more may come of each of them
    for kind, value in reading.values.items():
        for bands in rules.by_kind.get(kind, ()):
            sample = Sample(reading.measured_at, value)
            run = changed.get(bands.key)
            if run is None:
                if not bands.limits[0].broken_by(value):
                    continue
                run = LateRun((), reading.received_at, reading.received_at)
            changed[bands.key] = _with(run, bands, sample, fact.position)
    return changed or runs


def _with(run: LateRun, bands: Bands, sample: Sample, position: int) -> LateRun:
    """The run with one sample more, in the order in which they come."""
    found = run.found
    window = with_sample(run.window, sample, bands, bands.limits)
    limit = confirmed(window, bands, bands.limits)
    if found is None:
        if limit is not None:
            breaching = [one for one in window if limit.broken_by(one.value)]
            found = LateBreach(
                AlarmId(f"late-{bands.key}-{position}"),
                limit,
                worst=_worst(limit, *breaching),
                first=min(one.measured_at for one in breaching),
                last=max(one.measured_at for one in breaching),
            )
    elif worst_broken(bands, sample.value) is not None:
        worse = limit is not None and limit.priority > found.limit.priority
        found = replace(
            found,
            limit=limit if limit is not None and worse else found.limit,
            worst=_worst(found.limit, found.worst, sample),
            first=min(found.first, sample.measured_at),
            last=max(found.last, sample.measured_at),
        )
    return LateRun(window, run.began, run.heard, found)


def _worst(limit: Limit, *samples: Sample) -> Sample:
    """The sample that lies furthest out, on the side that a limit guards."""
    low = limit.direction is Direction.LOW
    return (min if low else max)(samples, key=lambda one: one.value)


def joined(before: LateBreach | None, found: LateBreach) -> LateBreach:
    """What was found, together with what of its kind and direction waits for an answer."""
    if before is None:
        return found
    return LateBreach(
        before.alarm_id,
        max(before.limit, found.limit, key=lambda limit: limit.priority),
        _worst(before.limit, before.worst, found.worst),
        min(before.first, found.first),
        max(before.last, found.last),
    )


def over(
    runs: Mapping[TrackKey, LateRun], at: datetime, *, live: bool
) -> tuple[Mapping[TrackKey, LateRun], list[tuple[TrackKey, LateBreach]]]:
    """The runs that go on, and what was found in those that are over.

    Args:
        runs: those under way.
        at: now.
        live: whether a live reading came now.
    """
    ended = {key for key, run in runs.items() if at >= ends(run, live=live)}
    if not ended:
        return runs, []
    found = [(key, run.found) for key, run in sorted(runs.items()) if key in ended]
    left = {key: run for key, run in runs.items() if key not in ended}
    return left, [(key, breach) for key, breach in found if breach is not None]


def ends(run: LateRun, *, live: bool = False) -> datetime:
    """When a run is over if nothing more comes late."""
    return min(run.heard + (QUIET if live else OVER), run.began + RUN_AT_MOST)
