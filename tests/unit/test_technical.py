"""Technical alarms: silence, a probe that is off, readings of no use."""

import pytest

from bots.alerts import outage
from bots.alerts.alarm import Reason
from bots.alerts.alarm_state import Trouble
from bots.alerts.limits import Priority
from bots.alerts.technical import PRIORITIES, TechnicalDecision
from bots.alerts.text import render
from fajma import facts
from fajma.language import Language
from fajma.vitals import Age, Clock, DeviceId, Kind
from tests.bedside import DEVICE, START, WELL, Bedside, loud, reasons, seconds, spo2, told

OTHER = DeviceId("A4CF12F0FFFF")
NO_PULSE = frozenset({Kind.HEART_RATE, Kind.SPO2})


def technical(bedside: Bedside) -> list[TechnicalDecision]:
    return [one for one in loud(bedside.decisions) if isinstance(one, TechnicalDecision)]


def story(bedside: Bedside) -> list[tuple[Trouble, Reason]]:
    return [(one.trouble, one.reason) for one in technical(bedside)]


# Silence


def test_a_worn_monitor_that_sends_nothing_for_ninety_seconds_is_told_with_the_last_time() -> None:
    bedside = Bedside()
    bedside.send(WELL, times=10)
    last = bedside.now

    assert bedside.wait(89) == []
    (alarm,) = bedside.wait(1)
    assert isinstance(alarm, TechnicalDecision)
    assert (alarm.trouble, alarm.reason) == (Trouble.NO_READINGS, Reason.STARTED)
    assert (alarm.priority, alarm.rings) == (Priority.MEDIUM, True)
    assert alarm.last_good_at == alarm.since == last
    assert alarm.at == last + seconds(90)
    assert alarm.alarm_id == f"no_readings-{DEVICE}-n1"


def test_a_monitor_that_never_sent_anything_is_missed_too() -> None:
    bedside = Bedside()

    (alarm,) = bedside.wait(90)
    assert isinstance(alarm, TechnicalDecision)
    assert (alarm.trouble, alarm.last_good_at) == (Trouble.NO_READINGS, None)


def test_of_two_monitors_the_silent_one_is_named_with_its_own_last_time() -> None:
    bedside = Bedside()
    bedside.note(facts.Worn(bedside.now, OTHER))
    bedside.send(WELL, times=40)
    (never,) = technical(bedside)
    assert (never.device, never.last_good_at, never.one_of_several) == (OTHER, None, True)
    words = render(never, bed="4", initials="A.D.", language=Language.FRENCH, zone="UTC").body
    assert "Lit 4 A.D. · moniteur FFFF · " in words
    assert "aucune" in words

    bedside = Bedside()
    bedside.note(facts.Worn(bedside.now, OTHER))
    bedside.send(WELL, device=OTHER)
    last = bedside.now
    bedside.send(WELL, times=40)
    (silent,) = technical(bedside)
    assert (silent.device, silent.last_good_at) == (OTHER, last)


def test_the_only_monitor_is_not_named() -> None:
    bedside = Bedside()
    (alarm,) = bedside.wait(90)
    assert isinstance(alarm, TechnicalDecision)
    words = render(alarm, bed="4", initials="A.D.", language=Language.FRENCH, zone="UTC").body
    assert "moniteur" not in words


def test_a_monitor_that_nobody_wears_is_not_missed() -> None:
    bedside = Bedside(worn=False)
    bedside.send(WELL, times=3)

    assert bedside.wait(3600) == []


@pytest.mark.parametrize(
    ("every", "allowed"), [(5, 90), (30, 90), (60, 180), (100, 300), (200, 300)]
)
def test_a_monitor_that_sends_seldom_is_missed_after_three_intervals_but_within_five_minutes(
    every: float, allowed: float
) -> None:
    bedside = Bedside()
    bedside.send(WELL)
    bedside.send(WELL, every=every, times=5)
    bedside.decisions.clear()

    silent = bedside.wait(allowed - 1)
    assert silent == []
    assert told(bedside.wait(1)) == [Reason.STARTED]


def test_a_monitor_that_sends_in_bundles_is_judged_by_the_time_between_bundles() -> None:
    bedside = Bedside()
    bedside.send(WELL)
    for _ in range(10):
        bedside.wait(80)
        bedside.send(WELL, times=6, every=0)

    assert story(bedside) == []
    assert bedside.wait(150) == []


