"""Programs for this host's own system and processor, in the sandbox: with the system's programs and libraries, and none of the caller's files.

Libraries that a program brings along ($ORIGIN in its RUNPATH) are lent one by one, those that its headers name: from its own directory, from
below it, or from `lib` beside it as in PREFIX/bin and PREFIX/lib. Others must be granted, since a hostile program's headers name what they like.
"""

from __future__ import annotations

import os

from roost.errors import Unavailable
from roost.light import Any, Iterator, Mapping
from roost.runtimes import host_programs, program_file
from roost.runtimes.base import Command, Ending, Found, Grant, Mount, Need, Progress, Request, silent

LIBRARIES = "/app/lib"
_SCORE = 100
_MUSL = "/ld-musl-"


class Native:
    """Runs `elf` of this host's architecture. Its 32-bit sibling (i386 on x86_64) is for `foreign`: the filter of system calls knows one kind."""

    name = "native"

    def probe(self) -> Mapping[str, Any]:
        """What the host's own programs are."""
        kernel = os.uname()
        return {"arch": kernel.machine, "kernel": kernel.release}

    def score(self, found: Found) -> int:
        """The host's own architecture, with pointers of its own width."""
        own = (
            found.kind == "elf"
            and found.arch == os.uname().machine
            and found.details.get("abi") != "x32"
            and not found.refusal
        )
        return _SCORE if own else 0

    def needs(self, found: Found) -> tuple[Need, ...]:
        """The interpreter that a dynamic program names."""
        interpreter = str(found.details.get("interpreter", ""))
        if not interpreter or os.path.exists(interpreter):
            return ()
        if _MUSL in interpreter:
            return (Need(f"the interpreter {interpreter}", "sudo apt-get install --no-install-recommends musl"),)
        return (Need(f"the interpreter {interpreter}", "take a build for this system, or a static one"),)

    def prepare(self, found: Found, request: Request, progress: Progress = silent) -> tuple[Mount, ...]:
        """The libraries it brings along. Raises Unavailable with the name of what is missing."""
        name = os.path.basename(request.file)
        program_file.check_mode(request)
        for need in self.needs(found):
            raise Unavailable(f"{name} can not run", f"{need.what} does not exist", need.install)
        interpreter = str(found.details.get("interpreter", ""))
        own_way = any(key == "LD_LIBRARY_PATH" for key, _ in request.policy.env)
        if not interpreter or own_way or _MUSL in interpreter:  # musl's interpreter is its C library
            return ()
        return (*_lent(request, name, interpreter),)

    def command(self, found: Found, request: Request, prepared: tuple[Mount, ...]) -> Command:
        """The program itself, called as the caller called it."""
        inside, own = program_file.shown(request, system=True)
        with_libraries = any(mount.target.startswith(LIBRARIES) for mount in prepared)
        return Command(
            argv=(request.name or request.file, *request.arguments),
            program=inside,
            env={"LD_LIBRARY_PATH": LIBRARIES} if with_libraries else {},
            mounts=(*own, *prepared),
            system=True,
        )

    def classify(self, found: Found, ending: Ending, errors: bytes) -> Ending:
        """As it is: nothing stands between the program and its end."""
        return ending


def _lent(request: Request, name: str, interpreter: str) -> Iterator[Mount]:
    """Mounts for the interpreter and the libraries where they are not the system's. Raises Unavailable for what is nowhere, or not granted."""
    from pathlib import Path  # with what reads ELF files, for dynamic programs only

    from roost.host import binaries

    real = os.path.realpath(request.file)
    libraries = binaries.needs(Path(real)).libraries
    for target, file in [(interpreter, Path(interpreter)), *libraries.items()]:
        found = os.path.realpath(str(file))
        if host_programs.shown(os.path.normpath(target)) or host_programs.shown(found):
            continue
        if not _open_to(found, os.path.dirname(real), request.policy.fs):
            directory = os.path.dirname(found)
            what = "interpreter" if target == interpreter else "library"
            why = f"its {what} {os.path.basename(target)} is in {directory}, which it does not see"
            raise Unavailable(f"{name} can not run", why, f"roost run --fs {directory}:ro {name}")
        place = os.path.normpath(target) if target == interpreter else f"{LIBRARIES}/{os.path.basename(target)}"
        yield Mount(found, place, lent=True)


def _open_to(file: str, directory: str, grants: tuple[Grant, ...]) -> bool:
    """Whether a program in `directory` may load this file."""
    beside = os.path.dirname(directory)
    places = [directory, f"{beside}/lib", f"{beside}/lib64", *(os.path.realpath(grant.source) for grant in grants)]
    return any(file == place or file.startswith(place.rstrip("/") + "/") for place in places)
