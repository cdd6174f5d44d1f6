"""Phones ring for alarms and only for alarms: a push gateway counts what a phone is told."""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import quote

import nio
import pytest
import pytest_asyncio

from console.observer import Observer, Seen
from console.run import opened
from fajma.config import load
from fajma.events import AlarmBlock, VitalsBatch
from fajma.store.alarms import Delivery
from fajma.store.warnings import About
from tests.e2e.ward import (
    BREATHLESS,
    PATIENCE_S,
    WELL,
    Bedside,
    Ward,
    mark,
    milliseconds,
    values,
)
from tests.push_gateway import Notification, PushGateway, have_pusher

LOW_OXYGEN = values("80", "91")
"""Under 92 %: medium priority; `BREATHLESS` is the next band."""

ALARMS_RULE = "com.fajma.alarms"
BEFORE_IT = {".m.rule.master", "com.fajma.everyone", "com.fajma.endings"}

numbers = itertools.count()

Rules = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Team:
    """A ward of its own for a test."""

    name: str
    room_id: str


class Phone:
    """An account with a pusher, seen through the homeserver."""

    def __init__(self, ward: Ward, gateway: PushGateway, mxid: str, token: str) -> None:
        self.ward = ward
        self.gateway = gateway
        self.mxid = mxid
        self.token = token

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        status, answer = await self.ward.matrix(method, path, body, token=self.token)
        assert status == 200, answer
        return answer

    async def register(self) -> None:
        """As Element does at its first start; the pushkey is the user id."""
        await have_pusher(
            self.ward.clinic.synapse.base_url,
            self.token,
            self.gateway,
            self.mxid,
            event_id_only=False,
        )

    def pushes(self) -> list[Notification]:
        return self.gateway.pushes(self.mxid)

    def rang(self) -> list[str]:
        """Events that made a sound, in order."""
        return [one.event_id or "" for one in self.pushes() if one.sound is not None]

    async def told_of(self, event_id: str) -> None:
        """Pushes come in order, so all that were sent before have come too."""
        await self.gateway.until(lambda: event_id in {one.event_id for one in self.pushes()})

    async def rules_until(self, condition: Callable[[Rules], bool]) -> None:
        """Wait until the override rules are so; a sync answers as soon as they change."""
        # The same question again would be answered from memory, so each is another one.
        nothing = {"rooms": [], "timeline": {"limit": 1 + next(numbers)}}
        wanted = quote(json.dumps({"room": nothing}))
        query = f"sync?filter={wanted}&set_presence=offline"
        answer = await self.ask("GET", f"{query}&timeout=0")
        async with asyncio.timeout(PATIENCE_S):
            while not any(
                event["type"] == "m.push_rules"
                and condition(event["content"]["global"]["override"])
                for event in answer.get("account_data", {}).get("events", ())
            ):
                since = answer["next_batch"]
                answer = await self.ask("GET", f"{query}&timeout=5000&since={quote(since)}")

    async def unread(self) -> dict[str, tuple[int, int]]:
        """By room: how many messages notified, how many of them are highlighted."""
        wanted = quote(json.dumps({"room": {"timeline": {"limit": 1 + next(numbers)}}}))
        answer = await self.ask("GET", f"sync?filter={wanted}&set_presence=offline")
        return {
            room_id: (
                room["unread_notifications"]["notification_count"],
                room["unread_notifications"]["highlight_count"],
            )
            for room_id, room in answer["rooms"]["join"].items()
        }

    async def silence(self, room_id: str, kind: str) -> None:
        """As Element does: ``override`` mutes a room, ``room`` leaves mentions only."""
        body: dict[str, Any] = {"actions": []}
        if kind == "override":
            condition = {"kind": "event_match", "key": "room_id", "pattern": room_id}
            body["conditions"] = [condition]
        await self.ask("PUT", f"pushrules/global/{kind}/{quote(room_id)}", body)

    async def hear_again(self, room_id: str, kind: str) -> None:
        await self.ask("DELETE", f"pushrules/global/{kind}/{quote(room_id)}")


