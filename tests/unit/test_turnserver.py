"""What the relay for calls may reach, by its configuration."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from console.files import base_file
from tests.unit.test_federation import INNER, PUBLIC

DENIED = [
    tuple(map(ip_address, line.partition("=")[2].split("-")))
    for line in base_file("turnserver.conf").splitlines()
    if line.startswith("denied-peer-ip=")
]


def is_denied(text: str) -> bool:
    address = ip_address(text.partition("%")[0])
    return any(
        low.version == address.version and low <= address <= high  # type: ignore[operator]
        for low, high in DENIED
    )


@pytest.mark.parametrize("address", [one for one in INNER if one != "::"])
def test_what_is_no_place_for_a_partner_is_none_for_a_caller(address: str) -> None:
    assert is_denied(address)


@pytest.mark.parametrize("address", [one for one in PUBLIC if "ff" not in one])
def test_a_public_address_is_reached(address: str) -> None:
    assert not is_denied(address)


def test_no_range_begins_at_zero_of_ipv6() -> None:
    # coturn 4.6 compares addresses of both families, and finds every IPv4 one in such a range.
    assert all(low != ip_address("::") for low, _ in DENIED)
