"""From MQTT publish to the decrypted alarm at a syncing clinician, beside its floor.

The floor is an encrypted event of the same size, sent by the plain client-server API and received
in ``/sync``, with no cryptography and nothing of FAJMA in between. Both are measured in turn in one
run, against one homeserver (Synapse, one process, SQLite) that does nothing else meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import aiohttp
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.record import record
from console.clinic import DOCTOR, PATIENTS, WITNESS, Clinic, Options, Ports
from console.observer import Observer
from console.pki import issue_device
from fajma.events import AlarmBlock
from fajma.wire import V1_TOPIC

SAMPLES = 60
WARM_UP = 6
PAUSE_S = 0.3
"""Between two samples, so that the homeserver is idle again."""

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


def alarm_latency_idle() -> None:
    """One alarm at a time on an idle system, confirmation set to one reading."""
    alarms, floors = asyncio.run(_measure())
    for name, of in {"p50": 0.50, "p99": 0.99}.items():
        value, floor = _quantile(alarms, of), _quantile(floors, of)
        suffix = "" if name == "p50" else f"_{name}"
        record(
            f"alarm_latency_idle{suffix}",
            value,
            "ms",
            aim="<= 2 x the floor" if name == "p50" else "reported",
            met=name != "p50" or value <= 2 * floor,
            reference=f"floor {name}: same-size event by the plain API into /sync",
            reference_value=floor,
        )


def _quantile(values: list[float], of: float) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[round(of * 100) - 1]


async def _measure() -> tuple[list[float], list[float]]:
    directory = Path(tempfile.mkdtemp())
    clinic = Clinic(Options(directory, Ports.free(), "mosquitto", SETTINGS))
    observer = Observer(clinic.synapse.base_url, clinic.mxid(DOCTOR), directory / "observer")
    alarms: list[float] = []
    floors: list[float] = []
    try:
        await clinic.start()
        await observer.start(clinic.password(DOCTOR))
        await clinic.open_consultations()
        monitor = _Monitor(clinic)
        async with _Floor(clinic) as floor:
            for number in range(SAMPLES + WARM_UP):
                floor_ms = await floor.sample()
                await asyncio.sleep(PAUSE_S)
                alarm_ms = await _alarm(monitor, observer, 86 if number % 2 == 0 else 97)
                await asyncio.sleep(PAUSE_S)
                if number >= WARM_UP:
                    floors.append(floor_ms)
                    alarms.append(alarm_ms)
        monitor.close()
    finally:
        await observer.stop()
        await clinic.stop()
        shutil.rmtree(directory)
    return alarms, floors


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

    def __init__(self, clinic: Clinic) -> None:
        self._device = PATIENTS[0].device
        credentials = issue_device(clinic.mosquitto.pki_directory, self._device)
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id=self._device)
        self._client.tls_set(
            str(clinic.mosquitto.ca_file), str(credentials.cert_file), str(credentials.key_file)
        )
        self._client.connect("127.0.0.1", clinic.options.ports.broker)
        self._client.loop_start()

    def publish(self, spo2: int) -> None:
        payload = {
            "device_id": self._device,
            "timestamp": time.time_ns() // 1_000_000,
            "heart_rate": 80,
            "spo2": spo2,
            "temperature": 37.0,
        }
        self._client.publish(V1_TOPIC.format(device=self._device), json.dumps(payload), qos=1)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class _Floor:
    """Sends by the plain API, receives in /sync; two accounts, a room of their own."""

    def __init__(self, clinic: Clinic) -> None:
        self._clinic = clinic
        self._url = f"{clinic.synapse.base_url}/_matrix/client/v3"
        self._session = aiohttp.ClientSession()
        self._room = ""
        self._tokens: tuple[str, str] = ("", "")
        self._arrived: dict[str, float] = {}
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        clinic = self._clinic
        for account in (WITNESS, PATIENTS[1].account):
            await clinic.synapse.exempt_from_rate_limits(clinic.mxid(account))
        self._tokens = (
            await clinic.synapse.login(WITNESS, clinic.password(WITNESS)),
            await clinic.synapse.login(PATIENTS[1].account, clinic.password(PATIENTS[1].account)),
        )
        room = await self._call(
            0,
            "POST",
            "createRoom",
            {"preset": "private_chat", "invite": [clinic.mxid(PATIENTS[1].account)]},
        )
        self._room = room["room_id"]
        await self._call(1, "POST", f"join/{self._room}", {})
        self._syncing = asyncio.create_task(self._sync())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._syncing.cancel()
        await asyncio.gather(self._syncing, return_exceptions=True)
        await self._session.close()

    async def sample(self) -> float:
        content = {
            "algorithm": "m.megolm.v1.aes-sha2",
            "ciphertext": secrets.token_urlsafe(CIPHERTEXT_BYTES * 3 // 4),
            "sender_key": secrets.token_urlsafe(32),
            "session_id": secrets.token_urlsafe(32),
            "device_id": "FLOOR",
        }
        started = time.time()
        answer = await self._call(
            0, "PUT", f"rooms/{self._room}/send/m.room.encrypted/{secrets.token_hex(8)}", content
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
            joined = answer.get("rooms", {}).get("join", {}).get(self._room, {})
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
