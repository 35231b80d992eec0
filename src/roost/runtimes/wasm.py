"""WebAssembly programs: modules for WASI preview 1, components for WASI preview 2, and the text form of both."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from roost.errors import RoostError
from roost.runtimes import wasm_kept
from roost.runtimes.base import (
    FAILED,
    LIMIT,
    TRAPPED,
    Command,
    Ending,
    Found,
    MiB,
    Mount,
    Need,
    Progress,
    Request,
    silent,
)
from roost.runtimes.libwasmtime import FIX, find
from roost.runtimes.plan import ENVIRONMENT
from roost.runtimes.wasm_compile import artefact_of_file
from roost.runtimes.wasm_engine import Options, Stop, set_trap_handlers, trap_handlers
from roost.runtimes.wasm_program import Command as Program
from roost.runtimes.wasm_program import Component
from roost.runtimes.wasm_wasi import NOTHING, Guest, Preopen, preopens, root
from roost.runtimes.wasm_words import functions, is_text

_OURS = 128 * MiB
"""Bytes that the sandbox holds beside the guest's memory: our interpreter and the library."""
_KINDS = ("wasm", "component", "wat")
_SCRIPTS = ("script", "pyz")
_LAYERS = ("wasi",)


class Prepared(NamedTuple):
    """Code that is mapped and linked, the run of it, its arguments, and what the sandbox must show for it."""

    program: Program | Component
    request: Request
    words: tuple[bytes, ...]
    mounts: tuple[Mount, ...]


class WasmRuntime:
    """Runs the program in the sandboxed process itself, by Wasmtime. One object for one run: `classify` tells what its guest reported."""

    name = "wasm"

    def __init__(self) -> None:
        self._report = _Report()

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
        except RoostError as error:
            return (Need(error.why, FIX),)
        if found.kind in _SCRIPTS:
            from roost.runtimes import cpython_wasm

            return () if cpython_wasm.find() else (cpython_wasm.NEED,)
        return ()

    def prepare(self, found: Found, request: Request, progress: Progress = silent) -> Prepared:
        """Compile it, or map its compiled code, and link it. Raises Invalid, Unavailable."""
        mounts: tuple[Mount, ...] = ()
        if found.kind in _SCRIPTS:
            from roost.runtimes import cpython_wasm

            request, mounts = cpython_wasm.translate(request)
        words = tuple(os.fsencode(word) for word in (request.name or request.file, *request.arguments))
        return Prepared(_program(request, words, progress), request, words, mounts)

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
            network=bool(policy.net or policy.publish),
            root=root(),
            memory=policy.memory,
            fuel=policy.fuel,
        )
        actions = trap_handlers()

        def run() -> int:
            set_trap_handlers(actions)
            try:
                stop = program.run(guest)
            except RoostError as error:
                stop = Stop("error", f"{error.what}: {error.why}")
            self._report.write(stop)
            return _code(stop)

        layers = (*_LAYERS, *(("fuel",) if policy.fuel is not None else ()))
        memory = policy.memory and policy.memory + _OURS
        return Command(call=run, mounts=mounts, files={f"{NOTHING}/.keep": b""}, layers=layers, memory=memory)

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


class _Report:
    """One page that the sandboxed process shares with us. What stands there was written beside a hostile guest: bounded, and never trusted."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)

    def write(self, stop: Stop) -> None:
        words = "\0".join((stop.kind, str(stop.code), stop.limit, stop.message)).encode("utf-8", "replace")
        words = words[: mmap.PAGESIZE - 2]
        self._page[2 : 2 + len(words)] = words
        self._page[:2] = len(words).to_bytes(2, "big")

    def read(self) -> Stop | None:
        size = int.from_bytes(self._page[:2], "big")
        words = self._page[2 : 2 + size].decode("utf-8", "ignore").split("\0")
        if (
            len(words) != 4
            or words[0] not in ("exit", "trap", "limit", "error")
            or words[2] not in ("", "memory", "fuel", "wall")
        ):
            return None
        return Stop(words[0], "".join(filter(str.isprintable, words[3])), 0, words[2])


def _program(request: Request, words: tuple[bytes, ...], progress: Progress) -> Program | Component:
    plain = all(map(is_text, words))
    kept = wasm_kept.find(request.file) if plain and request.policy.fuel is None else None
    if kept is not None:
        return kept
    artefact = artefact_of_file(request.file, Options(fuel=request.policy.fuel is not None), progress)
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


def _code(stop: Stop) -> int:
    return {"exit": stop.code & 0xFF, "trap": TRAPPED, "limit": LIMIT}.get(stop.kind, FAILED)


def _limit_message(stop: Stop) -> str:
    return f"{stop.message}; allow it more with --{stop.limit}"
