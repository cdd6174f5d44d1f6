"""The words of an alarm: what a clinician reads on a phone at three in the morning.

Urgency comes first, then where to go, then what is wrong: a notification may cut off the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from enum import StrEnum
from html import escape
from typing import Any, Final
from zoneinfo import ZoneInfo

from babel.dates import format_datetime
from babel.numbers import format_decimal

from bots.alerts.alarm import Decision, Reason
from bots.alerts.alarm_state import Trouble
from bots.alerts.late import LateDecision
from bots.alerts.limits import Direction, Limit, Priority, Rules
from bots.alerts.open_alarms import AnyDecision
from bots.alerts.technical import TechnicalDecision
from fajma.errors import BugError
from fajma.language import SEPARATOR, Language, shown, translator
from fajma.vitals import Kind

MAX_BED: Final = 32
"""Longest bed that is shown whole, in characters."""

MAX_INITIALS: Final = 12
"""Longest initials that are shown whole, in characters."""

_DEVICE_END: Final = 4  # digits by which a monitor is known: they stand on its label
_NO_BREAK: Final = "\N{NO-BREAK SPACE}"  # at the end of a line a number keeps its unit and sign
_TENTH: Final = Decimal("0.1")


class Signal(StrEnum):
    """How far the monitor trusts its own signal; monitors of version 1 do not say."""

    GOOD = "good"
    POOR = "poor"


class Called(StrEnum):
    """Whom a step of the ladder calls."""

    TREATING = "treating"
    ON_DUTY = "on_duty"
    WARD = "ward"
    OUTSIDE = "outside"
    """All of the ward, and somebody by the hospital's webhook."""


@dataclass(frozen=True, slots=True)
class Text:
    """A message in the two forms that Matrix carries.

    Attributes:
        body: plain text, one line.
        html: the same words for ``formatted_body``, in tags every client shows.
    """

    body: str
    html: str

    def message(self) -> dict[str, Any]:
        """The content of an ``m.room.message`` that says it."""
        return {
            "msgtype": "m.text",
            "body": self.body,
            "format": "org.matrix.custom.html",
            "formatted_body": self.html,
        }


def place_of(bed: str, initials: str, language: Language) -> str:
    """Where to go, as an alarm begins: ``Lit 4 A.D.``; neither is trusted."""
    _ = translator(language).gettext
    return _("Bed {bed}").format(bed=bed_and_initials(bed, initials))


def bed_and_initials(bed: str, initials: str) -> str:
    """``4 A.D.``; neither is trusted."""
    return f"{shown(bed, MAX_BED)} {shown(initials, MAX_INITIALS)}"


def unreadable(bed: str, initials: str, language: Language) -> str:
    """That nobody can say which alarms of a patient are open."""
    _ = translator(language).gettext
    where = place_of(bed, initials, language)
    return _("{where}: alarms cannot be read, see the patient").format(where=where)


def not_judged(where: str | None, language: Language) -> Text:
    """That no alarm of a patient will come; ``None`` where the record does not open either."""
    _ = translator(language).gettext
    parts = (
        where or _("a patient whose record does not open"),
        _("FAJMA cannot judge this patient's readings: no alarm will come"),
        _("See the patient, and tell the operator"),
    )
    return titled(_("TECHNICAL ALARM"), *parts)


def titled(title: str, *parts: str) -> Text:
    """A message of one line that begins with its title."""
    html = [f"<strong>{escape(title)}</strong>", *map(escape, parts)]
    return Text(SEPARATOR.join((title, *parts)), SEPARATOR.join(html))


_Parts = list[tuple[str, str]]
"""Of a message: each has a bold text and a plain one after it; either may be empty."""


