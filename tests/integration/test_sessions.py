"""Several ingests at one broker: they divide the messages, and none waits for one that is gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from structlog.testing import capture_logs

from bridges.mqtt_vitals.subscriber import client_id
from console.mosquitto import Mosquitto
from console.sessions import require_certificates, serve
from fajma.config import Alarms, DatabaseSettings, Mqtt
from fajma.errors import InputError
from fajma.store import Records, Store
from fajma.store.consultations import Consultation
from fajma.store.leases import Leases
from fajma.store.site import site_key
from fajma.tasks import end
from fajma.vitals import DeviceId, Kind
from fajma.wire import V1_TOPIC, encode_v1

Admit = Callable[..., Awaitable[Consultation]]

DEVICE = DeviceId("A4CF12F0AA01")
WITHIN_S = 20.0
LEASE_S = 1.0


@pytest.fixture
async def records(postgres_url: str, site_key_file: Path, admit: Admit) -> AsyncIterator[Records]:
    store = await Store.open(DatabaseSettings(url=postgres_url))
    records = Records(store, await site_key(store, site_key_file))
    await admit(records, DEVICE)
    yield records
    await store.close()


@pytest.fixture
def settings(mosquitto: Mosquitto, tmp_path: Path) -> Any:
    """Two ingests, each with its certificate."""
    for number in (1, 2):
        issued = mosquitto.issue_bridge(client_id(number))
        suffix = "" if number == 1 else f"-{number}"
        (tmp_path / f"bridge{suffix}.crt").write_bytes(issued.cert_file.read_bytes())
        key = tmp_path / f"bridge{suffix}.key"
        key.touch(mode=0o600)
        key.write_bytes(issued.key_file.read_bytes())
    mqtt = Mqtt(
        host=mosquitto.host,
        port=mosquitto.port,
        ca_file=mosquitto.ca_file,
        cert_file=tmp_path / "bridge.crt",
        key_file=tmp_path / "bridge.key",
        ingests=2,
    )
    database = SimpleNamespace(lease_s=LEASE_S)
    return SimpleNamespace(mqtt=mqtt, alarms=Alarms(), database=database)


@contextlib.asynccontextmanager
async def ingest(settings: Any, records: Records, number: int) -> AsyncIterator[asyncio.Task[None]]:
    """One of the ingests, subscribed."""
    started = asyncio.Event()
    running = asyncio.create_task(serve(settings, records, number, started=started.set))
    try:
        async with asyncio.timeout(WITHIN_S):
            await started.wait()
        yield running
    finally:
        await end([running])


@contextlib.asynccontextmanager
async def monitor(mosquitto: Mosquitto) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    issued = mosquitto.issue_device(DEVICE)
    client = paho.Client(
        CallbackAPIVersion.VERSION2, client_id=DEVICE, protocol=MQTTProtocolVersion.MQTTv311
    )
    client.tls_set(str(mosquitto.ca_file), str(issued.cert_file), str(issued.key_file))
    await asyncio.to_thread(client.connect, mosquitto.host, mosquitto.port)
    client.loop_start()
    began_ms = int(datetime.now(UTC).timestamp() * 1000) - 60_000
    values = {Kind.HEART_RATE: Decimal(70), Kind.SPO2: Decimal(97), Kind.TEMPERATURE: Decimal(37)}

    async def send(number: int) -> None:
        payload = encode_v1(DEVICE, began_ms + number, values)
        sent = client.publish(V1_TOPIC.format(device=DEVICE), payload, qos=1)
        await asyncio.to_thread(sent.wait_for_publish, WITHIN_S)

    yield send
    client.disconnect()
    await asyncio.to_thread(client.loop_stop)


async def stored(records: Records, count: int) -> None:
    woken = records.store.hints.subscribe("readings")
    async with asyncio.timeout(WITHIN_S):
        while await records.readings.count() < count:
            await records.store.hints.wait(woken, 0.2)


async def test_two_ingests_divide_the_messages_and_one_serves_the_session_of_the_other(
    mosquitto: Mosquitto, settings: Any, records: Records
) -> None:
    with capture_logs() as logs:
        async with ingest(settings, records, 1), monitor(mosquitto) as send:
            async with ingest(settings, records, 2):
                for number in range(20):
                    await send(number)
                await stored(records, 20)
                commits = [one for one in logs if one["event"] == "readings_committed"]
                assert len(commits) >= 2
            # The second is gone: half of what comes waits in its session, until it is served.
            for number in range(20, 40):
                await send(number)
            await stored(records, 40)
    leading = [one["lease"] for one in logs if one["event"] == "leading"]
    assert leading.count("mqtt-session-2") >= 2
    # What the second had committed, but not yet acknowledged when it went, came again.
    assert (await records.tally.all())["stored"] == await records.readings.count() == 40


async def test_a_session_is_served_until_its_own_ingest_is_back_and_given_back_then(
    settings: Any, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: asyncio.Queue[bool] = asyncio.Queue()
    is_held = Leases.is_held

    async def watched(leases: Leases, name: str) -> bool:
        held = await is_held(leases, name)
        looked.put_nowait(held)
        return held

    monkeypatch.setattr(Leases, "is_held", watched)

    async def holder(number: int) -> str:
        row = await records.store.db.fetchrow(
            "SELECT holder FROM lease WHERE name=$1", f"mqtt-session-{number}"
        )
        return str(row["holder"]) if row else ""

    with capture_logs() as logs:
        async with ingest(settings, records, 1), asyncio.timeout(WITHIN_S):
            assert not await looked.get()
            serving = await holder(2)
            assert serving
            for _ in range(5):  # longer than its lease
                assert not await looked.get()
            assert await holder(2) == serving
            assert "session_given_back" not in [one["event"] for one in logs]
            async with ingest(settings, records, 2):  # started means subscribed to its own
                assert await holder(2) not in {"", serving}
    assert "session_given_back" in [one["event"] for one in logs]


def test_an_ingest_that_the_settings_do_not_know_or_that_has_no_certificate_is_refused(
    settings: Any,
) -> None:
    require_certificates(settings, 2)
    with pytest.raises(InputError, match=r"mqtt\.ingests") as caught:
        require_certificates(settings, 3)
    assert caught.value.code == "no_such_ingest"
    settings.mqtt.certificate(2)[0].unlink()
    with pytest.raises(InputError) as caught:
        require_certificates(settings, 1)
    assert caught.value.code == "ingest_certificate_missing"
