"""The golden samples of v2, as data. ``python -m tests.v2_samples`` writes them again.

Nothing of ``fajma.wire`` is used here: CBOR, COSE and what is to be expected are written down a
second time, so that the samples judge the code and not the other way round. Keys and nonces are
fixed; everything made from them is the same each time.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

DIRECTORY = Path(__file__).parent / "samples" / "v2"

DEVICE = "A4CF12F03B7E"
OTHER = "A4CF12F03B7F"
TOPIC = f"fajma/v2/{DEVICE}/vitals"
ACK_TOPIC = f"fajma/v2/{DEVICE}/ack"
BASE = "urn:dev:mac:a4cf12fffff03b7e:"
UP = bytes(range(0x20))
DOWN = bytes(range(0x40, 0x60))
NONCE = bytes.fromhex("02d1f7e6f26c43d4868d87ce")
FIRST = 7 * 2**32
"""First sequence number of a device's seventh enrolment."""

BVER, BN, BT, BU, BV, BS = -1, -2, -3, -4, -5, -6
N, U, V, VS, VB, S, T, UT, VD = range(9)

CLOCK_SET = {N: "clock", VB: True}
CLOCK_UNSET = {N: "clock", VB: False}
CONTACT = {N: "contact", VB: True}
NO_CONTACT = {N: "contact", VB: False}

AT = Decimal("1772460120.123")
AT_TEXT = "2026-03-02T14:02:00.123Z"
LATER = Decimal("1772460125.123")
LATER_TEXT = "2026-03-02T14:02:05.123Z"
SENT = 70_250
"""When a pack is written, by the monitor's monotonic time, unless said otherwise."""


@dataclass(frozen=True)
class Raw:
    """Bytes to put as they are where a value is expected."""

    data: bytes


@dataclass(frozen=True)
class Pairs:
    """A map whose keys may come twice."""

    pairs: Sequence[tuple[Any, Any]]


def cbor(value: Any) -> bytes:
    """Deterministic CBOR, but floats are always double."""
    writers: dict[type, Callable[[Any], bytes]] = {
        Raw: lambda it: it.data,
        Pairs: lambda it: head(5, len(it.pairs)) + b"".join(cbor(k) + cbor(v) for k, v in it.pairs),
        bool: lambda it: b"\xf5" if it else b"\xf4",
        int: lambda it: head(0, it) if it >= 0 else head(1, -1 - it),
        float: lambda it: b"\xfb" + struct.pack(">d", it),
        bytes: lambda it: head(2, len(it)) + it,
        str: lambda it: head(3, len(it.encode())) + it.encode(),
        list: lambda it: head(4, len(it)) + b"".join(map(cbor, it)),
        dict: lambda it: head(5, len(it)) + b"".join(sorted(cbor(k) + cbor(it[k]) for k in it)),
        Decimal: decimal_fraction,
    }
    return writers[type(value)](value)


def decimal_fraction(value: Decimal) -> bytes:
    """Tag 4 around exponent and mantissa."""
    sign, digits, exponent = value.as_tuple()
    mantissa = int("".join(map(str, digits)))
    return b"\xc4" + cbor([exponent, -mantissa if sign else mantissa])


def head(major: int, argument: int) -> bytes:
    """Initial byte and argument in their shortest form."""
    if argument < 24:
        return bytes([major << 5 | argument])
    for minor, width in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if argument < 256**width:
            return bytes([major << 5 | minor]) + argument.to_bytes(width)
    raise ValueError(argument)


def seal(
    plaintext: bytes,
    *,
    topic: str = TOPIC,
    key: bytes = UP,
    device: str = DEVICE,
    version: int = 1,
    protected: Any = None,
    unprotected: Any = None,
) -> bytes:
    """COSE_Encrypt0 of ``plaintext``; the other arguments make what must be refused."""
    kid = bytes.fromhex(device) + version.to_bytes(2)
    header = cbor({1: 3, 4: kid} if protected is None else protected)
    structure = cbor(["Encrypt0", header, topic.encode()])
    ciphertext = AESGCM(key).encrypt(NONCE, plaintext, structure)
    outer = {5: NONCE} if unprotected is None else unprotected
    return b"\xd0" + cbor([header, outer, ciphertext])


def sample(
    why: str,
    expect: Mapping[str, Any],
    plaintext: bytes | None = None,
    *,
    topic: str = TOPIC,
    key: bytes = UP,
    payload: bytes | Mapping[str, Any] | None = None,
    canonical: bool = False,
    **sealing: Any,
) -> dict[str, Any]:
    """One file."""
    if payload is None:
        assert plaintext is not None
        payload = seal(plaintext, topic=topic, key=key, **sealing)
    return {
        "why": why,
        "topic": topic,
        "key": key.hex(),
        **({"nonce": NONCE.hex(), "plaintext": plaintext.hex()} if plaintext is not None else {}),
        **({"canonical": True} if canonical else {}),
        "payload": payload.hex() if isinstance(payload, bytes) else payload,
        "expect": expect,
    }


def n(name: str, value: Any) -> dict[Any, Any]:
    """A record with a number."""
    return {N: name, V: value}


def start(oldest: int = FIRST, boot: int = 3, sent: Any = SENT) -> list[Any]:
    """What a pack begins with: three records."""
    return [{BN: BASE, N: "oldest", V: oldest}, n("boot", boot), n("sent", sent)]


def begin(
    seq: int = FIRST, at: Any = AT, mono: int = 60_000, *, clock: bool | None = True
) -> list[Any]:
    """What an item begins with; ``at`` is its base time, ``None`` for none."""
    begun = n("seq", seq) if at is None else {**n("seq", seq), BT: at}
    return [
        begun,
        n("mono", mono),
        *([] if clock is None else [CLOCK_SET if clock else CLOCK_UNSET]),
    ]


