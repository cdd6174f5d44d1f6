"""How old a reading is: wrong clocks on both sides, restarts, wraps, backlogs, shared messages."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridges.mqtt_vitals.clocks import (
    LIVE_WITHIN_S,
    Arrival,
    Clocks,
    Placed,
    place_replayed,
    place_v2,
)
from fajma.vitals import Age, Clock, DeviceId
from fajma.wire import MAX_TIMESTAMP, UNIX_MS_FROM

NOW = datetime(2026, 11, 22, 14, 0, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1000)
DEVICE = DeviceId("A4CF12F03B7E")
OTHER = DeviceId("A4CF12F03B80")
WRAP_MS = 2**32


def arrival(second: float, *, server_ahead_s: float = 0.0) -> Arrival:
    """Our two clocks when so many seconds have passed; the wall clock may be wrong."""
    return Arrival(NOW + timedelta(seconds=second + server_ahead_s), 1000 + second)


def unix(
    clocks: Clocks,
    second: float,
    measured_s: float,
    *,
    ahead_s: float = 0.0,
    device: DeviceId = DEVICE,
    server_ahead_s: float = 0.0,
) -> Placed:
    """A v1 reading measured then, by a device's clock that is so much ahead."""
    timestamp_ms = NOW_MS + round((measured_s + ahead_s) * 1000)
    return clocks.place_v1(device, timestamp_ms, arrival(second, server_ahead_s=server_ahead_s))


def uptime(clocks: Clocks, second: float, since_start_s: float) -> Placed:
    return clocks.place_v1(DEVICE, round(since_start_s * 1000) % WRAP_MS, arrival(second))


def at(second: float) -> datetime:
    return NOW + timedelta(seconds=second)


def near(moment: datetime, second: float, within_s: float = 1.0) -> bool:
    return abs((moment - at(second)).total_seconds()) <= within_s


# --- a clock that is right -----------------------------------------------------------------------


def test_a_right_clock_is_live_from_its_first_reading_and_keeps_its_own_time() -> None:
    clocks = Clocks()
    for number in range(20):
        measured = 5 * number
        assert unix(clocks, measured + 2, measured) == Placed(at(measured), Clock.DEVICE, Age.LIVE)


@given(st.integers(-7 * 86_400_000, 300_000))
def test_a_first_reading_keeps_any_date_that_can_be(offset_ms: int) -> None:
    one = Clocks().place_v1(DEVICE, NOW_MS + offset_ms, arrival(0))
    expected = NOW + timedelta(milliseconds=offset_ms)
    assert (one.measured_at, one.clock) == (expected, Clock.DEVICE)


@pytest.mark.parametrize("timestamp_ms", [UNIX_MS_FROM, NOW_MS + 300_001, MAX_TIMESTAMP])
def test_a_first_reading_with_a_date_that_cannot_be_is_placed_by_its_arrival(
    timestamp_ms: int,
) -> None:
    one = Clocks().place_v1(DEVICE, timestamp_ms, arrival(0))
    assert one == Placed(NOW, Clock.WRONG, Age.UNKNOWN)


def test_a_backlog_is_late_keeps_its_own_times_and_is_live_again_at_its_end() -> None:
    clocks = Clocks()
    unix(clocks, 0, 0)
    # Ten minutes of readings, one each 5 s, delivered 20 ms apart after an outage.
    placed = [unix(clocks, 600 + 0.02 * n, 5 * n) for n in range(1, 121)]
    for number, one in enumerate(placed, start=1):
        assert (one.measured_at, one.clock) == (at(5 * number), Clock.DEVICE)
        waited_s = 600 + 0.02 * number - 5 * number
        assert one.age is (Age.LIVE if waited_s <= LIVE_WITHIN_S else Age.LATE)


def test_a_backlog_that_meets_a_bridge_just_started_is_late_too() -> None:
    clocks = Clocks()
    for number in range(100):
        one = unix(clocks, 600 + 0.02 * number, 5 * number)
        assert one == Placed(at(5 * number), Clock.DEVICE, Age.LATE)
    assert unix(clocks, 605, 605).age is Age.LIVE


