"""What is typed about a consultation: a line means one thing, or nothing is done."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fajma.commands import Action, Command, CommandError, Person, parse
from fajma.language import Language
from fajma.life import ParticipantRole
from fajma.reception import Problem, Reception, Wish, opened, put_on, seated, spoken
from fajma.typed import UnclearError

CODE = "A4CF12F03B7E"
FULL = Reception(Wish.OPEN, "A.D.", "4", "12345", CODE, "@aminata:clinic.test")
NBSP, DASH = "\N{NO-BREAK SPACE}", "\N{EN DASH}"


def said(line: str, *mentions: str) -> Command:
    command = parse(line, language=Language.FRENCH, mentions=mentions)
    assert command is not None
    return command


def refused(line: str, *mentions: str) -> str:
    with pytest.raises(CommandError) as caught:
        parse(line, language=Language.FRENCH, mentions=mentions)
    return caught.value.code


# --- opening -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        f"A.D. lit 4 dossier 12345 moniteur {CODE} patient @aminata:clinic.test",
        f"a.d. bed 4 record 12345 monitor {CODE} patient @aminata:clinic.test",
        f"AD patient @Aminata:Clinic.test, moniteur {CODE.lower()} dossier n° 12345, lit 4.",
        "A D. dossier no 12345 moniteur a4:cf:12:f0:3b:7e patiente @aminata:clinic.test Lit 4",
        f"A-D lit «4» dossier 12345 moniteur A4 CF 12 {DASH} F0 3B 7E patient @aminata:clinic.test",
    ],
)
def test_the_parts_of_an_opening_stand_in_any_order_and_spelling(line: str) -> None:
    assert opened(line) == FULL
    assert opened(line.replace(" ", NBSP)) == FULL
    assert said(f"!consultation {line}") == Command(
        Action.CONSULTATION_OPEN, Language.FRENCH, reception=FULL
    )


def test_monitor_and_account_may_be_missing() -> None:
    assert opened("A.D. lit 4 dossier 12345") == Reception(Wish.OPEN, "A.D.", "4", "12345")


@pytest.mark.parametrize("rest", ["", " ", "!", " ?"])
def test_the_verb_alone_asks_for_the_open_ones(rest: str) -> None:
    assert opened(rest) == Reception(Wish.SHOW)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("lit 4 dossier 1", Problem.INITIALS),
        ("Aminata lit 4 dossier 1", Problem.INITIALS),
        ("A1 lit 4 dossier 1", Problem.INITIALS),
        ("A.D. dossier 1", Problem.BED),
        ("A.D. lit dossier 1", Problem.BED),
        ("A.D. lit 4 bis dossier 1", Problem.BED),
        (f"A.D. lit {'4' * 33} dossier 1", Problem.BED),
        ("A.D. lit 4", Problem.RECORD),
        ("A.D. lit 4 dossier", Problem.RECORD),
        ("A.D. lit 4 dossier 12 345", Problem.RECORD),
        ("A.D. lit 4 dossier 12345\N{CYRILLIC CAPITAL LETTER A}", Problem.RECORD),
        ("A.D. lit 4 dossier ١٢٣", Problem.RECORD),
        ("A.D. lit 4 dossier 1\N{ZERO WIDTH SPACE}2", Problem.RECORD),
        ("A.D. lit 4 dossier 1 moniteur", Problem.MONITOR),
        ("A.D. lit 4 dossier 1 moniteur A4CF12F03B7", Problem.MONITOR),
        ("A.D. lit 4 dossier 1 patient Aminata", Problem.PATIENT),
        ("A.D. lit 4 dossier 1 patient @aminata", Problem.PATIENT),
        ("A.D. lit 4 dossier 1 patient @a:b @c:d", Problem.PATIENT),
        ("A.D. lit 4 bed 5 dossier 1", Problem.TWICE),
        ("A.D. lit 4 dossier 1 dossier 1", Problem.TWICE),
    ],
)
def test_what_could_be_another_patient_is_refused(line: str, problem: Problem) -> None:
    with pytest.raises(UnclearError) as caught:
        opened(line)
    assert caught.value.problem is problem
    assert refused(f"!consultation {line}") == problem.value


def test_full_width_digits_are_the_digits_they_are() -> None:
    assert opened("A.D. lit 4 dossier \N{FULLWIDTH DIGIT ONE}2").record == "12"


def test_a_patient_who_was_picked_from_a_list_must_be_written_out() -> None:
    assert refused("!consultation A.D. lit 4 dossier 1 patient Aminata", "@a:b") == (
        Problem.PATIENT.value
    )


# --- monitors, languages, people -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("rest", "wish", "code"),
    [
        (CODE, Wish.PUT_ON, CODE),
        ("a4:cf:12:f0:3b:7e", Wish.PUT_ON, CODE),
        (f"code A4CF-12F0{DASH}3B7E.", Wish.PUT_ON, CODE),
        ("3b 7e", Wish.PUT_ON, "3B7E"),
        ("retirer", Wish.TAKE_OFF, None),
        ("Enlever !", Wish.TAKE_OFF, None),
        ("remove 3B7E", Wish.TAKE_OFF, "3B7E"),
        (f"{CODE} off", Wish.TAKE_OFF, CODE),
    ],
)
def test_a_monitor_is_put_on_or_taken_off(rest: str, wish: Wish, code: str | None) -> None:
    assert put_on(rest) == Reception(wish, monitor=code)


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "3B7",
        "3B7E4",
        f"{CODE}0",
        "3B7G",
        "du patient",
        "retirer du lit 4",
        "3B7\N{CYRILLIC CAPITAL LETTER IE}",
    ],
)
def test_a_code_with_a_digit_too_few_too_many_or_strange_is_none(rest: str) -> None:
    with pytest.raises(UnclearError) as caught:
        put_on(rest)
    assert caught.value.problem is Problem.MONITOR


@pytest.mark.parametrize("rest", ["", "de", "fr en", "le français", "ar"])
def test_only_french_and_english_are_spoken(rest: str) -> None:
    with pytest.raises(UnclearError):
        spoken(rest)


@pytest.mark.parametrize(
    ("rest", "seat"),
    [
        (" @awa", ParticipantRole.CLINICIAN),
        (" @awa observateur", ParticipantRole.OBSERVER),
        (" @awa Observatrice.", ParticipantRole.OBSERVER),
        (" @awa interprète", ParticipantRole.INTERPRETER),
        (" @awa, companion!", ParticipantRole.COMPANION),
    ],
)
def test_somebody_is_a_clinician_unless_another_seat_is_named(
    rest: str, seat: ParticipantRole
) -> None:
    assert seated(rest)[1] is seat
    assert said(f"!inviter{rest}").person == Person(localpart="awa")


def test_an_account_that_is_called_like_a_seat_is_an_account() -> None:
    command = said("!inviter @observateur")
    assert command.person == Person(localpart="observateur")
    assert command.reception == Reception(Wish.INVITE, seat=ParticipantRole.CLINICIAN)


def test_whoever_is_brought_in_or_removed_must_be_named_for_certain() -> None:
    for line in ("!inviter", "!inviter observateur", "!retirer", "!remove 🙂"):
        assert refused(line) == "person_missing"
    assert refused("!retirer Awa Diop") == "person_unclear"
    picked = said("!retirer Awa Diop", "@awa:clinic.test").person
    assert picked == Person(mxid="@awa:clinic.test", shown="Awa Diop")


@pytest.mark.parametrize("rest", ["1A2B", "1a2b.", "consultation 1A2B", "«1a2b»"])
def test_what_is_signed_may_be_named_as_its_room_is(rest: str) -> None:
    assert said(f"!signer {rest}").reception == Reception(Wish.SIGN, consultation="1A2B")


# --- ending --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    ["!terminer malgré", "!terminer malgré tout", "!terminer oui non", "!end now", "!terminer ok",
     "!end despite alarm now", "!terminer alarme", "!end of the shift", "!signer tout", "!call me",
     "!signer lit 4",
     "!admettre @awa", "!appel urgent au lit 4"],
)  # fmt: skip
def test_words_that_do_not_belong_end_nothing(line: str) -> None:
    assert refused(line) == "command_words"


@pytest.mark.parametrize(
    "line",
    [
        "malgré l'alarme",
        "malgre les alarmes",
        "despite alarm",
        "Malgré alarme !",
        "malgré la alarme",
    ],
)
def test_ending_despite_an_alarm_may_be_written_as_it_is_said(line: str) -> None:
    assert said(f"!terminer {line}").action is Action.END_DESPITE_ALARM


# --- any text at all -----------------------------------------------------------------------------

WORDS = st.sampled_from(
    ["A.D.", "lit", "bed", "4", "dossier", "record", "12345", "moniteur", "monitor", CODE, "3B7E",
     "A4:CF", "patient", "@aminata:clinic.test", "retirer", "off", "code", "n°", "observateur",
     "fr", "malgré", "alarme", "oui", "'", "!", NBSP, "\u200b", "\u202e", "\ud800"]
)  # fmt: skip
TEXTS = st.one_of(
    st.lists(WORDS | st.text(st.characters(exclude_categories=()), max_size=4), max_size=12).map(
        " ".join
    ),
    st.text(st.characters(exclude_categories=())),
)
VERBS = st.sampled_from(
    ["consultation", "inviter", "retirer", "moniteur", "appel", "langue", "admettre", "terminer",
     "signer"]
)  # fmt: skip


@given(text=TEXTS)
@example(text="A.D. lit 4 dossier 1 patient")
def test_any_text_is_read_or_unclear(text: str) -> None:
    for read in (opened, put_on, spoken):
        try:
            found = read(text)
        except UnclearError:
            continue
        assert found.record is None or (found.record.isascii() and found.record.isprintable())
        assert found.monitor is None or len(found.monitor) in (4, 12)
        assert (found.wish is Wish.OPEN) == (found.initials is not None)


@given(verb=VERBS, text=TEXTS)
def test_any_text_after_a_verb_is_a_command_or_an_error_that_quotes_nothing(
    verb: str, text: str
) -> None:
    told = ""
    try:
        assert parse(f"!{verb} {text}", language=Language.ENGLISH) is not None
    except CommandError as error:
        told = str(error)
    assert "@aminata" not in told


@given(verb=VERBS, text=TEXTS)
def test_a_verb_without_the_mark_is_prose(verb: str, text: str) -> None:
    assert parse(f"{verb} {text}", language=Language.FRENCH) is None
