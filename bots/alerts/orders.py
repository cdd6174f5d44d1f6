"""What people type in our rooms: who may, carry it out once, answer.

A command counts only if it is encrypted, from a device that its sender's pinned identity signs,
from somebody whose role allows it, in the room it belongs in, a new message (never an edit), fresh,
not seen before (the ciphertext itself is remembered, so that no homeserver can replay it under
another event id) and not typed before a command of the same device that was taken already. What is
done, the audit entry and the answer are committed together. Answers come from ``@fajma``, for which
no phone rings. A reaction can answer a drill or acknowledge an alarm, and nothing more.

No command is lost without a word: what fails is brought again by the client (with an
``UnavailableError`` the sync does not move on); what fails again and again while homeserver and
database answer is a fault of ours, and is answered as such.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

import nio
import structlog
from mautrix.util.async_db import Connection

from bots.alerts.bedside_desk import BedsideDesk
from bots.alerts.client import SignedClient
from bots.alerts.consultation_desk import ConsultationDesk
from bots.alerts.desk import Asked, Done, Place, RefusedError, notice
from bots.alerts.duty_desk import DutyDesk
from bots.alerts.site_rules import SiteRules
from fajma import duty
from fajma.commands import (
    AT_BEDSIDE,
    AT_RECEPTION,
    BY_PATIENT,
    IN_CONSULTATION,
    IN_WARD,
    Action,
    Command,
    CommandError,
    help_text,
    parse,
)
from fajma.duty import DutyError
from fajma.errors import UnavailableError
from fajma.language import Language, translator
from fajma.store import Records, from_ms
from fajma.store.alarms import Delivery
from fajma.store.orders import Spot
from fajma.store.people import Staff
from fajma.store.wards import Ward
from fajma.vitals import PatientKey

log = structlog.get_logger()

TRIES: Final = 5
"""How often what fails is tried; the client waits 1, 2, 4 and 8 s between, and nothing else is read
meanwhile."""

FRESH: Final = timedelta(minutes=10)
"""Older commands are not carried out: who typed them may have done something else since."""


@dataclass(frozen=True, slots=True)
class _Heard:
    """A message that may be a command."""

    event_id: str
    room_id: str
    sender: str
    body: str
    sent_at: datetime
    mentions: tuple[str, ...]
    replies_to: str | None
    is_reply: bool
    is_edit: bool
    event: nio.Event

    @property
    def encrypted(self) -> bool:
        return bool(getattr(self.event, "decrypted", False))


class Orders:
    """Listens in the rooms of ``@fajma-alerts``.

    Args:
        client: its signed client.
        records: everything.
        rules: what the site judges by.
        ours: user ids of our own senders, who give no orders.
        now: the clock.
    """

    def __init__(
        self,
        client: SignedClient,
        records: Records,
        rules: SiteRules,
        *,
        ours: Sequence[str],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._client = client
        self._records = records
        self._desk = DutyDesk(records, rules, now=now)
        self._bedside = BedsideDesk(records, rules, now=now)
        server = ours[0].partition(":")[2]
        self._reception = ConsultationDesk(records, rules, server=server, now=now)
        self._ours = frozenset(ours)
        self._now = now
        self._tries: dict[str, int] = {}
        self._hint = records.store.hints.subscribe("orders")
        client.add_event_callback(self._on_message, nio.RoomMessageText)
        client.add_event_callback(self._on_reaction, nio.ReactionEvent)
        client.on_gap(self._on_gap)

    async def run(self) -> None:
        """Close drills and offers whose time is over, until cancelled."""
        while True:
            try:
                for ward in await self._records.wards.all():
                    await self._desk.look_at_time(ward)
            except Exception as error:  # noqa: BLE001 - a database that is away comes back
                log.error("duty_not_looked_at", error=type(error).__name__)
            await self._records.store.hints.wait(self._hint)

    # --- messages --------------------------------------------------------------------------------

    async def _on_message(self, room: nio.MatrixRoom, event: nio.RoomMessageText) -> None:
        heard = _heard(room.room_id, event)
        if heard is None or heard.sender in self._ours:
            return
        await self._try(heard.event_id, partial(self._take, heard), partial(self._give_up, heard))

    async def _try(
        self,
        event_id: str,
        work: Callable[[], Awaitable[None]],
        give_up: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Do what an event asks for; what fails comes again, but none blocks the others for ever.

        Args:
            event_id: of the event.
            work: what it asks for.
            give_up: what is done instead after ``TRIES``.

        Raises:
            UnavailableError: the client must bring the event again.
        """
        try:
            await work()
        except Exception as error:
            if isinstance(error, UnavailableError) and error.code != "keys_query_refused":
                raise
            await self._require_database()
            tries = self._tries[event_id] = self._tries.get(event_id, 0) + 1
            log.error("order_failed", error=type(error).__name__, tries=tries)
            if tries < TRIES:
                raise UnavailableError(
                    "a command could not be carried out; trying again", code="order_failed"
                ) from error
            if give_up is not None:
                await self._last_word(give_up)
        self._tries.pop(event_id, None)

    async def _last_word(self, give_up: Callable[[], Awaitable[None]]) -> None:
        try:
            await give_up()
        except Exception as error:  # noqa: BLE001 - the messages after it still count
            await self._require_database()
            log.critical("order_not_answered", error=type(error).__name__)

    async def _require_database(self) -> None:
        try:
            await self._records.audience.epoch()
        except Exception as error:
            raise UnavailableError(
                "the database does not answer: look whether it runs", code="database_unavailable"
            ) from error

    async def _give_up(self, heard: _Heard) -> None:
        """Tell who typed that it was in vain."""
        ward = await self._records.wards.in_room(heard.room_id)
        language = await self._language(ward, heard.room_id)
        if language is None:
            return
        _ = translator(language).gettext
        said = _(
            "This could not be carried out because of a fault in FAJMA. Type it again; if it"
            " happens again, tell the operator."
        )
        async with self._records.store.transaction() as connection:
            if await self._seen_first(connection, heard):
                await self._refuse(connection, heard, said, "failed")
        self._records.store.hints.notify("outbox")

    async def _language(self, ward: Ward | None, room_id: str) -> Language | None:
        """In which a room of ours is spoken to; ``None`` for any other room."""
        if ward is not None:
            return ward.language
        consultation = await self._records.consultations.in_room(room_id)
        return consultation.language if consultation is not None else None

    async def _take(self, heard: _Heard) -> None:
        ward = await self._records.wards.in_room(heard.room_id)
        language = await self._language(ward, heard.room_id)
        if language is None:
            return
        person = await self._records.people.get(heard.sender)
        understood = _understood(heard, person, language)
        if understood is None:
            return
        command, language = understood
        if await self._records.orders_seen.known(self._envelope(heard)):
            return
        try:
            await self._allowed(heard, command, language)
            if isinstance(command, CommandError):
                raise RefusedError(self._right_line(command, ward, language), code="grammar")  # noqa: TRY301
            async with self._records.store.transaction() as connection:
                await self._require_order(connection, heard, language)
                if not await self._seen_first(connection, heard):
                    return
                # The homeserver may have taken its time, and the person left meanwhile.
                giver = await self._giver(heard, command, language)
                if command.action in AT_BEDSIDE | AT_RECEPTION:
                    await self._at_desk(connection, heard, command, giver, ward)
                elif giver is None:  # a patient who asks for help
                    said = help_text(command.language, BY_PATIENT)
                    await self._answer(connection, heard, said)
                else:
                    place = self._place(command, ward, giver, language)
                    await self._carry_out(connection, heard, command, giver, place)
        except (RefusedError, DutyError) as refusal:
            said = (
                duty.explain(refusal.code, language)
                if isinstance(refusal, DutyError)
                else str(refusal)
            )
            async with self._records.store.transaction() as connection:
                if await self._seen_first(connection, heard):
                    await self._refuse(connection, heard, said, refusal.code)
        self._records.store.hints.notify("outbox")
        self._records.store.hints.notify("facts")
        self._records.store.hints.notify("trust")
        self._records.store.hints.notify("errands")

    def _envelope(self, heard: _Heard) -> bytes:
        ciphertext = getattr(heard.event, "envelope", None)
        if isinstance(ciphertext, str):
            # The bytes, since the same ones can be written in base64 in more than one way.
            try:
                raw = base64.b64decode(ciphertext + "=" * (-len(ciphertext) % 4))
            except (ValueError, binascii.Error):
                raw = ciphertext.encode(errors="surrogatepass")
            return self._records.site_key.fingerprint(b"order", raw)
        return self._records.site_key.fingerprint(b"clear order", heard.event_id.encode())

    @staticmethod
    def _right_line(error: CommandError, ward: Ward | None, language: Language) -> str:
        """What to type instead, where it was typed."""
        works_here = {action.verb for action in (IN_CONSULTATION if ward is None else IN_WARD)}
        said = str(error) if ward is None else error.in_ward
        if error.verb in works_here:
            return said
        _ = translator(language).gettext
        if ward is not None:
            elsewhere = _("This is typed in the consultation's room, not in the ward's.")
            return f"{said}\n{elsewhere}"
        sentence = _("This is no command in a consultation. What can be typed here:")
        return f"{sentence}\n{here(language)}"

    def _spot(self, heard: _Heard) -> Spot | None:
        """Where the message stands among those of its Megolm session."""
        index = getattr(heard.event, "message_index", None)
        if not isinstance(index, int):
            return None
        names = (heard.room_id, heard.event.sender_key, heard.event.session_id)
        session = self._records.site_key.fingerprint(b"session", *(one.encode() for one in names))
        return Spot(session, index)

    async def _seen_first(self, connection: Connection, heard: _Heard) -> bool:
        """Take a command, in the transaction that carries it out or refuses it.

        Returns:
            False if it was taken before.
        """
        return await self._records.orders_seen.take(
            connection, self._envelope(heard), now=self._now(), spot=self._spot(heard)
        )

    async def _require_order(
        self, connection: Connection, heard: _Heard, language: Language
    ) -> None:
        """A homeserver could hold a command back until later ones have been carried out."""
        spot = self._spot(heard)
        if spot is not None and await self._records.orders_seen.is_overtaken(connection, spot):
            raise _too_late(language, "overtaken")

    async def _of_staff(self, heard: _Heard, language: Language) -> Staff:
        _ = translator(language).gettext
        person = await self._records.people.get(heard.sender)
        if person is None or not person.is_active:
            raise RefusedError(
                _("Only staff of this hospital can give commands here."), code="not_staff"
            )
        return person

    async def _giver(
        self, heard: _Heard, command: Command | CommandError, language: Language
    ) -> Staff | None:
        """Who gives the command; ``None`` for a patient who asks for the own values, or help."""
        shows = isinstance(command, Command) and command.action in BY_PATIENT
        person = await self._records.people.get(heard.sender)
        is_staff = person is not None and person.is_active
        if shows and not is_staff and await self._bedside.is_own(heard.room_id, heard.sender):
            return None
        return await self._of_staff(heard, language)

    async def _allowed(
        self, heard: _Heard, command: Command | CommandError, language: Language
    ) -> None:
        """All must be as it must be; the checks in the order of suspicion."""
        _ = translator(language).gettext
        await self._giver(heard, command, language)
        if not heard.encrypted:
            raise RefusedError(
                _("This message was not encrypted, so it is no command. Type it again in Element."),
                code="not_encrypted",
            )
        if not await self._client.is_signed_now(heard.event, heard.room_id):
            if await self._records.pins.changed(heard.sender) is not None:
                raise RefusedError(
                    _(
                        "The security keys of your account were reset, so your commands do not"
                        " count yet: two colleagues, or the operator, must accept the new keys."
                        " Call them; the line to type stands in the ward's room."
                    ),
                    code="identity_changed",
                )
            raise RefusedError(
                _(
                    "Your device is not confirmed, so its commands do not count. In Element choose"
                    " Verify on this device, then type it again."
                ),
                code="not_signed",
            )
        if heard.is_edit:
            raise RefusedError(
                _("An edited message is no command. Type it as a new message."), code="edited"
            )
        if abs(self._now() - heard.sent_at) > FRESH:
            raise _too_late(language, "stale")

    def _place(
        self, command: Command, ward: Ward | None, person: Staff, language: Language
    ) -> Ward | None:
        """The ward whose room this is, if the command belongs there and the person in it."""
        _ = translator(language).gettext
        if command.action is Action.HELP:
            return ward
        if ward is None:
            raise RefusedError(
                _("This is typed in the ward's room, not in a consultation."), code="wrong_room"
            )
        if not person.is_clinician or person.ward != ward.id:
            raise RefusedError(
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
            await self._answer(connection, heard, here(command.language))
            return
        roster = await self._records.wards.roster(connection, ward.id)
        outcome = await self._desk.outcome(connection, command, person, ward, roster)
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

    async def _at_desk(
        self,
        connection: Connection,
        heard: _Heard,
        command: Command,
        giver: Staff | None,
        ward: Ward | None,
    ) -> None:
        """What is about a patient, or about a consultation."""
        consultation = await self._records.consultations.in_room(heard.room_id)
        place = Place(ward, consultation if ward is None else None, heard.room_id)
        mark = self._envelope(heard)
        asked = Asked(command, place, heard.sender, giver, heard.event_id, mark, heard.replies_to)
        desk = self._bedside if command.action in AT_BEDSIDE else self._reception
        done: Done = await desk.done(connection, asked)
        patient = done.patient.key if done.patient is not None else None
        if done.detail is not None:
            await self._records.audit.note(
                connection,
                actor=heard.sender,
                action=done.act or command.action.value,
                subject=patient or heard.room_id,
                now=self._now(),
                **done.detail,
            )
        if done.said is not None:
            await self._answer(connection, heard, done.said, patient=patient)
        await self._records.outbox.add(connection, *done.also)
        log.info("order_carried_out", action=command.action.value)

    async def _answer(
        self,
        connection: Connection,
        heard: _Heard,
        said: str,
        mentions: Sequence[str] = (),
        *,
        patient: PatientKey | None = None,
    ) -> None:
        delivery_id = self._records.site_key.fingerprint(
            b"answer", heard.room_id.encode(), self._envelope(heard)
        ).hex()
        more = {
            "m.relates_to": {"m.in_reply_to": {"event_id": heard.event_id}},
            "m.mentions": {"user_ids": [heard.sender, *mentions]},
        }
        answer = notice(
            heard.room_id, said, delivery_id, now=self._now(), more=more, patient=patient
        )
        await self._records.outbox.add(connection, answer)

    async def _on_reaction(self, room: nio.MatrixRoom, event: nio.ReactionEvent) -> None:
        if event.sender in self._ours or not (event.event_id + event.reacts_to).isprintable():
            return
        await self._try(event.event_id, partial(self._take_reaction, room.room_id, event))

    async def _take_reaction(self, room_id: str, event: nio.ReactionEvent) -> None:
        await self._desk.answer_by_reaction(room_id, event.sender, event.reacts_to)
        await self._bedside.acknowledge_by_reaction(
            room_id, event.sender, event.reacts_to, event.key, event.event_id
        )

    async def _on_gap(self, room_id: str, mark: str) -> None:
        await self._try(f"gap {room_id} {mark}", partial(self._tell_of_gap, room_id, mark))

    async def _tell_of_gap(self, room_id: str, mark: str) -> None:
        """More was written in a ward's room than was read: commands among it were not heard."""
        ward = await self._records.wards.in_room(room_id)
        if ward is None:
            return
        _ = translator(ward.language).gettext
        said = _(
            "More was written here than could be read after an interruption: commands among it were"
            " not carried out. If you still want yours, type it again."
        )
        gap = self._records.site_key.fingerprint(b"gap", room_id.encode(), mark.encode())
        async with self._records.store.transaction() as connection:
            if not await self._records.orders_seen.take(connection, gap, now=self._now()):
                return
            await self._records.audit.note(
                connection, actor="fajma", action="order.gap", subject=ward.id, now=self._now()
            )
            await self._records.outbox.add(
                connection, notice(room_id, said, gap.hex(), now=self._now())
            )
        self._records.store.hints.notify("outbox")
        log.warning("messages_not_read", ward=ward.id)


def _too_late(language: Language, code: str) -> RefusedError:
    _ = translator(language).gettext
    return RefusedError(
        _("This command came too late to be carried out. If you still want it, type it again."),
        code=code,
    )


def _understood(
    heard: _Heard, person: Staff | None, room: Language
) -> tuple[Command | CommandError, Language] | None:
    """What was typed, right or wrong, and the language of the answer; ``None`` for prose.

    A person is answered in his own language, whatever the line that he copied; help comes in the
    one in which it was asked for.
    """
    language = person.language if person is not None else room
    try:
        command = parse(
            heard.body, language=language, mentions=heard.mentions, reply=heard.is_reply
        )
    except CommandError as error:
        return error, language
    if command is None:
        return None
    if command.action is Action.HELP or person is None:
        return command, command.language
    return replace(command, language=language), language


def here(language: Language) -> str:
    """What can be typed in a consultation."""
    _ = translator(language).gettext
    elsewhere = _(
        "Duty, handover and drills are typed in the ward's room; consultations are opened there,"
        " and their summaries signed."
    )
    return f"{help_text(language, IN_CONSULTATION)}\n{elsewhere}"


def _heard(room_id: str, event: nio.RoomMessageText) -> _Heard | None:
    """What was said, out of whatever shape the content has; ``None`` if nothing was.

    Ids with characters that no client writes are of no message: a database would not take them.
    """
    content = event.source.get("content")
    if not isinstance(content, dict) or not (event.event_id + event.sender).isprintable():
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
    reply = relates.get("m.in_reply_to")
    replies_to = reply.get("event_id") if isinstance(reply, dict) else None
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
        replies_to=replies_to if isinstance(replies_to, str) and replies_to.isprintable() else None,
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
