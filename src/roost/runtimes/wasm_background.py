"""The process that compiles a WebAssembly program by Cranelift while Winch's code runs already: `python -m`, detached, and last in the queue."""

from __future__ import annotations

import os
import sys

from roost.runtimes.wasm_compile import improve
from roost.runtimes.wasm_engine import Options


def main(path: str, digest: str, strategy: str, fuel: str, epochs: str) -> int:
    """0 when the code is there. It may fail: the program runs by Winch's code then."""
    os.nice(19)
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    try:
        improve(path, digest, Options(int(strategy), fuel == "1", epochs == "1"))
    except Exception:
        return 1  # nobody reads what it would say
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
