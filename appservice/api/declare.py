"""How a route is declared, once: from this come validation, permission and the OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict

from appservice.api.callers import Caller
from appservice.api.permissions import Permission, Reach
from appservice.staff import USER_ID
from fajma.store.consents import ConsentId
from fajma.store.consultations import ConsultationId
from fajma.vitals import DeviceId, PatientKey

PREFIX: Final = "/fajma/v1"

PATH: Final[Mapping[str, re.Pattern[str]]] = {
    "patient": re.compile(r"[0-9a-f]{32}"),
    "consultation": re.compile(r"[0-9a-f]{16}"),
    "consent": re.compile(r"[0-9a-f]{16}"),
    "device": re.compile(r"[0-9A-F]{12}"),
    "account": USER_ID,
}
"""What stands between the slashes; anything else is not found."""


class Strict(BaseModel):
    """A body or query in which nothing is unknown."""

    model_config = ConfigDict(extra="forbid")


class Nothing(Strict):
    """An empty object, or no body at all."""


_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Call:
    """One request that may be answered: known caller, valid path, query and body.

    Attributes:
        caller: who asks.
        reach: about whom he may.
        path: values between the slashes, by name.
        query: valid, of the route's model.
        body: valid, of the route's model.
        now: aware UTC.
        request: for what streams.
    """

    caller: Caller
    reach: Reach
    path: Mapping[str, str]
    query: BaseModel
    body: BaseModel
    now: datetime
    request: web.Request

    @property
    def patient(self) -> PatientKey:
        """The patient in the path."""
        return PatientKey(self.path["patient"])

    @property
    def consultation(self) -> ConsultationId:
        """The consultation in the path."""
        return ConsultationId(self.path["consultation"])

    @property
    def device(self) -> DeviceId:
        """The monitor in the path."""
        return DeviceId(self.path["device"])

    @property
    def consent(self) -> ConsentId:
        """The consent in the path."""
        return ConsentId(self.path["consent"])

    def asked(self, model: type[_Model]) -> _Model:
        """The query, as what it was declared to be."""
        return _as(self.query, model)

    def sent(self, model: type[_Model]) -> _Model:
        """The body, as what it was declared to be."""
        return _as(self.body, model)


def _as(value: BaseModel, model: type[_Model]) -> _Model:
    if not isinstance(value, model):
        raise TypeError(model.__name__)
    return value


Handler = Callable[[Call], Awaitable[BaseModel | web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Route:
    """One route.

    Attributes:
        method: ``GET``, ``POST``, ...
        path: below ``PREFIX``, e.g. ``/patients/{patient}``.
        needs: the permission.
        summary: one line, for the document.
        handler: answers it.
        answer: what it answers; ``None`` for another content type than JSON.
        body: what must be sent; ``None`` for nothing.
        query: what may be asked for.
        status: of success.
        content_type: of success.
        has_version: it answers with an ``ETag``.
        version_of: it changes what this route answers, and wants the version that the caller knows
            (``If-Match``).
        is_sign_in: its attempts are counted strictly.
    """

    method: str
    path: str
    needs: Permission
    summary: str
    handler: Handler
    answer: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    query: type[BaseModel] = Nothing
    status: int = 200
    content_type: str = "application/json"
    has_version: bool = False
    version_of: Route | None = None
    is_sign_in: bool = False
    parameters: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        """The names between the slashes."""
        object.__setattr__(self, "parameters", tuple(re.findall(r"{(\w+)}", self.path)))

    @property
    def name(self) -> str:
        """As people write it: ``GET /patients``."""
        return f"{self.method} {self.path}"

    @property
    def only_reads(self) -> bool:
        """Whether answering takes our database alone, and not for long."""
        return self.method == "GET" and self.content_type != "text/event-stream"

    @property
    def takes_key(self) -> bool:
        """Whether an ``Idempotency-Key`` counts."""
        return self.method == "POST" and not self.is_sign_in
