"""What the commands about a patient do: alarms answered and paused, limits, values, signs.

Who may give which command, and whom it is about, is decided here; what becomes of it, by the alarm
engine, for which each command leaves a fact. Facts, audit entry and answer are committed together.

Doctors and nurses of the consultation, or of the ward that answers for the patient, may do all of
it, but for limits, which doctors set. A patient may ask for the own values in the own consultation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final, TypeVar

import structlog
from mautrix.util.async_db import Connection

from bots.alerts.alarm import Reason
from bots.alerts.alarm_state import OwnLimit, PatientState
from bots.alerts.attention import SNOOZE_AT_MOST
from bots.alerts.bedside_text import (
    acknowledged_line,
    bed_of,
    beds,
    entered_line,
    news2_lacks,
    news2_line,
    own_limit_line,
    side,
)
from bots.alerts.desk import Asked, Done, Place, RefusedError, is_bed, is_of, notice
from bots.alerts.kept_state import present_state
from bots.alerts.limits import Direction, Priority
from bots.alerts.news2 import missing, score
from bots.alerts.open_alarms import AnyDecision, OpenAlarm, episode_of, open_alarms
from bots.alerts.own_limits import BOUNDS, KEPT_AT_MOST, check_limit, with_fact
from bots.alerts.profiles import age_unknown
from bots.alerts.site_rules import SiteRules
from bots.alerts.situation import (
    is_answered,
    open_lines,
    outage_line,
    outage_text,
    readable_states,
    words,
)
from bots.alerts.technical import TechnicalDecision
from bots.alerts.text import MAX_BED, clock_time, label_of, limits_in_force, number_of
from fajma.bedside import Bedside
from fajma.charts import ChartOrder
from fajma.commands import Action, usage, usage_in_ward
from fajma.errors import BugError
from fajma.events import ALARM, OUTAGE
from fajma.facts import Acknowledged, Entered, Fact, LimitSet, Snoozed
from fajma.language import Language, shown, translator
from fajma.store import Records, to_ms
from fajma.store.alarms import Delivery, SentBy
from fajma.store.outages import Outage
from fajma.store.patients import Patient
from fajma.store.people import Role, Staff, named
from fajma.store.wards import Ward
from fajma.vitals import Kind, PatientKey

log = structlog.get_logger()

LIMIT_LASTS: Final = timedelta(hours=24)
"""A limit that is not kept ends with the handover, and after a day at the latest. FAJMA default."""

LOOKS_BACK: Final = timedelta(hours=6)
"""What ``!constantes`` shows when nothing is said."""

LOOKS_BACK_AT_MOST: Final = timedelta(hours=24)
"""More than a day is a case for the hospital's records."""

MAX_LINES: Final = 40
"""Alarms in one answer; more would not fit into an event."""

TICKS: Final = frozenset("✅✔☑")
"""Reactions that say "I take care"; a thumb says only "I like it"."""

_VARIATION: Final = "\N{VARIATION SELECTOR-16}"
_FACTS_BACK: Final = 500  # where the reason of a limit is looked for


_Say = Callable[[Language, str], str]
"""The words of something, in a language and with times in a zone."""


