"""The live stream of a consultation: what comes, from where it goes on, and when it ends."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse, ClientSession, web
from aiohttp.test_utils import TestClient

from appservice.api import stream
from appservice.api.declare import PREFIX
from appservice.api.permissions import Who
from fajma.store import Records
from tests.integration.api_site import ApiSite, Caller, furnished, served
from tests.integration.scene import AWA, falls


@pytest.fixture
async def site(records: Records, tmp_path: Path) -> ApiSite:
    return await furnished(records, tmp_path / "secrets")


@pytest.fixture
async def client(site: ApiSite) -> AsyncIterator[TestClient[Any, Any]]:
    async with served(site) as client:
        yield client


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "LOOK_S", 0.02)


class Stream:
    """One reader of a stream."""

    def __init__(self, response: ClientResponse) -> None:
        self.response = response

    async def block(self) -> dict[str, str]:
        """The next event or comment, by field."""
        async with asyncio.timeout(10):
            fields: dict[str, str] = {}
            while line := (await self.response.content.readline()).decode().rstrip("\n"):
                name, _, value = line.partition(": ")
                fields[name] = value
            return fields

    async def event(self) -> tuple[str, str, Any]:
        """The next event: name, id, data."""
        while "data" not in (fields := await self.block()):
            assert not self.response.content.at_eof()
        return fields["event"], fields.get("id", ""), json.loads(fields["data"])

    async def at_end(self) -> bool:
        async with asyncio.timeout(10):
            return await self.response.content.read() == b""


async def opens(
    site: ApiSite, client: TestClient[Any, Any], *, after: str | None = None, who: Who = Who.DOCTOR
) -> Stream:
    headers = dict(await site.headers(client, who))
    if after is not None:
        headers["Last-Event-ID"] = after
    path = f"{PREFIX}/consultations/{site.consultation.id}/stream"
    response = await client.get(path, headers=headers)
    assert response.status == 200, await response.text()
    assert response.content_type == "text/event-stream"
    found = Stream(response)
    await found.block()
    return found


async def test_vitals_and_alarms_come_as_they_are_committed(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    await site.measures(site.mine.key, 99)  # before anybody looked
    reader = await opens(site, client)
    await site.measures(site.mine.key, 97)
    await site.measures(site.other.key, 50)
    name, _, data = await reader.event()
    assert (name, data["values"][0]["value"], data["values"][0]["loinc"]) == (
        "vitals",
        97,
        "59408-5",
    )
    await falls(site.scene, site.mine)
    seen = [await reader.event() for _ in range(6)]
    assert [one[0] for one in seen].count("alarm") == 1
    alarm = next(data for name, _, data in seen if name == "alarm")
    assert (alarm["state"], alarm["kind"], alarm["value"]) == ("started", "spo2", 88)


async def test_who_comes_back_goes_on_where_he_was(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    reader = await opens(site, client)
    await site.measures(site.mine.key, 97, 96)
    _, place, _ = await reader.event()
    reader.response.close()
    await site.measures(site.mine.key, 95)
    reader = await opens(site, client, after=place)
    values = [(await reader.event())[2]["values"][0]["value"] for _ in range(2)]
    assert values == [96, 95]


async def test_who_comes_back_before_the_first_event_misses_nothing(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    path = f"{PREFIX}/consultations/{site.consultation.id}/stream"
    response = await client.get(path, headers=await site.headers(client, Who.DOCTOR))
    place = (await Stream(response).block())["id"]
    response.close()
    await site.measures(site.mine.key, 95)
    reader = await opens(site, client, after=place)
    assert (await reader.event())[2]["values"][0]["value"] == 95


@pytest.mark.parametrize("place", ["", "7", "r1-a", "r1-a1'", "r-1-a1", "r" + "9" * 30 + "-a1"])
async def test_a_place_that_is_none_is_refused(
    site: ApiSite, client: TestClient[Any, Any], place: str
) -> None:
    caller = Caller(client, await site.headers(client, Who.DOCTOR))
    path = f"/consultations/{site.consultation.id}/stream"
    status, answer = await caller.asks("GET", path, headers={"Last-Event-ID": place})
    assert (status, answer["code"]) == (400, "place_invalid")


async def test_a_silent_stream_says_that_it_is_there(
    site: ApiSite, client: TestClient[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stream.HEARTBEAT_S == 15
    monkeypatch.setattr(stream, "HEARTBEAT_S", 0.05)
    reader = await opens(site, client)
    assert await reader.block() == {"": "still here"}


async def test_the_stream_of_who_leaves_ends(site: ApiSite, client: TestClient[Any, Any]) -> None:
    reader = await opens(site, client)
    await site.records.consultations.treats_no_more(AWA, now=site.now)
    assert await reader.event() == ("end", "", {})
    assert await reader.at_end()


async def test_the_stream_of_a_lost_phone_ends(site: ApiSite, client: TestClient[Any, Any]) -> None:
    reader = await opens(site, client)
    phone = await site.phone(AWA)
    async with site.records.store.transaction() as connection:
        await site.records.pins.block(connection, AWA, [phone.device_id])
    assert (await reader.event())[0] == "end"


async def test_the_stream_ends_with_the_consultation(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    reader = await opens(site, client)
    nurse = Caller(client, await site.headers(client, Who.NURSE))
    path = f"/consultations/{site.consultation.id}"
    assert (await nurse.asks("POST", f"{path}/end", {}))[0] == 200
    assert (await reader.event())[0] == "end"
    status, answer = await nurse.asks("GET", f"{path}/stream")
    assert (status, answer["code"]) == (409, "consultation_not_open")


async def test_a_stream_ends_with_its_token(site: ApiSite, client: TestClient[Any, Any]) -> None:
    reader = await opens(site, client)
    site.now += timedelta(minutes=10)
    assert (await reader.event())[0] == "end"


async def test_a_caller_has_so_many_streams_and_no_more(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    readers = [await opens(site, client) for _ in range(stream.STREAMS_MAX)]
    caller = Caller(client, await site.headers(client, Who.DOCTOR))
    path = f"/consultations/{site.consultation.id}/stream"
    status, answer = await caller.asks("GET", path)
    assert (status, answer["code"]) == (429, "too_many_streams")
    await opens(site, client, who=Who.NURSE)
    assert len(readers) == stream.STREAMS_MAX


async def test_streams_do_not_hold_up_the_end_of_the_server(site: ApiSite) -> None:
    runner = web.AppRunner(site.application())  # as the application service has it
    await runner.setup()
    server = web.TCPSite(runner, "127.0.0.1", 0)
    await server.start()
    key = await site.key(Who.OBSERVATIONS_READ)
    host, port = runner.addresses[0][:2]
    url = f"http://{host}:{port}{PREFIX}/consultations/{site.consultation.id}/stream"
    async with (
        ClientSession(headers={"Authorization": f"Bearer {key}"}) as session,
        session.get(url) as response,
    ):
        reader = Stream(response)
        await reader.block()
        async with asyncio.timeout(20):
            await runner.cleanup()
        assert await reader.at_end()


async def test_a_stream_that_breaks_ends_and_nothing_else_is_sent_in_it(
    site: ApiSite, client: TestClient[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = await opens(site, client)

    async def away(*_: Any, **__: Any) -> Any:
        raise OSError

    monkeypatch.setattr(site.records.readings, "sealed_after", away)
    assert await reader.at_end()


class FakeLog:
    """Says when a reader was cut off."""

    def __init__(self) -> None:
        self.cut_off = asyncio.Event()

    def warning(self, event: str, **fields: str) -> None:
        assert event == "api_stream_cut_off"
        assert set(fields) == {"consultation"}
        self.cut_off.set()


async def test_a_reader_who_takes_nothing_is_cut_off(
    site: ApiSite, client: TestClient[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = FakeLog()
    monkeypatch.setattr(stream, "PATIENCE_S", 0.2)
    monkeypatch.setattr(stream, "log", log)
    headers = await site.headers(client, Who.DOCTOR)
    path = f"{PREFIX}/consultations/{site.consultation.id}/stream"
    for _ in range(15):
        await site.measures(site.mine.key, *(90 + number % 9 for number in range(2000)))
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    narrow.setblocking(False)  # noqa: FBT003 - the name is its own
    await asyncio.get_running_loop().sock_connect(narrow, (client.host, client.port))
    reader, writer = await asyncio.open_connection(sock=narrow, limit=1024)
    lines = [f"GET {path} HTTP/1.1", "Host: x", "Last-Event-ID: r0-a0"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    async with asyncio.timeout(60):
        assert b"200" in await reader.readline()
        await log.cut_off.wait()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(50_000_000)
    writer.close()
