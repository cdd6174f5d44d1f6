"""The words of answers about a patient: who, which limit, until when, what was seen. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Final

from bots.alerts.alarm_state import OwnLimit
from bots.alerts.limits import Direction, Priority
from bots.alerts.news2 import News2, Sign
from bots.alerts.own_limits import limit_of
from bots.alerts.text import duty_time, label_of, named_limit, place_of
from fajma.bedside import MAX_REASON
from fajma.facts import Consciousness, Entered
from fajma.language import SEPARATOR, Language, shown, translator
from fajma.store.patients import Patient
from fajma.vitals import Kind

MAX_BEDS: Final = 60
"""Beds in one answer."""


def bed_of(patient: Patient, language: Language) -> str:
    """``Lit 4 A.D.``, as an alarm begins."""
    return place_of(patient.bed, patient.initials, language)


def beds(patients: Collection[Patient], language: Language) -> str:
    """The beds that can be named."""
    _ = translator(language).gettext
    if not patients:
        return _("No patient is in this ward by our records.")
    return SEPARATOR.join(bed_of(one, language) for one in list(patients)[:MAX_BEDS])


def acknowledged_line(who: str, time: str, language: Language) -> str:
    """That somebody takes care; the alarms follow."""
    _ = translator(language).gettext
    return _("✓ Seen by {who}, who takes care · {time}").format(who=who, time=time)


def side(kind: Kind, direction: str, language: Language) -> str:
    """A kind and a side of it, as in ``low SpO2``."""
    _ = translator(language).gettext
    label = label_of(kind, language)[0]
    return (_("low {kind}") if direction == Direction.LOW else _("high {kind}")).format(kind=label)


def own_limit_line(
    own: OwnLimit, language: Language, zone: str, *, now: datetime, who: str, reason: str
) -> str:
    """A limit of one patient alone: until when, by whom, why."""
    _ = translator(language).gettext
    until = duty_time(own.until, zone, language, now=now)
    line = (
        _("For this patient: {limit} until {time}, also after a handover · {who}: {reason}")
        if own.kept
        else _(
            "For this patient: {limit} until the handover, {time} at the latest · {who}: {reason}"
        )
    )
    return line.format(
        limit=named_limit(own.kind, limit_of(own, Priority.MEDIUM), language),
        time=until,
        who=who,
        reason=shown(reason, MAX_REASON),
    )


def entered_line(entered: Entered, where: str, who: str, language: Language) -> str:
    """What somebody saw and typed."""
    _ = translator(language).gettext
    parts = [where]
    if entered.respiration is not None:
        parts.append(_("respiration {count}/min").format(count=entered.respiration))
    if entered.consciousness is not None:
        level = {
            Consciousness.ALERT: _("alert"),
            Consciousness.CONFUSED: _("newly confused"),
            Consciousness.VOICE: _("responds to voice"),
            Consciousness.PAIN: _("responds to pain"),
            Consciousness.UNRESPONSIVE: _("unresponsive"),
        }
        parts.append(level[entered.consciousness])
    if entered.oxygen is not None:
        parts.append(_("on oxygen") if entered.oxygen else _("no oxygen"))
    return SEPARATOR.join([*parts, who])


def news2_line(score: News2, language: Language) -> str:
    """A complete score; a sign with 3 points alone is named."""
    _ = translator(language).gettext
    signs = _signs(language)
    parts = [_("NEWS2 {total}").format(total=score.total)]
    if score.scale_2:
        parts.append(_("SpO2 scale 2"))
    if score.red:
        red = ", ".join(signs[one] for one in score.red)
        parts.append(_("3 points alone: {signs}").format(signs=red))
    return SEPARATOR.join(parts)


def news2_lacks(signs: Collection[Sign], language: Language, *, age_too: bool) -> str:
    """What a score needs that is not known, or not of now."""
    _ = translator(language).gettext
    names = _signs(language)
    lacks = [*(names[one] for one in signs), *([_("age")] if age_too else [])]
    return _("NEWS2 incomplete, not known: {signs}").format(signs=", ".join(lacks))


def _signs(language: Language) -> Mapping[Sign, str]:
    _ = translator(language).gettext
    return {
        Sign.RESPIRATION: _("respiration"),
        Sign.SPO2: _("SpO2"),
        Sign.OXYGEN: _("oxygen"),
        Sign.SYSTOLIC: _("systolic BP"),
        Sign.PULSE: _("pulse"),
        Sign.CONSCIOUSNESS: _("consciousness"),
        Sign.TEMPERATURE: _("temperature"),
    }


def oximeter_line(language: Language) -> str:
    """What must be said where SpO2 is shown (docs/alarms.md)."""
    _ = translator(language).gettext
    return _(
        "Oximeters overestimate SpO2 in dark skin and with poor perfusion; a secondary, "
        "investigational notification."
    )
