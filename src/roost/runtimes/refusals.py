"""What a program was refused, and the flag that would allow it: connections as they are made, and files that its arguments name."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from roost.light import Callable, Iterable, NamedTuple, Set
from roost.runtimes.base import Grant

MOST = 32
"""Different refusals that are kept of one run."""

_RECEIVE, _SEND, _IS_VALID = 0xC0502100, 0xC0182101, 0x40082102  # SECCOMP_IOCTL_NOTIF_*: include/uapi/linux/seccomp.h
_CONTINUE = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")  # struct seccomp_notif
_RESPONSE = struct.Struct("=QqiI")  # struct seccomp_notif_resp
_AF_INET, _AF_INET6 = 2, 10
_ADDRESS = 28  # sizeof(struct sockaddr_in6)
_RESOLVER = 53


class Call(NamedTuple):
    """A system call that waits for our answer: `pid` as we see it, the number as the architecture has it."""

    id: int
    pid: int
    number: int
    arguments: tuple[int, ...]


class Notifier:
    """The descriptor at which the kernel asks what shall become of a system call."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def receive(self) -> Call | None:
        """The next call, or None when its process has ended meanwhile."""
        record = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self.descriptor, _RECEIVE, record)
        except OSError:
            return None
        number, pid, _, call, _, _, *arguments = _NOTIFICATION.unpack(record)
        return Call(number, pid, call, tuple(arguments))

    def read(self, call: Call, address: int, size: int) -> bytes:
        """Memory of the process that waits. Empty when it can not be had, or when the process is no longer that one.

        It may change what is there as soon as we answer, so nothing that is decided by it may be what holds the program.
        """
        try:
            memory = os.open(f"/proc/{call.pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = os.pread(memory, size, address)
            finally:
                os.close(memory)
            fcntl.ioctl(self.descriptor, _IS_VALID, struct.pack("=Q", call.id))
        except (OSError, OverflowError):
            return b""
        return data

    def proceed(self, call: Call) -> None:
        """Let the kernel do what was asked."""
        self._answer(_RESPONSE.pack(call.id, 0, 0, _CONTINUE))

    def refuse(self, call: Call, number: int) -> None:
        """Let the call fail with this errno."""
        self._answer(_RESPONSE.pack(call.id, 0, -number, 0))

    def succeed(self, call: Call) -> None:
        """Let the call return 0 without the kernel's doing."""
        self._answer(_RESPONSE.pack(call.id, 0, 0, 0))

    def _answer(self, response: bytes) -> None:
        try:
            fcntl.ioctl(self.descriptor, _SEND, response)
        except OSError as error:
            if error.errno != errno.ENOENT:  # else the process has ended, or a signal took it out of the call
                raise


class Destination(NamedTuple):
    """The address and port that a connect(2) names."""

    address: str
    port: int


class Refusals:
    """Keeps different ones in the order in which they came."""

    def __init__(self) -> None:
        self.lines: dict[str, None] = {}

    def note(self, line: str) -> None:
        """Remember it, unless there are enough."""
        if len(self.lines) < MOST:
            self.lines[line] = None


class Connects:
    """Answers for connect(2): what leads out of the namespace fails at once and is noted; all else, such as to the addresses `inside`, proceeds.

    The network namespace is what holds the program; the answer only makes the error a clear one.
    """

    def __init__(self, notifier: Notifier, refusals: Refusals, inside: Set[str]) -> None:
        self._notifier = notifier
        self._refusals = refusals
        self._inside = inside

    def ready(self, _: int) -> None:
        """Answer one call."""
        call = self._notifier.receive()
        if call is None:
            return
        peer = read_peer(self._notifier, call)
        if peer is None or self._stays_inside(peer):
            self._notifier.proceed(call)
            return
        if peer.port:  # port 0 is the C library's, which asks for a route
            place = f"[{peer.address}]:{peer.port}" if ":" in peer.address else f"{peer.address}:{peer.port}"
            self._refusals.note(f"connect to {place}; allow it with --net {place}")
        self._notifier.refuse(call, errno.EACCES)

    def _stays_inside(self, peer: Destination) -> bool:
        if peer.address in self._inside:
            return True
        if not (peer.address.startswith("127.") or peer.address in ("::1", "0.0.0.0", "::")):
            return False
        if peer.port == _RESOLVER:
            self._refusals.note("look up a name; allow a service by its name with --net NAME:PORT")
        return True


def read_peer(notifier: Notifier, call: Call) -> Destination | None:
    """What a connect(2) leads to, or None when that is no IP address."""
    return parse_peer(notifier.read(call, call.arguments[1], min(call.arguments[2] & 0xFFFFFFFF, _ADDRESS)))


def parse_peer(data: bytes) -> Destination | None:
    """The address in a struct sockaddr, an IPv4 one in an IPv6 one as what it is; None when it is none of them. Pure."""
    family = int.from_bytes(data[:2], "little")
    port = int.from_bytes(data[2:4], "big")
    if family == _AF_INET and len(data) >= 8:
        return Destination(".".join(map(str, data[4:8])), port)
    if family != _AF_INET6 or len(data) < 24:
        return None
    if data[8:20] == bytes(10) + b"\xff\xff":
        return Destination(".".join(map(str, data[20:24])), port)
    import socket

    return Destination(socket.inet_ntop(socket.AF_INET6, data[8:24]), port)


def _may_be_made(directory: str, cwd: str) -> bool:
    """Whether a file to be written there is one of the caller's: others are the program's own, or the system's."""
    return directory not in ("/", cwd) and not f"{directory}/".startswith(
        ("/tmp/", "/dev/", "/proc/", "/usr/", "/app/")
    )


def hidden_files(
    arguments: Iterable[str], cwd: str, grants: Iterable[Grant], exists: Callable[[str], bool]
) -> list[str]:
    """A line for each argument that names a file of the caller which the program does not see, or one to be made in a directory of the caller's.

    `exists` asks the host.
    """
    visible = [grant.target.rstrip("/") for grant in grants]
    found = []
    for argument in arguments:
        for word in filter(None, (argument, argument.partition("=")[2])):
            path = os.path.normpath(os.path.join(cwd, word))
            seen = any(path == place or path.startswith(place + "/") for place in visible)
            if len(path) < 2 or "\0" in path or path == cwd or seen:
                continue
            above = word.rpartition("/")[0]
            if exists(path):
                found.append(f"{word} is not visible; allow it with --fs {word}:ro")
            elif above and _may_be_made(os.path.dirname(path), cwd) and exists(os.path.dirname(path)):
                found.append(f"{above} is not visible; allow it with --fs {above}")
    return found[:MOST]
