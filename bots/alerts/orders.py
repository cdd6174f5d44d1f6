"""What people type in our rooms: who may, carry it out once, answer.

A command counts only if it is encrypted, from a device that its sender's pinned identity signs,
from somebody whose role allows it, in the room it belongs in, a new message (never an edit), fresh,
and not seen before (the ciphertext itself is remembered, so that no homeserver can replay it under
another event id). What is done, the audit entry and the answer are committed together. Answers come
from ``@fajma``, for which no phone rings. A reaction can answer a drill and nothing more.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import nio
import structlog
from mautrix.util.async_db import Connection

from bots.alerts.alarm_state import PatientState
from bots.alerts.client import SignedClient
from bots.alerts.limits import Rules
from bots.alerts.text import clock_time, limits_in_force, open_alarm
from fajma import duty
from fajma.commands import Action, Command, CommandError, Person, help_text, parse, usage
from fajma.duty import DutyError, Roster
from fajma.errors import FajmaError, UnavailableError
from fajma.language import Language, shown, translator
from fajma.store import Records, from_ms
from fajma.store.alarms import Delivery, SentBy
from fajma.store.people import MAX_ACCOUNT, Staff, named
from fajma.store.pins import APPROVALS_NEEDED
from fajma.store.wards import Ward
from fajma.store.warnings import About
from fajma.trust import identity_code
from fajma.vitals import Kind

log = structlog.get_logger()

FRESH: Final = timedelta(minutes=10)
"""Older commands are not carried out: who typed them may have done something else since."""

MAX_OPEN_ALARMS: Final = 40
"""Lines in a handover; more would not fit into an event."""


class _RefusedError(FajmaError):
    """A command that is not carried out; the message is the answer, in the person's language."""


@dataclass(frozen=True, slots=True)
class _Heard:
    """A message that may be a command."""

    event_id: str
    room_id: str
    sender: str
    body: str
    sent_at: datetime
    mentions: tuple[str, ...]
    is_reply: bool
    is_edit: bool
    event: nio.Event

    @property
    def encrypted(self) -> bool:
        return bool(getattr(self.event, "decrypted", False))


@dataclass(frozen=True, slots=True)
class _Outcome:
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


