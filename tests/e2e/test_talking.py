"""A consultation from its opening to the signature, by typing alone; also when FAJMA is killed."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from console.run import opened
from fajma.config import load
from fajma.life import ParticipantRole, Status
from fajma.store.consultations import Consultation
from fajma.vitals import DeviceId
from tests.e2e.test_phones import clinician, new_team
from tests.e2e.ward import BREATHLESS, WELL, Bedside, Ward, mark
from tests.push_gateway import PushGateway


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def gateway() -> AsyncIterator[PushGateway]:
    async with PushGateway() as gateway:
        yield gateway


async def consultations_of(ward: Ward, number: str) -> list[Consultation]:
    async with opened(load(ward.clinic.config_path)) as records:
        patient = await records.patients.by_number(number)
        assert patient is not None
        every = await records.consultations.having(*Status)
        return [one for one in every if one.patient == patient.key]


def bedside_of(consultation: Consultation, number: str, device: DeviceId) -> Bedside:
    return Bedside(
        number=number,
        initials="A.D.",
        bed="4",
        device=device,
        room_id=str(consultation.room_id),
        patient=consultation.patient,
        clinicians=consultation.clinicians,
    )


async def test_a_consultation_is_held_by_typing_alone(ward: Ward, gateway: PushGateway) -> None:
    team = await new_team(ward)
    number, code = f"T-{mark()}", DeviceId(secrets.token_hex(6).upper())
    async with (
        clinician(ward, gateway, team) as doctor,
        clinician(ward, gateway, team, phone=False) as nurse,
    ):
        answer = await doctor.orders(team.room_id, f"!consultation A.D. lit 4 dossier {number}")
        assert answer.startswith("Lit 4 A.D.")
        assert number not in answer
        [consultation] = await consultations_of(ward, number)
        room_id = str(consultation.room_id)
        assert consultation.role_of(doctor.mxid) is ParticipantRole.LEAD
        await doctor.be_in(room_id)
        listed = await nurse.orders(team.room_id, "!consultations")
        assert "Lit 4 A.D." in listed
        assert doctor.mxid in listed

        invited = await doctor.orders(room_id, f"!inviter {nurse.mxid}")
        assert nurse.mxid in invited
        await nurse.be_in(room_id)
        stranger = await doctor.orders(room_id, "!inviter @ngone:ailleurs.test")
        assert "n'est pas partenaire" in stranger

        assert code in await nurse.orders(room_id, f"!moniteur {code.lower()}")
        bedside = bedside_of(consultation, number, code)
        async with ward.monitor(bedside) as monitor:
            await monitor.send(WELL)
            await doctor.sees(room_id, lambda one: one.event_type == "com.fajma.vitals")

            assert "téléphone" in await doctor.orders(room_id, "!appel")
            assert "English" in await doctor.orders(room_id, "!langue en")

            monitor.catch_up()
            await monitor.send(*[BREATHLESS] * 5)
            await doctor.alarm(team.room_id, "started", bedside)
            question = await doctor.orders(room_id, "!terminer")
            assert question.endswith("!terminer malgré alarme")
            assert "ALARME HAUTE" in await doctor.orders(room_id, "!terminer oui")
            await doctor.orders(room_id, "!vu")
            assert (await doctor.orders(room_id, "!terminer")).endswith("!terminer oui")
            assert "!signer" in await doctor.orders(room_id, "!terminer oui")

        [consultation] = await consultations_of(ward, number)
        assert consultation.status is Status.ENDED
        signed = await doctor.orders(team.room_id, "!signer")
        assert consultation.short_name in signed
        await nurse.sees(room_id, lambda one: "✓" in one.body and doctor.mxid in one.body)
        acts = [one.action for one in await ward.audit(doctor.mxid)]
        assert acts.count("errand.ordered") == acts.count("errand.done") + 1 == 7
        assert acts.count("errand.not_done") == 1  # the stranger


@pytest.mark.parametrize("moment", ["order_carried_out", "consultation_opened"])
async def test_an_order_outlives_the_process_that_took_it(
    ward: Ward, gateway: PushGateway, moment: str
) -> None:
    team = await new_team(ward)
    number = f"K-{mark()}"
    async with clinician(ward, gateway, team) as doctor:
        since = ward.log_mark()
        asked = asyncio.create_task(
            doctor.orders(team.room_id, f"!consultation A.D. lit 5 dossier {number}")
        )
        await ward.log_says(moment, since)
        await ward.kill_fajma()
        await ward.clinic.start_fajma()
        assert (await asked).startswith("Lit 5 A.D.")
        [consultation] = await consultations_of(ward, number)
        assert consultation.status is Status.OPEN
        await doctor.be_in(str(consultation.room_id))
        # The answer to this comes after whatever else was promised before.
        await doctor.orders(team.room_id, "!garde")
        opened_once = [
            one.event_id
            for one in doctor.observer.seen
            if one.room_id == team.room_id and one.body.startswith("Lit 5 A.D.")
        ]
        assert len(set(opened_once)) == 1
