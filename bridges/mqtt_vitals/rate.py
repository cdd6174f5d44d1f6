"""How many messages one monitor may send, so that one that floods does not crowd out the others.

A monitor makes a reading each few seconds, and after an outage sends all that it has made since, as
fast as it can; so does the broker after an outage of ours. A v1 monitor forgets what it has sent.
So what was made during a silence is let through whatever its speed: it cannot be more than one a
second of that silence. What is beyond is a flood.
"""

from __future__ import annotations

from collections import ChainMap
from dataclasses import dataclass, replace
from typing import Final

from fajma.vitals import DeviceId

PER_S: Final = 20.0
"""Messages in a second, on average; a monitor sends one in five seconds."""

BURST: Final = 2000.0
"""Messages that may come at once without any silence before: a radio that stutters."""

SILENCE_S: Final = 60.0
"""From here on a monitor was silent, and may have a backlog."""

BACKLOG_PER_S: Final = 1.0
"""Readings that a monitor makes in a second of silence, at most."""

BACKLOG: Final = 7 * 24 * 3600 / 5.0
"""Longest backlog: a reading each 5 s for the 7 days that the clock of a v1 device is believed. An
ingest that has just started, and cannot know how long a monitor was silent, expects so much."""

BACKLOG_WITHIN_S: Final = 3600.0
"""After the silence a backlog comes within this time; later it is no backlog."""


@dataclass(frozen=True, slots=True)
class _Allowance:
    """What a monitor may still send. Times are our monotonic time, s.

    Attributes:
        left: messages at once.
        backlog: further messages, until ``silent_until_s + BACKLOG_WITHIN_S``.
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

        A batch whose commit fails is judged again, and its messages count once.
        """
        copy = Rates(per_s=self._per_s, burst=self._burst, backlog=self._backlog)
        copy._known = ChainMap({}, *self._known.maps)
        return copy

    def keep(self, tried: Rates) -> None:
        """Remember what a committed batch has used."""
        self._known.update(tried._known.maps[0])

    def allows(self, device: DeviceId, now_s: float) -> bool:
        """Count a message, if it may be.

        Args:
            device: who sends.
            now_s: our monotonic time.
        """
        known = self._known.get(device)
        if known is None:
            now = _Allowance(self._burst, self._backlog, now_s, now_s)
        else:
            silence_s = max(now_s - known.heard_s, 0.0)
            left = min(known.left + silence_s * self._per_s, self._burst)
            now = replace(known, left=left, heard_s=now_s)
            if silence_s >= SILENCE_S:
                backlog = min(silence_s * BACKLOG_PER_S, self._backlog)
                now = replace(now, backlog=backlog, silent_until_s=now_s)
        is_backlog = now_s - now.silent_until_s < BACKLOG_WITHIN_S
        allowed = True
        if now.left >= 1:
            now = replace(now, left=now.left - 1)
        elif now.backlog >= 1 and is_backlog:
            now = replace(now, backlog=now.backlog - 1)
        else:
            allowed = False
        self._known[device] = now
        return allowed
