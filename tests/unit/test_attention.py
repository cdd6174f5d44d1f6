"""Reminders, the escalation ladder, acknowledgements and snoozes, over whole stories."""

from datetime import timedelta

import pytest

from bots.alerts.alarm import Reason
from bots.alerts.engine import rules_from
from bots.alerts.limits import Confirmation, Priority
from bots.alerts.site_rules import SCHEDULES, Schedule, SiteRules
from fajma import facts
from fajma.config import Alarms
from fajma.errors import InputError
from fajma.vitals import Kind
from tests.bedside import BY, START, WELL, Bedside, loud, reasons, seconds, spo2, told


def with_alarm(value: float = 88) -> Bedside:
    """Whose SpO2 alarm began just now; nothing is sent after that."""
    bedside = Bedside(rules=SiteRules(silent_after=timedelta(days=1)))
    bedside.send(spo2(value), times=3)
    assert told(bedside.decisions) == [Reason.STARTED]
    bedside.decisions.clear()
    return bedside


def test_who_answered_is_called_again_when_the_value_falls_on_within_the_worst_band() -> None:
    bedside = with_alarm(88)
    bedside.acknowledge()
    bedside.send(spo2(86), times=6)
    assert loud(bedside.decisions) == []

    bedside.send(spo2(85), times=1)
    bedside.send(spo2(86), times=1)
    bedside.send(spo2(70), times=2)
    assert told(bedside.decisions) == [Reason.WORSE_SINCE_ANSWERED]
    bedside.decisions.clear()
    bedside.wait(130)
    assert told(bedside.decisions) == [Reason.ESCALATED]


# Reminders and the ladder


def test_a_high_alarm_climbs_the_ladder_and_then_reminds_every_three_minutes() -> None:
    bedside = with_alarm()
    start = bedside.now

    bedside.wait(900)
    story = [(one.reason, (one.at - start).seconds, one.step) for one in bedside.decisions]
    assert story == [
        (Reason.ESCALATED, 120, 1),
        (Reason.ESCALATED, 240, 2),
        (Reason.ESCALATED, 300, 3),
        (Reason.RENOTIFIED, 480, 3),
        (Reason.RENOTIFIED, 660, 3),
        (Reason.RENOTIFIED, 840, 3),
    ]
    assert all(one.announce and one.rings for one in bedside.decisions)


def test_a_medium_alarm_reaches_its_second_step_after_ten_minutes_and_reminds_every_ten() -> None:
    bedside = with_alarm(91)
    start = bedside.now

    bedside.wait(1200)
    assert [(one.reason, (one.at - start).seconds, one.step) for one in bedside.decisions] == [
        (Reason.ESCALATED, 600, 1),
        (Reason.RENOTIFIED, 1200, 1),
    ]


def test_a_low_alarm_reminds_every_half_hour_and_climbs_nowhere() -> None:
    bedside = Bedside(rules=SiteRules(silent_after=timedelta(days=1)))
    bedside.send({Kind.TEMPERATURE: "38.7"}, times=3)
    bedside.decisions.clear()

    bedside.wait(3600)
    assert [(one.reason, one.step) for one in bedside.decisions] == [(Reason.RENOTIFIED, 0)] * 2


def test_a_reminder_has_the_last_value_and_the_limit_of_the_start() -> None:
    bedside = with_alarm()
    bedside.send(spo2(86), every=1)

    (reminder,) = bedside.wait(120)
    assert (reminder.value, reminder.limit.threshold) == (86, 90)  # type: ignore[union-attr]
    assert reminder.measured_at == START + seconds(16)  # type: ignore[union-attr]
    assert reminder.since == START + seconds(5)  # type: ignore[union-attr]


def test_readings_of_an_open_alarm_neither_remind_nor_put_off_a_reminder() -> None:
    bedside = with_alarm(91)

    bedside.send(spo2(91), times=119)
    assert told(bedside.decisions) == []
    bedside.send(spo2(91))
    assert told(bedside.decisions) == [Reason.ESCALATED]


