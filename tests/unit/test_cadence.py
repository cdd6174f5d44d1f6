"""What a room is told next, and whose turn it is."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridges.mqtt_vitals.cadence import (
    AGAIN_AFTER,
    ALARMING_FOR,
    Cadence,
    Due,
    Standing,
    Urgency,
    What,
    next_of,
)

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
CADENCE = Cadence(
    state_every_s=300, unwatched_state_every_s=1800, batch_every_s=60, watched_every_s=5
)
UP_TO_DATE = Standing(
    newest=10, shown=10, published=10, state_sent_at=NOON, batch_sent_at=NOON
)  # fmt: skip


def s(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


def whats(room: Standing, at: datetime) -> What | None:
    due = next_of(room, CADENCE, at)
    return None if due is None else due.what


MOMENTS = st.none() | st.integers(-4000, 4000).map(lambda ms: NOON + timedelta(seconds=ms))
STANDINGS = st.builds(
    Standing,
    newest=st.integers(0, 20),
    blank=st.booleans(),
    shown=st.integers(0, 20),
    published=st.integers(0, 20),
    pending=st.booleans(),
    more=st.booleans(),
    state_sent_at=MOMENTS,
    batch_sent_at=MOMENTS,
    alarm_at=MOMENTS,
    shown_alarm=MOMENTS,
    watched_until=MOMENTS,
    came_at=MOMENTS,
)


def test_a_room_without_readings_is_told_nothing() -> None:
    assert next_of(Standing(), CADENCE, NOON) is None
    assert next_of(Standing(alarm_at=NOON, watched_until=NOON + s(9)), CADENCE, NOON) is None


def test_a_room_that_is_up_to_date_is_told_nothing() -> None:
    assert next_of(UP_TO_DATE, CADENCE, NOON + s(100_000)) is None


def test_what_was_never_sent_is_due_at_once_the_snapshot_first() -> None:
    due = next_of(Standing(newest=1), CADENCE, NOON)
    assert due is not None
    assert (due.what, due.urgency) == (What.SNAPSHOT, Urgency.ROUTINE)
    assert whats(Standing(newest=1, shown=1, state_sent_at=NOON), NOON) is What.BATCH


@pytest.mark.parametrize(
    ("watched_s", "after_s", "due"),
    [(0, 59.9, False), (0, 60, True), (300, 4.9, False), (300, 5, True), (30, 40, False)],
)
def test_batches_keep_their_cadence_which_a_watch_speeds_up_until_it_ends(
    watched_s: int,
    after_s: float,
    due: bool,  # noqa: FBT001
) -> None:
    room = replace(UP_TO_DATE, newest=11, watched_until=NOON + s(watched_s))
    assert (whats(room, NOON + s(after_s)) is What.BATCH) is due


def test_a_watch_never_slows_batches_down() -> None:
    room = replace(UP_TO_DATE, newest=11, watched_until=NOON + s(300))
    fast = replace(CADENCE, batch_every_s=1)
    assert next_of(room, fast, NOON + s(1)) is not None


@pytest.mark.parametrize("change", [{"pending": True}, {"newest": 11, "more": True}])
def test_a_batch_of_unknown_outcome_and_the_rest_of_a_backlog_wait_for_no_cadence(
    change: dict[str, int],
) -> None:
    assert whats(replace(UP_TO_DATE, **change), NOON) is What.BATCH


@pytest.mark.parametrize(
    ("change", "every_s"),
    [
        ({}, 1800),
        ({"watched_until": NOON + s(3600)}, 300),
        ({"alarm_at": NOON, "shown_alarm": NOON}, 300),
    ],
    ids=["unwatched", "watched", "alarming"],
)
def test_snapshots_keep_their_cadence_and_need_news(
    change: dict[str, datetime], every_s: float
) -> None:
    room = replace(UP_TO_DATE, newest=11, published=11, **change)
    assert whats(room, NOON + s(every_s - 1)) is None
    assert whats(room, NOON + s(every_s)) is What.SNAPSHOT
    assert whats(replace(room, blank=True), NOON + s(every_s)) is None
    assert whats(replace(room, newest=10), NOON + s(every_s)) is None


def test_who_begins_to_watch_gets_a_fresh_snapshot() -> None:
    room = replace(UP_TO_DATE, newest=11, published=11)
    later = NOON + s(400)
    assert whats(room, later) is None
    assert whats(replace(room, watched_until=later + s(60)), later) is What.SNAPSHOT


def test_a_change_of_alarm_sends_the_snapshot_at_once_and_once() -> None:
    room = replace(UP_TO_DATE, alarm_at=NOON + s(1))
    due = next_of(room, CADENCE, NOON + s(2))
    assert due == Due(Urgency.ALARMING, What.SNAPSHOT, NOON + s(1))
    shown = replace(room, shown_alarm=NOON + s(1), state_sent_at=NOON + s(2))
    assert next_of(shown, CADENCE, NOON + s(3)) is None
    # An alarm of which nothing is known any more (too long ago) is no change.
    assert next_of(replace(shown, alarm_at=None), CADENCE, NOON + s(3)) is None


def test_a_newcomer_gets_the_snapshot_at_once_once_more_and_then_the_history() -> None:
    room = replace(UP_TO_DATE, came_at=NOON + s(1))
    assert whats(room, NOON + s(1)) is What.SNAPSHOT
    room = replace(room, state_sent_at=NOON + s(1))
    again = NOON + s(1) + AGAIN_AFTER
    assert whats(room, again - s(0.1)) is None
    assert whats(room, again) is What.SNAPSHOT
    room = replace(room, state_sent_at=again)
    due = next_of(room, CADENCE, again)
    assert due is not None
    assert (due.what, due.urgency) == (What.HISTORY, Urgency.HISTORY)
    assert whats(replace(room, came_at=None), again) is None


def test_turns_go_to_alarming_then_watched_then_routine_then_history() -> None:
    late = NOON + s(120)
    waiting = replace(UP_TO_DATE, newest=11)
    rooms = {
        "history": replace(UP_TO_DATE, came_at=NOON - s(60)),
        "stale": replace(waiting, batch_sent_at=NOON - s(60)),
        "routine": waiting,
        "watched": replace(waiting, batch_sent_at=late - s(5), watched_until=late + s(1)),
        "newcomer": replace(waiting, came_at=late, batch_sent_at=late),
        "alarming": replace(waiting, alarm_at=NOON, shown_alarm=NOON),
        "alarm changed": replace(waiting, alarm_at=late, shown_alarm=NOON),
        "no longer alarming": replace(
            waiting, alarm_at=late - ALARMING_FOR, shown_alarm=late - ALARMING_FOR
        ),
    }
    turns = {name: next_of(room, CADENCE, late) for name, room in rooms.items()}
    assert all(turns.values())
    order = sorted(turns, key=lambda name: turns[name])  # type: ignore[arg-type,return-value]
    assert order[:5] == ["alarm changed", "alarming", "newcomer", "watched", "stale"]
    assert set(order[5:7]) == {"routine", "no longer alarming"}
    assert order[7] == "history"


@given(STANDINGS, st.integers(0, 4000))
def test_time_alone_never_takes_back_what_is_due_in_a_room_in_which_nothing_changes(
    room: Standing, later_s: int
) -> None:
    room = replace(room, watched_until=None, alarm_at=None, state_sent_at=None, batch_sent_at=None)
    if next_of(room, CADENCE, NOON) is not None:
        assert next_of(room, CADENCE, NOON + s(later_s)) is not None


@given(STANDINGS)
def test_what_is_due_is_due_since_a_moment_that_has_come(room: Standing) -> None:
    room = replace(room, alarm_at=None if room.alarm_at is None else min(room.alarm_at, NOON))
    due = next_of(room, CADENCE, NOON)
    assert due is None or due.since <= NOON


@given(STANDINGS)
def test_a_clock_that_is_put_back_silences_nothing(room: Standing) -> None:
    future = replace(
        room,
        newest=21,
        blank=False,
        state_sent_at=NOON + s(86400),
        batch_sent_at=NOON + s(86400),
    )
    assert next_of(future, CADENCE, NOON) is not None


@given(st.lists(STANDINGS, min_size=1, max_size=8))
def test_no_room_waits_for_a_less_urgent_one(rooms: list[Standing]) -> None:
    dues = [due for room in rooms if (due := next_of(room, CADENCE, NOON)) is not None]
    if dues:
        first = min(dues)
        assert first.urgency == min(due.urgency for due in dues)
        rivals = [due for due in dues if due.urgency == first.urgency and due.what == first.what]
        assert first.since == min(due.since for due in rivals)
