"""``fajma demo`` as a person meets it: in a terminal, with Ctrl-C, twice, with a port taken."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import io
import os
import pty
import re
import signal
import socket
import sqlite3
import struct
import sys
import tarfile
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import aiohttp
import psutil
import pytest

from console.clinic import Ports
from console.element import unpack
from console.processes import (
    LOOPBACK,
    environment_without_proxies,
    require_port_free,
)
from fajma.errors import InputError
from tests.e2e.ward import fajma, log_says

STARTED_WITHIN_S = 90.0
STOPPED_WITHIN_S = 30.0
DOCUMENTED = Path(__file__).parents[2] / "docs" / "people.md"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
CTRL_C = b"\x03"


def options(ports: Ports, directory: Path) -> list[str]:
    return [
        *("--directory", str(directory)),
        *("--homeserver-port", str(ports.homeserver), "--broker-port", str(ports.broker)),
        *("--appservice-port", str(ports.appservice), "--element-port", str(ports.element)),
    ]


def processes_in(directory: Path) -> list[psutil.Process]:
    """Living processes that were started with a file of this directory."""

    def belongs(process: psutil.Process) -> bool:
        try:
            return process.status() != psutil.STATUS_ZOMBIE and any(
                str(directory) in argument for argument in process.cmdline()
            )
        except psutil.NoSuchProcess:
            return False

    return [process for process in psutil.process_iter() if belongs(process)]


def rooms_of(directory: Path) -> set[str]:
    with sqlite3.connect(f"file:{directory / 'fajma.db'}?mode=ro", uri=True) as database:
        return {row[0] for row in database.execute("SELECT room_id FROM consultation")}


class Terminal:
    """A terminal of 80 columns in which ``fajma demo`` runs."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self.text = ""
        """Everything shown so far, without colours."""
        self._news = asyncio.Event()
        self._ended = False

    async def __aenter__(self) -> Self:
        self._terminal, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self._process = await asyncio.create_subprocess_exec(
            # So that Ctrl-C is a signal to it, as in a real terminal.
            *("setsid", "--ctty", sys.executable, "-m", "console", "demo", *self._arguments),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment_without_proxies() | {"TERM": "xterm", "LC_ALL": "C.UTF-8"},
        )
        os.close(theirs)
        os.set_blocking(self._terminal, False)
        asyncio.get_running_loop().add_reader(self._terminal, self._read)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        asyncio.get_running_loop().remove_reader(self._terminal)
        os.close(self._terminal)

    def _read(self) -> None:
        try:
            data = os.read(self._terminal, 65536)
        except OSError as error:
            assert error.errno == errno.EIO  # noqa: PT017 - the other side has closed
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._terminal)
        self.text += ESCAPES.sub("", data.decode(errors="replace"))
        self._news.set()

    async def shows(self, pattern: str, timeout_s: float) -> re.Match[str]:
        """Wait for a text; the demo's own words are the message when it does not come."""
        try:
            async with asyncio.timeout(timeout_s):
                while (found := re.search(pattern, self.text, re.MULTILINE)) is None:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pytest.fail(f"{pattern!r} was not shown within {timeout_s:g} s:\n{self.text}")
        return found

    async def until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Wait for something that happens as the terminal shows news."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def press(self, keys: bytes) -> None:
        os.write(self._terminal, keys)

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)

    async def ended(self) -> int:
        async with asyncio.timeout(STOPPED_WITHIN_S):
            return await self._process.wait()


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """What an Element Web release looks like from outside."""
    path = tmp_path / "element-v1.0.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in (
            ("element-v1.0.0/index.html", b"<title>Element</title>"),
            ("element-v1.0.0/config.json", b'{"brand": "theirs"}'),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


