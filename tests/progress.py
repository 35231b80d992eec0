"""Says how a run goes while it goes: failures at once, what takes long, and an end to a test that hangs where no timeout reaches.

A run that is cut from outside (continuous integration has its limit) has then named what failed and what it was at.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator

import pytest

LONG = 60.0
"""Seconds from which a test is named when it is over."""
EVERY = 300.0
"""Seconds between two lines that say what is running."""
STUCK = 420.0
"""Seconds after which a worker that is still at one test is ended; pytest-timeout has tried at 300 already (it rings but once:
a test that fails and then hangs in what it undoes has no other end)."""


class Progress:
    """What the one process that reports knows: which tests run, since when (seconds of the monotonic clock)."""

    def __init__(self, config: pytest.Config) -> None:
        self._begin = time.monotonic()
        self._running: dict[str, float] = {}
        self._said = self._begin
        self._config = config

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._running[nodeid] = time.monotonic()

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._say(f"FAILED ({report.when}) {report.nodeid}\n{_tail(report.longreprtext)}")
        if time.monotonic() - self._said > EVERY:
            self._said = time.monotonic()
            self._say(
                "at " + ", ".join(f"{name} ({self._said - since:.0f} s)" for name, since in self._running.items())
            )

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        took = time.monotonic() - self._running.pop(nodeid, time.monotonic())
        if took > LONG:
            self._say(f"{nodeid} took {took:.0f} s")

    def _say(self, text: str) -> None:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.ensure_newline()
            reporter.write_line(f"[{time.monotonic() - self._begin:5.0f} s] {text}")
            sys.stdout.flush()


class Watchdog:
    """Ends the process that is at one test, all its fixtures included, for too long: its stacks tell where."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        limit = item.get_closest_marker("timeout")
        timer = threading.Timer(STUCK + (limit.args[0] if limit and limit.args else 0.0), _end, (item.nodeid,))
        timer.daemon = True
        timer.start()
        try:
            return (yield)
        finally:
            timer.cancel()


def install(config: pytest.Config) -> None:
    """Register both: the report where reports arrive, the watchdog where tests run."""
    worker = hasattr(config, "workerinput")
    if not worker:
        config.pluginmanager.register(Progress(config), "roost-progress")
    if worker or not config.getoption("numprocesses", None):
        config.pluginmanager.register(Watchdog(), "roost-watchdog")


def _tail(text: str) -> str:
    return "\n".join(f"    {line[:300]}" for line in text.splitlines()[-25:])


def _end(name: str) -> None:
    os.write(2, f"\nstuck in {name}: the worker is ended\n".encode())
    faulthandler.dump_traceback(file=sys.__stderr__ or 2)
    os._exit(70)
