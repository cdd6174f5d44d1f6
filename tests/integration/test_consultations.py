"""A consultation from booking to archive over a fake homeserver that fails at any of its calls."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from decimal import Decimal

import pytest
from mautrix.errors import MatrixError
from mautrix.util.async_db import Connection

from fajma.errors import FajmaError, InputError
from fajma.events import ALARM, CONSULTATION, AlarmBlock
from fajma.facts import LimitSet, TakenOff
from fajma.language import Language
from fajma.life import LifeError, ParticipantRole, Status
from fajma.store import Records
from fajma.store.alarms import Delivery
from fajma.store.consultations import Consultation
from fajma.vitals import Kind
from tests.integration.hospital import (
    ALERTS,
    AWA,
    BEN,
    EVE,
    HOST,
    MONITOR,
    MOTHER,
    MOUSSA,
    NOON,
    PATIENT,
    STUDENT,
    VITALS,
    Hospital,
)

LATER = NOON + timedelta(hours=1)


class PulledPlugError(Exception):
    """What a transaction is cut off with."""


@pytest.fixture
async def hospital(records: Records) -> Hospital:
    return Hospital(records)


def room_of(consultation: Consultation) -> str:
    assert consultation.room_id is not None
    return consultation.room_id


async def refused(work: Awaitable[object], code: str) -> None:
    with pytest.raises(InputError) as caught:
        await work
    assert caught.value.code == code


def powers(hospital: Hospital, consultation: Consultation) -> dict[str, int]:
    users = hospital.matrix.content(room_of(consultation), "m.room.power_levels")["users"]
    return {user: power for user, power in users.items() if user not in hospital.matrix.ours}


# --- beginning -----------------------------------------------------------------------------------


async def test_an_open_consultation_has_its_room_and_the_first_clinician_leads(
    hospital: Hospital,
) -> None:
    opened = await hospital.open(clinicians=[MOUSSA, AWA])
    assert opened.status is Status.OPEN
    assert opened.shown == opened.revision
    assert opened.role_of(MOUSSA) is ParticipantRole.LEAD
    assert opened.role_of(AWA) is ParticipantRole.CLINICIAN
    state = hospital.matrix.host.state[room_of(opened), CONSULTATION]
    assert state["status"] == "open"
    assert state["clinicians"] == sorted([AWA, MOUSSA])
    assert "consultation.open" in await hospital.actions()


async def test_a_booked_consultation_has_no_room_until_it_is_opened(hospital: Hospital) -> None:
    booked = await hospital.book()
    assert (booked.status, booked.room_id) == (Status.BOOKED, None)
    assert not hospital.matrix.rooms
    opened = await hospital.service.start(booked.id, AWA, LATER)
    assert (opened.status, opened.opened_at) == (Status.OPEN, LATER)
    # He waits: no invitation, no keys, but he may knock.
    room_id = room_of(opened)
    assert hospital.matrix.membership(room_id, PATIENT) is None
    assert hospital.matrix.content(room_id, "m.room.join_rules") == {"join_rule": "knock"}
    assert await hospital.records.audience.of(room_id) == {AWA}


async def test_booked_twice_it_is_one_consultation_and_an_open_one_is_not_booked(
    hospital: Hospital,
) -> None:
    first = await hospital.book()
    assert (await hospital.book()).id == first.id
    await hospital.service.start(first.id, AWA, NOON)
    await refused(hospital.book(), "consultation_is_open")


async def test_opening_by_number_opens_what_was_booked(hospital: Hospital) -> None:
    booked = await hospital.book()
    assert (await hospital.open()).id == booked.id


async def test_a_cancelled_booking_is_over_and_the_next_one_is_another(hospital: Hospital) -> None:
    booked = await hospital.book()
    for _ in range(2):
        assert (await hospital.service.cancel(booked.id, AWA, NOON)).status is Status.CANCELLED
    with pytest.raises(LifeError):
        await hospital.service.start(booked.id, AWA, NOON)
    assert (await hospital.open()).id != booked.id


# --- who takes part ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "role", [ParticipantRole.COMPANION, ParticipantRole.INTERPRETER, ParticipantRole.OBSERVER]
)
async def test_who_takes_part_besides_reads_without_power_and_is_never_called(
    hospital: Hospital, role: ParticipantRole
) -> None:
    opened = await hospital.open()
    found = await hospital.service.invite(opened.id, MOTHER, role, AWA, NOON)
    room_id = room_of(found)
    assert hospital.matrix.membership(room_id, MOTHER) == "invite"
    assert MOTHER in await hospital.records.audience.of(room_id)
    assert MOTHER not in powers(hospital, found)
    assert found.clinicians == (AWA,)
    assert hospital.operator.rings[MOTHER] is False
    assert [one.account for one in found.participants if one.invited] == [AWA, MOTHER]


async def test_who_is_removed_gets_no_key_and_leaves_the_room(hospital: Hospital) -> None:
    opened = await hospital.open(clinicians=[AWA, MOUSSA])
    room_id = room_of(opened)
    await hospital.service.invite(opened.id, STUDENT, ParticipantRole.OBSERVER, AWA, NOON)
    hospital.matrix.all_join(room_id)
    before = await hospital.records.audience.epoch()
    for account in (STUDENT, MOUSSA):
        for _ in range(2):
            found = await hospital.service.remove(opened.id, account, AWA, NOON)
        assert hospital.matrix.membership(room_id, account) == "leave"
    assert await hospital.records.audience.of(room_id) == {AWA}
    assert await hospital.records.audience.epoch() > before
    assert powers(hospital, found) == {AWA: 50}
    assert (await hospital.actions()).count("consultation.remove") == 2


async def test_who_was_removed_can_be_invited_again(hospital: Hospital) -> None:
    opened = await hospital.open(clinicians=[AWA, MOUSSA])
    await hospital.service.remove(opened.id, MOUSSA, AWA, NOON)
    found = await hospital.service.invite(opened.id, MOUSSA, ParticipantRole.CLINICIAN, AWA, NOON)
    assert hospital.matrix.membership(room_of(found), MOUSSA) == "invite"
    assert powers(hospital, found) == {AWA: 50, MOUSSA: 50}


async def test_a_new_lead_makes_the_one_before_a_clinician(hospital: Hospital) -> None:
    opened = await hospital.open()
    found = await hospital.service.invite(opened.id, MOUSSA, ParticipantRole.LEAD, AWA, NOON)
    roles = {one.account: one.role for one in found.participants}
    assert roles == {AWA: ParticipantRole.CLINICIAN, MOUSSA: ParticipantRole.LEAD}


async def test_only_this_hospital_and_its_partners_are_invited(hospital: Hospital) -> None:
    opened = await hospital.open()
    found = await hospital.service.invite(opened.id, BEN, ParticipantRole.CLINICIAN, AWA, NOON)
    assert BEN in found.clinicians
    for role in (ParticipantRole.CLINICIAN, ParticipantRole.OBSERVER):
        await refused(hospital.service.invite(opened.id, EVE, role, AWA, NOON), "not_a_partner")
    await refused(hospital.open(clinicians=[AWA, EVE]), "not_a_partner")
    sounds_alike = "@ben:partner.test.elsewhere.test"
    await refused(
        hospital.service.invite(opened.id, sounds_alike, ParticipantRole.OBSERVER, AWA, NOON),
        "not_a_partner",
    )
    assert EVE not in {user for _, user in hospital.matrix.invitations}


async def test_nobody_is_invited_as_the_patient_nor_the_patient_as_anything(
    hospital: Hospital,
) -> None:
    opened = await hospital.open(patient_account=PATIENT)
    service = hospital.service
    await refused(
        service.invite(opened.id, MOTHER, ParticipantRole.PATIENT, AWA, NOON), "role_of_patient"
    )
    await refused(
        service.invite(opened.id, PATIENT, ParticipantRole.CLINICIAN, AWA, NOON),
        "account_of_patient",
    )
    await refused(
        service.invite(opened.id, HOST, ParticipantRole.CLINICIAN, AWA, NOON), "account_of_fajma"
    )


async def test_the_last_clinician_is_not_removed(hospital: Hospital) -> None:
    opened = await hospital.open()
    await hospital.service.invite(opened.id, MOTHER, ParticipantRole.COMPANION, AWA, NOON)
    await refused(hospital.service.remove(opened.id, AWA, AWA, NOON), "last_clinician")


async def test_a_patient_is_sent_out_and_let_in_again(hospital: Hospital) -> None:
    opened = await hospital.open(patient_account=PATIENT)
    room_id = room_of(opened)
    await hospital.service.remove(opened.id, PATIENT, AWA, NOON)
    assert hospital.matrix.membership(room_id, PATIENT) == "leave"
    assert await hospital.records.audience.of(room_id) == {AWA}
    assert hospital.matrix.content(room_id, "m.room.join_rules") == {"join_rule": "knock"}
    await hospital.service.admit(opened.id, PATIENT, AWA, NOON)
    assert hospital.matrix.membership(room_id, PATIENT) == "invite"
    assert PATIENT in await hospital.records.audience.of(room_id)


async def test_a_patient_who_knocks_is_let_in_and_the_door_closed(hospital: Hospital) -> None:
    booked = await hospital.book()
    opened = await hospital.service.start(booked.id, AWA, NOON)
    room_id = room_of(opened)
    hospital.matrix.member(room_id, PATIENT, "knock")
    for _ in range(2):
        await hospital.service.admit(opened.id, PATIENT, AWA, NOON)
    assert hospital.matrix.membership(room_id, PATIENT) == "invite"
    assert hospital.matrix.content(room_id, "m.room.join_rules") == {"join_rule": "invite"}
    assert (await hospital.actions()).count("consultation.admit") == 1


async def test_only_the_patient_of_the_consultation_is_admitted(hospital: Hospital) -> None:
    booked = await hospital.book()
    await refused(hospital.service.admit(booked.id, MOTHER, AWA, NOON), "not_the_patient")


async def test_the_language_is_changed_for_room_and_alarms(hospital: Hospital) -> None:
    opened = await hospital.open()
    for _ in range(2):
        found = await hospital.service.change_language(opened.id, Language.FRENCH, AWA, NOON)
    assert found.language is Language.FRENCH
    assert hospital.matrix.host.state[room_of(found), CONSULTATION]["language"] == "fr"
    assert (await hospital.actions()).count("consultation.change_language") == 1


# --- the end -------------------------------------------------------------------------------------


async def alarm(hospital: Hospital, consultation: Consultation, number: int = 1) -> None:
    block = AlarmBlock(
        delivery_id=f"d{number}",
        alarm_id=f"spo2-low-{number}",
        patient=consultation.patient,
        state="started",
        priority="high",
        measured_at=NOON,
        kind=Kind.SPO2,
        value=Decimal(86),
        limit=Decimal(90),
    )
    content = {"msgtype": "m.text", "body": "x", ALARM: block.to_content()}
    delivery = Delivery(
        f"d{number}", room_of(consultation), consultation.patient, content, created_at=NOON
    )
    async with hospital.records.store.transaction() as connection:
        await hospital.records.outbox.add(connection, delivery)


async def test_an_end_freezes_the_room_takes_monitors_off_and_sums_up(hospital: Hospital) -> None:
    opened = await hospital.open(device=MONITOR, patient_account=PATIENT)
    room_id = room_of(opened)
    await alarm(hospital, opened)
    limit = LimitSet(NOON, AWA, Kind.SPO2, "low", Decimal(88), "copd", LATER, kept=False)
    async with hospital.records.store.transaction() as connection:
        await hospital.records.facts.append(connection, opened.patient, limit)
    for _ in range(2):
        ended = await hospital.service.end(opened.id, AWA, LATER)
    assert (ended.status, ended.ended_at) == (Status.ENDED, LATER)
    levels = hospital.matrix.content(room_id, "m.room.power_levels")
    assert levels["events_default"] == 100
    assert levels["events"]["org.matrix.msc3401.call.member"] == 100
    assert await hospital.records.devices.worn() == {}
    taken = [one for one in await facts(hospital, opened) if isinstance(one, TakenOff)]
    assert [one.at for one in taken] == [LATER]
    [told] = await hospital.said(room_id)
    assert "SpO2 1 (high)" in told
    assert "limits changed: 1 times" in told
    assert "lead clinician · patient" in told
    assert "monitors taken off: 1" in told
    assert hospital.matrix.host.state[room_id, CONSULTATION]["status"] == "ended"
    assert await hospital.records.consultations.open_rooms() == []
    assert (await hospital.actions()).count("consultation.end") == 1


async def facts(hospital: Hospital, consultation: Consultation) -> list[object]:
    return list(await hospital.records.facts.since(consultation.patient, NOON))


async def test_nobody_ends_a_consultation_while_an_alarm_waits_for_an_answer(
    hospital: Hospital,
) -> None:
    opened = await hospital.open(device=MONITOR)
    hospital.in_alarm.add(opened.patient)
    await refused(hospital.service.end(opened.id, AWA, LATER), "alarm_open")
    assert await hospital.records.devices.worn() == {opened.patient: [MONITOR]}
    ended = await hospital.service.end(opened.id, AWA, LATER, despite_alarm=True)
    assert ended.status is Status.ENDED
    [told] = await hospital.said(room_of(opened))
    assert "although an alarm of high priority was open" in told


async def test_a_monitor_of_the_ward_goes_on_when_the_consultation_ends(
    hospital: Hospital,
) -> None:
    opened = await hospital.open()
    await hospital.records.devices.link(MONITOR, opened.patient, None, now=NOON)
    await hospital.service.end(opened.id, AWA, LATER)
    assert await hospital.records.devices.worn() == {opened.patient: [MONITOR]}


async def test_only_who_treated_signs_once_and_it_is_said(hospital: Hospital) -> None:
    opened = await hospital.open()
    await hospital.service.invite(opened.id, STUDENT, ParticipantRole.OBSERVER, AWA, NOON)
    with pytest.raises(LifeError):
        await hospital.service.sign(opened.id, AWA, NOON)
    await hospital.service.end(opened.id, AWA, LATER)
    await refused(hospital.service.sign(opened.id, STUDENT, LATER), "not_a_clinician")
    for _ in range(2):
        await hospital.service.sign(opened.id, AWA, LATER)
    [signature] = await hospital.records.consultations.signatures(opened.id)
    assert (signature.account, signature.signed_at) == (AWA, LATER)
    assert sum("Summary signed by" in one for one in await hospital.said(room_of(opened))) == 1
    assert (await hospital.actions()).count("consultation.sign") == 1


async def test_who_did_not_come_leaves_a_frozen_room(hospital: Hospital) -> None:
    opened = await hospital.open(device=MONITOR)
    for _ in range(2):
        found = await hospital.service.no_show(opened.id, AWA, LATER)
    assert found.status is Status.NO_SHOW
    assert hospital.matrix.content(room_of(found), "m.room.power_levels")["events_default"] == 100
    assert await hospital.records.devices.worn() == {}
    assert await hospital.said(room_of(found)) == [
        "CONSULTATION CLOSED · the patient did not come"
    ]  # fmt: skip


async def test_nothing_can_be_done_in_a_consultation_that_is_over(hospital: Hospital) -> None:
    opened = await hospital.open()
    await hospital.service.end(opened.id, AWA, LATER)
    service = hospital.service
    for work in (
        service.admit(opened.id, None, AWA, LATER),
        service.invite(opened.id, MOUSSA, ParticipantRole.CLINICIAN, AWA, LATER),
        service.remove(opened.id, AWA, AWA, LATER),
        service.change_language(opened.id, Language.FRENCH, AWA, LATER),
        service.start(opened.id, AWA, LATER),
        service.cancel(opened.id, AWA, LATER),
    ):
        await refused(work, "consultation_over")


async def test_a_patient_who_comes_back_gets_a_new_consultation(hospital: Hospital) -> None:
    first = await hospital.open()
    await hospital.service.end(first.id, AWA, LATER)
    second = await hospital.open(now=LATER)
    assert second.id != first.id
    assert second.room_id != first.room_id


async def test_what_ended_long_ago_is_archived_and_the_room_empty(hospital: Hospital) -> None:
    opened = await hospital.open(patient_account=PATIENT)
    room_id = room_of(opened)
    await hospital.service.end(opened.id, AWA, LATER)
    hospital.matrix.member(room_id, EVE, "invite")
    await hospital.service.archive_due(LATER + timedelta(days=30))
    assert (await hospital.get(opened.id)).status is Status.ENDED
    for _ in range(2):
        await hospital.service.archive_due(LATER + timedelta(days=30, minutes=1))
    assert (await hospital.get(opened.id)).status is Status.ARCHIVED
    members = {user: hospital.matrix.membership(room_id, user) for user in (AWA, PATIENT, EVE)}
    assert set(members.values()) == {"leave"}
    assert {hospital.matrix.membership(room_id, one) for one in (HOST, VITALS, ALERTS)} == {"join"}
    assert await hospital.records.audience.of(room_id) == frozenset()


# --- a homeserver that fails ---------------------------------------------------------------------

Act = Callable[[Hospital, Consultation], Awaitable[object]]


async def ends(hospital: Hospital, opened: Consultation) -> None:
    await hospital.service.end(opened.id, AWA, LATER)


async def invites(hospital: Hospital, opened: Consultation) -> None:
    await hospital.service.invite(opened.id, MOUSSA, ParticipantRole.LEAD, AWA, LATER)


async def removes(hospital: Hospital, opened: Consultation) -> None:
    await hospital.service.remove(opened.id, PATIENT, AWA, LATER)


async def archives(hospital: Hospital, opened: Consultation) -> None:
    if (await hospital.get(opened.id)).status is not Status.ARCHIVED:
        await hospital.service.end(opened.id, AWA, LATER)
    await hospital.service.archive(opened.id, LATER)


ACTS: tuple[Act, ...] = (ends, invites, removes, archives)


def picture(hospital: Hospital, room_id: str) -> object:
    return {key: event["content"] for key, event in hospital.matrix.rooms[room_id].items()}


@pytest.mark.parametrize("was_done", [False, True])
@pytest.mark.parametrize("act", ACTS)
async def test_a_homeserver_that_fails_at_any_call_only_delays_the_room(
    hospital: Hospital, act: Act, *, was_done: bool
) -> None:
    opened = await hospital.open(patient_account=PATIENT, number="0")
    before = hospital.matrix.calls
    await act(hospital, opened)
    calls = hospital.matrix.calls - before
    assert calls > 1
    wanted = picture(hospital, room_of(opened))
    for number in range(1, calls + 1):
        await hospital.patients.unlink_account(str(number - 1), now=LATER)
        opened = await hospital.open(patient_account=PATIENT, number=str(number))
        hospital.matrix.fails(after=number, was_done=was_done)
        await act(hospital, opened)  # what people ask for is done: the room follows
        for one in await hospital.records.consultations.unshown():
            await hospital.service.settle(one, LATER)
        assert picture(hospital, room_of(opened)) == wanted, number
        assert not await hospital.records.consultations.unshown()


@pytest.mark.parametrize("was_done", [False, True])
async def test_an_opening_that_fails_at_any_call_is_completed_by_opening_again(
    hospital: Hospital, *, was_done: bool
) -> None:
    opened = await hospital.open(number="0", clinicians=[AWA, MOUSSA])
    wanted, calls = picture(hospital, room_of(opened)), hospital.matrix.calls
    for number in range(1, calls + 1):
        said = len(hospital.matrix.host.said)
        hospital.matrix.fails(after=number, was_done=was_done)
        with pytest.raises((MatrixError, FajmaError)):
            await hospital.open(number=str(number), clinicians=[AWA, MOUSSA])
        again = await hospital.open(number=str(number), clinicians=[AWA, MOUSSA])
        assert again.status is Status.OPEN
        assert again.shown == again.revision
        assert picture(hospital, room_of(again)) == wanted, number
        assert len(hospital.matrix.host.said) == said + 1


# --- a database that fails -----------------------------------------------------------------------


class Plug:
    """Is pulled at the end of one transaction, so that nothing of it is kept."""

    def __init__(self) -> None:
        self.count = 0
        self.pulled_at: int | None = None

    def pull(self, *, after: int) -> None:
        self.count, self.pulled_at = 0, after

    @asynccontextmanager
    async def fence(self, _: Connection) -> AsyncIterator[None]:
        yield
        self.count += 1
        if self.count == self.pulled_at:
            raise PulledPlugError


@pytest.mark.parametrize("act", ACTS)
async def test_an_act_that_is_cut_off_at_any_commit_is_completed_by_asking_again(
    sqlite_records: Records, act: Act
) -> None:
    plug = Plug()
    records = Records(sqlite_records.store.fenced(plug.fence), sqlite_records.site_key)
    hospital = Hospital(records)
    opened = await hospital.open(patient_account=PATIENT, number="0")
    plug.pull(after=0)
    await act(hospital, opened)
    commits, wanted = plug.count, picture(hospital, room_of(opened))
    said = len(await hospital.said(room_of(opened)))
    for number in range(1, commits + 1):
        await hospital.patients.unlink_account(str(number - 1), now=LATER)
        opened = await hospital.open(patient_account=PATIENT, number=str(number))
        plug.pull(after=number)
        with pytest.raises(PulledPlugError):
            await act(hospital, opened)
        await act(hospital, opened)
        for one in await records.consultations.unshown():
            await hospital.service.settle(one, LATER)
        assert picture(hospital, room_of(opened)) == wanted, number
        assert len(await hospital.said(room_of(opened))) == said, number


async def test_an_opening_that_is_cut_off_at_any_commit_is_completed_by_opening_again(
    sqlite_records: Records,
) -> None:
    plug = Plug()
    records = Records(sqlite_records.store.fenced(plug.fence), sqlite_records.site_key)
    hospital = Hospital(records)
    plug.pull(after=0)

    async def opens(number: int) -> Consultation:
        now = NOON + timedelta(minutes=number)
        return await hospital.open(
            number=str(number), clinicians=[AWA, MOUSSA], device=MONITOR, now=now
        )

    opened = await opens(0)
    commits, wanted = plug.count, picture(hospital, room_of(opened))
    assert commits > 2
    for number in range(1, commits + 1):
        plug.pull(after=number)
        with pytest.raises(PulledPlugError):
            await opens(number)
        again = await opens(number)
        assert picture(hospital, room_of(again)) == wanted, number
        assert await records.devices.worn() == {again.patient: [MONITOR]}
        noted = [one for one in await records.audit.latest() if one.subject == again.id]
        assert [one.action for one in noted] == ["consultation.open"]


async def test_whose_account_is_a_patient_s_treats_nobody(hospital: Hospital) -> None:
    opened = await hospital.open(patient_account=PATIENT)
    other = await hospital.records.patients.add(
        number="other", initials="O.O.", bed="9", account="@other:clinic.test"
    )
    assert other.account is not None
    for account in (PATIENT, other.account):
        work = hospital.service.invite(opened.id, account, ParticipantRole.CLINICIAN, AWA, NOON)
        await refused(work, "account_of_patient")
    await refused(hospital.open(clinicians=[AWA, other.account]), "account_of_patient")
