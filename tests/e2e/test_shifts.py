"""Who is on duty: nobody is an alarm itself, handover and drills leave nobody uncalled."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable
from urllib.parse import quote

import aiohttp
import nio
import pytest
import pytest_asyncio

from console.observer import Seen
from console.run import opened
from fajma.config import load
from fajma.events import AlarmBlock
from fajma.store.wards import WardId
from fajma.store.warnings import About
from tests.e2e.test_phones import (
    Clinician,
    Phone,
    Team,
    clinician,
    clinicians,
    is_silent,
    new_team,
    open_warnings,
    rings,
)
from tests.e2e.ward import BREATHLESS, PATIENCE_S, WELL, Ward, log_says, mark
from tests.push_gateway import PushGateway


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def gateway() -> AsyncIterator[PushGateway]:
    async with PushGateway() as gateway:
        yield gateway


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def operator(ward: Ward, gateway: PushGateway) -> Phone:
    """Who runs the system, and is told of its outages."""
    localpart, mxid, password = await ward.account("operator")
    await ward.operate("staff", who=mxid, name=mark(), role="operator", existing=True)
    return Phone(ward, gateway, mxid, await ward.clinic.synapse.login(localpart, password))


async def noticed(phone: Phone, about: str, count: int) -> list[str]:
    """What the homeserver's notices said of something, once there are so many."""
    avis = phone.ward.clinic.mxid("fajma-avis")
    limit = 50 + secrets.randbelow(1000)  # the same question again is answered from memory
    query = f"sync?filter={quote(json.dumps({'room': {'timeline': {'limit': limit}}}))}"
    answer = await phone.ask("GET", query)
    found: list[str] = []
    async with asyncio.timeout(PATIENCE_S):
        while True:
            for room in answer.get("rooms", {}).get("join", {}).values():
                found += [
                    event["content"]["body"]
                    for event in room["timeline"]["events"]
                    if event["type"] == "m.room.message"
                    and event["sender"] == avis
                    and about in event["content"]["body"]
                ]
            if len(found) >= count:
                return found
            since = quote(answer["next_batch"])
            answer = await phone.ask("GET", f"{query}&timeout=5000&since={since}")


def of_alerts(ward: Ward, containing: str) -> Callable[[Seen], bool]:
    """A message that rings."""
    alerts = ward.clinic.mxid("fajma-alerts")
    return lambda one: one.sender == alerts and containing in one.body


async def a_look_passes(one: Clinician) -> None:
    """A look puts right what Element's muting has changed; for somebody who is called."""
    nowhere = f"!{secrets.token_hex(4)}:clinique.test"
    await one.silence(nowhere, "override")
    await one.rules_until(rings)
    await one.hear_again(nowhere, "override")


def logged(ward: Ward, since: int, event: str, team: Team) -> list[str]:
    """The levels at which an event of a ward was logged."""
    return [
        one["level"]
        for one in ward.log_since(since)
        if one["event"] == event and one.get("ward") == team.name
    ]


async def test_a_ward_with_nobody_on_duty_rings_all_its_phones_and_tells_the_operator_once(
    ward: Ward, gateway: PushGateway, operator: Phone
) -> None:
    team = await new_team(ward)
    async with clinicians(ward, gateway, team, 3) as (awa, binta, coumba):
        before = len(await noticed(operator, team.name, 0))
        since = ward.log_mark()
        await ward.operate("staff/role", who=awa.mxid, ward="")
        alarms = [
            await one.sees(team.room_id, of_alerts(ward, "!garde prendre"))
            for one in (binta, coumba)
        ]
        assert alarms[0].event_id == alarms[1].event_id
        for one in (binta, coumba):
            await one.told_of(alarms[0].event_id)
            assert one.rang().count(alarms[0].event_id) == 1
        said = await noticed(operator, team.name, before + 1)
        assert "personne n'est de garde" in said[-1]

        for _ in range(2):
            await a_look_passes(binta)
        assert logged(ward, since, "nobody_on_duty", team) == ["critical"]
        told = [
            one.event_id
            for one in ward.events(team.room_id, binta.observer)
            if of_alerts(ward, "!garde prendre")(one)
        ]
        assert told == [alarms[0].event_id]
        assert binta.rang().count(alarms[0].event_id) == 1
        assert len(await noticed(operator, team.name, before + 1)) == before + 1
        assert await open_warnings(ward, team) == {About.NOBODY_ON_DUTY}

        await binta.orders(team.room_id, "!garde prendre")
        await coumba.rules_until(is_silent)
        async with asyncio.timeout(PATIENCE_S):
            while await open_warnings(ward, team):
                await a_look_passes(binta)


