"""Files of the console: our base configuration, and a lock on a directory."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Final, TextIO

from fajma.errors import UnavailableError

ALREADY_RUNNING: Final = "already_running"
"""Code of the error that says so."""


def base_file(name: str) -> str:
    """Text of a file of ``synapse-config/``, from the source tree or the installed package.

    Raises:
        FileNotFoundError: there is no such file; the installation is incomplete.
    """
    here = Path(__file__).resolve().parent
    installed = here / "_synapse_config"
    directory = installed if installed.is_dir() else here.parent / "synapse-config"
    return (directory / name).read_text(encoding="utf-8")


def only_here(directory: Path, work: str = "running") -> TextIO:
    """Hold a directory, for one kind of work, for this process alone.

    Returns:
        What to close to let it go.

    Raises:
        UnavailableError: ``already_running``, another process holds it.
    """
    lock = (directory / f"{work}.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise UnavailableError(
            f"another process runs in {directory}: stop it first", code=ALREADY_RUNNING
        ) from error
    return lock
