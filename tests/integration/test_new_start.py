"""A v2 monitor whose record numbers jump back: nothing is lost, and a person says what it means."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

import pytest
from click.testing import CliRunner

from bridges.mqtt_vitals.ingest import Ingest, Message, Outcome
from console import device as command
from console.device import device
from console.journal import Journal
from console.readings import replay
from fajma.errors import InputError
from fajma.store import Records
from fajma.store.consultations import Consultation
from fajma.store.devices import KeyPair
from fajma.store.quarantine import SEQUENCE_REUSED
from fajma.vitals import Kind
from fajma.wire import Item
from tests.integration.test_ingest_v2 import DEVICE, FIRST, NOON, START_MS, item, message, pack

Admit = Callable[..., Awaitable[Consultation]]

OLD = 30
"""Records that the monitor had sent before its flash was erased."""

LATER_S = 3600.0


@dataclass
class Erased:
    """The monitor after its flash was erased: same keys, numbers from the beginning, other values.

    Attributes:
        keys: as before.
        journal: what it has measured and nobody has acknowledged.
    """

    keys: KeyPair
    journal: Journal

    def measure(self) -> None:
        number = self.journal.next_seq - FIRST
        self.journal.add(self.record(number))

    def record(self, number: int) -> Item:
        return item(
            number,
            mono_ms=START_MS + 1000 * round(LATER_S) + 5000 * number,
            measured_at=None,
            clock_set=False,
            values={Kind.SPO2: Decimal(90 + number % 10)},
        )

    def message(self, most: int = 5) -> Message:
        """What it sends now: its oldest records."""
        items = self.journal.waiting(most)
        oldest = self.journal.oldest - FIRST
        measured_s = LATER_S + 5 * (self.journal.next_seq - 1 - FIRST)
        return message(self.keys, pack(*items, oldest=oldest, sent=measured_s))

    def hear(self, outcome: Outcome) -> None:
        for settlement in outcome.settled:
            self.journal.acknowledge(settlement.record)


@pytest.fixture
async def erased(records: Records, admit: Admit) -> Erased:
    await admit(records, DEVICE)
    keys = await records.devices.new_keys(DEVICE, now=NOON)
    await Ingest(records).commit([message(keys, pack(*(item(n) for n in range(OLD))))])
    return Erased(keys, Journal(FIRST, capacity=1000))


async def accept(records: Records, monkeypatch: pytest.MonkeyPatch) -> str:
    """Give the command, with the records that are open."""
    work = []
    monkeypatch.setattr(command, "with_records", lambda _, doing: work.append(doing))
    runner = CliRunner()
    config = Path(__file__)  # only has to be there
    result = runner.invoke(device, ["new-start", DEVICE, "--config", str(config)])
    assert result.exit_code == 0, result.output
    told: list[str] = []
    monkeypatch.setattr(command.click, "echo", told.append)
    nothing: object = None
    await work[0](records, nothing)
    return "\n".join(told)


async def stored(records: Records) -> list[Decimal]:
    return [
        one.reading.values[Kind.SPO2] for one in await records.readings.after(OLD, limit=10_000)
    ]


def measured(erased: Erased, numbers: range) -> list[Decimal]:
    return [erased.record(number).values[Kind.SPO2] for number in numbers]


async def test_what_is_refused_for_its_number_waits_here_and_is_not_asked_of_the_monitor_for_ever(
    records: Records, erased: Erased
) -> None:
    ingest = Ingest(records)
    for _ in range(10):
        erased.measure()
    for _ in range(2):
        outcome = await ingest.commit([erased.message()])
        assert (outcome.stored, dict(outcome.refused)) == (0, {SEQUENCE_REUSED: 1})
        erased.hear(outcome)
    assert len(erased.journal) == 0
    assert [one.reason for one in await records.quarantine.listed()] == [SEQUENCE_REUSED] * 2
    # Not by the way, when something else is tried again.
    assert await replay(records) == (0, {})
    assert await stored(records) == []


async def test_an_accepted_new_start_stores_what_waited_and_what_comes_each_once(
    records: Records, erased: Erased, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest = Ingest(records)
    for _ in range(10):
        erased.measure()
    first = erased.message()
    erased.hear(await ingest.commit([first]))

    told = await accept(records, monkeypatch)

    assert told == f"{DEVICE} may number its records anew; stored 5 readings, late"
    assert await stored(records) == measured(erased, range(5))
    assert await records.quarantine.listed() == []
    second = erased.message()
    outcome = await ingest.commit([second])
    assert (outcome.stored, outcome.repeated) == (5, 0)
    for again in ([second], [first], [first, second]):
        outcome = await ingest.commit(again)
        assert (outcome.stored, dict(outcome.refused)) == (0, {})
        erased.hear(outcome)
    while erased.journal.next_seq < FIRST + OLD + 10:  # beyond the numbers of before
        erased.measure()
        outcome = await ingest.commit([erased.message()])
        assert (outcome.stored, dict(outcome.refused)) == (1, {})
        erased.hear(outcome)
    assert len(erased.journal) == 0
    assert await stored(records) == measured(erased, range(OLD + 10))
    [entry] = [one for one in await records.audit.latest() if one.action == "device.new_start"]
    assert (entry.actor, entry.subject) == ("operator", DEVICE)


async def test_what_waited_is_stored_though_the_monitor_has_said_that_it_holds_it_no_more(
    records: Records, erased: Erased
) -> None:
    ingest = Ingest(records)
    for _ in range(10):
        erased.measure()
    erased.hear(await ingest.commit([erased.message()]))
    async with records.store.transaction() as connection:
        await records.devices.begin_anew(connection, DEVICE)
    assert (await ingest.commit([erased.message()])).stored == 5

    assert await replay(records, reasons={SEQUENCE_REUSED}) == (5, {})
    assert sorted(await stored(records)) == measured(erased, range(10))


async def test_what_was_said_before_the_new_start_is_known_when_it_comes_again(
    records: Records, erased: Erased, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest = Ingest(records)
    erased.measure()
    await ingest.commit([erased.message()])
    await accept(records, monkeypatch)

    before = message(erased.keys, pack(*(item(n) for n in range(OLD))))
    outcome = await ingest.commit([before])

    assert (outcome.stored, outcome.repeated) == (0, OLD)


async def test_after_a_new_start_a_number_is_used_once_again(
    records: Records, erased: Erased, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest = Ingest(records)
    erased.measure()
    await ingest.commit([erased.message()])
    await accept(records, monkeypatch)
    erased.measure()
    one = erased.message()
    other = replace(erased.record(1), values={Kind.SPO2: Decimal(70)})
    erased.journal = Journal(FIRST + 1, capacity=10)
    erased.journal.add(other)
    for messages in ([one], [erased.message()]):
        outcome = await ingest.commit(messages)

    assert dict(outcome.refused) == {SEQUENCE_REUSED: 1}
    assert Decimal(70) not in await stored(records)


async def test_two_records_of_one_batch_never_share_a_number(
    records: Records, erased: Erased
) -> None:
    fresh = [replace(item(OLD), values={Kind.SPO2: Decimal(spo2)}) for spo2 in (91, 92)]

    outcome = await Ingest(records).commit([message(erased.keys, pack(one)) for one in fresh])

    assert (outcome.stored, dict(outcome.refused)) == (1, {SEQUENCE_REUSED: 1})


async def test_a_monitor_is_never_told_to_delete_what_it_has_not_sent(
    sqlite_records: Records, admit: Admit
) -> None:
    """Nobody wore it before its flash was erased, so the log does not know its numbers."""
    records = sqlite_records
    keys = await records.devices.new_keys(DEVICE, now=NOON)
    ingest = Ingest(records)
    await ingest.commit([message(keys, pack(*(item(n) for n in range(OLD))))])
    await admit(records, DEVICE)
    erased = Erased(keys, Journal(FIRST, capacity=1000))
    for _ in range(2 * OLD):
        erased.measure()
    while len(erased.journal):
        outcome = await ingest.commit([erased.message()])
        assert outcome.stored == 5
        erased.hear(outcome)
    assert await records.readings.count() == 2 * OLD


async def test_there_is_no_new_start_to_accept_of_a_monitor_whose_numbers_are_right(
    sqlite_records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError) as caught:
        await accept(sqlite_records, monkeypatch)
    assert caught.value.code == "no_new_start"
