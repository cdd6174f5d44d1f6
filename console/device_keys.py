"""The payload keys of one v2 monitor as a file, from where they are made to where they are used."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fajma.errors import InputError
from fajma.vitals import DeviceId
from fajma.wire import KEY_BYTES, KEY_VERSIONS, PayloadKey, parse_device_id


@dataclass(frozen=True, slots=True)
class DeviceKeys:
    """What a monitor seals and opens with.

    Attributes:
        device: the monitor.
        version: which pair of its keys this is, 1 to 65535. A monitor without a journal begins its
            record numbers at version x 2^32, above all that it may have used before.
        up: seals what it says.
        down: opens what it is told.
    """

    device: DeviceId
    version: int
    up: PayloadKey
    down: PayloadKey

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a file that ``as_text`` filled.

        Raises:
            InputError: ``bad_key_file``.
        """
        try:
            stated = json.loads(path.read_text(encoding="ascii"))
            device, version = parse_device_id(stated["device"]), stated["version"]
            up, down = bytes.fromhex(stated["up"]), bytes.fromhex(stated["down"])
        except (OSError, ValueError, LookupError, TypeError, InputError) as error:
            raise _bad_key_file(path) from error
        if type(version) is not int or version not in KEY_VERSIONS:
            raise _bad_key_file(path)
        if len(up) != KEY_BYTES or len(down) != KEY_BYTES:
            raise _bad_key_file(path)
        return cls(device, version, PayloadKey(up), PayloadKey(down))


def as_text(device: DeviceId, version: int, raw: bytes) -> str:
    """A pair of keys as JSON, a secret.

    Args:
        device: whose keys.
        version: which of them.
        raw: the uplink key, then the downlink key.
    """
    up, down = raw[:KEY_BYTES].hex(), raw[KEY_BYTES:].hex()
    return json.dumps({"device": device, "version": version, "up": up, "down": down}) + "\n"


def _bad_key_file(path: Path) -> InputError:
    return InputError(
        f"{path} does not hold the keys of a monitor: make one with `fajma device keys`",
        code="bad_key_file",
    )
