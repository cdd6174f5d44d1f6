"""The dead man's switch over real databases, with a homeserver that does what it is told."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from bots.alerts.alarm_state import AlarmId, Episode, Latest, PatientState, Track
from bots.alerts.client import SignedClient
from bots.alerts.deadman import AFTER_STOP, NO_DELAYED_EVENTS, DeadMan
from bots.alerts.delayed import MAX_SCHEDULED
from bots.alerts.limits import Comparison, Limit, Priority, TrackKey
from bots.alerts.signs import Pace, Signs
from bots.alerts.site_rules import SiteRules
from bots.alerts.told_rooms import ToldRooms
from fajma.duty import Roster, take
from fajma.errors import FajmaError, InputError, UnavailableError
from fajma.events import MONITORING, Monitoring, MonitoringBlock
from fajma.language import Language
from fajma.store import Records
from fajma.store.alarms import Delivery, NewState
from fajma.store.consultations import Consultation
from fajma.store.heartbeats import ALARMS, APPSERVICE, INGEST, ingest
from fajma.store.maintenance import Maintenance
from fajma.store.people import Role, Staff
from fajma.store.readings import NewReading
from fajma.store.wards import Ward, WardId
from fajma.vitals import Clock, DeviceId, Kind, Reading

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
NAMES = (ingest(1), ingest(2), APPSERVICE, ALARMS)
PACE = Pace(0.9)
RULES = SiteRules()
WARD_ROOM, OTHER_ROOM = "!ward:clinic.test", "!other:clinic.test"
AWA, MOUSSA = "@awa:clinic.test", "@moussa:clinic.test"


class Answer:
    """What ``aiohttp`` answers with."""

    def __init__(self, content: Any, status: int = 200) -> None:
        self.status = status
        self._content = content

    async def json(self, **_: object) -> Any:
        return self._content


@dataclass(frozen=True, slots=True)
class Held:
    """An event that the homeserver sends later."""

    room_id: str
    content: dict[str, Any]
    delay_s: float

    @property
    def body(self) -> str:
        return str(self.content["plain"]["body"])


class FakeClient:
    """A signed client and its homeserver; what is encrypted can be read here."""

    def __init__(self) -> None:
        self.access_token = "t"
        self.ready = asyncio.Event()
        self.ready.set()
        self.olm = SimpleNamespace(outbound_group_sessions={})
        self.held: dict[str, Held] = {}
        self.sent: list[Held] = []
        self.put_off: list[str] = []
        self.longest_ms: int | None = 86_400_000
        self.failing: dict[str, Answer | Exception] = {}
        self.absent: set[str] = set()
        self.on_request: Callable[[str, str], object] = "{} {}".format
        self._numbers = itertools.count(1)
        self._synced: list[Callable[[Any], Any]] = []

    def add_response_callback(self, callback: Callable[[Any], Any], _: object) -> None:
        self._synced.append(callback)

    async def synchronise(self) -> None:
        for callback in self._synced:
            await callback(None)

    def change_key(self, room_id: str) -> None:
        """A device came or went: the room has another key."""
        session = SimpleNamespace(id=f"session-{next(self._numbers)}")
        self.olm.outbound_group_sessions[room_id] = session

    async def share_group_session(self, room_id: str) -> None:
        if room_id in self.absent:
            raise InputError("not there", code="room_unknown")
        if room_id not in self.olm.outbound_group_sessions:
            self.change_key(room_id)

    async def encrypted(self, room_id: str, kind: str, content: dict[str, Any]) -> dict[str, Any]:
        assert kind == "m.room.message"
        session = self.olm.outbound_group_sessions[room_id].id
        return {"algorithm": "m.megolm.v1.aes-sha2", "session_id": session, "plain": content}

    async def send(
        self, method: str, path: str, data: str | None, headers: dict[str, str], **waits: float
    ) -> Answer:
        assert headers["Authorization"] == "Bearer t"
        assert waits["timeout"] < 10
        url = urlsplit(path)
        self.on_request(method, url.path)
        for part, answer in self.failing.items():
            if part in f"{method} {path} {data}":
                if isinstance(answer, Exception):
                    raise answer
                return answer
        if url.path.endswith("/capabilities"):
            return self._capabilities()
        if method == "PUT":
            return self._schedule(url.path, url.query, json.loads(data or ""))
        if method == "GET":
            return Answer({"delayed_events": [{"delay_id": one} for one in self.held]})
        return self._manage(url.path.rsplit("/", 1)[1], json.loads(data or "")["action"])

    def _capabilities(self) -> Answer:
        if self.longest_ms is None:
            return Answer({"capabilities": {}})
        known = {"org.matrix.msc4140.delayed_events": {"max_delay_ms": self.longest_ms}}
        return Answer({"capabilities": known})

    def _schedule(self, path: str, query: str, content: dict[str, Any]) -> Answer:
        delay_id = f"delay-{next(self._numbers)}"
        delay_s = int(parse_qs(query)["org.matrix.msc4140.delay"][0]) / 1000
        self.held[delay_id] = Held(unquote(path.split("/")[5]), content, delay_s)
        return Answer({"delay_id": delay_id})

    def _manage(self, delay_id: str, action: str) -> Answer:
        if delay_id not in self.held:
            return Answer({"errcode": "M_NOT_FOUND", "error": "not found"}, 404)
        if action == "cancel":
            del self.held[delay_id]
        else:
            self.put_off.append(delay_id)
        return Answer({})

    def fire(self) -> None:
        """The time of all is over."""
        self.sent += self.held.values()
        self.held.clear()

    def held_in(self, room_id: str) -> list[Held]:
        return [one for one in self.held.values() if one.room_id == room_id]


class Scene:
    """The switch, clocks that the test sets, and parts that say they work."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.client = FakeClient()
        self.passed_s = 0.0
        self.working = set(NAMES)
        self.delivers = True
        self._said: dict[str, list[tuple[Monitoring, str]]] = {}
        self.dead_man = self.born()

    def born(self) -> DeadMan:
        """A bot that has just been started."""
        self.client._synced.clear()
        client = cast("SignedClient", self.client)
        clocks: Any = {"now": lambda: self.now, "steady_s": lambda: self.passed_s}
        signs = Signs(client, self.records, NAMES, PACE, **clocks)
        self.dead_man = DeadMan(client, self.records, signs, PACE, RULES, **clocks)
        return self.dead_man

    @property
    def now(self) -> datetime:
        return NOON + timedelta(seconds=self.passed_s)

    async def look(self, times: int = 1) -> str | None:
        """Looks, a beat apart, while what works says so."""
        trouble = None
        for _ in range(times):
            self.passed_s += PACE.beat_s
            await self._deliver()
            await self.client.synchronise()
            for name in self.working:
                await self.records.heartbeats.beat(name, now=self.now)
            try:
                trouble = await self.dead_man.look()
            except FajmaError as error:
                trouble = error.code
        return trouble

    async def told(self, room_id: str = WARD_ROOM) -> list[tuple[Monitoring, str]]:
        """What the bot said in a room since the last time: what about, and the words."""
        await self._deliver()
        return self._said.pop(room_id, [])

    async def _deliver(self) -> None:
        outbox = self.records.outbox
        for room_id in await outbox.rooms_waiting() if self.delivers else ():
            for delivery_id in await outbox.waiting(room_id):
                content = (await outbox.get(delivery_id)).content
                if MONITORING in content:
                    block = MonitoringBlock.from_content(content[MONITORING])
                    self._said.setdefault(room_id, []).append((block.state, content["body"]))
                await outbox.delivered(delivery_id, "$event")

    async def duty(self, *accounts: str) -> None:
        roster = Roster()
        for account in accounts:
            roster = take(roster, account, NOON)
        async with self.records.store.transaction() as connection:
            await self.records.wards.keep(connection, WardId("medecine"), roster)

    async def maintain(self, minutes: int) -> Maintenance:
        async with self.records.store.transaction() as connection:
            return await self.records.maintenance.start(
                connection,
                now=self.now,
                until=self.now + timedelta(minutes=minutes),
                reason="Mise à jour",
            )


