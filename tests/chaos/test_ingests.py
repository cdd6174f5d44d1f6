"""Two `fajma run ingest` share the monitors; each is killed under load, one after the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.chaos.grounds import ChaosSite, Shape, holds, kill, opened
from tests.chaos.phases import Phase
from tests.chaos.verdict import compare
from tests.chaos.watched import marks_of


def stored(site: ChaosSite, number: int) -> int:
    """How many readings an ingest says it has stored."""
    lines = site.ingest_log(number).read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines if line.startswith("{")]
    return sum(one["stored"] for one in entries if one["event"] == "readings_committed")


@pytest.mark.slow
async def test_two_ingests_share_the_load_and_what_one_had_in_hand_when_it_died_is_not_lost(
    tmp_path: Path,
) -> None:
    async with opened(Shape(ingests=2), tmp_path / "clinic") as site:
        await site.all_settle()
        for number, phase in ((2, Phase.WRITTEN), (1, Phase.COMMITTED), (2, Phase.RECEIVED)):
            ingest = site.ingest(number)
            marks_of(site.clinic.config_path, number).hold_at(phase)
            assert await holds(ingest), f"ingest {number} was never {phase}"
            await kill(ingest)
            # The monitors get through the living one, again and again.
            await site.all_settle()
            await site.all_settle()
            await site.start_ingest(number)
            await site.all_settle()
        await site.drain()
        verdict = await compare(site)
        shares = [stored(site, number) for number in (1, 2)]
    assert verdict.wrong == ()
    assert verdict.measured == verdict.stored >= 100
    assert verdict.repeated >= 1
    assert min(shares) >= 0.1 * verdict.stored
