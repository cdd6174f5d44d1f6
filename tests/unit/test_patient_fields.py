"""What stands in a patient's record: visible, in one line, and no name."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from appservice.patients import checked_bed, checked_initials, checked_number
from fajma.errors import InputError

UNSEEN = [
    "",
    " ",
    "4\n5",
    "4\t5",
    "4\x07",
    "4\N{RIGHT-TO-LEFT OVERRIDE}5",
    "4\N{LEFT-TO-RIGHT ISOLATE}5",
    "4\N{ZERO WIDTH SPACE}",
    "4\N{SOFT HYPHEN}5",
    "4\N{NO-BREAK SPACE}5",
    "4\N{LINE SEPARATOR}5",
    "4\N{HANGUL FILLER}",
    "4\N{VARIATION SELECTOR-16}",
    "4\N{COMBINING GRAPHEME JOINER}5",
]


@pytest.mark.parametrize("check", [checked_number, checked_initials, checked_bed])
@pytest.mark.parametrize("typed", UNSEEN)
def test_what_nobody_sees_is_refused_in_every_field(
    check: Callable[[str], str], typed: str
) -> None:
    with pytest.raises(InputError) as caught:
        check(typed)
    assert caught.value.code.startswith("patient_")


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("A.D.", "A.D."),
        (" ad ", "ad"),
        ("A-M. D", "A-M. D"),
        ("É.N.", "É.N."),
        ("E\N{COMBINING ACUTE ACCENT}.N.", "É.N."),
        ("A.B.C.D.", "A.B.C.D."),
        ("م.ع.", "م.ع."),
    ],
)
def test_initials_are_up_to_four_letters(typed: str, kept: str) -> None:
    assert checked_initials(typed) == kept


@pytest.mark.parametrize("typed", ["Awa Diop", "Aminata", "A.B.C.D.E.", "...", "A2", "A,D", "@a:b"])
def test_a_name_is_refused_where_initials_belong_and_not_repeated(typed: str) -> None:
    with pytest.raises(InputError, match="no name of a patient is kept") as caught:
        checked_initials(typed)
    assert caught.value.code == "patient_initials"
    assert typed not in str(caught.value).replace("letters with dots, blanks", "")


def test_a_bed_is_what_the_ward_calls_it() -> None:
    assert checked_bed(" Couveuse 3 / B ") == "Couveuse 3 / B"


def test_a_number_stays_as_it_is_for_patients_are_found_by_it() -> None:
    assert checked_number("D-0001/é") == "D-0001/é"
    with pytest.raises(InputError, match="without blanks around"):
        checked_number(" D-0001")