def test_when_time_was_lost_the_steps_keep_their_distance() -> None:
    """We were down for an hour: one step now, the next in its time, not three messages at once."""
    bedside = with_alarm()
    bedside.now += timedelta(hours=1)

    assert told(bedside.note(facts.TimePassed(bedside.now))) == [Reason.ESCALATED]
    assert told(bedside.note(facts.TimePassed(bedside.now))) == []
    assert told(bedside.wait(119)) == []
    assert told(bedside.wait(1)) == [Reason.ESCALATED]


def test_an_episode_that_ends_is_reminded_of_no_more() -> None:
    bedside = with_alarm()
    bedside.send(spo2(97), times=7)
    assert told(bedside.decisions) == [Reason.RECOVERED]

    assert bedside.wait(3600) == []
    assert bedside.state.care == {}


@pytest.mark.parametrize(
    ("again", "ladder"),
    [(0, (0,)), (180, ()), (180, (1, 2)), (180, (0, 60, 60)), (180, (0, 90, 60))],
)
def test_a_schedule_that_makes_no_sense_is_refused(again: int, ladder: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="steps of the ladder") as refused:
        Schedule(seconds(again), tuple(map(seconds, ladder)))
    assert refused.value.code == "schedule_invalid"


# Acknowledgement


def test_an_acknowledgement_stops_reminders_and_the_ladder() -> None:
    bedside = with_alarm()

    (noted,) = bedside.acknowledge("spo2-low-2")
    assert (noted.reason, noted.announce, noted.alarm_id) == (
        Reason.ACKNOWLEDGED,
        False,
        "spo2-low-2",
    )
    bedside.send(spo2(88), times=200)
    assert told(bedside.decisions) == []
    assert bedside.acknowledge("spo2-low-2") == [], "a second one says nothing new"


def test_an_acknowledgement_of_another_alarm_changes_nothing() -> None:
    bedside = with_alarm()

    assert bedside.acknowledge("spo2-low-1") == []
    assert told(bedside.wait(120)) == [Reason.ESCALATED]


def test_all_open_alarms_can_be_acknowledged_at_once() -> None:
    bedside = Bedside(rules=SiteRules(silent_after=timedelta(days=1)))
    bedside.send({Kind.SPO2: 86, Kind.HEART_RATE: 140}, times=3)

    assert {one.alarm_id for one in bedside.acknowledge()} == {"spo2-low-2", "heart_rate-high-2"}
    assert bedside.wait(3600) == []


def test_a_worsening_clears_the_acknowledgement_and_goes_on_from_the_step_reached() -> None:
    bedside = with_alarm(91)
    bedside.wait(600)
    bedside.acknowledge()
    bedside.decisions.clear()

    bedside.send(spo2(88), times=3)
    (worse,) = loud(bedside.decisions)
    assert (worse.reason, worse.priority, worse.step) == (Reason.WORSENED, Priority.HIGH, 1)
    (climbed,) = loud(bedside.wait(120))
    assert (climbed.reason, climbed.step) == (Reason.ESCALATED, 2)


def test_easing_keeps_the_acknowledgement_and_waits_as_long_as_the_milder_band() -> None:
    bedside = with_alarm()
    bedside.acknowledge()
    bedside.send(spo2(91), times=60)
    assert told(bedside.decisions) == []

    other = with_alarm()
    other.send(spo2(91), times=7)
    other.decisions.clear()
    other.wait(595)
    assert [(one.reason, one.priority) for one in loud(other.decisions)] == [
        (Reason.ESCALATED, Priority.MEDIUM)
    ]


# Snoozes


def test_a_snooze_silences_reminders_and_the_ladder_until_it_ends() -> None:
    bedside = with_alarm()

    (noted,) = bedside.snooze(minutes=10)
    assert (noted.reason, noted.announce) == (Reason.SNOOZED, False)
    assert bedside.wait(599) == []
    (again,) = bedside.wait(1)
    assert (again.reason, again.rings, again.step) == (Reason.SNOOZE_ENDED, True, 0)
    assert [one.step for one in bedside.wait(120)] == [1], "the ladder goes on"


