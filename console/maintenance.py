"""``fajma maintenance``: a planned stop of the monitoring, told to the wards before and after."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

import click

from bots.alerts.deadman import NO_DELAYED_EVENTS
from console.people import config_option
from console.readings import with_records
from fajma.config import Settings
from fajma.errors import InputError
from fajma.store import Records
from fajma.store.audit import OPERATOR
from fajma.store.heartbeats import DEAD_MAN
from fajma.store.maintenance import Maintenance

LONGEST: Final = timedelta(hours=12)
"""A longer stop is no maintenance; and homeservers hold a message for a day at most."""

TOLD_WITHIN_S: Final = 30.0
_LOOK_AGAIN_S: Final = 0.2
_FRESH: Final = timedelta(seconds=30)
_DURATION: Final = re.compile(r"(?:(\d{1,2})h)?(?:(\d{1,3})(?:m|min))?", re.IGNORECASE)


class Duration(click.ParamType[timedelta]):
    """``90m``, ``2h``, ``1h30m``: from a minute to ``LONGEST``."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        """Read it; a usage error where it is none."""
        found = _DURATION.fullmatch(str(value))
        hours, minutes = (int(one or 0) for one in found.groups()) if found else (0, 0)
        duration = timedelta(hours=hours, minutes=minutes)
        if not timedelta() < duration <= LONGEST:
            self.fail(f"{value!r} is not a time from 1m to 12h, e.g. 30m or 1h30m", param, ctx)
        return duration


@click.group("maintenance")
def maintenance() -> None:
    """Planned stops: the wards are told before and after, and if monitoring does not come back."""


@maintenance.command("start")
@click.option("--for", "duration", type=Duration(), required=True, help="e.g. 30m or 1h30m.")
@click.option("--reason", required=True, help="The wards read it; no patient, no name.")
@config_option
def start(duration: timedelta, reason: str, config_path: Path) -> None:
    """Tell the wards that monitoring stops from now on, for so long at most.

    Then stop FAJMA, do what is to be done, start it, and give `fajma maintenance end`. Exit code 1
    if the wards could not be told yet: do not stop FAJMA then.
    """
    if not reason.strip():
        raise InputError("say why: the wards read it", code="maintenance_reason")

    async def work(records: Records, settings: Settings) -> None:
        now = datetime.now(UTC)
        async with records.store.transaction() as connection:
            stop = await records.maintenance.start(
                connection, now=now, until=now + duration, reason=reason.strip()
            )
            await records.audit.note(
                connection,
                actor=OPERATOR,
                action="maintenance.start",
                subject="monitoring",
                now=now,
                until=stop.until.isoformat(),
                reason=stop.reason,
            )
        click.echo(f"maintenance until {_time(stop.until, settings)}")
        if not await _within(TOLD_WITHIN_S, lambda: _is_told(records, stop)):
            click.echo(
                "the wards are not told yet: is `fajma run` running? Before you stop it, see"
                " `fajma maintenance status`",
                err=True,
            )
            raise SystemExit(1)
        click.echo("the wards are told: FAJMA may be stopped now")
        if not await _speaks_for_us(records):
            click.echo(_switch(None, await _trouble(records)), err=True)

    with_records(config_path, work)


@maintenance.command("end")
@config_option
def end(config_path: Path) -> None:
    """Say that it is over. The wards are told so once all of FAJMA works, and whom to look at."""

    async def work(records: Records, _: Settings) -> None:
        now = datetime.now(UTC)
        async with records.store.transaction() as connection:
            stop = await records.maintenance.end(connection, now=now)
            await records.audit.note(
                connection,
                actor=OPERATOR,
                action="maintenance.end",
                subject="monitoring",
                now=now,
            )

        async def is_closed() -> bool:
            newest = await records.maintenance.newest()
            return newest is None or newest.id != stop.id or newest.closed_at is not None

        if await _within(TOLD_WITHIN_S, is_closed):
            click.echo("maintenance is over: the wards are told")
        else:
            click.echo("maintenance is over: the wards are told as soon as all of FAJMA works")

    with_records(config_path, work)


@maintenance.command("status")
@config_option
def status(config_path: Path) -> None:
    """Whether maintenance is on, and whether the homeserver would speak if FAJMA died."""

    async def work(records: Records, settings: Settings) -> None:
        now = datetime.now(UTC)
        stop = await records.maintenance.newest()
        if stop is None or stop.closed_at is not None:
            click.echo("no maintenance")
        elif stop.is_on(now):
            told = "the wards are told" if stop.told_at else "the wards are NOT told yet"
            click.echo(f"maintenance until {_time(stop.until, settings)}: {told}")
        else:
            click.echo("maintenance is over: the wards are told as soon as all of FAJMA works")
        beats = await records.heartbeats.all()
        last = beats.get(DEAD_MAN)
        if last is None or now - last.at > _FRESH:
            click.echo("FAJMA's alert bot does not run")
        rooms = len(await records.switches.all())
        click.echo(_switch(rooms, last.trouble if last is not None else None))
        for name, beat in sorted(beats.items()):
            if name != DEAD_MAN:
                click.echo(f"{name}: last sign of life {_time(beat.at, settings)}")

    with_records(config_path, work)


def _switch(rooms: int | None, trouble: str | None) -> str:
    if trouble == NO_DELAYED_EVENTS:
        return (
            "the homeserver cannot tell the wards when FAJMA dies: set"
            " max_event_delay_duration: 24h in its configuration (Synapse 1.163 or later)"
        )
    held = "" if rooms is None else f"the homeserver speaks in {rooms} room(s) if FAJMA dies"
    if trouble is None:
        return held
    return f"{held}; trouble: {trouble} (docs/alarms.md)".removeprefix("; ")


async def _is_told(records: Records, stop: Maintenance) -> bool:
    """Whether the message is in every room, and the homeserver waits until the planned end."""
    newest = await records.maintenance.newest()
    if newest is None or newest.id != stop.id or newest.told_at is None:
        return False
    if await records.outbox.rooms_waiting():
        return False
    if not await _speaks_for_us(records):
        return True
    held = (await records.switches.all()).values()
    return all(one.maintenance_id == stop.id for one in held)


async def _speaks_for_us(records: Records) -> bool:
    return await _trouble(records) != NO_DELAYED_EVENTS


async def _trouble(records: Records) -> str | None:
    last = (await records.heartbeats.all()).get(DEAD_MAN)
    return None if last is None else last.trouble


async def _within(seconds: float, condition: Callable[[], Awaitable[bool]]) -> bool:
    """Look until something is so, or time is up."""
    try:
        async with asyncio.timeout(seconds):
            while not await condition():  # noqa: ASYNC110 - a row tells nobody
                await asyncio.sleep(_LOOK_AGAIN_S)
    except TimeoutError:
        return False
    return True


def _time(moment: datetime, settings: Settings) -> str:
    return f"{moment.astimezone(ZoneInfo(settings.site.time_zone)):%H:%M:%S}"
