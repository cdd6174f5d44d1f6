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
from typing import Final
from zoneinfo import ZoneInfo

from babel.dates import format_datetime
from babel.numbers import format_decimal

from bots.alerts.alarm import Decision, Reason
from bots.alerts.alarm_state import Episode, Trouble
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

_NO_BREAK: Final = "\N{NO-BREAK SPACE}"  # at the end of a line a number keeps its unit and sign
_TENTH: Final = Decimal("0.1")


class Signal(StrEnum):
    """How far the monitor trusts its own signal; monitors of version 1 do not say."""

    GOOD = "good"
    POOR = "poor"


GOOD_FROM: Final = 50
"""Quality of the pulse wave, in %, from which a signal is called good. FAJMA default."""


@dataclass(frozen=True, slots=True)
class Text:
    """A message in the two forms that Matrix carries.

    Attributes:
        body: plain text, one line.
        html: the same words for ``formatted_body``, in tags every client shows.
    """

    body: str
    html: str


@dataclass(frozen=True, slots=True)
class Bedside:
    """Whose alarm it is, and how the room reads.

    Attributes:
        bed: the bed's number or name as staff typed it, without the word "bed"; not trusted.
        initials: the patient's initials as staff typed them; not trusted.
        language: of the room.
        zone: name of the room's time zone, e.g. ``Africa/Abidjan``. An unknown one shows UTC and
            says so: a bad setting must not cost an alarm.
        guessed: whether the limits are those of an adult since nobody entered an age.
    """

    bed: str
    initials: str
    language: Language
    zone: str
    guessed: bool = False

    @property
    def where(self) -> str:
        """Where to go: ``Bed 4 A.D.``."""
        _ = translator(self.language).gettext
        bed = _("Bed {bed}").format(bed=shown(self.bed, MAX_BED))
        return f"{bed} {shown(self.initials, MAX_INITIALS)}"


def render(decision: AnyDecision, bedside: Bedside, *, signal: Signal | None = None) -> Text:
    """Put an announced decision into words.

    Args:
        decision: any that is announced.
        bedside: whose alarm it is.
        signal: quality of the signal behind a value; left out of the text where unknown.

    Raises:
        BugError: ``decision_silent``, the decision is not one to announce.
    """
    if not decision.announce:
        raise BugError("Only render decisions that are announced.", code="decision_silent")
    if isinstance(decision, TechnicalDecision):
        return _technical(decision, bedside)
    if isinstance(decision, LateDecision):
        return _late(decision, bedside)
    return _vital(decision, bedside, signal)


def _vital(decision: Decision, bedside: Bedside, signal: Signal | None) -> Text:
    _ = translator(bedside.language).gettext
    measured = _measured(decision, bedside.language)
    time = clock_time(decision.measured_at, bedside.zone)
    if not decision.rings:
        return _joined(
            (_("END OF ALARM"), ""),
            ("", bedside.where),
            (measured, ""),
            *(("", why) for why in _why_over(decision.reason, _)),
            ("", time),
        )
    quality = [("", _signal(signal, _))] if signal is not None else []
    return _joined(
        (_title(decision.priority, _), ""),
        ("", bedside.where),
        (measured, f" ({_broken_limit(decision, bedside.language)})"),
        *quality,
        ("", time),
        *_asks(decision, bedside, decision.since),
    )


def _technical(decision: TechnicalDecision, bedside: Bedside) -> Text:
    _ = translator(bedside.language).gettext
    if not decision.rings:
        return _joined(
            (_("END OF TECHNICAL ALARM"), ""),
            ("", bedside.where),
            ("", _trouble_over(decision.trouble, _)),
            *(("", why) for why in _why_over(decision.reason, _)),
            ("", clock_time(decision.at, bedside.zone)),
        )
    high = decision.priority is Priority.HIGH
    lasted = _duration(decision.at - decision.since)
    trouble = _trouble(decision.trouble, _)
    what = _("{trouble} for {duration}").format(trouble=trouble, duration=lasted)
    last = (
        _("last value {time}").format(time=clock_time(decision.last_good_at, bedside.zone))
        if decision.last_good_at is not None
        else _("no value yet")
    )
    return _joined(
        (_title(decision.priority, _) if high else _("TECHNICAL ALARM"), ""),
        ("", bedside.where),
        (what if lasted else trouble, ""),
        ("", last),
        *_asks(decision, bedside, decision.since),
    )


