"""What the alarm engine remembers of a patient between two readings, and how it is stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Final, NewType

from bots.alerts import strict_json
from bots.alerts.limits import MAX_WINDOW, Comparison, Direction, Limit, Priority, TrackKey
from fajma.errors import InputError
from fajma.facts import AgeBand, Entered
from fajma.vitals import DeviceId, Kind

AlarmId = NewType("AlarmId", str)
"""Identity of an alarm, unique per patient; the place in a log at its start is its number.

``spo2-low-4711`` an episode, ``late-spo2-low-4711`` a breach found late,
``no_readings-A4CF12F03B7E-n17`` a technical alarm that a fact (n) or a reading (r) started.
"""

_KEYS: Final = frozenset(f"{kind}-{direction}" for kind in Kind for direction in Direction)
_VERSION: Final = 2
_BY_HAND: Final = frozenset({"position", "tracks"})  # as version 1 wrote them
_WRITER: Final = json.JSONEncoder(
    separators=(",", ":"), sort_keys=True
)  # json.dumps makes one each time


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
        limit_since: when the first sample that breaks that limit was measured.
        eased: the run outside its band, if one is under way and a milder band exists.
        cleared: the run inside every limit, if one is under way.
    """

    alarm_id: AlarmId
    since: datetime
    limit: Limit
    limit_since: datetime
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


class Trouble(StrEnum):
    """What keeps us from judging a patient, so that somebody must look at the sensor."""

    NO_READINGS = "no_readings"
    """A worn monitor sends nothing."""
    PROBE_OFF = "probe_off"
    """The monitor says so, or what it used to send is missing."""
    UNKNOWN_AGE = "unknown_age"
    """Readings come, but nobody can say how old they are."""
    WRONG_CLOCK = "wrong_clock"
    """The monitor states a time that cannot be."""
    NO_USABLE_PULSE = "no_usable_pulse"
    """Pulse or SpO2 is implausible again and again: the dying look so."""


@dataclass(frozen=True, slots=True)
class TroubleEpisode:
    """A technical alarm that is not over.

    Attributes:
        alarm_id: its identity.
        trouble: what is wrong.
        device: the monitor it is about; there is at most one episode of each trouble with it.
        since: when the trouble began, by our clock.
        fine_since: since when the trouble is gone, if it is and the alarm waits for the dwell.
    """

    alarm_id: AlarmId
    trouble: Trouble
    device: DeviceId
    since: datetime
    fine_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Care:
    """What people were told about an alarm that is open, and whether somebody answered.

    Attributes:
        priority: of the alarm now.
        step: of the escalation ladder, from 0: who was told last.
        step_at: when that step was reached.
        told_at: when the last message that rings was decided on; ``None`` if there was none, since
            the alarm began during a snooze or an outage.
        acknowledged: whether somebody takes care of it.
        value: the one that people were told last, in the unit of the kind; ``None`` if none was.
        drops: samples in a row that lie so far below ``value`` that the answer no longer holds.
    """

    priority: Priority
    step: int
    step_at: datetime
    told_at: datetime | None
    acknowledged: bool = False
    value: Decimal | None = None
    drops: int = 0


@dataclass(frozen=True, slots=True)
class Snooze:
    """A kind and direction about which nothing is told for a while, unless it gets worse.

    Attributes:
        until: when it ends.
        band: the worst band that is silenced.
        value: the last one before it, in the unit of the kind; ``None`` if none was known.
        drops: samples in a row that lie so far below ``value`` that the snooze breaks.
    """

    until: datetime
    band: Priority
    value: Decimal | None
    drops: int = 0


@dataclass(frozen=True, slots=True)
class LateRun:
    """Late readings that break a limit, as long as more of them may come.

    Attributes:
        window: the last samples, as in ``Track``.
        began: when the first of them was received, by our clock.
        heard: when the last late reading was received, by our clock.
        found: what is confirmed so far.
    """

    window: tuple[Sample, ...]
    began: datetime
    heard: datetime
    found: LateBreach | None = None


@dataclass(frozen=True, slots=True)
class LateBreach:
    """A confirmed breach among late readings.

    Attributes:
        alarm_id: its identity.
        limit: the worst one that is confirmed.
        worst: the sample that lies furthest out.
        first: when the first breaching sample was measured.
        last: when the last one was.
    """

    alarm_id: AlarmId
    limit: Limit
    worst: Sample
    first: datetime
    last: datetime


@dataclass(frozen=True, slots=True)
class Profile:
    """What of a patient's record decides on limits (``fajma.facts.Profiled``)."""

    age_band: AgeBand = AgeBand.UNKNOWN
    pregnant: bool | None = None
    copd: bool = False


UNKNOWN_PROFILE: Final = Profile()


@dataclass(frozen=True, slots=True)
class OwnLimit:
    """A limit of this patient alone (``fajma.facts.LimitSet``).

    Attributes:
        kind: what is measured.
        direction: which side it guards.
        threshold: in the unit of the kind.
        until: when it ends at the latest.
        kept: whether it outlives a handover.
    """

    kind: Kind
    direction: Direction
    threshold: Decimal
    until: datetime
    kept: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """What holds until a fact changes it.

    Attributes:
        profile: of the patient.
        ward: short name of the patient's own ward, which may have schedules of its own.
        own_limits: at most one per kind and direction.
        worn: the monitors the patient wears, since when.
        offline: those of them that left the broker, since when.
        taken_off: when a monitor was last taken off.
        entered: what clinicians typed, newest first, as much as is needed to have the newest
            statement on each sign.
        outage_since: when an outage of many patients began that is not over.
        outage_ended: when the last one ended.
    """

    profile: Profile = UNKNOWN_PROFILE
    ward: str | None = None
    own_limits: tuple[OwnLimit, ...] = ()
    worn: Mapping[DeviceId, datetime] = field(default_factory=dict)
    offline: Mapping[DeviceId, datetime] = field(default_factory=dict)
    taken_off: datetime | None = None
    entered: tuple[Entered, ...] = ()
    outage_since: datetime | None = None
    outage_ended: datetime | None = None


