"""What the bridge and a broker say to each other, to the byte: the broker is written by hand."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bridges.mqtt_vitals.ingest import Ingest, Message, Outcome
from bridges.mqtt_vitals.subscriber import TOPICS, Subscriber, now
from console.pki import issue_bridge, issue_server
from console.processes import LOOPBACK, free_port
from fajma.config import Mqtt
from fajma.store import Records
from fajma.tasks import end

WITHIN_S = 30.0
CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK = (
    *(1, 2, 3, 4),
    *(8, 9, 10, 11),
)
RECEIVE_MAXIMUM = 0x21
NOT_AUTHORIZED = 0x87


class Link:
    """One connection, as the broker sees it (MQTT 5.0, section 2.1)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def heard(self, kind: int) -> bytes:
        """The next packet of this kind, without its fixed header; no PUBACK is passed over."""
        async with asyncio.timeout(WITHIN_S):
            while True:
                first, length, shift = (await self._reader.readexactly(1))[0] >> 4, 0, 0
                while True:
                    part = (await self._reader.readexactly(1))[0]
                    length |= (part & 0x7F) << shift
                    shift += 7
                    if part < 0x80:
                        break
                content = await self._reader.readexactly(length)
                if first == kind:
                    return content
                assert first != PUBACK

    def say(self, kind: int, content: bytes, flags: int = 0) -> None:
        assert len(content) < 128
        self._writer.write(bytes([kind << 4 | flags, len(content)]) + content)

    async def greet(self, *, grants: Sequence[int] = (1, 1, 1)) -> int:
        """Accept the bridge and answer its subscription.

        Returns:
            Its receive maximum.
        """
        said = await self.heard(CONNECT)
        self.say(CONNACK, b"\x00\x00\x00")
        asked = await self.heard(SUBSCRIBE)
        self.say(SUBACK, asked[:2] + b"\x00" + bytes(grants))
        at = said.index(bytes([RECEIVE_MAXIMUM]), 10)
        return int(struct.unpack_from("!H", said, at + 1)[0])

    def publish(self, number: int, topic: bytes = b"fajma/sensors/x") -> None:
        content = struct.pack("!H", len(topic)) + topic + struct.pack("!H", number) + b"\x00{"
        self.say(PUBLISH, content, flags=1 << 1)

    async def acknowledged(self) -> int:
        return int(struct.unpack_from("!H", await self.heard(PUBACK))[0])

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class Broker:
    """Gives each connection to the test."""

    def __init__(self, directory: Path) -> None:
        bridge, server = issue_bridge(directory), issue_server(directory, ["localhost", LOOPBACK])
        self.settings = Mqtt(
            host=LOOPBACK,
            port=free_port(),
            ca_file=directory / "ca.crt",
            cert_file=bridge.cert_file,
            key_file=bridge.key_file,
        )
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._tls.load_cert_chain(server.cert_file, server.key_file)
        self._links: asyncio.Queue[Link] = asyncio.Queue()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._links.put_nowait(Link(reader, writer))

        server = await asyncio.start_server(connected, LOOPBACK, self.settings.port, ssl=self._tls)
        yield
        server.close()

    async def link(self) -> Link:
        return await asyncio.wait_for(self._links.get(), WITHIN_S)


class GatedIngest(Ingest):
    """Commits a batch once it may, and nothing of it matters."""

    def __init__(self, records: Records) -> None:
        super().__init__(records)
        self.begun = asyncio.Semaphore(0)
        self.may = asyncio.Semaphore(0)
        self.looks_at: Subscriber | None = None
        self.waiting: list[int] = []

    async def commit(self, messages: Sequence[Message]) -> Outcome:
        if self.looks_at is not None:
            self.waiting.append(len(self.looks_at._waiting))
        self.begun.release()
        await self.may.acquire()
        return await super().commit(messages)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    broker = Broker(tmp_path)
    async with broker.serving():
        yield broker


@contextlib.asynccontextmanager
async def running(subscriber: Subscriber) -> AsyncIterator[None]:
    task = asyncio.create_task(subscriber.run())
    try:
        yield
    finally:
        await end([task])


async def test_the_broker_is_told_how_much_may_be_under_way(
    broker: Broker, sqlite_records: Records
) -> None:
    for queue_max, told in ((7, 7), (1_000_000, 65_535)):
        settings = broker.settings.model_copy(update={"queue_max": queue_max})
        async with running(Subscriber(settings, GatedIngest(sqlite_records))):
            link = await broker.link()
            assert await link.greet() == told
        await link.close()


async def test_no_more_is_read_than_there_is_room_for_and_it_goes_on_when_there_is(
    broker: Broker, sqlite_records: Records
) -> None:
    """Also from a broker that sends more than it was told."""
    settings = broker.settings.model_copy(update={"queue_max": 5, "batch_max": 5})
    ingest = GatedIngest(sqlite_records)
    subscriber = Subscriber(settings, ingest)
    ingest.looks_at = subscriber
    async with running(subscriber):
        link = await broker.link()
        await link.greet()
        for number in range(1, 21):
            link.publish(number)
        for _ in range(20):
            ingest.may.release()
        assert [await link.acknowledged() for _ in range(20)] == list(range(1, 21))
        assert max(ingest.waiting) == 5
    await link.close()


async def test_what_came_on_a_connection_that_is_gone_is_not_acknowledged_on_the_next_one(
    broker: Broker, sqlite_records: Records
) -> None:
    """There its packet id may belong to another message, which would then be lost."""
    ingest = GatedIngest(sqlite_records)
    async with running(Subscriber(broker.settings, ingest)):
        first = await broker.link()
        await first.greet()
        first.publish(1)
        await asyncio.wait_for(ingest.begun.acquire(), WITHIN_S)
        await first.close()
        second = await broker.link()
        await second.greet()
        second.publish(2)
        for _ in range(2):
            ingest.may.release()
        assert await second.acknowledged() == 2
    await second.close()


async def test_a_refused_subscription_is_no_working_bridge_and_is_asked_for_again(
    broker: Broker, sqlite_records: Records
) -> None:
    subscriber = Subscriber(broker.settings, GatedIngest(sqlite_records))
    with capture_logs() as logs:
        async with running(subscriber):
            for _ in range(2):
                link = await broker.link()
                await link.greet(grants=(1, NOT_AUTHORIZED, 1))
                again = await broker.link()
                assert not subscriber.subscribed.is_set()
                assert not subscriber.is_working
                await link.close()
                broker._links.put_nowait(again)
            await (await broker.link()).greet()
            await asyncio.wait_for(subscriber.subscribed.wait(), WITHIN_S)
            assert subscriber.is_working
    told = [one for one in logs if one["event"] == "broker_refuses_our_subscription"]
    assert [(one["log_level"], one["topics"]) for one in told] == [("critical", [TOPICS[1]])] * 2


def test_time_in_which_the_machine_is_suspended_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.clock_gettime

    def clock_gettime(clock: int) -> float:
        """Of a machine that was suspended for an hour: one of its steady clocks stood still."""
        return real(clock) + (3600 if clock == time.CLOCK_BOOTTIME else 0)

    monkeypatch.setattr(time, "clock_gettime", clock_gettime)
    assert now().mono_s - time.monotonic() > 3599
