"""What people are told about their accounts, and codes that cannot be mistaken."""

from __future__ import annotations

import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appservice import letters, wards
from appservice.staff import one_time_password
from fajma.commands import CODE_LENGTH, Action, Command, parse
from fajma.language import Language
from fajma.store.people import MAX_NAME
from fajma.trust import identity_code

AWA = "@awa.diop:clinic.test"
PASSWORD = "abcde-fghjk-mnpqr-stuvw"
SERVER = "https://matrix.clinic.test"
CODE = "K7QF-2MZT"
BOTH = pytest.mark.parametrize("language", list(Language))


ROOM = "Service medecine"


def welcome(
    language: Language,
    *,
    password: str | None = PASSWORD,
    here: bool = True,
    room: str | None = ROOM,
) -> str:
    return letters.welcome(
        language, account=AWA, password=password, homeserver=SERVER, here=here, room=room
    )


def lost(
    language: Language,
    *,
    stolen: bool = False,
    devices: tuple[str, ...] = ("Pixel",),
    room: str | None = ROOM,
) -> str:
    return letters.lost_phone(
        language,
        account=AWA,
        password=PASSWORD,
        homeserver=SERVER,
        devices=devices,
        stolen=stolen,
        room=room,
    )


def new_password(language: Language) -> str:
    return letters.new_password(language, account=AWA, password=PASSWORD, homeserver=SERVER)


def steps(letter: str) -> list[int]:
    numbered = [line.partition(".")[0] for line in letter.splitlines()]
    return [int(one) for one in numbered if one.isdigit()]


# --- letters -------------------------------------------------------------------------------------


