"""Private caches of what is slow to make: only what this user made whole is ever given out, and their size is bounded."""

from __future__ import annotations

import fcntl
import os
import stat

from roost.errors import Invalid, Unavailable
from roost.light import Callable, Iterator, suppress

_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
_LONGEST = 160  # of a key: with our prefixes still a file name
_LOCKS = 16  # lock files of one cache; keys that share one wait for each other


def place() -> str:
    """The directory above all caches: $ROOST_CACHE, else /var/cache/roost for root, $XDG_CACHE_HOME/roost or ~/.cache/roost."""
    told = os.environ.get("ROOST_CACHE", "")
    if told:
        return os.path.abspath(told)
    if os.geteuid() == 0:
        return "/var/cache/roost"
    above = os.environ.get("XDG_CACHE_HOME", "")
    if not above.startswith("/"):
        above = os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(above, "roost")


class Cache:
    """One cache: entries by key, each a regular file (0600) or a tree (0700) that belongs to the caller alone.

    `bound` is the number of bytes that `trim` leaves. A key is 1 to 160 letters, digits, dots, dashes and underscores and does not start with a
    dot. Safe for any number of processes and threads at once.
    """

    def __init__(self, name: str, bound: int) -> None:
        self._name = _checked(name)
        self._bound = bound

    @property
    def _path(self) -> str:
        return os.path.join(place(), self._name)

    def directory(self) -> str:
        """The directory of the entries, made when it is not there. Raises Unavailable where it can not be made or is not private."""
        above = os.path.dirname(self._path)
        try:
            os.makedirs(os.path.dirname(above), 0o700, exist_ok=True)
            for path in (above, self._path):
                with suppress(FileExistsError):
                    os.mkdir(path, 0o700)
                _make_private(path)
        except OSError as error:
            raise Unavailable(
                f"the cache {self._path} can not be used", str(error), "set ROOST_CACHE to a directory of yours"
            ) from None
        return self._path

    def find(self, key: str) -> str | None:
        """The path of an entry, or None when there is none that can be trusted. Marks it as used."""
        descriptor = self.open(key)
        if descriptor is None:
            return None
        os.close(descriptor)
        return os.path.join(self._path, key)

    def open(self, key: str) -> int | None:
        """A read-only descriptor of an entry, or None as for `find`. While it is open, `trim` leaves the entry alone."""
        path = os.path.join(self._path, _checked(key))
        try:
            around = os.stat(self._path, follow_symlinks=False)
            # O_NONBLOCK: a named pipe in its place must not hang us.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return None
        if (
            stat.S_ISDIR(around.st_mode)
            and _trusted(around)
            and _trusted(os.fstat(descriptor))
            and _lock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        ):
            os.utime(descriptor)
            return descriptor
        os.close(descriptor)
        return None

    def make(self, key: str, write: Callable[[str], None]) -> str:
        """The path of the entry, made by `write` when there is none: it is given a new path, at which it makes a file or a directory.

        Of many callers at once one makes it and the others wait. An entry appears whole or not at all; what is in its place and can not be
        trusted is replaced. `write` must not make another entry of the same cache. Raises Unavailable, and what `write` raises.
        """
        directory = self.directory()
        final, new = os.path.join(directory, _checked(key)), os.path.join(directory, f".new-{key}")
        with self._locked(key):
            if self.find(key) is not None:
                return final
            _remove(new)  # of a maker that was killed: the lock says that no other is at it
            try:
                write(new)
                _seal(new)
                _remove(final)
                os.rename(new, final)
            except BaseException:
                _remove(new)
                raise
        self.trim(keep=key)
        return final

    def discard(self, key: str) -> None:
        """Remove an entry; who has it open keeps what he has."""
        _remove(os.path.join(self._path, _checked(key)))

    def trim(self, keep: str = "") -> None:
        """Remove the entries that were not used for longest until `bound` holds; not `keep`, and none that is in use."""
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        for _, size, name in entries:
            if total <= self._bound:
                return
            if name != keep and self._remove_unused(name):
                total -= size

    def _entries(self) -> Iterator[tuple[float, int, str]]:
        try:
            found = list(os.scandir(self._path))
        except OSError:
            return
        for entry in found:
            with suppress(OSError):
                if not entry.name.startswith("."):
                    yield entry.stat(follow_symlinks=False).st_mtime, _size(entry), entry.name

    def _remove_unused(self, name: str) -> bool:
        path = os.path.join(self._path, name)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            _remove(path)  # a link, or what else no entry can be
            return True
        try:
            if not _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
                return False
            _remove(path)
        finally:
            os.close(descriptor)
        return True

    def _locked(self, key: str) -> _Locked:
        return _Locked(os.path.join(self._path, f".lock-{sum(key.encode()) % _LOCKS}"))


class _Locked:
    """A context in which no other process holds the lock of this file."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = -1

    def __enter__(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        self._descriptor = os.open(self._path, flags, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        except BaseException:
            os.close(self._descriptor)
            raise

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def _checked(key: str) -> str:
    if not 0 < len(key) <= _LONGEST or key.startswith(".") or not _LETTERS.issuperset(key):
        raise Invalid(f"{key!r} is no key of a cache")
    return key


def _make_private(path: str) -> None:
    found = os.stat(path, follow_symlinks=False)
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(f"{path} is not a directory")
    if found.st_uid != os.geteuid():
        raise PermissionError(f"{path} belongs to uid {found.st_uid}")
    if found.st_mode & 0o022:
        raise PermissionError(f"others may write to {path}")
    if found.st_mode & 0o777 != 0o700:
        os.chmod(path, 0o700)


def _trusted(found: os.stat_result) -> bool:
    """Whether an entry is what `make` makes: a file with a second name, or one that others can write, may change behind our back."""
    if found.st_uid != os.geteuid():
        return False
    mode = stat.S_IMODE(found.st_mode)
    if stat.S_ISDIR(found.st_mode):
        return mode == 0o700
    return stat.S_ISREG(found.st_mode) and mode == 0o600 and found.st_nlink == 1


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind)
    except OSError:
        return False
    return True


def _seal(path: str) -> None:
    """Give a new entry its mode and bring it to the disk: a name that outlives a crash without its content would be half an entry."""
    if os.path.isdir(path):
        os.chmod(path, 0o700)
        os.sync()
        return
    os.chmod(path, 0o600)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def _size(entry: os.DirEntry[str]) -> int:
    if not entry.is_dir(follow_symlinks=False):
        return entry.stat(follow_symlinks=False).st_size
    total = 0
    for directory, _, names in os.walk(entry.path):
        for name in names:
            with suppress(OSError):
                total += os.stat(os.path.join(directory, name), follow_symlinks=False).st_size
    return total


def _remove(path: str) -> None:
    """Remove a file or a tree; what is gone is fine."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        from shutil import rmtree  # a millisecond to import, and rarely needed

        rmtree(path, ignore_errors=True)
