"""``fajma ward``, ``fajma staff`` and ``fajma patient``: people, at the running system's API."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fajma.config import Settings, load, read_secret
from fajma.errors import InputError, UnavailableError
from fajma.facts import AgeBand
from fajma.language import Language
from fajma.store.people import Role

_TIMEOUT: Final = aiohttp.ClientTimeout(total=120)

TROUBLES: Final = {
    "identity_changed": "keys were reset: ask by voice whether, when and on which device; then:"
    " fajma staff trust {account} {code}",
    "no_signed_device": "no confirmed device: log in with Element and verify it",
    "no_pusher": "no phone with notifications: log in with Element on the phone and allow them",
    "master_muted": "all notifications are off: enable them in Element, Settings, Notifications",
    "partner": "partner's account: rules and phone are checked by that hospital's operator",
    "no_account": "the account does not exist on this homeserver: give `staff add` again",
    "account_closed": "the account is closed: `fajma staff leave`, or give `staff add` again",
    "not_in_room": "the invitation to the ward's room is not accepted, so its alarms do not arrive",
    "not_checked": "could not be looked at (see FAJMA's log): give the command again",
}

config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    default=Path("fajma.toml"),
    envvar="FAJMA_CONFIG",
    show_default=True,
    show_envvar=True,
    help="The settings file.",
)
_language = click.option("--language", type=click.Choice([one.value for one in Language]))


class Api:
    """The operator's side of the REST API of the running ``fajma run``."""

    def __init__(self, settings: Settings) -> None:
        homeserver = settings.homeserver
        self._url = f"http://{_reachable(homeserver.listen_host)}:{homeserver.listen_port}/fajma/v1"
        self._token = read_secret(settings.secrets.operator_token_file, purpose="operator's token")

    def get(self, path: str) -> dict[str, Any]:
        """Ask for something."""
        return asyncio.run(self._call("GET", path, None))

    def every(self, path: str, name: str) -> list[dict[str, Any]]:
        """All entries of a list that comes in pages."""
        page = self.get(path)
        found = list(page[name])
        between = "&" if "?" in path else "?"
        while page["next"] is not None:
            page = self.get(f"{path}{between}cursor={quote(page['next'])}")
            found += page[name]
        return found

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Have something done; what is ``None`` in the body is left out."""
        given = {name: value for name, value in body.items() if value is not None}
        return asyncio.run(self._call("POST", path, given))

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._token}"}
        try:
            async with (
                aiohttp.ClientSession(headers=headers, timeout=_TIMEOUT) as session,
                session.request(
                    method, f"{self._url}/{path}", json=dict(body) if body is not None else None
                ) as response,
            ):
                status, answer = response.status, await response.json()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise UnavailableError(
                f"FAJMA does not answer at {self._url}: start it with `fajma run`",
                code="fajma_not_running",
            ) from error
        if status == 200:  # noqa: PLR2004
            return dict(answer)
        kind = InputError if status < 500 else UnavailableError  # noqa: PLR2004
        raise kind(str(answer.get("detail")), code=str(answer.get("code")))


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in {"0.0.0.0", "::", ""} else host  # noqa: S104 - what it listens on


def _api(config_path: Path) -> Api:
    return Api(load(config_path))


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _show(table: Table) -> None:
    Console().print(table)


def _row(table: Table, *cells: object) -> None:
    table.add_row(*(escape("" if cell is None else str(cell)) for cell in cells))


# --- wards ---------------------------------------------------------------------------------------


@click.group("ward")
def ward() -> None:
    """Wards: a team, its encrypted room, its roster."""


@ward.command("add")
@click.argument("name")
@_language
@click.option("--time-zone", help="IANA name; the site's if left out.")
@config_option
def ward_add(name: str, language: str | None, time_zone: str | None, config_path: Path) -> None:
    """Open a ward and its room. NAME is short, e.g. medecine-2. Safe to repeat."""
    body = {"name": name, "language": language, "time_zone": time_zone}
    answer = _api(config_path).post("wards", body)
    click.echo(f"ward {answer['name']}: room {answer['room_id']}")


@ward.command("list")
@config_option
def ward_list(config_path: Path) -> None:
    """Every ward, and who is on duty."""
    table = _table("ward", "language", "on duty")
    for one in _api(config_path).get("wards")["wards"]:
        _row(table, one["name"], one["language"], ", ".join(one["on_duty"]) or "NOBODY")
    _show(table)


# --- staff ---------------------------------------------------------------------------------------


@click.group("staff")
def staff() -> None:
    """Doctors, nurses and operators: joining, leaving, lost phones, reachability."""


@staff.command("add")
@click.argument("who")
@click.option("--name", required=True, help="As colleagues know the person.")
@click.option("--role", type=click.Choice([one.value for one in Role]), required=True)
@click.option("--ward", help="Short name of the ward.")
@_language
@click.option("--existing", is_flag=True, help="The account is here already; keep its password.")
@config_option
def staff_add(*, config_path: Path, **values: Any) -> None:
    """Somebody joins. WHO is a short name (awa.diop), or a partner's full Matrix id.

    Safe to repeat: completes what is missing, and prints another first password as long as nobody
    has signed in.
    """
    answer = _api(config_path).post("staff", values)
    _give(answer["letter"])
    if answer["warning"]:
        click.echo(f"\nwarning: {answer['warning']}", err=True)


def _give(letter: str) -> None:
    """A letter, and a word to the operator about it."""
    click.echo(letter)
    click.echo("\nGive this to the person; it is not shown again.", err=True)


@staff.command("list")
@click.option("--left", is_flag=True, help="Also who worked here and has left.")
@config_option
def staff_list(*, left: bool, config_path: Path) -> None:
    """Who works here."""
    table = _table("account", "name", "role", "ward", "language", "left")
    for one in _api(config_path).get("staff?left=true" if left else "staff")["staff"]:
        _row(
            table,
            *(one[key] for key in ("account", "name", "role", "ward", "language")),
            (one["left"] or "")[:10],
        )
    _show(table)


@staff.command("role")
@click.argument("who")
@click.option("--role", type=click.Choice([one.value for one in Role]))
@click.option("--ward", help="Another ward; '' for none.")
@_language
@config_option
def staff_role(
    who: str, role: str | None, ward: str | None, language: str | None, config_path: Path
) -> None:
    """Another role, ward or language."""
    body = {"who": who, "role": role, "ward": ward, "language": language}
    answer = _api(config_path).post("staff/role", body)
    click.echo(f"{answer['account']}: {answer['role']}, ward {answer['ward'] or 'none'}")


@staff.command("leave")
@click.argument("who")
@config_option
def staff_leave(who: str, config_path: Path) -> None:
    """Somebody leaves: no more keys, rooms and sessions, at once. Safe to repeat."""
    answer = _api(config_path).post("staff/leave", {"who": who})
    click.echo(f"{who} has left: no key, no room" + (", no session" * answer["ended_here"]))
    if not answer["ended_here"]:
        click.echo("the account is a partner's: its sessions are that hospital's to end", err=True)
    for one in answer["without_clinician"]:
        click.echo(f"consultation {one} has no clinician any more: add one", err=True)


@staff.command("lost-phone")
@click.argument("who")
@click.option("--device", "devices", multiple=True, help="Which device; may be repeated.")
@click.option("--all", "every", is_flag=True, help="All of the person's devices, or none.")
@click.option("--stolen", is_flag=True, help="Somebody may have opened it: trust its keys no more.")
@config_option
def staff_lost_phone(
    *, who: str, devices: tuple[str, ...], every: bool, stolen: bool, config_path: Path
) -> None:
    """A phone is gone: end its sessions and keys, and print what the person does next."""
    answer = _api(config_path).post(
        "staff/lost-phone",
        {"who": who, "devices": list(devices), "every": every, "stolen": stolen},
    )
    _give(answer["letter"])


@staff.command("password")
@click.argument("who")
@config_option
def staff_password(who: str, config_path: Path) -> None:
    """A letter was lost or a password forgotten: a new one. Nobody is signed out."""
    _give(_api(config_path).post("staff/password", {"who": who})["letter"])


@staff.command("trust")
@click.argument("who")
@click.argument("code")
@config_option
def staff_trust(who: str, code: str, config_path: Path) -> None:
    """Accept somebody's reset keys, after asking by voice; CODE from `fajma staff check`."""
    answer = _api(config_path).post("staff/trust", {"who": who, "code": code})
    click.echo(f"{answer['account']}: the new keys are accepted")


