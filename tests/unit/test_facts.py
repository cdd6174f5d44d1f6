"""Facts survive being kept, and nothing else is taken for one."""

from datetime import UTC, datetime
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fajma.errors import BugError
from fajma.facts import Fact, from_json, to_json
from fajma.vitals import DeviceId

st.register_type_strategy(datetime, st.datetimes(timezones=st.just(UTC)))
st.register_type_strategy(DeviceId, st.text(max_size=20).map(DeviceId))


@given(st.one_of(*map(st.from_type, get_args(Fact))))
def test_a_fact_survives_json(fact: Fact) -> None:
    text = to_json(fact)

    assert to_json(from_json(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"version":2,"fact":"time_passed","at":"2026-03-01T14:02:00+00:00"}',
        '{"version":1,"fact":"sung","at":"2026-03-01T14:02:00+00:00"}',
        '{"version":1,"fact":"time_passed","at":"yesterday"}',
        '{"version":1,"fact":"time_passed","at":5}',
        '{"version":1,"fact":"time_passed","at":"2026-03-01T14:02:00+00:00","more":1}',
    ],
)
def test_anything_else_is_refused_without_quoting_it(text: str) -> None:
    with pytest.raises(BugError) as refused:
        from_json(text)

    assert refused.value.code == "fact_unreadable"
    assert "yesterday" not in str(refused.value)
