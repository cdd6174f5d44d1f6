"""What the commands of a ward do: duty, handover, drill, acceptance of identities.

Who may give a command was decided before (``orders``); what becomes of a roster is decided by
``fajma.duty``. Here the two meet the records, and get the words of the answer.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

import structlog
from mautrix.util.async_db import Connection

from bots.alerts.alarm_state import FIRST_STANDING
from bots.alerts.desk import RefusedError, notice
from bots.alerts.site_rules import SiteRules
from bots.alerts.situation import lasting_limits, open_lines, readable_states
from bots.alerts.text import duty_time, limits_in_force
from bots.alerts.whom import Whom
from fajma import duty
from fajma.commands import (
    IN_WARD,
    Action,
    Command,
    Person,
    help_text,
    usage,
    usage_in_ward,
)
from fajma.duty import DutyError, Roster
from fajma.facts import HandedOver
from fajma.language import Language, shown, translator
from fajma.store import Records
from fajma.store.people import MAX_ACCOUNT, Staff, named
from fajma.store.pins import APPROVALS_NEEDED
from fajma.store.wards import Ward
from fajma.store.warnings import About
from fajma.trust import identity_code

log = structlog.get_logger()

MAX_OPEN_ALARMS: Final = 40
"""Lines in a handover; more would not fit into an event."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command leads to.

    Attributes:
        answer: what everybody in the room reads.
        roster: the ward's, changed or not.
        subject: of the audit entry; none for what only shows.
        mentions: whom the answer is for, besides who typed.
        rings: a message that rings, if there is one, with its delivery id.
        detail: of the audit entry.
    """

    answer: str
    roster: Roster
    subject: str | None = None
    mentions: tuple[str, ...] = ()
    rings: tuple[str, str] | None = None
    detail: Mapping[str, str] | None = None


def name_the_bed(language: Language) -> str:
    """How a ward's room is told whom a command is about."""
    _ = translator(language).gettext
    return _("About a patient, add the bed here: {line}").format(
        line=usage_in_ward(Action.ACKNOWLEDGE, language)
    )


