"""Somebody joins, whatever fails in between; the homeserver is a fake that fails on demand."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from mautrix.errors import MatrixUnknownRequestError

from appservice.operator import Account, Device
from appservice.staff import Joined, StaffService
from appservice.wards import WardService
from fajma.config import Homeserver, Settings, Site
from fajma.duty import OnCall, Roster
from fajma.errors import InputError, UnavailableError
from fajma.language import Language
from fajma.store import Records
from fajma.store.people import Role
from fajma.store.wards import Ward, WardId
from fajma.store.warnings import About

NOON: Final = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
MEDICINE, ROOM = WardId("medecine"), "!medecine:clinic.test"
AWA, MOUSSA, BEN = "@awa:clinic.test", "@moussa:clinic.test", "@ben:partner.test"
PASSWORD: Final = re.compile(r"\b[a-z2-9]{5}(?:-[a-z2-9]{5}){3}\b")


@dataclass
class FakeOperator:
    """The homeserver's accounts, by user id.

    Attributes:
        passwords: of each account.
        devices_of: who has signed in, and with how many devices.
        fails: the next calls that fail, by name; ``lost`` means that it was done all the same.
    """

    passwords: dict[str, str] = field(default_factory=dict)
    devices_of: dict[str, int] = field(default_factory=dict)
    fails: dict[str, str] = field(default_factory=dict)
    unreachable: set[str] = field(default_factory=set)

    def _fail(self, call: str, when: str) -> None:
        if self.fails.get(call) == when:
            del self.fails[call]
            raise UnavailableError("it does not answer", code="homeserver_unavailable")

    async def account(self, mxid: str) -> Account | None:
        if mxid in self.unreachable:
            raise UnavailableError("it does not answer", code="homeserver_unavailable")
        if mxid not in self.passwords:
            return None
        return Account(mxid, deactivated=False, locked=False, admin=False)

    async def create_account(self, mxid: str, *, password: str, display_name: str) -> None:
        assert display_name
        self._fail("create_account", "before")
        self.passwords[mxid] = password
        self._fail("create_account", "lost")

    async def reset_password(self, mxid: str, password: str, *, logout: bool) -> None:
        assert not logout
        self.passwords[mxid] = password

    async def devices(self, mxid: str) -> tuple[Device, ...]:
        count = self.devices_of.get(mxid, 0)
        return tuple(Device(f"DEVICE{number}", None, None) for number in range(count))

    async def ring(self, mxid: str, *, rings: bool) -> tuple[str, ...]:
        assert mxid in self.passwords
        assert isinstance(rings, bool)
        self._fail("ring", "before")
        return ()

    async def pushers(self, mxid: str) -> int:
        return self.devices_of.get(mxid, 0)


class FakeCryptographer:
    """Everybody's devices are signed, but of those in ``unsigned``."""

    def __init__(self) -> None:
        self.unsigned: set[str] = set()

    async def look_at(self, users: list[str]) -> None:
        assert users

    async def is_readable_by(self, user: str) -> bool:
        return user not in self.unsigned


class FakeMatrix:
    """Rooms and who is in them; ``away`` are servers that do not answer."""

    def __init__(self) -> None:
        self.vitals = self
        self.cryptographer = FakeCryptographer()
        self.invited: list[str] = []
        self.joined: set[str] = set()
        self.away: set[str] = set()

    def is_local(self, user: str) -> bool:
        return user.endswith(":clinic.test")

    def refuse_ours(self, account: str) -> None:
        assert account.startswith("@")

    async def invite(self, room_id: str, user: str) -> None:
        assert room_id == ROOM
        if user.partition(":")[2] in self.away:
            raise MatrixUnknownRequestError(502, "", "M_UNKNOWN", "Failed to make invite")
        self.invited.append(user)

    async def set_power(self, room_id: str, user: str, level: int) -> None:
        assert (room_id, level) == (ROOM, 50)
        assert user in self.invited

    async def has_joined(self, room_id: str, user: str) -> bool:
        assert room_id == ROOM
        return user in self.joined


