"""``fajma api-key``: keys of hospital software at the REST API."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import click

from appservice.api.permissions import SCOPES
from console.people import config_option
from console.readings import with_records
from fajma.config import Settings
from fajma.errors import InputError
from fajma.store import Records
from fajma.store.api_keys import ApiKey
from fajma.store.audit import OPERATOR

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,29}[a-z0-9])?")
MOST_DAYS: Final = 730
"""FAJMA default: a key that outlives its operator is nobody's."""


@click.group("api-key")
def api_key() -> None:
    """Keys with which hospital software uses the REST API (docs/api.md)."""


@api_key.command("add")
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice(sorted(one.value for one in SCOPES)),
    help="What it may do; may be repeated.",
)
@click.option(
    "--days", type=click.IntRange(1, MOST_DAYS), default=365, show_default=True, help="Valid for."
)
@config_option
def add(name: str, scopes: tuple[str, ...], days: int, config_path: Path) -> None:
    """Make a key and print it, once. NAME is short, e.g. dossier-patient; the audit shows it."""
    if not _NAME.fullmatch(name):
        raise InputError(
            "a key's name has up to 31 small letters, digits and, between them, hyphens",
            code="api_key_name",
        )

    async def work(records: Records, _: Settings) -> None:
        now = datetime.now(UTC)
        async with records.store.transaction() as connection:
            secret = await records.api_keys.add(
                connection, name, scopes, now=now, expires_at=now + timedelta(days=days)
            )
            await records.audit.note(
                connection,
                actor=OPERATOR,
                action="api_key.add",
                subject=name,
                now=now,
                scopes=" ".join(sorted(scopes)),
            )
        click.echo(secret)
        click.echo("\nPut it where the software reads it; it is not shown again.", err=True)

    with_records(config_path, work)


@api_key.command("list")
@config_option
def list_keys(config_path: Path) -> None:
    """Every key that there is or was; a line each."""

    async def work(records: Records, _: Settings) -> None:
        now = datetime.now(UTC)
        for one in await records.api_keys.all():
            click.echo(f"{one.id}  {_state(one, now)}  {' '.join(sorted(one.scopes))}")

    with_records(config_path, work)


def _state(key: ApiKey, now: datetime) -> str:
    if key.revoked_at is not None:
        return f"revoked {key.revoked_at:%Y-%m-%d}"
    return f"{'until' if key.is_valid(now) else 'expired'} {key.expires_at:%Y-%m-%d}"


@api_key.command("revoke")
@click.argument("name")
@config_option
def revoke(name: str, config_path: Path) -> None:
    """A key opens nothing any more, at once."""

    async def work(records: Records, _: Settings) -> None:
        now = datetime.now(UTC)
        async with records.store.transaction() as connection:
            await records.api_keys.revoke(connection, name, now=now)
            await records.audit.note(
                connection, actor=OPERATOR, action="api_key.revoke", subject=name, now=now
            )
        click.echo(f"{name} opens nothing any more")

    with_records(config_path, work)
