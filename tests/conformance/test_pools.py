"""The fake pool and the one that is a directory keep the same promises."""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401 - the user of the test may not be able to read Python's own files
import tempfile
from pathlib import Path

import pytest

from roost.host.paths import Paths
from roost.storage.directory import DirectoryPool
from roost.testing.pool import FakePool
from roost.testing.pools import check_pool
from tests.needs import needs_program
from tests.ordinary import WHO, run_as


async def test_the_fake_keeps_the_promises_of_a_pool(tmp_path: Path) -> None:
    await check_pool(FakePool(tmp_path))


@pytest.mark.live
@needs_program("qemu-img")
@pytest.mark.parametrize("who", WHO)
def test_a_directory_keeps_the_promises_of_a_pool(who: str) -> None:
    async def main() -> list[str]:
        with tempfile.TemporaryDirectory() as directory:
            paths = Paths(Path(directory) / "state", Path(directory) / "run")
            await check_pool(DirectoryPool(paths, "the-pool", "", lambda digest: None))
            return [path.name for path in Path(directory).rglob("*") if not path.is_dir()]

    assert run_as(who, main) == [], "a pool that is given up leaves no file, and no key a pipe"
