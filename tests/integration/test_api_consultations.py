"""A consultation over REST: booked, opened, people invited, ended, signed; and by whom."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from appservice.api.permissions import Who
from fajma.life import ParticipantRole
from fajma.store import Records
from tests.integration.api_site import BEN, ApiSite, Caller, furnished, served
from tests.integration.scene import AWA, FATOU

BOOKING = {
    "number": "9",
    "initials": "N.S.",
    "bed": "12",
    "clinicians": [AWA],
    "booked_for": "2026-03-02T14:00:00+00:00",
}


@pytest.fixture
async def site(records: Records, tmp_path: Path) -> ApiSite:
    return await furnished(records, tmp_path / "secrets")


@pytest.fixture
async def client(site: ApiSite) -> AsyncIterator[TestClient[Any, Any]]:
    async with served(site) as client:
        yield client


@pytest.fixture
async def doctor(site: ApiSite, client: TestClient[Any, Any]) -> Caller:
    return Caller(client, await site.headers(client, Who.DOCTOR))


@pytest.fixture
async def software(site: ApiSite, client: TestClient[Any, Any]) -> Caller:
    return Caller(client, await site.headers(client, Who.CONSULTATIONS_WRITE))


async def test_what_software_books_a_doctor_opens_ends_and_signs(
    site: ApiSite, doctor: Caller, software: Caller
) -> None:
    status, booked = await software.asks("POST", "/consultations/book", BOOKING)
    assert (status, booked["status"], booked["room_id"]) == (200, "booked", None)
    path = f"/consultations/{booked['consultation']}"
    _, opened = await doctor.asks("POST", f"{path}/open")
    assert (opened["status"], opened["admitted_at"]) == ("open", None)
    _, admitted = await doctor.asks("POST", f"{path}/admit", {})
    assert admitted["admitted_at"] is not None
    _, ended = await doctor.asks("POST", f"{path}/end", {})
    assert (ended["status"], ended["ended_at"]) == ("ended", "2026-03-02T12:00:00Z")
    _, signed = await doctor.asks("POST", f"{path}/sign")
    assert [one["account"] for one in signed["signatures"]] == [AWA]
    assert (await doctor.asks("GET", path))[1] == signed
    acts = [(one.actor, one.action) for one in await site.records.audit.latest()]
    assert (AWA, "consultation.end") in acts
    assert (AWA, "consultation.sign") in acts
    [booker] = {actor for actor, action in acts if action == "consultation.book"}
    assert booker.startswith("api-key:")


async def test_a_step_that_cannot_be_taken_is_a_conflict(
    doctor: Caller, software: Caller, site: ApiSite
) -> None:
    path = f"/consultations/{site.consultation.id}"
    for step, code in (("cancel", "consultation_is_open"), ("sign", "consultation_is_open")):
        status, answer = await doctor.asks("POST", f"{path}/{step}")
        assert (status, answer["code"]) == (409, code)
    await doctor.asks("POST", f"{path}/end", {})
    status, answer = await software.asks("POST", f"{path}/open")
    assert (status, answer["code"]) == (409, "consultation_over")


async def test_nobody_ends_a_consultation_in_alarm_by_mistake(
    doctor: Caller, site: ApiSite
) -> None:
    path = f"/consultations/{site.consultation.id}/end"
    site.in_alarm = True
    status, answer = await doctor.asks("POST", path, {})
    assert (status, answer["code"]) == (409, "alarm_open")
    assert (await doctor.asks("POST", path, {"despite_alarm": True}))[0] == 200


async def test_somebody_is_invited_and_removed(doctor: Caller, site: ApiSite) -> None:
    path = f"/consultations/{site.consultation.id}/participants"
    body = {"account": FATOU, "role": "interpreter"}
    _, answer = await doctor.asks("POST", path, body)
    assert {"account": FATOU, "role": "interpreter", "invited": True} in answer["participants"]
    assert (await doctor.asks("GET", path))[1] == answer
    _, answer = await doctor.asks("DELETE", f"{path}/{FATOU}")
    assert FATOU not in [one["account"] for one in answer["participants"]]


@pytest.mark.parametrize(
    ("account", "role", "code"),
    [
        ("@x:nobody.test", "clinician", "not_a_partner"),
        ("@fajma:clinic.test", "observer", "account_of_fajma"),
        (FATOU, "patient", "role_of_patient"),
        (FATOU, "king", "body_invalid"),
    ],
)
async def test_who_cannot_take_part_is_not_invited(
    doctor: Caller, site: ApiSite, account: str, role: str, code: str
) -> None:
    path = f"/consultations/{site.consultation.id}/participants"
    status, answer = await doctor.asks("POST", path, {"account": account, "role": role})
    assert (status, answer["code"]) == (400, code)


async def test_a_doctor_who_only_observes_conducts_nothing(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    async with site.records.store.transaction() as connection:
        await site.records.consultations.include(
            connection, site.other_consultation.id, AWA, ParticipantRole.OBSERVER, now=site.now
        )
    doctor = Caller(client, await site.headers(client, Who.DOCTOR))
    path = f"/consultations/{site.other_consultation.id}"
    assert (await doctor.asks("GET", path))[0] == 200
    assert (await doctor.asks("GET", f"/patients/{site.other.key}/observations"))[0] == 200
    for step in ("end", "no-show", "language", "participants"):
        body = {"language": "en"} if step == "language" else {}
        if step == "participants":
            body = {"account": FATOU, "role": "observer"}
        status, answer = await doctor.asks("POST", f"{path}/{step}", body)
        assert (status, answer["code"]) == (403, "forbidden"), step


@pytest.mark.parametrize("role", [ParticipantRole.COMPANION, ParticipantRole.INTERPRETER])
async def test_who_takes_part_and_treats_nobody_reads_in_the_room_alone(
    site: ApiSite, client: TestClient[Any, Any], role: ParticipantRole
) -> None:
    async with site.records.store.transaction() as connection:
        await site.records.consultations.include(
            connection, site.other_consultation.id, AWA, role, now=site.now
        )
    doctor = Caller(client, await site.headers(client, Who.DOCTOR))
    assert (await doctor.asks("GET", f"/patients/{site.other.key}"))[0] == 404
    assert (await doctor.asks("GET", f"/consultations/{site.other_consultation.id}"))[0] == 404


async def test_what_a_partner_sees_of_a_patient_ends_with_the_consultation(
    site: ApiSite, client: TestClient[Any, Any], doctor: Caller
) -> None:
    async with site.records.store.transaction() as connection:
        await site.records.consultations.include(
            connection, site.other_consultation.id, BEN, now=site.now
        )
    partner = Caller(client, await site.headers(client, Who.PARTNER))
    path = f"/patients/{site.mine.key}/observations"
    assert (await partner.asks("GET", path))[0] == 200
    await doctor.asks("POST", f"/consultations/{site.consultation.id}/end", {})
    assert (await partner.asks("GET", path))[0] == 404
    assert (await partner.asks("GET", f"/patients/{site.other.key}/observations"))[0] == 200
    assert (await doctor.asks("GET", path))[0] == 200  # of his ward


async def test_consultations_are_listed_newest_first_in_pages(
    site: ApiSite, software: Caller
) -> None:
    for number in range(3):
        await software.asks("POST", "/consultations/book", BOOKING | {"number": f"B-{number}"})
    found, path = [], "/consultations?limit=2"
    while path:
        _, answer = await software.asks("GET", path)
        found += [one["consultation"] for one in answer["consultations"]]
        path = f"/consultations?limit=2&cursor={answer['next']}" if answer["next"] else ""
    assert len(found) == len(set(found)) == 5
    assert {site.consultation.id, site.other_consultation.id} < set(found)
