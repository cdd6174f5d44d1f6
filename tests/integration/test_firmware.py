"""The monitor's core, built and proven without a board: its own tests, run from here."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

from benchmarks.firmware_size import STACK_MOST_BYTES, TEXT_MOST_BYTES, sizes
from fajma.errors import DecodeError
from fajma.store import to_ms
from fajma.vitals import DeviceId
from fajma.wire import cbor, decode_ack
from fajma.wire.v2 import base_name

FIRMWARE = Path(__file__).parents[2] / "firmware"
LIKELY = 0.8


def make(target: str, *variables: str) -> str:
    """Run a target of the firmware's Makefile; what it printed."""
    done = subprocess.run(
        ["make", "-j2", "-C", str(FIRMWARE), "--no-print-directory", target, *variables],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def test_the_core_passes_its_own_tests_under_address_and_undefined_behaviour_sanitizers() -> None:
    assert "Status: SUCCESS!" in make("test")


def test_a_short_run_of_the_fuzzers_finds_nothing() -> None:
    make("fuzz", "FUZZ_S=5")  # fails with what it has found
    # Fresh seeds run each time, so that what they reach is known to be reached.
    assert len(list((FIRMWARE.parent / "build/firmware/seeds/journal").iterdir())) >= 40


def test_the_core_passes_on_another_processor_emulated() -> None:
    assert "Status: SUCCESS!" in make("emulated")


def test_the_core_keeps_within_its_size_and_its_stack_on_the_devices_kind_of_processor() -> None:
    text, stack = sizes()
    assert 0 < text <= TEXT_MOST_BYTES
    assert len(stack) > 50
    assert {name: used for name, used in stack.items() if used > STACK_MOST_BYTES} == {}


def test_the_core_takes_no_memory_and_throws_nothing() -> None:
    needed = {line.split(" U ", 1)[1] for line in make("needs").splitlines() if " U " in line}
    assert "memcpy" in needed
    assert not [
        name
        for name in needed
        if any(word in name for word in ("alloc", "operator new", "throw", "__cxa", "unwind"))
    ]


def altered_acknowledgements() -> Iterator[bytes]:
    """What the golden samples hold under their seal, and much that is almost that.

    Bytes that begin a value of CBOR are put in more often than others.
    """
    source = random.Random(5)
    samples = [
        bytes.fromhex(stated["plaintext"])
        for path in sorted((FIRMWARE.parent / "tests/samples/v2").glob("*.json"))
        if len((stated := json.loads(path.read_text(encoding="utf-8"))).get("plaintext", "")) < 400
        and "plaintext" in stated
    ]
    acknowledgements = [one for one in samples if b"\x63ack" in one]
    assert len(acknowledgements) >= 7
    yield from samples
    bytes_that_matter = bytes.fromhex(
        "000102080320212223c4c5f4f5f6f9fafb18191a1b5f7f9fbfff6081a18260"
    )
    for number in range(20_000):
        altered = bytearray(source.choice(acknowledgements if number % 4 else samples))
        for _ in range(source.randrange(1, 4)):
            at = source.randrange(len(altered) + 1)
            new = (
                source.choice(bytes_that_matter) if source.random() < 0.8 else source.randrange(256)
            )
            match source.randrange(4):
                case 0:
                    altered.insert(at, new)
                case 1:
                    del altered[at : at + source.randrange(1, 4)]
                case _:
                    altered[at : at + 1] = bytes([new])
        yield bytes(altered)


def acknowledgements_at_odd_times() -> Iterator[bytes]:
    """Integers, fractions and floats of every width, about the first and the last time there is."""
    source = random.Random(6)
    for _ in range(5000):
        about = source.choice([0, 1, 2**27, 2**28, 2**31, 1_772_460_120, 253_402_300_800, 2**63])
        exact = Decimal(about) + source.randrange(-2, 3)
        halves = exact + Decimal(source.randrange(-3000, 3000)) / 2000
        time = source.choice(
            [
                int(exact),
                float(exact),
                float(halves),
                float(halves) + source.random(),
                halves,
                Decimal(source.randrange(-(2**64), 2**64)).scaleb(source.randrange(-8, 8)),
                float("nan"),
                -float("inf"),
            ]
        )
        name = base_name(DeviceId("A4CF12F03B7E"))
        yield cbor.encode([{-2: name, -3: time, 0: "ack", 2: source.randrange(2**64)}])


def in_python(content: bytes) -> str:
    """The verdict of ``fajma.wire`` on an acknowledgement, as the core's program prints it."""
    try:
        ack = decode_ack(content, DeviceId("A4CF12F03B7E"))
    except DecodeError as error:
        return f"{error.code} 0 0"
    return f"none {ack.committed} {to_ms(ack.at)}"


def test_the_core_and_python_judge_any_bytes_alike() -> None:
    make("verdicts")
    contents = [*altered_acknowledgements(), *acknowledgements_at_odd_times()]
    done = subprocess.run(
        [FIRMWARE.parent / "build/firmware/verdicts"],
        input="\n".join(one.hex() for one in contents) + "\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    said = done.stdout.splitlines()
    assert len(said) == len(contents)
    expected = [in_python(one) for one in contents]
    differing = [
        (one.hex(), ours, theirs)
        for one, ours, theirs in zip(contents, said, expected, strict=True)
        if ours != theirs
    ]
    assert differing == []
    assert len({one.split(" ")[0] for one in said}) >= 8  # every kind of refusal, and none
