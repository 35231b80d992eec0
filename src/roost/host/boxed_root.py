"""The minimal root of a box: what was granted, synthesised files, a private /tmp, /dev and /proc; all else of the host is gone."""

from __future__ import annotations

import errno
import os
import stat

from roost.host import kernel
from roost.light import Iterable, Mapping, suppress

BASE = "/proc"
"""The new root grows here, where no source lies."""
_SCRATCH = "/dev"
"""A place of the host for one file system of all that is written and thrown away; it goes with the host's root."""
_LENT_SCRATCH = "/.scratch"
"""Where overlays find it. Every place that has to go by itself costs a start milliseconds."""
_HANDLERS = "programs that it starts"
_BINFMT_PARENT = "/dev/shm"  # a place of the box in which one may be made
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc/alternatives", "/etc/ld.so.cache")
_CONFIGURATION = ("/etc/fonts", "/etc/mono")
_JAVA = "java-"  # /etc/java-17-openjdk
_NODES = ("null", "zero", "full", "random", "urandom")
_LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}
_SAFE = kernel.MS_NOSUID | kernel.MS_NODEV
_READ_ONLY = kernel.MOUNT_RDONLY | kernel.MOUNT_NOSUID | kernel.MOUNT_NODEV
_ATTRIBUTES = {
    "read": _READ_ONLY,
    "write": kernel.MOUNT_NOSUID | kernel.MOUNT_NODEV,
    "overlay": _READ_ONLY,
    "device": kernel.MOUNT_NOSUID | kernel.MOUNT_NOEXEC,
}


class Tree:
    """A piece of the host on its way into the box: a mount tree (-1: still to be taken by its path) and where it goes."""

    __slots__ = ("kind", "lent", "source", "target", "tree")

    def __init__(self, source: str, target: str, kind: str, lent: bool) -> None:
        self.source, self.target, self.kind, self.lent = source, target, kind, lent
        self.tree = -1

    def take(self) -> None:
        """Unless it was before. Raises OSError with the name of the source."""
        if self.tree >= 0:
            return
        try:
            self.tree = kernel.open_tree(self.source)
        except OSError as error:
            raise OSError(error.errno, f"{os.strerror(error.errno or 0)}: {self.source}") from error

    def close(self) -> None:
        if self.tree >= 0:
            os.close(self.tree)
            self.tree = -1


def system_trees(files: Iterable[str] = ()) -> tuple[list[Tree], dict[str, str]]:
    """The host's programs and libraries, what they do not start without of /etc, and the links that stand in their places (/bin -> usr/bin).
    A directory in which one of `files` is made for the box is left out: the box has a configuration of its own."""
    trees, links = [], {}
    java = [f"/etc/{name}" for name in sorted(os.listdir("/etc")) if name.startswith(_JAVA)]
    own = {os.path.dirname(file) for file in files}
    for path in (*_SYSTEM, *_CONFIGURATION, *java):
        if path in own:
            continue
        if os.path.islink(path):
            links[path] = os.readlink(path)
        elif os.path.exists(path):
            trees.append(Tree(path, path, "read", False))
    return trees, links


def device_trees(*, tty: bool) -> list[Tree]:
    """The nodes of /dev, which nobody can make in a user namespace."""
    names = (*_NODES, "tty") if tty else _NODES
    return [Tree(f"/dev/{name}", f"/dev/{name}", "device", False) for name in names]


def build(trees: list[Tree], links: Mapping[str, str], files: Mapping[str, bytes], cwd: str, tmp: int) -> list[str]:
    """Build it at BASE and make it the root. Returns what is missing ("name: why"). Raises OSError.

    What was granted is attached when the host is gone already, so that no link in it leads there.
    """
    size = 1 << 20
    size += sum(len(content) + 4096 for content in files.values())
    kernel.mount("box", BASE, "tmpfs", _SAFE, f"mode=0755,size={size},nr_inodes=4096")
    overlays = any(tree.kind == "overlay" for tree in trees)
    _make_scratch(tmp, lent=overlays)
    missing = _mount_kernel()
    kernel.detach_root_under(BASE)
    for link, to in {**links, **{f"/dev/{name}": to for name, to in _LINKS.items()}}.items():
        os.symlink(to, link)
    for path, content in files.items():
        _write(path, content)
    for tree in trees:
        _attach(tree)  # which covers a file where something was granted in its place
    _make_cwd(cwd, trees)
    if overlays:
        kernel.detach(_LENT_SCRATCH)
        os.rmdir(_LENT_SCRATCH)
    kernel.set_mount_attributes("/", _READ_ONLY, recursive=False)
    return missing


