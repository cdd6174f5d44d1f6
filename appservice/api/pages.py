"""Long lists in pages: where the next one begins is said by a cursor that only we can make."""

from __future__ import annotations

import base64
import binascii
import hmac
from typing import Annotated, Final

from pydantic import AwareDatetime, Field

from appservice.api.declare import Call, Strict
from appservice.api.problems import ProblemError
from fajma.sealing import FINGERPRINT_BYTES, SiteKey

MOST: Final = 200


class PageQuery(Strict):
    """Which page."""

    limit: Annotated[int, Field(ge=1, le=MOST, description="Most entries.")] = 100
    cursor: Annotated[
        str | None, Field(max_length=512, description="`next` of the page before; nothing else.")
    ] = None


class TimePageQuery(PageQuery):
    """Which page of what was measured or said when."""

    since: Annotated[AwareDatetime | None, Field(description="From then on, included.")] = None
    until: Annotated[AwareDatetime | None, Field(description="Up to then, excluded.")] = None


class Cursors:
    """Makes cursors for one query of one caller; another query does not take them.

    A cursor is a keyed fingerprint and, after it, the place. (It is not sealed: the site key would
    wear out, see ``fajma.sealing``.)

    Args:
        key: of the site.
    """

    def __init__(self, key: SiteKey) -> None:
        self._key = key

    def read(self, call: Call) -> str | None:
        """Where the page begins, in our own words; ``None`` for the first.

        Raises:
            ProblemError: 400 ``cursor_invalid``, it was not made for this.
        """
        cursor = call.asked(PageQuery).cursor
        if cursor is None:
            return None
        try:
            whole = base64.b64decode(cursor.encode("ascii"), altchars=b"-_", validate=True)
            mark, place = whole[:FINGERPRINT_BYTES], whole[FINGERPRINT_BYTES:]
            if hmac.compare_digest(mark, self._mark(call, place)):
                return place.decode()
        except (binascii.Error, UnicodeError):
            pass
        raise ProblemError(
            400, "cursor_invalid", "take `next` of the page before, with the same parameters"
        )

    def make(self, call: Call, place: str | int | None) -> str | None:
        """The cursor of the next page; ``None`` after the last."""
        if place is None:
            return None
        said = str(place).encode()
        return base64.urlsafe_b64encode(self._mark(call, said) + said).decode()

    def _mark(self, call: Call, place: bytes) -> bytes:
        query = call.query.model_dump_json(exclude={"cursor", "limit"})
        parts = (call.caller.id, call.request.path, query)
        return self._key.fingerprint(b"cursor", *(one.encode() for one in parts), place)
