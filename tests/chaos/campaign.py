"""Kills parts of a site at random and at chosen moments, and compares what is left with ledgers.

A blow is random, or it is aimed: FAJMA holds at a phase, and something is killed exactly then
(FAJMA itself, or the broker or PostgreSQL, whose death it notices when it goes on). The seed
decides everything but the speed of the machine.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from tests.chaos.grounds import ChaosSite, Component
from tests.chaos.phases import ALL, Phase
from tests.chaos.verdict import Verdict, compare

AIMED_AT: Final = (Component.FAJMA, Component.BROKER, Component.POSTGRESQL)
DOWN_AT_MOST_S: Final = 1.0
BROKER_NEEDS_S: Final = 0.05
"""To read what is in its socket; nothing tells when it has."""


@dataclass(frozen=True, slots=True)
class Blow:
    """One kill.

    Attributes:
        component: what is killed.
        phase: where FAJMA is then; whatever it happens to be if ``None``.
    """

    component: Component
    phase: Phase | None = None


EVERY_PAIR: Final = tuple((component, phase) for component in AIMED_AT for phase in ALL)


def blows(count: int, *, seed: int) -> list[Blow]:
    """A plan in random order: each component in each phase, as far as there is room; random ones.

    Args:
        count: how many in all.
        seed: of the order and of the random ones.
    """
    chance = random.Random(seed)
    plan = [Blow(component, phase) for component, phase in EVERY_PAIR]
    chance.shuffle(plan)
    plan = plan[:count]
    # Each component at least once, if there is room.
    rest = [Blow(one) for one in Component if all(blow.component is not one for blow in plan)]
    rest += [Blow(chance.choice(list(Component))) for _ in range(count)]
    plan += rest[: count - len(plan)]
    chance.shuffle(plan)
    return plan


@dataclass(frozen=True, slots=True)
class Report:
    """What was done and what came of it.

    Attributes:
        seed: of the campaign.
        hits: kills by component and phase.
        missed: aimed blows whose phase did not come.
        ended: how often FAJMA ended by itself and was started again, as a supervisor would.
        seconds: duration.
        verdict: the comparison.
    """

    seed: int
    hits: Counter[tuple[Component, Phase]]
    missed: tuple[Blow, ...]
    ended: int
    seconds: float
    verdict: Verdict

    @property
    def kills(self) -> int:
        """How many."""
        return self.hits.total()

    def as_text(self) -> str:
        """A table for people."""
        width = max(map(len, ALL)) + 2
        lines = [" " * 12 + "".join(f"{phase:>{width}}" for phase in ALL)]
        for component in Component:
            counts = "".join(f"{self.hits[component, phase] or '-':>{width}}" for phase in ALL)
            lines.append(f"{component:<12}{counts}")
        lines.append(
            f"seed {self.seed}: {self.kills} kills in {self.seconds:.0f} s,"
            f" {self.verdict.measured} readings measured, {self.verdict.stored} in the log,"
            f" {self.verdict.repeated} recognised as repeated,"
            f" FAJMA ended by itself {self.ended} times"
        )
        lines += [f"missed: {blow.component} while {blow.phase}" for blow in self.missed]
        return "\n".join([*lines, *self.verdict.wrong])


class Campaign:
    """Carries a plan out on a site.

    Args:
        site: runs already.
        plan: what to kill.
        seed: of the moments.
        say: gets a line for each blow.
    """

    def __init__(
        self,
        site: ChaosSite,
        plan: Sequence[Blow],
        *,
        seed: int,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._site = site
        self._plan = plan
        self._chance = random.Random(seed)
        self._say = say
        self._seed = seed
        self._hits: Counter[tuple[Component, Phase]] = Counter()
        self._missed: list[Blow] = []
        self._ended = 0

    async def run(self) -> Report:
        """Carry it out, let everything arrive, compare."""
        began = time.monotonic()
        await self._site.all_settle()
        for blow in self._plan:
            await self._strike(blow)
        await self._site.drain()
        return Report(
            seed=self._seed,
            hits=self._hits,
            missed=tuple(self._missed),
            ended=self._ended,
            seconds=time.monotonic() - began,
            verdict=await compare(self._site),
        )

    async def _strike(self, blow: Blow) -> None:
        site = self._site
        await self._revive()
        if blow.phase is None:
            # The moment is what varies, nothing is awaited.
            await asyncio.sleep(self._chance.uniform(0, 1))
        else:
            site.marks.hold_at(blow.phase)
            if not await site.held():
                self._missed.append(blow)
                self._say(f"missed: {blow.component} while {blow.phase}")
                return
            await asyncio.sleep(BROKER_NEEDS_S)
        await site.kill(blow.component)
        phase = site.marks.noted()
        if blow.phase is not None and blow.component is not Component.FAJMA:
            site.go_on()
        self._hits[blow.component, phase] += 1
        aimed = "" if blow.phase is None else ", aimed"
        self._say(f"{self._hits.total():3}  killed {blow.component} while {phase}{aimed}")
        await asyncio.sleep(self._chance.uniform(0, DOWN_AT_MOST_S))
        await site.start_component(blow.component)
        await self._revive()
        await site.all_settle()

    async def _revive(self) -> None:
        if self._site.fajma.returncode is not None:
            self._ended += 1
            self._say("     fajma had ended by itself: started again")
            await self._site.start_component(Component.FAJMA)
