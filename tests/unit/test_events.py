"""Contents of our Matrix events: exact both ways, without floats, and safe against nonsense."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from canonicaljson import encode_canonical_json
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fajma.errors import DecodeError
from fajma.events import (
    CONSULTATION,
    MAX_WATCH_S,
    VITALS,
    VITALS_BATCH,
    AlarmBlock,
    Latest,
    Measured,
    Quality,
    Sample,
    Trend,
    Vitals,
    VitalsBatch,
    VitalsWatch,
    encrypted_state_key,
)
from fajma.vitals import MAX_DECIMALS, MEASURES, Age, Clock, DeviceId, Kind, PatientKey, Reading

PATIENT = PatientKey("9f" * 16)
NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
DEVICE = DeviceId("A4CF12F03B7E")

MS = timedelta(milliseconds=1)
KINDS = st.sampled_from(Kind)
TIMES = st.integers(0, 4_102_444_800_000).map(lambda ms: datetime(1970, 1, 1, tzinfo=UTC) + ms * MS)


def value_of(kind: Kind) -> st.SearchStrategy[Decimal]:
    """Plausible values as a device writes them, with zeros at the end too."""
    measure = MEASURES[kind]
    return st.integers(0, MAX_DECIMALS).flatmap(
        lambda places: st.decimals(measure.lowest, measure.highest, places=places)
    )


VITALS_CONTENTS = st.builds(
    Vitals,
    patient=st.just(PATIENT),
    as_of=TIMES,
    latest=st.fixed_dictionaries(
        {},
        optional={
            kind: st.builds(
                Latest,
                value_of(kind),
                TIMES,
                st.sampled_from(Quality),
                st.sampled_from(Trend),
                st.sampled_from(Age),
            )
            for kind in Kind
        },
    ),
    probe_off_since=st.none() | TIMES,
    unusable_since=st.dictionaries(KINDS, TIMES),
)
BATCHES = st.builds(
    VitalsBatch,
    patient=st.just(PATIENT),
    anchor=st.just("$day"),
    first=st.integers(1, 2**53 - 1),
    last=st.integers(1, 2**53 - 1),
    readings=st.lists(
        st.builds(
            Measured,
            TIMES,
            st.fixed_dictionaries({}, optional={kind: value_of(kind) for kind in Kind}),
            st.sampled_from(Age),
            st.sampled_from(Quality),
            st.booleans(),
            st.frozensets(KINDS),
        ),
        min_size=1,
        max_size=8,
    ),
    history=st.booleans(),
)
ALARMS = KINDS.flatmap(
    lambda kind: st.builds(
        AlarmBlock,
        delivery_id=st.text(),
        alarm_id=st.text(),
        patient=st.just(PATIENT),
        state=st.sampled_from(["started", "worsened", "recovered"]),
        kind=st.just(kind),
        priority=st.sampled_from(["medium", "high"]),
        value=value_of(kind),
        limit=value_of(kind),
        measured_at=TIMES,
        is_late=st.booleans(),
    )
) | st.builds(
    AlarmBlock,
    delivery_id=st.text(),
    alarm_id=st.text(),
    patient=st.just(PATIENT),
    state=st.sampled_from(["started", "escalated", "recovered"]),
    priority=st.sampled_from(["medium", "high"]),
    measured_at=TIMES | st.none(),
    trouble=st.text(),
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.integers(10**5000, 10**5001),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("version", "patient", "value", "exponent", "limit", "latest", "for_s"),
                    *("series", "values", "at", "from", "steps", "ages", "late"),
                    *("quality", "good", "probe_off", "probe_off_since", "unusable"),
                ]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


def as_sent(content: dict[str, Any]) -> dict[str, Any]:
    """Through the encoding that Matrix prescribes."""
    assert not any(isinstance(part, float) for part in parts(content))
    sent: dict[str, Any] = json.loads(encode_canonical_json(content))
    assert sent == content
    return sent


def parts(content: object) -> Iterator[object]:
    yield content
    if isinstance(content, dict):
        for key, value in content.items():
            yield key
            yield from parts(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from parts(value)


# --- there and back ------------------------------------------------------------------------------


@given(VITALS_CONTENTS)
def test_a_snapshot_survives_the_way_through_matrix(vitals: Vitals) -> None:
    assert Vitals.from_content(as_sent(vitals.to_content())) == vitals


@given(BATCHES)
def test_a_batch_survives_the_way_through_matrix(batch: VitalsBatch) -> None:
    assert VitalsBatch.from_content(as_sent(batch.to_content())) == batch


@given(ALARMS)
def test_an_alarm_survives_the_way_through_matrix(alarm: AlarmBlock) -> None:
    assert AlarmBlock.from_content(as_sent(alarm.to_content())) == alarm


def test_a_value_is_an_integer_and_a_decimal_exponent_with_its_unit() -> None:
    latest = Latest(Decimal("36.80"), NOON, Quality.GOOD, Trend.STEADY)
    content = Vitals(PATIENT, NOON, {Kind.TEMPERATURE: latest}).to_content()
    assert content["latest"]["temperature"] == {
        "value": 368,
        "exponent": -1,
        "unit": "Cel",
        "loinc": "8310-5",
        "measured_at": 1_772_452_800_000,
        "quality": "good",
        "trend": "steady",
    }


@pytest.mark.parametrize(
    ("text", "value", "exponent"),
    [("100", 100, 0), ("1E+2", 100, 0), ("97.0000", 97, 0), ("37.4291", 374291, -4)],
)
def test_a_value_is_written_as_short_as_it_can_be(text: str, value: int, exponent: int) -> None:
    latest = Latest(Decimal(text), NOON, Quality.UNKNOWN, Trend.UNKNOWN)
    content = Vitals(PATIENT, NOON, {Kind.SPO2: latest}).to_content()["latest"]["spo2"]
    assert (content["value"], content["exponent"]) == (value, exponent)


def test_a_batch_refers_to_the_day_and_keeps_the_order_of_the_log() -> None:
    readings = [
        (position, reading(NOON + timedelta(seconds=5 * position), {Kind.SPO2: value}))
        for position, value in ((7, Decimal(97)), (9, Decimal("96.5")), (12, Decimal(97)))
    ]
    batch = VitalsBatch.of(PATIENT, "$day", readings)
    assert (batch.first, batch.last) == (7, 12)
    assert batch.samples[Kind.SPO2] == [
        Sample(one.measured_at, one.values[Kind.SPO2]) for _, one in readings
    ]
    assert batch.to_content() == {
        "version": 1,
        "patient": PATIENT,
        "first": 7,
        "last": 12,
        "from": 1_772_452_835_000,
        "steps": [10_000, 15_000],
        "series": {"spo2": {"exponent": -1, "values": [970, -5, 5]}},
        "m.relates_to": {"rel_type": "m.reference", "event_id": "$day"},
    }


def test_a_kind_that_not_every_reading_has_says_at_which_it_was_measured() -> None:
    values: list[dict[Kind, Decimal]] = [
        {Kind.SPO2: Decimal(97)},
        {Kind.SPO2: Decimal(96), Kind.SYSTOLIC: Decimal(118)},
        {Kind.SPO2: Decimal(95)},
    ]
    readings = [(n, reading(NOON - n * MS, one)) for n, one in enumerate(values)]
    content = VitalsBatch.of(PATIENT, "$day", readings).to_content()
    assert content["steps"] == [-1, -1]  # measured earlier, and in the log later
    assert content["series"]["spo2"] == {"values": [97, -1, -1]}
    assert content["series"]["systolic"] == {"values": [118], "at": [1]}


def test_readings_that_are_not_live_are_marked_as_runs() -> None:
    ages = [Age.LATE, Age.LATE, Age.LIVE, Age.UNKNOWN, Age.LATE]
    readings = [
        (n, replace(reading(NOON + n * MS, {Kind.SPO2: Decimal(97)}), age=age))
        for n, age in enumerate(ages)
    ]
    batch = VitalsBatch.of(PATIENT, "$day", readings, history=True)
    content = batch.to_content()
    assert content["ages"] == {"late": [[0, 1], [4, 4]], "unknown": [[3, 3]]}
    assert content["history"] is True
    assert [one.age for one in VitalsBatch.from_content(content).readings] == ages


def test_a_chart_sees_from_when_to_when_the_probe_was_off_and_nothing_was_usable() -> None:
    on = reading(NOON, {Kind.SPO2: Decimal(97)})
    off = replace(reading(NOON, {}), contact=False)
    low = replace(reading(NOON, {}), unusable=frozenset({Kind.HEART_RATE, Kind.SPO2}))
    readings = [
        replace(one, measured_at=NOON + n * MS) for n, one in enumerate([off, off, on, low, off])
    ]
    batch = VitalsBatch.of(PATIENT, "$day", list(enumerate(readings)))
    content = as_sent(batch.to_content())
    assert content["probe_off"] == [[0, 1], [4, 4]]
    assert content["unusable"] == {"heart_rate": [[3, 3]], "spo2": [[3, 3]]}
    assert content["series"] == {"spo2": {"values": [97], "at": [2]}}
    assert VitalsBatch.from_content(content) == batch


def test_the_quality_of_the_pulse_wave_is_told_in_words_and_not_where_it_is_unknown() -> None:
    percents = [None, 50, 100, 49, 0, None]
    readings = [
        (n, replace(reading(NOON + n * MS, {Kind.SPO2: Decimal(97)}), quality=percent))
        for n, percent in enumerate(percents)
    ]
    content = VitalsBatch.of(PATIENT, "$day", readings).to_content()
    assert content["quality"] == {"poor": [[3, 4]], "unknown": [[0, 0], [5, 5]]}
    assert VitalsBatch.of(PATIENT, "$day", readings[1:3]).to_content()["quality"] == {}
    assert "quality" not in VitalsBatch.of(PATIENT, "$day", readings[:1]).to_content()


def test_a_snapshot_says_since_when_there_is_nothing_to_see() -> None:
    vitals = Vitals(PATIENT, NOON, {}, NOON - MS, {Kind.SPO2: NOON - 2 * MS})
    content = as_sent(vitals.to_content())
    assert content["probe_off_since"] == 1_772_452_799_999
    assert content["unusable_since"] == {"spo2": 1_772_452_799_998}


@pytest.mark.parametrize(
    "marks",
    [
        {"ages": {"late": [[0, 1]]}},
        {"ages": {"late": [[-1, 0]]}},
        {"ages": {"late": [[0, 10**12]]}},
        {"ages": {"old": [[0, 0]]}},
        {"quality": {"good": [[1, 1]]}},
        {"quality": {"fair": [[0, 0]]}},
        {"probe_off": [[0, 10**12]]},
        {"probe_off": [[0]]},
        {"probe_off": {"spo2": [[0, 0]]}},
        {"unusable": {"spo2": [[1, 0]]}},
        {"unusable": {"blood_sugar": [[0, 0]]}},
    ],
)
def test_marks_of_readings_that_are_not_there_are_refused(marks: dict[str, Any]) -> None:
    reader, content = READERS["batch"]
    reader(content | {"ages": {"late": [[0, 0]]}, "probe_off": [[0, 0]]})
    with pytest.raises(DecodeError):
        reader(content | marks)


@pytest.mark.parametrize(
    "series",
    [
        {"values": [1, 2]},
        {"values": []},
        {"values": [1], "at": [1]},
        {"values": [1, 2], "at": [0]},
    ],
)
def test_values_of_readings_that_are_not_there_are_refused(series: dict[str, Any]) -> None:
    reader, content = READERS["batch"]
    with pytest.raises(DecodeError):
        reader(content | {"series": {"spo2": series}})


@given(st.integers(1, MAX_WATCH_S))
def test_a_wish_to_watch_survives_the_way_through_matrix(for_s: int) -> None:
    wish = VitalsWatch(for_s)
    assert VitalsWatch.from_content(as_sent(wish.to_content("$day"))) == wish


@pytest.mark.parametrize(
    "for_s", [0, -1, MAX_WATCH_S + 1, 10**30, True, 5.0, float("inf"), "60", None, [60]]
)
def test_a_wish_with_an_absurd_number_is_refused(for_s: object) -> None:
    with pytest.raises(DecodeError):
        VitalsWatch.from_content({"version": 1, "for_s": for_s})


def test_the_outer_state_key_names_the_inner_type_and_key() -> None:
    assert encrypted_state_key(VITALS, PATIENT) == f"com.fajma.vitals:{PATIENT}"
    assert encrypted_state_key(CONSULTATION, "") == "com.fajma.consultation:"


def reading(measured_at: datetime, values: dict[Kind, Decimal]) -> Reading:
    return Reading(DEVICE, measured_at, measured_at, Clock.DEVICE, values)


# --- nonsense ------------------------------------------------------------------------------------

READERS: dict[str, tuple[Callable[[Any], object], dict[str, Any]]] = {
    "snapshot": (
        Vitals.from_content,
        Vitals(
            PATIENT, NOON, {Kind.SPO2: Latest(Decimal("97.5"), NOON, Quality.GOOD, Trend.RISING)}
        ).to_content(),
    ),
    "batch": (
        VitalsBatch.from_content,
        VitalsBatch(
            PATIENT, "$day", 1, 2, [Measured(NOON, {Kind.SPO2: Decimal("97.5")})]
        ).to_content(),
    ),
    "watch": (VitalsWatch.from_content, {"version": 1, "for_s": 60}),
    "alarm": (
        AlarmBlock.from_content,
        AlarmBlock(
            "d", "a", PATIENT, "started", "high", NOON, Kind.SPO2, Decimal(86), Decimal(90)
        ).to_content(),
    ),
}


def read(reader: Callable[[Any], object], content: object) -> None:
    """Anything but a DecodeError fails the test."""
    try:
        reader(content)
    except DecodeError as error:
        assert error.code == "bad_event"  # noqa: PT017 - being readable is allowed too


def places(content: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every part of a content."""
    yield path
    inside: Any = ()
    if isinstance(content, dict):
        inside = content.items()
    elif isinstance(content, list):
        inside = enumerate(content)
    for key, value in inside:
        yield from places(value, (*path, key))


