"""Programs of a real daemon: run, watched, stopped, started again, found again after the daemon or they themselves were killed, removed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from roost.host.failpoints import POINTS
from roost.model.program import PolicySpec
from tests.daemon import Daemon

SECONDS = 30.0
"""Longest that anything here is waited for."""

SERVER = """#!/bin/sh
# Answers each nonce that comes into its directory, so that only the program that runs can have written it.
trap 'echo stopped; exit 0' TERM
echo started
while :; do
    for file in "$1"/ask-*; do
        [ -e "$file" ] && echo "$$ $(cat "$file")" > "$1/part" && rm "$file" && mv "$1/part" "$1/answer"
    done
    sleep 0.05
done
"""


def until(holds: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    """What `holds` gives as soon as it gives something."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.05)
    return found


class Place:
    """A directory that a program is lent, with the script that runs in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lent = directory / "lent"
        self.lent.mkdir()
        self.server = self.script("server.sh", SERVER)

    def script(self, name: str, text: str) -> Path:
        file = self.directory / name
        file.write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)
        return file

    def answer(self) -> str:
        """A nonce there and back: the program that runs has written it, after it was asked."""
        nonce = os.urandom(8).hex()
        (self.lent / "answer").unlink(missing_ok=True)
        (self.lent / "part-ask").write_text(nonce)
        (self.lent / "part-ask").rename(self.lent / f"ask-{nonce}")
        said = until(lambda: (self.lent / "answer").exists() and (self.lent / "answer").read_text(), "an answer")
        pid, text = said.split()
        assert text == nonce
        return str(pid)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def own(new_daemon: Callable[..., Daemon]) -> Iterator[Daemon]:
    """A daemon of the test's own, running."""
    yield new_daemon().start()


def detach(daemon: Daemon, name: str, file: Path, *arguments: str, flags: tuple[str, ...] = ()) -> None:
    daemon.roost("run", "--detach", "--name", name, *flags, str(file), *arguments)


def serve(daemon: Daemon, place: Place, *flags: str) -> None:
    lent = ("--fs", f"{place.lent}:/lent")
    detach(daemon, "api", place.server, "/lent", flags=(*lent, *flags))
    place.answer()


def program(daemon: Daemon, name: str = "api") -> dict[str, Any]:
    status, found = daemon.request("GET", f"/v1/programs/default/{name}")
    assert status == 200, found
    return dict(found)


def in_phase(daemon: Daemon, phase: str, name: str = "api") -> dict[str, Any]:
    def holds() -> dict[str, Any] | None:
        found = program(daemon, name)
        return found if found["status"]["phase"] == phase else None

    return dict(until(holds, f"{name} is {phase}"))


def keeper(daemon: Daemon, name: str = "api") -> int:
    return int(program(daemon, name)["status"]["process"]["pid"])


def inmates(pid: int) -> list[int]:
    """The processes below a keeper."""
    found = []
    for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(number), *inmates(int(number))]
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_detached_program_runs_prints_and_is_listed(own: Daemon, place: Place) -> None:
    serve(own, place)
    (listed,) = own.json("list")
    assert (listed["kind"], listed["name"], listed["status"]["phase"]) == ("program", "api", "running")
    assert {"seccomp", "no new privileges", "minimal root"} <= set(listed["status"]["layers"])
    assert own.roost("logs", "api").stdout == "started\n"
    assert "api" in own.roost("list").stdout


def test_stop_lets_it_end_by_itself_and_start_runs_it_again(own: Daemon, place: Place) -> None:
    serve(own, place)
    first = keeper(own)
    own.roost("stop", "api")
    stopped = program(own)
    assert (stopped["status"]["phase"], stopped["status"]["exit"]["code"]) == ("stopped", 0)
    assert own.roost("program", "logs", "api").stdout == "started\nstopped\n"
    assert not alive(first)
    own.roost("start", "api")
    place.answer()


