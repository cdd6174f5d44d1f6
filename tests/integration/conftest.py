"""The store over each database, and patients to fill it with."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fajma.config import DatabaseSettings
from fajma.language import Language
from fajma.sealing import generate_site_key
from fajma.store import Records, Store
from fajma.store.consultations import Consultation
from fajma.store.site import site_key
from fajma.vitals import DeviceId
from tests.integration.scene import Scene, staffed

ADMITTED = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)


# Plain fixtures start the servers, each in a loop of its own; the asynchronous ones use them.


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> DatabaseSettings:
    """A fresh, empty database of each kind."""
    if request.param == "postgres":
        return DatabaseSettings(url=request.getfixturevalue("postgres_url"))
    return DatabaseSettings(url=f"sqlite://{tmp_path}/store/fajma.db")


@pytest.fixture
def site_key_file(tmp_path: Path) -> Path:
    """The file of a new site key."""
    path = tmp_path / "site.key"
    path.touch(mode=0o600)
    path.write_text(generate_site_key(), encoding="ascii")
    return path


@pytest.fixture
async def store(database: DatabaseSettings) -> AsyncIterator[Store]:
    """An open store over each kind of database."""
    store = await Store.open(database)
    yield store
    await store.close()


@pytest.fixture
async def records(store: Store, site_key_file: Path) -> Records:
    """The repositories over each kind of database."""
    return Records(store, await site_key(store, site_key_file))


@pytest.fixture
async def sqlite_records(tmp_path: Path, site_key_file: Path) -> AsyncIterator[Records]:
    """The repositories over SQLite alone, where the database is not the subject."""
    store = await Store.open(DatabaseSettings(url=f"sqlite://{tmp_path}/store/fajma.db"))
    yield Records(store, await site_key(store, site_key_file))
    await store.close()


@pytest.fixture
async def scene(sqlite_records: Records) -> Scene:
    """Two wards with their staff and rooms."""
    return await staffed(sqlite_records)


@pytest.fixture
def admit() -> Callable[..., Awaitable[Consultation]]:
    """Give a monitor to a new patient in an open consultation since `ADMITTED`."""
    numbers = itertools.count(1)

    async def admit(records: Records, device: str) -> Consultation:
        number = next(numbers)
        patient = await records.patients.add(
            number=f"record {number}", initials="A.D.", bed=f"{number}", account=None
        )
        opening = await records.consultations.add(
            patient=patient.key,
            clinicians=("@doctor:clinic.test",),
            language=Language.FRENCH,
            time_zone="Africa/Dakar",
            now=ADMITTED,
        )
        await records.consultations.open_in(opening.id, f"!room-{number}:clinic.test")
        await records.devices.link(DeviceId(device), opening.patient, opening.id, now=ADMITTED)
        consultation = await records.consultations.get(opening.id)
        assert consultation is not None
        return consultation

    return admit
