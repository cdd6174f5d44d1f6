"""A clinic at work, as the end-to-end tests use it: patients, monitors, what a doctor has seen."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote

import aiohttp
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from console.clinic import DOCTOR, Clinic, follow
from console.observer import Observer, Seen
from console.processes import LOOPBACK, environment_without_proxies
from console.run import opened
from console.synapse import OPERATOR
from fajma.config import load, read_secret
from fajma.events import AlarmBlock, Vitals, VitalsBatch
from fajma.store.audit import Entry
from fajma.vitals import DeviceId, Kind
from fajma.wire import V1_TOPIC, encode_v1

SETTINGS: Final = {
    "publish": {"state_every_s": 1, "unwatched_state_every_s": 1, "batch_every_s": 1},
    "alarms": {"clear_dwell_s": 2},
    "people": {"look_every_s": 0.5, "rules_every_s": 0.5, "unsigned_after_s": 1},
}
"""As fast as the settings allow; the rules themselves are those of production."""


@dataclass(frozen=True, slots=True)
class Jitsi:
    """The site's Jitsi server, which is not there: its Prosody is played by a test."""

    domain: str
    token: str


JITSI: Final = Jitsi("meet.clinique.test", secrets.token_urlsafe(24))

PATIENCE_S: Final = 30.0
BOTS: Final = ("fajma", "fajma-vitals", "fajma-alerts")

Series = dict[Kind, list[tuple[int, Decimal]]]
"""By kind: (Unix milliseconds, value), in the order of arrival."""


@dataclass(frozen=True, slots=True)
class Bedside:
    """A patient in a consultation, wearing a monitor."""

    number: str
    initials: str
    bed: str
    device: DeviceId
    room_id: str
    patient: str
    clinicians: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sent:
    """One reading that the broker has taken."""

    at_ms: int
    values: Mapping[Kind, Decimal]


def values(heart_rate: str, spo2: str, temperature: str = "36.8") -> dict[Kind, Decimal]:
    """What a monitor sends."""
    return {
        Kind.HEART_RATE: Decimal(heart_rate),
        Kind.SPO2: Decimal(spo2),
        Kind.TEMPERATURE: Decimal(temperature),
    }


WELL: Final = values("72", "97")
BREATHLESS: Final = values("104", "86")


def series(sent: Iterable[Sent]) -> Series:
    """The same form as `Ward.published`."""
    found: Series = {}
    for one in sent:
        for kind, value in one.values.items():
            found.setdefault(kind, []).append((one.at_ms, value))
    return found


def milliseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def ledger(path: Path) -> list[Sent]:
    """What a simulated monitor has sent, from its log."""
    sent = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("{"):
            entry = json.loads(line, parse_float=Decimal)
            found = {Kind(kind): Decimal(value) for kind, value in entry["values"].items()}
            sent.append(Sent(entry["sent_at_ms"], found))
    return sent


def mark() -> str:
    """Letters that stand nowhere else, also fit for a name."""
    return "".join(secrets.choice("bcdfghjkmnpqrstvwxz") for _ in range(9))


