"""Commands that were dealt with: an encrypted message is taken once, whatever is replayed."""

from __future__ import annotations

from datetime import datetime

from mautrix.util.async_db import Connection

from fajma.store.database import Store, to_ms


class OrdersSeen:
    """Repository of the commands that were carried out or refused."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def take(self, connection: Connection, envelope: bytes, *, now: datetime) -> bool:
        """Take a command, in the transaction that carries it out.

        Args:
            connection: of that transaction.
            envelope: fingerprint of the encrypted message itself, so that a homeserver that sends
                it again under another event id changes nothing.
            now: aware UTC.

        Returns:
            False if it was taken before.
        """
        row = await connection.fetchrow(
            "INSERT INTO order_seen (envelope, seen_at) VALUES ($1, $2)"
            " ON CONFLICT (envelope) DO NOTHING RETURNING seen_at",
            envelope,
            to_ms(now),
        )
        return row is not None

    async def known(self, envelope: bytes) -> bool:
        """Whether this command was dealt with before."""
        return (
            await self._store.db.fetchval(
                "SELECT seen_at FROM order_seen WHERE envelope=$1", envelope
            )
            is not None
        )
