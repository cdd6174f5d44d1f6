"""The largest batch that the publisher makes fits into an event, encrypted and as a server adds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import olm
from canonicaljson import encode_canonical_json

from bridges.mqtt_vitals.publisher import MAX_BATCH_READINGS, MAX_HISTORY_READINGS
from fajma.events import VITALS_BATCH, VitalsBatch
from fajma.vitals import MEASURES, TELLING_LOW, Age, Clock, DeviceId, Kind, PatientKey, Reading

LARGEST_EVENT = 65_536
"""Client-server specification, "Size limits": the complete event, as it travels between servers."""

LONGEST_ID = 255
"""The same: user ids and room ids."""

FAR = timedelta(days=7)
NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
LOWEST = {kind: MEASURES[kind].lowest + Decimal("0.0001") for kind in Kind}
HIGHEST = {kind: MEASURES[kind].highest - Decimal("0.0001") for kind in Kind}


def reading(number: int, kinds: set[Kind]) -> tuple[int, Reading]:
    """As costly as can be: times and values that leap, and everything that is told as runs."""
    at = NOON + (FAR if number % 2 else timedelta(0)) + timedelta(milliseconds=number)
    values = HIGHEST if number % 2 else LOWEST
    age = Age.UNKNOWN if number % 2 else Age.LATE
    shown = {kind: values[kind] for kind in kinds}
    rest = (99, True, frozenset()) if number % 2 else (1, False, TELLING_LOW)
    reading = Reading(DeviceId("0" * 12), at, at, Clock.DEVICE, shown, age, *rest)
    return 10**15 + number, reading


def size(batch: VitalsBatch) -> int:
    """Of the event between servers, with as much around it as there may be."""
    content = batch.to_content()
    relation = content.pop("m.relates_to")
    name = "s" * (LONGEST_ID - 15)
    plain = {"room_id": "!" + "r" * (LONGEST_ID - 1), "type": VITALS_BATCH, "content": content}
    session = olm.OutboundGroupSession()
    encrypted = {
        "algorithm": "m.megolm.v1.aes-sha2",
        "ciphertext": session.encrypt(encode_canonical_json(plain).decode()),
        "session_id": session.id,
        "sender_key": "k" * 43,
        "device_id": "d" * LONGEST_ID,
        "m.relates_to": relation,
    }
    event = {
        "type": "m.room.encrypted",
        "room_id": plain["room_id"],
        "sender": f"@fajma-vitals:{name}",
        "content": encrypted,
        "origin_server_ts": 10**13,
        "depth": 2**53 - 1,
        # A homeserver names up to 20 previous events (server-server specification) and few that
        # authorise it.
        "prev_events": ["$" + "e" * 43] * 20,
        "auth_events": ["$" + "e" * 43] * 10,
        "hashes": {"sha256": "h" * 43},
        "signatures": {name: {"ed25519:" + "k" * 32: "s" * 86}},
        "unsigned": {"age": 10**13, "transaction_id": "t" * LONGEST_ID},
    }
    return len(encode_canonical_json(event))


def test_the_largest_batch_fits_into_an_event() -> None:
    kinds = [set(Kind) - {list(Kind)[number % 5]} if number < 5 else set(Kind)
             for number in range(MAX_BATCH_READINGS)]  # fmt: skip
    batch = VitalsBatch.of(
        PatientKey("f" * 32),
        "$" + "a" * 43,
        [reading(number, one) for number, one in enumerate(kinds)],
    )
    assert len(batch.readings) == MAX_BATCH_READINGS
    assert size(batch) < LARGEST_EVENT


def test_the_largest_part_of_a_history_fits_into_an_event() -> None:
    # A point has one kind, or several when one reading was extreme in them; a monitor that sends
    # seldom has all kinds in each.
    for several in range(1, 6):
        kinds = [
            {list(Kind)[(number + n) % 5] for n in range(several)}
            for number in range(MAX_HISTORY_READINGS)
        ]
        batch = VitalsBatch.of(
            PatientKey("f" * 32),
            "$" + "a" * 43,
            [reading(number, one) for number, one in enumerate(kinds)],
            history=True,
        )
        assert size(batch) < LARGEST_EVENT


def test_a_minute_of_a_monitor_is_small() -> None:
    minute = []
    for number in range(12):
        at = NOON + timedelta(seconds=5 * number, milliseconds=number % 7)
        values = {
            Kind.HEART_RATE: Decimal(78 + number % 3),
            Kind.SPO2: Decimal(97),
            Kind.TEMPERATURE: Decimal("36.8"),
        }
        minute.append(
            (
                1_000_000 + number,
                Reading(
                    DeviceId("0" * 12),
                    at,
                    at,
                    Clock.DEVICE,
                    values,
                    quality=90 + number,
                    contact=True,
                ),
            )
        )
    batch = VitalsBatch.of(PatientKey("f" * 32), "$" + "a" * 43, minute)
    assert len(encode_canonical_json(batch.to_content())) < 510
