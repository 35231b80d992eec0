"""One real program, esbuild, in several of its builds: whatever runs it, it writes the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost.runtimes import wine_prefix
from tests.needs import needs_program
from tests.programs import one_program

pytestmark = [
    pytest.mark.live,
    needs_program("npm", "qemu-aarch64-static", "qemu-s390x-static"),
    pytest.mark.skipif(wine_prefix.installation() is None, reason="not installed: wine64"),
]


def test_builds_for_other_systems_and_processors_write_the_same_bytes(tmp_path: Path) -> None:
    one_program.write_input(tmp_path)
    builds = ("linux-x64", "linux-arm64", "linux-s390x", "win32-x64", "wasi-preview1")
    for build in builds:
        one_program.executable(build)
    ran = [one_program.run(build, tmp_path, 1) for build in builds]
    assert [one.problem for one in ran] == [""] * len(builds)
    assert [one.runtime for one in ran][2:] == ["foreign", "wine", "wasm"]
    assert len({one.digest for one in ran}) == 1
    assert "first" in one_program.table(ran)


@pytest.mark.soak
def test_all_builds_write_the_same_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    assert one_program.main(["--runs", "1"]) == 0, capsys.readouterr().out
