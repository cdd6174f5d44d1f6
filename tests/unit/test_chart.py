"""The chart of the last hours: what is where, not which pixel has which shade."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops

from bots.alerts.chart import HEIGHT, WIDTH, Mark, Plot, Point, draw, stretches, tick_step
from bots.alerts.limits import Priority, default_rules
from fajma.language import Language
from fajma.vitals import Kind

END = datetime(2026, 3, 2, 14, 0, tzinfo=UTC)
EVERY = timedelta(seconds=5)
LINE, ALARM, NOTHING, HIGH = "005a8c", "d55e00", "e4e4e4", "f3b28f"

MAX_BYTES = 60_000


def points(count: int, value: float = 97, *, late: bool = False) -> list[Point]:
    return [Point(END - EVERY * n, value, late) for n in range(count, 0, -1)]


def plot(
    values: Mapping[Kind, Sequence[Point]],
    *,
    hours: float = 1,
    marks: Sequence[Mark] = (),
    language: Language = Language.FRENCH,
    title: str = "Lit 4 A.D.",
    zone: str = "Africa/Dakar",
) -> Plot:
    return Plot(
        title=title,
        since=END - timedelta(hours=hours),
        until=END,
        zone=zone,
        language=language,
        points=values,
        bands=default_rules().bands,
        marks=marks,
    )


def opened(png: bytes) -> Image.Image:
    image = Image.open(BytesIO(png))
    assert image.format == "PNG"
    assert image.size == (WIDTH, HEIGHT)
    assert len(png) < MAX_BYTES
    return image.convert("RGB")


def near(image: Image.Image, colour: str, within: int = 12) -> list[tuple[int, int]]:
    """Where a colour is, in the part between the labels at the left and the right."""
    apart = ImageChops.difference(image, Image.new("RGB", image.size, f"#{colour}")).split()
    largest = ImageChops.lighter(ImageChops.lighter(apart[0], apart[1]), apart[2])
    left, top, right, bottom = 139, 47, 708, HEIGHT - 60
    shown = largest.crop((left, top, right, bottom)).tobytes()
    width = right - left
    return [(left + at % width, top + at // width) for at, one in enumerate(shown) if one <= within]


def test_a_chart_is_a_small_picture_of_the_size_it_says() -> None:
    image = opened(draw(plot({Kind.SPO2: points(720), Kind.HEART_RATE: points(720, 80)})))
    assert near(image, LINE)
    assert near(image, HIGH), "what lies beyond a limit of high priority is shaded"


@pytest.mark.parametrize("hours", [1, 6, 24])
def test_a_chart_stays_small_however_long_and_restless(hours: int) -> None:
    restless = [
        Point(END - EVERY * n, 85 + n * 7919 % 15) for n in range(720 * hours, 0, -1)
    ]  # fmt: skip
    opened(draw(plot(dict.fromkeys(Kind, restless), hours=hours)))


def test_what_is_lower_is_drawn_lower() -> None:
    heights = []
    for value in (97, 86):
        image = opened(draw(plot({Kind.SPO2: points(720, value)})))
        rows = [y for _, y in near(image, LINE)]
        heights.append(sum(rows) / len(rows))
    assert heights[1] > heights[0] + 50


def test_a_gap_is_shown_as_a_gap_and_not_bridged() -> None:
    whole = points(720)
    gap = [one for one in whole if not 20 < (END - one.at) / timedelta(minutes=1) < 40]
    image = opened(draw(plot({Kind.SPO2: gap, Kind.HEART_RATE: whole})))
    middle = (138 + 708) // 2 + 10
    lower = HEIGHT // 2
    grey = {x for x, y in near(image, NOTHING) if y > lower}
    line = {x for x, y in near(image, LINE) if y > lower}
    assert middle in grey
    assert middle not in line
    assert 200 in line
    assert middle not in {x for x, y in near(image, NOTHING) if y < lower - 60}


def test_a_patient_of_whom_nothing_was_measured_has_a_grey_chart() -> None:
    image = opened(draw(plot({})))
    assert not near(image, LINE)
    assert len(near(image, NOTHING)) > 100_000


def test_an_alarm_is_marked_where_it_began() -> None:
    mark = Mark(END - timedelta(minutes=30), Kind.SPO2, Priority.HIGH)
    values = {Kind.SPO2: points(720), Kind.HEART_RATE: points(720, 80)}
    before = {x for x, _ in near(opened(draw(plot(values))), ALARM)}
    columns = [x for x, _ in near(opened(draw(plot(values, marks=[mark]))), ALARM)]
    tallest = max(set(columns), key=columns.count)
    assert abs(tallest - (138 + 708) / 2) < 4
    assert columns.count(tallest) > 60
    assert len(before) > 100, "the limits are dashed"


def test_a_value_after_which_nothing_usable_came_is_small_and_marked() -> None:
    values = {Kind.SPO2: points(720), Kind.HEART_RATE: points(720, 80)}
    lost = replace(plot(values), unusable=frozenset({Kind.SPO2}))
    right = (WIDTH - 92, 0, WIDTH, HEIGHT)
    usual, marked = (opened(draw(one)).crop(right) for one in (plot(values), lost))

    def inked(image: Image.Image, colour: str) -> int:
        wanted = tuple(bytes.fromhex(colour))
        return sum(
            count
            for count, pixel in image.getcolors(WIDTH * HEIGHT)
            if max(abs(a - b) for a, b in zip(pixel, wanted, strict=True)) < 12
        )

    assert inked(usual, ALARM) == 0
    assert inked(marked, ALARM) > 20
    assert inked(marked, "000000") < inked(usual, "000000")


def test_a_mark_before_the_span_is_not_drawn() -> None:
    values = {Kind.SPO2: points(720)}
    old = Mark(END - timedelta(hours=3), Kind.SPO2, Priority.HIGH)
    assert draw(plot(values, marks=[old])) == draw(plot(values))


def test_the_words_are_in_the_language_and_the_times_in_the_zone_of_the_room() -> None:
    values = {Kind.SPO2: points(720)}
    french = draw(plot(values))
    assert french == draw(plot(values))
    assert french != draw(plot(values, language=Language.ENGLISH))
    assert french != draw(plot(values, zone="Africa/Nairobi"))
    assert draw(plot(values, zone="no/zone")), "a bad setting costs no chart"


@pytest.mark.parametrize(
    "title", ["Lit Réa É.D.", "Lit \N{ARABIC LETTER BEH}", "Lit \U0001f642", ""]
)
def test_a_bed_of_any_letters_is_drawn(title: str) -> None:
    opened(draw(plot({Kind.SPO2: points(10)}, title=title)))


def test_a_long_bed_does_not_run_into_the_times() -> None:
    image = opened(draw(plot({}, title=f"Lit {'W' * 32} {'M' * 12}")))
    before_the_date = image.crop((452, 5, 460, 44)).getcolors()
    assert before_the_date == [(8 * 39, (255, 255, 255))]


def test_letters_with_accents_have_shapes_of_their_own() -> None:
    assert draw(plot({}, title="É")) != draw(plot({}, title="E"))
    assert draw(plot({}, title="É")) != draw(plot({}, title="\U0001f642"))


def test_a_line_breaks_where_three_usual_intervals_have_no_value() -> None:
    minute = timedelta(minutes=1)
    slow = [Point(END - minute * n, 97) for n in (9, 8, 7, 6, 2, 1)]
    assert [len(part) for part in stretches(slow)] == [4, 2]
    fast = [Point(END - EVERY * n, 97) for n in (30, 29, 28, 22, 21)]
    assert [len(part) for part in stretches(fast)] == [5], "half a minute is no gap"
    assert stretches([]) == []


@pytest.mark.parametrize(("hours", "minutes"), [(1, 10), (2, 20), (3, 30), (6, 60), (24, 240)])
def test_times_stand_at_round_distances(hours: int, minutes: int) -> None:
    assert tick_step(timedelta(hours=hours)) == timedelta(minutes=minutes)


@settings(max_examples=15, deadline=None)
@given(
    values=st.dictionaries(
        st.sampled_from(Kind),
        st.lists(
            st.builds(
                Point,
                st.integers(0, 7000).map(lambda s: END - timedelta(seconds=s)),
                st.floats(0, 400),
                st.booleans(),
            ),
            max_size=30,
        ).map(lambda found: sorted(found, key=lambda one: one.at)),
    ),
    hours=st.sampled_from([1, 2, 24]),
)
def test_any_values_make_a_picture(values: dict[Kind, list[Point]], hours: int) -> None:
    opened(draw(plot(values, hours=hours)))
