"""Consultations: opened, listed, read."""

from __future__ import annotations

from appservice.api import models
from appservice.api.declare import Call, Route
from appservice.api.models import (
    ConsultationAnswer,
    ConsultationOpened,
    ConsultationsAnswer,
)
from appservice.api.pages import Cursors, PageQuery
from appservice.api.permissions import Permission
from appservice.api.problems import not_found
from appservice.api.reach import Reaches
from appservice.consultations import ConsultationService
from fajma.store import Records
from fajma.store.consultations import Consultation
from fajma.vitals import DeviceId


class ConsultationRoutes:
    """Consultations."""

    def __init__(
        self,
        records: Records,
        consultations: ConsultationService,
        reaches: Reaches,
        cursors: Cursors,
    ) -> None:
        self._records = records
        self._consultations = consultations
        self._reaches = reaches
        self._cursors = cursors

    def routes(self) -> list[Route]:
        """Their declarations."""
        read, book = Permission.READ_CONSULTATIONS, Permission.BOOK
        return [
            Route("GET", "/consultations", read, "Consultations",
                  self._all, ConsultationsAnswer, query=PageQuery),
            Route("POST", "/consultations", book, "Open a consultation, or complete the open one",
                  self._open, ConsultationOpened, models.ConsultationRequest),
            Route("GET", "/consultations/{consultation}", read, "One consultation",
                  self._one, ConsultationAnswer, has_version=True),
        ]  # fmt: skip

    async def _all(self, call: Call) -> ConsultationsAnswer:
        among = await self._reaches.consultations(call.caller, call.reach)
        limit = call.asked(PageQuery).limit
        found = await self._records.consultations.page(
            before=self._cursors.read(call), limit=limit + 1, among=among
        )
        page = found[:limit]
        following = page[-1].id if len(found) > len(page) else None
        return ConsultationsAnswer(
            consultations=[_consultation(one) for one in page],
            next=self._cursors.make(call, following),
        )

    async def _open(self, call: Call) -> ConsultationOpened:
        body = call.sent(models.ConsultationRequest)
        consultation = await self._consultations.open(
            number=body.number,
            initials=body.initials,
            bed=body.bed,
            patient_account=body.patient_account,
            clinicians=body.clinicians,
            device=DeviceId(body.device) if body.device else None,
            language=body.language,
            now=call.now,
        )
        return ConsultationOpened(
            consultation=consultation.id,
            room_id=consultation.room_id,
            patient=consultation.patient,
        )

    async def _one(self, call: Call) -> ConsultationAnswer:
        consultation = await self._records.consultations.get(call.consultation)
        if consultation is None:
            raise not_found()
        return _consultation(consultation)


def _consultation(consultation: Consultation) -> ConsultationAnswer:
    return ConsultationAnswer(
        consultation=consultation.id,
        room_id=consultation.room_id,
        patient=consultation.patient,
        status=consultation.status,
        language=consultation.language,
        time_zone=consultation.time_zone,
        opened_at=consultation.opened_at,
        clinicians=list(consultation.clinicians),
    )
