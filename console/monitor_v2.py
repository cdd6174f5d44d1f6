"""A v2 monitor: measures, keeps what it measured, and sends it until it is acknowledged.

It behaves as our firmware does (``docs/wire.md``): a record is in the journal before it is sent;
one pack is on its way at a time, the oldest records first; the broker's PUBACK proves nothing, so a
pack is sent again, sealed anew, until our own acknowledgement names its last record. It reconnects
for ever. Many monitors can live in one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import random
import ssl
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from console.device_keys import DeviceKeys
from console.journal import Entry, last_of
from console.journal_files import JournalFiles
from fajma.errors import DecodeError, UnavailableError
from fajma.store import from_ms
from fajma.tasks import end
from fajma.vitals import DeviceId, Kind
from fajma.wire import (
    Channel,
    Item,
    Pack,
    decode_ack,
    encode_pack,
    open_downlink,
    seal,
    v2_topic,
)

PACK_MOST: Final = 50
"""Entries of one pack; with the longest values they take half of what a payload may have."""

GOOD_QUALITY: Final = 95
"""Of the pulse wave of a simulated finger, in %."""

_KEEPALIVE_S: Final = 30
_CONNECT_WITHIN_S: Final = 10.0
_ATTEND_EVERY_S: Final = 5.0
_FIRST_BACKOFF_S: Final = 0.5
_LONGEST_BACKOFF_S: Final = 30.0
_MOST_DOUBLINGS: Final = 16
_ONLINE: Final = json.dumps({"online": True})
_OFFLINE: Final = json.dumps({"online": False})


@dataclass(frozen=True, slots=True)
class Broker:
    """Where a monitor reports to.

    Attributes:
        host: name or address, as its certificate has it.
        port: 1 to 65535.
        tls: trusts the broker's authority and shows the monitor's certificate.
    """

    host: str
    port: int
    tls: ssl.SSLContext


@dataclass(frozen=True, slots=True)
class Resend:
    """How long a pack waits for its acknowledgement before it is sent again.

    Attributes:
        first_s: the first time; each further time it waits twice as long.
        longest_s: but never longer than this.
    """

    first_s: float = 3.0
    longest_s: float = 60.0


class Monitor:
    """One monitor.

    Args:
        broker: where it reports to.
        keys: what it seals and opens with.
        files: its journal and its numbers.
        resend: how patient it is.
        clock_set: whether it knows the time of day.
        warn: gets a line for people when the broker goes away for a new reason, and comes back.
    """

    def __init__(
        self,
        broker: Broker,
        keys: DeviceKeys,
        files: JournalFiles,
        *,
        resend: Resend = Resend(),
        clock_set: bool = True,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._broker = broker
        self._keys = keys
        self._files = files
        self._resend = resend
        self._clock_set = clock_set
        self._warn = warn
        self._warned = ""
        self._started_s = time.monotonic()
        self._stirred = asyncio.Event()
        """A record, an acknowledgement, or news of the connection: whoever waits looks again."""
        self._acknowledged = asyncio.Event()

    @property
    def device(self) -> DeviceId:
        """Which monitor it is."""
        return self._keys.device

    def measure(
        self,
        values: Mapping[Kind, Decimal],
        *,
        quality: int | None = GOOD_QUALITY,
        contact: bool | None = True,
    ) -> Item:
        """Make a record of what is measured now; it is on disk when this returns."""
        item = Item(
            seq=self._files.next_number(),
            boot=self._files.boot,
            mono_ms=self._mono_ms(),
            measured_at=from_ms(time.time_ns() // 1_000_000) if self._clock_set else None,
            clock_set=self._clock_set,
            values=values,
            rejected=(),
            quality=quality,
            contact=contact,
        )
        self._files.keep(item)
        self._stirred.set()
        return item

    async def settled(self) -> None:
        """Return once everything that was measured is acknowledged."""
        while len(self._files.journal):
            self._acknowledged.clear()
            await self._acknowledged.wait()

    async def run(self) -> None:
        """Send what is measured, until cancelled.

        Raises:
            UnavailableError: ``broker_not_trusted``.
        """
        attempt = 0
        while True:
            link = _Link(self._broker, self.device, self._stirred.set, self._hear)
            try:
                await self._open(link)
                if link.ready:
                    attempt = 0
                    self._broker_is("")
                    await self._send(link)
                    self._broker_is("The connection to the broker is lost; it is being restored.")
            finally:
                link.close()
            await asyncio.sleep(_jittered(_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S, attempt))
            attempt += 1

    async def _open(self, link: _Link) -> None:
        where = f"{self._broker.host}:{self._broker.port}"
        try:
            await link.open()
        except ssl.SSLCertVerificationError as error:
            raise UnavailableError(
                f"The certificate of the broker at {where} is not trusted "
                f"({error.verify_message}): check --ca and --host.",
                code="broker_not_trusted",
            ) from error
        except OSError as error:
            self._broker_is(
                f"The broker at {where} does not answer ({error.strerror or error}); trying again."
            )
            return
        if not await self._until(link, lambda: link.ready, _CONNECT_WITHIN_S):
            self._broker_is(
                f"The broker at {where} refuses this device ({link.refusal or 'no reason given'}):"
                " check its certificate and its enrolment; trying again."
            )

    async def _send(self, link: _Link) -> None:
        """Send one pack after the other until the connection is lost."""
        journal = self._files.journal
        topic = v2_topic(self.device, Channel.VITALS)
        attempt = 0
        while not link.lost:
            entries = journal.waiting(PACK_MOST)
            if not entries:
                await self._until(link, lambda: len(journal) > 0, math.inf)
                continue
            link.publish(topic, self._sealed(topic, entries))
            last = last_of(entries[-1])
            pause_s = _jittered(self._resend.first_s, self._resend.longest_s, attempt)
            settled = await self._until(link, lambda: journal.oldest > last, pause_s)  # noqa: B023 - only in this turn
            attempt = 0 if settled else attempt + 1

    def _sealed(self, topic: str, entries: tuple[Entry, ...]) -> bytes:
        oldest = self._files.journal.oldest
        pack = Pack(self.device, oldest, self._files.boot, self._mono_ms(), entries)
        return seal(topic, self._keys.up, self._keys.version, encode_pack(pack))

    def _hear(self, topic: str, payload: bytes) -> None:
        try:
            ack = decode_ack(open_downlink(topic, self._keys.down, payload), self.device)
        except DecodeError:
            return  # not from who has our keys: as if nothing had come
        if self._files.acknowledge(ack.committed):
            self._stirred.set()
            self._acknowledged.set()

    async def _until(self, link: _Link, met: Callable[[], bool], within_s: float) -> bool:
        """Wait until it is met, the connection is lost or the time is up; whether it is met."""
        deadline_s = time.monotonic() + within_s
        while not met() and not link.lost and (left_s := deadline_s - time.monotonic()) > 0:
            self._stirred.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, _ATTEND_EVERY_S)):
                    await self._stirred.wait()
            link.attend()
        return met()

    def _broker_is(self, away: str) -> None:
        """Tell people why the broker is away, or that it is back, once."""
        if away != self._warned:
            self._warned = away
            self._warn(away or "The broker answers again.")

    def _mono_ms(self) -> int:
        return int((time.monotonic() - self._started_s) * 1000)


async def play(
    monitor: Monitor,
    readings: Iterable[tuple[float, Mapping[Kind, Decimal]]],
    *,
    say: Callable[[Item], None] = lambda _: None,
) -> None:
    """Measure what is played.

    Args:
        monitor: whose ``run`` sends it meanwhile.
        readings: seconds to wait, then the values.
        say: gets each record once it is on disk.
    """
    due_s = time.monotonic()
    for pause_s, values in readings:
        due_s = max(due_s + pause_s, time.monotonic())
        await asyncio.sleep(due_s - time.monotonic())
        say(monitor.measure(values))


async def run_while(monitors: Iterable[Monitor], work: Coroutine[Any, Any, None]) -> None:
    """Let monitors send while something is done; raise what any of it raises."""
    working = asyncio.create_task(work)
    tasks = [working, *(asyncio.create_task(monitor.run()) for monitor in monitors)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await end(tasks)


class _Link:
    """One connection to the broker, served by the event loop.

    Args:
        broker: where to.
        device: who connects.
        stirred: called when anything has changed.
        hear: gets topic and payload of what the monitor is told.

    Attributes:
        ready: connected, and hearing acknowledgements.
        lost: it is over.
        refusal: why the broker does not want us, if it said so.
    """

    def __init__(
        self,
        broker: Broker,
        device: DeviceId,
        stirred: Callable[[], None],
        hear: Callable[[str, bytes], None],
    ) -> None:
        self.ready = False
        self.lost = False
        self.refusal = ""
        self._broker = broker
        self._device = device
        self._stirred = stirred
        self._hear = hear
        self._loop = asyncio.get_running_loop()
        self._socket: ssl.SSLSocket | None = None
        self._client = client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=device,
            protocol=MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,
        )
        client.tls_set_context(broker.tls)
        client.will_set(v2_topic(device, Channel.STATUS), _OFFLINE, qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_disconnect = self._on_disconnect

    async def open(self) -> None:
        """Connect and shake hands; ``ready`` follows.

        Raises:
            OSError: there is no connection.
        """
        client, broker = self._client, self._broker
        # In a thread, for it waits for name server, connection and TLS. A new session each time:
        # what it would hold for us, acknowledgements of the past, we do not need.
        await asyncio.to_thread(
            client.connect, broker.host, broker.port, _KEEPALIVE_S, clean_start=True
        )
        connection = client.socket()
        if not isinstance(connection, ssl.SSLSocket):
            raise ConnectionError
        self._socket = connection
        client.on_socket_register_write = self._on_register_write
        client.on_socket_unregister_write = self._on_unregister_write
        client.on_socket_close = lambda *_: self._over()
        self._loop.add_reader(connection, self._read)
        if client.want_write():
            self._loop.add_writer(connection, client.loop_write)

    def publish(self, topic: str, payload: bytes) -> None:
        """Send at QoS 1, without waiting for anything."""
        self._client.publish(topic, payload, qos=1)

    def attend(self) -> None:
        """What paho wants done now and then: keep-alive, and seeing that the broker is gone."""
        if not self.lost and self._client.loop_misc() is not MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._over()

    def close(self) -> None:
        """Say goodbye, if anybody listens, and that we are not connected any more."""
        if self._client.socket() is not None:
            self._client.disconnect(
                ReasonCode(PacketTypes.DISCONNECT, "Disconnect with will message")
            )
            self._client.loop_write()
        self._over()

    def _read(self) -> None:
        connection = self._socket
        while connection is not None and self._socket is connection:
            if self._client.loop_read() is not MQTTErrorCode.MQTT_ERR_SUCCESS:
                self._over()
            elif not connection.pending():
                return

    def _over(self) -> None:
        connection, self._socket = self._socket, None
        self.lost = True
        self._stirred()
        if connection is not None and connection.fileno() >= 0:
            self._loop.remove_reader(connection)
            self._loop.remove_writer(connection)

    # --- what paho tells -------------------------------------------------------------------------

    def _on_register_write(self, client: paho.Client, _: Any, connection: Any) -> None:
        self._loop.add_writer(connection, client.loop_write)

    def _on_unregister_write(self, _: paho.Client, __: Any, connection: Any) -> None:
        self._loop.remove_writer(connection)

    def _on_connect(
        self, client: paho.Client, _: Any, __: Any, reason: ReasonCode, ___: Any
    ) -> None:
        if reason.is_failure:
            self.refusal = str(reason)
            self._over()
            return
        client.subscribe(v2_topic(self._device, Channel.ACK), qos=0)

    def _on_subscribe(
        self, client: paho.Client, _: Any, __: int, reasons: list[ReasonCode], ___: Any
    ) -> None:
        if reasons[0].is_failure:
            self.refusal = str(reasons[0])
            self._over()
            return
        client.publish(v2_topic(self._device, Channel.STATUS), _ONLINE, qos=1, retain=True)
        self.ready = True
        self._stirred()

    def _on_message(self, _: paho.Client, __: Any, message: paho.MQTTMessage) -> None:
        self._hear(message.topic, bytes(message.payload))

    def _on_disconnect(
        self, _: paho.Client, __: Any, ___: Any, reason: ReasonCode, ____: Any
    ) -> None:
        if reason.is_failure and not self.ready:
            self.refusal = str(reason)
        self._over()


def _jittered(first_s: float, longest_s: float, attempt: int) -> float:
    """Twice as long with each attempt; less by up to a half, so that not all come at once."""
    whole_s = min(first_s * 2.0 ** min(attempt, _MOST_DOUBLINGS), longest_s)
    return whole_s * random.uniform(0.5, 1)  # noqa: S311 - nobody needs to be unable to guess
