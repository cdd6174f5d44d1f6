"""Watches that alarms would reach somebody, and that nobody reads who should not.

Looks every ``people.look_every_s``: is anybody of each ward on duty, and can he be reached (a phone
that rings, a device that gets keys); do push rules stand as they should; has an identity changed, a
device not been confirmed, a stranger been added. What is found is noted once
(``store/warnings.py``), announced in the ward's room by the alert bot (so phones ring) and told to
the person or the operators as a notice of their homeserver.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

import structlog

from appservice import letters
from appservice.operator import Operator
from appservice.push import MASTER_MUTED
from appservice.service import MatrixService
from appservice.staff import NO_PUSHER, UNREACHABLE, Finding, StaffService
from fajma.commands import Action, usage
from fajma.config import People as PeopleSettings
from fajma.errors import FajmaError, InputError
from fajma.language import Language, shown, translator
from fajma.store import Records
from fajma.store.alarms import Delivery
from fajma.store.people import MAX_ACCOUNT, MAX_NAME, Role, Staff, named
from fajma.store.wards import Ward, WardId
from fajma.store.warnings import About, Warn
from fajma.trust import identity_code

log = structlog.get_logger()

RULES_AGAIN_S: Final = 600.0
"""How often the rules are looked at of who is not watched with his ward (``rules_every_s``)."""

TELL_AGAIN: Final = timedelta(hours=1)
"""A ward that nobody watches is announced again until somebody does."""

TO_OPERATORS: Final = frozenset(
    {
        About.NOBODY_ON_DUTY,
        About.NOBODY_REACHABLE,
        About.STRANGER,
        About.DRILL,
        About.UNDELIVERABLE,
        About.ROOM_LOST,
        About.ROOM_CONTESTED,
    }
)

OF_ROOM: Final = (About.STRANGER, About.UNDELIVERABLE, About.ROOM_LOST, About.ROOM_CONTESTED)

OF_DUTY: Final = (About.DEVICE, About.MUTED)
"""What is told of somebody because he is on duty, and is over when duty is."""


@dataclass(frozen=True, slots=True)
class _Looked:
    """When somebody's push rules were looked at, for what, and what could not be mended."""

    rings: bool
    at_s: float
    troubles: Sequence[str]


