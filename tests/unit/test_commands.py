"""What people type: forgiven in its spelling, never in its meaning."""

import re
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fajma.commands import (
    AT_BEDSIDE,
    IN_CONSULTATION,
    IN_WARD,
    MAX_BODY,
    MAX_LINE,
    NAMES_SOMEBODY,
    OWNERS,
    Action,
    Command,
    CommandError,
    Owner,
    Person,
    Verb,
    help_text,
    parse,
    same_name,
    usage,
)
from fajma.language import Language
from fajma.typed import folded

FRENCH, ENGLISH = Language.FRENCH, Language.ENGLISH
AWA = "@awa:clinic.test"
EVE = "@eve:clinic.test"
BOT = "@fajma-alerts:clinic.test"
CYRILLIC_A = "\N{CYRILLIC SMALL LETTER A}"
NBSP = "\N{NO-BREAK SPACE}"

LINES = [
    ("!garde", Action.DUTY_SHOW, FRENCH),
    ("!duty", Action.DUTY_SHOW, ENGLISH),
    ("!garde prendre", Action.DUTY_TAKE, FRENCH),
    ("!garde prends", Action.DUTY_TAKE, FRENCH),
    ("!garde oui", Action.DUTY_TAKE, FRENCH),
    ("!duty take", Action.DUTY_TAKE, ENGLISH),
    ("!duty on", Action.DUTY_TAKE, ENGLISH),
    ("!garde quitter", Action.DUTY_LEAVE, FRENCH),
    ("!garde fin", Action.DUTY_LEAVE, FRENCH),
    ("!duty leave", Action.DUTY_LEAVE, ENGLISH),
    ("!duty off", Action.DUTY_LEAVE, ENGLISH),
    ("!relève @awa", Action.HANDOVER_OFFER, FRENCH),
    ("!handover awa", Action.HANDOVER_OFFER, ENGLISH),
    ("!relève accepter", Action.HANDOVER_ACCEPT, FRENCH),
    ("!handover accept", Action.HANDOVER_ACCEPT, ENGLISH),
    ("!relève refuser", Action.HANDOVER_DECLINE, FRENCH),
    ("!handover decline", Action.HANDOVER_DECLINE, ENGLISH),
    ("!relève annuler", Action.HANDOVER_CANCEL, FRENCH),
    ("!handover cancel", Action.HANDOVER_CANCEL, ENGLISH),
    ("!exercice", Action.DRILL_START, FRENCH),
    ("!drill", Action.DRILL_START, ENGLISH),
    ("!présent", Action.DRILL_ANSWER, FRENCH),
    ("!présente", Action.DRILL_ANSWER, FRENCH),
    ("!here", Action.DRILL_ANSWER, ENGLISH),
    ("!identité accepter @awa K7QF-2MZT", Action.IDENTITY_ACCEPT, FRENCH),
    ("!identity accept @awa K7QF-2MZT", Action.IDENTITY_ACCEPT, ENGLISH),
    ("!vu", Action.ACKNOWLEDGE, FRENCH),
    ("!vue", Action.ACKNOWLEDGE, FRENCH),
    ("!ack", Action.ACKNOWLEDGE, ENGLISH),
    ("!seen spo2", Action.ACKNOWLEDGE, ENGLISH),
    ("!snooze hr > 5 min", Action.SNOOZE, ENGLISH),
    ("!alarmes", Action.ALARMS_SHOW, FRENCH),
    ("!alarms bed 4", Action.ALARMS_SHOW, ENGLISH),
    ("!seuils", Action.LIMITS_SHOW, FRENCH),
    ("!limites", Action.LIMITS_SHOW, FRENCH),
    ("!limits", Action.LIMITS_SHOW, ENGLISH),
    ("!seuils spo2 < 88 bpco", Action.LIMIT_SET, FRENCH),
    ("!limits temp > 39.5 known fever", Action.LIMIT_SET, ENGLISH),
    ("!seuils spo2 normal", Action.LIMIT_RESET, FRENCH),
    ("!limits spo2 usual", Action.LIMIT_RESET, ENGLISH),
    ("!constantes 6h", Action.VITALS_SHOW, FRENCH),
    ("!vitals", Action.VITALS_SHOW, ENGLISH),
    ("!mesure fr 18", Action.SIGNS_ENTER, FRENCH),
    ("!enter rr 18 avpu a o2 no", Action.SIGNS_ENTER, ENGLISH),
    ("!inviter @awa", Action.INVITE, FRENCH),
    ("!invite @awa:clinic.test observer", Action.INVITE, ENGLISH),
    ("!retirer @awa", Action.REMOVE, FRENCH),
    ("!remove @awa", Action.REMOVE, ENGLISH),
    ("!moniteur A4CF12F03B7E", Action.MONITOR_LINK, FRENCH),
    ("!monitor 3b7e", Action.MONITOR_LINK, ENGLISH),
    ("!moniteur retirer", Action.MONITOR_UNLINK, FRENCH),
    ("!monitor remove", Action.MONITOR_UNLINK, ENGLISH),
    ("!appel", Action.CALL, FRENCH),
    ("!call", Action.CALL, ENGLISH),
    ("!langue en", Action.LANGUAGE, FRENCH),
    ("!language français", Action.LANGUAGE, ENGLISH),
    ("!admettre", Action.ADMIT, FRENCH),
    ("!admit", Action.ADMIT, ENGLISH),
    ("!terminer", Action.END_ASK, FRENCH),
    ("!end", Action.END_ASK, ENGLISH),
    ("!terminer oui", Action.END, FRENCH),
    ("!end yes", Action.END, ENGLISH),
    ("!terminer malgré l'alarme", Action.END_DESPITE_ALARM, FRENCH),
    ("!end despite the alarm", Action.END_DESPITE_ALARM, ENGLISH),
    ("!signer", Action.SIGN, FRENCH),
    ("!sign", Action.SIGN, ENGLISH),
    ("!aide", Action.HELP, FRENCH),
    ("!help", Action.HELP, ENGLISH),
]


