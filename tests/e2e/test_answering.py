"""Alarms are answered where the clinician is: by a tick, by a command; a chart follows them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from io import BytesIO
from urllib.parse import quote

import nio
import pytest_asyncio
from nio.crypto.attachments import decrypt_attachment
from PIL import Image

from bots.alerts.alarm_state import PatientState
from bots.alerts.chart import HEIGHT, WIDTH
from console.observer import Seen
from console.run import opened
from fajma.config import load
from fajma.vitals import Kind, PatientKey
from tests.e2e.test_phones import Clinician, Team, clinician, new_team
from tests.e2e.ward import BREATHLESS, PATIENCE_S, WELL, Bedside, Ward, values
from tests.push_gateway import PushGateway

RACING = values("140", "97")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def gateway() -> AsyncIterator[PushGateway]:
    async with PushGateway() as gateway:
        yield gateway


@asynccontextmanager
async def doctor_and_nurse(
    ward: Ward, gateway: PushGateway, team: Team
) -> AsyncIterator[tuple[Clinician, Clinician]]:
    """Both of the ward; the doctor is on duty."""
    async with (
        clinician(ward, gateway, team) as doctor,
        clinician(ward, gateway, team, phone=False) as nurse,
    ):
        await ward.operate("staff/role", who=doctor.mxid, role="doctor")
        await doctor.orders(team.room_id, "!garde prendre")
        yield doctor, nurse


async def react(one: Clinician, room_id: str, event_id: str, key: str) -> None:
    """As Element does: in clear, since Matrix does not encrypt reactions."""
    relates = {"rel_type": "m.annotation", "event_id": event_id, "key": key}
    path = f"rooms/{quote(room_id)}/send/m.reaction/{secrets.token_hex(8)}"
    status, answer = await one.ward.matrix(
        "PUT", path, {"m.relates_to": relates}, token=one.observer.client.access_token
    )
    assert status == 200, answer


def of_host(ward: Ward, *containing: str) -> Callable[[Seen], bool]:
    """A message that does not ring."""
    host = ward.clinic.mxid("fajma")
    return lambda one: one.sender == host and all(words in one.body for words in containing)


async def state_of(ward: Ward, bedside: Bedside) -> PatientState:
    async with opened(load(ward.clinic.config_path)) as records:
        text = await records.alarm_states.get(PatientKey(bedside.patient))
    return PatientState.from_json(text) if text else PatientState()


async def state_until(
    ward: Ward, bedside: Bedside, condition: Callable[[PatientState], bool]
) -> PatientState:
    async with asyncio.timeout(PATIENCE_S):
        while not condition(state := await state_of(ward, bedside)):
            pass  # a query answers, no clock is waited for
    return state


async def test_a_doctor_answers_by_tick_and_by_command_and_sets_a_limit(
    ward: Ward, gateway: PushGateway
) -> None:
    team = await new_team(ward)
    async with doctor_and_nurse(ward, gateway, team) as (doctor, nurse):
        pictures: list[nio.RoomEncryptedImage] = []

        async def keep(_: nio.MatrixRoom, event: nio.RoomEncryptedImage) -> None:
            pictures.append(event)

        doctor.observer.client.add_event_callback(keep, nio.RoomEncryptedImage)
        bedside = await ward.admit(doctor.mxid)
        await doctor.be_in(bedside.room_id)
        async with ward.monitor(bedside) as monitor:
            await monitor.send(WELL, *[BREATHLESS] * 5)
            alarm = await doctor.alarm(team.room_id, "started", bedside)

            # A tick on the message: told in both rooms, noted, and nothing more.
            await react(doctor, team.room_id, alarm.event_id, "✅")
            words = ("✓ Vu par", doctor.mxid, "SpO2")
            await doctor.sees(team.room_id, of_host(ward, *words))
            await doctor.sees(bedside.room_id, of_host(ward, *words))
            await state_until(
                ward, bedside, lambda state: all(one.acknowledged for one in state.care.values())
            )

            # The chart that followed the alarm, which rang nobody.
            chart = await doctor.sees(team.room_id, lambda one: one.event_id in ids(pictures))
            picture = next(one for one in pictures if one.event_id == chart.event_id)
            content = picture.source["content"]
            assert content["m.relates_to"]["m.in_reply_to"]["event_id"] == alarm.event_id
            assert Image.open(BytesIO(await fetched(doctor, picture))).size == (WIDTH, HEIGHT)
            assert "oxymètres surestiment" in content["body"]

            # Another alarm, by command, in the consultation where no bed is needed.
            monitor.catch_up()
            await monitor.send(*[RACING] * 5)
            second = await doctor.sees(
                team.room_id,
                lambda one: getattr(one.content, "kind", None) is Kind.HEART_RATE,
            )
            answered = await doctor.orders(bedside.room_id, "!vu fc")
            assert "✓ Vu par" in answered
            await doctor.told_of(second.event_id)
            assert chart.event_id not in {one.event_id for one in doctor.pushes()}

            # A limit, by a doctor alone.
            refused = await nurse.orders(
                team.room_id, f"!seuils spo2 < 85 BPCO connue lit {bedside.bed}"
            )
            assert "réglés par les médecins" in refused
            said = await doctor.orders(bedside.room_id, "!seuils spo2 < 85 BPCO connue")
            assert "BPCO connue" in said
            state = await state_until(ward, bedside, lambda one: bool(one.standing.own_limits))
            assert [str(one.threshold) for one in state.standing.own_limits] == ["85"]

        acts = [one for one in await ward.audit(doctor.mxid) if one.subject == bedside.patient]
        assert [(one.action, one.detail.get("by")) for one in acts] == [
            ("alarm.acknowledge", "reaction"),
            ("alarm.acknowledge", "command"),
            ("limit.set", None),
        ]
        denied = await ward.audit(nurse.mxid)
        assert [one.detail for one in denied if one.action == "order.refused"] == [
            {"reason": "not_doctor"}
        ]


async def test_the_patient_may_look_at_the_own_values_and_do_nothing_else(
    ward: Ward, gateway: PushGateway
) -> None:
    team = await new_team(ward)
    async with doctor_and_nurse(ward, gateway, team) as (doctor, _):
        bedside = await ward.admit(doctor.mxid)
        await doctor.be_in(bedside.room_id)
        localpart, mxid, password = await ward.account("patient")
        async with (
            ward.client_of(localpart, password) as observer,
            ward.monitor(bedside) as monitor,
        ):
            patient = Clinician(ward, gateway, observer)
            code, said = await ward.command("patient", "link-account", bedside.number, mxid)
            assert code == 0, said
            await patient.be_in(bedside.room_id)
            await monitor.send(WELL, *[BREATHLESS] * 5)
            alarm = await doctor.alarm(bedside.room_id, "started", bedside)

            await react(patient, bedside.room_id, alarm.event_id, "✅")
            for line in ("!vu", "!pause spo2 10m", "!seuils spo2 < 85 raison", "!mesure fr 18"):
                said = await patient.orders(bedside.room_id, line)
                assert "Seul le personnel" in said
            table = "médiane"
            await patient.orders(bedside.room_id, "!constantes 1h")
            shown = await patient.sees(bedside.room_id, of_host(ward, table))
            assert "SpO2" in shown.body
            assert "NEWS2" not in shown.body

            care = (await state_of(ward, bedside)).care
            assert [one.acknowledged for one in care.values()] == [False]
            acts = [one.action for one in await ward.audit(mxid)]
            assert acts == ["order.refused"] * 4 + ["vitals.show"]


def ids(pictures: list[nio.RoomEncryptedImage]) -> set[str]:
    return {one.event_id for one in pictures}


async def fetched(one: Clinician, picture: nio.RoomEncryptedImage) -> bytes:
    """The picture as its reader sees it; what the homeserver holds is not that."""
    answer = await one.observer.client.download(picture.url)
    assert isinstance(answer, nio.MemoryDownloadResponse), answer
    assert b"PNG" not in answer.body
    file = picture.source["content"]["file"]
    png: bytes = decrypt_attachment(
        answer.body, file["key"]["k"], file["hashes"]["sha256"], file["iv"]
    )
    return png