VALUES = [n("heart_rate", 78), n("spo2", 97), n("temperature", Decimal("37.2"))]
VALUES_TEXT = {"heart_rate": "78", "spo2": "97", "temperature": "37.2"}


def pack(*items: Any, oldest: int = FIRST, boot: int = 3, sent: int = SENT) -> dict[str, Any]:
    """What a pack must decode to."""
    return {
        "pack": {
            "device": DEVICE,
            "oldest": str(oldest),
            "boot": boot,
            "sent_ms": str(sent),
            "items": list(items),
        }
    }


def item(
    seq: int = FIRST, mono: int = 60_000, at: str | None = AT_TEXT, **changes: Any
) -> dict[str, Any]:
    """What an item must decode to."""
    return {
        "seq": str(seq),
        "boot": 3,
        "mono_ms": str(mono),
        "measured_at": at,
        "clock_set": at is not None,
        "values": VALUES_TEXT,
        "rejected": [],
        "quality": None,
        "contact": None,
        **changes,
    }


def gap(first: int, count: int, *, overwritten: bool) -> dict[str, Any]:
    """What a gap must decode to."""
    return {"first": str(first), "count": str(count), "overwritten": overwritten}


def rejected(**reasons: str) -> list[dict[str, str]]:
    """Reasons by kind, in the order of kinds."""
    return [{"kind": kind, "reason": reason} for kind, reason in reasons.items()]


def error(code: str) -> dict[str, Any]:
    """A refusal."""
    return {"error": code}


def reading(*values: Any, **changes: Any) -> bytes:
    """A pack with one reading of these records."""
    return cbor(start() + begin(**changes) + list(values))


def bad(why: str, records: Any, code: str = "bad_pack") -> dict[str, Any]:
    """A pack that opens and is refused."""
    return sample(why, error(code), records if isinstance(records, bytes) else cbor(records))


