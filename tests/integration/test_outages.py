"""Many patients that go silent together: one message, one when they are back, nobody hidden."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from bots.alerts.engine import AlarmEngine
from bots.alerts.outage import STEADY
from fajma.config import Alarms
from fajma.duty import OnCall, Roster
from fajma.events import ALARM
from fajma.language import Language
from fajma.store import Records
from fajma.store.people import Role, Staff
from fajma.store.readings import NewReading
from fajma.store.wards import Ward, WardId
from fajma.vitals import Clock, DeviceId, Kind, PatientKey, Reading

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
WARD = WardId("medecine-2")
AWA = "@awa:clinic.test"
PATIENTS = 5


class Site:
    """A ward with monitored patients, an engine, and a clock that we set."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.now = NOON
        self.engine = AlarmEngine(Alarms(), records, now=lambda: self.now)
        self.worn: dict[DeviceId, PatientKey] = {}

    async def open(self) -> None:
        await self.records.wards.add(
            Ward(WARD, "!ward:clinic.test", Language.FRENCH, "UTC", Roster((OnCall(AWA, NOON),)))
        )
        async with self.records.store.transaction() as connection:
            person = Staff(AWA, "Awa Diop", Role.DOCTOR, WARD, Language.FRENCH, NOON)
            await self.records.people.put(connection, person)
        for number in range(PATIENTS):
            patient = await self.records.patients.add(
                number=f"{number}", initials="A.D.", bed=f"{number}", account=None, ward=WARD
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
    assert await site.records.outages.all()

    await site.seconds_pass(int(STEADY.total_seconds()) + 10, sending=4)
    _, over = await site.told()
    assert "4 patients sur 5" in over
    assert "lits 4" in over
    assert await site.records.outages.all() == []
    assert await site.about_patients() == []

    await site.seconds_pass(120, sending=4)
    assert await site.about_patients() == ["no_readings"]
    assert "Lit 4" in (await site.told())[-1]


async def test_two_of_five_are_told_one_by_one(site: Site) -> None:
    await site.seconds_pass(60, sending=PATIENTS)
    await site.seconds_pass(100, sending=3)

    assert await site.about_patients() == ["no_readings", "no_readings"]
    assert await site.records.outages.all() == []


async def test_an_outage_is_told_again_while_it_lasts(site: Site) -> None:
    await site.seconds_pass(60, sending=PATIENTS)
    await site.seconds_pass(90 + int(Alarms().again_medium_s) + 5, sending=0)

    assert len(await site.told()) == 2


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
    assert "Lit 4" in (await site.told())[-1]


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
