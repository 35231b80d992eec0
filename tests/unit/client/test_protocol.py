"""HTTP without I/O: what is sent, what comes back, and what a loss of connection means."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.client.protocol import Event, Head, Lost, Protocol, Request, error_of, failure, loads, lost, path
from roost.errors import BY_CODE, Invalid, NotFound, NotStarted, OutcomeUnknown, Problem, RoostError

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nRoost-Build: x\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"


def events(protocol: Protocol, *pieces: bytes) -> list[Event]:
    found: list[Event] = []
    for piece in pieces:
        protocol.feed(piece)
        while (event := protocol.next_event()) is not None:
            found.append(event)
            if event == "end":
                break
    return found


def started(method: str = "GET") -> Protocol:
    protocol = Protocol()
    protocol.begin(Request(method, "/v1/machines"))
    return protocol


def test_a_write_carries_its_body_and_its_idempotency_key() -> None:
    sent = Protocol().begin(Request("POST", "/v1/machines", b'{"a":1}', key="k1"))
    head, _, body = sent.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/machines HTTP/1.1\r\n")
    assert b"Idempotency-Key: k1" in head
    assert b"Content-Length: 7" in head
    assert body == b'{"a":1}'


def test_a_read_carries_neither() -> None:
    sent = Protocol().begin(Request("GET", "/v1/machines"))
    assert b"Idempotency" not in sent
    assert b"Content-Length" not in sent


def test_a_streamed_body_is_framed_in_chunks() -> None:
    protocol = Protocol()
    sent = protocol.begin(Request("PUT", "/x", streamed=True)) + protocol.chunk(b"hello") + protocol.finish()
    assert sent.endswith(b"5\r\nhello\r\n0\r\n\r\n")


@given(st.integers(1, len(CHUNKED) - 1))
def test_an_answer_may_be_cut_anywhere(cut: int) -> None:
    found = events(started(), CHUNKED[:cut], CHUNKED[cut:])
    assert isinstance(found[0], Head)
    assert b"".join(event for event in found if isinstance(event, bytes)) == b"abcde"
    assert found[-1] == "end"


def test_the_connection_can_be_used_again_after_a_whole_answer() -> None:
    protocol = started()
    head, _, end = events(protocol, ANSWER)
    assert isinstance(head, Head)
    assert head.headers["roost-build"] == "x"
    assert end == "end"
    assert protocol.reusable


@pytest.mark.parametrize("cut", [0, 10, len(ANSWER) - 1])
def test_an_end_before_the_end_is_lost(cut: int) -> None:
    with pytest.raises(Lost):
        events(started(), *filter(None, [ANSWER[:cut]]), b"")


def test_what_is_not_http_is_lost() -> None:
    with pytest.raises(Lost):
        events(started(), b"SSH-2.0-OpenSSH\r\n\r\n")


def test_an_endless_head_is_lost() -> None:
    with pytest.raises(Lost):
        events(started(), b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000)


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_every_error_comes_back_as_it_was_raised(code: str) -> None:
    body = json.dumps({"error": {"code": code, "what": "w", "why": "y", "fix": "f", "problems": []}}).encode()
    error = failure(400, body, "GET /x")
    assert type(error) is BY_CODE[code]
    assert (error.what, error.why, error.fix) == ("w", "y", "f")


def test_an_invalid_brings_all_its_problems() -> None:
    error = error_of({"code": "invalid", "what": "w", "problems": [{"path": "spec.cpus", "message": "is no number"}]})
    assert isinstance(error, Invalid)
    assert error.problems == (Problem("spec.cpus", "is no number"),)


def test_an_unknown_code_is_kept() -> None:
    assert error_of({"code": "timeout", "what": "w"}).code == "timeout"


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error": 3}', b"[" * 100_000, b"\xff"])
def test_an_unreadable_error_is_still_an_error(body: bytes) -> None:
    error = failure(502, body, "GET /x")
    assert type(error) is RoostError
    assert "502" in error.why


def test_an_answer_that_is_no_json_says_so() -> None:
    with pytest.raises(OutcomeUnknown):
        loads(b"<html>", "GET /x")


def test_a_loss_before_the_request_was_sent_did_nothing() -> None:
    assert type(lost(Request("POST", "/x"), sent=False, reason="")) is NotStarted


def test_a_loss_after_a_write_was_sent_leaves_it_open() -> None:
    assert type(lost(Request("POST", "/x"), sent=True, reason="")) is OutcomeUnknown


def test_a_loss_after_a_read_did_nothing() -> None:
    assert type(lost(Request("GET", "/x"), sent=True, reason="")) is NotStarted


def test_names_are_quoted_in_paths() -> None:
    target = path("images", "a/b", "debian:12", since=3, project="p&q", label=None, continue_="t")
    assert target == "/v1/images/a%2Fb/debian%3A12?since=3&project=p%26q&continue=t"


def test_a_class_of_error_is_what_a_caller_catches() -> None:
    with pytest.raises(NotFound):
        raise error_of({"code": "not-found", "what": "w"})