class Clinician(Phone):
    """Somebody of a ward's team, with a signed client and a phone."""

    def __init__(self, ward: Ward, gateway: PushGateway, observer: Observer) -> None:
        client = observer.client
        super().__init__(ward, gateway, client.user_id, client.access_token)
        self.observer = observer
        self._answers: dict[str, str] = {}
        client.add_event_callback(self._on_message, nio.RoomMessage)

    async def _on_message(self, _: nio.MatrixRoom, event: nio.RoomMessage) -> None:
        relates = event.source["content"].get("m.relates_to", {})
        answered = relates.get("m.in_reply_to", {}).get("event_id")
        if event.sender == self.ward.clinic.mxid("fajma") and event.verified and answered:
            self._answers[answered] = event.body

    async def be_in(self, room_id: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while room_id not in self.observer.client.rooms:
                await self.observer.client.synced.wait()

    async def says(self, room_id: str, body: str) -> str:
        """A message in the room; its event id."""
        content = {"msgtype": "m.text", "body": body}
        sent = await self.observer.client.room_send(room_id, "m.room.message", content)
        assert isinstance(sent, nio.RoomSendResponse), sent
        return str(sent.event_id)

    async def orders(self, room_id: str, body: str) -> str:
        """A command; what FAJMA answered."""
        event_id = await self.says(room_id, body)
        async with asyncio.timeout(PATIENCE_S):
            while event_id not in self._answers:
                await self.observer.client.synced.wait()
        return self._answers[event_id]

    async def sees(self, room_id: str, condition: Callable[[Seen], bool]) -> Seen:
        return await self.observer.wait_for(
            lambda one: one.room_id == room_id and condition(one), PATIENCE_S
        )

    async def alarm(self, room_id: str, state: str, bedside: Bedside) -> Seen:
        return await self.sees(
            room_id,
            lambda one: (
                isinstance(one.content, AlarmBlock)
                and one.content.state == state
                and one.content.patient == bedside.patient
            ),
        )


async def new_team(ward: Ward) -> Team:
    answer = await ward.operate("wards", name=f"t-{secrets.token_hex(4)}")
    return Team(answer["name"], answer["room_id"])


@asynccontextmanager
async def clinician(
    ward: Ward, gateway: PushGateway, team: Team, *, phone: bool = True
) -> AsyncIterator[Clinician]:
    """Somebody who works in the ward and is in its room."""
    localpart, mxid, password = await ward.account("nurse")
    async with ward.client_of(localpart, password) as observer:
        one = Clinician(ward, gateway, observer)
        if phone:
            await one.register()
        await ward.operate(
            "staff", who=mxid, name=mark(), role="nurse", ward=team.name, existing=True
        )
        await one.be_in(team.room_id)
        try:
            yield one
        finally:  # the watch of later tests has nothing to do with this ward
            await ward.operate("staff/role", who=mxid, ward="")


@asynccontextmanager
async def clinicians(
    ward: Ward, gateway: PushGateway, team: Team, count: int
) -> AsyncIterator[list[Clinician]]:
    """Several of a team; the first one is on duty, so the others are silent.

    He takes it before the others come, who so have not heard that nobody had it.
    """
    async with AsyncExitStack() as stack:
        people = [await stack.enter_async_context(clinician(ward, gateway, team))]
        await people[0].orders(team.room_id, "!garde prendre")
        await people[0].rules_until(rings)
        async with opened(load(ward.clinic.config_path)) as records, asyncio.timeout(PATIENCE_S):
            while await open_warnings(ward, team) or await records.outbox.waiting(team.room_id):
                pass  # a query answers, no clock is waited for
        people += [
            await stack.enter_async_context(clinician(ward, gateway, team)) for _ in range(1, count)
        ]
        for one in people[1:]:
            await one.rules_until(is_silent)
        yield people


async def open_warnings(ward: Ward, team: Team) -> set[About]:
    """What the watch has noted of a ward and not seen mended."""
    async with opened(load(ward.clinic.config_path)) as records:
        return {one.kind for one in await records.warnings.open() if one.subject == team.name}


async def patient_with_phone(ward: Ward, gateway: PushGateway, bedside: Bedside) -> Phone:
    """The patient takes part with an account, in the room."""
    localpart, mxid, password = await ward.account("patient")
    phone = Phone(ward, gateway, mxid, await ward.clinic.synapse.login(localpart, password))
    await phone.register()
    await ward.operate("patients/account", number=bedside.number, account=mxid)
    await phone.ask("POST", f"join/{quote(bedside.room_id)}", {})
    await phone.rules_until(is_silent)
    return phone


def alarms_rule(override: Rules) -> dict[str, Any] | None:
    """The rule that makes alarms ring or not, if it stands where it must."""
    asked = [rule for rule in override if rule["rule_id"] not in BEFORE_IT]
    return asked[0] if asked and asked[0]["rule_id"] == ALARMS_RULE else None


def rings(override: Rules) -> bool:
    rule = alarms_rule(override)
    return rule is not None and rule["enabled"] and "notify" in rule["actions"]


def is_silent(override: Rules) -> bool:
    rule = alarms_rule(override)
    return rule is not None and rule["enabled"] and rule["actions"] == []


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def gateway() -> AsyncIterator[PushGateway]:
    async with PushGateway() as gateway:
        yield gateway


@dataclass(frozen=True, slots=True)
class Shift:
    """A ward at work: its first clinician is on duty, the second is not."""

    team: Team
    awa: Clinician
    binta: Clinician


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shift(ward: Ward, gateway: PushGateway) -> AsyncIterator[Shift]:
    team = await new_team(ward)
    async with clinicians(ward, gateway, team, 2) as (awa, binta):
        yield Shift(team, awa, binta)


class Telemetry:
    """What came into rooms, counted as it comes."""

    def __init__(self, observer: Observer) -> None:
        self.batches = Counter[str]()
        self.snapshots = Counter[str]()
        self.newest: dict[str, int] = {}
        observer.on_seen(self._count)

    def is_at(self, newest: Mapping[str, int]) -> bool:
        """Whether the newest sample of each of these rooms has come."""
        return all(self.newest.get(room_id) == at_ms for room_id, at_ms in newest.items())

    def _count(self, one: Seen) -> None:
        if isinstance(one.content, VitalsBatch):
            if one.content.history:
                return
            self.batches[one.room_id] += 1
            self.newest[one.room_id] = milliseconds(one.content.readings[-1].measured_at)
        elif one.event_type == "com.fajma.vitals":
            self.snapshots[one.room_id] += 1


@pytest.mark.parametrize(
    ("rooms", "minutes"),
    [(2, 5), pytest.param(10, 60, marks=pytest.mark.slow)],
)
async def test_telemetry_pushes_nothing_and_leaves_nothing_unread(
    ward: Ward, gateway: PushGateway, shift: Shift, rooms: int, minutes: int
) -> None:
    """In production a room gets a batch a minute and a snapshot each five minutes.

    The clinic of the tests sends both as often as once a second, through the real senders: an hour
    is as many batches, and at least as many snapshots.
    """
    awa, binta = shift.awa, shift.binta
    async with AsyncExitStack() as stack:
        bedsides = [await ward.admit(awa.mxid, binta.mxid) for _ in range(rooms)]
        for bedside in bedsides:
            await awa.be_in(bedside.room_id)
            await binta.be_in(bedside.room_id)
        patient = await patient_with_phone(ward, gateway, bedsides[0])
        phones = (awa, binta, patient)
        monitors = [await stack.enter_async_context(ward.monitor(one)) for one in bedsides]
        telemetry = Telemetry(ward.observer)
        for _ in range(minutes):
            await asyncio.gather(*(monitor.send(WELL, WELL, WELL) for monitor in monitors))
            wanted = {
                bedside.room_id: monitor.sent[-1].at_ms
                for bedside, monitor in zip(bedsides, monitors, strict=True)
            }
            await ward.until(partial(telemetry.is_at, wanted))
        for bedside in bedsides:
            assert telemetry.batches[bedside.room_id] >= minutes
            assert telemetry.snapshots[bedside.room_id] >= minutes // 5

        consultations = {one.room_id for one in bedsides}
        for phone in phones:
            unread = await phone.unread()
            seen = {room_id: unread[room_id] for room_id in consultations & set(unread)}
            assert set(seen.values()) == {(0, 0)}
            assert len(seen) == (1 if phone is patient else rooms)

        # Somebody says a word, and all phones are alive; it is all that was ever pushed.
        word = await awa.says(bedsides[0].room_id, "Bonjour")
        reply = await binta.says(bedsides[0].room_id, "Bonjour")
        for phone, last in ((awa, reply), (binta, word), (patient, reply)):
            await phone.told_of(last)
            pushed = [one for one in phone.pushes() if one.room_id in consultations]
            talk = [one.event_id for one in pushed if one.event_id in {word, reply}]
            assert talk == ([word, reply] if phone is patient else [last])
            # Apart from it there are the invitations, which make no sound.
            silent = [one for one in pushed if one.event_id not in {word, reply}]
            assert {one.sender for one in silent} <= {ward.clinic.mxid("fajma")}
            assert [one.sound for one in silent] == [None] * (1 if phone is patient else rooms)


async def test_each_alarm_and_each_worsening_rings_once_at_the_phone_on_duty_and_at_no_other(
    ward: Ward, shift: Shift
) -> None:
    awa, binta, room_id = shift.awa, shift.binta, shift.team.room_id
    before = awa.rang()
    bedside = await ward.admit(awa.mxid, binta.mxid)
    async with ward.monitor(bedside) as monitor:
        await monitor.send(WELL, *[LOW_OXYGEN] * 4)
        started = await awa.alarm(room_id, "started", bedside)
        await monitor.send(*[BREATHLESS] * 4)
        worsened = await awa.alarm(room_id, "worsened", bedside)
        await monitor.send(*[WELL] * 5)
        recovered = await awa.alarm(room_id, "recovered", bedside)
    word = await awa.says(room_id, "Vu")
    await binta.told_of(word)
    # The end of an alarm is a message of @fajma-alerts too, and good news wakes nobody.
    alarms = [started.event_id, worsened.event_id]
    assert awa.rang()[len(before) :] == alarms
    assert recovered.event_id not in {one.event_id for one in awa.pushes()}
    ended = [*alarms, recovered.event_id]
    assert [one for one in binta.pushes() if one.event_id in ended] == []


async def test_an_alarm_in_the_room_of_a_patient_with_account_rings_for_the_clinician_alone(
    ward: Ward, gateway: PushGateway, shift: Shift
) -> None:
    awa, binta = shift.awa, shift.binta
    bedside = await ward.admit(awa.mxid, binta.mxid)
    for one in (awa, binta):
        await one.be_in(bedside.room_id)
    patient = await patient_with_phone(ward, gateway, bedside)
    async with ward.monitor(bedside) as monitor:
        await monitor.send(WELL, *[LOW_OXYGEN] * 4)
        started = await awa.alarm(bedside.room_id, "started", bedside)
        await monitor.send(*[BREATHLESS] * 4)
        worsened = await awa.alarm(bedside.room_id, "worsened", bedside)
        # As a further call will be until somebody acknowledges.
        again = await call_again(ward, bedside)
        shown = await awa.sees(bedside.room_id, lambda one: one.body == again)
        await awa.told_of(shown.event_id)
    alarms = [started.event_id, worsened.event_id, shown.event_id]
    assert [one for one in awa.rang() if one in alarms] == alarms
    word = await awa.says(bedside.room_id, "Vu")
    for phone in (binta, patient):
        await phone.told_of(word)
        assert [one for one in phone.pushes() if one.event_id in alarms] == []
        assert (await phone.unread())[bedside.room_id][1] == 0


async def call_again(ward: Ward, bedside: Bedside) -> str:
    """Promise one more message of an alarm; its text."""
    text = f"RAPPEL {secrets.token_hex(4)}"
    async with opened(load(ward.clinic.config_path)) as records:
        delivery = Delivery(
            delivery_id=secrets.token_hex(16),
            room_id=bedside.room_id,
            patient=None,
            content={"msgtype": "m.text", "body": text},
            created_at=datetime.now(UTC),
        )
        async with records.store.transaction() as connection:
            await records.outbox.add(connection, delivery)
    return text


@pytest.mark.parametrize("kind", ["override", pytest.param("room", marks=pytest.mark.slow)])
async def test_an_alarm_rings_in_a_room_that_its_reader_has_silenced(
    ward: Ward, shift: Shift, kind: str
) -> None:
    awa, room_id = shift.awa, shift.team.room_id
    bedside = await ward.admit(awa.mxid)
    await awa.silence(room_id, kind)
    try:
        await awa.rules_until(rings)  # a look puts our rules above Element's
        async with ward.monitor(bedside) as monitor:
            await monitor.send(WELL, *[BREATHLESS] * 4)
            alarm = await awa.alarm(room_id, "started", bedside)
            await awa.told_of(alarm.event_id)
    finally:
        await awa.hear_again(room_id, kind)
    assert awa.rang().count(alarm.event_id) == 1


async def test_answers_notices_and_what_greets_who_joins_make_no_sound(
    ward: Ward, shift: Shift
) -> None:
    awa, binta, room_id = shift.awa, shift.binta, shift.team.room_id
    before = len(awa.pushes())
    for line in ("!aide", "!garde", "!relève"):
        assert await awa.orders(room_id, line)
    bedside = await ward.admit(awa.mxid)
    async with ward.monitor(bedside) as monitor:
        await monitor.send(WELL)
        await ward.snapshot_of(bedside.room_id, monitor.sent[-1].at_ms, awa.observer)
    await ward.join(bedside, binta.mxid)
    await ward.snapshot_of(bedside.room_id, monitor.sent[-1].at_ms, binta.observer)
    notice = {"user_id": awa.mxid, "content": {"msgtype": "m.text", "body": "Avis"}}
    status, sent = await ward.admin("POST", "v1/send_server_notice", notice)
    assert status == 200, sent
    word = await binta.says(room_id, "Bonsoir")
    await awa.told_of(word)
    came = awa.pushes()[before:]
    assert [one for one in came if one.sound is not None] == []
    # The invitation, the notices' invitation and the notice wait on the phone; then the word.
    assert came[-1].event_id == word
    senders = Counter(one.sender for one in came[:-1])
    assert senders[ward.clinic.mxid("fajma")] == 1
    assert set(senders) <= {ward.clinic.mxid("fajma"), ward.clinic.mxid("fajma-avis")}


async def test_taking_over_duty_moves_the_ringing_to_another_phone_within_a_look(
    ward: Ward, shift: Shift
) -> None:
    awa, binta, room_id = shift.awa, shift.binta, shift.team.room_id
    bedside = await ward.admit(awa.mxid, binta.mxid)
    try:
        await hand_over(room_id, awa, binta)
        async with ward.monitor(bedside) as monitor:
            await monitor.send(WELL, *[BREATHLESS] * 4)
            alarm = await binta.alarm(room_id, "started", bedside)
            await binta.told_of(alarm.event_id)
    finally:
        await hand_over(room_id, binta, awa)
    assert binta.rang().count(alarm.event_id) == 1
    word = await binta.says(room_id, "Vu")
    await awa.told_of(word)
    assert alarm.event_id not in [one.event_id for one in awa.pushes()]


async def hand_over(room_id: str, giver: Clinician, taker: Clinician) -> None:
    """Offered and accepted; returns once the phones follow."""
    await giver.orders(room_id, f"!relève {taker.mxid}")
    await taker.orders(room_id, "!relève accepter")
    await asyncio.gather(taker.rules_until(rings), giver.rules_until(is_silent))
