"""What every request passes before it is answered, in this order.

1. Who calls? (401) How much has he asked for? (429)
2. May he? (403) Is this patient or consultation within his reach? (404, as if it were not there)
3. Is the query valid? (400) Is the body JSON (415), not too large (413), valid (400)?
4. Was this asked for before, under the same ``Idempotency-Key``? Then the same is answered; 422 if
   it was something else, 409 if it is being done at this moment.
5. Does the caller know what he changes? (428 without ``If-Match``, 412 if it is another version)
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final
from weakref import WeakValueDictionary

import structlog
from aiohttp import web
from pydantic import BaseModel

from appservice.api import bodies
from appservice.api.callers import Caller, Callers
from appservice.api.declare import PATH, Call, Nothing, Route
from appservice.api.pace import Allowance, Pace
from appservice.api.permissions import Reach, Who, reach
from appservice.api.problems import ProblemError, answer_of, not_found, problem_of
from appservice.api.reach import Reaches
from fajma.errors import AccessError
from fajma.store import Records
from fajma.store.api_answers import KeptAnswer

log = structlog.get_logger()

SIGN_INS_PER_S: Final = 0.5
SIGN_INS_AT_ONCE: Final = 20
"""FAJMA default for those who show nothing, by address: a ward behind one address signs in at the
beginning of a shift; who guesses gets nowhere."""

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_IDEMPOTENCY_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_ALLOWANCE: Final = web.RequestKey("allowance", Allowance)


class Gate:
    """Makes aiohttp handlers of routes, and an answer of every error.

    Args:
        records: everything.
        callers: finds out who calls.
        reaches: whose patients and consultations.
        pace: how much somebody who is known may ask for.
        now: the clock.
        elapsed_s: a clock that never goes back.
    """

    def __init__(
        self,
        records: Records,
        callers: Callers,
        reaches: Reaches,
        pace: Pace,
        *,
        now: Callable[[], datetime],
        elapsed_s: Callable[[], float],
    ) -> None:
        self._records = records
        self._callers = callers
        self._reaches = reaches
        self._pace = pace
        self._strangers = Pace(SIGN_INS_PER_S, SIGN_INS_AT_ONCE)
        self._now = now
        self._elapsed_s = elapsed_s
        self._being_done: set[tuple[str, str]] = set()
        self._changing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def handler(self, route: Route) -> _Handler:
        """What aiohttp calls for a route."""

        async def handle(request: web.Request) -> web.StreamResponse:
            if not route.only_reads:
                return await self._pass(route, request)
            bodies.refuse(request)  # before the connection, which everybody needs
            async with self._records.store.session():  # one connection for all it looks up
                return await self._pass(route, request)

        return handle

    @web.middleware
    async def middleware(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Every error becomes a problem, also those of the framework."""
        try:
            response = await handler(request)
        except Exception as error:  # noqa: BLE001 - whoever asked gets an answer he can read
            problem = problem_of(error)
            if problem.status >= 500:  # noqa: PLR2004
                log.error("api_request_failed", code=problem.code, error=type(error).__name__)
            elif isinstance(error, AccessError):
                log.warning("api_access_refused", code=error.code, remote=request.remote)
            response = answer_of(problem)
            if problem.status == 401:  # noqa: PLR2004
                response.headers["WWW-Authenticate"] = 'Bearer realm="fajma"'
        if not response.prepared:
            allowance = request.get(_ALLOWANCE)
            if allowance is not None:
                response.headers.update(allowance.headers)
            for name, value in _ALWAYS.items():
                response.headers.setdefault(name, value)
        return response

    async def _pass(self, route: Route, request: web.Request) -> web.StreamResponse:
        now = self._now()
        caller = await self._caller(route, request, now)
        extent = reach(route.needs, caller.who)
        if extent is None:
            raise _refused(caller)
        path = _path(route, request)
        await self._within(caller, extent, path)
        query = bodies.asked(request, route.query)
        raw = await bodies.read(request)
        body: BaseModel = Nothing()
        if route.body is not None:
            body = bodies.parsed(raw, route.body)
        elif raw:
            bodies.parsed(raw, Nothing)
        call = Call(caller, extent, path, query, body, now, request)
        key = _idempotency_key(request) if route.takes_key else None
        if key is None:
            return await self._do(route, call)
        return await self._once(route, call, key, raw)

    async def _caller(self, route: Route, request: web.Request, now: datetime) -> Caller:
        address = request.remote or ""
        # Who signs in or refreshes may still show a token that is over.
        shown = None if route.is_sign_in else request.headers.get("Authorization")
        try:
            caller = await self._callers.of(shown, address, now)
        except AccessError:
            self._count(request, self._strangers, f"address:{address}")
            raise
        if caller.who == {Who.NOBODY}:
            self._count(request, self._strangers, f"address:{address}")
        else:
            self._count(request, self._pace, caller.id)
        return caller

    def _count(self, request: web.Request, pace: Pace, who: str) -> None:
        allowance = pace.ask(who, self._elapsed_s())
        request[_ALLOWANCE] = allowance
        if not allowance.is_granted:
            raise ProblemError(
                429,
                "too_many_requests",
                "this is more than one caller may ask for: wait as Retry-After says",
                headers={"Retry-After": str(allowance.wait_s)},
            )

    async def _within(self, caller: Caller, extent: Reach, path: Mapping[str, str]) -> None:
        if "patient" in path:
            patients = await self._reaches.patients(caller, extent)
            if patients is not None and path["patient"] not in patients:
                raise not_found()
        if "consultation" in path:
            consultations = await self._reaches.consultations(caller, extent)
            if consultations is not None and path["consultation"] not in consultations:
                raise not_found()

    # --- once ------------------------------------------------------------------------------------

    async def _once(self, route: Route, call: Call, key: str, raw: bytes) -> web.StreamResponse:
        """Do it unless it was done under this key.

        What is being done is remembered here alone: one process answers at a time, and what it did
        not finish may be done again (every service of ours is safe to repeat).
        """
        answers = self._records.api_answers
        asked = answers.asked(route.method, call.request.path_qs, raw)
        mine = (call.caller.id, key)
        if mine in self._being_done:
            raise ProblemError(
                409, "idempotency_key_in_use", "this is being done: ask again in a moment"
            )
        self._being_done.add(mine)
        try:
            kept = await answers.get(*mine, now=call.now)
            if kept is not None:
                return _replayed(kept, asked)
            try:
                response = await self._do(route, call)
            except Exception as error:
                problem = problem_of(error)
                if problem.status < 500:  # noqa: PLR2004 - else it may work the next time
                    refusal = answer_of(problem)
                    content = KeptAnswer(asked, refusal.status, _bytes(refusal))
                    await answers.keep(*mine, content, now=call.now)
                raise
            if isinstance(response, web.Response):
                content = KeptAnswer(asked, response.status, _bytes(response))
                await answers.keep(*mine, content, now=call.now)
            return response
        finally:
            self._being_done.discard(mine)

    # --- versions --------------------------------------------------------------------------------

    async def _do(self, route: Route, call: Call) -> web.StreamResponse:
        if route.version_of is None:
            return self._answer(route, call, await route.handler(call))
        async with self._alone(call.request.path):
            await self._check_version(route.version_of, call)
            return self._answer(route, call, await route.handler(call))

    @asynccontextmanager
    async def _alone(self, path: str) -> AsyncIterator[None]:
        """Between the look at the version and the change nobody else changes it by this API."""
        lock = self._changing.setdefault(path, asyncio.Lock())
        async with lock:
            yield

    async def _check_version(self, current: Route, call: Call) -> None:
        known = call.request.headers.get("If-Match")
        if known is None:
            raise ProblemError(
                428,
                "version_required",
                f"say in If-Match which version you know: the ETag of {current.name}",
            )
        content = await current.handler(call)
        if not isinstance(content, BaseModel) or not _matches(known, [self._version(content)]):
            raise ProblemError(
                412, "version_changed", "somebody has changed it meanwhile: read it again"
            )

    def _answer(
        self, route: Route, call: Call, content: BaseModel | web.StreamResponse
    ) -> web.StreamResponse:
        if isinstance(content, web.StreamResponse):
            return content
        response = web.Response(
            body=content.model_dump_json().encode(),
            status=route.status,
            content_type=route.content_type,
        )
        if route.has_version:
            version = self._version(content)
            response.headers["ETag"] = version
            known = call.request.headers.get("If-None-Match")
            if route.method == "GET" and known is not None and _matches(known, [version]):
                return web.Response(status=304, headers={"ETag": version})
        return response

    def _version(self, content: BaseModel) -> str:
        """An entity tag: of what is answered, and telling nothing of it."""
        digest = hashlib.sha256(content.model_dump_json().encode()).digest()
        return f'"{self._records.site_key.fingerprint(b"etag", digest).hex()}"'