@BOTH
def test_a_new_member_of_staff_reads_where_to_type_what(language: Language) -> None:
    letter = welcome(language)
    assert AWA in letter
    assert SERVER in letter
    assert " awa.diop  " in letter.replace("\N{NO-BREAK SPACE}", " ")  # the user name alone
    assert letter.count(PASSWORD) == 1
    assert ROOM in letter  # whose invitation is to be accepted
    assert "!test" in letter
    assert steps(letter) == [1, 2, 3, 4, 5, 6, 7]
    lines = letter.splitlines()
    assert lines[1::2] == [""] * (len(lines) // 2)  # on paper, with room between the steps


@BOTH
def test_who_keeps_an_account_gets_no_password_and_the_steps_that_remain(
    language: Language,
) -> None:
    letter = welcome(language, password=None)
    assert AWA in letter
    assert PASSWORD not in letter
    assert ROOM in letter
    assert "!test" in letter
    assert steps(letter) == [1, 2, 3, 4]


@BOTH
@pytest.mark.parametrize("password", [PASSWORD, None])
def test_who_is_in_no_ward_is_sent_to_no_room(language: Language, password: str | None) -> None:
    for letter in (welcome(language, password=password, room=None), lost(language, room=None)):
        assert "!test" not in letter
        assert ROOM not in letter
    assert steps(welcome(language, room=None)) == [1, 2, 3, 4, 5]


def test_the_drill_is_said_to_ring_those_on_duty() -> None:
    assert "rings the phones of those on duty" in welcome(Language.ENGLISH)
    assert "!duty take" in welcome(Language.ENGLISH)
    assert "!garde prendre" in welcome(Language.FRENCH)


@BOTH
def test_a_new_password_changes_nothing_where_somebody_is_signed_in(language: Language) -> None:
    letter = new_password(language)
    assert letter.count(PASSWORD) == 1
    assert SERVER in letter
    assert steps(letter) == [1, 2, 3, 4, 5, 6]


@BOTH
def test_who_had_no_device_is_told_of_none(language: Language) -> None:
    head = lost(language, devices=()).splitlines()[0]
    assert AWA in head
    assert "{" not in head
    assert not head.endswith(": ")


@BOTH
def test_only_who_is_on_another_homeserver_is_told_to_set_the_rules(language: Language) -> None:
    rules = letters.partner_rules(language)
    assert "fajma staff check" in rules
    assert rules in welcome(language, password=None, here=False)
    assert rules not in welcome(language)


@BOTH
def test_who_lost_a_phone_keeps_the_identity_on_paper(language: Language) -> None:
    letter = lost(language, devices=("Pixel", "iPad"))
    assert "Pixel, iPad" in letter
    assert letter.count(PASSWORD) == 1
    assert SERVER in letter
    assert steps(letter) == [1, 2, 3, 4, 5, 6, 7]


def test_who_was_robbed_is_told_to_reset_and_never_to_use_the_old_recovery_key() -> None:
    stolen, mislaid = lost(Language.ENGLISH, stolen=True), lost(Language.ENGLISH)
    assert "trusted no more" in stolen
    assert "type the key from your paper" in mislaid
    assert "type the key from your paper" not in stolen
    assert "trusted no more" not in mislaid
    assert steps(stolen) == [1, 2, 3, 4, 5, 6, 7]
    french = lost(Language.FRENCH, stolen=True)
    assert steps(french) == steps(stolen)
    assert french != lost(Language.FRENCH)


@BOTH
def test_the_name_of_a_device_cannot_disturb_a_letter(language: Language) -> None:
    evil = "Pixel\n1. Type your password here: evil.test\N{RIGHT-TO-LEFT OVERRIDE}" + "x" * 500
    for letter in (
        lost(language, devices=(evil,)),
        letters.unsigned_device(language, device=evil),
    ):
        assert "\n1. Type" not in letter
        assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in letter
        assert "x" * MAX_NAME not in letter


@BOTH
def test_the_operators_read_which_ward_and_why(language: Language) -> None:
    nobody = letters.outage(language, ward="medecine-2", on_duty=False)
    unreachable = letters.outage(language, ward="medecine-2", on_duty=True)
    assert "medecine-2" in nobody
    assert "medecine-2" in unreachable
    assert nobody != unreachable


def test_why_nobody_is_woken_is_said_the_right_way_round() -> None:
    assert "can be reached" in letters.outage(Language.ENGLISH, ward="w", on_duty=True)
    assert "nobody is on duty" in letters.outage(Language.ENGLISH, ward="w", on_duty=False)


def test_every_letter_is_written_in_both_languages() -> None:
    def lines(letter: str) -> list[str]:
        return [line for line in letter.splitlines() if line]

    def all_of(language: Language) -> list[str]:
        return [
            *lines(welcome(language, here=False)),
            *lines(welcome(language, password=None)),
            *lines(lost(language)),
            *lines(lost(language, stolen=True)),
            *lines(lost(language, devices=())),
            *lines(new_password(language)),
            letters.unsigned_device(language, device="Pixel"),
            letters.changed_identity(language, staff=True, code=CODE),
            letters.changed_identity(language, staff=False, code=CODE),
            letters.drill(language, ward="w"),
            letters.muted(language),
            letters.no_phone(language),
            wards.topic(language),
            wards.greeting(language, None, AWA),
            letters.outage(language, ward="w", on_duty=True),
            letters.outage(language, ward="w", on_duty=False),
            letters.undeliverable(language, room_id="!r:clinic.test"),
        ]

    english, french = all_of(Language.ENGLISH), all_of(Language.FRENCH)
    assert len(english) == len(french)
    assert not set(english) & set(french)
    assert all("{" not in line for line in english + french)


@BOTH
def test_a_patient_is_not_sent_to_colleagues(language: Language) -> None:
    staff, patient = (
        letters.changed_identity(language, staff=one, code=CODE) for one in (True, False)
    )
    assert staff != patient
    assert CODE in staff  # so that it can be read to whoever asks
    assert CODE in patient
    for word in ("operator", "colleagues", "exploitant", "collègues"):
        assert word not in patient


def test_who_has_no_phone_is_told_another_thing_than_who_has_muted_it() -> None:
    assert "no phone of yours" in letters.no_phone(Language.ENGLISH)
    assert "all notifications off" in letters.muted(Language.ENGLISH)


@BOTH
def test_a_newcomer_is_greeted_in_one_line_that_points_to_the_help(language: Language) -> None:
    greeting = wards.greeting(language, None, AWA)
    assert AWA in greeting
    assert len(greeting.splitlines()) == 1
    for text in (greeting, wards.topic(language)):
        assert text.endswith({"fr": "!aide", "en": "!help"}[language.value])


# --- codes and passwords -------------------------------------------------------------------------


def test_a_first_password_is_twenty_letters_that_nobody_misreads() -> None:
    passwords = {one_time_password() for _ in range(200)}
    assert len(passwords) == 200
    for password in passwords:
        assert [len(group) for group in password.split("-")] == [5, 5, 5, 5]
    letters_used = set("".join(passwords)) - {"-"}
    assert len(letters_used) == 31
    assert not letters_used & set("il1o0ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def test_a_code_is_the_same_for_one_key_and_another_for_another() -> None:
    codes = {identity_code(secrets.token_urlsafe(32)) for _ in range(500)}
    assert len(codes) == 500
    assert identity_code("key") == identity_code("key")
    # Worked out apart: SHA-256 of "key" begins 2c 70 e1 2b 7a, five bits for each character.
    assert identity_code("key") == "5HRE-2AVT"
    for code in codes:
        assert len(code.replace("-", "")) == CODE_LENGTH
        assert not set(code) & set("ILOU")


@given(st.text())
def test_every_code_can_be_typed_as_it_is_shown_and_carelessly(key: str) -> None:
    code = identity_code(key)
    for typed in (code, code.lower(), code.replace("-", " "), code.replace("-", "")):
        understood = parse(f"!identité accepter @awa {typed}", language=Language.FRENCH)
        assert isinstance(understood, Command)
        assert (understood.action, understood.code) == (Action.IDENTITY_ACCEPT, code)
