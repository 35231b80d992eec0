"""The clock that ends guests whose time is up: it moves the epochs of Wasmtime's engines on while somebody waits for that."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from roost.runtimes.libwasmtime import library
from roost.runtimes.wasm_engine import Options, engine

TICK = 0.01
"""Seconds between two epochs, so the error of a time limit: up to two of them too long."""


class Ticker:
    """One thread for all engines of this process; it sleeps while nobody is timed."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: dict[int, int] = {}
        self._process = 0

    @contextmanager
    def running(self, options: Options, wall: float) -> Iterator[int]:
        """Give the deadline, in ticks from now, of a guest that may run `wall` seconds; the epochs move while the block runs."""
        pointer = engine(options)
        with self._changed:
            if self._process != os.getpid():  # the thread does not follow us through a fork
                self._process, self._running = os.getpid(), {}
                threading.Thread(target=self._tick, name="wasm-ticks", daemon=True).start()
            self._running[pointer] = self._running.get(pointer, 0) + 1
            self._changed.notify()
        try:
            yield math.ceil(wall / TICK) + 1
        finally:
            with self._changed:
                self._running[pointer] -= 1
                if not self._running[pointer]:
                    del self._running[pointer]

    def _tick(self) -> None:
        waiter = threading.Event()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._running))
                pointers = list(self._running)
            waiter.wait(TICK)
            for pointer in pointers:
                library().wasmtime_engine_increment_epoch(pointer)


ticker = Ticker()
"""The one of this process."""
