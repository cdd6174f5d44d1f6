"""What is sent and what is answered: one declaration each, which validates and documents."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    Field,
    StringConstraints,
    model_validator,
)

from appservice.api.declare import Strict
from appservice.api.pages import PageQuery
from appservice.staff import USER_ID
from fajma.facts import AgeBand
from fajma.language import Language
from fajma.life import ParticipantRole, Status
from fajma.store.consents import Purpose
from fajma.store.people import Role
from fajma.vitals import Age, Kind

_PRINTED: Final = r"^[^\x00-\x1f\x7f]+$"


def _user_id(value: str) -> str:
    if not USER_ID.fullmatch(value):
        raise ValueError("write Matrix user ids like @awa:hospital.example")
    return value


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError("is not an IANA time zone such as Africa/Dakar") from error
    return value


Line = Annotated[str, StringConstraints(min_length=1, max_length=64)]
"""What its service judges, in the words of the clinic."""
Text = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=_PRINTED)]
Bed = Annotated[str, StringConstraints(min_length=1, max_length=24)]
Who = Annotated[
    str,
    StringConstraints(min_length=1, max_length=255, pattern=_PRINTED),
    Field(description="A short name here, or a full Matrix user id."),
]
Account = Annotated[
    str,
    StringConstraints(max_length=255),
    AfterValidator(_user_id),
    Field(
        description="Full Matrix user id.",
        json_schema_extra={"pattern": f"^{USER_ID.pattern}$"},
        examples=["@awa:hospital.example"],
    ),
]
Device = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9A-F]{12}$"),
    Field(description="A monitor: twelve hex digits.", examples=["A4CF12F03B7E"]),
]
TimeZone = Annotated[
    str,
    StringConstraints(max_length=64),
    AfterValidator(_zone),
    Field(description="IANA name.", examples=["Africa/Dakar"]),
]
NoneOrWard = Annotated[
    str | None,
    Field(max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$", description="An empty one is none."),
]


# --- signing in -----------------------------------------------------------------------------------


class SignInRequest(Strict):
    """A Matrix OpenID token, and the signature of a device."""

    access_token: Annotated[str, StringConstraints(min_length=1, max_length=2048, pattern=_PRINTED)]
    matrix_server_name: Annotated[
        str, StringConstraints(min_length=1, max_length=230, pattern=r"^[A-Za-z0-9.:\[\]-]+$")
    ]
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105 - as the homeserver answers
    expires_in: Annotated[
        int | None, Field(ge=0, le=10**9, description="As the homeserver answers; not needed.")
    ] = None
    device_id: Annotated[
        str, StringConstraints(min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$")
    ]
    signature: Annotated[
        str,
        StringConstraints(pattern=r"^[A-Za-z0-9+/]{86}$"),
        Field(
            description="Ed25519, unpadded base64, by the device's key, as Matrix signs JSON, of"
            ' {"type": "com.fajma.sign_in", "audience": our server name, "access_token",'
            ' "matrix_server_name"}.'
        ),
    ]


class RefreshRequest(Strict):
    """The refresh token of the last answer; it is good for one use."""

    refresh_token: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{43}$")]


class TokenAnswer(BaseModel):
    """Tokens (named as RFC 6749 names them)."""

    access_token: str
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105 - a name
    expires_in: Annotated[int, Field(description="Of the access token, s.")]
    refresh_token: str


class Me(BaseModel):
    """Who calls."""

    caller: Annotated[str, Field(description="As it stands in the audit.")]
    roles: list[str]
    account: str | None
    ward: str | None


class Done(BaseModel):
    """It is done."""

    done: Literal[True] = True


# --- wards and staff ------------------------------------------------------------------------------


class WardRequest(Strict):
    """A ward to be opened, or completed."""

    name: Text
    language: Language | None = None
    time_zone: TimeZone | None = None


class WardAnswer(BaseModel):
    """A ward."""

    name: str
    room_id: str | None
    language: Language
    time_zone: str
    on_duty: list[str]


class WardsAnswer(BaseModel):
    """Every ward, by name."""

    wards: list[WardAnswer]


class StaffQuery(Strict):
    """Which staff."""

    left: Annotated[bool, Field(description="Also who has left.")] = False


class StaffRequest(Strict):
    """Somebody joins."""

    who: Who
    name: Line
    role: Role
    ward: Text | None = None
    language: Language | None = None
    existing: Annotated[bool, Field(description="The account is here already.")] = False


class StaffChange(Strict):
    """What is left out stays."""

    who: Who
    role: Role | None = None
    ward: NoneOrWard = None
    language: Language | None = None


class WhoRequest(Strict):
    """One of the staff."""

    who: Who


class LostPhoneRequest(Strict):
    """A phone is gone."""

    who: Who
    devices: Annotated[tuple[Text, ...], Field(max_length=50)] = ()
    every: bool = False
    stolen: bool = False


class TrustRequest(Strict):
    """Reset keys are accepted."""

    who: Who
    code: Text


class StaffMember(BaseModel):
    """One of the staff."""

    account: str
    name: str
    role: Role
    ward: str | None
    language: Language
    left: datetime | None


class JoinedAnswer(StaffMember):
    """Somebody who can begin to work."""

    letter: Annotated[str, Field(description="To be given to the person; shown once.")]
    warning: str | None


class StaffAnswer(BaseModel):
    """The staff, by account."""

    staff: list[StaffMember]


class LeftAnswer(BaseModel):
    """Somebody who has left."""

    ended_here: bool
    without_clinician: Annotated[list[str], Field(description="Consultations left alone.")]


class LetterAnswer(BaseModel):
    """A letter for the person."""

    letter: str


class TrustAnswer(BaseModel):
    """Whose keys are accepted."""

    account: str


class CheckedMember(StaffMember):
    """Whether somebody can be reached."""

    troubles: list[str]
    on_call: bool
    on_duty: bool
    reachable: bool
    code: str | None


class CheckAnswer(BaseModel):
    """Whether each of the staff can be reached."""

    staff: list[CheckedMember]


# --- patients -------------------------------------------------------------------------------------


class PatientsQuery(PageQuery):
    """Which patients."""

    ward: Text | None = None


class PatientRequest(Strict):
    """A new patient record; no name is kept."""

    number: Line
    initials: Line
    bed: Bed
    ward: Text | None = None
    age_band: AgeBand = AgeBand.UNKNOWN
    pregnant: bool | None = None
    copd: bool | None = None
    language: Language | None = None
    time_zone: TimeZone | None = None


class PatientChanges(Strict):
    """What is left out stays."""

    initials: Line | None = None
    bed: Bed | None = None
    ward: NoneOrWard = None
    age_band: AgeBand | None = None
    pregnant: bool | None = None
    copd: bool | None = None
    language: Language | None = None
    time_zone: TimeZone | None = None

    def changes(self) -> dict[str, Any]:
        """What was stated."""
        stated = self.model_fields_set - {"number"}
        return {name: getattr(self, name) for name in stated if getattr(self, name) is not None}


class PatientChange(PatientChanges):
    """The same, by number."""

    number: Line


class PatientNumber(Strict):
    """A record number; it stands in no address, for addresses are logged on the way."""

    number: Line


class PatientAccountRequest(Strict):
    """The patient's Matrix account; none unlinks the present one."""

    number: Line
    account: Account | None = None