class Monitor:
    """A monitor in the hand of a test: sends what it is told, says what the broker answered.

    Its clock starts now and gains a second with each reading, so that a minute of illness does
    not take a minute (a clock may be five minutes ahead).
    """

    def __init__(self, clinic: Clinic, device: DeviceId) -> None:
        self.device = device
        self.sent: list[Sent] = []
        self._clock_ms = time.time_ns() // 1_000_000
        self._loop = asyncio.get_running_loop()
        self._connected: asyncio.Future[ReasonCode] = self._loop.create_future()
        self._answers: dict[int, asyncio.Future[ReasonCode]] = {}
        self._port = clinic.options.ports.broker
        credentials = clinic.mosquitto.issue_device(device)
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=device, protocol=MQTTProtocolVersion.MQTTv5
        )
        self._client.tls_set(
            ca_certs=str(clinic.mosquitto.ca_file),
            certfile=str(credentials.cert_file),
            keyfile=str(credentials.key_file),
        )
        self._client.on_connect = self._on_connect
        self._client.on_publish = self._on_publish

    # Called by paho, in its thread.

    def _on_connect(self, _: Any, __: Any, ___: Any, reason: ReasonCode, ____: Any) -> None:
        def tell() -> None:
            if not self._connected.done():  # a reconnection
                self._connected.set_result(reason)

        self._loop.call_soon_threadsafe(tell)

    def _on_publish(self, _: Any, __: Any, mid: int, reason: ReasonCode, ___: Any) -> None:
        self._loop.call_soon_threadsafe(lambda: self._answers.pop(mid).set_result(reason))

    async def __aenter__(self) -> Self:
        self._client.connect_async(LOOPBACK, self._port)
        self._client.loop_start()
        async with asyncio.timeout(PATIENCE_S):
            assert not (await self._connected).is_failure
        return self

    async def __aexit__(self, *_: object) -> None:
        self._client.disconnect()
        await asyncio.to_thread(self._client.loop_stop)

    def now_ms(self) -> int:
        """The time of the next reading."""
        self._clock_ms += 1000
        return self._clock_ms

    async def publish(self, payload: bytes, topic: str | None = None) -> ReasonCode:
        """Send at QoS 1; what the broker answered."""
        where = topic or V1_TOPIC.format(device=self.device)
        mid = self._client.publish(where, payload, qos=1).mid
        # The answer is taken by the loop that we are in, so it cannot come before this line.
        answer: asyncio.Future[ReasonCode] = self._loop.create_future()
        self._answers[mid] = answer
        async with asyncio.timeout(PATIENCE_S):
            return await answer

    async def send(self, *readings: Mapping[Kind, Decimal]) -> None:
        """Send readings, a second apart by the monitor's clock."""
        for reading in readings:
            at_ms = self.now_ms()
            reason = await self.publish(encode_v1(self.device, at_ms, reading))
            assert not reason.is_failure
            self.sent.append(Sent(at_ms, reading))

    def catch_up(self) -> None:
        """Set the clock to now after a pause in a test: late readings raise no live alarm."""
        self._clock_ms = max(self._clock_ms, time.time_ns() // 1_000_000)


class Ward:
    """The clinic, and the one doctor who sees every consultation of the tests."""

    def __init__(self, clinic: Clinic, observer: Observer) -> None:
        self.clinic = clinic
        self.observer = observer
        self._beds = 0

    async def admit(self, *more_clinicians: str) -> Bedside:
        """A new patient with a monitor; returns once the doctor is in the room.

        Args:
            more_clinicians: user ids besides the doctor's.
        """
        self._beds += 1
        mark = secrets.token_hex(6).upper()
        clinicians = (self.clinic.mxid(DOCTOR), *more_clinicians)
        number, initials, bed = f"E-{mark}", "B.T.", str(self._beds)
        body = {
            "number": number,
            "initials": initials,
            "bed": bed,
            "clinicians": clinicians,
            "device": mark,
        }
        answer = await self.clinic.api("consultations", body)
        bedside = Bedside(
            number=number,
            initials=initials,
            bed=bed,
            device=DeviceId(mark),
            room_id=answer["room_id"],
            patient=answer["patient"],
            clinicians=clinicians,
        )
        await self.until(lambda: bedside.room_id in self.observer.client.rooms)
        return bedside

    def monitor(self, bedside: Bedside) -> Monitor:
        return Monitor(self.clinic, bedside.device)

    async def account(self, name: str) -> tuple[str, str, str]:
        """A new account: local part, user id, password."""
        localpart = f"{name}-{secrets.token_hex(4)}"
        password = secrets.token_urlsafe(12)
        return localpart, await self.clinic.synapse.register(localpart, password), password

    # What the doctor has seen. A client may be shown an event again; here each counts once.

    def events(self, room_id: str, observer: Observer | None = None) -> list[Seen]:
        found = {
            one.event_id: one
            for one in (observer or self.observer).seen
            if one.room_id == room_id
        }  # fmt: skip
        return list(found.values())

    def published(self, room_id: str) -> Series:
        """Every sample of every batch, without what is repeated for who comes later."""
        found: Series = {}
        for seen in self.events(room_id):
            if isinstance(seen.content, VitalsBatch) and not seen.content.history:
                for kind, samples in seen.content.samples.items():
                    found.setdefault(kind, []).extend(
                        (milliseconds(sample.measured_at), sample.value) for sample in samples
                    )
        return found

    def alarms(self, room_id: str, *states: str) -> list[Seen]:
        return [
            seen
            for seen in self.events(room_id)
            if isinstance(seen.content, AlarmBlock) and (not states or seen.content.state in states)
        ]

    async def until(self, condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
        """Wait for what the doctor's client learns with a sync."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                await self.observer.client.synced.wait()

    async def all_published(
        self, room_id: str, sent: Sequence[Sent], timeout_s: float = PATIENCE_S
    ) -> None:
        """Wait until the last reading is there, and see that each is, once, in order."""
        expected = series(sent)

        def is_there(_: Seen) -> bool:
            shown = self.published(room_id)
            return all(shown.get(kind, [])[-1:] == one[-1:] for kind, one in expected.items())

        await self.observer.wait_for(is_there, timeout_s)
        assert self.published(room_id) == expected

    async def alarm(self, room_id: str, *states: str, timeout_s: float = PATIENCE_S) -> Seen:
        """The first alarm message of such a state."""
        return await self.observer.wait_for(
            lambda one: (
                one.room_id == room_id
                and isinstance(one.content, AlarmBlock)
                and one.content.state in states
            ),
            timeout_s,
        )

    async def snapshot_of(
        self, room_id: str, at_ms: int, observer: Observer | None = None
    ) -> Vitals:
        """The first snapshot whose newest value is of that moment."""
        seen = await (observer or self.observer).wait_for(
            lambda one: (
                one.room_id == room_id
                and isinstance(one.content, Vitals)
                and at_ms
                in {milliseconds(value.measured_at) for value in one.content.latest.values()}
            ),
            PATIENCE_S,
        )
        assert isinstance(seen.content, Vitals)
        return seen.content

    # FAJMA's process and its log.

    async def kill_fajma(self) -> None:
        """``kill -9``, at once."""
        fajma = self.clinic.fajma
        assert fajma is not None
        os.kill(fajma.pid, signal.SIGKILL)
        await fajma.wait()
        self.clinic.fajma = None

    def log_mark(self) -> int:
        return self.clinic.fajma_log.stat().st_size

    async def log_says(self, event: str, since: int) -> None:
        """Wait for an event in FAJMA's log."""
        await log_says(self.clinic.fajma_log, event, since)

    def log_since(self, mark: int) -> list[dict[str, Any]]:
        with self.clinic.fajma_log.open("rb") as log:
            log.seek(mark)
            lines = log.read().decode().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    async def counts(self) -> dict[str, int]:
        """How many readings are stored, and refused by reason."""
        async with opened(load(self.clinic.config_path)) as records:
            stored = await records.readings.count()
            return {"stored": stored} | await records.quarantine.counts()

    async def counts_by_command(self) -> dict[str, int]:
        """The same from ``fajma readings count``, as an operator asks."""
        code, output = await fajma("readings", "count", "--config", str(self.clinic.config_path))
        assert code == 0, output
        lines = [line.rsplit(" ", 1) for line in output.splitlines()]
        return {
            name.removeprefix("refused "): int(count)
            for name, count in lines
            if name == "stored" or name.startswith("refused ")
        }

    # The homeserver, without a client between.

    async def matrix(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        token: str | None = None,
        as_user: str | None = None,
    ) -> tuple[int, dict[str, Any]]:
        """A plain request, by default as the doctor: status and answer."""
        url = f"{self.clinic.synapse.base_url}/_matrix/client/v3/{path}"
        headers = {"Authorization": f"Bearer {token or self.observer.client.access_token}"}
        query = {"user_id": as_user} if as_user else {}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.request(method, url, json=body, params=query) as response,
        ):
            return response.status, await response.json()

    async def join(self, bedside: Bedside, mxid: str) -> None:
        """A further clinician takes part in the consultation."""
        await self.clinic.api(
            "consultations",
            {
                "number": bedside.number,
                "initials": bedside.initials,
                "bed": bedside.bed,
                "clinicians": [*bedside.clinicians, mxid],
            },
        )

    async def invite(self, room_id: str, mxid: str) -> None:
        """What a homeserver can do without us: invite somebody in the name of ``@fajma``."""
        status, answer = await self.matrix(
            "POST",
            f"rooms/{quote(room_id)}/invite",
            {"user_id": mxid},
            token=self.clinic.synapse.as_token,
            as_user=self.clinic.mxid("fajma"),
        )
        assert status == 200, answer

    async def operate(self, path: str, **body: Any) -> dict[str, Any]:
        """The API with the operator's token, as the ``fajma`` command uses it."""
        return await self.clinic.api(path, body, by="operator-token")

    async def command(self, *arguments: str) -> tuple[int, str]:
        """A ``fajma`` command on this clinic's settings: exit code and all it prints."""
        return await fajma(*arguments, "--config", str(self.clinic.config_path))

    async def bot_keys(self) -> dict[str, Any]:
        """Devices and identities of our three senders, as everybody sees them."""
        bots: dict[str, list[str]] = {self.clinic.mxid(name): [] for name in BOTS}
        status, answer = await self.matrix("POST", "keys/query", {"device_keys": bots})
        assert status == 200
        return {name: answer[name] for name in ("device_keys", "master_keys", "self_signing_keys")}

    @asynccontextmanager
    async def client_of(
        self, localpart: str, password: str, *, recovery_key: Path | None = None
    ) -> AsyncIterator[Observer]:
        """A signed client of an account, following its rooms.

        Args:
            localpart: whose.
            password: of the account.
            recovery_key: of an account that has an identity already, which signs this device too.
        """
        directory = self.clinic.directory / "clients" / secrets.token_hex(4)
        directory.mkdir(parents=True, mode=0o700)
        if recovery_key is not None:
            shutil.copy(recovery_key, directory)  # with its mode
        observer = Observer(
            self.clinic.synapse.base_url, self.clinic.mxid(localpart), directory
        )  # fmt: skip
        try:
            await observer.start(password)
            yield observer
        finally:
            await observer.stop()

    async def admin(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """What only the homeserver's owner can do (Synapse's admin API): status and answer.

        Args:
            method: of the request.
            path: below ``/_synapse/admin/``.
            body: JSON.
        """
        secret = self.clinic.synapse.site.directory / "operator_password"
        password = read_secret(secret, purpose="operator's password")
        # A device of its own, so that the token of FAJMA's own login lives on.
        token = await self.clinic.synapse.login(OPERATOR, password, device_id="TESTS")
        url = f"{self.clinic.synapse.base_url}/_synapse/admin/{path}"
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session,
            session.request(method, url, json=body) as response,
        ):
            return response.status, await response.json()

    async def until_of(self, observer: Observer, condition: Callable[[], bool]) -> None:
        """Wait for what another client than the doctor's learns with a sync."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await observer.client.synced.wait()

    async def audit(self, actor: str) -> list[Entry]:
        """What the audit log says that somebody did or tried, oldest first."""
        async with opened(load(self.clinic.config_path)) as records:
            return [one for one in await records.audit.latest(limit=1000) if one.actor == actor]


async def fajma(*arguments: str) -> tuple[int, str]:
    """Run the ``fajma`` command: exit status, and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "console", *arguments),
        env=environment_without_proxies(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def log_says(log: Path, event: str, since: int) -> None:
    """Wait for an event in a log of ``fajma run``, from a byte on."""
    async with asyncio.timeout(PATIENCE_S):
        async for line in follow(log, since):
            if line.startswith("{") and json.loads(line).get("event") == event:
                return


async def lines_sent(path: Path, count: int) -> None:
    """Wait until a simulated monitor has sent so many readings."""
    found = 0
    async with asyncio.timeout(PATIENCE_S):
        async for line in follow(path):
            found += line.startswith("{")
            if found >= count:
                return
