"""How often each thing happened, ever: for the operator's view."""

from __future__ import annotations

from collections.abc import Mapping

from mautrix.util.async_db import Connection

from fajma.store.database import Store


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
                    " ON CONFLICT (name) DO UPDATE SET count=tally.count+$2",
                    name,
                    count,
                )

    async def all(self) -> dict[str, int]:
        """Every counter."""
        rows = await self._store.db.fetch("SELECT name, count FROM tally ORDER BY name")
        return {row["name"]: row["count"] for row in rows}
