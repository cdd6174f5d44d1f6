"""A push gateway that counts: what a phone would have been told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
from aiohttp import web

LOOPBACK = "127.0.0.1"
PATH = "/_matrix/push/v1/notify"
PATIENCE_S = 15.0


@dataclass(frozen=True, slots=True)
class Notification:
    """One notification for one pusher (push gateway API, ``POST /_matrix/push/v1/notify``).

    Attributes:
        pushkey: of the pusher.
        event_id: what it is about; ``None`` if it only brings a new count.
        room_id: of that event.
        sender: of that event; ``None`` in the format ``event_id_only``.
        unread: the number on the app's icon; ``None`` if not told.
        prio: ``high`` or ``low``; ``None`` if not told.
        sound: of the tweaks, ``None`` if it makes none; always so in ``event_id_only``.
    """

    pushkey: str
    event_id: str | None
    room_id: str | None
    sender: str | None
    unread: int | None
    prio: str | None
    sound: str | None


class PushGateway:
    """Answers on loopback while it is entered; pushes of one pusher arrive in order."""

    def __init__(self) -> None:
        self.received: list[Notification] = []
        self._came = asyncio.Condition()
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post(PATH, self._notify)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, LOOPBACK, 0).start()
        self.url = f"http://{LOOPBACK}:{self._runner.addresses[0][1]}{PATH}"
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def pushes(self, pushkey: str) -> list[Notification]:
        """What came about an event, in order."""
        return [n for n in self.received if n.pushkey == pushkey and n.event_id is not None]

    def counts(self, pushkey: str) -> list[Notification]:
        """What only brought a new number for the app's icon, in order."""
        return [n for n in self.received if n.pushkey == pushkey and n.event_id is None]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that came makes the condition true."""
        async with asyncio.timeout(PATIENCE_S), self._came:
            await self._came.wait_for(condition)

    async def _notify(self, request: web.Request) -> web.Response:
        notification = (await request.json())["notification"]
        came = [_read(notification, device) for device in notification["devices"]]
        async with self._came:
            self.received += came
            self._came.notify_all()
        return web.json_response({"rejected": []})


def _read(notification: Mapping[str, Any], device: Mapping[str, Any]) -> Notification:
    return Notification(
        pushkey=device["pushkey"],
        # An update of the count has no event, or an empty id.
        event_id=notification.get("event_id") or None,
        room_id=notification.get("room_id"),
        sender=notification.get("sender"),
        unread=notification.get("counts", {}).get("unread"),
        prio=notification.get("prio"),
        sound=device.get("tweaks", {}).get("sound"),
    )


async def have_pusher(
    synapse_url: str,
    token: str,
    gateway: PushGateway,
    pushkey: str,
    *,
    event_id_only: bool = True,
) -> None:
    """Register a phone, as Element does when somebody logs in on one.

    Args:
        synapse_url: where the homeserver answers.
        token: of the phone's login.
        gateway: where its pushes go; the homeserver must be allowed to reach it.
        pushkey: names the phone.
        event_id_only: whether the pushes say nothing but which event came.
    """
    data = {"url": gateway.url, **({"format": "event_id_only"} if event_id_only else {})}
    body = {
        "kind": "http",
        "app_id": "com.fajma.test",
        "app_display_name": "Test",
        "device_display_name": "Phone",
        "pushkey": pushkey,
        "lang": "fr",
        "data": data,
    }
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session,
        session.post(f"{synapse_url}/_matrix/client/v3/pushers/set", json=body) as response,
    ):
        if response.status != 200:
            raise RuntimeError(f"the pusher was refused: HTTP {response.status}")
