"""Contents of the Matrix events that FAJMA defines, to and from dataclasses. Pure.

Matrix allows no floats in event JSON (canonical JSON, client-server specification, appendix
"Canonical JSON"), so a value is an integer and a decimal exponent: 36.8 is ``368`` and ``-1``.
All of these contents travel encrypted; nothing here is ever sent in clear.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from itertools import accumulate, groupby, pairwise
from operator import itemgetter
from typing import Any, Final, TypeVar

from fajma.errors import DecodeError
from fajma.vitals import MEASURES, Age, Kind, PatientKey, Reading

CONSULTATION: Final = "com.fajma.consultation"
VITALS: Final = "com.fajma.vitals"
VITALS_DAY: Final = "com.fajma.vitals.day"
VITALS_BATCH: Final = "com.fajma.vitals.batch"
VITALS_WATCH: Final = "com.fajma.vitals.watch"
ALARM: Final = "com.fajma.alarm"
"""Key of the block for machines inside an ``m.room.message``."""

DELIVERY: Final = "com.fajma.delivery"
"""Key of the delivery id beside the ciphertext, in clear like the transaction id that it also is,
so that a delivery is found in its room by a device that cannot decrypt what an earlier one sent."""

MONITORING: Final = "com.fajma.monitoring"
"""The same for messages about the monitoring itself, which concern no patient."""

OUTAGE: Final = "com.fajma.outage"
"""The same for a ward that went silent as a whole: since when, in ms since 1970, as its name."""

ENCRYPTED: Final = "m.room.encrypted"
MESSAGE: Final = "m.room.message"

VERSION: Final = 1
WATCH_RELATION: Final = "com.fajma.watch"
"""How a wish to watch refers to the day, in clear: so push rules know that it is for no phone."""

RING: Final = "com.fajma.ring"
"""Key beside the ciphertext of an alarm, in clear, for push rules: who hears it if not those on
duty. It never says more."""
EVERYONE: Final = "everyone"
"""An alarm that nobody answered: it rings for those off duty too."""
NOBODY: Final = "nobody"
"""The end of an alarm."""

MAX_WATCH_S: Final = 300
"""Longest wish to watch, s; who watches on wishes again."""

GOOD_FROM_PERCENT: Final = 50
"""From here on the quality of a pulse wave is good. FAJMA default, not from a guideline."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)


def encrypted_state_key(event_type: str, state_key: str) -> str:
    """State key under which an encrypted state event is stored (MSC4362)."""
    return f"{event_type}:{state_key}"


class Quality(StrEnum):
    """What is known about the signal behind a value."""

    GOOD = "good"
    POOR = "poor"
    UNKNOWN = "unknown"
    """The device says nothing about its signal (v1), or the value is of no pulse wave."""

    @classmethod
    def of(cls, percent: int | None) -> Quality:
        """What a quality of 0 to 100 % means; ``None`` where the device does not say."""
        if percent is None:
            return cls.UNKNOWN
        return cls.GOOD if percent >= GOOD_FROM_PERCENT else cls.POOR


class Trend(StrEnum):
    """Where a value is going."""

    RISING = "rising"
    FALLING = "falling"
    STEADY = "steady"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Latest:
    """The latest value of one kind; ``age`` says whether it is about the patient now."""

    value: Decimal
    measured_at: datetime
    quality: Quality
    trend: Trend
    age: Age = Age.LIVE


