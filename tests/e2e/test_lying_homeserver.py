"""A homeserver that lies: what it adds gets no key, and people are told.

Whatever a homeserver could do is done here by hand, with tokens that a homeserver has: it makes
devices, replaces identities, opens accounts again and adds members.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import nio
import pytest
import pytest_asyncio

from bots.alerts.client import SignedClient
from console.observer import Observer, Seen
from console.run import opened
from fajma.config import load
from fajma.store import Records
from fajma.tasks import end
from fajma.trust import CrossSigningSeeds, identity_code
from tests.e2e.test_readers import PlainDevice, plain_device, recovery_key, seeds_of
from tests.e2e.ward import BOTS, BREATHLESS, PATIENCE_S, WELL, Bedside, Monitor, Ward, mark

SNAPSHOT = "com.fajma.vitals"


@dataclass(frozen=True, slots=True)
class Room:
    """A ward's room."""

    name: str
    room_id: str


class Colleague:
    """A clinician at work, with an honest, signed device."""

    def __init__(self, ward: Ward, observer: Observer, password: str) -> None:
        self.ward = ward
        self.observer = observer
        self.mxid: str = observer.client.user_id
        self.localpart = self.mxid[1:].split(":", 1)[0]
        self.password = password
        self.locked: set[str] = set()
        """Event ids of what this device cannot decrypt."""
        self.notices: list[str] = []
        """What the homeserver's notices told the person."""
        self._answers: dict[str, str] = {}
        observer.client.add_event_callback(self._on_event, (nio.MegolmEvent, nio.RoomMessage))

    @property
    def device_id(self) -> str:
        return str(self.observer.client.device_id)

    @property
    def token(self) -> str:
        return str(self.observer.client.access_token)

    async def _on_event(self, _: nio.MatrixRoom, event: nio.Event) -> None:
        if isinstance(event, nio.MegolmEvent):
            self.locked.add(event.event_id)
        elif event.sender == self.ward.clinic.mxid("fajma-avis"):
            self.notices.append(event.body)
        elif event.sender == self.ward.clinic.mxid("fajma") and event.verified:
            relates = event.source["content"].get("m.relates_to", {})
            answered = relates.get("m.in_reply_to", {}).get("event_id")
            self._answers.setdefault(answered, event.body)

    async def until(self, condition: Callable[[], bool]) -> None:
        await self.ward.until_of(self.observer, condition)

    async def be_in(self, room_id: str) -> None:
        await self.until(lambda: room_id in self.observer.client.rooms)

    async def says(self, room_id: str, body: str, **more: Any) -> str:
        """Send a message; its event id."""
        content = {"msgtype": "m.text", "body": body, **more}
        sent = await self.observer.client.room_send(room_id, "m.room.message", content)
        assert isinstance(sent, nio.RoomSendResponse)
        return str(sent.event_id)

    async def answer_to(self, event_id: str) -> str:
        """What FAJMA answers to a message, whoever sent it."""
        await self.until(lambda: event_id in self._answers)
        return self._answers[event_id]

    async def types(self, room_id: str, line: str, **more: Any) -> str:
        """Give a command; the answer to it."""
        return await self.answer_to(await self.says(room_id, line, **more))

    async def told(self, room_id: str, *words: str) -> Seen:
        """What the alert bot said in a room, with these words in it."""
        return await self.observer.wait_for(
            lambda one: one in self.all_told(room_id, *words), PATIENCE_S
        )

    def all_told(self, room_id: str, *words: str) -> list[Seen]:
        return [
            one
            for one in self.ward.events(room_id, self.observer)
            if one.sender == self.ward.clinic.mxid("fajma-alerts")
            and all(word in one.body for word in words)
        ]

    def reads(self, event_id: str) -> bool:
        return any(one.event_id == event_id for one in self.observer.seen)


