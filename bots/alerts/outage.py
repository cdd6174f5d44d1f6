"""Many patients of a ward that go silent together: one message, and one when they are back. Pure.

A broker, a switch or an access point that fails silences a whole ward. Thirty alarms then hide the
one patient who matters, so:

1. When somebody's silence is due to be told, and at least ``LEAST`` patients of the ward and at
   least half of those who wear a monitor there are silent, it is an outage. Silent is who was not
   heard for half of the usual time: the others would follow one by one within the next minute.
2. The ward is told once for all of them, and again while it lasts and nobody sees to it. Whose
   silence is due later joins it: that is told at once, whoever has answered before.
3. It is over when at least half of them were heard again for ``STEADY``, or all of them were.
   The ward is told who is not back; their silence counts for itself from then on.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Final

from bots.alerts.alarm_state import PatientState
from bots.alerts.technical import silences
from bots.alerts.text import Text, clock_time, titled
from fajma.language import Language, translator
from fajma.vitals import PatientKey

# FAJMA defaults, not from a guideline.

LEAST: Final = 3
"""Fewer are told one by one."""

HALF_AT_MOST: Final = timedelta(seconds=75)
"""Longest silence that is none yet: monitors may send once a minute."""

STEADY: Final = timedelta(seconds=90)
"""For how long at least half must be back: longer than a single reading counts (rule 1)."""

BEDS_SHOWN: Final = 12
"""Most beds that a message lists."""


def heard_at(state: PatientState) -> datetime | None:
    """When a patient was last heard, by any monitor that is worn; ``None`` if none is worn."""
    standing = state.standing
    times = [
        max(since, state.heard[device].at) if device in state.heard else since
        for device, since in standing.worn.items()
    ]
    return max(times, default=None)


def is_silent(state: PatientState, now: datetime, silent_after: timedelta) -> bool:
    """Whether a patient wears monitors, none of which was heard for half of its own usual time."""
    worn = state.standing.worn
    for device, since in worn.items():
        heard = state.heard.get(device)
        last = since if heard is None else max(since, heard.at)
        usual = silent_after if heard is None else heard.silent_after
        if now - last < min(usual / 2, HALF_AT_MOST):
            return False
    return bool(worn)


def is_due(state: PatientState, now: datetime, silent_after: timedelta) -> bool:
    """Whether the silence of a patient's monitor is due to be told."""
    due = silences(state.standing, state.heard, state.troubles, silent_after)
    return any(at <= now for at, _, _ in due)


def is_outage(silenced: Collection[PatientKey], members: Collection[PatientKey]) -> bool:
    """Whether so many of a ward's patients with a monitor are silent that it is one matter."""
    return len(silenced) >= LEAST and 2 * len(silenced) >= len(members)


def half_back(silenced: Collection[PatientKey], concerned: Collection[PatientKey]) -> bool:
    """Whether at least half of those whom an outage concerned were heard again."""
    return 2 * len(silenced) <= len(concerned)


# The words


def told(
    silent: Sequence[str],
    count: int,
    members: int,
    *,
    since: datetime,
    language: Language,
    zone: str,
) -> Text:
    """That a ward is not monitored.

    Args:
        silent: beds and initials of those from whom nothing is heard, in order.
        count: how many they are; more than that where a record does not open.
        members: how many of the ward wear a monitor.
        since: of the outage.
        language: of the reader.
        zone: of the reader.
    """
    ngettext = translator(language).ngettext
    _ = translator(language).gettext
    return titled(
        _("TECHNICAL ALARM"),
        ngettext(
            "no readings from {count} of {all} patients",
            "no readings from {count} of {all} patients",
            count,
        ).format(count=count, all=members),
        ngettext("bed {beds}", "beds {beds}", count).format(beds=_listed(silent, count)),
        _("outage since {time}").format(time=clock_time(since, zone)),
        _("See the patients, then network and power of the monitors"),
    )


def ended(
    missing: Sequence[str],
    count: int,
    concerned: int,
    *,
    since: datetime,
    until: datetime,
    language: Language,
    zone: str,
) -> Text:
    """That it is over, and in which beds nothing was heard yet.

    Args:
        missing: beds and initials of those, in order.
        count: how many they are.
        concerned: how many went silent.
        since: last reading before it.
        until: when at least half of them were heard again.
        language: of the reader.
        zone: of the reader.
    """
    _, ngettext = translator(language).gettext, translator(language).ngettext
    back = ngettext(
        "{count} of {all} patients is monitored again",
        "{count} of {all} patients are monitored again",
        concerned - count,
    ).format(count=concerned - count, all=concerned)
    times = _("readings were missing from {start} to {end}").format(
        start=clock_time(since, zone), end=clock_time(until, zone)
    )
    parts = [back, times]
    if count:
        still = ngettext("still no readings: bed {beds}", "still no readings: beds {beds}", count)
        parts.append(still.format(beds=_listed(missing, count)))
    return titled(_("END OF OUTAGE"), *parts)


def _listed(beds: Sequence[str], count: int) -> str:
    """The first of them, and how many more there are."""
    shown = beds[:BEDS_SHOWN]
    more = count - len(shown)
    return ", ".join([*shown, *([f"+ {more}"] if more else [])])
