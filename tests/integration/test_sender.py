"""What a sender makes of the homeserver's answers; the homeserver is a few lines of aiohttp."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from mautrix.client.state_store.asyncpg import PgStateStore
from mautrix.crypto import PgCryptoStore
from mautrix.errors import MatrixConnectionError, MatrixUnknownRequestError, MForbidden

from appservice import sender as module
from appservice.sender import SealedState, Sender
from appservice.state import RoomState
from fajma.errors import BusyError
from fajma.store import Records

ROOM = "!room:clinic.test"
SEALED = SealedState(ROOM, "com.fajma.vitals:9f", {"ciphertext": "mine", "session_id": "s"})
TAKEN: dict[str, Any] = {"event_id": "$event"}


@dataclass
class Homeserver:
    """Answers every request as the test says, and remembers what came."""

    status: int = 200
    body: Any = field(default_factory=lambda: TAKEN)
    headers: Mapping[str, str] = field(default_factory=dict)
    silent: bool = False
    seen: list[tuple[str, str, Any]] = field(default_factory=list)
    _over: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        sent = await request.json() if request.method == "PUT" else None
        self.seen.append((request.method, request.path, sent))
        if self.silent:
            await self._over.wait()
        if isinstance(self.body, str):
            return web.Response(status=self.status, text=self.body, headers=self.headers)
        return web.json_response(self.body, status=self.status, headers=self.headers)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            host, port = runner.addresses[0][:2]
            yield f"http://{host}:{port}"
        finally:
            self._over.set()
            await runner.cleanup()


@pytest.fixture
def homeserver() -> Homeserver:
    return Homeserver()


@pytest.fixture
async def sender(
    homeserver: Homeserver, sqlite_records: Records, tmp_path: Path
) -> AsyncIterator[Sender]:
    for table in (PgStateStore.upgrade_table, PgCryptoStore.upgrade_table):
        await table.upgrade(sqlite_records.store.db)

    async def nothing(_: object) -> None:
        return

    async with homeserver.running() as url:
        one = Sender(
            "@fajma-vitals:clinic.test",
            display_name="FAJMA",
            homeserver_url=url,
            as_token="token",
            state=RoomState(sqlite_records.store.db),
            site_key=sqlite_records.site_key,
            recovery_key_file=tmp_path / "recovery-key",
            pins=sqlite_records.pins,
            audience=sqlite_records.audience,
            never_for=(),
            trust_changed=nothing,
            looking=asyncio.Lock(),
        )
        yield one
        await one.stop()


async def test_state_that_was_sealed_is_set_as_it_is(
    homeserver: Homeserver, sender: Sender
) -> None:
    assert await sender.put_state(SEALED) == "$event"
    path = f"/_matrix/client/v3/rooms/{ROOM}/state/m.room.encrypted/com.fajma.vitals:9f"
    assert homeserver.seen == [("PUT", path, SEALED.content)]


@pytest.mark.parametrize(
    ("body", "there"),
    [
        (SEALED.content, True),
        ({**SEALED.content, "ciphertext": "another"}, False),
        ({}, False),
    ],
)
async def test_state_is_there_if_its_ciphertext_is(
    homeserver: Homeserver,
    sender: Sender,
    body: dict[str, Any],
    there: bool,  # noqa: FBT001
) -> None:
    homeserver.body = body
    assert await sender.is_set(SEALED) is there
    assert [method for method, _, _ in homeserver.seen] == ["GET"]


async def test_state_that_no_room_has_is_not_there(homeserver: Homeserver, sender: Sender) -> None:
    homeserver.status, homeserver.body = 404, {"errcode": "M_NOT_FOUND", "error": "no"}
    assert await sender.is_set(SEALED) is False


@pytest.mark.parametrize(
    ("headers", "body", "retry_after_s"),
    [
        ({"Retry-After": "7"}, {"errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": 1}, 7),
        ({}, {"errcode": "M_LIMIT_EXCEEDED", "error": "slow", "retry_after_ms": 2500}, 2.5),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, {"retry_after_ms": 1000}, 1),
        ({}, {"errcode": "M_LIMIT_EXCEEDED"}, None),
        ({}, {"retry_after_ms": None}, None),
        ({}, [], None),
        ({}, "a proxy's page", None),
        ({"Retry-After": "-5"}, {}, None),
        ({"Retry-After": "inf"}, {}, None),
        ({"Retry-After": "nan"}, {}, None),
    ],
)
async def test_an_answer_429_says_how_long_to_wait_if_it_does(
    homeserver: Homeserver,
    sender: Sender,
    headers: dict[str, str],
    body: Any,
    retry_after_s: float | None,
) -> None:
    homeserver.status, homeserver.headers, homeserver.body = 429, headers, body
    for request in (sender.put_state, sender.is_set):
        with pytest.raises(BusyError) as caught:
            await request(SEALED)
        assert caught.value.retry_after_s == retry_after_s


async def test_a_page_of_a_room_is_given_as_the_homeserver_has_it(
    homeserver: Homeserver, sender: Sender
) -> None:
    homeserver.body = {"chunk": [{"event_id": "$1"}]}
    assert await sender.messages(ROOM, {"dir": "b"}) == homeserver.body
    assert homeserver.seen[-1][0] == "GET"
    assert homeserver.seen[-1][1].endswith(f"/rooms/{ROOM}/messages")


async def test_other_refusals_are_mautrix_s(homeserver: Homeserver, sender: Sender) -> None:
    homeserver.status, homeserver.body = 403, {"errcode": "M_FORBIDDEN", "error": "no"}
    with pytest.raises(MForbidden):
        await sender.put_state(SEALED)
    homeserver.status, homeserver.body = 502, "a proxy's page"
    with pytest.raises(MatrixUnknownRequestError):
        await sender.put_state(SEALED)


async def test_a_homeserver_that_is_silent_or_gone_is_not_waited_for_without_end(
    homeserver: Homeserver, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEND_TIMEOUT_S", 0.1)
    homeserver.silent = True
    for request in (sender.put_state, sender.is_set):
        with pytest.raises(TimeoutError):
            await request(SEALED)


async def test_no_homeserver_is_a_connection_error(
    homeserver: Homeserver, sqlite_records: Records, sender: Sender
) -> None:
    del homeserver, sqlite_records
    sender._api.base_url = sender._api.base_url.with_port(1)
    with pytest.raises(MatrixConnectionError):
        await sender.put_state(SEALED)
