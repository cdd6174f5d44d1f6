"""The log of facts: in one order with the readings, whoever writes when."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from fajma.errors import BugError
from fajma.facts import AgeBand, Fact, Profiled, TakenOff, TimePassed, Worn
from fajma.store import Records
from fajma.store.consultations import Consultation
from fajma.store.readings import NewReading
from fajma.vitals import Clock, DeviceId, Kind, PatientKey, Reading

Admit = Callable[..., Awaitable[Consultation]]

MINE = DeviceId("A4CF12F03B7E")
OTHER = DeviceId("A4CF12F03B7F")
NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


async def told(records: Records, patient: PatientKey | None = None) -> list[Fact]:
    sealed = await records.facts.sealed_after(0, up_to_reading=2**62, limit=1000, patient=patient)
    return [await records.facts.open(one) for one in sealed]


async def one_reading(records: Records, patient: PatientKey, number: int) -> None:
    at = NOON + timedelta(seconds=number)
    reading = Reading(MINE, at, at, Clock.DEVICE, {Kind.SPO2: Decimal(97)})
    async with records.store.transaction() as connection:
        await records.readings.append(
            connection, [NewReading(number.to_bytes(8, "big"), patient, reading)]
        )


async def note(records: Records, patient: PatientKey, *facts: Fact) -> None:
    async with records.store.transaction() as connection:
        await records.facts.append(connection, patient, *facts)


async def test_a_fact_says_after_which_reading_it_came(records: Records, admit: Admit) -> None:
    patient = (await admit(records, MINE)).patient
    start = await records.facts.head()
    await one_reading(records, patient, 1)
    await note(records, patient, TimePassed(NOON))
    await one_reading(records, patient, 2)
    await note(records, patient, TimePassed(NOON), TimePassed(NOON))

    early = await records.facts.sealed_after(start, up_to_reading=1, limit=9)
    later = await records.facts.sealed_after(early[-1].position, up_to_reading=2, limit=9)

    assert [one.after for one in (*early, *later)] == [1, 2, 2]
    assert [one.position - start for one in (*early, *later)] == [1, 2, 3]


async def test_facts_and_readings_written_at_the_same_time_have_one_order(
    records: Records, admit: Admit
) -> None:
    """A follower that takes readings first and then the facts up to there misses none."""
    patient = (await admit(records, MINE)).patient
    position = reading = await records.facts.head()
    reading = 0
    seen: list[int] = []
    writing = asyncio.gather(
        *(one_reading(records, patient, number) for number in range(40)),
        *(note(records, patient, TimePassed(NOON)) for _ in range(40)),
    )

    async def follow() -> None:
        nonlocal position, reading
        new = await records.readings.sealed_after(reading, limit=3)
        reading = new[-1].position if new else reading
        for one in await records.facts.sealed_after(position, up_to_reading=reading, limit=99):
            assert one.position == position + 1
            assert one.after <= reading
            position = one.position
            seen.append(one.after)

    async with asyncio.timeout(60):
        while not writing.done():
            await follow()
            await asyncio.sleep(0)
        await writing
        while reading < 40:
            await follow()
    await follow()

    assert len(seen) == 40
    assert seen == sorted(seen)


async def test_who_wears_a_monitor_is_told_with_the_link(records: Records, admit: Admit) -> None:
    one = (await admit(records, MINE)).patient
    other = (await admit(records, OTHER)).patient
    await records.devices.link(MINE, one, None, now=NOON)  # the same patient: nothing to tell
    await records.devices.link(MINE, other, None, now=NOON + timedelta(hours=1))

    assert [type(fact) for fact in await told(records, one)] == [Worn, TakenOff]
    assert [(type(fact), fact.device) for fact in await told(records, other)] == [  # type: ignore[union-attr]
        (Worn, OTHER),
        (Worn, MINE),
    ]


async def test_a_profile_is_told_when_it_is_not_the_usual_one_and_when_it_changes(
    records: Records,
) -> None:
    patient = await records.patients.add(
        number="1", initials="A.D.", bed="4", account=None, copd=True, now=NOON
    )
    async with records.store.transaction() as connection:
        await records.patients.change(connection, replace(patient, bed="5"), now=NOON)
        changed = replace(patient, copd=False, age_band=AgeBand.CHILD)
        await records.patients.change(connection, changed, now=NOON)
    usual = await records.patients.add(number="2", initials="B.D.", bed="4", account=None)

    assert await told(records, patient.key) == [
        Profiled(NOON, "unknown", None, copd=True),
        Profiled(NOON, "child", None, copd=False),
    ]
    assert await told(records, usual.key) == []
    assert (await records.patients.by_number("1")) == changed


async def test_a_fact_under_another_patient_does_not_open(records: Records, admit: Admit) -> None:
    one = (await admit(records, MINE)).patient
    other = (await admit(records, OTHER)).patient
    await note(records, one, TimePassed(NOON))
    await records.store.db.execute("UPDATE fact SET patient_key=$1", other)

    sealed = (await records.facts.sealed_after(0, up_to_reading=0, limit=99))[-1]
    refused = ""
    try:
        await records.facts.open(sealed)
    except BugError as error:
        refused = error.code

    assert refused
