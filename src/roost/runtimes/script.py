"""Scripts, by the interpreter of the host that their first line names, in the sandbox; and Python's zip applications.

The rules are the kernel's (execve(2)): `#!`, the path of the interpreter, at most one argument. An interpreter outside of the system's directories
(a virtual environment, pyenv, nvm) is lent with its own library and nothing else of the directory it is in.
"""

from __future__ import annotations

import os

from roost.errors import Unavailable
from roost.host import packages
from roost.light import Any, Iterator, Mapping, NamedTuple, Sequence
from roost.runtimes import host_programs, program_file
from roost.runtimes.base import Command, Ending, Found, Mount, Need, Progress, Request, silent

_SCORE = 50
_FIRST_LINE = 256  # what the kernel reads of a script (BINPRM_BUF_SIZE, Linux 5.1 and later)
_KNOWN = ("bash", "node", "perl", "php", "python3", "ruby", "sh", "zsh")
_PACKAGES = {
    "Rscript": "r-base-core", "awk": "gawk", "bash": "bash", "expect": "expect", "fish": "fish", "gawk": "gawk", "guile": "guile-3.0",
    "ksh": "ksh", "lua": "lua5.4", "make": "make", "node": "nodejs", "nodejs": "nodejs", "perl": "perl", "php": "php-cli",
    "python": "python-is-python3", "python3": "python3", "ruby": "ruby", "tclsh": "tcl", "wish": "tk", "zsh": "zsh",
}  # fmt: skip
_LIBRARIES = {
    "node": ("node_modules",), "perl": ("perl",), "python": ("python3", "libpython3"), "ruby": ("ruby", "libruby"),
}  # fmt: skip
"""By the start of an interpreter's name: how entries of PREFIX/lib begin that PREFIX/bin/NAME needs."""


class Interpreter(NamedTuple):
    """How a script starts: the words before its own path, and what of the host beside the system they need."""

    words: tuple[str, ...]
    mounts: tuple[Mount, ...] = ()


class Script:
    """Runs `script` and `pyz`."""

    name = "script"

    def probe(self) -> Mapping[str, Any]:
        """The usual interpreters of the system."""
        return {name: path for name in _KNOWN if (path := host_programs.find(name))}

    def score(self, found: Found) -> int:
        """Every script: whether its interpreter is there, `needs` says."""
        return _SCORE if found.kind in ("script", "pyz") and not found.refusal else 0

    def needs(self, found: Found) -> tuple[Need, ...]:
        """The interpreter."""
        interpreter, name = _named(found)
        if os.path.basename(interpreter) == "env":
            return () if _look_up(name) else (_need(name),)
        return () if _executable(interpreter) else (_need(interpreter),)

    def prepare(self, found: Found, request: Request, progress: Progress = silent) -> Interpreter:
        """The interpreter, from the script's first line. Raises Unavailable."""
        for need in self.needs(found):
            raise Unavailable(
                f"{os.path.basename(request.file)} can not run", f"{need.what} is not installed", need.install
            )
        words = _first_line(request.file) or list(_named(found)[:1])
        if words[-1].endswith("\r"):
            what, name = (
                "its lines end as those of Windows do, and so does the name of its interpreter",
                os.path.basename(request.file),
            )
            raise Unavailable(f"{name} can not run", what, f"sed -i 's/\\r$//' {name}")
        if os.path.basename(words[0]) == "env" and len(words) > 1:
            return _environment(words)
        path, mounts = _lent(words[0])
        return Interpreter((path, *words[1:]), mounts)

    def command(self, found: Found, request: Request, prepared: Interpreter) -> Command:
        """The interpreter with the script and its arguments."""
        inside, own = program_file.shown(request, system=True)
        return Command(argv=(*prepared.words, inside, *request.arguments), mounts=(*own, *prepared.mounts), system=True)

    def classify(self, found: Found, ending: Ending, errors: bytes) -> Ending:
        """As it is: an interpreter ends as its script does."""
        return ending


