"""A program: one file that a process virtual machine runs under a policy, kept running by the daemon."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Annotated, Literal

import msgspec

from roost.errors import Problem
from roost.model.addresses import is_own
from roost.model.machine import Process
from roost.model.meta import Meta, MiB, Port, Seconds, Size, Struct, Trouble

Phase = Literal["pending", "starting", "running", "stopping", "stopped", "exited", "failed", "backing-off"]

RESTING: frozenset[str] = frozenset({"stopped", "exited", "failed"})
"""Phases of a program without a process that nothing will start but somebody's wish."""

UNBOUNDED_MEMORY = 512 * MiB
"""Bytes that a program without a limit is expected to need."""

LONGEST_NAME = 255
"""Bytes of a file's name, as file systems bound it."""

MOST_ARGUMENTS = 128 << 10
"""Characters of all arguments together."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PEER = re.compile(r"(?:\[([0-9a-fA-F:.]{2,45})\]|([A-Za-z0-9_.-]{1,253})):(\d{1,5})")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_WORD = re.compile(r"[a-z][a-z0-9-]{0,31}")


def split_peer(text: str) -> tuple[str, int] | None:
    """Host and port of "example.org:443" or "[::1]:80"; None for what is neither."""
    match = _PEER.fullmatch(text)
    if match is None or not 1 <= int(match[3]) <= 65_535:
        return None
    return match[1] or match[2], int(match[3])


def is_local(host: str) -> bool:
    """Whether a host's name or address, as it is written, is the computer that resolves it, or a link that only that one is on."""
    if host.lower().rstrip(".") == "localhost" or host.lower().rstrip(".").endswith(".localhost"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        # "127.1", "0x7f000001": what inet_aton(3) takes for an address and nobody can read is refused as one.
        return re.fullmatch(r"(?:0[xX][0-9a-fA-F]*|[0-9]+)", host.rpartition(".")[2]) is not None
    return is_own(address)


class GrantSpec(Struct, frozen=True, kw_only=True):
    """A file or directory of the host, absolute, that the program sees at `target` (default: at the same path)."""

    source: str
    target: str = ""
    writable: bool = False


class PublishedSpec(Struct, frozen=True, kw_only=True):
    """A TCP port of the host that leads to a port on which the program listens."""

    host_port: Port
    port: Port
    host_ip: str = "127.0.0.1"


class PolicySpec(Struct, frozen=True, kw_only=True):
    """What a program may do: nothing, unless it is said here. Sizes in bytes, times in seconds, null for no limit.

    `net` holds "HOST:PORT". `output` bounds all that it prints in one run; without it the log is bounded, and the program goes on.
    """

    fs: tuple[GrantSpec, ...] = ()
    env: dict[str, str] = msgspec.field(default_factory=dict)
    net: tuple[str, ...] = ()
    publish: tuple[PublishedSpec, ...] = ()
    memory: Size | None = 512 * MiB
    cpu_time: Seconds | None = None
    wall: Seconds | None = None
    processes: Annotated[int, msgspec.Meta(ge=1, le=32_768)] = 256
    files: Annotated[int, msgspec.Meta(ge=16, le=1 << 20)] = 1024
    output: Size | None = None
    tmp: Size = 256 * MiB
    fuel: Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)] | None = None
    gui: bool = False
    require: tuple[str, ...] = ()

    def problems(self) -> Iterator[Problem]:
        """Everything wrong with the values, beyond their types."""
        if self.memory is not None and self.memory < MiB:
            yield Problem("memory", f"{self.memory} bytes is less than 1MiB")
        for field in ("cpu_time", "wall"):
            if getattr(self, field) == 0:
                yield Problem(field, "0 seconds leave no time to run: leave it out for no limit")
        for field in ("fs", "net", "publish", "require"):
            if len(getattr(self, field)) > 256:
                yield Problem(field, "has more than 256 entries")
        yield from self._word_problems()

    def _word_problems(self) -> Iterator[Problem]:
        for name, value in self.env.items():
            if not _VARIABLE.fullmatch(name) or "\0" in value or len(value) > MOST_ARGUMENTS:
                yield Problem(f"env.{name[:80]}", "is not the name and value of a variable")
        for index, peer in enumerate(self.net):
            if split_peer(peer) is None:
                yield Problem(f"net[{index}]", f"{peer[:80]!r} is not HOST:PORT")
        yield from self._place_problems()

    def _place_problems(self) -> Iterator[Problem]:
        for index, grant in enumerate(self.fs):
            for field, path in (("source", grant.source), ("target", grant.target or "/-")):
                if not _is_plain_path(path):
                    yield Problem(f"fs[{index}].{field}", f"{path[:80]!r} is not an absolute path without '..'")
        for index, port in enumerate(self.publish):
            try:
                ip_address(port.host_ip)
            except ValueError:
                yield Problem(f"publish[{index}].host_ip", f"{port.host_ip[:80]!r} is not an IP address")