def good_samples() -> dict[str, dict[str, Any]]:
    """What is taken whole."""
    second = [*begin(FIRST + 1, LATER, 65000, clock=None), n("heart_rate", 79), n("spo2", 96)]
    second_item = item(FIRST + 1, 65_000, LATER_TEXT, values={"heart_rate": "79", "spo2": "96"})
    third = [*begin(FIRST + 2, Decimal("1772460130.123"), 70000, clock=None), n("spo2", 95)]
    third_item = item(FIRST + 2, 70_000, "2026-03-02T14:02:10.123Z", values={"spo2": "95"})
    everything = [
        n("heart_rate", 78),
        n("spo2", 97),
        n("temperature", Decimal("37.2")),
        n("systolic", 118),
        n("diastolic", 76),
        n("quality", 92),
        CONTACT,
    ]
    everything_item = item(
        values={**VALUES_TEXT, "systolic": "118", "diastolic": "76"}, quality=92, contact=True
    )
    units = ["/min", "%", "Cel", "mm[Hg]", "mm[Hg]", "%"]
    many = [record for at in range(256) for record in (n("seq", FIRST + at), n("lost", 1))]
    single = Raw(b"\xfa" + struct.pack(">f", 37.2))
    half = Raw(b"\xf9" + struct.pack(">e", 97.5))
    return {
        "good_one_reading": sample(
            "The usual message: one reading, the clock is set.",
            pack(item()),
            reading(*VALUES),
            canonical=True,
        ),
        "good_everything": sample(
            "All that can be said of a reading, as our firmware writes it.",
            pack(everything_item),
            reading(*everything),
            canonical=True,
        ),
        "good_units": sample(
            "Units may be stated when they are ours; the order inside an item is free.",
            pack(everything_item),
            cbor(
                [
                    *start()[:2],
                    {**n("sent", SENT), U: "ms"},
                    {**n("seq", FIRST), BT: AT},
                    *[
                        {**record, U: unit}
                        for record, unit in zip(everything[:6], units, strict=True)
                    ][::-1],
                    CONTACT,
                    CLOCK_SET,
                    {**n("mono", 60000), U: "ms"},
                ]
            ),
        ),
        "good_key_version": sample(
            "The last version that a key can have.",
            pack(item()),
            reading(*VALUES),
            canonical=True,
            version=65535,
        ),
        "good_backlog": sample(
            "Three readings: start and clock are stated once, the time each time.",
            pack(item(), second_item, third_item),
            cbor(start() + begin() + VALUES + second + third),
            canonical=True,
        ),
        "good_backlog_again": sample(
            "The same readings in another pack, later, after the first was acknowledged: nothing "
            "about them changes.",
            pack(second_item, third_item, oldest=FIRST + 1, sent=80_000),
            cbor(start(FIRST + 1, sent=80_000) + second[:2] + [CLOCK_SET] + second[2:] + third),
            canonical=True,
        ),
        "good_clock_unset": sample(
            "The clock is not set: no base time, the monotonic time is all there is.",
            pack(item(at=None)),
            reading(*VALUES, at=None, clock=False),
            canonical=True,
        ),
        "good_clock_becomes_set": sample(
            "The clock is set between two readings.",
            pack(item(at=None), second_item),
            cbor(
                start()
                + begin(at=None, clock=False)
                + VALUES
                + second[:2]
                + [CLOCK_SET]
                + second[2:]
            ),
            canonical=True,
        ),
        "good_clock_lost_by_restart": sample(
            "A restart loses the clock: another start, and 0 takes the base time back, which would "
            "otherwise stay in force.",
            pack(item(), item(FIRST + 1, 5_000, None, boot=4), boot=4, sent=5_250),
            cbor(
                [
                    *start(boot=4, sent=5_250),
                    n("boot", 3),
                    *begin(),
                    *VALUES,
                    n("boot", 4),
                    *begin(FIRST + 1, 0, 5_000, clock=False),
                    *VALUES,
                ]
            ),
            canonical=True,
        ),
        "good_earlier_start": sample(
            "Sent right after a restart: the reading is of the start before, so the time of "
            "sending says nothing about its age.",
            pack(item(), boot=4, sent=900),
            cbor([*start(boot=4, sent=900), n("boot", 3), *begin(), *VALUES]),
            canonical=True,
        ),
        "good_times": sample(
            "A base time may be an integer, a float or a decimal fraction; it is rounded to "
            "milliseconds.",
            pack(
                item(at="2026-03-02T14:02:00.000Z"),
                item(FIRST + 1, 61_000, "2026-03-02T14:02:01.500Z"),
                item(FIRST + 2, 62_000, "2026-03-02T14:02:02.124Z"),
                item(FIRST + 3, 63_000, "1978-07-04T21:24:16.000Z"),
                item(FIRST + 4, 64_000, "9999-12-31T23:59:59.999Z"),
            ),
            cbor(
                start()
                + begin(at=1772460120)
                + VALUES
                + begin(FIRST + 1, 1772460121.5, 61_000, clock=None)
                + VALUES
                + begin(FIRST + 2, Decimal("1772460122.123501"), 62_000, clock=None)
                + VALUES
                + begin(FIRST + 3, 2**28, 63_000, clock=None)
                + VALUES
                + begin(FIRST + 4, Decimal("253402300799.999"), 64_000, clock=None)
                + VALUES
            ),
        ),
        "good_gaps": sample(
            "The journal was overwritten, and a restart left numbers out: both are told.",
            pack(
                gap(FIRST, 40, overwritten=True),
                item(FIRST + 40),
                gap(FIRST + 41, 2**16 - 41, overwritten=False),
                item(FIRST + 2**16, 5_000, LATER_TEXT, boot=4),
                boot=4,
                sent=5_250,
            ),
            cbor(
                [
                    *start(boot=4, sent=5_250),
                    n("seq", FIRST),
                    n("lost", 40),
                    n("boot", 3),
                    *begin(FIRST + 40),
                    *VALUES,
                    n("seq", FIRST + 41),
                    n("unused", 2**16 - 41),
                    n("boot", 4),
                    *begin(FIRST + 2**16, LATER, 5000, clock=None),
                    *VALUES,
                ]
            ),
            canonical=True,
        ),
        "good_nothing_to_report": sample(
            "A pack without items: all is settled up to the number that comes next.",
            pack(oldest=FIRST + 9),
            cbor(start(FIRST + 9)),
            canonical=True,
        ),
        "good_probe_off": sample(
            "The probe is off: no value is needed.",
            pack(item(values={}, contact=False)),
            reading(NO_CONTACT),
            canonical=True,
        ),
        "good_full": sample(
            "256 items, the most.",
            pack(*[gap(FIRST + at, 1, overwritten=True) for at in range(256)]),
            cbor(start() + many),
            canonical=True,
        ),
        "good_largest": sample(
            "The largest numbers that count. 63 bits: more than a double can hold.",
            pack(
                item(2**63 - 2, 2**42 - 1, boot=2**32 - 1),
                gap(2**63 - 1, 1, overwritten=True),
                oldest=2**63 - 1,
                boot=2**32 - 1,
                sent=2**42 - 1,
            ),
            cbor(
                start(2**63 - 1, 2**32 - 1, 2**42 - 1)
                + begin(2**63 - 2, mono=2**42 - 1)
                + VALUES
                + [n("seq", 2**63 - 1), n("lost", 1)]
            ),
            canonical=True,
        ),
        "good_numbers": sample(
            "Values as half and double float, decimal fractions with zeros at the end, with a "
            "positive exponent and with 6 decimals: exact up to 4 decimals, then half to even.",
            pack(
                item(
                    values={
                        "heart_rate": "80",
                        "spo2": "97.5",
                        "temperature": "37.20",
                        "systolic": "118.0000",
                        "diastolic": "76.25",
                    }
                )
            ),
            reading(
                n("heart_rate", Decimal("8E+1")),
                n("spo2", half),
                n("temperature", Decimal("37.20")),
                n("systolic", Decimal("118.000050")),
                n("diastolic", 76.25),
            ),
        ),
        "good_single_float": sample(
            "The single float nearest to 37.2 is 37.2000007…: 4 decimals are kept.",
            pack(item(values={**VALUES_TEXT, "temperature": "37.2000"})),
            reading(*VALUES[:2], n("temperature", single)),
        ),
        "good_long_forms": sample(
            "Numbers and lengths need not be written in their shortest form to be read.",
            pack(item()),
            Raw(
                b"\x98"
                + bytes([len(start() + begin() + VALUES)])
                + b"".join(cbor(record) for record in start() + begin())
                + b"".join(
                    cbor(record)
                    for record in [
                        n("heart_rate", Raw(bytes.fromhex("1b000000000000004e"))),
                        *VALUES[1:],
                    ]
                )
            ).data,
        ),
        "good_unknown": sample(
            "Names, labels, sums and update times that we do not know or use are ignored; the base "
            "name may be repeated, the version stated.",
            pack(item(quality=92)),
            cbor(
                [
                    {BVER: 10, **start()[0], "firmware": "2.1.0"},
                    n("boot", 3),
                    {N: "battery", V: 81, U: "%"},
                    n("sent", SENT),
                    *begin(),
                    {BN: BASE, **VALUES[0], S: 4000, UT: 5},
                    {**VALUES[1], 99: [1, {2: b"\x00"}]},
                    *VALUES[2:],
                    {N: "perfusion", VS: "good"},
                    {N: "raw", VD: b"\x01\x02"},
                    {VB: True},
                    n("quality", 92),
                ]
            ),
        ),
    }


