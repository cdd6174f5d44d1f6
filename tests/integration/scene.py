"""Two wards, their staff, and the rooms in which they type: for tests of what is typed there."""

from __future__ import annotations

import base64
import itertools
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import nio

from bots.alerts.client import OnGap
from bots.alerts.engine import AlarmEngine
from bots.alerts.orders import Orders
from bots.alerts.site_rules import SiteRules
from fajma.config import Alarms
from fajma.duty import Roster
from fajma.errors import UnavailableError
from fajma.language import Language
from fajma.store import Records, to_ms
from fajma.store.alarms import Delivery, SentBy
from fajma.store.audit import Entry
from fajma.store.consultations import Consultation
from fajma.store.patients import Patient
from fajma.store.people import Role, Staff
from fajma.store.readings import NewReading
from fajma.store.wards import Ward, WardId
from fajma.vitals import Clock, DeviceId, Kind, Reading

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
MEDICINE, SURGERY = WardId("medecine-2"), WardId("chirurgie")
ROOM, OTHER_ROOM = "!medecine-2:clinic.test", "!chirurgie:clinic.test"
AWA, MOUSSA, FATOU, IBOU, ADMIN = (
    f"@{name}:clinic.test" for name in ("awa", "moussa", "fatou", "ibou", "admin")
)
OURS = ("@fajma:clinic.test", "@fajma-vitals:clinic.test", "@fajma-alerts:clinic.test")
PINNED, SHOWN, SWAPPED = "pinned" * 7, "shown" * 8, "swapped" * 6

Callback = Callable[[nio.MatrixRoom, Any], Awaitable[None]]


class PulledPlugError(Exception):
    """What the tests interrupt a transaction with."""


class FakeClient:
    """Stands in for a signed client: the test delivers the events, and says who is signed."""

    def __init__(self) -> None:
        self.unsigned: set[str] = set()
        self.away = False
        self.asked: list[str] = []
        self._callbacks: list[tuple[Callback, type[nio.Event]]] = []
        self._on_gap: list[OnGap] = []

    def on_gap(self, callback: OnGap) -> None:
        self._on_gap.append(callback)

    async def miss_messages(self, room_id: str, mark: str) -> None:
        for callback in self._on_gap:
            await callback(room_id, mark)

    def add_event_callback(self, callback: Callback, kind: type[nio.Event]) -> None:
        self._callbacks.append((callback, kind))

    async def is_signed_now(self, event: nio.Event, room_id: str) -> bool:
        if self.away:
            raise UnavailableError("away", code="homeserver_unavailable")
        self.asked.append(room_id)
        return event.sender not in self.unsigned

    async def deliver(self, room_id: str, event: nio.Event) -> None:
        for callback, kind in self._callbacks:
            if isinstance(event, kind):
                await callback(nio.MatrixRoom(room_id, OURS[2], encrypted=True), event)


