"""The real ingest at a real broker, while a test needs it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from bridges.mqtt_vitals.ingest import Ingest
from bridges.mqtt_vitals.subscriber import Subscriber
from console.mosquitto import Mosquitto
from fajma.config import Mqtt
from fajma.store import Records
from fajma.tasks import end

WITHIN_S = 20.0


@contextlib.asynccontextmanager
async def ingesting(mosquitto: Mosquitto, records: Records) -> AsyncIterator[None]:
    issued = mosquitto.issue_bridge()
    settings = Mqtt(
        host=mosquitto.host,
        port=mosquitto.port,
        ca_file=mosquitto.ca_file,
        cert_file=issued.cert_file,
        key_file=issued.key_file,
    )
    subscriber = Subscriber(settings, Ingest(records))
    task = asyncio.create_task(subscriber.run())
    async with asyncio.timeout(WITHIN_S):
        await subscriber.subscribed.wait()
    yield
    await end([task])
