"""A hospital whose homeserver is a fake: rooms as state events, and calls that fail on demand."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from mautrix.errors import MatrixConnectionError

from appservice.consultations import ConsultationService
from appservice.patients import PatientService
from appservice.repairs import CREATE, MEMBER, Repair, RoomNow, What, repairs
from appservice.rooms import Plan
from appservice.wards import WardService
from fajma.config import Federation, Homeserver, Retention, Settings, Site, Widgets
from fajma.errors import InputError, UnavailableError
from fajma.language import Language
from fajma.store import Records
from fajma.store.alarms import SentBy
from fajma.store.consultations import Consultation, ConsultationId
from fajma.store.patients import Patient
from fajma.vitals import DeviceId, PatientKey

NOON: Final = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
HOST, VITALS, ALERTS = (
    f"@{name}:clinic.test" for name in ("fajma", "fajma-vitals", "fajma-alerts")
)
AWA, MOUSSA, PATIENT, MOTHER, STUDENT = (
    f"@{name}:clinic.test" for name in ("awa", "moussa", "patient", "mother", "student")
)
BEN, EVE = "@ben:partner.test", "@eve:elsewhere.test"
MONITOR: Final = DeviceId("A4CF12F03B7E")

Event = dict[str, Any]


class FakeOperator:
    """The homeserver's accounts, and whose phones ring."""

    def __init__(self) -> None:
        self.accounts = {AWA, MOUSSA, PATIENT, MOTHER, STUDENT}
        self.rings: dict[str, bool] = {}

    async def ring(self, mxid: str, *, rings: bool) -> tuple[str, ...]:
        if mxid not in self.accounts:
            raise InputError(f"there is no account {mxid} here", code="no_such_account")
        self.rings[mxid] = rings
        return ()


@dataclass
class FakeSender:
    """One of our users: what it said, each once, and the encrypted state that it set."""

    mxid: str
    server: FakeMatrix
    said: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    state: dict[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)

    async def send(
        self, room_id: str, event_type: str, content: Mapping[str, Any], *, transaction_id: str
    ) -> str:
        assert event_type == "m.room.message"
        with self.server.call(room_id):
            self.said.setdefault(transaction_id, content)
        return f"${transaction_id}"

    async def set_state(
        self, room_id: str, event_type: str, state_key: str, content: Mapping[str, Any]
    ) -> str:
        assert state_key == ""
        with self.server.call(room_id):
            self.state[room_id, event_type] = content
        return "$state"


class FakeMatrix:
    """Rooms as a homeserver keeps them.

    Attributes:
        rooms: state events by room id and (type, state key).
        calls: how many calls were made.
        fails_at: the number of the call that fails.
        was_done: whether that call was carried out all the same.
        trouble: what each call fails with.
        is_mending: set once a room is mended.
        goes_on: what mending waits for.
        lost: rooms that ``@fajma`` is not in any more.
    """

    def __init__(self) -> None:
        self.rooms: dict[str, dict[tuple[str, str], Event]] = {}
        self.host = FakeSender(HOST, self)
        self.vitals = FakeSender(VITALS, self)
        self.alerts_mxid = ALERTS
        self.ours = frozenset({HOST, VITALS, ALERTS})
        self.calls = 0
        self.fails_at: int | None = None
        self.was_done = False
        self.lost: set[str] = set()
        self.trouble: Exception | None = None
        self.is_mending = asyncio.Event()
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.invitations: list[tuple[str, str]] = []
        self._numbers = itertools.count(1)

    @contextlib.contextmanager
    def call(self, room_id: str | None = None) -> Iterator[None]:
        """One call to the homeserver; its effect is in the block."""
        self.calls += 1
        if self.calls == self.fails_at and not self.was_done:
            raise MatrixConnectionError("it does not answer")
        if self.trouble is not None:
            raise self.trouble
        if room_id is not None and room_id in self.lost:
            raise UnavailableError("@fajma is not in the room", code="bot_not_in_room")
        yield
        if self.calls == self.fails_at:
            raise MatrixConnectionError("its answer was lost")

    # What a test looks at or does.

    def fails(self, *, after: int, was_done: bool) -> None:
        """Of the calls from now on this one fails, counted from 1."""
        self.fails_at, self.was_done = self.calls + after, was_done

    def put(self, room_id: str, event_type: str, content: Mapping[str, Any], key: str = "") -> None:
        event = {"type": event_type, "state_key": key, "content": dict(content), "sender": key}
        self.rooms[room_id][event_type, key] = event

    def member(self, room_id: str, user: str, membership: str) -> None:
        self.put(room_id, MEMBER, {"membership": membership}, user)

    def content(self, room_id: str, event_type: str, key: str = "") -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.rooms[room_id][event_type, key]["content"]
        return found

    def membership(self, room_id: str, user: str) -> str | None:
        event = self.rooms[room_id].get((MEMBER, user))
        return event and event["content"]["membership"]

    def all_join(self, room_id: str) -> None:
        for user, membership in RoomNow.of(list(self.rooms[room_id].values())).members.items():
            if membership == "invite":
                self.member(room_id, user, "join")

    # What our services call.

    def is_local(self, user: str) -> bool:
        return user.endswith(":clinic.test")

    def refuse_ours(self, account: str) -> None:
        if account in self.ours:
            raise InputError("an account of FAJMA", code="account_of_fajma")

    async def create_bare_room(self, request: Mapping[str, Any]) -> str:
        with self.call():
            room_id = f"!room-{next(self._numbers)}:clinic.test"
            self.rooms[room_id] = {}
            creation = {"room_version": request["room_version"], **request["creation_content"]}
            self.put(room_id, CREATE, creation)
            self.rooms[room_id][CREATE, ""]["sender"] = HOST
            self.put(room_id, "m.room.power_levels", request["power_level_content_override"])
            for one in request["initial_state"]:
                self.put(room_id, one["type"], one["content"], one["state_key"])
            self.member(room_id, HOST, "join")
            for user in request.get("invite", ()):
                self.member(room_id, user, "join" if user in self.ours else "invite")
        return room_id

    create_room = create_bare_room

    async def invite(self, room_id: str, user: str) -> None:
        with self.call(room_id):
            if self.membership(room_id, user) not in {"join", "invite"}:
                self.member(room_id, user, "join" if user in self.ours else "invite")
                self.invitations.append((room_id, user))

    async def remove(self, room_id: str, user: str) -> None:
        with self.call(room_id):
            if self.membership(room_id, user) is not None:
                self.member(room_id, user, "leave")
                self.rooms[room_id][MEMBER, user]["sender"] = HOST

    async def room_now(self, room_id: str) -> RoomNow:
        with self.call(room_id):
            return RoomNow.of(list(self.rooms[room_id].values()))

    room_inside = room_now

    async def creation_of(self, room_id: str) -> Mapping[str, Any]:
        with self.call(room_id):
            return self.rooms[room_id][CREATE, ""]

    async def mend(self, room_id: str, plan: Plan) -> Sequence[Repair]:
        self.is_mending.set()
        await self.goes_on.wait()
        found = repairs(await self.room_inside(room_id), plan)
        for one in found:
            if one.content is not None:
                await self.set_plain_state(room_id, one.event_type, one.content)
            elif one.what is What.BOT:
                await self.invite(room_id, one.account)
            else:
                await self.remove(room_id, one.account)
        return found

    async def move_into(self, room_id: str, plan: Plan) -> None:
        await self.mend(room_id, plan)
        for user in plan.people:
            await self.invite(room_id, user)

    async def set_plain_state(
        self, room_id: str, event_type: str, content: Mapping[str, Any], state_key: str = ""
    ) -> None:
        with self.call(room_id):
            self.put(room_id, event_type, content, state_key)

    async def strangers(self, room_id: str) -> frozenset[str]:
        assert room_id in self.rooms
        return frozenset()

    async def has_joined(self, room_id: str, user: str) -> bool:
        return self.membership(room_id, user) == "join"

    async def join(self, room_id: str) -> None:
        with self.call(room_id):
            self.member(room_id, HOST, "join")

    async def decline(self, room_id: str) -> None:
        with self.call(room_id):
            self.member(room_id, HOST, "leave")


