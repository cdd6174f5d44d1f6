"""The one declaration of settings: what it refuses, and that its page is complete."""

from __future__ import annotations

import base64
import re
import tomllib
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from console.main import cli
from fajma import config
from fajma.config import Alarms, Settings, as_toml, files_named, keys, load, read_secret, sections
from fajma.errors import InputError
from fajma.files import write_private
from fajma.language import Language

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"

NEEDED: dict[str, dict[str, Any]] = {
    "homeserver": {
        "url": "http://127.0.0.1:8008",
        "server_name": "clinic.test",
        "as_token_file": "secrets/as_token",
        "admin_password_file": "secrets/admin-password",
        "hs_token_file": "secrets/hs_token",
    },
    "database": {"url": "sqlite:///var/lib/fajma/fajma.db"},
    "secrets": {
        "directory": "secrets",
        "site_key_file": "secrets/site.key",
        "operator_token_file": "secrets/operator-token",
        "api_token_file": "secrets/api_token",
        "alert_bot_password_file": "secrets/alert_bot_password",
    },
    "mqtt": {
        "ca_file": "pki/ca.crt",
        "cert_file": "/etc/fajma/bridge.crt",
        "key_file": "pki/bridge.key",
    },
}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, _, _ in keys():
        monkeypatch.delenv(variable(key), raising=False)


def variable(key: str) -> str:
    return "FAJMA_" + key.replace(".", "__").upper()


def write(directory: Path, **changes: dict[str, Any]) -> Path:
    sections = {name: NEEDED.get(name, {}) | changes.get(name, {}) for name in NEEDED | changes}
    path = directory / "fajma.toml"
    path.write_text(as_toml(sections), encoding="utf-8")
    return path


def refusal(path: Path, code: str) -> str:
    with pytest.raises(InputError) as caught:
        load(path)
    assert caught.value.code == code
    return str(caught.value)


# --- the file ------------------------------------------------------------------------------------


def test_a_file_with_only_what_is_required_gets_every_default(tmp_path: Path) -> None:
    settings = load(write(tmp_path))
    assert settings.site.language is Language.FRENCH
    assert settings.mqtt.port == 8883
    for key, _, default in keys():
        section, name = key.split(".")
        if default is not ...:
            assert getattr(getattr(settings, section), name) == default, key


def test_relative_paths_are_relative_to_the_file_and_absolute_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc").mkdir()
    write(tmp_path / "etc")
    monkeypatch.chdir(tmp_path)
    settings = load(Path("etc/fajma.toml"))
    assert settings.secrets.site_key_file == tmp_path / "etc/secrets/site.key"
    assert settings.mqtt.cert_file == Path("/etc/fajma/bridge.crt")
    assert settings.mqtt.server_cert_file is None


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.toml"
    message = refusal(path, "config_missing")
    assert str(path) in message
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"[mqtt\nport = 1", b"\xff\xfe", b"port = 1\nport = 2"])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fajma.toml"
    path.write_bytes(content)
    assert str(path) in refusal(path, "config_syntax")


def test_a_directory_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    assert str(tmp_path) in refusal(tmp_path, "config_syntax")


@pytest.mark.parametrize(
    ("section", "key"), [("mqtt", "prot"), ("site", "Language"), ("publish", "encrypt")]
)
def test_an_unknown_key_is_refused_by_its_name(tmp_path: Path, section: str, key: str) -> None:
    message = refusal(write(tmp_path, **{section: {key: "true"}}), "config_invalid")
    assert f"{section}.{key}: unknown key" in message


@pytest.mark.parametrize("name", ["broker", "_env_file", "_env_prefix", "_secrets_dir"])
def test_an_unknown_section_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    path = write(tmp_path)
    path.write_text(f'{name} = "x"\n' + path.read_text(encoding="utf-8"), encoding="utf-8")
    assert f"{name}: unknown key" in refusal(path, "config_invalid")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("mqtt", "port", 0),
        ("mqtt", "port", 65536),
        ("mqtt", "port", "many"),
        ("mqtt", "queue_max", 1),
        ("mqtt", "batch_max", 0),
        ("site", "language", "de"),
        ("site", "time_zone", "Mars/Olympus"),
        ("site", "time_zone", "../../etc/passwd"),
        ("publish", "state_every_s", 0),
        ("publish", "batch_every_s", "nan"),
        ("alarms", "confirm_needed", 11),
        ("log", "level", "trace"),
        ("homeserver", "url", "127.0.0.1:8008"),
        ("homeserver", "url", "ftp://127.0.0.1"),
        ("homeserver", "url", "http://["),
        ("database", "url", "mysql://fajma@localhost/fajma"),
        ("database", "url", "fajma.db"),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(
    tmp_path: Path, section: str, key: str, value: object
) -> None:
    message = refusal(write(tmp_path, **{section: {key: value}}), "config_invalid")
    assert f"{section}.{key}: " in message


