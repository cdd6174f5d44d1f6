"""A database that is away for a while: telling that from a fault, and waiting until it is back.

PostgreSQL is restarted, fails over, or is killed; then a statement may fail with any of a dozen
errors of three libraries. None of them may end FAJMA or lose what somebody told us once. Loops that
look again by themselves need none of this; who is told something once, or would end, waits here.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from typing import Final

import asyncpg
import structlog

from fajma.errors import UnavailableError

log = structlog.get_logger()

DATABASE_UNAVAILABLE: Final = "database_unavailable"
AGAIN_S: Final = 1.0

_AWAY: Final = (
    # The connection ended, was refused, or the server is starting or stopping. Refused ones come as
    # OSError, also of a socket file that is not there.
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    sqlite3.OperationalError,
    OSError,  # a timeout too
)


def is_outage(error: BaseException) -> bool:
    """Whether an error of a database shows that it is away; it comes back, and nobody erred."""
    if isinstance(error, UnavailableError):
        return error.code == DATABASE_UNAVAILABLE
    # asyncpg's word for an argument that makes no sense is an InterfaceError and a ValueError.
    return isinstance(error, _AWAY) and not isinstance(error, ValueError)


async def outlast(work: Callable[[], Awaitable[None]], *, what: str) -> None:
    """Do something once the database is there for it; it is begun again after each outage.

    Args:
        work: may be done several times.
        what: name of it in the log.

    Raises:
        Exception: whatever else it raised.
    """
    while True:
        try:
            await work()
        except Exception as error:
            if not is_outage(error):
                raise
            log.warning("database_away", waiting=what, error=type(error).__name__)
            await asyncio.sleep(AGAIN_S)
        else:
            return
