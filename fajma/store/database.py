"""Opening the database, transactions that survive cancellation, and hints between parts.

Two transactions that lock the same rows in different orders wait for each other, until PostgreSQL
ends one of them. So each locks, of these, what it locks in this order:

1. what it is about: a command seen, a ward's roster, a person, an alarm's state;
2. the heads of ``devices`` and ``readings``;
3. the head of ``trust`` (who may read), then pins, then warnings;
4. the head of ``outbox``;
5. the head of ``audit``.

The last two are everybody's and held until the commit. Their order is kept by ``Audit.note``, which
locks both: so an act may be noted before or after it is told of.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import asyncpg
from mautrix.util.async_db import Connection, Database, Scheme, UpgradeTable

from fajma.config import DatabaseSettings, read_secret
from fajma.errors import UnavailableError
from fajma.store.schema import upgrade_table


class Row(Protocol):
    """A row of either database."""

    def __getitem__(self, column: str) -> Any:
        """The value of a column."""


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)

SQLITE_PRAGMAS: Final = [
    "PRAGMA foreign_keys = ON",
    "PRAGMA journal_mode = WAL",
    # A reading is acknowledged after its commit, so a commit must reach the disk.
    "PRAGMA synchronous = FULL",
    "PRAGMA busy_timeout = 5000",
    # What is deleted is overwritten, so that erased keys do not linger in free pages.
    "PRAGMA secure_delete = ON",
]


def to_ms(moment: datetime) -> int:
    """An aware time as milliseconds since 1970 UTC."""
    return (moment - _EPOCH) // _MILLISECOND


def from_ms(milliseconds: int) -> datetime:
    """Milliseconds since 1970 as an aware UTC time."""
    return _EPOCH + timedelta(milliseconds=milliseconds)


class Hints:
    """Wakes the followers of a log when something was committed to it.

    A hint is only a hint: whoever waits also looks by itself after ``POLL_S``, which is the truth
    that survives a lost hint and a second process.
    """

    POLL_S: Final = 1.0

    def __init__(self) -> None:
        self._events: dict[str, list[asyncio.Event]] = {}

    def subscribe(self, *topics: str) -> asyncio.Event:
        """An event of its own for one follower of these topics."""
        event = asyncio.Event()
        for topic in topics:
            self._events.setdefault(topic, []).append(event)
        return event

    def notify(self, topic: str) -> None:
        """Something was committed under ``topic``."""
        for event in self._events.get(topic, ()):
            event.set()

    async def wait(self, event: asyncio.Event, timeout_s: float = POLL_S) -> None:
        """Wait for a hint, at most ``timeout_s``."""
        # Not wait_for, which in Python 3.11 may drop a cancellation.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await event.wait()
        event.clear()


def _probe(path: Path) -> None:
    """Raise what is wrong with a SQLite file before mautrix opens it.

    When mautrix fails on it, it forgets the connection, whose thread then keeps the process alive.
    """
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for pragma in SQLITE_PRAGMAS:
            connection.execute(pragma)


class Store:
    """An open database.

    Attributes:
        db: mautrix's database, shared with its crypto and state stores.
        hints: wakes followers inside this process.
    """

    def __init__(self, db: Database) -> None:
        self.db = db
        self.hints = Hints()

    @property
    def is_sqlite(self) -> bool:
        """Whether this is the embedded database."""
        return self.db.scheme == Scheme.SQLITE

    @classmethod
    async def open(
        cls, settings: DatabaseSettings, *, also_upgrade: Iterable[UpgradeTable] = ()
    ) -> Store:
        """Connect, and bring the schema up to date.

        Args:
            settings: where the database is.
            also_upgrade: schemas of libraries that live in the same database.

        Raises:
            UnavailableError: the database does not answer or cannot be opened.
        """
        url = settings.url
        if url.startswith("sqlite"):
            # One connection: writers take turns instead of failing on SQLite's lock.
            args: dict[str, Any] = {"min_size": 1, "init_commands": list(SQLITE_PRAGMAS)}
        else:
            args = {"min_size": 1, "max_size": 8}
            if settings.password_file is not None:
                args["password"] = read_secret(settings.password_file, purpose="database password")
        db = Database.create(url, upgrade_table=upgrade_table, db_args=args)
        try:
            if db.scheme == Scheme.SQLITE:
                path = Path(urlsplit(url).path)
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                _probe(path)
            await db.start()
            for table in also_upgrade:
                await table.upgrade(db)
        except (OSError, asyncpg.PostgresError, sqlite3.Error) as error:
            with contextlib.suppress(Exception):
                await db.stop()
            raise UnavailableError(
                f"the database does not open ({type(error).__name__}): check database.url",
                code="database_unavailable",
            ) from error
        return cls(db)

    async def close(self) -> None:
        """Close every connection."""
        await self.db.stop()

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """One transaction: all of it is committed, or none.

        mautrix rolls SQLite back on an exception but not on a cancellation, which would leave the
        one connection inside an open transaction; so that is done here. Do not start tasks or
        HTTP requests inside: child tasks inherit the connection.
        """
        connection: Connection
        # Who waits for SQLite's one connection is served before whoever has just given it back.
        await asyncio.sleep(0)
        async with self.db.acquire() as connection:
            try:
                async with connection.transaction():
                    yield connection
            except BaseException:
                # Even if none seems to be open: a cancelled BEGIN may still be on its way to
                # SQLite's thread. Without a transaction this does nothing.
                if self.is_sqlite:
                    await asyncio.shield(connection.wrapped.rollback())
                raise
