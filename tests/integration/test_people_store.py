"""People, wards, pinned identities, warnings and audit over SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import base64
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from mautrix.util.async_db import Database, UpgradeTable

from console.leak_scan import Needle, scan
from fajma import duty
from fajma.config import DatabaseSettings
from fajma.duty import Roster
from fajma.errors import BugError
from fajma.facts import AgeBand
from fajma.language import Language
from fajma.life import ParticipantRole
from fajma.sealing import SiteKey
from fajma.store import Records, Store, to_ms
from fajma.store.alarms import Delivery, SentBy
from fajma.store.audit import OPERATOR
from fajma.store.consultations import Consultation, Participant
from fajma.store.devices import Wearing
from fajma.store.keys import PatientKeys
from fajma.store.patients import Patient
from fajma.store.people import Role, Staff, named
from fajma.store.pins import APPROVAL_VALID, Changed, Pins, new_epoch
from fajma.store.schema import upgrade_table
from fajma.store.site import site_key
from fajma.store.wards import Ward, WardId
from fajma.store.warnings import About
from fajma.trust import REVOKED, CrossSigningSeeds
from fajma.vitals import DeviceId, PatientKey
from tests.lying_homeserver import Phone, answer_about

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
MEDICINE = WardId("medecine-2")
SURGERY = WardId("chirurgie")
AWA, MOUSSA, FATOU, IBOU = (f"@{name}:clinic.test" for name in ("awa", "moussa", "fatou", "ibou"))
FIRST, SECOND, THIRD = "first" * 8, "second" * 7, "third" * 8
DATABASE_ERRORS = (sqlite3.Error, asyncpg.PostgresError)


class PulledPlugError(Exception):
    """What the tests interrupt a transaction with."""


def at(second: float) -> datetime:
    return NOON + timedelta(seconds=second)


def staff(
    account: str,
    *,
    role: Role = Role.DOCTOR,
    ward: WardId | None = MEDICINE,
    left_at: datetime | None = None,
) -> Staff:
    return Staff(account, account[1:].partition(":")[0], role, ward, Language.FRENCH, NOON, left_at)


@asynccontextmanager
async def opened_again(database: DatabaseSettings, site_key_file: Path) -> AsyncIterator[Records]:
    store = await Store.open(database)
    try:
        yield Records(store, await site_key(store, site_key_file))
    finally:
        await store.close()


@pytest.fixture
async def elsewhere(
    database: DatabaseSettings, records: Records, site_key_file: Path
) -> AsyncIterator[Records]:
    """Another process over the same database; SQLite is one process's, so it is the same one."""
    if records.store.is_sqlite:
        yield records
        return
    async with opened_again(database, site_key_file) as again:
        yield again


async def open_ward(records: Records, ward: WardId = MEDICINE) -> Ward:
    opened = Ward(ward, f"!{ward}:clinic.test", Language.FRENCH, "Africa/Dakar", Roster())
    await records.wards.add(opened)
    return opened


async def employ(records: Records, *people: Staff) -> None:
    async with records.store.transaction() as connection:
        for person in people:
            await records.people.put(connection, person)


async def consult(records: Records, patient: Patient, *clinicians: str) -> Consultation:
    opening = await records.consultations.add(
        patient=patient.key,
        clinicians=clinicians,
        language=Language.FRENCH,
        time_zone="Africa/Dakar",
        now=NOON,
    )
    await records.consultations.open_in(opening.id, f"!{opening.id}:clinic.test")
    opened = await records.consultations.get(opening.id)
    assert opened is not None
    return opened


# --- the upgrade of a database in use ------------------------------------------------------------


async def test_the_second_schema_keeps_every_row_of_the_first(
    database: DatabaseSettings, site_key_file: Path
) -> None:
    legacy = SiteKey(base64.b64decode(site_key_file.read_text(encoding="ascii")))
    patient, spare = PatientKey("11" * 16), PatientKey("22" * 16)
    await fill_first_schema(database, legacy, patient, spare)

    async with opened_again(database, site_key_file) as records:
        assert await records.store.db.fetchval("SELECT version FROM fajma_version") >= 2
        kept = await records.patients.by_number("4711")
        assert kept == Patient(patient, "4711", "A.D.", "4", "@patient:clinic.test")
        assert kept.age_band is AgeBand.UNKNOWN
        assert (await records.patients.all(MEDICINE)) == []

        worn = Wearing(patient, (await records.consultations.open_ones())[0].id)
        assert await records.devices.wearing(DeviceId("OLD"), at(5)) == worn
        assert await records.devices.wearing(DeviceId("OLD"), at(10)) is None
        assert await records.devices.wearing(DeviceId("NEW"), at(1e6)) == worn
        opened = (await records.consultations.open_ones())[0]
        assert opened.participants == (Participant(AWA, ParticipantRole.CLINICIAN, invited=True),)
        assert (opened.admitted_at, opened.shown) == (NOON, opened.revision)
        assert await records.audience.of("!r:clinic.test") == {AWA, "@patient:clinic.test"}

        assert await records.outbox.counts() == (2, 1)
        assert await records.outbox.rooms_waiting() == ["!r:clinic.test"]
        assert await records.outbox.waiting("!r:clinic.test") == ["waits"]
        assert await records.outbox.rooms_waiting(SentBy.HOST) == []
        assert await records.outbox.event_of("sent") == "$event"
        waits = await records.outbox.get("waits")
        assert waits == Delivery("waits", "!r:clinic.test", patient, {"body": "waits"}, at(2))

        # What is new can be done with what is old.
        ward = await open_ward(records)
        async with records.store.transaction() as connection:
            await records.patients.change(connection, replace(kept, ward=ward.id, account=None))
            await records.outbox.add(
                connection, Delivery("next", "!r:clinic.test", None, {}, NOON, SentBy.HOST)
            )
            await records.audit.note(
                connection, actor=OPERATOR, action="test", subject=ward.id, now=NOON
            )
        assert await records.outbox.waiting("!r:clinic.test", sender=SentBy.HOST) == ["next"]
        assert await records.store.db.fetchval("SELECT MAX(position) FROM outbox") == 3
        assert [one.position for one in await records.audit.latest()] == [1]
        await records.devices.link(DeviceId("NEW"), spare, None, now=at(2e6))
        assert await records.devices.wearing(DeviceId("NEW"), at(2e6)) == Wearing(spare, None)


