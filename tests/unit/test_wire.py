from __future__ import annotations

import base64
import json
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fajma.errors import DecodeError
from fajma.vitals import MEASURES, Clock, DeviceId, Kind
from fajma.wire import (
    MAX_PAYLOAD_BYTES,
    REQUIRED,
    V1_TOPIC,
    NoUsableValueError,
    Reason,
    Rejected,
    decode_v1,
    encode_v1,
    parse_device_id,
    parse_topic,
)
from fajma.wire.v1 import _PLAIN

SAMPLES = sorted((Path(__file__).parents[1] / "samples" / "v1").glob("*.json"))
DEVICE = DeviceId("A4CF12F03B7E")
TOPIC = V1_TOPIC.format(device=DEVICE)
NOON_MS = 1_772_452_800_000

DEVICES = st.from_regex(r"[0-9A-F]{12}", fullmatch=True).map(DeviceId)
VALUES = st.dictionaries(st.sampled_from(Kind), st.none(), min_size=1).flatmap(
    lambda kinds: st.fixed_dictionaries(
        {
            kind: st.decimals(MEASURES[kind].lowest, MEASURES[kind].highest, places=4)
            for kind in kinds
        }
    )
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)

SPELLINGS = st.sampled_from(
    ["A4CF12F03B7E", "A4:CF:12:F0:3B:7E", "a4-cf-12-f0-3b-7e", "a4:CF:12:f0:3b:7e", "A4CF12F03B7F"]
)
NUMBERS = st.from_regex(r"-?(0|[1-9][0-9]{0,4})(\.[0-9]{1,4})?", fullmatch=True)
SPACE = st.sampled_from(["", " "])


@st.composite
def plain_messages(draw: st.DrawFn) -> str:
    """Messages as monitors write them, believable or not, with a space here and there."""
    optional = draw(st.lists(st.sampled_from([Kind.SYSTOLIC, Kind.DIASTOLIC]), unique=True))
    fields = {
        "device_id": f'"{draw(SPELLINGS)}"',
        "timestamp": str(
            draw(st.integers(0, 10**15 - 1) | st.integers(NOON_MS - 9**10, 2 * NOON_MS))
        ),
        **{kind: draw(NUMBERS) for kind in Kind if kind in REQUIRED or kind in optional},
    }
    marked = [f'"{key}"{draw(SPACE)}:{draw(SPACE)}{value}' for key, value in fields.items()]
    return "{" + draw(SPACE) + f"{draw(SPACE)},{draw(SPACE)}".join(marked) + draw(SPACE) + "}"


def message(**changes: object) -> bytes:
    fields = {
        "device_id": DEVICE,
        "timestamp": NOON_MS,
        "heart_rate": 78,
        "spo2": 97,
        "temperature": 37.2,
    }
    return json.dumps(fields | changes).encode()


def judge(topic: str, payload: bytes) -> dict[str, Any]:
    """What decoding gives, in the words of the golden samples."""
    try:
        decoded = decode_v1(topic, payload)
    except NoUsableValueError as error:
        return {"error": error.code, "rejected": spell(error.rejected)}
    except DecodeError as error:
        return {"error": error.code}
    return {
        "reading": {
            "device": decoded.device,
            "timestamp_ms": decoded.timestamp_ms,
            "values": {kind.value: str(value) for kind, value in decoded.values.items()},
            **({"unusable": sorted(decoded.unusable)} if decoded.unusable else {}),
        },
        "rejected": spell(decoded.rejected),
    }


def spell(rejected: tuple[Rejected, ...]) -> list[dict[str, str]]:
    return [{"kind": each.kind.value, "reason": each.reason.value} for each in rejected]


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_golden_sample_decodes_as_it_says(path: Path):
    sample = json.loads(path.read_text())
    payload = (
        base64.b64decode(sample["payload_base64"])
        if "payload_base64" in sample
        else sample["payload"].encode()
    )

    found = judge(sample["topic"], payload)

    # Where a reading is placed in time is ingest's decision, and tested with it.
    for placed in ("measured_at", "clock"):
        sample["expect"].get("reading", {}).pop(placed, None)
    assert found == sample["expect"]


