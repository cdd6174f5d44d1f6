"""From MQTT publish to the decrypted alarm at a syncing clinician, beside its floor.

The floor is an encrypted event of the same size, sent by the plain client-server API into a
consultation's room (so with the same members, bots and push rules) and received in ``/sync`` by
the same clinician, with no cryptography and nothing of FAJMA on the way. The same in a bare room of
two is reported too. All are measured in turn in one run, against one homeserver (Synapse, one
process, SQLite) that does nothing else meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import shutil
import socket
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import aiohttp
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.ingest import postgres
from benchmarks.record import record
from console.clinic import DOCTOR, PATIENTS, Clinic, Options, Ports
from console.observer import Observer
from console.pki import issue_device
from console.processes import LOOPBACK, Child, environment_without_proxies
from fajma.config import DatabaseSettings
from fajma.events import AlarmBlock
from fajma.store import Records, Store
from fajma.store.site import site_key
from fajma.vitals import DeviceId
from fajma.wire import V1_TOPIC

SAMPLES = 60
WARM_UP = 6
PAUSE_S = 0.3
"""Between two samples, so that the homeserver is idle again."""

PAUSE_AFTER_ALARM_S = 2.0
"""An alarm is followed within about a second by the patient's snapshot and by a chart."""

CIPHERTEXT_BYTES = 1900
"""About what an alarm message of ours is as Megolm ciphertext."""

SETTINGS: dict[str, dict[str, Any]] = {
    "publish": {"state_every_s": 300, "batch_every_s": 60},
    "alarms": {
        "confirm_needed": 1,
        "confirm_window": 1,
        "confirm_extreme": 1,
        "clear_dwell_s": 0,
    },
}


LOAD_PER_S = 2000
LOADERS = 125
"""Monitors that make the load, each well below what one may send."""


def alarm_latency() -> None:
    """One alarm at a time on an idle system, confirmation set to one reading."""
    alarms, floors, bare = asyncio.run(_measure())
    for name, of, aim in (("p50", 0.50, 1.5), ("p99", 0.99, 2.0)):
        value, floor = _quantile(alarms, of), _quantile(floors, of)
        record(
            f"alarm_latency_{name}",
            value,
            "ms",
            aim=f"<= {aim} x the floor",
            met=value <= aim * floor,
            reference=f"floor {name}: same-size event by the plain API into the room and /sync",
            reference_value=floor,
        )
        record(
            f"alarm_latency_{name}_vs_bare_room",
            value,
            "ms",
            aim="reported",
            met=True,
            reference=f"floor {name} in a bare room of two",
            reference_value=_quantile(bare, of),
        )


def alarm_latency_loaded() -> None:
    """The same while 2 000 readings a second of other patients are ingested, over PostgreSQL."""

    async def run() -> tuple[list[float], list[float], list[float]]:
        async with postgres() as server:
            await server.execute("CREATE DATABASE loaded TEMPLATE template0")
            return await _measure(server.url("loaded"))

    alarms, floors, _ = asyncio.run(run())
    for name, of in (("p50", 0.50), ("p99", 0.99)):
        value, floor = _quantile(alarms, of), _quantile(floors, of)
        record(
            f"alarm_latency_loaded_{name}",
            value,
            "ms",
            aim="<= 3 x the floor" if name == "p99" else "reported",
            met=name != "p99" or value <= 3 * floor,
            reference=f"floor {name} under the same load",
            reference_value=floor,
        )


def _quantile(values: list[float], of: float) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[round(of * 100) - 1]


