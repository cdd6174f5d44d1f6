"""What the monitor's core takes of a device, and what its messages take of a network."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Final

from benchmarks.record import record
from fajma.vitals import DeviceId, Kind
from fajma.wire import (
    Ack,
    Channel,
    Item,
    Pack,
    PayloadKey,
    encode_ack,
    encode_pack,
    seal,
    seal_downlink,
    v2_topic,
)

TEXT_MOST_BYTES: Final = 48 * 1024
STACK_MOST_BYTES: Final = 2 * 1024
EVERY_S: Final = 5
PER_DAY: Final = 24 * 60 * 60 // EVERY_S
BACKLOG: Final = 50
"""Readings in one pack of our firmware, when many wait."""

_FIRMWARE: Final = Path(__file__).parents[1] / "firmware"
_DEVICE: Final = DeviceId("A4CF12F03B7E")
_KEY: Final = PayloadKey(bytes(32))


def sizes() -> tuple[int, dict[str, int]]:
    """The core for Xtensa by Debian's compiler: bytes of text, and of stack by function."""
    printed = subprocess.run(
        ["make", "-C", str(_FIRMWARE), "-s", "size"], capture_output=True, text=True, check=True
    ).stdout
    text, stack = 0, dict[str, int]()
    for line in printed.splitlines():
        fields = line.split("\t")
        if line.endswith(".o") and not line.lstrip().startswith("text"):
            text += int(fields[0])
        elif len(fields) == len(("function", "bytes", "kind")):
            stack[fields[0]] = int(fields[1])
            # A frame whose size is known only when it runs would escape the budget.
            assert fields[2] in {"static", "dynamic,bounded"}, line
    return text, stack


def firmware_size() -> None:
    """Text of the core, and the deepest single function."""
    text, stack = sizes()
    assert text > 0
    assert stack
    record(
        "firmware_text_bytes",
        text,
        "B",
        aim=f"<= {TEXT_MOST_BYTES}",
        met=text <= TEXT_MOST_BYTES,
    )
    deepest = max(stack.values())
    record(
        "firmware_stack_bytes",
        deepest,
        "B",
        aim=f"<= {STACK_MOST_BYTES} in each function",
        met=deepest <= STACK_MOST_BYTES,
    )


def wire_bytes() -> None:
    """Payload bytes of one reading in each format, and of a day with one each 5 s.

    The firmware writes what ``fajma.wire`` writes, bit for bit (the golden samples).
    """
    v1 = len(_v1())
    live = len(_v2(1))
    backlog = len(_v2(BACKLOG)) / BACKLOG
    topic = v2_topic(_DEVICE, Channel.ACK)
    ack = len(seal_downlink(topic, _KEY, 1, encode_ack(_DEVICE, Ack(2**32, _at(0)))))
    record("wire_bytes_v1", v1, "B/reading", aim="as it is", met=True)
    record(
        "wire_bytes_v2",
        live,
        "B/reading",
        aim="<= 300, sealed and numbered",
        met=live <= 300,
        reference="v1",
        reference_value=v1,
    )
    record(
        "wire_bytes_v2_backlog",
        backlog,
        "B/reading",
        aim="<= 1.5 x v1",
        met=backlog <= 1.5 * v1,
        reference="v1",
        reference_value=v1,
    )
    record("wire_bytes_v1_day", v1 * PER_DAY / 2**20, "MiB/day", aim="as it is", met=True)
    record(
        "wire_bytes_v2_day",
        (live + ack) * PER_DAY / 2**20,
        "MiB/day",
        aim="<= 10, acknowledgements included",
        met=(live + ack) * PER_DAY <= 10 * 2**20,
        reference="v1",
        reference_value=v1 * PER_DAY / 2**20,
    )


def _v1() -> bytes:
    stated = {
        "device_id": "A4:CF:12:F0:3B:7E",
        "timestamp": 1772460120000,
        "heart_rate": 78,
        "spo2": 97,
        "temperature": 37.2,
    }
    return json.dumps(stated, separators=(",", ":")).encode()


def _v2(count: int) -> bytes:
    items = tuple(
        Item(
            seq=2**32 + number,
            boot=3,
            mono_ms=60_000 + 5000 * number,
            measured_at=_at(number),
            clock_set=True,
            values={
                Kind.HEART_RATE: Decimal(78),
                Kind.SPO2: Decimal(97),
                Kind.TEMPERATURE: Decimal("37.1875"),
            },
            rejected=(),
            quality=92,
            contact=True,
        )
        for number in range(count)
    )
    pack = Pack(_DEVICE, 2**32, 3, 60_250 + 5000 * count, items)
    return seal(v2_topic(_DEVICE, Channel.VITALS), _KEY, 1, encode_pack(pack))


def _at(number: int) -> datetime:
    return datetime.fromtimestamp(1772460120.123 + EVERY_S * number, UTC)
