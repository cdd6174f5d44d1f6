"""One tree of errors: our bug, bad input, no right, or something remote that is unavailable.

Every error carries a stable ``code`` (for logs, counters and the API) and a message in the words
of the clinic that says what to do. Messages never contain a measured value, a name or a secret.
"""

from __future__ import annotations

import math
from collections.abc import Mapping


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


class AccessError(FajmaError):
    """Somebody has not shown who he is, or may not do this.

    ``code`` is for our log and our audit; from outside every refusal looks alike.
    """


class UnavailableError(FajmaError):
    """Something outside (homeserver, broker, database, a program) is missing or not answering."""


class BusyError(UnavailableError):
    """The homeserver answers 429: it has not taken this and takes nothing for a while.

    Attributes:
        retry_after_s: how long it asks for, ``None`` if it does not say.
    """

    def __init__(self, retry_after_s: float | None) -> None:
        super().__init__("the homeserver asks us to slow down", code="homeserver_busy")
        self.retry_after_s = retry_after_s

    @classmethod
    def of(cls, header: str | None, body: object) -> BusyError:
        """Out of an answer.

        The header counts before the older key of the body (client-server API, "Rate limiting").

        Args:
            header: ``Retry-After``, s.
            body: decoded; its ``retry_after_ms``.
        """
        asked_s = _seconds(header)
        if asked_s is None and isinstance(body, Mapping):
            asked_ms = _seconds(body.get("retry_after_ms"))
            asked_s = None if asked_ms is None else asked_ms / 1000
        return cls(asked_s)


def _seconds(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if 0 <= number < math.inf else None
