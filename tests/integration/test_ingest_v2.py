"""v2 messages: sealed, numbered, settled once; what is forged or repeated is recognised."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from bridges.mqtt_vitals.clocks import Arrival
from bridges.mqtt_vitals.ingest import AUDIT_AGAIN_S, Ingest, Message
from bridges.mqtt_vitals.rate import BURST, Rates
from console.readings import replay
from fajma.facts import Connection
from fajma.store import Records
from fajma.store.consultations import Consultation
from fajma.store.devices import KeyPair
from fajma.vitals import Age, Clock, DeviceId, Kind
from fajma.wire import Channel, Gap, Item, Pack, PayloadKey, encode_pack, encode_v1, seal, v2_topic

Admit = Callable[..., Awaitable[Consultation]]

DEVICE = DeviceId("A4CF12F03B7E")
STRANGER = DeviceId("A4CF12F03B7F")
NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
FIRST = 1 << 32
START_MS = 1_000_000
"""The monitor's monotonic time at noon."""


def at(second: float) -> datetime:
    return NOON + timedelta(seconds=second)


def item(number: int, **changes: object) -> Item:
    """The record of this number, five seconds after the one before."""
    return replace(
        Item(
            seq=FIRST + number,
            boot=3,
            mono_ms=START_MS + 5000 * number,
            measured_at=at(5 * number),
            clock_set=True,
            values={Kind.HEART_RATE: Decimal(78), Kind.SPO2: Decimal(97)},
            rejected=(),
            quality=90,
            contact=True,
        ),
        **changes,
    )


def pack(*items: Item | Gap, oldest: int = 0, sent: float | None = None) -> Pack:
    """A message that leaves when its last record was just measured, or at a second."""
    last = [one for one in items if isinstance(one, Item)]
    sent_ms = last[-1].mono_ms if sent is None else START_MS + round(1000 * sent)
    return Pack(DEVICE, FIRST + oldest, 3, sent_ms, items)


def message(
    keys: KeyPair,
    content: Pack,
    *,
    second: float | None = None,
    topic: str | None = None,
    key: PayloadKey | None = None,
    payload: bytes | None = None,
) -> Message:
    """As it comes from the broker, right after it was sent unless a second is given."""
    topic = topic or v2_topic(DEVICE, Channel.VITALS)
    came = (content.sent_ms - START_MS) / 1000 if second is None else second
    sealed = payload or seal(topic, key or keys.up, keys.version, encode_pack(content))
    return Message(topic, sealed, Arrival(at(came), 5000 + came), lambda: None)


@pytest.fixture
async def keys(records: Records, admit: Admit) -> KeyPair:
    """A monitor that is worn and enrolled."""
    await admit(records, DEVICE)
    return await records.devices.new_keys(DEVICE, now=NOON)


async def numbers(records: Records) -> list[int]:
    """Which records are in the log, in its order."""
    rows = await records.store.db.fetch("SELECT record FROM reading ORDER BY position")
    return [int.from_bytes(bytes(row["record"])) - FIRST for row in rows]


def acknowledged(outcome: object) -> list[int]:
    return [one.record - FIRST for one in outcome.settled]  # type: ignore[attr-defined]


async def test_readings_come_out_as_they_were_measured_and_the_monitor_may_delete_them(
    records: Records, keys: KeyPair
) -> None:
    outcome = await Ingest(records).commit([message(keys, pack(item(0), item(1)))])
    assert (outcome.stored, acknowledged(outcome)) == (2, [1])
    [settled] = outcome.settled
    assert (settled.device, settled.keys.version) == (DEVICE, keys.version)
    for number, one in enumerate(await records.readings.after(0, limit=10)):
        reading = one.reading
        assert (reading.measured_at, reading.clock, reading.age) == (
            at(5 * number),
            Clock.DEVICE,
            Age.LIVE,
        )
        assert (reading.quality, reading.contact) == (90, True)
        assert reading.values == item(0).values
    assert await records.tally.all() == {"stored": 2}


