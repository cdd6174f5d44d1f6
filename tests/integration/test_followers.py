"""Two ingest processes and a follower on PostgreSQL: no position is passed over (ADR 0003)."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from fajma.config import DatabaseSettings
from fajma.store import Records, Store
from fajma.store.consultations import Consultation
from fajma.store.readings import LoggedReading
from fajma.store.site import site_key
from fajma.vitals import DeviceId

Admit = Callable[..., Awaitable[Consultation]]

ROOT = Path(__file__).parents[2]
DEVICES = [DeviceId("A4CF12F0DD01"), DeviceId("A4CF12F0DD02")]
BATCHES, SIZE = 150, 3

INGEST = """
import asyncio, sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from bridges.mqtt_vitals.clocks import Arrival
from bridges.mqtt_vitals.ingest import Ingest, Message
from fajma.config import DatabaseSettings
from fajma.store import Records, Store
from fajma.store.site import site_key
from fajma.vitals import Kind
from fajma.wire import V1_TOPIC, encode_v1

url, key_file, device, batches, size = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
noon = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
values = {Kind.HEART_RATE: Decimal(70), Kind.SPO2: Decimal(97), Kind.TEMPERATURE: Decimal(37)}

def message(number):
    at = noon + timedelta(seconds=number)
    payload = encode_v1(device, int(at.timestamp() * 1000), values)
    return Message(V1_TOPIC.format(device=device), payload, Arrival(at, number), lambda: None)

async def main():
    store = await Store.open(DatabaseSettings(url=url))
    ingest = Ingest(Records(store, await site_key(store, Path(key_file))))
    print("ready", flush=True)
    sys.stdin.readline()
    for batch in range(batches):
        await ingest.commit([message(batch * size + n) for n in range(size)])
    await store.close()

asyncio.run(main())
"""


@pytest.fixture
async def postgres_records(
    postgres_url: str, site_key_file: Path, admit: Admit
) -> AsyncIterator[Records]:
    store = await Store.open(DatabaseSettings(url=postgres_url))
    records = Records(store, await site_key(store, site_key_file))
    for device in DEVICES:
        await admit(records, device)
    yield records
    await store.close()


async def test_two_ingests_commit_at_once_and_a_follower_sees_every_position(
    postgres_records: Records, postgres_url: str, site_key_file: Path
) -> None:
    records = postgres_records
    ingests = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", INGEST, postgres_url, str(site_key_file), device),
            *(str(BATCHES), str(SIZE)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for device in DEVICES
    ]
    seen: list[LoggedReading] = []
    async with asyncio.timeout(120):
        for one in ingests:
            assert one.stdout is not None
            while b"ready" not in await one.stdout.readline():
                assert not one.stdout.at_eof()
        for one in ingests:
            assert one.stdin is not None
            one.stdin.write(b"\n")
        ended = asyncio.gather(*(one.communicate() for one in ingests))
        while True:
            finished = ended.done()
            page = await records.readings.after(seen[-1].position if seen else 0, limit=1000)
            # What a follower has passed it never looks at again.
            first = seen[-1].position + 1 if seen else 1
            assert [one.position for one in page] == list(range(first, first + len(page)))
            seen += page
            if finished and not page:
                break
    assert [one.returncode for one in ingests] == [0, 0]
    for device in DEVICES:
        own = [one.reading for one in seen if one.reading.device == device]
        assert [one.measured_at for one in own] == sorted({one.measured_at for one in own})
        assert len(own) == BATCHES * SIZE
    # They did commit at the same time: neither waited until the other had ended.
    switches = sum(
        one.reading.device != other.reading.device for one, other in itertools.pairwise(seen)
    )
    assert switches > 10