class Orders:
    """Listens in the rooms of ``@fajma-alerts``.

    Args:
        client: its signed client.
        records: everything.
        rules: the alarm limits in force, for handovers.
        ours: user ids of our own senders, who give no orders.
        now: the clock.
    """

    def __init__(
        self,
        client: SignedClient,
        records: Records,
        rules: Rules,
        *,
        ours: Sequence[str],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._client = client
        self._records = records
        self._rules = rules
        self._ours = frozenset(ours)
        self._now = now
        self._hint = records.store.hints.subscribe("orders")
        client.add_event_callback(self._on_message, nio.RoomMessageText)
        client.add_event_callback(self._on_reaction, nio.ReactionEvent)

    async def run(self) -> None:
        """Close drills and offers whose time is over, until cancelled."""
        while True:
            try:
                for ward in await self._records.wards.all():
                    await self.look_at_time(ward)
            except Exception as error:  # noqa: BLE001 - a database that is away comes back
                log.error("duty_not_looked_at", error=type(error).__name__)
            await self._records.store.hints.wait(self._hint)

    # --- messages --------------------------------------------------------------------------------

    async def _on_message(self, room: nio.MatrixRoom, event: nio.RoomMessageText) -> None:
        heard = _heard(room.room_id, event)
        if heard is None or heard.sender in self._ours:
            return
        try:
            await self._take(heard)
        except UnavailableError:
            raise  # the homeserver is away: the client brings this message again
        except Exception as error:  # noqa: BLE001 - the messages after it still count
            log.error("order_failed", room=heard.room_id, error=type(error).__name__)

    async def _take(self, heard: _Heard) -> None:
        ward = await self._records.wards.in_room(heard.room_id)
        consultation = await self._records.consultations.in_room(heard.room_id)
        if ward is None and consultation is None:
            return
        language = ward.language if ward is not None else consultation.language  # type: ignore[union-attr]
        command: Command | None = None
        error: CommandError | None = None
        try:
            command = parse(
                heard.body, language=language, mentions=heard.mentions, reply=heard.is_reply
            )
        except CommandError as wrong:
            error = wrong
        if command is None and error is None:
            return
        envelope = self._envelope(heard)
        if await self._records.orders_seen.known(envelope):
            return
        if command is not None:
            language = command.language
        try:
            person = await self._allowed(heard, language)
            if error is not None or command is None:
                raise _RefusedError(str(error), code="grammar")  # noqa: TRY301
            place = self._place(command, ward, person, language)
            async with self._records.store.transaction() as connection:
                if not await self._records.orders_seen.take(connection, envelope, now=self._now()):
                    return
                await self._carry_out(connection, heard, command, person, place)
        except (_RefusedError, DutyError) as refusal:
            said = (
                duty.explain(refusal.code, language)
                if isinstance(refusal, DutyError)
                else str(refusal)
            )
            async with self._records.store.transaction() as connection:
                if await self._records.orders_seen.take(connection, envelope, now=self._now()):
                    await self._refuse(connection, heard, said, refusal.code)
        self._records.store.hints.notify("outbox")
        self._records.store.hints.notify("trust")

    def _envelope(self, heard: _Heard) -> bytes:
        ciphertext = getattr(heard.event, "envelope", None)
        if isinstance(ciphertext, str):
            # The bytes, since the same ones can be written in base64 in more than one way.
            try:
                raw = base64.b64decode(ciphertext + "=" * (-len(ciphertext) % 4))
            except (ValueError, binascii.Error):
                raw = ciphertext.encode()
            return self._records.site_key.fingerprint(b"order", raw)
        return self._records.site_key.fingerprint(b"clear order", heard.event_id.encode())

    async def _allowed(self, heard: _Heard, language: Language) -> Staff:
        """Who gives the command, if all is as it must be; the checks in the order of suspicion."""
        _ = translator(language).gettext
        person = await self._records.people.get(heard.sender)
        if person is None or not person.is_active:
            raise _RefusedError(
                _("Only staff of this hospital can give commands here."), code="not_staff"
            )
        if not heard.encrypted:
            raise _RefusedError(
                _("This message was not encrypted, so it is no command. Type it again in Element."),
                code="not_encrypted",
            )
        if not await self._client.is_signed_now(heard.event, heard.room_id):
            raise _RefusedError(
                _(
                    "Your device is not confirmed, so its commands do not count. In Element choose"
                    " Verify on this device, then type it again."
                ),
                code="not_signed",
            )
        if heard.is_edit:
            raise _RefusedError(
                _("An edited message is no command. Type it as a new message."), code="edited"
            )
        if abs(self._now() - heard.sent_at) > FRESH:
            raise _RefusedError(
                _("This command came too late to be carried out. If you still want it, type it"
                  " again."),
                code="stale",
            )  # fmt: skip
        return person

    def _place(
        self, command: Command, ward: Ward | None, person: Staff, language: Language
    ) -> Ward | None:
        """The ward whose room this is, if the command belongs there and the person in it."""
        _ = translator(language).gettext
        if command.action is Action.HELP:
            return ward
        if ward is None:
            raise _RefusedError(
                _("This is typed in the ward's room, not in a consultation."), code="wrong_room"
            )
        if not person.is_clinician or person.ward != ward.id:
            raise _RefusedError(
                _("Only doctors and nurses of this ward can do this here."), code="not_of_ward"
            )
        return ward

    async def _refuse(self, connection: Connection, heard: _Heard, said: str, code: str) -> None:
        log.warning("order_refused", room=heard.room_id, sender=heard.sender, reason=code)
        if code != "grammar":
            await self._records.audit.note(
                connection,
                actor=heard.sender,
                action="order.refused",
                subject=heard.room_id,
                now=self._now(),
                reason=code,
            )
        await self._answer(connection, heard, said)

    async def _carry_out(
        self,
        connection: Connection,
        heard: _Heard,
        command: Command,
        person: Staff,
        ward: Ward | None,
    ) -> None:
        if ward is None:  # help is all that there is outside a ward's room
            await self._answer(connection, heard, help_text(command.language))
            return
        roster = await self._records.wards.roster(connection, ward.id)
        outcome = await self._outcome(connection, command, person, ward, roster)
        if outcome.roster != roster:
            await self._records.wards.keep(connection, ward.id, outcome.roster)
        if outcome.subject is not None:
            await self._records.audit.note(
                connection,
                actor=person.account,
                action=command.action.value,
                subject=outcome.subject,
                now=self._now(),
                **(outcome.detail or {}),
            )
        await self._answer(connection, heard, outcome.answer, outcome.mentions)
        if outcome.rings is not None:
            delivery_id, body = outcome.rings
            await self._records.outbox.add(
                connection,
                Delivery(
                    delivery_id,
                    heard.room_id,
                    None,
                    {"msgtype": "m.text", "body": body},
                    self._now(),
                ),
            )
        log.info("order_carried_out", ward=ward.id, action=command.action.value)

    async def _answer(
        self,
        connection: Connection,
        heard: _Heard,
        said: str,
        mentions: Sequence[str] = (),
    ) -> None:
        delivery_id = self._records.site_key.fingerprint(
            b"answer", heard.room_id.encode(), heard.event_id.encode()
        ).hex()
        await self._say(
            connection,
            heard.room_id,
            said,
            delivery_id,
            more={
                "m.relates_to": {"m.in_reply_to": {"event_id": heard.event_id}},
                "m.mentions": {"user_ids": [heard.sender, *mentions]},
            },
        )

    async def _say(
        self,
        connection: Connection,
        room_id: str,
        said: str,
        delivery_id: str,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        content = {"msgtype": "m.notice", "body": said, **(more or {})}
        await self._records.outbox.add(
            connection,
            Delivery(delivery_id, room_id, None, content, self._now(), SentBy.HOST),
        )

    # --- what each command does ------------------------------------------------------------------

    async def _outcome(  # noqa: PLR0911 - one for each action
        self,
        connection: Connection,
        command: Command,
        person: Staff,
        ward: Ward,
        roster: Roster,
    ) -> _Outcome:
        now = self._now()
        language = command.language
        _ = translator(language).gettext
        me = named(person, person.account)
        match command.action:
            case Action.HELP:
                return _Outcome(help_text(language), roster)
            case Action.DUTY_SHOW:
                return _Outcome(await self._on_duty(roster, ward, language), roster)
            case Action.DUTY_TAKE:
                taken = duty.take(roster, person.account, now)
                said = _("{who} is on duty; alarms ring on this person's phone.").format(who=me)
                return _Outcome(
                    f"{said}\n{await self._on_duty(taken, ward, language)}", taken, person.account
                )
            case Action.DUTY_LEAVE:
                left = duty.leave(roster, person.account, now=now)
                said = _("{who} is off duty; alarms are silent on this person's phone.").format(
                    who=me
                )
                return _Outcome(
                    f"{said}\n{await self._on_duty(left, ward, language)}", left, person.account
                )
            case Action.DRILL_START:
                return await self._drill(person, ward, roster, language)
            case Action.DRILL_ANSWER:
                answered = duty.answer_drill(roster, person.account, now)
                return _Outcome(
                    _("{who} has answered the drill.").format(who=me), answered, person.account
                )
            case Action.IDENTITY_ACCEPT:
                return await self._accept_identity(connection, command, person, roster)
            case _:
                return await self._hand_over(command, person, ward, roster)

    async def _hand_over(
        self, command: Command, person: Staff, ward: Ward, roster: Roster
    ) -> _Outcome:
        now = self._now()
        language = command.language
        _ = translator(language).gettext
        me = named(person, person.account)
        if command.action is Action.HANDOVER_OFFER:
            taker = await self._colleague(command.person, ward, language)
            offered = duty.offer(roster, person.account, taker.account, now)
            return _Outcome(
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
            return _Outcome(
                _("{who} declines: duty stays where it was.").format(who=me),
                duty.decline(roster, person.account, now),
                person.account,
            )
        if command.action is Action.HANDOVER_CANCEL:
            return _Outcome(
                _("{who} takes the offer back.").format(who=me),
                duty.cancel(roster, person.account, now),
                person.account,
            )
        giver = roster.offer.giver if roster.offer is not None else ""
        changed = duty.accept(roster, person.account, now)
        giving = named(await self._records.people.get(giver), giver)
        said = _("HANDOVER · {taker} takes over from {giver}").format(taker=me, giver=giving)
        summary = await self._situation(ward, language)
        return _Outcome(
            f"{said}\n{summary}\n{await self._on_duty(changed, ward, language)}",
            changed,
            person.account,
            detail={"giver": giver, "taker": person.account},
        )

    async def _drill(
        self, person: Staff, ward: Ward, roster: Roster, language: Language
    ) -> _Outcome:
        _ = translator(language).gettext
        ngettext = translator(language).ngettext
        team = [one.account for one in await self._records.people.team(ward.id)]
        called = sorted(duty.ringing(roster, team))
        drill_id = secrets.token_hex(8)
        started = duty.start_drill(roster, person.account, drill_id, called, self._now())
        await self._records.warnings.set(About.DRILL, ward.id, [drill_id], now=self._now())
        body = _("DRILL · not an alarm · whose phone rang answers: {line} (or reacts to this)")
        return _Outcome(
            ngettext(
                "Drill started by {who}: {count} phone is rung.",
                "Drill started by {who}: {count} phones are rung.",
                len(called),
            ).format(who=named(person, person.account), count=len(called)),
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
    ) -> _Outcome:
        language = command.language
        _ = translator(language).gettext
        account = await self._whose_identity(command.person, language)
        changed = await self._records.pins.changed(account)
        if changed is None:
            raise _RefusedError(
                _("No changed keys of {who} wait to be accepted.").format(
                    who=shown(account, MAX_ACCOUNT)
                ),
                code="no_change",
            )
        if account == person.account:
            raise _RefusedError(
                _("Your own keys are accepted by two colleagues, not by yourself."),
                code="own_identity",
            )
        if command.code != identity_code(changed.master_key):
            raise _RefusedError(
                _(
                    "This is not the code of the keys that {who} shows now. Look at the newest"
                    " message about it, and ask the person again."
                ).format(who=shown(account, MAX_ACCOUNT)),
                code="wrong_code",
            )
        accepted = await self._records.pins.approve(
            connection, changed, by=person.account, now=self._now()
        )
        who = named(await self._records.people.get(account), account)
        said = (
            _("The new keys of {who} are accepted: vitals and alarms come again.").format(who=who)
            if accepted
            else _(
                "{me} accepts the new keys of {who}: 1 of {needed}. One more colleague types the"
                " same line."
            ).format(me=named(person, person.account), who=who, needed=APPROVALS_NEEDED)
        )
        return _Outcome(
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
        return await self._account(person, language)

    async def _account(self, person: Person | None, language: Language) -> str:
        """The account that a command names: one of the staff.

        A bare name must be the local part of exactly one of them.
        """
        _ = translator(language).gettext
        staff = await self._records.people.active()
        if person is not None and person.mxid is not None:
            found = [one.account for one in staff if one.account == person.mxid]
        else:
            wanted = person.localpart if person is not None else None
            found = [one.account for one in staff if one.account[1:].split(":", 1)[0] == wanted]
        if len(found) == 1:
            return found[0]
        if found:
            raise _RefusedError(
                _("More than one person has this name: write the whole id: {ids}").format(
                    ids=", ".join(found)
                ),
                code="ambiguous",
            )
        raise _RefusedError(
            _("Nobody of the staff has this id. Write @ and the id, or pick the person from"
              " Element's list."),
            code="nobody",
        )  # fmt: skip

    async def _colleague(self, person: Person | None, ward: Ward, language: Language) -> Staff:
        _ = translator(language).gettext
        account = await self._account(person, language)
        found = await self._records.people.get(account)
        if found is None or not found.is_clinician or found.ward != ward.id:
            raise _RefusedError(
                _("{who} is not a doctor or nurse of this ward.").format(
                    who=shown(account, MAX_ACCOUNT)
                ),
                code="not_of_ward",
            )
        return found

    async def _on_duty(self, roster: Roster, ward: Ward, language: Language) -> str:
        _ = translator(language).gettext
        lines = []
        for place, one in enumerate(roster.on_call, start=1):
            person = await self._records.people.get(one.account)
            since = _("since {time}").format(time=clock_time(one.since, ward.time_zone))
            lines.append(f"{place}. {named(person, one.account)} {since}")
        if not lines:
            return _("NOBODY is on duty: all phones of the ward ring. Take duty: {line}").format(
                line=usage(Action.DUTY_TAKE, language)
            )
        return "\n".join([_("On duty, in the order of calling:"), *lines])

    async def _situation(self, ward: Ward, language: Language) -> str:
        """Open alarms and the limits in force, for who takes over."""
        _ = translator(language).gettext
        lines = []
        for patient in await self._records.patients.all():
            responsible = await self._records.wards.responsible(patient.key)
            if responsible is None or responsible.id != ward.id:
                continue
            text = await self._records.alarm_states.get(patient.key)
            state = PatientState.from_json(text) if text else PatientState()
            for key, track in state.tracks.items():
                if track.episode is not None:
                    lines.append(
                        open_alarm(
                            Kind(key.rsplit("-", 1)[0]),
                            track.episode,
                            bed=patient.bed,
                            initials=patient.initials,
                            language=language,
                            zone=ward.time_zone,
                        )
                    )
        head = _("Open alarms: {count}").format(count=len(lines))
        limits = _("Limits in force: {limits}").format(
            limits=limits_in_force(self._rules, language)
        )
        return "\n".join([head, *lines[:MAX_OPEN_ALARMS], limits])

    # --- drills ----------------------------------------------------------------------------------

    def _drill_delivery(self, drill_id: str) -> str:
        return self._records.site_key.fingerprint(b"drill", drill_id.encode()).hex()

    async def _on_reaction(self, room: nio.MatrixRoom, event: nio.ReactionEvent) -> None:
        """A reaction to a drill's message answers it. Reactions are never encrypted."""
        ward = await self._records.wards.in_room(room.room_id)
        if ward is None or ward.roster.drill is None or event.sender in self._ours:
            return
        rung = await self._records.outbox.event_of(self._drill_delivery(ward.roster.drill.drill_id))
        if rung is None or event.reacts_to != rung:
            return
        try:
            async with self._records.store.transaction() as connection:
                roster = await self._records.wards.roster(connection, ward.id)
                answered = duty.answer_drill(roster, event.sender, self._now())
                if answered != roster:
                    await self._records.wards.keep(connection, ward.id, answered)
                    await self._records.audit.note(
                        connection,
                        actor=event.sender,
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
            await self._say(connection, ward.room_id, said, delivery_id)


def _heard(room_id: str, event: nio.RoomMessageText) -> _Heard | None:
    """What was said, out of whatever shape the content has; ``None`` if nothing was."""
    content = event.source.get("content")
    if not isinstance(content, dict):
        return None
    relates = content.get("m.relates_to")
    relates = relates if isinstance(relates, dict) else {}
    # The relation may stand in clear, where a homeserver can take it away; the new content cannot.
    is_edit = relates.get("rel_type") == "m.replace" or "m.new_content" in content
    said = content.get("m.new_content") if is_edit else content
    said = said if isinstance(said, dict) else {}
    body = said.get("body")
    if not isinstance(body, str):
        return None
    mentions = said.get("m.mentions")
    users = mentions.get("user_ids") if isinstance(mentions, dict) else None
    return _Heard(
        event_id=event.event_id,
        room_id=room_id,
        sender=event.sender,
        body=body,
        sent_at=_sent_at(event),
        mentions=tuple(one for one in users or () if isinstance(one, str))
        if isinstance(users, list)
        else (),
        is_reply="m.in_reply_to" in relates,
        is_edit=is_edit,
        event=event,
    )


def _sent_at(event: nio.Event) -> datetime:
    """When the homeserver says it was sent; a time that no calendar has is never fresh."""
    try:
        return from_ms(event.server_timestamp)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)
