"""The signed nio client against a real Synapse."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import shutil
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import pytest
from aiohttp import web
from mautrix.client import Client as MautrixClient
from mautrix.crypto.cross_signing_key import CrossSigningSeeds as MautrixSeeds
from mautrix.crypto.ssss import Machine as MautrixStorage
from mautrix.types import EventType
from nio import (
    AsyncClient,
    AsyncClientConfig,
    Event,
    KeysUploadResponse,
    MegolmEvent,
    RoomMessageText,
    RoomSendResponse,
    ShareGroupSessionResponse,
    ToDeviceMessage,
    UnknownEvent,
)
from nio.store import SqliteMemoryStore

from bots.alerts import client as client_module
from bots.alerts.client import SignedClient
from console.synapse import Synapse
from fajma.errors import BugError, DecodeError, InputError, UnavailableError
from fajma.trust import CrossSigningSeeds, decode_recovery_key, signed_devices

PATIENCE_S = 20
ENCRYPTION = {
    "type": "m.room.encryption",
    "state_key": "",
    "content": {
        "algorithm": "m.megolm.v1.aes-sha2",
        "io.element.msc4362.encrypt_state_events": True,
    },
}
KIND = "com.fajma.vitals"


class Account:
    """A fresh account of the test homeserver."""

    def __init__(self, homeserver: Synapse, name: str) -> None:
        self.homeserver = homeserver
        self.localpart = f"{name}-{secrets.token_hex(4)}"
        self.password = secrets.token_urlsafe(12)
        self.user_id = ""

    async def register(self) -> Account:
        self.user_id = await self.homeserver.register(self.localpart, self.password)
        return self

    def client(self, directory: Path, base_url: str | None = None) -> SignedClient:
        return SignedClient(base_url or self.homeserver.base_url, self.user_id, directory)


class Running:
    """A client that receives, and what it received."""

    def __init__(self, client: SignedClient) -> None:
        self.client = client
        self.events: list[Event] = []
        self._news = asyncio.Event()
        client.add_event_callback(self._on_event, Event)
        self.task = asyncio.create_task(client.run_sync(poll_s=10))

    async def _on_event(self, _room: Any, event: Event) -> None:
        self.events.append(event)
        self._news.set()

    async def event(self, wanted: Callable[[Event], bool]) -> Event:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for event in self.events:
                    if wanted(event):
                        return event
                self._news.clear()
                await self._news.wait()

    async def message(self, body: str) -> RoomMessageText:
        return await self.event(lambda e: isinstance(e, RoomMessageText) and e.body == body)

    async def undecrypted(self, event_id: str) -> MegolmEvent:
        return await self.event(lambda e: isinstance(e, MegolmEvent) and e.event_id == event_id)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await self.client.synced.wait()


@asynccontextmanager
async def running(
    account: Account, directory: Path, base_url: str | None = None
) -> AsyncIterator[Running]:
    """Start a session, receive until the end of the block, then close."""
    client = account.client(directory, base_url)
    try:
        await client.start_session(account.password)
        async with receiving(client) as peer:
            async with asyncio.timeout(PATIENCE_S):
                await client.ready.wait()
            yield peer
    finally:
        await client.close()


@asynccontextmanager
async def receiving(client: SignedClient) -> AsyncIterator[Running]:
    peer = Running(client)
    try:
        yield peer
    finally:
        peer.task.cancel()
        await asyncio.gather(peer.task, return_exceptions=True)


async def send(client: SignedClient, room_id: str, body: str) -> str:
    answer = await client.room_send(room_id, "m.room.message", {"msgtype": "m.text", "body": body})
    assert isinstance(answer, RoomSendResponse)
    return answer.event_id


async def common_room(owner: Running, *guests: Running, encrypted: bool = True) -> str:
    created = await owner.client.room_create(
        invite=[guest.client.user_id for guest in guests],
        initial_state=[ENCRYPTION] if encrypted else [],
    )
    room_id = created.room_id
    for guest in guests:
        await guest.client.join(room_id)
    members = {peer.client.user_id for peer in (owner, *guests)}
    for peer in (owner, *guests):
        await peer.until(lambda peer=peer: set_of_members(peer.client, room_id) == members)
    return room_id


def set_of_members(client: SignedClient, room_id: str) -> set[str]:
    room = client.rooms.get(room_id)
    return {user for user, member in room.users.items() if not member.invited} if room else set()


async def call(client: AsyncClient, method: str, path: str, body: Any = None) -> dict[str, Any]:
    response = await client.send(
        method,
        f"/_matrix/client/v3/{path}",
        None if body is None else json.dumps(body),
        {"Authorization": f"Bearer {client.access_token}"},
    )
    return await response.json()


async def published_keys(client: AsyncClient, user_id: str) -> dict[str, Any]:
    return await call(client, "POST", "keys/query", {"device_keys": {user_id: []}})


@asynccontextmanager
async def unsigned_device(account: Account) -> AsyncIterator[AsyncClient]:
    """A second device of an account: plain nio, which knows no cross-signing."""
    config = AsyncClientConfig(store=SqliteMemoryStore, pickle_key="x")
    client = AsyncClient(account.homeserver.base_url, account.user_id, "", "memory", config)
    try:
        await client.login(account.password)
        assert isinstance(await client.keys_upload(), KeysUploadResponse)
        yield client
    finally:
        await client.close()


async def sign(device: AsyncClient, directory: Path) -> None:
    """Sign a device as its owner would, with the identity kept for a signed client."""
    recovery = decode_recovery_key((directory / "recovery-key").read_text())
    path = f"user/{device.user_id}/account_data"
    default = await call(device, "GET", f"{path}/m.secret_storage.default_key")
    opener = SignedClient(device.homeserver, device.user_id, directory)
    opener.access_token, opener.user_id = device.access_token, device.user_id
    seeds = await opener._stored_seeds(default["key"], recovery)
    await opener.close()
    keys = (await published_keys(device, device.user_id))["device_keys"][device.user_id]
    body = seeds.signatures_body(device.user_id, keys[device.device_id])
    answer = await call(device, "POST", "keys/signatures/upload", body)
    assert answer["failures"] == {}


@pytest.fixture
async def asha(homeserver: Synapse) -> Account:
    return await Account(homeserver, "asha").register()


@pytest.fixture
async def ben(homeserver: Synapse) -> Account:
    return await Account(homeserver, "ben").register()


@pytest.fixture
async def pair(
    asha: Account, ben: Account, tmp_path: Path
) -> AsyncIterator[tuple[Running, Running]]:
    async with running(asha, tmp_path / "a") as a, running(ben, tmp_path / "b") as b:
        yield a, b


Pair = tuple[Running, Running]


async def test_two_signed_clients_read_each_other(pair: Pair):
    a, b = pair
    room_id = await common_room(a, b)
    await send(a.client, room_id, "from a")
    assert (await b.message("from a")).verified
    await send(b.client, room_id, "from b")
    assert (await a.message("from b")).verified


async def test_the_published_identity_is_complete_and_its_device_signed(
    asha: Account, ben: Account, tmp_path: Path
):
    async with running(asha, tmp_path / "a") as a, running(ben, tmp_path / "b") as b:
        seen_by_others = await published_keys(b.client, asha.user_id)
        identity = signed_devices(seen_by_others)[asha.user_id]
        assert set(identity.devices) == {a.client.device_id}
        assert (
            identity.devices[a.client.device_id].ed25519
            == (a.client.olm.account.identity_keys["ed25519"])
        )
        own = await published_keys(a.client, asha.user_id)
        assert asha.user_id in own["user_signing_keys"]
        await a.client.start_session()
        again = await published_keys(a.client, asha.user_id)
        assert again["master_keys"] == own["master_keys"]


async def test_secrets_are_kept_in_files_that_nobody_else_can_read(asha: Account, tmp_path: Path):
    async with running(asha, tmp_path / "a"):
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
        for name in ("session.json", "pickle-key", "recovery-key"):
            assert stat.S_IMODE((tmp_path / "a" / name).stat().st_mode) == 0o600
        assert asha.password not in "".join(
            (tmp_path / "a" / name).read_text() for name in ("session.json", "pickle-key")
        )


async def test_a_restart_keeps_the_device_and_what_it_can_read(
    asha: Account, ben: Account, tmp_path: Path
):
    async with running(asha, tmp_path / "a") as a:
        async with running(ben, tmp_path / "b") as b:
            room_id = await common_room(a, b)
            await send(a.client, room_id, "before")
            await b.message("before")
            device, keys = b.client.device_id, b.client.olm.account.identity_keys
            session = a.client.olm.outbound_group_sessions[room_id].id
        await send(a.client, room_id, "while away")
        b = ben.client(tmp_path / "b")
        await b.start_session()  # no password
        async with receiving(b) as restarted:
            assert (await restarted.message("while away")).verified
            await send(a.client, room_id, "after")
            assert (await restarted.message("after")).verified
            # Still the key that was shared before the restart.
            assert a.client.olm.outbound_group_sessions[room_id].id == session
            assert (b.device_id, b.olm.account.identity_keys) == (device, keys)
            assert not [e for e in restarted.events if getattr(e, "body", "") == "before"]
            await send(b, room_id, "answer")
            assert (await a.message("answer")).verified
        await b.close()


async def test_an_unsigned_device_gets_no_key_until_it_is_signed(
    pair: Pair, ben: Account, tmp_path: Path
):
    a, b = pair
    room_id = await common_room(a, b)
    async with unsigned_device(ben) as tablet:
        await a.until(lambda: tablet.device_id in a.client.device_store[ben.user_id])
        unread = await send(a.client, room_id, "not for the tablet")
        assert (await b.message("not for the tablet")).verified
        assert a.client.device_store[ben.user_id][tablet.device_id].blacklisted
        await tablet.sync(full_state=True)
        assert not list(tablet.olm.inbound_group_store)
        assert not list(tablet.olm.session_store)

        await sign(tablet, tmp_path / "b")
        await a.until(lambda: a.client.device_store[ben.user_id][tablet.device_id].verified)
        read = await send(a.client, room_id, "for the tablet too")
        answer = await tablet.sync(full_state=True)
        timeline = {e.event_id: e for e in answer.rooms.join[room_id].timeline.events}
        if read not in timeline:  # it was in the first sync already
            timeline |= {read: await room_event(tablet, room_id, read)}
        assert timeline[read].body == "for the tablet too"
        assert isinstance(await room_event(tablet, room_id, unread), MegolmEvent)


async def room_event(client: AsyncClient, room_id: str, event_id: str) -> Event:
    return (await client.room_get_event(room_id, event_id)).event


async def test_a_device_whose_users_identity_changed_is_cut_off(pair: Pair, ben: Account):
    a, b = pair
    room_id = await common_room(a, b)
    await send(a.client, room_id, "first")
    await b.message("first")
    body = CrossSigningSeeds.generate().device_signing_body(
        ben.user_id, b.client.device_id, b.client.olm.sign_json
    )
    asked = await call(b.client, "POST", "keys/device_signing/upload", body)
    body["auth"] = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": ben.user_id},
        "password": ben.password,
        "session": asked["session"],
    }
    assert await call(b.client, "POST", "keys/device_signing/upload", body) == {}
    await a.until(lambda: a.client.device_store[ben.user_id][b.client.device_id].blacklisted)
    unread = await send(a.client, room_id, "second")
    await b.undecrypted(unread)
    # And its own next start notices.
    with pytest.raises(InputError) as caught:
        await b.client.start_session(ben.password)
    assert caught.value.code == "identity_changed"


async def test_a_device_that_appears_while_a_key_is_shared_gets_the_message(
    pair: Pair, ben: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    a, b = pair
    room_id = await common_room(a, b)
    (tmp_path / "b2").mkdir()
    shutil.copy(tmp_path / "b" / "recovery-key", tmp_path / "b2")
    phone = ben.client(tmp_path / "b2")
    ask = a.client._send
    answers = []

    async def appear_meanwhile(response_class: type, *args: Any, **kwargs: Any) -> Any:
        answer = await ask(response_class, *args, **kwargs)
        if response_class is ShareGroupSessionResponse and not answers:
            answers.append(answer)
            await phone.start_session(ben.password)
            a.client.olm.users_for_key_query.add(ben.user_id)  # what the next sync tells
        return answer

    monkeypatch.setattr(a.client, "_send", appear_meanwhile)
    await send(a.client, room_id, "hello phone")
    async with receiving(phone) as late:
        # Also the first message of somebody yet unknown is known to be theirs.
        assert (await late.message("hello phone")).verified
    await phone.close()
    assert (await b.message("hello phone")).verified


async def test_a_device_that_loses_trust_while_a_key_is_shared_cannot_read_the_message(
    pair: Pair, ben: Account, monkeypatch: pytest.MonkeyPatch
):
    a, b = pair
    room_id = await common_room(a, b)
    ask = a.client._send
    done = []

    async def lose_meanwhile(response_class: type, *args: Any, **kwargs: Any) -> Any:
        answer = await ask(response_class, *args, **kwargs)
        if response_class is ShareGroupSessionResponse and not done:
            done.append(True)
            a.client.blacklist_device(a.client.device_store[ben.user_id][b.client.device_id])
        return answer

    monkeypatch.setattr(a.client, "_send", lose_meanwhile)
    await b.undecrypted(await send(a.client, room_id, "too late"))


async def test_a_key_that_could_not_be_shared_is_shared_by_the_next_attempt(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
):
    a, b = pair
    room_id = await common_room(a, b)
    ask = a.client._send

    async def refuse_to_share(response_class: type, *args: Any, **kwargs: Any) -> Any:
        if response_class is ShareGroupSessionResponse:
            raise UnavailableError("down", code="homeserver_unavailable")
        return await ask(response_class, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(a.client, "_send", refuse_to_share)
        with pytest.raises(UnavailableError):
            await send(a.client, room_id, "lost")
    await send(a.client, room_id, "found")
    assert (await b.message("found")).verified


@pytest.mark.parametrize("step", [ShareGroupSessionResponse, RoomSendResponse])
async def test_sending_may_be_cancelled_at_any_moment_and_works_afterwards(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, step: type
):
    a, b = pair
    room_id = await common_room(a, b)
    ask = a.client._send
    reached = asyncio.Event()

    async def hang(response_class: type, *args: Any, **kwargs: Any) -> Any:
        if response_class is step:
            reached.set()
            await asyncio.Event().wait()
        return await ask(response_class, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(a.client, "_send", hang)
        sending = asyncio.create_task(send(a.client, room_id, "cancelled"))
        await asyncio.wait_for(reached.wait(), PATIENCE_S)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    await send(a.client, room_id, "sent")
    assert (await b.message("sent")).verified


async def test_many_messages_at_once_arrive_in_order_under_one_key(pair: Pair):
    a, b = pair
    room_id = await common_room(a, b)
    await asyncio.gather(*(send(a.client, room_id, f"n{number}") for number in range(8)))
    await b.message("n7")
    bodies = [e.body for e in b.events if isinstance(e, RoomMessageText)]
    assert bodies == [f"n{number}" for number in range(8)]
    sessions = {e.session_id for e in b.events if isinstance(e, RoomMessageText)}
    assert len(sessions) == 1


async def test_nothing_is_sent_to_a_room_that_is_not_encrypted(pair: Pair):
    a, b = pair
    room_id = await common_room(a, b, encrypted=False)
    a.client.rooms[room_id].encrypted = False  # our Synapse encrypts every room by default
    with pytest.raises(InputError) as caught:
        await send(a.client, room_id, "clear text")
    assert caught.value.code == "room_not_encrypted"
    with pytest.raises(InputError) as caught:
        await send(a.client, "!nowhere:clinic.test", "clear text")
    assert caught.value.code == "room_unknown"
    with pytest.raises(BugError):
        await a.client.room_send(room_id, "m.room.message", {}, ignore_unverified_devices=True)


async def put_encrypted_state(
    client: SignedClient, room_id: str, inner: dict[str, Any], outer_key: str
) -> str:
    await client.share_group_session(room_id)
    content = client.olm.group_encrypt(room_id, inner)
    answer = await client.room_put_state(room_id, "m.room.encrypted", content, outer_key)
    return answer.event_id


async def test_encrypted_state_is_read_and_a_swapped_key_is_refused(pair: Pair):
    a, b = pair
    room_id = await common_room(a, b)
    inner = {"type": KIND, "state_key": "p1", "content": {"n": 1}}
    good = await put_encrypted_state(a.client, room_id, inner, f"{KIND}:p1")
    live = await b.event(lambda e: e.event_id == good)
    assert isinstance(live, UnknownEvent)
    assert (live.type, live.source["state_key"]) == (KIND, "p1")
    assert live.verified

    swapped = await put_encrypted_state(a.client, room_id, inner, f"{KIND}:p2")
    await b.undecrypted(swapped)
    state = {e["event_id"]: e for e in (await b.client.room_get_state(room_id)).events}
    event = await b.client.decrypt_state(state[good], room_id)
    assert (event.type, event.state_key, event.content) == (KIND, "p1", {"n": 1})
    assert (event.sender, event.signed) == (a.client.user_id, True)
    own = await a.client.decrypt_state(state[good], room_id)
    assert own.signed

    async def refusal(source: dict[str, Any], room: str = room_id) -> str:
        with pytest.raises(DecodeError) as caught:
            await b.client.decrypt_state(source, room)
        return caught.value.code

    stolen = state[good]
    assert await refusal(state[swapped]) == "wrong_state_key"
    assert await refusal({**stolen, "state_key": f"{KIND}:p3"}) == "wrong_state_key"
    assert await refusal({**stolen, "room_id": "!other:clinic.test"}) == "wrong_room"
    assert await refusal({**stolen, "room_id": "!o:c", "state_key": "x"}, "!o:c") == "no_key"
    assert await refusal({**stolen, "event_id": "$replayed"}) == "undecryptable"
    assert await refusal({**stolen, "sender": b.client.user_id}) == "unknown_device"
    assert await refusal({**stolen, "content": {}}) == "not_encrypted_state"
    assert await refusal({**stolen, "unsigned": 1}) == "not_encrypted_state"
    without_key = {k: v for k, v in stolen.items() if k != "state_key"}
    assert await refusal(without_key) == "not_encrypted_state"
    content = {**stolen["content"], "ciphertext": "AAAA"}
    assert await refusal({**stolen, "content": content}) == "undecryptable"


async def test_an_encrypted_message_cannot_pass_for_a_membership(pair: Pair):
    a, b = pair
    room_id = await common_room(a, b)
    await a.client.share_group_session(room_id)
    content = a.client.olm.group_encrypt(
        room_id,
        {
            "type": "m.room.member",
            "state_key": "@stranger:clinic.test",
            "content": {"membership": "join"},
        },
    )
    path = f"rooms/{room_id}/send/m.room.encrypted/{uuid4()}"
    sent = await call(a.client, "PUT", path, content)
    await b.undecrypted(sent["event_id"])
    assert set(b.client.rooms[room_id].users) == {a.client.user_id, b.client.user_id}


async def test_malformed_messages_from_strangers_do_not_stop_the_client(
    pair: Pair, homeserver: Synapse
):
    a, b = pair
    room_id = await common_room(a, b)
    stranger = await Account(homeserver, "stranger").register()
    curve = b.client.olm.account.identity_keys["curve25519"]
    async with unsigned_device(stranger) as hostile:
        for kind, body in ((0, "!!"), (0, "AAAA"), (1, "AAAA"), (1, ""), (7, "AAAA")):
            content = {
                "algorithm": "m.olm.v1.curve25519-aes-sha2",
                "sender_key": "A" * 43,
                "ciphertext": {curve: {"type": kind, "body": body}},
            }
            await hostile.to_device(
                ToDeviceMessage("m.room.encrypted", b.client.user_id, b.client.device_id, content)
            )
    # And from a member: text without msgtype, which nio cannot parse.
    await a.client.room_send(room_id, "m.room.message", {"body": 1})
    await send(a.client, room_id, "still there")
    assert (await b.message("still there")).verified


async def test_room_keys_are_never_forwarded_even_to_our_own_signed_device(
    pair: Pair, ben: Account, tmp_path: Path
):
    a, b = pair
    room_id = await common_room(a, b)
    await send(a.client, room_id, "secret")
    event = await b.message("secret")
    async with unsigned_device(ben) as tablet:
        await sign(tablet, tmp_path / "b")
        await b.until(
            lambda: (
                tablet.device_id in b.client.device_store[ben.user_id]
                and b.client.device_store[ben.user_id][tablet.device_id].verified
            )
        )
        content = {
            "action": "request",
            "request_id": "r1",
            "requesting_device_id": tablet.device_id,
            "body": {
                "algorithm": "m.megolm.v1.aes-sha2",
                "room_id": room_id,
                "sender_key": event.sender_key,
                "session_id": event.session_id,
            },
        }
        requests: list[Any] = []
        b.client.add_to_device_callback(requests.append, object)
        await tablet.to_device(
            ToDeviceMessage("m.room_key_request", ben.user_id, b.client.device_id, content)
        )
        # To-device messages keep their order: once this one is there, so was the request.
        await tablet.to_device(ToDeviceMessage("x.end", ben.user_id, b.client.device_id, {"a": 1}))
        await b.until(lambda: bool(requests))
        answer = await tablet.sync()
        assert answer.to_device_events == []
    assert b.client.outgoing_to_device_messages == []


async def claim(client: AsyncClient, user_id: str, device_id: str) -> dict[str, Any]:
    """A one-time key of a device, as anybody may take it."""
    wanted = {user_id: {device_id: "signed_curve25519"}}
    answer = await call(client, "POST", "keys/claim", {"one_time_keys": wanted})
    [key] = answer["one_time_keys"][user_id][device_id].values()
    return key


async def test_one_time_keys_are_replenished_when_all_are_used(asha: Account, tmp_path: Path):
    client = asha.client(tmp_path / "a")
    await client.start_session(asha.password)
    for _ in range(client.olm.account.max_one_time_keys):
        assert "fallback" not in await claim(client, client.user_id, client.device_id)
    fallback = await claim(client, client.user_id, client.device_id)
    assert fallback["fallback"] is True
    await client.sync()
    await client._keep_up()
    assert "fallback" not in await claim(client, client.user_id, client.device_id)
    for _ in range(client.olm.account.max_one_time_keys - 1):
        await claim(client, client.user_id, client.device_id)
    another = await claim(client, client.user_id, client.device_id)
    assert another["fallback"] is True
    assert another["key"] != fallback["key"]
    await client.close()


async def test_a_device_that_is_away_is_spoken_to_although_its_one_time_keys_are_used_up(
    asha: Account, ben: Account, tmp_path: Path
):
    async with running(asha, tmp_path / "a") as a:
        async with running(ben, tmp_path / "b") as b:
            await common_room(a, b)
        while "fallback" not in await claim(a.client, ben.user_id, b.client.device_id):
            pass
    (tmp_path / "new").mkdir()
    shutil.copy(tmp_path / "a" / "recovery-key", tmp_path / "new" / "recovery-key")
    async with running(asha, tmp_path / "new") as new:
        [room_id] = new.client.rooms
        await send(new.client, room_id, "by the last key")
    async with running(ben, tmp_path / "b") as b:
        assert (await b.message("by the last key")).verified


async def test_a_second_device_adopts_the_identity_with_its_recovery_key(
    asha: Account, tmp_path: Path
):
    async with running(asha, tmp_path / "a") as a:
        before = await published_keys(a.client, asha.user_id)
        other = asha.client(tmp_path / "other")
        with pytest.raises(InputError) as caught:
            await other.start_session(asha.password)
        assert caught.value.code == "recovery_key_needed"
        (tmp_path / "other" / "recovery-key").write_text("EsTc 1234")
        with pytest.raises(InputError) as caught:
            await other.start_session()
        assert caught.value.code == "bad_recovery_key"
        assert (await published_keys(a.client, asha.user_id))["master_keys"] == (
            before["master_keys"]
        )

        shutil.copy(tmp_path / "a" / "recovery-key", tmp_path / "other" / "recovery-key")
        await other.start_session()
        after = await published_keys(a.client, asha.user_id)
        assert after["master_keys"] == before["master_keys"]
        devices = signed_devices(after)[asha.user_id].devices
        assert set(devices) == {a.client.device_id, other.device_id}
        await other.close()


async def test_the_recovery_key_may_be_kept_elsewhere_once_the_device_is_signed(
    asha: Account, tmp_path: Path
):
    async with running(asha, tmp_path / "a"):
        (tmp_path / "a" / "recovery-key").unlink()
    async with running(asha, tmp_path / "a") as a:
        assert a.client.ready.is_set()


async def test_the_recovery_key_of_another_account_is_refused(
    asha: Account, ben: Account, tmp_path: Path
):
    async with running(asha, tmp_path / "a"), running(ben, tmp_path / "b"):
        (tmp_path / "c").mkdir()
        shutil.copy(tmp_path / "b" / "recovery-key", tmp_path / "c")
        client = asha.client(tmp_path / "c")
        with pytest.raises(InputError) as caught:
            await client.start_session(asha.password)
        assert caught.value.code == "wrong_recovery_key"
        await client.close()


@pytest.mark.parametrize("step", range(7))
async def test_an_interrupted_first_start_is_completed_by_the_next(
    asha: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
):
    client = asha.client(tmp_path / "a")
    ask = client._request
    writes = []

    async def stop_at_the_step(method: str, *args: Any) -> Any:
        if method != "GET" and not args[0].startswith("keys/query"):
            if len(writes) == step:
                raise UnavailableError("power cut", code="homeserver_unavailable")
            writes.append(args)
        return await ask(method, *args)

    with monkeypatch.context() as patch:
        patch.setattr(client, "_request", stop_at_the_step)
        with pytest.raises(UnavailableError):
            await client.start_session(asha.password)
    recovery = (tmp_path / "a" / "recovery-key").read_text()
    await client.close()
    async with running(asha, tmp_path / "a") as a:
        identity = signed_devices(await published_keys(a.client, asha.user_id))[asha.user_id]
        assert set(identity.devices) == {a.client.device_id}
        assert (tmp_path / "a" / "recovery-key").read_text() == recovery


@asynccontextmanager
async def mautrix_storage(account: Account, token: str) -> AsyncIterator[MautrixStorage]:
    client = MautrixClient(mxid=account.user_id, base_url=account.homeserver.base_url, token=token)
    try:
        yield MautrixStorage(client)
    finally:
        await client.api.session.close()


async def test_mautrix_opens_the_secret_storage_that_we_wrote(asha: Account, tmp_path: Path):
    async with (
        running(asha, tmp_path / "a") as a,
        mautrix_storage(asha, a.client.access_token) as storage,
    ):
        key_id, metadata = await storage.get_default_key_data()
        recovery = (tmp_path / "a" / "recovery-key").read_text()
        key = metadata.verify_recovery_key(key_id, recovery)
        seeds = MautrixSeeds(
            master_key=await storage.get_decrypted_account_data(
                EventType.CROSS_SIGNING_MASTER, key
            ),
            self_signing_key=await storage.get_decrypted_account_data(
                EventType.CROSS_SIGNING_SELF_SIGNING, key
            ),
            user_signing_key=await storage.get_decrypted_account_data(
                EventType.CROSS_SIGNING_USER_SIGNING, key
            ),
        )
        public = seeds.to_keys().public_keys
        keys = await published_keys(a.client, asha.user_id)
        for name in ("master_key", "self_signing_key", "user_signing_key"):
            published = keys[f"{name}s"][asha.user_id]["keys"]
            assert list(published.values()) == [getattr(public, name)]


async def test_we_open_the_secret_storage_that_mautrix_wrote(asha: Account, tmp_path: Path):
    token = await asha.homeserver.login(asha.localpart, asha.password)
    seeds = MautrixSeeds.generate()
    async with mautrix_storage(asha, token) as storage:
        key = await storage.generate_and_upload_key()
        for kind, seed in (
            (EventType.CROSS_SIGNING_MASTER, seeds.master_key),
            (EventType.CROSS_SIGNING_SELF_SIGNING, seeds.self_signing_key),
            (EventType.CROSS_SIGNING_USER_SIGNING, seeds.user_signing_key),
        ):
            await storage.set_encrypted_account_data(kind, seed, key)
        await storage.set_default_key_id(key.id)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "recovery-key").write_text(key.recovery_key)
    async with running(asha, tmp_path / "a") as a:
        identity = signed_devices(await published_keys(a.client, asha.user_id))[asha.user_id]
        assert identity.master_key == seeds.to_keys().public_keys.master_key
        assert set(identity.devices) == {a.client.device_id}


async def test_losing_parts_of_the_store_says_what_to_do(asha: Account, tmp_path: Path):
    async with running(asha, tmp_path / "a") as a:
        first = a.client.device_id
    for name, code in (("pickle-key", "pickle_key_missing"), ("crypto.db", "crypto_store_missing")):
        hidden = (tmp_path / "a" / name).rename(tmp_path / "hidden")
        client = asha.client(tmp_path / "a")
        with pytest.raises(InputError) as caught:
            await client.start_session()
        assert caught.value.code == code
        hidden.rename(tmp_path / "a" / name)
    (tmp_path / "a" / "crypto.db").unlink()
    (tmp_path / "a" / "session.json").unlink()
    client = asha.client(tmp_path / "a")
    with pytest.raises(InputError) as caught:
        await client.start_session()
    assert caught.value.code == "password_needed"
    async with running(asha, tmp_path / "a") as a:
        assert a.client.device_id != first


async def test_a_wrong_password_and_an_ended_session_say_what_to_do(asha: Account, tmp_path: Path):
    client = asha.client(tmp_path / "a")
    with pytest.raises(InputError) as caught:
        await client.start_session("wrong")
    assert caught.value.code == "refused"
    await client.start_session(asha.password)
    await call(client, "POST", "logout", {})
    with pytest.raises(InputError) as caught:
        await asyncio.wait_for(client.run_sync(), PATIENCE_S)
    assert caught.value.code == "logged_out"
    await client.close()


class Gate:
    """Between client and homeserver: passes requests on while it is open, else answers 502."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._handlers: set[asyncio.Task[Any]] = set()
        self.open = True
        self.refused = asyncio.Event()
        self.base_url = ""

    async def __aenter__(self) -> Self:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._pass)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        self._plain = AsyncClient(self._target)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._plain.close()
        await self._runner.cleanup()

    async def _pass(self, request: web.Request) -> web.Response:
        if not self.open:
            self.refused.set()
            return web.Response(status=502, text="<html>Bad gateway</html>")
        headers = {k: v for k, v in request.headers.items() if k == "Authorization"}
        answer = await self._plain.send(
            request.method, request.raw_path, await request.read(), headers, timeout=60
        )
        body = await answer.read()
        if not self.open:  # the homeserver went away meanwhile: cut the connection
            request.transport.close()
        return web.Response(status=answer.status, body=body, content_type="application/json")


