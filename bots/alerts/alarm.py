"""The alarm engine: a pure function from readings to decisions.

It does no I/O and knows no clock: time comes with the facts. Its rules, in order:

1. Facts are taken in by rising position; a repeated or older position changes nothing.
2. Only a reading that is *live* says something about the patient now; that is decided where
   readings come in (``fajma.vitals.Age``). One that is late, or whose age nobody knows, is noted,
   but never starts, worsens, eases or ends a live episode.
3. A kind that a reading lacks changes nothing for that kind. Losing the probe, after which readings
   may have no value at all, closes no alarm.
4. A limit is *confirmed* when enough of the last good samples break it (``Confirmation``). Samples
   are taken in log order. When two neighbours lie further apart than ``gap``, those before it are
   stale and no longer count.
5. There is one *episode* per patient, kind and direction. Its start is announced, and so is each
   confirmed step into a worse band. Easing into a milder band is silent; worsening after that is
   announced again.
6. An episode ends when every sample of an unbroken run of at least ``dwell`` is back inside the
   mildest limit by at least ``hysteresis``. The end is announced once, and the next episode needs
   a fresh confirmation.

The limits are in ``limits``, what is remembered of a patient in ``alarm_state``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Final

from bots.alerts.alarm_state import AlarmId, Calm, Episode, PatientState, Sample, Track
from bots.alerts.limits import Bands, Direction, Limit, Priority, Rules, TrackKey
from fajma.vitals import Age, Kind, Reading


class Reason(StrEnum):
    """Why something was announced, or why it was not. The only such list there is.

    Of those announced, all but the ends ring: they must be new messages.
    """

    STARTED = "started"
    """Announced: a limit is confirmed, or a sensor's trouble lasts, and no episode was open."""
    WORSENED = "worsened"
    """Announced: a worse band is confirmed within an open episode."""
    DURING_OUTAGE = "during_outage"
    """Announced: late readings confirm a limit that nobody could be told of at the time."""
    RENOTIFIED = "renotified"
    """Announced: nobody answered, so those who were told are told again."""
    ESCALATED = "escalated"
    """Announced: nobody answered, or nobody could be reached, so the next step is told."""
    SNOOZE_ENDED = "snooze_ended"
    """Announced: the snooze is over and the episode is not."""
    SNOOZE_BROKEN = "snooze_broken"
    """Announced: within its band the episode got so much worse that the snooze ends early."""
    AGAIN_SINCE_ANSWERED = "again_since_answered"
    """Announced: the trouble that somebody answered to is back before its alarm was over."""
    ANSWER_LAPSED = "answer_lapsed"
    """Announced: the episode is still open, and somebody answered to it hours ago."""
    WORSE_SINCE_TOLD = "worse_since_told"
    """Announced: within its band the episode got so much worse that people must know."""
    WORSE_SINCE_ANSWERED = "worse_since_answered"
    """Announced: within its band the episode got so much worse that the answer no longer holds."""
    RECOVERED = "recovered"
    """Announced, without ringing: the episode is over (hysteresis and dwell are met)."""
    RULES_CHANGED = "rules_changed"
    """Announced, without ringing: the episode is over, for nothing limits its kind any more."""
    NOT_MONITORED = "not_monitored"
    """Announced, without ringing: the episode is over, for the patient wears no monitor now."""
    SNOOZED = "snoozed"
    """Silent: a snooze covers it."""
    ACKNOWLEDGED = "acknowledged"
    """Silent: somebody takes care; no reminder and no escalation follow."""
    FOLDED = "folded"
    """Silent: one of many in an outage that is told as one."""
    TOLD_TODAY = "told_today"
    """Silent: it began again within a day, and once a day is enough for it."""
    TAKEN_OFF = "taken_off"
    """Silent: a technical alarm is over, for its monitor is worn no more; or a second episode that
    ends as ``NOT_MONITORED`` does."""
    ENDED_UNTOLD = "ended_untold"
    """Silent: over, and nobody was told of it."""
    IMPROVED = "improved"
    """Silent: the episode went on in a milder band."""
    NOT_CONFIRMED = "not_confirmed"
    """Silent: the value breaks a limit, but too few samples do."""
    ALREADY_OPEN = "already_open"
    """Silent: the value breaks a limit whose episode was announced."""
    CLEARING = "clearing"
    """Silent: the value breaks no limit, but hysteresis or dwell is not met yet."""
    LATE = "late"
    """Silent: the reading is late, or of unknown age: it says nothing about the patient now."""

    @property
    def rings(self) -> bool:
        """Whether it must be a new message that makes phones ring."""
        return self in _RINGING

    @property
    def announced(self) -> bool:
        """Whether somebody is told at all."""
        return self in _RINGING or self in _ENDING


