"""The alarm engine as a follower of the readings log.

A pass takes what is new in the log, judges it patient by patient, and commits its place in the log,
the alarm states that changed and the promised messages in one transaction: a decision to announce
is never lost and never made twice, whatever dies when. Delivery is somebody else's work
(``bots.alerts.bot``).

A state whose tracks did not change is not written: judged again from an older position the same
readings give the same decisions, and none that is announced (``alarm.step``). Nobody else writes
states, so those of a pass stay in memory for the next one; when a pass fails, what was committed is
not known, and they are forgotten.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import structlog
from mautrix.util.async_db import Connection

from bots.alerts.alarm import Decision, ReadingFact, step
from bots.alerts.alarm_state import PatientState
from bots.alerts.limits import Confirmation, Rules, default_rules
from bots.alerts.text import render
from fajma.config import Alarms
from fajma.errors import BugError
from fajma.events import ALARM, AlarmBlock
from fajma.language import Language
from fajma.store import Records
from fajma.store.alarms import Delivery, NewState
from fajma.store.leases import LeaseLostError
from fajma.store.patients import Patient
from fajma.store.readings import LoggedReading, SealedReading
from fajma.vitals import PatientKey

log = structlog.get_logger()

FOLLOWER: Final = "alarms"
MAX_STEP: Final = 500
"""Most readings judged in one transaction."""

REMEMBERED_MAX: Final = 50_000
"""Most patients whose states are held in memory, about 0.3 KB for each who is well."""

RETRY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Where:
    """Where an alarm goes, and who is called."""

    room_id: str
    language: Language
    time_zone: str
    called: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Judged:
    """What a pass makes of one patient.

    Attributes:
        patient: whose.
        state: after the last reading.
        changed: whether more than its position differs from what is kept. Not found by comparing:
            an episode that began and ended within the pass leaves no track.
        deliveries: what is announced.
        was_behind: whether an earlier pass left the patient behind.
    """

    patient: PatientKey
    state: PatientState
    changed: bool
    deliveries: Sequence[Delivery]
    was_behind: bool


class AlarmEngine:
    """Judges every reading, in order, once."""

    def __init__(
        self,
        settings: Alarms,
        records: Records,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._records = records
        self._rules = rules_from(settings)
        self._now = now
        self._hint = records.store.hints.subscribe("readings")
        # As they are kept in the database; who was judged last stands last.
        self._states: dict[PatientKey, PatientState] = {}
        self._behind: dict[PatientKey, int] | None = None

    async def run(self) -> None:
        """Follow the log until cancelled."""
        while True:
            try:
                while await self.advance():
                    pass
            except Exception as error:  # noqa: BLE001 - whatever it is, alarms must go on
                log.error("alarm_engine_failed", error=type(error).__name__, retry_s=RETRY_S)
                await asyncio.sleep(RETRY_S)
            await self._records.store.hints.wait(self._hint)

    async def advance(self) -> int:
        """Judge what is new in the log, at most ``MAX_STEP`` readings.

        Returns:
            How many readings were judged.
        """
        records = self._records
        async with records.store.session():
            start = await records.followers.position(FOLLOWER)
            new = await records.readings.sealed_after(start, limit=MAX_STEP)
            if not new:
                return 0
            try:
                announced = await self._pass(new, start)
            except BaseException:
                self._forget()
                raise
        if announced:
            records.store.hints.notify("outbox")
            log.info("alarms_decided", count=announced)
        return len(new)

    async def _pass(self, new: Sequence[SealedReading], start: int) -> int:
        """Judge what follows ``start`` and commit it; returns how many decisions are announced.

        One patient's trouble must not stop the others: who cannot be judged is left behind, and
        judged from there with his next reading.
        """
        until = new[-1].position
        judged, troubles = await self._judge_all(new, until)
        try:
            async with self._records.store.transaction() as connection:
                await self._keep(connection, judged)
                await self._move_on(connection, troubles, start, until)
        except LeaseLostError:
            raise  # nobody's trouble: another process does this now
        except Exception as error:  # noqa: BLE001 - it may be one patient's trouble
            log.error("judging_together_failed", error=type(error).__name__)
            self._forget()
            judged = await self._keep_apart(judged, troubles)
            async with self._records.store.transaction() as connection:
                await self._move_on(connection, troubles, start, until)
        else:
            self._remember(judged, troubles, start)
        for patient, trouble in troubles.items():
            log.critical("patient_not_judged", patient=patient, error=trouble)
        return sum(len(one.deliveries) for one in judged)

    async def _judge_all(
        self, new: Sequence[SealedReading], until: int
    ) -> tuple[list[_Judged], dict[PatientKey, str]]:
        """Judge each patient; returns also who could not be judged, with the kind of error."""
        of_patient: dict[PatientKey, list[SealedReading]] = defaultdict(list)
        for one in new:
            of_patient[one.patient].append(one)
        records = self._records
        if self._behind is None:
            self._behind = await records.followers.left_behind(FOLLOWER)
        kept = await records.alarm_states.sealed(
            [patient for patient in of_patient if patient not in self._states]
        )
        judged: list[_Judged] = []
        troubles: dict[PatientKey, str] = {}
        for patient, fresh in of_patient.items():
            behind = self._behind.get(patient)
            readings = (
                self._opened(fresh) if behind is None else self._missed(patient, behind, until)
            )
            try:
                state = await self._state(patient, kept.get(patient))
                judged.append(
                    await self._judge(patient, state, readings, was_behind=behind is not None)
                )
            except Exception as error:  # noqa: BLE001 - see _pass
                troubles[patient] = type(error).__name__
        return judged, troubles

    async def _state(self, patient: PatientKey, kept: bytes | None) -> PatientState:
        state = self._states.get(patient)
        if state is not None:
            return state
        if kept is None:
            return PatientState()
        return PatientState.from_json(await self._records.alarm_states.open(patient, kept))

    async def _opened(self, fresh: Sequence[SealedReading]) -> AsyncIterator[LoggedReading]:
        for one in fresh:
            yield await self._records.readings.open(one)

    async def _missed(
        self, patient: PatientKey, behind: int, until: int
    ) -> AsyncIterator[LoggedReading]:
        """The readings of a patient who was left behind, up to where the others are judged."""
        while new := await self._records.readings.after(behind, limit=MAX_STEP, patient=patient):
            for one in new:
                if one.position > until:
                    return
                yield one
            behind = new[-1].position

    async def _judge(
        self,
        patient: PatientKey,
        before: PatientState,
        readings: AsyncIterator[LoggedReading],
        *,
        was_behind: bool,
    ) -> _Judged:
        state = before
        announced: list[Decision] = []
        async for logged in readings:
            state, decisions = step(
                state, ReadingFact(logged.position, logged.reading), self._rules
            )
            announced += (one for one in decisions if one.announce)
        return _Judged(
            patient=patient,
            state=state,
            changed=state.tracks is not before.tracks,
            deliveries=[await self._delivery(patient, one) for one in announced],
            was_behind=was_behind,
        )

    async def _keep(self, connection: Connection, judged: Sequence[_Judged]) -> None:
        records = self._records
        now = self._now()
        await records.outbox.add(connection, *(each for one in judged for each in one.deliveries))
        await records.alarm_states.put(
            connection,
            *(
                NewState(one.patient, one.state.to_json(), now if one.deliveries else None)
                for one in judged
                if one.changed
            ),
        )
        for one in judged:
            if one.was_behind:
                await records.followers.caught_up(connection, FOLLOWER, one.patient)

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
        self, connection: Connection, troubles: Collection[PatientKey], start: int, until: int
    ) -> None:
        for patient in troubles:
            await self._records.followers.leave_behind(connection, FOLLOWER, patient, start)
        await self._records.followers.move(connection, FOLLOWER, until)

    def _remember(
        self, judged: Sequence[_Judged], troubles: Collection[PatientKey], start: int
    ) -> None:
        """What was committed."""
        behind = self._behind or {}
        for one in judged:
            behind.pop(one.patient, None)
            self._states.pop(one.patient, None)
            self._states[one.patient] = one.state
        for patient in troubles:
            behind.setdefault(patient, start)
        self._behind = behind
        while len(self._states) > REMEMBERED_MAX:
            del self._states[next(iter(self._states))]

    def _forget(self) -> None:
        self._states.clear()
        self._behind = None

    async def _delivery(self, patient_key: PatientKey, decision: Decision) -> Delivery:
        records = self._records
        patient = await records.patients.get(patient_key)
        if patient is None:
            raise BugError("an alarm of nobody", code="alarm_without_patient")
        where = await self._where(patient)
        text = render(
            decision,
            bed=patient.bed,
            initials=patient.initials,
            language=where.language,
            zone=where.time_zone,
        )
        delivery_id = self._delivery_id(patient_key, decision)
        block = AlarmBlock(
            delivery_id=delivery_id,
            alarm_id=decision.alarm_id or "",
            patient=patient_key,
            state=decision.reason.value,
            kind=decision.kind,
            priority=decision.priority.name.lower(),
            value=decision.value,
            limit=decision.limit.threshold,
            measured_at=decision.measured_at,
        )
        content: Mapping[str, Any] = {
            "msgtype": "m.text",
            "body": text.body,
            "format": "org.matrix.custom.html",
            "formatted_body": text.html,
            "m.mentions": {"user_ids": list(where.called)},
            ALARM: block.to_content(),
        }
        return Delivery(delivery_id, where.room_id, patient_key, content, self._now())

    async def _where(self, patient: Patient) -> _Where:
        """The room in which a phone of somebody on duty rings (docs/alarms.md, "Where")."""
        records = self._records
        consultation = await records.consultations.of_patient(patient.key)
        ward = await records.wards.responsible(patient.key)
        treating = consultation.clinicians if consultation is not None else ()
        if ward is not None and ward.room_id is not None:
            called = await records.called(ward)
            # Only who is on call: when nobody is, everybody is called, and in the ward's room.
            here = set(treating) & await records.on_call(ward)
            has_room = consultation is not None and consultation.room_id is not None
            in_ward = patient.account is None or not here
            if not has_room or (in_ward and called):  # a ward without team would tell nobody
                return _Where(ward.room_id, ward.language, ward.time_zone, sorted(called))
            treating = tuple(sorted(here)) or treating
        if consultation is None or consultation.room_id is None:
            # A monitor is linked to a patient who has a consultation's room or a ward's.
            raise BugError("an alarm without a room", code="alarm_without_room")
        return _Where(consultation.room_id, consultation.language, consultation.time_zone, treating)

    def _delivery_id(self, patient: PatientKey, decision: Decision) -> str:
        """Opaque, for the homeserver sees it as transaction id; the same when replayed."""
        return self._records.site_key.fingerprint(
            b"delivery",
            patient.encode(),
            (decision.alarm_id or "").encode(),
            decision.reason.value.encode(),
            decision.priority.name.encode(),
            decision.measured_at.isoformat().encode(),
        ).hex()


def rules_from(settings: Alarms) -> Rules:
    """The rules that the settings ask for."""
    return default_rules(
        confirmation=Confirmation(
            needed=settings.confirm_needed,
            window=settings.confirm_window,
            extreme=settings.confirm_extreme,
        ),
        dwell=timedelta(seconds=settings.clear_dwell_s),
    )
