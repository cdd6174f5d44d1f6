"""A Matrix client that is cross-signed and talks only to cross-signed devices.

matrix-nio encrypts, but it knows nothing of cross-signing, believes much of what a server or a
stranger sends, and its sharing of room keys has races. ``SignedClient`` closes these gaps:

* It signs its own device with an identity of its account (``bots.alerts.identity``).
* An answer to ``/keys/query`` reaches nio only through ``_CheckedKeys``: what is malformed is
  left out, and in the same step each device is marked as verified (``fajma.store.pins`` names it,
  with exactly its keys) or blacklisted. There is no third state, so nio never meets a device that
  nobody judged.
* Keys go only to people who belong in the room by our own records, whoever the homeserver adds.
* Before each message the set of devices which have the room key is compared with the set that
  should have it (``_is_current``); when they differ, a new key is made and shared.
* Room keys are never forwarded, and no interactive verification is answered.
* What cannot be decrypted or understood is ignored; it never ends the client.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar
from urllib.parse import quote, urlencode
from uuid import uuid4

from aiohttp import ClientError, ClientResponse, ContentTypeError
from nio import (
    Api,
    AsyncClient,
    AsyncClientConfig,
    BadEvent,
    Event,
    JoinedMembersResponse,
    KeysClaimResponse,
    KeysQueryError,
    KeysQueryResponse,
    KeysUploadResponse,
    KeyVerificationEvent,
    MegolmEvent,
    RoomKeyRequest,
    RoomKeyRequestCancellation,
    RoomMemberEvent,
    RoomSendResponse,
    ShareGroupSessionResponse,
    SyncResponse,
    UnknownBadEvent,
)
from nio.crypto import OlmDevice
from nio.exceptions import EncryptionError
from nio.store import SqliteStore
from vodozemac import MegolmMessage

from bots.alerts.identity import Identity, OwnKeys, require
from fajma.deliveries import left_alone_s
from fajma.errors import BugError, BusyError, DecodeError, InputError, UnavailableError
from fajma.events import DELIVERY, RING
from fajma.store.away import AGAIN_S, is_outage
from fajma.store.pins import Audience, Pins
from fajma.trust import (
    CrossSigningSeeds,
    DeviceKeys,
    SignedIdentity,
    self_signed_devices,
    signed_devices,
    signed_one_time_key,
)

_log = logging.getLogger(__name__)

_REMOTE_TIMEOUT_MS: Final = 3_000
"""How long our homeserver may wait for another hospital's keys; an alarm must not wait longer."""

_RETRY_REMOTE_S: Final = 60.0
"""After a user's or device's keys could not be had, how long until we ask again."""

_BLIP_PAUSES_S: Final = (0.3, 0.7)
"""Pauses before our homeserver is asked again that failed over what a message needs; then the
message goes without it, to whoever can read it."""

_CLAIM_TIMEOUT_S: Final = _REMOTE_TIMEOUT_MS / 1000 + 5
"""How long it may take to answer about one-time keys."""

_FULL_SYNC_TIMEOUT_S: Final = 300.0
"""nio sets no limit for a first sync; a stalled connection would hang for ever."""

_TOO_MANY: Final = 429

_LONGEST_PAUSE_S: Final = 60.0
"""Longest pause between two attempts to reach a homeserver that is down."""

_SHARE_ATTEMPTS: Final = 8
"""How often devices are looked up or a room key is shared, because who may read changes meanwhile,
before one message."""

_SYNC_FILTER: Final = {
    # We use none of these; nio cannot read every malformed receipt.
    "presence": {"types": []},
    "account_data": {"types": []},
    "room": {
        "ephemeral": {"types": []},
        "account_data": {"types": []},
        "timeline": {"limit": 50},
    },
}

_MALFORMED: Final = (
    # What nio and vodozemac raise over content that somebody else wrote. Errors of the crypto
    # store are not among them and are never hidden.
    AssertionError,
    AttributeError,
    EncryptionError,
    LookupError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)

_CLIENT: Final = "/_matrix/client/v3"

_T = TypeVar("_T")

OnGap = Callable[[str, str], Awaitable[None]]
"""Called with a room id, and a mark that tells the gap from others of the room."""


@dataclass(frozen=True, slots=True)
class StateEvent:
    """A decrypted state event (MSC4362) whose room, key and sending device were checked.

    Attributes:
        type: e.g. ``com.fajma.vitals``.
        state_key: the inner one.
        content: as sent, not validated.
        sender: user id; the session that encrypted the event belongs to a device of this user.
        signed: whether that device is signed by its user's identity, as known now.
    """

    type: str
    state_key: str
    content: Mapping[str, Any] = field(repr=False)
    sender: str
    signed: bool


@dataclass
class _CheckedKeys(KeysQueryResponse):  # type: ignore[misc]
    """An answer to ``/keys/query``: usable devices for nio, who signed what, and who gets keys.

    ``trusted`` are, by user id and device id, the devices that get room keys.
    """

    raw: Mapping[str, Any] = field(default_factory=dict)
    identities: Mapping[str, SignedIdentity] = field(default_factory=dict)
    trusted: Mapping[str, Mapping[str, DeviceKeys]] = field(default_factory=dict)


