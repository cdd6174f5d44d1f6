"""The summary at the end of a consultation: what our log has, in both languages, no value."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from appservice.summary import Alarms, Summary, counted, not_come, signed, text
from fajma.events import AlarmBlock
from fajma.language import Language
from fajma.life import ParticipantRole
from fajma.vitals import Kind, PatientKey

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
SUMMARY = Summary(
    opened_at=NOON,
    ended_at=NOON + timedelta(hours=1, minutes=5),
    roles=(ParticipantRole.LEAD, *[ParticipantRole.CLINICIAN] * 2, ParticipantRole.PATIENT),
    alarms=(Alarms(Kind.SPO2, 2, "high"), Alarms(None, 1, "medium")),
    limits_changed=3,
    monitors=1,
    despite_alarm=False,
)


def block(alarm_id: str, priority: str, kind: Kind | None = Kind.SPO2) -> AlarmBlock:
    about_value = kind is not None
    return AlarmBlock(
        delivery_id=f"{alarm_id}-{priority}",
        alarm_id=alarm_id,
        patient=PatientKey("p"),
        state="started",
        priority=priority,
        measured_at=NOON,
        kind=kind,
        value=Decimal(86) if about_value else None,
        limit=Decimal(90) if about_value else None,
        trouble=None if about_value else "probe_off",
    )


def test_the_summary_is_told_in_english() -> None:
    assert text(SUMMARY, Language.ENGLISH, "Africa/Dakar").splitlines() == [
        "CONSULTATION ENDED · summary, to be signed by a clinician",
        "2026-03-02 12:00 to 2026-03-02 13:05 · 1 h 05 min",
        "took part: lead clinician · clinicians 2 · patient",
        "alarms, with the highest priority of each: SpO2 2 (high) · sensor 1 (medium)",
        "limits changed: 3 times",
        "monitors taken off: 1",
        "This room can be read and is written no more. See the patient if in doubt.",
    ]


def test_the_summary_is_told_in_french_in_the_time_of_the_room() -> None:
    said = text(SUMMARY, Language.FRENCH, "Africa/Kinshasa")
    assert said.startswith("CONSULTATION TERMINÉE · résumé à signer par un soignant\n")
    assert "2026-03-02 13:00 à 2026-03-02 14:05 · 1 h 05 min" in said
    assert "SpO2 2 (haute) · capteur 1 (moyenne)" in said


def test_an_end_despite_an_alarm_says_so() -> None:
    alarmed = text(replace(SUMMARY, despite_alarm=True), Language.ENGLISH, "UTC")
    assert "although an alarm of high priority was open" in alarmed
    assert "although" not in text(SUMMARY, Language.ENGLISH, "UTC")


def test_no_alarm_and_alarms_that_cannot_be_read_are_two_things() -> None:
    assert "no alarm" in text(replace(SUMMARY, alarms=()), Language.ENGLISH, "UTC").splitlines()
    unread = text(replace(SUMMARY, alarms=None, limits_changed=None), Language.ENGLISH, "UTC")
    assert "cannot be read" in unread
    assert "no alarm" not in unread


def test_each_alarm_counts_once_by_its_worst_priority() -> None:
    told = [
        block("spo2-low-1", "medium"),
        block("spo2-low-1", "high"),
        block("spo2-low-1", "medium"),
        block("spo2-low-2", "medium"),
        block("probe_off-1", "low", kind=None),
        block("heart_rate-high-3", "medium", kind=Kind.HEART_RATE),
    ]
    assert counted(told) == [
        Alarms(Kind.HEART_RATE, 1, "medium"),
        Alarms(Kind.SPO2, 2, "high"),
        Alarms(None, 1, "low"),
    ]
    assert counted([]) == []


def test_a_clock_that_was_set_back_makes_no_negative_duration() -> None:
    earlier = replace(SUMMARY, ended_at=NOON - timedelta(minutes=5))
    assert "· 0 min" in text(earlier, Language.ENGLISH, "UTC")


@pytest.mark.parametrize("language", Language)
@pytest.mark.parametrize("role", ParticipantRole)
def test_every_role_has_a_name(role: ParticipantRole, language: Language) -> None:
    alone = text(replace(SUMMARY, roles=(role,)), language, "UTC")
    nobody = text(replace(SUMMARY, roles=()), language, "UTC")
    assert alone != nobody


def test_who_signed_and_when_is_said() -> None:
    assert signed("Awa Diop", NOON, Language.ENGLISH, "UTC") == (
        "✓ Summary signed by Awa Diop · 2026-03-02 12:00"
    )
    assert not_come(Language.FRENCH) == "CONSULTATION CLOSE · le patient n'est pas venu"
