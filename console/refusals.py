"""Every reason for which a message, or a value in one, is refused, as the counters name it."""

from __future__ import annotations

from typing import Final

from bridges.mqtt_vitals.ingest import BUG, DOWNGRADED, UNKNOWN_KEY
from fajma.store.quarantine import (
    NO_PATIENT_KEY,
    RATE_LIMITED,
    SEQUENCE_REUSED,
    UNKNOWN_DEVICE,
)
from fajma.vitals import Kind
from fajma.wire.values import REQUIRED, Reason

MESSAGES: Final = frozenset(
    {
        *{UNKNOWN_DEVICE, UNKNOWN_KEY, NO_PATIENT_KEY, RATE_LIMITED, SEQUENCE_REUSED},
        *{DOWNGRADED, BUG},
        *{"bad_topic", "bad_device", "wrong_device", "too_large", "too_deep", "duplicate_key"},
        *{"not_utf8", "not_json", "not_object", "bad_timestamp", "no_usable_value"},
        *{"not_cose", "not_cbor", "wrong_algorithm", "bad_key_id", "not_authentic"},
        *{"not_senml", "not_understood", "bad_pack", "bad_status"},
    }
)
"""Why a whole message is refused: ours, both formats', v1's, then v2's (``docs/wire.md``)."""

_PRESSURES: Final = (Kind.SYSTOLIC, Kind.DIASTOLIC)

VALUES: Final = frozenset(
    f"{kind}_{reason}"
    for kind in Kind
    for reason in Reason
    if (reason is not Reason.MISSING or kind in REQUIRED)
    and (reason is not Reason.INCONSISTENT or kind in _PRESSURES)
)
"""Why one value is kept out of a message, e.g. ``spo2_implausible_low``."""

REASONS: Final = MESSAGES | VALUES
