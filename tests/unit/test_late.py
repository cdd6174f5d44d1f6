"""Breaches found in late readings: told once, when no more of them come."""

from datetime import timedelta
from decimal import Decimal

from bots.alerts.alarm import Reason
from bots.alerts.late import LateDecision
from bots.alerts.limits import Priority
from fajma.vitals import Age, Kind
from tests.bedside import START, WELL, Bedside, reasons, seconds, spo2, told

LONG_AGO = START - timedelta(hours=1)


def backlog(
    bedside: Bedside, values: list[float], *, kind: Kind = Kind.SPO2, every: float = 0.1
) -> None:
    """Readings of an hour ago, 5 s apart, come quickly one after the other."""
    for number, value in enumerate(values):
        at = LONG_AGO + seconds(5 * number)
        bedside.send({kind: value}, every=every, age=Age.LATE, measured=at)


def late(bedside: Bedside) -> list[LateDecision]:
    return [one for one in bedside.decisions if isinstance(one, LateDecision)]


def test_a_late_breach_is_told_once_with_its_worst_value_and_its_time() -> None:
    bedside = Bedside()
    backlog(bedside, [97, 89, 84, 86, 88, 97, 97])
    assert told(bedside.decisions) == []

    assert told(bedside.send(WELL, every=9)) == []
    bedside.send(WELL)
    (alarm,) = late(bedside)
    assert (alarm.reason, alarm.rings, alarm.priority) == (
        Reason.DURING_OUTAGE,
        True,
        Priority.HIGH,
    )
    assert (alarm.kind, alarm.value) == (Kind.SPO2, Decimal(84))
    assert alarm.limit.threshold == 90
    assert alarm.first == LONG_AGO + seconds(5)
    assert alarm.measured_at == LONG_AGO + seconds(10)
    assert alarm.last == LONG_AGO + seconds(20)
    assert alarm.alarm_id == "late-spo2-low-3", "three of four confirm it"


def test_without_a_live_reading_it_is_told_a_minute_after_the_last_late_one() -> None:
    bedside = Bedside()
    backlog(bedside, [88] * 4)

    assert bedside.wait(59) == []
    assert told(bedside.wait(1)) == [Reason.DURING_OUTAGE]


def test_live_readings_between_late_ones_do_not_tear_the_run_apart() -> None:
    bedside = Bedside()
    for _ in range(10):
        backlog(bedside, [88] * 4)
        bedside.send(WELL, every=1)
    assert late(bedside) == []

    bedside.send(WELL, times=3)
    assert len(late(bedside)) == 1


def test_late_readings_without_end_are_told_every_five_minutes() -> None:
    bedside = Bedside()
    for number in range(120):
        at = LONG_AGO + seconds(5 * number)
        bedside.send(spo2(88), age=Age.LATE, measured=at)

    runs = [one for one in late(bedside) if one.reason is Reason.DURING_OUTAGE]
    assert [one.at for one in runs] == [START + seconds(305)]


def test_late_values_that_confirm_nothing_or_break_nothing_are_not_told() -> None:
    bedside = Bedside()
    backlog(bedside, [97, 88, 97, 97, 97, 88, 97, 97])
    backlog(bedside, [97] * 20)

    assert bedside.wait(60) == []
    assert bedside.state.late_runs == {}


def test_each_kind_and_direction_is_told_for_itself() -> None:
    bedside = Bedside()
    backlog(bedside, [88] * 4)
    backlog(bedside, [45] * 4, kind=Kind.HEART_RATE)
    bedside.wait(60)

    assert {(one.kind, one.priority) for one in late(bedside)} == {
        (Kind.SPO2, Priority.HIGH),
        (Kind.HEART_RATE, Priority.MEDIUM),
    }


def test_a_high_one_climbs_the_ladder_until_it_is_acknowledged() -> None:
    bedside = Bedside()
    bedside.send(WELL)
    backlog(bedside, [88] * 4)
    bedside.send(WELL, every=10)
    bedside.decisions.clear()

    bedside.send(WELL, times=24)
    assert [(one.reason, one.step) for one in late(bedside)] == [(Reason.ESCALATED, 1)]
    (seen,) = bedside.acknowledge()
    assert seen.reason is Reason.ACKNOWLEDGED
    assert bedside.state.late == {}
    assert bedside.state.care == {}
    bedside.send(WELL, times=200)
    assert told(bedside.decisions) == [Reason.ESCALATED]


def test_a_medium_one_is_reminded_of_but_leaves_the_first_step_never() -> None:
    bedside = Bedside()
    backlog(bedside, [91] * 4)
    bedside.send(WELL, every=10)
    bedside.decisions.clear()

    bedside.send(WELL, times=250)
    assert [(one.reason, one.step) for one in late(bedside)] == [(Reason.RENOTIFIED, 0)] * 2


def test_the_end_of_a_live_episode_does_not_answer_a_late_one() -> None:
    bedside = Bedside()
    backlog(bedside, [84] * 4)
    bedside.send(spo2(91), every=10, times=3)
    bedside.send(spo2(97), times=8)

    assert Reason.RECOVERED in told(bedside.decisions)
    assert list(bedside.state.late) == ["spo2-low"]


def test_a_late_breach_no_worse_than_the_open_episode_is_not_told() -> None:
    bedside = Bedside()
    bedside.send(spo2(88), times=4)
    backlog(bedside, [88] * 4)
    bedside.send(spo2(88), every=10)

    assert reasons(late(bedside)) == [Reason.ALREADY_OPEN]  # type: ignore[arg-type]
    assert bedside.state.late == {}


def test_a_late_breach_that_is_worse_than_the_open_episode_is_told() -> None:
    bedside = Bedside()
    bedside.send(spo2(91), times=4)
    backlog(bedside, [86] * 4)
    bedside.send(spo2(91), every=10)

    assert reasons(late(bedside)) == [Reason.DURING_OUTAGE]  # type: ignore[arg-type]


def test_a_second_late_breach_joins_the_one_that_waits_and_one_answer_is_enough() -> None:
    bedside = Bedside(worn=False)
    backlog(bedside, [88, 86, 88])
    bedside.wait(60)
    backlog(bedside, [91] * 4)
    bedside.wait(60)

    first, second = late(bedside)
    assert second.reason is Reason.DURING_OUTAGE
    assert (second.alarm_id, second.value) == (first.alarm_id, 86)
    assert second.priority is Priority.HIGH
    assert (second.first, second.last) == (LONG_AGO, LONG_AGO + seconds(15))
    bedside.acknowledge(first.alarm_id)
    assert bedside.wait(3600) == []


def test_readings_of_unknown_age_are_no_late_ones() -> None:
    bedside = Bedside()
    bedside.send(spo2(84), times=10, age=Age.UNKNOWN)

    assert bedside.state.late_runs == {}
    assert set(reasons(bedside.decisions)) == {Reason.LATE}


def test_a_late_breach_does_not_confirm_a_live_one_nor_the_other_way_round() -> None:
    bedside = Bedside()
    bedside.send(spo2(88), times=2)
    backlog(bedside, [88, 88])
    bedside.wait(60)

    assert told(bedside.decisions) == []
