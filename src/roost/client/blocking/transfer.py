# Derived from aio/transfer.py by `python -m roost.client.derive`: change that, not this.
# fmt: off
# ruff: noqa: I001, UP028, RUF100
"""Files into a machine and out of it, as tar streams."""

from __future__ import annotations

import posixpath
from pathlib import Path

from roost.client.blocking.session import Session
from roost.client.archive import BLOCK, Unpacker, pack
from roost.client.protocol import Request, path
from roost.errors import Invalid, NotFound, Unavailable

TAR = "application/x-tar"


def copy_in(session: Session, place: tuple[str, str], source: Path, target: str) -> None:
    """Copy `source` of this computer into the machine at `place`: into `target` if that is a directory there, else as `target`."""
    if not target.startswith("/"):
        raise Invalid(f"{target!r} is not a place in a machine", "it does not begin with /", f"write NAME:/{target}")
    name = source.resolve().name if source.name in ("", "..") else source.name
    into = target.endswith("/") or _is_directory(session, place, target)
    directory, name = (target, name) if into else posixpath.split(target)
    if not name:
        raise Invalid(
            f"{source} has no name of its own", "the whole file system can not be copied", "name a directory in it"
        )
    session.upload(path("machines", *place, "files", path=directory or "/"), pack(source, name), TAR)


def copy_out(session: Session, place: tuple[str, str], source: str, target: Path) -> list[str]:
    """Copy `source` out of the machine: into `target` if that is a directory here, else as `target`. Returns what was left out."""
    directory, name = (
        (target, posixpath.basename(source.rstrip("/"))) if target.is_dir() else (target.parent, target.name)
    )
    if not name:
        raise Invalid(
            f"{source!r} has no name of its own", "the whole file system can not be copied", "name a directory in it"
        )
    if not directory.is_dir():
        raise NotFound(f"{directory} does not exist", "the copy needs a directory to go to", f"mkdir -p {directory}")
    answer = session.open(Request("GET", path("machines", *place, "files", path=source)), timeout=None)
    try:
        unpacker = Unpacker(directory, name)
        try:
            for piece in answer.pieces():
                unpacker.feed(piece)
            unpacker.close()
        finally:
            unpacker.abandon()
    except OSError as error:
        raise Unavailable(
            f"{source} was not copied to {target}", error.strerror or str(error), "make room there, or copy elsewhere"
        ) from error
    finally:
        answer.close()
    return unpacker.skipped


def _is_directory(session: Session, place: tuple[str, str], target: str) -> bool:
    """Whether the guest has a directory there: the first member of its archive says so."""
    try:
        answer = session.open(Request("GET", path("machines", *place, "files", path=target)))
    except NotFound:
        return False
    head = b""
    try:
        for piece in answer.pieces():
            head += piece
            if len(head) >= BLOCK:
                break
    finally:
        answer.close()
    return head[156:157] == b"5"  # typeflag of a directory, POSIX.1-1988 ustar
