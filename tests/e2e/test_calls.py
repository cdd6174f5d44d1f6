"""Calls in a consultation: of two through the relay, of several at the door of Jitsi."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
import pytest_asyncio

from appservice.jitsi import REFUSED
from tests.browser.doctor_page import BrowserDoctor, Media
from tests.e2e.ward import JITSI, Ward
from tests.turn import OK, Coturn, TurnClient

ENOUGH_BYTES = 8000
"""Seconds of sound; nobody sends so much to set a connection up."""


@pytest_asyncio.fixture(loop_scope="session")
async def relay(coturn: Coturn) -> AsyncIterator[Coturn]:
    await coturn.start()
    yield coturn
    await coturn.stop()


async def token_of(ward: Ward, localpart: str, password: str) -> str:
    return await ward.clinic.synapse.login(localpart, password)


async def asked(ward: Ward, method: str, path: str, token: str) -> Any:
    """An answer of the client-server API."""
    url = f"{ward.clinic.synapse.base_url}/_matrix/client/v3/{path}"
    headers = {"Authorization": f"Bearer {token}"}
    body = {} if method == "POST" else None
    async with (
        aiohttp.ClientSession(headers=headers, raise_for_status=True) as session,
        session.request(method, url, json=body) as response,
    ):
        return await response.json()


async def consultation(ward: Ward, doctor: str, patient: str) -> str:
    """A consultation of these two; its room."""
    number = secrets.token_hex(6).upper()
    body = {
        "number": f"E-{number}",
        "initials": "B.T.",
        "bed": "12",
        "clinicians": [doctor],
        "patient_account": patient,
    }
    return str((await ward.clinic.api("consultations", body))["room_id"])


# --- of two --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("relay")
@pytest.mark.parametrize("caller", ["doctor", "patient"])
async def test_two_people_call_each_other_through_the_relay_alone(ward: Ward, caller: str) -> None:
    url = ward.clinic.synapse.base_url
    local_d, doctor_id, doctor_password = await ward.account("dr.call")
    local_p, patient_id, patient_password = await ward.account("patient.call")
    async with (
        BrowserDoctor(url, local_d, doctor_password, relay_only=True) as doctor,
        BrowserDoctor(url, local_p, patient_password, relay_only=True) as patient,
    ):
        await asyncio.gather(doctor.ready(), patient.ready())
        room = await consultation(ward, doctor_id, patient_id)
        for one in (doctor, patient):
            await one.joined(room, doctor_id)
            await one.joined(room, patient_id)
        first, second = (doctor, patient) if caller == "doctor" else (patient, doctor)

        await first.call(room, video=caller == "doctor")
        await second.call_is(room, "ringing")
        await second.answer(room)
        await asyncio.gather(first.call_is(room, "connected"), second.call_is(room, "connected"))
        for one in (first, second):
            travels(await one.media(room, at_least_bytes=ENOUGH_BYTES), video=caller == "doctor")

        await second.hang_up(room)
        ended = await first.call_is(room, "ended")
        assert ended.reason == "user_hangup"

        for kind, sender in (("m.call.invite", first), ("m.call.answer", second)):
            event = await (second if sender is first else first).wait_for(
                lambda one, kind=kind: one.room_id == room and one.type == kind
            )
            assert (event.sender, event.encrypted) == (sender.user_id, True)
        # What the homeserver saw of it: ciphertext.
        token = await token_of(ward, local_d, doctor_password)
        page = await asked(ward, "GET", f"rooms/{quote(room)}/messages?dir=b&limit=200", token)
        assert {one["type"] for one in page["chunk"] if one["type"].startswith("m.call")} == set()


def travels(media: Media, *, video: bool) -> None:
    """Both ways, by the relay on both sides."""
    kinds = {"audio", "video"} if video else {"audio"}
    assert set(media.sent) == set(media.received) == kinds
    assert (media.local, media.remote) == ("relay", "relay")
    assert "audio/opus" in media.codecs


async def test_credentials_of_the_relay_come_from_the_homeserver_and_no_others_are_good(
    ward: Ward, relay: Coturn
) -> None:
    localpart, mxid, password = await ward.account("dr.relay")
    given = await asked(ward, "GET", "voip/turnServer", await token_of(ward, localpart, password))
    assert given["uris"] == [relay.uri]
    expires, _, who = given["username"].partition(":")
    assert who == mxid
    assert 0 < int(expires) - time.time() <= given["ttl"] == 3600

    def answer(username: str, secret: str) -> int:
        with TurnClient(relay.port, username, secret) as client:
            return client.allocate()

    def signed(username: str, key: str) -> str:
        return base64.b64encode(hmac.digest(key.encode(), username.encode(), hashlib.sha1)).decode()

    shared = relay.secret_file.read_text(encoding="ascii")
    past = f"{int(time.time()) - 60}:{mxid}"
    assert await asyncio.to_thread(answer, given["username"], given["password"]) == OK
    for username, wrong in (
        (given["username"], "wrong"),
        (given["username"], signed(given["username"], "another secret")),
        (f"{expires}:@somebody.else:clinique.test", given["password"]),
        (mxid, given["password"]),
        (past, signed(past, shared)),
    ):
        assert await asyncio.to_thread(answer, username, wrong) == 401, username


async def test_the_relay_reaches_nothing_inside_but_itself(ward: Ward, relay: Coturn) -> None:
    localpart, _, password = await ward.account("dr.inside")
    given = await asked(ward, "GET", "voip/turnServer", await token_of(ward, localpart, password))
    with TurnClient(relay.port, given["username"], given["password"]) as client:
        assert await asyncio.to_thread(client.allocate) == OK
        reached = {
            address: await asyncio.to_thread(client.permit, address)
            for address in (
                *("0.0.0.1", "10.0.0.1", "100.64.0.1", "127.0.0.2", "169.254.169.254"),
                *("172.16.0.1", "192.168.1.1", "224.0.0.1", "255.255.255.255"),
            )
        }
        assert set(reached.values()) == {403}, reached
        assert await asyncio.to_thread(client.permit, "127.0.0.1") == OK
        assert await asyncio.to_thread(client.permit, "41.82.1.1") == OK


# --- of several ----------------------------------------------------------------------------------


async def at_the_door(
    ward: Ward, room: str, token: str, user: str, *, server: str | None = None
) -> dict[str, Any]:
    """What Jitsi's Prosody is told about somebody who comes with a token of the homeserver.

    Args:
        ward: where.
        room: of the consultation.
        token: of his login.
        user: who comes.
        server: whose token he says it is, if that is not true.
    """
    given = await asked(ward, "POST", f"user/{quote(user)}/openid/request_token", token)
    url = f"http://127.0.0.1:{ward.clinic.options.ports.appservice}/fajma/jitsi/verify/user_in_room"
    question = {
        "token": given["access_token"],
        "room_id": room,
        "matrix_server_name": server or given["matrix_server_name"],
    }
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {JITSI.token}"}) as session,
        session.post(url, json=question) as response,
    ):
        answer: dict[str, Any] = await response.json()
        return answer


async def test_jitsi_lets_in_who_has_joined_the_consultation_and_nobody_else(ward: Ward) -> None:
    local_d, doctor, password_d = await ward.account("dr.jitsi")
    local_p, patient, password_p = await ward.account("patient.jitsi")
    local_s, stranger, password_s = await ward.account("dr.elsewhere")
    room = await consultation(ward, doctor, patient)
    doctors = await token_of(ward, local_d, password_d)
    assert await at_the_door(ward, room, doctors, doctor) == REFUSED  # invited only
    await asked(ward, "POST", f"rooms/{quote(room)}/join", doctors)
    answer = await at_the_door(ward, room, doctors, doctor)
    assert answer["results"] == {"user": True, "room_membership": True}
    assert answer["user_id"] == doctor

    patients = await token_of(ward, local_p, password_p)
    await asked(ward, "POST", f"rooms/{quote(room)}/join", patients)
    assert (await at_the_door(ward, room, patients, patient))["user_id"] == patient
    mark = ward.log_mark()
    assert await at_the_door(ward, room, doctors, doctor, server="elsewhere.test") == REFUSED
    await ward.log_says("openid_refused", mark)
    strangers = await token_of(ward, local_s, password_s)
    assert await at_the_door(ward, room, strangers, stranger) == REFUSED
    await asked(ward, "POST", f"rooms/{quote(room)}/leave", doctors)
    assert await at_the_door(ward, room, doctors, doctor) == REFUSED