def test_after_one_long_pause_a_monitor_is_soon_judged_as_before() -> None:
    bedside = Bedside()
    bedside.send(WELL, times=3)
    bedside.send(WELL, every=85)
    bedside.send(WELL, times=30)

    assert told(bedside.wait(90)) == [Reason.STARTED]


def test_a_monitor_that_left_the_broker_is_told_after_ten_seconds() -> None:
    bedside = Bedside()
    bedside.send(WELL, times=3)
    bedside.note(facts.Connection(bedside.now, DEVICE, online=False))

    assert bedside.wait(9) == []
    assert [one.at for one in bedside.wait(1)] == [START + seconds(25)]


@pytest.mark.parametrize("back", ["connected", "heard"])
def test_a_monitor_that_comes_back_within_the_grace_is_not_told(back: str) -> None:
    bedside = Bedside()
    bedside.send(WELL, times=3)
    bedside.note(facts.Connection(bedside.now, DEVICE, online=False))
    if back == "connected":
        bedside.wait(5)
        bedside.note(facts.Connection(bedside.now, DEVICE, online=True))
    else:
        bedside.send(WELL)

    assert bedside.wait(80) == []


def test_readings_that_are_late_do_not_count_as_heard() -> None:
    bedside = Bedside()
    bedside.send(WELL, times=3)

    bedside.send(WELL, times=18, age=Age.LATE, measured=START)
    assert story(bedside) == [(Trouble.NO_READINGS, Reason.STARTED)]


def test_silence_is_reminded_of_until_acknowledged_and_ends_after_the_dwell() -> None:
    bedside = Bedside()
    bedside.wait(90)
    bedside.wait(600)
    assert story(bedside) == [
        (Trouble.NO_READINGS, Reason.STARTED),
        (Trouble.NO_READINGS, Reason.ESCALATED),
    ]
    bedside.acknowledge()
    bedside.decisions.clear()

    bedside.wait(7200)
    bedside.send(WELL, times=6)
    assert story(bedside) == []
    bedside.send(WELL)
    assert story(bedside) == [(Trouble.NO_READINGS, Reason.RECOVERED)]
    assert bedside.state.troubles == ()
    assert bedside.state.care == {}


def test_a_single_reading_after_a_silence_does_not_end_it() -> None:
    bedside = Bedside()
    bedside.wait(90)
    bedside.decisions.clear()

    bedside.send(WELL)
    bedside.wait(100)
    bedside.send(WELL, times=6)
    assert told(bedside.decisions) == []
    bedside.send(WELL)
    assert told(bedside.decisions) == [Reason.RECOVERED]


def test_the_silence_of_one_of_two_monitors_is_told_though_the_other_sends() -> None:
    bedside = Bedside()
    bedside.note(facts.Worn(bedside.now, OTHER))
    bedside.send(WELL, times=18)
    bedside.send(WELL, device=OTHER, every=0)

    bedside.send(WELL, times=18)
    (alarm,) = technical(bedside)
    assert (alarm.trouble, alarm.device) == (Trouble.NO_READINGS, OTHER)


def test_during_an_outage_silence_is_folded_and_who_is_silent_after_it_counts_anew() -> None:
    bedside = Bedside()
    bedside.send(WELL, times=3)
    bedside.note(facts.OutageStarted(bedside.now))
    bedside.wait(1200)
    assert reasons(bedside.decisions) == [Reason.FOLDED]

    bedside.note(facts.OutageEnded(bedside.now))
    assert reasons(bedside.decisions)[1:] == [Reason.ENDED_UNTOLD]
    assert bedside.wait(89) == []
    (alarm,) = bedside.wait(1)
    assert alarm.reason is Reason.STARTED
    assert isinstance(alarm, TechnicalDecision)
    assert alarm.since == START + seconds(15), "silent since before the outage"


def test_who_comes_back_as_an_outage_ends_is_not_told_at_all() -> None:
    bedside = Bedside()
    bedside.send(WELL, times=3)
    bedside.note(facts.OutageStarted(bedside.now))
    bedside.wait(1200)
    bedside.note(facts.OutageEnded(bedside.now))
    bedside.send(WELL, times=20)

    assert told(bedside.decisions) == []


def test_a_silence_that_was_told_before_an_outage_is_not_repeated_in_it() -> None:
    bedside = Bedside()
    bedside.wait(90)
    bedside.note(facts.OutageStarted(bedside.now))
    bedside.decisions.clear()
    assert bedside.wait(3000) == []

    bedside.note(facts.OutageEnded(bedside.now))
    assert bedside.wait(599) == [], "no storm as it ends"
    assert told(bedside.wait(1)) == [Reason.ESCALATED]


