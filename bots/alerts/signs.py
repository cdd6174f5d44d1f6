"""Whether all of FAJMA works, as far as the alert bot can see it.

Each part says so every now and then (``fajma.store.heartbeats``), while it truly works. The bot
adds what it knows itself: that it follows the homeserver, and that what should be judged is judged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import nio

from bots.alerts.client import SignedClient
from bots.alerts.engine import FOLLOWER
from fajma.config import Settings
from fajma.store import Records
from fajma.store.heartbeats import ALARMS, APPSERVICE, ingest, kind_of

SYNC_WITHIN_S: Final = 45.0
"""A sync that brings nothing ends after 30 s (``SignedClient.run_sync``)."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often is said what, all from how long a silence may be; s.

    Attributes:
        silence_s: after so long without us the homeserver speaks.
    """

    silence_s: float

    @property
    def beat_s(self) -> float:
        """Between two signs of life of a part."""
        return self.silence_s / 9

    @property
    def put_off_s(self) -> float:
        """Between two times that a delayed event is put off."""
        return self.silence_s / 4.5

    @property
    def limit_s(self) -> float:
        """How long a part may be silent: with a beat more, the room knows within ``silence_s``."""
        return self.silence_s * 8 / 9


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one look found.

    Attributes:
        at_s: when, by the steady clock.
        follows: whether we follow the homeserver.
        awaited: the parts that gave no sign since we began to look, or are behind; not for long.
        silent: the parts that gave none for too long, and when by their clocks they gave the last
            one; ``None`` if never.
    """

    at_s: float
    follows: bool
    awaited: frozenset[str]
    silent: Mapping[str, datetime | None]

    @property
    def works(self) -> bool:
        """Whether all works."""
        return self.follows and not self.awaited and not self.silent


class Pulse:
    """Which names gave a sign lately, by our own steady clock. Pure.

    Args:
        names: those that must.
        limit_s: how long one may be silent.
        now_s: when we began to look.
    """

    def __init__(self, names: Collection[str], *, limit_s: float, now_s: float) -> None:
        self._limit_s = limit_s
        self._last: dict[str, datetime | None] | None = None
        self._heard_s = dict.fromkeys(names, now_s)
        self._never = set(names)

    def look(self, beats: Mapping[str, datetime], now_s: float) -> None:
        """Take in the last signs of all. The first ones may be of a time before us."""
        seen = {name: beats.get(name) for name in self._heard_s}
        if self._last is not None:
            for name, at in seen.items():
                if at != self._last[name]:
                    self._heard_s[name] = now_s
                    self._never.discard(name)
        self._last = seen

    def silent(self, now_s: float) -> frozenset[str]:
        """Who was silent for too long."""
        return frozenset(
            name for name, heard_s in self._heard_s.items() if now_s - heard_s >= self._limit_s
        )

    def awaited(self, now_s: float) -> frozenset[str]:
        """Who gave no sign yet, and still may."""
        return frozenset(self._never) - self.silent(now_s)


def names_of(settings: Settings) -> tuple[str, ...]:
    """Who gives signs of life in a whole FAJMA."""
    sessions = range(1, settings.mqtt.ingests + 1)
    return (*map(ingest, sessions), APPSERVICE, ALARMS)


class Signs:
    """Looks at the signs of life of all parts.

    Args:
        client: the bot's client, before it follows its rooms.
        records: where the signs are.
        names: those that must give one.
        pace: how long they may be silent.
        now: the clock.
        steady_s: a clock that nobody sets, s.
    """

    def __init__(
        self,
        client: SignedClient,
        records: Records,
        names: Collection[str],
        pace: Pace,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        steady_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._records = records
        self._limit_s = pace.limit_s
        self._now = now
        self._steady_s = steady_s
        self._synced_s: float | None = None
        self._late_since_s: float | None = None
        """Since when, at each look, something waited for a judgement for too long."""
        self._pulse = Pulse(names, limit_s=pace.limit_s, now_s=steady_s())
        self._verdict: Verdict | None = None
        client.add_response_callback(self._on_sync, nio.SyncResponse)

    async def _on_sync(self, _: nio.SyncResponse) -> None:
        self._synced_s = self._steady_s()

    @property
    def all_work(self) -> bool:
        """Whether all worked at the last look, and that was not long ago."""
        last = self._verdict
        return last is not None and last.works and self._steady_s() - last.at_s < self._limit_s

    async def look(self) -> Verdict:
        """Look now."""
        beats = await self._records.heartbeats.all()
        unjudged = await self._records.heartbeats.unjudged_since(FOLLOWER)
        now_s = self._steady_s()
        self._pulse.look({name: beat.at for name, beat in beats.items()}, now_s)
        silent: dict[str, datetime | None] = {}
        for name in sorted(self._pulse.silent(now_s)):
            silent.setdefault(kind_of(name), beats[name].at if name in beats else None)
        awaited = {kind_of(name) for name in self._pulse.awaited(now_s)}
        # Half of the limit old, and seen so for the other half: after a start the engine has much
        # to judge, and a clock that is set makes what waits look old for a moment.
        if unjudged is None or self._now() - unjudged < timedelta(seconds=self._limit_s / 2):
            self._late_since_s = None
        else:
            if self._late_since_s is None:
                self._late_since_s = now_s
            if now_s - self._late_since_s < self._limit_s / 2:
                awaited.add(ALARMS)
            else:
                silent[ALARMS] = unjudged
        self._verdict = Verdict(
            at_s=now_s,
            follows=self._synced_s is not None and now_s - self._synced_s < SYNC_WITHIN_S,
            awaited=frozenset(awaited),
            silent=silent,
        )
        return self._verdict
