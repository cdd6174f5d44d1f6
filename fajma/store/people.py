"""Staff: who works here, in which ward and role. Names are sealed; user ids are not secret."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from mautrix.util.async_db import Connection

from fajma.language import Language, shown
from fajma.sealing import SiteKey
from fajma.store.database import Row, Store, from_ms, to_ms
from fajma.store.wards import WardId


class Role(StrEnum):
    """What a person may do."""

    DOCTOR = "doctor"
    NURSE = "nurse"
    OPERATOR = "operator"
    """Runs the system, and is told of its outages; reads no room."""


MAX_NAME: Final = 64
MAX_ACCOUNT: Final = 255  # Matrix specification, appendix "User identifiers"

CLINICIANS = frozenset({Role.DOCTOR, Role.NURSE})


@dataclass(frozen=True, slots=True)
class Staff:
    """One member of staff.

    Attributes:
        account: full Matrix user id, here or on a partner's homeserver.
        name: as the operator entered it; shown beside the account, never used to identify.
        role: what the person may do.
        ward: whose team the person belongs to, if any.
        language: in which FAJMA writes to this person.
        since: aware UTC.
        left_at: when the person left; ``None`` while working here. The moment of ``since`` while
            the homeserver makes the account, so that until then nobody has any right.
    """

    account: str
    name: str
    role: Role
    ward: WardId | None
    language: Language
    since: datetime
    left_at: datetime | None = None

    @property
    def is_active(self) -> bool:
        """Whether the person works here."""
        return self.left_at is None

    @property
    def is_joining(self) -> bool:
        """Whether the account was asked for and we never heard that it was made."""
        return self.left_at == self.since

    @property
    def is_clinician(self) -> bool:
        """Whether the person treats patients here."""
        return self.is_active and self.role in CLINICIANS


def named(person: Staff | None, account: str) -> str:
    """A person as we write him: our own record's name, and always the account.

    What the homeserver shows as a display name is never used: two people may have the same, and
    anybody can look like anybody.
    """
    if person is None:
        return shown(account, MAX_ACCOUNT)
    return f"{shown(person.name, MAX_NAME)} ({account})"


class People:
    """Repository of staff."""

    def __init__(self, store: Store, site_key: SiteKey) -> None:
        self._store = store
        self._site_key = site_key

    async def put(self, connection: Connection, person: Staff) -> None:
        """Keep a person as given, new or changed."""
        sealed = self._site_key.site.seal(
            json.dumps({"name": person.name}).encode(), place=f"staff/{person.account}"
        )
        await connection.execute(
            "INSERT INTO staff (account, role, ward_id, language, since, left_at, sealed)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (account) DO UPDATE SET"
            " role=$2, ward_id=$3, language=$4, since=$5, left_at=$6, sealed=$7",
            person.account,
            person.role.value,
            person.ward,
            person.language.value,
            to_ms(person.since),
            to_ms(person.left_at) if person.left_at else None,
            sealed,
        )

    async def get(self, account: str) -> Staff | None:
        """A person, also one who has left."""
        row = await self._store.db.fetchrow("SELECT * FROM staff WHERE account=$1", account)
        return self._staff(row) if row else None

    async def active(self) -> list[Staff]:
        """Who works here, by account."""
        rows = await self._store.db.fetch(
            "SELECT * FROM staff WHERE left_at IS NULL ORDER BY account"
        )
        return [self._staff(row) for row in rows]

    async def all(self) -> list[Staff]:
        """Everybody who works or worked here, by account."""
        rows = await self._store.db.fetch("SELECT * FROM staff ORDER BY account")
        return [self._staff(row) for row in rows]

    async def team(self, ward: WardId) -> list[Staff]:
        """The clinicians of a ward, by account."""
        return [one for one in await self.active() if one.ward == ward and one.is_clinician]

    def _staff(self, row: Row) -> Staff:
        account = row["account"]
        sealed = self._site_key.site.open(bytes(row["sealed"]), place=f"staff/{account}")
        return Staff(
            account=account,
            name=json.loads(sealed)["name"],
            role=Role(row["role"]),
            ward=WardId(row["ward_id"]) if row["ward_id"] is not None else None,
            language=Language(row["language"]),
            since=from_ms(row["since"]),
            left_at=from_ms(row["left_at"]) if row["left_at"] is not None else None,
        )
