"""Looks in the room for a delivery whose outcome nobody knows, before it is sent again.

A delivery is sent under its own id as transaction id, so a repetition is answered with the event
that is already there. The homeserver remembers that for one device, and Synapse for 24 h
(``_cleanup_old_transaction_ids`` in ``synapse/storage/databases/main/events_worker.py``). Who knows
less than that looks first:

* When a process begins, it does not know what an earlier one tried, when, and with which device. It
  looks once in every room for which something waits then.
* What it tried itself it repeats without looking, for ``REMEMBERED_S`` since the room was empty or
  was looked at; then it looks again.

A look goes back through our own messages in the room to the last one before that is known to be
delivered, since rooms are delivered to in order. It needs no clock but the process's own, and no
room keys: the delivery id stands beside the ciphertext (``fajma.events.DELIVERY``).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog

from fajma.errors import BusyError, FajmaError, UnavailableError
from fajma.events import DELIVERY, ENCRYPTED
from fajma.store.alarms import Outbox, SentBy

log = structlog.get_logger()

REMEMBERED_S: Final = 12 * 3600.0
"""How long a repetition is trusted to the homeserver's memory: half of Synapse's 24 h."""

PAGE: Final = 50
"""Events that one request asks for."""

PAGES_MAX: Final = 200
"""Most requests of one look: 10 000 messages of ours since the last one known to be delivered."""

LOOK_S: Final = 5.0
"""How long one look may take."""

LOOKS: Final = 3
"""How often a look may fail until the message is sent without: rather twice than never."""

BUSY_S: Final = 5.0
"""How long a homeserver is left alone that answers 429 and does not say for how long."""

BUSY_MAX_S: Final = 60.0
"""Longest that one is left alone, whatever it asks for: alarms wait."""

Read = Callable[[str, Mapping[str, str]], Awaitable[Mapping[str, Any]]]
"""Room id and query; answers as ``GET /_matrix/client/v3/rooms/{roomId}/messages``."""


def left_alone_s(error: BusyError) -> float:
    """How long nothing is sent to a homeserver that is busy, s."""
    asked_s = BUSY_S if error.retry_after_s is None else error.retry_after_s
    return min(asked_s, BUSY_MAX_S)


async def look_for(
    wanted: Collection[str], room_id: str, read: Read, *, mxid: str, until: str | None
) -> dict[str, str]:
    """Look for deliveries in a room.

    Args:
        wanted: delivery ids.
        room_id: where.
        read: gives pages of the room.
        mxid: who sent them; anybody in the room can write their ids beside something else.
        until: the event at which to stop, ``None`` to go back to the beginning of the room.

    Returns:
        By delivery id, the event that it became. What is not in it is not in the room.

    Raises:
        UnavailableError: a page could not be had (whatever ``read`` raises), makes no sense, or
            there are more than ``PAGES_MAX``.
    """
    only = json.dumps({"senders": [mxid], "types": [ENCRYPTED]})
    query = {"dir": "b", "limit": str(PAGE), "filter": only}
    found: dict[str, str] = {}
    for _ in range(PAGES_MAX):
        page = await read(room_id, query)
        events, token = page.get("chunk"), page.get("end")
        if not isinstance(events, list):
            raise UnavailableError("a page of a room makes no sense", code="bad_page")
        for event in events:
            if event["event_id"] == until:
                return found
            for named in _ids_of(event) if event["sender"] == mxid else ():
                if named in wanted:
                    found[named] = event["event_id"]
        if token is None or len(found) == len(wanted):
            return found
        query["from"] = token
    raise UnavailableError("a room holds too much to look through", code="room_too_long")


def _ids_of(event: Mapping[str, Any]) -> tuple[Any, Any]:
    """What may be the delivery id of an event.

    A redacted one has lost its content; the device that sent it is told the transaction id.
    """
    return event["content"].get(DELIVERY), event.get("unsigned", {}).get("transaction_id")


@dataclass(slots=True)
class _Waiting:
    """A room for which something waits.

    Attributes:
        unknown: whether something may be in it without our knowing, for all that we did ourselves.
        since_s: since when all attempts are ours (``time.monotonic``).
        failed: how many looks failed since the last that did not.
    """

    unknown: bool
    since_s: float
    failed: int = 0


class Unsettled:
    """Which rooms must be looked at before something is sent to them, for one process.

    Args:
        outbox: what waits, and where it is marked.
        sender: whose part of it.
        mxid: the same as a Matrix user id.
        read: gives pages of a room.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        outbox: Outbox,
        sender: SentBy,
        read: Read,
        *,
        mxid: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._outbox = outbox
        self._sender = sender
        self._read = read
        self._mxid = mxid
        self._clock = clock
        self._rooms: dict[str, _Waiting] = {}
        self._begun = False

    def waiting(self, rooms: Iterable[str]) -> None:
        """These are all the rooms for which something waits.

        The first time, nobody knows what was tried before; a room that comes later had nothing
        waiting, so that everything was settled.
        """
        now_s = self._clock()
        self._rooms = {
            room: self._rooms.get(room) or _Waiting(not self._begun, now_s) for room in rooms
        }
        self._begun = True

    async def settle(self, room_id: str) -> None:
        """Before something is sent to a room: mark what is in it already, if that may be.

        Raises:
            UnavailableError: it could not be looked for; try again. After ``LOOKS`` times it
                returns instead.
        """
        room = self._rooms.get(room_id)
        now_s = self._clock()
        if room is None or not (room.unknown or now_s - room.since_s > REMEMBERED_S):
            return
        wanted = await self._outbox.waiting(room_id, sender=self._sender, limit=100_000)
        until = await self._outbox.event_before(wanted[0]) if wanted else None
        try:
            async with asyncio.timeout(LOOK_S):
                found = await look_for(
                    frozenset(wanted), room_id, self._read, mxid=self._mxid, until=until
                )
        except Exception as error:
            room.failed += 1
            code = error.code if isinstance(error, FajmaError) else type(error).__name__
            log.warning("look_failed", room=room_id, reason=code, times=room.failed)
            if room.failed < LOOKS:
                raise UnavailableError(
                    "the homeserver does not show what is in a room; trying again",
                    code="look_failed",
                ) from error
            return
        for delivery_id, event_id in found.items():
            await self._outbox.delivered(delivery_id, event_id)
            log.info("delivery_found", delivery=delivery_id, room=room_id)
        room.unknown, room.since_s, room.failed = False, now_s, 0
