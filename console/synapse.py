"""A Synapse of our configuration: its files, its process, its accounts.

The base is ``synapse-config/homeserver.yaml``; this module adds what belongs to one site. It
starts one homeserver on loopback for the demo, the tests and a small clinic, without federation.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib.util
import os
import re
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote

import aiohttp
import yaml

from console.files import base_file
from console.processes import (
    LOOPBACK,
    Child,
    environment_for_server,
    http_ok,
    require_port_free,
)
from fajma.config import read_secret
from fajma.errors import InputError, UnavailableError
from fajma.files import write_private
from fajma.language import DEFAULT_LANGUAGE, Language

REGISTRATION_FILE: Final = "fajma-registration.yaml"
OPERATOR: Final = "fajma-operator"
"""Local part of the admin account that `Synapse` makes for its own use."""

_SECRETS: Final = (
    "as_token",
    "hs_token",
    "registration_shared_secret",
    "macaroon_secret",
    "form_secret",
    "operator_password",
)
_OPERATOR_DEVICE: Final = "FAJMACONSOLE"
# Server names as in the Matrix specification, appendices, "Server Name"; lower case.
_SERVER_NAME: Final = re.compile(r"(?:[0-9a-z.-]{1,230}|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?")
_READY_WITHIN_S: Final = 90.0
_WRITTEN_BY_US: Final = "# Written by fajma at every start: changes here are lost.\n"


@dataclass(frozen=True, slots=True)
class Turn:
    """The relay for calls (docs/calls.md).

    Attributes:
        uris: as clients take them, e.g. ``turn:relay.clinic.example?transport=udp``.
        secret_file: what the homeserver shares with it, one line; readable by the homeserver alone.
    """

    uris: tuple[str, ...]
    secret_file: Path


@dataclass(frozen=True, slots=True)
class SynapseSite:
    """What belongs to one homeserver.

    Attributes:
        directory: configuration, secrets, database, media and log, all of it; mode 0700.
        server_name: the part after the colon of its user ids; fixed once the database exists.
        port: port of the client API on loopback, 1 to 65535.
        appservice_url: where the homeserver reaches our application service.
        room_version: of new rooms.
        database: ``"sqlite"``, or psycopg2's connection arguments (``host``, ``dbname``,
            ``user``, ...) for PostgreSQL.
        port_setting: what a person changes to choose another port, for messages.
        private_push: whether a push gateway on this machine may be reached (docs/push.md).
        language: of the names of the notices' room and sender, for rooms made from now on.
        turn: the relay whose credentials it gives out, if there is one.
    """

    directory: Path
    server_name: str
    port: int
    appservice_url: str
    room_version: str = "12"
    database: Literal["sqlite"] | Mapping[str, str | int] = "sqlite"
    port_setting: str = "the homeserver's port setting"
    private_push: bool = False
    language: Language = DEFAULT_LANGUAGE
    turn: Turn | None = None

    def __post_init__(self) -> None:
        if not _SERVER_NAME.fullmatch(self.server_name):
            raise InputError(
                "the homeserver's name must be a host name, with a port if it needs one, "
                "for example matrix.clinic.example",
                code="bad_server_name",
            )

    @property
    def base_url(self) -> str:
        """Where clients reach it, without a slash at the end."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def config_path(self) -> Path:
        """The rendered homeserver.yaml."""
        return self.directory / "homeserver.yaml"

    @property
    def log_path(self) -> Path:
        """Its log; rotated ones stand beside it."""
        return self.directory / "homeserver.log"

    @property
    def as_token_file(self) -> Path:
        """Secret with which the application service speaks to the homeserver."""
        return self.directory / "as_token"

    @property
    def hs_token_file(self) -> Path:
        """Secret with which the homeserver speaks to the application service."""
        return self.directory / "hs_token"

    def mxid(self, localpart: str) -> str:
        """Full user id, e.g. ``@fajma:matrix.clinic.example``."""
        return f"@{localpart}:{self.server_name}"


def render(site: SynapseSite) -> None:
    """Write every file the homeserver needs, mode 0600; secrets are made once and kept.

    The same site gives the same bytes each time.
    """
    site.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    site.directory.chmod(0o700)
    for name in _SECRETS:
        _keep_secret(site.directory / name, secrets.token_urlsafe(32))
    # Signing keys are one line: algorithm, version, unpadded base64 of the seed.
    seed = base64.b64encode(os.urandom(32)).decode().rstrip("=")
    _keep_secret(site.directory / "signing.key", f"ed25519 a_{secrets.token_hex(2)} {seed}\n")
    _write_yaml(site.directory / REGISTRATION_FILE, _registration(site))
    _write_yaml(site.directory / "log.yaml", _log(site))
    _write_yaml(site.config_path, _homeserver(site))


