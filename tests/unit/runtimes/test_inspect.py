"""What `roost inspect` says, for programs that run, that lack something, and that nothing runs."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest

from roost.cli import inspect as verb
from roost.cli.options import GLOBALS
from roost.cli.output import Output
from roost.errors import Invalid, NotFound
from roost.runtimes import inspection, policy, registry
from roost.runtimes.base import Need
from tests.unit.runtimes.samples import GOOD
from tests.unit.runtimes.test_registry import Fake


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a program of every kind, on a host where a sandbox holds two layers of three."""
    for name, content in GOOD.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "text").write_text("hello\n")
    (tmp_path / "old").write_bytes(b"MZ" + bytes(100))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        inspection, "_layers", lambda runtime, _: (["seccomp", "wasi"], ["landlock: off"]) if runtime else ([], [])
    )
    return tmp_path


def run(*words: str) -> int:
    parsed = policy.parse(words)
    given = Namespace(**GLOBALS)
    given.output, given.program = parsed.options["format"], parsed
    return verb.COMMANDS["inspect"].run(Output(given), given)


def test_all_that_is_known_is_plain_data(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-o", "json", "--env", "HOME", "--fs", "text:/t:ro", "--require", "landlock", "wasm") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["runtime"], found["missing"], found["refusal"]) == ("wasm", "wasm", [], "")
    assert found["policy"]["fs"] == [f"{place}/text:/t:ro"]
    assert found["policy"]["env"] == ["HOME"], "values may be secrets"
    assert found["layers"] == ["seccomp", "wasi"]
    assert found["missing_layers"] == ["landlock: off", "landlock: required, and does not hold here"]


def test_a_missing_runtime_comes_with_the_line_that_installs_it(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking = Fake("jvm", 50, (Need("Java 17 or newer", "sudo apt-get install java", "java"),))
    monkeypatch.setattr(registry, "built_in", lambda name: lacking)
    assert run("jar") == 126
    told = capsys.readouterr().out
    assert "Java 17 or newer" in told
    assert "sudo apt-get install java" in told


def test_the_codes_are_those_that_running_it_would_end_with(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (run("script"), run("old"), run("text")) == (0, 126, 127)
    told = capsys.readouterr().out
    assert "a program of DOS" in told
    assert "without a #! line" in told


def test_what_can_not_be_inspected_is_an_error(place: Path) -> None:
    with pytest.raises(NotFound):
        run("gone")
    with pytest.raises(Invalid, match="does not run this file"):
        run("--vm", "jvm", "wasm")
    with pytest.raises(Invalid, match="wrong usage"):
        run("wasm", "--fs", "text")


def test_a_file_s_own_words_do_nothing_to_a_terminal(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "evil").write_bytes(b"#!/bin/\x1b[2J\xff\xfe \x07\n")
    run("evil")
    run("-o", "json", "evil")
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert (
        json.loads(told[told.index("{") :])["details"]["name"]
        == "\x1b[2J\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"
    )
