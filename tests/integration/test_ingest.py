"""From messages to the readings log: every refusal is counted, sealed and explained."""

from __future__ import annotations

import base64
import json
import re
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from bridges.mqtt_vitals.clocks import Arrival
from bridges.mqtt_vitals.ingest import (
    NO_PATIENT_KEY,
    RATE_LIMITED,
    UNKNOWN_DEVICE,
    Ingest,
    Message,
    Outcome,
)
from bridges.mqtt_vitals.rate import BURST, Rates
from console.readings import replay
from fajma.store import Records
from fajma.store.consultations import Consultation
from fajma.store.quarantine import MAX_PAYLOAD_BYTES, Quarantine
from fajma.vitals import Age, Clock, DeviceId, Kind
from fajma.wire import V1_TOPIC, encode_v1

Admit = Callable[..., Awaitable[Consultation]]

SAMPLES = sorted((Path(__file__).parents[1] / "samples" / "v1").glob("*.json"))
CODES = re.compile(r"^\| `(\w+)` \| ", re.MULTILINE)
WIRE_PAGE = Path(__file__).parents[2] / "docs" / "wire.md"

DEVICE = DeviceId("A4CF12F03B7E")
STRANGER = DeviceId("A4CF12F03B7F")
NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
SENT = re.compile(r'"(?:heart_rate|spo2|temperature|systolic|diastolic)":\s*"?([^",}\s]{2,})')


def not_acknowledged() -> None:
    raise AssertionError("committing is not acknowledging")


def message(payload: bytes, *, topic: str | None = None, received_at: datetime = NOON) -> Message:
    topic = V1_TOPIC.format(device=DEVICE) if topic is None else topic
    arrival = Arrival(received_at, (received_at - NOON).total_seconds())
    return Message(topic, payload, arrival, not_acknowledged)


def good(number: int, *, device: DeviceId = DEVICE) -> Message:
    at = NOON + timedelta(seconds=5 * number)
    payload = encode_v1(
        device,
        int(at.timestamp() * 1000),
        {Kind.HEART_RATE: Decimal(78), Kind.SPO2: Decimal(97), Kind.TEMPERATURE: Decimal("37.2")},
    )
    return message(payload, topic=V1_TOPIC.format(device=device), received_at=at)


def sample(path: Path) -> tuple[Message, dict[str, Any]]:
    stated = json.loads(path.read_text(encoding="utf-8"))
    payload = (
        base64.b64decode(stated["payload_base64"])
        if "payload_base64" in stated
        else stated["payload"].encode()
    )
    received_at = datetime.fromisoformat(stated["received_at"])
    return message(payload, topic=stated["topic"], received_at=received_at), stated["expect"]


def refusals(expect: dict[str, Any]) -> Counter[str]:
    if "error" in expect:
        return Counter([expect["error"]])
    return Counter(f"{one['kind']}_{one['reason']}" for one in expect.get("rejected", ()))


@pytest.fixture
async def sqlite_ward(sqlite_records: Records, admit: Admit) -> Records:
    await admit_early(sqlite_records, admit)
    return sqlite_records


async def admit_early(records: Records, admit: Admit) -> None:
    """Some samples were measured a week before they came."""
    await admit(records, DEVICE)
    await records.store.db.execute("UPDATE device_link SET linked_from=0")


async def quarantined(records: Records) -> list[tuple[str, str, bytes]]:
    """Reason, topic and payload of everything that was kept, opened with the site key."""
    found = []
    for row in await records.store.db.fetch("SELECT * FROM quarantine"):
        sealed, place = bytes(row["sealed"]), f"quarantine/{row['quarantine_id']}"
        content = json.loads(records.site_key.site.open(sealed, place=place))
        payload = bytes.fromhex(content["payload"])
        assert len(payload) < 6 or payload not in sealed
        found.append((row["reason"], content["topic"], payload))
    return sorted(found)


def explained_without_values(logged: Sequence[Any], messages: Sequence[Message]) -> None:
    text = json.dumps(logged, default=str)
    for one in messages:
        for value in SENT.findall(one.payload.decode(errors="replace")):
            assert not re.search(rf"(?<![\w.]){re.escape(value)}(?![\w.])", text)
        assert len(one.payload) < 6 or one.payload.decode(errors="replace") not in text


