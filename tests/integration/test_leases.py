"""Leases and their fence: never do two holders commit under one name at the same time."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fajma.config import DatabaseSettings
from fajma.store import Records, Store, hints
from fajma.store.leases import Lease, LeaseLostError
from fajma.store.readings import lock_head
from fajma.store.site import site_key

ROOT = Path(__file__).parents[2]
LONG_S = 60.0


def lease(holder: str, length_s: float = LONG_S) -> Lease:
    return Lease("alarms", holder, length_s)


MINE, OTHERS = lease("mine"), lease("others")


@pytest.fixture
async def ledger(records: Records) -> Records:
    """Records with a table in which whoever commits leaves his name."""
    serial = "INTEGER PRIMARY KEY" if records.store.is_sqlite else "SERIAL PRIMARY KEY"
    await records.store.db.execute(f"CREATE TABLE ledger (entry {serial}, holder TEXT)")
    return records


async def commit(records: Records, under: Lease) -> None:
    """Leave a name in the ledger, in a transaction under a lease."""
    async with records.under(under).store.transaction() as connection:
        await connection.execute("INSERT INTO ledger (holder) VALUES ($1)", under.holder)


async def committed(records: Records) -> list[str]:
    rows = await records.store.db.fetch("SELECT holder FROM ledger ORDER BY entry")
    return [row["holder"] for row in rows]


async def run_out(records: Records) -> None:
    """As if the time of whoever holds the lease were over."""
    await records.store.db.execute("UPDATE lease SET until=0")


# --- one after the other --------------------------------------------------------------------------


async def test_a_lease_is_held_by_one_until_it_is_given_back(records: Records) -> None:
    leases = records.leases
    assert not await leases.is_held("alarms")
    assert await leases.acquire(MINE)
    assert await leases.is_held("alarms")
    assert not await leases.acquire(OTHERS)
    assert not await leases.acquire(MINE)
    assert not await leases.renew(OTHERS)
    await leases.release(OTHERS)
    assert await leases.renew(MINE)
    await leases.release(MINE)
    assert not await leases.renew(MINE)
    assert await leases.acquire(OTHERS)


async def test_a_lease_that_ran_out_can_be_taken_and_not_be_renewed(records: Records) -> None:
    assert await records.leases.acquire(MINE)
    await run_out(records)
    assert not await records.leases.renew(MINE)
    assert await records.leases.acquire(OTHERS)


async def test_a_lease_runs_out_by_the_clock_of_the_database(records: Records) -> None:
    assert await records.leases.acquire(lease("mine", length_s=0.05))
    async with asyncio.timeout(10):
        while not await records.leases.acquire(OTHERS):
            assert not await records.leases.renew(lease("nobody"))


async def test_a_lease_is_held_to_its_last_moment_and_not_at_its_end(ledger: Records) -> None:
    leases = ledger.leases
    leases._now = "1000"  # the database's clock, ms
    assert await leases.acquire(lease("mine", length_s=1))

    leases._now = "1999"
    assert await leases.is_held("alarms")
    assert not await leases.acquire(OTHERS)
    async with ledger.store.transaction() as connection, leases.fence(MINE, connection):
        await connection.execute("INSERT INTO ledger (holder) VALUES ('mine')")

    leases._now = "2000"
    assert not await leases.is_held("alarms")
    assert not await leases.renew(lease("mine", length_s=1))
    with pytest.raises(LeaseLostError):
        async with ledger.store.transaction() as connection, leases.fence(MINE, connection):
            await connection.execute("INSERT INTO ledger (holder) VALUES ('mine')")
    assert await committed(ledger) == ["mine"]
    assert await leases.acquire(OTHERS)

    leases._now = "2001"
    assert await leases.renew(OTHERS)


async def test_each_name_has_a_lease_of_its_own(records: Records) -> None:
    assert await records.leases.acquire(MINE)
    assert await records.leases.acquire(Lease("appservice", "others", LONG_S))


async def test_what_is_done_under_a_lost_lease_is_not_committed(ledger: Records) -> None:
    assert await ledger.leases.acquire(MINE)
    await commit(ledger, MINE)
    await run_out(ledger)
    with pytest.raises(LeaseLostError) as lost:
        await commit(ledger, MINE)
    assert lost.value.code == "lease_lost"
    assert await ledger.leases.acquire(OTHERS)
    await commit(ledger, OTHERS)
    with pytest.raises(LeaseLostError):
        await commit(ledger, MINE)
    assert await committed(ledger) == ["mine", "others"]


ACTS = st.sampled_from(["acquire", "renew", "release", "commit", "run out"])
HISTORY = st.lists(st.tuples(ACTS, st.sampled_from([MINE, OTHERS])), max_size=30)


@settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(history=HISTORY)
async def test_in_any_order_of_acts_only_the_holder_commits(
    ledger: Records, history: list[tuple[str, Lease]]
) -> None:
    for table in ("ledger", "lease"):
        await ledger.store.db.execute(f"DELETE FROM {table}")  # noqa: S608
    holder: Lease | None = None  # whose time is not over
    expected: list[str] = []
    for act, who in history:
        if act == "acquire":
            assert await ledger.leases.acquire(who) == (holder is None)
            holder = holder or who
        elif act == "renew":
            assert await ledger.leases.renew(who) == (holder is who)
        elif act == "release":
            await ledger.leases.release(who)
            holder = None if holder is who else holder
        elif act == "run out":
            await run_out(ledger)
            holder = None
        elif holder is who:
            await commit(ledger, who)
            expected.append(who.holder)
        else:
            with pytest.raises(LeaseLostError):
                await commit(ledger, who)
    assert await committed(ledger) == expected


# --- at the same time -----------------------------------------------------------------------------


async def test_many_who_compete_and_stall_never_commit_in_each_others_terms(
    ledger: Records,
) -> None:
    chance = random.Random(7)
    fates: list[str] = []

    async def compete(number: int) -> None:
        for term in range(12):
            mine = lease(f"{number}-{term}", length_s=0.02)
            while not await ledger.leases.acquire(mine):
                pass
            for _ in range(4):
                try:
                    async with ledger.under(mine).store.transaction() as connection:
                        await connection.execute(
                            "INSERT INTO ledger (holder) VALUES ($1)", mine.holder
                        )
                        await asyncio.sleep(chance.choice((0, 0, 0.005, 0.03)))  # it stalls
                    fates.append("committed")
                except (LeaseLostError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                    fates.append(type(error).__name__)
                    break

    async with asyncio.timeout(60):
        await asyncio.gather(*(compete(number) for number in range(3)))
    terms = await committed(ledger)
    assert len(terms) == fates.count("committed")
    assert {"committed", "LeaseLostError"} <= set(fates)
    changes = [one for one, before in zip(terms, [None, *terms], strict=False) if one != before]
    assert len(changes) == len(set(changes)), "somebody committed after another's term had begun"


@pytest.fixture
async def two(postgres_url: str, site_key_file: Path) -> AsyncIterator[tuple[Records, Records]]:
    """Two processes' records of one PostgreSQL, with a ledger."""
    stores = [await Store.open(DatabaseSettings(url=postgres_url)) for _ in range(2)]
    await stores[0].db.execute("CREATE TABLE ledger (entry SERIAL PRIMARY KEY, holder TEXT)")
    key = await site_key(stores[0], site_key_file)
    yield Records(stores[0], key), Records(stores[1], key)
    for store in stores:
        await store.close()


