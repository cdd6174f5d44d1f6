"""The alarm engine: a pure function from readings to decisions.

It does no I/O and knows no clock: time comes with the facts. Its rules, in order:

1. Facts are taken in by rising position; a repeated or older position changes nothing.
2. A reading that arrives more than ``late_after`` after it was measured is *late*: it is noted, but
   never starts, worsens, eases or ends a live episode.
3. A kind that a reading lacks changes nothing for that kind. Losing the probe closes no alarm.
4. A limit is *confirmed* when enough of the last good samples break it (``Confirmation``). Samples
   are taken in log order. When two neighbours lie further apart than ``gap``, those before it are
   stale and no longer count.
5. There is one *episode* per patient, kind and direction. Its start is announced, and so is each
   confirmed step into a worse band. Easing into a milder band is silent; worsening after that is
   announced again.
6. An episode ends when every sample of an unbroken run of at least ``dwell`` is back inside the
   mildest limit by at least ``hysteresis``. The end is announced once, and the next episode needs
   a fresh confirmation.

Where each constant comes from is written beside it and in ``docs/alarms.md``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import IntEnum, StrEnum
from itertools import pairwise
from typing import Final, NewType

from fajma.errors import InputError
from fajma.vitals import Kind, Reading

AlarmId = NewType("AlarmId", str)
"""Identity of an episode, unique per patient: ``spo2-low-4711`` (the position at its start)."""

TrackKey = NewType("TrackKey", str)
"""A kind and a direction, e.g. ``heart_rate-high``."""


class Direction(StrEnum):
    """On which side of normal a value is."""

    LOW = "low"
    HIGH = "high"


class Priority(IntEnum):
    """How urgently somebody must look, in the words of IEC 60601-1-8; they compare by urgency."""

    MEDIUM = 2
    HIGH = 3


class Reason(StrEnum):
    """Why something was announced, or why it was not."""

    STARTED = "started"
    """Announced: a limit is confirmed and no episode was open."""
    WORSENED = "worsened"
    """Announced: a worse band is confirmed within an open episode."""
    RECOVERED = "recovered"
    """Announced: hysteresis and dwell are met, the episode is over."""
    IMPROVED = "improved"
    """Silent: the episode went on in a milder band."""
    NOT_CONFIRMED = "not_confirmed"
    """Silent: the value breaks a limit, but too few samples do."""
    ALREADY_OPEN = "already_open"
    """Silent: the value breaks a limit whose episode was announced."""
    CLEARING = "clearing"
    """Silent: the value breaks no limit, but hysteresis or dwell is not met yet."""
    LATE = "late"
    """Silent: the reading is too old to say anything about the patient now."""


_ANNOUNCED: Final = frozenset({Reason.STARTED, Reason.WORSENED, Reason.RECOVERED})


class Comparison(StrEnum):
    """How a value breaks a limit, as a clinician writes it."""

    BELOW = "<"
    AT_MOST = "≤"
    ABOVE = ">"
    AT_LEAST = "≥"


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit: ``< 90, high priority``.

    Attributes:
        comparison: a value breaks the limit when ``value comparison threshold`` holds.
        threshold: in the unit of ``fajma.vitals.MEASURES``.
        priority: of the band that begins here.
    """

    comparison: Comparison
    threshold: Decimal
    priority: Priority

    @property
    def direction(self) -> Direction:
        """On which side the limit guards."""
        low = self.comparison is Comparison.BELOW or self.comparison is Comparison.AT_MOST
        return Direction.LOW if low else Direction.HIGH

    def broken_by(self, value: Decimal) -> bool:
        """Whether the value breaks the limit."""
        comparison = self.comparison
        if comparison is Comparison.BELOW:
            return value < self.threshold
        if comparison is Comparison.AT_MOST:
            return value <= self.threshold
        if comparison is Comparison.ABOVE:
            return value > self.threshold
        return value >= self.threshold

    def cleared_by(self, value: Decimal, hysteresis: Decimal) -> bool:
        """Whether the value is back inside the limit by at least ``hysteresis``."""
        if self.broken_by(value):
            return False
        if self.direction is Direction.LOW:
            return value >= self.threshold + hysteresis
        return value <= self.threshold - hysteresis


