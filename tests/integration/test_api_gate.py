"""What every request passes: tokens, bodies, errors, repetitions, versions, pages, pace."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from appservice.api import bodies
from appservice.api.declare import PREFIX
from appservice.api.permissions import Who
from fajma.store import Records
from tests.integration.api_site import HOSPITAL_TOKEN, ApiSite, Caller, furnished, served

NEW = {"number": "P-7", "initials": "A.D.", "bed": "7"}


@pytest.fixture
async def site(records: Records, tmp_path: Path) -> ApiSite:
    return await furnished(records, tmp_path / "secrets")


@pytest.fixture
async def client(site: ApiSite) -> AsyncIterator[TestClient[Any, Any]]:
    async with served(site) as client:
        yield client


@pytest.fixture
async def hospital(client: TestClient[Any, Any]) -> Caller:
    return Caller(client, {"Authorization": f"Bearer {HOSPITAL_TOKEN}"})


async def problem(response: Any) -> dict[str, Any]:
    """What an error says; that it is a problem is checked."""
    assert response.content_type == "application/problem+json"
    content: dict[str, Any] = await response.json()
    assert content["status"] == response.status
    assert content["type"] == "about:blank"
    assert {"title", "code", "detail", "errors"} <= set(content)
    return content


# --- errors of the framework ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "no_such_route"),
        ("GET", "/patients/", 404, "no_such_route"),
        ("DELETE", "/patients", 405, "no_such_method"),
        ("TRACE", "/wards", 405, "no_such_method"),
        ("GET", "/patients/none", 404, "not_found"),
        ("GET", "/patients/" + "0" * 32, 404, "not_found"),
    ],
)
async def test_what_does_not_exist_is_a_problem(
    hospital: Caller, method: str, path: str, status: int, code: str
) -> None:
    response = await hospital.response(method, path)
    assert (response.status, (await problem(response))["code"]) == (status, code)
    assert ("Allow" in response.headers) is (status == 405)


# --- tokens --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer ", "Bearer wrong", "Basic d3Jvbmc=", "Bearer fjk_wrong", "Bearer a.b.c"],
)
async def test_a_token_that_is_nobodys_is_refused(
    client: TestClient[Any, Any], authorization: str
) -> None:
    response = await Caller(client, {"Authorization": authorization}).response("GET", "/me")
    assert (response.status, (await problem(response))["code"]) == (401, "token_refused")
    assert response.headers["WWW-Authenticate"].startswith("Bearer")


async def test_who_shows_nothing_is_asked_for_a_token(client: TestClient[Any, Any]) -> None:
    response = await Caller(client, {}).response("GET", "/patients")
    assert (response.status, (await problem(response))["code"]) == (401, "token_missing")


async def test_a_key_opens_what_its_scopes_say_until_it_is_over_or_revoked(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    secret = await site.key(Who.PATIENTS_READ, name="dossier")
    caller = Caller(client, {"Authorization": f"Bearer {secret}"})
    assert (await caller.asks("GET", "/patients"))[0] == 200
    assert (await caller.asks("POST", "/patients", NEW))[0] == 403
    async with site.records.store.transaction() as connection:
        await site.records.api_keys.revoke(connection, "dossier", now=site.now)
    assert (await caller.asks("GET", "/patients"))[0] == 401
    other = await site.key(Who.PATIENTS_READ)
    caller = Caller(client, {"Authorization": f"Bearer {other}"})
    site.now += timedelta(days=30) - timedelta(seconds=1)
    assert (await caller.asks("GET", "/patients"))[0] == 200
    site.now += timedelta(seconds=1)
    assert (await caller.asks("GET", "/patients"))[0] == 401


async def test_no_secret_of_a_key_is_in_the_database(site: ApiSite) -> None:
    secret = await site.key(Who.PATIENTS_READ)
    rows = await site.records.store.db.fetch("SELECT * FROM api_key")
    assert secret not in str([dict(row) for row in rows])
    assert [one.scopes for one in await site.records.api_keys.all()] == [{"patients.read"}]


# --- bodies --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "body_invalid"),
        (b"{", 400, "body_invalid"),
        (b"[]", 400, "body_invalid"),
        (b"null", 400, "body_invalid"),
        (b"\xff\xfe", 400, "body_invalid"),
        (b'{"number": "1", "number": "2", "initials": "A", "bed": "1"}', 400, "body_invalid"),
        (
            b'{"number": "9", "initials": "A", "bed": "1", "x": {"a": 1, "a": 2}}',
            400,
            "body_invalid",
        ),
        (b'{"number": NaN}', 400, "body_invalid"),
        (b'{"number": "\\ud800", "initials": "A", "bed": "1"}', 400, "body_invalid"),
        (b'{"number": "\\u0000", "initials": "A", "bed": "1"}', 400, "patient_number"),
        (b'{"number": "9", "initials": "A", "bed": "1", "ward": "\\u0000"}', 400, "body_invalid"),
        (b'{"number": 7, "initials": "A", "bed": "1"}', 400, "body_invalid"),
        (b"[" * 30_000, 400, "body_invalid"),
        (b'{"number": "' + b"x" * 70_000 + b'"}', 413, "body_too_large"),
    ],
)
async def test_a_body_that_is_not_what_is_documented_is_refused_and_not_quoted(
    hospital: Caller, body: bytes, status: int, code: str
) -> None:
    response = await hospital.response(
        "POST", "/patients", data=body, headers={"Content-Type": "application/json"}
    )
    said = await problem(response)
    assert (response.status, said["code"]) == (status, code)
    assert len(said["detail"]) < 300


async def test_an_unknown_field_is_named_and_its_value_is_not(hospital: Caller) -> None:
    response = await hospital.response("POST", "/patients", NEW | {"note": "very secret"})
    said = await problem(response)
    assert said["errors"] == [{"field": "note", "detail": "is not known here"}]
    assert "secret" not in await response.text()


async def test_a_body_without_length_is_read_up_to_the_limit(hospital: Caller) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 1000

    response = await hospital.response(
        "POST", "/patients", data=endless(), headers={"Content-Type": "application/json"}
    )
    assert (response.status, (await problem(response))["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json; charset=utf-16"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
async def test_a_body_of_another_type_is_refused(hospital: Caller, headers: dict[str, str]) -> None:
    response = await hospital.response(
        "POST", "/patients", data=json.dumps(NEW).encode(), headers=headers
    )
    assert (response.status, (await problem(response))["code"]) == (415, "content_type")


@pytest.mark.parametrize(
    "query", ["?limit=0", "?limit=x", "?limit=1&limit=2", "?page=2", "?ward=%00"]
)
async def test_a_query_that_is_not_what_is_documented_is_refused(
    hospital: Caller, query: str
) -> None:
    response = await hospital.response("GET", f"/patients{query}")
    assert (response.status, (await problem(response))["code"]) == (400, "query_invalid")


# --- once ----------------------------------------------------------------------------------------


async def test_the_same_request_under_the_same_key_is_done_once(
    site: ApiSite, hospital: Caller
) -> None:
    once = {"headers": {"Idempotency-Key": "k-1"}}
    first = await hospital.response("POST", "/patients", NEW, **once)
    again = await hospital.response("POST", "/patients", NEW, **once)
    assert (first.status, await first.json()) == (again.status, await again.json())
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert len(await site.records.patients.all()) == 3


async def test_without_a_key_the_number_is_taken(hospital: Caller) -> None:
    await hospital.asks("POST", "/patients", NEW)
    status, answer = await hospital.asks("POST", "/patients", NEW)
    assert (status, answer["code"]) == (409, "patient_exists")


async def test_a_key_for_something_else_is_refused(hospital: Caller) -> None:
    once = {"headers": {"Idempotency-Key": "k-1"}}
    await hospital.asks("POST", "/patients", NEW, **once)
    status, answer = await hospital.asks("POST", "/patients", NEW | {"bed": "8"}, **once)
    assert (status, answer["code"]) == (422, "idempotency_key_reused")
    status, answer = await hospital.asks("POST", "/patients/find", NEW, **once)
    assert (status, answer["code"]) == (400, "body_invalid")


async def test_a_refusal_is_repeated_too(hospital: Caller) -> None:
    once = {"headers": {"Idempotency-Key": "k-2"}}
    bad = NEW | {"ward": "nowhere"}
    first = await hospital.response("POST", "/patients", bad, **once)
    again = await hospital.response("POST", "/patients", bad, **once)
    assert first.status == again.status == 404
    assert await problem(first) == await problem(again)
    assert again.headers["Idempotency-Replayed"] == "true"


async def test_a_key_is_the_callers_own_and_forgotten_after_a_day(
    site: ApiSite, client: TestClient[Any, Any], hospital: Caller
) -> None:
    once = {"headers": {"Idempotency-Key": "k-1"}}
    await hospital.asks("POST", "/patients", NEW, **once)
    operator = Caller(client, await site.headers(client, Who.OPERATOR))
    assert (await operator.asks("POST", "/patients", NEW, **once))[0] == 409
    site.now += timedelta(hours=24)
    assert (await hospital.asks("POST", "/patients", NEW, **once))[0] == 409


async def test_what_is_being_done_is_not_begun_a_second_time(
    site: ApiSite, hospital: Caller
) -> None:
    site.rooms.may_go_on.clear()
    body = {"number": "9", "initials": "A.D.", "bed": "1", "clinicians": ["@awa:clinic.test"]}
    once = {"headers": {"Idempotency-Key": "k-3"}}
    first = asyncio.create_task(hospital.asks("POST", "/consultations", body, **once))
    await site.rooms.makes_room.wait()
    status, answer = await hospital.asks("POST", "/consultations", body, **once)
    assert (status, answer["code"]) == (409, "idempotency_key_in_use")
    site.rooms.may_go_on.set()
    assert (await first)[0] == 200


@pytest.mark.parametrize("key", ["", "with blank", "x" * 256, "é"])
async def test_a_key_that_is_none_is_refused(hospital: Caller, key: str) -> None:
    status, answer = await hospital.asks("POST", "/patients", NEW, headers={"Idempotency-Key": key})
    assert (status, answer["code"]) == (400, "idempotency_key_invalid")


# --- versions ------------------------------------------------------------------------------------


async def test_who_changes_a_record_says_which_version_he_knows(
    site: ApiSite, hospital: Caller
) -> None:
    path = f"/patients/{site.mine.key}"
    status, answer = await hospital.asks("PATCH", path, {"bed": "9"})
    assert (status, answer["code"]) == (428, "version_required")
    version = (await hospital.response("GET", path)).headers["ETag"]
    changed = await hospital.response("PATCH", path, {"bed": "9"}, headers={"If-Match": version})
    assert (changed.status, (await changed.json())["bed"]) == (200, "9")
    status, answer = await hospital.asks("PATCH", path, {"bed": "8"}, headers={"If-Match": version})
    assert (status, answer["code"]) == (412, "version_changed")
    now = changed.headers["ETag"]
    assert (await hospital.response("GET", path)).headers["ETag"] == now
    unchanged = await hospital.response("GET", path, headers={"If-None-Match": f'"x", {now}'})
    assert (unchanged.status, await unchanged.read()) == (304, b"")


async def test_of_two_who_know_the_same_version_one_changes_it(
    site: ApiSite, hospital: Caller
) -> None:
    path = f"/patients/{site.mine.key}"
    version = (await hospital.response("GET", path)).headers["ETag"]
    answers = await asyncio.gather(
        *(
            hospital.asks("PATCH", path, {"bed": bed}, headers={"If-Match": version})
            for bed in ("5", "6", "7")
        )
    )
    assert sorted(status for status, _ in answers) == [200, 412, 412]


# --- pages ---------------------------------------------------------------------------------------


async def test_pages_follow_each_other_without_gap(site: ApiSite, hospital: Caller) -> None:
    for number in range(5):
        await hospital.asks("POST", "/patients", NEW | {"number": f"P-{number}"})
    found, path = [], "/patients?limit=3"
    while path:
        _, answer = await hospital.asks("GET", path)
        found += [one["patient"] for one in answer["patients"]]
        path = f"/patients?limit=3&cursor={answer['next']}" if answer["next"] else ""
    assert found == sorted(one.key for one in await site.records.patients.all())


async def test_a_cursor_is_for_one_query_of_one_caller(
    site: ApiSite, client: TestClient[Any, Any], hospital: Caller
) -> None:
    _, answer = await hospital.asks("GET", "/patients?limit=1")
    cursor = answer["next"]
    assert (await hospital.asks("GET", f"/patients?limit=1&cursor={cursor}"))[0] == 200
    operator = Caller(client, await site.headers(client, Who.OPERATOR))
    forged = cursor[:-4] + ("AAAA" if cursor[-4:] != "AAAA" else "BBBB")
    for caller, path in (
        (operator, f"/patients?limit=1&cursor={cursor}"),
        (hospital, f"/patients?limit=1&ward=medecine-2&cursor={cursor}"),
        (hospital, f"/consultations?limit=1&cursor={cursor}"),
        (hospital, f"/patients?cursor={forged}"),
        (hospital, "/patients?cursor=AAAA"),
        (hospital, "/patients?cursor=%C3%A9"),
    ):
        status, answer = await caller.asks("GET", path)
        assert (status, answer["code"]) == (400, "cursor_invalid")


# --- pace ----------------------------------------------------------------------------------------


async def test_who_asks_too_much_waits_and_others_do_not(records: Records, tmp_path: Path) -> None:
    site = await furnished(records, tmp_path / "secrets", requests_per_s=2)
    async with served(site) as client:
        hospital = Caller(client, {"Authorization": f"Bearer {HOSPITAL_TOKEN}"})
        answers = [await hospital.response("GET", "/me") for _ in range(4)]
        refused = next(one for one in answers if one.status == 429)
        assert answers[0].status == 200
        assert answers[0].headers["RateLimit-Policy"].startswith('"default";q=2;w=')
        assert answers[0].headers["RateLimit"].startswith('"default";r=1;t=')
        assert int(refused.headers["Retry-After"]) >= 1
        assert (await problem(refused))["code"] == "too_many_requests"
        operator = Caller(client, await site.headers(client, Who.OPERATOR))
        assert (await operator.asks("GET", "/me"))[0] == 200


async def test_who_guesses_tokens_is_slowed_down(client: TestClient[Any, Any]) -> None:
    guesser = Caller(client, {"Authorization": "Bearer guess"})
    statuses = [(await guesser.asks("GET", "/me"))[0] for _ in range(30)]
    assert set(statuses) == {401, 429}
    assert statuses[-1] == 429


async def test_clinical_answers_lie_in_no_cache(hospital: Caller) -> None:
    response = await hospital.response("GET", f"{'/patients'}")
    assert response.headers["Cache-Control"] == "no-store"
    assert response.url.path.startswith(PREFIX)


# --- slow bodies ---------------------------------------------------------------------------------


async def begun(client: TestClient[Any, Any], line: str) -> tuple[asyncio.StreamReader, Any]:
    """A request whose body does not come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.server.port)
    head = "Host: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n"
    writer.write(f"{line} HTTP/1.1\r\n{head}".encode())
    await writer.drain()
    return reader, writer


async def test_a_body_that_never_comes_holds_up_nobody_else(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    reader, writer = await begun(client, f"GET {PREFIX}/openapi.json")
    async with asyncio.timeout(10):
        assert b" 400 " in await reader.readline()
        await site.records.consultations.open_ones()
    writer.close()


async def test_who_sends_a_body_too_slowly_is_told_and_let_go(
    client: TestClient[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "READ_WITHIN_S", 0.1)
    reader, writer = await begun(client, f"POST {PREFIX}/auth/openid")
    async with asyncio.timeout(10):
        assert b" 408 " in await reader.readline()
    writer.close()
