"""The waiting room: a patient with an account asks to be let in, clinicians are told.

He asks by knocking at the consultation's room, or by beginning a chat with ``@fajma`` or saying
anything in it; what he says there is not read. Nobody else's chat is accepted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final

import structlog

from appservice.service import MatrixService
from fajma.language import Language, shown, translator
from fajma.life import Status
from fajma.store import Records
from fajma.store.alarms import Delivery, SentBy
from fajma.store.consultations import Consultation
from fajma.store.patients import Patient
from fajma.store.people import MAX_NAME
from fajma.vitals import PatientKey

log = structlog.get_logger()

ASK_AGAIN: Final = timedelta(minutes=5)
"""Who asks again within this time was heard already. FAJMA default, not from a guideline."""


class Answer(StrEnum):
    """What becomes of asking."""

    HEARD = "heard"
    IN_ROOM = "in_room"
    NOTHING_BOOKED = "nothing_booked"


class WaitingRoom:
    """Hears patients who ask.

    Args:
        records: all of them.
        matrix: our side of the homeserver.
        now: the clock.
    """

    def __init__(
        self,
        records: Records,
        matrix: MatrixService,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._records = records
        self._matrix = matrix
        self._now = now
        self._one_at_a_time = asyncio.Lock()

    async def knocked(self, room_id: str, account: str) -> None:
        """Somebody knocks at a room; only a patient at his own consultation's is heard here."""
        patient = await self._records.patients.of_account(account)
        found = await self._records.consultations.in_room(room_id)
        if patient is not None and found is not None and found.patient == patient.key:
            await self.ask(account)

    async def invited(self, room_id: str, by: str) -> None:
        """Somebody invites ``@fajma``: a patient begins a chat, or it is declined."""
        if await self._records.patients.of_account(by) is None:
            async with self._records.store.transaction() as connection:
                await self._records.tally.add(connection, {"invitations_declined": 1})
            log.warning("invitation_declined", room=room_id)
            await self._matrix.decline(room_id)
            return
        # First, or nobody there could read what we answer.
        await self._records.consultations.waits_in(room_id, by)
        await self._matrix.join(room_id)
        await self._heard_in(room_id, by)

    async def spoken(self, room_id: str, sender: str) -> None:
        """Something was said in a room: in his chat with us a patient asks by that."""
        if await self._records.consultations.who_waits_in(room_id) == sender:
            await self._heard_in(room_id, sender)

    async def ask(self, account: str) -> Answer:
        """A patient asks; who is on duty is told, once in a while."""
        patient = await self._records.patients.of_account(account)
        if patient is None:
            return Answer.NOTHING_BOOKED
        found = await self._records.consultations.of_patient(patient.key)
        if found is None:
            return Answer.NOTHING_BOOKED
        if (
            found.admitted_at is not None
            and found.room_id is not None
            and await self._matrix.has_joined(found.room_id, account)
        ):
            return Answer.IN_ROOM
        now = self._now()
        where = await self._where(found)
        async with self._records.store.transaction() as connection:
            if not await self._records.consultations.asked(
                connection, found.id, now=now, again_after=ASK_AGAIN
            ):
                return Answer.HEARD
            if where is not None:
                room_id, language, called = where
                body = asks(patient, language)
                content = {
                    "msgtype": "m.text",
                    "body": body,
                    "m.mentions": {"user_ids": list(called)},
                }
                mark = (b"asks", found.id.encode(), now.isoformat().encode())
                await self._records.outbox.add(
                    connection, self._delivery(room_id, content, mark, now, about=patient.key)
                )
            await self._records.audit.note(
                connection, actor=account, action="consultation.ask", subject=found.id, now=now
            )
        self._records.store.hints.notify("outbox")
        log.info("patient_asks", consultation=found.id)
        return Answer.HEARD

    async def _where(self, found: Consultation) -> tuple[str, Language, Sequence[str]] | None:
        """The ward's room and who is on duty; without a ward the consultation's own."""
        ward = await self._records.wards.responsible(found.patient)
        if ward is not None and ward.room_id is not None:
            return ward.room_id, ward.language, sorted(await self._records.called(ward))
        if found.room_id is not None and found.status is Status.OPEN:
            return found.room_id, found.language, found.clinicians
        return None

    async def _heard_in(self, room_id: str, account: str) -> None:
        """Let a patient ask in his chat, and answer there."""
        async with self._one_at_a_time:
            await self._answer(room_id, await self.ask(account))

    async def _answer(self, room_id: str, answer: Answer) -> None:
        now = self._now()
        # One answer of each kind within a time, however much he writes.
        slot = int(now.timestamp() // ASK_AGAIN.total_seconds())
        mark = (b"answer", room_id.encode(), answer.value.encode(), str(slot).encode())
        content = {"msgtype": "m.notice", "body": answered(answer)}
        delivery = self._delivery(room_id, content, mark, now, about=None)
        if await self._records.outbox.is_promised(delivery.delivery_id):
            return
        async with self._records.store.transaction() as connection:
            await self._records.outbox.add(connection, delivery)
        self._records.store.hints.notify("outbox")

    def _delivery(
        self,
        room_id: str,
        content: Mapping[str, Any],
        mark: tuple[bytes, ...],
        now: datetime,
        *,
        about: PatientKey | None,
    ) -> Delivery:
        return Delivery(
            delivery_id=self._records.site_key.fingerprint(*mark).hex(),
            room_id=room_id,
            patient=about,
            content=content,
            created_at=now,
            sender=SentBy.HOST,
        )


def asks(patient: Patient, language: Language) -> str:
    """What clinicians read."""
    _ = translator(language).gettext
    return _("WAITING ROOM · bed {bed} {initials} asks to be let into the consultation").format(
        bed=shown(patient.bed, MAX_NAME), initials=shown(patient.initials, MAX_NAME)
    )


def answered(answer: Answer) -> str:
    """What the patient reads: in both languages, for nobody knows yet which one he speaks."""
    return "\n".join(_in(language, answer) for language in Language)


def _in(language: Language, answer: Answer) -> str:
    _ = translator(language).gettext
    if answer is Answer.IN_ROOM:
        return _("You are in your consultation already: it is in your list of rooms.")
    if answer is Answer.NOTHING_BOOKED:
        return _("No consultation is planned for you now. Call your hospital if you need one.")
    return _(
        "You are in the waiting room. The team was told and will let you in. What you write here"
        " is not read. In an emergency call for help at once."
    )
