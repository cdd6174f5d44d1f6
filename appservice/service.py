"""The application service: what the homeserver tells us, and our two senders.

``@fajma`` opens consultations and speaks to people; ``@fajma-vitals`` carries telemetry, under a
name of its own so that a push rule can mute it. Alarms have a third account (``bots.alerts``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
from mautrix.api import Method
from mautrix.api import Path as ApiPath
from mautrix.appservice import AppService
from mautrix.client.state_store.asyncpg import PgStateStore
from mautrix.crypto import PgCryptoStore
from mautrix.errors import MatrixError, MForbidden, MNotFound
from mautrix.types import (
    ASToDeviceEvent,
    DeviceID,
    DeviceLists,
    DeviceOTKCount,
    EncryptedEvent,
    Event,
    EventType,
    Member,
    Membership,
    MemberStateEventContent,
    MessageEvent,
    PowerLevelStateEventContent,
    RoomID,
    StateEvent,
    UserID,
)
from mautrix.util.async_db import UpgradeTable

from appservice.cryptographer import ASKED_BY
from appservice.repairs import CREATE, Repair, RoomNow, What, repairs
from appservice.rooms import ENCRYPTION, Plan
from appservice.sender import Sender
from appservice.state import RoomState
from fajma.config import Settings, read_secret
from fajma.errors import BusyError, InputError, UnavailableError
from fajma.store import Records
from fajma.store.away import outlast
from fajma.tasks import end
from fajma.trust import DeviceKeys

log = structlog.get_logger()

APPSERVICE_ID: Final = "fajma"
LOCALPARTS: Final = ("fajma", "fajma-vitals", "fajma-alerts")
"""People and consultations; telemetry; alarms."""

AS_LOCALPART: Final = "fajma-as"
"""The account that every application service must have; ours says nothing."""

NOTICES_LOCALPART: Final = "fajma-avis"
"""Who writes the homeserver's notices (``system_mxid_localpart`` in our homeserver.yaml)."""

SCHEMAS: Final[tuple[UpgradeTable, ...]] = (PgStateStore.upgrade_table, PgCryptoStore.upgrade_table)
"""Schemas of mautrix that live in our database."""

RESYNC_RETRY_S: Final = 5.0

GREET_AFTER_S: Final = 3.0
"""How long after somebody joined he is greeted: a client refuses what comes before it has looked up
our device."""

