"""What a part does to be known alive: it says so now and then, while it truly works."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

import structlog

from fajma.store import Records

log = structlog.get_logger()


async def give_signs(
    records: Records, name: str, *, every_s: float, works: Callable[[], bool] = lambda: True
) -> None:
    """Give signs of life until cancelled.

    That one comes shows that the event loop of the part turns and that it can commit.

    Args:
        records: where the signs are kept.
        name: whose (``fajma.store.heartbeats``).
        every_s: how often.
        works: what else must be so.
    """
    while True:
        try:
            if works():
                await records.heartbeats.beat(name, now=datetime.now(UTC))
        except Exception as error:  # noqa: BLE001 - no sign is a sign
            log.error("sign_of_life_not_given", part=name, error=type(error).__name__)
        await asyncio.sleep(every_s)
