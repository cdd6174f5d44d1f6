"""How many readings a second the pure alarm engine judges on one core."""

from __future__ import annotations

import gc
import statistics
import time
from typing import Final

from benchmarks.alarm_ways import reading_of
from benchmarks.patient_days import patient_day
from benchmarks.record import record
from bots.alerts.alarm import ReadingFact
from bots.alerts.alarm_state import PatientState
from bots.alerts.judge import take
from bots.alerts.site_rules import SiteRules

PATIENTS: Final = 20
FIRST_SEED: Final = 1
TURNS: Final = 5
AIM: Final = 100_000


def facts(patients: int) -> list[tuple[int, ReadingFact]]:
    """Days of patients in one log, by arrival: the number of the patient and his reading."""
    days = [patient_day(seed) for seed in range(FIRST_SEED, FIRST_SEED + patients)]
    arrived = sorted(
        (sent.received_s, number, place)
        for number, day in enumerate(days)
        for place, sent in enumerate(day.sent)
    )
    readings = ((number, reading_of(days[number].sent[place])) for _, number, place in arrived)
    return [
        (number, ReadingFact(position, reading))
        for position, (number, reading) in enumerate(readings)
        if reading is not None
    ]


def judge(log: list[tuple[int, ReadingFact]], patients: int) -> int:
    """Judge the whole log.

    Returns:
        How many decisions were announced.
    """
    states = [PatientState()] * patients
    rules = SiteRules()
    announced = 0
    for number, fact in log:
        states[number], decisions = take(states[number], fact, rules)
        for decision in decisions:
            announced += decision.announce
    return announced


def alarm_engine() -> None:
    """Readings of 20 synthetic patient days, in the order of one log, no I/O."""
    log = facts(PATIENTS)
    gc.collect()
    gc.freeze()  # a long-lived log is no work of the engine's
    rates = []
    for _ in range(TURNS):
        began = time.process_time()
        judge(log, PATIENTS)
        rates.append(len(log) / (time.process_time() - began))
    gc.unfreeze()
    rate = statistics.median(rates)
    record("alarm_engine", rate, "readings/s", aim=f">= {AIM}", met=rate >= AIM)