_RINGING: Final = frozenset(
    {
        Reason.STARTED,
        Reason.WORSENED,
        Reason.DURING_OUTAGE,
        Reason.RENOTIFIED,
        Reason.ESCALATED,
        Reason.SNOOZE_ENDED,
        Reason.SNOOZE_BROKEN,
        Reason.AGAIN_SINCE_ANSWERED,
        Reason.ANSWER_LAPSED,
        Reason.WORSE_SINCE_TOLD,
        Reason.WORSE_SINCE_ANSWERED,
    }
)
_ENDING: Final = frozenset({Reason.RECOVERED, Reason.RULES_CHANGED, Reason.NOT_MONITORED})


class Reasoned:
    """A decision of whatever subject: what follows from its reason alone."""

    __slots__ = ()
    reason: Reason

    @property
    def announce(self) -> bool:
        """Whether somebody is told."""
        return self.reason.announced

    @property
    def rings(self) -> bool:
        """Whether it must be a new message."""
        return self.reason.rings


@dataclass(frozen=True, slots=True)
class ReadingFact:
    """A reading as it stands in the readings log.

    Attributes:
        position: its place in the log; rises, is never used twice, starts at 0 or later.
        reading: what was measured.
    """

    position: int
    reading: Reading


@dataclass(frozen=True, slots=True)
class Decision(Reasoned):
    """What a reading meant for one kind and direction, announced or not.

    Attributes:
        reason: why it is announced, or why not.
        kind: what was measured.
        direction: on which side of normal.
        priority: of ``limit``.
        value: as measured, in the unit of the kind.
        limit: the limit it is about: confirmed (start, worsening), broken but silent, or the one
            last announced in the episode (clearing, recovery). An improvement names the new band.
        alarm_id: the episode; ``None`` where none is open. An announced decision always has one.
        since: when the first sample of the run that breaks ``limit`` was measured; for a silent
            word on an open episode and for its end, when the episode's first sample was.
        measured_at: when ``value`` was measured.
        at: when this was decided, by our clock: the time of the fact, or of receiving the reading.
        step: of the escalation ladder that is reached, from 0; all up to it are told.
    """

    reason: Reason
    kind: Kind
    direction: Direction
    priority: Priority
    value: Decimal
    limit: Limit
    alarm_id: AlarmId | None
    since: datetime
    measured_at: datetime
    at: datetime
    step: int = 0

    @property
    def track(self) -> TrackKey:
        """What it is about."""
        return TrackKey(f"{self.kind}-{self.direction}")

    @property
    def key(self) -> tuple[str, ...]:
        """The subject, then what may be said of it: whoever keeps changes alone compares these.

        A silent decision whose key equals the one before of the same subject tells nothing new.
        """
        return (self.track, self.reason, self.priority.name, self.alarm_id or "")


_NOTHING: Final = Track()


def step(
    state: PatientState, fact: ReadingFact, rules: Rules
) -> tuple[PatientState, tuple[Decision, ...]]:
    """Take in one reading of a patient, judging its values alone (``judge`` does all there is).

    Args:
        state: what is remembered of the patient.
        fact: the reading and its place in the log.
        rules: what to judge it by.

    Returns:
        The new state, and one decision for each kind and direction whose limit is broken or whose
        episode is open; none for a position that was taken in before. The new state has the very
        same ``tracks`` where nothing changed but the position; nothing is announced then.
    """
    if fact.position <= state.position:
        return state, ()
    tracks, decisions = judge_values(state.tracks, fact, rules)
    return replace(state, position=fact.position, tracks=tracks), tuple(decisions)


