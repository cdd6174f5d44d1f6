"""Monitors: who wore which when, the keys we share with them, how far their records are settled."""

from __future__ import annotations

import json
import os
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog
from mautrix.util.async_db import Connection

from fajma import facts
from fajma.errors import FajmaError, InputError
from fajma.facts import TakenOff, Worn
from fajma.sealing import KEY_BYTES, SiteKey
from fajma.sequence import Sequence
from fajma.store.consultations import ConsultationId
from fajma.store.database import Row, Store, from_ms, to_ms
from fajma.store.facts import Facts
from fajma.store.quarantine import UNKNOWN_DEVICE
from fajma.store.readings import LOG as READINGS
from fajma.store.readings import lock_head, move_head
from fajma.vitals import DeviceId, PatientKey
from fajma.wire import PayloadKey

log = structlog.get_logger()

LOG: Final = "devices"
"""Counts the changes of links and keys, so that whoever keeps them in memory sees that they are
stale."""


AS_OF_NOW: Final = timedelta(minutes=1)
"""What was measured so lately was measured by whoever wears the monitor now."""


_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Wearing:
    """Who wears a monitor, and in which consultation, if in one."""

    patient: PatientKey
    consultation: ConsultationId | None


@dataclass(frozen=True, slots=True)
class Link:
    """A patient wears a monitor, or wore it.

    Attributes:
        device: the monitor.
        consultation: in which consultation, if in one.
        since: aware UTC.
        until: aware UTC; ``None`` while it is worn.
        online: whether it is connected, as far as somebody said.
    """

    device: DeviceId
    consultation: ConsultationId | None
    since: datetime
    until: datetime | None
    online: bool | None


@dataclass(frozen=True, slots=True)
class KeyPair:
    """The keys between one monitor and us: it seals with ``up``, we with ``down``."""

    version: int
    up: PayloadKey
    down: PayloadKey


@dataclass(slots=True)
class _Worn:
    """The links of one monitor, by their beginnings (ms since 1970), in order.

    Attributes:
        since: when each began.
        until: when it ended, ``None`` while it lasts.
        who: whom it names.
        changed: the last moment that any of them names.
    """

    since: list[int] = field(default_factory=list)
    until: list[int | None] = field(default_factory=list)
    who: list[Wearing] = field(default_factory=list)
    changed: datetime = _LONG_AGO

    def put(self, row: Row) -> None:
        since, until = row["linked_from"], row["linked_to"]
        self.changed = max(self.changed, from_ms(max(since, until or 0)))
        at = bisect_left(self.since, since)
        known = slice(at, at + (since in self.since[at : at + 1]))
        consultation = row["consultation_id"]
        who = Wearing(
            PatientKey(row["patient_key"]),
            ConsultationId(consultation) if consultation is not None else None,
        )
        # One that ended before it began was made by a clock that was ahead: it was never in force.
        is_void = until is not None and until <= since
        self.since[known] = [] if is_void else [since]
        self.until[known] = [] if is_void else [until]
        self.who[known] = [] if is_void else [who]

    def at(self, moment: datetime, now: datetime | None) -> Wearing | None:
        if now is not None and self.changed > now:
            # Our clock was ahead when that was noted, and was put back since; or that of another
            # machine is a little ahead. Who wears it now is certain all the same.
            if moment >= now - AS_OF_NOW:
                return next(
                    (who for who, until in zip(self.who, self.until, strict=True) if until is None),
                    None,
                )
            if self.changed > now + AS_OF_NOW:
                return None  # the times of the links say nothing of the times of now
        moment_ms = to_ms(moment)
        place = bisect_right(self.since, moment_ms) - 1
        if place < 0:
            return None
        until = self.until[place]
        return self.who[place] if until is None or moment_ms < until else None


