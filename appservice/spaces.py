"""A Matrix space for each ward, so that its team finds the rooms of the ward in one place.

A space is a room that nobody writes in; its state says which rooms belong to it. Homeservers see
that state: it holds room ids and the ward's short name, nothing medical.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from mautrix.errors import MatrixError

from appservice.repairs import CHILD, RoomNow
from appservice.rooms import BOT_POWER, CREATORS_NAMED_IN_ROOM, GUESTS, JOIN_RULES
from appservice.service import MatrixService
from appservice.wards import room_name
from fajma.config import Settings
from fajma.errors import FajmaError
from fajma.store import Records
from fajma.store.wards import Ward

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Change:
    """One thing to do in a space.

    Attributes:
        child: room id of a child that is set or, without content, taken out.
        content: of the child.
        invite: user id of who is invited.
        remove: user id of who is taken out.
    """

    child: str = ""
    content: Mapping[str, Any] | None = None
    invite: str = ""
    remove: str = ""


@dataclass(frozen=True, slots=True)
class SpacePlan:
    """What a ward's space must be.

    Attributes:
        creator: our user, the only one of ours in it.
        team: user ids of who finds the space.
        rooms: room ids of its children.
        server: our server name, by which rooms are joined.
    """

    creator: str
    team: Sequence[str]
    rooms: Sequence[str]
    server: str


def changes(now: RoomNow, plan: SpacePlan) -> list[Change]:
    """What must be done for a space to be as planned; nothing if it is. Pure.

    Who left it by himself is not asked again.
    """
    child = {"via": [plan.server]}
    return [
        *(
            Change(child=room, content=child)
            for room in plan.rooms
            if now.children.get(room) != child
        ),
        *(
            Change(child=room)
            for room, content in sorted(now.children.items())
            if content and room not in plan.rooms  # an empty content is no child
        ),
        *(
            Change(invite=user)
            for user in plan.team
            if not now.is_in(user) and now.members.get(user) != "ban" and user not in now.left
        ),
        *(
            Change(remove=user)
            for user, membership in sorted(now.members.items())
            if membership in {"join", "invite", "knock"} and user not in {plan.creator, *plan.team}
        ),
    ]


def space_request(*, name: str, creator: str, room_version: str) -> dict[str, Any]:
    """Body of ``POST /createRoom`` for a ward's space; nobody is invited yet.

    Args:
        name: shown in lists, stored in clear.
        creator: our user.
        room_version: e.g. ``"12"``.
    """
    named = room_version in CREATORS_NAMED_IN_ROOM
    return {
        "name": name,
        "preset": "private_chat",
        "visibility": "private",
        "room_version": room_version,
        "creation_content": {"type": "m.space", "m.federate": True},
        "power_level_content_override": {
            "users": {creator: BOT_POWER} if named else {},
            "users_default": 0,
            "events_default": BOT_POWER,
            "state_default": BOT_POWER,
            "events": {},
            "invite": BOT_POWER,
            "kick": BOT_POWER,
            "ban": BOT_POWER,
            "redact": BOT_POWER,
        },
        "initial_state": [
            {"type": GUESTS, "state_key": "", "content": {"guest_access": "forbidden"}},
            {"type": JOIN_RULES, "state_key": "", "content": {"join_rule": "invite"}},
        ],
    }


class Spaces:
    """Keeps the spaces of all wards."""

    def __init__(self, settings: Settings, records: Records, matrix: MatrixService) -> None:
        self._homeserver = settings.homeserver
        self._records = records
        self._matrix = matrix

    async def look(self) -> None:
        """Bring every space to what our records say; one that fails holds up no other."""
        rooms = await self._records.wards.open_rooms()
        for ward in await self._records.wards.all():
            if ward.room_id is None:
                continue
            try:
                await self._keep(ward, [ward.room_id, *rooms.get(ward.id, ())])
            except (MatrixError, FajmaError, TimeoutError, OSError) as error:
                log.warning("space_not_kept", ward=ward.id, error=type(error).__name__)

    async def _keep(self, ward: Ward, rooms: Sequence[str]) -> None:
        space_id = ward.space_id or await self._made(ward)
        plan = SpacePlan(
            self._matrix.host.mxid,
            [one.account for one in await self._records.people.team(ward.id)],
            rooms,
            self._homeserver.server_name,
        )
        for one in changes(await self._matrix.room_now(space_id), plan):
            if one.child:
                await self._matrix.set_plain_state(space_id, CHILD, one.content or {}, one.child)
            elif one.invite:
                await self._matrix.invite(space_id, one.invite)
            else:
                await self._matrix.remove(space_id, one.remove)

    async def _made(self, ward: Ward) -> str:
        """A new space; on record before anybody is invited, so that none is invited twice."""
        space_id = await self._matrix.create_bare_room(
            space_request(
                name=room_name(ward),
                creator=self._matrix.host.mxid,
                room_version=self._homeserver.room_version,
            )
        )
        await self._records.wards.has_space(ward.id, space_id)
        log.info("space_made", ward=ward.id, room=space_id)
        return space_id