def test_every_problem_of_a_file_is_told_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, mqtt={"port": 0, "prot": 1}, log={"level": "loud"})
    lines = refusal(path, "config_invalid").splitlines()
    assert "3 wrong setting(s)" in lines[0]
    assert len(lines) == 4


@pytest.mark.parametrize(
    "key", [key for key, _, default in keys() if default is ... and not key.startswith("_")]
)
def test_a_required_key_that_is_missing_is_named(tmp_path: Path, key: str) -> None:
    section, name = key.split(".")
    assert f"{key}: field required" in refusal(
        write(tmp_path, **{section: {name: None}}), "config_invalid"
    )


def test_a_section_that_is_not_a_table_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path)
    path.write_text("site = 3\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    assert "site: " in refusal(path, "config_invalid")
    monkeypatch.setenv("FAJMA_LOG__LEVEL", "debug")
    assert "site: " in refusal(path, "config_invalid")


def test_settings_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, mqtt={"embedded": True}), "config_invalid")
    assert "mqtt: " in message
    assert "server_cert_file" in message
    message = refusal(write(tmp_path, alarms={"confirm_needed": 5}), "config_invalid")
    assert "confirm_needed <= confirm_window" in message


# --- the environment -----------------------------------------------------------------------------


def test_the_environment_wins_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, mqtt={"port": 1883, "batch_max": 7})
    monkeypatch.setenv("FAJMA_MQTT__PORT", "2883")
    monkeypatch.setenv("FAJMA_SITE__LANGUAGE", "en")
    monkeypatch.setenv("FAJMA_MQTT__KEY_FILE", "other/bridge.key")
    settings = load(path)
    assert settings.mqtt.port == 2883
    assert settings.mqtt.batch_max == 7
    assert settings.site.language is Language.ENGLISH
    assert settings.mqtt.key_file == tmp_path / "other/bridge.key"


def test_the_environment_can_give_a_required_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, database={"url": None})
    monkeypatch.setenv("FAJMA_DATABASE__URL", "postgres://fajma@/fajma")
    assert load(path).database.url == "postgres://fajma@/fajma"


@pytest.mark.parametrize(
    "name", ["FAJMA_MQTT__PROT", "FAJMA_MQTT_PORT", "FAJMA_MQTT", "fajma_mqtt__port", "FAJMA_X"]
)
def test_an_unknown_variable_of_ours_is_refused_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "1")
    message = refusal(write(tmp_path), "config_invalid")
    assert name in message
    assert "\n" not in message


@pytest.mark.parametrize("name", sorted(config.NOT_SETTINGS))
def test_variables_of_ours_that_are_no_settings_do_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "somewhere")
    assert load(write(tmp_path)).mqtt.port == 8883


def test_a_wrong_value_in_the_environment_is_refused_by_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAJMA_MQTT__PORT", "many")
    message = refusal(write(tmp_path), "config_invalid")
    assert "mqtt.port: " in message
    assert "many" not in message


# --- confidentiality -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "postgres://fajma:hunter22@localhost/fajma",
        "postgres://fajma:@localhost/fajma",
        "postgres://fajma@localhost/fajma?password=hunter22",
        "postgres://fajma@localhost/fajma?sslmode=require&pass%77ord=hunter22",
    ],
)
def test_a_password_in_the_database_url_is_refused_and_not_repeated(
    tmp_path: Path, url: str
) -> None:
    message = refusal(write(tmp_path, database={"url": url}), "config_invalid")
    assert "database.url: " in message
    assert "password_file" in message
    assert "hunter22" not in message


@pytest.mark.parametrize(
    "url", ["http://matrix.clinic.test", "http://10.0.0.2:8008", "http://127.0.0.1.clinic.test"]
)
def test_plain_http_to_a_homeserver_elsewhere_is_refused(tmp_path: Path, url: str) -> None:
    message = refusal(write(tmp_path, homeserver={"url": url}), "config_invalid")
    assert "homeserver.url: " in message
    assert "https" in message


