"""A whole small clinic on this machine: homeserver, broker, FAJMA, accounts, monitors.

``make demo``, the demo check, the end-to-end tests and the benchmarks all live in one of these.
Everything it writes is under one directory; starting again in the same directory resumes with the
same accounts, devices and rooms.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TextIO

import aiohttp

from console.files import only_here
from console.mosquitto import Mosquitto
from console.pki import ensure_ca, issue_bridge, issue_device, issue_server
from console.processes import (
    LOOPBACK,
    Child,
    environment_without_proxies,
    free_port,
    require_port_free,
)
from console.synapse import OPERATOR, Synapse, SynapseSite, Turn
from fajma.config import as_toml, read_secret
from fajma.errors import InputError, UnavailableError
from fajma.files import write_private
from fajma.language import Language
from fajma.sealing import generate_site_key
from fajma.wire import V1_TOPIC

SERVER_NAME: Final = "clinique.test"
READY_WITHIN_S: Final = 60.0

SPLIT: Final[Mapping[str, Sequence[str]]] = {
    "ingest": ("ingest", "--number", "1"),
    "appservice": ("appservice",),
    "alerts": ("alerts",),
    "alerts-standby": ("alerts",),
}
"""The processes of a split FAJMA by name, in the order of their start: arguments of ``fajma run``.

Which of the two ``alerts`` does the work is for them to say.
"""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the servers listen on loopback."""

    homeserver: int = 18008
    broker: int = 18883
    appservice: int = 29330
    element: int = 18080

    @classmethod
    def free(cls) -> Ports:
        """Ports that nobody uses at this moment."""
        return cls(free_port(), free_port(), free_port(), free_port())


@dataclass(frozen=True, slots=True)
class Patient:
    """A patient of the demo."""

    number: str
    initials: str
    bed: str
    account: str
    device: str
    scenario: str


PATIENTS: Final = (
    Patient("D-0001", "A.D.", "4", "patient.a", "A4CF12F03B7E", "desaturation"),
    Patient("D-0002", "M.K.", "7", "patient.m", "A4CF12F03B80", "normal"),
)
DOCTOR: Final = "dr.awa"
WITNESS: Final = "veille"
"""A clinician whose client is the terminal of the demo, so that the doctor's own account stays
untouched until a person logs in with it."""

WARD: Final = "medecine"
SPARE_DEVICE: Final = "A4CF12F0FFFF"
"""For readings that a person sends by hand: the first patient wears it meanwhile, and no longer,
for a monitor that sends nothing is an alarm."""


@dataclass(frozen=True, slots=True)
class Options:
    """What may differ between two clinics.

    Attributes:
        directory: everything is in here.
        ports: where the servers listen.
        broker: Mosquitto, the broker inside FAJMA, or whichever is at hand.
        settings: sections and keys that differ from the defaults, e.g. ``{"publish": {...}}``.
        database_url: FAJMA's database; SQLite in the directory where ``None``.
        private_push: whether the homeserver may push to a gateway on this machine.
        split: whether FAJMA runs as several processes, which needs a PostgreSQL.
        command: the module that is the `fajma` command; a test may put another in its place.
        turn: the relay for calls.
        v2: whether the first patient's monitor is one of our own firmware, which needs Mosquitto.
        ready_within_s: how long FAJMA may take to start; longer with many consultations.
    """

    directory: Path
    ports: Ports = field(default_factory=Ports)
    broker: Literal["auto", "mosquitto", "embedded"] = "auto"
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    database_url: str | None = None
    private_push: bool = False
    split: bool = False
    command: str = "console"
    turn: Turn | None = None
    v2: bool = False
    ready_within_s: float = READY_WITHIN_S


