"""The database: one `Database` for our tables and for mautrix's crypto and state stores.

SQLite (embedded default) and PostgreSQL behind ``mautrix.util.async_db``. Every clinical value is
sealed before it gets here (``fajma.sealing``); columns in clear are identifiers and times only.
Times are integers, milliseconds since 1970 UTC.
"""

from fajma.store.database import Store, from_ms, to_ms
from fajma.store.hints import Hints
from fajma.store.records import Records

__all__ = ["Hints", "Records", "Store", "from_ms", "to_ms"]
