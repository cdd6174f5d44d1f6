"""Delivers what the outbox promises: one message, never none, never two.

A delivery is sent under its own id as transaction id, so repeating a send whose outcome is unknown
is answered by the homeserver with the event that is already there; what it may have forgotten is
looked for in the room (``fajma.deliveries``). It is marked delivered only when the homeserver named
the event.

Each room is delivered to by a task of its own: a room that is stuck, slow or broken never holds up
the alarms of another. Within a room the order is kept. A homeserver that answers 429 is left alone
by all rooms as long as it asks; then alarms come before notices. A room that goes on refusing,
while the homeserver answers, is told of (``About.UNDELIVERABLE``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import nio
import structlog

from bots.alerts.client import SignedClient
from fajma.deliveries import Unsettled, left_alone_s
from fajma.errors import BugError, BusyError, InputError, UnavailableError
from fajma.events import MESSAGE
from fajma.store import Records
from fajma.store.alarms import Delivery, SentBy
from fajma.store.warnings import About
from fajma.tasks import end

log = structlog.get_logger()

REQUEST_TIMEOUT_S: Final = 20.0
"""How long a request may take before its outcome counts as unknown."""

RETRY_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0)
"""Pauses between attempts in one room, the last one repeated."""

TELL_AFTER_S: Final = 60.0
"""How long a room may refuse until somebody is told."""

_EVERYBODYS: Final = frozenset({"homeserver_unavailable", "bad_answer"})
"""Troubles of the homeserver, or of what stands before it, that say nothing of a room."""


@dataclass(slots=True)
class _Trouble:
    """A room that does not take what is promised to it (times of ``time.monotonic``).

    Attributes:
        failures: in a row.
        not_before_s: until when it is left alone.
        refusing_since_s: since when it refuses while the homeserver answers.
    """

    failures: int = 0
    not_before_s: float = 0.0
    refusing_since_s: float | None = None


class AlertBot:
    """The account ``@fajma-alerts``.

    Args:
        client: its signed client, whose session is started and which tells when the homeserver is
            busy.
        records: where the outbox is.
        host: the only user whose invitations it accepts.
        now: the time of a warning.
    """

    def __init__(
        self,
        client: SignedClient,
        records: Records,
        *,
        host: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._client = client
        self._records = records
        self._host = host
        self._now = now
        self._hint = records.store.hints.subscribe("outbox")
        self._unsettled = Unsettled(
            records.outbox, SentBy.ALERTS, client.messages, mxid=client.user_id
        )
        self._joining: asyncio.Task[None] | None = None
        self._delivering: dict[str, asyncio.Task[None]] = {}
        self._troubles: dict[str, _Trouble] = {}
        self._told: set[str] | None = None
        self._busy_until_s = 0.0
        self._was_busy = False
        self._unreadable: set[str] = set()
        client.add_event_callback(self._on_invite, nio.InviteMemberEvent)

    async def run(self) -> None:
        """Follow the rooms and deliver, until cancelled.

        Raises:
            InputError: the homeserver ended our session.
        """
        parts = [
            asyncio.create_task(self._follow()),
            asyncio.create_task(self._deliver_forever()),
        ]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
        finally:
            joining = [] if self._joining is None else [self._joining]
            await end([*parts, *joining, *self._delivering.values()])

    async def _follow(self) -> None:
        await self._client.run_sync()

    async def _deliver_forever(self) -> None:
        await self._client.ready.wait()
        # Beside the deliveries, for a room that hangs must not hold up the others.
        self._joining = asyncio.create_task(self._join_our_rooms())
        while True:
            try:
                rooms = await self._records.outbox.rooms_waiting()
                self._unsettled.waiting(rooms)
                for room_id in await self._alarms_first(rooms):
                    self._deliver_soon(room_id)
                await self._end_warnings(rooms)
            except Exception as error:  # noqa: BLE001 - a database that is away comes back
                log.error("outbox_unavailable", error=type(error).__name__)
            await self._records.store.hints.wait(self._hint)

    async def _alarms_first(self, waiting: Sequence[str]) -> Sequence[str]:
        """Rooms to deliver to: after a 429, while alarms can be delivered, notices wait."""
        if not self._was_busy:
            return waiting
        urgent = await self._records.outbox.rooms_waiting(about_patients=True)
        stuck = self._troubles.keys() | (self._told or set())
        self._was_busy = not stuck.issuperset(urgent)
        return urgent if self._was_busy else waiting

    def _deliver_soon(self, room_id: str) -> None:
        """Have a task that delivers to this room, unless one does or it must wait."""
        busy = self._delivering.get(room_id)
        if busy is not None and not busy.done():
            return
        trouble = self._troubles.get(room_id)
        if trouble is not None and time.monotonic() < trouble.not_before_s:
            return
        if not self._is_busy():
            self._delivering[room_id] = asyncio.create_task(self._deliver_to(room_id))

    def _is_busy(self) -> bool:
        return time.monotonic() < self._busy_until_s

    async def _deliver_to(self, room_id: str) -> None:
        """Deliver what waits for a room, in order, up to the first failure."""
        try:
            if await self._deliver_all(room_id):
                self._troubles.pop(room_id, None)
                return
            code = "refused"
        except BusyError as error:
            pause_s = left_alone_s(error)
            self._was_busy = True
            self._busy_until_s = max(self._busy_until_s, time.monotonic() + pause_s)
            log.warning("homeserver_busy", pause_s=pause_s)
            return
        except (InputError, UnavailableError) as error:
            code = error.code
            log.warning("delivery_failed", room=room_id, reason=code)
        except Exception as error:  # noqa: BLE001 - whatever it is, alarms are tried again
            code = type(error).__name__
            log.error("delivery_failed", room=room_id, error=code)
        await self._failed(room_id, code)

    async def _failed(self, room_id: str, code: str) -> None:
        """Leave a room alone for a while, and tell of one that goes on refusing."""
        now_s = time.monotonic()
        trouble = self._troubles.setdefault(room_id, _Trouble())
        trouble.failures += 1
        trouble.not_before_s = now_s + RETRY_S[min(trouble.failures, len(RETRY_S)) - 1]
        if code in _EVERYBODYS:
            trouble.refusing_since_s = None
            return
        if trouble.refusing_since_s is None:
            trouble.refusing_since_s = now_s
        if now_s - trouble.refusing_since_s >= TELL_AFTER_S:
            await self._warn(room_id)

    async def _warn(self, room_id: str) -> None:
        if self._told is None or room_id in self._told:
            return
        try:
            await self._records.warnings.set(About.UNDELIVERABLE, room_id, [""], now=self._now())
        except Exception as error:  # noqa: BLE001 - told after the next attempt
            log.error("warning_not_set", room=room_id, error=type(error).__name__)
        else:
            self._told.add(room_id)
            log.critical("room_refuses", room=room_id)

    async def _end_warnings(self, waiting: Collection[str]) -> None:
        """Nothing waits any more for a room of which was told."""
        if self._told is None:
            open_ones = await self._records.warnings.open(About.UNDELIVERABLE)
            self._told = {one.subject for one in open_ones}
        for room_id in self._told - set(waiting):
            await self._records.warnings.set(About.UNDELIVERABLE, room_id, [], now=self._now())
            self._told.discard(room_id)

    async def _deliver_all(self, room_id: str) -> bool:
        """Returns whether nothing waits any more."""
        if room_id not in self._client.rooms:
            log.warning("not_yet_in_room", room=room_id)
            await self._join(room_id)
            return False
        await self._unsettled.settle(room_id)
        while ids := await self._waiting(room_id):
            for delivery_id in ids:
                if self._is_busy():
                    raise BusyError(self._busy_until_s - time.monotonic())
                try:
                    delivery = await self._records.outbox.get(delivery_id)
                except BugError as error:
                    # It stays undelivered, told at each start; the others must not wait for it.
                    log.critical("delivery_unreadable", delivery=delivery_id, code=error.code)
                    self._unreadable.add(delivery_id)
                    await self._warn(room_id)
                    continue
                if not await self._deliver(delivery):
                    return False
        return True

    async def _waiting(self, room_id: str) -> list[str]:
        waiting = await self._records.outbox.waiting(room_id)
        return [one for one in waiting if one not in self._unreadable]

    async def _deliver(self, delivery: Delivery) -> bool:
        started = time.monotonic()
        answer = await self._client.room_send(
            delivery.room_id, MESSAGE, dict(delivery.content), tx_id=delivery.delivery_id
        )
        if not isinstance(answer, nio.RoomSendResponse):
            log.warning(
                "delivery_refused", delivery=delivery.delivery_id, status=answer.status_code
            )
            return False
        await self._records.outbox.delivered(delivery.delivery_id, answer.event_id)
        log.info(
            "alarm_delivered",
            delivery=delivery.delivery_id,
            room=delivery.room_id,
            send_ms=round((time.monotonic() - started) * 1000),
        )
        return True

    async def _join_our_rooms(self) -> None:
        """Be in every room of our records; an invitation may have been lost on the way."""
        try:
            for room_id in await self._records.audience.rooms():
                if room_id not in self._client.rooms:
                    await self._try_to_join(room_id)
        except Exception as error:  # noqa: BLE001 - each is joined at its first alarm
            log.error("rooms_not_joined", error=type(error).__name__)

    async def _try_to_join(self, room_id: str) -> None:
        try:
            await self._join(room_id)
        except UnavailableError as error:
            log.warning("room_not_joined", room=room_id, reason=error.code)

    async def _join(self, room_id: str) -> None:
        answer = await self._client.join(room_id)
        if isinstance(answer, nio.JoinError):
            log.warning("join_refused", room=room_id, status=answer.status_code)
            raise UnavailableError("we may not join a room of ours", code="join_refused")

    async def _on_invite(self, room: nio.MatrixInvitedRoom, event: nio.InviteMemberEvent) -> None:
        if event.membership != "invite" or event.state_key != self._client.user_id:
            return
        if event.sender != self._host:
            log.warning("invitation_refused", room=room.room_id)
            return
        # If it fails it is tried again at the room's first alarm and at each start.
        await self._try_to_join(room.room_id)
