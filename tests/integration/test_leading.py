"""A part of FAJMA is done by one process at a time, and by another soon after that one ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from console.files import only_here
from console.leading import lead
from fajma.errors import InputError, UnavailableError
from fajma.store import Records
from fajma.store.leases import Lease, Leases
from fajma.tasks import end

LENGTH_S = 1.0


class Part:
    """Work that says when it is done and when it is stopped."""

    def __init__(self) -> None:
        self.terms: list[Lease] = []
        self.working = asyncio.Event()
        self.idle = asyncio.Event()

    async def __call__(self, lease: Lease) -> None:
        self.terms.append(lease)
        self.idle.clear()
        self.working.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.working.clear()
            self.idle.set()


@asynccontextmanager
async def leading(leases: Any, part: Any) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(lead(leases, "alarms", length_s=LENGTH_S, part=part))
    try:
        async with asyncio.timeout(20):
            yield task
    finally:
        await end([task])


async def hands_over(records: Records, *, to: str) -> None:
    """Somebody else holds the lease now."""
    await records.store.db.execute("UPDATE lease SET holder=$1", to)


async def test_a_standby_takes_over_at_once_when_the_leader_stops(records: Records) -> None:
    first, second = Part(), Part()
    async with leading(records.leases, first) as task:
        await first.working.wait()
        async with leading(records.leases, second):
            await end([task])
            assert first.idle.is_set()
            began = time.monotonic()
            await second.working.wait()
            assert time.monotonic() - began < LENGTH_S / 2
    assert first.terms[0].holder != second.terms[0].holder


async def test_a_leader_keeps_its_lease_longer_than_its_length(records: Records) -> None:
    part, standby = Part(), Part()
    async with leading(records.leases, part), leading(records.leases, standby):
        await asyncio.wait(
            [asyncio.create_task(one.working.wait()) for one in (part, standby)],
            return_when=asyncio.FIRST_COMPLETED,
        )
        leader = part if part.working.is_set() else standby
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.5 * LENGTH_S):
                await leader.idle.wait()
        assert len(part.terms) + len(standby.terms) == 1


async def test_a_part_is_stopped_when_its_lease_is_lost_and_done_again_later(
    records: Records,
) -> None:
    part = Part()
    with capture_logs() as logged:
        async with leading(records.leases, part):
            await part.working.wait()
            await hands_over(records, to="somebody else")
            await part.idle.wait()
            await part.working.wait()
    assert [one["event"] for one in logged] == ["leading", "lease_lost", "standby", "leading"]
    assert part.terms[0].holder != part.terms[1].holder


class DeafLeases(Leases):
    """A database that answers the first question only."""

    async def renew(self, lease: Lease) -> bool:
        await asyncio.Event().wait()
        return await super().renew(lease)


async def test_a_part_is_stopped_before_its_lease_ends_when_the_database_is_silent(
    sqlite_records: Records,
) -> None:
    part = Part()
    asked = time.monotonic()
    async with leading(DeafLeases(sqlite_records.store), part):
        await part.working.wait()
        await part.idle.wait()
        assert LENGTH_S / 3 < time.monotonic() - asked < LENGTH_S


class ShakyLeases(Leases):
    """A database that fails now and then."""

    def __init__(self, records: Records) -> None:
        super().__init__(records.store)
        self.asked = 0
        self.asked_often = asyncio.Event()

    async def renew(self, lease: Lease) -> bool:
        self.asked += 1
        if self.asked == 9:
            self.asked_often.set()
        if self.asked % 3:
            raise ConnectionResetError
        return await super().renew(lease)


async def test_a_renewal_that_fails_is_tried_again(sqlite_records: Records) -> None:
    part = Part()
    leases = ShakyLeases(sqlite_records)
    async with leading(leases, part):
        await leases.asked_often.wait()
        assert part.working.is_set()
    assert len(part.terms) == 1


async def test_what_a_part_raises_comes_out_and_its_lease_is_free(
    sqlite_records: Records,
) -> None:
    async def part(_: Lease) -> None:
        raise InputError("wrong", code="wrong")

    with pytest.raises(InputError, match="wrong"):
        await lead(sqlite_records.leases, "alarms", length_s=60, part=part)
    assert await sqlite_records.leases.acquire(Lease("alarms", "the next", 60))


async def test_who_finds_the_holder_before_him_still_there_waits_for_its_end(
    sqlite_records: Records, tmp_path: Any
) -> None:
    part = Part()

    refused = asyncio.Event()

    async def careful(lease: Lease) -> None:
        try:
            with only_here(tmp_path, "alarms"):
                await part(lease)
        except UnavailableError:
            refused.set()
            raise

    still_there = only_here(tmp_path, "alarms")
    async with leading(sqlite_records.leases, careful):
        await refused.wait()
        assert part.terms == []
        still_there.close()
        await part.working.wait()
