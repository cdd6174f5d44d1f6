"""What a consultation room must be, whatever its version and whoever is in it."""

from __future__ import annotations

from typing import Any

import pytest

from appservice.rooms import ROTATE_AFTER_MESSAGES, ROTATE_AFTER_MS, power_levels, room_request

CREATOR = "@fajma:clinic.test"
BOTS = ("@fajma-vitals:clinic.test", "@fajma-alerts:clinic.test")
DOCTORS = ("@awa:clinic.test", "@moussa:hospital.test")
PATIENT = "@patient:clinic.test"
ENCRYPTED = "m.room.encrypted"


@pytest.fixture(params=["11", "12"])
def version(request: pytest.FixtureRequest) -> str:
    """Room versions with the creator's power stated, and without."""
    value: str = request.param
    return value


def request_of(version: str, *, patient: str | None = PATIENT) -> dict[str, Any]:
    return room_request(
        name="Consultation 7",
        creator=CREATOR,
        bots=BOTS,
        clinicians=DOCTORS,
        patient=patient,
        room_version=version,
    )


def test_a_room_has_a_topic_only_where_one_is_given() -> None:
    assert "topic" not in request_of("12")
    request = room_request(
        name="Service medecine",
        creator=CREATOR,
        bots=BOTS,
        clinicians=DOCTORS,
        patient=None,
        room_version="12",
        topic="Le salon du service",
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


def test_everyone_may_join_a_call_the_patient_too(version: str) -> None:
    assert needed_for_state(powers(version), "org.matrix.msc3401.call.member") == 0


def test_clinicians_arrange_widgets_and_the_topic(version: str) -> None:
    for event_type in ("m.room.topic", "m.room.name", "im.vector.modular.widgets"):
        assert needed_for_state(powers(version), event_type) == 50


def test_bots_do_not_make_a_call_of_two_a_group_call(version: str) -> None:
    members = initial_state(request_of(version))["io.element.functional_members"]
    assert members == {"service_members": sorted([CREATOR, *BOTS])}


def test_a_clinician_who_is_named_twice_has_one_power() -> None:
    levels = power_levels(
        creator=CREATOR, bots=BOTS, clinicians=[DOCTORS[0], DOCTORS[0]], room_version="12"
    )
    assert len(levels["users"]) == len(BOTS) + 1
