"""Commands about a patient: who may, about whom, what the alarm engine is told, what is shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from structlog.testing import capture_logs

from bots.alerts.alarm_state import PatientState
from bots.alerts.engine import AlarmEngine
from bots.alerts.own_limits import KEPT_AT_MOST
from fajma.charts import ChartOrder
from fajma.config import Alarms
from fajma.facts import (
    Acknowledged,
    AgeBand,
    Consciousness,
    Entered,
    Fact,
    LimitSet,
    Snoozed,
)
from fajma.store.alarms import Delivery, SentBy
from fajma.store.audit import Entry
from fajma.store.consultations import Consultation
from fajma.store.patients import Patient
from fajma.store.readings import NewReading
from fajma.vitals import Clock, DeviceId, Kind, Reading
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
    ROOM,
    SURGERY,
    PulledPlugError,
    Scene,
    consultation,
    falls,
)

PATIENT = "@aminata:clinic.test"
CHECK = "✅"


async def ill(scene: Scene, *, account: str | None = None) -> tuple[Patient, Consultation]:
    """A patient of the ward, in bed 1, whose SpO2 has fallen; the alarm is ``$alarm``."""
    patient, opened = await consultation(scene, AWA, account=account, ward=MEDICINE)
    await falls(scene, patient)
    scene.now = NOON + timedelta(seconds=30)
    return patient, opened


async def facts(scene: Scene, patient: Patient) -> list[Fact]:
    """What people told the engine, oldest first."""
    newest = await scene.records.facts.newest(patient.key, limit=100)
    told = [await scene.records.facts.open(one) for one in reversed(newest)]
    asked = (Acknowledged, Snoozed, LimitSet, Entered)
    return [one for one in told if isinstance(one, asked)]


async def judged(scene: Scene, patient: Patient) -> PatientState:
    """The patient's state once the engine has taken everything in."""
    engine = AlarmEngine(Alarms(), scene.records, now=lambda: scene.now)
    while await engine.advance():
        pass
    text = await scene.records.alarm_states.get(patient.key)
    return PatientState.from_json(text) if text else PatientState()


async def measures(scene: Scene, patient: Patient, values: Mapping[Kind, str]) -> None:
    """One more live reading, now."""
    exact = {kind: Decimal(value) for kind, value in values.items()}
    reading = Reading(DeviceId("A4CF12F03B7E"), scene.now, scene.now, Clock.DEVICE, exact)
    record = f"{scene.now:%d%H%M%S%f}".encode()[:16].ljust(16)
    async with scene.records.store.transaction() as connection:
        await scene.records.readings.append(
            connection, [NewReading(record, patient.key, reading)]
        )  # fmt: skip


async def charts(scene: Scene, room_id: str = ROOM) -> list[Delivery]:
    return await scene.said(room_id, SentBy.CHARTS)


async def last_act(scene: Scene) -> Entry:
    return (await scene.audit())[-1]


async def refused(scene: Scene, sender: str, line: str, code: str, room_id: str = ROOM) -> str:
    """The one answer to a command that changes nothing and is in the audit as refused."""
    with capture_logs() as logs:
        [answer] = await scene.types(sender, line, room_id=room_id)
    assert [one["reason"] for one in logs if one["event"] == "order_refused"] == [code]
    entry = await last_act(scene)
    assert (entry.action, entry.actor, entry.detail) == ("order.refused", sender, {"reason": code})
    return answer


# --- acknowledging -------------------------------------------------------------------------------


async def test_a_nurse_acknowledges_in_the_wards_room_and_nobody_is_reminded(scene: Scene) -> None:
    patient, opened = await ill(scene)
    [answer] = await scene.types(MOUSSA, "!vu lit 1")
    assert "✓ Vu par Moussa Ba (@moussa:clinic.test), qui s'en occupe · 12:00 UTC+0" in answer
    assert "ALARME HAUTE" in answer
    assert "Lit 1 A.D." in answer
    [fact] = await facts(scene, patient)
    assert fact == Acknowledged(scene.now, MOUSSA, "spo2-low-3")
    state = await judged(scene, patient)
    assert [one.acknowledged for one in state.care.values()] == [True]
    entry = await last_act(scene)
    assert (entry.action, entry.actor, entry.subject) == (
        "alarm.acknowledge", MOUSSA, patient.key,
    )  # fmt: skip
    assert entry.detail == {"alarms": "spo2-low-3", "by": "command"}
    [elsewhere] = await scene.answers(str(opened.room_id))
    assert elsewhere == answer


