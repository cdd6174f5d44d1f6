"""Transactions that lock the same things do so in one order: on PostgreSQL none ends another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from appservice.patients import PatientService
from appservice.watch import Watch
from fajma.config import DatabaseSettings, People
from fajma.duty import DRILL_LASTS, Roster
from fajma.language import Language
from fajma.store import Records, Store
from fajma.store.alarms import Delivery, SentBy
from fajma.store.people import Role, Staff
from fajma.store.site import site_key
from fajma.store.wards import Ward
from fajma.store.warnings import About
from tests.integration.scene import (
    AWA,
    IBOU,
    MEDICINE,
    NOON,
    OTHER_ROOM,
    PINNED,
    ROOM,
    SHOWN,
    SURGERY,
    Scene,
    consultation,
)


@pytest.fixture
async def scene(postgres_url: str, site_key_file: Path) -> AsyncIterator[Scene]:
    store = await Store.open(DatabaseSettings(url=postgres_url))
    records = Records(store, await site_key(store, site_key_file))
    for ward, room_id in ((MEDICINE, ROOM), (SURGERY, OTHER_ROOM)):
        await records.wards.add(Ward(ward, room_id, Language.FRENCH, "Africa/Dakar", Roster()))
    async with store.transaction() as connection:
        for account, ward in ((AWA, MEDICINE), (IBOU, SURGERY)):
            person = Staff(account, account[1:4], Role.DOCTOR, ward, Language.FRENCH, NOON)
            await records.people.put(connection, person)
    yield Scene(records)
    await store.close()


async def held_up(records: Records, got_through: asyncio.Event) -> None:
    """Until somebody waits for a lock, or has got through."""
    while not got_through.is_set():
        if await records.store.db.fetchval("SELECT COUNT(*) FROM pg_locks WHERE NOT granted"):
            return


async def test_an_act_may_be_noted_before_or_after_it_is_told_of(scene: Scene) -> None:
    records = scene.records
    noted, told = asyncio.Event(), asyncio.Event()

    async def notes_first() -> None:
        async with records.store.transaction() as connection:
            await records.audit.note(connection, actor=AWA, action="a", subject=AWA, now=NOON)
            noted.set()
            await held_up(records, told)
            await records.outbox.add(connection, Delivery("1", ROOM, None, {}, NOON))

    async def tells_first() -> None:
        await noted.wait()
        async with records.store.transaction() as connection:
            await records.outbox.add(connection, Delivery("2", ROOM, None, {}, NOON))
            told.set()
            await records.audit.note(connection, actor=IBOU, action="a", subject=IBOU, now=NOON)

    await asyncio.gather(notes_first(), tells_first())
    assert await records.outbox.waiting(ROOM) == ["1", "2"]
    assert [one.actor for one in await records.audit.latest()] == [AWA, IBOU]


async def test_a_command_given_at_the_moment_at_which_a_drill_ends_elsewhere_is_carried_out(
    scene: Scene,
) -> None:
    records = scene.records
    await scene.types(AWA, "!test")
    scene.now += DRILL_LASTS
    noted, told = asyncio.Event(), asyncio.Event()
    note, add = records.audit.note, records.outbox.add

    async def note_and_wait(connection: Any, *, actor: str, **more: Any) -> None:
        await note(connection, actor=actor, **more)
        if actor == IBOU:
            noted.set()
            await held_up(records, told)

    async def add_and_say(connection: Any, delivery: Delivery) -> None:
        await add(connection, delivery)
        if delivery.room_id == ROOM:
            told.set()

    records.audit.note = note_and_wait  # type: ignore[method-assign]
    records.outbox.add = add_and_say  # type: ignore[method-assign]

    async def drill_ends() -> None:
        await noted.wait()
        await scene.orders._desk.look_at_time(await scene.ward())

    await asyncio.gather(
        scene.types(IBOU, "!garde prendre", room_id=OTHER_ROOM),
        drill_ends(),
    )
    assert (await scene.ward(SURGERY)).roster.accounts == (IBOU,)
    assert (await scene.roster()).drill is None
    assert len(await scene.answers(OTHER_ROOM)) == 1


class Matrix:
    """A homeserver at which nobody of ours has an account."""

    def is_local(self, _: str) -> bool:
        return False

    def refuse_ours(self, account: str) -> None:
        assert account

    async def invite(self, room_id: str, user: str) -> None:
        assert room_id
        assert user


async def test_an_identity_accepted_at_the_moment_at_which_it_is_announced_is_accepted(
    scene: Scene,
) -> None:
    records = scene.records
    await records.pins.meet({AWA: PINNED}, now=NOON)
    await records.pins.meet({AWA: SHOWN}, now=NOON)
    change = await records.pins.changed(AWA)
    [warning] = await records.warnings.open(About.IDENTITY)
    assert change is not None
    watch = Watch(People(), records, Matrix(), None, None)  # type: ignore[arg-type]
    accepted, told = asyncio.Event(), asyncio.Event()
    add = records.outbox.add

    async def add_and_say(connection: Any, delivery: Delivery) -> None:
        await add(connection, delivery)
        if delivery.sender is SentBy.ALERTS:
            told.set()

    records.outbox.add = add_and_say  # type: ignore[method-assign]

    async def accepts() -> None:
        async with records.store.transaction() as connection:
            await records.pins.accept(connection, change, now=NOON)
            accepted.set()
            await held_up(records, told)
            await records.audit.note(connection, actor=IBOU, action="a", subject=AWA, now=NOON)

    async def announces() -> None:
        await accepted.wait()
        await watch._announce_one(warning)

    await asyncio.gather(accepts(), announces())
    assert await records.pins.known([AWA]) == {AWA: SHOWN}
    assert len(await records.outbox.waiting(ROOM)) == 1


async def test_a_patient_is_let_in_at_the_moment_at_which_an_account_is_linked(
    scene: Scene,
) -> None:
    records = scene.records
    patient, opened = await consultation(scene, AWA)
    locked, through = asyncio.Event(), asyncio.Event()

    async def lets_in() -> None:
        async with records.store.transaction() as connection:
            await records.consultations.locked(connection, opened.id)
            locked.set()
            await held_up(records, through)
            await records.consultations.admitted(connection, opened.id, now=NOON)

    async def links() -> None:
        await locked.wait()
        service = PatientService(records, Matrix(), None, None)  # type: ignore[arg-type]
        await service.link_account(patient.number, "@patient:clinic.test", now=NOON)
        through.set()

    await asyncio.gather(lets_in(), links())
    linked = await records.patients.by_number(patient.number)
    assert linked is not None
    assert linked.account == "@patient:clinic.test"
