"""Which records of a v2 monitor are settled: stored, quarantined, or known to be gone. Pure.

Messages may come twice, in another order, or through several ingests. The monitor deletes what is
acknowledged, and we acknowledge the highest record below which nothing is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX_RANGES: Final = 256
"""Runs of records beyond a gap that are remembered. A monitor sends in order, so there are a
handful; what is forgotten is sent again and recognised by the log."""

ENROLMENT_BITS: Final = 32
"""A monitor numbers its records from the number of its enrolment x 2**32 on (docs/wire.md)."""


@dataclass(frozen=True, slots=True)
class Sequence:
    """Where the records of one monitor stand.

    Attributes:
        contiguous: every record up to here is settled; -1 when none is.
        beyond: settled runs (first, last) after a gap, in order, apart from each other.
    """

    contiguous: int = -1
    beyond: tuple[tuple[int, int], ...] = ()

    def is_settled(self, record: int) -> bool:
        """Whether a record is."""
        return record <= self.contiguous or any(
            first <= record <= last for first, last in self.beyond
        )

    def settle(self, first: int, last: int) -> Sequence:
        """These records are settled too, ``first`` to ``last``."""
        if last <= self.contiguous:
            return self
        kept = []
        for start, end in self.beyond:
            if end + 1 < first or last + 1 < start:
                kept.append((start, end))
            else:
                first, last = min(first, start), max(last, end)
        kept.append((first, last))
        return _absorbed(self.contiguous, kept)

    def begin_at(self, oldest: int) -> Sequence:
        """The monitor says that it holds nothing below ``oldest``."""
        if oldest - 1 <= self.contiguous:
            return self
        return _absorbed(oldest - 1, list(self.beyond))

    def missing_below(self, oldest: int) -> int:
        """How many records below ``oldest`` never came, though later or earlier ones did.

        None where the monitor was enrolled again: numbers between two enrolments were never used.
        """
        if self.contiguous < 0:
            return 0  # never heard of before: what it deleted before is none of our business
        if oldest >> ENROLMENT_BITS != (self.contiguous + 1) >> ENROLMENT_BITS:
            return 0
        came = sum(
            min(last, oldest - 1) - first + 1 for first, last in self.beyond if first < oldest
        )
        return max(oldest - 1 - self.contiguous - came, 0)


def _absorbed(contiguous: int, runs: list[tuple[int, int]]) -> Sequence:
    """Runs that begin at the end of what is settled belong to it."""
    runs.sort()
    while runs and runs[0][0] <= contiguous + 1:
        contiguous = max(contiguous, runs.pop(0)[1])
    return Sequence(contiguous, tuple(runs[:MAX_RANGES]))
