"""The readings log: one order, no gap, nothing twice.

A position is given out under a lock that is held until the commit (ADR 0003). Otherwise two
writers could commit out of order, and a follower that has read up to 8 would never see the 7 that
is committed later.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final, cast

import asyncpg
from mautrix.util.async_db import Connection

from fajma.errors import BugError
from fajma.store.database import Row, Store, from_ms, to_ms
from fajma.store.keys import PatientKeys
from fajma.store.tally import Tally
from fajma.vitals import Age, Clock, DeviceId, Kind, PatientKey, Reading

LOG: Final = "readings"
UNREADABLE: Final = "unreadable"
"""Counter of the rows that do not open."""

_LAST: Final = 2**63 - 1
SCANNED: Final = 5000
"""Readings of a patient that are looked at for one page of a span of time: seven hours at one in
five seconds."""

_BEGINNING: Final = datetime.min.replace(tzinfo=UTC)
_END: Final = datetime.max.replace(tzinfo=UTC)
_AHEAD_MS: Final = 3_600_000
"""More than any clock of a monitor that is believed goes ahead (``bridges.mqtt_vitals.clocks``)."""

ASKED_AT_ONCE: Final = 5000
"""Readings looked for in one query: some builds of SQLite take no more than 32 766 variables."""

_COLUMNS: Final = (
    "position",
    "device_id",
    "record",
    "patient_key",
    "measured_at",
    "received_at",
    "sealed",
    "trace",
)

_UNREADABLE: Final = (BugError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError)
"""What opening an altered row comes to."""

_Row = tuple[DeviceId, bytes, PatientKey, int, int, bytes, bytes | None]
"""A row of the log without its position: the columns in their order."""


class Fate(StrEnum):
    """What became of a reading on its way into the log."""

    STORED = "stored"
    REPEATED = "repeated"
    """The log has it already: a redelivery."""
    REUSED = "reused"
    """The log has another reading under the same identity; this one is not in it."""


@dataclass(frozen=True, slots=True)
class NewReading:
    """A reading on its way into the log.

    Attributes:
        record: identity of the reading at its device, 8 or 16 bytes (``ingest`` says how it is
            made; one of 16 bytes that begins with 8 bytes that are another record is a v2 record
            whose number was used before).
        patient: who wore the monitor.
        reading: what was measured.
        trace: fingerprint of what a v2 record says, 8 bytes; ``None`` for v1, whose identity is
            made of what it says.
    """

    record: bytes
    patient: PatientKey
    reading: Reading
    trace: bytes | None = None


@dataclass(frozen=True, slots=True)
class LoggedReading:
    """A reading in the log, at its position (1, 2, 3, ...)."""

    position: int
    patient: PatientKey
    reading: Reading


@dataclass(frozen=True, slots=True)
class SealedReading:
    """A reading in the log that was not opened yet; its row is for ``Readings.open`` alone."""

    position: int
    patient: PatientKey
    row: Row


class Readings:
    """Repository of the readings log.

    A row that does not open (it was altered, or the patient's key is gone) is an error where one
    reading is asked for; ``open_all`` is for those who must go on with the others.
    """

    def __init__(self, store: Store, keys: PatientKeys) -> None:
        self._store = store
        self._keys = keys

    async def append(self, connection: Connection, batch: Sequence[NewReading]) -> list[Fate]:
        """Append what is not yet in the log, inside the caller's transaction.

        Returns:
            What became of each reading, in order.
        """
        # Sealed before the log is locked, for others wait on the lock.
        rows = [await self._row(new) for new in batch]
        position = await lock_head(connection, LOG)
        known = await self._known(connection, rows)
        fates = []
        new = []
        for row in rows:
            identity = (row[0], row[1])
            if identity in known:
                fates.append(Fate.REPEATED if known[identity] == row[6] else Fate.REUSED)
                continue
            known[identity] = row[6]
            fates.append(Fate.STORED)
            position += 1
            new.append((position, *row))
        if new:
            if self._store.is_sqlite:
                places = ", ".join(f"${n}" for n in range(1, len(_COLUMNS) + 1))
                await connection.executemany(
                    f"INSERT INTO reading ({', '.join(_COLUMNS)}) VALUES ({places})",  # noqa: S608
                    new,
                )
            else:
                postgres = cast("asyncpg.Connection", connection.wrapped)
                await postgres.copy_records_to_table("reading", records=new, columns=_COLUMNS)
            await move_head(connection, LOG, position)
        return fates

    async def _row(self, new: NewReading) -> _Row:
        reading = new.reading
        key = await self._keys.get(new.patient)
        return (
            reading.device,
            new.record,
            new.patient,
            to_ms(reading.measured_at),
            to_ms(reading.received_at),
            key.seal(_sealed_part(reading), place=_place(new.patient, new.record)),
            new.trace,
        )

    async def has(self, connection: Connection, batch: Sequence[NewReading]) -> list[bool]:
        """Which of these records the log has, whatever they say."""
        identities = [(new.reading.device, new.record) for new in batch]
        known = await self._known(connection, identities)
        return [one in known for one in identities]

    async def _known(
        self, connection: Connection, rows: Sequence[tuple[Any, ...]]
    ) -> dict[tuple[DeviceId, bytes], bytes | None]:
        """Which of these records the log has already, with their traces.

        Args:
            connection: of the transaction.
            rows: each begins with monitor and record.
        """
        if not rows:
            return {}
        if self._store.is_sqlite:
            found = []
            for start in range(0, len(rows), ASKED_AT_ONCE):
                part = rows[start : start + ASKED_AT_ONCE]
                asked = ", ".join(f"(${2 * n + 1}, ${2 * n + 2})" for n in range(len(part)))
                found += await connection.fetch(
                    f"WITH asked (device_id, record) AS (VALUES {asked})"  # noqa: S608
                    " SELECT device_id, record, trace"
                    " FROM asked JOIN reading USING (device_id, record)",
                    *itertools.chain.from_iterable(row[:2] for row in part),
                )
        else:
            found = await connection.fetch(
                "SELECT device_id, record, trace"
                " FROM unnest($1::text[], $2::bytea[]) AS asked (device_id, record)"
                " JOIN reading USING (device_id, record)",
                [row[0] for row in rows],
                [row[1] for row in rows],
            )
        return {
            (row["device_id"], bytes(row["record"])): (
                bytes(row["trace"]) if row["trace"] is not None else None
            )
            for row in found
        }

    async def after(
        self, position: int, *, limit: int, patient: PatientKey | None = None
    ) -> list[LoggedReading]:
        """What follows a position, in order; of one patient only, if given."""
        return [await self._logged(row) for row in await self._rows_after(position, limit, patient)]

    async def _rows_after(
        self, position: int, limit: int, patient: PatientKey | None
    ) -> Sequence[Row]:
        if patient is None:
            return await self._store.db.fetch(
                "SELECT * FROM reading WHERE position>$1 ORDER BY position LIMIT $2",
                position,
                limit,
            )
        return await self._store.db.fetch(
            "SELECT * FROM reading WHERE patient_key=$1 AND position>$2 ORDER BY position LIMIT $3",
            patient,
            position,
            limit,
        )

    async def sealed_after(
        self, position: int, *, limit: int, patient: PatientKey | None = None
    ) -> list[SealedReading]:
        """What follows a position, in order, not opened: one that does not open harms no other."""
        rows = await self._rows_after(position, limit, patient)
        await self._keys.have({PatientKey(row["patient_key"]) for row in rows})
        return [_sealed(row) for row in rows]

    async def sealed_between(
        self, patients: Collection[PatientKey], after: int, until: int
    ) -> list[SealedReading]:
        """What stands between two positions of some patients, in order, the last one included."""
        rows = await self._store.fetch_among(
            "SELECT * FROM reading WHERE position>$2 AND position<=$3 AND patient_key",
            patients,
            after,
            until,
        )
        found = [
            SealedReading(row["position"], PatientKey(row["patient_key"]), row) for row in rows
        ]
        return sorted(found, key=lambda one: one.position)

    async def whose(self, position: int, *, limit: int) -> list[tuple[int, PatientKey]]:
        """Position and patient of what follows a position, in order; nothing sealed is fetched."""
        rows = await self._store.db.fetch(
            "SELECT position, patient_key FROM reading WHERE position>$1"
            " ORDER BY position LIMIT $2",
            position,
            limit,
        )
        return [(row["position"], PatientKey(row["patient_key"])) for row in rows]

    async def open(self, sealed: SealedReading) -> LoggedReading:
        """Open one of them.

        Raises:
            BugError: the patient has no key, or the row was altered.
        """
        return await self._logged(sealed.row)

    async def open_all(
        self, sealed: Sequence[SealedReading]
    ) -> tuple[list[LoggedReading], list[int]]:
        """Open what opens.

        Returns:
            The readings, and the positions of the rows that do not open, both in order.
        """
        locked = await self._keys.missing({one.patient for one in sealed})
        opened: list[LoggedReading] = []
        unreadable: list[int] = []
        for one in sealed:
            try:
                if one.patient not in locked:
                    opened.append(await self._logged(one.row))
                    continue
            except _UNREADABLE:
                pass
            unreadable.append(one.position)
        return opened, unreadable

    async def note_unreadable(self, positions: Sequence[int], now: datetime) -> int:
        """Remember rows that do not open; they are in the tally, each once.

        Returns:
            How many of them were not known yet.
        """
        async with self._store.transaction() as connection:
            new = 0
            for position in positions:
                new += len(
                    await connection.fetch(
                        "INSERT INTO unreadable_reading (position, noted_at) VALUES ($1, $2)"
                        " ON CONFLICT (position) DO NOTHING RETURNING position",
                        position,
                        to_ms(now),
                    )
                )
            await Tally(self._store).add(connection, {UNREADABLE: new})
        return new

    async def locked(self, patients: Collection[PatientKey]) -> set[PatientKey]:
        """Of which of these patients nothing can be sealed: their keys are gone or broken."""
        return await self._keys.missing(patients)

    async def latest(
        self, patient: PatientKey, *, limit: int, until: int | None = None
    ) -> list[SealedReading]:
        """A patient's newest readings up to a position (the last one if none is given), in order.

        Args:
            patient: whose.
            limit: how many at most.
            until: position of the last one that may be among them.
        """
        rows = await self._store.db.fetch(
            "SELECT * FROM reading WHERE patient_key=$1 AND position<=$2"
            " ORDER BY position DESC LIMIT $3",
            patient,
            _LAST if until is None else until,
            limit,
        )
        return [_sealed(row) for row in reversed(rows)]

    async def page(
        self,
        patient: PatientKey,
        *,
        before: int | None,
        since: datetime | None,
        until: datetime | None,
        limit: int,
    ) -> tuple[list[SealedReading], int | None]:
        """Some of a patient's readings, what came last first.

        At most ``SCANNED`` readings are looked at, so what is asked for may begin on a later page.

        Args:
            patient: whose.
            before: position above the first one; the newest is first where ``None``.
            since: measured then or later.
            until: measured before.
            limit: how many at most.

        Returns:
            The readings, and ``before`` of the next page, if there may be one.
        """
        before = _LAST if before is None else before
        if since is None and until is None:
            rows = await self._store.db.fetch(
                "SELECT * FROM reading WHERE patient_key=$1 AND position<$2"
                " ORDER BY position DESC LIMIT $3",
                patient,
                before,
                limit + 1,
            )
            found = [_sealed(row) for row in rows[:limit]]
            return found, found[-1].position if len(rows) > limit else None
        return await self._span(patient, before, since or _BEGINNING, until or _END, limit)

    async def _span(
        self, patient: PatientKey, before: int, since: datetime, until: datetime, limit: int
    ) -> tuple[list[SealedReading], int | None]:
        """The same of what was measured in a span of time."""
        floor = await self._store.db.fetchrow(
            "SELECT position, received_at FROM reading WHERE patient_key=$1 AND position<$2"
            " ORDER BY position DESC LIMIT 1 OFFSET $3",
            patient,
            before,
            SCANNED - 1,
        )
        rows = await self._store.db.fetch(
            "SELECT * FROM reading WHERE patient_key=$1 AND position<$2 AND position>=$3"
            " AND measured_at>=$4 AND measured_at<$5 ORDER BY position DESC LIMIT $6",
            patient,
            before,
            floor["position"] if floor is not None else 0,
            to_ms(since),
            to_ms(until),
            limit,
        )
        found = [_sealed(row) for row in rows]
        if len(found) == limit:
            return found, found[-1].position
        # What came before this time was measured before it (but for a clock that goes ahead).
        if floor is None or floor["received_at"] < to_ms(since) - _AHEAD_MS:
            return found, None
        return found, int(floor["position"])

    async def newest(self, *, limit: int, patient: PatientKey | None = None) -> list[SealedReading]:
        """The newest readings, in order; of one patient only, if given."""
        if patient is not None:
            return await self.latest(patient, limit=limit)
        return await self.sealed_after(max(await self.head() - limit, 0), limit=limit)

    async def head(self, patient: PatientKey | None = None) -> int:
        """Position of the last reading, of one patient if given; 0 if there is none."""
        if patient is None:
            return int(
                await self._store.db.fetchval("SELECT position FROM log_head WHERE log=$1", LOG)
            )
        value = await self._store.db.fetchval(
            "SELECT MAX(position) FROM reading WHERE patient_key=$1", patient
        )
        return int(value or 0)

    async def count(self) -> int:
        """How many readings the log holds."""
        return int(await self._store.db.fetchval("SELECT COUNT(*) FROM reading"))

    async def _logged(self, row: Row) -> LoggedReading:
        patient = PatientKey(row["patient_key"])
        key = await self._keys.get(patient)
        plain = key.open(bytes(row["sealed"]), place=_place(patient, bytes(row["record"])))
        content = json.loads(plain.decode())
        return LoggedReading(
            position=row["position"],
            patient=patient,
            reading=Reading(
                device=DeviceId(row["device_id"]),
                measured_at=from_ms(row["measured_at"]),
                received_at=from_ms(row["received_at"]),
                clock=Clock(content["clock"]),
                values={Kind(kind): Decimal(text) for kind, text in content["values"].items()},
                age=Age(content.get("age", Age.LIVE)),
                quality=content.get("quality"),
                contact=content.get("contact"),
                unusable=frozenset(map(Kind, content.get("unusable", ()))),
            ),
        )


def _sealed(row: Row) -> SealedReading:
    return SealedReading(row["position"], PatientKey(row["patient_key"]), row)


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
    """JSON, written by hand, for speed: names and decimals need no escapes."""
    values = ",".join(f'"{kind.value}":"{value}"' for kind, value in reading.values.items())
    more = ""
    if reading.age is not Age.LIVE:
        more += f',"age":"{reading.age.value}"'
    if reading.quality is not None:
        more += f',"quality":{reading.quality:d}'
    if reading.contact is not None:
        more += f',"contact":{"true" if reading.contact else "false"}'
    if reading.unusable:
        kinds = ",".join(f'"{kind.value}"' for kind in sorted(reading.unusable))
        more += f',"unusable":[{kinds}]'
    return f'{{"clock":"{reading.clock.value}","values":{{{values}}}{more}}}'.encode()


def _place(patient: PatientKey, record: bytes) -> str:
    return f"reading/{patient}/{record.hex()}"
