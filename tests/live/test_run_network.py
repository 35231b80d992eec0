"""The network of programs: none, the services that were named and nothing else, and ports that are published."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from roost.errors import Invalid, NotStarted
from roost.runtimes import doors, execution, native  # noqa: F401 - all of it, before an ordinary user can no longer read it
from roost.runtimes.base import MiB, Peer, Policy, Published, Request, Result
from tests.needs import needs_program
from tests.ordinary import WHO, run_as

pytestmark = [pytest.mark.live, needs_program("python3")]

PYTHON = "/usr/bin/python3"
ASK = """
import socket, sys
for place in sys.argv[1:]:
    host, _, port = place.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), 5) as peer:
            peer.sendall(b"hello")
            peer.shutdown(socket.SHUT_WR)
            print(place, b"".join(iter(lambda: peer.recv(65536), b"")).decode())
    except OSError as error:
        print(place, type(error).__name__, error.errno)
"""
PUMP = """
import hashlib, socket, sys, threading
peer = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
data = bytes(range(256)) * 4096 * 8
def send():
    peer.sendall(data)
    peer.shutdown(socket.SHUT_WR)
thread = threading.Thread(target=send)
thread.start()
got = b"".join(iter(lambda: peer.recv(65536), b""))
thread.join()
print(got == data)
"""
SERVE = """
import socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("ready", flush=True)
for _ in range(int(sys.argv[2])):
    peer, _ = server.accept()
    with peer:
        peer.sendall(b"inside: " + b"".join(iter(lambda: peer.recv(65536), b"")))
"""


class Echo:
    """A server of the host that answers with what it was told and who it is; connections are counted."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._server = socket.create_server((host, port), family=family, backlog=512)
        self.host, self.port = host, self._server.getsockname()[1]
        self.peers = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer = self._server.accept()[0]
                self.peers += 1
                threading.Thread(target=self._answer, args=(peer,), daemon=True).start()

    @staticmethod
    def _answer(peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):
            while data := peer.recv(65536):
                peer.sendall(data)

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


def ask(who: str, *places: str, net: tuple[Peer, ...] = (), code: str = ASK) -> Result:
    async def main() -> Result:
        policy = Policy(net=net, wall=30)
        return execution.run(Request(PYTHON, ("-c", code, *places), policy, "/"), capture=True)

    result: Result = run_as(who, main)
    return result


@pytest.mark.parametrize("who", WHO)
def test_there_is_no_network_and_the_refusal_names_the_flag(who: str, echo: Echo) -> None:
    result = ask(
        who, f"127.0.0.1:{echo.port}", "192.0.2.7:443", "2001:db8::7:80", "169.254.169.254:80", "example.org:443"
    )
    answers = [line.split()[1:] for line in result.stdout.decode().splitlines()]
    assert answers[0] == ["ConnectionRefusedError", "111"]
    assert answers[1] == ["PermissionError", "13"]
    assert answers[3] == ["PermissionError", "13"]
    assert answers[4][0] == "gaierror"
    assert "connect to 192.0.2.7:443; allow it with --net 192.0.2.7:443" in result.refusals
    assert "connect to [2001:db8::7]:80; allow it with --net [2001:db8::7]:80" in result.refusals
    assert any("--net NAME:PORT" in line for line in result.refusals)
    assert echo.peers == 0
    assert result.timing["run"] < 5, "nothing hangs"


@pytest.mark.parametrize("who", WHO)
def test_what_is_named_is_reached_and_nothing_else(who: str, echo: Echo) -> None:
    other = Echo()
    result = ask(who, f"127.0.0.1:{echo.port}", f"127.0.0.1:{other.port}", net=(Peer("127.0.0.1", echo.port),))
    other.close()
    lines = result.stdout.decode().splitlines()
    assert lines == [f"127.0.0.1:{echo.port} hello", f"127.0.0.1:{other.port} ConnectionRefusedError 111"]
    assert other.peers == 0


@pytest.mark.parametrize("who", WHO)
def test_a_name_is_looked_up_once_and_stays_what_it_was(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = Echo("127.0.0.5"), Echo("127.0.0.6")
    answers = iter(["127.0.0.5", "127.0.0.6", "127.0.0.6"])
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), 0))]
    )
    peers = (Peer("api.localhost", here.port), Peer("api.localhost", there.port))
    result = ask(who, f"api.localhost:{here.port}", f"127.0.0.6:{there.port}", net=peers)
    here.close()
    there.close()
    lines = result.stdout.decode().splitlines()
    assert lines == [f"api.localhost:{here.port} hello", f"127.0.0.6:{there.port} ConnectionRefusedError 111"]
    assert there.peers == 0


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize("who", WHO)
def test_ipv6(who: str) -> None:
    server = Echo("::1")
    result = ask(who, f"::1:{server.port}", net=(Peer("::1", server.port),))
    server.close()
    assert result.stdout.decode().endswith(" hello\n")


def test_a_port_below_1024_and_an_address_that_is_not_here() -> None:
    code = "import socket\ntry: socket.create_connection(('192.0.2.7', 80), 3).recv(1)\nexcept OSError as error: print(type(error).__name__)"
    result = ask(WHO[0], net=(Peer("192.0.2.7", 80),), code=code)
    assert result.ending.code == 0
    assert not result.refusals