async def test_the_tables_that_were_made_anew_still_refuse_what_cannot_be(
    database: DatabaseSettings, site_key_file: Path
) -> None:
    patient, spare = PatientKey("11" * 16), PatientKey("22" * 16)
    legacy = SiteKey(base64.b64decode(site_key_file.read_text(encoding="ascii")))
    await fill_first_schema(database, legacy, patient, spare)
    link = "INSERT INTO device_link (device_id, patient_key, linked_from) VALUES ('NEW', $1, $2)"
    async with opened_again(database, site_key_file) as records:
        with pytest.raises(DATABASE_ERRORS):
            await records.store.db.execute(link, "nobody", 0)
        with pytest.raises(DATABASE_ERRORS):
            await records.store.db.execute(link, patient, to_ms(NOON))
        with pytest.raises(DATABASE_ERRORS):
            async with records.store.transaction() as connection:
                await records.outbox.add(connection, Delivery("sent", "!r", None, {}, NOON))
        assert await records.outbox.counts() == (2, 1)


async def fill_first_schema(
    database: DatabaseSettings, site_key: SiteKey, patient: PatientKey, spare: PatientKey
) -> None:
    """A database as the first release leaves it: one patient in a consultation, one in none."""
    first = UpgradeTable(version_table_name="fajma_version", database_name="fajma")
    first.upgrades = upgrade_table.upgrades[:1]
    if database.url.startswith("sqlite"):
        Path(urlsplit(database.url).path).parent.mkdir(parents=True)
        args = {"min_size": 1, "init_commands": ["PRAGMA foreign_keys = ON"]}
    else:
        args = {"min_size": 1, "max_size": 2}
    db = Database.create(database.url, upgrade_table=first, db_args=args)
    await db.start()
    keys = PatientKeys(Store(db), site_key)
    for key, number in ((patient, "4711"), (spare, "4712")):
        sealer = await keys.create(key)
        content = f'{{"number":"{number}","initials":"A.D.","bed":"4"}}'.encode()
        await db.execute(
            "INSERT INTO patient (patient_key, number_fingerprint, account, sealed)"
            " VALUES ($1, $2, $3, $4)",
            key,
            site_key.fingerprint(b"patient number", number.encode()),
            "@patient:clinic.test" if key == patient else None,
            sealer.seal(content, place=f"patient/{key}"),
        )
    await db.execute(
        "INSERT INTO consultation (consultation_id, patient_key, room_id, status, language,"
        " time_zone, opened_at) VALUES ('c1', $1, '!r:clinic.test', 'open', 'fr', 'UTC', $2)",
        patient,
        to_ms(NOON),
    )
    await db.execute("INSERT INTO consultation_clinician VALUES ('c1', $1)", AWA)
    for device, ended in (("OLD", to_ms(at(10))), ("NEW", None)):
        await db.execute(
            "INSERT INTO device_link (device_id, consultation_id, patient_key, linked_from,"
            " linked_to) VALUES ($1, 'c1', $2, $3, $4)",
            device,
            patient,
            to_ms(NOON),
            ended,
        )
    sealer = await keys.get(patient)
    for position, name, event in ((1, "sent", "$event"), (2, "waits", None)):
        await db.execute(
            "INSERT INTO outbox (position, delivery_id, room_id, patient_key, created_at, event_id,"
            " sealed) VALUES ($1, $2, '!r:clinic.test', $3, $4, $5, $6)",
            position,
            name,
            patient,
            to_ms(at(position)),
            event,
            sealer.seal(f'{{"body":"{name}"}}'.encode(), place=f"outbox/{name}"),
        )
    await db.execute("UPDATE log_head SET position=2 WHERE log='outbox'")
    await db.stop()


# --- staff and names -----------------------------------------------------------------------------


