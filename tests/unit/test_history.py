"""A day thinned: no extreme is lost, nothing is made up, nothing is too much."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from bridges.mqtt_vitals.history import LASTS, Thinned
from fajma.vitals import Age, Clock, DeviceId, Kind, Reading

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
START = NOON - LASTS
POINTS = 288

Log = list[tuple[int, Reading]]


def reading(at: datetime, age: Age = Age.LIVE, **values: object) -> Reading:
    shown = {Kind(kind): Decimal(str(value)) for kind, value in values.items()}
    return Reading(DeviceId("A4CF12F03B7E"), at, at, Clock.DEVICE, shown, age)


def thinned(log: Log, points: int = POINTS) -> Log:
    day = Thinned(NOON, points)
    for position, one in log:
        day.take(position, one)
    return day.readings()


LOGS = st.lists(
    st.tuples(
        st.integers(-3600, 86400 + 300),
        st.dictionaries(st.sampled_from(Kind), st.integers(50, 100), max_size=3),
        st.sampled_from(Age),
    ),
    max_size=60,
).map(
    lambda entries: [
        (position, reading(START + timedelta(seconds=at), age, **values))
        for position, (at, values, age) in enumerate(entries, start=1)
    ]
)


def test_a_whole_day_at_five_seconds_keeps_at_most_the_points_and_each_extreme() -> None:
    chance = random.Random(3)
    log = [
        (n, reading(START + timedelta(seconds=5 * n), spo2=chance.randint(90, 99), heart_rate=70))
        for n in range(17_280)
    ]
    log[4242] = (4242, reading(log[4242][1].measured_at, spo2=61, heart_rate=188))
    log[9000] = (9000, reading(log[9000][1].measured_at, spo2=97, heart_rate=31))
    kept = thinned(log)
    for kind, extremes in ((Kind.SPO2, {61}), (Kind.HEART_RATE, {188, 31})):
        values = [one.values[kind] for _, one in kept if kind in one.values]
        assert POINTS // 2 <= len(values) <= POINTS
        assert extremes <= set(values)


@given(LOGS)
def test_what_is_kept_was_measured_and_is_in_the_order_of_the_log(log: Log) -> None:
    kept = thinned(log, 8)
    whole = dict(log)
    assert [position for position, _ in kept] == sorted({position for position, _ in kept})
    for position, one in kept:
        assert one.values.items() <= whole[position].values.items()
        assert one.values or not whole[position].values
        assert (one.measured_at, one.age) == (whole[position].measured_at, whole[position].age)
        assert one.measured_at >= START


@given(LOGS, st.sampled_from([2, 4, 8, 288]))
def test_of_each_kind_the_extremes_of_the_day_are_kept_and_no_more_than_the_points(
    log: Log, points: int
) -> None:
    kept = thinned(log, points)
    for kind in Kind:
        day = [
            one.values[kind] for _, one in log if kind in one.values and one.measured_at >= START
        ]
        values = [one.values[kind] for _, one in kept if kind in one.values]
        assert len(values) <= points
        assert bool(values) is bool(day)
        if day:
            assert (min(values), max(values)) == (min(day), max(day))


@given(LOGS, st.randoms())
def test_the_order_in_which_readings_are_taken_in_changes_nothing(
    log: Log, chance: random.Random
) -> None:
    shuffled = list(log)
    chance.shuffle(shuffled)
    assert thinned(shuffled, 8) == thinned(log, 8)


def test_each_stretch_keeps_its_lowest_and_its_highest_and_there_are_half_as_many_as_points() -> (
    None
):
    log = [
        (n, reading(START + timedelta(minutes=n), spo2=Decimal(500_000 + n) / 10_000))
        for n in range(24 * 60)
    ]
    log.insert(0, (9999, reading(START - timedelta(milliseconds=1), spo2=51)))
    kept = [position for position, _ in thinned(log, points=48)]
    assert kept == sorted({*range(0, 1440, 60), *range(59, 1440, 60)})


def test_what_was_measured_after_the_day_is_of_its_last_stretch() -> None:
    log = [
        (1, reading(NOON - timedelta(minutes=2), spo2=90)),
        (2, reading(NOON - timedelta(minutes=1), spo2=97)),
        (3, reading(NOON, spo2=95)),
        (4, reading(NOON + timedelta(minutes=4), spo2=93)),
        (5, reading(NOON + timedelta(hours=30), spo2=98)),
    ]
    assert [position for position, _ in thinned(log)] == [1, 5]


def test_a_clock_that_is_ahead_counts_as_now() -> None:
    ahead = (7, reading(NOON + timedelta(minutes=4), spo2=88))
    assert thinned([ahead]) == [ahead]


def test_that_the_probe_was_off_is_kept_from_the_first_to_the_last_of_a_bucket() -> None:
    log = [(n, replace(reading(START + timedelta(seconds=n)), contact=False)) for n in range(1, 60)]
    assert thinned(log) == [log[0], log[-1]]
