"""``fajma api-key``: keys are made, shown once, listed and revoked."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from console.api_keys import api_key
from console.run import opened
from fajma.config import as_toml, load
from fajma.errors import InputError
from fajma.sealing import generate_site_key
from fajma.store.api_keys import ApiKey
from fajma.store.audit import Entry


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The settings file of a site that has never run."""
    key_file = tmp_path / "site.key"
    key_file.touch(mode=0o600)
    key_file.write_text(generate_site_key(), encoding="ascii")
    homeserver = ("as_token_file", "hs_token_file", "admin_password_file")
    secrets = ("api_token_file", "operator_token_file", "alert_bot_password_file")
    sections = {
        "homeserver": {
            "url": "http://127.0.0.1:8008",
            "server_name": "clinic.test",
            **dict.fromkeys(homeserver, "nowhere"),
        },
        "database": {"url": f"sqlite://{tmp_path}/fajma.db"},
        "secrets": {
            "directory": tmp_path,
            "site_key_file": key_file,
            **dict.fromkeys(secrets, "nowhere"),
        },
        "mqtt": dict.fromkeys(("ca_file", "cert_file", "key_file"), "nowhere"),
    }
    path = tmp_path / "fajma.toml"
    path.write_text(as_toml(sections), encoding="utf-8")
    return path


def give(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(api_key, [*arguments, "--config", str(config)])


def kept(config: Path, secret: str) -> tuple[ApiKey | None, list[Entry]]:
    async def look() -> tuple[ApiKey | None, list[Entry]]:
        async with opened(load(config)) as records:
            return await records.api_keys.of_secret(secret), await records.audit.latest()

    return asyncio.run(look())


def test_a_key_is_shown_once_and_opens_until_it_is_revoked(config: Path) -> None:
    added = give(config, "add", "dossier", "--scope", "patients.read", "--days", "30")
    assert added.exit_code == 0, added.output
    secret = added.stdout.strip()
    assert re.fullmatch(r"fjk_[A-Za-z0-9_-]{43}", secret)
    listed = give(config, "list").stdout
    assert secret not in listed
    assert re.fullmatch(r"dossier  until \d{4}-\d\d-\d\d  patients\.read\n", listed)
    key, _ = kept(config, secret)
    assert key is not None
    assert key.is_valid(datetime.now(UTC))
    assert give(config, "revoke", "dossier").exit_code == 0
    key, acts = kept(config, secret)
    assert key is not None
    assert not key.is_valid(datetime.now(UTC))
    assert "dossier  revoked" in give(config, "list").stdout
    assert [one.action for one in acts] == ["api_key.add", "api_key.revoke"]
    assert secret not in str(acts)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("add", "Dossier Patient", "--scope", "patients.read"), "api_key_name"),
        (("add", "taken", "--scope", "patients.read"), "api_key_exists"),
        (("revoke", "nobody"), "api_key_unknown"),
    ],
)
def test_what_cannot_be_is_said(config: Path, arguments: tuple[str, ...], code: str) -> None:
    give(config, "add", "taken", "--scope", "patients.read")
    error = give(config, *arguments).exception
    assert isinstance(error, InputError)
    assert error.code == code


def test_a_scope_that_is_none_is_refused_before_anything_is_done(config: Path) -> None:
    result = give(config, "add", "dossier", "--scope", "operator")
    assert result.exit_code == 2
    assert not config.with_name("fajma.db").exists()