def partial_samples() -> dict[str, dict[str, Any]]:
    """Where something is kept out and the rest is taken."""
    lonely = item(FIRST + 1, 65_000, LATER_TEXT)
    after = begin(FIRST + 1, LATER, 65_000, clock=None) + VALUES
    return {
        "partial_other_units": sample(
            "Kilopascal, Fahrenheit, or something that is no unit: kept out, the rest stays.",
            pack(
                item(
                    values={"heart_rate": "78"},
                    rejected=rejected(
                        spo2="wrong_unit",
                        temperature="wrong_unit",
                        systolic="wrong_unit",
                        diastolic="wrong_unit",
                    ),
                )
            ),
            reading(
                VALUES[0],
                {**n("spo2", 97), U: ""},
                {**n("temperature", 99), U: "[degF]"},
                {**n("systolic", Decimal("15.7")), U: "kPa"},
                {**n("diastolic", 76), U: 7},
            ),
        ),
        "partial_nan_and_infinity": sample(
            "Floats that are no numbers, in three widths.",
            pack(
                item(
                    values={"spo2": "88"},
                    rejected=rejected(
                        heart_rate="not_a_number",
                        temperature="not_a_number",
                        systolic="not_a_number",
                    ),
                )
            ),
            reading(
                n("heart_rate", Raw(bytes.fromhex("f97e00"))),
                n("spo2", 88),
                n("temperature", Raw(bytes.fromhex("fa7f800000"))),
                n("systolic", float("-inf")),
            ),
        ),
        "partial_wrong_types": sample(
            "A text, a truth value, bytes, a list, or nothing at all where a number is expected.",
            pack(
                item(
                    values={},
                    rejected=rejected(
                        heart_rate="not_a_number",
                        spo2="not_a_number",
                        temperature="not_a_number",
                        systolic="not_a_number",
                        diastolic="not_a_number",
                    ),
                    contact=False,
                )
            ),
            reading(
                {N: "heart_rate", VS: "78"},
                {N: "spo2", V: True},
                {N: "temperature", VD: b"\x25"},
                {N: "systolic", V: [118]},
                {N: "diastolic"},
                NO_CONTACT,
            ),
        ),
        "partial_huge_numbers": sample(
            "Exponents beyond 6 and mantissas beyond 64 bits are not believed; what can be read "
            "and cannot be measured is implausible.",
            pack(
                item(
                    values={"spo2": "88"},
                    rejected=rejected(
                        heart_rate="not_a_number",
                        temperature="not_a_number",
                        systolic="implausible_high",
                        diastolic="implausible_low",
                    ),
                )
            ),
            reading(
                n("heart_rate", Raw(bytes.fromhex("c48207184e"))),
                n("spo2", 88),
                n("temperature", Raw(bytes.fromhex("c482001bffffffffffffffff"))),
                n("systolic", 1e308),
                n("diastolic", -(2**64)),
            ),
        ),
        "partial_implausible": sample(
            "A broken temperature probe does not hide a falling SpO2.",
            pack(
                item(
                    values={"heart_rate": "78", "spo2": "84"},
                    rejected=rejected(temperature="implausible_low"),
                )
            ),
            reading(n("heart_rate", 78), n("spo2", 84), n("temperature", -127)),
        ),
        "partial_inconsistent_pressure": sample(
            "Systolic is not above diastolic: neither is believed.",
            pack(
                item(
                    rejected=rejected(systolic="inconsistent", diastolic="inconsistent"),
                )
            ),
            reading(*VALUES, n("diastolic", 80), n("systolic", 80)),
        ),
        "partial_pressure_in_kilopascal": sample(
            "A blood pressure in kPa, without unit: the diastolic value looks plausible, but not "
            "beside such a systolic one.",
            pack(
                item(
                    rejected=rejected(systolic="implausible_low", diastolic="inconsistent"),
                )
            ),
            reading(*VALUES, n("systolic", 16), n("diastolic", Decimal("10.6"))),
        ),
        "partial_diastolic_alone": sample(
            "A diastolic pressure that nothing can be compared with is not believed.",
            pack(item(rejected=rejected(diastolic="inconsistent"))),
            reading(*VALUES, n("diastolic", 76)),
        ),
        "partial_no_usable_value": sample(
            "Nothing of the first item can be believed: it is refused by itself, with its reasons; "
            "the second stays.",
            pack(
                item(
                    values={},
                    rejected=rejected(
                        heart_rate="implausible_high",
                        spo2="implausible_high",
                        temperature="missing",
                    ),
                    contact=True,
                    no_usable_value=True,
                ),
                lonely,
            ),
            cbor(start() + begin() + [n("heart_rate", 301), n("spo2", 101), CONTACT] + after),
        ),
        "partial_unusable": sample(
            "Pulse and SpO2 are absurdly low, as of a finger that is out of the probe or of a "
            "patient who is dying: a reading that says so, even without any value.",
            pack(
                item(
                    values={},
                    rejected=rejected(
                        heart_rate="implausible_low",
                        spo2="implausible_low",
                        temperature="missing",
                    ),
                    contact=True,
                    unusable=["heart_rate", "spo2"],
                ),
                item(
                    FIRST + 1,
                    65_000,
                    LATER_TEXT,
                    values={"temperature": "37.2"},
                    rejected=rejected(heart_rate="implausible_low"),
                    unusable=["heart_rate"],
                ),
            ),
            cbor(
                start()
                + begin()
                + [n("heart_rate", 12), n("spo2", 31), CONTACT]
                + begin(FIRST + 1, LATER, 65_000, clock=None)
                + [n("heart_rate", 0), n("temperature", Decimal("37.2"))]
            ),
        ),
        "partial_nothing_measured": sample(
            "An item states no value, and not that the probe is off.",
            pack(
                item(
                    values={},
                    rejected=rejected(heart_rate="missing", spo2="missing", temperature="missing"),
                    no_usable_value=True,
                ),
                lonely,
            ),
            cbor(start() + begin() + after),
        ),
        "partial_quality_unusable": sample(
            "A quality that cannot be is as good as none.",
            pack(
                item(),
                item(FIRST + 1, 65_000, LATER_TEXT),
                item(FIRST + 2, 65_000, LATER_TEXT),
            ),
            cbor(
                start()
                + begin()
                + [*VALUES, n("quality", 101)]
                + begin(FIRST + 1, LATER, 65_000, clock=None)
                + [*VALUES, n("quality", 0.92)]
                + begin(FIRST + 2, LATER, 65_000, clock=None)
                + [*VALUES, {**n("quality", 1), U: "/"}]
            ),
        ),
    }