async def test_the_demo_is_used_by_hand_and_ctrl_c_stops_all_of_it(
    tmp_path: Path, release: Path
) -> None:
    directory = tmp_path / "demo"
    ports = Ports.free()
    arguments = [*options(ports, directory), "--broker", "mosquitto", "--every", "600"]
    async with Terminal(*arguments, "--element-web", str(release)) as terminal:
        await terminal.shows("by hand:", STARTED_WITHIN_S)
        assert f"http://127.0.0.1:{ports.homeserver}" in terminal.text
        people = accounts(terminal)
        assert {mxid.split(":")[0] for mxid in people} == {"@dr.awa", "@patient.a", "@patient.m"}
        for mxid, password in people.items():
            assert await can_log_in(ports.homeserver, mxid, password)

        async with aiohttp.ClientSession() as session:
            element = f"http://127.0.0.1:{ports.element}"
            async with session.get(f"{element}/") as answer:
                assert await answer.text() == "<title>Element</title>"
            async with session.get(f"{element}/config.json") as answer:
                config = await answer.json()
        assert config["default_server_config"]["m.homeserver"] == {
            "base_url": f"http://127.0.0.1:{ports.homeserver}",
            "server_name": "clinique.test",
        }
        assert config["default_theme"] == "custom-FAJMA"

        # One reading of each monitor, the next after ten minutes; then one by hand.
        for bed in (4, 7):
            await terminal.shows(rf"bed {bed}\s+monitor sends", STARTED_WITHIN_S)
            await terminal.shows(rf"bed {bed}\s+batch decrypted\s+1 readings", 15)
        log = directory / "fajma.log"
        mark = log.stat().st_size
        await paste(terminal)
        await log_says(log, "readings_committed", mark)
        code, counted = await fajma("readings", "count", "--config", f"{directory / 'fajma.toml'}")
        assert (code, counted.splitlines()[0]) == (0, "stored 3")

        started = processes_in(tmp_path)
        assert len(started) >= 6  # the demo itself, two servers, FAJMA, two monitors
        terminal.press(CTRL_C)
        assert await terminal.ended() == 0
        assert processes_in(tmp_path) == []
        assert "Traceback" not in terminal.text
    for port in (ports.homeserver, ports.broker, ports.appservice, ports.element):
        require_port_free(port, "")


@pytest.mark.slow
async def test_the_demo_resumes_with_the_same_accounts_and_rooms(tmp_path: Path) -> None:
    directory = tmp_path / "demo"
    arguments = [*options(Ports.free(), directory), "--broker", "mosquitto", "--every", "600"]
    async with Terminal(*arguments) as terminal:
        await terminal.shows("by hand:", STARTED_WITHIN_S)
        assert "No Element Web at hand" in terminal.text
        people = accounts(terminal)
        assert len(people) == 3
        for bed in (4, 7):
            await terminal.shows(rf"bed {bed}\s+monitor sends", STARTED_WITHIN_S)
        await paste(terminal)
        await terminal.shows(r"bed 4\s+state decrypted\s+FC 88 /min\s+SpO2 97 %\s+T° 36,9 °C", 30)
        terminal.press(CTRL_C)
        assert await terminal.ended() == 0
    rooms = rooms_of(directory)
    assert len(rooms) == 2

    async with Terminal(*arguments) as terminal:
        await terminal.shows("by hand:", STARTED_WITHIN_S)
        assert accounts(terminal) == people
        assert rooms_of(directory) == rooms
        await terminal.shows(r"bed 7\s+state decrypted", 30)
        # Killed without a word, it still leaves nothing behind.
        others = [one for one in processes_in(tmp_path) if one.pid != terminal.pid]
        assert len(others) >= 5
        terminal.kill()
        await terminal.ended()
        _, alive = await asyncio.to_thread(psutil.wait_procs, others, STOPPED_WITHIN_S)
        assert alive == []


@pytest.mark.slow
async def test_the_commands_of_the_documentation_work_and_a_demo_without_doctor_says_what_to_do(
    tmp_path: Path,
) -> None:
    arguments = [*options(Ports.free(), tmp_path / "demo"), "--broker", "mosquitto"]
    async with Terminal(*arguments) as terminal:
        await terminal.shows("fajma staff check", STARTED_WITHIN_S)
        (exports,) = re.findall(r"^export FAJMA_CONFIG=.*$", terminal.text, re.MULTILINE)
        # Nobody there has a phone to lose, nor keys that were reset, and not all can be reached.
        other_codes = {"check": 1, "lost-phone": 2, "trust": 2}
        for line in re.findall(r"^fajma \w+ .*$", DOCUMENTED.read_text("utf-8"), re.MULTILINE):
            code, said = await shell(f"{exports}\n{line}")
            assert code == other_codes.get(line.split()[2], 0), (line, said)
            assert "Traceback" not in said
        code, said = await shell(f"{exports}\nfajma staff leave dr.awa")
        assert code == 0, said
    code, output = await fajma("demo", *arguments)
    assert code == 2
    (line,) = [one for one in output.splitlines() if one.startswith("fajma: ")]
    assert "`make clean-demo`" in line
    assert "Traceback" not in output
    assert processes_in(tmp_path) == []


