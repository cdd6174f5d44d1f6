"""What the publisher does to homeserver and phones: a hundred rooms at its budget, a day in bytes.

Both run against a real Synapse (one process, SQLite) and the whole ``fajma run`` beside it; a
doctor's client follows and decrypts.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import secrets
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any, Final

import aiohttp
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.record import record
from console.clinic import DOCTOR, PATIENTS, Clinic, Options, Ports
from console.observer import Observer
from console.processes import LOOPBACK
from console.run import opened
from fajma.config import load
from fajma.events import MAX_WATCH_S, VITALS_WATCH, Vitals, VitalsBatch, VitalsWatch
from fajma.store import Records, to_ms
from fajma.store.readings import NewReading
from fajma.vitals import Clock, DeviceId, Kind, PatientKey, Reading
from fajma.wire import V1_TOPIC, encode_v1

ROOMS: Final = 100
ALARMING: Final = 10
LASTS_S: Final = 60
WARM_UP_S: Final = 20
EVERY_S: Final = 5.0
"""Between two readings of one monitor."""

# Each reading of an alarming patient changes his alarm. Everybody is watched, and the watched ones
# want more than the budget gives.
BUSY: Final[dict[str, dict[str, Any]]] = {
    "publish": {"watched_every_s": 3},
    "alarms": {
        "confirm_needed": 1,
        "confirm_window": 1,
        "confirm_extreme": 1,
        "clear_dwell_s": 0,
        "silent_after_s": 3600,  # who was admitted first waits for minutes
    },
}
BUDGET: Final = 25


def publish_100() -> None:
    """100 open consultations, 10 of them alarming, the publisher at its budget."""
    asyncio.run(_publish_100())


def patient_day_bytes() -> None:
    """What one client receives of one unwatched patient in a day."""
    asyncio.run(_patient_day_bytes())


# --- a hundred rooms -----------------------------------------------------------------------------


@dataclass(slots=True)
class _Bed:
    """A patient, his room, and what was decided and seen of him."""

    device: DeviceId
    room_id: str
    patient: PatientKey
    changes: list[datetime] = field(default_factory=list)


async def _publish_100() -> None:
    async with _clinic(BUSY) as (clinic, observer, records):
        beds = [await _admit(clinic, observer, number) for number in range(ROOMS)]
        print(f"{ROOMS} rooms are open")
        alarming = {one.patient: one for one in beds[:ALARMING]}
        monitors = [_Monitor(clinic, one.device) for one in beds]
        await _watch(observer, beds)
        # A round for keys, anchors and first batches, which a running clinic has behind it.
        await _measure(records, monitors, alarming, WARM_UP_S)
        for one in beds:
            one.changes.clear()
        await _watch(observer, beds)
        started, first = time.time(), len(observer.seen)
        await _measure(records, monitors, alarming, LASTS_S)
        seconds = time.time() - started
        sent = [one for one in observer.seen[first:] if isinstance(one.content, _TELEMETRY)]
        await asyncio.sleep(EVERY_S)  # what was decided last is on its way
        ages = [age for one in alarming.values() for age in _ages(one, observer)]
        for monitor in monitors:
            monitor.close()
    record(
        "publish_100",
        max(ages),
        "s",
        aim="<= 2 s, the oldest snapshot of an alarming room as the doctor's client has it",
        met=max(ages) <= 2 and len(ages) >= ALARMING * LASTS_S / EVERY_S / 2,
    )
    record("publish_100_p50", statistics.median(ages), "s", aim="reported", met=True)
    rate = len(sent) / seconds
    record(
        "publish_100_rate",
        rate,
        "events/s",
        aim=f"reported; never more than the budget of {BUDGET}",
        met=rate <= BUDGET * 1.05,
    )


_TELEMETRY = Vitals | VitalsBatch


def _ages(bed: _Bed, observer: Observer) -> list[float]:
    """From each change of the alarm until a snapshot that was made after it is decrypted."""
    shown = [
        (one.content.as_of, one.at)
        for one in observer.seen
        if isinstance(one.content, Vitals) and one.room_id == bed.room_id
    ]
    return [
        min((at for as_of, at in shown if as_of >= change), default=float("inf"))
        - change.timestamp()
        for change in bed.changes
    ]


async def _watch(observer: Observer, beds: Sequence[_Bed]) -> None:
    newest = {one.room_id: one.event_id for one in observer.seen}
    for one in beds:
        wish = VitalsWatch(MAX_WATCH_S).to_content(newest[one.room_id])
        await observer.client.room_send(one.room_id, VITALS_WATCH, wish)


async def _measure(
    records: Records,
    monitors: Sequence[_Monitor],
    alarming: Mapping[PatientKey, _Bed],
    lasts_s: float,
) -> None:
    """Monitors send, evenly spread over time; note when alarms change meanwhile."""
    started, moment = time.monotonic(), datetime.now(UTC)
    for number in count():
        due = started + number * EVERY_S / ROOMS
        if due > started + lasts_s:
            return
        await asyncio.sleep(max(due - time.monotonic(), 0))
        low = number % ROOMS < ALARMING and number // ROOMS % 2 == 0
        monitors[number % ROOMS].publish(86 if low else 97)
        for patient, change in (await records.alarm_states.changed_since(moment)).items():
            changes = alarming[patient].changes
            if change not in changes[-1:]:
                changes.append(change)


class _Monitor:
    """One connection to the broker, with a certificate of its own."""

    def __init__(self, clinic: Clinic, device: DeviceId) -> None:
        self._device = device
        credentials = clinic.mosquitto.issue_device(device)
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id=device)
        self._client.tls_set(
            str(clinic.mosquitto.ca_file), str(credentials.cert_file), str(credentials.key_file)
        )
        self._client.connect(LOOPBACK, clinic.options.ports.broker)
        self._client.loop_start()

    def publish(self, spo2: int) -> None:
        now = datetime.now(UTC)
        payload = encode_v1(self._device, to_ms(now), _reading(self._device, now, spo2).values)
        self._client.publish(V1_TOPIC.format(device=self._device), payload, qos=1)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


# --- a day in bytes ------------------------------------------------------------------------------

SAMPLES: Final = 12
BATCHES_A_DAY: Final = 24 * 60
SNAPSHOTS_A_DAY: Final = 24 * 2


@dataclass(slots=True)
class _Sizes:
    """Of one kind of event, in bytes: itself, and an answer to ``/sync`` that holds it alone."""

    events: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    packed: list[int] = field(default_factory=list)

    def add(self, event: Mapping[str, Any], answer: bytes) -> None:
        self.events.append(len(json.dumps(event, separators=(",", ":"))))
        self.answers.append(len(answer))
        self.packed.append(len(gzip.compress(answer, 6)))


async def _patient_day_bytes() -> None:
    fast = {"publish": {"state_every_s": 1, "unwatched_state_every_s": 1, "batch_every_s": 1}}
    batches, snapshots = _Sizes(), _Sizes()
    async with _clinic(fast) as (clinic, observer, records):
        bed = await _admit(clinic, observer, 0)
        # So that his key is at hand: FAJMA writes to this SQLite database too, and a transaction
        # that reads before it writes would be refused.
        await records.patients.get(bed.patient)
        async with _phone(clinic) as phone:
            await phone.sync()
            minute = datetime.now(UTC) - timedelta(minutes=3 * SAMPLES)
            while min(len(batches.events), len(snapshots.events)) < SAMPLES:
                minute += timedelta(minutes=1)
                await _append(records, bed, _minute_of(bed.device, minute))
                told = 0
                while told < 2:  # one of each
                    answer = await phone.sync()
                    events = _telemetry(answer, bed.room_id)
                    told += len(events)
                    if len(events) == 1:
                        [event] = events
                        (snapshots if "state_key" in event else batches).add(event, answer)
    for name, batch, snapshot, aim in (
        ("patient_day_bytes", batches.events, snapshots.events, 2.0),
        ("patient_day_bytes_sync", batches.answers, snapshots.answers, None),
        ("patient_day_bytes_sync_gzip", batches.packed, snapshots.packed, 2.0),
    ):
        one, other = statistics.median(batch), statistics.median(snapshot)
        value = (BATCHES_A_DAY * one + SNAPSHOTS_A_DAY * other) / 1e6
        print(f"{BATCHES_A_DAY} x {one:.0f} B + {SNAPSHOTS_A_DAY} x {other:.0f} B")
        record(
            name,
            value,
            "MB",
            aim="reported" if aim is None else f"<= {aim}",
            met=aim is None or value <= aim,
        )


def _minute_of(device: DeviceId, minute: datetime) -> list[Reading]:
    """Twelve readings, not quite five seconds apart, as monitors of our firmware send them."""
    return [
        replace(
            _reading(
                device,
                minute + timedelta(seconds=5 * number, milliseconds=secrets.randbelow(20)),
                90 + secrets.randbelow(9),
            ),
            quality=secrets.choice((30, *[90] * 11)),  # one is poor, in most minutes
            contact=True,
        )
        for number in range(12)
    ]


def _telemetry(answer: bytes, room_id: str) -> list[dict[str, Any]]:
    """Events of ``@fajma-vitals`` in an answer to ``/sync``."""
    room = json.loads(answer).get("rooms", {}).get("join", {}).get(room_id, {})
    events: list[dict[str, Any]] = room.get("timeline", {}).get("events", [])
    return [one for one in events if one["sender"].startswith("@fajma-vitals:")]


class _Phone:
    """Another login of the doctor, which only takes what ``/sync`` answers."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        self._since = ""

    async def sync(self) -> bytes:
        query = {"timeout": "30000", "since": self._since} if self._since else {"timeout": "0"}
        async with self._session.get(self._url, params=query) as response:
            answer = await response.read()
        self._since = json.loads(answer)["next_batch"]
        return answer