@pytest.mark.parametrize(
    "url", ["http://localhost:8008/", "http://[::1]:8008", "https://matrix.clinic.test"]
)
def test_loopback_and_https_homeservers_are_accepted(tmp_path: Path, url: str) -> None:
    assert load(write(tmp_path, homeserver={"url": url})).homeserver.url == url.rstrip("/")


def test_the_check_misses_the_certificates_of_further_ingests(tmp_path: Path) -> None:
    directory = NEEDED["secrets"] | {"directory": "."}
    mqtt = {"ca_file": "ca.crt", "cert_file": "ingest.crt", "key_file": "ingest.key", "ingests": 2}
    path = write(tmp_path, mqtt=mqtt, secrets=directory)
    for _, file in files_named(load(path)):
        if "-2" not in file.name:
            file.parent.mkdir(exist_ok=True)
            write_private(file, base64.b64encode(bytes(32)))
    error = CliRunner().invoke(cli, ["config", "check", "--config", str(path)]).exception
    assert isinstance(error, InputError)
    assert [line.split(":")[0] for line in str(error).splitlines()] == [
        f"mqtt.{name}_file of ingest 2 cannot be read from {tmp_path}/ingest-2.{ending}"
        for name, ending in (("cert", "crt"), ("key", "key"))
    ]


def test_no_setting_offers_plain_text() -> None:
    offer = re.compile(
        r"plain|clear.?text|in clear|encrypt|insecure|unsafe|unverified|disable|skip|bypass",
        re.IGNORECASE,
    )
    offers = [key for key, text, _ in keys() if offer.search(key) or offer.search(text)]
    assert offers == []
    # A new switch must be weighed here: it must not be one that turns protection off.
    switches = {
        f"{section}.{name}"
        for section, model in sections()
        for name, field in model.model_fields.items()
        if field.annotation is bool
    }
    assert switches == {"mqtt.embedded"}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620, 0o601])
def test_a_secret_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "token"
    path.write_text("correct-horse", encoding="utf-8")
    path.chmod(mode)
    with pytest.raises(InputError, match="chmod 600") as caught:
        read_secret(path, purpose="API token")
    assert caught.value.code == "secret_exposed"
    assert "API token" in str(caught.value)
    assert "correct-horse" not in str(caught.value)
    path.chmod(0o600)
    assert read_secret(path, purpose="API token") == "correct-horse"


@pytest.mark.parametrize("content", [b"changeme\n", b"CHANGEME-please", b"todo"])
def test_a_placeholder_is_not_a_secret(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_secret(path, purpose="API token")
    assert caught.value.code == "secret_placeholder"


@pytest.mark.parametrize("content", [b"", b" \n"])
def test_an_empty_file_is_not_a_secret(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(InputError, match="is empty"):
        read_secret(path, purpose="API token")


@pytest.mark.parametrize("kind", ["absent", "directory", "binary"])
def test_a_secret_that_cannot_be_read_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "token"
    if kind == "directory":
        path.mkdir(mode=0o700)
    elif kind == "binary":
        path.touch(mode=0o600)
        path.write_bytes(b"\xff\xfe\x00secret")
    with pytest.raises(InputError) as caught:
        read_secret(path, purpose="API token")
    assert caught.value.code == "secret_missing"
    assert str(path) in str(caught.value)


# --- writing and describing ----------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_what_is_written_as_toml_is_read_back(text: str) -> None:
    written = as_toml({"s": {"text": text, "number": 7, "ratio": 0.5, "no": False, "none": None}})
    assert tomllib.loads(written) == {"s": {"text": text, "number": 7, "ratio": 0.5, "no": False}}


def shown(default: object) -> str:
    if default is ...:
        return "required"
    if default is None:
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, Enum):
        return f"`{default.value}`"
    return f"`{default}`"


def test_the_page_of_settings_lists_every_key_with_its_default_and_nothing_else() -> None:
    rows = re.findall(r"^\| `.*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [f"| `{key}` | {text} | {shown(default)} |" for key, text, default in keys()]
    assert all(text for _, text, _ in keys())


def test_every_section_of_settings_is_declared_once() -> None:
    assert [name for name, _ in sections()] == list(Settings.model_fields)


def test_a_ward_s_ladder_that_does_not_rise_is_refused() -> None:
    with pytest.raises(ValidationError, match="rise"):
        Alarms.model_validate({"wards": {"icu": {"ladder_high_s": [0, 120, 60]}}})
    with pytest.raises(ValidationError, match="again_hgh_s"):
        Alarms.model_validate({"wards": {"icu": {"again_hgh_s": 60}}})
