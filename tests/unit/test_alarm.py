"""The alarm engine against the table of limits, and against a naive model of its rules."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bots.alerts.alarm import Decision, ReadingFact, Reason, step
from bots.alerts.alarm_state import PatientState
from bots.alerts.limits import (
    CUFF_GAP,
    DEFAULT_LIMITS,
    DWELL,
    EXTREMES,
    GAP,
    HYSTERESIS,
    MAX_WINDOW,
    Bands,
    Comparison,
    Confirmation,
    Direction,
    Limit,
    Priority,
    Rules,
    TrackKey,
    default_rules,
)
from fajma.errors import InputError
from fajma.vitals import Age, Clock, DeviceId, Kind, Reading

START = datetime(2026, 3, 1, 14, 2, tzinfo=UTC)
DEVICE = DeviceId("A4CF12F03B7E")
EVERY = timedelta(seconds=5)
AT_ONCE = default_rules(confirmation=Confirmation(needed=1))
LOW, MEDIUM, HIGH = Priority.LOW, Priority.MEDIUM, Priority.HIGH
LOW_SIDE, HIGH_SIDE = Direction.LOW, Direction.HIGH


def fact(
    position: int,
    values: dict[Kind, Decimal],
    *,
    at: datetime | None = None,
    age: Age = Age.LIVE,
) -> ReadingFact:
    measured_at = START + EVERY * position if at is None else at
    reading = Reading(DEVICE, measured_at, measured_at, Clock.DEVICE, values, age)
    return ReadingFact(position, reading)


def play(
    facts: Sequence[ReadingFact], rules: Rules, state: PatientState | None = None
) -> tuple[PatientState, list[Decision]]:
    state = PatientState() if state is None else state
    decisions: list[Decision] = []
    for each in facts:
        state, decided = step(state, each, rules)
        decisions += decided
    return state, decisions


def run(
    kind: Kind, values: Sequence[str | int], rules: Rules | None = None, every: timedelta = EVERY
) -> list[Decision]:
    facts = [
        fact(position, {kind: Decimal(value)}, at=START + every * position)
        for position, value in enumerate(values)
    ]
    return play(facts, default_rules() if rules is None else rules)[1]


def reasons(decisions: Sequence[Decision]) -> list[Reason]:
    return [decision.reason for decision in decisions]


def announced(decisions: Sequence[Decision]) -> list[Decision]:
    return [decision for decision in decisions if decision.announce]


# The table of limits


@pytest.mark.parametrize(
    ("kind", "value", "priority", "direction", "limit"),
    [
        (Kind.HEART_RATE, "120.1", MEDIUM, HIGH_SIDE, "> 120"),
        (Kind.HEART_RATE, "130.9", MEDIUM, HIGH_SIDE, "> 120"),
        (Kind.HEART_RATE, "131", HIGH, HIGH_SIDE, "≥ 131"),
        (Kind.HEART_RATE, "49.9", MEDIUM, LOW_SIDE, "< 50"),
        (Kind.HEART_RATE, "40.1", MEDIUM, LOW_SIDE, "< 50"),
        (Kind.HEART_RATE, "40", HIGH, LOW_SIDE, "≤ 40"),
        (Kind.SPO2, "91.9", MEDIUM, LOW_SIDE, "< 92"),
        (Kind.SPO2, "90", MEDIUM, LOW_SIDE, "< 92"),
        (Kind.SPO2, "89.9", HIGH, LOW_SIDE, "< 90"),
        (Kind.TEMPERATURE, "38.6", LOW, HIGH_SIDE, "> 38.5"),
        (Kind.TEMPERATURE, "39.0", LOW, HIGH_SIDE, "> 38.5"),
        (Kind.TEMPERATURE, "39.1", MEDIUM, HIGH_SIDE, "> 39.0"),
        (Kind.TEMPERATURE, "35.0", MEDIUM, LOW_SIDE, "≤ 35.0"),
        (Kind.SYSTOLIC, "90", HIGH, LOW_SIDE, "≤ 90"),
        (Kind.SYSTOLIC, "220", HIGH, HIGH_SIDE, "≥ 220"),
    ],
)
def test_a_value_just_beyond_a_limit_starts_an_alarm_of_its_band(
    kind: Kind, value: str, priority: Priority, direction: Direction, limit: str
) -> None:
    (decision,) = run(kind, [value], AT_ONCE)

    assert decision.announce
    assert decision.reason is Reason.STARTED
    assert decision.priority is priority
    assert decision.direction is direction
    assert f"{decision.limit.comparison} {decision.limit.threshold}" == limit
    assert decision.value == Decimal(value)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Kind.HEART_RATE, "120"),
        (Kind.HEART_RATE, "50"),
        (Kind.SPO2, "92"),
        (Kind.SPO2, "100"),
        (Kind.TEMPERATURE, "38.5"),
        (Kind.TEMPERATURE, "35.1"),
        (Kind.SYSTOLIC, "90.1"),
        (Kind.SYSTOLIC, "219.9"),
        (Kind.DIASTOLIC, "199"),
    ],
)
def test_a_value_just_inside_every_limit_decides_nothing(kind: Kind, value: str) -> None:
    assert run(kind, [value] * 8, AT_ONCE) == []


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Kind.HEART_RATE, "121"),
        (Kind.HEART_RATE, "49"),
        (Kind.SPO2, "89"),
        (Kind.TEMPERATURE, "38.6"),
    ],
)
def test_the_four_limits_of_the_owner_always_alarm(kind: Kind, value: str) -> None:
    assert len(announced(run(kind, [value] * 4))) == 1


def test_every_default_constant_stands_in_the_documentation_with_its_source() -> None:
    page = (Path(__file__).parents[2] / "docs" / "alarms.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith("|")
    ]
    documented = {(row[0], row[1], row[2]): row[-1] for row in rows if len(row) > 2}

    constants = [
        (kind.value, f"{limit.comparison} {limit.threshold}", limit.priority.name.lower())
        for kind, sides in DEFAULT_LIMITS.items()
        for limits in sides
        for limit in limits
    ]
    signs = {LOW_SIDE: "≤", HIGH_SIDE: "≥"}
    constants += [
        (kind.value, f"{signs[direction]} {value}", "extreme")
        for (kind, direction), value in EXTREMES.items()
    ]
    constants += [(kind.value, str(value), "hysteresis") for kind, value in HYSTERESIS.items()]
    constants += [
        ("all", f"{DWELL.seconds} s", "dwell"),
        ("all", f"{GAP.seconds // 60} min", "gap"),
        ("systolic", f"{CUFF_GAP.seconds // 3600} h", "gap"),
    ]
    assert [constant for constant in constants if not documented.get(constant)] == []


# Confirmation


def test_three_of_the_last_four_samples_announce_once_with_the_limit_that_is_broken() -> None:
    decisions = run(Kind.SPO2, [97, 88, 93, 88, 87, 86])

    assert reasons(decisions) == [
        Reason.NOT_CONFIRMED,
        Reason.NOT_CONFIRMED,
        Reason.STARTED,
        Reason.ALREADY_OPEN,
    ]
    (started,) = announced(decisions)
    assert started.limit == Limit(Comparison.BELOW, Decimal(90), HIGH)
    assert started.value == 87
    assert started.alarm_id == "spo2-low-4"
    assert started.since == START + EVERY
    assert started.measured_at == START + 4 * EVERY


def test_two_of_the_last_four_samples_announce_nothing() -> None:
    decisions = run(Kind.SPO2, [88, 97] * 5)

    assert set(reasons(decisions)) == {Reason.NOT_CONFIRMED}


@pytest.mark.parametrize(
    ("kind", "extreme", "not_yet"),
    [(Kind.SPO2, "85", "85.1"), (Kind.HEART_RATE, "30", "30.1"), (Kind.HEART_RATE, "151", "150.9")],
)
def test_two_extreme_samples_are_enough_and_three_are_needed_just_before(
    kind: Kind, extreme: str, not_yet: str
) -> None:
    assert reasons(run(kind, [extreme] * 2)) == [Reason.NOT_CONFIRMED, Reason.STARTED]
    assert reasons(run(kind, [not_yet] * 3))[1:] == [Reason.NOT_CONFIRMED, Reason.STARTED]


def test_blood_pressure_is_announced_when_a_second_measurement_repeats_it() -> None:
    decisions = run(Kind.SYSTOLIC, [88, 86], every=timedelta(hours=1))

    assert reasons(decisions) == [Reason.NOT_CONFIRMED, Reason.STARTED]


def test_samples_before_a_gap_are_stale_and_do_not_confirm() -> None:
    def decide(gap: timedelta) -> Reason:
        times = [START, START + EVERY, START + EVERY + gap]
        facts = [fact(n, {Kind.SPO2: Decimal(88)}, at=at) for n, at in enumerate(times)]
        return reasons(play(facts, default_rules())[1])[-1]

    assert decide(GAP) is Reason.STARTED
    assert decide(GAP + timedelta(seconds=1)) is Reason.NOT_CONFIRMED
    assert decide(-GAP - timedelta(seconds=1)) is Reason.NOT_CONFIRMED


def test_a_confirmed_mild_breach_is_announced_while_the_worse_one_is_not_confirmed() -> None:
    decisions = run(Kind.SPO2, [91, 89, 89, 89])

    assert reasons(decisions)[2:] == [Reason.STARTED, Reason.WORSENED]
    mild, worse = announced(decisions)
    assert (mild.priority, mild.limit.threshold) == (MEDIUM, Decimal(92))
    assert (worse.priority, worse.limit.threshold) == (HIGH, Decimal(90))
    assert worse.alarm_id == mild.alarm_id == "spo2-low-2"
    assert worse.since == START + EVERY


def test_worsening_needs_the_same_confirmation_as_a_start() -> None:
    decisions = run(Kind.SPO2, [91, 91, 91, 89, 91, 91, 91, 89, 89, 89])

    assert [d.reason for d in announced(decisions)] == [Reason.STARTED, Reason.WORSENED]
    assert decisions[-1].reason is Reason.WORSENED
    unconfirmed = decisions[3]
    assert unconfirmed.reason is Reason.NOT_CONFIRMED
    assert unconfirmed.limit.threshold == 90
    assert unconfirmed.alarm_id == "spo2-low-2"


def test_a_normal_sample_starts_nothing_even_when_the_rules_have_become_stricter() -> None:
    state, _ = play([fact(n, {Kind.SPO2: Decimal(88)}) for n in range(2)], default_rules())
    stricter = default_rules(confirmation=Confirmation(needed=2))

    assert play([fact(2, {Kind.SPO2: Decimal(97)})], stricter, state)[1] == []


@pytest.mark.parametrize(
    ("needed", "window", "extreme"),
    [(0, 4, 2), (5, 4, 2), (3, 4, 0), (3, 4, 5), (3, MAX_WINDOW + 1, 2)],
)
def test_a_confirmation_that_cannot_be_met_is_refused(
    needed: int, window: int, extreme: int
) -> None:
    with pytest.raises(InputError, match="Choose a confirmation") as refused:
        Confirmation(needed=needed, window=window, extreme=extreme)
    assert refused.value.code == "confirmation_invalid"


# The end of an episode


def test_the_end_is_announced_once_after_hysteresis_and_dwell() -> None:
    back = [93] * 7  # thirty seconds from the first to the last
    decisions = run(Kind.SPO2, [88, 88, 88, *back, 97, 97])

    assert reasons(decisions)[3:] == [Reason.CLEARING] * 6 + [Reason.RECOVERED]
    recovered = decisions[-1]
    assert recovered.announce
    assert recovered.alarm_id == "spo2-low-2"
    assert recovered.since == START
    assert recovered.value == 93


@pytest.mark.parametrize(
    ("kind", "breach", "inside", "outside"),
    [
        (Kind.SPO2, "88", "93", "92.9"),
        (Kind.HEART_RATE, "135", "115", "115.1"),
        (Kind.HEART_RATE, "39", "55", "54.9"),
        (Kind.TEMPERATURE, "39", "38.2", "38.3"),
        (Kind.TEMPERATURE, "34", "35.3", "35.2"),
        (Kind.SYSTOLIC, "85", "95", "94.9"),
        (Kind.SYSTOLIC, "225", "215", "215.1"),
    ],
)
def test_a_value_within_the_hysteresis_does_not_end_an_episode(
    kind: Kind, breach: str, inside: str, outside: str
) -> None:
    ended = run(kind, [breach, *[inside] * 20], AT_ONCE)
    lasting = run(kind, [breach, *[outside] * 20], AT_ONCE)

    assert ended[-1].reason is Reason.RECOVERED
    assert Reason.RECOVERED not in reasons(lasting)
    assert lasting[-1].reason is Reason.CLEARING


def test_one_sample_back_outside_restarts_the_dwell() -> None:
    decisions = run(Kind.SPO2, [88, *[95] * 6, 92, *[95] * 6, 95], AT_ONCE)

    assert decisions[-2].reason is Reason.CLEARING
    assert decisions[-1].reason is Reason.RECOVERED


def test_after_a_recovery_a_new_episode_needs_a_fresh_confirmation() -> None:
    minute = timedelta(minutes=1)
    rules = default_rules(confirmation=Confirmation(needed=2))
    decisions = run(Kind.SPO2, [88, 88, 97, 97, 88, 88], rules, every=minute)

    assert reasons(decisions) == [
        Reason.NOT_CONFIRMED,
        Reason.STARTED,
        Reason.CLEARING,
        Reason.RECOVERED,
        Reason.NOT_CONFIRMED,
        Reason.STARTED,
    ]
    assert decisions[-1].alarm_id == "spo2-low-5"


def test_samples_of_a_worse_band_before_a_recovery_do_not_confirm_after_it() -> None:
    minute = timedelta(minutes=1)
    rules = default_rules(confirmation=Confirmation(needed=2))
    decisions = run(Kind.SPO2, [91, 91, 89, 97, 97, 89], rules, every=minute)

    assert decisions[-2].reason is Reason.RECOVERED
    assert decisions[-1].reason is Reason.NOT_CONFIRMED


def test_the_end_tells_since_when_the_episode_lasted_also_after_a_worsening() -> None:
    decisions = run(Kind.SPO2, [91, 89, *[97] * 7], AT_ONCE)

    assert decisions[1].since == START + EVERY
    assert decisions[-1].reason is Reason.RECOVERED
    assert decisions[-1].since == START
    assert decisions[-1].priority is HIGH


def test_without_hysteresis_a_value_that_still_breaks_an_inclusive_limit_does_not_clear() -> None:
    rules = default_rules(
        confirmation=Confirmation(needed=1), hysteresis={Kind.TEMPERATURE: Decimal(0)}
    )
    still = run(Kind.TEMPERATURE, ["35.0"] * 20, rules)

    assert reasons(still) == [Reason.STARTED] + [Reason.ALREADY_OPEN] * 19
    assert run(Kind.TEMPERATURE, ["35.0", *["35.1"] * 7], rules)[-1].reason is Reason.RECOVERED


def test_losing_the_probe_neither_ends_an_episode_nor_counts_as_dwell() -> None:
    rules = AT_ONCE
    state, _ = play([fact(0, {Kind.SPO2: Decimal(88)})], rules)
    without = [fact(n, {Kind.HEART_RATE: Decimal(80)}) for n in range(1, 100)]
    state, decisions = play(without, rules, state)
    assert decisions == []
    assert state.tracks[TrackKey("spo2-low")].episode is not None

    back = [fact(100, {Kind.SPO2: Decimal(97)}), fact(200, {Kind.SPO2: Decimal(97)})]
    state, decisions = play(back, rules, state)
    assert reasons(decisions) == [Reason.CLEARING, Reason.CLEARING]


def test_a_clock_that_is_set_back_does_not_end_an_episode_early() -> None:
    rules = AT_ONCE
    values = [(0, 88), (60, 97), (30, 97), (59, 97), (60, 97)]
    facts = [
        fact(n, {Kind.SPO2: Decimal(value)}, at=START + timedelta(seconds=second))
        for n, (second, value) in enumerate(values)
    ]
    decisions = play(facts, rules)[1]

    assert reasons(decisions)[1:] == [Reason.CLEARING] * 3 + [Reason.RECOVERED]


def test_easing_into_a_milder_band_is_silent_and_worsening_again_is_announced() -> None:
    decisions = run(Kind.SPO2, [89, *[91] * 7, 89], AT_ONCE)

    assert [d.reason for d in decisions if d.reason is not Reason.ALREADY_OPEN] == [
        Reason.STARTED,
        Reason.IMPROVED,
        Reason.WORSENED,
    ]
    assert [d.priority for d in announced(decisions)] == [HIGH, HIGH]
    assert len({d.alarm_id for d in decisions}) == 1


def test_easing_does_not_restart_the_dwell_of_the_end() -> None:
    decisions = run(Kind.SPO2, [89, 91, *[97] * 7], AT_ONCE)

    assert reasons(decisions)[-2:] == [Reason.IMPROVED, Reason.RECOVERED]


def test_a_short_visit_to_the_milder_band_is_not_announced_as_worsening() -> None:
    decisions = run(Kind.SPO2, [89, 91, 91, 89, 91, 89], AT_ONCE)

    assert reasons(decisions) == [Reason.STARTED] + [Reason.ALREADY_OPEN] * 5


def test_a_mild_fever_is_a_low_priority_alarm_that_worsens_above_39() -> None:
    decisions = announced(run(Kind.TEMPERATURE, ["38.8"] * 4 + ["39.2"] * 4))

    assert [(each.reason, each.priority) for each in decisions] == [
        (Reason.STARTED, LOW),
        (Reason.WORSENED, MEDIUM),
    ]


def test_both_directions_of_a_kind_have_their_own_episode() -> None:
    decisions = run(Kind.HEART_RATE, [45, 125, *[80] * 7], AT_ONCE)

    ended = [d.alarm_id for d in decisions if d.reason is Reason.RECOVERED]
    assert [d.alarm_id for d in decisions if d.reason is Reason.STARTED] == [
        "heart_rate-low-0",
        "heart_rate-high-1",
    ]
    assert set(ended) == {"heart_rate-high-1", "heart_rate-low-0"}
    assert len(ended) == 2


def test_one_reading_decides_on_each_of_its_kinds() -> None:
    values = {Kind.SPO2: Decimal(86), Kind.HEART_RATE: Decimal(140), Kind.TEMPERATURE: Decimal(37)}
    state, decisions = play([fact(7, values)], AT_ONCE)

    assert [d.alarm_id for d in decisions] == ["spo2-low-7", "heart_rate-high-7"]
    assert set(state.tracks) == {"spo2-low", "heart_rate-high"}


# Late, repeated and replayed facts


NOT_LIVE = [Age.LATE, Age.UNKNOWN]


@pytest.mark.parametrize("age", NOT_LIVE)
@pytest.mark.parametrize("values", [[88] * 6, [97] * 20])
def test_a_reading_that_is_not_live_neither_starts_worsens_nor_ends_a_live_episode(
    values: list[int], age: Age
) -> None:
    rules = AT_ONCE
    opened, _ = play([fact(0, {Kind.SPO2: Decimal(91)})], rules)
    facts = [fact(n, {Kind.SPO2: Decimal(v)}, age=age) for n, v in enumerate(values, 1)]

    after, decisions = play(facts, rules, opened)
    assert after == replace(opened, position=len(values))
    assert set(reasons(decisions)) == {Reason.LATE}
    assert {d.alarm_id for d in decisions} == {"spo2-low-0"}
    assert not announced(decisions)


@pytest.mark.parametrize("age", NOT_LIVE)
def test_a_late_breach_without_an_episode_is_noted_and_late_normal_values_are_not(
    age: Age,
) -> None:
    state, decisions = play([fact(0, {Kind.SPO2: Decimal(88)}, age=age)], AT_ONCE)
    assert reasons(decisions) == [Reason.LATE]
    assert decisions[0].alarm_id is None
    assert state.tracks == {}
    assert play([fact(0, {Kind.SPO2: Decimal(97)}, age=age)], AT_ONCE)[1] == []


def test_a_reading_without_any_value_changes_nothing_but_the_position() -> None:
    opened, _ = play([fact(0, {Kind.SPO2: Decimal(88)})], AT_ONCE)
    probe_off = ReadingFact(1, replace(fact(1, {}).reading, contact=False))

    after, decisions = step(opened, probe_off, AT_ONCE)
    assert decisions == ()
    assert after.position == 1
    assert after.tracks is opened.tracks


def test_a_repeated_or_older_position_changes_nothing() -> None:
    state, _ = play([fact(5, {Kind.SPO2: Decimal(88)})], AT_ONCE)

    for position in (5, 4, 0):
        assert step(state, fact(position, {Kind.SPO2: Decimal(70)}), AT_ONCE) == (state, ())


def test_a_well_patient_is_remembered_by_a_position_alone() -> None:
    well = {Kind.SPO2: Decimal(97), Kind.HEART_RATE: Decimal(80)}
    before, _ = play([fact(0, well)], default_rules())
    after, _ = play([fact(1, well)], default_rules(), before)

    assert after == PatientState(position=1)
    assert after.tracks is before.tracks


# The rules are checked where they are written


@pytest.mark.parametrize(
    "changes",
    [
        {"limits": ()},
        {"limits": (Limit(Comparison.BELOW, Decimal(90), HIGH),) * 2},
        {
            "limits": (
                Limit(Comparison.BELOW, Decimal(90), MEDIUM),
                Limit(Comparison.BELOW, Decimal(92), HIGH),
            )
        },
        {
            "limits": (
                Limit(Comparison.BELOW, Decimal(92), MEDIUM),
                Limit(Comparison.ABOVE, Decimal(90), HIGH),
            )
        },
        {"hysteresis": Decimal(-1)},
        {"dwell": timedelta(seconds=-1)},
        {"extreme": Decimal(95)},
    ],
)
def test_bands_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="Order the spo2 limits") as refused:
        replace(_spo2_bands(), **changes)
    assert refused.value.code == "limits_invalid"


def test_two_sets_of_limits_for_one_kind_and_direction_are_refused() -> None:
    with pytest.raises(InputError, match="only once"):
        Rules(bands=(_spo2_bands(), _spo2_bands()))


def _spo2_bands() -> Bands:
    (bands,) = default_rules().by_kind[Kind.SPO2]
    return bands


# The state as JSON

VALUES = {
    Kind.SPO2: ["84", "85", "88", "89", "90", "91", "92", "93", "97"],
    Kind.HEART_RATE: ["28", "40", "45", "50", "55", "80", "115", "120", "125", "131", "155"],
    Kind.TEMPERATURE: ["34.9", "35.0", "35.3", "37", "38.2", "38.5", "38.6", "39.0", "39.1"],
    Kind.SYSTOLIC: ["85", "90", "95", "120", "215", "220", "230"],
    Kind.DIASTOLIC: ["60", "80"],
}


@st.composite
def readings(draw: st.DrawFn) -> dict[Kind, Decimal]:
    kinds = draw(st.sets(st.sampled_from(list(VALUES)), min_size=1))
    return {kind: Decimal(draw(st.sampled_from(VALUES[kind]))) for kind in sorted(kinds)}


History = list[tuple[dict[Kind, Decimal], timedelta, Age]]

AGES = st.sampled_from([Age.LIVE, Age.LIVE, *NOT_LIVE])
STEPS = st.sampled_from([timedelta(seconds=s) for s in (-5, 0, 1, 5, 5, 5, 5, 15, 60, 121, 7201)])
HISTORY = st.lists(st.tuples(readings(), STEPS, AGES), max_size=40)
RULES = st.sampled_from(
    [
        default_rules(),
        AT_ONCE,
        default_rules(confirmation=Confirmation(2, 3, 1), dwell=timedelta(seconds=10)),
        default_rules(dwell=timedelta(0), hysteresis={Kind.SPO2: Decimal(0)}),
    ]
)


def facts_of(history: History) -> list[ReadingFact]:
    now, facts = START, []
    for position, (values, advance, age) in enumerate(history):
        now += advance
        facts.append(fact(position, values, at=now, age=age))
    return facts


@settings(deadline=None)
@given(HISTORY, RULES)
def test_a_state_survives_json_and_stays_small(history: History, rules: Rules) -> None:
    state, _ = play(facts_of(history), rules)
    text = state.to_json()

    assert PatientState.from_json(text) == state
    assert PatientState.from_json(text).to_json() == text
    assert len(text) < 4096


@settings(deadline=None)
@given(HISTORY, RULES, st.data())
def test_replaying_from_any_point_gives_the_same_decisions(
    history: History, rules: Rules, data: st.DataObject
) -> None:
    facts = facts_of(history)
    whole, expected = play(facts, rules)
    cut = data.draw(st.integers(0, len(facts)))
    again = data.draw(st.integers(0, cut))

    halfway, first = play(facts[:cut], rules)
    restored = PatientState.from_json(halfway.to_json())
    final, rest = play(facts[again:], rules, restored)

    assert first + rest == expected
    assert final == whole


@settings(deadline=None)
@given(HISTORY, RULES)
def test_a_state_that_is_kept_only_when_its_tracks_change_leads_to_the_same_decisions(
    history: History, rules: Rules
) -> None:
    """What the alarm engine keeps: after a restart it goes on from its place with such a state."""
    facts = facts_of(history)
    whole, expected = play(facts, rules)
    kept = PatientState()
    decided: list[Decision] = []
    for each in facts:
        before = PatientState.from_json(kept.to_json())
        after, decisions = step(before, each, rules)
        if after.tracks is before.tracks:
            assert not announced(decisions)
        else:
            kept = after
        decided += decisions

    assert decided == expected
    assert kept.tracks == whole.tracks
    assert kept.position <= whole.position


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_json_of_anything_else_is_refused(content: object) -> None:
    with pytest.raises(InputError) as refused:
        PatientState.from_json(json.dumps(content))
    assert refused.value.code == "alarm_state_invalid"


def _stored() -> dict[str, Any]:
    values = {Kind.SPO2: Decimal(91), Kind.HEART_RATE: Decimal(125)}
    calm = {Kind.HEART_RATE: Decimal(80)}
    rules = default_rules(confirmation=Confirmation(needed=1))
    opened, _ = play([fact(0, values), fact(1, calm)], rules)
    state, _ = play([fact(2, {Kind.SPO2: Decimal(89)})], default_rules(), opened)
    stored: dict[str, Any] = json.loads(state.to_json())
    return stored


SPO2_TRACK = ("tracks", "spo2-low")
SPO2_EPISODE = (*SPO2_TRACK, "episode")
HR_EPISODE = ("tracks", "heart_rate-high", "episode")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("version",), 3),
        (("version",), True),
        (("position",), "2"),
        (("position",), 2.0),
        (("new",), 1),
        (("tracks",), []),
        (("tracks", "spo2-sideways"), {"window": [], "episode": None}),
        (("tracks", "spo2-high"), {"window": [], "episode": None}),
        ((*SPO2_TRACK, "window"), None),
        ((*SPO2_TRACK, "window"), [["2026-03-01T14:02:00+00:00", "88"]] * (MAX_WINDOW + 1)),
        ((*SPO2_TRACK, "window", 0), ["2026-03-01T14:02:00", "88"]),
        ((*SPO2_TRACK, "window", 0), ["0001-01-01T00:00:00+23:00", "88"]),
        ((*SPO2_TRACK, "window", 0), ["2026-03-01T14:02:00+00:00", "NaN"]),
        ((*SPO2_TRACK, "window", 0), ["2026-03-01T14:02:00+00:00", "low"]),
        ((*SPO2_TRACK, "window", 0), ["2026-03-01T14:02:00+00:00", 88]),
        ((*SPO2_EPISODE, "alarm_id"), "heart_rate-low-0"),
        ((*SPO2_EPISODE, "alarm_id"), "spo2-low-x"),
        ((*SPO2_EPISODE, "limit"), ["<", "92", "URGENT"]),
        ((*SPO2_EPISODE, "limit"), ["<", "92", ["HIGH"]]),
        ((*SPO2_EPISODE, "limit"), ["=", "92", "MEDIUM"]),
        ((*SPO2_EPISODE, "limit"), [">", "92", "MEDIUM"]),
        ((*SPO2_EPISODE, "extra"), None),
        ((*HR_EPISODE, "cleared"), ["2026-03-01T14:02:00+00:00"]),
    ],
)
def test_a_stored_state_with_one_thing_wrong_is_refused_without_quoting_it(
    path: tuple[Any, ...], value: object
) -> None:
    content = _stored()
    assert PatientState.from_json(json.dumps(content)).position == 2
    *parents, last = path
    target = content
    for key in parents:
        target = target[key]
    target[last] = value

    with pytest.raises(InputError, match=r"^Restore the alarm state") as refused:
        PatientState.from_json(json.dumps(content))
    assert refused.value.__suppress_context__


# The whole engine against a naive model

SPO2_LADDER = DEFAULT_LIMITS[Kind.SPO2][0]
HR_LADDERS = DEFAULT_LIMITS[Kind.HEART_RATE]
Values = dict[Kind, Decimal]
Samples = list[tuple[datetime, Decimal]]
GUARDED = [(Kind.SPO2, SPO2_LADDER)] + [(Kind.HEART_RATE, ladder) for ladder in HR_LADDERS]


class AlarmMachine(RuleBasedStateMachine):
    """Plays a patient, remembers everything, and checks what was announced from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = default_rules()
        self.state = PatientState()
        self.now = START
        self.facts: list[ReadingFact] = []
        self.decisions: list[Decision] = []
        # Per kind and direction: live samples since a gap; those of them since the episode last
        # ended or eased, which are all that may confirm; the band last announced or eased into.
        self.live: dict[tuple[Limit, ...], Samples] = {limits: [] for _, limits in GUARDED}
        self.samples: dict[tuple[Limit, ...], Samples] = {limits: [] for _, limits in GUARDED}
        self.band: dict[tuple[Limit, ...], Priority | None] = dict.fromkeys(self.samples)

    def send(self, values: Values, *, seconds: int = 5, age: Age = Age.LIVE) -> None:
        self.now += timedelta(seconds=seconds)
        sent = fact(len(self.facts), values, at=self.now, age=age)
        self.facts.append(sent)
        before = self.state
        self.state, decided = step(self.state, sent, self.limits)
        self.decisions += decided
        if age is not Age.LIVE:
            assert self.state == replace(before, position=sent.position)
            assert all(decision.reason is Reason.LATE for decision in decided)
        else:
            self.follow(values, decided)

    def follow(self, values: Values, decided: Sequence[Decision]) -> None:
        for kind, limits in GUARDED:
            mine = [d for d in decided if (d.kind, d.direction) == (kind, limits[0].direction)]
            if kind not in values:
                assert mine == [], "a kind that is missing decides nothing"
                continue
            live, samples = self.live[limits], self.samples[limits]
            if live and self.now - live[-1][0] > GAP:
                live.clear()
                samples.clear()
            live.append((self.now, values[kind]))
            samples.append((self.now, values[kind]))
            for decision in mine:
                if decision.reason in {Reason.RECOVERED, Reason.IMPROVED}:
                    self.check_calm(decision, live)
                    samples.clear()
                if decision.reason in {Reason.STARTED, Reason.WORSENED}:
                    self.check_confirmed(decision, samples)
                if decision.reason is Reason.RECOVERED:
                    self.band[limits] = None
                elif decision.reason in {Reason.STARTED, Reason.WORSENED, Reason.IMPROVED}:
                    self.band[limits] = decision.priority

    def check_confirmed(self, decision: Decision, samples: Samples) -> None:
        """Nobody is told of a limit that the last samples do not confirm."""
        last = [value for _, value in samples][-4:]
        extreme = EXTREMES[decision.kind, decision.direction]
        low = decision.direction is Direction.LOW
        extremes = sum(value <= extreme if low else value >= extreme for value in last)
        assert decision.limit.broken_by(last[-1])
        assert sum(map(decision.limit.broken_by, last)) >= 3 or extremes >= 2

    def check_calm(self, decision: Decision, samples: Samples) -> None:
        """Ending or easing needs an unbroken run of samples back inside, as long as the dwell."""
        margin = HYSTERESIS[decision.kind]
        low = decision.direction is Direction.LOW
        ladder = next(
            limits
            for kind, limits in GUARDED
            if (kind, limits[0].direction) == (decision.kind, decision.direction)
        )
        left = ladder[0] if decision.reason is Reason.RECOVERED else ladder[-1]
        first = None
        for at, value in reversed(samples):
            if (value - left.threshold if low else left.threshold - value) < margin:
                break
            first = at
        assert first is not None
        assert self.now - first >= DWELL

    @rule(value=st.sampled_from(VALUES[Kind.SPO2]), times=st.integers(1, 9))
    def spo2(self, value: str, times: int) -> None:
        for _ in range(times):
            self.send({Kind.SPO2: Decimal(value)})

    @rule(value=st.sampled_from(VALUES[Kind.HEART_RATE]), times=st.integers(1, 9))
    def heart_rate(self, value: str, times: int) -> None:
        for _ in range(times):
            self.send({Kind.HEART_RATE: Decimal(value)})

    @rule(values=readings(), seconds=st.sampled_from([0, 1, 5, 30, 60, 120, 121, 600]))
    def mixed(self, values: Values, seconds: int) -> None:
        self.send(values, seconds=seconds)

    @rule(values=readings(), times=st.integers(1, 9), age=st.sampled_from(NOT_LIVE))
    def late(self, values: Values, times: int, age: Age) -> None:
        for _ in range(times):
            self.send(values, age=age)

    @rule(minutes=st.integers(1, 60))
    def probe_off(self, minutes: int) -> None:
        opened = {key for key, track in self.state.tracks.items() if track.episode}
        self.now += timedelta(minutes=minutes)
        self.send({Kind.DIASTOLIC: Decimal(80)})
        assert opened == {key for key, track in self.state.tracks.items() if track.episode}

    @precondition(lambda self: self.facts)
    @rule(data=st.data())
    def restart_and_see_facts_again(self, data: st.DataObject) -> None:
        again = data.draw(st.integers(0, len(self.facts) - 1))
        restored = PatientState.from_json(self.state.to_json())
        for seen in self.facts[again:]:
            restored, decided = step(restored, seen, self.limits)
            assert decided == ()
        assert restored == self.state
        self.state = restored

    @invariant()
    def no_confirmed_breach_is_unannounced(self) -> None:
        for _, limits in GUARDED:
            last = [value for _, value in self.samples[limits]][-4:]
            for limit in limits:
                confirmed = sum(map(limit.broken_by, last)) >= 3 and limit.broken_by(last[-1])
                assert not confirmed or (self.band[limits] or 0) >= limit.priority

    def teardown(self) -> None:
        assert play(self.facts, self.limits) == (self.state, self.decisions)
        self.check_stories()

    def check_stories(self) -> None:
        """Each episode starts once, ends at most once and last, and no band is told twice."""
        loud: dict[str, list[Decision]] = {}
        for decision in self.decisions:
            if decision.announce or decision.reason is Reason.IMPROVED:
                assert decision.alarm_id is not None
                loud.setdefault(decision.alarm_id, []).append(decision)
        for story in loud.values():
            told = reasons(story)
            assert told[0] is Reason.STARTED
            assert told.count(Reason.STARTED) == 1
            assert Reason.RECOVERED not in told[:-1]
            bands = [decision.priority for decision in story if decision.reason in STEPPED]
            assert all(one != other for one, other in pairwise(bands))


STEPPED = {Reason.STARTED, Reason.WORSENED, Reason.IMPROVED}

TestAlarmMachine = AlarmMachine.TestCase
TestAlarmMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
