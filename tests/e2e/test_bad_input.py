"""What is not a reading, or not from whom it says, stays out; everything else goes on."""

from __future__ import annotations

import json
import secrets
from collections import Counter
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import pytest

from fajma.events import ALARM, CONSULTATION, ENCRYPTED, MESSAGE, VITALS, VITALS_BATCH
from fajma.vitals import DeviceId, Kind
from fajma.wire import V1_TOPIC, encode_v1
from tests.e2e.ward import WELL, Monitor, Sent, Ward, values

SECRET = 987654321987
"""In every bad message, so that it can be searched for; no time and no id looks like it."""


def message(device: str, at_ms: int, **fields: Any) -> bytes:
    good = {"heart_rate": 72, "spo2": 97, "temperature": 36.8}
    return json.dumps({"device_id": device, "timestamp": at_ms} | good | fields).encode()


def bad_messages(device: str, at_ms: int) -> list[tuple[str, bytes]]:
    """Messages without anything usable, and the reason that each is counted under."""
    plain = message(device, at_ms, heart_rate=SECRET)
    hidden = {"heart_rate": SECRET, "spo2": SECRET, "temperature": SECRET}
    # As printf writes what a probe that is off measures.
    not_numbers = json.dumps(
        {"device_id": device, "timestamp": at_ms} | dict.fromkeys(hidden, float("nan"))
    ).encode()
    return [
        ("not_json", b"heart rate " + str(SECRET).encode()),
        ("not_json", b""),
        ("not_json", plain[:-1]),
        ("not_object", f"[{SECRET}]".encode()),
        ("not_utf8", plain + b"\xff"),
        ("too_large", plain + b" " * (5000 - len(plain))),
        ("duplicate_key", plain[:-1] + b', "spo2": 86}'),
        ("too_deep", b"[" * 20 + str(SECRET).encode() + b"]" * 20),
        ("wrong_device", message("A4CF12F0AAAA", at_ms, heart_rate=SECRET)),
        ("bad_timestamp", message(device, at_ms, heart_rate=SECRET, timestamp="now")),
        ("bad_timestamp", message(device, at_ms, heart_rate=SECRET, timestamp=-1)),
        ("no_usable_value", message(device, at_ms, **hidden)),
        ("no_usable_value", not_numbers),
        ("no_usable_value", message(device, at_ms, **dict.fromkeys(hidden))),
    ]


async def test_bad_messages_are_counted_and_explained_and_good_ones_between_them_arrive(
    ward: Ward,
) -> None:
    bedside = await ward.admit()
    before = Counter(await ward.counts_by_command())
    mark = ward.log_mark()
    stranger = DeviceId(secrets.token_hex(6).upper())
    async with ward.monitor(bedside) as monitor, Monitor(ward.clinic, stranger) as unlinked:
        expected = Counter[str]()
        for reason, payload in bad_messages(bedside.device, monitor.now_ms()):
            await monitor.send(WELL)
            assert not (await monitor.publish(payload)).is_failure
            expected[reason] += 1
        await unlinked.send(values("72", "97"))
        expected["unknown_device"] += 1
        await monitor.send(WELL)
        await ward.all_published(bedside.room_id, monitor.sent)

    counted = Counter(await ward.counts_by_command()) - before
    assert counted.pop("stored") == len(monitor.sent)
    assert counted == expected
    lines = [one for one in ward.log_since(mark) if one["event"] == "reading_refused"]
    assert Counter(one["reason"] for one in lines) == expected
    assert str(SECRET) not in json.dumps(ward.log_since(mark))
    assert str(SECRET) not in ward.clinic.fajma_log.read_text()
    assert ward.alarms(bedside.room_id) == []


async def test_one_bad_value_does_not_hide_the_good_ones_beside_it(ward: Ward) -> None:
    bedside = await ward.admit()
    before = Counter(await ward.counts())
    mark = ward.log_mark()
    sent: list[Sent] = []
    kept = {Kind.SPO2: Decimal(97), Kind.TEMPERATURE: Decimal("36.8")}
    async with ward.monitor(bedside) as monitor:
        for payload in (
            message(bedside.device, at := monitor.now_ms(), heart_rate=SECRET),
            message(bedside.device, at + 1, heart_rate=None),
            message(bedside.device, at + 2, heart_rate=float("nan")),
            message(bedside.device, at + 3, heart_rate="72"),
            message(bedside.device, at + 4, heart_rate=-5),
        ):
            assert not (await monitor.publish(payload)).is_failure
            sent.append(Sent(at + len(sent), kept))
        await ward.all_published(bedside.room_id, sent)

    expected = {
        "heart_rate_implausible_high": 1,
        "heart_rate_implausible_low": 1,
        "heart_rate_missing": 1,
        "heart_rate_not_a_number": 2,
    }
    counted = Counter(await ward.counts()) - before
    assert counted == {"stored": 5} | expected
    lines = [one for one in ward.log_since(mark) if one["event"] == "value_refused"]
    assert Counter(f"{one['kind']}_{one['reason']}" for one in lines) == expected
    assert {one["device"] for one in lines} == {bedside.device}
    assert str(SECRET) not in json.dumps(ward.log_since(mark))


