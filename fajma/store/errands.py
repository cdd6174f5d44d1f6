"""Errands: what was ordered by a command in a room and is carried out by the application service.

The order is checked where it is read, and carried out where rooms are made, which may be two
processes. What lies between is a row here: noted in the transaction that takes the command, ended
in the one that promises the answer. What an errand says may be about a patient who has no record
yet, so it is sealed with the site's key, and gone once the errand has ended.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from mautrix.util.async_db import Connection

from fajma.language import Language
from fajma.sealing import SiteKey
from fajma.store.database import Row, Store, from_ms, to_ms
from fajma.store.readings import lock_head, move_head

LOG: Final = "errands"
"""Gives errands their order."""

PROPOSED: Final = "proposed"
"""Outcome of what was only asked about: it is ordered by a further command."""


class ErrandKind(StrEnum):
    """What is to be done; the value is stable."""

    OPEN = "open"
    INVITE = "invite"
    REMOVE = "remove"
    LINK = "link"
    UNLINK = "unlink"
    CALL = "call"
    LANGUAGE = "language"
    ADMIT = "admit"
    END = "end"
    SIGN = "sign"


@dataclass(frozen=True, slots=True)
class Errand:
    """One thing to be done.

    Attributes:
        id: 64 hex digits, out of the command itself, so that no command makes two.
        kind: what.
        room_id: where it was typed and is answered.
        who: Matrix user id of who ordered it.
        asked_at: aware UTC time of the order.
        language: of the answer.
        event_id: of the command, to which the answer is a reply.
        said: what the command named, e.g. ``{"account": "@awa:clinic.example"}``.
        tried: whether it was tried in vain, and the room told that it takes longer.
    """

    id: str
    kind: ErrandKind
    room_id: str
    who: str
    asked_at: datetime
    language: Language
    event_id: str
    said: Mapping[str, str]
    tried: bool = False


class Errands:
    """Repository of errands."""

    def __init__(self, store: Store, site_key: SiteKey) -> None:
        self._store = store
        self._site_key = site_key

    async def add(self, connection: Connection, errand: Errand) -> None:
        """Order it, in the transaction that takes the command."""
        await self._put(connection, errand, ended_at=None, outcome=None)

    async def propose(self, connection: Connection, errand: Errand) -> None:
        """Note that its consequences were told, for ``is_proposed``; nothing is ordered yet."""
        await self._put(connection, errand, ended_at=errand.asked_at, outcome=PROPOSED)

    async def is_proposed(self, errand: Errand, *, since: datetime) -> bool:
        """Whether the same person was told of the same in the same room since then."""
        return bool(
            await self._store.db.fetchval(
                "SELECT COUNT(*) FROM errand WHERE room_id=$1 AND kind=$2 AND who=$3"
                " AND outcome=$4 AND asked_at>=$5",
                errand.room_id,
                errand.kind.value,
                errand.who,
                PROPOSED,
                to_ms(since),
            )
        )

    async def rooms_waiting(self) -> list[str]:
        """Rooms in which something was ordered that has not ended, longest waiting first."""
        rows = await self._store.db.fetch(
            "SELECT room_id FROM errand WHERE ended_at IS NULL GROUP BY room_id"
            " ORDER BY MIN(position)"
        )
        return [row["room_id"] for row in rows]

    async def next_in(self, room_id: str) -> str | None:
        """Id of what was ordered first in a room and has not ended."""
        value = await self._store.db.fetchval(
            "SELECT errand_id FROM errand WHERE ended_at IS NULL AND room_id=$1"
            " ORDER BY position LIMIT 1",
            room_id,
        )
        return None if value is None else str(value)

    async def get(self, errand_id: str) -> Errand | None:
        """One that has not ended; ``None`` for any other.

        Raises:
            BugError: it does not open.
        """
        row = await self._store.db.fetchrow(
            "SELECT * FROM errand WHERE errand_id=$1 AND ended_at IS NULL", errand_id
        )
        return None if row is None else self._errand(row)

    async def told(self, connection: Connection, errand_id: str, *, now: datetime) -> bool:
        """The room is told, in this transaction, that it takes longer.

        Returns:
            False if it was told before.
        """
        row = await connection.fetchrow(
            "UPDATE errand SET told_at=$2 WHERE errand_id=$1 AND told_at IS NULL"
            " RETURNING errand_id",
            errand_id,
            to_ms(now),
        )
        return row is not None

    async def end(
        self, connection: Connection, errand_id: str, outcome: str, *, now: datetime
    ) -> bool:
        """It has ended, in the transaction that promises the answer; what it said is forgotten.

        Args:
            connection: of that transaction.
            errand_id: which.
            outcome: ``done``, or the stable code of why not.
            now: aware UTC.

        Returns:
            False if it had ended before.
        """
        row = await connection.fetchrow(
            "UPDATE errand SET ended_at=$2, outcome=$3, sealed=NULL"
            " WHERE errand_id=$1 AND ended_at IS NULL RETURNING errand_id",
            errand_id,
            to_ms(now),
            outcome,
        )
        return row is not None

    async def outcome_of(self, errand_id: str) -> str | None:
        """How it ended; ``None`` while it has not."""
        value = await self._store.db.fetchval(
            "SELECT outcome FROM errand WHERE errand_id=$1", errand_id
        )
        return None if value is None else str(value)

    async def _put(
        self,
        connection: Connection,
        errand: Errand,
        *,
        ended_at: datetime | None,
        outcome: str | None,
    ) -> None:
        kept = {
            "language": errand.language.value,
            "event_id": errand.event_id,
            "said": dict(errand.said),
        }
        sealed = self._site_key.site.seal(json.dumps(kept).encode(), place=_place(errand.id))
        position = await lock_head(connection, LOG) + 1
        await move_head(connection, LOG, position)
        await connection.execute(
            "INSERT INTO errand (errand_id, position, kind, room_id, who, asked_at, sealed,"
            " ended_at, outcome) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            errand.id,
            position,
            errand.kind.value,
            errand.room_id,
            errand.who,
            to_ms(errand.asked_at),
            sealed if ended_at is None else None,
            to_ms(ended_at) if ended_at is not None else None,
            outcome,
        )

    def _errand(self, row: Row) -> Errand:
        sealed = bytes(row["sealed"])
        kept = json.loads(self._site_key.site.open(sealed, place=_place(row["errand_id"])))
        return Errand(
            id=row["errand_id"],
            kind=ErrandKind(row["kind"]),
            room_id=row["room_id"],
            who=row["who"],
            asked_at=from_ms(row["asked_at"]),
            language=Language(kept["language"]),
            event_id=kept["event_id"],
            said=kept["said"],
            tried=row["told_at"] is not None,
        )


def _place(errand_id: str) -> str:
    return f"errand/{errand_id}"
