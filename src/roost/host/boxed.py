"""What happens in the forked process between the fork and the program's first instruction: it becomes the init of a box."""

from __future__ import annotations

import _socket
import errno
import fcntl
import marshal
import os
import resource

from roost.host import boxed_init, boxed_network, boxed_root, idmap, kernel, landlock
from roost.host.box import Receive
from roost.light import Callable, Mapping, signal

NAMESPACES = {
    "user namespace": kernel.NEWUSER,
    "mount namespace": kernel.NEWNS,
    "pid namespace": kernel.NEWPID,
    "ipc namespace": kernel.NEWIPC,
    "uts namespace": kernel.NEWUTS,
    "cgroup namespace": kernel.NEWCGROUP,
    "network namespace": kernel.NEWNET,
}
FORBIDDEN, LACKING = "forbidden", "lacking"
"""Words of the status: the host forbids mounts in the namespaces that it gave; a required layer is missing."""
_OOM_SCORE = 500
_IPC = {"shmmni": "128", "msgmni": "32", "sem": "250 8000 100 128"}
"""Segments, queues, and semaphores (in a set, in all, in a call, sets)."""
_LONGEST = 256 << 10  # bytes that a program is told at its gate
_HANDED = 8  # descriptors
_FLOOR = 64  # descriptors of ours are moved from here on


class Orders:
    """What init is told: the box, taken apart, and what its supervisor prepared."""

    __slots__ = (
        *(
            "argv",
            "call",
            "cwd",
            "doors",
            "env",
            "fds",
            "files",
            "filter",
            "handlers",
            "inside",
            "isolated",
            "keeps",
            "limits",
            "links",
            "maps",
        ),
        *("gate", "program", "ready", "require", "rooted", "tmp", "trees", "uid", "watch", "layers", "missing"),
    )
    argv: tuple[str, ...]
    call: Callable[[], int] | None
    cwd: str
    doors: tuple[tuple[str, int], ...]
    env: Mapping[str, str]
    fds: Mapping[int, int]
    files: Mapping[str, bytes]
    filter: bytes
    handlers: tuple[str, ...]
    gate: _socket.socket | None
    """Where the program waits to be told what it is to do, by a message for what `ready` gave; None: it is known."""
    inside: int
    """The uid and gid inside."""
    isolated: bool
    """In namespaces of its own."""
    keeps: Mapping[int, tuple[int, int]]
    """Descriptors that a `call` finds open, if they are of this file (device, inode)."""
    limits: tuple[int | None, float | None, int, int, int | None]
    """As `sandbox.Limits`."""
    links: Mapping[str, str]
    maps: tuple[str, str] | None
    """The uid and gid maps that it writes for itself; None where root writes them."""
    program: str
    ready: Callable[[], Receive] | None
    """Called in the program's process before it waits at the gate."""
    require: tuple[str, ...]
    rooted: bool
    """It is root of the namespace in which the box is built, and leaves that for a second one."""
    tmp: int
    trees: list[boxed_root.Tree]
    uid: int
    """Its uid on the host, when that is another than ours; else -1."""
    watch: str
    layers: list[str]
    missing: list[str]

    def close(self) -> None:
        """Let go of the trees."""
        for tree in self.trees:
            tree.close()


def become(orders: Orders, link: _socket.socket, status: int) -> None:
    """Never returns. Tells `status` lines `layer NAME`, `missing NAME: why`, `error why`; its end without an error is the exec."""
    try:
        try:
            init = _Init(orders, link, status)
        except OSError as error:  # a limit of descriptors that is too low
            os.write(status, f"error {error}\n".encode(errors="replace"))
            return
        init.run()
    finally:
        os._exit(125)


class _NotHereError(Exception):
    """What the program needs is not possible on this host, in words for its user."""


def _in_words(error: BaseException) -> str:
    return str(error) if isinstance(error, _NotHereError) else f"{type(error).__name__}: {error}"


