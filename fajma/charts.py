"""What is asked for when a chart is, and what it is once drawn.

A chart is promised by name of patient and span alone, and drawn when it is delivered: what is
asked for holds no value. Who draws (``bots.alerts.illustrator``) and who sends
(``appservice.charts``) know only this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from fajma.errors import BugError
from fajma.language import Language
from fajma.store.alarms import Delivery, SentBy
from fajma.store.database import from_ms, to_ms
from fajma.vitals import PatientKey

_CHART: Final = "chart"


@dataclass(frozen=True, slots=True)
class ChartOrder:
    """A chart that is wanted.

    Attributes:
        since: beginning of what it shows, aware UTC.
        until: its end.
        language: of the reader.
        zone: IANA name; times are shown in it.
        after: delivery that must be in the room first, which the chart then answers.
        reply_to: event that asked for it.
        asked_by: user id of who asked.
        table: whether the values come as a table too.
        scored: whether NEWS2 is told with the table, where it is complete.
    """

    since: datetime
    until: datetime
    language: Language
    zone: str
    after: str | None = None
    reply_to: str | None = None
    asked_by: str | None = None
    table: bool = False
    scored: bool = False

    def delivery(
        self, delivery_id: str, room_id: str, patient: PatientKey, *, now: datetime
    ) -> Delivery:
        """The promise of it."""
        content = {
            "since": to_ms(self.since),
            "until": to_ms(self.until),
            "language": self.language.value,
            "zone": self.zone,
            "after": self.after,
            "reply_to": self.reply_to,
            "asked_by": self.asked_by,
            "table": self.table,
            "scored": self.scored,
        }
        return Delivery(delivery_id, room_id, patient, {_CHART: content}, now, SentBy.CHARTS)

    @classmethod
    def of(cls, delivery: Delivery) -> ChartOrder:
        """What was promised.

        Raises:
            BugError: ``no_chart_order``, it is something else.
        """
        try:
            content: Mapping[str, Any] = dict(delivery.content[_CHART])
            return cls(
                since=from_ms(content["since"]),
                until=from_ms(content["until"]),
                language=Language(content["language"]),
                zone=content["zone"],
                after=content["after"],
                reply_to=content["reply_to"],
                asked_by=content["asked_by"],
                table=content["table"],
                scored=content["scored"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BugError(
                "A promised chart cannot be read: upgrade FAJMA.", code="no_chart_order"
            ) from error


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart that was drawn.

    Attributes:
        png: the picture.
        width: in pixels.
        height: in pixels.
        said: what stands with the picture, also for who cannot see it.
        table: the values in plain text and HTML, if they were asked for.
    """

    png: bytes
    width: int
    height: int
    said: str
    table: tuple[str, str] | None = None
