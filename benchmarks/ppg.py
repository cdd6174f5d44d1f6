"""The monitor's pulse oximeter on real recordings and on synthetic truth.

``firmware/tools/ppg_windows.cpp``, the core's own code, judges.

SpO2 needs a curve that is fitted; a recording is never judged by a curve that has seen it. The
recordings are in the order of time; those at even places calibrate those at odd places, and the
other way round. The curve in the core is fitted to all of them: what it reaches on them is
shown as what it is, in-sample.

Data: BIDMC PPG and Respiration Dataset 1.0.0, PhysioNet, ODC-By 1.0 (Pimentel et al., IEEE Trans
Biomed Eng 2017;64:1914-23; Goldberger et al., Circulation 2000;101:e215-20); hypoxia recordings of
A. Russo, 2021; MAX30102 recordings of J. Desbonnet, 2017. None of it is part of the project.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import math
import os
import random
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.progress import track

from benchmarks.record import record

ROOT: Final = Path(__file__).resolve().parents[1]
PROGRAM: Final = ROOT / "build" / "firmware" / "ppg_windows"
OUTPUT: Final = Path("build/ppg.json")
DATA: Final = Path(os.environ.get("FAJMA_DATA", ROOT.parent / "shared" / "data"))

EVERY_S: Final = 5  # as often as a monitor reports
CURVE: Final = (75.6, -27.1)  # a + b ln R, that of ppg_oxygen.cpp
SETTLED_S: Final = 10  # of a synthetic recording, before its windows count
MAX_ARMS_PERCENT: Final = 3.0
MAX_HEART_RATE_ERROR: Final = 3.0
MAX_REFUSED: Final = 0.2
FAR_OFF: Final = 10.0  # /min

Counts = tuple[int, int]  # red, infrared


@dataclass(frozen=True, slots=True)
class Window:
    """What the oximeter said at one moment: /min, %, 0 to 100."""

    end_s: float
    heart_rate: float | None
    spo2: float | None
    quality: int
    ratio: float
    swapped: bool


@dataclass(frozen=True, slots=True)
class Judged:
    """A window beside the truth, /min and %; ``spo2`` is None where nobody knows it."""

    window: Window
    heart_rate: float
    spo2: float | None = None


def windows(
    samples: Iterable[Counts], rate_hz: float, every_s: float = EVERY_S, full_scale: int = 1 << 18
) -> list[Window]:
    """What the core makes of a recording."""
    done = subprocess.run(
        [str(PROGRAM), str(rate_hz), str(every_s), str(full_scale)],
        input="\n".join(f"{red},{infrared}" for red, infrared in samples),
        capture_output=True,
        text=True,
        check=True,
    )
    rows = (line.split(",") for line in done.stdout.splitlines())
    return [
        Window(
            end_s=float(row[0]),
            heart_rate=float(row[1]) if row[1] else None,
            spo2=float(row[2]) if row[2] else None,
            quality=int(row[3]),
            ratio=float(row[4]),
            swapped=row[8] == "1",
        )
        for row in rows
    ]


def hypoxia() -> list[tuple[str, Judged]]:
    """Each recording as one window, with the reference oximeter's figures from the file's name."""
    judged = []
    for path in sorted((DATA / "ppg-hypoxia").glob("*.csv")):
        _, spo2, heart_rate = path.stem.strip("_-").split("-")
        with path.open(encoding="utf-8", newline="") as file:
            samples = [
                (round(float(row[6])), round(float(row[5])))
                for row in csv.reader(file)
                if len(row) > 8 and row[1].isdigit()
            ]
        window = windows(samples, rate_hz=64, every_s=60)[-1]
        judged.append((path.stem, Judged(window, float(heart_rate), float(spo2))))
    return judged


def intensive_care() -> list[tuple[str, list[Judged]]]:
    """Each patient's windows beside the monitor's own pulse rate.

    The recordings are one wave in arbitrary units. Infrared is made from it with a pulsation of
    some per cent, and red from infrared; what that says about SpO2 means nothing and is left out.
    """
    patients = []
    for path in track(sorted((DATA / "bidmc").glob("*_pleth.csv.gz")), "BIDMC"):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            wave = [float(row["PLETH"]) for row in csv.DictReader(file)]
        numerics = path.with_name(path.name.replace("_pleth.csv.gz", "_Numerics.csv"))
        with numerics.open(encoding="utf-8", newline="") as file:
            pulse = {
                int(row["Time [s]"]): float(row["PULSE"])
                for row in csv.DictReader(file, skipinitialspace=True)
                if row["PULSE"] != "NaN"
            }
        samples = [(round(100_000 - 2000 * at), round(100_000 - 4000 * at)) for at in wave]
        judged = [
            Judged(one, pulse[int(one.end_s) - 1])
            for one in windows(samples, rate_hz=125)
            if int(one.end_s) - 1 in pulse
        ]
        patients.append((path.name.removesuffix("_pleth.csv.gz"), judged))
    return patients


def bare_sensor() -> list[tuple[str, float, list[Window], list[Window]]]:
    """MAX30102 boards without reference: each sensor as it is, and with its LEDs exchanged."""
    found = []
    for path in sorted((DATA / "ppg-max30102").glob("*.dat")):
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [line.split() for line in lines if not line.startswith("#")]
        for sensor in ("0", "1"):
            own = [row for row in rows if len(row) >= 5 and row[2] == sensor]
            rate_hz = round((len(own) - 1) / (float(own[-1][0]) - float(own[0][0])), 2)
            # brought to the 18 bits of the converter
            samples = [(int(row[3]) // 16, int(row[4]) // 16) for row in own]
            if rate_hz > MAX_RATE_HZ:
                rate_hz /= 2
                samples = samples[::2]
            found.append(
                (
                    f"{path.stem}, sensor {sensor}",
                    rate_hz,
                    windows(samples, rate_hz),
                    windows([(infrared, red) for red, infrared in samples], rate_hz),
                )
            )
    return found


@dataclass(frozen=True, slots=True)
class Scene:
    """What disturbs a synthetic recording; shares of the light."""

    pulsation: float
    noise: float = 0.0001
    bursts: float = 0.0  # of motion, 1 to 3 s long, one in about 12 s


SCENES: Final = {
    "clean": Scene(pulsation=0.02),
    "noise": Scene(pulsation=0.01, noise=0.001),
    "low perfusion": Scene(pulsation=0.002),
    "motion": Scene(pulsation=0.02, bursts=0.03),
}
RATES: Final = tuple(range(30, 221, 10))
MAX_RATE_HZ: Final = 200  # of the core
SYNTHETIC_S: Final = 60
SYNTHETIC_HZ: Final = 100


def _pulse(since_s: float, interval_s: float) -> float:
    """An upright pulse with a dicrotic wave; systole shortens as the root of the interval."""
    root = math.sqrt(interval_s)
    systole = math.exp(-(((since_s / root - 0.18) / 0.08) ** 2) / 2)
    dicrotic = 0.4 * math.exp(-(((since_s / root - 0.46) / 0.09) ** 2) / 2)
    return systole + dicrotic


def synthetic(scene: Scene, rate: float, spo2: float, seed: int) -> list[Judged]:
    """Windows of one synthetic minute. Intervals vary by 3 % with breathing and 2 % by chance."""
    chance = random.Random(seed)  # noqa: S311 - a scene to be repeated, not a secret
    beats = [0.0]
    while beats[-1] < SYNTHETIC_S:
        breathing = 0.03 * math.sin(2 * math.pi * 0.25 * beats[-1])
        beats.append(beats[-1] + 60 / rate * (1 + breathing + chance.gauss(0, 0.02)))
    ratio = math.exp((CURVE[0] - spo2) / -CURVE[1])
    samples = []
    beat = 0
    burst_until, gains, tones = 0.0, (0.0, 0.0), (1.0, 0.0)
    for index in range(SYNTHETIC_S * SYNTHETIC_HZ):
        at_s = index / SYNTHETIC_HZ
        while beats[beat + 1] <= at_s:
            beat += 1
        pulse = _pulse(at_s - beats[beat], beats[beat + 1] - beats[beat])
        if beat > 0:  # the dicrotic wave runs on into the next beat
            pulse += _pulse(at_s - beats[beat - 1], beats[beat] - beats[beat - 1])
        if scene.bursts and at_s > burst_until and chance.random() < 1 / (12 * SYNTHETIC_HZ):
            burst_until = at_s + chance.uniform(1, 3)
            gains = (chance.uniform(0.3, 1), chance.uniform(0.3, 1))
            tones = (chance.uniform(0.7, 4), chance.uniform(0, 2 * math.pi))
        moved = scene.bursts * math.sin(2 * math.pi * tones[0] * at_s + tones[1])
        moved *= at_s < burst_until
        breathing = 0.002 * math.sin(2 * math.pi * 0.25 * at_s)
        samples.append(
            (
                round(120_000 * (1 - ratio * scene.pulsation * pulse + breathing
                                 + gains[0] * moved + chance.gauss(0, scene.noise))),
                round(150_000 * (1 - scene.pulsation * pulse + breathing
                                 + gains[1] * moved + chance.gauss(0, scene.noise))),
            )
        )  # fmt: skip
    judged = []
    for window in windows(samples, SYNTHETIC_HZ):
        held = [at for at in beats if window.end_s - 8 <= at <= window.end_s]
        if window.end_s < SETTLED_S or len(held) < 2:
            continue
        interval_s = statistics.median(b - a for a, b in itertools.pairwise(held))
        judged.append(Judged(window, 60 / interval_s, spo2))
    return judged


def fitted(judged: Sequence[Judged]) -> tuple[float, float]:
    """SpO2 = a + b ln R by least squares: two parameters, and falling with R everywhere."""
    logs = [math.log(one.window.ratio) for one in judged]
    truths = [one.spo2 for one in judged if one.spo2 is not None]
    slope, at_zero = statistics.linear_regression(logs, truths)
    return at_zero, slope


def arms(judged: Sequence[Judged], curve: tuple[float, float] | None = None) -> float:
    """Root mean square of what a curve, or else the core, says against the reference, %."""
    errors = []
    for one in judged:
        said = one.window.spo2
        if curve is not None:
            said = min(100.0, max(50.0, curve[0] + curve[1] * math.log(one.window.ratio)))
        if said is not None and one.spo2 is not None:
            errors.append(said - one.spo2)
    return math.sqrt(statistics.fmean(error**2 for error in errors)) if errors else math.nan


def heart_rate_errors(judged: Iterable[Judged]) -> list[float]:
    """Absolute errors of the windows that were believed, /min, in order."""
    return sorted(
        abs(one.window.heart_rate - one.heart_rate)
        for one in judged
        if one.window.heart_rate is not None
    )


def refused(judged: Sequence[Judged]) -> float:
    """Share of windows without heart rate."""
    return sum(one.window.heart_rate is None for one in judged) / len(judged)


def summary(judged: Sequence[Judged]) -> dict[str, float]:
    """Figures of some windows; ``far_off`` is the share that was believed and wrong."""
    errors = heart_rate_errors(judged)
    far = sum(error > FAR_OFF for error in errors)
    return {
        "windows": len(judged),
        "refused": refused(judged),
        "median": statistics.median(errors) if errors else math.nan,
        "p95": errors[int(0.95 * len(errors))] if errors else math.nan,
        "far_off": far / len(judged),
        "spo2_arms": arms(judged),
        "spo2_windows": sum(one.window.spo2 is not None for one in judged),
    }


def oxygen_on_recordings() -> dict[str, Any]:
    """SpO2 in hypoxia, by curves that have and have not seen a recording."""
    recordings = [one for _, one in hypoxia()]
    believed = [(at, one) for at, one in enumerate(recordings) if one.window.spo2 is not None]
    halves = [[one for at, one in believed if at % 2 == half] for half in (0, 1)]
    curves = [fitted(half) for half in halves]
    across = [arms(halves[1], curves[0]), arms(halves[0], curves[1])]
    both = math.sqrt(
        sum(error**2 * len(half) for error, half in zip(across, reversed(halves), strict=True))
        / len(believed)
    )
    alone = [
        arms([one], fitted([other for _, other in believed if other is not one]))
        for _, one in believed
    ]
    everything = fitted([one for _, one in believed])
    return {
        "recordings": len(recordings),
        "refused": 1 - len(believed) / len(recordings),
        "halves": [len(half) for half in halves],
        "curves": curves,
        "across": across,
        "two_fold": both,
        "leave_one_out": math.sqrt(statistics.fmean(error**2 for error in alone)),
        "everything": everything,
        "in_sample": arms([one for _, one in believed]),
        "heart_rate": summary(recordings),
    }


def _sensor() -> dict[str, Any]:
    return {
        name: {
            "windows": len(right),
            "rate_hz": rate_hz,
            "refused": sum(one.heart_rate is None for one in right) / len(right),
            "heart_rate": statistics.median(rates) if rates else math.nan,
            "ratio": statistics.median(one.ratio for one in right),
            "swapped": any(one.swapped for one in right),
            "exchanged_windows": sum(one.heart_rate is not None for one in exchanged),
            "exchanged_spo2": sum(one.spo2 is not None for one in exchanged),
            "exchanged_seen": exchanged[-1].swapped,
        }
        for name, rate_hz, right, exchanged in bare_sensor()
        for rates in [[one.heart_rate for one in right if one.heart_rate is not None]]
    }


def _synthetic() -> dict[str, Any]:
    found = {}
    for name, scene in SCENES.items():
        by_band: dict[str, list[Judged]] = {"30-50": [], "60-150": [], "160-220": []}
        for seed, rate in enumerate(track(RATES, f"synthetic, {name}")):
            band = "30-50" if rate <= 50 else "60-150" if rate <= 150 else "160-220"
            by_band[band] += synthetic(scene, rate, spo2=(97, 85)[seed % 2], seed=seed)
        found[name] = {band: summary(judged) for band, judged in by_band.items()}
    return found


def build() -> None:
    """Make the program that judges."""
    subprocess.run(
        ["make", "-C", str(ROOT / "firmware"), "--no-print-directory", "ppg_windows"],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def ppg() -> None:
    """SpO2 and heart rate out of sample, and the share of windows that is refused."""
    if not at_hand():
        print("ppg: the real recordings are not at hand, set FAJMA_DATA")
        return
    build()
    oxygen = oxygen_on_recordings()
    patients = intensive_care()
    everybody = [one for _, judged in patients for one in judged]
    care = summary(everybody)
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(
        json.dumps(
            {
                "oxygen": oxygen,
                "care": care,
                "patients": {name: summary(judged) for name, judged in patients},
                "sensor": _sensor(),
                "synthetic": _synthetic(),
            },
            indent=2,
        )
        + "\n",
        encoding="utf-8",
    )
    record(
        "ppg_spo2_arms", oxygen["two_fold"], "% SpO2", aim=f"<= {MAX_ARMS_PERCENT} out of sample",
        met=oxygen["two_fold"] <= MAX_ARMS_PERCENT,
    )  # fmt: skip
    record(
        "ppg_heart_rate_error", care["median"], "/min", aim=f"<= {MAX_HEART_RATE_ERROR}",
        met=care["median"] <= MAX_HEART_RATE_ERROR,
    )  # fmt: skip
    record(
        "ppg_refused", care["refused"], "of windows", aim=f"<= {MAX_REFUSED}",
        met=care["refused"] <= MAX_REFUSED,
    )  # fmt: skip


def at_hand() -> bool:
    """Whether the real recordings are there."""
    return any((DATA / "ppg-hypoxia").glob("*.csv"))