def _late(decision: LateDecision, bedside: Bedside) -> Text:
    _ = translator(bedside.language).gettext
    label, unit = _label(decision.kind, bedside.language)
    rounding = ROUND_FLOOR if decision.direction is Direction.LOW else ROUND_CEILING
    value = _number(decision.value.quantize(_TENTH, rounding), decision.kind, bedside.language)
    span = _("{limit} from {start} to {end}").format(
        limit=_written(decision.limit, decision.kind, bedside.language),
        start=_past_time(decision.first, bedside, now=decision.at),
        end=_past_time(decision.last, bedside, now=decision.at),
    )
    return _joined(
        (_("DURING THE OUTAGE"), ""),
        ("", bedside.where),
        (f"{label} {value}{_NO_BREAK}{unit}", f" ({span})"),
        *_asks(decision, bedside, decision.at),
    )


def _past_time(moment: datetime, bedside: Bedside, *, now: datetime) -> str:
    """``14:02 UTC+0``; with the date after a day."""
    time = clock_time(moment, bedside.zone)
    if now - moment < timedelta(days=1):
        return time
    day = format_datetime(
        moment.astimezone(_zone(bedside.zone)), "d MMM", locale=bedside.language.value
    )
    return f"{day} {time}"


def _asks(decision: AnyDecision, bedside: Bedside, since: datetime) -> list[tuple[str, str]]:
    """Why it is told once more, what to do, and what to know."""
    _ = translator(bedside.language).gettext
    unanswered = _duration(decision.at - since)
    parts = {
        Reason.RENOTIFIED: _("Reminder: nobody has answered for {duration}"),
        Reason.ESCALATED: _("Nobody has answered for {duration}"),
        Reason.SNOOZE_ENDED: _("The snooze is over"),
        Reason.SNOOZE_BROKEN: _("Much worse: the snooze is broken"),
    }
    said = parts.get(decision.reason)
    asks = [("", said.format(duration=unanswered))] if said is not None else []
    technical = isinstance(decision, TechnicalDecision)
    see = _("See the patient and the sensor") if technical else _("See the patient")
    asks.append((see, ""))
    if bedside.guessed and not technical and decision.reason is Reason.STARTED:
        asks.append(("", _("age unknown: limits of an adult")))
    return asks


def _why_over(reason: Reason, _: Callable[[str], str]) -> list[str]:
    """Why an alarm is over though the value is not back inside."""
    if reason is Reason.RULES_CHANGED:
        return [_("no limit any more")]
    if reason is Reason.NOT_MONITORED:
        return [_("the patient wears no monitor any more")]
    return []


def _signal(signal: Signal, _: Callable[[str], str]) -> str:
    return _("good signal") if signal is Signal.GOOD else _("poor signal")


def _trouble(trouble: Trouble, _: Callable[[str], str]) -> str:
    return {
        Trouble.NO_READINGS: _("no readings"),
        Trouble.PROBE_OFF: _("probe off"),
        Trouble.UNKNOWN_AGE: _("readings of unknown age"),
        Trouble.WRONG_CLOCK: _("wrong clock of the monitor"),
        Trouble.NO_USABLE_PULSE: _("no usable pulse"),
    }[trouble]


def _trouble_over(trouble: Trouble, _: Callable[[str], str]) -> str:
    return {
        Trouble.NO_READINGS: _("readings come again"),
        Trouble.PROBE_OFF: _("probe on again"),
        Trouble.UNKNOWN_AGE: _("the age of readings is known again"),
        Trouble.WRONG_CLOCK: _("clock of the monitor is right again"),
        Trouble.NO_USABLE_PULSE: _("pulse usable again"),
    }[trouble]


def _joined(*parts: tuple[str, str]) -> Text:
    """Parts made of a bold text and a plain one; either may be empty."""
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


def _measured(decision: Decision, language: Language) -> str:
    """Kind, value and unit: ``SpO2 86 %``.

    The abbreviations are those of monitors and charts, which are read faster than words. Blood
    pressure is spelled out: the French "PAS" for systolic pressure also means "not".
    """
    label, unit = _label(decision.kind, language)
    rounding = ROUND_HALF_EVEN
    if decision.limit.broken_by(decision.value):
        # Away from the limit, so that no text ever says "38.5 °C (> 38.5)".
        rounding = ROUND_FLOOR if decision.direction is Direction.LOW else ROUND_CEILING
    value = _number(decision.value.quantize(_TENTH, rounding), decision.kind, language)
    return f"{label} {value}{_NO_BREAK}{unit}"