class Fleet:
    """All monitors as ingest needs them for each message: in memory, refreshed when they change.

    A million links are a few hundred megabytes; a site that has them runs several ingests on
    machines that have that.
    """

    def __init__(self, store: Store, site_key: SiteKey) -> None:
        self._store = store
        self._site_key = site_key
        self._seen = -1
        self._worn: dict[DeviceId, _Worn] = {}
        self._keys: dict[tuple[DeviceId, int], KeyPair] = {}
        self._v2: frozenset[DeviceId] = frozenset()

    async def refresh(self, connection: Connection) -> None:
        """Take in what has changed since the last time; one small query if nothing has."""
        now = int(await connection.fetchval("SELECT position FROM log_head WHERE log=$1", LOG) or 0)
        if now == self._seen:
            return
        rows = await connection.fetch(
            "SELECT * FROM device_link WHERE changed>$1 ORDER BY linked_from", self._seen
        )
        for row in rows:
            self._worn.setdefault(DeviceId(row["device_id"]), _Worn()).put(row)
        self._keys.clear()  # looked up again when they are needed
        heard = await connection.fetch("SELECT device_id FROM device_sequence")
        self._v2 = frozenset(DeviceId(row["device_id"]) for row in heard)
        self._seen = now

    def wearing(
        self, device: DeviceId, moment: datetime, now: datetime | None = None
    ) -> Wearing | None:
        """Who wore a monitor at that moment.

        Args:
            device: the monitor.
            moment: aware UTC time.
            now: when this is asked, so that a clock that was put back is noticed.
        """
        worn = self._worn.get(device)
        return worn.at(moment, now) if worn is not None else None

    def speaks_v2(self, device: DeviceId) -> bool:
        """Whether something that a monitor sealed was settled before."""
        return device in self._v2

    def keys(self, device: DeviceId, version: int) -> KeyPair | None:
        """A pair of keys that ``load_keys`` has brought."""
        return self._keys.get((device, version))

    async def load_keys(
        self, connection: Connection, wanted: Iterable[tuple[DeviceId, int]]
    ) -> None:
        """Have these pairs of keys at hand, those that exist and are not retired."""
        missing = {device for device, version in wanted if (device, version) not in self._keys}
        if not missing:
            return
        rows = await connection.fetch(
            f"SELECT * FROM payload_key WHERE device_id IN ({_places(missing)})"  # noqa: S608
            " AND retired_at IS NULL",
            *missing,
        )
        for row in rows:
            try:
                pair = _open(self._site_key, row)
            except FajmaError as error:  # the device's trouble, not that of all others
                log.critical("payload_key_unreadable", device=row["device_id"], code=error.code)
                continue
            self._keys[DeviceId(row["device_id"]), pair.version] = pair


