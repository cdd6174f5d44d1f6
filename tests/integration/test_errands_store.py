"""Errands as they are kept: in order per room, once, forgotten when they have ended."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from fajma.errors import BugError
from fajma.language import Language
from fajma.store import Records
from fajma.store.errands import Errand, ErrandKind

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
ROOM, OTHER_ROOM = "!a:clinic.test", "!b:clinic.test"
AWA, MOUSSA = "@awa:clinic.test", "@moussa:clinic.test"
INVITE = Errand(
    id="1" * 64,
    kind=ErrandKind.INVITE,
    room_id=ROOM,
    who=AWA,
    asked_at=NOON,
    language=Language.ENGLISH,
    event_id="$invite",
    said={"account": "@fatou:clinic.test"},
)
END = replace(INVITE, id="2" * 64, kind=ErrandKind.END, event_id="$end", said={})


async def order(records: Records, *errands: Errand) -> None:
    for one in errands:
        async with records.store.transaction() as connection:
            await records.errands.add(connection, one)


async def end(records: Records, errand: Errand, outcome: str = "done") -> bool:
    async with records.store.transaction() as connection:
        return await records.errands.end(connection, errand.id, outcome, now=NOON)


async def test_what_was_ordered_is_kept_as_it_was_said(records: Records) -> None:
    await order(records, INVITE)
    assert await records.errands.get(INVITE.id) == INVITE
    row = await records.store.db.fetchrow("SELECT sealed FROM errand")
    assert row is not None
    assert b"fatou" not in bytes(row["sealed"])


async def test_a_room_has_its_errands_in_the_order_in_which_they_were_given(
    records: Records,
) -> None:
    earlier_clock = replace(END, asked_at=NOON - timedelta(hours=1))
    elsewhere = replace(END, id="0" * 64, room_id=OTHER_ROOM)
    await order(records, INVITE, earlier_clock, elsewhere)
    assert await records.errands.rooms_waiting() == [ROOM, OTHER_ROOM]
    assert await records.errands.next_in(ROOM) == INVITE.id
    assert await end(records, INVITE)
    assert await records.errands.next_in(ROOM) == END.id
    assert await records.errands.next_in(OTHER_ROOM) == elsewhere.id
    assert await records.errands.rooms_waiting() == [ROOM, OTHER_ROOM]


async def test_an_errand_ends_once_and_what_it_said_is_forgotten(records: Records) -> None:
    await order(records, INVITE)
    assert await end(records, INVITE, "not_a_partner")
    assert not await end(records, INVITE)
    assert await records.errands.outcome_of(INVITE.id) == "not_a_partner"
    assert await records.errands.get(INVITE.id) is None
    assert await records.errands.rooms_waiting() == []
    assert await records.store.db.fetchval("SELECT sealed FROM errand") is None


async def test_one_command_makes_one_errand(records: Records) -> None:
    await order(records, INVITE)
    with pytest.raises(Exception, match=r"(?i)unique"):
        await order(records, INVITE)
    assert await records.errands.next_in(ROOM) == INVITE.id


async def test_a_room_is_told_once_that_it_takes_longer(records: Records) -> None:
    await order(records, INVITE)
    told = []
    for _ in range(2):
        async with records.store.transaction() as connection:
            told.append(await records.errands.told(connection, INVITE.id, now=NOON))
    assert told == [True, False]
    kept = await records.errands.get(INVITE.id)
    assert kept is not None
    assert kept.tried


async def test_what_is_proposed_is_not_ordered_and_counts_for_who_asked_there_for_a_while(
    records: Records,
) -> None:
    async with records.store.transaction() as connection:
        await records.errands.propose(connection, END)
    assert await records.errands.rooms_waiting() == []
    again = replace(END, id="3" * 64)
    is_proposed = records.errands.is_proposed
    assert await is_proposed(again, since=NOON)
    assert not await is_proposed(again, since=NOON + timedelta(seconds=1))
    assert not await is_proposed(replace(again, who=MOUSSA), since=NOON)
    assert not await is_proposed(replace(again, room_id=OTHER_ROOM), since=NOON)
    assert not await is_proposed(replace(again, kind=ErrandKind.SIGN), since=NOON)


async def test_an_errand_that_was_altered_is_not_carried_out(records: Records) -> None:
    await order(records, INVITE, END)
    await records.store.db.execute(
        "UPDATE errand SET sealed=(SELECT sealed FROM errand WHERE kind='end') WHERE kind='invite'"
    )
    with pytest.raises(BugError):
        await records.errands.get(INVITE.id)