def test_what_does_not_end_is_killed_after_its_grace(own: Daemon, place: Place) -> None:
    deaf = place.script("deaf.sh", "trap '' TERM; echo up; while :; do sleep 1; done")
    detach(own, "deaf", deaf)
    until(lambda: own.roost("logs", "deaf").stdout, "it prints")
    inside = inmates(keeper(own, "deaf"))
    own.roost("stop", "deaf", "--timeout", "0.5")
    assert program(own, "deaf")["status"]["phase"] == "stopped"
    until(lambda: not any(map(alive, inside)), "nothing of it lives")


def test_exit_codes_and_names_of_the_end_are_kept(own: Daemon, place: Place) -> None:
    detach(own, "seven", place.script("seven.sh", "exit 7"))
    ended = in_phase(own, "failed", "seven")
    assert (ended["status"]["exit"]["code"], ended["status"]["exit"]["reason"]) == (7, "exit")
    detach(own, "hungry", place.script("late.sh", "sleep 60"), flags=("--wall", "1s"))
    limited = in_phase(own, "failed", "hungry")
    assert (limited["status"]["exit"]["code"], limited["status"]["exit"]["limit"]) == (124, "wall")


def test_a_program_that_can_not_run_says_why(own: Daemon, place: Place) -> None:
    broken = place.directory / "broken.wasm"
    broken.write_bytes(b"\0asm garbage")
    done = own.roost("run", "--detach", "--name", "broken", str(broken), check=False)
    assert done.returncode != 0
    assert "error:" in done.stderr
    assert program(own, "broken")["status"]["exit"]["reason"] == "failed"


def test_always_brings_it_back_after_the_program_is_killed(own: Daemon, place: Place) -> None:
    serve(own, place, "--restart", "always")
    init, shell, *_ = inmates(keeper(own))
    os.kill(shell, signal.SIGKILL)
    until(lambda: program(own)["status"]["restarted"] == 1, "a restart")
    until(lambda: not alive(init), "the first sandbox ends")
    in_phase(own, "running")
    place.answer()


def test_always_brings_it_back_after_the_keeper_is_killed_and_nothing_of_the_first_lives(
    own: Daemon, place: Place
) -> None:
    serve(own, place, "--restart", "always")
    first = keeper(own)
    inside = inmates(first)
    os.kill(first, signal.SIGKILL)
    until(lambda: not any(map(alive, inside)), "the sandbox ends with its keeper", 5)
    until(lambda: program(own)["status"]["restarted"] == 1, "a restart")
    in_phase(own, "running")
    place.answer()
    assert any("keeper was killed" in event["spec"]["message"] for event in own.json("events", "api"))


def test_a_killed_daemon_finds_what_runs(own: Daemon, place: Place) -> None:
    serve(own, place)
    process = program(own)["status"]["process"]
    own.kill()
    assert place.answer()
    own.start()
    in_phase(own, "running")
    assert program(own)["status"]["process"] == process
    place.answer()
    own.roost("stop", "api")
    assert own.roost("logs", "api").stdout == "started\nstopped\n"


def test_a_daemon_that_is_stopped_leaves_programs_alone(own: Daemon, place: Place) -> None:
    serve(own, place)
    process = program(own)["status"]["process"]
    assert own.stop() == 0
    place.answer()
    own.start()
    in_phase(own, "running")
    assert program(own)["status"]["process"] == process


def test_an_end_while_no_daemon_runs_is_learnt(own: Daemon, place: Place) -> None:
    detach(own, "late", place.script("late.sh", "echo up; sleep 2; exit 9"))
    pid = keeper(own, "late")
    own.kill()
    until(lambda: not alive(pid), "it ends")
    own.start()
    ended = in_phase(own, "failed", "late")
    assert ended["status"]["exit"]["code"] == 9


