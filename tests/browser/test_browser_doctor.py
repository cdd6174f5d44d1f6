"""The browser client that other tests rely on reads what it should and refuses the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import aiohttp
import pytest

from console.synapse import Synapse
from fajma.errors import InputError, UnavailableError
from tests.browser.doctor_page import BrowserDoctor

PASSWORD = "scratch-password"
VITALS = {"heart_rate": {"value": 821, "exponent": -1}, "spo2": {"value": 97, "exponent": 0}}


async def browser_of(homeserver: Synapse, role: str, *, signed: bool = True) -> BrowserDoctor:
    localpart = f"{role}-{uuid4().hex[:8]}"
    await homeserver.register(localpart, PASSWORD)
    return BrowserDoctor(homeserver.base_url, localpart, PASSWORD, cross_sign=signed)


async def shared_room(sender: BrowserDoctor, doctor: BrowserDoctor) -> str:
    room = await sender.create_room(invite=[doctor.user_id])
    await doctor.joined(room)
    await sender.joined(room, doctor.user_id)
    return room


async def move_encrypted_state(
    base_url: str, user: str, room: str, old_key: str, new_key: str
) -> None:
    """What a hostile homeserver can do: the same ciphertext under another outer state key."""
    login = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": user},
        "password": PASSWORD,
    }
    api = f"{base_url}/_matrix/client/v3"
    state = f"{api}/rooms/{quote(room)}/state/m.room.encrypted"
    async with aiohttp.ClientSession(raise_for_status=True) as http:
        async with http.post(f"{api}/login", json=login) as answer:
            token = (await answer.json())["access_token"]
        headers = {"Authorization": f"Bearer {token}"}
        async with http.get(f"{state}/{quote(old_key)}", headers=headers) as answer:
            content: dict[str, Any] = await answer.json()
        async with http.put(f"{state}/{quote(new_key)}", headers=headers, json=content):
            pass


async def test_the_doctor_reads_messages_and_encrypted_state_of_a_signed_sender_only(
    homeserver: Synapse, tmp_path: Path
) -> None:
    async with (
        await browser_of(homeserver, "doctor") as doctor,
        await browser_of(homeserver, "monitor") as monitor,
        await browser_of(homeserver, "stranger", signed=False) as stranger,
    ):
        for browser in (doctor, monitor, stranger):
            await browser.ready()
        room = await monitor.create_room(invite=[doctor.user_id])
        early_id = await monitor.send(room, "com.fajma.vitals", VITALS, state_key="early")
        early = await doctor.wait_for(lambda event: event.event_id == early_id)
        assert early.content == VITALS

        alarm_id = await monitor.send(
            room,
            "m.room.message",
            {"msgtype": "m.text", "body": "ALARME HAUTE · SpO2 86 %", "com.fajma.alarm": {"v": 1}},
        )
        alarm = await doctor.wait_for(lambda event: event.event_id == alarm_id)
        assert alarm.type == "m.room.message"
        assert alarm.sender == monitor.user_id
        assert alarm.content["body"] == "ALARME HAUTE · SpO2 86 %"
        assert alarm.encrypted
        assert alarm.shield_colour == "NONE"

        state_id = await monitor.send(room, "com.fajma.vitals", VITALS, state_key="9f3c")
        vitals = await doctor.wait_for(lambda event: event.event_id == state_id)
        assert (vitals.type, vitals.state_key) == ("com.fajma.vitals", "9f3c")
        assert vitals.content == VITALS
        assert vitals.encrypted

        picture = tmp_path / "doctor.png"
        await doctor.screenshot(picture)
        assert picture.read_bytes().startswith(b"\x89PNG")

        strange_room = await shared_room(stranger, doctor)
        strange_id = await stranger.say(strange_room, "read me")
        failure = await doctor.wait_for_failure(lambda one: one.event_id == strange_id)
        assert failure.reason == "UNSIGNED_SENDER_DEVICE"
        assert strange_id not in {event.event_id for event in doctor.events}

        await move_encrypted_state(
            homeserver.base_url,
            monitor.user_id,
            room,
            "com.fajma.vitals:9f3c",
            "com.fajma.vitals:0000",
        )
        await doctor.wait_for_failure(lambda one: one.state_key == "com.fajma.vitals:0000")
        assert "0000" not in {event.state_key for event in doctor.events}

        ids = [event.event_id for event in doctor.events]
        assert len(ids) == len(set(ids))


async def test_a_wrong_password_is_said_at_once(homeserver: Synapse) -> None:
    doctor = await browser_of(homeserver, "doctor")
    doctor._settings["password"] = "wrong"
    async with doctor:
        with pytest.raises(UnavailableError, match="Invalid username or password"):
            await doctor.ready()


async def test_an_identity_the_browser_does_not_hold_is_never_replaced(homeserver: Synapse) -> None:
    first = await browser_of(homeserver, "doctor")
    async with first:
        await first.ready()
    async with BrowserDoctor(homeserver.base_url, first.user_id, PASSWORD) as again:
        with pytest.raises(UnavailableError, match="use a fresh account"):
            await again.ready()


async def test_a_missing_program_is_named_with_the_way_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHROMIUM", "/nowhere/chromium")
    with pytest.raises(UnavailableError, match="apt-get install chromium"):
        async with BrowserDoctor("http://127.0.0.1:1", "doctor", PASSWORD):
            pass


async def test_an_order_that_the_homeserver_refuses_raises(homeserver: Synapse) -> None:
    async with await browser_of(homeserver, "doctor") as doctor:
        with pytest.raises(InputError, match="refused"):
            await doctor.say("!nowhere:localhost", "hello")
