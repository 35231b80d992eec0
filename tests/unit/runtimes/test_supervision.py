"""What the end of a program is called, what is counted, and what is told."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest

from roost.errors import Invalid, NotFound, NotStarted, RoostError, Unavailable
from roost.runtimes import execution, learning, usage
from roost.runtimes.base import Ending, Grant, MiB, Peer, Policy, Request, Result
from roost.runtimes.learning import Seen
from roost.runtimes.loop import READ, Loop
from roost.runtimes.refusals import MOST, Destination, Refusals, hidden_files, parse_peer
from roost.runtimes.streams import Budget, Stream
from roost.runtimes.supervision import End

POLICY = Policy(wall=2.0, memory=512 * MiB, cpu_time=1.5, output=1500)


@pytest.mark.parametrize(
    ("limit", "word"), [("wall", "2 s"), ("memory", "512MiB"), ("cpu_time", "1.5 s"), ("output", "1500 bytes")]
)
def test_every_limit_names_itself_and_its_flag(limit: str, word: str) -> None:
    ending = execution.ending_of(End(limit=limit), POLICY)
    assert (ending.code, ending.reason, ending.limit) == (124, "limit", limit)
    assert word in ending.message
    assert f"--{limit.replace('_', '-')}" in ending.message


def test_the_kernels_word_for_cpu_time_is_a_limit_only_where_there_is_one() -> None:
    assert execution.ending_of(End(signal=24), POLICY).limit == "cpu_time"
    assert execution.ending_of(End(signal=24), Policy()) == Ending(
        152, "signal", 24, message="it was killed by SIGXCPU"
    )


def test_cpu_time_that_a_runtime_made_an_exit_code_of_is_a_limit() -> None:
    assert execution.ending_of(End(code=152, cpu=1.6), POLICY).limit == "cpu_time"
    assert execution.ending_of(End(signal=9, cpu=2.6), POLICY).limit == "cpu_time"
    assert execution.ending_of(End(code=152, cpu=0.1), POLICY) == Ending(152)


def test_what_could_not_be_executed_after_all_is_our_failure() -> None:
    assert execution.ending_of(End(failure="no such file"), POLICY).code == 125


@pytest.mark.parametrize(
    ("error", "code"), [(NotFound("x"), 127), (Unavailable("x"), 126), (Invalid("x"), 125), (NotStarted("x"), 125)]
)
def test_what_did_not_begin_has_its_exit_code(error: RoostError, code: int) -> None:
    assert execution.exit_code(error) == code


def test_the_document_is_plain_and_holds_no_output() -> None:
    result = Result(
        Ending(3), "native", ("seccomp",), ("own uid: why",), ("r",), b"secret", b"too", {"run": 1.0}, {"cpu": 0.5}
    )
    document = execution.document(result)
    assert json.loads(json.dumps(document)) == document
    assert document["ending"]["code"] == 3
    assert not {"stdout", "stderr"} & set(document)


def test_a_moment_comes_in_time_and_a_descriptor_at_once() -> None:
    loop, called = Loop(), []
    near, far = socket.socketpair()
    begin = time.monotonic()
    loop.at(begin + 0.05, lambda: called.append("moment"))
    loop.watch(near.fileno(), READ, lambda _: called.append("ready"))
    far.send(b"x")
    loop.turn()
    assert called == ["ready"]
    loop.forget(near.fileno())
    loop.turn()
    assert called == ["ready", "moment"]
    assert time.monotonic() - begin >= 0.05
    near.close()
    far.close()


def test_one_call_may_forget_the_descriptor_of_the_next() -> None:
    loop, called = Loop(), []
    pairs = [socket.socketpair() for _ in range(2)]

    def ready(_: int) -> None:
        called.append(1)
        for near, _far in pairs:
            loop.forget(near.fileno())

    for near, far in pairs:
        loop.watch(near.fileno(), READ, ready)
        far.send(b"x")
    loop.turn()
    assert called == [1]
    for near, far in pairs:
        near.close()
        far.close()


def test_a_budget_takes_exactly_so_much_and_says_so() -> None:
    over: list[int] = []
    budget = Budget(10, lambda: over.append(1))
    assert (budget.take(b"12345"), budget.take(b"67890"), over) == (b"12345", b"67890", [])
    assert (budget.take(b"!"), over) == (b"", [1])


def test_a_stream_that_somebody_else_holds_open_ends_with_the_program() -> None:
    loop = Loop()
    stream = Stream(loop, Budget(None, lambda: None))
    other = os.dup(stream.wants)
    os.write(stream.wants, b"last words")
    stream.started()
    stream.finish()
    assert (bytes(stream.kept), stream.open) == (b"last words", False)
    os.close(other)


def test_the_own_memory_and_time_are_found() -> None:
    assert usage.processes(os.getpid())[0] == os.getpid()
    assert 5 * MiB < usage.memory([os.getpid()], 1 << 40) < 4096 * MiB
    exact = usage.memory([os.getpid()], 1)
    assert MiB < exact < 4096 * MiB
    assert usage.cpu_seconds([os.getpid()]) > 0
    assert usage.memory([2**22 + 5], 0) == 0


@pytest.mark.parametrize(
    ("data", "peer"),
    [
        (b"\2\0\x01\xbb\xc0\0\2\7" + bytes(8), Destination("192.0.2.7", 443)),
        (b"\x0a\0\0\x50" + bytes(4) + bytes(10) + b"\xff\xff\x7f\0\0\1" + bytes(4), Destination("127.0.0.1", 80)),
        (b"\x0a\0\0\x50" + bytes(4) + bytes(15) + b"\1" + bytes(4), Destination("::1", 80)),
        (b"\1\0/run/x.sock", None),
        (b"\2\0\0", None),
        (b"\x0a\0\0\x50\0\0", None),
        (b"", None),
    ],
)
def test_addresses_are_read_as_the_kernel_reads_them(data: bytes, peer: Destination | None) -> None:
    assert parse_peer(data) == peer


def test_refusals_are_different_and_bounded() -> None:
    refusals = Refusals()
    for number in range(1000):
        refusals.note(f"line {number // 2}")
    assert list(refusals.lines) == [f"line {number}" for number in range(MOST)]


def test_arguments_that_name_hidden_files_are_found() -> None:
    there = {"/w/in.txt", "/w/data/a", "/etc/passwd", "/w/o", "/w"}
    arguments = ("in.txt", "--in=in.txt", "data/a", "/etc/passwd", "--flag", "nothing", ".", "", "a\0b", "x=y")
    found = hidden_files(arguments, "/w", [Grant("/w/data", "/w/data")], there.__contains__)
    assert found == [
        "in.txt is not visible; allow it with --fs in.txt:ro",
        "in.txt is not visible; allow it with --fs in.txt:ro",
        "/etc/passwd is not visible; allow it with --fs /etc/passwd:ro",
    ]


def seen(read: tuple[str, ...] = (), written: tuple[str, ...] = (), peers: tuple[Peer, ...] = ()) -> Seen:
    return Seen(dict.fromkeys(read), dict.fromkeys(written), dict.fromkeys(peers))


def test_the_least_policy_lends_files_one_by_one_and_crowds_by_directory() -> None:
    crowd = tuple(f"/b/{number}" for number in range(1, 5))
    services = (Peer("192.0.2.1", 80),)
    learned = learning.least(Policy(), seen(("/a/1", *crowd, "/out/x"), ("/out",), services), 40 * MiB)
    lent = [(grant.source, grant.writable) for grant in learned.fs]
    assert lent == [("/a/1", False), *((path, False) for path in crowd), ("/out", True)]
    deeper = learning.least(Policy(), seen(tuple(f"/c/d/{number}" for number in range(4))), 1)
    assert deeper.fs == (Grant("/c/d", "/c/d"),)
    assert (learned.net, learned.memory, deeper.memory) == ((Peer("192.0.2.1", 80),), 64 * MiB, 16 * MiB)


def test_what_was_given_stays_and_is_not_said_twice() -> None:
    given = Policy(fs=(Grant("/data", "/data"),), env=(("KEY", "value"),), net=(Peer("a.example", 80),))
    learned = learning.least(given, seen(("/data/1", "/else/2"), peers=(Peer("a.example", 80),)), 1)
    assert learned.fs == (Grant("/data", "/data"), Grant("/else/2", "/else/2"))
    assert (learned.env, learned.net) == (given.env, given.net)


def test_a_learned_policy_is_written_so_that_yaml_and_a_shell_read_it() -> None:
    odd = Policy(fs=(Grant("/a b/it's", "/a b/it's"),), env=(("K", "v: #"),), memory=None)
    text = learning.render(odd, Request("/bin/my tool"))
    assert "'/bin/my tool'" in text
    assert "--memory none" in text
    assert "it''s" in text
    assert "memory: null" in text


def test_nothing_of_a_run_is_imported_that_takes_long() -> None:
    source = Path(execution.__file__).read_text() + Path(execution.__file__).with_name("session.py").read_text()
    assert not [
        line
        for line in source.splitlines()
        if line.startswith(("import json", "import re", "import asyncio", "from pathlib"))
    ]