def test_a_slow_backlog_keeps_its_own_times() -> None:
    clocks = Clocks()
    for number in range(60):  # one each 1.5 s over a thin line: the delay shrinks by 3.5 s
        one = unix(clocks, 600 + 1.5 * number, 5 * number)
        assert one == Placed(at(5 * number), Clock.DEVICE, Age.LATE)


# --- a clock that is wrong -----------------------------------------------------------------------


@pytest.mark.parametrize("ahead_s", [-60, -7200, -86_400, -10 * 86_400, 400, 7200, 10**7])
def test_a_wrong_clock_silences_nothing_from_its_second_reading_on(ahead_s: float) -> None:
    clocks = Clocks()
    assert unix(clocks, 0, 0, ahead_s=ahead_s).age is not Age.LIVE
    for number in range(1, 20):
        measured = 5 * number
        one = unix(clocks, measured + 0.3 * (number % 3), measured, ahead_s=ahead_s)
        assert (one.clock, one.age) == (Clock.WRONG, Age.LIVE)
        assert near(one.measured_at, measured)


def test_a_clock_that_is_set_while_it_runs_costs_one_reading() -> None:
    clocks = Clocks()
    for number in range(3):
        unix(clocks, 5 * number, 5 * number, ahead_s=-7200)
    ages = [unix(clocks, 15 + 5 * n, 15 + 5 * n).age for n in range(4)]  # now it is right
    assert ages == [Age.LIVE] * 4
    ages = [unix(clocks, 35 + 5 * n, 35 + 5 * n, ahead_s=-7200).age for n in range(4)]
    assert ages == [Age.LATE, Age.LIVE, Age.LIVE, Age.LIVE]


@pytest.mark.parametrize("jump_s", [600, 86_400, 6 * 366 * 86_400.0])
@pytest.mark.parametrize("uneven_s", [0, 4])
def test_a_clock_that_jumps_and_comes_back_places_nothing_in_the_past(
    jump_s: float, uneven_s: float
) -> None:
    clocks = Clocks()
    unix(clocks, 0, 0)
    unix(clocks, 5, 5, ahead_s=jump_s)
    back = unix(clocks, 10, 10)
    assert back == Placed(at(10), Clock.WRONG, Age.LATE)
    # It is not steady yet where the next one comes later than usual.
    second = unix(clocks, 15 + uneven_s, 15)
    assert near(second.measured_at, 15 + uneven_s, within_s=5)
    assert unix(clocks, 20 + uneven_s, 20).age is Age.LIVE


def test_an_old_message_that_comes_after_a_newer_one_keeps_its_own_time() -> None:
    clocks = Clocks()
    unix(clocks, 0, 0)
    unix(clocks, 600, 600)
    assert unix(clocks, 601, 300) == Placed(at(300), Clock.DEVICE, Age.LATE)
    assert unix(clocks, 605, 605) == Placed(at(605), Clock.DEVICE, Age.LIVE)


def test_a_backlog_of_a_monitor_whose_clock_is_ahead_is_late_all_the_same() -> None:
    clocks = Clocks()
    for number in range(3):
        unix(clocks, 5 * number, 5 * number, ahead_s=600)
    # Ten minutes late: by its own clock it looks fresh.
    one = unix(clocks, 615, 15, ahead_s=600)
    assert (one.age, one.clock) == (Age.LATE, Clock.WRONG)
    assert near(one.measured_at, 15)


@pytest.mark.parametrize("server_ahead_s", [-3600, -120, 120, 3600, 10**7])
def test_our_own_clock_may_be_set_in_the_middle(server_ahead_s: float) -> None:
    clocks = Clocks()
    for number in range(3):
        assert unix(clocks, 5 * number, 5 * number).age is Age.LIVE
    for number in range(3, 9):
        one = unix(clocks, 5 * number, 5 * number, server_ahead_s=server_ahead_s)
        assert one.age is Age.LIVE


def test_a_server_whose_clock_was_wrong_from_the_start_costs_one_reading() -> None:
    clocks = Clocks()
    ages = [unix(clocks, 5 * n, 5 * n, server_ahead_s=-7200).age for n in range(4)]
    assert ages == [Age.UNKNOWN, Age.LIVE, Age.LIVE, Age.LIVE]


# --- time since the start ------------------------------------------------------------------------


