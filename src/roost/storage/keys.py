"""The passphrases of encrypted volumes: by project and name, in files that nobody else can read, or from a command of the administrator's."""

from __future__ import annotations

import asyncio
import base64
import os
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from roost.errors import Invalid, OutcomeUnknown, Unavailable
from roost.host import files, system
from roost.model.meta import Struct

_RANDOM = 32
"""Bytes of a key, before it is written as text: QEMU takes passphrases that are text."""
_LIMIT = 1 << 20
_LONGEST = 512
"""Bytes of a passphrase that a command may say: what LUKS in QEMU takes."""
_PATIENCE = 10.0
_PROJECT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class _Ring(Struct, frozen=True, kw_only=True):
    """A project's keys by name, and which of them new volumes get; where a command has them they are empty here."""

    current: str = ""
    keys: dict[str, str] = msgspec.field(default_factory=dict)


class KeyStore:
    """The keys in `directory`. With a `command` (argv) that is asked for each: it reads "PROJECT/NAME" and a newline, and prints the passphrase.

    No key is in an error, a log, an argument or a repr.
    """

    def __init__(self, directory: Path, command: Sequence[str] = ()) -> None:
        self._directory = directory
        self._command = tuple(command)
        self._changing = asyncio.Lock()

    async def current(self, project: str) -> str:
        """The name of the key that new volumes of a project get; the first one is made now. Raises Unavailable."""
        async with self._changing:
            ring = await asyncio.to_thread(self._read, project)
            return ring.current or await self._add(project, ring)

    async def rotate(self, project: str) -> str:
        """Make another key the current one, and return its name; those before it stay, for what is locked by them. Raises Unavailable."""
        async with self._changing:
            return await self._add(project, await asyncio.to_thread(self._read, project))

    async def names(self, project: str) -> list[str]:
        """The names of a project's keys, the oldest first. Raises Unavailable."""
        return list((await asyncio.to_thread(self._read, project)).keys)

    async def key(self, project: str, name: str) -> bytes:
        """A passphrase. Raises Unavailable when it is lost, or the command does not tell it."""
        if self._command:
            return await self._ask(project, name)
        found = (await asyncio.to_thread(self._read, project)).keys.get(name)
        if not found:
            raise Unavailable(
                f"what the key {name} of project {project} locks can not be opened",
                f"the key is not in {self._path(project)}",
                f"put {self._path(project)} back from a backup",
            )
        return found.encode()

    async def _add(self, project: str, ring: _Ring) -> str:
        # A name is never given twice, also not when the file was lost: a backup that is put back is then no other key of the same name.
        name = f"key-{len(ring.keys) + 1}" + ("" if self._command else f"-{os.urandom(4).hex()}")
        made = "" if self._command else base64.b64encode(os.urandom(_RANDOM)).decode()
        changed = _Ring(current=name, keys={**ring.keys, name: made})
        try:
            await asyncio.to_thread(self._write, project, changed)
        except OSError as error:
            raise Unavailable(f"project {project} gets no key", str(error), f"see {self._directory}") from error
        return name

    def _write(self, project: str, ring: _Ring) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        files.atomic_write(self._path(project), msgspec.json.format(msgspec.json.encode(ring)), 0o600)

    def _read(self, project: str) -> _Ring:
        path = self._path(project)
        try:
            data = files.read_bounded(path, _LIMIT)
        except FileNotFoundError:
            return _Ring()
        except (OSError, Invalid) as error:
            raise _unreadable(path, str(error)) from error
        try:
            return msgspec.json.decode(data, type=_Ring)
        except msgspec.MsgspecError:
            # What was found instead may be a part of a key: it is not said, nor kept as the cause.
            raise _unreadable(path, "it is not the JSON that was written") from None

    def _path(self, project: str) -> Path:
        if not _PROJECT.fullmatch(project):
            raise Invalid("no key is there", f"{project[:80]!r} is not the name of a project")
        return self._directory / f"{project}.json"

    async def _ask(self, project: str, name: str) -> bytes:
        what = f"what the key {name} of project {project} locks can not be opened"
        fix = f"see why {self._command[0]} does not tell it"
        try:
            told = await system.run(
                self._command, timeout=_PATIENCE, stdin=f"{project}/{name}\n".encode(), limit=_LONGEST + 1
            )
        except OutcomeUnknown as error:
            raise Unavailable(what, error.why, fix) from error
        found = told.stdout.removesuffix(b"\n")
        if told.code:
            raise Unavailable(what, f"{self._command[0]} ended with code {told.code}", fix)
        if not 16 <= len(found) <= _LONGEST or not found.isascii() or not found.decode().isprintable():
            raise Unavailable(what, f"{self._command[0]} gave no passphrase of 16 to {_LONGEST} ASCII characters", fix)
        return found


def _unreadable(path: Path, why: str) -> Unavailable:
    return Unavailable(f"the keys in {path} can not be read", why, f"put {path} back from a backup")