def test_a_service_that_is_down_is_an_error_and_no_end_of_data() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    code = f"""
import socket
try:
    print(socket.create_connection(("127.0.0.1", {port}), 3).recv(1))
except OSError as error:
    print(type(error).__name__)
"""
    assert ask(WHO[0], net=(Peer("127.0.0.1", port),), code=code).stdout == b"ConnectionResetError\n"


def test_megabytes_pass_both_ways_at_once(echo: Echo) -> None:
    assert ask(WHO[0], str(echo.port), net=(Peer("127.0.0.1", echo.port),), code=PUMP).stdout == b"True\n"


def test_many_connections_are_bounded_and_all_served(echo: Echo) -> None:
    code = f"""
import socket
first = [socket.create_connection(("127.0.0.1", {echo.port})) for _ in range(280)]
for peer in first[:100]: peer.sendall(b"x"); assert peer.recv(1) == b"x"
for peer in first[:100]: peer.close()
for peer in first[100:]: peer.sendall(b"y"); assert peer.recv(1) == b"y"
print("served")
"""
    result = ask(WHO[0], net=(Peer("127.0.0.1", echo.port),), code=code)
    assert result.stdout == b"served\n", result.stderr
    assert echo.peers == 280


@pytest.mark.fault(61)
@pytest.mark.parametrize(
    "address", ["169.254.169.254", "127.0.0.1", "::1", "::ffff:169.254.169.254", "fe80::1", "0.0.0.0"]
)
def test_a_name_may_not_lead_to_this_host_or_its_link(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 6, "", (address, 0))])
    with pytest.raises(Invalid, match="metadata") as caught:
        execution.run(Request(PYTHON, ("-c", ""), Policy(net=(Peer("metadata.example", 80),))))
    assert "--net" in caught.value.fix


@pytest.mark.parametrize("host", ["*", "*.example.org", "", "no-such-name.invalid", "a" * 300])
def test_what_is_no_name_is_refused(host: str) -> None:
    with pytest.raises(Invalid, match="--net"):
        execution.run(Request(PYTHON, ("-c", ""), Policy(net=(Peer(host, 80),))))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


def asker(port: int, answers: list[bytes], count: int = 1) -> Callable[[int], None]:
    """Once it reads "ready" from the descriptor, asks at the port of the host so many times."""

    def main(source: int) -> None:
        os.read(source, 64)
        for _ in range(count):
            with socket.create_connection(("127.0.0.1", port), 10) as peer:
                peer.sendall(b"hello")
                peer.shutdown(socket.SHUT_WR)
                answers.append(b"".join(iter(lambda: peer.recv(65536), b"")))

    return main


def test_a_published_port_leads_to_the_program() -> None:
    port, answers = free_port(), list[bytes]()
    source, sink = os.pipe()
    thread = threading.Thread(target=asker(port, answers, 3), args=(source,))
    thread.start()
    policy = Policy(publish=(Published("127.0.0.1", port, 8080),), wall=30)
    result = execution.run(Request(PYTHON, ("-c", SERVE, "8080", "3"), policy), stdout=sink)
    thread.join()
    os.close(source)
    os.close(sink)
    assert result.ending.code == 0
    assert answers == [b"inside: hello"] * 3
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 3)


def test_a_published_port_on_which_nobody_listens_inside_resets() -> None:
    port, seen = free_port(), list[str]()
    source, sink = os.pipe()

    def main() -> None:
        os.read(source, 64)
        try:
            with socket.create_connection(("127.0.0.1", port), 10) as peer:
                seen.append(repr(peer.recv(1)))
        except ConnectionResetError:
            seen.append("reset")

    thread = threading.Thread(target=main)
    thread.start()
    policy = Policy(publish=(Published("127.0.0.1", port, 8080),), wall=30)
    execution.run(
        Request(PYTHON, ("-c", "import time; print('ready', flush=True); time.sleep(1)"), policy), stdout=sink
    )
    thread.join()
    os.close(source)
    os.close(sink)
    assert seen == ["reset"]


def test_a_port_that_is_taken_is_told(echo: Echo) -> None:
    policy = Policy(publish=(Published("127.0.0.1", echo.port, 80),))
    with pytest.raises(NotStarted, match=str(echo.port)) as caught:
        execution.run(Request(PYTHON, ("-c", "print('never')"), policy))
    assert "ss -ltnp" in caught.value.fix


def test_a_program_that_connects_for_ever_does_not_fill_the_result() -> None:
    code = "import socket\nfor n in range(300):\n  try: socket.create_connection(('192.0.2.7', 1000 + n), 1)\n  except OSError: pass"
    result = ask(WHO[0], code=code)
    assert len(result.refusals) == 32


def test_a_file_that_an_argument_names_is_told_when_it_is_not_seen(tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text("x")
    request = Request(PYTHON, ("-c", "import sys; open(sys.argv[1])", "input.txt"), Policy(), str(tmp_path))
    result = execution.run(request, capture=True)
    assert result.ending.code == 1
    assert result.refusals == ("input.txt is not visible; allow it with --fs input.txt:ro",)


def test_a_program_that_ends_well_is_told_of_no_files(tmp_path: Path) -> None:
    result = execution.run(Request(PYTHON, ("-c", "", str(tmp_path)), Policy(memory=256 * MiB)), capture=True)
    assert result.refusals == ()