def test_uptime_is_placed_by_arrival_and_live_from_its_second_reading_on() -> None:
    clocks = Clocks()
    assert uptime(clocks, 0, 100) == Placed(at(0), Clock.ARRIVAL, Age.UNKNOWN)
    for number in range(1, 10):
        one = uptime(clocks, 5 * number, 100 + 5 * number)
        assert one == Placed(at(5 * number), Clock.ARRIVAL, Age.LIVE)


def test_a_backlog_of_uptimes_is_placed_by_their_differences() -> None:
    clocks = Clocks()
    for number in range(3):
        uptime(clocks, 5 * number, 100 + 5 * number)
    for number in range(3, 100):
        one = uptime(clocks, 600 + 0.02 * number, 100 + 5 * number)
        assert near(one.measured_at, 5 * number)
        waited_s = 600 + 0.02 * number - 5 * number
        assert one.age is (Age.LATE if waited_s > LIVE_WITHIN_S else Age.LIVE)


def test_a_count_of_32_bits_that_starts_again_changes_nothing() -> None:
    clocks = Clocks()
    before_s = WRAP_MS / 1000 - 12
    uptime(clocks, -5, before_s - 5)
    for number in range(8):
        one = uptime(clocks, 5 * number, before_s + 5 * number)
        assert one == Placed(at(5 * number), Clock.ARRIVAL, Age.LIVE)


def test_a_restart_costs_one_reading() -> None:
    clocks = Clocks()
    for number in range(3):
        uptime(clocks, 5 * number, 40_000 + 5 * number)
    ages = [uptime(clocks, 30 + 5 * n, 5 * n).age for n in range(3)]
    assert ages == [Age.LATE, Age.LIVE, Age.LIVE]


def test_a_restart_places_nothing_before_it() -> None:
    clocks = Clocks()
    for number in range(3):
        uptime(clocks, 5 * number, 40_000 + 5 * number)
    assert uptime(clocks, 30, 3) == Placed(at(30), Clock.ARRIVAL, Age.LATE)


def test_a_monitor_that_learns_the_time_goes_from_uptime_to_unix() -> None:
    clocks = Clocks()
    for number in range(3):
        uptime(clocks, 5 * number, 5 * number)
    assert unix(clocks, 15, 15) == Placed(at(15), Clock.DEVICE, Age.LIVE)


def test_what_waits_right_after_a_monitor_is_known_is_placed_when_it_was_measured() -> None:
    clocks = Clocks()
    uptime(clocks, 0, 100)
    uptime(clocks, 5, 105)
    held_back = uptime(clocks, 610, 110)
    assert held_back.age is Age.LATE
    assert near(held_back.measured_at, 10)


def test_what_waits_right_after_a_count_has_started_again_is_late() -> None:
    clocks = Clocks()
    before_s = WRAP_MS / 1000 - 12
    for second in (0, 5, 10, 15):
        uptime(clocks, second, before_s + second)
    assert uptime(clocks, 620, before_s + 20).age is Age.LATE


def test_what_comes_in_a_moment_may_be_a_backlog_and_makes_no_monitor_known() -> None:
    for apart_s, age in ((0.99, Age.UNKNOWN), (1.0, Age.LIVE)):
        clocks = Clocks()
        uptime(clocks, 0, 100)
        assert uptime(clocks, apart_s, 100 + apart_s).age is age


def test_a_count_that_may_step_is_known_by_its_last_two_messages_whatever_came_before() -> None:
    clocks = Clocks()
    uptime(clocks, 0, 1000)
    uptime(clocks, 310, 10)  # started again
    assert uptime(clocks, 320, 20) == Placed(at(320), Clock.ARRIVAL, Age.LIVE)
    clocks = Clocks()
    uptime(clocks, 0, 100)
    uptime(clocks, 310, 110)
    assert uptime(clocks, 320, 120).age is Age.LIVE


def test_the_limits_themselves_belong_to_what_they_limit() -> None:
    clocks = Clocks()
    assert unix(clocks, 30, 0) == Placed(at(0), Clock.DEVICE, Age.LIVE)
    assert unix(clocks, 95, 5).age is Age.LIVE  # 60 s more
    assert unix(Clocks(), 30.001, 0).age is Age.LATE
    clocks = Clocks()
    unix(clocks, 0, 0)
    assert unix(clocks, 60.2, 0.1).age is Age.LATE


