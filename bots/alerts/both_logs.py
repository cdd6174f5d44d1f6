"""Readings and facts in their one order, sealed and opened."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from bots.alerts.alarm import ReadingFact
from bots.alerts.judge import NotedFact
from fajma.store import Records
from fajma.store.facts import SealedFact
from fajma.store.readings import SealedReading
from fajma.vitals import PatientKey

New = tuple[PatientKey, SealedReading | SealedFact]


def merged(readings: Iterable[SealedReading], facts: Iterable[SealedFact]) -> list[New]:
    """Readings and facts in their one order: a fact comes after the reading that it names."""
    placed: list[tuple[tuple[int, int, int], PatientKey, SealedReading | SealedFact]] = [
        *(((one.position, 0, 0), one.patient, one) for one in readings),
        *(((one.after, 1, one.position), one.patient, one) for one in facts),
    ]
    return [(patient, one) for _, patient, one in sorted(placed, key=lambda each: each[0])]


async def opened(
    records: Records, new: Iterable[SealedReading | SealedFact]
) -> AsyncIterator[ReadingFact | NotedFact]:
    """What is to be judged.

    Raises:
        FajmaError: a row, or the patient's key, does not open.
    """
    for one in new:
        if isinstance(one, SealedReading):
            logged = await records.readings.open(one)
            yield ReadingFact(logged.position, logged.reading)
        else:
            yield NotedFact(one.position, await records.facts.open(one))
