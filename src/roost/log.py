"""Structured logs with the object's name in a context variable, and background tasks that are kept and named."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Coroutine
from typing import Any, TextIO, cast

import structlog

bind = structlog.contextvars.bound_contextvars
"""`with bind(machine="web"):` puts the name on every line logged inside."""

_tasks: set[asyncio.Task[Any]] = set()


def get(name: str) -> structlog.typing.FilteringBoundLogger:
    """The logger of a module."""
    return cast("structlog.typing.FilteringBoundLogger", structlog.get_logger(module=name))


def setup(stream: TextIO = sys.stderr, *, debug: bool = False) -> None:
    """Send logs to `stream`, one JSON object a line."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if debug else logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )


def spawn_task(coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
    """Run a coroutine in the background: the task is referenced until it ends, and a failure is logged, never lost."""
    task = asyncio.get_running_loop().create_task(coroutine, name=name)
    _tasks.add(task)
    task.add_done_callback(_finished)
    return task


def _finished(task: asyncio.Task[Any]) -> None:
    _tasks.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        get(__name__).error("background task failed", task=task.get_name(), exc_info=error)
