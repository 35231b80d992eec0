"""Connections are carried whole, in both directions, at the pace of the slower side, and within bounds."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

import pytest

from roost.errors import Invalid, NotStarted
from roost.runtimes import doors
from roost.runtimes.base import Peer, Published
from roost.runtimes.doors import Doors
from roost.runtimes.loop import Loop


def turn_until(loop: Loop, done: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        loop.at(time.monotonic() + 0.02, _nothing)
        loop.turn()


def _nothing() -> None:
    """So that a turn ends."""


class Carried:
    """A door between a client in a thread and a listening server."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.doors = Doors(self.loop, lambda _: False)
        self.inside = socket.create_server(("127.0.0.1", 0))
        self.outside = socket.create_server(("127.0.0.1", 0))
        self.address = self.inside.getsockname()
        self.doors.lead_out([self.inside.detach()], [self.outside.getsockname()[:2]])
        self.failed: list[BaseException] = []

    def run(self, client: Callable[[socket.socket], None], server: Callable[[socket.socket], None]) -> None:
        threads = [
            threading.Thread(target=self._guard, args=(client, lambda: socket.create_connection(self.address, 10))),
            threading.Thread(target=self._guard, args=(server, lambda: self.outside.accept()[0])),
        ]
        for thread in threads:
            thread.start()
        turn_until(self.loop, lambda: not any(thread.is_alive() for thread in threads))
        assert not self.failed

    def _guard(self, main: Callable[[socket.socket], None], connect: Callable[[], socket.socket]) -> None:
        try:
            with connect() as peer:
                peer.settimeout(10)
                main(peer)
        except BaseException as error:
            self.failed.append(error)

    def close(self) -> None:
        self.doors.close()
        self.outside.close()


def everything(peer: socket.socket) -> bytes:
    return b"".join(iter(lambda: peer.recv(65536), b""))


def test_both_sides_may_end_their_half_first() -> None:
    carried = Carried()
    got: dict[str, bytes] = {}

    def client(peer: socket.socket) -> None:
        peer.sendall(b"question")
        peer.shutdown(socket.SHUT_WR)
        got["answer"] = everything(peer)

    def server(peer: socket.socket) -> None:
        got["question"] = everything(peer)
        peer.sendall(b"answer" * 1000)

    carried.run(client, server)
    carried.close()
    assert got == {"question": b"question", "answer": b"answer" * 1000}


def test_a_slow_reader_slows_the_sender_down() -> None:
    carried = Carried()
    sent = [0]

    def client(peer: socket.socket) -> None:
        peer.setblocking(False)
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            try:
                sent[0] += peer.send(bytes(1 << 16))
            except BlockingIOError:
                threading.Event().wait(0.01)

    def server(_: socket.socket) -> None:
        threading.Event().wait(0.6)

    carried.run(client, server)
    carried.close()
    assert sent[0] < 40 << 20, "what nobody reads fills the buffers of the kernel, not our memory"


def test_a_reset_is_passed_on() -> None:
    carried = Carried()
    seen: list[str] = []

    def client(peer: socket.socket) -> None:
        try:
            seen.append(repr(peer.recv(1)))
        except ConnectionResetError:
            seen.append("reset")

    def server(peer: socket.socket) -> None:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    carried.run(client, server)
    carried.close()
    assert seen == ["reset"]


def test_what_init_can_not_be_asked_is_reset() -> None:
    loop = Loop()
    refused = Doors(loop, lambda _: False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    refused.publish(doors.listen(Published("127.0.0.1", port, 80)), 80)
    with socket.create_connection(("127.0.0.1", port)) as peer:
        loop.turn()
        with pytest.raises(ConnectionResetError):
            peer.recv(1)
    refused.close()


def test_connections_that_init_has_not_opened_yet_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "CONNECTIONS", 2)
    asked: list[int] = []
    loop = Loop()

    def ask(port: int) -> bool:
        asked.append(port)
        return True

    waiting = Doors(loop, ask)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    waiting.publish(doors.listen(Published("127.0.0.1", port, 80)), 80)
    peers = [socket.create_connection(("127.0.0.1", port)) for _ in range(4)]
    turn_until(loop, lambda: len(asked) == 2)
    loop.at(time.monotonic() + 0.05, _nothing)
    loop.turn()
    assert asked == [80, 80]
    waiting.answered(80, -1)
    turn_until(loop, lambda: len(asked) == 3)
    waiting.close()
    for peer in peers:
        peer.close()


def test_a_taken_port_says_who_to_ask() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(NotStarted) as caught:
        doors.listen(Published("127.0.0.1", taken.getsockname()[1], 80))
    assert "ss -ltnp" in caught.value.fix


def answer(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", (address, 0)) for address in addresses])


def test_a_name_has_all_its_addresses_but_not_those_of_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, "192.0.2.1", "127.0.0.1", "2001:db8::1", "192.0.2.1", "169.254.169.254")
    assert doors.pin([Peer("a.example", 1), Peer("a.example", 2)]) == {"a.example": ("192.0.2.1", "2001:db8::1")}


def test_a_name_with_many_addresses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, *(f"192.0.2.{number}" for number in range(1, 200)))
    assert len(doors.pin([Peer("a.example", 1)])["a.example"]) == 8


def test_an_address_that_is_written_is_meant() -> None:
    peers = [Peer("169.254.169.254", 80), Peer("[::1]", 80), Peer("::ffff:127.0.0.1", 80)]
    assert list(doors.pin(peers).values()) == [("169.254.169.254",), ("::1",), ("127.0.0.1",)]


@pytest.mark.parametrize("name", ["2130706433", "0x7f000001", "017700000001", "127.1"])
def test_this_host_in_disguise_is_a_name_and_refused(name: str) -> None:
    with pytest.raises(Invalid, match="not possible"):
        doors.pin([Peer(name, 80)])