async def test_a_person_comes_back_as_kept_also_after_leaving(records: Records) -> None:
    await open_ward(records)
    awa = replace(staff(AWA, role=Role.NURSE), name="Awa 'Ndèye' Diop")
    await employ(records, awa, staff(MOUSSA, ward=None, role=Role.OPERATOR))
    assert await records.people.get(AWA) == awa
    assert await records.people.get(FATOU) is None
    assert [one.account for one in await records.people.active()] == [AWA, MOUSSA]
    assert await records.people.team(MEDICINE) == [awa]

    left = replace(awa, left_at=at(1))
    await employ(records, left)
    assert await records.people.get(AWA) == left
    assert [one.account for one in await records.people.active()] == [MOUSSA]
    assert [one.account for one in await records.people.all()] == [AWA, MOUSSA]
    assert await records.people.team(MEDICINE) == []


async def test_a_sealed_name_does_not_open_under_another_account(records: Records) -> None:
    await employ(records, staff(AWA, ward=None), staff(MOUSSA, ward=None))
    await records.store.db.execute(
        "UPDATE staff SET sealed=(SELECT sealed FROM staff WHERE account=$1) WHERE account=$2",
        AWA,
        MOUSSA,
    )
    with pytest.raises(BugError) as caught:
        await records.people.get(MOUSSA)
    assert caught.value.code == "unsealing_failed"


def test_a_person_is_written_with_our_own_name_and_always_the_account() -> None:
    assert named(None, AWA) == AWA
    assert named(replace(staff(AWA), name="Awa Diop"), AWA) == f"Awa Diop ({AWA})"
    arabic = named(replace(staff(AWA), name="عوا"), AWA)
    assert arabic.startswith("\N{FIRST STRONG ISOLATE}")
    assert arabic.endswith(f"\N{POP DIRECTIONAL ISOLATE} ({AWA})")


async def test_no_name_stands_in_clear_in_any_table(
    database: DatabaseSettings, records: Records, tmp_path: Path
) -> None:
    await open_ward(records)
    names = {
        "staff": "Zéphyrine Quetzalcoatl",
        "audit": "Wolkenkratzer Krokodil",
        "outbox": "Xylophone Brontosaure",
        "patient": "Lit Ornithorynque",
    }
    await employ(records, replace(staff(AWA), name=names["staff"]))
    patient = await records.patients.add(
        number="HN-73915-QX", initials="Q.Z.", bed=names["patient"], account=None, ward=MEDICINE
    )
    async with records.store.transaction() as connection:
        await records.patients.change(connection, replace(patient, age_band=AgeBand.CHILD))
        await records.audit.note(
            connection, actor=AWA, action="a", subject=AWA, now=NOON, who=names["audit"]
        )
        await records.outbox.add(
            connection, Delivery("d", "!r", None, {"body": names["outbox"]}, NOON, SentBy.HOST)
        )
        roster = await records.wards.roster(connection, MEDICINE)
        await records.wards.keep(connection, MEDICINE, duty.take(roster, AWA, NOON))
    needles = [Needle.for_text(text, label=label) for label, text in names.items()]
    needles += [Needle.for_text("HN-73915-QX", label="number")]

    async def found() -> set[str]:
        if records.store.is_sqlite:
            places = [Path(urlsplit(database.url).path).parent]
        else:
            places = [tmp_path / "dump.txt"]
            places[0].write_text(await plain_dump(records.store), encoding="utf-8")
        return {leak.needle_label for leak in scan(places, needles)}

    assert await found() == set()
    # The search itself works: what is planted is found.
    await records.store.db.execute("UPDATE ward SET language=$1", names["staff"])
    assert await found() == {"staff"}


async def plain_dump(store: Store) -> str:
    """Every row of every table as PostgreSQL writes it, bytes in hexadecimal."""
    lines: list[str] = []
    for table in await store.db.fetch("SELECT tablename FROM pg_tables WHERE schemaname='public'"):
        rows = await store.db.fetch(f'SELECT t::text FROM "{table[0]}" t')  # noqa: S608 - our tables
        lines += [row[0] for row in rows]
    return "\n".join(lines)


# --- wards ---------------------------------------------------------------------------------------


async def test_changes_of_a_roster_at_the_same_moment_all_count(
    records: Records, elsewhere: Records
) -> None:
    await open_ward(records)
    accounts = [f"@nurse-{number}:clinic.test" for number in range(12)]

    async def take(through: Records, account: str) -> None:
        async with through.store.transaction() as connection:
            roster = await through.wards.roster(connection, MEDICINE)
            await through.wards.keep(connection, MEDICINE, duty.take(roster, account, NOON))

    await asyncio.gather(
        *(take(elsewhere if n % 2 else records, one) for n, one in enumerate(accounts))
    )
    ward = await records.wards.get(MEDICINE)
    assert ward is not None
    assert sorted(ward.roster.accounts) == sorted(accounts)


async def test_a_roster_that_is_not_committed_is_not_there(records: Records) -> None:
    await open_ward(records)
    with pytest.raises(PulledPlugError):
        await pull_the_plug(records)
    ward = await records.wards.get(MEDICINE)
    assert ward is not None
    assert ward.roster == Roster()
    assert await records.audit.latest() == []
    assert await records.outbox.counts() == (0, 0)


