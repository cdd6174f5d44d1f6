"""Which alarms of a patient are open, a line each: for handovers, ``!alarmes`` and our return."""

from __future__ import annotations

from datetime import datetime

import structlog

from bots.alerts.alarm import Reason
from bots.alerts.alarm_state import PatientState
from bots.alerts.kept_state import present_state
from bots.alerts.limits import Priority
from bots.alerts.open_alarms import AnyDecision, OpenAlarm, open_alarms
from bots.alerts.own_limits import lasting, limit_of
from bots.alerts.site_rules import SiteRules
from bots.alerts.text import duty_time, named_limit, place_of, render, unreadable
from fajma.errors import FajmaError
from fajma.language import SEPARATOR, Language, translator
from fajma.store import Records
from fajma.store.patients import Patient

log = structlog.get_logger()


async def readable_state(
    records: Records, patient: Patient, rules: SiteRules
) -> PatientState | None:
    """What is remembered of a patient; ``None`` if it does not open, which is logged.

    One bad record must not stop an answer about all beds: there say ``unreadable``.
    """
    try:
        return await present_state(records, patient.key, rules)
    except FajmaError as error:
        log.critical("alarm_state_unreadable", patient=patient.key, code=error.code)
        return None


async def open_lines(
    records: Records,
    patient: Patient,
    rules: SiteRules,
    *,
    language: Language,
    zone: str,
    now: datetime,
) -> list[str]:
    """The open alarms that somebody was told of, with a tick where somebody takes care."""
    state = await readable_state(records, patient, rules)
    if state is None:
        return [unreadable(patient.bed, patient.initials, language)]
    return [
        _mark(state, alarm, zone, language, now)
        + words(alarm.say(Reason.STARTED, now), patient, language, zone)
        for alarm in open_alarms(state, rules)
        if not alarm.folded
    ]


def _mark(
    state: PatientState, alarm: OpenAlarm, zone: str, language: Language, now: datetime
) -> str:
    """That somebody takes care, or that the alarm is paused."""
    if is_answered(state, alarm):
        return "✓ "
    if alarm.snooze is None or alarm.snooze.until <= now:
        return ""
    _ = translator(language).gettext
    until = duty_time(alarm.snooze.until, zone, language, now=now)
    return _("paused until {time}").format(time=until) + SEPARATOR


def words(decision: AnyDecision, patient: Patient, language: Language, zone: str) -> str:
    """An open alarm, as its message would be now."""
    return render(
        decision, bed=patient.bed, initials=patient.initials, language=language, zone=zone
    ).body


def is_answered(state: PatientState, alarm: OpenAlarm) -> bool:
    """Whether somebody takes care of an open alarm."""
    care = state.care.get(alarm.alarm_id)
    return care is None or care.acknowledged


async def lasting_limits(
    records: Records,
    patient: Patient,
    rules: SiteRules,
    *,
    language: Language,
    zone: str,
    now: datetime,
) -> list[str]:
    """The patient's own limits that outlive a handover."""
    _ = translator(language).gettext
    state = await readable_state(records, patient, rules)
    own_limits = () if state is None else state.standing.own_limits
    return [
        SEPARATOR.join(
            (
                place_of(patient.bed, patient.initials, language),
                named_limit(own.kind, limit_of(own, Priority.MEDIUM), language),
                _("until {time}").format(time=duty_time(own.until, zone, language, now=now)),
            )
        )
        for own in lasting(own_limits, now, handed_over=True)
    ]
