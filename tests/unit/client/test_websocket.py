"""WebSockets and the messages of exec without I/O, against the server half of the same library."""

from __future__ import annotations

import json

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)

from roost.client import websocket
from roost.client.websocket import Closed, Ended, Opened, Received, Start, WebSocket, exec_message
from roost.errors import Conflict, NotStarted, OutcomeUnknown


class Pair:
    """A client whose server accepted."""

    def __init__(self) -> None:
        self.client = WebSocket("/v1/machines/default/web/exec")
        self.server = WSConnection(ConnectionType.SERVER)
        self.hear(self.client.outgoing)
        self.client.outgoing = b""

    def hear(self, data: bytes) -> list[object]:
        self.server.receive_data(data)
        return list(self.server.events())

    def accept(self) -> list[Received]:
        return list(self.client.feed(self.server.send(AcceptConnection())))


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_the_upgrade_asks_for_the_target() -> None:
    server = WSConnection(ConnectionType.SERVER)
    server.receive_data(WebSocket("/v1/x").outgoing)
    (request,) = server.events()
    assert isinstance(request, Request)
    assert request.target == "/v1/x"


def test_an_accepted_upgrade_opens(pair: Pair) -> None:
    assert pair.accept() == [Opened()]


def test_a_refused_upgrade_raises_what_the_daemon_said(pair: Pair) -> None:
    body = json.dumps({"error": {"code": "conflict", "what": "it does not run", "why": "", "fix": ""}}).encode()
    head = pair.server.send(
        RejectConnection(status_code=409, headers=[(b"content-length", str(len(body)).encode())], has_body=True)
    )
    with pytest.raises(Conflict, match="it does not run"):
        list(pair.client.feed(head + pair.server.send(RejectData(data=body))))


def test_messages_come_whole_however_they_are_cut(pair: Pair) -> None:
    pair.accept()
    data = pair.server.send(BytesMessage(data=b"\x01" + b"x" * 1000, message_finished=False)) + pair.server.send(
        BytesMessage(data=b"y")
    )
    received = [message for byte in data for message in pair.client.feed(bytes([byte]))]
    assert received == [b"\x01" + b"x" * 1000 + b"y"]


def test_pings_are_answered(pair: Pair) -> None:
    pair.accept()
    list(pair.client.feed(pair.server.send(Ping(payload=b"p"))))
    (pong,) = pair.hear(pair.client.outgoing)
    assert isinstance(pong, Pong)


def test_a_message_without_end_is_refused(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "MAX_MESSAGE", 100)
    pair.accept()
    with pytest.raises(OutcomeUnknown):
        list(pair.client.feed(pair.server.send(BytesMessage(data=b"x" * 200, message_finished=False))))


def test_a_close_is_told(pair: Pair) -> None:
    pair.accept()
    assert list(pair.client.feed(pair.server.send(CloseConnection(code=1000, reason="done")))) == [Closed(1000, "done")]


def test_nothing_more_is_said_to_a_daemon_that_said_goodbye(pair: Pair) -> None:
    pair.accept()
    list(pair.client.feed(pair.server.send(CloseConnection(code=1000))))
    assert pair.client.text({"eof": True}) == pair.client.binary(b"x") == b""


def test_what_breaks_the_protocol_closes_it(pair: Pair) -> None:
    pair.accept()
    (closed,) = pair.client.feed(b"\xff" * 20)
    assert isinstance(closed, Closed)
    assert closed.code == 1002


def test_text_is_json_for_the_server(pair: Pair) -> None:
    pair.accept()
    (message,) = pair.hear(pair.client.text(Start(("ls",), {"A": "b"}, timeout=2.0).message()))
    assert isinstance(message, TextMessage)
    assert json.loads(message.data) == {
        "argv": ["ls"], "env": {"A": "b"}, "cwd": "", "user": "", "stdin": False, "terminal": None, "timeout": 2.0
    }  # fmt: skip


def test_exec_output_says_its_channel() -> None:
    assert exec_message(b"\x01out") == ("stdout", b"out")
    assert exec_message(b"\x02err") == ("stderr", b"err")


def test_exec_ends_with_a_code() -> None:
    assert exec_message('{"exit": 7}') == Ended(7)


def test_exec_raises_the_guests_error() -> None:
    with pytest.raises(NotStarted, match="no such file"):
        exec_message('{"error": {"code": "not-started", "what": "no such file"}}')


def test_exec_ignores_what_it_does_not_know() -> None:
    assert exec_message('{"started": true}') is None
