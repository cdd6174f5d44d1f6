"""What the ``fajma`` command prints about people, and that the documentation knows all of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from console.people import TROUBLES, _checked, patient, staff, ward

DOCS = (Path(__file__).parents[2] / "docs" / "people.md").read_text(encoding="utf-8")


def finding(account: str, *troubles: str, **more: Any) -> dict[str, Any]:
    """As the API answers."""
    return {
        "account": account,
        "name": "Awa Diop",
        "ward": "medecine",
        "troubles": list(troubles),
        "on_duty": False,
        "on_call": False,
        "reachable": not troubles,
        "code": None,
        **more,
    }


def test_each_person_is_one_line_and_each_trouble_another() -> None:
    lines = _checked(
        [
            finding("@awa:clinic.test", on_duty=True, on_call=True),
            finding("@moussa:clinic.test", "no_pusher", "not_in_room", on_call=True),
            finding("@fatou:clinic.test", ward=None),
        ]
    )
    assert lines == [
        "@awa:clinic.test  Awa Diop  medecine  on duty  ok",
        "@moussa:clinic.test  Awa Diop  medecine  on call",
        f"    {TROUBLES['no_pusher']}",
        f"    {TROUBLES['not_in_room']}",
        "@fatou:clinic.test  Awa Diop  no ward  ok",
        "2 of 3 can be reached",
    ]


def test_the_line_that_accepts_keys_can_be_copied_in_one_piece() -> None:
    account = "@a-very-long-account-name-of-somebody:matrix.a-very-long-hospital.example"
    lines = _checked([finding(account, "identity_changed", code="K7QF-2MZT")])
    assert lines[1].endswith(f" fajma staff trust {account} K7QF-2MZT")


def test_a_trouble_that_is_new_is_shown_all_the_same() -> None:
    assert _checked([finding("@awa:clinic.test", "of_tomorrow")])[1] == "    of_tomorrow"


def commands() -> Iterator[tuple[str, click.Command]]:
    for group in (ward, staff, patient):
        for name, command in group.commands.items():
            yield f"fajma {group.name} {name}", command


@pytest.mark.parametrize(("line", "command"), list(commands()))
def test_every_command_stands_in_the_documentation_with_its_options(
    line: str, command: click.Command
) -> None:
    (row,) = [one for one in DOCS.splitlines() if re.match(rf"\| `{line}[ `]", one)]
    options = {
        option
        for parameter in command.params
        if isinstance(parameter, click.Option) and parameter.name != "config_path"
        for option in [*parameter.opts, *parameter.secondary_opts]
    }
    assert {option for option in options if option not in row} == set()


def test_the_documentation_says_where_the_settings_come_from() -> None:
    assert "FAJMA_CONFIG" in DOCS
    assert "--config" in DOCS
