from __future__ import annotations

import base64
import contextlib
import copy
import json
import secrets
from typing import Any

import pytest
from canonicaljson import encode_canonical_json
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from mautrix.crypto.cross_signing_key import CrossSigningSeeds as MautrixSeeds
from mautrix.crypto.ssss import EncryptedKeyData, KeyMetadata
from mautrix.crypto.ssss import Key as MautrixKey

from fajma.errors import InputError
from fajma.trust import (
    MASTER,
    SELF_SIGNING,
    USER_SIGNING,
    CrossSigningSeeds,
    SecretStorageKey,
    decode_recovery_key,
    encode_recovery_key,
    self_signed_devices,
    signed_devices,
)

USER = "@asha:clinic.test"
SEEDS = CrossSigningSeeds(b"m" * 32, b"s" * 32, b"u" * 32)


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode().rstrip("=")


def public_of(key: Ed25519PrivateKey) -> str:
    return base64_of(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))


def signature(key: Ed25519PrivateKey, thing: dict[str, Any]) -> str:
    bare = {k: v for k, v in thing.items() if k not in ("signatures", "unsigned")}
    return base64_of(key.sign(encode_canonical_json(bare)))


def device_object(
    device_id: str, *, user: str = USER, signed_by: CrossSigningSeeds | None = SEEDS
) -> dict[str, Any]:
    key = Ed25519PrivateKey.from_private_bytes(device_id.encode().ljust(32, b"d"))
    device: dict[str, Any] = {
        "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
        "device_id": device_id,
        "user_id": user,
        "keys": {
            f"ed25519:{device_id}": public_of(key),
            f"curve25519:{device_id}": base64_of(b"c" * 32),
        },
    }
    own = {f"ed25519:{device_id}": signature(key, device)}
    if signed_by:
        body = signed_by.signatures_body(user, device)
        own |= body[user][device_id]["signatures"][user]
    return {**device, "signatures": {user: own}}


def keys_query(
    *devices: dict[str, Any], user: str = USER, seeds: CrossSigningSeeds = SEEDS
) -> dict[str, Any]:
    """An answer with nothing in it that the decision does not rest on."""
    body = seeds.device_signing_body(user, "D", lambda _: "")
    del body["master_key"]["signatures"]
    return {
        "device_keys": {user: {device["device_id"]: device for device in devices}},
        "master_keys": {user: body["master_key"]},
        "self_signing_keys": {user: body["self_signing_key"]},
    }


def trusted(response: Any, **kwargs: Any) -> set[tuple[str, str]]:
    return {
        (user, device)
        for user, identity in signed_devices(response, **kwargs).items()
        for device in identity.devices
    }


def test_only_the_device_signed_by_its_users_identity_is_trusted():
    response = keys_query(device_object("PHONE"), device_object("STRANGE", signed_by=None))
    assert trusted(response) == {(USER, "PHONE")}
    assert set(self_signed_devices(response)[USER]) == {"PHONE", "STRANGE"}
    identity = signed_devices(response)[USER]
    assert identity.master_key == SEEDS.master_key
    assert identity.self_signing_key == SEEDS.self_signing_key
    phone = response["device_keys"][USER]["PHONE"]["keys"]
    assert identity.devices["PHONE"].ed25519 == phone["ed25519:PHONE"]
    assert identity.devices["PHONE"].curve25519 == phone["curve25519:PHONE"]


def test_an_identity_other_than_the_pinned_one_has_no_signed_devices_but_is_reported():
    response = keys_query(device_object("PHONE"))
    assert trusted(response, pinned={USER: SEEDS.master_key}) == {(USER, "PHONE")}
    assert trusted(response, pinned={"@other:clinic.test": "x"}) == {(USER, "PHONE")}
    assert trusted(response, pinned={USER: SEEDS.self_signing_key}) == set()
    changed = signed_devices(response, pinned={USER: SEEDS.self_signing_key})
    assert changed[USER].master_key == SEEDS.master_key


def test_a_device_signed_by_another_identity_is_not_trusted():
    other = CrossSigningSeeds.generate()
    assert trusted(keys_query(device_object("PHONE", signed_by=other))) == set()


def test_a_self_signing_key_that_another_master_key_signed_is_not_trusted():
    response = keys_query(device_object("PHONE"))
    response["master_keys"] = keys_query(seeds=CrossSigningSeeds.generate())["master_keys"]
    assert signed_devices(response) == {}


def test_keys_of_one_user_cannot_be_passed_off_as_those_of_another():
    response = keys_query(device_object("PHONE"))
    for part in response.values():
        part["@ben:clinic.test"] = part[USER]
    assert trusted(response) == {(USER, "PHONE")}
    assert self_signed_devices(response)["@ben:clinic.test"] == {}


