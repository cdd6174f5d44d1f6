"""A Mosquitto of our configuration: TLS 1.3, a certificate for everyone, own topics only."""

from __future__ import annotations

import getpass
import shlex
from pathlib import Path
from typing import Final

from console.files import base_file
from console.pki import (
    BRIDGE_NAME,
    Credentials,
    ensure_ca,
    issue_bridge,
    issue_device,
    issue_server,
)
from console.processes import (
    LOOPBACK,
    Child,
    environment_for_server,
    require_port_free,
    require_program,
    tcp_open,
)
from fajma.errors import InputError
from fajma.files import write_private

_READY_WITHIN_S: Final = 15.0


class Mosquitto:
    """One broker on the loopback interface, with its certificate authority.

    Args:
        directory: configuration, certificates (``pki/``), saved messages and log; made with mode
            0700 if it is missing.
        port: TLS port, 1 to 65535.
        port_setting: what a person changes to choose another port, for messages.
    """

    host: Final = LOOPBACK

    def __init__(
        self, directory: Path, port: int, *, port_setting: str = "the setting mqtt.port"
    ) -> None:
        self.directory = directory.absolute()
        self.port = port
        self.pki_directory = self.directory / "pki"
        self._port_setting = port_setting
        self._child: Child | None = None

    @property
    def ca_file(self) -> Path:
        """Certificate of the authority that signed broker and monitors."""
        return self.pki_directory / "ca.crt"

    @property
    def log_path(self) -> Path:
        """The broker's log: connections and faults, no payloads."""
        return self.directory / "mosquitto.log"

    @property
    def pid(self) -> int | None:
        """Process id while it is started."""
        return None if self._child is None else self._child.pid

    def render(self) -> Path:
        """Write configuration, access list and certificates; return the configuration's path.

        Raises:
            InputError: ``bad_directory``: Mosquitto could not read the path from its file.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not str(self.directory).isprintable():
            raise InputError(
                f"the broker cannot work in {str(self.directory)!r}: choose a path without "
                "control characters",
                code="bad_directory",
            )
        ensure_ca(self.pki_directory)
        server = issue_server(self.pki_directory, ["localhost", LOOPBACK])
        acl_file = self.directory / "mosquitto.acl"
        write_private(acl_file, base_file("mosquitto.acl"))
        text = base_file("mosquitto.conf")
        for word, value in {
            "PORT": self.port,
            "ADDRESS": LOOPBACK,
            "CA_FILE": self.ca_file,
            "CERT_FILE": server.cert_file,
            "KEY_FILE": server.key_file,
            "ACL_FILE": acl_file,
            "DATA_DIRECTORY": self.directory,
            "USER": getpass.getuser(),
        }.items():
            text = text.replace(f"@{word}@", str(value))
        path = self.directory / "mosquitto.conf"
        write_private(path, text)
        return path

    def issue_device(self, device_id: str) -> Credentials:
        """The certificate and key of one monitor (see `console.pki.issue_device`)."""
        return issue_device(self.pki_directory, device_id)

    def issue_bridge(self, name: str = BRIDGE_NAME) -> Credentials:
        """The certificate and key of the bridge, or of one of several ingests."""
        return issue_bridge(self.pki_directory, name)

    async def start(self) -> None:
        """Start it and wait until it accepts connections.

        Raises:
            UnavailableError: Mosquitto is not installed, the port is taken, or it ended at once.
        """
        program = require_program("mosquitto", "mosquitto")
        require_port_free(self.port, self._port_setting)
        configuration = self.render()
        child = Child.start(
            [str(program), "-c", str(configuration)],
            env=environment_for_server(),
            log_path=self.log_path,
            name="Mosquitto",
        )
        self._child = await child.serving(tcp_open(LOOPBACK, self.port), _READY_WITHIN_S)

    async def stop(self) -> None:
        """End it; it saves its messages first. Does nothing if it is not started."""
        if self._child is not None:
            await self._child.stop()
            self._child = None

    def publish_command(self, device_id: str, topic: str, payload: str) -> str:
        """A shell line that sends one message as a monitor, for a person to paste.

        The broker knows a client by its certificate, so a simulated monitor of the same id loses
        its connection for a moment and comes back.

        Args:
            device_id: twelve upper-case hex digits.
            topic: e.g. ``fajma/sensors/A4CF12F03B7E``.
            payload: the message's text.
        """
        device = self.issue_device(device_id)
        return shlex.join(
            [
                "mosquitto_pub",
                *("-h", LOOPBACK, "-p", str(self.port), "--tls-version", "tlsv1.3"),
                *("--cafile", str(self.ca_file)),
                *("--cert", str(device.cert_file), "--key", str(device.key_file)),
                # Not a clean session: that would drop what waits for the monitor.
                *("-i", device_id, "-c", "-q", "1", "-t", topic, "-m", payload),
            ]
        )
