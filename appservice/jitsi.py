"""Calls of several people on the site's Jitsi: started in a consultation, joined by who belongs.

Jitsi's Prosody asks us about everybody who comes, in the protocol of the "Matrix user verification
service" (version 3, ``POST /verify/user_in_room``), which its module
``mod_auth_matrix_user_verification`` speaks. The usual service needs an administrator's token of
one homeserver. Ours needs none: whose the token is, that person's own homeserver says; who belongs
in the room, our records; who is in it, the homeserver says to ``@fajma``, who is in it too.
"""

from __future__ import annotations

import hmac
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any, Final

import structlog
from aiohttp import ClientError, web
from mautrix.errors import MatrixError
from pydantic import BaseModel, Field, ValidationError

from appservice.calls import jitsi_widget
from appservice.rooms import CLINICIAN_POWER, PATIENT_POWER, WIDGETS
from fajma.config import Calls, read_secret
from fajma.errors import AccessError, BugError, InputError, UnavailableError
from fajma.life import ParticipantRole, Status, Step, may, next_status
from fajma.store import Records
from fajma.store.consultations import Consultation

log = structlog.get_logger()

PATH: Final = "/fajma/jitsi"
"""``uvs_base_url`` of Prosody is the application service's address and this."""

MAX_BODY_BYTES: Final = 16 * 1024
MOST_QUESTIONS: Final = 30
"""About one room in ``WITHIN_S``: 15 people who all come, fall out and come again."""

WITHIN_S: Final = 60.0

REFUSED: Final[Mapping[str, Any]] = {
    "results": {"user": False, "room_membership": False},
    "user_id": None,
    "power_levels": None,
}
"""The answer to every question that is not answered with yes: why, only our log says."""

Show = Callable[[str, str, Mapping[str, Any], str], Awaitable[None]]
"""Sets room state: room id, type, content, key (``MatrixService.set_plain_state``)."""

IsMember = Callable[[str, str], Awaitable[bool]]
"""Whether somebody is in a room, by the homeserver's word (``MatrixService.is_member``)."""

Who = Callable[[str, str], Awaitable[str]]
"""Whose OpenID token of which homeserver it is (``OpenId.who``)."""


class JitsiRooms:
    """Starts conferences."""

    def __init__(self, calls: Calls, records: Records, show: Show) -> None:
        self._calls = calls
        self._records = records
        self._show = show

    async def start(self, consultation: Consultation, by: str, now: datetime) -> None:
        """Put the widget of the conference into the consultation's room. Safe to repeat.

        Args:
            consultation: an open one.
            by: user id of who asks for it.
            now: aware UTC.

        Raises:
            InputError: the site has no Jitsi (``no_jitsi``).
            LifeError: the consultation is not open.
            AccessError: who asks does not belong to it, or only watches (``not_in_consultation``).
            MatrixError: the homeserver refuses.
        """
        next_status(consultation.status, Step.CALL)
        domain, room_id = self._calls.jitsi_domain, consultation.room_id
        if domain is None:
            raise InputError(
                "there is no server for calls of several people: set calls.jitsi_domain",
                code="no_jitsi",
            )
        if room_id is None:
            raise BugError("an open consultation without a room", code="room_missing")
        role = consultation.role_of(by) or ParticipantRole.PATIENT
        if by not in await self._records.audience.of(room_id) or not may(role, Step.CALL):
            raise AccessError(
                "only who takes part in the consultation starts a call", code="not_in_consultation"
            )
        async with self._records.store.transaction() as connection:
            await self._records.audit.note(
                connection, actor=by, action="call.start", subject=consultation.id, now=now
            )
        widget = jitsi_widget(
            room_id,
            f"Consultation {consultation.short_name}",
            domain=domain,
            audio_first=self._calls.audio_first,
        )
        await self._show(room_id, WIDGETS, widget, f"fajma-call-{consultation.id}")
        log.info("call_started", consultation=consultation.id)


class _Question(BaseModel):
    """Body of a question; what else a module may send is not looked at."""

    token: Annotated[str, Field(min_length=1, max_length=512)]
    room_id: Annotated[str, Field(max_length=255, pattern=r"^![!-~]+$")]
    matrix_server_name: Annotated[str, Field(max_length=255)] | None = None