async def test_a_monitor_that_leaves_the_broker_or_comes_back_is_told_to_the_alarm_engine_once(
    records: Records, admit: Admit
) -> None:
    await admit(records, DEVICE)

    def status(second: float, *, online: bool, device: DeviceId = DEVICE) -> Message:
        payload = b'{"online": true}' if online else b'{"online": false}'
        arrival = Arrival(at(second), 5000 + second)
        return Message(v2_topic(device, Channel.STATUS), payload, arrival, lambda: None)

    ingests = [Ingest(records), Ingest(records)]  # each hears only a part
    for number, told in enumerate(
        [
            [status(0, online=True)],
            [status(1, online=True), status(1, online=False, device=STRANGER)],
            [status(2, online=True), status(3, online=False)],
            [status(4, online=False)],
            [status(5, online=True)],
        ]
    ):
        await ingests[number % 2].commit(told)

    sealed = await records.facts.sealed_after(0, up_to_reading=0, limit=99)
    facts = [await records.facts.open(one) for one in sealed]
    assert [one for one in facts if isinstance(one, Connection)] == [
        Connection(at(second), DEVICE, online)
        for second, online in ((0, True), (3, False), (5, True))
    ]
    assert await numbers(records) == []


async def test_a_replay_a_reordering_and_a_new_packing_of_the_same_records_count_once(
    records: Records, keys: KeyPair
) -> None:
    ingest = Ingest(records)
    first, second = message(keys, pack(item(0), item(1))), message(keys, pack(item(2), item(3)))
    outcome = await ingest.commit([second])
    assert acknowledged(outcome) == [-1]  # 0 and 1 are still to come
    outcome = await ingest.commit([first, first])
    assert (outcome.stored, outcome.repeated, acknowledged(outcome)) == (2, 2, [1])
    repacked = message(keys, pack(item(1), item(2), item(3), item(4)), second=30)
    outcome = await ingest.commit([repacked])
    assert (outcome.stored, outcome.repeated, acknowledged(outcome)) == (1, 3, [4])
    outcome = await Ingest(records).commit([first, second, repacked])  # started anew
    assert (outcome.stored, outcome.refused, acknowledged(outcome)) == (0, Counter(), [4])
    assert await numbers(records) == [2, 3, 0, 1, 4]


async def test_records_that_a_monitor_deleted_though_they_never_came_are_counted_once(
    records: Records, keys: KeyPair
) -> None:
    ingest = Ingest(records)
    await ingest.commit([message(keys, pack(item(0)))])
    jumped = message(keys, pack(item(9), oldest=5))
    await ingest.commit([jumped])
    await ingest.commit([jumped])
    assert (await records.tally.all())["records_missing"] == 4  # 1 to 4; 5 to 8 may still come


async def test_a_gap_is_waited_for_until_the_monitor_says_that_it_will_never_come(
    records: Records, keys: KeyPair
) -> None:
    ingest = Ingest(records)
    await ingest.commit([message(keys, pack(item(0)))])
    outcome = await ingest.commit([message(keys, pack(item(5)))])
    assert acknowledged(outcome) == [0]
    overwritten = Gap(FIRST + 1, 3, overwritten=True)
    skipped = Gap(FIRST + 4, 1, overwritten=False)
    again = message(keys, pack(overwritten, skipped, item(5)), second=30)
    outcome = await ingest.commit([again, again])
    assert acknowledged(outcome) == [5]
    assert (await records.tally.all())["lost_at_device"] == 3
    assert await numbers(records) == [0, 5]


