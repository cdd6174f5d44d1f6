"""From a monitor through a real broker into the log: Mosquitto, and the one inside FAJMA."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Self

import paho.mqtt.client as paho
import pytest
from amqtt.contexts import Action
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from structlog.testing import capture_logs

from bridges.mqtt_vitals.broker import INGEST, EmbeddedBroker, may
from bridges.mqtt_vitals.ingest import Ingest, Message, Outcome
from bridges.mqtt_vitals.rate import Rates
from bridges.mqtt_vitals.subscriber import CLIENT_ID, Subscriber
from console.mosquitto import Mosquitto
from console.pki import Credentials, issue_bridge, issue_device, issue_server
from console.processes import LOOPBACK, free_port
from fajma.config import Mqtt
from fajma.errors import UnavailableError
from fajma.store import Records
from fajma.store.consultations import Consultation
from fajma.tasks import end
from fajma.vitals import DeviceId, Kind
from fajma.wire import V1_TOPIC, encode_v1

Admit = Callable[..., Awaitable[Consultation]]

ROOT = Path(__file__).parents[2]
MINE = DeviceId("A4CF12F03B7E")
OTHER = DeviceId("A4CF12F03B7F")
WITHIN_S = 60.0  # a broker that saves needs time, more beside others


@dataclass(frozen=True)
class Site:
    """A broker, how to reach it, and who issues its certificates."""

    settings: Mqtt
    pki: Path

    def device(self, device_id: str) -> Credentials:
        return issue_device(self.pki, device_id)


@pytest.fixture(scope="session")
def own_pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificate authority of the embedded broker."""
    return tmp_path_factory.mktemp("pki")


@pytest.fixture
def embedded_site(own_pki: Path) -> Site:
    bridge, server = issue_bridge(own_pki), issue_server(own_pki, ["localhost", LOOPBACK])
    settings = Mqtt(
        host=LOOPBACK,
        port=free_port(),
        ca_file=own_pki / "ca.crt",
        cert_file=bridge.cert_file,
        key_file=bridge.key_file,
        embedded=True,
        server_cert_file=server.cert_file,
        server_key_file=server.key_file,
    )
    return Site(settings, own_pki)


@pytest.fixture(params=["mosquitto", "embedded"])
def site(request: pytest.FixtureRequest) -> Site:
    if request.param == "embedded":
        site: Site = request.getfixturevalue("embedded_site")
        return site
    mosquitto: Mosquitto = request.getfixturevalue("mosquitto")
    return Site(settings_of(mosquitto), mosquitto.pki_directory)


def settings_of(mosquitto: Mosquitto) -> Mqtt:
    bridge = mosquitto.issue_bridge()
    return Mqtt(
        host=mosquitto.host,
        port=mosquitto.port,
        ca_file=mosquitto.ca_file,
        cert_file=bridge.cert_file,
        key_file=bridge.key_file,
    )


@pytest.fixture
async def broker(site: Site) -> AsyncIterator[Site]:
    """The started broker, in which nothing waits for the bridge."""
    if not site.settings.embedded:
        # Mosquitto serves other tests too: drop the bridge's session.
        async with Client(site, issue_bridge(site.pki), CLIENT_ID):
            pass
        yield site
        return
    embedded = EmbeddedBroker(site.settings)
    await embedded.start()
    yield site
    await embedded.stop()


@pytest.fixture
async def records(sqlite_records: Records, admit: Admit) -> Records:
    """Both monitors are worn."""
    for device in (MINE, OTHER):
        await admit(sqlite_records, device)
    return sqlite_records