async def pull_the_plug(records: Records) -> None:
    async with records.store.transaction() as connection:
        roster = await records.wards.roster(connection, MEDICINE)
        await records.wards.keep(connection, MEDICINE, duty.take(roster, AWA, NOON))
        await records.audit.note(connection, actor=AWA, action="a", subject=AWA, now=NOON)
        await records.outbox.add(connection, Delivery("d", "!r", None, {}, NOON))
        raise PulledPlugError


async def test_the_roster_of_a_ward_that_does_not_exist_is_a_bug(records: Records) -> None:
    with pytest.raises(BugError) as caught:
        async with records.store.transaction() as connection:
            await records.wards.roster(connection, MEDICINE)
    assert caught.value.code == "ward_gone"


async def test_a_ward_is_added_once_and_found_by_its_room(records: Records) -> None:
    ward = await open_ward(records)
    await records.wards.add(replace(ward, room_id="!other:clinic.test"))
    assert await records.wards.get(MEDICINE) == ward
    assert await records.wards.in_room("!medecine-2:clinic.test") == ward
    assert await records.wards.in_room("!other:clinic.test") is None
    await records.wards.opened(MEDICINE, "!new:clinic.test")
    assert await records.wards.in_room("!new:clinic.test") is not None
    assert [one.id for one in await records.wards.all()] == [MEDICINE]


async def test_the_ward_that_answers_for_a_patient_is_his_own_or_else_a_clinicians(
    records: Records,
) -> None:
    medicine, surgery = await open_ward(records), await open_ward(records, SURGERY)
    await employ(records, staff(AWA), staff(MOUSSA, ward=SURGERY))
    lies_there = await records.patients.add(
        number="1", initials="A.D.", bed="1", account=None, ward=MEDICINE
    )
    at_home = await records.patients.add(number="2", initials="B.D.", bed="2", account=None)
    await consult(records, lies_there, MOUSSA)
    assert await records.wards.responsible(lies_there.key) == medicine
    assert await records.wards.responsible(at_home.key) is None
    await consult(records, at_home, MOUSSA)
    assert await records.wards.responsible(at_home.key) == surgery
    await employ(records, staff(MOUSSA, ward=SURGERY, left_at=NOON))
    assert await records.wards.responsible(at_home.key) is None


# --- pinned identities ---------------------------------------------------------------------------


async def accepts(records: Records, change: Changed, by: str, *, now: datetime = NOON) -> bool:
    async with records.store.transaction() as connection:
        return await records.pins.approve(connection, change, by=by, now=now)


async def change_of(records: Records, account: str = AWA) -> Changed:
    change = await records.pins.changed(account)
    assert change is not None
    return change


async def test_an_acceptance_counts_for_a_day_and_can_be_given_again(records: Records) -> None:
    for key in (FIRST, SECOND):
        await records.pins.meet({AWA: key}, now=NOON)
    change = await change_of(records)

    async def has_accepted(by: str, now: datetime) -> bool:
        async with records.store.transaction() as connection:
            return await records.pins.has_approved(connection, change, by=by, now=now)

    assert not await has_accepted(MOUSSA, NOON)
    await accepts(records, change, MOUSSA)
    assert await has_accepted(MOUSSA, NOON)
    assert not await has_accepted(FATOU, NOON)
    later = NOON + APPROVAL_VALID
    assert not await has_accepted(MOUSSA, later)
    async with records.store.transaction() as connection:
        assert not await records.pins.approve(connection, change, by=MOUSSA, now=later)
        assert await records.pins.approve(connection, change, by=FATOU, now=later)
    assert await records.pins.known([AWA]) == {AWA: SECOND}


async def test_the_first_identity_met_is_pinned_and_another_is_noted(records: Records) -> None:
    assert await records.pins.known([AWA, MOUSSA]) == {}
    await records.pins.meet({AWA: FIRST}, now=NOON)
    assert await records.pins.known([AWA, MOUSSA]) == {AWA: FIRST}
    assert await records.pins.changed(AWA) is None

    woken = records.store.hints.subscribe("trust")
    await records.pins.meet({AWA: SECOND, MOUSSA: FIRST}, now=at(1))
    assert woken.is_set()
    assert await records.pins.known([AWA, MOUSSA]) == {AWA: FIRST, MOUSSA: FIRST}
    assert await records.pins.changed(AWA) == Changed(AWA, SECOND, at(1))
    assert await records.pins.changed(MOUSSA) is None

    await records.pins.meet({AWA: SECOND}, now=at(9))
    assert await records.pins.changed(AWA) == Changed(AWA, SECOND, at(1))


async def test_only_the_newest_changed_identity_waits(records: Records) -> None:
    for moment, master in enumerate((FIRST, SECOND, THIRD)):
        await records.pins.meet({AWA: master}, now=at(moment))
    assert await records.pins.changed(AWA) == Changed(AWA, THIRD, at(2))
    [warning] = await records.warnings.open(About.IDENTITY)
    assert (warning.subject, warning.mark) == (AWA, THIRD)


