"""The MQTT topics of v2, and the one message in clear: whether a device is connected."""

from __future__ import annotations

import re
from enum import StrEnum
from functools import lru_cache
from typing import Final

from fajma.errors import DecodeError
from fajma.vitals import DeviceId

V2_PREFIX: Final = "fajma/v2/"
V2_TOPIC: Final = "fajma/v2/{device}/{channel}"
"""``device`` is a ``DeviceId``, in that spelling only; ``channel`` a ``Channel``."""


class Channel(StrEnum):
    """What is said below a device's topic, and by whom."""

    VITALS = "vitals"
    """Device to us, sealed: a pack of readings."""
    ACK = "ack"
    """To the device, sealed: up to where its readings are committed."""
    CONFIG = "config"
    """To the device, sealed."""
    OTA = "ota"
    """To the device, sealed."""
    STATUS = "status"
    """From the device (retained) or, as its last will, from the broker: connected or not."""


DOWNLINK: Final = frozenset({Channel.ACK, Channel.CONFIG, Channel.OTA})

_REMEMBERED_TOPICS: Final = 8192
_TOPIC: Final = re.compile(rf"fajma/v2/([^/]*)/({'|'.join(Channel)})")
_DEVICE: Final = re.compile(r"[0-9A-F]{12}")
_STATUS: Final = re.compile(rb'\s*\{\s*"online"\s*:\s*(true|false)\s*\}\s*')
_MAX_STATUS_BYTES: Final = 64


def v2_topic(device: DeviceId, channel: Channel) -> str:
    """The topic of one device and channel."""
    return V2_TOPIC.format(device=device, channel=channel)


@lru_cache(_REMEMBERED_TOPICS)
def parse_v2_topic(topic: str) -> tuple[DeviceId, Channel]:
    """Whose topic it is, and what is said there.

    Raises:
        DecodeError: ``bad_topic`` when it is not of the form ``V2_TOPIC``, ``bad_device`` when the
            device in it is not twelve upper-case hex digits.
    """
    found = _TOPIC.fullmatch(topic)
    if found is None:
        raise DecodeError(
            "The topic is not one of a v2 monitor: it must be fajma/v2/, the device and vitals.",
            code="bad_topic",
        )
    device, channel = found.groups()
    if _DEVICE.fullmatch(device) is None:
        raise DecodeError(
            "The topic does not name a device: write its MAC address as twelve upper-case hex "
            "digits.",
            code="bad_device",
        )
    return DeviceId(device), Channel(channel)


def parse_status(payload: bytes) -> bool:
    """Whether the device says, or the broker says for it, that it is connected.

    Raises:
        DecodeError: ``bad_status`` when the payload is not ``{"online": true}`` or ``false``.
    """
    found = _STATUS.fullmatch(payload) if len(payload) <= _MAX_STATUS_BYTES else None
    if found is None:
        raise DecodeError(
            "The status is neither online nor offline: check the device's firmware.",
            code="bad_status",
        )
    return found[1] == b"true"
