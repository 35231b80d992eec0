"""Programs that stay mapped and linked in this process, for the children that the zygote forks: by the identity of their file."""

from __future__ import annotations

import os
import stat
import time

from roost.runtimes.wasm_compile import artefact_of_file
from roost.runtimes.wasm_engine import WINCH, Options, engine
from roost.runtimes.wasm_program import SMALL, Command

_CORE = b"\0asm\1\0\0\0"
MOST = 8
"""Programs; the one that was used longest ago goes."""
_SETTLED = 2.0  # seconds since a file changed: another change within one tick of the clock would not be seen

_Identity = tuple[int, ...]
_kept: dict[_Identity, Command] = {}


def prepare() -> None:
    """Load the library and make its engine."""
    engine(Options())


def keep(path: str) -> None:
    """Map and link the core module at `path`, which has been run and so compiled before. Code from Winch is not kept: better comes
    soon; nor is small code, which is mapped quickly.

    Raises RoostError, OSError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        core = stat.S_ISREG(found.st_mode) and os.read(descriptor, len(_CORE)) == _CORE
    finally:
        os.close(descriptor)
    if not core or time.time() - found.st_ctime < _SETTLED:
        return
    identity = _identity(found)
    known = _kept.pop(identity, None)
    if known is None:
        artefact = artefact_of_file(path, Options(), background=False)
        if artefact.component or artefact.options.strategy == WINCH or artefact.size <= SMALL:
            os.close(artefact.descriptor)
            return
        known = Command(artefact)
    _kept[identity] = known
    if len(_kept) > MOST:
        _kept.pop(next(iter(_kept))).close()


def forget() -> None:
    """Let go of all."""
    while _kept:
        _kept.popitem()[1].close()


def find(path: str) -> Command | None:
    """What is kept of the file, if it is still the same one."""
    if not _kept:
        return None
    try:
        return _kept.get(_identity(os.stat(path)))
    except OSError:
        return None


def _identity(found: os.stat_result) -> _Identity:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
