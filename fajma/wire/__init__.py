"""What monitors say over MQTT, and what they are told; pure, no I/O.

``docs/wire.md`` states the rules for readers in other languages, ``tests/samples`` holds golden
samples of each.

The rule behind the details: a message is refused as a whole only when nobody can say whose it is,
when it is from, or what it says. One bad value never hides the good ones beside it.
"""

from fajma.wire.cose import (
    KEY_BYTES,
    KEY_VERSIONS,
    MAX_SEALED_BYTES,
    NONCE_BYTES,
    Envelope,
    PayloadKey,
    open_downlink,
    open_envelope,
    parse_envelope,
    seal,
    seal_downlink,
)
from fajma.wire.topics import (
    V2_PREFIX,
    V2_TOPIC,
    Channel,
    parse_status,
    parse_v2_topic,
    v2_topic,
)
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
from fajma.wire.v2 import (
    MAX_ITEMS,
    Ack,
    Gap,
    Item,
    Pack,
    base_name,
    decode_ack,
    decode_pack,
    encode_ack,
    encode_pack,
)
from fajma.wire.values import REQUIRED, NoUsableValueError, Reason, Rejected

__all__ = [
    "FUTURE_TOLERANCE",
    "KEY_BYTES",
    "KEY_VERSIONS",
    "MAX_DEPTH",
    "MAX_ITEMS",
    "MAX_PAYLOAD_BYTES",
    "MAX_SEALED_BYTES",
    "MAX_TIMESTAMP",
    "NONCE_BYTES",
    "PAST_TOLERANCE",
    "REQUIRED",
    "UNIX_MS_FROM",
    "V1_TOPIC",
    "V2_PREFIX",
    "V2_TOPIC",
    "Ack",
    "Channel",
    "Decoded",
    "Envelope",
    "Gap",
    "Item",
    "NoUsableValueError",
    "Pack",
    "PayloadKey",
    "Reason",
    "Rejected",
    "base_name",
    "decode_ack",
    "decode_pack",
    "decode_v1",
    "encode_ack",
    "encode_pack",
    "encode_v1",
    "open_downlink",
    "open_envelope",
    "parse_device_id",
    "parse_envelope",
    "parse_status",
    "parse_topic",
    "parse_v2_topic",
    "seal",
    "seal_downlink",
    "v2_topic",
]