def said(body: str, *mentions: str, reply: bool = False) -> Command:
    command = parse(body, language=FRENCH, mentions=mentions, reply=reply)
    assert command is not None
    return command


def meaning(command: Command | None) -> Command | None:
    """The command, whatever the spelling of a reason, which is kept as it was typed."""
    if command is None or command.about is None:
        return command
    return replace(command, about=replace(command.about, reason=folded(command.about.reason)))


def refused(body: str, *mentions: str, language: Language = FRENCH, reply: bool = False):
    with pytest.raises(CommandError) as caught:
        parse(body, language=language, mentions=mentions, reply=reply)
    return caught.value


def spellings(text: str) -> list[str]:
    """The same line as other keyboards and hurried fingers write it."""
    bare = "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))
    return [
        text.upper(),
        text.title(),
        bare,
        unicodedata.normalize("NFD", text),
        text.replace("!", "!" + NBSP),
        text.replace("!", "\N{FULLWIDTH EXCLAMATION MARK}"),
        text.replace("!", "\N{DOUBLE EXCLAMATION MARK}"),
        text.replace("!", "!!! "),
        text.replace(" ", NBSP + "\N{NARROW NO-BREAK SPACE}"),
        f"\N{ZERO WIDTH NO-BREAK SPACE}  {text}\n\n",
        f"{text}.",
        f"{text} !",
        f"{text}\N{HORIZONTAL ELLIPSIS}",
    ]


# The lines


@pytest.mark.parametrize(("body", "action", "language"), LINES)
@pytest.mark.parametrize("room", Language)
def test_every_line_is_understood_in_every_room_and_answered_in_its_own_language(
    body: str, action: Action, language: Language, room: Language
) -> None:
    command = parse(body, language=room)
    assert command is not None
    assert (command.action, command.language) == (action, language)


@pytest.mark.parametrize("room", Language)
def test_a_verb_of_both_languages_is_answered_in_that_of_the_room(room: Language) -> None:
    assert parse("!test", language=room) == Command(Action.DRILL_START, room)
    paused = parse("!pause spo2 10m", language=room)
    assert paused is not None
    assert (paused.action, paused.language) == (Action.SNOOZE, room)


@pytest.mark.parametrize(("body", "action", "language"), LINES)
def test_accents_case_blanks_and_marks_are_forgiven(
    body: str, action: Action, language: Language
) -> None:
    plain = said(body)
    for spelling in spellings(body):
        assert meaning(parse(spelling, language=FRENCH)) == meaning(plain), ascii(spelling)
    assert (plain.action, plain.language) == (action, language)


@pytest.mark.parametrize("language", Language)
@pytest.mark.parametrize("action", Action)
def test_the_line_shown_for_an_action_asks_for_it(action: Action, language: Language) -> None:
    command = parse(usage(action, language), language=language)
    assert command is not None
    assert (command.action, command.language) == (action, language)


