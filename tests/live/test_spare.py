"""The sandbox that the zygote makes ahead for the next run of the same program: like any other, used once, and gone with whoever made it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from roost.runtimes import wine_prefix
from tests.conformance.laboratory import ROOST
from tests.live.zygotes import World, a_world, by_zygote, children, first_line, within
from tests.programs import build, managed

pytestmark = pytest.mark.live

PROGRAMS = Path(__file__).parents[1] / "programs"
FACTS = r"""#!/bin/sh
grep -E '^(Umask|Groups|Cap|NoNewPrivs|Seccomp|Sig(Q|Blk|Ign|Cgt|Pnd)|ShdPnd|Cpus|NSpid|NSsid|NSpgid)' /proc/self/status
grep -E '^(Uid|Gid):' /proc/1/status
tr '\0' '\n' </proc/$$/cmdline
tr '\0' '\n' </proc/$$/environ
cat /proc/$$/limits /proc/$$/oom_score_adj /proc/$$/uid_map /proc/$$/gid_map /proc/sys/kernel/hostname /proc/net/dev /proc/sys/kernel/shmall
cut -d' ' -f4- /proc/$$/mountinfo
for fd in /proc/$$/fd/*; do echo "${fd##*/}" $(readlink "$fd"); done
for ns in user pid mnt net ipc uts cgroup; do readlink /proc/$$/ns/$ns; done
pwd; id; ls -lan / /tmp /dev /app; cat /etc/passwd /etc/group /etc/hosts
for each in /dev/stdin /dev/stdout /proc/1/environ /dev/tty; do ( : <"$each" ) 2>&1; done
printf '%s\n' "$@"
"""
PROPERTIES = """
import java.nio.file.*; import java.util.*;
public class Main { public static void main(String[] words) throws Exception {
  System.out.println(new TreeMap<>(System.getenv()));
  System.out.println(new TreeMap<>(System.getProperties()).toString().replace(System.lineSeparator(), ""));
  System.out.println(Arrays.toString(words) + ProcessHandle.current().info().command());
  System.out.println(Arrays.toString(ProcessHandle.current().info().arguments().get()));
  System.out.println(java.lang.management.ManagementFactory.getRuntimeMXBean().getInputArguments());
  System.out.println(Arrays.toString(Files.readAllBytes(Path.of("/proc/self/cmdline"))) + Runtime.getRuntime().maxMemory());
  System.out.println(Files.readAllLines(Path.of("/proc/self/status")).stream().filter(l -> l.matches("(Cap|NoNew|Seccomp|Uid|Gid).*")).toList());
  throw new IllegalStateException("the end");
} }
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path) as made:
        made.start()
        yield made


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "facts.sh"
    path.write_text(FACTS)
    path.chmod(0o755)
    return str(path)


def exe() -> Path:
    if wine_prefix.installation() is None:
        pytest.skip("not installed: wine64")
    return build.program("probe", "exe")


def made_ready(world: World, program: str, *words: str) -> int:
    """The sandbox that is ready after a run of the program."""
    by_zygote(world, program, *words)
    within(lambda: world.spare() != 0)
    return world.spare()


def by_spare(world: World, *words: str) -> subprocess.CompletedProcess[bytes]:
    """A run in the sandbox that is ready: no other one may be made for it."""
    waiting = world.spare()
    assert waiting
    done = world.run(*words)
    within(lambda: not Path(f"/proc/{waiting}").exists())
    return done


@pytest.mark.parametrize("program", [managed.jar, exe, lambda: build.program("probe"), lambda: PROGRAMS / "probe.py"])
def test_the_next_run_takes_over_the_sandbox_that_was_made_ahead(world: World, program: Callable[[], Path]) -> None:
    file = str(program())
    ready = made_ready(world, file, "out", "one")
    running = world.popen(file, "wait")
    assert first_line(running).strip() == b"ready"
    assert Path(f"/proc/{ready}").exists() and ready not in children(world.standby())
    running.terminate()
    assert running.wait(20) == 143
    within(lambda: not Path(f"/proc/{ready}").exists())
    within(lambda: world.spare() not in (0, ready))
    assert by_spare(world, file, "args", "", "ä", "a b").stdout.split() == [b"c3a4", b"612062"]


