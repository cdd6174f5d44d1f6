"""The ``fajma`` command for wards, staff and patients, as an operator types it."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import secrets
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import pytest
import pytest_asyncio

from appservice import push
from console.processes import environment_without_proxies, free_port
from console.run import opened
from fajma.config import load, read_secret
from fajma.errors import InputError, UnavailableError
from fajma.language import Language
from fajma.store.people import Role, Staff
from fajma.vitals import DeviceId
from tests.e2e.ward import BREATHLESS, PATIENCE_S, WELL, Monitor, Ward, mark

# One interpreter for all commands: each starts `main` anew, with its own arguments.
DRIVER: Final = """
import contextlib, io, json, sys
from console.main import main
for line in sys.stdin:
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = ["fajma", *json.loads(line)]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


class Terminal:
    """An operator at the keyboard."""

    def __init__(self, process: asyncio.subprocess.Process, config: Path) -> None:
        self._process = process
        self._config = config

    async def answer(self, *arguments: str, config: Path | None = None) -> Answer:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        typed = [*arguments, "--config", str(config or self._config)]
        self._process.stdin.write(json.dumps(typed).encode() + b"\n")
        async with asyncio.timeout(2 * PATIENCE_S):
            return Answer(*json.loads(await self._process.stdout.readline()))

    async def __call__(self, *arguments: str) -> str:
        """A command that succeeds; what it printed to standard output."""
        answer = await self.answer(*arguments)
        assert answer.code == 0, answer
        return answer.out


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def fajma(ward: Ward) -> AsyncIterator[Terminal]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", DRIVER),
        env=environment_without_proxies() | {"COLUMNS": "250"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    yield Terminal(process, ward.clinic.config_path)
    assert process.stdin is not None
    process.stdin.close()
    await process.wait()


async def new_ward(fajma: Terminal) -> tuple[str, str]:
    """A ward: its name and its room."""
    name = f"p-{mark()}"
    said = await fajma("ward", "add", name)
    return name, said.strip().rpartition("room ")[2]


PASSWORD: Final = r"\b[a-z2-9]{5}(?:-[a-z2-9]{5}){3}\b"


def password_in(letter: str) -> str:
    found = re.search(PASSWORD, letter)
    assert found is not None, letter
    return found[0]


async def new_nurse(ward: Ward, fajma: Terminal, team: str, *more: str) -> tuple[str, str, str]:
    """Somebody of a ward: local part, user id, password."""
    localpart = f"nurse.{mark()}"
    letter = await fajma(
        *("staff", "add", localpart, "--name", f"Nurse {mark()}", "--role", "nurse"),
        *("--ward", team, *more),
    )
    return localpart, ward.clinic.mxid(localpart), password_in(letter)


def row(table: str, first: str) -> list[str]:
    """The cells of the row that begins with this."""
    (line,) = [one for one in table.splitlines() if one.split()[:1] == [first]]
    return line.split()


async def membership(ward: Ward, room_id: str, mxid: str) -> str | None:
    """By the homeserver's word, as ``@fajma`` sees it."""
    status, answer = await ward.matrix(
        "GET",
        f"rooms/{quote(room_id)}/state/m.room.member/{quote(mxid)}",
        token=ward.clinic.synapse.as_token,
        as_user=ward.clinic.mxid("fajma"),
    )
    return str(answer["membership"]) if status == 200 else None


async def join(ward: Ward, room_id: str, token: str) -> None:
    status, answer = await ward.matrix("POST", f"join/{quote(room_id)}", {}, token=token)
    assert status == 200, answer


async def whoami(ward: Ward, token: str) -> int:
    """Status of a harmless request: 401 when the session has ended."""
    return (await ward.matrix("GET", "account/whoami", token=token))[0]


# --- wards and staff -----------------------------------------------------------------------------


async def test_a_ward_is_added_once_and_listed_with_nobody_on_duty(
    ward: Ward, fajma: Terminal
) -> None:
    name, room_id = await new_ward(fajma)
    assert room_id.startswith("!")
    assert await fajma("ward", "add", name) == f"ward {name}: room {room_id}\n"
    assert row(await fajma("ward", "list"), name) == [name, "fr", "NOBODY"]
    code, said = await ward.command("ward", "add", name)  # the command itself, in a process
    assert (code, said) == (0, f"ward {name}: room {room_id}\n")


async def test_a_new_nurse_logs_in_with_the_letters_password_and_finds_rules_and_invitation(
    ward: Ward, fajma: Terminal
) -> None:
    team, room_id = await new_ward(fajma)
    localpart = f"nurse.{mark()}"
    name = f"Ndèye {mark()}"
    answer = await fajma.answer(
        *("staff", "add", localpart, "--name", name, "--role", "nurse", "--ward", team)
    )
    assert answer.code == 0
    assert "it is not shown again" in answer.err
    mxid = ward.clinic.mxid(localpart)
    assert answer.out.startswith(f"Votre compte FAJMA\N{NO-BREAK SPACE}: {mxid}\n")
    assert f"Service {team}" in answer.out  # the room whose invitation is to be accepted
    token = await ward.clinic.synapse.login(localpart, password_in(answer.out))
    assert await membership(ward, room_id, mxid) == "invite"
    _, rules = await ward.matrix("GET", "pushrules/", token=token)
    assert push.changes(rules, mxid, rings=True) == ()  # nobody is on duty, so all ring
    listed = row(await fajma("staff", "list"), mxid)
    assert listed == [mxid, *name.split(), "nurse", team, "fr"]


async def test_whoever_never_signed_in_gets_another_letter_by_the_same_command(
    ward: Ward, fajma: Terminal
) -> None:
    team, room_id = await new_ward(fajma)
    localpart, name = f"nurse.{mark()}", f"Awa {mark()}"
    mxid = ward.clinic.mxid(localpart)
    adding_her = adding(localpart, name, "--ward", team)
    lost, given = [password_in(await fajma(*adding_her)) for _ in range(2)]
    assert lost != given
    assert await membership(ward, room_id, mxid) == "invite"
    await ward.clinic.synapse.login(localpart, given)
    with pytest.raises(InputError):
        await ward.clinic.synapse.login(localpart, lost)

    signed_in = await fajma(*adding_her)  # completes what there is to complete
    assert re.search(PASSWORD, signed_in) is None
    line = await refused(fajma, *adding(localpart, f"Another {mark()}", "--ward", team))
    assert "belongs to the staff already" in line
    assert row(await fajma("staff", "list"), mxid)[1:3] == name.split()


async def test_an_account_of_which_we_never_heard_that_it_was_made_is_known_for_ours(
    ward: Ward, fajma: Terminal
) -> None:
    localpart, name = f"nurse.{mark()}", f"Awa {mark()}"
    mxid = ward.clinic.mxid(localpart)
    status, said = await ward.admin("PUT", f"v2/users/{quote(mxid)}", {"password": mark()})
    assert status == 201, said
    line = await refused(fajma, *adding(localpart, name))
    assert "exists already" in line  # somebody else made it
    assert "--existing" in line
    assert "fajma staff password" in line
    now = datetime.now(UTC)
    asked_for = Staff(mxid, name, Role.NURSE, None, Language.FRENCH, since=now, left_at=now)
    async with opened(load(ward.clinic.config_path)) as records:
        async with records.store.transaction() as connection:
            await records.people.put(connection, asked_for)
        assert (await records.people.get(mxid)) not in await records.people.active()
    letter = await fajma(*adding(localpart, name))
    await ward.clinic.synapse.login(localpart, password_in(letter))
    assert mxid in await fajma("staff", "list")


async def test_a_new_password_signs_nobody_out(ward: Ward, fajma: Terminal) -> None:
    team, _ = await new_ward(fajma)
    localpart, _, password = await new_nurse(ward, fajma, team)
    token = await ward.clinic.synapse.login(localpart, password)
    answer = await fajma.answer("staff", "password", localpart)
    assert answer.code == 0
    assert "it is not shown again" in answer.err
    await ward.clinic.synapse.login(localpart, password_in(answer.out))
    assert await whoami(ward, token) == 200
    assert "ask the hospital whose it is" in await refused(
        fajma, "staff", "password", await partner(fajma)
    )


async def partner(fajma: Terminal, *more: str) -> str:
    """Somebody of another hospital, on the list."""
    account = f"@{mark()}:hopital.test"
    await fajma("staff", "add", account, "--name", f"Dr {mark()}", "--role", "doctor", *more)
    return account


async def test_another_ward_is_another_room_and_the_operators_role_is_none(
    ward: Ward, fajma: Terminal
) -> None:
    (old, old_room), (new, new_room) = await new_ward(fajma), await new_ward(fajma)
    localpart, mxid, password = await new_nurse(ward, fajma, old)
    await join(ward, old_room, await ward.clinic.synapse.login(localpart, password))
    assert await fajma("staff", "role", localpart, "--ward", new) == f"{mxid}: nurse, ward {new}\n"
    assert await membership(ward, old_room, mxid) == "leave"
    assert await membership(ward, new_room, mxid) == "invite"

    said = await fajma("staff", "role", localpart, "--role", "operator")
    assert said == f"{mxid}: operator, ward {new}\n"
    assert await membership(ward, new_room, mxid) == "leave"
    said = await fajma("staff", "role", localpart, "--role", "doctor", "--language", "en")
    assert said == f"{mxid}: doctor, ward {new}\n"
    assert await membership(ward, new_room, mxid) == "invite"
    assert row(await fajma("staff", "list"), mxid)[-3:] == ["doctor", new, "en"]
    assert await fajma("staff", "role", localpart, "--ward", "") == f"{mxid}: doctor, ward none\n"
    assert await membership(ward, new_room, mxid) == "leave"


async def test_who_leaves_has_no_session_and_no_room_and_is_listed_as_left(
    ward: Ward, fajma: Terminal
) -> None:
    team, room_id = await new_ward(fajma)
    localpart, mxid, password = await new_nurse(ward, fajma, team)
    token = await ward.clinic.synapse.login(localpart, password)
    await join(ward, room_id, token)
    for _ in range(2):  # safe to repeat
        said = await fajma("staff", "leave", localpart)
        assert said == f"{localpart} has left: no key, no room, no session\n"
    assert await whoami(ward, token) == 401
    assert await membership(ward, room_id, mxid) == "leave"
    assert mxid not in await fajma("staff", "list")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", row(await fajma("staff", "list", "--left"), mxid)[-1])


async def test_of_several_phones_the_lost_one_is_named_and_it_alone_is_signed_out(
    ward: Ward, fajma: Terminal
) -> None:
    team, _ = await new_ward(fajma)
    localpart, mxid, password = await new_nurse(ward, fajma, team, "--language", "en")
    login = ward.clinic.synapse.login
    kept = await login(localpart, password, device_id="DESKTOP")
    lost = await login(localpart, password, device_id="PHONE")

    unclear = await fajma.answer("staff", "lost-phone", localpart)
    assert (unclear.code, unclear.out) == (2, "")
    first, *listed = unclear.err.splitlines()
    assert first == f"fajma: which phone of {mxid}? name it with --device, or take --all:"
    assert [one.split()[0] for one in listed] == ["DESKTOP", "PHONE"]
    wrong = await fajma.answer("staff", "lost-phone", localpart, "--device", "NOKIA")
    assert wrong.code == 2
    assert (await whoami(ward, kept), await whoami(ward, lost)) == (200, 200)

    letter = await fajma("staff", "lost-phone", localpart, "--device", "PHONE")
    assert letter.startswith(f"Lost phone of {mxid}: ")
    assert (await whoami(ward, kept), await whoami(ward, lost)) == (200, 401)
    again = await login(localpart, password_in(letter), device_id="NEWPHONE")

    await fajma("staff", "lost-phone", localpart, "--all")
    assert (await whoami(ward, kept), await whoami(ward, again)) == (401, 401)

    none_left = await fajma.answer("staff", "lost-phone", localpart)
    assert none_left.code == 2
    assert "fajma staff password" in none_left.err
    letter = await fajma("staff", "lost-phone", localpart, "--all")
    await login(localpart, password_in(letter))


async def test_a_partners_account_is_kept_and_told_what_we_cannot_set(
    fajma: Terminal,
) -> None:
    partner = f"@{mark()}:hopital.test"
    letter = await fajma("staff", "add", partner, "--name", f"Dr {mark()}", "--role", "doctor")
    assert partner in letter
    assert "serveur d'un autre hôpital" in letter
    assert re.search(PASSWORD, letter) is None
    assert partner in await fajma("staff", "list")
    left = await fajma.answer("staff", "leave", partner)
    assert (left.code, left.out) == (0, f"{partner} has left: no key, no room\n")
    assert "that hospital's to end" in left.err


async def test_a_partner_whose_homeserver_is_away_is_added_with_a_warning(
    ward: Ward, fajma: Terminal
) -> None:
    team, room_id = await new_ward(fajma)
    account = f"@{mark()}:hopital.test"
    adding_him = adding(account, f"Dr {mark()}", "--ward", team)
    for _ in range(2):  # repeated when the partner answers again
        answer = await fajma.answer(*adding_him)
        assert answer.code == 0
        assert account in answer.out
        assert "warning: the partner's homeserver did not take the invitation" in answer.err
        assert "give the same command again later" in answer.err
    assert account in await fajma("staff", "list")
    async with opened(load(ward.clinic.config_path)) as records:
        assert account in await records.audience.of(room_id)
    await fajma("staff", "leave", account)


def found_of(lines: str, mxid: str) -> tuple[str, list[str]]:
    """What `staff check` says of somebody: his line, and his troubles."""
    first, *rest = lines.partition(f"\n{mxid}  ")[2].splitlines()
    troubles = list(itertools.takewhile(lambda one: one.startswith("    "), rest))
    return first, [one.strip() for one in troubles]


async def test_check_names_who_cannot_be_reached_and_how_to_mend_it(
    ward: Ward, fajma: Terminal
) -> None:
    team, room_id = await new_ward(fajma)
    localpart, mxid, password = await new_nurse(ward, fajma, team)
    answer = await fajma.answer("staff", "check")
    assert answer.code == 1
    line, troubles = found_of("\n" + answer.out, mxid)
    assert line.endswith(f"{team}  on call")  # nobody is on duty
    assert [one.partition(":")[0] for one in troubles] == [
        "no confirmed device",
        "no phone with notifications",
        "the invitation to the ward's room is not accepted, so its alarms do not arrive",
    ]
    assert re.fullmatch(r"\d+ of \d+ can be reached", answer.out.splitlines()[-1])

    await join(ward, room_id, await ward.clinic.synapse.login(localpart, password))
    async with asyncio.timeout(PATIENCE_S):
        while len(troubles) == 3:  # the homeserver tells FAJMA of the join a moment later
            answer = await fajma.answer("staff", "check")
            _, troubles = found_of("\n" + answer.out, mxid)
    assert [one.partition(":")[0] for one in troubles] == [
        "no confirmed device",
        "no phone with notifications",
    ]
    await fajma("staff", "leave", localpart)


async def test_check_looks_at_the_others_when_one_cannot_be_looked_at(
    ward: Ward, fajma: Terminal
) -> None:
    team, _ = await new_ward(fajma)
    locked, locked_mxid, _ = await new_nurse(ward, fajma, team)
    gone, gone_mxid, _ = await new_nurse(ward, fajma, team)
    path = f"v1/deactivate/{quote(gone_mxid)}"
    status, said = await ward.admin("POST", path, {"erase": False})
    assert status == 200, said
    answer = await fajma.answer("staff", "check")
    assert answer.code == 1
    _, troubles = found_of("\n" + answer.out, gone_mxid)
    assert "the account is closed: `fajma staff leave`, or give `staff add` again" in troubles
    assert found_of("\n" + answer.out, locked_mxid)[1]
    for localpart in (locked, gone):
        await fajma("staff", "leave", localpart)


# --- patients ------------------------------------------------------------------------------------


async def test_a_patient_is_added_changed_and_wears_a_monitor_whose_alarms_go_to_the_ward(
    ward: Ward, fajma: Terminal
) -> None:
    team, room_id = await new_ward(fajma)
    number = f"P-{mark()}"
    said = await fajma(
        *("patient", "add", number, "--initials", "F.S.", "--bed", "7", "--ward", team),
        *("--age-band", "adult", "--not-pregnant", "--time-zone", "Africa/Bamako"),
    )
    assert said.startswith(f"patient {number}: bed 7, key ")
    said = await fajma("patient", "change", number, "--bed", "8")
    assert said == f"patient {number}: bed 8, ward {team}\n"
    listed = await fajma("patient", "list", "--ward", team)
    assert row(listed, number) == [number, "F.S.", "8", team, "adult"]

    neighbour = await fajma.answer(
        *("patient", "add", f"{number}b", "--initials", "A.F.", "--bed", "8", "--ward", team)
    )
    assert neighbour.code == 0
    assert neighbour.err == (
        f"warning: patient {number} is in bed 8 of ward {team} too: alarms name the bed\n"
    )
    moved = await fajma.answer("patient", "change", f"{number}b", "--bed", "9")
    assert (moved.code, moved.err) == (0, "")

    device = secrets.token_hex(6)
    typed = ":".join(device[at : at + 2] for at in range(0, 12, 2))
    said = await fajma("patient", "monitor", f"{number}b", typed)
    assert said == f"patient {number}b wears {typed}\n"
    said = await fajma("patient", "monitor", number, typed)
    assert said == f"patient {number} wears {typed}, which patient {number}b wore until now\n"
    said = await fajma("patient", "monitor", number, typed)
    assert said == f"patient {number} wears {typed}\n"
    listed = await fajma("patient", "list", "--ward", team)
    assert row(listed, number)[-1] == device.upper()
    assert device.upper() not in row(listed, f"{number}b")
    localpart, mxid, password = await new_nurse(ward, fajma, team)
    since = ward.log_mark()
    async with (
        ward.client_of(localpart, password) as nurse,
        Monitor(ward.clinic, DeviceId(device.upper())) as monitor,
    ):
        await ward.until_of(nurse, lambda: room_id in nurse.client.rooms)
        await monitor.send(WELL, *[BREATHLESS] * 4)
        alarm = await nurse.wait_for(lambda one: one.content is not None, PATIENCE_S)
    assert (alarm.room_id, alarm.mentions) == (room_id, (mxid,))
    assert "Lit 8 F.S." in alarm.body.replace("\N{NO-BREAK SPACE}", " ")
    assert number not in json.dumps(ward.log_since(since))
    await fajma("staff", "leave", localpart)
    said = await fajma("patient", "change", number, "--ward", "")
    assert said == f"patient {number}: bed 8, ward none\n"


async def test_an_account_is_linked_to_a_patient_and_unlinked_again(
    ward: Ward, fajma: Terminal
) -> None:
    bedside = await ward.admit()
    localpart, mxid, password = await ward.account("patient")
    token = await ward.clinic.synapse.login(localpart, password)
    said = await fajma("patient", "link-account", bedside.number, mxid)
    assert said == f"patient {bedside.number}: {mxid}\n"
    await join(ward, bedside.room_id, token)
    _, rules = await ward.matrix("GET", "pushrules/", token=token)
    assert push.changes(rules, mxid, rings=False) == ()
    assert mxid in row(await fajma("patient", "list"), bedside.number)
    for existing in ([], ["--existing"]):
        line = await refused(fajma, *adding(localpart, f"Awa {mark()}", *existing))
        assert "is the account of a patient" in line

    other = await ward.admit()
    taken = await fajma.answer("patient", "link-account", other.number, mxid)
    assert taken.code == 2
    assert "belongs to another patient" in taken.err

    for _ in range(2):
        said = await fajma("patient", "unlink-account", bedside.number)
        assert said == f"patient {bedside.number}: no account\n"
    assert await membership(ward, bedside.room_id, mxid) == "leave"
    assert mxid not in await fajma("patient", "list")


# --- bad input -----------------------------------------------------------------------------------


NOT_NAMES: Final = {
    "\N{CYRILLIC CAPITAL LETTER A}wa Diop": "two alphabets",
    "Awa\N{ZERO WIDTH SPACE} Diop": "invisible characters",
    "\N{RIGHT-TO-LEFT OVERRIDE}poiD awA": "invisible characters",
    "Awa\tDiop\x07": "invisible characters",
    "  ": "has letters",
    "A" * 65: "name is too long",
    "Awa Diop 2": "letters, blanks, hyphens",
}

NOT_ACCOUNTS: Final = (
    "awà",
    "\N{CYRILLIC SMALL LETTER A}wa",
    "awa\N{ZERO WIDTH SPACE}",
    "Awa",
    "awa diop",
    "@awa",
    "@\N{CYRILLIC SMALL LETTER A}wa:hopital.test",
    "awa@hopital.test",
    "x" * 256,
)


async def refused(fajma: Terminal, *arguments: str) -> str:
    """A command that is refused: exit code 2 and one line that says why."""
    answer = await fajma.answer(*arguments)
    assert (answer.code, answer.out) == (2, ""), (arguments, answer)
    (line,) = answer.err.splitlines()
    assert line.startswith("fajma: "), line
    return line


def adding(account: str, name: str, *more: str) -> list[str]:
    return ["staff", "add", account, "--name", name, "--role", "nurse", *more]


async def test_a_name_that_hides_or_imitates_something_is_refused(
    fajma: Terminal,
) -> None:
    for name, rule in NOT_NAMES.items():
        line = await refused(fajma, *adding(f"n.{mark()}", name))
        assert rule in line, (name, line)
    last = mark().capitalize()
    partner = f"@{mark()}:hopital.test"
    await fajma(*adding(partner, f"Élodie {last}"))
    for lookalike in (
        f"Elodie {last}",
        f"ÉLODIE {last.upper()}",
        f"Èlodie  {last}",
        f"E\N{COMBINING ACUTE ACCENT}lodie-{last}",
        f"EIodie {last}",
    ):
        line = await refused(fajma, *adding(f"n.{mark()}", lookalike))
        assert f"{partner} has a name that looks the same" in line
    await fajma("staff", "leave", partner)


async def test_an_account_with_other_than_plain_letters_is_refused(
    fajma: Terminal,
) -> None:
    for account in NOT_ACCOUNTS:
        line = await refused(fajma, *adding(account, f"Awa {mark()}"))
        assert "short name" in line or "who is too long" in line, line


async def test_an_account_that_fajma_works_with_is_nobodys(ward: Ward, fajma: Terminal) -> None:
    bedside = await ward.admit()
    for localpart in (
        *("fajma", "fajma-vitals", "fajma-alerts", "fajma-as", "fajma-avis", "fajma-operator"),
    ):
        mxid = ward.clinic.mxid(localpart)
        for arguments in (
            adding(localpart, f"Awa {mark()}"),
            adding(mxid, f"Awa {mark()}", "--existing"),
            ("staff", "role", localpart, "--role", "doctor"),
            ("staff", "password", localpart),
            ("staff", "lost-phone", localpart, "--all"),
            ("staff", "trust", localpart, "K7QF-2MZT"),
            ("staff", "leave", localpart),
            ("patient", "link-account", bedside.number, mxid),
        ):
            assert "is an account that FAJMA works with" in await refused(fajma, *arguments)
        with pytest.raises(UnavailableError) as caught:
            await ward.join(bedside, mxid)
        assert caught.value.code == "account_of_fajma"


async def test_every_other_bad_input_is_told_in_one_line(ward: Ward, fajma: Terminal) -> None:
    nobody, number = mark(), f"P-{mark()}"
    patient = ("patient", "add", number, "--initials", "B.T.", "--bed", "1")
    await fajma(*patient)
    name = f"Awa {mark()}"
    for arguments, says in (
        (("ward", "add", "Maternité"), "these characters cannot be in it: Mé"),
        (("ward", "add", "x" * 32), "a ward's name"),
        (
            ("ward", "add", nobody, "--time-zone", "Dakar"),
            "not an IANA time zone such as Africa/Dakar",
        ),
        (adding(nobody, name, "--ward", "nirgends"), "there is no ward 'nirgends'"),
        (adding(nobody, name, "--existing"), "leave out --existing"),
        (adding("dr.awa", name), "exists already"),
        (("staff", "role", nobody, "--role", "doctor"), "does not belong to the staff"),
        (("staff", "leave", nobody), "does not belong to the staff"),
        (("staff", "lost-phone", nobody), "does not belong to the staff"),
        (("staff", "trust", nobody, "AAAA-BBBB"), "nothing to accept"),
        (patient, "known already"),
        (("patient", "add", f"{number}2", "--initials", "Awa Ba", "--bed", "1"), "no name"),
        (("patient", "add", f"{number}2", "--initials", "A.B.", "--bed", "1\n2"), "bed: write one"),
        (("patient", "add", f"{number}\x07", "--initials", "A.B.", "--bed", "1"), "number: write"),
        (("patient", "change", number, "--initials", "Awa Ba"), "no name of a patient is kept"),
        (("patient", "list", "--ward", "nirgends"), "there is no ward 'nirgends'"),
        ((*patient[:2], f"{number}3", *patient[3:], "--ward", "nirgends"), "there is no ward"),
        (("patient", "change", nobody, "--bed", "2"), "no patient has this number"),
        (("patient", "change", number, "--ward", "nirgends"), "there is no ward"),
        (("patient", "link-account", number, "awa"), "write Matrix user ids like"),
        (
            ("patient", "link-account", number, ward.clinic.mxid(nobody)),
            "there is no account",
        ),
        (("patient", "unlink-account", nobody), "no patient has this number"),
        (("patient", "monitor", number, "A4:CF"), "a monitor is twelve hex digits, e.g."),
        (("patient", "monitor", number, "A4CF12F03B7E"), "nobody would get this patient's alarms"),
    ):
        line = await refused(fajma, *arguments)
        assert says in line, (arguments, line)
    # What was refused has left nothing behind.
    assert nobody not in await fajma("staff", "list", "--left")
    assert row(await fajma("patient", "list"), number) == [number, "B.T.", "1", "unknown"]


async def test_without_a_running_fajma_the_command_says_how_to_start_it(
    ward: Ward, fajma: Terminal
) -> None:
    ports = ward.clinic.options.ports
    elsewhere = ward.clinic.directory / "nobody-listens.toml"
    text = ward.clinic.config_path.read_text()
    port = free_port()
    elsewhere.write_text(text.replace(f"= {ports.appservice}\n", f"= {port}\n"))
    answer = await fajma.answer("staff", "list", config=elsewhere)
    assert answer == Answer(
        1,
        "",
        f"fajma: FAJMA does not answer at http://127.0.0.1:{port}/fajma/v1:"
        " start it with `fajma run`\n",
    )
    missing = await fajma.answer("staff", "list", config=elsewhere.with_name("none.toml"))
    assert missing.code == 2
    assert missing.err.startswith("fajma: no settings file at ")


# --- who may, and what is seen -------------------------------------------------------------------


async def ask_api(
    ward: Ward, method: str, path: str, body: Mapping[str, Any] | None, *, by: str
) -> tuple[int, Any]:
    token = read_secret(ward.clinic.secrets_directory / by, purpose="token")
    url = f"http://127.0.0.1:{ward.clinic.options.ports.appservice}/fajma/v1/{path}"
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session,
        session.request(method, url, json=body) as response,
    ):
        return response.status, await response.json()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "wards"),
        ("POST", "wards"),
        ("GET", "staff"),
        ("POST", "staff"),
        ("POST", "staff/role"),
        ("POST", "staff/leave"),
        ("POST", "staff/lost-phone"),
        ("POST", "staff/password"),
        ("POST", "staff/trust"),
        ("POST", "staff/check"),
    ],
)
async def test_hospital_software_cannot_touch_wards_and_staff(
    ward: Ward, method: str, path: str
) -> None:
    body = {"who": "dr.awa", "name": "x"} if method == "POST" else None
    status, answer = await ask_api(ward, method, path, body, by="api-token")
    assert (status, answer["code"]) == (403, "forbidden")