def changed(content: object, path: tuple[Any, ...], new: object) -> object:
    if not path:
        return new
    key, *rest = path
    if isinstance(content, list):
        return [
            changed(value, tuple(rest), new) if n == key else value
            for n, value in enumerate(content)
        ]
    assert isinstance(content, dict)
    return content | {key: changed(content[key], tuple(rest), new)}


@pytest.mark.parametrize("name", READERS)
@given(content=JSON)
@example(content=[])
@example(content=None)
def test_any_json_in_place_of_a_content_is_refused(name: str, content: object) -> None:
    reader, _ = READERS[name]
    with pytest.raises(DecodeError):
        reader(content)


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=200)
@given(data=st.data(), new=JSON)
def test_any_json_inside_a_content_gives_a_content_or_a_refusal(
    name: str, data: st.DataObject, new: object
) -> None:
    reader, content = READERS[name]
    path = data.draw(st.sampled_from(list(places(content))))
    read(reader, changed(content, path, new))


NOT_NUMBERS: list[object] = [None, True, "97", 97.0, float("nan"), [], {}]


@pytest.mark.parametrize("bad", NOT_NUMBERS, ids=repr)
@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("snapshot", ("as_of",)),
        ("snapshot", ("latest", "spo2", "value")),
        ("snapshot", ("latest", "spo2", "exponent")),
        ("snapshot", ("latest", "spo2", "measured_at")),
        ("batch", ("first",)),
        ("batch", ("last",)),
        ("batch", ("series", "spo2", "exponent")),
        ("batch", ("series", "spo2", "values", 0)),
        ("batch", ("from",)),
        ("watch", ("for_s",)),
        ("alarm", ("value",)),
        ("alarm", ("limit", "value")),
        ("alarm", ("measured_at",)),
    ],
)
def test_what_is_no_integer_is_refused(name: str, path: tuple[Any, ...], bad: object) -> None:
    reader, content = READERS[name]
    with pytest.raises(DecodeError):
        reader(changed(content, path, bad))


