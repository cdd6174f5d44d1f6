"""What is mended in a room: everything that is not as planned, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from appservice import rooms
from appservice.repairs import RoomNow, What, repairs
from appservice.rooms import Plan, room_request

HOST, VITALS, ALERTS = (
    f"@{name}:clinic.test" for name in ("fajma", "fajma-vitals", "fajma-alerts")
)
AWA, MOTHER, PATIENT = "@awa:clinic.test", "@mother:clinic.test", "@patient:clinic.test"
STRANGER = "@stranger:elsewhere.test"
PLAN = Plan(HOST, (VITALS, ALERTS), clinicians=(AWA,), others=(MOTHER,))


@pytest.fixture(params=["11", "12"])
def version(request: pytest.FixtureRequest) -> str:
    """Room versions with the creator's power stated, and without."""
    value: str = request.param
    return value


def as_made(version: str, plan: Plan = PLAN) -> list[dict[str, Any]]:
    """The state of a room that was just made, and all have joined."""
    request = room_request(plan, name="C", room_version=version)
    powers = request["power_level_content_override"] | {"historical": 100}
    return [
        {"type": "m.room.create", "state_key": "", "content": {"room_version": version}},
        {"type": "m.room.power_levels", "state_key": "", "content": powers},
        *request["initial_state"],
        *(member(user, "join") for user in (HOST, *request["invite"])),
    ]


def member(user: str, membership: str) -> dict[str, Any]:
    return {"type": "m.room.member", "state_key": user, "content": {"membership": membership}}


def changed(made: list[dict[str, Any]], event_type: str, /, **content: Any) -> RoomNow:
    """The room after somebody changed a part of one state event."""
    return RoomNow.of(
        [
            one | {"content": one["content"] | content} if one["type"] == event_type else one
            for one in made
        ]
    )


def test_a_room_as_it_was_made_needs_nothing(version: str) -> None:
    assert repairs(RoomNow.of(as_made(version)), PLAN) == []


def test_a_power_that_is_stated_though_it_is_the_usual_one_is_no_difference(version: str) -> None:
    events = as_made(version)
    powers = next(one for one in events if one["type"] == "m.room.power_levels")
    users = powers["content"]["users"] | {MOTHER: 0}
    assert repairs(changed(events, "m.room.power_levels", users=users), PLAN) == []


@pytest.mark.parametrize(
    ("event_type", "content", "what"),
    [
        ("m.room.power_levels", {"events_default": 50}, What.POWER),
        ("m.room.power_levels", {"invite": 0}, What.POWER),
        ("m.room.power_levels", {"redact": 50}, What.POWER),
        ("m.room.power_levels", {"state_default": 50}, What.POWER),
        ("m.room.power_levels", {"events": {}}, What.POWER),
        ("m.room.power_levels", {"users": {AWA: 100}}, What.POWER),
        ("m.room.power_levels", {"users": "everybody"}, What.POWER),
        ("m.room.join_rules", {"join_rule": "public"}, What.JOIN_RULE),
        ("m.room.join_rules", {"join_rule": "knock"}, What.JOIN_RULE),
        ("m.room.guest_access", {"guest_access": "can_join"}, What.GUESTS),
        ("m.room.history_visibility", {"history_visibility": "world_readable"}, What.HISTORY),
        ("m.room.encryption", {"io.element.msc4362.encrypt_state_events": False}, What.ENCRYPTION),
        ("m.room.encryption", {"rotation_period_ms": 10**12}, What.ENCRYPTION),
        ("io.element.functional_members", {"service_members": [AWA]}, What.SERVICE_MEMBERS),
    ],
)
def test_each_change_is_set_back_and_nothing_else(
    version: str, event_type: str, content: dict[str, Any], what: What
) -> None:
    [one] = repairs(changed(as_made(version), event_type, **content), PLAN)
    assert (one.what, one.event_type) == (what, event_type)
    assert one.content == rooms.required_state(PLAN, version)[event_type]


def test_mending_once_is_enough(version: str) -> None:
    now = changed(as_made(version), "m.room.power_levels", users={STRANGER: 100}, ban=0)
    state = dict(now.state)
    for one in repairs(now, PLAN):
        assert one.content is not None
        state[one.event_type] = one.content
    assert repairs(replace(now, state=state), PLAN) == []


def test_state_that_is_missing_is_set(version: str) -> None:
    bare = [one for one in as_made(version) if one["type"] in {"m.room.create", "m.room.member"}]
    found = {one.what for one in repairs(RoomNow.of(bare), PLAN)}
    assert found == {
        What.POWER, What.ENCRYPTION, What.HISTORY, What.GUESTS, What.JOIN_RULE, What.SERVICE_MEMBERS
    }  # fmt: skip


@pytest.mark.parametrize(
    ("membership", "what"), [("invite", What.INVITATION), ("knock", What.KNOCK)]
)
def test_who_does_not_belong_is_not_let_in(version: str, membership: str, what: What) -> None:
    now = RoomNow.of([*as_made(version), member(STRANGER, membership)])
    assert [(one.what, one.account) for one in repairs(now, PLAN)] == [(what, STRANGER)]


def test_a_stranger_who_is_in_is_told_of_and_not_fought_over(version: str) -> None:
    assert repairs(RoomNow.of([*as_made(version), member(STRANGER, "join")]), PLAN) == []


def test_whose_part_is_over_is_taken_out(version: str) -> None:
    now = RoomNow.of([*as_made(version), member(STRANGER, "join")])
    [one] = repairs(now, replace(PLAN, gone=frozenset({STRANGER})))
    assert (one.what, one.account) == (What.LEFT_OVER, STRANGER)


def test_only_the_patient_who_is_waited_for_may_knock(version: str) -> None:
    plan = replace(PLAN, waiting=PATIENT)
    knocks = [member(PATIENT, "knock"), member(STRANGER, "knock")]
    now = RoomNow.of([*as_made(version, plan), *knocks])
    assert [(one.what, one.account) for one in repairs(now, plan)] == [(What.KNOCK, STRANGER)]


def test_once_the_patient_is_in_the_door_is_closed(version: str) -> None:
    plan = replace(PLAN, waiting=PATIENT)
    now = RoomNow.of([*as_made(version, plan), member(PATIENT, "join")])
    [one] = repairs(now, plan)
    assert (one.what, one.content) == (What.JOIN_RULE, {"join_rule": "invite"})


def test_a_bot_that_is_invited_comes_by_itself(version: str) -> None:
    events = [one for one in as_made(version) if one.get("state_key") != ALERTS]
    assert repairs(RoomNow.of([*events, member(ALERTS, "invite")]), PLAN) == []


@pytest.mark.parametrize("membership", ["leave", "ban", "knock"])
def test_a_bot_that_is_not_in_the_room_is_brought_back(version: str, membership: str) -> None:
    events = [one for one in as_made(version) if one.get("state_key") != ALERTS]
    now = RoomNow.of([*events, member(ALERTS, membership)])
    assert [(one.what, one.account) for one in repairs(now, PLAN)] == [(What.BOT, ALERTS)]


def test_what_a_hostile_homeserver_answers_breaks_nothing() -> None:
    events: list[dict[str, Any]] = [
        {},
        {"type": "m.room.power_levels", "state_key": "", "content": None},
        {"type": "m.room.member", "state_key": 7, "content": {"membership": ["join"]}},
        {"type": "m.room.create", "state_key": "", "content": {"room_version": {"a": 1}}},
    ]
    assert {one.what for one in repairs(RoomNow.of(events), PLAN)} >= {What.POWER, What.BOT}