async def test_an_answer_is_sealed_with_the_patients_key_and_rings_nobody(scene: Scene) -> None:
    patient, opened = await ill(scene)
    await scene.types(MOUSSA, "!vu lit 1")
    for room_id in (ROOM, str(opened.room_id)):
        [said] = await scene.said(room_id)
        assert said.patient == patient.key
        assert (said.sender, said.content["msgtype"]) == (SentBy.HOST, "m.notice")


async def test_in_the_consultation_no_bed_is_needed_and_another_bed_is_refused(
    scene: Scene,
) -> None:
    patient, opened = await ill(scene)
    said = await refused(scene, AWA, "!vu lit 2", "other_bed", str(opened.room_id))
    assert "Lit 1 A.D." in said
    assert await facts(scene, patient) == []
    await scene.types(AWA, "!vu", room_id=str(opened.room_id))
    assert len(await facts(scene, patient)) == 1


async def test_what_is_acknowledged_or_not_open_is_told_and_changes_nothing(scene: Scene) -> None:
    patient, _ = await ill(scene)
    [other] = await scene.types(AWA, "!vu fc lit 1")
    assert "Aucune alarme de ce genre n'est ouverte" in other
    [sensor] = await scene.types(AWA, "!vu capteur lit 1")
    assert "Aucune alarme de ce genre n'est ouverte" in sensor
    await scene.types(AWA, "!vu spo2 lit 1")
    await judged(scene, patient)
    [again] = await scene.types(MOUSSA, "!vu lit 1")
    assert "Quelqu'un s'en occupe déjà" in again
    assert len(await facts(scene, patient)) == 1


async def test_a_missing_or_unknown_bed_gets_the_list_of_beds(scene: Scene) -> None:
    patient, _ = await ill(scene)
    await consultation(scene, AWA, number="2", ward=MEDICINE)
    await consultation(scene, IBOU, number="3", ward=SURGERY)
    for line, code in (("!vu", "bed_missing"), ("!pause spo2 10m lit 9", "bed_unknown")):
        said = await refused(scene, AWA, line, code)
        assert "Lit 1 A.D. · Lit 2 A.D." in said
        assert "Lit 3" not in said
    assert await facts(scene, patient) == []


async def test_a_bed_with_two_patients_means_neither(scene: Scene) -> None:
    patient, _ = await ill(scene)
    other, _ = await consultation(scene, AWA, number="2", ward=MEDICINE)
    async with scene.records.store.transaction() as connection:
        await scene.records.patients.change(connection, replace(other, bed="1"))
    await refused(scene, AWA, "!vu lit 1", "bed_ambiguous")
    assert await facts(scene, patient) == []


@pytest.mark.parametrize(("bed", "typed"), [("Réa 2", "rea2"), ("4 B", "4b"), ("12", "12.")])
async def test_a_bed_is_found_whatever_its_spelling(scene: Scene, bed: str, typed: str) -> None:
    patient, _ = await ill(scene)
    async with scene.records.store.transaction() as connection:
        await scene.records.patients.change(connection, replace(patient, bed=bed))
    await scene.types(AWA, f"!vu lit {typed}")
    assert len(await facts(scene, patient)) == 1


@pytest.mark.parametrize(
    ("sender", "code"),
    [(IBOU, "not_of_ward"), (ADMIN, "not_of_ward"), ("@x:evil.test", "not_staff")],
)
async def test_in_a_wards_room_only_its_doctors_and_nurses_do_anything(
    scene: Scene, sender: str, code: str
) -> None:
    patient, _ = await ill(scene)
    for line in ("!vu lit 1", "!alarmes", "!seuils lit 1", "!constantes lit 1"):
        await refused(scene, sender, line, code)
    assert await facts(scene, patient) == []
    assert len(await charts(scene)) == 1, "that of the alarm"


