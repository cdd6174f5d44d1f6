"""v1, the JSON of the devices in the field.

The golden samples of its rules are in ``tests/samples/v1``.

There are two ways through ``decode_v1`` and one set of rules. A message written exactly as monitors
write it is taken apart by one regular expression, which by construction finds no key twice, no
nesting and no odd number; everything else goes through the JSON parser, several times slower.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Final

from fajma.errors import DecodeError
from fajma.vitals import DeviceId, Kind
from fajma.wire.values import (
    REQUIRED,
    NoUsableValueError,
    Reason,
    Rejected,
    judge,
    part,
    unusable,
)

V1_TOPIC: Final = "fajma/sensors/{device}"
"""Where a v1 device publishes; ``device`` is its MAC address in any usual spelling."""

MAX_PAYLOAD_BYTES: Final = 4096
"""A v1 message is about 120 bytes; far above that it is not from a monitor."""

MAX_DEPTH: Final = 8
"""Brackets that may be open at once; a v1 message needs one."""

UNIX_MS_FROM: Final = 1_000_000_000_000
"""From here on a timestamp is Unix milliseconds (2001), below it is ``millis()`` since boot."""

MAX_TIMESTAMP: Final = 2**53 - 1
"""Largest integer that every JSON reader keeps exactly (RFC 8259, section 6)."""

FUTURE_TOLERANCE: Final = timedelta(minutes=5)
"""A device's clock may run ahead of ours by this much."""

PAST_TOLERANCE: Final = timedelta(days=7)
"""A device may deliver readings this old after an outage."""

_MAX_NUMBER_CHARS: Final = 32
_HUGE_EXPONENT: Final = re.compile(r"[eE][+-]?0*[1-9][0-9]{3}")
_NOT_BELIEVED: Final = Decimal("NaN")
_MAC: Final = re.compile(r"[0-9A-Fa-f]{2}([:-]?)[0-9A-Fa-f]{2}(?:\1[0-9A-Fa-f]{2}){4}")
_TOPIC_PREFIX: Final = V1_TOPIC.format(device="")
# A string, left open or not, or a bare word that printf writes for a float that is no number.
# Possessive, so that hostile input costs linear time.
_STRING_OR_NONFINITE: Final = re.compile(
    r'("(?:[^"\\]|\\.)*+"?)|(?<![\w.])[+-]?(?:nan|inf(?:inity)?)(?![\w.])',
    re.IGNORECASE | re.ASCII | re.DOTALL,
)
_STRING_OR_BRACKET: Final = re.compile(r'"(?:[^"\\]|\\.)*+"?|[][{}]', re.DOTALL)

_KINDS: Final = tuple(Kind)
_REMEMBERED_DEVICES: Final = 8192
_REMEMBERED_NUMBERS: Final = 8192


def _plain_message() -> re.Pattern[bytes]:
    """A message as monitors write it: groups are the device, the timestamp and each ``Kind``.

    At most one space beside each mark, so that what matches is short; at most 15 digits in a
    timestamp, so that it is below ``MAX_TIMESTAMP``.
    """
    number = rb"(-?(?:0|[1-9][0-9]{0,4})(?:\.[0-9]{1,4})?)"
    fields = [
        rb'"device_id" ?: ?"([0-9A-Fa-f:-]{12,17})"',
        rb'"timestamp" ?: ?(0|[1-9][0-9]{0,14})',
    ]
    fields += [rb'"%b" ?: ?%b' % (kind.encode(), number) for kind in REQUIRED]
    optional = [
        rb'(?: ?, ?"%b" ?: ?%b)?' % (kind.encode(), number) for kind in Kind if kind not in REQUIRED
    ]
    return re.compile(rb"\{ ?%b%b ?\}" % (rb" ?, ?".join(fields), b"".join(optional)))


_PLAIN: Final = _plain_message()


@dataclass(frozen=True, slots=True)
class Decoded:
    """What one message says.

    Attributes:
        device: the monitor.
        timestamp_ms: milliseconds since 1970 (``UNIX_MS_FROM`` and above) or since its start.
        values: plausible values by kind, in the unit of ``MEASURES``; empty only where something
            is ``unusable``.
        rejected: what was kept out, in the order of ``Kind``; often empty.
        unusable: as in ``fajma.vitals.Reading``; what it names is in ``rejected`` too.
    """

    device: DeviceId
    timestamp_ms: int
    values: Mapping[Kind, Decimal]
    rejected: tuple[Rejected, ...]
    unusable: frozenset[Kind] = frozenset()