async def somebody_waits_for_a_lock(records: Records) -> None:
    async with asyncio.timeout(10):
        while not await records.store.db.fetchval(
            "SELECT COUNT(*) FROM pg_stat_activity WHERE wait_event_type='Lock'"
        ):
            pass


async def test_a_lease_is_not_taken_between_the_last_look_and_the_commit(
    two: tuple[Records, Records],
) -> None:
    mine, others = two
    short = lease("mine", length_s=0.2)
    assert await mine.leases.acquire(short)

    looked = asyncio.Event()

    async def take() -> None:
        await looked.wait()
        while not await others.leases.acquire(OTHERS):
            pass

    taking = asyncio.create_task(take())
    async with mine.store.transaction() as connection:
        async with mine.leases.fence(short, connection):
            await connection.execute("INSERT INTO ledger (holder) VALUES ('mine')")
        looked.set()
        await somebody_waits_for_a_lock(others)
        assert not taking.done()
    await asyncio.wait_for(taking, 10)
    await commit(others, OTHERS)
    assert await committed(others) == ["mine", "others"]


async def test_a_holder_that_stops_inside_a_transaction_does_not_keep_the_next_one_waiting(
    two: tuple[Records, Records],
) -> None:
    mine, others = two
    short = lease("mine", length_s=0.5)
    assert await mine.leases.acquire(short)
    woken, stopped = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        async with mine.under(short).store.transaction() as connection:
            await connection.execute("INSERT INTO ledger (holder) VALUES ('mine')")
            await mine.followers.move(connection, "alarms", 7)  # a row that the next one needs
            stopped.set()
            await woken.wait()

    working = asyncio.create_task(work())
    await stopped.wait()
    try:
        async with asyncio.timeout(10):
            while not await others.leases.acquire(OTHERS):
                pass
            async with others.under(OTHERS).store.transaction() as connection:
                await others.followers.move(connection, "alarms", 5)
                await connection.execute("INSERT INTO ledger (holder) VALUES ('others')")
    finally:
        woken.set()
        [outcome] = await asyncio.gather(working, return_exceptions=True)
    assert isinstance(outcome, Exception)
    assert await committed(others) == ["others"]
    assert await others.followers.position("alarms") == 5


