"""The journal of a v2 monitor: whatever happens, nothing is forgotten and no number comes twice."""

from __future__ import annotations

import json
import os
import tempfile
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from console import journal_files
from console.journal import Entry, Journal, first_of, last_of
from console.journal_files import JournalFiles, read_ledger
from fajma.errors import BugError, FajmaError, InputError
from fajma.sequence import Sequence
from fajma.vitals import DeviceId, Kind
from fajma.wire import Gap, Item

DEVICE = DeviceId("A4CF12F03B7E")
NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
ENROLMENT = 3
FIRST = ENROLMENT << 32


def item(seq: int, *, boot: int = 1) -> Item:
    """A record that says something of its own."""
    return Item(
        seq=seq,
        boot=boot,
        mono_ms=seq - FIRST,
        measured_at=NOON + timedelta(milliseconds=seq - FIRST),
        clock_set=True,
        values={Kind.SPO2: Decimal(900 + seq % 100) / 10},
        rejected=(),
        quality=90,
        contact=True,
    )


def journal_of(*seqs: int, capacity: int = 100) -> Journal:
    journal = Journal(FIRST, capacity=capacity)
    for seq in seqs:
        journal.add(item(FIRST + seq))
    return journal


def shown(journal: Journal) -> list[object]:
    """Numbers of readings; gaps as (first, last, overwritten)."""
    return [
        (one.first - FIRST, last_of(one) - FIRST, one.overwritten)
        if isinstance(one, Gap)
        else one.seq - FIRST
        for one in journal.waiting(len(journal))
    ]


# --- decisions -----------------------------------------------------------------------------------


def test_the_oldest_are_sent_first_and_sending_changes_nothing() -> None:
    journal = journal_of(0, 1, 2)
    assert [first_of(one) - FIRST for one in journal.waiting(2)] == [0, 1]
    assert shown(journal) == [0, 1, 2]
    assert journal.oldest == FIRST


def test_an_acknowledgement_deletes_what_it_names_and_nothing_else() -> None:
    journal = journal_of(0, 1, 2)
    assert journal.acknowledge(FIRST + 1)
    assert shown(journal) == [2]
    assert (journal.oldest, journal.next_seq) == (FIRST + 2, FIRST + 3)
    assert journal.acknowledge(FIRST + 2)
    assert (len(journal), journal.oldest) == (0, FIRST + 3)


@pytest.mark.parametrize("record", [-1, 0, FIRST - 1, FIRST, FIRST + 1, FIRST + 3, 2**63])
def test_an_old_acknowledgement_and_one_of_what_was_never_measured_are_ignored(record: int) -> None:
    journal = journal_of(0, 1, 2)
    journal.acknowledge(FIRST + 1)
    assert not journal.acknowledge(record)
    assert shown(journal) == [2]


def test_a_full_journal_overwrites_the_oldest_and_says_so_in_its_place() -> None:
    journal = journal_of(0, 1, 2, 3, 4, capacity=2)
    assert shown(journal) == [(0, 2, True), 3, 4]
    assert journal.oldest == FIRST
    journal.acknowledge(FIRST + 3)
    journal.add(item(FIRST + 5))
    assert shown(journal) == [4, 5]


def test_numbers_left_out_by_a_restart_are_never_said_to_be_lost() -> None:
    journal = journal_of(0, capacity=1)
    journal.add(Gap(FIRST + 1, 3, overwritten=False))
    journal.add(item(FIRST + 4))
    journal.add(item(FIRST + 5))
    assert shown(journal) == [(0, 0, True), (1, 3, False), (4, 4, True), 5]


def test_a_gap_that_grew_after_it_was_told_is_told_for_the_rest() -> None:
    journal = journal_of(0, 1, 2, 3, capacity=1)
    assert journal.acknowledge(FIRST + 1)
    assert shown(journal) == [(2, 2, True), 3]


@pytest.mark.parametrize("seq", [FIRST, FIRST + 1, FIRST + 3])
def test_a_number_out_of_turn_is_a_bug(seq: int) -> None:
    journal = journal_of(0, 1)
    with pytest.raises(BugError) as caught:
        journal.add(item(seq))
    assert caught.value.code == "number_out_of_turn"


# --- files ---------------------------------------------------------------------------------------


