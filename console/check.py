"""Judges a running clinic from outside: what ``make demo-check`` does.

The judge is a doctor with a Matrix client of his own, the homeserver's files, and the ledger of
what the monitors sent. It believes no log line of FAJMA.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import aiohttp

from console.clinic import DOCTOR, PATIENTS, WITNESS, Clinic, Options
from console.leak_scan import Canary, Leak, Needle, canaries, must_find, scan
from console.observer import Observer, Seen
from console.processes import environment_without_proxies
from fajma.errors import FajmaError, UnavailableError
from fajma.events import ENCRYPTED, VITALS, AlarmBlock, Vitals, VitalsBatch
from fajma.trust import signed_devices
from fajma.vitals import Kind

SPEED: Final = 10
COUNT: Final = 36
"""Readings of each monitor: normal, SpO2 under 90, recovered, and the dwell after it."""

SETTINGS: Final = {
    "publish": {"state_every_s": 2, "unwatched_state_every_s": 2, "batch_every_s": 2},
    "alarms": {"clear_dwell_s": 2},
}
PATIENT: Final = PATIENTS[0]


@dataclass(frozen=True, slots=True)
class Check:
    """One judgement.

    Attributes:
        name: stable identifier.
        passed: whether it holds.
        figure: what was measured, with its unit in ``unit``; ``None`` if there is nothing to count.
        detail: one line for people; no values of vitals.
    """

    name: str
    passed: bool
    figure: float | None
    unit: str
    detail: str


@dataclass(frozen=True, slots=True)
class Sent:
    """One line of a monitor's ledger."""

    at_ms: int
    values: Mapping[Kind, Decimal]