class Devices:
    """Repository of monitors."""

    def __init__(self, store: Store, site_key: SiteKey, facts: Facts) -> None:
        self._store = store
        self._site_key = site_key
        self._facts = facts

    def fleet(self) -> Fleet:
        """A view of all monitors for one ingest."""
        return Fleet(self._store, self._site_key)

    # --- who wears what --------------------------------------------------------------------------

    async def link(
        self,
        device: DeviceId,
        patient: PatientKey,
        consultation: ConsultationId | None,
        *,
        now: datetime,
        since: datetime | None = None,
    ) -> None:
        """From now on this patient wears the monitor; whoever wore it until now does not.

        Args:
            device: the monitor.
            patient: who wears it.
            consultation: in which consultation, if in one.
            now: aware UTC time.
            since: when the patient really began to wear it, in the past: what was measured since
                is the patient's. The engine watches from now on all the same.

        Raises:
            InputError: somebody else wore it since (``monitor_worn_by_another``).
        """
        async with self._store.transaction() as connection:
            change = await _lock(connection) + 1
            begins = to_ms(now)
            if since is not None:
                begins = await self._backdate(
                    connection,
                    device,
                    Wearing(patient, consultation),
                    (to_ms(since), begins),
                    change,
                )
            current = await connection.fetchrow(
                "SELECT * FROM device_link WHERE device_id=$1 AND linked_to IS NULL", device
            )
            if current is not None and (current["patient_key"], current["consultation_id"]) == (
                patient,
                consultation,
            ):
                return
            before = PatientKey(current["patient_key"]) if current is not None else None
            if before != patient:
                if before is not None:
                    await self._facts.append(connection, before, TakenOff(now, device))
                await self._facts.append(connection, patient, Worn(now, device))
            change = await _new_change(connection)
            if current is not None:
                await _end_link(connection, device, to_ms(now), change)
            await _add_link(
                connection, device, Wearing(patient, consultation), (begins, None), change
            )

    async def _backdate(
        self,
        connection: Connection,
        device: DeviceId,
        who: Wearing,
        span: tuple[int, int],
        change: int,
    ) -> int:
        """Fill what is free between two moments (ms), up to what comes last.

        Returns:
            When the link begins that is still to be made: where the last one ends.
        """
        since, now = span
        rows = await connection.fetch(
            "SELECT * FROM device_link WHERE device_id=$1 AND linked_from<=$3"
            " AND (linked_to IS NULL OR linked_to>$2) ORDER BY linked_from",
            device,
            since,
            now,
        )
        if any(row["patient_key"] != who.patient for row in rows):
            raise InputError(
                "another patient wore this monitor since then: state when this one got it",
                code="monitor_worn_by_another",
            )
        for row in rows:
            if row["linked_from"] > since:
                await _add_link(connection, device, who, (since, row["linked_from"]), change)
                await move_head(connection, LOG, change)
            since = now if row["linked_to"] is None else row["linked_to"]
        return since

    async def unlink(self, device: DeviceId, patient: PatientKey, *, now: datetime) -> bool:
        """The patient wears the monitor no more; returns false if he did not."""
        async with self._store.transaction() as connection:
            change = await _lock(connection) + 1
            worn_by = await connection.fetchval(
                "SELECT patient_key FROM device_link WHERE device_id=$1 AND linked_to IS NULL",
                device,
            )
            if worn_by != patient:
                return False
            await move_head(connection, LOG, change)
            await self._facts.append(connection, patient, TakenOff(now, device))
            await _end_link(connection, device, to_ms(now), change)
        return True

    async def detach(
        self, connection: Connection, consultation: ConsultationId, *, now: datetime
    ) -> list[DeviceId]:
        """The monitors of a consultation that ends are worn no more, in the caller's transaction.

        Returns:
            Which those were.
        """
        change = await _lock(connection)
        rows = await connection.fetch(
            "SELECT device_id, patient_key FROM device_link WHERE consultation_id=$1"
            " AND linked_to IS NULL ORDER BY device_id",
            consultation,
        )
        devices = [DeviceId(row["device_id"]) for row in rows]
        for number, row in enumerate(rows, 1):
            await self._facts.append(
                connection, PatientKey(row["patient_key"]), TakenOff(now, devices[number - 1])
            )
            await _end_link(connection, devices[number - 1], to_ms(now), change + number)
        if devices:
            await move_head(connection, LOG, change + len(devices))
        return devices

    async def worn_in(self, consultation: ConsultationId) -> list[DeviceId]:
        """The monitors that are worn in a consultation now."""
        rows = await self._store.db.fetch(
            "SELECT device_id FROM device_link WHERE consultation_id=$1 AND linked_to IS NULL"
            " ORDER BY device_id",
            consultation,
        )
        return [DeviceId(row["device_id"]) for row in rows]

    async def wearing(
        self, device: DeviceId, at: datetime, now: datetime | None = None
    ) -> Wearing | None:
        """Who wore the monitor at that moment, as ``Fleet.wearing`` says."""
        worn = _Worn()
        for row in await self._store.db.fetch(
            "SELECT * FROM device_link WHERE device_id=$1 ORDER BY linked_from", device
        ):
            worn.put(row)
        return worn.at(at, now)

    async def worn(self) -> dict[PatientKey, list[DeviceId]]:
        """The monitors that are worn now, by patient; of each in the order of their ids."""
        rows = await self._store.db.fetch(
            "SELECT device_id, patient_key FROM device_link WHERE linked_to IS NULL"
            " ORDER BY device_id"
        )
        found: dict[PatientKey, list[DeviceId]] = {}
        for row in rows:
            found.setdefault(PatientKey(row["patient_key"]), []).append(DeviceId(row["device_id"]))
        return found

    async def worn_by(self, patient: PatientKey) -> list[DeviceId]:
        """The monitors that a patient wears now, by id."""
        rows = await self._store.db.fetch(
            "SELECT device_id FROM device_link WHERE patient_key=$1 AND linked_to IS NULL"
            " ORDER BY device_id",
            patient,
        )
        return [DeviceId(row["device_id"]) for row in rows]

    async def unworn(self, ending: str) -> list[DeviceId]:
        """Monitors that this site has heard of and nobody wears now, whose code ends so.

        Heard of are those that were worn, have keys, or sent something, even if it was refused
        because nobody wore them.

        Args:
            ending: upper-case hex digits.
        """
        rows = await self._store.db.fetch(
            "SELECT device_id FROM (SELECT device_id FROM device_sequence"
            " UNION SELECT device_id FROM payload_key UNION SELECT device_id FROM device_link"
            " UNION SELECT device_id FROM quarantine WHERE reason=$2) AS heard"
            " WHERE device_id LIKE $1 AND LENGTH(device_id)=12 AND device_id NOT IN"
            " (SELECT device_id FROM device_link WHERE linked_to IS NULL) ORDER BY device_id",
            f"%{ending}",
            UNKNOWN_DEVICE,
        )
        return [DeviceId(row["device_id"]) for row in rows]

    async def links_of(self, patient: PatientKey, *, limit: int = 1000) -> list[Link]:
        """What a patient wears and wore, the newest first."""
        rows = await self._store.db.fetch(
            "SELECT * FROM device_link WHERE patient_key=$1"
            " ORDER BY linked_from DESC, device_id LIMIT $2",
            patient,
            limit,
        )
        return [
            Link(
                DeviceId(row["device_id"]),
                ConsultationId(row["consultation_id"]) if row["consultation_id"] else None,
                from_ms(row["linked_from"]),
                from_ms(row["linked_to"]) if row["linked_to"] is not None else None,
                bool(row["online"]) if row["online"] is not None else None,
            )
            for row in rows
        ]

    async def connected(
        self, connection: Connection, device: DeviceId, *, online: bool, now: datetime
    ) -> bool:
        """A monitor came to the broker or left it; the alarm engine is told what is new.

        Returns:
            Whether it is: the monitor is worn, and was said to be otherwise before.
        """
        patient = await connection.fetchval(
            "UPDATE device_link SET online=$2 WHERE device_id=$1 AND linked_to IS NULL"
            " AND (online IS NULL OR online<>$2) RETURNING patient_key",
            device,
            int(online),
        )
        if patient is None:
            return False
        await self._facts.append(
            connection, PatientKey(patient), facts.Connection(now, device, online)
        )
        return True

    # --- keys ------------------------------------------------------------------------------------

    async def new_keys(
        self, device: DeviceId, *, now: datetime, raw: bytes | None = None
    ) -> KeyPair:
        """Make the next pair of keys of a v2 monitor; the earlier ones go on until retired.

        Args:
            device: the monitor.
            now: aware UTC time.
            raw: 64 random bytes, uplink key first, by whoever hands them to the monitor: what is
                kept here is sealed and never shown again. Made if absent.
        """
        async with self._store.transaction() as connection:
            await _new_change(connection)
            latest = await connection.fetchval(
                "SELECT MAX(version) FROM payload_key WHERE device_id=$1", device
            )
            version = int(latest or 0) + 1
            raw = os.urandom(2 * KEY_BYTES) if raw is None else raw
            await connection.execute(
                "INSERT INTO payload_key (device_id, version, created_at, sealed)"
                " VALUES ($1, $2, $3, $4)",
                device,
                version,
                to_ms(now),
                self._site_key.site.seal(raw, place=_key_place(device, version)),
            )
        return _pair(version, raw)

    async def retire_keys(
        self, device: DeviceId, *, before: int, now: datetime
    ) -> tuple[list[int], list[int]]:
        """Believe no message under a version below ``before`` any more.

        Returns:
            The versions that were retired, and those that are still believed, both in order.
        """
        async with self._store.transaction() as connection:
            await _new_change(connection)
            retired = await connection.fetch(
                "UPDATE payload_key SET retired_at=$3"
                " WHERE device_id=$1 AND version<$2 AND retired_at IS NULL RETURNING version",
                device,
                before,
                to_ms(now),
            )
            left = await connection.fetch(
                "SELECT version FROM payload_key WHERE device_id=$1 AND retired_at IS NULL", device
            )
        return sorted(row["version"] for row in retired), sorted(row["version"] for row in left)

    # --- how far records are settled -------------------------------------------------------------

    async def sequences(
        self, connection: Connection, devices: Collection[DeviceId]
    ) -> dict[DeviceId, Sequence]:
        """Where the records of these monitors stand; those never heard of are absent.

        The caller holds the lock of the readings log, so nobody moves them meanwhile.
        """
        rows = await connection.fetch(
            f"SELECT * FROM device_sequence WHERE device_id IN ({_places(devices)})",  # noqa: S608
            *devices,
        )
        return {
            DeviceId(row["device_id"]): Sequence(
                row["contiguous"],
                tuple((first, last) for first, last in json.loads(row["beyond"])),
            )
            for row in rows
        }

    async def begin_anew(self, connection: Connection, device: DeviceId) -> None:
        """A monitor numbers its records anew: forget how far they were settled.

        What stands in the log under a number then no longer keeps another record out (``ingest``).
        """
        await lock_head(connection, READINGS)
        await self.keep_sequences(connection, {device: Sequence()})

    async def first_heard(self, connection: Connection) -> None:
        """A v2 monitor was heard for the first time: whoever keeps them in memory looks again."""
        await _new_change(connection)

    async def keep_sequences(
        self, connection: Connection, sequences: Mapping[DeviceId, Sequence]
    ) -> None:
        """Note where they stand now."""
        await connection.executemany(
            "INSERT INTO device_sequence (device_id, contiguous, beyond) VALUES ($1, $2, $3)"
            " ON CONFLICT (device_id) DO UPDATE SET contiguous=$2, beyond=$3",
            [
                (device, sequence.contiguous, json.dumps(sequence.beyond))
                for device, sequence in sequences.items()
            ],
        )


