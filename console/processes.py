"""Starting, watching and stopping the servers that the demo and the tests run.

A `Child` belongs to no event loop: it can be started under one and stopped under another. It
leads a session of its own, so that Ctrl-C in the terminal reaches only us and we stop the servers
in order; and the kernel ends it when we are killed ourselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

import aiohttp

from fajma.errors import UnavailableError

LOOPBACK: Final = "127.0.0.1"
"""Every server we start listens here and nowhere else."""

_PROBE_EVERY_S: Final = 0.05
_LOG_TAIL_BYTES: Final = 64 * 1024
_LOG_LINE_MAX: Final = 300
# A login shell of an ordinary Debian user does not search these.
_SYSTEM_DIRECTORIES: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_SERVERS_NEED: Final = frozenset(
    {"PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV"}
)
_TELLS_WHY: Final = re.compile(
    r"error|exception|fail|cannot|unable|refused|denied|in use|no such|invalid|missing",
    re.IGNORECASE,
)


def free_port() -> int:
    """A TCP port of the loopback interface that nobody uses at this moment, 1024 to 65535."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port


def require_port_free(port: int, what: str) -> None:
    """Refuse to go on when a port of the loopback interface cannot be had.

    Args:
        port: TCP port, 1 to 65535.
        what: the setting that chooses the port, as its user knows it, e.g. ``--homeserver-port``.

    Raises:
        UnavailableError: ``port_in_use``, or ``port_refused`` when we may not open it.
    """
    with socket.socket() as probe:
        # As the servers do, so that connections which are just closing do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UnavailableError(
                    f"port {port} is already in use: stop the program that holds it, "
                    f"or choose another port with {what}",
                    code="port_in_use",
                ) from error
            raise UnavailableError(
                f"port {port} cannot be opened ({error.strerror}): choose another port with {what}",
                code="port_refused",
            ) from error


def require_program(name: str, hint: str) -> Path:
    """Path of an installed program.

    Args:
        name: file name of the program, e.g. ``mosquitto``.
        hint: the Debian package that brings it.

    Raises:
        UnavailableError: ``program_missing``.
    """
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), *_SYSTEM_DIRECTORIES])
    found = shutil.which(name, path=places)
    if found is None:
        raise UnavailableError(
            f"the program {name} is missing: install it with `apt-get install {hint}`",
            code="program_missing",
        )
    return Path(found)


def environment_for_server() -> dict[str, str]:
    """What a server that is not ours gets to see of our environment: nothing that is meant for us.

    (Settings and secrets of FAJMA in variables; the measuring of our tests, which slows it down.)
    """
    return {key: value for key, value in os.environ.items() if key in _SERVERS_NEED}


def environment_without_proxies() -> dict[str, str]:
    """Our environment without proxy settings, for servers that talk to each other on loopback."""
    return {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}


async def http_ok(url: str) -> None:
    """Return once a GET of the URL answers 200."""
    timeout = aiohttp.ClientTimeout(total=5)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with session.get(url) as response:
                    if response.status == 200:  # noqa: PLR2004
                        return
            await asyncio.sleep(_PROBE_EVERY_S)


async def tcp_open(host: str, port: int) -> None:
    """Return once a TCP connection is accepted."""
    while True:
        try:
            _, writer = await asyncio.open_connection(host, port)
        except OSError:
            await asyncio.sleep(_PROBE_EVERY_S)
        else:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            return


