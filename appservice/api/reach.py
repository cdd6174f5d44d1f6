"""Whose patients and consultations a caller may know of, by our records as they are now."""

from __future__ import annotations

from appservice.api.callers import Caller
from appservice.api.permissions import Reach, Who
from fajma.store import Records
from fajma.store.consultations import ConsultationId
from fajma.vitals import PatientKey

_STAFF = frozenset({Who.DOCTOR, Who.NURSE})


class Reaches:
    """Answers whether something is within a caller's reach."""

    def __init__(self, records: Records) -> None:
        self._records = records

    async def patients(self, caller: Caller, reach: Reach) -> frozenset[PatientKey] | None:
        """Of which patients; ``None`` for all of them."""
        if reach is Reach.ALL:
            return None
        if caller.account is None:
            return frozenset()
        consultations = await self._records.consultations.of_account(caller.account)
        found = {one.patient for one in consultations}
        if Who.PATIENT in caller.who:
            own = await self._records.patients.of_account(caller.account)
            return frozenset({own.key}) if own is not None else frozenset()
        if caller.who & _STAFF and caller.ward is not None:
            found |= await self._records.patients.keys_of_ward(caller.ward)
        return frozenset(found)

    async def consultations(self, caller: Caller, reach: Reach) -> frozenset[ConsultationId] | None:
        """Of which consultations; ``None`` for all of them."""
        if reach is Reach.ALL:
            return None
        if caller.account is None:
            return frozenset()
        taking_part = await self._records.consultations.of_account(caller.account)
        return frozenset(one.id for one in taking_part)
