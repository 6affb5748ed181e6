"""Logs: one JSON object a line on standard error, with nothing in it that could break a line or a terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping

import structlog

#: Longest value in a log line; clients choose names and must not fill disks with them.
MAX_VALUE = 256


def set_up(level: str) -> None:
    """Configures logging for this process, that of asyncio and grpc included."""
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _bounded,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    others = logging.StreamHandler(sys.stderr)
    others.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[others], force=True)


def _bounded(_: object, __: str, line: MutableMapping[str, object]) -> MutableMapping[str, object]:
    """Cuts long values; tracebacks stay whole, they are our own. JSON escapes what does not print."""
    for name, value in line.items():
        if isinstance(value, str) and name != "exception" and len(value) > MAX_VALUE:
            line[name] = value[: MAX_VALUE - 3] + "..."
    return line
