"""Whose trouble an error shows, and whether the homeserver may have the event."""

from __future__ import annotations

import pytest
from mautrix.errors import MatrixConnectionError, MatrixUnknownRequestError, MForbidden

from bridges.mqtt_vitals.trouble import Whose, is_refusal, whose
from fajma.errors import BusyError, UnavailableError


@pytest.mark.parametrize(
    ("error", "trouble", "refusal"),
    [
        (BusyError(3), Whose.HOMESERVER, True),
        (MatrixConnectionError("reset"), Whose.HOMESERVER, False),
        (TimeoutError(), Whose.HOMESERVER, False),
        (MatrixUnknownRequestError(401), Whose.HOMESERVER, True),
        (MatrixUnknownRequestError(502), Whose.UNCLEAR, False),
        (MatrixUnknownRequestError(413), Whose.ROOM, True),
        (MForbidden(403), Whose.ROOM, True),
        (UnavailableError("no key", code="room_unsure"), Whose.ROOM, False),
        (KeyError("event_id"), Whose.ROOM, False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_pauses_who_has_the_trouble_and_says_what_is_known(
    error: Exception,
    trouble: Whose,
    refusal: bool,  # noqa: FBT001
) -> None:
    assert whose(error) is trouble
    assert is_refusal(error) is refusal
