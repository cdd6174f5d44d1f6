"""What was measured, which alarms were told, which limits hold: to be read only.

Alarms are answered and limits set in rooms alone, where a command comes encrypted from a signed
device (docs/commands.md).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime

from appservice.api.declare import Call, Route
from appservice.api.models import (
    AlarmSaid,
    AlarmsAnswer,
    LimitInForce,
    LimitsAnswer,
    Observation,
    ObservationsAnswer,
    Value,
)
from appservice.api.pages import Cursors, PageQuery, TimePageQuery
from appservice.api.permissions import Permission
from appservice.api.problems import not_found
from fajma.errors import DecodeError
from fajma.events import ALARM, AlarmBlock
from fajma.store import Records
from fajma.store.alarms import Delivery
from fajma.vitals import MEASURES, PatientKey, Reading

LimitsOf = Callable[[PatientKey, datetime], Awaitable[Sequence[LimitInForce]]]
"""The limits by which the alarm engine judges a patient at a time."""


class ClinicalRoutes:
    """Observations, alarms and limits of a patient."""

    def __init__(self, records: Records, limits: LimitsOf, cursors: Cursors) -> None:
        self._records = records
        self._limits = limits
        self._cursors = cursors

    def routes(self) -> list[Route]:
        """Their declarations."""
        read = Permission.READ_OBSERVATIONS
        return [
            Route("GET", "/patients/{patient}/observations", read, "What was measured",
                  self._observations, ObservationsAnswer, query=TimePageQuery),
            Route("GET", "/patients/{patient}/alarms", read, "What was said of alarms",
                  self._alarms, AlarmsAnswer, query=PageQuery),
            Route("GET", "/patients/{patient}/limits", read, "Limits in force",
                  self._limits_of, LimitsAnswer),
        ]  # fmt: skip

    async def _observations(self, call: Call) -> ObservationsAnswer:
        asked = call.asked(TimePageQuery)
        place = self._cursors.read(call)
        sealed, following = await self._records.readings.page(
            call.patient,
            before=int(place) if place is not None else None,
            since=asked.since,
            until=asked.until,
            limit=asked.limit,
        )
        if not sealed:
            await self._require(call.patient)
        opened, _ = await self._records.readings.open_all(sealed)
        return ObservationsAnswer(
            observations=[observation(one.reading) for one in opened],
            next=self._cursors.make(call, following),
        )

    async def _alarms(self, call: Call) -> AlarmsAnswer:
        await self._require(call.patient)
        limit = call.asked(PageQuery).limit
        place = self._cursors.read(call)
        found = await self._records.outbox.told_about(
            call.patient, before=int(place) if place is not None else None, limit=limit
        )
        following = found[-1][0] if len(found) == limit else None
        return AlarmsAnswer(
            alarms=[said for _, one in found if (said := alarm_said(one)) is not None],
            next=self._cursors.make(call, following),
        )

    async def _limits_of(self, call: Call) -> LimitsAnswer:
        await self._require(call.patient)
        return LimitsAnswer(limits=list(await self._limits(call.patient, call.now)))

    async def _require(self, patient: PatientKey) -> None:
        if await self._records.patients.get(patient) is None:
            raise not_found()


def observation(reading: Reading) -> Observation:
    """A reading as it is answered."""
    return Observation(
        measured_at=reading.measured_at,
        received_at=reading.received_at,
        device=reading.device,
        age=reading.age,
        quality=reading.quality,
        contact=reading.contact,
        values=[
            Value(
                kind=kind,
                value=float(value),
                unit=MEASURES[kind].unit,
                loinc=MEASURES[kind].loinc,
            )
            for kind, value in reading.values.items()
        ],
    )


def alarm_said(delivery: Delivery | None) -> AlarmSaid | None:
    """A message about an alarm as it is answered; ``None`` for any other, or one that is locked."""
    if delivery is None:
        return None
    try:
        block = AlarmBlock.from_content(delivery.content[ALARM])
    except (DecodeError, KeyError, TypeError):
        return None
    return AlarmSaid(
        alarm=block.alarm_id,
        state=block.state,
        priority=block.priority,
        said_at=delivery.created_at,
        measured_at=block.measured_at,
        kind=block.kind,
        value=float(block.value) if block.value is not None else None,
        limit=float(block.limit) if block.limit is not None else None,
        unit=MEASURES[block.kind].unit if block.kind is not None else None,
        trouble=block.trouble,
        late=block.is_late,
    )
