"""A patient asks to be let in: who is heard, who is told, what is answered."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest

from appservice.waiting import Answer, WaitingRoom, answered
from fajma.duty import OnCall, Roster
from fajma.language import Language
from fajma.store import Records
from fajma.store.alarms import SentBy
from fajma.store.people import Role, Staff
from fajma.store.wards import Ward, WardId
from tests.integration.hospital import AWA, EVE, HOST, MOTHER, MOUSSA, NOON, PATIENT, Hospital

WARD, WARD_ROOM = WardId("medecine"), "!medecine:clinic.test"
CHAT = "!chat:clinic.test"


@dataclass
class Door:
    """The waiting room of a hospital, and its clock."""

    hospital: Hospital
    room: WaitingRoom
    now: datetime = NOON

    async def chat(self, by: str, room_id: str = CHAT) -> None:
        """Somebody begins a chat with ``@fajma``."""
        self.hospital.matrix.rooms[room_id] = {}
        self.hospital.matrix.member(room_id, by, "join")
        self.hospital.matrix.member(room_id, HOST, "invite")
        await self.room.invited(room_id, by)


@pytest.fixture
async def door(sqlite_records: Records) -> Door:
    hospital = Hospital(sqlite_records)
    roster = Roster(on_call=(OnCall(MOUSSA, NOON),))
    await sqlite_records.wards.add(Ward(WARD, WARD_ROOM, Language.ENGLISH, "UTC", roster))
    async with sqlite_records.store.transaction() as connection:
        for account, name in ((AWA, "Awa Diop"), (MOUSSA, "Moussa Ba")):
            person = Staff(account, name, Role.NURSE, WARD, Language.ENGLISH, NOON)
            await sqlite_records.people.put(connection, person)
    matrix: Any = hospital.matrix
    door = Door(hospital, WaitingRoom(sqlite_records, matrix))
    door.room = WaitingRoom(sqlite_records, matrix, now=lambda: door.now)
    return door


async def test_a_patient_who_knocks_is_announced_to_who_is_on_duty(door: Door) -> None:
    booked = await door.hospital.book()
    opened = await door.hospital.service.start(booked.id, AWA, NOON)
    assert opened.room_id is not None
    await door.room.knocked(opened.room_id, PATIENT)
    assert await door.hospital.said(WARD_ROOM) == [
        "WAITING ROOM · bed 4 A.D. asks to be let into the consultation"
    ]
    [delivery] = await door.hospital.records.outbox.waiting(WARD_ROOM, sender=SentBy.HOST)
    content = (await door.hospital.records.outbox.get(delivery)).content
    assert content["m.mentions"] == {"user_ids": [MOUSSA]}
    assert (await door.hospital.get(opened.id)).asked_at == NOON
    assert "consultation.ask" in await door.hospital.actions()


async def test_asking_again_is_told_again_only_after_a_while(door: Door) -> None:
    booked = await door.hospital.book()
    for minutes in (0, 1, 4, 5):
        door.now = NOON + timedelta(minutes=minutes)
        assert await door.room.ask(PATIENT) is Answer.HEARD
    assert len(await door.hospital.said(WARD_ROOM)) == 2
    await door.hospital.service.admit(booked.id, PATIENT, AWA, door.now)
    assert (await door.hospital.get(booked.id)).asked_at is None


@pytest.mark.parametrize("account", [EVE, MOTHER, AWA])
async def test_a_knock_of_somebody_else_is_not_heard(door: Door, account: str) -> None:
    booked = await door.hospital.book()
    opened = await door.hospital.service.start(booked.id, AWA, NOON)
    assert opened.room_id is not None
    await door.room.knocked(opened.room_id, account)
    assert await door.hospital.said(WARD_ROOM) == []


async def test_a_knock_at_the_consultation_of_another_patient_is_not_heard(door: Door) -> None:
    await door.hospital.book()
    other = await door.hospital.open(number="2")
    assert other.room_id is not None
    await door.room.knocked(other.room_id, PATIENT)
    assert await door.hospital.said(WARD_ROOM) == []


async def test_a_patient_asks_in_a_chat_and_is_answered_there_in_both_languages(
    door: Door,
) -> None:
    await door.hospital.book()
    await door.chat(PATIENT)
    assert door.hospital.matrix.membership(CHAT, HOST) == "join"
    [told] = await door.hospital.said(CHAT)
    assert "waiting room" in told
    assert "salle d'attente" in told
    assert len(await door.hospital.said(WARD_ROOM)) == 1
    # So that the answer can be encrypted for him, and for him alone.
    assert await door.hospital.records.audience.of(CHAT) == {PATIENT}


async def test_whatever_a_patient_writes_in_the_chat_is_asking_and_answered_once(
    door: Door,
) -> None:
    await door.hospital.book()
    await door.chat(PATIENT)
    for _ in range(3):
        await door.room.spoken(CHAT, PATIENT)
    await door.room.spoken(CHAT, EVE)
    await door.room.spoken("!other:clinic.test", PATIENT)
    assert len(await door.hospital.said(CHAT)) == 1
    assert len(await door.hospital.said(WARD_ROOM)) == 1
    door.now += timedelta(minutes=6)
    await door.room.spoken(CHAT, PATIENT)
    assert len(await door.hospital.said(WARD_ROOM)) == 2


async def test_nobody_elses_chat_is_accepted(door: Door) -> None:
    await door.hospital.book()
    for number, account in enumerate((EVE, MOTHER, AWA)):
        room_id = f"!chat-{number}:clinic.test"
        await door.chat(account, room_id)
        assert door.hospital.matrix.membership(room_id, HOST) == "leave"
        assert await door.hospital.said(room_id) == []
        assert await door.hospital.records.audience.of(room_id) == frozenset()
    assert (await door.hospital.records.tally.all())["invitations_declined"] == 3


async def test_a_patient_without_consultation_is_told_so_and_nobody_else_is(door: Door) -> None:
    booked = await door.hospital.book()
    await door.hospital.service.cancel(booked.id, AWA, NOON)
    await door.chat(PATIENT)
    assert await door.hospital.said(CHAT) == [answered(Answer.NOTHING_BOOKED)]
    assert await door.hospital.said(WARD_ROOM) == []


async def test_a_patient_who_is_in_the_room_is_sent_there(door: Door) -> None:
    await door.hospital.open(patient_account=PATIENT)
    await door.chat(PATIENT)
    assert await door.hospital.said(CHAT) == [answered(Answer.IN_ROOM)]
    assert await door.hospital.said(WARD_ROOM) == []


async def test_without_a_ward_the_consultation_is_told(sqlite_records: Records) -> None:
    hospital = Hospital(sqlite_records)
    booked = await hospital.book()
    opened = await hospital.service.start(booked.id, AWA, NOON)
    matrix: Any = hospital.matrix
    assert await WaitingRoom(sqlite_records, matrix).ask(PATIENT) is Answer.HEARD
    assert opened.room_id is not None
    assert len(await hospital.said(opened.room_id)) == 1
