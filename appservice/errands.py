"""Carries out what was ordered in rooms about consultations, once each, in order per room.

An errand (``fajma.store.errands``) is tried until it is done, refused for good, or older than
``GIVEN_UP_AFTER``. All that it does can be done again, so it survives the end of the process at any
step: its end, the audit entry and the promised answer are committed together, last.

A homeserver that is away or busy, ours or a partner's, is tried again with growing pauses, and the
room is told once that it takes longer. Rooms do not wait for each other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Final
from zoneinfo import ZoneInfo

import structlog
from mautrix.errors import MatrixRequestError

from appservice import errand_words as words
from appservice.consultations import ConsultationService
from fajma.deliveries import left_alone_s
from fajma.errors import AccessError, BugError, BusyError, FajmaError, InputError
from fajma.language import Language
from fajma.life import ParticipantRole, Step, next_status
from fajma.store import Records
from fajma.store.alarms import Delivery, SentBy
from fajma.store.consultations import Consultation, ConsultationId
from fajma.store.errands import Errand, ErrandKind
from fajma.store.patients import Patient
from fajma.store.people import named
from fajma.store.wards import WardId
from fajma.tasks import end
from fajma.vitals import DeviceId, PatientKey

log = structlog.get_logger()

GIVEN_UP_AFTER: Final = timedelta(minutes=10)
"""Since the order: by then who gave it has done something else (as ``FRESH`` of commands)."""

TRY_S: Final = 90.0
"""How long one try may take; an invitation over a federation waits for the other side."""

PAUSES_S: Final = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
"""Between tries; the last one again and again."""

DONE: Final = "done"

_PASSING: Final = frozenset(
    {
        HTTPStatus.UNAUTHORIZED,  # our token is being changed
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.TOO_MANY_REQUESTS,
    }
)
"""Refusals of a homeserver that pass, beside its own errors."""


StartCall = Callable[[Consultation, str, datetime], Awaitable[None]]
"""Puts the call of several people into a consultation's room, for who asks, at a time; safe to
repeat."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said in the room when an errand has ended.

    Attributes:
        said: to everybody there.
        patient: about whom it is, whose key seals it.
    """

    said: str
    patient: PatientKey | None = None


@dataclass(frozen=True, slots=True)
class _Pause:
    """A room in which the last try failed.

    Attributes:
        failed: how often, one after the other.
        until_s: when it is tried again, by the clock.
    """

    failed: int
    until_s: float


_Carry = Callable[[Errand, Consultation, Patient, str], Awaitable[str]]
"""Does an errand; the text is the patient as the answer names him. Gives the answer's words."""


