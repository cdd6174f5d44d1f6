"""The push rules: what they come to, and how they are brought about."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appservice.push import MASTER_MUTED, Change, Rule, changes, rules, trouble

AWA = "@awa:clinic.test"
RING = {"sound": "default", "highlight": True}

ids = st.sampled_from([rule.rule_id for rule in rules(AWA, rings=True)])
json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["rule_id", "actions", "enabled", "x"]), inner)
    ),
    max_leaves=8,
)


class Account:
    """A user's rules at a homeserver that does as Synapse does."""

    def __init__(self) -> None:
        self.override: list[dict[str, Any]] = []
        self.master = False

    def answer(self) -> dict[str, Any]:
        """What `GET /pushrules/` says."""
        master = own(".m.rule.master", enabled=self.master)
        others = [own(".m.rule.suppress_notices"), own(".m.rule.invite_for_me")]
        return {"global": {"override": [master, *self.override, *others], "underride": []}}

    def apply(self, change: Change) -> None:
        scope, kind, rule_id, *attribute = map(unquote, change.path.split("/"))
        assert (scope, kind) == ("global", "override")
        standing = next((rule for rule in self.override if rule["rule_id"] == rule_id), None)
        if change.method == "DELETE":
            assert standing is not None
            self.override.remove(standing)
            return
        assert change.body is not None
        if attribute:
            assert attribute == ["enabled"]
            assert standing is not None
            standing["enabled"] = change.body["enabled"]
            return
        self.put(rule_id, change.body["conditions"], change.body["actions"])

    def put(self, rule_id: str, conditions: list[Any], actions: list[Any]) -> None:
        """To the top; whoever disabled it finds it disabled still."""
        standing = next((rule for rule in self.override if rule["rule_id"] == rule_id), None)
        if standing is not None:
            self.override.remove(standing)
        rule = own(rule_id, enabled=standing is None or standing["enabled"])
        self.override.insert(0, rule | {"conditions": conditions, "actions": actions})

    def bring(self, *, rings: bool) -> tuple[Change, ...]:
        """Bring it to what it should be; what was sent for that."""
        sent = changes(self.answer(), AWA, rings=rings)
        for change in sent:
            self.apply(change)
        return sent

    def mute_room(self, room_id: str) -> None:
        """As Element does."""
        condition = {"kind": "event_match", "key": "room_id", "pattern": room_id}
        self.put(room_id, [condition], [])


def own(rule_id: str, *, enabled: bool = True) -> dict[str, Any]:
    return {"rule_id": rule_id, "enabled": enabled, "conditions": [], "actions": []}


def fits(rule: Rule, event: Mapping[str, str]) -> bool:
    return all(
        fnmatch.fnmatchcase(event.get(condition["key"], ""), condition["pattern"])
        for condition in rule.conditions()
    )


def effect(event: Mapping[str, str], *, rings: bool = True) -> tuple[str, bool, dict[str, Any]]:
    """Which rule decides about an event, whether it notifies, and how loud."""
    rule = next(rule for rule in rules(AWA, rings=rings) if fits(rule, event))
    tweaks = {a["set_tweak"]: a.get("value", True) for a in rule.actions if not isinstance(a, str)}
    return rule.rule_id, "notify" in rule.actions, tweaks


def test_a_wish_to_watch_is_silent_whoever_sends_it_and_no_alarm_can_pass_for_one() -> None:
    relation = {"content.m\\.relates_to.rel_type": "com.fajma.watch"}
    assert effect(message("@awa:clinic.test") | relation) == ("com.fajma.watches", False, {})
    alarm = message("@fajma-alerts:clinic.test")
    assert effect(alarm | relation) == effect(alarm)


def message(sender: str) -> dict[str, str]:
    return {"sender": sender, "type": "m.room.encrypted"}


def invitation(sender: str, whom: str) -> dict[str, str]:
    return {
        "sender": sender,
        "type": "m.room.member",
        "content.membership": "invite",
        "state_key": whom,
    }


