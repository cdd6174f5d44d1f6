"""The figures of alarm quality as a block of ``docs/alarms.md``.

``python -m benchmarks.alarm_quality_table`` writes what ``python -m benchmarks alarm_quality
alarm_quality_real`` measured between the marks in the page.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks import alarm_quality, alarm_quality_real
from benchmarks.alarm_quality_seeds import frozen

PAGE: Final = Path("docs/alarms.md")
BEGIN: Final = "<!-- alarm quality: begin, written by python -m benchmarks.alarm_quality_table -->"
END: Final = "<!-- alarm quality: end -->"

_DAYS: Final = {"held_out": "Held-out days", "development": "Development days"}
_WAYS: Final = {"ours": "FAJMA", "each_reading": "each reading", "edge": "each crossing"}


def put(page: str, block: str, begin_mark: str = BEGIN, end_mark: str = END) -> str:
    """The page with the block between its marks.

    Raises:
        ValueError: the page has no such marks.
    """
    before, begin, rest = page.partition(begin_mark)
    _, end, after = rest.partition(end_mark)
    if not (begin and end):
        raise ValueError
    return f"{before}{begin}\n\n{block.strip()}\n\n{end}{after}"


def quality(summaries: Mapping[str, Any], digest: str) -> str:
    """Two tables for each set of days."""
    parts = []
    for name, title in _DAYS.items():
        if name not in summaries:
            continue
        ways = summaries[name]
        days = round(ways["ours"]["patient_days"])
        origin = f", seeds from defaults `{digest[:12]}`" if name == "held_out" else ""
        parts.append(f"**{title}** ({days} patient-days{origin})")
        header = (
            "event",
            *(f"found: {title}" for title in _WAYS.values()),
            "time to alarm: FAJMA",
            "each reading",
            "breaks no limit",
        )
        rows = (_event(event, ways) for event in ways["ours"]["events"])
        parts.append(_table(header, rows))
        parts.append(_table(("per patient-day", *_WAYS.values()), _rates(ways)))
    return "\n\n".join(parts)


def real(summaries: Mapping[str, Any]) -> str:
    """One table: alarms per patient-hour, and each patient with an alarm."""
    rows = []
    for source, figures in summaries.items():
        rows.append(
            (f"**{figures['patients']} patients, {source}**, {figures['hours']} h",
             *(f"**{figures['per_hour'][way]}** per patient-hour" for way in _WAYS))
        )  # fmt: skip
        rows.extend(
            (
                f"{patient.replace('_', ' ')}, {source}",
                *(_counted(told.get(way, {})) for way in _WAYS),
            )
            for patient, told in figures["worst"].items()
        )
    return _table(("recording", *_WAYS.values()), rows)


def _event(event: str, ways: Mapping[str, Any]) -> tuple[str, ...]:
    figures = {way: ways[way]["events"][event] for way in _WAYS}
    return (
        event.replace("_", " "),
        *(_found(figures[way]) for way in _WAYS),
        _delay(figures["ours"]),
        _delay(figures["each_reading"]),
        str(figures["ours"]["unreachable"]),
    )


def _found(figures: Mapping[str, Any]) -> str:
    if not figures["of"]:
        return "none"
    low, high = (round(100 * end) for end in figures["interval"])
    already = f", {figures['already_open']} open before" if figures["already_open"] else ""
    return f"{figures['found']} of {figures['of']} ({low} to {high} %){already}"


def _delay(figures: Mapping[str, Any]) -> str:
    if figures["median_s"] is None:
        return "none"
    return f"{figures['median_s']:.0f} s, {figures['p95_s']:.0f} s"


def _rates(ways: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    causes = sorted({cause for way in _WAYS for cause in ways[way]["false_per_day_by_cause"]})
    yield ("**false alarms**", *(f"**{ways[way]['false_per_day']:.1f}**" for way in _WAYS))
    for cause in causes:
        rates = (ways[way]["false_per_day_by_cause"].get(cause, 0.0) for way in _WAYS)
        yield (f"false: {cause.replace('_', ' ')}", *(f"{rate:.1f}" for rate in rates))
    yield ("alarms", *(f"{ways[way]['alarms_per_day']:.1f}" for way in _WAYS))
    yield ("messages", *(f"{ways[way]['messages_per_day']:.1f}" for way in _WAYS))


def _counted(told: Mapping[str, float]) -> str:
    return ", ".join(f"{track} {count:g}" for track, count in told.items()) or "none"


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(header)
    lines = [names, ["---"] * len(names), *(list(row) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _write() -> None:
    synthetic, recorded = (
        json.loads(module.OUTPUT.read_text(encoding="utf-8"))
        for module in (alarm_quality, alarm_quality_real)
    )
    block = (
        f"{quality(synthetic, frozen()['defaults_sha256'])}\n\n"
        f"**Real recordings** (BIDMC)\n\n{real(recorded)}"
    )
    PAGE.write_text(put(PAGE.read_text(encoding="utf-8"), block), encoding="utf-8")


if __name__ == "__main__":
    _write()