async def test_a_reading_that_was_sent_twice_counts_once(ward: Ward) -> None:
    bedside = await ward.admit()
    before = await ward.counts()
    async with ward.monitor(bedside) as monitor:
        await monitor.send(WELL)
        again = encode_v1(bedside.device, monitor.sent[0].at_ms, WELL)
        for _ in range(3):
            await monitor.publish(again)
        await monitor.send(WELL)
        await ward.all_published(bedside.room_id, monitor.sent)
    assert (await ward.counts())["stored"] - before["stored"] == 2


async def test_a_monitor_cannot_write_another_ones_topic(ward: Ward) -> None:
    victim = await ward.admit()
    other = await ward.admit()
    before = Counter(await ward.counts())
    async with ward.monitor(victim) as own, ward.monitor(other) as forger:
        forged = encode_v1(victim.device, forger.now_ms(), values("20", "50"))
        answer = await forger.publish(forged, V1_TOPIC.format(device=victim.device))
        assert answer.getName() == "Not authorized"
        # Under its own topic it cannot speak for the other either.
        await forger.publish(forged)
        await forger.send(WELL)
        await own.send(WELL)
        await ward.all_published(victim.room_id, own.sent)
        await ward.all_published(other.room_id, forger.sent)
    assert Counter(await ward.counts()) - before == {"stored": 2, "wrong_device": 1}


FORBIDDEN = (
    (VITALS, "{patient}"),
    (ENCRYPTED, VITALS + ":{patient}"),
    (ENCRYPTED, ""),
    (CONSULTATION, ""),
    ("m.room.power_levels", ""),
    ("m.room.encryption", ""),
    ("m.room.history_visibility", ""),
    ("m.room.join_rules", ""),
    ("io.element.functional_members", ""),
)


@pytest.mark.parametrize("role", ["clinician", "patient"])
async def test_nobody_but_our_bots_can_set_vitals_or_the_rules_of_the_room(
    ward: Ward, role: str
) -> None:
    localpart, mxid, password = await ward.account("forger")
    bedside = await (ward.admit(mxid) if role == "clinician" else ward.admit())
    if role == "patient":
        await ward.invite(bedside.room_id, mxid)
    token = await ward.clinic.synapse.login(localpart, password)
    status, answer = await ward.matrix("POST", f"join/{quote(bedside.room_id)}", {}, token=token)
    assert status == 200, answer
    room = f"rooms/{quote(bedside.room_id)}"
    for event_type, state_key in FORBIDDEN:
        key = quote(state_key.format(patient=bedside.patient))
        path = f"{room}/state/{event_type}/{key}"
        status, answer = await ward.matrix("PUT", path, {"version": 1}, token=token)
        assert (status, answer["errcode"]) == (403, "M_FORBIDDEN"), event_type
    for action in ("invite", "ban"):
        guest = {"user_id": ward.clinic.mxid("veille")}
        status, answer = await ward.matrix("POST", f"{room}/{action}", guest, token=token)
        assert (status, answer["errcode"]) == (403, "M_FORBIDDEN"), action


async def test_a_clinician_who_writes_like_a_bot_is_not_believed(ward: Ward) -> None:
    localpart, mxid, password = await ward.account("dr.forger")
    async with ward.client_of(localpart, password) as forger:
        bedside = await ward.admit(mxid)
        async with ward.monitor(bedside) as monitor:
            await monitor.send(WELL, *[values("104", "86")] * 4)
            real = await ward.alarm(bedside.room_id, "started")
            await ward.all_published(bedside.room_id, monitor.sent)
        await forger.wait_for(lambda one: one.event_id == real.event_id, 20)
        block = real.content.to_content() | {"alarm_id": "forged"}  # type: ignore[union-attr]
        refused = ward.observer.refused.wrong_sender
        for kind, content in (
            (MESSAGE, {"msgtype": "m.text", "body": real.body, ALARM: block}),
            (VITALS, {"version": 1, "patient": bedside.patient, "as_of": 1, "latest": {}}),
            (VITALS_BATCH, {"version": 1, "patient": bedside.patient, "series": {}}),
            (MESSAGE, {"msgtype": "m.text", "body": "after all of it"}),
        ):
            await forger.client.room_send(bedside.room_id, kind, content)
        await ward.observer.wait_for(
            lambda one: one.room_id == bedside.room_id and one.body == "after all of it", 20
        )

    assert ward.observer.refused.wrong_sender == refused + 3
    assert ward.alarms(bedside.room_id) == [real]
    assert {one.sender for one in ward.events(bedside.room_id) if one.content is not None} == {
        ward.clinic.mxid("fajma-vitals"),
        ward.clinic.mxid("fajma-alerts"),
    }
