"""Who calls: the two keys in files, a key of hospital software, or a person who signed in."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from datetime import datetime

import structlog

from appservice.api.permissions import HOSPITAL, SCOPES, Who
from appservice.api.tokens import AccessTokens
from fajma.errors import AccessError
from fajma.life import TREATING, ParticipantRole
from fajma.store import Records
from fajma.store.api_keys import KEY_PREFIX
from fajma.store.people import Role
from fajma.store.signed_in import Session
from fajma.store.wards import WardId

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Tokens:
    """The keys in files.

    Attributes:
        hospital: of ``secrets.api_token_file``; its scopes are ``permissions.HOSPITAL``.
        operator: of ``secrets.operator_token_file``.
    """

    hospital: str
    operator: str


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls.

    Attributes:
        id: stands in the audit and limits how much is asked: a user id, ``operator``,
            ``api-key:NAME``; of nobody the address.
        who: as what.
        account: user id of a person who signed in.
        ward: whose staff the person is.
        session: of a person.
        until: aware UTC; when a stream must end.
    """

    id: str
    who: frozenset[Who]
    account: str | None = None
    ward: WardId | None = None
    session: Session | None = None
    until: datetime | None = None


class Callers:
    """Finds out who calls."""

    def __init__(
        self, records: Records, tokens: Tokens, access: AccessTokens, *, asked_by: str
    ) -> None:
        """Make one.

        Args:
            records: everything.
            tokens: the keys in files.
            access: reads access tokens.
            asked_by: the sender whose view of people's devices counts (``Pins.trusted``).
        """
        self._records = records
        self._tokens = tokens
        self._access = access
        self._asked_by = asked_by

    async def of(self, authorization: str | None, address: str, now: datetime) -> Caller:
        """Who shows this.

        Args:
            authorization: the header, if there is one.
            address: whence the request comes.
            now: aware UTC.

        Raises:
            AccessError: it is shown wrongly, is nobody's, or counts no more.
        """
        if authorization is None:
            return Caller(f"address:{address}", frozenset({Who.NOBODY}))
        scheme, _, secret = authorization.partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise AccessError("not a bearer token", code="token_malformed")
        offered = secret.encode(errors="surrogateescape")
        # Both are compared, so that the time tells nothing of which one came close.
        is_hospital = hmac.compare_digest(offered, self._tokens.hospital.encode())
        is_operator = hmac.compare_digest(offered, self._tokens.operator.encode())
        if is_operator:
            return Caller(Who.OPERATOR, frozenset({Who.OPERATOR}))
        if is_hospital:
            return Caller("hospital", HOSPITAL)
        if secret.startswith(KEY_PREFIX):
            return await self._of_key(secret, now)
        return await self._of_person(secret, now)

    async def _of_key(self, secret: str, now: datetime) -> Caller:
        key = await self._records.api_keys.of_secret(secret)
        if key is None:
            raise AccessError("no such key", code="api_key_unknown")
        if not key.is_valid(now):
            raise AccessError("a key that is over", code="api_key_over")
        scopes = frozenset(Who(one) for one in key.scopes) & SCOPES
        return Caller(f"api-key:{key.id}", scopes, until=key.expires_at)

    async def _of_person(self, secret: str, now: datetime) -> Caller:
        claims = self._access.read(secret, now)
        session = await self._records.signed_in.get(claims.session)
        if session is None or not session.is_open(now) or session.account != claims.account:
            raise AccessError("the session is over", code="session_over")
        await self.check_device(session)
        caller = await self.of_account(session.account)
        return Caller(
            caller.id, caller.who, caller.account, caller.ward, session, claims.expires_at
        )

    async def check_device(self, session: Session) -> None:
        """Refuse a session whose device is no longer the person's: lost, removed, keys reset.

        Raises:
            AccessError: it is not.
        """
        trusted = await self._records.pins.trusted(session.account, asked_by=self._asked_by)
        device = trusted.get(session.device_id)
        if device is None or device.ed25519 != session.ed25519:
            raise AccessError("not a signed device any more", code="device_not_signed")

    async def of_account(self, account: str) -> Caller:
        """As what a person calls, by our records as they are now.

        Raises:
            AccessError: has left, or has nothing to do with us.
        """
        person = await self._records.people.get(account)
        if person is not None:
            if not person.is_active:
                raise AccessError("has left", code="staff_left")
            return Caller(account, frozenset({_ROLES[person.role]}), account, person.ward)
        return Caller(account, await self._guests(account), account)

    async def _guests(self, account: str) -> frozenset[Who]:
        if await self._records.patients.of_account(account) is not None:
            return frozenset({Who.PATIENT})
        roles = {
            one.role_of(account) for one in await self._records.consultations.of_account(account)
        }
        if roles & TREATING:
            return frozenset({Who.PARTNER})
        if ParticipantRole.OBSERVER in roles:
            return frozenset({Who.OBSERVER})
        raise AccessError("nobody that we know", code="account_unknown")


_ROLES = {
    Role.DOCTOR: Who.DOCTOR,
    Role.NURSE: Who.NURSE,
    Role.OPERATOR: Who.STAFF_OPERATOR,
}