def told(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    """Without what is another in every two runs: numbers of namespaces, pipes, overlays, uids, pids, processes and times."""
    text = done.stdout.decode()
    for pattern in (r"\[\d+\]", r"\b1\d{7}\b", r"\d\d:\d\d", r"upper-\d+|work-\d+", r"\d+ 100+\d+ "):
        text = re.sub(pattern, "N", text)
    return [
        line for line in text.splitlines() if not line.startswith(("NSpid", "Uid", "Gid")) and not line.endswith("proc")
    ]


def test_its_layers_and_all_that_a_program_sees_are_those_of_a_plain_run(world: World, script: str) -> None:
    made_ready(world, script, "one")
    spare = by_spare(world, script, "two words", "")
    world.environment["ROOST_ZYGOTE"] = "0"
    plain = world.run(script, "two words", "")
    assert "\n".join(told(spare)) == "\n".join(told(plain))
    assert (spare.stderr, spare.returncode) == (plain.stderr, plain.returncode)
    assert len(told(plain)) > 60


def test_a_java_program_sees_and_ends_the_same(world: World, tmp_path: Path) -> None:
    (tmp_path / "classes").mkdir()
    managed.compile_java(PROPERTIES, tmp_path / "classes", "--release", "17")
    jar = str(managed.pack(tmp_path / "classes", "Main"))
    made_ready(world, jar, "one")
    spare = by_spare(world, jar, "two words", "")
    world.environment["ROOST_ZYGOTE"] = "0"
    plain = world.run(jar, "two words", "")
    assert (told(spare), spare.stderr, spare.returncode) == (told(plain), plain.stderr, plain.returncode)
    assert plain.returncode == 1 and b"two words" in plain.stdout


def test_nothing_of_one_run_is_seen_by_the_next(world: World) -> None:
    file = str(exe())
    made_ready(world, file, "out", "one")
    for _ in range(2):
        assert by_spare(world, file, "write", r"C:\nonce", "5a17").returncode == 0
        within(lambda: world.spare() != 0)
    assert by_spare(world, file, "read", r"C:\nonce").returncode != 0


def test_two_runs_at_once_get_different_ones(world: World) -> None:
    file = str(exe())
    ready = made_ready(world, file, "out", "one")
    running = [world.popen(file, "wait") for _ in range(2)]
    assert [first_line(each).strip() for each in running] == [b"ready"] * 2
    assert len([pid for run in children(world.holder()) for pid in children(run) if pid == ready]) == 1
    for each in running:
        each.terminate()
    assert [each.wait(20) for each in running] == [143] * 2


@pytest.mark.parametrize("victim", [World.holder, World.standby, World.spare])
def test_killed_it_leaves_nothing(world: World, victim: Callable[[World], int]) -> None:
    file = str(exe())
    ready = made_ready(world, file, "out", "one")
    within(lambda: len(inside(ready)) >= 2)  # what waits, and the server
    spaces = namespace(Path(f"/proc/{ready}"))
    os.kill(victim(world), signal.SIGKILL)
    within(lambda: spaces not in [namespace(path) for path in Path("/proc").glob("[0-9]*")])
    assert world.run(file, "out", "two").stdout.strip() == b"two"


def inside(init: int) -> list[str]:
    own = namespace(Path(f"/proc/{init}"))
    return [path.name for path in Path("/proc").glob("[0-9]*") if namespace(path) == own and path.name != str(init)]


def namespace(process: Path) -> str:
    """Of what lives: a process that waits to be reaped holds nothing."""
    try:
        dead = "\nState:\tZ" in (process / "status").read_text()
        return "" if dead else str((process / "ns/pid").readlink())
    except OSError:
        return ""


def test_a_program_that_was_replaced_is_run_as_it_is_now(world: World, tmp_path: Path) -> None:
    program = tmp_path / "x.sh"
    program.write_text("#!/bin/sh\necho old\n")
    program.chmod(0o755)
    made_ready(world, str(program))
    newer = tmp_path / "y.sh"
    newer.write_text("#!/bin/sh\necho new\n")
    newer.chmod(0o755)
    newer.replace(program)
    assert world.run(str(program)).stdout == b"new\n"


def test_what_would_differ_gets_a_sandbox_of_its_own(world: World, script: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for how in ({"cwd": other}, {"words": ("--tmp", "1M")}, {"words": ("--fs", f"{other}:/data")}):
        made_ready(world, script)
        done = world.run(*how.pop("words", ()), script, "word", **how)
        world.environment["ROOST_ZYGOTE"] = "0"
        assert done.stdout.endswith(b"word\n") and done.returncode == 0
        world.environment["ROOST_ZYGOTE"] = "1"


def test_output_to_a_file_can_be_opened_again_by_name(world: World, tmp_path: Path) -> None:
    program = tmp_path / "x.sh"
    program.write_text("#!/bin/sh\necho one >>/dev/stdout\n")
    program.chmod(0o755)
    made_ready(world, str(program))
    with (tmp_path / "out").open("wb") as out:
        (tmp_path / "out").chmod(0o666)  # root's programs are somebody else
        done = subprocess.run(
            [*ROOST, "run", str(program)],
            env=world.environment,
            stdout=out,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    assert (done.returncode, (tmp_path / "out").read_bytes()) == (0, b"one\n")
