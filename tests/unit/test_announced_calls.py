"""What clients and servers are told of calls."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from synapse.config.matrixrtc import MatrixRtcConfigModel

from appservice.calls import (
    client_well_known,
    conference_id,
    jitsi_well_known,
    jitsi_widget,
    synapse_settings,
)
from fajma.config import Calls

PAGE = Path(__file__).parents[2] / "docs" / "calls.md"
SITE = Calls(
    jitsi_domain="meet.clinic.example",
    jitsi_token_file=Path("secrets/jitsi-token"),
    livekit_service_url="https://rtc.clinic.example/livekit/jwt",
)


@given(st.text(min_size=1, max_size=255))
def test_jitsi_reads_the_room_back_from_the_name_of_its_conference(room_id: str) -> None:
    name = conference_id(room_id)
    assert re.fullmatch(r"[A-Z2-7]+", name)
    # As Prosody's module does: upper case again, then base32.
    padded = name.lower().upper() + "=" * (-len(name) % 8)
    assert base64.b32decode(padded).decode() == room_id


def test_the_widget_is_what_element_makes_of_a_conference() -> None:
    widget = jitsi_widget(
        "!room:clinic.test", "Consultation 1A2B", domain="meet.test", audio_first=True
    )
    # The data as Element Web's `WidgetUtils.addJitsiWidget` writes it (v1.11 and develop, 2026).
    assert widget["type"] == "jitsi"
    assert widget["data"] == {
        "conferenceId": "EFZG633NHJRWY2LONFRS45DFON2A",
        "roomName": "Consultation 1A2B",
        "isAudioOnly": True,
        "isVideoChannel": False,
        "domain": "meet.test",
        "auth": "openidtoken-jwt",
    }
    assert widget["url"].startswith(
        "https://meet.test/jitsi.html?confId=EFZG633NHJRWY2LONFRS45DFON2A#"
    )
    # Left for the client to fill in, so nobody's name is in the room's state.
    assert "displayName=$matrix_display_name" in widget["url"]


def test_without_a_server_nothing_is_announced() -> None:
    assert client_well_known(Calls()) == {}
    assert synapse_settings(Calls()) == {}


def test_synapse_accepts_the_transport() -> None:
    parsed = MatrixRtcConfigModel(**synapse_settings(SITE)["matrix_rtc"])
    assert parsed.transports == client_well_known(SITE)["org.matrix.msc4143.rtc_foci"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"jitsi_domain": "meet.clinic.example"},  # nobody would check who comes
        {"jitsi_domain": "https://meet.clinic.example", "jitsi_token_file": "token"},
        {"jitsi_domain": "meet.clinic.example/room", "jitsi_token_file": "token"},
        {"livekit_service_url": "http://rtc.clinic.example"},
        {"livekit_service_url": "https://rtc.clinic.example/#a"},
    ],
)
def test_addresses_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Calls(**wrong)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_page_on_calls_shows_exactly_what_has_to_be_served() -> None:
    shown = [json.loads(block) for block in blocks("json")]
    assert client_well_known(SITE) in shown
    assert jitsi_well_known() in shown
    assert synapse_settings(SITE) in [yaml.safe_load(block) for block in blocks("yaml")]
