"""Vital signs: kinds, units, codes, plausible ranges, and one reading of a monitor.

Units are UCUM, codes are LOINC as in the HL7 FHIR R4 vital-signs profile
(https://hl7.org/fhir/R4/observation-vitalsigns.html). Plausible ranges tell an artefact from a
measurement; they are wide on purpose and are not alarm limits (see ``bots.alerts.limits``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Final, NewType

DeviceId = NewType("DeviceId", str)
"""Identity of a monitor: its MAC address as twelve upper-case hex digits, e.g. ``A4CF12F03B7E``."""

PatientKey = NewType("PatientKey", str)
"""Opaque key of a patient record, 32 hex digits, e.g. ``9f…``; carries no meaning by itself."""


class Kind(StrEnum):
    """What is measured. The value is the name used on the wire and in Matrix events."""

    HEART_RATE = "heart_rate"
    SPO2 = "spo2"
    TEMPERATURE = "temperature"
    SYSTOLIC = "systolic"
    DIASTOLIC = "diastolic"


@dataclass(frozen=True, slots=True)
class Measure:
    """What is fixed about a kind.

    Attributes:
        unit: UCUM unit.
        loinc: LOINC code of the FHIR vital-signs profile.
        lowest: smallest plausible value, in ``unit``; anything below is an artefact.
        highest: largest plausible value, in ``unit``; anything above is an artefact.
    """

    unit: str
    loinc: str
    lowest: Decimal
    highest: Decimal


MEASURES: Final[Mapping[Kind, Measure]] = {
    Kind.HEART_RATE: Measure("/min", "8867-4", Decimal(20), Decimal(300)),
    Kind.SPO2: Measure("%", "59408-5", Decimal(50), Decimal(100)),
    Kind.TEMPERATURE: Measure("Cel", "8310-5", Decimal(25), Decimal(45)),
    Kind.SYSTOLIC: Measure("mm[Hg]", "8480-6", Decimal(40), Decimal(300)),
    Kind.DIASTOLIC: Measure("mm[Hg]", "8462-4", Decimal(10), Decimal(200)),
}

TELLING_LOW: Final = frozenset({Kind.HEART_RATE, Kind.SPO2})
"""Kinds that a probe on a dying patient shows implausibly low; of the others it is an artefact."""

MAX_DECIMALS: Final = 4
"""Values are kept exactly as sent up to this many decimals; beyond it they are rounded."""


class Clock(StrEnum):
    """How ``measured_at`` of a reading is known."""

    DEVICE = "device"
    """The device's own clock, plausible beside ours."""
    ARRIVAL = "arrival"
    """The device counts from its start; the reading is placed by its arrival."""
    WRONG = "wrong"
    """The device states a time that cannot be; the reading is placed by its arrival."""


class Age(StrEnum):
    """Whether a reading says something about the patient now (``bridges.mqtt_vitals.clocks``)."""

    LIVE = "live"
    """Measured just before it came."""
    LATE = "late"
    """From a backlog; it raises no live alarm."""
    UNKNOWN = "unknown"
    """Nobody can say how old it is; it raises no live alarm either."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a monitor measured at one moment: only plausible values.

    Attributes:
        device: the monitor.
        measured_at: aware UTC time of the measurement.
        received_at: aware UTC time at which we got it.
        clock: how ``measured_at`` is known.
        values: plausible values by kind, in the unit of ``MEASURES``; empty only when ``contact``
            is false or something is ``unusable``.
        age: whether it is about the patient now.
        quality: of the pulse wave, 0 to 100 %; ``None`` where the monitor does not say.
        contact: false when the probe is off the patient; ``None`` where the monitor does not say.
        unusable: kinds of ``TELLING_LOW`` whose value was below what is plausible, 0 included. By
            itself it means nothing (v1 monitors send 0 when no finger is in the probe); that it
            lasts does.
    """

    device: DeviceId
    measured_at: datetime
    received_at: datetime
    clock: Clock
    values: Mapping[Kind, Decimal]
    age: Age = Age.LIVE
    quality: int | None = None
    contact: bool | None = None
    unusable: frozenset[Kind] = frozenset()


def is_plausible(kind: Kind, value: Decimal) -> bool:
    """Whether a value can be a measurement at all (bounds of ``MEASURES``, both included)."""
    measure = MEASURES[kind]
    return value.is_finite() and measure.lowest <= value <= measure.highest
