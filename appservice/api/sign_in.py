"""Signing in: a Matrix OpenID token and a signature of a trusted device become tokens of ours.

The OpenID token alone says whom a *homeserver* takes somebody for, and a hostile one can make such
tokens for all of its users. What FAJMA answers must stay closed to it (docs/security.md). So the
person's client signs the request with the key of its device, and the device must be signed by the
identity that we pinned: the same devices to which our senders encrypt.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

import structlog

from appservice.api.callers import Caller, Callers
from appservice.api.tokens import ACCESS_VALID, AccessTokens
from fajma.errors import AccessError
from fajma.store import Records
from fajma.store.signed_in import Session
from fajma.trust import DeviceKeys, is_signed

log = structlog.get_logger()

SIGNED_TYPE: Final = "com.fajma.sign_in"
"""``type`` of the object that the device signs."""

TrustedDevices = Callable[[str], Awaitable[Mapping[str, DeviceKeys]]]
"""By user id: the devices, looked up afresh, that are signed by the pinned identity."""


class OpenId(Protocol):
    """Asks a homeserver whom an OpenID token belongs to."""

    async def who(self, token: str, server_name: str) -> str:
        """The user id.

        Raises:
            AccessError: nobody's.
            UnavailableError: the homeserver does not answer.
        """


@dataclass(frozen=True, slots=True)
class SignedTokens:
    """What somebody gets who signs in or refreshes.

    Attributes:
        access: for ``Authorization``, valid for ``expires_in_s``.
        refresh: for the next pair, once.
        expires_in_s: of the access token.
    """

    access: str
    refresh: str
    expires_in_s: int


def signed_request(*, server_name: str, openid_token: str, openid_server: str) -> dict[str, str]:
    """What the device signs as Matrix signs JSON (specification, appendix "Signing JSON")."""
    return {
        "type": SIGNED_TYPE,
        "audience": server_name,
        "access_token": openid_token,
        "matrix_server_name": openid_server,
    }


class SignIn:
    """Gives out tokens, and takes them back.

    Args:
        records: everything.
        openid: asks homeservers.
        devices: whose signature counts.
        callers: who may call at all.
        access: issues access tokens.
        server_name: of our homeserver; a signature for another FAJMA does not count here.
    """

    def __init__(
        self,
        records: Records,
        openid: OpenId,
        devices: TrustedDevices,
        callers: Callers,
        access: AccessTokens,
        *,
        server_name: str,
    ) -> None:
        self._records = records
        self._openid = openid
        self._devices = devices
        self._callers = callers
        self._access = access
        self._server_name = server_name

    async def begin(
        self, *, openid_token: str, openid_server: str, device_id: str, signature: str,
        now: datetime,
    ) -> SignedTokens:  # fmt: skip
        """Somebody signs in.

        Raises:
            AccessError: not who he says, not with a trusted device, or nobody of ours.
            UnavailableError: the homeserver does not answer.
        """
        account = await self._openid.who(openid_token, openid_server)
        async with self._records.store.transaction() as connection:
            is_first = await self._records.signed_in.take(connection, openid_token, now=now)
        if not is_first:
            await self._audit("api.openid_replayed", account, now)
            raise AccessError("this token was taken before", code="openid_replayed")
        await self._callers.of_account(account)
        device = (await self._devices(account)).get(device_id)
        request = signed_request(
            server_name=self._server_name, openid_token=openid_token, openid_server=openid_server
        )
        key_id = f"ed25519:{device_id}"
        thing = {**request, "signatures": {account: {key_id: signature}}}
        if device is None or not is_signed(thing, account, key_id, device.ed25519):
            await self._audit("api.device_refused", account, now)
            raise AccessError("not signed by a trusted device", code="device_not_signed")
        async with self._records.store.transaction() as connection:
            session = await self._records.signed_in.begin(
                connection, account=account, device_id=device_id, ed25519=device.ed25519, now=now
            )
            refresh = await self._records.signed_in.new_refresh(connection, session.id, now=now)
            await self._records.audit.note(
                connection, actor=account, action="api.sign_in", subject=account, now=now
            )
        return self._tokens(session, refresh, now)

    async def refresh(self, token: str, now: datetime) -> SignedTokens:
        """The next pair of tokens; the refresh token is used up.

        Raises:
            AccessError: it is none, is over, or was used before; then its session ends.
        """
        signed_in = self._records.signed_in
        async with self._records.store.transaction() as connection:
            used = await signed_in.use_refresh(connection, token, now=now)
            if used is not None and used.again and used.session.is_open(now):
                await signed_in.end(connection, used.session.id, now=now)
                await self._records.audit.note(
                    connection,
                    actor=used.session.account,
                    action="api.refresh_reused",
                    subject=used.session.account,
                    now=now,
                    session=used.session.id,
                )
                log.warning("api_refresh_reused", session=used.session.id)
        if used is None:
            raise AccessError("not a refresh token", code="refresh_unknown")
        session = used.session
        if used.again:
            raise AccessError("a refresh token was used twice", code="refresh_reused")
        if used.expired or not session.is_open(now):
            raise AccessError("the session is over", code="session_over")
        await self._callers.of_account(session.account)
        await self._callers.check_device(session)
        async with self._records.store.transaction() as connection:
            refresh = await signed_in.new_refresh(connection, session.id, now=now)
        return self._tokens(session, refresh, now)

    async def end(self, caller: Caller, now: datetime) -> None:
        """The caller signs out."""
        if caller.session is not None:
            async with self._records.store.transaction() as connection:
                await self._records.signed_in.end(connection, caller.session.id, now=now)

    def _tokens(self, session: Session, refresh: str, now: datetime) -> SignedTokens:
        access = self._access.issue(session, now)
        return SignedTokens(access, refresh, int(ACCESS_VALID.total_seconds()))

    async def _audit(self, action: str, account: str, now: datetime) -> None:
        log.warning(action.replace(".", "_"), account=account)
        async with self._records.store.transaction() as connection:
            await self._records.audit.note(
                connection, actor=account, action=action, subject=account, now=now
            )