@pytest.mark.parametrize("language", Language)
def test_the_help_begins_each_line_with_what_to_type(language: Language) -> None:
    lines = help_text(language).splitlines()
    assert len(lines) == len(Action)
    for line, action in zip(lines, Action, strict=True):
        typed, _, meaning = line.partition(" \N{EN DASH} ")
        assert typed == usage(action, language)
        assert meaning


@pytest.mark.parametrize("language", Language)
def test_the_help_in_a_consultation_shows_only_what_works_there(language: Language) -> None:
    lines = help_text(language, IN_CONSULTATION).splitlines()
    assert {line.partition(" \N{EN DASH} ")[0] for line in lines} == {
        usage(action, language) for action in IN_CONSULTATION
    }
    assert Action.DUTY_TAKE not in IN_CONSULTATION
    assert "✅" in "".join(lines), "the quickest answer on a phone"


def test_every_action_has_its_room() -> None:
    assert set(Action) == IN_WARD | IN_CONSULTATION
    assert Action.CONSULTATION_OPEN not in IN_CONSULTATION
    assert Action.END not in IN_WARD
    assert Action.SIGN not in IN_CONSULTATION  # nobody can type there any more


def test_whose_code_is_missing_is_told_where_it_stands_and_to_ask_by_voice() -> None:
    error = str(refused("!identity accept @awa"))
    assert "FAJMA's message" in error
    assert "by voice" in error


def test_every_verb_has_exactly_one_owner_and_every_action_a_verb() -> None:
    assert set(OWNERS) == set(Verb)
    assert {action.verb for action in Action} == set(Verb)
    assert set(OWNERS.values()) == {Owner.ALERTS}
    assert said("!garde").owner is Owner.ALERTS


def test_help_is_given_whatever_else_the_line_holds() -> None:
    assert said("! aide moi vite").action is Action.HELP


def test_the_page_for_staff_shows_every_line_and_each_is_understood() -> None:
    page = (Path(__file__).parents[2] / "docs" / "commands.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`!.+?) \| (`!.+?) \| .+ \| .+ \|$", page, re.MULTILINE)
    shown = set()
    for row in rows:
        for room, cell in zip(Language, row, strict=True):
            for line in re.findall(r"`(.+?)`", cell):
                command = parse(line, language=room)
                assert command is not None, line
                shown.add((command.action, command.language))
                assert command.language is room
    assert shown == {(action, language) for action in Action for language in Language}


# What is no command


@pytest.mark.parametrize(
    "body",
    ["", " ", "\n", "!", "!!!", "! ", "!!! vite", "! attention au lit 4", "!?", "!…", "! 🙂",
     "garde", "la garde !", "bonjour\n!garde", "> !garde", "> a\n> b", "« !garde »", "¡garde",
     "!\ngarde", "!" + "x" * 100, "! merci", "! venez", "!!! appelez le médecin", "! appelle-la"],
)  # fmt: skip
def test_prose_is_left_alone(body: str) -> None:
    assert parse(body, language=FRENCH) is None


@pytest.mark.parametrize(
    ("body", "line"),
    [("!gard", "!garde"), ("! gadre prendre", "!garde"), ("!relev @awa", "!relève"),
     ("!prsent", "!présent"), ("!healp", "!help"), ("!handovr", "!handover"),
     (f"!g{CYRILLIC_A}rde", "!garde")],
)  # fmt: skip
def test_a_mistyped_verb_is_told_the_nearest_line_and_where_all_are(body: str, line: str) -> None:
    error = refused(body)
    assert error.code == "command_unknown"
    assert str(error).splitlines()[-1].startswith(line)
    assert usage(Action.HELP, FRENCH) in str(error) or usage(Action.HELP, ENGLISH) in str(error)


@pytest.mark.parametrize(
    ("body", "line"),
    [("!test de glycémie fait", "!test"), ("!garde prendre demain", "!garde prendre"),
     ("!garde prende", "!garde prendre"), ("!présent partout", "!présent"),
     ("!garde accepter", "!garde"), ("!garde demain", "!garde quitter"),
     ("!handover accpt", "!handover accept"), ("!handover accpt", "!handover @name"),
     ("!relève accepter demain", "!relève accepter"),
     ("!identité", "!identité accepter @nom K7QF-2MZT"),
     ("!identité @awa K7QF-2MZT", "!identité accepter @nom K7QF-2MZT")],
)  # fmt: skip
def test_words_that_do_not_belong_do_nothing_and_show_the_line(body: str, line: str) -> None:
    error = refused(body)
    assert error.code == "command_words"
    assert line in str(error).splitlines()


