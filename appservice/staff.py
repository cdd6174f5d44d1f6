"""Staff: joining, changing, leaving, losing a phone; and whether everybody can be reached."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

import structlog
from mautrix.errors import MatrixError

from appservice import letters
from appservice.names import checked_name, look_alike
from appservice.operator import Device, Operator
from appservice.push import MASTER_MUTED
from appservice.rooms import CLINICIAN_POWER
from appservice.service import MatrixService
from appservice.wards import WardService, room_name
from fajma import duty
from fajma.config import Settings
from fajma.errors import FajmaError, InputError, UnavailableError
from fajma.language import Language
from fajma.store import Records
from fajma.store.audit import OPERATOR
from fajma.store.people import Role, Staff
from fajma.store.pins import new_epoch
from fajma.store.wards import Ward, WardId
from fajma.trust import identity_code

log = structlog.get_logger()

_LOCALPART: Final = re.compile(r"[a-z0-9._=/-]{1,200}")
USER_ID: Final = re.compile(r"@[a-z0-9._=/+-]{1,200}:[A-Za-z0-9.:\[\]-]{1,200}")
"""Matrix user identifiers (specification, appendix "User identifiers")."""

# Without what is misread or mistyped on a small phone.
_LETTERS: Final = "abcdefghjkmnpqrstuvwxyz23456789"


NO_PUSHER: Final = "no_pusher"
IDENTITY_CHANGED: Final = "identity_changed"
NOT_IN_ROOM: Final = "not_in_room"
NOT_CHECKED: Final = "not_checked"

UNREACHABLE: Final = frozenset(
    {
        *(NO_PUSHER, MASTER_MUTED, IDENTITY_CHANGED, NOT_IN_ROOM, NOT_CHECKED),
        *("no_signed_device", "no_account", "account_closed"),
    }
)
"""Troubles with which no alarm arrives."""


@dataclass(frozen=True, slots=True)
class Joined:
    """Somebody who can begin to work.

    Attributes:
        person: the record.
        letter: what to give the person, in his language; holds the password, so it is shown once.
        warning: for the operator, what could not be done yet.
    """

    person: Staff
    letter: str
    warning: str | None


@dataclass(frozen=True, slots=True)
class Left:
    """Somebody who has left.

    Attributes:
        without_clinician: ids of consultations that now have no clinician.
        ended_here: whether we could end the account's sessions; a partner's are its own.
    """

    without_clinician: Sequence[str]
    ended_here: bool


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether a member of staff can be reached.

    Attributes:
        person: who.
        troubles: codes of what is wrong, e.g. ``no_pusher``; empty if all is well.
        rings: whether alarms are meant to ring at this person's phone now.
        on_duty: whether the person has taken duty.
        code: of a changed identity that waits to be accepted.
        account: those of the troubles that the account and its push rules have.
    """

    person: Staff
    troubles: Sequence[str]
    rings: bool
    on_duty: bool
    code: str | None = None
    account: Sequence[str] = ()

    @property
    def is_reachable(self) -> bool:
        """Whether an alarm would arrive, as far as we can see: a partner's phone we cannot."""
        return not UNREACHABLE & set(self.troubles)


