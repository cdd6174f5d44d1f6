"""Errands: each done once and answered, in order per room, whatever ends or is away meanwhile."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, cast

import pytest
from mautrix.errors import MatrixConnectionError, MForbidden, MUnknown
from structlog.testing import capture_logs

from appservice.consultations import ConsultationService
from appservice.errands import GIVEN_UP_AFTER, PAUSES_S, Porter, StartCall
from fajma.errors import AccessError, BusyError, InputError, UnavailableError
from fajma.language import Language
from fajma.life import LifeError, ParticipantRole, Status
from fajma.store import Records
from fajma.store.alarms import Delivery, SentBy
from fajma.store.consultations import Consultation, ConsultationId
from fajma.store.errands import Errand, ErrandKind
from fajma.store.patients import Patient
from fajma.tasks import end
from fajma.vitals import DeviceId
from tests.integration.scene import (
    AWA,
    FATOU,
    IBOU,
    MEDICINE,
    NOON,
    OTHER_ROOM,
    ROOM,
    SURGERY,
    Scene,
    consultation,
    staffed,
)

PATIENT, PARTNER = "@aminata:clinic.test", "@ngone:other.test"
CODE = DeviceId("A4CF12F03B7E")
AWAY = MatrixConnectionError("away")


class KilledError(BaseException):
    """Ends the porter wherever it is, like the end of its process."""


class FakeConsultations:
    """Stands for ``ConsultationService``: what it was asked, and what its homeserver does."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.calls: list[tuple[Any, ...]] = []
        self.failing: list[BaseException] = []
        self.behind: list[BaseException] = []
        """What it fails with to bring the room to what the record says by then."""
        self.slow: dict[str, asyncio.Event] = {}

    async def open(self, **said: Any) -> Consultation:
        patient = await self.records.patients.by_number(said["number"])
        assert patient is not None
        self.calls.append(("open", said))
        self._fail()
        found = await self.records.consultations.of_patient(patient.key)
        if found is None:
            found = await self.records.consultations.add(
                patient=patient.key,
                clinicians=tuple(said["clinicians"]),
                language=said["language"],
                time_zone="Africa/Dakar",
                now=said["now"],
            )
        return self._shown(found)

    async def invite(
        self,
        consultation: ConsultationId,
        account: str,
        role: ParticipantRole,
        *,
        by: str,
        **_: Any,
    ) -> Consultation:
        return await self._did("invite", consultation, account, role.value, by)

    async def remove(
        self, consultation: ConsultationId, account: str, *, by: str, **_: Any
    ) -> Consultation:
        return await self._did("remove", consultation, account, by)

    async def admit(
        self, consultation: ConsultationId, account: str, *, by: str, **_: Any
    ) -> Consultation:
        return await self._did("admit", consultation, account, by)

    async def change_language(
        self, consultation: ConsultationId, language: Language, *, by: str, **_: Any
    ) -> Consultation:
        return await self._did("language", consultation, language.value, by)

    async def end(
        self, consultation: ConsultationId, *, by: str, now: datetime, despite_alarm: bool
    ) -> Consultation:
        assert now.tzinfo is not None
        return await self._did("end", consultation, by, despite_alarm)

    async def sign(self, consultation: ConsultationId, *, by: str, **_: Any) -> Consultation:
        return await self._did("sign", consultation, by)

    async def settle(self, _: ConsultationId, __: datetime) -> None:
        if self.behind:
            raise self.behind.pop(0)

    async def _did(self, what: str, consultation: ConsultationId, *more: object) -> Consultation:
        self.calls.append((what, consultation, *more))
        if what in self.slow:
            await self.slow[what].wait()
        self._fail()
        found = await self.records.consultations.get(consultation)
        assert found is not None
        return self._shown(found)

    def _fail(self) -> None:
        if self.failing:
            raise self.failing.pop(0)

    def _shown(self, found: Consultation) -> Consultation:
        return replace(found, shown=found.revision - (1 if self.behind else 0))


