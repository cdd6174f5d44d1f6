"""The store over SQLite and PostgreSQL: nothing lost, nothing twice, nothing clinical in clear."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from console.leak_scan import Needle, canaries, must_find, scan
from fajma.config import DatabaseSettings
from fajma.errors import BugError, UnavailableError
from fajma.language import Language
from fajma.life import Status
from fajma.sealing import SiteKey
from fajma.store import Hints, Records, Store, from_ms, to_ms
from fajma.store.alarms import Delivery, NewState
from fajma.store.consultations import Consultation, OpenRoom
from fajma.store.devices import Wearing
from fajma.store.followers import Feed
from fajma.store.keys import PatientKeys
from fajma.store.quarantine import Refused
from fajma.store.readings import Fate, LoggedReading, NewReading
from fajma.store.site import site_key
from fajma.vitals import Age, Clock, DeviceId, Kind, PatientKey, Reading
from tests.conftest import Postgres

Admit = Callable[..., Awaitable[Consultation]]

ROOT = Path(__file__).parents[2]
DEVICE = DeviceId("A4CF12F03B7E")
OTHER = DeviceId("A4CF12F03B7F")
NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
DATABASE_ERRORS = (sqlite3.Error, asyncpg.PostgresError)


class PulledPlugError(Exception):
    """What the tests interrupt a transaction with."""


def at(second: float) -> datetime:
    return NOON + timedelta(seconds=second)


def new(
    number: int, patient: PatientKey, *, device: DeviceId = DEVICE, value: str = "97"
) -> NewReading:
    """The reading of a device that has this number, and says so in its time."""
    values = {Kind.SPO2: Decimal(value)}
    return NewReading(
        record=number.to_bytes(16, "big"),
        patient=patient,
        reading=Reading(device, at(number), at(number) + timedelta(days=1), Clock.DEVICE, values),
    )


async def append(records: Records, batch: Sequence[NewReading]) -> int:
    async with records.store.transaction() as connection:
        fates = await records.readings.append(connection, batch)
    return fates.count(Fate.STORED)


async def numbers(records: Records) -> list[int]:
    return [(one.reading.measured_at - NOON).seconds for one in await everything(records)]


async def everything(records: Records) -> list[LoggedReading]:
    found = await records.readings.after(0, limit=1_000_000)
    assert [one.position for one in found] == list(range(1, len(found) + 1))
    assert await records.readings.count() == len(found)
    return found


@pytest.fixture
async def patient(records: Records, admit: Admit) -> PatientKey:
    return (await admit(records, DEVICE)).patient


@asynccontextmanager
async def opened_again(database: DatabaseSettings, site_key_file: Path) -> AsyncIterator[Records]:
    store = await Store.open(database)
    try:
        yield Records(store, await site_key(store, site_key_file))
    finally:
        await store.close()


# --- the readings log ----------------------------------------------------------------------------


async def test_a_reading_comes_back_as_it_was(records: Records, patient: PatientKey) -> None:
    reading = Reading(
        device=DEVICE,
        measured_at=NOON,
        received_at=NOON + timedelta(milliseconds=1234),
        clock=Clock.WRONG,
        values={Kind.TEMPERATURE: Decimal("37.4200"), Kind.SPO2: Decimal(97)},
    )
    assert await append(records, [NewReading(b"r" * 16, patient, reading)]) == 1
    assert await everything(records) == [LoggedReading(1, patient, reading)]
    [logged] = await everything(records)
    assert str(logged.reading.values[Kind.TEMPERATURE]) == "37.4200"


async def test_a_reading_without_any_value_comes_back_with_what_is_known(
    records: Records, patient: PatientKey
) -> None:
    unusable = frozenset({Kind.HEART_RATE, Kind.SPO2})
    reading = Reading(
        DEVICE, NOON, NOON, Clock.DEVICE, {}, Age.LATE, 7, contact=True, unusable=unusable
    )
    assert await append(records, [NewReading(b"r" * 16, patient, reading)]) == 1
    assert await everything(records) == [LoggedReading(1, patient, reading)]


async def test_positions_are_counted_from_one_without_gaps(
    records: Records, patient: PatientKey
) -> None:
    for first in (0, 3, 6):
        assert await append(records, [new(first + n, patient) for n in range(3)]) == 3
    assert await append(records, []) == 0
    assert await numbers(records) == list(range(9))


async def test_a_redelivered_reading_is_counted_once_within_and_across_batches(
    records: Records, patient: PatientKey
) -> None:
    assert await append(records, [new(1, patient), new(1, patient), new(2, patient)]) == 2
    assert await append(records, [new(2, patient), new(3, patient), new(1, patient)]) == 1
    assert await append(records, [new(3, patient)]) == 0
    assert await numbers(records) == [1, 2, 3]


async def test_the_same_record_number_of_two_monitors_is_two_readings(
    records: Records, patient: PatientKey
) -> None:
    batch = [new(1, patient), new(1, patient, device=OTHER)]
    assert await append(records, batch) == 2
    assert await append(records, batch) == 0


async def test_a_follower_pages_through_all_or_through_one_patient(
    records: Records, patient: PatientKey, admit: Admit
) -> None:
    other = (await admit(records, OTHER)).patient
    await append(records, [new(n, other if n % 3 else patient, device=OTHER) for n in range(10)])
    page = await records.readings.after(4, limit=3)
    assert [one.position for one in page] == [5, 6, 7]
    mine = await records.readings.after(1, limit=2, patient=patient)
    assert [one.position for one in mine] == [4, 7]
    newest = await records.readings.latest(patient, limit=2)
    assert [one.position for one in newest] == [7, 10]
    assert await records.readings.after(10, limit=3) == []


async def test_a_reading_of_a_patient_without_key_is_a_bug_and_commits_nothing(
    records: Records, patient: PatientKey
) -> None:
    with pytest.raises(BugError) as caught:
        await append(records, [new(1, patient), new(2, PatientKey("00" * 16))])
    assert caught.value.code == "patient_key_missing"
    assert await everything(records) == []


async def test_an_error_undoes_readings_quarantine_and_cursors_together(
    records: Records, patient: PatientKey
) -> None:
    async def write() -> None:
        async with records.store.transaction() as connection:
            await records.readings.append(connection, [new(1, patient)])
            refused = Refused("not_json", "fajma/sensors/x", b"{", NOON)
            await records.quarantine.keep(connection, [refused])
            await records.followers.move(connection, "alarms", 7)
            raise PulledPlugError

    with pytest.raises(PulledPlugError):
        await write()
    assert await everything(records) == []
    assert await records.quarantine.counts() == {}
    assert await records.store.db.fetchval("SELECT COUNT(*) FROM quarantine") == 0
    assert await records.followers.position("alarms") == 0
    # The position that was taken back is given out again: no gap.
    assert await append(records, [new(2, patient)]) == 1
    assert await numbers(records) == [2]


async def test_a_statement_that_fails_undoes_the_transaction_and_the_store_goes_on(
    records: Records, patient: PatientKey
) -> None:
    async def write() -> None:
        async with records.store.transaction() as connection:
            await records.readings.append(connection, [new(1, patient)])
            await connection.execute("INSERT INTO no_such_table VALUES (1)")

    with pytest.raises(DATABASE_ERRORS):
        await write()
    assert await everything(records) == []
    assert await append(records, [new(1, patient)]) == 1


async def test_what_a_transaction_has_read_nobody_changes_before_it_writes(
    sqlite_records: Records, tmp_path: Path
) -> None:
    """Another process that commits in between would make SQLite refuse our write at once."""
    records = sqlite_records
    other = sqlite3.connect(tmp_path / "store" / "fajma.db", timeout=0, isolation_level=None)
    write = "INSERT INTO tally (name, count) VALUES ('{}', 1)"
    async with records.store.transaction() as connection:
        await connection.fetch("SELECT * FROM tally")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute(write.format("theirs"))
        async with records.store.transaction() as nested:  # part of the one that is open
            await nested.execute(write.format("ours"))
    other.execute(write.format("theirs"))
    other.close()
    assert await records.tally.all() == {"ours": 1, "theirs": 1}


# --- cancellation --------------------------------------------------------------------------------


async def test_cancelling_inside_a_transaction_undoes_it_and_the_store_goes_on(
    records: Records, patient: PatientKey
) -> None:
    inside = asyncio.Event()

    async def hang() -> None:
        async with records.store.transaction() as connection:
            await records.readings.append(connection, [new(1, patient)])
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hang())
    await asyncio.wait_for(inside.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await everything(records) == []
    assert await append(records, [new(2, patient)]) == 1
    assert await numbers(records) == [2]


async def test_cancelling_at_any_moment_leaves_all_of_a_batch_or_none(
    records: Records, patient: PatientKey
) -> None:
    """Cancelled after 0, 1, 2, ... turns of the loop, until a batch gets through."""

    async def write(number: int) -> None:
        await append(records, [new(number, patient), new(number + 1, patient)])

    turns = 0
    got_through = 0
    while got_through < 3:
        task = asyncio.create_task(write(2 * turns))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        [outcome] = await asyncio.gather(task, return_exceptions=True)
        assert outcome is None or isinstance(outcome, asyncio.CancelledError)
        got_through += outcome is None
        turns += 1
    stored = await numbers(records)
    assert len(stored) >= 2 * got_through
    assert all(later == even + 1 for even, later in zip(stored[::2], stored[1::2], strict=True))
    # And nothing was left open that the next transaction would end up inside of.
    assert await append(records, [new(20_000, patient)]) == 1


async def test_a_transaction_that_is_cancelled_before_it_began_is_not_left_open(
    sqlite_records: Records, admit: Admit
) -> None:
    records = sqlite_records
    patient = (await admit(records, DEVICE)).patient
    database: Any = records.store.db
    [connection] = database._pool._queue
    go_on = threading.Event()
    await connection.create_function("hold", 0, lambda: go_on.wait(10))
    holding = asyncio.create_task(connection.execute("SELECT hold()"))
    task = asyncio.create_task(append(records, [new(1, patient)]))
    for _ in range(10):  # its BEGIN stands behind the other statement
        await asyncio.sleep(0)
    task.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait({task, holding}, timeout=10)
    assert task.cancelled()
    assert await append(records, [new(2, patient)]) == 1
    assert await numbers(records) == [2]


async def test_a_second_cancellation_does_not_interrupt_the_undoing(
    records: Records, patient: PatientKey
) -> None:
    inside = asyncio.Event()

    async def hang() -> None:
        async with records.store.transaction() as connection:
            await records.readings.append(connection, [new(1, patient)])
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hang())
    await asyncio.wait_for(inside.wait(), 10)
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    assert task.cancelled()
    assert await append(records, [new(2, patient)]) == 1
    assert await numbers(records) == [2]


# --- several writers and a follower --------------------------------------------------------------


async def test_two_writers_and_a_follower_that_polls_lose_nothing_and_see_no_gap(
    database: DatabaseSettings, records: Records, site_key_file: Path, patient: PatientKey
) -> None:
    batches, size = 15, 7
    done = asyncio.Event()

    async def write(writer: Records, device: DeviceId) -> None:
        for first in range(0, batches * size, size):
            batch = [new(first + n, patient, device=device) for n in range(size)]
            assert await append(writer, batch) == size

    async def follow(reader: Records) -> list[LoggedReading]:
        seen: list[LoggedReading] = []
        while True:
            finished = done.is_set()
            page = await reader.readings.after(len(seen), limit=10)
            seen += page
            # A gap here would be passed over for ever: its reading commits behind us.
            assert [one.position for one in seen[-10:]] == list(
                range(len(seen) + 1 - len(seen[-10:]), len(seen) + 1)
            )
            if finished and not page:
                return seen
            await asyncio.sleep(0)  # a poll that never pauses would keep SQLite's one connection

    async with asyncio.timeout(60), opened_again(database, site_key_file) as elsewhere:
        # SQLite has one process and one connection, in which the writers take turns.
        other = records if records.store.is_sqlite else elsewhere
        following = asyncio.create_task(follow(other))
        await asyncio.gather(write(records, DEVICE), write(other, OTHER))
        done.set()
        seen = await following
    for device in (DEVICE, OTHER):
        order = [
            (one.reading.measured_at - NOON).seconds for one in seen if one.reading.device == device
        ]
        assert order == list(range(batches * size))


async def test_two_writers_of_the_same_readings_store_each_once(
    database: DatabaseSettings, records: Records, site_key_file: Path, patient: PatientKey
) -> None:
    batch = [new(n, patient) for n in range(20)]
    async with opened_again(database, site_key_file) as elsewhere:
        other = records if records.store.is_sqlite else elsewhere
        stored = await asyncio.gather(append(records, batch), append(other, batch[::-1]))
    assert sorted(stored) == [0, 20]
    assert sorted(await numbers(records)) == list(range(20))


async def test_a_writer_with_much_to_do_lets_another_in_between(
    records: Records, patient: PatientKey
) -> None:
    begun, stop = asyncio.Event(), asyncio.Event()

    async def busy() -> int:
        number = 0
        while not stop.is_set():
            await append(records, [new(number, patient)])
            number += 1
            begun.set()
        return number

    writing = asyncio.create_task(busy())
    try:
        async with asyncio.timeout(10):
            await begun.wait()
            for number in range(5):
                await append(records, [new(number, patient, device=OTHER)])
    finally:
        stop.set()
        written = await writing
    assert await records.readings.count() == written + 5


# --- kill -9 -------------------------------------------------------------------------------------

BATCH = 5
WRITER = """
import asyncio, sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from fajma.config import DatabaseSettings
from fajma.store import Records, Store
from fajma.store.site import site_key
from fajma.store.readings import NewReading
from fajma.vitals import Clock, Kind, Reading

