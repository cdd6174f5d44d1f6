"""What an operator does at a real homeserver, and what then reaches a phone."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import secrets
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
import pytest_asyncio

from appservice import push
from appservice.operator import DEVICE, Operator
from console.processes import free_port
from console.synapse import OPERATOR, Synapse, SynapseSite
from fajma.errors import InputError, UnavailableError
from fajma.events import EVERYONE, NOBODY, RING, WATCH_RELATION
from tests.conftest import run
from tests.push_gateway import Notification, PushGateway, have_pusher

PASSWORD = "correct horse battery"
NEW_PASSWORD = "another horse"
PARTNER = "@awa:hospital.test"
ENCRYPTED = "m.room.encrypted"

# One loop for the file, so that one operator serves all tests: logins are limited per account.
pytestmark = pytest.mark.asyncio(loop_scope="module")

numbers = itertools.count()


class RefusedError(Exception):
    """The homeserver's answer to one of the tests' own requests."""

    def __init__(self, status: int, answer: Mapping[str, Any]) -> None:
        super().__init__(f"HTTP {status}: {answer}")
        self.status = status
        self.answer = answer


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who can ask the homeserver something."""

    mxid: str
    token: str
    homeserver: str
    as_user: bool = False

    async def ask(
        self, method: str, path: str, body: Any = None, *, version: str = "v3"
    ) -> dict[str, Any]:
        query = {"user_id": self.mxid} if self.as_user else {}
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {self.token}"}) as session,
            session.request(
                method,
                f"{self.homeserver}/_matrix/client/{version}/{path}",
                json=body,
                params=query,
            ) as response,
        ):
            answer: dict[str, Any] = await response.json()
            if response.status != 200:
                raise RefusedError(response.status, answer)
            return answer

    async def say(
        self,
        room_id: str,
        event_type: str = ENCRYPTED,
        *,
        about: dict[str, str] | None = None,
        ring: str | None = None,
    ) -> str:
        """Something that looks encrypted, and may refer to another event; its event id."""
        path = f"rooms/{quote(room_id)}/send/{event_type}/{next(numbers)}"
        content = ciphertext() | ({"m.relates_to": about} if about else {})
        content |= {RING: ring} if ring else {}
        return str((await self.ask("PUT", path, content))["event_id"])

    async def set_state(self, room_id: str) -> str:
        """State that looks encrypted; its event id."""
        path = f"rooms/{quote(room_id)}/state/{ENCRYPTED}/com.fajma.vitals:7f3a"
        return str((await self.ask("PUT", path, ciphertext()))["event_id"])

    async def join(self, room_id: str) -> None:
        await self.ask("POST", f"rooms/{quote(room_id)}/join", {})

    async def put_rule(self, rule: str, actions: list[str], *conditions: Any) -> None:
        body = {"actions": actions, **({"conditions": conditions} if conditions else {})}
        await self.ask("PUT", f"pushrules/global/{rule}", body)

    async def mute(self, room_id: str) -> None:
        """Mute a room as Element does."""
        condition = {"kind": "event_match", "key": "room_id", "pattern": room_id}
        await self.put_rule(f"override/{quote(room_id)}", [], condition)

    async def unread(self, room_id: str) -> tuple[int, int]:
        """How many messages notified in a room, and how many of them were highlighted."""
        counts = (await self.joined())[room_id]["unread_notifications"]
        return counts["notification_count"], counts["highlight_count"]

    async def joined(self) -> dict[str, Any]:
        """The rooms, as they are now: the same question again is answered from memory."""
        name = quote(json.dumps({"room": {"timeline": {"limit": 100 + next(numbers)}}}))
        rooms = (await self.ask("GET", f"sync?filter={name}"))["rooms"]
        joined: dict[str, Any] = rooms["join"]
        return joined