class Client:
    """An MQTT 3.1.1 client: a monitor, or somebody who would like to be one."""

    def __init__(
        self,
        site: Site,
        credentials: Credentials | None,
        client_id: str,
        *,
        clean_session: bool = True,
    ) -> None:
        self._settings = site.settings
        loop = asyncio.get_running_loop()
        self.accepted = asyncio.Event()
        self.ended = asyncio.Event()
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=MQTTProtocolVersion.MQTTv311,
            clean_session=clean_session,
            reconnect_on_failure=False,
        )
        self.client.tls_set(
            str(site.settings.ca_file),
            str(credentials.cert_file) if credentials else None,
            str(credentials.key_file) if credentials else None,
        )

        @self.client.connect_callback()
        def _(_c: object, _u: object, _f: object, reason: object, _p: object) -> None:
            if not reason.is_failure:  # type: ignore[attr-defined]
                loop.call_soon_threadsafe(self.accepted.set)

        @self.client.disconnect_callback()
        def _(*_: object) -> None:
            loop.call_soon_threadsafe(self.ended.set)

    async def connect(self) -> None:
        await asyncio.to_thread(self.client.connect, self._settings.host, self._settings.port)
        self.client.loop_start()

    async def __aenter__(self) -> Self:
        await self.connect()
        await asyncio.wait_for(self.accepted.wait(), WITHIN_S)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.client.disconnect()
        await asyncio.to_thread(self.client.loop_stop)

    async def publish(self, topic: str, payload: bytes) -> None:
        """Until the broker has confirmed it."""
        sent = self.client.publish(topic, payload, qos=1)
        await asyncio.to_thread(sent.wait_for_publish, WITHIN_S)
        assert sent.is_published()


def monitor(site: Site, device: DeviceId = MINE) -> Client:
    return Client(site, site.device(device), device)


def topic(device: DeviceId = MINE) -> str:
    return V1_TOPIC.format(device=device)


def payload(number: int, device: DeviceId = MINE) -> bytes:
    """A reading that is told from others by its pulse."""
    at = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=5)
    values = {
        Kind.HEART_RATE: Decimal(700 + number) / 10,
        Kind.SPO2: Decimal(97),
        Kind.TEMPERATURE: Decimal(37),
    }
    return encode_v1(device, int(at.timestamp()) * 1000 + number, values)


async def stored(records: Records) -> list[int]:
    return [
        int(one.reading.values[Kind.HEART_RATE] * 10) - 700
        for one in await records.readings.after(0, limit=100_000)
    ]


class WatchedIngest(Ingest):
    """Tells after each batch that something was committed; can be made to fail."""

    def __init__(self, records: Records, *, rates: Rates | None = None) -> None:
        super().__init__(records, rates=rates)
        self.records = records
        self.failures: list[Exception] = []
        self.refused: Counter[str] = Counter()
        self.messages = 0
        self.attempts = asyncio.Semaphore(0)
        self.committed = asyncio.Event()

    async def commit(self, batch: Sequence[Message]) -> Outcome:
        self.attempts.release()
        if self.failures:
            raise self.failures.pop()
        outcome = await super().commit(batch)
        self.refused += outcome.refused
        self.messages += len(batch)
        self.committed.set()
        return outcome

    async def until(self, *, readings: int, refused: int = 0) -> None:
        """Until so many readings are in the log, and so many refusals were counted."""
        async with asyncio.timeout(WITHIN_S):
            while await self.records.readings.count() < readings or self.refused.total() < refused:
                await self.committed.wait()
                self.committed.clear()


class HangingIngest(WatchedIngest):
    """Never comes to the end of a batch."""

    async def commit(self, _: Sequence[Message]) -> Outcome:
        self.attempts.release()
        await asyncio.Event().wait()
        raise AssertionError


@contextlib.asynccontextmanager
async def subscribed(settings: Mqtt, ingest: Ingest) -> AsyncIterator[Subscriber]:
    subscriber = Subscriber(settings, ingest)
    running = asyncio.create_task(subscriber.run())
    try:
        await asyncio.wait_for(subscriber.subscribed.wait(), WITHIN_S)
        yield subscriber
    finally:
        running.cancel()
        await asyncio.wait({running})
        assert running.cancelled()


# --- the way in ----------------------------------------------------------------------------------


