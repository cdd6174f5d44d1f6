"""The alarm engine as a follower of the readings log and the log of facts.

A pass takes what is new in both logs, in their one order, judges it patient by patient, and commits
its places in the logs, the states that changed, the decisions and the promised messages in one
transaction: a decision to announce is never lost and never made twice, whatever dies when.
Delivery is somebody else's work (``bots.alerts.bot``).

What follows from time alone (silence, repetition, escalation) is a fact too: when nothing is left
to judge and something is due, the engine notes that time has passed, and judges that fact like any
other. So judging the logs again gives the same decisions.

A state is written when something changed that must not be lost, and else once a minute: on the way
back the readings and facts since then are judged again, which announces nothing
(``judge.take``). Nobody else writes states, so those of a pass stay in memory for the next one;
when a pass fails, what was committed is not known, and they are forgotten.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog
from mautrix.util.async_db import Connection

from bots.alerts import outage
from bots.alerts.alarm import ReadingFact
from bots.alerts.alarm_state import PatientState
from bots.alerts.announcer import WEBHOOK_STEP, Announcer, to_json
from bots.alerts.both_logs import New, merged, opened
from bots.alerts.judge import NotedFact, due, take
from bots.alerts.limits import Confirmation, Priority
from bots.alerts.site_rules import Schedule, SiteRules
from fajma.config import Alarms, Ladders
from fajma.errors import BugError
from fajma.facts import Acknowledged, Fact, OutageEnded, OutageStarted, TimePassed, Worn
from fajma.store import Records
from fajma.store.alarms import Delivery, NewState, SentBy
from fajma.store.decisions import KeptDecision
from fajma.store.facts import SealedFact
from fajma.store.leases import LeaseLostError
from fajma.store.outages import Outage
from fajma.store.readings import SealedReading
from fajma.store.wards import WardId
from fajma.vitals import PatientKey

log = structlog.get_logger()

FOLLOWER: Final = "alarms"
FACTS_FOLLOWER: Final = "alarm-facts"
ADOPTED: Final = "links-adopted"
"""Not a place in a log: 1 once the links of before are facts."""

MAX_STEP: Final = 500
"""Most readings judged in one transaction, and most facts."""

REMEMBERED_MAX: Final = 50_000
"""Most patients whose states are held in memory, about 1 KB for each who is well."""

KEEP_EVERY: Final = timedelta(seconds=60)
"""How old the kept state of a patient who is well may get: what is judged again after a restart."""

START_GRACE: Final = timedelta(seconds=30)
"""After our start, for monitors to be heard: we do not know how long nobody listened."""

RETRY_S: Final = 1.0

UNJUDGED_AGAIN: Final = timedelta(minutes=30)
"""How often people are told of a patient who cannot be judged."""


@dataclass(frozen=True, slots=True)
class _Place:
    """How far both logs are taken in."""

    reading: int
    fact: int


@dataclass(frozen=True, slots=True)
class _Held:
    """A patient's state in memory.

    Attributes:
        state: after all that was judged.
        kept: when it was last written, by the time of what was judged; ``None`` before.
        due_at: as it stands in the database.
        said: of each subject, the last decision about it (``Decision.key``).
    """

    state: PatientState
    kept: datetime | None = None
    due_at: datetime | None = None
    said: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Judged:
    """What a pass makes of one patient.

    Attributes:
        patient: whose.
        held: the state, and whether it is written.
        keep: whether it must be written.
        decisions: those that say something new.
        deliveries: what is announced.
        calmed: whether somebody takes care, so that the webhook need not call.
        was_behind: whether an earlier pass left the patient behind.
    """

    patient: PatientKey
    held: _Held
    keep: bool
    decisions: Sequence[KeptDecision]
    deliveries: Sequence[Delivery]
    calmed: bool
    was_behind: bool


class AlarmEngine:
    """Judges every reading and every fact, in order, once."""

    def __init__(
        self,
        settings: Alarms,
        records: Records,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._records = records
        self._rules = rules_from(settings)
        self._announcer = Announcer(records, has_webhook=settings.webhook_url is not None, now=now)
        self._now = now
        self._hint = records.store.hints.subscribe("readings", "facts")
        # As of the last pass that was committed, like the place; who was judged last stands last.
        self._states: dict[PatientKey, _Held] = {}
        self._behind: dict[PatientKey, _Place] | None = None
        self._grace_until = now() + START_GRACE
        self._half_back: dict[WardId, datetime] = {}
        self._at: _Place | None = None
        self._adopted = False
        # Who cannot be judged, and when people were last told.
        self._unjudged: dict[PatientKey, datetime] = {}

    async def run(self) -> None:
        """Follow the logs until cancelled."""
        while True:
            try:
                await self.adopt()
                while await self.advance() or await self.look_at_time():
                    pass
            except Exception as error:  # noqa: BLE001 - whatever it is, alarms must go on
                log.error("alarm_engine_failed", error=type(error).__name__, retry_s=RETRY_S)
                await asyncio.sleep(RETRY_S)
            await self._records.store.hints.wait(self._hint)

    async def adopt(self) -> None:
        """Tell of the monitors that were worn before links were facts; once for each site."""
        records, now = self._records, self._now()
        if self._adopted or await records.followers.position(ADOPTED):
            self._adopted = True
            return
        worn = [
            (patient, Worn(now, device))
            for patient, devices in (await records.devices.worn()).items()
            for device in devices
        ]
        async with records.store.transaction() as connection:
            await records.facts.append_of(connection, worn)
            await records.followers.move(connection, ADOPTED, 1)

    async def advance(self) -> int:
        """Judge what is new in the logs, at most ``MAX_STEP`` readings and as many facts.

        Returns:
            How many readings and facts were judged.
        """
        records = self._records
        async with records.store.session():
            start = await self._place()
            # In this order: every fact that came after one of these readings is committed by now.
            readings = await records.readings.sealed_after(start.reading, limit=MAX_STEP)
            until = readings[-1].position if readings else start.reading
            facts = await records.facts.sealed_after(
                start.fact, up_to_reading=until, limit=MAX_STEP
            )
            if len(facts) == MAX_STEP:  # there may be more that come before later readings
                until = facts[-1].after
                readings = [one for one in readings if one.position <= until]
            if not readings and not facts:
                return 0
            end = _Place(until, facts[-1].position if facts else start.fact)
            try:
                announced = await self._pass(merged(readings, facts), start, end)
            except BaseException:
                self._forget()
                raise
        if announced:
            records.store.hints.notify("outbox")
            log.info("alarms_decided", count=announced)
        return len(readings) + len(facts)

    async def look_at_time(self) -> int:
        """Note that time has passed for whom something is due; all that is new must be judged.

        Returns:
            How many patients there is something to judge for now.
        """
        records, now = self._records, self._now()
        async with records.store.session():
            under_way = await records.outages.all()
            due_now, later = await self._due(now)
            begun = await self._outages_begin(due_now, {one.ward for one in under_way}, now)
            over = await self._outages_end(under_way, now)
            noted: list[tuple[PatientKey, Fact]] = [
                *((patient, OutageStarted(now)) for one in begun for patient in one.patients),
                *((patient, TimePassed(now)) for patient in due_now),
                *((patient, OutageEnded(now)) for one, _ in over for patient in one.patients),
            ]
            ended = {one.ward for one, _ in over}
            again = [
                replace(one, told_at=now)
                for one in under_way
                if now - one.told_at >= self._rules.schedules_of(one.ward)[Priority.MEDIUM].again
                and one.ward not in ended
            ]
            # Nothing can be sealed for whoever has no key: the others must not wait for that.
            locked = await records.readings.locked({patient for patient, _ in noted})
            noted = [(patient, fact) for patient, fact in noted if patient not in locked]
            later |= dict.fromkeys(locked, now + KEEP_EVERY)
            if not (noted or later or again):
                return 0
            async with records.store.transaction() as connection:
                await records.facts.append_of(connection, noted)
                await records.alarm_states.put_off(connection, later)
                for one in [*begun, *again]:
                    await records.outages.keep(connection, one)
                    message = await self._announcer.outage_goes_on(one)
                    await records.outbox.add(connection, message)
                for one, silenced in over:
                    await records.outages.end(connection, one.ward)
                    message = await self._announcer.outage_ended(one, silenced, now)
                    await records.outbox.add(connection, message)
                told = await self._tell_of(connection, sorted(locked))
        self._have_told(told)
        if begun or over or again or told:
            records.store.hints.notify("outbox")
        for patient in sorted(locked):
            log.critical("patient_key_missing", patient=patient)
        return len(noted)

    async def _due(
        self, now: datetime
    ) -> tuple[list[PatientKey], dict[PatientKey, datetime | None]]:
        """For whom something is due now; and for whom it was thought to be and is later."""
        patients = await self._records.alarm_states.due(now, limit=MAX_STEP)
        if not patients:
            return [], {}
        await self._load(patients)
        behind = await self._all_behind()
        # In a planned stop, of which the wards know, silence is no news; nor right after our start,
        # since nobody could be heard while we were down.
        stop = await self._records.maintenance.current(now)
        quiet_until = self._grace_until
        if stop is not None:
            quiet_until = max(quiet_until, stop.until + START_GRACE)
        due_now: list[PatientKey] = []
        later: dict[PatientKey, datetime | None] = {}
        for patient in patients:
            held = self._states.get(patient)
            if held is None or patient in behind:
                due_now.append(patient)  # tries again to judge him, now and then
                later[patient] = now + KEEP_EVERY
                continue
            at = due(held.state, self._rules)
            if at is None or at > now:
                later[patient] = at
            elif now < quiet_until and self._is_silent(held.state, now):
                later[patient] = quiet_until
            else:
                due_now.append(patient)
        return due_now, later

    async def _place(self) -> _Place:
        if self._at is None:
            position = self._records.followers.position
            self._at = _Place(await position(FOLLOWER), await position(FACTS_FOLLOWER))
        return self._at

    # --- outages ---------------------------------------------------------------------------------

    def _is_silent(self, state: PatientState, now: datetime) -> bool:
        return outage.is_silent(state, now, self._rules.silent_after)

    async def _silent(
        self, patients: Collection[PatientKey], now: datetime
    ) -> frozenset[PatientKey]:
        await self._load(patients)
        held = {one: self._states[one] for one in patients if one in self._states}
        return frozenset(one for one in held if self._is_silent(held[one].state, now))

    async def _outages_begin(
        self, due_now: Collection[PatientKey], under_way: Collection[WardId], now: datetime
    ) -> list[Outage]:
        """Outages that begin with those whose silence is due; those of before are left alone."""
        of_ward: dict[WardId, set[PatientKey]] = defaultdict(set)
        for patient in due_now:
            held = self._states.get(patient)
            if held is not None and self._is_silent(held.state, now):
                ward = await self._records.wards.responsible(patient)
                if ward is not None and ward.room_id is not None:
                    of_ward[ward.id].add(patient)
        begun = []
        for ward_id, patients in of_ward.items():
            if ward_id in under_way:
                continue
            members = await self._records.outages.members(ward_id, patients)
            silenced = await self._silent(members, now)
            if outage.is_outage(silenced, members):
                begun.append(Outage(ward_id, now, now, silenced, len(members)))
        return begun

    async def _outages_end(
        self, under_way: Sequence[Outage], now: datetime
    ) -> list[tuple[Outage, frozenset[PatientKey]]]:
        """Outages that are over, and who of them is still silent."""
        over = []
        for one in under_way:
            silenced = await self._silent(one.patients, now)
            if not outage.half_back(silenced, one.patients):
                self._half_back.pop(one.ward, None)
                continue
            since = self._half_back.setdefault(one.ward, now)
            if not silenced or now - since >= outage.STEADY:
                del self._half_back[one.ward]
                over.append((one, silenced))
        return over

    # --- a pass ----------------------------------------------------------------------------------

    async def _pass(self, new: Sequence[New], start: _Place, end: _Place) -> int:
        """Judge what follows ``start`` and commit it; returns how many decisions are announced.

        One patient's trouble must not stop the others: who cannot be judged is left behind, and
        judged from there when the next thing about him comes.
        """
        judged, troubles = await self._judge_all(new, start, end)
        # Told of the second time only: a database in trouble for a moment is nobody's business.
        still = [one for one in troubles if one in await self._all_behind()]
        try:
            async with self._records.store.transaction() as connection:
                await self._keep(connection, judged)
                await self._move_on(connection, troubles, start, end)
                told = await self._tell_of(connection, still)
        except LeaseLostError:
            raise  # nobody's trouble: another process does this now
        except Exception as error:  # noqa: BLE001 - it may be one patient's trouble
            log.error("judging_together_failed", error=type(error).__name__)
            self._forget()
            judged = await self._keep_apart(judged, troubles)
            async with self._records.store.transaction() as connection:
                await self._move_on(connection, troubles, start, end)
                told = await self._tell_of(connection, still)
        else:
            self._remember(judged, troubles, start)
        self._at = end
        self._have_told(told, judged)
        for patient, trouble in troubles.items():
            log.critical("patient_not_judged", patient=patient, error=trouble)
        return len(told) + sum(len(one.deliveries) for one in judged)

    async def _judge_all(
        self, new: Sequence[New], start: _Place, end: _Place
    ) -> tuple[list[_Judged], dict[PatientKey, str]]:
        """Judge each patient; returns also who could not be judged, with the kind of error."""
        of_patient: dict[PatientKey, list[SealedReading | SealedFact]] = defaultdict(list)
        for patient, one in new:
            of_patient[patient].append(one)
        behind = await self._all_behind()
        troubles = await self._load([one for one in of_patient if one not in behind], start)
        judged: list[_Judged] = []
        for patient, fresh in of_patient.items():
            if patient in troubles:
                continue
            try:
                if patient in behind:
                    held, missed = await self._missed(patient, behind[patient], end)
                else:
                    held, missed = self._states[patient], fresh
                judged.append(
                    await self._judge(patient, held, missed, was_behind=patient in behind)
                )
            except Exception as error:  # noqa: BLE001 - see _pass
                troubles[patient] = type(error).__name__
        return judged, troubles

    async def _judge(
        self,
        patient: PatientKey,
        before: _Held,
        new: Iterable[SealedReading | SealedFact],
        *,
        was_behind: bool,
    ) -> _Judged:
        state, at, said = before.state, before.kept, dict(before.said)
        decisions: list[KeptDecision] = []
        deliveries: list[Delivery] = []
        calmed = False
        async for fact in opened(self._records, new):
            state, decided = take(state, fact, self._rules)
            at = fact.reading.received_at if isinstance(fact, ReadingFact) else fact.fact.at
            calmed |= isinstance(fact, NotedFact) and isinstance(fact.fact, Acknowledged)
            for number, one in enumerate(decided):
                if said.get(one.key[0]) != one.key or one.announce:
                    said[one.key[0]] = one.key
                    decisions.append(
                        KeptDecision(
                            patient, state.position, state.noted, number, one.at, to_json(one)
                        )
                    )
                if one.announce:
                    deliveries += await self._announcer.deliveries(patient, one)
        # An answer to the sensor's alarm does not call off what calls about the pulse.
        waits = any(c.step >= WEBHOOK_STEP and not c.acknowledged for c in state.care.values())
        calmed = calmed and not waits
        due_at = due(state, self._rules)
        keep = (
            before.kept is None
            or state.worth_keeping(before.state)
            or (at is not None and at - before.kept >= KEEP_EVERY)
            or _earlier(due_at, before.due_at)
        )
        held = (
            _Held(state, at, due_at, said)
            if keep
            else _Held(state, before.kept, before.due_at, said)
        )
        return _Judged(patient, held, keep, decisions, deliveries, calmed, was_behind)

    # --- states ----------------------------------------------------------------------------------

    async def _load(
        self, patients: Iterable[PatientKey], place: _Place | None = None
    ) -> dict[PatientKey, str]:
        """Have the states of these patients at hand, as of a place in the logs.

        Args:
            patients: whose.
            place: the one that all are judged up to, if none is given.

        Returns:
            Whose cannot be had, with the kind of error.
        """
        missing = [one for one in patients if one not in self._states]
        if not missing:
            return {}
        place = place or await self._place()
        records = self._records
        troubles: dict[PatientKey, str] = {}
        states: dict[PatientKey, PatientState] = {}
        sealed = await records.alarm_states.sealed(missing)
        for patient in missing:
            try:
                states[patient] = (
                    PatientState.from_json(
                        await records.alarm_states.open(patient, sealed[patient])
                    )
                    if patient in sealed
                    else PatientState(position=place.reading, noted=place.fact)
                )
            except Exception as error:  # noqa: BLE001 - see _pass
                troubles[patient] = type(error).__name__
        since = await self._since(states, place)
        for patient, state in states.items():
            try:
                again = state
                async for fact in opened(self._records, since.get(patient, ())):
                    again, _ = take(again, fact, self._rules)
            except Exception as error:  # noqa: BLE001 - see _pass
                troubles[patient] = type(error).__name__
            else:
                self._states[patient] = _Held(again)
        return troubles

    async def _since(
        self, states: Mapping[PatientKey, PatientState], place: _Place
    ) -> dict[PatientKey, list[SealedReading | SealedFact]]:
        """What was judged after these states were kept."""
        found: dict[PatientKey, list[SealedReading | SealedFact]] = defaultdict(list)
        stale = {
            patient: state
            for patient, state in states.items()
            if state.position < place.reading or state.noted < place.fact
        }
        if not stale:
            return found
        records = self._records
        readings = await records.readings.sealed_between(
            list(stale), min(one.position for one in stale.values()), place.reading
        )
        facts = await records.facts.sealed_between(
            list(stale), min(one.noted for one in stale.values()), place.fact
        )
        for patient, one in merged(readings, facts):
            found[patient].append(one)
        return found

    async def _missed(
        self, patient: PatientKey, behind: _Place, end: _Place
    ) -> tuple[_Held, list[SealedReading | SealedFact]]:
        """The state of a patient who was left behind, and all that came since."""
        self._states.pop(patient, None)
        if troubles := await self._load([patient], behind):
            raise BehindError(troubles[patient])
        records = self._records
        readings = await records.readings.sealed_between([patient], behind.reading, end.reading)
        facts = await records.facts.sealed_between([patient], behind.fact, end.fact)
        return self._states[patient], [one for _, one in merged(readings, facts)]

    async def _all_behind(self) -> dict[PatientKey, _Place]:
        if self._behind is None:
            followers = self._records.followers
            readings = await followers.left_behind(FOLLOWER)
            facts = await followers.left_behind(FACTS_FOLLOWER)
            self._behind = {
                patient: _Place(reading, facts.get(patient, 0))
                for patient, reading in readings.items()
            }
        return self._behind

    # --- keeping ---------------------------------------------------------------------------------

    async def _keep(self, connection: Connection, judged: Sequence[_Judged]) -> None:
        records = self._records
        now = self._now()
        # Logs are locked in this order everywhere: readings and facts, then the outbox.
        await records.decisions.add(connection, [each for one in judged for each in one.decisions])
        await records.alarm_states.put(
            connection,
            *(
                NewState(
                    one.patient,
                    one.held.state.to_json(),
                    now if one.deliveries else None,
                    one.held.due_at,
                )
                for one in judged
                if one.keep
            ),
        )
        for one in judged:
            if one.calmed:
                await records.outbox.call_off(connection, one.patient, SentBy.WEBHOOK)
            if one.was_behind:
                await records.followers.caught_up(connection, FOLLOWER, one.patient)
                await records.followers.caught_up(connection, FACTS_FOLLOWER, one.patient)
        await records.outbox.add(connection, *(each for one in judged for each in one.deliveries))

    async def _keep_apart(
        self, judged: Sequence[_Judged], troubles: dict[PatientKey, str]
    ) -> list[_Judged]:
        """Keep each patient in a transaction of his own; adds to the troubles, returns the rest."""
        kept = []
        for one in judged:
            try:
                async with self._records.store.transaction() as connection:
                    await self._keep(connection, [one])
            except Exception as error:  # noqa: BLE001 - see _pass
                troubles[one.patient] = type(error).__name__
            else:
                kept.append(one)
        return kept

    async def _move_on(
        self, connection: Connection, troubles: Collection[PatientKey], start: _Place, end: _Place
    ) -> None:
        followers = self._records.followers
        for patient in troubles:
            await followers.leave_behind(connection, FOLLOWER, patient, start.reading)
            await followers.leave_behind(connection, FACTS_FOLLOWER, patient, start.fact)
        await followers.move(connection, FOLLOWER, end.reading)
        await followers.move(connection, FACTS_FOLLOWER, end.fact)

    async def _tell_of(
        self, connection: Connection, unjudged: Iterable[PatientKey]
    ) -> list[PatientKey]:
        """Promise to tell of patients who cannot be judged; returns of whom."""
        now = self._now()
        told = []
        for patient in unjudged:
            last = self._unjudged.get(patient)
            if last is not None and last <= now < last + UNJUDGED_AGAIN:
                continue
            try:
                message = await self._announcer.not_judged(patient)
            except BugError as error:
                log.critical("unjudged_not_told", patient=patient, code=error.code)
                continue
            await self._records.outbox.add(connection, message)
            told.append(patient)
        return told

    def _have_told(self, told: Iterable[PatientKey], judged: Iterable[_Judged] = ()) -> None:
        """What was committed."""
        self._unjudged |= dict.fromkeys(told, self._now())
        for one in judged:
            self._unjudged.pop(one.patient, None)

    def _remember(
        self, judged: Sequence[_Judged], troubles: Collection[PatientKey], start: _Place
    ) -> None:
        """What was committed."""
        behind = self._behind or {}
        for one in judged:
            behind.pop(one.patient, None)
            self._states.pop(one.patient, None)
            self._states[one.patient] = one.held
        for patient in troubles:
            behind.setdefault(patient, start)
        self._behind = behind
        while len(self._states) > REMEMBERED_MAX:
            del self._states[next(iter(self._states))]

    def _forget(self) -> None:
        self._states.clear()
        self._behind = None
        self._at = None


class BehindError(Exception):
    """A patient who was left behind cannot be judged yet; says the kind of error."""


def _earlier(one: datetime | None, other: datetime | None) -> bool:
    return one is not None and (other is None or one < other)


def rules_from(settings: Alarms) -> SiteRules:
    """The rules that the settings ask for."""
    return SiteRules(
        confirmation=Confirmation(
            needed=settings.confirm_needed,
            window=settings.confirm_window,
            extreme=settings.confirm_extreme,
        ),
        dwell=timedelta(seconds=settings.clear_dwell_s),
        schedules=_schedules(settings),
        wards={name: _schedules(settings.in_ward(name)) for name in settings.wards},
        silent_after=timedelta(seconds=settings.silent_after_s),
    )


def _schedules(settings: Ladders) -> Mapping[Priority, Schedule]:
    return {
        Priority.HIGH: _schedule(settings.again_high_s, settings.ladder_high_s),
        Priority.MEDIUM: _schedule(settings.again_medium_s, settings.ladder_medium_s),
        Priority.LOW: _schedule(settings.again_low_s, [0]),
    }


def _schedule(again_s: float, ladder_s: Sequence[float]) -> Schedule:
    return Schedule(timedelta(seconds=again_s), tuple(timedelta(seconds=each) for each in ladder_s))
