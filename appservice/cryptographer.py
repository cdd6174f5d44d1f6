"""mautrix's OlmMachine with what FAJMA needs besides. Everything that touches libolm is here.

Added: encrypted state events (MSC4362), one lock per room around sharing and encrypting, a word to
those who must know when the trusted devices of a person change, and a recovery key that is on disk
before the identity it opens is on the server.

The rule for keys: a room key goes to a device only if its owner belongs in the room by our own
records, and ``fajma.store.pins`` names the device, with exactly the keys that it has.

mautrix reads the answers of a homeserver trustingly: one odd device, which anybody can publish, and
the answer about everybody is lost; a signature is remembered of a key, not of a device, and never
forgotten. So answers about devices and one-time keys are read here, by ``fajma.trust``, and what
mautrix would conclude from them is not asked for.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import structlog
from mautrix.api import Method, PathBuilder
from mautrix.api import Path as ApiPath
from mautrix.client import Client
from mautrix.crypto import OlmMachine, OutboundGroupSession, PgCryptoStore, RejectKeyShare
from mautrix.crypto.cross_signing_key import CrossSigningSeeds
from mautrix.crypto.ssss.key import Key as SecretStorageKey
from mautrix.errors import MatrixError, MatrixRequestError, MUnknown
from mautrix.types import (
    DeviceID,
    DeviceIdentity,
    DeviceLists,
    IdentityKey,
    RequestedKeyInfo,
    RoomID,
    SigningKey,
    SyncToken,
    TrustState,
    UserID,
)
from olm.session import OlmSessionError

from appservice.state import RoomState
from fajma.errors import BugError, InputError, UnavailableError
from fajma.files import write_private
from fajma.store.pins import Audience, Pins
from fajma.trust import DeviceKeys, self_signed_devices, signed_one_time_key

log = structlog.get_logger()

ALGORITHM: Final = "m.megolm.v1.aes-sha2"
RELATION: Final = "m.relates_to"

ASKED_BY: Final = "appservice"
"""Our senders share one table of devices, so what one of them hears counts for all."""

REMOTE_TIMEOUT_MS: Final = 10_000
"""How long our homeserver may wait for another hospital's keys."""

SHARE_ATTEMPTS: Final = 3
"""How often a room key is made anew because who may read changed while it was being shared."""

TrustChanged = Callable[[UserID], Awaitable[None]]


_TAKEN_TRIES: Final = 5


