"""The ``fajma`` command."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Final

import click

from console.api_keys import api_key
from console.consultations import consultation
from console.demo import demo
from console.device import device
from console.keys import keys
from console.logs import configure
from console.maintenance import maintenance
from console.people import config_option, patient, staff, ward
from console.readings import readings
from console.run import INGESTS_MAX, Role, run
from fajma import __version__
from fajma.config import SECRET_FILES, files_named, load, read_secret
from fajma.config import keys as setting_keys
from fajma.errors import FajmaError, InputError
from fajma.store.site import check_site_key_file

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fajma")
def cli() -> None:
    """Teleconsultation for clinics on Matrix."""


@cli.command("run")
@click.argument("role", type=click.Choice([role.value for role in Role]), required=False)
@click.option(
    "--number",
    type=click.IntRange(1, INGESTS_MAX),
    help="Which of several ingests this one is; each has its own.",
)
@config_option
def run_command(config_path: Path, role: str | None, number: int | None) -> None:
    """Run FAJMA, all of it or over PostgreSQL one ROLE in this process.

    \b
    ingest      readings from the broker; start several with different --number
    appservice  consultations, people, REST API, vitals in rooms
    alerts      alarms and commands; a second one takes over when the first dies
    """  # noqa: D301 - click reads the character
    if number is not None and role != Role.INGEST:
        raise InputError("--number belongs to `fajma run ingest`", code="number_without_ingest")
    settings = load(config_path)
    configure(settings.log)
    asyncio.run(run(settings, role=Role(role) if role else None, number=number or 1))


@cli.group("config")
def config_group() -> None:
    """Look at the settings."""


@config_group.command("check")
@config_option
def config_check(config_path: Path) -> None:
    """Say whether the settings and the files that they name are right; a line for each problem."""
    settings = load(config_path)
    problems = []
    for name, path in files_named(settings):
        try:
            read_secret(path, purpose=name) if name in SECRET_FILES else path.read_bytes()
        except InputError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{name} cannot be read from {path}: {error.strerror}")
    if not problems:
        check_site_key_file(settings.secrets.site_key_file)
    if problems:
        raise InputError("\n".join(problems), code="config_files")
    click.echo(f"{config_path}: the settings are right")


@config_group.command("show")
@config_option
def config_show(config_path: Path) -> None:
    """Show the settings in force: file, environment and defaults. Secrets stay in their files."""
    settings = load(config_path)
    for key, _, _ in setting_keys():
        section, name = key.split(".")
        value = getattr(getattr(settings, section), name)
        click.echo(f"{key} = {value}")


cli.add_command(readings)
cli.add_command(keys)
cli.add_command(api_key)
cli.add_command(maintenance)
cli.add_command(ward)
cli.add_command(staff)
cli.add_command(patient)
cli.add_command(consultation)
cli.add_command(device)
cli.add_command(demo)


def main() -> None:
    """Entry point: one clear line for what a person can mend, a traceback for our bugs."""
    os.umask(0o077)  # whatever we or our servers write is for us alone
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except InputError as error:
        click.echo(f"fajma: {error}", err=True)
        sys.exit(EXIT_USAGE)
    except FajmaError as error:
        click.echo(f"fajma: {error}", err=True)
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        sys.exit(130)