def opened(directory: Path, **options: object) -> JournalFiles:
    return JournalFiles(directory, DEVICE, ENROLMENT, **options)  # type: ignore[arg-type]


def measure(files: JournalFiles) -> Item:
    made = item(files.next_number(), boot=files.boot)
    files.keep(made)
    return made


def test_a_monitor_starts_at_its_enrolment_and_goes_on_behind_the_block_after_a_restart(
    tmp_path: Path,
) -> None:
    with opened(tmp_path) as files:
        before = [measure(files) for _ in range(3)]
        assert [one.seq for one in before] == [FIRST, FIRST + 1, FIRST + 2]
        files.acknowledge(FIRST)
    with opened(tmp_path) as files:
        after = measure(files)
        assert (files.boot, after.seq) == (2, FIRST + journal_files.BLOCK)
        left_out = Gap(FIRST + 3, journal_files.BLOCK - 3, overwritten=False)
        assert files.journal.waiting(9) == (*before[1:], left_out, after)


def test_a_monitor_that_renewed_its_keys_keeps_its_numbers(tmp_path: Path) -> None:
    with opened(tmp_path) as files:
        measure(files)
    with JournalFiles(tmp_path, DEVICE, ENROLMENT + 1) as files:
        assert measure(files).seq == FIRST + journal_files.BLOCK


def test_a_record_of_any_kind_comes_back_as_it_was(tmp_path: Path) -> None:
    bare = Item(FIRST, 1, 5, None, clock_set=False, values={}, rejected=(), quality=None,
                contact=False)  # fmt: skip
    with opened(tmp_path, ledger=tmp_path / "ledger") as files:
        files.next_number()
        files.keep(bare)
        full = measure(files)
    with opened(tmp_path) as files:
        assert files.journal.waiting(2) == (bare, full)
    assert list(read_ledger(tmp_path / "ledger")) == [(DEVICE, bare), (DEVICE, full)]


def test_a_record_that_died_between_journal_and_ledger_is_in_the_ledger_before_it_is_sent(
    tmp_path: Path,
) -> None:
    ledger = tmp_path / "ledger"
    with opened(tmp_path / "journal", ledger=ledger) as files:
        made = [measure(files) for _ in range(3)]
    ledger.write_bytes(ledger.read_bytes()[:-7])
    with opened(tmp_path / "journal", ledger=ledger):
        assert [one for _, one in read_ledger(ledger)] == made


def test_the_journal_does_not_grow_while_it_is_acknowledged(tmp_path: Path) -> None:
    with opened(tmp_path, durable=False) as files:
        for _ in range(3000):
            files.acknowledge(measure(files).seq)
        last = measure(files)
    assert (tmp_path / "journal.jsonl").stat().st_size < 200_000
    with opened(tmp_path) as files:
        assert files.journal.waiting(1) == (last,)


def test_only_one_process_has_a_journal_and_only_its_own_monitor(tmp_path: Path) -> None:
    with opened(tmp_path):
        with pytest.raises(FajmaError) as caught:
            opened(tmp_path)
        assert caught.value.code == "already_running"
    with pytest.raises(InputError) as refused:
        JournalFiles(tmp_path, DeviceId("A4CF12F03B7F"), 1)
    assert refused.value.code == "journal_of_another"


@pytest.mark.parametrize("line", [b"{}", b"nonsense", b'{"seq":7}', b'{"from":"x"}'])
def test_a_damaged_journal_is_refused_and_not_begun_anew(tmp_path: Path, line: bytes) -> None:
    with opened(tmp_path) as files:
        measure(files)
    path = tmp_path / "journal.jsonl"
    whole = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([whole[0], line, *whole[1:]]) + b"\n")
    with pytest.raises(InputError, match="line") as caught:
        opened(tmp_path)
    assert caught.value.code == "journal_damaged"
    assert json.loads(whole[1])["seq"] == FIRST


# --- everything that can happen ------------------------------------------------------------------

CAPACITY = 5


class Sent(NamedTuple):
    """What is on its way to the server."""

    oldest: int
    entries: tuple[Entry, ...]


