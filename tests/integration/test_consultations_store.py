"""Consultations and who takes part, as both databases keep them; rows of older versions."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from fajma.duty import Roster
from fajma.facts import TakenOff, Worn
from fajma.language import Language
from fajma.life import WITH_READERS, ParticipantRole, Status
from fajma.store import Records
from fajma.store.alarms import Delivery, SentBy
from fajma.store.consultations import Consultation, Participant
from fajma.store.patients import Patient
from fajma.store.people import Role, Staff
from fajma.store.readings import NewReading
from fajma.store.wards import Ward, WardId
from fajma.vitals import Clock, DeviceId, Kind, Reading
from tests.integration.hospital import AWA, BEN, EVE, MOTHER, MOUSSA, NOON, PATIENT, STUDENT

ROOM = "!room:clinic.test"
LATER = NOON + timedelta(hours=1)
LEAD, CLINICIAN = ParticipantRole.LEAD, ParticipantRole.CLINICIAN


async def patient_of(records: Records, number: str = "1", account: str | None = None) -> Patient:
    return await records.patients.add(number=number, initials="A.D.", bed="4", account=account)


async def consult(
    records: Records, patient: Patient, *clinicians: str, room_id: str = ROOM, **more: object
) -> Consultation:
    made = await records.consultations.add(
        patient=patient.key,
        clinicians=clinicians or (AWA,),
        language=Language.FRENCH,
        time_zone="Africa/Dakar",
        now=NOON,
        **more,  # type: ignore[arg-type]
    )
    if made.status is Status.OPENING:
        await records.consultations.open_in(made.id, room_id)
    return await get(records, made)


async def get(records: Records, one: Consultation) -> Consultation:
    found = await records.consultations.get(one.id)
    assert found is not None
    return found


async def take_part(records: Records, one: Consultation, account: str, role: str) -> None:
    async with records.store.transaction() as connection:
        await records.consultations.include(
            connection, one.id, account, ParticipantRole(role), now=NOON
        )


async def enter(records: Records, one: Consultation, status: Status) -> None:
    async with records.store.transaction() as connection:
        await records.consultations.enter(connection, one.id, status, ended_at=LATER)


async def test_a_booking_comes_back_as_kept(records: Records) -> None:
    patient = await patient_of(records)
    booked = await consult(records, patient, MOUSSA, AWA, lead=MOUSSA, booked_for=LATER, waits=True)
    assert booked.status is Status.BOOKED
    assert (booked.booked_for, booked.admitted_at, booked.ended_at) == (LATER, None, None)
    assert booked.participants == (
        Participant(AWA, CLINICIAN, invited=False),
        Participant(MOUSSA, LEAD, invited=False),
    )


async def test_what_was_measured_before_a_booked_one_is_opened_is_history_in_it(
    records: Records,
) -> None:
    patient = await patient_of(records)
    booked = await consult(records, patient, booked_for=LATER)
    reading = Reading(DeviceId("A"), NOON, NOON, Clock.DEVICE, {Kind.SPO2: Decimal(97)})
    async with records.store.transaction() as connection:
        await records.readings.append(connection, [NewReading(b"1" * 16, patient.key, reading)])
        await records.consultations.begun(connection, booked.id, now=LATER)
    assert (await records.feeds.get(booked.id)).published == await records.readings.head() == 1
    assert (await get(records, booked)).opened_at == LATER


async def test_roles_decide_who_is_called_and_not_who_reads(records: Records) -> None:
    opened = await consult(records, await patient_of(records, account=PATIENT), AWA, lead=AWA)
    for account, role in ((MOTHER, "companion"), (BEN, "interpreter"), (STUDENT, "observer")):
        await take_part(records, opened, account, role)
    opened = await get(records, opened)
    assert opened.clinicians == (AWA,)
    assert opened.role_of(MOTHER) is ParticipantRole.COMPANION
    assert await records.audience.of(ROOM) == {AWA, PATIENT, MOTHER, BEN, STUDENT}
    assert [one.id for one in await records.consultations.of_account(MOTHER)] == [opened.id]


@pytest.mark.parametrize("role", ["clinician", "companion", "observer"])
async def test_who_takes_part_no_more_gets_no_key(records: Records, role: str) -> None:
    opened = await consult(records, await patient_of(records))
    await take_part(records, opened, MOTHER, role)
    before = await records.audience.epoch()
    async with records.store.transaction() as connection:
        await records.consultations.exclude(connection, opened.id, MOTHER, now=LATER)
    assert await records.audience.of(ROOM) == {AWA}
    assert await records.audience.epoch() == before + 1
    assert await records.consultations.of_account(MOTHER) == []
    assert {one.account for one in await records.consultations.took_part(opened.id)} == {
        AWA,
        MOTHER,
    }


async def test_a_companion_who_becomes_staff_and_leaves_reads_no_more(records: Records) -> None:
    opened = await consult(records, await patient_of(records))
    await take_part(records, opened, MOTHER, "companion")
    person = Staff(MOTHER, "M", Role.NURSE, None, Language.FRENCH, NOON, left_at=LATER)
    async with records.store.transaction() as connection:
        await records.people.put(connection, person)
    assert await records.audience.of(ROOM) == {AWA}


@pytest.mark.parametrize("status", Status)
async def test_who_belongs_in_a_room_follows_the_status(records: Records, status: Status) -> None:
    opened = await consult(records, await patient_of(records, account=PATIENT))
    await enter(records, opened, status)
    belong = {AWA, PATIENT} if status in WITH_READERS else frozenset()
    assert await records.audience.of(ROOM) == belong


async def test_a_patient_reads_only_when_he_was_let_in(records: Records) -> None:
    opened = await consult(records, await patient_of(records, account=PATIENT), waits=True)
    assert await records.audience.of(ROOM) == {AWA}
    async with records.store.transaction() as connection:
        await records.consultations.admitted(connection, opened.id, now=LATER)
    assert await records.audience.of(ROOM) == {AWA, PATIENT}
    async with records.store.transaction() as connection:
        await records.consultations.sent_out(connection, opened.id)
    assert await records.audience.of(ROOM) == {AWA}


async def test_the_open_consultation_comes_before_one_that_is_booked(records: Records) -> None:
    patient = await patient_of(records)
    opened = await consult(records, patient)
    await consult(records, patient, booked_for=LATER)
    found = await records.consultations.of_patient(patient.key)
    assert found is not None
    assert found.id == opened.id


@pytest.mark.parametrize(
    "status", [Status.ENDED, Status.ARCHIVED, Status.CANCELLED, Status.NO_SHOW]
)
async def test_what_is_over_is_no_consultation_of_the_patient(
    records: Records, status: Status
) -> None:
    patient = await patient_of(records)
    opened = await consult(records, patient)
    await enter(records, opened, status)
    assert await records.consultations.of_patient(patient.key) is None
    assert await records.consultations.open_rooms() == []
    assert await records.audience.rooms() == []


async def test_asking_again_counts_only_after_a_while_also_when_the_clock_was_set_back(
    records: Records,
) -> None:
    opened = await consult(records, await patient_of(records))
    heard = []
    for minutes in (0, 4, 5, -60, -56):
        async with records.store.transaction() as connection:
            heard.append(
                await records.consultations.asked(
                    connection,
                    opened.id,
                    now=NOON + timedelta(minutes=minutes),
                    again_after=timedelta(minutes=5),
                )
            )
    assert heard == [True, False, True, True, False]


async def test_a_room_behind_its_record_is_found_until_it_shows_it(records: Records) -> None:
    opened = await consult(records, await patient_of(records))
    assert await records.consultations.unshown() == []
    async with records.store.transaction() as connection:
        await records.consultations.locked(connection, opened.id)
    assert await records.consultations.unshown() == [opened.id]
    changed = await get(records, opened)
    await records.consultations.now_shows(opened.id, opened.revision, invited=[], now=LATER)
    assert await records.consultations.unshown() == [opened.id]
    await records.consultations.now_shows(opened.id, changed.revision, invited=[], now=LATER)
    assert await records.consultations.unshown() == []


async def test_who_leaves_the_staff_leaves_the_rooms_record_behind(records: Records) -> None:
    opened = await consult(records, await patient_of(records), AWA, MOUSSA)
    await records.consultations.treats_no_more(MOUSSA, now=LATER)
    assert (await get(records, opened)).clinicians == (AWA,)
    assert await records.consultations.unshown() == [opened.id]


async def test_only_what_ended_long_ago_is_to_be_archived(records: Records) -> None:
    first = await consult(records, await patient_of(records))
    second = await consult(records, await patient_of(records, "2"), room_id="!second:clinic.test")
    third = await consult(records, await patient_of(records, "3"), room_id="!third:clinic.test")
    await enter(records, first, Status.ENDED)
    await enter(records, second, Status.NO_SHOW)
    await enter(records, third, Status.ARCHIVED)
    assert await records.consultations.to_archive(LATER) == []
    due = await records.consultations.to_archive(LATER + timedelta(milliseconds=1))
    assert set(due) == {first.id, second.id}


async def test_a_summary_is_signed_once_by_each(records: Records) -> None:
    opened = await consult(records, await patient_of(records))
    signed = []
    for account in (AWA, MOUSSA, AWA):
        async with records.store.transaction() as connection:
            signed.append(
                await records.consultations.sign(connection, opened.id, account, now=LATER)
            )
    assert signed == [True, True, False]
    signatures = await records.consultations.signatures(opened.id)
    assert [one.account for one in signatures] == [AWA, MOUSSA]


async def test_the_monitors_of_a_consultation_are_taken_off_together(records: Records) -> None:
    patient = await patient_of(records)
    opened = await consult(records, patient)
    for device, consultation in (("A", opened.id), ("B", opened.id), ("C", None)):
        await records.devices.link(DeviceId(device), patient.key, consultation, now=NOON)
    assert await records.devices.worn_in(opened.id) == ["A", "B"]
    async with records.store.transaction() as connection:
        taken = await records.devices.detach(connection, opened.id, now=LATER)
    assert taken == ["A", "B"]
    assert await records.devices.worn() == {patient.key: ["C"]}
    assert await records.devices.wearing(DeviceId("A"), LATER) is None
    noted = await records.facts.since(patient.key, LATER)
    assert noted == [TakenOff(LATER, DeviceId("A")), TakenOff(LATER, DeviceId("B"))]
    earlier = (await records.facts.since(patient.key, NOON))[:-2]
    assert all(isinstance(one, Worn) for one in earlier)


async def test_a_detached_monitor_is_noticed_by_every_ingest(records: Records) -> None:
    patient = await patient_of(records)
    opened = await consult(records, patient)
    await records.devices.link(DeviceId("A"), patient.key, opened.id, now=NOON)
    fleet = records.devices.fleet()
    async with records.store.transaction() as connection:
        await fleet.refresh(connection)
    assert fleet.wearing(DeviceId("A"), LATER) is not None
    async with records.store.transaction() as connection:
        await records.devices.detach(connection, opened.id, now=LATER)
    async with records.store.transaction() as connection:
        await fleet.refresh(connection)
    assert fleet.wearing(DeviceId("A"), LATER) is None


async def test_what_was_said_about_a_patient_is_found_since_a_moment(records: Records) -> None:
    patient, other = await patient_of(records), await patient_of(records, "2")
    said = (
        Delivery("before", ROOM, patient.key, {"body": "x"}, NOON),
        Delivery("after", ROOM, patient.key, {"body": "y"}, LATER),
        Delivery("host", ROOM, patient.key, {"body": "z"}, LATER, sender=SentBy.HOST),
        Delivery("other", ROOM, other.key, {"body": "o"}, LATER),
    )
    async with records.store.transaction() as connection:
        await records.outbox.add(connection, *said)
    found = await records.outbox.about(patient.key, since=LATER)
    assert [one.delivery_id for one in found] == ["after"]
    assert await records.outbox.is_promised("host")
    assert not await records.outbox.is_promised("nobody")


async def test_open_consultations_belong_to_the_patients_ward_or_else_the_clinicians(
    records: Records,
) -> None:
    for ward in ("medecine", "chirurgie"):
        kept = Ward(WardId(ward), f"!{ward}:clinic.test", Language.FRENCH, "UTC", Roster())
        await records.wards.add(kept)
    async with records.store.transaction() as connection:
        for account, ward in ((AWA, "medecine"), (MOUSSA, "chirurgie")):
            person = Staff(account, "N", Role.NURSE, WardId(ward), Language.FRENCH, NOON)
            await records.people.put(connection, person)
    own = await records.patients.add(
        number="1", initials="A.D.", bed="4", account=None, ward=WardId("chirurgie")
    )
    await consult(records, own, AWA, room_id="!own:clinic.test")
    led = await consult(
        records,
        await patient_of(records, "2"),
        AWA,
        MOUSSA,
        lead=MOUSSA,
        room_id="!led:clinic.test",
    )
    nobodys = await patient_of(records, "3")
    await consult(records, nobodys, EVE, room_id="!nobodys:clinic.test")
    ended = await consult(
        records, await patient_of(records, "4"), AWA, room_id="!ended:clinic.test"
    )
    await enter(records, ended, Status.ENDED)
    assert await records.wards.open_rooms() == {
        "chirurgie": ["!led:clinic.test", "!own:clinic.test"]
    }
    responsible = await records.wards.responsible(led.patient)
    assert responsible is not None
    assert responsible.id == "chirurgie"  # the lead's


async def test_a_room_that_was_upgraded_is_the_consultations_from_then_on(
    records: Records,
) -> None:
    opened = await consult(records, await patient_of(records))
    async with records.store.transaction() as connection:
        await records.consultations.moved(connection, ROOM, "!after:clinic.test")
    assert (await get(records, opened)).room_id == "!after:clinic.test"
    assert await records.consultations.unshown() == [opened.id]
    assert await records.audience.of(ROOM) == frozenset()
