"""A doctor's real browser for tests: matrix-js-sdk in headless Chromium, steered from Python.

The doctor excludes unsigned devices (``OnlySignedDevicesIsolationMode``), has encrypted state
events on, accepts every invitation, and reports each event it decrypts and each one it cannot::

    async with BrowserDoctor(homeserver.base_url, "doctor", password) as doctor:
        await doctor.ready()
        alarm = await doctor.wait_for(lambda event: "com.fajma.alarm" in event.content)

It is more forgiving than Element in two ways, where matrix-js-sdk 43 shows an event only after a
reload: an encrypted state whose key arrives late, and an event that overtakes the news that its
sender's device is signed (a race for whoever has just joined). ``failures`` keeps what failed
first; a test that wants Element's strictness asserts that it is empty.

The account must be fresh: an account that already has a cross-signing identity is refused, since
the browser does not hold its keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from fajma.errors import BugError, InputError, UnavailableError

T = TypeVar("T")

FOLDER: Final = Path(__file__).resolve().parent
LOCK: Final = FOLDER / "package-lock.json"
INSTALLED: Final = FOLDER / "node_modules" / ".package-lock.json"  # npm writes it last

INSTALL_TIMEOUT_S: Final = 300.0
READY_TIMEOUT_S: Final = 60.0
ORDER_TIMEOUT_S: Final = 30.0
CLOSE_TIMEOUT_S: Final = 10.0
LINE_LIMIT_BYTES: Final = 4 * 1024 * 1024
"""An event is at most 64 KiB, but escaping can multiply that."""


@dataclass(frozen=True, slots=True)
class SeenEvent:
    """One room event as the doctor's client sees it, decrypted.

    Attributes:
        room_id: the room.
        event_id: the event; each is reported once.
        type: the inner type when the event was encrypted.
        state_key: the inner state key, or None for a message.
        sender: Matrix id of the sender.
        content: the inner content.
        origin_server_ts: Unix milliseconds, by the sender's homeserver.
        encrypted: whether it was encrypted.
        shield_colour: ``NONE``, ``GREY`` or ``RED`` as Element would show it; None if in clear.
        shield_reason: why there is a shield, e.g. ``UNSIGNED_DEVICE``, or None.
    """

    room_id: str
    event_id: str
    type: str
    state_key: str | None
    sender: str
    content: Mapping[str, Any]
    origin_server_ts: int
    encrypted: bool
    shield_colour: str | None
    shield_reason: str | None


@dataclass(frozen=True, slots=True)
class Failure:
    """An event that the doctor's client could not or would not decrypt.

    Attributes:
        room_id: the room.
        event_id: the event; it becomes a ``SeenEvent`` too if it can be decrypted later.
        state_key: the outer state key (``type:key``), or None for a message.
        sender: Matrix id of the sender.
        reason: matrix-js-sdk's ``DecryptionFailureCode``, e.g. ``UNSIGNED_SENDER_DEVICE``, or
            ``STATE_KEY_MISMATCH`` when the outer state key contradicts the encrypted one.
    """

    room_id: str
    event_id: str
    state_key: str | None
    sender: str
    reason: str


def _program(name: str, hint: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise UnavailableError(
            f"The program {name} is missing: install it with `apt-get install {hint}`.",
            code="program_missing",
        )
    return found


def _is_installed() -> bool:
    return INSTALLED.exists() and INSTALLED.stat().st_mtime >= LOCK.stat().st_mtime


def install_packages() -> None:
    """Installs the locked npm packages beside this file, unless they are there already.

    Safe to call from several processes at once: the first one installs, the others wait.

    Raises:
        UnavailableError: npm is missing, or it could not install the packages.
    """
    if _is_installed():
        return
    npm = _program("npm", "npm")
    with LOCK.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_installed():
            return
        done = subprocess.run(
            [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"],
            cwd=FOLDER,
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            reason = done.stderr.strip().splitlines()[-8:]
            raise UnavailableError(
                "npm could not install the browser client's packages: " + " / ".join(reason),
                code="npm_failed",
            )


@dataclass(frozen=True, slots=True)
class CallState:
    """What became of a call.

    Attributes:
        room_id: where it is.
        state: matrix-js-sdk's ``CallState``: ``ringing``, ``connected``, ``ended``, ...
        reason: why it ended, e.g. ``user_hangup``; else None.
    """

    room_id: str
    state: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class Media:
    """How a call's media travels.

    Attributes:
        sent: bytes by kind (``audio``, ``video``).
        received: the same, from the other side.
        local: type of our own candidate of the pair that is used: ``relay``, ``host``, ...
        remote: the other side's.
        codecs: in use, e.g. ``audio/opus``.
    """

    sent: Mapping[str, int]
    received: Mapping[str, int]
    local: str
    remote: str
    codecs: Sequence[str]


class BrowserDoctor:
    """One doctor signed in on one fresh browser; use it as an async context manager.

    Args:
        homeserver_url: client-server base URL, e.g. ``http://127.0.0.1:8008``.
        user: localpart or full Matrix id of a fresh account.
        password: its password.
        relay_only: whether its calls go through the relay, whatever else would work.
        cross_sign: False leaves the device unsigned, and not excluding others, to play the sender
            whom a signed doctor must refuse.

    Attributes:
        user_id: Matrix id, known once ready.
        device_id: the browser's device, known once ready.
    """

    def __init__(
        self,
        homeserver_url: str,
        user: str,
        password: str,
        *,
        cross_sign: bool = True,
        relay_only: bool = False,
    ) -> None:
        self._settings = {
            "homeserver_url": homeserver_url,
            "user": user,
            "password": password,
            "cross_sign": cross_sign,
            "relay_only": relay_only,
        }
        self.user_id = ""
        self.device_id = ""
        self._events: list[SeenEvent] = []
        self._failures: list[Failure] = []
        self._calls: list[CallState] = []
        self._is_ready = False
        self._fatal = ""
        self._has_ended = False
        self._replies: deque[Mapping[str, Any]] = deque()
        self._complaints: deque[str] = deque(maxlen=20)
        self._news = asyncio.Condition()
        self._one_order = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._readers: list[asyncio.Task[None]] = []

    @property
    def events(self) -> Sequence[SeenEvent]:
        """Everything decrypted or received in clear so far, in the order of arrival."""
        return tuple(self._events)

    @property
    def failures(self) -> Sequence[Failure]:
        """Every event that could not be decrypted so far, in the order of arrival."""
        return tuple(self._failures)

    async def __aenter__(self) -> Self:
        """Starts the browser; does not wait until it is signed in, so that several start at once.

        Raises:
            UnavailableError: node, npm or Chromium is missing.
        """
        node = _program("node", "nodejs")
        chromium = _program(os.environ.get("CHROMIUM") or "/usr/bin/chromium", "chromium")
        await asyncio.to_thread(install_packages)
        process = await asyncio.create_subprocess_exec(
            node,
            str(FOLDER / "doctor.mjs"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "CHROMIUM": chromium},
            limit=LINE_LIMIT_BYTES,
            cwd=FOLDER,
            start_new_session=True,  # Ctrl-C reaches us alone, and we close it in order
        )
        self._process = process
        self._readers = [
            asyncio.create_task(self._read_reports(process)),
            asyncio.create_task(self._read_complaints(process)),
        ]
        await self._write(json.dumps(self._settings))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the browser; nothing it started is left."""
        process = self._process
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), CLOSE_TIMEOUT_S)
        except TimeoutError:
            process.kill()  # Chromium ends by itself when its pipe to node closes
            await process.wait()
        await asyncio.gather(*self._readers)

    async def ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Waits until the doctor is signed in, cross-signed and has finished the first sync.

        Raises:
            UnavailableError: the browser could not sign in; the message says why.
            TimeoutError: not ready in time.
        """
        await self._until(lambda: self._is_ready, timeout_s, "the browser to be ready")

    async def wait_for(
        self, predicate: Callable[[SeenEvent], bool], timeout_s: float = 20.0
    ) -> SeenEvent:
        """Returns the first event, already seen or yet to come, for which ``predicate`` holds.

        Raises:
            TimeoutError: none came in time; the message tells the types seen, never a content.
            UnavailableError: the browser ended.
        """
        return await self._first(self._events, predicate, timeout_s, "a matching event")

    async def wait_for_failure(
        self, predicate: Callable[[Failure], bool], timeout_s: float = 20.0
    ) -> Failure:
        """Returns the first failure to decrypt, past or yet to come, for which it holds.

        Raises:
            TimeoutError: none came in time.
            UnavailableError: the browser ended.
        """
        return await self._first(self._failures, predicate, timeout_s, "a matching failure")

    async def joined(self, room_id: str, user_id: str | None = None) -> None:
        """Waits until this doctor, or the user given, is seen to have joined the room."""
        who = user_id or self.user_id
        await self.wait_for(
            lambda event: (
                event.room_id == room_id
                and event.type == "m.room.member"
                and event.state_key == who
                and event.content.get("membership") == "join"
            )
        )

    async def create_room(self, invite: Sequence[str] = ()) -> str:
        """Creates a private room with encrypted messages and encrypted state; returns its id."""
        encryption = {
            "algorithm": "m.megolm.v1.aes-sha2",
            "io.element.msc4362.encrypt_state_events": True,
        }
        options = {
            "preset": "private_chat",
            "invite": list(invite),
            "initial_state": [
                {"type": "m.room.encryption", "state_key": "", "content": encryption}
            ],
        }
        done = await self._order(f"create {json.dumps(options)}")
        return str(done["room_id"])

    async def send(
        self, room_id: str, kind: str, content: Mapping[str, Any], state_key: str | None = None
    ) -> str:
        """Sends an event, a state event if ``state_key`` is given; returns its event id.

        The browser encrypts it where the room says so.

        Raises:
            InputError: the client or the homeserver refused it.
        """
        event: dict[str, Any] = {"room_id": room_id, "type": kind, "content": content}
        if state_key is not None:
            event["state_key"] = state_key
        done = await self._order(f"send {json.dumps(event)}")
        return str(done["event_id"])

    async def say(self, room_id: str, text: str) -> str:
        """Sends a text message, as a doctor types one; returns its event id."""
        return await self.send(room_id, "m.room.message", {"msgtype": "m.text", "body": text})

    async def call(self, room_id: str, *, video: bool = False) -> None:
        """Calls who else is in the room, as Element's button does for two people."""
        await self._order(f"call {json.dumps({'room_id': room_id, 'video': video})}")

    async def answer(self, room_id: str) -> None:
        """Takes the call that rings there."""
        await self._order(f"answer {json.dumps({'room_id': room_id})}")

    async def hang_up(self, room_id: str) -> None:
        """Ends the call there."""
        await self._order(f"hangUp {json.dumps({'room_id': room_id})}")

    async def media(self, room_id: str, *, at_least_bytes: int) -> Media:
        """Waits until so much has been sent and received of each kind of media.

        Raises:
            TimeoutError: it did not flow in time.
        """
        asked = {"room_id": room_id, "bytes": at_least_bytes}
        return Media(**await self._order(f"media {json.dumps(asked)}"))

    async def call_is(self, room_id: str, state: str, timeout_s: float = 30.0) -> CallState:
        """Waits until a call in the room is, or was, in a state."""
        return await self._first(
            self._calls,
            lambda one: (one.room_id, one.state) == (room_id, state),
            timeout_s,
            f"a call that is {state}",
        )

    async def screenshot(self, path: Path) -> None:
        """Writes a PNG of the doctor's page.

        Args:
            path: absolute path of the file, or relative to this folder.
        """
        await self._order(f"screenshot {path}")

    async def _order(self, line: str) -> Mapping[str, Any]:
        async with self._one_order:
            await self.ready()
            await self._write(line)
            await self._until(lambda: bool(self._replies), ORDER_TIMEOUT_S, "an answer")
            reply = self._replies.popleft()
        if "refused" in reply:
            raise InputError(f"The browser refused: {reply['refused']}", code="refused")
        done: Mapping[str, Any] = reply["done"]
        return done

    async def _write(self, line: str) -> None:
        if self._process is None or self._process.stdin is None:
            raise BugError("Enter the BrowserDoctor before use.", code="not_entered")
        # A browser that has ended is reported by _until, with its reason.
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(line.encode() + b"\n")
            await self._process.stdin.drain()

    async def _first(
        self, seen: Sequence[T], predicate: Callable[[T], bool], timeout_s: float, what: str
    ) -> T:
        checked = 0
        found: list[T] = []

        def look() -> bool:
            nonlocal checked
            fresh = seen[checked:]
            checked = len(seen)
            found.extend(item for item in fresh if predicate(item))
            return bool(found)

        await self._until(look, timeout_s, what)
        return found[0]

    async def _until(self, holds: Callable[[], bool], timeout_s: float, what: str) -> None:
        try:
            async with asyncio.timeout(timeout_s), self._news:
                await self._news.wait_for(lambda: holds() or self._has_ended)
        except TimeoutError:
            raise TimeoutError(f"Waited {timeout_s:g} s for {what}. {self._summary()}") from None
        if not holds() and self._has_ended:
            reason = self._fatal or "no reason given"
            raise UnavailableError(
                f"The browser ended while waiting for {what}: {reason}. {self._summary()}",
                code="browser_ended",
            )

    def _summary(self) -> str:
        types = dict(Counter(event.type for event in self._events))
        reasons = dict(Counter(failure.reason for failure in self._failures))
        calls = [one.state for one in self._calls]
        return (
            f"Events seen: {types}; failures to decrypt: {reasons}; states of calls: {calls}; "
            f"last complaints of the browser: {list(self._complaints)}"
        )

    async def _read_reports(self, process: asyncio.subprocess.Process) -> None:
        try:
            assert process.stdout is not None
            async for line in process.stdout:
                self._take(json.loads(line))
                async with self._news:
                    self._news.notify_all()
        finally:
            self._has_ended = True
            async with self._news:
                self._news.notify_all()

    async def _read_complaints(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            self._complaints.append(line.decode(errors="replace").strip())

    def _take(self, report: Mapping[str, Any]) -> None:
        match report:
            case {"ready": {"user": user, "device": device}}:
                self.user_id, self.device_id, self._is_ready = user, device, True
            case {"event": event}:
                shield = event.pop("shield") or {"colour": None, "reason": None}
                self._events.append(
                    SeenEvent(
                        **event, shield_colour=shield["colour"], shield_reason=shield["reason"]
                    )
                )
            case {"failure": failure}:
                self._failures.append(Failure(**failure))
            case {"call": call}:
                self._calls.append(CallState(**call))
            case {"fatal": reason}:
                self._fatal = reason
            case _:
                self._replies.append(report)
