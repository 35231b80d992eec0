"""Which build this is: one short word that is the same wherever the same source runs, so that a command and a daemon can tell."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from functools import cache

import roost


@cache
def build_id() -> str:
    """`VERSION+HASH` of the package's Python sources as they were when first asked: the daemon asks at its start.

    A CRC suffices (it tells accidents apart, nothing is trusted on its word) and costs every command about a millisecond.
    """
    root = os.path.dirname(roost.__file__ or "")  # noqa: PTH120 - pathlib alone would cost more than the rest
    checksum = 0
    for path in sorted(_sources(root)):
        with open(path, "rb") as source:
            checksum = zlib.crc32(source.read(), zlib.crc32(path[len(root) :].encode(), checksum))
    return f"{roost.__version__}+{checksum:08x}"


def _sources(directory: str) -> Iterator[str]:
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False) and entry.name != "__pycache__":
                yield from _sources(entry.path)
            elif entry.name.endswith(".py"):
                yield entry.path