def judge_values(
    tracks: Mapping[TrackKey, Track], fact: ReadingFact, rules: Rules
) -> tuple[Mapping[TrackKey, Track], list[Decision]]:
    """What ``step`` does to the tracks."""
    reading = fact.reading
    decisions: list[Decision] = []
    for kind, value in reading.values.items():
        for bands in rules.by_kind.get(kind, ()):
            track = tracks.get(bands.key) if tracks else None
            if track is None:
                if not bands.limits[0].broken_by(value):
                    continue  # nearly every value ends here
                track = _NOTHING
            sample = Sample(reading.measured_at, value)
            if reading.age is Age.LIVE:
                after, decision = _judge(track, bands, sample, fact)
                if after is not track:
                    tracks = _replace(tracks, bands.key, after)
            else:
                decision = _late(track, bands, sample, fact)
            if decision is not None:
                decisions.append(decision)
    return tracks, decisions


def _replace(
    tracks: Mapping[TrackKey, Track], key: TrackKey, track: Track
) -> Mapping[TrackKey, Track]:
    kept = {k: v for k, v in tracks.items() if k != key}
    if track != _NOTHING:
        kept[key] = track
    return kept


def _late(track: Track, bands: Bands, sample: Sample, fact: ReadingFact) -> Decision | None:
    """A late value is noted where a live one would have been decided on."""
    limit = worst_broken(bands, sample.value)
    if track.episode is None:
        if limit is None:
            return None
        return _decision(
            Reason.LATE, bands, limit, sample, fact, alarm_id=None, since=sample.measured_at
        )
    episode = track.episode
    limit = limit or episode.limit
    return _decision(
        Reason.LATE, bands, limit, sample, fact, alarm_id=episode.alarm_id, since=episode.since
    )


def _judge(
    track: Track, bands: Bands, sample: Sample, fact: ReadingFact
) -> tuple[Track, Decision | None]:
    """Take in one live sample."""
    episode = track.episode
    watched = _not_announced(bands, episode)
    window = with_sample(track.window, sample, bands, watched)
    limit = confirmed(window, bands, watched)
    if limit is not None:
        since = next(s.measured_at for s in window if limit.broken_by(s.value))
        if episode is None:
            reason = Reason.STARTED
            episode = Episode(AlarmId(f"{bands.key}-{fact.position}"), since, limit, since)
        else:
            reason = Reason.WORSENED
            episode = Episode(episode.alarm_id, episode.since, limit, since)
        window = _from_first_broken(window, _not_announced(bands, episode))
        decision = _decision(
            reason, bands, limit, sample, fact, alarm_id=episode.alarm_id, since=since
        )
        return Track(window, episode), decision
    if episode is not None:
        return _judge_open(track, episode, window, bands, fact)
    after = track if window is track.window else Track(window)
    limit = worst_broken(bands, sample.value)
    if limit is None:
        return after, None
    since = next(s.measured_at for s in window if limit.broken_by(s.value))
    return after, _decision(
        Reason.NOT_CONFIRMED, bands, limit, sample, fact, alarm_id=None, since=since
    )


def _judge_open(
    track: Track, episode: Episode, window: tuple[Sample, ...], bands: Bands, fact: ReadingFact
) -> tuple[Track, Decision]:
    """Take in one live sample of an open episode that does not worsen it."""
    sample = Sample(fact.reading.measured_at, fact.reading.values[bands.kind])
    outer = bands.limits[0]
    cleared = _extend(episode.cleared, outer, bands, sample)
    if _lasted(cleared, bands):
        # The window goes too: old samples must not confirm the next episode.
        decision = _about(Reason.RECOVERED, episode, bands, sample, fact)
        return _NOTHING, decision

    milder = [limit for limit in bands.limits if limit.priority < episode.limit.priority]
    eased = _extend(episode.eased, episode.limit, bands, sample) if milder else None
    if _lasted(eased, bands):
        since = episode.since
        episode = Episode(episode.alarm_id, since, milder[-1], since, cleared=cleared)
        return Track((), episode), _about(Reason.IMPROVED, episode, bands, sample, fact)

    if eased is not episode.eased or cleared is not episode.cleared:
        episode = replace(episode, eased=eased, cleared=cleared)
    unchanged = episode is track.episode and window is track.window
    after = track if unchanged else Track(window, episode)

    worst = worst_broken(bands, sample.value)
    if worst is None:
        return after, _about(Reason.CLEARING, episode, bands, sample, fact)
    if worst.priority > episode.limit.priority:
        since = next(s.measured_at for s in window if worst.broken_by(s.value))
        return after, _decision(
            Reason.NOT_CONFIRMED, bands, worst, sample, fact, alarm_id=episode.alarm_id, since=since
        )
    return after, _about(Reason.ALREADY_OPEN, episode, bands, sample, fact)


