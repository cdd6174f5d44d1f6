"""Asking another hospital's homeserver something: where it is, and not being led astray.

Who it is stands in its certificate; where it is says the Matrix specification (server-server API
1.16, "Resolving server names"). A server name, a DNS record or a redirect can name any address:
whether we go there is judged when the socket is opened, by the address it is opened to.
"""

from __future__ import annotations

import errno
import json
import re
import socket
import ssl
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Final

import aiohttp
import dns.asyncresolver
import dns.exception
import dns.name
from aiohttp.abc import AbstractResolver
from dns.rdtypes.IN.SRV import SRV
from yarl import URL

from fajma.errors import AccessError

Network = IPv4Network | IPv6Network

FEDERATION_PORT: Final = 8448
ANSWER_MAX_BYTES: Final = 64 * 1024
"""An answer about one user has 100 bytes; Synapse reads 50 KiB of a ``.well-known`` file."""

REDIRECTS_MAX: Final = 5
"""Of a ``.well-known`` file; nothing else may redirect."""

SRV_SERVICES: Final = ("_matrix-fed._tcp", "_matrix._tcp")
SRV_TARGETS_MAX: Final = 4
DNS_TIMEOUT_S: Final = 2.0
_TIMEOUT: Final = aiohttp.ClientTimeout(total=6, sock_connect=4)

_SERVER_NAME: Final = re.compile(
    r"(?P<host>[0-9A-Za-z.-]{1,230}|\[[0-9A-Fa-f:.]{2,45}\])(?::(?P<port>[0-9]{1,5}))?"
)
_LABEL: Final = re.compile(r"[0-9A-Za-z-]{1,63}")

_NAT64: Final = IPv6Network("64:ff9b::/96")
"""RFC 6052: the last four bytes are the IPv4 address that is reached."""

_NEVER: Final[tuple[Network, ...]] = (
    IPv6Network("64:ff9b:1::/48"),  # RFC 8215, a NAT64 of one's own
    IPv4Network("192.0.0.0/24"),  # RFC 6890
    IPv4Network("192.88.99.0/24"),  # RFC 7526
)
"""What Python 3.11 takes for global and is not."""


