"""The last hours as a table."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from bots.alerts.chart import Point
from bots.alerts.vitals_table import rows, table
from fajma.language import Language
from fajma.vitals import Kind

END = datetime(2026, 3, 2, 14, 10, tzinfo=UTC)
DASH = "\N{EN DASH}"


def at(minutes_ago: float, value: float) -> Point:
    return Point(END - timedelta(minutes=minutes_ago), value)


def lines(hours: float = 6, *, language: Language = Language.FRENCH, **values: list[Point]) -> str:
    return table(
        {Kind(kind): points for kind, points in values.items()},
        where="Lit 4 A.D.",
        since=END - timedelta(hours=hours),
        until=END,
        language=language,
        zone="Africa/Dakar",
        more=["NEWS2 5"],
    ).body


def test_each_hour_has_the_median_the_lowest_and_the_highest_value() -> None:
    shown = lines(spo2=[at(65, 95), at(64, 97), at(63, 98), at(5, 91)]).splitlines()
    assert shown[0].startswith(f"Lit 4 A.D. · 08:10 {DASH} 14:10 UTC+0 · ")
    assert f"13:00  SpO2 97 (95{DASH}98)" in shown
    assert "14:00  SpO2 91" in shown
    assert f"12:00  SpO2 {DASH}" in shown, "an hour without values is told"
    assert shown[-1] == "NEWS2 5"


def test_up_to_two_hours_each_quarter_has_a_row() -> None:
    shown = list(rows({}, END - timedelta(hours=1), END, "Africa/Dakar"))
    assert [f"{one.begins:%H:%M}" for one in shown] == ["13:00", "13:15", "13:30", "13:45", "14:00"]


def test_rows_are_hours_of_the_room_also_where_its_clock_is_half_an_hour_off() -> None:
    shown = list(rows({}, END - timedelta(hours=3), END, "Asia/Kolkata"))
    assert {one.begins.minute for one in shown} == {0}


def test_every_value_of_the_span_is_in_exactly_one_row() -> None:
    points = [at(minutes, 80 + minutes % 7) for minutes in range(360, 0, -1)]
    found = rows({Kind.HEART_RATE: points}, END - timedelta(hours=6), END, "Africa/Dakar")
    assert sum(len(one.values.get(Kind.HEART_RATE, ())) for one in found) == len(points)


def test_a_temperature_has_a_decimal_as_the_language_writes_it() -> None:
    french = lines(temperature=[at(5, 37), at(4, 38.25)])
    assert f"37,6 (37,0{DASH}38,2)" in french
    assert f"37.6 (37.0{DASH}38.2)" in lines(
        temperature=[at(5, 37), at(4, 38.25)], language=Language.ENGLISH
    )


def test_the_html_has_a_cell_for_each_kind_and_no_mark_of_the_bed_counts() -> None:
    text = table(
        {Kind.SPO2: [at(5, 97)], Kind.HEART_RATE: [at(5, 80)]},
        where="Lit <b>4</b> A.D.",
        since=END - timedelta(hours=2),
        until=END,
        language=Language.FRENCH,
        zone="Africa/Dakar",
    )
    assert "<b>4</b>" not in text.html
    assert text.html.count("<th>") == 3
    assert text.html.count("<td>") % 3 == 0
    assert "<td>97</td>" in text.html


def test_of_a_patient_without_values_it_is_said_so() -> None:
    shown = lines()
    assert "rien n'a été mesuré" in shown
    assert "<table>" not in shown