def register(handlers: Iterable[str]) -> list[str]:
    """Let the kernel start programs by these lines of binfmt_misc, in our user namespace alone; as its root. Returns what is missing.

    The programs that they name (flag F) are opened now, and found wherever a program inside goes.
    """
    lines = tuple(handlers)
    if not lines:
        return []
    place = f"{_BINFMT_PARENT}/handlers"
    os.mkdir(place)
    try:
        kernel.mount("binfmt_misc", place, "binfmt_misc", _SAFE)
        for line in lines:
            with open(f"{place}/register", "w", encoding="utf-8") as file:
                file.write(line)
        kernel.open_tree(place)  # init keeps it open, where no program sees it: the handlers go with the last mount
    except OSError as error:
        return [
            f"{_HANDLERS}: {error.strerror}; Linux has this for a sandbox from 6.7 on, and this is {os.uname().release}"
        ]
    finally:
        with suppress(OSError):
            kernel.detach(place)
        os.rmdir(place)
    return []


def _make_cwd(cwd: str, trees: list[Tree]) -> None:
    """Also below /tmp nothing can be written into it that was not granted: the caller would look for it in vain."""
    os.makedirs(cwd, exist_ok=True)
    if cwd.startswith("/tmp/") and not any(f"{cwd}/".startswith(f"{tree.target}/") for tree in trees):
        os.chmod(cwd, 0o555)


def _make_scratch(tmp: int, *, lent: bool) -> None:
    """/tmp and /dev/shm, of one size together, and room for what overlays take."""
    place = _SCRATCH
    kernel.mount("tmp", place, "tmpfs", _SAFE, f"mode=0755,size={tmp},nr_inodes={max(1024, tmp >> 12)}")
    for name, target in (("tmp", "/tmp"), ("shm", "/dev/shm")):
        os.mkdir(f"{place}/{name}")
        os.chmod(f"{place}/{name}", 0o1777)
        os.makedirs(BASE + target, exist_ok=True)
        kernel.mount(f"{place}/{name}", BASE + target, flags=kernel.MS_BIND)
    if lent:
        os.mkdir(BASE + _LENT_SCRATCH)
        kernel.mount(place, BASE + _LENT_SCRATCH, flags=kernel.MS_BIND)


def _attach(tree: Tree) -> None:
    """Mount it at a place that is made for it; in a tree that came before, the place must be there."""
    place, directory = tree.target, stat.S_ISDIR(os.fstat(tree.tree).st_mode)
    if os.path.lexists(place):
        if os.path.isdir(place) != directory:
            raise OSError(errno.ENOTDIR, f"{tree.source} can not be shown at {place}: one of them is a directory")
    elif directory:
        os.makedirs(place)
    else:
        _make_parent(place)
        os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    kernel.change_tree(tree.tree, _ATTRIBUTES[tree.kind])
    kernel.attach_tree(tree.tree, place)
    if tree.kind == "overlay":
        _cover(place, tree.tree)
    tree.close()


def _cover(place: str, number: int) -> None:
    """Changes to the tree at `place` go to the scratch and end with it. The covering mount keeps the lower one."""
    upper, work = (f"{_LENT_SCRATCH}/{name}-{number}" for name in ("upper", "work"))
    status = os.stat(place)
    for path in (upper, work):
        os.mkdir(path)
    os.chmod(upper, stat.S_IMODE(status.st_mode) | 0o700)
    kernel.mount("overlay", place, "overlay", _SAFE, f"lowerdir={place},upperdir={upper},workdir={work},userxattr")


def _make_parent(place: str) -> None:
    parent = os.path.dirname(place)
    if not os.path.isdir(parent):
        os.makedirs(parent)


def _write(place: str, content: bytes) -> None:
    _make_parent(place)
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    with open(os.open(place, flags, 0o444), "wb") as file:
        file.write(content)


def _mount_kernel() -> list[str]:
    """/proc of our own processes and terminals of our own."""
    missing = []
    for kind, target, options in (
        ("proc", "/proc", None),
        ("devpts", "/dev/pts", "newinstance,ptmxmode=0666,mode=620"),
    ):
        os.makedirs(BASE + target, exist_ok=True)
        flags = kernel.MS_NOSUID | 8 | (kernel.MS_NODEV if kind == "proc" else 0)  # 8 is MS_NOEXEC
        try:
            kernel.mount(kind, BASE + target, kind, flags, options)
        except OSError as error:
            missing.append(f"own {target}: {error.strerror}")
    if os.path.isdir(f"{BASE}/proc/sys"):
        # Some switches of a namespace belong to the uid that made it, which may be the program's.
        kernel.mount(f"{BASE}/proc/sys", f"{BASE}/proc/sys", flags=kernel.MS_BIND)
        kernel.set_mount_attributes(f"{BASE}/proc/sys", _READ_ONLY, recursive=False)
    with suppress(FileExistsError):
        os.symlink("pts/ptmx", f"{BASE}/dev/ptmx")
    return missing
