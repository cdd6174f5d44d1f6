"""Wards and staff: from valid requests to their services, and back."""

from __future__ import annotations

from appservice.api import models
from appservice.api.declare import Call, Route
from appservice.api.models import (
    CheckAnswer,
    CheckedMember,
    JoinedAnswer,
    LeftAnswer,
    LetterAnswer,
    StaffAnswer,
    StaffMember,
    TrustAnswer,
    WardAnswer,
    WardsAnswer,
)
from appservice.api.permissions import Permission
from appservice.staff import StaffService
from appservice.wards import WardService
from fajma.store.people import Staff
from fajma.store.wards import Ward


class WardRoutes:
    """Wards."""

    def __init__(self, wards: WardService) -> None:
        self._wards = wards

    def routes(self) -> list[Route]:
        """Their declarations."""
        return [
            Route("GET", "/wards", Permission.READ_WARDS, "Every ward, and who is on duty",
                  self._all, WardsAnswer),
            Route("POST", "/wards", Permission.WRITE_WARDS, "Open a ward and its room",
                  self._open, WardAnswer, models.WardRequest),
        ]  # fmt: skip

    async def _all(self, _: Call) -> WardsAnswer:
        return WardsAnswer(wards=[_ward(one) for one in await self._wards.all()])

    async def _open(self, call: Call) -> WardAnswer:
        body = call.sent(models.WardRequest)
        ward = await self._wards.open(
            body.name, language=body.language, time_zone=body.time_zone, now=call.now
        )
        return _ward(ward)


class StaffRoutes:
    """Staff."""

    def __init__(self, staff: StaffService) -> None:
        self._staff = staff

    def routes(self) -> list[Route]:
        """Their declarations."""
        read, write = Permission.READ_STAFF, Permission.WRITE_STAFF
        return [
            Route("GET", "/staff", read, "Who works here",
                  self._all, StaffAnswer, query=models.StaffQuery),
            Route("POST", "/staff", write, "Somebody joins; safe to repeat",
                  self._add, JoinedAnswer, models.StaffRequest),
            Route("POST", "/staff/role", write, "Another role, ward or language",
                  self._change, StaffMember, models.StaffChange),
            Route("POST", "/staff/leave", write, "Somebody leaves; safe to repeat",
                  self._leave, LeftAnswer, models.WhoRequest),
            Route("POST", "/staff/lost-phone", write, "A phone is gone",
                  self._lost_phone, LetterAnswer, models.LostPhoneRequest),
            Route("POST", "/staff/password", write, "A new first password",
                  self._new_password, LetterAnswer, models.WhoRequest),
            Route("POST", "/staff/trust", write, "Accept somebody's reset keys",
                  self._trust, TrustAnswer, models.TrustRequest),
            Route("POST", "/staff/check", write, "Whether everybody can be reached",
                  self._check, CheckAnswer),
        ]  # fmt: skip

    async def _all(self, call: Call) -> StaffAnswer:
        found = await self._staff.all(left=call.asked(models.StaffQuery).left)
        return StaffAnswer(staff=[_member(one) for one in found])

    async def _add(self, call: Call) -> JoinedAnswer:
        body = call.sent(models.StaffRequest)
        joined = await self._staff.add(
            body.who,
            name=body.name,
            role=body.role,
            ward=body.ward,
            language=body.language,
            existing=body.existing,
            now=call.now,
        )
        member = _member(joined.person)
        return JoinedAnswer(**dict(member), letter=joined.letter, warning=joined.warning)

    async def _change(self, call: Call) -> StaffMember:
        body = call.sent(models.StaffChange)
        person = await self._staff.change(
            body.who, role=body.role, ward=body.ward, language=body.language, now=call.now
        )
        return _member(person)

    async def _leave(self, call: Call) -> LeftAnswer:
        left = await self._staff.leave(call.sent(models.WhoRequest).who, now=call.now)
        return LeftAnswer(
            ended_here=left.ended_here, without_clinician=list(left.without_clinician)
        )

    async def _lost_phone(self, call: Call) -> LetterAnswer:
        body = call.sent(models.LostPhoneRequest)
        letter = await self._staff.lost_phone(
            body.who, devices=body.devices, every=body.every, stolen=body.stolen, now=call.now
        )
        return LetterAnswer(letter=letter)

    async def _new_password(self, call: Call) -> LetterAnswer:
        who = call.sent(models.WhoRequest).who
        return LetterAnswer(letter=await self._staff.new_password(who, now=call.now))

    async def _trust(self, call: Call) -> TrustAnswer:
        body = call.sent(models.TrustRequest)
        return TrustAnswer(account=await self._staff.trust(body.who, body.code, now=call.now))

    async def _check(self, _: Call) -> CheckAnswer:
        checked = [
            CheckedMember(
                **dict(_member(one.person)),
                troubles=list(one.troubles),
                on_call=one.rings,
                on_duty=one.on_duty,
                reachable=one.is_reachable,
                code=one.code,
            )
            for one in await self._staff.check()
        ]
        return CheckAnswer(staff=checked)


def _ward(ward: Ward) -> WardAnswer:
    return WardAnswer(
        name=ward.id,
        room_id=ward.room_id,
        language=ward.language,
        time_zone=ward.time_zone,
        on_duty=[one.account for one in ward.roster.on_call],
    )


def _member(person: Staff) -> StaffMember:
    return StaffMember(
        account=person.account,
        name=person.name,
        role=person.role,
        ward=person.ward,
        language=person.language,
        left=person.left_at,
    )
