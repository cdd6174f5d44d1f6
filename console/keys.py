"""``fajma keys``: the key that opens everything else, and an end to those of monitors."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click

from console.people import config_option
from console.readings import with_records
from fajma.config import Settings
from fajma.errors import InputError
from fajma.store import Records
from fajma.store.audit import OPERATOR
from fajma.store.site import change_site_key
from fajma.wire import KEY_VERSIONS, parse_device_id


@click.group("keys")
def keys() -> None:
    """Keys of the site and of its monitors."""


@keys.command("rotate")
@config_option
def rotate(config_path: Path) -> None:
    """Put a new key into the site key file; a copy of the old one opens nothing any more."""

    async def work(records: Records, settings: Settings) -> None:
        path = settings.secrets.site_key_file
        await change_site_key(records.store, path)
        async with records.store.transaction() as connection:
            await records.audit.note(
                connection,
                actor=OPERATOR,
                action="site_key.rotate",
                subject="site key",
                now=datetime.now(UTC),
            )
        click.echo(f"{path} holds a new key: put a copy of it where its backups are")

    with_records(config_path, work)


@keys.command("retire")
@click.argument("address", metavar="DEVICE")
@click.option(
    "--before",
    type=click.IntRange(2, KEY_VERSIONS.stop),
    required=True,
    help="The first version that is still believed: that of the keys in the monitor.",
)
@config_option
def retire(*, address: str, before: int, config_path: Path) -> None:
    """Believe nothing that is sealed with earlier payload keys of DEVICE; this cannot be undone.

    A monitor that still has them is refused as unknown_key until it gets new ones.
    """
    name = parse_device_id(address)

    async def work(records: Records, _: Settings) -> None:
        now = datetime.now(UTC)
        async with records.store.transaction() as connection:
            retired, left = await records.devices.retire_keys(name, before=before, now=now)
            if not retired:
                raise InputError(
                    f"{name} has no keys in force before version {before}", code="no_such_keys"
                )
            await records.audit.note(
                connection,
                actor=OPERATOR,
                action="device.keys.retire",
                subject=name,
                now=now,
                versions=_listed(retired),
            )
        click.echo(f"retired version {_listed(retired)} of the keys of {name}")
        in_force = f"version {_listed(left)}" if left else "none: it is believed nothing"
        click.echo(f"in force: {in_force}")

    with_records(config_path, work)


def _listed(versions: Sequence[int]) -> str:
    return ", ".join(map(str, versions))