def test_no_snooze_lasts_longer_than_ten_minutes() -> None:
    bedside = with_alarm()
    bedside.snooze(minutes=60)

    assert told(bedside.wait(600)) == [Reason.SNOOZE_ENDED]


def test_a_snooze_is_not_broken_by_the_next_reading() -> None:
    """What Nightscout's users suffer from: the next reading of the same alarm rings again."""
    bedside = with_alarm()
    bedside.snooze()

    bedside.send(spo2(88), times=119)
    bedside.send(spo2(86))
    assert told(bedside.decisions) == [Reason.SNOOZE_ENDED], "at its end, not before"


def test_nothing_is_told_twice_within_a_moment() -> None:
    """What ThingsBoard's users suffer from: several inputs of one moment, several messages."""
    bedside = with_alarm()

    for _ in range(5):
        bedside.send(spo2(87), every=0)
        bedside.note(facts.TimePassed(bedside.now))
    assert told(bedside.decisions) == []
    bedside.now += seconds(120)
    for _ in range(5):
        bedside.note(facts.TimePassed(bedside.now))
        bedside.send(spo2(87), every=0)
    assert told(bedside.decisions) == [Reason.ESCALATED]


def test_the_next_band_breaks_a_snooze() -> None:
    bedside = with_alarm(91)
    bedside.snooze()

    bedside.send(spo2(89), times=3)
    assert told(bedside.decisions) == [Reason.WORSENED]
    assert bedside.state.snoozes == {}
    assert told(bedside.wait(120)) == [Reason.ESCALATED]


def test_a_drop_of_three_points_breaks_a_snooze_of_spo2_after_two_samples() -> None:
    bedside = with_alarm()
    bedside.snooze()

    bedside.send(spo2(85))
    bedside.send(spo2(86))
    bedside.send(spo2(85))
    assert told(bedside.decisions) == []
    bedside.send(spo2(85))
    (broken,) = loud(bedside.decisions)
    assert (broken.reason, broken.rings, broken.value) == (  # type: ignore[union-attr]
        Reason.SNOOZE_BROKEN,
        True,
        85,
    )
    assert told(bedside.wait(120)) == [Reason.ESCALATED]


def test_a_drop_breaks_a_snooze_also_after_an_acknowledgement() -> None:
    bedside = with_alarm()
    bedside.acknowledge()
    bedside.snooze()

    bedside.send(spo2(84), times=2)
    assert told(bedside.decisions) == [Reason.SNOOZE_BROKEN]
    assert told(bedside.wait(120)) == [Reason.ESCALATED]


def test_a_drop_that_breaks_no_limit_breaks_no_snooze() -> None:
    bedside = Bedside()
    bedside.send(spo2(99))
    bedside.snooze()

    bedside.send(spo2(93), times=10)
    assert list(bedside.state.snoozes) == ["spo2-low"]


def test_a_snooze_said_ahead_silences_a_medium_alarm_and_tells_of_it_at_its_end() -> None:
    bedside = Bedside(rules=SiteRules(silent_after=timedelta(days=1)))
    bedside.send(spo2(93))
    assert bedside.snooze() == []

    bedside.send(spo2(91), times=4)
    assert Reason.SNOOZED in reasons(bedside.decisions)
    assert told(bedside.decisions) == []
    assert told(bedside.wait(600)) == [Reason.SNOOZE_ENDED]


def test_a_snooze_said_ahead_does_not_silence_a_high_alarm() -> None:
    bedside = Bedside()
    bedside.send(WELL)
    bedside.snooze()

    bedside.send(spo2(88), times=3)
    assert told(bedside.decisions) == [Reason.STARTED]


def test_an_alarm_that_comes_and_goes_within_a_snooze_is_not_told_of() -> None:
    bedside = Bedside()
    bedside.send(spo2(93))
    bedside.snooze()
    bedside.send(spo2(91), times=4)
    bedside.send(spo2(95), times=8)

    assert told(bedside.decisions) == []
    assert Reason.ENDED_UNTOLD in reasons(bedside.decisions)
    bedside.send(spo2(95), times=150)
    assert told(bedside.decisions) == []


