"""All that the alarm engine decides: a pure function of the readings and facts of one patient.

It does no I/O and knows no clock: what time it is, the facts say. One subject each:

- ``alarm``: values against limits; ``profiles``: which limits; ``late``: values that came late;
- ``technical``: what keeps us from judging;
- ``attention``: what is told about an alarm after its start, until somebody answers.

Readings and facts each have a log and a place of their own in the state; a place seen before
changes nothing, so whoever judges again from a state that was kept earlier, in the same order, gets
the same decisions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from bots.alerts.alarm import Decision, ReadingFact, judge_values
from bots.alerts.alarm_state import PatientState
from bots.alerts.late import LateDecision
from bots.alerts.profiles import SiteRules
from bots.alerts.technical import TechnicalDecision
from fajma.facts import Fact

AnyDecision = Decision | TechnicalDecision | LateDecision
"""What each has: ``reason``, ``alarm_id``, ``priority``, ``at``, ``step``, ``announce``, ``rings``
and ``key``."""


@dataclass(frozen=True, slots=True)
class NotedFact:
    """A fact as it stands in the log of facts.

    Attributes:
        position: its place in that log; rises, is never used twice, starts at 0 or later.
        fact: what was noted.
    """

    position: int
    fact: Fact


def take(
    state: PatientState, fact: ReadingFact | NotedFact, rules: SiteRules
) -> tuple[PatientState, tuple[AnyDecision, ...]]:
    """Take in one reading or fact of a patient.

    Args:
        state: what is remembered of the patient.
        fact: what is new, and its place in its log.
        rules: what the site judges by.

    Returns:
        The new state, and what was decided, in order; nothing for a place taken in before. Where a
        decision is announced, the new state is ``worth_keeping``.
    """
    if isinstance(fact, NotedFact):
        if fact.position <= state.noted:
            return state, ()
        return replace(state, noted=fact.position), ()
    if fact.position <= state.position:
        return state, ()
    tracks, decisions = judge_values(state.tracks, fact, rules.of(state.standing))
    return replace(state, position=fact.position, tracks=tracks), tuple(decisions)


def due(state: PatientState, rules: SiteRules) -> datetime | None:
    """When a ``TimePassed`` must be noted at the latest, if nothing else comes.

    Taking in one at that time or later moves it on.
    """
    return None
