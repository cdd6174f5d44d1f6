"""From the broker to the readings log.

Messages are taken from the broker, decoded, attributed to whoever wears the monitor, sealed and
committed in batches. A message is acknowledged to the broker only after its batch is committed; if
we die before, the broker delivers it again, and the log knows it already.

Identity of a v1 reading: the fingerprint (keyed, so that it reveals nothing) of device and payload.
A redelivery has the same payload. Two readings of one device with the same payload to the last
byte, its timestamp included, count as one.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import paho.mqtt.client as paho
import structlog
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from bridges.mqtt_vitals.clocks import Clocks
from fajma import wire
from fajma.config import Mqtt
from fajma.errors import DecodeError
from fajma.store import Records
from fajma.store.quarantine import Refused
from fajma.store.readings import Fate, NewReading
from fajma.tasks import end

log = structlog.get_logger()

TOPICS: Final = ("fajma/sensors/+",)
CLIENT_ID: Final = "fajma-ingest"
"""Fixed, so that the broker keeps our session, and what arrives, while we are away."""

SESSION_EXPIRY_S: Final = 7 * 24 * 3600
RETRY_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Pauses between attempts to commit, the last one repeated."""

UNKNOWN_DEVICE: Final = "unknown_device"


@dataclass(frozen=True, slots=True)
class Message:
    """One message from the broker, not yet acknowledged."""

    topic: str
    payload: bytes
    received_at: datetime
    acknowledge: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a batch: new readings, redeliveries, and refusals by reason."""

    stored: int
    repeated: int
    refused: Counter[str]


class Ingest:
    """Commits messages to the readings log. Knows nothing about MQTT connections."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._clocks = Clocks()

    async def commit(self, batch: Sequence[Message]) -> Outcome:
        """Decode, attribute, seal and commit a batch in one transaction.

        Nothing in the batch can make it fail: what is not a reading is quarantined.
        """
        records = self._records
        readings: list[NewReading] = []
        refused: list[Refused] = []
        clocks = self._clocks.tried()
        async with records.store.transaction() as connection:
            for message in batch:
                await self._sort(message, clocks, readings, refused)
            fates = await records.readings.append(connection, readings) if readings else []
            stored = fates.count(Fate.STORED)
            await records.quarantine.keep(connection, refused)
        self._clocks.keep(clocks)
        if stored:
            records.store.hints.notify("readings")
        return Outcome(stored, len(readings) - stored, Counter(one.reason for one in refused))

    async def _sort(
        self,
        message: Message,
        clocks: Clocks,
        readings: list[NewReading],
        refused: list[Refused],
    ) -> None:
        def refuse(reason: str) -> None:
            refused.append(Refused(reason, message.topic, message.payload, message.received_at))

        try:
            decoded = wire.decode_v1(message.topic, message.payload, message.received_at)
        except DecodeError as error:
            refuse(error.code)
            log.warning(
                "reading_refused",
                reason=error.code,
                why=str(error),
                device=_device(message.topic),
            )
            return
        for rejected in decoded.rejected:
            refuse(f"{rejected.kind}_{rejected.reason}")
            log.warning(
                "value_refused",
                device=decoded.reading.device,
                kind=rejected.kind.value,
                reason=rejected.reason.value,
            )
        reading = clocks.place(decoded.reading)
        worn = await self._records.consultations.wearing(reading.device, reading.measured_at)
        if worn is None:
            refuse(UNKNOWN_DEVICE)
            log.warning("reading_refused", reason=UNKNOWN_DEVICE, device=reading.device)
            return
        record = self._records.site_key.fingerprint(
            b"v1 reading", reading.device.encode(), message.payload
        )
        readings.append(NewReading(record, worn.patient, reading))


def _device(topic: str) -> str:
    """Whose topic it is, for the log; the broker lets nobody else write there."""
    try:
        return wire.parse_topic(topic)
    except DecodeError:
        return "unknown"


