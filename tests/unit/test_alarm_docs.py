"""Every constant of the alarm engine stands in docs/alarms.md as it is in the code."""

from datetime import timedelta
from pathlib import Path

import pytest

from bots.alerts import (
    announcer,
    attention,
    engine,
    late,
    news2,
    outage,
    own_limits,
    technical,
    webhook,
)
from bots.alerts.alarm_state import UNKNOWN_PROFILE, Profile, Trouble
from bots.alerts.limits import DEFAULT_LIMITS, EXTREMES, Direction, Limits
from bots.alerts.profiles import extremes_of, limits_of
from bots.alerts.site_rules import SCHEDULES, SILENT_AFTER
from fajma.facts import AgeBand

PAGE = (Path(__file__).parents[2] / "docs" / "alarms.md").read_text(encoding="utf-8")
ROWS = [
    tuple(cell.strip() for cell in line.strip("|").split("|"))
    for line in PAGE.splitlines()
    if line.startswith("|")
]
TEXT = " ".join(PAGE.split())


def in_seconds(time: timedelta) -> str:
    return f"{time.total_seconds():g} s"


def constants(limits: Limits) -> set[tuple[str, str, str]]:
    return {
        (kind.value, f"{limit.comparison} {limit.threshold}", limit.priority.name.lower())
        for kind, sides in limits.items()
        for side in sides
        for limit in side
    }


@pytest.mark.parametrize(
    ("name", "profile"),
    [
        ("newborn", Profile(AgeBand.NEWBORN)),
        ("infant", Profile(AgeBand.INFANT)),
        ("toddler", Profile(AgeBand.TODDLER)),
        ("child", Profile(AgeBand.CHILD)),
        ("adolescent", Profile(AgeBand.ADOLESCENT)),
        ("pregnancy", Profile(AgeBand.ADULT, pregnant=True)),
        ("copd", Profile(AgeBand.ADULT, copd=True)),
    ],
)
def test_the_limits_of_each_profile_stand_there_with_their_source(
    name: str, profile: Profile
) -> None:
    documented = {row[1:4]: row[4] for row in ROWS if row[0] == name}
    kinds = {kind for kind, _, _ in documented}
    signs = {Direction.LOW: "≤", Direction.HIGH: "≥"}
    found = {one for one in constants(limits_of(profile)) if one[0] in kinds} | {
        (kind.value, f"{signs[direction]} {value}", "extreme")
        for (kind, direction), value in extremes_of(profile).items()
        if EXTREMES.get((kind, direction)) != value
    }

    assert set(documented) == found
    assert all(documented.values()), "each has its source"
    others = {kind: sides for kind, sides in limits_of(profile).items() if kind.value not in kinds}
    assert constants(others) <= constants(DEFAULT_LIMITS), "the rest is an adult's"


def test_who_is_unknown_is_judged_by_the_table_of_adults() -> None:
    assert limits_of(UNKNOWN_PROFILE) == DEFAULT_LIMITS


def test_the_bounds_of_own_limits_stand_there() -> None:
    documented = {row for row in ROWS if len(row) == 4 and row[1] in set(Direction)}

    assert documented == {
        (kind.value, direction.value, str(lowest), str(highest))
        for (kind, direction), (lowest, highest) in own_limits.BOUNDS.items()
    }
    assert f"after {own_limits.KEPT_AT_MOST.days} days at the latest" in TEXT


def test_reminders_and_the_ladder_stand_there() -> None:
    for priority, schedule in SCHEDULES.items():
        steps = ", ".join(f"{step.total_seconds():g}" for step in schedule.ladder)
        assert (priority.name.lower(), in_seconds(schedule.again), f"{steps} s") in ROWS


def test_the_constants_of_snoozes_stand_there() -> None:
    documented = {row[0]: row[1] for row in ROWS if len(row) == 3}
    assert documented["longest snooze"] == f"{attention.SNOOZE_AT_MOST.seconds // 60} min"
    ahead = attention.SNOOZE_AHEAD.name.lower()
    assert documented["worst band of a snooze said ahead"] == ahead
    for track, further in attention.FURTHER.items():
        assert documented[f"further out is news: {track}"] == f"{further}"
    assert documented["samples that lie so far out"] == f"{attention.FURTHER_NEEDED} in a row"


