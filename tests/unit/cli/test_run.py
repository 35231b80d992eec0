"""`roost run` as a command: what it says and exits with before, instead of, and after a program."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from roost.cli import run
from roost.errors import NotFound, NotStarted, Unavailable
from roost.runtimes import execution, wasm_call
from roost.runtimes.base import Ending, Request, Result
from tests.unit.cli.conftest import Roost

FINE = Result(Ending(0), "native", layers=("seccomp",), stdout=b"out\x1b\n")


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], list[Request]]:
    """Let runs come to this result, or this error; the requests they make."""

    def come_to(end: object) -> list[Request]:
        asked: list[Request] = []

        def pretend(request: Request, **_: Any) -> Result:
            asked.append(request)
            if isinstance(end, BaseException):
                raise end
            assert isinstance(end, Result)
            return end

        monkeypatch.setattr(execution, "run", pretend)
        return asked

    return come_to


def test_its_help_shows_every_flag_and_an_example(call: Roost) -> None:
    text = call("run", "--help").out
    assert "example:\n  roost run" in text
    assert [flag for flag in ("--fs", "--net", "--require", "--status-json", "--detach") if flag not in text] == []


@pytest.mark.parametrize(
    "words", [("--fs",), ("--nonsense", "x.wasm"), (), ("--memory", "much", "x.wasm"), ("--name", "a", "x.wasm")]
)
def test_wrong_usage_is_roost_s_own_error(call: Roost, words: tuple[str, ...]) -> None:
    result = call("run", *words)
    assert (result.code, result.out) == (125, "")
    assert "error: the command line is wrong\n  why: " in result.err and "fix: roost run --help" in result.err


@pytest.mark.parametrize(
    ("error", "code"),
    [(NotFound("it"), 127), (Unavailable("it"), 126), (NotStarted("it"), 125), (OSError(28, "full"), 125)],
)
def test_what_did_not_begin_has_a_code(
    call: Roost, answer: Callable[[object], list[Request]], error: Exception, code: int
) -> None:
    answer(error)
    result = call("run", "x.wasm")
    assert result.code == code
    assert result.err.startswith("error: ")


def test_a_file_that_is_not_there_is_127(call: Roost) -> None:
    assert call("run", "/nonexistent/x.wasm").code == 127


def test_arguments_belong_to_the_program(call: Roost, answer: Callable[[object], list[Request]]) -> None:
    (request,) = (answer(FINE),)
    assert call("run", "--memory", "1GiB", "x.wasm", "--help", "-q", "", "--").code == 0
    assert request[0].arguments == ("--help", "-q", "", "--")
    assert (request[0].file, request[0].name) == (str(Path.cwd() / "x.wasm"), "x.wasm")


def test_global_options_stand_before_the_verb_or_after(call: Roost, answer: Callable[[object], list[Request]]) -> None:
    answer(FINE)
    before, after = call("-o", "json", "run", "x.wasm"), call("run", "-o", "json", "x.wasm")
    assert before == after
    assert json.loads(before.out)["stdout"] == "out\x1b\n" and "\x1b" not in before.out


def test_refusals_are_told_after_a_failure(call: Roost, answer: Callable[[object], list[Request]]) -> None:
    refusal = "a\x1b[31m.txt is not visible; allow it with --fs a.txt:ro"
    answer(FINE._replace(ending=Ending(1), refusals=(refusal,)))
    result = call("run", "x.wasm")
    assert result.code == 1
    assert "refused: a" in result.err and "--fs a.txt:ro" in result.err and "\x1b" not in result.err
    answer(FINE._replace(refusals=(refusal,)))
    assert call("run", "x.wasm").err == ""


def test_a_limit_is_said_in_a_sentence(call: Roost, answer: Callable[[object], list[Request]]) -> None:
    answer(FINE._replace(ending=Ending(124, "limit", limit="wall", message="it ran longer than 1s")))
    result = call("run", "x.wasm")
    assert (result.code, result.err) == (124, "roost: it ran longer than 1s\n")


def told(call: Roost, path: Path, *words: str) -> Any:
    """The one document that a run writes to its status descriptor."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        call("run", "--status-json", str(descriptor), *words)
    finally:
        os.close(descriptor)
    (line,) = path.read_text().splitlines()
    return json.loads(line)


def test_the_status_is_one_document(call: Roost, answer: Callable[[object], list[Request]], tmp_path: Path) -> None:
    answer(FINE)
    document = told(call, tmp_path / "status", "x.wasm")
    assert (document["ending"]["code"], document["ending"]["reason"], document["runtime"]) == (0, "exit", "native")


@pytest.mark.parametrize("words", [("/nonexistent/x.wasm",), ("--bogus", "x.wasm")])
def test_the_status_is_written_when_roost_itself_fails(call: Roost, tmp_path: Path, words: tuple[str, ...]) -> None:
    document = told(call, tmp_path / "status", *words)
    assert document["ending"]["reason"] == "failed" and document["ending"]["code"] in (125, 127)
    assert document["error"]["what"]


def test_a_status_that_nobody_takes_is_an_error(call: Roost, answer: Callable[[object], list[Request]]) -> None:
    answer(FINE)
    result = call("run", "--status-json", "987", "x.wasm")
    assert result.code == 125
    assert "987" in result.err


@pytest.mark.parametrize(
    "words",
    [("--bogus", "x"), ("--help",), ("--detach", "x"), ("--learn", "x"), ("-o", "json", "x"), ("--status-json", "3", "x"), ("--vm", "jvm", "x")],
)  # fmt: skip
def test_the_zygote_takes_plain_runs_only(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_bytes(b"\0asm\1\0\0\0")
    monkeypatch.chdir(tmp_path)
    assert run._accept(list(words)) is None


@pytest.mark.parametrize("content", [b"", b"\0\1\2", b"MZ"])
def test_the_zygote_takes_no_unknown_kind(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    assert run._accept([str(tmp_path / "x")]) is None


@pytest.mark.parametrize(("content", "taken"), [(b"#!/bin/sh\n", False), (wasm_call._NOTHING, True)])
def test_the_zygote_takes_other_kinds_only_where_there_is_no_terminal(
    content: bytes, taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_bytes(content)
    assert run._accept([str(tmp_path / "x")]) is not None
    monkeypatch.setattr(os, "isatty", lambda descriptor: True)
    assert (run._accept([str(tmp_path / "x")]) is not None) == taken
