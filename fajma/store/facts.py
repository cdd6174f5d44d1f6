"""The log of facts: what the alarm engine is told beside readings, in an order that stays.

A fact says after which reading it came: the head of the readings log is locked while a fact is
appended, so no reading can be committed before a fact that claims to follow fewer. Who takes
readings up to a position and then the facts that came up to there misses none and sees them in one
order, whenever it is done.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from mautrix.util.async_db import Connection

from fajma import facts
from fajma.facts import Fact
from fajma.store.database import Row, Store, to_ms
from fajma.store.keys import PatientKeys
from fajma.store.readings import LOG as READINGS
from fajma.store.readings import lock_head, move_head
from fajma.vitals import PatientKey

LOG = "facts"


@dataclass(frozen=True, slots=True)
class SealedFact:
    """A fact in the log that was not opened yet.

    Attributes:
        position: its place among facts (1, 2, 3, ...).
        after: position of the last reading that was in the log before it.
        patient: about whom.
        row: for ``Facts.open`` alone.
    """

    position: int
    after: int
    patient: PatientKey
    row: Row


class Facts:
    """Repository of the facts."""

    def __init__(self, store: Store, keys: PatientKeys) -> None:
        self._store = store
        self._keys = keys

    async def append(self, connection: Connection, patient: PatientKey, *noted: Fact) -> None:
        """Append facts about one patient, in the transaction of what caused them.

        Whoever also locks the outbox does so afterwards (``tests/integration/test_lock_order``).
        """
        await self.append_of(connection, [(patient, one) for one in noted])

    async def append_of(
        self, connection: Connection, noted: Collection[tuple[PatientKey, Fact]]
    ) -> None:
        """Append facts about several patients."""
        if not noted:
            return
        sealed = []
        for patient, fact in noted:
            # Read before the logs are locked, for others wait on the locks.
            sealed.append((patient, fact, await self._keys.get(patient)))
        after = await lock_head(connection, READINGS)
        position = await lock_head(connection, LOG)
        rows = [
            (
                position + number,
                after,
                patient,
                to_ms(fact.at),
                key.seal(facts.to_json(fact).encode(), place=_place(patient, position + number)),
            )
            for number, (patient, fact, key) in enumerate(sealed, 1)
        ]
        await connection.executemany(
            "INSERT INTO fact (position, after_reading, patient_key, noted_at, sealed)"
            " VALUES ($1, $2, $3, $4, $5)",
            rows,
        )
        await move_head(connection, LOG, position + len(rows))

    async def sealed_after(
        self,
        position: int,
        *,
        up_to_reading: int,
        limit: int,
        patient: PatientKey | None = None,
    ) -> list[SealedFact]:
        """What follows a position, in order, among what came before a later reading.

        Args:
            position: of the last fact that is known.
            up_to_reading: facts that came after a later reading than this are left for later.
            limit: how many at most.
            patient: of one patient only, if given.
        """
        mine = "" if patient is None else " AND patient_key=$4"
        values = (position, up_to_reading, limit, *(() if patient is None else (patient,)))
        rows = await self._store.db.fetch(
            "SELECT * FROM fact WHERE position>$1 AND after_reading<=$2"  # noqa: S608
            f"{mine} ORDER BY position LIMIT $3",
            *values,
        )
        return [_sealed(row) for row in rows]

    async def sealed_between(
        self, patients: Collection[PatientKey], after: int, until: int
    ) -> list[SealedFact]:
        """What stands between two positions about some patients, in order, the last included."""
        rows = await self._store.fetch_among(
            "SELECT * FROM fact WHERE position>$2 AND position<=$3 AND patient_key",
            patients,
            after,
            until,
        )
        return sorted((_sealed(row) for row in rows), key=lambda one: one.position)

    async def newest(self, patient: PatientKey, *, limit: int) -> list[SealedFact]:
        """The last facts about a patient, newest first."""
        rows = await self._store.db.fetch(
            "SELECT * FROM fact WHERE patient_key=$1 ORDER BY position DESC LIMIT $2",
            patient,
            limit,
        )
        return [_sealed(row) for row in rows]

    async def since(self, patient: PatientKey, moment: datetime) -> list[Fact]:
        """What was noted of a patient since then, in order.

        Raises:
            BugError: as ``open``.
        """
        rows = await self._store.db.fetch(
            "SELECT * FROM fact WHERE patient_key=$1 AND noted_at>=$2 ORDER BY position",
            patient,
            to_ms(moment),
        )
        return [await self.open(_sealed(row)) for row in rows]

    async def open(self, sealed: SealedFact) -> Fact:
        """Open one of them.

        Raises:
            BugError: the patient has no key, the row was altered, or a newer version wrote it.
        """
        key = await self._keys.get(sealed.patient)
        place = _place(sealed.patient, sealed.position)
        return facts.from_json(key.open(bytes(sealed.row["sealed"]), place=place).decode())

    async def head(self) -> int:
        """Position of the last fact; 0 if there is none."""
        return int(await self._store.db.fetchval("SELECT position FROM log_head WHERE log=$1", LOG))


def _sealed(row: Row) -> SealedFact:
    return SealedFact(row["position"], row["after_reading"], PatientKey(row["patient_key"]), row)


def _place(patient: PatientKey, position: int) -> str:
    return f"fact/{patient}/{position}"