async def test_a_reading_of_a_monitor_arrives_in_the_log(broker: Site, records: Records) -> None:
    ingest = WatchedIngest(records)
    async with subscribed(broker.settings, ingest), monitor(broker) as mine:
        await mine.publish(topic(), payload(3))
        await mine.publish("fajma/sensors/" + MINE, payload(4))
        await ingest.until(readings=2)
    [one, _] = await records.readings.after(0, limit=10)
    assert one.reading.device == MINE
    assert one.reading.values == {
        Kind.HEART_RATE: Decimal("70.3"),
        Kind.SPO2: Decimal(97),
        Kind.TEMPERATURE: Decimal(37),
    }
    worn = await records.devices.wearing(MINE, datetime.now(UTC))
    assert worn is not None
    assert one.patient == worn.patient
    assert await stored(records) == [3, 4]
    assert ingest.refused == Counter()


async def test_many_readings_through_a_narrow_door_all_arrive_once_and_in_order(
    broker: Site, records: Records
) -> None:
    settings = broker.settings.model_copy(update={"queue_max": 10, "batch_max": 4})
    ingest = WatchedIngest(records)
    async with subscribed(settings, ingest), monitor(broker) as mine:
        for number in range(150):
            mine.client.publish(topic(), payload(number), qos=1)
        await ingest.until(readings=150)
    assert await stored(records) == list(range(150))
    assert ingest.refused == Counter()


# --- who may -------------------------------------------------------------------------------------


async def test_a_monitor_cannot_write_in_the_name_of_another(
    broker: Site, records: Records
) -> None:
    ingest = WatchedIngest(records)
    async with subscribed(broker.settings, ingest), monitor(broker) as mine:
        mine.client.publish(topic(OTHER), payload(1, OTHER), qos=1)
        mine.client.publish(topic(OTHER).replace(OTHER, OTHER.lower()), payload(2, OTHER), qos=1)
        mine.client.publish("fajma/sensors", payload(3), qos=1)
        mine.client.publish(topic(), payload(4, OTHER), qos=1)
        await mine.publish(topic(), payload(5))
        await ingest.until(readings=1, refused=1)
    # The last to arrive came last: nothing forged came before it.
    assert await stored(records) == [5]
    assert ingest.refused == Counter(["wrong_device"])


@pytest.mark.parametrize("credentials", ["none", "of another authority", "of the broker"])
async def test_without_a_certificate_of_ours_there_is_no_connection(
    broker: Site, tmp_path: Path, credentials: str
) -> None:
    shown = {
        "none": None,
        "of another authority": issue_device(tmp_path, MINE),
        "of the broker": issue_server(broker.pki, ["localhost", LOOPBACK]),
    }[credentials]
    client = Client(broker, shown, MINE)
    # TLS 1.3 tells a client that it was refused only after its side of the handshake.
    with contextlib.suppress(OSError):
        await client.connect()
        await asyncio.wait_for(client.ended.wait(), WITHIN_S)
    assert not client.accepted.is_set()
    await asyncio.to_thread(client.client.loop_stop)


@pytest.mark.parametrize("clean_session", [True, False])
@pytest.mark.parametrize("shown", ["none", "of another monitor"])
@pytest.mark.parametrize("name", [CLIENT_ID, MINE])
async def test_nobody_gets_at_a_session_by_giving_its_name(
    broker: Site, records: Records, shown: str, name: str, *, clean_session: bool
) -> None:
    credentials = broker.device(OTHER) if shown == "of another monitor" else None
    ingest = WatchedIngest(records)
    async with subscribed(broker.settings, ingest) as subscriber, monitor(broker) as mine:
        await mine.publish(topic(), payload(1))
        await ingest.until(readings=1)
        thief = Client(broker, credentials, name, clean_session=clean_session)
        heard = asyncio.Event()
        thief.client.on_message = lambda *_: heard.set()
        # Refused, or let in under the name of its own certificate.
        with contextlib.suppress(OSError):
            await thief.connect()
            accepted, ended = (
                asyncio.create_task(one.wait()) for one in (thief.accepted, thief.ended)
            )
            done, waiting = await asyncio.wait(
                {accepted, ended}, timeout=WITHIN_S, return_when=asyncio.FIRST_COMPLETED
            )
            assert done
            for one in waiting:
                one.cancel()
        thief.client.subscribe("fajma/sensors/+", qos=1)
        thief.client.publish(topic(), payload(9), qos=1)
        await mine.publish(topic(), payload(2))
        await ingest.until(readings=2)
        assert subscriber.subscribed.is_set()
        assert not mine.ended.is_set()
        assert not heard.is_set()
        await thief.__aexit__()
    assert await stored(records) == [1, 2]


