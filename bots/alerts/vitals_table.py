"""The last hours of a patient as a table: of each stretch the median and the extremes. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from html import escape
from statistics import median
from typing import Final

from bots.alerts.chart import Point
from bots.alerts.text import Text, clock_time, label_of, number_of, zone_of
from fajma.language import SEPARATOR, Language, translator
from fajma.vitals import Kind

SHORT: Final = timedelta(hours=2)
"""Up to here rows are a quarter of an hour, beyond it an hour."""

_QUARTER: Final = timedelta(minutes=15)
_HOUR: Final = timedelta(hours=1)
_DASH: Final = "\N{EN DASH}"
_TENTH: Final = Decimal("0.1")
_ONE: Final = Decimal(1)


@dataclass(frozen=True, slots=True)
class Row:
    """One stretch of time; a kind without a value is missing."""

    begins: datetime
    values: Mapping[Kind, Sequence[float]]


def rows(
    points: Mapping[Kind, Sequence[Point]], since: datetime, until: datetime, zone: str
) -> Iterator[Row]:
    """The stretches of a span, oldest first, each beginning at a round time of the room's day."""
    step = _QUARTER if until - since <= SHORT else _HOUR
    local = since.astimezone(zone_of(zone))
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0)
    begins = midnight + (local - midnight) // step * step
    while begins < until:
        ends = begins + step
        found = {
            kind: [one.value for one in series if max(begins, since) <= one.at < ends]
            for kind, series in points.items()
        }
        yield Row(begins, {kind: values for kind, values in found.items() if values})
        begins = ends


def table(
    points: Mapping[Kind, Sequence[Point]],
    *,
    where: str,
    since: datetime,
    until: datetime,
    language: Language,
    zone: str,
    more: Sequence[str] = (),
) -> Text:
    """The table in plain text and HTML.

    Args:
        points: by kind, in the order of time.
        where: bed and initials.
        since: beginning of the span, aware.
        until: its end, not included.
        language: of the words.
        zone: IANA name, of the times.
        more: lines after it.
    """
    _ = translator(language).gettext
    kinds = [kind for kind in Kind if points.get(kind)]
    begin = since.astimezone(zone_of(zone))
    span = f"{begin:%H:%M} {_DASH} {clock_time(until, zone)}"
    head = SEPARATOR.join((where, span, _("median (lowest to highest)")))
    if not kinds:
        head = SEPARATOR.join((where, span, _("nothing was measured")))
    plain, html = [head], []
    for row in rows(points, since, until, zone) if kinds else ():
        time = f"{row.begins:%H:%M}"
        cells = [_cell(kind, row.values.get(kind, ()), language) for kind in kinds]
        labels = [label_of(kind, language)[0] for kind in kinds]
        shown = [f"{label} {cell}" for label, cell in zip(labels, cells, strict=True)]
        plain.append(f"{time}  {SEPARATOR.join(shown)}")
        html.append("".join(f"<td>{escape(cell)}</td>" for cell in (time, *cells)))
    heads = "".join(
        f"<th>{escape(f'{label} {unit}')}</th>"
        for label, unit in (label_of(kind, language) for kind in kinds)
    )
    body = "".join(f"<tr>{cells}</tr>" for cells in html)
    grid = f"<table><thead><tr><th></th>{heads}</tr></thead><tbody>{body}</tbody></table>"
    lines = "".join(f"<p>{escape(line)}</p>" for line in more)
    return Text(
        "\n".join([*plain, *more]),
        f"<p><strong>{escape(head)}</strong></p>{grid if kinds else ''}{lines}",
    )


def _cell(kind: Kind, values: Sequence[float], language: Language) -> str:
    if not values:
        return _DASH
    middle, lowest, highest = (
        _rounded(kind, one, language) for one in (median(values), min(values), max(values))
    )
    return middle if lowest == highest else f"{middle} ({lowest}{_DASH}{highest})"


def _rounded(kind: Kind, value: float, language: Language) -> str:
    step = _TENTH if kind is Kind.TEMPERATURE else _ONE
    return number_of(Decimal(str(value)).quantize(step), kind, language)