@pytest.fixture
def account() -> Account:
    return Account()


@pytest.mark.parametrize("server", ["clinic.test", "hospital.test:8448"])
def test_an_alarm_of_any_hospital_rings_on_duty_and_is_silent_off_duty(server: str) -> None:
    alarm = message(f"@fajma-alerts:{server}")
    assert effect(alarm) == ("com.fajma.alarms", True, RING)
    assert effect(alarm, rings=False) == ("com.fajma.alarms", False, {})


def test_the_end_of_an_alarm_is_silent() -> None:
    end = message("@fajma-alerts:clinic.test") | {"content.com\\.fajma\\.ring": "nobody"}
    assert effect(end) == ("com.fajma.endings", False, {})


@pytest.mark.parametrize("rings", [True, False])
def test_an_alarm_that_nobody_answered_rings_off_duty_too(*, rings: bool) -> None:
    unanswered = message("@fajma-alerts:clinic.test") | {"content.com\\.fajma\\.ring": "everyone"}
    assert effect(unanswered, rings=rings) == ("com.fajma.everyone", True, RING)


@pytest.mark.parametrize("rings", [True, False])
def test_telemetry_and_answers_are_silent_for_everybody(rings: bool) -> None:  # noqa: FBT001
    vitals, talk = message("@fajma-vitals:clinic.test"), message("@fajma:clinic.test")
    assert effect(vitals, rings=rings) == ("com.fajma.telemetry", False, {})
    assert effect(talk, rings=rings) == ("com.fajma.notices", False, {})


def test_an_invitation_is_seen_without_a_sound_and_only_by_whom_it_is_for() -> None:
    mine, other = (invitation("@fajma:clinic.test", whom) for whom in (AWA, "@bob:clinic.test"))
    assert effect(mine) == ("com.fajma.invitations", True, {})
    assert effect(other) == ("com.fajma.notices", False, {})


def test_a_notice_of_the_site_is_seen_without_a_sound() -> None:
    assert effect(message("@fajma-avis:clinic.test")) == ("com.fajma.site", True, {})


@pytest.mark.parametrize(
    "sender", ["@awa:clinic.test", "@fajmah:clinic.test", "@fajma-alertsx:clinic.test"]
)
def test_people_who_write_call_or_invite_are_none_of_our_business(sender: str) -> None:
    call = {"sender": sender, "type": "m.call.invite"}
    events = (message(sender), call, invitation(sender, AWA))
    assert not any(fits(rule, event) for rule in rules(AWA, rings=True) for event in events)


def test_a_new_account_gets_all_rules_in_order_and_before_those_of_the_server(
    account: Account,
) -> None:
    account.bring(rings=True)
    assert [rule["rule_id"] for rule in account.answer()["global"]["override"]] == [
        ".m.rule.master",
        "com.fajma.everyone",
        "com.fajma.endings",
        "com.fajma.alarms",
        "com.fajma.telemetry",
        "com.fajma.invitations",
        "com.fajma.notices",
        "com.fajma.site",
        "com.fajma.watches",
        ".m.rule.suppress_notices",
        ".m.rule.invite_for_me",
    ]


def test_nothing_is_sent_when_all_is_right(account: Account) -> None:
    account.bring(rings=True)
    assert account.bring(rings=True) == ()


def test_going_off_duty_changes_the_alarm_rule_and_nothing_else(account: Account) -> None:
    account.bring(rings=True)
    change, *above = account.bring(rings=False)
    assert (change.method, change.path) == ("PUT", "global/override/com.fajma.alarms")
    assert change.body is not None
    assert change.body["actions"] == []
    assert [one.path for one in above] == [  # these must stay above: put again
        "global/override/com.fajma.endings",
        "global/override/com.fajma.everyone",
    ]


