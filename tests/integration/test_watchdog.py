"""The watchdog outside: pinged while all works, and told of in the log once for each change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

from aiohttp import web
from structlog.testing import capture_logs

from bots.alerts.signs import Signs
from bots.alerts.watchdog import Watchdog
from console.processes import free_port

WITHIN_S = 10.0


class Service:
    """Answers as it is told, and counts."""

    def __init__(self) -> None:
        self.status = 200
        self.pings = 0
        self._news = asyncio.Event()

    async def ping(self, request: web.Request) -> web.Response:
        assert await request.read() == b""
        self.pings += 1
        self._news.set()
        return web.Response(status=self.status)

    async def more(self, count: int) -> None:
        wanted = self.pings + count
        async with asyncio.timeout(WITHIN_S):
            while self.pings < wanted:
                self._news.clear()
                await self._news.wait()


@asynccontextmanager
async def watching(service: Service, signs: Any) -> AsyncIterator[None]:
    app = web.Application()
    app.router.add_get("/ping", service.ping)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    watchdog = Watchdog(cast("Signs", signs), f"http://127.0.0.1:{port}/ping", every_s=0.01)
    task = asyncio.create_task(watchdog.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await runner.cleanup()


async def test_only_changes_of_the_service_are_logged_and_never_its_address() -> None:
    service = Service()
    with capture_logs() as logged:
        async with watching(service, SimpleNamespace(all_work=True)):
            await service.more(5)
            service.status = 500
            await service.more(5)
            service.status = 200
            await service.more(5)
    assert logged == [
        {"event": "watchdog_not_reached", "reason": "HTTP 500", "log_level": "warning"},
        {"event": "watchdog_reached", "log_level": "info"},
    ]


async def test_what_does_not_all_work_is_not_pinged_for() -> None:
    service = Service()
    signs = SimpleNamespace(all_work=True)
    async with watching(service, signs):
        await service.more(1)
        signs.all_work = False
        await asyncio.sleep(0.05)  # one may be on its way
        before = service.pings
        await asyncio.sleep(0.2)  # nothing tells of what does not come
        assert service.pings == before
        signs.all_work = True
        await service.more(1)
