"""``fajma device``: certificates and keys for monitors, and monitors that are simulated."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NoReturn, cast

import click

from bridges.mqtt_vitals.subscriber import client_id
from console import monitor_v1
from console.device_keys import DeviceKeys, as_text
from console.journal_files import CAPACITY, JournalFiles
from console.monitor_v2 import Broker, Monitor, play, run_while
from console.people import config_option
from console.pki import Credentials, issue_bridge, issue_device
from console.readings import replay, with_records
from console.run import INGESTS_MAX
from console.simulation import SCENARIOS, Options, pace, tls_context, told
from fajma.config import Settings
from fajma.errors import InputError
from fajma.files import write_private
from fajma.store import Records, to_ms
from fajma.store.audit import OPERATOR
from fajma.store.quarantine import SEQUENCE_REUSED
from fajma.wire import KEY_BYTES, Item, parse_device_id


def _interrupt(signum: int, frame: object) -> NoReturn:
    del signum, frame
    raise KeyboardInterrupt


@click.group()
def device() -> None:
    """Monitors: their certificates and keys, and trying them out."""


@device.command("simulate")
@click.option("--device", "address", required=True, help="MAC address of the monitor.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Broker.")
@click.option("--port", type=click.IntRange(1, 65535), default=1883, show_default=True)
@click.option("--ca", type=click.Path(path_type=Path), help="PEM: who signed the broker.")
@click.option("--cert", type=click.Path(path_type=Path), help="PEM: the monitor's certificate.")
@click.option("--key", type=click.Path(path_type=Path), help="PEM: its private key.")
@click.option(
    "--every",
    "every_s",
    type=click.FloatRange(0, min_open=True),
    default=5.0,
    show_default=True,
    help="Seconds between readings.",
)
@click.option("--scenario", type=click.Choice(SCENARIOS), default=SCENARIOS[0], show_default=True)
@click.option(
    "--replay",
    type=click.Path(path_type=Path),
    help="Play this recording instead: CSV, columns named in its first line.",
)
@click.option("--count", type=click.IntRange(1), help="Stop after this many readings.")
@click.option(
    "--speed",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Play this many times faster.",
)
@click.option("--distinctive", is_flag=True, help="Random decimals, for a leak scan to find.")
@click.option(
    "--timestamp",
    type=click.Choice(["unix", "uptime"]),
    default="unix",
    show_default=True,
    help="Which clock the monitor has.",
)
@click.option("--seed", type=int, help="Of the scenario's noise; by default the monitor's own.")
@click.option(
    "--format",
    "wire_format",
    type=click.Choice(["v1", "v2"]),
    default="v1",
    show_default=True,
    help="The JSON of the devices in the field, or the sealed packs of our firmware.",
)
@click.option("--keys", "key_path", type=click.Path(path_type=Path), help="v2: its payload keys.")
@click.option("--journal", type=click.Path(path_type=Path), help="v2: the folder of its journal.")
@click.option(
    "--journal-readings",
    type=click.IntRange(1),
    default=CAPACITY,
    show_default=True,
    help="v2: readings that its journal holds; the oldest are overwritten.",
)
@click.option(
    "--ledger", type=click.Path(path_type=Path), help="v2: note each record here, for ever."
)
def simulate_command(
    *,
    address: str,
    host: str,
    port: int,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    every_s: float,
    scenario: str,
    replay: Path | None,
    count: int | None,
    speed: float,
    distinctive: bool,
    timestamp: str,
    seed: int | None,
    wire_format: Literal["v1", "v2"],
    key_path: Path | None,
    journal: Path | None,
    journal_readings: int,
    ledger: Path | None,
) -> None:
    """Play a monitor that sends readings; a JSON line for each.

    v1 tells a reading when the broker has taken it; v2 when it is in the journal, and ends when
    everything is acknowledged.
    """
    options = Options(
        device=parse_device_id(address),
        host=host,
        port=port,
        ca=ca,
        cert=cert,
        key=key,
        every_s=every_s,
        scenario=scenario,
        replay=replay,
        count=count,
        speed=speed,
        distinctive=distinctive,
        unix_time=timestamp == "unix",
        seed=seed,
    )
    if wire_format == "v1":
        if key_path is not None or journal is not None or ledger is not None:
            raise InputError(
                "--keys, --journal and --ledger belong to --format v2.", code="bad_option"
            )
        _play_v1(options)
        return
    if key_path is None or journal is None:
        raise InputError("--format v2 needs --keys and --journal.", code="bad_option")
    keys = DeviceKeys.read(key_path)
    if keys.device != options.device:
        raise InputError(f"{key_path} holds the keys of another monitor.", code="wrong_keys")
    with JournalFiles(
        journal, keys.device, keys.version, capacity=journal_readings, ledger=ledger
    ) as files:
        _play_v2(options, keys, files)


def _play_v1(options: Options) -> None:
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        monitor_v1.simulate(options)
    except KeyboardInterrupt:
        pass  # asked to stop: that is a clean end
    finally:
        signal.signal(signal.SIGTERM, before)


def _play_v2(options: Options, keys: DeviceKeys, files: JournalFiles) -> None:
    tls = tls_context(options)
    if tls is None or options.cert is None:
        raise InputError(
            "A v2 monitor shows its certificate: give --ca, --cert and --key.", code="tls_required"
        )
    broker = Broker(options.host, options.port, tls)
    played = pace(options)

    async def playing() -> None:
        asyncio.get_running_loop().add_signal_handler(
            signal.SIGTERM, cast("asyncio.Task[None]", asyncio.current_task()).cancel
        )
        monitor = Monitor(
            broker,
            keys,
            files,
            clock_set=options.unix_time,
            warn=lambda line: click.echo(line, err=True),
        )

        async def work() -> None:
            await play(monitor, played, say=lambda item: click.echo(_told(options, item)))
            await monitor.settled()

        await run_while([monitor], work())

    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):  # asked to stop
        asyncio.run(playing())


def _told(options: Options, item: Item) -> str:
    at_ms = time.time_ns() // 1_000_000 if item.measured_at is None else to_ms(item.measured_at)
    return told(options.device, at_ms, item.values)


@device.command("keys")
@click.argument("address", metavar="DEVICE")
@click.option(
    "--out",
    "out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The file to make: a secret, for the monitor alone.",
)
@config_option
def keys_command(*, address: str, out: Path, config_path: Path) -> None:
    """Make the next pair of payload keys of DEVICE; its earlier keys go on until retired."""
    name = parse_device_id(address)
    if not out.parent.is_dir():
        raise InputError(f"the folder {out.parent} does not exist", code="no_folder")
    if out.exists():
        raise InputError(
            f"{out} exists: it may be the only copy of a monitor's keys", code="file_exists"
        )

    async def work(records: Records, _: Settings) -> None:
        now = datetime.now(UTC)
        raw = os.urandom(2 * KEY_BYTES)
        pair = await records.devices.new_keys(name, now=now, raw=raw)
        async with records.store.transaction() as connection:
            await records.audit.note(
                connection,
                actor=OPERATOR,
                action="device.keys",
                subject=name,
                now=now,
                version=str(pair.version),
            )
        write_private(out, as_text(name, pair.version, raw))
        click.echo(f"{out}: version {pair.version} of the keys of {name}")

    with_records(config_path, work)


@device.command("new-start")
@click.argument("address", metavar="DEVICE")
@config_option
def new_start_command(*, address: str, config_path: Path) -> None:
    """Accept that DEVICE numbers its records anew, and take what was refused for that.

    As after its flash was erased. Do this only when you know that it was: a monitor that uses its
    numbers again without that is broken, or somebody has its keys. What is in the log stays there.
    """
    name = parse_device_id(address)

    async def work(records: Records, _: Settings) -> None:
        if not await records.quarantine.listed(device=name, reason=SEQUENCE_REUSED, limit=1):
            raise InputError(
                f"nothing of {name} was refused for its number: there is no new start to accept",
                code="no_new_start",
            )
        async with records.store.transaction() as connection:
            await records.devices.begin_anew(connection, name)
            await records.audit.note(
                connection,
                actor=OPERATOR,
                action="device.new_start",
                subject=name,
                now=datetime.now(UTC),
            )
        stored, waiting = await replay(records, device=name, reasons={SEQUENCE_REUSED})
        click.echo(f"{name} may number its records anew; stored {stored} readings, late")
        if waiting:
            click.echo(f"{waiting.total()} messages stay in the quarantine ({', '.join(waiting)})")

    with_records(config_path, work)


@device.command("certificate")
@click.argument("who", metavar="DEVICE")
@click.option(
    "--ca-cert",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="PEM: the authority that the broker trusts (mqtt.ca_file).",
)
@click.option(
    "--ca-key",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="PEM: its private key, without passphrase.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The folder for DEVICE.crt and DEVICE.key.",
)
def certificate_command(*, who: str, ca_cert: Path, ca_key: Path, out: Path) -> None:
    """Make the client certificate of DEVICE, a MAC address or fajma-ingest, fajma-ingest-2, ...

    One that is there and good for 30 days more stays; otherwise there is a new one.
    """
    if not out.is_dir():
        raise InputError(f"the folder {out} does not exist", code="no_folder")
    authority = Credentials(ca_cert, ca_key)
    if who in {client_id(number) for number in range(1, INGESTS_MAX + 1)}:
        made = issue_bridge(out, who, authority=authority)
    else:
        made = issue_device(out, parse_device_id(who), authority=authority)
    click.echo(f"{made.cert_file} and {made.key_file}: the second is a secret")