def refused_envelopes() -> dict[str, dict[str, Any]]:
    """What does not open."""
    plain = reading(*VALUES)
    sealed = seal(plain)
    kid = bytes.fromhex(DEVICE) + b"\x00\x01"

    def refused(
        why: str, code: str, payload: bytes | Mapping[str, Any], **more: Any
    ) -> dict[str, Any]:
        return sample(why, error(code), payload=payload, **more)

    def odd(why: str, code: str, **sealing: Any) -> dict[str, Any]:
        return refused(why, code, seal(plain, **sealing))

    return {
        "refused_bad_topic": odd("Not a v2 topic.", "bad_topic")
        | {"topic": f"fajma/v2/{DEVICE}/vitals/now"},
        "refused_bad_device": odd("A device has one spelling in v2.", "bad_device")
        | {"topic": f"fajma/v2/{DEVICE.lower()}/vitals"},
        "refused_too_large": refused("10 MiB.", "too_large", {"repeat": "00", "times": 10 * 2**20}),
        "refused_just_too_large": refused(
            "One byte more than 16 KiB.", "too_large", {"repeat": "00", "times": 2**14 + 1}
        ),
        "refused_empty": refused("Nothing.", "not_cose", b""),
        "refused_json": refused("A v1 message on a v2 topic.", "not_cose", b'{"spo2":97}'),
        "refused_untagged": refused("The tag is missing.", "not_cose", sealed[1:]),
        "refused_other_tag": refused("Tag 18, COSE_Sign1.", "not_cose", b"\xd2" + sealed[1:]),
        "refused_two_parts": refused(
            "Two parts instead of three.", "not_cose", b"\xd0" + cbor([b"", {}])
        ),
        "refused_short_ciphertext": refused(
            "Shorter than an authentication tag.",
            "not_cose",
            b"\xd0" + cbor([cbor({1: 3, 4: kid}), {5: NONCE}, bytes(15)]),
        ),
        "refused_short_nonce": odd("A nonce of 8 bytes.", "not_cose", unprotected={5: NONCE[:8]}),
        "refused_no_nonce": odd("No nonce.", "not_cose", unprotected={}),
        "refused_more_unprotected": odd(
            "A header more, which nobody vouches for.",
            "not_cose",
            unprotected={5: NONCE, 4: kid},
        ),
        "refused_more_protected": odd(
            "A header more.", "not_cose", protected={1: 3, 4: kid, 3: 112}
        ),
        "refused_wrong_algorithm": odd("A128GCM.", "wrong_algorithm", protected={1: 1, 4: kid}),
        "refused_float_algorithm": odd(
            "A256GCM, but as a float.", "wrong_algorithm", protected={1: 3.0, 4: kid}
        ),
        "refused_no_algorithm": odd("No algorithm.", "wrong_algorithm", protected={4: kid}),
        "refused_key_version_0": odd("Versions begin with 1.", "bad_key_id", version=0),
        "refused_short_key_id": odd(
            "A key id without version.", "bad_key_id", protected={1: 3, 4: kid[:6]}
        ),
        "refused_truncated": refused("Cut short.", "not_cbor", sealed[:-1]),
        "refused_longer": refused("A byte more.", "not_cbor", sealed + b"\x00"),
        "refused_indefinite_envelope": refused(
            "Lengths are always stated.", "not_cbor", b"\xd0\x9f" + sealed[2:] + b"\xff"
        ),
        "refused_duplicate_header": odd(
            "A header twice.",
            "duplicate_key",
            protected=Pairs([(1, 3), (1, 1), (4, kid)]),
        ),
        "refused_deep_envelope": refused("Lists in lists.", "too_deep", b"\xd0" + b"\x81" * 5000),
        "refused_tampered_tag": refused(
            "The last bit of the authentication tag is flipped.",
            "not_authentic",
            sealed[:-1] + bytes([sealed[-1] ^ 1]),
        ),
        "refused_tampered_content": refused(
            "A bit of the content is flipped.",
            "not_authentic",
            sealed[:-40] + bytes([sealed[-40] ^ 0x80]) + sealed[-39:],
        ),
        "refused_other_channel": odd(
            "Sealed for another topic of the same device.", "not_authentic", topic=ACK_TOPIC
        ),
        "refused_other_key": odd("Sealed with the downlink key.", "not_authentic", key=DOWN),
        "refused_replaced_key_version": refused(
            "The key id says another version than it was sealed with.",
            "not_authentic",
            sealed.replace(kid, kid[:-1] + b"\x02"),
        ),
        "refused_replaced_device": refused(
            "The key id says another device than it was sealed for.",
            "wrong_device",
            sealed.replace(kid, bytes.fromhex(OTHER) + b"\x00\x01"),
        ),
        "refused_other_device": odd(
            "Properly sealed by another device, on a topic that is not its own.",
            "wrong_device",
            device=OTHER,
        ),
    }