def test_the_constants_of_technical_alarms_stand_there() -> None:
    documented = {row[0]: row[1:] for row in ROWS if row[0] in set(Trouble)}

    assert {name: row[0] for name, row in documented.items()} == {
        trouble.value: priority.name.lower() for trouble, priority in technical.PRIORITIES.items()
    }
    told_after = {name: row[1] for name, row in documented.items()}
    assert told_after == {
        "no_readings": f"{in_seconds(SILENT_AFTER)}, or {technical.SILENT_INTERVALS} usual "
        f"intervals of the monitor if longer, {in_seconds(technical.SILENT_AT_MOST)} at most; "
        f"{in_seconds(technical.GRACE)} after the broker says that it is gone",
        "probe_off": in_seconds(technical.LASTING[Trouble.PROBE_OFF]),
        "unknown_age": in_seconds(technical.LASTING[Trouble.UNKNOWN_AGE]),
        "wrong_clock": f"{in_seconds(technical.LASTING[Trouble.WRONG_CLOCK])}, once in "
        f"{technical.CLOCK_AGAIN // timedelta(hours=1)} h",
        "no_usable_pulse": f"{technical.UNUSABLE_NEEDED} of the last "
        f"{technical.UNUSABLE_WINDOW} live readings",
    }
    assert f"was in {technical.REGULAR} readings in a row" in TEXT
    assert f"gone for {in_seconds(technical.TROUBLE_DWELL)}" in TEXT


def test_the_constants_of_outages_and_of_our_start_stand_there() -> None:
    documented = {row[0]: row[1] for row in ROWS if len(row) == 2}

    assert documented["begins, when somebody's silence is due, with at least"] == (
        f"{outage.LEAST} patients who are silent"
    )
    assert documented["silent is who was not heard for"] == (
        f"half of the usual silence ({in_seconds(SILENT_AFTER / 2)}), or longer for a monitor that"
        f" sends seldom, at most {in_seconds(outage.HALF_AT_MOST)}"
    )
    assert documented["ends when at least half are heard again for"] == (
        f"{in_seconds(outage.STEADY)}, or all are"
    )
    assert documented["beds that a message names at most"] == f"{outage.BEDS_SHOWN}"
    assert f"For {in_seconds(engine.START_GRACE)} after FAJMA's start" in TEXT


def test_the_steps_of_the_ladder_and_the_quality_of_a_good_signal_stand_there() -> None:
    steps = {row[0]: row[1] for row in ROWS if len(row) == 3 and row[0].isdecimal()}

    assert len(steps) == max(len(one.ladder) for one in SCHEDULES.values())
    assert steps[str(announcer.WARD_STEP + 1)] == "everybody on duty"
    assert steps[str(announcer.EVERYONE_STEP + 1)] == "everybody of the ward"
    assert steps[str(announcer.WEBHOOK_STEP + 1)] == "somebody outside of Matrix"
    assert f"a quality of {announcer.GOOD_FROM} % or more" in TEXT


def test_how_often_the_webhook_is_tried_stands_there() -> None:
    *first, last = (f"{pause:g}" for pause in webhook.RETRY_S)

    assert (
        f"within {webhook.TIMEOUT_S:g} s; after {', '.join(first)} s, then every {last} s" in TEXT
    )
    assert f"base64 of {webhook.MIN_KEY_BYTES} bytes or more" in TEXT


def test_the_constants_of_late_breaches_stand_there() -> None:
    assert (
        f"when a live reading comes {in_seconds(late.QUIET)} after the last late one, or after "
        f"{in_seconds(late.OVER)} without a late one, or after {in_seconds(late.RUN_AT_MOST)}"
    ) in TEXT


def test_how_fresh_the_signs_of_news2_must_be_stands_there() -> None:
    minutes = news2.MONITOR_FRESH // timedelta(minutes=1)
    cuff, entered = (time // timedelta(hours=1) for time in (news2.CUFF_FRESH, news2.ENTERED_FRESH))

    assert (
        f"fresh: {minutes} min for heart rate, SpO2 and temperature, {cuff} h for the cuff, "
        f"{entered} h for respiration"
    ) in TEXT
