"""How alarm quality is scored, on days made by hand; and that real recordings are played right."""

import json
import os
from decimal import Decimal
from pathlib import Path

import pytest

from benchmarks.alarm_quality import score_day, summary
from benchmarks.alarm_quality_real import played, recordings, replay
from benchmarks.alarm_quality_score import (
    Message,
    Score,
    found_of,
    interval,
    mildest_limits,
    quantile,
    score,
)
from benchmarks.alarm_quality_seeds import (
    DEVELOPMENT,
    defaults_digest,
    frozen,
    held_out,
    seeds_of,
)
from benchmarks.alarm_quality_table import BEGIN, END, PAGE, put, quality
from benchmarks.alarm_ways import each_reading, edge, ours, reading_of
from benchmarks.patient_days import EVERY_S, TECHNICAL, Cause, Event, PatientDay, Sent
from bots.alerts.limits import Confirmation, default_rules
from fajma.vitals import Age, Kind

LENGTH_S = 600


def day(*events: Event, spo2: dict[int, int] | None = None, copd: bool = False) -> PatientDay:
    """Ten minutes at 97 %, but for the seconds given."""
    values = [97 - 0.0] * (LENGTH_S // EVERY_S)
    for at_s, value in (spo2 or {}).items():
        values[at_s // EVERY_S] = float(value)
    sent = tuple(
        Sent(place * EVERY_S, place * EVERY_S, {Kind.SPO2: Decimal(int(value))}, None, None)
        for place, value in enumerate(values)
    )
    return PatientDay(0, copd, LENGTH_S, sent, events, {Kind.SPO2: values})


def low(start_s: int, end_s: int, value: int = 85) -> dict[int, int]:
    return dict.fromkeys(range(start_s, end_s, EVERY_S), value)


APNOEA = Event(Cause.APNOEA, 100, 200)


def test_an_event_is_found_by_an_alarm_of_its_track_and_timed_from_the_broken_limit():
    one = score(day(APNOEA, spo2=low(130, 180)), [Message(145, "spo2-low")])

    assert one.delays_s == {Cause.APNOEA: [15.0]}
    assert one.false.total() == 0
    assert (one.alarms, one.messages) == (1, 1)


@pytest.mark.parametrize(("at_s", "found"), [(99, False), (100, True), (260, True), (261, False)])
def test_the_window_of_an_event_ends_a_minute_after_it(at_s: int, found: bool):  # noqa: FBT001
    one = score(day(APNOEA, spo2=low(130, 180)), [Message(at_s, "spo2-low")])

    assert found_of(one.delays_s[Cause.APNOEA]) == (int(found), 1)
    assert one.false.total() == int(not found)


def test_an_alarm_before_the_limit_is_broken_counts_as_no_delay():
    one = score(day(APNOEA, spo2=low(130, 180)), [Message(110, "spo2-low")])

    assert one.delays_s == {Cause.APNOEA: [0.0]}


def test_an_alarm_of_another_track_finds_nothing_and_is_false():
    one = score(day(APNOEA, spo2=low(130, 180)), [Message(145, "temperature-high")])

    assert one.delays_s == {Cause.APNOEA: [None]}
    assert one.false == {"other_track": 1}


def test_an_event_that_breaks_no_limit_is_not_asked_for():
    one = score(day(APNOEA, spo2=low(130, 180, 93)), [])

    assert one.delays_s == {}
    assert one.unreachable == {Cause.APNOEA: 1}


def test_a_copd_patient_is_held_against_88_percent():
    at_90 = score(day(APNOEA, spo2=low(130, 180, 90), copd=True), [Message(10, "spo2-low")])
    at_87 = score(day(APNOEA, spo2=low(130, 180, 87), copd=True), [])

    assert at_90.unreachable == {Cause.APNOEA: 1}
    assert at_90.false == {"rest_copd": 1}
    assert at_87.delays_s == {Cause.APNOEA: [None]}


def test_the_end_of_an_episode_is_a_message_and_no_alarm():
    told = [Message(145, "spo2-low"), Message(230, "spo2-low", over=True)]

    one = score(day(APNOEA, spo2=low(130, 180)), told)

    assert (one.alarms, one.messages) == (1, 2)
    assert found_of(one.delays_s[Cause.APNOEA]) == (1, 1)


@pytest.mark.parametrize(("over", "already_open"), [(False, 1), (True, 0)])
def test_an_event_that_is_missed_because_its_alarm_was_open_is_told_apart(
    over: bool,  # noqa: FBT001
    already_open: int,
):
    told = [Message(20, "spo2-low"), *([Message(60, "spo2-low", over=True)] if over else [])]

    one = score(day(APNOEA, spo2=low(130, 180)), told)

    assert one.delays_s == {Cause.APNOEA: [None]}
    assert one.already_open[Cause.APNOEA] == already_open


@pytest.mark.parametrize(
    ("event", "cause"),
    [
        (Event(Cause.MOTION, 40, 60), "motion"),
        (Event(Cause.EXERCISE, 40, 60), "exercise"),
        (Event(Cause.PROBE_OFF, 40, 60), "probe_off"),
        (None, "rest"),
    ],
)
def test_a_false_alarm_is_counted_by_what_happened(event: Event | None, cause: str):
    one = score(day(*([event] if event else [])), [Message(50, "spo2-low")])

    assert one.false == {cause: 1}


def test_a_false_alarm_that_is_right_about_the_value_is_told_apart():
    one = score(day(spo2=low(130, 150)), [Message(145, "spo2-low"), Message(300, "spo2-low")])

    assert one.false == {"rest_true_breach": 1, "rest": 1}


def test_a_technical_event_wants_a_technical_alarm_at_once():
    off = Event(Cause.PROBE_OFF, 100, 300)

    told = score(day(off), [Message(130, TECHNICAL)])
    silent = score(day(off), [])

    assert told.delays_s == {Cause.PROBE_OFF: [30.0]}
    assert silent.delays_s == {Cause.PROBE_OFF: [None]}


def test_a_breach_in_late_readings_counts_from_their_arrival():
    one = score(day(Event(Cause.LATE_BREACH, 100, 300)), [Message(305, "during_outage")])

    assert one.delays_s == {Cause.LATE_BREACH: [5.0]}


def test_scores_add_up():
    total = Score()
    for _ in range(3):
        total.add(score(day(APNOEA, spo2=low(130, 180)), [Message(145, "spo2-low")]))

    assert found_of(total.delays_s[Cause.APNOEA]) == (3, 3)
    assert total.days == pytest.approx(3 * LENGTH_S / 86_400)
    assert total.alarms == 3


def test_quantiles_are_those_of_found_events():
    delays_s = [None, 5.0, 10.0, 15.0, 20.0]

    assert quantile(delays_s, 0.5) == 10.0
    assert quantile(delays_s, 0.95) == 20.0
    assert quantile([None], 0.5) is None


def test_the_interval_of_a_share_is_wilson_s():
    low_end, high_end = interval(80, 91)

    assert (round(low_end, 3), round(high_end, 3)) == (0.796, 0.931)
    assert interval(0, 0) == (0.0, 1.0)
    assert interval(21, 21)[1] == pytest.approx(1.0)


# --- ways to alarm ---


def test_the_engine_tells_a_lasting_fall_once_and_its_end_once():
    told = list(ours(day(spo2=low(130, 180, 88))))

    assert told == [Message(140, "spo2-low"), Message(210, "spo2-low", over=True)]


def test_the_naive_ways_tell_each_reading_or_each_crossing():
    fall = day(spo2=low(130, 145, 88) | low(160, 165, 88))

    assert [m.at_s for m in each_reading(fall)] == [130, 135, 140, 160]
    assert [(m.at_s, m.over) for m in edge(fall)] == [
        (130, False), (145, True), (160, False), (165, True),
    ]  # fmt: skip


def test_a_reading_is_what_the_log_would_hold():
    values = {Kind.HEART_RATE: Decimal(5), Kind.SPO2: Decimal(92)}

    reading = reading_of(Sent(5, 65, values, None, None))

    assert reading is not None
    assert reading.values == {Kind.SPO2: Decimal(92)}
    assert reading.age is Age.LATE
    unusable = reading_of(Sent(5, 5, {Kind.HEART_RATE: Decimal(5)}, None, None))
    assert unusable is not None
    assert (unusable.values, unusable.unusable) == ({}, {Kind.HEART_RATE})
    assert reading_of(Sent(5, 5, {Kind.TEMPERATURE: Decimal(5)}, None, None)) is None
    assert reading_of(Sent(5, 5, {}, contact=False, quality=0)) is not None


def test_the_truth_is_held_against_the_mildest_default_limits():
    limits = mildest_limits(copd=False)

    assert str(limits["spo2-low"].threshold) == "92"
    assert str(limits["heart_rate-high"].threshold) == "120"
    assert mildest_limits(copd=True)["spo2-low"].threshold == Decimal(88)


def test_a_whole_day_is_scored_by_every_way_the_same_each_time():
    first, again = score_day(2), score_day(2)

    assert first == again
    assert set(first) == {"ours", "each_reading", "edge"}
    assert first["ours"].alarms < first["edge"].alarms < first["each_reading"].alarms
    assert json.loads(json.dumps(summary(first["ours"])))["patient_days"] == 1.0


# --- seeds and page ---


def test_held_out_seeds_follow_from_the_defaults_and_change_with_each_of_them():
    digest = defaults_digest(default_rules())
    other = defaults_digest(default_rules(confirmation=Confirmation(needed=2)))

    assert digest != other
    assert seeds_of(digest) != seeds_of(other)
    assert not set(seeds_of(digest)) & set(DEVELOPMENT)


def test_the_frozen_defaults_are_those_in_use():
    # After a change of defaults: python -m benchmarks.alarm_quality_seeds, then measure again.
    assert frozen()["defaults_sha256"] == defaults_digest(default_rules())
    assert held_out() == seeds_of(frozen()["defaults_sha256"])


def test_the_page_shows_figures_of_the_frozen_defaults():
    page = Path(__file__).resolve().parents[2] / PAGE

    assert f"`{frozen()['defaults_sha256'][:12]}`" in page.read_text(encoding="utf-8")


def test_the_block_is_put_between_the_marks_and_nowhere_else():
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"

    assert put(page, "new") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert put(put(page, "x"), "new") == put(page, "new")
    with pytest.raises(ValueError):  # noqa: PT011 - there is nothing else to say
        put("no marks", "new")


def test_the_tables_name_each_event_and_way():
    one = {name: summary(score_of) for name, score_of in score_day(2).items()}

    text = quality({"development": one}, "0" * 64)

    assert "| apnoea |" in text
    assert "FAJMA" in text
    assert "**false alarms**" in text


# --- real recordings ---


@pytest.fixture
def bidmc() -> list[Path]:
    files = recordings()
    if not files and not os.environ.get("CI"):
        pytest.skip("the real recordings are not at hand: set FAJMA_DATA")
    assert files
    return files


def test_one_row_of_five_is_sent_and_missing_values_stay_missing(tmp_path: Path):
    file = tmp_path / "made_Numerics.csv"
    rows = "".join(f"{second},80,NaN,20,{90 + second}\n" for second in range(10))
    file.write_text(f"Time [s], HR, PULSE, RESP, SpO2\n{rows}", encoding="utf-8")

    by_pulse, by_ecg = played(file, "PULSE", 2), played(file, "HR", 2)

    assert [sent.at_s for sent in by_pulse.sent] == [2, 7]
    assert by_pulse.sent[0].values == {Kind.SPO2: Decimal(92)}
    assert by_ecg.sent[1].values == {Kind.HEART_RATE: Decimal(80), Kind.SPO2: Decimal(97)}
    assert by_pulse.duration_s == 10


def test_a_real_patient_with_low_saturation_is_told_once(bidmc: list[Path]):
    file = next(path for path in bidmc if path.stem == "bidmc_49_Numerics")

    hours, told = replay(file, "PULSE")

    assert hours == pytest.approx(5 * 481 / 3600)
    assert told["ours"] == {"spo2-low": 5}
    assert told["each_reading"]["spo2-low"] == 481
