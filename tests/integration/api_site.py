"""A hospital's REST API over real records: two wards, callers of every kind, a clock."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient, TestServer
from canonicaljson import encode_canonical_json
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from appservice.api import Services, add_routes
from appservice.api.callers import Tokens
from appservice.api.declare import PREFIX, Route
from appservice.api.models import LimitInForce
from appservice.api.permissions import SCOPES, Who
from appservice.api.sign_in import signed_request
from appservice.consultations import ConsultationService
from appservice.operator import Account, Device
from appservice.patients import PatientService
from appservice.staff import Finding, StaffService
from appservice.wards import WardService
from fajma.config import (
    Api,
    Federation,
    Homeserver,
    Retention,
    Secrets,
    Settings,
    Site,
    Widgets,
)
from fajma.errors import AccessError, InputError
from fajma.life import ParticipantRole
from fajma.store import Records
from fajma.store.consultations import Consultation
from fajma.store.patients import Patient
from fajma.store.readings import NewReading
from fajma.store.wards import Ward
from fajma.trust import DeviceKeys
from fajma.vitals import Clock, DeviceId, Kind, PatientKey, Reading
from tests.integration.scene import (
    ADMIN,
    AWA,
    IBOU,
    MEDICINE,
    MOUSSA,
    NOON,
    SURGERY,
    Scene,
    consultation,
    staffed,
    unpadded,
)

BEN = "@ben:partner.test"
PATIENT, OTHER_PATIENT = "@patient:clinic.test", "@other:clinic.test"
OBSERVER = "@observer:partner.test"
STRANGER = "@stranger:clinic.test"
HOSPITAL_TOKEN, OPERATOR_TOKEN = "hospital-token", "operator-token"
MONITOR = DeviceId("A4CF12F03B7E")

PEOPLE: Mapping[Who, str] = {
    Who.DOCTOR: AWA,
    Who.NURSE: MOUSSA,
    Who.STAFF_OPERATOR: ADMIN,
    Who.PATIENT: PATIENT,
    Who.PARTNER: BEN,
    Who.OBSERVER: OBSERVER,
}


class FakeOpenId:
    """The homeservers: which token is whose."""

    def __init__(self) -> None:
        self.tokens: dict[tuple[str, str], str] = {}
        self.fails: Exception | None = None

    def give(self, account: str) -> tuple[str, str]:
        """A new token of somebody: token and server."""
        token, server = secrets.token_urlsafe(24), account.partition(":")[2]
        self.tokens[token, server] = account
        return token, server

    async def who(self, token: str, server_name: str) -> str:
        if self.fails is not None:
            raise self.fails
        account = self.tokens.get((token, server_name))
        if account is None:
            raise AccessError("nobody's", code="openid_refused")
        return account


@dataclass
class FakePhone:
    """A Matrix device with which somebody signs in."""

    account: str
    device_id: str
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @property
    def public(self) -> str:
        return unpadded(self.key.public_key().public_bytes_raw())

    def signs(self, token: str, server: str, *, audience: str = "clinic.test") -> dict[str, Any]:
        """The body of a sign-in."""
        request = signed_request(server_name=audience, openid_token=token, openid_server=server)
        return {
            "access_token": token,
            "matrix_server_name": server,
            "device_id": self.device_id,
            "signature": unpadded(self.key.sign(encode_canonical_json(request))),
        }


class FakeMatrix:
    """The homeserver, which takes everything."""

    def __init__(self) -> None:
        self.invited: list[tuple[str, str]] = []
        self.vitals = FakeVitals()

    def is_local(self, user: str) -> bool:
        return user.endswith(":clinic.test")

    def refuse_ours(self, account: str) -> None:
        if account.startswith("@fajma"):
            raise InputError("an account of ours", code="account_of_fajma")

    async def invite(self, room_id: str, user: str) -> None:
        self.invited.append((room_id, user))

    async def remove(self, room_id: str, user: str) -> None:
        assert room_id
        assert user

    async def strangers(self, room_id: str) -> frozenset[str]:
        assert room_id
        return frozenset()

    async def set_power(self, room_id: str, user: str, level: int) -> None:
        assert room_id
        assert user
        assert level

    async def trust_changed(self, user: str) -> None:
        assert user


class FakeVitals:
    """Our sender, which has met nobody's devices."""

    @property
    def cryptographer(self) -> FakeVitals:
        return self

    async def devices_of(self, user: str) -> frozenset[str]:
        assert user
        return frozenset()


