"""Alarms on real intensive-care numerics (BIDMC), sent as a monitor would send them.

The recordings are 8 min each at one row a second. A monitor sends one row of five, and which one is
chance: all five are played and averaged. Our monitors take the pulse at the finger, so ``PULSE``
is the first source of the heart rate; the same is done with ``HR``, which is from the ECG.

Data: BIDMC PPG and Respiration Dataset 1.0.0, PhysioNet, ODC-By 1.0. Pimentel et al., IEEE Trans
Biomed Eng 2017;64:1914-23; Goldberger et al., Circulation 2000;101:e215-20.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from rich.progress import track

from benchmarks.alarm_ways import WAYS
from benchmarks.patient_days import EVERY_S, PatientDay, Sent
from benchmarks.record import record
from fajma.vitals import Kind

OUTPUT: Final = Path("build/alarm_quality_real.json")
DATA: Final = Path(
    os.environ.get("FAJMA_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
)
SOURCES: Final = ("PULSE", "HR")


def recordings() -> list[Path]:
    """The recordings; none where they are not at hand."""
    return sorted((DATA / "bidmc").glob("*_Numerics.csv"))


def played(path: Path, source: str, phase: int) -> PatientDay:
    """What a monitor sends of a recording.

    Args:
        path: CSV with the columns ``Time [s]``, ``SpO2`` and those of ``SOURCES``; NaN is missing.
        source: the column of the heart rate.
        phase: which of five rows is sent, 0 to 4.
    """
    sent = []
    duration_s = 0
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, skipinitialspace=True):
            at_s = int(row["Time [s]"])
            duration_s = at_s + 1
            if at_s % EVERY_S != phase:
                continue
            columns = ((Kind.HEART_RATE, source), (Kind.SPO2, "SpO2"))
            values = {kind: Decimal(row[name]) for kind, name in columns if row[name] != "NaN"}
            sent.append(Sent(at_s, at_s, values, contact=None, quality=None))
    return PatientDay(
        seed=0, copd=False, duration_s=duration_s, sent=tuple(sent), events=(), truth={}
    )


def replay(path: Path, source: str) -> tuple[float, dict[str, Counter[str]]]:
    """A recording in all five phases.

    Returns:
        Hours played, and by way the alarms of each track.
    """
    hours = 0.0
    told: dict[str, Counter[str]] = {name: Counter() for name in WAYS}
    for phase in range(EVERY_S):
        day = played(path, source, phase)
        hours += day.duration_s / 3600
        for name, way in WAYS.items():
            told[name].update(message.track for message in way(day) if not message.over)
    return hours, told


def alarm_quality_real() -> None:
    """Alarms per patient-hour, ours and naive."""
    paths = recordings()
    if not paths:
        print("alarm_quality_real: the real recordings are not at hand, set FAJMA_DATA")
        return
    summaries: dict[str, Any] = {}
    for source in SOURCES:
        total: Counter[str] = Counter()
        hours = 0.0
        patients = {}
        for path in track(paths, f"BIDMC, {source}"):
            of_patient, told = replay(path, source)
            hours += of_patient
            total.update({name: counted.total() for name, counted in told.items()})
            patients[path.stem.removesuffix("_Numerics")] = {
                name: {each: count / EVERY_S for each, count in sorted(counted.items())}
                for name, counted in told.items()
                if counted
            }
        summaries[source] = {
            "patients": len(paths),
            "hours": round(hours / EVERY_S, 2),
            "per_hour": {name: round(total[name] / hours, 2) for name in WAYS},
            "worst": {name: told for name, told in patients.items() if told},
        }
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(summaries, indent=2) + "\n", encoding="utf-8")
    per_hour = summaries["PULSE"]["per_hour"]
    for naive in ("each_reading", "edge"):
        record(
            f"alarm_quality_real_vs_{naive}", per_hour["ours"], "alarms/patient-hour",
            reference=f"naive threshold, {naive}", reference_value=per_hour[naive],
            aim="<= the reference", met=per_hour["ours"] <= per_hour[naive],
        )  # fmt: skip
