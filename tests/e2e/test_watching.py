"""A room in which batches come once an hour, and somebody who wants to watch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest_asyncio

from console.clinic import DOCTOR, Clinic, Options, Ports
from console.observer import Observer
from console.run import opened
from fajma.config import load
from fajma.events import VITALS_WATCH, VitalsWatch
from tests.e2e.ward import WELL, Bedside, Ward

SELDOM = {
    "publish": {
        "state_every_s": 3600,
        "unwatched_state_every_s": 3600,
        "batch_every_s": 3600,
        "watched_every_s": 1,
    }
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def quiet_ward(tmp_path_factory) -> AsyncIterator[Ward]:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """A clinic whose rooms hear little unless somebody watches."""
    directory = tmp_path_factory.mktemp("quiet")
    clinic = Clinic(Options(directory, Ports.free(), "mosquitto", SELDOM))
    await clinic.start()
    observer = Observer(clinic.synapse.base_url, clinic.mxid(DOCTOR), directory / "doctor")
    try:
        await observer.start(clinic.password(DOCTOR))
        yield Ward(clinic, observer)
    finally:
        await observer.stop()
        await clinic.stop()


async def wish(ward: Ward, bedside: Bedside, for_s: int) -> None:
    """What a widget sends in the name of the doctor who looks at it."""
    newest = ward.events(bedside.room_id)[-1]
    content = VitalsWatch(for_s).to_content(newest.event_id)
    await ward.observer.client.room_send(bedside.room_id, VITALS_WATCH, content)


async def watch_ends(ward: Ward) -> None:
    """An end has no event: sleep until it, by the records that the publisher reads."""
    async with opened(load(ward.clinic.config_path)) as records:
        while watched := await records.watching.watched(datetime.now(UTC)):
            latest = max(watched.values())
            await asyncio.sleep((latest - datetime.now(UTC)).total_seconds())


async def test_batches_follow_a_wish_to_watch_at_once_and_stop_with_it(quiet_ward: Ward) -> None:
    ward = quiet_ward
    bedside = await ward.admit()
    async with ward.monitor(bedside) as monitor:
        await monitor.send(WELL)
        await ward.all_published(bedside.room_id, monitor.sent)
        await monitor.send(WELL)
        await wish(ward, bedside, 4)
        await ward.all_published(bedside.room_id, monitor.sent)
        await monitor.send(WELL)  # while he watches
        await ward.all_published(bedside.room_id, monitor.sent)

        await watch_ends(ward)
        before = list(monitor.sent)
        await monitor.send(WELL)
        # Of a new patient everything is told at once: the publisher has looked since.
        neighbour = await ward.admit()
        async with ward.monitor(neighbour) as other:
            await other.send(WELL)
            await ward.all_published(neighbour.room_id, other.sent)
        await ward.all_published(bedside.room_id, before)

        await wish(ward, bedside, 300)
        await ward.all_published(bedside.room_id, monitor.sent)