@dataclass(frozen=True, slots=True)
class Vitals:
    """Content of ``com.fajma.vitals``: the latest value of each kind.

    Attributes:
        patient: opaque key of the patient, also the state key.
        as_of: when the snapshot was made (aware UTC); readers show this, not the arrival.
        latest: by kind; a kind that was never measured is absent.
        probe_off_since: when the newest reading says that the probe is off: since when.
        unusable_since: by kind, where the newest reading is too low to be used
            (``fajma.vitals.Reading.unusable``): since when. The latest value is from before.
    """

    patient: PatientKey
    as_of: datetime
    latest: Mapping[Kind, Latest]
    probe_off_since: datetime | None = None
    unusable_since: Mapping[Kind, datetime] = field(default_factory=dict)

    def to_content(self) -> dict[str, Any]:
        """The Matrix content."""
        content: dict[str, Any] = {
            "version": VERSION,
            "patient": self.patient,
            "as_of": _to_ms(self.as_of),
            "latest": {
                kind.value: {
                    **_scaled(one.value),
                    "unit": MEASURES[kind].unit,
                    "loinc": MEASURES[kind].loinc,
                    "measured_at": _to_ms(one.measured_at),
                    "quality": one.quality.value,
                    "trend": one.trend.value,
                    **({} if one.age is Age.LIVE else {"age": one.age.value}),
                }
                for kind, one in self.latest.items()
            },
        }
        if self.probe_off_since is not None:
            content["probe_off_since"] = _to_ms(self.probe_off_since)
        if self.unusable_since:
            content["unusable_since"] = {
                kind.value: _to_ms(since) for kind, since in self.unusable_since.items()
            }
        return content

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> Vitals:
        """Read a Matrix content.

        Raises:
            DecodeError: it is not one.
        """
        try:
            _require_version(content)
            off_since = content.get("probe_off_since")
            return cls(
                patient=PatientKey(str(content["patient"])),
                as_of=_from_ms(content["as_of"]),
                latest={
                    Kind(kind): Latest(
                        value=_unscaled(one["value"], one["exponent"]),
                        measured_at=_from_ms(one["measured_at"]),
                        quality=Quality(one["quality"]),
                        trend=Trend(one["trend"]),
                        age=Age(one.get("age", Age.LIVE)),
                    )
                    for kind, one in content["latest"].items()
                },
                probe_off_since=None if off_since is None else _from_ms(off_since),
                unusable_since={
                    Kind(kind): _from_ms(since)
                    for kind, since in content.get("unusable_since", {}).items()
                },
            )
        except _MALFORMED as error:
            raise DecodeError(f"not a {VITALS} content", code="bad_event") from error


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of one kind in a batch."""

    measured_at: datetime
    value: Decimal


@dataclass(frozen=True, slots=True)
class Measured:
    """One reading in a batch.

    Attributes:
        measured_at: when.
        values: what; none where the probe was off or what it sent was unusable.
        age: whether it was about the patient as it came.
        quality: of the pulse wave. In words: the number would cost a phone 0.1 MB a day.
        probe_off: whether the monitor says that the probe was off the patient.
        unusable: as in ``fajma.vitals.Reading``.
    """

    measured_at: datetime
    values: Mapping[Kind, Decimal]
    age: Age = Age.LIVE
    quality: Quality = Quality.UNKNOWN
    probe_off: bool = False
    unusable: frozenset[Kind] = frozenset()


@dataclass(frozen=True, slots=True)
class VitalsBatch:
    """Content of ``com.fajma.vitals.batch``: every reading since the last batch.

    Attributes:
        patient: opaque key of the patient.
        anchor: event id of the day's ``com.fajma.vitals.day``, which the batch refers to.
        first: log position of the first reading.
        last: log position of the last reading; readers de-duplicate by it.
        readings: in the order of the log, at least one.
        history: whether it repeats, thinned, what somebody new in the room could not read; who has
            the batches that it repeats finds in it nothing new.
    """

    patient: PatientKey
    anchor: str
    first: int
    last: int
    readings: Sequence[Measured]
    history: bool = False

    @classmethod
    def of(
        cls,
        patient: PatientKey,
        anchor: str,
        readings: Sequence[tuple[int, Reading]],
        *,
        history: bool = False,
    ) -> VitalsBatch:
        """A batch of logged readings (position, reading), in order."""
        return cls(
            patient,
            anchor,
            readings[0][0],
            readings[-1][0],
            [
                Measured(
                    one.measured_at,
                    one.values,
                    one.age,
                    Quality.of(one.quality),
                    one.contact is False,
                    one.unusable,
                )
                for _, one in readings
            ],
            history,
        )

    @property
    def samples(self) -> Mapping[Kind, Sequence[Sample]]:
        """By kind, in the order of the log."""
        found: dict[Kind, list[Sample]] = {}
        for one in self.readings:
            for kind, value in one.values.items():
                found.setdefault(kind, []).append(Sample(one.measured_at, value))
        return found

    def to_content(self) -> dict[str, Any]:
        """The Matrix content, made small, for a phone pays for it every minute.

        Times (ms) are the first one, ``from``, and the steps from each to the next. The values of a
        series are written so too, the first and then the steps; they belong to the readings that
        ``at`` numbers (from 0), to all of them without ``at``. The exponent is 0 unless stated, the
        unit is the kind's. What is the same for many readings is stated as runs, by the first and
        last number of each: ``ages`` of those that are not live, ``quality`` of those that are not
        good (without ``quality`` all are unknown), ``probe_off``, and ``unusable`` by kind.
        """
        times = [_to_ms(one.measured_at) for one in self.readings]
        content: dict[str, Any] = {
            "version": VERSION,
            "patient": self.patient,
            "first": self.first,
            "last": self.last,
            "from": times[0],
            "steps": [after - before for before, after in pairwise(times)],
            "series": {kind.value: self._series(kind) for kind in self.samples},
            "m.relates_to": {"rel_type": "m.reference", "event_id": self.anchor},
        }
        ages = _runs([one.age for one in self.readings], usual=Age.LIVE)
        qualities = _runs([one.quality for one in self.readings], usual=Quality.GOOD)
        off = _runs([one.probe_off for one in self.readings], usual=False)
        unusable = {
            kind: _runs([kind in one.unusable for one in self.readings], usual=False)
            for kind in Kind
        }
        marks = {
            "ages": {age.value: runs for age, runs in ages.items()},
            "probe_off": off.get(True),
            "unusable": {kind.value: runs[True] for kind, runs in unusable.items() if runs},
        }
        content |= {name: runs for name, runs in marks.items() if runs}
        if any(one.quality is not Quality.UNKNOWN for one in self.readings):
            content["quality"] = {quality.value: runs for quality, runs in qualities.items()}
        if self.history:
            content["history"] = True
        return content

    def _series(self, kind: Kind) -> dict[str, Any]:
        at = [number for number, one in enumerate(self.readings) if kind in one.values]
        values = [self.readings[number].values[kind] for number in at]
        exponent = min(_exponent(value) for value in values)
        whole = [int(value.scaleb(-exponent)) for value in values]
        steps = [after - before for before, after in pairwise(whole)]
        series: dict[str, Any] = {"values": [whole[0], *steps]}
        if exponent:
            series["exponent"] = exponent
        if len(at) < len(self.readings):
            series["at"] = at
        return series

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> VitalsBatch:
        """Read a Matrix content.

        Raises:
            DecodeError: it is not one.
        """
        try:
            _require_version(content)
            times = list(accumulate(content["steps"], _later, initial=_from_ms(content["from"])))
            values: list[dict[Kind, Decimal]] = [{} for _ in times]
            for kind, series in content["series"].items():
                for number, value in _numbered(series, len(times)):
                    values[number][Kind(kind)] = _unscaled(value, series.get("exponent", 0))
            ages = dict.fromkeys(range(len(times)), Age.LIVE)
            for age, runs in content.get("ages", {}).items():
                ages |= dict.fromkeys(_in_runs(runs, len(times)), Age(age))
            usual = Quality.GOOD if "quality" in content else Quality.UNKNOWN
            qualities = dict.fromkeys(range(len(times)), usual)
            for quality, runs in content.get("quality", {}).items():
                qualities |= dict.fromkeys(_in_runs(runs, len(times)), Quality(quality))
            off = _in_runs(content.get("probe_off", ()), len(times))
            unusable = {
                Kind(kind): _in_runs(runs, len(times))
                for kind, runs in content.get("unusable", {}).items()
            }
            return cls(
                patient=PatientKey(str(content["patient"])),
                anchor=str(content["m.relates_to"]["event_id"]),
                first=_whole(content["first"]),
                last=_whole(content["last"]),
                readings=[
                    Measured(
                        at,
                        values[n],
                        ages[n],
                        qualities[n],
                        n in off,
                        frozenset(kind for kind, numbers in unusable.items() if n in numbers),
                    )
                    for n, at in enumerate(times)
                ],
                history=content.get("history") is True,
            )
        except _MALFORMED as error:
            raise DecodeError(f"not a {VITALS_BATCH} content", code="bad_event") from error


@dataclass(frozen=True, slots=True)
class VitalsWatch:
    """Content of ``com.fajma.vitals.watch``: somebody looks at the vitals of this room.

    Attributes:
        for_s: how long from now, 1 to ``MAX_WATCH_S``; who looks on sends another one in time.
    """

    for_s: int

    def to_content(self, about: str) -> dict[str, Any]:
        """The Matrix content.

        Args:
            about: an event of the room, such as the day's anchor. Readers do not need it; without
                the relation the wish would be pushed to the phones of everybody in the room.
        """
        return {
            "version": VERSION,
            "for_s": self.for_s,
            "m.relates_to": {"rel_type": WATCH_RELATION, "event_id": about},
        }

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> VitalsWatch:
        """Read a Matrix content.

        Raises:
            DecodeError: it is not one, or it asks for more than anybody may.
        """
        try:
            _require_version(content)
            for_s = _whole(content["for_s"])
            if not 1 <= for_s <= MAX_WATCH_S:
                raise ValueError("beyond what may be asked for")
            return cls(for_s)
        except _MALFORMED as error:
            raise DecodeError(f"not a {VITALS_WATCH} content", code="bad_event") from error


@dataclass(frozen=True, slots=True)
class AlarmBlock:
    """The ``com.fajma.alarm`` block of a message, for machines.

    It is about a value, or about a sensor's trouble.

    Attributes:
        delivery_id: identity of this message.
        alarm_id: identity of the episode; all messages about it carry the same.
        patient: opaque key of the patient.
        state: why it is said: ``started``, ``worsened``, ``recovered``, ``escalated``, ...
        priority: ``low``, ``medium`` or ``high`` (IEC 60601-1-8).
        measured_at: when ``value`` was measured; of a trouble, the last value before it.
        kind: what is measured; ``None`` about a trouble.
        value: the value that decided.
        limit: the limit that is broken, or was.
        trouble: what is wrong with the sensor; ``None`` about a value.
        is_late: whether the value came late, from an outage.
    """

    delivery_id: str
    alarm_id: str
    patient: PatientKey
    state: str
    priority: str
    measured_at: datetime | None
    kind: Kind | None = None
    value: Decimal | None = None
    limit: Decimal | None = None
    trouble: str | None = None
    is_late: bool = False

    def to_content(self) -> dict[str, Any]:
        """The block."""
        content: dict[str, Any] = {
            "version": VERSION,
            "delivery_id": self.delivery_id,
            "alarm_id": self.alarm_id,
            "patient": self.patient,
            "state": self.state,
            "priority": self.priority,
        }
        if self.measured_at is not None:
            content["measured_at"] = _to_ms(self.measured_at)
        if self.kind is not None and self.value is not None and self.limit is not None:
            content |= {
                "kind": self.kind.value,
                **_scaled(self.value),
                "unit": MEASURES[self.kind].unit,
                "limit": _scaled(self.limit),
            }
        if self.trouble is not None:
            content["trouble"] = self.trouble
        if self.is_late:
            content["late"] = True
        return content

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> AlarmBlock:
        """Read a block.

        Raises:
            DecodeError: it is not one.
        """
        try:
            _require_version(content)
            about_value = "kind" in content
            if about_value is ("trouble" in content):
                raise ValueError
            measured_at = content["measured_at"] if about_value else content.get("measured_at")
            return cls(
                delivery_id=str(content["delivery_id"]),
                alarm_id=str(content["alarm_id"]),
                patient=PatientKey(str(content["patient"])),
                state=str(content["state"]),
                priority=str(content["priority"]),
                measured_at=(
                    None if measured_at is None and not about_value else _from_ms(measured_at)
                ),
                kind=Kind(content["kind"]) if about_value else None,
                value=_unscaled(content["value"], content["exponent"]) if about_value else None,
                limit=(
                    _unscaled(content["limit"]["value"], content["limit"]["exponent"])
                    if about_value
                    else None
                ),
                trouble=None if about_value else str(content["trouble"]),
                is_late=content.get("late", False) is True,
            )
        except _MALFORMED as error:
            raise DecodeError(f"not a {ALARM} block", code="bad_event") from error


class Monitoring(StrEnum):
    """What a message says about the monitoring itself."""

    SILENT = "silent"
    """No sign of life from all of it; the homeserver says so."""
    PART_SILENT = "part_silent"
    """No sign of life from a part of it."""
    STOPPING = "stopping"
    """It stops as planned."""
    BACK = "back"


@dataclass(frozen=True, slots=True)
class MonitoringBlock:
    """The ``com.fajma.monitoring`` block of a message, for machines: a technical alarm or its end.

    Attributes:
        state: what it says.
        priority: ``high``, or ``low`` once monitoring is back (IEC 60601-1-8).
    """

    state: Monitoring
    priority: str

    def to_content(self) -> dict[str, Any]:
        """The block."""
        return {"version": VERSION, "state": self.state.value, "priority": self.priority}

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> MonitoringBlock:
        """Read a block.

        Raises:
            DecodeError: it is not one.
        """
        try:
            _require_version(content)
            return cls(Monitoring(content["state"]), str(content["priority"]))
        except _MALFORMED as error:
            raise DecodeError(f"not a {MONITORING} block", code="bad_event") from error


_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError)
_MAX_EXPONENT: Final = 6


def _require_version(content: Mapping[str, Any]) -> None:
    if content["version"] != VERSION:
        raise ValueError("unknown version")


def _exponent(value: Decimal) -> int:
    exponent = value.normalize().as_tuple().exponent
    if not isinstance(exponent, int):
        raise TypeError("not a finite number")
    return min(exponent, 0)


def _scaled(value: Decimal) -> dict[str, int]:
    exponent = _exponent(value)
    return {"value": int(value.scaleb(-exponent)), "exponent": exponent}


def _unscaled(value: object, exponent: object) -> Decimal:
    if type(value) is not int or type(exponent) is not int or not -_MAX_EXPONENT <= exponent <= 0:
        raise ValueError("not a scaled integer")
    return Decimal(value).scaleb(exponent)


def _later(moment: datetime, step_ms: object) -> datetime:
    return moment + _whole(step_ms) * _MS


def _numbered(series: Mapping[str, Any], readings: int) -> Iterable[tuple[int, object]]:
    """The values of a series with the number of the reading that each belongs to."""
    at = series.get("at", range(readings))
    if not all(0 <= _whole(number) < readings for number in at):
        raise ValueError("a value of no reading")
    return zip(at, accumulate(map(_whole, series["values"])), strict=True)


_State = TypeVar("_State", bound=Hashable)


def _runs(states: Sequence[_State], *, usual: _State) -> dict[_State, list[list[int]]]:
    """By state, the first and last number of each run; the usual state is left out."""
    runs: dict[_State, list[list[int]]] = {}
    for state, run in groupby(enumerate(states), key=itemgetter(1)):
        if state != usual:
            numbers = [number for number, _ in run]
            runs.setdefault(state, []).append([numbers[0], numbers[-1]])
    return runs


def _in_runs(runs: Iterable[Iterable[object]], readings: int) -> set[int]:
    """The numbers of the readings that runs cover."""
    numbers: set[int] = set()
    for first, last in runs:
        if not 0 <= _whole(first) <= _whole(last) < readings:
            raise ValueError("not a run of readings")
        numbers.update(range(_whole(first), _whole(last) + 1))
    return numbers


def _whole(number: object) -> int:
    if type(number) is not int:
        raise ValueError("not an integer")
    return number


def _to_ms(moment: datetime) -> int:
    return (moment - _EPOCH) // _MS


def _from_ms(milliseconds: object) -> datetime:
    return _EPOCH + _whole(milliseconds) * _MS
