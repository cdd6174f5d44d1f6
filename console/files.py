"""Files of the console: our base configuration, and a lock on a directory."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import TextIO

from fajma.errors import UnavailableError


def base_file(name: str) -> str:
    """Text of a file of ``synapse-config/``, from the source tree or the installed package.

    Raises:
        FileNotFoundError: there is no such file; the installation is incomplete.
    """
    here = Path(__file__).resolve().parent
    installed = here / "_synapse_config"
    directory = installed if installed.is_dir() else here.parent / "synapse-config"
    return (directory / name).read_text(encoding="utf-8")


def only_here(directory: Path) -> TextIO:
    """Hold a directory for this process alone; close what is returned to let it go.

    Raises:
        UnavailableError: another process holds it.
    """
    lock = (directory / "running.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise UnavailableError(
            f"another process runs in {directory}: stop it first", code="already_running"
        ) from error
    return lock