async def test_hospital_software_keeps_patients(ward: Ward) -> None:
    body = {"number": f"P-{mark()}", "initials": "A.B.", "bed": "3"}
    status, answer = await ask_api(ward, "POST", "patients", body, by="api-token")
    assert (status, answer["number"]) == (200, body["number"])
    status, found = await ask_api(
        ward, "POST", "patients/find", {"number": body["number"]}, by="api-token"
    )
    assert (status, found["patient"]) == (200, answer["patient"])


async def test_names_and_patients_stand_in_clear_in_no_file(ward: Ward, fajma: Terminal) -> None:
    team, _ = await new_ward(fajma)
    name, number = mark(), f"P-{mark()}"
    initials = "".join(secrets.choice("ⴰⴱⴳⴷⴹⴻⴼⴽⵀⵃⵄⵅⵇⵉⵊⵍⵎⵏ") for _ in range(4))
    partner = f"@{mark()}:hopital.test"
    await fajma(*adding(partner, f"Awa {name}"))
    await fajma(*("patient", "add", number, "--initials", initials, "--bed", "1", "--ward", team))
    await fajma("patient", "change", number, "--bed", f"bed-{name}")
    await refused(fajma, *adding(f"n.{mark()}", f"Awa {name}"))
    await refused(fajma, "patient", "add", number, "--initials", initials, "--bed", "1")
    await fajma("patient", "monitor", number, secrets.token_hex(6))
    await fajma("staff", "leave", partner)
    found = {
        word
        for path in ward.clinic.directory.rglob("*")
        if path.is_file()
        for word in (name, number, initials, partner)
        if word.encode() in path.read_bytes()
    }
    assert found == {partner}  # an account is no secret, and shows that the search finds
