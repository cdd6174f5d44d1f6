"""From a monitor to a doctor's client: what arrives is what was measured."""

from __future__ import annotations

import csv
import os
from decimal import Decimal
from pathlib import Path

import pytest

from console.clinic import DOCTOR
from console.recording import read_recording
from fajma.events import ENCRYPTED, VITALS, AlarmBlock, Vitals
from fajma.vitals import Kind
from tests.e2e.ward import BREATHLESS, WELL, Sent, Ward, ledger, milliseconds, series, values

DATA = Path(
    os.environ.get("FAJMA_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data")
)


def latest(vitals: Vitals) -> dict[Kind, tuple[int, Decimal]]:
    return {kind: (milliseconds(one.measured_at), one.value) for kind, one in vitals.latest.items()}


async def test_a_reading_becomes_state_and_batch_with_exactly_its_values(ward: Ward) -> None:
    bedside = await ward.admit()
    reading = values("71.25", "96.5", "36.8125") | {
        Kind.SYSTOLIC: Decimal(118),
        Kind.DIASTOLIC: Decimal("76.5"),
    }
    async with ward.monitor(bedside) as monitor:
        await monitor.send(reading)
    (sent,) = monitor.sent
    expected = {kind: (sent.at_ms, value) for kind, value in reading.items()}

    vitals = await ward.snapshot_of(bedside.room_id, sent.at_ms)
    assert vitals.patient == bedside.patient
    assert latest(vitals) == expected
    assert latest(await ward.observer.vitals(bedside.room_id)) == expected
    await ward.all_published(bedside.room_id, monitor.sent)
    assert ward.alarms(bedside.room_id) == []


async def test_the_homeserver_sees_only_ciphertext_in_the_state_of_a_room(ward: Ward) -> None:
    bedside = await ward.admit()
    async with ward.monitor(bedside) as monitor:
        await monitor.send(WELL)
        await ward.snapshot_of(bedside.room_id, monitor.sent[-1].at_ms)

    state = await ward.observer.room_state(bedside.room_id)
    assert [event["type"] for event in state if event["type"].startswith("com.fajma")] == []
    sealed = {e["state_key"]: e["content"] for e in state if e["type"] == ENCRYPTED}
    assert f"{VITALS}:{bedside.patient}" in sealed
    for content in sealed.values():
        assert set(content) == {
            "algorithm", "ciphertext", "session_id", "sender_key", "device_id"
        }  # fmt: skip


async def test_low_oxygen_raises_one_alarm_and_its_end_is_told_once(ward: Ward) -> None:
    bedside = await ward.admit()
    neighbour = await ward.admit()
    async with ward.monitor(bedside) as monitor, ward.monitor(neighbour) as other:
        await monitor.send(WELL, WELL, *[BREATHLESS] * 5)
        await other.send(WELL)
        alarm = await ward.alarm(bedside.room_id, "started")
        await monitor.send(*[WELL] * 5)
        await ward.alarm(bedside.room_id, "recovered")
        await monitor.send(WELL)
        await ward.all_published(bedside.room_id, monitor.sent)
        await ward.all_published(neighbour.room_id, other.sent)

    states = [one.content.state for one in ward.alarms(bedside.room_id)]  # type: ignore[union-attr]
    assert states == ["started", "recovered"]
    block = alarm.content
    assert isinstance(block, AlarmBlock)
    third = monitor.sent[4]
    assert (block.kind, block.value, block.limit) == (Kind.SPO2, Decimal(86), Decimal(90))
    assert (milliseconds(block.measured_at), block.priority) == (third.at_ms, "high")
    assert block.patient == bedside.patient
    assert alarm.sender == ward.clinic.mxid("fajma-alerts")
    assert alarm.mentions == (ward.clinic.mxid(DOCTOR),)
    body = alarm.body.replace("\N{NO-BREAK SPACE}", " ")
    assert body.startswith(f"ALARME HAUTE · Lit {bedside.bed} {bedside.initials} · SpO2 86 %")
    recovered = ward.alarms(bedside.room_id, "recovered")[0]
    assert recovered.body.startswith("FIN D'ALARME")
    assert recovered.content.alarm_id == block.alarm_id  # type: ignore[union-attr]
    assert ward.alarms(neighbour.room_id) == []


async def test_a_monitor_that_changes_patients_reports_to_the_new_one(ward: Ward) -> None:
    first = await ward.admit()
    second = await ward.admit()
    async with ward.monitor(first) as monitor:
        await monitor.send(WELL)
        await ward.all_published(first.room_id, monitor.sent)
    await ward.clinic.api(
        "consultations",
        {
            "number": second.number,
            "initials": second.initials,
            "bed": second.bed,
            "clinicians": list(second.clinicians),
            "device": first.device,
        },
    )
    async with ward.monitor(first) as again:
        await again.send(values("81", "95"))
        await ward.all_published(second.room_id, again.sent)

    assert ward.published(first.room_id) == series(monitor.sent)


async def test_a_real_recording_arrives_row_by_row_once_and_in_order(ward: Ward) -> None:
    file = DATA / "bidmc" / "bidmc_19_Numerics.csv"
    if not file.exists() and not os.environ.get("CI"):
        pytest.skip(f"the real recordings are not at {DATA}: set FAJMA_DATA")
    with file.open() as raw:
        rows = list(csv.DictReader(raw, skipinitialspace=True))
    bedside = await ward.admit()

    monitor = ward.clinic.start_monitor(
        bedside.device, "--replay", str(file), "--speed", "200"
    )  # fmt: skip
    assert await monitor.wait() == 0

    sent = ledger(monitor.log_path)
    assert [one.values for one in sent] == [found for _, found in read_recording(file)]
    assert len(sent) == len(rows)
    assert any(row["SpO2"] == "NaN" for row in rows)
    shown = [row["HR"] for row in rows if row["HR"] != "NaN"]
    await ward.all_published(bedside.room_id, [Sent(one.at_ms, one.values) for one in sent])
    assert [
        str(value) for _, value in ward.published(bedside.room_id)[Kind.HEART_RATE]
    ] == shown  # fmt: skip
