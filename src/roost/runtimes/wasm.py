"""WebAssembly programs: modules for WASI preview 1, components for WASI preview 2, and the text form of both."""

from __future__ import annotations

import os

from roost.errors import Invalid, RoostError, Unavailable
from roost.light import Any, Mapping, NamedTuple
from roost.runtimes import wasm_call, wasm_kept
from roost.runtimes.base import (
    FAILED,
    LIMIT,
    TRAPPED,
    Command,
    Ending,
    Found,
    Mount,
    Need,
    Progress,
    Request,
    silent,
)
from roost.runtimes.libwasmtime import FIX, VERSIONS, find
from roost.runtimes.plan import ENVIRONMENT
from roost.runtimes.wasm_call import Call, Report
from roost.runtimes.wasm_compile import Artefact, artefact_of_file
from roost.runtimes.wasm_engine import Options, Stop
from roost.runtimes.wasm_program import Command as Program
from roost.runtimes.wasm_program import Component
from roost.runtimes.wasm_wasi import Guest, Preopen, preopens, root
from roost.runtimes.wasm_words import functions, is_text

_KINDS = ("wasm", "component", "wat")
_SCRIPTS = ("script", "pyz")


class Prepared(NamedTuple):
    """Code that is mapped and linked, the run of it, its arguments, and what the sandbox must show for it."""

    program: Program | Component | Artefact
    request: Request
    words: tuple[bytes, ...]
    mounts: tuple[Mount, ...]


class WasmRuntime:
    """Runs the program in the sandboxed process itself, by Wasmtime. One object for one run: `classify` tells what its guest reported."""

    name = "wasm"

    def __init__(self) -> None:
        self._report = Report()

    def probe(self) -> Mapping[str, Any]:
        """Where Wasmtime's library is, and its version."""
        from roost.runtimes import libwasmtime

        try:
            path = find()
        except RoostError:
            return {}
        directory = path[: path.rindex("/wasmtime/")]
        return {"wasmtime": libwasmtime.version(directory), "library": path}

    def score(self, found: Found) -> int:
        """Its own kinds, and what Python runs where it was asked for by name."""
        if found.kind in _SCRIPTS:
            from roost.runtimes import cpython_wasm

            return 1 if cpython_wasm.fits(found) else 0
        return 100 if found.kind in _KINDS else 0

    def needs(self, found: Found) -> tuple[Need, ...]:
        """The wheel, which comes with Roost; for scripts an interpreter too."""
        try:
            find()
        except RoostError:
            return (Need(f"the Python package wasmtime {VERSIONS[0]}", FIX),)
        if found.kind in _SCRIPTS:
            from roost.runtimes import cpython_wasm

            return () if cpython_wasm.find() else (cpython_wasm.NEED,)
        return ()

    def prepare(self, found: Found, request: Request, progress: Progress = silent) -> Prepared:
        """Compile it, or map its compiled code, and link it. Raises Unavailable."""
        mounts: tuple[Mount, ...] = ()
        if found.kind in _SCRIPTS:
            from roost.runtimes import cpython_wasm

            request, mounts = cpython_wasm.translate(request)
        words = tuple(os.fsencode(word) for word in (request.name or request.file, *request.arguments))
        try:
            program = _program(found, request, words, progress)
        except Invalid as error:  # its file is wrong, not how it was called
            raise Unavailable(error.what, error.why, error.fix) from error
        return Prepared(program, request, words, mounts)

    def command(self, found: Found, request: Request, prepared: Prepared) -> Command:
        """A call in the sandbox."""
        program, request, words, mounts = prepared
        policy, opened = request.policy, preopens(request.policy.fs, request.cwd)
        guest = Guest(
            arguments=words
            if isinstance(program, Component)
            else tuple(word if is_text(word) else b"" for word in words),
            env={**ENVIRONMENT, **_directory(opened, request.cwd), **dict(policy.env)},
            preopens=opened,
            network=isinstance(program, Component),
            root=root(),
            memory=policy.memory,
            fuel=policy.fuel,
        )
        call = Call(program, guest, self._report)
        made = wasm_call.command(call, policy)
        if isinstance(program, Artefact):
            return made._replace(mounts=mounts, handover=call)
        return made._replace(mounts=mounts, keeps=program.sources)

    def classify(self, found: Found, ending: Ending, errors: bytes) -> Ending:
        """What the guest's own process reported, where it came to that."""
        stop = self._report.read()
        if stop is None or ending.reason != "exit":
            return ending
        if stop.kind == "limit":
            return ending._replace(code=LIMIT, reason="limit", limit=stop.limit, message=_limit_message(stop))
        if stop.kind == "trap":
            return ending._replace(code=TRAPPED, reason="trap", message=f"trap: {stop.message}")
        if stop.kind == "error":
            return ending._replace(code=FAILED, reason="failed", message=stop.message)
        return ending


def _program(
    found: Found, request: Request, words: tuple[bytes, ...], progress: Progress
) -> Program | Component | Artefact:
    plain = all(map(is_text, words))
    kept = wasm_kept.find(request.file) if plain and request.policy.fuel is None else None
    if kept is not None:
        return kept
    artefact = artefact_of_file(request.file, Options(fuel=request.policy.fuel is not None), progress)
    if plain and found.details.get("start") and wasm_call.suits(artefact, request.policy):
        return artefact
    if artefact.component:
        return Component(artefact)
    return Program(artefact) if plain else Program(artefact, lambda module: module.define_wasi(functions(words)))


def _directory(opened: tuple[Preopen, ...], cwd: str) -> dict[str, str]:
    """PWD, where it leads somewhere: WASI has no working directory, and Go takes it from there."""
    covered = any(
        preopen.name == "." or (preopen.name.startswith("/") and f"{cwd}/".startswith(f"{preopen.name}/"))
        for preopen in opened
    )
    return {"PWD": cwd} if cwd and covered else {}


def _limit_message(stop: Stop) -> str:
    return f"{stop.message}; allow it more with --{stop.limit}"
