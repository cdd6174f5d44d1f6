"""Delayed events against a real Synapse: what it holds, puts off, sends and forgets."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import nio
import pytest

from bots.alerts.client import SignedClient
from bots.alerts.delayed import MAX_SCHEDULED, DelayedEvents
from console.synapse import Synapse
from fajma.errors import UnavailableError

PATIENCE_S = 20
CONTENT = {"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "x"}


@pytest.fixture
async def client(homeserver: Synapse, tmp_path: Path) -> AsyncIterator[SignedClient]:
    """A bot's client, as little limited as the alert bot."""
    localpart, password = f"bot-{secrets.token_hex(4)}", secrets.token_urlsafe(12)
    mxid = await homeserver.register(localpart, password)
    await homeserver.exempt_from_rate_limits(mxid)
    client = SignedClient(homeserver.base_url, mxid, tmp_path / "bot")
    await client.start_session(password)
    yield client
    await client.close()


@pytest.fixture
async def room_id(client: SignedClient) -> str:
    created = await client.room_create()
    assert isinstance(created, nio.RoomCreateResponse)
    room_id: str = created.room_id
    return room_id


async def until_sent(events: DelayedEvents, delay_id: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while delay_id in await events.held():  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.05)


async def encrypted_events(client: SignedClient, room_id: str) -> list[str]:
    answer = await client.room_messages(room_id, limit=50)
    assert isinstance(answer, nio.RoomMessagesResponse)
    return [
        one.source["content"]["ciphertext"]
        for one in answer.chunk
        if one.source["type"] == "m.room.encrypted"
    ]


async def test_what_is_put_off_is_not_sent_and_once_sent_it_is_gone(
    client: SignedClient, room_id: str
) -> None:
    events = DelayedEvents(client)
    assert await events.longest_s() == 24 * 3600
    delay_id = await events.schedule(room_id, CONTENT, delay_s=1)
    for _ in range(10):
        await asyncio.sleep(0.2)  # time itself is the subject
        assert await events.put_off(delay_id)
    assert await encrypted_events(client, room_id) == []
    await until_sent(events, delay_id)
    async with asyncio.timeout(PATIENCE_S):
        while await encrypted_events(client, room_id) != ["x"]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert not await events.put_off(delay_id)
    assert not await events.cancel(delay_id)


async def test_what_is_cancelled_is_gone_and_one_more_than_the_limit_is_refused(
    client: SignedClient, room_id: str
) -> None:
    events = DelayedEvents(client)
    delays = [
        await events.schedule(room_id, CONTENT, delay_s=3600) for _ in range(MAX_SCHEDULED + 1)
    ]
    assert await events.held() == set(delays)
    with pytest.raises(UnavailableError) as refused:
        await events.schedule(room_id, CONTENT, delay_s=3600)
    assert refused.value.code == "delayed_events_limited"
    # Far more in a second than Synapse allows whom nobody exempted.
    assert all([await events.put_off(one) for one in delays])
    assert all([await events.cancel(one) for one in delays])
    assert await events.held() == frozenset()
