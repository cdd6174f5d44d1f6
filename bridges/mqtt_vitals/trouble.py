"""What an error of a send says: whose trouble it is, and whether the event may be there. Pure."""

from __future__ import annotations

from enum import Enum, auto

from mautrix.errors import MatrixConnectionError, MatrixRequestError

from fajma.errors import BusyError

_UNAUTHORIZED = 401
_SERVER_ERROR = 500


class Whose(Enum):
    """Who has the trouble."""

    HOMESERVER = auto()
    """It is away or overloaded, or does not know us: every send would fare the same."""
    ROOM = auto()
    """This room's alone: we may not send there, its keys cannot be shared, a record is broken."""
    UNCLEAR = auto()
    """The homeserver failed over this request; over others it may not."""


def whose(error: Exception) -> Whose:
    """Whose trouble a failed send shows."""
    if isinstance(error, BusyError | MatrixConnectionError | TimeoutError):
        return Whose.HOMESERVER
    if isinstance(error, MatrixRequestError):
        if error.http_status == _UNAUTHORIZED:
            return Whose.HOMESERVER
        if error.http_status >= _SERVER_ERROR:
            return Whose.UNCLEAR
    return Whose.ROOM


def is_refusal(error: Exception) -> bool:
    """Whether the homeserver said that it has not taken the event."""
    return isinstance(error, BusyError) or (
        isinstance(error, MatrixRequestError) and error.http_status < _SERVER_ERROR
    )