@pytest.mark.parametrize(("sender", "code"), [(IBOU, "not_treating"), (ADMIN, "not_treating")])
async def test_in_a_consultation_only_who_treats_does_anything(
    scene: Scene, sender: str, code: str
) -> None:
    patient, opened = await ill(scene)
    for line in ("!vu", "!seuils", "!alarmes", "!constantes", "!mesure fr 18"):
        await refused(scene, sender, line, code, str(opened.room_id))
    assert await facts(scene, patient) == []


async def test_the_patient_does_nothing_but_ask_for_the_own_values(scene: Scene) -> None:
    patient, opened = await ill(scene, account=PATIENT)
    room_id = str(opened.room_id)
    lines = ("!vu", "!pause spo2 10m", "!seuils", "!seuils spo2 < 88 raison", "!mesure fr 18",
             "!alarmes", "!aide")  # fmt: skip
    for line in lines:
        await refused(scene, PATIENT, line, "not_staff", room_id)
    assert await facts(scene, patient) == []
    before = len(await charts(scene, room_id))
    assert await scene.types(PATIENT, "!constantes 2h", room_id=room_id) == []
    chart = (await charts(scene, room_id))[before:]
    assert [ChartOrder.of(one).scored for one in chart] == [False]
    assert (await last_act(scene)).action == "vitals.show"
    _, other = await consultation(scene, AWA, number="2", ward=MEDICINE)
    await refused(scene, PATIENT, "!constantes", "not_staff", str(other.room_id))
    await refused(scene, PATIENT, "!constantes lit 1", "not_staff", ROOM)


# --- reactions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", [CHECK, "✔", "✔\N{VARIATION SELECTOR-16}", "☑\N{VARIATION SELECTOR-16}"]
)
async def test_a_tick_on_an_alarm_acknowledges_it_once(scene: Scene, key: str) -> None:
    patient, opened = await ill(scene)
    event = scene.reaction(MOUSSA, "$alarm", key)
    for _ in range(2):
        await scene.client.deliver(ROOM, event)
    assert await facts(scene, patient) == [Acknowledged(scene.now, MOUSSA, "spo2-low-3")]
    [answer] = await scene.said()
    assert "✓ Vu par Moussa Ba" in answer.content["body"]
    assert answer.content["m.relates_to"] == {"m.in_reply_to": {"event_id": "$alarm"}}
    assert await scene.answers(str(opened.room_id)) == [answer.content["body"]]
    entry = await last_act(scene)
    assert (entry.actor, entry.subject) == (MOUSSA, patient.key)
    assert entry.detail == {"alarms": "spo2-low-3", "by": "reaction"}
    await judged(scene, patient)
    await scene.reacts(AWA, "$alarm", key=CHECK)
    assert len(await facts(scene, patient)) == 1, "somebody takes care already"


@pytest.mark.parametrize(
    ("sender", "event_id", "room_id", "key"),
    [
        (MOUSSA, "$alarm", ROOM, "👍"),
        (MOUSSA, "$alarm", ROOM, "❤️"),
        (MOUSSA, "$another", ROOM, CHECK),
        (MOUSSA, "$alarm", OTHER_ROOM, CHECK),
        (MOUSSA, "", ROOM, CHECK),
        (MOUSSA, "$alarm\0", ROOM, CHECK),
        (IBOU, "$alarm", ROOM, CHECK),
        (ADMIN, "$alarm", ROOM, CHECK),
        (PATIENT, "$alarm", ROOM, CHECK),
        ("@x:evil.test", "$alarm", ROOM, CHECK),
        (OURS[0], "$alarm", ROOM, CHECK),
    ],
)
async def test_any_other_reaction_acknowledges_nothing(
    scene: Scene, sender: str, event_id: str, room_id: str, key: str
) -> None:
    patient, _ = await ill(scene, account=PATIENT)
    await scene.reacts(sender, event_id, room_id=room_id, key=key)
    assert await facts(scene, patient) == []
    assert await scene.audit() == []


async def test_a_tick_on_what_was_lost_or_not_delivered_or_is_no_alarm_does_nothing(
    scene: Scene,
) -> None:
    patient, _ = await ill(scene)
    await scene.types(MOUSSA, "!alarmes")
    said = await scene.said()
    await scene.records.outbox.delivered(said[-1].delivery_id, "$answer")
    for event_id in ("$answer", (await charts(scene))[0].delivery_id):
        await scene.reacts(MOUSSA, event_id, key=CHECK)
    assert await facts(scene, patient) == []


