"""A v2 monitor at a real broker, with us in the hand of the test or with the real ingest."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Self

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from bridges.mqtt_vitals.subscriber import CLIENT_ID
from console import device as command
from console.device_keys import DeviceKeys, as_text
from console.journal_files import JournalFiles, read_ledger
from console.monitor_v2 import Broker, Monitor, Resend, play, run_while
from console.mosquitto import Mosquitto
from console.simulation import Options, pace, tls_context
from fajma.errors import InputError, UnavailableError
from fajma.store import Records
from fajma.store.consultations import Consultation
from fajma.tasks import end
from fajma.vitals import DeviceId, Kind
from fajma.wire import (
    Ack,
    Channel,
    Gap,
    Item,
    Pack,
    PayloadKey,
    decode_pack,
    encode_ack,
    open_downlink,
    open_envelope,
    parse_envelope,
    seal_downlink,
    v2_topic,
)
from tests.integration.bridge import ingesting

Admit = Callable[..., Awaitable[Consultation]]

ROOT = Path(__file__).parents[2]
DEVICE = DeviceId("A4CF12F0BB01")
FIRST = 1 << 32
RAW = bytes(range(64))
VITALS, ACK, STATUS = (v2_topic(DEVICE, one) for one in (Channel.VITALS, Channel.ACK,
                                                          Channel.STATUS))  # fmt: skip
WITHIN_S = 20.0
AGAIN = Resend(first_s=0.2, longest_s=0.4)


@dataclass(frozen=True)
class Heard:
    """A message as it came."""

    topic: str
    payload: bytes
    retained: bool


class Bridge:
    """Us, in the hand of a test: hears everything, and answers only what it is told to."""

    def __init__(self, mosquitto: Mosquitto, keys: DeviceKeys) -> None:
        issued = mosquitto.issue_bridge()
        self._at = (mosquitto.host, mosquitto.port)
        self._keys = keys
        self._loop = asyncio.get_running_loop()
        self._heard: asyncio.Queue[Heard] = asyncio.Queue()
        self.subscribed = asyncio.Event()
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=CLIENT_ID, protocol=MQTTProtocolVersion.MQTTv5
        )
        self.client.tls_set(str(mosquitto.ca_file), str(issued.cert_file), str(issued.key_file))
        self.client.on_connect = lambda client, *_: client.subscribe([(VITALS, 1), (STATUS, 1)])
        self.client.on_subscribe = lambda *_: self._tell(self.subscribed.set)
        self.client.on_message = self._on_message

    def _tell(self, what: Callable[..., object], *arguments: object) -> None:
        self._loop.call_soon_threadsafe(what, *arguments)

    def _on_message(self, _: object, __: object, message: paho.MQTTMessage) -> None:
        heard = Heard(message.topic, bytes(message.payload), message.retain)
        self._tell(self._heard.put_nowait, heard)

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.client.connect, *self._at, clean_start=True)
        self.client.loop_start()
        async with asyncio.timeout(WITHIN_S):
            await self.subscribed.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.client.disconnect()
        await asyncio.to_thread(self.client.loop_stop)

    async def hears(self, topic: str) -> Heard:
        async with asyncio.timeout(WITHIN_S):
            while True:
                heard = await self._heard.get()
                if heard.topic == topic:
                    return heard

    async def pack(self) -> Pack:
        return self.opened((await self.hears(VITALS)).payload)

    def opened(self, payload: bytes) -> Pack:
        return decode_pack(open_envelope(parse_envelope(payload), self._keys.up, VITALS), DEVICE)

    def answer(self, record: int, *, key: PayloadKey | None = None) -> None:
        content = encode_ack(DEVICE, Ack(record, datetime.now(UTC)))
        self.client.publish(
            ACK, seal_downlink(ACK, key or self._keys.down, self._keys.version, content)
        )


def values(pulse: int) -> dict[Kind, Decimal]:
    return {Kind.HEART_RATE: Decimal(pulse), Kind.SPO2: Decimal(97)}


def numbers(pack: Pack) -> list[int]:
    return [one.seq - FIRST for one in pack.items if isinstance(one, Item)]


@pytest.fixture
def keys(tmp_path: Path) -> DeviceKeys:
    path = tmp_path / "keys.json"
    path.touch(mode=0o600)
    path.write_text(as_text(DEVICE, 1, RAW), encoding="ascii")
    return DeviceKeys.read(path)


@pytest.fixture
def broker(mosquitto: Mosquitto) -> Broker:
    return broker_of(mosquitto)


def broker_of(mosquitto: Mosquitto, device: str = DEVICE) -> Broker:
    issued = mosquitto.issue_device(device)
    options = Options(DEVICE, ca=mosquitto.ca_file, cert=issued.cert_file, key=issued.key_file)
    tls = tls_context(options)
    assert tls is not None
    return Broker(mosquitto.host, mosquitto.port, tls)


@pytest.fixture
async def bridge(mosquitto: Mosquitto, keys: DeviceKeys) -> AsyncIterator[Bridge]:
    async with Bridge(mosquitto, keys) as bridge:
        yield bridge


@pytest.fixture
async def monitor(broker: Broker, keys: DeviceKeys, tmp_path: Path) -> AsyncIterator[Monitor]:
    with JournalFiles(tmp_path / "journal", DEVICE, 1) as files:
        async with running(Monitor(broker, keys, files, resend=AGAIN)) as monitor:
            yield monitor


@contextlib.asynccontextmanager
async def running(monitor: Monitor) -> AsyncIterator[Monitor]:
    task = asyncio.create_task(monitor.run())
    yield monitor
    await end([task])


# --- what it sends -------------------------------------------------------------------------------


async def test_what_is_not_acknowledged_is_sent_again_sealed_anew_with_what_came_since(
    bridge: Bridge, monitor: Monitor
) -> None:
    first = monitor.measure(values(70))
    sent = await bridge.hears(VITALS)
    monitor.measure(values(71))
    again = await bridge.hears(VITALS)
    assert parse_envelope(sent.payload).nonce != parse_envelope(again.payload).nonce
    packs = [bridge.opened(one.payload) for one in (sent, again)]
    assert [numbers(one) for one in packs] == [[0], [0, 1]]
    assert [one.oldest for one in packs] == [FIRST, FIRST]
    assert packs[0].items[0] == packs[1].items[0] == first
    assert packs[1].sent_ms > packs[0].sent_ms >= first.mono_ms
    bridge.answer(FIRST + 1)
    async with asyncio.timeout(WITHIN_S):
        await monitor.settled()
    monitor.measure(values(72))
    while numbers(pack := await bridge.pack()) != [2]:
        pass  # what was on its way
    assert pack.oldest == FIRST + 2


async def test_an_answer_with_another_key_or_to_what_was_never_measured_deletes_nothing(
    bridge: Bridge, monitor: Monitor, keys: DeviceKeys
) -> None:
    monitor.measure(values(70))
    await bridge.pack()
    bridge.client.publish(ACK, b"nonsense")
    bridge.answer(FIRST, key=keys.up)
    bridge.answer(FIRST + 7)
    bridge.answer(FIRST - 1)
    monitor.measure(values(71))
    while numbers(pack := await bridge.pack()) == [0]:
        pass
    assert numbers(pack) == [0, 1]


async def test_one_pack_is_on_its_way_at_a_time_and_none_is_too_large(
    bridge: Bridge, broker: Broker, keys: DeviceKeys, tmp_path: Path
) -> None:
    longest = {
        Kind.HEART_RATE: Decimal("123.4567"),
        Kind.SPO2: Decimal("97.1234"),
        Kind.TEMPERATURE: Decimal("37.1234"),
        Kind.SYSTOLIC: Decimal("123.1234"),
        Kind.DIASTOLIC: Decimal("81.1234"),
    }
    with JournalFiles(tmp_path / "journal", DEVICE, 1) as files:
        monitor = Monitor(broker, keys, files, resend=Resend(first_s=60))
        for _ in range(120):
            monitor.measure(longest)
        async with running(monitor):
            came = []
            while sum(map(len, came)) < 120:
                heard = await bridge.hears(VITALS)
                assert len(heard.payload) < 12_000
                came.append(numbers(bridge.opened(heard.payload)))
                bridge.answer(FIRST + came[-1][-1])
    assert [len(one) for one in came] == [50, 50, 20]
    assert [number for one in came for number in one] == list(range(120))


async def test_a_full_journal_tells_what_it_has_overwritten(
    bridge: Bridge, broker: Broker, keys: DeviceKeys, tmp_path: Path
) -> None:
    with JournalFiles(tmp_path / "journal", DEVICE, 1, capacity=2) as files:
        monitor = Monitor(broker, keys, files, resend=AGAIN)
        for pulse in range(70, 75):
            monitor.measure(values(pulse))
        async with running(monitor):
            pack = await bridge.pack()
    assert pack.items[0] == Gap(FIRST, 3, overwritten=True)
    assert numbers(pack) == [3, 4]


async def test_a_monitor_without_a_clock_says_so(
    bridge: Bridge, broker: Broker, keys: DeviceKeys, tmp_path: Path
) -> None:
    with JournalFiles(tmp_path / "journal", DEVICE, 1) as files:
        monitor = Monitor(broker, keys, files, clock_set=False)
        monitor.measure(values(70), contact=False)
        async with running(monitor):
            [item] = (await bridge.pack()).items
    assert isinstance(item, Item)
    assert (item.measured_at, item.clock_set, item.contact) == (None, False, False)


async def test_whether_a_monitor_is_connected_is_known_and_the_broker_says_so_when_it_dies(
    bridge: Bridge, broker: Broker, keys: DeviceKeys, tmp_path: Path, mosquitto: Mosquitto
) -> None:
    async def said(*, online: bool) -> None:
        while json.loads((heard := await bridge.hears(STATUS)).payload) != {"online": online}:
            assert heard.topic == STATUS

    with JournalFiles(tmp_path / "journal", DEVICE, 1) as files:
        async with running(Monitor(broker, keys, files)):
            await said(online=True)
        await said(online=False)
    # Whoever comes later hears it too.
    async with Bridge(mosquitto, keys) as later:
        heard = await later.hears(STATUS)
        assert (json.loads(heard.payload), heard.retained) == ({"online": False}, True)


# --- a broker that is not there, or not ours -----------------------------------------------------


async def test_a_monitor_waits_for_a_broker_that_comes_later_and_tells_people_once(
    keys: DeviceKeys, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        port = placeholder.getsockname()[1]
    warned: asyncio.Queue[str] = asyncio.Queue()
    late = Mosquitto(mosquitto.directory.with_name("late"), port)
    (tmp_path / "late").mkdir()
    with JournalFiles(tmp_path / "journal", DEVICE, 1) as files:
        late.render()
        monitor = Monitor(broker_of(late), keys, files, resend=AGAIN, warn=warned.put_nowait)
        monitor.measure(values(70))
        async with running(monitor):
            async with asyncio.timeout(WITHIN_S):
                assert "does not answer" in await warned.get()
            await late.start()
            try:
                async with Bridge(late, keys) as bridge:
                    assert numbers(await bridge.pack()) == [0]
                    async with asyncio.timeout(WITHIN_S):
                        assert await warned.get() == "The broker answers again."
                    await late.stop()
                    async with asyncio.timeout(WITHIN_S):
                        assert "is lost" in await warned.get()
            finally:
                await late.stop()


async def test_a_broker_of_another_authority_is_not_trusted(
    keys: DeviceKeys, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    stranger = Mosquitto(tmp_path / "stranger", 1)
    stranger.render()
    broker = replace(broker_of(stranger), port=mosquitto.port)
    with (
        JournalFiles(tmp_path / "journal", DEVICE, 1) as files,
        pytest.raises(UnavailableError) as caught,
    ):
        async with asyncio.timeout(WITHIN_S):
            await Monitor(broker, keys, files).run()
    assert caught.value.code == "broker_not_trusted"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"device":"A4CF12F0BB01","version":1,"up":"00","down":"00"}',
        as_text(DEVICE, 1, RAW).replace("1,", "0,"),
        as_text(DEVICE, 1, RAW).replace("1,", "true,"),
        as_text(DEVICE, 1, RAW).replace("A4CF", "ZZZZ"),
    ],
)
def test_a_file_without_keys_is_refused_and_not_shown(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text, encoding="ascii")
    with pytest.raises(InputError) as caught:
        DeviceKeys.read(path)
    assert caught.value.code == "bad_key_file"
    assert "00" not in str(caught.value).replace(str(path), "")


# --- with the real ingest ------------------------------------------------------------------------


async def test_what_is_played_arrives_as_it_was_measured_and_the_journal_is_empty_then(
    mosquitto: Mosquitto, broker: Broker, sqlite_records: Records, admit: Admit, tmp_path: Path
) -> None:
    records = sqlite_records
    await admit(records, DEVICE)
    pair = await records.devices.new_keys(DEVICE, now=datetime.now(UTC))
    keys = DeviceKeys(DEVICE, pair.version, pair.up, pair.down)
    options = Options(DEVICE, scenario="desaturation", speed=200, count=30, distinctive=True)
    said: list[Item] = []
    with JournalFiles(tmp_path / "journal", DEVICE, 1) as files:
        monitor = Monitor(broker, keys, files, resend=AGAIN)

        async def work() -> None:
            await play(monitor, pace(options), say=said.append)
            await monitor.settled()

        async with ingesting(mosquitto, records), asyncio.timeout(WITHIN_S):
            await run_while([monitor], work())
        assert files.journal.oldest == FIRST + 30
    stored = [one.reading for one in await records.readings.after(0, limit=100)]
    assert [(one.measured_at, one.values, one.quality) for one in stored] == [
        (one.measured_at, one.values, one.quality) for one in said
    ]
    assert len(stored) == 30


async def test_a_monitor_killed_in_the_middle_and_started_again_loses_and_doubles_nothing(
    mosquitto: Mosquitto, sqlite_records: Records, admit: Admit, tmp_path: Path
) -> None:
    records = sqlite_records
    await admit(records, DEVICE)
    raw = os.urandom(64)
    pair = await records.devices.new_keys(DEVICE, now=datetime.now(UTC), raw=raw)
    key_file, ledger = tmp_path / "keys.json", tmp_path / "ledger"
    key_file.touch(mode=0o600)
    key_file.write_text(as_text(DEVICE, pair.version, raw), encoding="ascii")
    issued = mosquitto.issue_device(DEVICE)
    command = [
        *(sys.executable, "-m", "console", "device", "simulate", "--format", "v2"),
        *("--device", DEVICE, "--port", str(mosquitto.port), "--ca", str(mosquitto.ca_file)),
        *("--cert", str(issued.cert_file), "--key", str(issued.key_file)),
        *("--keys", str(key_file), "--journal", str(tmp_path / "journal")),
        *("--ledger", str(ledger), "--every", "0.02"),
    ]

    async def started(*more: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *command, *more, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )

    for killed in range(2):
        process = await started()
        assert process.stdout is not None
        async with asyncio.timeout(WITHIN_S):
            for _ in range(5 + 10 * killed):
                assert json.loads(await process.stdout.readline())["device"] == DEVICE
            process.kill()
            await process.stdout.read()
            assert await process.wait() == -9
    async with ingesting(mosquitto, records):
        process = await started("--count", "5")
        async with asyncio.timeout(WITHIN_S):
            out, _ = await process.communicate()
    assert process.returncode == 0
    assert len(out.splitlines()) == 5
    measured = {item.seq: item for _, item in read_ledger(ledger)}
    assert len(measured) >= 25
    rows = await records.store.db.fetch("SELECT record FROM reading ORDER BY position")
    assert [int.from_bytes(bytes(row["record"])) for row in rows] == sorted(measured)
    assert {item.boot for item in measured.values()} == {1, 2, 3}
    stored = [one.reading for one in await records.readings.after(0, limit=10_000)]
    assert [one.measured_at for one in stored] == [one.measured_at for one in measured.values()]
    settled = await records.store.db.fetchrow("SELECT * FROM device_sequence")
    assert settled["contiguous"] == max(measured)


async def test_the_command_makes_keys_that_open_what_the_monitor_seals_and_never_overwrites_any(
    sqlite_records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = sqlite_records
    works: list[Callable[..., Awaitable[None]]] = []
    monkeypatch.setattr(command, "with_records", lambda _, work: works.append(work))
    paths = [tmp_path / "first.json", tmp_path / "second.json"]
    for path in paths:
        command.device.main(["keys", "a4:cf:12:f0:bb:01", "--out", str(path)],
                            standalone_mode=False)  # fmt: skip
        await works.pop()(records, None)
    first, second = (DeviceKeys.read(path) for path in paths)
    assert (first.device, first.version, second.version) == (DEVICE, 1, 2)
    assert paths[0].stat().st_mode & 0o777 == 0o600
    fleet = records.devices.fleet()
    async with records.store.transaction() as connection:
        await fleet.load_keys(connection, [(DEVICE, 2)])
    ours = fleet.keys(DEVICE, 2)
    assert ours is not None
    content = encode_ack(DEVICE, Ack(FIRST, datetime.now(UTC)))
    sealed = seal_downlink(ACK, ours.down, 2, content)
    assert open_downlink(ACK, second.down, sealed) == content
    assert [one.action for one in await records.audit.latest()] == ["device.keys"] * 2
    for out, code in ((paths[0], "file_exists"), (tmp_path / "absent" / "keys", "no_folder")):
        with pytest.raises(InputError) as caught:
            command.device.main(["keys", DEVICE, "--out", str(out)], standalone_mode=False)
        assert caught.value.code == code


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--keys", "k"], "bad_option"),
        (["--format", "v2"], "bad_option"),
        (["--format", "v2", "--keys", "absent", "--journal", "j"], "bad_key_file"),
        (["--format", "v2", "--keys", "keys.json", "--journal", "j"], "tls_required"),
        (
            ["--device", "A4CF12F0BB02", "--format", "v2", "--keys", "keys.json", "--journal", "j"],
            "wrong_keys",
        ),
    ],
)
@pytest.mark.usefixtures("keys")
def test_options_that_do_not_fit_are_refused(
    options: list[str], code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        command.device.main(["simulate", "--device", DEVICE, *options], standalone_mode=False)
    assert caught.value.code == code
