"""Who wears a monitor: from now on, since a moment in the past, and no more."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from appservice.api.models import PatientMonitor
from appservice.patients import PatientService, moment
from bridges.mqtt_vitals.clocks import Arrival
from bridges.mqtt_vitals.ingest import Ingest, Message
from console.readings import replay
from fajma.duty import Roster
from fajma.errors import InputError
from fajma.facts import AgeBand, TakenOff, Worn
from fajma.language import Language
from fajma.store import Records
from fajma.store.wards import Ward
from fajma.vitals import Age, DeviceId, Kind
from fajma.wire import V1_TOPIC, encode_v1

DEVICE = DeviceId("A4CF12F03B7E")
NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
PARIS = ZoneInfo("Europe/Paris")  # an hour ahead of UTC then


def message(at: datetime) -> Message:
    values = {Kind.HEART_RATE: Decimal(78), Kind.SPO2: Decimal(97), Kind.TEMPERATURE: Decimal(37)}
    payload = encode_v1(DEVICE, int(at.timestamp() * 1000), values)
    return Message(V1_TOPIC.format(device=DEVICE), payload, Arrival(at, at.timestamp()), _nothing)


def _nothing() -> None:
    """The broker wants no acknowledgement."""


def hour(number: float) -> datetime:
    return NOON.replace(hour=0) + timedelta(hours=number)


@pytest.fixture
async def patients(records: Records) -> PatientService:
    """Patients 1 and 2 in a ward; nothing here needs Matrix."""
    nobody: Any = None
    await records.wards.add(Ward("m", "!m:clinic.test", Language.FRENCH, PARIS.key, Roster()))
    for number in ("1", "2"):
        await records.patients.add(
            number=number,
            initials="A.D.",
            bed=number,
            account=None,
            ward="m",
            age_band=AgeBand.ADULT,
            now=hour(8),
        )
    return PatientService(records, nobody, nobody, nobody)


async def wearers(records: Records, *moments: datetime) -> list[str | None]:
    """Whose number it was at these moments, by the database and by ingest's own memory."""
    fleet = records.devices.fleet()
    async with records.store.transaction() as connection:
        await fleet.refresh(connection)
    found: list[str | None] = []
    for at in moments:
        worn = await records.devices.wearing(DEVICE, at)
        assert worn == fleet.wearing(DEVICE, at)
        patient = await records.patients.get(worn.patient) if worn else None
        found.append(patient.number if patient else None)
    return found


async def test_what_was_measured_before_the_link_is_the_patients_once_it_is_said_since_when(
    records: Records, patients: PatientService
) -> None:
    ingest = Ingest(records)
    await ingest.commit([message(hour(9)), message(hour(10)), message(hour(11))])
    await patients.wear("1", DEVICE, now=NOON)
    assert await replay(records) == (0, {"unknown_device": 3})
    await patients.wear("1", DEVICE, since="11:00", now=NOON)  # ten by UTC
    assert await replay(records) == (2, {"unknown_device": 1})
    stored = [one.reading for one in await records.readings.after(0, limit=9)]
    assert [(one.measured_at, one.age) for one in stored] == [
        (hour(10), Age.LATE),
        (hour(11), Age.LATE),
    ]
    assert (await ingest.commit([message(hour(10.5))])).stored == 1  # it has noticed
    [*_, last] = [one for one in await records.audit.latest() if one.action == "patient.wear"]
    assert last.detail == {"device": DEVICE, "since": hour(10).isoformat()}


async def test_only_what_is_free_is_filled_and_the_engine_watches_from_now_on(
    records: Records, patients: PatientService
) -> None:
    await patients.wear("1", DEVICE, now=hour(9))
    await patients.take_off("1", DEVICE, now=hour(10))
    await patients.wear("1", DEVICE, since="2026-03-02T08:00Z", now=hour(11))
    every = [hour(7.9), hour(8), hour(9), hour(9.9), hour(10), hour(11), hour(13)]
    assert await wearers(records, *every) == [None, "1", "1", "1", "1", "1", "1"]
    patient = await records.patients.by_number("1")
    assert patient is not None
    sealed = await records.facts.sealed_after(0, up_to_reading=9, limit=9, patient=patient.key)
    facts = [await records.facts.open(one) for one in sealed]
    assert [one for one in facts if isinstance(one, Worn | TakenOff)] == [
        Worn(hour(9), DEVICE),
        TakenOff(hour(10), DEVICE),
        Worn(hour(11), DEVICE),
    ]


async def test_what_another_wore_since_then_stays_the_others(
    records: Records, patients: PatientService
) -> None:
    await patients.wear("1", DEVICE, now=hour(9))
    for off in (False, True):
        if off:
            await patients.take_off("1", DEVICE, now=hour(10))
        with pytest.raises(InputError) as caught:
            await patients.wear("2", DEVICE, since="2026-03-02T09:30Z", now=hour(11))
        assert caught.value.code == "monitor_worn_by_another"
    assert await wearers(records, hour(9.5), hour(10.5)) == ["1", None]
    await patients.wear("2", DEVICE, since="2026-03-02T10:00Z", now=hour(11))
    assert await wearers(records, hour(9.5), hour(10.5), hour(12)) == ["1", "2", "2"]


