"""The words of messages about the monitoring itself. Pure.

What the homeserver says for us is fixed long before it is said, so it is worded to be true whenever
it comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from html import escape
from typing import Final

from bots.alerts.text import Text, clock_time, duty_time
from fajma.language import SEPARATOR, Language, shown, translator
from fajma.store.heartbeats import ALARMS, APPSERVICE

MAX_REASON: Final = 120
"""Longest reason of a planned stop that is shown whole, in characters."""

MAX_LINES: Final = 40
"""Patients in one message; more would not fit into an event."""

_NO_BREAK: Final = "\N{NO-BREAK SPACE}"


def silent(language: Language, *, silence_s: float) -> Text:
    """No sign of life from all of it."""
    _ = translator(language).gettext
    lasted = f"{round(silence_s)}{_NO_BREAK}s"
    return _joined(
        _("NO SIGN OF LIFE FROM MONITORING"),
        _("the homeserver heard nothing from it in the {lasted} before this message").format(
            lasted=lasted
        ),
        *_what_to_do(language),
    )


def overdue(language: Language, *, until: datetime, zone: str) -> Text:
    """It is not back from a planned stop."""
    _ = translator(language).gettext
    return _joined(
        _("NO SIGN OF LIFE FROM MONITORING"),
        _("a planned stop was to end at {time}").format(time=clock_time(until, zone)),
        *_what_to_do(language),
    )


def part_silent(
    part: str, language: Language, *, since: datetime | None, zone: str, now: datetime
) -> Text:
    """No sign of life from a part of it.

    Args:
        part: its name among the signs of life.
        language: of the room.
        since: its last sign; ``None`` if there was none.
        zone: of the room.
        now: aware UTC.
    """
    _ = translator(language).gettext
    name = {
        APPSERVICE: _("what shows vitals in rooms"),
        ALARMS: _("what judges readings"),
    }.get(part, _("what takes in readings"))
    if since is not None:
        time = _time(since, zone, language, now=now)
        name = _("{part}, since {time}").format(part=name, time=time)
    if part == APPSERVICE:
        todo = [_("Alarms go on, but vitals in rooms may be old: look at the monitors")]
    else:
        todo = _what_to_do(language)
    return _joined(_("NO SIGN OF LIFE FROM MONITORING"), name, *todo)


def stopping(
    language: Language, *, started_at: datetime, until: datetime, reason: str, zone: str
) -> Text:
    """It stops as planned.

    Args:
        language: of the room.
        started_at: from when.
        until: until when.
        reason: as the operator typed it; not trusted.
        zone: of the room.
    """
    _ = translator(language).gettext
    return _joined(
        _("PLANNED STOP OF MONITORING"),
        _("from {start} to {end}").format(
            start=clock_time(started_at, zone), end=clock_time(until, zone)
        ),
        shown(reason, MAX_REASON),
        _("Alarms may not come meanwhile: watch the patients and their monitors"),
    )


def back(
    language: Language,
    *,
    since: datetime,
    now: datetime,
    zone: str,
    patients: Sequence[str],
) -> Text:
    """It is back.

    Args:
        language: of the room.
        since: when the silence began.
        now: when it ended.
        zone: of the room.
        patients: a line for each who must be looked at (``open_alarm``, ``no_reading``).
    """
    _ = translator(language).gettext
    start = _time(since, zone, language, now=now)
    end = clock_time(now, zone)
    head = _joined(
        _("MONITORING IS BACK"),
        _("Between {start} and {end} alarms may be missing or late").format(start=start, end=end),
        _("Look at these patients") if patients else _("No alarm is open, every monitor sends"),
    )
    lines = list(patients[:MAX_LINES])
    if len(patients) > MAX_LINES:
        lines.append(_("and {count} more").format(count=len(patients) - MAX_LINES))
    return Text(
        body="\n".join([head.body, *lines]),
        html="<br>".join([head.html, *map(escape, lines)]),
    )


def no_reading(
    where: str, language: Language, *, last: datetime | None, zone: str, now: datetime
) -> str:
    """A patient whose monitor has sent nothing since, in one line.

    Args:
        where: bed and initials.
        language: of the room.
        last: when the last reading came; ``None`` if there was none.
        zone: of the room.
        now: aware UTC.
    """
    _ = translator(language).gettext
    if last is None:
        return SEPARATOR.join((where, _("no reading yet")))
    time = _time(last, zone, language, now=now)
    return SEPARATOR.join((where, _("no reading since {time}").format(time=time)))


def _what_to_do(language: Language) -> list[str]:
    _ = translator(language).gettext
    return [
        _("Alarms may not come"),
        _("See the patients and their monitors, and call the operator"),
    ]


def _time(moment: datetime, zone: str, language: Language, *, now: datetime) -> str:
    if now - moment < timedelta(days=1):
        return clock_time(moment, zone)
    return duty_time(moment, zone, language, now=now)


def _joined(head: str, *parts: str) -> Text:
    return Text(
        body=SEPARATOR.join((head, *parts)),
        html=SEPARATOR.join((f"<strong>{escape(head)}</strong>", *map(escape, parts))),
    )
