"""What happens in the forked process between the fork and the program's first instruction: it becomes the init of a box."""

# pathlib would cost a start milliseconds:
# ruff: noqa: PTH110

from __future__ import annotations

import _socket
import fcntl
import math
import os
import resource
import signal
from collections.abc import Callable, Mapping

from roost.host import boxed_init, boxed_network, boxed_root, idmap, kernel, landlock

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
            "inside",
            "isolated",
            "limits",
            "links",
            "maps",
        ),
        *("program", "require", "tmp", "trees", "uid", "watch", "layers", "missing"),
    )
    argv: tuple[str, ...]
    call: Callable[[], int] | None
    cwd: str
    doors: tuple[tuple[str, int], ...]
    env: Mapping[str, str]
    fds: Mapping[int, int]
    files: Mapping[str, bytes]
    filter: bytes
    inside: int
    """The uid and gid inside."""
    isolated: bool
    """In namespaces of its own."""
    limits: tuple[int | None, float | None, int, int, int | None]
    """As `sandbox.Limits`."""
    links: Mapping[str, str]
    maps: tuple[str, str] | None
    """The uid and gid maps that it writes for itself; None where root writes them."""
    program: str
    require: tuple[str, ...]
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
        _Init(orders, link, status).run()
    finally:
        os._exit(125)


class _Init:
    def __init__(self, orders: Orders, link: _socket.socket, status: int) -> None:
        self._orders = orders
        _forget_signals()
        self._link, self._status, self._descriptors = _sort_descriptors(orders, link.detach(), status)

    def run(self) -> None:
        try:
            program = self._prepare()
        except BaseException as error:
            self._report("error", f"{type(error).__name__}: {error}")
            return
        if program:
            self._let_go()
            boxed_init.serve(self._link, program, alone=not self._orders.isolated)

    def _prepare(self) -> int:
        """Everything up to the fork of the program, whose pid it returns; 0 where there is none."""
        orders = self._orders
        _write("/proc/self/oom_score_adj", str(_OOM_SCORE))
        os.umask(0o022)
        if self._link.recv(1) != b"g":
            return 0
        if orders.isolated:
            self._become_inner()
            if not self._own_mounts():
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
        """The identity in which the box is built: the program's own, or, where root does not map it, root of our namespace."""
        orders = self._orders
        if orders.maps is None:
            self._bound_ipc()
            os.setgroups([])
            os.setresgid(orders.inside, orders.inside, orders.inside)
            os.setresuid(orders.inside, orders.inside, orders.inside)
        else:
            self._map(*orders.maps)
            self._bound_ipc()
        self._hide()

    def _leave_root(self) -> None:
        """A second user namespace below the first, in which we are who the program is to be."""
        if self._orders.maps is not None and os.path.exists("/proc/self"):
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

    def _own_mounts(self) -> bool:
        """Whether what we mount is ours alone from now on; a policy may refuse that in namespaces which it allowed."""
        try:
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
            raise PermissionError("without a network namespace it can not reach anything")
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        places = {tree.target: tree.source for tree in orders.trees}
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
                self._fail(f"{type(error).__name__}: {error}")
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
        _restrict_files(orders, tuple(self._descriptors.values()))
        for inside, descriptor in self._descriptors.items():
            os.dup2(descriptor, inside, inheritable=True)
        self._filter()
        if orders.call is None:
            if orders.watch == "learn":
                os.close(self._status)  # its exec waits for the supervisor
            os.execve(orders.program or orders.argv[0], orders.argv, orders.env)
        self._let_go()
        self._link.close()
        os.environ.clear()
        os.environ.update(orders.env)
        os._exit(_result(orders.call))

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

    def _report(self, word: str, text: str = "") -> None:
        os.write(self._status, f"{word} {text}".replace("\n", " ").encode(errors="replace") + b"\n")


def _result(call: Callable[[], int]) -> int:
    try:
        return call() & 0xFF
    except BaseException as error:
        os.write(2, f"roost: {type(error).__name__}: {error}\n".encode(errors="replace"))
        return 125


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


def _sort_descriptors(orders: Orders, link: int, status: int) -> tuple[_socket.socket, int, dict[int, int]]:
    """Close all but what is wanted, and move that above every number that the program is to have; all of it closes at exec."""
    base = max([*orders.fds, _FLOOR - 1]) + 1

    def move(descriptor: int) -> int:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, base)

    moved = {inside: move(descriptor) for inside, descriptor in orders.fds.items()}
    link, status = move(link), move(status)
    for tree in orders.trees:
        if tree.tree >= 0:
            tree.tree = move(tree.tree)
    low = 0
    for descriptor in sorted([link, status, *moved.values(), *(tree.tree for tree in orders.trees if tree.tree >= 0)]):
        if low < descriptor:
            os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, 0x7FFFFFFF)
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number, inheritable=True)
    return _socket.socket(fileno=link), status, moved


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
        _set_limit(resource.RLIMIT_CPU, math.ceil(cpu_time), math.ceil(cpu_time) + 1)


def _set_limit(number: int, soft: int, hard: int) -> None:
    most = resource.getrlimit(number)[1]
    if most != resource.RLIM_INFINITY:
        soft, hard = min(soft, most), min(hard, most)
    resource.setrlimit(number, (soft, hard))


def _restrict_files(orders: Orders, opened: tuple[int, ...]) -> None:
    """Reading and executing what there is, since only what was granted is there; writing by name."""
    kinds = {"write": "tree", "overlay": "tree", "device": "device", "read": "execute"}
    if orders.isolated:
        rules = [("/", "execute"), ("/tmp", "tree"), ("/dev", "devices"), ("/dev/shm", "tree"), ("/proc", "write")]
        rules += [(tree.target, kinds[tree.kind]) for tree in orders.trees if tree.kind in ("write", "overlay")]
    else:
        kinds["overlay"] = "execute"  # there is no overlay, and the tree itself must not change
        rules = [(tree.source, kinds[tree.kind]) for tree in orders.trees] + [("/proc", "execute")]
    landlock.restrict(rules, network=orders.isolated, opened=opened)