# --- whoever is away -----------------------------------------------------------------------------

BRIDGE = """
import asyncio, sys
from pathlib import Path
from bridges.mqtt_vitals.ingest import Ingest
from bridges.mqtt_vitals.subscriber import Subscriber
from fajma.config import DatabaseSettings, Mqtt
from fajma.store import Records, Store
from fajma.store.site import site_key

async def main():
    store = await Store.open(DatabaseSettings(url=sys.argv[2]))
    records = Records(store, await site_key(store, Path(sys.argv[3])))
    await Subscriber(Mqtt.model_validate_json(sys.argv[1]), Ingest(records)).run()

asyncio.run(main())
"""


async def test_a_bridge_that_was_killed_gets_what_was_sent_meanwhile(
    broker: Site, records: Records, site_key_file: Path, tmp_path: Path
) -> None:
    bridge = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", BRIDGE, broker.settings.model_dump_json()),
        *(f"sqlite://{tmp_path}/store/fajma.db", str(site_key_file)),
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    stdout = bridge.stdout
    assert stdout is not None

    async def says(word: bytes) -> None:
        async with asyncio.timeout(30):
            while word not in await stdout.readline():
                assert not stdout.at_eof()

    async with monitor(broker) as mine:
        await says(b"broker_subscribed")
        await mine.publish(topic(), payload(0))
        await says(b"readings_committed")
        bridge.kill()
        await stdout.read()
        assert await asyncio.wait_for(bridge.wait(), 10) == -9
        for number in range(1, 6):
            await mine.publish(topic(), payload(number))
        ingest = WatchedIngest(records)
        async with subscribed(broker.settings, ingest):
            await mine.publish(topic(), payload(6))
            await ingest.until(readings=7)
    assert sorted(await stored(records)) == list(range(7))


# Not amqtt, which forgets what it had sent when the connection ends. It runs in one process with
# the bridge, whose own queue outlives the connection.
@pytest.mark.parametrize("site", ["mosquitto"], indirect=True)
async def test_a_bridge_that_is_stopped_before_it_committed_gets_the_message_again(
    broker: Site, records: Records
) -> None:
    hanging = HangingIngest(records)
    async with monitor(broker) as mine:
        async with subscribed(broker.settings, hanging):
            await mine.publish(topic(), payload(1))
            await asyncio.wait_for(hanging.attempts.acquire(), WITHIN_S)
        assert await stored(records) == []
        ingest = WatchedIngest(records)
        async with subscribed(broker.settings, ingest):
            await ingest.until(readings=1)
    assert await stored(records) == [1]


async def test_a_bridge_whose_database_hangs_can_be_stopped_with_more_waiting(
    broker: Site, records: Records
) -> None:
    settings = broker.settings.model_copy(update={"queue_max": 10})
    hanging = HangingIngest(records)
    async with monitor(broker) as mine:
        async with subscribed(settings, hanging):
            for number in range(30):
                await mine.publish(topic(), payload(number))
            await asyncio.wait_for(hanging.attempts.acquire(), WITHIN_S)
        if broker.settings.embedded:
            return
        ingest = WatchedIngest(records)
        async with subscribed(settings, ingest):
            await ingest.until(readings=30)
    assert sorted(await stored(records)) == list(range(30))


async def test_a_commit_that_fails_is_tried_again_and_nothing_is_lost(
    broker: Site, records: Records
) -> None:
    ingest = WatchedIngest(records)
    ingest.failures = [OSError("disk is full of 70.1"), RuntimeError()]
    with capture_logs() as logs:
        async with subscribed(broker.settings, ingest), monitor(broker) as mine:
            await mine.publish(topic(), payload(1))
            await ingest.until(readings=1)
            await mine.publish(topic(), payload(2))
            await ingest.until(readings=2)
    assert await stored(records) == [1, 2]
    failures = [one["error"] for one in logs if one["event"] == "commit_failed"]
    assert failures == ["RuntimeError", "OSError"]
    assert "70.1" not in str(logs)


