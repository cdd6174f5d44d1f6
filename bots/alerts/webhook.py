"""The last step of the ladder: the hospital's own webhook, for a call or an SMS.

It is posted as the Standard Webhooks specification says (headers ``webhook-id``,
``webhook-timestamp`` and ``webhook-signature``, HMAC-SHA256 over the three parts joined by points),
so that receivers find a library that checks it. It says that an alarm waits and in which ward, and
nothing about the patient: it leaves the hospital, often over a telephone network.

A delivery is repeated until the receiver answers with 2xx; its id stays the same, by which a
receiver that heard it twice calls once. It is called off when somebody acknowledges.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import aiohttp
import structlog

from fajma.errors import BugError, InputError
from fajma.store import Records
from fajma.store.alarms import WEBHOOK_ROOM, Delivery, SentBy
from fajma.vitals import PatientKey

log = structlog.get_logger()

MIN_KEY_BYTES: Final = 24  # Standard Webhooks: 24 to 64 bytes
TIMEOUT_S: Final = 10.0
RETRY_S: Final = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses between attempts, the last one repeated."""

_OK: Final = range(200, 300)


def call(
    delivery_id: str, patient: PatientKey, *, ward: str | None, priority: str, now: datetime
) -> Delivery:
    """What is posted when nobody answered.

    Args:
        delivery_id: its identity, opaque.
        patient: about whom; for calling it off, and never posted.
        ward: short name of the ward whose team did not answer.
        priority: ``low``, ``medium`` or ``high`` (IEC 60601-1-8).
        now: aware UTC time.
    """
    content = {
        "type": "alarm.unanswered",
        "timestamp": now.astimezone(UTC).isoformat(),
        "data": {"ward": ward, "priority": priority},
    }
    return Delivery(delivery_id, WEBHOOK_ROOM, patient, content, now, SentBy.WEBHOOK)


def signature(secret: bytes, delivery_id: str, timestamp_s: int, body: bytes) -> str:
    """The ``webhook-signature`` of Standard Webhooks, version 1."""
    signed = b".".join((delivery_id.encode(), str(timestamp_s).encode(), body))
    return "v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()


def read_key(secret: str) -> bytes:
    """The key in a secret as Standard Webhooks writes it: ``whsec_`` and base64.

    Raises:
        InputError: ``webhook_secret_invalid``, it is written otherwise or shorter than 24 bytes.
    """
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    if not secret.startswith("whsec_") or len(key) < MIN_KEY_BYTES:
        raise InputError(
            "secrets.webhook_secret_file must hold whsec_ and base64 of at least 24 random bytes:"
            ' write it with `echo "whsec_$(openssl rand -base64 32)"`',
            code="webhook_secret_invalid",
        )
    return key


class Webhook:
    """Posts what waits.

    Args:
        url: of the receiver.
        secret: the key shared with it (``read_key``).
        records: where the outbox is.
        clock_s: seconds since 1970.
    """

    def __init__(
        self, url: str, secret: bytes, records: Records, *, clock_s: Callable[[], float] = time.time
    ) -> None:
        self._url = url
        self._secret = secret
        self._records = records
        self._clock_s = clock_s
        self._hint = records.store.hints.subscribe("outbox")

    async def run(self) -> None:
        """Post until cancelled."""
        failures = 0
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as session:
            while True:
                try:
                    done = await self._post_all(session)
                except Exception as error:  # noqa: BLE001 - whatever it is, calls are tried again
                    log.error("webhook_failed", error=type(error).__name__)
                    done = False
                if done:
                    failures = 0
                    await self._records.store.hints.wait(self._hint)
                else:
                    failures += 1
                    await asyncio.sleep(RETRY_S[min(failures, len(RETRY_S)) - 1])

    async def _post_all(self, session: aiohttp.ClientSession) -> bool:
        """Post what waits, oldest first; returns whether nothing is left to try again."""
        outbox = self._records.outbox
        done = True
        for delivery_id in await outbox.waiting(WEBHOOK_ROOM, sender=SentBy.WEBHOOK):
            try:
                delivery = await outbox.get(delivery_id)
            except BugError as error:  # told again each time; the others must not wait for it
                log.critical("delivery_unreadable", delivery=delivery_id, code=error.code)
                continue
            if await self._post(session, delivery_id, delivery.content):
                await outbox.delivered(delivery_id, "posted")
            else:
                done = False
        return done

    async def _post(
        self, session: aiohttp.ClientSession, delivery_id: str, content: Mapping[str, Any]
    ) -> bool:
        body = json.dumps(content, separators=(",", ":")).encode()
        timestamp_s = int(self._clock_s())
        headers = {
            "content-type": "application/json",
            "webhook-id": delivery_id,
            "webhook-timestamp": str(timestamp_s),
            "webhook-signature": signature(self._secret, delivery_id, timestamp_s, body),
        }
        try:
            async with session.post(
                self._url, data=body, headers=headers, allow_redirects=False
            ) as answer:
                if answer.status in _OK:
                    log.info("webhook_posted", delivery=delivery_id)
                    return True
                log.warning("webhook_refused", delivery=delivery_id, status=answer.status)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.warning("webhook_unreachable", delivery=delivery_id, error=type(error).__name__)
        return False
