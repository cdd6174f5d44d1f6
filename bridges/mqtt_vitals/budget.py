"""How fast one homeserver is sent to: a token an event, and pauses when it is in trouble. Pure.

A bucket of tokens fills at the budget's rate up to two seconds' worth. Half of that is kept for
what is urgent (the snapshot of an alarming room), which so need not wait for what was spent on
other things.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

BURST_S: Final = 2.0
"""Tokens that are saved up, in seconds of the rate; two tokens at least."""

HOMESERVER_PAUSES_S: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 60.0)
"""After each failure of the homeserver in a row, the last one repeated."""

ROOM_PAUSES_S: Final = (5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""After each failure in one room in a row, the last one repeated."""

LONGEST_S: Final = 3600.0
"""Longest pause that a homeserver can ask for."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A bucket of tokens.

    Attributes:
        per_s: tokens a second.
        tokens: how many there were ...
        at: ... at that moment, aware UTC.
    """

    per_s: float
    tokens: float
    at: datetime

    @classmethod
    def full(cls, per_s: float, now: datetime) -> Budget:
        """A bucket that has not been taken from."""
        return cls(per_s, _capacity(per_s), now)

    def filled(self, now: datetime) -> Budget:
        """The bucket now."""
        # A clock that goes back gives no tokens and takes none.
        passed_s = max((now - self.at).total_seconds(), 0.0)
        tokens = min(self.tokens + passed_s * self.per_s, _capacity(self.per_s))
        return Budget(self.per_s, tokens, now)

    def wait_s(self, *, urgent: bool) -> float:
        """How long until a token may be taken, 0 if one may be."""
        least = 1.0 if urgent else _capacity(self.per_s) / 2 + 1.0
        return max((least - self.tokens) / self.per_s, 0.0)

    def spent(self) -> Budget:
        """The bucket after one token was taken, which must be there."""
        return replace(self, tokens=self.tokens - 1)


def _capacity(per_s: float) -> float:
    return max(per_s * BURST_S, 2.0)


@dataclass(frozen=True, slots=True)
class Pause:
    """When a homeserver, or one room, is tried again.

    Attributes:
        failures: how many in a row; after one, a single attempt must succeed first.
        since: when it began, aware UTC.
        until: when it ends.
    """

    failures: int = 0
    since: datetime | None = None
    until: datetime | None = None

    def holds(self, now: datetime) -> bool:
        """Whether nothing may be sent now."""
        # A clock that was put back to before the pause does not make it longer.
        return self.since is not None and self.until is not None and self.since <= now < self.until

    def failed(
        self, now: datetime, pauses_s: Sequence[float], *, asked_s: float | None = None
    ) -> Pause:
        """After a failure.

        Args:
            now: aware UTC.
            pauses_s: length of the pause after the first failure in a row, the second, ...
            asked_s: what the homeserver asked for (``Retry-After``), if it did.
        """
        asked = now + timedelta(seconds=min(asked_s or 0.0, LONGEST_S))
        if self.holds(now):  # one of several that were on their way when it began
            return replace(self, until=max(self.until or asked, asked))
        pause_s = pauses_s[min(self.failures, len(pauses_s) - 1)]
        until = max(now + timedelta(seconds=pause_s), asked)
        return Pause(self.failures + 1, now, until)

    def succeeded(self, now: datetime) -> Pause:
        """After a success; one that was on its way when the pause began does not end it."""
        return self if self.holds(now) else Pause()
