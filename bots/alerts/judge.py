"""All that the alarm engine decides: a pure function of the readings and facts of one patient.

It does no I/O and knows no clock: what time it is, the facts say. One subject each:

- ``alarm``: values against limits; ``profiles``, ``own_limits``: which limits;
- ``late``: values that came late; ``technical``: what keeps us from judging;
- ``attention``: what is told about an alarm after its start, until somebody answers.

Here is how they meet, in order:

1. Readings and facts each have a log and a place of their own in the state. A place seen before
   changes nothing, so whoever judges again from a state that was kept earlier, in the same order,
   gets the same decisions.
2. A reading is judged at the time it was received. What only time brings about (silence,
   reminders, the next step, the end of a snooze or of a limit) is decided when ``TimePassed`` says
   so: readings that are judged late, after we were down, cause no reminders of their own.
3. Other limits (another profile, one of the patient's own, its end) are judged by from the next
   sample on. An episode whose kind nothing limits any more is over, and that is told.
4. Who wears no monitor any more has no open episode; that is told once, if there was one. A late
   breach still waits for an answer. A reading from before the monitor was taken off that comes
   after that is a late one.
5. In an outage of many, silence is not told by each. What was told before it is not repeated in it,
   and who is still silent at its end has as long as anybody to come back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from bots.alerts import attention, late, technical
from bots.alerts.alarm import Decision, ReadingFact, Reason, judge_values
from bots.alerts.alarm_state import Heard, Latest, PatientState
from bots.alerts.noted import take_fact
from bots.alerts.open_alarms import (
    AnyDecision,
    begin_trouble,
    caring,
    end_late_runs,
    episode_of,
    open_alarms,
    vital,
    without,
)
from bots.alerts.site_rules import SiteRules
from fajma.facts import Fact
from fajma.vitals import Age, Kind, Reading


@dataclass(frozen=True, slots=True)
class NotedFact:
    """A fact as it stands in the log of facts.

    Attributes:
        position: its place in that log; rises, is never used twice, starts at 0 or later.
        fact: what was noted.
    """

    position: int
    fact: Fact


def take(
    state: PatientState, fact: ReadingFact | NotedFact, rules: SiteRules
) -> tuple[PatientState, tuple[AnyDecision, ...]]:
    """Take in one reading or fact of a patient.

    Args:
        state: what is remembered of the patient.
        fact: what is new, and its place in its log.
        rules: what the site judges by.

    Returns:
        The new state, and what was decided, in order; nothing for a place taken in before. Where a
        decision is announced, the new state is ``worth_keeping``.
    """
    if isinstance(fact, ReadingFact):
        if fact.position <= state.position:
            return state, ()
        return _take_reading(state, fact, rules)
    if fact.position <= state.noted:
        return state, ()
    after, decisions = take_fact(state, fact.fact, f"n{fact.position}", rules)
    return replace(after, noted=fact.position), tuple(decisions)


def due(state: PatientState, rules: SiteRules) -> datetime | None:
    """When a ``TimePassed`` must be noted at the latest, if nothing else comes.

    Taking in one of that time or later moves it on.
    """
    standing = state.standing
    times = [
        at
        for at, _, _ in technical.silences(
            standing, state.heard, state.troubles, rules.silent_after
        )
    ]
    times += [late.ends(run) for run in state.late_runs.values()]
    times += [snooze.until for snooze in state.snoozes.values()]
    times += [limit.until for limit in standing.own_limits]
    for alarm in open_alarms(state, rules) if state.care else ():
        care = state.care.get(alarm.alarm_id)
        at = None if care is None or alarm.folded else attention.next_due(care, alarm.schedule)
        if at is not None:
            times.append(at if alarm.snooze is None else max(at, alarm.snooze.until))
    return min(times, default=None)


# Readings


def _take_reading(
    state: PatientState, fact: ReadingFact, rules: SiteRules
) -> tuple[PatientState, tuple[AnyDecision, ...]]:
    reading, standing = fact.reading, state.standing
    if reading.device not in standing.worn and _from_before(standing.taken_off, reading):
        reading = replace(reading, age=Age.LATE)
        fact = replace(fact, reading=reading)
    own = rules.of(standing)
    tracks, of_values = judge_values(state.tracks, fact, own)
    if reading.age is Age.LATE:
        runs = late.gather(state.late_runs, fact, own)
        return replace(state, position=fact.position, late_runs=runs), tuple(of_values)
    before = state.heard.get(reading.device)
    heard = technical.hear(before, reading, rules.silent_after)
    after = PatientState(
        fact.position,
        tracks,
        state.noted,
        standing,
        state.troubles,
        state.care,
        state.snoozes,
        state.late_runs,
        state.late,
        state.clock_told,
        {**state.heard, reading.device: heard},
        _renewed(state.latest, reading) if reading.age is Age.LIVE else state.latest,
    )
    in_trouble = after.troubles or heard.bad_since or heard.unusable
    if not (of_values or in_trouble or after.snoozes or after.late_runs):
        return after, ()  # nearly every reading ends here
    decisions: list[AnyDecision] = []
    for decision in of_values:
        after = _attend(after, decision, decisions)
    if after.care and reading.age is Age.LIVE:
        after = _watch_told(after, fact, rules, decisions)
    if after.snoozes and reading.age is Age.LIVE:
        after = _sample_snoozes(after, fact, rules, decisions)
    if in_trouble:
        after = _sense(after, before, heard, fact, decisions)
    if after.late_runs and reading.age is Age.LIVE:
        after = end_late_runs(after, reading.received_at, decisions, live=True)
    return after, tuple(decisions)


def _from_before(moment: datetime | None, reading: Reading) -> bool:
    return moment is not None and reading.measured_at <= moment


def _renewed(latest: tuple[Latest, ...], reading: Reading) -> tuple[Latest, ...]:
    """The newest readings that are needed to have the newest value of each kind."""
    values = reading.values
    if not values:
        return latest
    newest = Latest(reading.measured_at, values)
    if len(latest) == 1 and latest[0].values.keys() <= values.keys():
        return (newest,)  # nearly always
    kept, known = [newest], set(values)
    for one in latest:
        if not known.issuperset(one.values):
            kept.append(one)
            known.update(one.values)
    return tuple(kept)


def _attend(state: PatientState, decision: Decision, out: list[AnyDecision]) -> PatientState:
    """Decide whether people are told what a value means."""
    alarm_id, reason = decision.alarm_id, decision.reason
    if alarm_id is None or reason not in _CHANGES:
        out.append(decision)
        return state
    care = state.care.get(alarm_id)
    if reason is Reason.RECOVERED:
        told = attention.was_told(care)
        out.append(decision if told else replace(decision, reason=Reason.ENDED_UNTOLD))
        snooze = state.snoozes.get(decision.track)
        if snooze is not None:
            outlived = attention.outlives(snooze)
            state = replace(state, snoozes={**state.snoozes, decision.track: outlived})
        return replace(state, care=without(state.care, alarm_id))
    if reason is Reason.IMPROVED:
        out.append(decision)
        if care is None:
            return state
        return caring(state, alarm_id, replace(care, priority=decision.priority))
    snooze = state.snoozes.get(decision.track)
    covered = attention.covers(snooze, decision.priority, decision.at)
    care = attention.worsened(
        care, decision.priority, decision.at, told=not covered, value=decision.value
    )
    out.append(
        replace(decision, reason=Reason.SNOOZED) if covered else replace(decision, step=care.step)
    )
    if snooze is not None and not covered and decision.at < snooze.until:
        state = replace(state, snoozes=without(state.snoozes, decision.track))
    return caring(state, alarm_id, care)


_CHANGES: Final = frozenset({Reason.STARTED, Reason.WORSENED, Reason.RECOVERED, Reason.IMPROVED})


def _watch_told(
    state: PatientState, fact: ReadingFact, rules: SiteRules, out: list[AnyDecision]
) -> PatientState:
    """Tell again of what has gone much further since people were told."""
    reading = fact.reading
    for key in attention.FURTHER:
        episode = episode_of(state, key)
        care = None if episode is None else state.care.get(episode.alarm_id)
        if episode is None or care is None or key in state.snoozes:
            continue
        value = reading.values.get(Kind(key.removesuffix(f"-{episode.limit.direction}")))
        if value is None:
            continue
        limits = next(one.limits for one in rules.of(state.standing).bands if one.key == key)
        if episode.limit.priority < limits[-1].priority:
            continue  # the next band tells it
        after = attention.watched(care, key, value, breaks_limit=limits[0].broken_by(value))
        if after is care:
            continue
        if after is not None:
            state = caring(state, episode.alarm_id, after)
            continue
        reason = Reason.WORSE_SINCE_ANSWERED if care.acknowledged else Reason.WORSE_SINCE_TOLD
        care = attention.told_again(care, reading.received_at, value)
        state = caring(state, episode.alarm_id, care)
        out.append(vital(state, key, episode, reason, reading.received_at, step=care.step))
    return state


def _sample_snoozes(
    state: PatientState, fact: ReadingFact, rules: SiteRules, out: list[AnyDecision]
) -> PatientState:
    """Break the snoozes in which a value fell too far."""
    reading = fact.reading
    for bands in rules.of(state.standing).bands:
        snooze, value = state.snoozes.get(bands.key), reading.values.get(bands.kind)
        if snooze is None or value is None:
            continue
        breaks = bands.limits[0].broken_by(value)
        after = attention.sampled(snooze, bands.key, value, breaks_limit=breaks)
        if after is snooze:
            continue
        if after is not None:
            state = replace(state, snoozes={**state.snoozes, bands.key: after})
            continue
        state = replace(state, snoozes=without(state.snoozes, bands.key))
        episode = episode_of(state, bands.key)
        care = None if episode is None else state.care.get(episode.alarm_id)
        if episode is not None and care is not None:
            care = attention.told_again(care, reading.received_at, value)
            state = caring(state, episode.alarm_id, care)
            out.append(
                vital(
                    state,
                    bands.key,
                    episode,
                    Reason.SNOOZE_BROKEN,
                    reading.received_at,
                    step=care.step,
                )
            )
    return state


def _sense(
    state: PatientState,
    before: Heard | None,
    heard: Heard,
    fact: ReadingFact,
    out: list[AnyDecision],
) -> PatientState:
    """What a reading means for the technical alarms."""
    at = fact.reading.received_at
    troubles, began, ended = technical.judge_reading(
        state.troubles, before, heard, fact.reading, f"r{fact.position}"
    )
    state = replace(state, troubles=troubles)
    for one in ended:
        told = attention.was_told(state.care.get(one.alarm_id))
        reason = Reason.RECOVERED if told else Reason.ENDED_UNTOLD
        out.append(technical.decide(reason, one, state.latest, at))
        state = replace(state, care=without(state.care, one.alarm_id))
    for one in began:
        state = begin_trouble(state, one, at, out)
    return state
