"""``fajma readings``: what came in, what did not and why, and how far it was passed on."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import asyncpg
import click
import structlog

from bots.alerts.engine import FOLLOWER
from bridges.mqtt_vitals.ingest import Ingest, Message
from bridges.mqtt_vitals.subscriber import now
from console.people import config_option
from console.refusals import MESSAGES, REASONS
from console.run import opened
from fajma.config import Settings, load
from fajma.errors import InputError, UnavailableError
from fajma.store import Records
from fajma.store.quarantine import (
    NO_PATIENT_KEY,
    REPLAYABLE,
    SEQUENCE_REUSED,
    UNKNOWN_DEVICE,
)
from fajma.store.readings import LoggedReading, SealedReading
from fajma.vitals import MEASURES, Age
from fajma.wire import parse_device_id

PAGE: Final = 500
POLL_S: Final = 1.0

TRIED_AGAIN: Final = REPLAYABLE - {SEQUENCE_REUSED}
"""What may be tried again without asking: for the rest see ``fajma device new-start``."""

NOBODYS: Final = "unknown"
"""Whose messages are that name no monitor."""
WHY: Final = {
    UNKNOWN_DEVICE: "were measured when nobody wore the monitor"
    " (fajma patient monitor NUMBER DEVICE --since TIME)",
    NO_PATIENT_KEY: "are of a patient whose key is missing (FAJMA's log names the patient)",
}
"""Why messages stay; no limit on their rate applies when they are tried again."""


@click.group("readings")
def readings() -> None:
    """Look at the readings log."""


def with_records(
    config_path: Path, work: Callable[[Records, Settings], Coroutine[Any, Any, None]]
) -> None:
    """Do something with the open records, in silence: what a command prints is its answer.

    Raises:
        UnavailableError: the database is away, or another process does not let us write.
    """
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    settings = load(config_path)

    async def opened_first() -> None:
        async with opened(settings) as records:
            await work(records, settings)

    try:
        asyncio.run(opened_first())
    except BrokenPipeError:  # whoever read what we print has enough: click ends in silence
        raise
    except (OSError, sqlite3.Error, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise UnavailableError(
            f"the database did not do it ({type(error).__name__}): another process may keep it"
            " busy; give the command again, what was done already is kept",
            code="database_unavailable",
        ) from error


@readings.command("count")
@config_option
def count(config_path: Path) -> None:
    """How many readings are stored, what was refused for which reason, and who lags behind."""

    async def work(records: Records, _: Settings) -> None:
        head = await records.readings.head()
        click.echo(f"stored {await records.readings.count()}")
        tally = await records.tally.all()
        for name in sorted(tally.keys() - {"stored"}):
            click.echo(f"{name} {tally[name]}")
        for reason, number in (await records.quarantine.counts()).items():
            click.echo(f"refused {reason} {number}")
        click.echo(f"lag alarms {head - await records.followers.position(FOLLOWER)}")
        click.echo(f"lag publisher {await records.feeds.lag()}")

    with_records(config_path, work)


@readings.command("tail")
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes.")
@click.option("--number", "-n", type=click.IntRange(0, 10_000), default=20, show_default=True)
@click.option("--patient", help="Only of the patient with this number.")
@config_option
def tail(*, follow: bool, number: int, patient: str | None, config_path: Path) -> None:
    """The newest readings, with values: for who may see them."""

    async def work(records: Records, settings: Settings) -> None:
        who = None
        if patient is not None:
            found = await records.patients.by_number(patient)
            if found is None:
                raise click.ClickException("no patient has this number: see `fajma patient list`")
            who = found.key
        zone = ZoneInfo(settings.site.time_zone)
        shown = await records.readings.newest(limit=number, patient=who)
        await _show(records, shown, zone)
        position = shown[-1].position if shown else await records.readings.head()
        while follow:
            new = await records.readings.sealed_after(position, limit=PAGE, patient=who)
            await _show(records, new, zone)
            if new:
                position = new[-1].position
            else:
                await asyncio.sleep(POLL_S)

    with_records(config_path, work)


async def _show(records: Records, sealed: Sequence[SealedReading], zone: ZoneInfo) -> None:
    opened, unreadable = await records.readings.open_all(sealed)
    lines = {one.position: _line(one, zone) for one in opened}
    lines |= {position: f"{position}  does not open" for position in unreadable}
    for position in sorted(lines):
        click.echo(lines[position])


def _line(one: LoggedReading, zone: ZoneInfo) -> str:
    reading = one.reading
    values = "  ".join(
        f"{kind.value} {value} {MEASURES[kind].unit}" for kind, value in reading.values.items()
    )
    marks = [reading.age.value] if reading.age is not Age.LIVE else []
    marks += [f"clock {reading.clock.value}"]
    marks += ["probe off"] if reading.contact is False else []
    marks += [f"{kind.value} too low to be used" for kind in sorted(reading.unusable)]
    at = reading.measured_at.astimezone(zone).isoformat(timespec="seconds")
    return f"{one.position}  {at}  {reading.device}  {values}  ({', '.join(marks)})"


@readings.group("quarantine")
def quarantine() -> None:
    """Messages that did not become readings."""


def _one_device(_: click.Context, __: click.Parameter, address: str | None) -> str | None:
    return address if address in {None, NOBODYS} else parse_device_id(address)


def _one_reason(_: click.Context, __: click.Parameter, reason: str | None) -> str | None:
    if reason is None or reason in REASONS:
        return reason
    raise InputError(
        f"nothing is refused for this reason; a message is for {', '.join(sorted(MESSAGES))}; "
        "a value for its kind and what is wrong with it, e.g. spo2_implausible_low",
        code="unknown_reason",
    )


_device = click.option(
    "--device",
    callback=_one_device,
    help=f"Only of this monitor (its MAC address; {NOBODYS} where no monitor is named).",
)


@quarantine.command("list")
@_device
@click.option(
    "--reason",
    callback=_one_reason,
    help="Only what was refused for this reason, e.g. unknown_device.",
)
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@config_option
def quarantine_list(
    *, device: str | None, reason: str | None, limit: int, config_path: Path
) -> None:
    """What is kept, oldest first: identity, time, monitor, reason. Never what it says."""

    async def work(records: Records, _: Settings) -> None:
        for one in await records.quarantine.listed(device=device, reason=reason, limit=limit):
            at = one.received_at.isoformat(timespec="seconds")
            click.echo(f"{one.id}  {at}  {one.device}  {one.reason}")

    with_records(config_path, work)


@quarantine.command("replay")
@_device
@config_option
def quarantine_replay(*, device: str | None, config_path: Path) -> None:
    """Try again what came before a monitor was linked, or too fast; it counts as late."""

    async def work(records: Records, _: Settings) -> None:
        stored, waiting = await replay(records, device=device)
        click.echo(f"stored {stored} readings")
        for reason, number in sorted(waiting.items()):
            click.echo(
                f"{number} messages stay in the quarantine: they "
                f"{WHY.get(reason, f'were refused again ({reason})')}"
            )

    with_records(config_path, work)


async def replay(
    records: Records, *, device: str | None = None, reasons: Collection[str] = TRIED_AGAIN
) -> tuple[int, Counter[str]]:
    """Try again what was refused for a reason that may be gone.

    Args:
        records: where it is kept.
        device: only of this monitor.
        reasons: for which it was refused, some of ``REPLAYABLE``.

    Returns:
        How many readings are in the log now that were not, and for which reason how many messages
        still wait.
    """
    ingest = Ingest(records)
    stored, waiting = 0, Counter[str]()
    kept = [
        one
        for reason in sorted(reasons)
        for one in await records.quarantine.listed(device=device, reason=reason, limit=100_000)
    ]
    for one in kept:
        refused = await records.quarantine.open(one)
        if refused is None:
            continue
        arrival = now()._replace(at=refused.received_at)
        message = Message(refused.topic, refused.payload, arrival, lambda: None, replayed=True)
        outcome = await ingest.commit([message])
        stored += outcome.stored
        waits = sorted(REPLAYABLE & outcome.refused.keys(), reverse=True)  # nobody's first
        settled = outcome.stored + outcome.repeated > 0 or not outcome.refused
        if waits:
            waiting[waits[0]] += 1
        elif not settled:  # its key was retired, or a fault of ours: nothing of it is in the log
            waiting[next(iter(sorted(outcome.refused)))] += 1
        else:
            await records.quarantine.drop([one.id])
    return stored, waiting
