"""Who is in which room, as mautrix keeps it: one store for its intents and for its encryption."""

from __future__ import annotations

from mautrix.appservice.state_store.asyncpg import PgASStateStore
from mautrix.crypto.store.asyncpg.store import PgCryptoStateStore
from mautrix.util.async_db import Database


class RoomState(PgASStateStore, PgCryptoStateStore):  # type: ignore[misc]
    """Membership, power and encryption settings of every room our users are in."""

    def __init__(self, db: Database) -> None:
        PgASStateStore.__init__(self, db)
        self.unsure: set[str] = set()
        """Rooms of which we do not know who is in them now; nothing is sent there meanwhile."""