async def test_of_two_identities_met_at_the_same_moment_one_is_pinned_and_one_is_noted(
    records: Records, elsewhere: Records
) -> None:
    accounts = [f"@person-{number}:clinic.test" for number in range(10)]
    for account in accounts:
        await asyncio.gather(
            records.pins.meet({account: FIRST}, now=NOON),
            elsewhere.pins.meet({account: SECOND}, now=NOON),
        )
    pinned = await records.pins.known(accounts)
    for account in accounts:
        noted = (await change_of(records, account)).master_key
        assert {pinned[account], noted} == {FIRST, SECOND}


class Interrupted(Pins):
    """Pins of a sender that is overtaken by another one between pinning and noting."""

    def __init__(self, records: Records, meanwhile: Callable[[], Awaitable[None]]) -> None:
        super().__init__(records.store)
        self._looks = 0
        self._meanwhile = meanwhile

    async def known(self, accounts: Collection[str]) -> dict[str, str]:
        found = await super().known(accounts)
        self._looks += 1
        if self._looks == 2:  # the one after pinning
            await self._meanwhile()
        return found


async def test_who_pins_an_identity_keeps_what_another_sender_noted_at_that_moment(
    records: Records,
) -> None:
    async def another_is_shown() -> None:
        await records.pins.meet({AWA: SECOND}, now=NOON)

    await Interrupted(records, another_is_shown).meet({AWA: FIRST}, now=NOON)
    assert await records.pins.known([AWA]) == {AWA: FIRST}
    assert (await change_of(records)).master_key == SECOND


async def test_the_pinned_identity_shown_again_ends_the_warning(records: Records) -> None:
    await records.pins.meet({AWA: FIRST}, now=NOON)
    await records.pins.meet({AWA: SECOND, MOUSSA: FIRST}, now=NOON)
    await records.pins.meet({MOUSSA: SECOND}, now=NOON)
    await records.pins.meet({AWA: FIRST}, now=NOON)
    assert await records.pins.changed(AWA) is None
    assert await records.pins.changed(MOUSSA) is not None


async def test_two_others_must_accept_and_each_counts_once(records: Records) -> None:
    await records.pins.meet({AWA: FIRST}, now=NOON)
    await records.pins.meet({AWA: SECOND}, now=NOON)
    change = await change_of(records)
    for by in (AWA, MOUSSA, MOUSSA, AWA):
        assert not await accepts(records, change, by)
        assert await records.pins.known([AWA]) == {AWA: FIRST}
    assert await accepts(records, change, FATOU)
    assert await records.pins.known([AWA]) == {AWA: SECOND}
    assert await records.pins.changed(AWA) is None
    await records.pins.meet({AWA: SECOND}, now=NOON)
    assert await records.pins.changed(AWA) is None


async def test_approvals_of_one_identity_do_not_count_for_another(records: Records) -> None:
    await records.pins.meet({AWA: FIRST}, now=NOON)
    await records.pins.meet({AWA: SECOND}, now=NOON)
    assert not await accepts(records, await change_of(records), MOUSSA)
    await records.pins.meet({AWA: THIRD}, now=NOON)  # swapped in meanwhile
    assert not await accepts(records, await change_of(records), FATOU)
    assert await records.pins.known([AWA]) == {AWA: FIRST}
    assert (await change_of(records)).master_key == THIRD


async def test_approvals_before_an_acceptance_or_a_revocation_are_forgotten(
    records: Records,
) -> None:
    await records.pins.meet({AWA: FIRST}, now=NOON)
    await records.pins.meet({AWA: SECOND}, now=NOON)
    assert not await accepts(records, await change_of(records), MOUSSA)
    async with records.store.transaction() as connection:
        await records.pins.revoke(connection, AWA, now=NOON)
    await records.pins.meet({AWA: SECOND}, now=NOON)
    assert not await accepts(records, await change_of(records), FATOU)
    assert await records.pins.known([AWA]) == {AWA: REVOKED + FIRST}


async def test_an_approval_of_who_has_left_since_does_not_count(records: Records) -> None:
    await employ(records, staff(MOUSSA, ward=None), staff(FATOU, ward=None))
    await records.pins.meet({AWA: FIRST}, now=NOON)
    await records.pins.meet({AWA: SECOND}, now=NOON)
    change = await change_of(records)
    assert not await accepts(records, change, MOUSSA)
    await employ(records, staff(MOUSSA, ward=None, left_at=NOON))
    assert not await accepts(records, change, FATOU)
    assert await records.pins.known([AWA]) == {AWA: FIRST}
    assert await accepts(records, change, IBOU)


async def test_two_who_accept_at_the_same_moment_are_enough(
    records: Records, elsewhere: Records
) -> None:
    for number in range(10):
        account = f"@person-{number}:clinic.test"
        await records.pins.meet({account: FIRST}, now=NOON)
        await records.pins.meet({account: SECOND}, now=NOON)
        change = await change_of(records, account)
        answers = await asyncio.gather(
            accepts(records, change, MOUSSA), accepts(elsewhere, change, FATOU)
        )
        assert sorted(answers) == [False, True]
        assert await records.pins.known([account]) == {account: SECOND}