class Ward:
    """A patient in an open consultation, and a porter whose clocks the test moves."""

    def __init__(self, scene: Scene, patient: Patient, opened: Consultation) -> None:
        self.scene = scene
        self.records = scene.records
        self.patient = patient
        self.opened = opened
        self.room_id = str(opened.room_id)
        self.now = NOON
        self.clock_s = 0.0
        self.service = FakeConsultations(self.records)
        self.restart()

    def restart(self, start_call: StartCall | None = None) -> None:
        """As after a crash: nothing is remembered but what the database holds."""
        self.porter = Porter(
            self.records,
            cast("ConsultationService", self.service),
            start_call=start_call,
            now=lambda: self.now,
            clock=lambda: self.clock_s,
        )

    async def order(
        self, kind: ErrandKind, room_id: str | None = None, **said: str
    ) -> Errand:  # fmt: skip
        errand = Errand(
            id=secrets.token_hex(32),
            kind=kind,
            room_id=room_id or self.room_id,
            who=AWA,
            asked_at=self.now,
            language=Language.FRENCH,
            event_id="$asked",
            said={"consultation": self.opened.id} | said,
        )
        async with self.records.store.transaction() as connection:
            await self.records.errands.add(connection, errand)
        return errand

    async def goes_round(self) -> None:
        await self.porter._look()
        await asyncio.gather(*self.porter._at_work.values())

    async def later(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.clock_s += seconds
        await self.goes_round()

    async def said(self, room_id: str | None = None) -> list[Delivery]:
        return await self.scene.said(room_id or self.room_id, SentBy.HOST)

    async def answer(self, room_id: str | None = None) -> str:
        [only] = await self.said(room_id)
        assert only.content["m.relates_to"] == {"m.in_reply_to": {"event_id": "$asked"}}
        assert only.content["m.mentions"] == {"user_ids": [AWA]}
        assert only.content["msgtype"] == "m.notice"
        return str(only.content["body"])

    async def does(self, kind: ErrandKind, **said: str) -> str:
        """Order it; it is done at once, and what is answered."""
        errand = await self.order(kind, **said)
        await self.goes_round()
        assert await self.records.errands.outcome_of(errand.id) == "done"
        return await self.answer()


async def ward_of(records: Records) -> Ward:
    scene = await staffed(records)
    patient, opened = await consultation(scene, AWA, account=PATIENT, ward=MEDICINE)
    return Ward(scene, patient, opened)


@pytest.fixture
async def ward(sqlite_records: Records) -> Ward:
    return await ward_of(sqlite_records)


@asynccontextmanager
async def running(porter: Porter) -> AsyncIterator[None]:
    task = asyncio.create_task(porter.run())
    try:
        yield
        assert not task.done()
    finally:
        await end([task])


async def acts(ward: Ward) -> list[tuple[str, str, str | None]]:
    """What the audit says of errands: act, kind, reason."""
    return [
        (one.action, one.detail["kind"], one.detail.get("reason"))
        for one in await ward.records.audit.latest()
        if one.action.startswith("errand.")
    ]


# --- each kind -----------------------------------------------------------------------------------


async def test_an_errand_is_done_answered_and_noted_once(records: Records) -> None:
    ward = await ward_of(records)
    answer = await ward.does(ErrandKind.INVITE, account=IBOU, role="observer")
    assert answer.startswith("Ibou Fall (@ibou:clinic.test) est invité comme observateur")
    await ward.goes_round()
    ward.restart()
    await ward.goes_round()
    assert ward.service.calls == [("invite", ward.opened.id, IBOU, "observer", AWA)]
    assert await acts(ward) == [("errand.done", "invite", None)]
    [told] = await ward.said()
    assert told.patient == ward.patient.key


@pytest.mark.parametrize(
    ("kind", "said", "call", "answer"),
    [
        (ErrandKind.REMOVE, {"account": FATOU}, ("remove", FATOU, AWA), "Fatou Sarr"),
        (ErrandKind.LANGUAGE, {"language": "en"}, ("language", "en", AWA), "FAJMA speaks English"),
        (ErrandKind.ADMIT, {}, ("admit", PATIENT, AWA), "Lit 1 A.D. peut entrer"),
        (ErrandKind.END, {}, ("end", AWA, False), "!signer"),
        (ErrandKind.END, {"despite_alarm": "yes"}, ("end", AWA, True), "!signer"),
        (ErrandKind.SIGN, {}, ("sign", AWA), "Awa Diop (@awa:clinic.test) a signé"),
    ],
)
async def test_each_kind_asks_for_what_it_is(
    ward: Ward, kind: ErrandKind, said: dict[str, str], call: tuple[object, ...], answer: str
) -> None:
    assert answer in await ward.does(kind, **said)
    what, *more = call
    assert ward.service.calls == [(what, ward.opened.id, *more)]


async def test_a_consultation_is_opened_for_who_typed_with_the_wards_language(
    ward: Ward,
) -> None:
    patient = await ward.records.patients.add(
        number="12345", initials="B.T.", bed="4", account=None, ward=MEDICINE
    )
    await ward.order(
        ErrandKind.OPEN, ROOM, patient=patient.key, ward=MEDICINE, device=CODE, account="@x:y.test"
    )
    await ward.goes_round()
    opened = await ward.records.consultations.of_patient(patient.key)
    assert opened is not None
    answer = await ward.answer(ROOM)
    assert answer.startswith("Lit 4 B.T.")
    assert f"Consultation {opened.short_name}" in answer
    assert "12345" not in answer
    assert ward.service.calls == [
        (
            "open",
            {
                "number": "12345",
                "initials": "B.T.",
                "bed": "4",
                "patient_account": "@x:y.test",
                "clinicians": [AWA],
                "device": CODE,
                "language": Language.FRENCH,
                "by": AWA,
                "now": NOON,
            },
        )
    ]


async def test_who_opens_is_told_of_a_new_record_and_of_a_bed_with_two_patients(
    ward: Ward,
) -> None:
    patient = await ward.records.patients.add(
        number="12345", initials="B.T.", bed="1", account=None, ward=MEDICINE
    )
    said = {"patient": patient.key, "ward": MEDICINE}
    await ward.order(ErrandKind.OPEN, ROOM, **said, record="added")
    await ward.goes_round()
    first, new, shared = (await ward.answer(ROOM)).splitlines()
    assert first.startswith("Lit 1 B.T.")
    assert "nouveau" in new
    assert "un autre patient est dans ce lit" in shared


async def test_a_call_of_two_needs_nothing_of_us_and_is_explained(ward: Ward) -> None:
    answer = await ward.does(ErrandKind.CALL)
    assert "téléphone" in answer
    assert "Element X" in answer
    assert "À plusieurs" not in answer


async def test_where_there_is_a_server_for_it_the_call_of_several_is_put_into_the_room(
    ward: Ward,
) -> None:
    started = []

    async def start(consultation: Consultation, by: str, now: datetime) -> None:
        started.append((consultation.id, by, now))

    ward.restart(start)
    assert (await ward.does(ErrandKind.CALL)).startswith("À plusieurs")
    assert started == [(ward.opened.id, AWA, NOON)]


async def test_a_monitor_is_linked_to_the_patient_and_unlinked(records: Records) -> None:
    ward = await ward_of(records)
    assert CODE in await ward.does(ErrandKind.LINK, device=CODE)
    worn = await ward.records.devices.wearing(CODE, NOON)
    assert worn is not None
    assert (worn.patient, worn.consultation) == (ward.patient.key, ward.opened.id)
    for _ in range(2):  # again after a crash between the unlinking and the end of the errand
        errand = await ward.order(ErrandKind.UNLINK, device=CODE)
        await ward.goes_round()
        assert await ward.records.errands.outcome_of(errand.id) == "done"
    assert await ward.records.devices.worn_by(ward.patient.key) == []


async def test_a_monitor_that_another_patient_got_meanwhile_stays_there(ward: Ward) -> None:
    other, _ = await consultation(ward.scene, IBOU, number="2", ward=SURGERY)
    await ward.records.devices.link(CODE, other.key, None, now=NOON)
    errand = await ward.order(ErrandKind.LINK, device=CODE)
    opening = await ward.order(
        ErrandKind.OPEN, ROOM, patient=ward.patient.key, ward=MEDICINE, device=CODE
    )
    await ward.goes_round()
    for one in (errand, opening):
        assert await ward.records.errands.outcome_of(one.id) == "monitor_worn"
    assert await ward.records.devices.worn_by(other.key) == [CODE]
    assert ward.service.calls == []


async def test_nothing_is_linked_in_a_consultation_that_has_ended(ward: Ward) -> None:
    async with ward.records.store.transaction() as connection:
        await ward.records.consultations.enter(
            connection, ward.opened.id, Status.ENDED, ended_at=NOON
        )
    errand = await ward.order(ErrandKind.LINK, device=CODE)
    await ward.goes_round()
    assert await ward.records.errands.outcome_of(errand.id) == "consultation_over"
    assert await ward.records.devices.worn_by(ward.patient.key) == []


# --- what fails for good -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("x", code="not_a_partner"), "not_a_partner", "n'est pas partenaire"),
        (AccessError("x", code="not_in_consultation"), "not_in_consultation", "participe"),
        (LifeError("x", code="consultation_over"), "consultation_over", "ne se rouvre jamais"),
        (InputError("x", code="something_new"), "something_new", "(something_new)"),
        (MForbidden(403, "secret words"), "m_forbidden", "l'interdit"),
        (MUnknown(400, "secret words"), "m_unknown", "(m_unknown)"),
    ],
)
async def test_a_refusal_for_good_is_told_with_its_reason_and_not_tried_again(
    ward: Ward, error: Exception, code: str, said: str
) -> None:
    ward.service.failing = [error]
    errand = await ward.order(ErrandKind.INVITE, account=PARTNER, role="clinician")
    with capture_logs() as logs:
        await ward.goes_round()
        await ward.later(60)
    assert await ward.records.errands.outcome_of(errand.id) == code
    answer = await ward.answer()
    assert said in answer
    assert "secret" not in answer + str(logs)
    assert len(ward.service.calls) == 1
    assert await acts(ward) == [("errand.not_done", "invite", code)]


