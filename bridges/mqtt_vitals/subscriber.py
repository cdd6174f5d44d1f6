"""The connection to the broker: takes messages in batches, answers once they are committed.

paho is served by our event loop, without a thread of its own. When ``queue_max`` messages wait to
be committed nothing more is read, so the broker holds the rest. What is not acknowledged when we
die, the broker delivers again; the log knows it already.

Each ingest has a fixed client id and a session that the broker keeps (clean start 0, or what
arrives while we are away would be lost). Several ingests divide the messages by shared
subscriptions (``$share/fajma/...``, MQTT 5.0 section 4.8.2). A single one subscribes plainly:
Mosquitto 2.0.11 forgets shared subscriptions when it is restarted, and until we are back it would
take readings of v1 monitors and drop them.

Each connection is tried in MQTT 5 first, whatever the last one spoke. MQTT 3.1.1 is tried, once,
after an answer that says so ("unsupported protocol version"), or when nothing was answered several
times in a row: amqtt 0.12.1, which knows 3.1.1 only, waits for ever for the rest of a CONNECT that
has properties. A broker that dies while it is greeted does not answer either, so one such time
means nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Any, Final

import paho.mqtt.client as paho
import structlog
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from bridges.mqtt_vitals.clocks import Arrival
from bridges.mqtt_vitals.ingest import Ingest, Message, Outcome, Settlement
from fajma import wire
from fajma.config import Mqtt
from fajma.tasks import end
from fajma.wire import Ack, Channel

log = structlog.get_logger()

TOPICS: Final = ("fajma/sensors/+", "fajma/v2/+/vitals", "fajma/v2/+/status")
SHARED: Final = "$share/fajma/"
CLIENT_ID: Final = "fajma-ingest"
"""Fixed, so that the broker keeps our session. The second ingest is ``fajma-ingest-2``."""

SESSION_EXPIRY_S: Final = 7 * 24 * 3600
KEEPALIVE_S: Final = 30
CONNECT_WITHIN_S: Final = 10.0
UNANSWERED: Final = 2
"""Greetings in MQTT 5 without any answer, in a row, after which MQTT 3.1.1 is tried."""

UNSUPPORTED_VERSION: Final = 0x84
"""Reason code of MQTT 5.0, section 3.2.2.2; paho gives it for return code 1 of 3.1.1 too."""

RETRY_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Pauses between attempts to commit or to connect, the last one repeated."""

COMMIT_WITHIN_S: Final = 10.0
"""A message that waits longer means that nothing can be committed."""

READ_AT_ONCE: Final = 256
"""Messages read before others get their turn in the event loop."""


# CLOCK_MONOTONIC stands still while the machine is suspended, and what waited would look fresh.
_STEADY: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> Arrival:
    """When what is read at this moment has arrived."""
    return Arrival(datetime.now(UTC), time.clock_gettime(_STEADY))


class _Greeting(Enum):
    """What a broker answered to our CONNECT."""

    UNANSWERED = auto()
    ACCEPTED = auto()
    OTHER_VERSION = auto()
    REFUSED = auto()


def client_id(number: int) -> str:
    """MQTT client id, and common name of the certificate, of one of several ingests."""
    return CLIENT_ID if number == 1 else f"{CLIENT_ID}-{number}"


