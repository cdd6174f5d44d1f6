"""Cross-signing of our own bots, and which devices their users have signed.

No input or output happens here. Section names refer to the Matrix client-server specification 1.16
(https://spec.matrix.org/v1.16/client-server-api/), "Cross-signing" and "Secret storage"; signatures
are those of the appendix "Signing JSON". All keys and signatures travel as unpadded base64.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import xor
from typing import Any, Final

from canonicaljson import encode_canonical_json
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fajma.errors import InputError

KEY_BYTES: Final = 32
"""Length of every key here: Ed25519 seed and public key, Curve25519 key, secret storage key."""

SIGNATURE_BYTES: Final = 64

REVOKED: Final = "-"
"""Stands before a pinned key that is trusted no more, so that no identity fits the pin."""

# ---------------------------------------------------------------------------------------------
# Which devices did their users sign?


@dataclass(frozen=True, slots=True)
class DeviceKeys:
    """The two public keys of one device, unpadded base64.

    Attributes:
        ed25519: signs; a device is only ever this key, its id may be taken over by another key.
        curve25519: receives keys.
    """

    ed25519: str
    curve25519: str


@dataclass(frozen=True, slots=True)
class SignedIdentity:
    """A user's cross-signing identity whose chain of signatures was verified.

    Attributes:
        master_key: public key, unpadded base64; what a pin remembers.
        self_signing_key: public key, unpadded base64, signed by the master key.
        devices: by device id, the keys which the self-signing key signed.
    """

    master_key: str
    self_signing_key: str
    devices: Mapping[str, DeviceKeys]


def signed_devices(
    response: Mapping[str, object], pinned: Mapping[str, str] | None = None
) -> dict[str, SignedIdentity]:
    """Who in an answer to ``POST /keys/query`` has an identity, and which devices it signed.

    Everything is verified and nothing is believed: what is missing, malformed or wrongly signed
    is simply not signed. Never raises.

    Args:
        response: the answer as parsed JSON, of any shape.
        pinned: master key by user id. A user whose master key is another one has no signed device.

    Returns:
        By user id, the users with a valid chain from master key to self-signing key.
    """
    pins = pinned or {}
    masters = _mapping(response, "master_keys")
    self_signing = _mapping(response, "self_signing_keys")
    identities: dict[str, SignedIdentity] = {}
    for user_id, thing in masters.items():
        master = _cross_signing_key(thing, user_id, "master")
        signer = _cross_signing_key(self_signing.get(user_id), user_id, "self_signing")
        if master is None or signer is None:
            continue
        if not is_signed(self_signing[user_id], user_id, f"ed25519:{master}", master):
            continue
        unchanged = pins.get(user_id, master) == master
        devices = {
            device_id: keys
            for device_id, device, keys in _devices(response, user_id)
            if unchanged and is_signed(device, user_id, f"ed25519:{signer}", signer)
        }
        identities[user_id] = SignedIdentity(master, signer, devices)
    return identities


def identity_code(master_key: str) -> str:
    """Eight characters that tell one identity from another, for people to type: ``K7QF-2MZT``.

    Forty bits of a hash: what is accepted is the whole key that FAJMA has seen; the code only makes
    sure that people and FAJMA mean the same one.

    Args:
        master_key: public, unpadded base64.
    """
    number = int.from_bytes(hashlib.sha256(master_key.encode()).digest()[:5], "big")
    text = "".join(_CODE_LETTERS[number >> shift & 31] for shift in range(35, -1, -5))
    return f"{text[:4]}-{text[4:]}"


_CODE_LETTERS: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's: no I, L, O, U


def self_signed_devices(response: Mapping[str, object]) -> dict[str, dict[str, dict[str, Any]]]:
    """The device key objects of an answer to ``POST /keys/query`` that are what they claim to be.

    Each names the user and device it is listed under, has well-formed keys, and is signed by its
    own Ed25519 key. This says nothing about trust. ``unsigned`` is left out. Never raises.

    Returns:
        By user id and device id; a user listed with no usable device has an empty entry.
    """
    return {
        user_id: {
            device_id: {key: value for key, value in device.items() if key != "unsigned"}
            for device_id, device, _ in _devices(response, user_id)
        }
        for user_id, listed in _mapping(response, "device_keys").items()
        if isinstance(listed, Mapping)
    }


def signed_one_time_key(
    response: Mapping[str, object], user_id: str, device_id: str, *, ed25519: str
) -> Mapping[str, Any] | None:
    """The one-time key of a device in an answer to ``POST /keys/claim``, if the device signed it.

    Args:
        response: the answer as parsed JSON, of any shape.
        user_id: whose device.
        device_id: which.
        ed25519: its key, unpadded base64.

    Returns:
        The key object, whose ``key`` is a Curve25519 key in unpadded base64; ``None`` if there is
        none that the device signed.
    """
    claimed = _mapping(_mapping(_mapping(response, "one_time_keys"), user_id), device_id)
    for key_id in claimed:
        thing = _mapping(claimed, key_id)
        if _public_key(thing.get("key")) is None or not key_id.startswith("signed_curve25519:"):
            continue
        if is_signed(thing, user_id, f"ed25519:{device_id}", ed25519):
            return thing
    return None


def is_signed(thing: object, user_id: str, key_id: str, public_key: str) -> bool:
    """Whether a JSON object carries a valid signature ("Checking for a Signature").

    Args:
        thing: the object, of any shape.
        user_id: under whom the signature is listed.
        key_id: e.g. ``ed25519:DEVICE``.
        public_key: Ed25519, unpadded base64.
    """
    public = _decode(public_key, KEY_BYTES)
    signature = _decode(
        _mapping(_mapping(thing, "signatures"), user_id).get(key_id), SIGNATURE_BYTES
    )
    if public is None or signature is None:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, _signed_bytes(thing))
    except (InvalidSignature, ValueError, TypeError, RecursionError):
        return False  # the middle two: canonical JSON has no form for such content
    return True


def _devices(
    response: Mapping[str, object], user_id: str
) -> Iterator[tuple[str, Mapping[str, Any], DeviceKeys]]:
    """The usable devices of one user: id, object as listed, keys."""
    for device_id, device in _mapping(_mapping(response, "device_keys"), user_id).items():
        if not isinstance(device, Mapping):
            continue
        if device.get("user_id") != user_id or device.get("device_id") != device_id:
            continue
        # Ids are kept in a database, which takes neither NUL nor half a surrogate pair.
        if not device_id.isprintable():
            continue
        keys = _mapping(device, "keys")
        ed25519 = _public_key(keys.get(f"ed25519:{device_id}"))
        curve25519 = _public_key(keys.get(f"curve25519:{device_id}"))
        if ed25519 is None or curve25519 is None:
            continue
        if is_signed(device, user_id, f"ed25519:{device_id}", ed25519):
            yield device_id, device, DeviceKeys(ed25519, curve25519)


def _cross_signing_key(thing: object, user_id: str, usage: str) -> str | None:
    """The public key of a cross-signing key object, if that is what it is."""
    keys = _mapping(thing, "keys")
    if not isinstance(thing, Mapping) or thing.get("user_id") != user_id or len(keys) != 1:
        return None
    usages = thing.get("usage")
    if not isinstance(usages, list) or usage not in usages:
        return None
    ((key_id, public),) = keys.items()
    # The key is listed under its own public half.
    return _public_key(public) if key_id == f"ed25519:{public}" else None


def _mapping(thing: object, key: str) -> Mapping[str, Any]:
    """A JSON object inside another; an empty one when there is none."""
    inner = thing.get(key) if isinstance(thing, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


def _signed_bytes(thing: object) -> bytes:
    """What a signature covers: canonical JSON without ``signatures`` and ``unsigned``."""
    if not isinstance(thing, Mapping):
        raise TypeError("only JSON objects can be signed")
    return encode_canonical_json(
        {key: value for key, value in thing.items() if key not in ("signatures", "unsigned")}
    )


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode().rstrip("=")


def _decode(text: object, length: int) -> bytes | None:
    """Unpadded base64 of a known length; the one canonical spelling only, otherwise ``None``."""
    if not isinstance(text, str):
        return None
    try:
        data = _decode_leniently(text)
    except ValueError:
        return None
    return data if len(data) == length and _encode(data) == text else None


def _public_key(text: object) -> str | None:
    """A public key as it came, if it is one in unpadded base64."""
    return text if isinstance(text, str) and _decode(text, KEY_BYTES) is not None else None


def _decode_leniently(text: str) -> bytes:
    """Base64 with or without padding, as clients write it into secret storage.

    Raises:
        ValueError: not base64.
    """
    return base64.b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), validate=True)


# ---------------------------------------------------------------------------------------------
# Our own identity

MASTER: Final = "m.cross_signing.master"
SELF_SIGNING: Final = "m.cross_signing.self_signing"
USER_SIGNING: Final = "m.cross_signing.user_signing"

Sign = Callable[[dict[str, Any]], str]
"""Signs a JSON object with the device's Ed25519 key; gives the unpadded base64 signature."""