class FakeRooms:
    """Rooms that follow their record at once; making one waits while ``may_go_on`` is not set."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self.makes_room = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def make(
        self, consultation: Consultation, patient: Patient, by: str, now: datetime
    ) -> None:
        assert patient.key == consultation.patient
        assert by
        assert now
        self.makes_room.set()
        await self.may_go_on.wait()
        room_id = f"!{consultation.id}:clinic.test"
        await self._records.consultations.held_in(consultation.id, room_id)
        await self._records.consultations.open_in(
            consultation.id, room_id, shown=consultation.revision
        )

    async def settle(self, found: Consultation, now: datetime) -> None:
        invited = [one.account for one in found.participants]
        await self._records.consultations.now_shows(
            found.id, found.revision, invited=invited, now=now
        )


class FakeOperator:
    """The homeserver's accounts: those that were made, and no phones."""

    def __init__(self) -> None:
        self._made: set[str] = set()

    async def ring(self, mxid: str, *, rings: bool) -> tuple[str, ...]:
        assert mxid
        assert isinstance(rings, bool)
        return ()

    async def account(self, mxid: str) -> Account | None:
        if mxid not in self._made:
            return None
        return Account(mxid, deactivated=False, locked=False, admin=False)

    async def create_account(self, mxid: str, *, password: str, display_name: str) -> None:
        assert password
        assert display_name
        self._made.add(mxid)

    async def reset_password(self, mxid: str, password: str, *, logout: bool) -> None:
        assert mxid
        assert password
        assert not logout

    async def deactivate(self, mxid: str) -> None:
        self._made.discard(mxid)

    async def devices(self, mxid: str) -> tuple[Device, ...]:
        assert mxid
        return ()

    async def remove_devices(self, mxid: str, device_ids: Collection[str]) -> None:
        assert mxid
        assert not device_ids


class QuietWards(WardService):
    """Wards whose rooms are made at once."""

    async def _make_room(self, ward: Ward) -> None:
        await self._records.wards.opened(ward.id, f"!{ward.id}:clinic.test")


class QuietStaff(StaffService):
    """Staff of whom nobody is looked at on the homeserver."""

    async def check(self) -> list[Finding]:
        return []


class ApiSite:
    """The API, and who calls it.

    Attributes:
        now: what the clock shows.
        mine: the patient of ward medicine who is in a consultation with the doctor.
        other: a patient of another ward, in a consultation with others.
        in_alarm: whether patients have an alarm that nobody has answered.
    """

    mine: Patient
    other: Patient
    consultation: Consultation
    other_consultation: Consultation

    def __init__(self, scene: Scene, settings: Settings) -> None:
        self.scene, self.records, self.settings = scene, scene.records, settings
        self.now = NOON
        self.openid = FakeOpenId()
        self.phones: dict[str, FakePhone] = {}
        self.matrix = FakeMatrix()
        self.rooms = FakeRooms(scene.records)
        self.in_alarm = False
        self.limits: list[LimitInForce] = []
        self.routes: list[Route] = []
        self._headers: dict[Who, dict[str, str]] = {}

    def application(self) -> web.Application:
        """The web server's application, with the API in it."""
        matrix: Any = self.matrix
        operator: Any = FakeOperator()
        wards = QuietWards(self.settings, self.records, matrix)
        patients = PatientService(self.records, matrix, operator, wards)
        consultations = ConsultationService(
            self.settings,
            self.records,
            matrix,
            operator,
            patients,
            alarm_open=self._alarm_open,
        )
        rooms: Any = self.rooms
        consultations.rooms = rooms
        services = Services(
            consultations=consultations,
            wards=wards,
            staff=QuietStaff(self.settings, self.records, matrix, operator, wards),
            patients=patients,
            openid=self.openid,
            devices=self._devices,
            limits=self._limits,
            asked_by="appservice",
        )
        app = web.Application()
        tokens = Tokens(hospital=HOSPITAL_TOKEN, operator=OPERATOR_TOKEN)
        self.routes = add_routes(
            app,
            self.settings,
            self.records,
            services,
            tokens,
            now=self.clock,
            elapsed_s=self.elapsed_s,
        )
        return app

    def clock(self) -> datetime:
        """The API's clock."""
        return self.now

    def elapsed_s(self) -> float:
        """What limits the pace."""
        return (self.now - NOON).total_seconds()

    async def _devices(self, account: str) -> Mapping[str, DeviceKeys]:
        return await self.records.pins.trusted(account, asked_by="appservice")

    async def _alarm_open(self, patient: PatientKey) -> bool:
        assert patient
        return self.in_alarm

    async def _limits(self, patient: PatientKey, now: datetime) -> Sequence[LimitInForce]:
        assert patient
        assert now == self.now
        return self.limits

    # --- people ----------------------------------------------------------------------------------

    async def phone(self, account: str) -> FakePhone:
        """A device of somebody that the pinned identity has signed."""
        if account not in self.phones:
            phone = self.phones[account] = FakePhone(account, f"PHONE{len(self.phones)}")
            async with self.records.store.transaction() as connection:
                await connection.execute(
                    "INSERT INTO pin (account, master_key, pinned_at) VALUES ($1, 'master', 1)",
                    account,
                )
                await connection.execute(
                    "INSERT INTO signed_device"
                    " (asked_by, account, device_id, master_key, ed25519, curve25519)"
                    " VALUES ('appservice', $1, $2, 'master', $3, 'curve')",
                    account,
                    phone.device_id,
                    phone.public,
                )
        return self.phones[account]

    async def sign_in(self, client: TestClient[Any, Any], account: str) -> dict[str, Any]:
        """The tokens of somebody who signs in."""
        phone = await self.phone(account)
        body = phone.signs(*self.openid.give(account))
        async with client.post(f"{PREFIX}/auth/openid", json=body) as response:
            assert response.status == 200, await response.text()
            tokens: dict[str, Any] = await response.json()
            return tokens

    async def headers(self, client: TestClient[Any, Any], who: Who) -> dict[str, str]:
        """What this kind of caller shows."""
        if who not in self._headers:
            token = await self._token(client, who)
            self._headers[who] = {"Authorization": f"Bearer {token}"} if token else {}
        return self._headers[who]

    def forget(self, who: Who) -> None:
        """The caller signs in anew the next time."""
        self._headers.pop(who, None)

    async def _token(self, client: TestClient[Any, Any], who: Who) -> str | None:
        if who is Who.NOBODY:
            return None
        if who is Who.OPERATOR:
            return OPERATOR_TOKEN
        if who in SCOPES:
            return await self.key(who)
        tokens = await self.sign_in(client, PEOPLE[who])
        return str(tokens["access_token"])

    async def key(self, *scopes: Who, name: str | None = None) -> str:
        """A new key of hospital software."""
        async with self.records.store.transaction() as connection:
            return await self.records.api_keys.add(
                connection,
                name or f"key-{secrets.token_hex(4)}",
                scopes,
                now=self.now,
                expires_at=self.now + timedelta(days=30),
            )

    async def measures(self, patient: PatientKey, *values: int, every_s: int = 5) -> None:
        """The patient's monitor measures SpO2."""
        new = []
        for number, value in enumerate(values):
            at = self.now + timedelta(seconds=every_s * number)
            reading = Reading(MONITOR, at, at, Clock.DEVICE, {Kind.SPO2: Decimal(value)})
            new.append(NewReading(secrets.token_bytes(16), patient, reading))
        async with self.records.store.transaction() as connection:
            await self.records.readings.append(connection, new)


