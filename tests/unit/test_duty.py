"""The roster of a ward against its rules, and against whatever people may do in any order."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fajma.commands import Action, usage
from fajma.duty import (
    DRILL_LASTS,
    OFFER_VALID,
    Drill,
    DutyError,
    Offer,
    OnCall,
    Roster,
    accept,
    answer_drill,
    cancel,
    decline,
    drill_result,
    expired,
    explain,
    leave,
    offer,
    remove,
    ringing,
    start_drill,
    take,
)
from fajma.errors import BugError, InputError
from fajma.language import Language

Change = Callable[[Roster, str, datetime], Roster]

NOW = datetime(2026, 3, 1, 3, 0, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)
AWA, BINTA, CODOU, DIOR = (f"@{name}:clinic.test" for name in ("awa", "binta", "codou", "dior"))
EVERYBODY = (AWA, BINTA, CODOU, DIOR)
CODES = (
    "already_on_duty", "not_on_duty", "offer_open", "no_offer", "not_your_offer", "offer_to_self",
    "offer_expired", "drill_running", "no_drill", "not_called", "last_on_duty",
)  # fmt: skip


def on_duty(*accounts: str) -> Roster:
    return Roster(tuple(OnCall(account, NOW) for account in accounts))


def drilled(*called: str) -> Roster:
    return start_drill(on_duty(AWA), AWA, "d1", called, NOW)


def why(caught: pytest.ExceptionInfo[DutyError]) -> str:
    return caught.value.code


# On duty


def test_who_takes_duty_comes_last() -> None:
    roster = take(take(Roster(), AWA, NOW), BINTA, LATER)
    assert roster.on_call == (OnCall(AWA, NOW), OnCall(BINTA, LATER))


def test_nobody_takes_duty_twice() -> None:
    with pytest.raises(DutyError) as caught:
        take(on_duty(AWA), AWA, LATER)
    assert why(caught) == "already_on_duty"


def test_who_leaves_is_off_the_list() -> None:
    assert leave(on_duty(AWA, BINTA), AWA, now=LATER).accounts == (BINTA,)


def test_who_is_not_on_duty_cannot_leave() -> None:
    with pytest.raises(DutyError) as caught:
        leave(on_duty(AWA), BINTA, now=LATER)
    assert why(caught) == "not_on_duty"


def test_the_last_one_hands_over_instead_of_leaving_unless_an_operator_is_sure() -> None:
    with pytest.raises(DutyError) as caught:
        leave(on_duty(AWA), AWA, now=LATER)
    assert why(caught) == "last_on_duty"
    assert leave(on_duty(AWA), AWA, now=LATER, sure=True) == Roster()


def test_an_offer_goes_with_its_giver_and_stays_with_its_taker() -> None:
    given = offer(on_duty(AWA, BINTA), AWA, BINTA, NOW)
    assert leave(given, AWA, now=LATER).offer is None
    assert leave(given, BINTA, now=LATER).offer == given.offer


def test_somebody_removed_is_in_no_list_offer_or_drill() -> None:
    roster = start_drill(offer(on_duty(AWA, BINTA), AWA, CODOU, NOW), AWA, "d1", EVERYBODY, NOW)
    roster = answer_drill(answer_drill(roster, AWA, LATER), BINTA, LATER)
    gone = remove(roster, AWA)
    assert gone.accounts == (BINTA,)
    assert gone.offer is None
    assert gone.drill is not None
    assert drill_result(gone.drill) == ((BINTA,), (CODOU, DIOR))
    assert remove(roster, CODOU).offer is None
    assert remove(roster, DIOR).offer == roster.offer
    assert remove(Roster(), AWA) == Roster()


def test_phones_of_those_on_duty_ring_and_all_when_there_are_none() -> None:
    assert ringing(on_duty(AWA, BINTA), (BINTA, CODOU)) == {BINTA}
    assert ringing(on_duty(AWA), (BINTA, CODOU)) == {BINTA, CODOU}
    assert ringing(Roster(), EVERYBODY) == set(EVERYBODY)
    assert ringing(on_duty(AWA), ()) == frozenset()


# Handover


def test_the_taker_gets_the_place_of_the_giver() -> None:
    roster = accept(offer(on_duty(AWA, BINTA, CODOU), BINTA, DIOR, NOW), DIOR, LATER)
    assert roster.on_call == (OnCall(AWA, NOW), OnCall(DIOR, LATER), OnCall(CODOU, NOW))
    assert roster.offer is None


@pytest.mark.parametrize(("giver", "taker"), [(AWA, CODOU), (CODOU, AWA)])
def test_a_taker_on_duty_keeps_the_better_place_and_his_time(giver: str, taker: str) -> None:
    roster = accept(offer(on_duty(AWA, BINTA, CODOU), giver, taker, NOW), taker, LATER)
    assert roster.on_call == (OnCall(taker, NOW), OnCall(BINTA, NOW))


def test_only_somebody_on_duty_offers_and_not_to_himself() -> None:
    with pytest.raises(DutyError) as caught:
        offer(on_duty(AWA), BINTA, CODOU, NOW)
    assert why(caught) == "not_on_duty"
    with pytest.raises(DutyError) as caught:
        offer(on_duty(AWA), AWA, AWA, NOW)
    assert why(caught) == "offer_to_self"


def test_one_offer_is_open_at_a_time() -> None:
    given = offer(on_duty(AWA, BINTA), AWA, CODOU, NOW)
    for giver in (AWA, BINTA):
        with pytest.raises(DutyError) as caught:
            offer(given, giver, DIOR, LATER)
        assert why(caught) == "offer_open"
    assert offer(given, BINTA, DIOR, NOW + OFFER_VALID).offer == Offer(
        BINTA, DIOR, NOW + OFFER_VALID
    )


def test_the_taker_declines_and_the_giver_cancels() -> None:
    given = offer(on_duty(AWA), AWA, BINTA, NOW)
    assert decline(given, BINTA, LATER) == on_duty(AWA)
    assert cancel(given, AWA, LATER) == on_duty(AWA)


@pytest.mark.parametrize("answer", [accept, decline, cancel])
def test_an_offer_is_answered_only_by_those_it_concerns_and_in_time(answer: Change) -> None:
    given = offer(on_duty(AWA, BINTA), AWA, CODOU, NOW)
    right, wrong = (AWA, CODOU) if answer is cancel else (CODOU, AWA)
    for account in (wrong, BINTA, DIOR):
        with pytest.raises(DutyError) as caught:
            answer(given, account, LATER)
        assert why(caught) == "not_your_offer"
    with pytest.raises(DutyError) as caught:
        answer(on_duty(AWA), right, LATER)
    assert why(caught) == "no_offer"
    with pytest.raises(DutyError) as caught:
        answer(given, right, NOW + OFFER_VALID)
    assert why(caught) == "offer_expired"
    assert answer(given, right, NOW + OFFER_VALID - timedelta(seconds=1)).offer is None


# Drill


def test_a_drill_tells_who_answered_and_who_was_silent_in_the_order_of_the_call() -> None:
    roster = answer_drill(answer_drill(drilled(CODOU, AWA, BINTA, AWA), BINTA, NOW), CODOU, LATER)
    assert roster.drill is not None
    assert roster.drill.called == (CODOU, AWA, BINTA)
    assert drill_result(roster.drill) == ((CODOU, BINTA), (AWA,))


def test_answering_twice_changes_nothing() -> None:
    once = answer_drill(drilled(AWA), AWA, NOW)
    assert answer_drill(once, AWA, LATER) == once


def test_one_drill_runs_at_a_time() -> None:
    with pytest.raises(DutyError) as caught:
        start_drill(drilled(AWA), BINTA, "d2", EVERYBODY, LATER)
    assert why(caught) == "drill_running"
    after = start_drill(drilled(AWA), BINTA, "d2", EVERYBODY, NOW + DRILL_LASTS)
    assert after.drill == Drill("d2", BINTA, NOW + DRILL_LASTS, EVERYBODY)


def test_only_who_was_called_answers_and_only_while_it_runs() -> None:
    for roster, at in ((Roster(), NOW), (drilled(AWA), NOW + DRILL_LASTS)):
        with pytest.raises(DutyError) as caught:
            answer_drill(roster, AWA, at)
        assert why(caught) == "no_drill"
    with pytest.raises(DutyError) as caught:
        answer_drill(drilled(AWA), BINTA, LATER)
    assert why(caught) == "not_called"


# Time


def test_what_is_over_stays_until_the_caller_has_told_of_it() -> None:
    roster = start_drill(offer(on_duty(AWA), AWA, BINTA, NOW), AWA, "d1", [AWA], NOW)
    just_before = NOW + DRILL_LASTS - timedelta(microseconds=1)
    assert expired(roster, just_before) == roster
    assert expired(roster, NOW + DRILL_LASTS).drill is None
    assert expired(roster, NOW + DRILL_LASTS).offer == roster.offer
    assert expired(roster, NOW + OFFER_VALID) == on_duty(AWA)
    assert take(roster, CODOU, NOW + OFFER_VALID).drill == roster.drill


def test_a_clock_set_back_does_not_keep_an_offer_open_for_ever() -> None:
    roster = offer(on_duty(AWA), AWA, BINTA, NOW + timedelta(days=365))
    assert expired(roster, NOW).offer is None


# Words


@pytest.mark.parametrize("language", Language)
@pytest.mark.parametrize("code", CODES)
def test_every_refusal_is_explained_and_shows_lines_of_the_language(
    code: str, language: Language
) -> None:
    words = explain(code, language)
    assert "{" not in words
    lines = [usage(action, language) for action in Action]
    assert code in {"not_called", "no_drill"} or any(line in words for line in lines)
    assert str(DutyError(code)) == explain(code, Language.ENGLISH)
    assert DutyError(code).code == code


def test_a_refusal_without_words_is_our_bug() -> None:
    with pytest.raises(BugError) as caught:
        explain("no_such_code", Language.FRENCH)
    assert caught.value.code == "duty_code_unknown"


# JSON

FULL = start_drill(offer(on_duty(AWA, BINTA), AWA, CODOU, NOW), AWA, "d1", EVERYBODY, NOW)
GOOD = json.loads(answer_drill(FULL, AWA, LATER).to_json())


def test_a_roster_is_one_line_of_json_and_back() -> None:
    for roster in (Roster(), on_duty(AWA), FULL, answer_drill(FULL, AWA, LATER)):
        text = roster.to_json()
        assert "\n" not in text
        assert Roster.from_json(text) == roster


@pytest.mark.parametrize(
    "change",
    [{"version": 2}, {"version": True}, {"more": 1}, {"on_call": None}, {"on_call": [[AWA]]},
     {"on_call": [[AWA, "2026-03-01T03:00:00"]]}, {"on_call": [[AWA, 1]]},
     {"on_call": [[AWA, NOW.isoformat()], [AWA, LATER.isoformat()]]},
     {"on_call": [[1, NOW.isoformat()]]}, {"on_call": [[BINTA, NOW.isoformat()]]},
     {"on_call": [[AWA, "0001-01-01T00:00:00+23:59"]]},
     {"offer": [AWA, AWA, NOW.isoformat()]}, {"offer": [DIOR, AWA, NOW.isoformat()]},
     {"offer": {}}, {"drill": []}, {"drill": {**GOOD["drill"], "called": [AWA, AWA]}},
     {"drill": {**GOOD["drill"], "called": [BINTA]}}, {"drill": {**GOOD["drill"], "answered": []}},
     {"drill": {**GOOD["drill"], "drill_id": 1}},
     {"drill": {**GOOD["drill"], "answered": {AWA: "today"}}}],
)  # fmt: skip
def test_what_was_not_written_by_this_version_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InputError) as caught:
        Roster.from_json(json.dumps({**GOOD, **change}))
    assert caught.value.code == "roster_invalid"
    assert AWA not in str(caught.value)


@given(st.text() | st.recursive(st.none() | st.text(), st.lists).map(json.dumps))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        Roster.from_json(text)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(InputError):
        Roster.from_json("[" * 100_000)


# Anything, in any order

PEOPLE = st.sampled_from(EVERYBODY)


class DutyMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.roster = Roster()
        self.now = NOW
        self.drills = 0

    def attempt(self, change: Callable[[Roster], Roster]) -> bool:
        """Do what somebody asks, and tell whether it was done."""
        before = self.roster.to_json()
        try:
            after = change(self.roster)
        except DutyError:
            assert self.roster.to_json() == before, "a refusal changes nothing"
            return False
        assert self.roster.to_json() == before, "a roster never changes in place"
        self.roster = after
        return True

    @rule(minutes=st.sampled_from([1, 9, 10, 29, 30, -5, -60]))
    def time_passes(self, minutes: int) -> None:
        self.now += timedelta(minutes=minutes)

    @rule(who=PEOPLE)
    def take(self, who: str) -> None:
        order = self.roster.accounts
        assert self.attempt(lambda roster: take(roster, who, self.now)) == (who not in order)
        assert self.roster.accounts == (order if who in order else (*order, who))

    @rule(who=PEOPLE, sure=st.booleans())
    def leave(self, who: str, *, sure: bool) -> None:
        before = self.roster.accounts
        left = self.attempt(lambda roster: leave(roster, who, now=self.now, sure=sure))
        assert left == (who in before and (sure or len(before) > 1))
        assert not left or who not in self.roster.accounts

    @rule(who=PEOPLE)
    def remove(self, who: str) -> None:
        assert self.attempt(lambda roster: remove(roster, who))
        assert who not in self.roster.accounts
        given = self.roster.offer
        assert given is None or who not in (given.giver, given.taker)

    @rule(giver=PEOPLE, taker=PEOPLE)
    def offer(self, giver: str, taker: str) -> None:
        order = self.roster.accounts
        self.attempt(lambda roster: offer(roster, giver, taker, self.now))
        assert self.roster.accounts == order, "an offer alone changes nobody's duty"

    @rule(who=PEOPLE)
    def accept(self, who: str) -> None:
        given, before = self.roster.offer, self.roster.accounts
        if self.attempt(lambda roster: accept(roster, who, self.now)):
            assert given is not None
            after = self.roster.accounts
            assert len(after) >= 1, "a handover never leaves nobody"
            assert len(after) == len(before) - (who in before)
            assert given.taker == who
            assert who in after
            assert given.giver not in after
            places = [before.index(one) for one in (given.giver, who) if one in before]
            assert after.index(who) == min(places)
            others = [one for one in before if one not in (given.giver, who)]
            assert [one for one in after if one != who] == others

    @rule(who=PEOPLE, answer=st.sampled_from([decline, cancel]))
    def give_up(self, who: str, answer: Change) -> None:
        order = self.roster.accounts
        if self.attempt(lambda roster: answer(roster, who, self.now)):
            assert self.roster.offer is None
        assert self.roster.accounts == order

    @rule(who=PEOPLE, called=st.lists(PEOPLE))
    def start_drill(self, who: str, called: list[str]) -> None:
        self.drills += 1
        name = f"d{self.drills}"
        if self.attempt(lambda roster: start_drill(roster, who, name, called, self.now)):
            assert self.roster.drill is not None
            assert drill_result(self.roster.drill)[0] == ()

    @rule(who=PEOPLE)
    def answer(self, who: str) -> None:
        if self.attempt(lambda roster: answer_drill(roster, who, self.now)):
            once = self.roster
            assert answer_drill(once, who, self.now) == once

    @rule()
    def tidy(self) -> None:
        self.roster = expired(self.roster, self.now)
        assert expired(self.roster, self.now) == self.roster
        for nobody in (accept, decline, cancel):
            with pytest.raises(DutyError) as caught:
                nobody(self.roster, "@nobody:clinic.test", self.now)
            assert why(caught) in {"no_offer", "not_your_offer"}

    @invariant()
    def nobody_is_on_duty_twice(self) -> None:
        assert len(set(self.roster.accounts)) == len(self.roster.accounts)

    @invariant()
    def the_giver_of_an_offer_is_on_duty_and_is_not_its_taker(self) -> None:
        given = self.roster.offer
        assert given is None or given.giver in self.roster.accounts
        assert given is None or given.giver != given.taker

    @invariant()
    def a_drill_divides_those_called(self) -> None:
        drill = self.roster.drill
        if drill is not None:
            answered, silent = drill_result(drill)
            assert sorted(answered + silent) == sorted(drill.called)
            assert set(answered) == set(drill.answered)

    @invariant()
    def somebody_rings_wherever_somebody_works(self) -> None:
        for staff in (EVERYBODY, (AWA,), (BINTA, DIOR)):
            rung = ringing(self.roster, staff)
            assert rung
            assert rung <= set(staff)
        assert ringing(self.roster, ()) == frozenset()

    @invariant()
    def it_is_read_as_it_was_written(self) -> None:
        assert Roster.from_json(self.roster.to_json()) == self.roster


TestDutyMachine = DutyMachine.TestCase
TestDutyMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
