"""The monitor's core as a Linux process, at a real broker and with the real ingest."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from bridges.mqtt_vitals.subscriber import CLIENT_ID
from console.device_keys import DeviceKeys, as_text
from console.mosquitto import Mosquitto
from console.processes import free_port
from fajma.store import Records, to_ms
from fajma.store.consultations import Consultation
from fajma.vitals import Age, DeviceId, Kind
from fajma.wire import Channel, PayloadKey, cbor, seal_downlink, v2_topic
from fajma.wire.v2 import base_name
from tests.integration.bridge import ingesting

Admit = Callable[..., Awaitable[Consultation]]

ROOT = Path(__file__).parents[2]
DEVICE = DeviceId("A4CF12F0BB02")
FIRST = 1 << 32
WITHIN_S = 30.0
KILLS = 12


@pytest.fixture(scope="module")
def program() -> Path:
    """The virtual monitor, built in its own folder: other tests build the firmware meanwhile."""
    built_in = ROOT / "build/firmware-host"
    built = subprocess.run(
        ["make", "-j2", "-C", str(ROOT / "firmware"), "-s", "host", f"OUT={built_in}"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert built.returncode == 0, built.stderr[-4000:]
    return built_in / "fajma-monitor"


class Twin:
    """A virtual monitor with its flash, started again and again; remembers all it said."""

    def __init__(self, program: Path, mosquitto: Mosquitto, keys: Path, flash: Path) -> None:
        self.keys = DeviceKeys.read(keys)
        issued = mosquitto.issue_device(DEVICE)
        self._command = [
            *(str(program), "--port", str(mosquitto.port), "--ca", str(mosquitto.ca_file)),
            *("--cert", str(issued.cert_file), "--key", str(issued.key_file)),
            *("--keys", str(keys), "--flash", str(flash)),
        ]
        self.told: list[dict[str, Any]] = []

    @contextlib.asynccontextmanager
    async def running(self, *more: str) -> AsyncIterator[asyncio.subprocess.Process]:
        process = await asyncio.create_subprocess_exec(
            *self._command, *more, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            rest = await process.stdout.read()
            self._hear(rest.splitlines())
            await process.wait()

    async def says(self, process: asyncio.subprocess.Process, count: int) -> None:
        """Wait for so many readings more."""
        assert process.stdout is not None
        async with asyncio.timeout(WITHIN_S):
            for _ in range(count):
                self._hear([await process.stdout.readline()])

    async def plays(self, *more: str) -> None:
        """Run it to its end: everything is acknowledged then."""
        async with self.running(*more) as process, asyncio.timeout(WITHIN_S):
            assert process.stdout is not None
            self._hear((await process.stdout.read()).splitlines())
            assert await process.wait() == 0

    def _hear(self, lines: list[bytes]) -> None:
        self.told += [json.loads(line) for line in lines if line]


async def twin_of(
    program: Path, mosquitto: Mosquitto, records: Records, admit: Admit, tmp_path: Path
) -> Twin:
    """One that is enrolled, and worn by a patient."""
    await admit(records, DEVICE)
    raw = os.urandom(64)
    pair = await records.devices.new_keys(DEVICE, now=datetime.now(UTC), raw=raw)
    keys = tmp_path / "keys.json"
    keys.touch(mode=0o600)
    keys.write_text(as_text(DEVICE, pair.version, raw), encoding="ascii")
    return Twin(program, mosquitto, keys, tmp_path / "flash")


@pytest.fixture
async def twin(
    program: Path, mosquitto: Mosquitto, sqlite_records: Records, admit: Admit, tmp_path: Path
) -> Twin:
    return await twin_of(program, mosquitto, sqlite_records, admit, tmp_path)


async def numbers_of(records: Records) -> list[int]:
    rows = await records.store.db.fetch("SELECT record FROM reading ORDER BY position")
    return [int.from_bytes(bytes(row["record"])) for row in rows]


async def each_once_in_order(twin: Twin, records: Records, *, most_untold: int) -> None:
    """Each sample that was told is in the log once, in order, with its own time."""
    stored = await numbers_of(records)
    assert stored == sorted(set(stored))
    readings = await records.readings.after(0, limit=10_000)
    at_ms = {
        number: to_ms(one.reading.measured_at) for number, one in zip(stored, readings, strict=True)
    }
    told = {one["seq"]: one["at_ms"] for one in twin.told}
    assert len(told) == len(twin.told) > 0
    assert {number: at_ms.get(number) for number in told} == told
    # What was in flash, but could not be told any more when the process was killed.
    assert len(stored) - len(told) <= most_untold
    settled = await records.store.db.fetchrow("SELECT * FROM device_sequence")
    assert settled["contiguous"] == stored[-1]
    counted = await records.store.db.fetchrow("SELECT COUNT(*) AS refused FROM quarantine")
    assert counted["refused"] == 0


async def test_a_monitor_killed_again_and_again_has_each_sample_in_the_log_once_in_order(
    twin: Twin, mosquitto: Mosquitto, sqlite_records: Records
) -> None:
    records = sqlite_records
    dice = random.Random(20)
    async with contextlib.AsyncExitStack() as stack:
        for killed in range(KILLS):
            if killed == KILLS // 3:  # until then nobody was there to acknowledge anything
                await stack.enter_async_context(ingesting(mosquitto, records))
            async with twin.running("--every-ms", "4") as process:
                await twin.says(process, dice.randrange(1, 40))
                process.kill()
        await twin.plays("--every-ms", "4", "--count", "10")
    await each_once_in_order(twin, records, most_untold=KILLS)
    assert {one["boot"] for one in twin.told} == set(range(1, KILLS + 2))


async def test_a_broker_killed_again_and_again_costs_no_sample(
    program: Path, sqlite_records: Records, admit: Admit, tmp_path: Path
) -> None:
    mosquitto = Mosquitto(tmp_path / "broker", free_port())
    await mosquitto.start()
    try:
        twin = await twin_of(program, mosquitto, sqlite_records, admit, tmp_path)
        async with ingesting(mosquitto, sqlite_records), twin.running("--every-ms", "5") as process:
            for _ in range(3):
                await twin.says(process, 60)
                assert mosquitto.pid is not None
                os.kill(mosquitto.pid, signal.SIGKILL)
                await twin.says(process, 60)
                await mosquitto.stop()  # reaps what was killed
                await mosquitto.start()
            process.terminate()
            await process.wait()
            await twin.plays("--count", "1")
    finally:
        await mosquitto.stop()
    await each_once_in_order(twin, sqlite_records, most_untold=0)


async def test_what_it_measures_arrives_as_it_was_measured(
    twin: Twin, mosquitto: Mosquitto, sqlite_records: Records
) -> None:
    async with ingesting(mosquitto, sqlite_records):
        await twin.plays("--every-ms", "20", "--count", "8")
    stored = [one.reading for one in await sqlite_records.readings.after(0, limit=100)]
    assert [int(one.values[Kind.HEART_RATE]) for one in stored] == [
        one["heart_rate"] for one in twin.told
    ]
    assert [to_ms(one.measured_at) for one in stored] == [one["at_ms"] for one in twin.told]
    assert [one["seq"] for one in twin.told] == list(range(FIRST, FIRST + 8))
    assert {one.quality for one in stored} == {95}


async def test_a_clock_two_hours_wrong_is_set_by_our_first_answer_and_what_it_said_before_is_marked(
    twin: Twin, mosquitto: Mosquitto, sqlite_records: Records
) -> None:
    def behind_ms() -> int:
        return to_ms(datetime.now(UTC)) - int(twin.told[-1]["at_ms"])

    async with ingesting(mosquitto, sqlite_records):
        wrong = ("--every-ms", "50", "--clock-offset-ms", "-7200000")
        async with twin.running(*wrong) as process:
            await twin.says(process, 1)
            assert behind_ms() >= 7_200_000
            while behind_ms() > 60_000:
                await twin.says(process, 1)
            process.terminate()
        await twin.plays("--count", "1")
    stored = [one.reading for one in await sqlite_records.readings.after(0, limit=10_000)]
    assert [one["seq"] for one in twin.told] == await numbers_of(sqlite_records)
    assert (stored[0].age, stored[-1].age) == (Age.LATE, Age.LIVE)


async def test_a_sealed_configuration_reaches_it_through_the_broker_and_outlives_a_restart(
    twin: Twin, mosquitto: Mosquitto
) -> None:
    issued = mosquitto.issue_bridge()
    heard = threading.Event()
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=CLIENT_ID)
    client.tls_set(str(mosquitto.ca_file), str(issued.cert_file), str(issued.key_file))
    client.on_connect = lambda *_: client.subscribe(v2_topic(DEVICE, Channel.VITALS), qos=1)
    client.on_message = lambda *_: heard.set()
    client.connect(mosquitto.host, mosquitto.port)
    client.loop_start()
    topic = v2_topic(DEVICE, Channel.CONFIG)

    def sealed(key: PayloadKey, counter: int, period_ms: int) -> bytes:
        records = [
            {-2: base_name(DEVICE), 0: "counter", 2: counter},
            {0: "period", 1: "ms", 2: period_ms},
        ]
        return seal_downlink(topic, key, twin.keys.version, cbor.encode(records))

    try:
        async with twin.running() as process:
            assert await asyncio.to_thread(heard.wait, WITHIN_S)  # so it has subscribed
            client.publish(topic, sealed(twin.keys.up, 9, 60_000), qos=1)  # not with our key
            client.publish(topic, sealed(twin.keys.down, 1, 1000), qos=1)
            await twin.says(process, 3)
    finally:
        client.disconnect()
        client.loop_stop()
    first, second, third = (one["mono_ms"] for one in twin.told[:3])
    assert second - first >= 5000
    assert 1000 <= third - second < 5000
    async with twin.running() as process:
        await twin.says(process, 2)
    before, last = (one["mono_ms"] for one in twin.told[-2:])
    assert 1000 <= last - before < 5000


async def test_a_second_process_does_not_take_the_flash_of_the_first(twin: Twin) -> None:
    async with twin.running("--every-ms", "10") as process:
        await twin.says(process, 1)
        async with twin.running() as second, asyncio.timeout(WITHIN_S):
            assert await second.wait() == 1