FIRST_STANDING: Final = Standing()


@dataclass(frozen=True, slots=True)
class Heard:
    """What was heard of one monitor; changes with every reading.

    Attributes:
        at: when its last reading that was not late was received, by our clock.
        silent_after: longest silence that is usual for it, or more.
        pulse_run: how many live readings in a row had a heart rate, counted up to where it counts
            as regular; stays there when one is missing.
        spo2_run: the same for SpO2.
        bad_since: since when each trouble lasts without a break.
        unusable: whether each of the last live readings had an unusable pulse, oldest first; empty
            when none had.
    """

    at: datetime
    silent_after: timedelta
    pulse_run: int = 0
    spo2_run: int = 0
    bad_since: Mapping[Trouble, datetime] = field(default_factory=dict)
    unusable: tuple[bool, ...] = ()


@dataclass(frozen=True, slots=True)
class Latest:
    """Values of one live reading; may be those of the reading itself."""

    measured_at: datetime
    values: Mapping[Kind, Decimal]


@dataclass(frozen=True, slots=True)
class PatientState:
    """All the engine remembers of one patient; at most ten tracks of 20 samples.

    Attributes:
        position: of the last reading taken in; -1 before the first.
        tracks: only those that hold something.
        noted: position of the last fact taken in, in the log of facts; -1 before the first.
        standing: what holds until a fact changes it.
        troubles: technical alarms that are not over.
        care: what people were told about each open alarm.
        snoozes: those under way.
        late_runs: late breaches of which more may come.
        late: late breaches that wait for an answer.
        clock_told: when somebody was last told of a wrong clock.
        heard: per monitor; changes with every reading.
        latest: the newest live readings, newest first, as many as are needed to have the newest
            value of each kind; changes with every reading.
    """

    position: int = -1
    tracks: Mapping[TrackKey, Track] = field(default_factory=dict)
    noted: int = -1
    standing: Standing = FIRST_STANDING
    troubles: tuple[TroubleEpisode, ...] = ()
    care: Mapping[AlarmId, Care] = field(default_factory=dict)
    snoozes: Mapping[TrackKey, Snooze] = field(default_factory=dict)
    late_runs: Mapping[TrackKey, LateRun] = field(default_factory=dict)
    late: Mapping[TrackKey, LateBreach] = field(default_factory=dict)
    clock_told: datetime | None = None
    heard: Mapping[DeviceId, Heard] = field(default_factory=dict)
    latest: tuple[Latest, ...] = ()

    def worth_keeping(self, before: PatientState) -> bool:
        """Whether more than the place in the logs and what each reading renews has changed.

        A decision is announced only where this holds. So a state that is kept whenever it holds
        may be behind, but who judges again what came after it gets the same decisions, and none
        of them is announced a second time.
        """
        return not (
            self.tracks is before.tracks
            and self.standing is before.standing
            and self.troubles is before.troubles
            and self.care is before.care
            and self.snoozes is before.snoozes
            and self.late_runs is before.late_runs
            and self.late is before.late
            and self.clock_told is before.clock_told
        )

    def to_json(self) -> str:
        """The state as one line of JSON; contains vitals, so it is stored sealed."""
        tracks = {key: _track_to_json(track) for key, track in self.tracks.items()}
        content = {"version": _VERSION, "position": self.position, "tracks": tracks}
        content |= strict_json.written(self, leave_out=_BY_HAND)
        return _WRITER.encode(content)

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
            "limit_since": episode.limit_since.isoformat(),
            "eased": _calm_to_json(episode.eased),
            "cleared": _calm_to_json(episode.cleared),
        },
    }


def _calm_to_json(calm: Calm | None) -> object:
    return None if calm is None else [calm.first.isoformat(), calm.last.isoformat()]


def _state(raw: object) -> PatientState:
    if not isinstance(raw, dict):
        raise ValueError  # noqa: TRY004  # all that is wrong with the text is one error
    by_hand = _fields({name: raw[name] for name in raw if name in _BY_HAND}, *_BY_HAND)
    version = _integer(raw.get("version"))
    rest = {name: raw[name] for name in raw if name not in _BY_HAND and name != "version"}
    tracks = by_hand["tracks"]
    # Version 1 knew tracks alone. Its open episodes have no ``Care``: nobody is reminded of them.
    if version not in {1, _VERSION} or (version == 1 and rest) or not isinstance(tracks, dict):
        raise ValueError
    return replace(
        strict_json.read(PatientState, rest, leave_out=_BY_HAND),
        position=_integer(by_hand["position"]),
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
    if isinstance(raw, dict) and "since" in raw:  # older states do not know since when
        raw = {"limit_since": raw["since"]} | raw
    content = _fields(raw, "alarm_id", "since", "limit", "limit_since", "eased", "cleared")
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
        limit_since=_time(content["limit_since"]),
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
