"""Our COSE against the vectors that the COSE working group publishes.

Source: https://github.com/cose-wg/Examples (public domain), named at each vector.
"""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fajma.errors import DecodeError
from fajma.wire import PayloadKey, cbor, parse_envelope
from fajma.wire.cose import _enc_structure

CONTENT = b"This is the content."
NONCE = bytes.fromhex("02D1F7E6F26C43D4868D87CE")

# aes-gcm-examples/aes-gcm-enc-03.json: A256GCM, no external data.
KEY_256 = "0F1E2D3C4B5A69788796A5B4C3D2E1F01F2E3D4C5B6A798897A6B5C4D3E2F100"
AAD_256 = "8368456E63727970743043A1010340"
MESSAGE_256 = (
    "D08343A10103A1054C02D1F7E6F26C43D4868D87CE58249D64A5A59A3B04867DCCF6B8EF82F7D1A3B25EF84ECA2BC5"
    "D7593A96E943859A9CC24AD3"
)

# encrypted-tests/enc-pass-02.json: A128GCM with external data.
KEY_128 = "849B57219DAE48DE646D07DBB533566E"
EXTERNAL_128 = "0011BBCC22DD4455DD220099"
AAD_128 = "8368456E63727970743043A101014C0011BBCC22DD4455DD220099"
MESSAGE_128 = (
    "D08343A10101A1054C02D1F7E6F26C43D4868D87CE582460973A94BB2898009EE52ECFD9AB1DD25867374B1DC3A143"
    "880CA2883A5630DA08AE1E6E"
)


def parts(message: str) -> tuple[bytes, bytes]:
    """Protected header and ciphertext."""
    found = cbor.decode(bytes.fromhex(message)[1:])
    assert isinstance(found, list)
    protected, unprotected, ciphertext = found
    assert unprotected == {5: NONCE}
    assert isinstance(protected, bytes)
    assert isinstance(ciphertext, bytes)
    return protected, ciphertext


def test_the_published_message_opens_with_its_key():
    key = PayloadKey(bytes.fromhex(KEY_256))
    protected, ciphertext = parts(MESSAGE_256)

    assert key.decrypt(ciphertext, NONCE, protected, b"") == CONTENT


def test_we_seal_the_published_message_to_the_last_bit():
    key = PayloadKey(bytes.fromhex(KEY_256))
    protected = cbor.encode({1: 3})

    ciphertext = key.encrypt(CONTENT, NONCE, protected, b"")

    assert b"\xd0" + cbor.encode([protected, {5: NONCE}, ciphertext]) == bytes.fromhex(MESSAGE_256)


def test_what_is_authenticated_beside_the_content_is_as_published():
    protected_256, _ = parts(MESSAGE_256)
    protected_128, ciphertext = parts(MESSAGE_128)
    external = bytes.fromhex(EXTERNAL_128)

    assert _enc_structure(protected_256, b"") == bytes.fromhex(AAD_256)
    assert _enc_structure(protected_128, external) == bytes.fromhex(AAD_128)
    cipher = AESGCM(bytes.fromhex(KEY_128))
    assert cipher.decrypt(NONCE, ciphertext, _enc_structure(protected_128, external)) == CONTENT


# encrypted-tests/enc-fail-01.json (tag 995), enc-pass-03.json (no tag), enc-fail-04.json (unknown
# algorithm), enc-fail-06.json (a header more), aes-gcm-01.json (A128GCM).
@pytest.mark.parametrize(
    ("message", "code"),
    [
        (
            (
                "D903E38343A10101A1054C02D1F7E6F26C43D4868D87CE582460973A94BB2898009EE52ECFD9AB1DD25867"
                "374B162E2C03568B41F57C3CC16F9166250A"
            ),
            "not_cose",
        ),
        (
            (
                "8340A20101054C02D1F7E6F26C43D4868D87CE582460973A94BB2898009EE52ECFD9AB1DD25867374B24BE"
                "E54AA5D797C8DC845929ACAA47EF"
            ),
            "not_cose",
        ),
        (
            (
                "D0834AA10167556E6B6E6F776EA1054C02D1F7E6F26C43D4868D87CE582460973A94BB2898009EE52ECFD9"
                "AB1DD25867374B162E2C03568B41F57C3CC16F9166250A"
            ),
            "wrong_algorithm",
        ),
        (
            (
                "D08345A201010300A1054C02D1F7E6F26C43D4868D87CE582460973A94BB2898009EE52ECFD9AB1DD25867"
                "374B162E2C03568B41F57C3CC16F9166250A"
            ),
            "wrong_algorithm",
        ),
        (
            (
                "D08343A10101A1054C02D1F7E6F26C43D4868D87CE582460973A94BB2898009EE52ECFD9AB1DD25867374B"
                "162E2C03568B41F57C3CC16F9166250A"
            ),
            "wrong_algorithm",
        ),
        (MESSAGE_256, "not_cose"),  # valid COSE, but it names no device
    ],
)
def test_published_messages_that_are_not_ours_are_refused(message: str, code: str):
    with pytest.raises(DecodeError) as caught:
        parse_envelope(bytes.fromhex(message))
    assert caught.value.code == code


def test_the_published_message_with_a_changed_tag_does_not_open():
    # encrypted-tests/enc-fail-02.json does the same to the A128GCM message.
    key = PayloadKey(bytes.fromhex(KEY_256))
    protected, ciphertext = parts(MESSAGE_256)
    changed = ciphertext[:-1] + bytes([ciphertext[-1] + 1])

    with pytest.raises(DecodeError) as caught:
        key.decrypt(changed, NONCE, protected, b"")
    assert caught.value.code == "not_authentic"
    assert caught.value.__context__ is None