# --- several ingests, batches that are tried again -----------------------------------------------


def test_messages_that_overtake_each_other_stay_live() -> None:
    clocks, chance = Clocks(), random.Random(1)
    readings = [(5 * n + chance.uniform(0, 20), 5 * n) for n in range(1, 200)]
    unix(clocks, 0, 0)
    for second, measured in sorted(readings):
        assert unix(clocks, second, measured) == Placed(at(measured), Clock.DEVICE, Age.LIVE)


def test_each_of_two_ingests_that_share_the_messages_learns_by_itself() -> None:
    ingests, chance = (Clocks(), Clocks()), random.Random(2)
    ages: tuple[list[Age], list[Age]] = ([], [])
    for number in range(60):
        mine = chance.randrange(2)
        ages[mine].append(uptime(ingests[mine], 5 * number, 1000 + 5 * number).age)
    for one in ages:
        assert one == [Age.UNKNOWN] + [Age.LIVE] * (len(one) - 1)


def test_another_monitor_s_delay_says_nothing_about_this_one() -> None:
    clocks = Clocks()
    unix(clocks, 0, 0, ahead_s=-7200)
    assert unix(clocks, 5, 5, ahead_s=-7200, device=OTHER).age is Age.LATE


def test_a_batch_that_is_placed_again_comes_out_the_same() -> None:
    clocks = Clocks()
    first = clocks.tried()
    unix(first, 0, 0, ahead_s=-7200)
    clocks.keep(first)
    failed, again = clocks.tried(), clocks.tried()
    expected = unix(failed, 5, 5, ahead_s=-7200)
    assert unix(again, 5, 5, ahead_s=-7200) == expected
    assert expected.clock is Clock.WRONG


# --- v2 ------------------------------------------------------------------------------------------


def sent(
    clocks: Clocks, second: float, sent_s: float, *, boot: int = 1, wall: datetime | None = None
) -> float | None:
    """A v2 message that left when the monitor's start was so long ago."""
    return clocks.way_of(DEVICE, boot, round(sent_s * 1000), wall, arrival=arrival(second))


def test_the_way_of_a_message_is_known_at_once_where_the_clocks_agree() -> None:
    clocks = Clocks()
    assert sent(clocks, 0, 50, wall=at(0)) == 0.0
    assert sent(clocks, 5, 55) == pytest.approx(0.0)
    assert sent(clocks, 130, 60) == pytest.approx(120, abs=0.1)  # it waited at the broker


def test_the_way_of_a_monitor_without_clock_is_known_from_its_second_message() -> None:
    clocks = Clocks()
    assert sent(clocks, 0, 50) is None
    assert sent(clocks, 5, 55) == 0.0


def test_a_way_that_is_steadily_slow_is_slow_because_monotonic_time_never_steps() -> None:
    clocks = Clocks()
    sent(clocks, 0, 50, wall=at(0))
    for number in range(1, 10):
        assert sent(clocks, 600 + 5 * number, 50 + 5 * number) == pytest.approx(600, abs=1)


def test_one_quick_message_shows_that_those_after_it_wait() -> None:
    clocks = Clocks()
    assert sent(clocks, 0, 50) is None  # quick, and nobody knows it yet
    assert sent(clocks, 310, 60) is None  # it waited 300 s
    assert sent(clocks, 320, 70) == pytest.approx(300, abs=1)


@pytest.mark.parametrize("absurd_s", [3600, 86_400, 2**42 / 1000])
@pytest.mark.parametrize("clock_set", [True, False])
@pytest.mark.parametrize("known", [0, 1, 5])
def test_one_absurd_monotonic_time_costs_two_messages_at_most(
    absurd_s: float, *, clock_set: bool, known: int
) -> None:
    clocks = Clocks()

    def said(number: int) -> float | None:
        second = 5.0 * number
        return sent(clocks, second, 50 + second, wall=at(second) if clock_set else None)

    for number in range(known):
        said(number)
    sent(clocks, 5.0 * known, 50 + absurd_s)
    ways = [said(number) for number in range(known + 1, known + 9)]
    assert ways[2:] == [pytest.approx(0.0)] * 6
    if clock_set:
        assert ways[0] == pytest.approx(0.0)
    # And then what waits is late again.
    assert sent(clocks, 700, 50 + 100) == pytest.approx(600, abs=1)


