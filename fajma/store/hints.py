"""Wakes the followers of a log when something was committed to it, here or in another process."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Final, cast

import asyncpg
import structlog
from mautrix.util.async_db import Database

from fajma.tasks import end

log = structlog.get_logger()

CHANNEL: Final = "fajma_hints"
"""PostgreSQL channel on which processes hint at each other; the payload is ``sender topic``."""

AGAIN_S: Final = 5.0


class Hints:
    """Wakes the followers of a log when something was committed to it.

    A hint is only a hint: whoever waits also looks by itself after ``POLL_S``, which is the truth
    that survives a lost hint.
    """

    POLL_S: Final = 1.0

    def __init__(self) -> None:
        self._events: dict[str, list[asyncio.Event]] = {}
        self._told: Callable[[str], None] | None = None

    def subscribe(self, *topics: str) -> asyncio.Event:
        """An event of its own for one follower of these topics."""
        event = asyncio.Event()
        for topic in topics:
            self._events.setdefault(topic, []).append(event)
        return event

    def notify(self, topic: str) -> None:
        """Something was committed under ``topic``."""
        self._wake(topic)
        if self._told is not None:
            self._told(topic)

    async def wait(self, event: asyncio.Event, timeout_s: float = POLL_S) -> bool:
        """Wait for a hint, at most ``timeout_s``; returns whether there was one."""
        # Not wait_for, which in Python 3.11 may drop a cancellation.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await event.wait()
        hinted = event.is_set()
        event.clear()
        return hinted

    @contextlib.asynccontextmanager
    async def shared(self, db: Database) -> AsyncIterator[None]:
        """Exchange hints with the other processes on a PostgreSQL, while in this block.

        Takes one of its connections. While it is away there are no hints from elsewhere, and after
        a break none are made up for.
        """
        sharing = asyncio.create_task(self._share(db))
        try:
            yield
        finally:
            await end([sharing])

    async def _share(self, db: Database) -> None:
        while True:
            try:
                async with db.acquire_direct() as connection:
                    await self._exchange(cast("asyncpg.Connection", connection.wrapped))
            except Exception as error:  # noqa: BLE001 - without hints everybody looks by himself
                log.warning("hints_not_shared", error=type(error).__name__, retry_s=AGAIN_S)
            finally:
                self._told = None
            await asyncio.sleep(AGAIN_S)

    async def _exchange(self, connection: asyncpg.Connection) -> None:
        """Exchange hints until the connection ends."""
        me = secrets.token_hex(8)
        waiting: set[str] = set()  # a topic that is hinted at often is told as often as we can
        something = asyncio.Event()
        closed = False

        def tell(topic: str) -> None:
            waiting.add(topic)
            something.set()

        def hear(*notification: object) -> None:
            sender, _, topic = str(notification[-1]).partition(" ")
            if sender != me:
                self._wake(topic)

        def close(_: object) -> None:
            nonlocal closed
            closed = True
            something.set()

        connection.add_termination_listener(close)
        await connection.add_listener(CHANNEL, hear)
        try:
            self._told = tell
            while not closed:
                await something.wait()
                something.clear()
                while waiting:
                    await connection.execute(
                        "SELECT pg_notify($1, $2)", CHANNEL, f"{me} {waiting.pop()}"
                    )
        finally:
            self._told = None
            if not closed:
                connection.remove_termination_listener(close)
                await connection.remove_listener(CHANNEL, hear)

    def _wake(self, topic: str) -> None:
        for event in self._events.get(topic, ()):
            event.set()
