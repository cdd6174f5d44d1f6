"""The alarm engine over the log: each announced decision is promised once, whatever dies when."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from mautrix.util.async_db import Connection
from mautrix.util.logging import SILLY
from structlog.testing import capture_logs

from bots.alerts import engine as engine_module
from bots.alerts.alarm import ReadingFact
from bots.alerts.alarm_state import PatientState
from bots.alerts.announcer import Announcer
from bots.alerts.engine import FOLLOWER, AlarmEngine, rules_from
from bots.alerts.judge import take
from bots.alerts.open_alarms import AnyDecision
from fajma.config import Alarms, DatabaseSettings
from fajma.duty import Roster
from fajma.events import ALARM, RING, AlarmBlock
from fajma.facts import Acknowledged
from fajma.language import Language
from fajma.sealing import SiteKey
from fajma.store import Records, Store, from_ms
from fajma.store.alarms import WEBHOOK_ROOM, AlarmStates, Delivery, NewState, SentBy
from fajma.store.consultations import Consultation
from fajma.store.leases import Lease, LeaseLostError
from fajma.store.readings import NewReading
from fajma.store.wards import Ward, WardId
from fajma.vitals import Age, Clock, DeviceId, Kind, PatientKey, Reading

Admit = Callable[..., Awaitable[Consultation]]

ROOT = Path(__file__).parents[2]
MINE = DeviceId("A4CF12F03B7E")
OTHER = DeviceId("A4CF12F03B7F")
NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
SETTINGS = Alarms()
RULES = rules_from(SETTINGS)

EPISODE = (97, *(88,) * 4, *(97,) * 8)
"""Falls under 90 % long enough to be confirmed, and recovers long enough to be over."""


def readings(device: DeviceId, spo2: Sequence[int], *, start: int = 0) -> list[Reading]:
    """One reading every 5 s."""
    moments = [NOON + timedelta(seconds=5 * (start + number)) for number in range(len(spo2))]
    return [
        Reading(device, at, at, Clock.DEVICE, {Kind.SPO2: Decimal(value)})
        for at, value in zip(moments, spo2, strict=True)
    ]


async def log(records: Records, patient: PatientKey, new: Sequence[Reading]) -> None:
    async with records.store.transaction() as connection:
        await records.readings.append(
            connection,
            [NewReading(one.measured_at.isoformat().encode()[-16:], patient, one) for one in new],
        )
    records.store.hints.notify("readings")


async def judge_all(
    records: Records, *, now: datetime = NOON, engine: AlarmEngine | None = None
) -> int:
    """Judge what is new, by an engine that has just started where none is given."""
    engine = engine or AlarmEngine(SETTINGS, records, now=lambda: now)
    judged = 0
    while count := await engine.advance():
        judged += count
    return judged


async def expected(records: Records, patient: PatientKey) -> list[AnyDecision]:
    """What the pure rules announce about a patient's part of the log."""
    state = PatientState()
    announced: list[AnyDecision] = []
    for logged in await records.readings.after(0, limit=100_000, patient=patient):
        fact = ReadingFact(logged.position, logged.reading)
        state, decisions = take(state, fact, RULES)
        announced += [one for one in decisions if one.announce]
    return announced


async def promised(records: Records, patient: PatientKey | None = None) -> list[Delivery]:
    waiting = [
        await records.outbox.get(delivery_id)
        for room_id in await records.outbox.rooms_waiting()
        for delivery_id in await records.outbox.waiting(room_id, limit=100_000)
    ]
    return [one for one in waiting if patient in {None, one.patient}]


async def agrees_with_the_rules(records: Records, patient: PatientKey) -> None:
    blocks = [
        AlarmBlock.from_content(one.content[ALARM]) for one in await promised(records, patient)
    ]
    assert [
        (one.state, one.kind, one.priority, one.value, one.alarm_id, one.measured_at)
        for one in blocks
    ] == [
        (one.reason, one.kind, one.priority.name.lower(), one.value, one.alarm_id, one.measured_at)
        for one in await expected(records, patient)
    ]


# --- one for each --------------------------------------------------------------------------------


