"""What facts do to a patient's alarms: time that passed, answers, orders, links, outages. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from decimal import Decimal

from bots.alerts import attention, technical
from bots.alerts.alarm import Reason
from bots.alerts.alarm_state import PatientState, Profile, Standing, Trouble
from bots.alerts.limits import Direction, TrackKey
from bots.alerts.open_alarms import (
    AnyDecision,
    OpenAlarm,
    begin_trouble,
    caring,
    end_late_runs,
    episode_of,
    last_value,
    open_alarms,
    vital,
    without,
)
from bots.alerts.own_limits import lasting, with_fact
from bots.alerts.site_rules import SiteRules
from fajma.facts import (
    Acknowledged,
    Connection,
    Entered,
    Fact,
    HandedOver,
    LimitSet,
    OutageEnded,
    OutageStarted,
    Profiled,
    Snoozed,
    TakenOff,
    TimePassed,
    Worn,
)

_Taken = tuple[PatientState, list[AnyDecision]]


def take_fact(state: PatientState, fact: Fact, number: str, rules: SiteRules) -> _Taken:
    """Take in one fact.

    Args:
        state: what is remembered of the patient; its place in the log of facts is the caller's.
        fact: what was noted.
        number: its place, for the identity of an alarm: ``n17``.
        rules: what the site judges by.
    """
    match fact:
        case TimePassed(at):
            taken = _pass_time(state, at, number, rules)
        case Acknowledged():
            taken = _acknowledge(state, fact, rules)
        case Snoozed():
            taken = _snooze(state, fact)
        case TakenOff():
            taken = _take_off(state, fact)
        case OutageEnded(at):
            taken = _end_outage(state, at)
        case _:
            standing = _stand(state.standing, fact)
            taken = _judge_by(replace(state, standing=standing), fact.at, rules)
    return taken


def _stand(standing: Standing, fact: Fact) -> Standing:
    """What holds after a fact that says no more than that."""
    match fact:
        case Worn(at, device):
            standing = replace(standing, worn={**standing.worn, device: at})
        case Connection(at, device, online):
            offline = without(standing.offline, device)
            standing = replace(standing, offline=offline if online else {**offline, device: at})
        case Profiled(_, age_band, pregnant, copd, ward):
            standing = replace(standing, profile=Profile(age_band, pregnant, copd), ward=ward)
        case LimitSet():
            standing = replace(standing, own_limits=with_fact(standing.own_limits, fact))
        case HandedOver(at):
            left = lasting(standing.own_limits, at, handed_over=True)
            standing = replace(standing, own_limits=left)
        case Entered():
            standing = replace(standing, entered=_with_entered(standing.entered, fact))
        case OutageStarted(at):
            standing = replace(standing, outage_since=at)
        case _:
            pass
    return standing


def _with_entered(entered: tuple[Entered, ...], fact: Entered) -> tuple[Entered, ...]:
    kept, known = [fact], _stated(fact)
    for one in entered:
        if not _stated(one) <= known:
            kept.append(one)
            known |= _stated(one)
    return tuple(kept)


def _stated(fact: Entered) -> frozenset[str]:
    return frozenset(
        sign
        for sign in ("respiration", "consciousness", "oxygen")
        if getattr(fact, sign) is not None
    )


def _judge_by(state: PatientState, at: datetime, rules: SiteRules) -> _Taken:
    """End the episodes of what nothing limits any more."""
    limited = {bands.key for bands in rules.of(state.standing).bands}
    out: list[AnyDecision] = []
    tracks = dict(state.tracks)
    for key, track in sorted(state.tracks.items()):
        if key in limited:
            continue
        del tracks[key]
        if track.episode is not None:
            told = attention.was_told(state.care.get(track.episode.alarm_id))
            reason = Reason.RULES_CHANGED if told else Reason.ENDED_UNTOLD
            out.append(vital(state, key, track.episode, reason, at))
            state = replace(state, care=without(state.care, track.episode.alarm_id))
    return replace(state, tracks=tracks) if len(tracks) < len(state.tracks) else state, out


def _pass_time(state: PatientState, at: datetime, number: str, rules: SiteRules) -> _Taken:
    """What only time brings about."""
    out: list[AnyDecision] = []
    left = lasting(state.standing.own_limits, at)
    if left is not state.standing.own_limits:
        state, out = _judge_by(
            replace(state, standing=replace(state.standing, own_limits=left)), at, rules
        )
    silent = technical.silences(state.standing, state.heard, state.troubles, rules.silent_after)
    for since_due, device, since in silent:
        if since_due <= at:
            episode = technical.fell_silent(device, since, number)
            state = replace(state, troubles=(*state.troubles, episode))
            state = begin_trouble(state, episode, at, out)
    if state.late_runs:
        state = end_late_runs(state, at, out, live=False)
    state = _end_snoozes(state, at, out)
    for alarm in tuple(open_alarms(state, rules)):
        care = state.care.get(alarm.alarm_id)
        if care is None or alarm.folded or alarm.snooze is not None:
            continue
        prompted = attention.prompt(care, alarm.schedule, at, _value_of(state, alarm))
        if prompted is not None:
            care, reason = prompted
            state = caring(state, alarm.alarm_id, care)
            if alarm.of_clock:
                state = replace(state, clock_told=at)
            out.append(alarm.say(reason, at, step=care.step))
    return state, out


def _end_snoozes(state: PatientState, at: datetime, out: list[AnyDecision]) -> PatientState:
    for key, snooze in sorted(state.snoozes.items()):
        if at < snooze.until:
            continue
        state = replace(state, snoozes=without(state.snoozes, key))
        episode = episode_of(state, key)
        care = None if episode is None else state.care.get(episode.alarm_id)
        if episode is None or care is None or care.acknowledged:
            continue
        if care.told_at is None or care.told_at < snooze.until:
            said = vital(state, key, episode, Reason.SNOOZE_ENDED, at, step=care.step)
            care = attention.told_again(care, at, said.value)
            state = caring(state, episode.alarm_id, care)
            out.append(said)
    return state


def _acknowledge(state: PatientState, fact: Acknowledged, rules: SiteRules) -> _Taken:
    out: list[AnyDecision] = []
    for alarm in tuple(open_alarms(state, rules)):
        care = state.care.get(alarm.alarm_id)
        meant = fact.alarm_id is None or fact.alarm_id == alarm.alarm_id
        if not meant or care is None or care.acknowledged or alarm.folded:
            continue
        out.append(alarm.say(Reason.ACKNOWLEDGED, fact.at, step=care.step))
        if alarm.late is None:
            if care.value is None:  # a snooze kept it from being told: the answer tells of it
                care = replace(care, value=_value_of(state, alarm))
            state = caring(state, alarm.alarm_id, attention.answered(care, fact.at))
        else:  # an answer is all that it waits for
            state = replace(
                state,
                late=without(state.late, alarm.late),
                care=without(state.care, alarm.alarm_id),
            )
    return state, out


def _value_of(state: PatientState, alarm: OpenAlarm) -> Decimal | None:
    last = None if alarm.kind is None else last_value(state, alarm.kind)
    return None if last is None else last[0]


def _snooze(state: PatientState, fact: Snoozed) -> _Taken:
    key = TrackKey(f"{fact.kind}-{Direction(fact.direction)}")
    episode = episode_of(state, key)
    last = last_value(state, fact.kind)
    snooze = attention.snooze(
        until=fact.until,
        at=fact.at,
        band=None if episode is None else episode.limit.priority,
        value=None if last is None else last[0],
    )
    state = replace(state, snoozes={**state.snoozes, key: snooze})
    if episode is None:
        return state, []
    return state, [vital(state, key, episode, Reason.SNOOZED, fact.at)]


def _take_off(state: PatientState, fact: TakenOff) -> _Taken:
    out: list[AnyDecision] = []
    standing = state.standing
    standing = replace(
        standing,
        worn=without(standing.worn, fact.device),
        offline=without(standing.offline, fact.device),
        taken_off=fact.at,
    )
    care = dict(state.care)
    for one in state.troubles:
        if one.device == fact.device:
            out.append(technical.decide(Reason.TAKEN_OFF, one, state.latest, fact.at))
            care.pop(one.alarm_id, None)
    state = replace(
        state,
        standing=standing,
        troubles=tuple(one for one in state.troubles if one.device != fact.device),
        heard=without(state.heard, fact.device),
    )
    if standing.worn:
        return replace(state, care=care), out
    # The worst first: it alone is told.
    ending = sorted(
        ((key, track.episode) for key, track in state.tracks.items() if track.episode),
        key=lambda one: (-one[1].limit.priority, one[0]),
    )
    told_one = False
    for key, episode in ending:
        told = attention.was_told(care.pop(episode.alarm_id, None))
        reason = Reason.NOT_MONITORED if told and not told_one else Reason.TAKEN_OFF
        told_one = told_one or told
        out.append(vital(state, key, episode, reason, fact.at))
    return replace(state, tracks={}, care=care, snoozes={}, latest=()), out


def _end_outage(state: PatientState, at: datetime) -> _Taken:
    out: list[AnyDecision] = []
    standing = replace(state.standing, outage_since=None, outage_ended=at)
    left = []
    for one in state.troubles:
        care = state.care.get(one.alarm_id)
        silent = one.trouble is Trouble.NO_READINGS
        if silent and not attention.was_told(care):
            out.append(technical.decide(Reason.ENDED_UNTOLD, one, state.latest, at))
            state = replace(state, care=without(state.care, one.alarm_id))
            continue
        left.append(one)
        if silent and care is not None and not care.acknowledged:
            # As if it were told now, lest all reminders come at once.
            state = caring(state, one.alarm_id, attention.told_again(care, at, None))
    return replace(state, standing=standing, troubles=tuple(left)), out
