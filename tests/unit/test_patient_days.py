"""Synthetic patient days: the same for a seed, soundly annotated, and like a monitor's."""

from collections import Counter
from itertools import pairwise

import pytest

from benchmarks.patient_days import (
    DAY_S,
    EVERY_S,
    PATIENT_EVENTS,
    TECHNICAL_EVENTS,
    TRACKS,
    Cause,
    PatientDay,
    patient_day,
)
from bots.alerts.limits import Direction
from fajma.vitals import Kind, is_plausible

SEEDS = range(1, 13)


@pytest.fixture(scope="module")
def days() -> list[PatientDay]:
    return [patient_day(seed) for seed in SEEDS]


def events(days: list[PatientDay], cause: Cause):
    return [(day, event) for day in days for event in day.events if event.cause is cause]


def truth(day: PatientDay, kind: Kind, start_s: float, end_s: float):
    return day.truth[kind][int(start_s) // EVERY_S : int(end_s) // EVERY_S]


def test_a_seed_makes_the_same_day_each_time_and_another_seed_another_day(days: list[PatientDay]):
    assert patient_day(3) == days[2]
    assert len({str(day.sent[:50]) for day in days}) == len(days)


def test_every_kind_of_event_happens_within_few_days(days: list[PatientDay]):
    seen = Counter(event.cause for day in days for event in day.events)

    assert set(seen) == set(Cause)


def test_each_event_that_wants_somebody_has_tracks_and_benign_ones_have_none():
    assert {*PATIENT_EVENTS, *TECHNICAL_EVENTS} == {cause for cause in Cause if TRACKS[cause]}
    known = {f"{kind}-{direction}" for kind in Kind for direction in Direction}
    for cause in PATIENT_EVENTS:
        assert TRACKS[cause] & known


def test_events_lie_within_the_day_in_order_and_only_motion_overlaps_others(days: list[PatientDay]):
    for day in days:
        assert [event.start_s for event in day.events] == sorted(e.start_s for e in day.events)
        assert all(0 <= event.start_s < event.end_s <= day.duration_s for event in day.events)
        apart = [e for e in day.events if e.cause not in {Cause.MOTION, Cause.LATE_BREACH}]
        assert all(before.end_s + 60 < after.start_s for before, after in pairwise(apart))


def test_a_monitor_sends_every_five_seconds_until_the_day_ends(days: list[PatientDay]):
    for day in days:
        assert day.duration_s <= DAY_S
        places = [sent.at_s for sent in day.sent]
        assert places == sorted(set(places))
        assert all(place % EVERY_S == 0 for place in places)
        offline_s = sum(e.end_s - e.start_s for e in day.events if e.cause is Cause.OFFLINE)
        lost = 0 if day.sent[0].contact is not None else offline_s / EVERY_S
        assert len(places) == day.duration_s / EVERY_S - lost


def test_all_values_are_plausible_but_those_of_a_dying_pulse(days: list[PatientDay]):
    for day in days:
        dying = [event for event in day.events if event.cause is Cause.DYING_PULSE]
        for sent in day.sent:
            if not any(event.start_s <= sent.at_s for event in dying):
                assert all(is_plausible(kind, value) for kind, value in sent.values.items())
            assert all(value == round(value, 1) for value in sent.values.values())
            assert sent.values.get(Kind.SPO2, 0) == int(sent.values.get(Kind.SPO2, 0))


def test_a_dying_pulse_ends_implausible_and_ends_the_day(days: list[PatientDay]):
    found = events(days, Cause.DYING_PULSE)
    assert found
    for day, event in found:
        assert event.end_s == day.duration_s
        last = [s.values[Kind.HEART_RATE] for s in day.sent[-20:] if Kind.HEART_RATE in s.values]
        assert last
        assert not any(is_plausible(Kind.HEART_RATE, value) for value in last[-5:])


def test_an_apnoea_shows_after_its_lag_and_then_spo2_falls(days: list[PatientDay]):
    found = events(days, Cause.APNOEA)
    assert found
    for day, event in found:
        values = truth(day, Kind.SPO2, event.start_s, event.end_s)
        assert min(values[:4]) > values[0] - 2
        assert min(values) < values[0] - 3


def test_fever_raises_temperature_and_the_heart_rate_with_it(days: list[PatientDay]):
    found = events(days, Cause.FEVER)
    assert found
    for day, event in found:
        middle_s = event.start_s + (event.end_s - event.start_s) * 0.45
        for kind, least in ((Kind.TEMPERATURE, 0.7), (Kind.HEART_RATE, 2)):
            before = truth(day, kind, event.start_s - 300, event.start_s)
            during = truth(day, kind, middle_s - 300, middle_s)
            assert sum(during) / len(during) > sum(before) / len(before) + least


def test_nothing_of_the_pulse_comes_while_the_probe_is_off(days: list[PatientDay]):
    found = events(days, Cause.PROBE_OFF)
    assert found
    for day, event in found:
        off = [s for s in day.sent if event.start_s + 15 <= s.at_s < event.end_s]
        assert off
        assert all(set(s.values) <= {*Kind} - {Kind.HEART_RATE, Kind.SPO2} for s in off)
        assert {s.contact for s in off} in ({False}, {None})


def test_readings_of_an_offline_time_come_at_its_end_or_never(days: list[PatientDay]):
    found = events(days, Cause.OFFLINE)
    assert found
    for day, event in found:
        of_it = [s for s in day.sent if event.start_s <= s.at_s < event.end_s]
        assert all(s.late and s.received_s == event.end_s for s in of_it)
        assert bool(of_it) == (day.sent[0].contact is not None)


def test_exercise_leaves_the_saturation_alone(days: list[PatientDay]):
    found = events(days, Cause.EXERCISE)
    assert found
    for day, event in found:
        before = truth(day, Kind.SPO2, event.start_s - 300, event.start_s)
        during = truth(day, Kind.SPO2, event.start_s, event.end_s)
        assert min(during) > min(before) - 3


def test_only_a_patient_with_a_cuff_has_a_blood_pressure_to_judge(days: list[PatientDay]):
    cuffs = [any(Kind.SYSTOLIC in sent.values for sent in day.sent) for day in days]

    assert cuffs == [Kind.SYSTOLIC in day.truth for day in days]
    assert set(cuffs) == {True, False}