@dataclass(frozen=True, slots=True)
class CrossSigningSeeds:
    """The three private keys of a cross-signing identity, each a seed of 32 bytes.

    Attributes:
        master: the identity itself; signs the two others.
        self_signing: signs the user's own devices.
        user_signing: signs other users; we only keep it, as other clients expect it.
    """

    master: bytes = field(repr=False)
    self_signing: bytes = field(repr=False)
    user_signing: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> CrossSigningSeeds:
        """A new identity from the system's randomness."""
        return cls(*(secrets.token_bytes(KEY_BYTES) for _ in range(3)))

    @classmethod
    def from_secrets(cls, stored: Mapping[str, str]) -> CrossSigningSeeds:
        """The identity out of secret storage.

        Args:
            stored: by secret name (``MASTER``, ``SELF_SIGNING``, ``USER_SIGNING``), the seed in
                base64.

        Raises:
            InputError: a secret is missing or is not 32 bytes.
        """
        seeds = []
        for name in (MASTER, SELF_SIGNING, USER_SIGNING):
            try:
                seed = _decode_leniently(stored[name])
            except (KeyError, ValueError):
                seed = b""
            if len(seed) != KEY_BYTES:
                raise InputError(
                    "The secret storage of this account does not hold its cross-signing keys; "
                    "restore it in Element, or reset the account's identity.",
                    code="no_cross_signing_secrets",
                )
            seeds.append(seed)
        return cls(*seeds)

    def to_secrets(self) -> dict[str, str]:
        """By secret name, the seed in unpadded base64; the reverse of ``from_secrets``."""
        return {
            MASTER: _encode(self.master),
            SELF_SIGNING: _encode(self.self_signing),
            USER_SIGNING: _encode(self.user_signing),
        }

    @property
    def master_key(self) -> str:
        """Public master key, unpadded base64."""
        return _public(self.master)

    @property
    def self_signing_key(self) -> str:
        """Public self-signing key, unpadded base64."""
        return _public(self.self_signing)

    def device_signing_body(self, user_id: str, device_id: str, sign: Sign) -> dict[str, Any]:
        """The body of ``POST /keys/device_signing/upload``.

        Args:
            user_id: e.g. ``@fajma-alerts:example.org``.
            device_id: our device, which vouches for the master key.
            sign: signs with the key of that device.
        """
        master = self._key_object(user_id, "master", self.master)
        master["signatures"] = {user_id: {f"ed25519:{device_id}": sign(master)}}
        body = {"master_key": master}
        for name, seed in (
            ("self_signing", self.self_signing),
            ("user_signing", self.user_signing),
        ):
            body[f"{name}_key"] = _with_signature(
                self._key_object(user_id, name, seed), user_id, self.master
            )
        return body

    def signatures_body(self, user_id: str, device: Mapping[str, Any]) -> dict[str, Any]:
        """The body of ``POST /keys/signatures/upload`` that signs one of our own devices.

        Args:
            user_id: owner of the identity and of the device.
            device: its device key object, known to be ours.
        """
        bare = {k: v for k, v in device.items() if k not in ("signatures", "unsigned")}
        return {user_id: {device["device_id"]: _with_signature(bare, user_id, self.self_signing)}}

    @staticmethod
    def _key_object(user_id: str, usage: str, seed: bytes) -> dict[str, Any]:
        public = _public(seed)
        return {"user_id": user_id, "usage": [usage], "keys": {f"ed25519:{public}": public}}


