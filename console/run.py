"""``fajma run``: joins the parts into one process."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable

import structlog

from appservice.api import Services, Tokens, add_routes
from appservice.consultations import ConsultationService
from appservice.messenger import Messenger
from appservice.operator import Operator
from appservice.patients import PatientService
from appservice.service import SCHEMAS, MatrixService
from appservice.staff import StaffService
from appservice.wards import WardService
from appservice.watch import Watch
from bots.alerts.bot import AlertBot
from bots.alerts.client import SignedClient
from bots.alerts.engine import AlarmEngine, rules_from
from bots.alerts.orders import Orders
from bots.alerts.watchers import Watchers
from bridges.mqtt_vitals.broker import EmbeddedBroker
from bridges.mqtt_vitals.ingest import Ingest
from bridges.mqtt_vitals.publisher import Publisher
from bridges.mqtt_vitals.subscriber import Subscriber
from console.files import only_here
from fajma.config import Settings, read_secret
from fajma.errors import InputError
from fajma.store import Records, Store
from fajma.store.site import check_site_key_file, site_key
from fajma.tasks import end

log = structlog.get_logger()


@contextlib.asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Records]:
    """The records, open."""
    check_site_key_file(settings.secrets.site_key_file)
    store = await Store.open(settings.database, also_upgrade=SCHEMAS)
    try:
        yield Records(store, await site_key(store, settings.secrets.site_key_file))
    finally:
        await store.close()


async def run(settings: Settings, *, ready: Callable[[], None] = lambda: None) -> None:
    """Run everything until a signal asks to stop.

    Args:
        settings: validated settings.
        ready: called once every part is working.

    Raises:
        FajmaError: something needed is missing; the message says what.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        # Two processes with one Matrix device would use message keys twice.
        settings.secrets.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        stack.enter_context(only_here(settings.secrets.directory))
        records = await stack.enter_async_context(opened(settings))

        matrix = MatrixService(settings, records)
        operator = Operator(
            settings.homeserver.url,
            settings.homeserver.admin_account,
            settings.homeserver.admin_password_file,
            server_name=settings.homeserver.server_name,
        )
        stack.push_async_callback(operator.close)
        wards = WardService(settings, records, matrix)
        staff = StaffService(settings, records, matrix, operator, wards)
        patients = PatientService(records, matrix, operator, wards)
        consultations = ConsultationService(settings, records, matrix, operator, patients)
        tokens = Tokens(
            hospital=read_secret(settings.secrets.api_token_file, purpose="API token"),
            operator=read_secret(settings.secrets.operator_token_file, purpose="operator's token"),
        )
        if tokens.hospital == tokens.operator:
            raise InputError(
                "secrets.api_token_file and secrets.operator_token_file hold the same token:"
                " hospital software must not manage staff",
                code="same_token",
            )
        add_routes(matrix.web, Services(consultations, wards, staff, patients), tokens)
        watch = Watch(settings.people, records, matrix, operator, staff)
        publisher = Publisher(settings.publish, records, matrix.vitals)
        matrix.on_audience_changed(publisher.resend)
        matrix.on_joined(consultations.greet)
        matrix.on_joined(wards.greet)
        stack.push_async_callback(matrix.stop)
        await matrix.start()

        client = SignedClient(
            settings.homeserver.url,
            matrix.alerts_mxid,
            settings.secrets.directory / "fajma-alerts",
            pins=records.pins,
            audience=records.audience,
        )
        stack.push_async_callback(client.close)
        password = read_secret(
            settings.secrets.alert_bot_password_file, purpose="alert bot's password"
        )
        await client.start_session(password)
        bot = AlertBot(client, records, host=matrix.host.mxid)
        orders = Orders(
            client,
            records,
            rules_from(settings.alarms),
            ours=(matrix.host.mxid, matrix.vitals.mxid, matrix.alerts_mxid),
        )
        engine = AlarmEngine(settings.alarms, records)

        if settings.mqtt.embedded:
            broker = EmbeddedBroker(settings.mqtt)
            stack.push_async_callback(broker.stop)
            await broker.start()
        subscriber = Subscriber(settings.mqtt, Ingest(records))

        parts = [
            asyncio.create_task(part, name=name)
            for name, part in {
                "alert bot": bot.run(),
                "alarm engine": engine.run(),
                "orders": orders.run(),
                "watchers": Watchers(client, records).run(),
                "messenger": Messenger(records, matrix.host).run(),
                "watch": watch.run(),
                "publisher": publisher.run(),
                "ingest": subscriber.run(),
            }.items()
        ]
        stopping = asyncio.create_task(stop.wait())
        readiness = asyncio.create_task(_report(subscriber, client, ready))
        try:
            done, _ = await asyncio.wait([*parts, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            # What is taken from the broker and not acknowledged comes again.
            await end([readiness, stopping, *parts])
        for task in done:
            if task is not stopping:
                log.error("part_ended", part=task.get_name())
                task.result()
    log.info("stopped")


async def _report(subscriber: Subscriber, client: SignedClient, ready: Callable[[], None]) -> None:
    await subscriber.subscribed.wait()
    await client.ready.wait()
    log.info("ready")
    ready()