class DoubtfulIngest(WatchedIngest):
    """Commits its first reading and does not learn of it: the connection broke at that moment."""

    def __init__(self, records: Records) -> None:
        super().__init__(records)
        self.outcomes: list[tuple[int, int]] = []

    async def commit(self, batch: Sequence[Message]) -> Outcome:
        outcome = await super().commit(batch)
        if outcome.stored or outcome.repeated:
            self.outcomes.append((outcome.stored, outcome.repeated))
            if len(self.outcomes) == 1:
                raise ConnectionError
        return outcome


async def test_a_commit_whose_outcome_is_unknown_is_repeated_and_counts_once(
    broker: Site, records: Records
) -> None:
    ingest = DoubtfulIngest(records)
    async with subscribed(broker.settings, ingest), monitor(broker) as mine:
        await mine.publish(topic(), payload(1))
        await ingest.until(readings=1)
        await mine.publish(topic(), payload(2))
        await ingest.until(readings=2)
    assert ingest.outcomes[:2] == [(1, 0), (0, 1)]
    assert await stored(records) == [1, 2]


async def test_a_message_is_acknowledged_once_it_is_committed(
    broker: Site, records: Records
) -> None:
    ingest = WatchedIngest(records)
    async with monitor(broker) as mine:
        async with subscribed(broker.settings, ingest):
            await mine.publish(topic(), payload(1))
            await ingest.until(readings=1)
            await mine.publish(topic(), payload(2))
            await ingest.until(readings=2)
        again = WatchedIngest(records)
        async with subscribed(broker.settings, again):
            await mine.publish(topic(), payload(3))
            await again.until(readings=3)
    # The first was acknowledged before the second was taken: only the second may come again.
    assert again.attempts._value <= 2
    assert await stored(records) == [1, 2, 3]


