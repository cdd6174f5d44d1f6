"""Contents of the Matrix events that FAJMA defines, to and from dataclasses. Pure.

Matrix allows no floats in event JSON (canonical JSON, client-server specification, appendix
"Canonical JSON"), so a value is an integer and a decimal exponent: 36.8 is ``368`` and ``-1``.
All of these contents travel encrypted; nothing here is ever sent in clear.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from itertools import accumulate, groupby, pairwise
from typing import Any, Final

from fajma.errors import DecodeError
from fajma.vitals import MEASURES, Age, Kind, PatientKey, Reading

CONSULTATION: Final = "com.fajma.consultation"
VITALS: Final = "com.fajma.vitals"
VITALS_DAY: Final = "com.fajma.vitals.day"
VITALS_BATCH: Final = "com.fajma.vitals.batch"
VITALS_WATCH: Final = "com.fajma.vitals.watch"
ALARM: Final = "com.fajma.alarm"
"""Key of the block for machines inside an ``m.room.message``."""

MONITORING: Final = "com.fajma.monitoring"
"""The same for messages about the monitoring itself, which concern no patient."""

ENCRYPTED: Final = "m.room.encrypted"
MESSAGE: Final = "m.room.message"

VERSION: Final = 1
WATCH_RELATION: Final = "com.fajma.watch"
"""How a wish to watch refers to the day, in clear: so push rules know that it is for no phone."""

MAX_WATCH_S: Final = 300
"""Longest wish to watch, s; who watches on wishes again."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)


def encrypted_state_key(event_type: str, state_key: str) -> str:
    """State key under which an encrypted state event is stored (MSC4362)."""
    return f"{event_type}:{state_key}"


class Quality(StrEnum):
    """What is known about the signal behind a value."""

    GOOD = "good"
    UNKNOWN = "unknown"
    """The device says nothing about its signal (v1)."""


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
    """

    patient: PatientKey
    as_of: datetime
    latest: Mapping[Kind, Latest]

    def to_content(self) -> dict[str, Any]:
        """The Matrix content."""
        return {
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

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> Vitals:
        """Read a Matrix content.

        Raises:
            DecodeError: it is not one.
        """
        try:
            _require_version(content)
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
    """One reading in a batch: when, what, and whether it was about the patient as it came."""

    measured_at: datetime
    values: Mapping[Kind, Decimal]
    age: Age = Age.LIVE


@dataclass(frozen=True, slots=True)
class VitalsBatch:
    """Content of ``com.fajma.vitals.batch``: every reading since the last batch.

    Attributes:
        patient: opaque key of the patient.
        anchor: event id of the day's ``com.fajma.vitals.day``, which the batch refers to.
        first: log position of the first reading.
        last: log position of the last reading; readers de-duplicate by it.
        readings: in the order of the log, at least one; those without any value are left out.
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
        """A batch of logged readings (position, reading), one with a value at least, in order."""
        return cls(
            patient,
            anchor,
            readings[0][0],
            readings[-1][0],
            [Measured(one.measured_at, one.values, one.age) for _, one in readings if one.values],
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
        unit is the kind's. ``ages`` has the first and last number of each run of readings that are
        not live.
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
        ages = self._ages()
        if ages:
            content["ages"] = ages
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

    def _ages(self) -> dict[str, list[list[int]]]:
        runs: dict[str, list[list[int]]] = {}
        for age, run in groupby(enumerate(self.readings), key=lambda one: one[1].age):
            if age is not Age.LIVE:
                numbers = [number for number, _ in run]
                runs.setdefault(age.value, []).append([numbers[0], numbers[-1]])
        return runs

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
            ages = [Age.LIVE for _ in times]
            for age, runs in content.get("ages", {}).items():
                for first, last in runs:
                    if not 0 <= _whole(first) <= _whole(last) < len(times):
                        raise ValueError("not a run of readings")
                    ages[first : last + 1] = [Age(age)] * (last + 1 - first)
            return cls(
                patient=PatientKey(str(content["patient"])),
                anchor=str(content["m.relates_to"]["event_id"]),
                first=_whole(content["first"]),
                last=_whole(content["last"]),
                readings=[Measured(*one) for one in zip(times, values, ages, strict=True)],
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

    Attributes:
        delivery_id: identity of this message.
        alarm_id: identity of the episode; all messages about it carry the same.
        patient: opaque key of the patient.
        state: ``started``, ``worsened`` or ``recovered``.
        kind: what is measured.
        priority: ``low``, ``medium`` or ``high`` (IEC 60601-1-8).
        value: the value that decided.
        limit: the limit that is broken, or was.
        measured_at: when ``value`` was measured.
    """

    delivery_id: str
    alarm_id: str
    patient: PatientKey
    state: str
    kind: Kind
    priority: str
    value: Decimal
    limit: Decimal
    measured_at: datetime

    def to_content(self) -> dict[str, Any]:
        """The block."""
        return {
            "version": VERSION,
            "delivery_id": self.delivery_id,
            "alarm_id": self.alarm_id,
            "patient": self.patient,
            "state": self.state,
            "kind": self.kind.value,
            "priority": self.priority,
            **_scaled(self.value),
            "unit": MEASURES[self.kind].unit,
            "limit": _scaled(self.limit),
            "measured_at": _to_ms(self.measured_at),
        }

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> AlarmBlock:
        """Read a block.

        Raises:
            DecodeError: it is not one.
        """
        try:
            _require_version(content)
            return cls(
                delivery_id=str(content["delivery_id"]),
                alarm_id=str(content["alarm_id"]),
                patient=PatientKey(str(content["patient"])),
                state=str(content["state"]),
                kind=Kind(content["kind"]),
                priority=str(content["priority"]),
                value=_unscaled(content["value"], content["exponent"]),
                limit=_unscaled(content["limit"]["value"], content["limit"]["exponent"]),
                measured_at=_from_ms(content["measured_at"]),
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


def _whole(number: object) -> int:
    if type(number) is not int:
        raise ValueError("not an integer")
    return number


def _to_ms(moment: datetime) -> int:
    return (moment - _EPOCH) // _MS


def _from_ms(milliseconds: object) -> datetime:
    return _EPOCH + _whole(milliseconds) * _MS
