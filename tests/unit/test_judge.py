"""All of the engine together: whole stories, and what must hold whatever happens."""

import json
from datetime import timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from bots.alerts.alarm import Decision, ReadingFact, Reason
from bots.alerts.alarm_state import PatientState
from bots.alerts.judge import NotedFact, due, take
from bots.alerts.limits import GAP, Limit, TrackKey
from bots.alerts.open_alarms import AnyDecision, open_alarms
from bots.alerts.site_rules import SiteRules
from fajma import facts
from fajma.errors import InputError
from fajma.facts import AgeBand, Consciousness, Entered
from fajma.vitals import Age, Clock, DeviceId, Kind, Reading
from tests.bedside import BY, DEVICE, START, WELL, Bedside, loud, seconds, spo2, told

OTHER = DeviceId("A4CF12F0FFFF")


# Places in the logs


def test_a_place_that_was_taken_in_before_changes_nothing() -> None:
    bedside = Bedside()
    bedside.send(spo2(86), times=4)
    bedside.wait(300)

    for seen in bedside.log:
        assert take(bedside.state, seen, bedside.rules) == (bedside.state, ())


def test_facts_and_readings_have_places_of_their_own() -> None:
    bedside = Bedside()
    bedside.send(WELL, times=10)

    assert (bedside.state.position, bedside.state.noted) == (9, 0)
    bedside.note(facts.HandedOver(bedside.now, BY))
    assert (bedside.state.position, bedside.state.noted) == (9, 1)


def test_the_order_of_decisions_does_not_depend_on_what_storing_does_to_a_state() -> None:
    bedside = Bedside(worn=False)
    for kind, value in ((Kind.SPO2, 86), (Kind.HEART_RATE, 140)):
        bedside.send({kind: value}, times=3)
    stored = PatientState.from_json(bedside.state.to_json())
    fact = NotedFact(bedside.state.noted + 1, facts.Acknowledged(bedside.now, BY, None))

    assert take(stored, fact, bedside.rules) == take(bedside.state, fact, bedside.rules)


# What is kept


def test_nothing_is_worth_keeping_of_the_readings_of_somebody_who_is_well() -> None:
    bedside = Bedside()
    bedside.send(WELL, times=10)
    before = bedside.state
    bedside.send({**WELL, Kind.TEMPERATURE: 37}, times=10)
    bedside.send(WELL, times=10)

    assert not bedside.state.worth_keeping(before)
    assert bedside.decisions == []
    assert len(bedside.state.to_json()) < 600


def test_a_state_of_version_1_is_read_and_its_open_alarm_goes_on() -> None:
    track = {
        "window": [],
        "episode": {
            "alarm_id": "spo2-low-7",
            "since": "2026-03-01T13:00:00+00:00",
            "limit": ["<", "92", "MEDIUM"],
            "eased": None,
            "cleared": None,
        },
    }
    content = {"version": 1, "position": 9, "tracks": {"spo2-low": track}}
    bedside = Bedside(worn=False)
    reading = Reading(DEVICE, START, START, Clock.DEVICE, {})
    bedside.state = PatientState.from_json(json.dumps(content))
    bedside.log = [ReadingFact(number, reading) for number in range(10)]

    assert due(bedside.state, bedside.rules) is None, "nobody is reminded of what nobody told"
    again = facts.Snoozed(START, BY, Kind.SPO2, "low", START + seconds(60))
    (snoozed,) = bedside.note(again)
    assert (snoozed.reason, snoozed.alarm_id) == (Reason.SNOOZED, "spo2-low-7")
    bedside.send(spo2(88), times=3)
    assert told(bedside.decisions) == [Reason.WORSENED]
    assert told(bedside.wait(120)) == [Reason.ESCALATED]


def _full() -> Bedside:
    """Somebody about whom there is something of everything to remember."""
    bedside = Bedside()
    bedside.note(facts.Profiled(bedside.now, AgeBand.ADULT, pregnant=True, copd=False))
    bedside.note(facts.Connection(bedside.now, DEVICE, online=False))
    bedside.limit(Kind.HEART_RATE, "high", "110", kept=True)
    bedside.note(Entered(bedside.now, BY, 18, Consciousness.VOICE, oxygen=None))
    bedside.note(Entered(bedside.now, BY, None, None, oxygen=True))
    bedside.send({Kind.SYSTOLIC: 120, **spo2(91)}, times=4)
    bedside.send(spo2(84), times=4, age=Age.LATE, measured=START - timedelta(hours=1))
    bedside.wait(60)
    bedside.send(spo2(91), times=13, clock=Clock.WRONG)
    bedside.snooze()
    bedside.send(spo2(88), unusable=frozenset({Kind.HEART_RATE}), clock=Clock.WRONG)
    bedside.send(contact=False, device=OTHER)
    bedside.send({Kind.HEART_RATE: 45}, age=Age.LATE, measured=START - timedelta(hours=1))
    bedside.note(facts.OutageStarted(bedside.now))
    return bedside


