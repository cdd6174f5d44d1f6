"""The life of a consultation: its states, who takes part as what, who may do what. Pure.

::

    booked ──► opening ──► open ──► ended ──► archived
       │          │          │                   ▲
       ├──────────┴─► cancelled                  │
       └──────────────────── open ─► no_show ────┘

1. Nothing leads out of ``archived`` and ``cancelled``; what has ended never opens again: a patient
   who comes back gets a new consultation.
2. A step whose end is reached already is a repetition and changes nothing, so that whoever was cut
   off can simply do it again.
3. Time is nobody's step: archiving is done by the retention rule alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from fajma.errors import InputError


class Status(StrEnum):
    """Where a consultation is in its life."""

    BOOKED = "booked"
    """Agreed for a time; there is no room yet."""
    OPENING = "opening"
    """Its room is being made."""
    OPEN = "open"
    """Its room is in use; vitals and alarms go there."""
    ENDED = "ended"
    """Over: the room can be read, nobody writes there any more."""
    ARCHIVED = "archived"
    """Nobody is in the room any more. What of our records is deleted when is issue 10's."""
    CANCELLED = "cancelled"
    """Never took place."""
    NO_SHOW = "no_show"
    """The patient did not come."""


ALIVE: Final = frozenset({Status.BOOKED, Status.OPENING, Status.OPEN})
"""A patient has one consultation of these at most."""

WITH_READERS: Final = frozenset({Status.OPENING, Status.OPEN, Status.ENDED, Status.NO_SHOW})
"""In these, who takes part belongs in the room."""

FROZEN: Final = frozenset({Status.ENDED, Status.NO_SHOW})
"""In these the room is read and not written."""


class ParticipantRole(StrEnum):
    """As what somebody takes part in a consultation."""

    LEAD = "lead"
    """The clinician who is responsible; at most one."""
    CLINICIAN = "clinician"
    PATIENT = "patient"
    COMPANION = "companion"
    """Relative, mother of an infant, community health worker."""
    INTERPRETER = "interpreter"
    OBSERVER = "observer"
    """Student, trainee: reads, decides nothing."""


TREATING: Final = frozenset({ParticipantRole.LEAD, ParticipantRole.CLINICIAN})
"""Who is called by alarms."""

INVITED: Final = frozenset(ParticipantRole) - {ParticipantRole.PATIENT}
"""Roles that somebody can be given; the patient is who the consultation is about."""


class Step(StrEnum):
    """What happens to a consultation."""

    OPEN = "open"
    """Its room is to be made."""
    OPENED = "opened"
    """Its room is there."""
    ASK = "ask"
    """The patient asks to be let in."""
    ADMIT = "admit"
    INVITE = "invite"
    REMOVE = "remove"
    LINK = "link"
    """A monitor is linked or unlinked."""
    CALL = "call"
    """A call is started."""
    CHANGE_LANGUAGE = "change_language"
    END = "end"
    SIGN = "sign"
    """A clinician signs the summary."""
    ARCHIVE = "archive"
    CANCEL = "cancel"
    NO_SHOW = "no_show"


class LifeError(InputError):
    """A step that cannot be taken from where the consultation is.

    Codes: ``consultation_over``, ``consultation_not_open``, ``consultation_is_open``,
    ``consultation_not_ended``.
    """


_STAYS: Final = (
    Step.ASK,
    Step.ADMIT,
    Step.INVITE,
    Step.REMOVE,
    Step.LINK,
    Step.CHANGE_LANGUAGE,
)

_NEXT: Final[Mapping[tuple[Status, Step], Status]] = {
    **{(status, step): status for status in ALIVE for step in _STAYS},
    (Status.BOOKED, Step.OPEN): Status.OPENING,
    (Status.BOOKED, Step.CANCEL): Status.CANCELLED,
    (Status.BOOKED, Step.NO_SHOW): Status.NO_SHOW,
    (Status.OPENING, Step.OPEN): Status.OPENING,
    (Status.OPENING, Step.OPENED): Status.OPEN,
    (Status.OPENING, Step.CANCEL): Status.CANCELLED,
    (Status.OPEN, Step.OPEN): Status.OPEN,
    (Status.OPEN, Step.OPENED): Status.OPEN,
    (Status.OPEN, Step.CALL): Status.OPEN,
    (Status.OPEN, Step.END): Status.ENDED,
    (Status.OPEN, Step.NO_SHOW): Status.NO_SHOW,
    (Status.ENDED, Step.END): Status.ENDED,
    (Status.ENDED, Step.SIGN): Status.ENDED,
    (Status.ENDED, Step.ARCHIVE): Status.ARCHIVED,
    (Status.NO_SHOW, Step.NO_SHOW): Status.NO_SHOW,
    (Status.NO_SHOW, Step.ARCHIVE): Status.ARCHIVED,
    (Status.ARCHIVED, Step.ARCHIVE): Status.ARCHIVED,
    (Status.CANCELLED, Step.CANCEL): Status.CANCELLED,
}


def next_status(status: Status, step: Step) -> Status:
    """Where a step leads.

    Raises:
        LifeError: it cannot be taken from here.
    """
    after = _NEXT.get((status, step))
    if after is not None:
        return after
    if status is Status.OPEN:
        if step is Step.CANCEL:
            raise LifeError(
                "the consultation is open already: end it, or say that the patient did not come",
                code="consultation_is_open",
            )
        raise LifeError("the consultation is still open: end it first", code="consultation_is_open")
    if status in ALIVE:
        raise LifeError("the consultation is not open yet: open it", code="consultation_not_open")
    if step is Step.SIGN:
        raise LifeError(
            "there is no summary to sign: only one of a consultation that has ended is signed",
            code="consultation_not_ended",
        )
    raise LifeError(
        "the consultation is over and never opens again: open a new one", code="consultation_over"
    )


_POWERS: Final[Mapping[ParticipantRole, int]] = {
    ParticipantRole.LEAD: 50,
    ParticipantRole.CLINICIAN: 50,
}


def power_of(role: ParticipantRole) -> int:
    """Power level in the room, 0 to 50; our bots stand above at 100."""
    return _POWERS.get(role, 0)


_BY_CLINICIANS: Final = frozenset(Step) - {Step.OPENED, Step.ASK, Step.ARCHIVE}

_MAY: Final[Mapping[ParticipantRole, frozenset[Step]]] = {
    # Not only the lead's: the lead may be off duty when it must be done.
    ParticipantRole.LEAD: _BY_CLINICIANS,
    ParticipantRole.CLINICIAN: _BY_CLINICIANS,
    ParticipantRole.PATIENT: frozenset({Step.ASK, Step.CALL}),
    ParticipantRole.COMPANION: frozenset({Step.CALL}),
    ParticipantRole.INTERPRETER: frozenset({Step.CALL}),
}


def may(role: ParticipantRole, step: Step) -> bool:
    """Whether somebody who takes part as this may take a step. Nobody archives."""
    return step in _MAY.get(role, frozenset())
