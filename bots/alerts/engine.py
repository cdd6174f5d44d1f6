"""The alarm engine as a follower of the readings log.

Alarm state, which holds the patient's place in the log, and promised messages are committed in
one transaction: a decision to announce is never lost and never made twice, whatever dies when.
Delivery is somebody else's work (``bots.alerts.bot``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
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
from fajma.store.alarms import Delivery
from fajma.store.patients import Patient
from fajma.vitals import PatientKey

log = structlog.get_logger()

FOLLOWER: Final = "alarms"
MAX_STEP: Final = 500
"""Most readings judged in one transaction."""

RETRY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Where:
    """Where an alarm goes, and who is called."""

    room_id: str
    language: Language
    time_zone: str
    called: Sequence[str]


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
        position = await records.followers.position(FOLLOWER)
        # Not the readings themselves: one that cannot be opened is its patient's trouble alone.
        new = await records.readings.whose(position, limit=MAX_STEP)
        if not new:
            return 0
        until = new[-1][0]
        patients = list(dict.fromkeys(patient for _, patient in new))
        try:
            announced = await self._judge_together(patients, until)
        except Exception as error:  # noqa: BLE001 - one patient's trouble must not stop the others
            log.error("judging_together_failed", error=type(error).__name__)
            announced = await self._judge_apart(patients, until)
        if announced:
            records.store.hints.notify("outbox")
            log.info("alarms_decided", count=announced)
        return len(new)

    async def _judge_together(self, patients: Sequence[PatientKey], until: int) -> int:
        async with self._records.store.transaction() as connection:
            announced = 0
            for patient in patients:
                announced += await self._judge(connection, patient, until)
            await self._records.followers.move(connection, FOLLOWER, until)
        return announced

    async def _judge_apart(self, patients: Sequence[PatientKey], until: int) -> int:
        """Each patient in a transaction of his own; the log goes on for the others.

        Who fails is tried again, from where his own state stands, with his next reading.
        """
        announced = 0
        for patient in patients:
            try:
                async with self._records.store.transaction() as connection:
                    announced += await self._judge(connection, patient, until)
            except Exception as error:  # noqa: BLE001 - see above
                log.critical("patient_not_judged", patient=patient, error=type(error).__name__)
        async with self._records.store.transaction() as connection:
            await self._records.followers.move(connection, FOLLOWER, until)
        return announced

    async def _judge(self, connection: Connection, patient: PatientKey, until: int) -> int:
        """Judge what is new of one patient; returns how many decisions are announced."""
        records = self._records
        text = await records.alarm_states.get(patient)
        state = PatientState.from_json(text) if text else PatientState()
        announcing: list[Decision] = []
        while state.position < until:
            new = await records.readings.after(state.position, limit=MAX_STEP, patient=patient)
            if not new:
                break
            for logged in new:
                state, decisions = step(
                    state, ReadingFact(logged.position, logged.reading), self._rules
                )
                announcing += (one for one in decisions if one.announce)
        for decision in announcing:
            await records.outbox.add(connection, await self._delivery(patient, decision))
        await records.alarm_states.put(
            connection,
            patient,
            state.to_json(),
            announced_at=self._now() if announcing else None,
        )
        return len(announcing)

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
