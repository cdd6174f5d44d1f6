"""Whose patients and consultations a caller may know of, by our records as they are now."""

from __future__ import annotations

from appservice.api.callers import Caller
from appservice.api.permissions import Reach, Who
from fajma.life import TREATING, ParticipantRole, Status
from fajma.store import Records
from fajma.store.consultations import Consultation, ConsultationId
from fajma.vitals import PatientKey

READERS = TREATING | {ParticipantRole.OBSERVER}
"""As what somebody who takes part reads at the API; companions and interpreters read in the room.
"""

_STAFF = frozenset({Who.DOCTOR, Who.NURSE})


class Reaches:
    """Answers whether something is within a caller's reach."""

    def __init__(self, records: Records) -> None:
        self._records = records

    async def patients(self, caller: Caller, reach: Reach) -> frozenset[PatientKey] | None:
        """Of which patients; ``None`` for all of them.

        What somebody learns of a patient through a consultation ends with it.
        """
        if reach is Reach.ALL:
            return None
        if caller.account is None:
            return frozenset()
        if Who.PATIENT in caller.who:
            own = await self._records.patients.of_account(caller.account)
            return frozenset({own.key}) if own is not None else frozenset()
        open_ones = [
            one for one in await self._taken_part(caller.account) if one.status is Status.OPEN
        ]
        found = {one.patient for one in open_ones}
        if caller.who & _STAFF and caller.ward is not None:
            found |= await self._records.patients.keys_of_ward(caller.ward)
        return frozenset(found)

    async def consultations(self, caller: Caller, reach: Reach) -> frozenset[ConsultationId] | None:
        """Of which consultations; ``None`` for all of them."""
        if reach is Reach.ALL:
            return None
        if caller.account is None:
            return frozenset()
        if Who.PATIENT in caller.who:
            own = await self._records.patients.of_account(caller.account)
            about = await self._records.consultations.with_account(caller.account)
            return frozenset(one.id for one in about if own and one.patient == own.key)
        return frozenset(one.id for one in await self._taken_part(caller.account))

    async def _taken_part(self, account: str) -> list[Consultation]:
        return [
            one
            for one in await self._records.consultations.with_account(account)
            if one.role_of(account) in READERS
        ]
