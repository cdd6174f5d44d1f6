"""Encryption at rest: what opens, and all that must not."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fajma.errors import BugError, InputError
from fajma.sealing import (
    FINGERPRINT_BYTES,
    KEY_BYTES,
    NONCE_BYTES,
    Key,
    SiteKey,
    generate_site_key,
)
from fajma.store.site import check_site_key_file

SITE = SiteKey(bytes(range(KEY_BYTES)))
OTHER_SITE = SiteKey(bytes(reversed(range(KEY_BYTES))))
KEY = Key(b"k" * KEY_BYTES)
PATIENT = "9f" * 16
PLACE = f"reading/{PATIENT}/00"
PLAIN = b'{"heart_rate": "83.1973"}'


def refuses(key: Key, sealed: bytes, place: str) -> None:
    with pytest.raises(BugError) as caught:
        key.open(sealed, place=place)
    assert caught.value.code == "unsealing_failed"
    assert PATIENT not in str(caught.value)


# --- one key -------------------------------------------------------------------------------------


@given(st.binary(), st.text())
def test_what_was_sealed_opens_in_its_place(plain: bytes, place: str) -> None:
    assert KEY.open(KEY.seal(plain, place=place), place=place) == plain


def test_every_flipped_bit_refuses() -> None:
    sealed = KEY.seal(PLAIN, place=PLACE)
    for position in range(len(sealed) * 8):
        changed = bytearray(sealed)
        changed[position // 8] ^= 1 << position % 8
        refuses(KEY, bytes(changed), PLACE)


def test_every_shortened_or_lengthened_value_refuses() -> None:
    sealed = KEY.seal(PLAIN, place=PLACE)
    for length in range(len(sealed)):
        refuses(KEY, sealed[:length], PLACE)
    refuses(KEY, sealed + b"\x00", PLACE)


@given(st.text(), st.text())
def test_a_value_that_was_moved_refuses(place: str, elsewhere: str) -> None:
    sealed = KEY.seal(PLAIN, place=place)
    if place != elsewhere:
        refuses(KEY, sealed, elsewhere)


def test_another_key_refuses() -> None:
    refuses(Key(b"K" * KEY_BYTES), KEY.seal(PLAIN, place=PLACE), PLACE)


def test_nothing_of_the_text_or_the_place_stands_in_the_sealed_bytes() -> None:
    sealed = KEY.seal(PLAIN, place=PLACE)
    for piece in (b"heart", b"83.1973", b"reading", PATIENT.encode()):
        assert piece not in sealed
    # Version, nonce, as many bytes as the text, tag: the length is all that shows.
    assert len(sealed) == 1 + NONCE_BYTES + len(PLAIN) + 16


def test_the_same_value_never_looks_the_same_twice() -> None:
    sealed = {KEY.seal(PLAIN, place=PLACE) for _ in range(1000)}
    assert len({one[1 : 1 + NONCE_BYTES] for one in sealed}) == 1000
    assert len({one[1 + NONCE_BYTES :] for one in sealed}) == 1000


def test_a_key_does_not_show_itself() -> None:
    assert not hasattr(KEY, "__dict__")
    assert "k" * 8 not in repr(KEY)


# --- the site key --------------------------------------------------------------------------------


def test_a_patient_key_comes_back_from_its_wrapped_form() -> None:
    key, wrapped = SITE.new_patient_key(PATIENT)
    sealed = key.seal(PLAIN, place=PLACE)
    assert SITE.unwrap(wrapped, patient=PATIENT).open(sealed, place=PLACE) == PLAIN


def test_a_patient_key_of_another_patient_or_site_does_not_open() -> None:
    _, wrapped = SITE.new_patient_key(PATIENT)
    for site, patient in ((SITE, "00" * 16), (OTHER_SITE, PATIENT)):
        with pytest.raises(BugError) as caught:
            site.unwrap(wrapped, patient=patient)
        assert caught.value.code == "unsealing_failed"


def test_each_patient_has_a_key_of_its_own() -> None:
    one, _ = SITE.new_patient_key(PATIENT)
    other, _ = SITE.new_patient_key(PATIENT)
    refuses(other, one.seal(PLAIN, place=PLACE), PLACE)


def test_the_keys_of_a_site_serve_one_purpose_each() -> None:
    _, wrapped = SITE.new_patient_key(PATIENT)
    refuses(SITE.site, wrapped, f"patient_key/{PATIENT}")


def test_site_data_of_another_site_does_not_open() -> None:
    refuses(OTHER_SITE.site, SITE.site.seal(PLAIN, place=PLACE), PLACE)


@given(st.lists(st.binary(max_size=4), max_size=4), st.lists(st.binary(max_size=4), max_size=4))
def test_fingerprints_are_equal_only_for_the_same_parts(
    one: list[bytes], other: list[bytes]
) -> None:
    assert (SITE.fingerprint(*one) == SITE.fingerprint(*other)) == (one == other)
    assert len(SITE.fingerprint(*one)) == FINGERPRINT_BYTES


def test_fingerprints_tell_where_one_part_ends() -> None:
    splits = [(b"ab", b"c"), (b"a", b"bc"), (b"abc",), (b"abc", b""), (b"", b"abc"), ()]
    assert len({SITE.fingerprint(*parts) for parts in splits}) == len(splits)


def test_a_fingerprint_cannot_be_guessed_without_the_site_key() -> None:
    assert SITE.fingerprint(b"78") != OTHER_SITE.fingerprint(b"78")


def test_pickle_keys_differ_by_account_and_site_and_stay_the_same() -> None:
    keys = {
        SITE.pickle_key("@a:clinic.test"),
        SITE.pickle_key("@b:clinic.test"),
        OTHER_SITE.pickle_key("@a:clinic.test"),
    }
    assert len(keys) == 3
    assert SITE.pickle_key("@a:clinic.test") in keys


# --- its file ------------------------------------------------------------------------------------


def key_file(directory: Path, text: str) -> Path:
    path = directory / "site.key"
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        base64.b64encode(b"k" * 31).decode(),
        base64.b64encode(b"k" * 33).decode(),
        base64.b64encode(b"k" * 32).decode()[:-1],
        "not base64 at all!",
        "clé" * 11,
    ],
)
def test_a_site_key_that_is_none_is_refused_without_being_shown(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError) as caught:
        check_site_key_file(key_file(tmp_path, text))
    assert caught.value.code == "site_key_invalid"
    assert text not in str(caught.value)


def test_a_site_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = key_file(tmp_path, generate_site_key())
    path.chmod(0o644)
    with pytest.raises(InputError) as caught:
        check_site_key_file(path)
    assert caught.value.code == "secret_exposed"
