"""Which sessions at the broker this ingest serves: its own, and those of ingests that are gone.

Messages are divided among the sessions, and a broker goes on giving a session its share when nobody
serves it (seen with Mosquitto 2.0.11). So each session is served under a lease: by its own ingest,
and when that is gone by another one. Each ingest also holds a lease that only says that it is
there: when that is held again, its session is given back to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog

from bots.alerts.signs import Pace
from bridges.mqtt_vitals.ingest import Ingest
from bridges.mqtt_vitals.subscriber import Subscriber
from console.leading import lead
from console.signs_of_life import give_signs
from fajma.config import Settings
from fajma.errors import InputError
from fajma.store import Records
from fajma.store.heartbeats import ingest
from fajma.store.leases import Lease
from fajma.tasks import end

log = structlog.get_logger()

LOOKS: Final = 3
"""How often in the length of a lease we look whether the ingest whose session we serve is back."""


def require_certificates(settings: Settings, number: int) -> None:
    """See that this ingest is one of those in the settings and can be any of them.

    Raises:
        InputError: the message says what to do.
    """
    if number > settings.mqtt.ingests:
        raise InputError(
            f"there is no ingest {number}: set mqtt.ingests to how many there are",
            code="no_such_ingest",
        )
    for one in range(1, settings.mqtt.ingests + 1):
        for path in settings.mqtt.certificate(one):
            if not path.exists():
                raise InputError(
                    f"ingest {one} has no {path}: issue its certificate, or lower mqtt.ingests",
                    code="ingest_certificate_missing",
                )


async def serve(
    settings: Settings, records: Records, number: int, *, started: Callable[[], object]
) -> None:
    """Serve our own session, and others that nobody serves, until cancelled.

    Args:
        settings: how many there are, and how long a lease is.
        records: where readings go.
        number: our own session, from 1.
        started: called once a session of ours is subscribed.
    """
    length_s = settings.database.lease_s

    async def session(one: int, _: Lease) -> None:
        subscriber = Subscriber(settings.mqtt, Ingest(records), number=one)
        running = asyncio.create_task(subscriber.run())
        telling = asyncio.create_task(_when(subscriber.subscribed, started))
        returning = (
            [] if one == number else [asyncio.create_task(_returned(records, one, length_s))]
        )
        living = asyncio.create_task(
            give_signs(
                records,
                ingest(one),
                every_s=Pace(settings.alarms.silence_told_after_s).beat_s,
                works=lambda: subscriber.is_working,
            )
        )
        try:
            await asyncio.wait([running, *returning], return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                await running
            else:
                log.info("session_given_back", session=one)
        finally:
            await end([telling, *returning, living, running])

    async def own() -> None:
        await lead(records.leases, _lease(number), length_s=length_s, part=partial(session, number))

    async def other(one: int) -> None:
        while True:
            # Its own ingest looks more often than this, so it comes first if it is there.
            await asyncio.sleep(length_s)
            await lead(records.leases, _lease(one), length_s=length_s, part=partial(session, one))

    async with asyncio.TaskGroup() as group:
        group.create_task(own())
        if settings.mqtt.ingests > 1:
            group.create_task(_be_there(records, number, length_s))
        for one in range(1, settings.mqtt.ingests + 1):
            if one != number:
                group.create_task(other(one))


async def _be_there(records: Records, number: int, length_s: float) -> None:
    async def until_cancelled(_: Lease) -> None:
        await asyncio.Event().wait()

    await lead(records.leases, _presence(number), length_s=length_s, part=until_cancelled)


async def _returned(records: Records, number: int, length_s: float) -> None:
    """Until another ingest is there."""
    # One that died without a word seems to be for so long.
    pause_s = length_s
    while True:
        await asyncio.sleep(pause_s)
        pause_s = length_s / LOOKS
        try:
            if await records.leases.is_held(_presence(number)):
                return
        except Exception as error:  # noqa: BLE001 - a database that is away comes back
            log.warning("ingest_not_looked_for", ingest=number, error=type(error).__name__)


def _presence(number: int) -> str:
    return f"ingest-{number}"


def _lease(number: int) -> str:
    return f"mqtt-session-{number}"


async def _when(event: asyncio.Event, tell: Callable[[], object]) -> None:
    await event.wait()
    tell()
