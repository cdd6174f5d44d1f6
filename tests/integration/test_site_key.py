"""The key in the site key file can be changed, whatever dies in between."""

from __future__ import annotations

import asyncio
import base64
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from console import keys as command
from fajma.config import DatabaseSettings
from fajma.errors import InputError
from fajma.files import write_private
from fajma.sealing import SiteKey, generate_site_key
from fajma.store import Records, Store
from fajma.store import site as site_module
from fajma.store.site import change_site_key, site_key
from fajma.vitals import DeviceId

THING = b"a thing"


def raw(path: Path) -> bytes:
    return base64.b64decode(path.read_text(encoding="ascii").split()[0])


async def names(store: Store, path: Path) -> bytes:
    """What the site's keys make of a thing; the same keys make the same."""
    return (await site_key(store, path)).fingerprint(THING)


async def test_the_keys_are_the_same_at_each_start_and_are_not_the_file_s(
    store: Store, site_key_file: Path
) -> None:
    first = await names(store, site_key_file)
    assert await names(store, site_key_file) == first
    assert SiteKey(raw(site_key_file)).fingerprint(THING) != first


async def test_after_a_change_the_old_file_opens_nothing_and_the_data_opens_as_before(
    store: Store, site_key_file: Path, tmp_path: Path
) -> None:
    records = Records(store, await site_key(store, site_key_file))
    patient = await records.patients.add(number="17", initials="A.D.", bed="4", account=None)
    old_copy = tmp_path / "copy of the site key"
    write_private(old_copy, site_key_file.read_bytes())
    before = await names(store, site_key_file)

    await change_site_key(store, site_key_file)
    assert site_key_file.stat().st_mode & 0o777 == 0o600
    assert len(site_key_file.read_text(encoding="ascii").split()) == 1
    assert await names(store, site_key_file) == before
    again = Records(store, await site_key(store, site_key_file))
    assert await again.patients.get(patient.key) == patient
    with pytest.raises(InputError) as caught:
        await site_key(store, old_copy)
    assert caught.value.code == "site_key_wrong"


class PowerCutError(Exception):
    """Where the tests interrupt."""


@pytest.mark.parametrize("dies_at", [0, 1, 2])
async def test_a_change_that_is_cut_off_leaves_a_file_that_opens_and_can_be_repeated(
    store: Store, site_key_file: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    before = await names(store, site_key_file)
    writes = 0

    def write(path: Path, content: str) -> None:
        nonlocal writes
        if writes == dies_at:
            raise PowerCutError
        writes += 1
        write_private(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(site_module, "write_private", write)
        if dies_at < 2:
            with pytest.raises(PowerCutError):
                await change_site_key(store, site_key_file)
        else:
            await change_site_key(store, site_key_file)
    assert await names(store, site_key_file) == before
    await change_site_key(store, site_key_file)
    assert await names(store, site_key_file) == before


async def test_two_changes_at_once_leave_a_file_that_opens(
    store: Store, site_key_file: Path
) -> None:
    before = await names(store, site_key_file)
    for _ in range(5):
        ended = await asyncio.gather(
            *(change_site_key(store, site_key_file) for _ in range(3)), return_exceptions=True
        )
        refused = [one for one in ended if one is not None]
        assert len(refused) < len(ended)
        assert {getattr(one, "code", "") for one in refused} <= {"site_key_changing"}
        assert await names(store, site_key_file) == before


async def test_a_file_with_another_key_is_refused(
    store: Store, site_key_file: Path, tmp_path: Path
) -> None:
    await site_key(store, site_key_file)
    other = tmp_path / "other.key"
    write_private(other, generate_site_key())
    with pytest.raises(InputError) as caught:
        await site_key(store, other)
    assert caught.value.code == "site_key_wrong"
    assert str(other) in str(caught.value)


async def test_a_database_from_before_is_opened_by_the_file_s_own_key(
    database: DatabaseSettings, site_key_file: Path
) -> None:
    store = await Store.open(database)
    try:
        old: Any = Records(store, SiteKey(raw(site_key_file)))
        patient = await old.patients.add(number="17", initials="A.D.", bed="4", account=None)
        records = Records(store, await site_key(store, site_key_file))
        assert await records.patients.by_number("17") == patient
    finally:
        await store.close()


# --- keys of monitors ----------------------------------------------------------------------------

DEVICE = DeviceId("A4CF12F03B7E")


async def test_keys_of_a_monitor_are_retired_by_command_and_that_is_noted(
    store: Store, site_key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = Records(store, await site_key(store, site_key_file))
    now = datetime.now(UTC)
    for _ in range(3):
        await records.devices.new_keys(DEVICE, now=now)

    async def given(before: int) -> list[str]:
        works: list[Any] = []
        told: list[str] = []
        with monkeypatch.context() as patched:
            patched.setattr(command, "with_records", lambda _, work: works.append(work))
            arguments = ["retire", DEVICE, "--before", str(before), "--config", "x.toml"]
            assert CliRunner().invoke(command.keys, arguments).exit_code == 0
            patched.setattr(command.click, "echo", told.append)
            await works[0](records, None)
        return told

    assert await given(3) == [
        f"retired version 1, 2 of the keys of {DEVICE}",
        "in force: version 3",
    ]
    fleet = records.devices.fleet()
    async with store.transaction() as connection:
        await fleet.load_keys(connection, [(DEVICE, version) for version in (1, 2, 3)])
    assert [fleet.keys(DEVICE, version) is not None for version in (1, 2, 3)] == [
        False,
        False,
        True,
    ]
    with pytest.raises(InputError) as caught:
        await given(3)
    assert caught.value.code == "no_such_keys"
    assert (await given(4))[1] == "in force: none: it is believed nothing"
    entries = [one for one in await records.audit.latest() if one.action == "device.keys.retire"]
    assert [(one.subject, one.detail["versions"]) for one in entries] == [
        (DEVICE, "1, 2"),
        (DEVICE, "3"),
    ]
