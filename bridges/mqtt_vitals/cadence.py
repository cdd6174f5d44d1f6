"""What a room must be told next, and whose turn it is. Pure.

A room is told of its patient in two ways: a *batch* has every reading since the last one, a
*snapshot* (room state, which homeservers never purge) has the latest values. Somebody new also gets
the *history*. Rooms take turns: first where an alarm changed lately, then where somebody watches,
then the others, the one that has waited longest first; history when nothing else is due.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Final

ALARMING_FOR: Final = timedelta(minutes=30)
"""How long after an announcement a room counts as alarming. Whether an alarm is open is sealed for
the alarm engine; when it last announced something is a time, and times are ours to read."""

AGAIN_AFTER: Final = timedelta(seconds=5)
"""After somebody came, the snapshot goes out at once and once more: a client that hears the event
before it has looked up our device refuses it, and does not try again (seen with matrix-js-sdk)."""


class Urgency(IntEnum):
    """Whose turn comes first."""

    ALARMING = 0
    WATCHED = 1
    ROUTINE = 2
    HISTORY = 3


class What(IntEnum):
    """What is sent; of two things of one urgency the first."""

    SNAPSHOT = 0
    BATCH = 1
    HISTORY = 2


@dataclass(frozen=True, slots=True, order=True)
class Due:
    """Something to send; the smallest comes first.

    Attributes:
        urgency: whose turn.
        what: what is sent.
        since: when it became due, aware UTC.
    """

    urgency: Urgency
    what: What
    since: datetime


@dataclass(frozen=True, slots=True)
class Cadence:
    """How often, in seconds: ``publish`` of the settings."""

    state_every_s: float
    unwatched_state_every_s: float
    batch_every_s: float
    watched_every_s: float


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of one room.

    Attributes:
        newest: log position of the patient's last reading, 0 before the first.
        blank: whether no reading up to it has a value, so that there is no snapshot to show.
        shown: log position up to which the snapshot in the room goes.
        published: log position up to which batches are in the room.
        pending: whether a batch was sent whose outcome is unknown.
        more: whether the last batch was full, so that the next one goes out without pause.
        state_sent_at: when the snapshot in the room was made, if there is one.
        batch_sent_at: when a batch was last sent, as far as this process knows.
        alarm_at: when the alarm last changed, if that was within ``ALARMING_FOR``.
        shown_alarm: the same, as the snapshot in the room knows it.
        watched_until: how long somebody watches, if somebody does.
        came_at: when the last of those came who are owed snapshot and history.
    """

    newest: int = 0
    blank: bool = False
    shown: int = 0
    published: int = 0
    pending: bool = False
    more: bool = False
    state_sent_at: datetime | None = None
    batch_sent_at: datetime | None = None
    alarm_at: datetime | None = None
    shown_alarm: datetime | None = None
    watched_until: datetime | None = None
    came_at: datetime | None = None


def next_of(room: Standing, cadence: Cadence, now: datetime) -> Due | None:
    """The most urgent thing that a room must be told now, if any."""
    return min(
        (
            one
            for one in (
                _snapshot(room, cadence, now),
                _batch(room, cadence, now),
                _history(room, now),
            )
            if one is not None
        ),
        default=None,
    )


def _urgency(room: Standing, now: datetime) -> Urgency:
    if room.alarm_at is not None and now < room.alarm_at + ALARMING_FOR:
        return Urgency.ALARMING
    return Urgency.WATCHED if _is_watched(room, now) else Urgency.ROUTINE


def _is_watched(room: Standing, now: datetime) -> bool:
    return room.watched_until is not None and now < room.watched_until


def _snapshot(room: Standing, cadence: Cadence, now: datetime) -> Due | None:
    if not room.newest or room.blank:
        return None
    urgency = _urgency(room, now)
    if room.alarm_at is not None and room.alarm_at != room.shown_alarm:
        return Due(Urgency.ALARMING, What.SNAPSHOT, room.alarm_at)
    if room.came_at is not None:
        for promised in (room.came_at, room.came_at + AGAIN_AFTER):
            if promised <= now and (room.state_sent_at is None or room.state_sent_at < promised):
                return Due(min(urgency, Urgency.WATCHED), What.SNAPSHOT, promised)
    if room.newest > room.shown:
        idle = urgency is Urgency.ROUTINE
        every_s = cadence.unwatched_state_every_s if idle else cadence.state_every_s
        since = _due_since(room.state_sent_at, every_s, now)
        if since is not None:
            return Due(urgency, What.SNAPSHOT, since)
    return None


def _batch(room: Standing, cadence: Cadence, now: datetime) -> Due | None:
    if not room.pending and room.newest <= room.published:
        return None
    every_s = cadence.batch_every_s
    if _is_watched(room, now):
        every_s = min(every_s, cadence.watched_every_s)
    if room.pending or room.more:
        every_s = 0
    since = _due_since(room.batch_sent_at, every_s, now)
    return None if since is None else Due(_urgency(room, now), What.BATCH, since)


def _history(room: Standing, now: datetime) -> Due | None:
    """After the second snapshot, so that his client can read it."""
    if room.came_at is None or now < room.came_at + AGAIN_AFTER:
        return None
    return Due(Urgency.HISTORY, What.HISTORY, room.came_at)


def _due_since(last: datetime | None, every_s: float, now: datetime) -> datetime | None:
    """Since when something is due again that was last done then; ``None`` if it is not yet.

    What was done in the future was done by a clock that has been put right since.
    """
    if last is None or last > now:
        return now - timedelta(seconds=every_s)  # as long as if it was last done just then
    since = last + timedelta(seconds=every_s)
    return since if since <= now else None