def _public(seed: bytes) -> str:
    key = Ed25519PrivateKey.from_private_bytes(seed).public_key()
    return _encode(key.public_bytes(Encoding.Raw, PublicFormat.Raw))


def _with_signature(thing: dict[str, Any], user_id: str, seed: bytes) -> dict[str, Any]:
    signature = Ed25519PrivateKey.from_private_bytes(seed).sign(_signed_bytes(thing))
    return {**thing, "signatures": {user_id: {f"ed25519:{_public(seed)}": _encode(signature)}}}


# ---------------------------------------------------------------------------------------------
# Secret storage, where the identity's seeds wait for a device that has the recovery key

_ALGORITHM: Final = "m.secret_storage.v1.aes-hmac-sha2"  # the only one in use


@dataclass(frozen=True, slots=True)
class SecretStorageKey:
    """A key of secret storage.

    Attributes:
        key_id: its name on the server, opaque.
        key: 32 bytes; what people keep as the recovery key.
    """

    key_id: str
    key: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> SecretStorageKey:
        """A new key with a random name."""
        return cls(secrets.token_hex(16), secrets.token_bytes(KEY_BYTES))

    def description(self) -> dict[str, str]:
        """The account data ``m.secret_storage.key.<key_id>``; a different one at each call."""
        sealed = _seal(self.key, "", bytes(KEY_BYTES))
        return {"algorithm": _ALGORITHM, "iv": sealed["iv"], "mac": sealed["mac"]}

    def fits(self, description: Mapping[str, object]) -> bool:
        """Whether this is the key that a description on the server is about. Never raises."""
        iv, mac = description.get("iv"), description.get("mac")
        if description.get("algorithm") != _ALGORITHM:
            return False
        if not isinstance(iv, str) or not isinstance(mac, str):
            return False
        try:
            expected = _seal(self.key, "", bytes(KEY_BYTES), _decode_leniently(iv))["mac"]
            return hmac.compare_digest(expected, _encode(_decode_leniently(mac)))
        except ValueError:
            return False

    def encrypt(self, name: str, secret: str) -> dict[str, Any]:
        """The account data that keeps a secret under its name, readable with this key only."""
        return {"encrypted": {self.key_id: _seal(self.key, name, secret.encode())}}

    def decrypt(self, name: str, stored: Mapping[str, object]) -> str:
        """The secret that account data ``name`` keeps.

        Raises:
            InputError: it was not encrypted with this key, or was altered.
        """
        sealed = _mapping(_mapping(stored, "encrypted"), self.key_id)
        aes_key, mac_key = _derive(self.key, name)
        try:
            iv, ciphertext, mac = (
                _decode_leniently(str(sealed[part])) for part in ("iv", "ciphertext", "mac")
            )
            if hmac.compare_digest(hmac.digest(mac_key, ciphertext, hashlib.sha256), mac):
                return _aes_ctr(aes_key, iv, ciphertext).decode()
        except (KeyError, ValueError):
            pass  # not a sealed secret: told below like one sealed with another key
        raise InputError(
            "The recovery key does not open a secret of this account; use the recovery key "
            "that belongs to its present secret storage.",
            code="wrong_recovery_key",
        )


