"""The monitor's core, built and proven without a board: its own tests, run from here."""

from __future__ import annotations

import subprocess
from pathlib import Path

FIRMWARE = Path(__file__).parents[2] / "firmware"


def make(target: str, *variables: str) -> str:
    """Run a target of the firmware's Makefile; what it printed."""
    done = subprocess.run(
        ["make", "-C", str(FIRMWARE), "--no-print-directory", target, *variables],
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
