"""Errands over the real service of consultations: whatever call to the homeserver fails."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Mapping
from datetime import timedelta

import pytest
from mautrix.errors import MForbidden

from appservice.errands import PAUSES_S, Porter
from fajma.duty import Roster
from fajma.language import Language
from fajma.life import ParticipantRole, Status
from fajma.store import Records
from fajma.store.consultations import Consultation
from fajma.store.errands import Errand, ErrandKind
from fajma.store.people import Role, Staff
from fajma.store.wards import Ward, WardId
from tests.integration.hospital import (
    AWA,
    BEN,
    EVE,
    MONITOR,
    MOTHER,
    MOUSSA,
    NOON,
    PATIENT,
    Hospital,
)

WARD, WARD_ROOM = WardId("medecine-2"), "!ward:clinic.test"


class House:
    """The hospital with a porter whose clocks the test moves."""

    def __init__(self, records: Records) -> None:
        self.hospital = Hospital(records)
        self.records = records
        self.now = NOON
        self.clock_s = 0.0
        self.porter = Porter(
            records, self.hospital.service, now=lambda: self.now, clock=lambda: self.clock_s
        )
        self._numbers = itertools.count(1)

    async def opened(self) -> Consultation:
        """A further consultation with Awa and Moussa."""
        return await self.hospital.open(
            number=f"N-{next(self._numbers)}", clinicians=[AWA, MOUSSA]
        )  # fmt: skip

    async def order(self, kind: ErrandKind, room_id: str, **said: str) -> Errand:
        errand = Errand(
            id=secrets.token_hex(32),
            kind=kind,
            room_id=room_id,
            who=AWA,
            asked_at=self.now,
            language=Language.ENGLISH,
            event_id="$asked",
            said=said,
        )
        async with self.records.store.transaction() as connection:
            await self.records.errands.add(connection, errand)
        return errand

    async def ends(self, errand: Errand) -> str:
        """Until it has ended, whatever fails once meanwhile: how."""
        for _ in range(3):
            await self.porter._look()
            await asyncio.gather(*self.porter._at_work.values())
            outcome = await self.records.errands.outcome_of(errand.id)
            if outcome is not None:
                return outcome
            self.now += timedelta(seconds=PAUSES_S[1])
            self.clock_s += PAUSES_S[1]
        return "still waiting"

    async def answers(self, room_id: str, errand: Errand) -> list[str]:
        """What was said in reply, without what the service says by itself."""
        outbox = self.records.outbox
        mark = self.records.site_key.fingerprint(b"errand answer", errand.id.encode()).hex()
        waiting = await outbox.waiting(room_id, sender=(await outbox.get(mark)).sender)
        return [str((await outbox.get(one)).content["body"]) for one in waiting if one == mark]


@pytest.fixture
async def house(sqlite_records: Records) -> House:
    """A ward, two nurses, and a porter."""
    await sqlite_records.wards.add(
        Ward(WARD, WARD_ROOM, Language.ENGLISH, "Africa/Dakar", Roster())
    )
    async with sqlite_records.store.transaction() as connection:
        for account in (AWA, MOUSSA):
            person = Staff(account, account[1:4], Role.NURSE, WARD, Language.ENGLISH, NOON)
            await sqlite_records.people.put(connection, person)
    return House(sqlite_records)


KINDS: list[tuple[ErrandKind, Mapping[str, str]]] = [
    (ErrandKind.INVITE, {"account": BEN, "role": "clinician"}),
    (ErrandKind.INVITE, {"account": MOTHER, "role": "companion"}),
    (ErrandKind.REMOVE, {"account": MOUSSA}),
    (ErrandKind.LINK, {"device": MONITOR}),
    (ErrandKind.LANGUAGE, {"language": "fr"}),
    (ErrandKind.END, {}),
]


def is_done(house: House, kind: ErrandKind, said: Mapping[str, str], found: Consultation) -> bool:
    """Whether record and room say what was ordered."""
    room_id = str(found.room_id)
    matrix = house.hospital.matrix
    match kind:
        case ErrandKind.INVITE:
            invited = matrix.membership(room_id, said["account"]) == "invite"
            return invited and found.role_of(said["account"]) == said["role"]
        case ErrandKind.REMOVE:
            gone = matrix.membership(room_id, said["account"]) == "leave"
            return gone and found.role_of(said["account"]) is None
        case ErrandKind.LANGUAGE:
            state = matrix.host.state[room_id, "com.fajma.consultation"]
            return state["language"] == "fr" and found.language is Language.FRENCH
        case ErrandKind.END:
            levels = matrix.content(room_id, "m.room.power_levels")
            return levels["events_default"] == 100 and found.status is Status.ENDED
        case _:
            return True


@pytest.mark.parametrize("was_done", [False, True])
@pytest.mark.parametrize(("kind", "said"), KINDS)
async def test_a_call_that_fails_only_delays_what_was_ordered(
    house: House, kind: ErrandKind, said: Mapping[str, str], *, was_done: bool
) -> None:
    for failing in itertools.count(1):
        opened = await house.opened()
        room_id = str(opened.room_id)
        before = house.hospital.matrix.calls
        house.hospital.matrix.fails(after=failing, was_done=was_done)
        errand = await house.order(kind, room_id, consultation=opened.id, **said)
        assert await house.ends(errand) == "done", failing
        found = await house.hospital.get(opened.id)
        assert is_done(house, kind, said, found), failing
        assert found.shown == found.revision
        assert len(await house.answers(room_id, errand)) == 1
        await house.records.devices.unlink(MONITOR, opened.patient, now=house.now)
        if house.hospital.matrix.calls - before < failing:
            break


@pytest.mark.parametrize("was_done", [False, True])
async def test_an_opening_of_which_a_call_fails_is_completed(
    house: House, *, was_done: bool
) -> None:
    matrix = house.hospital.matrix
    for failing in itertools.count(1):
        patient = await house.records.patients.add(
            number=f"O-{failing}", initials="A.D.", bed="4", account=None, ward=WARD
        )
        before = matrix.calls
        matrix.fails(after=failing, was_done=was_done)
        errand = await house.order(ErrandKind.OPEN, WARD_ROOM, patient=patient.key, ward=WARD)
        assert await house.ends(errand) == "done", failing
        found = await house.records.consultations.of_patient(patient.key)
        assert found is not None
        assert (found.status, found.role_of(AWA)) == (Status.OPEN, ParticipantRole.LEAD)
        assert matrix.membership(str(found.room_id), AWA) == "invite"
        [answer] = await house.answers(WARD_ROOM, errand)
        assert found.short_name in answer
        if matrix.calls - before < failing:
            break


async def test_a_partner_who_can_never_come_is_not_left_on_the_record(house: House) -> None:
    opened = await house.opened()
    room_id = str(opened.room_id)
    house.hospital.matrix.trouble = MForbidden(403, "not in the federation")
    errand = await house.order(
        ErrandKind.INVITE, room_id, consultation=opened.id, account=BEN, role="clinician"
    )
    assert await house.ends(errand) == "m_forbidden"
    assert (await house.hospital.get(opened.id)).role_of(BEN) is None


async def test_whom_the_service_refuses_is_not_invited_and_the_reason_told(house: House) -> None:
    opened = await house.opened()
    room_id = str(opened.room_id)
    for account, role, code, why in (
        (EVE, "clinician", "not_a_partner", "no partner"),
        ("@nobody:clinic.test", "observer", "no_such_account", "no such account"),
    ):
        errand = await house.order(
            ErrandKind.INVITE, room_id, consultation=opened.id, account=account, role=role
        )
        assert await house.ends(errand) == code
        [answer] = await house.answers(room_id, errand)
        assert why in answer
        assert house.hospital.matrix.membership(room_id, account) is None


async def test_a_patient_who_waits_is_let_in(house: House) -> None:
    booked = await house.hospital.book()
    opened = await house.hospital.service.start(booked.id, AWA, NOON)
    room_id = str(opened.room_id)
    errand = await house.order(ErrandKind.ADMIT, room_id, consultation=opened.id)
    assert await house.ends(errand) == "done"
    assert house.hospital.matrix.membership(room_id, PATIENT) == "invite"


async def test_an_alarm_that_began_meanwhile_keeps_a_consultation_open(house: House) -> None:
    opened = await house.opened()
    room_id = str(opened.room_id)
    house.hospital.in_alarm.add(opened.patient)
    errand = await house.order(ErrandKind.END, room_id, consultation=opened.id)
    assert await house.ends(errand) == "alarm_open"
    [answer] = await house.answers(room_id, errand)
    assert "!end despite alarm" in answer
    assert (await house.hospital.get(opened.id)).status is Status.OPEN
    errand = await house.order(
        ErrandKind.END, room_id, consultation=opened.id, despite_alarm="yes"
    )  # fmt: skip
    assert await house.ends(errand) == "done"
    signing = await house.order(ErrandKind.SIGN, WARD_ROOM, consultation=opened.id)
    assert await house.ends(signing) == "done"
    [signature] = await house.records.consultations.signatures(opened.id)
    assert signature.account == AWA