async def test_each_announced_decision_is_promised_once(records: Records, admit: Admit) -> None:
    consultation = await admit(records, MINE)
    await log(records, consultation.patient, readings(MINE, EPISODE * 2))
    woken = records.store.hints.subscribe("outbox")
    assert await judge_all(records) == 2 * len(EPISODE) + 1  # and that the monitor is worn
    assert woken.is_set()
    deliveries = await promised(records)
    blocks = [AlarmBlock.from_content(one.content[ALARM]) for one in deliveries]
    assert [one.state for one in blocks] == ["started", "recovered"] * 2
    assert len({one.alarm_id for one in blocks}) == 2
    await agrees_with_the_rules(records, consultation.patient)
    for one, block in zip(deliveries, blocks, strict=True):
        assert one.room_id == consultation.room_id
        assert one.content["m.mentions"] == {"user_ids": ["@doctor:clinic.test"]}
        assert "A.D." in one.content["body"]
        assert block.delivery_id == one.delivery_id
        assert block.patient == consultation.patient

    assert await judge_all(records) == 0
    assert await promised(records) == deliveries


async def test_where_the_log_is_cut_changes_nothing(records: Records, admit: Admit) -> None:
    patients = [(await admit(records, device)).patient for device in (MINE, OTHER)]
    chance = random.Random(3)
    runs = [[chance.choice((97, 95, 91, 88, 84))] * chance.randint(1, 12) for _ in range(30)]
    values = {MINE: [value for run in runs for value in run], OTHER: EPISODE * 15}
    engine = AlarmEngine(SETTINGS, records)
    for start in range(0, len(values[OTHER]), 7):
        for device, patient in zip((MINE, OTHER), patients, strict=True):
            part = values[device][start : start + 7]
            await log(records, patient, readings(device, part, start=start))
        if chance.random() < 0.2:
            engine = AlarmEngine(SETTINGS, records)
        if chance.random() < 0.7:
            await judge_all(records, engine=engine)
    await judge_all(records)
    for patient in patients:
        await agrees_with_the_rules(records, patient)
    states = {one.content[ALARM]["state"] for one in await promised(records, patients[0])}
    assert states == {"started", "worsened", "worse_since_told", "recovered"}
    assert len(await promised(records, patients[1])) == 30


async def test_silence_is_kept_about_what_is_not_announced(
    sqlite_records: Records, admit: Admit
) -> None:
    patient = (await admit(sqlite_records, MINE)).patient
    await log(sqlite_records, patient, readings(MINE, (97, 88, 97, 96, 88, 97)))
    woken = sqlite_records.store.hints.subscribe("outbox")
    await judge_all(sqlite_records)
    assert await promised(sqlite_records) == []
    assert not woken.is_set()
    assert await sqlite_records.alarm_states.changed_since(from_ms(1)) == {}


async def test_the_publisher_learns_when_an_alarm_changed(
    sqlite_records: Records, admit: Admit
) -> None:
    patient = (await admit(sqlite_records, MINE)).patient
    await log(sqlite_records, patient, readings(MINE, EPISODE))
    await judge_all(sqlite_records)
    assert await sqlite_records.alarm_states.changed_since(NOON) == {patient: NOON}


async def test_the_engine_follows_the_log_by_itself(sqlite_records: Records, admit: Admit) -> None:
    patient = (await admit(sqlite_records, MINE)).patient
    woken = sqlite_records.store.hints.subscribe("outbox")
    following = asyncio.create_task(AlarmEngine(SETTINGS, sqlite_records).run())
    try:
        for start, part in ((0, EPISODE[:5]), (5, EPISODE[5:])):
            woken.clear()
            await log(sqlite_records, patient, readings(MINE, part, start=start))
            await asyncio.wait_for(woken.wait(), 10)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    assert len(await promised(sqlite_records)) == 2
    await agrees_with_the_rules(sqlite_records, patient)


