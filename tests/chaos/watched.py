"""The `fajma` command with an ingest that tells its phases: ``python -m tests.chaos.watched run``.

Everything runs as in production; ``Ingest`` and ``Subscriber`` are replaced by classes that note
where they are, before anything else imports them.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mautrix.util.async_db import Connection

from bridges.mqtt_vitals import ingest, subscriber
from bridges.mqtt_vitals.ingest import Message, Outcome, Settlement
from tests.chaos.phases import Marks, Phase


def marks_of(config_path: Path, number: int) -> Marks:
    """The marks of one ingest of a site."""
    return Marks(config_path.with_name(f"phase-{number}"))


def _our_marks() -> Marks:
    arguments = dict(zip(sys.argv, sys.argv[1:], strict=False))
    return marks_of(Path(arguments["--config"]), int(arguments.get("--number", 1)))


class WatchedIngest(ingest.Ingest):
    """Notes when readings are written, and when they are committed."""

    marks: Marks

    async def commit(self, messages: Sequence[Message]) -> Outcome:
        outcome = await super().commit(messages)
        self.marks.note(Phase.COMMITTED)
        return outcome

    async def _settle(self, connection: Connection, batch: Any) -> tuple[Settlement, ...]:
        settled = await super()._settle(connection, batch)
        self.marks.note(Phase.WRITTEN)
        return settled


class WatchedSubscriber(subscriber.Subscriber):
    """Notes when readings are taken, and who is told of their commit."""

    marks: Marks

    def _on_message(self, client: Any, userdata: Any, message: Any) -> None:
        super()._on_message(client, userdata, message)
        taken = self._waiting[-1]
        if taken.topic.endswith("/status"):
            return
        self._waiting[-1] = taken._replace(acknowledge=lambda: self._acknowledge(taken))
        if self.marks.here is Phase.IDLE:
            self.marks.note(Phase.RECEIVED)

    async def _commit(self, batch: Sequence[Message]) -> Outcome:
        self.marks.note(Phase.RECEIVED)
        outcome = await super()._commit(batch)
        # What follows goes on without a pause up to where this is called.
        asyncio.get_running_loop().call_soon(self._rest)
        return outcome

    def _acknowledge(self, message: Message) -> None:
        message.acknowledge()
        self._told(Phase.ACKNOWLEDGED)

    def _answer(self, settlement: Settlement) -> None:
        super()._answer(settlement)
        self._told(Phase.ANSWERED)

    def _told(self, phase: Phase) -> None:
        if self._client is not None and self.marks.is_wanted(phase):
            self._client.loop_write()  # which otherwise happens later
        self.marks.note(phase)

    def _rest(self) -> None:
        self.marks.note(Phase.RECEIVED if self._waiting else Phase.IDLE)


def main() -> None:
    """The command, watched."""
    WatchedIngest.marks = WatchedSubscriber.marks = _our_marks()
    ingest.Ingest = WatchedIngest  # type: ignore[misc]
    subscriber.Subscriber = WatchedSubscriber  # type: ignore[misc]
    # It imports what was replaced.
    from console.main import main as command  # noqa: PLC0415

    command()


if __name__ == "__main__":
    main()
