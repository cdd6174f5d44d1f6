"""The dead man's switch: when all of FAJMA dies, the homeserver tells the rooms.

For each ward's room, and each room in which an alarm is open, the homeserver holds an encrypted
message that it sends by itself (``delayed``, MSC4140). While all works (``signs``) we put it off
again and again. When a part is silent but the bot is not, the bot says so itself, through the
outbox, and goes on putting off; when it cannot, it lets the homeserver speak.

What is held was encrypted for the devices that may read on that day. So it is replaced when they
change, or its words, or who is on duty: first the new one is scheduled and noted, then the old one
is cancelled, so that a room is never without. What is held and not noted (we died in between) is
cancelled at the next look.

A planned stop (``fajma maintenance``) is told, and holds the message until a minute after its end.
What was told is followed by one word that it is over, with who must be looked at.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import structlog
from mautrix.util.async_db import Connection

from bots.alerts import silence_text
from bots.alerts.client import SignedClient
from bots.alerts.delayed import MAX_SCHEDULED, DelayedEvents
from bots.alerts.signs import Pace, Signs, Verdict
from bots.alerts.site_rules import SiteRules
from bots.alerts.text import Text
from bots.alerts.told_rooms import ToldRoom, ToldRooms
from fajma.errors import FajmaError, InputError
from fajma.events import MESSAGE, MONITORING, Monitoring, MonitoringBlock
from fajma.store import Records
from fajma.store.alarms import Delivery, SentBy
from fajma.store.deadman import Switch
from fajma.store.heartbeats import DEAD_MAN
from fajma.store.maintenance import Maintenance

log = structlog.get_logger()

AFTER_STOP: Final = timedelta(seconds=60)
"""How long after the planned end of a stop the homeserver speaks, if we are not back."""

SCHEDULE_WITHIN_S: Final = 10.0
"""One room whose members' homeservers are slow must not let the others' messages be sent."""

ASK_AGAIN_S: Final = 60.0

GIVE_UP_AFTER: Final = 3
"""So many messages that cannot be put off in one look: it is the homeserver, not one of them."""

NO_DELAYED_EVENTS: Final = "no_delayed_events"
"""Trouble: the homeserver does not know delayed events, or is not allowed to hold any."""


class DeadMan:
    """Keeps the homeserver from speaking for us while all works.

    Args:
        client: the bot's signed client.
        records: our records.
        signs: whether all works.
        pace: how often what is done.
        rules: by which patients are judged.
        now: the clock.
        steady_s: a clock that nobody sets, s.
    """

    def __init__(
        self,
        client: SignedClient,
        records: Records,
        signs: Signs,
        pace: Pace,
        rules: SiteRules,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        steady_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._records = records
        self._signs = signs
        self._pace = pace
        self._now = now
        self._steady_s = steady_s
        self._events = DelayedEvents(client)
        self._rooms = ToldRooms(records, rules)
        self._hint = records.store.hints.subscribe("trust")
        self._longest_s = 0.0
        self._asked_s: float | None = None
        self._unsure = True
        """Whether the homeserver may hold what is not noted."""
        self._put_off_s: dict[str, float] = {}
        """By delay id, when it was put off last, by the steady clock."""
        self._works_since_s: float | None = None
        self._trouble: str | None = "not_looked"
        self._left_out: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Look after it until cancelled; what the homeserver holds then stays, and is sent."""
        await self._client.ready.wait()
        while True:
            try:
                trouble = await self.look()
            except FajmaError as error:
                trouble = error.code
            except Exception as error:  # noqa: BLE001 - whatever it is, the next look is another try
                trouble = type(error).__name__
            await self._note(trouble)
            await self._records.store.hints.wait(self._hint, self._pace.beat_s)

    async def look(self) -> str | None:
        """Tell what must be told, and put off what the homeserver holds.

        Returns:
            Why not every room has its message held, ``None`` if every one has.
        """
        verdict = await self._signs.look()
        stop = await self._records.maintenance.newest()
        on = stop if stop is not None and stop.is_on(self._now()) else None
        rooms = await self._rooms.all()
        if on is None:
            await self._tell_silent_parts(verdict, rooms)
        elif on.told_at is None:
            await self._tell_stop(on, rooms)
        if self._has_settled(verdict) and on is None:
            await self._tell_back(stop, rooms)
        told = await self._records.heartbeats.told_silent()
        may_go_on = on is not None or (not verdict.awaited and verdict.silent.keys() <= told.keys())
        if not (verdict.follows and may_go_on):
            return "something_silent"
        return await self._hold(self._within_limit(rooms), on)

    def _has_settled(self, verdict: Verdict) -> bool:
        """Whether all works for long enough that monitors had the time to send something."""
        if not verdict.works:
            self._works_since_s = None
            return False
        if self._works_since_s is None:
            self._works_since_s = verdict.at_s
        return verdict.at_s - self._works_since_s >= 1.5 * self._pace.put_off_s

    def _within_limit(self, rooms: Sequence[ToldRoom]) -> Sequence[ToldRoom]:
        left_out = frozenset(one.id for one in rooms[MAX_SCHEDULED:])
        if left_out != self._left_out:
            self._left_out = left_out
            log.warning("dead_man_rooms_left_out", count=len(left_out), rooms=sorted(left_out))
        return rooms[:MAX_SCHEDULED]

    async def _note(self, trouble: str | None) -> None:
        """For the operator: in the log once for each change, in the records each time."""
        if trouble != self._trouble:
            self._trouble = trouble
            if trouble is None:
                log.info("dead_man_ready")
            elif trouble == NO_DELAYED_EVENTS:
                log.error(
                    "dead_man_not_possible",
                    reason=trouble,
                    todo="set max_event_delay_duration: 24h in the homeserver's configuration"
                    " (Synapse 1.163 or later), else nobody tells the wards when FAJMA dies",
                )
            else:
                log.warning("dead_man_not_ready", reason=trouble)
        try:
            await self._records.heartbeats.beat(DEAD_MAN, now=self._now(), trouble=trouble)
        except Exception as error:  # noqa: BLE001 - a database that is away comes back
            log.error("dead_man_not_noted", error=type(error).__name__)

    # --- what we tell ourselves ------------------------------------------------------------------

    async def _tell_silent_parts(self, verdict: Verdict, rooms: Sequence[ToldRoom]) -> None:
        """Once for each silence of a part; should it be silent again, again."""
        records, now = self._records, self._now()
        told = await records.heartbeats.told_silent()
        for part in told.keys() - verdict.silent.keys() - verdict.awaited:
            async with records.store.transaction() as connection:
                await records.heartbeats.heard_again(connection, part)
            log.info("part_heard_again", part=part)
        for part, since in verdict.silent.items():
            if part in told:
                continue

            def words(room: ToldRoom, part: str = part, since: datetime | None = since) -> Text:
                return silence_text.part_silent(
                    part, room.language, since=since, zone=room.time_zone, now=now
                )

            async with records.store.transaction() as connection:
                await records.heartbeats.tell_silent(connection, part, now=now)
                for room in rooms:
                    await records.switches.silent(connection, room.id, since=since or now)
                await self._promise(
                    connection, rooms, words, Monitoring.PART_SILENT, part, now.isoformat()
                )
                await self._audit(connection, "monitoring.silent", part, now)
            self._promised()
            log.critical("part_silent", part=part)

    async def _tell_stop(self, stop: Maintenance, rooms: Sequence[ToldRoom]) -> None:
        def words(room: ToldRoom) -> Text:
            return silence_text.stopping(
                room.language,
                started_at=stop.started_at,
                until=stop.until,
                reason=stop.reason,
                zone=room.time_zone,
            )

        async with self._records.store.transaction() as connection:
            await self._records.maintenance.told(connection, stop, now=self._now())
            await self._promise(connection, rooms, words, Monitoring.STOPPING, stop.id)
        self._promised()

    async def _tell_back(self, stop: Maintenance | None, rooms: Sequence[ToldRoom]) -> None:
        """Tell the rooms that know of a silence, all of them after a planned stop, that it is over.

        What is promised before cannot be overtaken: a room is told in order.
        """
        records, now = self._records, self._now()
        since = dict(await records.switches.silences())
        closes = stop is not None and stop.closed_at is None
        if stop is not None and closes:
            since = dict.fromkeys([one.id for one in rooms], stop.started_at) | since
        if not since and not closes:
            return
        known = {one.id: one for one in rooms}
        back = [known.get(room_id) or await self._rooms.of(room_id) for room_id in since]
        texts = {
            room.id: silence_text.back(
                room.language,
                since=since[room.id],
                now=now,
                zone=room.time_zone,
                patients=await self._rooms.to_look_at(room, since=since[room.id], now=now),
            )
            for room in back
            if room is not None
        }
        async with records.store.transaction() as connection:
            if stop is not None and closes:
                await records.maintenance.closed(connection, stop, now=now)
            for room_id in since:
                await records.switches.over(connection, room_id)
            await self._promise(
                connection,
                [one for one in back if one is not None],
                lambda room: texts[room.id],
                Monitoring.BACK,
                now.isoformat(),
            )
            await self._audit(connection, "monitoring.back", "monitoring", now)
        self._promised()
        log.info("monitoring_back", rooms=len(texts))

    async def _promise(
        self,
        connection: Connection,
        rooms: Sequence[ToldRoom],
        words: Callable[[ToldRoom], Text],
        state: Monitoring,
        *about: str,
    ) -> None:
        """Promise a message for each room, in the transaction that notes that it is told."""
        parts = [state.value.encode(), *(one.encode() for one in about)]
        deliveries = [
            Delivery(
                delivery_id=self._records.site_key.fingerprint(
                    b"monitoring", room.id.encode(), *parts
                ).hex(),
                room_id=room.id,
                patient=None,
                content=_content(words(room), state, room.called),
                created_at=self._now(),
            )
            for room in rooms
        ]
        await self._records.outbox.add(connection, *deliveries)

    def _promised(self) -> None:
        self._records.store.hints.notify("outbox")

    async def _audit(
        self, connection: Connection, action: str, subject: str, now: datetime
    ) -> None:
        await self._records.audit.note(
            connection, actor="fajma", action=action, subject=subject, now=now
        )

    # --- what the homeserver holds ---------------------------------------------------------------

    async def _hold(self, rooms: Sequence[ToldRoom], stop: Maintenance | None) -> str | None:
        """Have the homeserver hold one message for each of these rooms, and no other."""
        if not await self._is_possible():
            return NO_DELAYED_EVENTS
        stuck = await self._stuck()
        await self._put_off(stuck)
        if self._unsure:
            await self._compare()
        held = await self._records.switches.all()
        wanted = {one.id for one in rooms}
        for room_id, switch in held.items():
            if room_id not in wanted:
                await self._records.switches.drop(switch.delay_id)
                await self._cancel(switch)
        trouble: str | None = "room_stuck" if stuck & wanted else None
        until_s = self._steady_s() + self._pace.put_off_s / 2
        for room in rooms:
            if room.id in stuck:
                continue
            if self._steady_s() > until_s:
                return "more_to_do"  # those that are held come first
            try:
                async with asyncio.timeout(SCHEDULE_WITHIN_S):
                    await self._hold_one(room, held.get(room.id), stop)
            except InputError as error:  # nothing was asked for: we are not in the room yet
                trouble = error.code
            except (FajmaError, TimeoutError) as error:
                self._unsure = True
                self._asked_s = None  # it may be another homeserver than it was
                trouble = error.code if isinstance(error, FajmaError) else "slow"
        return trouble

    async def _is_possible(self) -> bool:
        """Whether the homeserver knows delayed events: one that does not would send at once."""
        asked_s = self._steady_s()
        again = not self._longest_s and asked_s - (self._asked_s or 0) >= ASK_AGAIN_S
        if self._asked_s is None or again:
            self._longest_s = await self._events.longest_s()
            self._asked_s = asked_s
        return self._longest_s > 0

    async def _compare(self) -> None:
        """Find out what was sent, and cancel what is held and not noted."""
        held = await self._events.held()
        noted = await self._records.switches.all()
        for switch in noted.values():
            if switch.delay_id not in held:
                await self._fired(switch)
        for delay_id in held - {one.delay_id for one in noted.values()}:
            await self._events.cancel(delay_id)
        self._unsure = False

    async def _stuck(self) -> frozenset[str]:
        """Rooms that our own messages do not reach; there the homeserver must speak."""
        limit = self._now() - timedelta(seconds=self._pace.limit_s)
        waiting = await self._records.heartbeats.undelivered_since(SentBy.ALERTS)
        return frozenset(room_id for room_id, since in waiting.items() if since < limit)

    async def _put_off(self, stuck: frozenset[str]) -> None:
        """Put off what is due, with pauses: not all rooms' requests at one moment."""
        now_s = self._steady_s()
        early_s = self._pace.put_off_s - self._pace.beat_s / 2
        due = [
            one
            for one in (await self._records.switches.all()).values()
            if one.maintenance_id is None
            and one.room_id not in stuck
            and now_s - self._put_off_s.get(one.delay_id, -early_s) >= early_s
        ]
        alive = []
        troubles: list[FajmaError] = []
        try:
            for switch in due:
                try:
                    is_held = await self._events.put_off(switch.delay_id)
                except FajmaError as error:  # the others must not speak because of this one
                    troubles.append(error)
                    if len(troubles) == GIVE_UP_AFTER:
                        break
                    continue
                if is_held:
                    self._put_off_s[switch.delay_id] = self._steady_s()
                    alive.append(switch)
                else:
                    await self._fired(switch)
                await asyncio.sleep(self._pace.beat_s / 4 / len(due))
        finally:
            await self._records.switches.alive(alive, now=self._now())
        if troubles:
            raise troubles[0]

    async def _hold_one(
        self, room: ToldRoom, held: Switch | None, stop: Maintenance | None
    ) -> None:
        """Have this room's message as it must be now."""
        await self._client.share_group_session(room.id)
        session = self._client.olm.outbound_group_sessions[room.id].id
        if held is not None and held.mark == self._mark(room, session, stop):
            return
        content = self._words(room, stop)
        sealed = await self._client.encrypted(room.id, MESSAGE, content)
        now = self._now()
        delay_s = self._pace.silence_s
        if stop is not None:
            delay_s = max(delay_s, (stop.until + AFTER_STOP - now).total_seconds())
        delay_id = await self._events.schedule(
            room.id, sealed, delay_s=min(delay_s, self._longest_s)
        )
        await self._records.switches.put(
            Switch(
                room_id=room.id,
                delay_id=delay_id,
                mark=self._mark(room, sealed["session_id"], stop),
                maintenance_id=None if stop is None else stop.id,
                alive_at=now,
            )
        )
        self._put_off_s[delay_id] = self._steady_s()
        if held is not None:
            await self._cancel(held)
        log.info("dead_man_held", room=room.id, planned_stop=stop is not None)

    async def _cancel(self, switch: Switch) -> None:
        """What cannot be cancelled because it was sent is a silence, too."""
        self._put_off_s.pop(switch.delay_id, None)
        try:
            held = await self._events.cancel(switch.delay_id)
        except FajmaError:
            self._unsure = True
            raise
        if not held:
            await self._fired(switch)

    async def _fired(self, switch: Switch) -> None:
        self._put_off_s.pop(switch.delay_id, None)
        await self._records.switches.fired(switch)
        log.critical("dead_man_fired", room=switch.room_id)

    def _words(self, room: ToldRoom, stop: Maintenance | None) -> dict[str, Any]:
        if stop is None:
            text = silence_text.silent(room.language, silence_s=self._pace.silence_s)
        else:
            text = silence_text.overdue(room.language, until=stop.until, zone=room.time_zone)
        return dict(_content(text, Monitoring.SILENT, room.called))

    def _mark(self, room: ToldRoom, session: str, stop: Maintenance | None) -> str:
        """Tells whether what is held is still what it must be."""
        content = self._words(room, stop)
        return self._records.site_key.fingerprint(
            b"dead man",
            session.encode(),
            content["body"].encode(),
            *(one.encode() for one in content["m.mentions"]["user_ids"]),
        ).hex()


def _content(text: Text, state: Monitoring, called: Sequence[str]) -> Mapping[str, Any]:
    priority = "low" if state is Monitoring.BACK else "high"
    return text.message() | {
        "m.mentions": {"user_ids": list(called)},
        MONITORING: MonitoringBlock(state, priority).to_content(),
    }