class Judge:
    """Runs the scenario in a fresh clinic and judges it."""

    def __init__(
        self,
        options: Options,
        *,
        report: Callable[[str], None] = lambda _: None,
        judged: Callable[[Check], None] = lambda _: None,
    ) -> None:
        self.clinic = Clinic(options, report=report)
        self._report = report
        self._judged = judged
        self.checks: list[Check] = []
        self._observer = Observer(
            self.clinic.synapse.base_url,
            self.clinic.mxid(DOCTOR),
            self.clinic.directory / "observer",
        )
        self._sent: dict[str, list[Sent]] = {}
        self._needles: list[Needle] = []

    async def run(self) -> bool:
        """Everything from the start of the servers to the verdict; whether all checks passed."""
        started = time.time()
        await self.clinic.start()
        try:
            await self._observer.start(self.clinic.password(DOCTOR))
            self._report("scenario")
            await self._play()
            for check in (
                self._first_vital(started),
                await self._room_encrypted(),
                self._bots(await self._signed_devices()),
                await self._counted(),
                await self._state_decrypts(),
                self._batches_complete(),
                *self._alarm(),
                self._recovery(),
                self._only_trusted(),
            ):
                self._note(check)
            self._report("scan")
            self._note(await self._homeserver_blind())
            self._note(self._own_files_sealed())
            if self.clinic.options.v2:
                self._note(self._broker_blind())
        finally:
            await self._observer.stop()
            await self.clinic.stop()
        return all(check.passed for check in self.checks)

    def _note(self, check: Check) -> None:
        self.checks.append(check)
        self._judged(check)

    async def _play(self) -> None:
        await self.clinic.open_consultations()
        monitors = {
            patient: await self.clinic.start_worn_monitor(
                patient, *("--speed", str(SPEED), "--count", str(COUNT), "--distinctive")
            )
            for patient in PATIENTS
        }
        for patient, monitor in monitors.items():
            async with asyncio.timeout(120):
                if await monitor.wait() != 0:
                    raise UnavailableError(
                        f"the monitor of bed {patient.bed} failed; its log is {monitor.log_path}",
                        code="monitor_failed",
                    )
            self._sent[patient.device] = _ledger(monitor.log_path)
        total = sum(len(sent) for sent in self._sent.values())
        deadline = time.monotonic() + 30
        while len(self._published()) < total and time.monotonic() < deadline:
            await _any_event(self._observer, deadline - time.monotonic())
        await _quietly(
            self._observer.wait_for(lambda one: _is_alarm(one, "recovered"), timeout_s=15)
        )
        await _quietly(
            self._observer.wait_for(
                lambda one: (
                    isinstance(one.content, Vitals)
                    and one.room_id == self.clinic.rooms[PATIENT.number]
                    and _newest(one.content) == self._last_sent_ms(PATIENT.device)
                ),
                timeout_s=15,
            )
        )
        for device, sent in self._sent.items():
            self._needles += (
                Needle.for_number(value, label=f"{kind} {number} of {device}")
                for number, one in enumerate(sent)
                for kind, value in one.values.items()
            )

    def _last_sent_ms(self, device: str) -> int:
        return self._sent[device][-1].at_ms

    def _published(self) -> list[tuple[str, int]]:
        """(room, time) of each heart rate in a batch: one per reading."""
        return [
            (seen.room_id, _ms(sample.measured_at))
            for seen in self._observer.seen
            if isinstance(seen.content, VitalsBatch) and not seen.content.history
            for sample in seen.content.samples.get(Kind.HEART_RATE, ())
        ]

    def _first_vital(self, started: float) -> Check:
        first = next(
            (one for one in self._observer.seen if isinstance(one.content, Vitals | VitalsBatch)),
            None,
        )
        seconds = round(first.at - started, 2) if first else None
        return Check(
            "first_decrypted_vital",
            first is not None,
            seconds,
            "s",
            "from the start of the servers",
        )

    async def _room_encrypted(self) -> Check:
        good = 0
        plain = 0
        for room_id in self.clinic.rooms.values():
            events = await self._observer.room_state(room_id)
            plain += sum(str(event["type"]).startswith("com.fajma.") for event in events)
            good += any(
                event["type"] == "m.room.encryption"
                and event["content"].get("algorithm") == "m.megolm.v1.aes-sha2"
                and event["content"].get("io.element.msc4362.encrypt_state_events") is True
                for event in events
            )
            good += any(
                event["type"] == ENCRYPTED and event["state_key"].startswith(f"{VITALS}:")
                for event in events
            )
        return Check(
            "rooms_encrypted_with_encrypted_state",
            good == 2 * len(PATIENTS) and plain == 0,
            len(self.clinic.rooms),
            "rooms",
            f"{plain} of our state events in clear",
        )

    async def _signed_devices(self) -> tuple[int, int]:
        bots = [self.clinic.mxid(name) for name in ("fajma", "fajma-vitals", "fajma-alerts")]
        answer = await self._matrix(
            "POST", "keys/query", {"device_keys": {mxid: [] for mxid in bots}}
        )
        identities = signed_devices(answer)
        signed = sum(len(identities[mxid].devices) for mxid in bots if mxid in identities)
        return signed, sum(len(answer["device_keys"].get(mxid, {})) for mxid in bots)

    def _bots(self, devices: tuple[int, int]) -> Check:
        signed, existing = devices
        return Check(
            "bots_cross_signed",
            signed == existing == 3,  # noqa: PLR2004 - three senders, a device each
            signed,
            "devices",
            f"of {existing} devices of our three senders",
        )

    async def _counted(self) -> Check:
        sent = sum(len(one) for one in self._sent.values())
        counted = await _fajma("readings", "count", "--config", str(self.clinic.config_path))
        stored = int(counted.splitlines()[0].removeprefix("stored "))
        published = len(self._published())
        return Check(
            "readings_sent_stored_published",
            sent == stored == published and "refused" not in counted,
            stored,
            "readings",
            f"{sent} sent, {stored} stored, {published} published",
        )

    async def _state_decrypts(self) -> Check:
        wrong = 0
        for patient in PATIENTS:
            try:
                vitals = await self._observer.vitals(self.clinic.rooms[patient.number])
            except FajmaError:
                wrong += 1
                continue
            last = self._sent[patient.device][-1]
            shown = {kind: one.value for kind, one in vitals.latest.items()}
            times = {_ms(one.measured_at) for one in vitals.latest.values()}
            wrong += shown != dict(last.values) or times != {last.at_ms}
        return Check(
            "vitals_state_decrypts_to_what_was_sent",
            wrong == 0,
            len(PATIENTS) - wrong,
            "rooms",
            "the last reading of each monitor, its values and its time, and nothing else",
        )

    def _batches_complete(self) -> Check:
        wrong = 0
        for patient in PATIENTS:
            room_id = self.clinic.rooms[patient.number]
            shown: dict[Kind, list[tuple[int, Decimal]]] = {}
            for seen in self._observer.seen:
                if seen.room_id != room_id or not isinstance(seen.content, VitalsBatch):
                    continue
                if not seen.content.history:
                    for kind, samples in seen.content.samples.items():
                        shown.setdefault(kind, []).extend(
                            (_ms(sample.measured_at), sample.value) for sample in samples
                        )
            expected: dict[Kind, list[tuple[int, Decimal]]] = {}
            for one in self._sent[patient.device]:
                for kind, value in one.values.items():
                    expected.setdefault(kind, []).append((one.at_ms, value))
            wrong += shown != expected
        return Check(
            "timeline_batches_hold_every_reading_once_in_order",
            wrong == 0,
            len(PATIENTS) - wrong,
            "rooms",
            "every value and time as sent",
        )

    def _alarm(self) -> Sequence[Check]:
        started = [one for one in self._observer.seen if _is_alarm(one, "started", "worsened")]
        if len(started) != 1:
            return [
                Check("alarm_arrives_once", passed=False, figure=len(started), unit="alarms",
                      detail="exactly one is expected")
            ]  # fmt: skip
        alarm = started[0]
        block = alarm.content
        assert isinstance(block, AlarmBlock)  # noqa: S101 - _is_alarm said so
        if block.value is None or block.measured_at is None:
            return [
                Check("alarm_arrives_once", passed=False, figure=1, unit="alarms",
                      detail="it is about a sensor, not about a value")
            ]  # fmt: skip
        sent = {one.at_ms: one for one in self._sent[PATIENT.device]}
        cause = sent.get(_ms(block.measured_at))
        shown = alarm.body.replace("\N{NO-BREAK SPACE}", " ")
        clock = block.measured_at.astimezone(UTC).strftime("%H:%M")  # the demo's clinic is at UTC+0
        whole = str(int(block.value))
        says = {
            "priority": shown.startswith("ALARME HAUTE"),
            "bed": f"Lit {PATIENT.bed} {PATIENT.initials}" in shown,
            "kind and value": f"SpO2 {whole}" in shown and "%" in shown,
            "limit": "< 90" in shown,
            "time": f"{clock} UTC+0" in shown,
            "what to do": "Voir le patient" in shown,
        }
        missing = [name for name, there in says.items() if not there]
        truthful = cause is not None and cause.values[Kind.SPO2] == block.value
        latency_ms = round(alarm.at * 1000) - cause.at_ms if cause else None
        self._needles.append(Needle.for_text(alarm.body, label="alarm text"))
        return [
            Check("alarm_arrives_once", alarm.room_id == self.clinic.rooms[PATIENT.number],
                  len(started), "alarms", "in the room of the patient it is about"),
            Check("alarm_says_what_a_clinician_needs", not missing and truthful, len(says),
                  "facts", f"missing: {', '.join(missing) or 'nothing'}"),
            Check("alarm_mentions_the_doctor", self.clinic.mxid(DOCTOR) in alarm.mentions,
                  len(alarm.mentions), "mentions", "so that the phone rings"),
            Check("alarm_latency", latency_ms is not None, latency_ms, "ms",
                  "from MQTT publish to the decrypted alarm at the doctor's client"),
        ]  # fmt: skip

    def _recovery(self) -> Check:
        recovered = [one for one in self._observer.seen if _is_alarm(one, "recovered")]
        for one in recovered:
            self._needles.append(Needle.for_text(one.body, label="end of alarm text"))
        return Check(
            "recovery_is_announced",
            len(recovered) == 1 and recovered[0].body.startswith("FIN D'ALARME"),
            len(recovered),
            "messages",
            "exactly one is expected",
        )

    def _only_trusted(self) -> Check:
        refused = self._observer.refused
        total = refused.unsigned + refused.wrong_sender + refused.malformed
        return Check(
            "nothing_unsigned_or_forged",
            total == 0,
            total,
            "events",
            "refused by the doctor's client",
        )

    async def _homeserver_blind(self) -> Check:
        planted = canaries(secrets.token_hex(12))
        await self._plant(planted)
        needles = [*self._needles, *(canary.needle for canary in planted)]
        directory = self.clinic.directory / "synapse"
        found = await asyncio.to_thread(scan, [directory], needles)
        labels = {canary.needle.label for canary in planted}
        leaks = [leak for leak in found if leak.needle_label not in labels]
        try:
            must_find(planted, found)
        except FajmaError as error:
            return Check(
                "homeserver_is_blind", passed=False, figure=None, unit="", detail=str(error)
            )
        return Check(
            "homeserver_is_blind",
            not leaks,
            len(self._needles),
            "values",
            f"none in database, WAL, media or log; {len(planted)} of {len(planted)} canaries found"
            if not leaks
            else _tell(leaks),
        )

    def _own_files_sealed(self) -> Check:
        paths = [self.clinic.fajma_log, self.clinic.secrets_directory]
        paths += sorted(self.clinic.directory.glob("fajma.db*"))
        leaks = scan(paths, self._needles)
        return Check(
            "own_database_and_log_hold_nothing_in_clear",
            not leaks,
            len(paths),
            "files",
            _tell(leaks) if leaks else "no value sent and no alarm text found",
        )

    def _broker_blind(self) -> Check:
        """Of v2 only: what v1 monitors say stands in the broker's file until it is taken."""
        needles = [one for one in self._needles if one.label.endswith(PATIENT.device)]
        directory = self.clinic.mosquitto.directory
        leaks = scan([directory], needles)
        return Check(
            "broker_holds_nothing_of_v2_in_clear",
            bool(needles) and not leaks,
            len(needles),
            "values",
            _tell(leaks) if leaks else "none in its persistence file or log",
        )

    async def _plant(self, planted: Sequence[Canary]) -> None:
        """As messages in a room without encryption, and as media where a message cannot hold it."""
        await self.clinic.synapse.exempt_from_rate_limits(self.clinic.mxid(WITNESS))
        token = await self.clinic.synapse.login(WITNESS, self.clinic.password(WITNESS))
        room = await self._matrix("POST", "createRoom", {"preset": "private_chat"}, token=token)
        for number, canary in enumerate(planted):
            if canary.text is None:
                await self._upload(canary.planted, token)
            else:
                path = f"rooms/{quote(room['room_id'], safe='')}/send/m.room.message/{number}"
                await self._matrix(
                    "PUT", path, {"msgtype": "m.text", "body": canary.text}, token=token
                )

    async def _upload(self, content: bytes, token: str) -> None:
        url = f"{self.clinic.synapse.base_url}/_matrix/media/v3/upload"
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/octet-stream"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.post(url, data=content) as response,
        ):
            response.raise_for_status()

    async def _matrix(
        self, method: str, path: str, body: Mapping[str, Any], *, token: str | None = None
    ) -> dict[str, Any]:
        token = token or self._observer.client.access_token
        url = f"{self.clinic.synapse.base_url}/_matrix/client/v3/{path}"
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session,
            session.request(method, url, json=dict(body)) as response,
        ):
            response.raise_for_status()
            answer: dict[str, Any] = await response.json()
            return answer

    def as_json(self) -> str:
        """The verdict for machines."""
        return json.dumps(
            {
                "passed": all(check.passed for check in self.checks),
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "broker": "mosquitto" if self.clinic.uses_mosquitto else "embedded",
                "checks": [asdict(check) for check in self.checks],
            },
            indent=2,
        )


