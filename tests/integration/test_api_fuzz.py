"""Whatever is sent: no 5xx, and every answer is as the OpenAPI document says."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from appservice.api.permissions import SCOPES, Who
from fajma.config import DatabaseSettings
from fajma.sealing import generate_site_key
from fajma.store import Records, Store
from fajma.store.site import site_key
from tests.integration.api_site import ApiSite, furnished
from tests.integration.scene import falls


class RealTime(ApiSite):
    """The site, on the clock of the machine."""

    def clock(self) -> datetime:
        self.now = datetime.now(UTC)
        return self.now

    def elapsed_s(self) -> float:
        return 1000 * time.monotonic()  # nobody is slowed down


@dataclass(frozen=True)
class Served:
    """A server in another thread, and what opens it."""

    url: str
    headers: list[dict[str, str]]
    patient: str
    consultation: str


async def serve(
    database: DatabaseSettings, directory: Path, ready: Any, stop: threading.Event
) -> None:
    key_file = directory / "site.key"
    key_file.touch(mode=0o600)
    key_file.write_text(generate_site_key(), encoding="ascii")
    store = await Store.open(database)
    records = Records(store, await site_key(store, key_file))
    site = await furnished(records, directory / "secrets", requests_per_s=10000)
    site.__class__ = RealTime
    site.clock()
    await site.measures(site.mine.key, 97, 96, 95)
    await falls(site.scene, site.mine)
    async with TestClient(TestServer(site.application())) as client:
        headers = [
            await site.headers(client, Who.DOCTOR),
            await site.headers(client, Who.OPERATOR),
            {"Authorization": f"Bearer {await site.key(*SCOPES)}"},
            {},
        ]
        ready(Served(str(client.make_url("")), headers, site.mine.key, site.consultation.id))
        await asyncio.to_thread(stop.wait)
    await store.close()


@pytest.fixture(params=["sqlite", "postgres"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    """The API over each kind of database, on a port."""
    if request.param == "postgres":
        database = DatabaseSettings(url=request.getfixturevalue("postgres_url"))
    else:
        database = DatabaseSettings(url=f"sqlite://{tmp_path}/store/fajma.db")
    found: list[Served] = []
    is_ready, stop = threading.Event(), threading.Event()

    def ready(one: Served) -> None:
        found.append(one)
        is_ready.set()

    def work() -> None:
        try:
            asyncio.run(serve(database, tmp_path, ready, stop))
        finally:
            is_ready.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert is_ready.wait(60)
    try:
        yield found[0]
    finally:
        stop.set()
        thread.join(60)


EXPECTED = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]


def schema_of(served: Served) -> Any:
    """The document, about what there is: else nothing but "not found" would ever be seen."""
    document = requests.get(f"{served.url}/fajma/v1/openapi.json", timeout=10).json()
    del document["security"]  # the token is always shown, so that it is the rest that is refused
    known = {"patient": served.patient, "consultation": served.consultation}
    for methods in document["paths"].values():
        for operation in methods.values():
            for parameter in operation["parameters"]:
                if parameter["name"] in known:
                    parameter["schema"] = {"enum": [known[parameter["name"]]]}
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=served.url)
    return schema


ELSEWHERE = ("/stream", "/sign-out")
"""One does not end, the other would end the session (test_api_stream, test_api_sign_in)."""


def fuzz(served: Served, *, examples: int) -> int:
    """Ask every route with valid and invalid requests; how many were sent."""
    found = [one.ok() for one in schema_of(served).get_all_operations()]
    modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    return sum(
        fuzz_one(served, operation, mode, examples)
        for operation in found
        for mode in modes
        if not operation.path.endswith(ELSEWHERE)
    )


def fuzz_one(served: Served, operation: Any, mode: Any, examples: int) -> int:
    """The same of one route and one kind of requests."""
    sent = 0

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        nonlocal sent
        for headers in served.headers:
            sent += 1
            case.call_and_validate(headers=headers, checks=EXPECTED)

    with contextlib.suppress(Unsatisfiable):  # nothing can be sent there that is wrong
        ask()
    return sent


def test_nothing_that_is_sent_makes_a_server_error(served: Served) -> None:
    assert fuzz(served, examples=4) > 800


@pytest.mark.slow
def test_nothing_of_much_that_is_sent_makes_a_server_error(served: Served) -> None:
    assert fuzz(served, examples=30) > 5000
