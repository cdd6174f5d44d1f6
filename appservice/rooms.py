"""What a consultation's or a ward's room is: its settings, who may do what in it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

KNOCK_FROM: Final = 7
"""First room version in which one can knock (Matrix 1.1, room version 7)."""

POWER_LEVELS: Final = "m.room.power_levels"
JOIN_RULES: Final = "m.room.join_rules"
ENCRYPTION: Final = "m.room.encryption"
HISTORY: Final = "m.room.history_visibility"
GUESTS: Final = "m.room.guest_access"
SERVICE_MEMBERS: Final = "io.element.functional_members"
WIDGETS: Final = "im.vector.modular.widgets"
WIDGET_LAYOUT: Final = "io.element.widgets.layout"

CALL_MEMBERS: Final = ("org.matrix.msc3401.call.member", "org.matrix.msc4143.rtc.member")
"""State by which somebody is in a call: as deployed, and as MSC4143 has it now."""

VITALS_WIDGET: Final = "fajma-vitals"
"""State key and id of the dashboard's widget."""

_WIDGET_FRAGMENT: Final = (
    "#/?theme=$org.matrix.msc2873.client_theme&matrix_user_id=$matrix_user_id"
    "&matrix_display_name=$matrix_display_name&matrix_room_id=$matrix_room_id"
    "&matrix_client_id=$org.matrix.msc2873.client_id"
    "&matrix_client_language=$org.matrix.msc2873.client_language"
)
"""What the client fills in; behind ``#``, so that no web server sees it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a room of ours must be.

    Attributes:
        creator: our user that made it.
        bots: our other users that belong in it.
        clinicians: user ids with power.
        others: user ids of who takes part besides, the patient too.
        waiting: user id of a patient who waits, or may come back: he may knock.
        gone: user ids of whose part is over.
        frozen: whether the room is only read.
    """

    creator: str
    bots: tuple[str, ...]
    clinicians: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    waiting: str | None = None
    gone: frozenset[str] = frozenset()
    frozen: bool = False

    @property
    def people(self) -> tuple[str, ...]:
        """Everybody who belongs in the room, other than our users."""
        return tuple(dict.fromkeys((*self.clinicians, *self.others)))

    @property
    def ours(self) -> frozenset[str]:
        """Our users."""
        return frozenset((self.creator, *self.bots))


def room_request(
    plan: Plan,
    *,
    name: str,
    room_version: str,
    topic: str | None = None,
    vitals_url: str | None = None,
) -> dict[str, Any]:
    """Body of ``POST /createRoom`` for a consultation or a ward.

    Args:
        plan: what the room must be; everybody who belongs there is invited.
        name: shown in room lists, stored in clear: nothing medical in it.
        room_version: e.g. ``"12"``.
        topic: shown in the room's header, stored in clear like the name.
        vitals_url: address of the dashboard, if there is one.
    """
    state = [
        _state(event_type, content)
        for event_type, content in required_state(plan, room_version).items()
        if event_type != POWER_LEVELS
    ]
    return {
        "name": name,
        **({"topic": topic} if topic is not None else {}),
        "preset": "private_chat",
        "visibility": "private",
        "room_version": room_version,
        "creation_content": {"m.federate": True},
        "invite": [*plan.bots, *plan.people],
        "power_level_content_override": power_levels(plan, room_version),
        "initial_state": [*state, *(vitals_widget(plan.creator, vitals_url) if vitals_url else ())],
    }


def required_state(
    plan: Plan, room_version: str, *, patient_is_in: bool = False
) -> Mapping[str, Mapping[str, Any]]:
    """What the state of a room must say, by event type; all with an empty state key.

    Args:
        plan: what the room must be.
        room_version: of the room as it is.
        patient_is_in: the patient who might knock is in the room or invited.
    """
    knocks = plan.waiting is not None and not patient_is_in and can_knock(room_version)
    return {
        ENCRYPTION: {
            "algorithm": "m.megolm.v1.aes-sha2",
            "rotation_period_msgs": ROTATE_AFTER_MESSAGES,
            "rotation_period_ms": ROTATE_AFTER_MS,
            "io.element.msc4362.encrypt_state_events": True,
        },
        # "shared", because with "joined" a late joiner cannot page the day's relations; the
        # room keys, not this setting, decide who can read.
        HISTORY: {"history_visibility": "shared"},
        GUESTS: {"guest_access": "forbidden"},
        JOIN_RULES: {"join_rule": "knock" if knocks and not plan.frozen else "invite"},
        # Or Element takes a consultation of two people for a group and calls everyone.
        SERVICE_MEMBERS: {"service_members": sorted(plan.ours)},
        POWER_LEVELS: power_levels(plan, room_version),
    }


def can_knock(room_version: str) -> bool:
    """Whether rooms of a version know knocking."""
    return room_version.isdecimal() and int(room_version) >= KNOCK_FROM


def power_levels(plan: Plan, room_version: str) -> dict[str, Any]:
    """Content of ``m.room.power_levels``.

    ``state_default`` is 100, so nobody but our bots can set what is not listed. That covers
    ``m.room.encrypted``, which must stay out of ``events``: as a message everyone may send it
    (``events_default``), as state only the bots may. In a frozen room only our bots say and set
    anything.
    """
    users = dict.fromkeys(plan.bots, BOT_POWER) | dict.fromkeys(plan.clinicians, CLINICIAN_POWER)
    if room_version in CREATORS_NAMED_IN_ROOM:
        users[plan.creator] = BOT_POWER

    def unless_frozen(power: int) -> int:
        return BOT_POWER if plan.frozen else power

    return {
        "users": users,
        "users_default": PATIENT_POWER,
        "events_default": unless_frozen(0),
        "state_default": BOT_POWER,
        "events": {
            "m.room.name": unless_frozen(CLINICIAN_POWER),
            "m.room.topic": unless_frozen(CLINICIAN_POWER),
            "m.room.pinned_events": unless_frozen(CLINICIAN_POWER),
            WIDGETS: unless_frozen(CLINICIAN_POWER),
            WIDGET_LAYOUT: unless_frozen(CLINICIAN_POWER),
            # Everyone may join a call, the patient too.
            **{one: unless_frozen(PATIENT_POWER) for one in CALL_MEMBERS},
        },
        # People are invited by asking the bot, which checks who asks.
        "invite": BOT_POWER,
        "kick": unless_frozen(CLINICIAN_POWER),
        "ban": BOT_POWER,
        # Everyone may take back his own words, nobody the monitor's.
        "redact": BOT_POWER,
        "notifications": {"room": unless_frozen(CLINICIAN_POWER)},
    }


def vitals_widget(creator: str, url: str) -> Sequence[dict[str, Any]]:
    """The dashboard and its place, as initial state; in clear, as clients read widgets.

    Source: the Matrix widget API as Element has it (MSC1236), and its layout for all members.
    """
    widget = {
        "id": VITALS_WIDGET,
        "type": "m.custom",
        "name": "FAJMA",
        "url": url + _WIDGET_FRAGMENT,
        "creatorUserId": creator,
        "waitForIframeLoad": False,
        "data": {},
    }
    place = {"container": "top", "index": 0, "width": 100, "height": 45}
    return (
        _state(WIDGETS, widget, VITALS_WIDGET),
        _state(WIDGET_LAYOUT, {"widgets": {VITALS_WIDGET: place}}),
    )


def _state(event_type: str, content: Mapping[str, Any], state_key: str = "") -> dict[str, Any]:
    return {"type": event_type, "state_key": state_key, "content": dict(content)}
