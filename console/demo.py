"""``fajma demo``: a whole clinic on this machine, to look at or to be judged."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shlex
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Final, Literal
from zoneinfo import ZoneInfo

import click
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from console.check import SETTINGS as CHECK_SETTINGS
from console.check import Check, Judge
from console.clinic import (
    DOCTOR,
    PATIENTS,
    SPARE_DEVICE,
    WITNESS,
    Clinic,
    Options,
    Ports,
    follow,
)
from console.element import HOW_TO_GET, ElementServer, configuration, unpack
from console.observer import Observer, Seen
from fajma.commands import Action, usage
from fajma.config import Site
from fajma.errors import InputError, UnavailableError
from fajma.events import MESSAGE, AlarmBlock, Vitals, VitalsBatch
from fajma.vitals import Kind

STEPS: Final = {
    "homeserver": "Starting the homeserver (Synapse, SQLite)",
    "accounts": "Accounts: a doctor, two patients, the bots",
    "broker": "Starting the MQTT broker",
    "fajma": "Starting FAJMA",
    "consultations": "Opening two encrypted consultations",
    "ward": "Opening a ward: its team's room, and two clinicians",
    "witness": "A clinician's own client joins, to see what a doctor sees",
    "scenario": "Playing the scenario",
    "scan": "Searching the homeserver for anything in clear",
}
DEMO_SETTINGS: Final = {
    "publish": {"state_every_s": 10, "unwatched_state_every_s": 10, "batch_every_s": 10},
    "alarms": {"clear_dwell_s": 15},
}
_PORTS: Final = Ports()
_SHORT: Final = {
    Kind.HEART_RATE: "FC",
    Kind.SPO2: "SpO2",
    Kind.TEMPERATURE: "T°",
    Kind.SYSTOLIC: "TA",
    Kind.DIASTOLIC: "TA dia",
}
_UNIT: Final = {
    Kind.HEART_RATE: "/min",
    Kind.SPO2: "%",
    Kind.TEMPERATURE: "°C",
    Kind.SYSTOLIC: "mmHg",
    Kind.DIASTOLIC: "mmHg",
}


@click.command("demo")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("build/demo"),
    show_default=True,
    help="Everything the demo writes is in here; a second run resumes.",
)
@click.option("--check", is_flag=True, help="Play the scenario unattended and judge it.")
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="With --check: write the verdict here.",
)
@click.option(
    "--broker",
    type=click.Choice(["auto", "mosquitto", "embedded"]),
    default="auto",
    show_default=True,
    help="Mosquitto where it is installed, or the broker inside FAJMA.",
)
@click.option(
    "--element-web",
    type=click.Path(path_type=Path, exists=True),
    help="An Element Web release (folder or tarball) to serve beside the demo.",
)
@click.option("--v2", is_flag=True, help="The first monitor is one of our own firmware.")
@click.option("--every", default=5.0, show_default=True, help="Seconds between two readings.")
@click.option("--speed", default=1.0, show_default=True, help="Play the scenario faster.")
@click.option("--homeserver-port", default=_PORTS.homeserver, show_default=True)
@click.option("--broker-port", default=_PORTS.broker, show_default=True)
@click.option("--appservice-port", default=_PORTS.appservice, show_default=True)
@click.option("--element-port", default=_PORTS.element, show_default=True)
def demo(
    *,
    directory: Path,
    check: bool,
    json_path: Path | None,
    broker: Literal["auto", "mosquitto", "embedded"],
    element_web: Path | None,
    v2: bool,
    every: float,
    speed: float,
    homeserver_port: int,
    broker_port: int,
    appservice_port: int,
    element_port: int,
) -> None:
    """Run a clinic with two patients on this machine. Ctrl-C stops everything it started."""
    logging.getLogger("mau").setLevel(logging.CRITICAL)
    console = Console()
    if check:
        fresh = directory.with_name(f"{directory.name}-check")
        options = Options(fresh, Ports.free(), broker, CHECK_SETTINGS, v2=v2)
        passed = asyncio.run(_check(console, options, json_path))
        raise SystemExit(0 if passed else 1)
    ports = Ports(homeserver_port, broker_port, appservice_port, element_port)
    options = Options(directory, ports, broker, DEMO_SETTINGS, v2=v2)
    asyncio.run(_show(console, options, element_web, every=every, speed=speed))


async def _check(console: Console, options: Options, json_path: Path | None) -> bool:
    """A fresh clinic beside the demo's, on ports that are free."""
    await asyncio.to_thread(shutil.rmtree, options.directory, ignore_errors=True)
    with _progress(console) as progress:
        task = progress.add_task("", total=None)
        judge = Judge(
            options,
            report=lambda step: progress.update(task, description=STEPS[step]),
            judged=lambda one: progress.console.print(_verdict(one), soft_wrap=True),
        )
        passed = await judge.run()
    if json_path is not None:
        _write(json_path, judge.as_json())
        console.print(f"written to {json_path}")
    console.print("[green]all checks passed[/]" if passed else "[red]a check failed[/]")
    return passed


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def _verdict(check: Check) -> str:
    mark = "[green]ok  [/]" if check.passed else "[red]FAIL[/]"
    figure = "" if check.figure is None else f"{check.figure:g} {check.unit}  "
    return f"{mark} {check.name:<52} [bold]{figure}[/][dim]{escape(check.detail)}[/]"


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )


