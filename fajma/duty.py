"""The roster of a ward: who is on duty, who offers duty to whom, who answered the drill.

No input or output happens here. A ``Roster`` never changes: every function gives a new one, or
raises ``DutyError`` and nothing has happened. Its rules:

- Whoever is first on the list is called first. Who takes duty comes last.
- The last one on duty does not simply leave, but hands over.
- One offer is open at a time, and its giver is on duty. Whoever accepts gets the giver's place.
- One drill runs at a time.
- When nobody is on duty, all phones ring: nobody is worse than all.

An offer or a drill whose time is over stays in the roster until ``expired`` takes it away (or a
new one replaces it), so that the caller can tell the ward first; it no longer has any effect.
The clock of a site may be set back: what began further in the future than it lasts is over too.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from fajma.commands import Action, usage
from fajma.errors import BugError, InputError
from fajma.language import Language, translator

OFFER_VALID: Final = timedelta(minutes=30)
"""How long an offer can be accepted. FAJMA default: about the length of a handover."""

DRILL_LASTS: Final = timedelta(minutes=10)
"""How long a drill can be answered. FAJMA default."""

_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class OnCall:
    """Somebody on duty.

    Attributes:
        account: full Matrix user id.
        since: when duty began, UTC.
    """

    account: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Offer:
    """A handover that waits for an answer; both are full Matrix user ids."""

    giver: str
    taker: str
    offered_at: datetime


@dataclass(frozen=True, slots=True)
class Drill:
    """A test of all channels.

    Attributes:
        drill_id: chosen by the caller.
        started_by: full Matrix user id.
        started_at: UTC.
        called: who was rung, nobody twice.
        answered: by account, when the first answer came; only of those called.
    """

    drill_id: str
    started_by: str
    started_at: datetime
    called: tuple[str, ...]
    answered: Mapping[str, datetime] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Roster:
    """All that is remembered of a ward's duty.

    Attributes:
        on_call: in the order in which they are called, nobody twice.
        offer: the last handover offered, if nobody answered it.
        drill: the last drill, until ``expired`` takes it away.
    """

    on_call: tuple[OnCall, ...] = ()
    offer: Offer | None = None
    drill: Drill | None = None

    @property
    def accounts(self) -> tuple[str, ...]:
        """Who is on duty, in the order in which they are called."""
        return tuple(person.account for person in self.on_call)

    def to_json(self) -> str:
        """The roster as one line of JSON."""
        content = {
            "version": _VERSION,
            "on_call": [[person.account, person.since.isoformat()] for person in self.on_call],
            "offer": _offer_to_json(self.offer),
            "drill": _drill_to_json(self.drill),
        }
        return json.dumps(content, separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Roster:
        """Read what ``to_json`` wrote.

        Raises:
            InputError: ``roster_invalid``, it is anything else, e.g. of a newer version.
        """
        try:
            return _roster(json.loads(text))
        except (ValueError, ArithmeticError, RecursionError):
            # The cause is left out: it would quote who is on duty.
            raise InputError(
                "Restore the duty roster from a backup or upgrade FAJMA: this version cannot "
                "read it.",
                code="roster_invalid",
            ) from None


class DutyError(InputError):
    """What somebody asked of the roster cannot be done; ``explain`` says why in his language.

    Args:
        code: one of those that ``explain`` knows.
    """

    def __init__(self, code: str) -> None:
        super().__init__(explain(code, Language.ENGLISH), code=code)


def explain(code: str, language: Language) -> str:
    """Why a request was refused, and what to type instead.

    Args:
        code: of a ``DutyError``.
        language: of the person who asked.

    Raises:
        BugError: ``duty_code_unknown``, no ``DutyError`` has this code.
    """
    _ = translator(language).gettext
    show = usage(Action.DUTY_SHOW, language)
    take_line = usage(Action.DUTY_TAKE, language)
    offer_line = usage(Action.HANDOVER_OFFER, language)
    cancel_line = usage(Action.HANDOVER_CANCEL, language)
    here = usage(Action.DRILL_ANSWER, language)
    said = {
        "already_on_duty": _("You are on duty already. To see the list: {show}"),
        "not_on_duty": _("You are not on duty. To take duty: {take}"),
        "offer_open": _(
            "A handover is waiting for its answer. Whoever offered it can take it back: {cancel}"
        ),
        "no_offer": _("No handover is offered. To offer yours: {offer}"),
        "not_your_offer": _(
            "Only the one who was asked accepts or declines, only the one who offered takes back. "
            "To see the list: {show}"
        ),
        "offer_to_self": _("You cannot hand over to yourself. Name somebody else: {offer}"),
        "offer_expired": _(
            "An offer is valid for {minutes} minutes, and this one is over. Offer again: {offer}"
        ),
        "drill_running": _("A drill is running already. Answer it: {here}"),
        "no_drill": _("No drill is running any more: there is nothing to answer."),
        "not_called": _("This drill does not call you: there is nothing to answer."),
        "last_on_duty": _(
            "You are the last one on duty: nobody would be called first. Hand over: {offer}"
        ),
    }
    if code not in said:
        raise BugError("A duty error has a code without words.", code="duty_code_unknown")
    return said[code].format(
        show=show,
        take=take_line,
        offer=offer_line,
        cancel=cancel_line,
        here=here,
        minutes=OFFER_VALID // timedelta(minutes=1),
    )


# ---------------------------------------------------------------------------------------------
# On duty


def take(roster: Roster, account: str, now: datetime) -> Roster:
    """Go on duty, last in the order.

    Raises:
        DutyError: ``already_on_duty``.
    """
    if account in roster.accounts:
        raise DutyError("already_on_duty")
    return replace(roster, on_call=(*roster.on_call, OnCall(account, now)))


def leave(roster: Roster, account: str, *, now: datetime, sure: bool = False) -> Roster:  # noqa: ARG001
    """Go off duty; an offer of one's own goes too.

    Args:
        roster: of the ward.
        account: who leaves.
        now: taken as every change takes it, though leaving leaves no time behind.
        sure: also when nobody remains; for an operator.

    Raises:
        DutyError: ``not_on_duty``, ``last_on_duty``.
    """
    if account not in roster.accounts:
        raise DutyError("not_on_duty")
    if len(roster.on_call) == 1 and not sure:
        raise DutyError("last_on_duty")
    left = _without(roster, account)
    given = roster.offer is not None and roster.offer.giver == account
    return replace(roster, on_call=left, offer=None if given else roster.offer)


def remove(roster: Roster, account: str) -> Roster:
    """Somebody left the hospital: off the list and out of offer and drill. Never refused.

    The list may become empty; then all phones ring.
    """
    offer_now, drill = roster.offer, roster.drill
    if offer_now is not None and account in (offer_now.giver, offer_now.taker):
        offer_now = None
    if drill is not None:
        drill = replace(
            drill,
            called=tuple(one for one in drill.called if one != account),
            answered={one: at for one, at in drill.answered.items() if one != account},
        )
    return Roster(_without(roster, account), offer_now, drill)


def ringing(roster: Roster, staff: Collection[str]) -> frozenset[str]:
    """Whose phones ring.

    Args:
        roster: of the ward.
        staff: accounts that can be rung now.

    Returns:
        Those on duty who are in ``staff``; all of ``staff`` when nobody is. Empty only when
        ``staff`` is.
    """
    return frozenset(roster.accounts) & frozenset(staff) or frozenset(staff)


# ---------------------------------------------------------------------------------------------
# Handover


def offer(roster: Roster, giver: str, taker: str, now: datetime) -> Roster:
    """Offer one's duty to somebody, who is on duty already or not.

    Raises:
        DutyError: ``not_on_duty``, ``offer_to_self``, ``offer_open``.
    """
    if giver not in roster.accounts:
        raise DutyError("not_on_duty")
    if giver == taker:
        raise DutyError("offer_to_self")
    if roster.offer is not None and not _over(roster.offer.offered_at, OFFER_VALID, now):
        raise DutyError("offer_open")
    return replace(roster, offer=Offer(giver, taker, now))


def accept(roster: Roster, taker: str, now: datetime) -> Roster:
    """Take over: the taker gets the giver's place in the order, the giver goes off duty.

    A taker who is on duty already keeps the better of the two places, and his time.

    Raises:
        DutyError: ``no_offer``, ``not_your_offer``, ``offer_expired``.
    """
    given = _answerable(roster, now, taker=taker)
    before = {person.account: person for person in roster.on_call}
    successor = before.get(taker, OnCall(taker, now))
    places = (
        successor if person.account in (given.giver, taker) else person for person in roster.on_call
    )
    # The second place of the successor, if there are two, falls away.
    return replace(roster, on_call=tuple(dict.fromkeys(places)), offer=None)


def decline(roster: Roster, account: str, now: datetime) -> Roster:
    """Refuse the duty that one is offered; the giver stays on duty.

    Raises:
        DutyError: ``no_offer``, ``not_your_offer``, ``offer_expired``.
    """
    _answerable(roster, now, taker=account)
    return replace(roster, offer=None)


def cancel(roster: Roster, account: str, now: datetime) -> Roster:
    """Take back one's offer.

    Raises:
        DutyError: ``no_offer``, ``not_your_offer``, ``offer_expired``.
    """
    _answerable(roster, now, giver=account)
    return replace(roster, offer=None)


def _answerable(
    roster: Roster, now: datetime, *, giver: str | None = None, taker: str | None = None
) -> Offer:
    """The open offer, of this giver or to this taker."""
    given = roster.offer
    if given is None:
        raise DutyError("no_offer")
    if giver not in (None, given.giver) or taker not in (None, given.taker):
        raise DutyError("not_your_offer")
    if _over(given.offered_at, OFFER_VALID, now):
        raise DutyError("offer_expired")
    return given


# ---------------------------------------------------------------------------------------------
# Drill


def start_drill(
    roster: Roster, account: str, drill_id: str, called: Collection[str], now: datetime
) -> Roster:
    """Begin a drill.

    Args:
        roster: of the ward.
        account: who starts it.
        drill_id: its identity, for the messages about it.
        called: who is rung; the same account twice counts once.
        now: UTC.

    Raises:
        DutyError: ``drill_running``.
    """
    if roster.drill is not None and not _over(roster.drill.started_at, DRILL_LASTS, now):
        raise DutyError("drill_running")
    return replace(roster, drill=Drill(drill_id, account, now, tuple(dict.fromkeys(called))))


def answer_drill(roster: Roster, account: str, now: datetime) -> Roster:
    """Note that somebody was reached; only the first answer counts.

    Raises:
        DutyError: ``no_drill``, ``not_called``.
    """
    drill = roster.drill
    if drill is None or _over(drill.started_at, DRILL_LASTS, now):
        raise DutyError("no_drill")
    if account not in drill.called:
        raise DutyError("not_called")
    if account in drill.answered:
        return roster
    return replace(roster, drill=replace(drill, answered={**drill.answered, account: now}))


def drill_result(drill: Drill) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Who answered and who was silent, each in the order of the call."""
    return (
        tuple(account for account in drill.called if account in drill.answered),
        tuple(account for account in drill.called if account not in drill.answered),
    )