@dataclass(frozen=True, slots=True)
class Clinic:
    """A homeserver with our three senders and an admin account."""

    synapse: Synapse
    fajma: Person
    vitals: Person
    alerts: Person

    @property
    def url(self) -> str:
        return self.synapse.base_url

    @property
    def password_file(self) -> Path:
        return self.synapse.site.directory / "operator_password"

    def operator(self) -> Operator:
        return Operator(
            self.url, OPERATOR, self.password_file, server_name=self.synapse.site.server_name
        )

    async def person(self, operator: Operator) -> Person:
        name = f"person-{next(numbers)}"
        mxid = self.synapse.site.mxid(name)
        await operator.create_account(mxid, password=PASSWORD, display_name=name)
        return Person(mxid, await self.synapse.login(name, PASSWORD), self.url)

    async def consultation(self, *people: Person) -> str:
        """An encrypted room of `@fajma` with the other senders and some people in it."""
        members = (self.vitals, self.alerts, *people)
        content = {
            "algorithm": "m.megolm.v1.aes-sha2",
            "io.element.msc4362.encrypt_state_events": True,
        }
        body = {
            "preset": "private_chat",
            "invite": [person.mxid for person in members],
            "initial_state": [{"type": "m.room.encryption", "state_key": "", "content": content}],
            "power_level_content_override": {"users": {self.vitals.mxid: 100}},
        }
        room_id = str((await self.fajma.ask("POST", "createRoom", body))["room_id"])
        for person in members:
            await person.join(room_id)
        return room_id


class WatchedOperator(Operator):
    """Notes what it asks for, and with which tokens."""

    requests: list[tuple[str, str]]
    tokens: list[str]

    async def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None, *, token: str = ""
    ) -> tuple[int, dict[str, Any]]:
        self.requests = [*getattr(self, "requests", []), (method, path)]
        self.tokens = [*getattr(self, "tokens", []), token]
        return await super()._call(method, path, body, token=token)

    def writes(self) -> list[str]:
        return [path for method, path in self.requests if method in ("PUT", "DELETE")]


def ciphertext() -> dict[str, Any]:
    return {
        "algorithm": "m.megolm.v1.aes-sha2",
        "ciphertext": secrets.token_urlsafe(32),
        "session_id": "session",
        "sender_key": "key",
        "device_id": "DEVICE",
    }


async def opened(directory: Path) -> Clinic:
    synapse = Synapse(
        SynapseSite(
            directory=directory,
            server_name="clinic.test",
            port=free_port(),
            appservice_url=f"http://127.0.0.1:{free_port()}",
            private_push=True,
        )
    )
    await synapse.start()
    url = synapse.base_url

    async def sender(name: str) -> Person:
        body = {
            "type": "m.login.application_service",
            "username": name,
            "inhibit_login": True,
        }
        mxid = synapse.site.mxid(name)
        await Person(mxid, synapse.as_token, url).ask("POST", "register", body)
        return Person(mxid, synapse.as_token, url, as_user=True)

    alerts = await synapse.register("fajma-alerts", PASSWORD)
    await synapse.exempt_from_rate_limits(alerts)
    token = await synapse.login("fajma-alerts", PASSWORD)
    return Clinic(
        synapse,
        fajma=await sender("fajma"),
        vitals=await sender("fajma-vitals"),
        alerts=Person(alerts, token, url),
    )


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    """A homeserver that may reach a push gateway on this machine."""
    clinic = run(opened(tmp_path_factory.mktemp("push")))
    yield clinic
    run(clinic.synapse.stop())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def operator(clinic: Clinic) -> AsyncIterator[Operator]:
    operator = clinic.operator()
    yield operator
    await operator.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway() -> AsyncIterator[PushGateway]:
    async with PushGateway() as gateway:
        yield gateway


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def colleague(clinic: Clinic, operator: Operator) -> Person:
    """Somebody who talks."""
    return await clinic.person(operator)


@pytest_asyncio.fixture(loop_scope="module")
async def awa(clinic: Clinic, operator: Operator, gateway: PushGateway) -> Person:
    """A doctor with a phone, whose pushkey is her user id."""
    awa = await clinic.person(operator)
    await have_pusher(clinic.url, awa.token, gateway, awa.mxid)
    return awa


async def came(gateway: PushGateway, person: Person, last: str) -> list[str]:
    """The events that were pushed to a phone until this one; pushes come in order."""
    await gateway.until(lambda: last in [push.event_id for push in gateway.pushes(person.mxid)])
    return [push.event_id or "" for push in gateway.pushes(person.mxid)]


async def refused(request: Awaitable[object]) -> str:
    with pytest.raises(InputError) as caught:
        await request
    return caught.value.code


# --- what rings ----------------------------------------------------------------------------------


