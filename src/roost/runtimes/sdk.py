"""`roost.run`: a program of any kind in a sandbox, from Python, without a daemon."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypedDict, Unpack, cast

from roost.errors import OutcomeUnknown, RoostError
from roost.host import workers
from roost.model.completed import Completed
from roost.runtimes import execution, policy
from roost.runtimes.base import Ending, Request, Result

_FLOOR = 500
"""Descriptors of a fresh interpreter from here on are ours."""


class PolicyFields(TypedDict, total=False):
    """What a program may do, as `roost run` takes it: texts, numbers (bytes, seconds), mappings, or the tuples of `roost.runtimes.base`.
    What is not said is not allowed; None lifts a limit."""

    fs: Sequence[Any]
    """["./data:ro", "./out:/out"]: lent to read and write unless :ro."""
    env: Mapping[str, str | None] | Sequence[str]
    """Variables; None takes the caller's value."""
    net: Sequence[Any]
    """["example.org:443"]: TCP services it may connect to."""
    publish: Sequence[Any]
    """["8080:80"]: ports of this host (127.0.0.1) that lead to it."""
    memory: str | int | None
    cpu_time: str | float | None
    wall: str | float | None
    processes: int
    files: int
    output: str | int | None
    tmp: str | int
    fuel: int | None
    gui: bool
    require: Sequence[str]


class CompletedProgram(Completed, frozen=True):
    """A program that ended: what it was called with, what it exits with (as `roost run` does), what it printed, and how it went."""

    result: Result

    @property
    def ending(self) -> Ending:
        """Whether it exited, was killed by a signal, trapped, or hit a limit."""
        return self.result.ending

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers of isolation that held."""
        return self.result.layers

    @property
    def refusals(self) -> tuple[str, ...]:
        """What it was refused, and the flag that would allow it."""
        return self.result.refusals

    def _failure(self) -> str:
        failure = f"exit code {self.code}: {self.ending.message}" if self.ending.message else super()._failure()
        return "\n".join([failure, *(f"refused: {line}" for line in self.refusals)])


def run(
    file: str | os.PathLike[str],
    *arguments: str,
    stdin: bytes | str | int | None = b"",
    capture: bool = True,
    check: bool = False,
    cwd: str | os.PathLike[str] = "",
    vm: str = "",
    **allowed: Unpack[PolicyFields],
) -> CompletedProgram:
    """Run a program to its end: `roost.run("app.wasm", "arg", fs=["./data:ro"]).stdout`.

    `stdin` is its input, a descriptor of it, or None for the caller's own. Without `capture` it prints to the caller's stdout and stderr; of
    captured output 64 MiB are taken, unless `output` says otherwise. `cwd` is what relative paths refer to (default: the current directory),
    `vm` the runtime (default: the best one for the file's content). `check=True` is `.check()`.

    In the main thread, signals that this process gets meanwhile are the program's. Raises RoostError when it did not begin: NotFound,
    Unavailable (its runtime is missing), Invalid (the policy), NotStarted.
    """
    here = os.path.abspath(cwd or os.getcwd())
    path = os.fspath(file)
    request = Request(os.path.join(here, path), arguments, policy.from_mapping(allowed, here), here, vm, path)
    with _input(stdin) as descriptor:
        result = _run(request, descriptor, capture)
    done = CompletedProgram((path, *arguments), result.ending.code, result.stdout, result.stderr, result)
    return done.check() if check else done


def _run(request: Request, stdin: int, capture: bool) -> Result:
    """In this process if it has one thread; else in another one, because a sandbox can not be made beside threads that may hold locks.

    One thread is not enough for the fork of a process that has run WASI: it has what wasmtime began there, without the threads of it.
    """
    if not _has_run_wasi() and len(os.listdir("/proc/self/task")) == 1:
        return execution.run(request, stdin=stdin, capture=capture)
    ours, theirs = os.pipe()
    with open(ours, "rb") as pipe:
        try:
            begin = _spawned if _has_run_wasi() else _forked
            worker = begin(request, stdin, theirs, capture)
        finally:
            os.close(theirs)
        try:
            answer = pickle.load(pipe)
        except EOFError:
            what = f"the end of {request.name} is not known"
            raise OutcomeUnknown(what, "the process that ran it was killed") from None
        finally:
            worker.wait()
    if isinstance(answer, RoostError):
        raise answer
    return cast(Result, answer)


def _has_run_wasi() -> bool:
    program = sys.modules.get("roost.runtimes.wasm_program")  # not imported for this alone
    return program is not None and bool(program.has_run_wasi())


def _forked(request: Request, stdin: int, pipe: int, capture: bool) -> workers.Worker:
    def child() -> int:
        _answer(request, stdin, pipe, capture)
        return 0

    return workers.fork_worker(child)


def _spawned(request: Request, stdin: int, pipe: int, capture: bool) -> workers.Worker:
    """A fresh interpreter: what wasmtime has begun in this process for WASI does not work in a fork of it."""
    asked = os.memfd_create("request", os.MFD_CLOEXEC)
    try:
        os.write(asked, pickle.dumps((request, capture)))
        os.lseek(asked, 0, os.SEEK_SET)
        code = f"from roost.runtimes.sdk import serve; serve({_FLOOR}, {_FLOOR + 1})"
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        return workers.spawn_worker([sys.executable, "-c", code], environ, {0: stdin, _FLOOR: asked, _FLOOR + 1: pipe})
    finally:
        os.close(asked)


def serve(asked: int, pipe: int) -> None:
    """In the fresh interpreter: run what the descriptor `asked` holds, and write the result to `pipe`."""
    with open(asked, "rb") as file:
        request, capture = pickle.load(file)
    _answer(request, 0, pipe, capture)


def _answer(request: Request, stdin: int, pipe: int, capture: bool) -> None:
    answer: Result | RoostError
    try:
        answer = execution.run(request, stdin=stdin, capture=capture)
    except RoostError as error:
        answer = error
    with open(pipe, "wb") as file:
        pickle.dump(answer, file)


@contextmanager
def _input(given: bytes | str | int | None) -> Iterator[int]:
    """A descriptor to read it from: a file in memory, so that nobody has to feed a pipe."""
    if given is None or isinstance(given, int):
        yield 0 if given is None else given
        return
    descriptor = os.memfd_create("stdin", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(given.encode() if isinstance(given, str) else given)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)