class StaffService:
    """What the ``fajma staff`` command and the REST API call."""

    def __init__(
        self,
        settings: Settings,
        records: Records,
        matrix: MatrixService,
        operator: Operator,
        wards: WardService,
    ) -> None:
        self._settings = settings
        self._records = records
        self._matrix = matrix
        self._operator = operator
        self._wards = wards

    async def add(
        self,
        who: str,
        *,
        name: str,
        role: Role,
        ward: str | None,
        language: Language | None,
        existing: bool,
        now: datetime,
    ) -> Joined:
        """Somebody joins. Safe to repeat: what is missing is completed.

        First the account, then our record, then push rules and invitation. Whoever never signed in
        gets another first password with each repetition, for the one before may be lost.

        Args:
            who: local part of a new account here (``awa``), or a full user id: of a partner's
                account, or with ``existing`` of one that is here already.
            name: as colleagues know the person.
            role: what the person may do.
            ward: short name of the ward, or none.
            language: of what FAJMA writes to the person; the site's where ``None``.
            existing: the account is there already and keeps its password.
            now: aware UTC.

        Raises:
            InputError: a name or account that cannot be, an unknown ward, somebody who is there as
                somebody else.
        """
        account = self._account(who)
        checked = checked_name(name)
        team = await self._wards.get(ward) if ward else None
        person = Staff(
            account=account,
            name=checked,
            role=role,
            ward=team.id if team else None,
            language=language or self._settings.site.language,
            since=now,
        )
        before = await self._records.people.get(account)
        repeated = before is not None and before.is_active
        if before is not None and repeated and replace(person, since=before.since) != before:
            raise InputError(
                f"{account} belongs to the staff already: see `fajma staff list`; `fajma staff"
                " role` changes role, ward and language",
                code="staff_exists",
            )
        await self._refuse_lookalike(checked, account)
        if await self._records.patients.of_account(account) is not None:
            raise InputError(
                f"{account} is the account of a patient: staff have another one, or unlink it first"
                " (`fajma patient unlink-account`)",
                code="account_of_patient",
            )
        here = self._matrix.is_local(account)
        password = None
        if here and existing:
            await self._require_account(account)
        elif here:
            password = await self._first_password(person, before)
        if not repeated:
            await self._keep(person, "staff.add", now, role=role.value, ward=ward or "")
        if here:  # before the invitation, which would ring without our rules
            await self._operator.ring(account, rings=await self.rings(person))
        warning = None
        try:
            await self._be_in_ward_room(person)
        except (MatrixError, UnavailableError) as error:
            log.warning("not_invited", account=account, error=type(error).__name__)
            whose = "the homeserver" if here else "the partner's homeserver"
            warning = (
                f"{whose} did not take the invitation to the ward's room: give the same command"
                " again later; the person gets the keys of the room all the same"
            )
        letter = letters.welcome(
            person.language,
            account=account,
            password=password,
            homeserver=self._address,
            here=here,
            room=await self._room_name(person),
        )
        return Joined(person, letter, warning)

    async def new_password(self, who: str, *, now: datetime) -> str:
        """A letter was lost or a password forgotten: a new one. Nobody is signed out.

        Returns:
            A letter to the person.

        Raises:
            InputError: nobody of that name works here, or the account is a partner's.
        """
        person = await self._active(who)
        password = one_time_password()
        await self._operator.reset_password(person.account, password, logout=False)
        await self._note("staff.password", person.account, now)
        return letters.new_password(
            person.language, account=person.account, password=password, homeserver=self._address
        )

    async def all(self, *, left: bool = False) -> list[Staff]:
        """Who works here; with ``left`` also who worked here."""
        return await (self._records.people.all() if left else self._records.people.active())

    async def change(
        self,
        who: str,
        *,
        role: Role | None,
        ward: str | None,
        language: Language | None,
        now: datetime,
    ) -> Staff:
        """Another role, ward or language; what is ``None`` stays. An empty ward is none.

        Raises:
            InputError: nobody of that name works here, or the ward is unknown.
        """
        person = await self._active(who)
        new_ward = person.ward
        if ward is not None:
            new_ward = (await self._wards.get(ward)).id if ward else None
        changed = replace(
            person, role=role or person.role, ward=new_ward, language=language or person.language
        )
        await self._keep(
            changed, "staff.change", now, role=changed.role.value, ward=changed.ward or ""
        )
        for other in await self._records.wards.all():
            # Every ward, not the one before: a try before may have got no further than the record.
            if other.id != changed.ward or not changed.is_clinician:
                if changed.account in other.roster.accounts or other.id == person.ward:
                    await self._off_duty(person.account, other.id)
                if other.room_id is not None:
                    await self._matrix.remove(other.room_id, person.account)
        await self._be_in_ward_room(changed)
        return changed

    async def leave(self, who: str, *, now: datetime) -> Left:
        """Somebody leaves: key sharing first, then memberships, then sessions. Safe to repeat.

        Raises:
            InputError: nobody of that name is known.
            UnavailableError: the homeserver did not do all of it; no key goes to the person from
                now on all the same.
        """
        account = self._account(who)
        person = await self._records.people.get(account)
        if person is None:
            raise _unknown(account)
        if person.is_active:
            await self._keep(replace(person, left_at=now), "staff.leave", now)
            # Who comes back one day does not belong at once where he was.
            await self._records.consultations.treats_no_more(account, now=now)
        if person.ward is not None:
            await self._off_duty(account, person.ward)
        troubles = []
        for room_id in await self._records.audience.rooms():
            try:
                await self._matrix.remove(room_id, account)
            except Exception as error:  # noqa: BLE001 - whatever it is, the other rooms are tried
                log.error("not_removed", room=room_id, error=type(error).__name__)
                troubles.append(room_id)
        here = self._matrix.is_local(account)
        if here:
            try:
                await self._operator.deactivate(account)
            except Exception as error:  # noqa: BLE001 - see above
                log.error("account_not_closed", account=account, error=type(error).__name__)
                troubles.append(account)
        if troubles:
            raise UnavailableError(
                f"{account} gets no key any more, but the homeserver did not close everything:"
                " give the command again",
                code="leave_unfinished",
            )
        alone = [
            one.id for one in await self._records.consultations.open_ones() if not one.clinicians
        ]
        return Left(without_clinician=alone, ended_here=here)

    async def lost_phone(
        self, who: str, *, devices: Collection[str], every: bool, stolen: bool, now: datetime
    ) -> str:
        """A phone is gone: its sessions end, its keys are refused, the password is new.

        Args:
            who: whose.
            devices: ids of the devices that are gone; may be left out when there is only one.
            every: all of the person's devices, be there any or none.
            stolen: somebody may have opened it, so the identity that it holds is trusted no more.
            now: aware UTC.

        Returns:
            A letter to the person: what to type where.

        Raises:
            InputError: it is not clear which device; the message lists them.
        """
        person = await self._active(who)
        account = person.account
        here = self._matrix.is_local(account)
        listed: dict[str, Device] = {}
        trouble: UnavailableError | None = None
        try:
            if here:
                listed = {one.device_id: one for one in await self._operator.devices(account)}
        except UnavailableError as error:
            trouble = error  # what does not depend on the homeserver is done all the same
        met = await self._matrix.vitals.cryptographer.devices_of(account)
        # What we have met ourselves counts too: a homeserver could hide a device.
        known = listed.keys() | met
        named = set(devices) or (set(listed or met) if len(listed or met) == 1 else set())
        gone = known if every else named
        again = await self._records.pins.blocked(account)
        if (gone - known - again and trouble is None) or not (gone or every):
            raise _which_device(account, known, listed)
        async with self._records.store.transaction() as connection:
            await self._records.pins.block(connection, account, gone)
            if stolen:
                await self._records.pins.revoke(connection, account, now=now)
            await self._records.audit.note(
                connection,
                actor=OPERATOR,
                action="staff.lost_phone",
                subject=account,
                now=now,
                devices=" ".join(sorted(gone)),
                stolen=str(stolen),
            )
        self._records.store.hints.notify("trust")
        log.info("phone_lost", account=account, devices=len(gone), stolen=stolen)
        if trouble is not None:
            raise UnavailableError(
                f"the lost phone of {account} gets no key any more, but the homeserver does not"
                " answer, so it is still signed in: give the command again later",
                code="lost_phone_unfinished",
            ) from trouble
        if not here:
            await self._matrix.trust_changed(account)
            return letters.lost_phone_elsewhere(person.language, account=account)
        await self._operator.remove_devices(account, gone)
        password = one_time_password()
        await self._operator.reset_password(account, password, logout=False)
        await self._matrix.trust_changed(account)
        names = {one: listed[one].display_name if one in listed else None for one in gone}
        return letters.lost_phone(
            person.language,
            account=account,
            password=password,
            homeserver=self._address,
            devices=sorted(name or one for one, name in names.items()),
            stolen=stolen,
            room=await self._room_name(person),
        )

    async def trust(self, who: str, code: str, *, now: datetime) -> str:
        """The operator accepts a changed identity, of staff or of a patient, by its code.

        Returns:
            The account.

        Raises:
            InputError: none waits, or the code is of another one.
        """
        account = self._account(who)
        changed = await self._records.pins.changed(account)
        if changed is None:
            raise InputError(
                f"no changed identity of {account} waits: nothing to accept", code="no_change"
            )
        wanted = identity_code(changed.master_key)
        if code.replace("-", "").replace(" ", "").upper() != wanted.replace("-", ""):
            raise InputError(
                f"this is not the code of the identity that {account} shows now: compare with"
                " `fajma staff check`, and ask the person again",
                code="wrong_code",
            )
        async with self._records.store.transaction() as connection:
            await self._records.pins.accept(connection, changed, now=now)
            await self._records.audit.note(
                connection,
                actor=OPERATOR,
                action="identity.accept",
                subject=account,
                now=now,
                code=wanted,
            )
        await self._matrix.trust_changed(account)
        self._records.store.hints.notify("trust")
        return account

    async def check(self) -> list[Finding]:
        """Whether each of the staff can be reached; push rules are mended on the way.

        Who cannot be looked at is a finding like others. First who is on duty.
        """
        findings = []
        for person in await self._records.people.active():
            try:
                found = await self.finding(person)
                not_there = [NOT_IN_ROOM] if await self._is_missing_in_room(person) else []
                findings.append(replace(found, troubles=[*found.troubles, *not_there]))
            except (FajmaError, MatrixError) as error:
                log.warning("not_checked", account=person.account, error=type(error).__name__)
                rings = await self.rings(person)
                on_duty = await self._is_on_duty(person)
                findings.append(Finding(person, [NOT_CHECKED], rings, on_duty))
        return sorted(findings, key=lambda one: (not one.on_duty, not one.rings))

    async def finding(
        self, person: Staff, *, account_troubles: Sequence[str] | None = None
    ) -> Finding:
        """The same of one person, without the ward's room.

        Args:
            person: who.
            account_troubles: what a recent look at the account and its push rules found; they are
                not looked at again then.
        """
        account = person.account
        troubles: list[str] = []
        rings = await self.rings(person)
        cryptographer = self._matrix.vitals.cryptographer
        if account_troubles is None:
            await cryptographer.look_at([account])
            account_troubles = await self._account_troubles(account, rings=rings)
        changed = await self._records.pins.changed(account)
        if changed is not None:  # so no device of his counts, which need not be said too
            troubles.append(IDENTITY_CHANGED)
        elif not await cryptographer.is_readable_by(account):
            troubles.append("no_signed_device")
        troubles += account_troubles
        can_push = self._matrix.is_local(account) and "no_account" not in account_troubles
        if can_push and await self._operator.pushers(account) == 0:
            troubles.append(NO_PUSHER)
        code = identity_code(changed.master_key) if changed else None
        on_duty = await self._is_on_duty(person)
        return Finding(person, troubles, rings, on_duty, code, account_troubles)

    async def _account_troubles(self, account: str, *, rings: bool) -> Sequence[str]:
        if not self._matrix.is_local(account):
            return ["partner"]
        found = await self._operator.account(account)
        if found is None:
            return ["no_account"]
        if found.deactivated or found.locked:
            return ["account_closed"]
        return await self._operator.ring(account, rings=rings)

    async def _is_missing_in_room(self, person: Staff) -> bool:
        """Whether somebody of a team has not accepted the invitation, so that nothing rings."""
        ward = await self._ward_of(person)
        return (
            ward is not None
            and ward.room_id is not None
            and not await self._matrix.has_joined(ward.room_id, person.account)
        )

    async def _is_on_duty(self, person: Staff) -> bool:
        ward = await self._ward_of(person)
        return ward is not None and person.account in ward.roster.accounts

    async def _ward_of(self, person: Staff) -> Ward | None:
        """The ward of whose team somebody is."""
        if person.ward is None or not person.is_clinician:
            return None
        return await self._records.wards.get(person.ward)

    async def rings(self, person: Staff) -> bool:
        """Whether alarms ring at this person's phone now: on duty, or nobody can be reached."""
        ward = await self._records.wards.get(person.ward) if person.ward is not None else None
        if ward is None:
            return person.is_clinician
        return person.account in await self._records.called(ward)

    @property
    def _address(self) -> str:
        """What people type in Element."""
        return self._settings.homeserver.public_url or self._settings.homeserver.url

    async def _first_password(self, person: Staff, before: Staff | None) -> str | None:
        """Have the account, with a new password unless somebody has signed in with it.

        Our intention is on record first, as somebody who joined and left at one moment. So if we
        never hear how the homeserver decided, the account is known to be ours.

        Raises:
            InputError: there is such an account, and it was not made here.
        """
        account = person.account
        password = one_time_password()
        found = await self._operator.account(account)
        if found is not None and not found.deactivated:
            if before is None or not (before.is_active or before.is_joining):
                raise InputError(
                    f"the account {account} exists already: choose another name; or, if it is this"
                    " person's, add it with --existing (`fajma staff password` then gives a new"
                    " password)",
                    code="account_exists",
                )
            if await self._operator.devices(account):
                return None
            await self._operator.reset_password(account, password, logout=False)
            return password
        if before is None or not before.is_active:
            async with self._records.store.transaction() as connection:
                joining = replace(person, left_at=person.since)
                await self._records.people.put(connection, joining)
        await self._operator.create_account(account, password=password, display_name=person.name)
        return password

    async def _require_account(self, account: str) -> None:
        found = await self._operator.account(account)
        if found is None or found.deactivated:
            raise InputError(
                f"there is no account {account} here, or it is closed: leave out --existing to make"
                " it",
                code="no_such_account",
            )

    async def _room_name(self, person: Staff) -> str | None:
        """The name of the ward's room to which somebody is invited."""
        ward = await self._ward_of(person)
        return room_name(ward) if ward is not None else None

    async def _note(self, action: str, account: str, now: datetime) -> None:
        async with self._records.store.transaction() as connection:
            await self._records.audit.note(
                connection, actor=OPERATOR, action=action, subject=account, now=now
            )
        log.info(action.replace(".", "_"), account=account)

    async def _keep(self, person: Staff, action: str, now: datetime, **detail: str) -> None:
        async with self._records.store.transaction() as connection:
            await self._records.people.put(connection, person)
            await new_epoch(connection)
            await self._records.audit.note(
                connection,
                actor=OPERATOR,
                action=action,
                subject=person.account,
                now=now,
                **detail,
            )
        self._records.store.hints.notify("trust")
        log.info(action.replace(".", "_"), account=person.account)

    async def _off_duty(self, account: str, ward: WardId) -> None:
        async with self._records.store.transaction() as connection:
            roster = await self._records.wards.roster(connection, ward)
            await self._records.wards.keep(connection, ward, duty.remove(roster, account))
        self._records.store.hints.notify("trust")

    async def _be_in_ward_room(self, person: Staff) -> None:
        if person.ward is None or not person.is_clinician:
            return
        ward = await self._wards.get(person.ward)
        if ward.room_id is not None:
            await self._matrix.invite(ward.room_id, person.account)
            await self._matrix.set_power(ward.room_id, person.account, CLINICIAN_POWER)

    async def _active(self, who: str) -> Staff:
        account = self._account(who)
        person = await self._records.people.get(account)
        if person is None or not person.is_active:
            raise _unknown(account)
        return person

    def _account(self, who: str) -> str:
        """A full user id from what an operator typed; never one that FAJMA works with."""
        account = f"@{who}:{self._settings.homeserver.server_name}"
        if USER_ID.fullmatch(who):
            account = who
        elif not _LOCALPART.fullmatch(who):
            raise InputError(
                "write a short name of small letters and digits (awa.diop), or a full Matrix id"
                " (@awa:hospital.example); letters of other alphabets and accents cannot be in it",
                code="account_name",
            )
        self._matrix.refuse_ours(account)
        return account

    async def _refuse_lookalike(self, name: str, account: str) -> None:
        for other in await self._records.people.active():
            if other.account != account and look_alike(other.name, name):
                raise InputError(
                    f"{other.account} has a name that looks the same: give a name that tells the"
                    " two apart, for example with a second first name",
                    code="name_taken",
                )


def one_time_password() -> str:
    """Twenty letters in groups of five (98 bits), to be typed once on a phone."""
    groups = ("".join(secrets.choice(_LETTERS) for _ in range(5)) for _ in range(4))
    return "-".join(groups)


def _which_device(account: str, known: Collection[str], listed: Mapping[str, Device]) -> InputError:
    if not known:
        return InputError(
            f"{account} has no such phone, and no other: `fajma staff password` gives a new"
            " password, and lost-phone --all --stolen ends the trust in the person's keys",
            code="no_device",
        )
    lines = []
    for device_id in sorted(known):
        one = listed.get(device_id)
        seen = f"  {one.last_seen:%Y-%m-%d %H:%M}" if one is not None and one.last_seen else ""
        lines.append(f"  {device_id}  {one.display_name or '' if one is not None else ''}{seen}")
    return InputError(
        f"which phone of {account}? name it with --device, or take --all:\n" + "\n".join(lines),
        code="which_device",
    )


def _unknown(account: str) -> InputError:
    return InputError(
        f"{account} does not belong to the staff: see `fajma staff list`", code="staff_unknown"
    )