@staff.command("check")
@config_option
def staff_check(config_path: Path) -> None:
    """Whether everybody can be reached; push rules are repaired. Exit code 1 if somebody cannot."""
    found = _api(config_path).post("staff/check", {})["staff"]
    for line in _checked(found):
        click.echo(line)
    if any(trouble != "partner" for one in found for trouble in one["troubles"]):
        raise SystemExit(1)


def _checked(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each person, one below for each trouble, and how many can be reached.

    No table, so that a command stands in one piece, to be copied. On call is who is meant to be
    rung: all of a ward while nobody there is on duty.
    """
    lines = []
    for one in found:
        duty = "on duty" if one["on_duty"] else "on call" if one["on_call"] else ""
        state = "" if one["troubles"] else "ok"
        cells = (one["account"], one["name"], one["ward"] or "no ward", duty, state)
        lines.append("  ".join(cell for cell in cells if cell))
        lines += [
            "    " + TROUBLES.get(trouble, trouble).format(account=one["account"], code=one["code"])
            for trouble in one["troubles"]
        ]
    reachable = sum(one["reachable"] for one in found)
    return [*lines, f"{reachable} of {len(found)} can be reached"]


# --- patients ------------------------------------------------------------------------------------


@click.group("patient")
def patient() -> None:
    """Patient records: number, initials, bed; a Matrix account is optional."""


_age = click.option("--age-band", type=click.Choice([one.value for one in AgeBand]))
_pregnant = click.option("--pregnant/--not-pregnant", default=None)
_copd = click.option("--copd/--no-copd", default=None, help="An SpO2 of 88 to 92 % is aimed at.")


@patient.command("add")
@click.argument("number")
@click.option("--initials", required=True, help="e.g. A.D.; no name.")
@click.option("--bed", required=True)
@click.option("--ward", help="Where the patient lies; its team gets the alarms.")
@_age
@_pregnant
@_copd
@_language
@click.option("--time-zone")
@config_option
def patient_add(config_path: Path, **values: Any) -> None:
    """Keep a new patient record. NUMBER is the hospital's."""
    answer = _api(config_path).post("patients", values)
    click.echo(f"patient {answer['number']}: bed {answer['bed']}, key {answer['patient']}")
    _warn_of_bed(answer)


def _warn_of_bed(answer: Mapping[str, Any]) -> None:
    for number in answer["also_in_bed"]:
        click.echo(
            f"warning: patient {number} is in bed {answer['bed']} of ward {answer['ward']} too:"
            " alarms name the bed",
            err=True,
        )


@patient.command("list")
@click.option("--ward")
@config_option
def patient_list(ward: str | None, config_path: Path) -> None:
    """Every patient, by bed."""
    table = _table("number", "initials", "bed", "ward", "age", "besides", "account", "monitor")
    path = "patients" if ward is None else f"patients?ward={quote(ward)}"
    found = _api(config_path).every(path, "patients")
    for one in sorted(found, key=lambda one: (one["bed"], one["number"])):
        _row(
            table,
            *(one[key] for key in ("number", "initials", "bed", "ward", "age_band")),
            ", ".join(key for key in ("pregnant", "copd") if one[key]),
            one["account"],
            ", ".join(one["monitors"]),
        )
    _show(table)


@patient.command("change")
@click.argument("number")
@click.option("--initials")
@click.option("--bed")
@click.option("--ward", help="Another ward; '' for none.")
@_age
@_pregnant
@_copd
@_language
@click.option("--time-zone")
@config_option
def patient_change(config_path: Path, **values: Any) -> None:
    """Another bed, ward, age band ...; what is left out stays."""
    answer = _api(config_path).post("patients/change", values)
    click.echo(f"patient {answer['number']}: bed {answer['bed']}, ward {answer['ward'] or 'none'}")
    _warn_of_bed(answer)


@patient.command("link-account")
@click.argument("number")
@click.argument("account")
@config_option
def patient_link_account(number: str, account: str, config_path: Path) -> None:
    """The patient takes part with this Matrix account (full id) from now on."""
    answer = _api(config_path).post("patients/account", {"number": number, "account": account})
    click.echo(f"patient {answer['number']}: {answer['account']}")


@patient.command("unlink-account")
@click.argument("number")
@config_option
def patient_unlink_account(number: str, config_path: Path) -> None:
    """The patient goes on without account: out of the room, no key any more."""
    answer = _api(config_path).post("patients/account", {"number": number})
    click.echo(f"patient {answer['number']}: no account")


@patient.command("monitor")
@click.argument("number")
@click.argument("device")
@click.option("--since", help="Worn since then: 14:05 (today, the ward's time) or an ISO time.")
@click.option("--off", is_flag=True, help="The patient wears it no more.")
@config_option
def patient_monitor(
    *, number: str, device: str, since: str | None, off: bool, config_path: Path
) -> None:
    """The patient wears this monitor (12 hex digits) from now on."""
    answer = _api(config_path).post(
        "patients/monitor",
        {
            "number": number,
            "device": device.replace(":", "").upper(),
            "since": since,
            "off": off or None,
        },
    )
    if off:
        click.echo(f"patient {answer['number']} wears {device} no more")
        return
    before = answer["worn_before_by"]
    taken = f", which patient {before} wore until now" if before else ""
    click.echo(f"patient {answer['number']} wears {device}{taken}")
    if since is not None:
        click.echo("what came in before is stored by: fajma readings quarantine replay")