def _label(kind: Kind, language: Language) -> tuple[str, str]:
    """Abbreviation and unit of a kind, as on a monitor."""
    _ = translator(language).gettext
    return {
        Kind.HEART_RATE: (_("HR"), "/min"),
        Kind.SPO2: (_("SpO2"), "%"),
        Kind.TEMPERATURE: (_("Temp"), "°C"),
        Kind.SYSTOLIC: (_("Systolic BP"), "mmHg"),
        Kind.DIASTOLIC: (_("Diastolic BP"), "mmHg"),
    }[kind]


def open_alarm(
    kind: Kind, episode: Episode, *, bed: str, initials: str, language: Language, zone: str
) -> str:
    """An alarm that is not over, in one line, for who takes over: the limit, not a value."""
    _ = translator(language).gettext
    label, unit = _label(kind, language)
    where = _("Bed {bed}").format(bed=shown(bed, MAX_BED))
    since = _("since {time}").format(time=clock_time(episode.since, zone))
    limit = f"{label} {_written(episode.limit, kind, language)}{_NO_BREAK}{unit}"
    return SEPARATOR.join((f"{where} {shown(initials, MAX_INITIALS)}", limit, since))


def limits_in_force(rules: Rules, language: Language) -> str:
    """The mildest limit of each kind and direction, in one line."""
    parts: dict[Kind, list[str]] = {}
    for bands in rules.bands:
        parts.setdefault(bands.kind, []).append(_written(bands.limits[0], bands.kind, language))
    return SEPARATOR.join(
        f"{_label(kind, language)[0]} {' '.join(limits)}" for kind, limits in parts.items()
    )


def _broken_limit(decision: Decision, language: Language) -> str:
    """The limit, and for how long it has been broken: ``< 90 for 20 s``."""
    _ = translator(language).gettext
    limit = _written(decision.limit, decision.kind, language)
    duration = _duration(decision.measured_at - decision.since)
    if not duration:
        return limit
    if not decision.limit.broken_by(decision.value):  # a reminder, while it is getting better
        return _("alarm {limit} {duration} ago").format(limit=limit, duration=duration)
    return _("{limit} for {duration}").format(limit=limit, duration=duration)


def _duration(lasted: timedelta) -> str:
    """``20 s``, ``3 min`` or ``2 h``; empty for no time."""
    seconds = round(lasted / timedelta(seconds=1))
    if seconds <= 0:
        return ""
    minute, hour = 60, 3600
    if seconds < 2 * minute and seconds % minute:
        return f"{seconds}{_NO_BREAK}s"
    if seconds < 2 * hour:
        return f"{round(seconds / minute)}{_NO_BREAK}min"
    return f"{round(seconds / hour)}{_NO_BREAK}h"


def _written(limit: Limit, kind: Kind, language: Language) -> str:
    return f"{limit.comparison}{_NO_BREAK}{_number(limit.threshold, kind, language)}"


def _number(value: Decimal, kind: Kind, language: Language) -> str:
    # Clinicians write temperatures with one decimal, also when it is zero.
    pattern = "0.0###" if kind is Kind.TEMPERATURE else "0.####"
    return format_decimal(value, format=pattern, locale=language.value)


def clock_time(moment: datetime, zone: str) -> str:
    """Time of day and offset, so that a partner hospital reads it right: ``14:02 UTC+0``."""
    local = moment.astimezone(_zone(zone))
    minutes = round((local.utcoffset() or timedelta()) / timedelta(minutes=1))
    hours, rest = divmod(abs(minutes), 60)
    sign = "-" if minutes < 0 else "+"
    offset = f"{hours}:{rest:02}" if rest else f"{hours}"
    return f"{local:%H:%M} UTC{sign}{offset}"


def duty_time(moment: datetime, zone: str, language: Language, *, now: datetime) -> str:
    """Time of day in the ward, whose clock everybody there goes by; with the date after a day."""
    local = moment.astimezone(_zone(zone))
    if now - moment < timedelta(days=1):
        return f"{local:%H:%M}"
    return format_datetime(local, "d MMM HH:mm", locale=language.value)


def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # what zoneinfo raises for names that are none
        return UTC
