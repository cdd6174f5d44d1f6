"""The embedded broker for one small clinic: amqtt inside FAJMA, MQTT 3.1.1 over TLS.

The same rules as our Mosquitto configuration: nobody without a certificate of the clinic's
authority; the certificate's common name is the client's id; a monitor writes its own topics only.
What is queued lives in memory: a monitor that needs more than "sent once while FAJMA runs" wants
Mosquitto.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import structlog
from amqtt.broker import Broker
from amqtt.contexts import Action, BrokerConfig
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session

from fajma.config import Mqtt
from fajma.errors import UnavailableError

log = structlog.get_logger()

INGEST: Final = "fajma-ingest"
"""Common name of the bridge's own certificate."""

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


class EmbeddedBroker:
    """amqtt with our rules."""

    def __init__(self, settings: Mqtt) -> None:
        self._settings = settings
        self._broker: Broker | None = None

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
        broker = Broker(config)
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