@asynccontextmanager
async def _phone(clinic: Clinic) -> AsyncIterator[_Phone]:
    token = await clinic.synapse.login(DOCTOR, clinic.password(DOCTOR))
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        yield _Phone(session, f"{clinic.synapse.base_url}/_matrix/client/v3/sync")


# --- the clinic ----------------------------------------------------------------------------------


@asynccontextmanager
async def _clinic(
    settings: Mapping[str, Mapping[str, Any]],
) -> AsyncIterator[tuple[Clinic, Observer, Records]]:
    directory = Path(tempfile.mkdtemp())
    clinic = Clinic(Options(directory, Ports.free(), "mosquitto", settings))
    observer = Observer(clinic.synapse.base_url, clinic.mxid(DOCTOR), directory / "observer")
    try:
        await clinic.start()
        await clinic.synapse.exempt_from_rate_limits(clinic.mxid(DOCTOR))
        await observer.start(clinic.password(DOCTOR))
        async with opened(load(clinic.config_path)) as records:
            yield clinic, observer, records
    finally:
        await observer.stop()
        await clinic.stop()
        shutil.rmtree(directory)


async def _admit(clinic: Clinic, observer: Observer, number: int) -> _Bed:
    device = DeviceId(f"{PATIENTS[0].device[:9]}{number:03X}")
    answer = await clinic.api(
        "consultations",
        {
            "number": f"B-{number}",
            "initials": "A.D.",
            "bed": str(number),
            "clinicians": [clinic.mxid(DOCTOR)],
            "device": device,
        },
    )
    async with asyncio.timeout(30):
        while answer["room_id"] not in observer.client.rooms:
            await observer.client.synced.wait()
    return _Bed(device, answer["room_id"], PatientKey(answer["patient"]))


def _reading(device: DeviceId, at: datetime, spo2: int) -> Reading:
    values = {
        Kind.HEART_RATE: Decimal(80),
        Kind.SPO2: Decimal(spo2),
        Kind.TEMPERATURE: Decimal("37.0") + Decimal(at.second % 7) / 10,
    }
    return Reading(device, at, at, Clock.DEVICE, values)


async def _append(records: Records, bed: _Bed, readings: Sequence[Reading]) -> None:
    new = [NewReading(secrets.token_bytes(16), bed.patient, one) for one in readings]
    async with records.store.transaction() as connection:
        await records.readings.append(connection, new)
