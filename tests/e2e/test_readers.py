"""Who can read a consultation: late joiners and signed devices can, unsigned devices cannot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nio
from nio.store import SqliteMemoryStore

from bots.alerts.client import SignedClient
from console.observer import Observer
from fajma.events import VitalsBatch
from fajma.trust import CrossSigningSeeds, SecretStorageKey, decode_recovery_key
from fajma.vitals import Kind
from tests.e2e.ward import BREATHLESS, PATIENCE_S, WELL, Series, Ward, milliseconds, series


async def test_a_clinician_who_is_invited_later_gets_the_snapshot_without_a_new_reading(
    ward: Ward,
) -> None:
    bedside = await ward.admit()
    async with ward.monitor(bedside) as monitor:
        await monitor.send(WELL)
        await ward.all_published(bedside.room_id, monitor.sent)
    localpart, mxid, password = await ward.account("dr.late")
    async with ward.client_of(localpart, password) as late:
        await ward.join(bedside, mxid)
        shown = await ward.snapshot_of(bedside.room_id, monitor.sent[-1].at_ms, late)
        assert {kind: one.value for kind, one in shown.latest.items()} == WELL
        assert await late.vitals(bedside.room_id) == shown


async def test_a_clinician_who_joins_later_reads_the_day_thinned_and_its_worst_moment(
    ward: Ward,
) -> None:
    bedside = await ward.admit()
    async with ward.monitor(bedside) as monitor:
        await monitor.send(*[WELL] * 10, BREATHLESS, *[WELL] * 10)
        await ward.all_published(bedside.room_id, monitor.sent)
        localpart, mxid, password = await ward.account("dr.later")
        async with ward.client_of(localpart, password) as late:
            await ward.join(bedside, mxid)
            seen = await late.wait_for(
                lambda one: (
                    one.room_id == bedside.room_id
                    and isinstance(one.content, VitalsBatch)
                    and one.content.history
                    and len(one.content.samples[Kind.SPO2]) > 0
                ),
                PATIENCE_S,
            )
            assert isinstance(seen.content, VitalsBatch)
            shown = series_of(seen.content)
            sent = series(monitor.sent)
            for kind, samples in shown.items():
                assert set(samples) <= set(sent[kind])
            assert BREATHLESS[Kind.SPO2] in {value for _, value in shown[Kind.SPO2]}
            assert len(shown[Kind.SPO2]) < len(sent[Kind.SPO2])
            # What comes after it he reads as everybody does, and nobody counts it twice.
            await monitor.send(WELL)
            await ward.all_published(bedside.room_id, monitor.sent)
            await late.wait_for(
                lambda one: (
                    isinstance(one.content, VitalsBatch)
                    and not one.content.history
                    and (monitor.sent[-1].at_ms, WELL[Kind.SPO2])
                    in series_of(one.content)[Kind.SPO2]
                ),
                PATIENCE_S,
            )


def series_of(batch: VitalsBatch) -> Series:
    return {
        kind: [(milliseconds(one.measured_at), one.value) for one in samples]
        for kind, samples in batch.samples.items()
    }


async def test_a_doctor_who_was_invited_before_his_first_login_reads_from_then_on(
    ward: Ward,
) -> None:
    localpart, mxid, password = await ward.account("dr.first")
    bedside = await ward.admit(mxid)
    room_id = bedside.room_id
    async with ward.monitor(bedside) as monitor:
        await monitor.send(WELL)
        await ward.all_published(room_id, monitor.sent)
        async with ward.client_of(localpart, password) as first:
            await ward.snapshot_of(room_id, monitor.sent[-1].at_ms, first)
            said = await first.wait_for(lambda one: "dispositif" in one.body, PATIENCE_S)
            assert said.sender == ward.clinic.mxid("fajma")
            await monitor.send(*[BREATHLESS] * 4)
            alarm = await ward.alarm(room_id, "started")
            await first.wait_for(lambda one: one.event_id == alarm.event_id, PATIENCE_S)
            await ward.all_published(room_id, monitor.sent)
            last = ward.events(room_id)[-1]
            await first.wait_for(lambda one: one.event_id == last.event_id, PATIENCE_S)


async def test_a_second_signed_device_of_a_doctor_reads_the_snapshot_and_the_next_alarm(
    ward: Ward,
) -> None:
    localpart, mxid, password = await ward.account("dr.phone")
    async with ward.client_of(localpart, password) as desktop:
        bedside = await ward.admit(mxid)
        async with ward.monitor(bedside) as monitor:
            await monitor.send(WELL)
            await ward.snapshot_of(bedside.room_id, monitor.sent[-1].at_ms, desktop)
            async with ward.client_of(
                localpart, password, recovery_key=recovery_key(desktop)
            ) as phone:
                assert phone.client.device_id != desktop.client.device_id
                await ward.snapshot_of(bedside.room_id, monitor.sent[-1].at_ms, phone)
                await phone.vitals(bedside.room_id)
                await monitor.send(*[BREATHLESS] * 4)
                alarm = await ward.alarm(bedside.room_id, "started")
                await phone.wait_for(lambda one: one.event_id == alarm.event_id, PATIENCE_S)


async def test_an_unsigned_device_gets_no_room_key_until_its_owner_signs_it(ward: Ward) -> None:
    localpart, mxid, password = await ward.account("dr.careless")
    async with ward.client_of(localpart, password) as desktop:
        bedside = await ward.admit(mxid)
        room_id = bedside.room_id
        async with (
            ward.monitor(bedside) as monitor,
            plain_device(ward, mxid, password) as stray,
        ):
            await monitor.send(WELL, *[BREATHLESS] * 4)
            alarm = await ward.alarm(room_id, "started")
            await ward.all_published(room_id, monitor.sent)
            # Keys are sent before what they open, so whatever it gets is there by now.
            await stray.until(lambda: alarm.event_id in stray.locked)
            assert stray.keys() == set()
            bots = {ward.clinic.mxid("fajma-vitals"), ward.clinic.mxid("fajma-alerts")}
            assert bots <= stray.senders(room_id)
            assert stray.opened == {}

            await stray.be_signed_by(desktop)
            await ward.snapshot_of(room_id, monitor.sent[-1].at_ms, desktop)
            await stray.until(lambda: "com.fajma.vitals" in stray.opened.values())
            assert stray.keys() != set()
            await monitor.send(*[WELL] * 5)
            end = await ward.alarm(room_id, "recovered")
            await stray.until(lambda: end.event_id in stray.opened)
            assert alarm.event_id not in stray.opened


def recovery_key(observer: Observer) -> Path:
    return observer.client._directory / "recovery-key"


class PlainDevice:
    """matrix-nio as it comes: a device that its owner has not signed."""

    def __init__(self, client: nio.AsyncClient) -> None:
        self.client = client
        self.locked: dict[str, str] = {}
        """By event id, the sender of what it cannot decrypt."""
        self.opened: dict[str, str] = {}
        """By event id, the type of what it can."""
        self._rooms: dict[str, set[str]] = {}
        client.add_event_callback(self._on_event, nio.Event)

    async def _on_event(self, room: nio.MatrixRoom, event: nio.Event) -> None:
        if isinstance(event, nio.MegolmEvent):
            self.locked[event.event_id] = event.sender
            self._rooms.setdefault(room.room_id, set()).add(event.sender)
        elif getattr(event, "decrypted", False):
            self.opened[event.event_id] = event.source["type"]

    def senders(self, room_id: str) -> set[str]:
        """Whose events it sees and cannot read."""
        return self._rooms.get(room_id, set())

    def keys(self) -> set[str]:
        """Room keys that it was given by anybody."""
        return {session.id for session in self.client.olm.inbound_group_store}

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await self.client.sync(timeout=5000)

    async def be_signed_by(self, owner: Observer) -> None:
        """What a doctor does when he verifies a new device from his old one."""
        seeds = await seeds_of(owner.client)
        answer = await owner.client._call(
            "POST", "keys/query", {"device_keys": {self.client.user_id: []}}
        )
        device = answer["device_keys"][self.client.user_id][self.client.device_id]
        body = seeds.signatures_body(self.client.user_id, device)
        done = await owner.client._call("POST", "keys/signatures/upload", body)
        assert done["failures"] == {}


async def seeds_of(client: SignedClient) -> CrossSigningSeeds:
    default: Any = await client._account_data("m.secret_storage.default_key")
    recovery = decode_recovery_key((client._directory / "recovery-key").read_text())
    key = SecretStorageKey(default["key"], recovery)
    return await client._stored_seeds(key.key_id, key.key)


@asynccontextmanager
async def plain_device(ward: Ward, mxid: str, password: str) -> AsyncIterator[PlainDevice]:
    config = nio.AsyncClientConfig(store=SqliteMemoryStore, pickle_key="x")
    client = nio.AsyncClient(ward.clinic.synapse.base_url, mxid, "", "memory", config)
    try:
        await client.login(password)
        assert isinstance(await client.keys_upload(), nio.KeysUploadResponse)
        yield PlainDevice(client)
    finally:
        await client.close()
