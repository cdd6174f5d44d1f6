"""What `fajma run` refuses before it does anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from console.main import cli
from fajma.config import as_toml
from fajma.errors import InputError


@pytest.fixture(autouse=True)
def _logging_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("console.main.configure", lambda _: None)


def refusal(directory: Path, *arguments: str, url: str, embedded: bool = False) -> InputError:
    """What is said with settings whose files are not even there."""
    nowhere = directory / "nowhere"
    path = directory / "fajma.toml"
    sections = {
        "homeserver": {
            "url": "http://127.0.0.1:8008",
            "server_name": "clinic.test",
            **dict.fromkeys(("as_token_file", "admin_password_file", "hs_token_file"), nowhere),
        },
        "database": {"url": url},
        "secrets": {
            "directory": nowhere,
            **dict.fromkeys(("site_key_file", "operator_token_file"), nowhere),
            **dict.fromkeys(("api_token_file", "alert_bot_password_file"), nowhere),
        },
        "mqtt": {
            **dict.fromkeys(("ca_file", "cert_file", "key_file"), nowhere),
            **dict.fromkeys(("server_cert_file", "server_key_file"), nowhere),
            "embedded": embedded,
        },
    }
    path.write_text(as_toml(sections), encoding="utf-8")
    result = CliRunner().invoke(cli, ["run", *arguments, "--config", str(path)])
    assert isinstance(result.exception, InputError), result.output
    assert not nowhere.exists()
    return result.exception


@pytest.mark.parametrize("role", ["ingest", "appservice", "alerts"])
def test_one_part_alone_is_refused_on_sqlite(tmp_path: Path, role: str) -> None:
    refused = refusal(tmp_path, role, url="sqlite:///var/lib/fajma/fajma.db")
    assert refused.code == "split_needs_postgresql"
    assert "set database.url" in str(refused)


def test_one_part_alone_is_refused_with_the_broker_inside(tmp_path: Path) -> None:
    refused = refusal(tmp_path, "ingest", url="postgres://fajma@host/fajma", embedded=True)
    assert refused.code == "split_needs_broker"


@pytest.mark.parametrize("arguments", [(), ("alerts",)])
def test_a_number_is_refused_for_what_runs_once(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    refused = refusal(tmp_path, *arguments, "--number", "2", url="postgres://fajma@host/fajma")
    assert refused.code == "number_without_ingest"


def test_an_application_service_without_tokens_is_refused_before_its_turn_comes(
    tmp_path: Path,
) -> None:
    refused = refusal(tmp_path, "appservice", url="postgres://fajma@host/fajma")
    assert refused.code == "secret_missing"
    assert "API token" in str(refused)


@pytest.mark.parametrize("number", ["0", "9", "x"])
def test_an_ingest_has_a_number_from_one_to_eight(number: str) -> None:
    result = CliRunner().invoke(cli, ["run", "ingest", "--number", number])
    assert result.exit_code == 2
    assert "--number" in result.output