def render(
    decision: AnyDecision,
    *,
    bed: str,
    initials: str,
    language: Language,
    zone: str,
    signal: Signal | None = None,
    age_unknown: bool = False,
    called: Called = Called.ON_DUTY,
) -> Text:
    """Put an announced decision into words.

    Args:
        decision: of whatever subject.
        bed: the bed's number or name as staff typed it, without the word "bed"; not trusted.
        initials: the patient's initials as staff typed them; not trusted.
        language: of the room.
        zone: name of the room's time zone, e.g. ``Africa/Abidjan``. An unknown one shows UTC and
            says so: a bad setting must not cost an alarm.
        signal: quality of the signal; left out of the text where unknown.
        age_unknown: whether an adult's limits are only a guess (``profiles.age_unknown``).
        called: whose phones ring, for a step of the ladder that says so.

    Raises:
        BugError: ``decision_silent``, the decision is not one to announce.
    """
    if not decision.announce:
        raise BugError("Only render decisions that are announced.", code="decision_silent")
    _ = translator(language).gettext
    where = place_of(bed, initials, language)
    if isinstance(decision, TechnicalDecision):
        return _joined(_of_trouble(decision, where, language, zone, called))
    if isinstance(decision, LateDecision):
        return _joined(_of_late_breach(decision, where, language, zone, called))
    if not decision.rings:
        return _joined(_of_end(decision, where, language, zone))
    parts = [
        (_title(decision.priority, _), ""),
        ("", where),
        (_measured(decision, language), f" ({_broken_limit(decision, language)})"),
        *_note(decision, language, called),
    ]
    if signal is not None:
        parts.append(("", _signal(signal, _)))
    if age_unknown:
        parts.append(("", _("age unknown: an adult's limits")))
    time = clock_time(decision.measured_at, zone)
    return _joined([*parts, ("", time), (_("See the patient"), "")])


def _of_end(decision: Decision, where: str, language: Language, zone: str) -> _Parts:
    """An episode that is over; what a clinician did not see end is told by its limit."""
    _ = translator(language).gettext
    if decision.reason is Reason.RECOVERED:
        time = clock_time(decision.measured_at, zone)
        value = _measured(decision, language)
        return [(_("END OF ALARM"), ""), ("", where), (value, ""), ("", time)]
    limit = named_limit(decision.kind, decision.limit, language)
    time = clock_time(decision.at, zone)
    if decision.reason is Reason.NOT_MONITORED:
        title, why = _("END OF MONITORING"), _("an alarm was open: {limit}")
        return [(title, ""), ("", where), ("", why.format(limit=limit)), ("", time)]
    why = _("the limits were changed")
    return [(_("END OF ALARM"), ""), ("", where), ("", limit), ("", why), ("", time)]


def _note(decision: AnyDecision, language: Language, called: Called) -> _Parts:
    """Why there is a message again, where it is not the first."""
    _ = translator(language).gettext
    escalated = {
        Called.TREATING: _("nobody has answered: who treats the patient is called again"),
        Called.ON_DUTY: _("nobody has answered: everybody on duty is called"),
        Called.WARD: _("nobody has answered: everybody of the ward is called"),
        Called.OUTSIDE: _(
            "nobody has answered: everybody of the ward is called, and by SMS or voice"
        ),
    }
    notes = {
        Reason.RENOTIFIED: _("reminder: nobody has answered"),
        Reason.ESCALATED: escalated[called],
        Reason.SNOOZE_ENDED: _("the pause is over"),
        Reason.SNOOZE_BROKEN: _("worse during the pause"),
        Reason.AGAIN_SINCE_ANSWERED: _("again since it was answered"),
        Reason.ANSWER_LAPSED: _("still open, answered hours ago"),
        Reason.WORSE_SINCE_TOLD: _("much worse since the last message"),
        Reason.WORSE_SINCE_ANSWERED: _("much worse since it was answered"),
    }
    note = notes.get(decision.reason)
    return [] if note is None else [("", note)]


