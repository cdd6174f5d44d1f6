"""The readings log: one order, no gap, nothing twice.

A position is given out under a lock that is held until the commit (ADR 0003). Otherwise two
writers could commit out of order, and a follower that has read up to 8 would never see the 7 that
is committed later.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from mautrix.util.async_db import Connection

from fajma.store.database import Row, Store, from_ms, to_ms
from fajma.store.keys import PatientKeys
from fajma.vitals import Clock, DeviceId, Kind, PatientKey, Reading

LOG = "readings"


@dataclass(frozen=True, slots=True)
class NewReading:
    """A reading on its way into the log.

    Attributes:
        record: identity of the reading at its device, 16 bytes (``ingest`` says how it is made).
        patient: who wore the monitor.
        reading: what was measured.
    """

    record: bytes
    patient: PatientKey
    reading: Reading


@dataclass(frozen=True, slots=True)
class LoggedReading:
    """A reading in the log, at its position (1, 2, 3, ...)."""

    position: int
    patient: PatientKey
    reading: Reading


class Readings:
    """Repository of the readings log."""

    def __init__(self, store: Store, keys: PatientKeys) -> None:
        self._store = store
        self._keys = keys

    async def append(self, connection: Connection, batch: Sequence[NewReading]) -> int:
        """Append what is not yet in the log, inside the caller's transaction.

        Returns:
            How many were new; the others were already there (a redelivery).
        """
        position = await lock_head(connection, LOG)
        start = position
        seen: set[tuple[DeviceId, bytes]] = set()
        rows = []
        for new in batch:
            reading = new.reading
            identity = (reading.device, new.record)
            if identity in seen or await connection.fetchval(
                "SELECT 1 FROM reading WHERE device_id=$1 AND record=$2", *identity
            ):
                continue
            seen.add(identity)
            position += 1
            key = await self._keys.get(new.patient)
            rows.append(
                (
                    position,
                    reading.device,
                    new.record,
                    new.patient,
                    to_ms(reading.measured_at),
                    to_ms(reading.received_at),
                    key.seal(_sealed_part(reading), place=_place(new.patient, new.record)),
                )
            )
        if rows:
            await connection.executemany(
                "INSERT INTO reading (position, device_id, record, patient_key, measured_at,"
                " received_at, sealed) VALUES ($1, $2, $3, $4, $5, $6, $7)",
                rows,
            )
            await move_head(connection, LOG, position)
        return position - start

    async def after(
        self, position: int, *, limit: int, patient: PatientKey | None = None
    ) -> list[LoggedReading]:
        """What follows a position, in order; of one patient only, if given."""
        if patient is None:
            rows = await self._store.db.fetch(
                "SELECT * FROM reading WHERE position>$1 ORDER BY position LIMIT $2",
                position,
                limit,
            )
        else:
            rows = await self._store.db.fetch(
                "SELECT * FROM reading WHERE patient_key=$1 AND position>$2"
                " ORDER BY position LIMIT $3",
                patient,
                position,
                limit,
            )
        return [await self._logged(row) for row in rows]

    async def whose(self, position: int, *, limit: int) -> list[tuple[int, PatientKey]]:
        """Position and patient of what follows a position, in order; nothing sealed is opened."""
        rows = await self._store.db.fetch(
            "SELECT position, patient_key FROM reading WHERE position>$1"
            " ORDER BY position LIMIT $2",
            position,
            limit,
        )
        return [(row["position"], PatientKey(row["patient_key"])) for row in rows]

    async def latest(self, patient: PatientKey, *, limit: int) -> list[LoggedReading]:
        """A patient's newest readings, in order."""
        rows = await self._store.db.fetch(
            "SELECT * FROM reading WHERE patient_key=$1 ORDER BY position DESC LIMIT $2",
            patient,
            limit,
        )
        return [await self._logged(row) for row in reversed(rows)]

    async def count(self) -> int:
        """How many readings the log holds."""
        return int(await self._store.db.fetchval("SELECT COUNT(*) FROM reading"))

    async def _logged(self, row: Row) -> LoggedReading:
        patient = PatientKey(row["patient_key"])
        key = await self._keys.get(patient)
        content = json.loads(
            key.open(bytes(row["sealed"]), place=_place(patient, bytes(row["record"])))
        )
        return LoggedReading(
            position=row["position"],
            patient=patient,
            reading=Reading(
                device=DeviceId(row["device_id"]),
                measured_at=from_ms(row["measured_at"]),
                received_at=from_ms(row["received_at"]),
                clock=Clock(content["clock"]),
                values={Kind(kind): Decimal(text) for kind, text in content["values"].items()},
            ),
        )


async def lock_head(connection: Connection, log: str) -> int:
    """Lock a log until the end of the transaction; its last position."""
    return int(
        await connection.fetchval(
            "UPDATE log_head SET position=position WHERE log=$1 RETURNING position", log
        )
    )


async def move_head(connection: Connection, log: str, position: int) -> None:
    """Note the last position given out."""
    await connection.execute("UPDATE log_head SET position=$2 WHERE log=$1", log, position)


def _sealed_part(reading: Reading) -> bytes:
    return json.dumps(
        {
            "clock": reading.clock.value,
            "values": {kind.value: str(value) for kind, value in reading.values.items()},
        }
    ).encode()


def _place(patient: PatientKey, record: bytes) -> str:
    return f"reading/{patient}/{record.hex()}"