def _homeserver(site: SynapseSite) -> dict[str, Any]:
    directory = site.directory.absolute()
    config = _base("homeserver.yaml")
    config |= {
        "server_name": site.server_name,
        "public_baseurl": f"{site.base_url}/",
        "default_room_version": site.room_version,
        "listeners": [
            {
                "type": "http",
                "port": site.port,
                "bind_addresses": [LOOPBACK],
                "tls": False,
                # What a phone pays for: ciphertext is base64, of which gzip takes back a quarter.
                "resources": [{"names": ["client", "openid"], "compress": True}],
            }
        ],
        "database": _database(site, directory),
        "app_service_config_files": [str(directory / REGISTRATION_FILE)],
        "log_config": str(directory / "log.yaml"),
        "media_store_path": str(directory / "media"),
        "signing_key_path": str(directory / "signing.key"),
        "registration_shared_secret_path": str(directory / "registration_shared_secret"),
        "macaroon_secret_key_path": str(directory / "macaroon_secret"),
        "form_secret_path": str(directory / "form_secret"),
    }
    if site.language is Language.ENGLISH:
        config["server_notices"] |= {
            "system_mxid_display_name": "FAJMA notices",
            "room_name": "FAJMA notices",
        }
    if site.turn is not None:
        config |= {
            "turn_uris": list(site.turn.uris),
            "turn_shared_secret_path": str(site.turn.secret_file.absolute()),
            "turn_user_lifetime": "1h",
        }
    if site.private_push:
        # Synapse itself keeps pushers, which users choose, away from every inner address.
        config["ip_range_whitelist"] = [f"{LOOPBACK}/32"]
    return config


def _database(site: SynapseSite, directory: Path) -> dict[str, Any]:
    if site.database == "sqlite":
        return {"name": "sqlite3", "args": {"database": str(directory / "homeserver.db")}}
    return {"name": "psycopg2", "args": {"cp_min": 2, "cp_max": 10, **site.database}}


def _registration(site: SynapseSite) -> dict[str, Any]:
    registration = _base("appservice.yaml")
    registration["url"] = site.appservice_url
    for name, path in (("as_token", site.as_token_file), ("hs_token", site.hs_token_file)):
        registration[name] = read_secret(path, purpose=f"application service's {name}")
    # Nobody else may have these names; @fajma-alerts is an ordinary account and not among them.
    ours = rf"^@fajma(-vitals|-as)?:{re.escape(site.server_name)}$"
    registration["namespaces"]["users"] = [{"exclusive": True, "regex": ours}]
    return registration


def _log(site: SynapseSite) -> dict[str, Any]:
    log = _base("log.yaml")
    log["handlers"]["file"]["filename"] = str(site.log_path.absolute())
    return log