class LifeOfAMonitor(RuleBasedStateMachine):
    """A monitor, a network that loses, repeats and reorders, and a server that settles."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self._path = Path(self._folder.name)
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(journal_files, "BLOCK", 4)
        self._patch.setattr(journal_files, "_REWRITE_AFTER", 3)
        self.measured: dict[int, Item] = {}
        self.network: list[Sent] = []
        self.acks: list[int] = []
        self.server = Sequence()
        self.log: dict[int, Item] = {}
        self.told_lost: set[int] = set()

    @initialize()
    def begin(self) -> None:
        self._open()

    def _open(self) -> None:
        self.files = opened(self._path, capacity=CAPACITY, ledger=self._path / "ledger")
        self._on_disk()

    def _on_disk(self) -> None:
        self.safe = (self._path / "journal.jsonl").stat().st_size

    @rule()
    def measure(self) -> None:
        made = measure(self.files)
        assert made.seq > max(self.measured, default=FIRST - 1)
        self.measured[made.seq] = made
        self._on_disk()

    @rule(most=st.integers(1, 4))
    def send(self, most: int) -> None:
        journal = self.files.journal
        self.network.append(Sent(journal.oldest, journal.waiting(most)))

    @precondition(lambda self: self.network)
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        """Maybe not for the first time, maybe after later ones."""
        self._settle(data.draw(st.sampled_from(self.network)))

    @precondition(lambda self: self.acks)
    @rule(data=st.data())
    def hear(self, data: st.DataObject) -> None:
        self._hear(data.draw(st.sampled_from(self.acks)))

    @rule(cut=st.integers(0, 80))
    def power_cut(self, cut: int) -> None:
        """What was not forced to the disk may be lost, in the middle of a line too."""
        self.files.close()
        path = self._path / "journal.jsonl"
        os.truncate(path, max(self.safe, path.stat().st_size - cut))
        self._open()

    def _settle(self, pack: Sent) -> None:
        assert self.server.missing_below(pack.oldest) == 0, "the monitor deleted what never came"
        self.server = self.server.begin_at(pack.oldest)
        for entry in pack.entries:
            self.server = self.server.settle(first_of(entry), last_of(entry))
            if isinstance(entry, Item):
                assert self.log.setdefault(entry.seq, entry) == entry
            elif entry.overwritten:
                self.told_lost |= set(range(entry.first, last_of(entry) + 1))
            else:
                assert self.measured.keys().isdisjoint(range(entry.first, last_of(entry) + 1))
        self.acks.append(self.server.contiguous)

    def _hear(self, record: int) -> None:
        self.files.acknowledge(record)
        size = (self._path / "journal.jsonl").stat().st_size
        self.safe = min(self.safe, size)  # it may have been rewritten

    @invariant()
    def nothing_that_nobody_has_is_forgotten(self) -> None:
        if not hasattr(self, "files"):
            return
        journal = self.files.journal
        waiting = journal.waiting(len(journal))
        held = {one.seq for one in waiting if isinstance(one, Item)}
        lost = {
            seq
            for one in waiting
            if isinstance(one, Gap) and one.overwritten
            for seq in range(one.first, last_of(one) + 1)
        }
        assert self.measured.keys() <= held | lost | self.log.keys() | self.told_lost
        assert len(held) <= CAPACITY
        assert journal.oldest - 1 <= max(self.server.contiguous, FIRST - 1)
        # Without a hole: what is not measured is told as left out.
        follows = journal.oldest
        for one in waiting:
            assert first_of(one) == follows
            follows = last_of(one) + 1
        assert follows == journal.next_seq

    def teardown(self) -> None:
        if hasattr(self, "files"):
            for _ in range(len(self.files.journal)):  # each time at least one goes
                self.send(2)
                self._settle(self.network[-1])
                self._hear(self.acks[-1])
            assert len(self.files.journal) == 0
            assert self.server.contiguous in {self.files.journal.next_seq - 1, -1}
            assert self.log.keys() | self.told_lost == self.measured.keys()
            assert all(self.measured[seq] == one for seq, one in self.log.items())
            self.files.close()
            ledger = [one for _, one in read_ledger(self._path / "ledger")]
            assert ledger == list(self.measured.values())
        self._patch.undo()
        self._folder.cleanup()


LifeOfAMonitor.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestLifeOfAMonitor = LifeOfAMonitor.TestCase
