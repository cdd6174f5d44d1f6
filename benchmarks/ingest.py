"""How fast messages become committed readings, beside what one would pipe or write in an hour.

Every contender empties the same queue: the messages wait in a session of Mosquitto before it
starts, and the clock stops when the last one is committed in PostgreSQL.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Final

import asyncpg
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from benchmarks.record import record
from bridges.mqtt_vitals.ingest import Ingest
from bridges.mqtt_vitals.subscriber import Subscriber
from console.mosquitto import Mosquitto
from console.processes import LOOPBACK, Child, environment_for_server, free_port, tcp_open
from fajma.config import DatabaseSettings, Mqtt
from fajma.sealing import generate_site_key
from fajma.store import Records, Store
from fajma.store.devices import KeyPair
from fajma.store.site import site_key
from fajma.tasks import end
from fajma.vitals import DeviceId, Kind
from fajma.wire import (
    V1_TOPIC,
    Channel,
    Item,
    Pack,
    decode_v1,
    encode_pack,
    encode_v1,
    seal,
    v2_topic,
)
from tests.conftest import Postgres

MESSAGES: Final = 60_000
DEVICES: Final = [DeviceId(f"A4CF12{number:06X}") for number in range(500)]
IN_FLIGHT: Final = 2000


@dataclass(frozen=True, slots=True)
class Scene:
    """A broker with a door for the loader, and a database server."""

    mosquitto: Mosquitto
    loader_port: int
    postgres: Postgres


@asynccontextmanager
async def postgres() -> AsyncIterator[Postgres]:
    directory = Path(tempfile.mkdtemp(prefix="fajma-pg-"))
    server = Postgres(directory)
    try:
        await asyncio.to_thread(server.start)
        yield server
    finally:
        await asyncio.to_thread(server.stop)
        shutil.rmtree(directory)


@asynccontextmanager
async def _broker() -> AsyncIterator[tuple[Mosquitto, int]]:
    """Our configuration, with a second door for the loader and nothing saved to disk."""
    directory = Path(tempfile.mkdtemp(prefix="fajma-bench-"))
    mosquitto = Mosquitto(directory, free_port())
    configuration = mosquitto.render()
    loader_port = free_port()
    text = configuration.read_text(encoding="utf-8")
    text = text.replace("persistence true", "persistence false")
    text = text.replace("max_queued_messages 100000", "max_queued_messages 1000000")
    text = "per_listener_settings true\n" + text
    text += f"\nlistener {loader_port} {LOOPBACK}\nallow_anonymous true\n"
    configuration.write_text(text, encoding="utf-8")
    child = Child.start(
        ["mosquitto", "-c", str(configuration)],
        env=environment_for_server(),
        log_path=mosquitto.log_path,
        name="Mosquitto",
    )
    try:
        await child.ready(tcp_open(LOOPBACK, loader_port), 15)
        yield mosquitto, loader_port
    finally:
        await child.stop()
        shutil.rmtree(directory)


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    async with postgres() as server, _broker() as (mosquitto, loader_port):
        yield Scene(mosquitto, loader_port, server)


def payloads(count: int) -> list[tuple[str, bytes]]:
    """Topics and v1 messages of many monitors, five seconds apart, all different."""
    chance = random.Random(1)  # noqa: S311 - readings
    began_ms = time.time_ns() // 1_000_000 - 5000 * (count // len(DEVICES))
    found = []
    for number in range(count):
        device = DEVICES[number % len(DEVICES)]
        values = {
            Kind.HEART_RATE: Decimal(chance.randrange(60, 100)),
            Kind.SPO2: Decimal(chance.randrange(94, 100)),
            Kind.TEMPERATURE: Decimal(chance.randrange(360, 375)).scaleb(-1),
        }
        at_ms = began_ms + 5000 * (number // len(DEVICES)) + number % len(DEVICES)
        found.append((V1_TOPIC.format(device=device), encode_v1(device, at_ms, values)))
    return found


def session_of(here: Scene, client_id: str, topic: str) -> None:
    """A session at the broker in which messages wait."""
    client = _client(here, client_id)
    done = []
    client.on_subscribe = lambda *_: done.append(True)
    client.loop_start()
    client.subscribe(topic, 1)
    while not done:
        time.sleep(0.01)
    client.disconnect()
    client.loop_stop()


def _client(here: Scene, client_id: str) -> paho.Client:
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        protocol=MQTTProtocolVersion.MQTTv5,
        manual_ack=True,
    )
    bridge = here.mosquitto.issue_bridge()
    client.tls_set(str(here.mosquitto.ca_file), str(bridge.cert_file), str(bridge.key_file))
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = 3600
    properties.ReceiveMaximum = IN_FLIGHT
    client.connect(LOOPBACK, here.mosquitto.port, clean_start=False, properties=properties)
    return client


def load(here: Scene, messages: list[tuple[str, bytes]]) -> None:
    """Put messages into the waiting sessions."""
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv311)
    client.max_inflight_messages_set(1000)
    client.max_queued_messages_set(0)
    client.connect(LOOPBACK, here.loader_port)
    client.loop_start()
    for topic, payload in messages:
        last = client.publish(topic, payload, qos=1)
    last.wait_for_publish(120)
    client.disconnect()
    client.loop_stop()


async def committed(here: Scene, database: str, query: str, count: int) -> None:
    """Wait until a query says that so many are there."""
    connection = await asyncpg.connect(here.postgres.url(database))
    try:
        while await connection.fetchval(query) < count:  # noqa: ASYNC110 - by another process
            await asyncio.sleep(0.02)
    finally:
        await connection.close()


async def pipe(here: Scene, messages: list[tuple[str, bytes]]) -> float:
    """``mosquitto_sub | psql COPY``: messages a second."""
    await here.postgres.execute("CREATE DATABASE pipe TEMPLATE template0")
    connection = await asyncpg.connect(here.postgres.url("pipe"))
    await connection.execute("CREATE TABLE raw (topic TEXT, payload TEXT)")
    await connection.close()
    session_of(here, "fajma-ingest", "fajma/sensors/+")
    load(here, messages)
    bridge = here.mosquitto.issue_bridge()
    command = (
        f"mosquitto_sub -h {LOOPBACK} -p {here.mosquitto.port} --tls-version tlsv1.3"
        f" --cafile {here.mosquitto.ca_file} --cert {bridge.cert_file} --key {bridge.key_file}"
        f" -V mqttv5 -i fajma-ingest -c -x 3600 -q 1 -t fajma/sensors/+ -C {len(messages)}"
        " -F '%t\t%p'"
        f" | psql -q '{here.postgres.url('pipe')}' -c 'COPY raw FROM STDIN'"
    )
    began = time.perf_counter()
    process = await asyncio.create_subprocess_shell(command)
    await process.wait()
    elapsed = time.perf_counter() - began
    await committed(here, "pipe", "SELECT COUNT(*) FROM raw", len(messages))
    return len(messages) / elapsed


async def naive(here: Scene, messages: list[tuple[str, bytes]]) -> float:
    """What one would write in an hour: paho, ``json.loads``, asyncpg COPY, acknowledge after."""
    await here.postgres.execute("CREATE DATABASE naive TEMPLATE template0")
    database = await asyncpg.connect(here.postgres.url("naive"))
    await database.execute(
        "CREATE TABLE reading"
        " (device TEXT, at BIGINT, heart_rate REAL, spo2 REAL, temperature REAL)"
    )
    session_of(here, "fajma-ingest", "fajma/sensors/+")
    load(here, messages)
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[paho.MQTTMessage] = asyncio.Queue()
    began = time.perf_counter()
    client = _client(here, "fajma-ingest")
    client.on_message = lambda _, __, message: loop.call_soon_threadsafe(queue.put_nowait, message)
    client.loop_start()
    done = 0
    while done < len(messages):
        batch = [await queue.get()]
        while len(batch) < 500 and not queue.empty():
            batch.append(queue.get_nowait())
        rows = []
        for message in batch:
            said = json.loads(message.payload)
            rows.append(
                (said["device_id"], said["timestamp"], said["heart_rate"], said["spo2"],
                 said["temperature"])
            )  # fmt: skip
        await database.copy_records_to_table("reading", records=rows)
        for message in batch:
            client.ack(message.mid, message.qos)
        done += len(batch)
    elapsed = time.perf_counter() - began
    client.disconnect()
    client.loop_stop()
    await database.close()
    return len(messages) / elapsed


@asynccontextmanager
async def _records(here: Scene, database: str) -> AsyncIterator[Records]:
    """FAJMA's own database, in which each monitor is worn by a patient."""
    await here.postgres.execute(f"CREATE DATABASE {database} TEMPLATE template0")
    store = await Store.open(DatabaseSettings(url=here.postgres.url(database)))
    with tempfile.TemporaryDirectory() as directory:
        key_file = Path(directory) / "site.key"
        key_file.touch(mode=0o600)
        key_file.write_text(generate_site_key(), encoding="ascii")
        records = Records(store, await site_key(store, key_file))
    since = datetime.now(UTC) - timedelta(days=2)
    for number, device in enumerate(DEVICES):
        patient = await records.patients.add(
            number=f"B-{number}", initials="A.D.", bed=str(number), account=None
        )
        await records.devices.link(device, patient.key, None, now=since)
    try:
        yield records
    finally:
        await store.close()


