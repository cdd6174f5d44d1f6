"""One record per figure, appended to ``build/bench.json`` (a JSON object a line).

Fields: ``name, value, unit, reference, reference_value, ratio, aim, met, machine, date``. ``aim``
is a text such as ``<= 2 x the reference``; ``ratio`` is ``value / reference_value``.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

OUTPUT = Path("build/bench.json")


@dataclass(frozen=True, slots=True)
class Record:
    """One figure."""

    name: str
    value: float
    unit: str
    reference: str
    reference_value: float | None
    ratio: float | None
    aim: str
    met: bool
    machine: str
    date: str


def record(
    name: str,
    value: float,
    unit: str,
    *,
    aim: str,
    met: bool,
    reference: str = "",
    reference_value: float | None = None,
) -> Record:
    """Append a figure and show it."""
    ratio = round(value / reference_value, 3) if reference_value else None
    one = Record(
        name=name,
        value=round(value, 3),
        unit=unit,
        reference=reference,
        reference_value=None if reference_value is None else round(reference_value, 3),
        ratio=ratio,
        aim=aim,
        met=met,
        machine=f"{os.cpu_count()} x {_processor()}, {platform.system()}",
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    with OUTPUT.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(one)) + "\n")
    beside = f"  ({reference}: {one.reference_value} {unit}, ratio {ratio})" if reference else ""
    print(f"{'met   ' if met else 'MISSED'} {name} = {one.value} {unit}  aim {aim}{beside}")
    return one


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
