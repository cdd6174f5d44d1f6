"""What monitors say over MQTT, and what they are told; pure, no I/O.

``docs/wire.md`` states the rules for readers in other languages, ``tests/samples`` holds golden
samples of each.

The rule behind the details: a message is refused as a whole only when nobody can say whose it is,
when it is from, or what it says. One bad value never hides the good ones beside it.
"""

from fajma.wire.v1 import (
    FUTURE_TOLERANCE,
    MAX_DEPTH,
    MAX_PAYLOAD_BYTES,
    MAX_TIMESTAMP,
    PAST_TOLERANCE,
    UNIX_MS_FROM,
    V1_TOPIC,
    Decoded,
    decode_v1,
    encode_v1,
    parse_device_id,
    parse_topic,
)
from fajma.wire.values import REQUIRED, NoUsableValueError, Reason, Rejected

__all__ = [
    "FUTURE_TOLERANCE",
    "MAX_DEPTH",
    "MAX_PAYLOAD_BYTES",
    "MAX_TIMESTAMP",
    "PAST_TOLERANCE",
    "REQUIRED",
    "UNIX_MS_FROM",
    "V1_TOPIC",
    "Decoded",
    "NoUsableValueError",
    "Reason",
    "Rejected",
    "decode_v1",
    "encode_v1",
    "parse_device_id",
    "parse_topic",
]
