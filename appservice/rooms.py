"""What a consultation room is: its settings, who may do what in it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

BOT_POWER: Final = 100
CLINICIAN_POWER: Final = 50
PATIENT_POWER: Final = 0

ROTATE_AFTER_MESSAGES: Final = 500
ROTATE_AFTER_MS: Final = 24 * 60 * 60 * 1000
"""A stolen room key opens at most a day of one room."""

CREATORS_NAMED_IN_ROOM: Final = frozenset({"1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11"})
"""Room versions in which the creator's power is stated. From version 12 on it is above all and
must not be stated (Matrix 1.16, room version 12, "Power levels")."""


def room_request(
    *,
    name: str,
    creator: str,
    bots: Sequence[str],
    clinicians: Sequence[str],
    patient: str | None,
    room_version: str,
    topic: str | None = None,
) -> dict[str, Any]:
    """Body of ``POST /createRoom`` for a consultation or a ward.

    Args:
        name: shown in room lists, stored in clear: nothing medical in it.
        creator: our user that creates it.
        bots: our other users.
        clinicians: user ids.
        patient: user id, if the patient has an account.
        room_version: e.g. ``"12"``.
        topic: shown in the room's header, stored in clear like the name.
    """
    people = [*clinicians, *([patient] if patient else [])]
    return {
        "name": name,
        **({"topic": topic} if topic is not None else {}),
        "preset": "private_chat",
        "visibility": "private",
        "room_version": room_version,
        "creation_content": {"m.federate": True},
        "invite": [*bots, *people],
        "power_level_content_override": power_levels(
            creator=creator, bots=bots, clinicians=clinicians, room_version=room_version
        ),
        "initial_state": [
            {
                "type": "m.room.encryption",
                "state_key": "",
                "content": {
                    "algorithm": "m.megolm.v1.aes-sha2",
                    "rotation_period_msgs": ROTATE_AFTER_MESSAGES,
                    "rotation_period_ms": ROTATE_AFTER_MS,
                    "io.element.msc4362.encrypt_state_events": True,
                },
            },
            # "shared", because with "joined" a late joiner cannot page the day's relations; the
            # room keys, not this setting, decide who can read.
            _state("m.room.history_visibility", {"history_visibility": "shared"}),
            _state("m.room.guest_access", {"guest_access": "forbidden"}),
            _state("m.room.join_rules", {"join_rule": "invite"}),
            # Or Element takes a consultation of two people for a group and calls everyone.
            _state(
                "io.element.functional_members",
                {"service_members": sorted([creator, *bots])},
            ),
        ],
    }


def power_levels(
    *, creator: str, bots: Collection[str], clinicians: Collection[str], room_version: str
) -> dict[str, Any]:
    """Content of ``m.room.power_levels``.

    ``state_default`` is 100, so nobody but our bots can set what is not listed. That covers
    ``m.room.encrypted``, which must stay out of ``events``: as a message everyone may send it
    (``events_default``), as state only the bots may.
    """
    users = dict.fromkeys(bots, BOT_POWER) | dict.fromkeys(clinicians, CLINICIAN_POWER)
    if room_version in CREATORS_NAMED_IN_ROOM:
        users[creator] = BOT_POWER
    return {
        "users": users,
        "users_default": PATIENT_POWER,
        "events_default": 0,
        "state_default": BOT_POWER,
        "events": {
            "m.room.name": CLINICIAN_POWER,
            "m.room.topic": CLINICIAN_POWER,
            "m.room.pinned_events": CLINICIAN_POWER,
            "im.vector.modular.widgets": CLINICIAN_POWER,
            "io.element.widgets.layout": CLINICIAN_POWER,
            # Everyone may join a call, the patient too.
            "org.matrix.msc3401.call.member": 0,
        },
        # People are invited by asking the bot, which checks who asks.
        "invite": BOT_POWER,
        "kick": CLINICIAN_POWER,
        "ban": BOT_POWER,
        # Everyone may take back his own words, nobody the monitor's.
        "redact": BOT_POWER,
        "notifications": {"room": CLINICIAN_POWER},
    }


def _state(event_type: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"type": event_type, "state_key": "", "content": content}
