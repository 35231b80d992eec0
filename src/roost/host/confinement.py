"""What the launcher does between its start and the jailed program's exec; stand-alone, so only light modules."""

from __future__ import annotations

import errno
import fcntl
import marshal
import os
import resource
import stat

from roost.host import kernel, landlock

_INSIDE = 1000  # the uid and gid that the program sees of itself
_BASE = "/proc"  # the new root grows here: no source lies below it, and the jail wants no /proc anyway
_NAMESPACES = {
    "mount namespace": kernel.NEWNS,
    "pid namespace": kernel.NEWPID,
    "ipc namespace": kernel.NEWIPC,
    "uts namespace": kernel.NEWUTS,
    "cgroup namespace": kernel.NEWCGROUP,
    "network namespace": kernel.NEWNET,
}
_READ_ONLY = kernel.MOUNT_RDONLY | kernel.MOUNT_NOSUID | kernel.MOUNT_NODEV
_ATTRIBUTES = {
    "read": _READ_ONLY,  # not noexec: libraries are mapped executable; executing them is Landlock's to refuse
    "execute": _READ_ONLY,
    "write": kernel.MOUNT_NOSUID | kernel.MOUNT_NODEV | kernel.MOUNT_NOEXEC,
    "device": kernel.MOUNT_NOSUID | kernel.MOUNT_NOEXEC,
}


class Spec:
    """What the daemon asks for. Sizes in bytes."""

    argv: list[str]
    env: dict[str, str]
    binds: list[tuple[str, str, str]]
    """(source, target, kind), kind as in `landlock.restrict`; an outer target comes before one below it."""
    fds: dict[int, int]
    uid: int
    """The program's uid and gid on the host; without effect when we are not root."""
    groups: list[int]
    oom_score: int
    limits: dict[int, int]
    """By RLIMIT_* number."""
    processes: int
    filter: bytes
    network: bool
    sandboxes_itself: bool
    huge_pages: bool = True
    entrance: tuple[int, int, tuple[int, ...], str] = (-1, -1, (), "")
    """Descriptors of a user and a network namespace to be entered (-1: none), and the capabilities to be kept in the former. With a path the
    latter is not entered, but bound there."""

    def pack(self) -> bytes:
        """For a launcher under the same interpreter."""
        return marshal.dumps({**vars(self), "entrance": (*self.entrance,)})

    @classmethod
    def unpack(cls, data: bytes) -> Spec:
        """What `pack` packed."""
        spec = cls()
        vars(spec).update(marshal.loads(data))
        return spec


def launch(spec_fd: int, status_fd: int, gate_fd: int) -> None:
    """Become the program of the spec: tell `status_fd` how it goes, end when `gate_fd` closes.

    The gate opens twice: "j" when this process is in its control groups, "g" for the exec.
    Lines of the status: `pid N`, `layer NAME`, `missing NAME: why`, `ready`, `error why`; its end without an error is
    the exec.
    """
    try:
        with open(spec_fd, "rb") as file:
            spec = Spec.unpack(file.read())
        launcher = _Launcher(spec, status_fd, gate_fd)
        try:
            launcher.run()
        except BaseException as error:
            launcher.report("error", f"{type(error).__name__}: {error}")
    finally:
        os._exit(125)


