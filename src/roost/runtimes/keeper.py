"""The keeper of one program of the daemon: runs it once, keeps what it prints, writes down how it ended; outlives the daemon.

`python -m roost.runtimes.keeper DIRECTORY LOCK`: the daemon starts it in a session of its own. LOCK is a descriptor whose flock it holds while
it lives, so that there are never two. A SIGTERM goes on to the program; with a SIGKILL the program ends too, and the daemon says so.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roost.errors import RoostError
from roost.host import files
from roost.host.outputlog import PROGRAM_LIMIT, OutputLog
from roost.host.paths import ProgramFiles
from roost.host.sandbox import Boxed
from roost.runtimes import execution, registry, strangers
from roost.runtimes.base import FAILED, Ending, Grant, Peer, Policy, Published, Request, Result
from roost.runtimes.detect import detect

REQUEST = 4 << 20
"""Bytes that a request may have: the API takes documents of 1 MiB, which JSON may write out longer."""

_RATE = 4 << 20
"""Bytes per second taken from a program that prints more than it should: it is slowed down, never stopped."""
_BURST = 8 << 20
_PIECE = 64 << 10
_DRAIN = 10.0
"""Seconds that the last of the output may take to be written."""


class _Recorder:
    """What comes through a pipe into the log, at a bounded rate."""

    def __init__(self, log: OutputLog) -> None:
        self._log = log
        self._source, self.target = os.pipe()
        self._thread = threading.Thread(target=self._read, name="output", daemon=True)
        self._pause = threading.Event()
        self._started = False

    def start(self) -> None:
        """Read from now on; until then a pipe's worth waits. Not before the sandbox has been forked: a fork copies one thread only."""
        if not self._started:
            self._started = True
            self._thread.start()

    def finish(self) -> None:
        """Close our end, and return when all that was printed is written."""
        os.close(self.target)
        self.start()
        self._thread.join(_DRAIN)

    def _read(self) -> None:
        allowance, last = float(_BURST), time.monotonic()
        while data := os.read(self._source, _PIECE):
            self._log.write(data)
            now = time.monotonic()
            allowance = min(_BURST, allowance + (now - last) * _RATE) - len(data)
            last = now
            if allowance < 0:
                self._pause.wait(-allowance / _RATE)


class Keeper:
    """One start of one program."""

    def __init__(self, program: ProgramFiles) -> None:
        self._files = program
        self._asked: dict[str, Any] = json.loads(files.read_bounded(program.request, REQUEST))
        self._state: dict[str, Any] = {"run": self._asked["run"], "process": identity(), "phase": "starting"}
        self._recorder = _Recorder(OutputLog(program.log, PROGRAM_LIMIT))

    def run(self) -> None:
        """Run it to its end, whatever that is, and write the result."""
        self._tell(phase="starting")
        began = time.time()
        nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        printed = self._recorder.target
        try:
            request = request_of(self._asked)
            found = detect(request.file)
            if not self._asked["trusted"]:
                os.environ["PATH"] = strangers.PATH
                strangers.check(found, request, os.environ["ROOST_CACHE"])
            self._state["runtime"] = registry.choose(found, request.vm).name
            done = execution.run(
                request, found=found, stdin=nothing, stdout=printed, stderr=printed, started=self._started
            )
        except RoostError as error:
            told = _refused(error)
        except Exception as error:  # whatever it is, the daemon must learn that this start is over
            told = _ended(Ending(FAILED, "failed", message=f"a fault in Roost itself: {type(error).__name__}: {error}"))
        else:
            told = _finished(done)
            if not self._asked["trusted"]:
                told["refusals"] = list(strangers.without_hints(done.refusals))
        self._recorder.finish()
        told |= {"run": self._asked["run"], "started": began, "ended": time.time()}
        self._write(self._files.result, told)

    def _started(self, boxed: Boxed) -> None:
        """The program runs."""
        self._recorder.start()
        self._tell(phase="running", layers=list(boxed.layers), missing=list(boxed.missing), started=time.time())

    def _tell(self, **changes: Any) -> None:
        self._state |= changes
        self._write(self._files.state, self._state)

    @staticmethod
    def _write(path: Path, value: Mapping[str, Any]) -> None:
        files.atomic_write(path, json.dumps(value).encode(), durable=False)


def identity() -> dict[str, Any]:
    """What tells this process apart from any other, as roost.model.machine.Process has it."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()  # field 22 is the start: proc_pid_stat(5)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {"pid": os.getpid(), "start": int(fields[19]), "uid": os.getuid(), "boot": boot}


def request_of(asked: Mapping[str, Any]) -> Request:
    """The request that the daemon wrote down."""
    policy = policy_of(asked["policy"])
    return Request(asked["file"], tuple(asked["arguments"]), policy, asked["cwd"], asked["vm"])


def policy_of(given: Mapping[str, Any]) -> Policy:
    """A policy from the fields of roost.model.program.PolicySpec, which checked them."""
    words = {name: given[name] for name in Policy._fields if name in given}
    return Policy(**words)._replace(
        fs=tuple(Grant(it["source"], it["target"] or it["source"], it["writable"]) for it in given["fs"]),
        env=tuple(given["env"].items()),
        net=tuple(_peer(text) for text in given["net"]),
        publish=tuple(Published(it["host_ip"], it["host_port"], it["port"]) for it in given["publish"]),
        require=tuple(given["require"]),
    )


def _peer(text: str) -> Peer:
    host, _, port = text.rpartition(":")
    return Peer(host.strip("[]"), int(port))


def _finished(done: Result) -> dict[str, Any]:
    kept = {name: list(getattr(done, name)) for name in ("layers", "missing", "refusals")}
    return _ended(done.ending) | kept | {"runtime": done.runtime, "usage": dict(done.usage)}


def _ended(ending: Ending) -> dict[str, Any]:
    return {"exit": {**ending._asdict(), "signal": int(ending.signal)}}


def _refused(error: RoostError) -> dict[str, Any]:
    """A start that did not come to be, as `roost run` would tell it."""
    code = execution.exit_code(error)
    words = {"what": error.what, "why": error.why, "fix": error.fix, "code": error.code}
    return _ended(Ending(code, "failed", message=error.what)) | {"error": words}


def main(directory: str, lock: str) -> None:
    """Keep the program of this directory; `lock` is the number of the descriptor that is ours to hold."""
    os.set_inheritable(int(lock), False)
    Keeper(ProgramFiles(Path(directory))).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
