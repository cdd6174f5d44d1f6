"""Delivers what the outbox promises: one message, never none, never two.

A delivery is sent under its own id as transaction id, so repeating a send whose outcome is unknown
is answered by the homeserver with the event that is already there (it remembers for a day, per
device; what is older is a later issue). It is marked delivered only when the homeserver named the
event.

Each room is delivered to by a task of its own: a room that is stuck, slow or broken never holds up
the alarms of another. Within a room the order is kept.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import nio
import structlog

from bots.alerts.client import SignedClient
from fajma.errors import BugError, InputError, UnavailableError
from fajma.events import MESSAGE
from fajma.store import Records
from fajma.store.alarms import Delivery
from fajma.tasks import end

log = structlog.get_logger()

RETRY_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0)
"""Pauses between attempts in one room, the last one repeated."""


class AlertBot:
    """The account ``@fajma-alerts``.

    Args:
        client: its signed client, whose session is started.
        records: where the outbox is.
        host: the only user whose invitations it accepts.
    """

    def __init__(self, client: SignedClient, records: Records, *, host: str) -> None:
        self._client = client
        self._records = records
        self._host = host
        self._hint = records.store.hints.subscribe("outbox")
        self._delivering: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[str, int] = {}
        self._not_before: dict[str, float] = {}
        self._unreadable: set[str] = set()
        client.add_event_callback(self._on_invite, nio.InviteMemberEvent)

    async def run(self) -> None:
        """Follow the rooms and deliver, until cancelled.

        Raises:
            InputError: the homeserver ended our session.
        """
        parts = [
            asyncio.create_task(self._follow()),
            asyncio.create_task(self._deliver_forever()),
        ]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
        finally:
            await end([*parts, *self._delivering.values()])

    async def _follow(self) -> None:
        await self._client.run_sync()

    async def _deliver_forever(self) -> None:
        await self._client.ready.wait()
        await self._join_our_rooms()
        while True:
            try:
                for room_id in await self._records.outbox.rooms_waiting():
                    self._deliver_soon(room_id)
            except Exception as error:  # noqa: BLE001 - a database that is away comes back
                log.error("outbox_unavailable", error=type(error).__name__)
            await self._records.store.hints.wait(self._hint)

    def _deliver_soon(self, room_id: str) -> None:
        """Have a task that delivers to this room, unless one does or it must wait."""
        busy = self._delivering.get(room_id)
        if busy is not None and not busy.done():
            return
        if time.monotonic() >= self._not_before.get(room_id, 0):
            self._delivering[room_id] = asyncio.create_task(self._deliver_to(room_id))

    async def _deliver_to(self, room_id: str) -> None:
        """Deliver what waits for a room, in order, up to the first failure."""
        try:
            done = await self._deliver_all(room_id)
        except (InputError, UnavailableError) as error:
            log.warning("delivery_failed", room=room_id, reason=error.code)
            done = False
        except Exception as error:  # noqa: BLE001 - whatever it is, alarms are tried again
            log.error("delivery_failed", room=room_id, error=type(error).__name__)
            done = False
        if done:
            self._failures.pop(room_id, None)
            self._not_before.pop(room_id, None)
        else:
            failures = self._failures[room_id] = self._failures.get(room_id, 0) + 1
            pause = RETRY_S[min(failures, len(RETRY_S)) - 1]
            self._not_before[room_id] = time.monotonic() + pause

    async def _deliver_all(self, room_id: str) -> bool:
        if room_id not in self._client.rooms:
            log.warning("not_yet_in_room", room=room_id)
            await self._join(room_id)
            return False
        while ids := await self._waiting(room_id):
            for delivery_id in ids:
                try:
                    delivery = await self._records.outbox.get(delivery_id)
                except BugError as error:
                    # It stays undelivered, told at each start; the others must not wait for it.
                    log.critical("delivery_unreadable", delivery=delivery_id, code=error.code)
                    self._unreadable.add(delivery_id)
                    continue
                if not await self._deliver(delivery):
                    return False
        return True

    async def _waiting(self, room_id: str) -> list[str]:
        waiting = await self._records.outbox.waiting(room_id)
        return [one for one in waiting if one not in self._unreadable]

    async def _deliver(self, delivery: Delivery) -> bool:
        started = time.monotonic()
        answer = await self._client.room_send(
            delivery.room_id, MESSAGE, dict(delivery.content), tx_id=delivery.delivery_id
        )
        if not isinstance(answer, nio.RoomSendResponse):
            log.warning(
                "delivery_refused", delivery=delivery.delivery_id, status=answer.status_code
            )
            return False
        await self._records.outbox.delivered(delivery.delivery_id, answer.event_id)
        log.info(
            "alarm_delivered",
            delivery=delivery.delivery_id,
            room=delivery.room_id,
            send_ms=round((time.monotonic() - started) * 1000),
        )
        return True

    async def _join_our_rooms(self) -> None:
        """Be in every room of our records; an invitation may have been lost on the way."""
        for room_id in await self._records.audience.rooms():
            if room_id not in self._client.rooms:
                await self._join(room_id)

    async def _join(self, room_id: str) -> None:
        try:
            answer = await self._client.join(room_id)
        except UnavailableError as error:
            log.warning("room_not_joined", room=room_id, reason=error.code)
            return
        if isinstance(answer, nio.JoinError):
            log.warning("room_not_joined", room=room_id, status=answer.status_code)

    async def _on_invite(self, room: nio.MatrixInvitedRoom, event: nio.InviteMemberEvent) -> None:
        if event.membership != "invite" or event.state_key != self._client.user_id:
            return
        if event.sender != self._host:
            log.warning("invitation_refused", room=room.room_id)
            return
        # If it fails it is tried again at the room's first alarm and at each start.
        await self._join(room.room_id)