def expired(roster: Roster, now: datetime) -> Roster:
    """The roster without an offer or a drill whose time is over."""
    given, drill = roster.offer, roster.drill
    if given is not None and _over(given.offered_at, OFFER_VALID, now):
        given = None
    if drill is not None and _over(drill.started_at, DRILL_LASTS, now):
        drill = None
    return replace(roster, offer=given, drill=drill)


def _over(began_at: datetime, lasts: timedelta, now: datetime) -> bool:
    return abs(now - began_at) >= lasts


def _without(roster: Roster, account: str) -> tuple[OnCall, ...]:
    return tuple(person for person in roster.on_call if person.account != account)


# The roster as JSON. Reading is strict: ValueError for whatever ``to_json`` would not write.


def _offer_to_json(given: Offer | None) -> object:
    return None if given is None else [given.giver, given.taker, given.offered_at.isoformat()]


def _drill_to_json(drill: Drill | None) -> object:
    if drill is None:
        return None
    return {
        "drill_id": drill.drill_id,
        "started_by": drill.started_by,
        "started_at": drill.started_at.isoformat(),
        "called": list(drill.called),
        "answered": {account: at.isoformat() for account, at in drill.answered.items()},
    }


def _roster(raw: object) -> Roster:
    content = _fields(raw, "version", "on_call", "offer", "drill")
    if type(content["version"]) is not int or content["version"] != _VERSION:
        raise ValueError
    people = [_list(person, 2) for person in _list(content["on_call"])]
    on_call = tuple(OnCall(_text(account), _time(since)) for account, since in people)
    roster = Roster(on_call, _offer(content["offer"]), _drill(content["drill"]))
    if len(set(roster.accounts)) != len(on_call):
        raise ValueError
    if roster.offer is not None and roster.offer.giver not in roster.accounts:
        raise ValueError
    return roster


