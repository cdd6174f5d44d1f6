"""Everything that can go wrong on the way of an alarm, at each call and each statement of it.

A proxy stands between FAJMA and a real homeserver; a tap sits on every statement that a database is
given. A dry run through both names what happens; then each of it can be made to fail.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, Final, Self
from urllib.parse import unquote

import aiohttp
from aiohttp import web
from mautrix.util.async_db.connection import LoggingConnection
from multidict import CIMultiDict

from bots.alerts import bot as bot_module
from console import run as run_module
from fajma.config import Settings
from fajma.store import Hints, Records
from fajma.tasks import end

LOOPBACK = "127.0.0.1"
TIMEOUT_S: Final = 1.0
"""How long the client under test waits for an answer."""

LATE_S: Final = 1.5 * TIMEOUT_S


# --- HTTP -----------------------------------------------------------------------------------------


class Fault(StrEnum):
    """What happens to one HTTP call."""

    CUT = "cut"
    """The connection breaks before the homeserver sees it."""
    ANSWER_CUT = "answer cut"
    """The homeserver does it, and the connection breaks."""
    ERROR = "error"
    """500, and it is not done."""
    BAD_GATEWAY = "bad gateway"
    """It is done, and answered by a proxy's page with status 502."""
    BUSY = "busy"
    """429, and it is not done."""
    NONSENSE = "nonsense"
    """A page with status 200, and it is not done."""
    LATE = "late"
    """It is done, after the client has lost its patience."""


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP call: what it asks for, and how many of the kind came before it."""

    name: str
    number: int

    def __str__(self) -> str:
        return f"{self.name} #{self.number}"


def name_of(method: str, path: str) -> str:
    """What a call asks for, without ids and tokens."""
    words = unquote(path).split("/")[4:]
    kept = [word for word in words if re.fullmatch(r"[a-zA-Z_.]+", word)]
    return " ".join([method, *kept])


class Proxy:
    """Stands on loopback before a homeserver while it is entered."""

    def __init__(self, behind: str) -> None:
        self._behind = behind
        self.url = ""
        self.calls: list[Call] = []
        self._numbers: Counter[str] = Counter()
        self._at: Call | None = None
        self._fault: Fault | None = None
        self.has_failed = False
        self._held: asyncio.Event | None = None
        self._holds_answer = False
        self._released = asyncio.Event()
        self._under_way: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=1 << 24)
        app.router.add_route("*", "/{path:.*}", self._on_request)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, LOOPBACK, 0).start()
        self.url = f"http://{LOOPBACK}:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self._session.close()

    def expect(self, at: Call | None = None, fault: Fault | None = None) -> None:
        """Begin to count anew; one call will fail."""
        self.calls.clear()
        self._numbers.clear()
        self._at, self._fault, self._held = at, fault, None
        self.has_failed = False
        self._released.set()

    def hold(self, at: Call, *, answer: bool) -> asyncio.Event:
        """Begin to count anew; one call will be kept (or its answer): the event says that it is.

        It is let go by ``expect``, when whoever asked should be dead.
        """
        self.expect(at)
        self._held, self._holds_answer = asyncio.Event(), answer
        self._released = asyncio.Event()
        return self._held

    async def settled(self) -> None:
        """Until nothing is under way to the homeserver any more."""
        while self._under_way:
            await asyncio.wait(set(self._under_way))

    async def _on_request(self, request: web.Request) -> web.StreamResponse:
        name = name_of(request.method, request.path)
        self._numbers[name] += 1
        call = Call(name, self._numbers[name])
        self.calls.append(call)
        body = await request.read()
        if call == self._at and self._held is not None:
            self.has_failed = True
            return await self._keep(request, body, self._held)
        task = asyncio.current_task()
        if task is not None and "sync" not in request.path:
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        if call != self._at:
            return await self._answer(request, body)
        self.has_failed = True
        return await self._fail(request, body)

    async def _keep(
        self, request: web.Request, body: bytes, held: asyncio.Event
    ) -> web.StreamResponse:
        released = self._released
        if self._holds_answer:
            await self._forward(request, body)
        held.set()
        await released.wait()
        return _cut(request)

    async def _fail(self, request: web.Request, body: bytes) -> web.StreamResponse:
        fault = self._fault
        if fault is Fault.LATE:
            await asyncio.sleep(LATE_S)
        if fault in {Fault.LATE, Fault.ANSWER_CUT, Fault.BAD_GATEWAY}:
            await self._forward(request, body)
        if fault in {Fault.CUT, Fault.ANSWER_CUT, Fault.LATE}:
            return _cut(request)
        if fault is Fault.BUSY:
            limited = {"errcode": "M_LIMIT_EXCEEDED", "error": "slow down"}
            return web.json_response(limited, status=429, headers={"Retry-After": "0.2"})
        if fault is Fault.ERROR:
            internal = {"errcode": "M_UNKNOWN", "error": "Internal server error"}
            return web.json_response(internal, status=500)
        status = 502 if fault is Fault.BAD_GATEWAY else 200
        return web.Response(text="<html>", content_type="text/html", status=status)

    async def _answer(self, request: web.Request, body: bytes) -> web.Response:
        status, headers, answer = await self._forward(request, body)
        return web.Response(body=answer, status=status, headers=headers)

    async def _forward(
        self, request: web.Request, body: bytes
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Have the homeserver do it."""
        kept = {"authorization", "content-type", "accept-encoding"}
        headers = {name: text for name, text in request.headers.items() if name.lower() in kept}
        async with self._session.request(
            request.method, f"{self._behind}{request.raw_path}", data=body, headers=headers
        ) as answer:
            told = {"content-type", "content-encoding", "retry-after"}
            back = CIMultiDict(
                (name, text) for name, text in answer.headers.items() if name.lower() in told
            )
            return answer.status, back, await answer.read()


