"""What was answered to requests with an ``Idempotency-Key``, so that a repetition gets the same."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from fajma.sealing import SiteKey
from fajma.store.database import Store, to_ms

KEPT: Final = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """One answer.

    Attributes:
        asked: fingerprint of the request that got it.
        status: HTTP status.
        body: as it was sent.
    """

    asked: bytes
    status: int
    body: bytes


class ApiAnswers:
    """Repository of answers; an answer may hold a password, so it is sealed."""

    def __init__(self, store: Store, site_key: SiteKey) -> None:
        self._store = store
        self._site_key = site_key

    async def get(self, caller: str, key: str, *, now: datetime) -> KeptAnswer | None:
        """What this caller was answered under this key within ``KEPT``."""
        name = self._name(caller, key)
        row = await self._store.db.fetchrow(
            "SELECT * FROM api_answer WHERE fingerprint=$1 AND answered_at>$2",
            name,
            to_ms(now - KEPT),
        )
        if row is None:
            return None
        body = self._site_key.site.open(bytes(row["sealed"]), place=_place(name))
        return KeptAnswer(bytes(row["asked"]), row["status"], body)

    async def keep(self, caller: str, key: str, answer: KeptAnswer, *, now: datetime) -> None:
        """Keep an answer; those that are too old are forgotten."""
        name = self._name(caller, key)
        async with self._store.transaction() as connection:
            await connection.execute(
                "DELETE FROM api_answer WHERE answered_at<=$1", to_ms(now - KEPT)
            )
            await connection.execute(
                "INSERT INTO api_answer (fingerprint, asked, answered_at, status, sealed)"
                " VALUES ($1, $2, $3, $4, $5) ON CONFLICT (fingerprint) DO NOTHING",
                name,
                answer.asked,
                to_ms(now),
                answer.status,
                self._site_key.site.seal(answer.body, place=_place(name)),
            )

    def asked(self, method: str, path: str, body: bytes) -> bytes:
        """Fingerprint of a request."""
        return self._site_key.fingerprint(b"request", method.encode(), path.encode(), body)

    def _name(self, caller: str, key: str) -> bytes:
        return self._site_key.fingerprint(b"idempotency key", caller.encode(), key.encode())


def _place(name: bytes) -> str:
    return f"api_answer/{name.hex()}"
