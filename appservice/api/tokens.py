"""Access tokens: short-lived JWTs that only FAJMA issues and only FAJMA reads (RFC 7519, 9068).

Signed with Ed25519. ``alg`` is ``Ed25519``, the name that RFC 9864 gives it in place of ``EdDSA``,
and no other is read. The keys lie in ``secrets.directory``. A key signs for ``KEY_SIGNS``; the
one before is read for as long as a token of it may live.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import Key, KeySet, OKPKey

from fajma.config import read_secret
from fajma.errors import AccessError, BugError
from fajma.files import write_private
from fajma.store.signed_in import Session, SessionId

ACCESS_VALID: Final = timedelta(minutes=10)
KEY_SIGNS: Final = timedelta(days=30)
"""FAJMA default; a new key costs nothing."""

AUDIENCE: Final = "fajma-rest-v1"
KEY_FILE: Final = "api-signing-keys.json"
_ALGORITHM: Final = "Ed25519"
_TYPE: Final = "at+jwt"
_MAX_CHARACTERS: Final = 4096
"""Ours have about 450."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What a valid access token says.

    Attributes:
        account: Matrix user id.
        session: in which it was issued.
        expires_at: aware UTC.
    """

    account: str
    session: SessionId
    expires_at: datetime


class AccessTokens:
    """Issues and reads access tokens.

    Args:
        directory: of the keys; exists and is for us alone.
        server_name: of our homeserver; names the issuer.
    """

    def __init__(self, directory: Path, server_name: str) -> None:
        self._path = directory / KEY_FILE
        self._issuer = f"fajma:{server_name}"
        self._keys: list[tuple[datetime, OKPKey]] = []

    def issue(self, session: Session, now: datetime) -> str:
        """A new access token of a session."""
        key = self._signing_key(now)
        return jwt.encode(
            {"alg": _ALGORITHM, "typ": _TYPE, "kid": key.kid},
            {
                "iss": self._issuer,
                "aud": AUDIENCE,
                "sub": session.account,
                "sid": session.id,
                "jti": secrets.token_hex(16),
                "iat": int(now.timestamp()),
                "exp": int((now + ACCESS_VALID).timestamp()),
            },
            key,
            algorithms=[_ALGORITHM],
        )

    def read(self, token: str, now: datetime) -> Claims:
        """What a token says.

        Raises:
            AccessError: it is not ours, was altered, or is over.
        """
        if len(token) > _MAX_CHARACTERS:
            raise AccessError("not one of our tokens", code="token_malformed")
        self._load(now)
        try:
            read = jwt.decode(token, KeySet(self._read_keys(now)), algorithms=[_ALGORITHM])
            if read.header.get("typ") != _TYPE or "kid" not in read.header:
                raise AccessError("not an access token", code="token_malformed")
            jwt.JWTClaimsRegistry(
                now=int(now.timestamp()),
                leeway=0,
                iss={"essential": True, "value": self._issuer},
                aud={"essential": True, "value": AUDIENCE},
                sub={"essential": True},
                sid={"essential": True},
                jti={"essential": True},
                iat={"essential": True},
                exp={"essential": True},
            ).validate(read.claims)
            return Claims(
                account=_text(read.claims, "sub"),
                session=SessionId(_text(read.claims, "sid")),
                expires_at=datetime.fromtimestamp(int(read.claims["exp"]), UTC),
            )
        except (JoseError, ValueError, TypeError, KeyError, RecursionError) as error:
            # The cause is left out: it may quote the token.
            code = "token_over" if "expired" in type(error).__name__.lower() else "token_malformed"
            raise AccessError("not a valid access token", code=code) from None

    # --- keys ------------------------------------------------------------------------------------

    def _signing_key(self, now: datetime) -> OKPKey:
        self._load(now)
        made_at, key = self._keys[0]
        if now - made_at >= KEY_SIGNS:
            self._keep([(now, _new_key()), (made_at, key)])
        return self._keys[0][1]

    def _read_keys(self, now: datetime) -> list[Key]:
        """The key that signs, and the one before while a token of it may live."""
        replaced_at = self._keys[0][0]
        return [
            key
            for number, (_, key) in enumerate(self._keys)
            if number == 0 or now < replaced_at + ACCESS_VALID
        ]

    def _load(self, now: datetime) -> None:
        if self._keys:
            return
        if not self._path.exists():
            self._keep([(now, _new_key())])
            return
        try:
            kept = json.loads(read_secret(self._path, purpose="keys of access tokens"))
            self._keys = [
                (datetime.fromisoformat(one["made_at"]), OKPKey.import_key(one["key"]))
                for one in kept
            ]
        except (ValueError, TypeError, KeyError, JoseError):
            # The cause is left out: it may quote the keys.
            raise BugError(
                f"{self._path} holds no keys: remove it, and everybody signs in anew",
                code="api_keys_unreadable",
            ) from None

    def _keep(self, keys: list[tuple[datetime, OKPKey]]) -> None:
        """Keep keys, the one that signs first."""
        content = [
            {"made_at": made_at.isoformat(), "key": key.as_dict(private=True)}
            for made_at, key in keys
        ]
        write_private(self._path, json.dumps(content))
        self._keys = keys


def _new_key() -> OKPKey:
    return OKPKey.generate_key("Ed25519", parameters={"kid": secrets.token_hex(8)})


def _text(claims: dict[str, Any], name: str) -> str:
    value = claims[name]
    if not isinstance(value, str):
        raise TypeError(name)
    return value