async def test_the_state_of_a_patient_who_is_well_is_written_once_a_minute(
    records: Records, admit: Admit
) -> None:
    patient = (await admit(records, MINE)).patient
    engine = AlarmEngine(SETTINGS, records)
    written = set()
    for start in range(20):  # 5 s each
        await log(records, patient, readings(MINE, (97,), start=start))
        await judge_all(records, engine=engine)
        written.add(await records.alarm_states.get(patient))
    assert len(written) == 2

    # Who starts again from it judges what came since, and tells nothing twice.
    await log(records, patient, readings(MINE, (88, 97, 97, 97, 97, 97, 97, 97, 97), start=20))
    await judge_all(records, engine=engine)
    await log(records, patient, readings(MINE, EPISODE, start=29))
    await judge_all(records)
    await agrees_with_the_rules(records, patient)
    assert len(await promised(records)) == 2


@pytest.mark.parametrize("age", [Age.LATE, Age.UNKNOWN])
async def test_only_live_readings_raise_or_end_an_alarm(
    sqlite_records: Records, admit: Admit, age: Age
) -> None:
    patient = (await admit(sqlite_records, MINE)).patient
    old = [replace(one, age=age) for one in readings(MINE, EPISODE)]
    await log(sqlite_records, patient, old)
    await judge_all(sqlite_records)
    told = [one.content[ALARM] for one in await promised(sqlite_records)]
    assert [one for one in told if "kind" in one and "late" not in one] == []

    await log(sqlite_records, patient, readings(MINE, EPISODE[:5], start=len(EPISODE)))
    rest = readings(MINE, EPISODE[5:], start=len(EPISODE) + 5)
    await log(sqlite_records, patient, [replace(one, age=age) for one in rest])
    await judge_all(sqlite_records)
    of_values = [one.content[ALARM] for one in await promised(sqlite_records)]
    live = [one["state"] for one in of_values if "kind" in one and "late" not in one]
    assert live == ["started"]


async def test_a_probe_that_is_off_ends_no_alarm(records: Records, admit: Admit) -> None:
    patient = (await admit(records, MINE)).patient
    off = [replace(one, values={}, contact=False) for one in readings(MINE, EPISODE[5:], start=5)]
    await log(records, patient, [*readings(MINE, EPISODE[:5]), *off])
    assert await judge_all(records) == len(EPISODE) + 1
    blocks = [one.content[ALARM] for one in await promised(records)]
    assert [(one["state"], one.get("trouble")) for one in blocks] == [
        ("started", None),
        ("started", "probe_off"),
    ]


async def test_a_pass_takes_as_many_queries_for_forty_patients_as_for_one(
    records: Records, admit: Admit, caplog: pytest.LogCaptureFixture
) -> None:
    devices = [DeviceId(f"A4CF12F0{n:04X}") for n in range(40)]
    patients = [(await admit(records, device)).patient for device in devices]
    await judge_all(records)

    async def queries(count: int, start: int) -> int:
        for device, patient in zip(devices[:count], patients, strict=False):
            await log(records, patient, readings(device, (88, 97), start=start))
        just_started = AlarmEngine(SETTINGS, Records(records.store, records.site_key))
        caplog.clear()
        with caplog.at_level(SILLY, "mau.db"):
            assert await just_started.advance() == 2 * count
            assert len(just_started._states) == count
        return sum("seconds" in record.getMessage() for record in caplog.records)

    assert await queries(1, start=0) == await queries(40, start=2) <= 16


async def test_the_memory_of_the_engine_is_bounded(
    sqlite_records: Records, admit: Admit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "REMEMBERED_MAX", 2)
    devices = [DeviceId(f"A4CF12F0000{n}") for n in range(5)]
    patients = [(await admit(sqlite_records, device)).patient for device in devices]
    engine = AlarmEngine(SETTINGS, sqlite_records)
    for number in range(len(EPISODE)):
        for device, patient in zip(devices, patients, strict=True):
            part = EPISODE[number : number + 1]
            await log(sqlite_records, patient, readings(device, part, start=number))
        await judge_all(sqlite_records, engine=engine)
        assert list(engine._states) == patients[-2:]
    for patient in patients:
        await agrees_with_the_rules(sqlite_records, patient)
        assert len(await promised(sqlite_records, patient)) == 2