class Clinic:
    """Starts, connects and stops the parts.

    Attributes:
        rooms: room id by patient number, once consultations are open.
        ward_room: room id of the ward's team, once it is open.
        on_duty: who was on duty there when it was opened.
        synapse: the homeserver.
        fajma: ``fajma run``, where it is one process.
        processes: those of a split FAJMA that run, by their names in ``SPLIT``.
    """

    def __init__(self, options: Options, *, report: Callable[[str], None] = lambda _: None) -> None:
        self.options = options
        self.directory = options.directory.absolute()
        self.rooms: dict[str, str] = {}
        self.ward_room: str | None = None
        self.on_duty: tuple[str, ...] = ()
        self._report = report
        self._pki = self.directory / "mosquitto" / "pki"
        self.secrets_directory = self.directory / "secrets"
        self.synapse = Synapse(
            SynapseSite(
                directory=self.directory / "synapse",
                server_name=SERVER_NAME,
                port=options.ports.homeserver,
                appservice_url=f"http://{LOOPBACK}:{options.ports.appservice}",
                port_setting="--homeserver-port",
                private_push=options.private_push,
                turn=options.turn,
                language=Language(options.settings.get("site", {}).get("language", "fr")),
            )
        )
        self.uses_mosquitto = options.broker == "mosquitto" or (
            options.broker == "auto" and _mosquitto_is_installed()
        )
        self.mosquitto = Mosquitto(
            self.directory / "mosquitto", options.ports.broker, port_setting="--broker-port"
        )
        self.fajma: Child | None = None
        self.processes: dict[str, Child] = {}
        self._lock: TextIO | None = None
        self._monitors: list[Child] = []

    @property
    def config_path(self) -> Path:
        """The settings file of ``fajma run``."""
        return self.directory / "fajma.toml"

    @property
    def fajma_log(self) -> Path:
        """The log of ``fajma run``."""
        return self.directory / "fajma.log"

    def password(self, account: str) -> str:
        """The password of one of our accounts, made when first asked for."""
        path = self.secrets_directory / f"password-{account}"
        if not path.exists():
            self.secrets_directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_private(path, secrets.token_urlsafe(9))
        return read_secret(path, purpose=f"password of {account}")

    def mxid(self, account: str) -> str:
        """Full user id of an account."""
        return self.synapse.site.mxid(account)

    async def start(self) -> None:
        """Start servers and FAJMA, and have the accounts.

        Raises:
            FajmaError: a port in use, a missing program, a failed start: one clear line.
        """
        if self.options.v2 and not self.uses_mosquitto:
            raise InputError(
                "a v2 monitor speaks MQTT 5, which the broker inside FAJMA does not: install "
                "Mosquitto with `apt-get install mosquitto`",
                code="v2_needs_mosquitto",
            )
        require_port_free(self.options.ports.appservice, "--appservice-port")
        require_port_free(self.options.ports.broker, "--broker-port")
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = only_here(self.directory)
        try:
            self._report("homeserver")
            await self.synapse.start()
            self._report("accounts")
            await self._have_accounts()
            self._report("broker")
            await self._start_broker()
            self._report("fajma")
            await self.start_fajma()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop every process that was started, monitors first."""
        for monitor in self._monitors:
            await monitor.stop()
        self._monitors.clear()
        await self.stop_fajma()
        await self.mosquitto.stop()
        await self.synapse.stop()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def _have_accounts(self) -> None:
        people = {
            DOCTOR: "Dr Awa",
            WITNESS: "Veille",
            **{one.account: f"Patient {one.initials}" for one in PATIENTS},
        }
        for account, name in people.items():
            await self.synapse.register(account, self.password(account), displayname=name)
        bot = await self.synapse.register(
            "fajma-alerts", self.password("fajma-alerts"), displayname="FAJMA alarmes"
        )
        await self.synapse.exempt_from_rate_limits(bot)

    async def _start_broker(self) -> None:
        if self.uses_mosquitto:
            await self.mosquitto.start()
        else:
            self._pki.mkdir(parents=True, exist_ok=True, mode=0o700)
            ensure_ca(self._pki)

    def write_settings(self) -> None:
        """Write ``fajma.toml`` and the secrets that it names."""
        site = self.synapse.site
        site_key = self.secrets_directory / "site-key"
        api_token = self.secrets_directory / "api-token"
        operator_token = self.secrets_directory / "operator-token"
        for path, fresh in (
            (site_key, generate_site_key()),
            (api_token, secrets.token_urlsafe(32)),
            (operator_token, secrets.token_urlsafe(32)),
        ):
            if not path.exists():
                write_private(path, fresh)
        bridge = issue_bridge(self._pki)
        server = issue_server(self._pki, ["localhost", LOOPBACK])
        ports = self.options.ports
        sections: dict[str, dict[str, Any]] = {
            "homeserver": {
                "url": site.base_url,
                "server_name": site.server_name,
                "as_token_file": site.as_token_file,
                "hs_token_file": site.hs_token_file,
                "listen_port": ports.appservice,
                "admin_account": OPERATOR,
                "admin_password_file": site.directory / "operator_password",
            },
            "database": {
                "url": self.options.database_url or f"sqlite:///{self.directory / 'fajma.db'}"
            },
            "secrets": {
                "directory": self.secrets_directory,
                "site_key_file": site_key,
                "api_token_file": api_token,
                "operator_token_file": operator_token,
                "alert_bot_password_file": self.secrets_directory / "password-fajma-alerts",
            },
            "mqtt": {
                "port": ports.broker,
                "ca_file": self._pki / "ca.crt",
                "cert_file": bridge.cert_file,
                "key_file": bridge.key_file,
                "embedded": not self.uses_mosquitto,
                "server_cert_file": server.cert_file,
                "server_key_file": server.key_file,
            },
        }
        for section, values in self.options.settings.items():
            sections.setdefault(section, {}).update(values)
        write_private(self.config_path, as_toml(sections))

    async def start_fajma(self) -> None:
        """Start ``fajma run`` and wait until every part of it works."""
        self.write_settings()
        if not self.options.split:
            self.fajma = await self._started_fajma("FAJMA", self.fajma_log)
            return
        for name in SPLIT:
            await self.start_process(name)

    async def start_process(self, name: str) -> None:
        """Start one process of a split FAJMA and wait until it works, or waits for its turn."""
        self.processes[name] = await self._started_fajma(
            f"FAJMA {name}", self.process_log(name), *SPLIT[name]
        )

    def process_log(self, name: str) -> Path:
        """The log of one process of a split FAJMA."""
        return self.directory / f"fajma-{name}.log"

    async def _started_fajma(self, name: str, log_path: Path, *role: str) -> Child:
        start = _size(log_path)
        child = Child.start(
            [
                *(sys.executable, "-m", self.options.command, "run", *role),
                *("--config", str(self.config_path)),
            ],
            env=environment_without_proxies(),
            log_path=log_path,
            name=name,
        )
        works = {"ready", "standby"} if role else {"ready"}
        probe = self._says(log_path, works, start)
        return await child.serving(probe, self.options.ready_within_s)

    async def stop_fajma(self) -> None:
        """Stop ``fajma run``, a standby before whom it would follow."""
        if self.fajma is not None:
            await self.fajma.stop()
            self.fajma = None
        while self.processes:
            _, process = self.processes.popitem()
            await process.stop()

    async def _says(self, path: Path, events: Collection[str], start: int) -> None:
        async for line in follow(path, start):
            with contextlib.suppress(ValueError):
                if json.loads(line).get("event") in events:
                    return

    async def open_consultations(self, clinicians: tuple[str, ...] = (DOCTOR,)) -> None:
        """One consultation for each patient, with the monitor linked; nothing if they exist.

        Raises:
            UnavailableError: a clinician of this clinic has left it (``clinician_left``).
        """
        for patient in PATIENTS:
            body = {
                "number": patient.number,
                "initials": patient.initials,
                "bed": patient.bed,
                "clinicians": [self.mxid(account) for account in clinicians],
                "patient_account": self.mxid(patient.account),
                "device": patient.device,
            }
            answer = await self.api("consultations", body)
            self.rooms[patient.number] = answer["room_id"]

    async def open_ward(self, names: Mapping[str, str]) -> None:
        """A ward with its team room, and these people in it; nothing if they exist.

        Args:
            names: by local part of the account, which is there already.
        """
        ward = await self.api("wards", {"name": WARD}, by="operator-token")
        self.ward_room = ward["room_id"]
        self.on_duty = tuple(ward["on_duty"])
        for account, name in names.items():
            body = {
                "who": account,
                "name": name,
                "role": "doctor",
                "ward": WARD,
                "existing": True,
            }
            try:
                await self.api("staff", body, by="operator-token")
            except UnavailableError as error:
                if error.code != "staff_exists":
                    raise

    async def api(
        self, path: str, body: Mapping[str, Any], *, by: str = "api-token"
    ) -> dict[str, Any]:
        """Call our REST API.

        Args:
            path: below ``/fajma/v1/``.
            body: JSON.
            by: name of the secret to show: ``api-token`` or ``operator-token``.

        Raises:
            UnavailableError: it refuses or does not answer.
        """
        token = read_secret(self.secrets_directory / by, purpose="API token")
        url = f"http://{LOOPBACK}:{self.options.ports.appservice}/fajma/v1/{path}"
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session,
            session.post(url, json=dict(body)) as response,
        ):
            answer: dict[str, Any] = await response.json()
            if response.status != 200:  # noqa: PLR2004
                raise UnavailableError(
                    f"the API refuses: {answer.get('detail')}", code=str(answer.get("code"))
                )
            return answer

    def device_arguments(self, device: str) -> list[str]:
        """Arguments of ``fajma device simulate`` that connect this monitor to the broker."""
        credentials = issue_device(self._pki, device)
        return [
            *("--device", device, "--host", LOOPBACK, "--port", str(self.options.ports.broker)),
            *("--ca", str(self._pki / "ca.crt")),
            *("--cert", str(credentials.cert_file), "--key", str(credentials.key_file)),
        ]

    def start_monitor(self, device: str, *arguments: str) -> Child:
        """Start a simulated monitor; what it sends stands in its log, a JSON line each."""
        log_path = self.directory / f"monitor-{device}.log"
        log_path.unlink(missing_ok=True)
        child = Child.start(
            [
                *(sys.executable, "-m", "console", "device", "simulate"),
                *self.device_arguments(device),
                *arguments,
            ],
            env=environment_without_proxies(),
            log_path=log_path,
            name=f"monitor {device}",
        )
        self._monitors.append(child)
        return child

    async def start_worn_monitor(self, patient: Patient, *arguments: str) -> Child:
        """Start the monitor of a patient with its scenario."""
        if self.options.v2 and patient is PATIENTS[0]:
            arguments = (*arguments, *await self._v2_arguments(patient.device))
        return self.start_monitor(patient.device, "--scenario", patient.scenario, *arguments)

    async def _v2_arguments(self, device: str) -> list[str]:
        """What makes a v2 monitor of one; its keys are made if it has none yet."""
        keys = self.secrets_directory / f"keys-{device}.json"
        if not keys.exists():
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "console", "device", "keys", device),
                *("--out", str(keys), "--config", str(self.config_path)),
                env=environment_without_proxies(),
                stdout=asyncio.subprocess.DEVNULL,
            )
            if await process.wait() != 0:
                raise UnavailableError("`fajma device keys` failed", code="no_device_keys")
        journal = self.directory / f"journal-{device}"
        return ["--format", "v2", "--keys", str(keys), "--journal", str(journal)]

    def publish_command(self, device: str, payload: str) -> str:
        """A ``mosquitto_pub`` line that sends one reading by hand."""
        return self.mosquitto.publish_command(device, V1_TOPIC.format(device=device), payload)


async def follow(path: Path, start: int = 0) -> AsyncIterator[str]:
    """Complete lines of a growing file, for ever."""
    while not os.path.exists(path):  # noqa: ASYNC110, ASYNC240, PTH110 - no event tells of a file
        await asyncio.sleep(0.05)
    with path.open(encoding="utf-8", errors="replace") as file:
        file.seek(start)
        partial = ""
        while True:
            text = partial + file.read()
            *lines, partial = text.split("\n")
            for line in lines:
                yield line
            if not lines:
                await asyncio.sleep(0.05)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _mosquitto_is_installed() -> bool:
    return (
        shutil.which("mosquitto", path="/usr/local/sbin:/usr/sbin:/usr/bin:/usr/local/bin")
        is not None
    )
