"""What shows that a database is away, and who waits until it is back."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine
from typing import Any

import asyncpg
import pytest

from console.run import _again
from fajma.errors import BugError, UnavailableError
from fajma.store.away import DATABASE_UNAVAILABLE, is_outage, outlast
from fajma.store.leases import LeaseLostError

Work = Callable[[], Coroutine[Any, Any, None]]

AWAY = (
    asyncpg.ConnectionDoesNotExistError("x"),
    asyncpg.CannotConnectNowError("the database system is starting up"),
    asyncpg.AdminShutdownError("x"),
    asyncpg.TooManyConnectionsError("x"),
    asyncpg.InterfaceError("connection is closed"),
    sqlite3.OperationalError("database is locked"),
    ConnectionRefusedError(),
    FileNotFoundError("its socket"),
    TimeoutError(),
    UnavailableError("it does not open", code=DATABASE_UNAVAILABLE),
)
FAULTS = (
    asyncpg.UniqueViolationError("x"),
    asyncpg.UndefinedTableError("x"),
    asyncpg.exceptions._base.DataError("an argument of the wrong type"),
    sqlite3.IntegrityError("x"),
    BugError("x", code="x"),
    ValueError("x"),
)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fajma.store.away.AGAIN_S", 0)
    monkeypatch.setattr("console.run.AGAIN_S", 0)


def failing(*errors: Exception) -> tuple[Work, list[Exception]]:
    """Work that fails with each of these, then succeeds; and what is left of them."""
    left = list(errors)

    async def work() -> None:
        if left:
            raise left.pop(0)

    return work, left


@pytest.mark.parametrize("error", AWAY, ids=lambda one: type(one).__name__)
def test_a_database_that_is_away_is_known_by_its_errors(error: Exception) -> None:
    assert is_outage(error)


@pytest.mark.parametrize("error", FAULTS, ids=lambda one: type(one).__name__)
def test_a_fault_is_no_outage(error: Exception) -> None:
    assert not is_outage(error)


async def test_what_is_told_once_waits_until_the_database_is_back() -> None:
    work, left = failing(*AWAY)
    await outlast(work, what="news")
    assert left == []


async def test_who_waits_for_the_database_does_not_wait_for_a_bug() -> None:
    work, left = failing(AWAY[0], FAULTS[0], AWAY[0])
    with pytest.raises(type(FAULTS[0])):
        await outlast(work, what="news")
    assert len(left) == 1


async def test_a_part_that_has_worked_begins_again_after_what_passes() -> None:
    worked = asyncio.Event()
    worked.set()
    homeserver = UnavailableError("it does not answer", code="homeserver_unavailable")
    work, left = failing(AWAY[0], homeserver, LeaseLostError("alert-bot"))
    await _again("a part", work, worked)
    assert left == []


async def test_a_part_that_never_worked_says_what_is_missing() -> None:
    work, _ = failing(AWAY[0])
    with pytest.raises(type(AWAY[0])):
        await _again("a part", work, asyncio.Event())


async def test_a_bug_ends_a_part() -> None:
    worked = asyncio.Event()
    worked.set()
    work, _ = failing(FAULTS[-1])
    with pytest.raises(type(FAULTS[-1])):
        await _again("a part", work, worked)
