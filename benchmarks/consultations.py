"""Opening a consultation beside the same Matrix calls made bare; a thousand open consultations."""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import psutil

from appservice.consultations import ConsultationService
from appservice.operator import Operator
from appservice.patients import PatientService
from appservice.rooms import Plan, room_request
from appservice.service import SCHEMAS, MatrixService
from appservice.staff import StaffService
from appservice.wards import WardService
from benchmarks.record import record
from console.clinic import DOCTOR, Clinic, Options, Ports
from console.observer import Observer
from console.run import opened
from console.synapse import OPERATOR
from fajma.config import Settings, load
from fajma.language import Language
from fajma.store import Records, Store
from fajma.store.people import Role
from fajma.store.site import site_key
from fajma.vitals import PatientKey

OPENED: Final = 25
FIRST: Final = 3
"""Left out: the first ones make what all later ones use."""
CALM_S: Final = 1.5
"""Between two, so that what the homeserver does after the answer burdens neither."""

THOUSAND: Final = 1000
SETTLED_S: Final = 60.0


def open_consultation() -> None:
    """``ConsultationService.open`` with a doctor's real device, and its requests made bare."""
    asyncio.run(_open_consultation())


def thousand_consultations() -> None:
    """Memory and start of ``fajma run`` with 1,000 open consultations in real rooms."""
    asyncio.run(_thousand_consultations())


# --- opening -------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Recorded:
    """The requests that our senders make, one after the other."""

    requests: list[tuple[str, str, Any, dict[str, str]]] = field(default_factory=list)

    def follow(self, sender: Any) -> None:
        request = sender.client.api.request

        async def recorded(
            method: Any, path: Any, content: Any = None, *more: Any, **options: Any
        ) -> Any:
            query = dict(options.get("query_params") or {}) | {"user_id": sender.mxid}
            said = json.loads(json.dumps(content if content is not None else {}, default=_plain))
            self.requests.append((method.value, str(path), said, query))
            return await request(method, path, content, *more, **options)

        sender.client.api.request = recorded


def _plain(value: Any) -> Any:
    return value.serialize()


async def _open_consultation() -> None:
    ours: list[float] = []
    bare: list[float] = []
    async with _house() as (service, records, doctor, url, token, recorded):
        headers = {"Authorization": f"Bearer {token}"}
        async with aiohttp.ClientSession(headers=headers) as session:
            for number in range(OPENED):
                recorded.requests.clear()
                started = time.perf_counter()
                one = await service.open(
                    number=f"B-{number}",
                    initials="A.D.",
                    bed="4",
                    patient_account=None,
                    clinicians=[doctor],
                    device=None,
                    language=Language.FRENCH,
                    now=datetime.now(UTC),
                )
                ours.append(time.perf_counter() - started)
                # One-time keys are made in the background whenever some were used.
                requests = [each for each in recorded.requests if "keys/upload" not in each[1]]
                assert one.room_id is not None
                await asyncio.sleep(CALM_S)
                started = time.perf_counter()
                await _replay(session, url, requests, one.room_id)
                bare.append(time.perf_counter() - started)
                await asyncio.sleep(CALM_S)
        assert await records.consultations.open_ones()
    print(f"{len(requests)} requests each: {', '.join(_names(requests))}")
    ratio = statistics.median(ours[FIRST:]) / statistics.median(bare[FIRST:])
    record(
        "open_consultation",
        statistics.median(ours[FIRST:]),
        "s",
        reference="the same requests made bare, one after the other",
        reference_value=statistics.median(bare[FIRST:]),
        aim="<= 1.3 x the reference",
        met=ratio <= 1.3,
    )


def _names(requests: list[tuple[str, str, Any, dict[str, str]]]) -> list[str]:
    return [f"{method} {path.split('/')[-1][:24]}" for method, path, _, _ in requests]


async def _replay(
    session: aiohttp.ClientSession,
    url: str,
    requests: list[tuple[str, str, Any, dict[str, str]]],
    room_id: str,
) -> None:
    """The same requests for another room, under other transaction ids."""
    other = ""
    mark = secrets.token_hex(4)
    for method, path, content, query in requests:
        here = path.replace(quote(room_id, safe=""), quote(other, safe="")).replace(room_id, other)
        if method == "PUT" and "/state/" not in here:
            here = f"{here}-{mark}"
        options: dict[str, Any] = {} if method == "GET" else {"json": content}
        async with session.request(
            method, f"{url}/{here.lstrip('/')}", params=query, **options
        ) as response:
            answer = await response.json()
            assert response.status == 200, (method, here, answer)
            if here.endswith("createRoom"):
                other = answer["room_id"]


