"""Which sessions at the broker this ingest serves: its own, and those of ingests that are gone.

Messages are divided among the sessions, and a broker goes on giving a session its share when nobody
serves it (seen with Mosquitto 2.0.11). So each session is served under a lease: by its own ingest,
and when that is gone by another one, which gives it back now and then, in case it has returned.
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

GIVE_BACK_AFTER_S: Final = 60.0
"""How long another's session is served before its own ingest gets the chance to take it."""


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
        living = asyncio.create_task(
            give_signs(
                records,
                ingest(one),
                every_s=Pace(settings.alarms.silence_told_after_s).beat_s,
                works=lambda: subscriber.is_working,
            )
        )
        try:
            async with asyncio.timeout(None if one == number else GIVE_BACK_AFTER_S):
                await running
        except TimeoutError:
            log.info("session_given_back", session=one)
        finally:
            await end([telling, living, running])

    async def own() -> None:
        await lead(records.leases, _lease(number), length_s=length_s, part=partial(session, number))

    async def other(one: int) -> None:
        while True:
            # Its own ingest looks more often than this, so it comes first if it is there.
            await asyncio.sleep(length_s)
            await lead(records.leases, _lease(one), length_s=length_s, part=partial(session, one))

    async with asyncio.TaskGroup() as group:
        group.create_task(own())
        for one in range(1, settings.mqtt.ingests + 1):
            if one != number:
                group.create_task(other(one))


def _lease(number: int) -> str:
    return f"mqtt-session-{number}"


async def _when(event: asyncio.Event, tell: Callable[[], object]) -> None:
    await event.wait()
    tell()
