"""Many patients that go silent together: one message, one when they are back, nobody hidden."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from bots.alerts.engine import AlarmEngine
from bots.alerts.outage import STEADY
from fajma.config import Alarms
from fajma.duty import OnCall, Roster
from fajma.events import ALARM
from fajma.language import Language
from fajma.store import Records
from fajma.store.outages import Outage
from fajma.store.people import Role, Staff
from fajma.store.readings import NewReading
from fajma.store.wards import Ward, WardId
from fajma.vitals import Clock, DeviceId, Kind, PatientKey, Reading
from tests.integration.scene import Scene

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
WARD, OTHER = WardId("medecine-2"), WardId("chirurgie")
ROOM = "!ward:clinic.test"
AWA, IBOU = "@awa:clinic.test", "@ibou:clinic.test"
BEDS = ("10", "2", "3", "4", "11")
PATIENTS = len(BEDS)


class Site:
    """A ward with monitored patients, an engine, and a clock that we set."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.now = NOON
        self.engine = AlarmEngine(Alarms(), records, now=lambda: self.now)
        self.scene = Scene(records)
        self.worn: dict[DeviceId, PatientKey] = {}

    async def open(self) -> None:
        await self.records.wards.add(
            Ward(WARD, "!ward:clinic.test", Language.FRENCH, "UTC", Roster((OnCall(AWA, NOON),)))
        )
        async with self.records.store.transaction() as connection:
            for account, ward in ((AWA, WARD), (IBOU, None)):
                person = Staff(account, "Awa Diop", Role.DOCTOR, ward, Language.FRENCH, NOON)
                await self.records.people.put(connection, person)
        for number, bed in enumerate(BEDS):
            patient = await self.records.patients.add(
                number=f"{number}", initials="A.D.", bed=bed, account=None, ward=WARD
            )
            device = DeviceId(f"A4CF12F0000{number}")
            await self.records.devices.link(device, patient.key, None, now=NOON)
            self.worn[device] = patient.key

    async def seconds_pass(self, seconds: int, *, sending: int) -> None:
        """Second by second; the first monitors send one reading each 5 s."""
        for _ in range(seconds):
            self.now += timedelta(seconds=1)
            if self.now.second % 5 == 0:
                async with self.records.store.transaction() as connection:
                    for device in list(self.worn)[:sending]:
                        values = {Kind.SPO2: Decimal(97)}
                        reading = Reading(device, self.now, self.now, Clock.DEVICE, values)
                        record = f"{self.now.timestamp():.0f}".encode()[-8:].rjust(8)
                        new = NewReading(record, self.worn[device], reading)
                        await self.records.readings.append(connection, [new])
            while await self.engine.advance() or await self.engine.look_at_time():
                pass

    async def types(self, sender: str, line: str, **more: Any) -> list[str]:
        self.scene.now = self.now
        return await self.scene.types(sender, line, room_id=ROOM, **more)

    async def ticks(self, sender: str, event_id: str) -> list[str]:
        self.scene.now = self.now
        before = len(await self.scene.answers(ROOM))
        await self.scene.reacts(sender, event_id, room_id=ROOM, key="✅")
        return (await self.scene.answers(ROOM))[before:]

    async def last_arrives(self, event_id: str) -> None:
        """Our newest message is in the room."""
        *_, newest = await self.records.outbox.waiting(ROOM)
        await self.records.outbox.delivered(newest, event_id)

    async def told(self) -> list[str]:
        outbox = self.records.outbox
        ids = await outbox.waiting("!ward:clinic.test")
        return [str((await outbox.get(one)).content["body"]) for one in ids]

    async def about_patients(self) -> list[str]:
        outbox = self.records.outbox
        ids = await outbox.waiting("!ward:clinic.test")
        contents = [(await outbox.get(one)).content for one in ids]
        return [one[ALARM]["trouble"] for one in contents if ALARM in one]


@pytest.fixture
async def site(sqlite_records: Records) -> Site:
    site = Site(sqlite_records)
    await site.open()
    return site


async def test_a_ward_that_goes_silent_is_told_once_and_who_stays_away_rings_for_himself(
    site: Site,
) -> None:
    await site.seconds_pass(60, sending=PATIENTS)
    await site.seconds_pass(120, sending=0)
    [one] = await site.told()
    assert one.startswith("ALARME TECHNIQUE")
    assert "5 patients sur 5" in one
    assert "lits 2 A.D., 3 A.D., 4 A.D., 10 A.D., 11 A.D." in one, "as people count, not as text"
    assert "coupure depuis 12:01 UTC+0" in one, "the last readings, not when it was noticed"
    assert await site.records.outages.all()

    await site.seconds_pass(int(STEADY.total_seconds()) + 10, sending=4)
    _, over = await site.told()
    assert "4 patients sur 5 sont de nouveau surveillés" in over
    assert "mesures absentes de 12:01 UTC+0 à 12:03 UTC+0" in over
    assert "lit 11 A.D." in over
    assert await site.records.outages.all() == []
    assert await site.about_patients() == []

    await site.seconds_pass(120, sending=4)
    assert await site.about_patients() == ["no_readings"]
    assert "Lit 11" in (await site.told())[-1]


