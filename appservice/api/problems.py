"""Errors as the API answers them: problem details (RFC 9457). Pure.

``type`` is ``about:blank``, so ``title`` is the name of the status; what a program decides on is
``code``, which is stable, and what a person reads is ``detail``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Final, Literal

from aiohttp import ClientError, web
from mautrix.errors import MatrixError
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails

from fajma.errors import (
    AccessError,
    BugError,
    BusyError,
    FajmaError,
    InputError,
    UnavailableError,
)
from fajma.store.away import DATABASE_UNAVAILABLE, is_outage

CONTENT_TYPE: Final = "application/problem+json"

_GONE: Final = frozenset(
    {
        "patient_unknown",
        "ward_unknown",
        "staff_unknown",
        "consent_unknown",
        "consultation_unknown",
        "consultation_gone",
        "monitor_not_worn",
    }
)
_CONFLICTS: Final = frozenset(
    {
        "patient_exists",
        "staff_exists",
        "account_exists",
        "account_of_patient",
        "account_of_staff",
        "name_taken",
        "monitor_worn_by_another",
        "patient_without_room",
        "alarm_open",
        "consultation_over",
        "consultation_not_open",
        "consultation_is_open",
        "consultation_not_ended",
        "last_clinician",
    }
)


class FieldProblem(BaseModel):
    """What is wrong with one field."""

    field: Annotated[str, Field(description="Name of the field or parameter.")]
    detail: str


class Problem(BaseModel):
    """What every error looks like (RFC 9457)."""

    type: Literal["about:blank"] = "about:blank"
    title: Annotated[str, Field(description="Name of the status.")]
    status: Annotated[int, Field(ge=400, le=599)]
    code: Annotated[str, Field(description="Stable; for programs.")]
    detail: Annotated[str, Field(description="For people: what to do.")]
    errors: list[FieldProblem] = []


class ProblemError(FajmaError):
    """Something that the API refuses by itself.

    Args:
        status: HTTP status.
        code: stable lower-case identifier.
        message: what to do about it; nothing of what was sent is in it.
        headers: further ones, e.g. ``Retry-After``.
        fields: what is wrong with which field.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        headers: Mapping[str, str] | None = None,
        fields: Sequence[FieldProblem] = (),
    ) -> None:
        super().__init__(message, code=code)
        self.status = status
        self.headers = dict(headers or {})
        self.fields = list(fields)


def not_found() -> ProblemError:
    """There is no such thing, or it is none of the caller's business: the answer is the same."""
    return ProblemError(404, "not_found", "there is nothing here that you may see")


def problem_of(error: Exception) -> ProblemError:
    """An error as it is answered."""
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, web.HTTPException):
        return _of_framework(error)
    if isinstance(error, InputError):
        return ProblemError(_status_of(error.code), error.code, str(error))
    if isinstance(error, AccessError):  # one answer for all: which it was stands in the log
        return ProblemError(401, "token_refused", "this token opens nothing: sign in anew")
    return _ours(error)


def _ours(error: Exception) -> ProblemError:
    """What is no fault of whoever asks."""
    if isinstance(error, BusyError):
        wait_s = max(1, round(error.retry_after_s or 1))
        return ProblemError(503, error.code, str(error), headers={"Retry-After": str(wait_s)})
    if isinstance(error, UnavailableError):
        return ProblemError(503, error.code, str(error))
    if isinstance(error, MatrixError):
        return ProblemError(502, "homeserver_refused", "the homeserver refuses; see the log")
    if isinstance(error, ClientError | TimeoutError):
        return ProblemError(502, "homeserver_unavailable", "the homeserver does not answer")
    return _here(error)


def _here(error: Exception) -> ProblemError:
    """What is wrong with our own data, or with us."""
    if is_outage(error):
        return ProblemError(503, DATABASE_UNAVAILABLE, "the database is away: try again")
    if isinstance(error, BugError) and error.code == "patient_key_missing":
        return ProblemError(410, "patient_erased", "this patient was erased: nothing opens it now")
    return ProblemError(500, "bug", "this is a bug in FAJMA: its log names it; tell the operator")


def _status_of(code: str) -> int:
    if code in _GONE:
        return 404
    return 409 if code in _CONFLICTS else 400


_FRAMEWORK: Final[Mapping[int, tuple[str, str]]] = {
    404: ("no_such_route", "there is no such path: see /fajma/v1/docs"),
    405: ("no_such_method", "this path knows other methods: see the header Allow"),
    413: ("body_too_large", "the body is too large: at most 64 KiB"),
}


def _of_framework(error: web.HTTPException) -> ProblemError:
    code, detail = _FRAMEWORK.get(error.status, ("refused", HTTPStatus(error.status).phrase))
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    return ProblemError(error.status, code, detail, headers=headers)


def answer_of(error: ProblemError) -> web.Response:
    """The response that tells of it."""
    problem = Problem(
        title=HTTPStatus(error.status).phrase,
        status=error.status,
        code=error.code,
        detail=str(error),
        errors=error.fields,
    )
    content = problem.model_dump(mode="json", exclude_defaults=False)
    return web.Response(
        body=json.dumps(content).encode(),
        status=error.status,
        content_type=CONTENT_TYPE,
        headers=error.headers,
    )


_TROUBLES: Final[Mapping[str, str]] = {
    "missing": "is missing",
    "extra_forbidden": "is not known here",
    "string_too_short": "is empty",
    "too_short": "is empty",
    "string_too_long": "is too long: at most {max_length} characters",
    "too_long": "has too many entries: at most {max_length}",
    "string_pattern_mismatch": "has characters that cannot be in it",
    "enum": "is one of: {expected}",
    "literal_error": "is one of: {expected}",
    "bool_type": "is true or false",
    "bool_parsing": "is true or false",
    "datetime_from_date_parsing": "is a time such as 2026-03-02T14:05:00Z",
    "datetime_parsing": "is a time such as 2026-03-02T14:05:00Z",
    "datetime_type": "is a time such as 2026-03-02T14:05:00Z",
    "timezone_aware": "is a time with its offset from UTC, such as 2026-03-02T14:05:00Z",
}
"""By the validator's kind of error."""


def invalid(error: ValidationError, code: str) -> ProblemError:
    """What a validator refuses, in the words of the clinic; nothing that was sent is quoted."""
    fields = [
        _in_words(problem) for problem in error.errors(include_url=False, include_input=False)
    ]
    detail = "; ".join(f"{one.field} {one.detail}".strip() for one in fields)
    return ProblemError(400, code, detail[:1000], fields=fields)


def _in_words(problem: ErrorDetails) -> FieldProblem:
    if problem["type"] == "json_invalid" or not problem["loc"]:
        own = problem.get("ctx", {}).get("error") if problem["type"] == "value_error" else None
        said = own or "the body is not a JSON object of the fields that are documented"
        return FieldProblem(field="", detail=str(said))
    known = problem["type"] == "extra_forbidden"
    # A field that we do not know is named by whoever sent it.
    field = "".join(one if one.isalnum() or one in "_-" else "?" for one in str(problem["loc"][0]))
    field = field[:40] if known else field
    if problem["type"] == "value_error":  # raised by ourselves, in models.py
        return FieldProblem(field=field, detail=str(problem["ctx"]["error"]))
    if (field, problem["type"]) == ("device", "string_pattern_mismatch"):
        return FieldProblem(
            field=field, detail="is none: a monitor is twelve hex digits, e.g. A4CF12F03B7E"
        )
    trouble = _TROUBLES.get(problem["type"], "cannot be this")
    return FieldProblem(field=field, detail=trouble.format(**problem.get("ctx", {})))
