"""Which messages make a phone ring: the push rules of every local user. Pure.

The house rule is that phones ring for alarms and only for alarms. All rooms are encrypted, so the
homeserver can go by the sender only. How rules work (Matrix client-server specification 1.16,
"Push Notifications"; what Synapse does differently was read in its source and tried):

* Kinds are asked in the order override, content, room, sender, underride; the first enabled rule
  that matches decides. ``.m.rule.master`` stands before all others; where a user enables it,
  nothing pushes, and no rule of ours can mend that.
* A rule that is put without ``before`` or ``after`` goes to the top of its kind, also when it
  exists already. Muting a room in Element puts such a rule (its id is the room's), so it lands
  above ours until ours are put again.
* A pattern without its own wildcard rules must match the whole sender, whatever the case: ``*`` is
  any number of characters. A local part has no colon, so ``@fajma:*`` is not ``@fajma-vitals:...``,
  and one rule covers the hospitals of everybody.
* No actions means silence: no push, and nothing that counts as unread. ``dont_notify`` and
  ``coalesce`` are words of older versions that do nothing.
* Putting a rule again keeps it disabled where somebody disabled it: that is a change of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import quote

from fajma.events import EVERYONE, NOBODY, RING, WATCH_RELATION

OURS: Final = "com.fajma."
"""What the ids of our rules begin with; of these no others are left standing."""

MASTER_MUTED: Final = "master_muted"
"""The user switched off all notifications of his account: he will miss alarms."""

_MASTER: Final = ".m.rule.master"
# A leading dot marks the server's own rules, which keep their place.
_SERVERS_OWN: Final = "."

_NOTIFY: Final = "notify"
_SOUND: Final = "sound"
_HIGHLIGHT: Final = "highlight"

Action = str | Mapping[str, Any]

_RING: Final[tuple[Action, ...]] = (
    _NOTIFY,
    {"set_tweak": _SOUND, "value": "default"},
    {"set_tweak": _HIGHLIGHT},
)
_QUIET: Final[tuple[Action, ...]] = (_NOTIFY,)
_SILENT: Final[tuple[Action, ...]] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """An override push rule of ours.

    Attributes:
        rule_id: e.g. ``com.fajma.alarms``.
        sender: pattern of the sender's user id.
        actions: as in the specification; none means silence.
        invited: a user id; then the rule is about invitations of this user only.
        relation: how an event refers to another, which stands in clear; then the rule is about
            such events only.
        ring: who hears an event (``fajma.events.RING``); then the rule is about such events only.
    """

    rule_id: str
    sender: str
    actions: tuple[Action, ...]
    invited: str | None = None
    relation: str | None = None
    ring: str | None = None

    def conditions(self) -> list[dict[str, str]]:
        """When it matches, as in the specification."""
        wanted = {"sender": self.sender}
        if self.invited is not None:
            # The same three as the server's own rule about invitations.
            wanted |= {
                "type": "m.room.member",
                "content.membership": "invite",
                "state_key": self.invited,
            }
        if self.relation is not None:
            # Dots within a name are escaped ("event_match").
            wanted |= {"content.m\\.relates_to.rel_type": self.relation}
        if self.ring is not None:
            wanted["content." + RING.replace(".", "\\.")] = self.ring
        return [
            {"kind": "event_match", "key": key, "pattern": pattern}
            for key, pattern in wanted.items()
        ]

    def body(self) -> dict[str, Any]:
        """What is sent to put it."""
        return {"conditions": self.conditions(), "actions": list(self.actions)}


@dataclass(frozen=True, slots=True)
class Change:
    """A request that brings the rules nearer to what they should be.

    Attributes:
        method: HTTP method.
        path: below ``/_matrix/client/v3/pushrules/``, ready to use in a URL.
        body: JSON to send; ``None`` for no body.
    """

    method: Literal["PUT", "DELETE"]
    path: str
    body: Mapping[str, Any] | None


def rules(mxid: str, *, rings: bool) -> tuple[Rule, ...]:
    """The override rules of a local user, first the one that is asked first.

    Args:
        mxid: his user id.
        rings: whether alarms ring at his phone: he is on duty, or belongs to no ward. Otherwise
            (off duty, a patient) they are silent.
    """
    return (
        # An alarm that nobody answered. It is sent to a ward's room only, where no patient is.
        Rule("com.fajma.everyone", "@fajma-alerts:*", _RING, ring=EVERYONE),
        # The end of an alarm: good news can wait for the morning.
        Rule("com.fajma.endings", "@fajma-alerts:*", _SILENT, ring=NOBODY),
        Rule("com.fajma.alarms", "@fajma-alerts:*", _RING if rings else _SILENT),
        Rule("com.fajma.telemetry", "@fajma-vitals:*", _SILENT),
        # Alarms of a room reach only those who accepted its invitation, so it must be seen; it
        # waits on the phone without a sound. The next rule would swallow it.
        Rule("com.fajma.invitations", "@fajma:*", _QUIET, invited=mxid),
        Rule("com.fajma.notices", "@fajma:*", _SILENT),
        # The site's own notices are messages in clear of a room of two, which ring by default.
        Rule("com.fajma.site", "@fajma-avis:*", _QUIET),
        # A client that shows vitals says in the name of its user that somebody looks.
        Rule("com.fajma.watches", "*", _SILENT, relation=WATCH_RELATION),
    )


def changes(current: Mapping[str, Any], mxid: str, *, rings: bool) -> tuple[Change, ...]:
    """What to send, in this order, so that the user's rules are as they should be.

    Only what must be put is put. What would go wrong in between is harmless: our rules never match
    the same event, except the two of ``@fajma`` and the three of ``@fajma-alerts``.

    Args:
        current: the answer to ``GET /_matrix/client/v3/pushrules/``, of any shape.
        mxid: his user id.
        rings: see `rules`.

    Returns:
        Nothing where all is right.
    """
    wanted = rules(mxid, rings=rings)
    listed = [rule for rule in _override(current) if not _id(rule).startswith(_SERVERS_OWN)]
    known = {rule.rule_id for rule in wanted}
    stale = dict.fromkeys(_id(rule) for rule in listed if _id(rule).startswith(OURS))
    requests = [Change("DELETE", _path(rule_id), None) for rule_id in stale if rule_id not in known]

    # What is put goes to the top, the last one highest: so the first rules must be put until the
    # rest stands right at the top of what is not put, and they are put from last to first.
    standing = [rule for rule in listed if _id(rule) in known or not _id(rule).startswith(OURS)]
    put = next(n for n in range(len(wanted) + 1) if _stands(standing, wanted[:n], wanted[n:]))
    requests += [Change("PUT", _path(rule.rule_id), rule.body()) for rule in reversed(wanted[:put])]

    disabled = {_id(rule) for rule in standing if not _is_enabled(rule)}
    requests += [
        Change("PUT", f"{_path(rule.rule_id)}/enabled", {"enabled": True})
        for rule in wanted
        if rule.rule_id in disabled
    ]
    return tuple(requests)


def trouble(current: Mapping[str, Any]) -> tuple[str, ...]:
    """What keeps alarms from ringing and is not ours to change.

    Args:
        current: see `changes`.

    Returns:
        Codes; today only `MASTER_MUTED`.
    """
    muted = any(_id(rule) == _MASTER and rule.get("enabled") is True for rule in _override(current))
    return (MASTER_MUTED,) if muted else ()


def _stands(
    standing: list[Mapping[str, Any]], moved: tuple[Rule, ...], rest: tuple[Rule, ...]
) -> bool:
    """Whether the rest is right and on top, once those that are moved are taken away."""
    gone = {rule.rule_id for rule in moved}
    left = [rule for rule in standing if _id(rule) not in gone][: len(rest)]
    return len(left) == len(rest) and all(
        _is_same(rule, one) for rule, one in zip(left, rest, strict=True)
    )


def _is_same(current: Mapping[str, Any], wanted: Rule) -> bool:
    return (
        _id(current) == wanted.rule_id
        and current.get("conditions") == wanted.conditions()
        and _effect(current.get("actions")) == _effect(list(wanted.actions))
    )


def _effect(actions: object) -> tuple[bool, list[tuple[str, Any]]] | None:
    """What actions come to: whether to notify, and the tweaks; ``None`` if that cannot be told."""
    if not isinstance(actions, list):
        return None
    tweaks: dict[str, Any] = {}
    for action in actions:
        if isinstance(action, Mapping):
            name = action.get("set_tweak")
            if not isinstance(name, str):
                return None
            # Without a value a tweak is on ("Actions"); clients write it both ways.
            tweaks[name] = action.get("value", True)
    return _NOTIFY in actions, sorted(tweaks.items(), key=lambda item: item[0])


def _override(current: object) -> list[Mapping[str, Any]]:
    """The override rules that a server lists; what is not a rule is left out."""
    scope = current.get("global") if isinstance(current, Mapping) else None
    listed = scope.get("override") if isinstance(scope, Mapping) else None
    if not isinstance(listed, list):
        return []
    return [
        rule
        for rule in listed
        if isinstance(rule, Mapping) and isinstance(rule.get("rule_id"), str) and rule["rule_id"]
    ]


def _id(rule: Mapping[str, Any]) -> str:
    return str(rule["rule_id"])


def _is_enabled(rule: Mapping[str, Any]) -> bool:
    return rule.get("enabled", True) is True


def _path(rule_id: str) -> str:
    return f"global/override/{quote(rule_id, safe='')}"