async def test_an_acknowledgement_goes_no_further_than_what_it_answers(
    records: Records, keys: KeyPair
) -> None:
    ingest = Ingest(records)
    await ingest.commit([message(keys, pack(*(item(n) for n in range(10))))])
    overwritten = Gap(FIRST + 3, 4, overwritten=True)
    for content, told in (
        (pack(item(2), overwritten, sent=60), [6]),
        (pack(item(2), sent=60), [2]),
        (pack(oldest=5, sent=60), [4]),
        (pack(oldest=40, sent=60), [39]),
        (pack(item(50), oldest=45, sent=600), [44]),
    ):
        assert acknowledged(await ingest.commit([message(keys, content)])) == told
    both = [message(keys, pack(item(n), oldest=45, sent=600)) for n in (46, 45)]
    assert acknowledged(await ingest.commit(both)) == [46]


async def test_what_a_monitor_no_longer_holds_is_waited_for_no_more(
    records: Records, keys: KeyPair
) -> None:
    ingest = Ingest(records)
    await ingest.commit([message(keys, pack(item(0)))])
    # We were set back to a backup: the monitor has deleted 1 to 9 since.
    outcome = await ingest.commit([message(keys, pack(item(10), oldest=10))])
    assert acknowledged(outcome) == [10]


async def test_a_number_that_is_used_again_for_something_else_is_kept_apart_and_audited(
    records: Records, keys: KeyPair
) -> None:
    ingest = Ingest(records)
    await ingest.commit([message(keys, pack(item(0)))])
    other = item(0, values={Kind.SPO2: Decimal(80)}, mono_ms=START_MS + 60_000)
    outcome = await ingest.commit([message(keys, pack(other))])
    assert outcome.refused == Counter({"sequence_reused": 1})
    assert acknowledged(outcome) == [0]
    assert await numbers(records) == [0]
    [entry] = await records.audit.latest()
    assert (entry.actor, entry.action) == (f"monitor {DEVICE}", "message.refused")
    assert entry.detail == {"reason": "sequence_reused"}


@pytest.mark.parametrize(
    "other",
    [
        {"boot": 2},
        {"mono_ms": START_MS - 1},
        {"measured_at": at(0.001)},
        {"measured_at": None, "clock_set": False},
        {"quality": 91},
        {"quality": None},
        {"contact": None},
        {"contact": False},
        {"values": {Kind.SPO2: Decimal(96)}},
        {"values": {Kind.HEART_RATE: Decimal(97)}},
        {"values": {Kind.SPO2: Decimal(97), Kind.HEART_RATE: Decimal(0)}},  # unusable
        {"values": {Kind.SPO2: Decimal(97), Kind.TEMPERATURE: Decimal(37)}},
    ],
)
async def test_a_number_stands_for_all_that_its_record_says(
    sqlite_records: Records, admit: Admit, other: dict[str, Any]
) -> None:
    await admit(sqlite_records, DEVICE)
    keys = await sqlite_records.devices.new_keys(DEVICE, now=NOON)
    first: dict[str, Any] = {"values": {Kind.SPO2: Decimal(97)}}
    ingest = Ingest(sqlite_records)
    await ingest.commit([message(keys, pack(item(0, **first), sent=1))])
    assert (await ingest.commit([message(keys, pack(item(0, **first), sent=2))])).repeated == 1
    outcome = await ingest.commit([message(keys, pack(item(0, **(first | other)), sent=3))])
    assert outcome.refused["sequence_reused"] == 1
    assert await numbers(sqlite_records) == [0]


# --- who it is from ------------------------------------------------------------------------------


async def test_what_is_forged_changed_or_moved_is_refused_and_audited_and_settles_nothing(
    records: Records, keys: KeyPair
) -> None:
    ingest = Ingest(records)
    honest = message(keys, pack(item(0)))
    changed = bytearray(honest.payload)
    changed[-1] ^= 1
    elsewhere = v2_topic(STRANGER, Channel.VITALS)
    cases = {
        "not_authentic": [
            message(keys, pack(item(0)), key=PayloadKey(os.urandom(32))),
            message(keys, pack(item(0)), payload=bytes(changed)),
            message(keys, pack(item(0)), key=keys.down),  # a downlink played back
        ],
        "wrong_device": [message(keys, pack(item(0)), topic=elsewhere, payload=honest.payload)],
        "unknown_key": [message(replace(keys, version=7), pack(item(0)))],
    }
    for reason, messages in cases.items():
        for one in messages:
            outcome = await ingest.commit([one])
            assert (outcome.stored, outcome.settled) == (0, ())
            assert outcome.refused == Counter({reason: 1})
    assert {one.detail["reason"] for one in await records.audit.latest()} == set(cases)
    assert await numbers(records) == []


