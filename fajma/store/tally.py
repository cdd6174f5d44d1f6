"""How often each thing happened, ever: for the operator's view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mautrix.util.async_db import Connection

from fajma.store.database import Store

COUNTED_MOST: Final = 1 << 62
"""Where a counter stays: a number that a database holds, and nobody believes."""


class Tally:
    """Repository of counters, each named in lower case: ``stored``, ``repeated``, ..."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(self, connection: Connection, counts: Mapping[str, int]) -> None:
        """Count, inside the caller's transaction."""
        for name, count in sorted(counts.items()):
            if count:
                await connection.execute(
                    "INSERT INTO tally (name, count) VALUES ($1, $2)"
                    " ON CONFLICT (name) DO UPDATE SET count=CASE WHEN tally.count>$3-$2"
                    " THEN $3 ELSE tally.count+$2 END",
                    name,
                    min(count, COUNTED_MOST),
                    COUNTED_MOST,
                )

    async def all(self) -> dict[str, int]:
        """Every counter."""
        rows = await self._store.db.fetch("SELECT name, count FROM tally ORDER BY name")
        return {row["name"]: row["count"] for row in rows}
