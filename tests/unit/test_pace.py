"""How much one caller may ask for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appservice.api import pace
from appservice.api.pace import Pace


def test_a_bucket_gives_what_it_holds_and_fills_again() -> None:
    asked = Pace(per_s=2, at_once=3)
    assert [asked.ask("a", 0).is_granted for _ in range(4)] == [True, True, True, False]
    refused = asked.ask("a", 0)
    assert (refused.wait_s, refused.full_in_s, refused.remaining) == (1, 2, 0)
    assert [asked.ask("a", 0.5).is_granted for _ in range(2)] == [True, False]
    assert [asked.ask("a", 100).is_granted for _ in range(4)] == [True, True, True, False]


def test_each_caller_has_a_bucket_of_his_own() -> None:
    asked = Pace(per_s=1, at_once=1)
    assert asked.ask("a", 0).is_granted
    assert asked.ask("b", 0).is_granted
    assert not asked.ask("a", 0).is_granted


def test_however_many_addresses_ask_so_many_are_remembered_and_no_more() -> None:
    asked = Pace(per_s=1, at_once=1)
    for number in range(pace.CALLERS_MAX + 10):
        asked.ask(str(number), 0)
    assert len(asked._buckets) == pace.CALLERS_MAX
    assert not asked.ask(str(pace.CALLERS_MAX), 0).is_granted


@given(st.lists(st.floats(0, 10), min_size=1, max_size=200), st.integers(1, 20))
def test_nobody_gets_more_than_the_rate_and_what_it_holds(pauses: list[float], held: int) -> None:
    asked = Pace(per_s=2, at_once=held)
    now_s, granted = 0.0, 0
    for pause in pauses:
        now_s += pause
        granted += asked.ask("a", now_s).is_granted
    assert granted <= held + 2 * now_s + 1e-6
