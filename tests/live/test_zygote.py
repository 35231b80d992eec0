"""The zygote: runs of WebAssembly programs that are like any other, only sooner; and every doubt leads to the plain way."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from roost.host import kernel
from tests.live.zygotes import SERVE, World, a_world, by_zygote, children, first_line, within
from tests.needs import needs_root
from tests.programs import build

pytestmark = pytest.mark.live


@pytest.fixture
def program() -> str:
    return str(build.program("probe", "wasm"))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path) as made:
        yield made


def test_the_first_run_starts_it_and_the_next_is_made_by_it(world: World, program: str) -> None:
    assert world.run(program, "out", "one").stdout == b"one\n"
    within(lambda: bool(world.sockets()))
    within(lambda: len(children(world.holder())) == 1)
    assert by_zygote(world, program, "out", "two").stdout == b"two\n"
    assert os.getsid(world.holder()) == world.holder()
    assert Path(f"/proc/{world.holder()}/cwd").readlink() == Path("/")


def test_it_holds_nothing_that_the_caller_who_started_it_was_given(world: World, program: str) -> None:
    ours, theirs = os.pipe()
    try:
        assert world.run(program, "out", "one", pass_fds=(theirs,)).stdout == b"one\n"
        os.close(theirs)
        within(lambda: bool(world.sockets()))
        os.set_blocking(ours, False)
        assert os.read(ours, 1) == b""
    finally:
        os.close(ours)


def test_its_runs_are_like_any_other(world: World, program: str, tmp_path: Path) -> None:
    world.start()
    data = bytes(range(256)) * 1000
    assert by_zygote(world, program, "cat", input=data).stdout == data
    assert [by_zygote(world, program, "exit", str(code)).returncode for code in (0, 1, 42, 126, 255)] == [
        0,
        1,
        42,
        126,
        255,
    ]
    assert by_zygote(world, program, "args", "", "ä", "a b").stdout == b"\nc3a4\n612062\n"
    assert by_zygote(world, "--env", "PASSED", program, "env", "PASSED").stdout == b"as it is\n"
    assert b"SECRET" not in by_zygote(world, program, "env").stdout
    (tmp_path / "a.txt").write_text("here")
    assert by_zygote(world, "--fs", "a.txt:ro", program, "read", "a.txt", cwd=tmp_path).stdout == b"here"
    refused = by_zygote(world, program, "read", "a.txt", cwd=tmp_path)
    assert refused.returncode == 1 and b"--fs a.txt:ro" in refused.stderr
    assert by_zygote(world, "--wall", "200ms", program, "wait").returncode == 124
    assert by_zygote(world, program, "trap").returncode == 134


def test_chance_is_not_inherited(world: World, program: str) -> None:
    world.start()
    assert len({by_zygote(world, program, "random").stdout for _ in range(4)}) == 4


def test_runs_at_the_same_time_do_not_wait_for_each_other(world: World, program: str) -> None:
    world.start()
    running = [world.popen(program, "wait") for _ in range(5)]
    assert [first_line(each) for each in running] == [b"ready\n"] * 5
    within(lambda: len(children(world.holder())) == 6)
    for each in running:
        each.terminate()
    assert [each.wait(10) for each in running] == [143] * 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_handed_on(world: World, program: str, number: int) -> None:
    world.start()
    running = world.popen(program, "wait")
    assert first_line(running) == b"ready\n"
    running.send_signal(number)
    assert running.wait(10) == 128 + number


def test_a_run_ends_with_its_caller(world: World, program: str) -> None:
    world.start()
    running = world.popen(program, "wait")
    assert first_line(running) == b"ready\n"
    holder = world.holder()
    within(lambda: len(children(holder)) == 2)
    running.kill()
    running.wait()
    within(lambda: len(children(holder)) == 1)


def test_a_run_ends_with_the_zygote_and_says_so(world: World, program: str) -> None:
    world.start()
    running = world.popen(program, "wait")
    assert first_line(running) == b"ready\n"
    workers = children(world.holder())
    os.kill(world.holder(), signal.SIGKILL)
    assert running.wait(10) == 125
    assert running.stderr is not None and b"the end of the program is not known" in running.stderr.read()
    within(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in workers))


def test_a_killed_zygote_is_replaced(world: World, program: str) -> None:
    world.start().kill()
    assert world.run(program, "out", "one").stdout == b"one\n"
    within(lambda: world.holder() != 0)
    within(lambda: len(children(world.holder())) == 1)
    assert by_zygote(world, program, "out", "two").stdout == b"two\n"


def test_there_is_one_only(world: World) -> None:
    zygote = world.start()
    assert subprocess.run(SERVE, env=world.environment, timeout=20, check=False).returncode == 0
    assert zygote.poll() is None


def test_it_ends_when_nobody_comes(world: World) -> None:
    nothing = "lambda words: None, lambda path: None, lambda: None, lambda file, cwd: None"
    code = f"from roost.runtimes import zygote; zygote.serve(zygote.Work({nothing}), 0.3)"
    done = subprocess.run([sys.executable, "-P", "-c", code], env=world.environment, timeout=20, check=False)
    assert done.returncode == 0
    assert world.sockets() + world.sockets(".system") == []


def test_it_is_switched_off(world: World, program: str) -> None:
    world.environment["ROOST_ZYGOTE"] = "0"
    assert world.run(program, "out", "one").stdout == b"one\n"
    assert not (world.directory / "zygote").exists()


def limits() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, 300))
    os.umask(0o027)
    os.nice(5)


def test_it_takes_on_what_the_caller_s_child_would_have(world: World, program: str) -> None:
    world.start()
    running = world.popen(program, "wait", preexec_fn=limits)
    assert first_line(running) == b"ready\n"
    worker = min(children(world.holder()))
    assert resource.prlimit(worker, resource.RLIMIT_NOFILE) == (200, 300)
    assert os.getpriority(os.PRIO_PROCESS, worker) == os.getpriority(os.PRIO_PROCESS, running.pid)
    assert "Umask:\t0027" in Path(f"/proc/{worker}/status").read_text()
    running.terminate()
    running.wait()


def restricted() -> None:
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)


def other_namespace() -> None:
    kernel.unshare(kernel.NEWUTS)


@needs_root
@pytest.mark.parametrize("surroundings", [restricted, other_namespace])
def test_a_caller_that_is_confined_otherwise_runs_it_itself(world: World, program: str, surroundings: Any) -> None:
    world.start()
    running = world.popen(program, "wait", preexec_fn=surroundings)
    assert first_line(running) == b"ready\n"
    assert len(children(running.pid)) == 1, "its own child"
    running.terminate()
    assert running.wait(10) in (143, -15)


@needs_root
def test_another_user_is_not_served(world: World, program: str) -> None:
    world.start()
    world.directory.chmod(0o755)
    (world.directory / "zygote").chmod(0o755)
    world.sockets()[0].chmod(0o666)
    before = world.served()
    directory = os.open(world.directory / "zygote", os.O_PATH)
    name = world.sockets()[0].name
    pid = os.fork()
    if pid == 0:
        os._exit(stranger(f"/proc/self/fd/{directory}/{name}", program))
    os.close(directory)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert before


def stranger(path: str, program: str) -> int:
    """Ask the zygote as another user; 0 when it does nothing."""
    try:
        os.setgroups([])
        os.setresgid(12345, 12345, 12345)
        os.setresuid(12345, 12345, 12345)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # else /proc/self belongs to root
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(path)
            connection.settimeout(10)
            message = b"1\0" + program.encode()
            socket.send_fds(connection, [message], [os.open("/", os.O_RDONLY)] * 4)
            return 0 if connection.recv(64) == b"odd" else 1
    except (ConnectionResetError, BrokenPipeError):
        return 0  # it has ended without having read the message
    except OSError:
        traceback.print_exc()
        return 2


def test_a_socket_of_somebody_else_is_not_used(world: World, program: str) -> None:
    world.start()
    (world.directory / "zygote").chmod(0o755)
    before = world.served()
    assert world.run(program, "out", "one").stdout == b"one\n"
    assert world.served() == before


@pytest.mark.parametrize("answer", [b"odd", b"", b"what"])
def test_a_zygote_that_answers_oddly_leaves_the_run_to_the_caller(world: World, program: str, answer: bytes) -> None:
    world.start()
    (path,) = world.sockets()
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen(1)
        running = world.popen(program, "out", "one")
        connection = listener.accept()[0]
        connection.send(b"ready")
        connection.recv(1 << 17)
        connection.send(answer) if answer else None
        connection.close()
        assert running.communicate(timeout=20)[0] == b"one\n"


def test_a_zygote_that_says_nothing_is_given_up(world: World, program: str) -> None:
    world.start()
    (path,) = world.sockets()
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen(1)
        running = world.popen(program, "out", "one")
        connection = listener.accept()[0]
        connection.send(b"ready")
        connection.recv(1 << 17)
        assert running.communicate(timeout=20)[0] == b"one\n"
        with pytest.raises(BrokenPipeError):
            connection.send(b"begun")
        connection.close()


def test_a_zygote_that_does_not_listen_gets_nothing_of_the_caller(world: World, program: str) -> None:
    """Its pipe would stay open as long as a message lies there that holds it."""
    world.start()
    (path,) = world.sockets()
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen(1)
        running = world.popen(program, "out", "one")
        assert running.communicate(timeout=20)[0] == b"one\n"  # to its end


def test_a_run_that_has_begun_is_never_run_twice(world: World, program: str) -> None:
    world.start()
    (path,) = world.sockets()
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen(1)
        running = world.popen(program, "out", "one")
        connection = listener.accept()[0]
        connection.send(b"ready")
        connection.recv(1 << 17)
        connection.send(b"begun")
        connection.close()
        assert running.communicate(timeout=20)[0] == b""
        assert running.returncode == 125


def test_another_installation_ends_it(world: World, program: str, tmp_path: Path) -> None:
    module = tmp_path / "changing.py"
    module.write_text('"""One."""\n')
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import changing; from roost.cli.run import serve; serve()"
    )
    zygote = subprocess.Popen([sys.executable, "-P", "-c", code], env=world.environment, stdin=subprocess.DEVNULL)
    world.started.append(zygote)
    within(lambda: bool(world.sockets()))
    module.write_text('"""Another."""\n')
    assert world.run(program, "out", "one").stdout == b"one\n"
    assert zygote.wait(10) == 0


def test_programs_of_other_kinds_are_run_too(world: World, tmp_path: Path) -> None:
    world.start()
    script = tmp_path / "x.sh"
    script.write_text('#!/bin/sh\ncat\necho "$1" >&2\nexit 7\n')
    done = by_zygote(world, str(script), "word", input=b"input")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"input", b"word\n")


@needs_root
def test_a_sandbox_made_before_is_like_any_other(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from roost.host import sandbox
    from roost.runtimes import execution, wasm_call, wasm_kept
    from roost.runtimes.base import Request

    def run() -> tuple[int, Any]:
        request = Request(program, ("ids",), name="x")
        result = execution.run(request, capture=True)
        return os.getpid(), result._replace(timing={}, usage={})

    plain = run()
    wasm_kept.prepare()
    wasm_call.stand_by()
    assert sandbox.prepared()
    with monkeypatch.context() as patched:
        patched.setattr(sandbox, "_start", None)  # it is that one which is used
        assert run() == plain
    assert not sandbox.prepared()
    wasm_call.stand_by()
    sandbox.discard()
    assert run() == plain
