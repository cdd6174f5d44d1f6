"""The rooms that are told of the monitoring itself, and who must be looked at when it is back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import structlog

from bots.alerts.alarm import Reason
from bots.alerts.alarm_state import Trouble
from bots.alerts.bedside_text import bed_of
from bots.alerts.kept_state import kept_state
from bots.alerts.limits import Priority
from bots.alerts.open_alarms import open_alarms
from bots.alerts.silence_text import no_reading
from bots.alerts.site_rules import SiteRules
from bots.alerts.situation import readable_state, words
from bots.alerts.text import unreadable
from fajma.errors import FajmaError
from fajma.language import Language
from fajma.life import Status
from fajma.store import Records
from fajma.store.consultations import Consultation
from fajma.store.patients import Patient
from fajma.store.wards import Ward
from fajma.vitals import PatientKey

log = structlog.get_logger()

_EVER: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class ToldRoom:
    """One room.

    Attributes:
        id: room id.
        language: of the room.
        time_zone: IANA name.
        called: user ids of whose phones should ring, sorted.
        ward: whose team room it is; ``None`` for a consultation's.
        patient: whose consultation it is; ``None`` for a ward's room.
    """

    id: str
    language: Language
    time_zone: str
    called: tuple[str, ...]
    ward: Ward | None = None
    patient: PatientKey | None = None


class ToldRooms:
    """Finds them in our records.

    Args:
        records: our records.
        rules: by which patients are judged.
    """

    def __init__(self, records: Records, rules: SiteRules) -> None:
        self._records = records
        self._rules = rules
        self._alarms: dict[PatientKey, tuple[datetime, Priority | None]] = {}
        """By patient: when something was announced last, and the worst open alarm then."""

    async def all(self) -> list[ToldRoom]:
        """Wards, then rooms in alarm, the most urgent first; without any ward every consultation.

        Each room stands once.
        """
        wards = await self._records.wards.all()
        found = [await self._of_ward(one) for one in wards if one.room_id is not None]
        rooms = {one.id: one for one in found if one is not None}
        for room_id in await self._in_alarm():
            if room_id not in rooms:
                room = await self.of(room_id)
                if room is not None:
                    rooms[room_id] = room
        if not wards:
            for consultation in await self._records.consultations.open_ones():
                room = await self._of_consultation(consultation)
                if room is not None:
                    rooms.setdefault(room.id, room)
        return list(rooms.values())

    async def of(self, room_id: str) -> ToldRoom | None:
        """One room by its id; ``None`` if our records know it no more."""
        ward = await self._records.wards.in_room(room_id)
        if ward is not None:
            return await self._of_ward(ward)
        consultation = await self._records.consultations.in_room(room_id)
        is_open = consultation is not None and consultation.status is Status.OPEN
        return await self._of_consultation(consultation) if consultation and is_open else None

    async def _of_ward(self, ward: Ward) -> ToldRoom | None:
        if ward.room_id is None:
            return None
        called = await self._records.called(ward)
        return ToldRoom(ward.room_id, ward.language, ward.time_zone, tuple(sorted(called)), ward)

    async def _of_consultation(self, one: Consultation) -> ToldRoom | None:
        if one.room_id is None:
            return None
        ward = await self._records.wards.responsible(one.patient)
        on_call = frozenset() if ward is None else await self._records.on_call(ward)
        called = tuple(sorted(on_call & set(one.clinicians))) or one.clinicians
        return ToldRoom(one.room_id, one.language, one.time_zone, called, patient=one.patient)

    # --- alarms ----------------------------------------------------------------------------------

    async def _in_alarm(self) -> list[str]:
        """Rooms in which alarms that are open were told, the most urgent first."""
        changed = await self._records.alarm_states.changed_since(_EVER)
        for patient, at in changed.items():
            known = self._alarms.get(patient)
            if known is None or known[0] != at:
                self._alarms[patient] = (at, await self._worst(patient))
        worst: dict[str, Priority] = {}
        for patient, (_, priority) in self._alarms.items():
            if priority is not None:
                room_id = await self._records.switches.room_of(patient)
                if room_id is not None:
                    worst[room_id] = max(priority, worst.get(room_id, priority))
        return sorted(worst, key=lambda room_id: (-worst[room_id], room_id))

    async def _worst(self, patient: PatientKey) -> Priority | None:
        try:
            state = await kept_state(self._records, patient)
        except FajmaError as error:
            # Whoever cannot be read may be in alarm.
            log.critical("alarm_state_unreadable", patient=patient, code=error.code)
            return Priority.HIGH
        now = datetime.now(UTC)  # stands in no priority
        told = (one.say(Reason.STARTED, now) for one in open_alarms(state, self._rules))
        return max((one.priority for one in told), default=None)

    # --- who must be looked at -------------------------------------------------------------------

    async def to_look_at(self, room: ToldRoom, *, since: datetime, now: datetime) -> list[str]:
        """A line for each alarm that is open, and each monitor's wearer who sent nothing lately."""
        worn = await self._records.devices.worn()
        lines: list[str] = []
        for patient in await self._patients(room):
            state = await readable_state(self._records, patient.key, self._rules)
            if state is None:
                lines.append(unreadable(patient.bed, patient.initials, room.language))
                continue
            lines += [
                words(one.say(Reason.STARTED, now), patient, room.language, room.time_zone)
                for one in open_alarms(state, self._rules)
            ]
            is_told = any(one.trouble is Trouble.NO_READINGS for one in state.troubles)
            if patient.key in worn and not is_told:
                last = await self._records.heartbeats.last_received(patient.key)
                usual = [one.silent_after for one in state.heard.values()]
                # What came before we died, after the last time that we put it off, says nothing.
                lately = now - max(usual, default=self._rules.silent_after)
                if last is None or last < max(since, lately):
                    where = bed_of(patient, room.language)
                    lines.append(
                        no_reading(where, room.language, last=last, zone=room.time_zone, now=now)
                    )
        return lines

    async def _patients(self, room: ToldRoom) -> Sequence[Patient]:
        if room.ward is not None:
            return await self._records.patients_of(room.ward)
        patient = await self._records.patients.get(room.patient) if room.patient else None
        return [] if patient is None else [patient]
