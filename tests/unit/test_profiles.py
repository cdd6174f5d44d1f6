"""Limits by age, pregnancy and COPD, and a patient's own."""

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bots.alerts.alarm import Reason
from bots.alerts.alarm_state import FIRST_STANDING, OwnLimit, Profile
from bots.alerts.limits import Direction, Priority, Rules, TrackKey
from bots.alerts.own_limits import BOUNDS, KEPT_AT_MOST, applied, check_limit
from bots.alerts.profiles import age_unknown
from bots.alerts.site_rules import SiteRules
from fajma import facts
from fajma.facts import AgeBand
from fajma.vitals import DeviceId, Kind
from tests.bedside import BY, DEVICE, START, WELL, Bedside, loud, spo2, told

SITE = SiteRules()
LOW, HIGH = Direction.LOW, Direction.HIGH


def rules(profile: Profile, *own: OwnLimit) -> Rules:
    return SITE.of(replace(FIRST_STANDING, profile=profile, own_limits=own))


def written(found: Rules, kind: Kind, direction: Direction) -> str:
    """``<92 M, <90 H``; empty where nothing is guarded."""
    return ", ".join(
        f"{limit.comparison}{limit.threshold} {limit.priority.name[0]}"
        for bands in found.by_kind.get(kind, ())
        for limit in bands.limits
        if limit.direction is direction
    )


def own(kind: Kind, direction: Direction, threshold: str) -> OwnLimit:
    return OwnLimit(kind, direction, Decimal(threshold), START + timedelta(hours=8), kept=False)


HR, SPO2, TEMP = Kind.HEART_RATE, Kind.SPO2, Kind.TEMPERATURE
SYS, DIA = Kind.SYSTOLIC, Kind.DIASTOLIC


@pytest.mark.parametrize(
    ("profile", "kind", "direction", "expected"),
    [
        (Profile(AgeBand.NEWBORN), HR, LOW, "≤90 M, ≤80 H"),
        (Profile(AgeBand.NEWBORN), HR, HIGH, "≥180 M, ≥190 H"),
        (Profile(AgeBand.NEWBORN), TEMP, HIGH, "≥38.0 M"),
        (Profile(AgeBand.NEWBORN), SYS, LOW, "≤50 M, ≤45 H"),
        (Profile(AgeBand.INFANT), HR, LOW, "≤90 M, ≤80 H"),
        (Profile(AgeBand.INFANT), TEMP, LOW, "<35.5 M"),
        (Profile(AgeBand.INFANT), SYS, LOW, "≤70 M, ≤60 H"),
        (Profile(AgeBand.TODDLER), HR, HIGH, "≥150 M, ≥170 H"),
        (Profile(AgeBand.TODDLER), HR, LOW, "≤70 M, ≤60 H"),
        (Profile(AgeBand.CHILD), HR, HIGH, "≥130 M, >150 H"),
        (Profile(AgeBand.CHILD), HR, LOW, "≤60 M, ≤50 H"),
        (Profile(AgeBand.CHILD), TEMP, HIGH, ">38.5 L, >40.0 M"),
        (Profile(AgeBand.CHILD), SPO2, LOW, "<92 M, <90 H"),
        (Profile(AgeBand.ADOLESCENT), HR, HIGH, ">120 M, ≥131 H"),
        (Profile(AgeBand.ADOLESCENT), SYS, HIGH, "≥150 M, ≥190 H"),
        (Profile(AgeBand.ADULT), SYS, HIGH, "≥220 H"),
        (Profile(AgeBand.ADULT, pregnant=True), SYS, HIGH, "≥160 H"),
        (Profile(AgeBand.ADULT, pregnant=True), DIA, HIGH, "≥110 H"),
        (Profile(AgeBand.ADULT, pregnant=True), SPO2, LOW, "<95 M, <90 H"),
        (Profile(AgeBand.ADULT, pregnant=True), TEMP, HIGH, ">38.0 M"),
        (Profile(AgeBand.ADULT, copd=True), SPO2, LOW, "<88 M, <86 H"),
        (Profile(AgeBand.UNKNOWN, copd=True), SPO2, LOW, "<88 M, <86 H"),
        (Profile(AgeBand.ADULT, pregnant=True, copd=True), SPO2, LOW, "<88 M, <86 H"),
        (Profile(AgeBand.CHILD, copd=True), SPO2, LOW, "<92 M, <90 H"),
        (Profile(AgeBand.CHILD, pregnant=True), DIA, HIGH, ""),
    ],
)
def test_the_limits_of_a_profile(
    profile: Profile, kind: Kind, direction: Direction, expected: str
) -> None:
    assert written(rules(profile), kind, direction) == expected


def test_an_unknown_age_is_judged_as_an_adult_and_said_to_be_unknown() -> None:
    assert rules(Profile()) == rules(Profile(AgeBand.ADULT))
    assert age_unknown(Profile())
    assert not age_unknown(Profile(AgeBand.ADULT))


