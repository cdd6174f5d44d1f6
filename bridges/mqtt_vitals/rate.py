"""How much one monitor may send, so that one that floods does not crowd out the others.

A monitor makes a reading each few seconds, and after an outage sends all that it has made since, as
fast as it can; so does the broker after an outage of ours. A v1 monitor forgets what it has sent.
So what was made during a silence is let through whatever its speed: it cannot be more than one a
second of that silence. What is beyond is a flood.

What counts are readings: a message of v1 is one, a message of v2 is as many as are in it, for it
costs as much.
"""

from __future__ import annotations

from collections import ChainMap
from typing import Final, NamedTuple

from fajma.vitals import DeviceId

PER_S: Final = 20.0
"""Readings in a second, on average; a monitor makes one in five seconds."""

BURST: Final = 2000.0
"""Readings that may come at once without any silence before: a radio that stutters."""

SILENCE_S: Final = 60.0
"""From here on a monitor was silent, and may have a backlog."""

BACKLOG_PER_S: Final = 1.0
"""Readings that a monitor makes in a second of silence, at most."""

BACKLOG: Final = 7 * 24 * 3600 / 5.0
"""Longest backlog: a reading each 5 s for the 7 days that the clock of a v1 device is believed. An
ingest that has just started, and cannot know how long a monitor was silent, expects so much."""

BACKLOG_WITHIN_S: Final = 3600.0
"""After the silence a backlog comes within this time; later it is no backlog."""


class _Allowance(NamedTuple):
    """What a monitor may still send. Times are our monotonic time, s.

    Attributes:
        left: readings at once.
        backlog: further readings, until ``silent_until_s + BACKLOG_WITHIN_S``.
        heard_s: when it was last heard of.
        silent_until_s: when it was first heard of after its last silence.
    """

    left: float
    backlog: float
    heard_s: float
    silent_until_s: float


class Rates:
    """What each monitor may send; the parameters are the constants above."""

    def __init__(
        self, *, per_s: float = PER_S, burst: float = BURST, backlog: float = BACKLOG
    ) -> None:
        self._per_s = per_s
        self._burst = burst
        self._backlog = backlog
        self._known: ChainMap[DeviceId, _Allowance] = ChainMap({})

    def tried(self) -> Rates:
        """A copy to judge a batch with; ``keep`` it once the batch is committed.

        A batch whose commit fails is judged again, and its readings count once.
        """
        copy = Rates(per_s=self._per_s, burst=self._burst, backlog=self._backlog)
        copy._known = ChainMap({}, *self._known.maps)
        return copy

    def keep(self, tried: Rates) -> None:
        """Remember what a committed batch has used."""
        self._known.update(tried._known.maps[0])

    def allows(self, device: DeviceId, now_s: float, readings: int = 1) -> bool:
        """Count what a monitor sends, if it may be.

        Args:
            device: who sends.
            now_s: our monotonic time.
            readings: how many; all of them may be, or none.
        """
        known = self._known.get(device)
        if known is None:
            left, backlog, silent_until_s = self._burst, self._backlog, now_s
        else:
            silence_s = max(now_s - known.heard_s, 0.0)
            left = min(known.left + silence_s * self._per_s, self._burst)
            backlog, silent_until_s = known.backlog, known.silent_until_s
            if silence_s >= SILENCE_S:
                backlog = min(silence_s * BACKLOG_PER_S, self._backlog)
                silent_until_s = now_s
        at_once = min(readings, left)
        more = readings - at_once
        is_backlog = now_s - silent_until_s < BACKLOG_WITHIN_S
        allowed = more == 0 or (is_backlog and more <= backlog)
        if allowed:
            left -= at_once
            backlog -= more
        self._known[device] = _Allowance(left, backlog, now_s, silent_until_s)
        return allowed
