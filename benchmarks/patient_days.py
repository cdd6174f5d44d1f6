"""Synthetic patient days with annotated events; pure, and the same for the same seed.

A day is 24 h from 08:00 of one adult whose monitor sends every 5 s: heart rate, SpO2 and
temperature, for half of the patients also a blood pressure every 30 min. Two things are kept apart:
the *truth*, which is what a perfect sensor at the same place would show, and what is *sent*, which
has noise, a sensor's error, its resolution, motion and gaps.

Where a magnitude has a source it is named beside it. All others are chosen, as the ward stories a
clinician would expect, and were fixed before an engine was run on them. So the figures compare ways
to alarm; they do not foretell a hospital's alarm load.

Sources: *Gries*: Gries and Brooks, Chest 1996;110:1489-92 (median SpO2 of a night 96.5, SD 1.5;
95.1, SD 2.0 above 60 years). *Mackowiak*: Mackowiak et al., JAMA 1992;268:1578-80 (36.8 Cel, 0.5
from the low at 6 h to the high at 16 to 18 h). *Karjalainen*: Karjalainen and Viitasalo, Arch
Intern Med 1986;146:1169-71 (8.5 /min per Cel of fever). *ISO*: ISO 80601-2-61 (oximeters within 4 %
root mean square). *BTS* and *NEWS2*: as in ``bots.alerts.limits``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Final

from fajma.vitals import Kind

EVERY_S: Final = 5
DAY_S: Final = 86_400
START: Final = datetime(2026, 1, 1, 8, tzinfo=UTC)
"""08:00 on the day that all days are."""

TECHNICAL: Final = "technical"
"""The track of an alarm about the monitor, not the patient."""
NO_PULSE: Final = "no_pulse"
"""The track of *no usable pulse*."""
DURING_OUTAGE: Final = "during_outage"
"""The track of a breach that is found in late readings."""


class Cause(StrEnum):
    """What happens to a patient or to a monitor."""

    APNOEA = "apnoea"
    DESATURATION = "desaturation"
    FEVER = "fever"
    SEPSIS = "sepsis"
    DYING_PULSE = "dying_pulse"
    PROBE_OFF = "probe_off"
    """Technical: somebody must put the probe back."""
    OFFLINE = "offline"
    """Technical: nothing comes; from a v2 monitor it comes later, from a v1 monitor never."""
    LATE_BREACH = "late_breach"
    """A desaturation within ``OFFLINE`` that is over when its readings come."""
    EXERCISE = "exercise"
    """Benign: the patient gets up, the heart beats faster, SpO2 stays. Nobody has to come, and so
    every alarm in it is counted as false, also one that is right about the value."""
    MOTION = "motion"
    """Benign: a burst of wrong or missing pulse values."""


_LOW_OXYGEN: Final = frozenset({"spo2-low"})
TRACKS: Final[Mapping[Cause, frozenset[str]]] = {
    Cause.APNOEA: frozenset({"spo2-low", "heart_rate-low"}),
    Cause.DESATURATION: _LOW_OXYGEN,
    Cause.FEVER: frozenset({"temperature-high", "heart_rate-high"}),
    Cause.SEPSIS: frozenset(
        {"heart_rate-high", "temperature-high", "temperature-low", "spo2-low", "systolic-low"}
    ),
    Cause.DYING_PULSE: frozenset({"heart_rate-low", "spo2-low", NO_PULSE}),
    Cause.PROBE_OFF: frozenset({TECHNICAL}),
    Cause.OFFLINE: frozenset({TECHNICAL}),
    Cause.LATE_BREACH: frozenset({DURING_OUTAGE}),
    Cause.EXERCISE: frozenset(),
    Cause.MOTION: frozenset(),
}
"""Alarms of which kind and direction are right in an event; none in a benign one."""

PATIENT_EVENTS: Final = (
    Cause.APNOEA,
    Cause.DESATURATION,
    Cause.FEVER,
    Cause.SEPSIS,
    Cause.DYING_PULSE,
)
"""Those that want a clinician at the bed."""
TECHNICAL_EVENTS: Final = (Cause.PROBE_OFF, Cause.OFFLINE, Cause.LATE_BREACH)
"""Those of the monitor, which somebody must know of too."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happens.

    Attributes:
        cause: what.
        start_s: when it begins, before it shows, seconds since ``START``.
        end_s: when it is over.
    """

    cause: Cause
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Sent:
    """One message of a monitor, in the order of arrival.

    Attributes:
        at_s: when it was measured, seconds since ``START``.
        received_s: when it came; later than ``at_s`` only from a backlog.
        values: as the monitor states them, in the unit of ``fajma.vitals``; possibly implausible.
        contact: false while a v2 monitor knows that its probe is off; ``None`` from a v1 monitor.
        quality: of the pulse wave, 0 to 100 %; ``None`` from a v1 monitor.
    """

    at_s: int
    received_s: int
    values: Mapping[Kind, Decimal]
    contact: bool | None
    quality: int | None

    @property
    def late(self) -> bool:
        """Whether it comes from a backlog."""
        return self.received_s != self.at_s


@dataclass(frozen=True, slots=True)
class PatientDay:
    """One day of one patient.

    Attributes:
        seed: what it was made from.
        copd: whether an SpO2 of 88 to 92 % is aimed at (BTS).
        duration_s: shorter than a day for a patient who dies.
        sent: what came.
        events: what happened, by start.
        truth: of each kind that the patient's monitor measures, one value per ``EVERY_S``.
    """

    seed: int
    copd: bool
    duration_s: int
    sent: tuple[Sent, ...]
    events: tuple[Event, ...]
    truth: Mapping[Kind, Sequence[float]]


def patient_day(seed: int) -> PatientDay:
    """The day of a seed."""
    draft = _Draft(random.Random(seed))  # noqa: S311 - a day must repeat itself
    _baseline(draft)
    _stories(draft)
    _bursts(draft)
    events = tuple(sorted(draft.events, key=lambda event: (event.start_s, event.cause)))
    count = draft.count
    return PatientDay(
        seed=seed,
        copd=draft.copd,
        duration_s=count * EVERY_S,
        sent=_sent(draft),
        events=events,
        truth={
            kind: values[:count]
            for kind, values in draft.truth.items()
            if draft.cuff or kind is not Kind.SYSTOLIC
        },
    )


_COUNT: Final = DAY_S // EVERY_S
_GUARD: Final = 20 * 60 // EVERY_S  # samples between two events, so that no window holds two


@dataclass(slots=True)
class _Draft:
    """A day under way; places and lengths in it are counted in samples."""

    chance: random.Random
    copd: bool = False
    v2: bool = False
    cuff: bool = False
    count: int = _COUNT
    truth: dict[Kind, list[float]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    taken: list[tuple[int, int]] = field(default_factory=list)
    bursts: list[tuple[int, int]] = field(default_factory=list)

    def place(self, cause: Cause, length: int) -> int | None:
        """Where an event that touches no other begins; ``None`` if the day is full."""
        for _ in range(50):
            start = self.chance.randrange(_GUARD, max(_GUARD + 1, _COUNT - length))
            if self._is_free(start, start + length):
                self.note(cause, start, start + length)
                self.taken.append((start, start + length))
                return start
        return None

    def note(self, cause: Cause, start: int, end: int) -> None:
        self.events.append(Event(cause, start * EVERY_S, end * EVERY_S))

    def shape(self, kind: Kind, start: int, length: int, by: Callable[[float], float]) -> None:
        """Add ``by(part)`` to the truth, with ``part`` of the event over from 0 to 1."""
        values = self.truth[kind]
        for index in range(start, min(start + length, _COUNT)):
            values[index] += by((index - start) / length)

    def minutes(self, low: float, high: float) -> int:
        """A length, in samples."""
        return round(self.chance.uniform(low, high) * 60 / EVERY_S)

    def _is_free(self, start: int, end: int) -> bool:
        fits = end <= _COUNT
        return fits and all(end + _GUARD <= a or b + _GUARD <= start for a, b in self.taken)


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _smooth(part: float) -> float:
    """From 0 to 1 without a kink; flat outside."""
    part = _clip(part, 0.0, 1.0)
    return part * part * (3 - 2 * part)


def _plateau(rise: float, fall: float) -> Callable[[float], float]:
    """Up until ``rise``, down from ``fall``, both parts of an event."""
    return lambda part: _smooth(part / rise) - _smooth((part - fall) / (1 - fall))


def _noise(chance: random.Random, deviation: float, memory_s: float, count: int) -> list[float]:
    """First-order autoregressive noise of a standard deviation and a time constant."""
    keep = math.exp(-EVERY_S / memory_s)
    fresh = deviation * math.sqrt(1 - keep * keep)
    value = chance.gauss(0, deviation)
    values = []
    for _ in range(count):
        values.append(value)
        value = keep * value + chance.gauss(0, fresh)
    return values


# --- the truth ---


def _baseline(draft: _Draft) -> None:
    chance = draft.chance
    draft.copd = chance.random() < 0.15
    draft.v2 = chance.random() < 0.5
    draft.cuff = chance.random() < 0.5
    heart_rate = _clip(chance.gauss(78, 9), 60, 98)
    # BTS: at risk of hypercapnic failure, 88 to 92 %. Gries, between young and old, for the others.
    usual = _clip(chance.gauss(96.0, 1.5), 93.5, 99)
    spo2 = _clip(chance.gauss(90.5, 1.0), 88.5, 92.5) if draft.copd else usual
    temperature = chance.gauss(36.8, 0.2)  # Mackowiak
    systolic = _clip(chance.gauss(125, 14), 100, 165)
    slow = {
        Kind.HEART_RATE: _noise(chance, 3.0, 600, _COUNT),
        Kind.SPO2: _noise(chance, 0.5, 1200, _COUNT),
        Kind.TEMPERATURE: _noise(chance, 0.07, 3600, _COUNT),
        Kind.SYSTOLIC: _noise(chance, 5.0, 1800, _COUNT),
    }
    of_day = [math.cos(math.tau * (_hour(index) - 17) / 24) for index in range(_COUNT)]
    asleep = [_asleep(_hour(index)) for index in range(_COUNT)]
    draft.truth = {
        Kind.HEART_RATE: [
            heart_rate + 2 * day - 7 * sleep + more
            for day, sleep, more in zip(of_day, asleep, slow[Kind.HEART_RATE], strict=True)
        ],
        Kind.SPO2: [
            min(spo2 - 0.7 * sleep + more, 100.0)
            for sleep, more in zip(asleep, slow[Kind.SPO2], strict=True)
        ],
        # Mackowiak: 0.5 from the low to the high.
        Kind.TEMPERATURE: [
            temperature + 0.25 * day + more
            for day, more in zip(of_day, slow[Kind.TEMPERATURE], strict=True)
        ],
        Kind.SYSTOLIC: [
            systolic - 10 * sleep + more
            for sleep, more in zip(asleep, slow[Kind.SYSTOLIC], strict=True)
        ],
    }


def _hour(index: int) -> float:
    """The hour of the day, 0 to 24."""
    return (8 + index * EVERY_S / 3600) % 24


def _asleep(hour: float) -> float:
    """How deep in sleep, 0 to 1: from 22 to 6 h with an hour of falling asleep and of waking."""
    since = (hour - 22) % 24
    return _smooth(since) - _smooth(since - 8)


def _stories(draft: _Draft) -> None:
    """What happens; the long events first, while there is room."""
    chance = draft.chance
    if chance.random() < 0.10:
        _dying_pulse(draft)
    illness = chance.random()
    if illness < 0.20:
        _sepsis(draft)
    elif illness < 0.45:
        _fever(draft)
    if chance.random() < 0.35:
        _desaturation(draft)
    if chance.random() < 0.35:
        for _ in range(chance.randint(1, 5)):
            _apnoea(draft)
    for _ in range(chance.choice((0, 1, 1, 2, 3))):
        _exercise(draft)
    for _ in range(chance.choice((0, 1, 1, 2, 3))):
        draft.place(Cause.PROBE_OFF, draft.minutes(2, 30))
    if chance.random() < 0.4:
        _offline(draft)


def _sepsis(draft: _Draft) -> None:
    """Hours of getting worse, then treatment. In one of seven the temperature falls.

    The directions are those that NEWS2 scores; sizes are chosen.
    """
    chance = draft.chance
    length = draft.minutes(480, 720)
    start = draft.place(Cause.SEPSIS, length)
    if start is None:
        return
    course = _plateau(0.55, 0.8)
    warmer = chance.uniform(-2.6, -1.6) if chance.random() < 1 / 7 else chance.uniform(1.2, 2.8)
    heart_rate, spo2 = chance.uniform(30, 58), chance.uniform(3, 9)
    systolic = chance.uniform(25, 55)
    draft.shape(Kind.HEART_RATE, start, length, lambda part: heart_rate * course(part))
    draft.shape(Kind.TEMPERATURE, start, length, lambda part: warmer * course(part))
    draft.shape(Kind.SPO2, start, length, lambda part: -spo2 * course(part))
    draft.shape(Kind.SYSTOLIC, start, length, lambda part: -systolic * course(part))


def _fever(draft: _Draft) -> None:
    chance = draft.chance
    length = draft.minutes(240, 600)
    start = draft.place(Cause.FEVER, length)
    if start is None:
        return
    course = _plateau(0.25, 0.7)
    warmer = chance.uniform(1.4, 3.0)
    draft.shape(Kind.TEMPERATURE, start, length, lambda part: warmer * course(part))
    # Karjalainen.
    draft.shape(Kind.HEART_RATE, start, length, lambda part: 8.5 * warmer * course(part))


def _desaturation(draft: _Draft) -> None:
    """SpO2 falls over 10 to 40 min, stays low, and rises when oxygen is given."""
    chance = draft.chance
    falling, low, rising = draft.minutes(10, 40), draft.minutes(5, 30), draft.minutes(4, 12)
    length = falling + low + rising
    start = draft.place(Cause.DESATURATION, length)
    if start is None:
        return
    course = _plateau(falling / length, (falling + low) / length)
    depth, faster = chance.uniform(5, 13), chance.uniform(0, 15)
    draft.shape(Kind.SPO2, start, length, lambda part: -depth * course(part))
    draft.shape(Kind.HEART_RATE, start, length, lambda part: faster * course(part))


def _apnoea(draft: _Draft) -> None:
    """No breath for 25 to 110 s. A finger shows it 20 to 30 s later, then SpO2 falls steadily."""
    chance = draft.chance
    breathless_s, lag_s = chance.uniform(25, 110), chance.uniform(20, 30)
    rising_s = chance.uniform(20, 45)
    length_s = lag_s + breathless_s + rising_s
    length = round(length_s / EVERY_S)
    start = draft.place(Cause.APNOEA, length)
    if start is None:
        return
    depth = min(chance.uniform(0.15, 0.5) * breathless_s, 40)
    slower = chance.uniform(0.1, 0.45) * draft.truth[Kind.HEART_RATE][start]

    def course(part: float) -> float:
        second = part * length_s
        if second < lag_s + breathless_s:
            return max(second - lag_s, 0) / breathless_s
        return 1 - _smooth((second - lag_s - breathless_s) / rising_s)

    draft.shape(Kind.SPO2, start, length, lambda part: -depth * course(part))
    draft.shape(Kind.HEART_RATE, start, length, lambda part: -slower * course(part))


def _exercise(draft: _Draft) -> None:
    length = draft.minutes(3, 15)
    start = draft.place(Cause.EXERCISE, length)
    if start is not None:
        faster = draft.chance.uniform(15, 45)
        course = _plateau(0.2, 0.6)
        draft.shape(Kind.HEART_RATE, start, length, lambda part: faster * course(part))


def _dying_pulse(draft: _Draft) -> None:
    """The heart slows down, stops, and the day ends; nothing plausible is measured at the end."""
    chance = draft.chance
    slowing, stopping, still = draft.minutes(8, 20), draft.minutes(3, 8), draft.minutes(5, 10)
    length = slowing + stopping + still
    start = chance.randrange(_COUNT // 4, _COUNT - length)
    draft.count = start + length
    draft.note(Cause.DYING_PULSE, start, draft.count)
    draft.taken.append((start, _COUNT + _GUARD))
    heart_rate, spo2 = draft.truth[Kind.HEART_RATE], draft.truth[Kind.SPO2]
    slow = chance.uniform(30, 45)
    before_rate, before_spo2 = heart_rate[start], spo2[start]
    for index in range(start, draft.count):
        gone = index - start
        one, two = _smooth(gone / slowing), _smooth((gone - slowing) / stopping)
        heart_rate[index] = before_rate + (slow - before_rate) * one + (5 - slow) * two
        spo2[index] = before_spo2 - 20 * one - 35 * two


def _offline(draft: _Draft) -> None:
    """About 10 min without network; in half of them SpO2 falls and is back before its end."""
    chance = draft.chance
    length = draft.minutes(8, 15)
    start = draft.place(Cause.OFFLINE, length)
    if start is None or not draft.v2 or chance.random() < 0.5:
        return
    begin, low = start + length // 4, length // 2
    depth = chance.uniform(8, 15)
    course = _plateau(0.3, 0.6)
    draft.shape(Kind.SPO2, begin, low, lambda part: -depth * course(part))
    draft.note(Cause.LATE_BREACH, begin, start + length)


def _bursts(draft: _Draft) -> None:
    """Motion: up to 60 bursts, fewer in sleep, most for some 10 s, few for a minute or two."""
    chance = draft.chance
    for _ in range(chance.randint(15, 60)):
        start = chance.randrange(draft.count)
        length = round(_clip(chance.lognormvariate(math.log(12), 0.8), 5, 150) / EVERY_S)
        if _asleep(_hour(start)) > 0.5 and chance.random() < 0.5:
            continue
        # No overlap with each other, so that each error has one size.
        if all(start >= b + 2 or start + length + 2 <= a for a, b in draft.bursts):
            draft.bursts.append((start, start + length))
            draft.note(Cause.MOTION, start, min(start + length, draft.count))


# --- what is sent ---

_WHOLE: Final = tuple(Decimal(number) for number in range(301))
_TENTHS: Final = tuple(Decimal(number).scaleb(-1) for number in range(501))
_CUFF_EVERY: Final = 30 * 60 // EVERY_S


def _sent(draft: _Draft) -> tuple[Sent, ...]:
    chance = draft.chance
    count = draft.count
    # From beat to beat and breath to breath, after a sensor's averaging.
    beats = _noise(chance, 2.0, 15, count)
    breaths = _noise(chance, 0.5, 20, count)
    bias = _clip(chance.gauss(0, 1.0), -2, 2)  # ISO allows more
    absent = _absent(draft)
    wrong = _wrong(draft)
    rate, spo2 = draft.truth[Kind.HEART_RATE], draft.truth[Kind.SPO2]
    warmth, systolic = draft.truth[Kind.TEMPERATURE], draft.truth[Kind.SYSTOLIC]
    sent = []
    for index in range(count):
        values = {}
        quality = round(_clip(chance.gauss(92, 4), 70, 100))
        if index in absent:
            quality = 0
        else:
            pulse, oxygen = rate[index] + beats[index], spo2[index] + bias + breaths[index]
            error = wrong.get(index)
            if error is not None:
                quality = chance.randint(10, 60)
                pulse, oxygen = pulse * error.factor, oxygen + error.offset
            if error is None or not error.missing:
                values[Kind.HEART_RATE] = _WHOLE[round(_clip(pulse, 0, 300))]
                # Without a pulse an oximeter finds a value only now and then.
                if rate[index] > 20 or chance.random() < 0.4:
                    values[Kind.SPO2] = _WHOLE[round(_clip(oxygen, 30, 100))]
        values[Kind.TEMPERATURE] = _TENTHS[round(_clip(warmth[index], 25, 45) * 10)]
        if draft.cuff and index % _CUFF_EVERY == 0 and rate[index] > 20:
            values |= _cuff(systolic[index] + chance.gauss(0, 4))
        at_s = index * EVERY_S
        contact = (index not in absent) if draft.v2 else None
        sent.append(Sent(at_s, at_s, values, contact, quality if draft.v2 else None))
    return _through_network(draft, sent)


@dataclass(frozen=True, slots=True)
class _Wrong:
    """The error of one sample."""

    factor: float
    offset: float
    missing: bool


def _absent(draft: _Draft) -> frozenset[int]:
    """The samples without pulse values because the probe is off."""
    found: set[int] = set()
    for event in draft.events:
        if event.cause is Cause.PROBE_OFF:
            found.update(range(int(event.start_s) // EVERY_S + 3, int(event.end_s) // EVERY_S))
    return frozenset(found)


def _wrong(draft: _Draft) -> Mapping[int, _Wrong]:
    """The error of each sample that has one: by motion, and while a probe slips off for 15 s."""
    chance = draft.chance
    slipping = [
        (int(event.start_s) // EVERY_S, int(event.start_s) // EVERY_S + 3)
        for event in draft.events
        if event.cause is Cause.PROBE_OFF
    ]
    errors = {}
    for start, end in (*draft.bursts, *slipping):
        faster = chance.uniform(1.2, 2.0) if chance.random() < 0.7 else chance.uniform(0.5, 0.8)
        factor = faster if chance.random() < 0.5 else 1.0
        offset = chance.uniform(-18, -2) if chance.random() < 0.6 else 0.0
        for index in range(start, end):
            errors[index] = _Wrong(
                factor * chance.uniform(0.92, 1.08),
                offset + chance.gauss(0, 2) if offset else 0.0,
                missing=chance.random() < 0.2,
            )
    return errors


def _cuff(systolic: float) -> dict[Kind, Decimal]:
    upper = round(_clip(systolic, 40, 300))
    return {Kind.SYSTOLIC: _WHOLE[upper], Kind.DIASTOLIC: _WHOLE[round(upper * 0.62)]}


def _through_network(draft: _Draft, sent: Sequence[Sent]) -> tuple[Sent, ...]:
    """Readings of an offline time come together at its end, or not at all from a v1 monitor."""
    arrived = list(sent)
    for event in draft.events:
        if event.cause is Cause.OFFLINE:
            for index in range(int(event.start_s) // EVERY_S, int(event.end_s) // EVERY_S):
                one = sent[index]
                arrived[index] = Sent(
                    one.at_s, int(event.end_s), one.values, one.contact, one.quality
                )
    if not draft.v2:
        arrived = [one for one in arrived if not one.late]
    return tuple(arrived)
