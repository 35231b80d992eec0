"""`roost run --learn`: run a trusted program with everything lent to it, see what it uses, and write the least policy that allows that.

What is seen: files by the system calls that open, look at and change them; TCP and UDP services by connect(2); memory. Not seen: which variables
of its environment it reads (it gets those of the policy, and they stay in it), and what other input would make it use.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Iterable
from typing import NamedTuple

from roost.errors import NotStarted
from roost.host import kernel
from roost.runtimes import execution, policy
from roost.runtimes.base import Grant, MiB, Peer, Policy, Request, Result
from roost.runtimes.loop import Ready
from roost.runtimes.refusals import Call, Destination, Notifier, read_peer

WARNING = "roost: --learn lends the program all your files and the network: only for programs that you trust"
_ITS_OWN = ("/app", "/dev", "/proc", "/sys", "/usr", "/bin", "/lib", "/lib32", "/lib64", "/libx32", "/sbin")
"""What a program has without a policy, or never."""
_USUAL = (
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/localtime",
    "/etc/passwd",
    "/etc/group",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/resolv.conf",
)
"""Files that the C library looks for and does without."""
_TOGETHER = 4
"""Files of one directory from which on the directory is lent."""
_MOST = 4096
_PATH = 4096
_ADDFD, _SETFD = 0x40182103, 1  # SECCOMP_IOCTL_NOTIF_ADDFD, SECCOMP_ADDFD_FLAG_SETFD: include/uapi/linux/seccomp.h
_PIDFD_GETFD = 438
_AT_FDCWD = -100
_CONNECT_SECONDS = 10.0
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_DNS = 53


class _Shape(NamedTuple):
    """Where a call has its path, its directory (-1: it counts from the working directory), and its flags; or that it changes the directory."""

    path: int = 0
    directory: int = -1
    flags: int = -1
    changes: bool = False


_OPEN, _OPENAT, _LOOK, _LOOKAT = _Shape(flags=1), _Shape(1, 0, flags=2), _Shape(), _Shape(1, 0)
_CHANGE, _CHANGEAT = _Shape(changes=True), _Shape(1, 0, changes=True)
_SHAPES = {
    # arch/x86/entry/syscalls/syscall_64.tbl
    "x86_64": {
        2: _OPEN, 257: _OPENAT, 85: _CHANGE, 4: _LOOK, 6: _LOOK, 262: _LOOKAT, 332: _LOOKAT, 21: _LOOK, 269: _LOOKAT, 439: _LOOKAT,
        89: _LOOK, 267: _LOOKAT, 59: _LOOK, 322: _LOOKAT, 80: _LOOK, 83: _CHANGE, 258: _CHANGEAT, 87: _CHANGE, 263: _CHANGEAT,
        82: _CHANGE, 264: _CHANGEAT, 316: _CHANGEAT, 84: _CHANGE, 76: _CHANGE, 137: _LOOK,
    },
    # include/uapi/asm-generic/unistd.h
    "aarch64": {
        56: _OPENAT, 79: _LOOKAT, 291: _LOOKAT, 48: _LOOKAT, 439: _LOOKAT, 78: _LOOKAT, 221: _LOOK, 281: _LOOKAT, 49: _LOOK,
        34: _CHANGEAT, 35: _CHANGEAT, 38: _CHANGEAT, 276: _CHANGEAT, 45: _CHANGE, 43: _LOOK,
    },
}  # fmt: skip
_CONNECTS = {"x86_64": 42, "aarch64": 203}


def learn(request: Request, destination: str = "") -> Result:
    """Run it with everything lent, and write what it used as a policy to that file ("": stderr). Raises RoostError."""
    sys.stderr.write(f"{WARNING}\n")
    sys.stderr.flush()
    if os.uname().machine not in _SHAPES:
        raise NotStarted("--learn is not possible", f"the system calls of {os.uname().machine} are not known to it")
    given = request.policy
    watched = request._replace(
        policy=given._replace(fs=(*_everything(), *given.fs), net=(), memory=None, wall=given.wall)
    )
    learner = Learner(request)
    result = execution.run(watched, observe=learner.attach)
    text = render(least(given, learner.seen, result.usage["memory"]), request)
    if destination:
        with open(destination, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
    else:
        sys.stderr.write(text)
    return result


class Seen(NamedTuple):
    """What a program used: absolute paths that it read, directories and files that it changed, services that it reached."""

    read: dict[str, None]
    written: dict[str, None]
    peers: dict[Peer, None]


def _everything() -> list[Grant]:
    """All directories of the host at their own places, but those that a sandbox has anyway."""
    places = [f"/{name}" for name in sorted(os.listdir("/"))]
    return [
        Grant(place, place, writable=True)
        for place in places
        if place not in _ITS_OWN and os.path.isdir(place) and not os.path.islink(place)
    ]


class Learner:
    """Notes each system call that is reported, and lets it proceed."""

    def __init__(self, request: Request) -> None:
        self.seen = Seen({}, {}, {})
        self._own = request.file
        self._shapes = _SHAPES[os.uname().machine]
        self._connect = _CONNECTS[os.uname().machine]

    def attach(self, notifier: Notifier) -> Ready:
        """What answers the calls that this notifier reports."""

        def ready(_: int) -> None:
            call = notifier.receive()
            if call is None:
                return
            if call.number != self._connect or not self._reach(notifier, call):
                self._look(notifier, call)
                notifier.proceed(call)

        return ready

    def _look(self, notifier: Notifier, call: Call) -> None:
        shape = self._shapes.get(call.number)
        path = shape and _path(notifier, call, shape)
        if not shape or not path or path == self._own or _is_usual(path):
            return
        flags = call.arguments[shape.flags] if shape.flags >= 0 else os.O_PATH
        writes = shape.changes or flags & _WRITING
        if writes and (shape.changes or not os.path.lexists(path)):
            self._note(self.seen.written, os.path.dirname(path))
        elif os.path.isfile(path) or (os.path.isdir(path) and not flags & os.O_PATH):
            # To have looked at a directory, or gone through it, is not to need all of it.
            self._note(self.seen.written if writes else self.seen.read, path)

    @staticmethod
    def _note(where: dict[str, None], path: str) -> None:
        if len(where) < _MOST:
            where[path] = None

    def _reach(self, notifier: Notifier, call: Call) -> bool:
        """Connect for it, from the host, and put our socket in the place of its own; whether the call has its answer."""
        peer = read_peer(notifier, call)
        if peer is None or not peer.port:
            return False
        try:
            _replace_socket(notifier, call, peer)
        except OSError as error:
            notifier.refuse(call, error.errno or errno.ECONNREFUSED)
            return True
        if peer.port != _DNS:
            self.seen.peers[Peer(peer.address, peer.port)] = None
        notifier.succeed(call)
        return True


def _replace_socket(notifier: Notifier, call: Call, peer: Destination) -> None:
    number = call.arguments[0] & 0xFFFFFFFF
    with contextlib.ExitStack() as closing:
        pidfd = os.pidfd_open(call.pid)
        closing.callback(os.close, pidfd)
        theirs = closing.enter_context(socket.socket(fileno=kernel.syscall(_PIDFD_GETFD, pidfd, number, 0)))
        ours = closing.enter_context(socket.socket(theirs.family, theirs.type))
        ours.settimeout(_CONNECT_SECONDS)
        address = (
            f"::ffff:{peer.address}" if theirs.family == socket.AF_INET6 and ":" not in peer.address else peer.address
        )
        ours.connect((address, peer.port))
        ours.setblocking(not fcntl.fcntl(theirs, fcntl.F_GETFL) & os.O_NONBLOCK)
        descriptor_flags = os.O_CLOEXEC if "1" in _flags(call.pid, number) else 0
        fcntl.ioctl(
            notifier.descriptor, _ADDFD, struct.pack("=QIIII", call.id, _SETFD, ours.fileno(), number, descriptor_flags)
        )


def _flags(pid: int, descriptor: int) -> str:
    """ "1" when the descriptor of that process closes at exec."""
    with open(f"/proc/{pid}/fdinfo/{descriptor}") as file:
        line = next((line for line in file if line.startswith("flags:")), "flags: 0")
    return "1" if int(line.split()[1], 8) & os.O_CLOEXEC else ""


def _path(notifier: Notifier, call: Call, shape: _Shape) -> str:
    """The absolute path that a call means, links not followed; empty when it names none."""
    text = _text(notifier, call, call.arguments[shape.path])
    number = (
        _AT_FDCWD
        if shape.directory < 0
        else struct.unpack("=i", struct.pack("=I", call.arguments[shape.directory] & 0xFFFFFFFF))[0]
    )
    if not text or text.startswith("/"):
        return os.path.normpath(text) if text else ""
    try:
        base = os.readlink(f"/proc/{call.pid}/cwd" if number == _AT_FDCWD else f"/proc/{call.pid}/fd/{number}")
    except OSError:
        return ""
    return os.path.normpath(os.path.join(base, text)) if base.startswith("/") else ""


def _text(notifier: Notifier, call: Call, address: int) -> str:
    """The string at an address, which may end where memory ends."""
    near = notifier.read(call, address, min(_PATH, 4096 - address % 4096))
    data = near if b"\0" in near else near + notifier.read(call, address + len(near), _PATH)
    return os.fsdecode(data.partition(b"\0")[0]) if b"\0" in data else ""


def _is_usual(path: str) -> bool:
    return path == "/" or path in _USUAL or _below(path, _ITS_OWN)


def _below(path: str, places: Iterable[str]) -> bool:
    return any(path == place or path.startswith(place.rstrip("/") + "/") for place in places)


def least(given: Policy, seen: Seen, memory: float) -> Policy:
    """The policy that allows what was seen: what was given, files one by one or by directory, services, and memory with half as much again. Pure."""
    written = _outermost(seen.written)
    read = [path for path in _by_directory(seen.read) if not _below(path, written)]
    grants = {path: Grant(path, path) for path in _outermost(read)}
    grants |= {path: Grant(path, path, writable=True) for path in written}
    kept = [grant for grant in grants.values() if not _below(grant.target, [each.target for each in given.fs])]
    room = max(1, -(-int(memory * 1.5) // (16 * MiB))) * 16 * MiB
    return given._replace(
        fs=(*given.fs, *sorted(kept)), net=tuple(dict.fromkeys((*given.net, *seen.peers))), memory=room
    )


def _by_directory(paths: Iterable[str]) -> list[str]:
    """Many files of one directory become the directory."""
    counts: dict[str, int] = {}
    for path in paths:
        counts[os.path.dirname(path)] = counts.get(os.path.dirname(path), 0) + 1
    crowded = {directory for directory, count in counts.items() if count >= _TOGETHER and directory.count("/") > 1}
    return list(dict.fromkeys(os.path.dirname(path) if os.path.dirname(path) in crowded else path for path in paths))


def _outermost(paths: Iterable[str]) -> list[str]:
    chosen: list[str] = []
    for path in sorted(paths):
        if not _below(path, chosen):
            chosen.append(path)
    return chosen


def render(found: Policy, request: Request) -> str:
    """The policy as YAML, and as a command line in a comment. Pure."""
    mapping, usual = policy.to_mapping(found), policy.to_mapping(Policy())
    lines = ["# learned from one run; what other input makes the program use is not in it"]
    lines += [f"# roost run {' '.join([*_words(mapping, usual), _quoted(request.file)])}"]
    for name, value in mapping.items():
        if value != usual[name]:
            lines += _yaml(name, value)
    return "\n".join(lines) + "\n"


def _words(mapping: dict[str, object], usual: dict[str, object]) -> list[str]:
    """The flags that give this policy."""
    words: list[str] = []
    for name, value in mapping.items():
        if value == usual[name]:
            continue
        flag = f"--{name.replace('_', '-')}"
        items = (
            value
            if isinstance(value, list)
            else [f"{key}={each}" for key, each in value.items()]
            if isinstance(value, dict)
            else [value]
        )
        for item in items:
            words += [flag] if item is True else [flag, _quoted(_word(item))]
    return words


def _word(item: object) -> str:
    return "none" if item is None else str(item)


def _quoted(text: str) -> str:
    """As a shell reads it."""
    plain = text and all(each.isalnum() or each in "/.:_-=[]" for each in text)
    return text if plain else "'" + text.replace("'", "'\\''") + "'"


def _yaml(name: str, value: object) -> list[str]:
    if isinstance(value, list):
        return [f"{name}:", *(f"  - {_scalar(item)}" for item in value)]
    if isinstance(value, dict):
        return [f"{name}:", *(f"  {_scalar(key)}: {_scalar(item)}" for key, item in value.items())]
    return [f"{name}: {_scalar(value)}"]


def _scalar(value: object) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return "null" if value is None else str(value).lower()