async def test_receiving_survives_an_outage_of_the_homeserver(
    asha: Account, ben: Account, tmp_path: Path
):
    async with (
        Gate(asha.homeserver.base_url) as gate,
        running(asha, tmp_path / "a") as a,
        running(ben, tmp_path / "b", gate.base_url) as b,
    ):
        room_id = await common_room(a, b)
        await send(a.client, room_id, "before")
        await b.message("before")
        gate.open = False
        await send(a.client, room_id, "during")  # ends b's long poll
        await asyncio.wait_for(gate.refused.wait(), PATIENCE_S)
        with pytest.raises(UnavailableError):
            await b.client.start_session()
        assert not b.task.done()
        gate.open = True
        assert (await b.message("during")).verified


async def test_a_homeserver_that_is_not_there_is_a_clear_error(asha: Account, tmp_path: Path):
    client = asha.client(tmp_path / "a", "http://127.0.0.1:9")
    with pytest.raises(UnavailableError) as caught:
        await client.start_session(asha.password)
    assert caught.value.code == "homeserver_unavailable"
    await client.close()


async def test_a_bug_in_a_callback_ends_receiving_and_the_event_comes_again(
    pair: Pair, ben: Account, tmp_path: Path
):
    a, b = pair
    room_id = await common_room(a, b)

    async def buggy(_room: Any, _event: Event) -> None:
        raise ZeroDivisionError

    b.client.add_event_callback(buggy, RoomMessageText)
    await send(a.client, room_id, "important")
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(b.task, PATIENCE_S)
    await b.client.close()
    async with running(ben, tmp_path / "b") as again:
        assert (await again.message("important")).verified


