"""The latest value of each kind, and where it is going."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridges.mqtt_vitals.snapshot import NOISE, TREND_AT_LEAST, TREND_OVER, Snapshot
from fajma.events import Latest, Quality, Trend
from fajma.vitals import Age, Clock, DeviceId, Kind, PatientKey, Reading

PATIENT = PatientKey("9f" * 16)
NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def reading(after_s: float, **values: object) -> Reading:
    at = NOON + timedelta(seconds=after_s)
    return Reading(
        DeviceId("A4CF12F03B7E"),
        at,
        at,
        Clock.DEVICE,
        {Kind(kind): Decimal(str(value)) for kind, value in values.items()},
    )


def latest(readings: Sequence[Reading], kind: Kind) -> Latest:
    snapshot = Snapshot(PATIENT)
    for one in readings:
        snapshot.take(one)
    return snapshot.vitals(NOON).latest[kind]


def test_before_the_first_reading_a_snapshot_is_empty() -> None:
    snapshot = Snapshot(PATIENT)
    assert snapshot.is_empty
    assert snapshot.vitals(NOON).latest == {}
    snapshot.take(reading(0, spo2=97))
    assert not snapshot.is_empty


def test_each_kind_keeps_its_own_latest_value_and_time() -> None:
    snapshot = Snapshot(PATIENT)
    snapshot.take(reading(0, spo2=97, heart_rate=78))
    snapshot.take(reading(5, spo2="96.5"))
    vitals = snapshot.vitals(NOON + timedelta(minutes=1))
    assert vitals.patient == PATIENT
    assert vitals.as_of == NOON + timedelta(minutes=1)
    assert {kind: (one.value, one.measured_at) for kind, one in vitals.latest.items()} == {
        Kind.SPO2: (Decimal("96.5"), NOON + timedelta(seconds=5)),
        Kind.HEART_RATE: (Decimal(78), NOON),
    }
    assert {one.quality for one in vitals.latest.values()} == {Quality.UNKNOWN}


def test_a_late_reading_does_not_hide_a_newer_one() -> None:
    one = latest([reading(0, spo2=97), reading(60, spo2=95), reading(30, spo2=80)], Kind.SPO2)
    assert (one.value, one.measured_at) == (Decimal(95), NOON + timedelta(seconds=60))


def test_a_value_that_is_not_live_says_so_until_a_live_one_follows() -> None:
    late = replace(reading(0, spo2=97, heart_rate=70), age=Age.LATE)
    live = reading(5, spo2=96)
    assert latest([late], Kind.SPO2).age is Age.LATE
    assert latest([late, live], Kind.SPO2).age is Age.LIVE
    assert latest([late, live], Kind.HEART_RATE).age is Age.LATE
    older = replace(reading(1, spo2=80), age=Age.LATE)
    assert latest([live, older], Kind.SPO2).age is Age.LIVE


def test_the_quality_is_that_of_the_pulse_wave_behind_the_value() -> None:
    one = replace(reading(0, spo2=97, heart_rate=78, temperature=37), quality=90)
    two = replace(reading(5, spo2=95, temperature=37), quality=10)
    snapshot = Snapshot(PATIENT)
    snapshot.take(one)
    snapshot.take(two)
    assert {kind: latest.quality for kind, latest in snapshot.vitals(NOON).latest.items()} == {
        Kind.HEART_RATE: Quality.GOOD,
        Kind.SPO2: Quality.POOR,
        Kind.TEMPERATURE: Quality.UNKNOWN,
    }


def test_it_says_since_when_the_probe_is_off_or_nothing_usable_comes() -> None:
    snapshot = Snapshot(PATIENT)
    snapshot.take(reading(0, spo2=97))
    for after_s in (5, 10):
        snapshot.take(replace(reading(after_s), contact=False))
        snapshot.take(replace(reading(3), contact=True))  # came late
        assert not snapshot.is_empty
        assert snapshot.vitals(NOON).probe_off_since == NOON + timedelta(seconds=5)
    low = frozenset({Kind.SPO2})
    snapshot.take(replace(reading(15), unusable=low))
    snapshot.take(replace(reading(20, heart_rate=70), unusable=low | {Kind.HEART_RATE}))
    vitals = snapshot.vitals(NOON)
    assert vitals.probe_off_since is None
    assert vitals.unusable_since == {
        Kind.SPO2: NOON + timedelta(seconds=15),
        Kind.HEART_RATE: NOON + timedelta(seconds=20),
    }
    assert vitals.latest[Kind.SPO2].measured_at == NOON
    snapshot.take(reading(25, spo2=96, heart_rate=71))
    assert snapshot.vitals(NOON).unusable_since == {}


def test_of_two_readings_of_one_moment_the_one_that_came_last_counts() -> None:
    assert latest([reading(0, spo2=97), reading(0, spo2=95)], Kind.SPO2).value == 95


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize(
    ("noises", "trend"),
    [
        (Decimal("1.001"), Trend.RISING),
        (Decimal("-1.001"), Trend.FALLING),
        (Decimal(1), Trend.STEADY),
        (Decimal(-1), Trend.STEADY),
        (Decimal(0), Trend.STEADY),
    ],
)
def test_a_trend_is_a_difference_beyond_the_noise_of_its_kind(
    kind: Kind, noises: Decimal, trend: Trend
) -> None:
    before = Decimal(100)
    readings = [reading(0, **{kind: before}), reading(120, **{kind: before + noises * NOISE[kind]})]
    assert latest(readings, kind).trend is trend


def test_a_trend_needs_a_minute() -> None:
    almost = TREND_AT_LEAST.total_seconds() - 1
    assert latest([reading(0, spo2=97)], Kind.SPO2).trend is Trend.UNKNOWN
    for after_s, trend in ((almost, Trend.UNKNOWN), (almost + 1, Trend.FALLING)):
        readings = [reading(0, spo2=97), reading(after_s, spo2=80)]
        assert latest(readings, Kind.SPO2).trend is trend


def test_a_trend_looks_back_five_minutes_and_no_further() -> None:
    over = TREND_OVER.total_seconds()
    fallen = [reading(0, spo2=97), *(reading(60 + n * 30, spo2=90) for n in range(9))]
    assert latest(fallen, Kind.SPO2).trend is Trend.FALLING
    assert latest([*fallen, reading(over, spo2=90)], Kind.SPO2).trend is Trend.FALLING
    assert latest([*fallen, reading(over + 1, spo2=90)], Kind.SPO2).trend is Trend.STEADY


@given(st.lists(st.tuples(st.integers(0, 900), st.integers(50, 100)), min_size=1))
def test_in_whatever_order_readings_come_the_newest_is_shown(
    samples: list[tuple[int, int]],
) -> None:
    one = latest([reading(after_s, spo2=value) for after_s, value in samples], Kind.SPO2)
    newest = max(after_s for after_s, _ in samples)
    assert one.measured_at == NOON + timedelta(seconds=newest)
    assert one.value == [value for after_s, value in samples if after_s == newest][-1]
