"""``make chaos``: kills everything again and again, and says whether a reading was lost."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
from pathlib import Path

import click

from tests.chaos.campaign import EVERY_PAIR, Campaign, Report, blows
from tests.chaos.grounds import Shape, opened

SHAPES = {
    "saved": (Shape(persistence=True), 0.4),
    "memory": (Shape(persistence=False), 0.4),
    "whole": (Shape(persistence=True, whole=True), 0.2),
}
"""By name: a site, and its share of the kills."""


@click.command()
@click.option("--kills", type=click.IntRange(1), default=50, show_default=True)
@click.option("--seed", type=int, help="Repeat a campaign; printed by each.")
@click.option("--only", type=click.Choice(list(SHAPES)), help="One kind of site gets all kills.")
def chaos(kills: int, seed: int | None, only: str | None) -> None:
    """Kill ingest, broker, PostgreSQL and monitors with SIGKILL; exit 1 if anything is lost."""
    seed = secrets.randbelow(10**6) if seed is None else seed
    click.echo(f"seed {seed}")
    shapes = [(SHAPES[only][0], 1.0)] if only else list(SHAPES.values())
    reports = [
        asyncio.run(_one(shape, round(kills * share), seed + number))
        for number, (shape, share) in enumerate(shapes)
    ]
    hit = {pair for report in reports for pair in report.hits}
    for component, phase in EVERY_PAIR:
        if (component, phase) not in hit:
            click.echo(f"never hit: {component} while {phase}")
    good = not any(report.verdict.wrong or report.missed for report in reports)
    click.echo("nothing lost, nothing doubled" if good else "FAILED")
    raise SystemExit(not good)


async def _one(shape: Shape, kills: int, seed: int) -> Report:
    click.echo(f"\n{shape}")
    directory = Path(tempfile.mkdtemp(prefix="fajma-chaos-"))
    async with opened(shape, directory / "clinic") as site:
        plan = blows(kills, seed=seed)
        report = await Campaign(site, plan, seed=seed, say=click.echo).run()
    click.echo(report.as_text())
    if report.verdict.wrong or report.missed:
        click.echo(f"everything that was written: {directory}")
    else:
        await asyncio.to_thread(shutil.rmtree, directory)
    return report


if __name__ == "__main__":
    chaos()
