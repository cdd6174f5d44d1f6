"""A simulated v1 monitor: ``fajma device simulate`` plays a scenario or a recording over MQTT.

It behaves like the devices in the field: QoS 1, one reading on its way at a time, the next only
after the broker's PUBACK, reconnecting for ever. When the broker was away it goes on from where it
stood, so that no row of a recording is skipped; the reading that waited keeps its own time.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import math
import random
import signal
import ssl
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final, NoReturn

import click
from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTv311
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from console.recording import read_recording
from fajma.errors import InputError, UnavailableError
from fajma.vitals import MAX_DECIMALS, MEASURES, DeviceId, Kind
from fajma.wire import V1_TOPIC, encode_v1, parse_device_id

SCENARIOS: Final = ("normal", "desaturation")

_KEEPALIVE_S: Final = 30
_CONNACK_TIMEOUT_S: Final = 10.0
_FIRST_BACKOFF_S: Final = 0.5
_LONGEST_BACKOFF_S: Final = 30.0
_UPTIME_WRAP: Final = 2**32

# Desaturation, in seconds from the start. The fall takes one interval of 5 s, so that a monitor
# sending at that pace goes from normal straight under 90 % and raises one alarm, not two.
_FALL_FROM_S: Final = 30.0
_FALL_UNTIL_S: Final = 35.0
_RISE_FROM_S: Final = 95.0
_RISE_UNTIL_S: Final = 110.0


@dataclass(frozen=True, slots=True)
class Options:
    """What to simulate and where to send it.

    Attributes:
        device: the monitor's address; also its MQTT client id.
        host: name or address of the broker.
        port: its port.
        ca: PEM file of the authority that signed the broker's certificate; without it the
            connection is plain and allowed to this machine only.
        cert: PEM file of the device's certificate.
        key: PEM file of its private key.
        every_s: seconds between readings.
        scenario: one of ``SCENARIOS``; not used with ``replay``.
        replay: a recording, CSV with a header.
        count: stop after this many readings; ``None`` goes on until the end of the recording, or
            for ever.
        speed: plays this many times faster than ``every_s`` or the recording say.
        distinctive: fill every value up to 4 decimals at random, so that a leak scan can find it.
        unix_time: send Unix time; otherwise milliseconds since the start, as a device without a
            clock does.
        seed: of the scenario's noise; ``None`` derives it from the device, so that two monitors
            differ and each repeats itself.
    """

    device: DeviceId
    host: str = "127.0.0.1"
    port: int = 1883
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    every_s: float = 5.0
    scenario: str = "normal"
    replay: Path | None = None
    count: int | None = None
    speed: float = 1.0
    distinctive: bool = False
    unix_time: bool = True
    seed: int | None = None


def scenario_values(name: str, seconds: float, *, seed: int = 0) -> dict[Kind, Decimal]:
    """What a monitor shows at one moment of a scenario; the same arguments give the same values.

    Args:
        name: ``normal``, or ``desaturation``: SpO2 falls from 97 to 86 % at 30 s, stays there for
            a minute and has recovered at 110 s, the heart beats faster meanwhile (under 120/min).
        seconds: time since the start of the scenario.
        seed: of the noise.

    Returns:
        Whole heart rate and SpO2, temperature with one decimal.

    Raises:
        InputError: there is no such scenario.
    """
    if name not in SCENARIOS:
        raise InputError(
            f"There is no scenario of this name: choose one of {', '.join(SCENARIOS)}.",
            code="unknown_scenario",
        )
    distress = 0.0
    if name == "desaturation":
        distress = _smooth_step(seconds, _FALL_FROM_S, _FALL_UNTIL_S) - _smooth_step(
            seconds, _RISE_FROM_S, _RISE_UNTIL_S
        )
    heart_rate = 76 + 26 * distress + 3 * _noise(seconds, f"{seed} heart rate")
    spo2 = 97 - 11 * distress + 0.9 * _noise(seconds, f"{seed} spo2")
    temperature = 37.0 + 0.2 * _noise(seconds, f"{seed} temperature")
    return {
        Kind.HEART_RATE: Decimal(round(heart_rate)),
        Kind.SPO2: Decimal(round(spo2)),
        Kind.TEMPERATURE: Decimal(f"{temperature:.1f}"),
    }


def make_distinctive(values: Mapping[Kind, Decimal], chance: random.Random) -> dict[Kind, Decimal]:
    """Fill each value up to 4 decimals at random, keeping its whole part and its first decimal.

    So a value rises by less than one unit of its last digit; only one at the top of its plausible
    range falls instead.
    """
    filled = {}
    for kind, value in values.items():
        places = min(max(-int(value.as_tuple().exponent), 0), 1)
        step = Decimal(1).scaleb(-places)
        base = value.quantize(step, rounding="ROUND_FLOOR")
        if base >= MEASURES[kind].highest:
            base -= step
        digits = [str(chance.randrange(10)) for _ in range(MAX_DECIMALS - places - 1)]
        # Not ending in 0, which a decoder may drop.
        digits.append(str(chance.randrange(1, 10)))
        filled[kind] = base + Decimal(int("".join(digits))).scaleb(-MAX_DECIMALS)
    return filled


def simulate(
    options: Options,
    *,
    say: Callable[[str], None] = click.echo,
    warn: Callable[[str], None] = lambda line: click.echo(line, err=True),
) -> int:
    """Send readings until ``count``, the end of the recording, or an interrupt.

    Args:
        options: what to send and where.
        say: gets one JSON line per reading, after its PUBACK: ``sent_at_ms`` (Unix milliseconds,
            also the reading's own timestamp unless uptime is sent), ``device``, ``values``.
        warn: gets a line for people each time the broker goes away for a new reason.

    Returns:
        How many readings the broker has acknowledged.

    Raises:
        InputError: an option or a file is unusable.
        UnavailableError: the broker's certificate is not the one to trust.
    """
    # Read before anything is sent: a file that is unusable is told at once.
    pace = (
        _replay(options, list(read_recording(options.replay))) if options.replay else _play(options)
    )
    chance = random.Random()  # noqa: S311 - values to search for, not secrets
    topic = V1_TOPIC.format(device=options.device)
    sent = 0
    broker = _Broker(options, warn)
    try:
        broker.connect()
        started = due = time.monotonic()
        for pause_s, values in itertools.islice(pace, options.count):
            due += pause_s
            broker.attend_until(due)
            due = max(due, time.monotonic())
            shown = make_distinctive(values, chance) if options.distinctive else values
            sent_at_ms = time.time_ns() // 1_000_000
            uptime_ms = int((time.monotonic() - started) * 1000) % _UPTIME_WRAP
            timestamp = sent_at_ms if options.unix_time else uptime_ms
            broker.publish(topic, encode_v1(options.device, timestamp, shown))
            sent += 1
            # At most 15 digits, so a float prints the very decimals that were sent.
            line = {
                "sent_at_ms": sent_at_ms,
                "device": options.device,
                "values": {kind.value: _json_number(value) for kind, value in shown.items()},
            }
            say(json.dumps(line))
    finally:
        broker.close()
    return sent


class _Broker:
    """The connection to the broker, served in the caller's own thread.

    Args:
        options: where it is and how to identify.
        warn: gets a line for people when it goes away for a new reason.
    """

    def __init__(self, options: Options, warn: Callable[[str], None]) -> None:
        self._options = options
        self._warn = warn
        self._warned = ""
        self._connected = False
        self._refusal = ""
        self._acknowledged: set[int] = set()
        # The reconnecting is ours, so that backing off can be interrupted and explained.
        self._client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=options.device,
            clean_session=False,
            protocol=MQTTv311,
            reconnect_on_failure=False,
        )
        context = _tls_context(options)
        if context is not None:
            self._client.tls_set_context(context)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_publish = self._on_publish

    def connect(self) -> None:
        """Connect, trying again for ever; what is unacknowledged is then sent again by paho."""
        backoff_s = _FIRST_BACKOFF_S
        while not self._try_to_connect():
            time.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, _LONGEST_BACKOFF_S)
        if self._warned:
            self._warn("The broker answers again.")
            self._warned = ""

    def attend_until(self, due: float) -> None:
        """Keep the connection alive until ``due`` on the monotonic clock."""
        while (left_s := due - time.monotonic()) > 0:
            self._attend(min(left_s, 1.0))

    def publish(self, topic: str, payload: bytes) -> None:
        """Send at QoS 1 and return once the broker has acknowledged it."""
        mid = self._client.publish(topic, payload, qos=1).mid
        while mid not in self._acknowledged:
            self._attend(1.0)
        self._acknowledged.discard(mid)

    def close(self) -> None:
        """Say goodbye, if anybody listens."""
        self._client.disconnect()

    def _attend(self, seconds: float) -> None:
        if self._client.loop(seconds) is not MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._explain("The connection to the broker is lost; it is being restored.")
            # Two monitors of one name throw each other out: not at full speed.
            time.sleep(_FIRST_BACKOFF_S)
            self.connect()

    def _try_to_connect(self) -> bool:
        self._connected = False
        self._refusal = ""
        where = f"{self._options.host}:{self._options.port}"
        try:
            self._client.connect(self._options.host, self._options.port, _KEEPALIVE_S)
        except ssl.SSLCertVerificationError as error:
            raise UnavailableError(
                f"The certificate of the broker at {where} is not trusted "
                f"({error.verify_message}): check --ca and --host.",
                code="broker_not_trusted",
            ) from error
        except OSError as error:
            self._explain(
                f"The broker at {where} does not answer ({error.strerror or error}); trying again."
            )
            return False
        deadline = time.monotonic() + _CONNACK_TIMEOUT_S
        rc = MQTTErrorCode.MQTT_ERR_SUCCESS
        while not self._connected and rc is MQTTErrorCode.MQTT_ERR_SUCCESS:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                break
            rc = self._client.loop(left_s)
        if not self._connected:
            self._explain(
                f"The broker at {where} refuses this device ({self._refusal or 'no reason given'}):"
                " check its certificate and its enrolment; trying again."
            )
        return self._connected

    def _explain(self, line: str) -> None:
        if line != self._warned:
            self._warned = line
            self._warn(line)

    def _on_connect(
        self,
        client: Client,
        userdata: object,
        flags: ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        del client, userdata, flags, properties
        self._connected = not reason.is_failure
        self._refusal = str(reason) if reason.is_failure else ""

    def _on_disconnect(
        self,
        client: Client,
        userdata: object,
        flags: DisconnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        del client, userdata, flags, reason, properties
        self._connected = False

    def _on_publish(
        self,
        client: Client,
        userdata: object,
        mid: int,
        reason: ReasonCode,
        properties: Properties,
    ) -> None:
        del client, userdata, reason, properties
        self._acknowledged.add(mid)


def _tls_context(options: Options) -> ssl.SSLContext | None:
    """How to identify the broker and ourselves; ``None`` for a plain connection."""
    if (options.cert is None) != (options.key is None):
        raise InputError("Give --cert and --key together.", code="bad_option")
    if options.ca is None:
        if options.cert is not None:
            raise InputError("A certificate needs --ca too.", code="bad_option")
        if not _is_loopback(options.host):
            raise InputError(
                "Readings never leave this machine in clear: give --ca, --cert and --key.",
                code="tls_required",
            )
        return None
    try:
        context = ssl.create_default_context(cafile=options.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if options.cert is not None:
            context.load_cert_chain(options.cert, options.key)
    except OSError as error:
        # SSLError is one too: a file that is no PEM, or a key of another certificate.
        raise InputError(
            "The certificate files cannot be used: check that --ca, --cert and --key are readable "
            "PEM files that belong together.",
            code="bad_certificate",
        ) from error
    return context


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _play(options: Options) -> Iterator[tuple[float, dict[Kind, Decimal]]]:
    """Endless readings of a scenario: seconds to wait, and values."""
    seed = zlib.crc32(options.device.encode()) if options.seed is None else options.seed
    for turn in itertools.count():
        pause_s = options.every_s / options.speed if turn else 0.0
        yield pause_s, scenario_values(options.scenario, turn * options.every_s, seed=seed)


def _replay(
    options: Options, recording: Iterable[tuple[float | None, dict[Kind, Decimal]]]
) -> Iterator[tuple[float, dict[Kind, Decimal]]]:
    """The readings of a recording, at its own pace: seconds to wait, and values."""
    before: float | None = None
    for turn, (seconds, values) in enumerate(recording):
        if seconds is None:
            pause_s = options.every_s if turn else 0.0
        else:
            pause_s = 0.0 if before is None else seconds - before
            before = seconds
        yield pause_s / options.speed, values


def _smooth_step(now: float, start: float, end: float) -> float:
    """From 0 to 1 between ``start`` and ``end``, without a kink."""
    part = min(max((now - start) / (end - start), 0.0), 1.0)
    return part * part * (3 - 2 * part)


def _noise(seconds: float, seed: str) -> float:
    """Breathing of a signal, within -1 and 1: three slow waves of seeded period and phase."""
    chance = random.Random(seed)  # noqa: S311 - a simulation must repeat itself
    waves = [
        math.sin(math.tau * (seconds / chance.uniform(7, 90) + chance.random())) for _ in range(3)
    ]
    return sum(waves) / len(waves)


def _json_number(value: Decimal) -> int | float:
    return int(value) if value == value.to_integral_value() else float(value)


def _interrupt(signum: int, frame: object) -> NoReturn:
    del signum, frame
    raise KeyboardInterrupt


@click.group()
def device() -> None:
    """Monitors: try them out."""


@device.command("simulate")
@click.option("--device", "address", required=True, help="MAC address of the monitor.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Broker.")
@click.option("--port", type=click.IntRange(1, 65535), default=1883, show_default=True)
@click.option("--ca", type=click.Path(path_type=Path), help="PEM: who signed the broker.")
@click.option("--cert", type=click.Path(path_type=Path), help="PEM: the monitor's certificate.")
@click.option("--key", type=click.Path(path_type=Path), help="PEM: its private key.")
@click.option(
    "--every",
    "every_s",
    type=click.FloatRange(0, min_open=True),
    default=5.0,
    show_default=True,
    help="Seconds between readings.",
)
@click.option("--scenario", type=click.Choice(SCENARIOS), default=SCENARIOS[0], show_default=True)
@click.option(
    "--replay",
    type=click.Path(path_type=Path),
    help="Play this recording instead: CSV, columns named in its first line.",
)
@click.option("--count", type=click.IntRange(1), help="Stop after this many readings.")
@click.option(
    "--speed",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Play this many times faster.",
)
@click.option("--distinctive", is_flag=True, help="Random decimals, for a leak scan to find.")
@click.option(
    "--timestamp",
    type=click.Choice(["unix", "uptime"]),
    default="unix",
    show_default=True,
    help="Which clock the monitor has.",
)
@click.option("--seed", type=int, help="Of the scenario's noise; by default the monitor's own.")
def simulate_command(
    *,
    address: str,
    host: str,
    port: int,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    every_s: float,
    scenario: str,
    replay: Path | None,
    count: int | None,
    speed: float,
    distinctive: bool,
    timestamp: str,
    seed: int | None,
) -> None:
    """Play a monitor that sends readings; one JSON line for each that the broker has taken."""
    options = Options(
        device=parse_device_id(address),
        host=host,
        port=port,
        ca=ca,
        cert=cert,
        key=key,
        every_s=every_s,
        scenario=scenario,
        replay=replay,
        count=count,
        speed=speed,
        distinctive=distinctive,
        unix_time=timestamp == "unix",
        seed=seed,
    )
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        simulate(options)
    except KeyboardInterrupt:
        pass  # asked to stop: that is a clean end
    finally:
        signal.signal(signal.SIGTERM, before)
