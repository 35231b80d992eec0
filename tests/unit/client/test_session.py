"""Lost connections: NotStarted when nothing happened, OutcomeUnknown when it may have, one safe retry with the same key."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from roost.build import build_id
from roost.client.blocking.session import Session
from roost.client.endpoint import Endpoint
from roost.client.protocol import Request
from roost.errors import Conflict, NotStarted, OutcomeUnknown
from roost.host.sockets import listen_unix

Act = Callable[[socket.socket, bytes], None]


def answer(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def reply(body: bytes) -> Act:
    return lambda connection, _: connection.sendall(answer(body))


def hang_up(connection: socket.socket, _: bytes) -> None:
    connection.close()


def half(connection: socket.socket, _: bytes) -> None:
    connection.sendall(answer(b'{"a": 1}')[:-3])
    connection.close()


class Server:
    """Takes one request a connection and does with it what the script says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.requests: list[bytes] = []
        self.script: list[Act] = []
        self.listener = listen_unix(path)
        self.listener.setblocking(True)
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    @property
    def keys(self) -> list[bytes]:
        return [match[1] for request in self.requests if (match := re.search(rb"Idempotency-Key: (\w+)", request))]

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            request = connection.recv(65536)
            if request and self.script:
                self.requests.append(request)
                self.script.pop(0)(connection, request)
            connection.close()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(5)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    found = Server(tmp_path / "api.sock")
    yield found
    found.close()


@pytest.fixture
def session(server: Server) -> Iterator[Session]:
    found = Session(Endpoint(server.path), on_other_build=lambda _: None)
    yield found
    found.close()


def test_a_daemon_that_is_not_there_did_nothing(tmp_path: Path) -> None:
    with pytest.raises(NotStarted):
        Session(Endpoint(tmp_path / "none.sock")).call("POST", "/v1/machines", {})


@pytest.mark.fault(85)
def test_a_write_whose_answer_was_lost_is_sent_again_with_the_same_key(server: Server, session: Session) -> None:
    server.script = [hang_up, reply(b'{"name": "web"}')]
    assert session.call("POST", "/v1/machines", {"name": "web"}) == {"name": "web"}
    first, second = server.keys
    assert first == second
    assert server.requests[0] == server.requests[1]


def test_an_answer_that_breaks_off_is_not_taken_for_one(server: Server, session: Session) -> None:
    server.script = [half]
    with pytest.raises(OutcomeUnknown):
        session.call("POST", "/v1/machines", {})


def test_a_write_that_is_lost_twice_may_have_happened(server: Server, session: Session) -> None:
    server.script = [hang_up, hang_up]
    with pytest.raises(OutcomeUnknown):
        session.call("DELETE", "/v1/machines/default/web")
    assert len(server.requests) == 2


def test_a_write_is_open_when_the_daemon_is_gone_after_it(server: Server, session: Session) -> None:
    def die(connection: socket.socket, _: bytes) -> None:
        server.path.unlink()
        connection.close()

    server.script = [die]
    with pytest.raises(OutcomeUnknown):
        session.call("POST", "/v1/machines", {})


def test_a_read_that_is_lost_twice_did_nothing(server: Server, session: Session) -> None:
    server.script = [hang_up, hang_up]
    with pytest.raises(NotStarted):
        session.call("GET", "/v1/machines")


def test_a_write_without_a_key_is_not_sent_again(server: Server, session: Session) -> None:
    server.script = [hang_up, reply(b"{}")]
    with pytest.raises(OutcomeUnknown):
        session.open(Request("POST", "/v1/machines"))
    assert len(server.requests) == 1


def test_every_write_has_a_key_of_its_own(server: Server, session: Session) -> None:
    server.script = [reply(b"{}"), reply(b"{}")]
    session.call("POST", "/v1/machines", {})
    session.call("POST", "/v1/machines", {})
    assert len(set(server.keys)) == 2


def test_an_answer_that_never_comes_has_an_end(server: Server, session: Session) -> None:
    over = threading.Event()
    server.script = [lambda connection, _: over.wait(5) and None]
    with pytest.raises(OutcomeUnknown, match="lost"):
        session.call("POST", "/v1/machines", {}, timeout=0.05)
    over.set()


def test_the_daemons_error_is_raised_and_not_retried(server: Server, session: Session) -> None:
    body = b'{"error": {"code": "conflict", "what": "name taken", "why": "", "fix": ""}}'
    server.script = [lambda connection, _: connection.sendall(answer(body, "409 Conflict"))]
    with pytest.raises(Conflict, match="name taken"):
        session.call("POST", "/v1/machines", {})
    assert len(server.requests) == 1


def test_an_early_refusal_of_an_upload_is_heard(server: Server, session: Session) -> None:
    body = b'{"error": {"code": "conflict", "what": "not wanted", "why": "", "fix": ""}}'
    server.script = [lambda connection, _: connection.sendall(answer(body, "409 Conflict", "Connection: close\r\n"))]
    with pytest.raises(Conflict, match="not wanted"):
        session.upload("/v1/images/default/x/content", iter([bytes(1 << 20)] * 64), "application/octet-stream")


def test_another_build_is_told_once(server: Server) -> None:
    told: list[str] = []
    session = Session(Endpoint(server.path), on_other_build=told.append)
    server.script = [lambda connection, _: connection.sendall(answer(b"{}", headers="Roost-Build: 0.0.9+old\r\n"))] * 2
    session.call("GET", "/v1/version")
    session.call("GET", "/v1/version")
    assert len(told) == 1
    assert "0.0.9+old" in told[0]
    assert build_id() in told[0]


def test_the_same_build_is_not_worth_a_word(server: Server) -> None:
    told: list[str] = []
    server.script = [lambda connection, _: connection.sendall(answer(b"{}", headers=f"Roost-Build: {build_id()}\r\n"))]
    Session(Endpoint(server.path), on_other_build=told.append).call("GET", "/v1/version")
    assert told == []