async def test_after_a_revocation_no_identity_is_trusted_and_the_old_one_is_not_offered(
    records: Records,
) -> None:
    await records.pins.meet({AWA: FIRST}, now=NOON)
    for _ in range(2):  # a second time changes nothing
        async with records.store.transaction() as connection:
            await records.pins.revoke(connection, AWA, now=NOON)
        await records.pins.meet({AWA: FIRST}, now=NOON)
        assert await records.pins.changed(AWA) is None
        assert (await records.pins.known([AWA]))[AWA] not in (FIRST, SECOND, THIRD, "")

    await records.pins.meet({AWA: SECOND}, now=NOON)
    assert (await records.pins.known([AWA]))[AWA] not in (FIRST, SECOND)
    change = await change_of(records)
    assert change.master_key == SECOND
    assert not await accepts(records, change, MOUSSA)
    assert await accepts(records, change, FATOU)
    assert await records.pins.known([AWA]) == {AWA: SECOND}


async def test_a_stolen_identity_shown_again_after_a_new_one_was_accepted_is_not_offered(
    records: Records,
) -> None:
    await records.pins.meet({AWA: FIRST}, now=NOON)
    async with records.store.transaction() as connection:
        await records.pins.revoke(connection, AWA, now=NOON)
    await records.pins.meet({AWA: SECOND}, now=NOON)
    async with records.store.transaction() as connection:
        await records.pins.accept(connection, await change_of(records), now=NOON)
    await records.pins.meet({AWA: FIRST}, now=NOON)
    assert await records.pins.changed(AWA) is None
    await records.pins.meet({AWA: THIRD}, now=NOON)
    assert (await change_of(records)).master_key == THIRD


async def test_who_was_never_met_can_be_revoked_too(records: Records) -> None:
    async with records.store.transaction() as connection:
        await records.pins.revoke(connection, AWA, now=NOON)
    await records.pins.meet({AWA: FIRST}, now=NOON)
    assert (await records.pins.known([AWA]))[AWA] != FIRST
    assert (await change_of(records)).master_key == FIRST


async def test_a_blocked_device_stays_blocked_for_its_owner_alone(records: Records) -> None:
    for _ in range(2):
        async with records.store.transaction() as connection:
            await records.pins.block(connection, AWA, ["PHONE", "TABLET"])
    assert await records.pins.blocked(AWA) == {"PHONE", "TABLET"}
    assert await records.pins.blocked(MOUSSA) == frozenset()


# --- signed devices ------------------------------------------------------------------------------

SEEDS, USURPER = CrossSigningSeeds.generate(), CrossSigningSeeds.generate()


def shown(seeds: CrossSigningSeeds, *devices: Phone, signed: bool = True) -> dict[str, Any]:
    return answer_about(AWA, seeds, *[one.published(seeds if signed else None) for one in devices])


async def judged(records: Records, answer: dict[str, Any], *, asked_by: str = "first") -> set[str]:
    found = await records.pins.judge(answer, asked_by=asked_by, about=[AWA])
    trusted = await records.pins.trusted(AWA, asked_by=asked_by)
    assert found.get(AWA, trusted) == trusted
    return set(trusted)


async def test_what_was_judged_is_kept_for_who_asked_until_the_next_answer(
    database: DatabaseSettings, records: Records, site_key_file: Path
) -> None:
    phone, tablet = Phone(AWA, "PHONE"), Phone(AWA, "TABLET")
    assert await judged(records, shown(SEEDS, phone, tablet)) == {"PHONE", "TABLET"}
    async with opened_again(database, site_key_file) as again:
        assert await judged(again, {}) == {"PHONE", "TABLET"}
        kept = await again.pins.trusted(AWA, asked_by="first")
        assert kept == {"PHONE": phone.keys, "TABLET": tablet.keys}
    assert await judged(records, shown(SEEDS, phone)) == {"PHONE"}
    assert await judged(records, shown(SEEDS, phone, signed=False)) == set()
    # An answer to one of our senders, maybe an older one, says nothing to another.
    assert await judged(records, shown(SEEDS, phone), asked_by="second") == {"PHONE"}
    assert await judged(records, {}) == set()


async def test_a_device_whose_id_no_database_takes_is_none(records: Records) -> None:
    answer = shown(SEEDS, Phone(AWA, "A\x00B"), Phone(AWA, "PHONE"))
    assert await judged(records, answer) == {"PHONE"}


async def test_of_whom_was_not_asked_the_answer_is_not_read(records: Records) -> None:
    answer = shown(SEEDS, Phone(AWA, "PHONE"))
    assert await records.pins.judge(answer, asked_by="first", about=[MOUSSA]) == {}
    assert await records.pins.known([AWA]) == {}
    assert await records.pins.trusted(AWA, asked_by="first") == {}