def _of_trouble(
    decision: TechnicalDecision, where: str, language: Language, zone: str, called: Called
) -> _Parts:
    _ = translator(language).gettext
    trouble = decision.trouble
    if decision.one_of_several:
        where += SEPARATOR + _("monitor {end}").format(end=decision.device[-_DEVICE_END:])
    if not decision.rings:
        over = {
            Trouble.NO_READINGS: _("measurements come again"),
            Trouble.PROBE_OFF: _("the pulse signal is back"),
            Trouble.UNKNOWN_AGE: _("measurements of now come again"),
            Trouble.WRONG_CLOCK: _("the clock of the monitor is right"),
            Trouble.NO_USABLE_PULSE: _("usable pulse again"),
        }[trouble]
        time = clock_time(decision.at, zone)
        return [(_("END OF TECHNICAL ALARM"), ""), ("", where), (over, ""), ("", time)]
    duration = _in_seconds(decision.at - decision.since)
    what = {
        Trouble.NO_READINGS: _("no measurement for {duration}"),
        Trouble.PROBE_OFF: _("sensor off or no pulse signal for {duration}"),
        Trouble.UNKNOWN_AGE: _("measurements of unknown age for {duration}"),
        Trouble.WRONG_CLOCK: _("the clock of the monitor is wrong"),
        Trouble.NO_USABLE_PULSE: _("no usable pulse"),
    }[trouble]
    parts = [
        # The dying look so: this one is not only about the sensor.
        (
            _title(decision.priority, _)
            if trouble is Trouble.NO_USABLE_PULSE
            else _("TECHNICAL ALARM"),
            "",
        ),
        ("", where),
        (what.format(duration=duration), ""),
        *_note(decision, language, called),
    ]
    if trouble is Trouble.WRONG_CLOCK:
        return [*parts, ("", clock_time(decision.at, zone)), (_("Set the clock"), "")]
    last = decision.last_good_at
    parts.append(
        ("", _("none yet"))
        if last is None
        else ("", _("the last at {time}").format(time=clock_time(last, zone)))
    )
    return [*parts, (_("See the patient and the sensor"), "")]


def _of_late_breach(
    decision: LateDecision, where: str, language: Language, zone: str, called: Called
) -> _Parts:
    _ = translator(language).gettext
    limit = _written(decision.limit, decision.kind, language)
    local = decision.last.astimezone(zone_of(zone))
    first, last = (
        duty_time(moment, zone, language, now=decision.at)
        for moment in (decision.first, decision.last)
    )
    span = first if first == last else _("{first} to {last}").format(first=first, last=last)
    return [
        (_("DURING THE OUTAGE"), ""),
        (_title(decision.priority, _), ""),
        ("", where),
        (_measured(decision, language), f" ({limit})"),
        *_note(decision, language, called),
        ("", f"{span} {_offset(local)}"),
        (_("See the patient"), ""),
    ]


def _joined(parts: _Parts) -> Text:
    body = SEPARATOR.join(bold + plain for bold, plain in parts)
    html = SEPARATOR.join(
        (f"<strong>{escape(bold)}</strong>" if bold else "") + escape(plain)
        for bold, plain in parts
    )
    return Text(body, html)


def _title(priority: Priority, _: Callable[[str], str]) -> str:
    # "HIGH ALARM" could be read as "value too high", so English says what is high.
    if priority is Priority.HIGH:
        return _("HIGH PRIORITY ALARM")
    if priority is Priority.MEDIUM:
        return _("MEDIUM PRIORITY ALARM")
    return _("LOW PRIORITY ALARM")


def _signal(signal: Signal, _: Callable[[str], str]) -> str:
    return _("good signal") if signal is Signal.GOOD else _("poor signal")


def _measured(decision: Decision | LateDecision, language: Language) -> str:
    """Kind, value and unit: ``SpO2 86 %``.

    The abbreviations are those of monitors and charts, which are read faster than words. Blood
    pressure is spelled out: the French "PAS" for systolic pressure also means "not".
    """
    label, unit = label_of(decision.kind, language)
    rounding = ROUND_HALF_EVEN
    if decision.limit.broken_by(decision.value):
        # Away from the limit, so that no text ever says "38.5 °C (> 38.5)".
        rounding = ROUND_FLOOR if decision.direction is Direction.LOW else ROUND_CEILING
    value = number_of(decision.value.quantize(_TENTH, rounding), decision.kind, language)
    return f"{label} {value}{_NO_BREAK}{unit}"