def test_the_owners_four_limits_hold_for_adults_but_for_the_target_of_copd() -> None:
    for pregnant, copd, age in product(
        (None, False, True), (False, True), (AgeBand.ADULT, AgeBand.UNKNOWN)
    ):
        found = rules(Profile(age, pregnant, copd))
        values = {HR: ("121", "49"), TEMP: ("38.6",), SPO2: ("87.9" if copd else "89.9",)}
        for kind, broken in values.items():
            for value in broken:
                sides = found.by_kind[kind]
                assert any(side.limits[0].broken_by(Decimal(value)) for side in sides)


@pytest.mark.parametrize("age", AgeBand)
@pytest.mark.parametrize("copd", [False, True])
@pytest.mark.parametrize("pregnant", [None, False, True])
def test_every_profile_guards_every_vital_sign_against_both_sides(
    *, age: AgeBand, pregnant: bool | None, copd: bool
) -> None:
    keys = {bands.key for bands in rules(Profile(age, pregnant, copd)).bands}

    assert keys >= {
        "heart_rate-low",
        "heart_rate-high",
        "spo2-low",
        "temperature-low",
        "temperature-high",
        "systolic-low",
        "systolic-high",
    }


# A patient's own limits


@pytest.mark.parametrize(
    ("kind", "direction", "threshold", "expected"),
    [
        (SPO2, LOW, "88", "<88 H"),
        (SPO2, LOW, "90", "<90 H"),
        (SPO2, LOW, "91", "<91 M, <90 H"),
        (SPO2, LOW, "92", "<92 M, <90 H"),
        (SPO2, LOW, "94", "<94 M, <90 H"),
        (HR, HIGH, "110", ">110 M, ≥131 H"),
        (HR, HIGH, "125", ">125 M, ≥131 H"),
        (HR, HIGH, "140", ">140 H"),
        (HR, LOW, "45", "<45 M, ≤40 H"),
        (HR, LOW, "40", "<40 H"),
        (TEMP, HIGH, "38.0", ">38.0 L, >39.0 M"),
        (TEMP, HIGH, "39.0", ">39.0 M"),
        (SYS, HIGH, "180", ">180 H"),
        (DIA, HIGH, "100", ">100 M"),
        (DIA, LOW, "40", "<40 M"),
    ],
)
def test_an_own_limit_replaces_those_that_do_not_lie_beyond_it(
    kind: Kind, direction: Direction, threshold: str, expected: str
) -> None:
    found = rules(Profile(AgeBand.ADULT), own(kind, direction, threshold))

    assert written(found, kind, direction) == expected


def test_two_extreme_samples_are_enough_only_where_the_own_limit_leaves_room_for_them() -> None:
    (kept,) = rules(Profile(), own(SPO2, LOW, "88")).by_kind[SPO2]
    (gone,) = rules(Profile(), own(SPO2, LOW, "84")).by_kind[SPO2]

    assert (kept.extreme, gone.extreme) == (85, None)


@given(
    side=st.sampled_from(list(BOUNDS)),
    data=st.data(),
    age=st.sampled_from(AgeBand),
    pregnant=st.booleans(),
    copd=st.booleans(),
)
def test_every_limit_within_bounds_makes_sound_rules_for_every_profile(
    *, side: tuple[Kind, Direction], data: st.DataObject, age: AgeBand, pregnant: bool, copd: bool
) -> None:
    lowest, highest = BOUNDS[side]
    threshold = data.draw(st.decimals(lowest, highest, places=1))
    assert check_limit(*side, threshold) is None

    profile = Profile(age, pregnant, copd)
    found = applied(rules(profile), (own(*side, str(threshold)),))
    (bands,) = (each for each in found.bands if each.key == TrackKey("-".join(side)))
    assert bands.limits[0].threshold == threshold
    others = [each for each in found.bands if each.key != bands.key]
    assert others == [each for each in rules(profile).bands if each.key != bands.key]