def test_a_way_that_is_slow_twice_is_still_slow_where_no_time_went_back() -> None:
    clocks = Clocks()
    sent(clocks, 0, 50)
    sent(clocks, 5, 55)
    assert sent(clocks, 306, 56) == pytest.approx(300, abs=1)
    assert sent(clocks, 311, 61) == pytest.approx(300, abs=1)


def test_what_may_have_come_before_is_told_from_what_is_new() -> None:
    clocks = Clocks()
    assert not clocks.went_back(DEVICE)
    for second, sent_s, boot, may_be in [
        (0, 50, 3, False),
        (5, 55, 3, False),
        (6, 55, 3, True),  # the same again
        (7, 50, 3, True),
        (8, 54, 3, True),  # newer than the last one, but not than all
        (9, 9, 4, False),  # a new start
        (10, 60, 3, True),  # of the start before
        (11, 11, 4, False),
    ]:
        sent(clocks, second, sent_s, boot=boot)
        assert clocks.went_back(DEVICE) is may_be
    assert not clocks.went_back(OTHER)
    unix(clocks, 0, 0, device=OTHER)
    assert not clocks.went_back(OTHER)
    unix(clocks, 600, 0, device=OTHER)
    assert clocks.went_back(OTHER)


def test_a_count_that_starts_again_went_not_back_and_a_change_of_kind_may_have() -> None:
    clocks = Clocks()
    uptime(clocks, 0, WRAP_MS / 1000 - 1)
    uptime(clocks, 5, WRAP_MS / 1000 + 4)
    assert not clocks.went_back(DEVICE)
    unix(clocks, 10, 10)
    assert clocks.went_back(DEVICE)  # nobody can say: it is asked whether it came before


@pytest.mark.parametrize("timestamp_ms", [0, 2**32 - 1, 10**12, 2**53 - 1])
def test_no_count_however_absurd_leaves_the_calendar(timestamp_ms: int) -> None:
    for second in range(3):
        clocks = Clocks()
        for number in range(3):
            clocks.place_v1(DEVICE, timestamp_ms, arrival(5 * number))
        for other in (0, 2**53 - 1, NOW_MS):
            placed = clocks.place_v1(DEVICE, other, arrival(20 + second))
            assert abs(placed.measured_at - NOW) < timedelta(days=400)


def test_a_new_start_begins_anew() -> None:
    clocks = Clocks()
    sent(clocks, 0, 5000, wall=at(0))
    assert sent(clocks, 10, 3, boot=2) is None
    assert sent(clocks, 15, 8, boot=2) == 0.0


def test_crystals_that_drift_make_nothing_late() -> None:
    clocks = Clocks()
    sent(clocks, 0, 0, wall=at(0))
    for number in range(1, 14 * 24 * 60):  # two weeks, a message a minute, 100 ppm slow
        way = sent(clocks, 60 * number, 60 * number * (1 - 100e-6))
        assert way is not None
        assert way < 1


def place(
    measured_at: datetime | None,
    before_s: float | None,
    way_s: float | None,
    *,
    start_s: float = 1e4,
) -> Placed:
    return place_v2(
        measured_at,
        before_sending_s=before_s,
        since_start_s=start_s,
        way_s=way_s,
        arrival=arrival(0),
    )


