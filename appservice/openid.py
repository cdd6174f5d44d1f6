"""Who shows us a Matrix OpenID token: his own homeserver is asked, ours or a partner's.

A client gets such a token from its homeserver and hands it on; it proves who somebody is and can do
nothing else (client-server API 1.16, "OpenID"). What a homeserver answers is believed of its own
people only.
"""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Final

import aiohttp
import structlog

from appservice.federation import Answer, Homeservers, bounded
from fajma.config import Federation, Homeserver
from fajma.errors import AccessError, UnavailableError
from fajma.store import Records

log = structlog.get_logger()

USERINFO: Final = "/_matrix/federation/v1/openid/userinfo"
WHOLE_TIMEOUT_S: Final = 15.0
"""For finding a partner's homeserver and its answer, together."""

AUDIT_AGAIN_AFTER: Final = timedelta(hours=1)
"""Whoever holds a partner's homeserver must not fill the audit log by asking us again and again."""

SUSPICIOUS: Final = frozenset(
    {
        "openid_foreign_user",
        "openid_answer_odd",
        "server_answer_too_large",
        "server_in_private_network",
        "server_redirects",
    }
)
"""Codes of what an honest homeserver does not do; audited as ``openid.refused``."""

_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,512}")
# User identifiers as the specification allows new ones (appendix "User Identifiers").
_USER: Final = re.compile(r"@[a-z0-9._=/+-]+:(?P<server>.+)")
_USER_MAX_BYTES: Final = 255


class OpenId:
    """Checks OpenID tokens.

    Args:
        ours: our own homeserver.
        federation: whose people are partners'.
        records: for the audit log.
        homeservers: how partners are asked; by their server names if not given.
    """

    def __init__(
        self,
        ours: Homeserver,
        federation: Federation,
        records: Records,
        homeservers: Homeservers | None = None,
    ) -> None:
        self._ours = ours
        self._partners = frozenset(federation.partners)
        self._records = records
        self._homeservers = homeservers or Homeservers(federation.private_networks)
        self._audited: dict[tuple[str, str], datetime] = {}

    async def who(self, token: str, server_name: str) -> str:
        """Whose token it is.

        Args:
            token: ``access_token`` of the client's OpenID token (a secret).
            server_name: its ``matrix_server_name``: the homeserver that gave it.

        Returns:
            A user id of exactly that server, by that server's word.

        Raises:
            AccessError: the token is not good (``openid_token_malformed``,
                ``openid_token_refused``), the server is no partner (``not_a_partner``), gives an
                answer that cannot be (``SUSPICIOUS``), or none (``server_*``).
            UnavailableError: our own homeserver does not answer (``homeserver_unavailable``) or
                does not serve this (``openid_not_served``).
        """
        try:
            return await self._who(token, server_name)
        except AccessError as error:
            known = server_name == self._ours.server_name or server_name in self._partners
            # A name that nobody vouches for could hold anything.
            log.warning("openid_refused", code=error.code, server=server_name if known else None)
            if error.code in SUSPICIOUS:
                await self._audit(server_name, error.code, datetime.now(UTC))
            raise

    async def _who(self, token: str, server_name: str) -> str:
        if not _TOKEN.fullmatch(token):
            raise AccessError("this is not an OpenID token", code="openid_token_malformed")
        if server_name == self._ours.server_name:
            answer = await self._ask_ours(token)
        elif server_name in self._partners:
            answer = await self._ask_partner(token, server_name)
        else:
            raise AccessError("this homeserver is not a partner's", code="not_a_partner")
        if answer.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise AccessError(
                "the homeserver does not know this token (any more)", code="openid_token_refused"
            )
        if answer.status != HTTPStatus.OK:
            raise AccessError("the homeserver cannot check this token", code="server_refuses")
        user = (answer.content or {}).get("sub")
        found = _USER.fullmatch(user) if isinstance(user, str) else None
        if user is None or found is None or len(user.encode()) > _USER_MAX_BYTES:
            raise AccessError("the homeserver names nobody", code="openid_answer_odd")
        if found["server"] != server_name:
            raise AccessError(
                "the homeserver speaks for another one's people", code="openid_foreign_user"
            )
        return str(user)

    async def _ask_partner(self, token: str, server_name: str) -> Answer:
        try:
            async with asyncio.timeout(WHOLE_TIMEOUT_S):
                return await self._homeservers.get(server_name, USERINFO, {"access_token": token})
        except TimeoutError:
            raise AccessError(
                "the partner's homeserver does not answer in time", code="server_unreachable"
            ) from None

    async def _ask_ours(self, token: str) -> Answer:
        """Our own homeserver, where the settings say it is."""
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(WHOLE_TIMEOUT_S)) as session,
                session.get(
                    f"{self._ours.url}{USERINFO}",
                    params={"access_token": token},
                    allow_redirects=False,
                ) as response,
            ):
                answer = await bounded(response)
        except (aiohttp.ClientError, TimeoutError):
            raise UnavailableError(
                f"the homeserver at {self._ours.url} does not answer: start it, or correct"
                " homeserver.url",
                code="homeserver_unavailable",
            ) from None  # the cause quotes the address with the token
        if answer.status == HTTPStatus.NOT_FOUND:
            raise UnavailableError(
                "the homeserver does not check OpenID tokens: add the resource `openid` to the"
                " listener that homeserver.url names",
                code="openid_not_served",
            )
        if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise UnavailableError(
                f"the homeserver at {self._ours.url} cannot do this now"
                f" (HTTP {answer.status}): wait a minute, then look at its log",
                code="homeserver_unavailable",
            )
        return answer

    async def _audit(self, server_name: str, code: str, now: datetime) -> None:
        last = self._audited.get((server_name, code))
        if last is not None and now - last < AUDIT_AGAIN_AFTER:
            return
        self._audited[server_name, code] = now
        async with self._records.store.transaction() as connection:
            await self._records.audit.note(
                connection,
                actor="fajma",
                action="openid.refused",
                subject=server_name,
                now=now,
                code=code,
            )
