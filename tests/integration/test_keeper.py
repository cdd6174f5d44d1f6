"""Rooms are kept what they must be, at once and by looking; a contest and a loss are told."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from mautrix.types import StateEvent

from appservice import keeper as keeper_module
from appservice.keeper import CONTESTED_AFTER, CONTESTED_WITHIN, Contest, Keeper
from appservice.repairs import CREATE
from appservice.spaces import Spaces
from appservice.waiting import WaitingRoom
from fajma.duty import Roster
from fajma.errors import BusyError
from fajma.language import Language
from fajma.life import Status
from fajma.store import Records
from fajma.store.consultations import Consultation
from fajma.store.people import Role, Staff
from fajma.store.wards import Ward, WardId
from fajma.store.warnings import About
from tests.integration.hospital import AWA, EVE, HOST, MOUSSA, NOON, PATIENT, Hospital

WARD, WARD_ROOM = WardId("medecine"), "!medecine:clinic.test"
POWERS, RULES = "m.room.power_levels", "m.room.join_rules"


@dataclass
class House:
    """A hospital with its keeper, whose clock stands still until the test moves it."""

    hospital: Hospital
    now: datetime = NOON
    keeper: Keeper = field(init=False)

    def __post_init__(self) -> None:
        matrix: Any = self.hospital.matrix
        records = self.hospital.records
        self.keeper = Keeper(
            records,
            matrix,
            self.hospital.service,
            WaitingRoom(records, matrix, now=lambda: self.now),
            Spaces(self.hospital.settings, records, matrix),
            now=lambda: self.now,
        )

    async def tampers(
        self, room_id: str, event_type: str, content: dict[str, Any], by: str = EVE, key: str = ""
    ) -> None:
        """Somebody sets state, and the homeserver tells of it."""
        self.hospital.matrix.put(room_id, event_type, content, key)
        await self.tells(room_id, event_type, content, by=by, key=key)

    async def tells(
        self, room_id: str, event_type: str, content: dict[str, Any], *, by: str, key: str = ""
    ) -> None:
        event = StateEvent.deserialize(
            {
                "type": event_type,
                "state_key": key,
                "content": content,
                "room_id": room_id,
                "sender": by,
                "event_id": "$event",
                "origin_server_ts": 1,
            }
        )
        await self.keeper.heard(event)

    async def mended(self) -> list[str]:
        return [one for one in await self.hospital.actions() if one.startswith("room.mend")]


@pytest.fixture
async def house(sqlite_records: Records) -> House:
    hospital = Hospital(sqlite_records)
    await sqlite_records.wards.add(Ward(WARD, None, Language.ENGLISH, "UTC", Roster()))
    async with sqlite_records.store.transaction() as connection:
        for account, name in ((AWA, "Awa Diop"), (MOUSSA, "Moussa Ba")):
            person = Staff(account, name, Role.NURSE, WARD, Language.ENGLISH, NOON)
            await sqlite_records.people.put(connection, person)
    return House(hospital)


@pytest.fixture
async def opened(house: House) -> Consultation:
    return await house.hospital.open()


def room_of(consultation: Consultation) -> str:
    assert consultation.room_id is not None
    return consultation.room_id


async def test_what_somebody_changes_is_set_back_audited_and_counted(
    house: House, opened: Consultation
) -> None:
    room_id = room_of(opened)
    await house.keeper.look()
    assert await house.mended() == []
    await house.tampers(room_id, RULES, {"join_rule": "public"})
    await house.keeper.look()
    assert house.hospital.matrix.content(room_id, RULES) == {"join_rule": "invite"}
    assert await house.mended() == ["room.mend.join_rule"]
    [entry] = [one for one in await house.hospital.records.audit.latest() if "mend" in one.action]
    assert (entry.actor, entry.subject) == ("fajma", room_id)
    assert (await house.hospital.records.tally.all())["room_mended_join_rule"] == 1


async def test_what_nobody_told_us_of_is_found_by_looking(
    house: House, opened: Consultation
) -> None:
    house.hospital.matrix.put(room_of(opened), "m.room.guest_access", {"guest_access": "can_join"})
    await house.keeper.look()
    assert await house.mended() == ["room.mend.guests"]


async def test_our_own_changes_and_what_is_no_rule_are_not_looked_at(
    house: House, opened: Consultation
) -> None:
    await house.keeper.look()
    calls = house.hospital.matrix.calls
    await house.tells(room_of(opened), RULES, {"join_rule": "invite"}, by=HOST)
    await house.tells(room_of(opened), "m.room.topic", {"topic": "x"}, by=EVE)
    await house.keeper.look()
    assert house.hospital.matrix.calls == calls


async def test_who_is_invited_without_belonging_is_withdrawn(
    house: House, opened: Consultation
) -> None:
    member = {"membership": "invite"}
    await house.tampers(room_of(opened), "m.room.member", member, by=AWA, key=EVE)
    await house.keeper.look()
    assert house.hospital.matrix.membership(room_of(opened), EVE) == "leave"
    assert await house.mended() == ["room.mend.invitation"]


async def test_who_is_let_in_again_by_a_homeserver_is_told_of_and_not_fought_over(
    house: House,
) -> None:
    opened = await house.hospital.open(clinicians=[AWA, MOUSSA])
    await house.hospital.service.remove(opened.id, MOUSSA, AWA, NOON)
    assert house.hospital.matrix.membership(room_of(opened), MOUSSA) == "leave"
    member = {"membership": "join"}
    await house.tampers(room_of(opened), "m.room.member", member, by=MOUSSA, key=MOUSSA)
    await house.keeper.look()
    assert house.hospital.matrix.membership(room_of(opened), MOUSSA) == "join"
    assert await house.mended() == []


async def test_the_knock_of_somebody_else_is_refused_and_the_patients_is_announced(
    house: House,
) -> None:
    booked = await house.hospital.book()
    opened = await house.hospital.service.start(booked.id, AWA, NOON)
    room_id = room_of(opened)
    knock = {"membership": "knock"}
    for account in (EVE, PATIENT):
        await house.tampers(room_id, "m.room.member", knock, by=account, key=account)
    await house.keeper.look()
    assert house.hospital.matrix.membership(room_id, EVE) == "leave"
    assert house.hospital.matrix.membership(room_id, PATIENT) == "knock"
    assert await house.mended() == ["room.mend.knock"]
    assert (await house.hospital.get(opened.id)).asked_at == NOON


async def test_a_wards_room_is_kept_too_and_its_space_made(house: House) -> None:
    ward = await house.hospital.wards.open("medecine", language=None, time_zone=None, now=NOON)
    assert ward.room_id is not None
    opened = await house.hospital.open()
    house.hospital.matrix.put(ward.room_id, POWERS, {"users": {EVE: 100}})
    await house.keeper.look()
    await house.keeper.look()
    users = house.hospital.matrix.content(ward.room_id, POWERS)["users"]
    assert {user: power for user, power in users.items() if power == 50} == {AWA: 50, MOUSSA: 50}
    ward = await house.hospital.wards.get("medecine")
    assert ward.space_id is not None
    for room_id in (ward.room_id, opened.room_id):
        assert house.hospital.matrix.content(ward.space_id, "m.space.child", room_id)
    assert house.hospital.matrix.membership(ward.space_id, MOUSSA) == "invite"


async def test_a_space_follows_consultations_that_open_and_end(house: House) -> None:
    await house.hospital.wards.open("medecine", language=None, time_zone=None, now=NOON)
    await house.keeper.look()
    space = (await house.hospital.wards.get("medecine")).space_id
    assert space is not None
    opened = await house.hospital.open()
    await house.keeper.look()
    assert house.hospital.matrix.content(space, "m.space.child", room_of(opened))
    await house.hospital.service.end(opened.id, AWA, NOON)
    await house.keeper.look()
    assert house.hospital.matrix.content(space, "m.space.child", room_of(opened)) == {}


async def test_a_room_behind_its_record_is_brought_there(
    house: House, opened: Consultation
) -> None:
    house.hospital.matrix.fails(after=1, was_done=False)
    await house.hospital.service.end(opened.id, AWA, NOON)
    ended = await house.hospital.get(opened.id)
    assert (ended.status, ended.shown < ended.revision) == (Status.ENDED, True)
    await house.keeper.look()
    ended = await house.hospital.get(opened.id)
    assert ended.shown == ended.revision
    assert house.hospital.matrix.content(room_of(opened), POWERS)["events_default"] == 100
    assert await house.mended() == []  # our own change is no repair


async def test_a_consultation_that_ends_while_its_room_is_looked_at_stays_frozen(
    house: House, opened: Consultation
) -> None:
    matrix = house.hospital.matrix
    matrix.goes_on.clear()
    looking = asyncio.create_task(house.keeper.keep(room_of(opened)))
    await matrix.is_mending.wait()
    assert house.hospital.service.undisturbed.locked()
    ending = asyncio.create_task(house.hospital.service.end(opened.id, AWA, NOON))
    matrix.goes_on.set()
    await asyncio.gather(looking, ending)
    assert matrix.content(room_of(opened), POWERS)["events_default"] == 100
    assert await house.mended() == []


async def test_a_frozen_room_is_kept_frozen_and_an_archived_one_left_alone(
    house: House, opened: Consultation
) -> None:
    room_id = room_of(opened)
    await house.hospital.service.end(opened.id, AWA, NOON)
    await house.tampers(room_id, POWERS, {"events_default": 0, "users": {AWA: 100}})
    await house.keeper.look()
    assert house.hospital.matrix.content(room_id, POWERS)["events_default"] == 100
    house.now += timedelta(days=31)
    await house.hospital.service.archive(opened.id, house.now)
    await house.tampers(room_id, RULES, {"join_rule": "public"})
    await house.keeper.look()
    assert await house.mended() == ["room.mend.power"]


# --- a contest, a loss ---------------------------------------------------------------------------


async def test_somebody_who_sets_it_back_again_and_again_is_told_of_and_not_answered_at_once(
    house: House, opened: Consultation
) -> None:
    room_id, records = room_of(opened), house.hospital.records
    await house.keeper.look()
    for _ in range(CONTESTED_AFTER + 3):
        await house.tampers(room_id, RULES, {"join_rule": "public"})
        await house.keeper.look()
    assert len(await house.mended()) == CONTESTED_AFTER
    [warning] = await records.warnings.open(About.ROOM_CONTESTED)
    assert warning.subject == room_id
    assert house.hospital.matrix.content(room_id, RULES) == {"join_rule": "public"}
    # The look at every room goes on; when the contest is over the warning is too.
    house.now += CONTESTED_WITHIN + timedelta(minutes=1)
    await house.keeper.keep(room_id)
    assert house.hospital.matrix.content(room_id, RULES) == {"join_rule": "invite"}
    assert await records.warnings.open(About.ROOM_CONTESTED) == []


def test_a_contest_is_many_mendings_in_a_short_time() -> None:
    contest = Contest()
    for number in range(CONTESTED_AFTER):
        assert not contest.is_on(NOON)
        contest = contest.mended(NOON + timedelta(seconds=number))
    assert contest.is_on(NOON + timedelta(minutes=1))
    assert not contest.is_on(NOON + CONTESTED_WITHIN + timedelta(seconds=10))


async def test_a_room_that_we_are_not_in_any_more_is_told_of_until_we_are_back(
    house: House, opened: Consultation
) -> None:
    records = house.hospital.records
    house.hospital.matrix.lost.add(room_of(opened))
    await house.keeper.keep(room_of(opened))
    [warning] = await records.warnings.open(About.ROOM_LOST)
    assert (warning.subject, warning.mark) == (room_of(opened), "bot_not_in_room")
    house.hospital.matrix.lost.clear()
    await house.keeper.keep(room_of(opened))
    assert await records.warnings.open(About.ROOM_LOST) == []


async def test_a_homeserver_that_is_busy_is_no_loss(house: House, opened: Consultation) -> None:
    house.hospital.matrix.trouble = BusyError(1.0)
    with pytest.raises(BusyError):
        await house.keeper.keep(room_of(opened))
    assert await house.hospital.records.warnings.open(About.ROOM_LOST) == []


async def test_a_room_that_never_follows_is_tried_less_and_less_often_and_told_of(
    house: House, opened: Consultation, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(keeper_module.time, "monotonic", lambda: clock[0])
    house.hospital.matrix.lost.add(room_of(opened))
    await house.hospital.service.end(opened.id, AWA, NOON)
    tries = []
    for second in range(64):
        clock[0] = float(second)
        before = house.hospital.matrix.calls
        await house.keeper.look()
        if house.hospital.matrix.calls > before:
            tries.append(second)
    assert tries == [0, 1, 3, 7, 15, 31, 63]
    [warning] = await house.hospital.records.warnings.open(About.ROOM_LOST)
    assert warning.mark == "bot_not_in_room"


async def test_one_room_in_trouble_does_not_hold_up_the_others(house: House) -> None:
    first = await house.hospital.open(number="1")
    second = await house.hospital.open(number="2")
    house.hospital.matrix.lost.add(room_of(first))
    for room_id in (room_of(first), room_of(second)):
        await house.tampers(room_id, RULES, {"join_rule": "public"})
    await house.keeper.look()
    assert house.hospital.matrix.content(room_of(second), RULES) == {"join_rule": "invite"}


# --- upgrades ------------------------------------------------------------------------------------


async def upgrade(house: House, opened: Consultation, *, creator: str = HOST) -> str:
    """Another room that says it goes on where this one ends."""
    matrix = house.hospital.matrix
    after = "!after:clinic.test"
    matrix.rooms[after] = dict(matrix.rooms[room_of(opened)])
    creation = {"room_version": "12", "predecessor": {"room_id": room_of(opened)}}
    matrix.put(after, CREATE, creation)
    matrix.rooms[after][CREATE, ""]["sender"] = creator
    for user in (AWA, MOUSSA):
        matrix.rooms[after].pop(("m.room.member", user), None)
    return after


async def tombstone(house: House, opened: Consultation, after: str, *, by: str = HOST) -> None:
    content = {"body": "upgraded", "replacement_room": after}
    await house.tells(room_of(opened), "m.room.tombstone", content, by=by)


async def test_a_room_that_we_upgraded_is_followed_with_all_who_belong(
    house: House, opened: Consultation
) -> None:
    after = await upgrade(house, opened)
    await tombstone(house, opened, after)
    await house.keeper.look()
    moved = await house.hospital.get(opened.id)
    assert moved.room_id == after
    assert house.hospital.matrix.membership(after, AWA) == "invite"
    assert await house.hospital.records.audience.of(after) == {AWA}
    assert await house.hospital.records.audience.of(room_of(opened)) == frozenset()
    assert moved.shown == moved.revision
    assert "room.moved" in await house.hospital.actions()


@pytest.mark.parametrize(("by", "creator"), [(EVE, HOST), (HOST, EVE), (AWA, AWA)])
async def test_somebody_elses_upgrade_is_not_followed(
    house: House, opened: Consultation, by: str, creator: str
) -> None:
    after = await upgrade(house, opened, creator=creator)
    await tombstone(house, opened, after, by=by)
    assert (await house.hospital.get(opened.id)).room_id == room_of(opened)


async def test_an_upgrade_into_a_room_that_continues_another_one_is_not_followed(
    house: House, opened: Consultation
) -> None:
    after = await upgrade(house, opened)
    other = {"room_version": "12", "predecessor": {"room_id": "!other:clinic.test"}}
    house.hospital.matrix.put(after, CREATE, other)
    house.hospital.matrix.rooms[after][CREATE, ""]["sender"] = HOST
    await tombstone(house, opened, after)
    assert (await house.hospital.get(opened.id)).room_id == room_of(opened)
