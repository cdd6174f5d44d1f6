"""Technical alarms: what keeps us from judging a patient, so that somebody must look. Pure.

1. A worn monitor that sends nothing (``NO_READINGS``): after ``SiteRules.silent_after``, or three
   times its usual interval if that is longer, but never later than ``SILENT_AT_MOST``; ``GRACE``
   after the broker says that it is gone. Readings that are late do not count as heard: nobody knows
   how the patient is now. A reading of unknown age does, it is a trouble of its own.
2. ``PROBE_OFF``: the monitor says so, or a heart rate or SpO2 that it sent regularly is missing
   while other readings come, for a while.
3. ``UNKNOWN_AGE``: nothing but readings of unknown age, for a while. ``WRONG_CLOCK``: the monitor
   states times that cannot be, for a while; its readings are placed by arrival and judged all the
   same, so once a day is enough.
4. ``NO_USABLE_PULSE``: an implausible heart rate or SpO2 in most of the last live readings. High
   priority, at once: the dying look implausible.
5. There is at most one episode per trouble and monitor. It ends when the trouble is gone for the
   dwell, or when the monitor is taken off. Trouble never ends an episode of a vital sign, nor does
   one trouble end another: a probe that is off says nothing about the pulse.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from bots.alerts.alarm import Reason, Reasoned
from bots.alerts.alarm_state import (
    AlarmId,
    Heard,
    PatientState,
    Standing,
    Trouble,
    TroubleEpisode,
)
from bots.alerts.limits import Priority
from fajma.vitals import Age, Clock, DeviceId, Kind, Reading

PRIORITIES: Final[Mapping[Trouble, Priority]] = {
    Trouble.NO_READINGS: Priority.MEDIUM,
    Trouble.PROBE_OFF: Priority.MEDIUM,
    Trouble.UNKNOWN_AGE: Priority.MEDIUM,
    Trouble.WRONG_CLOCK: Priority.LOW,
    Trouble.NO_USABLE_PULSE: Priority.HIGH,
}

# All times and counts are FAJMA defaults, not from a guideline.

SILENT_INTERVALS: Final = 3
"""Times its usual interval that a monitor may be silent: two readings in a row may be lost."""

SILENT_AT_MOST: Final = timedelta(minutes=5)
"""However seldom a monitor sends, a longer silence is told."""

GRACE: Final = timedelta(seconds=10)
"""For a monitor that left the broker, to come back before anybody is told."""

LASTING: Final[Mapping[Trouble, timedelta]] = {
    Trouble.PROBE_OFF: timedelta(seconds=30),
    Trouble.UNKNOWN_AGE: timedelta(seconds=60),
    Trouble.WRONG_CLOCK: timedelta(seconds=60),
    Trouble.NO_USABLE_PULSE: timedelta(0),
}
"""How long a trouble lasts before it is told."""

TROUBLE_DWELL: Final = timedelta(seconds=30)
"""How long a trouble must be gone before its alarm ends."""

CLOCK_AGAIN: Final = timedelta(days=1)
"""From one word about a wrong clock to the next."""

REGULAR: Final = 4
"""Readings in a row that have a heart rate, or SpO2, before it is missed."""

UNUSABLE_WINDOW: Final = 4
"""Live readings looked back on for an unusable pulse."""

UNUSABLE_NEEDED: Final = 3
"""How many of them must be unusable."""

PULSE: Final = frozenset({Kind.HEART_RATE, Kind.SPO2})

# Looked up once, for they are compared with at every reading.
_LIVE: Final = Age.LIVE
_WRONG: Final = Clock.WRONG
_HEART_RATE: Final = Kind.HEART_RATE
_SPO2: Final = Kind.SPO2


@dataclass(frozen=True, slots=True)
class TechnicalDecision(Reasoned):
    """What is said, or not, about a sensor's trouble.

    Attributes:
        reason: why it is announced, or why not.
        trouble: what is wrong.
        device: the monitor it is about.
        priority: of the alarm.
        alarm_id: the technical alarm.
        since: when the trouble began, by our clock.
        last_good_at: when the last value that could be judged was measured, or of silence, when
            something was last heard of this monitor; ``None`` if there was none since the patient
            wears it.
        at: when this was decided, by our clock.
        step: of the escalation ladder that is reached, from 0; all up to it are told.
        one_of_several: whether the patient wears other monitors too.
    """

    reason: Reason
    trouble: Trouble
    device: DeviceId
    priority: Priority
    alarm_id: AlarmId
    since: datetime
    last_good_at: datetime | None
    at: datetime
    step: int = 0
    one_of_several: bool = False

    @property
    def key(self) -> tuple[str, ...]:
        """The subject, then what may be said of it (``alarm.Decision.key``)."""
        return (f"{self.trouble}-{self.device}", self.reason, self.priority.name, self.alarm_id)


def decide(
    reason: Reason,
    episode: TroubleEpisode,
    state: PatientState,
    at: datetime,
    *,
    step: int = 0,
) -> TechnicalDecision:
    """Put into a decision what is known of a technical alarm."""
    return TechnicalDecision(
        reason=reason,
        trouble=episode.trouble,
        device=episode.device,
        priority=PRIORITIES[episode.trouble],
        alarm_id=episode.alarm_id,
        since=episode.since,
        last_good_at=_last_good(episode, state),
        at=at,
        step=step,
        one_of_several=len(state.standing.worn.keys() | {episode.device}) > 1,
    )


def _last_good(episode: TroubleEpisode, state: PatientState) -> datetime | None:
    """When the last value was measured that the trouble is about: of the pulse, or any."""
    if episode.trouble is Trouble.NO_READINGS:  # another monitor's values say nothing about it
        heard = state.heard.get(episode.device)
        return None if heard is None else heard.at
    of_pulse = episode.trouble in (Trouble.PROBE_OFF, Trouble.NO_USABLE_PULSE)
    times = [
        one.measured_at for one in state.latest if not of_pulse or not PULSE.isdisjoint(one.values)
    ]
    return max(times, default=None)


# What a reading shows


def hear(before: Heard | None, reading: Reading, silent_after: timedelta) -> Heard:
    """What is known of a monitor after a reading that is not late.

    Args:
        before: what was known; ``None`` for its first reading.
        reading: live, or of unknown age.
        silent_after: the usual one of the site.
    """
    at = reading.received_at
    if before is None:
        before = Heard(at, silent_after)
    allowed = _allowed(before, at - before.at, silent_after)
    pulse_run, spo2_run, unusable = before.pulse_run, before.spo2_run, before.unusable
    if reading.age is _LIVE and reading.contact is not False:
        if pulse_run < REGULAR or spo2_run < REGULAR:
            pulse_run = _run(pulse_run, Kind.HEART_RATE, reading)
            spo2_run = _run(spo2_run, Kind.SPO2, reading)
        if unusable or reading.unusable:
            unusable = (*unusable, not PULSE.isdisjoint(reading.unusable))[-UNUSABLE_WINDOW:]
            unusable = unusable if any(unusable) else ()
    bad_since = before.bad_since
    if (
        bad_since
        or reading.age is not _LIVE
        or reading.clock is _WRONG
        or _missing(before, reading)
    ):
        bad_since = _bad_since(before, reading)
    return Heard(at, allowed, pulse_run, spo2_run, bad_since, unusable)


def _allowed(before: Heard, gap: timedelta, silent_after: timedelta) -> timedelta:
    """Longest usual silence: rises at once with a long interval, falls slowly with short ones.

    So a monitor that sends its readings in bundles is not judged by the time between two of one
    bundle.
    """
    usual = SILENT_INTERVALS * gap
    if usual <= silent_after and before.silent_after == silent_after:
        return silent_after  # nearly always
    return max(silent_after, min(usual, SILENT_AT_MOST), before.silent_after * 15 / 16)


def _run(run: int, kind: Kind, reading: Reading) -> int:
    if run >= REGULAR:
        return run
    return run + 1 if kind in reading.values or kind in reading.unusable else 0


def _missing(heard: Heard, reading: Reading) -> bool:
    """Whether the pulse that a monitor sent regularly is not in a live reading."""
    if reading.contact is False:
        return True
    sent = reading.values.keys() | reading.unusable if reading.unusable else reading.values
    return (heard.pulse_run >= REGULAR and _HEART_RATE not in sent) or (
        heard.spo2_run >= REGULAR and _SPO2 not in sent
    )


def _bad_since(heard: Heard, reading: Reading) -> Mapping[Trouble, datetime]:
    """Since when each trouble lasts that only its duration makes an alarm."""
    since = {}
    for trouble in (Trouble.PROBE_OFF, Trouble.UNKNOWN_AGE, Trouble.WRONG_CLOCK):
        bad = _is_bad(trouble, heard, reading)
        known = heard.bad_since.get(trouble)
        if bad or (bad is None and known is not None):
            since[trouble] = known or reading.received_at
    return since


def _is_bad(trouble: Trouble, heard: Heard, reading: Reading) -> bool | None:  # noqa: PLR0911
    """Whether a reading that is not late shows a trouble, or that it is gone; ``None``: neither.

    ``heard`` includes the reading for ``NO_USABLE_PULSE`` and may for the others.
    """
    live = reading.age is _LIVE
    if trouble is Trouble.WRONG_CLOCK:
        return reading.clock is _WRONG
    if trouble is Trouble.UNKNOWN_AGE:
        return not live
    if trouble is Trouble.NO_READINGS:
        return False
    if not live:
        return None
    if trouble is Trouble.PROBE_OFF:
        return _missing(heard, reading)
    if reading.contact is False or sum(heard.unusable) >= UNUSABLE_NEEDED:
        return None if reading.contact is False else True
    usable = PULSE.isdisjoint(reading.unusable) and not PULSE.isdisjoint(reading.values)
    return False if usable else None


def judge_reading(
    troubles: tuple[TroubleEpisode, ...],
    before: Heard | None,
    heard: Heard,
    reading: Reading,
    number: str,
) -> tuple[tuple[TroubleEpisode, ...], list[TroubleEpisode], list[TroubleEpisode]]:
    """What a reading that is not late means for the technical alarms.

    Args:
        troubles: those that are open.
        before: what was heard of the monitor before the reading.
        heard: the same with the reading.
        reading: the reading.
        number: its place, for the identity of an alarm: ``r4711``.

    Returns:
        Those that are open now, those that began, those that ended.
    """
    now = reading.received_at
    back = before is not None and now - before.at <= before.silent_after
    left: list[TroubleEpisode] = []
    ended: list[TroubleEpisode] = []
    for one in troubles:
        after: TroubleEpisode | None = one
        if one.device == reading.device:
            bad = _is_bad(one.trouble, heard, reading)
            silent_between = one.trouble is Trouble.NO_READINGS and not back
            after = _fine(one, now, fine=bad is False, again=silent_between)
        if after is None:
            ended.append(one)
        else:
            left.append(after)
    began: list[TroubleEpisode] = []
    open_here = {one.trouble for one in left if one.device == reading.device}
    for trouble in _lasting(heard, reading):
        if trouble not in open_here:
            since = heard.bad_since.get(trouble, now)
            began.append(
                TroubleEpisode(
                    _alarm_id(trouble, reading.device, number), trouble, reading.device, since
                )
            )
    after_all = (*left, *began)
    return (troubles if after_all == troubles else after_all), began, ended


def _lasting(heard: Heard, reading: Reading) -> Iterator[Trouble]:
    """The troubles that a reading shows and that have lasted long enough."""
    for trouble, since in sorted(heard.bad_since.items()):
        bad = _is_bad(trouble, heard, reading)
        if bad and reading.received_at - since >= LASTING[trouble]:
            yield trouble
    if heard.unusable and _is_bad(Trouble.NO_USABLE_PULSE, heard, reading):
        yield Trouble.NO_USABLE_PULSE


def _fine(
    episode: TroubleEpisode, now: datetime, *, fine: bool, again: bool
) -> TroubleEpisode | None:
    """The episode after one reading more; ``None`` when it is over."""
    if not fine:
        return episode if episode.fine_since is None else replace(episode, fine_since=None)
    if episode.fine_since is None or again or now < episode.fine_since:
        return replace(episode, fine_since=now)
    return None if now - episode.fine_since >= TROUBLE_DWELL else episode


def _alarm_id(trouble: Trouble, device: DeviceId, number: str) -> AlarmId:
    return AlarmId(f"{trouble}-{device}-{number}")


# What silence shows


def silences(
    standing: Standing,
    heard: Mapping[DeviceId, Heard],
    troubles: Iterable[TroubleEpisode],
    silent_after: timedelta,
) -> Iterator[tuple[datetime, DeviceId, datetime]]:
    """When the silence of each worn monitor is due to be told, which one, since when it is silent.

    Those of which it was told are left out.
    """
    told = {
        one.device
        for one in troubles
        if one.trouble is Trouble.NO_READINGS and one.fine_since is None
    }
    for device, worn_since in sorted(standing.worn.items()):
        if device in told:
            continue
        last = heard.get(device)
        since = worn_since if last is None else max(worn_since, last.at)
        # Who is still silent when an outage ends has as long as anybody to come back.
        ended = standing.outage_ended
        counted_from = since if ended is None else max(since, ended)
        at = counted_from + (silent_after if last is None else last.silent_after)
        gone = standing.offline.get(device)
        if gone is not None and gone >= counted_from:
            at = min(at, gone + GRACE)
        yield at, device, since


def is_same(one: TroubleEpisode, other: TroubleEpisode) -> bool:
    """Whether both are about the same trouble with the same monitor."""
    return (one.trouble, one.device) == (other.trouble, other.device)


def fell_silent(device: DeviceId, since: datetime, number: str) -> TroubleEpisode:
    """A technical alarm about a monitor that sends nothing."""
    return TroubleEpisode(
        _alarm_id(Trouble.NO_READINGS, device, number), Trouble.NO_READINGS, device, since
    )
