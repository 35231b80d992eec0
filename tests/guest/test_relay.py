"""The relay of published ports, as an ordinary process: bytes both ways, ends, floods, limits, and whoever controls it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import select
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.relays import Relay, descriptors, relay, server

RESET = struct.pack("ii", 1, 0)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Relay]:
    with relay(str(tmp_path / "gate")) as one:
        yield one


def _all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def _echo(connection: socket.socket) -> None:
    with connection:
        data = _all(connection)
        connection.sendall(data[::-1])


def _connect(where: tuple[str, int]) -> socket.socket:
    return socket.create_connection(where, timeout=20)


def _try_to_connect(where: tuple[str, int]) -> socket.socket:
    client = socket.socket()
    client.settimeout(20)
    with contextlib.suppress(ConnectionResetError):
        client.connect(where)
    return client


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_bytes_go_both_ways_and_the_end_of_one_does_not_end_the_other(running: Relay, address: str) -> None:
    with server(_echo, address) as target, _connect(running.publish(target, address=address)) as client:
        data = os.urandom(3_000_000)
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        assert _all(client) == data[::-1]


def test_a_slow_reader_holds_up_itself_alone_and_costs_no_cpu(running: Relay) -> None:
    data = os.urandom(8_000_000)

    def pour(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.sendall(data)

    with contextlib.ExitStack() as stack:
        source, other = (stack.enter_context(server(handle)) for handle in (pour, _echo))
        slow, quick = (stack.enter_context(_connect(running.publish(target))) for target in (source, other))
        select.select([slow], [], [], 5)
        before = running.cpu()
        threading.Event().wait(1)
        assert running.cpu() - before <= 0.02
        quick.sendall(b"abc")
        quick.shutdown(socket.SHUT_WR)
        assert _all(quick) == b"cba"
        assert hashlib.sha256(_all(slow)).digest() == hashlib.sha256(data).digest()


def test_a_hang_up_while_the_other_side_does_not_read_costs_no_cpu(running: Relay) -> None:
    hold = threading.Event()

    def sit(connection: socket.socket) -> None:
        with connection:
            connection.shutdown(socket.SHUT_WR)
            hold.wait(10)

    with server(sit) as target, _connect(running.publish(target)) as client:
        client.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            client.sendall(bytes(30_000_000))
        client.close()
        before = running.cpu()
        threading.Event().wait(1)
        hold.set()
        assert running.cpu() - before <= 0.02


def test_a_reset_arrives_as_a_reset(running: Relay) -> None:
    def slam(connection: socket.socket) -> None:
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        connection.close()

    with server(slam) as target, _connect(running.publish(target)) as client:
        client.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert running.count()["connections"] == 0


def test_where_nobody_listens_the_caller_is_refused(running: Relay) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        where = running.publish(nobody.getsockname())
        with pytest.raises(ConnectionResetError), _connect(where) as client:
            client.recv(1)


def test_thousands_of_connections_at_once(running: Relay) -> None:
    most = min(10_000, descriptors(65536) // 4)
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(4096)
        where = running.publish(listener.getsockname())
        pairs = []
        for _ in range(most):
            client = stack.enter_context(_connect(where))
            pairs.append((client, stack.enter_context(listener.accept()[0])))
        assert running.count()["connections"] == most
        for number, (client, _) in enumerate(pairs):
            client.send(struct.pack("I", number))
        seen = {struct.unpack("I", theirs.recv(4))[0] for _, theirs in pairs}
        assert seen == set(range(most))
        assert len(list(Path(f"/proc/{running.process.pid}/fd").iterdir())) < 2 * most + 100


def test_what_does_not_fit_is_refused_without_spinning_and_room_is_used_again(tmp_path: Path) -> None:
    with relay(str(tmp_path / "gate"), files=1024) as small, contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(4096)
        where = small.publish(listener.getsockname())
        clients = [stack.enter_context(_try_to_connect(where)) for _ in range(1000)]
        while sum(small.count()[name] for name in ("connections", "refused")) < 1000:
            threading.Event().wait(0.05)
        count = small.count()
        assert 150 < count["connections"] < 400
        before = small.cpu()
        threading.Event().wait(1)
        assert small.cpu() - before <= 0.02
        for client in clients:
            client.close()
        for _ in range(count["connections"]):
            listener.accept()[0].close()
        late = stack.enter_context(_connect(where))
        theirs = stack.enter_context(listener.accept()[0])
        late.sendall(b"x")
        assert theirs.recv(1) == b"x"


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_datagrams_are_answered_each_to_its_own_sender(running: Relay, address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.ExitStack() as stack:
        target, *clients = (stack.enter_context(socket.socket(family, socket.SOCK_DGRAM)) for _ in range(6))
        target.bind((address, 0))
        where = running.publish(target.getsockname()[:2], socket.SOCK_DGRAM, address)
        for client in clients:
            client.settimeout(5)
            client.sendto(str(client.fileno()).encode(), where)
            data, sender = target.recvfrom(100)
            target.sendto(data * 2, sender)
            answer, back = client.recvfrom(100)
            assert (answer, back[:2]) == (str(client.fileno()).encode() * 2, where)
        assert running.count()["sessions"] == 5


def test_a_flood_of_senders_takes_the_places_of_the_oldest_sessions_and_of_nothing_else(tmp_path: Path) -> None:
    with relay(str(tmp_path / "gate"), files=1024) as small, contextlib.ExitStack() as stack:
        target = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        target.bind(("127.0.0.1", 0))
        target.settimeout(5)
        where = small.publish(target.getsockname(), socket.SOCK_DGRAM)
        for _ in range(500):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(b"x", where)
                target.recv(10)
        assert small.count()["sessions"] <= 128
        with server(_echo) as other, _connect(small.publish(other)) as client:
            client.shutdown(socket.SHUT_WR)
            assert _all(client) == b""


def test_another_controller_finds_what_is_there_and_takes_it_away(running: Relay) -> None:
    with server(_echo) as target:
        where = running.publish(target)
        running.control.close()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control, _connect(where) as standing:
            control.connect(running.gate)
            later = running._replace(control=control)
            assert later.ask("list").splitlines()[1:] == [f"tcp-{where[1]}"]
            assert later.ask(f"remove tcp-{where[1]}") == "ok"
            standing.sendall(b"ab")
            standing.shutdown(socket.SHUT_WR)
            assert _all(standing) == b"ba"
            with pytest.raises(ConnectionRefusedError):
                _connect(where)


def test_it_gives_out_sockets_of_the_network_it_lives_in(running: Relay) -> None:
    running.control.send(b"socket tcp 127.0.0.1 0")
    text, (descriptor,), _, _ = socket.recv_fds(running.control, 100, 4)
    with socket.socket(fileno=descriptor) as listener:
        assert text == b"ok"
        with _connect(listener.getsockname()):
            listener.accept()[0].close()
    assert running.ask("socket tcp 192.0.2.77 0").startswith("error")


def test_nonsense_is_answered_and_changes_nothing(running: Relay) -> None:
    chance = random.Random(7)
    words = ["add", "remove", "list", "socket", "tcp", "udp", "1.2.3.4", "::", "99999", "x" * 70, "", "%n", "-1"]
    with socket.socket() as plain, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        descriptors = [plain.fileno(), datagram.fileno(), 0, 1]
        for _ in range(2000):
            request = " ".join(chance.choices(words, k=chance.randrange(1, 8)))[:256] or "x"
            assert running.ask(request, *chance.choices(descriptors, k=chance.randrange(0, 3)))
    assert len(list(Path(f"/proc/{running.process.pid}/fd").iterdir())) < 60
    assert running.process.poll() is None


def test_a_request_that_is_too_long_ends_its_control_connection_alone(running: Relay) -> None:
    running.control.send(bytes(5000))
    assert running.control.recv(10) == b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
        control.connect(running.gate)
        assert running._replace(control=control).count()["connections"] == 0
