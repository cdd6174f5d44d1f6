"""State of the alarm engine, and the outbox of messages that must reach a room."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from mautrix.util.async_db import Connection

from fajma.errors import BugError
from fajma.sealing import Key, SiteKey
from fajma.store.database import Row, Store, from_ms, to_ms
from fajma.store.keys import PatientKeys
from fajma.store.readings import lock_head, move_head
from fajma.vitals import PatientKey

LOG = "outbox"
_LAST: Final = 2**63 - 1

WEBHOOK_ROOM = ""
"""Stands for the room of a delivery that goes to the hospital's webhook."""

_PUT = "INSERT INTO alarm_state (patient_key, changed_at, due_at, sealed)"
_OVERWRITING = (
    "ON CONFLICT (patient_key) DO UPDATE SET sealed=excluded.sealed, due_at=excluded.due_at,"
    " changed_at=CASE WHEN excluded.changed_at>0 THEN excluded.changed_at"
    " ELSE alarm_state.changed_at END"
)


class SentBy(StrEnum):
    """Which of our accounts says it; the value is the local part of its user id.

    A push rule makes phones ring for the second and not for the first.
    """

    HOST = "fajma"
    ALERTS = "fajma-alerts"
    WEBHOOK = "webhook"
    """None of them: it is posted to the hospital's webhook."""
    CHARTS = "charts"
    """``@fajma`` too, apart from its words, which never wait for a chart."""


@dataclass(frozen=True, slots=True)
class NewState:
    """A state to be kept.

    Attributes:
        patient: whose.
        state: the engine's own JSON.
        announced_at: aware UTC time, if something about the alarm was announced by it.
        due_at: aware UTC time at which the engine must look again though nothing comes; ``None``
            for never.
    """

    patient: PatientKey
    state: str
    announced_at: datetime | None = None
    due_at: datetime | None = None


