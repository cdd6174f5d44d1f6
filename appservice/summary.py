"""What is said in a consultation's room when it ends, for the clinicians to sign. Pure.

Numbers that our own log has, no judgement: a summary is no letter to a colleague. It holds no
measured value, for whoever signs has the readings themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from fajma.events import AlarmBlock
from fajma.language import SEPARATOR, Language, translator
from fajma.life import ParticipantRole
from fajma.vitals import Kind

PRIORITIES: Final = ("low", "medium", "high")
"""From the mildest (IEC 60601-1-8)."""


@dataclass(frozen=True, slots=True)
class Alarms:
    """Alarms of one subject.

    Attributes:
        about: a kind, or ``None`` for troubles of a sensor.
        count: how many.
        worst: highest priority among them.
    """

    about: Kind | None
    count: int
    worst: str


@dataclass(frozen=True, slots=True)
class Summary:
    """What is known of a consultation at its end.

    Attributes:
        opened_at: aware UTC.
        ended_at: aware UTC.
        roles: as what people took part, the patient too if with an account.
        alarms: by subject; ``None`` if our record of them does not open.
        limits_changed: how often; ``None`` likewise.
        monitors: how many were taken off by the end.
        despite_alarm: whether an alarm of high priority was open that nobody had answered.
    """

    opened_at: datetime
    ended_at: datetime
    roles: Sequence[ParticipantRole]
    alarms: Sequence[Alarms] | None
    limits_changed: int | None
    monitors: int
    despite_alarm: bool


def counted(blocks: Collection[AlarmBlock]) -> list[Alarms]:
    """Alarms by subject, from all messages about them: each alarm once, kinds before troubles."""
    worst: dict[tuple[Kind | None, str], str] = {}
    for one in blocks:
        key = (one.kind, one.alarm_id)
        worst[key] = max(worst.get(key, one.priority), one.priority, key=PRIORITIES.index)
    found = []
    for about in (*Kind, None):
        of_it = [priority for (kind, _), priority in worst.items() if kind is about]
        if of_it:
            found.append(Alarms(about, len(of_it), max(of_it, key=PRIORITIES.index)))
    return found


def text(summary: Summary, language: Language, zone: str) -> str:
    """The message, in lines."""
    _ = translator(language).gettext
    here = ZoneInfo(zone)
    lines = [
        _("CONSULTATION ENDED · summary, to be signed by a clinician"),
        _("{start} to {end} · {duration}").format(
            start=_time(summary.opened_at.astimezone(here)),
            end=_time(summary.ended_at.astimezone(here)),
            duration=_duration(summary.ended_at - summary.opened_at),
        ),
        _("took part: {roles}").format(roles=_roles(summary.roles, language)),
        _alarms(summary.alarms, language),
    ]
    if summary.limits_changed:
        lines.append(_("limits changed: {count} times").format(count=summary.limits_changed))
    lines.append(_("monitors taken off: {count}").format(count=summary.monitors))
    if summary.despite_alarm:
        lines.append(_("ended although an alarm of high priority was open and not answered"))
    lines.append(_("This room can be read and is written no more. See the patient if in doubt."))
    return "\n".join(lines)


def signed(who: str, at: datetime, language: Language, zone: str) -> str:
    """That a clinician has signed."""
    _ = translator(language).gettext
    time = _time(at.astimezone(ZoneInfo(zone)))
    return _("✓ Summary signed by {who} · {time}").format(who=who, time=time)


def not_come(language: Language) -> str:
    """That the patient did not come."""
    _ = translator(language).gettext
    return _("CONSULTATION CLOSED · the patient did not come")


def _alarms(alarms: Sequence[Alarms] | None, language: Language) -> str:
    _ = translator(language).gettext
    if alarms is None:
        return _("alarms: our record of them cannot be read")
    if not alarms:
        return _("no alarm")
    told = SEPARATOR.join(
        f"{_about(one.about, _)} {one.count} ({_priority(one.worst, _)})" for one in alarms
    )
    return _("alarms, with the highest priority of each: {alarms}").format(alarms=told)


def _about(kind: Kind | None, _: Callable[[str], str]) -> str:
    if kind is None:
        return _("sensor")
    names: Mapping[Kind, str] = {
        Kind.HEART_RATE: _("HR"),
        Kind.SPO2: _("SpO2"),
        Kind.TEMPERATURE: _("Temp"),
        Kind.SYSTOLIC: _("Systolic BP"),
        Kind.DIASTOLIC: _("Diastolic BP"),
    }
    return names[kind]


def _priority(priority: str, _: Callable[[str], str]) -> str:
    return {"high": _("high"), "medium": _("medium"), "low": _("low")}[priority]


def _roles(roles: Sequence[ParticipantRole], language: Language) -> str:
    """Each role with how many, in the order of the roles."""
    _ = translator(language).gettext
    names: Mapping[ParticipantRole, str] = {
        ParticipantRole.LEAD: _("lead clinician"),
        ParticipantRole.CLINICIAN: _("clinicians"),
        ParticipantRole.PATIENT: _("patient"),
        ParticipantRole.COMPANION: _("companions"),
        ParticipantRole.INTERPRETER: _("interpreters"),
        ParticipantRole.OBSERVER: _("observers"),
    }
    alone = {ParticipantRole.LEAD, ParticipantRole.PATIENT}
    parts = []
    for role, name in names.items():
        count = sum(one is role for one in roles)
        if count:
            parts.append(name if role in alone else f"{name} {count}")
    return SEPARATOR.join(parts) or _("nobody")


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M}"


def _duration(duration: timedelta) -> str:
    minutes = max(0, duration // timedelta(minutes=1))
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest:02d} min" if hours else f"{rest} min"
