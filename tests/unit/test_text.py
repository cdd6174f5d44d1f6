"""The words of alarms, and the languages they are written in."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from string import Formatter

import pytest
from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.pofile import read_po
from hypothesis import given, settings
from hypothesis import strategies as st

from bots.alerts.alarm import Decision, Reason
from bots.alerts.alarm_state import AlarmId, Trouble
from bots.alerts.late import LateDecision
from bots.alerts.limits import DEFAULT_LIMITS, Comparison, Limit, Priority
from bots.alerts.open_alarms import AnyDecision
from bots.alerts.technical import TechnicalDecision
from bots.alerts.text import MAX_BED, MAX_INITIALS, Signal, Text, duty_time, render
from fajma.errors import BugError
from fajma.language import DEFAULT_LANGUAGE, Language, translator
from fajma.vitals import DeviceId, Kind

ROOT = Path(__file__).parents[2]
FRENCH, ENGLISH = Language.FRENCH, Language.ENGLISH
NB = "\N{NO-BREAK SPACE}"
ISOLATES = {"\N{FIRST STRONG ISOLATE}", "\N{POP DIRECTIONAL ISOLATE}"}
NOW = datetime(2026, 3, 1, 14, 2, 31, tzinfo=UTC)


def decision(
    kind: Kind = Kind.SPO2,
    value: str = "86",
    limit: Limit = DEFAULT_LIMITS[Kind.SPO2][0][1],
    *,
    reason: Reason = Reason.STARTED,
    lasted: float = 20,
) -> Decision:
    return Decision(
        reason=reason,
        kind=kind,
        direction=limit.direction,
        priority=limit.priority,
        value=Decimal(value),
        limit=limit,
        alarm_id=AlarmId("spo2-low-4711"),
        since=NOW - timedelta(seconds=lasted),
        measured_at=NOW,
        at=NOW,
    )


def say(
    told: AnyDecision,
    *,
    bed: str = "4",
    initials: str = "A.D.",
    language: Language = FRENCH,
    zone: str = "Africa/Abidjan",
    signal: Signal | None = None,
) -> Text:
    return render(told, bed=bed, initials=initials, language=language, zone=zone, signal=signal)


class _Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert attrs == []
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def words_of(html: str) -> _Words:
    words = _Words()
    words.feed(html)
    words.close()
    return words


# What is said


def test_a_start_is_told_in_french_with_priority_and_bed_first() -> None:
    assert say(decision()).body == (
        f"ALARME HAUTE · Lit 4 A.D. · SpO2 86{NB}% (<{NB}90 depuis 20{NB}s) · 14:02 UTC+0 · "
        "Voir le patient"
    )


def test_a_start_is_told_in_english() -> None:
    assert say(decision(), language=ENGLISH).body == (
        f"HIGH PRIORITY ALARM · Bed 4 A.D. · SpO2 86{NB}% (<{NB}90 for 20{NB}s) · 14:02 UTC+0 · "
        "See the patient"
    )


def test_the_html_says_the_same_with_what_matters_in_bold() -> None:
    assert say(decision()).html == (
        f"<strong>ALARME HAUTE</strong> · Lit 4 A.D. · <strong>SpO2 86{NB}%</strong> "
        f"(&lt;{NB}90 depuis 20{NB}s) · 14:02 UTC+0 · <strong>Voir le patient</strong>"
    )


def test_a_worsening_is_told_like_a_start() -> None:
    assert say(decision(reason=Reason.WORSENED)) == say(decision())


def test_the_end_is_told_with_the_value_and_without_a_limit() -> None:
    end = decision(value="97", reason=Reason.RECOVERED)

    assert say(end).body == f"FIN D'ALARME · Lit 4 A.D. · SpO2 97{NB}% · 14:02 UTC+0"
    assert say(end, language=ENGLISH).body == (
        f"END OF ALARM · Bed 4 A.D. · SpO2 97{NB}% · 14:02 UTC+0"
    )


@pytest.mark.parametrize(
    ("priority", "french", "english"),
    [
        (Priority.LOW, "ALARME BASSE", "LOW PRIORITY ALARM"),
        (Priority.MEDIUM, "ALARME MOYENNE", "MEDIUM PRIORITY ALARM"),
        (Priority.HIGH, "ALARME HAUTE", "HIGH PRIORITY ALARM"),
    ],
)
def test_an_alarm_names_its_priority_and_the_limit_that_is_broken(
    priority: Priority, french: str, english: str
) -> None:
    told = decision(Kind.HEART_RATE, "128", Limit(Comparison.ABOVE, Decimal(120), priority))

    assert say(told).body.startswith(f"{french} · Lit 4 A.D. · FC 128{NB}/min (>{NB}120 depuis")
    assert say(told, language=ENGLISH).body.startswith(
        f"{english} · Bed 4 A.D. · HR 128{NB}/min (>{NB}120 for"
    )


@pytest.mark.parametrize(
    ("kind", "value", "french", "english"),
    [
        (Kind.HEART_RATE, "135", f"FC 135{NB}/min", f"HR 135{NB}/min"),
        (Kind.SPO2, "86", f"SpO2 86{NB}%", f"SpO2 86{NB}%"),
        (Kind.TEMPERATURE, "39", f"T° 39,0{NB}°C", f"Temp 39.0{NB}°C"),
        (Kind.SYSTOLIC, "225", f"TA systolique 225{NB}mmHg", f"Systolic BP 225{NB}mmHg"),
        (Kind.DIASTOLIC, "115", f"TA diastolique 115{NB}mmHg", f"Diastolic BP 115{NB}mmHg"),
    ],
)
def test_each_kind_has_its_clinical_name_and_unit(
    kind: Kind, value: str, french: str, english: str
) -> None:
    told = decision(kind, value, Limit(Comparison.AT_LEAST, Decimal(1), Priority.HIGH))

    assert f" · {french} (" in say(told).body
    assert f" · {english} (" in say(told, language=ENGLISH).body


@pytest.mark.parametrize(
    ("value", "shown"),
    [("38.5625", "38,6"), ("38.51", "38,6"), ("38.6", "38,6"), ("39.00", "39,0")],
)
def test_a_value_above_its_limit_is_never_rounded_onto_it(value: str, shown: str) -> None:
    limit = DEFAULT_LIMITS[Kind.TEMPERATURE][1][0]
    assert (
        f"T° {shown}{NB}°C (>{NB}38,5 depuis" in say(decision(Kind.TEMPERATURE, value, limit)).body
    )


def test_a_value_below_its_limit_is_never_rounded_onto_it() -> None:
    assert f"SpO2 89,9{NB}% (<{NB}90 depuis" in say(decision(value="89.96")).body


@pytest.mark.parametrize(
    ("lasted", "shown"),
    [
        (0.4, None),
        (-5, None),
        (1, f"1{NB}s"),
        (59.4, f"59{NB}s"),
        (59.6, f"1{NB}min"),
        (170, f"3{NB}min"),
        (7200, f"120{NB}min"),
    ],
)
def test_how_long_it_lasts_is_rounded_and_left_out_when_it_has_just_begun(
    lasted: float, shown: str | None
) -> None:
    body = say(decision(lasted=lasted)).body
    expected = f"(<{NB}90)" if shown is None else f"(<{NB}90 depuis {shown})"
    assert expected in body


@pytest.mark.parametrize(
    ("zone", "shown"),
    [
        ("Africa/Abidjan", "14:02 UTC+0"),
        ("Europe/Paris", "15:02 UTC+1"),
        ("America/Martinique", "10:02 UTC-4"),
        ("Asia/Kolkata", "19:32 UTC+5:30"),
        ("America/St_Johns", "10:32 UTC-3:30"),
        ("Nowhere/At_All", "14:02 UTC+0"),
        ("../etc/passwd", "14:02 UTC+0"),
        ("", "14:02 UTC+0"),
    ],
)
def test_the_time_is_local_with_its_offset_and_utc_where_the_zone_is_unknown(
    zone: str, shown: str
) -> None:
    assert f" · {shown} · " in say(decision(), zone=zone).body


def test_summer_time_is_that_of_the_measurement() -> None:
    told = replace(decision(), measured_at=datetime(2026, 7, 1, 14, 2, tzinfo=UTC))
    assert " · 16:02 UTC+2 · " in say(told, zone="Europe/Paris").body


def test_the_quality_of_the_signal_is_shown_where_it_is_known() -> None:
    assert "s) · signal bon · 14:02" in say(decision(), signal=Signal.GOOD).body
    assert "s) · poor signal · 14:02" in say(decision(), signal=Signal.POOR, language=ENGLISH).body


@pytest.mark.parametrize("reason", [r for r in Reason if not decision(reason=r).announce])
def test_a_decision_that_is_not_announced_has_no_words(reason: Reason) -> None:
    with pytest.raises(BugError, match="announced"):
        say(decision(reason=reason))


# What is said again, and ends that nobody saw


@pytest.mark.parametrize(
    ("reason", "step", "french", "english"),
    [
        (
            Reason.RENOTIFIED,
            0,
            f"rappel{NB}: personne n'a répondu",
            "reminder: nobody has answered",
        ),
        (
            Reason.ESCALATED,
            1,
            f"personne n'a répondu{NB}: palier 2",
            "nobody has answered: step 2",
        ),
        (Reason.SNOOZE_ENDED, 0, "fin de la pause", "the pause is over"),
        (Reason.SNOOZE_BROKEN, 0, "aggravation pendant la pause", "worse during the pause"),
    ],
)
def test_a_message_that_comes_again_says_why_after_what_is_wrong(
    reason: Reason, step: int, french: str, english: str
) -> None:
    told = replace(decision(reason=reason), step=step)

    assert say(told).body == (
        f"ALARME HAUTE · Lit 4 A.D. · SpO2 86{NB}% (<{NB}90 depuis 20{NB}s) · {french} · "
        "14:02 UTC+0 · Voir le patient"
    )
    assert f" · {english} · 14:02" in say(told, language=ENGLISH).body


def test_a_reminder_does_not_say_that_a_value_breaks_a_limit_it_does_not_break() -> None:
    told = decision(value="93.04", reason=Reason.RENOTIFIED, lasted=300)

    assert f"SpO2 93{NB}% (alarme <{NB}90 il y a 5{NB}min)" in say(told).body
    assert f"SpO2 93{NB}% (alarm <{NB}90 5{NB}min ago)" in say(told, language=ENGLISH).body


def test_an_age_that_nobody_entered_is_named() -> None:
    told = render(
        decision(), bed="4", initials="A.D.", language=FRENCH, zone="UTC", age_unknown=True
    )

    assert f" · âge inconnu{NB}: limites d'un adulte · 14:02" in told.body


def test_the_end_of_monitoring_names_the_limit_of_the_alarm_that_was_open() -> None:
    end = decision(reason=Reason.NOT_MONITORED)

    assert say(end).body == (
        f"FIN DE SURVEILLANCE · Lit 4 A.D. · une alarme était ouverte{NB}: "
        f"SpO2 <{NB}90{NB}% · 14:02 UTC+0"
    )


def test_an_end_by_other_limits_says_so() -> None:
    end = decision(reason=Reason.RULES_CHANGED)

    assert say(end).body == (
        f"FIN D'ALARME · Lit 4 A.D. · SpO2 <{NB}90{NB}% · les limites ont changé · 14:02 UTC+0"
    )


# Technical alarms and late breaches


def trouble(
    what: Trouble,
    *,
    reason: Reason = Reason.STARTED,
    lasted: float = 90,
    last: datetime | None = NOW,
    priority: Priority = Priority.MEDIUM,
) -> TechnicalDecision:
    at = NOW + timedelta(seconds=lasted)
    device = DeviceId("A4CF12F03B7E")
    alarm_id = AlarmId(f"{what}-{device}-n1")
    return TechnicalDecision(reason, what, device, priority, alarm_id, NOW, last, at)


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (
            trouble(Trouble.NO_READINGS),
            (
                f"ALARME TECHNIQUE · Lit 4 A.D. · plus de mesures depuis 90{NB}s · "
                "dernière 14:02 UTC+0 · Voir le patient et le capteur"
            ),
        ),
        (
            trouble(Trouble.NO_READINGS, last=None, lasted=120),
            (
                f"ALARME TECHNIQUE · Lit 4 A.D. · plus de mesures depuis 2{NB}min · "
                "aucune encore · Voir le patient et le capteur"
            ),
        ),
        (
            trouble(Trouble.NO_READINGS, reason=Reason.RENOTIFIED, lasted=700),
            (
                f"ALARME TECHNIQUE · Lit 4 A.D. · plus de mesures depuis 12{NB}min · "
                f"rappel{NB}: personne n'a répondu · dernière 14:02 UTC+0 · "
                "Voir le patient et le capteur"
            ),
        ),
        (
            trouble(Trouble.PROBE_OFF, lasted=30),
            (
                f"ALARME TECHNIQUE · Lit 4 A.D. · capteur détaché ou sans signal depuis 30{NB}s · "
                "dernière 14:02 UTC+0 · Voir le patient et le capteur"
            ),
        ),
        (
            trouble(Trouble.UNKNOWN_AGE, lasted=60),
            (
                f"ALARME TECHNIQUE · Lit 4 A.D. · mesures d'âge inconnu depuis 60{NB}s · "
                "dernière 14:02 UTC+0 · Voir le patient et le capteur"
            ),
        ),
        (
            trouble(Trouble.WRONG_CLOCK),
            (
                "ALARME TECHNIQUE · Lit 4 A.D. · l'horloge du moniteur est fausse · "
                "14:04 UTC+0 · Régler l'horloge"
            ),
        ),
        (
            trouble(Trouble.NO_USABLE_PULSE, priority=Priority.HIGH),
            (
                "ALARME HAUTE · Lit 4 A.D. · pas de pouls exploitable · dernière 14:02 UTC+0 · "
                "Voir le patient et le capteur"
            ),
        ),
        (
            trouble(Trouble.PROBE_OFF, reason=Reason.RECOVERED),
            "FIN D'ALARME TECHNIQUE · Lit 4 A.D. · le signal du pouls est revenu · 14:04 UTC+0",
        ),
    ],
)
def test_a_technical_alarm_says_what_is_wrong_since_when_and_what_was_the_last(
    told: TechnicalDecision, text: str
) -> None:
    found = say(told)

    assert found.body == text
    assert words_of(found.html).text == text


@pytest.mark.parametrize("what", Trouble)
@pytest.mark.parametrize("reason", [reason for reason in Reason if reason.announced])
@pytest.mark.parametrize("language", Language)
def test_every_announced_word_on_every_trouble_can_be_said(
    what: Trouble, reason: Reason, language: Language
) -> None:
    assert " · " in say(trouble(what, reason=reason), language=language).body


def late(first: timedelta, last: timedelta, reason: Reason = Reason.DURING_OUTAGE) -> LateDecision:
    limit = DEFAULT_LIMITS[Kind.SPO2][0][1]
    return LateDecision(
        reason=reason,
        kind=Kind.SPO2,
        direction=limit.direction,
        priority=limit.priority,
        value=Decimal(84),
        measured_at=NOW - first,
        limit=limit,
        alarm_id=AlarmId("late-spo2-low-4711"),
        first=NOW - first,
        last=NOW - last,
        at=NOW,
        step=1,
    )


def test_a_late_breach_says_its_worst_value_and_from_when_to_when() -> None:
    told = late(timedelta(minutes=62), timedelta(minutes=57))

    assert say(told).body == (
        f"PENDANT LA COUPURE · ALARME HAUTE · Lit 4 A.D. · SpO2 84{NB}% (<{NB}90) · "
        "13:00 à 13:05 UTC+0 · Voir le patient"
    )
    assert "13:00 to 13:05 UTC+0" in say(told, language=ENGLISH).body


def test_a_late_breach_of_another_day_has_its_date_and_a_short_one_a_single_time() -> None:
    two_days = timedelta(days=2)

    assert " · 27 févr. 14:02 UTC+0 · " in say(late(two_days, two_days)).body
    reminder = say(late(two_days, two_days, Reason.ESCALATED)).body
    assert f"(<{NB}90) · personne n'a répondu{NB}: palier 2 · 27 févr." in reminder


# What staff typed is not trusted


def test_typed_text_cannot_become_html() -> None:
    told = say(decision(), bed="<b>4</b>", initials='&"D')
    assert "Lit &lt;b&gt;4&lt;/b&gt; &amp;&quot;D · " in told.html
    assert 'Lit <b>4</b> &"D · ' in told.body


@pytest.mark.parametrize(
    ("bed", "shown"),
    [
        ("4\u202e2", "42"),
        ("4\x00\x1b[31m", "4[31m"),
        ("4\n\n FIN", "4 FIN"),
        ("4\u200b\u00ad\ufeff", "4"),
        ("4 · FIN D'ALARME", "4 FIN D'ALARME"),
        ("  4\u2003B  ", "4 B"),
        ("e\u0301", "é"),
        ("", "?"),
        ("\u202e", "?"),
        ("\u05d0\u05d1 3", "\u2068\u05d0\u05d1 3\u2069"),
    ],
)
def test_characters_that_could_disturb_the_line_are_taken_out_of_typed_text(
    bed: str, shown: str
) -> None:
    assert say(decision(), bed=bed).body.split(" · ")[1] == f"Lit {shown} A.D."


def test_a_long_bed_loses_its_middle_and_keeps_the_number_at_its_end() -> None:
    shown = say(decision(), bed="Réanimation polyvalente, chambre double, lit 12").body
    bed = shown.split(" · ")[1].removeprefix("Lit ").removesuffix(" A.D.")
    assert bed == "Réanimation poly… double, lit 12"
    assert len(bed) == MAX_BED


@settings(deadline=None)
@given(st.text(max_size=80), st.text(max_size=80), st.sampled_from(Language))
def test_no_typed_text_changes_the_rest_of_the_line(
    bed: str, initials: str, language: Language
) -> None:
    plain = say(decision(), language=language)
    told = say(decision(), bed=bed, initials=initials, language=language)
    parts, expected = told.body.split(" · "), plain.body.split(" · ")

    assert parts[:1] + parts[2:] == expected[:1] + expected[2:]
    assert {c for c in told.body if unicodedata.category(c)[0] == "C"} <= ISOLATES
    assert len(parts[1]) <= len("Bed  ") + MAX_BED + MAX_INITIALS + 4
    read = words_of(told.html)
    assert read.text == told.body
    assert read.tags == {"strong"}


# Since when somebody is on duty


@pytest.mark.parametrize(
    ("since", "zone", "language", "text"),
    [
        (timedelta(hours=1), "Africa/Dakar", FRENCH, "11:00"),
        (timedelta(hours=1), "Europe/Paris", FRENCH, "12:00"),
        (timedelta(hours=1), "no/zone", FRENCH, "11:00"),
        (timedelta(hours=24, seconds=-1), "Africa/Dakar", FRENCH, "12:00"),
        (timedelta(hours=24), "Africa/Dakar", FRENCH, "1 mars 12:00"),
        (timedelta(hours=24), "Africa/Dakar", ENGLISH, "1 Mar 12:00"),
        (-timedelta(hours=1), "Africa/Dakar", FRENCH, "13:00"),  # to come
        (-timedelta(hours=24), "Africa/Dakar", FRENCH, "3 mars 12:00"),
        (-timedelta(hours=13), "Africa/Dakar", FRENCH, "3 mars 01:00"),
    ],
)
def test_duty_began_at_a_time_of_the_wards_clock_and_before_a_day_on_a_date(
    since: timedelta, zone: str, language: Language, text: str
) -> None:
    now = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
    assert duty_time(now - since, zone, language, now=now) == text


# The languages


def messages_in_the_code() -> Iterator[str]:
    for package in ("fajma", "appservice", "bridges", "bots", "console"):
        for _, _, message, _, _ in extract_from_dir(ROOT / package, [("**.py", "python")]):
            yield from message if isinstance(message, tuple) else (message,)


@pytest.fixture(scope="module")
def french() -> Catalog:
    with (ROOT / "fajma" / "locale" / "fr.po").open("rb") as source:
        return read_po(source, locale="fr", abort_invalid=True)


def forms(text: object) -> tuple[str, ...]:
    """A message or a translation as its forms: one, or one per plural."""
    found = (text,) if isinstance(text, str) else text
    assert isinstance(found, list | tuple)
    return tuple(found)


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


def test_every_message_in_the_code_has_a_french_translation(french: Catalog) -> None:
    used = set(messages_in_the_code())
    translated = {form for m in french if m.id and all(forms(m.string)) for form in forms(m.id)}

    assert "Bed {bed}" in used, "messages are found at all"
    assert sorted(used - translated) == []


def test_every_translation_is_used_and_none_is_fuzzy(french: Catalog) -> None:
    known = {form for message in french if message.id for form in forms(message.id)}

    assert sorted(known - set(messages_in_the_code())) == []
    assert [message.id for message in french if message.id and message.fuzzy] == []


def test_translations_have_the_placeholders_of_their_message(french: Catalog) -> None:
    for message in french:
        if message.id:
            for string in forms(message.string):
                assert fields(string) == fields(forms(message.id)[-1]), message.id


def test_french_has_a_no_break_space_before_its_double_marks(french: Catalog) -> None:
    # Not before the mark of a command, nor where the English has none, as in an address.
    for message in french:
        for string in forms(message.string) if message.id else ():
            assert not re.search(r"(?<!\xa0)[:;!?](?=\s|$)", string), string


def test_french_is_spoken_where_nothing_is_said_and_english_is_the_message_itself() -> None:
    assert DEFAULT_LANGUAGE is FRENCH
    assert translator().gettext("See the patient") == "Voir le patient"
    assert translator(ENGLISH).gettext("See the patient") == "See the patient"
    assert translator(FRENCH).gettext("never translated") == "never translated"
