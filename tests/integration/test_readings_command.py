"""What an operator sees of the readings log and of what was refused."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from structlog.testing import capture_logs

from bridges.mqtt_vitals.clocks import Arrival
from bridges.mqtt_vitals.ingest import Ingest, Message, forget_refused
from console import readings as command
from console.readings import replay
from fajma.config import DatabaseSettings, as_toml
from fajma.errors import InputError, UnavailableError
from fajma.store import Records, Store
from fajma.store.consultations import Consultation
from fajma.store.database import SQLITE_PRAGMAS
from fajma.store.quarantine import MAX_KEPT_OF_DEVICE, Refused
from fajma.tasks import end
from fajma.vitals import Age, DeviceId, Kind
from fajma.wire import V1_TOPIC, encode_v1
from tests.conftest import Postgres

Admit = Callable[..., Awaitable[Consultation]]

ROOT = Path(__file__).parents[2]
DEVICE = DeviceId("A4CF12F03B7E")
OTHER = DeviceId("A4CF12F03B7F")
NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def message(number: int, *, device: DeviceId = DEVICE, payload: bytes | None = None) -> Message:
    at = NOON + timedelta(seconds=5 * number)
    values = {Kind.HEART_RATE: Decimal(78), Kind.SPO2: Decimal(97), Kind.TEMPERATURE: Decimal(37)}
    said = payload or encode_v1(device, int(at.timestamp() * 1000), values)
    topic = V1_TOPIC.format(device=device)
    return Message(topic, said, Arrival(at, 5.0 * number), lambda: None)


async def keep(records: Records, refused: list[Refused]) -> None:
    async with records.store.transaction() as connection:
        await records.quarantine.keep(connection, refused)


# --- the quarantine ------------------------------------------------------------------------------


async def test_what_is_kept_is_listed_by_monitor_and_reason_without_its_content(
    records: Records, admit: Admit
) -> None:
    await admit(records, DEVICE)
    await Ingest(records).commit([message(0, payload=b"{"), message(1, device=OTHER), message(2)])
    kept = await records.quarantine.listed()
    assert [(one.device, one.reason, one.received_at) for one in kept] == [
        (DEVICE, "not_json", NOON),
        (OTHER, "unknown_device", NOON + timedelta(seconds=5)),
    ]
    assert await records.quarantine.listed(device=OTHER) == kept[1:]
    assert await records.quarantine.listed(reason="not_json") == kept[:1]
    assert await records.quarantine.listed(limit=1) == kept[:1]
    opened = await records.quarantine.open(kept[0])
    assert opened is not None
    assert opened.payload == b"{"


async def test_what_was_refused_for_want_of_a_wearer_is_given_to_him_once_he_is_known(
    records: Records, admit: Admit
) -> None:
    ingest = Ingest(records)
    await ingest.commit([message(0), message(1), message(2, device=OTHER)])
    assert await replay(records) == (0, {"unknown_device": 3})  # nobody yet
    await admit(records, DEVICE)
    assert await replay(records, device=DEVICE) == (2, {})
    assert await replay(records) == (0, {"unknown_device": 1})
    stored = [one.reading for one in await records.readings.after(0, limit=10)]
    assert [(one.age, one.measured_at) for one in stored] == [
        (Age.LATE, NOON),
        (Age.LATE, NOON + timedelta(seconds=5)),
    ]
    # The broker delivers one of them again: it is known.
    assert (await ingest.commit([message(0)])).repeated == 1
    assert [one.device for one in await records.quarantine.listed()] == [OTHER]


async def test_what_is_tried_again_is_not_counted_as_refused_again(
    sqlite_records: Records, admit: Admit
) -> None:
    records = sqlite_records
    bad = encode_v1(DEVICE, int(NOON.timestamp() * 1000), {Kind.SPO2: Decimal(97)})
    await Ingest(records).commit([message(0, payload=bad), message(1, device=OTHER)])
    counted = await records.quarantine.counts()
    kept = await records.quarantine.listed()
    await replay(records)
    assert await records.quarantine.counts() == counted
    assert await records.quarantine.listed() == kept
    await admit(records, DEVICE)
    assert await replay(records) == (1, {"unknown_device": 1})
    assert await records.quarantine.counts() == counted


async def test_what_is_kept_expires_and_its_count_remains(records: Records) -> None:
    old, new = message(0, payload=b"{"), message(10, payload=b"{")
    await Ingest(records).commit([old, new])
    assert await records.quarantine.expire(before=NOON + timedelta(seconds=1)) == 1
    assert [one.received_at for one in await records.quarantine.listed()] == [new.arrival.at]
    assert await records.quarantine.counts() == {"not_json": 2}


async def test_what_came_at_the_very_moment_is_kept(records: Records) -> None:
    await Ingest(records).commit([message(0, payload=b"{")])
    assert await records.quarantine.expire(before=NOON) == 0
    assert await records.quarantine.expire(before=NOON + timedelta(milliseconds=1)) == 1


class Forgetful:
    """A quarantine of whose database nothing is heard at first."""

    def __init__(self) -> None:
        self.asked: list[datetime] = []
        self.enough = asyncio.Event()
        self.quarantine = self

    async def expire(self, *, before: datetime) -> int:
        self.asked.append(before)
        if len(self.asked) == 1:
            raise OSError
        if len(self.asked) == 3:
            self.enough.set()
        return 4


async def test_what_is_old_is_forgotten_again_and_again_though_the_database_was_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bridges.mqtt_vitals.ingest.EXPIRE_EVERY_S", 0.0)
    fake: Any = Forgetful()
    began = datetime.now(UTC)
    with capture_logs() as logs:
        forgetting = asyncio.create_task(forget_refused(fake, after=timedelta(days=30)))
        await asyncio.wait_for(fake.enough.wait(), 10)
        await end([forgetting])
    for before in fake.asked:
        assert timedelta(0) <= before - (began - timedelta(days=30)) < timedelta(seconds=10)
    told = [(one["event"], one["log_level"]) for one in logs[:2]]
    assert told == [("quarantine_not_expired", "error"), ("quarantine_expired", "info")]


async def test_a_monitor_that_sends_rubbish_crowds_out_only_itself(
    sqlite_records: Records,
) -> None:
    records = sqlite_records
    honest = Refused("unknown_device", "t", b"x", NOON, OTHER)
    rubbish = [
        Refused("not_json", "t", b"{", NOON + timedelta(seconds=n), DEVICE)
        for n in range(MAX_KEPT_OF_DEVICE + 50)
    ]
    await keep(records, [honest])
    await keep(records, rubbish)
    assert len(await records.quarantine.listed(device=DEVICE, limit=100_000)) == MAX_KEPT_OF_DEVICE
    assert len(await records.quarantine.listed(device=OTHER)) == 1
    assert (await records.quarantine.counts())["not_json"] == len(rubbish)


# --- the command ---------------------------------------------------------------------------------


class Settings:
    """As much of the settings as the commands look at."""

    class site:  # noqa: N801 - a section
        time_zone = "Africa/Dakar"


@pytest.fixture
def asked(
    sqlite_records: Records, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Awaitable[str]]:
    """A ``fajma readings`` command on open records: what it prints."""

    async def ask(*arguments: str) -> str:
        works: list[Callable[..., Awaitable[None]]] = []
        with monkeypatch.context() as patched:
            patched.setattr(command, "with_records", lambda _, work: works.append(work))
            result = CliRunner().invoke(command.readings, [*arguments, "--config", "x.toml"])
            assert result.exit_code == 0, result.output
        lines: list[str] = []
        with monkeypatch.context() as patched:
            patched.setattr(command.click, "echo", lines.append)
            await works[0](sqlite_records, Settings())
        return "\n".join(lines)

    return ask


async def test_count_tells_what_came_in_what_did_not_and_who_lags(
    sqlite_records: Records, admit: Admit, asked: Callable[..., Awaitable[str]]
) -> None:
    await admit(sqlite_records, DEVICE)
    ingest = Ingest(sqlite_records)
    await ingest.commit([message(0), message(1), message(2, payload=b"{")])
    await ingest.commit([message(1)])
    assert (await asked("count")).splitlines() == [
        "stored 2",
        "repeated 1",
        "refused not_json 1",
        "lag alarms 2",
        "lag publisher 2",
    ]


async def test_a_database_that_another_process_keeps_busy_is_one_clear_line(
    sqlite_records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def opened(_: object) -> AsyncIterator[Records]:
        yield sqlite_records

    async def work(*_: object) -> None:
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(command, "load", lambda _: Settings())
    monkeypatch.setattr(command, "opened", opened)
    with pytest.raises(UnavailableError, match="another process") as caught:
        await asyncio.to_thread(command.with_records, tmp_path / "x.toml", work)
    assert caught.value.code == "database_unavailable"


def test_whoever_reads_what_is_printed_may_stop_without_a_word(
    tmp_path: Path, site_key_file: Path
) -> None:
    """As ``fajma readings count | head -0`` does."""
    nowhere = tmp_path / "nowhere"
    files = ("as_token_file", "admin_password_file", "hs_token_file")
    secrets = ("operator_token_file", "api_token_file", "alert_bot_password_file")
    sections = {
        "homeserver": {
            "url": "http://127.0.0.1:8008",
            "server_name": "clinic.test",
            **dict.fromkeys(files, nowhere),
        },
        "database": {"url": f"sqlite://{tmp_path}/store/fajma.db"},
        "secrets": {
            "directory": nowhere,
            "site_key_file": site_key_file,
            **dict.fromkeys(secrets, nowhere),
        },
        "mqtt": dict.fromkeys(("ca_file", "cert_file", "key_file"), nowhere),
    }
    config = tmp_path / "fajma.toml"
    config.write_text(as_toml(sections), encoding="utf-8")
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "console", "readings", "count", "--config", str(config)],
            stdout=writing,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, b"")


async def test_tail_shows_the_newest_readings_of_all_or_of_one_patient(
    sqlite_records: Records, admit: Admit, asked: Callable[..., Awaitable[str]]
) -> None:
    for device in (DEVICE, OTHER):
        await admit(sqlite_records, device)
    await Ingest(sqlite_records).commit([message(n, device=DEVICE) for n in range(3)])
    await Ingest(sqlite_records).commit([message(0, device=OTHER)])
    lines = (await asked("tail", "-n", "2")).splitlines()
    assert [line.split()[0] for line in lines] == ["3", "4"]
    assert "2026-03-02T12:00:10+00:00" in lines[0]
    assert "spo2 97 %" in lines[0]
    [only] = (await asked("tail", "--patient", "record 2")).splitlines()
    assert OTHER in only


async def test_the_list_of_the_quarantine_shows_no_value(
    sqlite_records: Records, asked: Callable[..., Awaitable[str]]
) -> None:
    await Ingest(sqlite_records).commit([message(0)])
    said = await asked("quarantine", "list")
    assert said.endswith(f"2026-03-02T12:00:00+00:00  {DEVICE}  unknown_device")
    assert "97" not in said.split(DEVICE)[1]


async def test_a_monitor_may_be_written_as_people_write_it(
    sqlite_records: Records, asked: Callable[..., Awaitable[str]]
) -> None:
    await Ingest(sqlite_records).commit([message(0), message(1, device=OTHER)])
    [line] = (await asked("quarantine", "list", "--device", "a4:cf:12:f0:3b:7e")).splitlines()
    assert DEVICE in line
    said = await asked("quarantine", "replay", "--device", "A4-CF-12-F0-3B-7E")
    assert "1 messages stay in the quarantine" in said
    assert await asked("quarantine", "list", "--device", "unknown") == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["list", "--device", "monitor 3"], "twelve hex digits"),
        (["replay", "--device", "A4CF12F03B7"], "twelve hex digits"),
        (["list", "--reason", "to_large"], "too_deep, too_large, unknown_device"),
        (["list", "--reason", "systolic_missing"], "spo2_implausible_low"),
    ],
)
def test_what_can_be_nothing_in_the_quarantine_is_refused(arguments: list[str], told: str) -> None:
    error = CliRunner().invoke(command.readings, ["quarantine", *arguments]).exception
    assert isinstance(error, InputError)  # exit code 2
    assert told in str(error)


# --- a database that would lose what it has committed --------------------------------------------


async def test_a_postgresql_that_does_not_write_to_disk_is_refused(
    postgres: Postgres, postgres_url: str
) -> None:
    await postgres.execute("ALTER SYSTEM SET fsync = off")
    await postgres.execute("SELECT pg_reload_conf()")
    try:
        with pytest.raises(InputError) as caught:
            await Store.open(DatabaseSettings(url=postgres_url))
        assert caught.value.code == "database_not_durable"
    finally:
        await postgres.execute("ALTER SYSTEM RESET fsync")
        await postgres.execute("SELECT pg_reload_conf()")
    store = await Store.open(DatabaseSettings(url=postgres_url))
    assert await store.db.fetchval("SHOW synchronous_commit") == "on"
    await store.close()


def test_sqlite_syncs_each_commit(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "x.db")
    for pragma in SQLITE_PRAGMAS:
        connection.execute(pragma)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert json.dumps(SQLITE_PRAGMAS).count("OFF") == 0
    connection.close()


async def test_tail_and_count_tell_of_a_row_that_does_not_open(
    sqlite_records: Records, admit: Admit, asked: Callable[..., Awaitable[str]]
) -> None:
    await admit(sqlite_records, DEVICE)
    await Ingest(sqlite_records).commit([message(n) for n in range(3)])
    await sqlite_records.store.db.execute("UPDATE reading SET sealed=$1 WHERE position=2", b"\x01")
    first, second, third = (await asked("tail")).splitlines()
    assert second == "2  does not open"
    assert "spo2" in first
    assert "spo2" in third
    await sqlite_records.readings.note_unreadable([2], NOON)
    assert await sqlite_records.readings.note_unreadable([2], NOON) == 0
    assert "unreadable 1" in (await asked("count")).splitlines()
