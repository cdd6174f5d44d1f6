# ruff: noqa: INP001 - a program beside C++, no package
"""Where the fuzzers begin: the golden samples, one file for each reader, and flash of many kinds.

``python3 seeds.py SAMPLES OUT``; it needs the standard library alone.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

SECTORS = 4
SECTOR_BYTES = 512
LONGEST = 2047
"""With the first byte, what the fuzzer takes (``-max_len``)."""

READINGS_SHARE = 0.7


def parsers(samples: Path, out: Path) -> None:
    """The first byte says which reader gets the rest (``parsers.cpp``)."""
    for path in sorted(samples.glob("*.json")):
        sample = json.loads(path.read_text(encoding="utf-8"))
        plaintext = bytes.fromhex(sample.get("plaintext", ""))
        if 0 < len(plaintext) <= LONGEST:
            for reader in (0, 1, 2):
                (out / f"{path.stem}-{reader}").write_bytes(bytes([reader]) + plaintext)
        payload = sample["payload"]
        if isinstance(payload, str) and len(payload) // 2 <= LONGEST:
            (out / f"{path.stem}-3").write_bytes(b"\x03" + bytes.fromhex(payload))
    (out / "probe").write_bytes(b"\x04" + bytes.fromhex("53024b467fff0c1000"))
    (out / "cuff").write_bytes(
        b"\x05" + bytes.fromhex("1e76004c005a00ea0703020e0200480001" + "0400")
    )
    (out / "topic").write_bytes(b"\x07fajma/v2/A4CF12F03B7E/ack")


def journal(out: Path) -> None:
    """Sectors with headers that are sound once their check sums are mended."""
    source = random.Random(8)  # noqa: S311 - to be the same each time
    for number in range(40):
        flash = bytearray()
        first = source.randrange(20)
        for sector in range(SECTORS):
            sequence = first + (sector - first) % SECTORS
            oldest = source.randrange(50)
            after = oldest + source.randrange(50)
            header = b"FJ01" + sequence.to_bytes(8) + source.randrange(9).to_bytes(4)
            header += (
                (after + source.randrange(300)).to_bytes(8) + oldest.to_bytes(8) + after.to_bytes(8)
            )
            slots = b"".join(slot(source, after) for _ in range(source.randrange(7)))
            flash += (header.ljust(128, b"\0") + slots).ljust(SECTOR_BYTES, b"\xff")
        mended = bytes(0x40 | source.randrange(64) for _ in range(SECTORS))
        (out / f"flash-{number}").write_bytes(mended + flash)


def slot(source: random.Random, number: int) -> bytes:
    """A reading, or a mark."""
    number += source.randrange(8)
    if source.random() < READINGS_SHARE:
        return (b"R\x03\x64\x02" + number.to_bytes(8)).ljust(64, b"\0")
    mark = b"M\0\0\0" + (number + 256).to_bytes(8) + b"\0\0\0\x05" + (number // 2).to_bytes(8)
    return (mark + number.to_bytes(8) + source.randrange(256).to_bytes(8)).ljust(64, b"\0")


if __name__ == "__main__":
    parsers(Path(sys.argv[1]), Path(sys.argv[2]) / "parsers")
    journal(Path(sys.argv[2]) / "journal")