class _Init:
    def __init__(self, orders: Orders, link: _socket.socket, status: int) -> None:
        self._orders = orders
        _forget_signals()
        self._link, self._status, self._descriptors = _sort_descriptors(orders, link.detach(), status)

    def run(self) -> None:
        try:
            program = self._prepare()
        except BaseException as error:
            self._report("error", _in_words(error))
            return
        if program:
            self._let_go()
            for number in _still(self._orders.keeps):
                os.close(number)
            boxed_init.serve(self._link, program, alone=not self._orders.isolated)

    def _prepare(self) -> int:
        """Everything up to the fork of the program, whose pid it returns; 0 where there is none."""
        orders = self._orders
        _wipe_arguments()
        raise_oom_score("self")
        os.umask(0o022)
        if self._link.recv(1) != b"g":
            return 0
        if orders.isolated:
            if not self._isolate():
                self._report(FORBIDDEN)
                return 0
            self._enter()
            self._leave_root()
        else:
            self._stay()
        self._drop_privileges()
        lacking = [name for name in orders.require if name not in orders.layers]
        if lacking:
            self._report(LACKING, ", ".join(lacking))
            return 0
        return self._fork()

    def _become_inner(self) -> None:
        """The identity in which the box is built: the program's own, or, where that can not do it all, root of our namespace."""
        orders = self._orders
        if orders.maps is None:
            inner = 0 if orders.rooted else orders.inside
            os.setgroups([])
            os.setresgid(inner, inner, inner)
            if not orders.rooted:
                self._bound_ipc()  # the namespace has no root: that of the host may
            os.setresuid(inner, inner, inner)
            if orders.rooted:
                self._bound_ipc()
        else:
            self._map(*orders.maps)
            self._bound_ipc()
        self._hide()

    def _leave_root(self) -> None:
        """A second user namespace below the first, in which we are who the program is to be."""
        if self._orders.rooted and os.path.exists("/proc/self"):
            kernel.unshare(kernel.NEWUSER)
            self._map(f"{self._orders.inside} 0 1", f"{self._orders.inside} 0 1")
            self._hide()

    def _map(self, uids: str, gids: str) -> None:
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # else /proc/self/uid_map belongs to root
        _write("/proc/self/setgroups", "deny")
        idmap.write_maps("self", uids, gids)

    def _hide(self) -> None:
        """After every change of identity: our memory is that of the caller, and no business of the program."""
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)

    def _bound_ipc(self) -> None:
        """System V ipc outlives what made it and belongs to no process: nobody else counts it. Only root of its namespace may bound it."""
        memory = self._orders.limits[0]
        bounds = _IPC if memory is None else {**_IPC, "shmall": str(memory // os.sysconf("SC_PAGE_SIZE"))}
        try:
            for name, value in bounds.items():
                _write(f"/proc/sys/kernel/{name}", value)
        except OSError as error:
            self._orders.missing.append(f"ipc limits: {error.strerror}")

    def _isolate(self) -> bool:
        """Whether we are who we are to be, and what we mount is ours alone; a policy may refuse either in namespaces which it allowed."""
        try:
            self._become_inner()
            kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
        except PermissionError:
            return False
        return True

    def _enter(self) -> None:
        """Into the root and the network that are its own."""
        orders = self._orders
        for tree in orders.trees:
            tree.take()
        orders.missing += boxed_root.build(orders.trees, orders.links, orders.files, orders.cwd, orders.tmp)
        orders.missing += boxed_root.register(orders.handlers)
        kernel.set_hostname("roost")
        orders.layers += [*NAMESPACES, "minimal root"]
        doors = boxed_network.open_doors(orders.doors)
        if doors:
            rights = b"".join(door.fileno().to_bytes(4, "little") for door in doors)
            self._link.sendmsg([b"doors"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
        for door in doors:
            door.close()

    def _stay(self) -> None:
        """On the host, where only Landlock and seccomp stand before the program: it must find its files where they are."""
        orders = self._orders
        if orders.doors:
            raise _NotHereError("--net needs a network namespace, which this host does not let us have")
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        places = {tree.target: tree.source for tree in orders.trees}
        moved = {target for target, source in places.items() if target != source} - {*orders.argv, orders.program}
        if moved and orders.call is None:
            why = "which only namespaces make, and this host does not let us have them"
            raise _NotHereError(f"it needs {min(moved)} in a root of its own, {why}")
        orders.argv = tuple(places.get(word, word) for word in orders.argv)
        orders.program = places.get(orders.program, orders.program)

    def _drop_privileges(self) -> None:
        orders = self._orders
        kernel.drop_bounding_set()
        kernel.drop_capabilities()
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        orders.layers += ["no capabilities", "no new privileges", "resource limits"]
        if orders.filter:
            orders.layers.append("seccomp")
        else:
            orders.missing.append(f"seccomp: there is no filter for {os.uname().machine}")
        if landlock.version():
            orders.layers.append("landlock")
        else:
            orders.missing.append("landlock: the kernel has none or it is switched off (lsm=)")
        if not orders.isolated and not (orders.call or {"seccomp", "landlock"} <= {*orders.layers}):
            raise PermissionError("neither namespaces nor Landlock and seccomp: nothing would hold it")

    def _fork(self) -> int:
        lines = [f"layer {name}\n" for name in self._orders.layers]
        lines += [f"missing {text}\n" for text in self._orders.missing]
        os.write(self._status, "".join(lines).encode())
        pid = os.fork()
        if pid == 0:
            try:
                self._become_program()
            except BaseException as error:
                self._fail(_in_words(error))
            finally:
                os._exit(125)
        return pid

    def _fail(self, why: str) -> None:
        """Where the status is closed (watch "learn"), the supervisor listens to the link."""
        try:
            self._report("error", why)
        except OSError:
            self._link.send(f"failed {why}".encode(errors="replace"))

    def _become_program(self) -> None:
        """In the program's process."""
        orders = self._orders
        os.chdir(orders.cwd)
        if not orders.isolated:
            kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        _limit(orders)
        _restrict_files(orders, self._opened())
        self._filter()
        if orders.gate is not None:
            self._wait(orders.gate)
        for inside, descriptor in self._descriptors.items():
            os.dup2(descriptor, inside, inheritable=True)
        if orders.call is None:
            if orders.watch == "learn":
                os.close(self._status)  # its exec waits for the supervisor
            os.execve(orders.program or orders.argv[0], orders.argv, orders.env)
        self._let_go()
        if orders.watch:
            kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # as an exec would: the supervisor reads what its calls name
        self._link.close()
        os.environ.clear()
        os.environ.update(orders.env)
        os._exit(_result(orders.call))

    def _opened(self) -> tuple[int, ...]:
        """Descriptors whose files it may open again by name. At a gate nobody knows them yet: a program gets /dev/null, which is our input now."""
        if self._orders.gate is None:
            return tuple(self._descriptors.values())
        return (0,) if self._orders.call is None else ()

    def _wait(self, gate: _socket.socket) -> None:
        """Learn what the program is; never returns when nobody needs it. What it has open is of no use by name to a `call`."""
        if self._orders.ready is None:
            os._exit(0)
        receive = self._orders.ready()
        room = _socket.CMSG_SPACE(4 * _HANDED)
        message, ancillary, _, _ = gate.recvmsg(_LONGEST, room, _socket.MSG_CMSG_CLOEXEC)
        gate.close()
        if not message:
            os._exit(0)
        data = b"".join(data for _, _, data in ancillary)
        numbers = tuple(int.from_bytes(data[start : start + 4], "little") for start in range(0, len(data) - 3, 4))
        self._orders.env, words = marshal.loads(message)
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors = dict(enumerate(numbers[:3]))
        if self._orders.call is None:
            self._orders.argv = marshal.loads(words)
        else:
            self._orders.call = lambda: receive(words, numbers[3:])

    def _filter(self) -> None:
        orders = self._orders
        if not orders.filter:
            return
        if not orders.watch:
            kernel.load_filter(orders.filter)
            return
        notify = kernel.load_watched_filter(orders.filter)
        rights = notify.to_bytes(4, "little")
        self._link.sendmsg([b"notify"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
        os.close(notify)

    def _let_go(self) -> None:
        """Init keeps nothing that is the program's: an end of a pipe that it held would never end."""
        os.close(self._status)
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        if self._orders.gate is not None:
            self._orders.gate.close()

    def _report(self, word: str, text: str = "") -> None:
        os.write(self._status, f"{word} {text}".replace("\n", " ").encode(errors="replace") + b"\n")


def _result(call: Callable[[], int]) -> int:
    try:
        return call() & 0xFF
    except BaseException as error:
        os.write(2, f"roost: {type(error).__name__}: {error}\n".encode(errors="replace"))
        return 125


def _wipe_arguments() -> None:
    """Our command line is that of the caller, with all that stands in it, and /proc shows it to everybody, also when memory is hidden."""
    with open("/proc/self/stat") as file:
        start, end = map(int, file.read().rpartition(")")[2].split()[45:47])  # arg_start, arg_end: proc_pid_stat(5)
    kernel.clear_memory(start, end - start)


def raise_oom_score(pid: int | str) -> None:
    """Make it the one to go when memory is short. Where root does it, nobody without privileges can take it back. Raises OSError."""
    path = f"/proc/{pid}/oom_score_adj"
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        score = int(os.read(descriptor, 16))  # at once: both sides of a start write it
        os.write(descriptor, b"%d" % max(score, _OOM_SCORE))
    finally:
        os.close(descriptor)


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _forget_signals() -> None:
    """The usual signals, whatever Python and our supervisor did with them; but what runs under nohup stays so."""
    for number in range(1, signal.NSIG):
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
            continue
        try:
            signal.signal(number, signal.SIG_DFL)
        except (OSError, ValueError):
            continue  # SIGKILL, SIGSTOP and those of the C library
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _base(orders: Orders) -> int:
    """Where there is room for our descriptors. Raises OSError when there is none."""
    base = max([*orders.fds, _FLOOR - 1]) + 1
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < base + 2 * _FLOOR:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return base


def _sort_descriptors(orders: Orders, link: int, status: int) -> tuple[_socket.socket, int, dict[int, int]]:
    """Close all but what is wanted, and move that above every number that the program is to have; all of it closes at exec."""
    base = _base(orders)

    def move(descriptor: int) -> int:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, base)

    moved = {inside: move(descriptor) for inside, descriptor in orders.fds.items()}
    link, status = move(link), move(status)
    if orders.gate is not None:
        orders.gate = _socket.socket(fileno=move(orders.gate.detach()))
    gates = [] if orders.gate is None else [orders.gate.fileno()]
    for tree in orders.trees:
        if tree.tree >= 0:
            tree.tree = move(tree.tree)
    trees = [tree.tree for tree in orders.trees if tree.tree >= 0]
    _close_all_but([link, status, *gates, *moved.values(), *trees, *_still(orders.keeps)])
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number, inheritable=True)
    return _socket.socket(fileno=link), status, moved


def _still(keeps: Mapping[int, tuple[int, int]]) -> list[int]:
    """Those that are open, and of their file: in a process with threads a number may have become another file's before the fork."""
    found = []
    for number, identity in keeps.items():
        try:
            seen = os.fstat(number)
        except OSError:
            continue
        if (seen.st_dev, seen.st_ino) == identity:
            found.append(number)
    return found


def _close_all_but(kept: list[int]) -> None:
    low = 0
    for descriptor in sorted(kept):
        if low < descriptor:
            os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, 0x7FFFFFFF)


def _limit(orders: Orders) -> None:
    _, cpu_time, processes, files, file_size = orders.limits
    bounds = {resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: files}
    if file_size is not None:
        bounds[resource.RLIMIT_FSIZE] = file_size
    if orders.isolated or orders.uid >= 0:
        bounds[resource.RLIMIT_NPROC] = processes + 1  # init is one of them
    for number, value in bounds.items():
        _set_limit(number, value, value)
    if cpu_time is not None:
        # SIGXCPU first, and a second later, when that was caught, SIGKILL.
        seconds = -int(-cpu_time // 1)
        _set_limit(resource.RLIMIT_CPU, seconds, seconds + 1)


def _set_limit(number: int, soft: int, hard: int) -> None:
    most = resource.getrlimit(number)[1]
    if most != resource.RLIM_INFINITY:
        soft, hard = min(soft, most), min(hard, most)
    resource.setrlimit(number, (soft, hard))


def _restrict_files(orders: Orders, opened: tuple[int, ...]) -> None:
    """Reading and executing what there is, since only what was granted is there; writing by name."""
    kinds = {"write": "tree", "overlay": "tree", "device": "device", "read": "execute"}
    if orders.isolated:
        rules = [("/", "execute"), ("/tmp", "tree"), ("/dev", "devices"), ("/dev/shm", "tree")]
        rules += [(tree.target, kinds[tree.kind]) for tree in orders.trees if tree.kind in ("write", "overlay")]
    else:
        kinds["overlay"] = "execute"  # there is no overlay, and the tree itself must not change
        rules = [(tree.source, kinds[tree.kind]) for tree in orders.trees] + [("/proc", "execute")]
    landlock.restrict(rules, network=orders.isolated, opened=opened)
