"""Space on the disk that is kept for the control plane: given up when a guest has filled the disk, taken again when there is some."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from roost.host import files

SIZE = 32 << 20
"""Bytes kept: what the store writes in hours, and little beside a guest's disk."""

_PLENTY = 512 << 20
"""Free bytes below which nothing is set aside: there the disk itself is what is short."""


class Reserve:
    """The file `path` with real blocks behind it, so that no guest can have them."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def hold(self) -> None:
        """Set the space aside, unless it is or there is little left. Never an error: it is a precaution."""
        with contextlib.suppress(OSError):
            if self._path.exists() or files.free_space(self._path.parent) < _PLENTY:
                return
            with self._path.open("xb") as file:
                os.posix_fallocate(file.fileno(), 0, SIZE)

    def release(self) -> None:
        """Give it to the control plane; nothing when that was done."""
        self._path.unlink(missing_ok=True)