def test_the_golden_samples_cover_every_refusal_and_every_reason():
    expected = [json.loads(path.read_text())["expect"] for path in SAMPLES]

    assert {each["error"] for each in expected if "error" in each} == {
        "bad_topic",
        "bad_device",
        "too_large",
        "not_utf8",
        "too_deep",
        "not_json",
        "duplicate_key",
        "not_object",
        "wrong_device",
        "bad_timestamp",
        "no_usable_value",
    }
    reasons = {one["reason"] for each in expected for one in each.get("rejected", [])}
    # v1 states no units.
    assert reasons == {reason.value for reason in Reason} - {Reason.WRONG_UNIT}
    clocks = {each["reading"]["clock"] for each in expected if "reading" in each}
    assert clocks == {clock.value for clock in Clock}


@pytest.mark.parametrize("spelling", ["A4:CF:12:F0:3B:7E", "a4-cf-12-f0-3b-7e", "a4cf12F03b7e"])
def test_an_address_is_the_same_however_it_is_written(spelling: str):
    assert parse_device_id(spelling) == DEVICE
    assert parse_topic(V1_TOPIC.format(device=spelling)) == DEVICE


@pytest.mark.parametrize(
    "spelling", ["", "A4CF12F03B7", "A4CF12F03B7EE", "A4CF12F03B7G", "A4CF12F03B7E\n", "٤" * 12]
)
def test_what_is_no_address_is_refused(spelling: str):
    with pytest.raises(DecodeError) as caught:
        parse_device_id(spelling)
    assert caught.value.code == "bad_device"


@given(DEVICES, st.integers(0, 2**53 - 1), VALUES)
def test_what_a_monitor_writes_is_read_back_exactly(
    device: DeviceId, timestamp_ms: int, values: dict[Kind, Decimal]
):
    if values.get(Kind.SYSTOLIC, Decimal(0)) <= values.get(Kind.DIASTOLIC, Decimal(-1)):
        values[Kind.SYSTOLIC] = MEASURES[Kind.SYSTOLIC].highest

    decoded = decode_v1(V1_TOPIC.format(device=device), encode_v1(device, timestamp_ms, values))

    assert decoded.device == device
    assert decoded.timestamp_ms == timestamp_ms
    assert decoded.values == values
    assert {each.reason for each in decoded.rejected} <= {Reason.MISSING}


@given(plain_messages())
def test_the_short_way_says_what_the_long_way_says(payload: str):
    assert _PLAIN.fullmatch(payload.encode())
    the_long_way = payload[:-1] + ',"battery":3}'

    assert judge(TOPIC, payload.encode()) == judge(TOPIC, the_long_way.encode())


@given(plain_messages(), st.data())
def test_a_damaged_message_gets_no_other_answer_on_the_short_way(payload: str, data: st.DataObject):
    damaged = bytearray(payload.encode())
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at : at + data.draw(st.integers(0, 2))] = data.draw(
        st.sampled_from([b'"', b",", b"0", b".", b"-", b"e", b"9" * 17, b" ", b"\n", b"\x00", b"}"])
    )

    found = judge(TOPIC, bytes(damaged))

    assert found
    # An object in a list is refused on the long way only, so it tells whether the bytes are JSON.
    if _PLAIN.fullmatch(damaged):
        assert judge(TOPIC, b"[%b]" % damaged) == {"error": "not_object"}
        the_long_way = bytes(damaged).rstrip()[:-1] + b',"battery":3}'
        assert found == judge(TOPIC, the_long_way)


@pytest.mark.parametrize(
    "payload",
    [
        encode_v1(DEVICE, NOON_MS, dict.fromkeys(REQUIRED, Decimal("36.8"))),
        encode_v1(DEVICE, 1, dict.fromkeys(Kind, Decimal(60))),
        message(),
        message(systolic=118.5, diastolic=76),
        message(device_id="a4:cf:12:f0:3b:7e"),
    ],
)
def test_what_monitors_and_our_simulator_write_takes_the_short_way(payload: bytes):
    assert _PLAIN.fullmatch(payload)