@pytest.fixture
async def own_mosquitto(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    """A broker of the test's own, which it may stop."""
    mosquitto = Mosquitto(tmp_path / "mosquitto", free_port())
    await mosquitto.start()
    yield mosquitto
    await mosquitto.stop()


async def test_what_a_monitor_sends_to_a_restarted_broker_waits_for_a_bridge_that_is_away(
    own_mosquitto: Mosquitto, records: Records
) -> None:
    site = Site(settings_of(own_mosquitto), own_mosquitto.pki_directory)
    async with subscribed(site.settings, WatchedIngest(records)):
        pass
    for number in range(3):
        await own_mosquitto.stop()
        await own_mosquitto.start()
        async with monitor(site) as mine:
            await mine.publish(topic(), payload(number))
    ingest = WatchedIngest(records)
    async with subscribed(site.settings, ingest):
        await ingest.until(readings=3)
    assert sorted(await stored(records)) == [0, 1, 2]


async def test_one_ingest_becomes_two_and_one_again_and_nothing_comes_twice(
    own_mosquitto: Mosquitto, records: Records
) -> None:
    one = settings_of(own_mosquitto)
    issue_bridge(own_mosquitto.pki_directory, "fajma-ingest-2")
    two = one.model_copy(update={"ingests": 2})
    site = Site(one, own_mosquitto.pki_directory)
    sent = 0
    async with monitor(site) as mine:
        for settings in (one, two, one, two, one):
            ingest = WatchedIngest(records)
            async with subscribed(settings, ingest):
                # Once to be sure that the other subscription is gone.
                for _ in range(2):
                    before = ingest.messages
                    for _number in range(5):
                        await mine.publish(topic(), payload(sent))
                        sent += 1
                    await ingest.until(readings=sent)
                assert ingest.messages - before == 5
    assert await stored(records) == list(range(sent))


async def test_a_broker_that_dies_before_it_answers_is_not_taken_for_one_of_the_old_protocol(
    own_mosquitto: Mosquitto, records: Records
) -> None:
    mosquitto, settings = own_mosquitto, settings_of(own_mosquitto)
    server = issue_server(mosquitto.pki_directory, ["localhost", LOOPBACK])
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(server.cert_file, server.key_file)
    greeted = asyncio.Event()

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()
        greeted.set()

    async def dies(subscriber: Subscriber) -> None:
        greeted.clear()
        dying = await asyncio.start_server(hang_up, LOOPBACK, settings.port, ssl=tls)
        async with asyncio.timeout(WITHIN_S):
            await greeted.wait()
        dying.close()
        await dying.wait_closed()
        await mosquitto.start()
        async with asyncio.timeout(WITHIN_S):
            await subscriber.subscribed.wait()
        assert subscriber._client is not None
        assert subscriber._client.protocol == MQTTProtocolVersion.MQTTv5

    # The very first greeting, and a later one.
    await mosquitto.stop()
    subscriber = Subscriber(settings, WatchedIngest(records))
    running = asyncio.create_task(subscriber.run())
    await dies(subscriber)
    await mosquitto.stop()
    await dies(subscriber)
    await end([running])


async def test_a_broker_that_says_so_or_never_answers_is_spoken_to_in_the_old_protocol(
    embedded_site: Site, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = embedded_site.settings.model_copy(update={"embedded": False})
    subscriber = Subscriber(settings, WatchedIngest(records))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(str(settings.server_cert_file), str(settings.server_key_file))
    greeted: asyncio.Queue[int] = asyncio.Queue()

    async def old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = await reader.read(4096)
        level = said[said.index(b"MQTT") + 4]
        writer.write(b"\x20\x02\x00" + (b"\x01" if level == 5 else b"\x00"))
        greeted.put_nowait(level)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(old, LOOPBACK, settings.port, ssl=tls)
    running = asyncio.create_task(subscriber.run())
    async with asyncio.timeout(WITHIN_S):
        levels = [await greeted.get() for _ in range(4)]
    assert levels == [5, 4, 5, 4]  # after each loss it may be another broker
    server.close()
    await end([running])

    # amqtt waits for the rest of what it takes for a long client id.
    monkeypatch.setattr("bridges.mqtt_vitals.subscriber.CONNECT_WITHIN_S", 1.0)
    embedded = EmbeddedBroker(embedded_site.settings)
    await embedded.start()
    async with subscribed(settings, WatchedIngest(records)) as subscriber:
        assert subscriber._client is not None
        assert subscriber._client.protocol == MQTTProtocolVersion.MQTTv311
    await embedded.stop()


# --- what is sent --------------------------------------------------------------------------------


async def test_an_oversized_and_a_garbled_message_are_counted_and_stop_nothing(
    broker: Site, records: Records
) -> None:
    ingest = WatchedIngest(records)
    with capture_logs() as logs:
        async with subscribed(broker.settings, ingest):
            async with monitor(broker) as mine:
                await mine.publish(topic(), b"x" * 5000)
                await mine.publish(topic(), b'{"heart_rate":\xff\xfe}')
                await mine.publish(topic(), b"")
                await mine.publish(topic(), payload(1))
                await ingest.until(readings=1, refused=3)
                mine.client.publish(topic(), b"y" * 70_000, qos=1)
                # The broker ends the connection before it has taken so much.
                await asyncio.wait_for(mine.ended.wait(), WITHIN_S)
            async with monitor(broker) as mine:
                await mine.publish(topic(), payload(2))
                await ingest.until(readings=2)
    assert await stored(records) == [1, 2]
    assert ingest.refused == Counter(too_large=1, not_utf8=1, not_json=1)
    assert await records.quarantine.counts() == dict(ingest.refused)
    warned = Counter(one["reason"] for one in logs if one["event"] == "reading_refused")
    assert warned == ingest.refused
    assert "xxx" not in str(logs)


@pytest.mark.parametrize("site", ["mosquitto"], indirect=True)
async def test_a_monitor_that_floods_is_limited_and_no_other_loses_or_waits(
    broker: Site, records: Records
) -> None:
    sent = 3000
    began_ms = int(datetime.now(UTC).timestamp() * 1000) - sent
    values = {Kind.HEART_RATE: Decimal(70), Kind.SPO2: Decimal(97), Kind.TEMPERATURE: Decimal(37)}
    ingest = WatchedIngest(records, rates=Rates(burst=2000, backlog=0))
    async with (
        subscribed(broker.settings, ingest),
        monitor(broker) as flooding,
        monitor(broker, OTHER) as other,
    ):
        for number in range(sent):
            message = encode_v1(MINE, began_ms + number, values)
            last = flooding.client.publish(topic(), message, qos=1)
        for number in range(3):
            await other.publish(topic(OTHER), payload(number, OTHER))
        await asyncio.to_thread(last.wait_for_publish, WITHIN_S)
        async with asyncio.timeout(WITHIN_S):
            while ingest.refused["rate_limited"] + await records.readings.count() < sent + 3:
                await ingest.committed.wait()
                ingest.committed.clear()
    of_other = [
        one for one in await records.readings.after(0, limit=10_000) if one.reading.device == OTHER
    ]
    assert len(of_other) == 3
    assert of_other[0].position < sent  # not behind all of the flood
    assert set(ingest.refused) == {"rate_limited"}
    assert 0 < ingest.refused["rate_limited"] <= 1000
    assert [one.detail["reason"] for one in await records.audit.latest()] == ["rate_limited"]


# --- the embedded broker -------------------------------------------------------------------------


async def test_a_bridge_that_expects_mqtt_5_falls_back_to_what_the_broker_speaks(
    embedded_site: Site, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    # amqtt waits for the rest of what it takes for a longer greeting.
    monkeypatch.setattr("bridges.mqtt_vitals.broker.CONNECT_WITHIN_S", 0.5)
    embedded = EmbeddedBroker(embedded_site.settings)
    await embedded.start()
    try:
        settings = embedded_site.settings.model_copy(update={"embedded": False})
        ingest = WatchedIngest(records)
        async with subscribed(settings, ingest), monitor(embedded_site) as mine:
            await mine.publish(topic(), payload(1))
            await ingest.until(readings=1)
    finally:
        await embedded.stop()
    assert await stored(records) == [1]


async def test_an_embedded_broker_on_a_taken_port_says_so(embedded_site: Site) -> None:
    first = EmbeddedBroker(embedded_site.settings)
    await first.start()
    try:
        with pytest.raises(UnavailableError, match=r"mqtt\.port") as caught:
            await EmbeddedBroker(embedded_site.settings).start()
        assert caught.value.code == "port_in_use"
        assert str(embedded_site.settings.port) in str(caught.value)
    finally:
        await first.stop()
    again = EmbeddedBroker(embedded_site.settings)
    await again.start()
    await again.stop()


WRITES = (f"fajma/sensors/{MINE}", f"fajma/v2/{MINE}/vitals", f"fajma/v2/{MINE}/status")
HEARS = tuple(f"fajma/v2/{MINE}/{channel}" for channel in ("ack", "config", "ota"))


def test_a_monitor_writes_and_hears_its_own_topics_only() -> None:
    for allowed, forbidden, actions in (
        (WRITES, HEARS, (Action.PUBLISH,)),
        (HEARS, WRITES, (Action.SUBSCRIBE, Action.RECEIVE)),
    ):
        for action in actions:
            assert all(may(MINE, action, one) for one in allowed)
            assert not any(may(MINE, action, one) for one in forbidden)
            assert not any(may(OTHER, action, one) for one in (*allowed, *forbidden))
            for one in ("#", "+/+/+", "fajma/#", "fajma/sensors/+", "fajma/v2/+/ack", "$SYS/#", ""):
                assert not may(MINE, action, one)


def test_the_bridge_hears_all_monitors_and_writes_to_them_without_forging_readings() -> None:
    for one in ("fajma/sensors/+", "fajma/v2/+/vitals", WRITES[0]):
        assert may(INGEST, Action.SUBSCRIBE, one)
        assert not may(INGEST, Action.PUBLISH, one)
    assert all(may(INGEST, Action.PUBLISH, one) for one in HEARS)
    for one in ("#", "elsewhere", "$SYS/broker/clients"):
        assert not may(INGEST, Action.SUBSCRIBE, one)
        assert not may(INGEST, Action.PUBLISH, one)
