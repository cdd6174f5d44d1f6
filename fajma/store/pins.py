"""Pinned identities, signed devices, and who belongs in which room: on what sharing keys rests.

All are our own records. A homeserver can show another identity, add a device or a member; it
cannot change what stands here. What is signed is decided by ``fajma.trust``, which is pure.

There is one judge: both libraries that encrypt for us bring every answer about devices to
``Pins.judge``, and give a room key to no device but those that ``Pins.trusted`` names, with exactly
the keys that it names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from mautrix.util.async_db import Connection

from fajma.life import WITH_READERS
from fajma.store.database import Store, from_ms, to_ms
from fajma.store.readings import lock_head, move_head
from fajma.trust import REVOKED, DeviceKeys, SignedIdentity, self_signed_devices, signed_devices

APPROVALS_NEEDED: Final = 2
"""Clinicians who must accept a changed identity, other than the person himself."""

APPROVAL_VALID: Final = timedelta(days=1)
"""How long the first acceptance waits for the second."""

EPOCH: Final = "trust"

_WITH_READERS: Final = ", ".join(f"'{one.value}'" for one in sorted(WITH_READERS))
"""As SQL; our own words."""


@dataclass(frozen=True, slots=True)
class Changed:
    """An identity that is shown and is not the pinned one; it gets nothing.

    Attributes:
        account: whose.
        master_key: the new public master key, unpadded base64.
        seen_at: when it was first seen, aware UTC.
    """

    account: str
    master_key: str
    seen_at: datetime


class Pins:
    """Repository of pinned identities and of the devices that they sign."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def known(self, accounts: Collection[str]) -> dict[str, str]:
        """Master keys in force, of those who were met; one that is ``REVOKED`` fits no identity."""
        found = {}
        for account in accounts:
            key = await self._store.db.fetchval(
                "SELECT master_key FROM pin WHERE account=$1", account
            )
            if key is not None:
                found[account] = str(key)
        return found

    async def judge(
        self, response: Mapping[str, object], *, asked_by: str, about: Collection[str]
    ) -> dict[str, dict[str, DeviceKeys]]:
        """Take in an answer to ``POST /keys/query``: who is met, and which devices are signed.

        What is malformed counts as not there, device by device and user by user. Of whom the answer
        says nothing, the last answer counts on. Answers to one asker must be brought in the order
        in which they were asked for.

        Args:
            response: the answer as parsed JSON, of any shape.
            asked_by: which of our senders asked.
            about: about whom; the rest of the answer is not read.

        Returns:
            By user, of those whom the answer is about, the devices that get room keys.
        """
        identities = {user: one for user, one in signed_devices(response).items() if user in about}
        await self.meet({user: one.master_key for user, one in identities.items()})
        answered = sorted(user for user in self_signed_devices(response) if user in about)
        pinned = await self.known(answered)
        for user in answered:
            identity = identities.get(user)
            await self._keep_signed(user, identity, asked_by)
            if identity is not None and identity.master_key == pinned.get(user):
                await self._remember_keys(user, identity.devices)
        return {user: await self.trusted(user, asked_by=asked_by) for user in answered}

    async def _keep_signed(
        self, account: str, identity: SignedIdentity | None, asked_by: str
    ) -> None:
        """Which devices are signed now, in place of what the answer before said."""
        master = identity.master_key if identity is not None else ""
        signed = identity.devices if identity is not None else {}
        rows = await self._store.db.fetch(
            "SELECT * FROM signed_device WHERE asked_by=$1 AND account=$2", asked_by, account
        )
        kept = {
            row["device_id"]: (row["master_key"], DeviceKeys(row["ed25519"], row["curve25519"]))
            for row in rows
        }
        if kept == {device_id: (master, keys) for device_id, keys in signed.items()}:
            return
        async with self._store.transaction() as connection:
            await connection.execute(
                "DELETE FROM signed_device WHERE asked_by=$1 AND account=$2", asked_by, account
            )
            for device_id, keys in sorted(signed.items()):
                await connection.execute(
                    "INSERT INTO signed_device"
                    " (asked_by, account, device_id, master_key, ed25519, curve25519)"
                    " VALUES ($1, $2, $3, $4, $5, $6)",
                    asked_by,
                    account,
                    device_id,
                    master,
                    keys.ed25519,
                    keys.curve25519,
                )

    async def _remember_keys(self, account: str, devices: Mapping[str, DeviceKeys]) -> None:
        """The keys of devices that the pinned identity signed; should one be lost, they go too."""
        rows = await self._store.db.fetch(
            "SELECT device_id, public_key FROM device_key WHERE account=$1", account
        )
        known = {(row["device_id"], row["public_key"]) for row in rows}
        for device_id, keys in devices.items():
            for key in {keys.ed25519, keys.curve25519}:
                if (device_id, key) not in known:
                    await self._store.db.execute(
                        "INSERT INTO device_key (account, device_id, public_key)"
                        " VALUES ($1, $2, $3)"
                        " ON CONFLICT (account, device_id, public_key) DO NOTHING",
                        account,
                        device_id,
                        key,
                    )

    async def trusted(self, account: str, *, asked_by: str) -> dict[str, DeviceKeys]:
        """The devices of a person that get room keys: by id, the only keys that count.

        Signed, when this sender last heard of them, by the identity that is pinned now; and no lost
        phone, neither by its id nor by a key that it was ever seen with.
        """
        rows = await self._store.db.fetch(
            "SELECT device_id, ed25519, curve25519 FROM signed_device AS signed"
            " JOIN pin ON pin.account=signed.account AND pin.master_key=signed.master_key"
            " WHERE signed.asked_by=$1 AND signed.account=$2 AND NOT EXISTS ("
            "SELECT 1 FROM blocked_device AS lost LEFT JOIN device_key AS held"
            " ON held.account=lost.account AND held.device_id=lost.device_id"
            " WHERE lost.account=signed.account AND (lost.device_id=signed.device_id"
            " OR held.public_key=signed.ed25519 OR held.public_key=signed.curve25519))",
            asked_by,
            account,
        )
        return {row["device_id"]: DeviceKeys(row["ed25519"], row["curve25519"]) for row in rows}

    async def meet(self, masters: Mapping[str, str], *, now: datetime | None = None) -> None:
        """Pin who is met for the first time; note whose identity is not the pinned one.

        Args:
            masters: by account, the master key of an identity whose signatures were verified.
            now: aware UTC.
        """
        moment = to_ms(now or datetime.now(UTC))
        before = await self.known(masters)
        pinned = dict(before)
        for account, master in masters.items():
            if account not in pinned:
                # Another sender may meet the same person at this moment: the first counts.
                await self._store.db.execute(
                    "INSERT INTO pin (account, master_key, pinned_at) VALUES ($1, $2, $3)"
                    " ON CONFLICT (account) DO NOTHING",
                    account,
                    master,
                    moment,
                )
                pinned |= await self.known([account])
            if pinned[account] not in (master, REVOKED + master):
                await self._note_change(account, master, moment)
        # Not of who is pinned just now: the other sender may have noted another one at this moment.
        back = [account for account, master in masters.items() if before.get(account) == master]
        for account in back:  # the pinned identity is shown again
            await self._store.db.execute(
                "DELETE FROM warning WHERE kind='identity' AND subject=$1", account
            )

    async def _note_change(self, account: str, master: str, moment: int) -> None:
        """The one that is shown now; an earlier one can no longer be accepted."""
        if await self._store.db.fetchval(
            "SELECT account FROM revoked_identity WHERE account=$1 AND master_key=$2",
            account,
            master,
        ):
            return  # of a stolen phone: it gets nothing and is not offered
        async with self._store.transaction() as connection:
            added = await connection.fetchrow(
                "INSERT INTO warning (kind, subject, mark, seen_at) VALUES ('identity', $1, $2, $3)"
                " ON CONFLICT (kind, subject, mark) DO NOTHING RETURNING mark",
                account,
                master,
                moment,
            )
            if added is None:
                return
            await connection.execute(
                "DELETE FROM warning WHERE kind='identity' AND subject=$1 AND mark<>$2",
                account,
                master,
            )
        self._store.hints.notify("trust")

    async def changed(self, account: str) -> Changed | None:
        """The identity of this account that waits to be accepted."""
        row = await self._store.db.fetchrow(
            "SELECT * FROM warning WHERE kind='identity' AND subject=$1", account
        )
        return Changed(row["subject"], row["mark"], from_ms(row["seen_at"])) if row else None

    async def has_approved(
        self, connection: Connection, change: Changed, *, by: str, now: datetime
    ) -> bool:
        """Whether a clinician has accepted this identity and it still counts."""
        return bool(
            await connection.fetchval(
                "SELECT COUNT(*) FROM pin_approval WHERE account=$1 AND master_key=$2"
                " AND approver=$3 AND approved_at>$4",
                change.account,
                change.master_key,
                by,
                to_ms(now - APPROVAL_VALID),
            )
        )

    async def approve(
        self, connection: Connection, change: Changed, *, by: str, now: datetime
    ) -> bool:
        """A clinician accepts an identity.

        Returns:
            Whether enough have, so that it is now the pinned one.
        """
        await lock_head(connection, EPOCH)  # two who accept at once must see each other
        await connection.execute(
            "INSERT INTO pin_approval (account, master_key, approver, approved_at)"
            " VALUES ($1, $2, $3, $4) ON CONFLICT (account, master_key, approver)"
            " DO UPDATE SET approved_at=$4",  # who said it yesterday may say it again today
            change.account,
            change.master_key,
            by,
            to_ms(now),
        )
        count = await connection.fetchval(
            "SELECT COUNT(*) FROM pin_approval LEFT JOIN staff ON staff.account=approver"
            " WHERE pin_approval.account=$1 AND master_key=$2 AND approver<>$1"
            " AND staff.left_at IS NULL AND approved_at>$3",
            change.account,
            change.master_key,
            to_ms(now - APPROVAL_VALID),
        )
        if int(count or 0) < APPROVALS_NEEDED:
            return False
        await self.accept(connection, change, now=now)
        return True

    async def accept(self, connection: Connection, change: Changed, *, now: datetime) -> None:
        """From now on this identity is the person's."""
        await self._pin(connection, change.account, change.master_key, now)

    async def revoke(self, connection: Connection, account: str, *, now: datetime) -> None:
        """No identity of this account is trusted until another is accepted (a stolen phone)."""
        pinned = (await self.known([account])).get(account, "")
        stolen = pinned.removeprefix(REVOKED)
        await self._pin(connection, account, REVOKED + stolen, now)
        await connection.execute(
            "INSERT INTO revoked_identity (account, master_key) VALUES ($1, $2)"
            " ON CONFLICT (account, master_key) DO NOTHING",
            account,
            stolen,
        )

    async def block(
        self, connection: Connection, account: str, device_ids: Collection[str]
    ) -> None:
        """These devices never get a key again, even if the homeserver goes on listing them."""
        for device_id in device_ids:
            await connection.execute(
                "INSERT INTO blocked_device (account, device_id) VALUES ($1, $2)"
                " ON CONFLICT (account, device_id) DO NOTHING",
                account,
                device_id,
            )
        await new_epoch(connection)

    async def blocked(self, account: str) -> frozenset[str]:
        """Device ids of a person's lost phones."""
        rows = await self._store.db.fetch(
            "SELECT device_id FROM blocked_device WHERE account=$1", account
        )
        return frozenset(row["device_id"] for row in rows)

    async def _pin(
        self, connection: Connection, account: str, master_key: str, now: datetime
    ) -> None:
        await new_epoch(connection)  # first, as everywhere: nobody locks a pin and waits for it
        await connection.execute(
            "INSERT INTO pin (account, master_key, pinned_at) VALUES ($1, $2, $3)"
            " ON CONFLICT (account) DO UPDATE SET master_key=$2, pinned_at=$3",
            account,
            master_key,
            to_ms(now),
        )
        await connection.execute("DELETE FROM pin_approval WHERE account=$1", account)
        await connection.execute(
            "DELETE FROM warning WHERE kind='identity' AND subject=$1", account
        )


