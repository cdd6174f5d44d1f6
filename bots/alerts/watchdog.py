"""Tells somebody outside, again and again, that all works: his alarm is that we stop.

For the case that nobody here can tell any more: the host of the homeserver is dead, or the power.
What is sent is a bare request; who gets it learns that this hospital's FAJMA works, and no more.
"""

from __future__ import annotations

import asyncio
from typing import Final

import aiohttp
import structlog

from bots.alerts.signs import Signs

log = structlog.get_logger()

_TIMEOUT: Final = aiohttp.ClientTimeout(total=10)
_OK: Final = range(200, 300)


class Watchdog:
    """Pings an address while all works.

    Args:
        signs: whether it does.
        url: what is fetched, e.g. of a dead-man service; who knows it can speak for us.
        every_s: how often.
    """

    def __init__(self, signs: Signs, url: str, *, every_s: float) -> None:
        self._signs = signs
        self._url = url
        self._every_s = every_s
        self._trouble: str | None = None

    async def run(self) -> None:
        """Ping until cancelled."""
        async with aiohttp.ClientSession(timeout=_TIMEOUT, trust_env=True) as session:
            while True:
                if self._signs.all_work:
                    self._tell(await _ping(session, self._url))
                await asyncio.sleep(self._every_s)

    def _tell(self, trouble: str | None) -> None:
        """Once for each change: a service that is away for a night fills no log."""
        if trouble == self._trouble:
            return
        self._trouble = trouble
        if trouble is None:
            log.info("watchdog_reached")
        else:
            log.warning("watchdog_not_reached", reason=trouble)


async def _ping(session: aiohttp.ClientSession, url: str) -> str | None:
    """``None``, or why it did not arrive: a status or a kind of error, not the address."""
    try:
        async with session.get(url, allow_redirects=False) as answer:
            return None if answer.status in _OK else f"HTTP {answer.status}"
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        return type(error).__name__
