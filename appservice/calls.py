"""What clients and servers are told of calls: the widget of a conference, the addresses. Pure.

docs/calls.md says which client can join what.
"""

from __future__ import annotations

import base64
from typing import Any, Final

from fajma.config import Calls

JITSI_AUTH: Final = "openidtoken-jwt"
"""Each participant brings an OpenID token of his homeserver, which our Jitsi has us check."""

# What Element fills in when it loads the page (its `getLocalJitsiWrapperUrl`). Element shows a page
# of its own in place of this address; what matters to it is `data`.
_WRAPPER: Final = (
    "jitsi.html?confId={conference}#conferenceDomain=$domain&conferenceId=$conferenceId"
    "&isAudioOnly=$isAudioOnly&isVideoChannel=$isVideoChannel&displayName=$matrix_display_name"
    "&avatarUrl=$matrix_avatar_url&userId=$matrix_user_id&roomId=$matrix_room_id&theme=$theme"
    f"&roomName=$roomName&language=$org.matrix.msc2873.client_language&auth={JITSI_AUTH}"
)


def conference_id(room_id: str) -> str:
    """Name of a room's only conference: base32 without padding, from which Jitsi reads the room."""
    return base64.b32encode(room_id.encode()).decode().rstrip("=")


def jitsi_widget(room_id: str, name: str, *, domain: str, audio_first: bool) -> dict[str, Any]:
    """Content of the widget, as Element makes it when somebody starts a conference.

    Args:
        room_id: of the consultation.
        name: shown as the subject of the conference, known to the Jitsi server: nothing medical.
        domain: of the Jitsi server.
        audio_first: whether it begins without pictures.
    """
    conference = conference_id(room_id)
    return {
        "type": "jitsi",
        # A client that opens it after all reaches the site's own server and nobody else's.
        "url": f"https://{domain}/{_WRAPPER.format(conference=conference)}",
        "name": "Jitsi",
        "data": {
            "conferenceId": conference,
            "roomName": name,
            "isAudioOnly": audio_first,
            "isVideoChannel": False,
            "domain": domain,
            "auth": JITSI_AUTH,
        },
    }


def client_well_known(calls: Calls) -> dict[str, Any]:
    """What ``https://SERVER_NAME/.well-known/matrix/client`` holds for calls, beside the rest."""
    told: dict[str, Any] = {}
    if calls.jitsi_domain is not None:
        told["im.vector.riot.jitsi"] = {"preferredDomain": calls.jitsi_domain}
    if calls.livekit_service_url is not None:
        told["org.matrix.msc4143.rtc_foci"] = [_livekit(calls.livekit_service_url)]
    return told


def jitsi_well_known() -> dict[str, str]:
    """``https://JITSI_DOMAIN/.well-known/element/jitsi``, to be served to any origin (CORS)."""
    return {"auth": JITSI_AUTH}


def synapse_settings(calls: Calls) -> dict[str, Any]:
    """What homeserver.yaml holds so that Synapse itself names the transport (MSC4143).

    Synapse 1.163 serves it at ``/_matrix/client/unstable/org.matrix.msc4143/rtc/transports``.
    """
    if calls.livekit_service_url is None:
        return {}
    return {
        "experimental_features": {"msc4143_enabled": True},
        "matrix_rtc": {"transports": [_livekit(calls.livekit_service_url)]},
    }


def _livekit(service_url: str) -> dict[str, str]:
    return {"type": "livekit", "livekit_service_url": service_url}
