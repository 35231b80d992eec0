"""Cases of the conformance suite of runtimes: arguments, environment, input and output, exit codes and signals."""

from __future__ import annotations

import re
from collections.abc import Iterable

from roost.testing.lab import Case, Lab, fine

CASES: list[Case] = []
"""In the order of this file."""


def _case(case: Case) -> Case:
    CASES.append(case)
    return case


def _hex(words: Iterable[str]) -> list[str]:
    return [word.encode().hex() for word in words]


# Arguments


@_case
def arguments_arrive_byte_for_byte(lab: Lab) -> None:
    words = (
        "a b",
        "'",
        '"',
        '\\"',
        "\\",
        "c:\\x\\",
        "*",
        "$HOME",
        "%PATH%",
        "^&|<>",
        "-",
        "ä€\U0001f600",
        "x\ty",
        "`id`",
    )
    assert fine(lab.run("args", *words)).lines == _hex(words)


@_case
def empty_arguments_are_arguments(lab: Lab) -> None:
    assert fine(lab.run("args", "", "a", "", "")).lines == ["", "61", "", ""]


@_case
def no_arguments_are_none(lab: Lab) -> None:
    assert fine(lab.run("args")).out == b""


@_case
def many_arguments_fit(lab: Lab) -> None:
    words = [f"{number:04}" for number in range(1500)]
    assert fine(lab.run("args", *words)).lines == _hex(words)


@_case
def options_after_the_file_are_the_program_s(lab: Lab) -> None:
    words = ("--help", "--memory", "1", "--", "-q", "run")
    assert fine(lab.run("args", *words)).lines == _hex(words)


@_case
def a_program_may_have_any_name(lab: Lab) -> None:
    odd = lab.place / f"ä b 'c $(d) {lab.program.name}"
    odd.write_bytes(lab.program.read_bytes())
    odd.chmod(0o755)
    assert fine(lab.run("args", "x", program=odd)).lines == ["78"]


# Environment


@_case
def the_caller_s_environment_is_not_the_program_s(lab: Lab) -> None:
    ran = fine(lab.run("env"))
    assert b"SECRET" not in ran.out and b"PASSED" not in ran.out


@_case
def a_variable_is_passed_on(lab: Lab) -> None:
    assert fine(lab.run("env", "PASSED", flags=("--env", "PASSED"))).lines == ["as it is"]


@_case
def a_variable_is_set(lab: Lab) -> None:
    assert fine(lab.run("env", "KEY", flags=("--env", "KEY=a=b 'ä\""))).lines == ["a=b 'ä\""]


@_case
def a_variable_may_be_empty(lab: Lab) -> None:
    assert fine(lab.run("env", "KEY", flags=("--env", "KEY="))).lines == [""]


@_case
def a_variable_that_nobody_set_is_not_there(lab: Lab) -> None:
    assert lab.run("env", "KEY").code == 1


# Input and output


@_case
def bytes_pass_unchanged(lab: Lab) -> None:
    data = bytes(range(256)) * 256
    assert fine(lab.run("cat", stdin=data)).out == data


@_case
def the_end_of_the_input_is_seen(lab: Lab) -> None:
    assert fine(lab.run("cat", stdin=b"")).out == b""


@_case
def much_input_and_output_pass(lab: Lab) -> None:
    data = bytes(1 << 22)
    assert fine(lab.run("cat", stdin=data)).out == data


@_case
def much_output_passes(lab: Lab) -> None:
    assert len(fine(lab.run("flood", str(4 << 20))).out) == 4 << 20


@_case
def a_closed_input_is_an_empty_one(lab: Lab) -> None:
    assert lab.run("cat", stdin=None).out == b""


@_case
def errors_have_their_own_stream(lab: Lab) -> None:
    assert fine(lab.run("out", "one")).lines == ["one"]
    ran = fine(lab.run("err", "two"))
    assert ran.out == b"" and b"two" in ran.err


@_case
def a_dialogue_is_not_held_up(lab: Lab) -> None:
    running = lab.start("lines")
    for word in ("one", "two"):
        running.say(f"{word}\n".encode())
        assert running.line() == f"got {word}"
    assert running.wait().code == 0


@_case
def a_reader_that_leaves_ends_it(lab: Lab) -> None:
    running = lab.start("flood")
    running.leave()
    ran = running.wait()
    assert ran.code not in (0, 125), ran


@_case
def pipes_are_no_terminal(lab: Lab) -> None:
    assert fine(lab.run("tty")).lines == ["false false false"]


@_case
def a_terminal_is_a_terminal(lab: Lab) -> None:
    text = _CONTROL.sub(b"", fine(lab.on_terminal("tty")).out)
    assert b"truetruetrue" in text, text


_CONTROL = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\s")
"""What a console that draws for its program puts between its words."""


# Exit codes and signals


def _exits_with(code: int) -> Case:
    def case(lab: Lab) -> None:
        ran = lab.run("exit", str(code))
        assert ran.code == code, ran.err[-2000:]
        assert (ran.status["ending"]["reason"], ran.status["ending"]["code"]) == ("exit", code)

    case.__name__ = f"exit_code_{code}_is_the_program_s"
    return case


CASES += [_exits_with(code) for code in (0, 1, 2, 3, 42, 124, 125, 126, 127, 128, 200, 254, 255)]


def _ends_at(number: int) -> Case:
    def case(lab: Lab) -> None:
        running = lab.start("wait")
        assert running.line() == "ready"
        running.signal(number)
        assert running.wait().code == 128 + number
        assert lab.leftovers() == []

    case.__name__ = f"signal_{number}_ends_it"
    return case


CASES += [_ends_at(number) for number in (1, 2, 15)]


@_case
def nothing_outlives_a_killed_run(lab: Lab) -> None:
    running = lab.start("wait")
    assert running.line() == "ready"
    running.signal(9)
    running.wait()
    assert lab.leftovers() == []


@_case
def a_handler_gets_the_signal(lab: Lab) -> None:
    running = lab.start("handle")
    assert running.line() == "ready"
    running.signal(15)
    assert running.line() == "caught 15"
    assert running.wait().code == 42


@_case
def a_signal_to_itself_is_128_and_its_number(lab: Lab) -> None:
    ran = lab.run("raise", "15")
    assert (ran.code, ran.status["ending"]["signal"]) == (143, 15)


def _breaks_at(verb: str) -> Case:
    def case(lab: Lab) -> None:
        ran = lab.run(verb)
        assert ran.code in _BROKEN.get(lab.runtime, (132, 133, 134, 135, 139)), (ran.code, ran.err[-2000:])

    case.__name__ = f"{verb}_is_an_end_with_a_code"
    return case


_BROKEN = {"wasm": (134,), "jvm": (1, 134), "clr": (1, 134, 255), "wine": (1, 3, 5, 29, 132, 134, 139)}
CASES += [_breaks_at(verb) for verb in ("abort", "segv", "trap")]