# --- the golden samples --------------------------------------------------------------------------


def test_there_is_a_sample_of_every_refusal_that_the_page_describes() -> None:
    page = WIRE_PAGE.read_text(encoding="utf-8")
    described = set(CODES.findall(page.split("### Refusals")[1].split("## ")[0]))
    assert described == {sample(path)[1].get("error") for path in SAMPLES} - {None}


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
async def test_a_sample_is_stored_or_counted_kept_and_explained(
    sqlite_ward: Records, path: Path
) -> None:
    records = sqlite_ward
    one, expect = sample(path)
    expected = refusals(expect)
    with capture_logs() as logged:
        outcome = await Ingest(records).commit([one])
    explained_without_values(logged, [one])

    stored = await records.readings.after(0, limit=10)
    if "error" in expect:
        assert stored == []
    else:
        [reading] = [logged.reading for logged in stored]
        wanted = expect["reading"]
        assert {kind.value: str(value) for kind, value in reading.values.items()} == wanted[
            "values"
        ]
        assert reading.measured_at == datetime.fromisoformat(wanted["measured_at"])
        assert reading.clock == wanted["clock"]
        assert sorted(reading.unusable) == wanted.get("unusable", [])
    assert outcome == Outcome(len(stored), 0, expected)
    assert await records.quarantine.counts() == dict(expected)
    # One line for each refusal, and none for what is in order.
    assert [entry["log_level"] for entry in logged] == ["warning"] * expected.total()
    # Kept once, under the first reason.
    assert [rest for _, *rest in await quarantined(records)] == [
        [one.topic, one.payload[:MAX_PAYLOAD_BYTES]] for _ in [1] if expected
    ]
    assert {reason for reason, *_ in await quarantined(records)} <= set(expected)


async def test_bad_messages_do_not_hold_up_the_good_ones_of_their_batch(
    records: Records, admit: Admit
) -> None:
    await admit_early(records, admit)
    samples = [sample(path) for path in SAMPLES]
    batch = [one for one, _ in samples]
    for place, number in enumerate(range(0, len(batch), 3)):
        batch.insert(number, good(place))
    readings = len(batch) - sum("error" in expect for _, expect in samples)
    expected = sum((refusals(expect) for _, expect in samples), Counter[str]())

    with capture_logs() as logged:
        outcome = await Ingest(records).commit(batch)
    explained_without_values(logged, [one for one, _ in samples])
    assert outcome == Outcome(readings, 0, expected)
    assert await records.readings.count() == readings
    assert await records.quarantine.counts() == dict(expected)

    # The broker delivers it all again, to an ingest that was started anew.
    again = await Ingest(records).commit(batch)
    assert (again.stored, again.repeated) == (0, readings)
    assert await records.readings.count() == readings


# --- who it is from ------------------------------------------------------------------------------


async def test_a_reading_of_a_monitor_that_nobody_wears_is_kept_apart(
    records: Records, admit: Admit
) -> None:
    await admit(records, DEVICE)
    before = good(-12 * 60 * 5)  # five hours before noon, one hour before it was linked
    batch = [good(1, device=STRANGER), before, good(2)]
    with capture_logs() as logged:
        outcome = await Ingest(records).commit(batch)
    assert outcome == Outcome(1, 0, Counter({UNKNOWN_DEVICE: 2}))
    assert [(one["reason"], one["device"]) for one in logged] == [
        (UNKNOWN_DEVICE, STRANGER),
        (UNKNOWN_DEVICE, DEVICE),
    ]
    explained_without_values(logged, batch)
    assert await quarantined(records) == sorted(
        (UNKNOWN_DEVICE, one.topic, one.payload) for one in batch[:2]
    )


