"""Where the programs of the host are that runtimes start: in the directories of the system, never in those of the caller."""

from __future__ import annotations

import os

DIRECTORIES = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin")
"""What a PATH has on every host. A program that somebody put into another directory of the caller's PATH is not taken for one of these."""
SHOWN = ("/usr/", "/bin/", "/sbin/", "/lib/", "/lib32/", "/lib64/", "/libx32/")
"""What a sandbox with the host's programs shows of it."""


def find(*names: str) -> str:
    """The path of the first of these programs that is installed; "" when none is."""
    for name in names:
        for directory in DIRECTORIES:
            path = os.path.join(directory, name)
            if os.path.isfile(path) and os.access(path, os.X_OK):
                return path
    return ""


def shown(path: str) -> bool:
    """Whether a sandbox with the host's programs shows this path."""
    return path.startswith(SHOWN)
