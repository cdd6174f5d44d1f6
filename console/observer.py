"""A clinician's Matrix client without a screen: what a doctor in the room really sees.

It is a separate, cross-signed client with its own device. It believes only what the senders of
FAJMA sent from signed devices, like every reader of ours.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nio

from bots.alerts.client import SignedClient
from fajma.errors import DecodeError, UnavailableError
from fajma.events import (
    ALARM,
    ENCRYPTED,
    MESSAGE,
    VITALS,
    VITALS_BATCH,
    AlarmBlock,
    Vitals,
    VitalsBatch,
)
from fajma.tasks import end


@dataclass(frozen=True, slots=True)
class Seen:
    """One decrypted event of FAJMA.

    Attributes:
        at: time of decryption here, seconds (``time.time``).
        room_id: where.
        event_id: Matrix event id.
        event_type: type inside the encryption.
        sender: user id.
        content: what it says: vitals, a batch, or an alarm with its text.
        body: text of a message, empty otherwise.
        mentions: user ids that the message mentions.
    """

    at: float
    room_id: str
    event_id: str
    event_type: str
    sender: str
    content: Vitals | VitalsBatch | AlarmBlock | None
    body: str = ""
    mentions: tuple[str, ...] = ()


@dataclass(slots=True)
class Refused:
    """What it did not believe, counted by reason."""

    unsigned: int = 0
    wrong_sender: int = 0
    malformed: int = 0


class Observer:
    """Follows every room that it is invited to by ``@fajma``."""

    def __init__(self, homeserver: str, mxid: str, directory: Path) -> None:
        domain = mxid.split(":", 1)[1]
        self.client = SignedClient(homeserver, mxid, directory, device_name="FAJMA observer")
        self.seen: list[Seen] = []
        self.refused = Refused()
        self._host, self._vitals, self._alerts = (
            f"@{name}:{domain}" for name in ("fajma", "fajma-vitals", "fajma-alerts")
        )
        self._listeners: list[Callable[[Seen], None]] = []
        self._news = asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        self.client.add_event_callback(self._on_invite, nio.InviteMemberEvent)
        self.client.add_event_callback(
            self._on_event, (nio.RoomMessage, nio.UnknownEvent, nio.MegolmEvent)
        )

    def on_seen(self, listener: Callable[[Seen], None]) -> None:
        """Be told of each decrypted event."""
        self._listeners.append(listener)

    async def start(self, password: str) -> None:
        """Log in (or resume), sign our device, and follow from then on."""
        await self.client.start_session(password)
        self._following = asyncio.create_task(self._follow())
        ready = asyncio.create_task(self.client.ready.wait())
        done, _ = await asyncio.wait({ready, self._following}, return_when=asyncio.FIRST_COMPLETED)
        if self._following in done:
            ready.cancel()
            self._following.result()

    async def _follow(self) -> None:
        await self.client.run_sync()

    async def stop(self) -> None:
        """End the client; it can be started again later."""
        if self._following is not None:
            await end([self._following])
        await self.client.close()

    async def wait_for(self, wanted: Callable[[Seen], bool], timeout_s: float) -> Seen:
        """The first event, seen already or to come, that is wanted.

        Raises:
            UnavailableError: none came in time.
        """
        deadline = time.monotonic() + timeout_s
        looked_at = 0
        while True:
            self._news.clear()
            for one in self.seen[looked_at:]:
                if wanted(one):
                    return one
            looked_at = len(self.seen)
            remaining = deadline - time.monotonic()
            try:
                async with asyncio.timeout(max(remaining, 0)):
                    await self._news.wait()
            except TimeoutError as error:
                raise UnavailableError(
                    f"nothing of the kind was decrypted within {timeout_s:.0f} s", code="not_seen"
                ) from error

    async def room_state(self, room_id: str) -> list[Mapping[str, Any]]:
        """Every state event of a room, as the homeserver has it."""
        answer = await self.client.room_get_state(room_id)
        if not isinstance(answer, nio.RoomGetStateResponse):
            raise UnavailableError("the homeserver does not show the room", code="no_room_state")
        return list(answer.events)

    async def vitals(self, room_id: str) -> Vitals:
        """The snapshot in the room's encrypted state.

        Raises:
            DecodeError: there is none that we can decrypt and believe.
        """
        for event in await self.room_state(room_id):
            if event["type"] == ENCRYPTED and str(event["state_key"]).startswith(f"{VITALS}:"):
                opened = await self.client.decrypt_state(event, room_id)
                if opened.sender == self._vitals and opened.signed:
                    return Vitals.from_content(opened.content)
        raise DecodeError("the room holds no snapshot of vitals", code="no_vitals")

    async def _on_invite(self, room: nio.MatrixInvitedRoom, event: nio.InviteMemberEvent) -> None:
        if event.state_key == self.client.user_id and event.sender == self._host:
            await self.client.join(room.room_id)

    async def _on_event(self, room: nio.MatrixRoom, event: nio.Event) -> None:
        if not getattr(event, "decrypted", False):
            return
        source = event.source
        event_type = str(source.get("type"))
        content = source.get("content", {})
        readers: dict[str, tuple[str, Callable[[Mapping[str, Any]], Any]]] = {
            VITALS: (self._vitals, Vitals.from_content),
            VITALS_BATCH: (self._vitals, VitalsBatch.from_content),
        }
        if event_type == MESSAGE and ALARM in content:
            expected: str | None = self._alerts
            read: Callable[[Mapping[str, Any]], Any] = _alarm
        elif event_type in readers:
            expected, read = readers[event_type]
        else:
            expected, read = None, _nothing
        if expected is not None and event.sender != expected:
            self.refused.wrong_sender += 1
            return
        if not event.verified:
            self.refused.unsigned += 1
            return
        try:
            opened = read(content)
        except DecodeError:
            self.refused.malformed += 1
            return
        mentions = content.get("m.mentions", {})
        one = Seen(
            at=time.time(),
            room_id=room.room_id,
            event_id=event.event_id,
            event_type=event_type,
            sender=event.sender,
            content=opened,
            body=str(content.get("body", "")),
            mentions=tuple(mentions.get("user_ids", ())),
        )
        self.seen.append(one)
        self._news.set()
        for listener in self._listeners:
            listener(one)


def _alarm(content: Mapping[str, Any]) -> AlarmBlock:
    return AlarmBlock.from_content(content[ALARM])


def _nothing(_: Mapping[str, Any]) -> None:
    return None
