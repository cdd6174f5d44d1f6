"""The verdict of ``fajma demo --check``, over each broker and each database."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest

from console.check import SETTINGS, Judge
from console.clinic import Options, Ports


@pytest.fixture
def database_url(request: pytest.FixtureRequest, database: str) -> str | None:
    """FAJMA's database; a plain fixture, because the one of the server is too."""
    if database == "sqlite":
        return None
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.mark.parametrize(
    ("broker", "database", "v2"),
    [
        ("embedded", "sqlite", False),
        pytest.param("mosquitto", "sqlite", True, marks=pytest.mark.slow),
        pytest.param("mosquitto", "postgres", False, marks=pytest.mark.slow),
    ],
)
async def test_the_demo_passes_every_check(
    broker: Literal["mosquitto", "embedded"],
    database: str,
    tmp_path: Path,
    database_url: str | None,
    *,
    v2: bool,
) -> None:
    directory = tmp_path / "clinic"
    judge = Judge(Options(directory, Ports.free(), broker, SETTINGS, database_url, v2=v2))
    passed = await judge.run()

    assert [(check.name, check.detail) for check in judge.checks if not check.passed] == []
    assert passed
    assert len(judge.checks) >= 12
    assert ("broker_holds_nothing_of_v2_in_clear" in {one.name for one in judge.checks}) is v2
    verdict = json.loads(judge.as_json())
    assert verdict["passed"] is True
    assert verdict["broker"] == broker
    assert (tmp_path / "clinic" / "fajma.db").exists() is (database == "sqlite")
