"""Commands that were dealt with: an encrypted message is taken once, whatever is replayed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from mautrix.util.async_db import Connection

from fajma.store.database import Store, to_ms


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a message stands among those that one device encrypted for one room.

    Attributes:
        session: fingerprint of the Megolm session.
        index: of the message in it; each message has a higher one than the message before.
    """

    session: bytes
    index: int


class OrdersSeen:
    """Repository of the commands that were carried out or refused."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def take(
        self, connection: Connection, envelope: bytes, *, now: datetime, spot: Spot | None = None
    ) -> bool:
        """Take a command, in the transaction that carries it out.

        Args:
            connection: of that transaction.
            envelope: fingerprint of the encrypted message itself, so that a homeserver that sends
                it again under another event id changes nothing.
            now: aware UTC.
            spot: where it stands, if it is encrypted.

        Returns:
            False if it was taken before.
        """
        row = await connection.fetchrow(
            "INSERT INTO order_seen (envelope, seen_at, session, message_index)"
            " VALUES ($1, $2, $3, $4) ON CONFLICT (envelope) DO NOTHING RETURNING seen_at",
            envelope,
            to_ms(now),
            spot.session if spot is not None else None,
            spot.index if spot is not None else None,
        )
        return row is not None

    async def is_overtaken(self, connection: Connection, spot: Spot) -> bool:
        """Whether a command that was typed later, on the same device, was taken before."""
        last = await connection.fetchval(
            "SELECT MAX(message_index) FROM order_seen WHERE session=$1", spot.session
        )
        return last is not None and int(last) >= spot.index

    async def known(self, envelope: bytes) -> bool:
        """Whether this command was dealt with before."""
        return (
            await self._store.db.fetchval(
                "SELECT seen_at FROM order_seen WHERE envelope=$1", envelope
            )
            is not None
        )
