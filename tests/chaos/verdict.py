"""Compares the readings log with the ledgers of the monitors."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from fajma.store import Records
from fajma.vitals import DeviceId, Reading
from fajma.wire import Item
from tests.chaos.grounds import ChaosSite


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of what was measured.

    Attributes:
        measured: records in the ledgers.
        stored: readings in the log.
        repeated: readings that came again and were recognised.
        wrong: what does not agree, one line each.
    """

    measured: int
    stored: int
    repeated: int
    wrong: tuple[str, ...]


async def compare(site: ChaosSite) -> Verdict:
    """Each record of the ledgers is in the log once, as measured, and nothing else is."""
    measured = {(device, item.seq): item for device, item in site.measured()}
    settled = await site.settled()
    async with site.records() as records:
        logged = await _logged(records)
        tally = await records.tally.all()
        refused = await records.quarantine.counts()
    found = [identity for identity, _ in logged]
    wrong = [f"LOST {one}" for one in measured.keys() - set(found)]
    wrong += [f"DOUBLE {one}" for one, count in Counter(found).items() if count > 1]
    wrong += [f"FROM NOWHERE {one}" for one in set(found) - measured.keys()]
    wrong += [
        f"CHANGED {identity}"
        for identity, reading in logged
        if identity in measured and not _same(measured[identity], reading)
    ]
    if tally.get("stored", 0) != len(logged):
        wrong.append(f"COUNTED {tally.get('stored')} stored")
    if "lost_at_device" in tally:
        wrong.append(f"COUNTED {tally['lost_at_device']} lost")
    if refused:
        wrong.append(f"REFUSED {refused}")
    wrong += [
        f"NOT SETTLED {device} {seq}" for device, seq in measured if settled.get(device, -1) < seq
    ]
    return Verdict(len(measured), len(logged), tally.get("repeated", 0), tuple(wrong))


async def _logged(records: Records) -> list[tuple[tuple[DeviceId, int], Reading]]:
    """Identity and content of every reading, in the order of positions, which have no gap."""
    rows = await records.store.db.fetch("SELECT position, record FROM reading ORDER BY position")
    readings = await records.readings.after(0, limit=len(rows) + 1)
    assert [row["position"] for row in rows] == list(range(1, len(rows) + 1))
    return [
        ((one.reading.device, int.from_bytes(bytes(row["record"]))), one.reading)
        for row, one in zip(rows, readings, strict=True)
    ]


def _same(item: Item, reading: Reading) -> bool:
    return (item.measured_at, item.values, item.quality, item.contact, item.unusable) == (
        reading.measured_at,
        reading.values,
        reading.quality,
        reading.contact,
        reading.unusable,
    )
