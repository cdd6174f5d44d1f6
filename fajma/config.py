"""All settings of FAJMA, in one validated declaration.

A setting comes from a TOML file and can be overridden by the environment: ``mqtt.port`` is
``FAJMA_MQTT__PORT``. Unknown keys are refused. Secrets are never settings: a setting names the
file that holds the secret. Confidentiality of vitals is not configurable: there is no key here
that would send one in clear text. Every key is described in ``docs/settings.md`` (a test checks).
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, get_args
from urllib.parse import parse_qsl, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from fajma.errors import InputError
from fajma.language import Language

ENV_PREFIX: Final = "FAJMA_"
ENV_DELIMITER: Final = "__"


def _database_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"sqlite", "postgres", "postgresql"}:
        raise ValueError("must begin with sqlite:/// or postgres://")
    # PostgreSQL's drivers take a password from the query as well.
    if parts.password is not None or "password" in dict(
        parse_qsl(parts.query, keep_blank_values=True)
    ):
        raise ValueError("put the password into a file and name it in database.password_file")
    return url


def _is_loopback(host: str) -> bool:
    return host in {"127.0.0.1", "::1", "localhost"}


Port = Annotated[int, Field(ge=1, le=65535)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Site(_Section):
    """The clinic itself."""

    language: Language = Field(
        default=Language.FRENCH, description="Language of rooms and alarms: `fr` or `en`."
    )
    time_zone: str = Field(
        default="Africa/Dakar",
        description="IANA time zone in which alarms state the time, e.g. `Africa/Bamako`.",
    )

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError("not an IANA time zone such as Africa/Dakar") from error
        return value


class Homeserver(_Section):
    """The Matrix homeserver and our place on it."""

    url: str = Field(
        description="Client-server API of the homeserver, e.g. `http://127.0.0.1:8008`."
    )
    server_name: str = Field(description="The part after the colon of its user ids.")
    public_url: str | None = Field(
        default=None,
        description="The address that people type in Element, where it is not `url`.",
    )
    room_version: str = Field(
        default="12",
        description="Room version of new consultations (Matrix 1.16 recommends `12`; old clients "
        "may need `11`).",
    )
    as_token_file: Path = Field(description="File with the application service's token.")
    hs_token_file: Path = Field(description="File with the homeserver's token.")
    admin_account: str = Field(
        default="fajma-operator",
        pattern=r"^[a-z0-9._=/+-]+$",
        description="Local part of the homeserver's admin account, which makes staff accounts, "
        "ends sessions and keeps the push rules.",
    )
    admin_password_file: Path = Field(description="File with that account's password.")
    listen_host: str = Field(
        default="127.0.0.1", description="Where the application service listens."
    )
    listen_port: Port = Field(
        default=29330, description="Port of the application service and of the REST API."
    )

    @field_validator("url")
    @classmethod
    def _tls_beyond_loopback(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("must be an http(s) URL")
        if parts.scheme == "http" and not _is_loopback(parts.hostname):
            raise ValueError("use https for a homeserver on another machine")
        return value.rstrip("/")


class DatabaseSettings(_Section):
    """Where FAJMA keeps its own data."""

    url: Annotated[str, AfterValidator(_database_url)] = Field(
        description="`sqlite:///var/lib/fajma/fajma.db` or `postgres://fajma@host/fajma`, without "
        "password.",
    )
    password_file: Path | None = Field(
        default=None, description="File with the PostgreSQL password, if one is needed."
    )
    lease_s: float = Field(
        default=15,
        ge=1,
        le=300,
        description="Over PostgreSQL: how long a process that fell silent keeps others from doing "
        "what only one may do; the next one works at most twice as long after.",
    )

    @property
    def is_sqlite(self) -> bool:
        """Whether it is the embedded database."""
        return self.url.startswith("sqlite")


class Secrets(_Section):
    """Keys and tokens of our own, each in a file readable by FAJMA alone (mode 0600)."""

    directory: Path = Field(
        description="Directory of generated secrets (recovery keys, session of the alert bot)."
    )
    site_key_file: Path = Field(
        description="The site key, 32 bytes in base64: seals everything FAJMA stores."
    )
    api_token_file: Path = Field(
        description="File with the token that callers of the REST API show."
    )
    operator_token_file: Path = Field(
        description="File with the token of the `fajma` command: people, wards, identities."
    )
    alert_bot_password_file: Path = Field(
        description="File with the password of the alert bot's Matrix account."
    )
    webhook_secret_file: Path | None = Field(
        default=None,
        description="File with the secret shared with `alarms.webhook_url`: `whsec_` and base64.",
    )


class Mqtt(_Section):
    """The broker that the monitors report to."""

    host: str = Field(default="127.0.0.1", description="Name or address of the broker.")
    port: Port = Field(default=8883, description="TLS port of the broker.")
    ca_file: Path = Field(description="CA certificate that signed broker and devices.")
    cert_file: Path = Field(description="Client certificate of the bridge (CN `fajma-ingest`).")
    key_file: Path = Field(description="Private key of the bridge's certificate.")
    embedded: bool = Field(
        default=False,
        description="Run the broker inside FAJMA (amqtt, MQTT 3.1.1), for one small clinic.",
    )
    server_cert_file: Path | None = Field(
        default=None, description="Certificate of the embedded broker."
    )
    server_key_file: Path | None = Field(
        default=None, description="Private key of the embedded broker's certificate."
    )
    batch_max: int = Field(
        default=500, ge=1, le=5000, description="Most messages committed in one transaction."
    )
    queue_max: int = Field(
        default=2000,
        ge=10,
        le=20000,
        description="Most messages held in memory before the broker is made to wait.",
    )

    ingests: int = Field(
        default=1,
        ge=1,
        le=8,
        description="How many `fajma run ingest` share the monitors. Each has a session of its own "
        "at the broker, and a certificate: beside `cert_file` and `key_file` lie `NAME-2.EXT` and "
        "so on (CN `fajma-ingest-2`, ...). A session whose ingest is gone is served by another.",
    )
    quarantine_days: int = Field(
        default=30,
        ge=1,
        le=3650,
        description="Days for which refused messages are kept, sealed, so that somebody can look "
        "into them or give them to a patient.",
    )

    def certificate(self, number: int) -> tuple[Path, Path]:
        """Certificate and key of one of several ingests, from 1."""

        def numbered(path: Path) -> Path:
            return path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")

        return numbered(self.cert_file), numbered(self.key_file)

    @model_validator(mode="after")
    def _embedded_needs_certificate(self) -> Mqtt:
        if self.embedded and (self.server_cert_file is None or self.server_key_file is None):
            raise ValueError("embedded = true needs server_cert_file and server_key_file")
        return self


class Publish(_Section):
    """How often vitals go into the rooms."""

    state_every_s: float = Field(
        default=300,
        ge=1,
        le=3600,
        description="Seconds between two snapshots (room state) in a room that is watched or whose "
        "alarm changed within half an hour; a change of alarm sends one at once.",
    )
    unwatched_state_every_s: float = Field(
        default=1800,
        ge=1,
        le=86400,
        description="The same in any other room. Room state is never purged and costs a phone "
        "twice, so it follows who looks; who begins to watch gets a fresh one.",
    )
    batch_every_s: float = Field(
        default=60, ge=1, le=3600, description="Seconds between two timeline batches ..."
    )
    watched_every_s: float = Field(
        default=5, ge=1, le=3600, description="... while somebody watches in a client."
    )
    events_per_s: float = Field(
        default=25,
        gt=0,
        le=1000,
        description="Budget of telemetry: most events a second for the homeserver, on average; "
        "twice as many at once. One Synapse process takes about 60 (docs/scaling.md).",
    )
    history_points: int = Field(
        default=288,
        ge=0,
        le=1440,
        multiple_of=2,
        description="Most values of each kind in the last 24 hours that are shown to somebody who "
        "joins; 0 shows none.",
    )


class Ladders(_Section):
    """When people are told about an alarm that nobody answered."""

    again_high_s: float = Field(
        default=180,
        ge=10,
        le=3600,
        description="Seconds until an alarm of high priority that nobody answered is told "
        "again ...",
    )
    again_medium_s: float = Field(default=600, ge=10, le=7200, description="... of medium, ...")
    again_low_s: float = Field(default=1800, ge=10, le=14400, description="... of low priority.")
    ladder_high_s: list[float] = Field(
        default=[0, 120, 240, 300],
        min_length=1,
        max_length=4,
        description="When an alarm of high priority that nobody answered reaches who is on duty, "
        "the ward's room, everybody of the ward, the webhook: seconds after its start ...",
    )
    ladder_medium_s: list[float] = Field(
        default=[0, 600],
        min_length=1,
        max_length=4,
        description="... of medium priority.",
    )

    @model_validator(mode="after")
    def _rising(self) -> Self:
        for ladder in (self.ladder_high_s, self.ladder_medium_s):
            if ladder[0] != 0 or any(one >= later for one, later in pairwise(ladder)):
                raise ValueError("needs ladders that begin with 0 and rise")
        return self


class WardLadders(_Section):
    """Keys of ``Ladders`` that are otherwise in one ward."""

    again_high_s: float | None = Field(default=None, ge=10, le=3600)
    again_medium_s: float | None = Field(default=None, ge=10, le=7200)
    again_low_s: float | None = Field(default=None, ge=10, le=14400)
    ladder_high_s: list[float] | None = Field(default=None, min_length=1, max_length=4)
    ladder_medium_s: list[float] | None = Field(default=None, min_length=1, max_length=4)


class Alarms(Ladders):
    """Confirmation and clearing of alarms; the limits themselves are in docs/alarms.md."""

    confirm_needed: int = Field(
        default=3, ge=1, le=10, description="Breaching samples needed to raise an alarm ..."
    )
    confirm_window: int = Field(
        default=4, ge=1, le=20, description="... among this many good samples."
    )
    confirm_extreme: int = Field(
        default=2, ge=1, le=10, description="Breaching samples needed for an extreme value."
    )
    clear_dwell_s: float = Field(
        default=30,
        ge=0,
        le=600,
        description="Seconds without breach, beyond the hysteresis, that end an alarm.",
    )

    silent_after_s: float = Field(
        default=90,
        ge=5,
        le=3600,
        description="Seconds without a reading of a worn monitor until somebody is told; longer "
        "for a monitor that usually sends seldom.",
    )
    wards: dict[str, WardLadders] = Field(
        default={},
        description="What is otherwise in one ward: a section `[alarms.wards.NAME]` by its short "
        "name, with any of `again_…` and `ladder_…`.",
    )
    webhook_url: str | None = Field(
        default=None,
        pattern=r"^https?://",
        description="Where the last step of the ladder is posted, for SMS or calls "
        "([docs/alarms.md](alarms.md)).",
    )
    silence_told_after_s: float = Field(
        default=45,
        ge=3,
        le=300,
        description="When FAJMA dies, the homeserver tells the wards so many seconds later. Longer "
        "than a restart of FAJMA takes, and than three times `database.lease_s`.",
    )
    watchdog_url: str | None = Field(
        default=None,
        pattern=r"^https?://\S+$",
        description="Address of a dead-man service outside this host (docs/alarms.md), fetched "
        "while all of FAJMA works; nothing is sent to it.",
    )
    watchdog_every_s: float = Field(
        default=30, ge=1, le=3600, description="Seconds between two fetches of `watchdog_url`."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Alarms:
        for ward in self.wards:
            self.in_ward(ward)
        if not self.confirm_extreme <= self.confirm_needed <= self.confirm_window:
            raise ValueError("needs confirm_extreme <= confirm_needed <= confirm_window")
        return self

    def in_ward(self, ward: str) -> Ladders:
        """The ladders of a ward, by its short name."""
        site = {name: getattr(self, name) for name in Ladders.model_fields}
        own = self.wards.get(ward, WardLadders()).model_dump(exclude_none=True)
        return Ladders(**site | own)


class People(_Section):
    """Duty, reachability and devices of the staff."""

    look_every_s: float = Field(
        default=30,
        ge=0.2,
        le=600,
        description="Seconds between two looks at who can be reached.",
    )
    rules_every_s: float = Field(
        default=120,
        ge=0.2,
        le=3600,
        description="Seconds between two looks at the push rules of somebody on duty: how long a "
        "room that was muted in Element may silence an alarm.",
    )
    unsigned_after_s: float = Field(
        default=120,
        ge=0,
        le=3600,
        description="How long somebody on duty may take to confirm a new device before the ward is "
        "told of it (it gets no key meanwhile).",
    )


class Log(_Section):
    """What FAJMA writes to its log; never a vital, a name or a secret."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severity written: `debug`, `info`, `warning`, `error`."
    )
    format: Literal["json", "console"] = Field(
        default="json", description="`json` (one object a line) or `console` (for people)."
    )


