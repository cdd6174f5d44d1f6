"""Commands in the rooms: who may, once, and all of it or nothing; and where alarms go."""

from __future__ import annotations

import math
import secrets
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import nio
import pytest
import vodozemac
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from bots.alerts.orders import FRESH, TRIES
from fajma.commands import IN_CONSULTATION, usage
from fajma.duty import DRILL_LASTS, OFFER_VALID, Roster
from fajma.errors import UnavailableError
from fajma.facts import HandedOver
from fajma.language import Language
from fajma.store import to_ms
from fajma.store.alarms import Delivery, SentBy
from fajma.store.people import Role, Staff
from fajma.store.pins import APPROVAL_VALID
from fajma.store.wards import Ward, WardId
from fajma.store.warnings import About
from fajma.trust import identity_code
from tests.integration.scene import (
    ADMIN,
    AWA,
    FATOU,
    IBOU,
    MEDICINE,
    MOUSSA,
    NOON,
    OTHER_ROOM,
    OURS,
    PINNED,
    ROOM,
    SHOWN,
    SURGERY,
    SWAPPED,
    PulledPlugError,
    Scene,
    consultation,
    falls,
    unpadded,
)


async def leaves(scene: Scene, account: str) -> None:
    person = await scene.records.people.get(account)
    assert person is not None
    async with scene.records.store.transaction() as connection:
        await scene.records.people.put(connection, replace(person, left_at=NOON))


# --- refusals ------------------------------------------------------------------------------------


async def refused_once(scene: Scene, event: nio.RoomMessageText, room_id: str = ROOM) -> str:
    """The one answer; nothing has changed, however often the event comes."""
    before = await scene.roster()
    told = len(await scene.answers(room_id))
    for _ in range(3):
        await scene.client.deliver(room_id, event)
    scene.restart()
    await scene.client.deliver(room_id, event)
    [answer] = (await scene.said(room_id))[told:]
    assert answer.content["m.relates_to"] == {"m.in_reply_to": {"event_id": event.event_id}}
    assert answer.content["msgtype"] == "m.notice"
    assert await scene.roster() == before
    assert await scene.said(room_id, SentBy.ALERTS) == []
    return str(answer.content["body"])


async def assert_suspicion(scene: Scene, actor: str, reason: str, room_id: str = ROOM) -> None:
    [entry] = await scene.audit()
    assert (entry.action, entry.actor, entry.subject) == ("order.refused", actor, room_id)
    assert entry.detail == {"reason": reason}


@pytest.mark.parametrize("sender", ["@patient:clinic.test", "@awa:evil.test", "@Awa:clinic.test"])
async def test_who_is_not_of_the_staff_gives_no_command(scene: Scene, sender: str) -> None:
    answer = await refused_once(scene, scene.message(sender, "!garde prendre"))
    assert "personnel" in answer
    await assert_suspicion(scene, sender, "not_staff")


async def test_who_has_left_gives_no_command(scene: Scene) -> None:
    await leaves(scene, AWA)
    await refused_once(scene, scene.message(AWA, "!garde prendre"))
    await assert_suspicion(scene, AWA, "not_staff")


async def test_what_is_not_encrypted_is_no_command(scene: Scene) -> None:
    event = scene.message(AWA, "!garde prendre", encrypted=False)
    assert await refused_once(scene, event)
    await assert_suspicion(scene, AWA, "not_encrypted")


async def test_a_device_that_is_not_signed_now_gives_no_command(scene: Scene) -> None:
    event = scene.message(AWA, "!garde prendre")
    event.verified = True  # what was true when it was received does not count
    scene.client.unsigned.add(AWA)
    assert "Vérifier" in await refused_once(scene, event)
    await assert_suspicion(scene, AWA, "not_signed")


async def test_whose_keys_were_reset_is_told_so_and_not_to_verify(scene: Scene) -> None:
    await scene.records.pins.meet({AWA: PINNED}, now=NOON)
    await scene.records.pins.meet({AWA: SHOWN}, now=NOON)
    scene.client.unsigned.add(AWA)
    answer = await refused_once(scene, scene.message(AWA, "!garde prendre"))
    assert "réinitialisées" in answer
    assert "Vérifier" not in answer
    await assert_suspicion(scene, AWA, "identity_changed")


REPLACES = {"rel_type": "m.replace", "event_id": "$before"}
DUTY = {"msgtype": "m.text", "body": "!garde prendre"}


@pytest.mark.parametrize(
    "content",
    [
        {"body": "* !garde prendre", "m.relates_to": REPLACES, "m.new_content": DUTY},
        # As it looks when a homeserver takes the relation away, which stands outside in clear.
        {"body": "!garde prendre", "m.new_content": DUTY},
    ],
)
async def test_an_edit_is_no_command(scene: Scene, content: dict[str, Any]) -> None:
    assert await refused_once(scene, scene.message(AWA, "", content=content))
    await assert_suspicion(scene, AWA, "edited")


async def test_an_edit_to_prose_or_without_new_content_does_nothing(scene: Scene) -> None:
    for content in (
        {"m.relates_to": REPLACES, "m.new_content": {"body": "merci"}},
        {"m.relates_to": REPLACES},
        {"m.relates_to": REPLACES, "m.new_content": "!garde prendre"},
        {"m.new_content": {"body": "merci"}},
    ):
        assert await scene.types(AWA, "!garde prendre", content=content) == []
    assert await scene.roster() == Roster()


@pytest.mark.parametrize("lag", [FRESH, -FRESH])
async def test_a_command_too_old_or_from_the_future_is_not_carried_out(
    scene: Scene, lag: timedelta
) -> None:
    just = timedelta(milliseconds=1) if lag > timedelta() else -timedelta(milliseconds=1)
    late = scene.message(AWA, "!garde prendre", sent_at=NOON - lag - just)
    assert await refused_once(scene, late)
    await assert_suspicion(scene, AWA, "stale")
    assert await scene.types(AWA, "!garde prendre", sent_at=NOON - lag)
    assert (await scene.roster()).accounts == (AWA,)


