"""A consultation's life in real rooms of a real homeserver, with real clients in them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
import pytest_asyncio

from appservice.consultations import ConsultationService
from appservice.keeper import Keeper
from appservice.messenger import Messenger
from appservice.operator import Operator
from appservice.patients import PatientService
from appservice.service import SCHEMAS, MatrixService
from appservice.spaces import Spaces
from appservice.staff import StaffService
from appservice.waiting import WaitingRoom
from appservice.wards import WardService
from bots.alerts.client import SignedClient
from console.observer import Observer
from console.processes import free_port
from console.synapse import OPERATOR, Synapse, SynapseSite
from fajma.config import (
    DatabaseSettings,
    Federation,
    Homeserver,
    Retention,
    Secrets,
    Settings,
    Site,
    Widgets,
)
from fajma.language import Language
from fajma.life import ParticipantRole, Status
from fajma.sealing import generate_site_key
from fajma.store import Records, Store
from fajma.store.consultations import Consultation
from fajma.store.people import Role
from fajma.store.site import site_key
from fajma.store.warnings import About
from fajma.tasks import end
from fajma.vitals import PatientKey

PASSWORD = "correct horse battery"
PATIENCE_S = 30.0

# One loop for the file, so that one homeserver and one application service serve all tests.
pytestmark = pytest.mark.asyncio(loop_scope="module")

numbers = itertools.count(1)


@dataclass
class Person:
    """An account and its access token."""

    mxid: str
    token: str
    url: str

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {self.token}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.request(method, f"{self.url}/_matrix/client/v3/{path}", json=body) as response,
        ):
            return response.status, await response.json()

    async def does(self, method: str, path: str, body: Any = None) -> Any:
        status, answer = await self.ask(method, path, body)
        assert status == 200, answer
        return answer

    async def joins(self, room_id: str) -> None:
        await self.does("POST", f"rooms/{quote(room_id)}/join", {})

    async def says(self, room_id: str) -> int:
        """The status of trying to say something; nothing is really encrypted."""
        path = f"rooms/{quote(room_id)}/send/m.room.encrypted/{next(numbers)}"
        return (await self.ask("PUT", path, {"algorithm": "none"}))[0]

    async def sets(self, room_id: str, event_type: str, content: Any, key: str = "") -> int:
        path = f"rooms/{quote(room_id)}/state/{event_type}/{quote(key)}"
        return (await self.ask("PUT", path, content))[0]


@dataclass
class House:
    """A homeserver and the Matrix side of FAJMA, in this process."""

    synapse: Synapse
    records: Records
    matrix: MatrixService
    service: ConsultationService
    patients: PatientService
    staff: StaffService
    wards: WardService
    keeper: Keeper
    operator: Operator
    directory: Path
    in_alarm: set[PatientKey] = field(default_factory=set)

    async def person(self, name: str) -> Person:
        """A new account that has a token."""
        localpart = f"{name}-{next(numbers)}"
        mxid = await self.synapse.register(localpart, PASSWORD)
        token = await self.synapse.login(localpart, PASSWORD)
        return Person(mxid, token, self.synapse.base_url)

    async def clinician(self, name: str, ward: str | None = None) -> Person:
        person = await self.person(name)
        await self.staff.add(
            person.mxid,
            name=f"{name} {mark()}",
            role=Role.DOCTOR,
            ward=ward,
            language=Language.ENGLISH,
            existing=True,
            now=now(),
        )
        return person

    @contextlib.asynccontextmanager
    async def reader(self, person: Person) -> AsyncIterator[Observer]:
        """A signed client of an account, that reads what it can."""
        directory = self.directory / f"client-{next(numbers)}"
        directory.mkdir(mode=0o700)
        observer = Observer(self.synapse.base_url, person.mxid, directory)
        await observer.start(PASSWORD)
        try:
            yield observer
        finally:
            await observer.stop()

    async def open(self, *clinicians: Person, **more: Any) -> Consultation:
        given: dict[str, Any] = {
            "number": f"N-{next(numbers)}",
            "initials": "A.D.",
            "bed": "4",
            "patient_account": None,
            "clinicians": [one.mxid for one in clinicians],
            "device": None,
            "language": Language.ENGLISH,
            "now": now(),
        }
        return await self.service.open(**(given | more))

    async def state(self, room_id: str, event_type: str, key: str = "") -> Any:
        for event in await self.matrix._state_events(room_id):
            if (event["type"], event["state_key"]) == (event_type, key):
                return event["content"]
        return None

    async def membership(self, room_id: str, mxid: str) -> str | None:
        content = await self.state(room_id, "m.room.member", mxid)
        return content and str(content["membership"])

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        """Wait for what the homeserver tells the application service, or it the homeserver."""
        async with asyncio.timeout(PATIENCE_S):
            while not await condition():
                await self.records.store.hints.wait(asyncio.Event(), 0.05)


def mark() -> str:
    """Letters that nobody else's name has."""
    return "".join(secrets.choice("bcdfghjkmnpqrstvwxz") for _ in range(9))


