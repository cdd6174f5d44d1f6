"""The monitor's core, built and proven without a board: its own tests, run from here."""

from __future__ import annotations

import subprocess
from pathlib import Path

from benchmarks.firmware_size import STACK_MOST_BYTES, TEXT_MOST_BYTES, sizes

FIRMWARE = Path(__file__).parents[2] / "firmware"


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