async def with_wards(records: Records) -> Scene:
    """Two wards, one with two people, nobody on duty."""
    for name, room_id in (("medecine", WARD_ROOM), ("chirurgie", OTHER_ROOM)):
        ward = Ward(WardId(name), room_id, Language.FRENCH, "Africa/Dakar", Roster())
        await records.wards.add(ward)
    async with records.store.transaction() as connection:
        for account in (AWA, MOUSSA):
            person = Staff(account, account, Role.DOCTOR, WardId("medecine"), Language.FRENCH, NOON)
            await records.people.put(connection, person)
    return Scene(records)


@pytest.fixture
async def scene(sqlite_records: Records) -> Scene:
    return await with_wards(sqlite_records)


@pytest.fixture
async def scene_anywhere(records: Records) -> Scene:
    """The same over each kind of database."""
    return await with_wards(records)


def rooms(held: Iterable[Held]) -> list[str]:
    return sorted(one.room_id for one in held)


async def test_nothing_is_held_before_each_part_gave_a_sign_and_then_one_message_a_ward(
    scene: Scene,
) -> None:
    assert await scene.look() == "something_silent"  # what was there may be of a time before us
    assert scene.client.held == {}
    assert await scene.look() is None
    assert rooms(scene.client.held.values()) == [OTHER_ROOM, WARD_ROOM]
    (held,) = scene.client.held_in(WARD_ROOM)
    assert held.delay_s == PACE.silence_s
    assert held.body.startswith("SURVEILLANCE SANS SIGNE DE VIE · le serveur n'en a rien entendu")
    block = MonitoringBlock.from_content(held.content["plain"][MONITORING])
    assert block == MonitoringBlock(Monitoring.SILENT, "high")
    assert held.content["plain"]["m.mentions"] == {"user_ids": [AWA, MOUSSA]}


