"""The monitor's pulse oximeter on real recordings."""

from __future__ import annotations

import os

import pytest

from benchmarks import ppg
from benchmarks.ppg import Judged, Window

ISO_80601_2_61_ARMS_PERCENT = 4.0


@pytest.fixture(scope="module", autouse=True)
def program() -> None:
    ppg.build()


def needs_recordings() -> None:
    if not ppg.at_hand():
        assert "CI" not in os.environ
        pytest.skip("the real recordings are not at hand: set FAJMA_DATA")


def window(ratio: float, spo2: float | None = None, heart_rate: float | None = 70) -> Window:
    return Window(8, heart_rate, spo2, 100, ratio, swapped=False)


def test_spo2_keeps_within_iso_80601_on_recordings_that_its_curve_has_not_seen() -> None:
    needs_recordings()
    found = ppg.oxygen_on_recordings()
    assert found["recordings"] == 29
    assert found["refused"] <= 0.1
    assert found["two_fold"] <= ISO_80601_2_61_ARMS_PERCENT
    assert found["leave_one_out"] <= ISO_80601_2_61_ARMS_PERCENT


def test_the_curve_in_the_core_is_the_one_that_the_recordings_give() -> None:
    needs_recordings()
    at_zero, slope = ppg.oxygen_on_recordings()["everything"]
    assert at_zero == pytest.approx(ppg.CURVE[0], abs=0.1)
    assert slope == pytest.approx(ppg.CURVE[1], abs=0.2)


def test_heart_rate_is_that_of_the_bedside_monitor() -> None:
    needs_recordings()
    judged = [one for _, patient in ppg.intensive_care() for one in patient]
    found = ppg.summary(judged)
    assert found["windows"] > 1000
    assert found["median"] <= ppg.MAX_HEART_RATE_ERROR
    assert found["refused"] <= ppg.MAX_REFUSED
    assert found["far_off"] <= 0.02


def test_two_sensors_of_one_hand_agree_and_exchanged_leds_are_recognised() -> None:
    needs_recordings()
    sensors = ppg.bare_sensor()
    assert len(sensors) == 6
    for name, _, right, exchanged in sensors:
        assert [one.heart_rate for one in right if one.heart_rate is not None], name
        assert not any(one.swapped for one in right), name
        assert exchanged[-1].swapped, name
        assert not any(one.spo2 for one in exchanged), name
    for (_, _, one, _), (_, _, other, _) in zip(sensors[::2], sensors[1::2], strict=True):
        for left, right_window in zip(one[1:-1], other[1:-1], strict=True):
            assert left.heart_rate == pytest.approx(right_window.heart_rate, abs=4)


@pytest.mark.parametrize("rate", [30, 75, 220])
def test_a_synthetic_pulse_is_counted(rate: int) -> None:
    judged = ppg.synthetic(ppg.SCENES["clean"], rate, spo2=90, seed=1)
    found = ppg.summary(judged)
    assert found["refused"] == 0
    assert found["p95"] < 3
    assert found["spo2_arms"] < 1


def test_a_curve_is_found_again_and_judged_by_its_errors() -> None:
    judged = [Judged(window(ratio), 70, spo2) for ratio, spo2 in ((1.0, 76.0), (2.718282, 49.0))]
    curve = ppg.fitted(judged)
    assert curve[0] == pytest.approx(76)
    assert curve[1] == pytest.approx(-27)
    assert ppg.arms([Judged(window(1.0), 70, 73.0)], curve) == pytest.approx(3)
    assert ppg.arms([Judged(window(1.0, spo2=80), 70, 76.0)]) == pytest.approx(4)


def test_windows_without_heart_rate_are_refused_and_have_no_error() -> None:
    judged = [Judged(window(1, heart_rate=None), 70), Judged(window(1, heart_rate=82), 70)]
    assert ppg.refused(judged) == 0.5
    assert ppg.heart_rate_errors(judged) == [12]
    assert ppg.summary(judged)["far_off"] == 0.5
