"""Signing in: whose tokens count, for how long, and what ends them."""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from joserfc import jwt
from joserfc.jwk import OctKey, OKPKey

from appservice.api.tokens import KEY_FILE
from fajma.errors import UnavailableError
from fajma.store import Records
from tests.integration.api_site import (
    BEN,
    PATIENT,
    STRANGER,
    ApiSite,
    Caller,
    FakePhone,
    furnished,
    served,
)
from tests.integration.scene import AWA, MOUSSA


@pytest.fixture
async def site(records: Records, tmp_path: Path) -> ApiSite:
    return await furnished(records, tmp_path / "secrets")


@pytest.fixture
async def client(site: ApiSite) -> AsyncIterator[TestClient[Any, Any]]:
    async with served(site) as client:
        yield client


def bearer(client: TestClient[Any, Any], token: str) -> Caller:
    return Caller(client, {"Authorization": f"Bearer {token}"})


async def acts(site: ApiSite) -> list[str]:
    return [one.action for one in await site.records.audit.latest()]


async def begins(client: TestClient[Any, Any], body: dict[str, Any]) -> tuple[int, str]:
    status, answer = await Caller(client, {}).asks("POST", "/auth/openid", body)
    return status, answer.get("code", "")


# --- who gets a token ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("account", "roles"), [(AWA, ["doctor"]), (PATIENT, ["patient"]), (BEN, ["partner"])]
)
async def test_who_belongs_to_us_signs_in_with_a_trusted_device(
    site: ApiSite, client: TestClient[Any, Any], account: str, roles: list[str]
) -> None:
    tokens = await site.sign_in(client, account)
    assert tokens["token_type"] == "Bearer"
    assert tokens["expires_in"] == 600
    _, me = await bearer(client, tokens["access_token"]).asks("GET", "/me")
    assert (me["account"], me["roles"]) == (account, roles)
    assert await acts(site) == ["api.sign_in"]