class Ghost(PlainDevice):
    """A device of somebody's account that its owner knows nothing of."""

    def __init__(self, ward: Ward, client: nio.AsyncClient, password: str) -> None:
        super().__init__(client)
        self.ward = ward
        self.password = password
        self.keyed_by: set[str] = set()
        """Who sent this device anything encrypted, which is how room keys travel."""
        self.read_of: set[str] = set()
        """Whose events it could decrypt."""
        client.add_to_device_callback(self._on_to_device, nio.ToDeviceEvent)
        client.add_event_callback(self._on_opened, nio.Event)

    @property
    def device_id(self) -> str:
        return str(self.client.device_id)

    async def _on_to_device(self, event: nio.ToDeviceEvent) -> None:
        # A withheld key is announced in clear; that is all that may come.
        if not isinstance(event, nio.UnknownToDeviceEvent):
            self.keyed_by.add(event.sender)

    async def _on_opened(self, _: nio.MatrixRoom, event: nio.Event) -> None:
        if getattr(event, "decrypted", False):
            self.read_of.add(event.sender)

    async def has_nothing(self) -> bool:
        """Whether none of our senders has given it a key; people's own clients are not ours."""
        listed = (await self.ward.bot_keys())["device_keys"]
        ours = {
            key
            for devices in listed.values()
            for device in devices.values()
            for key in device["keys"].values()
        }
        sessions = self.client.olm.inbound_group_store
        keyed = {session.sender_key for session in sessions} & ours
        return not (keyed or (self.keyed_by | self.read_of) & bots(self.ward))

    async def take_over(self, seeds: CrossSigningSeeds) -> None:
        """Put this identity in the place of the account's own, and sign the device with it."""
        user = self.client.user_id
        whose = {"device_keys": {user: []}}
        _, listed = await self.ask("POST", "keys/query", whose)
        shown = listed["master_keys"].get(user, {}).get("keys", {})
        if seeds.master_key not in shown.values():
            await self._publish(seeds)
        _, listed = await self.ask("POST", "keys/query", whose)
        device = listed["device_keys"][user][self.device_id]
        signatures = seeds.signatures_body(user, device)
        status, answer = await self.ask("POST", "keys/signatures/upload", signatures)
        assert (status, answer) == (200, {"failures": {}})

    async def _publish(self, seeds: CrossSigningSeeds) -> None:
        user = self.client.user_id
        body = seeds.device_signing_body(user, self.device_id, self.client.olm.sign_json)
        path = "keys/device_signing/upload"
        status, answer = await self.ask("POST", path, body)
        if status == 401:
            body["auth"] = {
                "type": "m.login.password",
                "identifier": {"type": "m.id.user", "user": user},
                "password": self.password,
                "session": answer["session"],
            }
            status, answer = await self.ask("POST", path, body)
        assert status == 200, answer

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        return await self.ward.matrix(method, path, body, token=self.client.access_token)

    async def says(self, room_id: str, body: str) -> str:
        """Send a message under a key of its own making; its event id."""
        content = {"msgtype": "m.text", "body": body}
        sent = await self.client.room_send(
            room_id, "m.room.message", content, ignore_unverified_devices=True
        )
        assert isinstance(sent, nio.RoomSendResponse)
        return str(sent.event_id)

    async def join(self, *room_ids: str) -> None:
        for room_id in room_ids:
            assert isinstance(await self.client.join(room_id), nio.JoinResponse)

    async def sees(self, *event_ids: str) -> None:
        """Wait for events, and with them for the keys sent before them."""
        await self.until(lambda: all(one in self.locked or one in self.opened for one in event_ids))


@asynccontextmanager
async def ghost_of(ward: Ward, mxid: str, password: str) -> AsyncIterator[Ghost]:
    async with plain_device(ward, mxid, password) as device:
        yield Ghost(ward, device.client, password)


@asynccontextmanager
async def colleague(ward: Ward, room: Room, name: str) -> AsyncIterator[Colleague]:
    """Somebody new in a ward's team."""
    localpart, mxid, password = await ward.account(name)
    async with ward.client_of(localpart, password) as observer:
        found = Colleague(ward, observer, password)
        await ward.operate(
            "staff",
            who=mxid,
            name=mark(),
            role="doctor",
            ward=room.name,
            language="en",
            existing=True,
        )
        await found.be_in(room.room_id)
        yield found


@dataclass(frozen=True, slots=True)
class Team:
    """A ward with two colleagues who can accept an identity."""

    room: Room
    first: Colleague
    second: Colleague


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def team(ward: Ward) -> AsyncIterator[Team]:
    answer = await ward.operate("wards", name="trust", language="en")
    room = Room(answer["name"], answer["room_id"])
    async with (
        colleague(ward, room, "fatou") as first,
        colleague(ward, room, "moussa") as second,
    ):
        # Who is on duty without a phone is not reachable, and alarms go to the ward's room.
        phone = {
            "kind": "http",
            "app_id": "com.fajma.test",
            "app_display_name": "Test",
            "device_display_name": "Phone",
            "pushkey": first.mxid,
            "lang": "fr",
            "data": {"url": "http://127.0.0.1:9/_matrix/push/v1/notify"},
        }
        status, answer = await ward.matrix("POST", "pushers/set", phone, token=first.token)
        assert status == 200, answer
        assert "is on duty" in await first.types(room.room_id, "!duty take")
        yield Team(room, first, second)


