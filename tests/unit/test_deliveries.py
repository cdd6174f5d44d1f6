"""Looking for deliveries in a room, and when it is done."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest

from fajma import deliveries
from fajma.deliveries import BUSY_MAX_S, BUSY_S, REMEMBERED_S, Unsettled, left_alone_s, look_for
from fajma.errors import BusyError, UnavailableError
from fajma.events import DELIVERY
from fajma.store.alarms import Outbox, SentBy

ME = "@fajma-alerts:clinic.test"


def message(number: int, delivery_id: str | None = None, *, sender: str = ME) -> dict[str, Any]:
    content = {"ciphertext": "x"} if delivery_id is None else {DELIVERY: delivery_id}
    return {"event_id": f"${number}", "sender": sender, "content": content}


class Room:
    """A room of the homeserver, two events a page; newest first."""

    def __init__(self, *events: Mapping[str, Any]) -> None:
        self.events = events
        self.queries: list[Mapping[str, str]] = []
        self.is_endless = False

    async def read(self, _: str, query: Mapping[str, str]) -> Mapping[str, Any]:
        self.queries.append(dict(query))
        start = int(query.get("from", "0"))
        page: dict[str, Any] = {"chunk": list(self.events[start : start + 2])}
        if self.is_endless or start + 2 < len(self.events):
            page["end"] = str(start + 2)
        return page

    async def find(self, *wanted: str, until: str | None = None) -> dict[str, str]:
        return await look_for(frozenset(wanted), "!a", self.read, mxid=ME, until=until)


async def test_every_page_is_read_back_to_the_beginning_of_the_room() -> None:
    room = Room(*(message(number, str(number)) for number in range(5, 0, -1)))
    assert await room.find("1", "4", "absent") == {"1": "$1", "4": "$4"}
    assert [one.get("from") for one in room.queries] == [None, "2", "4"]
    assert json.loads(room.queries[0]["filter"])["senders"] == [ME]


async def test_a_look_ends_at_the_last_delivery_that_is_known() -> None:
    room = Room(message(3, "3"), message(2, "2"), message(1, "1"))
    assert await room.find("1", "3", until="$2") == {"3": "$3"}
    assert len(room.queries) == 1


async def test_a_look_ends_when_all_is_found() -> None:
    room = Room(*(message(number, str(number)) for number in range(9, 0, -1)))
    assert await room.find("8") == {"8": "$8"}
    assert len(room.queries) == 1


async def test_a_redacted_message_is_known_by_its_transaction_id() -> None:
    redacted = {"event_id": "$1", "sender": ME, "content": {}, "unsigned": {"transaction_id": "1"}}
    assert await Room(redacted).find("1") == {"1": "$1"}


async def test_only_what_we_sent_is_ours() -> None:
    theirs = message(1, "1", sender="@mallory:clinic.test")
    theirs["unsigned"] = {"transaction_id": "1"}
    assert await Room(theirs).find("1") == {}


async def test_a_room_that_never_ends_is_not_read_for_ever() -> None:
    room = Room()
    room.is_endless = True
    with pytest.raises(UnavailableError) as caught:
        await room.find("1")
    assert caught.value.code == "room_too_long"
    assert len(room.queries) == deliveries.PAGES_MAX


@pytest.mark.parametrize(
    ("asked_s", "pause_s"), [(None, BUSY_S), (0.0, 0.0), (7.0, 7.0), (86_400.0, BUSY_MAX_S)]
)
def test_a_busy_homeserver_is_left_alone_as_it_asks_but_not_for_hours(
    asked_s: float | None, pause_s: float
) -> None:
    assert left_alone_s(BusyError(asked_s)) == pause_s


# --- when a room is looked at ---------------------------------------------------------------------


class FakeOutbox:
    """What waits in one room, in order, and what it became."""

    def __init__(self, *waiting: str) -> None:
        self.ids = list(waiting)
        self.events: dict[str, str] = {}

    async def waiting(self, _: str, *, sender: SentBy, limit: int) -> Sequence[str]:
        assert sender is SentBy.ALERTS
        return self.ids[:limit]

    async def event_before(self, _: str) -> str | None:
        return None

    async def delivered(self, delivery_id: str, event_id: str) -> None:
        self.events[delivery_id] = event_id
        self.ids.remove(delivery_id)


class Desk:
    """One process that delivers, a room, and a clock."""

    def __init__(self, outbox: FakeOutbox, room: Room) -> None:
        self.now_s = 1000.0
        self.outbox, self.room = outbox, room
        self.unsettled = Unsettled(
            cast("Outbox", outbox), SentBy.ALERTS, room.read, mxid=ME, clock=lambda: self.now_s
        )

    async def looks(self) -> int:
        before = len(self.room.queries)
        await self.unsettled.settle("!a")
        return len(self.room.queries) - before


async def test_what_waits_when_a_process_begins_is_looked_for_once() -> None:
    desk = Desk(FakeOutbox("1", "2"), Room(message(1, "1")))
    desk.unsettled.waiting(["!a"])
    assert await desk.looks() == 1
    assert desk.outbox.events == {"1": "$1"}
    desk.unsettled.waiting(["!a"])
    assert await desk.looks() == 0


async def test_what_comes_later_is_looked_for_only_when_the_homeserver_may_have_forgotten() -> None:
    desk = Desk(FakeOutbox("1"), Room())
    desk.unsettled.waiting([])
    desk.unsettled.waiting(["!a"])
    desk.now_s += REMEMBERED_S
    assert await desk.looks() == 0
    desk.now_s += 1
    assert await desk.looks() == 1
    desk.now_s += REMEMBERED_S
    assert await desk.looks() == 0


async def test_a_room_that_was_empty_in_between_begins_anew() -> None:
    desk = Desk(FakeOutbox("1"), Room())
    desk.unsettled.waiting([])
    desk.unsettled.waiting(["!a"])
    desk.now_s += REMEMBERED_S
    desk.unsettled.waiting([])
    desk.unsettled.waiting(["!a"])
    desk.now_s += 1
    assert await desk.looks() == 0


async def test_a_look_that_fails_thrice_holds_up_no_alarm_and_is_tried_again() -> None:
    desk = Desk(FakeOutbox("1"), Room({"nonsense": 1}))
    desk.unsettled.waiting(["!a"])
    for _ in range(2):
        with pytest.raises(UnavailableError):
            await desk.unsettled.settle("!a")
    assert await desk.looks() == 1
    desk.room.events = [message(1, "1")]
    assert await desk.looks() == 1
    assert desk.outbox.events == {"1": "$1"}
