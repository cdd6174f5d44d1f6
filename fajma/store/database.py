"""Opening the database, and transactions that survive cancellation.

Two transactions that lock the same rows in different orders wait for each other, until PostgreSQL
ends one of them. So each locks, of these, what it locks in this order:

1. what it is about: a command seen, a ward's roster, a person, a consultation, an alarm's state;
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
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import asyncpg
from mautrix.util.async_db import Connection, Database, Scheme, UpgradeTable
from mautrix.util.async_db.aiosqlite import in_transaction

from fajma.config import DatabaseSettings, read_secret
from fajma.errors import InputError, UnavailableError
from fajma.store.away import DATABASE_UNAVAILABLE
from fajma.store.hints import Hints
from fajma.store.schema import upgrade_table


class Row(Protocol):
    """A row of either database."""

    def __getitem__(self, column: str) -> Any:
        """The value of a column."""


UPGRADE_LOCK: Final = 0x46414A4D41
"""Key of PostgreSQL's advisory lock on the schema: "FAJMA" in ASCII."""

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


async def _require_durable(db: Database) -> None:
    if db.scheme == Scheme.POSTGRES and await db.fetchval("SHOW fsync") != "on":
        raise InputError(
            "PostgreSQL runs with fsync off, so a power cut would lose readings whose monitors have"
            " deleted them: set fsync = on in postgresql.conf",
            code="database_not_durable",
        )


def _probe(path: Path) -> None:
    """Raise what is wrong with a SQLite file before mautrix opens it.

    When mautrix fails on it, it forgets the connection, whose thread then keeps the process alive.
    """
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for pragma in SQLITE_PRAGMAS:
            connection.execute(pragma)


Fence = Callable[[Connection], AbstractAsyncContextManager[None]]
"""Surrounds the content of a transaction; an error that it raises at the end prevents the commit.
"""


@contextlib.asynccontextmanager
async def _upgrading(url: str, password: str | None) -> AsyncIterator[None]:
    """Only one process at a time changes the schema of a PostgreSQL."""
    connection = await asyncpg.connect(url, password=password)
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", UPGRADE_LOCK)
        yield
    finally:
        await connection.close()  # gives the lock back


async def _upgrade(db: Database, also_upgrade: Iterable[UpgradeTable]) -> None:
    await db.start()
    for table in also_upgrade:
        await table.upgrade(db)


class Store:
    """An open database.

    Attributes:
        db: mautrix's database, shared with its crypto and state stores.
        hints: wakes followers.
    """

    def __init__(
        self, db: Database, *, hints: Hints | None = None, fence: Fence | None = None
    ) -> None:
        self.db = db
        self.hints = hints or Hints()
        self._fence = fence

    def fenced(self, fence: Fence) -> Store:
        """The same database, in which every ``transaction`` has a fence."""
        return Store(self.db, hints=self.hints, fence=fence)

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
            InputError: it would lose what it has committed (``database_not_durable``).
        """
        url = settings.url
        if settings.is_sqlite:
            # One connection: writers take turns instead of failing on SQLite's lock.
            args: dict[str, Any] = {"min_size": 1, "init_commands": list(SQLITE_PRAGMAS)}
        else:
            args = {
                "min_size": 1,
                "max_size": 8,
                # By itself mautrix ends the process when PostgreSQL ends a connection at a bad
                # moment.
                "meow_exit_on_ice": False,
                # A reading is acknowledged after its commit, so a commit must reach the disk.
                # A process that freezes inside a transaction must not hold its locks for ever:
                # all others would wait.
                "server_settings": {
                    "synchronous_commit": "on",
                    "idle_in_transaction_session_timeout": str(round(1000 * settings.lease_s)),
                },
            }
            if settings.password_file is not None:
                args["password"] = read_secret(settings.password_file, purpose="database password")
        db = Database.create(url, upgrade_table=upgrade_table, db_args=args)
        try:
            if db.scheme == Scheme.SQLITE:
                path = Path(urlsplit(url).path)
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                _probe(path)
                await _upgrade(db, also_upgrade)
            else:
                async with _upgrading(url, args.get("password")):
                    await _upgrade(db, also_upgrade)
                await _require_durable(db)
        except InputError:
            await db.stop()
            raise
        except (OSError, asyncpg.PostgresError, sqlite3.Error) as error:
            with contextlib.suppress(Exception):
                await db.stop()
            raise UnavailableError(
                f"the database does not open ({type(error).__name__}): check database.url",
                code=DATABASE_UNAVAILABLE,
            ) from error
        return cls(db)

    async def fetch_among(self, query: str, among: Collection[str], *more: object) -> list[Row]:
        """Rows of a query whose last column must be one of these texts, however many.

        Args:
            query: ends in that column, e.g. ``SELECT wrapped FROM patient_key WHERE patient_key``.
            among: the texts, ``$1``.
            more: the query's other arguments, from ``$2``.
        """
        # One argument on either database: the query stays the same for any number.
        if self.is_sqlite:
            found = await self.db.fetch(
                f"{query} IN (SELECT value FROM json_each($1))",  # noqa: S608 - written by us
                json.dumps(list(among)),
                *more,
            )
        else:
            found = await self.db.fetch(f"{query}=ANY($1::text[])", list(among), *more)
        return list(found)

    async def close(self) -> None:
        """Close every connection."""
        await self.db.stop()

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        """One connection for all queries and transactions of this block, instead of one for each.

        Do not start tasks or HTTP requests inside: child tasks inherit the connection.
        """
        # Who waits for SQLite's one connection is served before whoever has just given it back.
        await asyncio.sleep(0)
        async with self.db.acquire():
            yield

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
                async with self._begun(connection):
                    if self._fence is None:
                        yield connection
                    else:
                        async with self._fence(connection):
                            yield connection
            except BaseException:
                # Even if none seems to be open: a cancelled BEGIN may still be on its way to
                # SQLite's thread. Without a transaction this does nothing.
                if self.is_sqlite:
                    await asyncio.shield(connection.wrapped.rollback())
                raise

    @contextlib.asynccontextmanager
    async def _begun(self, connection: Connection) -> AsyncIterator[None]:
        """A transaction of mautrix's, or more of the one that is open already.

        SQLite's begins as a writer, which waits for its turn (``busy_timeout``). One that read
        first could not become a writer once another process has written: it fails at once.
        """
        opened: Any = connection  # which mautrix's types do not describe
        if not self.is_sqlite or in_transaction.get():
            async with opened.transaction():
                yield
            return
        await opened.execute("BEGIN IMMEDIATE")
        token = in_transaction.set(True)
        try:
            yield
            await opened.wrapped.commit()
        finally:
            in_transaction.reset(token)