async def test_a_tick_that_fails_half_way_leaves_nothing_and_counts_when_it_comes_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient, _ = await ill(scene)
    add = scene.records.outbox.add

    async def pull(*_: object, **__: object) -> None:
        raise PulledPlugError

    monkeypatch.setattr(scene.records.outbox, "add", pull)
    event = scene.reaction(MOUSSA, "$alarm", CHECK)
    with pytest.raises(Exception, match="trying again"):
        await scene.client.deliver(ROOM, event)
    assert await facts(scene, patient) == []
    assert await scene.audit() == []
    monkeypatch.setattr(scene.records.outbox, "add", add)
    await scene.client.deliver(ROOM, event)
    assert len(await facts(scene, patient)) == 1


# --- pauses --------------------------------------------------------------------------------------


async def test_a_pause_is_about_the_side_in_alarm_until_a_time(scene: Scene) -> None:
    patient, opened = await ill(scene)
    [answer] = await scene.types(MOUSSA, "!pause spo2 5m lit 1")
    assert "Pause de SpO2 basse jusqu'à 12:05 UTC+0, par Moussa Ba" in answer
    until = scene.now + timedelta(minutes=5)
    assert await facts(scene, patient) == [Snoozed(scene.now, MOUSSA, Kind.SPO2, "low", until)]
    assert await scene.answers(str(opened.room_id)) == [answer]
    assert (await last_act(scene)).detail == {"tracks": "spo2-low", "until": until.isoformat()}
    assert (await judged(scene, patient)).snoozes.keys() == {"spo2-low"}


async def test_a_pause_while_nothing_is_wrong_is_about_both_sides_or_the_one_named(
    scene: Scene,
) -> None:
    patient, _ = await ill(scene)
    await scene.types(MOUSSA, "!pause fc 5m lit 1")
    await scene.types(MOUSSA, "!pause temp > 5m lit 1")
    assert [(one.kind, one.direction) for one in await facts(scene, patient)
            if isinstance(one, Snoozed)] == [
        (Kind.HEART_RATE, "low"), (Kind.HEART_RATE, "high"), (Kind.TEMPERATURE, "high"),
    ]  # fmt: skip


async def test_a_pause_that_is_too_long_or_of_nothing_is_refused(scene: Scene) -> None:
    patient, _ = await ill(scene)
    assert "10 minutes" in await refused(scene, AWA, "!pause spo2 11m lit 1", "snooze_too_long")
    await refused(scene, AWA, "!pause spo2 > 5m lit 1", "nothing_to_snooze")
    await refused(scene, AWA, "!pause tad 5m lit 1", "nothing_to_snooze")
    assert await facts(scene, patient) == []


# --- limits --------------------------------------------------------------------------------------


async def test_a_doctor_sets_a_limit_that_everybody_can_look_up(scene: Scene) -> None:
    patient, opened = await ill(scene)
    [answer] = await scene.types(AWA, "!seuils spo2 < 85 BPCO connue lit 1")
    until = scene.now + timedelta(hours=24)
    assert await facts(scene, patient) == [
        LimitSet(scene.now, AWA, Kind.SPO2, "low", Decimal(85), "BPCO connue", until, kept=False)
    ]
    assert "SpO2 <\N{NO-BREAK SPACE}85" in answer
    assert "jusqu'à la relève, au plus tard" in answer
    assert "Awa Diop (@awa:clinic.test)\N{NO-BREAK SPACE}: BPCO connue" in answer
    assert await scene.answers(str(opened.room_id)) == [answer]
    entry = await last_act(scene)
    assert (entry.action, entry.actor, entry.subject) == ("limit.set", AWA, patient.key)
    assert entry.detail["limits"] == "spo2-low 85"
    assert "BPCO" not in json.dumps(entry.detail)
    state = await judged(scene, patient)
    assert [one.threshold for one in state.standing.own_limits] == [Decimal(85)]
    [shown] = await scene.types(MOUSSA, "!seuils lit 1")
    assert "BPCO connue" in shown
    assert "Awa Diop" in shown
    assert "Âge inconnu" in shown