async def _end_link(connection: Connection, device: DeviceId, now: int, change: int) -> None:
    await connection.execute(
        "UPDATE device_link SET linked_to=$2, changed=$3 WHERE device_id=$1 AND linked_to IS NULL",
        device,
        now,
        change,
    )


async def _add_link(
    connection: Connection,
    device: DeviceId,
    who: Wearing,
    span: tuple[int, int | None],
    change: int,
) -> None:
    await connection.execute(
        "INSERT INTO device_link (device_id, consultation_id, patient_key, linked_from, linked_to,"
        " changed) VALUES ($1, $2, $3, $4, $5, $6)",
        device,
        who.consultation,
        who.patient,
        *span,
        change,
    )


async def _lock(connection: Connection) -> int:
    """Lock what a change of a link will lock, in the order in which ingest does."""
    await lock_head(connection, READINGS)
    return await lock_head(connection, LOG)


async def _new_change(connection: Connection) -> int:
    change = await lock_head(connection, LOG) + 1
    await move_head(connection, LOG, change)
    return change


def _places(values: Collection[object]) -> str:
    """Placeholders for each of some values."""
    return ", ".join(f"${number}" for number in range(1, len(values) + 1))


def _open(site_key: SiteKey, row: Row) -> KeyPair:
    raw = site_key.site.open(
        bytes(row["sealed"]), place=_key_place(DeviceId(row["device_id"]), row["version"])
    )
    return _pair(row["version"], raw)


def _pair(version: int, raw: bytes) -> KeyPair:
    return KeyPair(version, PayloadKey(raw[:KEY_BYTES]), PayloadKey(raw[KEY_BYTES:]))


def _key_place(device: DeviceId, version: int) -> str:
    return f"payload_key/{device}/{version}"
