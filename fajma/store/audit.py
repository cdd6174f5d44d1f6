"""Who did what to whom: an append-only log. Its chain of proofs is a later issue (10)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from mautrix.util.async_db import Connection

from fajma.sealing import SiteKey
from fajma.store.alarms import LOG as OUTBOX
from fajma.store.database import Store, from_ms, to_ms
from fajma.store.readings import lock_head, move_head

LOG = "audit"

OPERATOR = "operator"
"""Actor of what was asked for with the operator's token."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One act.

    Attributes:
        position: 1, 2, 3, ...
        at: aware UTC.
        actor: a user id, or ``OPERATOR``.
        action: e.g. ``duty.take``.
        subject: a user id, a ward, a room or a patient key.
        detail: what else is to be known; sealed.
    """

    position: int
    at: datetime
    actor: str
    action: str
    subject: str
    detail: Mapping[str, str]


class Audit:
    """Repository of the audit log."""

    def __init__(self, store: Store, site_key: SiteKey) -> None:
        self._store = store
        self._site_key = site_key

    async def note(
        self,
        connection: Connection,
        *,
        actor: str,
        action: str,
        subject: str,
        now: datetime,
        **detail: str,
    ) -> None:
        """Append an entry, in the transaction of the act itself."""
        # Who notes an act often tells of it too, before or after: the outbox is always locked first
        # (see fajma/store/database.py).
        await lock_head(connection, OUTBOX)
        position = await lock_head(connection, LOG) + 1
        await move_head(connection, LOG, position)
        await connection.execute(
            "INSERT INTO audit (position, at, actor, action, subject, sealed)"
            " VALUES ($1, $2, $3, $4, $5, $6)",
            position,
            to_ms(now),
            actor,
            action,
            subject,
            self._site_key.site.seal(json.dumps(detail).encode(), place=f"audit/{position}"),
        )

    async def position(self) -> int:
        """Position of the newest entry, 0 before the first."""
        return int(
            await self._store.db.fetchval("SELECT position FROM log_head WHERE log=$1", LOG) or 0
        )

    async def latest(self, *, limit: int = 100) -> list[Entry]:
        """The newest entries, oldest of them first."""
        rows = await self._store.db.fetch(
            "SELECT * FROM audit ORDER BY position DESC LIMIT $1", limit
        )
        return [
            Entry(
                position=row["position"],
                at=from_ms(row["at"]),
                actor=row["actor"],
                action=row["action"],
                subject=row["subject"],
                detail=json.loads(
                    self._site_key.site.open(bytes(row["sealed"]), place=f"audit/{row['position']}")
                ),
            )
            for row in reversed(rows)
        ]