def test_the_end_of_a_snooze_tells_nothing_of_what_was_acknowledged() -> None:
    bedside = with_alarm()
    bedside.snooze()
    bedside.acknowledge()

    assert bedside.wait(3600) == []


def test_a_snooze_of_one_direction_leaves_the_other_and_other_kinds_alone() -> None:
    bedside = with_alarm()
    bedside.snooze()

    bedside.send({Kind.HEART_RATE: 140}, times=3)
    assert [one.alarm_id for one in loud(bedside.decisions)] == ["heart_rate-high-5"]


def test_an_alarm_that_begins_as_a_snooze_ends_is_told_once() -> None:
    bedside = Bedside(rules=SiteRules(silent_after=timedelta(days=1)))
    bedside.send(spo2(93))
    bedside.snooze(minutes=0.5)
    bedside.send(spo2(91), times=2)
    bedside.now += seconds(30)  # nobody looked at the clock when it ended

    bedside.send(spo2(91), every=0)
    bedside.wait(60)
    assert told(bedside.decisions) == [Reason.STARTED]


def test_the_defaults_are_those_of_the_documentation() -> None:
    assert {priority: each.again.seconds for priority, each in SCHEDULES.items()} == {
        Priority.HIGH: 180,
        Priority.MEDIUM: 600,
        Priority.LOW: 1800,
    }


def test_a_ward_may_have_a_ladder_of_its_own_which_goes_with_the_patient() -> None:
    ward = {"again_high_s": 30, "ladder_high_s": [0]}
    settings = Alarms.model_validate({"silent_after_s": 3600, "wards": {"icu": ward}})
    rules = rules_from(settings)
    bedside = Bedside(rules=rules)
    bedside.note(facts.Profiled(bedside.now, facts.AgeBand.UNKNOWN, None, copd=False, ward="icu"))
    bedside.send(spo2(88), times=4)
    bedside.decisions.clear()

    assert told(bedside.wait(60)) == [Reason.RENOTIFIED] * 2
    bedside.note(facts.Profiled(bedside.now, facts.AgeBand.UNKNOWN, None, copd=False, ward="med"))
    assert told(bedside.wait(180)) == [Reason.ESCALATED] * 2, "the site's ladder"
    assert rules.schedules_of("icu")[Priority.MEDIUM] == SCHEDULES[Priority.MEDIUM]


@pytest.mark.parametrize(
    ("then", "expected"),
    [
        ((85, 85), [Reason.WORSE_SINCE_ANSWERED]),
        ((86, 86), []),
        ((85, 88, 85), []),  # not in a row
    ],
)
def test_a_drop_after_an_answer_is_three_points_in_two_samples_in_a_row(
    then: tuple[int, ...], expected: list[Reason]
) -> None:
    bedside = with_alarm(88)
    bedside.acknowledge()
    bedside.decisions.clear()
    for value in then:
        bedside.send(spo2(value))

    assert told(bedside.decisions) == expected


def test_a_drop_after_an_answer_that_breaks_no_limit_calls_nobody() -> None:
    bedside = with_alarm(88)
    bedside.send(spo2(98))
    bedside.acknowledge()
    bedside.decisions.clear()
    bedside.send(spo2(94), times=3)

    assert told(bedside.decisions) == []


def test_what_falls_on_before_anybody_answered_is_told_at_once_too() -> None:
    bedside = with_alarm(89)
    bedside.send(spo2(72), times=2)
    assert told(bedside.decisions) == [Reason.WORSE_SINCE_TOLD]
    bedside.decisions.clear()
    bedside.send(spo2(70), times=10)
    assert told(bedside.decisions) == [], "two points further are no news"


