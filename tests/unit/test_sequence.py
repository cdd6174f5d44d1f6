"""Which records are settled, in whatever order messages come."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fajma.sequence import MAX_RANGES, Sequence

RUNS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 8)), max_size=30)


def test_what_is_missing_holds_up_what_comes_after_it() -> None:
    sequence = Sequence().begin_at(10).settle(10, 12).settle(15, 20)
    assert (sequence.contiguous, sequence.beyond) == (12, ((15, 20),))
    assert sequence.settle(13, 14) == Sequence(20)


def test_a_record_is_settled_below_the_gap_or_in_a_run_beyond_it() -> None:
    sequence = Sequence(12, ((15, 20), (30, 30)))
    settled = [n for n in range(40) if sequence.is_settled(n)]
    assert settled == [*range(13), *range(15, 21), 30]
    assert not Sequence().is_settled(0)


def test_a_monitor_that_holds_nothing_older_settles_what_is_below() -> None:
    assert Sequence().begin_at(2**32).settle(2**32, 2**32 + 3) == Sequence(2**32 + 3)
    assert Sequence(5, ((8, 9),)).begin_at(8) == Sequence(9)
    assert Sequence(5).begin_at(3) == Sequence(5)


def test_what_a_monitor_deleted_and_we_never_had_is_counted() -> None:
    assert Sequence().missing_below(1000) == 0  # never heard of before
    assert Sequence(5).missing_below(6) == 0
    assert Sequence(2**32 - 1).missing_below(2**32 + 3) == 3
    assert Sequence(5).missing_below(2**32) == 0  # enrolled again
    assert Sequence(5).missing_below(10) == 4
    assert Sequence(5, ((7, 8),)).missing_below(10) == 2
    assert Sequence(5, ((7, 20),)).missing_below(10) == 1
    assert Sequence(5, ((20, 25),)).missing_below(10) == 4
    assert Sequence(50).missing_below(3) == 0


def test_a_monitor_that_leaves_gaps_without_end_uses_bounded_memory() -> None:
    sequence = Sequence()
    for number in range(2 * MAX_RANGES):
        sequence = sequence.settle(2 * number + 1, 2 * number + 1)
    assert len(sequence.beyond) == MAX_RANGES
    assert sequence.contiguous == -1


def test_of_too_many_runs_the_lowest_are_remembered_which_can_be_settled_first() -> None:
    runs = tuple((2 * number + 1, 2 * number + 1) for number in range(MAX_RANGES))
    full = Sequence(-1, runs)
    beyond = full.settle(10**6, 10**6)
    assert beyond.beyond == runs
    below = Sequence(-1, runs[1:]).settle(10**6, 10**6).settle(1, 1)
    assert below.beyond == runs
    assert full.settle(0, 0) == Sequence(1, runs[1:])


def test_the_last_number_there_is_can_be_settled() -> None:
    last = 2**63 - 1
    assert Sequence(last - 2).settle(last, last) == Sequence(last - 2, ((last, last),))
    assert Sequence(last - 2).settle(0, last) == Sequence(last)
    assert Sequence(last).begin_at(last) == Sequence(last)
    assert Sequence(last - 3).missing_below(last) == 2


@given(RUNS, st.randoms(use_true_random=False))
def test_the_order_of_messages_does_not_matter(runs: list[tuple[int, int]], chance: object) -> None:
    shuffled = list(runs)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = Sequence(), Sequence()
    for first, count in runs:
        one = one.settle(first, first + count - 1)
    for first, count in shuffled + runs:
        other = other.settle(first, first + count - 1)
    assert one == other


@given(RUNS, st.integers(0, 60))
def test_only_what_was_settled_or_declared_gone_is_settled(
    runs: list[tuple[int, int]], oldest: int
) -> None:
    sequence = Sequence()
    settled: set[int] = set()
    for first, count in runs:
        sequence = sequence.settle(first, first + count - 1)
        settled |= set(range(first, first + count))
    sequence = sequence.begin_at(oldest)
    settled |= set(range(oldest))
    contiguous = -1
    while contiguous + 1 in settled:
        contiguous += 1
    assert sequence.contiguous == contiguous
    beyond = {n for first, last in sequence.beyond for n in range(first, last + 1)}
    assert beyond == {n for n in settled if n > contiguous}
