"""The servers that demo and tests run: real Synapse, Mosquitto and PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import aiohttp
import asyncpg
import paho.mqtt.client as mqtt
import psutil
import pytest
import yaml
from cryptography import x509
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from appservice.service import NOTICES_LOCALPART
from console.mosquitto import Mosquitto
from console.pki import Credentials, ensure_ca, issue_bridge, issue_device, issue_server
from console.processes import (
    Child,
    free_port,
    http_ok,
    require_port_free,
    require_program,
)
from console.synapse import Synapse, SynapseSite, Turn, render
from fajma.errors import InputError, UnavailableError
from fajma.language import Language

T = TypeVar("T")

MINE = "A4CF12F03B7E"
OTHER = "A4CF12F03B7F"


# --- processes -----------------------------------------------------------------------------------


async def never() -> None:
    await asyncio.Event().wait()


def python(code: str, log_path: Path) -> Child:
    return Child.start(
        [sys.executable, "-c", code], env=dict(os.environ), log_path=log_path, name="The sample"
    )


async def log_says(child: Child, word: str) -> None:
    # Another process's file: there is no event to wait for.
    while word not in child.log_path.read_text(encoding="utf-8"):  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def test_a_port_in_use_is_named_with_the_setting_to_change() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UnavailableError, match=rf"{port} .* mqtt\.port") as caught:
            require_port_free(port, "the setting mqtt.port")
    assert caught.value.code == "port_in_use"
    require_port_free(port, "the setting mqtt.port")


def test_a_missing_program_is_named_with_the_package_that_brings_it() -> None:
    with pytest.raises(UnavailableError, match="apt-get install mosquitto") as caught:
        require_program("mosquitto-of-another-world", "mosquitto")
    assert caught.value.code == "program_missing"
    assert "\n" not in str(caught.value)


async def test_a_child_that_dies_at_start_is_reported_at_once_with_its_reason(
    tmp_path: Path,
) -> None:
    log_path = tmp_path / "child.log"
    log_path.write_text("error: of an earlier run\n", encoding="utf-8")
    child = python("import sys; print('starting'); sys.exit('Error: disk is full')", log_path)
    with pytest.raises(UnavailableError, match="Error: disk is full") as caught:
        await child.ready(never(), timeout_s=60)
    assert caught.value.code == "child_died"
    assert str(log_path) in str(caught.value)
    assert child.returncode == 1


async def test_a_child_that_never_answers_is_reported_when_time_is_up(tmp_path: Path) -> None:
    child = python("import time; time.sleep(600)", tmp_path / "child.log")
    try:
        with pytest.raises(UnavailableError, match=r"not ready after 0\.1 s") as caught:
            await child.ready(http_ok(f"http://127.0.0.1:{free_port()}/"), timeout_s=0.1)
        assert caught.value.code == "not_ready"
        assert child.returncode is None
    finally:
        assert await child.stop() == -signal.SIGTERM


async def test_stop_kills_a_child_that_ignores_the_request_and_its_own_children(
    tmp_path: Path,
) -> None:
    code = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "grandchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('pid', grandchild.pid, 'up', flush=True)\n"
        "time.sleep(600)\n"
    )
    child = python(code, tmp_path / "child.log")
    await child.ready(log_says(child, "up"), timeout_s=30)
    grandchild = psutil.Process(int(child.log_path.read_text(encoding="utf-8").split()[1]))
    assert await child.stop(timeout_s=0.1) == -signal.SIGKILL
    psutil.wait_procs([grandchild], timeout=10)
    assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE
    assert await child.stop() == -signal.SIGKILL


async def test_children_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys, time\n"
        "from console.processes import Child\n"
        "child = Child.start([sys.executable, '-c', 'import time; time.sleep(600)'],\n"
        "    env=dict(os.environ), log_path=pathlib.Path(sys.argv[1]), name='inner')\n"
        "print('pid', child.pid, 'up', flush=True)\n"
        "time.sleep(600)\n"
    )
    root = str(Path(__file__).parents[2])
    parent = Child.start(
        [sys.executable, "-c", code, str(tmp_path / "inner.log")],
        env={**os.environ, "PYTHONPATH": root},
        log_path=tmp_path / "parent.log",
        name="The parent",
    )
    await parent.ready(log_says(parent, "up"), timeout_s=30)
    child = psutil.Process(int(parent.log_path.read_text(encoding="utf-8").split()[1]))
    os.kill(parent.pid, signal.SIGKILL)
    await parent.wait()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


# --- Synapse -------------------------------------------------------------------------------------


def site_in(directory: Path, port: int = 8008) -> SynapseSite:
    return SynapseSite(directory, "clinic-1.test:8448", port, "http://127.0.0.1:29330")


def test_rendering_again_changes_nothing_and_keeps_the_secrets(tmp_path: Path) -> None:
    site = site_in(tmp_path / "site")
    render(site)
    first = {path.name: path.read_bytes() for path in site.directory.iterdir()}
    render(site)
    assert {path.name: path.read_bytes() for path in site.directory.iterdir()} == first
    assert {"homeserver.yaml", "as_token", "hs_token", "signing.key", "log.yaml"} <= first.keys()
    assert first["as_token"] != first["hs_token"]


def test_every_rendered_file_is_readable_by_us_alone(tmp_path: Path) -> None:
    site = site_in(tmp_path / "site")
    render(site)
    assert site.directory.stat().st_mode & 0o777 == 0o700
    for path in site.directory.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600, path.name


def test_the_rendered_homeserver_is_closed_to_the_public(tmp_path: Path) -> None:
    site = site_in(tmp_path)
    render(site)
    config = yaml.safe_load(site.config_path.read_text(encoding="utf-8"))
    assert config["enable_registration"] is False
    assert config["encryption_enabled_by_default_for_room_type"] == "all"
    assert config["federation_domain_whitelist"] == []
    assert config["trusted_key_servers"] == []
    assert config["url_preview_enabled"] is False
    (listener,) = config["listeners"]
    assert listener["bind_addresses"] == ["127.0.0.1"]
    # Whoever holds an OpenID token may ask whose it is; nothing else of federation is served.
    assert listener["resources"] == [{"names": ["client", "openid"], "compress": True}]
    assert not [key for key in config if key.endswith(("_secret", "_secret_key"))]
    assert not [key for key in config if key.startswith("turn_") and key != "turn_allow_guests"]


def test_the_secret_of_the_relay_stays_in_its_file(tmp_path: Path) -> None:
    secret_file = tmp_path / "turn-secret"
    secret_file.write_text("shared-with-coturn", encoding="ascii")
    uris = ("turn:relay.clinic.test?transport=udp",)
    render(replace(site_in(tmp_path), turn=Turn(uris, secret_file)))
    text = (tmp_path / "homeserver.yaml").read_text(encoding="utf-8")
    assert "shared-with-coturn" not in text
    config = yaml.safe_load(text)
    assert config["turn_uris"] == list(uris)
    assert config["turn_shared_secret_path"] == str(secret_file)
    assert config["turn_allow_guests"] is False


@pytest.mark.parametrize(
    ("language", "name"), [(Language.FRENCH, "Avis FAJMA"), (Language.ENGLISH, "FAJMA notices")]
)
def test_the_room_of_the_sites_notices_is_named_in_the_sites_language(
    tmp_path: Path, language: Language, name: str
) -> None:
    render(replace(site_in(tmp_path), language=language))
    config = yaml.safe_load((tmp_path / "homeserver.yaml").read_text(encoding="utf-8"))
    assert config["server_notices"]["room_name"] == name
    # Ours whatever the language: a push rule names it, and no person may be added as it.
    assert config["server_notices"]["system_mxid_localpart"] == NOTICES_LOCALPART


def test_the_application_service_owns_its_names_and_no_similar_ones(tmp_path: Path) -> None:
    site = site_in(tmp_path)
    render(site)
    text = (tmp_path / "fajma-registration.yaml").read_text(encoding="utf-8")
    registration = yaml.safe_load(text)
    (users,) = registration["namespaces"]["users"]
    assert users == {
        "exclusive": True,
        "regex": r"^@fajma(-vitals|-as)?:clinic\-1\.test:8448$",
    }
    assert registration["rate_limited"] is False
    assert registration["receive_ephemeral"] is True
    assert registration["org.matrix.msc3202"] is True
    assert registration["sender_localpart"] == "fajma-as"


def test_a_homeserver_name_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        SynapseSite(tmp_path, "clinic test", 8008, "http://127.0.0.1:29330")
    assert caught.value.code == "bad_server_name"


async def test_an_account_can_be_registered_again_and_logs_in(homeserver: Synapse) -> None:
    mxid = await homeserver.register("dr.diallo", "a long password", displayname="Dr Diallo")
    assert mxid == "@dr.diallo:clinic.test"
    assert await homeserver.register("dr.diallo", "another password") == mxid
    token = await homeserver.login("dr.diallo", "a long password")
    assert await whoami(homeserver, token) == (200, mxid)
    with pytest.raises(InputError) as caught:
        await homeserver.login("dr.diallo", "another password")
    assert caught.value.code == "homeserver_refused"


async def test_the_application_service_acts_as_its_user(homeserver: Synapse) -> None:
    headers = {"Authorization": f"Bearer {homeserver.as_token}"}
    async with aiohttp.ClientSession(homeserver.base_url, headers=headers) as session:
        body = {"type": "m.login.application_service", "username": "fajma", "inhibit_login": True}
        async with session.post("/_matrix/client/v3/register", json=body) as response:
            # An earlier test of the same session may have made it.
            assert response.status in {200, 400}
    user = "@fajma:clinic.test"
    assert await whoami(homeserver, homeserver.as_token, user_id=user) == (200, user)
    status, _ = await whoami(homeserver, homeserver.as_token, user_id="@dr.diallo:clinic.test")
    assert status == 403


async def test_nobody_else_can_take_a_name_of_the_application_service(homeserver: Synapse) -> None:
    with pytest.raises(InputError, match=r"(?i)exclusive|reserved"):
        await homeserver.register("fajma-vitals", "a long password")


async def test_the_public_cannot_make_an_account_or_list_rooms(homeserver: Synapse) -> None:
    token = await login_new(homeserver, "nurse.ba")
    async with aiohttp.ClientSession(homeserver.base_url) as session:
        async with session.post("/_matrix/client/v3/register", json={}) as response:
            assert response.status == 403
        headers = {"Authorization": f"Bearer {token}"}
        body = {"visibility": "public", "room_alias_name": "ward"}
        async with session.post(
            "/_matrix/client/v3/createRoom", json=body, headers=headers
        ) as response:
            assert response.status == 403
        async with session.get("/_matrix/federation/v1/version") as response:
            assert response.status == 404


async def test_only_an_exempt_account_sends_faster_than_people_do(homeserver: Synapse) -> None:
    bot = await login_new(homeserver, "fajma-alerts")
    person = await login_new(homeserver, "dr.fall")
    await homeserver.exempt_from_rate_limits("@fajma-alerts:clinic.test")
    await homeserver.exempt_from_rate_limits("@fajma-alerts:clinic.test")
    assert await statuses_of_a_burst(homeserver, bot) == [200] * 25
    assert (await statuses_of_a_burst(homeserver, person))[-1] == 429


async def test_exempting_nobody_is_refused(homeserver: Synapse) -> None:
    with pytest.raises(InputError) as caught:
        await homeserver.exempt_from_rate_limits("@nobody:clinic.test")
    assert caught.value.code == "homeserver_refused"


async def test_a_homeserver_that_cannot_start_tells_why(tmp_path: Path) -> None:
    site = site_in(tmp_path, free_port())
    render(site)
    (tmp_path / "homeserver.db").mkdir()
    with pytest.raises(UnavailableError, match="unable to open database file") as caught:
        await Synapse(site).start()
    assert caught.value.code == "child_died"


async def test_a_homeserver_stopped_and_started_again_keeps_its_accounts(tmp_path: Path) -> None:
    site = site_in(tmp_path, free_port())
    synapse = Synapse(site)
    await synapse.start()
    try:
        await synapse.register("dr.sow", "a long password")
        pid = synapse.pid
        await synapse.stop()
        assert pid is not None
        assert not psutil.pid_exists(pid)
        require_port_free(site.port, "the port")
        await synapse.start()
        assert await synapse.login("dr.sow", "a long password")
    finally:
        await synapse.stop()


async def login_new(homeserver: Synapse, localpart: str) -> str:
    await homeserver.register(localpart, "a long password")
    return await homeserver.login(localpart, "a long password")


async def whoami(homeserver: Synapse, token: str, **params: str) -> tuple[int, str | None]:
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession(homeserver.base_url, headers=headers) as session,
        session.get("/_matrix/client/v3/account/whoami", params=params) as response,
    ):
        return response.status, (await response.json()).get("user_id")


async def statuses_of_a_burst(homeserver: Synapse, token: str) -> list[int]:
    """Of 25 quick messages, up to the first that is refused (Synapse delays refusals)."""
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(homeserver.base_url, headers=headers) as session:
        async with session.post("/_matrix/client/v3/createRoom", json={}) as response:
            room = (await response.json())["room_id"]
        statuses: list[int] = []
        while len(statuses) < 25 and 429 not in statuses:
            url = f"/_matrix/client/v3/rooms/{room}/send/com.fajma.test/{len(statuses)}"
            async with session.put(url, json={}) as response:
                statuses.append(response.status)
        return statuses


# --- certificates --------------------------------------------------------------------------------


def common_name(credentials: Credentials) -> str:
    certificate = x509.load_pem_x509_certificate(credentials.cert_file.read_bytes())
    (attribute,) = certificate.subject
    return str(attribute.value)


def test_certificates_are_used_again_until_they_are_about_to_end(tmp_path: Path) -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    device = issue_device(tmp_path, MINE, now=now)
    first = device.cert_file.read_bytes()
    assert common_name(device) == MINE
    issue_device(tmp_path, MINE, now=now + timedelta(days=699))
    assert device.cert_file.read_bytes() == first
    issue_device(tmp_path, MINE, now=now + timedelta(days=701))
    assert device.cert_file.read_bytes() != first
    assert common_name(issue_bridge(tmp_path, now=now)) == "fajma-ingest"


def test_the_brokers_certificate_is_made_again_for_another_name(tmp_path: Path) -> None:
    server = issue_server(tmp_path, ["localhost", "127.0.0.1"])
    first = server.cert_file.read_bytes()
    assert issue_server(tmp_path, ["localhost", "127.0.0.1"]).cert_file.read_bytes() == first
    assert issue_server(tmp_path, ["mqtt.clinic.test"]).cert_file.read_bytes() != first


def test_a_key_that_does_not_fit_its_certificate_is_replaced(tmp_path: Path) -> None:
    device = issue_device(tmp_path, MINE)
    other = issue_device(tmp_path, OTHER)
    device.key_file.write_bytes(other.key_file.read_bytes())
    first = device.cert_file.read_bytes()
    assert issue_device(tmp_path, MINE).cert_file.read_bytes() != first


def test_keys_are_readable_by_us_alone(tmp_path: Path) -> None:
    for credentials in (ensure_ca(tmp_path), issue_device(tmp_path, MINE)):
        assert credentials.key_file.stat().st_mode & 0o777 == 0o600


def test_an_authority_is_never_replaced_silently(tmp_path: Path) -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    authority = ensure_ca(tmp_path, now=now)
    with pytest.raises(InputError) as caught:
        issue_device(tmp_path, MINE, now=now + timedelta(days=3640))
    assert caught.value.code == "ca_expired"
    authority.key_file.unlink()
    with pytest.raises(InputError) as caught:
        ensure_ca(tmp_path, now=now)
    assert caught.value.code == "ca_incomplete"


@pytest.mark.parametrize("name", ["+", "#", "fajma-ingest", "a4cf12f03b7e", "../A4CF12F03B"])
def test_a_monitor_cannot_be_called_something_that_means_more_than_a_monitor(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(InputError) as caught:
        issue_device(tmp_path, name)
    assert caught.value.code == "bad_device_id"


# --- Mosquitto -----------------------------------------------------------------------------------


class MqttClient:
    """paho, with what happens to it as awaitable queues."""

    def __init__(self, broker: Mosquitto, credentials: Credentials | None, name: str = "x") -> None:
        self.messages: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self.published: asyncio.Queue[ReasonCode] = asyncio.Queue()
        self.connected: asyncio.Queue[ReasonCode] = asyncio.Queue()
        self.disconnected: asyncio.Queue[ReasonCode] = asyncio.Queue()
        self._subscribed: asyncio.Queue[list[ReasonCode]] = asyncio.Queue()
        self._broker = broker
        loop = asyncio.get_running_loop()

        def tell(queue: asyncio.Queue[T], item: T) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, item)

        client = mqtt.Client(CallbackAPIVersion.VERSION2, name, protocol=mqtt.MQTTv5)
        client.tls_set(
            str(broker.ca_file),
            str(credentials.cert_file) if credentials else None,
            str(credentials.key_file) if credentials else None,
            tls_version=ssl.PROTOCOL_TLS_CLIENT,
        )
        client.on_connect = lambda *args: tell(self.connected, args[3])
        client.on_disconnect = lambda *args: tell(self.disconnected, args[3])
        client.on_publish = lambda *args: tell(self.published, args[3])
        client.on_subscribe = lambda *args: tell(self._subscribed, args[3])
        client.on_message = lambda *args: tell(self.messages, (args[2].topic, args[2].payload))
        self.client = client

    async def connect(self, *, session: bool = False) -> None:
        """Connect (paho does it blocking), with a session that the broker keeps if wanted."""
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 0xFFFFFFFF if session else 0
        await asyncio.to_thread(
            self.client.connect,
            self._broker.host,
            self._broker.port,
            clean_start=not session,
            properties=properties,
        )
        self.client.loop_start()

    async def close(self) -> None:
        self.client.disconnect()
        await asyncio.to_thread(self.client.loop_stop)

    async def publish(self, topic: str, payload: bytes = b"{}") -> ReasonCode:
        self.client.publish(topic, payload, qos=1)
        return await asyncio.wait_for(self.published.get(), 10)

    async def subscribe(self, topic: str) -> None:
        self.client.subscribe(topic, qos=1)
        await asyncio.wait_for(self._subscribed.get(), 10)

    async def next_message(self) -> tuple[str, bytes]:
        return await asyncio.wait_for(self.messages.get(), 10)


@asynccontextmanager
async def mqtt_client(
    broker: Mosquitto, credentials: Credentials, name: str = "x"
) -> AsyncIterator[MqttClient]:
    client = MqttClient(broker, credentials, name)
    await client.connect()
    try:
        reason = await asyncio.wait_for(client.connected.get(), 10)
        assert not reason.is_failure
        yield client
    finally:
        await client.close()


NOT_AUTHORIZED = ReasonCode(PacketTypes.PUBACK, "Not authorized")


async def test_a_monitor_writes_its_own_topics_and_no_others(mosquitto: Mosquitto) -> None:
    async with (
        mqtt_client(mosquitto, mosquitto.issue_bridge()) as bridge,
        mqtt_client(mosquitto, mosquitto.issue_device(MINE)) as monitor,
    ):
        for topic in ("fajma/sensors/+", "fajma/v2/+/vitals", "fajma/v2/+/status"):
            await bridge.subscribe(topic)
        for topic in (
            f"fajma/sensors/{OTHER}",
            f"fajma/v2/{OTHER}/vitals",
            f"fajma/v2/{OTHER}/ack",
            f"fajma/v2/{MINE}/ack",
            f"fajma/v2/{MINE}/vitals/more",
            "fajma/sensors",
            "elsewhere",
        ):
            assert await monitor.publish(topic) == NOT_AUTHORIZED, topic
        for topic in (
            f"fajma/sensors/{MINE}",
            f"fajma/v2/{MINE}/vitals",
            f"fajma/v2/{MINE}/status",
        ):
            assert not (await monitor.publish(topic)).is_failure, topic
            # The first thing the bridge hears is what was allowed: nothing forged came before.
            assert (await bridge.next_message())[0] == topic


async def test_a_monitor_hears_only_what_the_bridge_sends_to_it(mosquitto: Mosquitto) -> None:
    async with (
        mqtt_client(mosquitto, mosquitto.issue_bridge()) as bridge,
        mqtt_client(mosquitto, mosquitto.issue_device(MINE)) as monitor,
    ):
        await monitor.subscribe("#")
        for topic in (f"fajma/v2/{OTHER}/ack", f"fajma/v2/{OTHER}/config"):
            assert not (await bridge.publish(topic)).is_failure
        assert not (await monitor.publish(f"fajma/v2/{MINE}/vitals")).is_failure
        for channel in ("ack", "config", "ota"):
            topic = f"fajma/v2/{MINE}/{channel}"
            assert not (await bridge.publish(topic)).is_failure
            assert (await monitor.next_message())[0] == topic
        assert await bridge.publish(f"fajma/sensors/{MINE}") == NOT_AUTHORIZED


async def test_a_monitor_cannot_take_over_the_session_of_another(mosquitto: Mosquitto) -> None:
    async with (
        mqtt_client(mosquitto, mosquitto.issue_bridge(), "fajma-ingest") as bridge,
        mqtt_client(mosquitto, mosquitto.issue_device(MINE), name="fajma-ingest") as thief,
    ):
        await bridge.subscribe("fajma/sensors/+")
        assert not (await thief.publish(f"fajma/sensors/{MINE}")).is_failure
        assert (await bridge.next_message())[0] == f"fajma/sensors/{MINE}"
        assert bridge.disconnected.empty()


async def test_without_a_certificate_of_ours_there_is_no_connection(
    mosquitto: Mosquitto, tmp_path: Path
) -> None:
    stranger = issue_bridge(tmp_path)
    for credentials in (None, stranger):
        client = MqttClient(mosquitto, credentials)
        # TLS 1.3 tells a client that it was refused only after its side of the handshake.
        try:
            await client.connect()
        except OSError:
            continue
        try:
            await asyncio.wait_for(client.disconnected.get(), 10)
            assert client.connected.empty()
        finally:
            await client.close()


async def test_too_old_a_tls_is_refused(mosquitto: Mosquitto) -> None:
    context = ssl.create_default_context(cafile=str(mosquitto.ca_file))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    device = mosquitto.issue_device(MINE)
    context.load_cert_chain(device.cert_file, device.key_file)
    with pytest.raises(ssl.SSLError):
        await asyncio.open_connection(mosquitto.host, mosquitto.port, ssl=context)


async def test_a_large_message_reaches_the_bridge_and_a_huge_one_does_not(
    mosquitto: Mosquitto,
) -> None:
    topic = f"fajma/sensors/{MINE}"
    async with mqtt_client(mosquitto, mosquitto.issue_bridge()) as bridge:
        await bridge.subscribe("fajma/sensors/+")
        async with mqtt_client(mosquitto, mosquitto.issue_device(MINE)) as monitor:
            assert not (await monitor.publish(topic, b"x" * 65_536)).is_failure
            assert len((await bridge.next_message())[1]) == 65_536
        for size in (70_000, 10_000_000):
            async with mqtt_client(mosquitto, mosquitto.issue_device(MINE)) as monitor:
                monitor.client.publish(topic, b"x" * size, qos=0)
                await asyncio.wait_for(monitor.disconnected.get(), 10)
        async with mqtt_client(mosquitto, mosquitto.issue_device(MINE)) as monitor:
            assert not (await monitor.publish(topic, b"small")).is_failure
        assert (await bridge.next_message())[1] == b"small"


async def test_what_waits_for_the_bridge_survives_a_kill_of_the_broker(tmp_path: Path) -> None:
    # A space, a quote and a dollar: a path of the demo may have them.
    broker = Mosquitto(tmp_path / "it's a $broker", free_port())
    await broker.start()
    try:
        bridge = MqttClient(broker, broker.issue_bridge())
        await bridge.connect(session=True)
        await bridge.subscribe("fajma/sensors/+")
        await bridge.close()

        command = broker.publish_command(MINE, f"fajma/sensors/{MINE}", '{"note": "it\'s $5"}')
        assert shlex.split(command)[0] == "mosquitto_pub"
        pasted = await asyncio.create_subprocess_shell(command, stderr=subprocess.PIPE)
        assert (await pasted.communicate())[1] == b""
        assert pasted.returncode == 0
        # It confirms a message before it saves it: what is not saved yet a kill may still take.
        saved = broker.directory / "mosquitto.db"
        async with asyncio.timeout(10):
            while not saved.exists() or b"it's $5" not in saved.read_bytes():  # noqa: ASYNC110
                await asyncio.sleep(0)

        assert broker.pid is not None
        os.kill(broker.pid, signal.SIGKILL)
        await broker.stop()
        await broker.start()
        bridge = MqttClient(broker, broker.issue_bridge())
        await bridge.connect(session=True)
        assert await bridge.next_message() == (f"fajma/sensors/{MINE}", b'{"note": "it\'s $5"}')
        await bridge.close()
    finally:
        pid = broker.pid
        await broker.stop()
    assert pid is not None
    assert not psutil.pid_exists(pid)
    assert "it's $5" not in broker.log_path.read_text(encoding="utf-8")


async def test_a_broker_on_a_taken_port_says_so(mosquitto: Mosquitto, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"mqtt\.port") as caught:
        await Mosquitto(tmp_path, mosquitto.port).start()
    assert caught.value.code == "port_in_use"


# --- PostgreSQL ----------------------------------------------------------------------------------


async def test_each_test_gets_an_empty_database_that_survives_power_cuts(postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    try:
        assert await connection.fetchval("SHOW fsync") == "on"
        tables = await connection.fetch("SELECT * FROM pg_tables WHERE schemaname = 'public'")
        assert tables == []
        await connection.execute("CREATE TABLE left_open (id int)")
    finally:
        await connection.close()