def test_a_state_with_something_of_everything_survives_json() -> None:
    state = _full().state
    restored = PatientState.from_json(state.to_json())

    assert restored == state
    assert restored.to_json() == state.to_json()
    empty = PatientState()
    for name in PatientState.__slots__:
        assert getattr(state, name) != getattr(empty, name), f"{name} is not covered"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("noted",), "2"),
        (("noted",), True),
        (("standing", "profile", "age_band"), "old"),
        (("standing", "profile", "weight"), 70),
        (("standing", "worn", DEVICE), "2026-03-01T14:02:00"),
        (("standing", "own_limits"), {}),
        (("standing", "own_limits", 0, "threshold"), "NaN"),
        (("standing", "own_limits", 0, "threshold"), 110),
        (("standing", "own_limits", 0), []),
        (("standing", "entered", 0, "oxygen"), 1),
        (("troubles",), None),
        (("troubles", 0, "trouble"), "sad"),
        (("care", "spo2-low-2"), {"priority": "HIGH"}),
        (("care", "spo2-low-2", "priority"), 2),
        (("care", "spo2-low-2", "priority"), "URGENT"),
        (("snoozes", "spo2-low", "drops"), 1.0),
        (("heard", DEVICE, "silent_after"), "90"),
        (("heard", DEVICE, "silent_after"), 10**30),
        (("heard", DEVICE, "unusable"), [0]),
        (("latest", 0, "values"), ["spo2"]),
        (("latest", 0, "values"), {"mood": "5"}),
        (("late",), 5),
        (("sung",), 5),
    ],
)
def test_a_stored_state_with_one_thing_wrong_is_refused(path: tuple[Any, ...], value: Any) -> None:
    content = json.loads(_full().state.to_json())
    *parents, last = path
    target = content
    for key in parents:
        target = target[key]
    target[last] = value

    with pytest.raises(InputError) as refused:
        PatientState.from_json(json.dumps(content))
    assert refused.value.code == "alarm_state_invalid"


def test_what_was_entered_is_kept_as_long_as_it_is_the_newest_of_its_sign() -> None:
    bedside = Bedside()
    first = Entered(bedside.now, BY, 18, Consciousness.ALERT, None)
    second = Entered(bedside.now, BY, 22, None, oxygen=True)
    third = Entered(bedside.now, BY, None, Consciousness.VOICE, None)
    for entered in (first, second, third):
        bedside.note(entered)

    assert bedside.state.standing.entered == (third, second)


def test_the_newest_value_of_each_kind_is_remembered() -> None:
    bedside = Bedside()
    bedside.send({Kind.SYSTOLIC: 120})
    bedside.send(WELL, times=3)
    bedside.send({Kind.SPO2: 95})

    newest = [set(one.values) for one in bedside.state.latest]
    assert newest == [{Kind.SPO2}, {Kind.HEART_RATE, Kind.SPO2}, {Kind.SYSTOLIC}]


# Decisions


def test_a_silent_decision_that_says_nothing_new_has_the_key_of_the_one_before() -> None:
    bedside = Bedside()
    bedside.send(spo2(88), times=3)
    for _ in range(3):
        bedside.send(spo2(88))
    started, *silent = bedside.decisions[2:]

    assert {one.key for one in silent} == {
        ("spo2-low", "already_open", "HIGH", "spo2-low-2"),
    }
    assert started.key not in {one.key for one in silent}


def test_every_reason_that_rings_is_announced_and_every_end_is_silent() -> None:
    assert all(reason.announced for reason in Reason if reason.rings)
    assert {reason for reason in Reason if reason.announced and not reason.rings} == {
        Reason.RECOVERED,
        Reason.RULES_CHANGED,
        Reason.NOT_MONITORED,
    }


# Whatever happens

