"""The webhook against real receivers: signed, repeated, without a word about the patient."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import tty
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from bots.alerts import webhook
from bots.alerts.webhook import Webhook, call, read_key, signature
from console.processes import free_port
from fajma.errors import InputError
from fajma.store import Records
from fajma.store.alarms import SentBy
from fajma.tasks import end
from fajma.vitals import PatientKey

NOW = datetime(2026, 11, 22, 14, 0, tzinfo=UTC)
SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "gsm_modem.py"


class Receiver:
    """A hospital's server, which answers as it is told to."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.heard: list[tuple[dict[str, str], bytes]] = []
        self.came = asyncio.Event()
        self.url = ""

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_post("/", self._take)
        runner = web.AppRunner(app)
        await runner.setup()
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        self.url = f"http://127.0.0.1:{port}/"
        yield
        await runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.heard.append((headers, await request.read()))
        self.came.set()
        return web.Response(status=self.answers.pop(0) if self.answers else 204)

    async def hears(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.heard) < count:
                self.came.clear()
                await self.came.wait()


@contextlib.asynccontextmanager
async def posting(records: Records, url: str) -> AsyncIterator[None]:
    task = asyncio.create_task(Webhook(url, read_key(SECRET), records).run())
    try:
        yield
    finally:
        await end([task])


async def promise(records: Records, delivery_id: str, patient: PatientKey) -> None:
    async with records.store.transaction() as connection:
        await records.outbox.add(
            connection, call(delivery_id, patient, ward="medecine-2", priority="high", now=NOW)
        )
    records.store.hints.notify("outbox")


async def waits(records: Records) -> list[str]:
    return await records.outbox.waiting("", sender=SentBy.WEBHOOK)


@pytest.fixture
async def patient(records: Records) -> PatientKey:
    kept = await records.patients.add(number="417", initials="A.D.", bed="4", account=None)
    return kept.key


def test_the_signature_is_that_of_the_specification() -> None:
    """The example of the Standard Webhooks specification."""
    key = read_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'

    assert signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == (
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_c2hvcnQ=", "whsec_!" * 9, "k" * 44])
def test_a_secret_that_protects_nothing_is_refused(secret: str) -> None:
    with pytest.raises(InputError) as refused:
        read_key(secret)

    assert refused.value.code == "webhook_secret_invalid"


async def test_a_call_names_the_ward_and_nothing_of_the_patient(
    records: Records, patient: PatientKey
) -> None:
    receiver = Receiver()
    async with receiver.listening(), posting(records, receiver.url):
        await promise(records, "d1", patient)
        await receiver.hears(1)

    headers, body = receiver.heard[0]
    assert json.loads(body) == {
        "type": "alarm.unanswered",
        "timestamp": "2026-11-22T14:00:00+00:00",
        "data": {"ward": "medecine-2", "priority": "high"},
    }
    stamp = int(headers["webhook-timestamp"])
    assert headers["webhook-signature"] == signature(read_key(SECRET), "d1", stamp, body)
    assert patient not in body.decode() + str(headers)


async def test_a_call_is_repeated_under_its_id_until_it_is_taken(
    records: Records, patient: PatientKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "RETRY_S", (0.01,))
    receiver = Receiver()
    receiver.answers = [500, 302, 429]
    async with receiver.listening(), posting(records, receiver.url):
        await promise(records, "d1", patient)
        await receiver.hears(4)
        await promise(records, "d2", patient)
        await receiver.hears(5)

    assert [headers["webhook-id"] for headers, _ in receiver.heard] == ["d1"] * 4 + ["d2"]
    assert "d1" not in await waits(records)


async def test_a_receiver_that_is_away_gets_the_call_when_it_is_back(
    records: Records, patient: PatientKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "RETRY_S", (0.01,))
    receiver = Receiver()
    async with receiver.listening():
        url = receiver.url
    async with posting(records, url):
        await promise(records, "d1", patient)
        assert await waits(records) == ["d1"]
        app = web.Application()
        app.router.add_post("/", receiver._take)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", int(url.split(":")[-1].strip("/"))).start()
        await receiver.hears(1)
        await runner.cleanup()

    assert len(receiver.heard) == 1


async def test_who_takes_care_calls_the_webhook_off(records: Records, patient: PatientKey) -> None:
    await promise(records, "d1", patient)
    async with records.store.transaction() as connection:
        await records.outbox.call_off(connection, patient, SentBy.WEBHOOK)

    assert await waits(records) == []


async def test_the_example_sends_an_sms_for_what_is_signed_and_for_nothing_else(
    records: Records, patient: PatientKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "RETRY_S", (0.05,))
    master, slave = pty.openpty()
    tty.setraw(slave)
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    port = free_port()
    process = subprocess.Popen(  # noqa: ASYNC220 - it only starts
        [sys.executable, str(EXAMPLE)],
        env={
            **os.environ,
            "WEBHOOK_SECRET_FILE": str(secret),
            "MODEM": os.ttyname(slave),
            "SMS_TO": "+221770000000",
            "PORT": str(port),
        },
    )
    heard = bytearray()

    def modem() -> None:
        """Answers as a modem does."""
        heard.extend(os.read(master, 1024))
        if heard.endswith(b"\x1a"):
            os.write(master, b"\r\n+CMGS: 7\r\n\r\nOK\r\n")
        elif heard.rstrip().endswith(b'"+221770000000"'):
            os.write(master, b"\r\n> ")
        elif heard.rstrip().endswith(b"AT+CMGF=1"):
            os.write(master, b"\r\nOK\r\n")

    loop = asyncio.get_running_loop()
    loop.add_reader(master, modem)
    try:
        async with posting(records, f"http://127.0.0.1:{port}/"):
            await promise(records, "d1", patient)
            async with asyncio.timeout(30):
                while await waits(records):
                    await records.store.hints.wait(asyncio.Event(), 0.1)
        assert b"service medecine-2, priorite haute" in heard
        sent = bytes(heard)
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                f"http://127.0.0.1:{port}/", data=b"{}", headers={"webhook-signature": "v1,AA=="}
            ) as answer,
        ):
            assert answer.status == 401
        assert bytes(heard) == sent
    finally:
        loop.remove_reader(master)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=10)
        os.close(master)
        os.close(slave)
