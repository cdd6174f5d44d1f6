"""Who watches: a widget says so in the room, and vitals come more often while it does.

A wish counts if it is encrypted, from a device that its sender's pinned identity signs, from
somebody who belongs in the room by our own records, and fresh. It asks for nothing that anybody
there could not see a minute later, so nothing is answered, and what does not count changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import nio
import structlog

from bots.alerts.client import SignedClient
from fajma.errors import DecodeError
from fajma.events import VITALS_WATCH, VitalsWatch
from fajma.store import Records, from_ms

log = structlog.get_logger()

FRESH: Final = timedelta(minutes=5)
"""An older wish is over in any case."""

CLOCKS_DIFFER: Final = timedelta(seconds=30)
"""How far ahead of ours the homeserver's clock may be."""

WRITE_EVERY_S: Final = 2.0
"""However often somebody wishes, our records change no faster."""


class Watchers:
    """Listens in the rooms of ``@fajma-alerts``, which reads them all.

    Args:
        client: its signed client.
        records: where the publisher looks.
        now: the clock.
    """

    def __init__(
        self,
        client: SignedClient,
        records: Records,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._records = records
        self._now = now
        self._wished: dict[str, datetime] = {}
        """By room, the latest end that is not in our records yet."""
        self._wish = asyncio.Event()
        client.add_event_callback(self._on_event, nio.UnknownEvent)

    async def run(self) -> None:
        """Bring wishes into our records until cancelled."""
        while True:
            await self._wish.wait()
            self._wish.clear()
            wished, self._wished = self._wished, {}
            try:
                for room_id, until in wished.items():
                    await self._records.watching.watch(room_id, until)
            except Exception as error:  # noqa: BLE001 - who still watches wishes again
                log.error("watch_not_noted", error=type(error).__name__)
            self._records.store.hints.notify("audience")
            await asyncio.sleep(WRITE_EVERY_S)

    async def _on_event(self, room: nio.MatrixRoom, event: nio.UnknownEvent) -> None:
        if event.type != VITALS_WATCH or not (event.decrypted and event.verified):
            return
        try:
            until = self._until(event)
            if until is None or event.sender not in await self._records.audience.of(room.room_id):
                return
        except Exception as error:  # noqa: BLE001 - the messages after it still count
            log.error("watch_not_noted", error=type(error).__name__)
            return
        self._wished[room.room_id] = max(until, self._wished.get(room.room_id, until))
        self._wish.set()

    def _until(self, event: nio.UnknownEvent) -> datetime | None:
        """When the wish ends; ``None`` if it makes no sense or is over."""
        content = event.source.get("content")
        try:
            wish = VitalsWatch.from_content(content)
            sent_at = from_ms(event.server_timestamp)
        except (DecodeError, OverflowError):
            return None
        now = self._now()
        if not now - FRESH <= sent_at <= now + CLOCKS_DIFFER:
            return None
        until = min(sent_at, now) + timedelta(seconds=wish.for_s)
        return until if until > now else None
