"""Programs of this host itself: as they are, with the system's libraries and those that they bring along, and nothing else of the caller's."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from roost.errors import RoostError, Unavailable
from roost.host import sandbox
from roost.runtimes import execution
from roost.runtimes.base import Grant
from tests.needs import needs_program
from tests.ordinary import WHO, run_as
from tests.programs.build import host, program
from tests.programs.running import run, said

pytestmark = pytest.mark.live

BOTH = pytest.mark.parametrize("link", ["static", "dynamic"])


def probe(link: str) -> Path:
    return program("probe", host() if link == "static" else f"{host()}-dynamic")


@BOTH
def test_arguments_names_and_ends_are_exact(link: str) -> None:
    words = ("", "a b", "ünïcode", "--", "\udcff\udc80", "x" * 100_000)
    assert said(run(probe(link), "args", *words)).splitlines() == [os.fsencode(word).hex() for word in words]
    assert said(run(probe(link), "name", name="../its name")).strip() == b"../its name".hex()
    assert [run(probe(link), "exit", code).ending.code for code in ("0", "1", "124", "255")] == [0, 1, 124, 255]
    assert [run(probe(link), "raise", signal).ending.code for signal in ("TERM", "KILL", "USR1")] == [143, 137, 138]
    assert [run(probe(link), verb).ending.code for verb in ("segv", "abort", "trap")][:2] == [139, 134]


@BOTH
def test_it_can_run_itself_and_programs_of_the_system(link: str) -> None:
    assert said(run(probe(link), "again", "exit", "3")) == "exit 3\n"
    assert said(run("/bin/sh", "-c", "echo a b | tr a-z A-Z")) == "A B\n"


@pytest.mark.parametrize("who", WHO)
def test_root_and_an_ordinary_user_can_run_it(who: str) -> None:
    place = Path("/tmp") / f"native-{os.getpid()}"
    shutil.copy(probe("dynamic"), place)

    async def main() -> tuple[str, str]:
        return said(run(place, "uid")), said(run(place, "list", "/app"))

    try:
        assert run_as(who, main) == (f"{sandbox.INSIDE}\n", f"{place.name}\n")
    finally:
        place.unlink()


def test_it_does_not_see_what_lies_beside_it_unless_granted(tmp_path: Path) -> None:
    tool = Path(shutil.copy(probe("static"), tmp_path / "tööl"))
    (tmp_path / "secret").write_text("secret")
    assert said(run(tool, "list", "/app")) == "tööl\n"
    assert b"missing" in run(tool, "read", str(tmp_path / "secret")).stderr
    granted = (Grant(str(tmp_path), "/data"),)
    assert said(run(tool, "read", "/data/secret", fs=granted)) == "secret"
    assert "/app" not in said(run(tool, "list", "/", fs=granted)).split()


@pytest.mark.parametrize("who", WHO)
def test_no_attempt_to_get_out_succeeds(who: str) -> None:
    place = Path("/tmp") / f"attempts-{os.getpid()}"
    shutil.copy(probe("static"), place)

    async def main() -> str:
        with socket.create_server(("127.0.0.1", 0)) as door:
            env = (("PROBE_PORT", str(door.getsockname()[1])), ("PROBE_PID", str(os.getppid())))
            return run(place, "attempt", "all", env=env, wall=60.0).stdout.decode()

    try:
        verdicts = dict(line.split(": ", 1) for line in run_as(who, main).splitlines())
    finally:
        place.unlink()
    assert [name for name, verdict in verdicts.items() if verdict == "allowed"] == []
    assert len(verdicts) > 60


def test_a_link_to_a_program_runs_under_the_name_of_the_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(probe("static"))
    assert said(run(tmp_path / "link", "list", "/app")) == "link\n"


@needs_program("gcc")
@pytest.mark.parametrize(("program_at", "library_at", "search"), [
    ("tool", "libbeside.so", "$ORIGIN"),
    ("bin/tool", "lib/libbeside.so", "$ORIGIN/../lib"),
    ("tool", "private/libs/libbeside.so", "$ORIGIN/private/libs"),
])  # fmt: skip
def test_libraries_that_a_program_brings_along_are_found(
    tmp_path: Path, program_at: str, library_at: str, search: str
) -> None:
    tool = _with_library(tmp_path, program_at, library_at, search)
    (tmp_path / "secret").write_text("secret")
    assert said(run(tool)) == "42\n"
    assert said(run(tool, fs=(Grant(str(tmp_path), "/data"),))) == "42\n"


@needs_program("gcc")
def test_a_library_elsewhere_is_named_with_the_flag_that_lends_it(tmp_path: Path) -> None:
    tool = _with_library(tmp_path, "here/tool", "elsewhere/libbeside.so", "$ORIGIN/../elsewhere")
    with pytest.raises(Unavailable) as error:
        run(tool)
    assert f"libbeside.so is in {tmp_path}/elsewhere" in error.value.why
    assert f"--fs {tmp_path}/elsewhere:ro" in error.value.fix
    place = str(tmp_path / "elsewhere")
    assert said(run(tool, fs=(Grant(place, place),))) == "42\n"


@needs_program("gcc")
def test_a_library_that_is_nowhere_is_named(tmp_path: Path) -> None:
    tool = _with_library(tmp_path, "tool", "libbeside.so", "$ORIGIN")
    (tmp_path / "libbeside.so").unlink()
    with pytest.raises(Unavailable) as error:
        run(tool)
    assert execution.exit_code(error.value) == 126
    assert "libbeside.so" in error.value.why
    assert run(tool, env=(("LD_LIBRARY_PATH", "/nowhere"),)).ending.code == 127


@needs_program("gcc")
def test_an_interpreter_that_does_not_exist_is_named(tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text("int main(void) { return 0; }")
    tool = tmp_path / "tool"
    subprocess.run(
        ["gcc", "-o", tool, tmp_path / "main.c", "-Wl,--dynamic-linker=/lib/ld-other.so.1"], check=True, timeout=60
    )
    with pytest.raises(Unavailable) as error:
        run(tool)
    assert execution.exit_code(error.value) == 126
    assert "/lib/ld-other.so.1" in error.value.why


@needs_program("gcc")
@pytest.mark.parametrize("interpreter", ["{}/private/ld.so", "/lib/../..{}/private/ld.so"])
def test_a_program_can_not_name_a_file_of_the_host_as_its_interpreter_to_see_it(
    tmp_path: Path, interpreter: str
) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "here").mkdir()
    shutil.copy("/bin/true", tmp_path / "private/ld.so")
    (tmp_path / "main.c").write_text("int main(void) { return 0; }")
    tool = tmp_path / "here/tool"
    flag = f"-Wl,--dynamic-linker={interpreter.format(tmp_path)}"
    subprocess.run(["gcc", "-o", tool, tmp_path / "main.c", flag], check=True, timeout=60)
    with pytest.raises(Unavailable) as error:
        run(tool)
    assert "ld.so" in error.value.why


def test_a_program_that_lost_its_mode_is_told_how_to_get_it_back(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    shutil.copyfile(probe("static"), tool)
    tool.chmod(0o644)
    with pytest.raises(Unavailable) as error:
        run(tool, name="./tool")
    assert execution.exit_code(error.value) == 126
    assert error.value.fix == "chmod +x ./tool"


@pytest.mark.parametrize("bytes_left", [63, 100, 5000, 20_000])
def test_a_program_that_is_cut_off_ends_in_one_clear_error(tmp_path: Path, bytes_left: int) -> None:
    tool = tmp_path / "tool"
    tool.write_bytes(probe("dynamic").read_bytes()[:bytes_left])
    tool.chmod(0o755)
    with pytest.raises(RoostError) as error:
        run(tool, wall=20.0)
    assert execution.exit_code(error.value) in (125, 126, 127)
    assert error.value.why
    assert error.value.fix


def _with_library(place: Path, program_at: str, library_at: str, search: str) -> Path:
    """A program that prints what its own library says, which its headers look for along `search`."""
    tool, library = place / program_at, place / library_at
    for file in (tool, library):
        file.parent.mkdir(parents=True, exist_ok=True)
    (place / "beside.c").write_text("int beside(void) { return 42; }")
    (place / "main.c").write_text(
        '#include <stdio.h>\nint beside(void);\nint main(void) { printf("%d\\n", beside()); return 0; }'
    )
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, place / "beside.c"], check=True, timeout=60)
    flags = [f"-Wl,--enable-new-dtags,-rpath,{search}", f"-L{library.parent}", "-lbeside"]
    subprocess.run(["gcc", "-o", tool, place / "main.c", *flags], check=True, timeout=60)
    return tool
