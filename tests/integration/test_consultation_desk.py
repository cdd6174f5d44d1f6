"""Commands about consultations: who may, whom a line names, and which errand comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from bots.alerts.consultation_desk import CONFIRMED_WITHIN
from fajma.language import Language
from fajma.life import ParticipantRole, Status
from fajma.store import Records
from fajma.store.consultations import Consultation
from fajma.store.errands import Errand, ErrandKind
from fajma.store.patients import Patient
from fajma.store.people import Role, Staff
from fajma.vitals import DeviceId
from tests.integration.scene import (
    ADMIN,
    AWA,
    FATOU,
    IBOU,
    MEDICINE,
    MOUSSA,
    NOON,
    OTHER_ROOM,
    ROOM,
    SURGERY,
    PulledPlugError,
    Scene,
    consultation,
    falls,
    staffed,
)

PATIENT, BINTA, PARTNER = "@aminata:clinic.test", "@binta:clinic.test", "@ngone:other.test"
CODE = DeviceId("A4CF12F03B7E")
OPENING = "!consultation A.D. lit 4 dossier 12345"


async def treated(scene: Scene, *, account: str | None = None) -> tuple[Patient, Consultation]:
    """An open consultation of bed 1, with Awa and Moussa, and Fatou who only observes."""
    patient, opened = await consultation(scene, AWA, MOUSSA, account=account, ward=MEDICINE)
    async with scene.records.store.transaction() as connection:
        await scene.records.consultations.include(
            connection, opened.id, FATOU, ParticipantRole.OBSERVER, now=NOON
        )
    return patient, opened


async def ordered(scene: Scene, room_id: str = ROOM) -> Errand | None:
    """What was ordered last of what waits in a room."""
    found = await scene.records.errands.next_in(room_id)
    return await scene.records.errands.get(found) if found is not None else None


async def orders(
    scene: Scene, sender: str, line: str, room_id: str = ROOM, **more: Any
) -> tuple[ErrandKind, Mapping[str, str]]:
    """The one errand that a line leads to, without an answer yet."""
    with capture_logs() as logs:
        assert await scene.types(sender, line, room_id=room_id, **more) == []
    assert [one["event"] for one in logs] == ["order_carried_out"]
    errand = await ordered(scene, room_id)
    assert errand is not None
    assert (errand.who, errand.room_id, errand.asked_at) == (sender, room_id, scene.now)
    entry = (await scene.audit())[-1]
    assert (entry.action, entry.actor) == ("errand.ordered", sender)
    assert entry.detail == {"errand": errand.id, "kind": errand.kind.value, **errand.said}
    async with scene.records.store.transaction() as connection:
        await scene.records.errands.end(connection, errand.id, "done", now=scene.now)
    assert await ordered(scene, room_id) is None
    return errand.kind, errand.said


async def refused(
    scene: Scene, sender: str, line: str, code: str, room_id: str = ROOM, **more: Any
) -> str:
    """The one answer to a command of which nothing comes; it is in the audit as refused."""
    [answer] = await scene.types(sender, line, room_id=room_id, **more)
    entry = (await scene.audit())[-1]
    assert (entry.action, entry.actor, entry.detail) == ("order.refused", sender, {"reason": code})
    assert await ordered(scene, room_id) is None
    return answer


async def heard_of(scene: Scene, *codes: str) -> None:
    for one in codes:
        await scene.records.devices.new_keys(DeviceId(one), now=NOON)


# --- opening -------------------------------------------------------------------------------------


async def test_a_line_in_the_wards_room_orders_a_consultation_and_makes_the_record(
    records: Records,
) -> None:
    scene = await staffed(records)
    line = f"{OPENING} moniteur {CODE} patient {PATIENT}"
    kind, said = await orders(scene, MOUSSA, line)
    patient = await records.patients.by_number("12345")
    assert patient is not None
    assert (patient.initials, patient.bed, patient.ward) == ("A.D.", "4", MEDICINE)
    assert kind is ErrandKind.OPEN
    assert said == {
        "ward": MEDICINE,
        "patient": patient.key,
        "device": CODE,
        "account": PATIENT,
        "record": "added",
    }
    entry = (await scene.audit())[-1]
    assert entry.subject == patient.key
    assert "12345" not in str(entry)


async def test_a_patient_on_record_who_lies_in_another_bed_by_now_moves(scene: Scene) -> None:
    before = await scene.records.patients.add(
        number="12345", initials="A.D.", bed="7", account=None, ward=MEDICINE
    )
    _, said = await orders(scene, AWA, OPENING)
    assert said == {"ward": MEDICINE, "patient": before.key, "record": "moved"}
    after = await scene.records.patients.get(before.key)
    assert after == replace(before, bed="4")
    _, said = await orders(scene, AWA, OPENING)
    assert "record" not in said


async def test_a_number_of_somebody_with_other_initials_opens_nothing(scene: Scene) -> None:
    before = await scene.records.patients.add(
        number="12345", initials="B.T.", bed="7", account=None, ward=MEDICINE
    )
    answer = await refused(scene, AWA, OPENING, "other_initials")
    assert "B.T." not in answer
    assert await scene.records.patients.get(before.key) == before


async def test_a_number_is_found_in_whatever_case_it_was_typed(scene: Scene) -> None:
    before = await scene.records.patients.add(
        number="E-77b".upper(), initials="A.D.", bed="4", account=None, ward=MEDICINE
    )
    _, said = await orders(scene, AWA, "!consultation A.D. lit 4 dossier e-77b")
    assert said == {"ward": MEDICINE, "patient": before.key}


async def test_the_account_of_a_patient_is_not_exchanged_by_typing(scene: Scene) -> None:
    await scene.records.patients.add(
        number="12345", initials="A.D.", bed="4", account=PATIENT, ward=MEDICINE
    )
    await refused(scene, AWA, f"{OPENING} patient {BINTA}", "other_account")
    _, said = await orders(scene, AWA, f"{OPENING} patient {PATIENT}")
    assert said["account"] == PATIENT


async def test_a_patient_of_another_ward_is_not_taken_over(scene: Scene) -> None:
    await scene.records.patients.add(
        number="12345", initials="AD", bed="4", account=None, ward=SURGERY
    )
    await refused(scene, AWA, OPENING, "other_ward")


async def test_an_account_of_the_staff_or_of_another_patient_is_no_patients(scene: Scene) -> None:
    await consultation(scene, AWA, account=PATIENT)
    for account in (MOUSSA, PATIENT):
        await refused(scene, AWA, f"{OPENING} patient {account}", "account_of_another")
    assert await scene.records.patients.by_number("12345") is None


@pytest.mark.parametrize("sender", [IBOU, ADMIN])
async def test_only_doctors_and_nurses_of_the_ward_open_there(scene: Scene, sender: str) -> None:
    await refused(scene, sender, OPENING, "not_of_ward")
    await refused(scene, sender, "!consultations", "not_of_ward")


async def test_what_is_interrupted_leaves_neither_record_nor_errand(scene: Scene) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise PulledPlugError

    note = scene.records.audit.note
    scene.records.audit.note = fail  # type: ignore[method-assign]
    event = scene.message(AWA, OPENING)
    with pytest.raises(Exception, match="trying again"):
        await scene.client.deliver(ROOM, event)
    assert await scene.records.patients.by_number("12345") is None
    assert await ordered(scene) is None
    scene.records.audit.note = note  # type: ignore[method-assign]
    for _ in range(2):
        await scene.client.deliver(ROOM, event)
    assert await scene.records.patients.by_number("12345") is not None
    assert len(await scene.records.store.db.fetch("SELECT * FROM errand")) == 1


async def test_the_wards_open_consultations_are_listed_without_record_numbers(
    scene: Scene,
) -> None:
    await consultation(scene, AWA, number="N-77", ward=MEDICINE)
    await consultation(scene, IBOU, number="N-88", ward=SURGERY)
    await consultation(scene, AWA, number="N-99", ward=MEDICINE, opened=False)
    patient = await scene.records.patients.by_number("N-77")
    assert patient is not None
    async with scene.records.store.transaction() as connection:
        await scene.records.patients.change(connection, replace(patient, bed="4"))
    [answer] = await scene.types(MOUSSA, "!consultations")
    assert answer.splitlines() == [
        "Consultations ouvertes\N{NO-BREAK SPACE}: 1",
        "Lit 4 A.D. · depuis 12:00 · Awa Diop (@awa:clinic.test)",
        "En ouvrir une autre\N{NO-BREAK SPACE}: !consultation A.D. lit 4 dossier 12345",
    ]


# --- people --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "account", "role"),
    [
        ("!inviter @ibou", IBOU, "clinician"),
        (f"!inviter {IBOU} observateur", IBOU, "observer"),
        (f"!inviter {PARTNER}", PARTNER, "clinician"),
        (f"!inviter {BINTA} interprète", BINTA, "interpreter"),
        (f"!invite {BINTA} companion", BINTA, "companion"),
    ],
)
async def test_somebody_is_invited_as_what_the_line_says(
    scene: Scene, line: str, account: str, role: str
) -> None:
    patient, opened = await treated(scene)
    room_id = str(opened.room_id)
    assert await orders(scene, MOUSSA, line, room_id) == (
        ErrandKind.INVITE,
        {"account": account, "role": role, "consultation": opened.id},
    )
    assert (await scene.audit())[-1].subject == patient.key


@pytest.mark.parametrize(
    ("line", "mentions", "code"),
    [
        ("!inviter @nobody", (), "nobody"),
        (f"!inviter {BINTA}", (), "not_staff_account"),
        (f"!inviter {ADMIN}", (), "not_clinician"),
        (f"!inviter {PATIENT} accompagnant", (), "account_of_patient"),
        ("!inviter Awa Diop", (IBOU,), "another_name"),
        ("!inviter Binta observatrice", (BINTA,), "another_name"),
    ],
)
async def test_who_is_not_certain_or_may_not_come_is_not_invited(
    scene: Scene, line: str, mentions: tuple[str, ...], code: str
) -> None:
    _, opened = await treated(scene, account=PATIENT)
    await refused(scene, AWA, line, code, str(opened.room_id), mentions=mentions)


async def test_who_leads_stays_lead_when_invited_again_and_the_last_who_treats_stays_that(
    scene: Scene,
) -> None:
    _, opened = await consultation(scene, AWA, ward=MEDICINE)
    async with scene.records.store.transaction() as connection:
        await scene.records.consultations.include(
            connection, opened.id, AWA, ParticipantRole.LEAD, now=NOON
        )
    _, said = await orders(scene, AWA, "!inviter @awa", str(opened.room_id))
    assert said["role"] == "lead"
    await refused(scene, AWA, "!inviter @awa observateur", "last_clinician", str(opened.room_id))


async def test_a_colleague_picked_by_the_name_on_record_is_invited(scene: Scene) -> None:
    _, opened = await treated(scene)
    _, said = await orders(
        scene, AWA, "!inviter Ibou Fall", str(opened.room_id), mentions=[IBOU]
    )  # fmt: skip
    assert said["account"] == IBOU


@pytest.mark.parametrize("named", ["@fatou", FATOU, PATIENT])
async def test_who_takes_part_is_taken_out(scene: Scene, named: str) -> None:
    _, opened = await treated(scene, account=PATIENT)
    kind, said = await orders(scene, AWA, f"!retirer {named}", str(opened.room_id))
    assert kind is ErrandKind.REMOVE
    assert said["account"] in {FATOU, PATIENT}


async def test_who_does_not_take_part_cannot_be_taken_out(scene: Scene) -> None:
    _, opened = await treated(scene)
    answer = await refused(scene, AWA, "!retirer @ibou", "not_taking_part", str(opened.room_id))
    assert FATOU in answer
    await refused(scene, AWA, f"!retirer {PARTNER}", "not_taking_part", str(opened.room_id))


async def test_a_picked_name_that_is_not_that_of_the_account_takes_nobody_out(
    scene: Scene,
) -> None:
    _, opened = await treated(scene)
    await refused(
        scene, AWA, "!retirer Moussa Ba", "another_name", str(opened.room_id), mentions=[FATOU]
    )


EVERY_LINE = [
    "!inviter @ibou",
    "!retirer @fatou",
    f"!moniteur {CODE}",
    "!moniteur retirer",
    "!appel",
    "!langue en",
    "!admettre",
    "!terminer",
    "!terminer oui",
    "!terminer malgré alarme",
]


@pytest.mark.parametrize("line", EVERY_LINE)
@pytest.mark.parametrize(
    ("sender", "code"),
    [(FATOU, "not_treating"), (IBOU, "not_treating"), (ADMIN, "not_treating"),
     (PATIENT, "not_staff"), (BINTA, "not_staff"), (PARTNER, "not_staff")],
)  # fmt: skip
async def test_only_who_treats_orders_anything_in_a_consultation(
    scene: Scene, line: str, sender: str, code: str
) -> None:
    _, opened = await treated(scene, account=PATIENT)
    await refused(scene, sender, line, code, str(opened.room_id))


async def test_a_clinician_who_lost_the_role_orders_nothing(scene: Scene) -> None:
    _, opened = await treated(scene)
    async with scene.records.store.transaction() as connection:
        admin = Staff(AWA, "Awa Diop", Role.OPERATOR, MEDICINE, Language.FRENCH, NOON)
        await scene.records.people.put(connection, admin)
    await refused(scene, AWA, "!appel", "not_treating", str(opened.room_id))


@pytest.mark.parametrize("line", EVERY_LINE)
async def test_what_belongs_into_a_consultation_does_nothing_in_the_wards_room(
    scene: Scene, line: str
) -> None:
    await treated(scene)
    await refused(scene, AWA, line, "wrong_room")


async def test_a_slip_in_a_line_shows_the_right_one_and_where_it_is_typed(scene: Scene) -> None:
    _, opened = await treated(scene)
    [there] = await scene.types(AWA, "!moniteur 12", room_id=str(opened.room_id))
    [here] = await scene.types(AWA, "!moniteur 12")
    assert "!moniteur A4CF12F03B7E" in there
    assert (
        here
        == f"{there}\nCeci se tape dans le salon de la consultation, pas dans celui du service."
    )
    [elsewhere] = await scene.types(AWA, "!consultation A.D.", room_id=str(opened.room_id))
    assert "!inviter @nom" in elsewhere  # what can be typed there


@pytest.mark.parametrize("line", [OPENING, "!consultations", "!signer"])
async def test_what_belongs_into_the_wards_room_does_nothing_in_a_consultation(
    scene: Scene, line: str
) -> None:
    _, opened = await treated(scene)
    await refused(scene, AWA, line, "wrong_room", str(opened.room_id))


# --- monitors ------------------------------------------------------------------------------------


async def test_a_monitor_is_named_by_its_code_or_its_end(records: Records) -> None:
    scene = await staffed(records)
    _, opened = await treated(scene)
    room_id = str(opened.room_id)
    wanted = {"device": CODE, "consultation": opened.id}
    assert await orders(scene, AWA, f"!moniteur {CODE}", room_id) == (ErrandKind.LINK, wanted)
    await refused(scene, AWA, "!moniteur 3B7E", "monitor_unknown", room_id)
    await heard_of(scene, CODE)
    assert await orders(scene, AWA, "!moniteur 3b 7e", room_id) == (ErrandKind.LINK, wanted)
    await heard_of(scene, "000000003B7E")
    answer = await refused(scene, AWA, "!moniteur 3B7E", "monitor_ambiguous", room_id)
    assert "000000003B7E" not in answer


async def test_a_monitor_that_another_patient_wears_is_not_taken_away(scene: Scene) -> None:
    other, _ = await consultation(scene, IBOU, number="9", ward=SURGERY)
    await scene.records.devices.link(CODE, other.key, None, now=NOON)
    _, opened = await treated(scene)
    answer = await refused(scene, AWA, f"!moniteur {CODE}", "monitor_worn", str(opened.room_id))
    assert "9" not in answer  # the patient reads here
    await refused(scene, AWA, "!moniteur 3B7E", "monitor_unknown", str(opened.room_id))
    await refused(scene, AWA, f"{OPENING} moniteur {CODE}", "monitor_worn")


async def test_a_monitor_is_taken_off_by_name_where_several_are_worn(scene: Scene) -> None:
    patient, opened = await treated(scene)
    room_id = str(opened.room_id)
    await refused(scene, AWA, "!moniteur retirer", "monitor_not_worn", room_id)
    await scene.records.devices.link(CODE, patient.key, opened.id, now=NOON)
    alone = (ErrandKind.UNLINK, {"device": CODE, "consultation": opened.id})
    assert await orders(scene, AWA, "!moniteur retirer", room_id) == alone
    await scene.records.devices.link(DeviceId("B" * 12), patient.key, opened.id, now=NOON)
    answer = await refused(scene, AWA, "!moniteur retirer", "monitor_which", room_id)
    assert f"!moniteur retirer {CODE}" in answer.splitlines()
    assert await orders(scene, AWA, "!moniteur retirer 3B7E", room_id) == alone
    await refused(scene, AWA, "!moniteur retirer 0000", "monitor_which", room_id)


# --- call, language, admission -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "kind", "said"),
    [
        ("!appel", ErrandKind.CALL, {}),
        ("!langue en", ErrandKind.LANGUAGE, {"language": "en"}),
        ("!admettre", ErrandKind.ADMIT, {}),
    ],
)
async def test_what_needs_nothing_else_is_ordered_for_the_consultation(
    scene: Scene, line: str, kind: ErrandKind, said: dict[str, str]
) -> None:
    _, opened = await treated(scene, account=PATIENT)
    wanted = said | {"consultation": opened.id}
    assert await orders(scene, AWA, line, str(opened.room_id)) == (kind, wanted)


async def test_a_patient_without_account_is_not_let_in(scene: Scene) -> None:
    _, opened = await treated(scene)
    await refused(scene, AWA, "!admettre", "no_account", str(opened.room_id))


# --- ending --------------------------------------------------------------------------------------


async def test_a_consultation_is_ended_by_a_second_line_of_the_same_person(
    records: Records,
) -> None:
    scene = await staffed(records)
    _, opened = await treated(scene)
    room_id = str(opened.room_id)
    await refused(scene, AWA, "!terminer oui", "not_asked", room_id)
    [question] = await scene.types(AWA, "!terminer", room_id=room_id)
    assert "Lit 1 A.D." in question
    assert question.endswith("!terminer oui")
    assert await ordered(scene, room_id) is None
    await refused(scene, MOUSSA, "!terminer oui", "not_asked", room_id)
    scene.now += CONFIRMED_WITHIN
    wanted = (ErrandKind.END, {"consultation": opened.id})
    assert await orders(scene, AWA, "!terminer oui", room_id) == wanted
    scene.now += timedelta(seconds=1)
    await refused(scene, AWA, "!terminer oui", "not_asked", room_id)


async def test_an_alarm_that_nobody_took_must_be_passed_over_in_words(scene: Scene) -> None:
    patient, opened = await treated(scene)
    room_id = str(opened.room_id)
    await falls(scene, patient)
    scene.now = NOON + timedelta(seconds=30)
    await refused(scene, AWA, "!terminer malgré alarme", "not_asked", room_id)
    [question] = await scene.types(AWA, "!terminer", room_id=room_id)
    assert "ALARME HAUTE" in question
    assert question.endswith("!terminer malgré alarme")
    answer = await refused(scene, AWA, "!terminer oui", "alarm_open", room_id)
    assert "ALARME HAUTE" in answer
    assert await orders(scene, AWA, "!terminer malgré alarme", room_id) == (
        ErrandKind.END,
        {"despite_alarm": "yes", "consultation": opened.id},
    )


async def test_alarms_that_cannot_be_read_count_as_open(scene: Scene) -> None:
    patient, opened = await treated(scene)
    await falls(scene, patient)
    await scene.records.store.db.execute("UPDATE alarm_state SET sealed=$1", b"x" * 64)
    [question] = await scene.types(AWA, "!terminer", room_id=str(opened.room_id))
    assert question.endswith("!terminer malgré alarme")


async def closed(scene: Scene, *opened: Consultation) -> None:
    for one in opened:
        async with scene.records.store.transaction() as connection:
            await scene.records.consultations.enter(connection, one.id, Status.ENDED, ended_at=NOON)


async def test_what_has_ended_is_not_ended_again(scene: Scene) -> None:
    _, opened = await treated(scene)
    await closed(scene, opened)
    await refused(scene, AWA, "!terminer", "consultation_not_open", str(opened.room_id))


# --- signing -------------------------------------------------------------------------------------


async def test_the_one_summary_that_waits_is_signed_in_the_wards_room(scene: Scene) -> None:
    _, opened = await treated(scene)
    await refused(scene, AWA, "!signer", "nothing_to_sign")
    await closed(scene, opened)
    wanted = (ErrandKind.SIGN, {"consultation": opened.id})
    assert await orders(scene, AWA, "!signer", ROOM) == wanted
    assert await orders(scene, AWA, f"!sign {opened.short_name.lower()}", ROOM) == wanted
    await refused(scene, FATOU, "!signer", "nothing_to_sign")
    await refused(scene, IBOU, "!signer", "nothing_to_sign", OTHER_ROOM)
    async with scene.records.store.transaction() as connection:
        await scene.records.consultations.sign(connection, opened.id, AWA, now=NOON)
    await refused(scene, AWA, "!signer", "nothing_to_sign")


async def test_of_several_summaries_the_one_that_is_named_is_signed(scene: Scene) -> None:
    _, first = await consultation(scene, AWA, number="1", ward=MEDICINE)
    _, second = await consultation(scene, AWA, number="2", ward=MEDICINE)
    await closed(scene, first, second)
    answer = await refused(scene, AWA, "!signer", "sign_which")
    assert f"!signer {first.short_name}" in answer.splitlines()
    _, said = await orders(scene, AWA, f"!signer {second.short_name}")
    assert said == {"consultation": second.id}
    await refused(scene, AWA, "!signer 0000", "nothing_to_sign")


# --- help ----------------------------------------------------------------------------------------


async def test_help_shows_to_each_what_can_be_typed_there(scene: Scene) -> None:
    _, opened = await treated(scene, account=PATIENT)
    [here] = await scene.types(AWA, "!aide", room_id=str(opened.room_id))
    assert "!terminer" in here
    assert "!consultation A.D." not in here
    [ward] = await scene.types(AWA, "!aide")
    assert "!consultation A.D." in ward
    assert "!terminer" not in ward
    [patients] = await scene.types(PATIENT, "!aide", room_id=str(opened.room_id))
    assert [line.split()[0] for line in patients.splitlines()] == ["!constantes", "!aide"]