def _base(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(base_file(name))
    return content


def _write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    text = yaml.safe_dump(dict(content), sort_keys=True, allow_unicode=True)
    write_private(path, _WRITTEN_BY_US + text)


def _keep_secret(path: Path, fresh: str) -> None:
    if not path.exists():
        write_private(path, fresh)


class Synapse:
    """One homeserver process, and what only its operator may do. Usable from any event loop."""

    def __init__(self, site: SynapseSite) -> None:
        self.site = site
        self._child: Child | None = None

    @property
    def base_url(self) -> str:
        """Where clients reach it, without a slash at the end."""
        return self.site.base_url

    @property
    def pid(self) -> int | None:
        """Process id while it is started."""
        return None if self._child is None else self._child.pid

    @property
    def as_token(self) -> str:
        """The application service's token (a secret)."""
        return read_secret(self.site.as_token_file, purpose="application service's as_token")

    async def start(self) -> None:
        """Write its files, start it and wait until it answers (about 8 s, more the first time).

        Raises:
            UnavailableError: Synapse is not installed, the port is taken, or it ended at once.
        """
        if importlib.util.find_spec("synapse") is None:
            raise UnavailableError(
                "Synapse is not installed: install FAJMA with its `demo` extra",
                code="program_missing",
            )
        require_port_free(self.site.port, self.site.port_setting)
        render(self.site)
        # Through a proxy it would not reach an application service on this machine.
        child = Child.start(
            [sys.executable, "-m", "synapse.app.homeserver", "-c", str(self.site.config_path)],
            env=environment_for_server(),
            log_path=self.site.log_path,
            name="Synapse",
        )
        self._child = await child.serving(http_ok(f"{self.base_url}/health"), _READY_WITHIN_S)

    async def stop(self) -> None:
        """End it. Does nothing if it is not started."""
        if self._child is not None:
            await self._child.stop()
            self._child = None

    async def register(
        self, localpart: str, password: str, *, admin: bool = False, displayname: str | None = None
    ) -> str:
        """Make an account, or leave it alone if it exists (also its password and name).

        Args:
            localpart: lower case, e.g. ``dr.diallo``.
            password: its password if the account is new.
            admin: whether it may use the admin API.
            displayname: what others see; the local part if not given.

        Returns:
            Its user id.

        Raises:
            InputError: the homeserver refuses the name or the password.
            UnavailableError: the homeserver does not answer.
        """
        path = "/_synapse/admin/v1/register"
        _, answer = await self._call("GET", path)
        shared_secret = read_secret(
            self.site.directory / "registration_shared_secret", purpose="registration secret"
        )
        parts = (answer["nonce"], localpart, password, "admin" if admin else "notadmin")
        # HMAC-SHA1 over these parts is what Synapse's admin API asks for.
        mac = hmac.new(shared_secret.encode(), "\0".join(parts).encode(), hashlib.sha1)
        body = {
            "nonce": answer["nonce"],
            "username": localpart,
            "password": password,
            "admin": admin,
            "mac": mac.hexdigest(),
        }
        if displayname is not None:
            body["displayname"] = displayname
        status, answer = await self._call("POST", path, body)
        if status != 200 and answer.get("errcode") != "M_USER_IN_USE":  # noqa: PLR2004
            raise _refusal(f"the account {localpart}", answer)
        return self.site.mxid(localpart)

    async def login(self, localpart: str, password: str, *, device_id: str | None = None) -> str:
        """Log in with a password.

        Args:
            localpart: whose account.
            password: its password.
            device_id: to take the place of an earlier login; a new device if not given.

        Returns:
            An access token (a secret).

        Raises:
            InputError: the homeserver refuses, for example because the password is wrong.
            UnavailableError: the homeserver does not answer.
        """
        body: dict[str, Any] = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": localpart},
            "password": password,
            "initial_device_display_name": "FAJMA",
        }
        if device_id is not None:
            body["device_id"] = device_id
        status, answer = await self._call("POST", "/_matrix/client/v3/login", body)
        if status != 200:  # noqa: PLR2004
            raise _refusal(f"the login of {localpart}", answer)
        token: str = answer["access_token"]
        return token

    async def exempt_from_rate_limits(self, mxid: str) -> None:
        """Let an account (the alert bot's) send as fast as it needs.

        Raises:
            InputError: there is no such account here.
            UnavailableError: the homeserver does not answer.
        """
        password = read_secret(
            self.site.directory / "operator_password", purpose="operator's password"
        )
        await self.register(OPERATOR, password, admin=True, displayname="FAJMA operator")
        token = await self.login(OPERATOR, password, device_id=_OPERATOR_DEVICE)
        path = f"/_synapse/admin/v1/users/{quote(mxid, safe='')}/override_ratelimit"
        status, answer = await self._call(
            "POST", path, {"messages_per_second": 0, "burst_count": 0}, token=token
        )
        # An admin's token is not left alive.
        await self._call("POST", "/_matrix/client/v3/logout", {}, token=token)
        if status != 200:  # noqa: PLR2004
            raise _refusal(f"the exemption of {mxid}", answer)

    async def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, token: str = ""
    ) -> tuple[int, dict[str, Any]]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        timeout = aiohttp.ClientTimeout(total=30)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
                session.request(
                    method, f"{self.base_url}{path}", json=None if body is None else dict(body)
                ) as response,
            ):
                return response.status, await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise UnavailableError(
                f"the homeserver at {self.base_url} does not answer: see {self.site.log_path}",
                code="homeserver_unreachable",
            ) from error


def _refusal(what: str, answer: Mapping[str, Any]) -> InputError:
    reason = answer.get("error") or answer.get("errcode") or "no reason given"
    return InputError(f"the homeserver refuses {what}: {reason}", code="homeserver_refused")
