"""Usage, help, errors and exit codes."""

from __future__ import annotations

import signal

import pytest

from roost import errors
from roost.cli.dispatch import command_of, parser_of
from roost.cli.look import KINDS
from roost.cli.main import main
from roost.cli.verbs import VERBS, Verb
from roost.errors import BY_CODE, Invalid, NotStarted, RoostError
from roost.model.kinds import KINDS as MODEL_KINDS
from tests.unit.cli.conftest import Roost

SHOWN = [verb for verb in VERBS if verb.group]


@pytest.mark.parametrize("verb", SHOWN, ids=lambda verb: verb.name)
def test_every_verb_shows_an_example_of_itself(verb: Verb) -> None:
    text = parser_of(verb, command_of(verb)).format_help()
    assert "example:\n  " in text
    assert f"roost {verb.name}" in text.partition("example:")[2]


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert [verb.name for verb in SHOWN if f"  {verb.name:<12}" not in text] == []
    assert "__complete" not in text


@pytest.mark.parametrize(
    "words",
    [
        ("bogus",), ("list", "--bogus"), ("show",), ("launch", "--cpus", "many"), ("launch", "--publish", "80"), ("-o", "xml", "list"), ("start",),
        ("start", "web", "--all"), ("copy", "a", "b"), ("copy", "a:/x", "b:/y"), ("image",), ("launch", "--count", "0"), ("completion", "tcsh"),
        ("get", "machine", "-o"), ("--host", "ftp://x", "list"), ("exec",),
    ],
)  # fmt: skip
def test_wrong_usage_is_2_and_says_what_and_how(words: tuple[str, ...], call: Roost) -> None:
    result = call(*words)
    assert result.code == (125 if words[0] == "exec" else 2)
    assert result.err.startswith("error: ")
    assert "Traceback" not in result.err
    assert result.out == ""


def test_a_misspelt_verb_is_guessed(call: Roost) -> None:
    assert "did you mean launch?" in call("lanuch").err


@pytest.mark.parametrize(
    ("code", "exit"),
    [
        ("failed", 1), ("invalid", 2), ("not-found", 3), ("conflict", 4), ("forbidden", 5), ("quota-exceeded", 5), ("unavailable", 6),
        ("not-started", 1), ("outcome-unknown", 1), ("command-failed", 1),
    ],
)  # fmt: skip
def test_every_error_has_its_exit_code(code: str, exit: int, call: Roost, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise BY_CODE[code]('the disk of "web" is in use', "why it is", "roost stop web")

    monkeypatch.setattr("roost.cli.context.Context.items", fail)
    result = call("list")
    assert result.code == exit
    assert result.err == 'error: the disk of "web" is in use\n  why: why it is\n  fix: roost stop web\n'


@pytest.mark.parametrize(
    ("error", "exit"),
    [
        (errors.NotFound("x"), 127), (errors.Unavailable("x"), 126), (errors.Conflict("x"), 125), (errors.OutcomeUnknown("x"), 125),
        (NotStarted("x", "No such file or directory"), 127), (NotStarted("x", "Permission denied"), 126), (NotStarted("x", "lost"), 125),
    ],
)  # fmt: skip
def test_exec_keeps_to_the_codes_that_guests_leave_free(
    error: RoostError, exit: int, call: Roost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("roost.client.blocking.execution.Execution.open", fail)
    assert call("exec", "web", "--", "true").code == exit


def test_a_command_whose_time_was_up_is_124(call: Roost, monkeypatch: pytest.MonkeyPatch) -> None:
    error = RoostError("time is up")
    error.code = "timeout"

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("roost.client.blocking.execution.Execution.open", fail)
    assert call("exec", "web", "--", "true").code == 124


def test_several_problems_stand_one_a_line(call: Roost, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise Invalid("wrong", problems=[errors.Problem("spec.cpus", "is 0"), errors.Problem("spec.memory", "is much")])

    monkeypatch.setattr("roost.cli.context.Context.items", fail)
    assert call("list").err == "error: wrong\n  why: spec.cpus: is 0\n       spec.memory: is much\n"


def test_a_fault_of_ours_shows_no_traceback_unless_asked(call: Roost, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr("roost.cli.context.Context.items", fail)
    assert "Traceback" not in call("list").err
    monkeypatch.setenv("ROOST_DEBUG", "1")
    assert "Traceback" in call("list").err


def test_an_interruption_says_what_goes_on(call: Roost, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(context: object, *_: object, **__: object) -> None:
        context.goes_on = "web goes on starting"  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr("roost.cli.context.Context.items", interrupt)
    result = call("list")
    assert result.code == 130
    assert "interrupted: web goes on starting" in result.err


def test_a_reader_that_has_left_is_no_error(call: Roost, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("roost.cli.context.Context.items", leave)
    monkeypatch.setattr("roost.cli.dispatch._mute", lambda: None)
    result = call("list")
    assert result.code == 128 + signal.SIGPIPE
    assert result.err == ""


def test_a_daemon_that_can_not_be_reached_is_told(call: Roost) -> None:
    result = call("list")
    assert result.code == 1
    assert "no connection to the daemon" in result.err


def test_the_version_needs_no_daemon(call: Roost) -> None:
    assert call("--version").out.startswith("roost ")
    assert "not running" in call("version").out


def test_the_kinds_of_the_command_line_are_those_of_the_model() -> None:
    assert {kind.name: kind.plural for kind in MODEL_KINDS} == KINDS


def test_errors_are_plain_text_in_a_pipe(call: Roost) -> None:
    assert "\x1b" not in call("bogus").err