class Scene:
    """Two wards, their staff, and the rooms in which they type."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.now = NOON
        self._numbers = itertools.count(1)
        self.restart()

    def restart(self) -> None:
        """As after a crash: nothing is remembered but what the database holds."""
        self.client = FakeClient()
        self.orders = Orders(
            self.client,  # type: ignore[arg-type]
            self.records,
            SiteRules(),
            ours=OURS,
            now=lambda: self.now,
        )

    def message(
        self,
        sender: str,
        body: str,
        *,
        content: Mapping[str, Any] | None = None,
        mentions: Sequence[str] = (),
        envelope: str | None = None,
        encrypted: bool = True,
        sent_at: datetime | None = None,
        session: str = "session",
        index: int | None = None,
    ) -> nio.RoomMessageText:
        filled: dict[str, Any] = {"msgtype": "m.text", "body": body, **(content or {})}
        if mentions:
            filled["m.mentions"] = {"user_ids": list(mentions)}
        source = {
            "type": "m.room.message",
            "event_id": f"$event-{next(self._numbers)}",
            "sender": sender,
            "origin_server_ts": to_ms(sent_at or self.now),
            "content": filled,
        }
        event = nio.RoomMessageText(source, body, None, None)
        event.decrypted = encrypted
        if encrypted:
            event.envelope = envelope or unpadded(secrets.token_bytes(100))
            event.sender_key, event.session_id = f"key of {sender}", session
            event.message_index = next(self._numbers) if index is None else index
        return event

    async def types(self, sender: str, body: str, *, room_id: str = ROOM, **more: Any) -> list[str]:
        """Somebody types; what is answered."""
        before = len(await self.answers(room_id))
        await self.client.deliver(room_id, self.message(sender, body, **more))
        return (await self.answers(room_id))[before:]

    async def reacts(
        self, sender: str, event_id: str, *, room_id: str = ROOM, key: str = "👍"
    ) -> None:
        await self.client.deliver(room_id, self.reaction(sender, event_id, key))

    def reaction(self, sender: str, event_id: str, key: str = "👍") -> nio.ReactionEvent:
        relates = {"rel_type": "m.annotation", "event_id": event_id, "key": key}
        source = {
            "type": "m.reaction",
            "event_id": f"$event-{next(self._numbers)}",
            "sender": sender,
            "origin_server_ts": to_ms(self.now),
            "content": {"m.relates_to": relates},
        }
        return nio.ReactionEvent(source, event_id, key)

    async def said(self, room_id: str = ROOM, sender: SentBy = SentBy.HOST) -> list[Delivery]:
        waiting = await self.records.outbox.waiting(room_id, sender=sender)
        return [await self.records.outbox.get(one) for one in waiting]

    async def answers(self, room_id: str = ROOM) -> list[str]:
        return [one.content["body"] for one in await self.said(room_id)]

    async def ward(self, ward: WardId = MEDICINE) -> Ward:
        found = await self.records.wards.get(ward)
        assert found is not None
        return found

    async def roster(self) -> Roster:
        return (await self.ward()).roster

    async def time_passes(self, span: timedelta) -> None:
        self.now += span
        await self.orders._desk.look_at_time(await self.ward())

    async def audit(self) -> list[Entry]:
        return await self.records.audit.latest(limit=1000)

    async def acts(self) -> list[str]:
        return [one.action for one in await self.audit()]


def unpadded(data: bytes) -> str:
    return base64.b64encode(data).decode().rstrip("=")


async def staffed(records: Records) -> Scene:
    """The scene with its wards and people."""
    for ward, room_id in ((MEDICINE, ROOM), (SURGERY, OTHER_ROOM)):
        await records.wards.add(Ward(ward, room_id, Language.FRENCH, "Africa/Dakar", Roster()))
    people = (
        Staff(AWA, "Awa Diop", Role.DOCTOR, MEDICINE, Language.FRENCH, NOON),
        Staff(MOUSSA, "Moussa Ba", Role.NURSE, MEDICINE, Language.FRENCH, NOON),
        Staff(FATOU, "Fatou Sarr", Role.NURSE, MEDICINE, Language.ENGLISH, NOON),
        Staff(IBOU, "Ibou Fall", Role.DOCTOR, SURGERY, Language.FRENCH, NOON),
        Staff(ADMIN, "Ada Min", Role.OPERATOR, MEDICINE, Language.FRENCH, NOON),
    )
    async with records.store.transaction() as connection:
        for person in people:
            await records.people.put(connection, person)
    return Scene(records)


async def consultation(
    scene: Scene,
    *clinicians: str,
    number: str = "1",
    account: str | None = None,
    ward: WardId | None = None,
    opened: bool = True,
) -> tuple[Patient, Consultation]:
    patient = await scene.records.patients.add(
        number=number, initials="A.D.", bed=number, account=account, ward=ward
    )
    opening = await scene.records.consultations.add(
        patient=patient.key,
        clinicians=clinicians,
        language=Language.FRENCH,
        time_zone="Africa/Dakar",
        now=NOON,
    )
    if opened:
        await scene.records.consultations.open_in(opening.id, f"!consultation-{number}:clinic.test")
    found = await scene.records.consultations.get(opening.id)
    assert found is not None
    return patient, found


async def falls(scene: Scene, patient: Patient) -> Delivery:
    """The patient's SpO2 falls; the alarm that is promised."""
    engine = AlarmEngine(Alarms(), scene.records, now=lambda: scene.now)
    device = DeviceId(patient.number)
    moments = [NOON + timedelta(seconds=5 * number) for number in range(5)]
    fallen = [Reading(device, at, at, Clock.DEVICE, {Kind.SPO2: Decimal(88)}) for at in moments]
    async with scene.records.store.transaction() as connection:
        await scene.records.readings.append(
            connection,
            [
                NewReading(number.to_bytes(16, "big"), patient.key, reading)
                for number, reading in enumerate(fallen)
            ],
        )
    while await engine.advance():
        pass
    [alarm] = [
        one
        for room_id in await scene.records.outbox.rooms_waiting()
        for one in await scene.said(room_id, SentBy.ALERTS)
        if one.patient == patient.key
    ]
    await scene.records.outbox.delivered(alarm.delivery_id, "$alarm")
    return alarm