async def test_while_all_works_each_is_put_off_and_none_is_made_anew(scene: Scene) -> None:
    await scene.look(2)
    first = dict(scene.client.held)
    await scene.look(20)
    assert scene.client.held == first
    assert {scene.client.put_off.count(one) for one in first} == {10}  # every second beat


async def test_another_key_or_another_duty_has_the_message_made_anew_before_the_old_is_cancelled(
    scene: Scene,
) -> None:
    await scene.look(2)
    fewest = []

    def count(method: str, path: str) -> None:
        del method, path
        fewest.append(len(scene.client.held_in(WARD_ROOM)))

    scene.client.on_request = count
    (before,) = scene.client.held_in(WARD_ROOM)
    scene.client.change_key(WARD_ROOM)
    await scene.look()
    (after,) = scene.client.held_in(WARD_ROOM)
    assert after.content["session_id"] != before.content["session_id"]
    await scene.duty(MOUSSA)
    await scene.look()
    (last,) = scene.client.held_in(WARD_ROOM)
    assert last.content["plain"]["m.mentions"] == {"user_ids": [MOUSSA]}
    assert min(fewest) == 1
    assert len(scene.client.held_in(OTHER_ROOM)) == 1


async def test_once_it_was_sent_a_room_is_told_once_that_monitoring_is_back(
    scene_anywhere: Scene,
) -> None:
    scene = scene_anywhere
    await scene.look(2)
    scene.client.fire()  # we were dead
    scene.passed_s += 300
    scene.born()
    await scene.look(20)
    (told,) = await scene.told()
    assert told[0] is Monitoring.BACK
    assert "Entre 12:00 UTC+0 et 12:05 UTC+0 des alarmes peuvent manquer" in told[1]
    assert "Aucune alarme en cours, chaque moniteur émet" in told[1]
    assert rooms(scene.client.held.values()) == [OTHER_ROOM, WARD_ROOM]
    scene.born()
    await scene.look(20)
    assert await scene.told() == []