@pytest.mark.parametrize("body", ["!garde\n!test", "!garde prendre\n\nmerci", "!test\u2028vite"])
def test_one_message_is_one_command_on_one_line(body: str) -> None:
    assert refused(body).code == "command_lines"


def test_prose_of_many_lines_is_still_prose() -> None:
    assert parse("!!! vite\n!garde", language=FRENCH) is None


def test_what_a_reply_quotes_is_no_part_of_the_line() -> None:
    quote = f"> <{BOT}> Relève proposée\n> !garde quitter\n>\n> fin\n\n"
    assert said(f"{quote}!relève accepter", BOT).action is Action.HANDOVER_ACCEPT
    assert said(f"{quote}!garde").action is Action.DUTY_SHOW


# Persons


@pytest.mark.parametrize(
    ("typed", "person"),
    [("@awa", Person(localpart="awa")), ("awa", Person(localpart="awa")),
     ("@Awa", Person(localpart="awa")), ("@ awa", Person(localpart="awa")),
     ("“@awa”", Person(localpart="awa")), ("@awa.", Person(localpart="awa")),
     ("@a.diop_2=x/y+z-1", Person(localpart="a.diop_2=x/y+z-1")),
     ("@non", Person(localpart="non")), ("@accepter", Person(localpart="accepter")),
     (AWA, Person(mxid=AWA)), (f"{AWA}:8448", Person(mxid=f"{AWA}:8448")),
     ("@AWA:Clinic.Test", Person(mxid=AWA)),
     ("@awa:[2001:db8::1]:8448", Person(mxid="@awa:[2001:db8::1]:8448")),
     ("@old!name#1:clinic.test", Person(mxid="@old!name#1:clinic.test"))],
)  # fmt: skip
def test_an_account_that_was_typed_is_the_person(typed: str, person: Person) -> None:
    assert said(f"!relève {typed}").person == person
    assert said(f"!identité accepter {typed} K7QF-2MZT").person == person


def test_the_blank_before_an_account_may_be_missing() -> None:
    assert said("!relève@awa").person == Person(localpart="awa")


@pytest.mark.parametrize(
    ("body", "code"),
    [("!relève", "person_missing"), ("!relève @", "person_missing"),
     ("!relève ?", "person_missing"), ("!relève 👍", "person_missing"),
     (f"!relève @{CYRILLIC_A}wa", "person_not_ascii"), ("!relève Béatrice", "person_not_ascii"),
     ("!relève \N{FULLWIDTH COMMERCIAL AT}awa", "person_not_ascii"),
     ("!relève @a\N{ZERO WIDTH SPACE}wa", "person_not_ascii"),
     ("!relève @a\N{RIGHT-TO-LEFT OVERRIDE}wa", "person_not_ascii"),
     ("!relève Awa Diop", "person_unclear"), ("!relève @awa @eve", "person_unclear"),
     ("!relève awa:clinic.test", "person_unclear"), ("!relève @awa:", None),
     ("!relève @awa:clinic_test", "person_unclear"), ("!relève a#b", "person_unclear"),
     (f"!relève @{'a' * 250}:clinic.test", "person_unclear")],
)  # fmt: skip
def test_who_is_not_named_for_certain_is_asked_for(body: str, code: str | None) -> None:
    if code is None:
        assert said(body).person == Person(localpart="awa")
        return
    error = refused(body)
    assert error.code == code
    assert str(error).splitlines()[-1] == "!relève @nom"


@pytest.mark.parametrize(
    "name",
    ["Awa", "Awa Diop", "fatou", "عائشة", f"{CYRILLIC_A}wa", "@[Awa Diop]", "🙂", "", "a\u202eb",
     "@Béa", AWA, f"[Awa](https://matrix.to/#/{AWA})", "@awa", "quelqu'un d'autre"],
)  # fmt: skip
def test_the_person_picked_from_the_list_counts_whatever_the_name_says(name: str) -> None:
    found = said(f"!relève {name}", AWA).person
    assert found is not None
    assert found.mxid == AWA
    assert (found.shown is None) == ("@awa" in name)  # otherwise the account itself stands there
    assert said(f"!relève {name}", AWA, AWA).person == found
    identity = said(f"!identité accepter {name} K7QF-2MZT", AWA)
    assert (identity.person, identity.code) == (found, "K7QF-2MZT")