async def test_somebody_on_duty_whose_phone_cannot_ring_is_nobody(
    ward: Ward, gateway: PushGateway, operator: Phone
) -> None:
    team = await new_team(ward)
    async with (
        clinician(ward, gateway, team, phone=False) as awa,
        clinician(ward, gateway, team) as binta,
    ):
        before = len(await noticed(operator, team.name, 0))
        since = ward.log_mark()
        said = await awa.orders(team.room_id, "!garde prendre")
        assert "n'a vu aucun téléphone" in said
        (told,) = await noticed(awa, "aucun de vos téléphones", 1)
        assert "autorisez-y les notifications" in told
        await nobody_reachable(team, binta, operator, since=since, before=before)
        await awa.register()
        await binta.rules_until(is_silent)
        assert About.NOBODY_REACHABLE not in await open_warnings(ward, team)


async def test_what_was_told_of_somebody_on_duty_is_over_when_duty_is(
    ward: Ward, gateway: PushGateway
) -> None:
    team = await new_team(ward)
    async with (
        clinician(ward, gateway, team) as awa,
        clinician(ward, gateway, team, phone=False) as binta,
    ):
        await awa.orders(team.room_id, "!garde prendre")
        await binta.orders(team.room_id, "!garde prendre")
        async with opened(load(ward.clinic.config_path)) as records, asyncio.timeout(PATIENCE_S):
            while not await records.warnings.is_open(About.MUTED, binta.mxid):
                pass  # a query answers, no clock is waited for
            await binta.orders(team.room_id, "!garde quitter")
            while await records.warnings.is_open(About.MUTED, binta.mxid):
                pass
            # It is still known, for the next time.
            assert await records.warnings.is_open(About.NO_RING, binta.mxid)
        taken = await binta.orders(team.room_id, "!garde prendre")
        assert "n'a vu aucun téléphone" in taken


@pytest.mark.slow
async def test_somebody_on_duty_without_a_confirmed_device_is_nobody(
    ward: Ward, gateway: PushGateway, operator: Phone
) -> None:
    team = await new_team(ward)
    async with clinicians(ward, gateway, team, 2) as (awa, binta):
        before = len(await noticed(operator, team.name, 0))
        since = ward.log_mark()
        # A phone that has not been confirmed, and nothing else.
        await with_unconfirmed_phone(ward, gateway, awa)
        await nobody_reachable(team, binta, operator, since=since, before=before)


async def with_unconfirmed_phone(ward: Ward, gateway: PushGateway, one: Clinician) -> None:
    device = one.observer.client.device_id
    path = f"v1/users/{quote(one.mxid)}/login"
    status, login = await ward.admin("POST", path, {})
    assert status == 200, login
    phone = Phone(ward, gateway, one.mxid, login["access_token"])
    path = f"v2/users/{quote(one.mxid)}/delete_devices"
    status, answer = await ward.admin("POST", path, {"devices": [device]})
    assert status == 200, answer
    await phone.register()


async def nobody_reachable(
    team: Team, colleague: Clinician, operator: Phone, *, since: int, before: int
) -> None:
    """The ward hears it on every phone that works, the operator by a notice."""
    ward = colleague.ward
    alarm = await colleague.sees(team.room_id, of_alerts(ward, "JOIGNABLE"))
    await colleague.gateway.until(lambda: alarm.event_id in colleague.rang())
    said = await noticed(operator, team.name, before + 1)
    assert "personne de garde n'est joignable" in said[-1]
    assert logged(ward, since, "nobody_reachable", team) == ["critical"]
    assert About.NOBODY_REACHABLE in await open_warnings(ward, team)


async def test_a_handover_lists_the_open_alarms_and_the_audit_names_both(
    ward: Ward, gateway: PushGateway
) -> None:
    team = await new_team(ward)
    async with clinicians(ward, gateway, team, 2) as (awa, binta):
        bedside = await ward.admit(awa.mxid)
        async with ward.monitor(bedside) as monitor:
            await monitor.send(WELL, *[BREATHLESS] * 4)
            await awa.alarm(team.room_id, "started", bedside)
        offered = await awa.orders(team.room_id, f"!relève {binta.mxid}")
        assert awa.mxid in offered
        assert binta.mxid in offered
        assert "!relève accepter" in offered
        assert awa.mxid in await binta.orders(team.room_id, "!garde")  # until it is accepted

        said = await binta.orders(team.room_id, "!relève accepter")
        lines = said.replace("\N{NO-BREAK SPACE}", " ").splitlines()
        assert awa.mxid in lines[0]
        assert binta.mxid in lines[0]
        (alarm,) = [one for one in lines if f"Lit {bedside.bed} {bedside.initials}" in one]
        assert "SpO2" in alarm
        assert any("90" in one and "SpO2" in one for one in lines if one is not alarm)  # limits
        assert lines[-1].startswith("1. ")
        assert binta.mxid in lines[-1]
        assert awa.mxid not in lines[-1]

        (entry,) = [one for one in await ward.audit(binta.mxid) if one.action == "handover.accept"]
        assert entry.detail == {"giver": awa.mxid, "taker": binta.mxid}
        assert "handover.offer" in [one.action for one in await ward.audit(awa.mxid)]


