"""The alert bot's delivery, with a client that fails as a homeserver may; the store is real."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, cast

import nio
import pytest

from bots.alerts.bot import AlertBot
from bots.alerts.client import SignedClient
from fajma.errors import UnavailableError
from fajma.store import Records
from fajma.store.alarms import Delivery
from fajma.store.consultations import Consultation
from fajma.vitals import PatientKey

NOW = datetime(2026, 11, 22, 14, 0, tzinfo=UTC)
HOST = "@fajma:clinic.test"
WITHIN_S = 15.0


class FakeClient:
    """Stands for ``SignedClient``: rooms, joins and sends, each of which can be made to fail."""

    user_id = "@fajma-alerts:clinic.test"

    def __init__(self, *rooms: str) -> None:
        self.rooms = dict.fromkeys(rooms)
        self.ready = asyncio.Event()
        self.ready.set()
        self.sent: list[tuple[str, str]] = []
        self.failing: defaultdict[str, int] = defaultdict(int)
        self.hanging: set[str] = set()
        self.refusing_joins = 0
        self.news = asyncio.Event()

    def add_event_callback(self, *_: object) -> None:
        return

    async def run_sync(self) -> None:
        await asyncio.Event().wait()

    async def join(self, room_id: str) -> Any:
        if self.refusing_joins > 0:
            self.refusing_joins -= 1
            return nio.JoinError("trouble", "M_UNKNOWN")
        self.rooms[room_id] = None
        return nio.JoinResponse(room_id)

    async def room_send(self, room_id: str, _: str, __: object, tx_id: str) -> Any:
        if room_id in self.hanging:
            await asyncio.Event().wait()
        if self.failing[room_id] > 0:
            self.failing[room_id] -= 1
            raise UnavailableError("the homeserver does not answer", code="homeserver_unavailable")
        self.sent.append((room_id, tx_id))
        self.news.set()
        return nio.RoomSendResponse(f"${tx_id}", room_id)

    async def until_sent(self, count: int) -> None:
        async with asyncio.timeout(WITHIN_S):
            while len(self.sent) < count:
                self.news.clear()
                await self.news.wait()


@contextlib.asynccontextmanager
async def running(client: FakeClient, records: Records) -> AsyncIterator[None]:
    task = asyncio.create_task(AlertBot(cast("SignedClient", client), records, host=HOST).run())
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until_delivered(records: Records, count: int) -> None:
    async with asyncio.timeout(WITHIN_S):
        while (await records.outbox.counts())[1] < count:  # noqa: ASYNC110 - a row tells nobody
            await asyncio.sleep(0.01)


@pytest.fixture
async def patient(records: Records, admit: Any) -> PatientKey:
    consultation: Consultation = await admit(records, "A4CF12F03B7E")
    return consultation.patient


async def promise(records: Records, patient: PatientKey, room_id: str, *ids: str) -> None:
    async with records.store.transaction() as connection:
        for delivery_id in ids:
            await records.outbox.add(
                connection, Delivery(delivery_id, room_id, patient, {"body": "x"}, NOW)
            )
    records.store.hints.notify("outbox")


async def test_what_fails_is_sent_again_in_order_and_under_the_same_id(
    records: Records, patient: PatientKey
) -> None:
    client = FakeClient("!a")
    client.failing["!a"] = 2
    await promise(records, patient, "!a", "1", "2", "3")
    async with running(client, records):
        await client.until_sent(3)
        await until_delivered(records, 3)
    assert client.sent == [("!a", "1"), ("!a", "2"), ("!a", "3")]
    assert await records.outbox.counts() == (3, 3)


async def test_a_room_that_hangs_or_fails_does_not_hold_up_another(
    records: Records, patient: PatientKey
) -> None:
    client = FakeClient("!hangs", "!fails", "!well")
    client.hanging.add("!hangs")
    client.failing["!fails"] = 1_000_000
    await promise(records, patient, "!hangs", *(f"h{number}" for number in range(120)))
    await promise(records, patient, "!fails", *(f"f{number}" for number in range(120)))
    async with running(client, records):
        await promise(records, patient, "!well", "1")
        await client.until_sent(1)
        await promise(records, patient, "!well", "2")
        await client.until_sent(2)
    assert client.sent == [("!well", "1"), ("!well", "2")]


async def test_a_room_whose_join_failed_is_joined_when_an_alarm_is_for_it(
    records: Records, patient: PatientKey
) -> None:
    client = FakeClient()
    client.refusing_joins = 2
    await promise(records, patient, "!later", "1")
    async with running(client, records):
        await client.until_sent(1)
    assert client.sent == [("!later", "1")]


async def test_a_delivery_that_does_not_open_stays_and_holds_up_nothing(
    records: Records, patient: PatientKey
) -> None:
    client = FakeClient("!a")
    await promise(records, patient, "!a", "1", "2")
    await records.store.db.execute("UPDATE outbox SET sealed=$1 WHERE delivery_id='1'", b"torn")
    async with running(client, records):
        await until_delivered(records, 1)
    assert client.sent == [("!a", "2")]
    assert await records.outbox.counts() == (2, 1)


async def test_a_database_that_fails_for_a_while_ends_nothing(
    records: Records, patient: PatientKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = FakeClient("!a")
    failures = 2
    delivered = records.outbox.delivered

    async def sometimes(delivery_id: str, event_id: str) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError("database is locked")
        await delivered(delivery_id, event_id)

    monkeypatch.setattr(records.outbox, "delivered", sometimes)
    await promise(records, patient, "!a", "1")
    async with running(client, records):
        await until_delivered(records, 1)
    # Sent again under the same id, which the homeserver knows already.
    assert client.sent == [("!a", "1")] * 3
    assert await records.outbox.counts() == (1, 1)
