"""One running clinic for all end-to-end tests; every test brings its own patients."""

from __future__ import annotations

from collections.abc import AsyncIterator
from inspect import iscoroutinefunction as is_coroutine
from pathlib import Path

import pytest
import pytest_asyncio

from console.clinic import DOCTOR, Clinic, Options, Ports
from console.observer import Observer
from console.processes import free_port
from console.synapse import Turn
from fajma.files import write_private
from tests.e2e.ward import JITSI, SETTINGS, Ward
from tests.turn import Coturn

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The clinic's clients live in one event loop, so the tests run in it too."""
    shared = pytest.mark.asyncio(loop_scope="session")
    for item in items:
        asynchronous = isinstance(item, pytest.Function) and is_coroutine(item.function)
        if HERE in item.path.parents and asynchronous:
            item.add_marker(shared, append=False)


@pytest.fixture(scope="session")
def coturn(tmp_path_factory: pytest.TempPathFactory) -> Coturn:
    """The clinic's relay for calls, not started."""
    return Coturn(tmp_path_factory.mktemp("coturn"), free_port())


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def ward(tmp_path_factory: pytest.TempPathFactory, coturn: Coturn) -> AsyncIterator[Ward]:
    """Synapse, Mosquitto and ``fajma run`` on SQLite, and a doctor who watches."""
    directory = tmp_path_factory.mktemp("clinic")
    jitsi_token = directory / "jitsi-token"
    write_private(jitsi_token, JITSI.token)
    clinic = Clinic(
        Options(
            directory,
            Ports.free(),
            "mosquitto",
            SETTINGS | {"calls": {"jitsi_domain": JITSI.domain, "jitsi_token_file": jitsi_token}},
            private_push=True,
            turn=Turn((coturn.uri,), coturn.secret_file),
        )
    )
    await clinic.start()
    observer = Observer(clinic.synapse.base_url, clinic.mxid(DOCTOR), directory / "doctor")
    try:
        await observer.start(clinic.password(DOCTOR))
        yield Ward(clinic, observer)
    finally:
        await observer.stop()
        await clinic.stop()
