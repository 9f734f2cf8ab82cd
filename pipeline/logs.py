"""Logging: a constant event in the past tense, facts as fields, on stderr.

Each line carries its own job, sample or worker as fields: one thread of a worker serves hundreds of samples at once, so
there is no context of a task to take them from.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from pipeline.settings import Settings
from pipeline.texts import escaped_json, visible


def _show(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A fact may quote what a model or a user wrote, and a terminal may show the log."""
    return {name: visible(fact) if isinstance(fact, str) else fact for name, fact in event.items()}


class _VisibleFormatter(logging.Formatter):
    """Of other libraries' lines, whose errors may quote what a model or a user wrote."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def _render_json(logger: object, method: str, event: MutableMapping[str, Any]) -> str:
    rendered = structlog.processors.JSONRenderer()(logger, method, event)
    return escaped_json(rendered if isinstance(rendered, str) else rendered.decode())


def configure_logging(settings: Settings) -> None:
    """Set up this process's log; call once, at its edge."""
    level = logging.getLevelName(settings.log_level.upper())
    renderer: structlog.typing.Processor = (
        _render_json if settings.log_format == "json" else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    shown = [] if settings.log_format == "json" else [_show]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            *shown,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_VisibleFormatter("%(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler])