async def test_rules_are_put_once_before_all_others_and_the_token_for_it_ends(
    clinic: Clinic,
) -> None:
    operator = WatchedOperator(
        clinic.url, OPERATOR, clinic.password_file, server_name="clinic.test"
    )
    awa = await clinic.person(operator)
    operator.requests = []
    assert await operator.ring(awa.mxid, rings=True) == ()
    listed = (await awa.ask("GET", "pushrules/"))["global"]["override"]
    wanted = [rule.rule_id for rule in push.rules(awa.mxid, rings=True)]
    assert [rule["rule_id"] for rule in listed][: len(wanted) + 1] == [".m.rule.master", *wanted]
    assert len(operator.writes()) == len(wanted)

    operator.requests = []
    assert await operator.ring(awa.mxid, rings=True) == ()
    assert operator.writes() == []

    as_awa = Person(awa.mxid, operator.tokens[-1], clinic.url)
    with pytest.raises(RefusedError) as ended:
        await as_awa.ask("GET", "account/whoami")
    assert ended.value.status == 401
    assert [one.device_id for one in await operator.devices(awa.mxid)] == [
        (await awa.ask("GET", "account/whoami"))["device_id"]
    ]
    await operator.close()


async def test_only_alarms_reach_a_phone_and_count_as_unread(
    clinic: Clinic, operator: Operator, gateway: PushGateway, awa: Person
) -> None:
    room_id = await clinic.consultation(awa)
    await operator.ring(awa.mxid, rings=True)
    await clinic.vitals.set_state(room_id)
    await clinic.vitals.say(room_id)
    await clinic.fajma.say(room_id)
    await clinic.fajma.set_state(room_id)
    assert await awa.unread(room_id) == (0, 0)
    alarm = await clinic.alerts.say(room_id)
    assert (await came(gateway, awa, alarm))[-1] == alarm
    in_room = [one for one in gateway.pushes(awa.mxid) if one.event_id == alarm]
    assert in_room == [
        Notification(
            pushkey=awa.mxid,
            event_id=alarm,
            room_id=room_id,
            sender=None,
            unread=1,
            prio="high",
            sound=None,
        )
    ]
    assert await awa.unread(room_id) == (1, 1)


async def test_a_wish_to_watch_reaches_no_phone_and_what_people_write_does(
    clinic: Clinic, operator: Operator, gateway: PushGateway, awa: Person
) -> None:
    room_id = await clinic.consultation(awa)
    colleague = await clinic.person(operator)
    await clinic.fajma.ask("POST", f"rooms/{quote(room_id)}/invite", {"user_id": colleague.mxid})
    await colleague.join(room_id)
    await operator.ring(awa.mxid, rings=True)
    day = await clinic.vitals.say(room_id)
    wish = await colleague.say(room_id, about={"rel_type": WATCH_RELATION, "event_id": day})
    assert await awa.unread(room_id) == (0, 0)
    word = await colleague.say(room_id, about={"rel_type": "m.reference", "event_id": day})
    pushed = await came(gateway, awa, word)
    assert pushed[-1] == word
    assert wish not in pushed


async def test_an_alarm_that_nobody_answered_rings_off_duty_and_others_do_not(
    clinic: Clinic, operator: Operator, gateway: PushGateway, awa: Person
) -> None:
    room_id = await clinic.consultation(awa)
    await operator.ring(awa.mxid, rings=False)
    alarm = await clinic.alerts.say(room_id)
    unanswered = await clinic.alerts.say(room_id, ring=EVERYONE)
    pushed = await came(gateway, awa, unanswered)
    assert pushed[-1] == unanswered
    assert alarm not in pushed


async def test_the_end_of_an_alarm_reaches_no_phone_on_duty(
    clinic: Clinic, operator: Operator, gateway: PushGateway, awa: Person
) -> None:
    room_id = await clinic.consultation(awa)
    await operator.ring(awa.mxid, rings=True)
    end = await clinic.alerts.say(room_id, ring=NOBODY)
    alarm = await clinic.alerts.say(room_id)
    pushed = await came(gateway, awa, alarm)
    assert pushed[-1] == alarm
    assert end not in pushed


async def test_without_our_rules_telemetry_would_push(
    clinic: Clinic, gateway: PushGateway, awa: Person
) -> None:
    room_id = await clinic.consultation(awa)
    state = await clinic.vitals.set_state(room_id)
    assert (await came(gateway, awa, state))[-1] == state
    assert (await awa.unread(room_id))[0] == 1


