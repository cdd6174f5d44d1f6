"""From the log to the rooms: every reading once, in order, whatever fails in between."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from decimal import Decimal

import pytest
from mautrix.errors import MatrixConnectionError, MatrixUnknownRequestError, MForbidden
from structlog.testing import capture_logs

from bridges.mqtt_vitals.budget import HOMESERVER_PAUSES_S, ROOM_PAUSES_S
from bridges.mqtt_vitals.publisher import MAX_BATCH_READINGS, PLACES
from fajma.errors import BusyError, UnavailableError
from fajma.events import VITALS, VITALS_BATCH, VITALS_DAY
from fajma.store import Records
from fajma.store.consultations import Consultation, ConsultationId
from fajma.store.followers import Feed, Feeds
from fajma.store.readings import NewReading
from fajma.vitals import Age, Clock, DeviceId, Kind, Reading
from tests.integration.desk import (
    NOON,
    Desk,
    KilledError,
    RecordingSender,
    announce,
    batches,
    everything_is_published_once,
    measure,
    states,
)

Admit = Callable[..., Awaitable[Consultation]]

MINE = DeviceId("A4CF12F03B7E")
OTHER = DeviceId("A4CF12F03B7F")


@pytest.fixture
def desk(sqlite_records: Records) -> Desk:
    return Desk(sqlite_records, RecordingSender())


@pytest.fixture
async def mine(sqlite_records: Records, admit: Admit) -> Consultation:
    return await admit(sqlite_records, MINE)


@pytest.fixture
async def other(sqlite_records: Records, admit: Admit) -> Consultation:
    return await admit(sqlite_records, OTHER)


# --- batches -------------------------------------------------------------------------------------


async def test_every_reading_is_published_once_and_in_order_in_its_own_room(
    sqlite_records: Records, desk: Desk, mine: Consultation, other: Consultation
) -> None:
    async with desk.open():
        for count in (1, 7, MAX_BATCH_READINGS + 50):
            await measure(sqlite_records, mine, count)
            await measure(sqlite_records, other, count)
            await measure(sqlite_records, mine, 2)
            desk.later(60)
            await desk.round()
    for consultation in (mine, other):
        await everything_is_published_once(sqlite_records, desk, consultation)
    assert set(desk.sender.rooms) == {mine.room_id, other.room_id}


async def test_a_long_backlog_goes_out_in_events_of_bounded_size(
    sqlite_records: Records, desk: Desk, mine: Consultation
) -> None:
    await measure(sqlite_records, mine, 2 * MAX_BATCH_READINGS + 1)
    async with desk.open():
        pass
    sizes = [len(one.samples[Kind.SPO2]) for one in batches(desk, mine)]
    assert sizes == [MAX_BATCH_READINGS, MAX_BATCH_READINGS, 1]
    await everything_is_published_once(sqlite_records, desk, mine)


async def test_batches_keep_their_cadence_and_none_is_empty(
    sqlite_records: Records, desk: Desk, mine: Consultation
) -> None:
    async with desk.open():
        for seconds, readings, total in (
            (0, 1, 1),  # the first goes out at once
            (59, 1, 1),
            (1, 0, 2),
            (60, 0, 2),  # nothing new
            (600, 1, 3),
            (59, 1, 3),
        ):
            desk.later(seconds)
            await measure(sqlite_records, mine, readings)
            await desk.round()
            assert len(batches(desk, mine)) == total, (seconds, readings)


async def test_a_consultation_that_opens_later_is_published_too(
    sqlite_records: Records, desk: Desk, admit: Admit
) -> None:
    async with desk.open():
        assert desk.sender.rooms == {}
        consultation = await admit(sqlite_records, MINE)
        await desk.round()
        assert desk.sender.rooms == {}  # nothing was measured yet
        await measure(sqlite_records, consultation, 3)
        await desk.round()
    await everything_is_published_once(sqlite_records, desk, consultation)


async def test_batches_refer_to_one_anchor_a_day(
    sqlite_records: Records, desk: Desk, mine: Consultation
) -> None:
    for _ in range(2):  # a restart sends no second anchor
        async with desk.open():
            await measure(sqlite_records, mine, 1)
            desk.later(60)
            await desk.round()
    desk.later(12 * 3600)
    async with desk.open():
        await measure(sqlite_records, mine, 1)
        await desk.round()
    days = desk.sender.of_type(mine, VITALS_DAY)
    assert [one.content["day"] for one in days] == ["2026-03-02", "2026-03-03"]
    anchors = [one.anchor for one in batches(desk, mine)]
    assert anchors == [days[0].event_id, days[0].event_id, days[1].event_id]


async def test_what_the_homeserver_sees_in_clear_holds_no_value(
    sqlite_records: Records, desk: Desk, mine: Consultation
) -> None:
    await measure(sqlite_records, mine, 3)
    async with desk.open():
        pass
    # Identities, positions and the day; of the state it sees the opaque key of the patient.
    assert [transaction_id for transaction_id, _ in desk.sender.attempts] == [
        f"day-{mine.id}-2026-03-02",
        f"batch-{mine.id}-1-3",
    ]
    assert [one.key for one in desk.sender.of_type(mine, VITALS)] == [mine.patient]


# --- whatever dies when --------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before the send", "after the send", "after the answer"])
async def test_a_batch_whose_outcome_is_unknown_is_repeated_and_not_another(
    sqlite_records: Records,
    desk: Desk,
    mine: Consultation,
    moment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await measure(sqlite_records, mine, 1)
    async with desk.open():
        pass
    await measure(sqlite_records, mine, 5)
    put = Feeds.put

    async def die_when_done(self: Feeds, consultation: ConsultationId, feed: Feed) -> None:
        if feed.pending is None:
            raise KilledError
        await put(self, consultation, feed)

    with monkeypatch.context() as patched:
        if moment == "before the send":
            patched.setitem(desk.sender.failing, VITALS_BATCH, KilledError())
        elif moment == "after the send":
            patched.setitem(desk.sender.lost_answers, VITALS_BATCH, KilledError())
        else:
            patched.setattr(Feeds, "put", die_when_done)
        with pytest.raises(KilledError):
            async with desk.open():
                pass
    interrupted = desk.sender.attempts[-1]
    assert (await sqlite_records.feeds.get(mine.id)).pending == 6

    # While it was dead more was measured, and another day began.
    await measure(sqlite_records, mine, 4)
    desk.later(24 * 3600)
    attempted = len(desk.sender.attempts)
    async with desk.open():
        pass
    assert desk.sender.attempts[attempted] == interrupted
    await everything_is_published_once(sqlite_records, desk, mine)
    assert [one.last for one in batches(desk, mine)] == [1, 6, 10]


@pytest.mark.parametrize("event_type", [VITALS, VITALS_DAY])
async def test_a_death_while_sending_anything_else_costs_nothing_either(
    sqlite_records: Records, desk: Desk, mine: Consultation, event_type: str
) -> None:
    await measure(sqlite_records, mine, 3)
    for trouble in (desk.sender.failing, desk.sender.lost_answers):
        trouble[event_type] = KilledError()
        with pytest.raises(KilledError):
            async with desk.open():
                pass
        del trouble[event_type]
    async with desk.open():
        pass
    await everything_is_published_once(sqlite_records, desk, mine)
    assert len(desk.sender.of_type(mine, VITALS_DAY)) == 1


async def test_a_publisher_that_is_killed_at_any_send_publishes_everything_once(
    sqlite_records: Records, desk: Desk, mine: Consultation, other: Consultation
) -> None:
    chance = random.Random(7)
    for _ in range(25):
        await measure(sqlite_records, mine, chance.randint(0, 3))
        await measure(sqlite_records, other, chance.randint(0, 250))
        desk.later(chance.choice((1, 60, 600)))
        trouble = chance.choice((desk.sender.failing, desk.sender.lost_answers))
        trouble[chance.choice((VITALS, VITALS_DAY, VITALS_BATCH))] = KilledError()
        with contextlib.suppress(KilledError):
            async with desk.open():
                pass
        trouble.clear()
    async with desk.open():
        pass
    for consultation in (mine, other):
        await everything_is_published_once(sqlite_records, desk, consultation)


# --- one room's trouble --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        MForbidden(403),
        MatrixUnknownRequestError(413),
        UnavailableError("no key now", code="room_unsure"),
        OSError(),
        KeyError("event_id"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_room_that_fails_does_not_stop_another_and_is_tried_again(
    sqlite_records: Records,
    desk: Desk,
    mine: Consultation,
    other: Consultation,
    error: Exception,
) -> None:
    for consultation in (mine, other):
        await measure(sqlite_records, consultation, 3)
    desk.sender.failing[mine.room_id or ""] = error
    with capture_logs() as logs:
        async with desk.open():
            await everything_is_published_once(sqlite_records, desk, other)
            assert mine.room_id not in desk.sender.rooms
            desk.sender.failing.clear()
            desk.later(ROOM_PAUSES_S[0] - 1)
            await desk.round()
            assert mine.room_id not in desk.sender.rooms
            desk.later(1)
            await desk.round()
    await everything_is_published_once(sqlite_records, desk, mine)
    assert len(states(desk, mine)) == 1
    failures = [one for one in logs if one["event"] == "publishing_failed"]
    assert [(one["consultation"], one["error"]) for one in failures] == [
        (mine.id, type(error).__name__)
    ]


@pytest.mark.parametrize(
    ("error", "pause_s"),
    [
        (BusyError(None), HOMESERVER_PAUSES_S[0]),
        (BusyError(7), 7),
        (MatrixConnectionError("no answer"), HOMESERVER_PAUSES_S[0]),
        (TimeoutError(), HOMESERVER_PAUSES_S[0]),
        (MatrixUnknownRequestError(401), HOMESERVER_PAUSES_S[0]),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_a_homeserver_in_trouble_is_left_alone_and_then_tried_once(
    sqlite_records: Records, desk: Desk, admit: Admit, error: Exception, pause_s: float
) -> None:
    rooms = [await admit(sqlite_records, f"A4CF12F04{n:03X}") for n in range(20)]
    for consultation in rooms:
        await measure(sqlite_records, consultation, 3)
    desk.sender.away = error
    async with desk.open():
        assert 1 <= desk.sender.tries <= PLACES  # what was under way
        for failures in range(1, 4):
            tried = desk.sender.tries
            desk.later(pause_s - 0.1)
            await desk.round()
            assert desk.sender.tries == tried
            desk.later(0.1)
            await desk.round()
            assert desk.sender.tries == tried + 1
            pause_s = max(pause_s, HOMESERVER_PAUSES_S[failures])
        desk.sender.away = None
        for _ in range(5):
            desk.later(60)
            await desk.round()
    for consultation in rooms:
        await everything_is_published_once(sqlite_records, desk, consultation)


async def test_a_room_over_which_the_homeserver_fails_does_not_hold_up_the_others(
    sqlite_records: Records, desk: Desk, mine: Consultation, other: Consultation
) -> None:
    desk.sender.failing[mine.room_id or ""] = MatrixUnknownRequestError(500)
    async with desk.open():
        for number in range(10):
            await measure(sqlite_records, mine, 1)
            await measure(sqlite_records, other, 1)
            for second in (60, 1, 1, 1):
                desk.later(second)
                await desk.round()
            assert sum(len(one.readings) for one in batches(desk, other)) == number + 1
        assert mine.room_id not in desk.sender.rooms
        assert desk.sender.state_puts < 10
        desk.sender.failing.clear()
        desk.later(ROOM_PAUSES_S[-1])
        await desk.round()
    await everything_is_published_once(sqlite_records, desk, mine)


async def test_a_snapshot_whose_answer_was_lost_is_read_back_and_not_sent_again(
    sqlite_records: Records, desk: Desk, mine: Consultation
) -> None:
    await measure(sqlite_records, mine, 1)
    desk.sender.lost_answers[VITALS] = MatrixConnectionError("reset")
    async with desk.open():
        assert (desk.sender.state_puts, len(states(desk, mine))) == (1, 1)
        desk.sender.lost_answers.clear()
        desk.later(HOMESERVER_PAUSES_S[0])
        await desk.round()
        assert (desk.sender.state_puts, desk.sender.state_reads) == (1, 1)
        assert (await sqlite_records.feeds.get(mine.id)).shown == 1
        desk.later(299)
        await measure(sqlite_records, mine, 1)
        await desk.round()
        assert (desk.sender.state_puts, desk.sender.state_reads) == (2, 1)


async def test_a_snapshot_that_did_not_arrive_is_made_anew(
    sqlite_records: Records, desk: Desk, mine: Consultation
) -> None:
    await measure(sqlite_records, mine, 1, value=97)
    desk.sender.failing[VITALS] = TimeoutError()
    async with desk.open():
        desk.sender.failing.clear()
        await measure(sqlite_records, mine, 1, value=88)
        desk.later(HOMESERVER_PAUSES_S[0])
        await desk.round()
        assert (desk.sender.state_puts, desk.sender.state_reads) == (2, 1)
    [shown] = states(desk, mine)
    assert shown.latest[Kind.SPO2].value == 88


async def test_a_snapshot_that_was_refused_is_not_looked_for(
    sqlite_records: Records, desk: Desk, mine: Consultation
) -> None:
    await measure(sqlite_records, mine, 1)
    desk.sender.failing[VITALS] = BusyError(1)
    async with desk.open():
        desk.sender.failing.clear()
        desk.later(1)
        await desk.round()
    assert (desk.sender.state_puts, desk.sender.state_reads) == (2, 0)
    assert len(states(desk, mine)) == 1


async def test_a_reading_that_cannot_be_read_does_not_stop_another_room(
    sqlite_records: Records, desk: Desk, mine: Consultation, other: Consultation
) -> None:
    await measure(sqlite_records, mine, 1)
    await sqlite_records.store.db.execute("UPDATE reading SET sealed=$1", b"\x01" * 64)
    await measure(sqlite_records, other, 3)
    async with desk.open():
        pass
    await everything_is_published_once(sqlite_records, desk, other)
    assert mine.room_id not in desk.sender.rooms


async def test_readings_that_do_not_open_are_passed_over_and_told_of_once_each(
    sqlite_records: Records, desk: Desk, mine: Consultation
) -> None:
    await measure(sqlite_records, mine, 5)
    for position, sealed in ((2, b"\x01" * 64), (3, b"")):
        await sqlite_records.store.db.execute(
            "UPDATE reading SET sealed=$1 WHERE position=$2", sealed, position
        )
    await sqlite_records.watching.came(mine.room_id or "", NOON)
    with capture_logs() as logged:
        for _ in range(2):  # a second process tells nobody again
            async with desk.open():
                desk.later(60)
                await desk.round()
    [batch] = batches(desk, mine)
    assert (batch.first, batch.last, len(batch.readings)) == (1, 5, 3)
    assert len(batches(desk, mine, history=True)) == 1
    assert (await sqlite_records.feeds.get(mine.id)).published == 5
    [told] = [one for one in logged if one["log_level"] == "critical"]
    assert (told["event"], told["patient"], told["count"]) == (
        "readings_unreadable",
        mine.patient,
        2,
    )
    assert (await sqlite_records.tally.all())["unreadable"] == 2


async def test_a_patient_whose_key_is_gone_holds_up_nobody(
    sqlite_records: Records, desk: Desk, mine: Consultation, other: Consultation
) -> None:
    await measure(sqlite_records, mine, 2 * MAX_BATCH_READINGS + 1)
    await measure(sqlite_records, other, 3)
    await sqlite_records.store.db.execute(
        "DELETE FROM patient_key WHERE patient_key=$1", mine.patient
    )
    records = Records(sqlite_records.store, sqlite_records.site_key)  # which has no key at hand
    desk = Desk(records, desk.sender)
    async with desk.open():
        for _ in range(3):
            desk.later(1)
            await desk.round()
    await everything_is_published_once(records, desk, other)
    assert mine.room_id not in desk.sender.rooms
    assert (await records.feeds.get(mine.id)).published == 2 * MAX_BATCH_READINGS + 1
    assert (await records.tally.all())["unreadable"] == 2 * MAX_BATCH_READINGS + 1


# --- the snapshot --------------------------------------------------------------------------------


async def test_the_snapshot_keeps_its_cadence_and_is_not_repeated_without_news(
    sqlite_records: Records, desk: Desk, mine: Consultation
) -> None:
    async with desk.open():
        for seconds, readings, total in (
            (0, 0, 0),  # nothing was ever measured
            (0, 1, 1),
            (299, 1, 1),
            (1, 0, 2),
            (3000, 0, 2),
            (0, 1, 3),
        ):
            desk.later(seconds)
            await measure(sqlite_records, mine, readings)
            await desk.round()
            assert len(states(desk, mine)) == total, (seconds, readings)


async def test_the_snapshot_holds_the_latest_values_and_its_time_after_a_restart_too(
    sqlite_records: Records, desk: Desk, mine: Consultation
) -> None:
    await measure(sqlite_records, mine, 5)
    for number in (5, 6):
        await measure(sqlite_records, mine, 1, value=83 + number)
        desk.later(1000)
        async with desk.open():
            pass
        newest = states(desk, mine)[-1]
        assert newest.as_of == desk.now
        assert newest.latest[Kind.SPO2].value == 83 + number
        assert newest.latest[Kind.HEART_RATE].value == Decimal(700 + number) / 10
        assert newest.latest[Kind.SPO2].measured_at == NOON + timedelta(seconds=5 * number)
    assert len(states(desk, mine)) == 2


async def test_restarts_set_no_room_state_without_need(
    sqlite_records: Records, desk: Desk, mine: Consultation
) -> None:
    await measure(sqlite_records, mine, 1)
    await announce(sqlite_records, mine, NOON)
    for _ in range(5):
        async with desk.open():
            await measure(sqlite_records, mine, 1)
            desk.later(20)
            await desk.round()
    assert len(states(desk, mine)) == 1
    desk.later(200)
    async with desk.open():
        pass
    assert len(states(desk, mine)) == 2


async def test_a_change_of_alarm_sends_the_snapshot_at_once(
    sqlite_records: Records, desk: Desk, mine: Consultation
) -> None:
    await measure(sqlite_records, mine, 1)
    async with desk.open():
        for moment, total in ((NOON, 2), (None, 2), (NOON + timedelta(seconds=1), 3)):
            await announce(sqlite_records, mine, moment)
            await desk.round()
            assert len(states(desk, mine)) == total


async def test_late_readings_are_marked_and_never_hide_newer_ones(
    sqlite_records: Records, desk: Desk, mine: Consultation
) -> None:
    await measure(sqlite_records, mine, 2, value=97)
    device = DeviceId(f"{int(mine.patient[:12], 16):012X}")
    old = Reading(
        device,
        NOON - timedelta(hours=2),
        NOON,
        Clock.DEVICE,
        {Kind.SPO2: Decimal(80), Kind.TEMPERATURE: Decimal(39)},
        Age.LATE,
    )
    async with sqlite_records.store.transaction() as connection:
        await sqlite_records.readings.append(connection, [NewReading(b"o" * 16, mine.patient, old)])
    async with desk.open():
        pass
    [batch] = batches(desk, mine)
    assert [one.age for one in batch.readings] == [Age.LIVE, Age.LIVE, Age.LATE]
    [shown] = states(desk, mine)
    assert (shown.latest[Kind.SPO2].value, shown.latest[Kind.SPO2].age) == (97, Age.LIVE)
    # The only temperature there is says that it is late.
    assert shown.latest[Kind.TEMPERATURE].age is Age.LATE


async def test_a_room_is_told_that_the_probe_is_off(
    sqlite_records: Records, desk: Desk, mine: Consultation
) -> None:
    await measure(sqlite_records, mine, 3, worn=False)
    await sqlite_records.watching.came(mine.room_id or "", NOON)
    async with desk.open():
        await announce(sqlite_records, mine, NOON)
        for _ in range(3):
            desk.later(60)
            await desk.round()
        [batch] = batches(desk, mine)
        assert [(one.values, one.probe_off) for one in batch.readings] == [({}, True)] * 3
        shown = states(desk, mine)[-1]
        assert (shown.latest, shown.probe_off_since) == ({}, batch.readings[0].measured_at)
        await measure(sqlite_records, mine, 1)
        await measure(sqlite_records, mine, 2, worn=False)
        desk.later(60)
        await desk.round()
    await everything_is_published_once(sqlite_records, desk, mine)
    assert [one.probe_off for one in batches(desk, mine)[-1].readings] == [False, True, True]


async def test_the_lag_is_what_is_not_known_to_be_in_the_rooms(
    sqlite_records: Records, desk: Desk, mine: Consultation, other: Consultation
) -> None:
    await measure(sqlite_records, mine, 3)
    await measure(sqlite_records, other, 4)
    assert await sqlite_records.feeds.lag() == 7
    desk.sender.failing[other.room_id or ""] = MForbidden(403)
    async with desk.open():
        assert await sqlite_records.feeds.lag() == 4
        desk.sender.failing.clear()
        desk.later(60)
        await desk.round()
    assert await sqlite_records.feeds.lag() == 0


async def test_publishing_logs_no_value(
    sqlite_records: Records, desk: Desk, mine: Consultation
) -> None:
    await measure(sqlite_records, mine, 3, value=88)
    with capture_logs() as logs:
        async with desk.open():
            pass
    assert {one["event"] for one in logs} == {"vitals_published", "batch_published"}
    for secret in ("88", "spo2", "heart_rate", mine.patient):
        assert secret not in str([{**one, "consultation": ""} for one in logs])