async def test_a_limit_that_is_kept_outlives_the_handover(scene: Scene) -> None:
    patient, _ = await ill(scene)
    [answer] = await scene.types(AWA, "!seuils spo2 88 garder BPCO connue lit 1")
    [fact] = await facts(scene, patient)
    assert isinstance(fact, LimitSet)
    assert (fact.kept, fact.until, fact.direction) == (True, scene.now + KEPT_AT_MOST, "low")
    assert "aussi après une relève" in answer
    await judged(scene, patient)
    await scene.types(AWA, "!garde prendre")
    await scene.types(AWA, "!relève @moussa")
    [done] = await scene.types(MOUSSA, "!relève accepter")
    assert "Lit 1 A.D. · SpO2 <\N{NO-BREAK SPACE}88\N{NO-BREAK SPACE}% · jusqu'à" in done


async def test_a_nurse_sets_no_limit_and_is_told_to_pause(scene: Scene) -> None:
    patient, opened = await ill(scene)
    for line in ("!seuils spo2 < 88 BPCO", "!seuils spo2 normal"):
        said = await refused(scene, MOUSSA, f"{line} lit 1", "not_doctor")
        assert "!pause spo2 10m" in said
    said = await refused(scene, FATOU, "!limits spo2 < 88 COPD", "not_doctor", str(opened.room_id))
    assert "!snooze spo2 10m" in said, "in the language of the person"
    assert await facts(scene, patient) == []


@pytest.mark.parametrize(
    ("line", "code", "shown"),
    [
        ("!seuils spo2 < 9 BPCO lit 1", "limit_out_of_bounds", "80 à 97"),
        ("!seuils spo2 > 88 BPCO lit 1", "limit_out_of_bounds", "80 à 97"),
        ("!seuils fc 100 sportif lit 1", "limit_side", "< ou >"),
        ("!seuils temp > 45 fièvre lit 1", "limit_out_of_bounds", "37,5 à 40,5"),
        ("!seuils spo2 normal lit 1", "no_own_limit", "seuils habituels"),
    ],
)
async def test_a_limit_that_cannot_be_is_refused_with_what_can(
    scene: Scene, line: str, code: str, shown: str
) -> None:
    patient, _ = await ill(scene)
    assert shown in await refused(scene, AWA, line, code)
    assert await facts(scene, patient) == []


async def test_a_limit_goes_back_to_the_usual_one(scene: Scene) -> None:
    patient, _ = await ill(scene)
    await scene.types(AWA, "!seuils fc > 150 fibrillation connue lit 1")
    await judged(scene, patient)
    scene.now += timedelta(minutes=1)
    [answer] = await scene.types(AWA, "!seuils fc normal lit 1")
    assert "retrouve son seuil habituel" in answer
    assert ">\N{NO-BREAK SPACE}120" in answer
    assert (await judged(scene, patient)).standing.own_limits == ()
    [shown] = await scene.types(AWA, "!seuils lit 1")
    assert "fibrillation" not in shown


# --- what is shown and entered -------------------------------------------------------------------


async def test_the_open_alarms_of_a_ward_or_a_patient_are_shown(scene: Scene) -> None:
    patient, opened = await ill(scene)
    await consultation(scene, AWA, number="2", ward=MEDICINE)
    [all_of_them] = await scene.types(FATOU, "!alarms")
    assert all_of_them.splitlines()[0] == "Open alarms: 1"
    assert "Bed 1 A.D." in all_of_them
    await scene.types(FATOU, "!ack bed 1")
    await judged(scene, patient)
    [one] = await scene.types(AWA, "!alarmes", room_id=str(opened.room_id))
    assert one.splitlines()[1].startswith("✓ ALARME HAUTE")
    [none] = await scene.types(AWA, "!alarmes lit 2")
    assert none == "Alarmes ouvertes\N{NO-BREAK SPACE}: 0"


async def test_one_patient_whose_state_does_not_open_hides_no_other(scene: Scene) -> None:
    await ill(scene)
    broken, _ = await consultation(scene, AWA, number="2", ward=MEDICINE)
    await scene.records.store.db.execute(
        "INSERT INTO alarm_state (patient_key, changed_at, sealed) VALUES ($1, 0, $2)",
        broken.key,
        b"x",
    )
    [shown] = await scene.types(AWA, "!alarmes")
    assert "ALARME HAUTE" in shown
    assert "Lit 2 A.D." in shown