async def test_a_drill_rings_who_is_on_duty_and_notes_answers_by_reaction_and_by_command(
    ward: Ward, gateway: PushGateway
) -> None:
    team = await new_team(ward)
    async with clinicians(ward, gateway, team, 3) as (awa, binta, coumba):
        await binta.orders(team.room_id, "!garde prendre")
        await binta.rules_until(rings)
        started = await coumba.orders(team.room_id, "!test")
        assert coumba.mxid in started
        drill = await awa.sees(team.room_id, of_alerts(ward, "!présent"))
        for one in (awa, binta):
            await one.told_of(drill.event_id)
            assert one.rang().count(drill.event_id) == 1
        refused = await coumba.orders(team.room_id, "!présent")
        assert (
            refused.replace("\N{NO-BREAK SPACE}", " ")
            == "Cet exercice ne vous appelle pas : il n'y a rien à répondre."
        )

        reaction = {"rel_type": "m.annotation", "event_id": drill.event_id, "key": "👍"}
        path = f"rooms/{quote(team.room_id)}/send/m.reaction/{secrets.token_hex(4)}"
        await awa.ask("PUT", path, {"m.relates_to": reaction})
        await binta.orders(team.room_id, "!présent")
        end = await coumba.sees(
            team.room_id,
            lambda one: one.sender == ward.clinic.mxid("fajma") and "2 sur 2" in one.body,
        )
        assert awa.mxid not in end.body  # who did not answer would be named
        for one, by in ((awa, {"by": "reaction"}), (binta, {})):
            answers = [
                entry for entry in await ward.audit(one.mxid) if entry.action == "drill.answer"
            ]
            assert [entry.detail for entry in answers] == [by]
        assert drill.event_id not in {one.event_id for one in coumba.pushes()}


async def test_alarms_of_a_patient_without_account_are_read_by_the_team_and_by_no_former_member(
    ward: Ward, gateway: PushGateway
) -> None:
    team = await new_team(ward)
    async with clinicians(ward, gateway, team, 3) as (awa, binta, coumba):
        locked: set[str] = set()

        async def note(_: nio.MatrixRoom, event: nio.MegolmEvent) -> None:
            locked.add(event.event_id)

        coumba.observer.client.add_event_callback(note, nio.MegolmEvent)
        bedside = await ward.admit(awa.mxid)
        await ward.operate("staff/role", who=coumba.mxid, ward="")
        # A homeserver could still put her into the room.
        await ward.invite(team.room_id, coumba.mxid)
        await coumba.ask("POST", f"join/{quote(team.room_id)}", {})
        async with ward.monitor(bedside) as monitor:
            await monitor.send(WELL, *[BREATHLESS] * 4)
            for one in (awa, binta):
                alarm = await one.alarm(team.room_id, "started", bedside)
            await ward.until_of(coumba.observer, lambda: alarm.event_id in locked)
        assert alarm.event_id not in [one.event_id for one in coumba.observer.seen]
        assert ward.alarms(bedside.room_id) == []
        assert isinstance(alarm.content, AlarmBlock)


async def test_a_ward_whose_room_was_interrupted_by_kill_9_is_completed_by_the_same_command(
    ward: Ward,
) -> None:
    name = f"t-{secrets.token_hex(4)}"
    since = ward.log_mark()
    command = asyncio.create_task(ward.operate("wards", name=name))
    async with opened(load(ward.clinic.config_path)) as records:
        async with asyncio.timeout(PATIENCE_S):
            # Its row is there before its room: a query answers, no clock is waited for.
            while await records.wards.get(WardId(name)) is None:
                pass
        await ward.kill_fajma()
        kept = await records.wards.get(WardId(name))
        assert kept is not None
        assert kept.room_id is None
        with pytest.raises(aiohttp.ClientError):  # the connection broke
            await command

        await ward.clinic.start_fajma()
        answer = await ward.operate("wards", name=name)
        assert answer["room_id"].startswith("!")
        assert await ward.operate("wards", name=name) == answer
        entries = [one for one in await records.audit.latest() if one.subject == name]
        assert [one.action for one in entries if one.action == "ward.open"] == ["ward.open"]
    await log_says(ward.clinic.fajma_log, "ward_opened", since)