async def test_a_bot_that_was_away_for_a_moment_puts_off_what_is_held(scene: Scene) -> None:
    await scene.look(2)
    before = set(scene.client.held)
    scene.born()
    await scene.look(2)
    assert set(scene.client.put_off) == before
    assert await scene.told() == []


async def test_what_is_held_and_not_noted_is_cancelled_by_the_next_bot(scene: Scene) -> None:
    await scene.look(2)
    noted = set(scene.client.held)
    stray = Held(WARD_ROOM, {"plain": {"body": "stray"}}, 1)
    scene.client.held["stray"] = stray
    scene.born()
    await scene.look(2)
    assert set(scene.client.held) == noted


async def test_a_schedule_of_unknown_outcome_leaves_one_message_in_the_end(scene: Scene) -> None:
    await scene.look(2)
    scene.client.change_key(WARD_ROOM)
    lost = UnavailableError("no answer", code="homeserver_unavailable")
    scene.client.failing["cancel"] = lost
    assert await scene.look() == "homeserver_unavailable"
    assert len(scene.client.held_in(WARD_ROOM)) == 2
    scene.client.failing.clear()
    assert await scene.look() is None
    (held,) = scene.client.held_in(WARD_ROOM)
    key = scene.client.olm.outbound_group_sessions[WARD_ROOM].id
    assert held.content["session_id"] == key
    assert await scene.records.switches.silences() == {}


@pytest.mark.parametrize("part", [INGEST, APPSERVICE, ALARMS])
async def test_of_a_part_that_is_silent_the_bot_tells_itself_once_and_once_that_it_is_back(
    scene: Scene, part: str
) -> None:
    await scene.look(2)
    dead = {name for name in NAMES if name.startswith(part)}
    scene.working -= dead
    put_off = len(scene.client.put_off)
    assert await scene.look(9) is None
    (told,) = await scene.told()
    assert told[0] is Monitoring.PART_SILENT
    assert "depuis 12:00 UTC+0" in told[1]
    assert ("Les alarmes continuent" in told[1]) == (part == APPSERVICE)
    await scene.look(20)
    assert await scene.told() == []
    assert len(scene.client.put_off) > put_off + 8  # the bot lives
    scene.working |= dead
    await scene.look(10)
    assert [state for state, _ in await scene.told()] == [Monitoring.BACK]


async def test_a_new_bot_does_not_tell_again_of_a_part_that_is_still_silent(
    scene_anywhere: Scene,
) -> None:
    scene = scene_anywhere
    await scene.look(2)
    scene.working.discard(APPSERVICE)
    await scene.look(9)
    assert [state for state, _ in await scene.told()] == [Monitoring.PART_SILENT]
    scene.born()
    assert await scene.look() == "something_silent"
    await scene.look(20)
    assert await scene.told() == []


async def test_a_part_silent_from_the_start_is_told_as_if_it_had_died(scene: Scene) -> None:
    scene.working.discard(ingest(2))
    await scene.look(8)
    assert scene.client.held == {}
    await scene.look(2)
    assert [state for state, _ in await scene.told()] == [Monitoring.PART_SILENT]
    assert rooms(scene.client.held.values()) == [OTHER_ROOM, WARD_ROOM]


async def test_a_bot_that_does_not_follow_the_homeserver_puts_nothing_off(scene: Scene) -> None:
    await scene.look(2)
    scene.passed_s += 60
    for name in NAMES:
        await scene.records.heartbeats.beat(name, now=scene.now)
    put_off = len(scene.client.put_off)
    assert await scene.dead_man.look() == "something_silent"
    assert len(scene.client.put_off) == put_off


async def test_readings_that_nobody_judges_are_a_silence_though_the_engine_says_it_lives(
    scene: Scene, admit: Any
) -> None:
    await scene.look(2)
    consultation: Consultation = await admit(scene.records, "A4CF12F03B7E")
    await scene.records.store.db.execute(
        "INSERT INTO alarm_state (patient_key, changed_at, sealed, due_at) VALUES ($1, 0, $2, $3)",
        consultation.patient,
        b"x",
        round(scene.now.timestamp() * 1000),
    )
    await scene.look(12)
    assert [body.split(" · ")[1] for _, body in await scene.told()] == [
        "ce qui juge les mesures, depuis 12:00 UTC+0"
    ]


