"""Files that the console reads and writes: our base configuration, and what only we may read."""

from __future__ import annotations

import fcntl
import os
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


def write_private(path: Path, content: str | bytes) -> None:
    """Write a file that only we may read (mode 0600), whole or not at all."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


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
