"""Which error is answered how."""

from __future__ import annotations

import asyncpg
import pytest
from aiohttp import ClientConnectionError, web
from mautrix.errors import MForbidden

from appservice.api.problems import answer_of, problem_of
from fajma.errors import AccessError, BugError, BusyError, InputError, UnavailableError


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InputError("no", code="bed"), 400, "bed"),
        (InputError("no", code="patient_unknown"), 404, "patient_unknown"),
        (InputError("no", code="alarm_open"), 409, "alarm_open"),
        (AccessError("why", code="session_over"), 401, "token_refused"),
        (AccessError("why", code="openid_refused"), 401, "token_refused"),
        (UnavailableError("away", code="homeserver_unavailable"), 503, "homeserver_unavailable"),
        (BusyError(7.2), 503, "homeserver_busy"),
        (MForbidden(403, "secret"), 502, "homeserver_refused"),
        (ClientConnectionError("secret"), 502, "homeserver_unavailable"),
        (TimeoutError("secret"), 502, "homeserver_unavailable"),
        (asyncpg.CannotConnectNowError("secret"), 503, "database_unavailable"),
        (BugError("secret", code="patient_key_missing"), 410, "patient_erased"),
        (BugError("secret", code="unsealing_failed"), 500, "bug"),
        (ValueError("secret"), 500, "bug"),
        (web.HTTPNotFound(), 404, "no_such_route"),
        (web.HTTPMethodNotAllowed("PUT", ["GET"]), 405, "no_such_method"),
        (web.HTTPExpectationFailed(), 417, "refused"),
    ],
)
def test_an_error_is_told_without_what_it_holds(error: Exception, status: int, code: str) -> None:
    problem = problem_of(error)
    assert (problem.status, problem.code) == (status, code)
    answer = answer_of(problem)
    assert answer.content_type == "application/problem+json"
    assert b"secret" not in (answer.body if isinstance(answer.body, bytes) else b"")
    assert ("Retry-After" in answer.headers) is (code == "homeserver_busy")
