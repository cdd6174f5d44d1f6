"""``fajma run``: joins the parts, in one process or in several.

There are four: ingest, application service, alarms, alert bot. Each makes all that it needs, says
when it works, and goes on until it is cancelled. One process may do all of them; over PostgreSQL
several may share them, and what only one may do at a time is done under a lease
(``console.leading``).
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import partial
from typing import Any, Final

import structlog
from mautrix.errors import MatrixError

from appservice.api import Services, add_routes
from appservice.api.callers import Tokens
from appservice.charts import ChartSender
from appservice.consultations import ConsultationService
from appservice.cryptographer import ASKED_BY
from appservice.errands import Porter, StartCall
from appservice.jitsi import JitsiDoor, JitsiRooms
from appservice.keeper import Keeper
from appservice.messenger import Messenger
from appservice.openid import OpenId
from appservice.operator import Operator
from appservice.patients import PatientService
from appservice.service import LOCALPARTS, SCHEMAS, MatrixService
from appservice.spaces import Spaces
from appservice.staff import StaffService
from appservice.waiting import WaitingRoom
from appservice.wards import WardService
from appservice.watch import Watch
from bots.alerts.bot import REQUEST_TIMEOUT_S, AlertBot
from bots.alerts.client import SignedClient
from bots.alerts.deadman import DeadMan
from bots.alerts.engine import AlarmEngine, rules_from
from bots.alerts.illustrator import Illustrator
from bots.alerts.orders import Orders
from bots.alerts.signs import Pace, Signs, names_of
from bots.alerts.situation import unanswered
from bots.alerts.watchdog import Watchdog
from bots.alerts.watchers import Watchers
from bots.alerts.webhook import Webhook, read_key
from bridges.mqtt_vitals.broker import EmbeddedBroker
from bridges.mqtt_vitals.ingest import Ingest, forget_refused
from bridges.mqtt_vitals.publisher import Publisher
from bridges.mqtt_vitals.subscriber import Subscriber
from console.files import only_here
from console.leading import lead
from console.patient_limits import PatientLimits
from console.sessions import require_certificates, serve
from console.signs_of_life import give_signs
from fajma.config import Settings, read_secret
from fajma.errors import InputError, UnavailableError
from fajma.store import Records, Store
from fajma.store.away import AGAIN_S, is_outage
from fajma.store.heartbeats import ALARMS, APPSERVICE, ingest
from fajma.store.leases import Lease
from fajma.store.site import check_site_key_file, site_key
from fajma.tasks import end, in_own_thread

log = structlog.get_logger()

INGESTS_MAX: Final = 8
"""Most processes that take readings from one broker."""


class Role(StrEnum):
    """What one process does when FAJMA is split."""

    INGEST = "ingest"
    """Takes readings from the broker into the log; several may."""
    APPSERVICE = "appservice"
    """Application service, REST API, watch, publisher, messages of ``@fajma``."""
    ALERTS = "alerts"
    """Judges readings; delivers alarms and takes orders as ``@fajma-alerts``."""


Started = Callable[[], object]
"""A part says that it works; may be called from any thread."""

Work = Callable[[Settings, Records, Started], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class _Part:
    """One part, and how it must be run.

    Attributes:
        work: does it until cancelled.
        alone: only one process may do it.
        has_device: it holds a Matrix device whose keys lie in ``secrets.directory``; two processes
            with one device would use message keys twice.
        blocks: it holds up its event loop now and then, and gets one of its own where it can.
    """

    work: Work
    alone: bool = True
    has_device: bool = False
    blocks: bool = False


@contextlib.asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Records]:
    """The records, open."""
    check_site_key_file(settings.secrets.site_key_file)
    store = await Store.open(settings.database, also_upgrade=SCHEMAS)
    try:
        yield Records(store, await site_key(store, settings.secrets.site_key_file))
    finally:
        await store.close()


async def run(
    settings: Settings,
    *,
    role: Role | None = None,
    number: int = 1,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Run until a signal asks to stop.

    Args:
        settings: validated settings.
        role: what this process does; everything where ``None``.
        number: which of the ingests this one is, 1 to ``INGESTS_MAX``.
        ready: called once every part of this process is working.

    Raises:
        FajmaError: something needed is missing; the message says what.
    """
    if role is not None:
        _require_separable(settings)
    parts = _parts(role, number)
    if "appservice" in parts:
        _tokens(settings)  # a standby must not find out when its turn comes
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signal_number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        settings.secrets.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if settings.database.is_sqlite:
            stack.enter_context(only_here(settings.secrets.directory))
        records = await stack.enter_async_context(_followed(settings))
        started = {name: asyncio.Event() for name in parts}
        tasks = [
            asyncio.create_task(
                _do(name, part, settings, records, started[name]), name=f"part {name}"
            )
            for name, part in parts.items()
        ]
        stopping = asyncio.create_task(stop.wait())
        reporting = asyncio.create_task(_report(started.values(), ready))
        try:
            done, _ = await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            # What is taken from the broker and not acknowledged comes again.
            await end([reporting, stopping, *tasks])
        for task in done - {stopping}:
            task.result()
    log.info("stopped")