@pytest.mark.parametrize("exponent", [-7, 1, 10**9, -(10**9)])
def test_an_exponent_beyond_reason_is_refused(exponent: int) -> None:
    for name, path in {
        "snapshot": ("latest", "spo2", "exponent"),
        "batch": ("series", "spo2", "exponent"),
        "alarm": ("exponent",),
    }.items():
        reader, content = READERS[name]
        with pytest.raises(DecodeError):
            reader(changed(content, path, exponent))


@pytest.mark.parametrize("name", READERS)
def test_a_content_of_a_newer_version_or_with_a_part_missing_is_refused(name: str) -> None:
    reader, content = READERS[name]
    reader(content)
    with pytest.raises(DecodeError):
        reader(content | {"version": 2})
    for key in content:
        if key != "unit":  # fixed by the kind
            with pytest.raises(DecodeError):
                reader({k: v for k, v in content.items() if k != key})


def test_a_kind_that_we_do_not_know_is_refused() -> None:
    reader, content = READERS["batch"]
    series = content["series"]
    with pytest.raises(DecodeError):
        reader(content | {"series": series | {"blood_sugar": series["spo2"]}})


def test_a_refusal_names_the_type_and_no_value() -> None:
    reader, content = READERS["batch"]
    with pytest.raises(DecodeError, match=VITALS_BATCH) as caught:
        reader(content | {"first": "314159"})
    assert "314159" not in str(caught.value)
