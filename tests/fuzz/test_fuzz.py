"""Each fuzzer for a bounded number of runs; longer by hand, see ``fuzz_wire``."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

RUNS = 20_000


@pytest.mark.slow
@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris exists for Linux on x86-64 only")
@pytest.mark.parametrize(
    "target", ["decode_v1", "envelope", "sealed_content", "decode_pack", "decode_ack"]
)
def test_a_fuzzer_finds_nothing(target: str, tmp_path: Path):
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.fuzz.fuzz_wire", target,
            f"-runs={RUNS}", "-seed=1", f"-artifact_prefix={tmp_path}/",
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr[-4000:]
    assert f"Done {RUNS} runs" in done.stderr, done.stderr[-4000:]
    assert not list(tmp_path.iterdir())
