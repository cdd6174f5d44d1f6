"""Fuzzers of everything that reads what devices send: ``python -m tests.fuzz.fuzz_wire TARGET``.

Further arguments go to libFuzzer, e.g. ``-runs=100000``, ``-max_total_time=3600`` or a directory to
keep a corpus in. It starts from the golden samples. An input is a finding when anything comes out
but a result or a ``DecodeError``, when the error holds on to another one (which could carry what
was sent), or when it takes more than 5 s or 1 GiB.
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["fajma.wire"]):
    from fajma import wire

from fajma.errors import DecodeError
from tests import v2_samples

V1_SAMPLES = Path(__file__).parents[1] / "samples" / "v1"
DEVICE, _ = wire.parse_v2_topic(v2_samples.TOPIC)
KEY = wire.PayloadKey(v2_samples.UP)
V1_TOPIC = wire.V1_TOPIC.format(device=DEVICE)


def decode_v1(data: bytes) -> None:
    wire.decode_v1(V1_TOPIC, data)


def envelope(data: bytes) -> None:
    """The payload as it came; it opens only if the fuzzer kept a sample unharmed."""
    content = wire.open_envelope(wire.parse_envelope(data), KEY, v2_samples.TOPIC)
    wire.decode_pack(content, DEVICE)


def sealed_content(data: bytes) -> None:
    """What a device that has the key could send: the content is mutated, then sealed."""
    envelope(wire.seal(v2_samples.TOPIC, KEY, 1, data[:16_000], nonce=v2_samples.NONCE))


def decode_pack(data: bytes) -> None:
    pack = wire.decode_pack(data, DEVICE)
    # What was read can be written, and is then read as the same.
    usable = [each for each in pack.items if isinstance(each, wire.Gap) or not each.rejected]
    kept = replace(pack, items=tuple(usable))
    if wire.decode_pack(wire.encode_pack(kept), DEVICE) != kept:
        raise AssertionError("a pack changes when it is written and read again")


def decode_ack(data: bytes) -> None:
    ack = wire.decode_ack(data, DEVICE)
    if wire.decode_ack(wire.encode_ack(DEVICE, ack), DEVICE) != ack:
        raise AssertionError("an acknowledgement changes when it is written and read again")


TARGETS: dict[str, Callable[[bytes], None]] = {
    one.__name__: one for one in (decode_v1, envelope, sealed_content, decode_pack, decode_ack)
}


def guarded(target: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """Let refusals pass, and nothing else."""

    def run(data: bytes) -> None:
        try:
            target(data)
        except DecodeError as error:
            if error.__context__ is not None or error.__cause__ is not None:
                raise AssertionError("a refusal holds on to another error") from error

    return run


def seeds(name: str) -> list[bytes]:
    """Inputs to start from."""
    if name == "decode_v1":
        stated = [json.loads(path.read_text("utf-8")) for path in V1_SAMPLES.glob("*.json")]
        return [
            base64.b64decode(each["payload_base64"])
            if "payload_base64" in each
            else each["payload"].encode()
            for each in stated
        ]
    stated = [json.loads(text) for text in v2_samples.all_samples().values()]
    wanted = "payload" if name == "envelope" else "plaintext"
    return [bytes.fromhex(each[wanted]) for each in stated if isinstance(each.get(wanted), str)]


def main() -> None:
    name, *options = sys.argv[1:] or [""]
    if name not in TARGETS:
        sys.exit(f"which target? {', '.join(TARGETS)}")
    with tempfile.TemporaryDirectory() as directory:
        for number, seed in enumerate(seeds(name)):
            (Path(directory) / str(number)).write_bytes(seed)
        # libFuzzer adds what it finds to the first directory that it is given.
        kept = [each for each in options if not each.startswith("-")] or [directory]
        flags = [each for each in options if each.startswith("-")]
        limits = ["-timeout=5", "-rss_limit_mb=1024", "-max_len=20000"]
        atheris.Setup(
            [sys.argv[0], *limits, *flags, *dict.fromkeys([*kept, directory])],
            guarded(TARGETS[name]),
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