async def _measure(database_url: str | None = None) -> tuple[list[float], ...]:
    """Alarms, floors in a consultation and floors in a bare room, ms; under load with a URL."""
    directory = Path(tempfile.mkdtemp())
    clinic = Clinic(Options(directory, Ports.free(), "mosquitto", SETTINGS, database_url))
    observer = Observer(clinic.synapse.base_url, clinic.mxid(DOCTOR), directory / "observer")
    alarms: list[float] = []
    floors: list[float] = []
    bare: list[float] = []
    try:
        await clinic.start()
        await observer.start(clinic.password(DOCTOR))
        await clinic.open_consultations()
        monitor = _Monitor(clinic, PATIENTS[0].device)
        async with _Floor(clinic) as floor, _load(clinic, database_url):
            for number in range(SAMPLES + WARM_UP):
                in_bare_room = await floor.sample(floor.bare_room)
                await asyncio.sleep(PAUSE_S)
                in_consultation = await floor.sample(clinic.rooms[PATIENTS[1].number])
                await asyncio.sleep(PAUSE_S)
                alarm_ms = await _alarm(monitor, observer, 86 if number % 2 == 0 else 97)
                await asyncio.sleep(PAUSE_AFTER_ALARM_S)
                if number >= WARM_UP:
                    floors.append(in_consultation)
                    bare.append(in_bare_room)
                    alarms.append(alarm_ms)
        monitor.close()
    finally:
        await observer.stop()
        await clinic.stop()
        shutil.rmtree(directory)
    return alarms, floors, bare


@contextlib.asynccontextmanager
async def _load(clinic: Clinic, database_url: str | None) -> AsyncIterator[None]:
    """Monitors of patients without consultation, in a process of their own."""
    if database_url is None:
        yield
        return
    store = await Store.open(DatabaseSettings(url=database_url))
    records = Records(store, await site_key(store, clinic.secrets_directory / "site-key"))
    devices = [DeviceId(f"A4CF{number:08X}") for number in range(LOADERS)]
    for number, device in enumerate(devices):
        patient = await records.patients.add(
            number=f"L-{number}", initials="L.L.", bed=f"{number}", account=None
        )
        await records.devices.link(device, patient.key, None, now=datetime.now(UTC))
        await asyncio.to_thread(issue_device, clinic.mosquitto.pki_directory, device)
    before = await records.readings.head()
    began = time.monotonic()
    child = Child.start(
        [sys.executable, "-m", "benchmarks.alarm_latency", str(clinic.options.ports.broker),
         str(clinic.mosquitto.pki_directory), str(clinic.mosquitto.ca_file)],
        env=environment_without_proxies(),
        log_path=clinic.directory / "load.log",
        name="load",
    )  # fmt: skip
    try:
        async with asyncio.timeout(60):
            while await records.readings.head() < before + 10 * LOAD_PER_S:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        before, began = await records.readings.head(), time.monotonic()
        yield
        rate = (await records.readings.head() - before) / (time.monotonic() - began)
        print(f"ingested meanwhile: {rate:.0f} readings/s")
    finally:
        await child.stop()
        await store.close()


def _send(port: int, pki: Path, ca_file: Path) -> None:
    """Send until ended, one monitor after the other.

    Packets are written by hand (MQTT 3.1.1, section 3.3): a client library's thread for each
    monitor would take from the two cores what the alarm is measured with.
    """
    doors = []
    for number in range(LOADERS):
        device = f"A4CF{number:08X}"
        credentials = issue_device(pki, device)
        context = ssl.create_default_context(cafile=str(ca_file))
        context.load_cert_chain(credentials.cert_file, credentials.key_file)
        door = context.wrap_socket(
            socket.create_connection((LOOPBACK, port)), server_hostname=LOOPBACK
        )
        door.sendall(_packet(0x10, _text("MQTT") + b"\x04\x02\x00\x00" + _text(device)))
        door.recv(4)  # CONNACK
        doors.append((_text(V1_TOPIC.format(device=device)), device, door))
    began, sent = time.monotonic(), 0
    while True:
        pause = began + sent / LOAD_PER_S - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        topic, device, door = doors[sent % LOADERS]
        number = 1 + sent // LOADERS % 0xFFFF
        body = topic + number.to_bytes(2, "big") + _payload(device, 97).encode()
        door.sendall(_packet(0x32, body))  # PUBLISH, QoS 1
        if number % 16 == 0:
            door.recv(4096)  # PUBACKs
        sent += 1


def _packet(kind: int, body: bytes) -> bytes:
    """An MQTT packet; bodies here are longer than none and shorter than 16 384 bytes."""
    size = len(body)
    length = bytes([size]) if size < 128 else bytes([size & 0x7F | 0x80, size >> 7])
    return bytes([kind]) + length + body


def _text(value: str) -> bytes:
    return len(value).to_bytes(2, "big") + value.encode()