class Subscriber:
    """Holds the connection to the broker and feeds ``Ingest``.

    paho runs in its own thread; at most ``queue_max`` messages are under way to the event loop.
    When that is reached the thread waits, the broker sees no acknowledgements, and holds back
    (receive maximum).
    """

    def __init__(self, settings: Mqtt, ingest: Ingest) -> None:
        self._settings = settings
        self._ingest = ingest
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Message] = asyncio.Queue()
        self._room = threading.BoundedSemaphore(settings.queue_max)
        self._client: paho.Client | None = None
        self._refused = asyncio.Event()
        self._accepted = False
        self.subscribed = asyncio.Event()

    async def run(self) -> None:
        """Take messages until cancelled."""
        # A broker that knows only 3.1.1 answers MQTT 5 with a refusal, or with silence.
        protocols = [MQTTProtocolVersion.MQTTv311]
        if not self._settings.embedded:
            protocols.insert(0, MQTTProtocolVersion.MQTTv5)
        for protocol in itertools.cycle(protocols):
            self._refused.clear()
            self._accepted = False
            self._client = self._connect(protocol)
            committing = asyncio.create_task(self._commit_forever())
            refused = asyncio.create_task(self._refused.wait())
            try:
                done, _ = await asyncio.wait(
                    {committing, refused}, return_when=asyncio.FIRST_COMPLETED
                )
                if committing in done:
                    committing.result()  # a bug: let it be seen
                log.info("broker_does_not_accept", protocol=protocol.name)
            finally:
                await end([committing, refused])
                self._disconnect()

    def _connect(self, protocol: MQTTProtocolVersion) -> paho.Client:
        settings = self._settings
        persistent: dict[str, Any] = {}
        if protocol is not MQTTProtocolVersion.MQTTv5:
            persistent["clean_session"] = False
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=CLIENT_ID,
            protocol=protocol,
            manual_ack=True,
            **persistent,
        )
        client.tls_set(
            ca_certs=str(settings.ca_file),
            certfile=str(settings.cert_file),
            keyfile=str(settings.key_file),
        )
        client.reconnect_delay_set(min_delay=1, max_delay=10)
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        options: dict[str, Any] = {}
        if protocol is MQTTProtocolVersion.MQTTv5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = SESSION_EXPIRY_S
            properties.ReceiveMaximum = min(settings.queue_max, 65535)
            options = {"clean_start": False, "properties": properties}
        client.connect_async(settings.host, settings.port, keepalive=30, **options)
        client.loop_start()
        return client

    def _disconnect(self) -> None:
        # Forgotten first: its thread may be waiting for room, and looks whether it is still ours.
        client, self._client = self._client, None
        if client is not None:
            client.disconnect()
            client.loop_stop()
        self.subscribed.clear()

    async def _commit_forever(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while len(batch) < self._settings.batch_max and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            outcome = await self._commit(batch)
            for message in batch:
                message.acknowledge()
                self._room.release()
            log.info(
                "readings_committed",
                device=_device(batch[0].topic) if len(batch) == 1 else "several",
                stored=outcome.stored,
                repeated=outcome.repeated,
                refused=dict(outcome.refused),
            )

    async def _commit(self, batch: Sequence[Message]) -> Outcome:
        attempt = 0
        while True:
            try:
                return await self._ingest.commit(batch)
            except Exception as error:  # noqa: BLE001 - whatever it is, the readings must not be lost
                pause = RETRY_S[min(attempt, len(RETRY_S) - 1)]
                attempt += 1
                log.error(
                    "commit_failed", error=type(error).__name__, messages=len(batch), retry_s=pause
                )
                await asyncio.sleep(pause)

    # Called by paho, in its thread.

    def _on_connect(
        self,
        client: paho.Client,
        _: Any,
        __: Any,
        reason: ReasonCode,
        ___: Any,
    ) -> None:
        if reason.is_failure:
            log.warning("broker_refused_us", reason=str(reason))
            return
        self._accepted = True
        client.subscribe([(topic, 1) for topic in TOPICS])

    def _on_connect_fail(self, _: paho.Client, __: Any) -> None:
        log.warning("broker_unreachable", host=self._settings.host, port=self._settings.port)

    def _on_disconnect(
        self,
        _: paho.Client,
        __: Any,
        ___: Any,
        reason: ReasonCode,
        ____: Any,
    ) -> None:
        self._loop.call_soon_threadsafe(self.subscribed.clear)
        if reason.is_failure:
            log.warning("broker_connection_lost", reason=str(reason))
            if not self._accepted:
                self._loop.call_soon_threadsafe(self._refused.set)

    def _on_subscribe(
        self,
        _: paho.Client,
        __: Any,
        ___: int,
        reasons: Sequence[ReasonCode],
        ____: Any,
    ) -> None:
        if any(reason.is_failure for reason in reasons):
            log.error("broker_refuses_our_subscription")
            return
        log.info("broker_subscribed")
        self._loop.call_soon_threadsafe(self.subscribed.set)

    def _on_message(self, client: paho.Client, _: Any, message: paho.MQTTMessage) -> None:
        def acknowledge() -> None:
            # After a reconnect the broker delivers it again; the log knows it already.
            if client.ack(message.mid, message.qos) is not MQTTErrorCode.MQTT_ERR_SUCCESS:
                log.debug("acknowledgement_not_sent")

        while not self._room.acquire(timeout=1):
            if self._client is not client:  # we are shutting down
                return
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""
        taken = Message(topic, bytes(message.payload), datetime.now(UTC), acknowledge)
        self._loop.call_soon_threadsafe(self._queue.put_nowait, taken)
