"""Which alarms of a patient are open, a line each: for handovers, ``!alarmes`` and our return."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from operator import itemgetter

import structlog

from bots.alerts import outage
from bots.alerts.alarm import Reason
from bots.alerts.alarm_state import PatientState
from bots.alerts.kept_state import present_state
from bots.alerts.limits import Priority
from bots.alerts.open_alarms import AnyDecision, OpenAlarm, open_alarms
from bots.alerts.own_limits import lasting, limit_of
from bots.alerts.site_rules import SiteRules
from bots.alerts.text import (
    Text,
    bed_and_initials,
    duty_time,
    named_limit,
    place_of,
    render,
    unreadable,
)
from fajma.errors import FajmaError
from fajma.language import SEPARATOR, Language, translator
from fajma.store import Records
from fajma.store.outages import Outage
from fajma.store.patients import Patient
from fajma.store.wards import Ward
from fajma.typed import in_order
from fajma.vitals import PatientKey

log = structlog.get_logger()

State = tuple[Patient, PatientState | None]
"""A patient, and what is remembered of him; ``None`` if it does not open."""


async def readable_state(
    records: Records, patient: PatientKey, rules: SiteRules
) -> PatientState | None:
    """What is remembered of a patient; ``None`` if it does not open, which is logged.

    One bad record must not stop an answer about all beds: there say ``unreadable``.
    """
    try:
        return await present_state(records, patient, rules)
    except FajmaError as error:
        log.critical("alarm_state_unreadable", patient=patient, code=error.code)
        return None


async def readable_states(
    records: Records, patients: Iterable[Patient], rules: SiteRules
) -> list[State]:
    """The same of several patients, in their order."""
    return [(one, await readable_state(records, one.key, rules)) for one in patients]


def open_lines(
    states: Iterable[State], rules: SiteRules, *, language: Language, zone: str, now: datetime
) -> list[str]:
    """The open alarms that somebody was told of, with a tick where somebody takes care.

    First of high priority that nobody has answered, then by priority, then as the patients come.
    """
    lines: list[tuple[bool, int, str]] = []
    for patient, state in states:
        if state is None:
            nobody_knows = unreadable(patient.bed, patient.initials, language)
            lines.append((False, -Priority.HIGH, nobody_knows))
            continue
        for alarm in open_alarms(state, rules):
            if alarm.folded:
                continue
            decision = alarm.say(Reason.STARTED, now)
            answered = is_answered(state, alarm)
            line = _mark(state, alarm, zone, language, now) + words(
                decision, patient, language, zone
            )
            first = decision.priority is Priority.HIGH and not answered
            lines.append((not first, -decision.priority, line))
    return [line for *_, line in sorted(lines, key=itemgetter(0, 1))]


def not_taken(state: PatientState, rules: SiteRules, now: datetime) -> list[AnyDecision]:
    """The open alarms of high priority that nobody has answered."""
    found = []
    for alarm in open_alarms(state, rules):
        decision, care = alarm.say(Reason.STARTED, now), state.care.get(alarm.alarm_id)
        if decision.priority is Priority.HIGH and (care is None or not care.acknowledged):
            found.append(decision)
    return found


async def unanswered(records: Records, rules: SiteRules, patient: PatientKey) -> bool:
    """Whether a patient has such an alarm; who cannot be read may have one."""
    state = await readable_state(records, patient, rules)
    return state is None or bool(not_taken(state, rules, datetime.now(UTC)))


async def outage_line(
    records: Records,
    one: Outage,
    rules: SiteRules,
    ward: Ward,
    *,
    language: Language,
    now: datetime,
) -> str | None:
    """The outage of a ward, with a tick where somebody takes care; ``None`` if all are back."""
    silent = []
    for patient in one.patients:
        state = await readable_state(records, patient, rules)
        if state is None or outage.is_silent(state, now, rules.silent_after):
            silent.append(patient)
    if not silent:
        return None
    text = await outage_text(records, one, silent, ward, language)
    return ("" if one.answered_at is None else "✓ ") + text.body


async def outage_text(
    records: Records,
    one: Outage,
    silent: Collection[PatientKey],
    ward: Ward,
    language: Language,
) -> Text:
    """An outage as its message would be now."""
    return outage.told(
        await beds_in_order(records, silent),
        len(silent),
        one.members,
        since=one.began_at,
        language=language,
        zone=ward.time_zone,
    )


async def beds_in_order(records: Records, patients: Collection[PatientKey]) -> list[str]:
    """Bed and initials of each whose record opens, by bed."""
    found = []
    for key in patients:
        try:
            patient = await records.patients.get(key)
        except FajmaError as error:
            log.critical("patient_unreadable", patient=key, code=error.code)
            continue
        found += (
            []
            if patient is None
            else [(in_order(patient.bed), bed_and_initials(patient.bed, patient.initials))]
        )
    return [said for _, said in sorted(found)]


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


def lasting_limits(
    states: Iterable[State], *, language: Language, zone: str, now: datetime
) -> list[str]:
    """The limits of single patients that outlive a handover."""
    _ = translator(language).gettext
    return [
        SEPARATOR.join(
            (
                place_of(patient.bed, patient.initials, language),
                named_limit(own.kind, limit_of(own, Priority.MEDIUM), language),
                _("until {time}").format(time=duty_time(own.until, zone, language, now=now)),
            )
        )
        for patient, state in states
        if state is not None
        for own in lasting(state.standing.own_limits, now, handed_over=True)
    ]
