"""Delivers what the outbox promises in the name of ``@fajma``: answers, notices.

As the alert bot does for alarms: sent under the delivery id, repeated until the homeserver has
named the event, looked for where nobody knows (``fajma.deliveries``). Phones do not ring for these.
"""

from __future__ import annotations

import asyncio

import structlog

from appservice.sender import Sender
from fajma.deliveries import Unsettled, left_alone_s
from fajma.errors import BugError, BusyError
from fajma.events import MESSAGE
from fajma.store import Records
from fajma.store.alarms import SentBy

log = structlog.get_logger()


class Messenger:
    """Follows the outbox for ``@fajma``."""

    def __init__(self, records: Records, sender: Sender) -> None:
        self._records = records
        self._sender = sender
        self._hint = records.store.hints.subscribe("outbox")
        self._unreadable: set[str] = set()
        self._unsettled = Unsettled(records.outbox, SentBy.HOST, sender.messages, mxid=sender.mxid)

    async def run(self) -> None:
        """Deliver until cancelled."""
        outbox = self._records.outbox
        while True:
            try:
                rooms = await outbox.rooms_waiting(SentBy.HOST)
                self._unsettled.waiting(rooms)
            except Exception as error:  # noqa: BLE001 - a database that is away comes back
                log.error("outbox_unavailable", error=type(error).__name__)
                rooms = []
            for room_id in rooms:
                try:
                    await self._deliver_to(room_id)
                except BusyError as error:
                    pause_s = left_alone_s(error)
                    log.warning("homeserver_busy", pause_s=pause_s)
                    await asyncio.sleep(pause_s)
                    break  # begin again with the room that has waited longest
                except Exception as error:  # noqa: BLE001 - the other rooms go on; tried again
                    log.warning("delivery_failed", room=room_id, error=type(error).__name__)
            await self._records.store.hints.wait(self._hint)

    async def _deliver_to(self, room_id: str) -> None:
        """What waits for a room, in order, up to the first failure."""
        await self._unsettled.settle(room_id)
        for delivery_id in await self._records.outbox.waiting(room_id, sender=SentBy.HOST):
            if delivery_id in self._unreadable:
                continue
            try:
                delivery = await self._records.outbox.get(delivery_id)
            except BugError as error:
                log.critical("delivery_unreadable", delivery=delivery_id, code=error.code)
                self._unreadable.add(delivery_id)
                continue
            event_id = await self._sender.send(
                room_id, MESSAGE, delivery.content, transaction_id=delivery_id, is_delivery=True
            )
            await self._records.outbox.delivered(delivery_id, event_id)
            log.info("message_delivered", delivery=delivery_id, room=room_id)