async def consultation_of(team: Team, person: Colleague) -> Bedside:
    """A patient with an account, treated by somebody on duty: alarms come to his room."""
    ward = person.ward
    bedside = await ward.admit(*{person.mxid, team.first.mxid})
    _, account, _ = await ward.account("patient")
    await ward.operate("patients/account", number=bedside.number, account=account)
    await person.be_in(bedside.room_id)
    return bedside


async def alarm_after(ward: Ward, monitor: Monitor, bedside: Bedside) -> str:
    """Make an alarm; its event id."""
    before = {one.event_id for one in ward.alarms(bedside.room_id)}
    monitor.catch_up()
    await monitor.send(*[BREATHLESS] * 4)
    state = "started"
    alarm = await ward.observer.wait_for(
        lambda one: (
            one in ward.alarms(bedside.room_id, state) and one.event_id not in before
        ),
        PATIENCE_S,
    )  # fmt: skip
    await ward.all_published(bedside.room_id, monitor.sent)
    return alarm.event_id


async def end_after(ward: Ward, monitor: Monitor, bedside: Bedside) -> str:
    """Make the end of an alarm; its event id."""
    before = {one.event_id for one in ward.alarms(bedside.room_id)}
    monitor.catch_up()
    await monitor.send(*[WELL] * 5)
    recovered = await ward.observer.wait_for(
        lambda one: (
            one in ward.alarms(bedside.room_id, "recovered") and one.event_id not in before
        ),
        PATIENCE_S,
    )  # fmt: skip
    return recovered.event_id


def bots(ward: Ward, *names: str) -> set[str]:
    return {ward.clinic.mxid(name) for name in names or BOTS}


# --- a device that nobody signed -----------------------------------------------------------------


async def test_a_ghost_device_gets_no_key_and_is_told_of_while_an_honest_one_reads_at_once(
    ward: Ward, team: Team
) -> None:
    room_id = team.room.room_id
    async with colleague(ward, team.room, "awa") as awa:
        bedside = await consultation_of(team, awa)
        async with (
            ward.monitor(bedside) as monitor,
            ghost_of(ward, awa.mxid, awa.password) as ghost,
        ):
            said = await awa.says(room_id, "!duty take")
            assert "is on duty" in await awa.answer_to(said)
            told = await awa.told(room_id, ghost.device_id)
            await monitor.send(WELL)
            alarm = await alarm_after(ward, monitor, bedside)
            await ghost.sees(said, told.event_id, alarm)
            await ghost.until(lambda: bots(ward, "fajma", "fajma-alerts") <= ghost.senders(room_id))
            assert bots(ward, "fajma-vitals", "fajma-alerts") <= ghost.senders(bedside.room_id)
            assert await ghost.has_nothing()

            async with ward.client_of(
                awa.localpart, awa.password, recovery_key=recovery_key(awa.observer)
            ) as phone:
                await ward.snapshot_of(bedside.room_id, monitor.sent[-1].at_ms, phone)
                await phone.vitals(bedside.room_id)
                end = await end_after(ward, monitor, bedside)
                await phone.wait_for(lambda one: one.event_id == end, PATIENCE_S)
            await ghost.sees(end)
            assert await ghost.has_nothing()

            await awa.until(lambda: any(ghost.device_id in one for one in awa.notices))
            # Everything was looked at many times since.
            assert len([one for one in awa.notices if ghost.device_id in one]) == 1
            assert len(awa.all_told(room_id, ghost.device_id)) == 1


# --- an identity that was swapped ----------------------------------------------------------------


