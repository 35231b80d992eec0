"""Directories to tar streams and back, a piece at a time; what comes from a guest is hostile and can not leave the target directory.

The format is POSIX.1-1988 ustar with the pax (`x`) and GNU (`L`, `K`) extensions for long names. No other member is trusted: names are
walked component by component with O_NOFOLLOW below the target, so neither `..`, nor an absolute name, nor a link that an earlier member
planted leads out; devices, pipes and links that point out of the tree are left out and reported; set-id bits are dropped.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from roost.errors import Invalid, NotFound

BLOCK = 512
PIECE = 256 << 10
LONGEST_EXTENSION = 1 << 20
"""Bytes that a member's long name or attributes may take."""

MOST_MEMBERS = 1_000_000
LARGEST = 1 << 42
"""Bytes that all members of an archive may have together (4 TiB): far above what anybody copies, far below what fills a counter."""

_PAYLOAD = {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE}


def pack(source: Path, name: str, report: Callable[[int], None] = lambda _: None) -> Iterator[bytes]:
    """A tar stream of the file or directory `source`, called `name` inside. Raises NotFound. `report` is told bytes read so far.

    A file that changes while it is read keeps the size it had: cut, or filled with zeros.
    """
    if not source.exists() and not source.is_symlink():
        raise NotFound(f"{source} does not exist", fix="check the path on this computer")
    done = 0
    for path, inside in _walk(source, name):
        info = _member(path, inside)
        if info is None:
            continue
        yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        if info.size:
            for piece in _content(path, info.size):
                done += len(piece)
                report(done)
                yield piece
            yield bytes(-info.size % BLOCK)
    yield bytes(2 * BLOCK)


def _walk(source: Path, name: str) -> Iterator[tuple[Path, str]]:
    yield source, name
    if source.is_dir() and not source.is_symlink():
        for child in sorted(source.iterdir()):
            yield from _walk(child, f"{name}/{child.name}")


