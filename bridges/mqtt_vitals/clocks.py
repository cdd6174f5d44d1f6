"""How old a reading is, whatever the clocks say. Pure.

A late value must raise no live alarm, and a wrong clock must not silence one. Both look alike: an
old time. So age is judged by what no wrong clock can change: the time that passes. A device counts
time (milliseconds since its start, or its own clock, right or wrong), we count time (a monotonic
clock, so that ours may be set as well), and the difference of the two, the *delay*, only grows
above its ordinary size when a message waited somewhere:

* The ordinary delay of a monitor is known from a message whose own clock agrees with ours, or from
  two messages in a row that came apart and had the same delay: a backlog catches up, many in a
  moment, with a delay that shrinks.
* From then on a message is as old as its delay exceeds the ordinary one. Crystals drift, so the
  ordinary delay may follow slowly.
* A v1 clock may be set (it steps), and a v1 monitor says nothing of its restarts. So a delay that
  has changed and stays the same is ordinary from its second message on. A v2 monitor counts its
  starts and its monotonic time never steps, so there a steady delay is a slow way, and old. Unless
  the monotonic time is behind one that came before: that cannot be, so it was that one that lied.

A message that comes again (the broker delivers it again, or somebody plays it back) is no news of
any clock: ``went_back`` tells which messages may be such, and whoever finds that one is, places it
with a copy (``tried``) that is thrown away.

Where no rule tells the age, a device's own clock that says "old" is believed, and otherwise the age
is unknown.
"""

from __future__ import annotations

from collections import ChainMap
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from fajma.vitals import Age, Clock, DeviceId
from fajma.wire import FUTURE_TOLERANCE, PAST_TOLERANCE, UNIX_MS_FROM

# FAJMA defaults: a network adds seconds, a crystal loses milliseconds in the time between readings.
AGREES_S: Final = 30.0
"""A device's clock and ours agree when they are no further apart."""

SAME_S: Final = 3.0
"""Two delays that differ by no more are the same."""

APART_S: Final = 1.0
"""Messages that arrive closer together may be a backlog."""

LIVE_WITHIN_S: Final = 60.0
"""A reading that is older is late."""

DRIFT: Final = 200e-6
"""Crystals of two cheap clocks part by less than this share of the time that passes."""

LONGEST_S: Final = 366 * 86_400.0
"""More than this is not told apart; so that no count, however absurd, leaves the calendar."""

