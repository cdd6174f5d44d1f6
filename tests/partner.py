"""A partner hospital's homeserver, honest or not, over real TLS; and the DNS that leads to it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import dns.asyncresolver
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from console.pki import ensure_ca, issue_server

TOKEN = "openid-token-of-awa"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it arrived.

    Attributes:
        path: with nothing of the query.
        host: the header.
        tls_name: the name that the client wants to see certified; ``None`` for an address.
    """

    path: str
    host: str
    tls_name: str | None


async def knows_awa(request: web.Request) -> web.StreamResponse:
    """The honest answer of ``partner.test`` about its only token."""
    if request.query.get("access_token") != TOKEN:
        return web.json_response({"errcode": "M_UNKNOWN_TOKEN", "error": "no"}, status=401)
    return web.json_response({"sub": "@awa:partner.test"})


class PartnerHomeserver:
    """Answers while it is entered.

    Args:
        directory: of its certificate authority, which clients find by ``SSL_CERT_FILE``.
        names: for which its certificate is valid.
        address: of the loopback network, on which it listens.

    Attributes:
        userinfo: answers when it is asked whose a token is.
        well_known: answers when it is asked where the homeserver is.
        asked: what it was asked, in order.
    """

    def __init__(self, directory: Path, *names: str, address: str = "127.0.0.1") -> None:
        self._certificate = issue_server(directory, names)
        self.ca_file = ensure_ca(directory).cert_file
        self.address = address
        self.port = 0
        self.userinfo: Handler = knows_awa
        self.well_known: Handler = nothing_there
        self.asked: list[Asked] = []
        self._tls_names: dict[ssl.SSLObject | ssl.SSLSocket, str | None] = {}

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/_matrix/federation/v1/openid/userinfo", self._on_userinfo)
        app.router.add_get("/{path:.*}", self._on_well_known)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(self._certificate.cert_file, self._certificate.key_file)
        tls.sni_callback = lambda connection, name, _: self._tls_names.update({connection: name})
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.address, 0, ssl_context=tls).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _on_userinfo(self, request: web.Request) -> web.StreamResponse:
        self._note(request)
        return await self.userinfo(request)

    async def _on_well_known(self, request: web.Request) -> web.StreamResponse:
        self._note(request)
        return await self.well_known(request)

    def _note(self, request: web.Request) -> None:
        assert request.transport is not None
        connection = request.transport.get_extra_info("ssl_object")
        self.asked.append(Asked(request.path, request.host, self._tls_names.get(connection)))


async def nothing_there(_: web.Request) -> web.StreamResponse:
    return web.Response(status=404)


class Addresses(AbstractResolver):
    """Where names lead, by name and port, so that nobody needs the ports of a real server.

    What stands there is given out in turn; the last one stays.
    """

    def __init__(self) -> None:
        self.leads: dict[tuple[str, int], list[tuple[str, int]]] = {}

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_INET,  # noqa: ARG002 - aiohttp's signature
    ) -> list[ResolveResult]:
        there = self.leads.get((host, port))
        if not there:
            raise OSError(f"no address of {host}")
        address, real_port = there.pop(0) if len(there) > 1 else there[0]
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=real_port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
        ]

    async def close(self) -> None:
        """Nothing is open."""


class NameServer(asyncio.DatagramProtocol):
    """A DNS server for SRV records, on loopback while it is entered."""

    def __init__(self) -> None:
        self.records: dict[str, list[str]] = {}
        """By name without its last dot, what it leads to: ``PRIORITY WEIGHT PORT TARGET.``"""
        self.asked: list[str] = []

    async def __aenter__(self) -> dns.asyncresolver.Resolver:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: self, local_addr=("127.0.0.1", 0)
        )
        self._transport: asyncio.DatagramTransport = transport
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers = ["127.0.0.1"]
        resolver.port = transport.get_extra_info("sockname")[1]
        return resolver

    async def __aexit__(self, *_: object) -> None:
        self._transport.close()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True)
        self.asked.append(name)
        answer = dns.message.make_response(query, recursion_available=True)
        if name in self.records:
            answer.answer.append(
                dns.rrset.from_text_list(question.name, 60, "IN", "SRV", self.records[name])
            )
        else:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        self._transport.sendto(answer.to_wire(), addr)
