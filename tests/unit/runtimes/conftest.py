"""A directory for tests of programs: `scripts/check` has temporary files in /dev/shm, and nothing below /dev can be lent to a program."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A new directory, gone after the test."""
    with tempfile.TemporaryDirectory(prefix="roost-test-", dir="/tmp") as place:
        yield Path(place)