@pytest.mark.parametrize("moment", [10**15, 2**53 - 1, 10**30])
async def test_a_time_that_no_calendar_has_is_not_fresh(scene: Scene, moment: int) -> None:
    event = scene.message(AWA, "!garde prendre")
    event.server_timestamp = moment
    assert await refused_once(scene, event)
    await assert_suspicion(scene, AWA, "stale")


async def test_duty_is_not_taken_in_a_consultation(scene: Scene) -> None:
    _, opened = await consultation(scene, AWA)
    assert opened.room_id is not None
    event = scene.message(AWA, "!garde prendre")
    assert await refused_once(scene, event, opened.room_id)
    await assert_suspicion(scene, AWA, "wrong_room", opened.room_id)


async def test_in_a_room_that_is_not_ours_nothing_is_heard(scene: Scene) -> None:
    assert await scene.types(AWA, "!garde prendre", room_id="!private:clinic.test") == []
    assert await scene.acts() == []
    assert scene.client.asked == []


@pytest.mark.parametrize("sender", [IBOU, ADMIN])
async def test_another_ward_or_an_operator_changes_nothing_here(scene: Scene, sender: str) -> None:
    assert await refused_once(scene, scene.message(sender, "!garde prendre"))
    await assert_suspicion(scene, sender, "not_of_ward")


async def test_a_mistyped_command_gets_the_right_line_and_no_audit(scene: Scene) -> None:
    answer = await refused_once(scene, scene.message(AWA, "!relève acepter"))
    assert "!relève accepter" in answer
    assert await scene.acts() == []


@pytest.mark.parametrize("typed", ["!gard", "!relève acepter", "!identité accepter @awa", "!aid"])
async def test_a_mistyped_command_in_a_consultation_shows_only_what_works_there(
    scene: Scene, typed: str
) -> None:
    _, opened = await consultation(scene, AWA)
    assert opened.room_id is not None
    answer = await refused_once(scene, scene.message(AWA, typed), opened.room_id)
    assert commands_in(answer) <= works_in_a_consultation(Language.FRENCH)
    assert "!aide" in answer


def works_in_a_consultation(language: Language) -> set[str]:
    return {usage(action, language).split()[0] for action in IN_CONSULTATION}


def commands_in(answer: str) -> set[str]:
    return {word for word in answer.split() if word.startswith("!")}


async def test_a_mistyped_command_of_a_stranger_is_suspicious_all_the_same(scene: Scene) -> None:
    await refused_once(scene, scene.message("@x:evil.test", "!relève acepter"))
    await assert_suspicion(scene, "@x:evil.test", "not_staff")


async def test_prose_and_what_we_say_ourselves_get_no_answer(scene: Scene) -> None:
    for body in ("bonjour", "!!! vite", "", "garde prendre", "le patient va mieux"):
        assert await scene.types(AWA, body) == []
    for sender in OURS:
        assert await scene.types(sender, "!garde prendre") == []
    assert await scene.acts() == []


async def test_when_the_homeserver_is_away_the_same_message_counts_later(scene: Scene) -> None:
    event = scene.message(AWA, "!garde prendre")
    scene.client.away = True
    with pytest.raises(UnavailableError):
        await scene.client.deliver(ROOM, event)
    assert await scene.roster() == Roster()
    scene.client.away = False
    await scene.client.deliver(ROOM, event)
    assert (await scene.roster()).accounts == (AWA,)


async def test_help_is_given_to_staff_in_the_language_typed_and_changes_nothing(
    scene: Scene,
) -> None:
    _, opened = await consultation(scene, AWA)
    [french] = await scene.types(ADMIN, "!aide")
    [english] = await scene.types(IBOU, "!help", room_id=str(opened.room_id))
    assert "!relève @nom" in french
    assert commands_in(english) == works_in_a_consultation(Language.ENGLISH)
    [in_the_ward] = await scene.types(IBOU, "!help", room_id=OTHER_ROOM)
    assert "!handover @name" in in_the_ward
    assert await scene.acts() == []


async def test_a_person_is_answered_in_his_own_language_whatever_line_he_copied(
    scene: Scene,
) -> None:
    [taken] = await scene.types(FATOU, "!garde prendre")
    assert "Fatou Sarr (@fatou:clinic.test) is on duty" in taken
    [again] = await scene.types(FATOU, "!garde prendre")
    assert "You are on duty already" in again
    [drill] = await scene.types(FATOU, "!test")
    assert "Drill started" in drill
    [shown] = await scene.types(AWA, "!duty")
    assert "De garde" in shown


async def test_nothing_said_or_named_is_logged(scene: Scene) -> None:
    with capture_logs() as logs:
        await scene.types(AWA, "!garde prendre")
        await scene.types("@x:evil.test", "!garde prendre")
        await scene.types(AWA, "!relève Moussa Ba")
    assert len(logs) == 3
    for secret in ("Awa Diop", "Moussa", "prendre"):
        assert secret not in str(logs)


async def test_who_leaves_duty_while_all_phones_ring_is_not_told_of_silence(scene: Scene) -> None:
    for account in (MOUSSA, AWA):
        await scene.types(account, "!garde prendre")
    warnings = scene.records.warnings
    await warnings.set(About.NOBODY_REACHABLE, MEDICINE, ["all"], now=NOON)
    [said] = await scene.types(AWA, "!garde quitter")
    assert "tous ceux du service sonnent" in said
    assert "muettes" not in said


# --- replays and crashes -------------------------------------------------------------------------


async def duty_taken_and_left(scene: Scene, envelope: str) -> None:
    """Moussa is on duty; Awa was, by a command in this envelope, and is no more."""
    await scene.types(MOUSSA, "!garde prendre")
    await scene.types(AWA, "!garde prendre", envelope=envelope)
    await scene.types(AWA, "!garde quitter")
    assert (await scene.roster()).accounts == (MOUSSA,)


