"""Server-sent events without I/O."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.client import sse
from roost.client.sse import Parser, ServerEvent
from roost.errors import OutcomeUnknown

STREAM = b': heartbeat\n\nid: 7\nevent: put\ndata: {"a":\ndata: 1}\n\nevent: synced\nid: 8\ndata: {}\r\n\r\ndata: plain\n\nevent: nothing\n\n'
EVENTS = [ServerEvent("put", '{"a":\n1}', "7"), ServerEvent("synced", "{}", "8"), ServerEvent("message", "plain", "8")]


@given(st.lists(st.integers(0, len(STREAM)), max_size=5))
def test_a_stream_may_be_cut_anywhere(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    parser = Parser()
    assert [event for begin, end in pairwise(edges) for event in parser.feed(STREAM[begin:end])] == EVENTS


def test_an_endless_line_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT", 100)
    with pytest.raises(OutcomeUnknown):
        Parser().feed(b"data: " + b"x" * 200)


def test_an_endless_event_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT", 100)
    with pytest.raises(OutcomeUnknown):
        Parser().feed(b"data: 0123456789\n" * 20)