async def test_who_can_never_come_is_taken_off_the_record_again(ward: Ward) -> None:
    ward.service.behind = [MForbidden(403, "no")]
    errand = await ward.order(ErrandKind.INVITE, account=PARTNER, role="clinician")
    await ward.goes_round()
    assert [call[0] for call in ward.service.calls] == ["invite", "remove"]
    assert ward.service.calls[1] == ("remove", ward.opened.id, PARTNER, AWA)
    assert await ward.records.errands.outcome_of(errand.id) == "m_forbidden"


async def test_who_took_part_before_stays_when_a_new_invitation_is_refused(ward: Ward) -> None:
    ward.service.behind = [MForbidden(403, "no")]
    await ward.order(ErrandKind.INVITE, account=AWA, role="clinician")
    await ward.goes_round()
    assert [call[0] for call in ward.service.calls] == ["invite"]


async def test_an_errand_that_does_not_open_ends_and_holds_up_no_other(ward: Ward) -> None:
    broken = await ward.order(ErrandKind.SIGN)
    await ward.records.store.db.execute("UPDATE errand SET sealed=$1", b"x" * 64)
    after = await ward.order(ErrandKind.SIGN)
    await ward.goes_round()
    assert await ward.records.errands.outcome_of(broken.id) not in (None, "done")
    assert await ward.records.errands.outcome_of(after.id) == "done"
    fault, done = [one.content["body"] for one in await ward.said()]
    assert "panne de FAJMA" in fault
    assert "a signé" in done


