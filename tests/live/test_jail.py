"""The jail as the kernel shows it, layer by layer, for a daemon run by root and by an ordinary user."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from roost.host import jail, processes
from roost.host.jail import Jail, Jailed, Limits
from tests.needs import needs_program, needs_root
from tests.ordinary import UID, WHO, run_as

JAIL_UID = jail.FIRST_UID + 7
SLEEP = Path("/usr/bin/sleep")
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")


class Inmate(NamedTuple):
    """What /proc says of a jailed process, and of the daemon beside it."""

    who: str
    status: dict[str, str]
    namespaces: dict[str, str]
    daemon_namespaces: dict[str, str]
    descriptors: dict[str, str]
    files: set[str]
    options: set[str]
    limits: dict[str, str]
    oom_score: str
    environment: bytes
    layers: tuple[str, ...]
    missing: tuple[str, ...]


def namespaces(pid: int | str) -> dict[str, str]:
    return {name: str(Path(f"/proc/{pid}/ns/{name}").readlink()) for name in NAMESPACES}


def all_files(root: Path) -> set[str]:
    found = (Path(directory) / name for directory, _, names in os.walk(root) for name in names)
    return {f"/{path.relative_to(root)}" for path in found}


def look_at(who: str, jailed: Jailed) -> Inmate:
    proc = Path(f"/proc/{jailed.process.pid}")
    lines = (proc / "limits").read_text().splitlines()[1:]
    return Inmate(
        who=who,
        status=dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line),
        namespaces=namespaces(jailed.process.pid),
        daemon_namespaces=namespaces("self"),
        descriptors={entry.name: str(entry.readlink()) for entry in (proc / "fd").iterdir()},
        files=all_files(proc / "root"),
        options={line.split()[5] for line in (proc / "mountinfo").read_text().splitlines()},
        limits={line[:26].strip(): line[26:].split()[1] for line in lines},
        oom_score=(proc / "oom_score_adj").read_text().strip(),
        environment=(proc / "environ").read_bytes(),
        layers=jailed.layers,
        missing=jailed.missing,
    )


async def end(jailed: Jailed) -> int | None:
    processes.signal_pidfd(jailed.pidfd, signal.SIGKILL)
    code = await processes.wait_pidfd(jailed.pidfd)
    os.close(jailed.pidfd)
    assert jailed.cgroup is None or await jailed.cgroup.remove()
    return code


def sleeper(**changes: Any) -> Jail:
    jailed = Jail(f"test-{os.getpid()}", [str(SLEEP), "600"], jail.program_binds(SLEEP), uid=JAIL_UID)
    return jailed._replace(**changes)


@pytest.fixture(scope="module", params=WHO)
def inmate(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Inmate:
    path = tmp_path_factory.mktemp("jail") / "disk"
    path.write_bytes(b"")
    path.chmod(0o666)
    disk = os.open(path, os.O_RDWR)

    async def main() -> Inmate:
        limits = Limits(memory=64 << 20, processes=9, files=99, file_size=1 << 20, cpus=0.5)
        jailed = await jail.enter(sleeper(fds={7: disk}, env={"ONE": "1"}, limits=limits))
        try:
            return look_at(request.param, jailed)
        finally:
            await end(jailed)

    try:
        return run_as(request.param, main)
    finally:
        os.close(disk)


def test_has_a_uid_that_is_not_the_daemons_when_root_runs_it(inmate: Inmate) -> None:
    expected = {"root": JAIL_UID, "user": UID if os.getuid() == 0 else os.getuid()}[inmate.who]
    assert inmate.status["Uid"].split() == inmate.status["Gid"].split() == [str(expected)] * 4
    assert ("own uid" in inmate.layers) == (inmate.who == "root")


@needs_root
def test_has_no_supplementary_group(inmate: Inmate) -> None:
    assert inmate.status["Groups"].split() == []


@pytest.mark.fault(62)
@pytest.mark.parametrize("kind", ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"])
def test_has_no_capability(inmate: Inmate, kind: str) -> None:
    assert int(inmate.status[kind], 16) == 0


def test_can_gain_no_privileges(inmate: Inmate) -> None:
    assert inmate.status["NoNewPrivs"] == "1"


def test_has_its_system_calls_filtered(inmate: Inmate) -> None:
    assert inmate.status["Seccomp"] == "2"


@pytest.mark.fault(62)
@pytest.mark.parametrize("kind", NAMESPACES)
def test_has_a_namespace_of_its_own(inmate: Inmate, kind: str) -> None:
    assert inmate.namespaces[kind] != inmate.daemon_namespaces[kind]


def test_starts_with_the_usual_signals_but_an_error_at_the_file_size_limit(inmate: Inmate) -> None:
    assert int(inmate.status["SigIgn"], 16) == 1 << (signal.SIGXFSZ - 1)


def test_is_the_first_process_of_its_namespace(inmate: Inmate) -> None:
    assert inmate.status["NSpid"].split()[-1] == "1"


@pytest.mark.fault(62)
def test_has_exactly_the_descriptors_that_were_given(inmate: Inmate) -> None:
    assert sorted(inmate.descriptors) == ["0", "1", "2", "7"]
    assert inmate.descriptors["0"] == inmate.descriptors["1"] == inmate.descriptors["2"] == "/dev/null"
    assert inmate.descriptors["7"].endswith("/disk")


@pytest.mark.fault(62)
def test_sees_exactly_the_files_that_were_bound(inmate: Inmate) -> None:
    assert inmate.files == {bind.target for bind in jail.program_binds(SLEEP)}


def test_can_write_to_no_file_but_the_device(inmate: Inmate) -> None:
    assert {options for options in inmate.options if options.startswith("rw")} == {"rw,nosuid,noexec,relatime"}


def test_can_run_nothing_set_uid(inmate: Inmate) -> None:
    assert all("nosuid" in options for options in inmate.options)


@pytest.mark.fault(68)
def test_has_hard_limits(inmate: Inmate) -> None:
    expected = {
        "Max core file size": "0",
        "Max processes": "9",
        "Max open files": "99",
        "Max file size": str(1 << 20),
        "Max locked memory": "0",
    }
    assert {name: inmate.limits[name] for name in expected} == expected


def test_is_killed_before_the_daemon_when_memory_is_short(inmate: Inmate) -> None:
    assert inmate.oom_score == "500"


def test_has_only_the_environment_that_was_given(inmate: Inmate) -> None:
    assert inmate.environment == b"ONE=1\0"


def test_tells_which_layers_hold_and_which_are_missing(inmate: Inmate) -> None:
    told = {*inmate.layers, *(entry.partition(":")[0] for entry in inmate.missing)}
    kinds = ("mount", "pid", "ipc", "uts", "cgroup", "network", "user")
    everything = {f"{kind} namespace" for kind in kinds} | {
        *("own uid", "no capabilities", "no new privileges", "resource limits", "landlock", "seccomp", "control group")
    }
    assert told == everything


@needs_root
@pytest.mark.parametrize("who", ["root", "user"])
def test_without_user_namespaces_the_other_layers_hold_and_the_missing_are_named(who: str) -> None:
    async def main() -> Inmate:
        jailed = await jail.enter(sleeper())
        try:
            return look_at(who, jailed)
        finally:
            await end(jailed)

    inmate = run_as(who, main, namespaces=False)
    assert {"landlock", "seccomp", "no capabilities", "no new privileges"} <= set(inmate.layers)
    assert {"root": "user namespace", "user": "namespaces"}[who] in {
        entry.partition(":")[0] for entry in inmate.missing
    }
    assert int(inmate.status["CapEff"], 16) == 0
    assert inmate.status["Seccomp"] == "2"


@needs_root
async def test_files_in_private_directories_of_root_are_bound_all_the_same(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    (private / "kernel").write_text("inside")
    (private / "kernel").chmod(0o444)
    tail = Path("/usr/bin/tail")
    binds = [*jail.program_binds(tail), jail.Bind(private / "kernel", "/kernel")]
    _, finished = await jail.run_to_end(Jail("test-private", [str(tail), "/kernel"], binds, uid=JAIL_UID), 20)
    assert finished == (0, b"inside", b"")


@needs_program("qemu-img")
@pytest.mark.parametrize("who", WHO)
def test_a_tool_reads_and_writes_the_given_files_and_no_others(who: str) -> None:
    async def main() -> tuple[Any, Any, bytes]:
        home = Path(os.environ["TMPDIR"] if who == "user" else "/tmp")
        source, target = home / f"source-{os.getpid()}", home / f"target-{os.getpid()}"
        source.write_bytes(b"disk" * 4096)
        target.touch()
        words = ["qemu-img", "convert", "-f", "raw", "-O", "raw", "/in", "/out"]
        bounds: Any = {"timeout": 60.0, "memory": 512 << 20, "file_size": 1 << 20}
        try:
            done = await jail.run_in_jail(words, readable={"/in": source}, writable={"/out": target}, **bounds)
            words[6] = str(source)
            refused = await jail.run_in_jail(words, readable={"/in": source}, writable={"/out": target}, **bounds)
            return done, refused, target.read_bytes()
        finally:
            source.unlink()
            target.unlink()

    done, refused, written = run_as(who, main)
    assert (done.code, written[:8]) == (0, b"diskdisk")
    assert (refused.code, b"No such file" in refused.stderr) == (1, True)