async def test_devices_of_an_identity_count_from_when_it_is_accepted_until_it_is_revoked(
    records: Records,
) -> None:
    phone, new = Phone(AWA, "PHONE"), Phone(AWA, "NEW")
    assert await judged(records, shown(SEEDS, phone)) == {"PHONE"}
    assert await judged(records, shown(USURPER, new)) == set()
    async with records.store.transaction() as connection:
        await records.pins.accept(connection, await change_of(records), now=NOON)
    assert await judged(records, {}) == {"NEW"}
    async with records.store.transaction() as connection:
        await records.pins.revoke(connection, AWA, now=NOON)
    assert await judged(records, shown(USURPER, new)) == set()


async def test_the_keys_of_a_lost_device_are_refused_under_any_id_also_if_it_was_hidden_before(
    records: Records,
) -> None:
    phone, tablet = Phone(AWA, "PHONE"), Phone(AWA, "TABLET")
    await judged(records, shown(SEEDS, phone, tablet))
    await judged(records, shown(SEEDS, tablet))
    async with records.store.transaction() as connection:
        await records.pins.block(connection, AWA, ["PHONE"])
    new, other = Phone(AWA, "NEW"), Phone(AWA, "OTHER")
    twins = (
        phone.published(SEEDS, device_id="TWIN"),
        phone.published(SEEDS, device_id="SIGNS ALIKE", curve25519=other.keys.curve25519),
        new.published(SEEDS, curve25519=phone.keys.curve25519),
    )
    answer = answer_about(AWA, SEEDS, *twins, tablet.published(SEEDS))
    assert await judged(records, answer) == {"TABLET"}


async def test_an_identity_that_is_not_pinned_cannot_make_a_good_phone_count_as_lost(
    records: Records,
) -> None:
    phone, lost = Phone(AWA, "PHONE"), Phone(AWA, "LOST")
    await judged(records, shown(SEEDS, phone))
    async with records.store.transaction() as connection:
        await records.pins.block(connection, AWA, ["LOST"])
    forged = lost.published(USURPER, curve25519=phone.keys.curve25519)
    await judged(records, answer_about(AWA, USURPER, forged))
    assert await judged(records, shown(SEEDS, phone)) == {"PHONE"}


async def test_the_epoch_grows_with_every_change_of_who_may_read(
    records: Records, elsewhere: Records
) -> None:
    patient = await records.patients.add(number="1", initials="A.D.", bed="1", account=None)
    consultation = await consult(records, patient, AWA)
    await records.pins.meet({AWA: FIRST}, now=NOON)
    await records.pins.meet({AWA: SECOND}, now=NOON)
    before = await records.audience.epoch()
    change = await change_of(records)
    async with records.store.transaction() as connection:
        await records.pins.accept(connection, change, now=NOON)
    assert await records.audience.epoch() == before + 1
    async with records.store.transaction() as connection:
        await records.pins.revoke(connection, AWA, now=NOON)
    assert await records.audience.epoch() == before + 2
    async with records.store.transaction() as connection:
        await records.pins.block(connection, AWA, ["PHONE"])
    assert await records.audience.epoch() == before + 3
    async with records.store.transaction() as connection:  # what leaving does, in one transaction
        await records.people.put(connection, staff(AWA, ward=None, left_at=NOON))
        await new_epoch(connection)
    assert await records.audience.epoch() == before + 4
    async with records.store.transaction() as connection:
        await records.consultations.include(connection, consultation.id, MOUSSA, now=NOON)
    assert await elsewhere.audience.epoch() == before + 5

    async def grow(through: Records) -> None:
        async with through.store.transaction() as connection:
            await new_epoch(connection)

    await asyncio.gather(*(grow(elsewhere if n % 2 else records) for n in range(10)))
    assert await records.audience.epoch() == before + 15


# --- who may read --------------------------------------------------------------------------------


async def test_a_consultation_is_for_its_clinicians_and_its_patients_account(
    records: Records,
) -> None:
    await open_ward(records)
    partner = "@expert:partner.test"
    await employ(records, staff(AWA), staff(MOUSSA), staff(FATOU))
    patient = await records.patients.add(
        number="1", initials="A.D.", bed="1", account="@patient:clinic.test", ward=MEDICINE
    )
    other = await records.patients.add(
        number="2", initials="B.D.", bed="2", account="@other:clinic.test"
    )
    consultation = await consult(records, patient, AWA, MOUSSA, partner)
    await consult(records, other, FATOU)
    room_id = consultation.room_id
    assert room_id is not None
    everybody = {AWA, MOUSSA, partner, "@patient:clinic.test"}
    assert await records.audience.of(room_id) == everybody

    await employ(records, staff(MOUSSA, left_at=NOON))
    assert await records.audience.of(room_id) == everybody - {MOUSSA}
    assert MOUSSA not in (await clinicians_of(records, consultation))
    async with records.store.transaction() as connection:
        await records.patients.change(connection, replace(patient, account=None))
    assert await records.audience.of(room_id) == {AWA, partner}
    await employ(records, staff(AWA, role=Role.OPERATOR))  # who reads no room
    assert await records.audience.of(room_id) == {partner}


async def clinicians_of(records: Records, consultation: Consultation) -> tuple[str, ...]:
    now = await records.consultations.get(consultation.id)
    assert now is not None
    return now.clinicians