def _named(found: Found) -> tuple[str, str]:
    """The interpreter as it is written, and the program that is meant."""
    written, name = str(found.details.get("interpreter", "")), str(found.details.get("name", ""))
    if found.kind == "pyz":  # its first line as it is
        words = written.split() or [host_programs.find("python3") or "/usr/bin/python3"]
        written, name = words[0], words[_program_of_env(words)] if os.path.basename(words[0]) == "env" else ""
    return written, name or os.path.basename(written)


def _program_of_env(words: Sequence[str]) -> int:
    """Where among the words of `env [-S] [NAME=VALUE...] PROGRAM` the program is; 0 for none."""
    return next((at for at, word in enumerate(words) if at and "=" not in word and not word.startswith("-")), 0)


def _need(program: str) -> Need:
    name = os.path.basename(program)
    package = _PACKAGES.get(name) or _PACKAGES.get(name.rstrip("0123456789."), "")
    install = packages.apt(package) if package else f"install {name}, or name another interpreter in the first line"
    return Need(f"the interpreter {program}", install)


def _first_line(path: str) -> list[str]:
    """The interpreter and its one argument, if any, as the kernel reads them; empty without `#!`."""
    with open(path, "rb") as file:
        line = file.read(_FIRST_LINE).partition(b"\n")[0]
    if not line.startswith(b"#!"):
        return []
    text = line[2:].strip(b" \t")
    interpreter = text.replace(b"\t", b" ").partition(b" ")[0]
    argument = text[len(interpreter) :].strip(b" \t")
    return [os.fsdecode(word) for word in (interpreter, argument) if word]


def _environment(words: list[str]) -> Interpreter:
    """`env [-S] [NAME=VALUE...] PROGRAM`: as it is where the system has the program, else with the path of the caller's one."""
    given = words[1].removeprefix("-S").split() if words[1].startswith("-S") else [words[1].strip()]
    parts = [words[0], *given]
    at = _program_of_env(parts)
    found = _look_up(parts[at])
    if not at or not found or host_programs.shown(found):
        return Interpreter(tuple(words))
    path, mounts = _lent(found)
    return Interpreter((*parts[:at], path, *parts[at + 1 :]), mounts)


def _look_up(name: str) -> str:
    """The program in the directories of the system, else in those of the caller's PATH; "" when it is in none."""
    if "/" in name:
        return name if os.path.exists(name) else ""
    own = [directory for directory in os.environ.get("PATH", "").split(":") if directory.startswith("/")]
    paths = [os.path.join(directory, name) for directory in own]
    return host_programs.find(name) or next((path for path in paths if _executable(path)), "")


def _executable(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)


def _lent(interpreter: str) -> tuple[str, tuple[Mount, ...]]:
    """Where it is inside, and what it needs beside the system."""
    if host_programs.shown(interpreter) or not _executable(interpreter):
        return interpreter, ()
    place = os.path.dirname(os.path.dirname(interpreter))
    real = os.path.realpath(interpreter)
    if os.path.isfile(f"{place}/pyvenv.cfg"):
        parts = [f"{place}/{name}" for name in ("bin", "lib", "pyvenv.cfg")]
        return interpreter, tuple(Mount(part, part, lent=True) for part in [*parts, *_installation(real)])
    return real, tuple(Mount(part, part, lent=True) for part in _installation(real))


def _installation(interpreter: str) -> Iterator[str]:
    """The files and directories of an interpreter PREFIX/bin/NAME outside of the system."""
    if host_programs.shown(interpreter):
        return
    yield interpreter
    name = os.path.basename(interpreter)
    library = f"{os.path.dirname(os.path.dirname(interpreter))}/lib"
    starts = next((starts for language, starts in _LIBRARIES.items() if name.startswith(language)), ())
    if starts and os.path.isdir(library):
        yield from (f"{library}/{entry}" for entry in sorted(os.listdir(library)) if entry.startswith(starts))
