"""How soon a newcomer sees a vital, and what ``fajma run`` needs in memory."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

import psutil

from benchmarks.record import record
from console.check import SETTINGS, Judge
from console.clinic import DOCTOR, PATIENTS, Clinic, Options, Ports
from console.observer import Observer
from fajma.events import VitalsBatch


def demo_first_vital_s() -> None:
    """From the start of the demo's servers to the first vital decrypted by the doctor."""
    with tempfile.TemporaryDirectory() as directory:
        judge = Judge(Options(Path(directory) / "clinic", Ports.free(), settings=SETTINGS))
        asyncio.run(judge.run())
        first = next(one for one in judge.checks if one.name == "first_decrypted_vital")
        value = first.figure or float("inf")
        record("demo_first_vital_s", value, "s", aim="<= 45", met=value <= 45)


def run_memory_mb() -> None:
    """Resident memory of ``fajma run`` while two monitors send every 5 s, embedded broker."""
    asyncio.run(_memory())


async def _memory() -> None:
    directory = Path(tempfile.mkdtemp())
    clinic = Clinic(Options(directory, Ports.free(), "embedded", SETTINGS))
    observer = Observer(clinic.synapse.base_url, clinic.mxid(DOCTOR), directory / "observer")
    try:
        await clinic.start()
        await observer.start(clinic.password(DOCTOR))
        await clinic.open_consultations()
        for patient in PATIENTS:
            clinic.start_monitor(patient.device, "--scenario", patient.scenario, "--every", "5")
        batches = 0

        def enough(one: object) -> bool:
            nonlocal batches
            batches += isinstance(getattr(one, "content", None), VitalsBatch)
            return batches >= 20

        await observer.wait_for(enough, timeout_s=180)
        assert clinic.fajma is not None
        memory = psutil.Process(clinic.fajma.pid).memory_info().rss / 1e6
        record("run_memory_mb", memory, "MB", aim="<= 150", met=memory <= 150)
    finally:
        await observer.stop()
        await clinic.stop()
        shutil.rmtree(directory)
