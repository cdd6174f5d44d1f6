"""An SMS for each alarm that nobody answered: FAJMA's webhook to a GSM modem.

An example to start from, for Python 3.11 without further packages::

    WEBHOOK_SECRET_FILE=secret MODEM=/dev/ttyUSB0 SMS_TO=+221770000000 python gsm_modem.py

It listens on port 8088. Set ``alarms.webhook_url`` to ``http://127.0.0.1:8088/`` and
``secrets.webhook_secret_file`` to the same secret. It answers 200 only after the modem has said
that the network took the message (3GPP TS 27.005, ``+CMGS``); otherwise FAJMA tries again.
"""

import base64
import hashlib
import hmac
import json
import os
import time
import tty
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from select import select
from typing import BinaryIO

MAX_BODY = 4096
MAX_AGE_S = 300
MODEM_WAIT_S = 20
PRIORITIES = {"high": "haute", "medium": "moyenne", "low": "basse"}
SENT: set[str] = set()
"""Calls that were sent: FAJMA repeats one whose answer it did not hear."""


def is_ours(secret: str, headers: dict[str, str], body: bytes, now: float) -> bool:
    """Whether FAJMA signed it, just now (Standard Webhooks, version 1)."""
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        stamp = headers["webhook-timestamp"]
        fresh = abs(now - int(stamp)) <= MAX_AGE_S
    except (KeyError, ValueError):
        return False
    signed = f"{headers.get('webhook-id', '')}.{stamp}.".encode() + body
    wanted = "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    given = headers.get("webhook-signature", "").split(" ")
    return fresh and any(hmac.compare_digest(wanted, one) for one in given)


def words(call: dict) -> str:
    """The SMS: where to look, nothing about a patient."""
    data = call["data"]
    ward = data.get("ward") or "?"
    priority = PRIORITIES.get(data["priority"], data["priority"])
    return f"FAJMA: alarme sans reponse, service {ward}, priorite {priority}. Ouvrez Element."


def say(modem: BinaryIO, command: bytes, answer: bytes) -> None:
    """Give the modem a command and wait for an answer."""
    modem.write(command)
    heard = b""
    until = time.monotonic() + MODEM_WAIT_S
    while answer not in heard:
        if b"ERROR" in heard or time.monotonic() > until:
            raise OSError("the modem did not take the message")
        if select([modem], [], [], 0.5)[0]:
            heard += os.read(modem.fileno(), 256)


def send_sms(modem: BinaryIO, to: str, text: str) -> None:
    """Send a text in the GSM alphabet."""
    say(modem, b"AT+CMGF=1\r", b"OK")
    say(modem, f'AT+CMGS="{to}"\r'.encode(), b">")
    say(modem, text.encode("ascii", "replace") + b"\x1a", b"+CMGS:")


class Receiver(BaseHTTPRequestHandler):
    """Takes calls."""

    def do_POST(self) -> None:
        """One call."""
        body = self.rfile.read(min(int(self.headers.get("content-length", 0)), MAX_BODY))
        headers = {name.lower(): value for name, value in self.headers.items()}
        secret = Path(os.environ["WEBHOOK_SECRET_FILE"]).read_text(encoding="utf-8").strip()
        if not is_ours(secret, headers, body, time.time()):
            self.send_error(401)
            return
        try:
            if headers["webhook-id"] not in SENT:
                with Path(os.environ["MODEM"]).open("r+b", buffering=0) as modem:
                    tty.setraw(modem.fileno())  # neither echo nor lines: every byte is for us
                    send_sms(modem, os.environ["SMS_TO"], words(json.loads(body)))
                SENT.add(headers["webhook-id"])
        except OSError:
            self.send_error(503)
            return
        self.send_response(200)
        self.end_headers()


if __name__ == "__main__":
    HTTPServer(("127.0.0.1", int(os.environ.get("PORT", "8088"))), Receiver).serve_forever()
