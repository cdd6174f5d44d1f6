"""The REST API: for hospital software, and for the ``fajma`` command.

Two tokens (``Authorization: Bearer ...``): hospital software opens consultations and keeps patient
records; the operator's token may do everything. Bodies are validated by one declaration each;
unknown fields are refused.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import structlog
from aiohttp import web
from mautrix.errors import MatrixError
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from appservice.consultations import ConsultationService
from appservice.patients import PatientService
from appservice.staff import USER_ID, StaffService
from appservice.wards import WardService
from fajma.errors import FajmaError, InputError
from fajma.facts import AgeBand
from fajma.language import Language
from fajma.store.patients import Patient
from fajma.store.people import Role, Staff
from fajma.store.wards import Ward
from fajma.vitals import DeviceId

log = structlog.get_logger()

PREFIX: Final = "/fajma/v1"
MAX_BODY_BYTES: Final = 64 * 1024

Text = Annotated[str, Field(min_length=1, max_length=64)]
Who = Annotated[str, Field(min_length=1, max_length=255)]
DeviceText = Annotated[str, Field(pattern=r"^[0-9A-F]{12}$")]

_Body = TypeVar("_Body", bound=BaseModel)


def _user_id(value: str) -> str:
    if not USER_ID.fullmatch(value):
        raise ValueError("write Matrix user ids like @awa:hospital.example")
    return value


def _zone(value: str | None) -> str | None:
    if value is not None:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError("not an IANA time zone such as Africa/Dakar") from error
    return value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ConsultationRequest(_Strict):
    """Body of ``POST /fajma/v1/consultations``."""

    number: Text
    initials: Text
    bed: Annotated[str, Field(min_length=1, max_length=24)]
    clinicians: Annotated[list[str], Field(min_length=1, max_length=50)]
    patient_account: str | None = None
    device: DeviceText | None = None
    language: Language | None = None

    @field_validator("clinicians", "patient_account")
    @classmethod
    def _user_ids(cls, value: list[str] | str | None) -> list[str] | str | None:
        for one in [value] if isinstance(value, str) else value or []:
            _user_id(one)
        return value


class WardRequest(_Strict):
    """Body of ``POST /fajma/v1/wards``."""

    name: Text
    language: Language | None = None
    time_zone: str | None = None

    _known_zone = field_validator("time_zone")(_zone)


class StaffRequest(_Strict):
    """Body of ``POST /fajma/v1/staff``."""

    who: Who
    name: Text
    role: Role
    ward: Text | None = None
    language: Language | None = None
    existing: bool = False


class StaffChange(_Strict):
    """Body of ``POST /fajma/v1/staff/role``: what is left out stays; an empty ward is none."""

    who: Who
    role: Role | None = None
    ward: Annotated[str, Field(max_length=64)] | None = None
    language: Language | None = None


class WhoRequest(_Strict):
    """Body of ``POST /fajma/v1/staff/leave`` and ``/staff/password``."""

    who: Who


class LostPhoneRequest(_Strict):
    """Body of ``POST /fajma/v1/staff/lost-phone``."""

    who: Who
    devices: Annotated[list[Text], Field(max_length=50)] = []
    every: bool = False
    stolen: bool = False


class TrustRequest(_Strict):
    """Body of ``POST /fajma/v1/staff/trust``."""

    who: Who
    code: Text


class PatientRequest(_Strict):
    """Body of ``POST /fajma/v1/patients``."""

    number: Text
    initials: Text
    bed: Annotated[str, Field(min_length=1, max_length=24)]
    ward: Text | None = None
    age_band: AgeBand = AgeBand.UNKNOWN
    pregnant: bool | None = None
    copd: bool | None = None
    language: Language | None = None
    time_zone: str | None = None

    _known_zone = field_validator("time_zone")(_zone)


class PatientChange(_Strict):
    """Body of ``POST /fajma/v1/patients/change``: what is left out stays; an empty ward is none."""

    number: Text
    initials: Text | None = None
    bed: Annotated[str, Field(min_length=1, max_length=24)] | None = None
    ward: Annotated[str, Field(max_length=64)] | None = None
    age_band: AgeBand | None = None
    pregnant: bool | None = None
    copd: bool | None = None
    language: Language | None = None
    time_zone: str | None = None

    _known_zone = field_validator("time_zone")(_zone)


class PatientAccount(_Strict):
    """Body of ``POST /fajma/v1/patients/account``: no account unlinks the present one."""

    number: Text
    account: str | None = None

    @field_validator("account")
    @classmethod
    def _one(cls, value: str | None) -> str | None:
        return _user_id(value) if value is not None else None


class PatientMonitor(_Strict):
    """Body of ``POST /fajma/v1/patients/monitor``.

    Attributes:
        number: of the patient.
        device: the monitor.
        since: when the patient began to wear it, if that is past: ``14:05`` today in the ward's
            time zone, or an ISO 8601 time.
        off: the patient wears it no more; not with ``since``.
    """

    number: Text
    device: DeviceText
    since: Annotated[str, Field(min_length=1, max_length=40)] | None = None
    off: bool = False

    @model_validator(mode="after")
    def _one_of_both(self) -> PatientMonitor:
        if self.off and self.since is not None:
            raise ValueError("off: a monitor is taken off now, not since some time")
        return self


@dataclass(frozen=True, slots=True)
class Tokens:
    """Who may call."""

    hospital: str
    operator: str


@dataclass(frozen=True, slots=True)
class Services:
    """What is called."""

    consultations: ConsultationService
    wards: WardService
    staff: StaffService
    patients: PatientService


Handler = Callable[[web.Request], Awaitable[Any]]


def add_routes(app: web.Application, services: Services, tokens: Tokens) -> None:
    """Put the API under ``/fajma/v1`` of the application service's web server."""
    api = _Api(services)
    everybody = (tokens.hospital, tokens.operator)
    operators = (tokens.operator,)
    for method, path, handler, may in (
        ("POST", "consultations", api.open_consultation, everybody),
        ("GET", "patients", api.patients, everybody),
        ("POST", "patients", api.add_patient, everybody),
        ("POST", "patients/change", api.change_patient, everybody),
        ("POST", "patients/account", api.patient_account, everybody),
        ("POST", "patients/monitor", api.patient_monitor, everybody),
        ("GET", "wards", api.wards, operators),
        ("POST", "wards", api.open_ward, operators),
        ("GET", "staff", api.staff, operators),
        ("POST", "staff", api.add_staff, operators),
        ("POST", "staff/role", api.change_staff, operators),
        ("POST", "staff/leave", api.leave, operators),
        ("POST", "staff/lost-phone", api.lost_phone, operators),
        ("POST", "staff/password", api.new_password, operators),
        ("POST", "staff/trust", api.trust, operators),
        ("POST", "staff/check", api.check, operators),
    ):
        app.router.add_route(method, f"{PREFIX}/{path}", _guarded(handler, may))


