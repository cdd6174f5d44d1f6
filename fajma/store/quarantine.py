"""What was refused: counted by reason, and kept sealed so that a person can look into it."""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from mautrix.util.async_db import Connection

from fajma.sealing import Key
from fajma.store.database import Store, to_ms

MAX_KEPT: Final = 10_000
"""Newest refused messages kept; older ones make room, their count remains."""

MAX_PAYLOAD_BYTES: Final = 4096
"""How much of a refused payload is kept."""


@dataclass(frozen=True, slots=True)
class Refused:
    """One message, or one value of a message, that did not become a reading.

    Attributes:
        reason: stable code, e.g. ``not_json``.
        topic: MQTT topic it came on.
        payload: its bytes.
        received_at: aware UTC.
    """

    reason: str
    topic: str
    payload: bytes
    received_at: datetime


class Quarantine:
    """Repository of refused messages."""

    def __init__(self, store: Store, site: Key) -> None:
        self._store = store
        self._site = site

    async def keep(self, connection: Connection, refused: Sequence[Refused]) -> None:
        """Count and keep, inside the caller's transaction."""
        for reason, count in Counter(one.reason for one in refused).items():
            await connection.execute(
                "INSERT INTO rejection (reason, count) VALUES ($1, $2)"
                " ON CONFLICT (reason) DO UPDATE SET count=rejection.count+$2",
                reason,
                count,
            )
        for one in refused:
            quarantine_id = secrets.token_hex(8)
            content = json.dumps(
                {"topic": one.topic, "payload": one.payload[:MAX_PAYLOAD_BYTES].hex()}
            )
            await connection.execute(
                "INSERT INTO quarantine (quarantine_id, reason, received_at, sealed)"
                " VALUES ($1, $2, $3, $4)",
                quarantine_id,
                one.reason,
                to_ms(one.received_at),
                self._site.seal(content.encode(), place=f"quarantine/{quarantine_id}"),
            )
        if refused:
            await connection.execute(
                "DELETE FROM quarantine WHERE quarantine_id IN (SELECT quarantine_id FROM"
                " quarantine ORDER BY received_at DESC LIMIT $2 OFFSET $1)",
                MAX_KEPT,
                MAX_KEPT,
            )

    async def counts(self) -> dict[str, int]:
        """How often each reason occurred, ever."""
        rows = await self._store.db.fetch("SELECT reason, count FROM rejection ORDER BY reason")
        return {row["reason"]: row["count"] for row in rows}