url, key_file, patient, first, size = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
noon = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)

def new(number):
    at = noon + timedelta(seconds=number)
    reading = Reading("A4CF12F03B7E", at, at, Clock.DEVICE, {Kind.SPO2: Decimal(97)})
    return NewReading(number.to_bytes(16, "big"), patient, reading)

async def main():
    store = await Store.open(DatabaseSettings(url=url))
    records = Records(store, await site_key(store, Path(key_file)))
    number = first
    while True:
        async with store.transaction() as connection:
            await records.readings.append(connection, [new(number + n) for n in range(size)])
        print(number, flush=True)
        number += size

asyncio.run(main())
"""


async def test_what_was_reported_committed_survives_kill_9_exactly_once(
    database: DatabaseSettings, records: Records, site_key_file: Path, patient: PatientKey
) -> None:
    chance = random.Random(2)
    reported: list[int] = []
    for run in range(3):
        writer = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", WRITER, database.url, str(site_key_file), patient),
            *(str(run * 10_000), str(BATCH)),
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert writer.stdout is not None
        for _ in range(chance.randint(1, 12)):
            line = await asyncio.wait_for(writer.stdout.readline(), 30)
            reported.append(int(line))
        writer.kill()
        # What it still managed to say before it died counts too.
        reported += [int(line) for line in (await writer.stdout.read()).split()]
        assert await asyncio.wait_for(writer.wait(), 10) == -9

    stored = await numbers(records)
    assert len(stored) == len(set(stored))
    batches = {number - number % BATCH for number in stored}
    assert set(reported) <= batches
    # Whole batches, at most one of each run committed in the instant before its report.
    assert len(stored) == BATCH * len(batches)
    assert len(batches - set(reported)) <= 3
    # The broker delivers again what was not acknowledged: nothing is new.
    assert await append(records, [new(number, patient) for number in stored]) == 0


# --- patients and who wears what -----------------------------------------------------------------


async def test_a_patient_is_found_by_number_and_by_key(records: Records) -> None:
    patient = await records.patients.add(
        number="4711/é", initials="É.D.", bed="4 bis", account="@p:clinic.test"
    )
    assert await records.patients.by_number("4711/é") == patient
    assert await records.patients.get(patient.key) == patient
    assert await records.patients.by_number("4711/e") is None
    assert await records.patients.get(PatientKey("00" * 16)) is None


async def test_a_number_belongs_to_one_patient_only(records: Records) -> None:
    first = await records.patients.add(number="4711", initials="A.D.", bed="4", account=None)
    with pytest.raises(DATABASE_ERRORS):
        await records.patients.add(number="4711", initials="B.D.", bed="5", account=None)
    assert await records.patients.by_number("4711") == first
    # The key of the patient who was not kept is not kept either.
    assert await records.store.db.fetchval("SELECT COUNT(*) FROM patient_key") == 1


async def test_patients_are_read_again_after_a_restart_with_the_same_site_key_only(
    database: DatabaseSettings, records: Records, site_key_file: Path
) -> None:
    patient = await records.patients.add(number="4711", initials="A.D.", bed="4", account=None)
    async with opened_again(database, site_key_file) as again:
        assert await again.patients.by_number("4711") == patient
    strangers = Records(records.store, SiteKey(b"x" * 32))
    assert await strangers.patients.by_number("4711") is None
    with pytest.raises(BugError) as caught:
        await strangers.patients.get(patient.key)
    assert caught.value.code == "unsealing_failed"


async def test_a_consultation_opens_with_its_room(records: Records) -> None:
    patient = await records.patients.add(number="4711", initials="A.D.", bed="4", account=None)
    opening = await records.consultations.add(
        patient=patient.key,
        clinicians=("@moussa:clinic.test", "@awa:clinic.test"),
        language=Language.ENGLISH,
        time_zone="Africa/Bamako",
        now=NOON,
    )
    assert opening.status is Status.OPENING
    assert opening.clinicians == ("@awa:clinic.test", "@moussa:clinic.test")
    assert await records.consultations.get(opening.id) == opening
    assert await records.consultations.open_ones() == []
    await records.consultations.open_in(opening.id, "!r:clinic.test")
    opened = await records.consultations.in_room("!r:clinic.test")
    assert opened is not None
    assert (opened.id, opened.room_id, opened.status) == (
        opening.id,
        "!r:clinic.test",
        Status.OPEN,
    )
    assert await records.consultations.open_ones() == [opened]
    assert await records.consultations.of_patient(patient.key) == opened
    assert await records.consultations.in_room("!other:clinic.test") is None


async def test_a_monitor_belongs_to_whoever_wore_it_at_that_time(
    records: Records, admit: Admit
) -> None:
    first, second = await admit(records, DEVICE), await admit(records, OTHER)
    wearing = records.devices.wearing
    linked = first.opened_at

    async def wore(device: DeviceId, moment: datetime) -> Wearing | None:
        return await wearing(device, moment)

    was = Wearing(first.patient, first.id)
    now = Wearing(second.patient, second.id)
    await records.devices.link(DEVICE, second.patient, second.id, now=NOON)
    assert await wore(DEVICE, linked - timedelta(milliseconds=1)) is None
    assert await wore(DEVICE, linked) == was
    assert await wore(DEVICE, NOON - timedelta(milliseconds=1)) == was
    assert await wore(DEVICE, NOON) == now
    assert await wore(DEVICE, at(1e6)) == now
    assert await wore(DeviceId("000000000000"), NOON) is None
    # Now the second patient wears both, and the first none.
    assert await records.devices.worn() == {second.patient: sorted([DEVICE, OTHER])}


async def test_linking_a_monitor_again_to_its_wearer_changes_nothing(
    records: Records, admit: Admit
) -> None:
    consultation = await admit(records, DEVICE)
    await records.devices.link(DEVICE, consultation.patient, consultation.id, now=NOON)
    assert await records.store.db.fetchval("SELECT COUNT(*) FROM device_link") == 1
    before = NOON - timedelta(seconds=1)
    assert await records.devices.wearing(DEVICE, before) is not None


# --- cursors, alarm state, outbox ----------------------------------------------------------------


async def test_followers_and_feeds_remember_where_they_are(records: Records, admit: Admit) -> None:
    consultation = await admit(records, DEVICE)
    assert await records.followers.position("alarms") == 0
    for position in (3, 9):
        async with records.store.transaction() as connection:
            await records.followers.move(connection, "alarms", position)
    assert await records.followers.position("alarms") == 9
    assert await records.followers.position("another") == 0

    assert await records.feeds.get(consultation.id) == Feed()
    for feed in (
        Feed(3, 7, "$day", "2026-03-02"),
        Feed(7, None, "$day", "2026-03-02", NOON, 6, at(-1)),
        Feed(7, None, "$day", "2026-03-02", at(1), 7, None),
    ):
        await records.feeds.put(consultation.id, feed)
        assert await records.feeds.get(consultation.id) == feed


async def test_the_lag_of_publishing_counts_what_open_consultations_wait_for(
    records: Records, patient: PatientKey, admit: Admit
) -> None:
    other = await admit(records, OTHER)
    consultation = await records.consultations.of_patient(patient)
    assert consultation is not None
    assert await records.feeds.lag() == 0
    await append(records, [new(n, patient) for n in range(5)])
    await append(records, [new(n, other.patient, device=OTHER) for n in range(2)])
    assert await records.feeds.lag() == 7
    await records.feeds.put(consultation.id, Feed(published=4))
    assert await records.feeds.lag() == 3
    await records.store.db.execute(
        "UPDATE consultation SET status='opening' WHERE consultation_id=$1", consultation.id
    )
    assert await records.feeds.lag() == 2


async def test_heads_and_newest_readings_are_found_without_reading_the_log(
    records: Records, patient: PatientKey, admit: Admit
) -> None:
    other = (await admit(records, OTHER)).patient
    assert (await records.readings.head(), await records.readings.head(patient)) == (0, 0)
    await append(records, [new(n, patient) for n in range(6)])
    await append(records, [new(9, other, device=OTHER)])
    assert await records.readings.head() == 7
    assert await records.readings.head(patient) == 6
    found = await records.readings.latest(patient, limit=2, until=4)
    assert [one.position for one in found] == [3, 4]


async def test_open_rooms_are_told_without_their_people(records: Records, admit: Admit) -> None:
    consultations = [await admit(records, DEVICE), await admit(records, OTHER)]
    assert {one.id: one for one in await records.consultations.open_rooms()} == {
        one.id: OpenRoom(one.id, one.patient, one.room_id or "", one.time_zone)
        for one in consultations
    }


async def test_a_watch_ends_at_the_latest_end_and_newcomers_wait_until_they_are_served(
    records: Records, admit: Admit
) -> None:
    first, second = await admit(records, DEVICE), await admit(records, OTHER)
    watching = records.watching
    for end in (30, 60, 40):
        await watching.watch(first.room_id or "", at(end))
    await watching.watch("!elsewhere:clinic.test", at(60))
    assert await watching.watched(NOON) == {first.id: at(60)}
    assert await watching.watched(at(60)) == {}

    for moment in (1, 2):
        await watching.came(second.room_id or "", at(moment))
    await watching.came("!elsewhere:clinic.test", at(3))
    assert await watching.newcomers() == {second.id: at(2)}
    await watching.served(second.id, at(1))  # another came since
    assert await watching.newcomers() == {second.id: at(2)}
    await watching.served(second.id, at(2))
    assert await watching.newcomers() == {}


async def test_an_alarm_state_is_kept_with_the_time_of_the_last_announcement(
    records: Records, patient: PatientKey
) -> None:
    async def put(state: str, announced_at: datetime | None) -> None:
        async with records.store.transaction() as connection:
            kept = NewState(patient, state, announced_at)
            await records.alarm_states.put(connection, kept)

    assert await records.alarm_states.get(patient) is None
    changed_since = records.alarm_states.changed_since
    await put("one", None)
    assert await changed_since(from_ms(1)) == {}
    await put("two", NOON)
    await put("three", None)
    assert await records.alarm_states.get(patient) == "three"
    assert await changed_since(NOON) == {patient: NOON}
    assert await changed_since(at(0.001)) == {}


async def test_alarm_states_of_many_are_kept_and_looked_up_together(records: Records) -> None:
    patients = [
        (await records.patients.add(number=f"{n}", initials="A.D.", bed="4", account=None)).key
        for n in range(4)
    ]
    first, second, third, nobody = patients
    for states in ({first: "a", second: "b"}, {second: "B", third: "c"}, {}):
        async with records.store.transaction() as connection:
            kept = [NewState(patient, state) for patient, state in states.items()]
            await records.alarm_states.put(connection, *kept)

    found = await records.alarm_states.sealed([nobody, *patients[1:]])
    opened = {one: await records.alarm_states.open(one, sealed) for one, sealed in found.items()}
    assert opened == {second: "B", third: "c"}
    with pytest.raises(BugError, match="does not open"):
        await records.alarm_states.open(first, found[second])
    assert await records.alarm_states.sealed([]) == {}


async def test_who_is_left_behind_stays_so_from_the_first_place_until_he_has_caught_up(
    records: Records,
) -> None:
    followers = records.followers
    mine, other = PatientKey("9f" * 16), PatientKey("a0" * 16)
    for patient, position in ((mine, 7), (other, 8), (mine, 9)):
        async with records.store.transaction() as connection:
            await followers.leave_behind(connection, "alarms", patient, position)
            await followers.leave_behind(connection, "others", patient, 1)
            await followers.move(connection, "alarms", position)
    assert await followers.left_behind("alarms") == {mine: 7, other: 8}
    assert await followers.position("alarms") == 9

    async with records.store.transaction() as connection:
        await followers.caught_up(connection, "alarms", mine)
    assert await followers.left_behind("alarms") == {other: 8}
    assert await followers.left_behind("others") == {mine: 1, other: 1}


async def test_readings_that_are_not_opened_yet_do_no_harm_to_others(
    records: Records, patient: PatientKey
) -> None:
    gone = (await records.patients.add(number="2", initials="A.D.", bed="4", account=None)).key
    async with records.store.transaction() as connection:
        batch = [new(number, one) for number, one in enumerate((gone, patient, gone))]
        await records.readings.append(connection, batch)
    await records.store.db.execute("DELETE FROM patient_key WHERE patient_key=$1", gone)
    afresh = Records(records.store, records.site_key)
    found = await afresh.readings.sealed_after(0, limit=10)
    assert [(one.position, one.patient) for one in found] == [(1, gone), (2, patient), (3, gone)]
    assert [await afresh.readings.open(found[1])] == await records.readings.after(
        0, limit=10, patient=patient
    )
    with pytest.raises(BugError, match="without key"):
        await afresh.readings.open(found[0])


def delivery(number: int, patient: PatientKey) -> Delivery:
    return Delivery(
        delivery_id=f"id-{9 - number}",
        room_id=f"!room-{number % 2}:clinic.test",
        patient=patient,
        content={"msgtype": "m.text", "body": f"é {number}", "n": {"list": [1]}},
        created_at=at(number),
    )


async def test_the_outbox_keeps_its_order_until_each_delivery_is_confirmed(
    records: Records, patient: PatientKey
) -> None:
    outbox = records.outbox
    promised = [delivery(n, patient) for n in range(5)]
    for one in promised:
        async with records.store.transaction() as connection:
            await outbox.add(connection, one)
    rooms = ["!room-0:clinic.test", "!room-1:clinic.test"]
    ids = [one.delivery_id for one in promised]
    assert await outbox.rooms_waiting() == rooms
    assert await outbox.waiting(rooms[0]) == ids[0::2]
    assert await outbox.waiting(rooms[0], limit=2) == [ids[0], ids[2]]
    assert [await outbox.get(one) for one in ids] == promised
    await outbox.delivered(ids[0], "$event")
    await outbox.delivered("unknown", "$event")
    assert await outbox.rooms_waiting() == [rooms[1], rooms[0]]
    assert await outbox.waiting(rooms[0]) == [ids[2], ids[4]]
    assert await outbox.counts() == (5, 1)
    with pytest.raises(BugError):
        await outbox.get("unknown")


async def test_a_delivery_is_promised_once_and_only_with_its_transaction(
    records: Records, patient: PatientKey
) -> None:
    async def promise(*deliveries: Delivery, fail: bool = False) -> None:
        async with records.store.transaction() as connection:
            for one in deliveries:
                await records.outbox.add(connection, one)
            if fail:
                raise PulledPlugError

    with pytest.raises(PulledPlugError):
        await promise(delivery(0, patient), fail=True)
    assert await records.outbox.counts() == (0, 0)
    await promise(delivery(1, patient))
    with pytest.raises(DATABASE_ERRORS):
        await promise(delivery(2, patient), delivery(1, patient))
    assert await records.outbox.rooms_waiting() == ["!room-1:clinic.test"]
    assert await records.outbox.waiting("!room-1:clinic.test") == ["id-8"]


# --- quarantine ----------------------------------------------------------------------------------


async def test_the_newest_refused_messages_are_kept_and_all_are_counted(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fajma.store.quarantine.MAX_KEPT", 3)
    for second in (3, 1, 5, 2, 4):
        async with records.store.transaction() as connection:
            await records.quarantine.keep(
                connection, [Refused(f"reason_{second % 2}", "topic", b"x", at(second))]
            )
    assert await records.quarantine.counts() == {"reason_0": 2, "reason_1": 3}
    rows = await records.store.db.fetch("SELECT * FROM quarantine ORDER BY received_at")
    assert [row["received_at"] for row in rows] == [to_ms(at(second)) for second in (3, 4, 5)]


# --- nothing clinical in clear -------------------------------------------------------------------


async def plain_dump(url: str) -> list[str]:
    """Every row of every table as PostgreSQL writes it, bytes in hexadecimal."""
    connection = await asyncpg.connect(url)
    try:
        tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname='public'")
        return [
            str(row[0])
            for table in tables
            for row in await connection.fetch(f'SELECT t::text FROM "{table[0]}" t')  # noqa: S608
        ]
    finally:
        await connection.close()


async def test_no_database_file_shows_anything_clinical(
    database: DatabaseSettings,
    store: Store,
    records: Records,
    tmp_path: Path,
) -> None:
    texts = {"initials": "Zéphyrin-Q.", "bed": "Lit Xylophone 93", "number": "HN-73915-QX"}
    person = await records.patients.add(account="@patient:clinic.test", **texts)
    values = {Kind.TEMPERATURE: Decimal("37.4291"), Kind.HEART_RATE: Decimal("83.1973")}
    reading = Reading(DEVICE, NOON, NOON, Clock.DEVICE, values)
    refused = Refused("not_json", "fajma/sensors/secret-topic", b"payload-Krokodil-36.6173", NOON)
    async with store.transaction() as connection:
        await records.readings.append(connection, [NewReading(b"r" * 16, person.key, reading)])
        await records.quarantine.keep(connection, [refused])
        await records.alarm_states.put(
            connection, NewState(person.key, '{"state":"Wolkenkratzer 86.3719"}', NOON)
        )
        await records.outbox.add(
            connection,
            Delivery(
                "id", "!r:clinic.test", person.key, {"body": "ALARME Quetzalcoatl 88.4217"}, NOON
            ),
        )

    needles = [Needle.for_text(text, label=label) for label, text in texts.items()]
    needles += [
        Needle.for_number(Decimal(text), label=f"number {n}")
        for n, text in enumerate(["37.4291", "83.1973", "36.6173", "86.3719", "88.4217"])
    ]
    needles += [
        Needle.for_text(text, label=f"text {n}")
        for n, text in enumerate(
            ["secret-topic", "payload-Krokodil", "Wolkenkratzer", "Quetzalcoatl", "heart_rate"]
        )
    ]
    # Plant what the scan must find, in the same database and where it can only be in its files.
    planted = canaries(secrets.token_hex(8))
    await store.db.execute("CREATE TABLE planted (encoding TEXT, bytes BYTEA)")
    for canary in planted:
        await store.db.execute(
            "INSERT INTO planted VALUES ($1, $2)", canary.encoding, canary.planted
        )
    if store.is_sqlite:
        directory = Path(urlsplit(database.url).path).parent
        assert {path.name for path in directory.iterdir()} >= {"fajma.db", "fajma.db-wal"}
        places, journals = [directory], []
    else:
        cluster = Path(urlsplit(database.url).query.removeprefix("host=")) / "data"
        await store.db.execute("CHECKPOINT")
        oid = await store.db.fetchval(
            "SELECT oid FROM pg_database WHERE datname=current_database()"
        )
        dump = tmp_path / "dump.txt"
        dump.write_text("\n".join(await plain_dump(database.url)), encoding="utf-8")
        journal = await store.db.fetchval("SELECT pg_walfile_name(pg_current_wal_lsn())")
        places, journals = [cluster / "base" / str(oid), dump], [cluster / "pg_wal" / journal]
    leaks = scan(places, [*needles, *(canary.needle for canary in planted)])
    must_find(planted, leaks)
    assert {leak.needle_label for leak in leaks} & {needle.label for needle in needles} == set()
    assert scan(journals, needles) == []
    await store.close()
    if store.is_sqlite:  # what was in the journal is in the file now
        assert not (places[0] / "fajma.db-wal").exists()
        assert scan(places, needles) == []


async def test_nothing_of_a_deleted_patient_key_remains_in_the_file(
    sqlite_records: Records, tmp_path: Path
) -> None:
    records = sqlite_records
    patient = await records.patients.add(number="1", initials="A.D.", bed="4", account=None)
    query = "SELECT wrapped FROM patient_key WHERE patient_key=$1"
    wrapped = bytes(await records.store.db.fetchval(query, patient.key))
    path = tmp_path / "store" / "fajma.db"

    async def checkpoint() -> None:
        await records.store.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    await checkpoint()
    assert wrapped in path.read_bytes()
    await records.store.db.execute("DELETE FROM patient_key WHERE patient_key=$1", patient.key)
    await checkpoint()
    assert wrapped not in path.read_bytes()


# --- opening -------------------------------------------------------------------------------------


async def test_a_key_that_was_destroyed_opens_and_seals_nothing_though_it_was_at_hand(
    records: Records, patient: PatientKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = await records.patients.add(number="2", initials="B.E.", bed="2", account=None)
    await append(records, [new(1, patient), new(2, other.key)])
    await records.store.db.execute("DELETE FROM patient_key WHERE patient_key=$1", patient)

    assert await records.readings.locked({patient, other.key}) == {patient}
    opened, unreadable = await records.readings.open_all(
        await records.readings.sealed_after(0, limit=9)
    )
    assert ([one.position for one in opened], unreadable) == ([2], [1])

    # One that is used by itself is looked for now and then.
    keys = PatientKeys(records.store, records.site_key)
    await keys.get(other.key)
    await records.store.db.execute("DELETE FROM patient_key")
    await keys.get(other.key)
    monkeypatch.setattr("fajma.store.keys.LOOKED_EVERY_S", 0.0)
    with pytest.raises(BugError) as caught:
        await keys.get(other.key)
    assert caught.value.code == "patient_key_missing"


async def test_a_store_opens_again_with_everything_in_it(
    database: DatabaseSettings, records: Records, site_key_file: Path, patient: PatientKey
) -> None:
    await append(records, [new(n, patient) for n in range(3)])
    await records.store.close()
    async with opened_again(database, site_key_file) as again:
        assert await numbers(again) == [0, 1, 2]
        assert await append(again, [new(2, patient), new(3, patient)]) == 1


async def test_the_embedded_database_waits_for_the_disk_and_overwrites_what_it_deletes(
    sqlite_records: Records,
) -> None:
    async def pragma(name: str) -> Any:
        return await sqlite_records.store.db.fetchval(f"PRAGMA {name}")

    assert await pragma("journal_mode") == "wal"
    assert await pragma("synchronous") == 2
    assert await pragma("secure_delete") == 1
    assert await pragma("foreign_keys") == 1


@pytest.mark.parametrize(
    "url",
    [
        "postgres://fajma@127.0.0.1:1/fajma",
        "postgres://fajma@/fajma?host=/nowhere/at/all",
        "sqlite://{directory}/a-file/fajma.db",
        "sqlite://{directory}/a-file",
        "sqlite://{directory}",
    ],
)
async def test_a_database_that_does_not_open_is_named_in_one_line(url: str, tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("This is no database. " * 100, encoding="utf-8")
    with pytest.raises(UnavailableError, match=r"database\.url") as caught:
        await Store.open(DatabaseSettings(url=url.format(directory=tmp_path)))
    assert caught.value.code == "database_unavailable"
    assert "\n" not in str(caught.value)


async def test_a_postgresql_that_ends_connections_is_used_again(
    postgres: Postgres, postgres_url: str
) -> None:
    """As when it is restarted; a connection may find out in the middle of a query."""
    store = await Store.open(DatabaseSettings(url=postgres_url))
    admin = await asyncpg.connect(postgres.url("postgres"))
    failures = 0
    for _ in range(20):
        await store.db.fetchval("SELECT 1")
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname=$1",
            urlsplit(postgres_url).path[1:],
        )
        async with asyncio.timeout(10):
            while True:
                try:
                    await store.db.fetchval("SELECT 1")
                except Exception:  # noqa: BLE001 - whichever: it must not be the end of the process
                    failures += 1
                else:
                    break
    assert failures
    await admin.close()
    await store.close()


async def test_a_process_whose_database_does_not_open_ends(tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("This is no database. " * 100, encoding="utf-8")
    opening = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WRITER, f"sqlite://{tmp_path}/a-file", "-", "-", "0", "0"),
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        _, said = await asyncio.wait_for(opening.communicate(), 30)
    finally:
        if opening.returncode is None:
            opening.kill()
            await opening.wait()
    assert b"UnavailableError" in said
    assert opening.returncode == 1


# --- hints and times -----------------------------------------------------------------------------


async def test_a_hint_wakes_whoever_follows_its_topic_and_nobody_else() -> None:
    hints = Hints()
    mine, others = hints.subscribe("readings", "alarms"), hints.subscribe("outbox")
    hints.notify("alarms")
    hints.notify("nobody listens")
    assert mine.is_set()
    assert not others.is_set()
    await asyncio.wait_for(hints.wait(mine, timeout_s=60), 1)
    assert not mine.is_set()


async def test_a_follower_without_a_hint_looks_by_itself() -> None:
    hints = Hints()
    await asyncio.wait_for(hints.wait(hints.subscribe("readings"), timeout_s=0.01), 5)


def test_times_are_kept_to_the_millisecond() -> None:
    moment = datetime(2026, 3, 2, 12, 0, 0, 123_999, tzinfo=UTC)
    assert to_ms(moment) == 1_772_452_800_123
    assert from_ms(to_ms(moment)) == moment.replace(microsecond=123_000)
