"""Wards: a team and its encrypted room."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Final

import structlog

from appservice.rooms import Plan, room_request
from appservice.service import GREET_AFTER_S, MatrixService
from fajma.commands import Action, usage
from fajma.config import Settings
from fajma.duty import Roster
from fajma.errors import InputError
from fajma.events import MESSAGE
from fajma.language import Language, shown, translator
from fajma.store import Records
from fajma.store.audit import OPERATOR
from fajma.store.people import Staff, named
from fajma.store.wards import Ward, WardId

log = structlog.get_logger()

_WARD_ID: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,29}[a-z0-9])?")


class WardService:
    """Opens wards; greets who joins their rooms."""

    def __init__(self, settings: Settings, records: Records, matrix: MatrixService) -> None:
        self._settings = settings
        self._records = records
        self._matrix = matrix
        self._one_at_a_time = asyncio.Lock()

    async def open(
        self, name: str, *, language: Language | None, time_zone: str | None, now: datetime
    ) -> Ward:
        """Have a ward with its room; completes one whose making was interrupted.

        Args:
            name: short name, e.g. ``medecine-2``.
            language: of its room; the site's where ``None``.
            time_zone: IANA name; the site's where ``None``.
            now: aware UTC.

        Raises:
            InputError: the name is not one.
        """
        if not _WARD_ID.fullmatch(name):
            raise _bad_name(name)
        site = self._settings.site
        ward = Ward(
            WardId(name),
            None,
            language or site.language,
            time_zone or site.time_zone,
            Roster(),
        )
        async with self._one_at_a_time:
            await self._records.wards.add(ward)
            kept = await self.get(name)
            if kept.room_id is None:
                await self._make_room(kept)
                async with self._records.store.transaction() as connection:
                    await self._records.audit.note(
                        connection, actor=OPERATOR, action="ward.open", subject=name, now=now
                    )
        return await self.get(name)

    async def get(self, name: str) -> Ward:
        """A ward by its name.

        Raises:
            InputError: there is none.
        """
        ward = await self._records.wards.get(WardId(name))
        if ward is None:
            known = ", ".join(one.id for one in await self._records.wards.all()) or "none yet"
            raise InputError(
                f"there is no ward {name!r} (there is: {known}): add it with `fajma ward add`",
                code="ward_unknown",
            )
        return ward

    async def all(self) -> list[Ward]:
        """Every ward."""
        return await self._records.wards.all()

    async def greet(self, room_id: str, user: str) -> None:
        """Say in one line to somebody who joined a ward's room where to begin.

        What the room is for stands in its topic, which everybody can read at any time.
        """
        ward = await self._records.wards.in_room(room_id)
        if ward is None:
            return
        # A client refuses what comes before it has looked up our device.
        await asyncio.sleep(GREET_AFTER_S)
        person = await self._records.people.get(user)
        who = self._records.site_key.fingerprint(b"greeted", user.encode()).hex()
        await self._matrix.host.send(
            room_id,
            MESSAGE,
            {
                "msgtype": "m.notice",
                "body": greeting(person.language if person else ward.language, person, user),
                "m.mentions": {"user_ids": [user]},
            },
            transaction_id=f"welcome-{ward.id}-{who}",
        )

    async def _make_room(self, ward: Ward) -> None:
        matrix = self._matrix
        team = [one.account for one in await self._records.people.team(ward.id)]
        request = room_request(
            plan_of(matrix, team),
            name=room_name(ward),
            room_version=self._settings.homeserver.room_version,
            topic=topic(ward.language),
        )
        room_id = await matrix.create_room(request)
        await self._records.wards.opened(ward.id, room_id)
        log.info("ward_opened", ward=ward.id, room=room_id)


def plan_of(matrix: MatrixService, team: Iterable[str]) -> Plan:
    """What a ward's room must be; telemetry never goes there."""
    return Plan(matrix.host.mxid, (matrix.alerts_mxid,), clinicians=tuple(team))


def _bad_name(name: str) -> InputError:
    wrong = "".join(dict.fromkeys(re.sub(r"[a-z0-9-]", "", name)))
    which = f"; these characters cannot be in it: {shown(wrong, 31)}" if wrong else ""
    return InputError(
        "a ward's name has up to 31 small letters without accents, digits and, between them,"
        f" hyphens, e.g. medecine-2{which}",
        code="ward_name",
    )


def room_name(ward: Ward) -> str:
    """The name of a ward's room, in the language of the ward."""
    _ = translator(ward.language).gettext
    return _("Ward {ward}").format(ward=ward.id)


def topic(language: Language) -> str:
    """What a ward's room is for; in clear, so nothing of the ward's is in it."""
    _ = translator(language).gettext
    return _(
        "The team's room of the ward: alarms of patients without account, duty and handover. A"
        " secondary, investigational notification, not a certified medical device: never rely on it"
        " as the only monitoring. What can be typed: {help}"
    ).format(help=usage(Action.HELP, language))


def greeting(language: Language, person: Staff | None, account: str) -> str:
    """The first message that somebody reads in a ward's room."""
    _ = translator(language).gettext
    return _(
        "Welcome {who}. Whoever takes care of an alarm reacts with ✅ to its message. Oximeters"
        " overestimate SpO2 in dark skin and with poor perfusion. What can be typed here: {help}"
    ).format(who=named(person, account), help=usage(Action.HELP, language))