@pytest.mark.parametrize("restarted", [False, True])
async def test_the_same_ciphertext_under_another_event_id_does_nothing(
    scene: Scene, *, restarted: bool
) -> None:
    envelope = unpadded(secrets.token_bytes(100))
    await duty_taken_and_left(scene, envelope)
    acts = await scene.acts()
    if restarted:
        scene.restart()
    assert await scene.types(AWA, "!garde prendre", envelope=envelope) == []
    assert (await scene.roster()).accounts == (MOUSSA,)
    assert await scene.acts() == acts
    assert len(scene.client.asked) == (0 if restarted else 3)  # a replay costs no request


async def test_whatever_spelling_of_a_ciphertext_still_decrypts_is_the_same_command(
    scene: Scene,
) -> None:
    sending = vodozemac.GroupSession()
    receiving = vodozemac.InboundGroupSession(sending.session_key)
    remainders = set()
    for length in range(16, 70, 16):
        raw = sending.encrypt(b"x" * length).to_bytes()
        remainders.add(len(raw) % 3)
        plain = unpadded(raw)
        letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
        last = letters.index(plain[-1])
        spellings = [
            plain + "=" * (-len(plain) % 4),
            *(plain[:-1] + letters[last ^ bits] for bits in range(1, 16)),
            plain + "\n",
            f" {plain}",
            plain.replace("+", "-").replace("/", "_"),
        ]
        replayable = [one for one in spellings if decrypts(receiving, one)]
        await scene.types(AWA, "!garde", envelope=plain)
        for spelling in replayable:
            assert await scene.types(AWA, "!garde", envelope=spelling) == []
    assert len(remainders) > 1  # so that padded spellings were among them


def decrypts(session: vodozemac.InboundGroupSession, ciphertext: str) -> bool:
    try:
        session.decrypt(vodozemac.MegolmMessage.from_base64(ciphertext))
    except (vodozemac.DecodeException, vodozemac.MegolmDecryptionException):
        return False
    return True


async def test_a_refused_command_cannot_be_replayed_once_it_would_be_allowed(
    scene: Scene,
) -> None:
    envelope = unpadded(secrets.token_bytes(100))
    scene.client.unsigned.add(AWA)
    assert await scene.types(AWA, "!garde prendre", envelope=envelope)
    scene.client.unsigned.clear()
    assert await scene.types(AWA, "!garde prendre", envelope=envelope) == []
    assert await scene.roster() == Roster()


async def test_an_event_delivered_twice_is_carried_out_and_answered_once(scene: Scene) -> None:
    event = scene.message(AWA, "!garde prendre")
    await scene.client.deliver(ROOM, event)
    await scene.client.deliver(ROOM, event)
    assert len(await scene.answers()) == 1
    assert await scene.acts() == ["duty.take"]