async def test_monitors_that_were_worn_before_links_were_facts_are_watched_and_told_once(
    records: Records, admit: Admit
) -> None:
    patient = (await admit(records, MINE)).patient
    await records.store.db.execute("DELETE FROM fact")
    await records.store.db.execute("UPDATE log_head SET position=0 WHERE log='facts'")
    for _ in range(2):
        engine = AlarmEngine(SETTINGS, records, now=lambda: NOON)
        await engine.adopt()
        await judge_all(records, engine=engine)

    assert await records.facts.head() == 1
    assert engine._states == {}
    state = PatientState.from_json(await records.alarm_states.get(patient) or "")
    assert state.standing.worn == {MINE: NOON}


# --- identity ------------------------------------------------------------------------------------


async def test_delivery_ids_are_opaque_and_the_same_when_the_log_is_replayed(
    sqlite_records: Records, admit: Admit
) -> None:
    records = sqlite_records
    for device in (MINE, OTHER):
        patient = (await admit(records, device)).patient
        await log(records, patient, readings(device, EPISODE * 3))
    await judge_all(records)
    ids = [one.delivery_id for one in await promised(records)]
    assert len(set(ids)) == len(ids) == 12
    for one in ids:
        # The homeserver sees it: nothing of kind, direction, patient or time can be in it.
        assert re.fullmatch(r"[0-9a-f]{32}", one)

    for table in ("outbox", "alarm_state", "follower"):
        await records.store.db.execute(f"DELETE FROM {table}")  # noqa: S608
    await judge_all(records, now=NOON + timedelta(days=1))
    assert [one.delivery_id for one in await promised(records)] == ids


async def test_delivery_ids_cannot_be_guessed_without_the_site_key(
    sqlite_records: Records,
) -> None:
    decision = (await expected_of(EPISODE))[0]
    patient = PatientKey("9f" * 16)
    ids = {
        Announcer(Records(sqlite_records.store, SiteKey(raw * 32)))._delivery_id(
            patient, decision, "1 0 0"
        )
        for raw in (b"a", b"b")
    }
    assert len(ids) == 2


async def expected_of(spo2: Sequence[int]) -> list[AnyDecision]:
    state, announced = PatientState(), []
    for position, reading in enumerate(readings(MINE, spo2), 1):
        state, decisions = take(state, ReadingFact(position, reading), RULES)
        announced += [one for one in decisions if one.announce]
    return announced


# --- whatever dies when --------------------------------------------------------------------------


class DiskFullError(Exception):
    """What keeping a state fails with."""


