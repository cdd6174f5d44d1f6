"""A patient at whom the alarm engine looks: sends readings, notes facts, lets time pass."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from bots.alerts.alarm import ReadingFact, Reason
from bots.alerts.alarm_state import PatientState
from bots.alerts.judge import AnyDecision, NotedFact, due, take
from bots.alerts.site_rules import SiteRules
from fajma import facts
from fajma.vitals import Age, Clock, DeviceId, Kind, Reading

START = datetime(2026, 3, 1, 14, 0, tzinfo=UTC)
DEVICE = DeviceId("A4CF12F03B7E")
WELL = {Kind.HEART_RATE: 80, Kind.SPO2: 97}
BY = "@awa:clinic.example"


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


@dataclass
class Bedside:
    """Every step moves the clock on; whatever is due on the way is judged at its time."""

    rules: SiteRules = field(default_factory=SiteRules)
    worn: bool = True
    state: PatientState = field(default_factory=PatientState)
    now: datetime = START
    log: list[ReadingFact | NotedFact] = field(default_factory=list)
    decisions: list[AnyDecision] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.worn:
            self.note(facts.Worn(self.now, DEVICE))

    def take(self, fact: ReadingFact | NotedFact) -> list[AnyDecision]:
        self.log.append(fact)
        before = self.state
        self.state, decided = take(before, fact, self.rules)
        if any(one.announce for one in decided):
            assert self.state.worth_keeping(before), "what is announced must be kept"
        self.decisions += decided
        return list(decided)

    def note(self, fact: facts.Fact) -> list[AnyDecision]:
        """Note a fact now."""
        return self.take(NotedFact(self._position(NotedFact), fact))

    def wait(self, duration: float) -> list[AnyDecision]:
        """Let seconds pass without a reading."""
        until, decided = self.now + seconds(duration), []
        while (at := due(self.state, self.rules)) is not None and at <= until:
            self.now = max(self.now, at)
            decided += self.note(facts.TimePassed(self.now))
            later = due(self.state, self.rules)
            assert later is None or later > self.now, "time must move what is due"
        self.now = until
        return decided

    def send(
        self,
        values: Mapping[Kind, float | str] | None = None,
        *,
        times: int = 1,
        every: float = 5,
        age: Age = Age.LIVE,
        measured: datetime | None = None,
        clock: Clock = Clock.DEVICE,
        contact: bool | None = None,
        unusable: frozenset[Kind] = frozenset(),
        device: DeviceId = DEVICE,
    ) -> list[AnyDecision]:
        """Let a monitor send some readings, each after the usual time."""
        decided: list[AnyDecision] = []
        for _ in range(times):
            decided += self.wait(every)
            exact = {kind: Decimal(str(value)) for kind, value in (values or {}).items()}
            reading = Reading(
                device,
                measured or self.now,
                self.now,
                clock,
                exact,
                age,
                contact=contact,
                unusable=unusable,
            )
            decided += self.take(ReadingFact(self._position(ReadingFact), reading))
        return decided

    def _position(self, of: type[ReadingFact] | type[NotedFact]) -> int:
        return sum(isinstance(one, of) for one in self.log)

    # Facts that many tests note

    def acknowledge(self, alarm_id: str | None = None) -> list[AnyDecision]:
        return self.note(facts.Acknowledged(self.now, BY, alarm_id))

    def snooze(
        self, kind: Kind = Kind.SPO2, direction: str = "low", minutes: float = 10
    ) -> list[AnyDecision]:
        until = self.now + timedelta(minutes=minutes)
        return self.note(facts.Snoozed(self.now, BY, kind, direction, until))

    def limit(
        self,
        kind: Kind,
        direction: str,
        threshold: str | None,
        *,
        hours: float = 8,
        kept: bool = False,
    ) -> list[AnyDecision]:
        until = self.now + timedelta(hours=hours)
        limit = None if threshold is None else Decimal(threshold)
        return self.note(
            facts.LimitSet(self.now, BY, kind, direction, limit, "asthma", until, kept)
        )


def spo2(value: float) -> dict[Kind, float | str]:
    return {Kind.HEART_RATE: 80, Kind.SPO2: value}


def loud(decisions: list[AnyDecision]) -> list[AnyDecision]:
    return [one for one in decisions if one.announce]


def reasons(decisions: list[AnyDecision]) -> list[Reason]:
    return [one.reason for one in decisions]


def told(decisions: list[AnyDecision]) -> list[Reason]:
    return reasons(loud(decisions))