@lru_cache(_REMEMBERED_DEVICES)
def parse_device_id(text: str) -> DeviceId:
    """Read a MAC address written ``A4:CF:12:F0:3B:7E``, ``a4-cf-12-f0-3b-7e`` or ``a4cf12f03b7e``.

    Returns:
        The address as twelve upper-case hex digits.

    Raises:
        DecodeError: ``bad_device`` when it is no MAC address.
    """
    if _MAC.fullmatch(text) is None:
        raise DecodeError(
            "This is not a device address: write its MAC address as twelve hex digits.",
            code="bad_device",
        )
    return DeviceId(text.replace(":", "").replace("-", "").upper())


@lru_cache(_REMEMBERED_DEVICES)
def parse_topic(topic: str) -> DeviceId:
    """The device that a v1 topic belongs to.

    Raises:
        DecodeError: ``bad_topic`` when the topic is not ``V1_TOPIC``, ``bad_device`` when it does
            not end in a MAC address.
    """
    if not topic.startswith(_TOPIC_PREFIX):
        raise DecodeError(
            "The topic is not one of a v1 monitor: set it to fajma/sensors/ and the MAC address.",
            code="bad_topic",
        )
    return parse_device_id(topic.removeprefix(_TOPIC_PREFIX))


def decode_v1(topic: str, payload: bytes) -> Decoded:
    """Read one v1 message.

    Keys that we do not know are ignored: devices in the field add their own (battery, firmware),
    and refusing them would silence a monitor.

    When it was measured is not decided here: a timestamp may be wrong, or count from the device's
    start.

    Args:
        topic: the MQTT topic it came on.
        payload: the bytes as received.

    Raises:
        DecodeError: the message as a whole is unusable; ``code`` is ``bad_topic``, ``bad_device``,
            ``too_large``, ``not_utf8``, ``too_deep``, ``not_json``, ``duplicate_key``,
            ``not_object``, ``wrong_device``, ``bad_timestamp`` or ``no_usable_value`` (then a
            ``NoUsableValueError``). The message never holds a value.
    """
    device = parse_topic(topic)
    plain = _PLAIN.fullmatch(payload)
    if plain is not None:
        stated, digits, *numbers = plain.groups()
        _check_device(stated.decode(), device)
        timestamp_ms = int(digits)
        judged = _judge_numbers(numbers)
    else:
        message = _parse_object(payload)
        _check_device(message.get("device_id"), device)
        timestamp_ms = _timestamp_ms(message.get("timestamp"))
        judged = _judge_values(message)
    values, rejected = part(judged)
    low = unusable(rejected)
    if not values and not low:
        raise NoUsableValueError(rejected)
    return Decoded(device, timestamp_ms, values, rejected, low)


def encode_v1(device: DeviceId, timestamp_ms: int, values: Mapping[Kind, Decimal]) -> bytes:
    """Write a v1 message as a monitor does; a kind without a value is left out.

    Args:
        device: the monitor.
        timestamp_ms: Unix milliseconds, or milliseconds since its start.
        values: finite numbers, plausible or not (a simulator must be able to send nonsense).
    """
    # By hand, because json.dumps would turn each exact decimal into a float first.
    fields = [f'"device_id":"{device}"', f'"timestamp":{timestamp_ms:d}']
    fields += [f'"{kind}":{values[kind]:f}' for kind in Kind if kind in values]
    return ("{" + ",".join(fields) + "}").encode()