class Porter:
    """Follows the errands.

    Args:
        records: everything.
        consultations: does what concerns rooms.
        start_call: see ``StartCall``; ``None`` where the hospital has no server for such calls.
        now: the time of day.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        records: Records,
        consultations: ConsultationService,
        *,
        start_call: StartCall | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._records = records
        self._consultations = consultations
        self._start_call = start_call
        self._now = now
        self._clock = clock
        self._hint = records.store.hints.subscribe("errands")
        self._at_work: dict[str, asyncio.Task[None]] = {}
        self._of_kind: dict[ErrandKind, _Carry] = {
            ErrandKind.INVITE: self._invite,
            ErrandKind.REMOVE: self._remove,
            ErrandKind.LINK: self._link,
            ErrandKind.UNLINK: self._unlink,
            ErrandKind.CALL: self._call,
            ErrandKind.LANGUAGE: self._speak,
            ErrandKind.ADMIT: self._admit,
            ErrandKind.END: self._finish,
            ErrandKind.SIGN: self._sign,
        }
        self._pauses: dict[str, _Pause] = {}

    async def run(self) -> None:
        """Carry out until cancelled."""
        try:
            while True:
                try:
                    await self._look()
                except Exception as error:  # noqa: BLE001 - a database that is away comes back
                    log.error("errands_unavailable", error=type(error).__name__)
                await self._records.store.hints.wait(self._hint)
        finally:
            await end(self._at_work.values())

    async def _look(self) -> None:
        """Begin with each room for which something waits and nothing is under way."""
        rooms = await self._records.errands.rooms_waiting()
        self._pauses = {room: pause for room, pause in self._pauses.items() if room in rooms}
        for room_id in rooms:
            pause = self._pauses.get(room_id)
            if room_id in self._at_work or (pause and pause.until_s > self._clock()):
                continue
            task = asyncio.create_task(self._work_in(room_id), name=f"errands in {room_id}")
            self._at_work[room_id] = task

    async def _work_in(self, room_id: str) -> None:
        """What waits in a room, in order, up to the first failure that passes."""
        try:
            while (errand_id := await self._records.errands.next_in(room_id)) is not None:
                if not await self._try(errand_id, room_id):
                    return
                self._pauses.pop(room_id, None)
        except Exception as error:  # noqa: BLE001 - looked at again in a moment
            log.error("errand_not_noted", room=room_id, error=type(error).__name__)
        finally:
            self._at_work.pop(room_id, None)

    async def _try(self, errand_id: str, room_id: str) -> bool:
        """One try.

        Returns:
            Whether it has ended, one way or the other.
        """
        try:
            errand = await self._records.errands.get(errand_id)
        except BugError as error:
            log.critical("errand_unreadable", errand=errand_id, code=error.code)
            await self._end_unreadable(errand_id, room_id, error.code)
            return True
        if errand is None:
            return True
        if self._now() - errand.asked_at >= GIVEN_UP_AFTER:
            code, said = (
                ("not_done", words.not_done) if errand.tried else ("too_late", words.too_late)
            )
            await self._end(errand, code, Answer(said(errand.language)))
            return True
        try:
            async with asyncio.timeout(TRY_S):
                answer = await self._carry_out(errand)
        except Exception as error:  # noqa: BLE001 - sorted by what it means
            refusal = _refusal(error)
            if refusal is None:
                await self._try_later(errand, error)
                return False
            await self._end(errand, refusal, Answer(words.refused(refusal, errand.language)))
        else:
            await self._end(errand, DONE, answer)
        return True

    # --- what becomes of it ----------------------------------------------------------------------

    async def _try_later(self, errand: Errand, error: Exception) -> None:
        before = self._pauses.get(errand.room_id)
        failed = before.failed + 1 if before is not None else 1
        pause_s = PAUSES_S[min(failed, len(PAUSES_S)) - 1]
        if isinstance(error, BusyError):
            pause_s = max(pause_s, left_alone_s(error))
        self._pauses[errand.room_id] = _Pause(failed, self._clock() + pause_s)
        code = error.code if isinstance(error, FajmaError) else type(error).__name__
        log.warning(
            "errand_failed", errand=errand.id, kind=errand.kind.value, reason=code, retry_s=pause_s
        )
        until = errand.asked_at + GIVEN_UP_AFTER
        zone = await self._zone(errand.room_id)
        said = words.takes_longer(f"{until.astimezone(zone):%H:%M}", errand.language)
        async with self._records.store.transaction() as connection:
            if await self._records.errands.told(connection, errand.id, now=self._now()):
                answer = self._delivery(errand, Answer(said), b"errand waits")
                await self._records.outbox.add(connection, answer)
        self._records.store.hints.notify("outbox")

    async def _end(self, errand: Errand, outcome: str, answer: Answer) -> None:
        """The last word: ended, noted and answered, or none of it."""
        async with self._records.store.transaction() as connection:
            ended = await self._records.errands.end(
                connection, errand.id, outcome, now=self._now()
            )  # fmt: skip
            if not ended:
                return
            await self._records.audit.note(
                connection,
                actor=errand.who,
                action="errand.done" if outcome == DONE else "errand.not_done",
                subject=answer.patient or errand.room_id,
                now=self._now(),
                errand=errand.id,
                kind=errand.kind.value,
                **({} if outcome == DONE else {"reason": outcome}),
            )
            await self._records.outbox.add(
                connection, self._delivery(errand, answer, b"errand answer")
            )
        self._records.store.hints.notify("outbox")
        log.info("errand_ended", errand=errand.id, kind=errand.kind.value, outcome=outcome)

    async def _end_unreadable(self, errand_id: str, room_id: str, code: str) -> None:
        """Nobody knows who asked for what; the room is told."""
        place = await self._records.wards.in_room(room_id) or (
            await self._records.consultations.in_room(room_id)
        )
        language = place.language if place is not None else Language.FRENCH
        content = {"msgtype": "m.notice", "body": words.unreadable(language)}
        mark = self._records.site_key.fingerprint(b"errand answer", errand_id.encode()).hex()
        answer = Delivery(mark, room_id, None, content, self._now(), SentBy.HOST)
        async with self._records.store.transaction() as connection:
            if await self._records.errands.end(connection, errand_id, code, now=self._now()):
                await self._records.audit.note(
                    connection,
                    actor="fajma",
                    action="errand.not_done",
                    subject=room_id,
                    now=self._now(),
                    errand=errand_id,
                    reason=code,
                )
                await self._records.outbox.add(connection, answer)
        self._records.store.hints.notify("outbox")

    def _delivery(self, errand: Errand, answer: Answer, purpose: bytes) -> Delivery:
        content = {
            "msgtype": "m.notice",
            "body": answer.said,
            "m.relates_to": {"m.in_reply_to": {"event_id": errand.event_id}},
            "m.mentions": {"user_ids": [errand.who]},
        }
        mark = self._records.site_key.fingerprint(purpose, errand.id.encode()).hex()
        return Delivery(mark, errand.room_id, answer.patient, content, self._now(), SentBy.HOST)

    async def _zone(self, room_id: str) -> ZoneInfo:
        place = await self._records.wards.in_room(room_id) or (
            await self._records.consultations.in_room(room_id)
        )
        return ZoneInfo(place.time_zone if place is not None else "UTC")

    # --- each kind -------------------------------------------------------------------------------

    async def _carry_out(self, errand: Errand) -> Answer:
        """Do it, all of it that is not done yet.

        Raises:
            Exception: what ``_refusal`` sorts.
        """
        await self._require_clinician(errand)
        if errand.kind is ErrandKind.OPEN:
            return await self._open(errand)
        consultation, patient = await self._about(errand)
        where = words.whose(patient, errand.language)
        said = await self._of_kind[errand.kind](errand, consultation, patient, where)
        return Answer(said, patient.key)

    async def _require_clinician(self, errand: Errand) -> None:
        """Who ordered it may have left the staff since then."""
        person = await self._records.people.get(errand.who)
        if person is None or not person.is_clinician:
            raise InputError("who ordered it has left the staff", code="not_a_clinician")

    async def _about(self, errand: Errand) -> tuple[Consultation, Patient]:
        consultation = await self._records.consultations.get(
            ConsultationId(errand.said["consultation"])
        )
        patient = (
            await self._records.patients.get(consultation.patient)
            if consultation is not None
            else None
        )
        if consultation is None or patient is None:
            raise BugError("an errand is about nothing that is known", code="consultation_gone")
        return consultation, patient

    async def _followed(self, changed: Consultation) -> None:
        """See that the room shows what was changed; our record says it already.

        Raises:
            FajmaError, MatrixError: the homeserver did not do all of it.
        """
        if changed.shown < changed.revision:
            await self._consultations.settle(changed.id, self._now())

    async def _open(self, errand: Errand) -> Answer:
        patient = await self._records.patients.get(PatientKey(errand.said["patient"]))
        ward = await self._records.wards.get(WardId(errand.said["ward"]))
        if patient is None or ward is None:
            raise BugError("an errand is about nothing that is known", code="patient_gone")
        device = errand.said.get("device")
        if device is not None:
            await self._require_free(DeviceId(device), patient)
        opened = await self._consultations.open(
            number=patient.number,
            initials=patient.initials,
            bed=patient.bed,
            patient_account=errand.said.get("account"),
            clinicians=[errand.who],
            device=DeviceId(device) if device is not None else None,
            language=ward.language,
            by=errand.who,
            now=self._now(),
        )
        await self._followed(opened)
        in_bed = [
            one
            for one in await self._records.patients.all(ward.id)
            if one.key != patient.key and one.bed.casefold() == patient.bed.casefold()
        ]
        said = words.opened(
            words.whose(patient, errand.language),
            opened.short_name,
            errand.language,
            is_new=errand.said.get("record") == "added",
            is_shared=bool(in_bed),
        )
        return Answer(said, patient.key)

    async def _invite(self, errand: Errand, consultation: Consultation, *_: object) -> str:
        account, role = errand.said["account"], ParticipantRole(errand.said["role"])
        changed = await self._consultations.invite(
            consultation.id, account, role, by=errand.who, now=self._now()
        )
        try:
            await self._followed(changed)
        except MatrixRequestError as error:
            if _refusal(error) is not None and consultation.role_of(account) is None:
                # Or our record would have somebody who can never come.
                await self._consultations.remove(
                    consultation.id, account, by=errand.who, now=self._now()
                )
            raise
        return words.invited(await self._named(account), role, errand.language)

    async def _remove(self, errand: Errand, consultation: Consultation, *_: object) -> str:
        account = errand.said["account"]
        await self._followed(
            await self._consultations.remove(
                consultation.id, account, by=errand.who, now=self._now()
            )
        )
        return words.removed(await self._named(account), errand.language)

    async def _link(
        self, errand: Errand, consultation: Consultation, patient: Patient, where: str
    ) -> str:
        device = DeviceId(errand.said["device"])
        next_status(consultation.status, Step.LINK)
        await self._require_free(device, patient)
        await self._records.devices.link(device, patient.key, consultation.id, now=self._now())
        return words.linked(where, device, errand.language)

    async def _require_free(self, device: DeviceId, patient: Patient) -> None:
        """A monitor is not taken from a patient who wears it."""
        worn = await self._records.devices.wearing(device, self._now())
        if worn is not None and worn.patient != patient.key:
            raise InputError("another patient wears this monitor", code="monitor_worn")

    async def _unlink(
        self, errand: Errand, _: Consultation, patient: Patient, where: str
    ) -> str:  # fmt: skip
        device = DeviceId(errand.said["device"])
        # False too when a try before got as far as this.
        await self._records.devices.unlink(device, patient.key, now=self._now())
        return words.unlinked(where, device, errand.language)

    async def _call(self, errand: Errand, consultation: Consultation, *_: object) -> str:
        next_status(consultation.status, Step.CALL)
        if self._start_call is not None:
            await self._start_call(consultation, errand.who, self._now())
        return words.how_to_call(errand.language, group=self._start_call is not None)

    async def _speak(self, errand: Errand, consultation: Consultation, *_: object) -> str:
        language = Language(errand.said["language"])
        await self._followed(
            await self._consultations.change_language(
                consultation.id, language, by=errand.who, now=self._now()
            )
        )
        return words.speaks(language)

    async def _admit(
        self, errand: Errand, consultation: Consultation, patient: Patient, where: str
    ) -> str:
        if patient.account is None:
            raise InputError("the patient has no account", code="no_account")
        await self._followed(
            await self._consultations.admit(
                consultation.id, patient.account, by=errand.who, now=self._now()
            )
        )
        return words.admitted(where, errand.language)

    async def _finish(
        self, errand: Errand, consultation: Consultation, _: Patient, where: str
    ) -> str:
        await self._followed(
            await self._consultations.end(
                consultation.id,
                by=errand.who,
                now=self._now(),
                despite_alarm="despite_alarm" in errand.said,
            )
        )
        return words.ended(where, errand.language)

    async def _sign(self, errand: Errand, consultation: Consultation, *_: object) -> str:
        await self._consultations.sign(consultation.id, by=errand.who, now=self._now())
        return words.signed(await self._named(errand.who), consultation.short_name, errand.language)

    async def _named(self, account: str) -> str:
        return named(await self._records.people.get(account), account)


def _refusal(error: Exception) -> str | None:
    """The code of a failure that does not pass; ``None`` for what may go better next time.

    Synapse answers an invitation with 502 where the other homeserver is not reached, and with that
    one's own refusal, or 403 for a server outside its whitelist, where it never will be taken
    (``send_invite`` in ``synapse/handlers/federation.py``, 1.163).
    """
    if isinstance(error, InputError | AccessError):
        return error.code
    if isinstance(error, MatrixRequestError):
        passes = error.http_status >= HTTPStatus.INTERNAL_SERVER_ERROR
        if not passes and error.http_status not in _PASSING:
            return (error.errcode or "m_unknown").lower()
    return None
