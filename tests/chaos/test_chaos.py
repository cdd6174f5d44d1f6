"""Everything is killed with SIGKILL; each reading is in the log once. `make chaos` is longer."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from tests.chaos.campaign import EVERY_PAIR, Campaign, blows
from tests.chaos.grounds import Component, Shape, opened

KILLS = 20


@pytest.mark.slow
@pytest.mark.parametrize("persistence", [True, False], ids=["saved", "in memory"])
async def test_whatever_is_killed_in_whatever_phase_each_reading_is_in_the_log_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, persistence: bool
) -> None:
    seed = secrets.randbelow(10**6)
    async with opened(Shape(persistence=persistence), tmp_path / "clinic") as site:
        report = await Campaign(site, blows(KILLS, seed=seed), seed=seed).run()
    with capsys.disabled():
        print(f"\n{report.as_text()}")  # noqa: T201 - which phases were hit is the proof
    assert report.verdict.wrong == ()
    assert set(EVERY_PAIR) - report.hits.keys() == set(), "these phases were not hit"
    assert {component for component, _ in report.hits} == set(Component)
    assert report.kills == KILLS
    assert report.verdict.measured == report.verdict.stored >= 100
    assert report.verdict.repeated >= 1, "nothing was sent again, so nothing was proven"
