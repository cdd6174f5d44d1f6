"""Who may do what, against a table that was written by hand: every route, every kind of caller.

``expected_permissions.csv``: ``no`` is refused (401 or 403), ``own`` finds what is his and does not
find what is another's (404), ``all`` finds both. A route or a caller that is missing in it fails.
"""

from __future__ import annotations

import csv
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from aiohttp.test_utils import TestClient

from appservice.api.permissions import Who
from fajma.store import Records
from fajma.store.consents import Purpose
from fajma.vitals import DeviceId
from tests.integration.api_site import MONITOR, ApiSite, Caller, furnished, served

TABLE: Final = Path(__file__).with_name("expected_permissions.csv")


def expected() -> dict[str, dict[str, str]]:
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {row.pop("route"): row for row in rows}


EXPECTED: Final = expected()


@pytest.fixture
async def site(sqlite_records: Records, tmp_path: Path) -> ApiSite:
    return await furnished(sqlite_records, tmp_path / "secrets")


@pytest.fixture
async def client(site: ApiSite) -> AsyncIterator[TestClient[Any, Any]]:
    async with served(site) as client:
        yield client


async def test_every_route_and_every_caller_is_in_the_table(site: ApiSite) -> None:
    site.application()
    assert {one.name for one in site.routes} == set(EXPECTED)
    for route, row in EXPECTED.items():
        assert set(row) == set(Who), route
        assert set(row.values()) <= {"no", "own", "all"}, route


class Asked:
    """A request to a route about one of the two patients."""

    def __init__(self, site: ApiSite, route: str, *, mine: bool, consent: str) -> None:
        patient = site.mine if mine else site.other
        consultation = site.consultation if mine else site.other_consultation
        self.method, _, path = route.partition(" ")
        self.path = (
            path.replace("{patient}", patient.key)
            .replace("{consultation}", consultation.id)
            .replace("{consent}", consent)
            .replace("{device}", MONITOR)
            .replace("{account}", "@fatou:clinic.test")
        )
        bodies: dict[str, Any] = {
            "POST /patients/find": {"number": patient.number},
            "POST /patients/change": {"number": patient.number, "bed": "3"},
            "POST /patients/account": {"number": patient.number},
            "POST /patients/monitor": {"number": patient.number, "device": MONITOR, "off": True},
            "PATCH /patients/{patient}": {"bed": "3"},
            "PUT /patients/{patient}/devices/{device}": {},
            "POST /patients/{patient}/consents": {"purpose": "monitoring"},
            "POST /consultations/{consultation}/participants": {
                "account": "@fatou:clinic.test",
                "role": "clinician",
            },
            "POST /consultations/{consultation}/language": {"language": "en"},
        }
        self.body = bodies.get(route, {} if self.method == "POST" else None)


async def outcome(site: ApiSite, caller: Caller, asked: Asked) -> str:
    """``refused``, ``hidden`` or ``granted``."""
    site.now += timedelta(seconds=2)
    response = await caller.response(asked.method, asked.path, asked.body)
    try:
        if response.status in {401, 403}:
            return "refused"
        assert response.status < 500, await response.text()
        assert response.status != 429
        if response.status == 404:
            code = (await response.json())["code"]
            assert code in {"not_found", "patient_unknown", "consent_unknown", "monitor_not_worn"}
            return "granted" if code in {"consent_unknown", "monitor_not_worn"} else "hidden"
        return "granted"
    finally:
        response.close()


MEANS: Final = {
    "no": ("refused", "refused"),
    "own": ("granted", "hidden"),
    "all": ("granted", "granted"),
}
LISTS: Final = frozenset({"GET /patients", "GET /devices", "GET /consultations"})


@pytest.mark.parametrize("who", list(Who))
async def test_each_caller_may_do_what_the_table_says_and_nothing_else(
    site: ApiSite, client: TestClient[Any, Any], who: Who
) -> None:
    await site.records.devices.link(DeviceId(MONITOR), site.mine.key, None, now=site.now)
    wrong = []
    for route, row in EXPECTED.items():
        caller = Caller(client, await site.headers(client, who))
        consents = [await given(site, one.key) for one in (site.mine, site.other)]
        found = [
            await outcome(site, caller, Asked(site, route, mine=mine, consent=consent))
            for mine, consent in zip((True, False), consents, strict=True)
        ]
        means = MEANS[row[who]]
        if route in LISTS and row[who] == "own":
            means = ("granted", "granted")
        if route == "POST /auth/sign-out":
            site.forget(who)
        if tuple(found) != means and not (route == "POST /auth/sign-out" and found[0] == means[0]):
            wrong.append((route, row[who], found))
    assert wrong == []


async def given(site: ApiSite, patient: Any) -> str:
    async with site.records.store.transaction() as connection:
        consent = await site.records.consents.give(
            connection, patient, Purpose.SHARING, to="test", note="", now=site.now
        )
    return consent.id


@pytest.mark.parametrize("who", [Who.DOCTOR, Who.NURSE, Who.PATIENT, Who.PARTNER, Who.OBSERVER])
async def test_lists_hold_what_is_the_callers_own(
    site: ApiSite, client: TestClient[Any, Any], who: Who
) -> None:
    caller = Caller(client, await site.headers(client, who))
    _, patients = await caller.asks("GET", "/patients")
    assert [one["patient"] for one in patients["patients"]] == [site.mine.key]
    for patient, device in ((site.mine, MONITOR), (site.other, "A4CF12F03B7F")):
        await site.records.devices.link(DeviceId(device), patient.key, None, now=site.now)
    _, devices = await caller.asks("GET", "/devices")
    assert devices["devices"] == [{"device": MONITOR, "patient": site.mine.key}]
    _, consultations = await caller.asks("GET", "/consultations")
    assert [one["consultation"] for one in consultations["consultations"]] == [site.consultation.id]


async def test_a_nurse_sees_the_patients_of_her_ward_who_are_in_no_consultation(
    site: ApiSite, client: TestClient[Any, Any]
) -> None:
    operator = Caller(client, await site.headers(client, Who.OPERATOR))
    new = {"number": "7", "initials": "B.C.", "bed": "7", "ward": "medecine-2"}
    _, added = await operator.asks("POST", "/patients", new)
    nurse = Caller(client, await site.headers(client, Who.NURSE))
    assert (await nurse.asks("GET", f"/patients/{added['patient']}"))[0] == 200
    partner = Caller(client, await site.headers(client, Who.PARTNER))
    assert (await partner.asks("GET", f"/patients/{added['patient']}"))[0] == 404