async def test_a_wards_room_is_for_the_doctors_and_nurses_who_work_there_now(
    records: Records,
) -> None:
    await open_ward(records)
    await open_ward(records, SURGERY)
    await employ(
        records,
        staff(AWA),
        staff(MOUSSA, role=Role.NURSE),
        staff(FATOU, left_at=NOON),
        staff(IBOU, ward=SURGERY),
        staff("@admin:clinic.test", role=Role.OPERATOR),
        staff("@float:clinic.test", ward=None),
    )
    assert await records.audience.of("!medecine-2:clinic.test") == {AWA, MOUSSA}
    assert await records.audience.of("!chirurgie:clinic.test") == {IBOU}
    assert await records.audience.of("!elsewhere:clinic.test") == frozenset()


async def test_our_rooms_are_the_open_consultations_and_the_wards(records: Records) -> None:
    await open_ward(records)
    await records.wards.add(Ward(SURGERY, None, Language.FRENCH, "UTC", Roster()))
    patient = await records.patients.add(number="1", initials="A.D.", bed="1", account=None)
    consultation = await consult(records, patient, AWA)
    await records.consultations.add(  # no room yet
        patient=patient.key, clinicians=(), language=Language.FRENCH, time_zone="UTC", now=NOON
    )
    rooms = ["!medecine-2:clinic.test", str(consultation.room_id)]
    assert await records.audience.rooms() == sorted(rooms)


# --- warnings ------------------------------------------------------------------------------------


async def test_a_warning_is_told_once_and_told_again_when_it_comes_back(records: Records) -> None:
    warnings = records.warnings
    await warnings.set(About.DEVICE, AWA, ["PHONE", "TABLET"], now=NOON)
    phone, tablet = await warnings.open(About.DEVICE)
    assert (phone.mark, phone.announced_at, phone.told_at) == ("PHONE", None, None)
    async with records.store.transaction() as connection:
        await warnings.announced(connection, phone, now=at(1))
        await warnings.told(connection, phone, now=at(2))

    await warnings.set(About.DEVICE, AWA, ["TABLET", "PHONE"], now=at(3))
    seen_again = replace(phone, announced_at=at(1), told_at=at(2))
    assert await warnings.open(About.DEVICE) == [seen_again, tablet]

    await warnings.set(About.DEVICE, AWA, ["TABLET"], now=at(4))
    assert await warnings.open(About.DEVICE) == [tablet]
    await warnings.set(About.DEVICE, AWA, ["TABLET", "PHONE"], now=at(5))
    assert await warnings.open(About.DEVICE) == [tablet, replace(phone, seen_at=at(5))]


async def test_a_warning_about_one_ends_no_warning_about_another(records: Records) -> None:
    warnings = records.warnings
    await warnings.set(About.DEVICE, AWA, ["PHONE"], now=NOON)
    await warnings.set(About.DEVICE, MOUSSA, ["PHONE"], now=NOON)
    await warnings.set(About.MUTED, AWA, ["all_off"], now=NOON)
    await warnings.set(About.DEVICE, AWA, [], now=at(1))
    found = [(one.kind, one.subject) for one in await warnings.open()]
    assert found == [(About.MUTED, AWA), (About.DEVICE, MOUSSA)]


async def test_an_announcement_that_is_not_committed_was_not_made(records: Records) -> None:
    await records.warnings.set(About.NOBODY_ON_DUTY, MEDICINE, [""], now=NOON)
    [warning] = await records.warnings.open()

    async def announce() -> None:
        async with records.store.transaction() as connection:
            await records.warnings.announced(connection, warning, now=NOON)
            raise PulledPlugError

    with pytest.raises(PulledPlugError):
        await announce()
    assert await records.warnings.open() == [warning]


# --- audit and commands seen ---------------------------------------------------------------------


async def test_acts_at_the_same_moment_are_all_in_the_audit_without_a_gap(
    records: Records, elsewhere: Records
) -> None:
    async def act(through: Records, number: int) -> None:
        async with through.store.transaction() as connection:
            await through.audit.note(
                connection, actor=AWA, action="act", subject=MEDICINE, now=NOON, number=str(number)
            )

    await asyncio.gather(*(act(elsewhere if n % 2 else records, n) for n in range(12)))
    entries = await records.audit.latest()
    assert [one.position for one in entries] == list(range(1, 13))
    assert {one.detail["number"] for one in entries} == {str(n) for n in range(12)}
    assert await records.audit.latest(limit=2) == entries[-2:]


async def test_a_command_is_taken_once_whoever_tries(records: Records, elsewhere: Records) -> None:
    async def take(through: Records) -> bool:
        async with through.store.transaction() as connection:
            return await through.orders_seen.take(connection, b"envelope", now=NOON)

    assert not await records.orders_seen.known(b"envelope")
    taken = await asyncio.gather(*(take(elsewhere if n % 2 else records) for n in range(6)))
    assert sorted(taken) == [False] * 5 + [True]
    assert await records.orders_seen.known(b"envelope")
    assert not await records.orders_seen.known(b"another")
