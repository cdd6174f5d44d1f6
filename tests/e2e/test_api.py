"""The REST API as hospital software meets it."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from appservice.api.sign_in import signed_request
from console.clinic import DOCTOR
from fajma.config import read_secret
from fajma.vitals import Kind
from tests.e2e.ward import Ward


def booking(ward: Ward, **changes: Any) -> dict[str, Any]:
    mark = secrets.token_hex(6).upper()
    return {
        "number": f"API-{mark}",
        "initials": "N.S.",
        "bed": "12",
        "clinicians": [ward.clinic.mxid(DOCTOR)],
        "device": mark,
    } | changes


def token(ward: Ward) -> str:
    return read_secret(ward.clinic.secrets_directory / "api-token", purpose="API token")


async def post(
    ward: Ward, body: bytes | Mapping[str, Any], authorization: str | None
) -> tuple[int, dict[str, Any]]:
    url = f"http://127.0.0.1:{ward.clinic.options.ports.appservice}/fajma/v1/consultations"
    headers = {"Content-Type": "application/json"}
    if authorization is not None:
        headers["Authorization"] = authorization
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(url, data=data) as response,
    ):
        return response.status, await response.json()


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer ", "Bearer wrong", "Basic d3Jvbmc=", "Bearer ÿé"]
)
async def test_who_does_not_show_the_token_is_refused(
    ward: Ward, authorization: str | None
) -> None:
    status, answer = await post(ward, booking(ward), authorization)
    assert status == 401
    assert answer["code"] == ("token_missing" if authorization is None else "token_refused")


async def test_the_homeservers_tokens_do_not_open_the_api(ward: Ward) -> None:
    site = ward.clinic.synapse.site
    for path in (site.as_token_file, site.hs_token_file):
        stolen = read_secret(path, purpose="token")
        status, _ = await post(ward, booking(ward), f"Bearer {stolen}")
        assert status == 401


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"number": ""}, "number"),
        ({"initials": "far too long for initials" * 3}, "initials is too long"),
        ({"clinicians": []}, "clinicians is empty"),
        ({"clinicians": ["awa"]}, "write Matrix user ids like @awa:hospital.example"),
        ({"clinicians": "@awa:clinic.test"}, "clinicians"),
        ({"patient_account": "not an account"}, "write Matrix user ids"),
        ({"device": "A4:CF:12:F0:3B:7E"}, "a monitor is twelve hex digits"),
        ({"language": "xx"}, "language is one of: 'fr' or 'en'"),
        ({"note": "unknown"}, "note is not known here"),
        ({"bed": None}, "bed"),
    ],
)
async def test_a_wrong_field_is_named_and_not_quoted(
    ward: Ward, changes: dict[str, Any], says: str
) -> None:
    status, answer = await post(ward, booking(ward, **changes), f"Bearer {token(ward)}")
    assert status == 400
    assert answer["code"] == "body_invalid"
    assert says in answer["detail"]
    for value in changes.values():
        if isinstance(value, str) and len(value) > 3:
            assert value not in answer["detail"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "body_invalid"),
        (b"[]", "body_invalid"),
        (b"\xff\xfe", "body_invalid"),
        (b"", "body_invalid"),
        (b'{"number": "' + b"x" * 70_000 + b'"}', "body_too_large"),
    ],
)
async def test_a_body_that_is_no_booking_is_refused(ward: Ward, body: bytes, code: str) -> None:
    status, answer = await post(ward, body, f"Bearer {token(ward)}")
    assert (status, answer["code"]) == (413 if code == "body_too_large" else 400, code)
    assert len(answer["detail"]) < 300


async def test_booking_again_gives_the_same_consultation(ward: Ward) -> None:
    body = booking(ward)
    first = await ward.clinic.api("consultations", body)
    assert await ward.clinic.api("consultations", body) == first
    assert await ward.clinic.api("consultations", body | {"device": None}) == first


async def test_bookings_at_the_same_moment_share_one_room(ward: Ward) -> None:
    body = booking(ward)
    answers = await asyncio.gather(*(ward.clinic.api("consultations", body) for _ in range(5)))
    assert all(answer == answers[0] for answer in answers)
    other = await ward.clinic.api("consultations", booking(ward))
    assert other["room_id"] != answers[0]["room_id"]
    assert other["patient"] != answers[0]["patient"]


async def signed_in(ward: Ward, *, device_signs: bool = True) -> tuple[int, dict[str, Any]]:
    """The doctor's client signs in, at his real homeserver."""
    client = ward.observer.client
    path = f"user/{quote(client.user_id)}/openid/request_token"
    status, token = await ward.matrix("POST", path, {})
    assert status == 200, token
    request = signed_request(
        server_name=ward.clinic.synapse.site.server_name,
        openid_token=token["access_token"],
        openid_server=token["matrix_server_name"],
    )
    assert client.olm is not None
    signature = client.olm.sign_json(request if device_signs else {"another": "thing"})
    return await ask(
        ward,
        "auth/openid",
        token | {"device_id": client.device_id, "signature": signature},
    )


async def ask(ward: Ward, path: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    url = f"http://127.0.0.1:{ward.clinic.options.ports.appservice}/fajma/v1/{path}"
    async with aiohttp.ClientSession() as session, session.post(url, json=body) as response:
        return response.status, await response.json()


async def test_a_doctor_signs_in_with_the_device_he_reads_with_and_follows_his_patient(
    ward: Ward,
) -> None:
    bedside = await ward.admit()
    status, tokens = await signed_in(ward)
    assert status == 200, tokens
    headers = {"Authorization": f"Bearer {tokens['access_token']}"}
    base = f"http://127.0.0.1:{ward.clinic.options.ports.appservice}/fajma/v1"
    async with aiohttp.ClientSession(headers=headers) as session:
        async with session.get(f"{base}/consultations") as response:
            [consultation] = [
                one
                for one in (await response.json())["consultations"]
                if one["room_id"] == bedside.room_id
            ]
        stream = f"{base}/consultations/{consultation['consultation']}/stream"
        async with session.get(stream) as response, ward.monitor(bedside) as monitor:
            await monitor.send({Kind.HEART_RATE: Decimal(78), Kind.SPO2: Decimal(97)})
            async with asyncio.timeout(20):
                while not (line := await response.content.readline()).startswith(b"data: "):
                    assert line
        values = {one["kind"]: one["value"] for one in json.loads(line[6:])["values"]}
        assert values == {"heart_rate": 78, "spo2": 97}
        observations = f"{base}/patients/{bedside.patient}/observations"
        async with session.get(observations) as response:
            [found] = (await response.json())["observations"]
        assert found["device"] == bedside.device


async def test_an_openid_token_without_the_devices_signature_opens_nothing(ward: Ward) -> None:
    await ward.admit()
    status, answer = await signed_in(ward, device_signs=False)
    assert (status, answer["code"]) == (401, "token_refused")