async def test_after_a_start_the_engine_gets_the_time_to_judge_what_waited(
    scene: Scene, admit: Any
) -> None:
    consultation: Consultation = await admit(scene.records, "A4CF12F03B7E")
    await scene.records.store.db.execute(
        "INSERT INTO alarm_state (patient_key, changed_at, sealed, due_at) VALUES ($1, 0, $2, $3)",
        consultation.patient,
        b"x",
        round((NOON - timedelta(hours=1)).timestamp() * 1000),
    )
    assert await scene.look(4) == "something_silent"
    assert scene.client.held == {}
    await scene.records.store.db.execute("UPDATE alarm_state SET due_at=NULL")
    assert await scene.look() is None
    assert await scene.told() == []


async def test_in_a_room_that_our_messages_do_not_reach_the_homeserver_must_speak(
    scene: Scene,
) -> None:
    await scene.look(2)
    scene.delivers = False
    (ward,) = (one for one, held in scene.client.held.items() if held.room_id == WARD_ROOM)
    async with scene.records.store.transaction() as connection:
        stuck = Delivery("1", WARD_ROOM, None, {"body": "x"}, scene.now)
        await scene.records.outbox.add(connection, stuck)
    await scene.look(9)
    before = len(scene.client.put_off)
    assert await scene.look(6) == "room_stuck"
    assert ward not in scene.client.put_off[before:]
    assert len(scene.client.put_off) > before


async def test_a_room_in_which_an_alarm_is_open_has_one_too_until_it_is_over(
    scene: Scene, admit: Any
) -> None:
    records = scene.records
    consultation: Consultation = await admit(records, "A4CF12F03B7E")
    assert consultation.room_id is not None
    limit = Limit(Comparison.BELOW, 90, Priority.HIGH)  # type: ignore[arg-type]
    episode = Episode(AlarmId("spo2-low-1"), NOON, limit, NOON)
    for state, expected in (
        (PatientState(1, {TrackKey("spo2-low"): Track(episode=episode)}), 1),
        (PatientState(2), 0),
    ):
        async with records.store.transaction() as connection:
            new = NewState(consultation.patient, state.to_json(), scene.now)
            await records.outbox.add(
                connection,
                Delivery(f"{expected}", consultation.room_id, consultation.patient, {}, scene.now),
            )
            await records.alarm_states.put(connection, new)
            await scene.look(3)
        assert len(scene.client.held_in(consultation.room_id)) == expected
        scene.passed_s += 1
    assert await records.switches.silences() == {}


async def test_who_has_an_open_alarm_or_sent_nothing_is_named_when_monitoring_is_back(
    scene_anywhere: Scene, admit: Any
) -> None:
    scene = scene_anywhere
    records = scene.records
    consultation: Consultation = await admit(records, "A4CF12F03B7E")
    await records.store.db.execute(
        "UPDATE patient SET ward_id='medecine' WHERE patient_key=$1", consultation.patient
    )
    limit = Limit(Comparison.BELOW, 90, Priority.HIGH)  # type: ignore[arg-type]
    episode = Episode(AlarmId("spo2-low-1"), NOON, limit, NOON)
    state = PatientState(
        1,
        {TrackKey("spo2-low"): Track(episode=episode)},
        latest=(Latest(NOON, {Kind.SPO2: Decimal(86)}),),
    )
    async with records.store.transaction() as connection:
        new = NewState(consultation.patient, state.to_json(), scene.now)
        await records.alarm_states.put(connection, new)
    await scene.look(2)
    scene.client.fire()
    scene.born()
    await scene.look(20)
    ((_, body),) = await scene.told()
    assert body.replace("\N{NO-BREAK SPACE}", " ").splitlines()[1:] == [
        "ALARME HAUTE · Lit 1 A.D. · SpO2 86 % (< 90) · 12:00 UTC+0 · Voir le patient",
        "Lit 1 A.D. · encore aucune mesure",
    ]
    ((_, elsewhere),) = await scene.told(OTHER_ROOM)
    assert "Lit 1" not in elsewhere