def _payload(device: str, spo2: int) -> str:
    values = {"heart_rate": 80, "spo2": spo2, "temperature": 37.0}
    return json.dumps({"device_id": device, "timestamp": time.time_ns() // 1_000_000, **values})


async def _alarm(monitor: _Monitor, observer: Observer, spo2: int) -> float:
    before = len(observer.seen)
    started = time.time()
    monitor.publish(spo2)
    seen = await observer.wait_for(
        lambda one: isinstance(one.content, AlarmBlock) and observer.seen.index(one) >= before, 20
    )
    return (seen.at - started) * 1000


class _Monitor:
    """A paho client with the first patient's certificate."""

    def __init__(self, clinic: Clinic, device: str) -> None:
        self._device = device
        credentials = issue_device(clinic.mosquitto.pki_directory, self._device)
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id=self._device)
        self._client.tls_set(
            str(clinic.mosquitto.ca_file), str(credentials.cert_file), str(credentials.key_file)
        )
        self._client.connect("127.0.0.1", clinic.options.ports.broker)
        self._client.loop_start()

    def publish(self, spo2: int) -> None:
        self._client.publish(
            V1_TOPIC.format(device=self._device), _payload(self._device, spo2), qos=1
        )

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class _Floor:
    """Sends as the second patient by the plain API; the doctor receives in /sync."""

    def __init__(self, clinic: Clinic) -> None:
        self._clinic = clinic
        self._url = f"{clinic.synapse.base_url}/_matrix/client/v3"
        self._session = aiohttp.ClientSession()
        self.bare_room = ""
        self._tokens: tuple[str, str] = ("", "")
        self._arrived: dict[str, float] = {}
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        clinic = self._clinic
        for account in (DOCTOR, PATIENTS[1].account):
            await clinic.synapse.exempt_from_rate_limits(clinic.mxid(account))
        self._tokens = (
            await clinic.synapse.login(PATIENTS[1].account, clinic.password(PATIENTS[1].account)),
            await clinic.synapse.login(DOCTOR, clinic.password(DOCTOR)),
        )
        await self._call(0, "POST", f"join/{clinic.rooms[PATIENTS[1].number]}", {})
        room = await self._call(
            0,
            "POST",
            "createRoom",
            {"preset": "private_chat", "invite": [clinic.mxid(DOCTOR)]},
        )
        self.bare_room = room["room_id"]
        await self._call(1, "POST", f"join/{self.bare_room}", {})
        self._syncing = asyncio.create_task(self._sync())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._syncing.cancel()
        await asyncio.gather(self._syncing, return_exceptions=True)
        await self._session.close()

    async def sample(self, room_id: str) -> float:
        content = {
            "algorithm": "m.megolm.v1.aes-sha2",
            "ciphertext": secrets.token_urlsafe(CIPHERTEXT_BYTES * 3 // 4),
            "sender_key": secrets.token_urlsafe(32),
            "session_id": secrets.token_urlsafe(32),
            "device_id": "FLOOR",
        }
        started = time.time()
        answer = await self._call(
            0, "PUT", f"rooms/{room_id}/send/m.room.encrypted/{secrets.token_hex(8)}", content
        )
        async with asyncio.timeout(20):
            while answer["event_id"] not in self._arrived:
                self._news.clear()
                await self._news.wait()
        return (self._arrived[answer["event_id"]] - started) * 1000

    async def _sync(self) -> None:
        since = ""
        while True:
            path = f"sync?timeout=30000{f'&since={since}' if since else ''}"
            answer = await self._call(1, "GET", path)
            now = time.time()
            for joined in answer.get("rooms", {}).get("join", {}).values():
                for event in joined.get("timeline", {}).get("events", []):
                    self._arrived[event["event_id"]] = now
            self._news.set()
            since = answer["next_batch"]

    async def _call(
        self, who: int, method: str, path: str, body: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._tokens[who]}"}
        async with self._session.request(
            method, f"{self._url}/{path}", json=body, headers=headers
        ) as response:
            response.raise_for_status()
            answer: dict[str, Any] = await response.json()
            return answer


if __name__ == "__main__":
    broker_port, authority, ca = sys.argv[1:]
    _send(int(broker_port), Path(authority), Path(ca))
