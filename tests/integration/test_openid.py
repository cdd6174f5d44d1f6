"""Whose OpenID token it is: asked of partners over real TLS, who may lie, hang or lead astray."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
from aiohttp import web

import appservice.openid
from appservice.federation import ANSWER_MAX_BYTES, Homeservers
from appservice.openid import OpenId
from console.synapse import Synapse
from fajma.config import Federation, Homeserver
from fajma.errors import AccessError, UnavailableError
from fajma.store import Records
from tests.partner import TOKEN, Addresses, Asked, Handler, NameServer, PartnerHomeserver

USERINFO = "/_matrix/federation/v1/openid/userinfo"
LINK = "127.0.0.1/32"
"""As if the partner were reached by a link between hospitals; the rest of loopback is not."""


def homeserver_of(url: str, server_name: str = "clinic.test") -> Homeserver:
    nowhere = Path("nowhere")
    return Homeserver(
        url=url,
        server_name=server_name,
        as_token_file=nowhere,
        hs_token_file=nowhere,
        admin_password_file=nowhere,
    )


@dataclass
class World:
    """Our check of tokens, a partner, and the ways to him."""

    openid: OpenId
    partner: PartnerHomeserver
    addresses: Addresses
    names: NameServer
    records: Records
    said: list[dict[str, Any]] = field(default_factory=list)

    async def who(self, server_name: str = "partner.test", token: str = TOKEN) -> str:
        return await self.openid.who(token, server_name)

    async def refusal(self, server_name: str = "partner.test", token: str = TOKEN) -> str:
        with pytest.raises(AccessError) as caught:
            await self.openid.who(token, server_name)
        assert TOKEN not in str(caught.value)
        return caught.value.code

    def lead(self, host: str, port: int, *, to: str | None = None, real: int | None = None) -> None:
        way = (to or self.partner.address, real or self.partner.port)
        self.addresses.leads.setdefault((host, port), []).append(way)

    @property
    def asked(self) -> list[str]:
        return [one.path for one in self.partner.asked]

    async def audited(self) -> list[tuple[str, str]]:
        entries = await self.records.audit.latest()
        return [
            (one.subject, one.detail["code"]) for one in entries if one.action == "openid.refused"
        ]


PARTNERS = ["partner.test", "127.0.0.1", "other.test", "partner.test:8449"]


@asynccontextmanager
async def entered(
    records: Records, directory: Path, monkeypatch: pytest.MonkeyPatch, link: str = LINK
) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        partner = PartnerHomeserver(
            directory, "partner.test", "matrix.partner.test", "127.0.0.1", "127.0.0.2"
        )
        monkeypatch.setenv("SSL_CERT_FILE", str(partner.ca_file))
        await stack.enter_async_context(partner)
        names = NameServer()
        services = await stack.enter_async_context(names)
        addresses = Addresses()
        networks = [IPv4Network(link)]
        homeservers = Homeservers(networks, addresses=addresses, services=services)
        partners = [*PARTNERS, f"127.0.0.1:{partner.port}", f"127.0.0.2:{partner.port}"]
        openid = OpenId(
            homeserver_of("http://127.0.0.1:1"),
            Federation(partners=partners, private_networks=networks),
            records,
            homeservers,
        )
        yield World(openid, partner, addresses, names, records)


@pytest.fixture
async def world(
    sqlite_records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    async with entered(sqlite_records, tmp_path / "pki", monkeypatch) as world:
        yield world


@pytest.fixture
def reachable(world: World) -> World:
    """The partner answers where nothing else is said: at the port of federation."""
    world.lead("partner.test", 8448)
    return world


@pytest.fixture(autouse=True)
def no_token_in_any_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    with structlog.testing.capture_logs() as said:
        yield
    assert TOKEN not in caplog.text
    assert TOKEN not in repr(said)


# --- where a homeserver is, step by step ---------------------------------------------------------


async def test_step_1_an_address_is_asked_itself(world: World) -> None:
    name = f"127.0.0.1:{world.partner.port}"

    async def speaks(_: web.Request) -> web.Response:
        return web.json_response({"sub": f"@awa:{name}"})

    world.partner.userinfo = speaks
    assert await world.who(name) == f"@awa:{name}"
    assert world.partner.asked == [Asked(USERINFO, name, None)]


async def test_step_2_a_name_with_a_port_is_asked_there_without_well_known(world: World) -> None:
    async def speaks(_: web.Request) -> web.Response:
        return web.json_response({"sub": "@awa:partner.test:8449"})

    world.partner.userinfo = speaks
    world.lead("partner.test", 8449)
    assert await world.who("partner.test:8449") == "@awa:partner.test:8449"
    assert world.partner.asked == [Asked(USERINFO, "partner.test:8449", "partner.test")]
    assert world.names.asked == []


def delegating(target: str) -> Handler:
    async def well_known(_: web.Request) -> web.Response:
        return web.json_response({"m.server": target})

    return well_known


async def test_step_3_1_well_known_may_name_an_address(world: World) -> None:
    world.lead("partner.test", 443)
    target = f"127.0.0.1:{world.partner.port}"
    world.partner.well_known = delegating(target)
    assert await world.who() == "@awa:partner.test"
    assert world.partner.asked == [
        Asked("/.well-known/matrix/server", "partner.test", "partner.test"),
        Asked(USERINFO, target, None),
    ]


async def test_step_3_2_well_known_may_name_a_name_with_a_port(world: World) -> None:
    world.lead("partner.test", 443)
    world.lead("matrix.partner.test", 444)
    world.partner.well_known = delegating("matrix.partner.test:444")
    assert await world.who() == "@awa:partner.test"
    assert world.partner.asked[1] == Asked(
        USERINFO, "matrix.partner.test:444", "matrix.partner.test"
    )
    assert world.names.asked == []


@pytest.mark.parametrize("service", ["_matrix-fed._tcp", "_matrix._tcp"])
async def test_steps_3_3_and_3_4_a_delegate_without_port_is_found_by_its_srv_record(
    world: World, service: str
) -> None:
    world.lead("partner.test", 443)
    world.lead("host-7.example", 9000)
    world.names.records[f"{service}.matrix.partner.test"] = ["10 5 9000 host-7.example."]
    world.partner.well_known = delegating("matrix.partner.test")
    assert await world.who() == "@awa:partner.test"
    # The record, which anybody could forge, names a place; the certificate is the delegate's.
    assert world.partner.asked[1] == Asked(USERINFO, "matrix.partner.test", "matrix.partner.test")


async def test_step_3_5_a_delegate_without_record_is_asked_at_the_port_of_federation(
    world: World,
) -> None:
    world.lead("partner.test", 443)
    world.lead("matrix.partner.test", 8448)
    world.partner.well_known = delegating("matrix.partner.test")
    assert await world.who() == "@awa:partner.test"
    assert world.partner.asked[1] == Asked(USERINFO, "matrix.partner.test", "matrix.partner.test")


@pytest.mark.parametrize("service", ["_matrix-fed._tcp", "_matrix._tcp"])
async def test_steps_4_and_5_without_well_known_the_srv_record_of_the_name_counts(
    world: World, service: str
) -> None:
    world.lead("host-7.example", 9000)
    world.names.records[f"{service}.partner.test"] = ["10 5 9000 host-7.example."]
    assert await world.who() == "@awa:partner.test"
    assert world.partner.asked == [Asked(USERINFO, "partner.test", "partner.test")]


async def test_step_6_without_any_hint_the_port_of_federation_is_tried(reachable: World) -> None:
    assert await reachable.who() == "@awa:partner.test"
    assert reachable.partner.asked == [Asked(USERINFO, "partner.test", "partner.test")]
    assert reachable.names.asked == ["_matrix-fed._tcp.partner.test", "_matrix._tcp.partner.test"]


async def test_of_several_records_the_next_is_tried_when_one_does_not_answer(world: World) -> None:
    world.lead("host-7.example", 9000)
    world.names.records["_matrix-fed._tcp.partner.test"] = [
        "20 5 9000 host-7.example.",
        "10 5 9000 gone.example.",
    ]
    assert await world.who() == "@awa:partner.test"


async def page(_: web.Request) -> web.Response:
    """A web site that answers everything with its first page."""
    return web.Response(text="<html>" + "hospital " * ANSWER_MAX_BYTES, content_type="text/html")


async def in_circles(request: web.Request) -> web.Response:
    raise web.HTTPFound(request.path)


async def to_clear_text(_: web.Request) -> web.Response:
    raise web.HTTPFound("http://partner.test/.well-known/matrix/server")


async def to_nonsense(_: web.Request) -> web.Response:
    return web.Response(status=302, headers={"Location": "https://[nonsense"})


async def deep(_: web.Request) -> web.Response:
    return web.Response(text="[" * 60_000)


async def number(_: web.Request) -> web.Response:
    return web.json_response({"m.server": 8448})


@pytest.mark.parametrize(
    "well_known", [page, in_circles, to_clear_text, to_nonsense, deep, number, delegating("a b")]
)
async def test_a_well_known_file_that_is_no_good_counts_as_absent(
    reachable: World, well_known: Handler
) -> None:
    reachable.lead("partner.test", 443)
    reachable.partner.well_known = well_known
    assert await reachable.who() == "@awa:partner.test"


async def test_a_well_known_file_may_be_elsewhere(world: World) -> None:
    async def well_known(request: web.Request) -> web.Response:
        if request.host == "partner.test":
            raise web.HTTPMovedPermanently("https://matrix.partner.test/there")
        return web.json_response({"m.server": "matrix.partner.test:444"})

    world.partner.well_known = well_known
    world.lead("partner.test", 443)
    world.lead("matrix.partner.test", 443)
    world.lead("matrix.partner.test", 444)
    assert await world.who() == "@awa:partner.test"


# --- not being led astray ------------------------------------------------------------------------


async def test_a_partner_in_a_private_network_is_not_even_connected_to(world: World) -> None:
    world.lead("partner.test", 8448, to="127.0.0.2")
    assert await world.refusal() == "server_in_private_network"
    assert await world.audited() == [("partner.test", "server_in_private_network")]


async def test_an_address_as_name_is_judged_too(world: World) -> None:
    assert await world.refusal(f"127.0.0.2:{world.partner.port}") == "server_in_private_network"
    assert world.asked == []


async def test_a_redirect_into_a_private_network_is_refused(world: World, tmp_path: Path) -> None:
    async def well_known(_: web.Request) -> web.Response:
        raise web.HTTPFound(f"https://127.0.0.2:{inside.port}/.well-known/matrix/server")

    world.partner.well_known = well_known
    world.lead("partner.test", 443)
    async with PartnerHomeserver(tmp_path / "pki", "127.0.0.2", address="127.0.0.2") as inside:
        assert await world.refusal() == "server_in_private_network"
        assert inside.asked == []
    assert await world.audited() == [("partner.test", "server_in_private_network")]


@pytest.mark.parametrize("target", ["127.0.0.2", "inside.test:444", "inside.test"])
async def test_a_delegate_in_a_private_network_is_refused(world: World, target: str) -> None:
    world.partner.well_known = delegating(target)
    world.lead("partner.test", 443)
    for port in (444, 8448):
        world.lead("inside.test", port, to="127.0.0.2")
    assert await world.refusal() == "server_in_private_network"


async def test_a_record_that_leads_into_a_private_network_is_refused(world: World) -> None:
    world.names.records["_matrix-fed._tcp.partner.test"] = ["10 5 9000 inside.test."]
    world.lead("inside.test", 9000, to="127.0.0.2")
    assert await world.refusal() == "server_in_private_network"


async def test_a_name_that_leads_elsewhere_at_the_second_look_is_refused(world: World) -> None:
    # DNS rebinding: good for the first connection, another address for the next.
    world.partner.well_known = delegating("partner.test:443")
    world.lead("partner.test", 443)
    world.lead("partner.test", 443, to="127.0.0.2")
    assert await world.refusal() == "server_in_private_network"
    assert world.asked == ["/.well-known/matrix/server"]


@pytest.mark.parametrize("host", ["localhost", "127.1", "2130706433", "0x7f.1", "017700000001"])
async def test_no_way_to_write_this_machine_gets_through(host: str) -> None:
    # The system's own look-up, which reads all of these as 127.0.0.1.
    came: list[str] = []

    async def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(host)
        writer.close()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(AccessError) as caught:
            await Homeservers([]).get(f"{host}:{port}", USERINFO, {"access_token": TOKEN})
        assert caught.value.code in {"server_in_private_network", "server_unreachable"}
        assert came == []
        with pytest.raises(AccessError):
            await Homeservers([IPv4Network(LINK)]).get(f"localhost:{port}", USERINFO, {})
        assert came == [host]  # it would have come


async def test_userinfo_never_follows_a_redirect(reachable: World) -> None:
    async def elsewhere(_: web.Request) -> web.Response:
        raise web.HTTPFound(f"https://127.0.0.1:{reachable.partner.port}/token-here")

    reachable.partner.userinfo = elsewhere
    assert await reachable.refusal() == "server_redirects"
    assert reachable.asked == [USERINFO]
    assert await reachable.audited() == [("partner.test", "server_redirects")]


async def test_a_certificate_of_another_name_is_refused(world: World) -> None:
    world.lead("other.test", 8448)
    assert await world.refusal("other.test") == "server_certificate_wrong"
    assert world.asked == []


async def test_a_record_cannot_bring_in_another_certificate(world: World) -> None:
    world.names.records["_matrix-fed._tcp.other.test"] = ["10 5 9000 partner.test."]
    world.lead("partner.test", 9000)
    assert await world.refusal("other.test") == "server_certificate_wrong"


async def test_a_certificate_of_an_unknown_authority_is_refused(
    reachable: World, tmp_path: Path
) -> None:
    async with PartnerHomeserver(tmp_path / "strange", "partner.test") as strange:
        reachable.addresses.leads["partner.test", 8448] = [("127.0.0.1", strange.port)]
        assert await reachable.refusal() == "server_certificate_wrong"
        assert strange.asked == []


# --- what it answers -----------------------------------------------------------------------------


def saying(content: object, **headers: str) -> Handler:
    async def userinfo(_: web.Request) -> web.Response:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return web.Response(body=body, headers=headers)

    return userinfo


@pytest.mark.parametrize(
    "sub",
    [
        "@awa:clinic.test",
        "@awa:other.test",
        "@awa:partner.test.evil.test",
        "@awa:evil.test:partner.test",
        "@awa:partner.test:8448",
        "@awa:PARTNER.test",
        "@awa:pаrtner.test",  # noqa: RUF001 - an a is Cyrillic
    ],
)
async def test_a_homeserver_speaks_for_its_own_people_only(reachable: World, sub: str) -> None:
    reachable.partner.userinfo = saying({"sub": sub})
    assert await reachable.refusal() == "openid_foreign_user"
    assert await reachable.audited() == [("partner.test", "openid_foreign_user")]


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        None,
        {"sub": None},
        {"sub": 7},
        {"sub": ["@awa:partner.test"]},
        {"sub": ""},
        {"sub": "awa"},
        {"sub": "@:partner.test"},
        {"sub": "@Awa:partner.test"},
        {"sub": "@аwa:partner.test"},  # noqa: RUF001 - the first letter is Cyrillic
        {"sub": "@awa\n:partner.test"},
        {"sub": "@awa\u0000:partner.test"},
        {"sub": f"@{'a' * 250}:partner.test"},
        b"\xff\xfe",
        b"[" * 60_000,
        gzip.compress(b'{"sub": "@awa:partner.test"}', mtime=0),  # the same test in every process
    ],
)
async def test_an_answer_that_names_nobody_is_refused(reachable: World, content: object) -> None:
    reachable.partner.userinfo = saying(content)
    assert await reachable.refusal() == "openid_answer_odd"
    assert await reachable.audited() == [("partner.test", "openid_answer_odd")]


async def test_an_answer_packed_without_being_asked_for_is_not_unpacked(reachable: World) -> None:
    bomb = gzip.compress(b" " * 10_000_000 + b'{"sub": "@awa:partner.test"}')
    reachable.partner.userinfo = saying(bomb, **{"Content-Encoding": "gzip"})
    assert await reachable.refusal() == "openid_answer_odd"


async def test_an_answer_without_end_is_cut_off(reachable: World) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" " * 4096)

    reachable.partner.userinfo = endless
    assert await reachable.refusal() == "server_answer_too_large"
    assert await reachable.audited() == [("partner.test", "server_answer_too_large")]


async def test_a_homeserver_that_hangs_is_given_up(
    reachable: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hangs(_: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    reachable.partner.userinfo = hangs
    monkeypatch.setattr(appservice.openid, "WHOLE_TIMEOUT_S", 0.3)
    async with asyncio.timeout(5):
        assert await reachable.refusal() == "server_unreachable"


async def test_a_homeserver_that_is_away_is_a_refusal_and_nothing_suspicious(world: World) -> None:
    assert await world.refusal() == "server_unreachable"
    assert await world.audited() == []


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
async def test_a_homeserver_that_cannot_say_says_nobody(reachable: World, status: int) -> None:
    async def cannot(_: web.Request) -> web.Response:
        return web.json_response({"sub": "@awa:partner.test"}, status=status)

    reachable.partner.userinfo = cannot
    assert await reachable.refusal() == "server_refuses"


async def test_a_token_that_its_homeserver_does_not_know_is_refused(reachable: World) -> None:
    assert await reachable.refusal(token="expired") == "openid_token_refused"
    assert await reachable.audited() == []


@pytest.mark.parametrize("token", ["", "a b", "a\r\nHost: evil.test", "é", "a" * 513])
async def test_what_cannot_be_a_token_reaches_nobody(reachable: World, token: str) -> None:
    assert await reachable.refusal(token=token) == "openid_token_malformed"
    assert reachable.asked == []


async def test_a_token_arrives_as_it_is(reachable: World) -> None:
    odd = "a+b/c%41&sub=x#="

    async def userinfo(request: web.Request) -> web.Response:
        assert request.query["access_token"] == odd
        return web.json_response({"sub": "@awa:partner.test"})

    reachable.partner.userinfo = userinfo
    assert await reachable.who(token=odd) == "@awa:partner.test"


# --- whom we ask ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stranger.test", "PARTNER.test", "", "partner.test/", "a b"])
async def test_nobody_is_asked_who_is_not_a_partner(reachable: World, name: str) -> None:
    reachable.lead("stranger.test", 8448)
    assert await reachable.refusal(name) == "not_a_partner"
    assert reachable.asked == []
    assert reachable.names.asked == []


async def test_the_same_suspicion_is_audited_once_an_hour(reachable: World) -> None:
    reachable.partner.userinfo = saying({"sub": "@awa:clinic.test"})
    for _ in range(3):
        await reachable.refusal()
    assert await reachable.audited() == [("partner.test", "openid_foreign_user")]


async def test_the_same_check_is_kept_over_each_database(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with entered(records, tmp_path / "pki", monkeypatch) as world:
        world.lead("partner.test", 8448)
        assert await world.who() == "@awa:partner.test"
        world.partner.userinfo = saying({"sub": "@awa:clinic.test"})
        assert await world.refusal() == "openid_foreign_user"
        assert await world.audited() == [("partner.test", "openid_foreign_user")]


async def test_without_partners_only_our_own_people_are_known(sqlite_records: Records) -> None:
    openid = OpenId(homeserver_of("http://127.0.0.1:1"), Federation(), sqlite_records)
    with pytest.raises(AccessError) as caught:
        await openid.who(TOKEN, "partner.test")
    assert caught.value.code == "not_a_partner"


# --- our own homeserver --------------------------------------------------------------------------


async def openid_token(homeserver: Synapse, localpart: str) -> dict[str, Any]:
    mxid = await homeserver.register(localpart, "scratch-password")
    token = await homeserver.login(localpart, "scratch-password")
    url = f"{homeserver.base_url}/_matrix/client/v3/user/{mxid}/openid/request_token"
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession(raise_for_status=True, headers=headers) as session,
        session.post(url, json={}) as response,
    ):
        content: dict[str, Any] = await response.json()
        return content


async def test_our_own_people_are_asked_of_our_own_synapse(
    homeserver: Synapse, sqlite_records: Records
) -> None:
    openid = OpenId(homeserver_of(homeserver.base_url), Federation(), sqlite_records)
    given = await openid_token(homeserver, "dr.openid")
    assert await openid.who(given["access_token"], given["matrix_server_name"]) == (
        "@dr.openid:clinic.test"
    )
    with pytest.raises(AccessError) as caught:
        await openid.who("forged", "clinic.test")
    assert caught.value.code == "openid_token_refused"


async def test_a_partners_people_are_asked_of_the_partners_synapse(
    homeserver: Synapse,
    sqlite_records: Records,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As another hospital sees ``clinic.test``, which stands behind its web server."""

    async def passed_on(request: web.Request) -> web.Response:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{homeserver.base_url}{USERINFO}", params=request.query) as answer,
        ):
            return web.Response(
                status=answer.status, body=await answer.read(), content_type=answer.content_type
            )

    async with (
        PartnerHomeserver(tmp_path / "pki", "clinic.test") as front,
        NameServer() as services,
    ):
        front.userinfo = passed_on
        monkeypatch.setenv("SSL_CERT_FILE", str(front.ca_file))
        addresses = Addresses()
        addresses.leads["clinic.test", 8448] = [("127.0.0.1", front.port)]
        networks = [IPv4Network(LINK)]
        openid = OpenId(
            homeserver_of("http://127.0.0.1:1", "ouakam.test"),
            Federation(partners=["clinic.test"], private_networks=networks),
            sqlite_records,
            Homeservers(networks, addresses=addresses, services=services),
        )
        given = await openid_token(homeserver, "dr.partner")
        assert await openid.who(given["access_token"], "clinic.test") == "@dr.partner:clinic.test"
        with pytest.raises(AccessError) as caught:
            await openid.who("forged", "clinic.test")
        assert caught.value.code == "openid_token_refused"


async def test_our_own_homeserver_that_is_away_is_no_refusal(sqlite_records: Records) -> None:
    openid = OpenId(homeserver_of("http://127.0.0.1:1"), Federation(), sqlite_records)
    with pytest.raises(UnavailableError) as caught:
        await openid.who(TOKEN, "clinic.test")
    assert caught.value.code == "homeserver_unavailable"
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "code"), [(404, "openid_not_served"), (502, "homeserver_unavailable")]
)
async def test_our_own_homeserver_that_cannot_check_is_the_operators_to_mend(
    sqlite_records: Records, status: int, code: str
) -> None:
    async def cannot(_: web.Request) -> web.Response:
        return web.Response(status=status)

    app = web.Application()
    app.router.add_get(USERINFO, cannot)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        openid = OpenId(homeserver_of(url), Federation(), sqlite_records)
        with pytest.raises(UnavailableError) as caught:
            await openid.who(TOKEN, "clinic.test")
    finally:
        await runner.cleanup()
    assert caught.value.code == code