async def test_a_swapped_identity_gets_no_key_until_two_clinicians_have_accepted_it(
    ward: Ward, team: Team
) -> None:
    room_id = team.room.room_id
    async with colleague(ward, team.room, "binta") as binta:
        bedside = await consultation_of(team, binta)
        async with (
            ward.monitor(bedside) as monitor,
            ghost_of(ward, binta.mxid, binta.password) as usurper,
        ):
            await monitor.send(WELL)
            await ward.snapshot_of(bedside.room_id, monitor.sent[-1].at_ms, binta.observer)
            seeds = CrossSigningSeeds.generate()
            await usurper.take_over(seeds)
            code = identity_code(seeds.master_key)
            told = await team.first.told(room_id, code, binta.mxid)
            alarm = await alarm_after(ward, monitor, bedside)
            await usurper.sees(told.event_id, alarm)
            assert await usurper.has_nothing()

            accept = f"!identity accept {binta.mxid}"
            wrong = identity_code(CrossSigningSeeds.generate().master_key)
            refusal = await team.first.types(room_id, f"{accept} {wrong}")
            assert "not the code" in refusal
            by_himself = await usurper.says(room_id, f"{accept} {code}")
            assert "keys of your account were reset" in await team.first.answer_to(by_himself)
            # One clinician counts once, however often he says it.
            assert "1 of 2" in await team.first.types(room_id, f"{accept} {code}")
            assert "already accepted" in await team.first.types(room_id, f"{accept} {code}")
            end = await end_after(ward, monitor, bedside)
            await usurper.sees(by_himself, end)
            assert await usurper.has_nothing()

            answer = await team.second.types(room_id, f"{accept} {code}")
            assert "are accepted" in answer
            await usurper.until(lambda: SNAPSHOT in usurper.opened.values())
            alarm = await alarm_after(ward, monitor, bedside)
            await usurper.until(lambda: alarm in usurper.opened)
            assert bots(ward) <= usurper.keyed_by
            # The device of the old identity is in the room still, and reads nothing.
            await binta.until(lambda: alarm in binta.locked)
            assert not binta.reads(alarm)

            assert len(team.first.all_told(room_id, code)) == 1
            (notice,) = [one for one in binta.notices if "were reset" in one]
            assert code in notice  # so that it can be read to whoever asks
    reasons = [one.detail.get("reason") for one in await ward.audit(binta.mxid)]
    assert reasons == ["identity_changed"]
    acts = [
        (one.action, one.detail.get("reason") or one.detail["accepted"])
        for who in (team.first, team.second)
        for one in await ward.audit(who.mxid)
        if one.subject in (binta.mxid, room_id)
    ]
    assert acts == [
        ("order.refused", "wrong_code"),
        ("identity.accept", "False"),
        ("identity.accept", "False"),
        ("identity.accept", "True"),
    ]


@pytest.mark.slow
async def test_the_operator_accepts_a_swapped_identity_with_its_code_only(
    ward: Ward, team: Team
) -> None:
    room_id = team.room.room_id
    async with colleague(ward, team.room, "coumba") as coumba:
        bedside = await consultation_of(team, coumba)
        async with (
            ward.monitor(bedside) as monitor,
            ghost_of(ward, coumba.mxid, coumba.password) as usurper,
        ):
            await monitor.send(WELL)
            await ward.snapshot_of(bedside.room_id, monitor.sent[-1].at_ms, coumba.observer)
            seeds = CrossSigningSeeds.generate()
            await usurper.take_over(seeds)
            code = identity_code(seeds.master_key)
            await team.first.told(room_id, code, coumba.mxid)
            _, output = await ward.command("staff", "check")
            assert code in output
            wrong = identity_code(CrossSigningSeeds.generate().master_key)
            exit_code, output = await ward.command("staff", "trust", coumba.mxid, wrong)
            assert exit_code != 0
            assert "not the code" in output
            alarm = await alarm_after(ward, monitor, bedside)
            await usurper.sees(alarm)
            assert await usurper.has_nothing()

            exit_code, output = await ward.command("staff", "trust", coumba.mxid, code)
            assert exit_code == 0, output
            await usurper.until(lambda: SNAPSHOT in usurper.opened.values())
            end = await end_after(ward, monitor, bedside)
            await usurper.until(lambda: end in usurper.opened)
            await coumba.until(lambda: end in coumba.locked)
            assert not coumba.reads(end)


@pytest.mark.slow
async def test_an_identity_swapped_again_between_two_acceptances_needs_two_of_its_own(
    ward: Ward, team: Team
) -> None:
    room_id = team.room.room_id
    async with colleague(ward, team.room, "djibril") as djibril:
        bedside = await consultation_of(team, djibril)
        async with (
            ward.monitor(bedside) as monitor,
            ghost_of(ward, djibril.mxid, djibril.password) as usurper,
        ):
            await monitor.send(WELL)
            await ward.snapshot_of(bedside.room_id, monitor.sent[-1].at_ms, djibril.observer)
            codes = []
            for who in (team.first, None):
                seeds = CrossSigningSeeds.generate()
                await usurper.take_over(seeds)
                codes.append(identity_code(seeds.master_key))
                await team.second.told(room_id, codes[-1], djibril.mxid)
                if who is not None:
                    line = f"!identity accept {djibril.mxid} {codes[-1]}"
                    assert "1 of 2" in await who.types(room_id, line)
            old, new = (f"!identity accept {djibril.mxid} {code}" for code in codes)
            assert "not the code" in await team.second.types(room_id, old)
            assert "1 of 2" in await team.second.types(room_id, new)
            alarm = await alarm_after(ward, monitor, bedside)
            await usurper.sees(alarm)
            assert await usurper.has_nothing()
            assert "are accepted" in await team.first.types(room_id, new)
            await usurper.until(lambda: SNAPSHOT in usurper.opened.values())


