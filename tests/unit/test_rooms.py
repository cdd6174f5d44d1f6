"""What a consultation room must be, whatever its version and whoever is in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from appservice.rooms import (
    CALL_MEMBERS,
    ROTATE_AFTER_MESSAGES,
    ROTATE_AFTER_MS,
    Plan,
    can_knock,
    power_levels,
    required_state,
    room_request,
)

CREATOR = "@fajma:clinic.test"
BOTS = ("@fajma-vitals:clinic.test", "@fajma-alerts:clinic.test")
DOCTORS = ("@awa:clinic.test", "@moussa:hospital.test")
PATIENT = "@patient:clinic.test"
ENCRYPTED = "m.room.encrypted"
PLAN = Plan(CREATOR, BOTS, clinicians=DOCTORS)


@pytest.fixture(params=["11", "12"])
def version(request: pytest.FixtureRequest) -> str:
    """Room versions with the creator's power stated, and without."""
    value: str = request.param
    return value


def request_of(version: str, *, patient: str | None = PATIENT) -> dict[str, Any]:
    plan = replace(PLAN, others=(patient,) if patient else ())
    return room_request(plan, name="Consultation 7", room_version=version)


def test_a_room_has_a_topic_only_where_one_is_given() -> None:
    assert "topic" not in request_of("12")
    request = room_request(
        PLAN, name="Service medecine", room_version="12", topic="Le salon du service"
    )
    assert request["topic"] == "Le salon du service"


def initial_state(request: dict[str, Any]) -> dict[str, dict[str, Any]]:
    entries = request["initial_state"]
    assert all(entry["state_key"] == "" for entry in entries)
    by_type = {entry["type"]: entry["content"] for entry in entries}
    assert len(by_type) == len(entries)
    return by_type


def powers(version: str) -> dict[str, Any]:
    levels: dict[str, Any] = request_of(version)["power_level_content_override"]
    return levels


def needed_for_state(levels: dict[str, Any], event_type: str) -> int:
    """The power that room versions 1 to 12 ask of whoever sets this state."""
    power: int = levels["events"].get(event_type, levels["state_default"])
    return power


def test_the_room_is_encrypted_with_its_state_from_the_start(version: str) -> None:
    encryption = initial_state(request_of(version))["m.room.encryption"]
    assert encryption["algorithm"] == "m.megolm.v1.aes-sha2"
    assert encryption["io.element.msc4362.encrypt_state_events"] is True
    assert 0 < encryption["rotation_period_msgs"] == ROTATE_AFTER_MESSAGES
    assert 0 < encryption["rotation_period_ms"] == ROTATE_AFTER_MS <= 24 * 3600 * 1000


def test_the_room_is_private_and_closed_to_guests(version: str) -> None:
    request = request_of(version)
    state = initial_state(request)
    assert request["visibility"] == "private"
    assert state["m.room.guest_access"] == {"guest_access": "forbidden"}
    assert state["m.room.join_rules"] == {"join_rule": "invite"}
    assert state["m.room.history_visibility"] == {"history_visibility": "shared"}
    assert "room_alias_name" not in request


def test_the_room_has_the_version_that_was_asked_for(version: str) -> None:
    assert request_of(version)["room_version"] == version


@pytest.mark.parametrize("patient", [PATIENT, None])
def test_everyone_but_the_creator_is_invited_once(version: str, patient: str | None) -> None:
    invited = request_of(version, patient=patient)["invite"]
    assert sorted(invited) == sorted([*BOTS, *DOCTORS, *([patient] if patient else [])])


def test_the_creator_has_power_stated_only_where_the_version_asks_for_it() -> None:
    assert powers("11")["users"][CREATOR] == 100
    # Stated in a room of version 12, the homeserver refuses to make the room.
    assert CREATOR not in powers("12")["users"]
    assert CREATOR not in powers("13")["users"]
    assert powers("1")["users"][CREATOR] == 100


def test_bots_stand_above_clinicians_and_clinicians_above_patients(version: str) -> None:
    levels = powers(version)
    assert {levels["users"][bot] for bot in BOTS} == {100}
    assert {levels["users"][doctor] for doctor in DOCTORS} == {50}
    assert PATIENT not in levels["users"]
    assert levels["users_default"] == 0


def test_only_our_bots_invite_and_ban(version: str) -> None:
    levels = powers(version)
    assert levels["invite"] == 100
    assert levels["ban"] == 100
    assert levels["kick"] == 50


def test_nobody_but_our_bots_takes_back_what_others_said(version: str) -> None:
    assert powers(version)["redact"] == 100


def test_encrypted_messages_are_for_everyone_and_encrypted_state_for_bots(version: str) -> None:
    levels = powers(version)
    # Listed in `events` it would have one power for both, message and state.
    assert ENCRYPTED not in levels["events"]
    assert levels["events_default"] == 0
    assert needed_for_state(levels, ENCRYPTED) == 100