async def test_a_crash_in_between_leaves_nothing_half_done_and_the_command_counts_later(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scene.types(MOUSSA, "!garde prendre")
    before, acts = await scene.roster(), await scene.acts()
    event = scene.message(MOUSSA, "!test")
    real = scene.records.store.transaction

    @asynccontextmanager
    async def dies_before_its_commit():  # type: ignore[no-untyped-def]
        async with real() as connection:
            yield connection
            raise PulledPlugError

    monkeypatch.setattr(scene.records.store, "transaction", dies_before_its_commit)
    with pytest.raises(UnavailableError):  # so that the client brings it again
        await scene.client.deliver(ROOM, event)
    monkeypatch.undo()
    assert await scene.roster() == before
    assert await scene.acts() == acts
    assert len(await scene.answers()) == 1
    assert await scene.said(ROOM, SentBy.ALERTS) == []

    scene.restart()
    await scene.client.deliver(ROOM, event)
    assert (await scene.roster()).drill is not None
    assert await scene.acts() == [*acts, "drill.start"]
    assert len(await scene.answers()) == 2
    assert len(await scene.said(ROOM, SentBy.ALERTS)) == 1


async def test_a_command_held_back_beyond_a_later_one_is_not_carried_out(scene: Scene) -> None:
    await scene.types(MOUSSA, "!garde prendre")
    held_back = scene.message(AWA, "!garde prendre", index=5)
    await scene.types(AWA, "!garde prendre", index=6)
    await scene.types(AWA, "!garde quitter", index=9)
    assert await refused_once(scene, held_back)
    assert (await scene.audit())[-1].detail == {"reason": "overtaken"}
    assert (await scene.roster()).accounts == (MOUSSA,)
    # In the order in which they were typed all count, however many messages are between.
    await scene.types(AWA, "!garde prendre", index=40)
    assert (await scene.roster()).accounts == (MOUSSA, AWA)


async def test_a_refused_command_overtakes_too(scene: Scene) -> None:
    held_back = scene.message(AWA, "!garde prendre", index=5)
    await scene.types(AWA, "!relève accepter", index=6)
    assert await refused_once(scene, held_back)
    assert await scene.roster() == Roster()


async def test_another_device_room_or_session_has_an_order_of_its_own(scene: Scene) -> None:
    await scene.types(AWA, "!garde", index=9)
    for more in ({"session": "next session"}, {"room_id": OTHER_ROOM}):
        assert await scene.types(AWA, "!aide", index=1, **more)
    assert len(await scene.types(MOUSSA, "!garde prendre", index=1)) == 1
    assert (await scene.roster()).accounts == (MOUSSA,)


# --- what fails ----------------------------------------------------------------------------------


async def brought_again(scene: Scene, event: nio.Event) -> int:
    """Deliver as a client does, which goes back by ``UnavailableError``; how often it did."""
    for times in range(20):
        try:
            await scene.client.deliver(ROOM, event)
        except UnavailableError:
            continue
        return times
    return 20


def fails(times: float, error: Exception) -> Callable[..., Awaitable[bool]]:
    """Something that is asked, fails so often, and says yes afterwards."""
    left = [times]

    async def check(*_: object) -> bool:
        if left[0] > 0:
            left[0] -= 1
            raise error
        return True

    return check


@pytest.mark.parametrize("error", [OSError("connection reset"), sqlite3.OperationalError("locked")])
async def test_what_fails_for_a_while_is_carried_out_when_it_comes_again(
    scene: Scene, error: Exception
) -> None:
    scene.client.is_signed_now = fails(TRIES - 1, error)  # type: ignore[method-assign]
    event = scene.message(AWA, "!garde prendre")
    assert await brought_again(scene, event) == TRIES - 1
    assert (await scene.roster()).accounts == (AWA,)
    assert await scene.acts() == ["duty.take"]
    assert len(await scene.answers()) == 1


@pytest.mark.parametrize(
    "error", [KeyError("bug"), UnavailableError("refused", code="keys_query_refused")]
)
async def test_what_fails_for_ever_is_answered_and_does_not_block_the_next(
    scene: Scene, error: Exception
) -> None:
    scene.client.is_signed_now = fails(math.inf, error)  # type: ignore[method-assign]
    event = scene.message(AWA, "!garde prendre")
    assert await brought_again(scene, event) == TRIES - 1
    [answer] = await scene.answers()
    assert "panne" in answer
    [entry] = await scene.audit()
    assert (entry.action, entry.actor) == ("order.refused", AWA)
    assert entry.detail == {"reason": "failed"}
    scene.restart()
    assert await brought_again(scene, event) == 0  # what was answered so is over
    assert await scene.roster() == Roster()
    assert len(await scene.types(AWA, "!garde prendre")) == 1
    assert (await scene.roster()).accounts == (AWA,)


async def test_while_the_database_is_away_nothing_is_given_up(scene: Scene) -> None:
    known, epoch = scene.records.orders_seen.known, scene.records.audience.epoch
    away = fails(math.inf, OSError("no such host"))
    scene.records.orders_seen.known = away  # type: ignore[method-assign]
    scene.records.audience.epoch = away  # type: ignore[method-assign,assignment]
    event = scene.message(AWA, "!garde prendre")
    assert await brought_again(scene, event) == 20
    scene.records.orders_seen.known = known  # type: ignore[method-assign]
    scene.records.audience.epoch = epoch  # type: ignore[method-assign]
    assert await brought_again(scene, event) == 0
    assert (await scene.roster()).accounts == (AWA,)


async def test_what_cannot_even_be_answered_blocks_nothing(scene: Scene) -> None:
    broken = fails(math.inf, KeyError("bug"))
    scene.records.wards.in_room = broken  # type: ignore[method-assign,assignment]
    assert await brought_again(scene, scene.message(AWA, "!garde prendre")) == TRIES - 1


async def test_a_reaction_that_fails_comes_again(scene: Scene) -> None:
    await scene.types(AWA, "!garde prendre")
    rung = await start_drill(scene)
    event_of = scene.records.outbox.event_of
    works = fails(2, OSError("connection reset"))

    async def fails_twice(delivery_id: str) -> str | None:
        await works()
        return await event_of(delivery_id)

    scene.records.outbox.event_of = fails_twice  # type: ignore[method-assign]
    assert await brought_again(scene, scene.reaction(AWA, rung)) == 2
    assert await answered(scene) == {AWA}


async def test_who_leaves_or_moves_while_the_homeserver_is_asked_gives_no_command(
    scene: Scene,
) -> None:
    async def leaves_meanwhile(*_: object) -> bool:
        await leaves(scene, AWA)
        return True

    async def moves_meanwhile(*_: object) -> bool:
        person = await scene.records.people.get(MOUSSA)
        assert person is not None
        async with scene.records.store.transaction() as connection:
            await scene.records.people.put(connection, replace(person, ward=SURGERY))
        return True

    for account, meanwhile in ((AWA, leaves_meanwhile), (MOUSSA, moves_meanwhile)):
        scene.client.is_signed_now = meanwhile  # type: ignore[method-assign]
        await scene.client.deliver(ROOM, scene.message(account, "!garde prendre"))
    assert [one.detail["reason"] for one in await scene.audit()] == ["not_staff", "not_of_ward"]
    assert await scene.roster() == Roster()


@pytest.mark.parametrize("sender", [AWA, "@x:evil.test"])
async def test_a_command_that_two_deal_with_at_once_is_done_or_refused_once(
    scene: Scene, sender: str
) -> None:
    async def not_yet(_: bytes) -> bool:
        return False  # as both of them see it

    scene.records.orders_seen.known = not_yet  # type: ignore[method-assign]
    event = scene.message(sender, "!garde prendre")
    for _ in range(2):
        await scene.client.deliver(ROOM, event)
    assert len(await scene.acts()) == 1
    assert len(await scene.answers()) == 1


async def test_a_ward_is_told_once_that_messages_were_not_read(scene: Scene) -> None:
    for _ in range(2):
        await scene.client.miss_messages(ROOM, "first gap")
        scene.restart()
    [answer] = await scene.answers()
    assert "tapez-la de nouveau" in answer
    await scene.client.miss_messages(ROOM, "second gap")
    assert len(await scene.answers()) == 2
    acts = [(one.action, one.subject) for one in await scene.audit()]
    assert acts == [("order.gap", MEDICINE)] * 2
    _, opened = await consultation(scene, AWA)
    for room_id in (str(opened.room_id), "!private:clinic.test"):  # where no commands are given
        await scene.client.miss_messages(room_id, "gap")
        assert await scene.answers(room_id) == []


# --- duty and handover ---------------------------------------------------------------------------


async def test_duty_is_shown_taken_and_left(scene: Scene) -> None:
    [nobody] = await scene.types(AWA, "!garde")
    assert "!garde prendre" in nobody
    [taken] = await scene.types(AWA, "!garde prendre")
    assert "Awa Diop (@awa:clinic.test)" in taken
    [again] = await scene.types(AWA, "!garde prendre")
    assert "!garde" in again
    await scene.types(MOUSSA, "!garde prendre")
    [both] = await scene.types(FATOU, "!garde")
    assert both.index(AWA) < both.index(MOUSSA)
    assert "since 12:00\n" in both
    scene.now += timedelta(days=2)
    [days_later] = await scene.types(FATOU, "!garde")
    assert "since 2 Mar 12:00\n" in days_later
    await scene.types(AWA, "!garde quitter")
    [last] = await scene.types(MOUSSA, "!garde quitter")
    assert "!relève @nom" in last
    assert (await scene.roster()).accounts == (MOUSSA,)
    taken_and_left = [one for one in await scene.acts() if one != "order.refused"]
    assert taken_and_left == ["duty.take", "duty.take", "duty.leave"]


@pytest.mark.parametrize(
    ("mark", "says"),
    [
        ("no_pusher", "n'a vu aucun téléphone"),
        ("master_muted", "toutes les notifications du compte étaient coupées"),
        ("no_signed_device", "aucun appareil confirmé"),
        ("identity_changed", "aucun appareil confirmé"),
    ],
)
async def test_who_takes_duty_without_a_phone_that_rings_is_told_so(
    scene: Scene, mark: str, says: str
) -> None:
    await scene.records.warnings.set(About.NO_RING, AWA, [mark], now=NOON)
    [taken] = await scene.types(AWA, "!garde prendre")
    assert says in taken
    assert "les alarmes sonnent" not in taken
    [colleague] = await scene.types(MOUSSA, "!garde prendre")
    assert "les alarmes sonnent sur son téléphone" in colleague


async def test_a_handover_names_both_lists_open_alarms_and_limits_and_is_in_the_audit(
    scene: Scene,
) -> None:
    patient, _ = await consultation(scene, IBOU, number="417", ward=MEDICINE)
    elsewhere, _ = await consultation(scene, IBOU, number="902", ward=SURGERY)
    await falls(scene, patient)
    await falls(scene, elsewhere)
    await scene.types(AWA, "!garde prendre")
    [offered] = await scene.types(AWA, "!relève @moussa")
    assert "Awa Diop (@awa:clinic.test)" in offered
    assert "Moussa Ba (@moussa:clinic.test)" in offered
    assert "!relève accepter" in offered

    [refused] = await scene.types(FATOU, "!relève accepter")  # it is not hers to accept
    assert (await scene.roster()).accounts == (AWA,)
    assert refused

    [done] = await scene.types(MOUSSA, "!relève accepter")
    assert (await scene.roster()).accounts == (MOUSSA,)
    assert (await scene.roster()).offer is None
    assert "Awa Diop (@awa:clinic.test)" in done
    assert "Moussa Ba (@moussa:clinic.test)" in done
    assert "417 A.D." in done
    assert "902" not in done
    alarms = [line for line in done.splitlines() if "417" in line]
    assert len(alarms) == 1
    assert "ALARME HAUTE" in alarms[0]
    assert "<\N{NO-BREAK SPACE}90" in alarms[0]
    assert "120" in done  # one of the limits in force
    assert "38,5" in done
    entry = (await scene.audit())[-1]
    assert (entry.action, entry.actor) == ("handover.accept", MOUSSA)
    assert entry.detail == {"giver": AWA, "taker": MOUSSA}
    facts = scene.records.facts
    told = [
        await facts.open(one) for one in await facts.sealed_after(0, up_to_reading=2**62, limit=9)
    ]
    assert [one for one in told if isinstance(one, HandedOver)] == [HandedOver(NOON, MOUSSA)]


async def test_an_offer_is_declined_taken_back_or_lapses_and_duty_stays(scene: Scene) -> None:
    await scene.types(AWA, "!garde prendre")
    for sender, line in ((MOUSSA, "!relève refuser"), (AWA, "!relève annuler")):
        await scene.types(AWA, "!relève @moussa")
        assert (await scene.roster()).offer is not None
        await scene.types(sender, line)
        assert (await scene.roster()).offer is None
    await scene.types(AWA, "!relève @moussa")
    await scene.time_passes(OFFER_VALID - timedelta(seconds=1))
    assert (await scene.roster()).offer is not None
    told = len(await scene.answers())
    await scene.time_passes(timedelta(seconds=1))
    await scene.time_passes(timedelta(seconds=1))
    [lapsed] = (await scene.answers())[told:]
    assert "Awa Diop" in lapsed
    [late] = await scene.types(MOUSSA, "!relève accepter")
    assert late
    assert (await scene.roster()).accounts == (AWA,)


@pytest.mark.parametrize(
    ("named", "code"),
    [
        ("@ibou", "not_of_ward"),
        ("@admin", "not_of_ward"),
        ("@nobody", "nobody"),
        ("@moussa:evil.test", "nobody"),
    ],
)
async def test_duty_is_offered_to_doctors_and_nurses_of_the_ward_only(
    scene: Scene, named: str, code: str
) -> None:
    await scene.types(AWA, "!garde prendre")
    assert await scene.types(AWA, f"!relève {named}")
    assert (await scene.roster()).offer is None
    assert (await scene.audit())[-1].detail == {"reason": code}


async def test_duty_is_not_offered_to_who_has_left(scene: Scene) -> None:
    await leaves(scene, MOUSSA)
    await scene.types(AWA, "!garde prendre")
    await scene.types(AWA, "!relève @moussa")
    assert (await scene.roster()).offer is None


async def test_a_bare_name_of_two_accounts_names_nobody(scene: Scene) -> None:
    await employ(scene, "@moussa:partner.test", "Moussa Ly")
    await scene.types(AWA, "!garde prendre")
    [answer] = await scene.types(AWA, "!relève @moussa")
    assert MOUSSA in answer
    assert "@moussa:partner.test" in answer
    assert (await scene.roster()).offer is None
    await scene.types(AWA, "!relève @moussa:partner.test")
    offer = (await scene.roster()).offer
    assert offer is not None
    assert offer.taker == "@moussa:partner.test"


async def employ(scene: Scene, account: str, name: str) -> None:
    person = Staff(account, name, Role.NURSE, MEDICINE, Language.FRENCH, NOON)
    async with scene.records.store.transaction() as connection:
        await scene.records.people.put(connection, person)


@pytest.mark.parametrize(
    "named",
    [
        "Moussa Ba",
        "moussa  ba:",
        "« Moussa Ba »",
        "Moussa",
        MOUSSA,
        "@moussa",
        f"Moussa ({MOUSSA})",
    ],
)
async def test_who_was_picked_from_the_list_is_meant_if_the_name_is_his(
    scene: Scene, named: str
) -> None:
    await scene.types(AWA, "!garde prendre")
    [answer] = await scene.types(AWA, f"!relève {named}", mentions=[MOUSSA])
    offer = (await scene.roster()).offer
    assert offer is not None
    assert offer.taker == MOUSSA
    assert "Moussa Ba (@moussa:clinic.test)" in answer


@pytest.mark.parametrize(
    "named",
    [
        "Мoussa Ba",  # noqa: RUF001 - the first letter is Cyrillic
        "\N{RIGHT-TO-LEFT OVERRIDE}aB assuoM",
        "موسى",
        "Moussa B",
        "Docteur",
        "",
        "@fatou",
        "(@fatou:clinic.test)",
    ],
)
async def test_who_was_picked_under_a_name_that_is_not_his_is_not_meant(
    scene: Scene, named: str
) -> None:
    await scene.types(AWA, "!garde prendre")
    [answer] = await scene.types(AWA, f"!relève {named}", mentions=[MOUSSA])
    assert (await scene.roster()).offer is None
    assert "!relève" in answer
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in answer


async def test_a_name_of_two_colleagues_names_nobody_whoever_was_picked(scene: Scene) -> None:
    await employ(scene, "@moussa2:clinic.test", "Moussa Ba")
    await scene.types(AWA, "!garde prendre")
    [answer] = await scene.types(AWA, "!relève Moussa Ba", mentions=["@moussa2:clinic.test"])
    assert (await scene.roster()).offer is None
    assert MOUSSA in answer
    assert "@moussa2:clinic.test" in answer


async def test_a_reply_whose_relation_was_taken_away_offers_duty_to_nobody_else(
    scene: Scene,
) -> None:
    await scene.types(AWA, "!garde prendre")
    # In a reply the client mentions who wrote what is replied to; that it is one stands in clear.
    reply = {"m.relates_to": {"m.in_reply_to": {"event_id": "$said-by-moussa"}}}
    for content in (reply, {}):
        await scene.types(AWA, "!relève Fatou", mentions=[MOUSSA], content=content)
        assert (await scene.roster()).offer is None
    assert [one.detail.get("reason") for one in await scene.audit()] == [None, "another_name"]


@pytest.mark.parametrize("shown", ["Мoussa", "Moussa Ba", "موسى", "@mоussa"])  # noqa: RUF001
async def test_a_name_that_was_not_picked_names_nobody(scene: Scene, shown: str) -> None:
    await scene.types(AWA, "!garde prendre")
    assert await scene.types(AWA, f"!relève {shown}")
    assert (await scene.roster()).offer is None


# --- drills --------------------------------------------------------------------------------------


async def start_drill(scene: Scene) -> str:
    """A drill is started and its message is in the room; the event it became."""
    await scene.types(AWA, "!test")
    rung = (await scene.said(ROOM, SentBy.ALERTS))[-1]
    event_id = f"$drill-{rung.delivery_id}"
    await scene.records.outbox.delivered(rung.delivery_id, event_id)
    return event_id


async def answered(scene: Scene) -> set[str]:
    drill = (await scene.roster()).drill
    return set(drill.answered) if drill is not None else set()


async def test_a_drill_rings_those_on_duty_is_answered_both_ways_and_ends_once(
    scene: Scene,
) -> None:
    for person in (AWA, MOUSSA):
        await scene.types(person, "!garde prendre")
    await scene.types(AWA, "!test")
    [rung] = await scene.said(ROOM, SentBy.ALERTS)
    assert rung.content["msgtype"] == "m.text"
    assert "!présent" in rung.content["body"]
    await scene.records.outbox.delivered(rung.delivery_id, "$drill")
    drill = (await scene.roster()).drill
    assert drill is not None
    assert set(drill.called) == {AWA, MOUSSA}

    await scene.reacts(AWA, "$drill")
    await scene.reacts(AWA, "$drill")
    await scene.time_passes(timedelta(seconds=1))
    assert await answered(scene) == {AWA}
    await scene.types(MOUSSA, "!présent")
    told = len(await scene.answers())
    for _ in range(2):
        await scene.time_passes(timedelta(seconds=1))
    [result] = (await scene.answers())[told:]
    assert "2" in result
    assert AWA not in result
    assert (await scene.roster()).drill is None

    entries = {one.action: one for one in await scene.audit()}
    assert entries["drill.start"].detail["called"] == f"{AWA} {MOUSSA}"
    assert entries["drill.end"].detail["answered"] == f"{AWA} {MOUSSA}"
    assert entries["drill.end"].detail["silent"] == ""
    by_reaction = [one for one in await scene.audit() if one.detail.get("by") == "reaction"]
    assert [one.actor for one in by_reaction] == [AWA]


async def test_a_drill_ended_by_time_names_who_was_silent(scene: Scene) -> None:
    for person in (AWA, MOUSSA):
        await scene.types(person, "!garde prendre")
    rung = await start_drill(scene)
    await scene.reacts(MOUSSA, rung)
    await scene.time_passes(DRILL_LASTS - timedelta(seconds=1))
    assert (await scene.roster()).drill is not None
    told = len(await scene.answers())
    scene.restart()
    for _ in range(3):
        await scene.time_passes(timedelta(seconds=1))
    [result] = (await scene.answers())[told:]
    assert "Awa Diop (@awa:clinic.test)" in result
    assert MOUSSA not in result
    assert (await scene.audit())[-1].detail["silent"] == AWA
    [late] = await scene.types(AWA, "!présent")
    assert late


async def test_with_nobody_on_duty_a_drill_rings_the_whole_team(scene: Scene) -> None:
    await start_drill(scene)
    drill = (await scene.roster()).drill
    assert drill is not None
    assert set(drill.called) == {AWA, MOUSSA, FATOU}


async def test_a_drill_counts_the_phones_that_can_ring_and_names_who_cannot_be_rung(
    scene: Scene,
) -> None:
    await scene.records.warnings.set(About.NO_RING, MOUSSA, ["no_pusher"], now=NOON)
    [started] = await scene.types(AWA, "!test")
    first, *cannot = started.replace("\N{NO-BREAK SPACE}", " ").splitlines()
    assert "2 téléphones sonnent" in first
    assert cannot == ["Ne peut pas sonner : Moussa Ba (@moussa:clinic.test)"]
    drill = (await scene.roster()).drill
    assert drill is not None
    assert MOUSSA in drill.called  # his silence is noted all the same


async def test_a_reaction_of_another_to_another_elsewhere_or_too_late_does_nothing(
    scene: Scene,
) -> None:
    await scene.types(AWA, "!garde prendre")
    old = await start_drill(scene)
    await scene.time_passes(DRILL_LASTS)
    rung = await start_drill(scene)
    assert old != rung
    before, acts = await scene.roster(), await scene.acts()
    await scene.reacts(AWA, old)
    await scene.reacts(AWA, "$another")
    await scene.reacts(AWA, rung, room_id=OTHER_ROOM)
    await scene.reacts(AWA, rung, room_id="!private:clinic.test")
    for sender in (MOUSSA, IBOU, ADMIN, "@x:evil.test", *OURS):
        await scene.reacts(sender, rung)
    assert await scene.roster() == before
    scene.now += DRILL_LASTS
    await scene.reacts(AWA, rung)
    assert await scene.roster() == before
    assert await scene.acts() == acts


async def test_two_who_answer_a_drill_at_once_have_both_answered(scene: Scene) -> None:
    for person in (AWA, MOUSSA):
        await scene.types(person, "!garde prendre")
    rung = await start_drill(scene)
    event_of = scene.records.outbox.event_of

    async def event_of_and_meanwhile(delivery_id: str) -> str | None:
        scene.records.outbox.event_of = event_of  # type: ignore[method-assign]
        await scene.types(MOUSSA, "!présent")
        return await event_of(delivery_id)

    scene.records.outbox.event_of = event_of_and_meanwhile  # type: ignore[method-assign]
    await scene.reacts(AWA, rung)
    assert await answered(scene) == {AWA, MOUSSA}


async def test_a_reaction_can_do_nothing_but_answer_a_drill(scene: Scene) -> None:
    await scene.types(AWA, "!garde prendre")
    offer = scene.message(AWA, "!relève @moussa")
    await scene.client.deliver(ROOM, offer)
    said = await scene.said()
    await scene.records.outbox.delivered(said[-1].delivery_id, "$offer")
    before, acts = await scene.roster(), await scene.acts()
    for event_id in ("$offer", offer.event_id):
        await scene.reacts(MOUSSA, event_id)
    assert await scene.roster() == before
    assert await scene.acts() == acts


async def test_a_drill_message_that_is_not_in_the_room_yet_cannot_be_reacted_to(
    scene: Scene,
) -> None:
    await scene.types(AWA, "!test")
    await scene.reacts(AWA, "$anything")
    assert await answered(scene) == set()


# --- identities ----------------------------------------------------------------------------------


async def test_a_changed_identity_is_accepted_by_two_colleagues_with_its_code(
    scene: Scene,
) -> None:
    await scene.records.pins.meet({AWA: PINNED}, now=NOON)
    await scene.records.pins.meet({AWA: SHOWN}, now=NOON)
    line = f"!identité accepter @awa {identity_code(SHOWN)}"
    for person in (AWA, IBOU, MOUSSA, MOUSSA):  # herself, another ward, one colleague, him again
        assert len(await scene.types(person, line)) == 1
        assert await scene.records.pins.known([AWA]) == {AWA: PINNED}
    [answer] = await scene.types(FATOU, line.replace(identity_code(SHOWN), identity_code(PINNED)))
    assert answer
    assert await scene.records.pins.known([AWA]) == {AWA: PINNED}

    [again] = await scene.types(MOUSSA, line)
    assert "Vous avez déjà accepté" in again
    [accepted] = await scene.types(FATOU, line.lower())
    assert "Awa Diop (@awa:clinic.test)" in accepted
    assert await scene.records.pins.known([AWA]) == {AWA: SHOWN}
    [none_waits] = await scene.types(FATOU, line)
    assert AWA in none_waits

    reasons = [one.detail["reason"] for one in await scene.audit() if "reason" in one.detail]
    assert reasons == ["own_identity", "not_of_ward", "wrong_code", "no_change"]
    taken = [one for one in await scene.audit() if one.action == "identity.accept"]
    assert [(one.actor, one.detail["accepted"]) for one in taken] == [
        (MOUSSA, "False"),
        (MOUSSA, "False"),
        (MOUSSA, "False"),
        (FATOU, "True"),
    ]


async def test_an_acceptance_that_lapsed_is_given_again(scene: Scene) -> None:
    for master in (PINNED, SHOWN):
        await scene.records.pins.meet({AWA: master}, now=NOON)
    line = f"!identité accepter @awa {identity_code(SHOWN)}"
    await scene.types(MOUSSA, line)
    scene.now += APPROVAL_VALID
    [again] = await scene.types(MOUSSA, line)
    assert "déjà" not in again
    await scene.types(FATOU, line)
    assert await scene.records.pins.known([AWA]) == {AWA: SHOWN}


async def test_an_identity_swapped_in_meanwhile_is_not_accepted_by_the_old_code(
    scene: Scene,
) -> None:
    for master in (PINNED, SHOWN):
        await scene.records.pins.meet({AWA: master}, now=NOON)
    line = f"!identité accepter @awa {identity_code(SHOWN)}"
    await scene.types(MOUSSA, line)
    await scene.records.pins.meet({AWA: SWAPPED}, now=NOON)
    await scene.types(FATOU, line)
    assert await scene.records.pins.known([AWA]) == {AWA: PINNED}
    await scene.types(FATOU, f"!identité accepter @awa {identity_code(SWAPPED)}")
    assert await scene.records.pins.known([AWA]) == {AWA: PINNED}


# --- any shape -----------------------------------------------------------------------------------

LINES = st.sampled_from(["!garde prendre", "!test", "!relève @moussa", "!relève", "!identité x"])
TEXTS = LINES | st.text(max_size=20) | st.sampled_from(["m.replace", AWA, "\ud800", "\x00"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
RELATES = JSON | st.fixed_dictionaries(
    {}, optional={"rel_type": TEXTS | JSON, "event_id": JSON, "m.in_reply_to": JSON}
)
CONTENTS = JSON | st.fixed_dictionaries(
    {"body": LINES | JSON},
    optional={
        "m.relates_to": RELATES,
        "m.new_content": JSON | st.fixed_dictionaries({"body": TEXTS, "m.mentions": JSON}),
        "m.mentions": JSON | st.fixed_dictionaries({"user_ids": JSON | st.lists(TEXTS)}),
    },
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    content=CONTENTS,
    sender=st.sampled_from([AWA, MOUSSA, "@x:evil.test"]) | TEXTS,
    event_id=TEXTS,
    moment=st.integers(min_value=0) | st.just(to_ms(NOON)),
    envelope=st.none() | TEXTS,
)
async def test_no_content_of_any_shape_raises_out_of_the_callback(
    scene: Scene, *, content: Any, sender: str, event_id: str, moment: int, envelope: str | None
) -> None:
    event = scene.message(AWA, "")
    event.source = {**event.source, "content": content}
    event.sender, event.event_id, event.server_timestamp = sender, event_id, moment
    event.decrypted = envelope is not None
    event.envelope = envelope
    await scene.client.deliver(ROOM, event)


# --- where alarms go -----------------------------------------------------------------------------


def called(alarm: Delivery) -> list[str]:
    return list(alarm.content["m.mentions"]["user_ids"])


async def test_a_patient_without_account_alarms_the_wards_room_and_who_is_on_duty(
    scene: Scene,
) -> None:
    await scene.types(MOUSSA, "!garde prendre")
    patient, _ = await consultation(scene, MOUSSA, ward=MEDICINE)
    alarm = await falls(scene, patient)
    assert (alarm.room_id, called(alarm)) == (ROOM, [MOUSSA])


async def test_a_patient_without_consultation_alarms_the_wards_room(scene: Scene) -> None:
    await scene.types(MOUSSA, "!garde prendre")
    patient = await scene.records.patients.add(
        number="1", initials="A.D.", bed="1", account="@p:clinic.test", ward=MEDICINE
    )
    alarm = await falls(scene, patient)
    assert (alarm.room_id, called(alarm)) == (ROOM, [MOUSSA])


async def test_a_patient_with_account_alarms_the_consultation_and_who_is_on_duty_in_it(
    scene: Scene,
) -> None:
    for person in (MOUSSA, AWA):
        await scene.types(person, "!garde prendre")
    patient, opened = await consultation(
        scene, AWA, FATOU, IBOU, account="@p:clinic.test", ward=MEDICINE
    )
    alarm = await falls(scene, patient)
    assert (alarm.room_id, called(alarm)) == (opened.room_id, [AWA])


async def test_when_nobody_treating_is_on_duty_the_wards_room_is_alarmed(scene: Scene) -> None:
    await scene.types(MOUSSA, "!garde prendre")
    patient, _ = await consultation(scene, AWA, account="@p:clinic.test", ward=MEDICINE)
    alarm = await falls(scene, patient)
    assert (alarm.room_id, called(alarm)) == (ROOM, [MOUSSA])


@pytest.mark.parametrize("account", [None, "@p:clinic.test"])
async def test_when_nobody_at_all_is_on_duty_everybody_is_called(
    scene: Scene, account: str | None
) -> None:
    patient, _ = await consultation(scene, AWA, account=account, ward=MEDICINE)
    alarm = await falls(scene, patient)
    assert (alarm.room_id, called(alarm)) == (ROOM, [AWA, FATOU, MOUSSA])


async def test_who_is_on_duty_but_has_left_is_not_called(scene: Scene) -> None:
    for person in (MOUSSA, AWA):
        await scene.types(person, "!garde prendre")
    await leaves(scene, MOUSSA)
    patient, _ = await consultation(scene, MOUSSA, account="@p:clinic.test", ward=MEDICINE)
    alarm = await falls(scene, patient)
    assert (alarm.room_id, called(alarm)) == (ROOM, [AWA])


async def test_a_patient_of_no_ward_alarms_the_consultation_as_before(scene: Scene) -> None:
    partner = "@expert:partner.test"
    patient, opened = await consultation(scene, partner, account="@p:clinic.test")
    alarm = await falls(scene, patient)
    assert (alarm.room_id, called(alarm)) == (opened.room_id, [partner])


async def test_a_ward_without_room_alarms_the_consultation_as_before(scene: Scene) -> None:
    ward = WardId("maternite")
    await scene.records.wards.add(Ward(ward, None, Language.FRENCH, "UTC", Roster()))
    patient, opened = await consultation(scene, AWA, IBOU, ward=ward)
    alarm = await falls(scene, patient)
    assert (alarm.room_id, called(alarm)) == (opened.room_id, [AWA, IBOU])