class Hospital:
    """The services under test, and what they work with."""

    def __init__(self, records: Records, **sections: Any) -> None:
        nowhere = Path("/nowhere")
        self.settings = Settings.model_construct(
            site=Site(),
            federation=Federation(partners=["partner.test"]),
            retention=Retention(archive_after_days=30),
            widgets=Widgets(),
            homeserver=Homeserver(
                url="http://127.0.0.1:8008",
                server_name="clinic.test",
                as_token_file=nowhere,
                hs_token_file=nowhere,
                admin_password_file=nowhere,
            ),
            **sections,
        )
        self.records = records
        self.operator = FakeOperator()
        self.matrix = FakeMatrix()
        self.in_alarm: set[PatientKey] = set()
        matrix: Any = self.matrix
        operator: Any = self.operator
        self.wards = WardService(self.settings, records, matrix)
        self.patients = PatientService(records, matrix, operator, self.wards)

        async def alarm_open(patient: PatientKey) -> bool:
            return patient in self.in_alarm

        self.service = ConsultationService(
            self.settings, records, matrix, operator, self.patients, alarm_open=alarm_open
        )

    async def open(self, **more: Any) -> Consultation:
        """Open the consultation of patient 1, and everybody joins."""
        given: dict[str, Any] = {
            "number": "1",
            "initials": "A.D.",
            "bed": "4",
            "patient_account": None,
            "clinicians": [AWA],
            "device": None,
            "language": Language.ENGLISH,
            "now": NOON,
        }
        opened = await self.service.open(**(given | more))
        assert opened.room_id is not None
        self.matrix.all_join(opened.room_id)
        return opened

    async def book(self, **more: Any) -> Consultation:
        """Book the consultation of patient 1."""
        given: dict[str, Any] = {
            "number": "1",
            "initials": "A.D.",
            "bed": "4",
            "patient_account": PATIENT,
            "clinicians": [AWA],
            "language": Language.ENGLISH,
            "booked_for": NOON,
            "by": AWA,
            "now": NOON,
        }
        return await self.service.book(**(given | more))

    async def get(self, consultation: ConsultationId) -> Consultation:
        found = await self.records.consultations.get(consultation)
        assert found is not None
        return found

    async def patient(self, consultation: Consultation) -> Patient:
        found = await self.records.patients.get(consultation.patient)
        assert found is not None
        return found

    async def actions(self) -> list[str]:
        return [one.action for one in await self.records.audit.latest()]

    async def said(self, room_id: str) -> list[str]:
        """What ``@fajma`` will say in a room, by the outbox."""
        outbox = self.records.outbox
        waiting = await outbox.waiting(room_id, sender=SentBy.HOST)
        return [str((await outbox.get(one)).content["body"]) for one in waiting]