class Subscriber:
    """Feeds ``Ingest`` from the broker, until cancelled.

    Args:
        settings: where the broker is, and how much to hold.
        ingest: what commits.
        number: which of several ingests this is, from 1.
    """

    def __init__(self, settings: Mqtt, ingest: Ingest, *, number: int = 1) -> None:
        self._settings = settings
        self._ingest = ingest
        self._number = number
        self._loop = asyncio.get_running_loop()
        self._client: paho.Client | None = None
        self._socket: ssl.SSLSocket | None = None
        self._reading = False
        self._now = now()
        self._waiting: list[Message] = []
        self._arrived = asyncio.Event()
        self._lost = asyncio.Event()
        self._greeting = _Greeting.UNANSWERED
        self._served = False
        self.subscribed = asyncio.Event()

    @property
    def is_working(self) -> bool:
        """Whether the broker gives us messages, and none of them has waited long for its commit."""
        now_s = now().mono_s
        oldest_s = self._waiting[0].arrival.mono_s if self._waiting else now_s
        return self.subscribed.is_set() and now_s - oldest_s < COMMIT_WITHIN_S

    async def run(self) -> None:
        """Take messages until cancelled."""
        committing = asyncio.create_task(self._commit_forever())
        connecting = asyncio.create_task(self._stay_connected())
        try:
            done, _ = await asyncio.wait(
                {committing, connecting}, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()  # a bug: let it be seen
        finally:
            await end([committing, connecting])
            self._disconnect()

    # --- committing ------------------------------------------------------------------------------

    async def _commit_forever(self) -> None:
        while True:
            await self._arrived.wait()
            batch = self._waiting[: self._settings.batch_max]
            outcome = await self._commit(batch)
            del self._waiting[: len(batch)]
            if not self._waiting:
                self._arrived.clear()
            for message in batch:
                message.acknowledge()
            for settlement in outcome.settled:
                self._answer(settlement)
            self._read_on()
            log.info(
                "readings_committed",
                messages=len(batch),
                stored=outcome.stored,
                repeated=outcome.repeated,
                refused=dict(outcome.refused),
            )
            await asyncio.sleep(0)  # the socket, too, gets its turn

    async def _commit(self, batch: Sequence[Message]) -> Outcome:
        for attempt in itertools.count():
            try:
                return await self._ingest.commit(batch)
            except Exception as error:  # noqa: BLE001 - whatever it is, the readings must not be lost
                pause = RETRY_S[min(attempt, len(RETRY_S) - 1)]
                log.error(
                    "commit_failed", error=type(error).__name__, messages=len(batch), retry_s=pause
                )
                await asyncio.sleep(pause)
        raise AssertionError  # the loop has no end

    def _answer(self, settlement: Settlement) -> None:
        """Tell a v2 monitor what it may delete; if the word is lost, it asks by sending again."""
        if self._client is None:
            return
        topic = wire.v2_topic(settlement.device, Channel.ACK)
        content = wire.encode_ack(settlement.device, Ack(settlement.record, datetime.now(UTC)))
        sealed = wire.seal_downlink(topic, settlement.keys.down, settlement.keys.version, content)
        self._client.publish(topic, sealed, qos=0)

    # --- the connection --------------------------------------------------------------------------

    async def _stay_connected(self) -> None:
        newest = MQTTProtocolVersion.MQTTv5
        if self._settings.embedded:  # we know what it speaks
            newest = MQTTProtocolVersion.MQTTv311
        protocol = newest
        unanswered = 0
        attempt = 0
        while True:
            self._lost.clear()
            self._greeting = _Greeting.UNANSWERED
            self._served = False
            connected = await self._connect(protocol)
            if connected:
                served = asyncio.create_task(self._serve())
                try:
                    await self._lost.wait()
                finally:
                    await end([served])
            if not connected or self._greeting is not _Greeting.UNANSWERED:
                unanswered = 0
            elif protocol is newest:
                unanswered += 1
            refused = connected and self._greeting is _Greeting.OTHER_VERSION
            if protocol is newest and (refused or unanswered == UNANSWERED):
                log.warning("broker_is_tried_in_mqtt_3_1_1", refused=refused)
                protocol, unanswered = MQTTProtocolVersion.MQTTv311, 0
            else:
                protocol = newest
            self._disconnect()
            if self._served:
                attempt = 0
            await asyncio.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
            attempt += 1

    async def _connect(self, protocol: MQTTProtocolVersion) -> bool:
        settings = self._settings
        client = self._client = self._new_client(protocol)
        options: dict[str, Any] = {}
        if protocol is MQTTProtocolVersion.MQTTv5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = SESSION_EXPIRY_S
            properties.ReceiveMaximum = min(settings.queue_max, 65535)
            options = {"clean_start": False, "properties": properties}
        try:
            # In a thread, for it waits for name server, connection and TLS.
            await asyncio.to_thread(
                client.connect, settings.host, settings.port, KEEPALIVE_S, **options
            )
        except OSError as error:
            log.warning(
                "broker_unreachable",
                host=settings.host,
                port=settings.port,
                error=type(error).__name__,
            )
            return False
        if self._client is not client:  # stopped meanwhile
            return False
        connection = client.socket()
        if not isinstance(connection, ssl.SSLSocket):
            return False
        self._socket = connection
        client.on_socket_register_write = self._on_register_write
        client.on_socket_unregister_write = self._on_unregister_write
        client.on_socket_close = self._on_close
        self._read_on()
        if client.want_write():
            self._loop.add_writer(connection, client.loop_write)
        return True

    def _new_client(self, protocol: MQTTProtocolVersion) -> paho.Client:
        settings = self._settings
        persistent: dict[str, Any] = {}
        if protocol is not MQTTProtocolVersion.MQTTv5:
            persistent["clean_session"] = False
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id(self._number),
            protocol=protocol,
            manual_ack=True,
            reconnect_on_failure=False,
            **persistent,
        )
        client.connect_timeout = CONNECT_WITHIN_S
        cert_file, key_file = settings.certificate(self._number)
        client.tls_set(
            ca_certs=str(settings.ca_file), certfile=str(cert_file), keyfile=str(key_file)
        )
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        return client

    async def _serve(self) -> None:
        """What paho wants done once a second: keep-alive, and seeing that the broker is gone."""
        deadline = time.monotonic() + CONNECT_WITHIN_S
        while self._client is not None:
            if self._client.loop_misc() is not MQTTErrorCode.MQTT_ERR_SUCCESS:
                self._lost.set()
            if self._greeting is not _Greeting.ACCEPTED and time.monotonic() > deadline:
                self._lost.set()
            await asyncio.sleep(1)

    def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.disconnect()
            client.loop_write()
        self._forget_socket()
        self.subscribed.clear()

    # --- the socket ------------------------------------------------------------------------------

    def _read_on(self) -> None:
        if self._socket is not None and not self._reading and self._has_room():
            self._reading = True
            self._loop.add_reader(self._socket, self._read)
            # What TLS has decrypted already does not make the socket readable.
            self._loop.call_soon(self._read)

    def _has_room(self) -> bool:
        return len(self._waiting) < self._settings.queue_max

    def _read(self) -> None:
        """Read what is there; at most so much that others get their turn."""
        self._now = now()
        for _ in range(READ_AT_ONCE):
            client, connection = self._client, self._socket
            if client is None or connection is None or not self._reading:
                return
            if not self._has_room():
                self._loop.remove_reader(connection)
                self._reading = False
                return
            before = len(self._waiting)
            if client.loop_read() is not MQTTErrorCode.MQTT_ERR_SUCCESS:
                self._lost.set()
                return
            if len(self._waiting) == before and (
                self._socket is not connection or not connection.pending()
            ):
                return
        self._loop.call_soon(self._read)

    def _on_register_write(self, client: paho.Client, _: Any, connection: Any) -> None:
        self._loop.add_writer(connection, client.loop_write)

    def _on_unregister_write(self, _: paho.Client, __: Any, connection: Any) -> None:
        self._loop.remove_writer(connection)

    def _on_close(self, _: paho.Client, __: Any, ___: Any) -> None:
        self._forget_socket()
        self._lost.set()

    def _forget_socket(self) -> None:
        connection, self._socket = self._socket, None
        self._reading = False
        if connection is not None and connection.fileno() >= 0:
            self._loop.remove_reader(connection)
            self._loop.remove_writer(connection)

    # --- what paho tells -------------------------------------------------------------------------

    def _on_connect(
        self, client: paho.Client, _: Any, __: Any, reason: ReasonCode, ___: Any
    ) -> None:
        if reason.is_failure:
            log.warning("broker_refused_us", reason=str(reason))
            is_version = reason.value == UNSUPPORTED_VERSION
            self._greeting = _Greeting.OTHER_VERSION if is_version else _Greeting.REFUSED
            self._lost.set()
            return
        self._greeting = _Greeting.ACCEPTED
        if client.protocol != MQTTProtocolVersion.MQTTv5:
            # A 3.1.1 broker takes $share for an ordinary topic.
            client.subscribe([(topic, 1) for topic in TOPICS])
            return
        ours, other = (SHARED, "") if self._settings.ingests > 1 else ("", SHARED)
        client.subscribe([(ours + topic, 1) for topic in TOPICS])
        # The session may be of a time when there were more of us, or fewer. Afterwards, so that
        # nothing slips through in between; what comes twice is recognised.
        client.unsubscribe([other + topic for topic in TOPICS])

    def _on_disconnect(
        self, _: paho.Client, __: Any, ___: Any, reason: ReasonCode, ____: Any
    ) -> None:
        self.subscribed.clear()
        self._lost.set()
        if reason.is_failure:
            log.warning("broker_connection_lost", reason=str(reason))

    def _on_subscribe(
        self, _: paho.Client, __: Any, ___: int, reasons: Sequence[ReasonCode], ____: Any
    ) -> None:
        refused = [one for one, reason in zip(TOPICS, reasons, strict=False) if reason.is_failure]
        if refused:
            # We are not working then, and show it; what the broker allows may be changed meanwhile.
            log.critical("broker_refuses_our_subscription", topics=refused)
            self._lost.set()
            return
        log.info("broker_subscribed")
        self._served = True
        self.subscribed.set()

    def _on_message(self, client: paho.Client, _: Any, message: paho.MQTTMessage) -> None:
        mid, qos = message.mid, message.qos

        def acknowledge() -> None:
            # After a reconnect the broker delivers it again; the log knows it already.
            if client is self._client:
                client.ack(mid, qos)

        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""
        self._waiting.append(Message(topic, bytes(message.payload), self._now, acknowledge))
        self._arrived.set()
