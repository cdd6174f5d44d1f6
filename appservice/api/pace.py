"""How much one caller may ask for: a bucket of tokens that fills again. Pure."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

CALLERS_MAX: Final = 10_000
"""Whose buckets are remembered; who was not heard of for longest is forgotten first."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left for a caller.

    Attributes:
        is_granted: whether this request is answered.
        limit: requests at once.
        remaining: requests that could follow now.
        full_in_s: until the bucket is full again.
        wait_s: until the next request is answered; 0 if it is now.
    """

    is_granted: bool
    limit: int
    remaining: int
    full_in_s: int
    wait_s: int

    @property
    def headers(self) -> dict[str, str]:
        """The fields ``RateLimit`` and ``RateLimit-Policy`` (IETF draft, httpapi, version 10)."""
        fills_in_s = max(1, self.full_in_s)
        return {
            "RateLimit-Policy": f'"default";q={self.limit};w={fills_in_s}',
            "RateLimit": f'"default";r={self.remaining};t={self.full_in_s}',
        }


class Pace:
    """The buckets of all callers.

    Args:
        per_s: requests a second, on average.
        at_once: requests of a caller who was silent for long.
    """

    def __init__(self, per_s: float, at_once: int) -> None:
        self._per_s = per_s
        self._at_once = at_once
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def ask(self, caller: str, now_s: float) -> Allowance:
        """Take one token for a request.

        Args:
            caller: whose bucket.
            now_s: on a clock that never goes back.
        """
        tokens, seen_s = self._buckets.pop(caller, (float(self._at_once), now_s))
        tokens = min(self._at_once, tokens + (now_s - seen_s) * self._per_s)
        is_granted = tokens >= 1
        tokens -= is_granted
        self._buckets[caller] = (tokens, now_s)
        if len(self._buckets) > CALLERS_MAX:
            self._buckets.popitem(last=False)
        return Allowance(
            is_granted=is_granted,
            limit=self._at_once,
            remaining=int(tokens),
            full_in_s=math.ceil((self._at_once - tokens) / self._per_s),
            wait_s=0 if tokens >= 1 else math.ceil((1 - tokens) / self._per_s),
        )