def _member(path: Path, inside: str) -> tarfile.TarInfo | None:
    """The head of a member, owned by root: whoever unpacks decides the owner. None for sockets, pipes and devices."""
    seen = path.lstat()
    info = tarfile.TarInfo(inside)
    info.mode, info.mtime = stat.S_IMODE(seen.st_mode) & 0o777, int(seen.st_mtime)
    if stat.S_ISREG(seen.st_mode):
        info.size = seen.st_size
    elif stat.S_ISDIR(seen.st_mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(seen.st_mode):
        info.type, info.linkname = tarfile.SYMTYPE, os.readlink(path)  # noqa: PTH115 - the text as it stands, not a Path
    else:
        return None
    return info


def _content(path: Path, size: int) -> Iterator[bytes]:
    left = size
    with open(path, "rb") as file:
        while left:
            piece = file.read(min(PIECE, left))
            if not piece:
                piece = bytes(min(PIECE, left))
            left -= len(piece)
            yield piece


class Unpacker:
    """Takes a tar stream, cut anywhere, and makes it appear as `directory`/`name`, replacing files that are there.

    The archive's first path component becomes `name`; a member below another one is refused. `skipped` lists what was left out and why.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._name = name
        self._top: str | None = None
        self._rest = b""
        self._left = 0
        self._padding = 0
        self._take: Callable[[bytes], None] | None = None
        self._finish: Callable[[], None] = lambda: None
        self._long: dict[str, str] = {}
        self._modes: list[tuple[tuple[str, ...], int]] = []
        self._members = 0
        self._bytes = 0
        self._ended = False
        self.skipped: list[str] = []

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises Invalid for what is no archive or a dangerous one, OSError when this computer can not write."""
        self._rest += data
        while self._rest and not self._ended:
            if self._left or self._padding:
                self._body()
            elif len(self._rest) >= BLOCK:
                block, self._rest = self._rest[:BLOCK], self._rest[BLOCK:]
                self._head(block)
            else:
                return

    def close(self) -> None:
        """Set the directories' modes and let go. Raises Invalid when the archive was not complete or held nothing."""
        try:
            if not self._ended or self._left or self._top is None:
                raise Invalid("the copy is not complete", "the archive from the guest breaks off", "copy again")
            for parts, mode in reversed(self._modes):
                with contextlib.suppress(OSError), self._parent(parts) as (parent, name):
                    descriptor = os.open(
                        name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent
                    )
                    os.fchmod(descriptor, mode)
                    os.close(descriptor)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Let go of the directory; what was written stays."""
        if self._root >= 0:
            if self._take is not None:
                self._take = None
                self._finish()
            os.close(self._root)
            self._root = -1

    def _body(self) -> None:
        count = min(self._left, len(self._rest))
        if count:
            if self._take is not None:
                self._take(self._rest[:count])
            self._rest, self._left = self._rest[count:], self._left - count
        if self._left:
            return
        if self._take is not None:
            self._take = None
            finish, self._finish = self._finish, lambda: None
            finish()
        skip = min(self._padding, len(self._rest))
        self._rest, self._padding = self._rest[skip:], self._padding - skip

    def _head(self, block: bytes) -> None:
        if not block.strip(b"\0"):
            self._ended = True
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise Invalid("the copy was stopped", f"the guest sent no valid archive: {error}", "copy again") from error
        self._count(info)
        if info.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            self._extension(info)
        elif info.type != tarfile.XGLTYPE:
            self._make(info)

    def _count(self, info: tarfile.TarInfo) -> None:
        linked = info.type in (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE)
        size = 0 if linked else info.size
        if "size" in self._long and info.type in _PAYLOAD:
            size = int(self._long["size"]) if self._long["size"].isdecimal() and len(self._long["size"]) < 20 else -1
        self._members += 1
        self._bytes += size
        if size < 0 or self._bytes > LARGEST or self._members > MOST_MEMBERS:
            why = f"the guest's archive claims more than {MOST_MEMBERS} members or {LARGEST} bytes"
            raise Invalid("the copy was stopped", why, "copy a smaller directory")
        self._left, self._padding = size, -size % BLOCK

    def _extension(self, info: tarfile.TarInfo) -> None:
        if self._left > LONGEST_EXTENSION:
            raise Invalid("the copy was stopped", f"the guest sent a name of {self._left} bytes", "copy again")
        kept = bytearray()

        def finish() -> None:
            if info.type == tarfile.XHDTYPE:
                self._long.update(_pax(bytes(kept)))
            else:
                key = "path" if info.type == tarfile.GNUTYPE_LONGNAME else "linkpath"
                self._long[key] = bytes(kept).rstrip(b"\0").decode("utf-8", "surrogateescape")

        self._take, self._finish = kept.extend, finish

    def _make(self, info: tarfile.TarInfo) -> None:
        parts = self._place(self._long.get("path", info.name))
        link = self._long.get("linkpath", info.linkname)
        self._long = {}
        if info.type in _PAYLOAD:
            self._file(parts, info.mode & 0o777)
        elif info.type == tarfile.DIRTYPE:
            self._directory(parts, info.mode & 0o777)
        elif info.type == tarfile.SYMTYPE:
            self._symlink(parts, link)
        elif info.type == tarfile.LNKTYPE:
            self._hardlink(parts, self._place(link))
        else:
            self.skipped.append(f"{'/'.join(parts)}: neither a file, a directory nor a link")

    def _place(self, name: str) -> tuple[str, ...]:
        """Where a member goes, as components below the target. Raises Invalid for a name that is dangerous or of another tree."""
        parts = tuple(part for part in name.split("/") if part not in ("", "."))
        if not parts or name.startswith("/") or ".." in parts or "\0" in name or len(parts) > 200:
            raise Invalid(
                "the copy was stopped", f"the guest sent a member called {name[:200]!r}", "copy another directory"
            )
        self._top = self._top or parts[0]
        if parts[0] != self._top:
            raise Invalid(
                "the copy was stopped", f"the guest sent {parts[0][:200]!r} beside {self._top[:200]!r}", "copy again"
            )
        return (self._name, *parts[1:])

    @contextlib.contextmanager
    def _parent(self, parts: tuple[str, ...]) -> Iterator[tuple[int, str]]:
        """The parent directory of a member, opened without following any link below the target, and the member's own name."""
        current = os.dup(self._root)
        try:
            for part in parts[:-1]:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=current)
                deeper = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
                os.close(current)
                current = deeper
            yield current, parts[-1]
        except NotADirectoryError as error:
            raise Invalid(
                "the copy was stopped",
                f"{'/'.join(parts)} leads through a link or file",
                "copy into an empty directory",
            ) from error
        finally:
            os.close(current)

    def _file(self, parts: tuple[str, ...], mode: int) -> None:
        with self._parent(parts) as (parent, name):
            _remove(parent, name)
            descriptor = os.open(
                name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent
            )

        def take(data: bytes) -> None:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]

        def finish() -> None:
            os.fchmod(descriptor, mode)
            os.close(descriptor)

        if self._left:
            self._take, self._finish = take, finish
        else:
            finish()

    def _directory(self, parts: tuple[str, ...], mode: int) -> None:
        with self._parent(parts) as (parent, name):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=parent)
            if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                raise Invalid(
                    "the copy was stopped",
                    f"{'/'.join(parts)} exists and is no directory",
                    "copy into an empty directory",
                )
        self._modes.append((parts, mode))

    def _symlink(self, parts: tuple[str, ...], target: str) -> None:
        if _leads_out(parts, target):
            self.skipped.append(f"{'/'.join(parts)}: a link to {target[:200]!r}, outside of what is copied")
            return
        with self._parent(parts) as (parent, name):
            _remove(parent, name)
            os.symlink(target, name, dir_fd=parent)

    def _hardlink(self, parts: tuple[str, ...], first: tuple[str, ...]) -> None:
        with self._parent(first) as (source, old), self._parent(parts) as (parent, new):
            try:
                seen = os.stat(old, dir_fd=source, follow_symlinks=False)
                if (parts == first) or not stat.S_ISREG(seen.st_mode):
                    raise FileNotFoundError(old)
                _remove(parent, new)
                os.link(old, new, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
            except FileNotFoundError:
                self.skipped.append(f"{'/'.join(parts)}: a link to {'/'.join(first)}, which did not come")


def _remove(parent: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        pass
    except IsADirectoryError as error:
        raise Invalid(
            "the copy was stopped",
            f"{name} is a directory here and a file in the guest",
            "copy into an empty directory",
        ) from error


def _leads_out(parts: tuple[str, ...], target: str) -> bool:
    """Whether a symbolic link may leave the copied tree. `..` is fine only at the front: after a name that is a link it means anything."""
    steps = [part for part in target.split("/") if part not in ("", ".")]
    up = next((index for index, part in enumerate(steps) if part != ".."), len(steps))
    between = len(parts) - 2  # directories between the top of the tree and the link
    return not target or target.startswith("/") or ".." in steps[up:] or up > between


def _pax(data: bytes) -> Iterator[tuple[str, str]]:
    """The records of a pax head that say something about where a member goes. Raises Invalid."""
    while data:
        digits, _, _ = data[:21].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record, data = data[:length], data[length:]
        key, equals, value = record[len(digits) + 1 :].rstrip(b"\n").partition(b"=")
        if length < len(digits) + 2 or not equals:
            raise Invalid("the copy was stopped", "the guest sent a broken extended head", "copy again")
        if key in (b"path", b"linkpath", b"size"):
            yield key.decode(), value.decode("utf-8", "surrogateescape")
