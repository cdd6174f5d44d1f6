"""The REST API for hospital software. Small for now: one call that opens a consultation.

Every request carries the site's API token (``Authorization: Bearer ...``). Bodies are validated
by one declaration each; unknown fields are refused.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Final

import structlog
from aiohttp import web
from mautrix.errors import MatrixError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from appservice.consultations import ConsultationService
from fajma.errors import FajmaError, InputError
from fajma.language import Language
from fajma.vitals import DeviceId

log = structlog.get_logger()

PREFIX: Final = "/fajma/v1"
MAX_BODY_BYTES: Final = 64 * 1024

_USER_ID: Final = re.compile(r"@[a-z0-9._=/+-]{1,200}:[A-Za-z0-9.:\[\]-]{1,200}")
"""Matrix user identifiers (specification, appendix "User identifiers")."""

Text = Annotated[str, Field(min_length=1, max_length=64)]


class ConsultationRequest(BaseModel):
    """Body of ``POST /fajma/v1/consultations``."""

    model_config = ConfigDict(extra="forbid")

    number: Text
    initials: Annotated[str, Field(min_length=1, max_length=12)]
    bed: Annotated[str, Field(min_length=1, max_length=24)]
    clinicians: Annotated[list[str], Field(min_length=1, max_length=50)]
    patient_account: str | None = None
    device: Annotated[str, Field(pattern=r"^[0-9A-F]{12}$")] | None = None
    language: Language | None = None

    @field_validator("clinicians", "patient_account")
    @classmethod
    def _user_ids(cls, value: list[str] | str | None) -> list[str] | str | None:
        for one in [value] if isinstance(value, str) else value or []:
            if not _USER_ID.fullmatch(one):
                raise ValueError("write Matrix user ids like @awa:hospital.example")
        return value


def add_routes(app: web.Application, service: ConsultationService, *, api_token: str) -> None:
    """Put the API under ``/fajma/v1`` of the application service's web server."""

    def guarded(
        handler: Callable[[web.Request], Awaitable[web.Response]],
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def checked(request: web.Request) -> web.Response:
            offered = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(offered.encode(), api_token.encode()):
                log.warning("api_token_refused", remote=request.remote)
                return _error(401, "token_refused", "show the site's API token")
            try:
                return await handler(request)
            except InputError as error:
                return _error(400, error.code, str(error))
            except MatrixError as error:
                log.error("homeserver_refused", error=type(error).__name__)
                return _error(502, "homeserver_refused", "the homeserver refuses; see the log")
            except FajmaError as error:
                log.error("api_request_failed", code=error.code)
                return _error(503, error.code, str(error))

        return checked

    async def open_consultation(request: web.Request) -> web.Response:
        body = await _body(request)
        consultation = await service.open(
            number=body.number,
            initials=body.initials,
            bed=body.bed,
            patient_account=body.patient_account,
            clinicians=body.clinicians,
            device=DeviceId(body.device) if body.device else None,
            language=body.language,
            now=datetime.now(UTC),
        )
        return web.json_response(
            {
                "consultation": consultation.id,
                "room_id": consultation.room_id,
                "patient": consultation.patient,
            }
        )

    app.router.add_post(f"{PREFIX}/consultations", guarded(open_consultation))


async def _body(request: web.Request) -> ConsultationRequest:
    if request.content_length is None or request.content_length > MAX_BODY_BYTES:
        raise InputError("the body is too large or of unknown length", code="body_too_large")
    try:
        return ConsultationRequest.model_validate_json(await request.read())
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
            for problem in error.errors(
                include_url=False, include_input=False, include_context=False
            )
        )
        raise InputError(problems, code="body_invalid") from error


def _error(status: int, code: str, message: str) -> web.Response:
    return web.json_response({"code": code, "error": message}, status=status)