class Settings(BaseSettings):
    """Everything ``fajma run`` needs to know."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=ENV_DELIMITER,
        extra="forbid",
        frozen=True,
    )

    site: Site = Site()
    homeserver: Homeserver
    database: DatabaseSettings
    secrets: Secrets
    mqtt: Mqtt
    publish: Publish = Publish()
    alarms: Alarms = Alarms()
    people: People = People()
    log: Log = Log()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic's
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file (which arrives as constructor arguments)."""
        return (env_settings, init_settings)


def sections() -> Iterator[tuple[str, type[BaseModel]]]:
    """Every section's name and model, in the order of the file."""
    for name, field in Settings.model_fields.items():
        annotation = field.annotation
        candidates = [annotation, *get_args(annotation)]
        for candidate in candidates:
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                yield name, candidate


def keys() -> Iterator[tuple[str, str, Any]]:
    """Every key as ``section.key``, its description and its default (``...`` if required)."""
    for section, model in sections():
        for name, field in model.model_fields.items():
            default = ... if field.is_required() else field.default
            yield f"{section}.{name}", field.description or "", default


def load(path: Path) -> Settings:
    """Read and validate the settings file.

    Args:
        path: the TOML file; relative paths in it are relative to its directory.

    Returns:
        The settings, with the environment's overrides applied.

    Raises:
        InputError: the file is missing, is not TOML, or has a wrong or unknown key; the message
            lists every problem, one a line.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"no settings file at {path}: name one with --config or run `fajma demo`",
            code="config_missing",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path} cannot be read as TOML: {error}", code="config_syntax") from error
    _refuse_unknown_environment()
    # pydantic would take these as options of its own.
    private = [name for name in content if name.startswith("_")]
    if private:
        raise InputError(
            f"{path} has {len(private)} wrong setting(s):\n"
            + "\n".join(f"  {name}: unknown key" for name in private),
            code="config_invalid",
        )
    try:
        settings = Settings(**content)
    except ValidationError as error:
        raise InputError(
            f"{path} has {error.error_count()} wrong setting(s):\n" + _problems(error),
            code="config_invalid",
        ) from error
    return _resolved(settings, path.resolve().parent)


def read_secret(path: Path, *, purpose: str) -> str:
    """Read one secret from its file.

    Raises:
        InputError: the file is missing, empty, or readable by other users of the machine.
    """
    try:
        mode = path.stat().st_mode
        secret = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise InputError(
            f"the {purpose} cannot be read from {path}: {error.strerror}", code="secret_missing"
        ) from error
    except UnicodeDecodeError:
        # The cause is left out: it would quote the secret.
        raise InputError(
            f"the {purpose} cannot be read from {path}: it is not text", code="secret_missing"
        ) from None
    if mode & 0o077:
        raise InputError(
            f"{path} ({purpose}) can be read by others: run `chmod 600 {path}`",
            code="secret_exposed",
        )
    if not secret:
        raise InputError(f"{path} ({purpose}) is empty", code="secret_missing")
    if secret.upper().startswith(("CHANGEME", "TODO")):
        raise InputError(f"{path} ({purpose}) holds no real secret", code="secret_placeholder")
    return secret


SECRET_FILES: Final = frozenset(
    {
        "homeserver.as_token_file",
        "homeserver.hs_token_file",
        "homeserver.admin_password_file",
        "database.password_file",
        "secrets.site_key_file",
        "secrets.api_token_file",
        "secrets.operator_token_file",
        "secrets.alert_bot_password_file",
    }
)
"""Settings that name the file of a secret."""


def files_named(settings: Settings) -> Iterator[tuple[str, Path]]:
    """Every file that the settings name, with its key, and those of further ingests."""
    for key, _, _ in keys():
        section, name = key.split(".")
        value = getattr(getattr(settings, section), name)
        if name.endswith("_file") and value is not None:
            yield key, value
    for number in range(2, settings.mqtt.ingests + 1):
        cert_file, key_file = settings.mqtt.certificate(number)
        yield f"mqtt.cert_file of ingest {number}", cert_file
        yield f"mqtt.key_file of ingest {number}", key_file


def _problems(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        where = ".".join(str(part) for part in problem["loc"])
        what = "unknown key" if problem["type"] == "extra_forbidden" else problem["msg"].lower()
        lines.append(f"  {where}: {what}")
    return "\n".join(lines)


def _refuse_unknown_environment() -> None:
    known = {
        ENV_PREFIX + key.replace(".", ENV_DELIMITER).upper() for key, _, _ in keys()
    } | NOT_SETTINGS
    unknown = sorted(
        name for name in os.environ if name.upper().startswith(ENV_PREFIX) and name not in known
    )
    if unknown:
        raise InputError(
            f"unknown setting(s) in the environment: {', '.join(unknown)}", code="config_invalid"
        )


NOT_SETTINGS: Final = frozenset({"FAJMA_CONFIG", "FAJMA_DATA"})
"""Environment variables of ours that are not settings: the settings file's place, test data."""


def _resolved(settings: Settings, base: Path) -> Settings:
    """Make every relative path relative to the settings file."""

    def fix(model: BaseModel) -> BaseModel:
        changes: dict[str, Any] = {}
        for name in type(model).model_fields:
            value = getattr(model, name)
            if isinstance(value, Path):
                changes[name] = base / value.expanduser()
            elif isinstance(value, BaseModel):
                changes[name] = fix(value)
        return model.model_copy(update=changes)

    return settings.model_copy(
        update={name: fix(getattr(settings, name)) for name in Settings.model_fields}
    )


def as_toml(values: Mapping[str, Mapping[str, Any]]) -> str:
    """Write settings (sections of plain values, paths and enums) as TOML."""
    lines: list[str] = []
    for section, entries in values.items():
        lines.append(f"[{section}]")
        for key, value in entries.items():
            if value is None:
                continue
            if isinstance(value, bool):
                text = str(value).lower()
            elif isinstance(value, int | float):
                text = str(value)
            else:
                # TOML's escapes are those of JSON, and it wants DEL escaped too.
                text = json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
            lines.append(f"{key} = {text}")
        lines.append("")
    return "\n".join(lines)
