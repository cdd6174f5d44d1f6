"""Technical alarms: what keeps us from judging a patient, so that somebody must look. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from bots.alerts.alarm import Reason
from bots.alerts.alarm_state import AlarmId, Trouble
from bots.alerts.limits import Priority
from fajma.vitals import DeviceId


@dataclass(frozen=True, slots=True)
class TechnicalDecision:
    """What is said, or not, about a sensor's trouble.

    Attributes:
        reason: why it is announced, or why not.
        trouble: what is wrong.
        device: the monitor it is about.
        priority: of the alarm.
        alarm_id: the technical alarm.
        since: when the trouble began, by our clock.
        last_good_at: when the last value that could be judged was measured; ``None`` if there was
            none since the patient wears a monitor.
        at: when this was decided, by our clock.
        step: of the escalation ladder that is reached, from 0; all up to it are told.
    """

    reason: Reason
    trouble: Trouble
    device: DeviceId
    priority: Priority
    alarm_id: AlarmId
    since: datetime
    last_good_at: datetime | None
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
        return (f"{self.trouble}-{self.device}", self.reason, self.priority.name, self.alarm_id)