def refused_packs() -> dict[str, dict[str, Any]]:
    """What opens and cannot be read."""
    oldest, boot, sent = start()
    usual = start() + begin() + VALUES
    body = b"".join(map(cbor, usual))

    def with_value(data: str) -> bytes:
        """A usual reading whose SpO2 is written so."""
        return reading(VALUES[0], n("spo2", Raw(bytes.fromhex(data))))

    bad_reading = {
        "no_mono": [{**n("seq", FIRST), BT: AT}, CLOCK_SET, *VALUES],
        "no_clock": begin(clock=None) + VALUES,
        "mono_in_seconds": [*begin()[:1], {**n("mono", 60), U: "s"}, CLOCK_SET, *VALUES],
        "mono_fraction": begin(mono=Decimal("60000.0")) + VALUES,
        "mono_negative": begin(mono=-1) + VALUES,
        "mono_after_sending": begin(mono=SENT + 1) + VALUES,
        "mono_too_large": begin(mono=2**42) + VALUES,
        "clock_number": [*begin(clock=None), {N: "clock", V: 1}, *VALUES],
        "contact_number": [*begin(), *VALUES, {N: "contact", V: 0}],
        "value_twice": [*begin(), *VALUES, VALUES[0]],
        "two_values": [*begin(), {N: "spo2", V: 97, VB: True}],
        "two_odd_values": [*begin(), {N: "spo2", V: 97, VS: "97"}],
        "no_base_time": begin(at=None) + VALUES,
        "base_time_without_clock": begin(clock=False) + VALUES,
        "base_time_relative": begin(at=-5) + VALUES,
        "base_time_small": begin(at=2**28 - 1) + VALUES,
        "base_time_nan": begin(at=float("nan")) + VALUES,
        "base_time_huge": begin(at=Decimal("9223372036854775807E+6")) + VALUES,
        "base_time_truth": begin(at=False, clock=False) + VALUES,
        "base_time_text": begin(at="2026-03-02") + VALUES,
        "base_time_elsewhere": [*begin(), {**VALUES[0], BT: LATER}, *VALUES[1:]],
        "own_time": [*begin(), {**VALUES[0], T: -1}, *VALUES[1:]],
        "base_value": [*begin(), {**VALUES[0], BV: 10}, *VALUES[1:]],
        "base_sum": [*begin(), {**VALUES[0], BS: 10}, *VALUES[1:]],
        "base_unit": [*begin(), {**VALUES[0], BU: "/min"}, *VALUES[1:]],
        "name_number": [*begin(), *VALUES, {N: 5, V: 1}],
        "base_time_kept_without_clock": begin()
        + VALUES
        + begin(FIRST + 1, None, 5_000, clock=False)
        + VALUES,
        "base_time_kept": begin() + VALUES + begin(FIRST + 1, None, 65_000, clock=None) + VALUES,
        "seq_again": begin() + VALUES + begin() + VALUES,
        "seq_backwards": begin() + VALUES + begin(FIRST - 1) + VALUES,
        "seq_in_gap": [n("seq", FIRST), n("lost", 5), *begin(FIRST + 4), *VALUES],
        "seq_fraction": begin(seq=Decimal("1.0")) + VALUES,
        "seq_too_large": begin(seq=2**63) + VALUES,
        "gap_empty": [n("seq", FIRST), n("lost", 0)],
        "gap_beyond_the_end": [n("seq", 2**63 - 1), n("unused", 2)],
        "gap_with_value": [n("seq", FIRST), n("lost", 1), VALUES[0]],
        "gap_in_reading": [*begin(), *VALUES, n("lost", 1)],
        "two_gaps_in_one": [n("seq", FIRST), n("lost", 1), n("unused", 1)],
        "value_before_item": [*VALUES, *begin()],
        "value_after_boot": [*begin(), n("boot", 4), *VALUES],
        "boot_too_large": [n("boot", 2**32), *begin(), *VALUES],
        "oldest_twice": [n("oldest", FIRST), *begin(), *VALUES],
        "sent_twice": [n("sent", SENT), *begin(), *VALUES],
    }
    whys = {
        "no_mono": "A reading without monotonic time.",
        "no_clock": "The first reading does not say whether the clock is set.",
        "mono_in_seconds": "Monotonic time in another unit.",
        "mono_fraction": "What counts is an integer.",
        "mono_negative": "What counts is not negative.",
        "mono_after_sending": "A reading is not measured after its pack was sent.",
        "mono_too_large": "Monotonic time is below 2^42 ms.",
        "clock_number": "The state of the clock is a truth value.",
        "contact_number": "Contact is a truth value.",
        "value_twice": "A kind twice in one item: two readers could see two values.",
        "two_values": "A record has one value at most.",
        "two_odd_values": "A record has one value at most, of whatever type.",
        "no_base_time": "The clock is set, but no time is stated.",
        "base_time_without_clock": "The clock is not set, but a time is stated.",
        "base_time_relative": "SenML reads small and negative times as relative to now.",
        "base_time_small": "The largest time that SenML reads as relative to now.",
        "base_time_nan": "A time that is no number.",
        "base_time_huge": "A time beyond the year 9999.",
        "base_time_truth": "A time is a number, even one that is not known.",
        "base_time_text": "A time is a number.",
        "base_time_elsewhere": "A base time inside an item would move part of it.",
        "own_time": "A record's own time would move part of the item.",
        "base_value": "A base value would change all values that follow.",
        "base_sum": "A base sum would change all sums that follow.",
        "base_unit": "A base unit would change the unit of all that follows.",
        "name_number": "A name is a text.",
        "base_time_kept_without_clock": "The base time of the item before is still in force.",
        "base_time_kept": "Every reading states its own time.",
        "seq_again": "A number twice.",
        "seq_backwards": "Numbers that fall.",
        "seq_in_gap": "A number inside a gap before it.",
        "seq_fraction": "A number that counts is written as an integer.",
        "seq_too_large": "Numbers of records are below 2^63.",
        "gap_empty": "A gap of nothing.",
        "gap_beyond_the_end": "A gap beyond the last number there is.",
        "gap_with_value": "A gap has no values.",
        "gap_in_reading": "A reading is no gap.",
        "two_gaps_in_one": "Lost or left out, not both.",
        "value_before_item": "A value that belongs to nothing.",
        "value_after_boot": "A start ends the item before it.",
        "boot_too_large": "Starts are counted in 32 bits.",
        "oldest_twice": "The oldest record is stated once.",
        "sent_twice": "A pack is sent once.",
    }
    assert whys.keys() == bad_reading.keys()
    return {
        **{
            f"refused_{name}": bad(whys[name], start() + records)
            for name, records in bad_reading.items()
        },
        "refused_no_boot": bad(
            "No start that the monotonic times could belong to.", [oldest, sent, *begin(), *VALUES]
        ),
        "refused_no_oldest": bad(
            "The oldest record is not stated.", [{BN: BASE, **boot}, sent, *begin(), *VALUES]
        ),
        "refused_no_sent": bad(
            "Nobody can say when it was sent.", [oldest, boot, *begin(), *VALUES]
        ),
        "refused_only_oldest": bad("A pack without items is sent at some time too.", [oldest]),
        "refused_oldest_late": bad(
            "The oldest record is stated after the start.",
            [{BN: BASE, **boot}, n("oldest", FIRST), sent, *begin(), *VALUES],
        ),
        "refused_sent_before_boot": bad(
            "Sent at a time that belongs to no start yet.", [oldest, sent, boot, *begin(), *VALUES]
        ),
        "refused_sent_late": bad(
            "When it was sent is stated after the first item.",
            [oldest, boot, *begin(), *VALUES, sent],
        ),
        "refused_boot_twice_before_sent": bad(
            "Two starts that the time of sending could belong to.",
            [oldest, n("boot", 2), boot, sent, *begin(), *VALUES],
        ),
        "refused_sent_in_seconds": bad(
            "The time of sending in another unit.",
            [oldest, boot, {**n("sent", 70), U: "s"}, *begin(), *VALUES],
        ),
        "refused_sent_too_large": bad(
            "The time of sending is below 2^42 ms.", start(sent=2**42) + begin() + VALUES
        ),
        "refused_oldest_too_large": bad(
            "The number of the oldest record is below 2^63.", start(2**63) + begin() + VALUES
        ),
        "refused_no_records": bad("A pack without records.", []),
        "refused_no_base_name": bad("The base name is missing.", [n("oldest", FIRST), *usual[1:]]),
        "refused_late_base_name": bad(
            "The base name comes late.", [n("oldest", FIRST), {BN: BASE, **usual[1]}, *usual[2:]]
        ),
        "refused_too_many_items": bad(
            "257 items.",
            start()
            + [record for at in range(257) for record in (n("seq", FIRST + at), n("lost", 1))],
        ),
        "refused_other_base_name": bad(
            "The base name is another device's.",
            [{**usual[0], BN: BASE.replace("3b7e", "3b7f")}, *usual[1:]],
            "wrong_device",
        ),
        "refused_other_eui": bad(
            "The address is extended as if it were an EUI-48; ours is a MAC-48.",
            [{**usual[0], BN: BASE.replace("fffff0", "fffef0")}, *usual[1:]],
            "wrong_device",
        ),
        "refused_base_name_changes": bad(
            "The base name changes on the way.",
            [*usual[:-1], {BN: BASE + "left:", **usual[-1]}],
            "wrong_device",
        ),
        "refused_new_version": bad(
            "A SenML version that we do not know.",
            [{BVER: 11, **usual[0]}, *usual[1:]],
            "not_understood",
        ),
        "refused_label_to_understand": bad(
            "An unknown label that must be understood.",
            [*usual[:-1], {**usual[-1], "scale_": 2}],
            "not_understood",
        ),
        "refused_name_to_understand": bad(
            "An unknown name that must be understood.",
            [*usual, n("corrected_", 1)],
            "not_understood",
        ),
        "refused_map": bad("A record that is not in a list.", usual[0], "not_senml"),
        "refused_not_records": bad("A list of other things.", [*usual, 5], "not_senml"),
        "refused_nothing": bad("Nothing was sealed.", b"", "not_cbor"),
        "refused_two_packs": bad("Bytes after the end.", cbor(usual) + b"\x80", "not_cbor"),
        "refused_cut_pack": bad("The last record is missing.", cbor(usual)[:-20], "not_cbor"),
        "refused_indefinite": bad(
            "Lengths are always stated.", b"\x9f" + body + b"\xff", "not_cbor"
        ),
        "refused_huge_length": bad(
            "A list that claims to be longer than memory.",
            b"\x9b" + b"\xff" * 8 + body,
            "not_cbor",
        ),
        "refused_huge_text": bad(
            "A text that claims to be longer than memory.",
            b"\x81\xa1\x00\x7b" + b"\x7f" * 8,
            "not_cbor",
        ),
        "refused_long_text": bad("A text of 65 bytes.", [*usual, {N: "x" * 65, V: 1}], "not_cbor"),
        "refused_no_text": bad("Text that is not UTF-8.", with_value("61ff"), "not_cbor"),
        "refused_null": bad("null is not used.", with_value("f6"), "not_cbor"),
        "refused_date": bad("A date (tag 1).", with_value("c11a69a59f98"), "not_cbor"),
        "refused_bignum": bad(
            "A large number (tag 2).", with_value("c249010000000000000000"), "not_cbor"
        ),
        "refused_shared_value": bad(
            "A list that contains itself (tags 28 and 29).", with_value("d81c81d81d00"), "not_cbor"
        ),
        "refused_nested_tags": bad(
            "Decimal fractions of decimal fractions.",
            with_value("c4" * 5000 + "820001"),
            "not_cbor",
        ),
        "refused_half_decimal_fraction": bad(
            "A decimal fraction without mantissa.", with_value("c48120"), "not_cbor"
        ),
        "refused_float_in_decimal_fraction": bad(
            "A decimal fraction of floats.", with_value("c48220f93c00"), "not_cbor"
        ),
        "refused_odd_key": bad(
            "A label is an integer or a text.", [*usual, Pairs([(True, 1), (N, "x")])], "not_cbor"
        ),
        "refused_duplicate_key": bad(
            "A label twice: two readers could see two values.",
            [*usual[:-1], Pairs([(N, "spo2"), (V, 97), (V, 71)])],
            "duplicate_key",
        ),
        "refused_duplicate_text_key": bad(
            "An unknown label twice.",
            [*usual, Pairs([("x", 1), ("x", 1)])],
            "duplicate_key",
        ),
        "refused_duplicate_long_key": bad(
            "The same label in two forms.",
            [*usual[:-1], Pairs([(N, "spo2"), (V, 97), (Raw(b"\x18\x02"), 71)])],
            "duplicate_key",
        ),
        "refused_too_deep": bad("Lists in lists.", with_value("81" * 5000), "too_deep"),
        "refused_just_too_deep": bad(
            "One level more than allowed.", with_value("818181" + "00"), "too_deep"
        ),
    }


