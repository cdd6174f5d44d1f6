"""Bodies and queries as they come in: read up to a limit, strictly parsed, validated."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Final, NoReturn, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from appservice.api.problems import FieldProblem, ProblemError, invalid

MAX_BODY_BYTES: Final = 64 * 1024
READ_WITHIN_S: Final = 10.0

_Model = TypeVar("_Model", bound=BaseModel)


async def read(request: web.Request) -> bytes:
    """The body.

    Raises:
        ProblemError: 413 beyond ``MAX_BODY_BYTES``, 415 if it is not JSON, 408 if it is slow.
    """
    if request.body_exists and not _is_json(request):
        raise ProblemError(
            415,
            "content_type",
            "send application/json in UTF-8",
            headers={"Accept": "application/json", "Connection": "close"},
        )
    declared = request.content_length
    if declared is not None and declared > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    try:
        async with asyncio.timeout(READ_WITHIN_S):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise _too_large()
    except TimeoutError:
        raise ProblemError(
            408,
            "body_too_slow",
            "the body did not arrive within ten seconds: send it again",
            headers={"Connection": "close"},
        ) from None
    return bytes(body)


def refuse(request: web.Request) -> None:
    """Where nothing is sent: whoever waits for a body there holds up what others need.

    Raises:
        ProblemError: 400, there is one.
    """
    if request.body_exists:
        raise ProblemError(
            400,
            "body_not_wanted",
            "this request has no body: send none",
            headers={"Connection": "close"},
        )


def _too_large() -> ProblemError:
    # The rest of it is not read, so the connection cannot be used again.
    return ProblemError(
        413,
        "body_too_large",
        "the body is too large: at most 64 KiB",
        headers={"Connection": "close"},
    )


def _is_json(request: web.Request) -> bool:
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        return False
    charset = (request.charset or "utf-8").lower()
    return request.content_type == "application/json" and charset in {"utf-8", "utf8"}


def parsed(body: bytes, model: type[_Model]) -> _Model:
    """The body as an object of its model.

    Raises:
        ProblemError: 400, it is not one; nothing of it is quoted.
    """
    _refuse_ambiguous(body)
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise invalid(error, "body_invalid") from None


def _refuse_ambiguous(body: bytes) -> None:
    """Refuse what two readers may read differently (RFC 8259, section 4: names are unique)."""

    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ProblemError(
                400, "body_invalid", "a field stands twice in one object: send it once"
            )
        return found

    def no_number(_: str) -> NoReturn:
        raise ValueError

    try:
        json.loads(body.decode(), object_pairs_hook=unique, parse_constant=no_number)
    except (ValueError, RecursionError):
        detail = "the body is not a JSON object of the fields that are documented"
        field = FieldProblem(field="", detail=detail)
        raise ProblemError(400, "body_invalid", detail, fields=[field]) from None


def asked(request: web.Request, model: type[_Model]) -> _Model:
    """The query as an object of its model.

    Raises:
        ProblemError: 400, a parameter that is unknown, wrong or given twice.
    """
    query = request.query
    if len(query) != len(set(query)):
        raise ProblemError(400, "query_invalid", "a parameter is given twice: give it once")
    try:
        return model.model_validate_strings(dict(query), strict=True)
    except ValidationError as error:
        raise invalid(error, "query_invalid") from None