V2_PAST: Final = timedelta(seconds=LONGEST_S)
"""A v2 monitor keeps its records until they are acknowledged."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_WRAP_S: Final = 2**32 / 1000
"""``millis()`` of a 32-bit device starts again at 0 after 49.7 days."""


class Arrival(NamedTuple):
    """When a message came.

    Attributes:
        at: by our wall clock, aware UTC.
        mono_s: by our monotonic clock, which nobody sets and which goes on while we are suspended.
    """

    at: datetime
    mono_s: float


class Placed(NamedTuple):
    """When something was measured, how we know, and whether it is about the patient now."""

    measured_at: datetime
    clock: Clock
    age: Age


class _Line(NamedTuple):
    """How one monitor counts time.

    Attributes:
        start: which count: ``"unix"`` or ``"uptime"`` of v1, the number of the start of v2.
        stamp_s: the device's count in its last message.
        mono_s: ours when that came.
        delay_s: ours minus the device's.
        ordinary_s: the delay of a message that did not wait; ``None`` until it is known.
        least_s: the smallest delay so far.
        wraps: how often a 32-bit count has started again.
        stepped: the count fell, which looks like waiting; until a message comes that is ordinary.
        most_s: the largest of the device's counts so far.
        went_back: the last message was not newer than one before it.
    """

    start: str | int
    stamp_s: float
    mono_s: float
    delay_s: float
    ordinary_s: float | None
    least_s: float
    wraps: int = 0
    stepped: bool = False
    most_s: float = 0.0
    went_back: bool = False


class Clocks:
    """Remembers how each monitor counts time."""

    def __init__(self) -> None:
        self._lines: ChainMap[DeviceId, _Line] = ChainMap({})

    def tried(self) -> Clocks:
        """A copy to place a batch with; ``keep`` it once the batch is committed.

        A batch whose commit fails is placed again, and must come out the same.
        """
        copy = Clocks()
        copy._lines = ChainMap({}, *self._lines.maps)
        return copy

    def keep(self, tried: Clocks) -> None:
        """Remember what a committed batch has shown."""
        self._lines.update(tried._lines.maps[0])

    def went_back(self, device: DeviceId) -> bool:
        """Whether the last message of a monitor was not newer than one before it."""
        return device in self._lines and self._lines[device].went_back

    def place_v1(self, device: DeviceId, timestamp_ms: int, arrival: Arrival) -> Placed:
        """Place a v1 reading by the timestamp in it (Unix time or time since the start)."""
        stamp_s = timestamp_ms / 1000
        if timestamp_ms < UNIX_MS_FROM:
            waited_s = self._waited(device, "uptime", stamp_s, arrival.mono_s, steps=True)
            return self._not_before_a_step(device, _placed(None, waited_s, arrival), arrival)
        stated = _stated(timestamp_ms, arrival.at)
        waited_s = self._waited(
            device,
            "unix",
            stamp_s,
            arrival.mono_s,
            agrees=stated is not None and _agree(stated, arrival.at),
            steps=True,
        )
        placed = _placed(stated, waited_s, arrival, clock_set=True)
        return self._not_before_a_step(device, placed, arrival)

    def _not_before_a_step(self, device: DeviceId, placed: Placed, arrival: Arrival) -> Placed:
        """A count that stepped back says nothing of when; its reading is late, and of now.

        Otherwise it would be placed by the size of the step, when another wore the monitor, or
        nobody.
        """
        absurd = arrival.at - placed.measured_at > PAST_TOLERANCE
        if placed.clock is Clock.DEVICE or not (absurd or self._lines[device].stepped):
            return placed
        return placed._replace(measured_at=arrival.at)

    def way_of(
        self,
        device: DeviceId,
        boot: int,
        sent_ms: int,
        measured_at: datetime | None,
        *,
        before_sending_s: float = 0.0,
        arrival: Arrival,
    ) -> float | None:
        """How long a v2 message was on its way, in seconds; ``None`` if nobody can say.

        Args:
            device: the monitor.
            boot: number of its present start.
            sent_ms: its monotonic time when it sent the message.
            measured_at: by its wall clock, of its newest record of this start; ``None`` if not set.
            before_sending_s: how long before the sending that was.
            arrival: when it came.
        """
        agrees = measured_at is not None and (
            abs((arrival.at - measured_at).total_seconds() - before_sending_s) <= AGREES_S
        )
        return self._waited(device, boot, sent_ms / 1000, arrival.mono_s, agrees=agrees)

    def _waited(
        self,
        device: DeviceId,
        start: str | int,
        stamp_s: float,
        mono_s: float,
        *,
        agrees: bool = False,
        steps: bool = False,
    ) -> float | None:
        before = self._lines.get(device)
        went_back = False
        if before is not None and before.start != start:
            went_back = not _is_later(before.start, start)
            before = None
        wraps = before.wraps if before is not None else 0
        if before is not None and start == "uptime":
            stamp_s += wraps * _WRAP_S
            if before.stamp_s - stamp_s > _WRAP_S / 2:  # from the end of the count to its beginning
                stamp_s += _WRAP_S
                wraps += 1
        delay_s = mono_s - stamp_s
        steady = (
            before is not None
            and mono_s - before.mono_s >= APART_S
            and abs(delay_s - before.delay_s) <= SAME_S
        )
        ordinary_s = before.ordinary_s if before is not None else None
        least_s = min(delay_s, before.least_s) if before is not None else delay_s
        most_s = max(stamp_s, before.most_s) if before is not None else stamp_s
        stepped = False
        if before is not None and stamp_s <= before.most_s:
            went_back = True
            # A count that cannot step is behind the largest, twice or by a clock that agrees: the
            # largest was wrong, and with it all that was learnt from it.
            if not steps and stamp_s < before.most_s:
                again = steady and before.stamp_s < before.most_s
                if again or agrees:
                    ordinary_s, least_s, most_s = delay_s, delay_s, stamp_s
        waited_s: float | None
        if ordinary_s is None or before is None:
            if agrees or steady:
                # Where nothing steps, one message that came sooner shows that these wait.
                ordinary_s = delay_s if steps or agrees else least_s
            waited_s = None if ordinary_s is None else delay_s - ordinary_s
        else:
            fell = stamp_s < before.stamp_s and before.delay_s - ordinary_s <= LIVE_WITHIN_S
            drift_s = max(mono_s - before.mono_s, 0.0) * DRIFT
            ordinary_s += min(max(delay_s - ordinary_s, 0.0), drift_s)
            waited_s = delay_s - ordinary_s
            if waited_s < 0 or (steps and steady and waited_s > AGREES_S):
                ordinary_s, waited_s = delay_s, 0.0
            stepped = steps and waited_s > LIVE_WITHIN_S and (fell or before.stepped)
        self._lines[device] = _Line(
            start,
            stamp_s,
            mono_s,
            delay_s,
            ordinary_s,
            least_s,
            wraps,
            stepped,
            most_s,
            went_back,
        )
        return None if waited_s is None else min(waited_s, LONGEST_S)


def place_v2(
    measured_at: datetime | None,
    *,
    before_sending_s: float | None,
    since_start_s: float,
    way_s: float | None,
    arrival: Arrival,
) -> Placed:
    """Place one record of a v2 message.

    Args:
        measured_at: by the monitor's wall clock, ``None`` if that was not set.
        before_sending_s: how long before it was sent it was measured, by the monotonic time of the
            same start; ``None`` for a record of an earlier start.
        since_start_s: how long the present start had lasted when it was sent.
        way_s: how long it was on its way (``Clocks.way_of``).
        arrival: when it came.
    """
    stated = measured_at if measured_at is None or _is_date(measured_at, arrival.at) else None
    since_start_s = min(since_start_s, LONGEST_S)
    if before_sending_s is None:
        # Older than the present start; that is all that is known without a clock.
        began = arrival.at - timedelta(seconds=since_start_s + (way_s or 0.0))
        at = stated or began
        clock = Clock.DEVICE if stated is not None else _unstated(measured_at)
        return Placed(at, clock, Age.LATE)
    waited_s = None if way_s is None else way_s + before_sending_s
    return _placed(
        stated,
        waited_s,
        arrival,
        clock_set=measured_at is not None,
        at_least_s=before_sending_s,
    )


def place_replayed(timestamp_ms: int, arrival: Arrival) -> Placed:
    """Place a v1 reading that waited in the quarantine: it is late, whatever it says."""
    stated = _stated(timestamp_ms, arrival.at) if timestamp_ms >= UNIX_MS_FROM else None
    return Placed(stated or arrival.at, Clock.DEVICE if stated else Clock.ARRIVAL, Age.LATE)


def _placed(
    stated: datetime | None,
    waited_s: float | None,
    arrival: Arrival,
    *,
    clock_set: bool = False,
    at_least_s: float = 0.0,
) -> Placed:
    """From the age, where it is known, and from the device's own clock, as far as it fits."""
    if waited_s is None:
        if stated is None:
            at = arrival.at - timedelta(seconds=at_least_s)
            age = Age.LATE if at_least_s > LIVE_WITHIN_S else Age.UNKNOWN
            return Placed(at, Clock.WRONG if clock_set else Clock.ARRIVAL, age)
        old = (arrival.at - stated).total_seconds() > AGREES_S or at_least_s > LIVE_WITHIN_S
        return Placed(stated, Clock.DEVICE, Age.LATE if old else Age.UNKNOWN)
    age = Age.LIVE if waited_s <= LIVE_WITHIN_S else Age.LATE
    at = arrival.at - timedelta(seconds=waited_s)
    if stated is not None and at - timedelta(seconds=AGREES_S) <= stated <= at + FUTURE_TOLERANCE:
        return Placed(stated, Clock.DEVICE, age)
    return Placed(at, Clock.WRONG if clock_set else Clock.ARRIVAL, age)


def _unstated(measured_at: datetime | None) -> Clock:
    return Clock.ARRIVAL if measured_at is None else Clock.WRONG


def _is_later(start: str | int, other: str | int) -> bool:
    """Whether another count of a monitor is known to have begun later."""
    return isinstance(start, int) and isinstance(other, int) and other > start


def _stated(timestamp_ms: int, now: datetime) -> datetime | None:
    """Unix time, if it is a date that can be (compared as durations, which do not overflow)."""
    ahead = timedelta(milliseconds=timestamp_ms) - (now - _EPOCH)
    if -PAST_TOLERANCE <= ahead <= FUTURE_TOLERANCE:
        return _EPOCH + timedelta(milliseconds=timestamp_ms)
    return None


def _is_date(moment: datetime, now: datetime) -> bool:
    return -V2_PAST <= moment - now <= FUTURE_TOLERANCE


def _agree(stated: datetime, now: datetime) -> bool:
    return abs((now - stated).total_seconds()) <= AGREES_S