def settings_of(here: Scene) -> Mqtt:
    bridge = here.mosquitto.issue_bridge()
    return Mqtt(
        host=LOOPBACK,
        port=here.mosquitto.port,
        ca_file=here.mosquitto.ca_file,
        cert_file=bridge.cert_file,
        key_file=bridge.key_file,
        queue_max=IN_FLIGHT,
        batch_max=1000,
    )


def sealed(
    messages: list[tuple[str, bytes]], keys: dict[DeviceId, KeyPair]
) -> list[tuple[str, bytes]]:
    """The same readings as v2 monitors send them, each in a message of its own."""
    found = []
    for number, (topic, payload) in enumerate(messages):
        said = decode_v1(topic, payload)
        at = datetime.fromtimestamp(said.timestamp_ms / 1000, UTC)
        mono_ms = 5000 * (number // len(DEVICES)) + 1000
        item = Item(
            seq=(1 << 32) + number // len(DEVICES),
            boot=1,
            mono_ms=mono_ms,
            measured_at=at,
            clock_set=True,
            values=said.values,
            rejected=(),
            quality=95,
            contact=True,
        )
        pack = Pack(said.device, item.seq, 1, mono_ms, (item,))
        pair = keys[said.device]
        where = v2_topic(said.device, Channel.VITALS)
        found.append((where, seal(where, pair.up, pair.version, encode_pack(pack))))
    return found


async def ours(here: Scene, messages: list[tuple[str, bytes]], *, v2: bool = False) -> float:
    """Our ingest, in this process."""
    async with _records(here, "ours") as records:
        settings = settings_of(here)
        # A first connection, so that messages wait in our session.
        subscriber = Subscriber(settings, Ingest(records))
        first = asyncio.create_task(subscriber.run())
        await subscriber.subscribed.wait()
        await end([first])
        if v2:
            now = datetime.now(UTC)
            keys = {device: await records.devices.new_keys(device, now=now) for device in DEVICES}
            messages = sealed(messages, keys)
        await asyncio.to_thread(load, here, messages)
        began, cpu = time.perf_counter(), time.process_time()
        running = asyncio.create_task(Subscriber(settings, Ingest(records)).run())
        head = "SELECT position FROM log_head WHERE log='readings'"
        await committed(here, "ours", head, len(messages))
        elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu
        version = "v2" if v2 else "v1"
        print(f"{version}: {cpu / len(messages) * 1e6:.1f} us of CPU per reading in the process")
        await end([running])
    return len(messages) / elapsed


async def _ingest() -> None:
    messages = payloads(MESSAGES)
    async with scene() as here:
        piped = await pipe(here, messages)
    async with scene() as here:
        simple = await naive(here, messages)
    async with scene() as here:
        v1 = await ours(here, messages)
    async with scene() as here:
        v2 = await ours(here, messages, v2=True)
    record(
        "ingest_v1_vs_pipe", v1, "readings/s", reference="mosquitto_sub | psql COPY",
        reference_value=piped, aim=">= 0.6 x the reference", met=v1 >= 0.6 * piped,
    )  # fmt: skip
    record(
        "ingest_v1_vs_naive", v1, "readings/s", reference="paho + json + asyncpg COPY",
        reference_value=simple, aim=">= 0.9 x the reference", met=v1 >= 0.9 * simple,
    )  # fmt: skip
    record(
        "ingest_v2_vs_pipe", v2, "readings/s", reference="mosquitto_sub | psql COPY of v1",
        reference_value=piped, aim="reported", met=True,
    )  # fmt: skip


def ingest() -> None:
    """Durable ingest on PostgreSQL, beside a pipe and a naive loop on the same readings."""
    asyncio.run(_ingest())
