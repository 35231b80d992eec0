"""Programs for the Common Language Runtime (.NET Framework), under Mono."""

from __future__ import annotations

import os

from roost.errors import Invalid, Unavailable
from roost.host import packages
from roost.light import Any, Mapping
from roost.runtimes import display, program_file
from roost.runtimes.base import Command, Ending, Found, MiB, Mount, Need, Progress, Request, silent

_SCORE = 60
_PROGRAM = "/usr/bin/mono-sgen"
_LIBRARIES = "/usr/lib/mono/4.5/mscorlib.dll"
_CONFIGURATION = "/etc/mono"
_OWN_MEMORY = 128 * MiB  # code, stacks, the garbage collector's tables
_UNHANDLED = b"Unhandled Exception:"


class Clr:
    """Runs `clr` with Mono."""

    name = "clr"

    def probe(self) -> Mapping[str, Any]:
        """Mono's path."""
        return {"path": _PROGRAM} if _is_installed() else {}

    def score(self, found: Found) -> int:
        """Programs for the CLR, before Wine, which brings none."""
        return _SCORE if found.kind == "clr" else 0

    def needs(self, found: Found) -> tuple[Need, ...]:
        """Mono with its class library."""
        return () if _is_installed() else (Need("Mono", packages.apt(*packages.CLR), "clr"),)

    def prepare(self, found: Found, request: Request, progress: Progress = silent) -> Any:
        """Nothing but to look whether it can run. Raises Unavailable."""
        for need in self.needs(found):
            raise Unavailable(
                f"{os.path.basename(request.file)} can not run", f"{need.what} is not installed", need.install
            )
        return None

    def command(self, found: Found, request: Request, prepared: Any) -> Command:
        """Mono with the program, its heap bounded. Raises Invalid for a library, and for windows."""
        name = os.path.basename(request.file)
        if found.details.get("dll"):
            raise Invalid(f"{name} is a library", "it has no entry point", "run the program that uses it")
        shown = display.lend(request, windows=found.details.get("subsystem") == "gui")
        memory = request.policy.memory
        inside, file = program_file.shown(request)
        # Past what the sandbox allows: an exception in a program is no clear word, the watchdog's is. It only comes too late at times.
        heap = {} if memory is None else {"MONO_GC_PARAMS": f"max-heap-size={2 * (memory + _OWN_MEMORY)}"}
        return Command(
            argv=(_PROGRAM, inside, *request.arguments),
            env={
                "MONO_DEBUG": "no-gdb-backtrace",
                "MONO_SHARED_DIR": "/tmp",
                **heap,
                **({} if shown is None else shown.env),
            },
            mounts=(
                *file,
                *_beside(request.file, file),
                Mount(_CONFIGURATION, _CONFIGURATION),
                *(() if shown is None else shown.mounts),
            ),
            system=True,
            layers=() if memory is None else ("max-heap-size",),
            memory=None if memory is None else memory + _OWN_MEMORY,
        )

    def classify(self, found: Found, ending: Ending, errors: bytes) -> Ending:
        """Exit codes are exact; an exception that nobody handled is told."""
        if ending.reason == "exit" and ending.code == 1 and _UNHANDLED in errors:
            return ending._replace(message="the program ended by an exception that it does not handle")
        return ending


def _is_installed() -> bool:
    return os.path.isfile(_PROGRAM) and os.path.isfile(_LIBRARIES)


def _beside(file: str, shown: tuple[Mount, ...]) -> tuple[Mount, ...]:
    """Its configuration, which .NET keeps beside a program, where the program is shown alone."""
    there = [mount for mount in shown if os.path.isfile(f"{file}.config") and not os.path.islink(f"{file}.config")]
    return tuple(Mount(f"{file}.config", f"{mount.target}.config", lent=True) for mount in there)
