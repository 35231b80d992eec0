"""System calls that Python 3.11 has no function for; stand-alone, for the launcher."""

# contextlib.suppress would cost the launcher and every run milliseconds:
# ruff: noqa: SIM105

from __future__ import annotations

import ctypes
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_holding = ctypes.PyDLL(None, use_errno=True)  # keeps the interpreter's lock, as a fork must
_holding.syscall.restype = ctypes.c_long

# The same on every architecture: include/uapi/asm-generic/unistd.h, from 424 on.
OPEN_TREE, MOVE_MOUNT, PIDFD_GETFD, MOUNT_SETATTR = 428, 429, 438, 442
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
_CLONE = {"x86_64": 56, "aarch64": 220, "riscv64": 220}
_SECCOMP = {"x86_64": 317, "aarch64": 277, "riscv64": 277}

NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
_CLONE_PARENT = 0x00008000

MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 32, 4096, 16384, 1 << 18
MOUNT_RDONLY, MOUNT_NOSUID, MOUNT_NODEV, MOUNT_NOEXEC = 1, 2, 4, 8
_MNT_DETACH, _MOUNT_ATTR_IDMAP = 2, 0x00100000
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH = 1, 4

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_SECUREBITS = 4, 22, 24, 28
PR_SET_NO_NEW_PRIVS, PR_SET_THP_DISABLE, PR_CAP_AMBIENT, PR_SET_MEMORY_MERGE = 38, 41, 47, 67


def _check(result: int, name: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def syscall(number: int, *arguments: int | bytes | None) -> int:
    """A raw system call; bytes go as a pointer to them. Raises OSError."""
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    return _check(_libc.syscall(ctypes.c_long(number), *words), f"system call {number}")


def prctl(option: int, first: int = 0, second: int = 0) -> int:
    """prctl(2). Raises OSError."""
    words = [ctypes.c_ulong(word) for word in (first, second, 0, 0)]
    return _check(_libc.prctl(option, *words), f"prctl {option}")


def unshare(flags: int) -> None:
    """unshare(2). Raises OSError."""
    _check(_libc.unshare(flags), "unshare")


def setns(descriptor: int, kind: int) -> None:
    """setns(2): enter the namespace, which is of this kind (NEW*). Raises OSError."""
    _check(_libc.setns(descriptor, kind), "setns")


def clone_sibling() -> int:
    """Fork a child whose parent is our own parent, as runc does: it can wait for the child when we are gone.

    Only for a process with one thread that executes another program next. Raises OSError.
    """
    number = _CLONE[os.uname().machine]
    return syscall(number, _CLONE_PARENT | 17, 0, 0, 0, 0)  # 17 is SIGCHLD


def clone(flags: int) -> int:
    """os.fork() into new namespaces (NEW*): 0 in the child, which goes on as a whole Python process. Raises OSError."""
    if len(os.listdir("/proc/self/task")) == 1:
        return _clone(flags)
    # Another thread may be inside malloc, whose locks only the C library's own fork looks after: let that make a copy with one thread first.
    read, write = os.pipe2(os.O_CLOEXEC)
    between = os.fork()
    if between == 0:
        os.close(read)
        try:
            pid = _clone(flags | _CLONE_PARENT)
        except OSError as error:
            pid = -(error.errno or 1)
        if pid == 0:
            os.close(write)
            return 0
        os.write(write, struct.pack("=i", pid))
        os._exit(0)
    os.close(write)
    answer = os.read(read, 4)
    os.close(read)
    os.waitpid(between, 0)
    pid = int(struct.unpack("=i", answer)[0])
    if pid < 0:
        raise OSError(-pid, f"clone: {os.strerror(-pid)}")
    return pid


def _clone(flags: int) -> int:
    number = _CLONE[os.uname().machine]
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = int(_holding.syscall(number, flags | 17, 0, 0, 0, 0))  # 17 is SIGCHLD
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    else:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
    return _check(pid, "clone")


def mount(source: str | None, target: str, kind: str | None = None, flags: int = 0, data: str | None = None) -> None:
    """mount(2). Raises OSError."""
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind, data)]
    _check(_libc.mount(*words[:3], ctypes.c_ulong(flags), words[3]), f"mount {target}")