async def test_a_stranger_gets_no_token_however_well_he_signs(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    phone = await site.phone(STRANGER)
    body = phone.signs(*site.openid.give(STRANGER))
    assert await begins(client, body) == (401, "token_refused")


async def test_a_homeserver_alone_cannot_sign_anybody_in(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    """It can make OpenID tokens of all its people, and devices; not a signature of one of ours."""
    phone = await site.phone(AWA)
    made_up = FakePhone(AWA, phone.device_id)
    assert await begins(client, made_up.signs(*site.openid.give(AWA))) == (401, "token_refused")
    other = FakePhone(AWA, "ANOTHER")
    assert await begins(client, other.signs(*site.openid.give(AWA))) == (401, "token_refused")
    assert await acts(site) == ["api.device_refused", "api.device_refused"]


async def test_a_signature_is_for_one_token_of_one_person_at_one_hospital(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    phone = await site.phone(AWA)
    token, server = site.openid.give(AWA)
    elsewhere = phone.signs(token, server, audience="other.test")
    assert await begins(client, elsewhere) == (401, "token_refused")
    before = phone.signs(*site.openid.give(AWA))
    mixed = before | {"access_token": site.openid.give(AWA)[0]}
    assert await begins(client, mixed) == (401, "token_refused")
    as_moussa = phone.signs(*site.openid.give(MOUSSA))
    assert await begins(client, as_moussa) == (401, "token_refused")


async def test_each_openid_token_is_taken_once(site: ApiSite, client: TestClient[Any, Any]) -> None:
    body = (await site.phone(AWA)).signs(*site.openid.give(AWA))
    assert (await begins(client, body))[0] == 200
    assert await begins(client, body) == (401, "token_refused")
    assert "api.openid_replayed" in await acts(site)


async def test_a_homeserver_that_is_away_is_said_so_and_uses_up_no_token(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    body = (await site.phone(AWA)).signs(*site.openid.give(AWA))
    site.openid.fails = UnavailableError("it does not answer", code="openid_unavailable")
    assert await begins(client, body) == (503, "openid_unavailable")
    site.openid.fails = None
    assert (await begins(client, body))[0] == 200


# --- access tokens -------------------------------------------------------------------------------


async def test_an_access_token_is_good_for_ten_minutes(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    tokens = await site.sign_in(client, AWA)
    caller = bearer(client, tokens["access_token"])
    site.now += timedelta(minutes=9, seconds=59)
    assert (await caller.asks("GET", "/me"))[0] == 200
    site.now += timedelta(seconds=1)
    assert (await caller.asks("GET", "/me"))[0] == 401


async def test_who_leaves_the_staff_gets_nothing_at_once(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    tokens = await site.sign_in(client, AWA)
    caller = bearer(client, tokens["access_token"])
    assert (await caller.asks("GET", f"/patients/{site.mine.key}"))[0] == 200
    person = await site.records.people.get(AWA)
    assert person is not None
    async with site.records.store.transaction() as connection:
        await site.records.people.put(connection, replace(person, left_at=site.now))
    assert (await caller.asks("GET", f"/patients/{site.mine.key}"))[0] == 401
    refresh = {"refresh_token": tokens["refresh_token"]}
    assert (await Caller(client, {}).asks("POST", "/auth/refresh", refresh))[0] == 401
    again = (await site.phone(AWA)).signs(*site.openid.give(AWA))
    assert await begins(client, again) == (401, "token_refused")


async def test_a_lost_phone_ends_what_was_begun_with_it(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    tokens = await site.sign_in(client, AWA)
    phone = await site.phone(AWA)
    async with site.records.store.transaction() as connection:
        await site.records.pins.block(connection, AWA, [phone.device_id])
    assert (await bearer(client, tokens["access_token"]).asks("GET", "/me"))[0] == 401
    refresh = {"refresh_token": tokens["refresh_token"]}
    assert (await Caller(client, {}).asks("POST", "/auth/refresh", refresh))[0] == 401


async def test_signing_out_ends_every_token_of_the_session(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    tokens, other = await site.sign_in(client, AWA), await site.sign_in(client, AWA)
    caller = bearer(client, tokens["access_token"])
    assert (await caller.asks("POST", "/auth/sign-out"))[0] == 200
    assert (await caller.asks("GET", "/me"))[0] == 401
    refresh = {"refresh_token": tokens["refresh_token"]}
    assert (await Caller(client, {}).asks("POST", "/auth/refresh", refresh))[0] == 401
    assert (await bearer(client, other["access_token"]).asks("GET", "/me"))[0] == 200


def encoded(part: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


async def test_a_token_that_we_did_not_sign_so_is_refused(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    access = (await site.sign_in(client, AWA))["access_token"]
    head, body, signature = access.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    header = json.loads(base64.urlsafe_b64decode(head + "=="))
    assert (header["alg"], header["typ"]) == ("Ed25519", "at+jwt")
    assert {"iss", "aud", "sub", "sid", "jti", "iat", "exp"} == set(claims)
    path = site.settings.secrets.directory / KEY_FILE
    [kept] = json.loads(path.read_text(encoding="utf-8"))
    ours = OKPKey.import_key(kept["key"])
    public = OctKey.import_key(base64.urlsafe_b64decode(kept["key"]["x"] + "=="))
    foreign = OKPKey.generate_key("Ed25519", parameters={"kid": header["kid"]})
    as_moussa = claims | {"sub": MOUSSA}
    forged = [
        f"{head}.{encoded(as_moussa)}.{signature}",
        f"{encoded(header | {'alg': 'none'})}.{body}.",
        f"{encoded({'alg': 'none'})}.{encoded(as_moussa)}.",
        jwt.encode(header | {"alg": "HS256"}, claims, public, algorithms=["HS256"]),
        jwt.encode(header, claims, foreign, algorithms=["Ed25519"]),
        *(
            jwt.encode(header, changed, ours, algorithms=["Ed25519"])
            for changed in (
                claims | {"aud": "another-api"},
                claims | {"iss": "fajma:other.test"},
                claims | {"exp": claims["iat"] - 1},
                claims | {"sub": MOUSSA},  # not whose session it is
                claims | {"sid": "0" * 32},
                {name: value for name, value in claims.items() if name != "exp"},
                {name: value for name, value in claims.items() if name != "sid"},
            )
        ),
        jwt.encode(header | {"typ": "JWT"}, claims, ours, algorithms=["Ed25519"]),
        jwt.encode(header | {"kid": "another"}, claims, ours, algorithms=["Ed25519"]),
        access + "A",
        access[:-2],
        "x" * 5000 + ".x.x",
    ]
    for token in forged:
        assert (await bearer(client, token).asks("GET", "/me"))[0] == 401, token
    assert (await bearer(client, access).asks("GET", "/me"))[0] == 200


async def test_the_keys_are_for_us_alone_and_change_with_an_overlap(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    await site.sign_in(client, AWA)
    path = site.settings.secrets.directory / KEY_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    site.now += timedelta(days=30) - timedelta(minutes=1)
    before = (await site.sign_in(client, AWA))["access_token"]
    site.now += timedelta(minutes=1)
    after = (await site.sign_in(client, AWA))["access_token"]
    assert before.split(".")[0] != after.split(".")[0]
    assert (await bearer(client, before).asks("GET", "/me"))[0] == 200
    async with served(site) as restarted:
        for token in (before, after):
            assert (await bearer(restarted, token).asks("GET", "/me"))[0] == 200


# --- refresh tokens ------------------------------------------------------------------------------


async def refreshed(client: TestClient[Any, Any], token: str) -> tuple[int, Any]:
    return await Caller(client, {}).asks("POST", "/auth/refresh", {"refresh_token": token})


async def test_a_refresh_token_gives_the_next_pair(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    tokens = await site.sign_in(client, AWA)
    site.now += timedelta(minutes=30)
    status, following = await refreshed(client, tokens["refresh_token"])
    assert status == 200
    assert following["refresh_token"] != tokens["refresh_token"]
    assert (await bearer(client, following["access_token"]).asks("GET", "/me"))[0] == 200


async def test_who_refreshes_may_still_show_the_token_that_is_over(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    tokens = await site.sign_in(client, AWA)
    site.now += timedelta(minutes=11)
    caller = bearer(client, tokens["access_token"])
    refresh = {"refresh_token": tokens["refresh_token"]}
    assert (await caller.asks("POST", "/auth/refresh", refresh))[0] == 200


async def test_a_refresh_token_that_is_used_twice_ends_its_session_and_is_audited(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    tokens = await site.sign_in(client, AWA)
    _, following = await refreshed(client, tokens["refresh_token"])
    assert (await refreshed(client, tokens["refresh_token"]))[0] == 401
    assert (await refreshed(client, following["refresh_token"]))[0] == 401
    assert (await bearer(client, following["access_token"]).asks("GET", "/me"))[0] == 401
    assert (await acts(site)).count("api.refresh_reused") == 1
    assert (
        await bearer(client, (await site.sign_in(client, AWA))["access_token"]).asks("GET", "/me")
    )[0] == 200


async def test_a_session_that_is_away_for_a_day_or_is_a_week_old_is_over(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    tokens = await site.sign_in(client, AWA)
    site.now += timedelta(hours=24)
    assert (await refreshed(client, tokens["refresh_token"]))[0] == 401
    tokens = await site.sign_in(client, MOUSSA)
    for _ in range(8):
        site.now += timedelta(hours=20)
        status, tokens = await refreshed(client, tokens["refresh_token"])
        assert status == 200
    site.now += timedelta(hours=20)
    assert (await refreshed(client, tokens["refresh_token"]))[0] == 401


async def test_what_is_no_refresh_token_is_refused(client: TestClient[Any, Any]) -> None:
    assert (await refreshed(client, "x" * 43))[0] == 401
    assert (await refreshed(client, "x"))[0] == 400


async def test_no_token_is_in_the_database(site: ApiSite, client: TestClient[Any, Any]) -> None:
    tokens = await site.sign_in(client, AWA)
    rows = [
        dict(row)
        for table in ("api_session", "api_refresh", "openid_taken")
        for row in await site.records.store.db.fetch(f"SELECT * FROM {table}")  # noqa: S608
    ]
    assert len(rows) == 3
    for secret in (
        tokens["access_token"],
        tokens["refresh_token"],
        *next(iter(site.openid.tokens))[:1],
    ):
        assert secret not in str(rows)