@pytest.mark.slow
async def test_an_account_that_was_closed_and_opened_again_gets_nothing_until_accepted(
    ward: Ward, team: Team
) -> None:
    room_id = team.room.room_id
    async with colleague(ward, team.room, "elimane") as elimane:
        bedside = await consultation_of(team, elimane)
        async with ward.monitor(bedside) as monitor:
            await monitor.send(WELL)
            await ward.snapshot_of(bedside.room_id, monitor.sent[-1].at_ms, elimane.observer)
            ends_logged_out(elimane.observer)
            await closed_and_opened_again(ward, elimane)
            async with ghost_of(ward, elimane.mxid, elimane.password) as usurper:
                seeds = CrossSigningSeeds.generate()
                await usurper.take_over(seeds)
                for room in (room_id, bedside.room_id):
                    await ward.invite(room, elimane.mxid)
                await usurper.join(room_id, bedside.room_id)
                code = identity_code(seeds.master_key)
                told = await team.first.told(room_id, code, elimane.mxid)
                alarm = await alarm_after(ward, monitor, bedside)
                await usurper.sees(alarm)
                assert told.event_id not in usurper.opened
                assert await usurper.has_nothing()
                for who in (team.first, team.second):
                    await who.types(room_id, f"!identity accept {elimane.mxid} {code}")
                await usurper.until(lambda: SNAPSHOT in usurper.opened.values())


async def closed_and_opened_again(ward: Ward, person: Colleague) -> None:
    path = f"v1/deactivate/{quote(person.mxid)}"
    status, answer = await ward.admin("POST", path, {"erase": False})
    assert status == 200, answer
    # What a homeserver lacks in its first minutes, and makes by itself later.
    with closing(sqlite3.connect(ward.clinic.synapse.site.directory / "homeserver.db")) as database:
        database.execute(
            "CREATE UNIQUE INDEX IF NOT EXISTS profiles_full_user_id_key ON profiles (full_user_id)"
        )
    body = {"deactivated": False, "password": person.password}
    status, answer = await ward.admin("PUT", f"v2/users/{quote(person.mxid)}", body)
    assert status in (200, 201), answer


# --- a member that nobody of us invited ----------------------------------------------------------


async def test_a_member_whom_the_homeserver_added_gets_no_key_and_is_told_of(
    ward: Ward, team: Team
) -> None:
    room_id = team.room.room_id
    bedside = await consultation_of(team, team.first)
    localpart, mxid, password = await ward.account("stranger")
    async with ward.client_of(localpart, password) as observer, ward.monitor(bedside) as monitor:
        stranger = Colleague(ward, observer, password)
        for room in (room_id, bedside.room_id):
            await ward.invite(room, mxid)
            await stranger.be_in(room)
        # Once for each of the two rooms that he is in.
        told = await team.first.told(room_id, mxid)
        await team.first.until(lambda: len(team.first.all_told(room_id, mxid)) == 2)
        await monitor.send(WELL)
        alarm = await alarm_after(ward, monitor, bedside)
        answered = await team.first.says(room_id, "!duty")
        await team.first.answer_to(answered)
        await stranger.until(lambda: {told.event_id, alarm} <= stranger.locked)
        keys = {one.id for one in observer.client.olm.inbound_group_store}
        senders = {one.sender for one in observer.seen}
        # The clinician's own client is not ours: it writes to whoever is in the room.
        assert senders <= {team.first.mxid, team.second.mxid}
        assert not keys & await sessions_of(ward, bots(ward), room_id, bedside.room_id)
        assert len(team.first.all_told(room_id, mxid)) == 2
    noted = {one.subject for one in await ward.audit("fajma") if one.detail.get("mark") == mxid}
    assert noted == {room_id, bedside.room_id}