async def test_two_of_five_are_told_one_by_one(site: Site) -> None:
    await site.seconds_pass(60, sending=PATIENTS)
    await site.seconds_pass(100, sending=3)

    assert await site.about_patients() == ["no_readings", "no_readings"]
    assert await site.records.outages.all() == []


async def test_an_outage_is_told_again_while_it_lasts(site: Site) -> None:
    await site.seconds_pass(60, sending=PATIENTS)
    await site.seconds_pass(90 + int(Alarms().again_medium_s) + 5, sending=0)

    assert len(await site.told()) == 2


UNTIL_TOLD_AGAIN = int(Alarms().again_medium_s) + 5


async def test_who_takes_care_of_an_outage_in_the_wards_room_ends_its_reminders(site: Site) -> None:
    await site.seconds_pass(60, sending=PATIENTS)
    await site.seconds_pass(100, sending=0)
    [refused] = await site.types(IBOU, "!vu")
    assert "de ce service" in refused
    [answer] = await site.types(AWA, "!vu")
    assert answer.startswith("✓ Vu par Awa Diop")
    assert "lits 2 A.D., 3 A.D." in answer
    [again] = await site.types(AWA, "!vu")
    assert "s'en occupe déjà" in again

    await site.seconds_pass(UNTIL_TOLD_AGAIN, sending=0)
    assert len(await site.told()) == 1
    [act] = [one for one in await site.scene.audit() if one.action == "alarm.acknowledge"]
    assert (act.actor, act.subject) == (AWA, ROOM)
    assert act.detail == {"outage": "5", "by": "command"}


async def test_a_ward_answers_for_its_own_patients_and_its_clinicians_ones(
    records: Records,
) -> None:
    site = Site(records)
    await site.open()
    own, without, elsewhere, bare, *_ = site.worn.values()
    await records.wards.add(Ward(OTHER, None, Language.FRENCH, "UTC", Roster()))
    change = "UPDATE patient SET ward_id=$2 WHERE patient_key=$1"
    for patient, ward in ((without, None), (elsewhere, OTHER), (bare, WARD)):
        await records.store.db.execute(change, patient, ward)
    await records.store.db.execute("DELETE FROM device_link WHERE patient_key=$1", bare)
    await records.consultations.add(
        patient=without, clinicians=[AWA], language=Language.FRENCH, time_zone="UTC", now=NOON
    )
    monitored = await records.wards.monitored(WARD)
    assert {own, without} <= monitored
    assert monitored.isdisjoint({elsewhere, bare})
    for patient in monitored:
        responsible = await records.wards.responsible(patient)
        assert responsible is not None
        assert responsible.id == WARD


async def test_an_answer_holds_until_more_patients_are_concerned(records: Records) -> None:
    await records.wards.add(Ward(WARD, ROOM, Language.FRENCH, "UTC", Roster()))
    outages, later = records.outages, NOON + timedelta(minutes=10)
    one = Outage(WARD, NOON, NOON, frozenset({PatientKey("a"), PatientKey("b")}), 3)
    async with records.store.transaction() as connection:
        await outages.keep(connection, one)
    async with records.store.transaction() as connection:
        assert await outages.told_again(connection, WARD, NOON)
        assert await outages.answer(connection, WARD, later) == replace(one, answered_at=later)
        assert await outages.answer(connection, WARD, later) is None
        assert not await outages.told_again(connection, WARD, later)
    worse = replace(one, patients=one.patients | {PatientKey("c")}, told_at=later)
    async with records.store.transaction() as connection:
        await outages.keep(connection, worse)
        assert await outages.told_again(connection, WARD, later)
    assert await outages.of(WARD) == worse


async def test_a_tick_on_the_message_of_an_outage_does_the_same(site: Site) -> None:
    await site.seconds_pass(60, sending=PATIENTS)
    await site.seconds_pass(100, sending=0)
    await site.last_arrives("$outage")
    assert await site.ticks(IBOU, "$outage") == []
    [answer] = await site.ticks(AWA, "$outage")
    assert answer.startswith("✓ Vu par Awa Diop")
    assert await site.ticks(AWA, "$outage") == []

    await site.seconds_pass(UNTIL_TOLD_AGAIN, sending=0)
    assert await site.told() == []
    [act] = [one for one in await site.scene.audit() if one.action == "alarm.acknowledge"]
    assert act.detail == {"outage": "5", "by": "reaction"}


async def test_a_tick_on_an_outage_of_before_does_not_answer_the_one_of_now(site: Site) -> None:
    await site.seconds_pass(60, sending=PATIENTS)
    await site.seconds_pass(100, sending=0)
    await site.last_arrives("$outage")
    await site.seconds_pass(int(STEADY.total_seconds()) + 10, sending=PATIENTS)
    await site.seconds_pass(200, sending=0)

    assert await site.ticks(AWA, "$outage") == []
    [now] = await site.records.outages.all()
    assert now.answered_at is None


