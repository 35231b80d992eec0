"""The API on a real unix socket: who the kernel says is calling, hostile clients, and secrets that never show."""

from __future__ import annotations

import base64
import json
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from tests.checkout import ROOT

SERVER = Path(__file__).with_name("api_process.py")
BECOME = """
import os, socket, sys, time
os.setgroups([]); os.setresgid({uid}, {uid}, {uid}); os.setresuid({uid}, {uid}, {uid})
"""
CLIENT = """
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
s.sendall(sys.stdin.buffer.read())
while data := s.recv(65536): sys.stdout.buffer.write(data)
"""
FLOOD = """
held = []
for _ in range(int(sys.argv[2])):
    s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); held.append(s)
time.sleep(0.3)
dead = 0
for s in held:
    s.setblocking(False)
    try: dead += s.recv(1) == b""
    except BlockingIOError: pass
    except ConnectionError: dead += 1
print(dead)
"""
as_root = pytest.mark.skipif(os.getuid() != 0, reason="becomes other users")


class Local(HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = raw(self._path)


def raw(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20)
    connection.connect(str(path))
    return connection


class Api:
    """The server process."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="roost-api-", dir="/tmp"))
        self.directory.chmod(0o711)
        self.socket = self.directory / "s"
        self.log = self.directory / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(SERVER), str(self.socket)],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def call(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        connection = Local(self.socket)
        try:
            connection.request(
                method, path, body if isinstance(body, bytes | None) else json.dumps(body), headers or {}
            )
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def call_as(self, uid: int, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """The request of a process of another user."""
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(content)}\r\n\r\n"
        answer = self.run_as(uid, CLIENT, head.encode() + content)
        head_back, _, text = answer.partition(b"\r\n\r\n")
        return int(head_back.split()[1]), json.loads(text)

    def run_as(self, uid: int, program: str, stdin: bytes = b"", *arguments: str) -> bytes:
        argv = [sys.executable, "-I", "-S", "-c", BECOME.format(uid=uid) + program, str(self.socket), *arguments]
        done = subprocess.run(
            argv,
            input=stdin,
            capture_output=True,
            cwd="/",
            timeout=30,
            check=True,
        )
        return done.stdout

    def memory(self) -> int:
        """Resident bytes of the server."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def healthy_within(self) -> float:
        """Seconds until an honest client is answered."""
        began = time.monotonic()
        assert self.call("GET", "/healthz")[0] == 200
        return time.monotonic() - began

    def close(self) -> str:
        self.process.terminate()
        self.process.wait(10)
        text = self.log.read_text()
        shutil.rmtree(self.directory)
        return text


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    api = Api()
    yield api
    api.close()


def machine(name: str, **spec: Any) -> dict[str, Any]:
    return {"name": name, "project": "alice", "spec": {"image": "tiny", **spec}}


# ---------------------------------------------------------------------- who calls


@as_root
@pytest.mark.fault(79)
def test_the_kernel_says_who_calls(api: Api) -> None:
    assert api.call_as(1001, "GET", "/v1/version")[1]["principal"] == "uid:1001"
    assert json.loads(api.call("GET", "/v1/version")[1])["admin"] is True


@as_root
@pytest.mark.fault(79)
def test_two_users_on_one_socket_do_not_see_each_other(api: Api) -> None:
    assert api.call_as(1001, "POST", "/v1/machines", machine("mine"))[0] == 201
    assert api.call_as(1001, "GET", "/v1/machines/alice/mine")[0] == 200
    assert api.call_as(1002, "GET", "/v1/machines/alice/mine") == api.call_as(1003, "GET", "/v1/machines/alice/mine")
    assert api.call_as(1002, "GET", "/v1/machines/alice/mine")[0] == 404
    upgrade = (
        b"GET /v1/machines/alice/mine/exec HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: " + base64.b64encode(b"0" * 16) + b"\r\n\r\n"
    )
    assert api.run_as(1002, CLIENT, upgrade).startswith(b"HTTP/1.1 404")


def test_a_command_runs_over_a_real_websocket(api: Api) -> None:
    api.call("POST", "/v1/machines", machine("ws"))
    connection = open_exec(api, "ws")
    connection.sendall(frame(1, json.dumps({"argv": ["echo", "hello"]}).encode()))
    heard = b""
    while b'"exit"' not in heard:
        heard += connection.recv(65536)
    assert b"\x01hello\n" in heard and b'{"exit":0}' in heard
    connection.close()


def open_exec(api: Api, name: str) -> socket.socket:
    connection = raw(api.socket)
    connection.sendall(
        f"GET /v1/machines/alice/{name}/exec HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n".encode()
        + b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    assert head.startswith(b"HTTP/1.1 101")
    return connection


def frame(opcode: int, payload: bytes) -> bytes:
    """A masked frame with a mask of zeros (RFC 6455, 5.2)."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else bytes([0x80 | 126]) + size.to_bytes(2, "big")
    return bytes([0x80 | opcode]) + length + b"\0\0\0\0" + payload


# ---------------------------------------------------------------------- hostile clients


@pytest.mark.fault(86)
def test_slow_headers_are_cut_off_and_others_served(api: Api) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(raw(api.socket)) for _ in range(200)]
        for connection in slow:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: ")
        assert api.healthy_within() < 2
        deadline = time.monotonic() + 5
        drip(slow[0], deadline)
        for connection in slow[1:]:
            assert ended(connection, deadline)


def drip(connection: socket.socket, deadline: float) -> None:
    """One byte after another until the server has enough of it: progress must not buy time."""
    while time.monotonic() < deadline:
        try:
            connection.sendall(b"x")
        except OSError:
            return
        time.sleep(0.05)
    raise AssertionError("the server goes on waiting for headers")


def everything(connection: socket.socket) -> bytes:
    """All that comes until the server hangs up; fails when it does not."""
    heard = b""
    while data := connection.recv(65536):
        heard += data
    return heard


def ended(connection: socket.socket, deadline: float) -> bool:
    connection.settimeout(max(0.01, deadline - time.monotonic()))
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


@pytest.mark.fault(86)
def test_a_body_that_stops_coming_is_given_up(api: Api) -> None:
    with raw(api.socket) as connection:
        connection.sendall(b"POST /v1/machines HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        assert everything(connection).startswith(b"HTTP/1.1 408")


@pytest.mark.fault(86)
def test_a_gigabyte_is_refused_before_it_is_read(api: Api) -> None:
    before = api.memory()
    with raw(api.socket) as connection:
        connection.sendall(b"POST /v1/machines HTTP/1.1\r\nhost: x\r\ncontent-length: 1073741824\r\n\r\n{")
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")
    with raw(api.socket) as connection:
        connection.sendall(b"POST /v1/machines HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        sent = pour(connection, 256 << 20)
    assert sent < 16 << 20
    assert api.memory() - before < 32 << 20


def pour(connection: socket.socket, most: int) -> int:
    """Send chunks until the server hangs up; how many bytes it took."""
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    sent = 0
    while sent < most:
        try:
            connection.sendall(chunk)
        except OSError:
            break
        sent += len(chunk)
    return sent


@pytest.mark.fault(86)
@pytest.mark.parametrize(
    "body",
    [
        b"[" * 500_000,
        b'{"spec":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"name":"m","spec":{"publish":[' + b"0," * 400_000 + b"0]}}",
        b'{"name":"m","project":"alice","spec":{"image":"tiny","ssh_keys":[' + b'"",' * 300_000 + b'""]}}',
        b'{"name":"' + b"a" * 900_000 + b'!","project":"alice","spec":{"image":"tiny"}}',
        b'{"name":"m","project":"' + b"-" * 900_000 + b'","spec":{"image":"' + b"a." * 60_000 + b'"}}',
        b'{"name":"m","project":"alice","spec":{"memory":"' + b"9" * 500_000 + b'x","image":"tiny"}}',
        b"\xff\xfe" * 100_000,
        b'{"name":"m","project":"alice","spec":{"image":"tiny","memory":' + b"9" * 5000 + b"}}",
    ],
    ids=["open", "deep", "long-list", "many-problems", "long-name", "regex", "size", "binary", "number"],
)
def test_bombs_in_json_are_cheap(api: Api, body: bytes) -> None:
    before = api.memory()
    began = time.monotonic()
    status, answer = api.call("POST", "/v1/machines", body)
    assert 400 <= status < 500
    assert len(answer) < 64 << 10
    assert time.monotonic() - began < 2
    assert api.memory() - before < 48 << 20


@pytest.mark.fault(86)
def test_long_headers_and_queries_are_refused(api: Api) -> None:
    with raw(api.socket) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: " + b"a" * (80 << 10))
        assert connection.recv(65536).startswith(b"HTTP/1.1 4")
    assert api.call("GET", "/v1/machines?" + "&".join(f"label=k{n}" for n in range(200)))[0] == 400
    assert api.call("GET", "/v1/machines/alice/" + "x" * 20_000)[0] == 400
    assert api.call("GET", "/v1/machines/alice/" + "x" * 1_000)[0] == 404


@as_root
@pytest.mark.fault(86)
def test_one_user_can_not_take_all_connections(api: Api) -> None:
    refused = int(api.run_as(1001, FLOOD, b"", "300"))
    assert refused >= 300 - 256
    assert api.healthy_within() < 2


@pytest.mark.fault(86)
def test_noise_hurts_nobody(api: Api) -> None:
    chance = random.Random(86)
    for _ in range(100):
        with raw(api.socket) as connection:
            connection.settimeout(0.05)
            try:
                connection.sendall(chance.randbytes(chance.randrange(1, 4000)))
                connection.recv(100)
            except (TimeoutError, OSError):
                pass
    for opcode in (0, 2, 3, 8, 11):
        connection = open_exec(api, "ws")
        connection.sendall(frame(opcode, chance.randbytes(100)))
        connection.close()
    assert api.healthy_within() < 2


@pytest.mark.fault(86)
def test_a_refused_upload_does_not_take_the_rest(api: Api) -> None:
    api.call("POST", "/v1/images", {"name": "disk", "project": "alice", "spec": {"upload": True}})
    with raw(api.socket) as connection:
        head = (
            b"PUT /v1/images/alice/disk/content HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nbad\r\n"
        )
        connection.sendall(head)
        assert connection.recv(65536).startswith(b"HTTP/1.1 400")
        assert pour(connection, 64 << 20) < 16 << 20


# ---------------------------------------------------------------------- secrets

USER_DATA, KEY, VALUE, ARGUMENT = (
    "canary-user-data-7f3a",
    "ssh-ed25519 canary-key-91bd",
    "canary-environment-5c2e",
    "canary-argument-d04f",
)
CANARIES = ("canary-user-data", "canary-key", "canary-environment", "canary-argument")


@pytest.mark.fault(87)
def test_secrets_are_in_no_log_no_error_and_no_metric() -> None:
    api = Api()
    try:
        spec: dict[str, Any] = {"user_data": USER_DATA, "ssh_keys": [KEY], "users": [{"name": "u", "ssh_keys": [KEY]}]}
        answers = [
            api.call("POST", "/v1/machines", machine("quiet", **spec)),
            api.call("POST", "/v1/machines", machine("quiet", **spec)),
            api.call("POST", "/v1/machines", machine("x!", **spec, cpus="many")),
            api.call("POST", "/v1/machines", machine("y", user_data=[USER_DATA], ssh_keys=KEY)),
            api.call(
                "POST",
                "/v1/machines",
                machine("z", ssh_keys=[KEY + "\nsecond", "canary-key"], user_data=USER_DATA * 9000),
            ),
            api.call("PATCH", "/v1/machines/alice/quiet", {"spec": {"user_data": USER_DATA, "colour": 1}}),
            api.call("POST", "/v1/machines", json.dumps(machine("q", **spec)).encode()[:-1]),
            api.call("GET", "/metrics"),
            api.call("GET", "/v1/events?project=all"),
        ]
        assert answers[0][0] == 201
        told = b"".join(body for _, body in answers[1:])
        for request in (
            {"argv": ["missing", ARGUMENT], "env": {"T": VALUE}},
            {"argv": [ARGUMENT], "env": {"=": VALUE}},
            {"env": VALUE},
        ):
            connection = open_exec(api, "quiet")
            connection.sendall(frame(1, json.dumps(request).encode()))
            told += connection.recv(65536)
            connection.close()
    finally:
        log = api.close()
    assert '"written"' in log
    assert [canary for canary in CANARIES if canary in log or canary.encode() in told] == []


@pytest.mark.fault(87)
def test_a_crash_leaves_no_core(tmp_path: Path) -> None:
    program = "import os, resource; from roost.host.service import harden; harden(); print(resource.getrlimit(resource.RLIMIT_CORE)); "
    program += "from roost.host import kernel; print(kernel.prctl(3), flush=True); os.abort()"
    allowed = (
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        if os.getuid() == 0
        else resource.getrlimit(resource.RLIMIT_CORE)
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, allowed),
    )
    assert child.stdout is not None
    printed = child.stdout.read()
    _, status = os.waitpid(child.pid, 0)
    assert printed == b"(0, 0)\n0\n"
    assert os.WIFSIGNALED(status) and not os.WCOREDUMP(status)
    assert list(tmp_path.iterdir()) == []
