"""A simulated v1 monitor.

It behaves like the devices in the field: QoS 1, one reading on its way at a time, the next only
after the broker's PUBACK, reconnecting for ever. When the broker was away it goes on from where it
stood, so that no row of a recording is skipped; the reading that waited keeps its own time.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from typing import Final

import click
from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTv311
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from console.simulation import Options, pace, tls_context, told
from fajma.errors import UnavailableError
from fajma.wire import V1_TOPIC, encode_v1

_KEEPALIVE_S: Final = 30
_CONNACK_TIMEOUT_S: Final = 10.0
_FIRST_BACKOFF_S: Final = 0.5
_LONGEST_BACKOFF_S: Final = 30.0
_UPTIME_WRAP: Final = 2**32


def simulate(
    options: Options,
    *,
    say: Callable[[str], None] = click.echo,
    warn: Callable[[str], None] = lambda line: click.echo(line, err=True),
) -> int:
    """Send readings until ``count``, the end of the recording, or an interrupt.

    Args:
        options: what to send and where.
        say: gets one JSON line per reading, after its PUBACK: ``sent_at_ms`` (Unix milliseconds,
            also the reading's own timestamp unless uptime is sent), ``device``, ``values``.
        warn: gets a line for people each time the broker goes away for a new reason.

    Returns:
        How many readings the broker has acknowledged.

    Raises:
        InputError: an option or a file is unusable.
        UnavailableError: the broker's certificate is not the one to trust.
    """
    # Read before anything is sent: a file that is unusable is told at once.
    played = pace(options)
    topic = V1_TOPIC.format(device=options.device)
    sent = 0
    broker = _Broker(options, warn)
    try:
        broker.connect()
        started = due = time.monotonic()
        for pause_s, values in played:
            due += pause_s
            broker.attend_until(due)
            due = max(due, time.monotonic())
            sent_at_ms = time.time_ns() // 1_000_000
            uptime_ms = int((time.monotonic() - started) * 1000) % _UPTIME_WRAP
            timestamp = sent_at_ms if options.unix_time else uptime_ms
            broker.publish(topic, encode_v1(options.device, timestamp, values))
            sent += 1
            say(told(options.device, sent_at_ms, values))
    finally:
        broker.close()
    return sent


class _Broker:
    """The connection to the broker, served in the caller's own thread.

    Args:
        options: where it is and how to identify.
        warn: gets a line for people when it goes away for a new reason.
    """

    def __init__(self, options: Options, warn: Callable[[str], None]) -> None:
        self._options = options
        self._warn = warn
        self._warned = ""
        self._connected = False
        self._refusal = ""
        self._acknowledged: set[int] = set()
        # The reconnecting is ours, so that backing off can be interrupted and explained.
        self._client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=options.device,
            clean_session=False,
            protocol=MQTTv311,
            reconnect_on_failure=False,
        )
        context = tls_context(options)
        if context is not None:
            self._client.tls_set_context(context)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_publish = self._on_publish

    def connect(self) -> None:
        """Connect, trying again for ever; what is unacknowledged is then sent again by paho."""
        backoff_s = _FIRST_BACKOFF_S
        while not self._try_to_connect():
            time.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, _LONGEST_BACKOFF_S)
        if self._warned:
            self._warn("The broker answers again.")
            self._warned = ""

    def attend_until(self, due: float) -> None:
        """Keep the connection alive until ``due`` on the monotonic clock."""
        while (left_s := due - time.monotonic()) > 0:
            self._attend(min(left_s, 1.0))

    def publish(self, topic: str, payload: bytes) -> None:
        """Send at QoS 1 and return once the broker has acknowledged it."""
        mid = self._client.publish(topic, payload, qos=1).mid
        while mid not in self._acknowledged:
            self._attend(1.0)
        self._acknowledged.discard(mid)

    def close(self) -> None:
        """Say goodbye, if anybody listens."""
        self._client.disconnect()

    def _attend(self, seconds: float) -> None:
        if self._client.loop(seconds) is not MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._explain("The connection to the broker is lost; it is being restored.")
            # Two monitors of one name throw each other out: not at full speed.
            time.sleep(_FIRST_BACKOFF_S)
            self.connect()

    def _try_to_connect(self) -> bool:
        self._connected = False
        self._refusal = ""
        where = f"{self._options.host}:{self._options.port}"
        try:
            self._client.connect(self._options.host, self._options.port, _KEEPALIVE_S)
        except ssl.SSLCertVerificationError as error:
            raise UnavailableError(
                f"The certificate of the broker at {where} is not trusted "
                f"({error.verify_message}): check --ca and --host.",
                code="broker_not_trusted",
            ) from error
        except OSError as error:
            self._explain(
                f"The broker at {where} does not answer ({error.strerror or error}); trying again."
            )
            return False
        deadline = time.monotonic() + _CONNACK_TIMEOUT_S
        rc = MQTTErrorCode.MQTT_ERR_SUCCESS
        while not self._connected and rc is MQTTErrorCode.MQTT_ERR_SUCCESS:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                break
            rc = self._client.loop(left_s)
        if not self._connected:
            self._explain(
                f"The broker at {where} refuses this device ({self._refusal or 'no reason given'}):"
                " check its certificate and its enrolment; trying again."
            )
        return self._connected

    def _explain(self, line: str) -> None:
        if line != self._warned:
            self._warned = line
            self._warn(line)

    def _on_connect(
        self,
        client: Client,
        userdata: object,
        flags: ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        del client, userdata, flags, properties
        self._connected = not reason.is_failure
        self._refusal = str(reason) if reason.is_failure else ""

    def _on_disconnect(
        self,
        client: Client,
        userdata: object,
        flags: DisconnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        del client, userdata, flags, reason, properties
        self._connected = False

    def _on_publish(
        self,
        client: Client,
        userdata: object,
        mid: int,
        reason: ReasonCode,
        properties: Properties,
    ) -> None:
        del client, userdata, reason, properties
        self._acknowledged.add(mid)
