"""Who is signed in at the REST API: sessions, their refresh tokens, OpenID tokens that were taken.

A refresh token is good for one use. One that is used a second time is in two hands, and nobody can
say which of them is the right one: so the session ends (RFC 9700, 4.14.2).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NewType

from mautrix.util.async_db import Connection

from fajma.sealing import SiteKey
from fajma.store.database import Row, Store, from_ms, to_ms

SessionId = NewType("SessionId", str)
"""Identity of a session, 32 hex digits."""

REFRESH_VALID: Final = timedelta(hours=24)
"""FAJMA default: who was away for a day signs in anew."""

SESSION_AT_MOST: Final = timedelta(days=7)
"""FAJMA default: however often it is refreshed."""

_FORGOTTEN_AFTER: Final = timedelta(days=1)
"""An OpenID token lives for an hour (Synapse); after a day its homeserver does not know it."""


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody who signed in.

    Attributes:
        id: its identity.
        account: Matrix user id.
        device_id: of the Matrix device that signed.
        ed25519: the key with which it did, unpadded base64.
        created_at: aware UTC.
        ended_at: aware UTC; ``None`` while it goes on.
    """

    id: SessionId
    account: str
    device_id: str
    ed25519: str
    created_at: datetime
    ended_at: datetime | None

    def is_open(self, now: datetime) -> bool:
        """Whether its tokens count."""
        return self.ended_at is None and now < self.created_at + SESSION_AT_MOST


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What became of a refresh token.

    Attributes:
        session: of which session it is.
        again: whether it was used before.
        expired: whether it came too late.
    """

    session: Session
    again: bool
    expired: bool


class SignedIn:
    """Repository of sessions."""

    def __init__(self, store: Store, site_key: SiteKey) -> None:
        self._store = store
        self._site_key = site_key

    async def take(self, connection: Connection, openid_token: str, *, now: datetime) -> bool:
        """Take a Matrix OpenID token; false if it was taken before."""
        await connection.execute(
            "DELETE FROM openid_taken WHERE taken_at<$1", to_ms(now - _FORGOTTEN_AFTER)
        )
        taken = await connection.fetchrow(
            "INSERT INTO openid_taken (fingerprint, taken_at) VALUES ($1, $2)"
            " ON CONFLICT (fingerprint) DO NOTHING RETURNING taken_at",
            self._site_key.fingerprint(b"openid token", openid_token.encode()),
            to_ms(now),
        )
        return taken is not None

    async def begin(
        self, connection: Connection, *, account: str, device_id: str, ed25519: str, now: datetime
    ) -> Session:
        """Somebody signs in; sessions that are long over are forgotten."""
        long_ago = to_ms(now - SESSION_AT_MOST - REFRESH_VALID)
        await connection.execute(
            "DELETE FROM api_refresh WHERE session_id IN"
            " (SELECT session_id FROM api_session WHERE created_at<$1)",
            long_ago,
        )
        await connection.execute("DELETE FROM api_session WHERE created_at<$1", long_ago)
        session = Session(
            SessionId(secrets.token_hex(16)), account, device_id, ed25519, now, ended_at=None
        )
        await connection.execute(
            "INSERT INTO api_session (session_id, account, device_id, ed25519, created_at)"
            " VALUES ($1, $2, $3, $4, $5)",
            session.id,
            account,
            device_id,
            ed25519,
            to_ms(now),
        )
        return session

    async def new_refresh(
        self, connection: Connection, session: SessionId, *, now: datetime
    ) -> str:
        """Make the next refresh token of a session; it is kept nowhere."""
        token = secrets.token_urlsafe(32)
        await connection.execute(
            "INSERT INTO api_refresh (fingerprint, session_id, expires_at) VALUES ($1, $2, $3)",
            self._fingerprint(token),
            session,
            to_ms(now + REFRESH_VALID),
        )
        return token

    async def use_refresh(
        self, connection: Connection, token: str, *, now: datetime
    ) -> Refreshed | None:
        """Use up a refresh token; ``None`` if it is none of ours."""
        fingerprint = self._fingerprint(token)
        used = await connection.fetchrow(
            "UPDATE api_refresh SET used_at=$2 WHERE fingerprint=$1 AND used_at IS NULL"
            " RETURNING session_id",
            fingerprint,
            to_ms(now),
        )
        row = await connection.fetchrow(
            "SELECT api_session.*, expires_at FROM api_refresh JOIN api_session"
            " ON api_session.session_id=api_refresh.session_id WHERE fingerprint=$1",
            fingerprint,
        )
        if row is None:
            return None
        return Refreshed(_session(row), again=used is None, expired=to_ms(now) >= row["expires_at"])

    async def get(self, session: SessionId) -> Session | None:
        """One session, also one that has ended."""
        row = await self._store.db.fetchrow(
            "SELECT * FROM api_session WHERE session_id=$1", session
        )
        return _session(row) if row else None

    async def end(self, connection: Connection, session: SessionId, *, now: datetime) -> None:
        """None of its tokens counts any more."""
        await connection.execute(
            "UPDATE api_session SET ended_at=$2 WHERE session_id=$1 AND ended_at IS NULL",
            session,
            to_ms(now),
        )

    def _fingerprint(self, token: str) -> bytes:
        return self._site_key.fingerprint(b"refresh token", token.encode())


def _session(row: Row) -> Session:
    return Session(
        id=SessionId(row["session_id"]),
        account=row["account"],
        device_id=row["device_id"],
        ed25519=row["ed25519"],
        created_at=from_ms(row["created_at"]),
        ended_at=from_ms(row["ended_at"]) if row["ended_at"] is not None else None,
    )