def label_of(kind: Kind, language: Language) -> tuple[str, str]:
    """Abbreviation and unit of a kind, as on a monitor."""
    _ = translator(language).gettext
    return {
        Kind.HEART_RATE: (_("HR"), "/min"),
        Kind.SPO2: (_("SpO2"), "%"),
        Kind.TEMPERATURE: (_("Temp"), "°C"),
        Kind.SYSTOLIC: (_("Systolic BP"), "mmHg"),
        Kind.DIASTOLIC: (_("Diastolic BP"), "mmHg"),
    }[kind]


def named_limit(kind: Kind, limit: Limit, language: Language) -> str:
    """``SpO2 < 90 %``."""
    label, unit = label_of(kind, language)
    return f"{label} {_written(limit, kind, language)}{_NO_BREAK}{unit}"


def limits_in_force(rules: Rules, language: Language) -> str:
    """The mildest limit of each kind and direction, in one line."""
    parts: dict[Kind, list[str]] = {}
    for bands in rules.bands:
        parts.setdefault(bands.kind, []).append(_written(bands.limits[0], bands.kind, language))
    return SEPARATOR.join(
        f"{label_of(kind, language)[0]} {' '.join(limits)}" for kind, limits in parts.items()
    )


def _broken_limit(decision: Decision, language: Language) -> str:
    """The limit, and for how long it has been broken: ``< 90 for 20 s``."""
    _ = translator(language).gettext
    limit = _written(decision.limit, decision.kind, language)
    lasted = round((decision.measured_at - decision.since) / timedelta(seconds=1))
    duration = _duration(lasted)
    if not decision.limit.broken_by(decision.value):  # a reminder, while it is getting better
        return _("alarm {limit} {duration} ago").format(limit=limit, duration=duration)
    if lasted <= 0:
        return limit
    return _("{limit} for {duration}").format(limit=limit, duration=duration)


def _duration(seconds: int, *, minutes_from: int = 60) -> str:
    minute = 60
    if seconds < minutes_from:
        return f"{max(seconds, 0)}{_NO_BREAK}s"
    return f"{round(seconds / minute)}{_NO_BREAK}min"


def _in_seconds(duration: timedelta) -> str:
    """In seconds up to two minutes: nobody rounds a silence of 90 s."""
    return _duration(round(duration / timedelta(seconds=1)), minutes_from=120)


def _written(limit: Limit, kind: Kind, language: Language) -> str:
    return f"{limit.comparison}{_NO_BREAK}{number_of(limit.threshold, kind, language)}"


def number_of(value: Decimal, kind: Kind, language: Language) -> str:
    """A value as clinicians write it: temperatures have one decimal, also when it is zero."""
    pattern = "0.0###" if kind is Kind.TEMPERATURE else "0.####"
    return format_decimal(value, format=pattern, locale=language.value)


def clock_time(moment: datetime, zone: str) -> str:
    """Time of day and offset, so that a partner hospital reads it right: ``14:02 UTC+0``."""
    local = moment.astimezone(zone_of(zone))
    return f"{local:%H:%M} {_offset(local)}"


def _offset(local: datetime) -> str:
    minutes = round((local.utcoffset() or timedelta()) / timedelta(minutes=1))
    hours, rest = divmod(abs(minutes), 60)
    sign = "-" if minutes < 0 else "+"
    offset = f"{hours}:{rest:02}" if rest else f"{hours}"
    return f"UTC{sign}{offset}"


def duty_time(moment: datetime, zone: str, language: Language, *, now: datetime) -> str:
    """Time of day in the ward, whose clock everybody there goes by.

    With the date of what is more than a day ago, or not to come today.
    """
    local = moment.astimezone(zone_of(zone))
    is_today = local.date() == now.astimezone(zone_of(zone)).date()
    if is_today or timedelta(0) <= now - moment < timedelta(days=1):
        return f"{local:%H:%M}"
    return format_datetime(local, "d MMM HH:mm", locale=language.value)


def zone_of(name: str) -> tzinfo:
    """The zone of a name; UTC for one that is unknown."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # what zoneinfo raises for names that are none
        return UTC
