"""The limits of those to whom an adult's do not apply: children, pregnant women, COPD.

Where each limit comes from is written beside it and in ``docs/alarms.md``. In short:

- "PEWS": Parshuram, Hutchison, Middaugh, Development and initial validation of the Bedside
  Paediatric Early Warning System score, Crit Care 2009;13:R135, table 1. Its 2 points of 4 are
  medium here, its 4 points high.
- "PALS": American Heart Association, Pediatric Advanced Life Support, 2020.
- "PSBI": WHO, Managing possible serious bacterial infection in young infants when referral is not
  feasible, 2015: what counts as fever and as low temperature.
- "WHO": WHO, Oxygen therapy for children, 2016: oxygen below 90 %.
- "MEOWS": the red triggers of the obstetric early warning chart, CEMACH 2007; Singh et al.,
  Anaesthesia 2012;67:12-18.
- "NG133": NICE, Hypertension in pregnancy, 2019: severe from 160/110.
- "Scale 2": NEWS2's second scale for SpO2, for who is at risk of hypercapnic failure.

The owner's four limits are for adults: 121 beats a minute are a newborn's normal heart rate
(Fleming et al., Lancet 2011;377:1011-1018, finds a median of 127 at birth), so that an alarm on it
would never end and never be heard.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Final

from bots.alerts.alarm_state import Profile
from bots.alerts.limits import (
    DEFAULT_LIMITS,
    EXTREMES,
    Comparison,
    Direction,
    Extremes,
    Limit,
    Limits,
    Priority,
)
from fajma.facts import AgeBand
from fajma.vitals import Kind


def _side(comparison: Comparison, *limits: tuple[str, Priority]) -> tuple[Limit, ...]:
    return tuple(Limit(comparison, Decimal(threshold), priority) for threshold, priority in limits)


_BELOW, _AT_MOST, _ABOVE, _AT_LEAST = Comparison
_LOW, _MEDIUM, _HIGH = Priority

# SpO2: PEWS gives 2 points to 90 and less, WHO gives oxygen below 90; medium as for adults.
_SPO2: Final = _side(_BELOW, ("92", _MEDIUM), ("90", _HIGH))
# PSBI, made for up to 2 months. It is applied up to a year: a fever of a young infant is urgent
# (NICE NG143, 2019), and the band does not say how young.
_YOUNG_TEMPERATURE: Final = (
    _side(_BELOW, ("35.5", _MEDIUM)),
    _side(_AT_LEAST, ("38.0", _MEDIUM)),
)
# PEWS: its points for temperature begin above 38.5 and below 36, 2 of them above 40 and below 35.
_CHILD_TEMPERATURE: Final = (
    _side(_AT_MOST, ("35.0", _MEDIUM)),
    _side(_ABOVE, ("38.5", _LOW), ("40.0", _MEDIUM)),
)

_CHILDREN: Final[Mapping[AgeBand, Limits]] = {
    AgeBand.NEWBORN: {  # PEWS, 0-3 months
        Kind.HEART_RATE: (
            _side(_AT_MOST, ("90", _MEDIUM), ("80", _HIGH)),
            _side(_AT_LEAST, ("180", _MEDIUM), ("190", _HIGH)),
        ),
        Kind.SPO2: (_SPO2,),
        Kind.TEMPERATURE: _YOUNG_TEMPERATURE,
        Kind.SYSTOLIC: (
            _side(_AT_MOST, ("50", _MEDIUM), ("45", _HIGH)),
            _side(_AT_LEAST, ("100", _MEDIUM), ("130", _HIGH)),
        ),
    },
    AgeBand.INFANT: {
        # PEWS, 0-3 months, for all of the year: told sooner on the slow side, later on the fast one
        # than its 3-12 months (80 and 70, 170 and 180).
        Kind.HEART_RATE: (
            _side(_AT_MOST, ("90", _MEDIUM), ("80", _HIGH)),
            _side(_AT_LEAST, ("180", _MEDIUM), ("190", _HIGH)),
        ),
        Kind.SPO2: (_SPO2,),
        Kind.TEMPERATURE: _YOUNG_TEMPERATURE,
        Kind.SYSTOLIC: (  # PEWS, 3-12 months; PALS calls less than 70 hypotension
            _side(_AT_MOST, ("70", _MEDIUM), ("60", _HIGH)),
            _side(_AT_LEAST, ("120", _MEDIUM), ("150", _HIGH)),
        ),
    },
    AgeBand.TODDLER: {  # PEWS, 1-4 years
        Kind.HEART_RATE: (
            _side(_AT_MOST, ("70", _MEDIUM), ("60", _HIGH)),
            _side(_AT_LEAST, ("150", _MEDIUM), ("170", _HIGH)),
        ),
        Kind.SPO2: (_SPO2,),
        Kind.TEMPERATURE: _CHILD_TEMPERATURE,
        Kind.SYSTOLIC: (
            _side(_AT_MOST, ("75", _MEDIUM), ("65", _HIGH)),
            _side(_AT_LEAST, ("125", _MEDIUM), ("160", _HIGH)),
        ),
    },
    AgeBand.CHILD: {  # PEWS, 4-12 years
        Kind.HEART_RATE: (
            _side(_AT_MOST, ("60", _MEDIUM), ("50", _HIGH)),
            (*_side(_AT_LEAST, ("130", _MEDIUM)), *_side(_ABOVE, ("150", _HIGH))),
        ),
        Kind.SPO2: (_SPO2,),
        Kind.TEMPERATURE: _CHILD_TEMPERATURE,
        Kind.SYSTOLIC: (
            _side(_AT_MOST, ("80", _MEDIUM), ("70", _HIGH)),
            _side(_AT_LEAST, ("140", _MEDIUM), ("170", _HIGH)),
        ),
    },
    AgeBand.ADOLESCENT: {
        # An adult's, of which PEWS (over 12 years: 120 or more, less than 50) differs little; the
        # high systolic pressure is PEWS'.
        **DEFAULT_LIMITS,
        Kind.SYSTOLIC: (
            _side(_AT_MOST, ("90", _HIGH)),
            _side(_AT_LEAST, ("150", _MEDIUM), ("190", _HIGH)),
        ),
    },
}

# PALS: chest compressions below 60 with poor perfusion; supraventricular tachycardia is likely from
# 220 in infants and 180 in children. The low ones of 1 to 11 years are FAJMA defaults, 10 beyond
# the high band. SpO2 as for adults.
_CHILDREN_EXTREMES: Final[Mapping[AgeBand, Mapping[Direction, Decimal]]] = {
    AgeBand.NEWBORN: {Direction.LOW: Decimal(60), Direction.HIGH: Decimal(220)},
    AgeBand.INFANT: {Direction.LOW: Decimal(60), Direction.HIGH: Decimal(220)},
    AgeBand.TODDLER: {Direction.LOW: Decimal(50), Direction.HIGH: Decimal(180)},
    AgeBand.CHILD: {Direction.LOW: Decimal(40), Direction.HIGH: Decimal(180)},
}

_PREGNANCY: Final[Limits] = {
    Kind.SPO2: (_side(_BELOW, ("95", _MEDIUM), ("90", _HIGH)),),  # MEOWS; owner's requirement
    Kind.TEMPERATURE: (
        _side(_AT_MOST, ("35.0", _MEDIUM)),
        _side(_ABOVE, ("38.0", _MEDIUM)),  # MEOWS
    ),
    Kind.SYSTOLIC: (
        _side(_AT_MOST, ("90", _HIGH)),  # MEOWS, and an adult's
        _side(_AT_LEAST, ("160", _HIGH)),  # NG133
    ),
    Kind.DIASTOLIC: (_side(_AT_LEAST, ("110", _HIGH)),),  # NG133
}

# Scale 2: 1 point from 87, 2 points from 85, 3 points from 83 down; the target is 88-92.
_COPD_SPO2: Final = _side(_BELOW, ("88", _MEDIUM), ("86", _HIGH))
_COPD_EXTREME: Final = Decimal(83)

_GROWN: Final = frozenset({AgeBand.ADULT, AgeBand.UNKNOWN})
_MAY_BE_PREGNANT: Final = _GROWN | {AgeBand.ADOLESCENT}


def limits_of(profile: Profile) -> Limits:
    """The limits of such a patient; an adult's where the age is unknown."""
    limits: Limits = _CHILDREN.get(profile.age_band, DEFAULT_LIMITS)
    if profile.pregnant and profile.age_band in _MAY_BE_PREGNANT:
        limits = {**limits, **_PREGNANCY}
    if _aims_lower(profile):
        limits = {**limits, Kind.SPO2: (_COPD_SPO2,)}
    return limits


def extremes_of(profile: Profile) -> Extremes:
    """Where fewer samples suffice."""
    extremes = dict(EXTREMES)
    for direction, value in _CHILDREN_EXTREMES.get(profile.age_band, {}).items():
        extremes[Kind.HEART_RATE, direction] = value
    if _aims_lower(profile):
        extremes[Kind.SPO2, Direction.LOW] = _COPD_EXTREME
    return extremes


def _aims_lower(profile: Profile) -> bool:
    """Whether an SpO2 of 88 to 92 % is aimed at."""
    return profile.copd and profile.age_band in _GROWN


def age_unknown(profile: Profile) -> bool:
    """Whether the limits may be wrong since nobody entered an age; people are told so."""
    return profile.age_band is AgeBand.UNKNOWN