class Hospital:
    """The service under test, and what it works with."""

    def __init__(self, records: Records, settings: Settings) -> None:
        self.records = records
        self.operator = FakeOperator()
        self.matrix = FakeMatrix()
        matrix: Any = self.matrix
        operator: Any = self.operator
        wards = WardService(settings, records, matrix)
        self.staff = StaffService(settings, records, matrix, operator, wards)

    async def add(self, who: str = "awa", name: str = "Awa Diop", **more: Any) -> Joined:
        given: dict[str, Any] = {
            "role": Role.NURSE,
            "ward": MEDICINE,
            "language": None,
            "existing": False,
            "now": NOON,
        }
        return await self.staff.add(who, name=name, **(given | more))

    async def is_working(self, account: str) -> bool:
        person = await self.records.people.get(account)
        return person is not None and person.is_active

    async def actions(self) -> list[str]:
        return [one.action for one in await self.records.audit.latest()]

    def password(self, joined: Joined) -> str:
        """That of the letter, which is the account's."""
        (found,) = PASSWORD.findall(joined.letter)
        assert found == self.operator.passwords[joined.person.account]
        return str(found)


@pytest.fixture
async def hospital(sqlite_records: Records) -> Hospital:
    nowhere = Path("/nowhere")
    settings = Settings.model_construct(
        site=Site(),
        homeserver=Homeserver(
            url="http://127.0.0.1:8008",
            server_name="clinic.test",
            as_token_file=nowhere,
            hs_token_file=nowhere,
            admin_password_file=nowhere,
        ),
    )
    ward = Ward(MEDICINE, ROOM, Language.FRENCH, "Africa/Dakar", Roster())
    await sqlite_records.wards.add(ward)
    return Hospital(sqlite_records, settings)


# --- joining -------------------------------------------------------------------------------------


async def test_who_joins_has_account_record_and_invitation(hospital: Hospital) -> None:
    joined = await hospital.add()
    assert hospital.password(joined)
    assert joined.warning is None
    assert await hospital.is_working(AWA)
    assert hospital.matrix.invited == [AWA]
    assert await hospital.actions() == ["staff.add"]


async def test_without_an_account_nobody_belongs_to_the_staff(hospital: Hospital) -> None:
    hospital.operator.fails["create_account"] = "before"
    with pytest.raises(UnavailableError):
        await hospital.add()
    assert not await hospital.is_working(AWA)
    assert await hospital.records.audience.of(ROOM) == frozenset()
    hospital.password(await hospital.add(now=NOON + timedelta(minutes=1)))
    assert await hospital.is_working(AWA)


async def test_an_account_whose_making_was_never_confirmed_is_taken_up(hospital: Hospital) -> None:
    hospital.operator.fails["create_account"] = "lost"
    with pytest.raises(UnavailableError):
        await hospital.add()
    assert AWA in hospital.operator.passwords
    assert not await hospital.is_working(AWA)
    hospital.password(await hospital.add(now=NOON + timedelta(minutes=1)))
    assert await hospital.is_working(AWA)


async def test_when_the_rules_fail_the_same_command_completes_with_a_password(
    hospital: Hospital,
) -> None:
    hospital.operator.fails["ring"] = "before"
    with pytest.raises(UnavailableError):
        await hospital.add()
    assert hospital.matrix.invited == []  # without our rules it would ring
    hospital.password(await hospital.add(now=NOON + timedelta(minutes=1)))
    assert hospital.matrix.invited == [AWA]
    assert await hospital.actions() == ["staff.add"]  # once


async def test_who_has_signed_in_keeps_the_password_when_the_command_is_repeated(
    hospital: Hospital,
) -> None:
    first = hospital.password(await hospital.add())
    hospital.operator.devices_of[AWA] = 1
    again = await hospital.add(now=NOON + timedelta(minutes=1))
    assert PASSWORD.findall(again.letter) == []
    assert hospital.operator.passwords[AWA] == first


