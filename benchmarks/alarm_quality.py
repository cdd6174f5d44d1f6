"""How good our alarms are beside a naive threshold, over synthetic patient days.

``python -m benchmarks alarm_quality`` measures and writes ``build/alarm_quality.json``;
``python -m benchmarks.alarm_quality_table`` puts it into ``docs/alarms.md``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final

from rich.progress import track

from benchmarks.alarm_quality_score import Score, found_of, interval, quantile, score
from benchmarks.alarm_quality_seeds import DEVELOPMENT, held_out
from benchmarks.alarm_ways import WAYS
from benchmarks.patient_days import PATIENT_EVENTS, TECHNICAL_EVENTS, patient_day
from benchmarks.record import record

OUTPUT: Final = Path("build/alarm_quality.json")
PROCESSES: Final = 2

Scores = dict[str, Score]
"""By way to alarm."""


def score_day(seed: int) -> Scores:
    """One day, by every way."""
    day = patient_day(seed)
    return {name: score(day, list(way(day))) for name, way in WAYS.items()}


def score_days(seeds: Sequence[int], name: str) -> Scores:
    """Many days, added up in the order of the seeds."""
    total = {way: Score() for way in WAYS}
    with ProcessPoolExecutor(PROCESSES) as pool:
        scores = pool.map(score_day, seeds, chunksize=2)
        for one in track(scores, f"{name} days", total=len(seeds)):
            for way, added in one.items():
                total[way].add(added)
    return total


def summary(one: Score) -> dict[str, Any]:
    """The figures of a score, for JSON.

    Returns:
        ``events`` by cause (found, of, 95 % interval, median and 95th centile of the time to alarm
        in seconds, number that broke no limit) and rates per patient-day.
    """
    events = {}
    for cause in (*PATIENT_EVENTS, *TECHNICAL_EVENTS):
        delays_s = one.delays_s.get(cause, [])
        found, of = found_of(delays_s)
        events[str(cause)] = {
            "found": found,
            "of": of,
            "interval": [round(end, 3) for end in interval(found, of)],
            "median_s": quantile(delays_s, 0.5),
            "p95_s": quantile(delays_s, 0.95),
            "already_open": one.already_open[cause],
            "unreachable": one.unreachable[cause],
        }
    return {
        "patient_days": round(one.days, 2),
        "events": events,
        "false_per_day": round(one.false.total() / one.days, 3),
        "false_per_day_by_cause": {
            cause: round(count / one.days, 3) for cause, count in sorted(one.false.items())
        },
        "alarms_per_day": round(one.alarms / one.days, 3),
        "messages_per_day": round(one.messages / one.days, 3),
    }


def _patients_found(one: Score) -> float:
    """The share of reachable events of patients that were found."""
    known = [delay for cause in PATIENT_EVENTS for delay in one.delays_s.get(cause, [])]
    found, of = found_of(known)
    return found / of if of else 0.0


def alarm_quality() -> None:
    """Sensitivity, false alarms and time to alarm, ours and naive."""
    sets = {"development": score_days(DEVELOPMENT, "development")}
    seeds = held_out()
    if seeds:
        sets["held_out"] = score_days(seeds, "held-out")
    else:
        print("no held-out days: the defaults are not frozen (benchmarks.alarm_quality_seeds)")
    summaries = {
        name: {way: summary(one) for way, one in scores.items()} for name, scores in sets.items()
    }
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(summaries, indent=2) + "\n", encoding="utf-8")
    for name, scores in sets.items():
        _record(name, scores)


def _record(days: str, scores: Scores) -> None:
    our = scores["ours"]
    false = our.false.total() / our.days
    for naive, aim in (("each_reading", 0.05), ("edge", 0.2)):
        theirs = scores[naive]
        reference = theirs.false.total() / theirs.days
        record(
            f"alarm_quality_false_{days}_vs_{naive}", false, "false alarms/patient-day",
            reference=f"naive threshold, {naive}", reference_value=reference,
            aim=f"<= {aim} x the reference", met=false <= aim * reference,
        )  # fmt: skip
    share = _patients_found(our)
    record(
        f"alarm_quality_sensitivity_{days}", share, "of reachable events",
        reference="naive threshold, edge", reference_value=_patients_found(scores["edge"]),
        aim=">= 0.95", met=share >= 0.95,
    )  # fmt: skip