class Child:
    """One server that we started. Make it with `start`."""

    def __init__(
        self, name: str, process: subprocess.Popen[bytes], log_path: Path, log_start: int
    ) -> None:
        self.name = name
        self.log_path = log_path
        self._process = process
        self._log_start = log_start

    @classmethod
    def start(
        cls, argv: Sequence[str], *, env: Mapping[str, str], log_path: Path, name: str
    ) -> Child:
        """Start a program; return at once, before it is ready.

        Call it from the main thread: the kernel ends the child when the thread that started it
        ends, not only when the process does.

        Args:
            argv: program and arguments; no shell reads them.
            env: the complete environment.
            log_path: its output is appended here; the file is made readable by us alone.
            name: what people call it, for messages.

        Raises:
            UnavailableError: ``program_missing`` or ``cannot_start``.
        """
        program = shutil.which(argv[0], path=env.get("PATH"))
        if program is None:
            raise UnavailableError(
                f"{name} cannot start: the program {argv[0]} is missing", code="program_missing"
            )
        command = [program, *argv[1:]]
        setpriv = shutil.which("setpriv")
        if setpriv is not None:
            # Not preexec_fn: Python code between fork and exec can deadlock beside threads.
            command = [setpriv, "--pdeathsig", "TERM", "--", *command]
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            log_start = os.fstat(log).st_size
            process = subprocess.Popen(
                command,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        except OSError as error:
            raise UnavailableError(
                f"{name} cannot start: {error.strerror}", code="cannot_start"
            ) from error
        finally:
            os.close(log)
        return cls(name, process, log_path, log_start)

    @property
    def pid(self) -> int:
        """Process id; also that of its process group."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, minus the signal number if a signal ended it, ``None`` while it runs."""
        return self._process.poll()

    async def wait(self) -> int:
        """Wait until it has ended; return its exit status."""
        await self._exited()
        return self._process.wait()

    async def ready(self, probe: Coroutine[object, object, object], timeout_s: float) -> None:
        """Wait until the server serves.

        Args:
            probe: ends when the server answers; it is cancelled if the child ends or time is up.
            timeout_s: seconds to wait at most.

        Raises:
            UnavailableError: ``child_died`` with the reason from its log, or ``not_ready``.
        """
        probing = asyncio.ensure_future(probe)
        death = asyncio.ensure_future(self._exited())
        try:
            await asyncio.wait(
                {probing, death}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            # Death first: another program might be the one that answered.
            if death.done():
                death.result()
                raise UnavailableError(
                    f"{self.name} ended at once ({self._why()}); its log is {self.log_path}",
                    code="child_died",
                )
            if not probing.done():
                raise UnavailableError(
                    f"{self.name} was not ready after {timeout_s:g} s ({self._why()}); "
                    f"its log is {self.log_path}",
                    code="not_ready",
                )
            probing.result()
        finally:
            probing.cancel()
            death.cancel()
            await asyncio.gather(probing, death, return_exceptions=True)

    async def serving(self, probe: Coroutine[object, object, object], timeout_s: float) -> Self:
        """The child once it serves; whatever keeps it from that, it is ended first.

        Args and errors as ``ready``.
        """
        try:
            await self.ready(probe, timeout_s)
        except BaseException:
            await self.stop()
            raise
        return self

    async def stop(self, timeout_s: float = 10.0) -> int:
        """End it: ask first, then kill it and all that is left of its process group.

        Args:
            timeout_s: seconds it gets to finish by itself.

        Returns:
            Its exit status, also if it had ended before.
        """
        if self._process.returncode is None:
            # Not reaped yet, so the number cannot belong to a stranger.
            os.kill(self.pid, signal.SIGTERM)
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(timeout_s):
                        await self._exited()
            finally:
                if self._process.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(self.pid, signal.SIGKILL)
        return await self.wait()

    async def _exited(self) -> None:
        """Wait for the end without reaping, so that the process id stays ours."""
        if self._process.returncode is not None:
            return
        descriptor = os.pidfd_open(self.pid)
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)

    def _why(self) -> str:
        """The line of this run's log that most likely tells the reason."""
        try:
            with self.log_path.open("rb") as log:
                size = os.fstat(log.fileno()).st_size
                # A rotated log is shorter than where this run began.
                start = self._log_start if size >= self._log_start else 0
                log.seek(max(start, size - _LOG_TAIL_BYTES))
                text = log.read().decode("utf-8", "replace")
        except OSError:
            return "it left no log"
        lines = [line for line in (_clean(raw) for raw in text.splitlines()) if line]
        telling = [line for line in lines if _TELLS_WHY.search(line)]
        return (telling or lines or ["it said nothing"])[-1]


def _clean(line: str) -> str:
    printable = "".join(char for char in line if char.isprintable())
    # Some programs draw a box of stars around their last words.
    return printable.strip(" *")[:_LOG_LINE_MAX]