MAX_WINDOW: Final = 20
"""Most samples a confirmation may look back on; it bounds what is kept per patient."""


@dataclass(frozen=True, slots=True)
class Confirmation:
    """How many samples must break a limit before anybody is told.

    Attributes:
        needed: samples that must break it, among the last ``window``; 1 announces at once.
        window: good samples looked back on, ``needed`` to 20.
        extreme: samples that suffice beyond the extreme of ``Bands``, if less than ``needed``.

    Raises:
        InputError: ``confirmation_invalid``, the numbers do not fit together.
    """

    # FAJMA default, not from a guideline: at one sample per 5 s a breach is told within about 20 s.
    # The guidelines are written for spot measurements and do not say how long a monitor must wait.
    needed: int = 3
    window: int = 4
    extreme: int = 2

    def __post_init__(self) -> None:
        if not (1 <= self.needed <= self.window <= MAX_WINDOW and 1 <= self.extreme <= self.window):
            raise InputError(
                f"Choose a confirmation with 1 ≤ needed ≤ window ≤ {MAX_WINDOW} and "
                "1 ≤ extreme ≤ window.",
                code="confirmation_invalid",
            )


@dataclass(frozen=True, slots=True)
class Bands:
    """The limits of one kind in one direction, and how they are judged.

    Attributes:
        kind: what is measured.
        limits: mildest first, all of one direction, each beyond the one before.
        confirmation: samples needed to announce a band.
        hysteresis: how far inside a limit a value must be to leave its band, unit of the kind.
        dwell: how long it must stay there.
        gap: largest time between two samples that count as neighbours.
        extreme: at or beyond this value ``confirmation.extreme`` samples confirm the worst band.
        key: the kind and the direction.

    Raises:
        InputError: ``limits_invalid``, the limits do not form such bands.
    """

    kind: Kind
    limits: tuple[Limit, ...]
    confirmation: Confirmation
    hysteresis: Decimal
    dwell: timedelta
    gap: timedelta
    extreme: Decimal | None = None
    key: TrackKey = field(init=False)

    def __post_init__(self) -> None:
        if not self._is_sound():
            raise InputError(
                f"Order the {self.kind} limits from mildest to worst, in one direction, and keep "
                "hysteresis, dwell and gap from being negative.",
                code="limits_invalid",
            )
        object.__setattr__(self, "key", TrackKey(f"{self.kind}-{self.limits[0].direction}"))

    def is_extreme(self, value: Decimal) -> bool:
        """Whether the value lies at or beyond the extreme."""
        if self.extreme is None:
            return False
        low = self.limits[0].direction is Direction.LOW
        return value <= self.extreme if low else value >= self.extreme

    def _is_sound(self) -> bool:
        if not self.limits or self.hysteresis < 0 or min(self.dwell, self.gap) < timedelta(0):
            return False
        for mild, worse in pairwise(self.limits):
            ordered = mild.priority < worse.priority and mild.direction is worse.direction
            beyond = mild.broken_by(worse.threshold) and not worse.broken_by(mild.threshold)
            if not (ordered and beyond):
                return False
        return self.extreme is None or self.limits[-1].broken_by(self.extreme)