def test_what_stands_for_somebody_who_was_picked_is_handed_on() -> None:
    assert said("!relève « Awa Diop »:", AWA).person == Person(mxid=AWA, shown="Awa Diop")
    assert said("!relève", AWA).person == Person(mxid=AWA, shown="")
    assert said("!relève @awa", AWA).person == Person(mxid=AWA)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("Béatrice N'Diaye", " beatrice  n'diaye:", True), ("عائشة", "عائشة", True),
     ("Awa Diop", "Awa", False), ("Awa", "", False), ("Awa Diop", "Diop Awa", False),
     ("Awa", f"{CYRILLIC_A}wa", False)],
)  # fmt: skip
def test_names_are_the_same_in_any_case_with_or_without_accents(
    one: str, other: str, *, same: bool
) -> None:
    assert same_name(one, other) is same
    assert same_name(other, one) is same


def test_a_picked_account_is_kept_as_it_is_written() -> None:
    person = Person(mxid="@Awa:old.test", shown="x")
    assert said("!relève x", "@Awa:old.test").person == person


@pytest.mark.parametrize(
    "name", [EVE, "@eve", f"Awa {EVE}", f"[Awa](https://matrix.to/#/{EVE})", "@awa:other.test"]
)
def test_an_account_in_the_text_must_be_the_one_picked(name: str) -> None:
    assert refused(f"!relève {name}", AWA).code == "person_differs"


def test_two_people_picked_are_too_many() -> None:
    assert refused("!relève Awa", AWA, EVE).code == "person_several"
    assert refused(f"!relève {AWA}", AWA, BOT).code == "person_several"


@pytest.mark.parametrize("mention", ["", "awa", "@awa", f"@{CYRILLIC_A}wa:clinic.test", "@a b:c"])
def test_a_mention_that_is_no_account_names_nobody(mention: str) -> None:
    assert refused("!relève Awa", mention).code == "person_unusable"


def test_the_author_of_the_message_replied_to_is_not_the_person() -> None:
    assert refused("!relève Fatou", AWA, reply=True).code == "person_in_reply"
    assert refused(f"> <{AWA}> allo\n\n!relève Fatou", AWA).code == "person_in_reply"
    assert said("!relève @fatou", reply=True).person == Person(localpart="fatou")


def test_somebody_called_accept_makes_no_offer_an_acceptance() -> None:
    for word in ("accepter", "accept", "annuler", "accepter Diop"):
        error = refused(f"!relève {word}", EVE)
        assert error.code == "person_several"
        assert "!relève @nom" in str(error)


def test_accepting_in_a_reply_to_the_offer_is_accepting() -> None:
    assert said("!relève accepter", BOT, reply=True) == Command(Action.HANDOVER_ACCEPT, FRENCH)
    assert refused("!relève accepter", BOT, EVE, reply=True).code == "person_several"


def test_a_mention_does_not_matter_where_no_person_belongs() -> None:
    assert said("!garde prendre", BOT) == Command(Action.DUTY_TAKE, FRENCH)


# Codes


@pytest.mark.parametrize(
    "code",
    ["K7QF-2MZT", "k7qf-2mzt", "K7QF2MZT", "K7QF 2MZT", "k7 qf 2m zt", "K7QF\N{EN DASH}2MZT",
     "K7QF \N{NON-BREAKING HYPHEN} 2MZT", "K7QF-2MZT.", "«K7QF-2MZT»",
     "\N{FULLWIDTH LATIN CAPITAL LETTER K}7QF-2MZT"],
)  # fmt: skip
def test_a_code_is_read_as_people_copy_it(code: str) -> None:
    command = said(f"!identité accepter @awa {code}")
    assert (command.code, command.person) == ("K7QF-2MZT", Person(localpart="awa"))


def test_letters_that_look_like_digits_are_digits() -> None:
    assert said("!identité accepter @awa oil0-1ABC").code == "0110-1ABC"


@pytest.mark.parametrize(
    "rest",
    ["", "@awa", "@awa K7QF", "@awa K7QF-2MZ", "@awa K7QF-2MZTX", "@awa K7QF-2MZU",
     "K7QF-2MZ", "@awa K7QF_2MZT", "@awaK7QF-2MZT", "@awa ٠١٢٣-٤٥٦٧"],
)  # fmt: skip
def test_a_code_with_a_character_too_few_too_many_or_strange_is_none(rest: str) -> None:
    error = refused(f"!identité accepter {rest}")
    assert error.code == "code_missing"
    assert str(error).splitlines()[-1] == "!identité accepter @nom K7QF-2MZT"


