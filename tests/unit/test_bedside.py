"""What is typed about a patient: a line means one thing, or nothing is done."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bots.alerts.limits import Direction
from fajma.bedside import (
    MAX_REASON,
    MAX_RESPIRATION,
    Bedside,
    Problem,
    Subject,
    answered,
    entered,
    limited,
    listed,
    looked_back,
    paused,
)
from fajma.commands import Action, CommandError, parse, usage_in_ward
from fajma.facts import Consciousness
from fajma.language import Language
from fajma.typed import UnclearError
from fajma.vitals import Kind

READERS = (answered, paused, limited, looked_back, listed, entered)
MINUTES = timedelta(minutes=1)


def problem(reader: object, line: str) -> Problem:
    assert callable(reader)
    with pytest.raises(UnclearError) as caught:
        reader(line)
    assert isinstance(caught.value, UnclearError)
    return caught.value.problem


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", Bedside()),
        ("lit 4", Bedside(bed="4")),
        ("Bed 4b.", Bedside(bed="4b")),
        ("4", Bedside(bed="4")),
        ("spo2", Bedside(kind=Kind.SPO2)),
        ("SpO\N{SUBSCRIPT TWO} lit 4", Bedside(bed="4", kind=Kind.SPO2)),
        ("lit 4 pouls", Bedside(bed="4", kind=Kind.HEART_RATE)),
        ("capteur", Bedside(sensor=True)),
        ("lit Réa 2", Bedside(bed="Réa 2")),
        ("lit Réa 2 spo2", Bedside(bed="Réa 2", kind=Kind.SPO2)),
        ("spo2 lit Réa 2.", Bedside(bed="Réa 2", kind=Kind.SPO2)),
        ("lit 4 B spo2", Bedside(bed="4 B", kind=Kind.SPO2)),
        ("lit A spo2", Bedside(bed="A", kind=Kind.SPO2)),
    ],
)
def test_an_answer_is_about_all_alarms_or_one_sign_or_the_sensor(line: str, said: Bedside) -> None:
    assert answered(line) == said


@pytest.mark.parametrize("line", ["le patient", "merci", "spo2 fc", "lit 4 5", "spo2 4", "lit"])
def test_an_answer_with_words_that_do_not_belong_answers_nothing(line: str) -> None:
    assert problem(answered, line) is Problem.WORDS


@pytest.mark.parametrize(
    ("line", "kind", "direction", "lasts"),
    [
        ("spo2 10m", Kind.SPO2, None, 10 * MINUTES),
        ("spo2", Kind.SPO2, None, None),
        ("fc > 5 min", Kind.HEART_RATE, "high", 5 * MINUTES),
        ("fc haut 5", Kind.HEART_RATE, "high", 5 * MINUTES),
        ("hr<3mn", Kind.HEART_RATE, "low", 3 * MINUTES),
        ("temp 10 minutes", Kind.TEMPERATURE, None, 10 * MINUTES),
        ("ta 1h", Kind.SYSTOLIC, None, 60 * MINUTES),
        ("tad basse", Kind.DIASTOLIC, "low", None),
    ],
)
def test_a_pause_names_a_sign_perhaps_a_side_and_a_time(
    line: str, kind: Kind, direction: str | None, lasts: timedelta | None
) -> None:
    assert paused(line) == Bedside(kind=kind, direction=direction, lasts=lasts)
    assert paused(f"lit 4 {line}") == paused(f"{line} lit 4")
    assert paused(f"{line} bed 4").bed == "4"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("", Problem.SIGN_MISSING),
        ("10m", Problem.SIGN_MISSING),
        ("tout 10m", Problem.SIGN_MISSING),
        ("spo2 0m", Problem.TIME_UNCLEAR),
        ("spo2 un peu", Problem.TIME_UNCLEAR),
        ("spo2 10 m environ", Problem.TIME_UNCLEAR),
        ("spo2 ≤ 10m", Problem.COMPARISON),
        ("lit 4 spo2 10m lit 5", Problem.BED_TWICE),
    ],
)
def test_a_pause_that_is_not_clear_pauses_nothing(line: str, why: Problem) -> None:
    assert problem(paused, line) is why


@pytest.mark.parametrize(
    "line",
    [
        "spo2 < 88 BPCO connue",
        "spo2<88 BPCO connue",
        "SPO2 \N{FULLWIDTH LESS-THAN SIGN} 88% BPCO connue",
        "sat bas 88 % BPCO connue",
    ],
)
def test_a_limit_is_understood_however_it_is_spaced(line: str) -> None:
    assert limited(line) == Bedside(
        kind=Kind.SPO2,
        direction="low",
        subject=Subject.SET,
        threshold=Decimal(88),
        reason="BPCO connue",
    )


def test_a_limit_may_have_a_tenth_with_a_comma_or_a_point_and_a_unit() -> None:
    for line in ("temp > 39,5 fièvre connue", "temp > 39.5°C fièvre connue"):
        assert limited(line).threshold == Decimal("39.5")


def test_a_limit_without_a_side_leaves_the_side_open() -> None:
    assert limited("spo2 88 BPCO").direction is None


@pytest.mark.parametrize(
    "line", ["spo2 < 88 garder BPCO", "spo2 < 88 BPCO keep", "spo2<88 % keep BPCO"]
)
def test_a_limit_is_kept_where_the_word_stands_first_or_last(line: str) -> None:
    said = limited(line)
    assert said.kept
    assert said.reason == "BPCO"


def test_a_reason_may_hold_anything_and_is_bounded() -> None:
    assert limited("ta > 180 si TA > 200 voir le Dr Ba").reason == "si TA > 200 voir le Dr Ba"
    assert len(limited(f"ta > 180 {'x' * 600}").reason) == MAX_REASON


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("88 BPCO", Problem.SIGN_MISSING),
        ("spo2 <", Problem.THRESHOLD),
        ("spo2 < bas BPCO", Problem.THRESHOLD),
        ("spo2 < 88.55 BPCO", Problem.THRESHOLD),
        ("spo2 < 88", Problem.REASON_MISSING),
        ("spo2 < 88 garder", Problem.REASON_MISSING),
        ("spo2 < 88 !", Problem.REASON_MISSING),
        ("spo2 <= 88 BPCO", Problem.COMPARISON),
        ("spo2 ≤ 88 BPCO", Problem.COMPARISON),
        ("spo2 = 88 BPCO", Problem.COMPARISON),
        ("spo2 normal demain", Problem.WORDS),
    ],
)
def test_a_limit_that_is_not_clear_sets_nothing(line: str, why: Problem) -> None:
    assert problem(limited, line) is why


def test_limits_are_shown_or_go_back_to_the_usual_ones() -> None:
    assert limited("") == Bedside()
    assert limited("lit 4") == Bedside(bed="4")
    assert limited("spo2") == Bedside(kind=Kind.SPO2)
    usual = limited("fc > normal lit 4")
    assert usual == Bedside("4", Kind.HEART_RATE, direction="high", subject=Subject.RESET)


@pytest.mark.parametrize(
    ("line", "lasts"),
    [("6h", 360), ("6", 360), ("6 heures", 360), ("90 min", 90), ("24 h", 1440), ("lit 4 2h", 120)],
)
def test_values_are_looked_back_at_for_hours_unless_minutes_are_said(line: str, lasts: int) -> None:
    assert looked_back(line).lasts == lasts * MINUTES


def test_signs_are_entered_in_pairs_in_either_language() -> None:
    said = Bedside(respiration=18, consciousness=Consciousness.ALERT, oxygen=False)
    assert entered("fr 18 conscience A o2 non") == said
    assert entered("rr: 18/min avpu=a o2=no") == said
    assert entered("o2 air, acvpu alerte, resp 18.") == said
    assert entered("conscience D lit 4") == Bedside(bed="4", consciousness=Consciousness.PAIN)


@pytest.mark.parametrize(
    "line",
    ["18", "fr", "fr dix", "fr 18 fr 20", "fr 18 19", "o2 2l", "conscience X", "fc 80",
     f"fr {MAX_RESPIRATION + 1}", "fr 180"],
)  # fmt: skip
def test_signs_that_are_not_clear_enter_nothing(line: str) -> None:
    assert problem(entered, line) is Problem.WORDS
    assert problem(entered, "") is Problem.NOTHING_ENTERED


PIECES = st.sampled_from(
    ["lit", "bed", "4", "12b", "spo2", "fc", "temp", "ta", "<", ">", "≤", "88", "38,5", "10m", "6h",
     "%", "garder", "keep", "normal", "BPCO", "fr", "18", "conscience", "A", "o2", "non", "capteur",
     "\N{NO-BREAK SPACE}", "«", "\u200b", "\ud800", "\N{FULLWIDTH LESS-THAN SIGN}"]
)  # fmt: skip
LINES = st.lists(PIECES | st.text(st.characters(exclude_categories=()), max_size=4), max_size=8)


@given(reader=st.sampled_from(READERS), pieces=LINES, glue=st.sampled_from([" ", "", "  "]))
def test_any_line_is_understood_within_its_bounds_or_unclear(
    reader: object, pieces: list[str], glue: str
) -> None:
    assert callable(reader)
    try:
        said = reader(glue.join(pieces))
    except UnclearError:
        return
    assert isinstance(said, Bedside)
    assert said.direction in (None, *Direction)
    assert said.lasts is None or said.lasts >= MINUTES
    assert said.respiration is None or 0 <= said.respiration <= MAX_RESPIRATION
    assert len(said.reason) <= MAX_REASON
    assert (said.threshold is not None) == (said.subject is Subject.SET)
    assert said.subject is not Subject.SET or said.reason


@given(
    kind=st.sampled_from(["fc", "spo2", "temp", "ta", "tad"]),
    side=st.sampled_from(["<", ">"]),
    number=st.integers(0, 999),
    bed=st.integers(1, 99),
    first=st.booleans(),
)
def test_the_bed_is_the_same_first_or_last_and_never_the_limit(
    kind: str, side: str, number: int, bed: int, *, first: bool
) -> None:
    limit = f"{kind} {side} {number} raison donnée"
    said = limited(f"lit {bed} {limit}" if first else f"{limit} lit {bed}")
    assert (said.bed, said.threshold) == (str(bed), Decimal(number))
    assert said.reason == "raison donnée"


@pytest.mark.parametrize("action", [Action.ACKNOWLEDGE, Action.SNOOZE, Action.VITALS_SHOW])
@pytest.mark.parametrize("language", Language)
def test_the_line_shown_in_a_ward_names_the_bed(action: Action, language: Language) -> None:
    command = parse(usage_in_ward(action, language, "7"), language=language)
    assert command is not None
    assert command.about is not None
    assert (command.action, command.about.bed) == (action, "7")


def test_an_unclear_line_is_told_in_the_language_of_its_verb_and_quotes_nothing() -> None:
    with pytest.raises(CommandError) as caught:
        parse("!seuils spo2 < 88", language=Language.ENGLISH)
    assert caught.value.code == Problem.REASON_MISSING
    assert "!seuils spo2 < 88 raison" in str(caught.value)
    with pytest.raises(CommandError) as caught:
        parse("!snooze Aminata", language=Language.FRENCH)
    assert "Aminata" not in str(caught.value)
