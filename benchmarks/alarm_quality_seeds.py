"""The seeds of development and of held-out days.

Development days are for looking at, when rules or defaults are chosen. Held-out days are made from
a digest of the defaults themselves: they exist only once the defaults are fixed, and whoever
changes a default afterwards gets other days. ``held_out.json`` keeps the digest and the commit of
the defaults; ``python -m benchmarks.alarm_quality_seeds`` writes it, and is the act of freezing.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Final

from bots.alerts import attention
from bots.alerts.limits import Rules, default_rules

DEVELOPMENT: Final = tuple(range(1, 101))
HELD_OUT_COUNT: Final = 200
FROZEN: Final = Path(__file__).parent / "held_out.json"
DEFAULTS: Final = ("bots/alerts/limits.py", "bots/alerts/attention.py")


def defaults_digest(rules: Rules) -> str:
    """SHA-256, in hex, of every constant by which alarms are decided."""
    constants = [
        {
            "kind": bands.kind,
            "limits": [
                [limit.comparison, str(limit.threshold), limit.priority.name]
                for limit in bands.limits
            ],
            "confirmation": [
                bands.confirmation.needed,
                bands.confirmation.window,
                bands.confirmation.extreme,
            ],
            "hysteresis": str(bands.hysteresis),
            "dwell_s": bands.dwell.total_seconds(),
            "gap_s": bands.gap.total_seconds(),
            "extreme": None if bands.extreme is None else str(bands.extreme),
        }
        for bands in sorted(rules.bands, key=lambda bands: bands.key)
    ]
    told = {
        "further": {track: str(further) for track, further in attention.FURTHER.items()},
        "further_needed": attention.FURTHER_NEEDED,
        "answer_holds_s": attention.ANSWER_HOLDS.total_seconds(),
    }
    return hashlib.sha256(json.dumps([constants, told], sort_keys=True).encode()).hexdigest()


def seeds_of(digest: str) -> tuple[int, ...]:
    """The held-out seeds of a digest; 64 bits each, so that none is a development seed."""
    return tuple(
        int.from_bytes(hashlib.sha256(f"{digest}:{number}".encode()).digest()[:8], "big")
        for number in range(HELD_OUT_COUNT)
    )


def held_out() -> tuple[int, ...]:
    """The held-out seeds, or none if the defaults are not those that were frozen."""
    digest = defaults_digest(default_rules())
    if not FROZEN.exists() or frozen()["defaults_sha256"] != digest:
        return ()
    return seeds_of(digest)


def frozen() -> dict[str, str]:
    """What ``held_out.json`` says."""
    content: dict[str, str] = json.loads(FROZEN.read_text(encoding="utf-8"))
    return content


def _freeze() -> None:
    command = ["git", "log", "-1", "--format=%H", "--", *DEFAULTS]
    commit = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    content = {"defaults_sha256": defaults_digest(default_rules()), "defaults_commit": commit}
    FROZEN.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _freeze()