def _seal(key: bytes, name: str, secret: bytes, iv: bytes | None = None) -> dict[str, str]:
    """Encrypt under a name: ``iv``, ``ciphertext`` and ``mac``, unpadded base64.

    Raises:
        ValueError: ``iv`` is not 16 bytes.
    """
    if iv is None:
        fresh = bytearray(secrets.token_bytes(16))
        fresh[8] &= 0x7F  # "set bit 63 to zero to work around differences in implementations"
        iv = bytes(fresh)
    aes_key, mac_key = _derive(key, name)
    ciphertext = _aes_ctr(aes_key, iv, secret)
    mac = hmac.digest(mac_key, ciphertext, hashlib.sha256)
    return {"iv": _encode(iv), "ciphertext": _encode(ciphertext), "mac": _encode(mac)}


def _derive(key: bytes, name: str) -> tuple[bytes, bytes]:
    """The AES key and the MAC key of a secret: HKDF-SHA-256, 32 zero bytes as salt, its name."""
    both = HKDF(SHA256(), 2 * KEY_BYTES, bytes(KEY_BYTES), name.encode()).derive(key)
    return both[:KEY_BYTES], both[KEY_BYTES:]


def _aes_ctr(key: bytes, iv: bytes, data: bytes) -> bytes:
    """AES-256-CTR, which encrypts and decrypts alike.

    Raises:
        ValueError: ``iv`` is not 16 bytes.
    """
    stream = Cipher(algorithms.AES(key), modes.CTR(iv)).encryptor()
    return stream.update(data) + stream.finalize()


# The recovery key: "Key representation" of the specification.
_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_RECOVERY_PREFIX: Final = b"\x8b\x01"


def encode_recovery_key(key: bytes) -> str:
    """A 32-byte key as people write it down: base58 in groups of four, with prefix and parity."""
    data = _RECOVERY_PREFIX + key
    number = int.from_bytes(data + bytes([reduce(xor, data)]), "big")
    text = ""
    while number:  # the prefix is not zero, so there are no leading zeros to keep
        number, digit = divmod(number, len(_BASE58))
        text = _BASE58[digit] + text
    return " ".join(text[start : start + 4] for start in range(0, len(text), 4))


def decode_recovery_key(text: str) -> bytes:
    """The 32 bytes of a recovery key; white space is ignored.

    Raises:
        InputError: it was not copied completely and exactly.
    """
    number = 0
    try:
        for character in "".join(text.split()):
            number = number * len(_BASE58) + _BASE58.index(character)
        data = number.to_bytes(len(_RECOVERY_PREFIX) + KEY_BYTES + 1, "big")
    except (ValueError, OverflowError):  # a foreign character, too long
        data = b""
    if not data.startswith(_RECOVERY_PREFIX) or reduce(xor, data) != 0:
        raise InputError(
            "The recovery key is not complete or has a typing error; copy it again.",
            code="bad_recovery_key",
        )
    return data[len(_RECOVERY_PREFIX) : -1]
