"""Consultations from booking to signature, and who takes part."""

from __future__ import annotations

from appservice.api import models
from appservice.api.declare import Call, Route
from appservice.api.models import (
    ConsultationAnswer,
    ConsultationOpened,
    ConsultationsAnswer,
    ConsultationWhole,
    ParticipantAnswer,
    ParticipantsAnswer,
    SignatureAnswer,
)
from appservice.api.pages import Cursors, PageQuery
from appservice.api.permissions import Permission
from appservice.api.problems import ProblemError, not_found
from appservice.api.reach import Reaches
from appservice.consultations import ConsultationService
from fajma.life import Step, may
from fajma.store import Records
from fajma.store.consultations import Consultation, Participant
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
        self._service = consultations
        self._reaches = reaches
        self._cursors = cursors

    def routes(self) -> list[Route]:
        """Their declarations."""
        read, book = Permission.READ_CONSULTATIONS, Permission.BOOK
        arrange, conduct = Permission.ARRANGE, Permission.CONDUCT
        one = "/consultations/{consultation}"
        return [
            Route("GET", "/consultations", read, "Consultations",
                  self._all, ConsultationsAnswer, query=PageQuery),
            Route("POST", "/consultations", book, "Open a consultation, or complete the open one",
                  self._open, ConsultationOpened, models.ConsultationRequest),
            Route("POST", "/consultations/book", book, "Agree on a consultation for a time",
                  self._book, ConsultationAnswer, models.BookingRequest),
            Route("GET", one, read, "One consultation",
                  self._one, ConsultationWhole, has_version=True),
            Route("POST", f"{one}/open", arrange, "Open what was booked",
                  self._start, ConsultationAnswer),
            Route("POST", f"{one}/cancel", arrange, "It does not take place",
                  self._cancel, ConsultationAnswer),
            Route("POST", f"{one}/no-show", arrange, "The patient did not come",
                  self._no_show, ConsultationAnswer),
            Route("POST", f"{one}/language", arrange, "Another language",
                  self._language, ConsultationAnswer, models.LanguageRequest),
            Route("GET", f"{one}/participants", read, "Who takes part",
                  self._participants, ParticipantsAnswer),
            Route("POST", f"{one}/participants", arrange, "Somebody takes part",
                  self._invite, ParticipantsAnswer, models.InvitationRequest),
            Route("DELETE", f"{one}/participants/{{account}}", arrange,
                  "Somebody takes part no more", self._remove, ParticipantsAnswer),
            Route("POST", f"{one}/admit", conduct, "Let the patient in",
                  self._admit, ConsultationAnswer, models.AdmissionRequest),
            Route("POST", f"{one}/end", conduct, "End it",
                  self._end, ConsultationAnswer, models.EndRequest),
            Route("POST", f"{one}/sign", conduct, "Sign its summary",
                  self._sign, ConsultationWhole),
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

    async def _one(self, call: Call) -> ConsultationWhole:
        return await self._whole(await self._known(call))

    async def _participants(self, call: Call) -> ParticipantsAnswer:
        return _participants(await self._known(call))

    # --- beginning -------------------------------------------------------------------------------

    async def _open(self, call: Call) -> ConsultationOpened:
        body = call.sent(models.ConsultationRequest)
        consultation = await self._service.open(
            number=body.number,
            initials=body.initials,
            bed=body.bed,
            patient_account=body.patient_account,
            clinicians=body.clinicians,
            device=DeviceId(body.device) if body.device else None,
            language=body.language,
            now=call.now,
            by=call.caller.id,
        )
        return ConsultationOpened(
            consultation=consultation.id,
            room_id=consultation.room_id,
            patient=consultation.patient,
        )

    async def _book(self, call: Call) -> ConsultationAnswer:
        body = call.sent(models.BookingRequest)
        booked = await self._service.book(
            number=body.number,
            initials=body.initials,
            bed=body.bed,
            patient_account=body.patient_account,
            clinicians=body.clinicians,
            language=body.language,
            booked_for=body.booked_for,
            by=call.caller.id,
            now=call.now,
        )
        return _consultation(booked)

    async def _start(self, call: Call) -> ConsultationAnswer:
        found = await self._allowed(call, Step.OPEN)
        return _consultation(await self._service.start(found.id, call.caller.id, call.now))

    async def _cancel(self, call: Call) -> ConsultationAnswer:
        found = await self._allowed(call, Step.CANCEL)
        return _consultation(await self._service.cancel(found.id, call.caller.id, call.now))

    async def _no_show(self, call: Call) -> ConsultationAnswer:
        found = await self._allowed(call, Step.NO_SHOW)
        return _consultation(await self._service.no_show(found.id, call.caller.id, call.now))

    # --- while it is open ------------------------------------------------------------------------

    async def _language(self, call: Call) -> ConsultationAnswer:
        found = await self._allowed(call, Step.CHANGE_LANGUAGE)
        language = call.sent(models.LanguageRequest).language
        return _consultation(
            await self._service.change_language(found.id, language, call.caller.id, call.now)
        )

    async def _invite(self, call: Call) -> ParticipantsAnswer:
        found = await self._allowed(call, Step.INVITE)
        body = call.sent(models.InvitationRequest)
        return _participants(
            await self._service.invite(found.id, body.account, body.role, call.caller.id, call.now)
        )

    async def _remove(self, call: Call) -> ParticipantsAnswer:
        found = await self._allowed(call, Step.REMOVE)
        account = call.path["account"]
        return _participants(
            await self._service.remove(found.id, account, call.caller.id, call.now)
        )

    async def _admit(self, call: Call) -> ConsultationAnswer:
        found = await self._allowed(call, Step.ADMIT)
        account = call.sent(models.AdmissionRequest).account
        return _consultation(await self._service.admit(found.id, account, call.caller.id, call.now))

    # --- the end ---------------------------------------------------------------------------------

    async def _end(self, call: Call) -> ConsultationAnswer:
        found = await self._allowed(call, Step.END)
        despite_alarm = call.sent(models.EndRequest).despite_alarm
        return _consultation(
            await self._service.end(found.id, call.caller.id, call.now, despite_alarm=despite_alarm)
        )

    async def _sign(self, call: Call) -> ConsultationWhole:
        found = await self._allowed(call, Step.SIGN)
        return await self._whole(await self._service.sign(found.id, call.caller.id, call.now))

    # ---------------------------------------------------------------------------------------------

    async def _known(self, call: Call) -> Consultation:
        consultation = await self._records.consultations.get(call.consultation)
        if consultation is None:
            raise not_found()
        return consultation

    async def _allowed(self, call: Call, step: Step) -> Consultation:
        """The consultation, if a person may take this step as what he takes part."""
        found = await self._known(call)
        account = call.caller.account
        if account is not None:
            role = found.role_of(account)
            if role is None or not may(role, step):
                raise ProblemError(403, "forbidden", "you may not do this in this consultation")
        return found

    async def _whole(self, consultation: Consultation) -> ConsultationWhole:
        signatures = await self._records.consultations.signatures(consultation.id)
        return ConsultationWhole(
            **dict(_consultation(consultation)),
            signatures=[
                SignatureAnswer(account=one.account, signed_at=one.signed_at) for one in signatures
            ],
        )


def _consultation(consultation: Consultation) -> ConsultationAnswer:
    return ConsultationAnswer(
        consultation=consultation.id,
        room_id=consultation.room_id,
        patient=consultation.patient,
        status=consultation.status,
        language=consultation.language,
        time_zone=consultation.time_zone,
        opened_at=consultation.opened_at,
        booked_for=consultation.booked_for,
        admitted_at=consultation.admitted_at,
        ended_at=consultation.ended_at,
        participants=[_participant(one) for one in consultation.participants],
    )


def _participants(consultation: Consultation) -> ParticipantsAnswer:
    return ParticipantsAnswer(participants=[_participant(one) for one in consultation.participants])


def _participant(one: Participant) -> ParticipantAnswer:
    return ParticipantAnswer(account=one.account, role=one.role, invited=one.invited)