class BedsideDesk:
    """Carries out commands about patients.

    Args:
        records: everything.
        rules: what the site judges by.
        now: the clock.
    """

    def __init__(self, records: Records, rules: SiteRules, *, now: Callable[[], datetime]) -> None:
        self._records = records
        self._rules = rules
        self._now = now

    # --- who, and about whom ---------------------------------------------------------------------

    async def done(  # noqa: PLR0911 - one for each action
        self, connection: Connection, asked: Asked
    ) -> Done:
        """Carry a command out, inside the transaction that will keep its answer.

        Raises:
            RefusedError: it is not this person's to give, or about nobody for certain.
        """
        command, about = asked.command, asked.command.about or Bedside()
        language = command.language
        if about.bed is None and (done := await self._of_whole_ward(connection, asked, about)):
            return done
        patient = await self._whom(asked, about)
        await self._require_right(asked, patient)
        match command.action:
            case Action.ACKNOWLEDGE:
                return await self._acknowledge(connection, asked, about, patient)
            case Action.SNOOZE:
                return await self._snooze(connection, asked, about, patient)
            case Action.LIMIT_SET:
                return await self._set_limit(connection, asked, about, patient)
            case Action.LIMIT_RESET:
                return await self._reset_limit(connection, asked, about, patient)
            case Action.LIMITS_SHOW:
                return await self._limits(patient, asked)
            case Action.SIGNS_ENTER:
                return await self._enter(connection, asked, about, patient)
            case Action.VITALS_SHOW:
                return self._vitals(asked, about, patient)
            case _:
                return await self._alarms_of_patient(patient, language, asked.place.zone)

    async def _of_whole_ward(
        self, connection: Connection, asked: Asked, about: Bedside
    ) -> Done | None:
        """What is about no single patient: all open alarms, or the outage that somebody takes."""
        if asked.command.action is Action.ALARMS_SHOW and asked.place.ward is not None:
            await self._require_of_ward(asked)
            return await self._alarms_of_ward(asked.place.ward, asked.command.language)
        if asked.command.action is Action.ACKNOWLEDGE and about.kind is None:
            return await self._acknowledge_outage(connection, asked)
        return None

    async def is_own(self, room_id: str, account: str) -> bool:
        """Whether this is the consultation of the patient who has the account."""
        consultation = await self._records.consultations.in_room(room_id)
        if consultation is None:
            return False
        patient = await self._records.patients.get(consultation.patient)
        return patient is not None and patient.account == account

    async def _whom(self, asked: Asked, about: Bedside) -> Patient:
        """The patient: the consultation's, or the one in the bed that was named.

        Raises:
            RefusedError: no bed, none of that name, or several.
        """
        language = asked.command.language
        _ = translator(language).gettext
        consultation = asked.place.consultation
        if consultation is not None:
            patient = await self._records.patients.get(consultation.patient)
            if patient is None:
                raise RefusedError(_("This consultation has no patient."), code="no_patient")
            if about.bed is not None and not is_bed(patient, about.bed):
                raise RefusedError(
                    _("Nothing was done: this is another patient's room, {where}").format(
                        where=bed_of(patient, language)
                    ),
                    code="other_bed",
                )
            return patient
        await self._require_of_ward(asked)
        ward = asked.place.ward
        here = await self._records.patients_of(ward) if ward is not None else []
        if about.bed is not None:
            found = [one for one in here if is_bed(one, about.bed)]
        else:
            replied_about = await self._replied_about(asked)
            found = [one for one in here if one.key == replied_about]
        if len(found) == 1:
            return found[0]
        code = "bed_missing"
        said = _("Nothing was done: say which bed, like this: {line}").format(
            line=usage_in_ward(asked.command.action, language)
        )
        if about.bed is not None:
            code = "bed_unknown"
            said = _(
                "Nothing was done: no patient of this ward is in that bed by our records. The beds:"
            )
        if found:
            code = "bed_ambiguous"
            said = _(
                "Nothing was done: several patients are in this bed by our records. Type it in the"
                " patient's consultation, or have the bed corrected."
            )
        raise RefusedError(f"{said}\n{beds(here, language)}", code=code)

    async def _replied_about(self, asked: Asked) -> PatientKey | None:
        """Whose alarm the message answers.

        Only to acknowledge: what is answered is known by the homeserver's word, which can forge a
        tick too.
        """
        if asked.command.action is not Action.ACKNOWLEDGE:
            return None
        delivery = await self._alarm_at(asked.place.room_id, asked.replies_to)
        return None if delivery is None else delivery.patient

    async def _alarm_at(self, room_id: str, event_id: str | None) -> Delivery | None:
        """The alarm that became an event of a room."""
        found = await self._records.outbox.delivery_of(event_id) if event_id else None
        is_alarm = found is not None and found.sender is SentBy.ALERTS
        return found if found is not None and is_alarm and found.room_id == room_id else None

    async def _require_of_ward(self, asked: Asked) -> None:
        ward, person = asked.place.ward, asked.person
        if ward is None or person is None or not is_of(person, ward):
            _ = translator(asked.command.language).gettext
            raise RefusedError(
                _("Only doctors and nurses of this ward can do this here."), code="not_of_ward"
            )

    async def _require_right(self, asked: Asked, patient: Patient) -> None:
        """Doctors and nurses who answer for the patient; limits are a doctor's."""
        _ = translator(asked.command.language).gettext
        if asked.person is None:  # the patient, who was let through for nothing else
            return
        if not await self._answers_for(asked.person, patient):
            raise RefusedError(
                _("Only doctors and nurses of this consultation or of the ward can do this."),
                code="not_treating",
            )
        sets = asked.command.action in (Action.LIMIT_SET, Action.LIMIT_RESET)
        if sets and asked.person.role is not Role.DOCTOR:
            raise RefusedError(
                _("Limits are set by doctors. Until then you can pause the alarm: {line}").format(
                    line=self._line(Action.SNOOZE, asked, patient)
                ),
                code="not_doctor",
            )

    @staticmethod
    def _line(action: Action, asked: Asked, patient: Patient) -> str:
        """What to type about a patient, where it was asked."""
        language = asked.command.language
        if asked.place.ward is None:
            return usage(action, language)
        return usage_in_ward(action, language, shown(patient.bed, MAX_BED))

    async def _answers_for(self, person: Staff, patient: Patient) -> bool:
        if not person.is_clinician:
            return False
        ward = await self._records.wards.responsible(patient.key)
        if ward is not None and is_of(person, ward):
            return True
        consultation = await self._records.consultations.of_patient(patient.key)
        return consultation is not None and person.account in consultation.clinicians

    # --- alarms ----------------------------------------------------------------------------------

    async def _acknowledge(
        self, connection: Connection, asked: Asked, about: Bedside, patient: Patient
    ) -> Done:
        language = asked.command.language
        _ = translator(language).gettext
        now = self._now()
        state = await present_state(self._records, patient.key, self._rules)
        open_ones = [
            (alarm, decision)
            for alarm, decision in self._open(state)
            if _is_about(decision, about.kind, sensor=about.sensor)
        ]
        waiting = [each for each in open_ones if not is_answered(state, each[0])]
        if not waiting:
            said = (
                _("Somebody takes care of it already: {where}")
                if open_ones
                else _("No alarm of this kind is open: {where}")
            )
            return Done(said.format(where=bed_of(patient, language)), patient)
        ids = [alarm.alarm_id for alarm, _ in waiting]
        facts = [Acknowledged(now, asked.account, one) for one in ids]
        await self._records.facts.append(connection, patient.key, *facts)
        say = self._seen(patient, [decision for _, decision in waiting], asked.person, now)
        return Done(
            say(language, asked.place.zone),
            patient,
            {"alarms": " ".join(ids), "by": "command"},
            await self._elsewhere(patient, say, asked.place.room_id, asked.mark),
        )

    def _seen(
        self, patient: Patient, about: Collection[AnyDecision], person: Staff | None, now: datetime
    ) -> _Say:
        """That somebody takes care, with the words of each alarm."""
        who = named(person, person.account if person is not None else "")

        def say(language: Language, zone: str) -> str:
            head = acknowledged_line(who, clock_time(now, zone), language)
            return "\n".join([head, *(words(one, patient, language, zone) for one in about)])

        return say

    async def acknowledge_by_reaction(
        self, room_id: str, sender: str, reacts_to: str, key: str, event_id: str
    ) -> None:
        """A tick on the message of an open alarm acknowledges that alarm; nothing else does.

        Reactions are never encrypted, so a homeserver can forge one: it may do no more than this.
        """
        if key.replace(_VARIATION, "") not in TICKS:
            return
        records = self._records
        delivery = await self._alarm_at(room_id, reacts_to)
        if delivery is None:
            return
        if delivery.patient is None:
            await self._tick_on_outage(delivery, sender, reacts_to, event_id)
            return
        told = delivery.content.get(ALARM) or {}
        alarm_id, seen = told.get("alarm_id"), told.get("priority")
        patient = await records.patients.get(delivery.patient)
        person = await records.people.get(sender)
        if patient is None or person is None or not await self._answers_for(person, patient):
            log.info("reaction_ignored", reason="not_treating")
            return
        now = self._now()
        mark = records.site_key.fingerprint(b"tick", room_id.encode(), event_id.encode())
        async with records.store.transaction() as connection:
            if not await records.orders_seen.take(connection, mark, now=now):
                return
            state = await present_state(self._records, patient.key, self._rules)
            said_of = [
                decision
                for alarm, decision in self._open(state)
                if alarm.alarm_id == alarm_id
                and not is_answered(state, alarm)
                and (seen is None or decision.priority <= Priority[seen.upper()])
            ]
            if not said_of:
                log.info("reaction_ignored", reason="no_open_alarm")
                return
            await records.facts.append(
                connection, patient.key, Acknowledged(now, sender, alarm_id, seen)
            )
            await records.audit.note(
                connection,
                actor=sender,
                action=Action.ACKNOWLEDGE.value,
                subject=patient.key,
                now=now,
                alarms=str(alarm_id),
                by="reaction",
            )
            say = self._seen(patient, said_of, person, now)
            more = {"m.relates_to": {"m.in_reply_to": {"event_id": reacts_to}}}
            place = await self._place(room_id)
            language = place.ward.language if place.ward is not None else person.language
            answer = notice(
                room_id,
                say(language, place.zone),
                records.site_key.fingerprint(b"answer", mark).hex(),
                now=now,
                more=more,
                patient=patient.key,
            )
            others = await self._elsewhere(patient, say, room_id, mark)
            await records.outbox.add(connection, answer, *others)
        records.store.hints.notify("facts")
        records.store.hints.notify("outbox")
        log.info("alarm_acknowledged", by="reaction")

    # --- outages of a ward -----------------------------------------------------------------------

    async def _acknowledge_outage(self, connection: Connection, asked: Asked) -> Done | None:
        """The outage of the ward, which concerns no single bed.

        ``None`` if there is none, or if the message answers a patient's alarm.
        """
        records, language, ward = self._records, asked.command.language, asked.place.ward
        one = None if ward is None else await records.outages.of(ward.id)
        if ward is None or one is None or await self._replied_about(asked) is not None:
            return None
        await self._require_of_ward(asked)
        _ = translator(language).gettext
        taken = await records.outages.answer(connection, ward.id, self._now())
        who = named(asked.person, asked.account)
        if taken is None:
            text = await outage_text(records, one, one.patients, ward, language)
            return Done(_("Somebody takes care of it already: {where}").format(where=text.body))
        said = await self._outage_seen(taken, ward, who, language)
        return Done(said, None, {"outage": str(len(taken.patients)), "by": "command"})

    async def _tick_on_outage(
        self, delivery: Delivery, sender: str, reacts_to: str, event_id: str
    ) -> None:
        """A tick on the message of the outage that goes on; it may do no more than on an alarm."""
        records, room_id = self._records, delivery.room_id
        ward = await records.wards.in_room(room_id)
        person = await records.people.get(sender)
        if OUTAGE not in delivery.content or ward is None:
            return
        if person is None or not is_of(person, ward):
            log.info("reaction_ignored", reason="not_of_ward")
            return
        now = self._now()
        mark = records.site_key.fingerprint(b"tick", room_id.encode(), event_id.encode())
        async with records.store.transaction() as connection:
            if not await records.orders_seen.take(connection, mark, now=now):
                return
            one = await records.outages.of(ward.id)
            if one is None or to_ms(one.began_at) != delivery.content[OUTAGE]:
                log.info("reaction_ignored", reason="no_open_alarm")
                return
            if await records.outages.answer(connection, ward.id, now) is None:
                log.info("reaction_ignored", reason="no_open_alarm")
                return
            await records.audit.note(
                connection,
                actor=sender,
                action=Action.ACKNOWLEDGE.value,
                subject=room_id,
                now=now,
                outage=str(len(one.patients)),
                by="reaction",
            )
            answer = notice(
                room_id,
                await self._outage_seen(one, ward, named(person, sender), ward.language),
                records.site_key.fingerprint(b"answer", mark).hex(),
                now=now,
                more={"m.relates_to": {"m.in_reply_to": {"event_id": reacts_to}}},
            )
            await records.outbox.add(connection, answer)
        records.store.hints.notify("outbox")
        log.info("outage_acknowledged", by="reaction")

    async def _outage_seen(self, one: Outage, ward: Ward, who: str, language: Language) -> str:
        head = acknowledged_line(who, clock_time(self._now(), ward.time_zone), language)
        text = await outage_text(self._records, one, one.patients, ward, language)
        return f"{head}\n{text.body}"

    async def _place(self, room_id: str) -> Place:
        ward = await self._records.wards.in_room(room_id)
        return Place(ward, await self._records.consultations.in_room(room_id), room_id)

    async def _elsewhere(
        self, patient: Patient, say: _Say, room_id: str, mark: bytes
    ) -> tuple[Delivery, ...]:
        """The same for the patient's other room: an answer counts everywhere, so it shows there."""
        ward = await self._records.wards.responsible(patient.key)
        consultation = await self._records.consultations.of_patient(patient.key)
        rooms = {
            one.room_id: one
            for one in (ward, consultation)
            if one is not None and one.room_id is not None and one.room_id != room_id
        }
        return tuple(
            notice(
                other,
                say(one.language, one.time_zone),
                self._records.site_key.fingerprint(b"elsewhere", other.encode(), mark).hex(),
                now=self._now(),
                patient=patient.key,
            )
            for other, one in rooms.items()
        )

    async def _snooze(
        self, connection: Connection, asked: Asked, about: Bedside, patient: Patient
    ) -> Done:
        language = asked.command.language
        _ = translator(language).gettext
        now, kind = self._now(), _required(about.kind)
        lasts = about.lasts or SNOOZE_AT_MOST
        if lasts > SNOOZE_AT_MOST:
            raise RefusedError(
                _("Nothing was done: a pause lasts {minutes} minutes at most.").format(
                    minutes=round(SNOOZE_AT_MOST / timedelta(minutes=1))
                ),
                code="snooze_too_long",
            )
        state = await present_state(self._records, patient.key, self._rules)
        sides = [bands.key for bands in self._rules.of(state.standing).by_kind.get(kind, ())]
        if about.direction is not None:
            sides = [key for key in sides if key.endswith(f"-{about.direction}")]
        in_alarm = [key for key in sides if episode_of(state, key) is not None]
        if not sides:
            raise RefusedError(
                _("Nothing was done: no limit guards this side of {kind}.").format(
                    kind=label_of(kind, language)[0]
                ),
                code="nothing_to_snooze",
            )
        until = now + lasts
        paused = in_alarm or sides
        directions = [key.removeprefix(f"{kind}-") for key in paused]
        facts = [Snoozed(now, asked.account, kind, one, until) for one in directions]
        await self._records.facts.append(connection, patient.key, *facts)
        decisions = [
            decision
            for _alarm, decision in self._open(state)
            if _is_about(decision, kind, sensor=False)
        ]
        who = named(asked.person, asked.account)

        def say(language: Language, zone: str) -> str:
            _ = translator(language).gettext
            head = _(
                "Pause of {sides} until {time}, by {who} · {where} · it ends early if it gets worse"
            ).format(
                sides=", ".join(side(kind, one, language) for one in directions),
                time=clock_time(until, zone),
                who=who,
                where=bed_of(patient, language),
            )
            return "\n".join([head, *(words(one, patient, language, zone) for one in decisions)])

        return Done(
            say(language, asked.place.zone),
            patient,
            {"tracks": " ".join(paused), "until": until.isoformat()},
            await self._elsewhere(patient, say, asked.place.room_id, asked.mark),
        )

    async def _alarms_of_ward(self, ward: Ward, language: Language) -> Done:
        patients = await self._records.patients_of(ward)
        said = await self._alarms_of(patients, ward, language, ward.time_zone)
        return Done(said, patients[0] if len(patients) == 1 else None)

    async def _alarms_of_patient(self, patient: Patient, language: Language, zone: str) -> Done:
        ward = await self._records.wards.responsible(patient.key)
        return Done(await self._alarms_of([patient], ward, language, zone), patient)

    async def _alarms_of(
        self, patients: Collection[Patient], ward: Ward | None, language: Language, zone: str
    ) -> str:
        """The open alarms of patients of a ward, and its outage if it concerns one of them."""
        _ = translator(language).gettext
        records, now = self._records, self._now()
        states = await readable_states(records, patients, self._rules)
        lines = open_lines(states, self._rules, language=language, zone=zone, now=now)
        one = None if ward is None else await records.outages.of(ward.id)
        if ward is not None and one is not None and one.patients & {each.key for each in patients}:
            line = await outage_line(records, one, self._rules, ward, language=language, now=now)
            lines = [*([] if line is None else [line]), *lines]
        head = _("Open alarms: {count}").format(count=len(lines))
        return "\n".join([head, *lines[:MAX_LINES]])

    # --- limits ----------------------------------------------------------------------------------

    async def _set_limit(
        self, connection: Connection, asked: Asked, about: Bedside, patient: Patient
    ) -> Done:
        language = asked.command.language
        kind, threshold = _required(about.kind), _required(about.threshold)
        direction = self._direction(about, language)
        now = self._now()
        until = now + (KEPT_AT_MOST if about.kept else LIMIT_LASTS)
        fact = LimitSet(
            now, asked.account, kind, direction, threshold, about.reason, until, about.kept
        )
        return await self._limit_changed(connection, asked, patient, [fact])

    def _direction(self, about: Bedside, language: Language) -> Direction:
        """The side that was named, or the only one that has such a limit.

        Raises:
            RefusedError: neither has, or both.
        """
        _ = translator(language).gettext
        kind, threshold = _required(about.kind), _required(about.threshold)
        sides = [one for one in Direction if about.direction in (None, one)]
        possible = [one for one in sides if check_limit(kind, one, threshold) is None]
        if len(possible) == 1:
            return possible[0]
        label, unit = label_of(kind, language)
        if possible:
            raise RefusedError(
                _("Nothing was done: write < or > before the limit of {kind}.").format(kind=label),
                code="limit_side",
            )
        ranges = [
            _("{side} from {lowest} to {highest} {unit}").format(
                side=side(kind, one, language),
                lowest=number_of(BOUNDS[kind, one][0], kind, language),
                highest=number_of(BOUNDS[kind, one][1], kind, language),
                unit=unit,
            )
            for one in Direction
            if (kind, one) in BOUNDS
        ]
        raise RefusedError(
            _("Nothing was done. Limits that can be set: {ranges}").format(
                ranges="; ".join(ranges)
            ),
            code="limit_out_of_bounds",
        )

    async def _reset_limit(
        self, connection: Connection, asked: Asked, about: Bedside, patient: Patient
    ) -> Done:
        language = asked.command.language
        _ = translator(language).gettext
        now, kind = self._now(), _required(about.kind)
        state = await present_state(self._records, patient.key, self._rules)
        own = [
            one
            for one in state.standing.own_limits
            if one.kind is kind and about.direction in (None, one.direction)
        ]
        if not own:
            raise RefusedError(
                _("{where} has no limit of its own for {kind}: the usual ones hold.").format(
                    where=bed_of(patient, language), kind=label_of(kind, language)[0]
                ),
                code="no_own_limit",
            )
        facts = [
            LimitSet(now, asked.account, kind, one.direction, None, "", now, kept=False)
            for one in own
        ]
        return await self._limit_changed(connection, asked, patient, facts)

    async def _limit_changed(
        self, connection: Connection, asked: Asked, patient: Patient, facts: list[LimitSet]
    ) -> Done:
        await self._records.facts.append(connection, patient.key, *facts)
        state = await present_state(self._records, patient.key, self._rules)
        own = state.standing.own_limits
        for fact in facts:
            own = with_fact(own, fact)
        rules = self._rules.of(replace(state.standing, own_limits=own))
        who = named(asked.person, asked.account)

        def say(language: Language, zone: str) -> str:
            _ = translator(language).gettext
            lines = [bed_of(patient, language)]
            for fact in facts:
                if fact.threshold is None:
                    usual = _("{who}: {side} has its usual limit again")
                    lines.append(
                        usual.format(who=who, side=side(fact.kind, fact.direction, language))
                    )
                    continue
                limit = OwnLimit(
                    fact.kind, Direction(fact.direction), fact.threshold, fact.until, fact.kept
                )
                lines.append(
                    own_limit_line(limit, language, zone, now=fact.at, who=who, reason=fact.reason)
                )
            in_force = _("Limits in force: {limits}")
            lines.append(in_force.format(limits=limits_in_force(rules, language)))
            return "\n".join(lines)

        detail = {
            "limits": " ".join(f"{one.kind}-{one.direction} {one.threshold}" for one in facts),
            "until": facts[0].until.isoformat(),
            "kept": str(facts[0].kept),
        }
        return Done(
            say(asked.command.language, asked.place.zone),
            patient,
            detail,
            await self._elsewhere(patient, say, asked.place.room_id, asked.mark),
        )

    async def _limits(self, patient: Patient, asked: Asked) -> Done:
        """The limits in force, and who set those of this patient alone, and why."""
        language, zone, now = asked.command.language, asked.place.zone, self._now()
        _ = translator(language).gettext
        standing = (await present_state(self._records, patient.key, self._rules)).standing
        limits = limits_in_force(self._rules.of(standing), language)
        lines = [
            bed_of(patient, language),
            _("Limits in force: {limits}").format(limits=limits),
        ]
        if age_unknown(standing.profile):
            lines.append(_("Age unknown: these are an adult's limits."))
        authors = await self._authors(patient) if standing.own_limits else {}
        for own in standing.own_limits:
            fact = authors.get((own.kind, own.direction))
            person = await self._records.people.get(fact.by) if fact is not None else None
            lines.append(
                own_limit_line(
                    own,
                    language,
                    zone,
                    now=now,
                    who=named(person, fact.by) if fact is not None else "?",
                    reason=fact.reason if fact is not None else "?",
                )
            )
        return Done("\n".join(lines), patient)

    async def _authors(self, patient: Patient) -> dict[tuple[Kind, str], LimitSet]:
        """The newest fact about each limit of the patient alone."""
        found: dict[tuple[Kind, str], LimitSet] = {}
        for sealed in await self._records.facts.newest(patient.key, limit=_FACTS_BACK):
            fact: Fact = await self._records.facts.open(sealed)
            if isinstance(fact, LimitSet):
                found.setdefault((fact.kind, fact.direction), fact)
        return found

    # --- values ----------------------------------------------------------------------------------

    async def _enter(
        self, connection: Connection, asked: Asked, about: Bedside, patient: Patient
    ) -> Done:
        language, now = asked.command.language, self._now()
        fact = Entered(
            now, asked.account, about.respiration, about.consciousness, about.oxygen
        )  # fmt: skip
        await self._records.facts.append(connection, patient.key, fact)
        state = await present_state(self._records, patient.key, self._rules)
        standing = state.standing
        found = score(state.latest, (fact, *standing.entered), standing.profile, now)
        lacks = missing(state.latest, (fact, *standing.entered), standing.profile, now)
        no_age = age_unknown(standing.profile) and not standing.profile.pregnant
        who = named(asked.person, asked.account)

        def say(language: Language, _zone: str) -> str:
            lines = [entered_line(fact, bed_of(patient, language), who, language)]
            if found is not None:
                lines.append(news2_line(found, language))
            elif lacks or no_age:
                lines.append(news2_lacks(lacks, language, age_too=no_age))
            return "\n".join(lines)

        stated = {"respiration", "consciousness", "oxygen"}
        detail = {
            "signs": " ".join(sorted(one for one in stated if getattr(fact, one) is not None))
        }
        return Done(
            say(language, asked.place.zone),
            patient,
            detail,
            await self._elsewhere(patient, say, asked.place.room_id, asked.mark),
        )

    def _vitals(self, asked: Asked, about: Bedside, patient: Patient) -> Done:
        language = asked.command.language
        _ = translator(language).gettext
        lasts = about.lasts or LOOKS_BACK
        if lasts > LOOKS_BACK_AT_MOST:
            raise RefusedError(
                _("Nothing was done: values are shown for {hours} hours at most.").format(
                    hours=round(LOOKS_BACK_AT_MOST / timedelta(hours=1))
                ),
                code="vitals_too_long",
            )
        now = self._now()
        order = ChartOrder(
            since=now - lasts,
            until=now,
            language=language,
            zone=asked.place.zone,
            reply_to=asked.event_id,
            asked_by=asked.account,
            table=True,
            scored=asked.person is not None,
        )
        mark = self._records.site_key.fingerprint(b"chart", asked.mark).hex()
        delivery = order.delivery(mark, asked.place.room_id, patient.key, now=now)
        return Done(None, patient, {"hours": str(lasts / timedelta(hours=1))}, (delivery,))

    # --- states ----------------------------------------------------------------------------------

    def _open(self, state: PatientState) -> list[tuple[OpenAlarm, AnyDecision]]:
        """The open alarms that somebody was told of, each as it would be told now."""
        now = self._now()
        return [
            (alarm, alarm.say(Reason.STARTED, now))
            for alarm in open_alarms(state, self._rules)
            if not alarm.folded
        ]


def _is_about(decision: AnyDecision, kind: Kind | None, *, sensor: bool) -> bool:
    if isinstance(decision, TechnicalDecision):
        return kind is None
    return not sensor and kind in (None, decision.kind)


_Value = TypeVar("_Value")


def _required(value: _Value | None) -> _Value:
    """What the grammar makes sure of."""
    if value is None:
        raise BugError("a command lacks what its verb asks for", code="command_incomplete")
    return value
