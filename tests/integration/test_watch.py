"""When the watch looks: at once, also without a hint from another process; and whom it tells."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from appservice.watch import Watch
from fajma.config import People
from fajma.duty import Roster
from fajma.language import Language
from fajma.store import Hints, Records, Store
from fajma.store.alarms import Delivery, SentBy
from fajma.store.people import Role, Staff
from fajma.store.pins import new_epoch
from fajma.store.wards import Ward, WardId
from fajma.store.warnings import About
from fajma.tasks import end

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
SELDOM = People(look_every_s=600)


class Looks(Watch):
    """Counts its looks instead of taking them."""

    def __init__(self, records: Records) -> None:
        nobody = cast("Any", None)
        super().__init__(SELDOM, records, nobody, nobody, nobody)
        self.looks = 0
        self.looked = asyncio.Event()

    async def look(self) -> None:
        self.looks += 1
        self.looked.set()

    async def looks_again(self) -> None:
        self.looked.clear()
        async with asyncio.timeout(10):
            await self.looked.wait()


@pytest.fixture
async def watch(records: Records, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Looks]:
    """A watch that has taken its first look and would take the next in ten minutes."""
    monkeypatch.setattr(Hints, "POLL_S", 0.01)
    watch = Looks(records)
    running = asyncio.create_task(watch.run())
    await watch.looks_again()
    yield watch
    await end([running])


@pytest.fixture
def elsewhere(records: Records) -> Records:
    """The records of another process, whose hints do not get here."""
    return Records(Store(records.store.db), records.site_key)


async def note(records: Records) -> None:
    async with records.store.transaction() as connection:
        await records.audit.note(
            connection, actor="@a:clinic.test", action="duty.take", subject="medecine", now=NOON
        )


async def other_keys(records: Records) -> None:
    await records.pins.meet({"@a:clinic.test": "one"}, now=NOON)
    await records.pins.meet({"@a:clinic.test": "another"}, now=NOON)


async def acceptance(records: Records) -> None:
    async with records.store.transaction() as connection:
        await new_epoch(connection)


@pytest.mark.parametrize("happens", [note, other_keys, acceptance])
async def test_what_happens_in_another_process_is_looked_at_soon(
    watch: Looks, elsewhere: Records, happens: Callable[[Records], Awaitable[None]]
) -> None:
    await happens(elsewhere)
    await watch.looks_again()


async def test_a_hint_is_looked_at_without_a_change(watch: Looks, records: Records) -> None:
    records.store.hints.notify("trust")
    await watch.looks_again()


async def test_without_any_change_there_is_no_look_before_its_time(watch: Looks) -> None:
    before = watch.looks
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await watch.looks_again()
    assert watch.looks == before


# --- a room that refuses alarms -------------------------------------------------------------------

WARD = WardId("medecine-2")
TEAM, OPERATOR = "@awa:clinic.test", "@ibou:clinic.test"


class FakeOperator:
    """Remembers the notices."""

    def __init__(self) -> None:
        self.notices: list[tuple[str, str]] = []

    async def notice(self, account: str, text: str, *, transaction_id: str) -> None:
        assert transaction_id
        self.notices.append((account, text))


class FakeMatrix:
    """A homeserver of ours."""

    def is_local(self, _: str) -> bool:
        return True


@pytest.fixture
async def operators(records: Records) -> FakeOperator:
    await records.wards.add(Ward(WARD, "!ward", Language.FRENCH, "Africa/Dakar", Roster()))
    async with records.store.transaction() as connection:
        for account, role in ((TEAM, Role.NURSE), (OPERATOR, Role.OPERATOR)):
            ward = WARD if role is Role.NURSE else None
            person = Staff(account, account[1:4], role, ward, Language.ENGLISH, NOON)
            await records.people.put(connection, person)
    return FakeOperator()


async def announced(
    records: Records,
    operators: FakeOperator,
    room_id: str,
    about: About = About.UNDELIVERABLE,
    mark: str = "",
) -> list[Delivery]:
    await records.warnings.set(about, room_id, [mark], now=NOON)
    nobody = cast("Any", None)
    watch = Watch(
        SELDOM, records, cast("Any", FakeMatrix()), cast("Any", operators), nobody, now=lambda: NOON
    )
    for _ in range(2):
        await watch._announce()
    return [
        await records.outbox.get(one)
        for room in await records.outbox.rooms_waiting()
        for one in await records.outbox.waiting(room)
    ]


@pytest.mark.parametrize(
    ("about", "mark"),
    [
        (About.UNDELIVERABLE, ""),
        (About.ROOM_LOST, "bot_not_in_room"),
        (About.ROOM_CONTESTED, ""),
    ],
)
async def test_a_room_in_trouble_is_told_once_to_the_ward_and_without_a_bed_to_operators(
    records: Records, operators: FakeOperator, about: About, mark: str
) -> None:
    patient = await records.patients.add(
        number="7", initials="A.D.", bed="Z9", account=None, ward=WARD
    )
    opening = await records.consultations.add(
        patient=patient.key,
        clinicians=(TEAM,),
        language=Language.FRENCH,
        time_zone="Africa/Dakar",
        now=NOON,
    )
    await records.consultations.open_in(opening.id, "!refuses")
    [told] = await announced(records, operators, "!refuses", about, mark)
    assert (told.room_id, told.sender) == ("!ward", SentBy.ALERTS)
    assert "Z9" in told.content["body"]
    [(account, text)] = operators.notices
    assert account == OPERATOR
    assert "!refuses" in text
    assert mark in text
    assert "Z9" not in text


@pytest.mark.parametrize("about", [About.UNDELIVERABLE, About.ROOM_LOST])
async def test_of_a_ward_s_own_room_that_refuses_only_operators_are_told(
    records: Records, operators: FakeOperator, about: About
) -> None:
    assert await announced(records, operators, "!ward", about) == []
    assert [account for account, _ in operators.notices] == [OPERATOR]
