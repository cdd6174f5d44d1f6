"""The REST API: for hospital software, for people who signed in, and for the ``fajma`` command.

Every route is declared once (``declare.Route``, in the files of its resources). ``gate`` makes of
the declarations what every request must pass, ``permissions`` says who may, ``openapi`` describes
them. docs/api.md says how it is used.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from aiohttp import web

from appservice.api import openapi
from appservice.api.callers import Callers, Tokens
from appservice.api.clinical import ClinicalRoutes, LimitsOf
from appservice.api.consents import ConsentRoutes
from appservice.api.consultations import ConsultationRoutes
from appservice.api.declare import PREFIX, Call, Route
from appservice.api.gate import Gate
from appservice.api.pace import Pace
from appservice.api.pages import Cursors
from appservice.api.patients import PatientRoutes
from appservice.api.permissions import Permission, reach
from appservice.api.reach import Reaches
from appservice.api.sessions import SessionRoutes
from appservice.api.sign_in import OpenId, SignIn, TrustedDevices
from appservice.api.staff import StaffRoutes, WardRoutes
from appservice.api.stream import StreamRoutes
from appservice.api.tokens import AccessTokens
from appservice.consultations import ConsultationService
from appservice.patients import PatientService
from appservice.staff import StaffService
from appservice.wards import WardService
from fajma import __version__
from fajma.config import Settings
from fajma.store import Records

__all__ = ["Services", "Tokens", "add_routes"]


@dataclass(frozen=True, slots=True)
class Services:
    """What is called.

    Attributes:
        openid: asks homeservers whom an OpenID token belongs to.
        devices: the trusted devices of somebody, looked up afresh.
        limits: by which the alarm engine judges a patient.
        asked_by: the sender whose view of devices counts.
    """

    consultations: ConsultationService
    wards: WardService
    staff: StaffService
    patients: PatientService
    openid: OpenId
    devices: TrustedDevices
    limits: LimitsOf
    asked_by: str


def add_routes(
    app: web.Application,
    settings: Settings,
    records: Records,
    services: Services,
    tokens: Tokens,
    *,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    elapsed_s: Callable[[], float] = time.monotonic,
) -> list[Route]:
    """Put the API under ``/fajma/v1`` of the application service's web server.

    Returns:
        Every route.
    """
    server_name = settings.homeserver.server_name
    access = AccessTokens(settings.secrets.directory, server_name)
    callers = Callers(records, tokens, access, asked_by=services.asked_by)
    reaches = Reaches(records)
    pace = Pace(settings.api.requests_per_s, settings.api.requests_at_once)
    gate = Gate(records, callers, reaches, pace, now=now, elapsed_s=elapsed_s)

    async def still_may(call: Call) -> bool:
        header = call.request.headers.get("Authorization")
        caller = await callers.of(header, call.request.remote or "", now())
        extent = reach(Permission.READ_OBSERVATIONS, caller.who)
        if extent is None:
            return False
        among = await reaches.consultations(caller, extent)
        return among is None or call.consultation in among

    streams = StreamRoutes(records, still_may, now=now)
    sign_in = SignIn(
        records, services.openid, services.devices, callers, access, server_name=server_name
    )
    cursors = Cursors(records.site_key)
    routes: list[Route] = [
        *SessionRoutes(sign_in).routes(),
        *WardRoutes(services.wards).routes(),
        *StaffRoutes(services.staff).routes(),
        *PatientRoutes(records, services.patients, reaches, cursors).routes(),
        *ClinicalRoutes(records, services.limits, cursors).routes(),
        *ConsentRoutes(records).routes(),
        *ConsultationRoutes(records, services.consultations, reaches, cursors).routes(),
        *streams.routes(),
    ]
    routes += _described(routes)
    api = web.Application(middlewares=[gate.middleware])
    for route in routes:
        api.router.add_route(route.method, route.path, gate.handler(route))
    api.on_shutdown.append(streams.close)
    app.add_subapp(PREFIX, api)
    return routes


def _described(others: Sequence[Route]) -> list[Route]:
    """The routes that describe all routes, themselves included."""
    routes: list[Route] = []

    async def as_json(_: Call) -> web.StreamResponse:
        return web.Response(text=said, content_type="application/json")

    async def as_page(_: Call) -> web.StreamResponse:
        headers = {"Content-Security-Policy": openapi.PAGE_POLICY}
        return web.Response(text=shown, content_type="text/html", headers=headers)

    read = Permission.READ_API
    routes += [
        Route("GET", "/openapi.json", read, "This API as OpenAPI 3.1", as_json),
        Route("GET", "/docs", read, "This API for people", as_page, content_type="text/html"),
    ]
    document = openapi.document([*others, *routes], __version__)
    said, shown = json.dumps(document), openapi.page(document)
    return routes