FROZEN = """
import asyncio, os, signal, sys
from fajma.config import DatabaseSettings
from fajma.store import Store
from fajma.store.readings import lock_head

async def main():
    store = await Store.open(DatabaseSettings(url=sys.argv[1], lease_s=float(sys.argv[2])))
    async with store.transaction() as connection:
        await lock_head(connection, "readings")
        print("locked", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)

asyncio.run(main())
"""


async def test_a_process_that_freezes_in_a_transaction_gives_its_locks_back(
    postgres_url: str,
) -> None:
    """As a whole, as when its machine is suspended or it is swapped out."""
    lease_s = 2.0
    frozen = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", FROZEN, postgres_url, str(lease_s)),
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    store = None
    try:
        assert frozen.stdout is not None
        async with asyncio.timeout(60):
            assert await frozen.stdout.readline() == b"locked\n"
            store = await Store.open(DatabaseSettings(url=postgres_url))
            async with store.transaction() as connection:
                assert await lock_head(connection, "readings") == 0
        assert frozen.returncode is None  # it is still there, and stopped
    finally:
        frozen.kill()
        await frozen.wait()
        if store is not None:
            await store.close()


# --- processes of one PostgreSQL ------------------------------------------------------------------


async def test_processes_that_start_together_make_one_schema(postgres_url: str) -> None:
    settings = DatabaseSettings(url=postgres_url)
    async with asyncio.timeout(60):
        stores = await asyncio.gather(*(Store.open(settings) for _ in range(3)))
    for store in stores:
        assert await store.db.fetchval("SELECT COUNT(*) FROM reading") == 0
        await store.close()


async def hears(store: Store, topic: str, *, told_by: Store) -> None:
    """Wait until a hint of one process wakes a follower in another."""
    event = store.hints.subscribe(topic)
    async with asyncio.timeout(20):
        while True:  # a hint before both listen is lost
            told_by.hints.notify(topic)
            if await store.hints.wait(event, 0.05):
                return


async def test_a_hint_reaches_the_followers_in_another_process(
    two: tuple[Records, Records],
) -> None:
    mine, others = (one.store for one in two)
    async with mine.hints.shared(mine.db), others.hints.shared(others.db):
        await hears(others, "readings", told_by=mine)
        await hears(mine, "outbox", told_by=others)
        unrelated = mine.hints.subscribe("trust")
        await hears(mine, "outbox", told_by=others)
        assert not unrelated.is_set()


async def test_hints_reach_other_processes_again_after_the_database_broke_off(
    two: tuple[Records, Records], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hints, "AGAIN_S", 0.01)
    mine, others = (one.store for one in two)
    async with mine.hints.shared(mine.db), others.hints.shared(others.db):
        await hears(others, "readings", told_by=mine)
        broken = await others.db.fetchval(
            "SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE $1",
            "%pg_notify(%",
        )
        assert broken == 1
        await hears(others, "readings", told_by=mine)