async def test_a_patient_whose_key_is_gone_stops_nobody_and_his_readings_wait_for_it(
    records: Records, admit: Admit
) -> None:
    other = DeviceId("A4CF12F03B7F")
    mine, _ = await admit(records, DEVICE), await admit(records, other)
    fetch = "SELECT wrapped FROM patient_key WHERE patient_key=$1"
    wrapped = await records.store.db.fetchval(fetch, mine.patient)
    await records.store.db.execute("DELETE FROM patient_key WHERE patient_key=$1", mine.patient)
    afresh = Records(records.store, records.site_key)  # which has no key at hand
    outcome = await Ingest(afresh).commit([good(0), good(1, device=other), good(2)])
    assert outcome == Outcome(1, 0, Counter({NO_PATIENT_KEY: 2}))
    assert await replay(afresh) == (0, {NO_PATIENT_KEY: 2})

    await records.store.db.execute(
        "INSERT INTO patient_key (patient_key, wrapped) VALUES ($1, $2)", mine.patient, wrapped
    )
    assert await replay(afresh) == (2, {})
    assert await afresh.readings.count() == 3


async def test_a_reading_belongs_to_the_patient_who_wore_the_monitor_then(
    sqlite_records: Records, admit: Admit
) -> None:
    records = sqlite_records
    first, second = await admit(records, DEVICE), await admit(records, STRANGER)
    await records.devices.link(DEVICE, second.patient, second.id, now=NOON)
    await Ingest(records).commit([good(0), good(-1), good(1)])
    stored = await records.readings.after(0, limit=10)
    assert [one.patient for one in stored] == [second.patient, first.patient, second.patient]


async def test_a_topic_that_is_no_text_is_refused_like_any_other(sqlite_ward: Records) -> None:
    # What the subscriber makes of a topic that is not UTF-8.
    outcome = await Ingest(sqlite_ward).commit([message(good(0).payload, topic="")])
    assert outcome.refused == Counter(["bad_topic"])


# --- what counts as the same ---------------------------------------------------------------------


async def test_the_same_payload_is_one_reading_however_often_it_comes(
    sqlite_ward: Records,
) -> None:
    ingest = Ingest(sqlite_ward)
    late = message(good(0).payload, received_at=NOON + timedelta(seconds=7))
    assert await ingest.commit([good(0), good(0), late]) == Outcome(1, 2, Counter())
    assert await ingest.commit([late, good(1)]) == Outcome(1, 1, Counter())


async def test_equal_values_of_another_moment_or_monitor_are_another_reading(
    sqlite_records: Records, admit: Admit
) -> None:
    for device in (DEVICE, STRANGER):
        await admit(sqlite_records, device)
    batch = [good(0), good(1), good(0, device=STRANGER)]
    assert (await Ingest(sqlite_records).commit(batch)).stored == 3


# --- clocks --------------------------------------------------------------------------------------


async def test_a_clock_that_is_steadily_behind_is_placed_by_arrival(sqlite_ward: Records) -> None:
    behind = timedelta(hours=2)
    batch = [
        message(good(number).payload, received_at=good(number).arrival.at + behind)
        for number in range(3)
    ]
    await Ingest(sqlite_ward).commit(batch)
    stored = await sqlite_ward.readings.after(0, limit=10)
    assert [one.reading.clock for one in stored] == [Clock.DEVICE, Clock.WRONG, Clock.WRONG]
    assert stored[2].reading.measured_at == batch[2].arrival.at


async def test_a_clock_that_jumps_six_years_and_back_costs_no_reading_of_a_link_of_today(
    sqlite_records: Records, admit: Admit
) -> None:
    await admit(sqlite_records, DEVICE)
    six_years = timedelta(days=6 * 365 + 1)
    jumped = message(
        encode_v1(
            DEVICE,
            int((good(1).arrival.at + six_years).timestamp() * 1000),
            {Kind.SPO2: Decimal(97)},
        ),
        received_at=good(1).arrival.at,
    )
    ingest = Ingest(sqlite_records)
    for one in (good(0), jumped, good(2), good(3)):
        await ingest.commit([one])
    stored = [one.reading for one in await sqlite_records.readings.after(0, limit=10)]
    assert [(one.measured_at, one.clock, one.age) for one in stored] == [
        (good(0).arrival.at, Clock.DEVICE, Age.LIVE),
        (good(1).arrival.at, Clock.WRONG, Age.LIVE),
        (good(2).arrival.at, Clock.WRONG, Age.LATE),
        (good(3).arrival.at, Clock.DEVICE, Age.LIVE),
    ]
    assert UNKNOWN_DEVICE not in await sqlite_records.quarantine.counts()


# --- when the database fails ---------------------------------------------------------------------