ON_START = ("program.uploaded", "program.start", "program.started", "program.show-starting", "program.show-running")
ON_STOP = ("program.terminate", "program.await-end", "program.settle")
ON_DELETE = ("program.kill", "program.settle", "program.remove-files", "program.remove-object")


def own_host(daemon: Daemon) -> dict[str, str]:
    """The environment of a command that starts no daemon in place of one that died."""
    return {"ROOST_HOST": f"unix:{daemon.socket}"}


def dies_at(daemon: Daemon, point: str, act: Callable[[], object]) -> None:
    """Start the daemon so that it dies at `point`, do what leads there, and start it again."""
    assert point in POINTS
    daemon.stop()
    daemon.start(ROOST_FAILPOINT=f"{point}:kill")
    act()
    assert daemon.process is not None
    assert daemon.process.wait(SECONDS) == -signal.SIGKILL
    daemon.start()


@pytest.mark.parametrize("point", ON_START)
def test_a_daemon_killed_while_it_starts_a_program_leaves_exactly_one(own: Daemon, place: Place, point: str) -> None:
    words = ("run", "--detach", "--name", "api", "--fs", f"{place.lent}:/lent", str(place.server), "/lent")
    dies_at(own, point, lambda: own.roost(*words, check=False, **own_host(own)))
    in_phase(own, "running")
    first = place.answer()
    time.sleep(0.3)
    assert place.answer() == first
    assert len([line for line in own.roost("logs", "api").stdout.splitlines() if line == "started"]) == 1


@pytest.mark.parametrize("point", ON_STOP)
def test_a_daemon_killed_while_it_stops_a_program_goes_on_with_that(own: Daemon, place: Place, point: str) -> None:
    serve(own, place)
    dies_at(own, point, lambda: own.roost("stop", "api", check=False, **own_host(own)))
    in_phase(own, "stopped")


@pytest.mark.parametrize("point", ON_DELETE)
def test_a_daemon_killed_while_it_deletes_a_program_leaves_nothing(own: Daemon, place: Place, point: str) -> None:
    serve(own, place)
    inside = inmates(keeper(own))
    dies_at(own, point, lambda: own.roost("delete", "api", check=False, **own_host(own)))
    until(lambda: own.request("GET", "/v1/programs/default/api")[0] == 404, "it is gone")
    assert not any(map(alive, inside))
    assert not [*(own.state / "programs").iterdir(), *(own.state / "contents").iterdir()]


@pytest.mark.fault(64)
def test_a_program_that_floods_is_slowed_down_and_fills_no_disk(own: Daemon, place: Place) -> None:
    detach(own, "flood", place.script("flood.sh", "exec yes flood"))
    uid = program(own, "flood")["meta"]["uid"]
    time.sleep(5)
    logs = [*(own.state / "programs" / uid).glob("output.log*")]
    assert 0 < sum(log.stat().st_size for log in logs) <= 2 * (4 << 20)
    assert own.request("GET", "/healthz")[0] == 200
    own.roost("delete", "flood")


def test_followed_logs_end_when_the_program_does(own: Daemon, place: Place) -> None:
    detach(own, "count", place.script("count.sh", "for i in 1 2 3 4; do echo $i; sleep 0.3; done"))
    assert own.roost("logs", "count", "--follow", timeout=30).stdout == "1\n2\n3\n4\n"


def test_contents_are_kept_once_and_go_with_the_last_program(own: Daemon, place: Place) -> None:
    detach(own, "one", place.server, "/tmp")
    detach(own, "two", place.server, "/tmp")
    digest = hashlib.sha256(place.server.read_bytes()).hexdigest()
    assert [entry.name for entry in (own.state / "contents").iterdir()] == [f"sha256-{digest}"]
    own.roost("delete", "one")
    assert [entry.name for entry in (own.state / "contents").iterdir()] == [f"sha256-{digest}"]
    own.roost("delete", "two")
    assert not [*(own.state / "contents").iterdir()]