def test_a_device_listed_under_another_id_is_not_trusted():
    response = keys_query(device_object("PHONE"))
    response["device_keys"][USER]["TABLET"] = response["device_keys"][USER].pop("PHONE")
    assert trusted(response) == set()
    assert self_signed_devices(response) == {USER: {}}


def test_a_device_that_did_not_sign_itself_is_not_trusted():
    device = device_object("PHONE")
    del device["signatures"][USER]["ed25519:PHONE"]
    assert trusted(keys_query(device)) == set()


def test_a_self_signing_key_cannot_serve_as_a_master_key():
    response = keys_query(device_object("PHONE"))
    response["master_keys"][USER] = response["self_signing_keys"][USER]
    assert signed_devices(response) == {}


def test_what_is_unsigned_is_not_covered_and_is_left_out():
    device = {**device_object("PHONE"), "unsigned": {"device_display_name": "anything"}}
    response = keys_query(device)
    assert trusted(response) == {(USER, "PHONE")}
    assert "unsigned" not in self_signed_devices(response)[USER]["PHONE"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
PARTS = ("device_keys", "master_keys", "self_signing_keys")
VALID = keys_query(device_object("PHONE"))


def paths(thing: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [prefix] if prefix else []
    if isinstance(thing, dict):
        for key, value in thing.items():
            found += paths(value, (*prefix, key))
    return found


@given(st.dictionaries(st.sampled_from(PARTS) | st.text(), JSON))
def test_arbitrary_json_is_never_trusted_and_never_raises(response: dict[str, Any]):
    assert signed_devices(response) == {}
    assert not any(self_signed_devices(response).values())


@given(st.sampled_from(paths(VALID)), JSON)
def test_arbitrary_json_in_any_place_of_a_valid_answer_is_not_trusted(
    path: tuple[Any, ...], junk: Any
):
    response = copy.deepcopy(VALID)
    place = response
    for key in path[:-1]:
        place = place[key]
    if place[path[-1]] == junk:
        return
    place[path[-1]] = junk
    assert trusted(response) == set()


@given(st.integers(0), st.integers(1, 255))
def test_a_changed_byte_in_a_valid_answer_ends_trust(position: int, change: int):
    raw = bytearray(encode_canonical_json(VALID))
    raw[position % len(raw)] ^= change
    try:
        response = json.loads(raw)
    except ValueError:
        return  # not even JSON
    if response != VALID:
        assert trusted(response) == set()


def test_every_single_bit_of_the_signatures_and_keys_counts():
    for path in paths(VALID):
        value = VALID
        for key in path:
            value = value[key]
        if not isinstance(value, str):
            continue
        for position in range(len(value)):
            # The last character of base64 has spare bits: they must not be free to choose.
            for other in {"A", "B", "g", chr(ord(value[position]) ^ 1)} - {value[position]}:
                response = copy.deepcopy(VALID)
                place = response
                for key in path[:-1]:
                    place = place[key]
                place[path[-1]] = value[:position] + other + value[position + 1 :]
                assert trusted(response) == set(), path


def test_deeply_nested_answers_are_not_trusted_and_do_not_raise():
    nested: Any = "x"
    for _ in range(900):
        nested = [nested]
    device = {**device_object("PHONE"), "algorithms": nested}
    assert trusted(keys_query(device)) == set()


def test_the_identity_bodies_carry_the_signatures_that_the_specification_asks_for():
    device = Ed25519PrivateKey.generate()
    body = SEEDS.device_signing_body(USER, "BOT", lambda thing: signature(device, thing))
    assert set(body) == {"master_key", "self_signing_key", "user_signing_key"}
    assert body["master_key"]["usage"] == ["master"]
    assert body["master_key"]["signatures"][USER] == {
        "ed25519:BOT": signature(device, body["master_key"])
    }
    master = Ed25519PrivateKey.from_private_bytes(SEEDS.master)
    for name in ("self_signing", "user_signing"):
        key = body[f"{name}_key"]
        assert key["usage"] == [name]
        assert key["signatures"] == {USER: {f"ed25519:{SEEDS.master_key}": signature(master, key)}}


def test_our_public_keys_are_those_that_mautrix_derives():
    theirs = MautrixSeeds(
        master_key=SEEDS.master,
        self_signing_key=SEEDS.self_signing,
        user_signing_key=SEEDS.user_signing,
    ).to_keys()
    assert SEEDS.master_key == theirs.public_keys.master_key
    assert SEEDS.self_signing_key == theirs.public_keys.self_signing_key


def test_seeds_survive_secret_storage_and_are_not_printed():
    seeds = CrossSigningSeeds.generate()
    assert CrossSigningSeeds.from_secrets(seeds.to_secrets()) == seeds
    padded = {name: text + "=" for name, text in seeds.to_secrets().items()}
    assert CrossSigningSeeds.from_secrets(padded) == seeds
    assert repr(seeds) == "CrossSigningSeeds()"
    assert "key=" not in repr(SecretStorageKey.generate())


@pytest.mark.parametrize(
    "damaged", [{SELF_SIGNING: "short"}, {MASTER: "not base64 !"}, {USER_SIGNING: ""}]
)
def test_incomplete_secrets_are_refused(damaged: dict[str, str]):
    with pytest.raises(InputError) as caught:
        CrossSigningSeeds.from_secrets({**SEEDS.to_secrets(), **damaged})
    assert caught.value.code == "no_cross_signing_secrets"


@given(st.binary(min_size=32, max_size=32))
def test_recovery_keys_round_trip_and_are_those_of_mautrix(key: bytes):
    text = encode_recovery_key(key)
    assert decode_recovery_key(text) == key
    assert decode_recovery_key(f"\n{text.replace(' ', '')}\n") == key
    assert MautrixKey(id="x", key=key, metadata=None).recovery_key == text


@given(st.text(max_size=80))
def test_what_is_no_recovery_key_is_refused(text: str):
    with pytest.raises(InputError):
        decode_recovery_key(text)


def test_a_single_typing_error_in_a_recovery_key_is_noticed():
    key = bytes(range(32))
    text = encode_recovery_key(key)
    accepted = []
    letters = [position for position, letter in enumerate(text) if letter != " "]
    for position in letters:
        wrong = text[:position] + ("2" if text[position] != "2" else "3") + text[position + 1 :]
        with contextlib.suppress(InputError):
            accepted.append(decode_recovery_key(wrong))
    assert key not in accepted
    # One byte of parity lets about one error in 256 pass as another key.
    assert len(accepted) <= 2 < len(letters)


@given(st.text(), st.text(min_size=1))
def test_a_secret_opens_under_its_name_with_its_key_only(secret: str, name: str):
    key = SecretStorageKey.generate()
    stored = key.encrypt(name, secret)
    assert key.decrypt(name, stored) == secret
    with pytest.raises(InputError):
        key.decrypt(name + "x", stored)
    with pytest.raises(InputError):
        SecretStorageKey(key.key_id, secrets.token_bytes(32)).decrypt(name, stored)


@given(JSON)
def test_arbitrary_json_is_no_secret(junk: Any):
    key = SecretStorageKey.generate()
    for stored in (junk, {"encrypted": junk}, {"encrypted": {key.key_id: junk}}):
        with pytest.raises(InputError):
            key.decrypt(MASTER, stored)
    if isinstance(junk, dict):
        assert not key.fits({**key.description(), "mac": "", **junk})


def test_a_key_knows_its_own_description_only():
    key, other = SecretStorageKey.generate(), SecretStorageKey.generate()
    assert key.fits(key.description())
    assert not other.fits(key.description())
    assert not key.fits({**key.description(), "algorithm": "m.other"})
    assert not key.fits({**key.description(), "iv": "AAAA"})
    assert not key.fits({"algorithm": key.description()["algorithm"]})


def test_initialisation_vectors_have_bit_63_cleared():
    key = SecretStorageKey.generate()
    for _ in range(64):
        iv = base64.b64decode(key.encrypt("x", "y")["encrypted"][key.key_id]["iv"] + "==")
        assert len(iv) == 16
        assert iv[8] < 0x80


def test_secret_storage_of_mautrix_opens_with_ours():
    theirs = MautrixKey.generate()
    key = SecretStorageKey(theirs.id, decode_recovery_key(theirs.recovery_key))
    assert key.fits(theirs.metadata.serialize())
    sealed = theirs.encrypt(MASTER, SEEDS.master).serialize()
    opened = key.decrypt(MASTER, {"encrypted": {theirs.id: sealed}})
    assert {MASTER: opened}.items() <= SEEDS.to_secrets().items()


def test_secret_storage_of_ours_opens_with_mautrix():
    key = SecretStorageKey.generate()
    metadata = KeyMetadata.deserialize(key.description())
    theirs = metadata.verify_recovery_key(key.key_id, encode_recovery_key(key.key))
    sealed = key.encrypt(MASTER, SEEDS.to_secrets()[MASTER])["encrypted"][key.key_id]
    assert theirs.decrypt(MASTER, EncryptedKeyData.deserialize(sealed)) == SEEDS.master
