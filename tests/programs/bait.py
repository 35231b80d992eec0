"""What a host has left lying around, as open to everybody as it can be: whatever of it a program touches or tells was not kept from it."""

from __future__ import annotations

import codecs
import contextlib
import importlib
import os
import pkgutil
import select
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import roost.host
import roost.runtimes
from roost.runtimes.base import Grant

OUT, DATA, LENT = "/out", "/data", "/lent"
"""Where a program sees a granted directory, one that is granted for reading, and the programs that it is lent."""


class Bait(NamedTuple):
    """`word` stands in every place that must not be read: the file `secret`, and the environment of the process `victim`.

    `out`, `data` and `lent` are for the program. The sockets listen: on the loopback, by a path in the directory of `secret`, by an abstract name.
    """

    word: str
    directory: Path
    secret: Path
    victim: subprocess.Popen[bytes]
    port: int
    abstract: str
    sockets: tuple[socket.socket, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """What a program is told of it: the victim, the port, the secret, the abstract name, and its two directories."""
        return str(self.victim.pid), str(self.port), str(self.secret), self.abstract, OUT, DATA

    @property
    def grants(self) -> tuple[Grant, ...]:
        """The directories that a program is given."""
        place = str(self.directory)
        return Grant(f"{place}/out", OUT, True), Grant(f"{place}/data", DATA), Grant(f"{place}/lent", LENT)

    def lend(self, programs: Mapping[str, bytes]) -> Path:
        """Put the programs into `lent`, the path of which is returned."""
        for name, content in programs.items():
            place = self.directory / "lent" / name
            place.write_bytes(content)
            place.chmod(0o755)
        return self.directory / "lent"

    def harm(self, told: bytes) -> tuple[str, ...]:
        """What became of it, in words, and whether `told` betrays it; nothing where it is as it was."""
        data, private = self.directory / "data", self.secret.parent
        reached = select.select(self.sockets, [], [], 0)[0]
        found = {
            "the secret was told": self.word.encode() in told,
            "the secret was changed": self.secret.read_text() != self.word,
            "something was made beside the secret": {each.name for each in private.iterdir()} != {"secret", "socket"},
            "the victim was ended": self.victim.poll() is not None,
            f"a socket was reached: {[one.getsockname() for one in reached]}": bool(reached),
            "a program was left that runs as the caller": any(
                each.lstat().st_mode & 0o6000 for each in (self.directory / "out").iterdir()
            ),
            "the data was changed": _state(data) != {"file": (b"data", 0o666, 1_000_000_000)},
        }
        return tuple(what for what, happened in found.items() if happened)


def _state(directory: Path) -> dict[str, tuple[bytes, int, int]]:
    return {
        each.name: (each.read_bytes(), each.stat().st_mode & 0o7777, int(each.stat().st_mtime))
        for each in directory.iterdir()
        if not each.is_symlink()
    }


@contextlib.contextmanager
def lay() -> Iterator[Bait]:
    """Lay it out; it is gone afterwards."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="roost-bait-")))
        directory.chmod(0o755)
        for name in ("private", "out", "data", "lent"):
            (directory / name).mkdir()
            (directory / name).chmod(0o777)
        word, secret = uuid.uuid4().hex, directory / "private/secret"
        secret.write_text(word)
        secret.chmod(0o666)
        (directory / "data/file").write_bytes(b"data")
        (directory / "data/file").chmod(0o666)
        os.utime(directory / "data/file", (1_000_000_000, 1_000_000_000))
        (directory / "out/link").symlink_to(directory / "private")
        for name, place in (("data/link", "../private"), ("link", "private")):
            (directory / name).symlink_to(place)
        stack.enter_context(open(secret, "rb+"))
        victim = stack.enter_context(subprocess.Popen(["sleep", "600"], env={"WORD": word, "PATH": "/usr/bin:/bin"}))
        stack.callback(victim.kill)
        abstract = f"roost-bait-{uuid.uuid4()}"
        sockets = tuple(stack.enter_context(each) for each in _listen(str(directory / "private/socket"), abstract))
        yield Bait(word, directory, secret, victim, sockets[0].getsockname()[1], abstract, sockets)


def _listen(path: str, abstract: str) -> Iterator[socket.socket]:
    stream = socket.create_server(("127.0.0.1", 0))
    yield stream
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", stream.getsockname()[1]))
    yield datagrams
    for name in (path, f"\0{abstract}"):
        local = socket.socket(socket.AF_UNIX)
        local.bind(name)
        local.listen()
        yield local
    Path(path).chmod(0o777)


def verdicts(told: bytes) -> dict[str, tuple[str, str]]:
    """What a program says of its attempts, lines of name, TAB, "held" or "escaped", TAB, why."""
    lines = (line.rstrip("\r").split("\t") for line in told.decode(errors="replace").split("\n"))
    return {words[0]: (words[1], words[2]) for words in lines if len(words) == 3}


def attempts(told: bytes) -> dict[str, tuple[str, str]]:
    """The same of `probe attempt all`, which says NAME: allowed, absent or refused WHY."""
    lines = (line.split(": ", 1) for line in told.decode(errors="replace").splitlines() if ": " in line)
    return {name: ("escaped" if why == "allowed" else "held", why) for name, why in lines}


def load_all() -> None:
    """Import all that a run may need, before an ordinary user can no longer read the checkout."""
    codecs.lookup("ascii")
    packages: tuple[Any, ...] = (roost.host, roost.runtimes)
    for package in packages:
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
