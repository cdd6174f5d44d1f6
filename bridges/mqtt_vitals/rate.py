"""How many messages one monitor may send, so that one that floods does not crowd out the others."""

from __future__ import annotations

from collections import ChainMap
from typing import Final

from fajma.vitals import DeviceId

PER_S: Final = 20.0
"""A monitor sends one message in five seconds; after an outage some hundreds in a row."""

BURST: Final = 2000.0
"""Messages that may come at once: a v1 monitor's whole memory after an outage."""


class Rates:
    """A token bucket for each monitor."""

    def __init__(self, per_s: float = PER_S, burst: float = BURST) -> None:
        self._per_s = per_s
        self._burst = burst
        self._left: ChainMap[DeviceId, tuple[float, float]] = ChainMap({})

    def tried(self) -> Rates:
        """A copy to judge a batch with; ``keep`` it once the batch is committed.

        A batch whose commit fails is judged again, and its messages count once.
        """
        copy = Rates(self._per_s, self._burst)
        copy._left = ChainMap({}, *self._left.maps)
        return copy

    def keep(self, tried: Rates) -> None:
        """Remember what a committed batch has used."""
        self._left.update(tried._left.maps[0])

    def allows(self, device: DeviceId, now_s: float) -> bool:
        """Take a token, if there is one.

        Args:
            device: who sends.
            now_s: our monotonic time.
        """
        left, since_s = self._left.get(device, (self._burst, now_s))
        left = min(left + max(now_s - since_s, 0.0) * self._per_s, self._burst)
        allowed = left >= 1
        self._left[device] = (left - 1 if allowed else left, now_s)
        return allowed
