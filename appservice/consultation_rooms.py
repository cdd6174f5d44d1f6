"""The room of a consultation: made, and brought to what our record says of it.

What our record says is committed before (``consultations.py``); here the homeserver is asked for
it, call by call, each of which may be repeated. The last word is that the room shows it.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime
from typing import Any

import structlog

from appservice.rooms import Plan, room_request
from appservice.service import GREET_AFTER_S, MatrixService
from fajma.config import Settings
from fajma.events import CONSULTATION, MESSAGE
from fajma.language import Language, translator
from fajma.life import ALIVE, FROZEN, TREATING, WITH_READERS, Status
from fajma.store import Records, to_ms
from fajma.store.consultations import Consultation
from fajma.store.patients import Patient

log = structlog.get_logger()


class ConsultationRooms:
    """Makes rooms and lets them follow their records; greets who joins."""

    def __init__(self, settings: Settings, records: Records, matrix: MatrixService) -> None:
        self._settings = settings
        self._records = records
        self._matrix = matrix

    async def make(
        self, consultation: Consultation, patient: Patient, by: str, now: datetime
    ) -> None:
        """Make the room of a consultation, or complete it, and open the consultation in it.

        Raises:
            FajmaError, MatrixError: the homeserver did not do all of it; it can be done again.
        """
        matrix = self._matrix
        plan = await self._plan_for(consultation, patient)
        room_id = consultation.room_id
        is_new = room_id is None
        if room_id is None:
            room_id = await matrix.create_room(
                room_request(
                    plan,
                    name=f"Consultation {consultation.id[:4].upper()}",
                    room_version=self._settings.homeserver.room_version,
                    vitals_url=self._settings.widgets.vitals_url,
                )
            )
            # Before the first message, whose key goes to who belongs to a consultation of ours.
            await self._records.consultations.held_in(consultation.id, room_id)
        await self._describe(room_id, replace(consultation, status=Status.OPEN))
        await matrix.host.send(
            room_id,
            MESSAGE,
            {"msgtype": "m.notice", "body": welcome(consultation.language)},
            transaction_id=f"welcome-{consultation.id}",
        )
        # Last, so that a room without its first messages is completed by the next try. What came
        # to it since the room was made, ``settle`` brings.
        async with self._records.store.transaction() as connection:
            await self._records.consultations.open_in(
                consultation.id, room_id, shown=consultation.revision if is_new else 0
            )
            await self._records.audit.note(
                connection, actor=by, action="consultation.open", subject=consultation.id, now=now
            )
        opened = await self._records.consultations.get(consultation.id)
        if opened is not None and not is_new:
            await self.settle(opened, now)
        log.info("consultation_opened", consultation=consultation.id, room=room_id)

    async def settle(self, found: Consultation, now: datetime) -> None:
        """Bring a room to what our record says, and note that it is there.

        Raises:
            FajmaError, MatrixError: the homeserver did not do all of it; it can be done again.
        """
        room_id = found.room_id
        invited: list[str] = []
        if room_id is not None:
            if found.status in WITH_READERS:
                invited = await self._invite_all(found, room_id)
                await self._matrix.mend(room_id, await self.plan(found))
                await self._describe(room_id, found)
            else:
                await self._empty(room_id)
        await self._records.consultations.now_shows(
            found.id, found.revision, invited=invited, now=now
        )

    async def _invite_all(self, found: Consultation, room_id: str) -> list[str]:
        """Invite who belongs and never was, by our record; the patient by whether he is there."""
        members = (await self._matrix.room_inside(room_id)).members
        if found.status is not Status.OPEN:
            return []
        new = [one.account for one in found.participants if not one.invited]
        for account in new:
            await self._matrix.invite(room_id, account)
        patient = await self._records.patients.get(found.patient)
        theirs = patient.account if patient is not None and found.admitted_at is not None else None
        if theirs is not None and members.get(theirs) in {None, "knock"}:
            await self._matrix.invite(room_id, theirs)
        return new

    async def _empty(self, room_id: str) -> None:
        """Nobody but our bots is in the room, or could do anything there if he were."""
        matrix = self._matrix
        bots = (matrix.vitals.mxid, matrix.alerts_mxid)
        await matrix.mend(room_id, Plan(matrix.host.mxid, bots, frozen=True))
        now = await self._matrix.room_now(room_id)
        for account, membership in sorted(now.members.items()):
            if membership in {"join", "invite", "knock"} and account not in self._matrix.ours:
                await self._matrix.remove(room_id, account)

    async def plan(self, consultation: Consultation) -> Plan:
        """What the consultation's room must be."""
        patient = await self._records.patients.get(consultation.patient)
        return await self._plan_for(consultation, patient)

    async def _plan_for(self, consultation: Consultation, patient: Patient | None) -> Plan:
        matrix = self._matrix
        account = patient.account if patient is not None else None
        is_in = account is not None and consultation.admitted_at is not None
        others = [one.account for one in consultation.participants if one.role not in TREATING]
        ever = await self._records.consultations.took_part(consultation.id)
        now = {one.account for one in consultation.participants}
        gone = {one.account for one in ever} - now
        if account is not None and not is_in:
            gone.add(account)
        return Plan(
            creator=matrix.host.mxid,
            bots=(matrix.vitals.mxid, matrix.alerts_mxid),
            clinicians=consultation.clinicians,
            others=(*others, *([account] if account is not None and is_in else [])),
            waiting=account if consultation.status is not Status.BOOKED else None,
            gone=frozenset(gone),
            frozen=consultation.status in FROZEN,
        )

    async def greet(self, room_id: str, user: str) -> None:
        """Say to somebody who joined what was said before he could read.

        A little later, because a client refuses what comes before it has looked up our device.
        """
        await asyncio.sleep(GREET_AFTER_S)
        consultation = await self._records.consultations.in_room(room_id)
        if consultation is None or consultation.status not in ALIVE:
            return
        who = self._records.site_key.fingerprint(b"greeted", user.encode()).hex()
        await self._describe(room_id, replace(consultation, status=Status.OPEN))
        await self._matrix.host.send(
            room_id,
            MESSAGE,
            {"msgtype": "m.notice", "body": welcome(consultation.language)},
            transaction_id=f"welcome-{consultation.id}-{who}",
        )

    async def _describe(self, room_id: str, consultation: Consultation) -> None:
        content: dict[str, Any] = {
            "version": 1,
            "status": consultation.status.value,
            "patient": consultation.patient,
            "clinicians": list(consultation.clinicians),
            "time_zone": consultation.time_zone,
            "language": consultation.language.value,
            "since": to_ms(consultation.opened_at),
        }
        if consultation.ended_at is not None:
            content["until"] = to_ms(consultation.ended_at)
        await self._matrix.host.set_state(room_id, CONSULTATION, "", content)


def welcome(language: Language) -> str:
    """The first message of every consultation room."""
    _ = translator(language).gettext
    return _(
        "This consultation is end-to-end encrypted. Vitals and alarms that appear here are a"
        " secondary, investigational notification, not a certified medical device: never rely on"
        " them as the only monitoring. Oximeters overestimate SpO2 in dark skin and with poor"
        " perfusion."
    )
