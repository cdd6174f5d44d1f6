"""How long the REST API takes for one page of observations, at 200 requests/s on PostgreSQL.

Beside it, in the same run and against the same rows, a bare aiohttp handler with the same query by
asyncpg: no token, no permission, no validation, nothing opened. Both serve in a process of their
own; the client sends by the clock and counts from the moment at which a request was due.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import aiohttp
import asyncpg
from aiohttp import web
from aiohttp.test_utils import TestServer

from appservice.api.permissions import Who
from benchmarks.ingest import postgres
from benchmarks.record import record
from fajma.config import DatabaseSettings
from fajma.sealing import generate_site_key
from fajma.store import Records, Store
from fajma.store.site import site_key
from tests.integration.api_site import ApiSite, furnished

PER_S: Final = 200
LASTS_S: Final = 30
WARM_UP_S: Final = 3
PAGE: Final = 20
HELD: Final = 20_000
"""Readings of the patient who is asked for; as many of another one."""


class Unpaced(ApiSite):
    """The site on a clock on which nobody asks too often."""

    def elapsed_s(self) -> float:
        return 1000 * time.monotonic()


def rest_read_p99() -> None:
    """The 99th percentile, ms."""
    asyncio.run(_rest_read_p99())


async def _rest_read_p99() -> None:
    async with postgres() as server:
        await server.execute("CREATE DATABASE rest TEMPLATE template0")
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(server.url("rest"), theirs), daemon=True
        )
        process.start()
        url, patient, token = await asyncio.to_thread(ours.recv)
        try:
            page = f"{url}/fajma/v1/patients/{patient}/observations?limit={PAGE}"
            api = await _load(page, {"Authorization": f"Bearer {token}"})
            bare = await _load(f"{url}/bare/{patient}", {})
        finally:
            ours.send("stop")
            await asyncio.to_thread(process.join, 30)
    _, _, api_p99 = _quantiles(api)
    _, _, bare_p99 = _quantiles(bare)
    record(
        "rest_read_p99",
        api_p99,
        "ms",
        aim=f"reported, at {PER_S} requests/s",
        met=True,
        reference="bare aiohttp and asyncpg, the same query",
        reference_value=bare_p99,
    )
    record(
        "rest_read_p50",
        _quantiles(api)[0],
        "ms",
        aim="reported",
        met=True,
        reference="bare aiohttp and asyncpg, the same query",
        reference_value=_quantiles(bare)[0],
    )


def _quantiles(took_ms: list[float]) -> tuple[float, float, float]:
    cuts = statistics.quantiles(took_ms, n=100)
    return cuts[49], cuts[94], cuts[98]


async def _load(url: str, headers: dict[str, str]) -> list[float]:
    """Ask at the rate; how long each answer took, ms."""
    async with aiohttp.ClientSession(
        headers=headers, connector=aiohttp.TCPConnector(limit=0)
    ) as session:
        await _paced(lambda: _ask(session, url), WARM_UP_S)
        return await _paced(lambda: _ask(session, url), LASTS_S)


async def _ask(session: aiohttp.ClientSession, url: str) -> None:
    async with session.get(url) as response:
        content = await response.read()
        assert response.status == 200, content


async def _paced(ask: Callable[[], Awaitable[None]], lasts_s: float) -> list[float]:
    began = time.perf_counter()

    async def one(due: float) -> float:
        await ask()
        return 1000 * (time.perf_counter() - due)

    tasks = []
    for number in range(int(lasts_s * PER_S)):
        due = began + number / PER_S
        await asyncio.sleep(max(0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(one(due)))
    return list(await asyncio.gather(*tasks))


def _serve(database_url: str, pipe: Connection) -> None:
    asyncio.run(_served(database_url, pipe))


async def _served(database_url: str, pipe: Connection) -> None:
    with tempfile.TemporaryDirectory() as directory:
        key_file = Path(directory) / "site.key"
        key_file.touch(mode=0o600)
        key_file.write_text(generate_site_key(), encoding="ascii")
        store = await Store.open(DatabaseSettings(url=database_url))
        records = Records(store, await site_key(store, key_file))
        site = await furnished(records, Path(directory) / "secrets", requests_per_s=10_000)
        site.__class__ = Unpaced
        for patient in (site.mine.key, site.other.key):
            await site.measures(patient, *(90 + number % 9 for number in range(HELD)))
        pool = await asyncpg.create_pool(database_url, min_size=8, max_size=8)
        await pool.execute("ANALYZE")
        app = site.application()
        app.router.add_get("/bare/{patient}", lambda request: _bare(pool, request))
        server = TestServer(app)
        await server.start_server()
        key = await site.key(Who.OBSERVATIONS_READ)
        pipe.send((str(server.make_url("")).rstrip("/"), site.mine.key, key))
        await asyncio.to_thread(pipe.recv)
        await server.close()
        await pool.close()
        await store.close()


async def _bare(pool: asyncpg.Pool, request: web.Request) -> web.Response:
    rows = await pool.fetch(
        "SELECT * FROM reading WHERE patient_key=$1 ORDER BY position DESC LIMIT $2",
        request.match_info["patient"],
        PAGE,
    )
    return web.json_response(
        {"observations": [[row["position"], row["measured_at"]] for row in rows]}
    )