async def test_a_monitor_that_is_taken_off_is_nobodys_and_only_its_wearer_can_take_it_off(
    records: Records, patients: PatientService
) -> None:
    await patients.wear("1", DEVICE, now=hour(9))
    with pytest.raises(InputError) as caught:
        await patients.take_off("2", DEVICE, now=hour(10))
    assert caught.value.code == "monitor_not_worn"
    await patients.take_off("1", DEVICE, now=hour(10))
    assert await wearers(records, hour(9), hour(10)) == ["1", None]
    assert (await records.audit.latest())[-1].action == "patient.take_off"
    assert (await patients.monitors()) == {}


@pytest.mark.parametrize(
    ("stated", "at"),
    [
        ("13:00", hour(12)),
        ("00:30", hour(-0.5)),
        ("2026-03-01T22:00", hour(-3)),
        ("2026-03-01T22:00+00:00", hour(-2)),
    ],
)
def test_a_moment_is_today_and_in_the_wards_zone_unless_stated(stated: str, at: datetime) -> None:
    assert moment(stated, PARIS, NOON) == at


@pytest.mark.parametrize(
    ("stated", "code"),
    [
        ("13:01", "since_in_future"),
        ("2026-03-03T00:00Z", "since_in_future"),
        ("25:00", "since_invalid"),
        ("yesterday", "since_invalid"),
        ("0001-01-01T00:00", "since_invalid"),
    ],
)
def test_a_moment_that_cannot_be_is_refused(stated: str, code: str) -> None:
    with pytest.raises(InputError) as caught:
        moment(stated, PARIS, NOON)
    assert caught.value.code == code


def test_a_monitor_is_not_taken_off_since_some_time() -> None:
    with pytest.raises(ValueError, match="off: "):
        PatientMonitor(number="1", device=DEVICE, since="14:00", off=True)


# --- a clock of ours that was put back -----------------------------------------------------------


async def whose(records: Records, *, after: int = 0) -> list[str]:
    """Whose number each reading of the log is given to."""
    patients = {one.key: one.number for one in await records.patients.all()}
    return [patients[one.patient] for one in await records.readings.after(after, limit=99)]


async def test_after_our_clock_was_put_back_what_is_live_belongs_to_whoever_wears_it_now(
    records: Records, patients: PatientService
) -> None:
    """The second got the monitor at noon, when our clock said two in the afternoon."""
    clock = hour(9)
    ingest = Ingest(records, now=lambda: clock)
    await patients.wear("1", DEVICE, now=clock)
    await patients.wear("2", DEVICE, now=hour(14))

    for clock in (hour(12.1), hour(13), hour(13.99), hour(14), hour(14.1)):
        assert (await ingest.commit([message(clock)])).stored == 1
    # Whose the late ones are nobody can tell: they wait for a person.
    clock = hour(12.2)
    assert (await ingest.commit([message(hour(11))])).refused == {"unknown_device": 1}
    # Once the clock is beyond, all is as ever, also for what came before the link was made.
    clock = hour(15)
    assert (await ingest.commit([message(hour(10))])).stored == 1

    assert await whose(records) == ["2"] * 5 + ["1"]
    _, before = await patients.wear("1", DEVICE, now=hour(12.5))
    assert before is not None
    assert before.number == "2"
    # The first has it again: what the second's link says of the afternoon is void.
    for clock in (hour(12.6), hour(14.5)):
        await ingest.commit([message(clock)])
    assert await whose(records, after=6) == ["1", "1"]
    assert await wearers(records, hour(10), hour(14.5)) == ["1", "1"]


async def test_after_our_clock_was_put_back_a_monitor_that_was_taken_off_is_nobodys(
    records: Records, patients: PatientService
) -> None:
    ingest = Ingest(records, now=lambda: NOON)
    await patients.wear("1", DEVICE, now=hour(9))
    await patients.take_off("1", DEVICE, now=hour(14))
    assert (await ingest.commit([message(NOON)])).refused == {"unknown_device": 1}


async def test_two_machines_whose_clocks_differ_a_little_agree_who_wears_a_monitor(
    records: Records, patients: PatientService
) -> None:
    a_second_behind = NOON - timedelta(seconds=1)
    ingest = Ingest(records, now=lambda: a_second_behind)
    await patients.wear("1", DEVICE, now=hour(9))
    await patients.wear("2", DEVICE, now=NOON)
    await ingest.commit([message(a_second_behind)])
    await ingest.commit([message(hour(11))])
    assert await whose(records) == ["2", "1"]
