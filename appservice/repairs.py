"""What is wrong with a room of ours, and what mends it. Pure.

By the rules of Matrix nobody but our bots can change what a room is; a homeserver's administrator
can all the same, and a client's bug or an older version of ours may have left a room otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from appservice import rooms
from appservice.rooms import Plan, required_state

CREATE: Final = "m.room.create"
MEMBER: Final = "m.room.member"
CHILD: Final = "m.space.child"


class What(StrEnum):
    """What is mended; counted under these names."""

    POWER = "power"
    ENCRYPTION = "encryption"
    HISTORY = "history"
    GUESTS = "guests"
    JOIN_RULE = "join_rule"
    SERVICE_MEMBERS = "service_members"
    INVITATION = "invitation"
    """Somebody is invited who does not belong."""
    KNOCK = "knock"
    """Somebody knocks for whom nobody waits."""
    LEFT_OVER = "left_over"
    """Somebody is in the room whose part is over."""
    BOT = "bot"
    """One of our users is neither in the room nor invited."""


_OF_STATE: Final[Mapping[str, What]] = {
    rooms.POWER_LEVELS: What.POWER,
    rooms.ENCRYPTION: What.ENCRYPTION,
    rooms.HISTORY: What.HISTORY,
    rooms.GUESTS: What.GUESTS,
    rooms.JOIN_RULES: What.JOIN_RULE,
    rooms.SERVICE_MEMBERS: What.SERVICE_MEMBERS,
}

KEPT_STATE: Final = frozenset({*_OF_STATE, MEMBER})
"""Types of state events that a room is looked at for."""


@dataclass(frozen=True, slots=True)
class Repair:
    """One thing to mend.

    Attributes:
        what: what.
        event_type: of the state to be set; empty where somebody is removed or brought back.
        content: of that state.
        account: who is removed or brought back.
    """

    what: What
    event_type: str = ""
    content: Mapping[str, Any] | None = None
    account: str = ""


@dataclass(frozen=True, slots=True)
class RoomNow:
    """The state of a room, as the homeserver has it."""

    version: str
    state: Mapping[str, Mapping[str, Any]]
    """Content by event type, of those with an empty state key."""
    members: Mapping[str, str]
    """Membership by user id."""
    children: Mapping[str, Mapping[str, Any]]
    """Of a space, content by the room id of each child."""
    left: frozenset[str]
    """Who left of his own will, or declined."""

    @classmethod
    def of(cls, events: Sequence[Mapping[str, Any]]) -> RoomNow:
        """Out of the answer to ``GET /rooms/{roomId}/state``; what is malformed is not there."""
        state: dict[str, Mapping[str, Any]] = {}
        members: dict[str, str] = {}
        children: dict[str, Mapping[str, Any]] = {}
        left = set()
        for event in events:
            content = event.get("content")
            if not isinstance(content, Mapping):
                continue
            if event.get("type") == MEMBER:
                user = str(event.get("state_key"))
                members[user] = str(content.get("membership"))
                if members[user] == "leave" and event.get("sender") == user:
                    left.add(user)
            elif event.get("type") == CHILD:
                children[str(event.get("state_key"))] = content
            elif event.get("state_key") == "":
                state[str(event.get("type"))] = content
        version = state.get(CREATE, {}).get("room_version", "1")
        return cls(str(version), state, members, children, frozenset(left))

    def is_in(self, account: str) -> bool:
        """Whether somebody is in the room or invited."""
        return self.members.get(account) in {"join", "invite"}


def repairs(now: RoomNow, plan: Plan) -> list[Repair]:
    """What must be done for a room to be as planned, in this order; nothing if it is.

    Who is in the room, was never planned there and belongs to nobody's past part is left: no key
    goes to such a member, and ``Watch`` tells people of him.
    """
    found = []
    patient = plan.waiting
    patient_in = patient is not None and now.is_in(patient) and patient not in plan.gone
    required = required_state(plan, now.version, patient_is_in=patient_in)
    for event_type, wanted in required.items():
        have = now.state.get(event_type, {})
        same = _same_powers if event_type == rooms.POWER_LEVELS else _says
        if not same(have, wanted):
            found.append(Repair(_OF_STATE[event_type], event_type, wanted))
    belong = plan.ours | set(plan.people)
    found += [
        Repair(_OF_MEMBER[membership], account=account)
        for account, membership in sorted(now.members.items())
        if account not in belong
        and membership in _OF_MEMBER
        and (membership != "join" or account in plan.gone)
        and not (membership == "knock" and account == plan.waiting)
        and not (membership == "invite" and account == plan.waiting)
    ]
    found += [Repair(What.BOT, account=bot) for bot in plan.bots if not now.is_in(bot)]
    return found


_OF_MEMBER: Final[Mapping[str, What]] = {
    "invite": What.INVITATION,
    "knock": What.KNOCK,
    "join": What.LEFT_OVER,
}

# Matrix 1.16, client-server API, "m.room.power_levels".
_USUAL_POWERS: Final[Mapping[str, int]] = {
    "users_default": 0,
    "events_default": 0,
    "state_default": 50,
    "ban": 50,
    "kick": 50,
    "redact": 50,
    "invite": 0,
}


def _says(have: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(have.get(key) == value for key, value in wanted.items())


def _same_powers(have: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether two contents give everybody the same power, in all that is decided by us."""
    if any(have.get(key, usual) != wanted[key] for key, usual in _USUAL_POWERS.items()):
        return False
    if have.get("events", {}) != wanted["events"]:
        return False
    usual = wanted["users_default"]

    def stated(users: object) -> dict[str, object] | None:
        if not isinstance(users, Mapping):
            return None
        return {user: power for user, power in users.items() if power != usual}

    return stated(have.get("users", {})) == stated(wanted["users"])
