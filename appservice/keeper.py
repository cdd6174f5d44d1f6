"""Keeps every room of ours what it must be, and rooms behind their record from staying there.

What changes is looked at when the homeserver tells of it; besides, every room is looked at every
few minutes, a few of them each second. What is mended is audited and counted. Should somebody set
it back again and again, we stop answering at once, mend with the usual look alone, and tell the
ward's team and the operators, once.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import structlog
from mautrix.errors import MatrixError
from mautrix.types import MemberStateEventContent, StateEvent

from appservice.consultations import SYSTEM, ConsultationService
from appservice.repairs import KEPT_STATE, Repair
from appservice.rooms import Plan
from appservice.service import MatrixService
from appservice.spaces import Spaces
from appservice.waiting import WaitingRoom
from appservice.wards import plan_of
from fajma.errors import FajmaError, UnavailableError
from fajma.life import Status
from fajma.store import Records
from fajma.store.consultations import ConsultationId
from fajma.store.wards import WardId
from fajma.store.warnings import About

log = structlog.get_logger()

ROUND_S: Final = 300.0
"""Each room is looked at once in this time, though nothing is told of it. FAJMA default."""

ARCHIVE_LOOK_S: Final = 3600.0
"""How often it is looked for what the retention rule says."""

CONTESTED_AFTER: Final = 5
CONTESTED_WITHIN: Final = timedelta(minutes=10)
"""So many mendings of one room within this time are a contest. FAJMA default."""

LOST: Final = frozenset({"bot_not_in_room", "bot_without_power"})
"""Codes of what no waiting mends."""

PAUSE_MAX_S: Final = 300.0
"""Longest pause between two tries to bring a room to its record."""

TOMBSTONE: Final = "m.room.tombstone"


@dataclass(frozen=True, slots=True)
class Contest:
    """How often a room had to be mended lately. Pure.

    Attributes:
        mended_at: when, oldest first, aware UTC.
    """

    mended_at: tuple[datetime, ...] = ()

    def mended(self, now: datetime) -> Contest:
        """Once more."""
        recent = (one for one in self.mended_at if now - one < CONTESTED_WITHIN)
        return replace(self, mended_at=(*recent, now)[-CONTESTED_AFTER:])

    def is_on(self, now: datetime) -> bool:
        """Whether somebody sets it back again and again."""
        recent = [one for one in self.mended_at if now - one < CONTESTED_WITHIN]
        return len(recent) >= CONTESTED_AFTER


class Keeper:
    """Looks after rooms until cancelled.

    Args:
        records: all of them.
        matrix: our side of the homeserver.
        consultations: brings a consultation's room to its record.
        waiting: hears patients who knock, or begin a chat.
        spaces: the wards' spaces.
        round_s: see ``ROUND_S``.
        now: the clock.
    """

    def __init__(
        self,
        records: Records,
        matrix: MatrixService,
        consultations: ConsultationService,
        waiting: WaitingRoom,
        spaces: Spaces,
        *,
        round_s: float = ROUND_S,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._records = records
        self._matrix = matrix
        self._consultations = consultations
        self._waiting = waiting
        self._spaces = spaces
        self._round_s = round_s
        self._now = now
        self._hint = records.store.hints.subscribe("consultation")
        self._touched: dict[str, None] = {}
        self._round: deque[str] = deque()
        self._rooms_a_look = 1
        self._next: dict[str, float] = {}
        self._contests: dict[str, Contest] = {}
        self._pauses: dict[ConsultationId, tuple[float, float]] = {}
        """By consultation whose room does not follow: pause, and until when (monotonic), s."""
        self._children: Mapping[WardId, Sequence[str]] | None = None

    # --- what the homeserver tells ---------------------------------------------------------------

    async def heard(self, event: StateEvent) -> None:
        """A state event of a room in which one of our users is, or is invited to."""
        room_id, sender, event_type = str(event.room_id), str(event.sender), str(event.type)
        if event_type == TOMBSTONE:
            await self._moved(room_id, sender, str(getattr(event.content, "replacement_room", "")))
            return
        if sender in self._matrix.ours or event_type not in KEPT_STATE:
            return
        if isinstance(event.content, MemberStateEventContent):
            membership = event.content.membership.value
            if event.state_key == self._matrix.host.mxid and membership == "invite":
                await self._waiting.invited(room_id, sender)
                return
            if membership == "knock":
                await self._waiting.knocked(room_id, sender)
        self._touched[room_id] = None
        self._hint.set()

    # --- looking ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self.look()
            await self._records.store.hints.wait(self._hint)

    async def look(self) -> None:
        """One look: rooms behind their record, rooms that were told of, some of the others."""
        await self._guarded("rooms_not_settled", self._settle_all)
        touched, self._touched = list(self._touched), {}
        for room_id in touched:
            if not self._contests.get(room_id, Contest()).is_on(self._now()):
                await self._guarded("room_not_kept", partial(self.keep, room_id))
        if self._is_due("round", self._round_s) and not self._round:
            await self._guarded("rooms_not_listed", self._begin_round)
        for _ in range(min(self._rooms_a_look, len(self._round))):
            await self._guarded("room_not_kept", partial(self.keep, self._round.popleft()))
        changed = await self._children_changed()
        if self._is_due("spaces", self._round_s) or changed:
            await self._guarded("spaces_not_kept", self._spaces.look)
        if self._is_due("archive", ARCHIVE_LOOK_S):
            await self._guarded(
                "nothing_archived", partial(self._consultations.archive_due, self._now())
            )

    def _is_due(self, what: str, every_s: float) -> bool:
        now_s = time.monotonic()
        if now_s < self._next.get(what, -math.inf):
            return False
        self._next[what] = now_s + every_s
        return True

    async def _children_changed(self) -> bool:
        """Whether a consultation was opened, has ended or moved since the last look."""
        try:
            rooms = await self._records.wards.open_rooms()
        except Exception as error:  # noqa: BLE001 - a database that is away comes back
            log.warning("changes_not_seen", error=type(error).__name__)
            return False
        before, self._children = self._children, rooms
        return before != rooms

    async def _guarded(self, trouble: str, work: Callable[[], Awaitable[None]]) -> None:
        """One room's trouble must not stop the others."""
        try:
            await work()
        except FajmaError as error:
            log.warning(trouble, code=error.code)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next look is another try
            log.warning(trouble, error=type(error).__name__)

    async def _settle_all(self) -> None:
        behind = await self._records.consultations.unshown()
        self._pauses = {one: self._pauses[one] for one in behind if one in self._pauses}
        for one in behind:
            pause_s, until_s = self._pauses.get(one, (0.5, -math.inf))
            if time.monotonic() >= until_s:
                longer_s = min(2 * pause_s, PAUSE_MAX_S)
                self._pauses[one] = longer_s, time.monotonic() + longer_s
                await self._guarded("room_not_settled", partial(self._settle, one))

    async def _settle(self, one: ConsultationId) -> None:
        """Bring a room to its record; while that fails it is tried again less and less often."""
        try:
            await self._consultations.settle(one, self._now())
        except UnavailableError as error:
            found = await self._records.consultations.get(one)
            if error.code in LOST and found is not None and found.room_id is not None:
                await self._warn(About.ROOM_LOST, found.room_id, error.code)
            raise
        self._pauses.pop(one, None)

    async def _begin_round(self) -> None:
        frozen = await self._records.consultations.having(Status.ENDED, Status.NO_SHOW)
        rooms = {*await self._records.audience.rooms(), *(one.room_id for one in frozen)}
        self._round.extend(sorted(one for one in rooms if one is not None))
        self._rooms_a_look = max(1, math.ceil(len(self._round) / self._round_s))
        self._contests = {
            room_id: one for room_id, one in self._contests.items() if one.is_on(self._now())
        }

    # --- one room --------------------------------------------------------------------------------

    async def keep(self, room_id: str) -> None:
        """See that one room is as it must be.

        Raises:
            MatrixError: the homeserver does not answer, or refuses.
        """
        try:
            # Or a consultation could end between the plan and what is done by it.
            async with self._consultations.undisturbed:
                plan = await self._plan(room_id)
                if plan is None:
                    return
                mended = await self._matrix.mend(room_id, plan)
        except UnavailableError as error:
            if error.code not in LOST:
                raise
            log.error("room_lost", room=room_id, code=error.code)
            await self._warn(About.ROOM_LOST, room_id, error.code)
            return
        await self._warn(About.ROOM_LOST, room_id, None)
        if mended:
            await self._note(room_id, mended)
        contest = self._contests.get(room_id, Contest())
        await self._warn(About.ROOM_CONTESTED, room_id, "" if contest.is_on(self._now()) else None)

    async def _plan(self, room_id: str) -> Plan | None:
        """What a room must be; ``None`` if it is none of ours, or its record is ahead of it."""
        found = await self._records.consultations.in_room(room_id)
        if found is not None:
            stays = found.status in {Status.OPEN, Status.ENDED, Status.NO_SHOW}
            is_shown = found.shown >= found.revision
            if not stays or not is_shown:
                return None
            plan = await self._consultations.rooms.plan(found)
            # Who was taken out when his part ended, and is there again, was added by a homeserver:
            # a stranger, whom people must know of.
            return replace(plan, gone=frozenset())
        ward = await self._records.wards.in_room(room_id)
        if ward is None:
            return None
        team = await self._records.people.team(ward.id)
        return plan_of(self._matrix, [one.account for one in team])

    async def _note(self, room_id: str, mended: Sequence[Repair]) -> None:
        now = self._now()
        self._contests[room_id] = self._contests.get(room_id, Contest()).mended(now)
        counts: dict[str, int] = {}
        for one in mended:
            counts[f"room_mended_{one.what}"] = counts.get(f"room_mended_{one.what}", 0) + 1
        async with self._records.store.transaction() as connection:
            await self._records.tally.add(connection, counts)
            for one in mended:
                detail = {"account": one.account} if one.account else {}
                await self._records.audit.note(
                    connection,
                    actor=SYSTEM,
                    action=f"room.mend.{one.what}",
                    subject=room_id,
                    now=now,
                    **detail,
                )
        log.warning("room_mended", room=room_id, what=sorted({one.what.value for one in mended}))

    async def _warn(self, about: About, room_id: str, mark: str | None) -> None:
        if mark is not None or await self._records.warnings.is_open(about, room_id):
            marks = [] if mark is None else [mark]
            await self._records.warnings.set(about, room_id, marks, now=self._now())

    # --- upgrades --------------------------------------------------------------------------------

    async def _moved(self, room_id: str, sender: str, after: str) -> None:
        """A room was upgraded: followed if one of ours did it, into a room that one of ours made.

        Source: Matrix 1.16, client-server API, "Room upgrades".
        """
        consultation = await self._records.consultations.in_room(room_id)
        ward = await self._records.wards.in_room(room_id)
        if consultation is None and ward is None:
            return
        if sender not in self._matrix.ours or not await self._is_ours(after, before=room_id):
            log.warning("upgrade_not_followed", room=room_id)
            return
        async with self._records.store.transaction() as connection:
            if ward is not None:
                await self._records.wards.moved(connection, room_id, after)
            await self._records.consultations.moved(connection, room_id, after)
            await self._records.audit.note(
                connection,
                actor=sender,
                action="room.moved",
                subject=room_id,
                now=self._now(),
                to=after,
            )
        log.info("room_moved", room=room_id, to=after)
        for topic in ("trust", "consultation"):
            self._records.store.hints.notify(topic)
        if consultation is not None:
            plan: Plan | None = await self._consultations.rooms.plan(consultation)
        else:
            plan = await self._plan(after)
        if plan is not None:
            await self._matrix.move_into(after, plan)

    async def _is_ours(self, room_id: str, *, before: str) -> bool:
        try:
            create: Mapping[str, Any] = await self._matrix.creation_of(room_id)
        except (MatrixError, FajmaError):
            return False
        predecessor = create["content"].get("predecessor")
        return (
            create["sender"] == self._matrix.host.mxid
            and isinstance(predecessor, Mapping)
            and predecessor.get("room_id") == before
        )