_ALWAYS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
"""Of every answer: clinical data lie in no cache."""


def _refused(caller: Caller) -> Exception:
    if caller.who == {Who.NOBODY}:
        return ProblemError(401, "token_missing", "show a token: see /fajma/v1/docs")
    return ProblemError(403, "forbidden", "this token may not do this")


def _path(route: Route, request: web.Request) -> dict[str, str]:
    values = {name: request.match_info[name] for name in route.parameters}
    if not all(PATH[name].fullmatch(value) for name, value in values.items()):
        raise not_found()
    return values


def _idempotency_key(request: web.Request) -> str | None:
    key = request.headers.get("Idempotency-Key")
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise ProblemError(
            400, "idempotency_key_invalid", "Idempotency-Key has 1 to 255 visible characters"
        )
    return key


def _replayed(kept: KeptAnswer, asked: bytes) -> web.Response:
    if kept.asked != asked:
        raise ProblemError(
            422,
            "idempotency_key_reused",
            "this Idempotency-Key was used for something else: take a new one",
        )
    is_problem = kept.status >= 400  # noqa: PLR2004
    return web.Response(
        body=kept.body,
        status=kept.status,
        content_type="application/problem+json" if is_problem else "application/json",
        headers={"Idempotency-Replayed": "true"},
    )


def _bytes(response: web.Response) -> bytes:
    return response.body if isinstance(response.body, bytes) else b""


def _matches(header: str, versions: Iterable[str]) -> bool:
    """Whether a list of entity tags has one of these; ``*`` has all (RFC 9110, 13.1)."""
    offered = {one.strip().removeprefix("W/") for one in header.split(",")}
    return "*" in offered or not offered.isdisjoint(versions)
