"""NEWS2: every cell of the chart, and when there is no score at all."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from bots.alerts.alarm_state import Latest, Profile
from bots.alerts.news2 import (
    CUFF_FRESH,
    ENTERED_FRESH,
    MONITOR_FRESH,
    News2,
    Sign,
    score,
)
from fajma.facts import AgeBand, Consciousness, Entered
from fajma.vitals import Kind

NOW = datetime(2026, 3, 1, 14, 2, tzinfo=UTC)
ADULT = Profile(AgeBand.ADULT)
COPD = Profile(AgeBand.ADULT, pregnant=False, copd=True)
VALUES = {
    Kind.HEART_RATE: Decimal(80),
    Kind.SPO2: Decimal(97),
    Kind.TEMPERATURE: Decimal("37.0"),
    Kind.SYSTOLIC: Decimal(120),
}
LATEST = Latest(NOW, VALUES)
ENTERED = Entered(NOW, "@awa:clinic.example", 16, Consciousness.ALERT, oxygen=False)


def points_of(
    sign: Sign,
    *,
    profile: Profile = ADULT,
    values: dict[Kind, Decimal] | None = None,
    entered: Entered = ENTERED,
) -> int:
    found = score([Latest(NOW, VALUES | (values or {}))], [entered], profile, NOW)
    assert found is not None
    others = {one: points for one, points in found.points.items() if one is not sign}
    assert set(others.values()) <= {0, 2 if entered.oxygen else 0}
    return found.points[sign]


def test_somebody_who_is_well_has_no_points() -> None:
    found = score([LATEST], [ENTERED], ADULT, NOW)

    assert found == News2(dict.fromkeys(Sign, 0), scale_2=False, oldest=NOW)
    assert (found.total, found.red) == (0, ())


@pytest.mark.parametrize(
    ("first", "last", "points"), [(3, 8, 3), (9, 11, 1), (12, 20, 0), (21, 24, 2), (25, 60, 3)]
)
def test_respiration(first: int, last: int, points: int) -> None:
    for rate in (first, last):
        entered = replace(ENTERED, respiration=rate)
        assert points_of(Sign.RESPIRATION, entered=entered) == points


@pytest.mark.parametrize(
    ("first", "last", "points"),
    [("50", "91", 3), ("92", "93", 2), ("94", "95", 1), ("96", "100", 0)],
)
def test_spo2_on_scale_1(first: str, last: str, points: int) -> None:
    for value in (first, last):
        for oxygen in (False, True):
            entered = replace(ENTERED, oxygen=oxygen)
            values = {Kind.SPO2: Decimal(value)}
            assert points_of(Sign.SPO2, values=values, entered=entered) == points


@pytest.mark.parametrize(
    ("first", "last", "on_air", "on_oxygen"),
    [
        ("50", "83", 3, 3),
        ("84", "85", 2, 2),
        ("86", "87", 1, 1),
        ("88", "92", 0, 0),
        ("93", "94", 0, 1),
        ("95", "96", 0, 2),
        ("97", "100", 0, 3),
    ],
)
def test_spo2_on_scale_2(first: str, last: str, on_air: int, on_oxygen: int) -> None:
    for value in (first, last):
        for oxygen, points in ((False, on_air), (True, on_oxygen)):
            entered = replace(ENTERED, oxygen=oxygen)
            values = {Kind.SPO2: Decimal(value)}
            found = points_of(Sign.SPO2, profile=COPD, values=values, entered=entered)
            assert found == points


def test_supplemental_oxygen() -> None:
    assert points_of(Sign.OXYGEN) == 0
    assert points_of(Sign.OXYGEN, entered=replace(ENTERED, oxygen=True)) == 2


@pytest.mark.parametrize(
    ("first", "last", "points"),
    [("40", "90", 3), ("91", "100", 2), ("101", "110", 1), ("111", "219", 0), ("220", "300", 3)],
)
def test_systolic_pressure(first: str, last: str, points: int) -> None:
    for value in (first, last):
        assert points_of(Sign.SYSTOLIC, values={Kind.SYSTOLIC: Decimal(value)}) == points


@pytest.mark.parametrize(
    ("first", "last", "points"),
    [
        ("20", "40", 3),
        ("41", "50", 1),
        ("51", "90", 0),
        ("91", "110", 1),
        ("111", "130", 2),
        ("131", "300", 3),
    ],
)
def test_pulse(first: str, last: str, points: int) -> None:
    for value in (first, last):
        assert points_of(Sign.PULSE, values={Kind.HEART_RATE: Decimal(value)}) == points


@pytest.mark.parametrize("level", Consciousness)
def test_consciousness(level: Consciousness) -> None:
    entered = replace(ENTERED, consciousness=level)

    expected = 0 if level is Consciousness.ALERT else 3
    assert points_of(Sign.CONSCIOUSNESS, entered=entered) == expected


@pytest.mark.parametrize(
    ("first", "last", "points"),
    [
        ("25", "35.0", 3),
        ("35.1", "36.0", 1),
        ("36.1", "38.0", 0),
        ("38.1", "39.0", 1),
        ("39.1", "45", 2),
    ],
)
def test_temperature(first: str, last: str, points: int) -> None:
    for value in (first, last):
        assert points_of(Sign.TEMPERATURE, values={Kind.TEMPERATURE: Decimal(value)}) == points


def test_values_between_the_cells_are_rounded_as_they_are_shown() -> None:
    assert points_of(Sign.SPO2, values={Kind.SPO2: Decimal("91.4")}) == 3
    assert points_of(Sign.SPO2, values={Kind.SPO2: Decimal("91.6")}) == 2
    assert points_of(Sign.TEMPERATURE, values={Kind.TEMPERATURE: Decimal("38.04")}) == 0


def test_the_total_is_the_sum_and_three_points_for_one_sign_are_red() -> None:
    entered = replace(ENTERED, respiration=26, oxygen=True)
    found = score([Latest(NOW, VALUES | {Kind.HEART_RATE: Decimal(115)})], [entered], ADULT, NOW)

    assert found is not None
    assert (found.total, found.red) == (7, (Sign.RESPIRATION,))


@pytest.mark.parametrize("kind", VALUES)
def test_without_one_of_the_measured_signs_there_is_no_score(kind: Kind) -> None:
    left = {one: value for one, value in VALUES.items() if one is not kind}

    assert score([Latest(NOW, left)], [ENTERED], ADULT, NOW) is None


@pytest.mark.parametrize("sign", ["respiration", "consciousness", "oxygen"])
def test_without_one_of_the_entered_signs_there_is_no_score(sign: str) -> None:
    entered = replace(ENTERED, **{sign: None})  # type: ignore[arg-type]

    assert score([LATEST], [entered], ADULT, NOW) is None
    before = replace(ENTERED, at=NOW - timedelta(hours=1))
    assert score([LATEST], [entered, before], ADULT, NOW) is not None


@pytest.mark.parametrize(
    ("kind", "fresh"),
    [
        (Kind.HEART_RATE, MONITOR_FRESH),
        (Kind.SPO2, MONITOR_FRESH),
        (Kind.TEMPERATURE, MONITOR_FRESH),
        (Kind.SYSTOLIC, CUFF_FRESH),
    ],
)
def test_a_measured_sign_that_is_too_old_does_not_count(kind: Kind, fresh: timedelta) -> None:
    left = Latest(NOW, {one: value for one, value in VALUES.items() if one is not kind})

    def with_sign_of(age: timedelta) -> News2 | None:
        return score([left, Latest(NOW - age, VALUES)], [ENTERED], ADULT, NOW)

    found = with_sign_of(fresh)
    assert found is not None
    assert found.oldest == NOW - fresh
    assert with_sign_of(fresh + timedelta(seconds=1)) is None


def test_what_was_entered_too_long_ago_does_not_count() -> None:
    assert score([LATEST], [replace(ENTERED, at=NOW - ENTERED_FRESH)], ADULT, NOW) is not None
    old = replace(ENTERED, at=NOW - ENTERED_FRESH - timedelta(seconds=1))
    assert score([LATEST], [old], ADULT, NOW) is None


@pytest.mark.parametrize(
    "profile",
    [
        Profile(),
        Profile(AgeBand.ADOLESCENT),
        Profile(AgeBand.NEWBORN),
        Profile(AgeBand.ADULT, pregnant=True),
    ],
)
def test_there_is_no_score_under_16_in_pregnancy_or_of_unknown_age(profile: Profile) -> None:
    assert score([LATEST], [ENTERED], profile, NOW) is None
