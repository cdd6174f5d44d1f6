"""A Matrix user of ours that speaks in encrypted rooms: its device, its identity, its sends."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, cast

import structlog
from aiohttp import ClientError, ClientResponse, ClientSession
from mautrix.api import HTTPAPI, Method, PathBuilder
from mautrix.api import Path as ApiPath
from mautrix.client import Client
from mautrix.crypto import PgCryptoStore
from mautrix.crypto.attachments import encrypt_attachment
from mautrix.errors import MatrixConnectionError, MatrixRequestError, MNotFound, MUserInUse
from mautrix.types import (
    ASToDeviceEvent,
    DeviceID,
    DeviceLists,
    DeviceOTKCount,
    StateEvent,
    SyncToken,
    UserID,
)

from appservice.cryptographer import Cryptographer, TrustChanged
from appservice.state import RoomState
from fajma.errors import BusyError, InputError, UnavailableError
from fajma.events import DELIVERY, ENCRYPTED, encrypted_state_key
from fajma.sealing import SiteKey
from fajma.store.away import is_outage
from fajma.store.pins import Audience, Pins
from fajma.trust import self_signed_devices

log = structlog.get_logger()

SYNC_FILTER: Final = (
    '{"room":{"timeline":{"limit":1,"types":[]},"state":{"types":[]},'
    '"ephemeral":{"types":[]},"account_data":{"types":[]}},"presence":{"types":[]},'
    '"account_data":{"types":[]}}'
)
"""A sync that brings only what encryption needs: to-device messages and device lists."""


SEND_TIMEOUT_S: Final = 20.0
"""How long a send may take before its outcome counts as unknown."""


@dataclass(frozen=True, slots=True)
class SealedState:
    """Room state, encrypted: where it belongs, and content of the ``m.room.encrypted`` event."""

    room_id: str
    outer_key: str
    content: dict[str, Any] = field(repr=False)


class Sender:
    """One encrypting user of the application service.

    Args:
        mxid: its Matrix user id.
        display_name: shown in the rooms.
        homeserver_url: client-server API.
        as_token: token of the application service.
        state: who is in which room.
        site_key: protects its keys at rest.
        recovery_key_file: where its recovery key is kept.
        pins: whose identity is which, by our records.
        audience: who belongs in which room, by our records.
        never_for: users that get no room keys of it.
        trust_changed: see ``Cryptographer``.
        looking: see ``Cryptographer``.
    """

    def __init__(
        self,
        mxid: str,
        *,
        display_name: str,
        homeserver_url: str,
        as_token: str,
        state: RoomState,
        site_key: SiteKey,
        recovery_key_file: Path,
        pins: Pins,
        audience: Audience,
        never_for: Collection[str],
        trust_changed: TrustChanged,
        looking: asyncio.Lock,
    ) -> None:
        self.mxid = mxid
        self._display_name = display_name
        self._recovery_key_file = recovery_key_file
        self._keys = PgCryptoStore(mxid, site_key.pickle_key(mxid), state.db)
        session = ClientSession(
            headers={"User-Agent": HTTPAPI.default_ua}, raise_for_status=_refuse_when_busy
        )
        self._api = HTTPAPI(
            homeserver_url, token=as_token, as_user_id=UserID(mxid), client_session=session
        )
        self.client = Client(mxid=UserID(mxid), api=self._api)
        self._state = state
        self.cryptographer = Cryptographer(
            self.client,
            self._keys,
            state,
            pins=pins,
            audience=audience,
            never_for=never_for,
            trust_changed=trust_changed,
            looking=looking,
        )

    async def start(self) -> None:
        """Have an account, a device with keys, and a signed identity. Idempotent.

        Raises:
            UnavailableError: the homeserver does not answer.
            InputError: the homeserver refuses us, or has lost our device.
        """
        try:
            await self._start()
        except MatrixConnectionError as error:
            raise UnavailableError(
                f"the homeserver at {self._api.base_url} does not answer: start it, or correct"
                " homeserver.url",
                code="homeserver_unavailable",
            ) from error
        except MatrixRequestError as error:
            if error.http_status >= 500:  # noqa: PLR2004
                raise UnavailableError(
                    f"the homeserver at {self._api.base_url} is in trouble (HTTP"
                    f" {error.http_status}): look at its log",
                    code="homeserver_in_trouble",
                ) from error
            raise InputError(
                f"the homeserver refuses {self.mxid} (HTTP {error.http_status}): is our"
                " registration file in its app_service_config_files?",
                code="homeserver_refuses",
            ) from error

    async def _start(self) -> None:
        await self._register()
        await self._keys.open()
        await self._keys.get_next_batch()  # or the next line would forget it
        device = await self._keys.get_device_id() or DeviceID(
            f"FAJMA{secrets.token_hex(5)}".upper()
        )
        await self._keys.put_device_id(device)
        await self.client.create_device_msc4190(device, self._display_name)
        await self.cryptographer.load()
        await self._keys.put_device_id(device)
        account = self.cryptographer.account
        if account is None or not account.shared:
            await self.cryptographer.share_keys()
        elif not await self._device_is_known():
            raise InputError(
                f"the homeserver no longer knows the device of {self.mxid}: was its database"
                " restored from an older backup? restore FAJMA's of the same time",
                code="device_lost",
            )
        await self.cryptographer.sign_ourselves(self._recovery_key_file)

    async def _register(self) -> None:
        localpart = self.mxid[1:].split(":", 1)[0]
        try:
            await self._api.request(
                Method.POST,
                ApiPath.v3.register,
                {
                    "type": "m.login.application_service",
                    "username": localpart,
                    "inhibit_login": True,
                },
            )
        except MUserInUse:
            return
        await self.client.set_displayname(self._display_name)

    async def _device_is_known(self) -> bool:
        answer = await self.cryptographer.ask_for_keys([self.client.mxid])
        listed = self_signed_devices(answer).get(self.client.mxid, {})
        return self.client.device_id in listed

    async def stop(self) -> None:
        """Close the connection to the homeserver."""
        await self._api.session.close()

    async def catch_up(self) -> None:
        """Take in what the homeserver did not deliver while we were away.

        Synapse drops to-device messages and device-list changes meant for an application service
        that does not answer; its ``/sync`` still has them. The token is kept after each answer was
        taken in, so a crash repeats rather than skips.
        """
        since = await self._keys.get_next_batch()
        while True:
            query = {"timeout": "0", "filter": SYNC_FILTER}
            if since:
                query["since"] = since
            answer = await self._api.request(Method.GET, ApiPath.v3.sync, query_params=query)
            for raw in answer.get("to_device", {}).get("events", []):
                raw |= {"to_user_id": self.mxid, "to_device_id": self.client.device_id}
                await self.to_device(cast("ASToDeviceEvent", ASToDeviceEvent.deserialize(raw)))
            changed = answer.get("device_lists", {}).get("changed", [])
            if changed:
                await self.cryptographer.refresh(changed)
            counts = answer.get("device_one_time_keys_count")
            if counts is not None:
                await self.cryptographer.handle_otk_count(DeviceOTKCount.deserialize(counts))
            since = answer["next_batch"]
            await self._keys.put_next_batch(SyncToken(since))
            if not answer.get("to_device", {}).get("events"):
                return

    async def send(
        self,
        room_id: str,
        event_type: str,
        content: Mapping[str, Any],
        *,
        transaction_id: str,
        is_delivery: bool = False,
    ) -> str:
        """Send an encrypted event into a room.

        The transaction id makes a repetition harmless: the homeserver remembers it for our device
        and answers with the event that it already has.

        Args:
            room_id: an encrypted room.
            event_type: of the event inside.
            content: plain.
            transaction_id: the same for every attempt.
            is_delivery: whether it stands beside the ciphertext too, for ``fajma.deliveries``.

        Returns:
            The event id.

        Raises:
            BusyError: the homeserver wants to be left alone for a while; it has not taken it.
            MatrixError, TimeoutError: it refused, or did not answer.
            UnavailableError: there is no room key now.
        """
        encrypted = await self.cryptographer.encrypt(room_id, event_type, content)
        if is_delivery:
            encrypted |= {DELIVERY: transaction_id}
        return await self._put(ApiPath.v3.rooms[room_id].send[ENCRYPTED][transaction_id], encrypted)

    async def messages(self, room_id: str, query: Mapping[str, str]) -> Mapping[str, Any]:
        """A page of a room as the homeserver has it, nothing decrypted.

        Raises:
            BusyError, MatrixError, TimeoutError: as ``send``.
        """
        async with asyncio.timeout(SEND_TIMEOUT_S):
            answer: Mapping[str, Any] = await self._api.request(
                Method.GET, ApiPath.v3.rooms[room_id].messages, query_params=dict(query)
            )
        return answer

    async def attach(self, data: bytes) -> dict[str, Any]:
        """Encrypt a file and give it to the homeserver, which sees its size and no more.

        Returns:
            ``file`` of a message that shows it, with the key to it: only for encrypted messages.

        Raises:
            BusyError, MatrixError, TimeoutError: as ``send``.
        """
        ciphertext, file = encrypt_attachment(data)
        async with asyncio.timeout(SEND_TIMEOUT_S):
            file.url = await self.client.upload_media(
                ciphertext, mime_type="application/octet-stream"
            )
        return dict(file.serialize())

    async def set_state(
        self, room_id: str, event_type: str, state_key: str, content: Mapping[str, Any]
    ) -> str:
        """Set encrypted room state (MSC4362).

        Returns:
            The event id.
        """
        sealed = await self.seal_state(room_id, event_type, state_key, content)
        return await self.put_state(sealed)

    async def seal_state(
        self, room_id: str, event_type: str, state_key: str, content: Mapping[str, Any]
    ) -> SealedState:
        """Encrypt room state without setting it yet.

        Raises:
            UnavailableError: there is no room key now.
        """
        encrypted = await self.cryptographer.encrypt(
            room_id, event_type, content, state_key=state_key
        )
        return SealedState(room_id, encrypted_state_key(event_type, state_key), encrypted)

    async def put_state(self, sealed: SealedState) -> str:
        """Set room state that was encrypted; there is no transaction id to repeat it under.

        Returns:
            The event id.

        Raises:
            BusyError, MatrixError, TimeoutError: as ``send``.
        """
        return await self._put(_state_path(sealed), sealed.content)

    async def is_set(self, sealed: SealedState) -> bool:
        """Whether the room state is exactly this: what became of a ``put_state``.

        Raises:
            BusyError, MatrixError, TimeoutError: as ``send``.
        """
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                answer = await self._api.request(Method.GET, _state_path(sealed))
        except MNotFound:
            return False
        return bool(answer.get("ciphertext") == sealed.content["ciphertext"])

    async def _put(self, path: PathBuilder, content: dict[str, Any]) -> str:
        async with asyncio.timeout(SEND_TIMEOUT_S):
            answer = await self._api.request(Method.PUT, path, content)
        return str(answer["event_id"])

    # What the homeserver tells us about encryption, forwarded by the application service.

    async def to_device(self, event: ASToDeviceEvent) -> None:
        """A message for our device."""
        try:
            await self.cryptographer.handle_as_to_device_event(event)
        except Exception as error:
            if is_outage(error):
                raise  # it comes only once: who brings it waits
            # One bad message must not stop the others.
            log.warning("to_device_refused", error=type(error).__name__)

    async def one_time_keys(
        self, counts: Mapping[UserID, Mapping[DeviceID, DeviceOTKCount]]
    ) -> None:
        """How many of our one-time keys are left."""
        count = counts.get(UserID(self.mxid), {}).get(self.client.device_id)
        if count is not None:
            await self.cryptographer.handle_otk_count(count)

    async def device_lists(self, lists: DeviceLists) -> None:
        """Somebody's devices changed."""
        await self.cryptographer.handle_device_lists(lists)

    async def membership(self, event: StateEvent) -> None:
        """Somebody came or went: the next message uses a new key."""
        await self.cryptographer.handle_member_event(event)


def _state_path(sealed: SealedState) -> PathBuilder:
    return ApiPath.v3.rooms[sealed.room_id].state[ENCRYPTED][sealed.outer_key]


async def _refuse_when_busy(response: ClientResponse) -> None:
    """Take out of a 429 what mautrix drops: how long to wait."""
    if response.status != HTTPStatus.TOO_MANY_REQUESTS:
        return
    try:
        body = await response.json()
    except (ValueError, ClientError):
        body = None
    raise BusyError.of(response.headers.get("Retry-After"), body)