VALUES = {
    Kind.SPO2: [82, 84, 85, 87, 88, 89, 90, 91, 92, 93, 97],
    Kind.HEART_RATE: [28, 40, 45, 50, 55, 80, 115, 120, 125, 131, 155],
    Kind.TEMPERATURE: [34.9, 35.3, 37, 38.6, 39.1],
    Kind.DIASTOLIC: [60, 80, 112],
}


@st.composite
def some_values(draw: st.DrawFn) -> dict[Kind, float | str]:
    kinds = draw(st.sets(st.sampled_from(list(VALUES)), min_size=1))
    return {kind: draw(st.sampled_from(VALUES[kind])) for kind in sorted(kinds)}


class JudgeMachine(RuleBasedStateMachine):
    """A patient to whom anything happens; what was told is checked from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.bedside = Bedside()
        self.kept = [(0, PatientState())]
        # Live samples of each track since a gap, an end, an easing, or other rules.
        self.samples: dict[TrackKey, list[tuple[float, Decimal]]] = {}
        self.looked_at = 0

    # What happens

    @rule(values=some_values(), times=st.integers(1, 8), every=st.sampled_from([1, 5, 5, 30, 130]))
    def send(self, values: dict[Kind, float | str], times: int, every: int) -> None:
        for _ in range(times):
            decided = self.bedside.wait(every)
            decided += self.bedside.send(values, every=0)
            self.follow(values, decided)

    @rule(value=st.sampled_from(VALUES[Kind.SPO2]), times=st.integers(2, 8))
    def breathe(self, value: float, times: int) -> None:
        self.send_steadily({Kind.SPO2: value}, times)

    @rule(value=st.sampled_from([84, 86, 88, 89, 91]), minutes=st.sampled_from([0.5, 5, 10]))
    def get_worse_while_snoozed(self, value: float, minutes: float) -> None:
        self.send_steadily({Kind.SPO2: 91}, 4)
        self.bedside.snooze(minutes=minutes)
        self.send_steadily({Kind.SPO2: value}, 3)

    def send_steadily(self, values: dict[Kind, float | str], times: int) -> None:
        for _ in range(times):
            decided = self.bedside.wait(5)
            decided += self.bedside.send(values, every=0)
            self.follow(values, decided)

    @rule(
        values=some_values(), times=st.integers(1, 8), age=st.sampled_from([Age.LATE, Age.UNKNOWN])
    )
    def send_what_is_not_live(self, values: dict[Kind, float | str], times: int, age: Age) -> None:
        before = self.open_episodes()
        measured = self.bedside.now - timedelta(hours=1)
        for number in range(times):
            at = measured + seconds(5 * number)
            self.bedside.send(values, every=1, age=age, measured=at)
        assert self.open_episodes() == before

    @rule(times=st.integers(1, 12), unusable=st.booleans())
    def lose_the_probe(self, *, times: int, unusable: bool) -> None:
        before = self.open_episodes()
        if unusable:
            self.bedside.send(unusable=frozenset({Kind.SPO2}), times=times)
        else:
            self.bedside.send(contact=False, times=times)
        assert self.open_episodes() == before, "losing the probe closes no episode"

    @rule(minutes=st.sampled_from([0.5, 1, 2, 5, 15, 90]))
    def say_nothing(self, minutes: float) -> None:
        before = self.open_episodes()
        limits = self.bedside.state.standing.own_limits
        self.bedside.wait(60 * minutes)
        if limits == self.bedside.state.standing.own_limits:
            assert self.open_episodes() == before, "silence closes no episode"
        else:
            self.samples.clear()

    @rule(all_of_them=st.booleans(), data=st.data())
    def acknowledge(self, *, all_of_them: bool, data: st.DataObject) -> None:
        known = sorted(self.bedside.state.care)
        if all_of_them or not known:
            self.bedside.acknowledge()
            for care in self.bedside.state.care.values():
                assert care.acknowledged or care.told_at is None
        else:
            self.bedside.acknowledge(data.draw(st.sampled_from(known)))

    @rule(
        side=st.sampled_from([(Kind.SPO2, "low"), (Kind.HEART_RATE, "high")]),
        minutes=st.sampled_from([0, 1, 5, 10, 60]),
    )
    def snooze(self, side: tuple[Kind, str], minutes: int) -> None:
        self.bedside.snooze(*side, minutes=minutes)

    @rule(
        side=st.sampled_from(
            [
                (Kind.SPO2, "low", "88"),
                (Kind.SPO2, "low", "94"),
                (Kind.SPO2, "low", None),
                (Kind.HEART_RATE, "high", "110"),
                (Kind.DIASTOLIC, "high", "100"),
                (Kind.DIASTOLIC, "high", None),
            ]
        ),
        kept=st.booleans(),
    )
    def set_a_limit(self, *, side: tuple[Kind, str, str | None], kept: bool) -> None:
        self.bedside.limit(*side, hours=1, kept=kept)
        self.samples.clear()

    @rule(
        age=st.sampled_from([AgeBand.ADULT, AgeBand.INFANT, AgeBand.UNKNOWN]),
        pregnant=st.booleans(),
        copd=st.booleans(),
    )
    def change_the_profile(self, *, age: AgeBand, pregnant: bool, copd: bool) -> None:
        self.note(facts.Profiled(self.bedside.now, age, pregnant=pregnant, copd=copd))
        self.samples.clear()

    @rule()
    def hand_over(self) -> None:
        self.note(facts.HandedOver(self.bedside.now, BY))
        self.samples.clear()

    @rule(online=st.booleans())
    def connect(self, *, online: bool) -> None:
        self.note(facts.Connection(self.bedside.now, DEVICE, online=online))

    @rule(start=st.booleans())
    def outage(self, *, start: bool) -> None:
        what = facts.OutageStarted if start else facts.OutageEnded
        self.note(what(self.bedside.now))

    @rule(device=st.sampled_from([DEVICE, OTHER]), wear=st.booleans())
    def link(self, *, device: DeviceId, wear: bool) -> None:
        what = facts.Worn if wear else facts.TakenOff
        self.note(what(self.bedside.now, device))
        if not self.bedside.state.standing.worn:
            self.samples.clear()
            assert self.open_episodes() == {}
            self.bedside.now += seconds(1)
        self.samples.clear()

    def note(self, fact: facts.Fact) -> None:
        self.bedside.note(fact)

    # What must hold

    def open_episodes(self) -> dict[TrackKey, str]:
        tracks = self.bedside.state.tracks
        return {key: each.episode.alarm_id for key, each in tracks.items() if each.episode}

    def follow(self, values: dict[Kind, float | str], decided: list[AnyDecision]) -> None:
        now = self.bedside.now.timestamp()
        for bands in self.bedside.rules.of(self.bedside.state.standing).bands:
            if bands.kind not in values:
                continue
            samples = self.samples.setdefault(bands.key, [])
            if samples and now - samples[-1][0] > GAP.total_seconds():
                samples.clear()
            samples.append((now, Decimal(str(values[bands.kind]))))
        for decision in decided:
            if decision.reason is Reason.RULES_CHANGED:
                self.samples.clear()
            ended = {Reason.RECOVERED, Reason.ENDED_UNTOLD, Reason.IMPROVED}
            if isinstance(decision, Decision) and decision.reason in ended:
                self.samples.pop(decision.track, None)

    @invariant()
    def no_confirmed_breach_goes_unannounced(self) -> None:
        """Unless a snooze covers it, which tells of it at its end."""
        state, now = self.bedside.state, self.bedside.now
        for bands in self.bedside.rules.of(state.standing).bands:
            last = [value for _, value in self.samples.get(bands.key, [])][-4:]
            for limit in bands.limits:
                if not _is_confirmed(limit, last):
                    continue
                episode = state.tracks[bands.key].episode
                assert episode is not None
                assert episode.limit.priority >= limit.priority
                care, snooze = state.care[episode.alarm_id], state.snoozes.get(bands.key)
                covered = snooze is not None and now <= snooze.until  # at its end it is told
                assert care.told_at is not None or covered

    @invariant()
    def nobody_is_spared_an_alarm_but_by_a_snooze_or_an_outage(self) -> None:
        state = self.bedside.state
        for alarm in open_alarms(state, self.bedside.rules):
            untold = state.care[alarm.alarm_id].told_at is None
            assert not untold or alarm.folded or alarm.snooze is not None

    @invariant()
    def no_snooze_covers_what_is_worse(self) -> None:
        state = self.bedside.state
        for key, snooze in state.snoozes.items():
            track = state.tracks.get(key)
            if track is not None and track.episode is not None:
                assert track.episode.limit.priority <= snooze.band
            assert snooze.until <= self.bedside.now + timedelta(minutes=10)

    @invariant()
    def whoever_is_cared_for_is_open(self) -> None:
        state = self.bedside.state
        known = {*self.open_episodes().values()}
        known |= {one.alarm_id for one in state.troubles}
        known |= {one.alarm_id for one in state.late.values()}
        assert set(state.care) == known

    @invariant()
    def time_has_no_arrears(self) -> None:
        at = due(self.bedside.state, self.bedside.rules)
        assert at is None or at > self.bedside.now or self.pass_time()

    def pass_time(self) -> bool:
        """A fact may have made something due at once."""
        self.bedside.wait(0)
        self.the_state_is_small_and_kept_where_it_must_be()
        at = due(self.bedside.state, self.bedside.rules)
        return at is None or at > self.bedside.now

    @invariant()
    def the_state_is_small_and_kept_where_it_must_be(self) -> None:
        state = self.bedside.state
        if state.worth_keeping(self.kept[-1][1]):
            self.kept.append((len(self.bedside.log), state))
            text = state.to_json()
            assert len(text) < 16_384
            assert PatientState.from_json(text) == state

    @rule(data=st.data())
    def restart_from_any_state(self, data: st.DataObject) -> None:
        """From any point: the same decisions follow, and the same state."""
        length, state = data.draw(st.sampled_from(self.kept))
        again = data.draw(st.integers(0, length))
        restored = PatientState.from_json(state.to_json())
        decided: list[AnyDecision] = []
        for seen in self.bedside.log[again:]:
            restored, now_decided = take(restored, seen, self.bedside.rules)
            decided += now_decided
        assert restored == self.bedside.state
        tail = self.bedside.decisions[len(self.bedside.decisions) - len(decided) :]
        assert decided == tail

    @rule()
    def restart_from_the_last_state_that_was_kept(self) -> None:
        """What the engine's shell does: nothing is announced a second time."""
        log, rules = self.bedside.log, self.bedside.rules
        length, state = self.kept[-1]
        restored = PatientState.from_json(state.to_json())
        for seen in log[length:]:
            restored, decided = take(restored, seen, rules)
            assert loud(list(decided)) == []
        assert restored == self.bedside.state

    def teardown(self) -> None:
        known = {one.alarm_id for one in self.bedside.decisions if one.reason in BEGINNINGS}
        ended = {one.alarm_id for one in self.bedside.decisions if one.reason in ENDS}
        assert known <= ended | set(self.bedside.state.care), "each end is decided on"
        stories: dict[str, list[AnyDecision]] = {}
        for decision in self.bedside.decisions:
            if decision.announce:
                assert decision.alarm_id is not None
                stories.setdefault(decision.alarm_id, []).append(decision)
        for alarm_id, story in stories.items():
            _check_story(alarm_id, story, self.bedside.rules)