class PatientMonitor(Strict):
    """A monitor is put on or taken off."""

    number: Line
    device: Device
    since: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=40,
            pattern=_PRINTED,
            description="14:05 today in the ward's time zone, or an ISO 8601 time.",
        ),
    ] = None
    off: Annotated[bool, Field(description="Not together with `since`.")] = False

    @model_validator(mode="after")
    def _one_of_both(self) -> PatientMonitor:
        if self.off and self.since is not None:
            raise ValueError("off: a monitor is taken off now, not since some time")
        return self


class PatientAnswer(BaseModel):
    """A patient record."""

    patient: Annotated[str, Field(description="Opaque key, for addresses.")]
    number: str
    initials: str
    bed: str
    ward: str | None
    account: str | None
    age_band: AgeBand
    pregnant: bool | None
    copd: bool
    language: Language | None
    time_zone: str | None


class PatientInBed(PatientAnswer):
    """A patient record, and who lies in the same bed."""

    also_in_bed: Annotated[list[str], Field(description="Numbers: siblings, or a mistake.")]


class PatientWorn(PatientAnswer):
    """A patient record, and who wore the monitor before."""

    worn_before_by: Annotated[str | None, Field(description="Number of a patient.")]


class PatientListed(PatientAnswer):
    """A patient record, and the monitors that are worn."""

    monitors: list[str]


class PatientsAnswer(BaseModel):
    """Patients, in no order that means anything."""

    patients: list[PatientListed]
    next: str | None


class DeviceSince(Strict):
    """Since when a monitor is worn; from now on if it is left out."""

    since: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=40,
            pattern=_PRINTED,
            description="14:05 today in the ward's time zone, or an ISO 8601 time.",
        ),
    ] = None


class LinkAnswer(BaseModel):
    """Who wears a monitor, or wore it."""

    device: str
    consultation: str | None
    worn_since: datetime
    worn_until: datetime | None
    online: Annotated[bool | None, Field(description="v2 monitors: whether it is connected.")]


class WornDevice(BaseModel):
    """A monitor that is worn now."""

    device: str
    patient: Annotated[str, Field(description="Opaque key of who wears it.")]


class DevicesAnswer(BaseModel):
    """Monitors that are worn now, by id."""

    devices: list[WornDevice]
    next: str | None


class LinksAnswer(BaseModel):
    """A patient's monitors, the newest link first."""

    devices: list[LinkAnswer]


