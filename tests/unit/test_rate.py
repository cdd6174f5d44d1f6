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


def test_what_is_tried_counts_only_once_it_is_kept() -> None:
    rates = Rates(burst=2, backlog=0)
    for _ in range(3):
        tried = rates.tried()
        assert allowed(tried, 5, 0.0) == 2
    rates.keep(tried)
    assert allowed(rates, 5, 0.0) == 0
