"""Names of homeservers, and where one may be."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appservice.federation import Answer, ServerName, is_allowed


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("matrix.org", ServerName("matrix.org", None, is_address=False)),
        ("matrix.org:8888", ServerName("matrix.org", 8888, is_address=False)),
        ("1.2.3.4", ServerName("1.2.3.4", None, is_address=True)),
        ("1.2.3.4:1234", ServerName("1.2.3.4", 1234, is_address=True)),
        ("[1234:5678::abcd]", ServerName("1234:5678::abcd", None, is_address=True)),
        ("[1234:5678::abcd]:5678", ServerName("1234:5678::abcd", 5678, is_address=True)),
        ("localhost", ServerName("localhost", None, is_address=False)),
    ],
)
def test_the_examples_of_the_specification_are_read(name: str, parsed: ServerName) -> None:
    assert ServerName.parse(name) == parsed
    assert parsed.header == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a b",
        "clinic.test/",
        "clinic.test@evil.test",
        "clinic.test:0",
        "clinic.test:65536",
        "clinic.test:",
        "clinic..test",
        "clinic.test.",
        ".",
        "[1.2.3.4]",
        "[clinic]",
        "[::1",
        "::1",
        "[::1%eth0]",
        "clinic_1.test",
        "clinіc.test",  # noqa: RUF001 - the i is Cyrillic
        "clinic.test\n",
        "clinic.test:８４４８",  # noqa: RUF001 - digits of another script
        "a" * 64 + ".test",
        "a." * 120 + "test",
    ],
)
def test_what_is_not_the_name_of_a_homeserver_is_refused(name: str) -> None:
    assert ServerName.parse(name) is None


@given(st.text())
def test_whatever_is_read_can_stand_in_a_host_header_again(name: str) -> None:
    parsed = ServerName.parse(name)
    assert parsed is None or parsed.header.partition(":")[0] in name


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",  # noqa: S104
        "10.1.2.3",
        "100.64.0.1",
        "127.0.0.1",
        "127.8.8.8",
        "169.254.169.254",
        "172.16.0.1",
        "192.0.0.9",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "224.0.0.1",
        "239.1.2.3",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:192.168.1.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a00:1",
        "64:ff9b:1::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:c0a8:101::1",
        "fc00::1",
        "fd12:3456::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "ff0e::1",
    ],
)
def test_an_inner_address_is_no_place_for_a_partner(address: str) -> None:
    assert not is_allowed(address, [])


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "41.82.1.1",
        "2a00:1450:4007::1",
        # How a network without IPv4 reaches 41.82.1.1 (RFC 6052).
        "64:ff9b::2952:101",
        "::ffff:41.82.1.1",
    ],
)
def test_a_public_address_is(address: str) -> None:
    assert is_allowed(address, [])


def test_a_link_between_hospitals_is_allowed_by_name_and_opens_nothing_else() -> None:
    link = [IPv4Network("10.20.0.0/16"), IPv6Network("fd00:20::/32")]
    for inside in ("10.20.0.5", "::ffff:10.20.0.5", "64:ff9b::a14:5", "fd00:20::5"):
        assert is_allowed(inside, link), inside
    for outside in ("10.21.0.5", "127.0.0.1", "fd00:21::5", "::ffff:10.21.0.5"):
        assert not is_allowed(outside, link), outside


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b"\xff", b"{", b'"sub"', b"[" * 60_000, b"1" * 5000]
)
def test_an_answer_that_is_no_json_object_has_no_content(body: bytes) -> None:
    assert Answer(200, body).content is None
