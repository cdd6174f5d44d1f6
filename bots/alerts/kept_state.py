"""What the alarm engine kept of a patient last, for whoever only reads it."""

from __future__ import annotations

from bots.alerts.alarm_state import PatientState
from fajma.store import Records
from fajma.vitals import PatientKey


async def kept_state(records: Records, patient: PatientKey) -> PatientState:
    """The state of a patient; an empty one before anything was judged.

    Raises:
        FajmaError: it does not open, or this version cannot read it.
    """
    text = await records.alarm_states.get(patient)
    return PatientState.from_json(text) if text else PatientState()
