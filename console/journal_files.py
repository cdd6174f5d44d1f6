"""The journal of a v2 monitor on disk; it survives the death of the process and a power cut.

Three files in one directory, JSON each:

* ``numbers.json``: the number of the present start, and up to where record numbers are reserved.
  Both are written before they are used, so that a restart never uses one twice.
* ``journal.jsonl``: what was measured, on disk before it may be sent; acknowledgements, which may
  get lost (then the records are sent again). Rewritten when most of it is acknowledged.
* ``running.lock``: one process at a time.

A ledger, if asked for, is a file anywhere: one line for each record, never deleted, on disk before
the record may be sent. It is the witness against which the readings log is compared.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

from console.files import only_here
from console.journal import Entry, Journal
from fajma.errors import BugError, InputError
from fajma.files import write_private
from fajma.store import from_ms, to_ms
from fajma.vitals import DeviceId, Kind
from fajma.wire import Gap, Item

BLOCK: Final = 256
"""Record numbers that are reserved at once."""

CAPACITY: Final = 20_000
"""Readings that a journal holds: more than a day, one in five seconds."""

NUMBERS_PER_ENROLMENT: Final = 2**32

_REWRITE_AFTER: Final = 1000
"""Lines that a journal may have more than it needs."""


class JournalFiles:
    """One monitor's journal and numbers. Used from one thread, which waits for the disk.

    Args:
        directory: made with mode 0700 if it is missing.
        device: whose journal it is.
        enrolment: where its numbers begin, if it has none yet: at enrolment x 2^32.
        capacity: most readings that it holds.
        ledger: where to write the ledger, if it is wanted.
        durable: false leaves it to the system when to write: for measuring load, not for evidence.

    Attributes:
        boot: the number of this start, from 1.
        journal: what waits.

    Raises:
        InputError: ``journal_of_another`` or ``journal_damaged``.
        UnavailableError: ``already_running``.
    """

    def __init__(
        self,
        directory: Path,
        device: DeviceId,
        enrolment: int,
        *,
        capacity: int = CAPACITY,
        ledger: Path | None = None,
        durable: bool = True,
    ) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._device = device
        self._durable = durable
        self._numbers = directory / "numbers.json"
        self._path = directory / "journal.jsonl"
        with contextlib.ExitStack() as stack:
            stack.enter_context(only_here(directory))
            before = self._read_numbers(enrolment)
            self.boot = before["boot"] + 1
            unused_to: int = before["reserved_to"]
            self.journal = self._load(unused_to, capacity)
            self._reserve(unused_to)
            self._file = stack.enter_context(_to_append(self._path))
            if self.journal.next_seq < unused_to:
                count = unused_to - self.journal.next_seq
                self._keep(Gap(self.journal.next_seq, count, overwritten=False))
            self._ledger = None
            if ledger is not None:
                self._ledger = stack.enter_context(_to_append(ledger))
                self._complete_ledger(ledger)
            self._open = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the directory go; everything is on disk already."""
        self._file.close()
        self._open.close()

    def next_number(self) -> int:
        """The number for the next record, reserved."""
        number = self.journal.next_seq
        if number >= self._reserved_to:
            self._reserve(number)
        return number

    def keep(self, item: Item) -> None:
        """Take a record, with ``next_number`` as its number; it may be sent afterwards."""
        self._keep(item)
        if self._ledger is not None:
            self._write(self._ledger, self._witnessed(item))

    def acknowledge(self, record: int) -> bool:
        """Delete every record up to this one; whether the acknowledgement was a new one."""
        if not self.journal.acknowledge(record):
            return False
        self._file.write(_line({"ack": record}))
        self._file.flush()
        self._lines += 1
        if self._lines > _REWRITE_AFTER + 4 * len(self.journal):
            self._rewrite()
        return True

    # --- numbers ---------------------------------------------------------------------------------

    def _read_numbers(self, enrolment: int) -> Mapping[str, Any]:
        if not self._numbers.exists():
            return {"boot": 0, "reserved_to": enrolment * NUMBERS_PER_ENROLMENT}
        before: dict[str, Any] = json.loads(self._numbers.read_text(encoding="ascii"))
        if before["device"] != self._device:
            raise InputError(
                f"{self._numbers.parent} holds the journal of another monitor: give each its own",
                code="journal_of_another",
            )
        return before

    def _reserve(self, first: int) -> None:
        self._reserved_to = first + BLOCK
        numbers = {"device": self._device, "boot": self.boot, "reserved_to": self._reserved_to}
        write_private(self._numbers, json.dumps(numbers))

    # --- the journal -----------------------------------------------------------------------------

    def _load(self, first: int, capacity: int) -> Journal:
        """What the journal says; an empty one begins at ``first``."""
        if not self._path.exists():
            write_private(self._path, _line({"from": first}))
        self._lines = 0
        lines = _stated(self._path)
        try:
            journal = Journal(int(next(lines)["from"]), capacity=capacity)
            for self._lines, stated in enumerate(lines, start=1):
                if "ack" in stated:
                    journal.acknowledge(stated["ack"])
                else:
                    journal.add(_entry(stated))
        except (ValueError, LookupError, TypeError, StopIteration, BugError) as error:
            raise InputError(
                f"{self._path} is damaged after line {self._lines}: move the directory away and "
                "enrol the monitor again",
                code="journal_damaged",
            ) from error
        return journal

    def _keep(self, entry: Entry) -> None:
        self._write(self._file, _line(_said(entry)))
        self.journal.add(entry)
        self._lines += 1

    def _rewrite(self) -> None:
        entries = self.journal.waiting(len(self.journal))
        lines = [_line({"from": self.journal.oldest}), *(_line(_said(one)) for one in entries)]
        self._file.close()
        write_private(self._path, b"".join(lines))
        self._file = _to_append(self._path)
        self._lines = len(lines)

    def _write(self, file: BinaryIO, line: bytes) -> None:
        file.write(line)
        file.flush()
        if self._durable:
            os.fdatasync(file.fileno())

    # --- the ledger ------------------------------------------------------------------------------

    def _witnessed(self, item: Item) -> bytes:
        return _line({"device": self._device, **_said(item)})

    def _complete_ledger(self, path: Path) -> None:
        """Add what was measured when the process died between journal and ledger."""
        witnessed = max((stated["seq"] for stated in _stated(path)), default=-1)
        for entry in self.journal.waiting(len(self.journal)):
            if self._ledger is not None and isinstance(entry, Item) and entry.seq > witnessed:
                self._write(self._ledger, self._witnessed(entry))


