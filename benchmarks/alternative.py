"""The same messages through Node-RED, which hospitals use for this: MQTT in, JSON, INSERT.

Installed by npm into ``build/node-red`` at the first measurement. It acknowledges a message when it
arrives, not when it is stored, seals nothing and knows no redelivery; that is how people build it.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from pathlib import Path
from typing import Final

import asyncpg

from benchmarks.ingest import MESSAGES, Scene, committed, load, ours, payloads, scene, session_of
from benchmarks.record import record
from console.processes import LOOPBACK, Child, environment_for_server, free_port, tcp_open

PACKAGES: Final = ("node-red@4.1.15", "pg@8.23.1")
HOME: Final = Path("build/node-red").absolute()

_STORE: Final = """
const pool = global.get('pool');
const said = msg.payload;
pool.query(
  'INSERT INTO reading VALUES ($1, $2, $3, $4, $5)',
  [said.device_id, said.timestamp, said.heart_rate, said.spo2, said.temperature]
).catch(error => node.error(error));
return null;
"""


def _installed() -> None:
    if not (HOME / "node_modules" / "node-red").exists():
        HOME.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["npm", "install", "--no-fund", "--no-audit", "--prefix", str(HOME), *PACKAGES],
            check=True,
            stdout=subprocess.DEVNULL,
        )


def _flow(here: Scene) -> list[dict[str, object]]:
    bridge = here.mosquitto.issue_bridge()
    return [
        {"id": "tab", "type": "tab", "label": "vitals"},
        {
            "id": "broker", "type": "mqtt-broker", "broker": LOOPBACK,
            "port": str(here.mosquitto.port), "clientid": "fajma-ingest", "usetls": True,
            "tls": "tls", "protocolVersion": "5", "cleansession": False, "sessionExpiry": 3600,
            "autoConnect": True, "keepalive": 30,
        },
        {
            "id": "tls", "type": "tls-config", "cert": str(bridge.cert_file),
            "key": str(bridge.key_file), "ca": str(here.mosquitto.ca_file),
            "verifyservercert": True,
        },
        {
            "id": "in", "z": "tab", "type": "mqtt in", "topic": "fajma/sensors/+", "qos": "1",
            "datatype": "json", "broker": "broker", "wires": [["store"]],
        },
        {
            "id": "store", "z": "tab", "type": "function", "func": _STORE, "outputs": 1,
            "wires": [[]],
        },
    ]  # fmt: skip


def _settings(here: Scene, port: int) -> str:
    database = json.dumps({"host": str(here.postgres.directory), "user": "fajma",
                           "database": "alternative", "max": 8})  # fmt: skip
    return (
        f"const pg = require({json.dumps(str(HOME / 'node_modules' / 'pg'))});"
        f"module.exports = {{ uiHost: '{LOOPBACK}', uiPort: {port}, flowFile: 'flows.json',"
        f" httpAdminRoot: false, telemetry: {{ enabled: false }},"
        f" functionGlobalContext: {{ pool: new pg.Pool({database}) }} }};"
    )


async def _node_red(here: Scene, messages: list[tuple[str, bytes]], directory: Path) -> float:
    await here.postgres.execute("CREATE DATABASE alternative TEMPLATE template0")
    connection = await asyncpg.connect(here.postgres.url("alternative"))
    await connection.execute(
        "CREATE TABLE reading"
        " (device TEXT, at BIGINT, heart_rate REAL, spo2 REAL, temperature REAL)"
    )
    await connection.close()
    await asyncio.to_thread(session_of, here, "fajma-ingest", "fajma/sensors/+")
    await asyncio.to_thread(load, here, messages)
    port = free_port()
    (directory / "flows.json").write_text(json.dumps(_flow(here)), encoding="utf-8")
    (directory / "settings.js").write_text(_settings(here, port), encoding="utf-8")
    child = Child.start(
        ["node", str(HOME / "node_modules" / "node-red" / "red.js"), "-u", str(directory)],
        env=environment_for_server(),
        log_path=directory / "node-red.log",
        name="Node-RED",
    )
    try:
        first = "SELECT COUNT(*) FROM (SELECT 1 FROM reading LIMIT 1) AS seen"
        await child.ready(tcp_open(LOOPBACK, port), 60)
        await committed(here, "alternative", first, 1)  # its start is not counted
        began = time.perf_counter()
        await committed(here, "alternative", "SELECT COUNT(*) FROM reading", len(messages))
        return len(messages) / (time.perf_counter() - began)
    finally:
        await child.stop()


async def _compare() -> None:
    _installed()
    messages = payloads(MESSAGES // 3)
    directory = HOME / "user"
    directory.mkdir(exist_ok=True)
    async with scene() as here:
        theirs = await _node_red(here, messages, directory)
    async with scene() as here:
        own = await ours(here, messages)
    record(
        "ingest_vs_alternative", own, "readings/s", reference="Node-RED 4.1 with INSERT",
        reference_value=theirs, aim="reported", met=True,
    )  # fmt: skip


def ingest_alternative() -> None:
    """Durable ingest of v1 on PostgreSQL beside Node-RED on the same messages."""
    asyncio.run(_compare())
