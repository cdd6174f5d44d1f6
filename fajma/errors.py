"""One tree of errors: our bug, bad input, or something remote that is unavailable.

Every error carries a stable ``code`` (for logs, counters and the API) and a message in the words
of the clinic that says what to do. Messages never contain a measured value, a name or a secret.
"""

from __future__ import annotations


class FajmaError(Exception):
    """Base of every error FAJMA raises on purpose.

    Args:
        message: what went wrong and what to do about it, one sentence, safe to log.
        code: stable lower-case identifier, e.g. ``"port_in_use"``.
    """

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class BugError(FajmaError):
    """An invariant of ours is broken: a bug in FAJMA, never the user's fault."""


class InputError(FajmaError):
    """Somebody (a person, a device, a configuration file) gave us something unusable."""


class DecodeError(InputError):
    """Bytes from outside are not a reading; ``code`` is the reason that is counted."""


class UnavailableError(FajmaError):
    """Something outside (homeserver, broker, database, a program) is missing or not answering."""