async def sessions_of(ward: Ward, senders: set[str], *room_ids: str) -> set[str]:
    """Megolm sessions under which senders of ours spoke in rooms, by the homeserver's word."""
    found = set()
    for room_id in room_ids:
        status, answer = await ward.matrix(
            "GET",
            f"rooms/{quote(room_id)}/messages?dir=b&limit=100",
            token=ward.clinic.synapse.as_token,
            as_user=ward.clinic.mxid("fajma"),
        )
        assert status == 200, answer
        found |= {
            event["content"]["session_id"]
            for event in answer["chunk"]
            if event["sender"] in senders and event["type"] == "m.room.encrypted"
        }
    assert found
    return found


# --- commands ------------------------------------------------------------------------------------


async def test_commands_that_are_not_from_a_signed_device_or_not_as_typed_are_refused(
    ward: Ward, team: Team
) -> None:
    room_id = team.room.room_id
    async with colleague(ward, team.room, "gora") as gora:
        bedside = await consultation_of(team, gora)
        async with ghost_of(ward, gora.mxid, gora.password) as ghost:
            await ghost.client.sync(timeout=0, full_state=True)
            said = await ghost.says(room_id, "!duty take")
            assert "not confirmed" in await gora.answer_to(said)
        clear = f"rooms/{quote(room_id)}/send/m.room.message/clear"
        order = {"msgtype": "m.text", "body": "!duty take"}
        status, answer = await ward.matrix("PUT", clear, order, token=gora.token)
        assert status == 200
        assert "not encrypted" in await gora.answer_to(answer["event_id"])
        harmless = await gora.says(room_id, "bonjour")
        relation = {"rel_type": "m.replace", "event_id": harmless}
        edited = await gora.types(
            room_id, "* !duty take", **{"m.new_content": order, "m.relates_to": relation}
        )
        assert "edited" in edited
        assert "ward's room" in await gora.types(bedside.room_id, "!duty take")
    reasons = [one.detail.get("reason") for one in await ward.audit(gora.mxid)]
    assert reasons == ["not_signed", "not_encrypted", "edited", "wrong_room"]
    assert gora.mxid not in await on_duty(ward, team.room)


async def on_duty(ward: Ward, room: Room) -> list[str]:
    async with opened(load(ward.clinic.config_path)) as records:
        found = await records.wards.in_room(room.room_id)
        assert found is not None
        return [one.account for one in found.roster.on_call]


# --- lost phones ---------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_lost_phone_never_gets_a_key_again_even_if_the_homeserver_goes_on_listing_it(
    ward: Ward, team: Team
) -> None:
    async with colleague(ward, team.room, "hawa") as hawa:
        bedside = await consultation_of(team, hawa)
        async with (
            ward.monitor(bedside) as monitor,
            ward.client_of(
                hawa.localpart, hawa.password, recovery_key=recovery_key(hawa.observer)
            ) as phone,
        ):
            await monitor.send(WELL)
            await ward.snapshot_of(bedside.room_id, monitor.sent[-1].at_ms, phone)
            ends_logged_out(phone)
            device_id = phone.client.device_id
            everybody = {"device_keys": {hawa.mxid: []}}
            _, listed = await ward.matrix("POST", "keys/query", everybody)
            keys = listed["device_keys"][hawa.mxid][device_id]

            code, letter = await ward.command(
                "staff", "lost-phone", hawa.mxid, "--device", device_id
            )
            assert code == 0, letter
            assert "Lost phone" in letter  # the ward speaks English
            assert ward.clinic.synapse.base_url in letter
            assert "!test" in letter
            assert await whoami(ward, phone.client.access_token) == 401
            assert await whoami(ward, hawa.token) == 200
            async with opened(load(ward.clinic.config_path)) as records:
                assert device_id in await records.pins.blocked(hawa.mxid)

            # The homeserver shows the same device again, signed as it was.
            password = new_password(letter)
            token = await ward.clinic.synapse.login(hawa.localpart, password, device_id=device_id)
            bare = {name: value for name, value in keys.items() if name != "unsigned"}
            status, answer = await ward.matrix(
                "POST", "keys/upload", {"device_keys": bare}, token=token
            )
            assert status == 200, answer
            _, listed = await ward.matrix("POST", "keys/query", everybody)
            shown = listed["device_keys"][hawa.mxid][device_id]
            assert shown["signatures"] == keys["signatures"]
            # And a device of another name with the very same keys, which no identity signed.
            twin = await ward.clinic.synapse.login(hawa.localpart, password, device_id="TWIN")
            status, answer = await ward.matrix(
                "POST", "keys/upload", twin_of(phone.client), token=twin
            )
            assert status == 200, answer

            alarm = await alarm_after(ward, monitor, bedside)
            await hawa.observer.wait_for(lambda one: one.event_id == alarm, PATIENCE_S)
            assert not hawa.locked & {one.event_id for one in ward.events(bedside.room_id)}
            for one in (token, twin):
                assert await senders_to(ward, one) & bots(ward) == set()


