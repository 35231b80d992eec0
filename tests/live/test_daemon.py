"""The daemon process: one at a time, gone without a trace, idle or killed at any point, and never two machines for one request."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from roost.host.failpoints import POINTS
from tests.checkout import ROOT

PROCESS = Path(__file__).with_name("daemon_process.py")
KEY = {"Idempotency-Key": "one"}
MACHINE = {"name": "web", "spec": {"image": "tiny", "memory": "128MiB"}}
as_root = pytest.mark.skipif(os.getuid() != 0, reason="mounts a file system")


class Local(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(str(self._path))


class Place:
    """Directories for daemons, one after another."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="roost-d-", dir="/tmp"))
        self.state, self.run = self.directory / "state", self.directory / "run"
        self.socket = self.run / "api.sock"
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str, ready: int | None = None, **environ: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, str(PROCESS), *arguments],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "ROOST_STATE": str(self.state),
                "ROOST_RUN": str(self.run),
                **environ,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=() if ready is None else (ready,),
        )
        self.started.append(process)
        return process

    def serve(self, *arguments: str, **environ: str) -> subprocess.Popen[bytes]:
        """Start one and wait for its "ready"."""
        ours, theirs = os.pipe()
        process = self.start("--ready-fd", str(theirs), *arguments, ready=theirs, **environ)
        os.close(theirs)
        with open(ours, "rb") as pipe:
            line = pipe.readline()
        assert line == b"ready\n", process.communicate(timeout=5)[1].decode()
        return process

    def call(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        connection = Local(self.socket)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers or {})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"null")
        finally:
            connection.close()

    def machines(self) -> list[dict[str, Any]]:
        return list(self.call("GET", "/v1/machines")[1]["items"])

    def until_running(self, name: str) -> dict[str, Any]:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            found: dict[str, Any] = self.call("GET", f"/v1/machines/default/{name}")[1]
            if found["status"]["phase"] == "running":
                return found
            time.sleep(0.02)
        raise AssertionError(found["status"])


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place()
    yield place
    for process in place.started:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()
    shutil.rmtree(place.directory)


def test_it_starts_serves_and_leaves_nothing_in_its_run_directory(place: Place) -> None:
    daemon = place.serve()
    assert place.call("GET", "/v1/version")[1]["pid"] == daemon.pid
    assert sorted(p["name"] for p in place.call("GET", "/v1/projects")[1]["items"]) == ["default", "system"]
    assert len(place.call("GET", "/v1/nodes")[1]["items"]) == 1
    assert stat.S_IMODE(place.state.stat().st_mode) == 0o700
    assert stat.S_IMODE(place.socket.stat().st_mode) & 0o007 == 0
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(15) == 0
    assert not place.socket.exists()


def test_a_second_daemon_is_refused_and_the_first_goes_on(place: Place) -> None:
    first = place.serve()
    second = place.start()
    _, error = second.communicate(timeout=20)
    assert second.returncode == 4
    assert f"process {first.pid}" in error.decode() and "Traceback" not in error.decode()
    assert place.call("GET", "/healthz")[0] == 200


def test_whoever_starts_it_learns_why_it_did_not(place: Place) -> None:
    place.serve()
    ours, theirs = os.pipe()
    place.start("--ready-fd", str(theirs), ready=theirs)
    os.close(theirs)
    with open(ours, "rb") as pipe:
        assert json.loads(pipe.readline())["error"]["code"] == "conflict"


def test_it_ends_when_idle_but_not_while_a_machine_runs(place: Place) -> None:
    daemon = place.serve("--idle-exit", "0.5")
    place.call("POST", "/v1/machines", MACHINE)
    place.until_running("web")
    with pytest.raises(subprocess.TimeoutExpired):
        daemon.wait(2)
    place.call("PATCH", "/v1/machines/default/web", {"spec": {"power": "stopped"}})
    assert daemon.wait(15) == 0


def test_systemd_is_told_when_it_is_ready(place: Place) -> None:
    place.directory.chmod(0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(place.directory / "notify"))
        manager.settimeout(20)
        daemon = place.start(NOTIFY_SOCKET=str(place.directory / "notify"))
        assert manager.recv(100) == b"READY=1"
        assert place.call("GET", "/healthz")[0] == 200
        daemon.terminate()
        assert manager.recv(100) == b"STOPPING=1"


@pytest.mark.fault(85)
@pytest.mark.parametrize("point", ["api.before-commit", "api.after-commit"])
def test_a_create_that_the_daemon_died_in_can_be_retried(place: Place, point: str) -> None:
    daemon = place.serve(ROOST_FAILPOINT=f"{point}:kill")
    with pytest.raises((ConnectionError, OSError)):
        place.call("POST", "/v1/machines", MACHINE, KEY)
    assert daemon.wait(10) == -signal.SIGKILL
    place.serve()
    status, made = place.call("POST", "/v1/machines", MACHINE, KEY)
    assert (status, [item["meta"]["uid"] for item in place.machines()]) == (201, [made["meta"]["uid"]])
    place.until_running("web")


@pytest.mark.parametrize("point", [point for point in POINTS if point.startswith("daemon.")])
def test_a_daemon_killed_at_any_point_of_its_life_leaves_a_place_for_the_next(place: Place, point: str) -> None:
    first = place.start(ROOST_FAILPOINT=f"{point}:kill")
    if point == "daemon.stopping":
        deadline = time.monotonic() + 20
        while not place.socket.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        first.terminate()
    assert first.wait(20) == -signal.SIGKILL
    place.serve()
    assert place.call("POST", "/v1/machines", MACHINE)[0] == 201


@as_root
@pytest.mark.fault(11)
def test_a_full_disk_refuses_writes_answers_reads_and_recovers(place: Place) -> None:
    place.state.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "roost-test", str(place.state)], check=True)
    try:
        daemon = place.serve()
        place.call("POST", "/v1/machines", MACHINE)
        place.until_running("web")
        fill(place.state / "filler")
        refused = [place.call("POST", "/v1/projects", {"name": f"p{number}"}) for number in range(100)]
        status, answer = refused[-1]
        assert (status, answer["error"]["code"]) == (507, "unavailable")
        kept = sum(status == 201 for status, _ in refused)
        assert len(place.call("GET", "/v1/projects")[1]["items"]) == 2 + kept
        (place.state / "filler").unlink()
        assert place.call("POST", "/v1/projects", {"name": "after"})[0] == 201
        daemon.terminate()
        assert daemon.wait(15) == 0
    finally:
        subprocess.run(["umount", "--lazy", str(place.state)], check=True)


def fill(path: Path) -> None:
    """Write until nothing more fits."""
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096):
            while True:
                try:
                    if file.write(b"x" * size) < size:
                        break
                except OSError:
                    break
