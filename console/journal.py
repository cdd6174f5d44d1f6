"""What a v2 monitor has measured and nobody has acknowledged yet. Pure.

The rules, in the order in which a record meets them:

1. Records and gaps follow each other without a hole: the next one begins where the last one ends.
2. When there is no room the oldest reading is overwritten, and a gap says so in its place.
3. The oldest are sent first. Sending changes nothing: what is not acknowledged is sent again.
4. An acknowledgement deletes what it names and nothing else. One that is not newer than the last,
   or that names what was never measured, is ignored (the broker may deliver an old one again).
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import replace
from typing import TypeAlias

from fajma.errors import BugError
from fajma.wire import Gap, Item

Entry: TypeAlias = Item | Gap


class Journal:
    """The entries of one monitor, oldest first.

    Args:
        first: the number of its first record.
        capacity: most readings that it holds, at least 1.

    Attributes:
        oldest: the oldest record that is not acknowledged; ``next_seq`` when there is none.
        next_seq: the number of the next record.
    """

    def __init__(self, first: int, *, capacity: int) -> None:
        self.oldest = first
        self.next_seq = first
        self._capacity = capacity
        self._entries: deque[Entry] = deque()
        self._readings = 0

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Entry) -> None:
        """Take the next entry; the oldest reading makes room for it if need be.

        Raises:
            BugError: ``number_out_of_turn`` when it does not begin at ``next_seq``.
        """
        if first_of(entry) != self.next_seq:
            raise BugError("a record has another number than the next", code="number_out_of_turn")
        self._entries.append(entry)
        self.next_seq = last_of(entry) + 1
        if isinstance(entry, Item):
            self._readings += 1
            if self._readings > self._capacity:
                self._overwrite_oldest()

    def waiting(self, most: int) -> tuple[Entry, ...]:
        """What to send now: the oldest entries, at most so many."""
        return tuple(itertools.islice(self._entries, most))

    def acknowledge(self, record: int) -> bool:
        """Delete every record up to this one; whether the acknowledgement was a new one."""
        if not self.oldest <= record < self.next_seq:
            return False
        while self._entries and last_of(self._entries[0]) <= record:
            self._readings -= isinstance(self._entries.popleft(), Item)
        if self._entries and first_of(self._entries[0]) <= record:
            # Only a gap has more than one number: it has grown since it was told.
            self._entries[0] = _from(self._entries[0], record + 1)
        self.oldest = record + 1
        return True

    def _overwrite_oldest(self) -> None:
        gaps: list[Gap] = []
        while isinstance(entry := self._entries.popleft(), Gap):
            gaps.append(entry)
        if gaps and gaps[-1].overwritten:
            gaps[-1] = replace(gaps[-1], count=gaps[-1].count + 1)
        else:
            gaps.append(Gap(entry.seq, 1, overwritten=True))
        self._entries.extendleft(reversed(gaps))
        self._readings -= 1


def first_of(entry: Entry) -> int:
    """The number of the first record that an entry is about."""
    return entry.first if isinstance(entry, Gap) else entry.seq


def last_of(entry: Entry) -> int:
    """The number of the last record that an entry is about."""
    return entry.first + entry.count - 1 if isinstance(entry, Gap) else entry.seq


def _from(entry: Entry, seq: int) -> Entry:
    """What is left of a gap from this number on."""
    if isinstance(entry, Gap):
        return replace(entry, first=seq, count=last_of(entry) - seq + 1)
    return entry