def twin_of(client: nio.AsyncClient) -> dict[str, Any]:
    """What publishes the keys of a client's device under the name ``TWIN``."""
    keys = client.olm.account.identity_keys
    device = {
        "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
        "device_id": "TWIN",
        "user_id": client.user_id,
        "keys": {f"{kind}:TWIN": keys[kind] for kind in ("ed25519", "curve25519")},
    }
    client.olm.account.generate_one_time_keys(5)
    one_time_keys = {
        f"signed_curve25519:{key_id}": signed_as_twin(client, {"key": key})
        for key_id, key in client.olm.account.one_time_keys["curve25519"].items()
    }
    return {"device_keys": signed_as_twin(client, device), "one_time_keys": one_time_keys}


def signed_as_twin(client: nio.AsyncClient, thing: dict[str, Any]) -> dict[str, Any]:
    signature = client.olm.sign_json(dict(thing))
    return {**thing, "signatures": {client.user_id: {"ed25519:TWIN": signature}}}


def ends_logged_out(observer: Observer) -> None:
    """A client whose session ends stops following with an error, which is what we want."""
    following = observer._following
    assert following is not None
    following.add_done_callback(lambda task: task.cancelled() or task.exception())


async def whoami(ward: Ward, token: str) -> int:
    status, _ = await ward.matrix("GET", "account/whoami", token=token)
    return status


async def senders_to(ward: Ward, token: str) -> set[str]:
    """Who sent a device anything encrypted."""
    status, answer = await ward.matrix("GET", "sync?timeout=0", token=token)
    assert status == 200
    return {
        event["sender"]
        for event in answer.get("to_device", {}).get("events", [])
        if event["type"] == "m.room.encrypted"
    }


def new_password(letter: str) -> str:
    """Out of the line with the user id and, last, the password."""
    (line,) = (one for one in letter.splitlines() if one.startswith("3."))
    return line.split()[-1]


@pytest.mark.slow
async def test_after_a_stolen_phone_the_other_device_too_gets_nothing_until_a_new_identity(
    ward: Ward, team: Team
) -> None:
    room_id = team.room.room_id
    async with colleague(ward, team.room, "ibra") as ibra:
        bedside = await consultation_of(team, ibra)
        async with (
            ward.monitor(bedside) as monitor,
            ward.client_of(
                ibra.localpart, ibra.password, recovery_key=recovery_key(ibra.observer)
            ) as phone,
        ):
            await monitor.send(WELL)
            await ward.snapshot_of(bedside.room_id, monitor.sent[-1].at_ms, phone)
            ends_logged_out(phone)
            answer = await ward.operate(
                "staff/lost-phone", who=ibra.mxid, devices=[phone.client.device_id], stolen=True
            )
            letter = answer["letter"]
            alarm = await alarm_after(ward, monitor, bedside)
            await ibra.until(lambda: alarm in ibra.locked)
            assert not ibra.reads(alarm)
            async with ghost_of(ward, ibra.mxid, new_password(letter)) as new:
                seeds = CrossSigningSeeds.generate()
                await new.take_over(seeds)
                code = identity_code(seeds.master_key)
                await team.first.told(room_id, code, ibra.mxid)
                end = await end_after(ward, monitor, bedside)
                await new.sees(end)
                assert await new.has_nothing()
                for who in (team.first, team.second):
                    await who.types(room_id, f"!identity accept {ibra.mxid} {code}")
                await new.until(lambda: SNAPSHOT in new.opened.values())