async def _show(
    console: Console, options: Options, element_web: Path | None, *, every: float, speed: float
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        starting = asyncio.create_task(_start(console, options, element_web, stack))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            console.print("stopping ...")
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return
        clinic, observer, element = starting.result()
        console.print(_where(clinic, element))
        console.print(_by_hand(clinic), highlight=False, soft_wrap=True)
        console.print(_commands(clinic), highlight=False, soft_wrap=True)
        live = _Live(console, clinic)
        observer.on_seen(live.seen)
        for patient in PATIENTS:
            monitor = await clinic.start_worn_monitor(
                patient, "--every", str(every), "--speed", str(speed)
            )
            live.follow(patient.device, monitor.log_path)
        live.follow_log(clinic.fajma_log)
        ended = asyncio.create_task(_ended(clinic))
        await asyncio.wait({stopping, ended}, return_when=asyncio.FIRST_COMPLETED)
        if ended.done() and not stopping.done():
            console.print(f"[red]FAJMA ended by itself; its log is {clinic.fajma_log}[/]")
        console.print("stopping ...")
        live.stop()
        ended.cancel()
        stopping.cancel()
    console.print("stopped; `make demo` resumes, `make clean-demo` forgets")


async def _ended(clinic: Clinic) -> None:
    if clinic.fajma is not None:
        await clinic.fajma.wait()


async def _start(
    console: Console, options: Options, element_web: Path | None, stack: contextlib.AsyncExitStack
) -> tuple[Clinic, Observer, ElementServer | None]:
    with _progress(console) as progress:
        task = progress.add_task("", total=None)
        began = time.monotonic()

        def report(step: str) -> None:
            nonlocal began
            progress.update(task, description=STEPS[step])
            progress.console.print(f"[dim]{time.monotonic() - began:5.1f} s  {STEPS[step]}[/]")

        element = None
        if element_web is not None:
            folder = unpack(element_web, options.directory.absolute() / "element")
            config = configuration(f"http://127.0.0.1:{options.ports.homeserver}", "clinique.test")
            element = ElementServer(folder, config, options.ports.element)
            stack.push_async_callback(element.stop)
            await element.start()
        clinic = Clinic(options, report=report)
        await clinic.start()
        stack.push_async_callback(clinic.stop)
        report("consultations")
        try:
            await clinic.open_consultations(clinicians=(DOCTOR, WITNESS))
        except UnavailableError as error:
            if error.code != "clinician_left":
                raise
            raise InputError(
                "the demo's own doctor has left its staff, or the clinician of this terminal:"
                " `make clean-demo` begins with a new clinic",
                code="demo_without_clinician",
            ) from error
        report("ward")
        await clinic.open_ward({DOCTOR: "Awa Diop", WITNESS: "Veille"})
        report("witness")
        observer = Observer(
            clinic.synapse.base_url, clinic.mxid(WITNESS), clinic.directory / "witness"
        )
        stack.push_async_callback(observer.stop)
        await observer.start(clinic.password(WITNESS))
        if not clinic.on_duty:
            await _take_duty(clinic, observer)
    return clinic, observer, element


async def _take_duty(clinic: Clinic, observer: Observer) -> None:
    """The terminal's clinician takes duty as everybody does, so alarms go where he treats."""
    room_id = clinic.ward_room or ""
    with contextlib.suppress(TimeoutError):  # then nobody is on duty, and FAJMA says so
        async with asyncio.timeout(20):
            while not _has(observer, room_id, clinic.mxid("fajma-alerts")):
                await observer.client.synced.wait()
            taking = {"msgtype": "m.text", "body": usage(Action.DUTY_TAKE, Site().language)}
            await observer.client.room_send(room_id, MESSAGE, taking)


def _has(observer: Observer, room_id: str, member: str) -> bool:
    room = observer.client.rooms.get(room_id)
    return room is not None and member in room.users


def _where(clinic: Clinic, element: ElementServer | None) -> Panel:
    people = "\n".join(
        f"  {role:<20} [bold]{clinic.mxid(account)}[/]  {clinic.password(account)}"
        for role, account in [
            ("doctor", DOCTOR),
            *((f"patient, bed {one.bed}", one.account) for one in PATIENTS),
        ]
    )
    where = f"Element Web:  [bold]{element.url}[/]" if element else HOW_TO_GET
    where += (
        "\nIn Element: Sign in, Edit (the homeserver), then the address, name and password below."
        "\nIn the ward's room type !aide: duty, handover, drill. The clinician of this terminal"
        "\nis on duty and has no phone, and FAJMA says so there."
    )
    return Panel(
        f"{where}\nHomeserver:   [bold]{clinic.synapse.base_url}[/]\n{people}\n\n"
        "Investigational, a secondary notification: never the only monitoring. Ctrl-C stops.",
        title="FAJMA",
        border_style="green",
    )


def _by_hand(clinic: Clinic) -> str:
    """A line to paste into another terminal; not in the panel, whose frame would be copied too.

    The patient wears the spare monitor only meanwhile, lest its silence be an alarm. The shell puts
    in the time, so that pasting it again is another reading and not the same one delivered twice.
    """
    if shutil.which("mosquitto_pub") is None:
        return "To send a reading by hand: apt-get install mosquitto-clients, and start again."
    values = {"heart_rate": 88, "spo2": 97, "temperature": 36.9}
    payload = json.dumps({"device_id": SPARE_DEVICE, "timestamp": "NOW"} | values)
    line = clinic.publish_command(SPARE_DEVICE, payload).replace('"NOW"', "'$(date +%s%3N)'")
    wears = f"fajma patient monitor {PATIENTS[0].number} {SPARE_DEVICE}"
    line = f"({_exports(clinic)}; {wears} && {line}; {wears} --off)"
    return f"Send a reading for bed {PATIENTS[0].bed} by hand:\n{escape(line)}\n"


def _commands(clinic: Clinic) -> str:
    """What makes the commands of docs/people.md work in another terminal."""
    return (
        "The commands of docs/people.md, in another terminal:\n"
        + escape(f"{_exports(clinic)}\n")
        + "fajma staff check\n"
    )


def _exports(clinic: Clinic) -> str:
    where = shlex.quote(str(Path(sys.executable).parent))
    return f"export FAJMA_CONFIG={shlex.quote(str(clinic.config_path))} PATH={where}:$PATH"


class _Live:
    """One line for each reading, each state event, each alarm."""

    def __init__(self, console: Console, clinic: Clinic) -> None:
        self._console = console
        self._beds = {one.device: one.bed for one in PATIENTS}
        self._beds[SPARE_DEVICE] = PATIENTS[0].bed
        self._rooms = {clinic.rooms[one.number]: f"bed {one.bed}" for one in PATIENTS}
        if clinic.ward_room is not None:
            self._rooms[clinic.ward_room] = "ward"
        self._zone = ZoneInfo(Site().time_zone)
        self._tasks: list[asyncio.Task[None]] = []

    def follow(self, device: str, path: Path) -> None:
        """Show what a monitor sends."""
        self._tasks.append(asyncio.create_task(self._readings(self._beds[device], follow(path))))

    def follow_log(self, path: Path) -> None:
        """Show what FAJMA refuses, and what is sent by hand, from its log."""
        lines = follow(path, path.stat().st_size)
        self._tasks.append(asyncio.create_task(self._log(lines)))

    def stop(self) -> None:
        """Show nothing more."""
        for task in self._tasks:
            task.cancel()

    async def _readings(self, bed: str, lines: AsyncIterator[str]) -> None:
        async for line in lines:
            if line.startswith("{"):
                values = json.loads(line)["values"]
                shown = "  ".join(_shown(Kind(kind), value) for kind, value in values.items())
                self._line("cyan", f"bed {bed}", f"monitor sends     {shown}")
            elif line:
                self._line("yellow", f"bed {bed}", escape(line))

    async def _log(self, lines: AsyncIterator[str]) -> None:
        async for line in lines:
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                bed = f"bed {self._beds.get(entry.get('device'), '?')}"
                if entry.get("event") in {"reading_refused", "value_refused"}:
                    kind = entry.get("kind", "")
                    self._line("yellow", bed, f"refused           {kind} {entry.get('reason')}")
                elif entry.get("device") == SPARE_DEVICE and entry.get("stored"):
                    self._line("cyan", bed, "sent by hand      stored")
                elif entry.get("device") == SPARE_DEVICE and entry.get("repeated"):
                    self._line(
                        "yellow", bed, "sent by hand      the same reading again: not counted"
                    )

    def seen(self, one: Seen) -> None:
        """Show what the clinician's client has decrypted."""
        bed = self._rooms.get(one.room_id, "?")
        content = one.content
        if isinstance(content, Vitals):
            values = "  ".join(
                _shown(kind, latest.value) for kind, latest in content.latest.items()
            )
            self._line("blue", bed, f"state decrypted   {values}")
        elif isinstance(content, VitalsBatch):
            what = "history decrypted" if content.history else "batch decrypted  "
            self._line("blue", bed, f"{what} {len(content.readings)} readings")
        elif isinstance(content, AlarmBlock):
            style = "bold green" if content.state == "recovered" else "bold red"
            self._line(style, bed, f"ALARM decrypted   {escape(one.body)}")
        elif one.event_type == MESSAGE:
            self._line("white", bed, f"message           {escape(one.body)}")

    def _line(self, style: str, bed: str, text: str) -> None:
        now = datetime.now(self._zone).strftime("%H:%M:%S")
        self._console.print(f"[dim]{now}[/] [{style}]{bed:<6} {text}[/]", highlight=False)


def _shown(kind: Kind, value: object) -> str:
    """A value as a chart in French has it: ``T° 36,9 °C``."""
    return f"{_SHORT[kind]} {str(value).replace('.', ',')} {_UNIT[kind]}"