class SignedClient(AsyncClient):  # type: ignore[misc]
    """One device of one account.

    Add nio callbacks, ``await start_session(...)``, then ``await run_sync()``. A callback may see
    an event again after an interruption, never not at all. Events that a callback gets decrypted
    have ``event.verified`` true only when a device signed by its user's identity sent them; a
    ``state_key`` in their ``source`` was compared with the outer one; their ``envelope`` is the
    ciphertext that they came in, their ``message_index`` the place of it in its Megolm session.

    Args:
        homeserver: base URL, e.g. ``http://127.0.0.1:8008``.
        user_id: full user id, e.g. ``@fajma-alerts:example.org``.
        store_dir: directory of this device alone, made with mode 0700. Holds ``session.json``,
            ``pickle-key``, ``recovery-key`` and the crypto store ``crypto.db``.
        device_name: shown to people in their list of devices.
        pins: whose identity is which; a user who shows another one gets no keys. Without it any
            signed device is trusted (a person's own client, which follows its homeserver).
        audience: who belongs in which room; without it everybody who is in it.
        request_timeout_s: how long the homeserver may take to answer what is not a sync.
        tells_when_busy: whether HTTP 429 is raised as ``BusyError``, for who then does something
            else, instead of waiting here and trying again up to five times.
    """

    config: AsyncClientConfig
    next_batch: str

    def __init__(
        self,
        homeserver: str,
        user_id: str,
        store_dir: Path,
        *,
        device_name: str = "FAJMA",
        pins: Pins | None = None,
        audience: Audience | None = None,
        request_timeout_s: float = 60.0,
        tells_when_busy: bool = False,
    ) -> None:
        # nio logs contents and user names, even in warnings; peewee logs every statement.
        logging.getLogger("nio").setLevel(logging.CRITICAL)
        logging.getLogger("peewee").setLevel(logging.WARNING)
        super().__init__(
            homeserver.rstrip("/"),
            user_id,
            device_id=None,
            store_path=str(store_dir),
            config=AsyncClientConfig(
                store=SqliteStore,
                store_name="crypto.db",
                # Failing at once leaves it to the caller to wait; see run_sync.
                max_timeouts=0,
                max_limit_exceeded=5,
                request_timeout=request_timeout_s,
            ),
        )
        self._tells_when_busy = tells_when_busy
        self.ready = asyncio.Event()
        """Set after the first complete sync of ``run_sync``."""
        self._directory = store_dir
        self._device_name = device_name
        self._pinned: dict[str, str] = {}  # of our own account, which is known for certain
        self._pins = pins
        self._audience = audience
        self._belong: dict[str, frozenset[str]] = {}
        self._epochs: dict[str, int] = {}
        self._query_lock = asyncio.Lock()
        self._room_locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._ask_again_at: dict[str, float] = {}
        self._on_gap: list[OnGap] = []
        self._claim_again_at: dict[tuple[str, str], float] = {}
        self._claim_failed = False

    # -----------------------------------------------------------------------------------------
    # Session

    async def start_session(self, password: str | None = None) -> None:
        """Log in or resume, publish our keys, and make sure that our device is signed.

        May be called again after any failure.

        Args:
            password: needed the first time only; afterwards the stored session is resumed.

        Raises:
            InputError: no session and no password, a refused login, or an identity that we cannot
                use; the message says what to do.
            UnavailableError: the homeserver does not answer.
        """
        await self._identity().start(password)

    def on_gap(self, callback: OnGap) -> None:
        """Be told when more was written in a room than a sync brings, so that some was not read.

        As with events, a gap may be told again after an interruption, never not at all.
        """
        self._on_gap.append(callback)

    async def close(self) -> None:
        """Close the connection and the crypto store; the session can be resumed later."""
        await super().close()
        if self.store:
            self.store.database.close()

    def _identity(self) -> Identity:
        return Identity(
            self,
            self._directory,
            device_name=self._device_name,
            pinned=self._pinned,
            request=self._request,
            own_keys=self._own_keys,
        )

    # The old names of what moved to Identity; they go once no test calls them.

    async def _call(self, method: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return await self._identity().call(method, path, body)

    async def _account_data(self, kind: str) -> dict[str, Any] | None:
        return await self._identity().account_data(kind)

    async def _stored_seeds(self, key_id: str, recovery: bytes) -> CrossSigningSeeds:
        return await self._identity().stored_seeds(key_id, recovery)

    async def judge_again(self, user: str) -> bool:
        """Look at a person's devices now, whatever is known of them.

        Returns:
            Whether the homeserver told of them; otherwise an older look counts on.

        Raises:
            UnavailableError: the homeserver does not answer, or refuses.
        """
        async with self._query_lock:
            answer = await self._ask_about({user})
        if not isinstance(answer, _CheckedKeys):
            raise UnavailableError(
                "The homeserver refused to tell of somebody's devices; trying again later.",
                code="keys_query_refused",
            )
        return user in answer.device_keys

    async def _own_keys(self) -> OwnKeys:
        """Ask for our own keys now, whatever happened to an earlier attempt."""
        async with self._query_lock:
            keys = require(await self._ask_about({self.user_id}), _CheckedKeys)
        masters = keys.raw.get("master_keys")
        return OwnKeys(
            published=isinstance(masters, dict) and masters.get(self.user_id) is not None,
            identity=keys.identities.get(self.user_id),
            device=keys.device_keys.get(self.user_id, {}).get(self.device_id),
        )

    # -----------------------------------------------------------------------------------------
    # Requests

    async def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> tuple[int, dict[str, Any]]:
        """A request that nio has no method for: HTTP status and answer (empty if no object)."""
        response = await self._ask(method, path, body, timeout_s=timeout_s)
        try:
            answer = await response.json(content_type=None)
        except ValueError:
            answer = {}
        except (ClientError, TimeoutError, OSError) as error:
            raise _no_answer() from error
        return response.status, answer if isinstance(answer, dict) else {}

    async def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        *,
        timeout_s: float | None = None,
    ) -> ClientResponse:
        """A request below ``/_matrix/client/v3/`` as our account."""
        response: ClientResponse = await self.send(
            method,
            f"{_CLIENT}/{path}",
            None if body is None else json.dumps(body),
            {"Authorization": f"Bearer {self.access_token}", "Content-Type": "application/json"},
            timeout=timeout_s,
        )
        return response

    async def send(self, *args: Any, **kwargs: Any) -> Any:
        """As nio's, but raises ``UnavailableError`` when the homeserver does not answer."""
        if kwargs.get("timeout") == 0:
            kwargs["timeout"] = _FULL_SYNC_TIMEOUT_S
        elif len(args) > 5 and args[5] == 0:  # noqa: PLR2004 - nio passes it by position
            args = (*args[:5], _FULL_SYNC_TIMEOUT_S, *args[6:])
        try:
            return await super().send(*args, **kwargs)
        except (ClientError, TimeoutError, OSError) as error:
            raise _no_answer() from error

    async def parse_body(self, transport_response: ClientResponse) -> Any:
        """As nio's, which takes an answer that is no JSON (a proxy's error page) for a success."""
        try:
            body = await transport_response.json()
        except (ContentTypeError, ValueError) as error:
            raise _nonsense() from error
        # Everything answers with an object, but the state of a room, which is a list.
        if not isinstance(body, dict) and not (isinstance(body, list) and body):
            raise _nonsense()
        return body

    async def create_matrix_response(self, *args: Any, **kwargs: Any) -> Any:
        """As nio's, but an answer that breaks off or makes no sense is ``UnavailableError``.

        An answer 429 is a ``BusyError`` for who wants to know.
        """
        try:
            answer = kwargs.get("transport_response")
            if self._tells_when_busy and answer is not None and answer.status == _TOO_MANY:
                raise await _busy(answer)
            return await super().create_matrix_response(*args, **kwargs)
        except (ClientError, TimeoutError, OSError) as error:
            raise _no_answer() from error
        except _MALFORMED as error:
            raise _nonsense() from error

    # -----------------------------------------------------------------------------------------
    # Whose devices get keys

    @property
    def should_query_keys(self) -> bool:
        """Whether devices of somebody changed and it is time to ask for them."""
        return bool(self._due_for_query())

    def _due_for_query(self) -> set[str]:
        now = time.monotonic()
        return {u for u in self.users_for_key_query if self._ask_again_at.get(u, 0) <= now}

    async def keys_query(self) -> KeysQueryResponse | KeysQueryError:
        """Ask for the devices of all users that changed, and decide which of them get keys."""
        async with self._query_lock:  # an older answer must not overtake a newer one
            return await self._ask_about(self._due_for_query())

    async def _ask_for_changes(self) -> None:
        """The same before a message, which must not wait for somebody of whom we are not told."""
        for pause_s in _BLIP_PAUSES_S:
            if isinstance(await self.keys_query(), _CheckedKeys):
                return
            await asyncio.sleep(pause_s)
        for user in self._due_for_query():
            async with self._query_lock:
                answer = await self._ask_about({user})
            if not isinstance(answer, _CheckedKeys):
                self._ask_again_at[user] = time.monotonic() + _RETRY_REMOTE_S

    async def _ask_about(self, users: set[str]) -> KeysQueryResponse | KeysQueryError:
        """Ask for devices and take in what is told; the caller has the lock."""
        if not users:
            return _CheckedKeys(device_keys={}, failures={})
        # Taken out now, so that a change told while we ask is asked about again.
        self.olm.users_for_key_query -= users
        answered: set[str] = set()
        try:
            answer = await self._ask_for_keys(users)
            if isinstance(answer, _CheckedKeys):
                await self.receive_response(answer)
                answered = users & answer.device_keys.keys()
        finally:
            self.olm.users_for_key_query |= users - answered
        for user in answered:
            self._ask_again_at.pop(user, None)
        if isinstance(answer, _CheckedKeys):
            # Somebody's homeserver is away: go on with what we know of them.
            again = time.monotonic() + _RETRY_REMOTE_S
            self._ask_again_at.update(dict.fromkeys(users - answered, again))
        return answer

    async def _ask_for_keys(self, users: Collection[str]) -> KeysQueryResponse | KeysQueryError:
        """The devices of users, judged by the pins; who is met for the first time is pinned."""
        asked = {"device_keys": {user: [] for user in users}, "timeout": _REMOTE_TIMEOUT_MS}
        status, raw = await self._request("POST", _with_timeout("keys/query"), asked)
        if status != 200 or not isinstance(raw.get("device_keys"), dict):  # noqa: PLR2004
            return KeysQueryError.from_dict(raw)
        identities = signed_devices(raw, self._pinned)
        trusted = {user: dict(one.devices) for user, one in identities.items()}
        if self._pins is not None:
            others = set(users) - {self.user_id}
            judged = await self._pins.judge(raw, asked_by=self.user_id, about=others)
            trusted = judged | {self.user_id: trusted.get(self.user_id, {})}
        told = self_signed_devices(raw)
        return _CheckedKeys(
            device_keys={user: told[user] for user in users if user in told},
            failures={},
            raw=raw,
            identities=identities,
            trusted=trusted,
        )

    async def _look_at_records(self, room_id: str) -> None:
        """Take in what our own records say of who may read; the next key follows it."""
        if self._audience is None:
            return
        epoch = await self._audience.epoch()  # first: what changes from here on is another one
        self._belong[room_id] = await self._audience.of(room_id)
        if self._epochs.get(room_id) != epoch:
            # An identity may have been accepted or revoked: judge everybody's devices afresh.
            readers = self._readers(room_id)
            await self._refuse_by_records(readers)
            self.olm.users_for_key_query |= readers
            self._epochs[room_id] = epoch

    async def _refuse_by_records(self, users: Iterable[str]) -> None:
        """Refuse lost devices and replaced identities, also if the homeserver says nothing of them.

        While it keeps its answer back we go on with what we know of people's devices; what our own
        records say must not wait for it.
        """
        if self._pins is None:
            return
        for user in users:
            trusted = await self._pins.trusted(user, asked_by=self.user_id)
            for device in self.device_store.active_user_devices(user):
                if device.verified and trusted.get(device.id) != _keys(device):
                    self.blacklist_device(device)

    def _readers(self, room_id: str) -> set[str]:
        """Who is in a room and belongs there."""
        users = set(self.rooms[room_id].users)
        return users if self._audience is None else users & self._belong.get(room_id, frozenset())

    def _handle_olm_response(self, response: Any) -> None:
        if isinstance(response, ShareGroupSessionResponse):
            return  # _share keeps the account; nio would credit it to a newer key
        if isinstance(response, KeysQueryResponse):
            if not isinstance(response, _CheckedKeys):
                raise BugError("Device keys must be checked before use.", code="unchecked_keys")
            told_meanwhile = set(self.olm.users_for_key_query)
            super()._handle_olm_response(response)
            self.olm.users_for_key_query |= told_meanwhile
            self._decide(response)
        elif isinstance(response, KeysClaimResponse):
            # One at a time: a device with an absurd key must not keep others from getting theirs.
            with self._one_commit():
                for user_id, devices in response.one_time_keys.items():
                    for device_id, key in devices.items():
                        one = KeysClaimResponse({user_id: {device_id: key}}, {})
                        _attempt(super()._handle_olm_response, one)
        else:
            super()._handle_olm_response(response)

    def _decide(self, keys: _CheckedKeys) -> None:
        """Give each device of an answer its place: verified or blacklisted."""
        with self._one_commit():
            for user_id, listed in keys.device_keys.items():
                self._decide_on(user_id, listed, keys.trusted.get(user_id, {}))

    def _decide_on(
        self, user_id: str, listed: Iterable[str], trusted: Mapping[str, DeviceKeys]
    ) -> None:
        for device_id in listed:
            device = self.device_store[user_id].get(device_id)
            if device is None:
                continue  # our own
            # nio keeps the first key of a device id for ever, so compare the keys too.
            signed = trusted.get(device_id) == _keys(device)
            if device.deleted and signed:
                # It was missing from an earlier answer; nio would never take it back.
                device.deleted = False
                self.store.save_device_keys({user_id: {device_id: device}})
            if signed:
                self.verify_device(device)
            else:
                self.blacklist_device(device)

    def _one_commit(self) -> AbstractContextManager[object]:
        """One commit of the crypto store for many devices; each costs 5 to 20 ms on a disk."""
        commit: AbstractContextManager[object] = self.store.database.atomic()
        return commit

    def _devices_of(self, users: Iterable[str]) -> list[OlmDevice]:
        """All present devices of users, except ours; those that nobody judged are blacklisted."""
        devices = [
            device
            for user in users
            for device in self.device_store.active_user_devices(user)
            if device.id != self.device_id
        ]
        for device in devices:
            if not (device.verified or device.blacklisted):
                self.blacklist_device(device)  # we stopped between storing and judging it
        return devices

    def get_missing_sessions(self, room_id: str) -> dict[str, list[str]]:
        """Signed devices in a room that we cannot encrypt to yet, by user."""
        missing: dict[str, list[str]] = {}
        for device in self._devices_of(self._readers(room_id)):
            if device.verified and not self.olm.session_store.get(device.curve25519):
                missing.setdefault(device.user_id, []).append(device.id)
        return missing

    async def keys_claim(self, user_set: Mapping[str, Iterable[str]]) -> KeysClaimResponse:
        """Claim one-time keys, without waiting long for another hospital's homeserver.

        nio would read the answer as a whole, in which anybody can have published nonsense.
        """
        wanted = {
            user: dict.fromkeys(devices, "signed_curve25519") for user, devices in user_set.items()
        }
        body = {"one_time_keys": wanted, "timeout": _REMOTE_TIMEOUT_MS}
        self._claim_failed = True
        status, answer = await self._request(
            "POST", _with_timeout("keys/claim"), body, timeout_s=_CLAIM_TIMEOUT_S
        )
        if status == 200 and isinstance(answer.get("one_time_keys"), dict):  # noqa: PLR2004
            self._claim_failed = False
        else:
            _log.warning("The homeserver gives no one-time keys (HTTP %d).", status)
        claimed: dict[str, dict[str, Any]] = {}
        for user, devices in wanted.items():
            for device_id in devices:
                ed25519 = self.device_store[user][device_id].ed25519
                key = signed_one_time_key(answer, user, device_id, ed25519=ed25519)
                if key is not None:
                    one = {"signed_curve25519:claimed": dict(key)}
                    claimed.setdefault(user, {})[device_id] = one
        response = KeysClaimResponse(claimed, {})
        await self.receive_response(response)
        return response

    async def _claim_missing(self, room_id: str, *, again: bool = False) -> None:
        """Make encryption to a room's signed devices possible; once a minute for each.

        Args:
            room_id: the room.
            again: also of whom it was just tried in vain because our homeserver failed.
        """
        now = time.monotonic()
        due: dict[str, list[str]] = {}
        for user, devices in self.get_missing_sessions(room_id).items():
            for device in devices:
                if again or self._claim_again_at.get((user, device), 0) <= now:
                    self._claim_again_at[user, device] = now + _RETRY_REMOTE_S
                    due.setdefault(user, []).append(device)
        if due:
            await self.keys_claim(due)
        elif again:
            self._claim_failed = False  # meanwhile nobody lacks any

    async def _claim_for_message(self, room_id: str) -> None:
        """The same before a message: whoever is left out now can never read it."""
        for pause_s in (*_BLIP_PAUSES_S, None):
            try:
                await self._claim_missing(room_id, again=self._claim_failed)
            except UnavailableError as error:
                _log.warning("One-time keys could not be claimed (%s).", error.code)
            if not self._claim_failed:
                return
            if pause_s is not None:
                await asyncio.sleep(pause_s)

    # -----------------------------------------------------------------------------------------
    # Sending

    async def room_send(
        self,
        room_id: str,
        message_type: str,
        content: dict[str, Any],
        tx_id: str | None = None,
        ignore_unverified_devices: bool = False,  # noqa: FBT001, FBT002 - nio's signature
    ) -> Any:
        """Encrypt for the signed devices in a room and send; in order for each room.

        Args:
            room_id: a joined, encrypted room.
            message_type: e.g. ``m.room.message``. Reactions are sent in clear, as everywhere.
            content: plain content; all of it is encrypted but ``fajma.events.RING``.
            tx_id: transaction id; the same for every attempt to send the same message. It stands
                beside the ciphertext too, so that the message can be found (``fajma.deliveries``).
            ignore_unverified_devices: must stay false.

        Returns:
            nio's ``RoomSendResponse``, or ``RoomSendError`` when the homeserver refuses.

        Raises:
            InputError: we are not or no longer in the room, or it is not encrypted.
            BusyError: the homeserver wants to be left alone (only with ``tells_when_busy``).
            UnavailableError: the homeserver does not answer, or keys could not be shared.
        """
        if ignore_unverified_devices:
            raise BugError("Unsigned devices never get keys.", code="unsigned_devices")
        async with self._room_locks[room_id]:
            if message_type != "m.reaction":
                await self._make_current(room_id)
                inside = {key: value for key, value in content.items() if key != RING}
                message_type, outside = self.encrypt(room_id, message_type, inside)
                # Push rules see what stands beside the ciphertext, and nothing else.
                content = outside | ({RING: content[RING]} if RING in content else {})
                if tx_id is not None:
                    content = {**content, DELIVERY: tx_id}
            method, path, data = Api.room_send(
                self.access_token, room_id, message_type, content, tx_id or uuid4()
            )
            return await self._send(RoomSendResponse, method, path, data, (room_id,))

    async def messages(self, room_id: str, query: Mapping[str, str]) -> Mapping[str, Any]:
        """A page of a room as the homeserver has it, nothing decrypted.

        Raises:
            UnavailableError: the homeserver does not answer, or does not show it.
        """
        path = f"rooms/{quote(room_id, safe='')}/messages?{urlencode(query)}"
        status, answer = await self._request("GET", path)
        if status != 200:  # noqa: PLR2004
            raise UnavailableError(
                "The homeserver does not show what is in a room; trying again later.",
                code="messages_refused",
            )
        return answer

    async def encrypted(
        self, room_id: str, message_type: str, content: dict[str, Any]
    ) -> dict[str, Any]:
        """A content as it would be sent now, for whoever sends it later.

        Raises:
            InputError: as ``room_send``.
            UnavailableError: as ``room_send``.
        """
        async with self._room_locks[room_id]:
            await self._make_current(room_id)
            _, sealed = self.encrypt(room_id, message_type, content)
            return dict(sealed)

    async def share_group_session(
        self,
        room_id: str,
        ignore_unverified_devices: bool = False,  # noqa: FBT001, FBT002 - nio's signature
    ) -> ShareGroupSessionResponse:
        """Share the room key ahead of the next message; ``room_send`` does it by itself."""
        if ignore_unverified_devices:
            raise BugError("Unsigned devices never get keys.", code="unsigned_devices")
        async with self._room_locks[room_id]:
            await self._make_current(room_id)
            shared = self.olm.outbound_group_sessions[room_id].users_shared_with
            return ShareGroupSessionResponse(room_id, set(shared))

    def invalidate_outbound_session(self, room_id: str) -> None:
        """Forget a room key, also one that is being shared; nio would keep the latter."""
        self.olm.outbound_group_sessions.pop(room_id, None)

    async def _make_current(self, room_id: str) -> None:
        """See to it that exactly the right devices have the room key; the caller has the lock."""
        room = self.rooms.get(room_id)
        if room is None:
            raise InputError(
                "We are not in this room, or have not synchronised yet; invite us and wait.",
                code="room_unknown",
            )
        if not room.encrypted:
            raise InputError(
                "This room is not encrypted, so nothing is sent to it; switch encryption on.",
                code="room_not_encrypted",
            )
        for _ in range(_SHARE_ATTEMPTS):
            if not room.members_synced:
                require(await self.joined_members(room_id), JoinedMembersResponse)
            await self._look_at_records(room_id)
            if self.should_query_keys:
                await self._ask_for_changes()
                # Somebody may have left while the homeserver took its time: look again.
                continue
            if self._is_current(room_id):
                return
            await self._share(room_id)
        raise UnavailableError(
            "The devices in this room change too fast to share a key; trying again later.",
            code="devices_unstable",
        )

    def _is_current(self, room_id: str) -> bool:
        """Whether the room key is shared with all devices that should have it and no other."""
        if self.olm.should_share_group_session(room_id):
            return False
        entitled = {
            (device.user_id, device.id)
            for device in self._devices_of(self._readers(room_id))
            if device.verified and self.olm.session_store.get(device.curve25519)
        }
        shared = self.olm.outbound_group_sessions[room_id].users_shared_with
        return bool(entitled == shared)

    async def _share(self, room_id: str) -> None:
        """Make a new room key and send it to the signed devices in the room.

        nio marks a key as shared although sending it failed, never unlocks a room when claiming
        keys was interrupted, credits a late answer to the wrong key, and forgets our access token
        when the homeserver refuses (it takes the list of devices for a soft logout); hence our own.
        """
        self.invalidate_outbound_session(room_id)
        await self._claim_for_message(room_id)
        await self._look_at_records(room_id)  # the homeserver may have taken its time
        with self._one_commit():
            readers = list(self._readers(room_id))
            batches = list(self.olm.share_group_session_parallel(room_id, readers))
        session = self.olm.outbound_group_sessions[room_id]
        for recipients, messages in batches:
            await self._pass_on(messages)
            session.users_shared_with.update(recipients)
        session.shared = True

    async def _pass_on(self, messages: Mapping[str, Any]) -> None:
        """Have encrypted to-device messages delivered.

        Raises:
            BusyError: the homeserver wants to be left alone (only with ``tells_when_busy``).
            UnavailableError: it does not answer, or refuses.
        """
        response = await self._ask("PUT", f"sendToDevice/m.room.encrypted/{uuid4()}", messages)
        if self._tells_when_busy and response.status == _TOO_MANY:
            raise await _busy(response)
        if response.status != 200:  # noqa: PLR2004
            raise UnavailableError(
                "The homeserver refused to pass on a room key; trying again later.",
                code="sharing_refused",
            )
        try:
            await self.parse_body(response)  # a proxy's page is no success
        except (ClientError, TimeoutError, OSError) as error:
            raise _no_answer() from error

    # -----------------------------------------------------------------------------------------
    # Receiving

    async def run_sync(self, *, poll_s: float = 30.0) -> NoReturn:
        """Receive for ever; cancel the task to stop.

        While the homeserver is away, waits 1 s, then twice as long each time, at most a minute;
        while the database of our records is, 1 s each time. Any other exception, such as a bug in a
        callback, ends it; the batch in which it happened is delivered again by the next call.

        Args:
            poll_s: how long the homeserver holds a request when there is nothing new.

        Raises:
            InputError: the homeserver ended our session.
        """
        pause_s = 1.0
        while True:
            first = not self.ready.is_set()
            try:
                answer = await self.sync(
                    timeout=0 if first else int(poll_s * 1000),
                    sync_filter=_SYNC_FILTER,
                    full_state=first or None,
                )
                await self.run_response_callbacks([answer])
                require(answer, SyncResponse)
                await self._keep_up()
            except UnavailableError as error:
                asked_s = left_alone_s(error) if isinstance(error, BusyError) else 0.0
                wait_s = max(pause_s, asked_s)
                _log.warning("%s Next attempt in %.0f s (%s).", error, wait_s, error.code)
                await asyncio.sleep(wait_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                continue
            except Exception as error:
                if not is_outage(error):
                    raise
                _log.warning("The database is away (%s).", type(error).__name__)
                await asyncio.sleep(AGAIN_S)
                continue
            pause_s = 1.0
            self.ready.set()
            self.synced.set()
            self.synced.clear()

    async def _keep_up(self) -> None:
        """What a sync asks for: pending messages, one-time keys, devices, Olm sessions."""
        await self.send_to_device_messages()
        if self.should_upload_keys:
            await self.keys_upload()
        if self.should_query_keys:
            await self.keys_query()
        if self.should_claim_keys:
            await self.keys_claim(self.get_users_for_key_claiming())
        for room in list(self.rooms.values()):
            if room.encrypted:
                await self._claim_missing(room.room_id)

    async def keys_upload(self) -> Any:
        """As nio's, but what we publish is on disk first, so that a crash cannot lose it.

        And with a new fallback key each time, which nio does not know: the homeserver gives it out
        once the one-time keys are used up, whereupon it asks us for more.
        """
        content = self.olm.share_keys()
        account = self.olm.account._account  # noqa: SLF001 - nio hides what vodozemac can do
        if not account.fallback_key:  # otherwise one is not published yet
            account.generate_fallback_key()
        content["fallback_keys"] = {
            f"signed_curve25519:{key_id}": self._signed_fallback(key.to_base64())
            for key_id, key in account.fallback_key.items()
        }
        self.olm.save_account()
        method, path, data = Api.keys_upload(self.access_token, content)
        return await self._send(KeysUploadResponse, method, path, data)

    def _signed_fallback(self, key: str) -> dict[str, Any]:
        bare = {"key": key, "fallback": True}
        signature = self.olm.sign_json(bare)
        return {**bare, "signatures": {self.user_id: {f"ed25519:{self.device_id}": signature}}}

    async def _handle_sync(self, response: SyncResponse) -> None:
        """Handle a batch completely, then remember it; nio remembers it first and loses it."""
        before = self.next_batch
        try:
            await self._meet_senders(response)
            await super()._handle_sync(response)
            if before or self.loaded_sync_token:  # otherwise there is nothing that we followed
                await self._tell_gaps(response)
        except BaseException:
            self.next_batch = before
            raise
        self.store.save_sync_token(self.next_batch)

    async def _tell_gaps(self, response: SyncResponse) -> None:
        for room_id, room in response.rooms.join.items():
            just_joined = any(
                isinstance(event, RoomMemberEvent)
                and event.state_key == self.user_id
                and event.prev_membership != "join"
                for event in room.timeline.events
            )
            if room.timeline.limited and not just_joined:
                for callback in self._on_gap:
                    await callback(room_id, room.timeline.prev_batch or response.next_batch)

    async def _meet_senders(self, response: SyncResponse) -> None:
        """Know the devices of who wrote, so that ``verified`` is right for a first message too."""
        senders = {
            event.sender
            for room in response.rooms.join.values()
            for event in room.timeline.events
            if isinstance(event, MegolmEvent)
        }
        changed = set(response.device_list.changed) | self.olm.users_for_key_query
        unknown = {
            user for user in senders if user in changed or user not in self.olm.tracked_users
        }
        if unknown:
            self.olm.users_for_key_query |= unknown
            await self.keys_query()

    def _handle_olm_events(self, response: SyncResponse) -> None:
        if response.device_key_count.signed_curve25519 is not None:
            # nio overlooks a count of zero and would never publish new keys.
            self.olm.uploaded_key_count = response.device_key_count.signed_curve25519
        super()._handle_olm_events(response)

    def _handle_decrypt_to_device(self, to_device_event: Any) -> Any:
        refused = (RoomKeyRequest, RoomKeyRequestCancellation, KeyVerificationEvent)
        if isinstance(to_device_event, refused):
            # We never forward keys, and only signatures make a device trustworthy.
            return None
        return _attempt(super()._handle_decrypt_to_device, to_device_event)

    def _handle_timeline_event(
        self,
        event: Any,
        room_id: str,
        room: Any,
        encrypted_rooms: set[str],
    ) -> Event | None:
        if not isinstance(event, MegolmEvent):
            return super()._handle_timeline_event(event, room_id, room, encrypted_rooms)
        # nio would let a decrypted event change memberships, so that any member could add some.
        event.room_id = room_id
        decrypted = _attempt(self.olm.decrypt_megolm_event, event, room_id)
        if decrypted is None or isinstance(decrypted, BadEvent | UnknownBadEvent):
            return None
        if not _fits(event.source, decrypted.source, room_id):
            _log.warning("Refused an event whose encrypted part does not fit its envelope.")
            return None
        decrypted.envelope = event.ciphertext
        decrypted.message_index = MegolmMessage.from_base64(event.ciphertext).message_index()
        return decrypted

    async def decrypt_state(self, event_source: Mapping[str, Any], room_id: str) -> StateEvent:
        """Decrypt a state event of type ``m.room.encrypted`` (MSC4362).

        Args:
            event_source: the whole event as the homeserver gives it.
            room_id: the room from whose state or timeline it comes.

        Raises:
            DecodeError: ``not_encrypted_state``; ``wrong_room``; ``no_key`` (may come later);
                ``undecryptable``; ``wrong_state_key``; ``unknown_device`` (the session does not
                belong to a device of the sender).
            UnavailableError: the sender's devices are not known and could not be asked for.
        """
        event = _attempt(MegolmEvent.from_dict, dict(event_source))
        if not isinstance(event, MegolmEvent) or not isinstance(event_source.get("state_key"), str):
            raise DecodeError("This is not an encrypted state event.", code="not_encrypted_state")
        if event_source.get("room_id", room_id) != room_id:
            raise DecodeError("This state event is of another room.", code="wrong_room")
        session = self.olm.inbound_group_store.get(room_id, event.sender_key, event.session_id)
        if session is None:
            raise DecodeError("We have no key for this state event yet.", code="no_key")
        opened = _attempt(session.decrypt, event.ciphertext)
        plaintext, index = opened or ("", 0)
        inner = _attempt(json.loads, plaintext)
        if not isinstance(inner, dict) or not self.olm.message_index_ok(index, event):
            raise DecodeError("This state event cannot be decrypted.", code="undecryptable")
        if not _fits(event_source, inner, room_id) or not isinstance(inner.get("content"), dict):
            raise DecodeError(
                "The encrypted part of this state event does not fit its envelope.",
                code="wrong_state_key",
            )
        signed = await self._is_signed_sender(event.sender, event.sender_key, session)
        return StateEvent(inner["type"], inner["state_key"], inner["content"], event.sender, signed)

    async def is_signed_now(self, event: Event, room_id: str) -> bool:
        """Whether a decrypted event comes from a device that its sender's identity signs *now*.

        Asks the homeserver and the pins afresh, for what must not rest on an older look: an
        identity may have been revoked, a device signed, since. A homeserver that answers, but not
        about the sender, leaves him unsigned.

        Raises:
            UnavailableError: the homeserver does not answer, or refuses.
        """
        session = self.olm.inbound_group_store.get(room_id, event.sender_key, event.session_id)
        if session is None:
            return False
        if not await self.judge_again(event.sender):
            return False
        try:
            return await self._is_signed_sender(event.sender, event.sender_key, session)
        except DecodeError:
            return False

    async def _is_signed_sender(self, sender: str, sender_key: str, session: Any) -> bool:
        """Whether the sender's device behind a Megolm session is signed.

        Raises:
            DecodeError: the session belongs to no device of the sender.
        """
        keys = DeviceKeys(session.ed25519, sender_key)
        ours = self.olm.account.identity_keys
        if sender == self.user_id and keys == DeviceKeys(ours["ed25519"], ours["curve25519"]):
            return True
        for known in (False, True):
            for device in self.device_store[sender].values():
                if _keys(device) == keys:
                    # Who forwarded a session may have made it up.
                    return bool(
                        device.verified and not device.deleted and not session.forwarding_chain
                    )
            if not known:
                self.olm.users_for_key_query.add(sender)
                await self.keys_query()
        raise DecodeError(
            "This state event was not encrypted by a device of its sender.", code="unknown_device"
        )


# ---------------------------------------------------------------------------------------------


def _keys(device: OlmDevice) -> DeviceKeys:
    return DeviceKeys(device.ed25519, device.curve25519)


def _fits(outer: Mapping[str, Any], inner: Mapping[str, Any], room_id: str) -> bool:
    """Whether a decrypted event may be what its envelope says (MSC4362 for state events).

    A state event's outer key is ``type:state_key`` of the inner one; a message has neither.
    """
    if inner.get("room_id") != room_id:
        return False
    if "state_key" not in outer:
        return "state_key" not in inner
    kind, state_key = inner.get("type"), inner.get("state_key")
    if not isinstance(kind, str) or not isinstance(state_key, str):
        return False
    return bool(outer["state_key"] == f"{kind}:{state_key}")


def _attempt(parse: Callable[..., _T], *args: Any) -> _T | None:
    """Let nio read what a stranger wrote; ``None`` when it cannot."""
    try:
        return parse(*args)
    except _MALFORMED as error:
        _log.debug("Ignored what cannot be read (%s).", type(error).__name__)
        return None


def _with_timeout(path: str) -> str:
    """A path with the time for keys of other homeservers, where Synapse looks for it.

    The specification has it in the body.
    """
    return f"{path}?timeout={_REMOTE_TIMEOUT_MS}"


async def _busy(answer: ClientResponse) -> BusyError:
    try:
        body = await answer.json(content_type=None)
    except (ClientError, ValueError):
        body = None
    return BusyError.of(answer.headers.get("Retry-After"), body)


def _nonsense() -> UnavailableError:
    return UnavailableError(
        "The homeserver's answer makes no sense; look at its health.", code="bad_answer"
    )


def _no_answer() -> UnavailableError:
    return UnavailableError(
        "The homeserver does not answer; look whether it runs and can be reached.",
        code="homeserver_unavailable",
    )
