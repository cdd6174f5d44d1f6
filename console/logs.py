"""Structured logs: one JSON object a line, or readable lines. Never a vital, a name or a secret.

Libraries that would write event contents or addresses at lower levels are kept at WARNING.
"""

from __future__ import annotations

import logging
import sys
from typing import Final

import structlog

from fajma.config import Log

_TALKATIVE: Final = ("mau", "nio", "aiohttp", "amqtt", "transitions", "peewee", "paho", "asyncio")


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
    root.setLevel(level)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