@dataclass(frozen=True, slots=True)
class ServerName:
    """A homeserver's name, taken apart.

    Attributes:
        host: DNS name, or IP address without brackets.
        port: 1 to 65535, if the name has one.
        is_address: whether the host is an IP address.
    """

    host: str
    port: int | None
    is_address: bool

    @classmethod
    def parse(cls, name: str) -> ServerName | None:
        """Read it by the specification's grammar (appendix "Server Name"); ``None`` if it is not.

        Args:
            name: e.g. ``matrix.clinic.example``, ``matrix.clinic.example:8449``, ``[2a00::1]``.
        """
        found = _SERVER_NAME.fullmatch(name)
        if found is None:
            return None
        host = found["host"]
        port = int(found["port"]) if found["port"] else None
        if port is not None and not 1 <= port <= 65535:  # noqa: PLR2004
            return None
        is_bracketed = host.startswith("[")
        host = host.strip("[]")
        try:
            is_address = (ip_address(host).version == 6) is is_bracketed  # noqa: PLR2004
        except ValueError:
            is_address = False
            if not all(_LABEL.fullmatch(label) for label in host.split(".")):
                return None
        if is_bracketed and not is_address:
            return None
        return cls(host, port, is_address)

    @property
    def header(self) -> str:
        """As it stands in ``Host``, without a port that was not given."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a request goes, and what must be there.

    Attributes:
        host: DNS name or IP address to connect to.
        port: 1 to 65535.
        certified: DNS name or IP address for which the certificate must be valid.
        header: ``Host``.
    """

    host: str
    port: int
    certified: str
    header: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Attributes:
        status: of HTTP.
        body: at most ``ANSWER_MAX_BYTES``.
    """

    status: int
    body: bytes

    @property
    def content(self) -> dict[str, Any] | None:
        """The JSON object that the body is; ``None`` if it is none."""
        try:
            content = json.loads(self.body)
        except (ValueError, RecursionError):
            return None
        return content if isinstance(content, dict) else None


def is_allowed(address: str, private_networks: Collection[Network]) -> bool:
    """Whether a partner's homeserver may be at an address: a public one, or on a link of ours.

    An address that only carries another one (IPv4-mapped, NAT64, 6to4) is judged by that.

    Args:
        address: as a socket takes it, an IPv6 one perhaps with its zone (``fe80::1%eth0``).
        private_networks: where else than at public addresses.
    """
    outer = ip_address(address.partition("%")[0])
    inner = _carried(outer)
    if any(inner in network or outer in network for network in private_networks):
        return True
    return (
        inner.is_global
        and not (inner.is_multicast or inner.is_reserved or inner.is_unspecified)
        and not (isinstance(inner, IPv6Address) and inner.is_site_local)
        and not any(inner in network for network in _NEVER)
    )


def _carried(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(address.packed[-4:])
    return address.ipv4_mapped or address.sixtofour or address


class _Gate:
    """Opens the sockets of one request, and no other than it may."""

    def __init__(self, private_networks: Collection[Network]) -> None:
        self._private_networks = private_networks
        self.has_refused = False

    def open(self, info: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, address = info
        if not is_allowed(str(address[0]), self._private_networks):
            self.has_refused = True
            raise PermissionError(errno.EACCES, "not an address for a partner's homeserver")
        return socket.socket(family, kind, protocol)


class Homeservers:
    """Asks homeservers by their server names. For any event loop; it keeps no connection.

    Nothing of an answer is kept either: it is asked for seldom, when somebody logs in or joins a
    call.

    Args:
        private_networks: where a partner's homeserver may be beside public addresses.
        addresses: looks up the addresses of names; the system's way (hosts file, then DNS) if not
            given.
        services: looks up SRV records; by the servers of ``/etc/resolv.conf`` if not given.
    """

    def __init__(
        self,
        private_networks: Collection[Network],
        *,
        addresses: AbstractResolver | None = None,
        services: dns.asyncresolver.Resolver | None = None,
    ) -> None:
        self._private_networks = tuple(private_networks)
        self._addresses = addresses
        self._services = services
        self._tls = ssl.create_default_context()

    async def get(self, server_name: str, path: str, query: Mapping[str, str]) -> Answer:
        """Ask a homeserver.

        Args:
            server_name: whose.
            path: of the server-server API, with its first slash.
            query: e.g. a token; it is in no error and in no log.

        Raises:
            AccessError: ``server_name_malformed``, ``server_in_private_network``,
                ``server_certificate_wrong``, ``server_unreachable``, ``server_redirects``,
                ``server_answer_too_large``.
        """
        name = ServerName.parse(server_name)
        if name is None:
            raise AccessError("this is not a homeserver's name", code="server_name_malformed")
        gate = _Gate(self._private_networks)
        connector = aiohttp.TCPConnector(
            resolver=self._addresses,
            ssl=self._tls,
            socket_factory=gate.open,
            use_dns_cache=False,
            force_close=True,
        )
        async with aiohttp.ClientSession(
            connector=connector,
            timeout=_TIMEOUT,
            # So that what is counted is what arrives.
            auto_decompress=False,
            headers={"Accept-Encoding": "identity", "Accept": "application/json"},
            cookie_jar=aiohttp.DummyCookieJar(),
        ) as session:
            try:
                return await self._ask(session, gate, name, path, query)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise _refusal(gate, error) from None  # the error may quote the address with token

    async def _ask(
        self,
        session: aiohttp.ClientSession,
        gate: _Gate,
        name: ServerName,
        path: str,
        query: Mapping[str, str],
    ) -> Answer:
        *others, last = await self._destinations(session, gate, name)
        for destination in others:
            try:
                return await _get(session, destination, path, query)
            except aiohttp.ClientConnectorError:
                continue  # the next record is for this
        return await _get(session, last, path, query)

    async def _destinations(
        self, session: aiohttp.ClientSession, gate: _Gate, name: ServerName
    ) -> list[Destination]:
        """Where the homeserver may be, in the order of trying; the steps are the specification's.

        Returns:
            At least one.
        """
        if not name.is_address and name.port is None:  # step 3; else steps 1 and 2
            name = await self._delegate(session, gate, name) or name
        if not name.is_address and name.port is None:  # steps 3.3, 3.4, 4, 5
            targets = await self._service(name.host)
            if targets:
                return [
                    Destination(host, port, certified=name.host, header=name.header)
                    for host, port in targets[:SRV_TARGETS_MAX]
                ]
        port = FEDERATION_PORT if name.port is None else name.port
        return [Destination(name.host, port, certified=name.host, header=name.header)]

    async def _delegate(
        self, session: aiohttp.ClientSession, gate: _Gate, name: ServerName
    ) -> ServerName | None:
        """What the ``.well-known`` file names; ``None`` without a good one (not an error)."""
        url = URL.build(scheme="https", host=name.host, path="/.well-known/matrix/server")
        try:
            for _ in range(REDIRECTS_MAX + 1):
                async with session.get(url, allow_redirects=False) as response:
                    location = response.headers.get("Location")
                    if _is_redirect(response) and location is not None:
                        url = url.join(URL(location))
                        if url.scheme != "https" or url.host is None:
                            return None
                        continue
                    answer = await bounded(response)
                break
            else:
                return None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            if gate.has_refused:
                raise _refusal(gate, error) from None
            return None
        except AccessError:  # too large: a web site that answers everything with its first page
            return None
        content = answer.content if answer.status == HTTPStatus.OK else None
        delegate = (content or {}).get("m.server")
        return ServerName.parse(delegate) if isinstance(delegate, str) else None

    async def _service(self, host: str) -> list[tuple[str, int]]:
        """Names and ports of the first SRV records that exist, in the order of their priority.

        Without an answer of DNS the port of federation is tried, as without a record: the
        certificate that is asked for is the same.
        """
        for service in SRV_SERVICES:
            try:
                resolver = self._services or dns.asyncresolver.Resolver()
                found = await resolver.resolve(
                    f"{service}.{host}.", "SRV", lifetime=DNS_TIMEOUT_S, search=False
                )
            except dns.exception.DNSException:
                continue
            if found.rrset is not None:
                return [
                    (record.target.to_text(omit_final_dot=True), record.port)
                    for record in found.rrset.processing_order()
                    if isinstance(record, SRV) and record.target != dns.name.root
                ]
        return []


async def _get(
    session: aiohttp.ClientSession, destination: Destination, path: str, query: Mapping[str, str]
) -> Answer:
    url = URL.build(
        scheme="https", host=destination.host, port=destination.port, path=path, query=query
    )
    async with session.get(
        url,
        allow_redirects=False,
        headers={"Host": destination.header},
        server_hostname=destination.certified,
    ) as response:
        if _is_redirect(response):
            raise AccessError(
                "the partner's homeserver sends us elsewhere", code="server_redirects"
            )
        return await bounded(response)


def _is_redirect(response: aiohttp.ClientResponse) -> bool:
    return HTTPStatus.MULTIPLE_CHOICES <= response.status < HTTPStatus.BAD_REQUEST


async def bounded(response: aiohttp.ClientResponse) -> Answer:
    """Read an answer, and no more of it than anybody asked for.

    Raises:
        AccessError: ``server_answer_too_large``.
    """
    body = b""
    async for part in response.content.iter_any():
        body += part
        if len(body) > ANSWER_MAX_BYTES:
            raise AccessError(
                "the homeserver answers more than anybody asked for", code="server_answer_too_large"
            )
    return Answer(response.status, body)


def _refusal(gate: _Gate, error: Exception) -> AccessError:
    if gate.has_refused:
        return AccessError(
            "the partner's homeserver is said to be in a private network: if it is, name the"
            " network in federation.private_networks",
            code="server_in_private_network",
        )
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
        return AccessError(
            "the partner's homeserver shows no certificate for its name that we trust",
            code="server_certificate_wrong",
        )
    return AccessError("the partner's homeserver does not answer", code="server_unreachable")
