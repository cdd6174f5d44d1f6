"""Every reason and counter that an operator meets stands in docs/monitors.md, and no other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from bridges.mqtt_vitals import ingest
from console.readings import TRIED_AGAIN
from console.refusals import MESSAGES, VALUES
from fajma.store.readings import UNREADABLE, Fate
from fajma.vitals import Kind
from fajma.wire.values import Reason

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "monitors.md").read_text(encoding="utf-8")
WIRE = ROOT / "fajma" / "wire"


def first_column(heading: str) -> list[str]:
    """What the first table under a heading of the page lists."""
    _, _, below = PAGE.partition(f"\n{heading}\n")
    lines = below[below.index("\n| ") + 1 :].splitlines()
    table = lines[: next(number for number, line in enumerate(lines) if not line.startswith("|"))]
    return [line.split("|")[1].strip().strip("`") for line in table[2:]]


def codes_raised() -> Iterator[str]:
    """The code of each ``DecodeError``, or error of its kind, that decoding can raise."""
    for path in WIRE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called not in {"BugError", "InputError"}:
                yield from (
                    word.value.value
                    for word in node.keywords
                    if word.arg == "code" and isinstance(word.value, ast.Constant)
                )


def test_the_reasons_that_are_known_are_those_that_can_occur() -> None:
    ours = {
        ingest.UNKNOWN_DEVICE,
        ingest.RATE_LIMITED,
        ingest.SEQUENCE_REUSED,
        ingest.UNKNOWN_KEY,
        ingest.NO_PATIENT_KEY,
        ingest.DOWNGRADED,
        ingest.BUG,
    }
    assert set(codes_raised()) | ours == MESSAGES
    assert ingest.SUSPICIOUS <= MESSAGES
    assert "spo2_missing" in VALUES
    assert "diastolic_missing" not in VALUES
    assert "temperature_inconsistent" not in VALUES


def test_the_page_lists_every_reason_once() -> None:
    listed = first_column("### Messages that were refused")
    assert sorted(listed) == sorted(MESSAGES)


def test_the_page_lists_every_way_in_which_a_value_is_wrong() -> None:
    listed = first_column("### Values that were refused")
    assert listed == [f"_{reason}" for reason in Reason]
    assert all(f"`{kind}`" in PAGE for kind in Kind)


def test_the_page_lists_every_counter() -> None:
    counted = [fate.value for fate in Fate if fate is not Fate.REUSED]
    assert first_column("## What came in, what did not") == [
        *counted,
        "lost_at_device",
        UNREADABLE,
        "refused …",
        "lag alarms",
        "lag publisher",
    ]


def test_the_page_names_what_is_noted_in_the_audit_log() -> None:
    paragraph = next(text for text in PAGE.split("\n\n") if "smell of attack" in text)
    assert {reason for reason in MESSAGES if f"`{reason}`" in paragraph} == ingest.SUSPICIOUS


def test_the_page_names_what_can_be_tried_again() -> None:
    [_, said] = PAGE.split("`replay` tries again")
    sentence = said[: said.index(".")]
    assert {reason for reason in MESSAGES if f"`{reason}`" in sentence} == TRIED_AGAIN


def test_the_first_page_and_the_navigation_list_every_decision() -> None:
    decisions = {f"adr/{path.name}" for path in (ROOT / "docs" / "adr").glob("*.md")}
    for page in (ROOT / "docs" / "index.md", ROOT / "mkdocs.yml"):
        text = page.read_text(encoding="utf-8")
        assert {decision for decision in decisions if decision not in text} == set()
