"""Programs for other processors: their arguments, ends and signals are exact, dynamic ones find their libraries, and the sandbox holds them."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost.errors import RoostError, Unavailable
from roost.host import packages
from roost.runtimes import execution, foreign
from roost.runtimes.base import Grant, MiB
from roost.runtimes.detect import detect
from tests.ordinary import WHO, run_as
from tests.programs.build import FOREIGN, host, program
from tests.programs.debian import ARCHITECTURES, busybox
from tests.programs.running import run, said
from tests.programs.third_party import Artefact, fetch

pytestmark = pytest.mark.live

RUFF = Artefact(
    "pip",
    "ruff",
    "0.8.6",
    "0c000a471d519b3e6cfc9c6680025d923b4ca140ce3e4612d1a2ef58e11f11fe",
    ("--platform=musllinux_1_2_aarch64",),
)
FIRST = ("aarch64", "arm", "riscv64", "s390x", "ppc64le")
"""What people have most; the others are compiled in a soak."""
OTHERS = tuple(arch for arch in FOREIGN if arch not in (*FIRST, host()))
WORDS = ("", "a b", "ünïcode\u00a0", "--", "-L", "\udcff\udc80", 'q"\\', "x" * 4000)


def emulated(*arches: str) -> list[object]:
    """Parameters: each architecture, skipped where its emulator is not installed."""
    return [
        pytest.param(arch, marks=pytest.mark.skipif(not shutil.which(f"qemu-{arch}-static"), reason=f"not installed: qemu-{arch}-static"))
        for arch in arches
    ]  # fmt: skip


every = pytest.mark.parametrize(
    "arch", [*emulated(*FIRST), *(pytest.param(arch, marks=pytest.mark.soak) for arch in OTHERS)]
)
common = pytest.mark.parametrize("arch", emulated(*FIRST))


@every
def test_an_architecture_runs_with_exact_arguments_and_ends(arch: str) -> None:
    probe = program("probe", arch)
    assert detect(str(probe)).arch == arch
    words = said(run(probe, "args", *WORDS)).splitlines()
    assert words == [os.fsencode(word).hex() for word in WORDS]
    assert said(run(probe, "name", name="./its name")).strip() == b"./its name".hex()
    assert run(probe, "exit", "255").ending.code == 255
    assert run(probe, "exit", "77").ending.code == 77
    killed = run(probe, "raise", "TERM").ending
    assert (killed.code, killed.reason, killed.signal) == (143, "signal", 15)
    assert run(probe, "segv").ending.code == 139
    assert said(run(probe, "compute", "1")) == said(run(program(), "compute", "1"))
    assert said(run(probe, "threads", "4")) == said(run(program(), "threads", "4"))


@common
def test_binary_input_comes_through_unchanged(arch: str) -> None:
    data = os.urandom(300_000)
    result = run(program("probe", arch), "cat", stdin=data)
    assert (result.ending.code, result.stdout) == (0, data)


@common
def test_it_sees_what_is_granted_and_nothing_else(arch: str, tmp_path: Path) -> None:
    (tmp_path / "ein ä").write_text("granted")
    grant = (Grant(str(tmp_path), "/data"),)
    probe = program("probe", arch)
    assert said(run(probe, "read", "/data/ein ä", fs=grant)) == "granted"
    assert (
        run(probe, "write", "/data/new", "x", fs=grant).stderr
        == run(program(), "write", "/data/new", "x", fs=grant).stderr
    )
    assert {"app", "data"} <= set(said(run(probe, "list", "/", fs=grant)).split())
    assert b"missing" in run(probe, "read", "/usr/bin/env").stderr


@pytest.mark.skipif(not shutil.which("qemu-aarch64-static"), reason="not installed: qemu-aarch64-static")
@pytest.mark.parametrize("who", WHO)
def test_root_and_an_ordinary_user_can_run_it(who: str) -> None:
    probe = program("probe", "aarch64")
    place = Path("/tmp") / f"probe-{os.getpid()}"
    shutil.copy(probe, place)

    async def main() -> tuple[int, bytes]:
        result = run(place, "uid")
        return result.ending.code, result.stdout

    try:
        assert run_as(who, main) == (0, b"1000\n")
    finally:
        place.unlink()


PIPE = "/app/busybox echo hi | /app/busybox cat; /app/busybox id -u; /app/busybox false || exit 7"
"""Programs of its own kind, started by their path."""


@pytest.mark.parametrize("arch", emulated("aarch64", "arm", "ppc64le", "s390x"))
def test_a_program_starts_other_programs_of_its_processor(arch: str, tmp_path: Path) -> None:
    place = shutil.copy(busybox(arch), tmp_path / "busybox")
    result = run(Path(place), "sh", "-c", PIPE, wall=60.0)
    assert (result.ending.code, result.stdout, result.stderr) == (7, b"hi\n1000\n", b"")


@pytest.mark.skipif(not shutil.which("qemu-aarch64-static"), reason="not installed: qemu-aarch64-static")
@pytest.mark.parametrize("who", WHO)
def test_root_and_an_ordinary_user_see_such_programs_start(who: str) -> None:
    original = busybox("aarch64")
    with tempfile.TemporaryDirectory(prefix="roost-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        place = shutil.copy(original, Path(directory) / "busybox")

        async def main() -> tuple[int, bytes]:
            result = run(Path(place), "sh", "-c", PIPE, wall=60.0)
            return result.ending.code, result.stdout

        assert run_as(who, main) == (7, b"hi\n1000\n")


@pytest.mark.skipif(not shutil.which("qemu-aarch64-static"), reason="not installed: qemu-aarch64-static")
def test_how_programs_are_started_is_out_of_their_sight_and_changes_nothing_outside(tmp_path: Path) -> None:
    place = shutil.copy(busybox("aarch64"), tmp_path / "busybox")
    look = "/app/busybox ls -A /dev/shm /proc/sys/fs/binfmt_misc; /app/busybox grep -c binfmt_misc /proc/self/mounts"
    assert run(Path(place), "sh", "-c", look, wall=60.0).stdout.splitlines()[-1] == b"0"
    if [*Path("/proc/sys/fs/binfmt_misc").glob("qemu-*")]:
        pytest.skip("the host starts such programs itself")
    with pytest.raises(OSError, match="Exec format error"):
        subprocess.run([place, "true"], check=False)


@pytest.mark.fault(91)
@common
def test_raw_system_calls_under_an_emulator_meet_the_sandbox(arch: str) -> None:
    victim = subprocess.Popen(["sleep", "60"])
    with socket.create_server(("127.0.0.1", 0)) as door:
        env = (("PROBE_PORT", str(door.getsockname()[1])), ("PROBE_PID", str(victim.pid)))
        result = run(program("probe", arch), "attempt", "all", env=env, wall=60.0)
        door.settimeout(0)
        with pytest.raises(BlockingIOError):
            door.accept()
    alive = victim.poll() is None
    victim.kill()
    victim.wait()
    verdicts = dict(line.split(": ", 1) for line in result.stdout.decode().splitlines())
    assert [name for name, verdict in verdicts.items() if verdict == "allowed"] == []
    assert {verdicts[name].split()[0] for name in ("mount", "loopback", "kill_host", "unshare_user", "setns")} == {
        "refused"
    }
    assert len(verdicts) > 60
    assert alive


@common
def test_memory_is_bounded_with_room_for_the_emulator(arch: str) -> None:
    assert said(run(program("probe", arch), "eat", "40", memory=64 * MiB)) == "ate 40\n"
    ending = run(program("probe", arch), "eat", "900", memory=64 * MiB, wall=60.0).ending
    assert (ending.code, ending.limit) == (124, "memory")


@pytest.mark.parametrize("arch", emulated("aarch64", "arm", "ppc64le", "riscv64", "s390x"))
def test_a_dynamic_program_loads_the_libraries_of_its_sysroot(arch: str) -> None:
    if not Path(packages.SYSROOTS[arch].directory).is_dir():
        pytest.skip(f"not installed: {packages.SYSROOTS[arch].package}")
    probe = program("probe", f"{arch}-dynamic")
    assert detect(str(probe)).details["link"] == "dynamic"
    assert said(run(probe, "args", "a", "b")) == "61\n62\n"
    assert {"app", "lib", "tmp"} <= set(said(run(probe, "list", "/")).split())
    assert said(run(probe, "threads", "3")) == said(run(program(), "threads", "3"))


def test_a_dynamic_program_without_its_libraries_names_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    probe = program("probe", "aarch64-dynamic")
    sysroot = packages.SYSROOTS["aarch64"]._replace(directory=str(tmp_path))
    monkeypatch.setitem(packages.SYSROOTS, "aarch64", sysroot)
    with pytest.raises(Unavailable) as error:
        run(probe)
    assert execution.exit_code(error.value) == 126
    assert "/lib/ld-linux-aarch64.so.1" in error.value.why
    assert error.value.fix.endswith("apt-get install --no-install-recommends libc6-arm64-cross")


def test_an_interpreter_in_an_unusual_place_opens_no_directory_of_the_host(tmp_path: Path) -> None:
    (tmp_path / "secret.so").write_text("secret")
    data = bytearray(program("probe", "aarch64-dynamic").read_bytes())
    usual = b"/lib/ld-linux-aarch64.so.1\0"
    assert data.count(usual) == 1
    wanted = b"/../../etc/shadow"
    at = data.index(usual)
    data[at : at + len(usual)] = wanted.ljust(len(usual), b"\0")
    tool = tmp_path / "tool"
    tool.write_bytes(data)
    tool.chmod(0o755)
    with pytest.raises(RoostError) as error:
        run(tool)
    assert execution.exit_code(error.value) == 126


def test_without_an_emulator_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign.host_programs, "DIRECTORIES", ())
    with pytest.raises(Unavailable) as error:
        run(program("probe", "s390x"))
    assert execution.exit_code(error.value) == 126
    assert "qemu-user for s390x" in error.value.why
    assert "foreign" in error.value.fix


def test_the_own_processor_can_be_emulated_on_request() -> None:
    result = run(program(), "compute", "1", vm="foreign")
    assert (result.runtime, said(result)) == ("foreign", said(run(program(), "compute", "1")))
    assert said(run(program("probe", f"{host()}-dynamic"), "out", "x", vm="foreign")) == "x\n"


@pytest.mark.parametrize("arch", emulated(*ARCHITECTURES))
def test_busybox_of_debian_runs(arch: str, tmp_path: Path) -> None:
    tool = busybox(arch)
    (tmp_path / "f").write_text("b\na\n")
    assert said(run(tool, "sort", "/d/f", fs=(Grant(str(tmp_path), "/d"),))) == "a\nb\n"
    assert said(run(tool, "sha256sum", stdin=b"abc")).startswith("ba7816bf8f01cfea")
    assert run(tool, "sh", "-c", "read x; echo $((x * 2)); exit 42", stdin=b"21\n").stdout == b"42\n"
    assert run(tool, "sh", "-c", "exit 42").ending.code == 42


@pytest.mark.skipif(not shutil.which("qemu-aarch64-static"), reason="not installed: qemu-aarch64-static")
def test_a_program_of_a_package_for_another_processor_does_its_work(tmp_path: Path) -> None:
    tool = fetch(RUFF) / "ruff-0.8.6.data/scripts/ruff"
    (tmp_path / "code.py").write_text("import os\nx = {  'a':1 }\n")
    granted = (Grant(str(tmp_path), "/code"),)
    assert said(run(tool, "format", "-", "--no-cache", stdin=b"x = {  'a':1 }")) == 'x = {"a": 1}\n'
    checked = run(tool, "check", "--no-cache", "/code", fs=granted)
    assert (checked.ending.code, b"F401" in checked.stdout) == (1, True)


def _damaged(data: bytes) -> Iterator[tuple[str, bytes]]:
    yield "cut in its header", data[:40]
    yield "cut in its program headers", data[:100]
    yield "cut in its code", data[: len(data) // 2]
    yield "no program headers", data[:56] + b"\0\0" + data[58:]
    yield "random after its magic", data[:4] + bytes(range(256)) * 16
    high, table, count = bytearray(data), *struct.unpack_from("<Q", data, 32), *struct.unpack_from("<H", data, 56)
    for header in range(table, table + 56 * count, 56):
        if struct.unpack_from("<I", data, header)[0] == 1:
            struct.pack_into("<Q", high, header + 16, 0xFFFF_FFFF_FFF0_0000)
    yield "loaded where nothing can be", bytes(high)


@pytest.mark.parametrize("case", range(6))
@pytest.mark.skipif(not shutil.which("qemu-aarch64-static"), reason="not installed: qemu-aarch64-static")
def test_a_damaged_program_ends_in_one_clear_error(case: int, tmp_path: Path) -> None:
    what, data = list(_damaged(program("probe", "aarch64").read_bytes()))[case]
    file = tmp_path / "damaged"
    file.write_bytes(data)
    file.chmod(0o755)
    try:
        ending = run(file, "out", "x", wall=20.0).ending
        code, message = ending.code, ending.message
    except RoostError as error:
        code, message = execution.exit_code(error), f"{error.why} {error.fix}"
    assert code in (125, 126, 127), what
    assert message, what
