"""Contents of the Matrix events that FAJMA defines, to and from dataclasses. Pure.

Matrix allows no floats in event JSON (canonical JSON, client-server specification, appendix
"Canonical JSON"), so a value is an integer and a decimal exponent: 36.8 is ``368`` and ``-1``.
All of these contents travel encrypted; nothing here is ever sent in clear.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final

from fajma.errors import DecodeError
from fajma.vitals import MEASURES, Kind, PatientKey, Reading

CONSULTATION: Final = "com.fajma.consultation"
VITALS: Final = "com.fajma.vitals"
VITALS_DAY: Final = "com.fajma.vitals.day"
VITALS_BATCH: Final = "com.fajma.vitals.batch"
ALARM: Final = "com.fajma.alarm"
"""Key of the block for machines inside an ``m.room.message``."""

ENCRYPTED: Final = "m.room.encrypted"
MESSAGE: Final = "m.room.message"

VERSION: Final = 1
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
    """The latest value of one kind."""

    value: Decimal
    measured_at: datetime
    quality: Quality
    trend: Trend


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
class VitalsBatch:
    """Content of ``com.fajma.vitals.batch``: every reading since the last batch.

    Attributes:
        patient: opaque key of the patient.
        anchor: event id of the day's ``com.fajma.vitals.day``, which the batch refers to.
        first: log position of the first reading.
        last: log position of the last reading; readers de-duplicate by it.
        samples: by kind, in the order of the log.
    """

    patient: PatientKey
    anchor: str
    first: int
    last: int
    samples: Mapping[Kind, Sequence[Sample]]

    @classmethod
    def of(
        cls, patient: PatientKey, anchor: str, readings: Sequence[tuple[int, Reading]]
    ) -> VitalsBatch:
        """A batch of logged readings (position, reading), not empty, in order."""
        samples: dict[Kind, list[Sample]] = {}
        for _, reading in readings:
            for kind, value in reading.values.items():
                samples.setdefault(kind, []).append(Sample(reading.measured_at, value))
        return cls(patient, anchor, readings[0][0], readings[-1][0], samples)

    def to_content(self) -> dict[str, Any]:
        """The Matrix content; one exponent per kind keeps it small."""
        series = {}
        for kind, samples in self.samples.items():
            exponent = min(_exponent(sample.value) for sample in samples)
            series[kind.value] = {
                "unit": MEASURES[kind].unit,
                "exponent": exponent,
                "samples": [
                    [_to_ms(sample.measured_at), int(sample.value.scaleb(-exponent))]
                    for sample in samples
                ],
            }
        return {
            "version": VERSION,
            "patient": self.patient,
            "first": self.first,
            "last": self.last,
            "series": series,
            "m.relates_to": {"rel_type": "m.reference", "event_id": self.anchor},
        }

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> VitalsBatch:
        """Read a Matrix content.

        Raises:
            DecodeError: it is not one.
        """
        try:
            _require_version(content)
            return cls(
                patient=PatientKey(str(content["patient"])),
                anchor=str(content["m.relates_to"]["event_id"]),
                first=_whole(content["first"]),
                last=_whole(content["last"]),
                samples={
                    Kind(kind): [
                        Sample(_from_ms(at), _unscaled(value, series["exponent"]))
                        for at, value in series["samples"]
                    ]
                    for kind, series in content["series"].items()
                },
            )
        except _MALFORMED as error:
            raise DecodeError(f"not a {VITALS_BATCH} content", code="bad_event") from error


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


def _whole(number: object) -> int:
    if type(number) is not int:
        raise ValueError("not an integer")
    return number


def _to_ms(moment: datetime) -> int:
    return (moment - _EPOCH) // _MS


def _from_ms(milliseconds: object) -> datetime:
    return _EPOCH + _whole(milliseconds) * _MS
