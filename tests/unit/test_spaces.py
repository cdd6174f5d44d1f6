"""What is done in a ward's space: its team, its rooms, nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from appservice.repairs import RoomNow
from appservice.spaces import Change, SpacePlan, changes, space_request

HOST, AWA, MOUSSA, EVE = (f"@{name}:clinic.test" for name in ("fajma", "awa", "moussa", "eve"))
WARD_ROOM, FIRST, SECOND = (f"!{name}:clinic.test" for name in ("ward", "first", "second"))
PLAN = SpacePlan(HOST, (AWA, MOUSSA), (WARD_ROOM, FIRST), "clinic.test")
CHILD = {"via": ["clinic.test"]}


def space(*events: dict[str, Any]) -> RoomNow:
    return RoomNow.of(events)


def member(user: str, membership: str, *, by: str = HOST) -> dict[str, Any]:
    content = {"membership": membership}
    return {"type": "m.room.member", "state_key": user, "sender": by, "content": content}


def child(room: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "m.space.child",
        "state_key": room,
        "content": CHILD if content is None else content,
    }


AS_PLANNED = (
    member(HOST, "join"),
    member(AWA, "join", by=AWA),
    member(MOUSSA, "invite"),
    child(WARD_ROOM),
    child(FIRST),
)


def test_a_new_space_gets_its_rooms_and_its_team() -> None:
    assert changes(space(member(HOST, "join")), PLAN) == [
        Change(child=WARD_ROOM, content=CHILD),
        Change(child=FIRST, content=CHILD),
        Change(invite=AWA),
        Change(invite=MOUSSA),
    ]


def test_a_space_as_planned_needs_nothing() -> None:
    assert changes(space(*AS_PLANNED), PLAN) == []


def test_a_room_whose_consultation_is_over_is_taken_out_once() -> None:
    assert changes(space(*AS_PLANNED, child(SECOND)), PLAN) == [Change(child=SECOND)]
    assert changes(space(*AS_PLANNED, child(SECOND, {})), PLAN) == []


@pytest.mark.parametrize("membership", ["join", "invite", "knock"])
def test_who_is_not_of_the_team_is_taken_out(membership: str) -> None:
    now = space(*AS_PLANNED, member(EVE, membership, by=EVE))
    assert changes(now, PLAN) == [Change(remove=EVE)]


def test_who_left_by_himself_is_not_asked_again_and_who_was_taken_out_is() -> None:
    others = AS_PLANNED[:2] + AS_PLANNED[3:]
    assert changes(space(*others, member(MOUSSA, "leave", by=MOUSSA)), PLAN) == []
    assert changes(space(*others, member(MOUSSA, "leave")), PLAN) == [Change(invite=MOUSSA)]
    assert changes(space(*others, member(MOUSSA, "ban")), PLAN) == []


@pytest.mark.parametrize("version", ["11", "12"])
def test_a_space_is_private_and_nobody_but_us_changes_it(version: str) -> None:
    request = space_request(name="Ward medecine", creator=HOST, room_version=version)
    assert request["creation_content"]["type"] == "m.space"
    assert request["visibility"] == "private"
    assert "invite" not in request
    powers = request["power_level_content_override"]
    wanted = ("state_default", "events_default", "invite", "kick", "ban", "redact")
    assert {powers[one] for one in wanted} == {100}
    assert powers["users"] == ({HOST: 100} if version == "11" else {})
    state = {one["type"]: one["content"] for one in request["initial_state"]}
    assert state["m.room.join_rules"] == {"join_rule": "invite"}
    assert state["m.room.guest_access"] == {"guest_access": "forbidden"}
