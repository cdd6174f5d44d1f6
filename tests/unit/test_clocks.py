from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from bridges.mqtt_vitals.clocks import Clocks
from fajma.vitals import Clock, DeviceId, Kind, Reading

NOW = datetime(2026, 11, 22, 14, 0, tzinfo=UTC)


def reading(arrives_s: float, delay_s: float, clock: Clock = Clock.DEVICE) -> Reading:
    received = NOW + timedelta(seconds=arrives_s)
    return Reading(
        device=DeviceId("A4CF12F03B7E"),
        measured_at=received - timedelta(seconds=delay_s),
        received_at=received,
        clock=clock,
        values={Kind.SPO2: Decimal(86)},
    )


@pytest.mark.parametrize("behind_s", [60, 120, 7200, 86_400])
def test_a_clock_that_is_behind_by_a_steady_amount_is_placed_by_arrival(behind_s: float) -> None:
    clocks = Clocks()
    clocks.place(reading(0, behind_s))
    for number in range(1, 20):
        placed = clocks.place(reading(5 * number, behind_s + 0.3 * (number % 3)))
        assert placed.clock is Clock.WRONG
        assert placed.measured_at == placed.received_at


def test_a_backlog_keeps_its_own_times() -> None:
    clocks = Clocks()
    # Ten minutes of readings, one each 5 s, delivered 20 ms apart after an outage.
    for number in range(120):
        one = reading(0.02 * number, 600 - 5 * number + 0.02 * number)
        assert clocks.place(one) == one


def test_a_slow_backlog_keeps_its_own_times() -> None:
    clocks = Clocks()
    for number in range(60):  # one each 1.5 s over a thin line: the delay shrinks by 3.5 s
        one = reading(1.5 * number, 600 - 3.5 * number)
        assert clocks.place(one) == one


def test_a_right_clock_is_left_alone() -> None:
    clocks = Clocks()
    for number in range(20):
        one = reading(5 * number, 2)
        assert clocks.place(one) == one


def test_another_monitor_s_delay_says_nothing_about_this_one() -> None:
    clocks = Clocks()
    clocks.place(reading(0, 7200))
    other = replace(reading(5, 7200), device=DeviceId("A4CF12F03B80"))
    assert clocks.place(other) == other


def test_a_reading_placed_by_arrival_already_is_left_alone() -> None:
    clocks = Clocks()
    one = reading(0, 0, Clock.ARRIVAL)
    assert clocks.place(one) is one


def test_a_batch_that_is_placed_again_comes_out_the_same() -> None:
    clocks = Clocks()
    clocks.keep(_placed(clocks, [reading(0, 7200)]))
    batch = [reading(5, 7200), reading(10, 7200)]
    failed = [clocks.tried().place(one) for one in batch[:1]]
    again = clocks.tried()
    assert [again.place(one) for one in batch[:1]] == failed
    assert failed[0].clock is Clock.WRONG


def _placed(clocks: Clocks, batch: list[Reading]) -> Clocks:
    tried = clocks.tried()
    for one in batch:
        tried.place(one)
    return tried
