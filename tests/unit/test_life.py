"""The life of a consultation: no way back, no dead end, repetitions harmless."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fajma.life import (
    ALIVE,
    FROZEN,
    TREATING,
    WITH_READERS,
    LifeError,
    ParticipantRole,
    Status,
    Step,
    may,
    next_status,
    power_of,
)

OVER = frozenset(Status) - ALIVE
CODES = {
    "consultation_over",
    "consultation_not_open",
    "consultation_is_open",
    "consultation_not_ended",
}


def reachable() -> set[Status]:
    found = {Status.BOOKED}
    while True:
        more = set(found)
        for status in found:
            for step in Step:
                try:
                    more.add(next_status(status, step))
                except LifeError:
                    continue
        if more == found:
            return found
        found = more


class Life(RuleBasedStateMachine):
    """Any steps in any order, by whoever."""

    def __init__(self) -> None:
        super().__init__()
        self.status = Status.BOOKED
        self.was_over = False
        self.codes: set[str] = set()

    @rule(step=st.sampled_from(Step))
    def take(self, step: Step) -> None:
        before = self.status
        try:
            self.status = next_status(before, step)
        except LifeError as error:
            self.codes.add(error.code)
            return
        if before in {Status.ARCHIVED, Status.CANCELLED}:
            assert self.status is before
        # Again, as whoever was cut off does it.
        assert next_status(self.status, step) is self.status

    @invariant()
    def refusals_have_the_codes_that_callers_know(self) -> None:
        assert self.codes <= CODES

    @invariant()
    def what_is_over_stays_over(self) -> None:
        assert not (self.was_over and self.status in ALIVE)
        self.was_over = self.was_over or self.status in OVER


TestLife = Life.TestCase


def test_every_status_is_reached_from_a_booking() -> None:
    assert reachable() == set(Status)


@pytest.mark.parametrize("status", sorted(OVER))
def test_what_is_over_takes_no_part_in_anything(status: Status) -> None:
    for step in (Step.OPEN, Step.OPENED, Step.ADMIT, Step.INVITE, Step.LINK, Step.CALL):
        with pytest.raises(LifeError) as caught:
            next_status(status, step)
        assert caught.value.code == "consultation_over"


def test_an_open_consultation_is_ended_and_not_cancelled() -> None:
    with pytest.raises(LifeError) as caught:
        next_status(Status.OPEN, Step.CANCEL)
    assert caught.value.code == "consultation_is_open"
    assert next_status(Status.OPEN, Step.END) is Status.ENDED


def test_only_what_has_ended_is_signed() -> None:
    for status in frozenset(Status) - {Status.ENDED}:
        with pytest.raises(LifeError):
            next_status(status, Step.SIGN)
    assert next_status(Status.ENDED, Step.SIGN) is Status.ENDED


def test_archiving_waits_for_the_end() -> None:
    for status in ALIVE:
        with pytest.raises(LifeError):
            next_status(status, Step.ARCHIVE)


def test_nobody_archives_by_hand_and_only_who_treats_decides() -> None:
    deciding = frozenset(Step) - {Step.ASK, Step.CALL}
    for role in ParticipantRole:
        assert not may(role, Step.ARCHIVE)
        allowed = {step for step in deciding if may(role, step)}
        assert bool(allowed) is (role in TREATING)


def test_the_patient_asks_and_calls_and_an_observer_does_neither() -> None:
    assert may(ParticipantRole.PATIENT, Step.ASK)
    assert may(ParticipantRole.PATIENT, Step.CALL)
    assert not any(may(ParticipantRole.OBSERVER, step) for step in Step)
    assert not may(ParticipantRole.COMPANION, Step.ASK)


@given(st.sampled_from(ParticipantRole))
def test_power_is_for_who_treats_and_below_our_bots(role: ParticipantRole) -> None:
    assert power_of(role) == (50 if role in TREATING else 0)


def test_a_room_is_frozen_only_while_somebody_can_read_it() -> None:
    assert FROZEN <= WITH_READERS
    assert not FROZEN & ALIVE
