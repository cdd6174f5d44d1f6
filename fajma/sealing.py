"""Encryption at rest: AES-256-GCM, one key per patient, wrapped by the site key.

The site key is 32 random bytes in a file. Four keys are derived from it (HKDF-SHA-256, RFC 5869)
so that no key serves two purposes: one wraps patient keys, one seals what belongs to no patient
(quarantine), one names things without revealing them (fingerprints), one protects the Matrix keys.

A sealed value is ``version (1 byte, 1) || nonce (12 bytes, random) || ciphertext and tag``. The
associated data says where the value belongs (table, patient, record), so that a sealed value that
is moved to another row does not open. Random 96-bit nonces allow 2^32 seals under one key (NIST SP
800-38D, section 8.3); a patient key stays far below.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fajma.errors import BugError, InputError

VERSION: Final = b"\x01"
KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
FINGERPRINT_BYTES: Final = 16


class Key:
    """One AES-256-GCM key. Seals and opens; never shows itself."""

    __slots__ = ("_cipher",)

    def __init__(self, raw: bytes) -> None:
        self._cipher = AESGCM(raw)

    def seal(self, plain: bytes, *, place: str) -> bytes:
        """Encrypt ``plain`` for one place, e.g. ``"readings/<patient>/<record>"``."""
        nonce = os.urandom(NONCE_BYTES)
        return VERSION + nonce + self._cipher.encrypt(nonce, plain, place.encode())

    def open(self, sealed: bytes, *, place: str) -> bytes:
        """Decrypt what ``seal`` made for the same place.

        Raises:
            BugError: the value was changed, moved from another place, or sealed by another key.
        """
        opened = self.try_open(sealed, place=place)
        if opened is None:
            raise BugError(
                "a sealed value does not open: wrong site key, or the database was altered",
                code="unsealing_failed",
            )
        return opened

    def try_open(self, sealed: bytes, *, place: str) -> bytes | None:
        """The same; ``None`` if it does not open."""
        if sealed[:1] != VERSION:
            return None
        nonce, body = sealed[1 : 1 + NONCE_BYTES], sealed[1 + NONCE_BYTES :]
        try:
            return self._cipher.decrypt(nonce, body, place.encode())
        except (InvalidTag, ValueError):  # the latter when it is cut short
            return None


class SiteKey:
    """The keys that belong to the site, derived from its one secret."""

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_BYTES:
            raise InputError(
                f"the site key must be {KEY_BYTES} bytes in base64", code="site_key_invalid"
            )
        self._wrapping = Key(_derive(raw, b"fajma wrapping of patient keys"))
        self._fingerprints = _derive(raw, b"fajma fingerprints")
        self._pickle = _derive(raw, b"fajma matrix sessions")
        self.site = Key(_derive(raw, b"fajma site data"))

    def new_patient_key(self, patient: str) -> tuple[Key, bytes]:
        """Make a key for a patient: the key itself, and its wrapped form for the store."""
        raw = os.urandom(KEY_BYTES)
        return Key(raw), self._wrapping.seal(raw, place=f"patient_key/{patient}")

    def unwrap(self, wrapped: bytes, *, patient: str) -> Key:
        """Open a wrapped patient key."""
        return Key(self._wrapping.open(wrapped, place=f"patient_key/{patient}"))

    def fingerprint(self, *parts: bytes) -> bytes:
        """Sixteen bytes that name ``parts`` and reveal nothing without the site key.

        A plain hash of a payload would not do: vitals have so few values that it can be guessed.
        """
        framed = b"".join([len(part).to_bytes(8, "big") + part for part in parts])
        return hmac.digest(self._fingerprints, framed, "sha256")[:FINGERPRINT_BYTES]

    def pickle_key(self, account: str) -> str:
        """Passphrase that encrypts one account's Olm and Megolm keys in their store."""
        return hmac.new(self._pickle, account.encode(), hashlib.sha256).hexdigest()


def generate_site_key() -> str:
    """A new site key, as it stands in its file."""
    return base64.b64encode(os.urandom(KEY_BYTES)).decode()


def _derive(raw: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=purpose).derive(raw)
