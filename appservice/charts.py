"""Sends what charts the outbox promises, in the name of ``@fajma``: no phone rings for them.

A chart follows the alarm that it belongs to and never holds it up, nor the words of ``@fajma``: it
waits in the outbox apart from both, is drawn when its turn comes, and goes into the room as an
encrypted attachment (client-server specification, "Sending encrypted attachments"). One that cannot
be drawn or sent for ``GIVE_UP`` is lost, which the log says: the alarm is in the room all the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import structlog

from appservice.sender import Sender
from fajma.charts import Chart, ChartOrder
from fajma.errors import BugError
from fajma.events import MESSAGE
from fajma.store import Records
from fajma.store.alarms import Delivery, SentBy

log = structlog.get_logger()

GIVE_UP: Final = timedelta(minutes=10)
"""An older chart shows nothing that anybody waits for."""

RETRY: Final = timedelta(seconds=15)
"""From one attempt to the next: each uploads the picture anew."""

_LOST: Final = ""
"""Stands for the event of a chart that was given up."""

_FILE: Final = "chart.png"


class ChartSender:
    """Follows the outbox for charts.

    Args:
        records: where the outbox is.
        sender: ``@fajma``.
        draw: what a delivery promises.
        now: the clock.
    """

    def __init__(
        self,
        records: Records,
        sender: Sender,
        draw: Callable[[Delivery], Awaitable[Chart]],
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._records = records
        self._sender = sender
        self._draw = draw
        self._now = now
        self._not_before: dict[str, datetime] = {}
        self._hint = records.store.hints.subscribe("outbox")

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            try:
                await self.deliver()
            except Exception as error:  # noqa: BLE001 - a database that is away comes back
                log.error("outbox_unavailable", error=type(error).__name__)
            await self._records.store.hints.wait(self._hint)

    async def deliver(self) -> None:
        """Send what can be sent now."""
        outbox = self._records.outbox
        for room_id in await outbox.rooms_waiting(SentBy.CHARTS):
            for delivery_id in await outbox.waiting(room_id, sender=SentBy.CHARTS):
                await self._deliver(delivery_id)

    async def _deliver(self, delivery_id: str) -> None:
        outbox = self._records.outbox
        not_before = self._not_before.get(delivery_id)
        if not_before is not None and self._now() < not_before:
            return
        try:
            event_id = await self._drawn_and_sent(await outbox.get(delivery_id))
        except BugError as error:
            log.error("chart_lost", delivery=delivery_id, reason=error.code)
            event_id = _LOST
        except Exception as error:  # noqa: BLE001 - the other charts go on; tried again
            log.warning("chart_not_sent", delivery=delivery_id, error=type(error).__name__)
            self._not_before[delivery_id] = self._now() + RETRY
            return
        if event_id is not None:
            self._not_before.pop(delivery_id, None)
            await outbox.delivered(delivery_id, event_id)

    async def _drawn_and_sent(self, delivery: Delivery) -> str | None:
        """The event that a chart became; ``None`` while its alarm is not in the room.

        Raises:
            BugError: there will be none.
        """
        if self._now() - delivery.created_at > GIVE_UP:
            raise BugError("a chart waited too long", code="chart_too_old")
        order = ChartOrder.of(delivery)
        answers = order.reply_to
        if order.after is not None:
            answers = await self._records.outbox.event_of(order.after)
            if answers is None:
                return None
        event_id = await self._send(delivery, order, await self._draw(delivery), answers)
        log.info("chart_delivered", delivery=delivery.delivery_id, room=delivery.room_id)
        return event_id

    async def _send(
        self, delivery: Delivery, order: ChartOrder, chart: Chart, answers: str | None
    ) -> str:
        room_id = delivery.room_id
        more: dict[str, Any] = {}
        if answers is not None:
            more["m.relates_to"] = {"m.in_reply_to": {"event_id": answers}}
        if order.asked_by is not None:
            more["m.mentions"] = {"user_ids": [order.asked_by]}
        if chart.table is not None:
            body, html = chart.table
            content = {
                "msgtype": "m.notice",
                "body": body,
                "format": "org.matrix.custom.html",
                "formatted_body": html,
                **more,
            }
            table_id = f"{delivery.delivery_id}-table"
            await self._sender.send(room_id, MESSAGE, content, transaction_id=table_id)
        picture = {
            "msgtype": "m.image",
            "body": chart.said,
            "filename": _FILE,
            "info": {
                "mimetype": "image/png",
                "w": chart.width,
                "h": chart.height,
                "size": len(chart.png),
            },
            "file": await self._sender.attach(chart.png),
            **more,
        }
        return await self._sender.send(
            room_id, MESSAGE, picture, transaction_id=delivery.delivery_id
        )