BEGINNINGS = {Reason.STARTED, Reason.DURING_OUTAGE, Reason.SNOOZED, Reason.FOLDED}
ENDS = {
    Reason.RECOVERED,
    Reason.RULES_CHANGED,
    Reason.NOT_MONITORED,
    Reason.TAKEN_OFF,
    Reason.ENDED_UNTOLD,
    Reason.ACKNOWLEDGED,
}


def _is_confirmed(limit: Limit, last: list[Decimal]) -> bool:
    return bool(last) and limit.broken_by(last[-1]) and sum(map(limit.broken_by, last)) >= 3


def _check_story(alarm_id: str, story: list[AnyDecision], rules: SiteRules) -> None:
    """Told once that it starts, at most once and last that it ends, reminded of at intervals."""
    reasons = [one.reason for one in story]
    assert reasons.count(Reason.STARTED) <= 1
    if Reason.STARTED in reasons:
        assert reasons[0] is Reason.STARTED
    ends = [number for number, one in enumerate(story) if not one.rings]
    assert ends in ([], [len(story) - 1])
    for before, after in pairwise(story):
        if after.reason is Reason.RENOTIFIED and "wrong_clock" not in alarm_id:
            assert after.at - before.at >= rules.schedules[after.priority].again
        if after.reason is Reason.ESCALATED:
            assert after.step == before.step + 1
        if after.rings and after.reason is not Reason.ESCALATED:
            assert after.step == before.step
        # Only what was said to be unreachable is passed by within a moment.
        reminds = after.reason in {Reason.RENOTIFIED, Reason.SNOOZE_ENDED}
        assert after.at > before.at or not reminds


TestJudgeMachine = JudgeMachine.TestCase
TestJudgeMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
