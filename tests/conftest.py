"""Real servers for the tests. Each is started once, by plain (not asyncio) fixtures."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import TypeVar

import asyncpg
import psutil
import pytest

from console.mosquitto import Mosquitto
from console.processes import Child, free_port
from console.synapse import Synapse, SynapseSite
from fajma.errors import UnavailableError

T = TypeVar("T")


def run(coroutine: Coroutine[object, object, T]) -> T:
    """Run to the end in a loop of its own, leaving pytest-asyncio's alone."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()


@pytest.fixture(scope="session")
def homeserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Synapse]:
    """A started Synapse; our application service may listen at `homeserver.site.appservice_url`."""
    site = SynapseSite(
        directory=tmp_path_factory.mktemp("synapse"),
        server_name="clinic.test",
        port=free_port(),
        appservice_url=f"http://127.0.0.1:{free_port()}",
    )
    synapse = Synapse(site)
    run(synapse.start())
    yield synapse
    run(synapse.stop())


@pytest.fixture(scope="session")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    """A started broker with its certificate authority."""
    broker = Mosquitto(tmp_path_factory.mktemp("mosquitto"), free_port())
    run(broker.start())
    yield broker
    run(broker.stop())


class Postgres:
    """A database server on a unix socket that only its own user (and root) can reach."""

    def __init__(self, directory: Path) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        if not found:
            raise UnavailableError(
                "PostgreSQL is missing: install it with `apt-get install postgresql`",
                code="program_missing",
            )
        self._bin = found[-1]
        self.directory = directory
        self._child: Child | None = None
        self._as_user: list[str] = []
        if os.geteuid() == 0:  # PostgreSQL refuses to be root
            account = pwd.getpwnam("postgres")
            os.chown(directory, account.pw_uid, account.pw_gid)
            self._as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]

    def url(self, database: str) -> str:
        return f"postgres://fajma@/{database}?host={self.directory}"

    def start(self) -> None:
        run(self.launch())

    def _create(self, data: Path, env: dict[str, str]) -> None:
        subprocess.run(
            [*self._as_user, str(self._bin / "initdb"), "--auth=trust", "--username=fajma",
             "--encoding=UTF8", f"--pgdata={data}"],
            check=True, env=env, cwd=self.directory, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    async def launch(self) -> None:
        """Start, with what is there or anew."""
        data = self.directory / "data"
        log_path = self.directory / "postgres.log"
        env = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
        if not data.exists():
            self._create(data, env)
        # A change of user clears the signal that Child asks for: ask again.
        user = [*self._as_user, "--pdeathsig=INT"] if self._as_user else []
        self._child = Child.start(
            [*user, str(self._bin / "postgres"), f"-D{data}", f"-k{self.directory}",
             "-clisten_addresses="],
            env=env, log_path=log_path, name="PostgreSQL",
        )  # fmt: skip
        await self._child.ready(self._answers(), 30)

    def stop(self) -> None:
        if self._child is not None:
            os.kill(self._child.pid, signal.SIGINT)  # fast shutdown: waits for no client
            run(self._child.wait())

    async def kill(self) -> None:
        """SIGKILL for all of its processes at once, as far as that goes."""
        if self._child is not None:
            main = psutil.Process(self._child.pid)
            for process in (main, *main.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            await self._child.wait()
            self._child = None

    async def execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.url("postgres"))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def _answers(self) -> None:
        while True:
            with contextlib.suppress(OSError, asyncpg.CannotConnectNowError):
                return await self.execute("SELECT 1")
            await asyncio.sleep(0.05)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A started PostgreSQL; not under pytest's own directory, which another user cannot enter."""
    directory = Path(tempfile.mkdtemp(prefix="fajma-pg-"))
    server = Postgres(directory)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory)


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """URL of a fresh, empty database."""
    name = f"t_{secrets.token_hex(8)}"
    run(postgres.execute(f"CREATE DATABASE {name} TEMPLATE template0"))
    yield postgres.url(name)
    run(postgres.execute(f"DROP DATABASE {name} WITH (FORCE)"))
