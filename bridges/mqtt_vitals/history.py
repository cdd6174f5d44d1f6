"""A day of readings, thinned to what a chart shows of it. Pure.

The day is cut into buckets of equal length, and of each kind the lowest and the highest value of
each bucket are kept, exactly as they were measured. A mean would hide the drop that somebody who
comes later must see; lowest *and* highest, because both ends of heart rate, temperature and
pressure are dangerous. Of readings without values (the probe was off, or nothing was usable) the
first and the last of each bucket are kept. Every point is a reading that was in a batch, so whoever
has that batch finds nothing new.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

from fajma.vitals import Kind, Reading

LASTS: Final = timedelta(hours=24)

_Point = tuple[Decimal, int, Reading]
"""A value, the position in the log, and the reading: ordered by the first two. Without values they
are ordered by position alone."""

_NO_VALUE: Final = Decimal(0)


class Thinned:
    """What is kept of the readings that are taken in, in any order.

    Args:
        until: end of the day, aware UTC. What was measured before the day began is left out; what
            was measured after it, by a clock that is ahead, counts as of its end.
        points: most values kept of each kind, 2 at least.
    """

    def __init__(self, until: datetime, points: int) -> None:
        self._since = until - LASTS
        self._buckets = points // 2
        self._extremes: dict[tuple[Kind | None, int], tuple[_Point, _Point]] = {}

    def take(self, position: int, reading: Reading) -> None:
        """Take in a reading with its position in the log."""
        if reading.measured_at < self._since:
            return
        bucket = (reading.measured_at - self._since) * self._buckets // LASTS
        for kind, value in reading.values.items() or ((None, _NO_VALUE),):
            point = (value, position, reading)
            place = (kind, min(bucket, self._buckets - 1))
            lowest, highest = self._extremes.get(place, (point, point))
            # Of equal values the first and the last, in whatever order they come.
            self._extremes[place] = (min(lowest, point), max(highest, point))

    def readings(self) -> list[tuple[int, Reading]]:
        """What is kept, in the order of the log; each reading with its kept values only."""
        values: dict[int, dict[Kind, Decimal]] = {}
        whole: dict[int, Reading] = {}
        for (kind, _), points in self._extremes.items():
            for value, position, reading in points:
                kept = values.setdefault(position, {})
                if kind is not None:
                    kept[kind] = value
                whole[position] = reading
        return [
            (position, replace(whole[position], values=values[position]))
            for position in sorted(values)
        ]