class Watch:
    """Looks after the people side, until cancelled."""

    def __init__(
        self,
        settings: PeopleSettings,
        records: Records,
        matrix: MatrixService,
        operator: Operator,
        staff: StaffService,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._settings = settings
        self._records = records
        self._matrix = matrix
        self._operator = operator
        self._staff = staff
        self._now = now
        self._hint = records.store.hints.subscribe("trust")
        self._epoch: int | None = None
        self._accepted: dict[str, str] = {}
        self._rules: dict[str, _Looked] = {}
        self._others_at_s: dict[WardId, float] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            seen = await self._seen()
            await self._guarded("watching_failed", self.look)
            await self._rest(seen)

    async def _rest(self, seen: object) -> None:
        """Until the next look is due, or somebody did what it must follow, here or elsewhere."""
        hints = self._records.store.hints
        due_s = time.monotonic() + self._settings.look_every_s
        while (left_s := due_s - time.monotonic()) > 0:
            if await hints.wait(self._hint, min(left_s, hints.POLL_S)):
                return
            now_seen = await self._seen()
            if now_seen is not None and now_seen != seen:
                return

    async def _seen(self) -> object | None:
        """What changes with each act of a person and each warning of a sender; ``None`` unknown."""
        records = self._records
        try:
            return (
                await records.audience.epoch(),
                await records.audit.position(),
                await records.warnings.newest(),
            )
        except Exception as error:  # noqa: BLE001 - a database that is away comes back
            log.warning("changes_not_seen", error=type(error).__name__)
            return None

    async def look(self) -> None:
        """One look at everything."""
        await self._guarded("identities_not_followed", self._follow_identities)
        for ward in await self._records.wards.all():
            await self._guarded("ward_not_watched", partial(self._look_at_ward, ward))
        await self._guarded("warnings_not_ended", self._end_with_duty)
        await self._guarded("rules_not_kept", self._keep_rules)
        await self._guarded("strangers_not_looked_for", self._look_for_strangers)
        await self._announce()

    async def _guarded(self, trouble: str, work: Callable[[], Awaitable[None]]) -> None:
        """One part's trouble must not stop the others."""
        try:
            await work()
        except FajmaError as error:
            log.warning(trouble, code=error.code)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next look is another try
            log.error(trouble, error=type(error).__name__)

    async def _follow_identities(self) -> None:
        """Somebody's identity was accepted or revoked, maybe by the alert bot: look afresh."""
        epoch = await self._records.audience.epoch()
        if epoch == self._epoch:
            return
        people = [one.account for one in await self._records.people.active()]
        pinned = await self._records.pins.known(people)
        for account, key in pinned.items():
            if self._accepted.get(account, key) != key:
                await self._matrix.trust_changed(account)
        self._accepted = pinned
        self._epoch = epoch

    # --- wards -----------------------------------------------------------------------------------

    async def _look_at_ward(self, ward: Ward) -> None:
        now = self._now()
        team = await self._records.people.team(ward.id)
        on_duty = {one.account for one in team} & set(ward.roster.accounts)
        asked = on_duty or {one.account for one in team}
        every_s = self._settings.rules_every_s
        findings = [
            await self._finding(one, rules_every_s=every_s) for one in team if one.account in asked
        ]
        warnings = self._records.warnings
        await warnings.set(About.NOBODY_ON_DUTY, ward.id, [] if on_duty else [""], now=now)
        alone = bool(on_duty) and not any(one.is_reachable for one in findings)
        await warnings.set(About.NOBODY_REACHABLE, ward.id, [""] if alone else [], now=now)
        for finding in findings:
            if finding.person.account in on_duty:
                await self._look_at_person(finding, now)
        # The others less often: it is for them to know when they take duty.
        if time.monotonic() - self._others_at_s.get(ward.id, -math.inf) >= every_s:
            for one in team:
                if one.account not in asked:
                    await self._finding(one, rules_every_s=RULES_AGAIN_S)
            self._others_at_s[ward.id] = time.monotonic()

    async def _finding(self, person: Staff, *, rules_every_s: float) -> Finding:
        """Whether somebody can be reached; the account and its rules not at each look.

        What stands in the way is kept for those who ask in the ward's room.
        """
        looked = self._rules.get(person.account)
        recent = (
            looked is not None
            and looked.rings == await self._staff.rings(person)
            and time.monotonic() - looked.at_s < rules_every_s
        )
        found = await self._staff.finding(
            person, account_troubles=looked.troubles if looked is not None and recent else None
        )
        if not recent:
            self._rules[person.account] = _Looked(found.rings, time.monotonic(), found.account)
        await self._records.warnings.set(
            About.NO_RING,
            person.account,
            sorted(UNREACHABLE & set(found.troubles)),
            now=self._now(),
        )
        return found

    async def _look_at_person(self, finding: Finding, now: datetime) -> None:
        account = finding.person.account
        unsigned = await self._matrix.vitals.cryptographer.unsigned_devices(account)
        if finding.code is not None:
            unsigned = {}  # the changed identity is what must be told
        await self._records.warnings.set(
            About.DEVICE, account, [f"{one} {key}" for one, key in unsigned.items()], now=now
        )
        silent = [one for one in finding.troubles if one in {NO_PUSHER, MASTER_MUTED}]
        await self._records.warnings.set(About.MUTED, account, silent, now=now)

    async def _end_with_duty(self) -> None:
        """What was true of somebody on duty concerns nobody when he is not."""
        on_duty = {
            account for ward in await self._records.wards.all() for account in ward.roster.accounts
        }
        for one in await self._records.warnings.open():
            if one.kind in OF_DUTY and one.subject not in on_duty:
                await self._records.warnings.set(one.kind, one.subject, [], now=self._now())

    async def _keep_rules(self) -> None:
        """The push rules of everybody here; who rings was looked at with his ward."""
        wanted = {one.account: await self._staff.rings(one) for one in await self._staff.all()}
        for consultation in await self._records.consultations.open_ones():
            for clinician in consultation.clinicians:
                wanted.setdefault(clinician, True)
            for one in consultation.participants:
                wanted.setdefault(one.account, False)
            patient = await self._records.patients.get(consultation.patient)
            if patient is not None and patient.account is not None:
                wanted[patient.account] = False
        for account, rings in wanted.items():
            if not self._matrix.is_local(account):
                continue
            looked = self._rules.get(account)
            now_s = time.monotonic()
            if looked is None or looked.rings != rings or now_s - looked.at_s > RULES_AGAIN_S:
                try:
                    troubles = await self._operator.ring(account, rings=rings)
                except FajmaError as error:
                    log.warning("rules_not_kept", account=account, code=error.code)
                else:
                    self._rules[account] = _Looked(rings, now_s, troubles)

    async def _look_for_strangers(self) -> None:
        for room_id in await self._records.audience.rooms():
            strangers = await self._matrix.strangers(room_id)
            await self._records.warnings.set(About.STRANGER, room_id, strangers, now=self._now())

    # --- telling ---------------------------------------------------------------------------------

    async def _announce(self) -> None:
        wait = timedelta(seconds=self._settings.unsigned_after_s)
        for one in await self._records.warnings.open():
            if one.kind is About.NO_RING:
                continue  # kept for who asks
            if one.kind is About.DEVICE and self._now() - one.seen_at < wait:
                continue
            await self._guarded("warning_not_announced", partial(self._announce_one, one))

    async def _is_still_so(self, one: Warn) -> bool:
        """What is told of a person is looked at afresh: he may just have put it right."""
        person = await self._records.people.get(one.subject)
        if person is None:
            return False
        finding = await self._finding(person, rules_every_s=0)
        if not finding.on_duty:
            return False
        await self._look_at_person(finding, self._now())
        return one in await self._records.warnings.open(one.kind)

    async def _announce_one(self, one: Warn) -> None:
        now = self._now()
        is_new = one.announced_at is None or one.told_at is None
        if one.kind in OF_DUTY and is_new and not await self._is_still_so(one):
            return
        ward = await self._ward_of(one)
        again = (
            one.kind in {About.NOBODY_ON_DUTY, About.NOBODY_REACHABLE}
            and one.announced_at is not None
            and now - one.announced_at > TELL_AGAIN
        )
        if ward is not None and ward.room_id is not None and (one.announced_at is None or again):
            body = await self._words(one, ward.language)
            delivery = Delivery(
                delivery_id=self._records.site_key.fingerprint(
                    b"warning",
                    one.kind.value.encode(),
                    one.subject.encode(),
                    one.mark.encode(),
                    now.isoformat().encode(),
                ).hex(),
                room_id=ward.room_id,
                patient=None,
                content={"msgtype": "m.text", "body": body},
                created_at=now,
            )
            async with self._records.store.transaction() as connection:
                # In the order in which everybody locks: see fajma/store/database.py.
                await self._records.warnings.announced(connection, one, now=now)
                await self._records.outbox.add(connection, delivery)
                await self._records.audit.note(
                    connection,
                    actor="fajma",
                    action=f"warning.{one.kind.value}",
                    subject=one.subject,
                    now=now,
                    mark=one.mark,
                )
            self._records.store.hints.notify("outbox")
            log.warning("announced", about=one.kind.value, ward=ward.id)
        if one.told_at is None or again:
            if one.kind in {About.NOBODY_ON_DUTY, About.NOBODY_REACHABLE}:
                log.critical(one.kind.value, ward=one.subject)
            await self._tell(one, now)

    async def _tell(self, one: Warn, now: datetime) -> None:
        """Tell the person, or for a ward or a room the operators, by a notice in clear."""
        texts = await self._notices(one)
        for account, text in texts.items():
            if self._matrix.is_local(account):
                mark = self._records.site_key.fingerprint(
                    b"notice", account.encode(), one.kind.value.encode(), one.mark.encode()
                ).hex()
                try:
                    await self._operator.notice(
                        account, text, transaction_id=f"{mark}-{int(one.seen_at.timestamp())}"
                    )
                except InputError as error:  # an account that is closed; the others are told
                    log.warning("not_told", account=account, code=error.code)
        async with self._records.store.transaction() as connection:
            await self._records.warnings.told(connection, one, now=now)

    async def _notices(self, one: Warn) -> Mapping[str, str]:
        if one.kind in TO_OPERATORS:
            return {
                person.account: await self._to_operator(one, person.language)
                for person in await self._records.people.active()
                if person.role is Role.OPERATOR
            }
        person = await self._records.people.get(one.subject)
        if person is None and one.kind is About.IDENTITY:
            # A patient, or a clinician who is not of our staff.
            code = identity_code(one.mark)
            for consultation in await self._records.consultations.of_account(one.subject):
                language = consultation.language
                return {one.subject: letters.changed_identity(language, staff=False, code=code)}
        if person is None or not person.is_active:
            return {}
        if one.kind is About.IDENTITY:
            code = identity_code(one.mark)
            return {one.subject: letters.changed_identity(person.language, staff=True, code=code)}
        if one.kind is About.DEVICE:
            device = one.mark.split(" ", 1)[0]
            return {one.subject: letters.unsigned_device(person.language, device=device)}
        silent = letters.muted if one.mark == MASTER_MUTED else letters.no_phone
        return {one.subject: silent(person.language)}

    async def _to_operator(self, one: Warn, language: Language) -> str:
        if one.kind is About.STRANGER:
            return await self._words(one, language)
        if one.kind is About.ROOM_LOST:
            return letters.room_lost(language, room_id=one.subject, code=one.mark)
        if one.kind is About.ROOM_CONTESTED:
            return letters.room_contested(language, room_id=one.subject)
        if one.kind is About.DRILL:
            return letters.drill(language, ward=one.subject)
        if one.kind is About.UNDELIVERABLE:
            return letters.undeliverable(language, room_id=one.subject)
        return letters.outage(
            language, ward=one.subject, on_duty=one.kind is About.NOBODY_REACHABLE
        )

    async def _ward_of(self, one: Warn) -> Ward | None:
        """Whose team must hear it."""
        if one.kind in {About.NOBODY_ON_DUTY, About.NOBODY_REACHABLE}:
            return await self._records.wards.get(WardId(one.subject))
        if one.kind in OF_ROOM:
            return await self._ward_of_room(one)
        person = await self._records.people.get(one.subject)
        if person is not None:
            at_work = person.ward is not None and person.is_active
            return await self._records.wards.get(person.ward) if at_work and person.ward else None
        for consultation in await self._records.consultations.of_account(one.subject):
            return await self._records.wards.responsible(consultation.patient)
        return None

    async def _ward_of_room(self, one: Warn) -> Ward | None:
        consultation = await self._records.consultations.in_room(one.subject)
        if consultation is not None:
            return await self._records.wards.responsible(consultation.patient)
        if one.kind in {About.UNDELIVERABLE, About.ROOM_LOST}:
            return None  # the ward's own room refuses: only the operators can be told
        return await self._records.wards.in_room(one.subject)

    async def _words_of_room(self, one: Warn, language: Language) -> str:
        _ = translator(language).gettext
        if one.kind is About.STRANGER:
            return _(
                "SECURITY · {who} is in a room without belonging there and gets no keys · tell the"
                " operator"
            ).format(who=shown(one.mark, MAX_ACCOUNT))
        consultation = await self._records.consultations.in_room(one.subject)
        patient = consultation and await self._records.patients.get(consultation.patient)
        if one.kind in {About.ROOM_LOST, About.ROOM_CONTESTED}:
            where = (
                _("the room of the consultation for bed {bed}").format(
                    bed=shown(patient.bed, MAX_NAME)
                )
                if patient
                else _("the room of the ward")
            )
            text = (
                _(
                    "SECURITY · FAJMA cannot look after {where} any more ({code}) · end that"
                    " consultation and open a new one · tell the operator"
                )
                if one.kind is About.ROOM_LOST
                else _(
                    "SECURITY · somebody changes {where} again and again, and FAJMA changes it back"
                    " · tell the operator"
                )
            )
            return text.format(where=where, code=one.mark)
        return _(
            "ALARMS DO NOT GET THROUGH · the room of the consultation for bed {bed} refuses them ·"
            " see the patient · tell the operator"
        ).format(bed=shown(patient.bed, MAX_NAME) if patient else "?")

    async def _words(self, one: Warn, language: Language) -> str:
        """What the ward reads."""
        if one.kind in OF_ROOM:
            return await self._words_of_room(one, language)
        _ = translator(language).gettext
        person = await self._records.people.get(one.subject)
        who = named(person, one.subject)
        if one.kind is About.NOBODY_ON_DUTY:
            return _("NOBODY ON DUTY · all phones of the ward ring · take duty: {line}").format(
                line=usage(Action.DUTY_TAKE, language)
            )
        if one.kind is About.NOBODY_REACHABLE:
            return _(
                "NOBODY ON DUTY CAN BE REACHED · no phone that rings or no confirmed device ·"
                " somebody with a working phone types: {line}"
            ).format(line=usage(Action.DUTY_TAKE, language))
        if one.kind is About.IDENTITY:
            code = identity_code(one.mark)
            line = usage(Action.IDENTITY_ACCEPT, language)
            verb = " ".join(line.split()[:2])
            return _(
                "SECURITY · the keys of {who} were reset: no vitals and no alarms until accepted ·"
                " ask {who} by voice or face to face: reset just now, by whom, on which device? ·"
                " only if it was {who}, two clinicians type: {line}"
            ).format(who=who, line=f"{verb} {one.subject} {code}")
        if one.kind is About.DEVICE:
            return _(
                "SECURITY · {who}, on duty, has a device that is not confirmed: {device} · it gets"
                " nothing until {who} confirms it in Element"
            ).format(who=who, device=shown(one.mark.split(" ", 1)[0], MAX_NAME))
        return (
            _("{who} is on duty and the phone cannot ring: all notifications are off in Element")
            if one.mark == MASTER_MUTED
            else _(
                "{who} is on duty without a phone that can ring: sign in with Element on a phone"
                " and let it show notifications"
            )
        ).format(who=who)