# --- leaving -------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_who_has_left_is_out_everywhere_and_has_no_key_of_what_comes_even_if_let_in_again(
    ward: Ward, team: Team
) -> None:
    room_id = team.room.room_id
    async with colleague(ward, team.room, "khady") as khady:
        bedside = await consultation_of(team, khady)
        async with ward.monitor(bedside) as monitor:
            await monitor.send(WELL)
            await ward.snapshot_of(bedside.room_id, monitor.sent[-1].at_ms, khady.observer)
            seeds = await seeds_of(khady.observer.client)
            copied = {one.id for one in khady.observer.client.olm.inbound_group_store}
            assert copied & await sessions_of(ward, bots(ward), bedside.room_id)

            ends_logged_out(khady.observer)
            code, output = await ward.command("staff", "leave", khady.mxid)
            assert code == 0, output
            assert await whoami(ward, khady.token) == 401
            for room in (room_id, bedside.room_id):
                assert khady.mxid not in await members(ward, room)
            alarm = await alarm_after(ward, monitor, bedside)
            said = await team.first.says(room_id, "!duty")
            await team.first.answer_to(said)
            new = {await session_of(ward, bedside.room_id, alarm)}
            assert not copied & new

            # The homeserver opens the account and the rooms again, for the very same identity.
            await closed_and_opened_again(ward, khady)
            async with ghost_of(ward, khady.mxid, khady.password) as back:
                await back.take_over(seeds)
                for room in (room_id, bedside.room_id):
                    await ward.invite(room, khady.mxid)
                await back.join(room_id, bedside.room_id)
                assert khady.mxid in await members(ward, bedside.room_id)
                end = await end_after(ward, monitor, bedside)
                told = await team.first.told(room_id, khady.mxid)
                await back.sees(end)
                assert told.event_id not in back.opened
                assert await back.has_nothing()


async def members(ward: Ward, room_id: str) -> set[str]:
    status, answer = await ward.matrix(
        "GET",
        f"rooms/{quote(room_id)}/joined_members",
        token=ward.clinic.synapse.as_token,
        as_user=ward.clinic.mxid("fajma"),
    )
    assert status == 200, answer
    return set(answer["joined"])


async def session_of(ward: Ward, room_id: str, event_id: str) -> str:
    """The Megolm session of an event, as the homeserver has it."""
    status, answer = await ward.matrix(
        "GET",
        f"rooms/{quote(room_id)}/event/{quote(event_id)}",
        token=ward.clinic.synapse.as_token,
        as_user=ward.clinic.mxid("fajma"),
    )
    assert status == 200, answer
    return str(answer["content"]["session_id"])


# --- an answer that is kept back -----------------------------------------------------------------


class Forgetful(SignedClient):
    """A client whose homeserver can keep back what it knows of people's keys."""

    silent_about: frozenset[str] = frozenset()

    async def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> tuple[int, dict[str, Any]]:
        status, answer = await super()._request(method, path, body, timeout_s=timeout_s)
        if path.startswith("keys/query"):
            for listed in answer.values():
                for user in self.silent_about:
                    listed.pop(user, None)
        return status, answer


class Members:
    """Who belongs in the one room of a test; the epoch is that of the records."""

    def __init__(self, records: Records, *accounts: str) -> None:
        self.epoch = records.audience.epoch
        self._accounts = frozenset(accounts)

    async def of(self, _: str) -> frozenset[str]:
        return self._accounts


async def test_a_lost_device_gets_no_key_of_alarms_while_the_homeserver_keeps_its_answer_back(
    ward: Ward,
) -> None:
    localpart, mxid, password = await ward.account("lamine")
    _, sender, sender_password = await ward.account("sender")
    async with (
        opened(load(ward.clinic.config_path)) as records,
        ward.client_of(localpart, password) as lamine,
    ):
        client = Forgetful(
            ward.clinic.synapse.base_url,
            sender,
            ward.clinic.directory / "clients" / sender[1:10],
            pins=records.pins,
            audience=Members(records, mxid),  # type: ignore[arg-type]
        )
        await client.start_session(sender_password)
        following = asyncio.create_task(client.run_sync())
        try:
            state = {"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}
            body = {"invite": [mxid], "initial_state": [state]}
            _, room = await ward.matrix("POST", "createRoom", body, token=client.access_token)
            room_id = room["room_id"]
            await lamine.client.join(room_id)
            async with asyncio.timeout(PATIENCE_S):
                while mxid not in getattr(client.rooms.get(room_id), "users", ()):
                    await client.synced.wait()
            device = (mxid, lamine.client.device_id)
            await client.room_send(room_id, "m.room.message", {"msgtype": "m.text", "body": "1"})
            assert client.olm.outbound_group_sessions[room_id].users_shared_with == {device}

            client.silent_about = frozenset({mxid})
            async with records.store.transaction() as connection:
                await records.pins.block(connection, mxid, [device[1]])
            sent = await client.room_send(
                room_id, "m.room.message", {"msgtype": "m.text", "body": "2"}
            )
            assert client.olm.outbound_group_sessions[room_id].users_shared_with == set()
            assert isinstance(sent, nio.RoomSendResponse)
        finally:
            await end([following])
            await client.close()