def test_a_code_without_a_person_is_not_enough() -> None:
    assert refused("!identité accepter K7QF-2MZT").code == "person_missing"


# Errors and bounds


def test_an_error_speaks_the_language_that_was_typed() -> None:
    assert "!handover @name" in str(refused("!handover", language=FRENCH))
    assert "!relève @nom" in str(refused("!relève", language=ENGLISH))


def test_an_error_quotes_nothing_of_what_was_typed() -> None:
    for body in ("!garde secret", "!relève Secret Nom", "!gardf secret", "!test\nsecret"):
        assert "secret" not in str(refused(body)).lower()


def test_long_bodies_are_bounded() -> None:
    assert refused("!garde " + "x" * MAX_LINE).code == "command_too_long"
    assert parse("!" + " " * MAX_LINE + "garde", language=FRENCH) is None
    assert parse("!garde" + " " * MAX_BODY, language=FRENCH) is None
    assert parse("> a\n" * (MAX_BODY // 4), language=FRENCH) is None


def test_a_long_quote_before_a_command_is_no_long_command() -> None:
    assert said("> a\n" * 10_000 + "\n!garde").action is Action.DUTY_SHOW


# Any text at all

PIECES = st.sampled_from(
    ["!", "!!", " ", NBSP, "\n", "> ", "@", "@awa", AWA, EVE, ":", "-", "K7QF-2MZT", "K7QF", ".",
     "\u202e", "\u200b", "\ud800", "garde", "prendre", "releve", "relève", "accepter", "identité",
     "test", "here", "vite", CYRILLIC_A, "[", "]"]
)  # fmt: skip
BODIES = st.one_of(
    st.text(st.characters(exclude_categories=())),
    st.text(st.characters(exclude_categories=())).map("!".__add__),
    st.lists(PIECES | st.text(max_size=3), max_size=12).map("".join),
    st.lists(PIECES, max_size=8).map(lambda pieces: "!" + " ".join(pieces)),
)
MENTIONS = st.lists(st.sampled_from([AWA, EVE, BOT]) | st.text(max_size=20), max_size=3)


def outcome(body: str, mentions: list[str], *, reply: bool, language: Language) -> object:
    """The command, or the error; anything else that is raised is a failure."""
    try:
        return parse(body, language=language, mentions=mentions, reply=reply)
    except CommandError as error:
        return error.code


@given(body=BODIES, mentions=MENTIONS, reply=st.booleans(), language=st.sampled_from(Language))
@example(body="!\ud800garde", mentions=[], reply=False, language=FRENCH)
def test_any_text_is_a_command_or_an_error_or_prose(
    body: str, mentions: list[str], *, reply: bool, language: Language
) -> None:
    found = outcome(body, mentions, reply=reply, language=language)
    if isinstance(found, Command):
        person = found.person
        assert (person is not None) == (found.action in NAMES_SOMEBODY)
        assert (found.code is not None) == (found.action is Action.IDENTITY_ACCEPT)
        assert (found.about is not None) == (found.action in AT_BEDSIDE)
        if person is not None:
            assert (person.mxid is None) != (person.localpart is None)
            assert (person.mxid or person.localpart or "").isascii()
            assert not mentions or person.mxid in mentions


@given(body=BODIES.filter(lambda text: not text.startswith("!")))
def test_nothing_but_the_mark_begins_a_command(body: str) -> None:
    if "!" not in unicodedata.normalize("NFKC", body):
        assert parse(body, language=FRENCH) is None


@given(
    line=st.sampled_from([body for body, _, _ in LINES]),
    upper=st.lists(st.booleans(), min_size=40, max_size=40),
    form=st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]),
    accents=st.booleans(),
)
def test_case_and_accents_change_nothing(
    line: str, upper: list[bool], form: str, *, accents: bool
) -> None:
    decomposed = unicodedata.normalize("NFD", line)
    kept = decomposed if accents else "".join(filter(str.isascii, decomposed))
    written = "".join(c.upper() if up else c for c, up in zip(kept, upper, strict=False))
    typed = parse(unicodedata.normalize(form, written), language=FRENCH)
    assert meaning(typed) == meaning(said(line))