async def test_a_key_that_was_retired_opens_nothing_and_its_successor_does(
    records: Records, keys: KeyPair
) -> None:
    ingest = Ingest(records)
    await ingest.commit([message(keys, pack(item(0)))])
    newer = await records.devices.new_keys(DEVICE, now=NOON)
    assert newer.version == keys.version + 1
    outcome = await ingest.commit([message(keys, pack(item(1))), message(newer, pack(item(2)))])
    assert outcome.stored == 2
    assert [one.keys.version for one in outcome.settled] == [newer.version]
    await records.devices.retire_keys(DEVICE, before=newer.version, now=NOON)
    outcome = await ingest.commit([message(keys, pack(item(3))), message(newer, pack(item(4)))])
    assert (outcome.stored, outcome.refused) == (1, Counter({"unknown_key": 1}))


async def test_a_payload_key_is_sealed_in_the_database(records: Records, keys: KeyPair) -> None:
    [row] = await records.store.db.fetch("SELECT * FROM payload_key")
    assert "PayloadKey" in repr(keys)
    opened = records.site_key.site.open(
        bytes(row["sealed"]), place=f"payload_key/{DEVICE}/{keys.version}"
    )
    assert opened[:32] not in bytes(row["sealed"])
    assert opened.hex() not in repr(keys)


async def test_attacks_are_audited_once_an_hour_for_each_monitor(
    records: Records, keys: KeyPair
) -> None:
    ingest = Ingest(records)
    forged = message(keys, pack(item(0)), key=PayloadKey(os.urandom(32)))
    for second in (0.0, 60.0, AUDIT_AGAIN_S + 1):
        await ingest.commit([forged._replace(arrival=Arrival(at(second), second))] * 3)
    assert len(await records.audit.latest()) == 2


async def test_attacks_are_audited_though_our_clock_was_ahead_before(
    sqlite_records: Records, admit: Admit
) -> None:
    await admit(sqlite_records, DEVICE)
    keys = await sqlite_records.devices.new_keys(DEVICE, now=NOON)
    ingest = Ingest(sqlite_records)
    forged = message(keys, pack(item(0)), key=PayloadKey(os.urandom(32)))
    a_year_ahead = Arrival(at(366 * 86_400), 5000.0)
    set_right = Arrival(at(0), 5001.0 + AUDIT_AGAIN_S)
    for arrival in (a_year_ahead, set_right):
        await ingest.commit([forged._replace(arrival=arrival)])
    assert [one.at for one in await sqlite_records.audit.latest()] == [a_year_ahead.at, at(0)]


# --- when ----------------------------------------------------------------------------------------


async def test_a_backlog_after_an_outage_is_late_and_what_follows_it_is_live(
    records: Records, keys: KeyPair
) -> None:
    ingest = Ingest(records)
    await ingest.commit([message(keys, pack(item(0)))])
    backlog = message(keys, pack(*(item(n) for n in range(1, 121)), sent=600))
    await ingest.commit([backlog])
    stored = [one.reading for one in await records.readings.after(0, limit=200)]
    assert [one.age for one in stored] == [Age.LIVE] + [Age.LATE] * 107 + [Age.LIVE] * 13
    assert all(one.measured_at == at(5 * n) for n, one in enumerate(stored))


