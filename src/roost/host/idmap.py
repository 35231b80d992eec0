"""Mount trees that show what belongs to the caller as the program's own, by idmapped mounts."""

from __future__ import annotations

import errno
import os

from roost.host import kernel
from roost.light import signal


class Owners:
    """User namespaces that map one owner's uid and gid to those of a program; only for root of the host's own user namespace."""

    def __init__(self, uid: int) -> None:
        self._uid = uid
        self._namespaces: dict[tuple[int, int], int] = {}

    def lend(self, tree: int) -> bool:
        """Show the tree as the program's own; False where this kernel or this file system can not."""
        status = os.fstat(tree)
        try:
            namespace = self._namespace(status.st_uid, status.st_gid)
            try:
                kernel.change_tree(tree, 0, namespace)
            except OSError:
                kernel.change_tree(tree, 0, namespace, recursive=False)  # a file system below it can not
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.ENOSPC, errno.EOPNOTSUPP):
                return False
            raise
        return True

    def close(self) -> None:
        """The mounts keep the namespaces."""
        for namespace in self._namespaces.values():
            os.close(namespace)
        self._namespaces.clear()

    def _namespace(self, uid: int, gid: int) -> int:
        if (uid, gid) not in self._namespaces:
            self._namespaces[uid, gid] = make(f"{uid} {self._uid} 1", f"{gid} {self._uid} 1")
        return self._namespaces[uid, gid]


def make(uids: str, gids: str) -> int:
    """A descriptor of a user namespace with these maps ("INSIDE OUTSIDE COUNT"). Raises OSError."""
    pid = kernel.clone(kernel.NEWUSER)
    if pid == 0:
        while True:
            signal.pause()
    try:
        write_maps(pid, uids, gids)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def write_maps(pid: int | str, uids: str, gids: str) -> None:
    """Give a user namespace its maps. Raises OSError."""
    for name, text in (("gid_map", gids), ("uid_map", uids)):
        descriptor = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
