"""What one monitor may send: honest backlogs pass, floods do not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bridges.mqtt_vitals.rate import BACKLOG, BACKLOG_WITHIN_S, BURST, PER_S, SILENCE_S, Rates
from fajma.vitals import DeviceId

MINE = DeviceId("A4CF12F03B7E")
OTHER = DeviceId("A4CF12F03B7F")


def allowed(rates: Rates, count: float, now_s: float, *, per_s: float = 1e9) -> int:
    """How many of so many messages are let through."""
    return sum(rates.allows(MINE, now_s + number / per_s) for number in range(int(count)))


@given(st.floats(SILENCE_S, 7 * 24 * 3600), st.floats(0.1, 1e6))
def test_what_an_honest_monitor_made_in_its_silence_passes_at_any_speed(
    silence_s: float, per_s: float
) -> None:
    rates = Rates()
    assert rates.allows(MINE, 0.0)
    made = min(silence_s / 5, 3000)
    assert allowed(rates, made, silence_s, per_s=per_s) == int(made)


def test_an_ingest_that_has_just_started_takes_the_longest_backlog() -> None:
    assert allowed(Rates(), BACKLOG + BURST + 100, 0.0) == int(BACKLOG + BURST)


def test_a_flood_gets_the_average_and_no_more() -> None:
    rates = Rates(backlog=0)
    assert allowed(rates, 60_000, 0.0, per_s=1000) in range(
        int(BURST + 60 * PER_S) - 1, int(BURST + 60 * PER_S) + 2
    )
    assert rates.allows(OTHER, 60.0)


def test_a_backlog_that_did_not_come_in_time_is_none() -> None:
    rates = Rates(burst=1)
    assert rates.allows(MINE, 0.0)
    for now_s in range(5, int(BACKLOG_WITHIN_S) + 5, 5):
        assert rates.allows(MINE, now_s)
    assert allowed(rates, 100, BACKLOG_WITHIN_S + 5) == 1


def test_a_short_silence_earns_as_much_as_can_have_been_measured_in_it() -> None:
    rates = Rates(burst=1)
    assert rates.allows(MINE, 0.0)
    assert allowed(rates, 100, 90.0) == 1 + 90


def test_readings_that_come_together_count_each_and_pass_or_wait_together() -> None:
    rates = Rates(burst=100, backlog=60)
    assert rates.allows(MINE, 0.0, 90)
    assert not rates.allows(MINE, 0.0, 71)
    assert rates.allows(MINE, 0.0, 70)  # ten at once, sixty of the backlog
    assert not rates.allows(MINE, 0.0)
    assert rates.allows(MINE, 5.0, 100)
    assert not rates.allows(MINE, 5.0)
    assert rates.allows(OTHER, 5.0, 160)


def test_a_part_of_a_reading_is_none() -> None:
    rates = Rates(per_s=1, burst=1, backlog=0)
    assert rates.allows(MINE, 0.0)
    assert not rates.allows(MINE, 0.9)
    assert rates.allows(MINE, 1.0)


def test_a_clock_that_falls_earns_nothing() -> None:
    rates = Rates(per_s=1, burst=5, backlog=0)
    assert allowed(rates, 9, 100.0) == 5
    assert not rates.allows(MINE, 50.0)
    assert allowed(rates, 9, 52.0) == 2


def test_a_silence_has_a_least_length_and_a_backlog_ends_when_its_hour_is_over() -> None:
    for silence_s, more in ((SILENCE_S, int(SILENCE_S)), (SILENCE_S - 0.1, 0)):
        rates = Rates(per_s=0, burst=1, backlog=1000)
        assert rates.allows(MINE, 0.0, 1001)  # all of what a start allows
        assert allowed(rates, 2000, silence_s) == more
    for late_s, more in ((BACKLOG_WITHIN_S - 0.1, 5), (BACKLOG_WITHIN_S, 0)):
        rates = Rates(per_s=0, burst=0, backlog=5)
        heard_s = 0.0
        assert not rates.allows(MINE, heard_s, 6)
        while heard_s + SILENCE_S / 2 < late_s:
            heard_s += SILENCE_S / 2
            assert not rates.allows(MINE, heard_s, 6)
        assert allowed(rates, 9, late_s) == more


def test_a_backlog_is_never_longer_than_the_longest() -> None:
    rates = Rates(per_s=0, burst=1, backlog=100)
    assert rates.allows(MINE, 0.0, 101)
    assert allowed(rates, 500, 1e6) == 100


def test_what_is_tried_counts_only_once_it_is_kept() -> None:
    rates = Rates(burst=2, backlog=0)
    for _ in range(3):
        tried = rates.tried()
        assert allowed(tried, 5, 0.0) == 2
    rates.keep(tried)
    assert allowed(rates, 5, 0.0) == 0
