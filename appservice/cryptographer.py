"""mautrix's OlmMachine with what FAJMA needs besides. Everything that touches libolm is here.

Added: encrypted state events (MSC4362), one lock per room around sharing and encrypting, a word to
those who must know when the trusted devices of a person change, and a recovery key that is on disk
before the identity it opens is on the server.

The rule for keys: a room key goes to a device only if its owner belongs in the room by our own
records, and the device is signed by the cross-signing identity that is pinned for him (the one
first met, or one that was accepted since: ``fajma.store.pins``).
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from mautrix.client import Client
from mautrix.crypto import OlmMachine, OutboundGroupSession, PgCryptoStore, RejectKeyShare
from mautrix.crypto.cross_signing_key import CrossSigningSeeds
from mautrix.crypto.ssss.key import Key as SecretStorageKey
from mautrix.types import (
    CrossSigner,
    CrossSigningUsage,
    DeviceID,
    DeviceIdentity,
    DeviceLists,
    RequestedKeyInfo,
    RoomID,
    SyncToken,
    TrustState,
    UserID,
)

from appservice.state import RoomState
from fajma.errors import InputError, UnavailableError
from fajma.files import write_private
from fajma.store.pins import Audience, Pins

ALGORITHM = "m.megolm.v1.aes-sha2"
RELATION = "m.relates_to"

TrustChanged = Callable[[UserID], Awaitable[None]]


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

    async def forget_sessions_with(self, user: UserID) -> None:
        """The next event in each room of this user goes out under a new key."""
        rooms = await self.state_store.find_shared_rooms(user)
        await self.crypto_store.remove_outbound_group_sessions(rooms)

    async def refresh(self, users: Collection[str]) -> None:
        """Look at the devices of these users afresh (after a time in which we heard nothing)."""
        await self.handle_device_lists(DeviceLists(changed=[UserID(user) for user in users]))

    async def sign_ourselves(self, recovery_key_file: Path) -> None:
        """Have a cross-signing identity, and our device signed by it. Idempotent.

        The recovery key is written before the identity is uploaded, so that no crash leaves an
        identity behind that nobody can open.

        Raises:
            InputError: the account already has an identity and the recovery key is missing or is
                not its key; it is never replaced silently.
        """
        mxid = UserID(self.client.mxid)
        await self._fetch_keys([mxid], include_untracked=True)
        identity = await self.get_own_cross_signing_public_keys()
        if identity is None:
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
        trust = await self.resolve_trust(self.own_identity, allow_fetch=False)
        if trust >= TrustState.CROSS_SIGNED_TOFU:
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
        if room_id in self._state.unsure:
            raise UnavailableError(
                "who is in this room is not known yet; trying again later", code="room_unsure"
            )
        epoch = await self._audience.epoch()
        if self._epochs.get(room_id) != epoch:
            # Somebody left, or an identity was accepted or revoked, since this key was shared.
            await self.crypto_store.remove_outbound_group_session(room_id)
        session = await self.crypto_store.get_outbound_group_session(room_id)
        if session is not None and session.shared and not session.expired:
            return session
        belong = await self._audience.of(room_id) - self._never_for
        readers = [user for user in await self._state.get_members(room_id) if user in belong]
        # The homeserver may tell us seconds late of a new device, and who is left out of a key
        # cannot read what it opens, ever.
        await self.refresh(readers)
        await self.share_group_session(room_id, readers)
        session = await self.crypto_store.get_outbound_group_session(room_id)
        if session is None:
            # Somebody's devices changed at this very moment, so the key was dropped again.
            raise UnavailableError("a room key was dropped; trying again", code="room_key_dropped")
        self._epochs[room_id] = epoch
        return session

    async def resolve_trust(self, device: DeviceIdentity, allow_fetch: bool = True) -> TrustState:  # noqa: FBT001, FBT002 - mautrix's signature
        """As mautrix's, but "first met" is what our pins say, and an accepted identity counts."""
        trust = await super().resolve_trust(device, allow_fetch)
        if trust < TrustState.CROSS_SIGNED_UNTRUSTED:
            return trust
        master = await self._master_key(device.user_id)
        pinned = (await self._pins.known([device.user_id])).get(device.user_id)
        if master is None or master != pinned:
            return TrustState.UNVERIFIED
        if device.device_id in await self._pins.blocked(device.user_id):
            return TrustState.BLACKLISTED
        return TrustState.CROSS_SIGNED_TOFU

    async def unsigned_devices(self, user: str) -> dict[str, str]:
        """Devices of a person that get no keys: by device id, their Ed25519 key."""
        devices = await self.crypto_store.get_devices(UserID(user)) or {}
        trusted = await self._trusted_devices(UserID(user))
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
        """Fetch the devices of people, also of those whom we have not met in a room yet."""
        await self._fetch_keys([UserID(user) for user in users], include_untracked=True)

    async def is_readable_by(self, user: str) -> bool:
        """Whether a person has a device that gets our keys."""
        return bool(await self._trusted_devices(UserID(user)))

    async def _fetch_keys(
        self,
        users: list[UserID],
        since: SyncToken = SyncToken(""),  # noqa: B008 - mautrix's signature
        include_untracked: bool = False,  # noqa: FBT001, FBT002
    ) -> dict[UserID, dict[DeviceID, DeviceIdentity]]:
        """As mautrix's; first meetings are pinned, changes of identity noted, of trust told.

        mautrix drops a session when a device appears or disappears. A device that becomes signed
        (a phone just verified) or loses its signature changes nothing in the list, so trust itself
        is compared. Our senders share one table of devices: a change is seen by whoever looks
        first and by nobody after him, so every look comes through here.
        """
        known = await self.crypto_store.filter_tracked_users(users)
        before = {user: await self._trusted_devices(user) for user in known}
        devices = await super()._fetch_keys(users, since, include_untracked)
        masters = {user: await self._master_key(user) for user in devices}
        await self._pins.meet({user: key for user, key in masters.items() if key is not None})
        for user, trusted in before.items():
            if await self._trusted_devices(user) != trusted:
                await self._trust_changed(user)
        return devices

    async def _master_key(self, user: UserID) -> str | None:
        """The identity that the homeserver shows, if it vouches for a self-signing key."""
        keys = await self.crypto_store.get_cross_signing_keys(user)
        master = keys.get(CrossSigningUsage.MASTER)
        signer = keys.get(CrossSigningUsage.SELF)
        if master is None or signer is None:
            return None
        vouched = await self.crypto_store.is_key_signed_by(
            target=CrossSigner(user, signer.key), signer=CrossSigner(user, master.key)
        )
        return str(master.key) if vouched else None

    async def _trusted_devices(self, user: UserID) -> frozenset[DeviceID]:
        devices = await self.crypto_store.get_devices(user) or {}
        return frozenset(
            [
                device_id
                for device_id, device in devices.items()
                if await self.resolve_trust(device, allow_fetch=False) >= self.send_keys_min_trust
            ]
        )

    async def _refuse_key_request(self, _: DeviceIdentity, __: RequestedKeyInfo) -> bool:
        raise RejectKeyShare("room keys are never forwarded", code=None)