class _Api:
    """One method for each route: from JSON to a service and back."""

    def __init__(self, services: Services) -> None:
        self._consultations = services.consultations
        self._wards = services.wards
        self._staff = services.staff
        self._patients = services.patients

    async def open_consultation(self, request: web.Request) -> Any:
        body = await _body(request, ConsultationRequest)
        consultation = await self._consultations.open(
            number=body.number,
            initials=body.initials,
            bed=body.bed,
            patient_account=body.patient_account,
            clinicians=body.clinicians,
            device=DeviceId(body.device) if body.device else None,
            language=body.language,
            now=_now(),
        )
        return {
            "consultation": consultation.id,
            "room_id": consultation.room_id,
            "patient": consultation.patient,
        }

    async def wards(self, _: web.Request) -> Any:
        return {"wards": [_ward(one) for one in await self._wards.all()]}

    async def open_ward(self, request: web.Request) -> Any:
        body = await _body(request, WardRequest)
        return _ward(
            await self._wards.open(
                body.name, language=body.language, time_zone=body.time_zone, now=_now()
            )
        )

    async def staff(self, request: web.Request) -> Any:
        found = await self._staff.all(left="left" in request.query)
        return {"staff": [_staff(one) for one in found]}

    async def add_staff(self, request: web.Request) -> Any:
        body = await _body(request, StaffRequest)
        joined = await self._staff.add(
            body.who,
            name=body.name,
            role=body.role,
            ward=body.ward,
            language=body.language,
            existing=body.existing,
            now=_now(),
        )
        return _staff(joined.person) | {"letter": joined.letter, "warning": joined.warning}

    async def change_staff(self, request: web.Request) -> Any:
        body = await _body(request, StaffChange)
        return _staff(
            await self._staff.change(
                body.who, role=body.role, ward=body.ward, language=body.language, now=_now()
            )
        )

    async def leave(self, request: web.Request) -> Any:
        body = await _body(request, WhoRequest)
        left = await self._staff.leave(body.who, now=_now())
        return {
            "ended_here": left.ended_here,
            "without_clinician": list(left.without_clinician),
        }

    async def lost_phone(self, request: web.Request) -> Any:
        body = await _body(request, LostPhoneRequest)
        letter = await self._staff.lost_phone(
            body.who, devices=body.devices, every=body.every, stolen=body.stolen, now=_now()
        )
        return {"letter": letter}

    async def new_password(self, request: web.Request) -> Any:
        body = await _body(request, WhoRequest)
        return {"letter": await self._staff.new_password(body.who, now=_now())}

    async def trust(self, request: web.Request) -> Any:
        body = await _body(request, TrustRequest)
        return {"account": await self._staff.trust(body.who, body.code, now=_now())}

    async def check(self, _: web.Request) -> Any:
        return {
            "staff": [
                _staff(one.person)
                | {
                    "troubles": list(one.troubles),
                    "on_call": one.rings,
                    "on_duty": one.on_duty,
                    "reachable": one.is_reachable,
                    "code": one.code,
                }
                for one in await self._staff.check()
            ]
        }

    async def patients(self, request: web.Request) -> Any:
        found = await self._patients.all(request.query.get("ward"))
        worn = await self._patients.monitors()
        return {"patients": [_patient(one) | {"monitors": worn.get(one.key, [])} for one in found]}

    async def add_patient(self, request: web.Request) -> Any:
        body = await _body(request, PatientRequest)
        patient = await self._patients.add(
            number=body.number,
            initials=body.initials,
            bed=body.bed,
            ward=body.ward,
            age_band=body.age_band,
            pregnant=body.pregnant,
            copd=bool(body.copd),
            language=body.language,
            time_zone=body.time_zone,
            now=_now(),
        )
        return _patient(patient) | await self._also_in_bed(patient)

    async def change_patient(self, request: web.Request) -> Any:
        body = await _body(request, PatientChange)
        changes = {
            name: getattr(body, name)
            for name in body.model_fields_set
            if name != "number" and getattr(body, name) is not None
        }
        patient = await self._patients.change(body.number, changes, now=_now())
        return _patient(patient) | await self._also_in_bed(patient)

    async def _also_in_bed(self, patient: Patient) -> dict[str, Any]:
        return {"also_in_bed": [one.number for one in await self._patients.also_in_bed(patient)]}

    async def patient_account(self, request: web.Request) -> Any:
        body = await _body(request, PatientAccount)
        if body.account is None:
            return _patient(await self._patients.unlink_account(body.number, now=_now()))
        return _patient(await self._patients.link_account(body.number, body.account, now=_now()))

    async def patient_monitor(self, request: web.Request) -> Any:
        body = await _body(request, PatientMonitor)
        device = DeviceId(body.device)
        if body.off:
            patient = await self._patients.take_off(body.number, device, now=_now())
            return _patient(patient) | {"worn_before_by": None}
        patient, before = await self._patients.wear(
            body.number, device, now=_now(), since=body.since
        )
        return _patient(patient) | {"worn_before_by": before.number if before else None}