# The probe


def test_a_probe_that_is_off_for_thirty_seconds_is_told() -> None:
    bedside = Bedside()
    bedside.send(WELL, times=4)
    last = bedside.now

    bedside.send(contact=False, times=6)
    assert story(bedside) == []
    bedside.send(contact=False)
    (alarm,) = technical(bedside)
    assert (alarm.trouble, alarm.priority) == (Trouble.PROBE_OFF, Priority.MEDIUM)
    assert alarm.since == last + seconds(5)
    assert alarm.last_good_at == last


@pytest.mark.parametrize("missing", [Kind.HEART_RATE, Kind.SPO2])
def test_a_pulse_sign_that_came_regularly_is_missed_while_others_come(missing: Kind) -> None:
    values = {**WELL, Kind.TEMPERATURE: 37}
    left = {kind: value for kind, value in values.items() if kind is not missing}
    bedside = Bedside()
    bedside.send(values, times=4)

    bedside.send(left, times=7)
    assert story(bedside) == [(Trouble.PROBE_OFF, Reason.STARTED)]


def test_a_sign_that_came_only_now_and_then_is_not_missed() -> None:
    bedside = Bedside()
    for _ in range(10):
        bedside.send(WELL, times=3)
        bedside.send({Kind.HEART_RATE: 80}, times=12)

    assert story(bedside) == []


def test_a_temperature_that_no_longer_comes_is_no_alarm() -> None:
    bedside = Bedside()
    bedside.send({**WELL, Kind.TEMPERATURE: 37}, times=4)
    bedside.send(WELL, times=60)

    assert told(bedside.decisions) == []


def test_one_good_reading_begins_the_wait_for_a_lost_probe_anew() -> None:
    bedside = Bedside()
    bedside.send(WELL, times=4)
    bedside.send(contact=False, times=6)
    bedside.send(WELL)
    bedside.send(contact=False, times=6)

    assert story(bedside) == []


def test_the_alarm_of_a_lost_probe_ends_after_the_dwell() -> None:
    bedside = Bedside()
    bedside.send(WELL, times=4)
    bedside.send(contact=False, times=7)
    bedside.send(WELL, times=4)
    bedside.send(contact=False)
    bedside.send(WELL, times=6)
    assert len(story(bedside)) == 1

    bedside.send(WELL)
    assert story(bedside)[1:] == [(Trouble.PROBE_OFF, Reason.RECOVERED)]


@pytest.mark.parametrize("how", ["off", "silent", "unknown"])
def test_losing_the_signal_closes_no_alarm_of_a_vital_sign(how: str) -> None:
    bedside = Bedside()
    bedside.send(spo2(86), times=4)
    if how == "off":
        bedside.send(contact=False, times=200)
    elif how == "silent":
        bedside.wait(1000)
    else:
        bedside.send(WELL, times=200, age=Age.UNKNOWN)

    assert Reason.RECOVERED not in reasons(bedside.decisions)
    assert bedside.state.tracks["spo2-low"].episode is not None  # type: ignore[index]
    assert len(story(bedside)) >= 1


# Readings of no use


def test_readings_of_unknown_age_alone_are_told_after_a_minute_and_are_no_silence() -> None:
    bedside = Bedside()
    bedside.send(WELL, times=4)

    bedside.send(WELL, times=12, age=Age.UNKNOWN)
    assert story(bedside) == []
    bedside.send(WELL, times=30, age=Age.UNKNOWN)
    assert story(bedside) == [(Trouble.UNKNOWN_AGE, Reason.STARTED)]
    bedside.send(WELL, times=7)
    assert story(bedside)[1:] == [(Trouble.UNKNOWN_AGE, Reason.RECOVERED)]


def test_a_live_reading_among_those_of_unknown_age_begins_the_wait_anew() -> None:
    bedside = Bedside()
    for _ in range(5):
        bedside.send(WELL, times=11, age=Age.UNKNOWN)
        bedside.send(WELL)

    assert story(bedside) == []


def test_when_readings_of_unknown_age_cease_too_the_silence_is_told_as_well() -> None:
    bedside = Bedside()
    bedside.send(WELL, times=14, age=Age.UNKNOWN)
    bedside.wait(90)

    assert [one.trouble for one in technical(bedside)] == [
        Trouble.UNKNOWN_AGE,
        Trouble.NO_READINGS,
    ]


