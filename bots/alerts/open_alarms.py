"""The alarms of a patient that are not over, of every subject, and what is said of them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Final, Protocol, TypeVar

from bots.alerts import attention, late, technical
from bots.alerts.alarm import Decision, Reason
from bots.alerts.alarm_state import (
    AlarmId,
    Care,
    Episode,
    PatientState,
    Snooze,
    Trouble,
    TroubleEpisode,
)
from bots.alerts.late import LateDecision
from bots.alerts.limits import Priority, TrackKey
from bots.alerts.site_rules import Schedule, SiteRules
from bots.alerts.technical import TechnicalDecision
from fajma.vitals import Kind

AnyDecision = Decision | TechnicalDecision | LateDecision
"""What each has: ``reason``, ``alarm_id``, ``priority``, ``at``, ``step``, ``announce``, ``rings``
and ``key``."""


class _Say(Protocol):
    def __call__(self, reason: Reason, at: datetime, *, step: int = 0) -> AnyDecision: ...


@dataclass(frozen=True, slots=True)
class OpenAlarm:
    """An alarm that is not over, of whichever subject.

    Attributes:
        alarm_id: its identity.
        schedule: when people are told of it again.
        say: a decision about it, of a reason, a time and a step.
        snooze: the one that covers it.
        late: the kind and direction, where it is a late breach.
        folded: whether an outage is told in its place.
        of_clock: whether it is about a wrong clock.
        kind: what is measured, where it is about live values.
    """

    alarm_id: AlarmId
    schedule: Schedule
    say: _Say
    snooze: Snooze | None = None
    late: TrackKey | None = None
    folded: bool = False
    of_clock: bool = False
    kind: Kind | None = None


_CLOCK_SCHEDULE: Final = Schedule(technical.CLOCK_AGAIN)


def open_alarms(state: PatientState, rules: SiteRules) -> Iterator[OpenAlarm]:
    """All of them; ``say`` speaks of the state as it is here.

    In the order of their names, for a state that was stored has lost the order of its mappings,
    and judging again must give the same decisions in the same order.
    """
    schedules = rules.schedules_of(state.standing.ward)
    for key, track in sorted(state.tracks.items()):
        episode = track.episode
        if episode is not None:
            yield OpenAlarm(
                episode.alarm_id,
                schedules[episode.limit.priority],
                partial(vital, state, key, episode),
                snooze=state.snoozes.get(key),
                kind=Kind(key.removesuffix(f"-{episode.limit.direction}")),
            )
    for one in state.troubles:
        of_clock = one.trouble is Trouble.WRONG_CLOCK
        yield OpenAlarm(
            one.alarm_id,
            _CLOCK_SCHEDULE if of_clock else schedules[technical.PRIORITIES[one.trouble]],
            partial(_technical, state, one),
            folded=_folded(state, one),
            of_clock=of_clock,
        )
    for key, breach in sorted(state.late.items()):
        priority = breach.limit.priority
        schedule = schedules[priority]
        yield OpenAlarm(
            breach.alarm_id,
            schedule if priority is Priority.HIGH else Schedule(schedule.again),
            partial(late.decide, key, breach),
            late=key,
        )


def vital(
    state: PatientState,
    key: TrackKey,
    episode: Episode,
    reason: Reason,
    at: datetime,
    *,
    step: int = 0,
) -> Decision:
    """A decision about an episode that no value of now brought about."""
    direction = episode.limit.direction
    kind = Kind(key.removesuffix(f"-{direction}"))
    # Only a state of version 1 may not know the last value; the limit is as near as we get then.
    value, measured_at = last_value(state, kind) or (episode.limit.threshold, episode.since)
    return Decision(
        reason=reason,
        kind=kind,
        direction=direction,
        priority=episode.limit.priority,
        value=value,
        limit=episode.limit,
        alarm_id=episode.alarm_id,
        since=episode.limit_since,
        measured_at=measured_at,
        at=at,
        step=step,
    )


def _technical(
    state: PatientState, episode: TroubleEpisode, reason: Reason, at: datetime, *, step: int = 0
) -> TechnicalDecision:
    return technical.decide(reason, episode, state.latest, at, step=step)


def _folded(state: PatientState, episode: TroubleEpisode) -> bool:
    in_outage = state.standing.outage_since is not None
    return in_outage and episode.trouble is Trouble.NO_READINGS


def episode_of(state: PatientState, key: TrackKey) -> Episode | None:
    """The open episode of a kind and direction."""
    track = state.tracks.get(key)
    return None if track is None else track.episode


def last_value(state: PatientState, kind: Kind) -> tuple[Decimal, datetime] | None:
    """The newest live value of a kind, and when it was measured."""
    for one in state.latest:
        if kind in one.values:
            return one.values[kind], one.measured_at
    return None


def caring(state: PatientState, alarm_id: AlarmId, care: Care) -> PatientState:
    """The state after people were told, or not, or answered."""
    return replace(state, care={**state.care, alarm_id: care})


_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


def without(mapping: Mapping[_Key, _Value], key: _Key) -> Mapping[_Key, _Value]:
    """The very same mapping if it does not have the key."""
    return (
        {one: value for one, value in mapping.items() if one != key} if key in mapping else mapping
    )


# What begins


def begin_trouble(
    state: PatientState, episode: TroubleEpisode, at: datetime, out: list[AnyDecision]
) -> PatientState:
    """Tell of a technical alarm that begins, unless an outage or a word of today covers it."""
    reason = Reason.STARTED
    care = attention.begun(technical.PRIORITIES[episode.trouble], at, told=True)
    if _folded(state, episode):
        reason, care = Reason.FOLDED, replace(care, told_at=None)
    elif episode.trouble is Trouble.WRONG_CLOCK:
        if state.clock_told is not None and at - state.clock_told < technical.CLOCK_AGAIN:
            reason, care = Reason.TOLD_TODAY, replace(care, told_at=state.clock_told)
        else:
            state = replace(state, clock_told=at)
    out.append(technical.decide(reason, episode, state.latest, at))
    return caring(state, episode.alarm_id, care)


def end_late_runs(
    state: PatientState, at: datetime, out: list[AnyDecision], *, live: bool
) -> PatientState:
    """Tell what was found in late readings, once no more of them come."""
    runs, found = late.over(state.late_runs, at, live=live)
    if runs is state.late_runs:
        return state
    state = replace(state, late_runs=runs)
    for track, new in found:
        breach = late.joined(state.late.get(track), new)
        episode = episode_of(state, track)
        if episode is not None and new.limit.priority <= episode.limit.priority:
            out.append(late.decide(track, new, Reason.ALREADY_OPEN, at))
            continue
        care = attention.worsened(
            state.care.get(breach.alarm_id), breach.limit.priority, at, told=True
        )
        out.append(late.decide(track, breach, Reason.DURING_OUTAGE, at, step=care.step))
        state = replace(state, late={**state.late, track: breach})
        state = caring(state, breach.alarm_id, care)
    return state