@dataclass(frozen=True, slots=True)
class Rules:
    """Everything the engine judges one patient by.

    Attributes:
        bands: at most one per kind and direction.
        late_after: a reading that took longer than this to arrive is late.
        by_kind: the bands of each kind.

    Raises:
        InputError: ``limits_twice``, two bands guard the same kind and direction.
    """

    bands: tuple[Bands, ...]
    late_after: timedelta
    by_kind: Mapping[Kind, tuple[Bands, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len({bands.key for bands in self.bands}) != len(self.bands):
            raise InputError(
                "Give each kind and direction its limits only once.", code="limits_twice"
            )
        kinds = {bands.kind for bands in self.bands}
        by_kind = {kind: tuple(b for b in self.bands if b.kind is kind) for kind in kinds}
        object.__setattr__(self, "by_kind", by_kind)


# The default limits of an adult. "NEWS2" is: Royal College of Physicians, National Early Warning
# Score (NEWS) 2, 2017, chart 1; "3 points" is its mark for one sign that is enough on its own to
# call for an urgent review. "BTS" is: British Thoracic Society guideline for oxygen use in adults
# in healthcare and emergency settings, Thorax 2017;72(Suppl 1). The owner's requirement names four
# limits that always alarm: heart rate > 120 and < 50, SpO2 < 90, temperature > 38.5.
DEFAULT_LIMITS: Final[Mapping[Kind, tuple[tuple[Limit, ...], ...]]] = {
    Kind.HEART_RATE: (
        (
            Limit(Comparison.BELOW, Decimal(50), Priority.MEDIUM),  # owner's requirement
            Limit(Comparison.AT_MOST, Decimal(40), Priority.HIGH),  # NEWS2, 3 points
        ),
        (
            Limit(Comparison.ABOVE, Decimal(120), Priority.MEDIUM),  # owner's requirement
            Limit(Comparison.AT_LEAST, Decimal(131), Priority.HIGH),  # NEWS2, 3 points
        ),
    ),
    Kind.SPO2: (
        (
            # NEWS2 scale 1, 3 points (91 or less); BTS aims at 94-98 %.
            Limit(Comparison.BELOW, Decimal(92), Priority.MEDIUM),
            Limit(Comparison.BELOW, Decimal(90), Priority.HIGH),  # owner's requirement
        ),
    ),
    Kind.TEMPERATURE: (
        (Limit(Comparison.AT_MOST, Decimal("35.0"), Priority.MEDIUM),),  # NEWS2, 3 points
        (Limit(Comparison.ABOVE, Decimal("38.5"), Priority.MEDIUM),),  # owner's requirement
    ),
    Kind.SYSTOLIC: (
        (Limit(Comparison.AT_MOST, Decimal(90), Priority.HIGH),),  # NEWS2, 3 points
        (Limit(Comparison.AT_LEAST, Decimal(220), Priority.HIGH),),  # NEWS2, 3 points
    ),
}

# All that follows is a FAJMA default, not from a guideline.

EXTREMES: Final[Mapping[tuple[Kind, Direction], Decimal]] = {
    (Kind.HEART_RATE, Direction.LOW): Decimal(30),  # 10 /min beyond the high band
    (Kind.HEART_RATE, Direction.HIGH): Decimal(151),  # 20 /min beyond
    (Kind.SPO2, Direction.LOW): Decimal(85),  # 5 points beyond; BTS changes treatment below 85
}
"""Values so far beyond the high band that waiting for a third sample is the greater risk."""

HYSTERESIS: Final[Mapping[Kind, Decimal]] = {
    Kind.HEART_RATE: Decimal(5),
    Kind.SPO2: Decimal(1),  # more would keep an alarm open on many who are well at 93 %
    Kind.TEMPERATURE: Decimal("0.3"),
    Kind.SYSTOLIC: Decimal(5),
}
"""How far back inside a limit a value must be, in the unit of the kind."""

DWELL: Final = timedelta(seconds=30)
"""How long a value must stay back inside."""

LATE_AFTER: Final = timedelta(seconds=60)
"""A reading that took longer than this to arrive says nothing about the patient now."""

GAP: Final = timedelta(minutes=2)
"""For a worn sensor: wide enough for a device that sends once a minute and misses nothing."""

CUFF_GAP: Final = timedelta(hours=2)
"""For a cuff: wide enough for hourly measurements of which one is missed."""

CUFF_NEEDED: Final = 2
"""A cuff measures minutes apart, so a value that is found again is enough."""

DEFAULT_CONFIRMATION: Final = Confirmation()


def default_rules(
    *,
    confirmation: Confirmation = DEFAULT_CONFIRMATION,
    hysteresis: Mapping[Kind, Decimal] = HYSTERESIS,
    dwell: timedelta = DWELL,
    late_after: timedelta = LATE_AFTER,
) -> Rules:
    """The rules of an adult about whom nothing else is known.

    Args:
        confirmation: samples needed; blood pressure never needs more than two.
        hysteresis: per kind, in its unit; a kind that is missing keeps its default.
        dwell: how long a value must stay back inside.
        late_after: a reading that took longer than this to arrive is late.

    Raises:
        InputError: ``limits_invalid``, hysteresis or dwell is negative.
    """
    repeated = Confirmation(
        needed=min(confirmation.needed, CUFF_NEEDED),
        window=confirmation.window,
        extreme=confirmation.extreme,
    )
    return Rules(
        bands=tuple(
            Bands(
                kind=kind,
                limits=limits,
                confirmation=repeated if kind is Kind.SYSTOLIC else confirmation,
                hysteresis=hysteresis.get(kind, HYSTERESIS[kind]),
                dwell=dwell,
                gap=CUFF_GAP if kind is Kind.SYSTOLIC else GAP,
                extreme=EXTREMES.get((kind, limits[0].direction)),
            )
            for kind, sides in DEFAULT_LIMITS.items()
            for limits in sides
        ),
        late_after=late_after,
    )


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
class Decision:
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

    @property
    def announce(self) -> bool:
        """Whether somebody is told; it follows from the reason alone."""
        return self.reason in _ANNOUNCED


@dataclass(frozen=True, slots=True)
class Sample:
    """One good value: plausible and not late."""

    measured_at: datetime
    value: Decimal


@dataclass(frozen=True, slots=True)
class Calm:
    """A run of samples that are all back inside a limit, with no gap between them."""

    first: datetime
    last: datetime


@dataclass(frozen=True, slots=True)
class Episode:
    """An alarm that was announced and is not over.

    Attributes:
        alarm_id: its identity.
        since: when its first breaching sample was measured.
        limit: the limit of the band it is in.
        eased: the run outside its band, if one is under way and a milder band exists.
        cleared: the run inside every limit, if one is under way.
    """

    alarm_id: AlarmId
    since: datetime
    limit: Limit
    eased: Calm | None = None
    cleared: Calm | None = None


@dataclass(frozen=True, slots=True)
class Track:
    """What is remembered of one kind and direction.

    Attributes:
        window: the last samples, from the first that breaks a limit not announced yet; empty when
            none does, so that a patient who is well costs nothing.
        episode: the open episode.
    """

    window: tuple[Sample, ...] = ()
    episode: Episode | None = None


_NOTHING: Final = Track()
_KEYS: Final = frozenset(f"{kind}-{direction}" for kind in Kind for direction in Direction)
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class PatientState:
    """All the engine remembers of one patient; at most ten tracks of 20 samples.

    Attributes:
        position: of the last fact taken in; -1 before the first.
        tracks: only those that hold something.
    """

    position: int = -1
    tracks: Mapping[TrackKey, Track] = field(default_factory=dict)

    def to_json(self) -> str:
        """The state as one line of JSON; contains vitals, so it is stored sealed."""
        tracks = {key: _track_to_json(track) for key, track in self.tracks.items()}
        content = {"version": _VERSION, "position": self.position, "tracks": tracks}
        return json.dumps(content, separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> PatientState:
        """Read what ``to_json`` wrote.

        Raises:
            InputError: ``alarm_state_invalid``, it is anything else, e.g. of a newer version.
        """
        try:
            return _state(json.loads(text))
        except (ValueError, ArithmeticError, RecursionError):
            # The cause is left out: it would quote what is in the state.
            raise InputError(
                "Restore the alarm state from a backup or upgrade FAJMA: this version cannot "
                "read it.",
                code="alarm_state_invalid",
            ) from None


def step(
    state: PatientState, fact: ReadingFact, rules: Rules
) -> tuple[PatientState, tuple[Decision, ...]]:
    """Take in one reading of a patient.

    Args:
        state: what is remembered of the patient.
        fact: the reading and its place in the log.
        rules: what to judge it by.

    Returns:
        The new state, and one decision for each kind and direction whose limit is broken or whose
        episode is open; none for a position that was taken in before.
    """
    if fact.position <= state.position:
        return state, ()
    reading = fact.reading
    late = reading.received_at - reading.measured_at > rules.late_after
    tracks = state.tracks
    decisions: list[Decision] = []
    for kind, value in reading.values.items():
        for bands in rules.by_kind.get(kind, ()):
            track = tracks.get(bands.key) if tracks else None
            if track is None:
                if not bands.limits[0].broken_by(value):
                    continue  # nearly every value ends here
                track = _NOTHING
            sample = Sample(reading.measured_at, value)
            if late:
                decision = _late(track, bands, sample)
            else:
                after, decision = _judge(track, bands, sample, fact.position)
                if after is not track:
                    tracks = _replace(tracks, bands.key, after)
            if decision is not None:
                decisions.append(decision)
    return PatientState(fact.position, tracks), tuple(decisions)


def _replace(
    tracks: Mapping[TrackKey, Track], key: TrackKey, track: Track
) -> Mapping[TrackKey, Track]:
    kept = {k: v for k, v in tracks.items() if k != key}
    if track != _NOTHING:
        kept[key] = track
    return kept


def _late(track: Track, bands: Bands, sample: Sample) -> Decision | None:
    """A late value is noted where a live one would have been decided on."""
    limit = _worst_broken(bands, sample.value)
    if track.episode is None:
        if limit is None:
            return None
        return _decision(Reason.LATE, bands, limit, sample, alarm_id=None, since=sample.measured_at)
    episode = track.episode
    limit = limit or episode.limit
    return _decision(
        Reason.LATE, bands, limit, sample, alarm_id=episode.alarm_id, since=episode.since
    )


def _judge(
    track: Track, bands: Bands, sample: Sample, position: int
) -> tuple[Track, Decision | None]:
    """Take in one live sample."""
    episode = track.episode
    watched = _not_announced(bands, episode)
    window = _append(track.window, sample, bands, watched)
    limit = _confirmed(window, bands, watched)
    if limit is not None:
        since = next(s.measured_at for s in window if limit.broken_by(s.value))
        if episode is None:
            reason = Reason.STARTED
            episode = Episode(AlarmId(f"{bands.key}-{position}"), since, limit)
        else:
            reason = Reason.WORSENED
            episode = Episode(episode.alarm_id, episode.since, limit)
        window = _from_first_broken(window, _not_announced(bands, episode))
        decision = _decision(reason, bands, limit, sample, alarm_id=episode.alarm_id, since=since)
        return Track(window, episode), decision
    if episode is not None:
        return _judge_open(track, episode, window, bands, sample)
    after = track if window is track.window else Track(window)
    limit = _worst_broken(bands, sample.value)
    if limit is None:
        return after, None
    since = next(s.measured_at for s in window if limit.broken_by(s.value))
    return after, _decision(Reason.NOT_CONFIRMED, bands, limit, sample, alarm_id=None, since=since)


def _judge_open(
    track: Track, episode: Episode, window: tuple[Sample, ...], bands: Bands, sample: Sample
) -> tuple[Track, Decision]:
    """Take in one live sample of an open episode that does not worsen it."""
    outer = bands.limits[0]
    cleared = _extend(episode.cleared, outer, bands, sample)
    if _lasted(cleared, bands):
        # The window goes too: old samples must not confirm the next episode.
        decision = _about(Reason.RECOVERED, episode, bands, sample)
        return _NOTHING, decision

    milder = [limit for limit in bands.limits if limit.priority < episode.limit.priority]
    eased = _extend(episode.eased, episode.limit, bands, sample) if milder else None
    if _lasted(eased, bands):
        episode = Episode(episode.alarm_id, episode.since, milder[-1], cleared=cleared)
        return Track((), episode), _about(Reason.IMPROVED, episode, bands, sample)

    if eased is not episode.eased or cleared is not episode.cleared:
        episode = Episode(episode.alarm_id, episode.since, episode.limit, eased, cleared)
    unchanged = episode is track.episode and window is track.window
    after = track if unchanged else Track(window, episode)

    worst = _worst_broken(bands, sample.value)
    if worst is None:
        return after, _about(Reason.CLEARING, episode, bands, sample)
    if worst.priority > episode.limit.priority:
        since = next(s.measured_at for s in window if worst.broken_by(s.value))
        return after, _decision(
            Reason.NOT_CONFIRMED, bands, worst, sample, alarm_id=episode.alarm_id, since=since
        )
    return after, _about(Reason.ALREADY_OPEN, episode, bands, sample)


def _not_announced(bands: Bands, episode: Episode | None) -> tuple[Limit, ...]:
    """The limits whose breach would still be news, mildest first."""
    if episode is None:
        return bands.limits
    return tuple(limit for limit in bands.limits if limit.priority > episode.limit.priority)


def _append(
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


def _confirmed(
    window: tuple[Sample, ...], bands: Bands, watched: tuple[Limit, ...]
) -> Limit | None:
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


def _worst_broken(bands: Bands, value: Decimal) -> Limit | None:
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


def _about(reason: Reason, episode: Episode, bands: Bands, sample: Sample) -> Decision:
    return _decision(
        reason, bands, episode.limit, sample, alarm_id=episode.alarm_id, since=episode.since
    )


def _decision(
    reason: Reason,
    bands: Bands,
    limit: Limit,
    sample: Sample,
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
    )


# The state as JSON. Reading is strict: ValueError for whatever ``to_json`` would not write.


def _track_to_json(track: Track) -> object:
    window = [[sample.measured_at.isoformat(), str(sample.value)] for sample in track.window]
    episode = track.episode
    if episode is None:
        return {"window": window, "episode": None}
    limit = episode.limit
    return {
        "window": window,
        "episode": {
            "alarm_id": episode.alarm_id,
            "since": episode.since.isoformat(),
            "limit": [limit.comparison, str(limit.threshold), limit.priority.name],
            "eased": _calm_to_json(episode.eased),
            "cleared": _calm_to_json(episode.cleared),
        },
    }


def _calm_to_json(calm: Calm | None) -> object:
    return None if calm is None else [calm.first.isoformat(), calm.last.isoformat()]


def _state(raw: object) -> PatientState:
    content = _fields(raw, "version", "position", "tracks")
    tracks = content["tracks"]
    if _integer(content["version"]) != _VERSION or not isinstance(tracks, dict):
        raise ValueError
    return PatientState(
        position=_integer(content["position"]),
        tracks={_key(key): _track_from_json(key, track) for key, track in tracks.items()},
    )


def _track_from_json(key: str, raw: object) -> Track:
    content = _fields(raw, "window", "episode")
    samples = [_list(sample, 2) for sample in _list(content["window"])]
    window = tuple(Sample(_time(at), _decimal(value)) for at, value in samples)
    episode = None if content["episode"] is None else _episode(key, content["episode"])
    if len(window) > MAX_WINDOW or not (window or episode):
        raise ValueError
    return Track(window, episode)


def _episode(key: str, raw: object) -> Episode:
    content = _fields(raw, "alarm_id", "since", "limit", "eased", "cleared")
    alarm_id = _text(content["alarm_id"])
    start = alarm_id.removeprefix(f"{key}-")
    if start == alarm_id or not (start.isascii() and start.isdigit()):
        raise ValueError
    comparison, threshold, priority = _list(content["limit"], 3)
    band = _text(priority)
    if band not in Priority.__members__:
        raise ValueError
    limit = Limit(Comparison(_text(comparison)), _decimal(threshold), Priority[band])
    if not key.endswith(f"-{limit.direction}"):
        raise ValueError
    return Episode(
        alarm_id=AlarmId(alarm_id),
        since=_time(content["since"]),
        limit=limit,
        eased=_calm(content["eased"]),
        cleared=_calm(content["cleared"]),
    )


def _calm(raw: object) -> Calm | None:
    if raw is None:
        return None
    first, last = _list(raw, 2)
    return Calm(_time(first), _time(last))


def _fields(raw: object, *names: str) -> dict[str, object]:
    if not isinstance(raw, dict) or set(raw) != set(names):
        raise ValueError
    return raw


def _list(raw: object, length: int | None = None) -> list[object]:
    if not isinstance(raw, list) or (length is not None and len(raw) != length):
        raise ValueError
    return raw


def _key(raw: str) -> TrackKey:
    if raw not in _KEYS:
        raise ValueError
    return TrackKey(raw)


def _integer(raw: object) -> int:
    if type(raw) is not int:
        raise ValueError
    return raw


def _text(raw: object) -> str:
    if not isinstance(raw, str):
        raise ValueError  # noqa: TRY004  # all that is wrong with the text is one error
    return raw


def _time(raw: object) -> datetime:
    time = datetime.fromisoformat(_text(raw))
    if time.tzinfo is None:
        raise ValueError
    return time.astimezone(UTC)


def _decimal(raw: object) -> Decimal:
    value = Decimal(_text(raw))
    if not value.is_finite():
        raise ValueError
    return value