def test_a_wrong_clock_is_told_once_a_day_with_low_priority() -> None:
    bedside = Bedside()
    bedside.send(WELL, times=12, clock=Clock.WRONG)
    assert story(bedside) == []
    bedside.send(WELL, clock=Clock.WRONG)
    (alarm,) = technical(bedside)
    assert (alarm.trouble, alarm.priority) == (Trouble.WRONG_CLOCK, Priority.LOW)

    day = 24 * 3600
    bedside.send(WELL, times=day // 60 - 1, every=60, clock=Clock.WRONG)
    assert len(story(bedside)) == 1
    bedside.send(WELL, every=60, clock=Clock.WRONG)
    assert story(bedside)[1:] == [(Trouble.WRONG_CLOCK, Reason.RENOTIFIED)]


def test_a_reminder_of_a_wrong_clock_counts_as_the_word_of_its_day() -> None:
    bedside = Bedside()
    bedside.send(WELL, times=13, clock=Clock.WRONG)
    bedside.send(WELL, times=24 * 60, every=60, clock=Clock.WRONG)
    bedside.send(WELL, times=7)
    bedside.send(WELL, times=13, clock=Clock.WRONG)

    assert reasons(bedside.decisions)[-3:] == [
        Reason.RENOTIFIED,
        Reason.RECOVERED,
        Reason.TOLD_TODAY,
    ]


def test_a_clock_that_is_wrong_again_on_the_same_day_is_not_told_again() -> None:
    bedside = Bedside()
    bedside.send(WELL, times=13, clock=Clock.WRONG)
    bedside.send(WELL, times=7)
    bedside.send(WELL, times=13, clock=Clock.WRONG)
    bedside.send(WELL, times=7)

    assert story(bedside) == [
        (Trouble.WRONG_CLOCK, Reason.STARTED),
        (Trouble.WRONG_CLOCK, Reason.RECOVERED),
    ]
    assert reasons(bedside.decisions)[2:] == [Reason.TOLD_TODAY, Reason.ENDED_UNTOLD]


def test_readings_with_a_wrong_clock_are_judged_all_the_same() -> None:
    bedside = Bedside()
    bedside.send(spo2(86), times=3, clock=Clock.WRONG)

    assert told(bedside.decisions) == [Reason.STARTED]


def test_an_implausible_pulse_in_three_of_four_readings_is_told_at_once_with_high_priority() -> (
    None
):
    bedside = Bedside()
    bedside.send(WELL, times=4)
    bedside.send(unusable=NO_PULSE, times=2)
    bedside.send(WELL)
    assert story(bedside) == []

    bedside.send({Kind.HEART_RATE: 80}, unusable=frozenset({Kind.SPO2}))
    (alarm,) = technical(bedside)
    assert (alarm.trouble, alarm.reason) == (Trouble.NO_USABLE_PULSE, Reason.STARTED)
    assert alarm.priority is Priority.HIGH
    assert told(bedside.wait(120)) == [Reason.STARTED, Reason.ESCALATED], "and silence"


def test_an_implausible_temperature_says_nothing_about_the_pulse() -> None:
    bedside = Bedside()
    bedside.send(WELL, times=20, unusable=frozenset({Kind.TEMPERATURE}))

    assert told(bedside.decisions) == []


def test_an_unusable_pulse_is_no_missing_one() -> None:
    bedside = Bedside()
    bedside.send(WELL, times=4)
    bedside.send({Kind.TEMPERATURE: 37}, unusable=NO_PULSE, times=20)

    assert story(bedside) == [(Trouble.NO_USABLE_PULSE, Reason.STARTED)]


def test_a_probe_that_comes_off_does_not_end_the_alarm_of_an_unusable_pulse() -> None:
    bedside = Bedside()
    bedside.send(WELL, times=4)
    bedside.send(unusable=NO_PULSE, times=3)
    bedside.send(contact=False, times=60)

    assert {one.trouble for one in technical(bedside)} == {
        Trouble.NO_USABLE_PULSE,
        Trouble.PROBE_OFF,
    }
    assert Reason.RECOVERED not in told(bedside.decisions)
    bedside.send(WELL, times=8)
    ended = {one.trouble for one in technical(bedside) if one.reason is Reason.RECOVERED}
    assert ended == {Trouble.NO_USABLE_PULSE, Trouble.PROBE_OFF}


# Taken off


def test_taking_a_monitor_off_ends_its_technical_alarms_silently() -> None:
    bedside = Bedside()
    bedside.wait(90)
    bedside.decisions.clear()

    bedside.note(facts.TakenOff(bedside.now, DEVICE))
    assert reasons(bedside.decisions) == [Reason.TAKEN_OFF]
    assert bedside.wait(7200) == []
    assert bedside.state.care == {}


def test_taking_the_last_monitor_off_says_once_that_open_alarms_are_over() -> None:
    bedside = Bedside()
    bedside.send({Kind.SPO2: 86, Kind.HEART_RATE: 125}, times=4)
    bedside.decisions.clear()

    bedside.note(facts.TakenOff(bedside.now, DEVICE))
    assert [(one.alarm_id, one.reason) for one in bedside.decisions] == [
        ("spo2-low-2", Reason.NOT_MONITORED),
        ("heart_rate-high-2", Reason.TAKEN_OFF),
    ]
    assert [one.rings for one in loud(bedside.decisions)] == [False]
    assert bedside.wait(7200) == []
    assert bedside.state.tracks == {}


def test_taking_one_of_two_monitors_off_ends_no_alarm_of_a_vital_sign() -> None:
    bedside = Bedside()
    bedside.note(facts.Worn(bedside.now, OTHER))
    bedside.send(spo2(86), times=3)
    bedside.note(facts.TakenOff(bedside.now, OTHER))

    assert told(bedside.wait(120))[0] is Reason.STARTED, "the silence of the one still worn"
    assert bedside.state.tracks["spo2-low"].episode is not None  # type: ignore[index]


def test_a_reading_from_before_a_monitor_was_taken_off_that_comes_after_is_late() -> None:
    bedside = Bedside()
    bedside.send(spo2(86), times=2)
    before = bedside.now
    bedside.now += seconds(1)
    bedside.note(facts.TakenOff(bedside.now, DEVICE))

    bedside.send(spo2(86), measured=before)
    assert told(bedside.decisions) == []
    assert bedside.state.heard == {}


def test_a_monitor_worn_again_is_missed_from_then_on() -> None:
    bedside = Bedside()
    bedside.send(WELL, times=4)
    bedside.note(facts.TakenOff(bedside.now, DEVICE))
    bedside.wait(3600)
    bedside.note(facts.Worn(bedside.now, DEVICE))

    assert bedside.wait(89) == []
    assert told(bedside.wait(1)) == [Reason.STARTED]


def test_every_trouble_has_a_priority() -> None:
    assert set(PRIORITIES) == set(Trouble)


def test_a_monitor_that_comes_back_for_a_moment_and_is_silent_again_is_told_again() -> None:
    bedside = Bedside()
    bedside.send(WELL, times=3)
    bedside.wait(90)
    bedside.acknowledge()
    bedside.send(WELL, times=5)
    bedside.decisions.clear()

    assert told(bedside.wait(300)) == [Reason.AGAIN_SINCE_ANSWERED]


def test_a_pulse_that_is_unusable_again_before_its_alarm_was_over_is_told_again() -> None:
    bedside = Bedside()
    bedside.send({Kind.TEMPERATURE: 37}, times=3, unusable=NO_PULSE)
    bedside.acknowledge()
    bedside.send(WELL, times=4)
    bedside.decisions.clear()
    bedside.send({Kind.TEMPERATURE: 37}, times=3, unusable=NO_PULSE)

    assert story(bedside) == [(Trouble.NO_USABLE_PULSE, Reason.AGAIN_SINCE_ANSWERED)]


def test_in_quiet_time_silence_is_no_news_and_open_alarms_are_told_all_the_same() -> None:
    bedside = Bedside()
    bedside.send(spo2(88), times=4)
    bedside.decisions.clear()
    bedside.now += seconds(125)
    bedside.note(facts.TimePassed(bedside.now, quiet=True))
    assert told(bedside.decisions) == [Reason.ESCALATED]
    bedside.note(facts.TimePassed(bedside.now, quiet=False))
    assert story(bedside) == [(Trouble.NO_READINGS, Reason.STARTED)]


def test_a_monitor_that_sends_once_a_minute_is_not_silent_between_two_readings() -> None:
    bedside = Bedside()
    bedside.send(WELL, times=5, every=60)
    usual = bedside.rules.silent_after

    assert not outage.is_silent(bedside.state, bedside.now + seconds(74), usual)
    assert outage.is_silent(bedside.state, bedside.now + seconds(75), usual)