def test_another_content_than_was_told_is_refused_and_leaves_nothing(own: Daemon) -> None:
    spec = {"file": "a.sh", "sha256": "0" * 64}
    own.request("POST", "/v1/programs", {"name": "liar", "spec": spec})
    status, answer = own.request("PUT", "/v1/programs/default/liar/content", "something else")
    assert (status, answer["error"]["code"]) == (400, "invalid")
    assert not [*(own.state / "contents").iterdir()]
    assert program(own, "liar")["status"]["phase"] == "pending"


def test_a_name_that_a_program_and_a_machine_have_is_asked_about(own: Daemon, place: Place) -> None:
    serve(own, place)
    own.request("POST", "/v1/machines", {"name": "api", "spec": {"image": "tiny", "power": "stopped"}})
    done = own.roost("stop", "api", check=False)
    assert done.returncode == 4
    assert "a machine and a program have this name" in done.stderr
    own.roost("program", "stop", "api")
    in_phase(own, "stopped")


def test_the_sdk_runs_waits_and_reads(own: Daemon, place: Place) -> None:
    with own.host() as host:
        handle = host.programs.run(place.script("hello.sh", "echo hello $1 $GREETING"), "you", env={"GREETING": "now"})
        assert handle.wait().code == 0
        assert b"".join(handle.logs()) == b"hello you now\n"
        handle.delete()
        assert host.programs.list() == []
        assert host.run(place.script("here.sh", "echo here"), vm="script").stdout == "here\n"


def test_a_program_that_is_lent_a_port_is_reached(own: Daemon, place: Place) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    text = (
        "#!/usr/bin/env python3\nimport socket\n"
        "s = socket.create_server(('127.0.0.1', 8000))\nprint('up', flush=True)\n"
        "while True:\n    c, _ = s.accept()\n    c.sendall(b'here')\n    c.close()\n"
    )
    detach(own, "web", place.script("web.py", text), flags=("--publish", f"{port}:8000"))
    until(lambda: "up" in own.roost("logs", "web").stdout, "it listens")
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        assert connection.recv(16) == b"here"


def keep(directory: Path, file: Path, *, trusted: bool) -> dict[str, Any]:
    """What a keeper writes down of a program that somebody brought."""
    policy = msgspec.to_builtins(PolicySpec())
    words = {
        "run": "r",
        "file": str(file),
        "arguments": ["/etc/shadow"],
        "policy": policy,
        "cwd": "",
        "vm": "",
        "trusted": trusted,
    }
    (directory / "request.json").write_text(json.dumps(words))
    with (directory / "keeper.lock").open("w") as lock:
        number = lock.fileno()
        argv = [sys.executable, "-P", "-m", "roost.runtimes.keeper", str(directory), str(number)]
        environ = {**os.environ, "ROOST_CACHE": str(directory / "cache")}
        subprocess.run(argv, env=environ, pass_fds=(number,), check=True, timeout=SECONDS)
    return dict(json.loads((directory / "result.json").read_text()))


@pytest.mark.fault(79)
def test_a_strangers_script_gets_no_interpreter_of_ours(place: Place) -> None:
    private = place.script("private", "echo secret")
    file = place.directory / "asks" / "program.sh"
    file.parent.mkdir()
    file.write_text(f"#!{private}\n")
    file.chmod(0o755)
    ended = keep(place.directory, file, trusted=False)
    assert ended["error"]["code"] == "forbidden"
    assert not (place.directory / "output.log").exists()


@pytest.mark.fault(79)
def test_a_stranger_is_not_told_which_files_there_are(place: Place) -> None:
    file = place.script("fails.sh", "exit 1")
    told = keep(place.directory, file, trusted=False)
    hinted = keep(place.directory, file, trusted=True)
    assert (told["exit"]["code"], told["refusals"]) == (1, [])
    assert "/etc/shadow is not visible" in hinted["refusals"][0]