def now() -> datetime:
    return datetime.now(UTC)


def room_of(one: Consultation) -> str:
    assert one.room_id is not None
    return one.room_id


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    directory = tmp_path_factory.mktemp("house")
    appservice_port = free_port()
    synapse = Synapse(
        SynapseSite(
            directory=directory / "synapse",
            server_name="clinic.test",
            port=free_port(),
            appservice_url=f"http://127.0.0.1:{appservice_port}",
        )
    )
    await synapse.start()
    site = synapse.site
    bot = await synapse.register("fajma-alerts", PASSWORD)
    await synapse.exempt_from_rate_limits(bot)
    key_file = directory / "site.key"
    key_file.touch(mode=0o600)
    key_file.write_text(generate_site_key(), encoding="ascii")
    settings = Settings.model_construct(
        site=Site(),
        federation=Federation(),
        retention=Retention(),
        widgets=Widgets(vitals_url="https://widgets.clinic.test/vitals/"),
        secrets=Secrets.model_construct(directory=directory / "secrets"),
        homeserver=Homeserver(
            url=site.base_url,
            server_name="clinic.test",
            as_token_file=site.as_token_file,
            hs_token_file=site.hs_token_file,
            admin_password_file=site.directory / "operator_password",
            listen_port=appservice_port,
        ),
    )
    settings.secrets.directory.mkdir(mode=0o700)
    store = await Store.open(
        DatabaseSettings(url=f"sqlite://{directory}/fajma.db"), also_upgrade=SCHEMAS
    )
    records = Records(store, await site_key(store, key_file))
    matrix = MatrixService(settings, records)
    operator = Operator(
        site.base_url, OPERATOR, site.directory / "operator_password", server_name="clinic.test"
    )
    wards = WardService(settings, records, matrix)
    staff = StaffService(settings, records, matrix, operator, wards)
    patients = PatientService(records, matrix, operator, wards)
    in_alarm: set[PatientKey] = set()

    async def alarm_open(patient: PatientKey) -> bool:
        return patient in in_alarm

    service = ConsultationService(
        settings, records, matrix, operator, patients, alarm_open=alarm_open
    )
    waiting = WaitingRoom(records, matrix)
    keeper = Keeper(records, matrix, service, waiting, Spaces(settings, records, matrix))
    matrix.on_state(keeper.heard)
    matrix.on_spoken(waiting.spoken)
    matrix.on_joined(service.rooms.greet)
    await matrix.start()
    jobs = [
        asyncio.create_task(keeper.run()),
        asyncio.create_task(Messenger(records, matrix.host).run()),
    ]
    alerts = SignedClient(site.base_url, bot, directory / "alerts")
    await alerts.start_session(PASSWORD)
    try:
        yield House(
            synapse, records, matrix, service, patients, staff, wards, keeper, operator,
            directory, in_alarm,
        )  # fmt: skip
    finally:
        await end(jobs)
        await alerts.close()
        await matrix.stop()
        await operator.close()
        await store.close()
        await synapse.stop()


