"""Does a part of FAJMA while this process holds the part's lease, and waits otherwise (ADR 0008).

A lease is renewed every third of its length. It counts as lost when the database says so, and also
when the database has not answered until shortly before its end by our own clock: the part is
stopped then, so that two processes never do it at the same time.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

import structlog

from console.files import ALREADY_RUNNING
from fajma.errors import UnavailableError
from fajma.store.leases import Lease, Leases
from fajma.tasks import end

log = structlog.get_logger()

USABLE: Final = 5 / 6
"""The part of a lease in which we work without news of it; in the rest a part must have stopped."""

LOOKS: Final = 15
"""How often in the length of a lease a standby looks whether it is free."""


async def lead(
    leases: Leases,
    name: str,
    *,
    length_s: float,
    part: Callable[[Lease], Coroutine[Any, Any, None]],
) -> None:
    """Do a part each time that its lease can be had, until it ends by itself.

    Args:
        leases: where leases are kept.
        name: of the lease.
        length_s: of the lease.
        part: what to do under it; it is cancelled when the lease is lost.

    Raises:
        Exception: what the part raised by itself.
    """
    here = f"{socket.gethostname()}:{os.getpid()}"
    standby = False
    while True:
        lease = Lease(name, f"{here}:{secrets.token_hex(4)}", length_s)
        asked_at = time.monotonic()
        if await _acquired(leases, lease):
            log.info("leading", lease=name)
            if await _term(leases, lease, asked_at, part):
                return
            standby = False
        elif not standby:
            log.info("standby", lease=name)
            standby = True
        await asyncio.sleep(length_s / LOOKS)


async def _acquired(leases: Leases, lease: Lease) -> bool:
    try:
        return await leases.acquire(lease)
    except Exception as error:  # noqa: BLE001 - a database that is away comes back
        log.error("lease_not_asked_for", lease=lease.name, error=type(error).__name__)
        return False


async def _term(
    leases: Leases,
    lease: Lease,
    asked_at: float,
    part: Callable[[Lease], Coroutine[Any, Any, None]],
) -> bool:
    """Do the part until it ends or the lease is lost; returns whether it ended by itself."""
    working = asyncio.create_task(part(lease), name=lease.name)
    keeping = asyncio.create_task(_keep(leases, lease, asked_at))
    try:
        await asyncio.wait([working, keeping], return_when=asyncio.FIRST_COMPLETED)
        lost = not working.done()
    finally:
        await end([working, keeping])
        await _give_back(leases, lease)
    if lost:
        log.error("lease_lost", lease=lease.name)
        return False
    try:
        working.result()
    except UnavailableError as error:
        if error.code != ALREADY_RUNNING:
            raise
        # Who held the lease before us on this machine is not done with stopping.
        log.warning("still_held_here", lease=lease.name)
        return False
    return True


async def _keep(leases: Leases, lease: Lease, asked_at: float) -> None:
    """Renew the lease; returns once it is lost, or may soon be without our knowing."""
    usable_until = asked_at + lease.length_s * USABLE
    pause_s = lease.length_s / 3
    while True:
        await asyncio.sleep(pause_s)
        asked_at = time.monotonic()
        renewed = await _renewed(leases, lease, within_s=usable_until - asked_at)
        if renewed:
            usable_until = asked_at + lease.length_s * USABLE
            pause_s = lease.length_s / 3
        elif renewed is None and time.monotonic() < usable_until:
            pause_s = lease.length_s / LOOKS
        else:
            return


async def _renewed(leases: Leases, lease: Lease, *, within_s: float) -> bool | None:
    """Whether the lease is renewed; ``None`` if the database does not say so in time."""
    renewing = asyncio.create_task(leases.renew(lease))
    # Its end is not waited for: a database that hangs holds up even a cancellation.
    renewing.add_done_callback(lambda done: done.cancelled() or done.exception())
    try:
        await asyncio.wait([renewing], timeout=max(0, within_s))
        if not renewing.done() or renewing.cancelled() or renewing.exception() is not None:
            log.warning("lease_not_renewed", lease=lease.name)
            return None
        return renewing.result()
    finally:
        renewing.cancel()


async def _give_back(leases: Leases, lease: Lease) -> None:
    """So that the next one need not wait; nothing if the lease is lost."""
    try:
        await leases.release(lease)
    except Exception as error:  # noqa: BLE001 - it runs out by itself
        log.warning("lease_not_given_back", lease=lease.name, error=type(error).__name__)
