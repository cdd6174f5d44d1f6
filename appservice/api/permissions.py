"""Who may do what at the REST API: one table. What is not in it is refused. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Final


class Who(StrEnum):
    """As what somebody calls; a key of hospital software calls as each of its scopes."""

    NOBODY = "nobody"
    """Shows nothing."""
    DOCTOR = "doctor"
    NURSE = "nurse"
    STAFF_OPERATOR = "staff-operator"
    """Works here as an operator and signed in as a person."""
    PATIENT = "patient"
    PARTNER = "partner"
    """A clinician in an open consultation who is not of our staff."""
    OBSERVER = "observer"
    """Takes part in an open consultation and treats nobody."""
    OPERATOR = "operator"
    """The ``fajma`` command, with the operator's token."""
    CONSULTATIONS_READ = "consultations.read"
    CONSULTATIONS_WRITE = "consultations.write"
    PATIENTS_READ = "patients.read"
    PATIENTS_WRITE = "patients.write"
    OBSERVATIONS_READ = "observations.read"
    CONSENTS_WRITE = "consents.write"


SCOPES: Final = frozenset(
    {
        Who.CONSULTATIONS_READ,
        Who.CONSULTATIONS_WRITE,
        Who.PATIENTS_READ,
        Who.PATIENTS_WRITE,
        Who.OBSERVATIONS_READ,
        Who.CONSENTS_WRITE,
    }
)
"""What a key of hospital software may have."""

HOSPITAL: Final = frozenset(
    {
        Who.CONSULTATIONS_READ,
        Who.CONSULTATIONS_WRITE,
        Who.PATIENTS_READ,
        Who.PATIENTS_WRITE,
    }
)
"""Scopes of the key in ``secrets.api_token_file``, as it was before there were scopes."""


class Reach(StrEnum):
    """About whom."""

    ALL = "all"
    OWN = "own"
    """Doctors and nurses: patients of the own ward and of open consultations in which they take
    part, and these consultations. Others: the open consultations in which they take part, and their
    patients. A patient: the own record and consultations."""


class Permission(StrEnum):
    """What a route needs."""

    READ_API = "api.read"
    SIGN_IN = "session.begin"
    READ_SESSION = "session.read"
    READ_WARDS = "wards.read"
    WRITE_WARDS = "wards.write"
    READ_STAFF = "staff.read"
    WRITE_STAFF = "staff.write"
    READ_PATIENTS = "patients.read"
    FIND_PATIENTS = "patients.find"
    WRITE_PATIENTS = "patients.write"
    LINK_DEVICES = "devices.link"
    READ_OBSERVATIONS = "observations.read"
    READ_CONSENTS = "consents.read"
    WRITE_CONSENTS = "consents.write"
    READ_CONSULTATIONS = "consultations.read"
    BOOK = "consultations.book"
    ARRANGE = "consultations.arrange"
    CONDUCT = "consultations.conduct"


_ALL, _OWN = Reach.ALL, Reach.OWN
_CLINICIANS: Final = {Who.DOCTOR: _OWN, Who.NURSE: _OWN}
_PARTICIPANTS: Final = {**_CLINICIANS, Who.PATIENT: _OWN, Who.PARTNER: _OWN, Who.OBSERVER: _OWN}
_PEOPLE: Final = {**dict.fromkeys(_PARTICIPANTS, _ALL), Who.STAFF_OPERATOR: _ALL}

TABLE: Final[Mapping[Permission, Mapping[Who, Reach]]] = {
    Permission.READ_API: dict.fromkeys(Who, _ALL),
    Permission.SIGN_IN: {Who.NOBODY: _ALL},
    Permission.READ_SESSION: {
        **_PEOPLE,
        **dict.fromkeys(SCOPES, _ALL),
        Who.OPERATOR: _ALL,
    },
    Permission.READ_WARDS: {
        Who.DOCTOR: _ALL,
        Who.NURSE: _ALL,
        Who.STAFF_OPERATOR: _ALL,
        Who.OPERATOR: _ALL,
    },
    Permission.WRITE_WARDS: {Who.OPERATOR: _ALL},
    Permission.READ_STAFF: {
        Who.DOCTOR: _ALL,
        Who.NURSE: _ALL,
        Who.STAFF_OPERATOR: _ALL,
        Who.OPERATOR: _ALL,
    },
    Permission.WRITE_STAFF: {Who.OPERATOR: _ALL},
    Permission.READ_PATIENTS: {
        **_PARTICIPANTS,
        Who.OPERATOR: _ALL,
        Who.PATIENTS_READ: _ALL,
        Who.PATIENTS_WRITE: _ALL,
    },
    Permission.FIND_PATIENTS: {
        **_CLINICIANS,
        Who.OPERATOR: _ALL,
        Who.PATIENTS_READ: _ALL,
        Who.PATIENTS_WRITE: _ALL,
    },
    Permission.WRITE_PATIENTS: {Who.OPERATOR: _ALL, Who.PATIENTS_WRITE: _ALL},
    Permission.LINK_DEVICES: {**_CLINICIANS, Who.OPERATOR: _ALL, Who.PATIENTS_WRITE: _ALL},
    Permission.READ_OBSERVATIONS: {**_PARTICIPANTS, Who.OBSERVATIONS_READ: _ALL},
    Permission.READ_CONSENTS: {
        **_CLINICIANS,
        Who.PATIENT: _OWN,
        Who.OPERATOR: _ALL,
        Who.CONSENTS_WRITE: _ALL,
    },
    Permission.WRITE_CONSENTS: {**_CLINICIANS, Who.PATIENT: _OWN, Who.CONSENTS_WRITE: _ALL},
    Permission.READ_CONSULTATIONS: {
        **_PARTICIPANTS,
        Who.OPERATOR: _ALL,
        Who.CONSULTATIONS_READ: _ALL,
        Who.CONSULTATIONS_WRITE: _ALL,
    },
    Permission.BOOK: {Who.OPERATOR: _ALL, Who.CONSULTATIONS_WRITE: _ALL},
    Permission.ARRANGE: {
        **_CLINICIANS,
        Who.OPERATOR: _ALL,
        Who.CONSULTATIONS_WRITE: _ALL,
    },
    Permission.CONDUCT: {**_CLINICIANS},
}


def reach(permission: Permission, callers: Collection[Who]) -> Reach | None:
    """How far somebody's right goes who calls as each of these; ``None`` without right."""
    row = TABLE[permission]
    granted = {row[one] for one in callers if one in row}
    if Reach.ALL in granted:
        return Reach.ALL
    return Reach.OWN if granted else None
