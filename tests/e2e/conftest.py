"""One running clinic for all end-to-end tests; every test brings its own patients."""

from __future__ import annotations

from collections.abc import AsyncIterator
from inspect import iscoroutinefunction as is_coroutine
from pathlib import Path

import pytest
import pytest_asyncio

from console.clinic import DOCTOR, Clinic, Options, Ports
from console.observer import Observer
from tests.e2e.ward import SETTINGS, Ward

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The clinic's clients live in one event loop, so the tests run in it too."""
    shared = pytest.mark.asyncio(loop_scope="session")
    for item in items:
        asynchronous = isinstance(item, pytest.Function) and is_coroutine(item.function)
        if HERE in item.path.parents and asynchronous:
            item.add_marker(shared, append=False)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def ward(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ward]:
    """Synapse, Mosquitto and ``fajma run`` on SQLite, and a doctor who watches."""
    directory = tmp_path_factory.mktemp("clinic")
    clinic = Clinic(Options(directory, Ports.free(), "mosquitto", SETTINGS, private_push=True))
    await clinic.start()
    observer = Observer(clinic.synapse.base_url, clinic.mxid(DOCTOR), directory / "doctor")
    try:
        await observer.start(clinic.password(DOCTOR))
        yield Ward(clinic, observer)
    finally:
        await observer.stop()
        await clinic.stop()