def read_ledger(path: Path) -> Iterator[tuple[DeviceId, Item]]:
    """Every record that a monitor has measured, in order."""
    for stated in _stated(path):
        entry = _entry(stated)
        if isinstance(entry, Item):
            yield DeviceId(stated["device"]), entry


def _to_append(path: Path) -> BinaryIO:
    """A file to write lines to. The rest of a line that was not written to its end is cut off."""
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "a+b")
    file.truncate(_end(path.read_bytes()))
    return file


def _stated(path: Path) -> Iterator[dict[str, Any]]:
    """What the lines of a file say, without one that was not written to its end."""
    whole = path.read_bytes()
    for line in whole[: _end(whole)].splitlines():
        yield json.loads(line)


def _end(whole: bytes) -> int:
    return whole.rfind(b"\n") + 1


def _line(stated: Mapping[str, object]) -> bytes:
    return json.dumps(stated, separators=(",", ":")).encode() + b"\n"


def _said(entry: Entry) -> dict[str, object]:
    if isinstance(entry, Gap):
        return {"first": entry.first, "count": entry.count, "lost": entry.overwritten}
    return {
        "seq": entry.seq,
        "boot": entry.boot,
        "mono_ms": entry.mono_ms,
        "at_ms": _ms(entry.measured_at),
        "values": {kind.value: str(value) for kind, value in entry.values.items()},
        "quality": entry.quality,
        "contact": entry.contact,
    }


def _entry(stated: Mapping[str, Any]) -> Entry:
    if "first" in stated:
        return Gap(stated["first"], stated["count"], overwritten=stated["lost"])
    at_ms = stated["at_ms"]
    return Item(
        seq=stated["seq"],
        boot=stated["boot"],
        mono_ms=stated["mono_ms"],
        measured_at=None if at_ms is None else from_ms(at_ms),
        clock_set=at_ms is not None,
        values={Kind(kind): Decimal(text) for kind, text in stated["values"].items()},
        rejected=(),
        quality=stated["quality"],
        contact=stated["contact"],
    )


def _ms(moment: datetime | None) -> int | None:
    return None if moment is None else to_ms(moment)