def _require_separable(settings: Settings) -> None:
    if settings.database.is_sqlite:
        raise InputError(
            "several processes need PostgreSQL: set database.url, or run `fajma run` alone",
            code="split_needs_postgresql",
        )
    if settings.mqtt.embedded:
        raise InputError(
            "several processes need a broker of their own: set mqtt.embedded = false,"
            " or run `fajma run` alone",
            code="split_needs_broker",
        )


def _tokens(settings: Settings) -> Tokens:
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
    return tokens


def _parts(role: Role | None, number: int) -> dict[str, _Part]:
    """The parts that this process does, by name; that of a part is also the name of its lease."""
    parts = {
        Role.INGEST: {"ingest": _Part(partial(_ingest, number=number), alone=False)},
        Role.APPSERVICE: {"appservice": _Part(_appservice, has_device=True)},
        Role.ALERTS: {
            "alarms": _Part(_alarms),
            "alert-bot": _Part(_alert_bot, has_device=True, blocks=True),
        },
    }
    if role is not None:
        return parts[role]
    return {name: part for some in parts.values() for name, part in some.items()}


@contextlib.asynccontextmanager
async def _followed(settings: Settings) -> AsyncIterator[Records]:
    """The records, open, with hints of what other event loops and processes commit."""
    async with opened(settings) as records:
        if settings.database.is_sqlite:
            yield records
        else:
            async with records.store.hints.shared(records.store.db):
                yield records


async def _do(
    name: str, part: _Part, settings: Settings, records: Records, started: asyncio.Event
) -> None:
    """Do a part as it must be done."""
    tell = partial(asyncio.get_running_loop().call_soon_threadsafe, started.set)
    if not part.alone or settings.database.is_sqlite:
        # On SQLite this is the only process, and a second connection would fail on its lock.
        await _again(name, lambda: part.work(settings, records, tell), started)
        return

    async def under(lease: Lease) -> None:
        with contextlib.ExitStack() as stack:
            if part.has_device:
                stack.enter_context(only_here(settings.secrets.directory, name))

            def work() -> Coroutine[Any, Any, None]:
                if part.blocks:
                    return in_own_thread(_elsewhere(part, settings, lease, tell), name=name)
                return part.work(settings, records.under(lease), tell)

            await _again(name, work, started)

    await lead(records.leases, name, length_s=settings.database.lease_s, part=under)


async def _again(
    name: str, work: Callable[[], Coroutine[Any, Any, None]], worked: asyncio.Event
) -> None:
    """Do a part; once it has worked, nothing that is away for a while ends it.

    Before that, whoever starts FAJMA is told what is missing. Afterwards nobody is there to start
    it again, and what is away comes back: a database that is restarted, and the homeserver with it.
    A bug ends it all the same.
    """
    while True:
        try:
            await work()
        except Exception as error:
            passes = isinstance(error, UnavailableError | MatrixError) or is_outage(error)
            if not passes or not worked.is_set():
                raise
            log.error("part_begins_again", part=name, error=type(error).__name__, retry_s=AGAIN_S)
            await asyncio.sleep(AGAIN_S)
        else:
            return


async def _elsewhere(part: _Part, settings: Settings, lease: Lease, tell: Started) -> None:
    """Do a part in another event loop, to which our connections do not belong."""
    async with _followed(settings) as records:
        await part.work(settings, records.under(lease), tell)


async def _report(started: Iterable[asyncio.Event], ready: Callable[[], None]) -> None:
    for event in started:
        await event.wait()
    log.info("ready")
    ready()


async def _together(
    jobs: Mapping[str, Coroutine[Any, Any, None]], *, works: asyncio.Event, tell: Started
) -> None:
    """Do what belongs to a part until one of it ends; that should not be, so it ends the part."""

    async def tell_when_it_works() -> None:
        await works.wait()
        tell()

    telling = asyncio.create_task(tell_when_it_works())
    tasks = [asyncio.create_task(job, name=name) for name, job in jobs.items()]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end([telling, *tasks])
    for task in done:
        log.error("part_ended", part=task.get_name())
        task.result()


# --- the parts ------------------------------------------------------------------------------------


async def _ingest(settings: Settings, records: Records, tell: Started, *, number: int) -> None:
    """Readings from the broker into the log."""
    async with contextlib.AsyncExitStack() as stack:
        if settings.mqtt.embedded:
            broker = EmbeddedBroker(settings.mqtt)
            stack.push_async_callback(broker.stop)
            await broker.start()
        works = asyncio.Event()
        if settings.database.is_sqlite:
            subscriber = Subscriber(settings.mqtt, Ingest(records))
            works = subscriber.subscribed
            taking = {
                "ingest": subscriber.run(),
                "signs of life": give_signs(
                    records,
                    ingest(1),
                    every_s=_pace(settings).beat_s,
                    works=lambda: subscriber.is_working,
                ),
            }
        else:
            require_certificates(settings, number)
            taking = {"ingest": serve(settings, records, number, started=works.set)}
        kept = timedelta(days=settings.mqtt.quarantine_days)
        await _together(
            taking | {"quarantine": forget_refused(records, after=kept)}, works=works, tell=tell
        )