def test_a_room_muted_later_is_stepped_over_and_stays_muted_for_what_people_say(
    account: Account,
) -> None:
    account.bring(rings=True)
    account.mute_room("!ward:clinic.test")
    assert account.override[0]["rule_id"] == "!ward:clinic.test"
    account.bring(rings=True)
    order = [rule["rule_id"] for rule in account.override]
    assert order[:3] == ["com.fajma.everyone", "com.fajma.endings", "com.fajma.alarms"]
    assert order[-1] == "!ward:clinic.test"


def test_a_rule_that_the_user_disabled_is_enabled_again(account: Account) -> None:
    account.bring(rings=True)
    account.override[2]["enabled"] = False
    (change,) = account.bring(rings=True)
    assert change.path == "global/override/com.fajma.alarms/enabled"
    assert account.bring(rings=True) == ()


def test_a_disabled_rule_that_is_put_again_is_enabled_afterwards(account: Account) -> None:
    account.bring(rings=True)
    account.override[0]["enabled"] = False
    account.bring(rings=False)
    assert account.override[0]["enabled"] is True
    assert account.bring(rings=False) == ()


def test_a_rule_of_ours_from_another_version_is_taken_away(account: Account) -> None:
    account.put("com.fajma.old/rule", [], ["notify"])
    sent = account.bring(rings=True)
    assert sent[0] == Change("DELETE", "global/override/com.fajma.old%2Frule", None)
    assert len(account.override) == len(rules(AWA, rings=True))


@pytest.mark.parametrize("silence", [["dont_notify"], ["coalesce"], []])
def test_older_words_for_silence_are_left_alone(account: Account, silence: list[str]) -> None:
    account.bring(rings=True)
    account.override[3]["actions"] = silence
    assert account.bring(rings=True) == ()


def test_a_tweak_written_out_is_the_same_tweak(account: Account) -> None:
    account.bring(rings=True)
    account.override[0]["actions"] = [
        {"set_tweak": "highlight", "value": True},
        {"set_tweak": "sound", "value": "default"},
        "notify",
    ]
    assert account.bring(rings=True) == ()


@pytest.mark.parametrize(
    "actions", [["notify"], ["notify", {"set_tweak": "sound", "value": "ring"}], None, [{}]]
)
def test_an_alarm_rule_that_was_made_quiet_or_strange_is_put_again(
    account: Account, actions: object
) -> None:
    account.bring(rings=True)
    account.override[2]["actions"] = actions
    assert [change.path for change in account.bring(rings=True)] == [
        "global/override/com.fajma.alarms",
        "global/override/com.fajma.endings",
        "global/override/com.fajma.everyone",
    ]


def test_notifications_switched_off_altogether_are_reported_and_not_touched(
    account: Account,
) -> None:
    account.bring(rings=True)
    assert trouble(account.answer()) == ()
    account.master = True
    assert trouble(account.answer()) == (MASTER_MUTED,)
    assert account.bring(rings=True) == ()


@given(
    standing=st.lists(
        st.tuples(ids | st.sampled_from(["!a:b", "com.fajma.old"]), st.booleans(), json),
        unique_by=lambda one: one[0],
    ),
    rings=st.booleans(),
)
def test_whatever_stands_there_one_round_makes_it_right(
    standing: list[tuple[str, bool, Any]],
    rings: bool,  # noqa: FBT001
) -> None:
    account = Account()
    for rule_id, enabled, actions in standing:
        account.put(rule_id, [], actions)
        account.override[0]["enabled"] = enabled
    account.bring(rings=rings)
    wanted = rules(AWA, rings=rings)
    assert [rule["rule_id"] for rule in account.override][: len(wanted)] == [
        rule.rule_id for rule in wanted
    ]
    assert account.bring(rings=rings) == ()


@given(st.none() | json | st.fixed_dictionaries({"global": json | st.builds(dict, override=json)}))
def test_an_answer_of_any_shape_is_survived(current: Any) -> None:
    assert isinstance(changes(current, AWA, rings=True), tuple)
    assert isinstance(trouble(current), tuple)
