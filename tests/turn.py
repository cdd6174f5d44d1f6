"""A relay for calls (coturn with our configuration), and a client that asks for one."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import socket
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from console.files import base_file
from console.processes import LOOPBACK, Child, environment_for_server, require_program, tcp_open
from fajma.files import write_private

READY_WITHIN_S: Final = 20.0
ANSWERS_WITHIN_S: Final = 5.0

# STUN and TURN (RFC 8489, RFC 8656).
ALLOCATE, CREATE_PERMISSION = 0x0003, 0x0008
SUCCESS, ERROR = 0x0100, 0x0110
USERNAME, INTEGRITY, ERROR_CODE, REALM, NONCE = 0x0006, 0x0008, 0x0009, 0x0014, 0x0015
PEER, TRANSPORT = 0x0012, 0x0019
COOKIE: Final = 0x2112A442
UDP: Final = bytes((17, 0, 0, 0))
OK: Final = 0


class Coturn:
    """One relay, and the port on which it listens.

    Attributes:
        secret_file: what the homeserver shares with it.
    """

    def __init__(self, directory: Path, port: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = port
        self.secret_file = directory / "turn-secret"
        write_private(self.secret_file, secrets.token_urlsafe(32))
        self._child: Child | None = None

    @property
    def uri(self) -> str:
        """As the homeserver tells it to clients."""
        return f"turn:{LOOPBACK}:{self.port}?transport=udp"

    async def start(self) -> None:
        """Write its configuration, start it and wait until it answers."""
        program = require_program("turnserver", "coturn")
        config = self.directory / "turnserver.conf"
        ours = {
            "listening-ip": LOOPBACK,
            "listening-port": self.port,
            "relay-ip": LOOPBACK,
            "allowed-peer-ip": LOOPBACK,
            "realm": "clinic.test",
            "static-auth-secret": self.secret_file.read_text(encoding="ascii"),
            "userdb": self.directory / "users.db",
            "pidfile": self.directory / "turnserver.pid",
            "log-file": "stdout",
        }
        lines = [f"{key}={value}" for key, value in ours.items()]
        # Here, unlike at a site, the relay itself is on loopback.
        lines += ["allow-loopback-peers", "no-tls", "no-dtls"]
        write_private(config, base_file("turnserver.conf") + "\n".join(lines) + "\n")
        child = Child.start(
            [str(program), "-c", str(config)],
            env=environment_for_server(),
            log_path=self.directory / "turnserver.log",
            name="coturn",
        )
        self._child = await child.serving(tcp_open(LOOPBACK, self.port), READY_WITHIN_S)

    async def stop(self) -> None:
        """End it. Does nothing if it is not started."""
        if self._child is not None:
            await self._child.stop()
            self._child = None


@dataclass
class TurnClient:
    """Asks for a relay as a browser does; each answer is ``OK`` or the error's number."""

    port: int
    username: str
    password: str

    def __post_init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.settimeout(ANSWERS_WITHIN_S)
        self._socket.connect((LOOPBACK, self.port))
        self._realm = self._nonce = b""

    def allocate(self) -> int:
        """Ask for an address on the relay."""
        self._ask(ALLOCATE, [(TRANSPORT, UDP)])  # refused, and tells realm and nonce
        return self._ask(ALLOCATE, [(TRANSPORT, UDP)])

    def permit(self, address: str) -> int:
        """Ask to reach an address through it."""
        packed = int(ipaddress.IPv4Address(address)) ^ COOKIE
        peer = struct.pack("!xBHI", 1, 9 ^ COOKIE >> 16, packed)
        return self._ask(CREATE_PERMISSION, [(PEER, peer)])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _ask(self, method: int, attributes: list[tuple[int, bytes]]) -> int:
        body = b"".join(_attribute(*one) for one in attributes)
        key = None
        if self._realm:
            named = (
                (USERNAME, self.username.encode()),
                (REALM, self._realm),
                (NONCE, self._nonce),
            )
            body += b"".join(_attribute(*one) for one in named)
            parts = (self.username.encode(), self._realm, self.password.encode())
            key = hashlib.md5(b":".join(parts), usedforsecurity=False).digest()
        transaction = secrets.token_bytes(12)
        self._socket.send(_message(method, transaction, body, key))
        while True:
            answer = self._socket.recv(2048)
            if answer[8:20] == transaction:
                return self._read(method, answer)

    def _read(self, method: int, answer: bytes) -> int:
        kind = int.from_bytes(answer[:2])
        found = {}
        rest = answer[20:]
        while rest:
            name, length = struct.unpack("!HH", rest[:4])
            found[name] = rest[4 : 4 + length]
            rest = rest[4 + length + -length % 4 :]
        self._realm = found.get(REALM, self._realm)
        self._nonce = found.get(NONCE, self._nonce)
        if kind == method | SUCCESS:
            return OK
        assert kind == method | ERROR
        return found[ERROR_CODE][2] * 100 + found[ERROR_CODE][3]


def _attribute(name: int, value: bytes) -> bytes:
    return struct.pack("!HH", name, len(value)) + value + bytes(-len(value) % 4)


def _message(method: int, transaction: bytes, body: bytes, key: bytes | None) -> bytes:
    def headed(length: int) -> bytes:
        return struct.pack("!HHI", method, length, COOKIE) + transaction + body

    if key is not None:
        proof = hmac.digest(key, headed(len(body) + 24), "sha1")
        body += _attribute(INTEGRITY, proof)
    checked = headed(len(body) + 8)
    return checked + _attribute(0x8028, struct.pack("!I", zlib.crc32(checked) ^ 0x5354554E))