class DiskFullError(sqlite3.OperationalError):
    """What the quarantine fails with."""


async def test_a_commit_that_fails_keeps_nothing_and_can_be_repeated(
    records: Records, admit: Admit, monkeypatch: pytest.MonkeyPatch
) -> None:
    await admit(records, DEVICE)
    batch = [good(0), message(b"{"), good(1)]
    ingest = Ingest(records)
    keep = Quarantine.keep

    async def keep_and_fail(self: Quarantine, *args: Any) -> None:
        await keep(self, *args)
        raise DiskFullError

    with monkeypatch.context() as patched:
        patched.setattr(Quarantine, "keep", keep_and_fail)
        with pytest.raises(DiskFullError):
            await ingest.commit(batch)
    assert await records.readings.count() == 0
    assert await records.quarantine.counts() == {}
    assert await ingest.commit(batch) == Outcome(2, 0, Counter(["not_json"]))


class PatientIngest(Ingest):
    """Fails after everything is written, so many times; then it is as good as any."""

    def __init__(self, records: Records, *, failures: int, rates: Rates | None = None) -> None:
        super().__init__(records, rates=rates)
        self.failures = failures

    async def until_committed(self, batch: Sequence[Message]) -> Outcome:
        for _ in range(self.failures):
            with pytest.raises(DiskFullError):
                await self.commit(batch)
        self.failures = 0
        return await self.commit(batch)

    async def _audit(self, *args: Any) -> None:
        await super()._audit(*args)
        if self.failures:
            raise DiskFullError


async def test_what_waited_while_the_database_was_away_is_not_taken_for_a_flood(
    sqlite_ward: Records,
) -> None:
    batch = [good(number) for number in range(500)]
    at_once = [one._replace(arrival=Arrival(one.arrival.at, 0.0)) for one in batch]
    attempts = int(BURST) // len(batch) + 1
    ingest = PatientIngest(sqlite_ward, failures=attempts, rates=Rates(backlog=0))
    outcome = await ingest.until_committed(at_once)
    assert outcome == Outcome(500, 0, Counter())


async def test_a_day_s_backlog_of_a_v1_monitor_is_stored_however_fast_it_comes(
    sqlite_ward: Records,
) -> None:
    ingest, day = Ingest(sqlite_ward), 24 * 3600 // 5
    assert (await ingest.commit([good(0)])).stored == 1
    silent_until_s = good(0).arrival.mono_s + 24 * 3600
    arrival = Arrival(NOON + timedelta(hours=24), silent_until_s)
    backlog = [good(number)._replace(arrival=arrival) for number in range(1, day)]
    outcome = await ingest.commit(backlog)
    assert outcome == Outcome(day - 1, 0, Counter())


async def test_what_a_v1_monitor_sends_too_fast_is_kept_and_can_be_stored_later(
    sqlite_ward: Records,
) -> None:
    ingest = Ingest(sqlite_ward, rates=Rates(burst=10, backlog=0))
    at_once = [one._replace(arrival=good(0).arrival) for one in map(good, range(15))]
    assert await ingest.commit(at_once) == Outcome(10, 0, Counter({RATE_LIMITED: 5}))
    assert await replay(sqlite_ward) == (5, {})
    readings = [one.reading for one in await sqlite_ward.readings.after(0, limit=100)]
    assert [one.age for one in readings[10:]] == [Age.LATE] * 5


async def test_what_smells_of_attack_is_audited_though_the_first_commit_failed(
    sqlite_ward: Records,
) -> None:
    forged = message(good(0, device=STRANGER).payload)
    outcome = await PatientIngest(sqlite_ward, failures=2).until_committed([forged])
    assert outcome.refused == Counter(["wrong_device"])
    assert [one.action for one in await sqlite_ward.audit.latest()] == ["message.refused"]


async def test_followers_are_woken_only_by_what_is_new(sqlite_ward: Records) -> None:
    woken = sqlite_ward.store.hints.subscribe("readings")
    ingest = Ingest(sqlite_ward)
    await ingest.commit([message(b"{")])
    assert not woken.is_set()
    await ingest.commit([good(0)])
    assert woken.is_set()
    woken.clear()
    await ingest.commit([good(0)])
    assert not woken.is_set()