async def test_a_monitor_whose_clock_is_two_hours_wrong_is_live_and_marked(
    records: Records, keys: KeyPair
) -> None:
    ingest = Ingest(records)
    for number in range(3):
        wrong = item(number, measured_at=at(5 * number) - timedelta(hours=2))
        await ingest.commit([message(keys, pack(wrong))])
    stored = [one.reading for one in await records.readings.after(0, limit=10)]
    assert [(one.clock, one.age) for one in stored[1:]] == [(Clock.WRONG, Age.LIVE)] * 2
    assert stored[2].measured_at == at(10)


async def test_a_record_of_an_earlier_start_is_late(records: Records, keys: KeyPair) -> None:
    earlier = item(0, boot=2, mono_ms=99_000_000, measured_at=None, clock_set=False)
    now = item(1)
    await Ingest(records).commit([message(keys, pack(earlier, now))])
    first, second = [one.reading for one in await records.readings.after(0, limit=10)]
    assert (first.age, first.clock) == (Age.LATE, Clock.ARRIVAL)
    assert first.measured_at == at(5) - timedelta(milliseconds=now.mono_ms)
    assert second.age is Age.LIVE


async def test_what_comes_again_teaches_nothing_of_any_clock(
    sqlite_records: Records, admit: Admit
) -> None:
    """Else one who plays old messages back makes late ones look live, and live ones unknown."""
    records = sqlite_records
    await admit(records, DEVICE)
    keys = await records.devices.new_keys(DEVICE, now=NOON)
    unset = {"measured_at": None, "clock_set": False}
    ingest = Ingest(records)
    before = [
        message(keys, replace(pack(item(n, boot=2, **unset)), boot=2), second=5 * n)
        for n in range(2)
    ]
    for one in [*before, *(message(keys, pack(item(n, **unset))) for n in (2, 3, 4))]:
        await ingest.commit([one])

    for number, old in enumerate(before):  # of an earlier start, as if it were the present one
        arrival = Arrival(at(21 + number), 5021 + number)
        outcome = await ingest.commit([old._replace(arrival=arrival)])
        assert (outcome.stored, outcome.repeated) == (0, 1)
    # Those that come again may be among new ones.
    await ingest.commit(
        [
            before[0]._replace(arrival=Arrival(at(24), 5024)),
            message(keys, pack(item(5, **unset))),
        ]
    )
    held_back = message(keys, pack(item(6, **unset)), second=630)
    await ingest.commit([held_back])

    stored = [one.reading.age for one in await records.readings.after(0, limit=20)]
    assert stored[2:] == [Age.UNKNOWN, Age.LIVE, Age.LIVE, Age.LIVE, Age.LATE]


async def test_what_comes_again_in_clear_does_not_make_what_waited_live(
    sqlite_records: Records, admit: Admit
) -> None:
    records = sqlite_records
    await admit(records, DEVICE)
    ingest = Ingest(records)

    def said(measured_s: float, second: float) -> Message:
        told = encode_v1(DEVICE, round(1000 * at(measured_s).timestamp()), {Kind.SPO2: Decimal(97)})
        return Message(
            f"fajma/sensors/{DEVICE}", told, Arrival(at(second), 5000 + second), lambda: None
        )

    for second in (0, 5, 10):
        await ingest.commit([said(second, second)])
    for second in (5, 10):  # played back ten minutes later, as steadily as they came
        assert (await ingest.commit([said(second, 600 + second)])).repeated == 1
    await ingest.commit([said(100, 620)])

    stored = [one.reading for one in await records.readings.after(0, limit=20)]
    assert [(one.age, one.measured_at) for one in stored[3:]] == [(Age.LATE, at(100))]


async def test_a_record_that_was_not_sent_at_once_is_replayed_to_when_it_was_measured(
    sqlite_records: Records, admit: Admit
) -> None:
    """A monitor whose clock is not set, and that nobody wore yet."""
    records = sqlite_records
    keys = await records.devices.new_keys(DEVICE, now=NOON)
    unset = {"measured_at": None, "clock_set": False}
    await Ingest(records).commit([message(keys, pack(item(0, **unset), item(12, **unset)))])
    await admit(records, DEVICE)

    assert await replay(records) == (2, {})
    stored = [one.reading for one in await records.readings.after(0, limit=9)]
    assert [(one.age, one.clock, one.measured_at) for one in stored] == [
        (Age.LATE, Clock.ARRIVAL, at(0)),
        (Age.LATE, Clock.ARRIVAL, at(60)),
    ]