def _cut(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


# --- SQL ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement, and how many of the same came before it; a commit names the last one in it."""

    text: str
    number: int

    def __str__(self) -> str:
        return f"{self.text} #{self.number}"


class _Tap:
    """Counts what one process gives its database, and fails once."""

    def __init__(self, at: Statement | None, *, after: bool, deadly: bool) -> None:
        self.seen: list[Statement] = []
        self._numbers: Counter[str] = Counter()
        self._at, self._after, self._deadly = at, after, deadly
        self.failed = asyncio.Event()

    def count(self, text: str) -> Statement:
        self._numbers[text] += 1
        one = Statement(text, self._numbers[text])
        self.seen.append(one)
        return one

    def maybe_fail(self, one: Statement, *, after: bool) -> None:
        if one != self._at or after is not self._after:
            return
        self.failed.set()
        if self._deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError("the database is away")


_tap: ContextVar[_Tap | None] = ContextVar("tap", default=None)
_METHODS: Final = ("execute", "executemany", "fetch", "fetchval", "fetchrow")


@contextmanager
def tapped(
    at: Statement | None = None, *, after: bool = False, deadly: bool = False
) -> Iterator[_Tap]:
    """Count in the block what processes are given this tap; one statement of theirs will fail.

    Args:
        at: which.
        after: whether it is done before it fails.
        deadly: whether this process is killed there.
    """
    originals = {name: getattr(LoggingConnection, name) for name in _METHODS}
    original_transaction = LoggingConnection.transaction
    last: dict[int, str] = {}

    def method(name: str) -> Any:
        async def counted(self: Any, query: str, *args: Any, **kwargs: Any) -> Any:
            tap = _tap.get()
            if tap is None:
                return await originals[name](self, query, *args, **kwargs)
            last[id(self.wrapped)] = query
            one = tap.count(query)
            tap.maybe_fail(one, after=False)
            result = await originals[name](self, query, *args, **kwargs)
            tap.maybe_fail(one, after=True)
            return result

        return counted

    @asynccontextmanager
    async def transaction(self: Any) -> AsyncIterator[None]:
        tap = _tap.get()
        async with original_transaction(self):
            yield
            if tap is not None:
                one = tap.count(f"COMMIT of {last.get(id(self.wrapped))}")
                tap.maybe_fail(one, after=False)
        if tap is not None:
            tap.maybe_fail(one, after=True)

    for name in _METHODS:
        setattr(LoggingConnection, name, method(name))
    LoggingConnection.transaction = transaction
    try:
        yield _Tap(at, after=after, deadly=deadly)
    finally:
        for name, original in originals.items():
            setattr(LoggingConnection, name, original)
        LoggingConnection.transaction = original_transaction


# --- the process ----------------------------------------------------------------------------------


async def alarm_process(settings: Settings, records: Records) -> None:
    """Alarm engine and alert bot as ``fajma run`` joins them, and begun again when they end."""
    run_module.REQUEST_TIMEOUT_S = TIMEOUT_S
    bot_module.RETRY_S = (0.05,)
    Hints.wait.__defaults__ = (0.05,)
    while True:
        parts = [
            asyncio.create_task(part(settings, records, partial(int)))
            for part in (run_module._alarms, run_module._alert_bot)
        ]
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end(parts)


@asynccontextmanager
async def running(
    settings: Settings, records: Records, tap: _Tap | None = None
) -> AsyncIterator[None]:
    """The process, in this one.

    Args:
        settings: of the process.
        records: which it shares with the test.
        tap: counts its statements, and not those of the test.
    """
    context = copy_context()
    context.run(_tap.set, tap)
    task = asyncio.create_task(alarm_process(settings, records), context=context)
    try:
        yield
    finally:
        await end([task])


def run_until_killed(settings: Settings, at: Statement | None, *, after: bool) -> None:
    """The process, to be run in one of its own."""

    async def alone() -> None:
        async with run_module.opened(settings) as records:
            with tapped(at, after=after, deadly=True) as tap:
                async with running(settings, records, tap):
                    await asyncio.Event().wait()

    asyncio.run(alone())