PING_AGAIN_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Pauses after pings that failed; then we give up."""

AudienceChanged = Callable[[str], Awaitable[None]]
"""Called with a room id when somebody there can read from now on and could not before."""


StateChanged = Callable[[StateEvent], Awaitable[None]]
"""Called with each state event of a room in which one of our users is, or is invited to."""

Spoken = Callable[[str, str], Awaitable[None]]
"""Called with a room id and the sender of what was said there; what was said is not read."""

Joined = Callable[[str, str], Coroutine[Any, Any, None]]
"""Called with a room id and the user id of a person who joined."""


class MatrixService:
    """Our side of the homeserver.

    Attributes:
        host: the sender that opens consultations (``@fajma``).
        vitals: the sender of telemetry (``@fajma-vitals``).
        alerts_mxid: user id of the alert bot, which is not ours to speak for.
        web: the aiohttp application; the REST API adds its routes to it before ``start``.
    """

    def __init__(self, settings: Settings, records: Records) -> None:
        self._settings = settings
        self._records = records
        homeserver = settings.homeserver
        domain = homeserver.server_name
        host, vitals, self.alerts_mxid = (f"@{name}:{domain}" for name in LOCALPARTS)
        self._state = RoomState(records.store.db)
        as_token = read_secret(homeserver.as_token_file, purpose="application service's token")
        self._az = AppService(
            server=homeserver.url,
            domain=domain,
            as_token=as_token,
            hs_token=read_secret(homeserver.hs_token_file, purpose="homeserver's token"),
            bot_localpart=AS_LOCALPART,
            id=APPSERVICE_ID,
            state_store=self._state,
            ephemeral_events=True,
            encryption_events=True,
        )
        # One handler, called for one event after the other, so that nothing overtakes.
        self._az.synchronous_handlers = True
        self._az.event_handlers[:] = [self._on_event]
        self.web = self._az.app
        names = ((host, "FAJMA"), (vitals, "FAJMA constantes"))
        ours = {host, vitals, self.alerts_mxid}
        looking = asyncio.Lock()
        self.host, self.vitals = (
            Sender(
                mxid,
                display_name=display_name,
                homeserver_url=homeserver.url,
                as_token=as_token,
                state=self._state,
                site_key=records.site_key,
                recovery_key_file=_recovery_key_file(settings.secrets.directory, mxid),
                pins=records.pins,
                audience=records.audience,
                never_for=ours - {mxid},
                trust_changed=self._trust_changed,
                looking=looking,
            )
            for mxid, display_name in names
        )
        self._senders = (self.host, self.vitals)
        self._audience_changed: list[AudienceChanged] = []
        self._joined: list[Joined] = []
        self._state_changed: list[StateChanged] = []
        self._spoken: list[Spoken] = []
        self._listening = False
        self._started = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._az.to_device_handler = self._on_to_device
        self._az.otk_handler = self._on_one_time_keys
        self._az.device_list_handler = self._on_device_lists

    def on_audience_changed(self, callback: AudienceChanged) -> None:
        """Be told when a room has new readers (a join, a newly trusted device)."""
        self._audience_changed.append(callback)

    def on_joined(self, callback: Joined) -> None:
        """Be told of each person who joined."""
        self._joined.append(callback)

    def on_state(self, callback: StateChanged) -> None:
        """Be told of each change of a room's state; must return soon."""
        self._state_changed.append(callback)

    def on_spoken(self, callback: Spoken) -> None:
        """Be told that somebody says something; must return soon."""
        self._spoken.append(callback)

    @property
    def ours(self) -> frozenset[str]:
        """Our three users."""
        return frozenset({self.host.mxid, self.vitals.mxid, self.alerts_mxid})

    async def start(self) -> None:
        """Listen, start our users, and take in what was missed while we were away.

        Listening comes first: a homeserver that finds us silent waits longer and longer. What it
        delivers waits until our users are there.
        """
        homeserver = self._settings.homeserver
        try:
            await self._az.start(host=homeserver.listen_host, port=homeserver.listen_port)
        except OSError as error:
            raise UnavailableError(
                f"port {homeserver.listen_port} is in use: change homeserver.listen_port",
                code="port_in_use",
            ) from error
        self._listening = True
        for sender in self._senders:
            await sender.start()
        self._started.set()
        await self._be_heard()
        await self._resync_members()
        for sender in self._senders:
            await self._until_done(sender.catch_up, "not_caught_up")
        self._az.ready = True
        log.info("appservice_ready", port=homeserver.listen_port)

    async def stop(self) -> None:
        """Stop listening."""
        self._started.set()  # or what waits for our users would hold up the web server's end
        await end(self._tasks)
        if self._listening:
            await self._az.stop()
        for sender in self._senders:
            await sender.stop()

    async def create_room(self, request: Mapping[str, Any]) -> str:
        """Create a room as ``@fajma``; if the request invites ``@fajma-vitals``, bring it in.

        Returns:
            The room id.
        """
        room_id = await self.create_bare_room(request)
        await self._state.set_encryption_info(
            RoomID(room_id), _initial_state(request, "m.room.encryption")
        )
        if self.vitals.mxid in request["invite"]:
            await self.vitals.client.join_room_by_id(RoomID(room_id))
        await self._resync(room_id)
        return room_id

    async def create_bare_room(self, request: Mapping[str, Any]) -> str:
        """Create a room as ``@fajma`` in which nothing is said; returns its id."""
        answer = await self.host.client.api.request(
            Method.POST, ApiPath.v3.createRoom, dict(request)
        )
        return str(answer["room_id"])

    def is_local(self, user: str) -> bool:
        """Whether an account is on our homeserver."""
        return user.endswith(f":{self._settings.homeserver.server_name}")

    def refuse_ours(self, account: str) -> None:
        """Keep the accounts that FAJMA works with from being taken for a person's.

        Raises:
            InputError: it is one of them (``account_of_fajma``).
        """
        homeserver = self._settings.homeserver
        ours = (*LOCALPARTS, AS_LOCALPART, NOTICES_LOCALPART, homeserver.admin_account)
        if account in {f"@{name}:{homeserver.server_name}" for name in ours}:
            raise InputError(
                f"{account} is an account that FAJMA works with: name a person's account",
                code="account_of_fajma",
            )

    async def invite(self, room_id: str, user: str) -> None:
        """Invite somebody who belongs there; nothing if he is in the room or invited already.

        The homeserver is asked: what it tells us of who came and went arrives a moment later.
        """
        try:
            member = await self.host.client.get_state_event(
                RoomID(room_id), EventType.ROOM_MEMBER, UserID(user)
            )
        except MNotFound:
            member = None
        there = (Membership.JOIN, Membership.INVITE)
        if not isinstance(member, MemberStateEventContent) or member.membership not in there:
            await self.host.client.invite_user(RoomID(room_id), UserID(user))

    async def remove(self, room_id: str, user: str) -> None:
        """Take somebody out of a room; nothing if he is not in it."""
        try:
            await self.host.client.kick_user(RoomID(room_id), UserID(user))
        except MForbidden:
            log.info("not_in_room", room=room_id)

    async def has_joined(self, room_id: str, user: str) -> bool:
        """Whether somebody has accepted the invitation, by the homeserver's word."""
        return await self._state.is_joined(RoomID(room_id), UserID(user))

    async def is_member(self, room_id: str, user: str) -> bool:
        """Whether somebody is in a room now; the homeserver is asked, not what it told us before.

        Raises:
            MatrixError: it does not say, for example because we are not in the room any more.
        """
        try:
            member = await self.host.client.get_state_event(
                RoomID(room_id), EventType.ROOM_MEMBER, UserID(user)
            )
        except MNotFound:
            return False
        return isinstance(member, MemberStateEventContent) and member.membership == Membership.JOIN

    async def strangers(self, room_id: str) -> frozenset[str]:
        """Who is in a room of ours, by the homeserver's word, and does not belong there."""
        members = {str(user) for user in await self._state.get_members(RoomID(room_id))}
        return frozenset(members - await self._records.audience.of(room_id) - self.ours)

    # --- what a room is --------------------------------------------------------------------------

    async def room_now(self, room_id: str) -> RoomNow:
        """A room's state, by the homeserver's word.

        Raises:
            UnavailableError: ``@fajma`` is not in it (``bot_not_in_room``).
            MatrixError: the homeserver does not answer, or refuses.
        """
        return RoomNow.of(await self._state_events(room_id))

    async def _state_events(self, room_id: str) -> Sequence[Mapping[str, Any]]:
        try:
            answer: Sequence[Mapping[str, Any]] = await self.host.client.api.request(
                Method.GET, ApiPath.v3.rooms[room_id].state
            )
        except (MForbidden, MNotFound) as error:
            raise _not_in_room() from error
        return answer

    async def mend(self, room_id: str, plan: Plan) -> Sequence[Repair]:
        """See that a room is as planned.

        Returns:
            What had to be mended.

        Raises:
            UnavailableError: ``@fajma`` is not in it, or may not do what it must
                (``bot_without_power``).
            MatrixError: the homeserver does not answer, or refuses.
        """
        now = await self.room_inside(room_id)
        found = repairs(now, plan)
        for one in found:
            await self._repair(room_id, one)
        return found

    async def room_inside(self, room_id: str) -> RoomNow:
        """A room's state, with ``@fajma`` in it again if it was taken out.

        To whoever left, a homeserver may show the room as it was then.

        Raises:
            UnavailableError: it could not be brought back (``bot_not_in_room``).
            MatrixError: the homeserver does not answer, or refuses.
        """
        try:
            now = await self.room_now(room_id)
        except BusyError:
            raise
        except UnavailableError:
            pass
        else:
            if now.members.get(self.host.mxid) == "join":
                return now
        await self._bring_host_back(room_id)
        return await self.room_now(room_id)

    async def _repair(self, room_id: str, one: Repair) -> None:
        try:
            if one.content is not None:
                await self.set_plain_state(room_id, one.event_type, one.content)
            elif one.what is not What.BOT:
                await self.host.client.kick_user(RoomID(room_id), UserID(one.account))
            else:
                await self.invite(room_id, one.account)
                if one.account == self.vitals.mxid:
                    await self.vitals.client.join_room_by_id(RoomID(room_id))
        except MForbidden as error:
            raise UnavailableError(
                "@fajma has lost its power in a room of ours: end the consultation and open a new"
                " one",
                code="bot_without_power",
            ) from error

    async def _bring_host_back(self, room_id: str) -> None:
        """``@fajma-vitals`` may invite, where it is.

        Raises:
            UnavailableError: it could not (``bot_not_in_room``).
        """
        try:
            await self.vitals.client.invite_user(RoomID(room_id), UserID(self.host.mxid))
            await self.host.client.join_room_by_id(RoomID(room_id))
        except MForbidden as error:
            raise _not_in_room() from error
        log.warning("bot_brought_back", room=room_id)

    async def set_plain_state(
        self, room_id: str, event_type: str, content: Mapping[str, Any], state_key: str = ""
    ) -> None:
        """Set state that clients and homeservers must read: in clear."""
        await self.host.client.api.request(
            Method.PUT, ApiPath.v3.rooms[room_id].state[event_type][state_key], dict(content)
        )

    async def join(self, room_id: str) -> None:
        """``@fajma`` accepts an invitation; who is in the room is known afterwards."""
        await self.host.client.join_room_by_id(RoomID(room_id))
        await self._resync(room_id)

    async def decline(self, room_id: str) -> None:
        """``@fajma`` declines an invitation."""
        await self.host.client.leave_room(RoomID(room_id))

    async def creation_of(self, room_id: str) -> Mapping[str, Any]:
        """The event by which a room was made.

        Raises:
            UnavailableError: as ``room_now``.
            MatrixError: the homeserver does not answer, or refuses.
        """
        for event in await self._state_events(room_id):
            if event.get("type") == CREATE:
                return event
        raise UnavailableError("a room without its beginning", code="bot_not_in_room")

    async def move_into(self, room_id: str, plan: Plan) -> None:
        """A room of ours was upgraded to this one: be in it, and have it as planned.

        Raises:
            MatrixError, UnavailableError: as ``mend``; it can be done again.
        """
        now = await self.room_now(room_id)
        encryption = now.state.get(ENCRYPTION)
        if encryption is not None:
            await self._state.set_encryption_info(RoomID(room_id), dict(encryption))
        await self.mend(room_id, plan)
        for user in plan.people:
            await self.invite(room_id, user)
        await self._resync(room_id)

    async def set_power(self, room_id: str, user: str, level: int) -> None:
        """Give somebody his power in a room."""
        levels = await self.host.client.get_state_event(
            RoomID(room_id), EventType.ROOM_POWER_LEVELS
        )
        if not isinstance(levels, PowerLevelStateEventContent):
            raise UnavailableError("the room shows no power levels", code="no_power_levels")
        if levels.users.get(UserID(user)) == level:
            return
        levels.users[UserID(user)] = level
        await self.host.client.send_state_event(
            RoomID(room_id), EventType.ROOM_POWER_LEVELS, levels
        )

    async def trusted_devices(self, user: str) -> Mapping[str, DeviceKeys]:
        """The devices of somebody that get our keys, looked up afresh; by device id.

        Raises:
            MatrixError: the homeserver does not answer, or refuses.
        """
        await self.vitals.cryptographer.look_at([user])
        return await self._records.pins.trusted(user, asked_by=ASKED_BY)

    async def trust_changed(self, user: str) -> None:
        """An identity was accepted or revoked: look at the person's devices afresh."""
        for sender in self._senders:
            await sender.cryptographer.refresh([user])
        await self._trust_changed(UserID(user))

    async def _be_heard(self) -> None:
        """Have the homeserver deliver to us now: once it gave up it waits longer and longer.

        Synapse also answers a ping with an error when it is just trying again by itself (it
        cancels a timer that has already gone off), so one refusal says nothing.

        Raises:
            UnavailableError: it cannot reach us.
        """
        for pause in PING_AGAIN_S:
            try:
                await self._az.ping_self()
            except MatrixError as error:
                log.warning("ping_failed", error=type(error).__name__, retry_s=pause)
                await asyncio.sleep(pause)
            else:
                return
        raise UnavailableError(
            "the homeserver cannot reach us: compare url in its registration of fajma with"
            " homeserver.listen_host and listen_port",
            code="homeserver_does_not_reach_us",
        )

    async def _resync_members(self) -> None:
        """Refresh who is in our rooms and their devices; an empty list would share no keys."""
        people: set[str] = set()
        for room_id in await self._records.audience.rooms():
            try:
                people |= await self._resync(room_id)
            except Exception as error:  # noqa: BLE001 - one room must not hold up the others
                log.warning("room_not_resynced", room=room_id, error=type(error).__name__)
                self._resync_soon(room_id)
        for sender in self._senders:
            await sender.cryptographer.refresh(people)

    async def _resync(self, room_id: str) -> set[str]:
        members: dict[UserID, Member | MemberStateEventContent] = {
            UserID(event.state_key): event.content
            for event in await self.host.client.get_members(RoomID(room_id))
            if isinstance(event.content, MemberStateEventContent)
        }
        before = set(await self._state.get_members(RoomID(room_id)))
        await self._state.set_members(RoomID(room_id), members)
        now = set(await self._state.get_members(RoomID(room_id)))
        if before - now:  # somebody left while we were away: he must not read what comes
            for sender in self._senders:
                await sender.cryptographer.crypto_store.remove_outbound_group_session(
                    RoomID(room_id)
                )
        return {str(user) for user in now}

    async def _on_to_device(self, event: ASToDeviceEvent) -> None:
        await self._started.wait()
        for sender in self._senders:
            if event.to_user_id == sender.mxid:
                await outlast(partial(sender.to_device, event), what="to_device")

    async def _on_one_time_keys(self, counts: dict[UserID, dict[DeviceID, DeviceOTKCount]]) -> None:
        await self._started.wait()
        for sender in self._senders:
            await outlast(partial(sender.one_time_keys, counts), what="one_time_keys")

    async def _on_device_lists(self, lists: DeviceLists) -> None:
        await self._started.wait()
        for sender in self._senders:
            self._in_background(outlast(partial(sender.device_lists, lists), what="device_lists"))

    async def _on_event(self, event: Event) -> None:
        if not isinstance(event, StateEvent):
            said = isinstance(event, MessageEvent | EncryptedEvent)
            if said and event.sender not in self.ours:
                for spoken in self._spoken:
                    self._in_background(spoken(str(event.room_id), str(event.sender)))
            return
        await self._started.wait()
        for changed in self._state_changed:
            self._in_background(outlast(partial(changed, event), what="state"))
        try:
            await self._state.update_state(event)
            if event.type == EventType.ROOM_MEMBER:
                for sender in self._senders:
                    await sender.membership(event)
                if event.content.membership == Membership.JOIN:
                    await self._welcome_reader(str(event.room_id), UserID(event.state_key))
        except Exception as error:  # noqa: BLE001 - the events after it still count
            # Who left must not stay in our list of readers: look at the room as it is.
            log.error("room_event_not_handled", error=type(error).__name__)
            self._resync_soon(str(event.room_id))

    async def _welcome_reader(self, room_id: str, user: UserID) -> None:
        """Somebody joined: from now on there is a key for him.

        Who had no device when he was invited got no key then, and the homeserver does not tell us
        of the devices of people who are only invited. So the next event makes a new key, for which
        the devices of everybody are looked up.
        """
        for sender in self._senders:
            await sender.cryptographer.crypto_store.remove_outbound_group_session(RoomID(room_id))
        await self._tell(room_id)
        if user not in self.ours:
            for callback in self._joined:
                self._in_background(outlast(partial(callback, room_id, str(user)), what="joined"))

    def _resync_soon(self, room_id: str) -> None:
        """Look at a room until it worked; until then nothing is sent there."""
        if room_id not in self._state.unsure:
            self._state.unsure.add(room_id)
            self._in_background(self._resync_until_done(room_id))

    async def _resync_until_done(self, room_id: str) -> None:
        people: set[str] = set()

        async def look() -> None:
            people.update(await self._resync(room_id))

        await self._until_done(look, "room_not_resynced")
        self._state.unsure.discard(room_id)
        for sender in self._senders:
            await sender.cryptographer.refresh(people)
        await self._tell(room_id)

    async def _until_done(self, work: Callable[[], Awaitable[None]], trouble: str) -> None:
        """Do what must succeed once, through whatever ails homeserver or database."""
        while True:
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - see above
                log.warning(trouble, error=type(error).__name__, retry_s=RESYNC_RETRY_S)
                await asyncio.sleep(RESYNC_RETRY_S)
            else:
                return

    async def _trust_changed(self, user: UserID) -> None:
        log.info("trusted_devices_changed", user=user)
        for sender in self._senders:
            await sender.cryptographer.forget_sessions_with(user)
        for room_id in await self._state.find_shared_rooms(user):
            await self._tell(room_id)

    async def _tell(self, room_id: str) -> None:
        for callback in self._audience_changed:
            await callback(room_id)

    def _in_background(self, work: Awaitable[None]) -> None:
        async def guarded() -> None:
            try:
                await work
            except Exception as error:  # noqa: BLE001 - reported; the next change is another try
                log.error("background_work_failed", error=type(error).__name__)

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _not_in_room() -> UnavailableError:
    return UnavailableError(
        "@fajma was taken out of a room of ours: end its consultation and open a new one",
        code="bot_not_in_room",
    )


def _recovery_key_file(directory: Path, mxid: str) -> Path:
    return directory / f"{mxid[1:].split(':', 1)[0]}.recovery-key"


def _initial_state(request: Mapping[str, Any], event_type: str) -> dict[str, Any]:
    return next(
        dict(entry["content"]) for entry in request["initial_state"] if entry["type"] == event_type
    )