def test_who_answers_an_old_message_has_seen_the_value_of_that_message() -> None:
    bedside = with_alarm(89)
    bedside.send(spo2(87))
    bedside.send(spo2(86))  # three points, but one sample
    bedside.acknowledge()
    bedside.decisions.clear()
    bedside.send(spo2(86))

    assert told(bedside.decisions) == [Reason.WORSE_SINCE_ANSWERED]


def test_other_signs_that_go_much_further_in_the_worst_band_are_told_too() -> None:
    bedside = Bedside(rules=SiteRules(silent_after=timedelta(days=1)))
    bedside.send({Kind.HEART_RATE: 140}, times=3)
    bedside.acknowledge()
    bedside.decisions.clear()
    bedside.send({Kind.HEART_RATE: 159}, times=3)
    assert told(bedside.decisions) == []
    bedside.send({Kind.HEART_RATE: 160}, times=2)
    assert told(bedside.decisions) == [Reason.WORSE_SINCE_ANSWERED]


def test_a_reminder_says_since_when_the_limit_of_now_is_broken() -> None:
    bedside = with_alarm(91)
    bedside.acknowledge()
    bedside.send(spo2(91), times=100)
    before = bedside.now
    bedside.send(spo2(88), times=3)
    bedside.decisions.clear()
    (reminder,) = bedside.wait(120)

    assert reminder.since == before + seconds(5)  # type: ignore[union-attr]


def test_a_pause_does_not_silence_a_high_alarm_that_began_after_the_paused_one_was_over() -> None:
    bedside = with_alarm(88)
    bedside.snooze()
    bedside.send(spo2(97), times=8)
    bedside.decisions.clear()
    bedside.send(spo2(91), times=4)
    assert told(bedside.decisions) == [], "a medium one it does"
    bedside.send(spo2(88), times=4)
    assert told(bedside.decisions) == [Reason.WORSENED]


def test_what_a_pause_kept_from_being_told_can_be_answered_where_it_is_listed() -> None:
    bedside = Bedside(rules=SiteRules(silent_after=timedelta(days=1)))
    bedside.snooze()
    bedside.send(spo2(91), times=4)
    assert told(bedside.decisions) == []

    bedside.acknowledge()
    assert bedside.decisions[-1].reason is Reason.ACKNOWLEDGED
    bedside.decisions.clear()
    assert told(bedside.wait(1200)) == []
    bedside.send(spo2(97), times=8)
    assert told(bedside.decisions) == [Reason.RECOVERED]


def test_an_answer_lapses_after_half_a_shift_and_the_ladder_goes_on() -> None:
    bedside = with_alarm(88)
    bedside.acknowledge()
    bedside.decisions.clear()
    assert told(bedside.wait(4 * 3600 - 1)) == []
    assert told(bedside.wait(1)) == [Reason.ANSWER_LAPSED]
    assert told(bedside.wait(120)) == [Reason.ESCALATED]


def test_an_answer_to_an_older_message_is_none_to_what_got_worse_since() -> None:
    bedside = with_alarm(91)
    bedside.send(spo2(88), times=4)
    bedside.decisions.clear()
    bedside.note(facts.Acknowledged(bedside.now, BY, "spo2-low-2", "medium"))
    assert told(bedside.wait(120)) == [Reason.ESCALATED]

    bedside.note(facts.Acknowledged(bedside.now, BY, "spo2-low-2", "high"))
    assert told(bedside.wait(1200)) == []


def test_a_reading_after_the_end_of_a_pause_does_not_break_it_as_well() -> None:
    bedside = with_alarm(91)
    bedside.snooze(minutes=1)
    bedside.send(spo2(91), times=11)
    bedside.decisions.clear()
    bedside.send(spo2(87), every=5.5, times=4)
    assert told(bedside.decisions).count(Reason.SNOOZE_BROKEN) == 0


def test_a_limit_of_one_patient_on_a_new_side_is_confirmed_as_the_site_says() -> None:
    bedside = Bedside(rules=SiteRules(confirmation=Confirmation(1, 1, 1)))
    bedside.limit(Kind.DIASTOLIC, "high", "100")

    assert told(bedside.send({Kind.DIASTOLIC: 120})) == [Reason.STARTED]