@pytest.mark.parametrize(
    "absurd",
    [
        {"sent_ms": 2**42 - 1},
        {"measured_at": datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)},
        {"measured_at": datetime(1980, 1, 1, tzinfo=UTC)},
        {"measured_at": None, "clock_set": False, "sent_ms": 10**12},
        {"measured_at": None, "clock_set": False, "sent_ms": 10**12, "boot": 1},
    ],
)
async def test_absurd_times_stop_nobody(
    sqlite_records: Records, admit: Admit, absurd: dict[str, Any]
) -> None:
    records = sqlite_records
    await admit(records, DEVICE)
    keys = await records.devices.new_keys(DEVICE, now=NOON)
    sent_ms = absurd.pop("sent_ms", None)
    content = pack(item(0, **absurd), sent=5)
    if sent_ms is not None:
        content = replace(content, sent_ms=sent_ms)
    ingest = Ingest(records)
    await ingest.commit([message(keys, content, second=0)])
    outcome = await ingest.commit([message(keys, pack(item(1)))])
    assert (outcome.stored, acknowledged(outcome)) == (1, [1])


async def test_a_message_that_we_stumble_over_is_kept_apart_and_stops_nobody(
    sqlite_records: Records, admit: Admit, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = sqlite_records
    await admit(records, DEVICE)
    keys = await records.devices.new_keys(DEVICE, now=NOON)
    ingest = Ingest(records)
    with monkeypatch.context() as patched:

        def broken(*_: object) -> Pack:
            raise ZeroDivisionError

        patched.setattr("bridges.mqtt_vitals.ingest.wire.decode_pack", broken)
        outcome = await ingest.commit([message(keys, pack(item(0)))])
    assert outcome.refused == Counter({"bug": 1})
    assert outcome.settled == ()  # the monitor keeps it, and may send it to a better version
    assert (await ingest.commit([message(keys, pack(item(0)))])).stored == 1


# --- one bad record, a probe that is off, a monitor that nobody wears ----------------------------


async def test_a_record_without_usable_value_is_kept_apart_and_settled(
    records: Records, keys: KeyPair
) -> None:
    absurd = item(1, values={Kind.SPO2: Decimal(101)}, contact=True)
    outcome = await Ingest(records).commit([message(keys, pack(item(0), absurd, item(2)))])
    assert (outcome.stored, acknowledged(outcome)) == (2, [2])
    assert outcome.refused["no_usable_value"] == 1
    assert outcome.refused["spo2_implausible_high"] == 1


async def test_a_record_that_is_only_absurdly_low_is_counted_and_is_a_reading_that_says_so(
    records: Records, keys: KeyPair
) -> None:
    dying = item(0, values={Kind.SPO2: Decimal(12), Kind.TEMPERATURE: Decimal(20)}, contact=True)
    ingest = Ingest(records)
    outcome = await ingest.commit([message(keys, pack(dying))])
    assert (outcome.stored, acknowledged(outcome)) == (1, [0])
    assert outcome.refused["spo2_implausible_low"] == 1
    assert "no_usable_value" not in outcome.refused
    [one] = await records.readings.after(0, limit=10)
    # A temperature that is too low is a probe that fell off.
    assert (one.reading.values, one.reading.unusable) == ({}, {Kind.SPO2})
    assert (await ingest.commit([message(keys, pack(dying))])).repeated == 1
    other = replace(dying, values={Kind.HEART_RATE: Decimal(0)})
    outcome = await ingest.commit([message(keys, pack(other))])
    assert outcome.refused["sequence_reused"] == 1


async def test_a_probe_that_is_off_is_a_reading_without_values(
    records: Records, keys: KeyPair
) -> None:
    off = item(0, values={}, contact=False, quality=None)
    outcome = await Ingest(records).commit([message(keys, pack(off))])
    assert outcome.stored == 1
    [one] = await records.readings.after(0, limit=10)
    assert (one.reading.values, one.reading.contact) == ({}, False)


async def test_what_a_monitor_measured_before_anybody_wore_it_is_kept_and_acknowledged(
    sqlite_records: Records, admit: Admit
) -> None:
    records = sqlite_records
    keys = await records.devices.new_keys(DEVICE, now=NOON)
    ingest = Ingest(records)
    outcome = await ingest.commit([message(keys, pack(item(0), item(1)))])
    assert (outcome.stored, acknowledged(outcome)) == (0, [1])
    assert outcome.refused == Counter({"unknown_device": 1})
    await admit(records, DEVICE)  # linked since the morning
    outcome = await ingest.commit([message(keys, pack(item(2)))])
    assert (outcome.stored, acknowledged(outcome)) == (1, [2])

    [kept] = await records.quarantine.listed(device=DEVICE)
    opened = await records.quarantine.open(kept)
    assert opened is not None
    again = Message(
        opened.topic, opened.payload, Arrival(opened.received_at, 0.0), lambda: None, replayed=True
    )
    outcome = await ingest.commit([again])
    assert outcome.stored == 2
    assert await numbers(records) == [2, 0, 1]
    replayed = [one.reading for one in await records.readings.after(1, limit=10)]
    assert [(one.age, one.measured_at) for one in replayed] == [
        (Age.LATE, at(0)),
        (Age.LATE, at(5)),
    ]


async def test_a_monitor_that_floods_is_held_back_and_no_other_is_and_nothing_is_lost(
    sqlite_records: Records, admit: Admit
) -> None:
    records = sqlite_records
    await admit(records, DEVICE)
    keys = await records.devices.new_keys(DEVICE, now=NOON)
    ingest = Ingest(records, rates=Rates(backlog=0))
    flood = [message(keys, pack(item(n))) for n in range(int(BURST) + 50)]
    same_time = Arrival(at(0), 5000.0)
    outcome = await ingest.commit([one._replace(arrival=same_time) for one in flood])
    assert (outcome.stored, acknowledged(outcome)) == (BURST, [int(BURST) - 1])
    assert outcome.refused == Counter({"rate_limited": 50})
    assert await records.quarantine.listed() == []  # counted, not kept: it comes again
    later = Arrival(at(60), 5060.0)
    outcome = await ingest.commit([one._replace(arrival=later) for one in flood[-50:]])
    assert (outcome.stored, acknowledged(outcome)) == (50, [int(BURST) + 49])
    assert [one.detail["reason"] for one in await records.audit.latest()] == ["rate_limited"]


async def test_a_flood_of_full_packs_is_a_flood_of_readings(
    sqlite_records: Records, admit: Admit
) -> None:
    records = sqlite_records
    await admit(records, DEVICE)
    keys = await records.devices.new_keys(DEVICE, now=NOON)
    ingest = Ingest(records, rates=Rates(burst=500, backlog=0))
    packs = [
        message(keys, pack(*(item(100 * n + m) for m in range(100)), oldest=100 * n))
        for n in range(7)
    ]
    same_time = Arrival(at(0), 5000.0)
    outcome = await ingest.commit([one._replace(arrival=same_time) for one in packs])
    assert (outcome.stored, acknowledged(outcome)) == (500, [499])
    assert outcome.refused == Counter({"rate_limited": 2})
    assert await records.quarantine.listed() == []  # counted, not kept: it comes again
    # A gap is one statement, however many records it is about.
    gap = pack(Gap(FIRST + 500, 10_000, overwritten=False), oldest=500, sent=0)
    assert acknowledged(await ingest.commit([message(keys, gap, second=1)])) == [10_499]
