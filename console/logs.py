"""Structured logs: one JSON object a line, or readable lines. Never a vital, a name or a secret.

Libraries write event contents, addresses and statements with their parameters at lower levels, so
all of them are kept at WARNING whatever ``log.level`` says; it is for our own words.
"""

from __future__ import annotations

import logging
import sys
from typing import Final

import structlog

from fajma.config import Log

_OURS: Final = ("fajma", "appservice", "bridges", "bots", "console")


def configure(settings: Log) -> None:
    """Set up logging for the whole process, on standard error."""
    level = getattr(logging, settings.level.upper())
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    logger_class = logging.getLoggerClass()
    structlog.configure(
        processors=[
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    # structlog has just replaced it; mautrix needs its own, which knows `trace`.
    logging.setLoggerClass(logger_class)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))
    # One line for each unsigned device at each look; the watch tells people of them, once.
    logging.getLogger("mau.crypto").setLevel(logging.ERROR)
    for name in _OURS:
        logging.getLogger(name).setLevel(level)
