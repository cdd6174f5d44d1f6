"""The embedded broker for one small clinic: amqtt inside FAJMA, MQTT 3.1.1 over TLS.

The same rules as our Mosquitto configuration: nobody without a certificate of the clinic's
authority; the certificate's common name is the client's id; a monitor writes its own topics only.
What is queued lives in memory: a monitor that needs more than "sent once while FAJMA runs" wants
Mosquitto.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from io import BytesIO
from typing import Any, Final

import structlog
from amqtt.adapters import ReaderAdapter, StreamReaderAdapter, StreamWriterAdapter
from amqtt.broker import Broker
from amqtt.contexts import Action, BrokerConfig, ListenerConfig
from amqtt.mqtt.connect import ConnectPacket
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session

from fajma.config import Mqtt
from fajma.errors import UnavailableError

log = structlog.get_logger()

INGEST: Final = "fajma-ingest"
"""Common name of the bridge's own certificate."""

CONNECT_WITHIN_S: Final = 10.0
"""Whoever has said nothing by then is disconnected."""

_DEVICE_MAY: Final[Mapping[Action, tuple[str, ...]]] = {
    Action.PUBLISH: ("fajma/sensors/{}", "fajma/v2/{}/vitals", "fajma/v2/{}/status"),
    Action.SUBSCRIBE: ("fajma/v2/{}/ack", "fajma/v2/{}/config", "fajma/v2/{}/ota"),
    Action.RECEIVE: ("fajma/v2/{}/ack", "fajma/v2/{}/config", "fajma/v2/{}/ota"),
}


def may(client: str, action: Action, topic: str) -> bool:
    """Whether a client, known by its certificate, may do this with a topic."""
    if client == INGEST:
        return topic.startswith(("fajma/sensors/", "fajma/v2/")) and (
            action is not Action.PUBLISH or topic.endswith(("/ack", "/config", "/ota"))
        )
    return topic in {pattern.format(client) for pattern in _DEVICE_MAY[action]}


class CertificatePlugin(BaseAuthPlugin, BaseTopicPlugin):  # type: ignore[misc]
    """amqtt's hook: who is this, and may he."""

    async def authenticate(self, *, session: Session) -> bool:
        """Only with a certificate, and only under its name."""
        certificate = session.ssl_object.getpeercert() if session.ssl_object else None
        name = _common_name(certificate or {})
        if not name or session.client_id != name:
            log.warning("client_without_matching_certificate")
            return False
        return True

    async def topic_filtering(
        self,
        *,
        session: Session | None = None,
        topic: str | None = None,
        action: Action | None = None,
    ) -> bool:
        """Own topics only."""
        if session is None or topic is None or action is None or session.client_id is None:
            return False
        return may(session.client_id, action, topic)


MAX_PACKET_BYTES: Final = 66_560
"""As in our Mosquitto configuration; what is larger ends the connection before it is in memory."""


class _TwiceReader(ReaderAdapter):  # type: ignore[misc]
    """A stream whose beginning can be read twice, and that takes no huge packets."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = StreamReaderAdapter(reader)
        self._begun = BytesIO()
        self._again = False

    async def read(self, n: int = -1) -> bytes:
        if self._again and (data := self._begun.read(n)):
            return data
        if n > MAX_PACKET_BYTES:
            log.warning("packet_too_large", bytes=n)
            self._reader.feed_eof()
            raise ConnectionResetError("a packet that is too large")
        data = bytes(await self._reader.read(n))
        if not self._again:
            self._begun.write(data)
        return data

    def rewind(self) -> None:
        self._begun.seek(0)
        self._again = True

    def feed_eof(self) -> None:
        self._reader.feed_eof()


class _CertifiedBroker(Broker):  # type: ignore[misc]
    """amqtt, to which nobody comes but under the name in his certificate.

    By itself amqtt resumes or ends the session that a client names before it asks any plugin, and
    then asks about the certificate of whoever opened that session: anybody could name another's.
    """

    @staticmethod
    def _create_ssl_context(listener: ListenerConfig) -> ssl.SSLContext:
        context: ssl.SSLContext = Broker._create_ssl_context(listener)  # noqa: SLF001 - see above
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    async def stream_connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener_name: str
    ) -> None:
        twice = _TwiceReader(reader)
        try:
            async with asyncio.timeout(CONNECT_WITHIN_S):
                said = (await ConnectPacket.from_stream(twice)).client_id
        except Exception:  # noqa: BLE001 - whatever a stranger sends
            said = None
        name = _common_name(writer.get_extra_info("ssl_object").getpeercert() or {})
        if name is None or said != name:
            log.warning("client_without_matching_certificate")
            writer.close()
            return
        twice.rewind()
        await self.external_connected(twice, StreamWriterAdapter(writer), listener_name)


class EmbeddedBroker:
    """amqtt with our rules."""

    def __init__(self, settings: Mqtt) -> None:
        self._settings = settings
        self._broker: _CertifiedBroker | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            UnavailableError: the port is taken.
        """
        settings = self._settings
        config = BrokerConfig.from_dict(
            {
                "listeners": {
                    "default": {
                        "type": "tcp",
                        "bind": f"{settings.host}:{settings.port}",
                        "ssl": True,
                        "cafile": str(settings.ca_file),
                        "certfile": str(settings.server_cert_file),
                        "keyfile": str(settings.server_key_file),
                    }
                },
                "plugins": {f"{__name__}.{CertificatePlugin.__name__}": {}},
            }
        )
        broker = _CertifiedBroker(config)
        try:
            await broker.start()
        except Exception as error:
            raise UnavailableError(
                f"the broker cannot listen on port {settings.port}: set mqtt.port to a free one",
                code="port_in_use",
            ) from error
        self._broker = broker
        log.info("embedded_broker_listening", port=settings.port)

    async def stop(self) -> None:
        """Close every connection."""
        if self._broker is not None:
            await self._broker.shutdown()
            self._broker = None


def _common_name(certificate: Mapping[str, Any]) -> str | None:
    for part in certificate.get("subject", ()):
        for key, value in part:
            if key == "commonName":
                return str(value)
    return None
