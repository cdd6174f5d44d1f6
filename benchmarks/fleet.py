"""Ten thousand monitors for two minutes: ingest, readings log and alarm engine on PostgreSQL.

The monitors share a few connections of one sending process (ten thousand TLS sessions would
measure the sender), each with its own topic, its own clock and its own five-second rhythm. Ingest
and alarm engine are processes of their own, as in production.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Final

import asyncpg
import paho.mqtt.client as paho
import psutil
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from benchmarks.ingest import Scene, scene, settings_of
from benchmarks.record import record
from bots.alerts.engine import FOLLOWER, AlarmEngine
from bridges.mqtt_vitals.ingest import Ingest, Message, Outcome
from bridges.mqtt_vitals.subscriber import Subscriber
from console.processes import LOOPBACK, Child, environment_without_proxies
from fajma.config import Alarms, DatabaseSettings, Mqtt
from fajma.sealing import generate_site_key
from fajma.store import Records, Store
from fajma.store.site import site_key
from fajma.vitals import DeviceId, Kind
from fajma.wire import V1_TOPIC, encode_v1

MONITORS: Final = 10_000
EVERY_S: Final = 5.0
FOR_S: Final = 120
CONNECTIONS: Final = 10
AIM_MS: Final = 250


def devices(count: int = MONITORS) -> list[DeviceId]:
    """The monitors."""
    return [DeviceId(f"A4CF{number:08X}") for number in range(count)]


class _Timed(Ingest):
    """Notes how long after its sending each reading was committed."""

    def __init__(self, records: Records, path: Path) -> None:
        super().__init__(records)
        self._file = path.open("w", encoding="ascii")

    async def commit(self, messages: Sequence[Message]) -> Outcome:
        outcome = await super().commit(messages)
        now_ms = time.time_ns() // 1_000_000
        for message in messages:
            sent_ms = json.loads(message.payload)["timestamp"]
            self._file.write(f"{now_ms - sent_ms}\n")
        self._file.flush()
        return outcome


async def _part(name: str, database: str, key_file: Path, mqtt: str, latencies: Path) -> None:
    """One process of the benchmark."""
    store = await Store.open(DatabaseSettings(url=database))
    records = Records(store, await site_key(store, key_file))
    if name == "ingest":
        settings = Mqtt.model_validate_json(mqtt)
        await Subscriber(settings, _Timed(records, latencies)).run()
    else:
        await AlarmEngine(Alarms(), records).run()


def send(port: int, seconds: float) -> int:
    """Every monitor sends a reading each five seconds, at its own moment; how many were sent."""
    clients = []
    for _ in range(CONNECTIONS):
        client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv311)
        client.max_inflight_messages_set(2000)
        client.max_queued_messages_set(0)
        client.connect(LOOPBACK, port)
        client.loop_start()
        clients.append(client)
    chance = random.Random(1)  # noqa: S311 - readings
    fleet = devices()
    sent = 0
    began = time.monotonic()
    while (due := began + sent * EVERY_S / MONITORS) < began + seconds:
        pause = due - time.monotonic()
        if pause > 0.005:
            time.sleep(pause)
        device = fleet[sent % MONITORS]
        ill = chance.random() < 0.01
        values = {
            Kind.HEART_RATE: Decimal(chance.randrange(60, 100)),
            Kind.SPO2: Decimal(85 if ill else chance.randrange(94, 100)),
            Kind.TEMPERATURE: Decimal(chance.randrange(360, 375)).scaleb(-1),
        }
        payload = encode_v1(device, time.time_ns() // 1_000_000, values)
        last = clients[sent % CONNECTIONS].publish(V1_TOPIC.format(device=device), payload, qos=1)
        sent += 1
    last.wait_for_publish(60)
    for client in clients:
        while client.want_write():
            time.sleep(0.01)
        client.disconnect()
        client.loop_stop()
    return sent


async def _admit(records: Records) -> None:
    """A patient for each monitor, on one ward."""
    since = datetime.now(UTC) - timedelta(hours=1)
    for number, device in enumerate(devices()):
        patient = await records.patients.add(
            number=f"F-{number}", initials="A.D.", bed=str(number), account=None
        )
        await records.devices.link(device, patient.key, None, now=since)


async def _until(database: str, query: str, *, at_least: int, within_s: float) -> bool:
    connection = await asyncpg.connect(database)
    deadline = time.monotonic() + within_s
    try:
        while await connection.fetchval(query) < at_least:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.2)
        return True
    finally:
        await connection.close()


async def _fleet(here: Scene, directory: Path) -> None:
    await here.postgres.execute("CREATE DATABASE fleet TEMPLATE template0")
    database = here.postgres.url("fleet")
    key_file = directory / "site.key"
    key_file.touch(mode=0o600)
    key_file.write_text(generate_site_key(), encoding="ascii")
    store = await Store.open(DatabaseSettings(url=database))
    records = Records(store, await site_key(store, key_file))
    await _admit(records)
    await store.close()
    latencies = directory / "latencies"
    settings = settings_of(here)
    parts = [
        Child.start(
            [sys.executable, "-m", "benchmarks.fleet", name, database, str(key_file),
             settings.model_dump_json(), str(latencies)],
            env=environment_without_proxies(),
            log_path=directory / f"{name}.log",
            name=name,
        )
        for name in ("ingest", "engine")
    ]  # fmt: skip
    try:
        async with asyncio.timeout(60):
            while "broker_subscribed" not in _read(directory / "ingest.log"):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        sending = asyncio.create_task(asyncio.to_thread(send, here.loader_port, FOR_S))
        await asyncio.sleep(FOR_S / 2)
        early = [psutil.Process(one.pid).memory_info().rss / 1e6 for one in parts]
        sent = await sending
        head = "SELECT position FROM log_head WHERE log='readings'"
        whole = await _until(database, head, at_least=sent, within_s=60)
        cursor = f"SELECT COALESCE(MAX(position), 0) FROM follower WHERE name='{FOLLOWER}'"  # noqa: S608
        judged = await _until(database, cursor, at_least=sent, within_s=60)
        late = [psutil.Process(one.pid).memory_info().rss / 1e6 for one in parts]
        cpu = [sum(psutil.Process(one.pid).cpu_times()[:2]) for one in parts]
    finally:
        for one in parts:
            await one.stop()
    found = sorted(int(line) for line in _read(latencies).splitlines())
    p99 = found[int(0.99 * len(found))]
    print(
        f"sent {sent}, committed {len(found)}, all in the log: {whole}, all judged: {judged};"
        f" p50 {found[len(found) // 2]} ms; memory MB half-way {early} at the end {late};"
        f" CPU us per reading: ingest {cpu[0] / sent * 1e6:.0f}, engine {cpu[1] / sent * 1e6:.0f}"
    )
    met = whole and judged and len(found) == sent and p99 <= AIM_MS
    record("fleet_10k", p99, "ms", aim=f"p99 <= {AIM_MS}, nothing lost", met=met)
    growth = max(b / a for a, b in zip(early, late, strict=True))
    record("fleet_10k_memory_growth", growth, "x", aim="<= 1.2 in the second minute",
           met=growth <= 1.2)  # fmt: skip


def _read(path: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return path.read_text(encoding="utf-8")
    return ""


def fleet_10k() -> None:
    """MQTT publish to commit with 10 000 monitors; nothing lost, memory bounded."""

    async def run() -> None:
        with tempfile.TemporaryDirectory() as directory:
            async with scene() as here:
                await _fleet(here, Path(directory))

    asyncio.run(run())


if __name__ == "__main__":
    part, url, key, broker, out = sys.argv[1:]
    asyncio.run(_part(part, url, Path(key), broker, Path(out)))