def _is_plain_path(path: str) -> bool:
    """Absolute, of a bearable length, and leading nowhere but down."""
    return path.startswith("/") and "\0" not in path and len(path) <= 4096 and ".." not in path.split("/")


class ProgramSpec(Struct, frozen=True, kw_only=True):
    """What the user wants. `file` is the name that the program sees its file by, `sha256` its content, which the client uploads.

    A changed file, argument or policy holds from the next start on; a restart bumps `restarts`. A forced stop is a `stop_grace` of 0.
    `restart` says what follows when the program ends by itself. `cwd` is the directory that it starts in.
    """

    file: str
    sha256: str
    arguments: tuple[str, ...] = ()
    vm: str = ""
    policy: PolicySpec = PolicySpec()
    cwd: str = ""
    power: Literal["running", "stopped"] = "running"
    restart: Literal["never", "on-failure", "always"] = "never"
    restarts: Annotated[int, msgspec.Meta(ge=0)] = 0
    stop_grace: Seconds = 10.0

    def problems(self) -> Iterator[Problem]:
        """Everything wrong with the values, beyond their types."""
        if self.file in ("", ".", "..") or "/" in self.file or "\0" in self.file or not _fits(self.file):
            yield Problem("file", f"{self.file[:80]!r} is not the name of a file, without directories")
        if not _SHA256.fullmatch(self.sha256):
            yield Problem("sha256", "is not 64 hexadecimal digits in small letters")
        if self.vm and not _WORD.fullmatch(self.vm):
            yield Problem("vm", f"{self.vm[:80]!r} is not the name of a runtime")
        if sum(map(len, self.arguments)) > MOST_ARGUMENTS:
            yield Problem("arguments", f"are longer than {MOST_ARGUMENTS} characters together")
        for index, word in enumerate(self.arguments):
            if "\0" in word:
                yield Problem(f"arguments[{index}]", "holds a zero byte")
        if self.cwd and (not self.cwd.startswith("/") or "\0" in self.cwd or len(self.cwd) > 4096):
            yield Problem("cwd", f"{self.cwd[:80]!r} is not an absolute path")


def _fits(name: str) -> bool:
    return len(name.encode(errors="surrogateescape")) <= LONGEST_NAME and name.isprintable()


class ProgramExit(Struct, frozen=True, kw_only=True):
    """How a run ended: fields of roost.runtimes.base.Ending; reason "lost": nobody saw it (its keeper was killed, the host restarted)."""

    code: int
    reason: str = "exit"
    signal: int = 0
    limit: str = ""
    message: str = ""


class ProgramStatus(Struct, frozen=True, kw_only=True):
    """What is. Only Roost writes it.

    `trusted` says that an admin wrote the spec, which alone may lend the host's files and ports. `process` is the keeper, which starts the
    program, keeps its log, and with which it ends. `run` names the present or last start, `ended` the last one whose end is written down.
    `restarts` is the wish for a restart that was carried out last, `restarted` counts those that Roost did by itself, `failures` the
    endings in a row that the delay before the next start comes from. Times are UTC, RFC 3339.
    """

    phase: Phase = "pending"
    generation: int = 0
    node: str = ""
    trusted: bool = False
    process: Process | None = None
    run: str = ""
    ended: str = ""
    runtime: str = ""
    layers: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    exit: ProgramExit | None = None
    restarts: int = 0
    restarted: int = 0
    failures: int = 0
    started: str = ""
    finished: str = ""
    usage: dict[str, float] = msgspec.field(default_factory=dict)
    progress: str = ""
    warnings: tuple[str, ...] = ()
    error: Trouble | None = None


class Program(Struct, frozen=True, kw_only=True):
    """A process virtual machine."""

    kind: Literal["program"] = "program"
    project: str = "default"
    name: str
    meta: Meta = Meta()
    spec: ProgramSpec
    status: ProgramStatus = ProgramStatus()


def privileges(policy: PolicySpec) -> tuple[str, ...]:
    """What of a policy only an admin may give: files and ports of the host, its screen, services that listen for the host alone."""
    found = [f"fs: {grant.source}" for grant in policy.fs]
    found += [f"publish: {port.host_ip}:{port.host_port}" for port in policy.publish]
    found += [f"net: {peer}" for peer in policy.net if (place := split_peer(peer)) is None or is_local(place[0])]
    return (*found, "gui") if policy.gui else tuple(found)
