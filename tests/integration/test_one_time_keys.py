"""One-time keys, after a kill between their upload and the save that follows it."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

from mautrix.crypto.account import OlmAccount
from mautrix.errors import MUnknown

from appservice.cryptographer import Cryptographer


class Homeserver:
    """Has keys under some ids already, and refuses others under the same."""

    mxid = "@fajma:clinic.test"
    device_id = "FAJMA"

    def __init__(self, taken: set[str]) -> None:
        self.taken = taken
        self.given: set[str] = set()

    async def upload_keys(
        self, one_time_keys: dict[str, Any] | None = None, device_keys: Any = None
    ) -> dict[str, int]:
        assert device_keys is None
        ids = set(one_time_keys or {})
        if ids & self.taken:
            raise MUnknown(400, f"One time key {min(ids & self.taken)} already exists. Old key: x")
        self.given |= ids
        return {}


async def test_ids_that_were_used_before_a_kill_are_left_behind() -> None:
    lost = OlmAccount()
    saved = OlmAccount.from_pickle(lost.pickle("x"), "x", shared=True)
    taken = set(lost.get_one_time_keys("@fajma:clinic.test", "FAJMA", 0))  # uploaded, never saved
    homeserver = Homeserver(taken)
    kept: list[OlmAccount] = []

    async def put_account(account: OlmAccount) -> None:
        kept.append(account)

    machine = Cryptographer.__new__(Cryptographer)
    machine.account = saved
    machine.client = homeserver  # type: ignore[assignment]
    machine.crypto_store = SimpleNamespace(put_account=put_account)
    machine.log = logging.getLogger("test")  # type: ignore[assignment]
    machine._share_keys_lock = asyncio.Lock()
    machine._last_key_share = -60.0
    await machine.share_keys(20)
    assert homeserver.given
    assert not homeserver.given & taken
    assert kept[-1] is saved