class _Launcher:
    def __init__(self, spec: Spec, status_fd: int, gate_fd: int) -> None:
        self._spec = spec
        self._was_root = os.geteuid() == 0
        owner, network, self._kept, self._place = spec.entrance
        ours = [status_fd, gate_fd, owner, network]
        (self._status, self._gate, self._owner, self._network), self._descriptors = _sort_descriptors(spec.fds, ours)
        self._mode = "bare"
        if self._place:
            spec.binds.append((f"/proc/self/fd/{self._network}", self._place, "read"))

    def report(self, word: str, text: str = "") -> None:
        os.write(self._status, f"{word} {text}".replace("\n", " ").encode() + b"\n")

    def run(self) -> None:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(self._spec.oom_score))
        os.umask(0o022)  # the jail's uid must be able to pass the directories that we make
        self._enter_network()
        self._mode = self._find_mode()
        trees = self._enter_namespaces()
        pid = kernel.clone_sibling()
        if pid:
            os._exit(0)
        self.report("pid", os.readlink("/proc/self"))  # by the host's /proc, so the host's number
        os.setsid()
        if self._mode != "bare":
            _build_root(self._spec, trees)
            kernel.set_hostname("roost")
        self._drop_privileges()
        self._limit()
        self._restrict_files()
        self.report("ready")
        self._pass_gate(b"g")
        self._execute()

    def _find_mode(self) -> str:
        """How the namespaces come: "user", by a user namespace; "root", by root without one; "bare", not at all; "entered", by one that is
        there and in which the program keeps capabilities.

        Tried beforehand in a process of its own: once in the mode found here a failure is an error, never a weaker jail.
        """
        if self._kept:
            return "entered"  # or an error: nowhere else may it have them
        for mode in ("user", "root"):
            pid = os.fork()
            if pid == 0:
                self._try(mode)
            if os.waitpid(pid, 0)[1] == 0:
                return mode
        return "bare"

    def _try(self, mode: str) -> None:
        try:
            self._unshare(mode, kernel.NEWNS)
            kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
            kernel.mount("jail", _BASE, "tmpfs")
            os._exit(0)
        finally:
            os._exit(1)

    def _unshare(self, mode: str, flags: int) -> None:
        if mode == "entered":
            self._live_in_entered()
        if mode != "user":
            kernel.unshare(flags)
            return
        # First the uid, then the namespace, which then belongs to that uid and gives no power over any other.
        self._become()
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # else /proc/self/uid_map belongs to root
        uid, gid = os.getuid(), os.getgid()
        kernel.unshare(flags | kernel.NEWUSER)
        for name, text in (("setgroups", "deny"), ("gid_map", f"{_INSIDE} {gid} 1"), ("uid_map", f"{_INSIDE} {uid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)

    def _live_in_entered(self) -> None:
        """Be who we are to be in the entered user namespace, which knows the jail's uid by the same number or as 0. All its capabilities
        are ours until `_drop_privileges`."""
        if self._was_root:
            os.setgroups(self._spec.groups)
            kernel.setns(self._owner, kernel.NEWUSER)
            with open("/proc/self/uid_map") as file:
                inside = 0 if file.read().split()[0] == "0" else self._spec.uid
            os.setresgid(inside, inside, inside)
            os.setresuid(inside, inside, inside)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # else /proc/self belongs to root

    def _enter_network(self) -> None:
        """Get into the network that is there, before anything else: later we have no rights over it."""
        if not self._was_root and self._owner >= 0:
            kernel.setns(self._owner, kernel.NEWUSER)
        if self._network >= 0 and not self._place:
            kernel.setns(self._network, kernel.NEWNET)
            self.report("layer", "network namespace")

    def _become(self) -> None:
        """The identity of the jail, when we are root; nobody else can choose."""
        if self._was_root:
            os.setgroups(self._spec.groups)
            os.setresgid(self._spec.uid, self._spec.uid, self._spec.uid)
            os.setresuid(self._spec.uid, self._spec.uid, self._spec.uid)

    def _enter_namespaces(self) -> list[int]:
        """Leave the host's namespaces, the control groups' too. Returns the mount trees of the binds, in their order."""
        self._pass_gate(b"j")
        if self._mode == "bare":
            self.report("missing", "namespaces: the kernel or a policy of the host forbids them")
            return []
        skip = "network namespace" if self._spec.network else ""
        names = [name for name in _NAMESPACES if name != skip]
        # Root takes the trees while it is root: the uid of the jail can not walk into private directories.
        sources = [source for source, _, _ in self._spec.binds]
        trees = [_take(source) for source in sources] if self._was_root else []
        self._unshare(self._mode, sum(_NAMESPACES[name] for name in names))
        if self._mode != "root":
            self.report("layer", "user namespace")
        else:
            self.report("missing", "user namespace: the kernel or a policy of the host forbids it")
        for name in names:
            self.report("layer", name)
        return trees if self._was_root else [_take(source) for source in sources]

    def _drop_privileges(self) -> None:
        kernel.drop_bounding_set(self._kept)
        if self._mode in ("root", "bare"):
            self._become()
        kernel.drop_capabilities(self._kept)
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        if self._was_root:
            self.report("layer", "own uid")
        else:
            self.report("missing", "own uid: only root can give every jail another one")
        self.report("layer", "few capabilities" if self._kept else "no capabilities")
        self.report("layer", "no new privileges")

    def _limit(self) -> None:
        for number, value in self._spec.limits.items():
            most = resource.getrlimit(number)[1]
            value = value if most == resource.RLIM_INFINITY else min(value, most)
            resource.setrlimit(number, (value, value))
        # Threads count per user namespace or else per uid: an ordinary user's other processes would use the number up.
        if self._mode in ("user", "entered") or self._was_root:
            resource.setrlimit(resource.RLIMIT_NPROC, (self._spec.processes, self._spec.processes))
        else:
            self.report("missing", "thread limit: it would count all processes of this user")
        if not self._spec.huge_pages:
            kernel.prctl(kernel.PR_SET_THP_DISABLE, 1)
        self.report("layer", "resource limits")

    def _restrict_files(self) -> None:
        if self._spec.sandboxes_itself:
            # Landlock would forbid it every mount.
            self.report("missing", "landlock: the program locks itself up further")
            return
        place = 0 if self._mode == "bare" else 1
        rules = [(bind[place], bind[2]) for bind in self._spec.binds]
        if landlock.restrict(rules, network=self._spec.network):
            self.report("layer", "landlock")
        else:
            self.report("missing", "landlock: the kernel has none or it is switched off (lsm=)")

    def _pass_gate(self, word: bytes) -> None:
        if os.read(self._gate, 1) != word:
            os._exit(125)

    def _execute(self) -> None:
        argv = self._spec.argv
        if self._mode == "bare":
            sources = {target: source for source, target, _ in self._spec.binds}
            argv = [sources.get(word, word) for word in argv]
        for inside, descriptor in self._descriptors.items():
            os.dup2(descriptor, inside, inheritable=True)
        os.umask(0o077)
        kernel.deliver_signals()
        if self._spec.filter:
            kernel.load_filter(self._spec.filter)
        os.execve(argv[0], argv, self._spec.env)


def _sort_descriptors(wanted: dict[int, int], ours: list[int]) -> tuple[list[int], dict[int, int]]:
    """Close all but what is wanted and ours (-1: none), and move that above every number that it is to have; all of it closes at exec."""
    base = max([*wanted, 63]) + 1

    def move(descriptor: int) -> int:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, base)

    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    moved = {inside: move(wanted.get(inside, null)) for inside in {0, 1, 2, *wanted}}
    ours = [move(descriptor) if descriptor >= 0 else -1 for descriptor in ours]
    low = 3  # 0 to 2 are /dev/null
    for descriptor in sorted([*moved.values(), *(number for number in ours if number >= 0)]):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, 0x7FFFFFFF)
    return ours, moved