async def shell(lines: str) -> tuple[int, str]:
    """Lines pasted into a shell: exit status, and what they printed."""
    process = await asyncio.create_subprocess_shell(
        lines, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


def accounts(terminal: Terminal) -> dict[str, str]:
    """Password by user id, as shown."""
    return dict(re.findall(r"(@[a-z.]+:clinique\.test)\s+(\S+)", terminal.text))


async def paste(terminal: Terminal) -> None:
    """The line for sending a reading by hand, into a shell."""
    line = await terminal.shows(r"^.*mosquitto_pub .*$", 5)
    shell = await asyncio.create_subprocess_shell(line[0], stderr=asyncio.subprocess.PIPE)
    _, complaints = await shell.communicate()
    assert shell.returncode == 0, complaints


async def test_ctrl_c_while_it_starts_leaves_nothing_behind(tmp_path: Path) -> None:
    async with Terminal(*options(Ports.free(), tmp_path / "demo")) as terminal:
        await terminal.shows("Starting the homeserver", STARTED_WITHIN_S)
        await terminal.until(lambda: len(processes_in(tmp_path)) > 1, STARTED_WITHIN_S)
        terminal.press(CTRL_C)
        assert await terminal.ended() in (0, 130)
        assert processes_in(tmp_path) == []
        assert "Traceback" not in terminal.text


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that another program holds."""
    with socket.socket() as other:
        other.bind((LOOPBACK, 0))
        other.listen()
        yield other.getsockname()[1]


@pytest.mark.parametrize(
    "which",
    [
        "homeserver",
        *(
            pytest.param(other, marks=pytest.mark.slow)
            for other in ("broker", "appservice", "element")
        ),
    ],
)
async def test_a_port_in_use_is_one_clear_line(
    which: str, taken: int, tmp_path: Path, release: Path
) -> None:
    arguments = options(Ports.free(), tmp_path / "demo")
    arguments[arguments.index(f"--{which}-port") + 1] = str(taken)
    code, output = await fajma("demo", *arguments, "--element-web", str(release))
    assert code == 1
    said = [line for line in output.splitlines() if line.startswith("fajma: ")]
    assert len(said) == 1
    assert f"port {taken} is already in use" in said[0]
    assert f"--{which}-port" in said[0]
    assert "Traceback" not in output
    assert processes_in(tmp_path) == []


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = link
    info.size = 4 if kind == tarfile.REGTYPE else 0
    return info


def tarball(path: Path, *entries: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for one in entries:
            archive.addfile(one, io.BytesIO(b"evil"))
    return path


@pytest.mark.parametrize(
    "entries",
    [
        [entry("../evil/index.html")],
        [entry("element/../../evil/index.html")],
        [entry("element/link", tarfile.SYMTYPE, ".."), entry("element/link/evil.html")],
        [entry("index.html", tarfile.SYMTYPE, "/etc/hostname")],
        [entry("index.html", tarfile.FIFOTYPE)],
        [entry("readme.txt")],
        [],
    ],
)
def test_a_tarball_that_writes_elsewhere_or_is_no_release_is_refused(
    entries: list[tarfile.TarInfo], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    given = tarball(tmp_path / "given.tar.gz", *entries)
    with pytest.raises(InputError) as refusal:
        unpack(given, work / "element")
    assert refusal.value.code == "no_element"
    outside = {path for path in tmp_path.rglob("*") if work not in (path, *path.parents)}
    assert outside == {given}
    assert [path for path in work.rglob("*") if path.is_symlink()] == []


async def test_a_malicious_tarball_ends_the_demo_with_one_line(tmp_path: Path) -> None:
    evil = tmp_path / "outside" / "evil.html"
    given = tarball(tmp_path / "given.tar.gz", entry(str(evil)))
    arguments = options(Ports.free(), tmp_path / "demo")
    code, output = await fajma("demo", *arguments, "--element-web", str(given))
    assert code == 2
    assert output.strip().splitlines() == [f"fajma: {given} wants to write elsewhere"]
    assert not evil.exists()


async def test_what_is_no_tarball_is_named(tmp_path: Path) -> None:
    given = tmp_path / "element.tar.gz"
    given.write_text("not a tarball")
    with pytest.raises(InputError, match="cannot be unpacked"):
        unpack(given, tmp_path / "element")


async def can_log_in(port: int, mxid: str, password: str) -> bool:
    body = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": mxid},
        "password": password,
    }
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://127.0.0.1:{port}/_matrix/client/v3/login", json=body) as answer,
    ):
        return answer.status == 200
