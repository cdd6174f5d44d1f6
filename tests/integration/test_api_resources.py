"""What the resources answer: observations, alarms, limits, monitors, consents, the documents."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from appservice.api import pages
from appservice.api.models import LimitInForce
from appservice.api.permissions import Who
from fajma.store import Records, readings
from fajma.vitals import DeviceId, Kind
from tests.integration.api_site import HOSPITAL_TOKEN, MONITOR, ApiSite, Caller, furnished, served
from tests.integration.scene import AWA, NOON, falls


@pytest.fixture
async def site(records: Records, tmp_path: Path) -> ApiSite:
    return await furnished(records, tmp_path / "secrets")


@pytest.fixture
async def client(site: ApiSite) -> AsyncIterator[TestClient[Any, Any]]:
    async with served(site) as client:
        yield client


async def caller(site: ApiSite, client: TestClient[Any, Any], who: Who) -> Caller:
    return Caller(client, await site.headers(client, who))


async def spo2(asking: Caller, path: str) -> tuple[list[float], int]:
    """All values on all pages, and how many pages there were."""
    found: list[float] = []
    count, following = 0, ""
    while True:
        status, answer = await asking.asks("GET", path + following)
        assert status == 200, answer
        found += [one["values"][0]["value"] for one in answer["observations"]]
        count += 1
        if answer["next"] is None:
            return found, count
        following = f"&cursor={answer['next']}"


# --- observations --------------------------------------------------------------------------------


async def test_observations_come_newest_first_with_unit_and_code(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    await site.measures(site.mine.key, 97, 96)
    doctor = await caller(site, client, Who.DOCTOR)
    _, answer = await doctor.asks("GET", f"/patients/{site.mine.key}/observations")
    newest, oldest = answer["observations"]
    assert newest["values"] == [{"kind": "spo2", "value": 96, "unit": "%", "loinc": "59408-5"}]
    assert oldest["measured_at"] == "2026-03-02T12:00:00Z"
    assert (newest["device"], newest["age"], answer["next"]) == (MONITOR, "live", None)


@pytest.mark.parametrize("scanned", [1, 7, 5000])
async def test_a_span_of_time_is_found_however_few_readings_are_looked_at_for_a_page(
    site: ApiSite, client: TestClient[Any, Any], monkeypatch: pytest.MonkeyPatch, scanned: int
) -> None:
    monkeypatch.setattr(readings, "SCANNED", scanned)
    await site.measures(site.mine.key, *range(60, 100), every_s=60)
    await site.measures(site.other.key, *range(60, 100), every_s=60)
    doctor = await caller(site, client, Who.DOCTOR)
    path = f"/patients/{site.mine.key}/observations?limit=4"
    whole, count = await spo2(doctor, path)
    assert whole == [float(value) for value in reversed(range(60, 100))]
    assert count >= 10
    span = "&since=2026-03-02T12:10:00Z&until=2026-03-02T12:15:00%2B00:00"
    found, _ = await spo2(doctor, path + span)
    assert found == [74, 73, 72, 71, 70]


async def test_a_reading_that_came_late_is_found_by_when_it_was_measured(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    await site.measures(site.mine.key, 97)
    site.now -= timedelta(hours=2)
    await site.measures(site.mine.key, 91)
    site.now = NOON
    doctor = await caller(site, client, Who.DOCTOR)
    path = f"/patients/{site.mine.key}/observations?until=2026-03-02T11:00:00Z"
    assert (await spo2(doctor, path))[0] == [91]


@pytest.mark.parametrize("query", ["since=yesterday", "since=2026-03-02T12:00:00", "limit=201"])
async def test_a_time_without_offset_or_a_page_too_long_is_refused(
    site: ApiSite, client: TestClient[Any, Any], query: str
) -> None:
    doctor = await caller(site, client, Who.DOCTOR)
    status, answer = await doctor.asks("GET", f"/patients/{site.mine.key}/observations?{query}")
    assert (status, answer["code"]) == (400, "query_invalid")


# --- alarms and limits ---------------------------------------------------------------------------


async def test_alarms_are_what_was_said_of_them(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    await falls(site.scene, site.mine)
    doctor = await caller(site, client, Who.DOCTOR)
    _, answer = await doctor.asks("GET", f"/patients/{site.mine.key}/alarms")
    [alarm] = answer["alarms"]
    assert (alarm["state"], alarm["kind"], alarm["unit"]) == ("started", "spo2", "%")
    assert alarm["value"] == 88
    assert alarm["priority"] == "high"
    assert "trouble" in alarm
    status, refused = await doctor.asks("POST", f"/patients/{site.mine.key}/alarms")
    assert (status, refused["code"]) == (405, "no_such_method")


async def test_limits_are_those_that_the_engine_judges_by(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    limit = LimitInForce(
        kind=Kind.SPO2,
        comparison="<",
        threshold=88,
        unit="%",
        priority="high",
        own=True,
        until=NOON + timedelta(hours=8),
    )
    site.limits.append(limit)
    doctor = await caller(site, client, Who.DOCTOR)
    _, answer = await doctor.asks("GET", f"/patients/{site.mine.key}/limits")
    assert answer == {"limits": [json.loads(limit.model_dump_json())]}


# --- monitors ------------------------------------------------------------------------------------


async def test_a_monitor_is_put_on_seen_and_taken_off(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    doctor = await caller(site, client, Who.DOCTOR)
    path = f"/patients/{site.mine.key}/devices"
    status, worn = await doctor.asks("PUT", f"{path}/{MONITOR}", {})
    assert (status, worn["worn_before_by"]) == (200, None)
    _, answer = await doctor.asks("GET", path)
    [link] = answer["devices"]
    assert (link["device"], link["worn_until"]) == (MONITOR, None)
    site.now += timedelta(minutes=1)
    assert (await doctor.asks("DELETE", f"{path}/{MONITOR}"))[0] == 200
    _, answer = await doctor.asks("GET", path)
    assert answer["devices"][0]["worn_until"] == "2026-03-02T12:01:00Z"
    status, refused = await doctor.asks("DELETE", f"{path}/{MONITOR}")
    assert (status, refused["code"]) == (404, "monitor_not_worn")
    acts = [(one.actor, one.action) for one in await site.records.audit.latest()]
    assert (AWA, "patient.wear") in acts
    assert (AWA, "patient.take_off") in acts


async def test_worn_monitors_are_listed_in_pages(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    devices = [f"A4CF12F03B7{number}" for number in range(5)]
    for device in devices:
        await site.records.devices.link(DeviceId(device), site.mine.key, None, now=site.now)
    software = await caller(site, client, Who.PATIENTS_READ)
    found, following = [], ""
    while True:
        _, answer = await software.asks("GET", f"/devices?limit=2{following}")
        found += [one["device"] for one in answer["devices"]]
        if answer["next"] is None:
            break
        following = f"&cursor={answer['next']}"
    assert found == devices


async def test_whose_monitor_it_was_is_told_only_to_who_may_know(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    hospital = Caller(client, {"Authorization": f"Bearer {HOSPITAL_TOKEN}"})
    body = {"number": "2", "device": MONITOR}
    assert (await hospital.asks("POST", "/patients/monitor", body))[0] == 200
    site.now += timedelta(minutes=1)
    doctor = await caller(site, client, Who.DOCTOR)
    path = f"/patients/{site.mine.key}/devices/{MONITOR}"
    assert (await doctor.asks("PUT", path, {}))[1]["worn_before_by"] is None
    site.now += timedelta(minutes=1)
    _, told = await hospital.asks("POST", "/patients/monitor", body)
    assert told["worn_before_by"] == "1"


# --- consents ------------------------------------------------------------------------------------


async def test_a_consent_is_given_and_withdrawn_audited_and_its_note_sealed(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    patient = await caller(site, client, Who.PATIENT)
    path = f"/patients/{site.mine.key}/consents"
    body = {"purpose": "sharing", "note": "her mother was there"}
    status, given = await patient.asks("POST", path, body)
    assert (status, given["given_to"], given["withdrawn_at"]) == (201, "@patient:clinic.test", None)
    site.now += timedelta(minutes=1)
    doctor = await caller(site, client, Who.DOCTOR)
    _, withdrawn = await doctor.asks("POST", f"{path}/{given['consent']}/withdraw")
    _, again = await patient.asks("POST", f"{path}/{given['consent']}/withdraw")
    assert withdrawn == again
    assert withdrawn["withdrawn_to"] == "@awa:clinic.test"
    assert withdrawn["note"] == "her mother was there"
    assert (await doctor.asks("GET", path))[1]["consents"] == [withdrawn]
    audit = await site.records.audit.latest()
    assert [one.action for one in audit if one.action.startswith("consent")] == [
        "consent.give",
        "consent.withdraw",
    ]
    rows = await site.records.store.db.fetch("SELECT * FROM consent")
    assert "mother" not in str([dict(row) for row in rows])


async def test_a_consent_of_another_patient_is_not_withdrawn(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    software = await caller(site, client, Who.CONSENTS_WRITE)
    path = f"/patients/{site.other.key}/consents"
    _, given = await software.asks("POST", path, {"purpose": "monitoring"})
    patient = await caller(site, client, Who.PATIENT)
    theirs = f"/patients/{site.mine.key}/consents/{given['consent']}/withdraw"
    status, answer = await patient.asks("POST", theirs)
    assert (status, answer["code"]) == (404, "consent_unknown")
    assert (await software.asks("GET", path))[0] == 200


async def test_an_erased_patient_is_said_so_and_harms_no_list(site: ApiSite) -> None:
    await site.records.store.db.execute(
        "DELETE FROM patient_key WHERE patient_key=$1", site.mine.key
    )
    site.records = Records(site.records.store, site.records.site_key)  # which remembers no key
    async with served(site) as restarted:
        software = await caller(site, restarted, Who.PATIENTS_READ)
        status, answer = await software.asks("GET", f"/patients/{site.mine.key}")
        assert (status, answer["code"]) == (410, "patient_erased")
        listed: list[str] = []
        following = ""
        while True:
            _, answer = await software.asks("GET", f"/patients?limit=1{following}")
            listed += [one["patient"] for one in answer["patients"]]
            if answer["next"] is None:
                break
            following = f"&cursor={answer['next']}"
        assert listed == [site.other.key]


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("account", "code"),
    [
        ("@aw\N{CYRILLIC SMALL LETTER A}:clinic.test", "body_invalid"),
        ("@awa:clinic.test\u200b", "body_invalid"),
        ("@awa", "body_invalid"),
        ("awa:clinic.test", "body_invalid"),
        ("@" + "a" * 300 + ":clinic.test", "body_invalid"),
        ("@fajma-vitals:clinic.test", "account_of_fajma"),
    ],
)
async def test_an_account_that_is_none_or_ours_is_refused(
    site: ApiSite, client: TestClient[Any, Any], account: str, code: str
) -> None:
    hospital = Caller(client, {"Authorization": f"Bearer {HOSPITAL_TOKEN}"})
    body = {"number": "1", "account": account}
    status, answer = await hospital.asks("POST", "/patients/account", body)
    assert (status, answer["code"]) == (400, code)
    assert site.matrix.invited == []


@pytest.mark.parametrize(
    "name", ["\N{CYRILLIC CAPITAL LETTER A}wa Diop", "Awa\u202eDiop", "Awa D1op"]
)
async def test_a_name_that_imitates_another_is_refused(
    site: ApiSite, client: TestClient[Any, Any], name: str
) -> None:
    operator = await caller(site, client, Who.OPERATOR)
    body = {"who": "awa.diop", "name": name, "role": "nurse"}
    status, answer = await operator.asks("POST", "/staff", body)
    assert (status, answer["code"]) == (400, "name_invalid")


# --- the documents -------------------------------------------------------------------------------


async def test_the_document_describes_every_route_and_every_permission(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    _, api = await Caller(client, {}).asks("GET", "/openapi.json")
    assert api["openapi"] == "3.1.0"
    described = {
        f"{method.upper()} {path.removeprefix('/fajma/v1')}"
        for path, methods in api["paths"].items()
        for method in methods
    }
    assert described == {one.name for one in site.routes}
    identities = [
        one["operationId"] for methods in api["paths"].values() for one in methods.values()
    ]
    assert len(set(identities)) == len(identities)
    text = json.dumps(api)
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in api["components"]["schemas"]


async def test_the_page_for_people_fetches_nothing_and_runs_nothing(
    client: TestClient[Any, Any],
) -> None:
    response = await Caller(client, {}).response("GET", "/docs")
    text = await response.text()
    assert response.content_type == "text/html"
    assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert "<script" not in text
    assert "http://" not in text
    assert "https://" not in text
    assert "GET /fajma/v1/patients/{patient}/observations" in text


def test_a_page_has_at_most_two_hundred_entries() -> None:
    assert pages.MOST == 200