@pytest.mark.parametrize(
    "other",
    [
        {"name": "Awa Ndiaye"},
        {"role": Role.DOCTOR},
        {"ward": None},
        {"language": Language.ENGLISH},
    ],
)
async def test_another_person_under_the_same_account_is_refused(
    hospital: Hospital, other: dict[str, Any]
) -> None:
    first = hospital.password(await hospital.add())
    with pytest.raises(InputError) as caught:
        await hospital.add(**other)
    assert caught.value.code == "staff_exists"
    assert hospital.operator.passwords[AWA] == first


async def test_an_account_that_somebody_else_made_is_taken_with_existing_only(
    hospital: Hospital,
) -> None:
    hospital.operator.passwords[AWA] = "her own"
    with pytest.raises(InputError, match="--existing") as caught:
        await hospital.add()
    assert caught.value.code == "account_exists"
    joined = await hospital.add(existing=True)
    assert PASSWORD.findall(joined.letter) == []
    assert hospital.operator.passwords[AWA] == "her own"


async def test_an_account_is_a_patients_or_a_colleagues_and_never_both(hospital: Hospital) -> None:
    hospital.operator.passwords[AWA] = "her own"
    await hospital.records.patients.add(number="D-1", initials="A.D.", bed="4", account=AWA)
    with pytest.raises(InputError) as caught:
        await hospital.add(existing=True)
    assert caught.value.code == "account_of_patient"
    assert not await hospital.is_working(AWA)


async def test_a_partner_who_does_not_answer_is_on_the_list_and_the_operator_is_warned(
    hospital: Hospital,
) -> None:
    hospital.matrix.away.add("partner.test")
    joined = await hospital.add(BEN, "Ben Sy")
    assert joined.warning is not None
    assert "partner's homeserver" in joined.warning
    assert await hospital.records.audience.of(ROOM) == {BEN}
    hospital.matrix.away.clear()
    assert (await hospital.add(BEN, "Ben Sy")).warning is None
    assert hospital.matrix.invited == [BEN]


# --- reachability --------------------------------------------------------------------------------


async def test_who_cannot_be_looked_at_is_a_finding_and_not_the_end_of_the_table(
    hospital: Hospital,
) -> None:
    await hospital.add()
    await hospital.add("moussa", "Moussa Ba")
    hospital.operator.devices_of[MOUSSA] = 1
    hospital.operator.unreachable.add(AWA)
    hospital.matrix.joined |= {AWA, MOUSSA}
    found = {one.person.account: one for one in await hospital.staff.check()}
    assert found[AWA].troubles == ["not_checked"]
    assert not found[AWA].is_reachable
    assert found[MOUSSA].troubles == []
    assert found[MOUSSA].is_reachable


async def test_who_is_on_duty_comes_first_and_who_is_not_in_the_room_is_named(
    hospital: Hospital,
) -> None:
    await hospital.add()
    await hospital.add("moussa", "Moussa Ba")
    hospital.operator.devices_of |= {AWA: 1, MOUSSA: 1}
    hospital.matrix.joined.add(AWA)
    async with hospital.records.store.transaction() as connection:
        roster = Roster((OnCall(MOUSSA, NOON),))
        await hospital.records.wards.keep(connection, MEDICINE, roster)
    first, second = await hospital.staff.check()
    assert (first.person.account, first.on_duty, first.rings) == (MOUSSA, True, True)
    assert first.troubles == ["not_in_room"]
    assert not first.is_reachable
    assert (second.person.account, second.on_duty, second.rings) == (AWA, False, False)


async def test_whose_keys_were_reset_is_not_told_besides_that_no_device_is_confirmed(
    hospital: Hospital,
) -> None:
    await hospital.add()
    hospital.operator.devices_of[AWA] = 1
    hospital.matrix.joined.add(AWA)
    hospital.matrix.cryptographer.unsigned.add(AWA)
    [unsigned] = await hospital.staff.check()
    assert unsigned.troubles == ["no_signed_device"]
    for key in ("pinned" * 7, "shown" * 8):
        await hospital.records.pins.meet({AWA: key}, now=NOON)
    assert await hospital.records.warnings.is_open(About.IDENTITY, AWA)
    [changed] = await hospital.staff.check()
    assert changed.troubles == ["identity_changed"]
    assert changed.code is not None
    assert not changed.is_reachable
