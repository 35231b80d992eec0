"""The sandbox of a program: starts it with an init of its own in namespaces that hold nothing but what the box names."""

from __future__ import annotations

import _socket
import errno
import marshal
import os
import stat

from roost.errors import NotStarted, RoostError, Unavailable
from roost.host import boxed, boxed_filter, boxed_group, boxed_root, idmap, kernel, landlock
from roost.host.box import Box, Limits, Receive
from roost.host.boxed_group import Group
from roost.light import Callable, NamedTuple, signal, suppress

__all__ = ["FIRST_UID", "INSIDE", "Box", "Boxed", "Group", "Limits", "start"]

INSIDE = 1000
"""The uid and gid that a program sees of itself."""
FIRST_UID = 10_000_000
"""Where root starts it, a program has the host uid FIRST_UID + the pid of its supervisor."""

_FORBIDDEN = "the kernel or a policy of the host forbids it"
_NULL = os.makedev(1, 3)
"""/dev/null: devices.txt of the kernel."""
_ACCOUNTS = {
    "/etc/passwd": b"user:x:%d:%d::/tmp:/bin/sh\n" % (INSIDE, INSIDE),
    "/etc/group": b"user:x:%d:\n" % INSIDE,
}


class Boxed(NamedTuple):
    """A program that has started.

    `pid` and `pidfd` are of its init, our child, on the host (the caller reaps it and closes the pidfd); killing it or closing `link` kills all
    inside. `link` is a SOCK_SEQPACKET socket to init. Send `signal N`, `connect PORT` and `sockets LIMIT`; receive `ended exit N` or `ended
    signal N` (init then stays until the link closes, for what the program left running), `failed WHY` when after all it could not be executed
    (watch "learn" only), `connected PORT` with a descriptor (a non-blocking TCP socket, connecting: writable when done, SO_ERROR tells) or
    `refused PORT ERRNO`, and `sockets BYTES` that all sockets of its network hold (no longer counted above the limit).
    `listeners` are descriptors in the order of `doors`, `notify` that of the user notifications (-1: none). `group` is its control group where
    one was required; otherwise the caller may make one later (`boxed_group.create`, `Group.join`), since to join blocks for tens of milliseconds.
    """

    pid: int
    pidfd: int
    link: _socket.socket
    layers: tuple[str, ...]
    missing: tuple[str, ...]
    listeners: tuple[int, ...]
    notify: int
    group: Group | None


class _ForbiddenError(Exception):
    """This host does not let us start it in this way; a weaker one may do."""


def start(box: Box) -> Boxed:
    """Start the program; returns when its exec has happened (watch "learn": is about to). Supervise it in the same thread: its end ends the program.

    Raises NotStarted when it did not come to its exec, Unavailable when a required layer is missing here. Then nothing is left.
    """
    ready = _prepared.pop() if _prepared else None
    if ready is None:
        return _start(box)
    taken = ready.take(box)
    if taken is not None:
        return taken
    try:
        return _start(box)
    finally:
        ready.undo()  # it has ended meanwhile


def _start(box: Box) -> Boxed:
    if box.handover is not None:
        box.handover.settle()
    why: list[str] = []
    for mode in ("own", "caller", "bare") if os.geteuid() == 0 else ("caller", "bare"):
        birth = _Birth(box, mode, why)
        try:
            return birth.attend()
        except _ForbiddenError as error:
            birth.undo()
            why.append(str(error))
        except BaseException:
            birth.undo()
            raise
    raise NotStarted("the program was not started in its sandbox", "; ".join(why), "roost doctor jail")


def prepare(box: Box, ready: Callable[[], Receive]) -> bool:
    """Make the sandbox for the next `start` in this process of a box that differs in nothing but name, env, fds, and `call` and cwd, or `argv`.

    What waits in it has called `ready`, whose value it calls with what `Handover.pack` gave; otherwise it is as if it had been started then. A
    program (`argv`) gets one in which all that it is shown is still what it was, and only where its descriptors are pipes, sockets or /dev/null.
    False: not on this host.
    """
    birth = _Birth(box, "own" if os.geteuid() == 0 else "caller", [])
    try:
        birth.begin(ready)
    except (RoostError, OSError, _ForbiddenError):
        birth.undo()
        return False
    _prepared.append(birth)
    return True


def prepared() -> bool:
    """Whether one is waiting."""
    return bool(_prepared)


def discard() -> None:
    """End those that are waiting."""
    while _prepared:
        _prepared.pop().undo()


def _sources(box: Box) -> tuple[str, ...]:
    """What the places that a box shows are at this moment: what is mounted on the host, and of each the file that has this name."""
    trees, links = boxed_root.system_trees(box.files) if box.system else ([], {})
    seen = [f"{link} {place}" for link, place in links.items()]
    for path in (*(tree.source for tree in trees), *(mount[0] for mount in box.mounts)):
        status = os.stat(path)
        seen.append(f"{path} {status.st_dev} {status.st_ino}")
    with open("/proc/self/mountinfo") as file:
        return (file.read(), *seen)


