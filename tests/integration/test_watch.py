"""The watch looks at once when something happened, also in another process without a hint."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from appservice.watch import Watch
from fajma.config import People
from fajma.store import Hints, Records, Store
from fajma.store.pins import new_epoch
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