class Cryptographer(OlmMachine):
    """The encryption machine of one Matrix user of ours.

    Args:
        client: the user's client, whose device is set.
        store: where its keys are.
        state: who is in which room, as the homeserver says.
        pins: whose identity is which, by our records.
        audience: who belongs in which room, by our records.
        never_for: users that never get room keys (our other senders, who have no need of them).
        trust_changed: called with a person whose set of trusted devices has changed; all our
            senders must then ``forget_sessions_with`` that person.
        looking: held while devices are looked up, by all senders that share the tables, so that an
            older answer never overtakes a newer one.
    """

    def __init__(
        self,
        client: Client,
        store: PgCryptoStore,
        state: RoomState,
        *,
        pins: Pins,
        audience: Audience,
        never_for: Collection[str],
        trust_changed: TrustChanged,
        looking: asyncio.Lock,
    ) -> None:
        super().__init__(client, store, state)
        self._pins = pins
        self._audience = audience
        self._epochs: dict[str, int] = {}
        self.send_keys_min_trust = TrustState.CROSS_SIGNED_TOFU
        self.allow_key_share = self._refuse_key_request
        # We never read our own messages back, so we keep no key that could.
        self.dont_store_outbound_keys = True
        self._state = state
        self._never_for = frozenset(never_for)
        self._trust_changed = trust_changed
        self._looking = looking
        self._room_locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def encrypt(
        self,
        room_id: str,
        event_type: str,
        content: Mapping[str, Any],
        *,
        state_key: str | None = None,
    ) -> dict[str, Any]:
        """Encrypt one event for the trusted devices of everyone in a room.

        Args:
            room_id: the room.
            event_type: type inside the encryption.
            content: content inside the encryption; a relation goes outside, where clients and
                homeserver look for it (client-server API, "m.room.encrypted", ``m.relates_to``),
                and not inside too, for each event is paid for by phones.
            state_key: for a state event; it becomes part of the plaintext (MSC4362).

        Returns:
            Content of the ``m.room.encrypted`` event.
        """
        inside = {key: value for key, value in content.items() if key != RELATION}
        async with self._room_locks[room_id]:
            session = await self._usable_session(RoomID(room_id))
            plain: dict[str, Any] = {"room_id": room_id, "type": event_type, "content": inside}
            if state_key is not None:
                plain["state_key"] = state_key
            ciphertext = session.encrypt(json.dumps(plain, separators=(",", ":")))  # type: ignore[no-untyped-call]
            # On disk before it is sent: a message index must never be used twice.
            await self.crypto_store.update_outbound_group_session(session)
        encrypted: dict[str, Any] = {
            "algorithm": ALGORITHM,
            "ciphertext": ciphertext,
            "session_id": session.id,
            "sender_key": self.own_identity.identity_key,
            "device_id": self.client.device_id,
        }
        if RELATION in content:
            encrypted[RELATION] = content[RELATION]
        return encrypted

    async def share_keys(self, current_otk_count: int | None = None) -> None:
        """Give the homeserver one-time keys.

        Killed between an upload and the save after it, we would make other keys under the same ids
        for ever, which the homeserver refuses. Those ids are left behind.
        """
        for _ in range(_TAKEN_TRIES):
            try:
                await super().share_keys(current_otk_count)
            except MUnknown as error:
                account = self.account
                if account is None or "already exists" not in str(error):  # Synapse's words
                    raise
                log.warning("one_time_keys_taken", user=self.client.mxid)
                account.mark_keys_as_published()
                await self.crypto_store.put_account(account)
            else:
                return
        await super().share_keys(current_otk_count)

    async def forget_sessions_with(self, user: UserID) -> None:
        """The next event in each room of this user goes out under a new key."""
        rooms = await self.state_store.find_shared_rooms(user)
        await self.crypto_store.remove_outbound_group_sessions(rooms)

    async def refresh(self, users: Collection[str], *, also_unmet: bool = False) -> None:
        """Look at the devices of these users afresh (after a time in which we heard nothing).

        Never fails for the homeserver's sake. If it refuses to tell of somebody, the others are
        asked about alone, and each room of his gets a new key, which is another try.

        Args:
            users: whom.
            also_unmet: also those of them in whose rooms nothing was sent yet.
        """
        try:
            await self._fetch_keys([UserID(user) for user in users], include_untracked=also_unmet)
        except MatrixRequestError as error:
            if len(users) > 1:
                for user in users:
                    await self.refresh([user], also_unmet=also_unmet)
            else:
                await self._not_told_of(users, error)
        except (MatrixError, TimeoutError) as error:  # it does not answer at all
            await self._not_told_of(users, error)

    async def _not_told_of(self, users: Iterable[str], error: Exception) -> None:
        log.warning("devices_not_looked_at", error=type(error).__name__)
        for user in users:
            await self.forget_sessions_with(UserID(user))

    async def handle_device_lists(self, device_lists: DeviceLists) -> None:
        """The homeserver says whose devices changed."""
        await self.refresh(device_lists.changed)

    async def sign_ourselves(self, recovery_key_file: Path) -> None:
        """Have a cross-signing identity, and our device signed by it. Idempotent.

        The recovery key is written before the identity is uploaded, so that no crash leaves an
        identity behind that nobody can open.

        Raises:
            InputError: the account already has an identity and the recovery key is missing or is
                not its key; it is never replaced silently.
        """
        mxid = UserID(self.client.mxid)
        answer = await self.ask_for_keys([mxid])
        async with self._looking:
            await self._take_in(answer, [mxid])
        masters = answer.get("master_keys")
        published = isinstance(masters, dict) and masters.get(mxid) is not None
        if not published and not await self.crypto_store.get_cross_signing_keys(mxid):
            key = SecretStorageKey.generate()
            recovery_key_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_private(recovery_key_file, key.recovery_key + "\n")
            await self.ssss.set_key_data(key.id, key.metadata)
            seeds = CrossSigningSeeds.generate()
            await self._upload_cross_signing_keys_to_ssss(key, seeds)
            await self._publish_cross_signing_keys(seeds.to_keys())
            await self.ssss.set_default_key_id(key.id)
            await self.sign_own_device(self.own_identity)
            return
        if await self.resolve_trust(self.own_identity) >= self.send_keys_min_trust:
            return
        try:
            recovery_key = recovery_key_file.read_text().strip()  # noqa: ASYNC240 - one short line
            await self.verify_with_recovery_key(recovery_key)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{mxid} already has a cross-signing identity and {recovery_key_file} does not open"
                " it: restore that file from the backup",
                code="recovery_key_missing",
            ) from error

    async def _usable_session(self, room_id: RoomID) -> OutboundGroupSession:
        """A room key that exactly those have who may read the room now.

        Whatever waits for the homeserver comes before the last look at our records: who leaves
        while it takes its time must not read what is encrypted afterwards.
        """
        epoch = await self._audience.epoch()
        session = await self.crypto_store.get_outbound_group_session(room_id)
        # Another epoch: somebody left, or an identity was accepted or revoked, since it was shared.
        current = self._epochs.get(room_id) == epoch and room_id not in self._state.unsure
        if session is not None and session.shared and not session.expired and current:
            return session
        for _ in range(SHARE_ATTEMPTS):
            # The homeserver may tell us seconds late of a new device, and who is left out of a key
            # cannot read what it opens, ever.
            readers = await self._readers(room_id)
            await self.refresh(readers, also_unmet=True)
            await self._open_sessions(readers)
            epoch = await self._audience.epoch()
            entitled = await self._entitled(room_id)
            await self.crypto_store.remove_outbound_group_session(room_id)
            await self.share_group_session(room_id, list(entitled))
            session = await self.crypto_store.get_outbound_group_session(room_id)
            unchanged = await self._entitled(room_id) == entitled
            if session is not None and unchanged and await self._audience.epoch() == epoch:
                self._epochs[room_id] = epoch
                return session
            await self.crypto_store.remove_outbound_group_session(room_id)
        raise UnavailableError(
            "who may read this room changes too fast to share a key; trying again later",
            code="room_key_dropped",
        )

    async def _open_sessions(self, users: Collection[UserID]) -> None:
        """Be able to send keys to the trusted devices of users; sharing tries again what failed."""
        try:
            await self._create_outbound_sessions(
                {user: await self._trusted(user) for user in users}
            )
        except (MatrixError, TimeoutError) as error:
            log.warning("one_time_keys_not_claimed", error=type(error).__name__)

    async def _readers(self, room_id: RoomID) -> list[UserID]:
        """Who is in a room and belongs there.

        Raises:
            UnavailableError: who is in it is not known.
        """
        if room_id in self._state.unsure:
            raise UnavailableError(
                "who is in this room is not known yet; trying again later", code="room_unsure"
            )
        belong = await self._audience.of(room_id) - self._never_for
        return [user for user in await self._state.get_members(room_id) if user in belong]

    async def _entitled(self, room_id: RoomID) -> dict[UserID, frozenset[tuple[str, DeviceKeys]]]:
        """Who may read a room, and with which devices."""
        return {user: await self._trusted_devices(user) for user in await self._readers(room_id)}

    async def resolve_trust(self, device: DeviceIdentity, allow_fetch: bool = True) -> TrustState:  # noqa: ARG002, FBT001, FBT002 - mautrix's signature
        """In place of mautrix's: what our records say of the device with exactly these keys."""
        trusted = await self._pins.trusted(device.user_id, asked_by=ASKED_BY)
        signed = trusted.get(device.device_id) == _keys(device)
        return TrustState.CROSS_SIGNED_TOFU if signed else TrustState.UNVERIFIED

    async def unsigned_devices(self, user: str) -> dict[str, str]:
        """Devices of a person that get no keys: by device id, their Ed25519 key."""
        devices = await self.crypto_store.get_devices(UserID(user)) or {}
        trusted = await self._trusted(UserID(user))
        return {
            str(device_id): str(device.signing_key)
            for device_id, device in devices.items()
            if device_id not in trusted
        }

    async def devices_of(self, user: str) -> frozenset[str]:
        """Ids of all devices of a person that we know of."""
        devices = await self.crypto_store.get_devices(UserID(user)) or {}
        return frozenset(str(device_id) for device_id in devices)

    async def look_at(self, users: Collection[str]) -> None:
        """Fetch the devices of people, also of those whom we have not met in a room yet.

        Raises:
            MatrixError: the homeserver does not answer, or refuses.
        """
        await self._fetch_keys([UserID(user) for user in users], include_untracked=True)

    async def is_readable_by(self, user: str) -> bool:
        """Whether a person has a device that gets our keys."""
        return bool(await self._trusted(UserID(user)))

    async def _fetch_keys(
        self,
        users: list[UserID],
        since: SyncToken = SyncToken(""),  # noqa: ARG002, B008 - mautrix's signature
        include_untracked: bool = False,  # noqa: FBT001, FBT002
    ) -> dict[UserID, dict[DeviceID, DeviceIdentity]]:
        """In place of mautrix's. Who is met is pinned, changes of identity noted, of trust told.

        Our senders share one table of devices: a change is seen by whoever looks first and by
        nobody after him, so every look comes through here.
        """
        known = await self.crypto_store.filter_tracked_users(users)
        asked = list(users) if include_untracked else known
        if not asked:
            return {}
        async with self._looking:
            before = {user: await self._trusted_devices(user) for user in known}
            devices = await self._take_in(await self.ask_for_keys(asked), asked)
            changed = [
                user
                for user, trusted in before.items()
                if await self._trusted_devices(user) != trusted
            ]
        for user in changed:
            await self._trust_changed(user)
        return devices

    async def ask_for_keys(self, users: Collection[UserID]) -> dict[str, Any]:
        """What the homeserver says of the devices of users, as it says it."""
        return await self._ask(ApiPath.v3.keys.query, device_keys={user: [] for user in users})

    async def _ask(self, path: PathBuilder, **body: Any) -> dict[str, Any]:
        """Ask for keys. Synapse has the time limit in the query, the specification in the body."""
        limit = {"timeout": str(REMOTE_TIMEOUT_MS)}
        body["timeout"] = REMOTE_TIMEOUT_MS
        answer = await self.client.api.request(Method.POST, path, body, query_params=limit)
        return answer if isinstance(answer, dict) else {}

    async def _take_in(
        self, answer: Mapping[str, Any], asked: Collection[UserID]
    ) -> dict[UserID, dict[DeviceID, DeviceIdentity]]:
        """Keep what an answer says of devices, trusted or not; by user, what it says."""
        await self._pins.judge(answer, asked_by=ASKED_BY, about=asked)
        listed = self_signed_devices(answer)
        told = {
            user: {
                DeviceID(device_id): _device(user, device_id, device)
                for device_id, device in listed[user].items()
            }
            for user in asked
            if user in listed
        }
        for user, devices in told.items():
            await self.crypto_store.put_devices(user, devices)
        return told

    async def _trusted(self, user: UserID) -> dict[DeviceID, DeviceIdentity]:
        devices = await self.crypto_store.get_devices(user) or {}
        trusted = await self._pins.trusted(user, asked_by=ASKED_BY)
        return {
            device_id: device
            for device_id, device in devices.items()
            if trusted.get(device_id) == _keys(device)
        }

    async def _trusted_devices(self, user: UserID) -> frozenset[tuple[str, DeviceKeys]]:
        """The same to be compared: a device is its keys, whatever its name."""
        trusted = await self._trusted(user)
        return frozenset((str(device_id), _keys(device)) for device_id, device in trusted.items())

    async def _create_outbound_sessions_locked(
        self,
        users: Mapping[UserID, Mapping[DeviceID, DeviceIdentity]],
        _force_recreate_session: bool = False,  # noqa: FBT001, FBT002 - mautrix's signature
    ) -> None:
        """In place of mautrix's, where one odd one-time key takes away those of everybody else."""
        missing = [
            device
            for devices in users.values()
            for device in devices.values()
            if _force_recreate_session
            or not await self.crypto_store.has_session(device.identity_key)
        ]
        if not missing:
            return
        wanted: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for device in missing:
            wanted[device.user_id][device.device_id] = "signed_curve25519"
        answer = await self._ask(ApiPath.v3.keys.claim, one_time_keys=wanted)
        account = self.account
        if account is None:
            raise BugError("keys are claimed before the account is loaded", code="not_loaded")
        for device in missing:
            key = signed_one_time_key(
                answer, device.user_id, device.device_id, ed25519=device.signing_key
            )
            if key is None:
                log.warning("no_one_time_key", user=device.user_id)
                continue
            try:
                session = account.new_outbound_session(device.identity_key, IdentityKey(key["key"]))
            except (OlmSessionError, ValueError) as error:
                log.warning("no_olm_session", user=device.user_id, error=type(error).__name__)
                continue
            await self.crypto_store.add_session(device.identity_key, session)

    async def _refuse_key_request(self, _: DeviceIdentity, __: RequestedKeyInfo) -> bool:
        raise RejectKeyShare("room keys are never forwarded", code=None)


def _device(user: UserID, device_id: str, device: Mapping[str, Any]) -> DeviceIdentity:
    """A device key object, known to be well-formed, in the form in which mautrix knows devices."""
    return DeviceIdentity(
        user_id=user,
        device_id=DeviceID(device_id),
        identity_key=IdentityKey(device["keys"][f"curve25519:{device_id}"]),
        signing_key=SigningKey(device["keys"][f"ed25519:{device_id}"]),
        trust=TrustState.UNVERIFIED,
        deleted=False,
        name="",
    )


def _keys(device: DeviceIdentity) -> DeviceKeys:
    return DeviceKeys(str(device.signing_key), str(device.identity_key))