def _not_announced(bands: Bands, episode: Episode | None) -> tuple[Limit, ...]:
    """The limits whose breach would still be news, mildest first."""
    if episode is None:
        return bands.limits
    return tuple(limit for limit in bands.limits if limit.priority > episode.limit.priority)


def with_sample(
    window: tuple[Sample, ...], sample: Sample, bands: Bands, watched: tuple[Limit, ...]
) -> tuple[Sample, ...]:
    """The window with one sample more: no stale ones, no more than the confirmation looks at."""
    if window and abs(sample.measured_at - window[-1].measured_at) > bands.gap:
        window = ()
    window = (*window, sample)[-bands.confirmation.window :]
    return _from_first_broken(window, watched)


def _from_first_broken(
    window: tuple[Sample, ...], watched: tuple[Limit, ...]
) -> tuple[Sample, ...]:
    """Leave out leading samples that break no watched limit: they can never count."""
    if watched:
        for index, sample in enumerate(window):
            if watched[0].broken_by(sample.value):
                return window[index:]
    return ()


def confirmed(window: tuple[Sample, ...], bands: Bands, watched: tuple[Limit, ...]) -> Limit | None:
    """The worst watched limit that the newest sample breaks and the window confirms."""
    rule = bands.confirmation
    for limit in reversed(watched):
        if not window or not limit.broken_by(window[-1].value):
            continue
        if sum(limit.broken_by(sample.value) for sample in window) >= rule.needed:
            return limit
        extremes = sum(bands.is_extreme(sample.value) for sample in window)
        if limit is bands.limits[-1] and extremes >= rule.extreme:
            return limit
    return None


def worst_broken(bands: Bands, value: Decimal) -> Limit | None:
    """The worst limit that a value breaks."""
    for limit in reversed(bands.limits):
        if limit.broken_by(value):
            return limit
    return None


def _extend(calm: Calm | None, limit: Limit, bands: Bands, sample: Sample) -> Calm | None:
    """The run back inside a limit after one sample more; ``None`` if the sample breaks it off."""
    now = sample.measured_at
    if not limit.cleared_by(sample.value, bands.hysteresis):
        return None
    # Nothing is known of the time in a gap, and a clock that was set back measures nothing.
    if calm is None or now < calm.first or abs(now - calm.last) > bands.gap:
        return Calm(now, now)
    return Calm(calm.first, now)


def _lasted(calm: Calm | None, bands: Bands) -> bool:
    return calm is not None and calm.last - calm.first >= bands.dwell


def _about(
    reason: Reason, episode: Episode, bands: Bands, sample: Sample, fact: ReadingFact
) -> Decision:
    return _decision(
        reason, bands, episode.limit, sample, fact, alarm_id=episode.alarm_id, since=episode.since
    )


def _decision(
    reason: Reason,
    bands: Bands,
    limit: Limit,
    sample: Sample,
    fact: ReadingFact,
    *,
    alarm_id: AlarmId | None,
    since: datetime,
) -> Decision:
    return Decision(
        reason=reason,
        kind=bands.kind,
        direction=limit.direction,
        priority=limit.priority,
        value=sample.value,
        limit=limit,
        alarm_id=alarm_id,
        since=since,
        measured_at=sample.measured_at,
        at=fact.reading.received_at,
    )