# --- what passes ---------------------------------------------------------------------------------

PASSING = [
    AWAY,
    MUnknown(502, "bad gateway"),
    MUnknown(429, "slow down"),
    MUnknown(401, "token"),
    BusyError(0.5),
    UnavailableError("x", code="room_key_dropped"),
    TimeoutError(),
    OSError("connection refused"),
    KeyError("a fault of ours"),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
async def test_what_passes_is_tried_again_and_the_room_told_once(
    ward: Ward, error: Exception
) -> None:
    ward.service.failing = [error, error]
    errand = await ward.order(ErrandKind.LANGUAGE, language="en")
    with capture_logs() as logs:
        await ward.goes_round()
        await ward.goes_round()
        assert len(ward.service.calls) == 1  # not before the pause is over
        await ward.later(PAUSES_S[0])
        await ward.later(PAUSES_S[1])
    assert [one["event"] for one in logs] == ["errand_failed", "errand_failed", "errand_ended"]
    assert len(ward.service.calls) == 3
    assert await ward.records.errands.outcome_of(errand.id) == "done"
    longer, done = [one.content["body"] for one in await ward.said()]
    assert "12:10" in longer
    assert done.startswith("FAJMA speaks English")


async def test_a_busy_homeserver_is_left_alone_as_long_as_it_asks(ward: Ward) -> None:
    ward.service.failing = [BusyError(20)]
    await ward.order(ErrandKind.SIGN)
    await ward.goes_round()
    await ward.later(19)
    assert len(ward.service.calls) == 1
    await ward.later(1)
    assert len(ward.service.calls) == 2


async def test_a_room_that_does_not_follow_is_brought_to_it_before_it_is_answered(
    ward: Ward,
) -> None:
    ward.service.behind = [AWAY, AWAY]
    errand = await ward.order(ErrandKind.END)
    await ward.goes_round()
    await ward.later(PAUSES_S[0])
    assert await ward.records.errands.outcome_of(errand.id) is None
    await ward.later(PAUSES_S[1])
    assert await ward.records.errands.outcome_of(errand.id) == "done"


async def test_after_ten_minutes_a_failure_that_passes_is_told_as_not_done(ward: Ward) -> None:
    ward.service.failing = [AWAY] * 1000
    errand = await ward.order(ErrandKind.SIGN)
    await ward.goes_round()
    pauses = []
    while (outcome := await ward.records.errands.outcome_of(errand.id)) is None:
        before = ward.porter._pauses[ward.room_id].until_s - ward.clock_s
        pauses.append(before)
        await ward.later(before)
    assert outcome == "not_done"
    assert pauses[: len(PAUSES_S)] == list(PAUSES_S)
    assert set(pauses[len(PAUSES_S) :]) == {PAUSES_S[-1]}
    assert ward.now - NOON >= GIVEN_UP_AFTER
    longer, last = [one.content["body"] for one in await ward.said()]
    assert "plus de temps" in longer
    assert "Pas fait en 10 minutes" in last
    assert await acts(ward) == [("errand.not_done", "sign", "not_done")]


async def test_what_somebody_ordered_who_has_left_since_is_not_carried_out(ward: Ward) -> None:
    errand = await ward.order(ErrandKind.END)
    person = await ward.records.people.get(AWA)
    assert person is not None
    async with ward.records.store.transaction() as connection:
        await ward.records.people.put(connection, replace(person, left_at=NOON))
    await ward.goes_round()
    assert ward.service.calls == []
    assert await ward.records.errands.outcome_of(errand.id) == "not_a_clinician"


async def test_what_nobody_tried_in_time_is_not_carried_out_later(ward: Ward) -> None:
    errand = await ward.order(ErrandKind.END)
    ward.now += GIVEN_UP_AFTER
    await ward.goes_round()
    assert ward.service.calls == []
    assert await ward.records.errands.outcome_of(errand.id) == "too_late"
    assert "trop tard" in await ward.answer()


# --- order, and other rooms ----------------------------------------------------------------------


async def test_what_comes_later_in_a_room_waits_for_what_failed(ward: Ward) -> None:
    ward.service.failing = [AWAY]
    await ward.order(ErrandKind.LANGUAGE, language="en")
    await ward.order(ErrandKind.END)
    await ward.goes_round()
    await ward.later(PAUSES_S[0])
    assert [call[0] for call in ward.service.calls] == ["language", "language", "end"]


async def test_rooms_do_not_wait_for_each_other(ward: Ward) -> None:
    ward.service.slow["end"] = asyncio.Event()
    slow = await ward.order(ErrandKind.END)
    other = await ward.order(ErrandKind.SIGN, OTHER_ROOM)
    async with running(ward.porter), asyncio.timeout(10):
        while await ward.records.errands.outcome_of(other.id) is None:  # noqa: ASYNC110 - a row
            await asyncio.sleep(0.01)
        assert await ward.records.errands.outcome_of(slow.id) is None
        ward.service.slow["end"].set()
        while await ward.records.errands.outcome_of(slow.id) is None:  # noqa: ASYNC110 - a row
            await asyncio.sleep(0.01)


# --- the end of the process ----------------------------------------------------------------------


@pytest.mark.parametrize("where", ["before", "after", "noting", "telling"])
async def test_killed_at_any_step_an_errand_is_done_and_answered_once(
    records: Records, where: str
) -> None:
    ward = await ward_of(records)
    errand = await ward.order(ErrandKind.LANGUAGE, language="en")
    with pytest.MonkeyPatch.context() as patch:

        async def killed(*_: object, **__: object) -> None:
            raise KilledError

        if where == "before":
            ward.service.failing = [KilledError()]
        elif where == "after":
            ward.service.behind = [KilledError()]
        elif where == "noting":
            patch.setattr(ward.records.audit, "note", killed)
        else:
            patch.setattr(ward.records.outbox, "add", killed)
        with pytest.raises(KilledError):
            await ward.goes_round()
    assert await ward.records.errands.outcome_of(errand.id) is None
    assert await ward.said() == []
    ward.restart()
    await ward.goes_round()
    assert await ward.records.errands.outcome_of(errand.id) == "done"
    assert (await ward.answer()).startswith("FAJMA speaks English")
    assert await acts(ward) == [("errand.done", "language", None)]