async def test_what_a_consultation_says_and_shows_in_its_room_from_opening_to_signature(
    house: House,
) -> None:
    awa, mother = await house.clinician("awa"), await house.person("mother")
    async with house.reader(awa) as doctor, house.reader(mother) as companion:
        opened = await house.open(awa)
        room_id = room_of(opened)
        await house.service.invite(
            opened.id, mother.mxid, ParticipantRole.COMPANION, awa.mxid, now()
        )

        async def all_in() -> bool:
            members = [await house.membership(room_id, one.mxid) for one in (awa, mother)]
            return members == ["join", "join"]

        await house.until(all_in)
        levels = await house.state(room_id, "m.room.power_levels")
        assert levels["users"].get(mother.mxid, 0) == 0
        assert await mother.says(room_id) == 200
        # Everybody may join a call.
        call = {"foci_preferred": []}
        member = "org.matrix.msc3401.call.member"
        assert await mother.sets(room_id, member, call, mother.mxid) == 200
        widget = await house.state(room_id, "im.vector.modular.widgets", "fajma-vitals")
        assert widget["url"].startswith("https://widgets.clinic.test/vitals/#/?")

        # Whose part is over gets no key, though the homeserver has her in the room.
        async with house.records.store.transaction() as connection:
            await house.records.consultations.exclude(connection, opened.id, mother.mxid, now=now())
        said = {"msgtype": "m.text", "body": "for the others"}
        event = await house.matrix.host.send(
            room_id, "m.room.message", said, transaction_id="for-the-others"
        )
        told = await doctor.wait_for(lambda one: one.event_id == event, PATIENCE_S)
        assert await house.membership(room_id, mother.mxid) == "join"
        session = (await awa.does("GET", f"rooms/{quote(room_id)}/event/{quote(event)}"))[
            "content"
        ]["session_id"]
        assert session in {one.id for one in doctor.client.olm.inbound_group_store}
        assert session not in {one.id for one in companion.client.olm.inbound_group_store}
        await house.service.invite(
            opened.id, mother.mxid, ParticipantRole.OBSERVER, awa.mxid, now()
        )

        await house.service.remove(opened.id, mother.mxid, awa.mxid, now())
        assert await house.membership(room_id, mother.mxid) == "leave"
        await house.service.end(opened.id, awa.mxid, now())
        told = await doctor.wait_for(lambda one: "CONSULTATION ENDED" in one.body, PATIENCE_S)
        assert told.sender == house.matrix.host.mxid
        # Frozen for everybody but our bots.
        assert await awa.says(room_id) == 403
        assert await awa.sets(room_id, member, call, awa.mxid) == 403
        await house.service.sign(opened.id, awa.mxid, now())
        await doctor.wait_for(lambda one: "Summary signed by" in one.body, PATIENCE_S)
        # Whose part was over before got no key to any of it.
        assert not [one for one in companion.seen if "CONSULTATION ENDED" in one.body]

    await house.service.archive(opened.id, now())
    assert await house.membership(room_id, awa.mxid) == "leave"
    assert (await house.records.consultations.get(opened.id)).status is Status.ARCHIVED  # type: ignore[union-attr]


