"""v2: what is sealed opens, what is said is read, and everything else is refused."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fajma.errors import BugError, DecodeError
from fajma.vitals import MEASURES, DeviceId, Kind
from fajma.wire import (
    MAX_ITEMS,
    MAX_SEALED_BYTES,
    Ack,
    Channel,
    Gap,
    Item,
    Pack,
    PayloadKey,
    Reason,
    Rejected,
    base_name,
    decode_ack,
    decode_pack,
    encode_ack,
    encode_pack,
    open_downlink,
    open_envelope,
    parse_envelope,
    parse_status,
    parse_v2_topic,
    seal,
    seal_downlink,
    v2_topic,
)
from tests import v2_samples

SAMPLES = sorted(v2_samples.DIRECTORY.glob("*.json"))
WIRE_PAGE = Path(__file__).parents[2] / "docs" / "wire.md"
DEVICE = DeviceId(v2_samples.DEVICE)
VITALS = v2_topic(DEVICE, Channel.VITALS)
ACK = v2_topic(DEVICE, Channel.ACK)
KEY = PayloadKey(v2_samples.UP)
OTHER_KEY = PayloadKey(v2_samples.DOWN)
NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)

COUNTS = st.integers(0, 2**63 - 1)
DEVICES = st.from_regex(r"[0-9A-F]{12}", fullmatch=True).map(DeviceId)
INSTANTS = st.integers(2**28 * 1000, 253_402_300_799_999).map(
    lambda ms: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
)


@st.composite
def values(draw: st.DrawFn) -> dict[Kind, Decimal]:
    """Plausible values of some kinds, in the order of kinds."""
    found = {
        kind: draw(st.decimals(MEASURES[kind].lowest, MEASURES[kind].highest, places=places))
        for kind in Kind
        if (places := draw(st.sampled_from([None, None, 0, 1, 4]))) is not None
    }
    if found.get(Kind.SYSTOLIC, Decimal(0)) <= found.get(Kind.DIASTOLIC, Decimal(-1)):
        del found[Kind.DIASTOLIC]
    return found


@st.composite
def packs(draw: st.DrawFn) -> Pack:
    """What a device could have to say."""
    items: list[Item | Gap] = []
    boots = st.integers(0, 2**32 - 1)
    boot = draw(boots)
    sent_ms = draw(st.integers(0, 2**42 - 1))
    next_seq = draw(st.integers(0, 2**63 - 2**20))
    for _ in range(draw(st.integers(0, 5))):
        seq = next_seq + draw(st.integers(0, 2**10))
        next_seq = seq + 1
        if draw(st.booleans()):
            count = draw(st.integers(1, 2**10))
            next_seq = seq + count
            items.append(Gap(seq, count, draw(st.booleans())))
            continue
        measured_at = draw(st.none() | INSTANTS)
        measured = draw(values())
        earlier = draw(st.booleans())
        items.append(
            Item(
                seq=seq,
                boot=draw(boots.filter(lambda one: one != boot)) if earlier else boot,
                mono_ms=draw(st.integers(0, 2**42 - 1 if earlier else sent_ms)),
                measured_at=measured_at,
                clock_set=measured_at is not None,
                values=measured,
                rejected=(),
                quality=draw(st.none() | st.integers(0, 100)),
                contact=draw(st.none() | st.booleans()) if measured else False,
            )
        )
    return Pack(draw(DEVICES), draw(COUNTS), boot, sent_ms, tuple(items))


def take(topic: str, key: PayloadKey, payload: bytes) -> dict[str, Any]:
    """What a message gives, step by step as ingest takes it, in the words of the golden samples."""
    try:
        device, channel = parse_v2_topic(topic)
        content = open_envelope(parse_envelope(payload), key, topic)
        if channel is Channel.ACK:
            return spell_ack(decode_ack(content, device))
        return spell(decode_pack(content, device))
    except DecodeError as error:
        refusal = error
    # The decoders' own errors hold what was sent, so they must not hang on to ours.
    assert refusal.__context__ is None
    assert refusal.__cause__ is None
    return {"error": refusal.code}


def spell(pack: Pack) -> dict[str, Any]:
    return {
        "pack": {
            "device": pack.device,
            "oldest": str(pack.oldest),
            "boot": pack.boot,
            "sent_ms": str(pack.sent_ms),
            "items": [
                spell_gap(each) if isinstance(each, Gap) else spell_item(each)
                for each in pack.items
            ],
        }
    }


def spell_gap(gap: Gap) -> dict[str, Any]:
    return {"first": str(gap.first), "count": str(gap.count), "overwritten": gap.overwritten}


def spell_item(item: Item) -> dict[str, Any]:
    return {
        "seq": str(item.seq),
        "boot": item.boot,
        "mono_ms": str(item.mono_ms),
        "measured_at": item.measured_at and spell_time(item.measured_at),
        "clock_set": item.clock_set,
        "values": {kind.value: str(value) for kind, value in item.values.items()},
        "rejected": [
            {"kind": each.kind.value, "reason": each.reason.value} for each in item.rejected
        ],
        "quality": item.quality,
        "contact": item.contact,
        **({"unusable": sorted(item.unusable)} if item.unusable else {}),
        **({"no_usable_value": True} if item.no_usable_value else {}),
    }


def spell_ack(ack: Ack) -> dict[str, Any]:
    return {"ack": {"committed": str(ack.committed), "at": spell_time(ack.at)}}


def spell_time(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def payload_of(sample: dict[str, Any]) -> bytes:
    stated = sample["payload"]
    if isinstance(stated, str):
        return bytes.fromhex(stated)
    return bytes.fromhex(stated["repeat"]) * int(stated["times"])


def opened_samples() -> list[Any]:
    found = []
    for path in SAMPLES:
        sample = json.loads(path.read_text(encoding="utf-8"))
        if "plaintext" in sample:
            found.append(pytest.param(sample, id=path.stem))
    return found


# --- golden samples ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_golden_sample_gives_what_it_says(path: Path):
    sample = json.loads(path.read_text(encoding="utf-8"))
    key = PayloadKey(bytes.fromhex(sample["key"]))

    assert take(sample["topic"], key, payload_of(sample)) == sample["expect"]


@pytest.mark.parametrize("sample", opened_samples())
def test_our_sealing_gives_the_bytes_of_the_sample(sample: dict[str, Any]):
    payload = payload_of(sample)

    sealed = seal(
        sample["topic"],
        PayloadKey(bytes.fromhex(sample["key"])),
        parse_envelope(payload).key_version,
        bytes.fromhex(sample["plaintext"]),
        nonce=bytes.fromhex(sample["nonce"]),
    )

    assert sealed == payload


@pytest.mark.parametrize(
    "sample", [each for each in opened_samples() if "canonical" in each.values[0]]
)
def test_our_writing_gives_the_bytes_of_a_canonical_sample(sample: dict[str, Any]):
    plaintext = bytes.fromhex(sample["plaintext"])
    device, channel = parse_v2_topic(sample["topic"])

    if channel is Channel.ACK:
        assert encode_ack(device, decode_ack(plaintext, device)) == plaintext
    else:
        assert encode_pack(decode_pack(plaintext, device)) == plaintext


def test_the_golden_samples_are_what_their_source_makes():
    assert {path.stem: path.read_text(encoding="utf-8") for path in SAMPLES} == (
        v2_samples.all_samples()
    )


def test_the_golden_samples_cover_every_refusal_of_the_page_and_every_reason():
    expected = [json.loads(path.read_text(encoding="utf-8"))["expect"] for path in SAMPLES]
    page = WIRE_PAGE.read_text(encoding="utf-8").split("### Refusals of v2")[1]
    described = set(re.findall(r"^\| `(\w+)` \| ", page.split("\n### ")[0], re.MULTILINE))

    assert {each["error"] for each in expected if "error" in each} == described
    items = [one for each in expected if "pack" in each for one in each["pack"]["items"]]
    reasons = {one["reason"] for item in items for one in item.get("rejected", [])}
    assert reasons == {reason.value for reason in Reason}


def test_a_reading_is_the_same_in_whatever_pack_it_comes():
    first, again = (
        decode_pack(bytes.fromhex(json.loads(path.read_text())["plaintext"]), DEVICE)
        for path in SAMPLES
        if path.stem in {"good_backlog", "good_backlog_again"}
    )

    assert first.items[1:] == again.items


# --- packs ---------------------------------------------------------------------------------------


@given(packs())
def test_what_a_device_writes_is_read_back_exactly(pack: Pack):
    assert decode_pack(encode_pack(pack), pack.device) == pack


@given(packs(), DEVICES)
def test_a_pack_is_read_on_its_own_device_s_topic_only(pack: Pack, other: DeviceId):
    content = encode_pack(replace(pack, device=DEVICE))

    if other == DEVICE:
        return
    with pytest.raises(DecodeError) as caught:
        decode_pack(content, other)
    assert caught.value.code == "wrong_device"


@given(st.binary(max_size=400))
def test_any_content_is_read_or_refused_and_nothing_else(content: bytes):
    sealed = seal(VITALS, KEY, 1, content)

    found = take(VITALS, KEY, sealed)

    assert found.keys() <= {"pack", "error"}


RECORDS = st.fixed_dictionaries(
    {},
    optional={
        0: st.sampled_from(
            [
                "oldest", "boot", "sent", "seq", "mono", "clock", "lost", "unused", "quality",
                "contact", "heart_rate", "spo2", "systolic", "diastolic", "other", "other_", 5,
            ]
        ),
        1: st.sampled_from(["ms", "%", "/min", "kPa"]),
        2: st.integers(-2, 10)
        | st.integers(-(2**64), 2**64 - 1)
        | st.floats()
        | st.decimals(-300, 300, places=6),
        4: st.booleans(),
        -3: st.just(0) | st.integers(-1, 2**34) | st.floats() | st.decimals(0, 2**34, places=3),
    },
)  # fmt: skip
LABELS = st.sampled_from([-6, -5, -4, -2, -1, 3, 5, 6, 7, 8, 9, "x", "x_"])


@given(
    st.integers(1, 3),
    st.lists(RECORDS, max_size=12),
    st.none() | st.tuples(st.integers(0, 12), LABELS, st.integers()),
)
@example(2, [{0: "sent", 2: 1}, {0: "seq", 2: 1}, {0: "mono", 2: 1}, {0: "clock", 4: False}], None)
def test_any_records_are_read_or_refused_and_nothing_else(
    begun: int, records: list[dict[Any, Any]], odd: tuple[int, Any, int] | None
):
    if odd is not None and odd[0] < len(records):
        records[odd[0]] |= {odd[1]: odd[2] % 2**64}
    content = v2_samples.cbor([*v2_samples.start(0)[:begun], *records])

    found = take(VITALS, KEY, seal(VITALS, KEY, 1, content))

    for item in found.get("pack", {}).get("items", []):
        for kind, value in item.get("values", {}).items():
            measure = MEASURES[Kind(kind)]
            assert measure.lowest <= Decimal(value) <= measure.highest


@given(st.data())
def test_damaged_records_are_read_or_refused_and_nothing_else(data: st.DataObject):
    path = data.draw(st.sampled_from([path for path in SAMPLES if path.stem.startswith("good")]))
    content = bytearray.fromhex(json.loads(path.read_text())["plaintext"])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))

    found = take(VITALS, KEY, seal(VITALS, KEY, 1, bytes(content)))

    assert found.keys() <= {"pack", "error"}


@given(st.lists(st.sampled_from(Kind), unique=True, max_size=5), st.none() | st.booleans())
def test_an_item_is_refused_by_itself_when_nothing_is_left_and_the_probe_is_on(
    absurd: list[Kind],
    contact: bool | None,  # noqa: FBT001
):
    item = Item(
        seq=1,
        boot=1,
        mono_ms=1,
        measured_at=None,
        clock_set=False,
        values=dict.fromkeys(absurd, Decimal(999)),
        rejected=(),
        quality=None,
        contact=contact,
    )

    [found] = decode_pack(encode_pack(Pack(DEVICE, 1, 1, 1, (item,))), DEVICE).items

    assert isinstance(found, Item)
    assert found.no_usable_value == (contact is not False)
    assert {Rejected(kind, Reason.IMPLAUSIBLE_HIGH) for kind in absurd} <= set(found.rejected)
    assert found.no_usable_value <= bool(found.rejected)


def test_the_base_name_is_the_one_of_the_standard():
    # The example of RFC 9039, section 5, for the MAC-48 address 0024be804ff1.
    assert base_name(DeviceId("0024BE804FF1")) == "urn:dev:mac:0024beffff804ff1:"


def test_a_refusal_never_carries_what_was_sent():
    content = v2_samples.reading({0: "spo2", 2: Decimal("71.2345")}, {0: "quality", 4: True})

    for length in range(len(content)):
        with pytest.raises(DecodeError) as caught:
            decode_pack(content[:length], DEVICE)
        assert "71" not in str(caught.value)
        assert caught.value.__context__ is None


# --- acknowledgements, status, topics ------------------------------------------------------------


@given(DEVICES, COUNTS, INSTANTS)
def test_a_device_reads_its_acknowledgement(device: DeviceId, committed: int, at: datetime):
    topic = v2_topic(device, Channel.ACK)
    payload = seal_downlink(topic, KEY, 3, encode_ack(device, Ack(committed, at)))

    assert decode_ack(open_downlink(topic, KEY, payload), device) == Ack(committed, at)


@given(st.binary(max_size=200))
def test_any_acknowledgement_is_read_or_refused_and_nothing_else(content: bytes):
    found = take(ACK, KEY, seal_downlink(ACK, KEY, 1, content))

    assert found.keys() <= {"ack", "error"}


def test_the_time_in_an_acknowledgement_is_cut_to_milliseconds():
    at = NOON + timedelta(microseconds=1999)

    assert decode_ack(encode_ack(DEVICE, Ack(7, at)), DEVICE).at == NOON + timedelta(milliseconds=1)


@pytest.mark.parametrize(
    ("payload", "online"),
    [(b'{"online":true}', True), (b'{"online":false}', False), (b' {"online" : true }\n', True)],
)
def test_a_device_is_online_or_not(payload: bytes, online: bool):  # noqa: FBT001
    assert parse_status(payload) is online


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"true", b"{}", b'{"online":1}', b'{"online":null}', b'{"online":true,"online":false}',
        b'{"online":true}x', b'{"online":true}' + b" " * 64, b"[" * 10_000, b'{"Online":true}',
    ],
)  # fmt: skip
def test_any_other_status_is_refused(payload: bytes):
    with pytest.raises(DecodeError) as caught:
        parse_status(payload)
    assert caught.value.code == "bad_status"


@given(DEVICES, st.sampled_from(Channel))
def test_a_topic_is_read_as_it_is_written(device: DeviceId, channel: Channel):
    assert parse_v2_topic(v2_topic(device, channel)) == (device, channel)


@pytest.mark.parametrize(
    ("topic", "code"),
    [
        ("", "bad_topic"),
        (f"fajma/v2/{DEVICE}", "bad_topic"),
        (f"fajma/v2/{DEVICE}/other", "bad_topic"),
        (f"fajma/v2/{DEVICE}/vitals/", "bad_topic"),
        (f"fajma/v2/{DEVICE}/vitals\n", "bad_topic"),
        (f"x/fajma/v2/{DEVICE}/vitals", "bad_topic"),
        ("fajma/v2/A4/CF/vitals", "bad_topic"),
        ("fajma/v2//vitals", "bad_device"),
        ("fajma/v2/a4cf12f03b7e/vitals", "bad_device"),
        ("fajma/v2/A4:CF:12:F0:3B:7E/vitals", "bad_device"),
        (f"fajma/v2/{DEVICE}\n/vitals", "bad_device"),
        ("fajma/v2/A4CF12F03B7٤/vitals", "bad_device"),
    ],
)
def test_other_topics_are_refused(topic: str, code: str):
    with pytest.raises(DecodeError) as caught:
        parse_v2_topic(topic)
    assert caught.value.code == code


# --- sealing -------------------------------------------------------------------------------------


@given(st.binary(max_size=1000), st.integers(1, 65535))
def test_what_was_sealed_opens_with_its_key_on_its_topic(content: bytes, version: int):
    envelope = parse_envelope(seal(VITALS, KEY, version, content))

    assert (envelope.device, envelope.key_version) == (DEVICE, version)
    assert open_envelope(envelope, KEY, VITALS) == content


@given(st.binary(max_size=300))
def test_any_payload_is_opened_or_refused_and_nothing_else(payload: bytes):
    assert take(VITALS, KEY, payload).keys() == {"error"}
    assert take(VITALS, KEY, b"\xd0" + payload).keys() == {"error"}


def test_every_flipped_bit_of_a_message_is_noticed():
    payload = seal(VITALS, KEY, 1, v2_samples.reading(*v2_samples.VALUES))
    for bit in range(len(payload) * 8):
        flipped = bytearray(payload)
        flipped[bit // 8] ^= 1 << bit % 8
        assert take(VITALS, KEY, bytes(flipped)).keys() == {"error"}, bit


@given(packs(), st.data())
def test_a_flipped_bit_of_any_message_is_noticed(pack: Pack, data: st.DataObject):
    payload = bytearray(seal(VITALS, KEY, 1, encode_pack(replace(pack, device=DEVICE))))
    bit = data.draw(st.integers(0, len(payload) * 8 - 1))
    payload[bit // 8] ^= 1 << bit % 8

    assert take(VITALS, KEY, bytes(payload)).keys() == {"error"}


def test_every_shortened_message_is_refused():
    payload = seal(VITALS, KEY, 1, b"content")
    for length in range(len(payload)):
        assert take(VITALS, KEY, payload[:length]).keys() == {"error"}


@pytest.mark.parametrize(
    ("key", "topic"),
    [
        (OTHER_KEY, VITALS),
        (KEY, ACK),
        (KEY, v2_topic(DEVICE, Channel.CONFIG)),
        (KEY, v2_topic(DeviceId(v2_samples.OTHER), Channel.VITALS)),
    ],
)
def test_a_message_opens_with_no_other_key_and_on_no_other_topic(key: PayloadKey, topic: str):
    payload = seal(VITALS, KEY, 1, b"content")

    assert take(topic, key, payload)["error"] in {"not_authentic", "wrong_device"}


def test_no_two_messages_have_the_same_nonce():
    assert len({parse_envelope(seal(VITALS, KEY, 1, b"")).nonce for _ in range(1000)}) == 1000


def test_a_key_never_shows_itself():
    secret = b"0123456789abcdef0123456789abcdef"
    key = PayloadKey(secret)

    for shown in (repr(key), str(key), f"{key}", repr(dir(key))):
        assert secret.decode() not in shown
        assert secret.hex() not in shown
    assert not hasattr(key, "__dict__")


@pytest.mark.parametrize(
    ("attempt", "code"),
    [
        (lambda: PayloadKey(b"short"), "bad_payload_key"),
        (lambda: seal(VITALS, KEY, 0, b""), "bad_key_version"),
        (lambda: seal(VITALS, KEY, 65536, b""), "bad_key_version"),
        (lambda: seal(VITALS, KEY, 1, bytes(MAX_SEALED_BYTES)), "too_large"),
        (lambda: seal_downlink(VITALS, KEY, 1, b""), "not_downlink"),
    ],
)
def test_what_nobody_could_open_is_not_sealed(attempt: Any, code: str):
    with pytest.raises(BugError) as caught:
        attempt()
    assert caught.value.code == code


def test_the_largest_message_that_is_sealed_opens():
    content = bytes(MAX_SEALED_BYTES - 70)
    payload = seal(VITALS, KEY, 1, content)

    assert MAX_SEALED_BYTES - 70 < len(payload) <= MAX_SEALED_BYTES
    assert open_envelope(parse_envelope(payload), KEY, VITALS) == content


# --- cost ----------------------------------------------------------------------------------------


def hostile_contents() -> list[bytes]:
    limit = MAX_SEALED_BYTES - 100
    # Keys that all have one hash in Python, since hash(-1) == hash(-2); refused at the first.
    colliding = b"\x8d" + b"\x20\x21" * 6 + b"\x20\x00"
    maps = b"\xb9\x03\xe8" + colliding * 1000
    fillings = [
        b"\x81", b"\xa1\x00", b"\xc4\x82\x00", b"\xc4", b"\xd8\x1c", b"\xa0", b"\x80", b"\x60",
        b"\x00", b"\xfb" + b"\xff" * 8, b"\xc4\x82\x06\x1b\x7f" + b"\xff" * 7,
        b"\x9b" + b"\xff" * 8,
        b"\xa1\x00\x60", b"\xa2\x00\x63seq\x02\x18\x20",
    ]  # fmt: skip
    lists = [b"\x99\x40\x00" + (filling * limit)[:limit] for filling in fillings]
    many = [(filling * limit)[:limit] for filling in fillings]
    records = v2_samples.start(0, 1)
    records += [{0: "seq", 2: 1}, *[{0: "heart_rate", 2: float("1e308")}] * 600]
    items = [
        record for at in range(MAX_ITEMS) for record in v2_samples.begin(at, mono=at, clock=True)
    ]
    return [
        maps[:limit], *lists, *many, v2_samples.cbor(records),
        v2_samples.cbor([*v2_samples.start(0, 1), *items])[:limit],
        v2_samples.cbor([*v2_samples.start(0, 1), {f"x{at}": at for at in range(1500)}]),
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(len(hostile_contents())))
def test_hostile_content_costs_little_time(number: int):
    content = hostile_contents()[number]
    payload = seal(VITALS, KEY, 1, content)

    started = time.process_time()
    take(VITALS, KEY, payload)
    take(VITALS, KEY, b"\xd0" + content)

    # Linear code needs a few milliseconds; what we guard against needs seconds.
    assert time.process_time() - started < 0.5


def test_deep_nesting_is_refused_close_to_the_recursion_limit_too():
    def descend(levels: int) -> str:
        if levels:
            return descend(levels - 1)
        return str(take(VITALS, KEY, seal(VITALS, KEY, 1, b"\x81" * 4000))["error"])

    assert descend(700) == "too_deep"
