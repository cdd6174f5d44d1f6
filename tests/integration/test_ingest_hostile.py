"""One message, one key or one row may be as bad as it likes: the other monitors go on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from decimal import Decimal

import pytest

from bridges.mqtt_vitals import ingest as ingest_module
from bridges.mqtt_vitals.clocks import Arrival
from bridges.mqtt_vitals.ingest import BUG, DOWNGRADED, LOST_MOST, Ingest, Message
from bridges.mqtt_vitals.rate import Rates
from console.readings import replay
from fajma.store import Records, quarantine
from fajma.store.consultations import Consultation
from fajma.store.devices import KeyPair
from fajma.store.quarantine import NO_PATIENT_KEY, Refused
from fajma.store.readings import NewReading, Readings
from fajma.vitals import Kind
from fajma.wire import Channel, Gap, Pack, seal, v2_topic
from tests.integration.test_ingest import good
from tests.integration.test_ingest_v2 import (
    DEVICE,
    NOON,
    START_MS,
    STRANGER,
    acknowledged,
    at,
    item,
    message,
    pack,
)

Admit = Callable[..., Awaitable[Consultation]]


@pytest.fixture
async def keys(records: Records, admit: Admit) -> KeyPair:
    """A monitor that is worn and enrolled."""
    await admit(records, DEVICE)
    return await records.devices.new_keys(DEVICE, now=NOON)


async def test_gaps_beyond_every_number_are_counted_up_to_a_bound(
    records: Records, keys: KeyPair
) -> None:
    half = 2**62
    gaps = (Gap(0, half, overwritten=True), Gap(half, half, overwritten=True))
    ingest = Ingest(records)
    for _ in range(2):
        await ingest.commit([message(keys, Pack(DEVICE, 0, 3, START_MS, gaps))])

    assert (await records.tally.all())["lost_at_device"] == LOST_MOST


async def test_a_payload_key_that_does_not_open_keeps_nobody_else_out(
    records: Records, keys: KeyPair, admit: Admit
) -> None:
    await admit(records, STRANGER)
    other = await records.devices.new_keys(STRANGER, now=NOON)
    await records.store.db.execute(
        "UPDATE payload_key SET sealed=$1 WHERE device_id=$2", b"x" * 40, STRANGER
    )
    topic = v2_topic(STRANGER, Channel.VITALS)
    sealed = seal(topic, other.up, other.version, b"x")
    bad = Message(topic, sealed, Arrival(at(0), 5000.0), lambda: None)

    outcome = await Ingest(records).commit([message(keys, pack(item(0))), bad])

    assert (outcome.stored, dict(outcome.refused)) == (1, {"unknown_key": 1})


async def test_a_message_that_cannot_be_committed_is_found_and_kept_alone(
    records: Records, keys: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of ours that nobody knows of."""
    append = Readings.append

    async def picky(self: Readings, connection: object, batch: list[NewReading]) -> object:
        if any(one.reading.values.get(Kind.SPO2) == Decimal(66) for one in batch):
            raise ArithmeticError
        return await append(self, connection, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(Readings, "append", picky)
    values = {Kind.SPO2: Decimal(66)}
    messages = [
        message(keys, pack(item(number, values=values) if number == 5 else item(number)))
        for number in range(9)
    ]

    outcome = await Ingest(records).commit(messages)

    assert (outcome.stored, dict(outcome.refused)) == (8, {BUG: 1})
    assert [one.reason for one in await records.quarantine.listed()] == [BUG]
    assert max(acknowledged(outcome)) < 5 + 4  # nothing without gap beyond the one that is kept


async def test_what_cannot_be_committed_when_it_is_tried_again_is_counted_and_kept_once(
    sqlite_records: Records, admit: Admit, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = sqlite_records
    pair = await records.devices.new_keys(DEVICE, now=NOON)
    await Ingest(records).commit([message(pair, pack(item(0)))])
    await admit(records, DEVICE)
    before = await records.quarantine.counts(), await records.quarantine.listed()

    async def broken(*_: object) -> object:
        raise ArithmeticError

    monkeypatch.setattr(Readings, "append", broken)
    assert await replay(records) == (0, {BUG: 1})
    assert (await records.quarantine.counts(), await records.quarantine.listed()) == before


async def test_what_was_not_understood_to_its_end_is_not_settled(
    records: Records, keys: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> object:
        raise ArithmeticError

    monkeypatch.setattr(ingest_module, "place_v2", broken)
    outcome = await Ingest(records).commit([message(keys, pack(item(0)))])

    assert (dict(outcome.refused), acknowledged(outcome)) == ({BUG: 1}, [])


async def test_a_monitor_that_seals_is_not_believed_in_clear_afterwards(
    records: Records, keys: KeyPair
) -> None:
    ingests = [Ingest(records), Ingest(records)]
    before = await ingests[1].commit([good(0)])
    await ingests[0].commit([message(keys, pack(item(0)))])
    after = [await one.commit([good(1)]) for one in ingests]

    assert before.stored == 1
    assert [(one.stored, dict(one.refused)) for one in after] == [(0, {DOWNGRADED: 1})] * 2
    assert [one.detail["reason"] for one in await records.audit.latest()] == [DOWNGRADED] * 2


async def test_more_readings_than_a_small_sqlite_takes_variables_are_committed(
    sqlite_records: Records, admit: Admit
) -> None:
    await admit(sqlite_records, DEVICE)
    pair = await sqlite_records.devices.new_keys(DEVICE, now=NOON)
    values = {Kind.SPO2: Decimal(97)}
    many = [
        message(pair, pack(*(item(100 * part + n, values=values) for n in range(100))))
        for part in range(170)
    ]

    assert (await Ingest(sqlite_records).commit(many)).stored == 170 * 100


async def test_a_message_is_kept_once_however_many_of_its_values_are_refused(
    records: Records, keys: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Refused] = []
    keep = records.quarantine.keep

    async def watched(connection: object, refused: list[Refused]) -> None:
        kept.extend(one for one in refused if one.keep)
        await keep(connection, refused)  # type: ignore[arg-type]

    monkeypatch.setattr(records.quarantine, "keep", watched)
    empty = [item(n, values={}, contact=None, quality=None) for n in range(256)]

    outcome = await Ingest(records).commit([message(keys, pack(*empty))])

    assert sum(outcome.refused.values()) >= 256
    assert len(kept) == 1


async def test_a_message_of_a_patient_whose_key_is_gone_is_counted_once_for_all_its_records(
    records: Records, keys: KeyPair
) -> None:
    await records.store.db.execute("DELETE FROM patient_key")
    outcome = await Ingest(records).commit(
        [message(keys, pack(item(0), item(1), item(2))), message(keys, pack(item(3)))]
    )

    assert (outcome.stored, dict(outcome.refused)) == (0, {NO_PATIENT_KEY: 2})
    assert len(await records.quarantine.listed()) == 2


async def test_before_the_first_record_there_is_nothing_to_acknowledge(
    records: Records, keys: KeyPair
) -> None:
    outcome = await Ingest(records).commit([message(keys, Pack(DEVICE, 0, 3, START_MS, ()))])

    assert outcome.settled == ()


async def test_a_pack_on_a_topic_of_ours_is_not_believed(records: Records, keys: KeyPair) -> None:
    topic = v2_topic(DEVICE, Channel.CONFIG)
    outcome = await Ingest(records).commit([message(keys, pack(item(0)), topic=topic)])

    assert (outcome.stored, dict(outcome.refused)) == (0, {"bad_topic": 1})


async def test_what_cannot_be_stored_when_it_is_tried_again_stays_in_the_quarantine(
    records: Records, admit: Admit
) -> None:
    """The monitor deleted it, since it was told that it is safe here."""
    old = await records.devices.new_keys(DEVICE, now=NOON)
    outcome = await Ingest(records).commit([message(old, pack(item(0)))])
    assert acknowledged(outcome) == [0]
    new = await records.devices.new_keys(DEVICE, now=NOON)
    await records.devices.retire_keys(DEVICE, before=new.version, now=NOON)
    await admit(records, DEVICE)

    assert await replay(records) == (0, {"unknown_key": 1})
    assert len(await records.quarantine.listed()) == 1


async def test_rubbish_takes_no_room_from_what_can_be_tried_again(
    sqlite_records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MAX_KEPT", "MAX_KEPT_OF_DEVICE"):
        monkeypatch.setattr(quarantine, name, 5)
    pair = await sqlite_records.devices.new_keys(DEVICE, now=NOON)
    ingest = Ingest(sqlite_records)
    await ingest.commit([message(pair, pack(item(0)))])  # nobody wears it, and it is told: deleted
    topic = f"fajma/sensors/{DEVICE}"
    rubbish = [Message(topic, b"{", Arrival(at(n), 5000.0 + n), lambda: None) for n in range(9)]
    await ingest.commit(rubbish)

    kept = [one.reason for one in await sqlite_records.quarantine.listed()]
    assert sorted(kept) == ["downgraded"] * 5 + ["unknown_device"]
    assert (await sqlite_records.tally.all())["quarantine_full"] == 4


async def test_rubbish_on_a_sealed_topic_is_limited_like_anything_else(
    sqlite_records: Records,
) -> None:
    topic = v2_topic(STRANGER, Channel.VITALS)
    flood = [Message(topic, b"%d" % n, Arrival(at(0), 5000.0), lambda: None) for n in range(300)]
    outcome = await Ingest(sqlite_records, rates=Rates(burst=100, backlog=0)).commit(flood)

    assert outcome.refused["rate_limited"] == 200
    assert len(await sqlite_records.audit.latest()) >= 1
