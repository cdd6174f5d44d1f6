"""What the alarm engine remembers of a patient between two readings, and how it is stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, NewType

from bots.alerts.limits import MAX_WINDOW, Comparison, Direction, Limit, Priority, TrackKey
from fajma.errors import InputError
from fajma.vitals import Kind

AlarmId = NewType("AlarmId", str)
"""Identity of an episode, unique per patient: ``spo2-low-4711`` (the position at its start)."""

_KEYS: Final = frozenset(f"{kind}-{direction}" for kind in Kind for direction in Direction)
_VERSION: Final = 1
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