def _ward(ward: Ward) -> dict[str, Any]:
    return {
        "name": ward.id,
        "room_id": ward.room_id,
        "language": ward.language.value,
        "time_zone": ward.time_zone,
        "on_duty": [one.account for one in ward.roster.on_call],
    }


def _staff(person: Staff) -> dict[str, Any]:
    return {
        "account": person.account,
        "name": person.name,
        "role": person.role.value,
        "ward": person.ward,
        "language": person.language.value,
        "left": person.left_at.isoformat() if person.left_at else None,
    }


def _patient(patient: Patient) -> dict[str, Any]:
    return {
        "patient": patient.key,
        "number": patient.number,
        "initials": patient.initials,
        "bed": patient.bed,
        "ward": patient.ward,
        "account": patient.account,
        "age_band": patient.age_band.value,
        "pregnant": patient.pregnant,
        "copd": patient.copd,
        "language": patient.language.value if patient.language else None,
        "time_zone": patient.time_zone,
    }


def _now() -> datetime:
    return datetime.now(UTC)


def _guarded(
    handler: Handler, tokens: Sequence[str]
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Let only a caller with one of the tokens in, and answer every error as JSON."""

    async def checked(request: web.Request) -> web.Response:
        offered = request.headers.get("Authorization", "").removeprefix("Bearer ").encode()
        # Every token is compared, so that the time tells nothing of which one came close.
        if not any([hmac.compare_digest(offered, one.encode()) for one in tokens]):  # noqa: C419
            log.warning("api_token_refused", remote=request.remote)
            return _error(401, "token_refused", "show a token that may do this")
        try:
            return web.json_response(await handler(request))
        except InputError as error:
            return _error(400, error.code, str(error))
        except MatrixError as error:
            log.error("homeserver_refused", error=type(error).__name__)
            return _error(502, "homeserver_refused", "the homeserver refuses; see the log")
        except FajmaError as error:
            log.error("api_request_failed", code=error.code)
            return _error(503, error.code, str(error))
        except Exception as error:  # noqa: BLE001 - whoever asked gets an answer that he can read
            log.error("api_request_broke", path=request.path, error=type(error).__name__)
            return _error(500, "bug", "this is a bug in FAJMA: its log names it; tell the operator")

    return checked


async def _body(request: web.Request, model: type[_Body]) -> _Body:
    if request.content_length is None or request.content_length > MAX_BODY_BYTES:
        raise InputError("the body is too large or of unknown length", code="body_too_large")
    try:
        return model.model_validate_json(await request.read())
    except ValidationError as error:
        problems = "; ".join(
            _in_words(problem) for problem in error.errors(include_url=False, include_input=False)
        )
        raise InputError(problems, code="body_invalid") from error


_TROUBLES: Final[Mapping[str, str]] = {
    "missing": "is missing",
    "extra_forbidden": "is not known here",
    "string_too_short": "is empty",
    "too_short": "is empty",
    "string_too_long": "is too long: at most {max_length} characters",
    "enum": "is one of: {expected}",
    "bool_type": "is true or false",
}
"""By the validator's kind of error."""


def _in_words(problem: ErrorDetails) -> str:
    """A refused field in the words of the clinic; the validator's own are for programmers."""
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])  # raised by ourselves, above
    if problem["type"] == "json_invalid" or not problem["loc"]:
        return "the body is not a JSON object of the fields that are documented"
    field = str(problem["loc"][0])
    if (field, problem["type"]) == ("device", "string_pattern_mismatch"):
        return "device: a monitor is twelve hex digits, e.g. A4CF12F03B7E"
    trouble = _TROUBLES.get(problem["type"], "cannot be this")
    return f"{field} {trouble.format(**problem.get('ctx', {}))}"


def _error(status: int, code: str, message: str) -> web.Response:
    return web.json_response({"code": code, "error": message}, status=status)