class DutyDesk:
    """Carries commands out, and looks at the time.

    Args:
        records: everything.
        rules: by which patients are judged, for handovers.
        now: the clock.
    """

    def __init__(self, records: Records, rules: SiteRules, *, now: Callable[[], datetime]) -> None:
        self._records = records
        self._rules = rules
        self._now = now
        self._whom = Whom(records)

    # --- what each command does ------------------------------------------------------------------

    async def outcome(  # noqa: PLR0911 - one for each action
        self,
        connection: Connection,
        command: Command,
        person: Staff,
        ward: Ward,
        roster: Roster,
    ) -> Outcome:
        """What a command leads to, decided inside the transaction that will keep it.

        Raises:
            RefusedError: it names somebody or something that it cannot be about.
            DutyError: the roster does not allow it.
        """
        now = self._now()
        language = command.language
        _ = translator(language).gettext
        me = named(person, person.account)
        match command.action:
            case Action.HELP:
                return Outcome(f"{help_text(language, IN_WARD)}\n{name_the_bed(language)}", roster)
            case Action.DUTY_SHOW:
                return Outcome(await self._on_duty(roster, ward, language), roster)
            case Action.DUTY_TAKE:
                taken = duty.take(roster, person.account, now)
                said = await self._takes(person, language)
                return Outcome(
                    f"{said}\n{await self._on_duty(taken, ward, language)}", taken, person.account
                )
            case Action.DUTY_LEAVE:
                left = duty.leave(roster, person.account, now=now)
                all_ring = await self._records.warnings.is_open(About.NOBODY_REACHABLE, ward.id)
                said = (
                    _("{who} is off duty. No phone of who is on duty can ring: all of the ward do.")
                    if all_ring
                    else _("{who} is off duty; alarms are silent on this person's phone.")
                ).format(who=me)
                return Outcome(
                    f"{said}\n{await self._on_duty(left, ward, language)}", left, person.account
                )
            case Action.DRILL_START:
                return await self._drill(person, ward, roster, language)
            case Action.DRILL_ANSWER:
                answered = duty.answer_drill(roster, person.account, now)
                return Outcome(
                    _("{who} has answered the drill.").format(who=me), answered, person.account
                )
            case Action.IDENTITY_ACCEPT:
                return await self._accept_identity(connection, command, person, roster)
            case _:
                outcome = await self._hand_over(command, person, ward, roster)
                if command.action is Action.HANDOVER_ACCEPT:
                    handed_over = HandedOver(now, person.account)
                    for patient in await self._records.patients_of(ward):
                        await self._records.facts.append(connection, patient.key, handed_over)
                return outcome

    async def _takes(self, person: Staff, language: Language) -> str:
        """That somebody takes duty, and what stands between the alarms and him, as last seen."""
        _ = translator(language).gettext
        me = named(person, person.account)
        open_ones = await self._records.warnings.open(About.NO_RING)
        why = [one.mark for one in open_ones if one.subject == person.account]
        if not why:
            return _("{who} is on duty; alarms ring on this person's phone.").format(who=me)
        if "no_pusher" in why:
            said = _(
                "{who} is on duty, but at the last look FAJMA saw no phone that alarms could ring."
                " It looks again now. In Element on the phone: sign in and allow notifications."
            )
        elif "master_muted" in why:
            said = _(
                "{who} is on duty, but at the last look all notifications of the account were off"
                " in Element, so that alarms cannot ring. FAJMA looks again now."
            )
        else:
            said = _(
                "{who} is on duty, but at the last look this person had no confirmed device, so"
                " that alarms cannot ring. FAJMA looks again now."
            )
        return said.format(who=me)

    async def _hand_over(
        self, command: Command, person: Staff, ward: Ward, roster: Roster
    ) -> Outcome:
        now = self._now()
        language = command.language
        _ = translator(language).gettext
        me = named(person, person.account)
        if command.action is Action.HANDOVER_OFFER:
            taker = await self._colleague(command.person, ward, language)
            offered = duty.offer(roster, person.account, taker.account, now)
            return Outcome(
                _("{giver} offers duty to {taker}, who types: {accept} (or {decline})").format(
                    giver=me,
                    taker=named(taker, taker.account),
                    accept=usage(Action.HANDOVER_ACCEPT, language),
                    decline=usage(Action.HANDOVER_DECLINE, language),
                ),
                offered,
                taker.account,
                mentions=(taker.account,),
            )
        if command.action is Action.HANDOVER_DECLINE:
            return Outcome(
                _("{who} declines: duty stays where it was.").format(who=me),
                duty.decline(roster, person.account, now),
                person.account,
            )
        if command.action is Action.HANDOVER_CANCEL:
            return Outcome(
                _("{who} takes the offer back.").format(who=me),
                duty.cancel(roster, person.account, now),
                person.account,
            )
        giver = roster.offer.giver if roster.offer is not None else ""
        changed = duty.accept(roster, person.account, now)
        giving = named(await self._records.people.get(giver), giver)
        said = _("HANDOVER · {taker} takes over from {giver}").format(taker=me, giver=giving)
        summary = await self._situation(ward, language)
        return Outcome(
            f"{said}\n{summary}\n{await self._on_duty(changed, ward, language)}",
            changed,
            person.account,
            detail={"giver": giver, "taker": person.account},
        )

    async def _drill(
        self, person: Staff, ward: Ward, roster: Roster, language: Language
    ) -> Outcome:
        _ = translator(language).gettext
        ngettext = translator(language).ngettext
        called = sorted(await self._records.called(ward))
        drill_id = secrets.token_hex(8)
        started = duty.start_drill(roster, person.account, drill_id, called, self._now())
        await self._records.warnings.set(About.DRILL, ward.id, [drill_id], now=self._now())
        body = _("DRILL · not an alarm · whose phone rang answers: {line} (or reacts to this)")
        silent = [one for one in called if await self._records.warnings.is_open(About.NO_RING, one)]
        count = len(called) - len(silent)
        said = [
            ngettext(
                "Drill started by {who}: {count} phone is rung.",
                "Drill started by {who}: {count} phones are rung.",
                count,
            ).format(who=named(person, person.account), count=count),
            *[
                _("Cannot be rung: {who}").format(
                    who=named(await self._records.people.get(one), one)
                )
                for one in silent
            ],
        ]
        return Outcome(
            "\n".join(said),
            started,
            ward.id,
            rings=(
                self._drill_delivery(drill_id),
                body.format(line=usage(Action.DRILL_ANSWER, language)),
            ),
            detail={"drill": drill_id, "called": " ".join(called)},
        )

    async def _accept_identity(
        self, connection: Connection, command: Command, person: Staff, roster: Roster
    ) -> Outcome:
        language = command.language
        _ = translator(language).gettext
        account = await self._whose_identity(command.person, language)
        changed = await self._records.pins.changed(account)
        if changed is None:
            raise RefusedError(
                _("No changed keys of {who} wait to be accepted.").format(
                    who=shown(account, MAX_ACCOUNT)
                ),
                code="no_change",
            )
        if account == person.account:
            raise RefusedError(
                _("Your own keys are accepted by two colleagues, not by yourself."),
                code="own_identity",
            )
        if command.code != identity_code(changed.master_key):
            raise RefusedError(
                _(
                    "This is not the code of the keys that {who} shows now. Look at the newest"
                    " message about it, and ask the person again."
                ).format(who=shown(account, MAX_ACCOUNT)),
                code="wrong_code",
            )
        again = await self._records.pins.has_approved(
            connection, changed, by=person.account, now=self._now()
        )
        accepted = await self._records.pins.approve(
            connection, changed, by=person.account, now=self._now()
        )
        who = named(await self._records.people.get(account), account)
        if accepted:
            said = _("The new keys of {who} are accepted: vitals and alarms come again.")
        elif again:
            said = _(
                "You have already accepted the new keys of {who}. One more colleague types the same"
                " line."
            )
        else:
            said = _(
                "{me} accepts the new keys of {who}: 1 of {needed}. One more colleague types the"
                " same line."
            )
        said = said.format(me=named(person, person.account), who=who, needed=APPROVALS_NEEDED)
        return Outcome(
            said,
            roster,
            account,
            detail={"code": command.code or "", "accepted": str(accepted)},
        )

    async def _whose_identity(self, person: Person | None, language: Language) -> str:
        """Somebody of the staff; or, named by the whole id, a patient or a partner whom we met."""
        mxid = person.mxid if person is not None else None
        if mxid is not None and await self._records.pins.changed(mxid) is not None:
            return mxid
        return await self._whom.of_staff(person, language)

    async def _colleague(self, person: Person | None, ward: Ward, language: Language) -> Staff:
        _ = translator(language).gettext
        account = await self._whom.of_staff(person, language)
        found = await self._records.people.get(account)
        if found is None or not found.is_clinician or found.ward != ward.id:
            raise RefusedError(
                _("{who} is not a doctor or nurse of this ward.").format(
                    who=shown(account, MAX_ACCOUNT)
                ),
                code="not_of_ward",
            )
        if person is not None and person.shown is not None:
            await self._whom.require_name(person.shown, found, Action.HANDOVER_OFFER, language)
        return found

    async def _on_duty(self, roster: Roster, ward: Ward, language: Language) -> str:
        _ = translator(language).gettext
        lines = []
        for place, one in enumerate(roster.on_call, start=1):
            person = await self._records.people.get(one.account)
            time = duty_time(one.since, ward.time_zone, language, now=self._now())
            since = _("since {time}").format(time=time)
            lines.append(f"{place}. {named(person, one.account)} {since}")
        if not lines:
            return _("NOBODY is on duty: all phones of the ward ring. Take duty: {line}").format(
                line=usage(Action.DUTY_TAKE, language)
            )
        return "\n".join([_("On duty, in the order of calling:"), *lines])

    async def _situation(self, ward: Ward, language: Language) -> str:
        """Open alarms and the limits in force, for who takes over."""
        _ = translator(language).gettext
        records, now, zone = self._records, self._now(), ward.time_zone
        patients = await records.patients_of(ward)
        states = await readable_states(records, patients, self._rules)
        alarms = open_lines(states, self._rules, language=language, zone=zone, now=now)
        own = lasting_limits(states, language=language, zone=zone, now=now)
        head = _("Open alarms: {count}").format(count=len(alarms))
        limits = _("Limits in force: {limits}").format(
            limits=limits_in_force(self._rules.of(FIRST_STANDING), language)
        )
        return "\n".join([head, *alarms[:MAX_OPEN_ALARMS], limits, *own[:MAX_OPEN_ALARMS]])

    # --- drills ----------------------------------------------------------------------------------

    def _drill_delivery(self, drill_id: str) -> str:
        return self._records.site_key.fingerprint(b"drill", drill_id.encode()).hex()

    async def answer_by_reaction(self, room_id: str, sender: str, reacts_to: str) -> None:
        """A reaction to the message of a drill that runs answers it; any other is nothing.

        Reactions are never encrypted, so a homeserver can forge one: it may do no more than this.
        """
        ward = await self._records.wards.in_room(room_id)
        if ward is None or ward.roster.drill is None:
            return
        rung = await self._records.outbox.event_of(self._drill_delivery(ward.roster.drill.drill_id))
        if rung is None or reacts_to != rung:
            return
        try:
            async with self._records.store.transaction() as connection:
                roster = await self._records.wards.roster(connection, ward.id)
                answered = duty.answer_drill(roster, sender, self._now())
                if answered != roster:
                    await self._records.wards.keep(connection, ward.id, answered)
                    await self._records.audit.note(
                        connection,
                        actor=sender,
                        action=Action.DRILL_ANSWER.value,
                        subject=ward.id,
                        now=self._now(),
                        by="reaction",
                    )
        except DutyError as refusal:
            log.info("reaction_ignored", ward=ward.id, reason=refusal.code)

    async def look_at_time(self, ward: Ward) -> None:
        """Say how a drill ended and that an offer has lapsed, once each."""
        now = self._now()
        if ward.roster.drill is None and ward.roster.offer is None:
            return
        _ = translator(ward.language).gettext
        async with self._records.store.transaction() as connection:
            roster = await self._records.wards.roster(connection, ward.id)
            left = duty.expired(roster, now)
            drill = roster.drill
            if drill is not None and (left.drill is None or not duty.drill_result(drill)[1]):
                left = replace(left, drill=None)
                await self._records.warnings.set(About.DRILL, ward.id, [], now=now)
                answered, silent = duty.drill_result(drill)
                said = "\n".join(
                    [
                        _("Drill: {count} of {all} answered.").format(
                            count=len(answered), all=len(drill.called)
                        ),
                        *[
                            _("No answer: {who}").format(
                                who=named(await self._records.people.get(one), one)
                            )
                            for one in silent
                        ],
                    ]
                )
                await self._tell(connection, ward, said, f"drill ended {drill.drill_id}")
                await self._records.audit.note(
                    connection,
                    actor=drill.started_by,
                    action="drill.end",
                    subject=ward.id,
                    now=now,
                    drill=drill.drill_id,
                    answered=" ".join(answered),
                    silent=" ".join(silent),
                )
            if roster.offer is not None and left.offer is None:
                giver = named(
                    await self._records.people.get(roster.offer.giver), roster.offer.giver
                )
                said = _("The offer of {giver} has lapsed: duty stays where it was.").format(
                    giver=giver
                )
                lapsed = f"offer lapsed {ward.id} {roster.offer.offered_at.isoformat()}"
                await self._tell(connection, ward, said, lapsed)
            if left == roster:
                return
            await self._records.wards.keep(connection, ward.id, left)
        self._records.store.hints.notify("outbox")

    async def _tell(self, connection: Connection, ward: Ward, said: str, mark: str) -> None:
        if ward.room_id is not None:
            delivery_id = self._records.site_key.fingerprint(b"duty", mark.encode()).hex()
            await self._records.outbox.add(
                connection, notice(ward.room_id, said, delivery_id, now=self._now())
            )
