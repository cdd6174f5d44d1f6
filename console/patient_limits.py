"""The limits that the alarm engine judges a patient by, as the REST API shows them."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from appservice.api.models import LimitInForce
from bots.alerts.kept_state import kept_state
from bots.alerts.own_limits import lasting
from bots.alerts.site_rules import SiteRules
from fajma.store import Records
from fajma.vitals import MEASURES, PatientKey


class PatientLimits:
    """Reads them from what the engine kept.

    Args:
        records: everything.
        rules: of the site.
    """

    def __init__(self, records: Records, rules: SiteRules) -> None:
        self._records = records
        self._rules = rules

    async def of(self, patient: PatientKey, now: datetime) -> list[LimitInForce]:
        """Those in force, mildest first for each kind and direction."""
        standing = (await kept_state(self._records, patient)).standing
        own = lasting(standing.own_limits, now)
        until = {(one.kind, one.direction, one.threshold): one.until for one in own}
        return [
            LimitInForce(
                kind=bands.kind,
                comparison=limit.comparison.value,
                threshold=float(limit.threshold),
                unit=MEASURES[bands.kind].unit,
                priority=limit.priority.name.lower(),
                own=(key := (bands.kind, limit.direction, limit.threshold)) in until,
                until=until.get(key),
            )
            for bands in self._rules.of(replace(standing, own_limits=own)).bands
            for limit in bands.limits
        ]