@asynccontextmanager
async def _house() -> AsyncIterator[tuple[ConsultationService, Records, str, str, str, _Recorded]]:
    """Synapse with our application service in this process, and a doctor's client beside it."""
    directory = Path(tempfile.mkdtemp())
    clinic = Clinic(Options(directory, Ports.free(), "embedded"))
    observer = Observer(clinic.synapse.base_url, clinic.mxid(DOCTOR), directory / "doctor")
    try:
        await clinic.start()
        await clinic.stop_fajma()
        settings = load(clinic.config_path)
        store = await Store.open(settings.database, also_upgrade=SCHEMAS)
        records = Records(store, await site_key(store, settings.secrets.site_key_file))
        matrix = MatrixService(settings, records)
        operator = Operator(
            settings.homeserver.url,
            OPERATOR,
            settings.homeserver.admin_password_file,
            server_name=settings.homeserver.server_name,
        )
        try:
            await matrix.start()
            await observer.start(clinic.password(DOCTOR))
            service = await _service(settings, records, matrix, operator, observer.client.user_id)
            recorded = _Recorded()
            for sender in (matrix.host, matrix.vitals):
                recorded.follow(sender)
            token = clinic.synapse.as_token
            yield (
                service, records, observer.client.user_id, clinic.synapse.base_url, token, recorded
            )  # fmt: skip
        finally:
            await observer.stop()
            await matrix.stop()
            await operator.close()
            await store.close()
    finally:
        await clinic.stop()
        shutil.rmtree(directory)


async def _service(
    settings: Settings, records: Records, matrix: MatrixService, operator: Operator, doctor: str
) -> ConsultationService:
    """The service, and the doctor on the staff, as in a hospital."""
    wards = WardService(settings, records, matrix)
    staff = StaffService(settings, records, matrix, operator, wards)
    await staff.add(
        doctor,
        name="Awa Diop",
        role=Role.DOCTOR,
        ward=None,
        language=None,
        existing=True,
        now=datetime.now(UTC),
    )
    patients = PatientService(records, matrix, operator, wards)

    async def no_alarm(_: PatientKey) -> bool:
        return False

    return ConsultationService(settings, records, matrix, operator, patients, alarm_open=no_alarm)


# --- a thousand ----------------------------------------------------------------------------------


async def _thousand_consultations() -> None:
    directory = Path(tempfile.mkdtemp())
    clinic = Clinic(Options(directory, Ports.free(), "embedded"))
    try:
        await clinic.start()
        few_s, few_mb = await _started(clinic)
        started = time.monotonic()
        await _fill(clinic)
        print(f"{THOUSAND} rooms made in {time.monotonic() - started:.0f} s")
        many_s, many_mb = await _started(clinic)
    finally:
        await clinic.stop()
        shutil.rmtree(directory)
    record(
        "thousand_consultations_mb",
        many_mb,
        "MB",
        reference="without any consultation",
        reference_value=few_mb,
        aim="reported",
        met=True,
    )
    record(
        "thousand_consultations_start_s",
        many_s,
        "s",
        reference="without any consultation",
        reference_value=few_s,
        aim="reported",
        met=True,
    )


async def _started(clinic: Clinic) -> tuple[float, float]:
    """Start ``fajma run`` anew: seconds until all of it works, and memory a while later."""
    await clinic.stop_fajma()
    started = time.monotonic()
    await clinic.start_fajma()
    took_s = time.monotonic() - started
    await asyncio.sleep(SETTLED_S)
    assert clinic.fajma is not None
    return took_s, psutil.Process(clinic.fajma.pid).memory_info().rss / 1e6


async def _fill(clinic: Clinic) -> None:
    """Rooms as ``ConsultationService`` makes them, and their records."""
    host, vitals, alerts = (clinic.mxid(name) for name in ("fajma", "fajma-vitals", "fajma-alerts"))
    doctor = clinic.mxid(DOCTOR)
    plan = Plan(host, (vitals, alerts), clinicians=(doctor,))
    request: Mapping[str, Any] = room_request(plan, name="Consultation", room_version="12")
    numbers = itertools.count()
    headers = {"Authorization": f"Bearer {clinic.synapse.as_token}"}
    base = f"{clinic.synapse.base_url}/_matrix/client/v3"
    async with (
        opened(load(clinic.config_path)) as records,
        aiohttp.ClientSession(headers=headers) as session,
    ):

        async def ask(path: str, body: Mapping[str, Any], user: str) -> Any:
            async with session.post(
                f"{base}/{path}", json=body, params={"user_id": user}
            ) as response:
                answer = await response.json()
                assert response.status == 200, answer
                return answer

        async def some() -> None:
            while (number := next(numbers)) < THOUSAND:
                room_id = (await ask("createRoom", request, host))["room_id"]
                await ask(f"rooms/{quote(room_id)}/join", {}, vitals)
                patient = await records.patients.add(
                    number=f"T-{number}", initials="A.D.", bed=str(number), account=None
                )
                one = await records.consultations.add(
                    patient=patient.key,
                    clinicians=(doctor,),
                    language=Language.FRENCH,
                    time_zone="Africa/Dakar",
                    now=datetime.now(UTC),
                )
                await records.consultations.open_in(one.id, room_id)

        await asyncio.gather(*(some() for _ in range(3)))