def detach_root_under(path: str) -> None:
    """Make the mount at `path` the root, and let go of everything that was below the old one. Raises OSError."""
    os.chdir(path)
    _check(_libc.pivot_root(b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount2")
    os.chdir("/")


def open_tree(path: str) -> int:
    """A descriptor of a private copy of the mount tree at `path`, attached nowhere. Raises OSError."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_RECURSIVE
    return syscall(OPEN_TREE, _AT_FDCWD, os.fsencode(path) + b"\0", flags)


def attach_tree(tree: int, target: str) -> None:
    """Mount what `open_tree` gave. Raises OSError."""
    syscall(MOVE_MOUNT, tree, b"\0", _AT_FDCWD, os.fsencode(target) + b"\0", _MOVE_MOUNT_F_EMPTY_PATH)


def set_mount_attributes(path: str, attributes: int, *, recursive: bool = True) -> None:
    """Add MOUNT_* attributes to a mount (and all below it). Raises OSError."""
    arguments = struct.pack("=4Q", attributes, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    syscall(MOUNT_SETATTR, _AT_FDCWD, os.fsencode(path) + b"\0", flags, arguments, len(arguments))


def detach(path: str) -> None:
    """Take a mount away from its place; what uses it keeps it. Raises OSError."""
    _check(_libc.umount2(os.fsencode(path), _MNT_DETACH), f"umount2 {path}")


def change_tree(tree: int, attributes: int, namespace: int = 0, *, recursive: bool = True) -> None:
    """Add MOUNT_* attributes to a tree that is attached nowhere; with the descriptor of a user namespace, show owners as that maps them.

    Raises OSError.
    """
    arguments = struct.pack("=4Q", attributes | (_MOUNT_ATTR_IDMAP if namespace else 0), 0, 0, namespace)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    syscall(MOUNT_SETATTR, tree, b"\0", flags, arguments, len(arguments))


def drop_bounding_set(kept: tuple[int, ...] = ()) -> None:
    """No exec can ever bring a capability back but those `kept`. Does nothing without CAP_SETPCAP, when no_new_privs alone has to hold."""
    try:
        for capability in range(64):
            if capability not in kept:
                prctl(PR_CAPBSET_DROP, capability)
    except OSError:
        return  # EINVAL: beyond the last one; EPERM: not allowed


def drop_capabilities(kept: tuple[int, ...] = ()) -> None:
    """Empty every capability set of this process, and lock the securebits so that no uid fills one. Those `kept` (numbers) outlive an exec
    too. Raises OSError."""
    prctl(PR_CAP_AMBIENT, 4)  # PR_CAP_AMBIENT_CLEAR_ALL
    try:
        prctl(PR_SET_SECUREBITS, 0x2F)  # no root, no fix-up, no keep: all locked
    except PermissionError:
        pass  # without CAP_SETPCAP; then there is nothing that no_new_privs does not hold
    mask = sum(1 << number for number in kept)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3
    sets = struct.pack("=6I", low, low, low, high, high, high)
    _check(_libc.capset(header, sets), "capset")
    for number in kept:
        prctl(PR_CAP_AMBIENT, 2, number)  # PR_CAP_AMBIENT_RAISE


def deliver_signals() -> None:
    """Undo what Python does to SIGPIPE, and a shell's "&" to SIGINT and SIGQUIT: an ignored signal stays ignored through an exec.

    SIGXFSZ stays ignored: a program at its file size limit gets an error (EFBIG) instead of its death.
    """
    for number in (1, 2, 3, 13, 15):  # SIGHUP, SIGINT, SIGQUIT, SIGPIPE, SIGTERM
        _libc.signal(number, None)


def clear_memory(start: int, size: int) -> None:
    """Fill memory of this process with zeros."""
    ctypes.memset(start, 0, size)


def set_hostname(name: str) -> None:
    """sethostname(2). Raises OSError."""
    _check(_libc.sethostname(name.encode(), len(name.encode())), "sethostname")


def load_watched_filter(program: bytes) -> int:
    """As `load_filter`; returns the descriptor on which its user notifications arrive. Raises OSError."""
    instructions = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))
    number = _SECCOMP[os.uname().machine]
    return syscall(number, 1, 8, header)  # SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER


def load_filter(program: bytes) -> None:
    """Put a seccomp filter (an array of struct sock_filter) upon this process. Needs no_new_privs. Raises OSError."""
    instructions = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))
    pointer = ctypes.create_string_buffer(header, len(header))
    prctl(PR_SET_SECCOMP, 2, ctypes.addressof(pointer))  # SECCOMP_MODE_FILTER
