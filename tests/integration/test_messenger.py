"""What ``@fajma`` says: once, whatever an earlier process did; a busy homeserver is left alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, cast

from appservice.messenger import Messenger
from appservice.sender import Sender
from fajma.errors import BusyError, UnavailableError
from fajma.events import DELIVERY
from fajma.store import Records
from fajma.store.alarms import Delivery, SentBy
from fajma.tasks import end

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
WITHIN_S = 15.0


class FakeSender:
    """Stands for ``Sender``: what is in the rooms, and what happens to each send."""

    mxid = "@fajma:clinic.test"

    def __init__(self) -> None:
        self.timeline: list[dict[str, Any]] = []
        self.sent: list[tuple[str, str]] = []
        self.failing: list[Exception] = []
        self.asked: list[str] = []

    async def messages(self, _: str, __: Mapping[str, str]) -> Mapping[str, Any]:
        return {"chunk": self.timeline}

    async def send(
        self, room_id: str, _: str, __: object, *, transaction_id: str, is_delivery: bool
    ) -> str:
        assert is_delivery
        self.asked.append(room_id)
        if self.failing:
            raise self.failing.pop(0)
        self.sent.append((room_id, transaction_id))
        return f"${transaction_id}"


@asynccontextmanager
async def running(sender: FakeSender, records: Records) -> AsyncIterator[None]:
    task = asyncio.create_task(Messenger(records, cast("Sender", sender)).run())
    try:
        yield
        assert not task.done()
    finally:
        await end([task])


async def promise(records: Records, room_id: str, *ids: str) -> None:
    async with records.store.transaction() as connection:
        for one in ids:
            delivery = Delivery(one, room_id, None, {"body": "x"}, NOON, SentBy.HOST)
            await records.outbox.add(connection, delivery)
    records.store.hints.notify("outbox")


async def until_delivered(records: Records, count: int) -> None:
    async with asyncio.timeout(WITHIN_S):
        while (await records.outbox.counts())[1] < count:  # noqa: ASYNC110 - a row tells nobody
            await asyncio.sleep(0.01)


async def test_what_an_earlier_process_sent_is_not_sent_again(sqlite_records: Records) -> None:
    sender = FakeSender()
    sender.timeline = [{"event_id": "$first", "sender": sender.mxid, "content": {DELIVERY: "1"}}]
    await promise(sqlite_records, "!a", "1", "2")
    async with running(sender, sqlite_records):
        await until_delivered(sqlite_records, 2)
    assert sender.sent == [("!a", "2")]
    assert await sqlite_records.outbox.event_of("1") == "$first"


async def test_a_room_that_fails_holds_up_no_other(sqlite_records: Records) -> None:
    sender = FakeSender()
    sender.failing = [UnavailableError("no", code="room_key_dropped")]
    await promise(sqlite_records, "!a", "1")
    await promise(sqlite_records, "!b", "2")
    async with running(sender, sqlite_records):
        await until_delivered(sqlite_records, 2)
    assert sender.sent == [("!b", "2"), ("!a", "1")]


async def test_a_busy_homeserver_is_asked_for_nothing_else(sqlite_records: Records) -> None:
    sender = FakeSender()
    sender.failing = [BusyError(0.1)]
    await promise(sqlite_records, "!a", "1")
    await promise(sqlite_records, "!b", "2")
    async with running(sender, sqlite_records):
        await until_delivered(sqlite_records, 2)
    assert sender.asked == ["!a", "!a", "!b"]