def _parse_object(payload: bytes) -> dict[str, object]:
    """Read one JSON object; every fault gets its own code.

    Raised outside the ``except`` blocks: the decoders' own errors carry pieces of the payload.
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise DecodeError(
            f"The message is longer than {MAX_PAYLOAD_BYTES} bytes: check what this device sends.",
            code="too_large",
        )
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        text = None
    if text is None:
        raise DecodeError(
            "The message is not UTF-8 text: check the device's firmware.", code="not_utf8"
        )
    if _depth_exceeds(text, MAX_DEPTH):
        raise DecodeError(
            f"The message nests deeper than {MAX_DEPTH} levels: check what this device sends.",
            code="too_deep",
        )
    try:
        message = json.loads(
            _quote_nonfinite(text),
            object_pairs_hook=_object_without_duplicates,
            parse_float=_number,
            parse_int=_number,
        )
    except json.JSONDecodeError:
        parsed = False
    else:
        parsed = True
    if not parsed:
        raise DecodeError("The message is not JSON: check the device's firmware.", code="not_json")
    if not isinstance(message, dict):
        raise DecodeError(
            "The message is not a JSON object: check the device's firmware.", code="not_object"
        )
    return message


def _depth_exceeds(text: str, limit: int) -> bool:
    """Whether brackets outside strings nest deeper than ``limit``.

    Looked at before parsing, so that no message reaches the interpreter's recursion limit.
    """
    if text.count("{") + text.count("[") <= limit:
        return False
    depth = 0
    for token in _STRING_OR_BRACKET.finditer(text):
        if token[0] in "{[":
            depth += 1
            if depth > limit:
                return True
        elif token[0] in "}]":
            depth -= 1
    return False


def _quote_nonfinite(text: str) -> str:
    """Put bare ``nan`` and ``inf`` (any case or sign) in quotes, so that the rest can be read.

    They are no JSON, but printf on a device writes them for a probe that is not connected; refusing
    the message would hide the other values.
    """
    lowered = text.lower()
    if "nan" not in lowered and "inf" not in lowered:
        return text
    return _STRING_OR_NONFINITE.sub(lambda found: found[1] or f'"{found[0]}"', text)


def _object_without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Build an object; a key given twice means that two readers could see two different values."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise DecodeError(
            "The message states the same field twice: check the device's firmware.",
            code="duplicate_key",
        )
    return found


def _number(text: str) -> Decimal:
    """Read a JSON number exactly; one that no monitor would write becomes NaN, at no cost."""
    if len(text) > _MAX_NUMBER_CHARS or _HUGE_EXPONENT.search(text):
        return _NOT_BELIEVED
    return Decimal(text)


def _check_device(stated: object, device: DeviceId) -> None:
    """Refuse a message whose ``device_id`` is not the topic's: it smells of forgery."""
    if (
        not isinstance(stated, str)
        or _MAC.fullmatch(stated) is None
        or parse_device_id(stated) != device
    ):
        raise DecodeError(
            "The message names another device than its topic: check the device's settings, and "
            "that nobody sends in its name.",
            code="wrong_device",
        )


def _timestamp_ms(timestamp: object) -> int:
    """The timestamp, if it is one."""
    if (
        not isinstance(timestamp, Decimal)
        or not timestamp.is_finite()
        or not 0 <= timestamp <= MAX_TIMESTAMP
        or timestamp != int(timestamp)
    ):
        raise DecodeError(
            "The message has no whole, positive timestamp in milliseconds: check the device's "
            "firmware.",
            code="bad_timestamp",
        )
    return int(timestamp)


def _judge_values(message: Mapping[str, object]) -> dict[Kind, Decimal | Reason]:
    """What is to be thought of each value of the message."""
    judged: dict[Kind, Decimal | Reason] = {}
    for kind in _KINDS:
        # A key with null says "no value", like a key that is absent.
        stated = message.get(kind)
        if stated is not None:
            judged[kind] = judge(kind, stated)
        elif kind in REQUIRED:
            judged[kind] = Reason.MISSING
    return judged


def _judge_numbers(numbers: Sequence[bytes | None]) -> dict[Kind, Decimal | Reason]:
    """What is to be thought of the numbers of a plain message, in the order of ``Kind``."""
    return {
        kind: _judge_number(kind, number)
        for kind, number in zip(_KINDS, numbers, strict=True)
        if number is not None
    }


@lru_cache(_REMEMBERED_NUMBERS)
def _judge_number(kind: Kind, number: bytes) -> Decimal | Reason:
    # Remembered, because the same few hundred numbers come again and again.
    return judge(kind, Decimal(number.decode()))
