"""Draws a promised chart: from the readings log, the limits in force and the alarms of the span."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from typing import Final

from bots.alerts.alarm import Reason
from bots.alerts.alarm_state import PatientState
from bots.alerts.bedside_text import bed_of, news2_line, oximeter_line
from bots.alerts.chart import HEIGHT, WIDTH, Mark, Plot, Point, draw
from bots.alerts.kept_state import kept_state
from bots.alerts.limits import Priority
from bots.alerts.news2 import score
from bots.alerts.site_rules import SiteRules
from bots.alerts.text import duty_time
from bots.alerts.vitals_table import table
from fajma.charts import Chart, ChartOrder
from fajma.errors import BugError
from fajma.language import SEPARATOR
from fajma.store import Records
from fajma.store.alarms import Delivery
from fajma.store.patients import Patient
from fajma.vitals import Age, Kind, PatientKey

PAGE: Final = 500
"""Readings opened at a time, between which others have their turn."""

_DASH: Final = "\N{EN DASH}"
_BEGAN: Final = frozenset({Reason.STARTED.value, Reason.WORSENED.value})


class Illustrator:
    """Draws for whoever delivers.

    Args:
        records: everything.
        rules: what the site judges by.
    """

    def __init__(self, records: Records, rules: SiteRules) -> None:
        self._records = records
        self._rules = rules

    async def draw(self, delivery: Delivery) -> Chart:
        """The chart that a delivery promises.

        Raises:
            BugError: it promises none, or its patient is gone.
        """
        order = ChartOrder.of(delivery)
        key = delivery.patient
        patient = None if key is None else await self._records.patients.get(key)
        if patient is None:
            raise BugError("a chart of nobody", code="chart_without_patient")
        state = await kept_state(self._records, patient.key)
        points, unusable = await self._points(patient.key, order.since, order.until)
        plot = Plot(
            title=bed_of(patient, order.language),
            since=order.since,
            until=order.until,
            zone=order.zone,
            language=order.language,
            points=points,
            unusable=unusable,
            bands=self._rules.of(state.standing).bands,
            marks=await self._marks(patient.key, order.since),
        )
        png = await asyncio.to_thread(draw, plot)
        has_spo2 = bool(points[Kind.SPO2])
        since, until = (
            duty_time(one, order.zone, order.language, now=order.until)
            for one in (order.since, order.until)
        )
        span = f"{since} {_DASH} {until}"
        notes = [oximeter_line(order.language)] if has_spo2 else []
        said = SEPARATOR.join([bed_of(patient, order.language), span, *notes])
        shown = self._table(order, patient, state, points, notes) if order.table else None
        return Chart(png, WIDTH, HEIGHT, said, shown)

    def _table(
        self,
        order: ChartOrder,
        patient: Patient,
        state: PatientState,
        points: dict[Kind, list[Point]],
        notes: list[str],
    ) -> tuple[str, str]:
        standing = state.standing
        found = (
            score(state.latest, standing.entered, standing.profile, order.until)
            if order.scored
            else None
        )
        more = [news2_line(found, order.language)] if found is not None else []
        text = table(
            points,
            where=bed_of(patient, order.language),
            since=order.since,
            until=order.until,
            language=order.language,
            zone=order.zone,
            more=[*more, *notes],
        )
        return text.body, text.html

    async def _points(
        self, patient: PatientKey, since: datetime, until: datetime
    ) -> tuple[dict[Kind, list[Point]], frozenset[Kind]]:
        """What was measured in a span, by kind, in the order of time; which kinds are unusable now.

        A row that does not open leaves a gap; others count and tell it.
        """
        found: dict[Kind, list[Point]] = {kind: [] for kind in Kind}
        lost: dict[Kind, datetime] = {}
        readings = self._records.readings
        last: int | None = None
        while True:
            page = await readings.latest(patient, limit=PAGE, until=last)
            opened, _ = await readings.open_all(page)
            for logged in opened:
                reading = logged.reading
                at = min(reading.measured_at, reading.received_at)  # its clock may be ahead
                if since <= at <= until:
                    late = reading.age is not Age.LIVE
                    for kind, value in reading.values.items():
                        found[kind].append(Point(at, float(value), late))
                    lost |= {one: max(at, lost.get(one, at)) for one in reading.unusable}
            earliest = min((one.reading.received_at for one in opened), default=until)
            if len(page) < PAGE or earliest < since:
                break
            last = page[0].position - 1
        points = {kind: sorted(each, key=lambda one: one.at) for kind, each in found.items()}
        unusable = {
            kind for kind, at in lost.items() if not points[kind] or at > points[kind][-1].at
        }
        return points, frozenset(unusable)

    async def _marks(self, patient: PatientKey, since: datetime) -> list[Mark]:
        marks = []
        for kept in await self._records.decisions.of(patient, since=since):
            said = json.loads(kept.content)
            if said.get("about") == "vital" and said["reason"] in _BEGAN:
                marks.append(
                    Mark(kept.decided_at, Kind(said["kind"]), Priority[said["priority"]])
                )  # fmt: skip
        return marks