async def test_an_event_whose_callback_met_an_outage_comes_again(pair: Pair):
    a, b = pair
    room_id = await common_room(a, b)
    handled = asyncio.Event()
    attempts = []

    async def answer(_room: Any, event: RoomMessageText) -> None:
        attempts.append(event.body)
        if len(attempts) == 1:
            raise UnavailableError("down", code="homeserver_unavailable")
        handled.set()

    b.client.add_event_callback(answer, RoomMessageText)
    await send(a.client, room_id, "important")
    await asyncio.wait_for(handled.wait(), PATIENCE_S)
    assert attempts == ["important", "important"]
    assert not b.task.done()


async def test_a_room_in_which_more_was_written_than_is_read_is_told_of_and_no_other(
    asha: Account, ben: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Fewer than in production, since a person may not write fifty messages at once.
    monkeypatch.setitem(client_module._SYNC_FILTER["room"]["timeline"], "limit", 2)
    gaps: list[str] = []

    async def tell(room_id: str, mark: str) -> None:
        assert mark
        if not gaps:  # once more, as after any interruption
            gaps.append("interrupted")
            raise UnavailableError("down", code="database_unavailable")
        gaps.append(room_id)

    async with running(asha, tmp_path / "a") as a:
        async with running(ben, tmp_path / "b") as b:
            loud, quiet = await common_room(a, b), await common_room(a, b)
        for number in range(3):
            await send(a.client, loud, f"n{number}")
        await send(a.client, quiet, "quiet")
        created = await a.client.room_create(
            invite=[ben.user_id], initial_state=[ENCRYPTION], name="x"
        )
        await a.until(
            lambda: created.room_id in a.client.rooms and a.client.rooms[created.room_id].encrypted
        )
        for number in range(3):
            await send(a.client, created.room_id, f"before b came {number}")
        again = ben.client(tmp_path / "b")
        again.on_gap(tell)
        await again.start_session()
        async with receiving(again) as peer:
            await peer.message("n2")
            await peer.message("quiet")
            await peer.until(lambda: created.room_id in again.invited_rooms)
            await again.join(created.room_id)
            await peer.until(lambda: created.room_id in again.rooms)
            await send(a.client, loud, "end")
            await peer.message("end")
        await again.close()
        assert gaps == ["interrupted", loud]


async def test_nothing_secret_is_logged(
    asha: Account, ben: Account, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    async with running(asha, tmp_path / "a") as a, running(ben, tmp_path / "b") as b:
        room_id = await common_room(a, b)
        await send(a.client, room_id, "SpO2 86")
        await b.message("SpO2 86")
        # nio logs the content of events that it finds malformed.
        await a.client.room_send(room_id, "m.room.member", {"membership": "SpO2 87"})
        await a.client.room_send(room_id, "m.room.message", {"msgtype": "m.text", "SpO2 88": 1})
        await send(a.client, room_id, "end")
        await b.message("end")
        secret = [
            "SpO2",
            asha.password,
            a.client.access_token,
            (tmp_path / "a" / "recovery-key").read_text(),
            (tmp_path / "a" / "pickle-key").read_text(),
        ]
    for needle in secret:
        assert needle not in caplog.text