async def test_a_patient_knocks_and_is_let_in_and_nobody_else_is(house: House) -> None:
    awa, patient, stranger = (
        await house.clinician("awa"),
        await house.person("patient"),
        await house.person("stranger"),
    )
    number = f"N-{next(numbers)}"
    booked = await house.service.book(
        number=number,
        initials="A.D.",
        bed="4",
        patient_account=patient.mxid,
        clinicians=[awa.mxid],
        language=Language.ENGLISH,
        booked_for=now(),
        by=awa.mxid,
        now=now(),
    )
    room_id = room_of(await house.service.start(booked.id, awa.mxid, now()))
    for person in (stranger, patient):
        await person.does("POST", f"knock/{quote(room_id)}", {})

    async def heard() -> bool:
        found = await house.records.consultations.get(booked.id)
        refused = await house.membership(room_id, stranger.mxid) == "leave"
        return refused and found is not None and found.asked_at is not None

    await house.until(heard)
    assert (await house.records.tally.all())["room_mended_knock"] >= 1
    await house.service.admit(booked.id, patient.mxid, awa.mxid, now())
    await patient.joins(room_id)
    assert await house.state(room_id, "m.room.join_rules") == {"join_rule": "invite"}
    status, _ = await stranger.ask("POST", f"knock/{quote(room_id)}", {})
    assert status == 403


async def test_a_patient_asks_in_a_chat_and_reads_the_answer(house: House) -> None:
    awa, patient, stranger = (
        await house.clinician("awa"),
        await house.person("patient"),
        await house.person("stranger"),
    )
    await house.service.book(
        number=f"N-{next(numbers)}",
        initials="A.D.",
        bed="4",
        patient_account=patient.mxid,
        clinicians=[awa.mxid],
        language=Language.ENGLISH,
        booked_for=now(),
        by=awa.mxid,
        now=now(),
    )
    chat: dict[str, Any] = {
        "preset": "trusted_private_chat",
        "is_direct": True,
        "invite": [house.matrix.host.mxid],
        "initial_state": [
            {
                "type": "m.room.encryption",
                "state_key": "",
                "content": {"algorithm": "m.megolm.v1.aes-sha2"},
            }
        ],
    }
    async with house.reader(patient) as reader:
        room_id = (await patient.does("POST", "createRoom", chat))["room_id"]
        told = await reader.wait_for(lambda one: "waiting room" in one.body, PATIENCE_S)
        assert told.room_id == room_id
        assert "salle d'attente" in told.body
    elsewhere = (await stranger.does("POST", "createRoom", chat))["room_id"]

    async def declined() -> bool:
        path = f"rooms/{quote(elsewhere)}/state/m.room.member/{quote(house.matrix.host.mxid)}"
        return str((await stranger.does("GET", path))["membership"]) == "leave"

    await house.until(declined)


async def test_what_the_homeservers_owner_changes_is_set_back(house: House) -> None:
    awa, eve = await house.clinician("awa"), await house.person("eve")
    opened = await house.open(awa)
    room_id = room_of(opened)
    host = Person(house.matrix.host.mxid, house.synapse.as_token, house.synapse.base_url)
    # Somebody with the power to: as only the owner of the homeserver could have it.
    levels = await house.state(room_id, "m.room.power_levels")
    raised = levels | {"users": levels["users"] | {awa.mxid: 100}}
    as_host = f"?user_id={quote(house.matrix.host.mxid)}"
    await host.does("PUT", f"rooms/{quote(room_id)}/state/m.room.power_levels/{as_host}", raised)
    await awa.joins(room_id)
    assert await awa.sets(room_id, "m.room.join_rules", {"join_rule": "public"}) == 200

    async def is_mended() -> bool:
        rule = await house.state(room_id, "m.room.join_rules")
        users = (await house.state(room_id, "m.room.power_levels"))["users"]
        return rule == {"join_rule": "invite"} and users.get(awa.mxid) == 50

    await house.until(is_mended)
    status, _ = await awa.ask("POST", f"rooms/{quote(room_id)}/invite", {"user_id": eve.mxid})
    assert status == 403
    actions = {one.action for one in await house.records.audit.latest() if one.subject == room_id}
    assert {"room.mend.join_rule", "room.mend.power"} <= actions


