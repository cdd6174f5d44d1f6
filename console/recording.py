"""Recordings of vitals: CSV files that a simulated monitor can play."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Final

from fajma.errors import InputError
from fajma.vitals import Kind

# Spellings in the header of a recording, without case, spaces and units; the first one present in
# the file is taken, so that an ECG's heart rate comes before the oximeter's pulse.
_COLUMNS: Final[Mapping[Kind, tuple[str, ...]]] = {
    Kind.HEART_RATE: ("heart_rate", "heartrate", "hr", "pulse", "pulse_rate", "pr"),
    Kind.SPO2: ("spo2", "sao2", "%spo2"),
    Kind.TEMPERATURE: ("temperature", "temp", "body_temperature"),
    Kind.SYSTOLIC: ("systolic", "sbp", "sys", "nbpsys"),
    Kind.DIASTOLIC: ("diastolic", "dbp", "dia", "nbpdias"),
}
_TIME_COLUMNS: Final = ("time", "seconds", "t", "elapsed")


def read_recording(path: Path) -> list[tuple[float | None, dict[Kind, Decimal]]]:
    """Read a recording.

    The header names the columns, without regard to case, spaces and a unit in brackets (``SpO2``,
    ``HR``, ``Time [s]``); columns we do not know are ignored. Cells that are empty or NaN are
    missing values. Implausible values stay: real monitors send them too.

    Returns:
        Per row: seconds (``None`` when the file has no time) and the values.

    Raises:
        InputError: the file cannot be read or played; the message names the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            header = [_plain_name(cell) for cell in next(rows, [])]
            columns = {
                kind: header.index(name)
                for kind, names in _COLUMNS.items()
                if (name := next((name for name in names if name in header), None))
            }
            time_column = next((header.index(n) for n in _TIME_COLUMNS if n in header), None)
            if not columns:
                raise InputError(
                    f"{path.name} has no column of a vital: its first line must name some, such as "
                    "HR, SpO2 or temperature.",
                    code="bad_recording",
                )
            recording = [
                _read_row(path.name, rows.line_num, row, columns, time_column)
                for row in rows
                if any(cell.strip() for cell in row)
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path} cannot be read: name a CSV file with a header line.", code="bad_recording"
        ) from error
    times = [seconds for seconds, _ in recording if seconds is not None]
    if any(later < earlier for earlier, later in itertools.pairwise(times)):
        raise InputError(
            f"{path.name} runs backwards in time: sort its rows.", code="bad_recording"
        )
    return recording


def _plain_name(cell: str) -> str:
    """A column's name without unit, case and spaces."""
    return re.sub(r"\s+", "", re.sub(r"[\[(].*", "", cell)).lower()


def _read_row(
    file: str, line: int, row: list[str], columns: Mapping[Kind, int], time_column: int | None
) -> tuple[float | None, dict[Kind, Decimal]]:
    values = {}
    for kind, column in columns.items():
        value = _read_cell(file, line, row, column)
        if value is not None:
            values[kind] = value
    if time_column is None:
        return None, values
    seconds = _read_cell(file, line, row, time_column)
    if seconds is None:
        raise InputError(f"{file}, line {line}: the time is missing.", code="bad_recording")
    return float(seconds), values


def _read_cell(file: str, line: int, row: list[str], column: int) -> Decimal | None:
    text = row[column].strip() if column < len(row) else ""
    if not text or text.lower() == "nan":
        return None
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal("Infinity")
    # Nothing a monitor measures has more digits before or after its point.
    if not value.is_finite() or abs(value.adjusted()) > 9:  # noqa: PLR2004
        raise InputError(
            f"{file}, line {line}: a cell is not a number; leave it empty when there is no value.",
            code="bad_recording",
        )
    return value
