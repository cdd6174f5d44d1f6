"""Breaches found in readings that came late: told once per kind and direction. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from bots.alerts.alarm import Reason
from bots.alerts.alarm_state import AlarmId
from bots.alerts.limits import Direction, Limit, Priority
from fajma.vitals import Kind


@dataclass(frozen=True, slots=True)
class LateDecision:
    """What is said, or not, about a breach that nobody could be told of at the time.

    Attributes:
        reason: why it is announced, or why not.
        kind: what was measured.
        direction: on which side of normal.
        priority: of ``limit``.
        value: the worst one, in the unit of the kind.
        measured_at: when it was measured.
        limit: the worst limit that is confirmed.
        alarm_id: the alarm, which waits for an answer.
        first: when the first breaching sample was measured.
        last: when the last one was.
        at: when this was decided, by our clock.
        step: of the escalation ladder that is reached, from 0; all up to it are told.
    """

    reason: Reason
    kind: Kind
    direction: Direction
    priority: Priority
    value: Decimal
    measured_at: datetime
    limit: Limit
    alarm_id: AlarmId
    first: datetime
    last: datetime
    at: datetime
    step: int = 0

    @property
    def announce(self) -> bool:
        """Whether somebody is told; it follows from the reason alone."""
        return self.reason.announced

    @property
    def rings(self) -> bool:
        """Whether it must be a new message; it follows from the reason alone."""
        return self.reason.rings

    @property
    def key(self) -> tuple[str, ...]:
        """The subject, then what may be said of it (``alarm.Decision.key``)."""
        subject = f"late-{self.kind}-{self.direction}"
        return (subject, self.reason, self.priority.name, self.alarm_id)
