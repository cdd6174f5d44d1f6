"""What the homeserver holds to speak for us when we are silent, and which rooms it spoke to."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from mautrix.util.async_db import Connection

from fajma.store.alarms import SentBy
from fajma.store.database import Store, from_ms, to_ms
from fajma.vitals import PatientKey


@dataclass(frozen=True, slots=True)
class Switch:
    """The delayed event of one room.

    Attributes:
        room_id: where it comes when nobody puts it off.
        delay_id: the homeserver's name for it.
        mark: of what was fixed as it was scheduled: words, whom it mentions, the room key.
        maintenance_id: the planned stop that it waits out, if there was one.
        alive_at: when it was last known to be held back, aware UTC.
    """

    room_id: str
    delay_id: str
    mark: str
    maintenance_id: str | None
    alive_at: datetime


class Switches:
    """Repository of delayed events; one at most for each room."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def all(self) -> dict[str, Switch]:
        """Every one, by room; in the order of rooms."""
        rows = await self._store.db.fetch("SELECT * FROM dead_man ORDER BY room_id")
        return {
            row["room_id"]: Switch(
                room_id=row["room_id"],
                delay_id=row["delay_id"],
                mark=row["mark"],
                maintenance_id=row["maintenance_id"],
                alive_at=from_ms(row["alive_at"]),
            )
            for row in rows
        }

    async def put(self, switch: Switch) -> None:
        """A room's event, instead of the one before."""
        await self._store.db.execute(
            "INSERT INTO dead_man (room_id, delay_id, mark, maintenance_id, alive_at)"
            " VALUES ($1, $2, $3, $4, $5) ON CONFLICT (room_id) DO UPDATE SET"
            " delay_id=excluded.delay_id, mark=excluded.mark,"
            " maintenance_id=excluded.maintenance_id, alive_at=excluded.alive_at",
            switch.room_id,
            switch.delay_id,
            switch.mark,
            switch.maintenance_id,
            to_ms(switch.alive_at),
        )

    async def alive(self, switches: Collection[Switch], *, now: datetime) -> None:
        """They were put off again."""
        if switches:
            async with self._store.transaction() as connection:
                await connection.executemany(
                    "UPDATE dead_man SET alive_at=$2 WHERE delay_id=$1",
                    [(one.delay_id, to_ms(now)) for one in switches],
                )

    async def drop(self, delay_id: str) -> None:
        """The room needs none any more."""
        await self._store.db.execute("DELETE FROM dead_man WHERE delay_id=$1", delay_id)

    async def fired(self, switch: Switch) -> None:
        """It is in its room, which is owed the word that the silence is over."""
        async with self._store.transaction() as connection:
            await self.silent(connection, switch.room_id, since=switch.alive_at)
            await connection.execute("DELETE FROM dead_man WHERE delay_id=$1", switch.delay_id)

    # --- silences --------------------------------------------------------------------------------

    async def silent(self, connection: Connection, room_id: str, *, since: datetime) -> None:
        """A room was told of a silence; one that it knows of already goes on."""
        await connection.execute(
            "INSERT INTO silence (room_id, since) VALUES ($1, $2) ON CONFLICT (room_id) DO NOTHING",
            room_id,
            to_ms(since),
        )

    async def silences(self) -> dict[str, datetime]:
        """Rooms that are owed the word that it is over, and since when it lasts there."""
        rows = await self._store.db.fetch("SELECT room_id, since FROM silence ORDER BY room_id")
        return {row["room_id"]: from_ms(row["since"]) for row in rows}

    async def over(self, connection: Connection, room_id: str) -> None:
        """The room will be told: in the transaction that promises the message."""
        await connection.execute("DELETE FROM silence WHERE room_id=$1", room_id)

    # --- rooms in alarm --------------------------------------------------------------------------

    async def room_of(self, patient: PatientKey) -> str | None:
        """The room in which a patient's alarm was told last."""
        room_id = await self._store.db.fetchval(
            "SELECT room_id FROM outbox WHERE patient_key=$1 AND sender=$2"
            " ORDER BY position DESC LIMIT 1",
            patient,
            SentBy.ALERTS.value,
        )
        return None if room_id is None else str(room_id)
