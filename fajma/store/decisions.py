"""What the alarm engine decided and why, also when it kept silent."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from mautrix.util.async_db import Connection

from fajma.store.database import Store, from_ms, to_ms
from fajma.store.keys import PatientKeys
from fajma.vitals import PatientKey


@dataclass(frozen=True, slots=True)
class KeptDecision:
    """One decision.

    Attributes:
        patient: about whom.
        reading: position of the last reading that was known.
        fact: position of the last fact that was known.
        number: its place among the decisions of that moment.
        decided_at: aware UTC time.
        content: the engine's own JSON.
    """

    patient: PatientKey
    reading: int
    fact: int
    number: int
    decided_at: datetime
    content: str


class Decisions:
    """Repository of decisions."""

    def __init__(self, store: Store, keys: PatientKeys) -> None:
        self._store = store
        self._keys = keys

    async def add(self, connection: Connection, decisions: Collection[KeptDecision]) -> None:
        """Keep decisions, in the transaction of what follows from them.

        One that is kept already stays: the same facts lead to the same decision.
        """
        rows = []
        for one in decisions:
            key = await self._keys.get(one.patient)
            sealed = key.seal(one.content.encode(), place=_place(one))
            at = to_ms(one.decided_at)
            rows.append((one.patient, one.reading, one.fact, one.number, at, sealed))
        if rows:
            await connection.executemany(
                "INSERT INTO decision (patient_key, reading, fact, number, decided_at, sealed)"
                " VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
                rows,
            )

    async def of(self, patient: PatientKey, *, since: datetime | None = None) -> list[KeptDecision]:
        """Those about a patient, in order."""
        rows = await self._store.db.fetch(
            "SELECT * FROM decision WHERE patient_key=$1 AND decided_at>=$2"
            " ORDER BY reading, fact, number",
            patient,
            to_ms(since) if since else 0,
        )
        key = await self._keys.get(patient)
        found = []
        for row in rows:
            at = (patient, row["reading"], row["fact"], row["number"], from_ms(row["decided_at"]))
            place = _place(KeptDecision(*at, content=""))
            content = key.open(bytes(row["sealed"]), place=place).decode()
            found.append(KeptDecision(*at, content=content))
        return found


def _place(one: KeptDecision) -> str:
    return f"decision/{one.patient}/{one.reading}/{one.fact}/{one.number}"