async def test_an_alarm_rings_in_a_room_of_mentions_only_and_in_a_muted_one_once_repaired(
    clinic: Clinic, operator: Operator, gateway: PushGateway, awa: Person
) -> None:
    await operator.ring(awa.mxid, rings=True)
    room_id = await clinic.consultation(awa)
    await awa.put_rule(f"room/{quote(room_id)}", ["dont_notify"])
    first = await clinic.alerts.say(room_id)
    assert (await came(gateway, awa, first))[-1] == first

    await awa.mute(room_id)
    lost = await clinic.alerts.say(room_id)
    await operator.ring(awa.mxid, rings=True)
    second = await clinic.alerts.say(room_id)
    pushed = await came(gateway, awa, second)
    assert pushed[-2:] == [first, second]
    assert lost not in pushed


async def test_off_duty_alarms_are_silent_and_people_are_not(
    clinic: Clinic, operator: Operator, gateway: PushGateway, awa: Person, colleague: Person
) -> None:
    room_id = await clinic.consultation(awa, colleague)
    await operator.ring(awa.mxid, rings=True)
    await operator.ring(awa.mxid, rings=False)
    alarm = await clinic.alerts.say(room_id)
    assert await awa.unread(room_id) == (0, 0)
    word = await colleague.say(room_id)
    pushed = await came(gateway, awa, word)
    assert alarm not in pushed
    assert pushed[-1] == word


async def test_invitations_and_notices_come_without_a_sound_and_calls_of_people_ring(
    clinic: Clinic, operator: Operator, gateway: PushGateway, colleague: Person
) -> None:
    awa = await clinic.person(operator)
    await have_pusher(clinic.url, awa.token, gateway, awa.mxid, event_id_only=False)
    await operator.ring(awa.mxid, rings=True)
    room_id = await clinic.consultation(colleague)
    await clinic.fajma.ask("POST", f"rooms/{quote(room_id)}/invite", {"user_id": awa.mxid})
    await gateway.until(lambda: len(gateway.pushes(awa.mxid)) == 1)
    await awa.join(room_id)
    alarm = await clinic.alerts.say(room_id)
    call = await colleague.say(room_id, "m.call.invite")
    await came(gateway, awa, alarm)
    await came(gateway, awa, call)
    await operator.notice(awa.mxid, "Les mises à jour sont faites.", transaction_id="n1")
    avis = "@fajma-avis:clinic.test"
    last = await notices(awa)
    await came(gateway, awa, last[-1])
    heard = [(one.sender, one.sound) for one in gateway.pushes(awa.mxid)]
    assert heard[:3] == [
        (clinic.fajma.mxid, None),
        (clinic.alerts.mxid, "default"),
        (colleague.mxid, "ring"),
    ]
    assert set(heard[3:]) == {(avis, None)}


async def notices(person: Person) -> list[str]:
    """The notices of the site that a person has, oldest first."""
    return [
        event["event_id"]
        for room in (await person.joined()).values()
        for event in room["timeline"]["events"]
        if event["sender"] == "@fajma-avis:clinic.test" and event["type"] == "m.room.message"
    ]


async def test_a_notice_with_the_same_transaction_id_is_sent_once(
    clinic: Clinic, operator: Operator
) -> None:
    awa = await clinic.person(operator)
    for _ in range(2):
        await operator.notice(awa.mxid, "Bienvenue.", transaction_id="welcome/1")
    assert len(await notices(awa)) == 1
    await operator.notice(awa.mxid, "Bienvenue.", transaction_id="welcome/2")
    assert len(await notices(awa)) == 2


async def test_notifications_switched_off_altogether_are_reported(
    clinic: Clinic, operator: Operator
) -> None:
    awa = await clinic.person(operator)
    await awa.ask("PUT", "pushrules/global/override/.m.rule.master/enabled", {"enabled": True})
    assert await operator.ring(awa.mxid, rings=True) == (push.MASTER_MUTED,)


# --- accounts and devices ------------------------------------------------------------------------


