"""Whom a command names: one account for certain, or nobody."""

from __future__ import annotations

from collections.abc import Collection

from bots.alerts.desk import RefusedError
from fajma.commands import Action, Person, same_name, usage
from fajma.language import Language, shown, translator
from fajma.store import Records
from fajma.store.people import MAX_ACCOUNT, Staff


class Whom:
    """Finds people in our records.

    Args:
        records: everything.
    """

    def __init__(self, records: Records) -> None:
        self._records = records

    async def of_staff(self, person: Person | None, language: Language) -> str:
        """The account that a command names: one of the staff.

        A bare name must be the local part of exactly one of them.

        Raises:
            RefusedError: nobody has it, or several.
        """
        _ = translator(language).gettext
        staff = await self._records.people.active()
        if person is not None and person.mxid is not None:
            found = [one.account for one in staff if one.account == person.mxid]
        else:
            wanted = person.localpart if person is not None else None
            found = [one.account for one in staff if localpart(one.account) == wanted]
        if len(found) == 1:
            return found[0]
        if found:
            raise RefusedError(_several(found, language), code="ambiguous")
        raise RefusedError(
            _("Nobody of the staff has this id. Write @ and the id, or pick the person from"
              " Element's list."),
            code="nobody",
        )  # fmt: skip

    async def require_name(
        self, name: str, meant: Staff, action: Action, language: Language
    ) -> None:
        """The name that stands for somebody who was picked must be his, and nobody else's.

        The mention that a client adds to a reply is no pick, and that a message is a reply stands
        in clear, where a homeserver can take it away.

        Args:
            name: as it stands in the line.
            meant: who was picked.
            action: whose line is shown where the account must be written.
            language: of the answer.

        Raises:
            RefusedError: it is another name, or somebody else's too.
        """
        called = [
            one.account
            for one in await self._records.people.active()
            if same_name(name, one.name) or same_name(name, localpart(one.account))
        ]
        if called == [meant.account]:
            return
        if meant.account in called:
            raise RefusedError(_several(called, language), code="ambiguous")
        raise self.another_name(meant.account, action, language)

    @staticmethod
    def another_name(account: str, action: Action, language: Language) -> RefusedError:
        """Who was picked is not called so in our records, so the account must be written."""
        _ = translator(language).gettext
        return RefusedError(
            _("{who} has another name in the hospital's list. Write the account: {line}").format(
                who=shown(account, MAX_ACCOUNT),
                line=f"{usage(action, language).split()[0]} {account}",
            ),
            code="another_name",
        )


def localpart(account: str) -> str:
    """``awa`` of ``@awa:clinic.example``."""
    return account[1:].split(":", 1)[0]


def _several(accounts: Collection[str], language: Language) -> str:
    _ = translator(language).gettext
    return _("More than one person has this name: write the whole id: {ids}").format(
        ids=", ".join(accounts)
    )