# --- what is measured -----------------------------------------------------------------------------


class Value(BaseModel):
    """One value."""

    kind: Kind
    value: float
    unit: Annotated[str, Field(description="UCUM.")]
    loinc: str


class Observation(BaseModel):
    """What a monitor measured at one moment."""

    measured_at: datetime
    received_at: datetime
    device: str
    age: Annotated[Age, Field(description="Whether it was about the patient as he was then.")]
    quality: Annotated[int | None, Field(description="Of the pulse wave, %.")]
    contact: Annotated[bool | None, Field(description="False: the probe is off.")]
    values: list[Value]


class ObservationsAnswer(BaseModel):
    """Readings, those that came last first. A page may be empty and `next` go on."""

    observations: list[Observation]
    next: str | None


class AlarmSaid(BaseModel):
    """One message about an alarm."""

    alarm: Annotated[str, Field(description="Identity of the alarm.")]
    state: Annotated[str, Field(description="started, worsened, escalated, recovered, ...")]
    priority: str
    said_at: datetime
    measured_at: datetime | None
    kind: Kind | None
    value: float | None
    limit: float | None
    unit: str | None
    trouble: str | None
    late: bool


class AlarmsAnswer(BaseModel):
    """Messages about alarms, the newest first; they are answered in rooms alone."""

    alarms: list[AlarmSaid]
    next: str | None


class LimitInForce(BaseModel):
    """One limit; values that break it are an alarm."""

    kind: Kind
    comparison: Annotated[str, Field(description="<, <=, > or >=.")]
    threshold: float
    unit: str
    priority: str
    own: Annotated[bool, Field(description="Set for this patient alone.")]
    until: datetime | None


class LimitsAnswer(BaseModel):
    """The limits in force; they are set in rooms alone."""

    limits: list[LimitInForce]


# --- consents -------------------------------------------------------------------------------------


class ConsentRequest(Strict):
    """The patient agrees to something."""

    purpose: Purpose
    note: Annotated[str, Field(max_length=500, description="Sealed; e.g. who was present.")] = ""


class ConsentAnswer(BaseModel):
    """One consent."""

    consent: str
    purpose: Purpose
    given_at: datetime
    given_to: str
    withdrawn_at: datetime | None
    withdrawn_to: str | None
    note: str


class ConsentsAnswer(BaseModel):
    """A patient's consents, oldest first."""

    consents: list[ConsentAnswer]


# --- consultations --------------------------------------------------------------------------------


class ConsultationRequest(Strict):
    """A consultation to be opened, or completed."""

    number: Line
    initials: Line
    bed: Bed
    clinicians: Annotated[list[Account], Field(min_length=1, max_length=50)]
    patient_account: Account | None = None
    device: Device | None = None
    language: Language | None = None


class BookingRequest(Strict):
    """A consultation to be agreed on for a time."""

    number: Line
    initials: Line
    bed: Bed
    clinicians: Annotated[
        list[Account], Field(min_length=1, max_length=50, description="The first is the lead.")
    ]
    patient_account: Account | None = None
    language: Language | None = None
    booked_for: AwareDatetime


class InvitationRequest(Strict):
    """Somebody takes part, or as something else than before."""

    account: Account
    role: ParticipantRole


class AdmissionRequest(Strict):
    """The patient is let in."""

    account: Annotated[
        Account | None, Field(description="Who asked, so that nobody admits another by mistake.")
    ] = None


class EndRequest(Strict):
    """The consultation is over."""

    despite_alarm: Annotated[
        bool, Field(description="Also while a high alarm is open that nobody has answered.")
    ] = False


class LanguageRequest(Strict):
    """Another language from now on."""

    language: Language


class ParticipantAnswer(BaseModel):
    """Somebody who takes part."""

    account: str
    role: ParticipantRole
    invited: bool


class ParticipantsAnswer(BaseModel):
    """Who takes part, other than the patient, by account."""

    participants: list[ParticipantAnswer]


class ConsultationOpened(BaseModel):
    """A consultation and where it is held."""

    consultation: str
    room_id: str | None
    patient: str


class ConsultationAnswer(ConsultationOpened):
    """One consultation."""

    status: Status
    language: Language
    time_zone: str
    opened_at: datetime
    booked_for: datetime | None
    admitted_at: Annotated[datetime | None, Field(description="Of the patient.")]
    ended_at: datetime | None
    participants: list[ParticipantAnswer]


class SignatureAnswer(BaseModel):
    """A clinician has signed the summary."""

    account: str
    signed_at: datetime


class ConsultationWhole(ConsultationAnswer):
    """One consultation, and who has signed its summary."""

    signatures: list[SignatureAnswer]


class ConsultationsAnswer(BaseModel):
    """Consultations, the newest first."""

    consultations: list[ConsultationAnswer]
    next: str | None