def _take(source: str) -> int:
    """The mount tree of a source, or -1 where it has to be bound by its path."""
    try:
        return kernel.open_tree(source)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):  # a container's filter
            return -1
        raise OSError(error.errno, f"{os.strerror(error.errno or 0)}: {source}") from error


def _build_root(spec: Spec, trees: list[int]) -> None:
    """A root that holds the binds and nothing else, read-only."""
    with open("/proc/self/uid_map") as file:
        uid_map = file.read()
    kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("jail", _BASE, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=0755,size=1m,nr_inodes=2048")
    for tree, (source, target, kind) in zip(trees, spec.binds, strict=True):
        _attach(tree, source, _BASE + target, _ATTRIBUTES[kind])
    if spec.sandboxes_itself:
        os.makedirs(_BASE + "/tmp", exist_ok=True)  # where passt mounts its own root
        os.makedirs(_BASE + "/proc/self")  # passt ends when it can not learn its own name
        os.symlink(spec.argv[0], _BASE + "/proc/self/exe")
        with open(_BASE + "/proc/self/uid_map", "w") as file:
            file.write(uid_map)  # as root of a user namespace, pasta looks whether it is not the host's
    kernel.detach_root_under(_BASE)
    kernel.set_mount_attributes("/", _READ_ONLY, recursive=False)


def _attach(tree: int, source: str, place: str, attributes: int) -> None:
    """Mount a tree at a place that is made for it; below an earlier bind the place must be there."""
    if stat.S_ISDIR((os.fstat(tree) if tree >= 0 else os.stat(source)).st_mode):
        os.makedirs(place, exist_ok=True)
    elif not os.path.lexists(place):
        os.makedirs(os.path.dirname(place), exist_ok=True)
        os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    if tree >= 0:
        kernel.attach_tree(tree, place)
        os.close(tree)
    else:
        kernel.mount(source, place, flags=kernel.MS_BIND | kernel.MS_REC)
    kernel.set_mount_attributes(place, attributes)
