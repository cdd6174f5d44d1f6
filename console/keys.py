"""``fajma keys``: the key that opens everything else."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from console.people import config_option
from console.readings import with_records
from fajma.config import Settings
from fajma.store import Records
from fajma.store.audit import OPERATOR
from fajma.store.site import change_site_key


@click.group("keys")
def keys() -> None:
    """Keys of the site."""


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
