"""``fajma consultation``: which there are, and which rooms are not what they must be."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from console.people import config_option
from console.readings import with_records
from fajma.config import Settings
from fajma.life import ALIVE, FROZEN, Status
from fajma.store import Records
from fajma.store.consultations import Consultation
from fajma.store.warnings import About

OF_ROOMS: Final = (About.ROOM_LOST, About.ROOM_CONTESTED, About.UNDELIVERABLE, About.STRANGER)
"""Warnings about rooms that an operator is shown here."""


@click.group("consultation")
def consultation() -> None:
    """Look at consultations."""


@consultation.command("list")
@click.option("--all", "every", is_flag=True, help="Also those that are archived or cancelled.")
@config_option
def list_command(every: bool, config_path: Path) -> None:  # noqa: FBT001 - click's signature
    """A line for each: id, status, ward, room, clinicians, and what is wrong with its room.

    Exit code 1 if anything is.
    """
    lines: list[str] = []

    async def work(records: Records, _: Settings) -> None:
        found, wrong = await listing(records, every=every)
        lines.extend(found)
        if wrong:
            raise SystemExit(1)

    try:
        with_records(config_path, work)
    finally:
        for line in lines:
            click.echo(line)


async def listing(records: Records, *, every: bool) -> tuple[list[str], bool]:
    """The lines, and whether anything is wrong."""
    found = await records.consultations.having(*(Status if every else ALIVE | FROZEN))
    troubles = await _troubles(records)
    lines, wrong = [], bool(troubles)
    for one in found:
        ward = await records.wards.responsible(one.patient)
        codes = troubles.pop(one.room_id or "", [])
        if one.shown < one.revision and one.status not in {Status.BOOKED, Status.OPENING}:
            codes, wrong = [*codes, "room_follows_later"], True
        lines.append(_line(one, ward.id if ward is not None else "-", codes))
    lines += [f"-  -  -  {room_id}  -  {' '.join(codes)}" for room_id, codes in troubles.items()]
    return lines, wrong


async def _troubles(records: Records) -> dict[str, list[str]]:
    """What is wrong now, as codes, by room."""
    found: dict[str, list[str]] = {}
    for one in await records.warnings.open():
        if one.kind in OF_ROOMS:
            code = one.mark if one.kind is About.ROOM_LOST else one.kind.value
            codes = found.setdefault(one.subject, [])
            if code not in codes:
                codes.append(code)
    return found


def _line(one: Consultation, ward: str, wrong: list[str]) -> str:
    clinicians = ",".join(one.clinicians) or "nobody"
    trouble = " ".join(wrong) or "ok"
    return f"{one.id}  {one.status.value}  {ward}  {one.room_id or '-'}  {clinicians}  {trouble}"
