"""``python -m benchmarks [NAME]``: all figures, or one."""

from __future__ import annotations

import sys

from benchmarks.alarm_engine import alarm_engine
from benchmarks.alarm_latency import alarm_latency, alarm_latency_loaded
from benchmarks.alarm_quality import alarm_quality
from benchmarks.alarm_quality_real import alarm_quality_real
from benchmarks.alternative import ingest_alternative
from benchmarks.consultations import open_consultation, thousand_consultations
from benchmarks.demo import demo_first_vital_s, run_memory_mb
from benchmarks.firmware_size import firmware_size, wire_bytes
from benchmarks.fleet import fleet_10k
from benchmarks.ingest import ingest
from benchmarks.ppg import ppg
from benchmarks.publish import patient_day_bytes, publish_100
from benchmarks.rest import rest_read_p99

ALL = {
    one.__name__: one
    for one in (
        demo_first_vital_s,
        run_memory_mb,
        alarm_latency,
        alarm_latency_loaded,
        ingest,
        ingest_alternative,
        fleet_10k,
        publish_100,
        patient_day_bytes,
        rest_read_p99,
        open_consultation,
        thousand_consultations,
        alarm_engine,
        alarm_quality,
        alarm_quality_real,
        ppg,
        firmware_size,
        wire_bytes,
    )
}

names = sys.argv[1:] or list(ALL)
unknown = [name for name in names if name not in ALL]
if unknown:
    sys.exit(f"no benchmark {', '.join(unknown)}; there are: {', '.join(ALL)}")
for name in names:
    ALL[name]()
