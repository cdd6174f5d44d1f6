"""What a simulated monitor plays, and how it reaches its broker; shared by v1 and v2."""

from __future__ import annotations

import ipaddress
import itertools
import json
import math
import random
import ssl
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final

from console.recording import read_recording
from fajma.errors import InputError
from fajma.vitals import MAX_DECIMALS, MEASURES, DeviceId, Kind

SCENARIOS: Final = ("normal", "desaturation")

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


def pace(options: Options) -> Iterator[tuple[float, dict[Kind, Decimal]]]:
    """What a monitor measures: seconds to wait, then the values; endless for a scenario.

    Raises:
        InputError: the recording cannot be played; before the first values are taken.
    """
    played = (
        _replay(options, list(read_recording(options.replay))) if options.replay else _play(options)
    )
    chance = random.Random()  # noqa: S311 - values to search for, not secrets
    shown = (
        ((pause_s, make_distinctive(values, chance)) for pause_s, values in played)
        if options.distinctive
        else played
    )
    return itertools.islice(shown, options.count)


def told(device: DeviceId, at_ms: int, values: Mapping[Kind, Decimal]) -> str:
    """One reading as a JSON line, for whoever compares what was sent with what arrived.

    Args:
        device: the monitor.
        at_ms: Unix milliseconds; the reading's own timestamp where the monitor has a clock.
        values: at most 15 digits each, so that a float prints the very decimals that were sent.
    """
    return json.dumps(
        {
            "sent_at_ms": at_ms,
            "device": device,
            "values": {kind.value: _json_number(value) for kind, value in values.items()},
        }
    )


def tls_context(options: Options) -> ssl.SSLContext | None:
    """How to identify the broker and ourselves; ``None`` for a plain connection.

    Raises:
        InputError: the options do not fit together, or name files that cannot be used.
    """
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