async def test_an_account_is_made_closed_and_opened_again(
    clinic: Clinic, operator: Operator
) -> None:
    mxid = "@moussa:clinic.test"
    assert await operator.account(mxid) is None
    await operator.create_account(mxid, password=PASSWORD, display_name="Dr Moussa")
    account = await operator.account(mxid)
    assert account is not None
    assert (account.deactivated, account.locked, account.admin) == (False, False, False)
    again = operator.create_account(mxid, password=PASSWORD, display_name="Dr Moussa")
    assert await refused(again) == "account_exists"

    moussa = Person(mxid, await clinic.synapse.login("moussa", PASSWORD), clinic.url)
    await operator.ring(mxid, rings=True)
    for _ in range(2):
        await operator.deactivate(mxid)
    account = await operator.account(mxid)
    assert account is not None
    assert account.deactivated
    with pytest.raises(RefusedError) as ended:
        await moussa.ask("GET", "account/whoami")
    assert ended.value.status == 401
    assert await operator.devices(mxid) == ()
    assert await refused(operator.ring(mxid, rings=True)) == "account_deactivated"
    reset = operator.reset_password(mxid, PASSWORD, logout=False)
    assert await refused(reset) == "account_deactivated"

    # What a homeserver lacks in its first minutes, and makes by itself later.
    with closing(sqlite3.connect(clinic.synapse.site.directory / "homeserver.db")) as database:
        database.execute(
            "CREATE UNIQUE INDEX IF NOT EXISTS profiles_full_user_id_key ON profiles (full_user_id)"
        )
    await operator.create_account(mxid, password=NEW_PASSWORD, display_name="Dr Moussa")
    moussa = Person(mxid, await clinic.synapse.login("moussa", NEW_PASSWORD), clinic.url)
    assert (await moussa.ask("GET", "account/whoami"))["user_id"] == mxid
    await operator.ring(mxid, rings=True)
    listed = (await moussa.ask("GET", "pushrules/"))["global"]["override"]
    assert listed[3]["rule_id"] == "com.fajma.alarms"


async def test_a_locked_account_is_named_as_such(operator: Operator) -> None:
    mxid = "@locked:clinic.test"
    await operator.create_account(mxid, password=PASSWORD, display_name="Locked")
    await operator._admin("PUT", f"v2/users/{quote(mxid)}", {"locked": True})
    account = await operator.account(mxid)
    assert account is not None
    assert account.locked
    assert await refused(operator.ring(mxid, rings=True)) == "account_locked"


async def test_a_new_password_logs_devices_out_only_where_asked(
    clinic: Clinic, operator: Operator
) -> None:
    awa = await clinic.person(operator)
    await operator.reset_password(awa.mxid, NEW_PASSWORD, logout=False)
    await awa.ask("GET", "account/whoami")
    name = awa.mxid[1:].split(":")[0]
    await clinic.synapse.login(name, NEW_PASSWORD)
    await operator.reset_password(awa.mxid, PASSWORD, logout=True)
    with pytest.raises(RefusedError):
        await awa.ask("GET", "account/whoami")
    assert await operator.devices(awa.mxid) == ()


async def test_devices_are_listed_and_removed_with_their_pushers(
    clinic: Clinic, operator: Operator, awa: Person
) -> None:
    name = awa.mxid[1:].split(":")[0]
    await clinic.synapse.login(name, PASSWORD, device_id="LOSTPHONE")
    assert await operator.pushers(awa.mxid) == 1
    devices = await operator.devices(awa.mxid)
    assert {device.display_name for device in devices} == {"FAJMA"}
    assert "LOSTPHONE" in [device.device_id for device in devices]
    seen = [device.last_seen for device in devices if device.last_seen is not None]
    assert all(abs(datetime.now(UTC) - moment) < timedelta(minutes=5) for moment in seen)

    await operator.remove_devices(awa.mxid, ["LOSTPHONE", "UNKNOWN"])
    (left,) = await operator.devices(awa.mxid)
    assert left.device_id != "LOSTPHONE"
    await operator.remove_devices(awa.mxid, [])
    assert await operator.devices(awa.mxid) == (left,)
    await operator.remove_devices(awa.mxid, [left.device_id])
    assert await operator.pushers(awa.mxid) == 0