async def new_epoch(connection: Connection) -> None:
    """Say that who may read has changed: every room key made before is used no more."""
    await move_head(connection, EPOCH, await lock_head(connection, EPOCH) + 1)


class Audience:
    """Who belongs in our rooms, by our own records."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def epoch(self) -> int:
        """A number that grows whenever who may read changes."""
        value = await self._store.db.fetchval("SELECT position FROM log_head WHERE log=$1", EPOCH)
        return int(value or 0)

    async def of(self, room_id: str) -> frozenset[str]:
        """Accounts that may read a room: of people, not of our senders. Empty for other rooms."""
        rows = await self._store.db.fetch(
            "SELECT participant.account AS account FROM consultation"  # noqa: S608 - words of ours
            " JOIN participant ON participant.consultation_id=consultation.consultation_id"
            " LEFT JOIN staff ON staff.account=participant.account"
            f" WHERE consultation.room_id=$1 AND consultation.status IN ({_WITH_READERS})"
            " AND participant.until IS NULL AND staff.left_at IS NULL"
            " AND (staff.role IS NULL OR staff.role<>'operator')"  # none: not of our staff
            " UNION SELECT patient.account FROM consultation"
            " JOIN patient ON patient.patient_key=consultation.patient_key"
            f" WHERE consultation.room_id=$1 AND consultation.status IN ({_WITH_READERS})"
            " AND consultation.admitted_at IS NOT NULL AND patient.account IS NOT NULL"
            " UNION SELECT waiting_chat.account FROM waiting_chat WHERE room_id=$1"
            " UNION SELECT staff.account FROM ward JOIN staff ON staff.ward_id=ward.ward_id"
            " WHERE ward.room_id=$1 AND staff.left_at IS NULL AND staff.role<>'operator'",
            room_id,
        )
        return frozenset(row["account"] for row in rows)

    async def rooms(self) -> list[str]:
        """Every room of ours in which something may be said: open consultations and wards."""
        rows = await self._store.db.fetch(
            "SELECT room_id FROM consultation WHERE status='open' AND room_id IS NOT NULL"
            " UNION SELECT room_id FROM ward WHERE room_id IS NOT NULL"
        )
        return sorted(row["room_id"] for row in rows)
