"""The sandbox of a program as the kernel shows it, layer by layer, for a caller who is root and for an ordinary user."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import NamedTuple

import pytest

from roost.host import boxed, boxed_group, sandbox
from roost.host.box import Limits
from roost.host.sandbox import Boxed, start
from tests import boxes
from tests.boxes import box, children, status_of
from tests.needs import needs_root
from tests.ordinary import UID, WHO, run_as

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
HOST = {name: str(Path(f"/proc/self/ns/{name}").readlink()) for name in NAMESPACES}


class Inmate(NamedTuple):
    """What /proc says of a program in its box, and of its init."""

    who: str
    supervisor: int
    status: dict[str, str]
    init: dict[str, str]
    namespaces: dict[str, str]
    descriptors: set[str]
    options: dict[str, str]
    limits: dict[str, str]
    oom_score: str
    environment: bytes
    same_group: bool
    layers: tuple[str, ...]
    missing: tuple[str, ...]


def look_at(who: str, started: Boxed) -> Inmate:
    (program,) = children(started.pid)
    boxes.until_asleep(program)  # before that it opens its libraries
    proc = Path(f"/proc/{program}")
    lines = (proc / "limits").read_text().splitlines()[1:]
    mounts = [line.split() for line in (proc / "mountinfo").read_text().splitlines()]
    return Inmate(
        who=who,
        supervisor=os.getpid(),
        status=status_of(program),
        init=status_of(started.pid),
        namespaces={name: str((proc / "ns" / name).readlink()) for name in NAMESPACES},
        descriptors={entry.name for entry in (proc / "fd").iterdir()},
        options={words[4]: words[5] for words in mounts},
        limits={line[:26].strip(): line[26:].split()[1] for line in lines},
        oom_score=(proc / "oom_score_adj").read_text().strip(),
        environment=(proc / "environ").read_bytes(),
        same_group=(os.getpgid(program), os.getsid(program)) == (os.getpgid(0), os.getsid(0)),
        layers=started.layers,
        missing=started.missing,
    )


@pytest.fixture(scope="module", params=WHO)
def inmate(request: pytest.FixtureRequest) -> Inmate:
    async def main() -> Inmate:
        leak = os.open("/etc/passwd", os.O_RDONLY)
        os.set_inheritable(leak, True)
        limits = Limits(cpu_time=7.5, processes=9, files=99, file_size=1 << 20)
        started = start(box("/bin/sleep", "600", limits=limits, env={"ONE": "1"}))
        try:
            return look_at(request.param, started)
        finally:
            boxes.end(started)
            os.close(leak)

    found: Inmate = run_as(request.param, main)
    return found


@pytest.mark.fault(62)
def test_has_a_host_uid_of_its_own_when_root_runs_it(inmate: Inmate) -> None:
    expected = {"root": sandbox.FIRST_UID + inmate.supervisor, "user": UID if os.getuid() == 0 else os.getuid()}
    assert inmate.status["Uid"].split() == inmate.status["Gid"].split() == [str(expected[inmate.who])] * 4
    assert ("own uid" in inmate.layers) == (inmate.who == "root")


@pytest.mark.fault(62)
@pytest.mark.fault(91)
@pytest.mark.parametrize("process", ["status", "init"])
@pytest.mark.parametrize("kind", ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"])
def test_has_no_capability_nor_has_its_init(inmate: Inmate, process: str, kind: str) -> None:
    assert int(getattr(inmate, process)[kind], 16) == 0


def test_can_gain_no_privileges(inmate: Inmate) -> None:
    assert inmate.status["NoNewPrivs"] == "1"


@pytest.mark.fault(91)
def test_has_its_system_calls_filtered(inmate: Inmate) -> None:
    assert inmate.status["Seccomp"] == "2"


@pytest.mark.fault(62)
@pytest.mark.fault(91)
@pytest.mark.parametrize("kind", NAMESPACES)
def test_has_a_namespace_of_its_own(inmate: Inmate, kind: str) -> None:
    assert inmate.namespaces[kind] != HOST[kind]


def test_is_no_init_so_that_default_signal_actions_work(inmate: Inmate) -> None:
    assert (inmate.status["NSpid"].split()[-1], inmate.init["NSpid"].split()[-1]) == ("2", "1")


@pytest.mark.fault(62)
def test_has_no_descriptor_but_those_given(inmate: Inmate) -> None:
    assert inmate.descriptors == {"0", "1", "2"}


def test_starts_with_the_usual_signals_and_none_blocked(inmate: Inmate) -> None:
    assert (int(inmate.status["SigIgn"], 16), int(inmate.status["SigBlk"], 16)) == (0, 0)


def test_can_write_to_no_mount_but_its_own_scratch(inmate: Inmate) -> None:
    writable = {place for place, options in inmate.options.items() if options.startswith("rw")}
    nodes = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom")}
    assert writable == nodes | {"/tmp", "/dev/shm", "/dev/pts", "/proc"}


def test_can_run_nothing_set_uid(inmate: Inmate) -> None:
    assert all("nosuid" in options for options in inmate.options.values())


@pytest.mark.fault(68)
def test_has_hard_limits(inmate: Inmate) -> None:
    expected = {
        "Max core file size": "0",
        "Max processes": "10",
        "Max open files": "99",
        "Max file size": str(1 << 20),
        "Max cpu time": "9",
    }
    assert {name: inmate.limits[name] for name in expected} == expected


def test_is_killed_before_others_when_memory_is_short(inmate: Inmate) -> None:
    assert inmate.oom_score == "500"


def test_has_only_the_environment_that_was_given(inmate: Inmate) -> None:
    assert inmate.environment == b"ONE=1\0"


def test_stays_in_the_process_group_and_session_of_its_caller(inmate: Inmate) -> None:
    assert inmate.same_group


def test_tells_every_layer_either_as_held_or_as_missing(inmate: Inmate) -> None:
    told = [*inmate.layers, *(entry.partition(":")[0] for entry in inmate.missing)]
    others = (
        "minimal root",
        "own uid",
        "no capabilities",
        "no new privileges",
        "landlock",
        "seccomp",
        "resource limits",
    )
    assert sorted(told) == sorted((*boxed.NAMESPACES, *others))


def configuration() -> set[str]:
    """What of /etc programs of the system do not start without, where it is installed."""
    names = {entry.name for entry in Path("/etc").iterdir()}
    return {name for name in names if name in ("fonts", "mono") or name.startswith("java-")}


@pytest.mark.fault(62)
@pytest.mark.parametrize("who", WHO)
def test_sees_nothing_of_the_host_but_programs_and_what_was_granted(who: str) -> None:
    async def main() -> str:
        return boxes.run(box("/bin/sh", "-c", "ls / /etc /dev /proc/self/task && hostname")).output

    words = run_as(who, main).split()
    assert set(words) == {
        *("/:", "bin", "dev", "etc", "lib", "lib64", "proc", "sbin", "tmp", "usr"),
        *("/etc:", "alternatives", "group", "ld.so.cache", "passwd", *configuration()),
        *(
            "/dev:",
            "fd",
            "full",
            "null",
            "ptmx",
            "pts",
            "random",
            "shm",
            "stderr",
            "stdin",
            "stdout",
            "urandom",
            "zero",
        ),
        *("/proc/self/task:", words[-2], "roost"),
    }


@pytest.mark.skipif(not Path("/etc/fonts").is_dir(), reason="this host has no fonts")
def test_a_configuration_made_for_the_box_takes_the_place_of_the_hosts() -> None:
    # Wine looks through all fonts of the host at each start if it sees where they are, which takes longer than all the rest.
    made = boxes.run(box("/bin/ls", "/etc/fonts", files={"/etc/fonts/fonts.conf": b"<fontconfig/>"}))
    assert (made.ended, made.output) == ("ended exit 0", "fonts.conf\n")


@pytest.mark.parametrize("who", WHO)
def test_what_is_lent_is_the_programs_own_and_what_it_makes_is_the_callers(who: str) -> None:
    async def main() -> tuple[str, set[int], int]:
        home = Path(os.environ["TMPDIR"] if who == "user" else "/tmp") / f"lent-{os.getpid()}"
        out = home / "out"
        out.mkdir(parents=True)
        home.chmod(0o700)
        program = home / "program"
        program.write_text(
            "#!/bin/sh\nstat -c %u:%g $0 /out && echo new > /out/new && mkdir /out/d && mv /out/new /out/d/moved\n"
        )
        program.chmod(0o700)
        mounts = ((str(program), "/app/program", "read", True), (str(out), "/out", "write", True))
        ran = boxes.run(box("/app/program", mounts=mounts))
        found = {path.stat().st_uid for path in (out / "d", out / "d/moved")}
        for path in (out / "d/moved", program):
            path.unlink()
        for path in (out / "d", out, home):
            path.rmdir()
        return ran.output, found, os.getuid()

    output, owners, uid = run_as(who, main)
    assert output == "1000:1000\n1000:1000\n"
    assert owners == {uid}


@pytest.mark.parametrize("who", WHO)
def test_changes_to_an_overlay_are_seen_by_the_program_alone(who: str) -> None:
    async def main() -> tuple[str, list[str], str]:
        lower = Path(os.environ["TMPDIR"] if who == "user" else "/tmp") / f"lower-{os.getpid()}"
        lower.mkdir(mode=0o700)
        (lower / "file").write_text("old")
        (lower / "file").chmod(0o600)
        words = "cat /o/file; echo new >/o/file; cat /o/file; rm /o/file; mkdir /o/d; ls /o; stat -c %u /o"
        ran = boxes.run(box("/bin/sh", "-c", words, mounts=((str(lower), "/o", "overlay", True),)))
        left = sorted(path.name for path in lower.iterdir()), (lower / "file").read_text()
        (lower / "file").unlink()
        lower.rmdir()
        return ran.output, *left

    assert run_as(who, main) == ("oldnew\nd\n1000\n", ["file"], "old")


@pytest.mark.parametrize("who", WHO)
def test_a_call_runs_in_the_box_and_its_value_is_the_exit_code(who: str) -> None:
    def call() -> int:
        descriptors = sorted(path.name for path in Path("/proc/self/fd").iterdir())
        os.write(1, f"{os.getpid()} {dict(os.environ)} {descriptors[:3]} {Path('/usr').exists()}".encode())
        return 42

    async def main() -> tuple[str, str]:
        return boxes.run(box(call=call, system=False, env={"A": "b"}))[:2]

    assert run_as(who, main) == ("ended exit 42", "2 {'A': 'b'} ['0', '1', '2'] False")


@pytest.mark.fault(92)
@pytest.mark.parametrize("who", WHO)
def test_a_call_keeps_a_descriptor_only_of_the_file_that_it_is_to_be_of(who: str) -> None:
    async def main() -> str:
        with open("/etc/passwd") as kept, open("/etc/group") as other:
            found = os.fstat(kept.fileno())
            wanted = (kept.fileno(), other.fileno(), 9999)

            def call() -> int:
                os.write(1, repr([_is_open(number) for number in wanted]).encode())
                return 0

            return boxes.run(box(call=call, keeps=dict.fromkeys(wanted, (found.st_dev, found.st_ino)))).output

    assert run_as(who, main) == "[True, False, False]"


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def test_a_call_that_fails_says_so_and_ends_as_an_error_of_ours() -> None:
    def call() -> int:
        raise ValueError("wrong")

    ran = boxes.run(box(call=call))
    assert ran[:2] == ("ended exit 125", "roost: ValueError: wrong\n")


@pytest.mark.fault(68)
@pytest.mark.parametrize("who", WHO)
def test_ipc_that_belongs_to_no_process_is_bounded(who: str) -> None:
    async def main() -> str:
        words = "cd /proc/sys/kernel && id -u && cat shmall shmmni msgmni sem && echo 9 > shmall"
        return boxes.run(box("/bin/sh", "-c", words, limits=Limits(memory=64 << 20))).output

    told = run_as(who, main)
    assert told.split()[:8] == [
        "1000",
        str((64 << 20) // os.sysconf("SC_PAGE_SIZE")),
        "128",
        "32",
        "250",
        "8000",
        "100",
        "128",
    ]
    assert "Read-only" in told


@needs_root
@pytest.mark.fault(68)
def test_a_control_group_takes_in_what_has_been_started_before_it() -> None:
    read, write = os.pipe()
    started = start(box("/bin/sh", "-c", "sleep 600 & sleep 600 & echo; wait", fds={1: write}))
    os.close(write)
    os.read(read, 1)
    group, why = boxed_group.create(started.pid, 64 << 20, 50)
    try:
        assert group is not None, why
        group.join(started.pid)
        members = [Path(directory, "cgroup.procs").read_text().split() for directory in group.directories]
        assert {len(found) for found in members} == {4}
        assert group.remove() is False
    finally:
        boxes.end(started)
        os.close(read)
    assert group.remove()


@needs_root
def test_the_group_of_an_init_that_was_shot_down_is_removed_by_the_next() -> None:
    left, why = boxed_group.create(4_194_303, None, 9)
    assert left is not None, why
    started = start(box("/bin/sleep", "600", require=("control group",)))
    boxes.end(started)
    assert started.group is not None
    assert started.group.remove()
    assert not any(Path(directory).exists() for directory in left.directories)


@pytest.mark.parametrize("who", WHO)
def test_doors_are_listening_sockets_on_pinned_addresses_inside(who: str) -> None:
    doors = (("192.0.2.7", 443), ("2001:db8::7", 80), ("127.0.0.1", 22))
    code = f"import socket\nfor door in {doors}: socket.create_connection(door).sendall(door[0].encode())"

    async def main() -> list[bytes]:
        started = start(box("/usr/bin/python3", "-c", code, doors=doors))
        said = []
        for descriptor in started.listeners:
            with socket.socket(fileno=os.dup(descriptor)) as listener:
                peer, _ = listener.accept()
                said.append(peer.recv(99))
                peer.close()
        boxes.end(started)
        return said

    assert run_as(who, main) == [b"192.0.2.7", b"2001:db8::7", b"127.0.0.1"]


@pytest.mark.parametrize("who", WHO)
def test_init_connects_to_a_port_on_which_the_program_listens(who: str) -> None:
    code = "import socket; s=socket.create_server(('127.0.0.1', 8080)); print(flush=True); c,_=s.accept(); c.sendall(b'inside')"

    async def main() -> tuple[bytes, bytes]:
        read, write = os.pipe()
        started = start(box("/usr/bin/python3", "-c", code, fds={1: write}))
        os.close(write)
        os.read(read, 1)
        started.link.send(b"connect 8080")
        message, ancillary, _, _ = started.link.recvmsg(64, socket.CMSG_SPACE(4))
        with socket.socket(fileno=int.from_bytes(ancillary[0][2], "little")) as peer:
            peer.settimeout(10)
            said = peer.recv(99)
        boxes.end(started)
        os.close(read)
        return message, said

    assert run_as(who, main) == (b"connected 8080", b"inside")