async def test_a_new_password_is_enough_to_replace_a_lost_identity(
    clinic: Clinic, operator: Operator
) -> None:
    awa = await clinic.person(operator)

    def identity() -> dict[str, Any]:
        key = base64.b64encode(secrets.token_bytes(32)).decode().rstrip("=")
        keys = {f"ed25519:{key}": key}
        return {"master_key": {"user_id": awa.mxid, "usage": ["master"], "keys": keys}}

    await awa.ask("POST", "keys/device_signing/upload", identity())
    await operator.reset_password(awa.mxid, NEW_PASSWORD, logout=False)
    new = identity()
    with pytest.raises(RefusedError) as asked:
        await awa.ask("POST", "keys/device_signing/upload", new)
    assert asked.value.status == 401
    auth = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": awa.mxid},
        "password": NEW_PASSWORD,
        "session": asked.value.answer["session"],
    }
    await awa.ask("POST", "keys/device_signing/upload", new | {"auth": auth})


# --- our own login -------------------------------------------------------------------------------


async def test_many_requests_at_once_log_in_once_and_closing_logs_out(clinic: Clinic) -> None:
    operator = WatchedOperator(
        clinic.url, OPERATOR, clinic.password_file, server_name="clinic.test"
    )
    await asyncio.gather(*(operator.account(clinic.fajma.mxid) for _ in range(5)))
    assert [path for _, path in operator.requests].count("/_matrix/client/v3/login") == 1
    ours = clinic.synapse.site.mxid(OPERATOR)
    assert DEVICE in [one.device_id for one in await operator.devices(ours)]
    token = operator.tokens[-1]
    await operator.close()
    await operator.close()
    with pytest.raises(RefusedError) as ended:
        await Person(ours, token, clinic.url).ask("GET", "account/whoami")
    assert ended.value.status == 401


async def test_a_token_that_ended_is_replaced_once(clinic: Clinic, operator: Operator) -> None:
    await operator.account(clinic.fajma.mxid)
    password = clinic.password_file.read_text(encoding="utf-8")
    token = await clinic.synapse.login(OPERATOR, password, device_id=DEVICE)
    await Person("", token, clinic.url).ask("POST", "logout", {})
    accounts = await asyncio.gather(*(operator.account(clinic.fajma.mxid) for _ in range(3)))
    assert None not in accounts


async def test_what_keeps_the_operator_out_is_named(clinic: Clinic, tmp_path: Path) -> None:
    async def code(url: str, account: str, password: str) -> str:
        file = tmp_path / "password"
        file.touch(mode=0o600)
        file.write_text(password, encoding="utf-8")
        operator = Operator(url, account, file, server_name="clinic.test")
        with pytest.raises((InputError, UnavailableError)) as caught:
            await operator.account("@awa:clinic.test")
        await operator.close()
        assert password not in str(caught.value)
        return caught.value.code

    assert await code(clinic.url, OPERATOR, "wrong-password") == "operator_password_wrong"
    assert await code(clinic.url, "nobody-at-all", PASSWORD) == "operator_password_wrong"
    assert await code(clinic.url, "fajma-alerts", PASSWORD) == "operator_not_admin"
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert await code(nowhere, OPERATOR, PASSWORD) == "homeserver_unavailable"


METHODS: dict[str, Callable[[Operator, str], Awaitable[object]]] = {
    "deactivate": lambda operator, mxid: operator.deactivate(mxid),
    "reset_password": lambda operator, mxid: operator.reset_password(mxid, "x" * 12, logout=True),
    "devices": lambda operator, mxid: operator.devices(mxid),
    "remove_devices": lambda operator, mxid: operator.remove_devices(mxid, ["A"]),
    "pushers": lambda operator, mxid: operator.pushers(mxid),
    "ring": lambda operator, mxid: operator.ring(mxid, rings=True),
    "notice": lambda operator, mxid: operator.notice(mxid, "x", transaction_id="1"),
}


@pytest.mark.parametrize("name", METHODS)
async def test_unknown_accounts_and_those_of_a_partner_are_refused(
    operator: Operator, name: str
) -> None:
    assert await refused(METHODS[name](operator, "@nobody:clinic.test")) == "no_such_account"
    assert await refused(METHODS[name](operator, PARTNER)) == "not_our_account"


async def test_accounts_of_a_partner_are_neither_looked_up_nor_made(operator: Operator) -> None:
    for mxid in (PARTNER, "awa", "@awa", ""):
        assert await refused(operator.account(mxid)) == "not_our_account"
        made = operator.create_account(mxid, password=PASSWORD, display_name="Awa")
        assert await refused(made) == "not_our_account"
