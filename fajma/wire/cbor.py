"""The part of CBOR (RFC 8949) that v2 uses: a strict reader, and deterministic writing.

Read are integers, byte and text strings, arrays, maps, decimal fractions (tag 4), floats and truth
values; everything else is refused. cbor2 writes but does not read, because it cannot be made as
strict as bytes from outside deserve (6.3): it takes arrays as map keys, where ``hash(-1) ==
hash(-2)`` makes a thousand keys collide (80 times slower in 15 kB), and its option against that
forbids the integer labels of SenML and COSE too; it ignores bytes after the end; each of its tags
would have to be switched off. Here no input costs more than in proportion to its length.
"""

from __future__ import annotations

from decimal import Decimal
from struct import Struct
from struct import error as StructError  # noqa: N812 - an error's name ends so here
from typing import Final, TypeAlias

import cbor2

from fajma.errors import DecodeError

Value: TypeAlias = "int | float | Decimal | bytes | str | list[Value] | dict[int | str, Value]"
"""What the reader gives; truth values are ``bool``, decimal fractions ``Decimal``."""

MAX_DEPTH: Final = 4
"""Arrays and maps that may be open at once; a pack needs three."""

MAX_TEXT_BYTES: Final = 64
"""Longest text; the longest that we write is the base name, 29 bytes."""

MAX_EXPONENT: Final = 6
"""A decimal fraction is mantissa * 10^exponent, with an exponent from minus this to this."""

_EXPONENTS: Final = range(-MAX_EXPONENT, MAX_EXPONENT + 1)
_MANTISSAS: Final = range(-(2**63), 2**63)
_NOT_BELIEVED: Final = Decimal("NaN")
_ARGUMENTS: Final = {24: Struct(">B"), 25: Struct(">H"), 26: Struct(">I"), 27: Struct(">Q")}
_FLOATS: Final = {25: Struct(">e"), 26: Struct(">f"), 27: Struct(">d")}
_LONG: Final = 24
"""From here on the five low bits of an initial byte say where the argument stands."""

_SIMPLE_FROM: Final = 7 << 5
_SIMPLE_VALUES: Final = {20: False, 21: True}
_DECIMAL_FRACTION: Final = 4
_ARRAY_OF_TWO: Final = 0x82


def decode(data: bytes) -> Value:
    """Read one value, which must be all of ``data``.

    A decimal fraction outside the limits (exponent, or mantissa of more than 64 bits) becomes
    ``Decimal("NaN")``, so that it does not hide what stands beside it.

    Raises:
        DecodeError: ``not_cbor``, ``too_deep`` or ``duplicate_key``.
    """
    try:
        value, end = _read(data, 0, MAX_DEPTH)
    except (IndexError, StructError):
        end = -1  # cut short
    if end != len(data):
        raise _not_cbor()
    return value


def encode(value: object) -> bytes:
    """Write deterministically (RFC 8949, section 4.2.1).

    cbor2 sorts keys by length first; for our labels, of one byte each, that is the same.
    """
    return cbor2.dumps(value, canonical=True)


def _read(data: bytes, at: int, levels: int) -> tuple[Value, int]:
    """The value whose initial byte stands at ``at``, and where the next one begins.

    Args:
        data: all bytes.
        at: place in ``data``.
        levels: arrays and maps that may still be opened.
    """
    initial = data[at]
    at += 1
    if initial < _LONG:  # most of a pack: labels and small numbers
        return initial, at
    argument = initial & 0x1F
    if argument >= _LONG and initial < _SIMPLE_FROM:
        if argument not in _ARGUMENTS:  # reserved, or an indefinite length
            raise _not_cbor()
        width = _ARGUMENTS[argument]
        (argument,) = width.unpack_from(data, at)
        at += width.size
    return _READERS[initial >> 5](data, at, argument, levels)


def _read_unsigned(_: bytes, at: int, argument: int, __: int) -> tuple[Value, int]:
    return argument, at


def _read_negative(_: bytes, at: int, argument: int, __: int) -> tuple[Value, int]:
    return -1 - argument, at


def _read_bytes(data: bytes, at: int, length: int, _: int) -> tuple[Value, int]:
    end = at + length
    if end > len(data):
        raise _not_cbor()
    return data[at:end], end


def _read_text(data: bytes, at: int, length: int, _: int) -> tuple[Value, int]:
    end = at + length
    if length > MAX_TEXT_BYTES or end > len(data):
        raise _not_cbor()
    try:
        text = data[at:end].decode()
    except UnicodeDecodeError:
        text = None
    if text is None:  # out here, without the decoder's own error, which carries the text
        raise _not_cbor()
    return text, end


def _read_array(data: bytes, at: int, length: int, levels: int) -> tuple[Value, int]:
    _check_open(levels)
    elements = []
    for _ in range(length):  # ends with the data, whatever the length claims
        element, at = _read(data, at, levels - 1)
        elements.append(element)
    return elements, at


def _read_map(data: bytes, at: int, length: int, levels: int) -> tuple[Value, int]:
    _check_open(levels)
    found: dict[int | str, Value] = {}
    for _ in range(length):
        key, at = _read(data, at, levels - 1)
        # Nothing else is a label, and no two of these are equal by accident (as 1, 1.0 and true).
        if type(key) is not int and type(key) is not str:
            raise _not_cbor()
        if key in found:
            raise DecodeError(
                "The message states the same field twice: check the device's firmware.",
                code="duplicate_key",
            )
        found[key], at = _read(data, at, levels - 1)
    return found, at


def _read_decimal_fraction(data: bytes, at: int, tag: int, levels: int) -> tuple[Value, int]:
    # Looked at before reading on, or else tags in tags would nest without end.
    if tag != _DECIMAL_FRACTION or data[at] != _ARRAY_OF_TWO:
        raise _not_cbor()
    _check_open(levels)
    exponent, at = _read(data, at + 1, levels - 1)
    mantissa, at = _read(data, at, levels - 1)
    if type(exponent) is not int or type(mantissa) is not int:
        raise _not_cbor()
    if exponent not in _EXPONENTS or mantissa not in _MANTISSAS:
        return _NOT_BELIEVED, at
    return Decimal(f"{mantissa}E{exponent}"), at


def _read_simple(data: bytes, at: int, argument: int, _: int) -> tuple[Value, int]:
    if argument in _SIMPLE_VALUES:
        return _SIMPLE_VALUES[argument], at
    if argument not in _FLOATS:
        raise _not_cbor()
    width = _FLOATS[argument]
    (number,) = width.unpack_from(data, at)
    return number, at + width.size


_READERS: Final = (
    _read_unsigned,
    _read_negative,
    _read_bytes,
    _read_text,
    _read_array,
    _read_map,
    _read_decimal_fraction,
    _read_simple,
)
"""By major type (RFC 8949, section 3.1)."""


def _check_open(levels: int) -> None:
    if levels == 0:
        raise DecodeError(
            f"The message nests deeper than {MAX_DEPTH} levels: check what this device sends.",
            code="too_deep",
        )


def _not_cbor() -> DecodeError:
    return DecodeError(
        "The message is not CBOR of the kind that monitors write: check the device's firmware.",
        code="not_cbor",
    )
