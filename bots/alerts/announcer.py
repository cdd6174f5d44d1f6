"""What becomes of an announced decision: which messages, in which rooms, calling whom.

The ladder (``profiles.Schedule``) has four steps. Each adds to whom is told; a message about an
alarm that reached a step goes where that step goes:

0. who is on duty, in the room in which his phone rings (docs/alarms.md, "Where");
1. the ward's room, where everybody on duty hears it;
2. the ward's room, and the phones of those off duty ring too (``events.RING``);
3. besides, the hospital's webhook.

When nobody is on duty, or nobody on duty can be reached, the first message already goes where the
third would; when no phone of the team can ring at all, an alarm of high priority calls at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final

import structlog

from bots.alerts import outage
from bots.alerts.alarm import Decision, Reason
from bots.alerts.late import LateDecision
from bots.alerts.limits import Limit, Priority
from bots.alerts.open_alarms import AnyDecision
from bots.alerts.situation import beds_in_order, outage_text
from bots.alerts.technical import TechnicalDecision
from bots.alerts.text import Called, Signal, Text, not_judged, place_of, render
from bots.alerts.webhook import call
from fajma.charts import ChartOrder
from fajma.errors import BugError, FajmaError
from fajma.events import ALARM, EVERYONE, NOBODY, OUTAGE, RING, AlarmBlock
from fajma.facts import AgeBand
from fajma.language import Language
from fajma.store import Records, to_ms
from fajma.store.alarms import Delivery
from fajma.store.outages import Outage
from fajma.store.patients import Patient
from fajma.store.wards import Ward
from fajma.store.warnings import About
from fajma.vitals import PatientKey

log = structlog.get_logger()

_LOOK_BACK: Final = 8  # readings, among which is the one that decided

GOOD_FROM: Final = 50
"""Quality of the pulse wave, in %, from which a signal is called good. FAJMA default."""

CHARTED: Final = timedelta(hours=1)
"""What the chart of a high priority alarm shows."""

_CHARTED: Final = frozenset({Reason.STARTED, Reason.WORSENED, Reason.DURING_OUTAGE})

WARD_STEP: Final = 1
EVERYONE_STEP: Final = 2
WEBHOOK_STEP: Final = 3


@dataclass(frozen=True, slots=True)
class _Where:
    """Where an alarm goes, and who is called."""

    room_id: str
    language: Language
    time_zone: str
    called: Sequence[str]
    everyone: bool = False


class Announcer:
    """Turns decisions into promised messages.

    Args:
        records: everything.
        has_webhook: whether the hospital has one.
        now: the clock.
    """

    def __init__(
        self,
        records: Records,
        *,
        has_webhook: bool = False,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._records = records
        self._has_webhook = has_webhook
        self._now = now

    async def deliveries(
        self, patient_key: PatientKey, decision: AnyDecision, *, place: str
    ) -> list[Delivery]:
        """The messages of one announced decision.

        Args:
            patient_key: about whom.
            decision: what.
            place: of the decision among all of this patient, the same when judged again. Reason and
                time are not enough: all readings of one pack are received at the same moment.
        """
        patient = await self._records.patients.get(patient_key)
        if patient is None:
            raise BugError("an alarm of nobody", code="alarm_without_patient")
        ward = await self._records.wards.responsible(patient.key)
        where = await self._where(patient, ward, decision)
        if where is None:  # found late, or the end of monitoring: its room is frozen
            log.warning("alarm_after_consultation", patient=patient.key)
            return []
        text = render(
            decision,
            bed=patient.bed,
            initials=patient.initials,
            language=where.language,
            zone=where.time_zone,
            signal=await self._signal(patient_key, decision),
            age_unknown=(patient.age_band is AgeBand.UNKNOWN and decision.reason is Reason.STARTED),
            called=self._called(decision, ward, where),
        )
        delivery_id = self._delivery_id(patient_key, decision, place)
        content = self._content(patient_key, decision, delivery_id, text, where)
        now = self._now()
        made = [Delivery(delivery_id, where.room_id, patient_key, content, now)]
        if decision.priority is Priority.HIGH and decision.reason in _CHARTED:
            order = ChartOrder(
                since=decision.at - CHARTED,
                until=decision.at,
                language=where.language,
                zone=where.time_zone,
                after=delivery_id,
            )
            made.append(order.delivery(f"{delivery_id}-chart", where.room_id, patient_key, now=now))
        if self._has_webhook and decision.rings and await self._must_call(ward, decision):
            made.append(
                call(
                    f"{delivery_id}-call",
                    patient_key,
                    ward=ward.id if ward is not None else None,
                    priority=decision.priority.name.lower(),
                    now=now,
                )
            )
        return made

    async def _must_call(self, ward: Ward | None, decision: AnyDecision) -> bool:
        """Whether the webhook is called: at its step, or when no phone of the team can ring."""
        if decision.step >= WEBHOOK_STEP:
            return True
        if ward is None or decision.priority is not Priority.HIGH:
            return False
        team = {one.account for one in await self._records.people.team(ward.id)}
        mute = {one.subject for one in await self._records.warnings.open(About.NO_RING)}
        return team <= mute

    def _called(self, decision: AnyDecision, ward: Ward | None, where: _Where) -> Called:
        """Whose phones ring."""
        if ward is None or where.room_id != ward.room_id:
            return Called.TREATING
        if self._has_webhook and decision.step >= WEBHOOK_STEP:
            return Called.OUTSIDE
        return Called.WARD if where.everyone else Called.ON_DUTY

    async def _signal(self, patient: PatientKey, decision: AnyDecision) -> Signal | None:
        """What the monitor said of the signal when it measured the value."""
        if not (isinstance(decision, Decision) and decision.rings):
            return None
        for sealed in reversed(await self._records.readings.latest(patient, limit=_LOOK_BACK)):
            reading = (await self._records.readings.open(sealed)).reading
            if reading.measured_at == decision.measured_at and reading.quality is not None:
                return Signal.GOOD if reading.quality >= GOOD_FROM else Signal.POOR
        return None

    async def not_judged(self, patient_key: PatientKey) -> Delivery:
        """That a patient's readings cannot be judged; it rings. Reads as little as it can."""
        records, now = self._records, self._now()
        ward = await records.wards.responsible(patient_key)
        consultation = await records.consultations.of_patient(patient_key)
        if ward is not None and ward.room_id is not None:
            room_id, language = ward.room_id, ward.language
            called: Collection[str] = await records.called(ward)
        elif consultation is not None and consultation.room_id is not None:
            room_id, language = consultation.room_id, consultation.language
            called = consultation.clinicians
        else:
            raise BugError("an alarm without a room", code="alarm_without_room")
        try:
            patient = await records.patients.get(patient_key)
        except FajmaError:  # the trouble may be his key
            patient = None
        where = place_of(patient.bed, patient.initials, language) if patient else None
        content = not_judged(where, language).message()
        content["m.mentions"] = {"user_ids": sorted(called)}
        marks = (b"not judged", patient_key.encode(), now.isoformat().encode())
        # For no patient: it must be readable without his key.
        return Delivery(records.site_key.fingerprint(*marks).hex(), room_id, None, content, now)

    # --- outages of a ward -----------------------------------------------------------------------

    async def outage_goes_on(self, one: Outage, silent: Collection[PatientKey]) -> Delivery:
        """That a ward is not monitored, for the first time or again, or worse; it rings."""
        ward = await self._ward(one)
        text = await outage_text(self._records, one, silent, ward, ward.language)
        called = sorted(await self._records.called(ward))
        made = self._of_ward(ward, text, f"outage told {one.told_at.isoformat()}", called)
        return replace(made, content={**made.content, OUTAGE: to_ms(one.began_at)})

    async def outage_ended(
        self, one: Outage, silent: Collection[PatientKey], until: datetime
    ) -> Delivery:
        """That it is over, and who is not back; it does not ring, those alarms will."""
        ward = await self._ward(one)
        text = outage.ended(
            await beds_in_order(self._records, silent),
            len(silent),
            len(one.patients),
            since=one.began_at,
            until=until,
            language=ward.language,
            zone=ward.time_zone,
        )
        return self._of_ward(ward, text, f"outage ended {one.began_at.isoformat()}", None)

    async def _ward(self, one: Outage) -> Ward:
        ward = await self._records.wards.get(one.ward)
        if ward is None or ward.room_id is None:
            raise BugError("an outage of a ward without a room", code="outage_without_room")
        return ward

    def _of_ward(self, ward: Ward, text: Text, mark: str, called: Sequence[str] | None) -> Delivery:
        """A message to a ward about no single patient; silent where nobody is called."""
        marks = (b"outage", ward.id.encode(), mark.encode())
        delivery_id = self._records.site_key.fingerprint(*marks).hex()
        content = text.message()
        if called is None:
            content[RING] = NOBODY
        else:
            content["m.mentions"] = {"user_ids": list(called)}
        return Delivery(delivery_id, ward.room_id or "", None, content, self._now())

    # --- one patient -----------------------------------------------------------------------------

    def _content(
        self,
        patient: PatientKey,
        decision: AnyDecision,
        delivery_id: str,
        text: Text,
        where: _Where,
    ) -> Mapping[str, Any]:
        content = text.message() | {
            "m.mentions": {"user_ids": list(where.called)},
            ALARM: _block(patient, decision, delivery_id).to_content(),
        }
        if not decision.rings:
            content[RING] = NOBODY
        elif where.everyone:
            content[RING] = EVERYONE
        return content

    async def _where(
        self, patient: Patient, ward: Ward | None, decision: AnyDecision
    ) -> _Where | None:
        """The room in which a phone of somebody on duty rings (docs/alarms.md, "Where").

        ``None`` of a patient whose consultation is over, and who is monitored no more.
        """
        records = self._records
        consultation = await records.consultations.of_patient(patient.key)
        treating = consultation.clinicians if consultation is not None else ()
        if ward is not None and ward.room_id is not None:
            # Only who is on call: when nobody is, everybody is called, and in the ward's room.
            on_call = await records.on_call(ward)
            everyone = decision.step >= EVERYONE_STEP or not on_call
            called = await records.called(ward)
            if everyone:
                called = frozenset(one.account for one in await records.people.team(ward.id))
            here = set(treating) & on_call
            has_room = consultation is not None and consultation.room_id is not None
            in_ward = patient.account is None or not here or decision.step >= WARD_STEP
            if not has_room or (in_ward and called):  # a ward without team would tell nobody
                return _Where(ward.room_id, ward.language, ward.time_zone, sorted(called), everyone)
            treating = tuple(sorted(here)) or treating
        if consultation is None and not await records.devices.worn_by(patient.key):
            return None
        if consultation is None or consultation.room_id is None:
            # A monitor is linked to a patient who has a consultation's room or a ward's.
            raise BugError("an alarm without a room", code="alarm_without_room")
        return _Where(consultation.room_id, consultation.language, consultation.time_zone, treating)

    def _delivery_id(self, patient: PatientKey, decision: AnyDecision, place: str) -> str:
        """Opaque, for the homeserver sees it as transaction id; the same when judged again."""
        return self._records.site_key.fingerprint(
            b"delivery",
            patient.encode(),
            str(decision.alarm_id or "").encode(),
            decision.reason.value.encode(),
            decision.priority.name.encode(),
            decision.at.isoformat().encode(),
            place.encode(),
        ).hex()


