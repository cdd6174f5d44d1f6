"""COSE_Encrypt0 (RFC 9052, section 5.2) with A256GCM (RFC 9053, section 4.1), as v2 uses it.

Tag 16 around an array of three: protected header, unprotected header, ciphertext. The protected
header holds exactly the algorithm and the key id (device and key version), the unprotected one
exactly the nonce. A header that we do not know is refused, not ignored: both writers are ours. The
topic is authenticated too, so that no message can be moved to another device or purpose.

Opening takes two steps, because the key is looked up by what the envelope says.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fajma.errors import BugError, DecodeError
from fajma.vitals import DeviceId
from fajma.wire import cbor
from fajma.wire.topics import DOWNLINK, parse_v2_topic

MAX_SEALED_BYTES: Final = 16 * 1024
"""Longest v2 payload; one reading takes about 200 bytes."""

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
KEY_VERSIONS: Final = range(1, 2**16)

_TAG_16: Final = b"\xd0"
_ALGORITHM: Final = 1
_KEY_ID: Final = 4
_IV: Final = 5
_A256GCM: Final = 3
_PARTS: Final = 3
_DEVICE_BYTES: Final = 6
_KEY_ID_BYTES: Final = 8


class PayloadKey:
    """The key of one device and one direction; never shows itself.

    Nonces are random, so that one key may seal 2^32 messages (NIST SP 800-38D, section 8.3): 136
    years at one a second.

    Args:
        raw: 32 random bytes.

    Raises:
        BugError: ``bad_payload_key`` when they are not 32.
    """

    __slots__ = ("_cipher",)

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_BYTES:
            raise BugError(f"a payload key has {KEY_BYTES} bytes", code="bad_payload_key")
        self._cipher = AESGCM(raw)

    def encrypt(self, content: bytes, nonce: bytes, protected: bytes, external: bytes) -> bytes:
        """Ciphertext and tag, bound to the protected header and to external data."""
        return self._cipher.encrypt(nonce, content, _enc_structure(protected, external))

    def decrypt(self, ciphertext: bytes, nonce: bytes, protected: bytes, external: bytes) -> bytes:
        """The content that ``encrypt`` was given with the same arguments.

        Raises:
            DecodeError: ``not_authentic``.
        """
        try:
            content = self._cipher.decrypt(nonce, ciphertext, _enc_structure(protected, external))
        except InvalidTag:
            content = None
        if content is None:
            raise DecodeError(
                "The message does not open with the device's key: enrol the device again, and "
                "check that nobody sends in its name.",
                code="not_authentic",
            )
        return content


@dataclass(frozen=True, slots=True)
class Envelope:
    """A sealed message that is not opened yet; nothing in it can be trusted.

    Attributes:
        device: which device's key it claims to be sealed with.
        key_version: which of them, 1 to 65535.
        protected: the protected header as received, because its bytes are authenticated.
        nonce: 12 bytes.
        ciphertext: with the tag, at least 16 bytes.
    """

    device: DeviceId
    key_version: int
    protected: bytes
    nonce: bytes
    ciphertext: bytes


def parse_envelope(payload: bytes) -> Envelope:
    """Take a COSE_Encrypt0 apart.

    Raises:
        DecodeError: ``too_large``, ``not_cbor``, ``too_deep``, ``duplicate_key``, ``not_cose``,
            ``wrong_algorithm`` or ``bad_key_id``.
    """
    if len(payload) > MAX_SEALED_BYTES:
        raise DecodeError(
            f"The message is longer than {MAX_SEALED_BYTES} bytes: check what this device sends.",
            code="too_large",
        )
    if not payload.startswith(_TAG_16):
        raise _not_cose()
    parts = cbor.decode(payload[1:])
    if not isinstance(parts, list) or len(parts) != _PARTS:
        raise _not_cose()
    protected, unprotected, ciphertext = parts
    if (
        not isinstance(protected, bytes)
        or not isinstance(unprotected, dict)
        or not isinstance(ciphertext, bytes)
        or len(ciphertext) < TAG_BYTES
    ):
        raise _not_cose()
    nonce = unprotected.pop(_IV, None)
    if unprotected or not isinstance(nonce, bytes) or len(nonce) != NONCE_BYTES:
        raise _not_cose()
    device, version = _parse_protected(protected)
    return Envelope(device, version, protected, nonce, ciphertext)


def open_envelope(envelope: Envelope, key: PayloadKey, topic: str) -> bytes:
    """Check that an envelope belongs to its topic and open it.

    Args:
        envelope: what ``parse_envelope`` gave.
        key: the key of ``envelope.device`` with ``envelope.key_version``, of the direction in
            which the topic goes.
        topic: the MQTT topic it came on.

    Returns:
        What was sealed: from the holder of the key, for this topic; maybe not for the first time.

    Raises:
        DecodeError: ``bad_topic``, ``bad_device``, ``wrong_device`` or ``not_authentic``.
    """
    device, _ = parse_v2_topic(topic)
    if envelope.device != device:
        raise DecodeError(
            "The message names another device than its topic: check the device's settings, and "
            "that nobody sends in its name.",
            code="wrong_device",
        )
    return key.decrypt(envelope.ciphertext, envelope.nonce, envelope.protected, topic.encode())


def seal(
    topic: str, key: PayloadKey, key_version: int, content: bytes, *, nonce: bytes | None = None
) -> bytes:
    """Seal what a device says, or what it is told.

    Args:
        topic: where it will be published.
        key: the key of the topic's device, of this direction.
        key_version: which of its keys that is, 1 to 65535.
        content: at most about 16 KiB.
        nonce: 12 bytes that were never used with this key, for golden samples; random if absent.

    Raises:
        DecodeError: ``bad_topic`` or ``bad_device``.
        BugError: ``bad_key_version``, or ``too_large`` when nobody would open it.
    """
    device, _ = parse_v2_topic(topic)
    if key_version not in KEY_VERSIONS:
        raise BugError("a key version is from 1 to 65535", code="bad_key_version")
    nonce = os.urandom(NONCE_BYTES) if nonce is None else nonce
    key_id = bytes.fromhex(device) + key_version.to_bytes(2)
    protected = cbor.encode({_ALGORITHM: _A256GCM, _KEY_ID: key_id})
    ciphertext = key.encrypt(content, nonce, protected, topic.encode())
    sealed = _TAG_16 + cbor.encode([protected, {_IV: nonce}, ciphertext])
    if len(sealed) > MAX_SEALED_BYTES:
        raise BugError(f"a payload has at most {MAX_SEALED_BYTES} bytes", code="too_large")
    return sealed


def seal_downlink(
    topic: str, key: PayloadKey, key_version: int, content: bytes, *, nonce: bytes | None = None
) -> bytes:
    """``seal`` for a topic on which devices are told something.

    Every content but an acknowledgement must begin with a ``counter`` larger than in any message
    before (``docs/wire.md``), because the broker can deliver an old one again.

    Raises:
        BugError: ``not_downlink``, and what ``seal`` raises.
    """
    if parse_v2_topic(topic)[1] not in DOWNLINK:
        raise BugError("devices are told nothing on this topic", code="not_downlink")
    return seal(topic, key, key_version, content, nonce=nonce)


def open_downlink(topic: str, key: PayloadKey, payload: bytes) -> bytes:
    """What a device is told; the way our firmware and the simulator read it.

    Raises:
        DecodeError: what ``parse_envelope`` and ``open_envelope`` raise.
    """
    return open_envelope(parse_envelope(payload), key, topic)


def _parse_protected(protected: bytes) -> tuple[DeviceId, int]:
    header = cbor.decode(protected)
    if not isinstance(header, dict):
        raise _not_cose()
    algorithm = header.get(_ALGORITHM)
    if type(algorithm) is not int or algorithm != _A256GCM:
        raise DecodeError(
            "The message is not sealed with A256GCM: check the device's firmware.",
            code="wrong_algorithm",
        )
    key_id = header.get(_KEY_ID)
    if len(header) != len((_ALGORITHM, _KEY_ID)):
        raise _not_cose()
    if not isinstance(key_id, bytes) or len(key_id) != _KEY_ID_BYTES or not any(key_id[-2:]):
        raise DecodeError(
            "The message does not say which key it is sealed with: check the device's firmware.",
            code="bad_key_id",
        )
    device = DeviceId(key_id[:_DEVICE_BYTES].hex().upper())
    return device, int.from_bytes(key_id[_DEVICE_BYTES:])


def _enc_structure(protected: bytes, external: bytes) -> bytes:
    """The associated data (RFC 9052, section 5.3)."""
    return cbor.encode(["Encrypt0", protected, external])


def _not_cose() -> DecodeError:
    return DecodeError(
        "The message is not a COSE_Encrypt0 of the kind that monitors write: check the device's "
        "firmware.",
        code="not_cose",
    )
