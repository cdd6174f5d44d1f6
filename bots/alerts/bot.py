"""Delivers what the outbox promises: one message, never none, never two.

A delivery is sent under its own id as transaction id, so repeating a send whose outcome is unknown
is answered by the homeserver with the event that is already there (it remembers for a day, per
device; what is older is a later issue). It is marked delivered only when the homeserver named the
event.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import nio
import structlog

from bots.alerts.client import SignedClient
from fajma.errors import InputError, UnavailableError
from fajma.events import MESSAGE
from fajma.store import Records
from fajma.store.alarms import Delivery

log = structlog.get_logger()

RETRY_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0)
"""Pauses between attempts to deliver, the last one repeated."""


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
        client.add_event_callback(self._on_invite, nio.InviteMemberEvent)

    async def run(self) -> None:
        """Follow the rooms and deliver, until cancelled."""
        async with asyncio.TaskGroup() as both:
            both.create_task(self._client.run_sync())
            both.create_task(self._deliver_forever())

    async def _deliver_forever(self) -> None:
        await self._client.ready.wait()
        failures = 0
        while True:
            if await self._deliver_waiting():
                failures = 0
                await self._records.store.hints.wait(self._hint)
            else:
                pause = RETRY_S[min(failures, len(RETRY_S) - 1)]
                failures += 1
                await asyncio.sleep(pause)

    async def _deliver_waiting(self) -> bool:
        """Try everything that waits, in order per room; whether all of it was delivered."""
        stuck: set[str] = set()
        for delivery in await self._records.outbox.waiting():
            # A room that fails does not hold up the others; within it the order is kept.
            if delivery.room_id not in stuck and not await self._deliver(delivery):
                stuck.add(delivery.room_id)
        return not stuck

    async def _deliver(self, delivery: Delivery) -> bool:
        if delivery.room_id not in self._client.rooms:
            log.warning("not_yet_in_room", delivery=delivery.delivery_id, room=delivery.room_id)
            return False
        started = time.monotonic()
        try:
            answer = await self._client.room_send(
                delivery.room_id, MESSAGE, dict(delivery.content), tx_id=delivery.delivery_id
            )
        except (InputError, UnavailableError) as error:
            log.warning("delivery_failed", delivery=delivery.delivery_id, reason=error.code)
            return False
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

    async def _on_invite(self, room: nio.MatrixInvitedRoom, event: nio.InviteMemberEvent) -> None:
        if event.membership != "invite" or event.state_key != self._client.user_id:
            return
        if event.sender != self._host:
            log.warning("invitation_refused", room=room.room_id)
            return
        answer = await self._client.join(room.room_id)
        if isinstance(answer, nio.JoinError):
            # The invitation comes again with the first sync of the next start.
            log.error("room_not_joined", room=room.room_id, status=answer.status_code)
