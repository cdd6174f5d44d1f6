"""Several v2 monitors in one process: ``python -m tests.chaos.monitors PLAN``.

It measures until SIGTERM, then only sends, and ends when everything is acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from console.device_keys import DeviceKeys
from console.journal_files import JournalFiles
from console.monitor_v2 import Broker, Monitor, Resend, play, run_while
from console.simulation import Options, pace, tls_context
from fajma.tasks import end
from fajma.vitals import DeviceId


@dataclass(frozen=True, slots=True)
class Plan:
    """What the monitors of one process do.

    Attributes:
        port: of the broker on this machine.
        pki: where the certificates are.
        directory: holds keys, journals and ledgers.
        devices: the monitors.
        every_s: seconds between two readings of one.
    """

    port: int
    pki: str
    directory: str
    devices: tuple[str, ...]
    every_s: float

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Plan:
        stated = json.loads(path.read_text(encoding="utf-8"))
        return cls(**stated | {"devices": tuple(stated["devices"])})

    def key_file(self, device: str) -> Path:
        return Path(self.directory) / f"keys-{device}.json"

    def ledger(self, device: str) -> Path:
        return Path(self.directory) / f"ledger-{device}.jsonl"


# Not as patient as in the field, so that a campaign takes minutes.
RESEND = Resend(first_s=0.5, longest_s=2.0)


async def live(plan: Plan) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    with contextlib.ExitStack() as stack:
        monitors, playing = [], []
        for device in plan.devices:
            pki = Path(plan.pki)
            options = Options(
                DeviceId(device),
                ca=pki / "ca.crt",
                cert=pki / f"{device}.crt",
                key=pki / f"{device}.key",
                every_s=plan.every_s,
                distinctive=True,
            )
            keys = DeviceKeys.read(plan.key_file(device))
            directory = Path(plan.directory) / f"journal-{device}"
            files = JournalFiles(directory, keys.device, keys.version, ledger=plan.ledger(device))
            stack.enter_context(files)
            tls = tls_context(options)
            assert tls is not None
            broker = Broker(options.host, plan.port, tls)
            monitor = Monitor(broker, keys, files, resend=RESEND, warn=click.echo)
            monitors.append(monitor)
            playing.append(play(monitor, pace(options)))

        async def work() -> None:
            measuring = [asyncio.create_task(one) for one in (stop.wait(), *playing)]
            try:
                done, _ = await asyncio.wait(measuring, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await end(measuring)
            for task in done:
                task.result()
            for monitor in monitors:
                await monitor.settled()

        await run_while(monitors, work())


if __name__ == "__main__":
    asyncio.run(live(Plan.read(Path(sys.argv[1]))))
