"""Runs one program from its file to its exit code: what it is, which runtime, its sandbox, its supervision, how it ended."""

from __future__ import annotations

import os
import time

from roost.errors import NotFound, RoostError, Unavailable
from roost.host.sandbox import Boxed
from roost.light import Any, Callable, Mapping, TypedDict, Unpack, signal
from roost.runtimes import detect, registry
from roost.runtimes.base import (
    FAILED,
    LIMIT,
    MISSING,
    UNKNOWN,
    Command,
    Ending,
    Found,
    Policy,
    Progress,
    Request,
    Result,
    Runtime,
    silent,
)  # fmt: skip
from roost.runtimes.session import Observe, Session
from roost.runtimes.supervision import End

_TAIL = 4096
"""Bytes of stderr that a runtime sees to say what went wrong."""
_PREPARED_OUTPUT = 64 << 10


class Stdio(TypedDict, total=False):
    """Descriptors that the program has as its own (0, 1, 2 unless given; -1 is /dev/null), or `capture` for what it prints."""

    stdin: int
    stdout: int
    stderr: int
    capture: bool


def run(
    request: Request,
    *,
    found: Found | None = None,
    progress: Progress = silent,
    started: Callable[[Boxed], None] | None = None,
    observe: Observe | None = None,
    **stdio: Unpack[Stdio],
) -> Result:
    """Run a program to its end under its policy; the descriptors are its own, unless its output is counted or captured.

    `started` is told once it runs; `observe` is for `learning`. Signals that this process gets meanwhile are the program's (in the main
    thread). Raises RoostError when it did not begin: `exit_code` knows what the command line makes of that. Killed, it leaves nothing.
    """
    _fill_standard()
    clock = _Clock()
    found = detect.detect(request.file) if found is None else found
    runtime = choose(found, request.vm)
    clock.lap("detect")
    prepared = runtime.prepare(found, request, progress)
    command = runtime.command(found, request, prepared)
    clock.lap("prepare")
    fds = (stdio.get("stdin", 0), stdio.get("stdout", 1), stdio.get("stderr", 2))
    with Session(request, command, fds, capture=stdio.get("capture", False)) as session:
        session.start(started, observe)
        clock.lap("start")
        end = session.finish()
    clock.lap("run")
    output, errors = session.captured()
    ending = _classify(runtime, found, ending_of(end, request.policy), errors)
    return Result(
        ending=ending,
        runtime=runtime.name,
        layers=session.layers,
        missing=session.missing,
        refusals=session.refused(ending),
        stdout=output,
        stderr=errors,
        timing=clock.laps,
        usage={"cpu": round(end.cpu, 6), "memory": end.memory},
    )


def _fill_standard() -> None:
    """What we open must never become what a program takes for its standard input or output, because that was closed."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)  # the lowest free number, so this one


def run_command(command: Command, policy: Policy, *, name: str = "prepare") -> tuple[Ending, bytes]:
    """Run a step of a runtime's preparation in a sandbox, without input: how it ended, and its output, at most 64 KiB. Raises RoostError."""
    bounded = policy._replace(output=min(policy.output or _PREPARED_OUTPUT, _PREPARED_OUTPUT))
    with Session(Request(file=name, policy=bounded), command, (-1, -1, -1), capture=True) as session:
        session.start()
        end = session.finish()
    return ending_of(end, bounded), b"".join(session.captured())


def choose(found: Found, vm: str = "") -> Runtime:
    """The runtime for a file, which has all it needs. Raises what `registry.choose` raises, and Unavailable when something is missing."""
    runtime = registry.choose(found, vm)
    lacking = runtime.needs(found)
    if lacking:
        why = f"{registry.describe(found)} needs {', '.join(need.what for need in lacking)}, which this host lacks"
        areas = [f"roost doctor {need.area} --fix" if need.area else need.install for need in lacking]
        raise Unavailable("the program can not run", why, " && ".join(dict.fromkeys(areas)))
    return runtime


def exit_code(error: RoostError) -> int:
    """What `roost run` exits with when a program did not begin."""
    if isinstance(error, NotFound):
        return UNKNOWN
    return MISSING if isinstance(error, Unavailable) else FAILED


def document(result: Result) -> dict[str, Any]:
    """A result as `--status-json` writes it: plain values, without what was captured. Pure."""
    values = result._asdict()
    del values["stdout"], values["stderr"]
    return {name: _plain(value) for name, value in values.items()}


def ending_of(end: End, policy: Policy) -> Ending:
    """The raw ending of a program, before its runtime has looked at it. Pure."""
    limit = end.limit
    if end.failure:
        return Ending(FAILED, "failed", message=f"it could not be executed: {end.failure}")
    if _used_up(end, policy.cpu_time):
        limit = "cpu_time"
    if limit:
        return Ending(LIMIT, "limit", limit=limit, message=_LIMITS[limit](policy))
    if end.interrupted:
        return Ending(
            128 + end.signal, "signal", end.signal, message="it did not end on Ctrl-C and was killed on the second one"
        )
    if end.signal:
        return Ending(128 + end.signal, "signal", end.signal, message=f"it was killed by {_name(end.signal)}")
    return Ending(end.code)


def _used_up(end: End, limit: float | None) -> bool:
    """Whether the kernel ended it at its limit of CPU time, also where a runtime in between made an exit code of that."""
    if limit is None or end.limit:
        return False
    told = end.signal == signal.SIGXCPU
    return told or (end.cpu >= limit and (end.signal == signal.SIGKILL or end.code == 128 + signal.SIGXCPU))


_LIMITS: Mapping[str, Callable[[Policy], str]] = {
    "wall": lambda policy: f"it ran longer than {policy.wall:g} s and was stopped; --wall allows more",
    "memory": lambda policy: (
        f"it needed more than {_size(policy.memory)} of memory and was stopped; --memory allows more"
    ),
    "cpu_time": lambda policy: f"it used {policy.cpu_time:g} s of CPU time and was stopped; --cpu-time allows more",
    "output": lambda policy: f"it printed more than {_size(policy.output)} and was stopped; --output allows more",
}


def _size(size: int | None) -> str:
    if size is None:
        return "what is kept"
    unit, name = next(
        (
            (unit, name)
            for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
            if size and size % unit == 0
        ),
        (1, "bytes"),
    )
    return f"{size // unit} {name}" if unit == 1 else f"{size // unit}{name}"


def _name(number: int) -> str:
    try:
        from signal import Signals

        return Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _classify(runtime: Runtime, found: Found, ending: Ending, errors: bytes) -> Ending:
    """The runtime knows what its exit codes mean; what we ended ourselves is no matter of its."""
    if ending.reason == "limit":
        return ending
    return runtime.classify(found, ending, errors[-_TAIL:])


def _plain(value: Any) -> Any:
    if isinstance(value, Ending):
        return value._asdict()
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value


class _Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, phase: str) -> None:
        now = time.monotonic()
        self.laps[phase] = round(now - self._last, 6)
        self._last = now
