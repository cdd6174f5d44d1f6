"""Who may start and who may join a conference on the site's Jitsi."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
from aiohttp import web
from mautrix.errors import MForbidden

from appservice.calls import jitsi_widget
from appservice.jitsi import MOST_QUESTIONS, PATH, REFUSED, JitsiDoor, JitsiRooms
from appservice.rooms import WIDGETS, Plan, room_request
from appservice.service import SCHEMAS, MatrixService
from console.synapse import Synapse
from fajma.config import Calls, DatabaseSettings, Homeserver, Mqtt, Secrets, Settings
from fajma.errors import AccessError, InputError, UnavailableError
from fajma.language import Language
from fajma.life import ParticipantRole, Status
from fajma.sealing import generate_site_key
from fajma.store import Records, Store
from fajma.store.consultations import Consultation
from fajma.store.site import site_key
from tests.integration.scene import NOON

AWA, SOMEBODY, PATIENT = "@awa:clinic.test", "@somebody:clinic.test", "@patient.a:clinic.test"
PARTNER = "@ba:partner.test"
ROOM = "!consultation:clinic.test"
TOKEN = "token-of-the-jitsi-server"
YES = {"user": True, "room_membership": True}


@dataclass
class Matrix:
    """Stands in for homeservers: whose which token is, and who is in which room."""

    people: dict[tuple[str, str], str] = field(
        default_factory=lambda: {
            ("of-awa", "clinic.test"): AWA,
            ("of-patient", "clinic.test"): PATIENT,
            ("of-somebody", "clinic.test"): SOMEBODY,
            ("of-ba", "partner.test"): PARTNER,
        }
    )
    joined: set[tuple[str, str]] = field(
        default_factory=lambda: {(ROOM, one) for one in (AWA, PATIENT, SOMEBODY, PARTNER)}
    )
    away: Exception | None = None
    questions: list[tuple[str, str]] = field(default_factory=list)
    shown: list[tuple[str, str, Mapping[str, Any], str]] = field(default_factory=list)

    async def who(self, token: str, server_name: str) -> str:
        self.questions.append((token, server_name))
        if isinstance(self.away, UnavailableError):
            raise self.away
        user = self.people.get((token, server_name))
        if user is None:
            raise AccessError("no", code="openid_token_refused")
        return user

    async def is_member(self, room_id: str, user: str) -> bool:
        if self.away is not None:
            raise self.away
        return (room_id, user) in self.joined

    async def show(self, *told: Any) -> None:
        self.shown.append(told)


async def opened(records: Records, room_id: str = ROOM, number: str = "A-1") -> Consultation:
    patient = await records.patients.add(
        number=number, initials="A.D.", bed="4", account=PATIENT if room_id == ROOM else None
    )
    opening = await records.consultations.add(
        patient=patient.key,
        clinicians=(AWA, PARTNER),
        language=Language.FRENCH,
        time_zone="Africa/Dakar",
        now=NOON,
    )
    await records.consultations.open_in(opening.id, room_id)
    consultation = await records.consultations.get(opening.id)
    assert consultation is not None
    return consultation


@pytest.fixture
def calls(tmp_path: Path) -> Calls:
    token_file = tmp_path / "jitsi-token"
    token_file.touch(mode=0o600)
    token_file.write_text(TOKEN, encoding="ascii")
    return Calls(jitsi_domain="meet.clinic.test", jitsi_token_file=token_file)


@dataclass
class Door:
    """The endpoint, as Prosody sees it."""

    url: str
    matrix: Matrix
    records: Records
    consultation: Consultation
    said: list[Any]

    async def ask(
        self,
        body: object,
        *,
        authorization: str = f"Bearer {TOKEN}",
        **headers: str,
    ) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                self.url, data=data, headers={"Authorization": authorization, **headers}
            ) as response,
        ):
            return response.status, await response.json()

    async def refusal(self, body: object) -> str:
        """What our log says of a refusal; from outside they all look alike."""
        self.said.clear()
        assert await self.ask(body) == (200, REFUSED)
        (line,) = [one for one in self.said if one["event"] == "jitsi_refused"]
        assert not {"of-awa", TOKEN} & set(map(str, line.values()))
        return str(line["code"])


def question(whose: object = "of-awa", **changes: object) -> dict[str, object]:
    return {"token": whose, "room_id": ROOM, "matrix_server_name": "clinic.test"} | changes


@pytest.fixture
async def door(records: Records, calls: Calls) -> AsyncIterator[Door]:
    matrix = Matrix()
    app = web.Application()
    JitsiDoor(calls, "clinic.test", records, matrix.who, matrix.is_member).add_routes(app)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}{PATH}/verify/user_in_room"
    with structlog.testing.capture_logs() as said:
        yield Door(url, matrix, records, await opened(records), said)
    await runner.cleanup()


# --- who may join --------------------------------------------------------------------------------


async def test_a_clinician_may_join_and_leads(door: Door) -> None:
    status, answer = await door.ask(question())
    assert status == 200
    assert (answer["results"], answer["user_id"]) == (YES, AWA)
    levels = answer["power_levels"]
    # What Prosody compares to make somebody an owner.
    assert levels["user"] >= levels["room"]["state_default"]
    entries = await door.records.audit.latest()
    assert [(one.actor, one.action, one.subject) for one in entries if "call" in one.action] == [
        (AWA, "call.join", door.consultation.id)
    ]


async def test_the_patient_may_join_and_does_not_lead(door: Door) -> None:
    _, answer = await door.ask(question("of-patient"))
    assert (answer["results"], answer["user_id"]) == (YES, PATIENT)
    assert answer["power_levels"]["user"] < answer["power_levels"]["room"]["state_default"]


async def test_a_partners_clinician_is_asked_of_the_partner(door: Door) -> None:
    _, answer = await door.ask(question("of-ba", matrix_server_name="partner.test"))
    assert (answer["results"], answer["user_id"]) == (YES, PARTNER)
    assert door.matrix.questions == [("of-ba", "partner.test")]


async def test_a_question_without_server_is_about_our_own(door: Door) -> None:
    body = question()
    del body["matrix_server_name"]
    _, answer = await door.ask(body)
    assert answer["user_id"] == AWA
    assert door.matrix.questions == [("of-awa", "clinic.test")]


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer ", "Bearer wrong", f"Bearer {TOKEN}x", "Bearer caf\u00e9", "Basic eDp4"],
)
async def test_nobody_asks_but_the_jitsi_server(door: Door, authorization: str) -> None:
    assert await door.ask(question(), authorization=authorization) == (403, {})
    assert door.matrix.questions == []
    assert TOKEN not in repr(door.said)


async def test_a_forged_or_expired_token_is_refused(door: Door) -> None:
    assert await door.refusal(question("forged")) == "openid_token_refused"


async def test_a_token_of_another_server_is_refused(door: Door) -> None:
    other = question("of-awa", matrix_server_name="partner.test")
    assert await door.refusal(other) == "openid_token_refused"


async def test_somebody_in_the_room_who_does_not_belong_is_refused(door: Door) -> None:
    assert await door.refusal(question("of-somebody")) == "not_in_consultation"


async def test_a_patient_who_waits_is_refused(door: Door) -> None:
    await door.records.store.db.execute("UPDATE consultation SET admitted_at=NULL")
    assert await door.refusal(question("of-patient")) == "not_in_consultation"


async def test_who_belongs_and_has_left_the_room_is_refused(door: Door) -> None:
    door.matrix.joined.clear()
    assert await door.refusal(question()) == "call_not_in_room"


async def test_a_room_that_is_not_ours_is_refused_before_anybody_is_asked(door: Door) -> None:
    assert await door.refusal(question(room_id="!else:clinic.test")) == "call_foreign_room"
    assert door.matrix.questions == []


@pytest.mark.parametrize("status", sorted(set(Status) - {Status.OPEN}))
async def test_a_consultation_that_is_not_open_is_refused(door: Door, status: Status) -> None:
    await door.records.store.db.execute("UPDATE consultation SET status=$1", status.value)
    assert await door.refusal(question()) == "consultation_not_open"
    assert door.matrix.questions == []


@pytest.mark.parametrize(
    "away",
    [
        UnavailableError("away", code="homeserver_unavailable"),
        MForbidden(403, "not in the room"),
        TimeoutError(),
        aiohttp.ClientConnectionError(),
    ],
)
async def test_while_nobody_can_say_nobody_joins(door: Door, away: Exception) -> None:
    door.matrix.away = away
    assert await door.refusal(question()) in {"homeserver_unavailable", "homeserver_refused"}


async def test_without_a_database_nobody_joins(door: Door) -> None:
    await door.records.store.db.execute("ALTER TABLE consultation RENAME TO mislaid")
    assert await door.refusal(question()) == "bug"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"[" * 5000,
        {},
        question(7),
        question({"a": 1}),
        question(""),
        question("x" * 513),
        question(room_id=None),
        question(room_id="!a\u0000:clinic.test"),
        question(room_id="#alias:clinic.test"),
        question(room_id=["!consultation:clinic.test"]),
        question(matrix_server_name=1),
        question(padding="x" * 20_000),
    ],
)
async def test_a_question_that_makes_no_sense_is_refused_like_any_other(
    door: Door, body: object
) -> None:
    assert await door.refusal(body) == "call_question_malformed"
    assert door.matrix.questions == []


async def test_what_a_later_module_may_send_besides_is_not_minded(door: Door) -> None:
    _, answer = await door.ask(question(device="D"))
    assert answer["user_id"] == AWA


async def test_one_room_is_not_asked_about_without_end(door: Door) -> None:
    other = "!other:clinic.test"
    await opened(door.records, other, number="A-2")
    door.matrix.joined.add((other, AWA))
    for _ in range(MOST_QUESTIONS):
        await door.ask(question("forged"))
    assert await door.refusal(question()) == "call_too_many"
    assert len(door.matrix.questions) == MOST_QUESTIONS
    _, answer = await door.ask(question(room_id=other))
    assert answer["user_id"] == AWA  # another room is not held up by it


def test_without_a_token_of_its_own_there_is_no_door(records: Records) -> None:
    matrix = Matrix()
    with pytest.raises(InputError) as caught:
        JitsiDoor(Calls(), "clinic.test", records, matrix.who, matrix.is_member)
    assert caught.value.code == "jitsi_token_missing"


# --- who may start -------------------------------------------------------------------------------


async def test_a_clinician_starts_a_conference_under_one_key(
    sqlite_records: Records, calls: Calls
) -> None:
    consultation = await opened(sqlite_records)
    matrix = Matrix()
    for _ in range(2):
        await JitsiRooms(calls, sqlite_records, matrix.show).start(consultation, AWA, NOON)
    name = f"Consultation {consultation.id[:4].upper()}"
    widget = jitsi_widget(ROOM, name, domain="meet.clinic.test", audio_first=True)
    told = (ROOM, WIDGETS, widget, f"fajma-call-{consultation.id}")
    assert matrix.shown == [told, told]
    assert "A.D." not in json.dumps(widget)
    (entry, _) = [one for one in await sqlite_records.audit.latest() if one.action == "call.start"]
    assert (entry.actor, entry.subject) == (AWA, consultation.id)


async def test_nobody_else_starts_one(sqlite_records: Records, calls: Calls) -> None:
    consultation = await opened(sqlite_records)
    matrix = Matrix()
    with pytest.raises(AccessError) as caught:
        await JitsiRooms(calls, sqlite_records, matrix.show).start(consultation, SOMEBODY, NOON)
    assert caught.value.code == "not_in_consultation"
    assert matrix.shown == []


async def test_who_only_watches_starts_none_and_may_join(
    sqlite_records: Records, calls: Calls
) -> None:
    consultation = await opened(sqlite_records)
    async with sqlite_records.store.transaction() as connection:
        await sqlite_records.consultations.include(
            connection, consultation.id, SOMEBODY, ParticipantRole.OBSERVER, now=NOON
        )
    found = await sqlite_records.consultations.get(consultation.id)
    assert found is not None
    matrix = Matrix()
    with pytest.raises(AccessError) as caught:
        await JitsiRooms(calls, sqlite_records, matrix.show).start(found, SOMEBODY, NOON)
    assert caught.value.code == "not_in_consultation"
    await JitsiRooms(calls, sqlite_records, matrix.show).start(found, PATIENT, NOON)
    assert len(matrix.shown) == 1


async def test_none_is_started_before_the_consultation_is_open_or_without_jitsi(
    sqlite_records: Records, calls: Calls
) -> None:
    matrix = Matrix()
    patient = await sqlite_records.patients.add(number="1", initials="A.D.", bed="4", account=None)
    opening = await sqlite_records.consultations.add(
        patient=patient.key,
        clinicians=(AWA,),
        language=Language.FRENCH,
        time_zone="Africa/Dakar",
        now=NOON,
    )
    consultation = replace(opening, status=Status.OPEN, room_id=ROOM)
    for settings, one, code in (
        (calls, opening, "consultation_not_open"),
        (Calls(), consultation, "no_jitsi"),
    ):
        with pytest.raises(InputError) as caught:
            await JitsiRooms(settings, sqlite_records, matrix.show).start(one, AWA, NOON)
        assert caught.value.code == code
    assert matrix.shown == []


# --- on a real homeserver ------------------------------------------------------------------------


@pytest.fixture
async def service(homeserver: Synapse, tmp_path: Path) -> AsyncIterator[MatrixService]:
    """Our senders on Synapse, as ``fajma run`` has them."""
    unused = tmp_path / "unused"
    site_key_file = tmp_path / "site.key"
    site_key_file.touch(mode=0o600)
    site_key_file.write_text(generate_site_key(), encoding="ascii")
    settings = Settings(
        homeserver=Homeserver(
            url=homeserver.base_url,
            server_name="clinic.test",
            as_token_file=homeserver.site.as_token_file,
            hs_token_file=homeserver.site.hs_token_file,
            admin_password_file=unused,
            listen_port=int(homeserver.site.appservice_url.rpartition(":")[2]),
        ),
        database=DatabaseSettings(url=f"sqlite://{tmp_path}/fajma.db"),
        secrets=Secrets(
            directory=tmp_path,
            site_key_file=site_key_file,
            api_token_file=unused,
            operator_token_file=unused,
            alert_bot_password_file=unused,
        ),
        mqtt=Mqtt(ca_file=unused, cert_file=unused, key_file=unused),
    )
    store = await Store.open(settings.database, also_upgrade=SCHEMAS)
    service = MatrixService(settings, Records(store, await site_key(store, site_key_file)))
    await service.start()
    yield service
    await service.stop()
    await store.close()


async def test_synapse_takes_the_widget_once_and_says_who_is_there(
    homeserver: Synapse, service: MatrixService
) -> None:
    nurse = await homeserver.register("nurse.call", "scratch-password")
    room_id = await service.create_room(
        room_request(
            Plan(service.host.mxid, (service.vitals.mxid,), clinicians=(nurse,)),
            name="Consultation 1A2B",
            room_version="11",
        )
    )
    widget = jitsi_widget(room_id, "Consultation 1A2B", domain="meet.test", audio_first=True)
    for _ in range(2):
        await service.set_plain_state(room_id, WIDGETS, widget, "fajma-call-1")
    page = await service.host.messages(room_id, {"dir": "b", "limit": "100"})
    found = [one for one in page["chunk"] if one["type"] == WIDGETS]
    assert [(one["state_key"], one["content"]) for one in found] == [("fajma-call-1", widget)]

    assert await service.is_member(room_id, service.vitals.mxid)
    assert not await service.is_member(room_id, nurse)  # invited
    assert not await service.is_member(room_id, "@nobody:clinic.test")
    with pytest.raises(MForbidden):
        await service.is_member("!else:clinic.test", nurse)
