"""What the alarm engine remembers of a patient, for whoever only reads it."""

from __future__ import annotations

from bots.alerts.alarm_state import PatientState
from bots.alerts.both_logs import merged, opened
from bots.alerts.judge import take
from bots.alerts.site_rules import SiteRules
from fajma.store import Records
from fajma.vitals import PatientKey


async def kept_state(records: Records, patient: PatientKey) -> PatientState:
    """The state of a patient as it was last written; an empty one before anything was judged.

    Up to a minute old in what each reading renews (``engine.KEEP_EVERY``).

    Raises:
        FajmaError: it does not open, or this version cannot read it.
    """
    text = await records.alarm_states.get(patient)
    return PatientState.from_json(text) if text else PatientState()


async def present_state(records: Records, patient: PatientKey, rules: SiteRules) -> PatientState:
    """The state of a patient now: what came since it was written is judged again, for nobody else.

    Raises:
        FajmaError: as ``kept_state``, or a row that came since does not open.
    """
    state = await kept_state(records, patient)
    if state == PatientState():  # nothing was judged yet
        return state
    until, noted = await records.readings.head(), await records.facts.head()
    readings = await records.readings.sealed_between([patient], state.position, until)
    facts = await records.facts.sealed_between([patient], state.noted, noted)
    async for fact in opened(records, [one for _, one in merged(readings, facts)]):
        state, _ = take(state, fact, rules)
    return state