class AlarmStates:
    """Repository of alarm states; the content is the engine's own JSON."""

    def __init__(self, store: Store, keys: PatientKeys) -> None:
        self._store = store
        self._keys = keys

    async def get(self, patient: PatientKey) -> str | None:
        """A patient's state, or ``None`` before the first reading."""
        sealed = await self._store.db.fetchval(
            "SELECT sealed FROM alarm_state WHERE patient_key=$1", patient
        )
        return None if sealed is None else await self.open(patient, bytes(sealed))

    async def sealed(self, patients: Collection[PatientKey]) -> dict[PatientKey, bytes]:
        """The states of these patients, not opened; who has none yet is missing."""
        rows = await self._store.fetch_among(
            "SELECT patient_key, sealed FROM alarm_state WHERE patient_key", patients
        )
        return {PatientKey(row["patient_key"]): bytes(row["sealed"]) for row in rows}

    async def open(self, patient: PatientKey, sealed: bytes) -> str:
        """Open one of them.

        Raises:
            BugError: the patient has no key, or the row was altered.
        """
        key = await self._keys.get(patient)
        return key.open(sealed, place=f"alarm_state/{patient}").decode()

    async def put(self, connection: Connection, *states: NewState) -> None:
        """Keep states, each of another patient, in the caller's transaction."""
        rows = [await self._row(one) for one in states]
        if not rows:
            return
        if self._store.is_sqlite:
            await connection.executemany(f"{_PUT} VALUES ($1, $2, $3, $4) {_OVERWRITING}", rows)
        else:
            columns = [list(column) for column in zip(*rows, strict=True)]
            many = "SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bytea[])"
            await connection.execute(f"{_PUT} {many} {_OVERWRITING}", *columns)

    async def _row(self, new: NewState) -> tuple[PatientKey, int, int | None, bytes]:
        key = await self._keys.get(new.patient)
        return (
            new.patient,
            to_ms(new.announced_at) if new.announced_at else 0,
            to_ms(new.due_at) if new.due_at else None,
            key.seal(new.state.encode(), place=f"alarm_state/{new.patient}"),
        )

    async def due(self, now: datetime, *, limit: int) -> list[PatientKey]:
        """At whom the engine must look, longest due first."""
        rows = await self._store.db.fetch(
            "SELECT patient_key FROM alarm_state WHERE due_at<=$1 ORDER BY due_at LIMIT $2",
            to_ms(now),
            limit,
        )
        return [PatientKey(row["patient_key"]) for row in rows]

    async def put_off(
        self, connection: Connection, due: Mapping[PatientKey, datetime | None]
    ) -> None:
        """Look at these patients later than was thought; their states stay."""
        await connection.executemany(
            "UPDATE alarm_state SET due_at=$2 WHERE patient_key=$1",
            [(patient, to_ms(at) if at else None) for patient, at in due.items()],
        )

    async def changed_since(self, moment: datetime) -> dict[PatientKey, datetime]:
        """Of which patients something was announced since then, and when at last."""
        rows = await self._store.db.fetch(
            "SELECT patient_key, changed_at FROM alarm_state WHERE changed_at>=$1",
            max(to_ms(moment), 1),  # 0: nothing was ever announced
        )
        return {PatientKey(row["patient_key"]): from_ms(row["changed_at"]) for row in rows}


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message that must be in a room exactly once.

    Attributes:
        delivery_id: its identity; also the transaction id of the send and part of its content.
        room_id: where it belongs.
        patient: whose key seals it; ``None`` for what is about no patient.
        content: the Matrix event content, before encryption.
        created_at: aware UTC time of the decision.
        sender: who says it.
    """

    delivery_id: str
    room_id: str
    patient: PatientKey | None
    content: Mapping[str, Any]
    created_at: datetime
    sender: SentBy = SentBy.ALERTS


class Outbox:
    """Repository of deliveries."""

    def __init__(self, store: Store, keys: PatientKeys, site_key: SiteKey) -> None:
        self._store = store
        self._keys = keys
        self._site_key = site_key

    async def add(self, connection: Connection, *deliveries: Delivery) -> None:
        """Promise deliveries, in the transaction of the decision that caused them."""
        if not deliveries:
            return
        # Sealed before the outbox is locked, for others wait on the lock.
        rows = [await self._row(one) for one in deliveries]
        position = await lock_head(connection, LOG)
        await move_head(connection, LOG, position + len(rows))
        await connection.executemany(
            "INSERT INTO outbox (position, delivery_id, sender, room_id, patient_key, created_at,"
            " sealed) VALUES ($1, $2, $3, $4, $5, $6, $7)",
            [(position + number, *row) for number, row in enumerate(rows, 1)],
        )

    async def _row(self, delivery: Delivery) -> tuple[str, str, str, PatientKey | None, int, bytes]:
        key = await self._key(delivery.patient)
        return (
            delivery.delivery_id,
            delivery.sender.value,
            delivery.room_id,
            delivery.patient,
            to_ms(delivery.created_at),
            key.seal(json.dumps(delivery.content).encode(), place=f"outbox/{delivery.delivery_id}"),
        )

    async def told_about(
        self,
        patient: PatientKey,
        *,
        sender: SentBy = SentBy.ALERTS,
        limit: int,
        before: int | None = None,
        after: int | None = None,
    ) -> list[tuple[int, Delivery | None]]:
        """What was promised about a patient, with its place in the outbox.

        A row that does not open is ``None``: it harms no other.

        Args:
            patient: about whom.
            sender: who says it.
            limit: how many at most.
            before: the newest first, from below this place (all where ``None``) ...
            after: ... or, if this is given, the oldest first, from above it.
        """
        compared, order = ("<", "DESC") if after is None else (">", "ASC")
        place = after if after is not None else before if before is not None else _LAST
        rows = await self._store.db.fetch(
            f"SELECT * FROM outbox WHERE patient_key=$1 AND sender=$2 AND position{compared}$3"  # noqa: S608 - written by us
            f" ORDER BY position {order} LIMIT $4",
            patient,
            sender.value,
            place,
            limit,
        )
        found: list[tuple[int, Delivery | None]] = []
        for row in rows:
            delivery = None
            with contextlib.suppress(BugError):
                delivery = await self._opened(row)
            found.append((row["position"], delivery))
        return found

    async def rooms_waiting(
        self, sender: SentBy = SentBy.ALERTS, *, about_patients: bool = False
    ) -> list[str]:
        """Rooms for which something is not yet known to be delivered, longest waiting first.

        Args:
            sender: whose messages.
            about_patients: only where something about a patient waits, not notices alone.
        """
        only = " AND patient_key IS NOT NULL" if about_patients else ""
        rows = await self._store.db.fetch(
            f"SELECT room_id FROM outbox WHERE event_id IS NULL AND sender=$1{only}"  # noqa: S608 - written by us
            " GROUP BY room_id ORDER BY MIN(position)",
            sender.value,
        )
        return [row["room_id"] for row in rows]

    async def waiting(
        self, room_id: str, *, sender: SentBy = SentBy.ALERTS, limit: int = 1000
    ) -> list[str]:
        """Ids of what is not yet known to be in a room, oldest first."""
        rows = await self._store.db.fetch(
            "SELECT delivery_id FROM outbox WHERE event_id IS NULL AND room_id=$1 AND sender=$2"
            " ORDER BY position LIMIT $3",
            room_id,
            sender.value,
            limit,
        )
        return [row["delivery_id"] for row in rows]

    async def get(self, delivery_id: str) -> Delivery:
        """One delivery, opened.

        Raises:
            BugError: there is none, or it does not open.
        """
        row = await self._store.db.fetchrow(
            "SELECT * FROM outbox WHERE delivery_id=$1", delivery_id
        )
        if row is None:
            raise BugError("a delivery that was promised is gone", code="delivery_gone")
        return await self._opened(row)

    async def _opened(self, row: Row) -> Delivery:
        delivery_id = row["delivery_id"]
        patient = PatientKey(row["patient_key"]) if row["patient_key"] is not None else None
        key = await self._key(patient)
        content = key.open(bytes(row["sealed"]), place=f"outbox/{delivery_id}")
        return Delivery(
            delivery_id=delivery_id,
            room_id=row["room_id"],
            patient=patient,
            content=json.loads(content),
            created_at=from_ms(row["created_at"]),
            sender=SentBy(row["sender"]),
        )

    async def about(self, patient: PatientKey, *, since: datetime) -> list[Delivery]:
        """What ``@fajma-alerts`` said, or will say, about a patient, oldest first.

        Raises:
            BugError: one of them does not open.
        """
        rows = await self._store.db.fetch(
            "SELECT delivery_id FROM outbox WHERE patient_key=$1 AND sender=$2 AND created_at>=$3"
            " ORDER BY position",
            patient,
            SentBy.ALERTS.value,
            to_ms(since),
        )
        return [await self.get(row["delivery_id"]) for row in rows]

    async def is_promised(self, delivery_id: str) -> bool:
        """Whether a delivery was promised already."""
        return (
            await self._store.db.fetchval(
                "SELECT position FROM outbox WHERE delivery_id=$1", delivery_id
            )
            is not None
        )

    async def delivered(self, delivery_id: str, event_id: str) -> None:
        """The homeserver confirmed it: the event is in the room."""
        await self._store.db.execute(
            "UPDATE outbox SET event_id=$2 WHERE delivery_id=$1", delivery_id, event_id
        )

    async def call_off(self, connection: Connection, patient: PatientKey, sender: SentBy) -> None:
        """What waits about a patient is no longer wanted: somebody takes care."""
        await connection.execute(
            "UPDATE outbox SET event_id='' WHERE patient_key=$1 AND sender=$2 AND event_id IS NULL",
            patient,
            sender.value,
        )

    async def event_before(self, delivery_id: str) -> str | None:
        """The event that the last delivery before this one became, in its room, by its sender."""
        value = await self._store.db.fetchval(
            "SELECT before.event_id FROM outbox AS one JOIN outbox AS before"
            " ON before.room_id=one.room_id AND before.sender=one.sender"
            " AND before.position<one.position WHERE one.delivery_id=$1"
            " AND before.event_id IS NOT NULL ORDER BY before.position DESC LIMIT 1",
            delivery_id,
        )
        return str(value) if value is not None else None

    async def event_of(self, delivery_id: str) -> str | None:
        """The event that a delivery became, once it is known to be in its room."""
        value = await self._store.db.fetchval(
            "SELECT event_id FROM outbox WHERE delivery_id=$1", delivery_id
        )
        return str(value) if value is not None else None

    async def delivery_of(self, event_id: str) -> Delivery | None:
        """The delivery that became an event; ``None`` for an event that is none of ours.

        Raises:
            BugError: it does not open.
        """
        delivery_id = await self._store.db.fetchval(
            "SELECT delivery_id FROM outbox WHERE event_id=$1", event_id
        )
        return None if delivery_id is None else await self.get(str(delivery_id))

    async def counts(self) -> tuple[int, int]:
        """How many deliveries were promised, and how many are in their rooms."""
        row = await self._store.db.fetchrow(
            "SELECT COUNT(*) AS promised, COUNT(event_id) AS delivered FROM outbox"
        )
        return (int(row["promised"]), int(row["delivered"])) if row else (0, 0)

    async def _key(self, patient: PatientKey | None) -> Key:
        return self._site_key.site if patient is None else await self._keys.get(patient)
