"""What can be promised for v1 at QoS 1, what cannot, and that v2 keeps its promise beside it.

A v1 monitor forgets a reading at the broker's PUBACK. Each test says what a broker that is killed
(SIGKILL) makes of readings that it has acknowledged; ``docs/wire.md`` tells people.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from bridges.mqtt_vitals.ingest import Ingest
from bridges.mqtt_vitals.subscriber import Subscriber
from console.device_keys import DeviceKeys
from console.journal_files import JournalFiles
from console.leak_scan import Needle, scan
from console.monitor_v1 import simulate
from console.monitor_v2 import Broker, Monitor, Resend, run_while
from console.mosquitto import Mosquitto
from console.processes import free_port
from console.simulation import Options, tls_context
from fajma.config import Mqtt
from fajma.store import Records, to_ms
from fajma.store.consultations import Consultation
from fajma.tasks import end
from fajma.vitals import DeviceId, Kind
from fajma.wire import Channel, base_name, v2_topic
from tests.chaos.grounds import ForgetfulMosquitto

Admit = Callable[..., Awaitable[Consultation]]

V1 = [DeviceId(f"A4CF12F0EE{number:02X}") for number in range(4)]
V2 = DeviceId("A4CF12F0EEFF")
WITHIN_S = 60.0


class Ward:
    """A broker to kill, v1 monitors that remember what it acknowledged, and one of v2.

    Attributes:
        told: device and time of each v1 reading that the broker has acknowledged.
    """

    def __init__(self, mosquitto: Mosquitto, records: Records) -> None:
        self.mosquitto = mosquitto
        self.records = records
        self.told: list[tuple[str, int]] = []

    def options(self, device: DeviceId, **more: object) -> Options:
        issued = self.mosquitto.issue_device(device)
        return Options(
            device,
            port=self.mosquitto.port,
            ca=self.mosquitto.ca_file,
            cert=issued.cert_file,
            key=issued.key_file,
            **more,  # type: ignore[arg-type]
        )

    async def play_v1(self, options: Options, *, then: Callable[[], None] = lambda: None) -> None:
        """A v1 monitor; ``then`` is called in its thread at each PUBACK."""

        def say(line: str) -> None:
            stated = json.loads(line)
            self.told.append((stated["device"], stated["sent_at_ms"]))
            then()

        await asyncio.to_thread(simulate, options, say=say, warn=lambda _: None)

    async def monitor_v2(self, files: JournalFiles) -> Monitor:
        pair = await self.records.devices.new_keys(V2, now=datetime.now(UTC))
        keys = DeviceKeys(V2, pair.version, pair.up, pair.down)
        tls = tls_context(self.options(V2))
        assert tls is not None
        broker = Broker(self.mosquitto.host, self.mosquitto.port, tls)
        return Monitor(broker, keys, files, resend=Resend(first_s=0.3, longest_s=0.6))

    def kill_broker(self) -> None:
        assert self.mosquitto.pid is not None
        os.kill(self.mosquitto.pid, signal.SIGKILL)

    async def start_broker(self) -> None:
        await self.mosquitto.stop()  # reaps what was killed
        await self.mosquitto.start()

    @contextlib.asynccontextmanager
    async def ingest(self) -> AsyncIterator[None]:
        bridge = self.mosquitto.issue_bridge()
        settings = Mqtt(
            host=self.mosquitto.host,
            port=self.mosquitto.port,
            ca_file=self.mosquitto.ca_file,
            cert_file=bridge.cert_file,
            key_file=bridge.key_file,
        )
        subscriber = Subscriber(settings, Ingest(self.records))
        task = asyncio.create_task(subscriber.run())
        async with asyncio.timeout(WITHIN_S):
            await subscriber.subscribed.wait()
        yield
        await end([task])

    async def last_word(self) -> None:
        """Until a v1 reading that comes after all others is in the log."""
        woken = self.records.store.hints.subscribe("readings")
        await self.play_v1(self.options(V1[0], count=1))
        last = self.told.pop()
        async with asyncio.timeout(WITHIN_S):
            while last not in await self.stored():
                await self.records.store.hints.wait(woken)

    async def stored(self) -> set[tuple[str, int]]:
        readings = [one.reading for one in await self.records.readings.after(0, limit=100_000)]
        return {(one.device, to_ms(one.measured_at)) for one in readings}

    async def lost(self) -> list[tuple[str, int]]:
        stored = await self.stored()
        return [one for one in self.told if one not in stored]


@contextlib.asynccontextmanager
async def ward_of(mosquitto: Mosquitto, records: Records, admit: Admit) -> AsyncIterator[Ward]:
    for device in (*V1, V2):
        await admit(records, device)
    ward = Ward(mosquitto, records)
    await mosquitto.start()
    async with ward.ingest():
        pass  # from now on the broker keeps a session for it
    yield ward
    await mosquitto.stop()


@pytest.fixture
async def saving(sqlite_records: Records, admit: Admit, tmp_path: Path) -> AsyncIterator[Ward]:
    """Our configuration: the broker saves."""
    mosquitto = Mosquitto(tmp_path / "mosquitto", free_port())
    async with ward_of(mosquitto, sqlite_records, admit) as ward:
        yield ward


@pytest.fixture
async def forgetful(sqlite_records: Records, admit: Admit, tmp_path: Path) -> AsyncIterator[Ward]:
    """Not our configuration: the broker saves nothing."""
    mosquitto = ForgetfulMosquitto(tmp_path / "mosquitto", free_port())
    async with ward_of(mosquitto, sqlite_records, admit) as ward:
        yield ward


async def test_a_broker_without_persistence_loses_what_it_acknowledged_to_v1_and_nothing_of_v2(
    forgetful: Ward, tmp_path: Path
) -> None:
    ward = forgetful
    with JournalFiles(tmp_path / "journal", V2, 1) as files:
        monitor = await ward.monitor_v2(files)
        measured = [monitor.measure({Kind.SPO2: Decimal(97)}) for _ in range(20)]
        await run_while([monitor], ward.play_v1(ward.options(V1[0], count=20, speed=1000)))
        ward.kill_broker()
        await ward.start_broker()
        async with ward.ingest():
            async with asyncio.timeout(WITHIN_S):
                await run_while([monitor], monitor.settled())
            await ward.last_word()
    assert len(ward.told) == 20
    assert await ward.lost() == ward.told
    rows = await ward.records.store.db.fetch(
        "SELECT record FROM reading WHERE device_id=$1 ORDER BY position", V2
    )
    assert [int.from_bytes(bytes(row["record"])) for row in rows] == [one.seq for one in measured]


async def test_the_file_of_a_broker_shows_what_v1_says_and_nothing_of_v2(
    saving: Ward, tmp_path: Path
) -> None:
    """Guarantee 1: no vital of a v2 monitor in clear in a broker's persistence file."""
    ward = saving
    said = {
        V1[0]: {Kind.HEART_RATE: Decimal("71.4093"), Kind.SPO2: Decimal("96.5127")},
        V2: {Kind.HEART_RATE: Decimal("83.7461"), Kind.SPO2: Decimal("95.2853")},
    }
    needles = {
        device: [Needle.for_number(value, label=device) for value in values.values()]
        for device, values in said.items()
    }
    recording = tmp_path / "recording.csv"
    recording.write_text("HR,SpO2\n" + ",".join(map(str, said[V1[0]].values())) + "\n")
    file = ward.mosquitto.directory / "mosquitto.db"
    topic = v2_topic(V2, Channel.VITALS).encode()

    async def both_are_saved() -> None:
        await ward.play_v1(ward.options(V1[0], replay=recording))
        async with asyncio.timeout(WITHIN_S):
            while not (file.exists() and topic in file.read_bytes()):  # noqa: ASYNC110
                await asyncio.sleep(0.05)  # no event tells of a file

    with JournalFiles(tmp_path / "journal", V2, 1) as files:
        monitor = await ward.monitor_v2(files)
        monitor.measure(said[V2])
        await run_while([monitor], both_are_saved())
    await ward.mosquitto.stop()
    found = {leak.needle_label for leak in scan([file], [*needles[V1[0]], *needles[V2]])}
    assert found == {V1[0]}
    # Nor anything of a pack that is not sealed, in which values need not stand as text.
    assert base_name(V2).encode() not in file.read_bytes()


