"""What an operator sees of consultations and of their rooms."""

from __future__ import annotations

from datetime import timedelta

import pytest

from console.consultations import listing
from fajma.store import Records
from fajma.store.warnings import About
from tests.integration.hospital import AWA, MOUSSA, NOON, Hospital

LATER = NOON + timedelta(hours=1)


@pytest.fixture
async def hospital(sqlite_records: Records) -> Hospital:
    return Hospital(sqlite_records)


async def test_each_consultation_has_a_line_and_archived_ones_only_when_asked_for(
    hospital: Hospital,
) -> None:
    booked = await hospital.book(number="2")
    opened = await hospital.open(clinicians=[AWA, MOUSSA])
    archived = await hospital.open(number="3")
    await hospital.service.end(archived.id, AWA, NOON)
    await hospital.service.archive(archived.id, LATER)
    lines, wrong = await listing(hospital.records, every=False)
    assert not wrong
    assert sorted(lines) == sorted(
        [
            f"{booked.id}  booked  -  -  {AWA}  ok",
            f"{opened.id}  open  -  {opened.room_id}  {AWA},{MOUSSA}  ok",
        ]
    )
    lines, _ = await listing(hospital.records, every=True)
    assert f"{archived.id}  archived  -  {archived.room_id}  {AWA}  ok" in lines


async def test_a_room_in_trouble_says_why(hospital: Hospital) -> None:
    opened = await hospital.open()
    assert opened.room_id is not None
    warnings = hospital.records.warnings
    await warnings.set(About.ROOM_LOST, opened.room_id, ["bot_not_in_room"], now=NOON)
    await warnings.set(About.STRANGER, "!ward:clinic.test", ["@eve:x", "@eva:x"], now=NOON)
    await warnings.set(About.NOBODY_ON_DUTY, "medecine", [""], now=NOON)
    lines, wrong = await listing(hospital.records, every=False)
    assert wrong
    assert lines == [
        f"{opened.id}  open  -  {opened.room_id}  {AWA}  bot_not_in_room",
        "-  -  -  !ward:clinic.test  -  stranger",
    ]


async def test_a_room_behind_its_record_is_in_trouble(hospital: Hospital) -> None:
    opened = await hospital.open()
    hospital.matrix.fails(after=1, was_done=False)
    await hospital.service.end(opened.id, AWA, LATER)
    lines, wrong = await listing(hospital.records, every=False)
    assert wrong
    assert lines[0].endswith("room_follows_later")
