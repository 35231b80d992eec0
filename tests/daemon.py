"""A real daemon under test: started as users start it, spoken to as users speak to it, and searched for leftovers at its end."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import roost
from roost.storage.templates import TEMPLATES
from tests import leftovers, pool

ROOST = [sys.executable, "-c", "import sys; from roost.cli.main import main; sys.exit(main())"]
"""The command line of the sources under test, wherever they are."""
START_SECONDS = 60.0
STOP_SECONDS = 60.0
ARCH = platform.machine()
BUILT = frozenset((template.name, template.arch) for template in TEMPLATES)


class _Local(HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Daemon:
    """A daemon with its own state (with the pool's images linked in) and run directory; `stop` and `start` keep them.

    What it launches by `roost` boots: the first machine of each kind would make a template first. Tests of templates set `cold` False.
    """

    def __init__(self, **environ: str) -> None:
        self.state = pool.new_state()
        self.run = Path(tempfile.mkdtemp(prefix="roost-", dir="/tmp"))
        pool.fill(self.state)
        self.environ = {
            **os.environ,
            "ROOST_STATE": str(self.state),
            "ROOST_RUN": str(self.run),
            "NO_COLOR": "1",
            **environ,
        }
        self.environ.pop("ROOST_HOST", None)
        self.cold = True
        self.process: subprocess.Popen[bytes] | None = None
        self.uids: set[str] = set()
        self.served = False

    @property
    def socket(self) -> Path:
        """The API's socket."""
        return self.run / "api.sock"

    @property
    def log_file(self) -> Path:
        """What the daemon printed, over all its starts."""
        return self.state / "test.log"

    def start(self, **environ: str) -> Daemon:
        """Start it and wait until it answers."""
        self.launch(**environ)
        self.wait_healthy()
        return self

    def launch(self, **environ: str) -> subprocess.Popen[bytes]:
        """Start it without waiting."""
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*ROOST, "serve"],
                env={**self.environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.process

    def wait_healthy(self, seconds: float = START_SECONDS) -> None:
        """Until it answers; fails with the end of its log when it ends before."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"the daemon ended with {self.process.returncode}:\n{self.log()[-4000:]}")
            if self._healthy():
                self.served = True
                return
            time.sleep(0.05)
        raise AssertionError(f"the daemon does not answer after {seconds} s:\n{self.log()[-4000:]}")

    def _healthy(self) -> bool:
        try:
            return self.request("GET", "/healthz")[0] == 200
        except OSError:
            return False

    def request(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        """One HTTP request without the SDK: status and decoded body."""
        connection = _Local(self.socket)
        try:
            sent = None if body is None else json.dumps(body).encode()
            connection.request(method, path, sent, {"content-type": "application/json", **headers})
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if "json" in (answer.getheader("content-type") or "") else text
        finally:
            connection.close()

    def roost(
        self, *arguments: str, stdin: bytes | None = None, timeout: float = 180.0, check: bool = True, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command line verb to its end; `check` fails the test when its exit code is not 0.

        What `launch` needs a template for that no test has built yet is built before, for all tests at once.
        """
        arch = arguments[arguments.index("--arch") + 1] if "--arch" in arguments else ARCH
        if arguments[0] == "launch" and (arguments[1], arch) in BUILT:
            self.provide(arguments[1], arch)
        cold = ["--cold"] if self.cold and arguments[0] == "launch" and "--cold" not in arguments else []
        done = subprocess.run(
            [*ROOST, *arguments, *cold],
            env={**self.environ, **environ},
            input=stdin or b"",
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        said = f"roost {' '.join(arguments)} ended with {done.returncode}:\n{out}{err}\n{self.log()[-3000:]}"
        assert not check or done.returncode == 0, said
        return subprocess.CompletedProcess(arguments, done.returncode, out, err)

    def provide(self, template: str, arch: str = ARCH) -> None:
        """Have a template, built by this daemon unless the pool has it. A build that fails tells why in the test that wants it."""
        build = ("template", "build", template, "--arch", arch)
        pool.provide(self.state, template, arch, lambda: self.roost(*build, timeout=1200, check=False))

    def json(self, *arguments: str, timeout: float = 180.0) -> Any:
        """What a verb prints with `-o json`."""
        return json.loads(self.roost(*arguments, "-o", "json", timeout=timeout).stdout)

    def host(self, project: str = "default") -> AbstractContextManager[roost.Host]:
        """A connection of the SDK: `with daemon.host() as host`."""
        return roost.connect(f"unix:{self.socket}", project=project, autostart=False)

    def machines(self) -> list[dict[str, Any]]:
        """All machines of all projects, as the API shows them."""
        status, answer = self.request("GET", "/v1/machines?project=all")
        assert status == 200, answer
        self.uids |= {item["meta"]["uid"] for item in answer["items"]}
        return list(answer["items"])

    def machine(self, name: str) -> dict[str, Any]:
        """A machine as `show` prints it, by one request: to look often, a process each time would take the guest's processor."""
        status, answer = self.request("GET", f"/v1/machines/default/{name}")
        assert status == 200, answer
        found: dict[str, Any] = answer
        return found

    def delete_machines(self, *but: str, seconds: float = 120.0) -> None:
        """Delete every machine except those named and wait until they are gone."""
        deadline = time.monotonic() + seconds
        while rest := [item for item in self.machines() if item["name"] not in but]:
            assert time.monotonic() < deadline, f"not deleted after {seconds} s: {rest}\n{self.log()[-3000:]}"
            for item in rest:
                if not item["meta"]["deleting"]:
                    self.request("DELETE", f"/v1/machines/{item['project']}/{item['name']}")
            time.sleep(0.1)

    def delete_programs(self, seconds: float = 60.0) -> None:
        """Delete every program of all projects and wait until they are gone."""
        deadline = time.monotonic() + seconds
        while rest := self.request("GET", "/v1/programs?project=all")[1]["items"]:
            assert time.monotonic() < deadline, f"not deleted after {seconds} s: {rest}\n{self.log()[-3000:]}"
            for item in rest:
                self.uids.add(item["meta"]["uid"])
                if not item["meta"]["deleting"]:
                    self.request("DELETE", f"/v1/programs/{item['project']}/{item['name']}")
            time.sleep(0.1)

    def log(self) -> str:
        """What it printed so far."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def kill(self) -> None:
        """SIGKILL: its machines go on."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM and wait; returns the exit code. Its machines go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)

    def close(self) -> list[str]:
        """Delete all machines, end the daemon, keep the templates it built, remove its directories; returns what is left on the host."""
        try:
            if self.served:
                self._wind_up()
            return leftovers.wait_until_none(self.state, self.run, self.uids)
        finally:
            if self.process is not None and self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            shutil.rmtree(self.state, ignore_errors=True)
            shutil.rmtree(self.run, ignore_errors=True)

    def _wind_up(self) -> None:
        if self.process is None or self.process.poll() is not None:
            self.start()
        self.delete_machines()
        self.delete_programs()
        self.stop()
        pool.keep(self.state)
