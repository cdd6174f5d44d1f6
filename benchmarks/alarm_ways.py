"""Ways to turn what a monitor sends into messages: our alarm engine, and two naive ones; pure.

The naive ways compare each value, as the monitor states it, with the mildest default limit of its
kind, as a rule in a dashboard or a flow does: ``each_reading`` posts for each reading that breaks a
limit, ``edge`` when the value crosses the limit, outwards (an alarm) and back (it is over). Neither
knows that a reading is late.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Final

from benchmarks.alarm_quality_score import Message, mildest_limits
from benchmarks.patient_days import START, PatientDay, Sent
from bots.alerts.alarm import ReadingFact, Reason, step
from bots.alerts.alarm_state import PatientState
from bots.alerts.limits import Limit, default_rules
from fajma.vitals import Age, Clock, DeviceId, Reading, is_plausible

_DEVICE: Final = DeviceId("A4CF12F03B7E")
_RULES: Final = default_rules()


def reading_of(sent: Sent) -> Reading | None:
    """What the readings log holds of a message; ``None`` where it holds nothing."""
    values = {kind: value for kind, value in sent.values.items() if is_plausible(kind, value)}
    if not values and sent.contact is not False:
        return None
    return Reading(
        device=_DEVICE,
        measured_at=START + timedelta(seconds=sent.at_s),
        received_at=START + timedelta(seconds=sent.received_s),
        clock=Clock.DEVICE,
        values=values,
        age=Age.LATE if sent.late else Age.LIVE,
        quality=sent.quality,
        contact=sent.contact,
    )


def ours(day: PatientDay) -> Iterator[Message]:
    """The alarm engine; the one place here that knows how it is called."""
    state = PatientState()
    for position, sent in enumerate(day.sent):
        reading = reading_of(sent)
        if reading is None:
            continue
        state, decisions = step(state, ReadingFact(position, reading), _RULES)
        for decision in decisions:
            if decision.announce:
                track = f"{decision.kind}-{decision.direction}"
                over = decision.reason is Reason.RECOVERED
                yield Message(sent.received_s, track, over)


def each_reading(day: PatientDay) -> Iterator[Message]:
    """A message for each reading that breaks a limit."""
    for sent, track, breaks in _compared(day):
        if breaks:
            yield Message(sent.received_s, track)


def edge(day: PatientDay) -> Iterator[Message]:
    """A message whenever a value crosses its limit."""
    broken: set[str] = set()
    for sent, track, breaks in _compared(day):
        if breaks and track not in broken:
            broken.add(track)
            yield Message(sent.received_s, track)
        elif not breaks and track in broken:
            broken.remove(track)
            yield Message(sent.received_s, track, over=True)


def _compared(day: PatientDay) -> Iterator[tuple[Sent, str, bool]]:
    """Each value and limit: the reading, the track, and whether the value breaks the limit."""
    by_kind: dict[str, list[tuple[str, Limit]]] = {}
    for track, limit in mildest_limits(copd=False).items():
        by_kind.setdefault(track.rpartition("-")[0], []).append((track, limit))
    for sent in day.sent:
        for kind, value in sent.values.items():
            for track, limit in by_kind.get(kind, ()):
                yield sent, track, limit.broken_by(value)


WAYS: Final[Mapping[str, Callable[[PatientDay], Iterator[Message]]]] = {
    "ours": ours,
    "each_reading": each_reading,
    "edge": edge,
}
