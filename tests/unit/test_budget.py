"""Tokens and pauses: never faster than allowed, never silent for longer than needed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from bridges.mqtt_vitals.budget import (
    HOMESERVER_PAUSES_S,
    LONGEST_S,
    ROOM_PAUSES_S,
    Budget,
    Pause,
)

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
RATES = st.floats(0.1, 1000)
STEPS = st.lists(
    st.tuples(st.integers(0, 3_000_000).map(lambda us: timedelta(microseconds=us)), st.booleans()),
    max_size=200,
)


def s(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


def drained(budget: Budget, now: datetime, *, urgent: bool) -> tuple[Budget, int]:
    """Take until there is nothing left to take."""
    budget, taken = budget.filled(now), 0
    while not budget.wait_s(urgent=urgent):
        budget = budget.spent()
        taken += 1
    return budget, taken


@given(RATES, STEPS)
def test_in_no_stretch_of_time_more_is_spent_than_the_rate_and_the_burst(
    rate: float, steps: list[tuple[timedelta, bool]]
) -> None:
    budget, now = Budget.full(rate, NOON), NOON
    spent = [now]
    for step, urgent in steps:
        now += step
        budget = budget.filled(now)
        if not budget.wait_s(urgent=urgent):
            budget = budget.spent()
            spent.append(now)
    for start in range(len(spent)):
        for end in range(start, len(spent)):
            allowed = max(2 * rate, 2) + (spent[end] - spent[start]).total_seconds() * rate
            assert end - start <= allowed + 1e-6


@given(RATES)
def test_what_others_spend_leaves_a_second_s_worth_to_what_is_urgent(rate: float) -> None:
    budget, routine = drained(Budget.full(rate, NOON), NOON, urgent=False)
    assert routine >= 1
    _, urgent = drained(budget, NOON, urgent=True)
    assert urgent >= int(max(rate, 1))


@given(RATES, st.booleans())
def test_after_the_stated_wait_there_is_a_token(rate: float, urgent: bool) -> None:  # noqa: FBT001
    budget, _ = drained(Budget.full(rate, NOON), NOON, urgent=urgent)
    wait_s = budget.wait_s(urgent=urgent)
    assert wait_s > 0
    assert budget.filled(NOON + s(wait_s * 1.001 + 0.001)).wait_s(urgent=urgent) == 0
    assert Budget.full(rate, NOON).wait_s(urgent=urgent) == 0


def test_over_a_minute_the_rate_is_used_up() -> None:
    budget, spent = drained(Budget.full(25, NOON), NOON, urgent=False)
    for tenth in range(1, 601):
        budget, more = drained(budget, NOON + s(tenth / 10), urgent=False)
        spent += more
    assert 25 * 60 <= spent <= 25 * 60 + 50


def test_a_clock_that_is_put_back_neither_gives_tokens_nor_stops_them() -> None:
    budget, _ = drained(Budget.full(25, NOON), NOON, urgent=True)
    past = NOON - s(3600)
    budget, taken = drained(budget, past, urgent=True)
    assert taken == 0
    _, taken = drained(budget, past + s(1), urgent=True)
    assert taken == 25


def test_pauses_grow_and_end_with_a_success() -> None:
    pause, now, lasted = Pause(), NOON, []
    for _ in range(len(HOMESERVER_PAUSES_S) + 2):
        pause = pause.failed(now, HOMESERVER_PAUSES_S)
        assert pause.until is not None
        assert pause.holds(now)
        assert not pause.holds(pause.until)
        lasted.append((pause.until - now).total_seconds())
        now = pause.until
    assert lasted == [*HOMESERVER_PAUSES_S, HOMESERVER_PAUSES_S[-1], HOMESERVER_PAUSES_S[-1]]
    assert pause.succeeded(now) == Pause()


def test_several_failures_of_what_was_under_way_count_as_one() -> None:
    pause = Pause().failed(NOON, HOMESERVER_PAUSES_S)
    assert pause.failed(NOON + s(0.5), HOMESERVER_PAUSES_S) == pause
    longer = pause.failed(NOON + s(0.5), HOMESERVER_PAUSES_S, asked_s=30)
    assert (longer.failures, longer.until) == (1, NOON + s(30.5))


def test_a_success_that_was_under_way_does_not_end_what_the_homeserver_asked_for() -> None:
    pause = Pause().failed(NOON, HOMESERVER_PAUSES_S, asked_s=30)
    assert pause.succeeded(NOON + s(1)).holds(NOON + s(29))
    assert not pause.succeeded(NOON + s(30)).holds(NOON + s(30))


@given(st.none() | st.floats(0, 1e300), st.lists(st.floats(0, 100), max_size=10))
def test_a_pause_is_as_long_as_was_asked_for_within_reason(
    asked_s: float | None, before: list[float]
) -> None:
    pause, now = Pause(), NOON
    for gap in before:
        now += s(gap)
        pause = pause.failed(now, ROOM_PAUSES_S)
    now += s(LONGEST_S)
    pause = pause.failed(now, ROOM_PAUSES_S, asked_s=asked_s)
    assert pause.until is not None
    length = (pause.until - now).total_seconds()
    assert min(asked_s or 0, LONGEST_S) - 1e-5 <= length <= max(LONGEST_S, ROOM_PAUSES_S[-1])


def test_a_clock_that_is_put_back_ends_a_pause() -> None:
    assert not Pause().failed(NOON, ROOM_PAUSES_S).holds(NOON - s(3600))


def test_pauses_only_grow() -> None:
    for pauses in (HOMESERVER_PAUSES_S, ROOM_PAUSES_S):
        assert all(before < after for before, after in pairwise(pauses))
