"""What was refused: counted by reason, and kept sealed so that a person can look into it."""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NewType

from mautrix.util.async_db import Connection

from fajma.sealing import Key
from fajma.store.database import Store, from_ms, to_ms

MAX_KEPT: Final = 10_000
"""Newest refused messages kept; older ones make room, their count remains."""

MAX_KEPT_OF_DEVICE: Final = 2_000
"""The same for one monitor, so that none crowds out what the others had refused."""

UNKNOWN_DEVICE: Final = "unknown_device"
NO_PATIENT_KEY: Final = "no_patient_key"
RATE_LIMITED: Final = "rate_limited"
SEQUENCE_REUSED: Final = "sequence_reused"

REPLAYABLE: Final = frozenset({UNKNOWN_DEVICE, NO_PATIENT_KEY, RATE_LIMITED, SEQUENCE_REUSED})
"""Refusals that may be none when the message is looked at again. They have room of their own, which
rubbish cannot take: a v2 monitor deletes what we keep here."""

MAX_REPLAYABLE: Final = 200_000
"""Most such messages kept."""

MAX_REPLAYABLE_OF_DEVICE: Final = 20_000
"""The same for one monitor: more than a day of one that sends each 5 s."""

MAX_PAYLOAD_BYTES: Final = 16_384
"""How much of a refused payload is kept: the largest message that could still become a reading."""

QuarantineId = NewType("QuarantineId", str)
"""Identity of a kept message, 16 hex digits."""


@dataclass(frozen=True, slots=True)
class Refused:
    """One message, or one value of a message, that did not become a reading.

    Attributes:
        reason: stable code, e.g. ``not_json``.
        topic: MQTT topic it came on.
        payload: its bytes.
        received_at: aware UTC.
        device: whose topic it is, or ``unknown``.
        keep: whether the message itself is kept; it is counted anyway.
        again: it came out of the quarantine, where it is counted and kept already.
    """

    reason: str
    topic: str
    payload: bytes
    received_at: datetime
    device: str = "unknown"
    keep: bool = True
    again: bool = False


@dataclass(frozen=True, slots=True)
class Kept:
    """A refused message in the quarantine; what it says stays sealed until ``open``."""

    id: QuarantineId
    reason: str
    device: str
    received_at: datetime


class Quarantine:
    """Repository of refused messages."""

    def __init__(self, store: Store, site: Key) -> None:
        self._store = store
        self._site = site

    async def keep(self, connection: Connection, refused: Sequence[Refused]) -> int:
        """Count and keep, inside the caller's transaction.

        Returns:
            How many older messages had to make room.
        """
        for reason, count in sorted(Counter(one.reason for one in refused).items()):
            await connection.execute(
                "INSERT INTO rejection (reason, count) VALUES ($1, $2)"
                " ON CONFLICT (reason) DO UPDATE SET count=rejection.count+$2",
                reason,
                count,
            )
        rows = []
        for one in refused:
            if one.keep:
                quarantine_id = secrets.token_hex(8)
                content = json.dumps(
                    {"topic": one.topic, "payload": one.payload[:MAX_PAYLOAD_BYTES].hex()}
                )
                sealed = self._site.seal(content.encode(), place=f"quarantine/{quarantine_id}")
                rows.append((quarantine_id, one.reason, one.device, to_ms(one.received_at), sealed))
        if not rows:
            return 0
        await connection.executemany(
            "INSERT INTO quarantine (quarantine_id, reason, device_id, received_at, sealed)"
            " VALUES ($1, $2, $3, $4, $5)",
            rows,
        )
        return await self._make_room(connection, [one for one in refused if one.keep])

    async def _make_room(self, connection: Connection, kept: Sequence[Refused]) -> int:
        """The oldest of too many go; returns how many."""
        gone = 0
        for replayable in sorted({one.reason in REPLAYABLE for one in kept}):
            names = ", ".join(f"'{reason}'" for reason in sorted(REPLAYABLE))
            among = f"reason {'' if replayable else 'NOT '}IN ({names})"
            most = MAX_REPLAYABLE if replayable else MAX_KEPT
            most_of_one = MAX_REPLAYABLE_OF_DEVICE if replayable else MAX_KEPT_OF_DEVICE
            for device in sorted(
                {one.device for one in kept if (one.reason in REPLAYABLE) is replayable}
            ):
                gone += await _forget(connection, f"{among} AND device_id=$3", most_of_one, device)
            gone += await _forget(connection, among, most)
        return gone

    async def counts(self) -> dict[str, int]:
        """How often each reason occurred, ever."""
        rows = await self._store.db.fetch("SELECT reason, count FROM rejection ORDER BY reason")
        return {row["reason"]: row["count"] for row in rows}

    async def listed(
        self, *, device: str | None = None, reason: str | None = None, limit: int = 100
    ) -> list[Kept]:
        """What is kept, oldest first; of one monitor or for one reason, if given."""
        rows = await self._store.db.fetch(
            "SELECT quarantine_id, reason, device_id, received_at FROM quarantine"
            " WHERE ($1='' OR device_id=$1) AND ($2='' OR reason=$2)"
            " ORDER BY received_at, quarantine_id LIMIT $3",
            device or "",
            reason or "",
            limit,
        )
        return [
            Kept(
                QuarantineId(row["quarantine_id"]),
                row["reason"],
                row["device_id"],
                from_ms(row["received_at"]),
            )
            for row in rows
        ]

    async def open(self, kept: Kept) -> Refused | None:
        """A kept message with its content; ``None`` if it is gone."""
        sealed = await self._store.db.fetchval(
            "SELECT sealed FROM quarantine WHERE quarantine_id=$1", kept.id
        )
        if sealed is None:
            return None
        content = json.loads(self._site.open(bytes(sealed), place=f"quarantine/{kept.id}"))
        return Refused(
            kept.reason,
            content["topic"],
            bytes.fromhex(content["payload"]),
            kept.received_at,
            kept.device,
        )

    async def drop(self, ids: Collection[QuarantineId]) -> None:
        """Forget kept messages, whose readings are in the log by now."""
        async with self._store.transaction() as connection:
            for one in ids:
                await connection.execute("DELETE FROM quarantine WHERE quarantine_id=$1", one)

    async def expire(self, *, before: datetime) -> int:
        """Forget what was received earlier; how many messages that was."""
        gone = await self._store.db.fetch(
            "DELETE FROM quarantine WHERE received_at<$1 RETURNING quarantine_id", to_ms(before)
        )
        return len(gone)


async def _forget(connection: Connection, among: str, most: int, *more: object) -> int:
    """Forget what is beyond the newest of some messages; returns how many."""
    rows = await connection.fetch(
        f"SELECT quarantine_id FROM quarantine WHERE {among}"  # noqa: S608 - written by us
        " ORDER BY received_at DESC LIMIT $2 OFFSET $1",
        most,
        most,
        *more,
    )
    if rows:
        await connection.executemany(
            "DELETE FROM quarantine WHERE quarantine_id=$1",
            [(row["quarantine_id"],) for row in rows],
        )
    return len(rows)