async def test_a_planned_stop_is_told_and_holds_the_message_until_a_minute_after_its_end(
    scene_anywhere: Scene,
) -> None:
    scene = scene_anywhere
    await scene.look(2)
    stop = await scene.maintain(30)
    await scene.look()
    words = (
        "ARRÊT PRÉVU DE LA SURVEILLANCE · de 12:00 UTC+0 à 12:30 UTC+0 · Mise à jour · Les alarmes"
        " peuvent ne pas arriver pendant ce temps\N{NO-BREAK SPACE}: surveiller les patients et"
        " leurs moniteurs"
    )
    assert await scene.told() == [(Monitoring.STOPPING, words)]
    (held,) = scene.client.held_in(WARD_ROOM)
    end_s = (stop.until + AFTER_STOP - scene.now).total_seconds()
    assert held.delay_s == pytest.approx(end_s, abs=1)
    assert "un arrêt prévu devait finir à 12:30 UTC+0" in held.body
    # FAJMA stops and starts; a part is not there for a while: nobody is rung.
    before = dict(scene.client.held)
    scene.client.put_off.clear()
    scene.born()
    scene.working.clear()
    await scene.look(20)
    assert scene.client.put_off == []  # it would come later than a minute after the end
    assert await scene.told() == []
    assert {held.delay_s for held in scene.client.held.values()} == {held.delay_s}
    assert scene.client.held == before
    assert (await scene.records.maintenance.current(scene.now)) is not None
    # At its end, all works.
    scene.working |= set(NAMES)
    async with scene.records.store.transaction() as connection:
        await scene.records.maintenance.end(connection, now=scene.now)
    await scene.look(20)
    assert [state for state, _ in await scene.told()] == [Monitoring.BACK]
    (held,) = scene.client.held_in(WARD_ROOM)
    assert held.delay_s == PACE.silence_s
    assert len(scene.client.held) == 2


async def test_a_stop_that_nobody_ends_is_over_at_its_time_and_told_so_once(scene: Scene) -> None:
    await scene.look(2)
    await scene.maintain(30)
    await scene.look()
    scene.passed_s += 30 * 60
    await scene.look(20)
    told = [Monitoring.STOPPING, Monitoring.BACK]
    assert [state for state, _ in await scene.told()] == told
    assert len(scene.client.held) == 2
    with pytest.raises(InputError) as refused:
        async with scene.records.store.transaction() as connection:
            await scene.records.maintenance.end(connection, now=scene.now)
    assert refused.value.code == "maintenance_off"


async def test_who_is_not_back_from_a_planned_stop_is_told_of_by_the_homeserver_and_answers_once(
    scene: Scene,
) -> None:
    await scene.look(2)
    await scene.maintain(30)
    await scene.look()
    scene.client.fire()
    scene.passed_s += 40 * 60
    scene.born()
    await scene.look(20)
    told = [Monitoring.STOPPING, Monitoring.BACK]
    assert [state for state, _ in await scene.told()] == told


async def test_two_planned_stops_are_not_on_at_once(scene: Scene) -> None:
    await scene.maintain(30)
    with pytest.raises(InputError) as refused:
        await scene.maintain(30)
    assert refused.value.code == "maintenance_on"


async def test_a_homeserver_that_knows_no_delays_is_sent_nothing_that_it_would_send_at_once(
    scene: Scene,
) -> None:
    scene.client.longest_ms = None
    asked: list[str] = []
    scene.client.on_request = lambda method, path: asked.append(f"{method} {path}")
    assert await scene.look(5) == NO_DELAYED_EVENTS
    assert asked == ["GET /_matrix/client/v3/capabilities"]  # not at each look
    scene.client.longest_ms = 86_400_000
    scene.passed_s += 60
    assert await scene.look(2) is None
    assert len(scene.client.held) == 2


