"""A thousand rooms take turns: budget, alarms first, who watches, who comes."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from mautrix.errors import MatrixConnectionError, MForbidden
from mautrix.util.async_db import Database

from bridges.mqtt_vitals.cadence import AGAIN_AFTER
from bridges.mqtt_vitals.publisher import MAX_HISTORY_READINGS
from fajma.events import VITALS, VITALS_BATCH, VITALS_DAY
from fajma.language import Language
from fajma.store import Records
from fajma.store.consultations import Consultation
from fajma.vitals import DeviceId, Kind
from tests.integration.desk import (
    NOON,
    Desk,
    KilledError,
    RecordingSender,
    announce,
    batches,
    everything_is_published_once,
    measure,
    states,
)

Admit = Callable[..., Awaitable[Consultation]]

MINE = DeviceId("A4CF12F03B7E")
OTHER = DeviceId("A4CF12F03B7F")
COMES_S = AGAIN_AFTER.total_seconds()


@pytest.fixture
def desk(sqlite_records: Records) -> Desk:
    return Desk(sqlite_records, RecordingSender())


@pytest.fixture
async def mine(sqlite_records: Records, admit: Admit) -> Consultation:
    return await admit(sqlite_records, MINE)


async def ward_of(records: Records, admit: Admit, count: int) -> list[Consultation]:
    return [await admit(records, f"A4CF12F05{n:03X}") for n in range(count)]


def arrived(desk: Desk, rooms: Sequence[Consultation]) -> list[int]:
    """Number of the room of each event, in the order of arrival."""
    numbers = {one.room_id: number for number, one in enumerate(rooms)}
    return [numbers[room_id] for room_id, _ in desk.sender.order]


# --- the budget ----------------------------------------------------------------------------------


async def test_over_minutes_no_more_is_sent_than_the_budget_allows_and_all_of_it_is_used(
    sqlite_records: Records, desk: Desk, admit: Admit
) -> None:
    rooms = await ward_of(sqlite_records, admit, 12)
    desk.settings = desk.settings.model_copy(update={"events_per_s": 1, "watched_every_s": 1})
    for one in rooms:
        await sqlite_records.watching.watch(one.room_id or "", NOON + timedelta(hours=1))
    counts = []
    async with desk.open():
        for _ in range(120):
            for one in rooms:
                await measure(sqlite_records, one, 1)
            desk.later(1)
            await desk.round()
            counts.append(len(desk.sender.order))
    for start in range(len(counts)):
        for end in range(start, len(counts)):
            assert counts[end] - counts[start] <= 2 + (end - start)
    assert counts[-1] >= 120


async def test_when_tokens_are_scarce_alarming_rooms_come_first_then_watched_then_the_stalest(
    sqlite_records: Records, desk: Desk, admit: Admit
) -> None:
    rooms = await ward_of(sqlite_records, admit, 6)
    async with desk.open():
        for one in rooms:
            await measure(sqlite_records, one, 1)
        await desk.round()
        desk.sender.order.clear()
        desk.later(60)
        for number in (4, 1):  # their batches are the stalest of all
            await measure(sqlite_records, rooms[number], 1)
            await desk.round()
            desk.later(30)
        desk.sender.order.clear()
    desk.settings = desk.settings.model_copy(update={"events_per_s": 0.5})
    for one in rooms:
        await measure(sqlite_records, one, 1)
    await announce(sqlite_records, rooms[3], desk.now)
    await sqlite_records.watching.watch(rooms[5].room_id or "", desk.now + timedelta(minutes=5))
    async with desk.open():
        for _ in range(40):
            desk.later(1)
            await desk.round()
    order = arrived(desk, rooms)
    assert order[:3] == [3, 3, 5]  # the alarming snapshot and batch, the watched batch
    assert set(order[3:]) >= {0, 1, 2, 4}


async def test_an_alarm_in_a_hundred_busy_rooms_is_shown_at_the_next_look(
    sqlite_records: Records, desk: Desk, admit: Admit
) -> None:
    rooms = await ward_of(sqlite_records, admit, 100)
    desk.settings = desk.settings.model_copy(update={"watched_every_s": 1})
    for one in rooms:
        await sqlite_records.watching.watch(one.room_id or "", NOON + timedelta(hours=1))
    chance = random.Random(5)
    async with desk.open():
        for second in range(12):
            for one in rooms:
                await measure(sqlite_records, one, 1)
            alarming = chance.sample(rooms, 10) if second >= 4 else []
            for one in alarming:
                await announce(sqlite_records, one, desk.now)
            desk.later(1)
            await desk.round()
            for one in alarming:
                assert states(desk, one)[-1].as_of == desk.now
    assert len(desk.sender.order) <= 50 + 12 * 25


async def test_a_slow_room_holds_up_no_other(
    sqlite_records: Records, desk: Desk, admit: Admit
) -> None:
    rooms = await ward_of(sqlite_records, admit, 3)
    for one in rooms:
        await measure(sqlite_records, one, 1)
    slow = rooms[0].room_id or ""
    with desk.sender.slow(slow) as release:
        async with desk.open(waits=False):
            await desk.sender.until(lambda: len(desk.sender.order) >= 6)
            assert slow not in desk.sender.rooms
            release.set()
            await desk.round()
    for one in rooms:
        await everything_is_published_once(sqlite_records, desk, one)


@pytest.mark.parametrize("count", [1, 40])
async def test_a_look_without_news_asks_as_little_for_many_rooms_as_for_one(
    sqlite_records: Records,
    desk: Desk,
    admit: Admit,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
) -> None:
    for one in await ward_of(sqlite_records, admit, count):
        await measure(sqlite_records, one, 1)
    asked = Counter[str]()
    async with desk.open():
        for _ in range(20):
            desk.later(1)
            await desk.round()
        for name in ("fetch", "fetchval", "fetchrow", "execute"):
            counted(monkeypatch, name, asked)
        for _ in range(10):
            desk.later(1)
            await desk.round()
    assert sum(asked.values()) == 10 * 5


def counted(monkeypatch: pytest.MonkeyPatch, name: str, asked: Counter[str]) -> None:
    plain = getattr(Database, name)

    async def counting(self: Database, query: str, *arguments: Any, **more: Any) -> Any:
        asked[query] += 1
        return await plain(self, query, *arguments, **more)

    monkeypatch.setattr(Database, name, counting)


# --- who watches ---------------------------------------------------------------------------------


async def test_batches_come_faster_while_somebody_watches_and_no_longer(
    sqlite_records: Records, desk: Desk, mine: Consultation
) -> None:
    async with desk.open():
        await measure(sqlite_records, mine, 1)
        await desk.round()
        await sqlite_records.watching.watch(mine.room_id or "", desk.now + timedelta(seconds=60))
        found = []
        for _ in range(40):
            await measure(sqlite_records, mine, 1)
            desk.later(5)
            await desk.round()
            found.append(len(batches(desk, mine)))
        desk.later(60)
        await desk.round()
    assert found[:11] == list(range(2, 13))
    assert found[-1] - found[11] == 2
    await everything_is_published_once(sqlite_records, desk, mine)


async def test_a_watch_that_begins_is_served_at_once(
    sqlite_records: Records, desk: Desk, mine: Consultation
) -> None:
    await measure(sqlite_records, mine, 1)
    async with desk.open():
        desk.later(20)
        await measure(sqlite_records, mine, 4)
        await desk.round()
        assert len(batches(desk, mine)) == 1
        await sqlite_records.watching.watch(mine.room_id or "", desk.now + timedelta(seconds=60))
        sqlite_records.store.hints.notify("audience")
        await desk.hinted()
        assert len(batches(desk, mine)) == 2


# --- who comes -----------------------------------------------------------------------------------


async def come(desk: Desk, consultation: Consultation) -> None:
    await desk.publisher.resend(consultation.room_id or "")
    await desk.hinted()


async def test_somebody_new_gets_the_snapshot_at_once_and_once_more(
    sqlite_records: Records, desk: Desk, mine: Consultation, admit: Admit
) -> None:
    other = await admit(sqlite_records, OTHER)
    for consultation in (mine, other):
        await measure(sqlite_records, consultation, 1)
    async with desk.open():
        desk.later(1)
        await desk.publisher.resend("!elsewhere:clinic.test")
        await come(desk, mine)
        assert len(states(desk, mine)) == 2
        for seconds, total in ((0, 2), (COMES_S, 3), (COMES_S, 3)):
            desk.later(seconds)
            await desk.round()
            assert len(states(desk, mine)) == total
    assert len(states(desk, other)) == 1
    assert len(batches(desk, mine)) == 1


async def test_a_snapshot_for_somebody_new_that_fails_is_not_forgotten(
    sqlite_records: Records, desk: Desk, mine: Consultation
) -> None:
    await measure(sqlite_records, mine, 1)
    async with desk.open():
        desk.sender.failing[VITALS] = MatrixConnectionError("no answer")
        desk.later(1)
        await come(desk, mine)
        assert len(states(desk, mine)) == 1
    desk.sender.failing.clear()
    async with desk.open():  # nor by a restart
        assert len(states(desk, mine)) == 2


async def test_somebody_new_gets_the_last_day_thinned_and_once(
    sqlite_records: Records, desk: Desk, mine: Consultation
) -> None:
    desk.settings = desk.settings.model_copy(update={"history_points": 20})
    desk.now = NOON + timedelta(hours=1)
    await measure(sqlite_records, mine, 300)
    await measure(sqlite_records, mine, 1, value=61)
    await measure(sqlite_records, mine, 300)
    async with desk.open():
        await come(desk, mine)
        desk.later(COMES_S - 1)
        await desk.round()
        assert batches(desk, mine, history=True) == []
        for _ in range(3):
            desk.later(1)
            await desk.round()
        [history] = batches(desk, mine, history=True)
        assert len(history.samples[Kind.SPO2]) <= 20
        assert len(history.samples[Kind.HEART_RATE]) <= 20
        assert Decimal(61) in {one.value for one in history.samples[Kind.SPO2]}
        published = {
            (kind, sample.measured_at, sample.value)
            for batch in batches(desk, mine)
            for kind, samples in batch.samples.items()
            for sample in samples
        }
        for kind, samples in history.samples.items():
            assert {(kind, one.measured_at, one.value) for one in samples} <= published
        assert history.anchor == batches(desk, mine)[0].anchor

        await come(desk, mine)  # another one
        desk.later(COMES_S)
        await desk.round()
        assert len(batches(desk, mine, history=True)) == 2
    await everything_is_published_once(sqlite_records, desk, mine)


async def test_history_without_points_is_not_sent(
    sqlite_records: Records, desk: Desk, mine: Consultation
) -> None:
    desk.settings = desk.settings.model_copy(update={"history_points": 0})
    await measure(sqlite_records, mine, 3)
    async with desk.open():
        await come(desk, mine)
        desk.later(COMES_S)
        await desk.round()
        assert batches(desk, mine, history=True) == []
        assert await sqlite_records.watching.newcomers() == {}


async def test_history_waits_until_nothing_else_is_due(
    sqlite_records: Records, desk: Desk, admit: Admit
) -> None:
    rooms = await ward_of(sqlite_records, admit, 5)
    for one in rooms:
        await measure(sqlite_records, one, 2)
    async with desk.open():
        await come(desk, rooms[0])
    desk.settings = desk.settings.model_copy(update={"events_per_s": 0.5})
    desk.later(60)
    for one in rooms:
        await measure(sqlite_records, one, 1)
    desk.sender.order.clear()
    async with desk.open():
        for _ in range(30):
            desk.later(1)
            await desk.round()
    assert [kind for _, kind in desk.sender.order] == [VITALS, *[VITALS_BATCH] * 6]
    assert arrived(desk, rooms)[-1] == 0
    assert len(batches(desk, rooms[0], history=True)) == 1


async def test_a_new_consultation_begins_when_it_is_opened_and_shows_the_last_day_thinned(
    sqlite_records: Records, desk: Desk, mine: Consultation
) -> None:
    await measure(sqlite_records, mine, 3_000)
    desk.now = NOON + timedelta(hours=5)
    opening = await sqlite_records.consultations.add(
        patient=mine.patient,
        clinicians=(),
        language=Language.FRENCH,
        time_zone="Africa/Dakar",
        now=desk.now,
    )
    await sqlite_records.consultations.open_in(opening.id, "!again:clinic.test")
    again = await sqlite_records.consultations.get(opening.id)
    assert again is not None
    await measure(sqlite_records, mine, 2)
    async with desk.open():
        await come(desk, again)
        for _ in range(3):
            desk.later(60)
            await desk.round()
    assert [(one.first, one.last) for one in batches(desk, again)] == [(3001, 3002)]
    parts = batches(desk, again, history=True)
    assert (parts[0].first, parts[-1].last) == (1, 3002)
    assert 0 < sum(len(one.readings) for one in parts) < 3_000
    assert len(states(desk, again)) > 0


async def test_history_that_fails_does_not_hold_up_what_is_measured_now(
    sqlite_records: Records, desk: Desk, mine: Consultation
) -> None:
    await measure(sqlite_records, mine, 2)
    async with desk.open():
        await come(desk, mine)
        desk.sender.failing["history"] = MForbidden(403)
        desk.later(COMES_S)
        await desk.round()
        await measure(sqlite_records, mine, 1)
        desk.later(60 - COMES_S)
        await desk.round()
        assert len(batches(desk, mine)) == 2
        assert batches(desk, mine, history=True) == []


async def test_a_history_in_several_events_goes_on_where_it_was_killed(
    sqlite_records: Records, desk: Desk, mine: Consultation
) -> None:
    desk.settings = desk.settings.model_copy(update={"history_points": 1440})
    desk.now = NOON + timedelta(hours=23)
    await measure(sqlite_records, mine, 16_000)
    async with desk.open():
        await come(desk, mine)
    desk.sender.lost_answers[VITALS_BATCH] = KilledError()
    for _ in range(3):
        desk.later(COMES_S)
        with contextlib.suppress(KilledError):
            async with desk.open():
                pass
    desk.sender.lost_answers.clear()
    async with desk.open():
        desk.later(60)
        await desk.round()
    parts = batches(desk, mine, history=True)
    assert len(parts) >= 2
    assert all(len(one.readings) <= MAX_HISTORY_READINGS for one in parts)
    for before, after in pairwise(parts):
        assert before.last < after.first
    assert sum(len(one.samples[Kind.HEART_RATE]) for one in parts) <= 1440
    assert await sqlite_records.watching.newcomers() == {}
    await everything_is_published_once(sqlite_records, desk, mine)


async def test_a_publisher_that_is_killed_at_any_send_serves_every_wish_and_repeats_no_reading(
    sqlite_records: Records, desk: Desk, mine: Consultation, admit: Admit
) -> None:
    other = await admit(sqlite_records, OTHER)
    chance = random.Random(11)
    for _ in range(30):
        for one in (mine, other):
            await measure(sqlite_records, one, chance.randint(0, 30))
            if chance.random() < 0.3:
                await announce(sqlite_records, one, desk.now)
            if chance.random() < 0.3:
                await sqlite_records.watching.came(one.room_id or "", desk.now)
            if chance.random() < 0.3:
                until = desk.now + timedelta(seconds=chance.randint(1, 300))
                await sqlite_records.watching.watch(one.room_id or "", until)
        trouble = chance.choice((desk.sender.failing, desk.sender.lost_answers))
        trouble[chance.choice((VITALS, VITALS_DAY, VITALS_BATCH))] = chance.choice(
            (KilledError(), MatrixConnectionError("reset"), MForbidden(403))
        )
        with contextlib.suppress(KilledError):
            async with desk.open():
                for _ in range(chance.randint(0, 3)):
                    desk.later(chance.choice((1, 5, 60)))
                    await desk.round()
        trouble.clear()
        desk.later(chance.choice((1, 5, 600)))
    async with desk.open():
        for _ in range(3):
            desk.later(300)
            await desk.round()
    for one in (mine, other):
        await everything_is_published_once(sqlite_records, desk, one)
        newest = batches(desk, one)[-1].samples[Kind.HEART_RATE][-1]
        shown = states(desk, one)[-1].latest[Kind.HEART_RATE]
        assert (shown.value, shown.measured_at) == (newest.value, newest.measured_at)
    assert await sqlite_records.watching.newcomers() == {}
    assert await sqlite_records.feeds.lag() == 0
