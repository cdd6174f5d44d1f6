"""Stopping and killing what runs, in the middle of traffic: nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal

import pytest

from fajma.events import Vitals
from fajma.vitals import Kind
from tests.e2e.test_readers import recovery_key
from tests.e2e.ward import BREATHLESS, PATIENCE_S, WELL, Bedside, Ward, ledger, lines_sent


async def stop(ward: Ward) -> None:
    await ward.clinic.stop_fajma()


async def kill(ward: Ward) -> None:
    await ward.kill_fajma()


def shown(vitals: Vitals) -> dict[Kind, Decimal]:
    return {kind: one.value for kind, one in vitals.latest.items()}


async def told_once(ward: Ward, bedside: Bedside) -> None:
    """One start and one end of the alarm, each one event of the room."""
    await ward.alarm(bedside.room_id, "recovered")
    told = [
        one.content.state  # type: ignore[union-attr]
        for one in ward.alarms(bedside.room_id)
    ]
    assert told == ["started", "recovered"]


async def test_fajma_stopped_and_killed_in_traffic_loses_and_doubles_nothing(ward: Ward) -> None:
    identities = await ward.bot_keys()
    stored = (await ward.counts()).get("stored", 0)
    bedside = await ward.admit()
    monitor = ward.clinic.start_monitor(
        bedside.device, "--scenario", "desaturation", "--speed", "20", "--count", "36"
    )
    for number, end in enumerate((stop, kill, kill), start=1):
        await lines_sent(monitor.log_path, 5 * number)
        await end(ward)
        await ward.clinic.start_fajma()
    assert await monitor.wait() == 0

    sent = ledger(monitor.log_path)
    assert len(sent) == 36
    await ward.all_published(bedside.room_id, sent)
    await told_once(ward, bedside)
    assert (await ward.counts())["stored"] - stored == 36
    assert await ward.bot_keys() == identities


async def decided(ward: Ward, bedside: Bedside, mark: int) -> None:
    del bedside
    await ward.log_says("alarms_decided", mark)


async def seen(ward: Ward, bedside: Bedside, mark: int) -> None:
    del mark
    await ward.alarm(bedside.room_id, "started")


@pytest.mark.parametrize("moment", [decided, pytest.param(seen, marks=pytest.mark.slow)])
async def test_fajma_killed_around_an_alarm_tells_it_once(
    ward: Ward, moment: Callable[[Ward, Bedside, int], Awaitable[None]]
) -> None:
    bedside = await ward.admit()
    mark = ward.log_mark()
    async with ward.monitor(bedside) as monitor:
        await monitor.send(WELL, *[BREATHLESS] * 3)
        await moment(ward, bedside, mark)
        await ward.kill_fajma()
        await ward.clinic.start_fajma()
        await monitor.send(*[WELL] * 5)
        await told_once(ward, bedside)
        await ward.all_published(bedside.room_id, monitor.sent)


@pytest.mark.slow
@pytest.mark.parametrize("after_ms", range(0, 200, 20))
async def test_fajma_killed_at_any_moment_of_an_alarm_tells_it_once(
    ward: Ward, after_ms: int
) -> None:
    bedside = await ward.admit()
    async with ward.monitor(bedside) as monitor:
        await monitor.send(WELL, *[BREATHLESS] * 3)
        await asyncio.sleep(after_ms / 1000)  # the moment is what varies, nothing is awaited
        await ward.kill_fajma()
        await ward.clinic.start_fajma()
        await monitor.send(*[WELL] * 5)
        await told_once(ward, bedside)
        await ward.all_published(bedside.room_id, monitor.sent)


async def test_a_device_that_appeared_while_fajma_was_down_is_noticed_when_it_starts(
    ward: Ward,
) -> None:
    localpart, mxid, password = await ward.account("dr.night")
    async with ward.client_of(localpart, password) as desktop:
        bedside = await ward.admit(mxid)
        async with ward.monitor(bedside) as monitor:
            await monitor.send(WELL, *[BREATHLESS] * 4)
            last = monitor.sent[-1].at_ms
            await ward.alarm(bedside.room_id, "started")
            await ward.snapshot_of(bedside.room_id, last, desktop)
            await ward.all_published(bedside.room_id, monitor.sent)
            await ward.clinic.stop_fajma()
            async with ward.client_of(
                localpart, password, recovery_key=recovery_key(desktop)
            ) as phone:
                await ward.clinic.start_fajma()
                await ward.snapshot_of(bedside.room_id, last, phone)
                assert shown(await phone.vitals(bedside.room_id)) == BREATHLESS
                await monitor.send(*[WELL] * 5)
                end = await ward.alarm(bedside.room_id, "recovered")
                await phone.wait_for(lambda one: one.event_id == end.event_id, PATIENCE_S)


async def test_a_device_that_makes_no_sense_neither_silences_a_room_nor_keeps_fajma_from_starting(
    ward: Ward,
) -> None:
    bedside = await ward.admit()
    localpart, account, password = await ward.account("patient")
    async with ward.client_of(localpart, password) as patient, ward.monitor(bedside) as monitor:
        await ward.operate("patients/account", number=bedside.number, account=account)
        await ward.until_of(patient, lambda: bedside.room_id in patient.client.rooms)
        await monitor.send(WELL)
        await ward.snapshot_of(bedside.room_id, monitor.sent[-1].at_ms, patient)
        # Any account can publish this, and Synapse passes it on to everybody in its rooms.
        odd = {
            "algorithms": [],
            "device_id": "ODD",
            "user_id": account,
            "keys": {"odd": "x"},
            "signatures": {},
        }
        token = await ward.clinic.synapse.login(localpart, password, device_id="ODD")
        status, answer = await ward.matrix("POST", "keys/upload", {"device_keys": odd}, token=token)
        assert status == 200, answer
        _, listed = await ward.matrix("POST", "keys/query", {"device_keys": {account: []}})
        assert listed["device_keys"][account]["ODD"]["keys"] == {"odd": "x"}
        await ward.kill_fajma()
        await ward.clinic.start_fajma()
        monitor.catch_up()
        await monitor.send(*[BREATHLESS] * 4)
        await ward.all_published(bedside.room_id, monitor.sent)
        await ward.alarm(bedside.room_id, "started")
        # The patient's own device, which is signed, reads on.
        await ward.snapshot_of(bedside.room_id, monitor.sent[-1].at_ms, patient)


@pytest.mark.slow
async def test_who_joined_while_fajma_was_down_gets_the_snapshot_when_it_starts(
    ward: Ward,
) -> None:
    localpart, mxid, password = await ward.account("dr.relief")
    bedside = await ward.admit(mxid)
    async with ward.monitor(bedside) as monitor:
        await monitor.send(WELL)
        await ward.all_published(bedside.room_id, monitor.sent)
    await ward.clinic.stop_fajma()
    async with ward.client_of(localpart, password) as relief:
        async with asyncio.timeout(PATIENCE_S):
            while bedside.room_id not in relief.client.rooms:
                await relief.client.synced.wait()
        await ward.clinic.start_fajma()
        await ward.snapshot_of(bedside.room_id, monitor.sent[-1].at_ms, relief)
        assert shown(await relief.vitals(bedside.room_id)) == WELL


@pytest.mark.slow
async def test_the_homeserver_restarted_in_traffic_gets_everything_afterwards_once(
    ward: Ward,
) -> None:
    bedside = await ward.admit()
    monitor = ward.clinic.start_monitor(
        bedside.device, "--scenario", "desaturation", "--speed", "5", "--count", "36"
    )
    await lines_sent(monitor.log_path, 3)
    await ward.clinic.synapse.stop()
    await lines_sent(monitor.log_path, 12)  # the alarm is decided meanwhile
    await ward.clinic.synapse.start()
    assert await monitor.wait() == 0

    await ward.all_published(bedside.room_id, ledger(monitor.log_path), 90)
    await ward.alarm(bedside.room_id, "recovered", timeout_s=90)
    await told_once(ward, bedside)


@pytest.mark.slow
async def test_the_broker_restarted_in_traffic_keeps_what_it_took(ward: Ward) -> None:
    bedside = await ward.admit()
    monitor = ward.clinic.start_monitor(
        bedside.device, "--scenario", "desaturation", "--speed", "15", "--count", "36"
    )
    for number in (1, 2):
        await lines_sent(monitor.log_path, 8 * number)
        await ward.clinic.mosquitto.stop()
        await ward.clinic.mosquitto.start()
    assert await monitor.wait() == 0

    await ward.all_published(bedside.room_id, ledger(monitor.log_path))
    await told_once(ward, bedside)
