"""Wishes to watch: whose counts, for how long, and how little they cost."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import nio
import pytest

from bots.alerts import watchers
from bots.alerts.watchers import CLOCKS_DIFFER, FRESH, Watchers
from fajma.events import MAX_WATCH_S, VITALS_WATCH
from fajma.store import Hints, Records, to_ms
from fajma.store.consultations import Consultation
from fajma.vitals import DeviceId

Admit = Callable[..., Awaitable[Consultation]]
Callback = Callable[[nio.MatrixRoom, Any], Awaitable[None]]

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
MINE = DeviceId("A4CF12F03B7E")
DOCTOR, STRANGER, BOT = (f"@{name}:clinic.test" for name in ("doctor", "eve", "fajma-alerts"))


class FakeClient:
    """Stands in for a signed client: the test delivers the events."""

    def __init__(self) -> None:
        self._callbacks: list[tuple[Callback, type[nio.Event]]] = []

    def add_event_callback(self, callback: Callback, kind: type[nio.Event]) -> None:
        self._callbacks.append((callback, kind))

    async def deliver(self, room_id: str, event: nio.Event) -> None:
        for callback, kind in self._callbacks:
            if isinstance(event, kind):
                await callback(nio.MatrixRoom(room_id, BOT, encrypted=True), event)


class Scene:
    """One room, a listener, and a clock that stands still."""

    def __init__(self, records: Records, consultation: Consultation) -> None:
        self.records = records
        self.room_id = consultation.room_id or ""
        self.consultation = consultation
        self.now = NOON
        self.client = FakeClient()
        self.watchers = Watchers(self.client, records, now=lambda: self.now)  # type: ignore[arg-type]
        self._numbers = itertools.count()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.watchers.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def wishes(
        self,
        for_s: object = 60,
        *,
        sender: str = DOCTOR,
        room_id: str | None = None,
        kind: str = VITALS_WATCH,
        sent_at: datetime | None = None,
        ts: int | None = None,
        content: object = None,
        encrypted: bool = True,
        signed: bool = True,
    ) -> None:
        source = {
            "type": kind,
            "event_id": f"$event-{next(self._numbers)}",
            "sender": sender,
            "origin_server_ts": to_ms(sent_at or self.now) if ts is None else ts,
            "content": {"version": 1, "for_s": for_s} if content is None else content,
        }
        event = nio.UnknownEvent(source, kind)
        event.decrypted, event.verified = encrypted, signed
        await self.client.deliver(self.room_id if room_id is None else room_id, event)

    async def until(self) -> datetime | None:
        """Until when the room is watched, once the listener has brought what it heard."""
        hint = self.records.store.hints.subscribe("audience")
        async with self.listening(), asyncio.timeout(10):
            self.watchers._wish.set()
            await hint.wait()
        return (await self.records.watching.watched(self.now)).get(self.consultation.id)


@pytest.fixture
async def scene(sqlite_records: Records, admit: Admit) -> Scene:
    return Scene(sqlite_records, await admit(sqlite_records, MINE))


async def test_a_wish_of_somebody_who_belongs_in_the_room_counts_until_it_ends(
    scene: Scene,
) -> None:
    await scene.wishes(60)
    assert await scene.until() == NOON + timedelta(seconds=60)
    scene.now += timedelta(seconds=60)
    assert await scene.until() is None


async def test_of_several_wishes_the_latest_end_counts(scene: Scene) -> None:
    for for_s in (10, 300, 20):
        await scene.wishes(for_s)
    assert await scene.until() == NOON + timedelta(seconds=300)
    await scene.wishes(30)  # when the longer one is in our records already
    assert await scene.until() == NOON + timedelta(seconds=300)


@pytest.mark.parametrize(
    "change",
    [
        {"sender": STRANGER},
        {"sender": BOT},
        {"encrypted": False},
        {"signed": False},
        {"room_id": "!elsewhere:clinic.test"},
        {"kind": "com.fajma.vitals"},
        {"for_s": MAX_WATCH_S + 1},
        {"for_s": 0},
        {"for_s": -5},
        {"for_s": 60.5},
        {"for_s": True},
        {"for_s": "60"},
        {"for_s": 10**40},
        {"content": []},
        {"content": {}},
        {"content": {"version": 2, "for_s": 60}},
        {"sent_at": NOON - FRESH - timedelta(seconds=1), "for_s": 300},
        {"sent_at": NOON - timedelta(seconds=61)},
        {"sent_at": NOON + CLOCKS_DIFFER + timedelta(seconds=1)},
        {"ts": 10**18},
        {"ts": -(10**18)},
    ],
    ids=str,
)
async def test_any_other_wish_changes_nothing(scene: Scene, change: dict[str, Any]) -> None:
    await scene.wishes(**change)
    assert await scene.until() is None


async def test_an_older_wish_lasts_from_when_it_was_sent_and_none_longer_than_it_says(
    scene: Scene,
) -> None:
    await scene.wishes(60, sent_at=NOON - timedelta(seconds=40))
    assert await scene.until() == NOON + timedelta(seconds=20)
    await scene.wishes(60, sent_at=NOON + timedelta(seconds=10))  # by a clock that is ahead
    assert await scene.until() == NOON + timedelta(seconds=60)


async def test_however_often_somebody_wishes_our_records_change_seldom(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchers, "WRITE_EVERY_S", 3600.0)
    written: list[datetime] = []
    watch = scene.records.watching.watch

    async def counting(room_id: str, until: datetime) -> None:
        written.append(until)
        await watch(room_id, until)

    monkeypatch.setattr(scene.records.watching, "watch", counting)
    hint = scene.records.store.hints.subscribe("audience")
    async with scene.listening():
        await scene.wishes(1)
        await hints_within(hint)
        for for_s in range(2, 200):
            await scene.wishes(for_s)
        await asyncio.sleep(0)
        assert written == [NOON + timedelta(seconds=1)]
    # What came meanwhile is not forgotten.
    assert scene.watchers._wished == {scene.room_id: NOON + timedelta(seconds=199)}


async def test_a_database_that_is_away_ends_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchers, "WRITE_EVERY_S", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(scene.records.watching, "watch", away)
        await scene.wishes(60)
        assert await scene.until() is None
        patched.setattr(scene.records.audience, "of", away)
        await scene.wishes(60)
    assert await scene.until() is None
    await scene.wishes(60)
    assert await scene.until() is not None


async def away(*_: object) -> None:
    raise OSError


async def hints_within(hint: asyncio.Event) -> None:
    async with asyncio.timeout(10 * Hints.POLL_S):
        await hint.wait()
