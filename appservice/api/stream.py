"""Vitals and alarms of a consultation as they come: server-sent events (WHATWG HTML, 9.2).

The logs are the buffer. A stream reads on from its place in both whenever what it sent before was
taken, so a slow reader costs no memory; one that takes nothing for ``PATIENCE_S`` is cut off. The
place is the ``id`` of each event: who comes back with ``Last-Event-ID`` misses nothing.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog
from aiohttp import web
from pydantic import BaseModel

from appservice.api.clinical import alarm_said, observation
from appservice.api.declare import Call, Route
from appservice.api.permissions import Permission
from appservice.api.problems import ProblemError, not_found
from fajma.errors import AccessError
from fajma.life import Status
from fajma.store import Records
from fajma.store.consultations import Consultation
from fajma.vitals import PatientKey

log = structlog.get_logger()

LOOK_S: Final = 1.0
HEARTBEAT_S: Final = 15.0
PATIENCE_S: Final = 10.0
AT_ONCE: Final = 100
"""Readings, and as many messages about alarms, that are sent before the reader is waited for."""

STREAMS_MAX: Final = 10
"""Of one caller at a time. FAJMA default: a ward's screens."""

_PLACE: Final = re.compile(r"r([0-9]{1,18})-a([0-9]{1,18})")

StillMay = Callable[[Call], Awaitable[bool]]
"""Whether the caller of a request that was granted would be granted it now."""


@dataclass(frozen=True, slots=True)
class Place:
    """How far both logs were sent.

    Attributes:
        reading: position in the readings log.
        alarm: position in the outbox.
    """

    reading: int
    alarm: int

    @classmethod
    def read(cls, text: str) -> Place:
        """Out of ``Last-Event-ID``.

        Raises:
            ProblemError: it is none.
        """
        found = _PLACE.fullmatch(text)
        if found is None:
            raise ProblemError(400, "place_invalid", "Last-Event-ID is the id of an event of ours")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"r{self.reading}-a{self.alarm}"


class StreamRoutes:
    """The stream of a consultation.

    Args:
        records: everything.
        still_may: asked again and again while a stream goes on.
        now: the clock.
    """

    def __init__(
        self, records: Records, still_may: StillMay, *, now: Callable[[], datetime]
    ) -> None:
        self._records = records
        self._clock = now
        self._still_may = still_may
        self._closing = asyncio.Event()
        self._open: Counter[str] = Counter()

    def routes(self) -> list[Route]:
        """Its declaration."""
        return [
            Route("GET", "/consultations/{consultation}/stream", Permission.READ_OBSERVATIONS,
                  "Vitals and alarms as they come", self._stream,
                  content_type="text/event-stream"),
        ]  # fmt: skip

    async def close(self, _: web.Application) -> None:
        """End every stream: the web server stops."""
        self._closing.set()

    async def _stream(self, call: Call) -> web.StreamResponse:
        consultation = await self._consultation(call)
        asked = call.request.headers.get("Last-Event-ID")
        place = Place.read(asked) if asked is not None else await self._now(consultation.patient)
        caller = call.caller.id
        if self._open[caller] >= STREAMS_MAX:
            raise ProblemError(
                429,
                "too_many_streams",
                "this caller has as many streams as one may have: end one",
                headers={"Retry-After": str(round(HEARTBEAT_S))},
            )
        self._open[caller] += 1
        try:
            response = web.StreamResponse(
                headers={
                    "Content-Type": "text/event-stream",
                    "Cache-Control": "no-store",
                    "X-Accel-Buffering": "no",  # or nginx keeps events back
                    "X-Content-Type-Options": "nosniff",
                }
            )
            await response.prepare(call.request)
            await self._follow(call, consultation.patient, place, response)
            return response
        finally:
            self._open[caller] -= 1
            if not self._open[caller]:
                del self._open[caller]

    async def _consultation(self, call: Call) -> Consultation:
        consultation = await self._records.consultations.get(call.consultation)
        if consultation is None:
            raise not_found()
        if consultation.status is not Status.OPEN:
            raise ProblemError(409, "consultation_not_open", "this consultation is not open")
        return consultation

    async def _now(self, patient: PatientKey) -> Place:
        newest = await self._records.outbox.told_about(patient, limit=1)
        return Place(await self._records.readings.head(patient), newest[0][0] if newest else 0)

    async def _follow(
        self, call: Call, patient: PatientKey, place: Place, response: web.StreamResponse
    ) -> None:
        """Send what comes until the reader goes, may no more, or takes nothing."""
        loop = asyncio.get_running_loop()
        sent_at = loop.time()
        try:
            await _write(response, f"id: {place}\n: hello\n\n".encode())
            while not self._closing.is_set():
                if not await self._may(call):
                    await _write(response, b"event: end\ndata: {}\n\n")
                    return
                events, place, more = await self._next(patient, place)
                if events:
                    await _write(response, events)
                    sent_at = loop.time()
                elif loop.time() - sent_at >= HEARTBEAT_S:
                    await _write(response, b": still here\n\n")
                    sent_at = loop.time()
                if not more:
                    await self._pause()
        except TimeoutError:
            log.warning("api_stream_cut_off", consultation=call.consultation)
            if call.request.transport is not None:
                call.request.transport.abort()
        except ConnectionError:
            pass  # the reader has gone
        except Exception as error:  # noqa: BLE001 - he comes back, and goes on where he was
            log.error("api_stream_broke", error=type(error).__name__)

    async def _may(self, call: Call) -> bool:
        until = call.caller.until
        if until is not None and self._clock() >= until:
            return False
        try:
            await self._consultation(call)
            return await self._still_may(call)
        except (AccessError, ProblemError):
            return False

    async def _next(self, patient: PatientKey, place: Place) -> tuple[bytes, Place, bool]:
        """What follows a place: events, the new place, and whether there is more."""
        sealed = await self._records.readings.sealed_after(
            place.reading, limit=AT_ONCE, patient=patient
        )
        told = await self._records.outbox.told_about(patient, after=place.alarm, limit=AT_ONCE)
        opened, _ = await self._records.readings.open_all(sealed)
        events = []
        for one in opened:
            place = Place(one.position, place.alarm)
            events.append(_event("vitals", place, observation(one.reading)))
        if sealed:
            place = Place(sealed[-1].position, place.alarm)
        for position, delivery in told:
            place = Place(place.reading, position)
            said = alarm_said(delivery)
            if said is not None:
                events.append(_event("alarm", place, said))
        return "".join(events).encode(), place, AT_ONCE in (len(sealed), len(told))

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(LOOK_S):
                await self._closing.wait()
        except TimeoutError:
            pass


async def _write(response: web.StreamResponse, data: bytes) -> None:
    """Send, and wait until the reader has taken nearly all of it.

    Raises:
        TimeoutError: it does not.
    """
    async with asyncio.timeout(PATIENCE_S):
        await response.write(data)


def _event(name: str, place: Place, content: BaseModel) -> str:
    return f"id: {place}\nevent: {name}\ndata: {content.model_dump_json()}\n\n"