async def test_a_puback_proves_nothing_even_of_a_broker_that_saves(
    saving: Ward,
) -> None:
    ward = saving
    for number in range(10):
        device = V1[number % len(V1)]
        await ward.play_v1(ward.options(device, count=1), then=ward.kill_broker)
        await ward.start_broker()
    async with ward.ingest():
        await ward.last_word()
    # It acknowledges first and saves then: up to a second in which a reading can be lost.
    assert len(ward.told) == 10
    assert len(await ward.lost()) >= 1


async def test_what_a_broker_has_saved_waits_for_ingest_however_often_the_broker_is_killed(
    saving: Ward,
) -> None:
    ward = saving
    for device in V1:
        await ward.play_v1(ward.options(device, count=5, speed=1000))
        await ward.mosquitto.stop()  # in peace: it has saved everything
        await ward.mosquitto.start()
        ward.kill_broker()
        await ward.start_broker()
    async with ward.ingest():
        await ward.last_word()
    assert len(ward.told) == 20
    assert await ward.lost() == []


@pytest.mark.slow
async def test_a_broker_that_saves_and_is_killed_under_load_lost_nothing_while_ingest_was_there(
    saving: Ward,
) -> None:
    ward = saving
    chance = random.Random(4)
    stop = threading.Event()

    class StoppedError(Exception):
        """The monitor is switched off."""

    def unless_stopped() -> None:
        if stop.is_set():
            raise StoppedError

    async def until_stopped(device: DeviceId) -> None:
        with contextlib.suppress(StoppedError):
            await ward.play_v1(ward.options(device, every_s=0.05), then=unless_stopped)

    async with ward.ingest():
        playing = [asyncio.create_task(until_stopped(device)) for device in V1]
        for _ in range(10):
            # The moment is what varies; long enough for the monitors to be back.
            await asyncio.sleep(chance.uniform(0.7, 1.2))
            ward.kill_broker()
            await ward.start_broker()
        stop.set()
        await asyncio.gather(*playing)
        await ward.last_word()
    assert len(ward.told) >= 100
    assert await ward.lost() == []
