"""Who looks at the vitals of a room: those who watch, and those who have just come.

Both are times only. A watch speeds publishing up until it ends; somebody who came is owed the
snapshot and what was published before he could read.
"""

from __future__ import annotations

from datetime import datetime

from fajma.store.consultations import ConsultationId
from fajma.store.database import Store, from_ms, to_ms


class Watching:
    """Repository of watches and newcomers, one of each at most for a consultation."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def watch(self, room_id: str, until: datetime) -> None:
        """Somebody watches a consultation's room; of several watches the latest end counts."""
        await self._store.db.execute(
            "INSERT INTO watch (consultation_id, until)"
            " SELECT consultation_id, $2 FROM consultation WHERE room_id=$1"
            " ON CONFLICT (consultation_id) DO UPDATE SET until=CASE"
            " WHEN excluded.until>watch.until THEN excluded.until ELSE watch.until END",
            room_id,
            to_ms(until),
        )

    async def watched(self, now: datetime) -> dict[ConsultationId, datetime]:
        """Which consultations are watched now, and until when."""
        rows = await self._store.db.fetch(
            "SELECT consultation_id, until FROM watch WHERE until>$1", to_ms(now)
        )
        return {ConsultationId(row["consultation_id"]): from_ms(row["until"]) for row in rows}

    async def came(self, room_id: str, now: datetime) -> None:
        """Somebody can read a consultation's room from now on and could not before."""
        await self._store.db.execute(
            "INSERT INTO newcomer (consultation_id, came_at)"
            " SELECT consultation_id, $2 FROM consultation WHERE room_id=$1"
            " ON CONFLICT (consultation_id) DO UPDATE SET came_at=excluded.came_at",
            room_id,
            to_ms(now),
        )

    async def newcomers(self) -> dict[ConsultationId, datetime]:
        """Where somebody has not got yet what he is owed, and when the last one came."""
        rows = await self._store.db.fetch("SELECT consultation_id, came_at FROM newcomer")
        return {ConsultationId(row["consultation_id"]): from_ms(row["came_at"]) for row in rows}

    async def served(self, consultation: ConsultationId, came_at: datetime) -> None:
        """All is sent that is owed to who came until then."""
        await self._store.db.execute(
            "DELETE FROM newcomer WHERE consultation_id=$1 AND came_at=$2",
            consultation,
            to_ms(came_at),
        )