def _block(patient: PatientKey, decision: AnyDecision, delivery_id: str) -> AlarmBlock:
    if isinstance(decision, TechnicalDecision):
        return AlarmBlock(
            delivery_id=delivery_id,
            alarm_id=decision.alarm_id,
            patient=patient,
            state=decision.reason.value,
            priority=decision.priority.name.lower(),
            trouble=decision.trouble.value,
            measured_at=decision.last_good_at,
        )
    return AlarmBlock(
        delivery_id=delivery_id,
        alarm_id=decision.alarm_id or "",
        patient=patient,
        state=decision.reason.value,
        priority=decision.priority.name.lower(),
        kind=decision.kind,
        value=decision.value,
        limit=decision.limit.threshold,
        measured_at=decision.measured_at,
        is_late=isinstance(decision, LateDecision),
    )


def to_json(decision: AnyDecision) -> str:
    """A decision as one line of JSON, to be kept; holds vitals, so it is stored sealed."""
    content: dict[str, Any] = {"version": 1, "about": _ABOUT[type(decision)]}
    for one in fields(decision):
        content[one.name] = _plain(getattr(decision, one.name))
    return json.dumps(content, separators=(",", ":"))


_ABOUT: Final[Mapping[type, str]] = {
    Decision: "vital",
    LateDecision: "late",
    TechnicalDecision: "technical",
}


def _plain(value: object) -> object:
    if isinstance(value, Limit):
        return [value.comparison.value, str(value.threshold), value.priority.name]
    if isinstance(value, Enum):
        return value.name if isinstance(value.value, int) else value.value
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, Decimal) else value
