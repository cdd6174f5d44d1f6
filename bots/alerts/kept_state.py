"""What the alarm engine kept of a patient last, for whoever only reads it."""

from __future__ import annotations

from datetime import UTC, datetime

from bots.alerts.alarm import Reason
from bots.alerts.alarm_state import PatientState
from bots.alerts.limits import Priority
from bots.alerts.open_alarms import open_alarms
from bots.alerts.site_rules import SiteRules
from fajma.errors import FajmaError
from fajma.store import Records
from fajma.vitals import PatientKey


async def kept_state(records: Records, patient: PatientKey) -> PatientState:
    """The state of a patient; an empty one before anything was judged.

    Raises:
        FajmaError: it does not open, or this version cannot read it.
    """
    text = await records.alarm_states.get(patient)
    return PatientState.from_json(text) if text else PatientState()


async def unanswered(records: Records, rules: SiteRules, patient: PatientKey) -> bool:
    """Whether a patient has an alarm of high priority that nobody has answered.

    Who cannot be read may have one.
    """
    try:
        state = await kept_state(records, patient)
    except FajmaError:
        return True
    now = datetime.now(UTC)  # stands in no priority
    for one in open_alarms(state, rules):
        care = state.care.get(one.alarm_id)
        answered = care is not None and care.acknowledged
        if one.say(Reason.STARTED, now).priority is Priority.HIGH and not answered:
            return True
    return False