@pytest.mark.parametrize(
    "event_type",
    [
        "com.fajma.vitals",
        "com.fajma.consultation",
        "m.room.power_levels",
        "m.room.encryption",
        "m.room.history_visibility",
        "m.room.join_rules",
        "m.room.guest_access",
        "m.room.server_acl",
        "m.room.tombstone",
        "m.room.canonical_alias",
        "io.element.functional_members",
    ],
)
def test_nobody_but_a_bot_changes_what_the_room_is(version: str, event_type: str) -> None:
    assert needed_for_state(powers(version), event_type) == 100


@pytest.mark.parametrize("event_type", CALL_MEMBERS)
def test_everyone_may_join_a_call_the_patient_too(version: str, event_type: str) -> None:
    assert needed_for_state(powers(version), event_type) == 0


def test_clinicians_arrange_widgets_and_the_topic(version: str) -> None:
    for event_type in ("m.room.topic", "m.room.name", "im.vector.modular.widgets"):
        assert needed_for_state(powers(version), event_type) == 50


def test_bots_do_not_make_a_call_of_two_a_group_call(version: str) -> None:
    members = initial_state(request_of(version))["io.element.functional_members"]
    assert members == {"service_members": sorted([CREATOR, *BOTS])}


def test_a_clinician_who_is_named_twice_has_one_power() -> None:
    levels = power_levels(replace(PLAN, clinicians=(DOCTORS[0], DOCTORS[0])), "12")
    assert len(levels["users"]) == len(BOTS) + 1


def test_who_takes_part_besides_has_no_power_and_is_invited(version: str) -> None:
    observer = "@student:clinic.test"
    request = room_request(replace(PLAN, others=(observer,)), name="C", room_version=version)
    assert observer in request["invite"]
    assert observer not in request["power_level_content_override"]["users"]


# --- the end -------------------------------------------------------------------------------------


def test_in_a_frozen_room_nobody_but_our_bots_says_or_sets_anything(version: str) -> None:
    levels = power_levels(replace(PLAN, frozen=True), version)
    assert levels["events_default"] == 100
    for event_type in (*levels["events"], *CALL_MEMBERS, "m.room.topic", "com.fajma.anything"):
        assert needed_for_state(levels, event_type) == 100
    assert levels["kick"] == levels["notifications"]["room"] == 100
    assert {levels["users"][doctor] for doctor in DOCTORS} == {50}


# --- the waiting room ----------------------------------------------------------------------------


def join_rule(plan: Plan, version: str, *, is_in: bool = False) -> str:
    content = required_state(plan, version, patient_is_in=is_in)["m.room.join_rules"]
    rule: str = content["join_rule"]
    return rule


def test_a_patient_who_waits_may_knock_until_he_is_in(version: str) -> None:
    waits = replace(PLAN, waiting=PATIENT)
    assert join_rule(waits, version) == "knock"
    assert join_rule(waits, version, is_in=True) == "invite"
    assert join_rule(PLAN, version) == "invite"


def test_nobody_knocks_at_a_frozen_room_or_where_the_version_knows_no_knocking() -> None:
    assert join_rule(replace(PLAN, waiting=PATIENT, frozen=True), "12") == "invite"
    assert join_rule(replace(PLAN, waiting=PATIENT), "6") == "invite"
    assert not can_knock("org.example.13")


def test_whoever_waits_is_not_invited_with_the_room(version: str) -> None:
    request = room_request(replace(PLAN, waiting=PATIENT), name="C", room_version=version)
    assert PATIENT not in request["invite"]


# --- the dashboard -------------------------------------------------------------------------------


def test_without_an_address_of_the_dashboard_there_is_no_widget() -> None:
    types = {entry["type"] for entry in request_of("12")["initial_state"]}
    assert not types & {"im.vector.modular.widgets", "io.element.widgets.layout"}


def test_the_dashboard_stands_above_the_conversation_and_tells_the_room_to_no_web_server() -> None:
    request = room_request(
        PLAN, name="C", room_version="12", vitals_url="https://widgets.clinic.test/vitals/"
    )
    state = {(one["type"], one["state_key"]): one["content"] for one in request["initial_state"]}
    widget = state["im.vector.modular.widgets", "fajma-vitals"]
    assert widget["id"] == "fajma-vitals"
    assert widget["creatorUserId"] == CREATOR
    before, _, behind = widget["url"].partition("#")
    assert before == "https://widgets.clinic.test/vitals/"
    assert "$matrix_room_id" in behind
    layout = state["io.element.widgets.layout", ""]["widgets"]
    assert layout["fajma-vitals"]["container"] == "top"