async def test_who_joins_an_outage_is_told_at_once_whoever_has_answered(site: Site) -> None:
    await site.seconds_pass(60, sending=PATIENTS)
    await site.seconds_pass(100, sending=1)
    assert "lits 2 A.D., 3 A.D., 4 A.D., 11 A.D." in (await site.told())[-1]
    await site.types(AWA, "!vu")
    await site.seconds_pass(95, sending=0)

    _, worse = await site.told()
    assert "5 patients sur 5" in worse
    assert "10 A.D." in worse
    assert await site.about_patients() == [], "told as one"
    await site.seconds_pass(UNTIL_TOLD_AGAIN, sending=0)
    assert len(await site.told()) == 3


async def test_the_open_alarms_of_a_ward_begin_with_its_outage_and_whom_it_leaves_alone(
    site: Site,
) -> None:
    await site.seconds_pass(60, sending=PATIENTS)
    await site.seconds_pass(100, sending=0)
    [shown] = await site.types(AWA, "!alarmes")
    head, line = shown.splitlines()
    assert head.endswith(": 1")
    assert line.startswith("ALARME TECHNIQUE")
    assert "lits 2 A.D., 3 A.D., 4 A.D., 10 A.D., 11 A.D." in line
    [of_one] = await site.types(AWA, "!alarmes lit 11")
    assert "11 A.D." in of_one

    await site.types(AWA, "!vu")
    await site.seconds_pass(10, sending=1)
    [shown] = await site.types(AWA, "!alarmes")
    assert shown.splitlines()[1].startswith("✓ ALARME TECHNIQUE")


async def test_a_patient_belongs_to_the_outage_of_the_ward_whose_team_answers_for_him(
    site: Site,
) -> None:
    # Two of the ward's own, and three without a ward whose doctor is of it.
    for patient in list(site.worn.values())[2:]:
        await site.records.store.db.execute(
            "UPDATE patient SET ward_id=NULL WHERE patient_key=$1", patient
        )
        opened = await site.records.consultations.add(
            patient=patient, clinicians=[AWA], language=Language.FRENCH, time_zone="UTC", now=NOON
        )
        await site.records.consultations.open_in(opened.id, f"!{patient}:clinic.test")
    await site.seconds_pass(60, sending=PATIENTS)
    await site.seconds_pass(100, sending=0)

    [one] = await site.told()
    assert "5 patients sur 5" in one


async def test_a_short_return_does_not_end_an_outage(site: Site) -> None:
    await site.seconds_pass(60, sending=PATIENTS)
    await site.seconds_pass(100, sending=0)
    await site.seconds_pass(10, sending=3)
    await site.seconds_pass(int(STEADY.total_seconds()), sending=0)

    assert len(await site.told()) == 1
    assert await site.records.outages.all()


async def test_after_our_own_start_monitors_have_time_to_be_heard(site: Site) -> None:
    await site.seconds_pass(60, sending=PATIENTS)
    site.now += timedelta(minutes=10)
    site.engine = AlarmEngine(Alarms(), site.records, now=lambda: site.now)
    await site.seconds_pass(10, sending=0)
    await site.seconds_pass(60, sending=PATIENTS)

    assert await site.told() == []


async def test_a_planned_stop_raises_no_storm_and_hides_nobody_afterwards(site: Site) -> None:
    await site.seconds_pass(60, sending=PATIENTS)
    async with site.records.store.transaction() as connection:
        await site.records.maintenance.start(
            connection,
            now=site.now,
            until=site.now + timedelta(minutes=5),
            reason="upgrade",
        )
    await site.seconds_pass(5 * 60, sending=0)
    assert await site.told() == []

    await site.seconds_pass(20, sending=PATIENTS - 1)
    await site.seconds_pass(60, sending=PATIENTS - 1)
    assert await site.about_patients() == ["no_readings"]
    assert "Lit 11" in (await site.told())[-1]


async def test_a_patient_whose_key_is_gone_keeps_nobody_else_s_silence_from_being_told(
    site: Site,
) -> None:
    await site.seconds_pass(60, sending=PATIENTS)
    gone, other = list(site.worn.values())[-2:]
    await site.records.store.db.execute("DELETE FROM patient_key WHERE patient_key=$1", gone)
    fresh = Records(site.records.store, site.records.site_key)  # as after a restart: no key cached
    site.engine = AlarmEngine(Alarms(), fresh, now=lambda: site.now)
    await site.seconds_pass(120, sending=3)

    outbox = site.records.outbox
    told = [await outbox.get(one) for one in await outbox.waiting("!ward:clinic.test")]
    # That no alarm of the first will come is told too, without what his key would open.
    without, silent = told
    assert without.patient is None
    assert "fiche ne s'ouvre pas" in without.content["body"]
    assert silent.patient == other
    assert silent.content[ALARM]["trouble"] == "no_readings"
