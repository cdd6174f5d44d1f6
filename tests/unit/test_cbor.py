"""Our CBOR reader against RFC 8949's examples and against cbor2."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fajma.errors import DecodeError
from fajma.wire import cbor
from tests import v2_samples

TEXTS = st.text(max_size=16)
NUMBERS = (
    st.integers(-(2**64), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.decimals(-(10**9), 10**9, places=6)
)
SCALARS = NUMBERS | st.booleans() | TEXTS | st.binary(max_size=80)
LABELS = st.integers(-(2**64), 2**64 - 1) | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(LABELS, inner, max_size=4)
)


def depth(value: Any) -> int:
    if isinstance(value, Decimal):  # an array of exponent and mantissa
        return 1
    inner = (
        list(value.values())
        if isinstance(value, dict)
        else value
        if isinstance(value, list)
        else []
    )
    return max((1 + depth(each) for each in inner), default=int(isinstance(value, (dict, list))))


def read(data: bytes) -> tuple[cbor.Value, str | None]:
    """The value, or the code of the refusal."""
    try:
        return cbor.decode(data), None
    except DecodeError as error:
        return 0, error.code


# RFC 8949, appendix A, as far as we read it.
@pytest.mark.parametrize(
    ("data", "value"),
    [
        ("00", 0),
        ("17", 23),
        ("1818", 24),
        ("1903e8", 1000),
        ("1a000f4240", 1_000_000),
        ("1b000000e8d4a51000", 1_000_000_000_000),
        ("1bffffffffffffffff", 18446744073709551615),
        ("3bffffffffffffffff", -18446744073709551616),
        ("20", -1),
        ("3903e7", -1000),
        ("f90000", 0.0),
        ("f98000", -0.0),
        ("f93c00", 1.0),
        ("fb3ff199999999999a", 1.1),
        ("f97bff", 65504.0),
        ("fa47c35000", 100000.0),
        ("f90001", 5.960464477539063e-8),
        ("fbc010666666666666", -4.1),
        ("f97c00", math.inf),
        ("faff800000", -math.inf),
        ("f4", False),
        ("f5", True),
        ("40", b""),
        ("4401020304", b"\x01\x02\x03\x04"),
        ("60", ""),
        ("62225c", '"\\'),
        ("62c3bc", "\u00fc"),
        ("64f0908591", "\U00010151"),
        ("80", []),
        ("8301820203820405", [1, [2, 3], [4, 5]]),
        ("98190102030405060708090a0b0c0d0e0f101112131415161718181819", list(range(1, 26))),
        ("a0", {}),
        ("a201020304", {1: 2, 3: 4}),
        ("a26161016162820203", {"a": 1, "b": [2, 3]}),
        ("c48221196ab3", Decimal("273.15")),
    ],
)
def test_the_examples_of_the_standard_are_read(data: str, value: object):
    found = cbor.decode(bytes.fromhex(data))

    assert repr(found) == repr(value)


@pytest.mark.parametrize(
    "data",
    [
        "f7", "f6", "f0", "f8ff", "f818", "c074323031332d30332d32315432303a30343a30305a",
        "c11a514b67b0", "d74401020304", "d818456449455446", "c249010000000000000000", "c5820103",
        "5f42010243030405ff", "7f657374726561646d696e67ff", "9fff", "bf61610161629f0203ffff",
        "d9d9f700", "1c", "1d", "1e", "1f", "fc", "ff", "5c", "7d", "9e", "df00",
    ],
)  # fmt: skip
def test_examples_of_what_we_do_not_use_are_refused(data: str):
    with pytest.raises(DecodeError) as caught:
        cbor.decode(bytes.fromhex(data))
    assert caught.value.code == "not_cbor"


@given(VALUES.filter(lambda value: depth(value) <= cbor.MAX_DEPTH))
def test_what_other_writers_write_is_read(value: object):
    # repr, because 1, 1.0 and True are equal.
    assert repr(cbor.decode(cbor2.dumps(value))) == repr(value)
    assert cbor.decode(v2_samples.cbor(value)) == value


@given(VALUES.filter(lambda value: depth(value) > cbor.MAX_DEPTH))
def test_what_is_nested_too_deeply_is_refused(value: object):
    with pytest.raises(DecodeError) as caught:
        cbor.decode(cbor2.dumps(value))
    assert caught.value.code == "too_deep"


@given(st.binary(max_size=60))
def test_what_we_read_another_reader_reads_too(data: bytes):
    found, refusal = read(data)

    assert refusal in {None, "not_cbor", "too_deep", "duplicate_key"}
    if refusal is None and "nan" not in repr(found).lower():
        strict = {"allow_duplicate_keys": False, "allow_indefinite": False}
        assert cbor2.loads(data, **strict) == found


@given(
    st.recursive(
        st.integers(-(2**64), 2**64 - 1) | TEXTS | st.binary() | st.booleans(),
        lambda inner: st.lists(inner) | st.dictionaries(st.integers(-24, 23), inner),
    )
)
def test_we_write_deterministically(value: object):
    assert cbor.encode(value) == v2_samples.cbor(value)


@pytest.mark.parametrize(
    ("exponent", "mantissa", "value"),
    [
        (-6, 1, "0.000001"),
        (6, 1, "1E+6"),
        (-1, -(2**63), "-922337203685477580.8"),
        (-1, 2**63 - 1, "922337203685477580.7"),
        (-7, 1, "NaN"),
        (7, 1, "NaN"),
        (0, 2**63, "NaN"),
        (0, -(2**63) - 1, "NaN"),
        (2**63, 1, "NaN"),
    ],
)
def test_decimal_fractions_are_exact_up_to_their_limits(exponent: int, mantissa: int, value: str):
    found = cbor.decode(b"\xc4" + cbor.encode([exponent, mantissa]))

    assert repr(found) == repr(Decimal(value))


def test_a_text_of_64_bytes_is_read_and_a_longer_one_is_not():
    assert cbor.decode(cbor2.dumps("é" * 32)) == "é" * 32
    with pytest.raises(DecodeError):
        cbor.decode(cbor2.dumps("é" * 32 + "e"))