def ack_samples() -> dict[str, dict[str, Any]]:
    """What a device is told."""
    told = {BN: BASE, BT: AT, **n("ack", FIRST + 41)}
    expect = {"ack": {"committed": str(FIRST + 41), "at": AT_TEXT}}

    def ack(why: str, expect: Mapping[str, Any], content: Any, **more: Any) -> dict[str, Any]:
        return sample(why, expect, cbor(content), topic=ACK_TOPIC, key=DOWN, **more)

    def refused(why: str, content: Any, code: str = "bad_pack") -> dict[str, Any]:
        return ack(why, error(code), content)

    sealed = seal(cbor([told]), topic=ACK_TOPIC, key=DOWN)
    return {
        "ack_good": ack(
            "All up to this record is committed; the server's time.", expect, [told], canonical=True
        ),
        "ack_good_unknown": ack("Other names are ignored.", expect, [told, n("pending", 3)]),
        "ack_refused_tampered": sample(
            "The last bit of the authentication tag is flipped.",
            error("not_authentic"),
            topic=ACK_TOPIC,
            key=DOWN,
            payload=sealed[:-1] + bytes([sealed[-1] ^ 1]),
        ),
        "ack_refused_from_vitals": sample(
            "Sealed for the topic of the readings.",
            error("not_authentic"),
            topic=ACK_TOPIC,
            key=DOWN,
            payload=seal(cbor([told]), topic=TOPIC, key=DOWN),
        ),
        "ack_refused_no_number": refused("Nothing is acknowledged.", [{BN: BASE, BT: AT}]),
        "ack_refused_twice": refused("Two numbers.", [told, {BT: AT, **n("ack", FIRST)}]),
        "ack_refused_no_time": refused("No time.", [{BN: BASE, **n("ack", FIRST)}]),
        "ack_refused_other_device": refused(
            "Another device's base name.",
            [{**told, BN: BASE.replace("3b7e", "3b7f")}],
            "wrong_device",
        ),
        "ack_refused_fraction": refused(
            "What counts is an integer.", [{**told, V: Decimal("1.5")}]
        ),
        "ack_refused_too_large": refused("What counts is below 2^63.", [{**told, V: 2**63}]),
    }


def all_samples() -> dict[str, str]:
    """Text of every file by its name without ``.json``."""
    groups = (
        good_samples(),
        partial_samples(),
        refused_envelopes(),
        refused_packs(),
        ack_samples(),
    )
    found: dict[str, str] = {}
    for group in groups:
        for name, content in group.items():
            assert name not in found
            found[name] = json.dumps(content, indent=2) + "\n"
    return found


if __name__ == "__main__":
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for stale in DIRECTORY.glob("*.json"):
        stale.unlink()
    for name, text in all_samples().items():
        (DIRECTORY / f"{name}.json").write_text(text, encoding="utf-8")
