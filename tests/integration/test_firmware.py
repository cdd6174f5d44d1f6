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
