"""Who we are on a homeserver: the session of our device, and the identity that signs it.

The identity is three cross-signing keys (``fajma.trust``). They lie in the account's secret
storage, which a recovery key opens, so that a new device of the account can adopt them.

One directory keeps what must survive a restart: ``session.json``, ``pickle-key`` (opens nio's
``crypto.db``) and ``recovery-key``, each with mode 0600.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote

from nio import AsyncClient, ErrorResponse, KeysUploadResponse, LoginResponse

from fajma.errors import InputError, UnavailableError
from fajma.files import write_private
from fajma.trust import (
    MASTER,
    SELF_SIGNING,
    USER_SIGNING,
    CrossSigningSeeds,
    SecretStorageKey,
    SignedIdentity,
    decode_recovery_key,
    encode_recovery_key,
)

_T = TypeVar("_T")

Request = Callable[[str, str, Mapping[str, Any] | None], Awaitable[tuple[int, dict[str, Any]]]]
"""Method, path below ``/_matrix/client/v3/`` and body; gives HTTP status and answer."""


@dataclass(frozen=True, slots=True)
class OwnKeys:
    """What the homeserver shows of our own account's keys.

    Attributes:
        published: whether it shows an identity, ours or not, valid or not.
        identity: that identity, if it is valid and, once ours is pinned, ours.
        device: our device's key object, signed by itself.
    """

    published: bool
    identity: SignedIdentity | None
    device: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class _Session:
    """What ``session.json`` keeps. ``master_key`` is empty until the device was signed."""

    user_id: str
    device_id: str
    access_token: str = field(repr=False)
    master_key: str = ""


class Identity:
    """Logs a client in and makes sure that its device is signed.

    Args:
        client: nio's, of one device.
        directory: of this device alone.
        device_name: shown to people in their list of devices.
        pinned: the client's pinned master keys by user id; ours is entered when it is known.
        request: asks the homeserver as our account.
        own_keys: asks the homeserver for our own keys, judged by ``pinned``.
    """

    def __init__(
        self,
        client: AsyncClient,
        directory: Path,
        *,
        device_name: str,
        pinned: dict[str, str],
        request: Request,
        own_keys: Callable[[], Awaitable[OwnKeys]],
    ) -> None:
        self._client = client
        self._directory = directory
        self._device_name = device_name
        self._pinned = pinned
        self._request = request
        self._own_keys = own_keys

    async def start(self, password: str | None) -> None:
        """Log in or resume, publish our keys, and have our device signed.

        Args:
            password: needed while there is no session.

        Raises:
            InputError: no session and no password, a refused login, or an identity that we cannot
                use; the message says what to do.
            UnavailableError: the homeserver does not answer.
        """
        client = self._client
        _make_private_directory(self._directory)
        session = self._read_session()
        self._set_pickle_key(new_device=session is None)
        if session is None:
            session = await self._log_in(password)
        elif not client.logged_in:
            client.restore_login(session.user_id, session.device_id, session.access_token)
            # Ours, and saved only after a batch was handled; see SignedClient._handle_sync.
            client.loaded_sync_token = client.store.load_sync_token() or ""
        if session.master_key:
            self._pinned[session.user_id] = session.master_key
        if client.should_upload_keys:
            require(await client.keys_upload(), KeysUploadResponse)
        await self._sign_device(session, password)

    # -----------------------------------------------------------------------------------------
    # Session

    def _read_session(self) -> _Session | None:
        path = self._directory / "session.json"
        try:
            session = _Session(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{path} is damaged; delete it and start once with the password.",
                code="bad_session_file",
            ) from error
        if session.user_id != self._client.user:
            raise InputError(
                f"{path} belongs to another account; give each account its own directory.",
                code="foreign_session_file",
            )
        if not (self._directory / "crypto.db").exists():
            raise InputError(
                f"The crypto store beside {path} is missing; delete session.json, keep "
                "recovery-key, and start once with the password.",
                code="crypto_store_missing",
            )
        return session

    def _write_session(self, session: _Session) -> None:
        text = json.dumps({name: getattr(session, name) for name in _Session.__slots__})
        write_private(self._directory / "session.json", text)

    def _set_pickle_key(self, *, new_device: bool) -> None:
        path = self._directory / "pickle-key"
        try:
            key = path.read_text().strip()
        except FileNotFoundError:
            if not new_device:
                raise InputError(
                    f"{path} is missing and the crypto store cannot be opened without it; restore "
                    "it, or delete session.json and start once with the password.",
                    code="pickle_key_missing",
                ) from None
            key = secrets.token_urlsafe(32)
            write_private(path, key)
        self._client.config = replace(self._client.config, pickle_key=key)

    async def _log_in(self, password: str | None) -> _Session:
        if password is None:
            raise InputError(
                "This account has no session here yet; give its password once.",
                code="password_needed",
            )
        # What an unfinished login left behind belongs to a device that we no longer know.
        for path in self._directory.glob("crypto.db*"):
            path.unlink()
        answer = require(
            await self._client.login(password, device_name=self._device_name), LoginResponse
        )
        session = _Session(answer.user_id, answer.device_id, answer.access_token)
        self._write_session(session)
        return session

    # -----------------------------------------------------------------------------------------
    # Cross-signing

    async def _sign_device(self, session: _Session, password: str | None) -> None:
        """Have our device signed by an identity of ours: adopt it, or create it.

        Each step can be repeated, so an interruption anywhere heals at the next start.
        """
        keys = await self._own_keys()
        device = self._checked_device(keys)
        if session.master_key and self._is_signed(keys):
            return
        recovery = self._read_recovery_key()
        default = await self.account_data("m.secret_storage.default_key")
        if recovery is None and (keys.published or default is not None):
            raise InputError(
                "This account already has a cross-signing identity or secret storage; put its "
                f"recovery key into {self._directory / 'recovery-key'} (mode 0600), or reset the "
                "identity in Element.",
                code="recovery_key_needed",
            )
        if default is not None and recovery is not None:
            seeds = await self.stored_seeds(str(default.get("key")), recovery)
        elif not keys.published and not session.master_key:
            seeds = await self._new_seeds(recovery)
        else:
            raise InputError(
                "The secret storage of this account is gone; restore it in Element, or reset the "
                "account's identity and delete session.json.",
                code="no_secret_storage",
            )
        if session.master_key not in ("", seeds.master_key):
            _refuse_identity()
        if not keys.published:
            await self._publish(seeds, password)
        else:
            found = keys.identity and (keys.identity.master_key, keys.identity.self_signing_key)
            if found != (seeds.master_key, seeds.self_signing_key):
                _refuse_identity()
        answer = await self.call(
            "POST", "keys/signatures/upload", seeds.signatures_body(session.user_id, device)
        )
        self._pinned[session.user_id] = seeds.master_key
        if answer.get("failures") or not self._is_signed(await self._own_keys()):
            raise UnavailableError(
                "The homeserver did not keep the signature of our device; start again.",
                code="signature_refused",
            )
        self._write_session(replace(session, master_key=seeds.master_key))

    def _is_signed(self, keys: OwnKeys) -> bool:
        return keys.identity is not None and self._client.device_id in keys.identity.devices

    def _checked_device(self, keys: OwnKeys) -> dict[str, Any]:
        """Our device as the server has it, after making sure that it is ours and unaltered."""
        device_id = self._client.device_id
        ours = self._client.olm.account.identity_keys
        if keys.device is None or (
            keys.device["keys"][f"ed25519:{device_id}"] != ours["ed25519"]
            or keys.device["keys"][f"curve25519:{device_id}"] != ours["curve25519"]
        ):
            raise InputError(
                "The homeserver no longer knows this device; delete session.json, keep "
                "recovery-key, and start once with the password.",
                code="device_unknown",
            )
        return dict(keys.device)

    async def _publish(self, seeds: CrossSigningSeeds, password: str | None) -> None:
        path = "keys/device_signing/upload"
        client = self._client
        body = seeds.device_signing_body(client.user_id, client.device_id, client.olm.sign_json)
        status, answer = await self._request("POST", path, body)
        if status == 401 and password is not None and "session" in answer:  # noqa: PLR2004
            # Servers older than MSC3967 ask for the password even for a first identity.
            body["auth"] = {
                "type": "m.login.password",
                "identifier": {"type": "m.id.user", "user": client.user_id},
                "password": password,
                "session": answer["session"],
            }
            status, answer = await self._request("POST", path, body)
        _require_ok(status, answer)

    # -----------------------------------------------------------------------------------------
    # Recovery key and secret storage

    def _read_recovery_key(self) -> bytes | None:
        try:
            return decode_recovery_key((self._directory / "recovery-key").read_text())
        except FileNotFoundError:
            return None

    async def stored_seeds(self, key_id: str, recovery: bytes) -> CrossSigningSeeds:
        """The account's identity out of its secret storage.

        Args:
            key_id: of the secret storage key, as ``m.secret_storage.default_key`` names it.
            recovery: the decoded recovery key, 32 bytes.

        Raises:
            InputError: the recovery key does not open the storage, or the identity is not in it.
        """
        key = SecretStorageKey(key_id, recovery)
        description = await self.account_data(f"m.secret_storage.key.{key_id}")
        if description is None or not key.fits(description):
            raise InputError(
                "The file recovery-key does not open the secret storage of this account; replace "
                "it by the account's present recovery key.",
                code="wrong_recovery_key",
            )
        stored = {}
        for name in (MASTER, SELF_SIGNING, USER_SIGNING):
            stored[name] = key.decrypt(name, await self.account_data(name) or {})
        return CrossSigningSeeds.from_secrets(stored)

    async def _new_seeds(self, recovery: bytes | None) -> CrossSigningSeeds:
        """A new identity, safe in secret storage before anybody sees it."""
        key = SecretStorageKey.generate()
        if recovery is None:
            # First of all: without this file the identity could never be used again.
            write_private(self._directory / "recovery-key", encode_recovery_key(key.key))
        else:
            key = replace(key, key=recovery)
        seeds = CrossSigningSeeds.generate()
        await self._set_account_data(f"m.secret_storage.key.{key.key_id}", key.description())
        for name, secret in seeds.to_secrets().items():
            await self._set_account_data(name, key.encrypt(name, secret))
        # Last: from here on the storage counts as complete.
        await self._set_account_data("m.secret_storage.default_key", {"key": key.key_id})
        return seeds

    async def account_data(self, kind: str) -> dict[str, Any] | None:
        """Account data of one type; ``None`` when there is none or it was emptied."""
        status, answer = await self._request("GET", self._account_data_path(kind), None)
        # Account data cannot be deleted, only emptied.
        if status == 404 or not answer:  # noqa: PLR2004
            return None
        _require_ok(status, answer)
        return answer

    async def _set_account_data(self, kind: str, content: Mapping[str, Any]) -> None:
        await self.call("PUT", self._account_data_path(kind), content)

    def _account_data_path(self, kind: str) -> str:
        user_id = quote(self._client.user_id, safe="")
        return f"user/{user_id}/account_data/{quote(kind, safe='')}"

    async def call(self, method: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """A request that must succeed.

        Raises:
            InputError: the homeserver refuses our account.
            UnavailableError: it answers with another error.
        """
        status, answer = await self._request(method, path, body)
        _require_ok(status, answer)
        return answer


# ---------------------------------------------------------------------------------------------


def require(answer: Any, expected: type[_T]) -> _T:
    """Give back an answer of nio if it is the expected one.

    Raises:
        InputError: our session was ended, or the homeserver refuses our account.
        UnavailableError: the homeserver answers with another error.
    """
    if isinstance(answer, expected):
        return answer
    code = (
        str(getattr(answer, "status_code", "") or "") if isinstance(answer, ErrorResponse) else ""
    )
    raise _refusal(code)


def _require_ok(status: int, answer: Mapping[str, Any]) -> None:
    """Turn an HTTP error into an exception."""
    if status != 200:  # noqa: PLR2004
        raise _refusal(str(answer.get("errcode", "")))


def _refusal(code: str) -> InputError | UnavailableError:
    """What a Matrix error code means to us."""
    if code in ("M_UNKNOWN_TOKEN", "M_MISSING_TOKEN"):
        return InputError(
            "The homeserver ended our session; delete session.json, keep recovery-key, "
            "and start once with the password.",
            code="logged_out",
        )
    if code in ("M_FORBIDDEN", "M_USER_DEACTIVATED"):
        return InputError(
            "The homeserver refuses this account; check its name, its password and its rooms.",
            code="refused",
        )
    return UnavailableError(
        f"The homeserver answers with an error ({code or 'no Matrix error code'}); "
        "look at its health.",
        code="homeserver_error",
    )


def _refuse_identity() -> NoReturn:
    raise InputError(
        "The cross-signing identity of this account is not the one that our recovery key belongs "
        "to; find out who replaced it, and put the present recovery key in place.",
        code="identity_changed",
    )


def _make_private_directory(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
