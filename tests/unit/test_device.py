from __future__ import annotations

import csv
import datetime as dt
import getpass
import ipaddress
import itertools
import json
import os
import queue
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import IO, Self

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from console.device import device
from console.monitor_v1 import simulate
from console.pki import ensure_ca, issue_device
from console.recording import read_recording
from console.simulation import Options, make_distinctive, scenario_values
from fajma.errors import InputError, UnavailableError
from fajma.vitals import DeviceId, Kind, is_plausible
from fajma.wire import decode_v1

DEVICE = DeviceId("A4CF12F03B7E")
TOPIC = f"fajma/sensors/{DEVICE}"
REPOSITORY = Path(__file__).parents[2]
DATA = Path(os.environ.get("FAJMA_DATA", REPOSITORY.parent / "shared" / "data"))


@dataclass(frozen=True, slots=True)
class Publish:
    topic: str
    payload: bytes
    qos: int
    again: bool
    mid: int

    @property
    def fields(self) -> dict[str, object]:
        return json.loads(self.payload, parse_float=Decimal, parse_int=Decimal)


class FakeBroker:
    """An MQTT 3.1.1 broker for one client, in a thread, that can withhold PUBACKs and hang up."""

    def __init__(self, *, hang_up_on: frozenset[int] = frozenset(), refuse: bool = False) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._hang_up_on = hang_up_on
        self._refuse = refuse
        self._seen = 0
        self.port: int = self._listener.getsockname()[1]
        self.connects: list[bytes] = []
        self.published: queue.Queue[Publish] = queue.Queue()
        self.may_acknowledge = threading.Event()
        self.may_acknowledge.set()
        self.goodbye = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.may_acknowledge.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def received(self) -> list[Publish]:
        return [self.published.get_nowait() for _ in range(self.published.qsize())]

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as stream:
                while (kind := stream.read(1)) and self._answer(connection, kind[0], stream):
                    pass

    def _answer(self, connection: socket.socket, kind: int, stream) -> bool:  # noqa: ANN001
        length = shift = 0
        while True:
            (byte,) = stream.read(1)
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        body = stream.read(length)
        match kind >> 4:
            case 1:
                self.connects.append(body)
                connection.sendall(bytes([0x20, 2, 0, 5 if self._refuse else 0]))
                return not self._refuse
            case 3:
                end = 2 + struct.unpack_from(">H", body)[0]
                self._seen += 1
                mid = body[end : end + 2]
                self.published.put(
                    Publish(
                        topic=body[2:end].decode(),
                        payload=body[end + 2 :],
                        qos=kind >> 1 & 3,
                        again=bool(kind & 8),
                        mid=int.from_bytes(mid),
                    )
                )
                if self._seen in self._hang_up_on:
                    return False
                self.may_acknowledge.wait(10)
                connection.sendall(b"\x40\x02" + mid)
            case 12:
                connection.sendall(b"\xd0\x00")
            case 14:
                self.goodbye.set()
                return False
        return True


def quick(port: int, **changes: object) -> Options:
    options: dict[str, object] = {"device": DEVICE, "port": port, "count": 3, "speed": 1000.0}
    return Options(**(options | changes))  # type: ignore[arg-type]


# --- what is played ---


def test_the_normal_scenario_stays_inside_every_alarm_limit():
    for second in range(0, 3600, 5):
        values = scenario_values("normal", second, seed=7)
        assert 60 <= values[Kind.HEART_RATE] <= 100
        assert 95 <= values[Kind.SPO2] <= 100
        assert Decimal("36.5") <= values[Kind.TEMPERATURE] <= Decimal("37.5")


@pytest.mark.parametrize("seed", range(20))
def test_the_desaturation_falls_under_90_stays_there_and_recovers(seed: int):
    spo2 = {t: scenario_values("desaturation", t, seed=seed)[Kind.SPO2] for t in range(0, 300, 5)}

    assert all(value >= 95 for second, value in spo2.items() if second <= 30)
    assert all(84 <= value < 90 for second, value in spo2.items() if 35 <= second <= 95)
    assert all(value >= 95 for second, value in spo2.items() if second >= 110)