@pytest.mark.parametrize(
    ("kind", "direction", "threshold", "code"),
    [
        (SPO2, HIGH, "95", "limit_pointless"),
        (SPO2, LOW, "9", "limit_out_of_bounds"),
        (SPO2, LOW, "NaN", "limit_out_of_bounds"),
        (HR, HIGH, "221", "limit_out_of_bounds"),
        (HR, LOW, "29.9", "limit_out_of_bounds"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(
    kind: Kind, direction: Direction, threshold: str, code: str
) -> None:
    refused = check_limit(kind, direction, Decimal(threshold))

    assert refused is not None
    assert refused.code == code


def test_an_own_limit_is_judged_by_until_it_ends() -> None:
    bedside = Bedside()
    bedside.limit(SPO2, "low", "94", hours=1)
    bedside.send(spo2(93), times=3)
    assert told(bedside.decisions) == [Reason.STARTED]
    bedside.acknowledge()
    bedside.send(spo2(93), times=730)

    assert bedside.state.standing.own_limits == ()
    assert told(bedside.decisions) == [Reason.STARTED, Reason.RECOVERED], "93 is no breach now"


def test_an_own_limit_can_be_taken_back() -> None:
    bedside = Bedside()
    bedside.limit(SPO2, "low", "94")
    bedside.limit(HR, "high", "140")
    bedside.limit(SPO2, "low", None)

    assert [one.kind for one in bedside.state.standing.own_limits] == [HR]


def test_a_second_limit_of_a_kind_and_direction_replaces_the_first() -> None:
    bedside = Bedside()
    bedside.limit(SPO2, "low", "94")
    bedside.limit(SPO2, "low", "88")

    assert [one.threshold for one in bedside.state.standing.own_limits] == [88]


def test_a_limit_that_is_not_kept_holds_until_a_handover() -> None:
    bedside = Bedside()
    bedside.limit(SPO2, "low", "88")
    bedside.send(WELL, times=100)
    bedside.wait(3600)

    assert len(bedside.state.standing.own_limits) == 1


def test_a_handover_ends_limits_that_are_not_kept() -> None:
    bedside = Bedside()
    bedside.limit(SPO2, "low", "88")
    bedside.limit(HR, "high", "140", kept=True)
    bedside.note(facts.HandedOver(bedside.now, BY))

    assert [one.kind for one in bedside.state.standing.own_limits] == [HR]


def test_no_limit_outlives_a_week() -> None:
    bedside = Bedside(worn=False)
    bedside.limit(HR, "high", "140", hours=24 * 30, kept=True)

    assert bedside.state.standing.own_limits[0].until == START + KEPT_AT_MOST
    bedside.wait(KEPT_AT_MOST.total_seconds())
    assert bedside.state.standing.own_limits == ()


def test_a_limit_out_of_bounds_that_was_noted_nonetheless_changes_nothing() -> None:
    bedside = Bedside()
    bedside.limit(SPO2, "low", "88")
    bedside.limit(SPO2, "low", "9")

    assert [one.threshold for one in bedside.state.standing.own_limits] == [88]


# Other rules while an alarm is open


def test_another_limit_judges_an_open_alarm_at_the_next_sample_without_a_storm() -> None:
    bedside = Bedside()
    bedside.send(spo2(89), times=4)
    bedside.acknowledge()
    assert bedside.limit(SPO2, "low", "85") == []

    bedside.send(spo2(89), times=6)
    assert told(bedside.decisions) == [Reason.STARTED]
    bedside.send(spo2(89))
    assert told(bedside.decisions) == [Reason.STARTED, Reason.RECOVERED]


def test_a_stricter_limit_worsens_an_open_alarm_only_with_its_usual_confirmation() -> None:
    bedside = Bedside()
    bedside.note(facts.Profiled(bedside.now, AgeBand.ADULT, None, copd=True))
    bedside.send(spo2(87), times=4)
    bedside.note(facts.Profiled(bedside.now, AgeBand.ADULT, None, copd=False))

    bedside.send(spo2(87), times=2)
    assert told(bedside.decisions) == [Reason.STARTED]
    bedside.send(spo2(87), times=5)
    assert [(one.reason, one.priority) for one in loud(bedside.decisions)] == [
        (Reason.STARTED, Priority.MEDIUM),
        (Reason.WORSENED, Priority.HIGH),
    ]


def test_an_alarm_of_a_kind_that_nothing_limits_any_more_ends_and_that_is_told() -> None:
    bedside = Bedside()
    bedside.limit(DIA, "high", "100")
    bedside.send({**WELL, DIA: 105}, times=4)
    bedside.decisions.clear()

    (ended,) = bedside.limit(DIA, "high", None)
    assert (ended.reason, ended.announce, ended.rings) == (Reason.RULES_CHANGED, True, False)
    assert bedside.state.tracks == {}
    assert bedside.state.care == {}


def test_an_alarm_whose_own_limit_expires_ends_and_that_is_told() -> None:
    bedside = Bedside()
    bedside.limit(DIA, "high", "100", hours=0.01)
    bedside.send({**WELL, DIA: 105}, times=4)
    bedside.send(WELL, times=5)

    assert told(bedside.decisions) == [Reason.STARTED, Reason.RULES_CHANGED]


def test_a_childs_profile_ends_nothing_that_is_limited_for_children_too() -> None:
    bedside = Bedside()
    bedside.send({HR: 125, SPO2: 97}, times=4)
    assert bedside.note(facts.Profiled(bedside.now, AgeBand.INFANT, None, copd=False)) == []

    bedside.send({HR: 125, SPO2: 97}, times=7)
    assert told(bedside.decisions) == [Reason.STARTED, Reason.RECOVERED]


def test_another_monitor_changes_no_profile() -> None:
    bedside = Bedside()
    bedside.note(facts.Profiled(bedside.now, AgeBand.INFANT, None, copd=False))
    bedside.note(facts.TakenOff(bedside.now, DEVICE))
    bedside.note(facts.Worn(bedside.now, DeviceId("A4CF12F0FFFF")))

    assert bedside.state.standing.profile == Profile(AgeBand.INFANT)
