"""What an ingest is doing, told to whoever is about to kill something.

A watched ingest writes its phase into a file at each step, so that the phase it died in can be read
afterwards. When asked to hold at a phase it stops there (SIGSTOP, as a whole) until it is killed or
told to go on: so the rare phases are hit too.
"""

from __future__ import annotations

import os
import signal
from enum import StrEnum
from pathlib import Path
from typing import Final


class Phase(StrEnum):
    """Where the readings are that an ingest has in hand."""

    IDLE = "idle"
    """It has none."""
    RECEIVED = "received"
    """Taken from the broker; the database knows nothing of them."""
    WRITTEN = "written"
    """In the transaction, which is not committed."""
    COMMITTED = "committed"
    """Committed; nobody has been told."""
    ACKNOWLEDGED = "acknowledged"
    """The broker has been told, the monitor has not."""
    ANSWERED = "answered"
    """The answer to the monitor is on its way."""


ALL: Final = tuple(Phase)
WIDTH: Final = 16


class Marks:
    """The two files over which a watched ingest and the campaign talk.

    Args:
        path: holds the phase, padded; beside it the phase to hold at, if there is one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hold = path.with_suffix(".hold")
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._here = Phase.IDLE

    # --- the ingest's side -----------------------------------------------------------------------

    @property
    def here(self) -> Phase:
        """The phase noted last by this process."""
        return self._here

    def note(self, phase: Phase) -> None:
        """This is where we are; stop here if somebody wants that."""
        self._here = phase
        os.pwrite(self._file, phase.ljust(WIDTH).encode(), 0)
        if self.is_wanted(phase):
            self._hold.unlink()
            os.kill(os.getpid(), signal.SIGSTOP)

    def is_wanted(self, phase: Phase) -> bool:
        """Whether we are to hold at this phase."""
        return self._hold.exists() and self._hold.read_text(encoding="ascii") == phase

    # --- the campaign's side ---------------------------------------------------------------------

    def noted(self) -> Phase:
        """Where the ingest is, or where it died."""
        return Phase(os.pread(self._file, WIDTH, 0).decode().strip() or Phase.IDLE)

    def hold_at(self, phase: Phase) -> None:
        """Ask the ingest to stop when it comes to this phase."""
        new = self._hold.with_suffix(".new")
        new.write_text(phase, encoding="ascii")
        new.replace(self._hold)

    def hold_nowhere(self) -> None:
        """Ask for nothing any more."""
        self._hold.unlink(missing_ok=True)