@pytest.mark.parametrize(
    ("measured_at", "before_s", "way_s", "placed"),
    [
        (at(-2), 2, 0.0, Placed(at(-2), Clock.DEVICE, Age.LIVE)),
        (None, 2, 0.0, Placed(at(-2), Clock.ARRIVAL, Age.LIVE)),
        (None, 600, 0.0, Placed(at(-600), Clock.ARRIVAL, Age.LATE)),
        (at(-600), 600, 0.0, Placed(at(-600), Clock.DEVICE, Age.LATE)),
        # Two hours behind, and the way is known: live, and the clock is wrong.
        (at(-7200), 2, 0.0, Placed(at(-2), Clock.WRONG, Age.LIVE)),
        (at(-7200), 600, 0.0, Placed(at(-600), Clock.WRONG, Age.LATE)),
        # It waited at the broker.
        (at(-302), 2, 300.0, Placed(at(-302), Clock.DEVICE, Age.LATE)),
        # Nobody knows how long it was on its way.
        (None, 2, None, Placed(at(-2), Clock.ARRIVAL, Age.UNKNOWN)),
        (None, 600, None, Placed(at(-600), Clock.ARRIVAL, Age.LATE)),
        (at(-7200), 2, None, Placed(at(-7200), Clock.DEVICE, Age.LATE)),
        (at(1e7), 2, None, Placed(at(-2), Clock.WRONG, Age.UNKNOWN)),
        # Of an earlier start: late, at the latest when this start began.
        (at(-20_000), None, 0.0, Placed(at(-20_000), Clock.DEVICE, Age.LATE)),
        (None, None, 5.0, Placed(at(-10_005), Clock.ARRIVAL, Age.LATE)),
        (at(1e7), None, None, Placed(at(-10_000), Clock.WRONG, Age.LATE)),
        # The limits themselves.
        (None, 60, 0.0, Placed(at(-60), Clock.ARRIVAL, Age.LIVE)),
        (None, 60, None, Placed(at(-60), Clock.ARRIVAL, Age.UNKNOWN)),
        (at(-30), 2, None, Placed(at(-30), Clock.DEVICE, Age.UNKNOWN)),
        (at(-366 * 86_400), None, None, Placed(at(-366 * 86_400), Clock.DEVICE, Age.LATE)),
        (at(-366 * 86_400 - 1), None, None, Placed(at(-10_000), Clock.WRONG, Age.LATE)),
        (at(300), None, None, Placed(at(300), Clock.DEVICE, Age.LATE)),
        (at(300.001), None, None, Placed(at(-10_000), Clock.WRONG, Age.LATE)),
        (at(298), 2, 0.0, Placed(at(298), Clock.DEVICE, Age.LIVE)),
        (at(298.001), 2, 0.0, Placed(at(-2), Clock.WRONG, Age.LIVE)),
    ],
)
def test_a_v2_record_is_placed(
    measured_at: datetime | None, before_s: float | None, way_s: float | None, placed: Placed
) -> None:
    assert place(measured_at, before_s, way_s) == placed


def test_what_waited_in_the_quarantine_is_late_whatever_it_says() -> None:
    assert place_replayed(NOW_MS, arrival(0)) == Placed(at(0), Clock.DEVICE, Age.LATE)
    assert place_replayed(5000, arrival(0)) == Placed(at(0), Clock.ARRIVAL, Age.LATE)


# --- for any clocks ------------------------------------------------------------------------------

SECONDS = st.floats(-1e8, 1e8, allow_nan=False)


@given(
    ahead_s=SECONDS,
    server_ahead_s=st.floats(-1e7, 1e7),
    every_s=st.floats(1.5, 60),
    jitters=st.lists(st.floats(0, 2.5), min_size=4, max_size=30),
)
def test_no_wrong_clock_keeps_a_monitor_from_being_live(
    ahead_s: float, server_ahead_s: float, every_s: float, jitters: list[float]
) -> None:
    clocks = Clocks()
    ages, last = [], 0.0
    for number, jitter in enumerate(jitters):
        measured = number * every_s
        second = max(measured + jitter, last + 1.0)
        last = second
        timestamp_ms = max(NOW_MS + round((measured + ahead_s) * 1000), 10**12)
        placed = clocks.place_v1(
            DEVICE, timestamp_ms, arrival(second, server_ahead_s=server_ahead_s)
        )
        ages.append(placed.age)
    assert ages[2:] == [Age.LIVE] * (len(ages) - 2)


@given(st.data())
def test_what_waited_long_is_never_live_once_the_monitor_is_known(data: st.DataObject) -> None:
    clocks = Clocks()
    ahead_s = data.draw(SECONDS)
    for number in range(3):
        unix(clocks, 5 * number, 5 * number, ahead_s=ahead_s)
    waited_s = data.draw(st.floats(LIVE_WITHIN_S + 5, 1e5))
    measured = 15.0
    assert unix(clocks, measured + waited_s, measured, ahead_s=ahead_s).age is Age.LATE