async def _appservice(settings: Settings, records: Records, tell: Started) -> None:
    """What needs ``@fajma`` and ``@fajma-vitals``: people, rooms, telemetry; the REST API."""
    async with contextlib.AsyncExitStack() as stack:
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
        rules = rules_from(settings.alarms)
        consultations = ConsultationService(
            settings,
            records,
            matrix,
            operator,
            patients,
            alarm_open=partial(unanswered, records, rules),
        )
        openid = OpenId(settings.homeserver, settings.federation, records)
        services = Services(
            consultations=consultations,
            wards=wards,
            staff=staff,
            patients=patients,
            openid=openid,
            devices=matrix.trusted_devices,
            limits=PatientLimits(records, rules).of,
            asked_by=ASKED_BY,
        )
        add_routes(matrix.web, settings, records, services, _tokens(settings))
        start_call: StartCall | None = None
        if settings.calls.jitsi_domain is not None:
            start_call = JitsiRooms(settings.calls, records, matrix.set_plain_state).start
            JitsiDoor(
                settings.calls,
                settings.homeserver.server_name,
                records,
                openid.who,
                matrix.is_member,
            ).add_routes(matrix.web)
        waiting = WaitingRoom(records, matrix)
        spaces = Spaces(settings, records, matrix)
        keeper = Keeper(records, matrix, consultations, waiting, spaces)
        matrix.on_state(keeper.heard)
        matrix.on_spoken(waiting.spoken)
        watch = Watch(settings.people, records, matrix, operator, staff)
        illustrator = Illustrator(records, rules)
        publisher = Publisher(settings.publish, records, matrix.vitals)
        matrix.on_audience_changed(publisher.resend)
        matrix.on_joined(consultations.rooms.greet)
        matrix.on_joined(wards.greet)
        stack.push_async_callback(matrix.stop)
        await matrix.start()
        works = asyncio.Event()
        works.set()
        await _together(
            {
                "messenger": Messenger(records, matrix.host).run(),
                "errands": Porter(records, consultations, start_call=start_call).run(),
                "charts": ChartSender(records, matrix.host, illustrator.draw).run(),
                "watch": watch.run(),
                "keeper": keeper.run(),
                "publisher": publisher.run(),
                "signs of life": give_signs(records, APPSERVICE, every_s=_pace(settings).beat_s),
            },
            works=works,
            tell=tell,
        )


async def _alarms(settings: Settings, records: Records, tell: Started) -> None:
    """Readings into alarm states and promised messages."""
    webhook = _webhook(settings, records)
    jobs = {
        "alarms": AlarmEngine(settings.alarms, records).run(),
        "signs of life": give_signs(records, ALARMS, every_s=_pace(settings).beat_s),
    }
    if webhook is not None:
        jobs["webhook"] = webhook.run()
    works = asyncio.Event()
    works.set()
    await _together(jobs, works=works, tell=tell)


def _webhook(settings: Settings, records: Records) -> Webhook | None:
    url, secret_file = settings.alarms.webhook_url, settings.secrets.webhook_secret_file
    if url is None:
        return None
    if secret_file is None:
        raise InputError(
            "alarms.webhook_url needs secrets.webhook_secret_file, shared with the receiver",
            code="webhook_secret_missing",
        )
    return Webhook(url, read_key(read_secret(secret_file, purpose="webhook's secret")), records)


async def _alert_bot(settings: Settings, records: Records, tell: Started) -> None:
    """What needs ``@fajma-alerts``: promised messages into rooms, commands out of them."""
    host, vitals, alerts = (f"@{name}:{settings.homeserver.server_name}" for name in LOCALPARTS)
    async with contextlib.AsyncExitStack() as stack:
        client = SignedClient(
            settings.homeserver.url,
            alerts,
            settings.secrets.directory / "fajma-alerts",
            pins=records.pins,
            audience=records.audience,
            request_timeout_s=REQUEST_TIMEOUT_S,
            tells_when_busy=True,
        )
        stack.push_async_callback(client.close)
        password = read_secret(
            settings.secrets.alert_bot_password_file, purpose="alert bot's password"
        )
        await client.start_session(password)
        bot = AlertBot(client, records, host=host)
        rules = rules_from(settings.alarms)
        orders = Orders(client, records, rules, ours=(host, vitals, alerts))
        pace = _pace(settings)
        signs = Signs(client, records, names_of(settings), pace)
        jobs = {
            "alert bot": bot.run(),
            "orders": orders.run(),
            "watchers": Watchers(client, records).run(),
            "dead man's switch": DeadMan(client, records, signs, pace, rules).run(),
        }
        if settings.alarms.watchdog_url is not None:
            every_s = settings.alarms.watchdog_every_s
            watchdog = Watchdog(signs, settings.alarms.watchdog_url, every_s=every_s)
            jobs["watchdog"] = watchdog.run()
        await _together(jobs, works=client.ready, tell=tell)


def _pace(settings: Settings) -> Pace:
    return Pace(settings.alarms.silence_told_after_s)
