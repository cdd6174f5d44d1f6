"""A monitor whose clock is behind, told from a monitor that delivers late. Pure.

Both send readings with an old time. A wrong clock is wrong by the same amount from one reading to
the next while time passes here as it passes there; a backlog catches up, many readings in a moment.
It matters because late values raise no live alarm: a clock that is two hours behind would silence
its patient for good.

Only v1 needs this; v2 devices say how old a reading is by their monotonic time (a later issue).
"""

from __future__ import annotations

from collections import ChainMap
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from fajma.vitals import Clock, DeviceId, Reading

# FAJMA defaults: a network adds seconds, a crystal loses milliseconds in the time between readings.
BEHIND: Final = timedelta(seconds=30)
"""Up to this much a reading is neither late nor is its clock suspected."""

SAME: Final = timedelta(seconds=3)
"""Two delays that differ by no more than this are the same."""

APART: Final = timedelta(seconds=1)
"""Readings that arrive closer together than this may be a backlog."""


@dataclass(frozen=True, slots=True)
class _Seen:
    received_at: datetime
    delay: timedelta


class Clocks:
    """Remembers the last delay of each monitor."""

    def __init__(self) -> None:
        self._seen: ChainMap[DeviceId, _Seen] = ChainMap()

    def tried(self) -> Clocks:
        """A copy to place a batch with; ``keep`` it once the batch is committed.

        A batch whose commit fails is placed again, and must come out the same.
        """
        copy = Clocks()
        copy._seen = ChainMap({}, *self._seen.maps)
        return copy

    def keep(self, tried: Clocks) -> None:
        """Remember what a committed batch has shown."""
        self._seen.update(tried._seen.maps[0])

    def place(self, reading: Reading) -> Reading:
        """The reading, placed by its arrival if its clock is wrong by a steady amount."""
        if reading.clock is not Clock.DEVICE:
            return reading
        delay = reading.received_at - reading.measured_at
        before = self._seen.get(reading.device)
        self._seen[reading.device] = _Seen(reading.received_at, delay)
        if (
            delay <= BEHIND
            or before is None
            or reading.received_at - before.received_at < APART
            or abs(delay - before.delay) > SAME
        ):
            return reading
        return replace(reading, measured_at=reading.received_at, clock=Clock.WRONG)