class JitsiDoor:
    """Says who may join a conference.

    Args:
        calls: settings; a Jitsi server is named there.
        server_name: of our homeserver, whose the token is if the question does not say.
        records: which consultations there are, and who belongs to them.
        who: see there.
        is_member: see there.
    """

    def __init__(
        self, calls: Calls, server_name: str, records: Records, who: Who, is_member: IsMember
    ) -> None:
        if calls.jitsi_token_file is None:
            raise InputError(
                "calls.jitsi_domain needs calls.jitsi_token_file", code="jitsi_token_missing"
            )
        self._token = read_secret(calls.jitsi_token_file, purpose="Jitsi server's token")
        self._server_name = server_name
        self._records = records
        self._who = who
        self._is_member = is_member
        self._asked: dict[str, deque[float]] = {}

    def add_routes(self, app: web.Application) -> None:
        """Answer on the application service's web server."""
        app.router.add_post(f"{PATH}/verify/user_in_room", self._on_question)

    async def _on_question(self, request: web.Request) -> web.Response:
        offered = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(
            offered.encode("utf-8", "surrogateescape"), self._token.encode()
        ):
            log.warning("jitsi_token_refused", remote=request.remote)
            return web.json_response({}, status=HTTPStatus.FORBIDDEN)
        try:
            return web.json_response(await self._answer(request))
        except (AccessError, UnavailableError) as error:
            log.warning("jitsi_refused", code=error.code)
        except (MatrixError, ClientError, TimeoutError) as error:
            log.error("jitsi_refused", code="homeserver_refused", error=type(error).__name__)
        except Exception as error:  # noqa: BLE001 - a database that is away, too, lets nobody in
            log.error("jitsi_refused", code="bug", error=type(error).__name__)
        return web.json_response(REFUSED)

    async def _answer(self, request: web.Request) -> dict[str, Any]:
        question = await _question(request)
        room_id = question.room_id
        consultation = await self._records.consultations.in_room(room_id)
        # Before anybody else is asked, so that strangers cannot make us ask.
        if consultation is None:
            raise AccessError("not a room of ours", code="call_foreign_room")
        if consultation.status is not Status.OPEN:
            raise AccessError("the consultation is not open", code="consultation_not_open")
        if not self._may_ask_about(room_id):
            raise AccessError("too many questions about one room", code="call_too_many")
        user = await self._who(question.token, question.matrix_server_name or self._server_name)
        if user not in await self._records.audience.of(room_id):
            raise AccessError("does not belong to the consultation", code="not_in_consultation")
        if not await self._is_member(room_id, user):
            raise AccessError("is not in the room", code="call_not_in_room")
        async with self._records.store.transaction() as connection:
            await self._records.audit.note(
                connection,
                actor=user,
                action="call.join",
                subject=consultation.id,
                now=datetime.now(UTC),
            )
        leads = user in consultation.clinicians
        return {
            "results": {"user": True, "room_membership": True},
            "user_id": user,
            # With `uvs_sync_power_levels` Prosody makes owners of those who have `state_default`.
            # That is 100 in our rooms; who leads a call is another matter.
            "power_levels": {
                "room": {"state_default": CLINICIAN_POWER, "users_default": PATIENT_POWER},
                "user": CLINICIAN_POWER if leads else PATIENT_POWER,
            },
        }

    def _may_ask_about(self, room_id: str) -> bool:
        now = time.monotonic()
        for room, times in list(self._asked.items()):
            while times and now - times[0] > WITHIN_S:
                times.popleft()
            if not times:
                del self._asked[room]
        asked = self._asked.setdefault(room_id, deque())
        if len(asked) >= MOST_QUESTIONS:
            return False
        asked.append(now)
        return True


async def _question(request: web.Request) -> _Question:
    """Read what Prosody passes on from a stranger's browser.

    Raises:
        AccessError: ``call_question_malformed``.
    """
    if request.content_length is not None and request.content_length <= MAX_BODY_BYTES:
        try:
            return _Question.model_validate_json(await request.read(), strict=True)
        except ValidationError:
            pass
    raise AccessError("this is not a question about a room", code="call_question_malformed")