async def test_signs_are_entered_and_complete_the_news2_score(scene: Scene) -> None:
    patient, _ = await consultation(scene, AWA, ward=MEDICINE)
    async with scene.records.store.transaction() as connection:
        await scene.records.patients.change(
            connection, replace(patient, age_band=AgeBand.ADULT), now=NOON
        )
    [without] = await scene.types(MOUSSA, "!mesure fr 18 lit 1")
    assert "NEWS2" not in without
    scene.now += timedelta(seconds=5)
    await measures(
        scene,
        patient,
        {Kind.HEART_RATE: "95", Kind.SPO2: "93", Kind.TEMPERATURE: "37.0", Kind.SYSTOLIC: "120"},
    )
    await judged(scene, patient)
    [answer] = await scene.types(MOUSSA, "!mesure fr 22 conscience A o2 oui lit 1")
    assert "respiration 22/min" in answer
    assert "sous oxygène" in answer
    assert "NEWS2 7" in answer, "2 + 2 + 2 + 1, by chart 1"
    said = [one for one in await facts(scene, patient) if isinstance(one, Entered)]
    assert said[-1] == Entered(scene.now, MOUSSA, 22, Consciousness.ALERT, oxygen=True)
    entry = await last_act(scene)
    assert entry.detail == {"signs": "consciousness oxygen respiration"}


async def test_values_are_promised_as_a_table_and_a_chart_that_name_no_value(scene: Scene) -> None:
    patient, _ = await ill(scene)
    before = len(await charts(scene))
    assert await scene.types(AWA, "!constantes 2h lit 1") == []
    [promised] = (await charts(scene))[before:]
    order = ChartOrder.of(promised)
    assert (order.until, order.since) == (scene.now, scene.now - timedelta(hours=2))
    assert (order.table, order.scored, order.asked_by) == (True, True, AWA)
    assert promised.patient == patient.key
    assert "88" not in json.dumps(promised.content)
    entry = await last_act(scene)
    assert (entry.action, entry.subject) == ("vitals.show", patient.key)
    await refused(scene, AWA, "!constantes 25h lit 1", "vitals_too_long")


async def test_a_high_priority_alarm_promises_a_chart_after_it_and_no_other_does(
    scene: Scene,
) -> None:
    await ill(scene)
    [promised] = await charts(scene)
    order = ChartOrder.of(promised)
    [alarm] = [one for one in [await scene.records.outbox.delivery_of("$alarm")] if one]
    assert order.after == alarm.delivery_id
    assert order.until - order.since == timedelta(hours=1)
    assert (promised.room_id, order.table) == (alarm.room_id, False)


async def test_nothing_about_the_patient_is_logged(scene: Scene) -> None:
    await ill(scene)
    with capture_logs() as logs:
        await scene.types(AWA, "!seuils spo2 < 85 BPCO connue lit 1")
        await scene.types(AWA, "!mesure fr 22 lit 1")
        await scene.types(AWA, "!vu lit 1")
        await scene.reacts(MOUSSA, "$alarm", key=CHECK)
    said: list[Any] = [value for one in logs for value in one.values()]
    assert not [one for one in said if any(word in str(one) for word in ("BPCO", "85", "22"))]


async def test_what_is_half_done_when_the_plug_is_pulled_is_not_done(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient, _ = await ill(scene)
    note = scene.records.audit.note

    async def pull(*_: object, **__: object) -> None:
        raise PulledPlugError

    monkeypatch.setattr(scene.records.audit, "note", pull)
    event = scene.message(AWA, "!vu lit 1")
    with pytest.raises(Exception, match="trying again"):
        await scene.client.deliver(ROOM, event)
    assert await facts(scene, patient) == []
    assert await scene.answers() == []
    monkeypatch.setattr(scene.records.audit, "note", note)
    await scene.client.deliver(ROOM, event)
    assert len(await facts(scene, patient)) == 1


async def test_what_came_since_the_state_was_written_is_in_answers(scene: Scene) -> None:
    """A state is written once a minute where nothing changes: an answer must not be older."""
    patient, _ = await ill(scene)
    await judged(scene, patient)
    await measures(scene, patient, {Kind.SPO2: "87"})  # the engine, too, has yet to judge it
    [shown] = await scene.types(AWA, "!alarmes")
    assert "SpO2 87" in shown
