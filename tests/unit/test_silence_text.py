"""The words about the monitoring itself, and how long a planned stop may be."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click
import pytest

from bots.alerts import silence_text
from bots.alerts.silence_text import MAX_LINES
from console.maintenance import Duration
from fajma.language import Language
from fajma.store.heartbeats import ALARMS, APPSERVICE, INGEST

NOW = datetime(2026, 3, 2, 14, 2, tzinfo=UTC)
ENGLISH, FRENCH = Language.ENGLISH, Language.FRENCH
NB = "\N{NO-BREAK SPACE}"


def test_what_the_homeserver_says_names_no_time_of_day_for_it_may_come_at_any() -> None:
    assert silence_text.silent(ENGLISH, silence_s=45).body == (
        "NO SIGN OF LIFE FROM MONITORING · the homeserver heard nothing from it in the"
        f" 45{NB}s before this message · Alarms may not come · See the patients and their monitors,"
        " and call the operator"
    )


def test_after_a_planned_stop_it_says_when_that_was_to_end() -> None:
    text = silence_text.overdue(FRENCH, until=NOW, zone="Europe/Paris")
    assert "un arrêt prévu devait finir à 15:02 UTC+1" in text.body
    assert text.html.startswith("<strong>SURVEILLANCE SANS SIGNE DE VIE</strong> · ")


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (INGEST, "what takes in readings"),
        (ALARMS, "what judges readings"),
        (APPSERVICE, "what shows vitals in rooms"),
    ],
)
def test_a_silent_part_is_named_by_what_it_does(part: str, name: str) -> None:
    since = NOW - timedelta(seconds=40)
    text = silence_text.part_silent(part, ENGLISH, since=since, zone="UTC", now=NOW)
    assert text.body.split(" · ")[1] == f"{name}, since 14:01 UTC+0"
    never = silence_text.part_silent(part, ENGLISH, since=None, zone="UTC", now=NOW)
    assert never.body.split(" · ")[1] == name
    assert ("Alarms may not come" in text.body) == (part != APPSERVICE)


def test_the_reason_of_a_stop_cannot_disturb_the_message() -> None:
    text = silence_text.stopping(
        ENGLISH, started_at=NOW, until=NOW, reason="new <disk>\n · \u202e" + "x" * 200, zone="UTC"
    )
    reason = text.body.split(" · ")[2]
    assert reason.startswith("new <disk> x")
    assert "\n" not in text.body
    assert len(reason) == silence_text.MAX_REASON
    assert "&lt;disk&gt;" in text.html


def test_who_must_be_looked_at_stands_below_and_not_more_than_fit() -> None:
    lines = [f"Bed {number} A.D." for number in range(MAX_LINES + 3)]
    text = silence_text.back(
        ENGLISH, since=NOW - timedelta(days=2), now=NOW, zone="UTC", patients=lines
    )
    head, *below = text.body.splitlines()
    assert head == (
        "MONITORING IS BACK · Between 28 Feb 14:02 and 14:02 UTC+0 alarms may be missing or late"
        " · Look at these patients"
    )
    assert below == [*lines[:MAX_LINES], "and 3 more"]
    assert text.html.count("<br>") == MAX_LINES + 1
    nobody = silence_text.back(ENGLISH, since=NOW, now=NOW, zone="UTC", patients=[])
    assert nobody.body.endswith("No alarm is open, every monitor sends")


@pytest.mark.parametrize(
    ("typed", "minutes"),
    [("30m", 30), ("2h", 120), ("1h30m", 90), ("90min", 90), ("12H", 720)],
)
def test_a_duration_is_typed_as_people_say_it(typed: str, minutes: int) -> None:
    assert Duration().convert(typed, None, None) == timedelta(minutes=minutes)


@pytest.mark.parametrize("typed", ["", "0m", "30", "13h", "12h1m", "-5m", "1d", "m"])
def test_a_duration_that_is_none_or_too_long_is_refused(typed: str) -> None:
    with pytest.raises(click.BadParameter):
        Duration().convert(typed, None, None)
