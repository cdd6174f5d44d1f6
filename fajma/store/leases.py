"""Who does what only one process may do (ADR 0008).

A lease is a row: what is done, who does it, and until when, by the clock of the database. Whoever
holds it renews it in time; when he does not, another may take it.

Holding a lease is not enough to write: a process that was stopped for a minute does not know that
it has lost it. So a transaction of whoever does the work ends with ``Leases.fence``, which looks
once more and locks the row until the commit. Another can take the lease only before, and then the
transaction fails, or after.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mautrix.util.async_db import Connection

from fajma.errors import UnavailableError
from fajma.store.database import Store


class LeaseLostError(UnavailableError):
    """What was to be committed is not, since its lease is lost."""

    def __init__(self, name: str) -> None:
        super().__init__(f"another process may do the work of {name} now", code="lease_lost")


@dataclass(frozen=True, slots=True)
class Lease:
    """One term of one holder.

    Attributes:
        name: what is done under it, e.g. ``alarms``.
        holder: who; different for each term, also of the same process.
        length_s: for how long it is taken and renewed.
    """

    name: str
    holder: str
    length_s: float


class Leases:
    """Repository of leases. All times are of the database's clock."""

    def __init__(self, store: Store) -> None:
        self._store = store
        if store.is_sqlite:
            self._now = "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"
        else:  # not now(), which stands still in a transaction
            self._now = "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)"

    async def acquire(self, lease: Lease) -> bool:
        """Take a lease that nobody holds (any more); returns whether we hold it now."""
        taken = await self._store.db.fetchval(
            f"INSERT INTO lease (name, holder, until) VALUES ($1, $2, {self._now} + $3)"  # noqa: S608 - ours
            f" ON CONFLICT (name) DO UPDATE SET holder=excluded.holder, until={self._now} + $3"
            f" WHERE lease.until<={self._now} RETURNING holder",
            *self._values(lease),
        )
        return taken is not None

    async def renew(self, lease: Lease) -> bool:
        """Hold it longer; returns false when it is lost."""
        kept = await self._store.db.fetchval(
            f"UPDATE lease SET until={self._now} + $3 WHERE name=$1 AND holder=$2"  # noqa: S608
            f" AND until>{self._now} RETURNING holder",
            *self._values(lease),
        )
        return kept is not None

    async def is_held(self, name: str) -> bool:
        """Whether anybody holds it now."""
        held = await self._store.db.fetchval(
            f"SELECT 1 FROM lease WHERE name=$1 AND until>{self._now}",  # noqa: S608 - ours
            name,
        )
        return held is not None

    async def release(self, lease: Lease) -> None:
        """Give it back before its time; nothing if it is lost."""
        await self._store.db.execute(
            "DELETE FROM lease WHERE name=$1 AND holder=$2", lease.name, lease.holder
        )

    @asynccontextmanager
    async def fence(self, lease: Lease, connection: Connection) -> AsyncIterator[None]:
        """Inside a transaction: what is done in this block counts only while the lease is held.

        Raises:
            LeaseLostError: at the end of the block; the transaction must not be committed.
        """
        if not self._store.is_sqlite:
            # If we are stopped now, our locks must not keep the next holder waiting for ever.
            limit_ms = int(lease.length_s * 1000)
            await connection.execute(f"SET LOCAL idle_in_transaction_session_timeout={limit_ms}")
        yield
        # SQLite lets nobody else write before our commit.
        locked = "" if self._store.is_sqlite else "FOR SHARE"
        holds = await connection.fetchval(
            f"SELECT holder FROM lease WHERE name=$1 AND holder=$2"  # noqa: S608
            f" AND until>{self._now} {locked}",
            lease.name,
            lease.holder,
        )
        if holds is None:
            raise LeaseLostError(lease.name)

    def _values(self, lease: Lease) -> tuple[str, str, int]:
        return lease.name, lease.holder, int(lease.length_s * 1000)