@pytest.mark.parametrize("seed", range(20))
def test_the_desaturation_alarms_for_oxygen_only(seed: int):
    for second in range(300):
        values = scenario_values("desaturation", second, seed=seed)
        assert 50 <= values[Kind.HEART_RATE] <= 120
        assert Decimal(35) < values[Kind.TEMPERATURE] <= Decimal("38.5")


def test_a_scenario_is_smooth_and_slightly_noisy():
    hours = [scenario_values("normal", second, seed=3) for second in range(3600)]

    for kind, step in ((Kind.HEART_RATE, 2), (Kind.SPO2, 1), (Kind.TEMPERATURE, Decimal("0.2"))):
        series = [values[kind] for values in hours]
        assert max(abs(b - a) for a, b in itertools.pairwise(series)) <= step
        assert len(set(series)) > 1


def test_the_same_seed_gives_the_same_values_and_another_does_not():
    def play(seed: int) -> list[dict[Kind, Decimal]]:
        return [scenario_values("normal", second, seed=seed) for second in range(100)]

    assert play(1) == play(1)
    assert play(1) != play(2)


def test_an_unknown_scenario_is_refused():
    with pytest.raises(InputError) as caught:
        scenario_values("panic", 0)
    assert caught.value.code == "unknown_scenario"


def test_distinctive_values_have_four_decimals_and_stay_near():
    chance = random.Random(5)
    values = {
        Kind.HEART_RATE: Decimal(78),
        Kind.SPO2: Decimal(89),
        Kind.TEMPERATURE: Decimal("37.2"),
    }

    for _ in range(200):
        made = make_distinctive(values, chance)
        assert made.keys() == values.keys()
        for kind, value in made.items():
            assert value.as_tuple().exponent == -4
            assert value.as_tuple().digits[-1] != 0
            assert 0 < value - values[kind] < (Decimal("0.1") if kind is Kind.TEMPERATURE else 1)


def test_a_distinctive_value_at_the_top_of_its_range_stays_plausible():
    made = make_distinctive({Kind.SPO2: Decimal(100)}, random.Random(1))

    assert is_plausible(Kind.SPO2, made[Kind.SPO2])
    assert made[Kind.SPO2] > 99


# --- recordings ---


def test_a_recording_is_read_by_the_names_in_its_header(tmp_path: Path):
    file = tmp_path / "night.csv"
    file.write_text(
        "\ufeffTime [s], Heart Rate (bpm), PULSE, spo2, TEMP, RESP\n"
        "-0, 94, 93, 97, 36.8, 25\n"
        "1.5, NaN, 93, , 36.85, 25\n"
        "\n"
        "3, 95\n"
    )

    assert read_recording(file) == [
        (0, {Kind.HEART_RATE: 94, Kind.SPO2: 97, Kind.TEMPERATURE: Decimal("36.8")}),
        (1.5, {Kind.TEMPERATURE: Decimal("36.85")}),
        (3, {Kind.HEART_RATE: 95}),
    ]


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"", "no column"),
        (b"Time [s],RESP\n0,12\n", "no column"),
        (b"Time [s],HR\n0,78\n1,fast\n", "line 3"),
        (b"HR\n1e400\n", "line 2"),
        (b"HR\ninf\n", "line 2"),
        (b"Time [s],HR\n,78\n", "line 2"),
        (b"Time [s],HR\n5,78\n4,78\n", "backwards"),
        (b"HR\n\xff\xfe\n", "cannot be read"),
    ],
)
def test_a_recording_that_cannot_be_played_is_explained(tmp_path: Path, content: bytes, hint: str):
    file = tmp_path / "broken.csv"
    file.write_bytes(content)

    with pytest.raises(InputError, match=hint):
        read_recording(file)


def test_a_recording_that_is_not_there_is_explained(tmp_path: Path):
    with pytest.raises(InputError, match="cannot be read"):
        read_recording(tmp_path / "absent.csv")


@pytest.fixture
def bidmc() -> list[Path]:
    """Numerics of real intensive-care patients; a path for each."""
    files = sorted((DATA / "bidmc").glob("*_Numerics.csv"))
    if not files and not os.environ.get("CI"):
        pytest.skip(f"the real recordings are not at {DATA}: set FAJMA_DATA")
    assert files
    return files