async def test_a_promise_is_kept_only_together_with_the_state_that_made_it(
    records: Records, admit: Admit, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = (await admit(records, MINE)).patient
    await log(records, patient, readings(MINE, EPISODE))
    put = AlarmStates.put

    async def put_and_fail(self: AlarmStates, *args: Any, **options: Any) -> None:
        await put(self, *args, **options)
        raise DiskFullError

    with monkeypatch.context() as patched:
        patched.setattr(AlarmStates, "put", put_and_fail)
        await AlarmEngine(SETTINGS, records).advance()
    assert await promised(records) == []
    assert await records.alarm_states.get(patient) is None

    # The next reading finds what was missed, and what came between.
    await log(records, (await admit(records, OTHER)).patient, readings(OTHER, (97,)))
    await judge_all(records)
    assert await promised(records) == []
    await log(records, patient, readings(MINE, (97,), start=len(EPISODE)))
    await judge_all(records)
    await agrees_with_the_rules(records, patient)
    assert len(await promised(records)) == 2


async def test_an_engine_whose_commits_fail_forgets_what_it_thought(
    records: Records, admit: Admit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the database did commit and could not say so any more."""
    patients = [(await admit(records, device)).patient for device in (MINE, OTHER)]
    engine = AlarmEngine(SETTINGS, records)
    chance = random.Random(11)
    transaction = Store.transaction

    @asynccontextmanager
    async def unreliable(self: Store) -> AsyncIterator[Connection]:
        trouble = chance.choice(("none", "before", "after"))
        async with transaction(self) as connection:
            yield connection
            if trouble == "before":
                raise DiskFullError
        if trouble == "after":
            raise DiskFullError

    for number in range(4 * len(EPISODE)):
        for device, patient in zip((MINE, OTHER), patients, strict=True):
            value = EPISODE[number % len(EPISODE)]
            await log(records, patient, readings(device, (value,), start=number))
        with monkeypatch.context() as patched, capture_logs():
            patched.setattr(Store, "transaction", unreliable)
            await asyncio.gather(engine.advance(), return_exceptions=True)
    for device, patient in zip((MINE, OTHER), patients, strict=True):
        await log(records, patient, readings(device, (97,), start=4 * len(EPISODE)))
    await judge_all(records, engine=engine)
    for patient in patients:
        await agrees_with_the_rules(records, patient)
        assert len(await promised(records, patient)) == 8


@pytest.mark.parametrize("anew", [True, False])
async def test_an_engine_that_is_cancelled_at_any_moment_promises_everything_once(
    records: Records, admit: Admit, *, anew: bool
) -> None:
    patient = (await admit(records, MINE)).patient
    engine = AlarmEngine(SETTINGS, records)
    for episode in range(3):
        await log(records, patient, readings(MINE, EPISODE, start=episode * len(EPISODE)))
        outcome: object = None
        turns = 0
        while not isinstance(outcome, int):
            if anew:
                engine = AlarmEngine(SETTINGS, records)
            task = asyncio.create_task(engine.advance())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            [outcome] = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(outcome, int | asyncio.CancelledError)
            turns += 1 + turns // 8
    assert await judge_all(records) == 0
    assert len(await promised(records)) == 6
    await agrees_with_the_rules(records, patient)


ENGINE = """
import asyncio, sys
from pathlib import Path
from bots.alerts import engine
from fajma.config import Alarms, DatabaseSettings
from fajma.store import Records, Store
from fajma.store.site import site_key

engine.MAX_STEP = 3

async def main():
    store = await Store.open(DatabaseSettings(url=sys.argv[1]))
    records = Records(store, await site_key(store, Path(sys.argv[2])))
    judge = engine.AlarmEngine(Alarms(), records)
    while await judge.advance():
        print("at", await records.followers.position(engine.FOLLOWER), flush=True)

asyncio.run(main())
"""


async def test_an_engine_that_is_killed_promises_everything_once(
    database: DatabaseSettings, records: Records, site_key_file: Path, admit: Admit
) -> None:
    patients = [(await admit(records, device)).patient for device in (MINE, OTHER)]
    rounds = 12
    for number in range(rounds):
        for device, patient in zip((MINE, OTHER), patients, strict=True):
            start = number * len(EPISODE)
            await log(records, patient, readings(device, EPISODE, start=start))
    chance = random.Random(5)
    reported = 0
    for _ in range(3):
        engine = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", ENGINE, database.url, str(site_key_file)),
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert engine.stdout is not None
        steps = chance.randint(1, 12)
        while steps:
            line = await asyncio.wait_for(engine.stdout.readline(), 30)
            if line.startswith(b"at "):  # the rest is its log
                reported = int(line.split()[1])
                steps -= 1
        engine.kill()
        await engine.stdout.read()
        assert await asyncio.wait_for(engine.wait(), 10) == -9
        assert await records.followers.position(FOLLOWER) >= reported
    left = await judge_all(records)
    assert 0 < left < 2 * rounds * len(EPISODE)
    for patient in patients:
        await agrees_with_the_rules(records, patient)
        assert len(await promised(records, patient)) == 2 * rounds


async def test_an_engine_that_has_lost_its_lease_commits_nothing(
    records: Records, admit: Admit
) -> None:
    patient = (await admit(records, MINE)).patient
    await log(records, patient, readings(MINE, EPISODE))
    lost, held = (Lease("alarms", holder, 60) for holder in ("lost", "held"))
    assert await records.leases.acquire(held)
    with capture_logs() as logged, pytest.raises(LeaseLostError):
        await AlarmEngine(SETTINGS, records.under(lost)).advance()
    assert logged == []
    assert await promised(records) == []
    assert await records.followers.position(FOLLOWER) == 0

    assert await judge_all(records, engine=AlarmEngine(SETTINGS, records.under(held)))
    assert len(await promised(records)) == 2


async def test_engines_that_take_over_from_each_other_promise_everything_once(
    records: Records, admit: Admit
) -> None:
    """Each goes on until it fails, also with what it remembers from an earlier term."""
    patient = (await admit(records, MINE)).patient
    chance = random.Random(13)
    names = ("one", "other")
    rounds = 8
    engines = {}
    for number in range(rounds * len(EPISODE)):
        await log(records, patient, readings(MINE, (EPISODE[number % len(EPISODE)],), start=number))
        for name in names:
            if name not in engines or chance.random() < 0.3:
                lease = Lease("alarms", f"{name}-{number}", 60)
                await records.store.db.execute("UPDATE lease SET until=0")
                assert await records.leases.acquire(lease)
                engines[name] = AlarmEngine(SETTINGS, records.under(lease))
            with contextlib.suppress(LeaseLostError):
                await engines[name].advance()
    await judge_all(records)
    await agrees_with_the_rules(records, patient)
    assert len(await promised(records)) == 2 * rounds


# --- one patient's trouble -----------------------------------------------------------------------


@pytest.fixture
async def two(records: Records, admit: Admit) -> tuple[PatientKey, PatientKey]:
    """Two patients who were judged before."""
    patients = [(await admit(records, device)).patient for device in (MINE, OTHER)]
    for device, patient in zip((MINE, OTHER), patients, strict=True):
        await log(records, patient, readings(device, (88,)))
    await judge_all(records)
    return patients[0], patients[1]


async def fall_and_judge(records: Records, two: tuple[PatientKey, PatientKey]) -> list[Any]:
    """Both patients fall at the same time; returns what is logged about it."""
    for device, patient in zip((MINE, OTHER), two, strict=True):
        await log(records, patient, readings(device, (88,) * 4, start=1))
    with capture_logs() as logged:
        assert await judge_all(records) == 8
    return logged


@pytest.mark.parametrize("spoiled", ["sealed", "newer"])
async def test_a_state_that_cannot_be_read_does_not_silence_the_other_patient(
    records: Records, two: tuple[PatientKey, PatientKey], spoiled: str
) -> None:
    first, second = two
    state = await records.alarm_states.get(first)
    assert state is not None
    if spoiled == "sealed":
        await records.store.db.execute(
            "UPDATE alarm_state SET sealed=$2 WHERE patient_key=$1", first, b"\x01" * 64
        )
    else:
        await put(records, first, '{"version":99}')
    logged = await fall_and_judge(records, two)
    await agrees_with_the_rules(records, second)
    assert len(await promised(records, second)) == 1
    assert await promised(records, first) == []
    assert [one["patient"] for one in logged if one["log_level"] == "critical"] == [first]
    assert await told_of_nobody(records) == []

    # It lasts: somebody is told, once.
    engine = AlarmEngine(SETTINGS, records, now=lambda: NOON)
    for start in (5, 6):
        await log(records, first, readings(MINE, (88,), start=start))
        await judge_all(records, engine=engine)
    [told] = await told_of_nobody(records)
    assert told.content["m.mentions"] == {"user_ids": ["@doctor:clinic.test"]}
    assert "A.D." in told.content["body"]
    assert RING not in told.content, "it rings"
    assert "88" not in told.content["body"]

    # Repaired, nothing of what happened meanwhile is missed.
    await put(records, first, state)
    await log(records, first, readings(MINE, (88,), start=7))
    await judge_all(records)
    await agrees_with_the_rules(records, first)
    assert len(await promised(records, first)) == 1
    assert len(await promised(records, second)) == 1


async def told_of_nobody(records: Records) -> list[Delivery]:
    """Promised messages that are sealed for no patient."""
    return [one for one in await promised(records) if one.patient is None]


async def put(records: Records, patient: PatientKey, state: str) -> None:
    async with records.store.transaction() as connection:
        await records.alarm_states.put(connection, NewState(patient, state))


async def test_a_reading_that_cannot_be_read_does_not_silence_the_other_patient(
    records: Records, two: tuple[PatientKey, PatientKey]
) -> None:
    first, second = two
    await log(records, first, readings(MINE, (88,), start=9))
    await records.store.db.execute("UPDATE reading SET sealed=$1 WHERE position=3", b"\x01" * 64)
    for device, patient in zip((MINE, OTHER), two, strict=True):
        await log(records, patient, readings(device, (88,) * 4, start=10))
    await judge_all(records)
    assert len(await promised(records, second)) == 1
    assert await promised(records, first) == []


async def test_a_patient_without_a_room_does_not_silence_the_other_patient(
    records: Records, two: tuple[PatientKey, PatientKey]
) -> None:
    first, second = two
    await records.store.db.execute(
        "UPDATE consultation SET room_id=NULL WHERE patient_key=$1", first
    )
    await fall_and_judge(records, two)
    assert len(await promised(records, second)) == 1
    assert await promised(records, first) == []

    consultation = await records.consultations.of_patient(first)
    assert consultation is not None
    await records.consultations.open_in(consultation.id, "!late:clinic.test")
    await log(records, first, readings(MINE, (88,), start=5))
    await judge_all(records)
    [late] = await promised(records, first)
    assert late.room_id == "!late:clinic.test"


async def test_nothing_clinical_is_logged_about_alarms(
    records: Records, two: tuple[PatientKey, PatientKey]
) -> None:
    logged = str(await fall_and_judge(records, two))
    assert "alarms_decided" in logged
    for secret in ("88", "spo2", "A.D.", "Lit", "ALARME"):
        assert secret not in logged


async def called(records: Records) -> int:
    return len(await records.outbox.waiting(WEBHOOK_ROOM, sender=SentBy.WEBHOOK))


async def test_the_webhook_is_called_at_once_when_no_phone_can_ring_and_again_when_it_gets_worse(
    records: Records, admit: Admit
) -> None:
    consultation = await admit(records, MINE)
    await records.wards.add(Ward(WardId("med"), None, Language.FRENCH, "UTC", Roster()))
    await records.wards.opened(WardId("med"), "!ward:clinic.test")
    await records.store.db.execute("UPDATE patient SET ward_id='med'")
    settings = Alarms(webhook_url="https://sms.clinic.test/")
    engine = AlarmEngine(settings, records, now=lambda: NOON)
    await log(records, consultation.patient, readings(MINE, (91,) * 4))
    await judge_all(records, engine=engine)
    assert await called(records) == 0, "medium priority"

    await log(records, consultation.patient, readings(MINE, (88,) * 4, start=4))
    await judge_all(records, engine=engine)
    assert await called(records) == 1
    await log(records, consultation.patient, readings(MINE, (80,) * 2, start=8))
    await judge_all(records, engine=engine)
    assert await called(records) == 2

    # The answer to another alarm calls nothing off; the answer to this one does.
    hot = [
        Reading(MINE, at, at, Clock.DEVICE, {Kind.TEMPERATURE: Decimal("38.7")})
        for at in (NOON + timedelta(seconds=60 + 5 * number) for number in range(3))
    ]
    await log(records, consultation.patient, hot)
    await judge_all(records, engine=engine)
    alarms = {
        one.content[ALARM]["kind"]: one.content[ALARM]["alarm_id"]
        for one in await promised(records, consultation.patient)
    }
    for kind, left in (("temperature", 2), ("spo2", 0)):
        async with records.store.transaction() as connection:
            fact = Acknowledged(NOON + timedelta(seconds=90), "@awa:clinic.test", alarms[kind])
            await records.facts.append(connection, consultation.patient, fact)
        await judge_all(records, engine=engine)
        assert await called(records) == left


async def test_what_gets_worse_twice_within_one_pack_is_told_twice_and_ends_no_alarms(
    records: Records, admit: Admit
) -> None:
    """All readings of a pack are received at the same moment, which must not make two ids one."""
    consultation = await admit(records, MINE)
    await log(records, consultation.patient, readings(MINE, (91,) * 4))
    await judge_all(records)
    values = ("84", "84", *("91.5",) * 9, "84", "84")
    arrived = NOON + timedelta(seconds=100)
    pack = [
        Reading(
            MINE,
            NOON + timedelta(seconds=25 + 5 * number),
            arrived,
            Clock.DEVICE,
            {Kind.SPO2: Decimal(value)},
        )
        for number, value in enumerate(values)
    ]
    await log(records, consultation.patient, pack)
    with capture_logs() as logged:
        await judge_all(records)
    assert not [one for one in logged if one["log_level"] == "critical"]
    told = [one.content[ALARM]["state"] for one in await promised(records, consultation.patient)]
    assert told.count("worsened") == 2
