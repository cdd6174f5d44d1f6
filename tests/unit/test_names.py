"""Names that cannot be mistaken for each other, or for anything else."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appservice.names import checked_name, look_alike
from fajma.errors import InputError
from fajma.store.people import MAX_NAME

# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("  Awa   Diop ", "Awa Diop"),
        ("E\N{COMBINING ACUTE ACCENT}lodie", "Élodie"),
        ("N'Diaye-Sarr", "N'Diaye-Sarr"),
        ("محمد", "محمد"),
        ("Мария", "Мария"),
        ("Dr. Awa", "Dr. Awa"),
        ("N’Diaye", "N’Diaye"),  # noqa: RUF001 - as phones type it
        ("x" * MAX_NAME, "x" * MAX_NAME),
    ],
)
def test_a_name_of_one_alphabet_is_kept(typed: str, kept: str) -> None:
    assert checked_name(typed) == kept


@pytest.mark.parametrize(
    ("typed", "rule"),
    [
        ("", "has letters"),
        ("   ", "has letters"),
        ("...", "has letters"),
        ("x" * (MAX_NAME + 1), "too long: at most 64"),
        ("Аwa", "two alphabets"),  # noqa: RUF001 - the first letter is Cyrillic
        ("Aνa", "two alphabets"),  # noqa: RUF001 - the second is Greek
        ("Awa محمد", "two alphabets"),
        ("Awa\N{RIGHT-TO-LEFT OVERRIDE}poiD", "invisible"),
        ("Awa\N{ZERO WIDTH SPACE}Diop", "invisible"),
        ("Awa\N{ZERO WIDTH JOINER}Diop", "invisible"),
        ("Awa\N{HANGUL FILLER}Diop", "invisible"),
        ("Awa\N{BRAILLE PATTERN BLANK}Diop", "invisible"),
        ("Awa\x00Diop", "invisible"),
        ("Awa\ud800", "invisible"),
        ("Awa 2", "letters, blanks, hyphens"),
        ("Awa (de nuit)", "letters, blanks, hyphens"),
        ("@awa:clinic.test", "letters, blanks, hyphens"),
        ("Awa · Diop", "letters, blanks, hyphens"),
    ],
)
def test_a_name_that_may_look_like_another_is_refused_with_the_rule(typed: str, rule: str) -> None:
    with pytest.raises(InputError, match=rule) as caught:
        checked_name(typed)
    assert caught.value.code == "name_invalid"
    assert typed.strip() not in str(caught.value) or not typed.strip(" .")


@given(st.text(max_size=80))
def test_a_checked_name_is_short_visible_and_stays_as_it_is(typed: str) -> None:
    try:
        kept = checked_name(typed)
    except InputError:
        return
    assert 0 < len(kept) <= MAX_NAME
    assert kept.isprintable()
    assert checked_name(kept) == kept


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Awa Diop", "awa diop"),
        ("Awa Diop", "AwaDiop"),
        ("Élodie", "Elodie"),
        ("Awa-Diop", "Awa Diop"),
        ("N'Diaye", "NDiaye"),
        ("Weiß", "WEISS"),
        ("ﬁfi", "fifi"),
        ("Ａｗａ", "Awa"),  # noqa: RUF001 - full width
        # Shapes that ASCII has twice; digits stand in records of old.
        ("Isa Diop", "lsa Diop"),
        ("Awa Sall", "Awa SaIl"),
        ("Fa1l", "Fall"),
        ("O1ga", "Olga"),
        ("0lga", "Olga"),
        ("Bernard", "Bemard"),
        ("Wade", "Vvade"),
    ],
)
def test_names_that_look_the_same_are_found(one: str, other: str) -> None:
    assert look_alike(one, other)
    assert look_alike(other, one)


def test_names_that_can_be_told_apart_are_not_taken_for_each_other() -> None:
    names = ["Awa Diop", "Awa Diopp", "Moussa Ba", "محمد", "Мария", "Fali", "Fall", "FALI NDIAYE"]
    for one, other in itertools.combinations([*names, "Fall Ndiaye"], 2):
        assert not look_alike(one, other), (one, other)