def test_every_real_recording_is_read_whole(bidmc: list[Path]):
    for file in bidmc:
        recording = read_recording(file)
        with file.open() as raw:
            rows = list(csv.DictReader(raw, skipinitialspace=True))
        assert len(recording) == len(rows)
        for (seconds, values), row in zip(recording, rows, strict=True):
            assert seconds == float(row["Time [s]"])
            for kind, column in ((Kind.HEART_RATE, "HR"), (Kind.SPO2, "SpO2")):
                assert str(values.get(kind, "NaN")) == row[column]


def test_a_real_recording_is_played_over_mqtt(bidmc: list[Path]):
    file = next(file for file in bidmc if "NaN" in file.read_text())
    lines: list[str] = []

    with FakeBroker() as broker:
        sent = simulate(quick(broker.port, replay=file, count=None), say=lines.append)
        received = broker.received()

    recording = read_recording(file)
    assert sent == len(received) == len(lines) == len(recording)
    for publish, (_, values) in zip(received, recording, strict=True):
        fields = publish.fields
        assert {kind: fields[kind] for kind in Kind if kind in fields} == values


# --- sending ---


def test_a_monitor_connects_and_publishes_as_the_devices_in_the_field_do():
    with FakeBroker() as broker:
        simulate(quick(broker.port), say=lambda _: None)
        received = broker.received()
        assert broker.goodbye.wait(5)

    (connect,) = broker.connects
    assert connect[:7] == b"\x00\x04MQTT\x04"
    assert connect[7] & 2 == 0, "the session must outlive the connection"
    assert connect[-len(DEVICE) :] == DEVICE.encode()
    assert [(each.topic, each.qos, each.again) for each in received] == [(TOPIC, 1, False)] * 3


def test_what_is_sent_decodes_and_is_told_line_by_line():
    lines: list[str] = []

    with FakeBroker() as broker:
        assert simulate(quick(broker.port, distinctive=True), say=lines.append) == 3
        received = broker.received()

    for line, publish in zip(map(json.loads, lines), received, strict=True):
        decoded = decode_v1(publish.topic, publish.payload)
        assert decoded.timestamp_ms == line["sent_at_ms"]
        assert line["device"] == decoded.device == DEVICE
        assert {Kind(k): Decimal(str(v)) for k, v in line["values"].items()} == decoded.values
        assert all(value.as_tuple().exponent == -4 for value in decoded.values.values())


def test_a_monitor_without_a_clock_counts_from_its_start():
    with FakeBroker() as broker:
        simulate(quick(broker.port, unix_time=False), say=lambda _: None)
        stamps = [publish.fields["timestamp"] for publish in broker.received()]

    assert stamps == sorted(stamps)
    assert stamps[-1] < 60_000


def test_a_reading_is_told_and_followed_only_after_its_puback():
    lines: queue.Queue[str] = queue.Queue()

    with FakeBroker() as broker:
        broker.may_acknowledge.clear()
        monitor = threading.Thread(
            target=simulate, args=(quick(broker.port),), kwargs={"say": lines.put}
        )
        monitor.start()
        broker.published.get(timeout=10)
        with pytest.raises(queue.Empty):
            broker.published.get(timeout=0.2)
        assert lines.empty()
        broker.may_acknowledge.set()
        monitor.join(10)

        assert not monitor.is_alive()
        assert lines.qsize() == 3


def test_a_reading_whose_connection_broke_is_sent_again_and_none_is_skipped():
    warnings: list[str] = []
    lines: list[str] = []

    with FakeBroker(hang_up_on=frozenset({2})) as broker:
        simulate(quick(broker.port), say=lines.append, warn=warnings.append)
        first, second, second_again, third = broker.received()

    assert len(broker.connects) == 2
    assert (second_again.payload, second_again.mid) == (second.payload, second.mid)
    assert [each.again for each in (first, second, second_again, third)] == [
        False,
        False,
        True,
        False,
    ]
    assert len(lines) == 3
    assert warnings[0].startswith("The connection to the broker is lost")
    assert warnings[-1] == "The broker answers again."


