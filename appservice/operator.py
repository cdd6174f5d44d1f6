"""The homeserver's admin account: accounts, devices, push rules and notices of local people.

Paths and bodies are those of Synapse's admin API (1.163, read in its source), the rest of the
Matrix client-server specification 1.16. A partner hospital's people are its own: for them every
method refuses.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import aiohttp

from appservice import push
from fajma.config import read_secret
from fajma.errors import InputError, UnavailableError

DEVICE: Final = "FAJMAADMIN"
"""Device id of the login; always the same, so that a restart leaves no second one behind."""

_TIMEOUT: Final = aiohttp.ClientTimeout(total=30)
# As the user we only read and write push rules: a handful of requests.
_AS_USER_FOR: Final = timedelta(minutes=2)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)
_MXID: Final = re.compile(r"@[^:\s]+:(\S+)")


@dataclass(frozen=True, slots=True)
class Account:
    """What the homeserver says of an account.

    Attributes:
        mxid: user id.
        deactivated: closed for good, until it is made again.
        locked: kept from everything for now, with all its devices in place.
        admin: may use the admin API.
    """

    mxid: str
    deactivated: bool
    locked: bool
    admin: bool


@dataclass(frozen=True, slots=True)
class Device:
    """One login of a person.

    Attributes:
        device_id: e.g. ``QWERTYUIOP``.
        display_name: as the client named itself, ``None`` if it did not.
        last_seen: when it last asked the homeserver something (aware UTC), ``None`` if unknown. It
            lags by some minutes.
    """

    device_id: str
    display_name: str | None
    last_seen: datetime | None


class Operator:
    """Does what only an operator of the homeserver may do. For one event loop.

    It logs in when it is first needed; the token stays in memory.

    Args:
        homeserver_url: client and admin API, without a slash at the end.
        account: local part of an admin account.
        password_file: its password; a file that nobody else may read.
        server_name: the part after the colon of this homeserver's user ids.

    Every method may raise:
        UnavailableError: the homeserver does not answer (``homeserver_unavailable``), is in
            trouble or has too much to do (``homeserver_in_trouble``).
        InputError: the admin account cannot be used (``operator_password_wrong``,
            ``operator_not_admin``), the user is a partner's (``not_our_account``), or the
            homeserver refuses for another reason (``homeserver_refused``).
    """

    def __init__(
        self, homeserver_url: str, account: str, password_file: Path, *, server_name: str
    ) -> None:
        self._url = homeserver_url.rstrip("/")
        self._account = account
        self._password_file = password_file
        self._server_name = server_name
        self._session: aiohttp.ClientSession | None = None
        self._token: str | None = None
        # A login ends the token of the one before: they must not race.
        self._login_lock = asyncio.Lock()

    async def close(self) -> None:
        """Log out and close the connection. Never fails for a homeserver that is gone."""
        session, self._session = self._session, None
        token, self._token = self._token, None
        if session is None:
            return
        try:
            if token is not None:
                await self._end(session, token)
        finally:
            await session.close()

    # --- accounts --------------------------------------------------------------------------------

    async def account(self, mxid: str) -> Account | None:
        """Look an account up; ``None`` if it never existed."""
        status, answer = await self._admin("GET", f"v2/users/{self._local(mxid)}")
        if status == HTTPStatus.NOT_FOUND:
            return None
        _require_success(status, answer, f"the look at {mxid}")
        return Account(
            mxid=mxid,
            deactivated=bool(answer.get("deactivated")),
            locked=bool(answer.get("locked")),
            admin=bool(answer.get("admin")),
        )

    async def create_account(self, mxid: str, *, password: str, display_name: str) -> None:
        """Make an account, or open a deactivated one again (its rooms and rules are gone).

        In the first minutes of a new homeserver Synapse cannot open accounts again: that is
        ``homeserver_in_trouble``, and may be repeated.

        Raises:
            InputError: it exists and is active (``account_exists``); or the homeserver refuses
                the name or the password.
        """
        path = f"v2/users/{self._local(mxid)}"
        existing = await self.account(mxid)
        if existing is not None and not existing.deactivated:
            raise InputError(
                f"the account {mxid} exists already: choose another name, or reset its password",
                code="account_exists",
            )
        body: dict[str, Any] = {"password": password, "displayname": display_name}
        if existing is not None:
            body["deactivated"] = False
        status, answer = await self._admin("PUT", path, body)
        _require_success(status, answer, f"the account {mxid}")

    async def deactivate(self, mxid: str) -> None:
        """Close an account: devices, tokens, pushers and rules end, and it leaves its rooms.

        What it wrote stays (it is not erased). Does nothing if it is closed already.

        Raises:
            InputError: there is no such account (``no_such_account``).
        """
        path = f"v1/deactivate/{self._local(mxid)}"
        if (await self._existing(mxid)).deactivated:
            return
        status, answer = await self._admin("POST", path, {"erase": False})
        _require_success(status, answer, f"closing {mxid}")

    async def reset_password(self, mxid: str, password: str, *, logout: bool) -> None:
        """Give a person a new password.

        It is also what a person needs who lost everything: Element asks for the password when it
        resets an identity. (Synapse's ``_allow_cross_signing_replacement_without_uia`` has no
        effect where Synapse keeps the passwords itself.)

        Args:
            mxid: who.
            password: the new one.
            logout: whether all devices are logged out, which a stolen password calls for.

        Raises:
            InputError: there is no such account (``no_such_account``), or it is closed
                (``account_deactivated``); or the homeserver refuses the password.
        """
        path = f"v1/reset_password/{self._local(mxid)}"
        await self._active(mxid)  # Synapse would give a closed account a password
        status, answer = await self._admin(
            "POST", path, {"new_password": password, "logout_devices": logout}
        )
        _require_success(status, answer, f"the new password of {mxid}")

    # --- devices ---------------------------------------------------------------------------------

    async def devices(self, mxid: str) -> tuple[Device, ...]:
        """All logins of a person, in the order of their ids.

        Raises:
            InputError: there is no such account (``no_such_account``).
        """
        answer = await self._of(mxid, "GET", f"v2/users/{self._local(mxid)}/devices")
        return tuple(
            Device(
                device_id=one["device_id"],
                display_name=one.get("display_name"),
                last_seen=_moment(one.get("last_seen_ts")),
            )
            for one in sorted(answer["devices"], key=lambda one: str(one["device_id"]))
        )

    async def remove_devices(self, mxid: str, device_ids: Collection[str]) -> None:
        """Log devices out, with their tokens, keys and pushers. Unknown ones are passed over.

        Raises:
            InputError: there is no such account (``no_such_account``).
        """
        path = f"v2/users/{self._local(mxid)}/delete_devices"
        if device_ids:
            await self._of(mxid, "POST", path, {"devices": sorted(device_ids)})

    async def pushers(self, mxid: str) -> int:
        """How many phones get pushes; none means that no alarm can ring there.

        Raises:
            InputError: there is no such account (``no_such_account``).
        """
        answer = await self._of(mxid, "GET", f"v1/users/{self._local(mxid)}/pushers")
        return sum(1 for pusher in answer["pushers"] if pusher.get("kind") == "http")

    # --- what reaches a person -------------------------------------------------------------------

    async def ring(self, mxid: str, *, rings: bool) -> tuple[str, ...]:
        """Bring a person's push rules to what `push.rules` says.

        It acts as the person with a token of two minutes that it ends afterwards. Nothing is
        written where nothing is wrong.

        Args:
            mxid: who.
            rings: whether alarms ring at his phone.

        Returns:
            What no rule can mend (`push.trouble`).

        Raises:
            InputError: there is no such account (``no_such_account``), it is closed
                (``account_deactivated``) or locked (``account_locked``).
        """
        path = f"v1/users/{self._local(mxid)}/login"
        await self._active(mxid)  # Synapse would log in as a closed account
        until = datetime.now(UTC) + _AS_USER_FOR
        login = await self._of(mxid, "POST", path, {"valid_until_ms": (until - _EPOCH) // _MS})
        token = str(login["access_token"])
        try:
            current = await self._rules_request("GET", "", None, token=token)
            for change in push.changes(current, mxid, rings=rings):
                await self._rules_request(change.method, change.path, change.body, token=token)
        finally:
            await self._end(self._connection(), token)
        return push.trouble(current)

    async def notice(self, mxid: str, text: str, *, transaction_id: str) -> None:
        """Tell a person something in clear, in a room that holds such notices only.

        The homeserver can read it: never anything clinical, and nothing secret. It does not ring.
        The same transaction id within half an hour is sent once, unless the homeserver restarted.

        Raises:
            InputError: there is no such account (``no_such_account``).
        """
        self._local(mxid)
        await self._active(mxid)
        await self._of(
            mxid,
            "PUT",
            f"v1/send_server_notice/{quote(transaction_id, safe='')}",
            {"user_id": mxid, "content": {"msgtype": "m.text", "body": text}},
        )

    # --- requests --------------------------------------------------------------------------------

    def _local(self, mxid: str) -> str:
        """A user id of this server, ready for a path."""
        match = _MXID.fullmatch(mxid)
        if match is None or match[1] != self._server_name:
            raise InputError(
                f"{mxid} is not an account of {self._server_name}: ask the hospital whose it is",
                code="not_our_account",
            )
        return quote(mxid, safe="")

    async def _existing(self, mxid: str) -> Account:
        account = await self.account(mxid)
        if account is None:
            raise _no_such_account(mxid)
        return account

    async def _active(self, mxid: str) -> Account:
        account = await self._existing(mxid)
        if account.deactivated:
            raise InputError(
                f"the account {mxid} is closed: open it again first", code="account_deactivated"
            )
        if account.locked:
            raise InputError(
                f"the account {mxid} is locked: unlock it first", code="account_locked"
            )
        return account

    async def _of(
        self, mxid: str, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """An admin request about an account that should exist."""
        status, answer = await self._admin(method, path, body)
        if status == HTTPStatus.NOT_FOUND:
            raise _no_such_account(mxid)
        _require_success(status, answer, f"this for {mxid}")
        return answer

    async def _rules_request(
        self, method: str, path: str, body: Mapping[str, Any] | None, *, token: str
    ) -> dict[str, Any]:
        status, answer = await self._call(
            method, f"/_matrix/client/v3/pushrules/{path}", body, token=token
        )
        if method == "DELETE" and status == HTTPStatus.NOT_FOUND:
            return answer  # somebody else was faster
        _require_success(status, answer, "the push rules")
        return answer

    async def _admin(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """An admin request; one new login if the homeserver no longer knows our token."""
        token = await self._logged_in(refused=None)
        status, answer = await self._call(method, f"/_synapse/admin/{path}", body, token=token)
        if status == HTTPStatus.UNAUTHORIZED:
            token = await self._logged_in(refused=token)
            status, answer = await self._call(method, f"/_synapse/admin/{path}", body, token=token)
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            await self._require_admin(token)
        return status, answer

    async def _require_admin(self, token: str) -> None:
        """Find out whether a refusal is about us: an admin may ask whether he is one."""
        ourselves = quote(f"@{self._account}:{self._server_name}", safe="")
        path = f"/_synapse/admin/v1/users/{ourselves}/admin"
        status, _ = await self._call("GET", path, None, token=token)
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise InputError(
                f"the account {self._account} is not an administrator of the homeserver: make it"
                " one, or name another one in the settings",
                code="operator_not_admin",
            )

    async def _logged_in(self, *, refused: str | None) -> str:
        """A token that was not refused yet."""
        async with self._login_lock:
            if self._token is None or self._token == refused:
                self._token = None
                self._token = await self._login()
            return self._token

    async def _login(self) -> str:
        status, answer = await self._call(
            "POST",
            "/_matrix/client/v3/login",
            {
                "type": "m.login.password",
                "identifier": {"type": "m.id.user", "user": self._account},
                "password": read_secret(self._password_file, purpose="operator's password"),
                "device_id": DEVICE,
                "initial_device_display_name": "FAJMA operator",
            },
        )
        if status == HTTPStatus.FORBIDDEN:
            raise InputError(
                f"the homeserver refuses the password of {self._account}: correct"
                f" {self._password_file}, or make the account",
                code="operator_password_wrong",
            )
        _require_success(status, answer, f"the login of {self._account}")
        return str(answer["access_token"])

    async def _end(self, session: aiohttp.ClientSession, token: str) -> None:
        """End a token as well as can be; those that act for a person end by themselves."""
        try:
            async with session.post(
                f"{self._url}/_matrix/client/v3/logout", json={}, headers=_bearer(token)
            ):
                pass
        except (aiohttp.ClientError, TimeoutError):
            return

    async def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None, *, token: str = ""
    ) -> tuple[int, dict[str, Any]]:
        try:
            async with self._connection().request(
                method,
                f"{self._url}{path}",
                json=None if body is None else dict(body),
                headers=_bearer(token) if token else {},
            ) as response:
                status = response.status
                answer = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise UnavailableError(
                f"the homeserver at {self._url} does not answer: start it, or correct"
                " homeserver.url",
                code="homeserver_unavailable",
            ) from error
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS:
            raise UnavailableError(
                f"the homeserver at {self._url} cannot do this now (HTTP {status}): wait a minute,"
                " then look at its log",
                code="homeserver_in_trouble",
            )
        return status, answer if isinstance(answer, dict) else {}

    def _connection(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=_TIMEOUT)
        return self._session


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _moment(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else _EPOCH + milliseconds * _MS


def _no_such_account(mxid: str) -> InputError:
    return InputError(
        f"there is no account {mxid} here: check the spelling, or make it", code="no_such_account"
    )


def _require_success(status: int, answer: Mapping[str, Any], what: str) -> None:
    if status >= HTTPStatus.BAD_REQUEST:
        reason = answer.get("error") or answer.get("errcode") or f"HTTP {status}"
        raise InputError(f"the homeserver refuses {what}: {reason}", code="homeserver_refused")