def _ledger(path: Path) -> list[Sent]:
    sent = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("{"):
            entry = json.loads(line, parse_float=Decimal)
            values = {Kind(kind): Decimal(value) for kind, value in entry["values"].items()}
            sent.append(Sent(entry["sent_at_ms"], values))
    return sent


def _is_alarm(seen: Seen, *states: str) -> bool:
    return isinstance(seen.content, AlarmBlock) and seen.content.state in states


def _newest(vitals: Vitals) -> int:
    return max((_ms(one.measured_at) for one in vitals.latest.values()), default=0)


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def _tell(leaks: Sequence[Leak]) -> str:
    where = Counter(f"{leak.path.name} ({leak.encoding})" for leak in leaks)
    return "FOUND in " + ", ".join(f"{place}: {count}" for place, count in where.items())


async def _any_event(observer: Observer, timeout_s: float) -> None:
    before = len(observer.seen)
    await _quietly(observer.wait_for(lambda _: len(observer.seen) > before, max(timeout_s, 0.01)))


async def _quietly(waiting: Awaitable[object]) -> None:
    """Wait, and leave it to the checks to say that it was in vain."""
    try:
        await waiting
    except UnavailableError:
        return


async def _fajma(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "console",
        *arguments,
        env=environment_without_proxies(),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    return output.decode()
