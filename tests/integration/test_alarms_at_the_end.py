"""What becomes of alarms when a consultation ends: seen before, told in the ward, or dropped."""

from __future__ import annotations

from datetime import timedelta

from bots.alerts.engine import FOLLOWER, AlarmEngine, rules_from
from bots.alerts.situation import unanswered
from fajma.config import Alarms
from fajma.facts import Acknowledged
from fajma.life import Status
from fajma.store.alarms import SentBy
from fajma.store.consultations import Consultation
from fajma.store.patients import Patient
from fajma.vitals import DeviceId
from tests.integration.scene import AWA, NOON, ROOM, Scene, consultation, falls

DOCTOR = "@doctor:partner.test"
LATER = NOON + timedelta(minutes=5)


async def ill(scene: Scene, *clinicians: str) -> tuple[Patient, Consultation]:
    """A patient with a monitor in a consultation, whose SpO2 has fallen."""
    patient, opened = await consultation(scene, *clinicians)
    await scene.records.devices.link(DeviceId("1"), patient.key, opened.id, now=NOON)
    await falls(scene, patient)
    return patient, opened


async def judge(scene: Scene) -> None:
    engine = AlarmEngine(Alarms(), scene.records, now=lambda: scene.now)
    while await engine.advance():
        pass


async def end(scene: Scene, opened: Consultation) -> None:
    async with scene.records.store.transaction() as connection:
        await scene.records.devices.detach(connection, opened.id, now=LATER)
        await scene.records.consultations.enter(connection, opened.id, Status.ENDED, ended_at=LATER)


async def test_an_alarm_waits_for_an_answer_until_somebody_takes_care(scene: Scene) -> None:
    patient, _ = await ill(scene, DOCTOR)
    rules = rules_from(Alarms())
    assert await unanswered(scene.records, rules, patient.key)
    async with scene.records.store.transaction() as connection:
        await scene.records.facts.append(connection, patient.key, Acknowledged(LATER, AWA, None))
    await judge(scene)
    assert not await unanswered(scene.records, rules, patient.key)


async def test_who_is_well_has_no_alarm_and_who_cannot_be_read_may_have_one(scene: Scene) -> None:
    patient, _ = await consultation(scene, DOCTOR)
    rules = rules_from(Alarms())
    assert not await unanswered(scene.records, rules, patient.key)
    await falls(scene, patient)
    await scene.records.store.db.execute("UPDATE alarm_state SET sealed=$1", b"altered")
    assert await unanswered(scene.records, rules, patient.key)


async def test_the_end_of_monitoring_is_told_in_the_wards_room(scene: Scene) -> None:
    _, opened = await ill(scene, AWA)
    await end(scene, opened)
    await judge(scene)
    told = await scene.said(ROOM, SentBy.ALERTS)
    assert "FIN DE SURVEILLANCE" in str(told[-1].content["body"])


async def test_without_a_ward_nothing_is_told_in_the_frozen_room_and_nobody_is_left_behind(
    scene: Scene,
) -> None:
    _, opened = await ill(scene, DOCTOR)
    before = await scene.records.outbox.counts()
    await end(scene, opened)
    await judge(scene)
    assert await scene.records.outbox.counts() == before
    assert await scene.records.followers.left_behind(FOLLOWER) == {}
