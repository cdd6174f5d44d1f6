"""Events that the homeserver sends by itself unless we put them off (MSC4140).

Synapse 1.163 puts off and cancels for anybody who knows the id of a delayed event; it keeps at most
100 for each user, sends those that are due at its start, and forgets one once it is sent. All of it
counts against ``rc_delayed_event_mgmt`` (one a second) unless an admin's override exempts the user.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote
from uuid import uuid4

from aiohttp import ClientError

from bots.alerts.client import SignedClient
from fajma.errors import UnavailableError
from fajma.events import ENCRYPTED

MAX_SCHEDULED: Final = 99
"""Synapse's default limit is 100; one place is for the next one, while the one before is held."""

_CLIENT: Final = "/_matrix/client"
_EVENTS: Final = f"{_CLIENT}/unstable/org.matrix.msc4140/delayed_events"
_CAPABILITY: Final = "org.matrix.msc4140.delayed_events"
_OK: Final = 200

_WITHIN_S: Final = 5.0
"""A request that hangs must not keep the events of other rooms from being put off."""


class DelayedEvents:
    """The delayed events of one account.

    Every method raises ``UnavailableError`` when the homeserver does not answer or refuses;
    ``delayed_events_limited`` when it wants fewer requests.
    """

    def __init__(self, client: SignedClient) -> None:
        self._client = client

    async def longest_s(self) -> float:
        """The longest delay that may be asked for; 0 where the homeserver knows none.

        Ask before the first ``schedule``: a homeserver that does not know delays sends at once.
        """
        answer = await self._ask("GET", f"{_CLIENT}/v3/capabilities")
        known = answer.get("capabilities")
        offered = known.get(_CAPABILITY) if isinstance(known, dict) else None
        longest_ms = offered.get("max_delay_ms") if isinstance(offered, dict) else None
        return longest_ms / 1000 if type(longest_ms) is int else 0.0

    async def schedule(self, room_id: str, content: Mapping[str, Any], *, delay_s: float) -> str:
        """Have an encrypted content sent later.

        Args:
            room_id: where.
            content: of the ``m.room.encrypted``.
            delay_s: how long from now, unless put off.

        Returns:
            The id of the delayed event.
        """
        path = f"{_CLIENT}/v3/rooms/{quote(room_id, safe='')}/send/{ENCRYPTED}/{uuid4()}"
        query = f"org.matrix.msc4140.delay={round(delay_s * 1000)}"
        answer = await self._ask("PUT", f"{path}?{query}", content)
        delay_id = answer.get("delay_id")
        if not isinstance(delay_id, str):
            raise _refused()
        return delay_id

    async def held(self) -> frozenset[str]:
        """The ids of all that were scheduled and are not sent yet."""
        answer = await self._ask("GET", _EVENTS)
        listed = answer.get("delayed_events")
        if not isinstance(listed, list):
            raise _refused()
        return frozenset(one["delay_id"] for one in listed if isinstance(one, dict))

    async def put_off(self, delay_id: str) -> bool:
        """Begin its delay anew; returns false when it is not held any more."""
        return await self._manage(delay_id, "restart")

    async def cancel(self, delay_id: str) -> bool:
        """Have it never sent; returns false when it is not held any more."""
        return await self._manage(delay_id, "cancel")

    async def _manage(self, delay_id: str, action: str) -> bool:
        path = f"{_EVENTS}/{quote(delay_id, safe='')}"
        answer = await self._ask("POST", path, {"action": action}, gone_is_known=True)
        return "errcode" not in answer

    async def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        gone_is_known: bool = False,
    ) -> dict[str, Any]:
        headers = {
            "Authorization": f"Bearer {self._client.access_token}",
            "Content-Type": "application/json",
        }
        data = None if body is None else json.dumps(dict(body))
        response = await self._client.send(method, path, data, headers, timeout=_WITHIN_S)
        try:
            answer = await response.json(content_type=None)
        except (ClientError, TimeoutError, OSError, ValueError) as error:
            raise _refused() from error
        if not isinstance(answer, dict):
            raise _refused()
        code = answer.get("errcode")
        if response.status == _OK or (gone_is_known and code == "M_NOT_FOUND"):
            return answer
        if code == "M_LIMIT_EXCEEDED":
            raise UnavailableError(
                "The homeserver limits delayed events; exempt the alert bot from its rate limits.",
                code="delayed_events_limited",
            )
        raise _refused()


def _refused() -> UnavailableError:
    return UnavailableError(
        "The homeserver does not do what delayed events need; look at its log.",
        code="delayed_events_refused",
    )
