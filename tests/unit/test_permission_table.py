"""The table of permissions, as far as it can be judged without a server."""

from __future__ import annotations

from appservice.api.permissions import HOSPITAL, SCOPES, TABLE, Permission, Reach, Who, reach


def test_every_permission_has_a_row() -> None:
    assert set(TABLE) == set(Permission)


def test_nobody_who_shows_nothing_gets_more_than_the_description_and_a_sign_in() -> None:
    granted = {one for one in Permission if reach(one, {Who.NOBODY}) is not None}
    assert granted == {Permission.READ_API, Permission.SIGN_IN}


def test_a_key_without_scope_may_nothing() -> None:
    assert [one for one in Permission if reach(one, frozenset()) is not None] == []


def test_the_key_in_the_file_reads_no_vital() -> None:
    assert HOSPITAL < SCOPES
    assert reach(Permission.READ_OBSERVATIONS, HOSPITAL) is None
    assert reach(Permission.WRITE_STAFF, HOSPITAL) is None


def test_of_several_rights_the_widest_counts() -> None:
    assert reach(Permission.READ_PATIENTS, {Who.DOCTOR}) is Reach.OWN
    assert reach(Permission.READ_PATIENTS, {Who.DOCTOR, Who.OPERATOR}) is Reach.ALL


def test_no_person_reaches_all_patients() -> None:
    people = {Who.DOCTOR, Who.NURSE, Who.STAFF_OPERATOR, Who.PATIENT, Who.PARTNER, Who.OBSERVER}
    clinical = {
        Permission.READ_PATIENTS,
        Permission.FIND_PATIENTS,
        Permission.READ_OBSERVATIONS,
        Permission.READ_CONSENTS,
        Permission.WRITE_CONSENTS,
        Permission.LINK_DEVICES,
        Permission.READ_CONSULTATIONS,
        Permission.CONDUCT,
        Permission.ARRANGE,
    }
    assert all(reach(one, {who}) is not Reach.ALL for one in clinical for who in people)
