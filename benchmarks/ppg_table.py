"""The figures of the pulse oximeter as a block of ``docs/firmware-ppg.md``.

``python -m benchmarks.ppg_table`` writes what ``python -m benchmarks ppg`` measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.alarm_quality_table import put
from benchmarks.ppg import OUTPUT

PAGE: Final = Path("docs/firmware-ppg.md")
BEGIN: Final = "<!-- pulse oximeter: begin, written by python -m benchmarks.ppg_table -->"
END: Final = "<!-- pulse oximeter: end -->"

_RATE_HEADER: Final = (
    "recording", "windows", "refused", "median error, /min", "95th percentile",
    "believed and > 10 off",
)  # fmt: skip


def tables(found: dict[str, Any]) -> str:
    """What was measured, as Markdown."""
    oxygen = found["oxygen"]
    curves = [f"{a:.1f} - {-b:.1f} ln R" for a, b in [*oxygen["curves"], oxygen["everything"]]]
    parts = ["**SpO2, red and infrared in hypoxia (one person)**"]
    parts.append(
        _table(
            ("judged", "fitted to", "curve, %", "recordings", "A_rms, %"),
            [
                ("odd places", "even places", curves[0], oxygen["halves"][1],
                 f"{oxygen['across'][0]:.2f}"),
                ("even places", "odd places", curves[1], oxygen["halves"][0],
                 f"{oxygen['across'][1]:.2f}"),
                ("**both, out of sample**", "each the other half", "", sum(oxygen["halves"]),
                 f"**{oxygen['two_fold']:.2f}**"),
                ("each, out of sample", "all the others", "", sum(oxygen["halves"]),
                 f"{oxygen['leave_one_out']:.2f}"),
                ("all, *in-sample*", "all (the core's curve)", curves[2], sum(oxygen["halves"]),
                 f"{oxygen['in_sample']:.2f}"),
            ],
        )
    )  # fmt: skip
    parts.append(
        f"{oxygen['refused']:.1%} of {oxygen['recordings']} recordings were refused. Heart rate on "
        f"them (2.5 to 6 s each): median error {oxygen['heart_rate']['median']:.1f} /min."
    )
    parts.append("**Heart rate, intensive care (BIDMC)**")
    rows: list[tuple[Any, ...]] = [
        _rate_row(name.replace("_", " "), one) for name, one in found["patients"].items()
    ]
    parts.append(_table(_RATE_HEADER, [*rows, _rate_row("**all**", found["care"])]))
    parts.append("**Synthetic truth**")
    header = ("scene", *_RATE_HEADER[1:], "SpO2 A_rms, %", "windows with SpO2")
    rows = [
        (*_rate_row(f"{scene}, {band} /min", one), f"{one['spo2_arms']:.2f}", one["spo2_windows"])
        for scene, bands in found["synthetic"].items()
        for band, one in bands.items()
    ]
    parts.append(_table(header, rows))
    parts.append("**MAX30102 without reference**")
    header = ("recording", "windows", "refused", "heart rate, /min", "R", "told as exchanged",
              "LEDs exchanged: told at the end", "windows with SpO2 before")  # fmt: skip
    rows = [
        (name, one["windows"], f"{one['refused']:.0%}", f"{one['heart_rate']:.0f}",
         f"{one['ratio']:.2f}", _said(one["swapped"]), _said(one["exchanged_seen"]),
         f"{one['exchanged_spo2']} of {one['exchanged_windows']}")
        for name, one in found["sensor"].items()
    ]  # fmt: skip
    parts.append(_table(header, rows))
    return "\n\n".join(parts)


def _rate_row(name: str, one: dict[str, float]) -> tuple[Any, ...]:
    return (
        name,
        one["windows"],
        f"{one['refused']:.1%}",
        f"{one['median']:.2f}",
        f"{one['p95']:.1f}",
        f"{one['far_off']:.1%}",
    )


def _said(what: bool) -> str:  # noqa: FBT001 - a cell's content
    return "yes" if what else "no"


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = (header, ["---"] * len(header), *rows)
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    found = json.loads(OUTPUT.read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(put(page, tables(found), BEGIN, END), encoding="utf-8")