async def test_what_the_homeserver_answers_otherwise_is_a_trouble_and_not_an_end(
    scene: Scene,
) -> None:
    await scene.look(2)
    limited = Answer({"errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": 9}, 429)
    unknown = Answer({"errcode": "M_UNRECOGNIZED"}, 404)
    for answer, code in (
        (limited, "delayed_events_limited"),
        (unknown, "delayed_events_refused"),
        (Answer(["nonsense"]), "delayed_events_refused"),
    ):
        scene.client.failing["restart"] = answer
        assert code in {await scene.look(), await scene.look()}
    scene.client.failing.clear()
    assert await scene.look(2) is None
    assert await scene.records.switches.silences() == {}


async def test_a_room_that_the_bot_has_not_joined_keeps_no_other_from_its_message(
    scene: Scene,
) -> None:
    scene.client.absent.add(OTHER_ROOM)
    assert await scene.look(2) == "room_unknown"
    assert rooms(scene.client.held.values()) == [WARD_ROOM]
    scene.client.absent.clear()
    assert await scene.look() is None
    assert rooms(scene.client.held.values()) == [OTHER_ROOM, WARD_ROOM]


async def test_more_rooms_than_the_homeserver_holds_messages_for_are_left_out(
    scene: Scene,
) -> None:
    for number in range(MAX_SCHEDULED):
        ward = Ward(WardId(f"z-{number}"), f"!z-{number}:x", Language.ENGLISH, "UTC", Roster())
        await scene.records.wards.add(ward)
    await scene.look(4)
    assert len(scene.client.held) == MAX_SCHEDULED
    assert WARD_ROOM in rooms(scene.client.held.values())


@pytest.mark.parametrize("stray", [False, True], ids=["held", "stray"])
async def test_one_message_that_cannot_be_managed_does_not_have_the_others_sent(
    scene: Scene, *, stray: bool
) -> None:
    await scene.look(3)
    if stray:
        scene.client.held["stray"] = Held(WARD_ROOM, {"plain": {"body": "stray"}}, 1)
        bad_id = "stray"
        scene.born()
    else:
        (bad,) = scene.client.held_in(OTHER_ROOM)  # its room comes first
        bad_id = next(key for key, one in scene.client.held.items() if one is bad)
    real = scene.client._manage

    def manage(delay_id: str, action: str) -> Answer:
        if delay_id == bad_id:
            return Answer({"errcode": "M_UNKNOWN"}, 500)
        return real(delay_id, action)

    scene.client._manage = manage  # type: ignore[method-assign]
    scene.client.put_off.clear()
    await scene.look(20)
    (good,) = scene.client.held_in(WARD_ROOM) if not stray else [scene.client.held_in(WARD_ROOM)[0]]
    good_id = next(key for key, one in scene.client.held.items() if one is good)
    assert good_id in scene.client.put_off


async def test_a_reading_from_before_we_died_does_not_say_that_a_monitor_sends(
    scene: Scene, admit: Any
) -> None:
    records = scene.records
    device = DeviceId("A4CF12F03B7E")
    consultation: Consultation = await admit(records, device)
    at = scene.now
    reading = Reading(device, at, at, Clock.DEVICE, {Kind.SPO2: Decimal(97)})
    async with records.store.transaction() as connection:
        await records.readings.append(
            connection, [NewReading(bytes(16), consultation.patient, reading)]
        )
    rooms = ToldRooms(records, SiteRules())
    room = await rooms.of(str(consultation.room_id))
    assert room is not None
    before = at - timedelta(seconds=1)  # we put off last, and died after the reading
    assert await rooms.to_look_at(room, since=before, now=at + timedelta(seconds=60)) == []
    [line] = await rooms.to_look_at(room, since=before, now=at + timedelta(hours=2))
    assert "Lit 1 A.D." in line