async def test_a_ward_has_a_space_with_its_rooms_for_its_team_alone(house: House) -> None:
    ward = await house.wards.open("medecine", language=None, time_zone=None, now=now())
    awa, other = await house.clinician("awa", "medecine"), await house.clinician("other")
    opened = await house.open(awa)

    async def is_made() -> bool:
        found = await house.wards.get("medecine")
        if found.space_id is None:
            return False
        invited = await house.membership(found.space_id, awa.mxid)
        child = await house.state(found.space_id, "m.space.child", room_of(opened))
        return invited == "invite" and bool(child)

    await house.until(is_made)
    space = (await house.wards.get("medecine")).space_id
    assert space is not None
    await awa.joins(space)
    assert ward.room_id is not None
    assert await house.state(space, "m.space.child", ward.room_id)
    assert (await house.state(space, "m.room.create"))["type"] == "m.space"
    assert await house.membership(space, other.mxid) is None
    assert await awa.says(space) == 403
    await house.service.end(opened.id, awa.mxid, now())

    async def is_out() -> bool:
        return await house.state(space, "m.space.child", room_of(opened)) == {}

    await house.until(is_out)


async def test_a_room_that_we_upgrade_is_followed_with_its_readers(house: House) -> None:
    awa = await house.clinician("awa")
    async with house.reader(awa) as doctor:
        opened = await house.open(awa)

        async def is_in() -> bool:
            return await house.membership(room_of(opened), awa.mxid) == "join"

        await house.until(is_in)
        host = Person(house.matrix.host.mxid, house.synapse.as_token, house.synapse.base_url)
        as_host = f"?user_id={quote(house.matrix.host.mxid)}"
        answer = await host.does(
            "POST", f"rooms/{quote(room_of(opened))}/upgrade{as_host}", {"new_version": "12"}
        )
        after = answer["replacement_room"]

        async def has_moved() -> bool:
            found = await house.records.consultations.get(opened.id)
            there = await house.membership(after, awa.mxid) == "join"
            return found is not None and found.room_id == after and there

        await house.until(has_moved)
        # What is said in it can be read.
        await house.service.end(opened.id, awa.mxid, now())
        told = await doctor.wait_for(
            lambda one: one.room_id == after and "CONSULTATION ENDED" in one.body, PATIENCE_S
        )
        assert told.sender == house.matrix.host.mxid
    encryption = await house.state(after, "m.room.encryption")
    assert encryption["io.element.msc4362.encrypt_state_events"] is True
    members = await house.state(after, "io.element.functional_members")
    assert members["service_members"] == sorted(house.matrix.ours)


async def test_a_bot_that_was_taken_out_is_brought_back_and_a_room_without_any_is_told_of(
    house: House,
) -> None:
    awa = await house.clinician("awa")
    room_id = room_of(await house.open(awa))
    ours = house.matrix
    host = Person(ours.host.mxid, house.synapse.as_token, house.synapse.base_url)
    as_host = f"?user_id={quote(ours.host.mxid)}"

    async def taken_out(*bots: str) -> None:
        for bot in bots:
            await host.does("POST", f"rooms/{quote(room_id)}/kick{as_host}", {"user_id": bot})

    await taken_out(ours.vitals.mxid, ours.alerts_mxid)
    await house.keeper.keep(room_id)
    assert await house.membership(room_id, ours.vitals.mxid) == "join"
    assert await house.membership(room_id, ours.alerts_mxid) == "invite"
    await host.does("POST", f"rooms/{quote(room_id)}/leave{as_host}", {})
    await house.keeper.keep(room_id)
    assert await house.membership(room_id, ours.host.mxid) == "join"

    await taken_out(ours.vitals.mxid)
    await host.does("POST", f"rooms/{quote(room_id)}/leave{as_host}", {})
    await house.keeper.keep(room_id)
    [warning] = [
        one for one in await house.records.warnings.open(About.ROOM_LOST) if one.subject == room_id
    ]
    assert warning.mark == "bot_not_in_room"