def test_a_monitor_waits_for_a_broker_that_is_not_there_yet():
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        port = placeholder.getsockname()[1]
    warned = threading.Event()
    warnings: list[str] = []

    def warn(line: str) -> None:
        warnings.append(line)
        warned.set()

    monitor = threading.Thread(
        target=simulate, args=(quick(port),), kwargs={"say": lambda _: None, "warn": warn}
    )
    monitor.start()
    assert warned.wait(10)
    broker = FakeBroker()
    broker._listener.close()
    broker._listener = socket.create_server(("127.0.0.1", port))
    with broker:
        monitor.join(20)
        assert not monitor.is_alive()
        assert len(broker.received()) == 3
    assert "does not answer" in warnings[0]


def test_a_refusal_by_the_broker_is_told_once():
    warned = threading.Event()
    warnings: list[str] = []

    def warn(line: str) -> None:
        warnings.append(line)
        if "refuses" in line:
            warned.set()
            raise KeyboardInterrupt

    with FakeBroker(refuse=True) as broker, pytest.raises(KeyboardInterrupt):
        simulate(quick(broker.port), say=lambda _: None, warn=warn)

    assert warned.is_set()
    assert "Not authorized" in warnings[0]


# --- options ---


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"host": "192.0.2.7"}, "tls_required"),
        ({"host": "broker.example"}, "tls_required"),
        ({"cert": Path("a.pem")}, "bad_option"),
        ({"cert": Path("a.pem"), "key": Path("a.key")}, "bad_option"),
        ({"ca": Path("/nowhere/ca.pem")}, "bad_certificate"),
    ],
)
def test_a_connection_that_would_not_be_safe_is_refused(changes: dict[str, object], code: str):
    with pytest.raises(InputError) as caught:
        simulate(quick(1, **changes))
    assert caught.value.code == code


def test_the_command_plays_and_ends_by_itself():
    with FakeBroker() as broker:
        result = CliRunner().invoke(
            device,
            f"simulate --device a4:cf:12:f0:3b:7e --port {broker.port} --count 2 --speed 100 "
            "--scenario desaturation",
        )

    assert result.exit_code == 0, result.output
    assert [json.loads(line)["device"] for line in result.stdout.splitlines()] == [DEVICE] * 2


def test_sigterm_ends_the_command_cleanly():
    with FakeBroker() as broker:
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", "from console.device import device; device()", "simulate"),
                *("--device", DEVICE, "--port", str(broker.port), "--every", "3600"),
            ],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=10)

        assert first["device"] == DEVICE
        assert process.returncode == 0
        assert (rest, errors) == ("", "")
        assert broker.goodbye.wait(5), "the broker must not believe that the monitor was lost"


# --- a real broker ---


@dataclass(frozen=True, slots=True)
class Certificates:
    ca: Path
    cert: Path
    key: Path


