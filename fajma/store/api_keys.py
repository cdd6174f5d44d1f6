"""Keys of hospital software at the REST API: what each may do, until when."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from mautrix.util.async_db import Connection

from fajma.errors import InputError
from fajma.sealing import SiteKey
from fajma.store.database import Row, Store, from_ms, to_ms

KEY_PREFIX: Final = "fjk_"
"""Begins every key, so that one that was published by mistake is found by a search."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key, without the secret.

    Attributes:
        id: short name that the operator chose, e.g. ``dossier-patient``.
        scopes: names of what it may do (``appservice.api.permissions.Who``).
        created_at: aware UTC.
        expires_at: aware UTC.
        revoked_at: aware UTC; ``None`` while it is in force.
    """

    id: str
    scopes: frozenset[str]
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None

    def is_valid(self, now: datetime) -> bool:
        """Whether it opens anything."""
        return self.revoked_at is None and now < self.expires_at


class ApiKeys:
    """Repository of the keys."""

    def __init__(self, store: Store, site_key: SiteKey) -> None:
        self._store = store
        self._site_key = site_key

    async def add(
        self,
        connection: Connection,
        key_id: str,
        scopes: Collection[str],
        *,
        now: datetime,
        expires_at: datetime,
    ) -> str:
        """Make a key.

        Returns:
            The secret, which is kept nowhere.

        Raises:
            InputError: ``api_key_exists``, the name is taken, also by a key that was revoked.
        """
        secret = KEY_PREFIX + secrets.token_urlsafe(32)
        added = await connection.fetchrow(
            "INSERT INTO api_key (key_id, fingerprint, scopes, created_at, expires_at)"
            " VALUES ($1, $2, $3, $4, $5) ON CONFLICT (key_id) DO NOTHING RETURNING key_id",
            key_id,
            self._fingerprint(secret),
            " ".join(sorted(scopes)),
            to_ms(now),
            to_ms(expires_at),
        )
        if added is None:
            raise InputError(
                "there is or was a key of this name: choose another, so that the audit tells them"
                " apart",
                code="api_key_exists",
            )
        return secret

    async def all(self) -> list[ApiKey]:
        """Every key that there is or was, by name."""
        rows = await self._store.db.fetch("SELECT * FROM api_key ORDER BY key_id")
        return [_key(row) for row in rows]

    async def of_secret(self, secret: str) -> ApiKey | None:
        """The key whose secret this is, valid or not."""
        row = await self._store.db.fetchrow(
            "SELECT * FROM api_key WHERE fingerprint=$1", self._fingerprint(secret)
        )
        return _key(row) if row else None

    async def revoke(self, connection: Connection, key_id: str, *, now: datetime) -> None:
        """A key opens nothing any more.

        Raises:
            InputError: ``api_key_unknown``, there is none of this name, or it is revoked already.
        """
        revoked = await connection.fetchrow(
            "UPDATE api_key SET revoked_at=$2 WHERE key_id=$1 AND revoked_at IS NULL"
            " RETURNING key_id",
            key_id,
            to_ms(now),
        )
        if revoked is None:
            raise InputError(
                "there is no such key in force: see `fajma api-key list`", code="api_key_unknown"
            )

    def _fingerprint(self, secret: str) -> bytes:
        return self._site_key.fingerprint(b"api key", secret.encode())


def _key(row: Row) -> ApiKey:
    return ApiKey(
        id=row["key_id"],
        scopes=frozenset(row["scopes"].split()),
        created_at=from_ms(row["created_at"]),
        expires_at=from_ms(row["expires_at"]),
        revoked_at=from_ms(row["revoked_at"]) if row["revoked_at"] is not None else None,
    )