def _offer(raw: object) -> Offer | None:
    if raw is None:
        return None
    giver, taker, offered_at = _list(raw, 3)
    if giver == taker:
        raise ValueError
    return Offer(_text(giver), _text(taker), _time(offered_at))


def _drill(raw: object) -> Drill | None:
    if raw is None:
        return None
    content = _fields(raw, "drill_id", "started_by", "started_at", "called", "answered")
    called = tuple(_text(account) for account in _list(content["called"]))
    answered = content["answered"]
    if len(set(called)) != len(called) or not isinstance(answered, dict):
        raise ValueError
    if not set(answered) <= set(called):
        raise ValueError
    return Drill(
        drill_id=_text(content["drill_id"]),
        started_by=_text(content["started_by"]),
        started_at=_time(content["started_at"]),
        called=called,
        answered={account: _time(at) for account, at in answered.items()},
    )


def _fields(raw: object, *names: str) -> dict[str, object]:
    if not isinstance(raw, dict) or set(raw) != set(names):
        raise ValueError
    return raw


def _list(raw: object, length: int | None = None) -> list[object]:
    if not isinstance(raw, list) or (length is not None and len(raw) != length):
        raise ValueError
    return raw


def _text(raw: object) -> str:
    if not isinstance(raw, str):
        raise ValueError  # noqa: TRY004  # all that is wrong with the text is one error
    return raw


def _time(raw: object) -> datetime:
    time = datetime.fromisoformat(_text(raw))
    if time.tzinfo is None:
        raise ValueError
    return time.astimezone(UTC)
