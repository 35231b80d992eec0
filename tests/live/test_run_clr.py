"""Programs for the CLR: exact arguments and ends, a bounded heap, and the sandbox around them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from roost.errors import Invalid
from roost.runtimes import clr, execution
from roost.runtimes.base import Grant, MiB
from tests.needs import needs_program
from tests.ordinary import WHO, run_as
from tests.programs import managed
from tests.programs.build import program
from tests.programs.running import run, said

pytestmark = [pytest.mark.live, needs_program("mono", "mcs")]

WORDS = ("", "a b", "ünïcode", "日本", "--", "--help", 'q"\\', "*")
KEEPASS = Path("/usr/lib/keepass2/KeePass.exe")


def test_arguments_and_ends_are_exact() -> None:
    probe = managed.clr()
    assert said(run(probe, "args", *WORDS)).splitlines() == [word.encode().hex() for word in WORDS]
    assert [run(probe, "exit", str(code)).ending.code for code in (0, 1, 77, 255)] == [0, 1, 77, 255]
    assert run(probe, "cat", stdin=bytes(range(256)) * 999).stdout == bytes(range(256)) * 999
    assert said(run(probe, "compute", "1")) == said(run(program(), "compute", "1"))


def test_an_exception_that_nobody_handles_is_told() -> None:
    result = run(managed.clr(), "trap")
    assert (result.ending.code, b"InvalidOperationException" in result.stderr) == (1, True)
    assert result.ending.message == "the program ended by an exception that it does not handle"


def test_it_sees_only_what_it_is_given(tmp_path: Path) -> None:
    probe = shutil.copy(managed.clr(), tmp_path)
    (tmp_path / "secret").write_text("kept")
    assert said(run(probe, "list", "/app")) == "ProbeClr.exe\n"
    assert b"missing" in run(probe, "read", "/etc/shadow").stderr
    assert b"denied" in run(probe, "write", "/app/new", "x").stderr
    grant = (Grant(str(tmp_path), "/data"),)
    assert said(run(probe, "read", "/data/secret", fs=grant)) == "kept"
    assert b"denied" in run(probe, "write", "/data/new", "x", fs=grant).stderr


def test_memory_beyond_the_limit_ends_by_that_limit() -> None:
    ending = run(managed.clr(), "eat", "2000", memory=256 * MiB).ending
    assert (ending.code, ending.limit) == (124, "memory")
    assert said(run(managed.clr(), "eat", "100", memory=256 * MiB)) == "ate 100\n"


def test_a_connection_is_refused_with_the_flag_that_allows_it() -> None:
    result = run(managed.clr(), "connect", "192.0.2.1", "80")
    assert b"denied" in result.stderr
    assert "connect to 192.0.2.1:80; allow it with --net 192.0.2.1:80" in result.refusals


@pytest.mark.skipif(not KEEPASS.is_file(), reason="not installed: keepass2")
def test_a_program_with_windows_is_refused_with_the_flag() -> None:
    with pytest.raises(Invalid) as refused:
        run(KEEPASS)
    assert "--gui" in refused.value.fix
    assert execution.exit_code(refused.value) == 125


@pytest.mark.parametrize("who", WHO)
def test_it_runs_for_everybody(who: str) -> None:
    source = managed.clr().read_bytes()

    async def main() -> tuple[str, int]:
        file = Path(os.environ["HOME"]) / "probe.exe"
        file.write_bytes(source)
        return said(run(file, "out", "hello")), run(file, "exit", "77").ending.code

    assert clr.Clr().name == "clr"  # loaded, before an ordinary user can no longer read the checkout
    assert run_as(who, main) == ("hello\n", 77)