def _may_reopen(descriptor: int) -> bool:
    """Whether it makes no difference to Landlock that the program's descriptors were not known when it was locked."""
    seen = os.fstat(descriptor)
    return stat.S_ISFIFO(seen.st_mode) or stat.S_ISSOCK(seen.st_mode) or seen.st_rdev == _NULL


class _Birth:
    """The time between our fork and the program's exec, in one of the modes: "own" uid, "caller" uid, or "bare", without namespaces."""

    def __init__(self, box: Box, mode: str, why: list[str]) -> None:
        self._box = box
        self._mode = mode
        self._why = why
        self._link, self._theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        self._status, self._told = os.pipe2(os.O_CLOEXEC)
        self._pid = 0
        self._pidfd = -1
        self._group: Group | None = None
        self._received: list[int] = []
        self._gate: _socket.socket | None = None
        self._sources: tuple[str, ...] = ()

    def attend(self) -> Boxed:
        self._begin(self._orders())
        return self._finish()

    def begin(self, ready: Callable[[], Receive]) -> None:
        """Up to where the program must be known."""
        if self._box.call is None:
            self._sources = _sources(self._box)
        orders = self._orders()
        self._gate, orders.gate = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        orders.ready = ready
        try:
            self._begin(orders)
        finally:
            orders.gate.close()

    def take(self, box: Box) -> Boxed | None:
        """The rest, for this program; None when it does not fit or has ended: then it is killed, and the caller undoes it."""
        gate, packed = self._gate, None
        with suppress(OSError):  # something that it is to be shown is gone
            packed = self._pack(box)
        if gate is None or packed is None:
            os.kill(self._pid, signal.SIGKILL)
            return None
        words, descriptors = packed
        handed = (box.fds[0], box.fds[1], box.fds[2], *descriptors)
        rights = b"".join(number.to_bytes(4, "little") for number in handed)
        try:
            message = marshal.dumps((dict(box.env), words))
            gate.sendmsg([message], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
            return self._finish()
        except (RoostError, OSError, _ForbiddenError):
            os.kill(self._pid, signal.SIGKILL)
            return None
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
            gate.close()

    def _pack(self, box: Box) -> tuple[bytes, tuple[int, ...]] | None:
        """What goes through the gate beside environment and standard descriptors; None for a box that is not like ours."""
        mine = self._box
        alike = box._replace(name=mine.name, env=mine.env, fds=mine.fds, handover=None)
        if mine.call is None:
            same = alike._replace(argv=mine.argv) == mine and _sources(box) == self._sources
            return (marshal.dumps(box.argv), ()) if same and all(map(_may_reopen, box.fds.values())) else None
        if box.handover is None or alike._replace(call=mine.call, cwd=mine.cwd) != mine:
            return None
        return box.handover.pack()

    def _begin(self, orders: boxed.Orders) -> None:
        self._fork(orders)
        self._pidfd = os.pidfd_open(self._pid)
        self._let_in(orders)

    def _finish(self) -> Boxed:
        layers, missing = self._hear()
        listeners = self._receive(b"doors", len(self._box.doors))
        notify = self._receive(b"notify", 1 if self._box.watch and "seccomp" in layers else 0)
        os.close(self._status)
        return Boxed(
            *(self._pid, self._pidfd, self._link, layers, missing),
            *(tuple(listeners), notify[0] if notify else -1, self._group),
        )

    def undo(self) -> None:
        """Leave nothing."""
        self._link.close()
        self._shut()
        if self._gate is not None:
            self._gate.close()
        os.close(self._status)
        for descriptor in self._received:
            os.close(descriptor)
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        if self._pidfd >= 0:
            os.close(self._pidfd)
        if self._group is not None:
            self._group.remove()

    def _shut(self) -> None:
        """Close what is init's."""
        self._theirs.close()
        if self._told >= 0:
            os.close(self._told)
            self._told = -1

    def _fork(self, orders: boxed.Orders) -> None:
        try:
            pid = kernel.clone(sum(boxed.NAMESPACES.values()) if orders.isolated else 0)
        except OSError as error:
            orders.close()
            # ENOSPC is a limit of namespaces, EPERM and EACCES a policy, EINVAL and ENOSYS a kernel without them.
            if orders.isolated and error.errno in (errno.ENOSPC, errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS):
                raise _ForbiddenError(_FORBIDDEN) from error
            raise self._failure(str(error)) from error
        if pid == 0:
            boxed.become(orders, self._theirs, self._told)
        self._pid = pid
        orders.close()
        self._shut()

    def _let_in(self, orders: boxed.Orders) -> None:
        """Give it its identity and its control group, and let it go on."""
        if self._mode == "own":
            try:
                entry = f"{0 if orders.rooted else INSIDE} {orders.uid} 1"
                idmap.write_maps(self._pid, entry, entry)
                boxed.raise_oom_score(self._pid)
            except OSError as error:
                raise _ForbiddenError("this root may not give out uids") from error
        if "control group" in self._box.require:
            limits = self._box.limits
            self._group, why = boxed_group.create(self._pid, limits.memory, limits.processes)
            if self._group is None:
                raise self._lacking(f"control group: {why}")
            self._group.join(self._pid)
        try:
            self._link.send(b"g")
        except OSError:
            return  # it has ended, and its status says why

    def _hear(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What it tells until its exec."""
        text = b""
        while part := os.read(self._status, 1 << 16):
            text += part
        told: dict[str, list[str]] = {"layer": [], "missing": [], "error": [], boxed.LACKING: [], boxed.FORBIDDEN: []}
        for line in text.decode(errors="replace").splitlines():
            word, _, rest = line.partition(" ")
            told[word].append(rest)
        if told[boxed.FORBIDDEN]:
            raise _ForbiddenError(_FORBIDDEN)
        if told[boxed.LACKING]:
            raise self._lacking(told[boxed.LACKING][0])
        if told["error"] or not told["layer"]:
            raise self._failure("; ".join(told["error"]) or "it ended without a word")
        held = ["control group"] if self._group is not None else []
        return (*told["layer"], *held), tuple(told["missing"])

    def _receive(self, word: bytes, count: int) -> list[int]:
        if not count:
            return []
        message, ancillary, _, _ = self._link.recvmsg(64, _socket.CMSG_SPACE(4 * count), _socket.MSG_CMSG_CLOEXEC)
        data = b"".join(data for _, _, data in ancillary)
        numbers = [int.from_bytes(data[start : start + 4], "little") for start in range(0, len(data) - 3, 4)]
        self._received += numbers
        if message != word or len(numbers) != count:
            raise self._failure(f"it sent no {word.decode()}")
        return numbers

    def _failure(self, why: str) -> NotStarted:
        fix = "ulimit -n 1024" if os.strerror(errno.EMFILE) in why else "roost doctor jail"
        return NotStarted("the program was not started in its sandbox", why, fix)

    def _lacking(self, why: str) -> Unavailable:
        return Unavailable(
            "the program was not started: a layer is required and missing here", why, "roost doctor jail"
        )

    def _orders(self) -> boxed.Orders:
        """The box taken apart, with its trees taken where root is allowed what init is not."""
        box, orders = self._box, boxed.Orders()
        for name in (
            *("argv", "call", "cwd", "doors", "env", "fds", "handlers", "keeps"),
            *("limits", "program", "require", "tmp", "watch"),
        ):
            setattr(orders, name, getattr(box, name))
        orders.gate = orders.ready = None
        orders.inside, orders.isolated = INSIDE, self._mode != "bare"
        orders.rooted = self._mode != "own" or bool(box.handlers)
        orders.require = tuple(name for name in box.require if name != "control group")
        orders.uid = (box.uid or FIRST_UID + os.getpid()) if self._mode == "own" else -1
        orders.maps = None if self._mode == "own" else (f"0 {os.geteuid()} 1", f"0 {os.getegid()} 1")
        orders.filter = boxed_filter.build(
            os.uname().machine,
            watch=box.watch,
            calls=box.calls,
            isolated=orders.isolated,
            signals=orders.uid >= 0 or landlock.version() >= 6,
        )
        orders.files = {**_ACCOUNTS, **box.files}
        trees, orders.links = boxed_root.system_trees(box.files) if box.system else ([], {})
        trees += [boxed_root.Tree(*mount) for mount in box.mounts]
        orders.trees = sorted(trees + boxed_root.device_trees(tty=box.tty), key=lambda tree: tree.target)
        orders.layers, orders.missing = self._identity()
        if orders.isolated and os.geteuid() == 0:
            self._take(orders)
        return orders

    def _identity(self) -> tuple[list[str], list[str]]:
        """What is known before the start: the layers that hold, and those that do not."""
        if self._mode == "own":
            return ["own uid"], []
        why = self._why[0] if self._why else "only root can give every program another one"
        missing = [f"own uid: {why}"]
        if self._mode == "bare":
            missing += [f"{name}: {_FORBIDDEN}" for name in (*boxed.NAMESPACES, "minimal root")]
        return [], missing

    def _take(self, orders: boxed.Orders) -> None:
        """As root, which init is no more, and lend what is lent."""
        owners = idmap.Owners(orders.uid)
        try:
            for tree in orders.trees:
                tree.take()
                if self._mode == "own" and tree.lent and not owners.lend(tree.tree):
                    raise _ForbiddenError(f"this kernel can not lend {tree.source}")
        except PermissionError as error:  # root without CAP_SYS_ADMIN, as in most containers
            orders.close()
            if self._mode == "own":
                raise _ForbiddenError("this root may not lend what it has") from error
        except OSError as error:
            orders.close()
            raise self._failure(str(error)) from error
        except BaseException:
            orders.close()
            raise
        finally:
            owners.close()


_prepared: list[_Birth] = []