@pytest.mark.parametrize(
    "payload",
    [
        message(battery=3),
        message(timestamp=10**15),
        message(spo2=97.12345),
        message(spo2=1e22),
        message(spo2="97"),
        message().replace(b"97", b"097"),
        message().replace(b"{", b"{\n"),
        message().replace(b'"spo2"', b'"spo2"  '),
        message() + b"\n",
        message().replace(b'"spo2": 97', b'"spo2": 97, "spo2": 97'),
        message(device_id="A4CF12F03B7Z"),
        message().replace(b"97", "\u0669\u0667".encode()),
    ],
)
def test_what_is_written_in_another_way_takes_the_long_way(payload: bytes):
    assert not _PLAIN.fullmatch(payload)


@given(st.binary(max_size=300))
def test_any_bytes_are_decoded_or_refused_and_nothing_else(payload: bytes):
    assert judge(TOPIC, payload)


@given(st.dictionaries(st.sampled_from(["device_id", "timestamp", *Kind, "x"]), JSON), st.text())
def test_any_json_is_decoded_or_refused_and_nothing_else(changes: dict[str, Any], topic: str):
    assert judge(TOPIC, message(**changes))
    assert judge(TOPIC, json.dumps(changes).encode())
    assert judge(topic, message(**changes))["error"] in {"bad_topic", "bad_device"}


@given(st.data())
def test_a_damaged_message_is_decoded_or_refused_and_nothing_else(data: st.DataObject):
    payload = bytearray(message(systolic=118, diastolic=76))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(payload)))
        cut = data.draw(st.integers(0, 3))
        payload[at : at + cut] = data.draw(
            st.sampled_from(
                [b'"', b"\\", b"{", b"}", b"nan", b"-", b"e9", b"0", b"\xff", b",", b""]
            )
        )

    found = judge(TOPIC, bytes(payload))

    for kind, value in found.get("reading", {}).get("values", {}).items():
        measure = MEASURES[Kind(kind)]
        assert measure.lowest <= Decimal(value) <= measure.highest


@pytest.mark.parametrize(
    "filling",
    [b"[", b'{"a":', b'"', b'\\"', b"nan", b'"nan\\', b"9", b"1e9", b"-", b'"\\u0000', b"1.0e-"],
)
def test_hostile_input_costs_little_time(filling: bytes):
    hostile = (filling * MAX_PAYLOAD_BYTES)[: MAX_PAYLOAD_BYTES - 60]
    wrapped = b'{"device_id":"A4CF12F03B7E","timestamp":1,"spo2":' + hostile + b"}"

    started = time.process_time()
    for payload in (hostile, wrapped, b'"' + hostile):
        judge(TOPIC, payload)

    # Linear code needs about a millisecond; what we guard against needs seconds.
    assert time.process_time() - started < 0.5


def test_deep_nesting_is_refused_close_to_the_recursion_limit_too():
    def descend(levels: int) -> str:
        if levels:
            return descend(levels - 1)
        return judge(TOPIC, b"[" * 4000)["error"]

    assert descend(700) == "too_deep"


def test_a_broken_temperature_probe_does_not_hide_a_falling_oxygen():
    decoded = decode_v1(TOPIC, message(spo2=84, temperature=-127))

    assert decoded.values[Kind.SPO2] == 84
    assert decoded.rejected == (Rejected(Kind.TEMPERATURE, Reason.IMPLAUSIBLE_LOW),)


@pytest.mark.parametrize(
    "payload",
    [
        message(spo2=71.2345)[:-4],
        message(spo2=71.2345).replace(b"78", b"\xff"),
        message(spo2="71.2345", heart_rate=712345, temperature=712345),
        message(timestamp="71.2345"),
        message(device_id="712345"),
    ],
)
def test_a_refusal_never_carries_what_was_sent(payload: bytes):
    with pytest.raises(DecodeError) as caught:
        decode_v1(TOPIC, payload)

    error = caught.value
    # The decoders' own errors hold the whole payload, so they must not hang on to ours either.
    assert error.__context__ is None
    assert error.__cause__ is None
    assert "71" not in str(error)