class Caller:
    """One kind of caller, asking."""

    def __init__(self, client: TestClient[Any, Any], headers: Mapping[str, str]) -> None:
        self._client = client
        self._headers = headers

    async def asks(self, method: str, path: str, body: Any = None, **more: Any) -> tuple[int, Any]:
        """Status and answer."""
        response = await self.response(method, path, body, **more)
        is_json = "json" in response.content_type
        return response.status, await (response.json() if is_json else response.text())

    async def response(
        self, method: str, path: str, body: Any = None, **more: Any
    ) -> ClientResponse:
        """The whole response."""
        headers = {**self._headers, **more.pop("headers", {})}
        if body is not None:
            more["json"] = body
        return await self._client.request(method, f"{PREFIX}{path}", headers=headers, **more)


def settings_in(directory: Path, *, requests_per_s: float = 1000) -> Settings:
    """Settings of a clinic whose secrets lie there."""
    nowhere = Path("/nowhere")
    return Settings.model_construct(
        site=Site(),
        homeserver=Homeserver(
            url="http://127.0.0.1:8008",
            server_name="clinic.test",
            as_token_file=nowhere,
            hs_token_file=nowhere,
            admin_password_file=nowhere,
        ),
        secrets=Secrets(
            directory=directory,
            site_key_file=nowhere,
            api_token_file=nowhere,
            operator_token_file=nowhere,
            alert_bot_password_file=nowhere,
        ),
        federation=Federation(partners=["partner.test"]),
        retention=Retention(),
        widgets=Widgets(),
        api=Api(requests_per_s=requests_per_s, requests_at_once=int(requests_per_s)),
    )


async def furnished(records: Records, directory: Path, **settings: Any) -> ApiSite:
    """The site with its wards, people, patients and consultations."""
    directory.mkdir(parents=True, exist_ok=True)
    scene = await staffed(records)
    site = ApiSite(scene, settings_in(directory, **settings))
    site.mine, site.consultation = await consultation(
        scene, AWA, MOUSSA, BEN, number="1", account=PATIENT, ward=MEDICINE
    )
    site.other, site.other_consultation = await consultation(
        scene, IBOU, number="2", account=OTHER_PATIENT, ward=SURGERY
    )
    async with records.store.transaction() as connection:
        await records.consultations.include(
            connection, site.consultation.id, OBSERVER, ParticipantRole.OBSERVER, now=NOON
        )
    return site


@contextlib.asynccontextmanager
async def served(site: ApiSite) -> AsyncIterator[TestClient[Any, Any]]:
    """The site's web server, and a client of it."""
    async with TestClient(TestServer(site.application())) as client:
        yield client
