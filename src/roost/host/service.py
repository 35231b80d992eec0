"""What a long-running service owes its host: private directories, one instance, no core dumps, a word to systemd."""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import resource
import socket
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from roost.errors import Conflict, Forbidden, Unavailable
from roost.host import kernel

GROUP = "roost"
"""Members of this group may use the system's daemon."""
FILES = 65_536
"""Open files the service wants: a machine costs about ten."""


def harden() -> None:
    """No core dumps, no ptrace by others and no pages merged with those of others (secrets are in memory), private files by default, many
    open files. Machines inherit all of it."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    with contextlib.suppress(OSError):  # before Linux 6.4 nobody can ask for it on our behalf (systemd: MemoryKSM=)
        kernel.prctl(kernel.PR_SET_MEMORY_MERGE, 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def group_id(name: str = GROUP) -> int | None:
    """The id of the group whose members may use a daemon of root; None when it does not exist or we are not root."""
    if os.getuid() != 0:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def private_directory(path: Path, group: int | None = None) -> None:
    """Make `path` a directory that is ours alone, or that `group` may pass through. Raises Forbidden, Unavailable."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Asked of the directory itself, not of the name: a name can be changed between two looks.
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        fix = "set ROOST_STATE and ROOST_RUN to directories of your own"
        raise Unavailable(f"{path} can not be used", error.strerror or str(error), fix) from error
    try:
        seen = os.fstat(descriptor)
        if seen.st_uid != os.getuid():
            fix = "set ROOST_STATE and ROOST_RUN to directories of your own"
            raise Forbidden(f"{path} can not be used", f"it belongs to uid {seen.st_uid}, not to {os.getuid()}", fix)
        mode = 0o700 if group is None else 0o710
        if group is not None and seen.st_gid != group:
            os.fchown(descriptor, -1, group)
        if stat.S_IMODE(seen.st_mode) != mode:
            os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """Hold `lock` (flock(2): the kernel lets go of it however we end). Raises Conflict naming the process that holds it."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise Conflict(
                "the daemon did not start", f"another one runs already, as process {holder}", "roost serve --stop"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        yield
    finally:
        os.close(descriptor)


def tell_systemd(state: str, environ: Mapping[str, str] = os.environ) -> None:
    """Say `state` ("READY=1", "STOPPING=1") to the service manager that started us, if one did: sd_notify(3)."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, contextlib.suppress(OSError):
        manager.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)