def issue(folder: Path, name: str, common_name: str, signer: tuple | None = None) -> tuple:  # type: ignore[type-arg]
    """Issue one certificate for tests: ``(certificate, key)``; the authority when nobody signs."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer[0].subject if signer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
    )
    certificate = builder.sign(signer[1] if signer else key, hashes.SHA256())
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate, key


@dataclass(frozen=True, slots=True)
class Mosquitto:
    """A running Mosquitto that wants client certificates.

    Attributes:
        port: on the loopback address.
        folder: where the certificates are: ``ca``, ``monitor`` and ``stranger``.
        log: its lines, as they come.
    """

    port: int
    folder: Path
    log: IO[str]

    def lines_until(self, words: str) -> list[str]:
        lines: list[str] = []
        for line in self.log:
            lines.append(line)
            if words in line:
                return lines
        pytest.fail(f"Mosquitto ended without saying {words!r}: {lines}")


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    authority = issue(tmp_path, "ca", "Test authority")
    issue(tmp_path, "broker", "broker", authority)
    issue(tmp_path, "monitor", DEVICE, authority)
    issue(tmp_path, "stranger", "Somebody else")
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        port = placeholder.getsockname()[1]
    (tmp_path / "acl").write_text("pattern write fajma/sensors/%u\n")
    (tmp_path / "mosquitto.conf").write_text(
        f"listener {port} 127.0.0.1\n"
        "log_dest stderr\nlog_type all\n"
        f"user {getpass.getuser()}\n"
        f"cafile {tmp_path}/ca.pem\ncertfile {tmp_path}/broker.pem\nkeyfile {tmp_path}/broker.key\n"
        "require_certificate true\nuse_identity_as_username true\n"
        f"acl_file {tmp_path}/acl\n"
    )
    program = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program, "install Mosquitto: apt-get install mosquitto"
    with subprocess.Popen(
        [program, "-c", tmp_path / "mosquitto.conf"], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        broker = Mosquitto(port, tmp_path, process.stderr)
        try:
            broker.lines_until("running")
            yield broker
        finally:
            process.terminate()


def test_a_monitor_with_a_certificate_sends_through_mosquitto(mosquitto: Mosquitto):
    folder = mosquitto.folder
    lines: list[str] = []

    sent = simulate(
        quick(
            mosquitto.port,
            ca=folder / "ca.pem",
            cert=folder / "monitor.pem",
            key=folder / "monitor.key",
        ),
        say=lines.append,
    )

    log = "".join(mosquitto.lines_until("Received DISCONNECT"))
    assert sent == len(lines) == 3
    assert log.count(f"Received PUBLISH from {DEVICE} (d0, q1, r0") == 3
    assert "Denied" not in log


def test_a_broker_of_another_authority_is_not_trusted(mosquitto: Mosquitto):
    with pytest.raises(UnavailableError) as caught:
        simulate(quick(mosquitto.port, ca=mosquitto.folder / "stranger.pem"))

    assert caught.value.code == "broker_not_trusted"


def test_a_monitor_without_a_certificate_is_told_that_it_is_refused(mosquitto: Mosquitto):
    def warn(line: str) -> None:
        assert "refuses this device" in line
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(quick(mosquitto.port, ca=mosquitto.folder / "ca.pem"), warn=warn)


# --- certificates --------------------------------------------------------------------------------


def certify(who: str, authority: Path, out: Path) -> Result:
    return CliRunner().invoke(
        device,
        [
            *("certificate", who, "--ca-cert", str(authority / "ca.crt")),
            *("--ca-key", str(authority / "ca.key"), "--out", str(out)),
        ],
    )


@pytest.mark.parametrize(
    ("who", "name"),
    [
        ("a4:cf:12:f0:3b:7e", DEVICE),
        ("fajma-ingest", "fajma-ingest"),
        ("fajma-ingest-2", "fajma-ingest-2"),
    ],
)
def test_a_monitor_or_an_ingest_gets_a_certificate_in_its_one_spelling(
    tmp_path: Path, who: str, name: str
) -> None:
    authority, out = tmp_path / "authority", tmp_path / "out"
    ensure_ca(authority)
    out.mkdir()
    assert certify(who, authority, out).exit_code == 0
    made = x509.load_pem_x509_certificate((out / f"{name}.crt").read_bytes())
    made.verify_directly_issued_by(
        x509.load_pem_x509_certificate((authority / "ca.crt").read_bytes())
    )
    assert made.subject.rfc4514_string() == f"CN={name}"
    assert (out / f"{name}.key").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in out.iterdir()) == [f"{name}.crt", f"{name}.key"]
    before = (out / f"{name}.crt").read_bytes()
    assert certify(who, authority, out).exit_code == 0
    assert (out / f"{name}.crt").read_bytes() == before


@pytest.mark.parametrize("who", ["fajma-ingest-9", "fajma-ingest-1", "A4CF12F03B7", "server"])
def test_nobody_else_gets_a_certificate(tmp_path: Path, who: str) -> None:
    ensure_ca(tmp_path)
    error = certify(who, tmp_path, tmp_path).exception
    assert isinstance(error, InputError)
    assert error.code == "bad_device"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ca.crt", "ca.key"]


def test_an_authority_that_cannot_sign_is_refused(tmp_path: Path) -> None:
    own, other, monitor = tmp_path / "own", tmp_path / "other", tmp_path / "monitor"
    for directory in (own, other, monitor):
        ensure_ca(directory)
    (own / "ca.key").write_bytes((other / "ca.key").read_bytes())
    of_monitor = issue_device(monitor, DEVICE)
    of_monitor.cert_file.rename(monitor / "ca.crt")
    of_monitor.key_file.rename(monitor / "ca.key")
    (other / "ca.key").write_text("no key")
    for directory in (own, other, monitor, tmp_path):
        error = certify(DEVICE, directory, tmp_path).exception
        assert isinstance(error, InputError)
        assert error.code == "bad_authority"
    assert list(tmp_path.glob("*.crt")) == []
