"""A homeserver that answers about keys whatever a test wants, and the phones behind the keys.

It speaks HTTP on loopback, so that whatever asks it is real: mautrix, matrix-nio.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, Self

import vodozemac
from aiohttp import web
from canonicaljson import encode_canonical_json

from fajma.trust import CrossSigningSeeds, DeviceKeys

LOOPBACK = "127.0.0.1"

Json = dict[str, Any]


class Phone:
    """One device of a person: what its owner publishes, and which room keys it was given."""

    def __init__(self, user: str, device_id: str) -> None:
        self.user = user
        self.device_id = device_id
        self._account = vodozemac.Account()
        self._sessions: list[vodozemac.Session] = []
        self.room_keys: set[str] = set()
        """Megolm session ids."""

    @property
    def keys(self) -> DeviceKeys:
        return DeviceKeys(
            self._account.ed25519_key.to_base64(), self._account.curve25519_key.to_base64()
        )

    def published(
        self,
        signed_by: CrossSigningSeeds | None,
        *,
        device_id: str | None = None,
        curve25519: str | None = None,
    ) -> Json:
        """Its device key object.

        Args:
            signed_by: the identity that signs it.
            device_id: another one than its own.
            curve25519: another key than its own.
        """
        name = device_id or self.device_id
        bare = {
            "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
            "device_id": name,
            "user_id": self.user,
            "keys": {
                f"ed25519:{name}": self.keys.ed25519,
                f"curve25519:{name}": curve25519 or self.keys.curve25519,
            },
        }
        signed = self._signed(bare, name)
        if signed_by is not None:
            theirs = signed_by.signatures_body(self.user, bare)[self.user][name]["signatures"]
            signed["signatures"][self.user] |= theirs[self.user]
        return signed

    def one_time_key(self, key: str | None = None) -> Json:
        """A new one, signed.

        Args:
            key: in place of a good one.
        """
        self._account.generate_one_time_keys(1)
        ((key_id, good),) = self._account.one_time_keys.items()
        self._account.mark_keys_as_published()
        bare = {"key": key or good.to_base64()}
        return {f"signed_curve25519:{key_id}": self._signed(bare, self.device_id)}

    def receive(self, content: Json) -> None:
        """Take in an encrypted to-device message, if it can be opened."""
        part = content["ciphertext"].get(self.keys.curve25519)
        if part is None or part["type"] != 0:
            return
        message = vodozemac.PreKeyMessage.from_base64(part["body"])
        for session in self._sessions:
            if session.session_matches(message):
                plain = session.decrypt(message.to_any())
                break
        else:
            sender = vodozemac.Curve25519PublicKey.from_base64(content["sender_key"])
            try:
                session, plain = self._account.create_inbound_session(sender, message)
            except vodozemac.SessionCreationException:  # made with a one-time key of nobody
                return
            self._sessions.append(session)
        event = json.loads(plain)
        if event["type"] == "m.room_key":
            self.room_keys.add(event["content"]["session_id"])

    def _signed(self, bare: Json, name: str) -> Json:
        signature = self._account.sign(encode_canonical_json(bare)).to_base64()
        return {**bare, "signatures": {self.user: {f"ed25519:{name}": signature}}}


def identity_objects(user: str, seeds: CrossSigningSeeds) -> Json:
    """The cross-signing part of an answer about one user."""
    body = seeds.device_signing_body(user, "D", lambda _: "")
    del body["master_key"]["signatures"]
    return {
        "master_keys": {user: body["master_key"]},
        "self_signing_keys": {user: body["self_signing_key"]},
    }


def answer_about(user: str, seeds: CrossSigningSeeds, *devices: Json) -> Json:
    """An honest answer to ``POST /keys/query`` about one user."""
    listed = {device["device_id"]: device for device in devices}
    return {"device_keys": {user: listed}, "failures": {}, **identity_objects(user, seeds)}


def together(*answers: Json) -> Json:
    """One answer about several users."""
    found: Json = {}
    for answer in answers:
        for part, by_user in answer.items():
            found.setdefault(part, {}).update(by_user)
    return found


class LyingHomeserver:
    """Answers on loopback while it is entered."""

    def __init__(self) -> None:
        self.url = ""
        self.answer: Json = {"device_keys": {}}
        """To every question about devices."""
        self.refuses: frozenset[str] = frozenset()
        """Users of whose devices it refuses to tell, and ``claim`` if it gives no one-time keys."""
        self.phones: list[Phone] = []
        self.odd_one_time_keys: dict[str, Json] = {}
        """By device id, what is claimed of it in place of an honest one-time key."""
        self.meanwhile: dict[str, Callable[[], Awaitable[None]]] = {}
        """By the last word of a path, what happens once before a request is answered."""
        self.keyed: set[str] = set()
        """Ids of the devices to which something encrypted was sent, readable or not."""
        self.sessions: list[str] = []
        """The Megolm sessions of the events that were sent, in order."""

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/_matrix/client/v3/{path:.*}", self._on_request)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, LOOPBACK, 0).start()
        self.url = f"http://{LOOPBACK}:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    def readers(self, session_id: str) -> set[str]:
        """The devices that have a room key, by id."""
        return {phone.device_id for phone in self.phones if session_id in phone.room_keys}

    async def _on_request(self, request: web.Request) -> web.Response:
        path = request.match_info["path"].split("/")
        body = json.loads(await request.text() or "{}")
        happens = self.meanwhile.pop(path[0] if path[0] != "keys" else path[1], None)
        if happens is not None:
            await happens()
        match path:
            case ["keys", "query"]:
                return self._on_query(set(body["device_keys"]))
            case ["keys", "claim"] if "claim" in self.refuses:
                return web.json_response({"errcode": "M_UNKNOWN", "error": "no"}, status=500)
            case ["keys", "claim"]:
                return web.json_response(self._claimed(body["one_time_keys"]))
            case ["sendToDevice", "m.room.encrypted", _]:
                for user, messages in body["messages"].items():
                    self._deliver(user, messages)
            case ["rooms", _, "send", "m.room.encrypted", _]:
                self.sessions.append(body["session_id"])
                return web.json_response({"event_id": f"$event-{len(self.sessions)}"})
        return web.json_response({})

    def _on_query(self, users: set[str]) -> web.Response:
        if self.refuses & users:
            return web.json_response({"errcode": "M_UNKNOWN", "error": "no"}, status=500)
        return web.json_response(self.answer)

    def _claimed(self, wanted: Json) -> Json:
        claimed: Json = {}
        for phone in self.phones:
            if phone.device_id in wanted.get(phone.user, {}):
                odd = self.odd_one_time_keys
                key = odd[name] if (name := phone.device_id) in odd else phone.one_time_key()
                claimed.setdefault(phone.user, {})[phone.device_id] = key
        return {"one_time_keys": claimed, "failures": {}}

    def _deliver(self, user: str, messages: Json) -> None:
        self.keyed |= set(messages)
        for phone in self.phones:
            # Whoever holds a key reads what is encrypted for it, under whatever name it travels.
            if phone.user == user:
                for content in messages.values():
                    phone.receive(content)
