"""Ways to turn what a monitor sends into messages: our alarm engine, and two naive ones; pure.

The naive ways compare each value, as the monitor states it, with the mildest default limit of its
kind, as a rule in a dashboard or a flow does: ``each_reading`` posts for each reading that breaks a
limit, ``edge`` when the value crosses the limit, outwards (an alarm) and back (it is over). Neither
knows that a reading is late.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Final

from benchmarks.alarm_quality_score import Message, mildest_limits
from benchmarks.patient_days import (
    DURING_OUTAGE,
    NO_PULSE,
    START,
    TECHNICAL,
    PatientDay,
    Sent,
)
from bots.alerts.alarm import ReadingFact
from bots.alerts.alarm_state import PatientState, Trouble
from bots.alerts.judge import NotedFact, due, take
from bots.alerts.late import LateDecision
from bots.alerts.limits import Limit
from bots.alerts.open_alarms import AnyDecision
from bots.alerts.site_rules import SiteRules
from bots.alerts.technical import TechnicalDecision
from fajma.facts import Acknowledged, AgeBand, Fact, Profiled, TimePassed, Worn
from fajma.vitals import TELLING_LOW, Age, Clock, DeviceId, Reading, is_plausible

ANSWER_S: Final = 60
"""Somebody acknowledges each alarm so long after it: what comes later is not a reminder."""

_DEVICE: Final = DeviceId("A4CF12F03B7E")
_RULES: Final = SiteRules()


def reading_of(sent: Sent) -> Reading | None:
    """What the readings log holds of a message; ``None`` where it holds nothing."""
    values = {kind: value for kind, value in sent.values.items() if is_plausible(kind, value)}
    unusable = frozenset(
        kind for kind, value in sent.values.items() if kind in TELLING_LOW and kind not in values
    )
    if not values and not unusable and sent.contact is not False:
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
        unusable=unusable,
    )


def ours(day: PatientDay) -> Iterator[Message]:
    """The alarm engine, told of age and COPD, with somebody who answers each alarm."""
    judge = _Judge(day)
    for position, sent in enumerate(day.sent):
        reading = reading_of(sent)
        yield from judge.until(START + timedelta(seconds=sent.received_s))
        if reading is not None:
            yield from judge.take(ReadingFact(position, reading))


class _Judge:
    """Gives the engine what the parts around it would."""

    def __init__(self, day: PatientDay) -> None:
        self._state = PatientState()
        self._facts = 0
        self._answers: list[datetime] = []
        self._note(Profiled(START, AgeBand.ADULT, None, day.copd))
        self._note(Worn(START, _DEVICE))

    def until(self, moment: datetime) -> Iterator[Message]:
        """What only time brings about, up to a moment."""
        while True:
            at = due(self._state, _RULES)
            answer = self._answers[0] if self._answers else None
            if answer is not None and answer < moment and (at is None or answer <= at):
                del self._answers[0]
                yield from self._note(Acknowledged(answer, "@awa:clinic.test", None))
            elif at is not None and at < moment:
                yield from self._note(TimePassed(at))
            else:
                return

    def take(self, fact: ReadingFact | NotedFact) -> list[Message]:
        """What is told because of something."""
        self._state, decisions = take(self._state, fact, _RULES)
        return [self._message(one) for one in decisions if one.announce]

    def _note(self, fact: Fact) -> list[Message]:
        self._facts += 1
        return self.take(NotedFact(self._facts, fact))

    def _message(self, decision: AnyDecision) -> Message:
        if decision.rings:
            self._answers.append(decision.at + timedelta(seconds=ANSWER_S))
        if isinstance(decision, TechnicalDecision):
            no_pulse = decision.trouble is Trouble.NO_USABLE_PULSE
            track = NO_PULSE if no_pulse else TECHNICAL
        elif isinstance(decision, LateDecision):
            track = DURING_OUTAGE
        else:
            track = decision.track
        at_s = (decision.at - START) / timedelta(seconds=1)
        return Message(at_s, track, over=not decision.rings)


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
