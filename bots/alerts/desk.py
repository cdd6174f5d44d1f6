"""What the desks share at which commands are carried out: place, order, what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fajma.commands import Command, same_name
from fajma.errors import FajmaError
from fajma.store.alarms import Delivery, SentBy
from fajma.store.consultations import Consultation
from fajma.store.patients import Patient
from fajma.store.people import Staff
from fajma.store.wards import Ward
from fajma.vitals import PatientKey


class RefusedError(FajmaError):
    """A command that is not carried out; the message is the answer, in the person's language."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where somebody typed; one of the first two is set.

    Attributes:
        ward: whose room it is.
        consultation: held in the room.
        room_id: the room.
    """

    ward: Ward | None
    consultation: Consultation | None
    room_id: str

    @property
    def zone(self) -> str:
        """Time zone of the room."""
        if self.ward is not None:
            return self.ward.time_zone
        return self.consultation.time_zone if self.consultation is not None else "UTC"


@dataclass(frozen=True, slots=True)
class Asked:
    """A command, as it was found to be allowed.

    Attributes:
        command: what is asked.
        place: where.
        account: who asks.
        person: the same, of the staff; ``None`` for the patient.
        event_id: of the message.
        mark: fingerprint of the message, for delivery ids.
        replies_to: the event that the message answers, by the homeserver's word.
    """

    command: Command
    place: Place
    account: str
    person: Staff | None
    event_id: str
    mark: bytes
    replies_to: str | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """What a command led to; what must be kept is kept already.

    Attributes:
        said: the answer; ``None`` if it comes with the deliveries, or later.
        patient: of the audit entry and the answer; ``None`` for what only shows several patients.
        detail: of the audit entry, which is sealed; ``None``: there is none.
        also: further messages.
        act: what the audit calls it; the command's own name where ``None``.
    """

    said: str | None
    patient: Patient | None = None
    detail: dict[str, str] | None = None
    also: tuple[Delivery, ...] = ()
    act: str | None = None


def notice(
    room_id: str,
    said: str,
    delivery_id: str,
    *,
    now: datetime,
    more: Mapping[str, Any] | None = None,
    patient: PatientKey | None = None,
) -> Delivery:
    """A message of ``@fajma``, for which no phone rings; sealed for whom it is about, if given."""
    content = {"msgtype": "m.notice", "body": said, **(more or {})}
    return Delivery(delivery_id, room_id, patient, content, now, SentBy.HOST)


def is_of(person: Staff, ward: Ward) -> bool:
    """Whether somebody is a doctor or nurse of a ward."""
    return person.is_clinician and person.ward == ward.id


def is_bed(patient: Patient, typed: str) -> bool:
    """Whether a bed as typed is the patient's."""
    return same_name("".join(patient.bed.split()), "".join(typed.split()))
