"""Draws the last hours of a patient as a picture for a phone. Pure.

One strip for each sign, all with the same time: values as lines, limits as shaded regions that are
darker where the alarm is urgent, grey where nothing was measured, a triangle where an alarm began,
the newest value at the right, with a mark where
what came after it cannot be used. What was received late is drawn lighter, for nobody saw it then.
Nothing rests on colour alone: regions differ in lightness and border, lines in width; the colours
are near those of Okabe and Ito (2008), which the colour-blind tell apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from importlib.resources import files
from io import BytesIO
from itertools import pairwise
from typing import Final

from babel.dates import format_date
from PIL import Image, ImageDraw, ImageFont

from bots.alerts.limits import Bands, Direction, Priority
from bots.alerts.text import clock_time, label_of, number_of, zone_of
from fajma.language import Language, translator
from fajma.vitals import Kind

WIDTH: Final = 800
HEIGHT: Final = 600

_FINER: Final = 2  # drawn so much larger and made smaller, for smooth lines

# Pixels of the finished picture.
_TITLE: Final = 46
_LEGEND: Final = 30
_TIMES: Final = 30
_LEFT: Final = 138
_RIGHT: Final = 92
_BETWEEN: Final = 10

_STRIPS: Final = (
    (Kind.HEART_RATE,),
    (Kind.SPO2,),
    (Kind.TEMPERATURE,),
    (Kind.SYSTOLIC, Kind.DIASTOLIC),
)
_ALWAYS: Final = frozenset({Kind.HEART_RATE, Kind.SPO2})  # their absence is worth seeing
_USUAL_RANGE: Final[Mapping[Kind, tuple[float, float]]] = {
    Kind.HEART_RATE: (40, 140),
    Kind.SPO2: (84, 100),
    Kind.TEMPERATURE: (35.5, 39.5),
    Kind.SYSTOLIC: (40, 180),
    Kind.DIASTOLIC: (40, 180),
}
"""What a strip shows at least, so that a flat line looks flat. Unit of the kind."""

_TICKS: Final = tuple(timedelta(minutes=one) for one in (10, 20, 30, 60, 120, 240))
_MAX_TICKS: Final = 7
_GAP: Final = timedelta(seconds=30)
_GAP_INTERVALS: Final = 3  # a line breaks where so many usual intervals have no value

_TITLE_SIZES: Final = (27, 22, 18, 14, 11)  # of which the largest is taken that fits
_FRESH: Final = timedelta(minutes=2)  # an older value says when it was measured
_DASH: Final = "\N{EN DASH}"
_BACKGROUND: Final = "#ffffff"
_INK: Final = "#000000"
_FAINT: Final = "#595959"
_GRID: Final = "#dddddd"
_NOTHING: Final = "#e4e4e4"
_LINE: Final = "#005a8c"
_LATE: Final = "#79b2d6"
_ALARM: Final = "#d55e00"
_BEYOND: Final[Mapping[Priority, str]] = {
    Priority.LOW: "#fdf3dc",
    Priority.MEDIUM: "#fbe3b0",
    Priority.HIGH: "#f3b28f",
}


@dataclass(frozen=True, slots=True)
class Point:
    """A value.

    Attributes:
        at: when it was measured.
        value: in the unit of its kind.
        late: whether nobody could see it at that time.
    """

    at: datetime
    value: float
    late: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """An alarm that began, or got worse.

    Attributes:
        at: when it was told.
        kind: the sign.
        priority: of the alarm.
    """

    at: datetime
    kind: Kind
    priority: Priority


@dataclass(frozen=True, slots=True)
class Plot:
    """What is drawn.

    Attributes:
        title: bed and initials.
        since: left end, aware.
        until: right end.
        zone: IANA name, of the times.
        language: of the words.
        points: by kind, in the order of time.
        bands: the limits.
        marks: alarms.
        unusable: kinds of which nothing that can be used came after their newest value.
    """

    title: str
    since: datetime
    until: datetime
    zone: str
    language: Language
    points: Mapping[Kind, Sequence[Point]]
    bands: Sequence[Bands] = ()
    marks: Sequence[Mark] = field(default=())
    unusable: frozenset[Kind] = frozenset()


def draw(plot: Plot) -> bytes:
    """The picture as PNG, ``WIDTH`` x ``HEIGHT``, of a few ten kilobytes."""
    canvas = _Canvas(plot)
    shown = [
        kinds
        for kinds in _STRIPS
        if not _ALWAYS.isdisjoint(kinds) or any(plot.points.get(kind) for kind in kinds)
    ]
    canvas.title()
    space = HEIGHT - _TITLE - _TIMES - _LEGEND
    height = space / len(shown)
    for number, kinds in enumerate(shown):
        top = _TITLE + number * height
        canvas.strip(kinds, top, top + height - _BETWEEN)
    canvas.times(_TITLE + space - _BETWEEN)
    canvas.legend(HEIGHT - _LEGEND)
    return canvas.png()


def tick_step(span: timedelta) -> timedelta:
    """From one time on the axis to the next."""
    return next((one for one in _TICKS if span / one <= _MAX_TICKS), _TICKS[-1])


def stretches(points: Sequence[Point]) -> list[list[Point]]:
    """The points between which a line may be drawn: each list without a gap."""
    if not points:
        return []
    between = [later.at - one.at for one, later in pairwise(points)]
    usual = sorted(between)[len(between) // 2] if between else timedelta(0)
    gap = max(_GAP, _GAP_INTERVALS * usual)
    found = [[points[0]]]
    for step, point in zip(between, points[1:], strict=True):
        if step > gap:
            found.append([])
        found[-1].append(point)
    return found


@dataclass(frozen=True, slots=True)
class _Scale:
    """Values to pixels of the finished picture."""

    lowest: float
    highest: float
    top: float
    bottom: float

    def y(self, value: float) -> float:
        share = (value - self.lowest) / (self.highest - self.lowest)
        return self.bottom - min(max(share, 0), 1) * (self.bottom - self.top)


class _Canvas:
    """A picture in the making; takes pixels of the finished one."""

    def __init__(self, plot: Plot) -> None:
        self._plot = plot
        self._zone = zone_of(plot.zone)
        self._image = Image.new("RGB", (WIDTH * _FINER, HEIGHT * _FINER), _BACKGROUND)
        self._draw = ImageDraw.Draw(self._image)

    def png(self) -> bytes:
        smooth = self._image.resize((WIDTH, HEIGHT), Image.Resampling.BOX)
        kept = BytesIO()
        smooth.quantize(colors=64, dither=Image.Dither.NONE).save(kept, "PNG", optimize=True)
        return kept.getvalue()

    def title(self) -> None:
        plot = self._plot
        day = plot.until.astimezone(self._zone)
        date = format_date(day.date(), "d MMM y", locale=plot.language.value)
        span = f"{date}  {self._clock(plot.since)} {_DASH} {clock_time(plot.until, plot.zone)}"
        room = WIDTH - 48 - self._width(span, 20)
        fits = (one for one in _TITLE_SIZES if self._width(plot.title, one) <= room)
        self._text(12, 8, plot.title, next(fits, _TITLE_SIZES[-1]))
        self._text(WIDTH - 12, 12, span, 20, ink=_FAINT, anchor="ra")

    def strip(self, kinds: Sequence[Kind], top: float, bottom: float) -> None:
        plot = self._plot
        scale = self._scale(kinds, top, bottom)
        self._names(kinds, top, bottom)
        self._limits(kinds, scale)
        self._gaps(kinds, scale)
        for tick in self._ticks():
            self._line([(self._x(tick), top), (self._x(tick), bottom)], _GRID, 1)
        self._thresholds(kinds, scale)
        if len(kinds) == 1:
            self._values(kinds[0], scale)
        else:
            self._pressures(scale)
        for mark in plot.marks:
            if mark.kind in kinds and plot.since <= mark.at <= plot.until:
                self._mark(mark, scale)
        self._box((_LEFT, top, WIDTH - _RIGHT, bottom), None, outline=_FAINT)
        self._newest(kinds, top, bottom)

    def times(self, top: float) -> None:
        for tick in self._ticks():
            self._text(self._x(tick), top + 4, self._clock(tick), 20, anchor="ma")

    def legend(self, top: float) -> None:
        _ = translator(self._plot.language).gettext
        x: float = 12
        for colour, said in (
            (_BEYOND[Priority.MEDIUM], _("beyond a limit")),
            (_BEYOND[Priority.HIGH], _("high priority")),
            (_NOTHING, _("no value")),
            (_LATE, _("received late")),
        ):
            self._box((x, top + 4, x + 20, top + 20), colour, outline=_FAINT)
            x = self._text(x + 26, top, said, 19, ink=_FAINT) + 20
        self._triangle(x + 8, top + 4, 16, filled=True)
        self._text(x + 22, top, _("alarm"), 19, ink=_FAINT)

    # --- a strip ---------------------------------------------------------------------------------

    def _scale(self, kinds: Sequence[Kind], top: float, bottom: float) -> _Scale:
        values = [one.value for kind in kinds for one in self._plot.points.get(kind, ())]
        lowest, highest = _USUAL_RANGE[kinds[0]]
        lowest, highest = min([lowest, *values]), max([highest, *values])
        margin = (highest - lowest) * 0.06
        return _Scale(lowest - margin, highest + margin, top, bottom)

    def _names(self, kinds: Sequence[Kind], top: float, bottom: float) -> None:
        _ = translator(self._plot.language).gettext
        label, unit = label_of(kinds[0], self._plot.language)
        label = _("BP") if len(kinds) > 1 else label
        middle = (top + bottom) / 2
        self._text(12, middle - 4, label, 25, anchor="ls")
        self._text(12, middle + 20, unit, 19, ink=_FAINT, anchor="ls")

    def _limits(self, kinds: Sequence[Kind], scale: _Scale) -> None:
        """Regions beyond the limits, the mildest first, so that the worst lies on top."""
        for bands in self._of(kinds):
            for limit in bands.limits:
                edge = scale.y(float(limit.threshold))
                low = limit.direction is Direction.LOW
                top, bottom = (edge, scale.bottom) if low else (scale.top, edge)
                if bottom - top < 1:
                    continue
                if len(kinds) == 1:  # what lies beyond a systolic limit is normal for the other
                    fill = _BEYOND[limit.priority]
                    self._box((_LEFT, top, WIDTH - _RIGHT, bottom), fill)
                self._dashes(edge, 3 if limit.priority is Priority.HIGH else 9)

    def _thresholds(self, kinds: Sequence[Kind], scale: _Scale) -> None:
        """The limits as numbers, mildest first; one that would cover another is left out."""
        taken: list[float] = []
        height = 19
        limits = [(bands.kind, limit) for bands in self._of(kinds) for limit in bands.limits]
        for kind, limit in sorted(limits, key=lambda one: one[1].priority):
            value = float(limit.threshold)
            y = min(max(scale.y(value), scale.top + height / 2), scale.bottom - height / 2)
            inside = scale.lowest <= value <= scale.highest
            if inside and all(abs(y - other) >= height for other in taken):
                taken.append(y)
                said = number_of(limit.threshold, kind, self._plot.language)
                self._text(_LEFT - 6, y, said, 18, ink=_FAINT, anchor="rm")

    def _gaps(self, kinds: Sequence[Kind], scale: _Scale) -> None:
        """Grey where a worn sensor shows nothing; a cuff measures seldom, and that is no gap."""
        plot = self._plot
        points = plot.points.get(kinds[0], ())
        if Kind.SYSTOLIC in kinds and points:
            return
        known = stretches(points)
        ends = [plot.since, *(at for part in known for at in (part[0].at, part[-1].at)), plot.until]
        for start, end in zip(ends[::2], ends[1::2], strict=True):
            if end - start > _GAP:
                self._box((self._x(start), scale.top, self._x(end), scale.bottom), _NOTHING)

    def _values(self, kind: Kind, scale: _Scale) -> None:
        for part in stretches(self._plot.points.get(kind, ())):
            for late, run in _runs(part):
                colour, width = (_LATE, 2) if late else (_LINE, 3)
                at = [(self._x(one.at), scale.y(one.value)) for one in run]
                if len(at) > 1:
                    self._line(at, colour, width)
                else:
                    self._dot(*at[0], colour)

    def _pressures(self, scale: _Scale) -> None:
        """Each measurement as a bar from the diastolic to the systolic pressure."""
        ends: dict[datetime, list[Point]] = {}
        for kind in (Kind.SYSTOLIC, Kind.DIASTOLIC):
            for point in self._plot.points.get(kind, ()):
                ends.setdefault(point.at, []).append(point)
        for at, points in ends.items():
            x = self._x(at)
            colour = _LATE if points[0].late else _LINE
            self._line([(x, scale.y(one.value)) for one in points], colour, 3)
            for one in points:
                self._dot(x, scale.y(one.value), colour)

    def _dot(self, x: float, y: float, colour: str) -> None:
        self._box((x - 4, y - 4, x + 4, y + 4), colour)

    def _mark(self, mark: Mark, scale: _Scale) -> None:
        x = self._x(mark.at)
        self._line([(x, scale.top), (x, scale.bottom)], _ALARM, 2)
        self._triangle(x, scale.top + 1, 18, filled=mark.priority is Priority.HIGH)

    def _newest(self, kinds: Sequence[Kind], top: float, bottom: float) -> None:
        newest = [points[-1] for kind in kinds if (points := self._plot.points.get(kind))]
        if not newest:
            self._text(WIDTH - _RIGHT + 10, (top + bottom) / 2, _DASH, 30, ink=_FAINT, anchor="lm")
            return
        decimals = 1 if Kind.TEMPERATURE in kinds else 0
        said = "/".join(f"{one.value:.{decimals}f}" for one in newest)
        if self._plot.language is Language.FRENCH:
            said = said.replace(".", ",")
        lost = not self._plot.unusable.isdisjoint(kinds)
        old = lost or self._plot.until - newest[0].at > _FRESH
        size = 24 if lost or len(newest) > 1 else 34
        middle = (top + bottom) / 2
        self._text(WIDTH - _RIGHT + 8, middle, said, size, ink=_FAINT if old else _INK, anchor="lm")
        if lost:  # the dying look so: what was measured last is not how the patient is
            self._text(WIDTH - _RIGHT + 10, middle - 32, "?", 34, ink=_ALARM, anchor="lm")
        if old:
            self._text(WIDTH - _RIGHT + 8, middle + 20, self._clock(newest[0].at), 18, ink=_FAINT)

    def _of(self, kinds: Sequence[Kind]) -> Iterator[Bands]:
        return (one for one in self._plot.bands if one.kind in kinds)

    # --- what everything is made of --------------------------------------------------------------

    def _x(self, moment: datetime) -> float:
        plot = self._plot
        share = (moment - plot.since) / (plot.until - plot.since)
        return _LEFT + min(max(share, 0), 1) * (WIDTH - _RIGHT - _LEFT)

    def _ticks(self) -> Iterator[datetime]:
        """Round times of day, by the clock of the room."""
        plot = self._plot
        step = tick_step(plot.until - plot.since)
        local = plot.since.astimezone(self._zone)
        midnight = local.replace(hour=0, minute=0, second=0, microsecond=0)
        tick = midnight + (local - midnight) // step * step
        while tick <= plot.until:
            if tick >= plot.since:
                yield tick
            tick += step

    def _clock(self, moment: datetime) -> str:
        return f"{moment.astimezone(self._zone):%H:%M}"

    def _text(
        self, x: float, y: float, said: str, size: int, *, ink: str = _INK, anchor: str = "la"
    ) -> float:
        """Write; returns where the text ends."""
        font = _font(size * _FINER)
        self._draw.text((x * _FINER, y * _FINER), said, ink, font, anchor=anchor)
        return x + self._width(said, size)

    @staticmethod
    def _width(said: str, size: int) -> float:
        return _font(size * _FINER).getlength(said) / _FINER

    def _line(self, points: Sequence[tuple[float, float]], ink: str, width: int) -> None:
        finer = [(x * _FINER, y * _FINER) for x, y in points]
        self._draw.line(finer, ink, width * _FINER, joint="curve")

    def _dashes(self, y: float, length: int) -> None:
        for x in range(_LEFT, WIDTH - _RIGHT - length, 2 * length):
            self._line([(x, y), (x + length, y)], _ALARM, 1)

    def _box(
        self, edges: tuple[float, float, float, float], fill: str | None, outline: str | None = None
    ) -> None:
        left, top, right, bottom = (one * _FINER for one in edges)
        self._draw.rectangle((left, top, max(left, right), max(top, bottom)), fill, outline, _FINER)

    def _triangle(self, x: float, y: float, size: float, *, filled: bool) -> None:
        corners = [(x - size / 2, y), (x + size / 2, y), (x, y + size)]
        finer = [(cx * _FINER, cy * _FINER) for cx, cy in corners]
        self._draw.polygon(finer, _ALARM if filled else _BACKGROUND, _ALARM, 2 * _FINER)


def _runs(points: Sequence[Point]) -> Iterator[tuple[bool, list[Point]]]:
    """Points of one look; each run begins with the end of the one before, so that lines meet."""
    run: list[Point] = []
    for point in points:
        if run and point.late != run[-1].late:
            yield run[-1].late, run
            run = [run[-1]] if point.late else []
        run.append(point)
    if run:
        yield run[-1].late, run


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    found = files("bots.alerts") / "fonts" / "DejaVuSansCondensed.ttf"
    return ImageFont.truetype(BytesIO(found.read_bytes()), size)
