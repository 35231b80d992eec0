"""What reaches a terminal: never anything that a guest wants it to obey."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.cli import render
from roost.cli.render import Table, clean, clean_stream
from roost.cli.waiting import line
from roost.client.results import Progress

TABLE = Table("things", (("NAME", lambda row: row["name"]), ("COUNT", lambda row: row["count"])))


def printed(rows: list[dict[str, object]]) -> str:
    out = io.StringIO()
    render.print_table(rows, TABLE, out)
    return out.getvalue()


def test_columns_are_as_wide_as_they_need_to_be() -> None:
    assert (
        printed([{"name": "a", "count": 10}, {"name": "longer", "count": None}])
        == "NAME    COUNT\na       10\nlonger  -\n"
    )


@pytest.mark.fault(65)
@given(st.text())
def test_no_text_can_command_a_terminal(text: str) -> None:
    shown = clean("\x1b]0;evil\x07\x1b[2J\x9b1m\u202e" + text)
    assert all(char.isprintable() or char == "\n" for char in shown)


@pytest.mark.fault(65)
def test_a_cell_is_one_line() -> None:
    assert printed([{"name": "two\nlines\x1b[31m", "count": 1}]).count("\n") == 2


@pytest.mark.fault(65)
@pytest.mark.parametrize(
    "data",
    [
        b"\x1b[31mred\x1b[0m",
        b"\x1b]0;title\x07red",
        b"\x1bP1;2|x\x1b\\red",
        b"\x1b(Bred\x1b7",
        b"r\x00e\x07d\x7f",
        b"\x1b[?1049hred",
    ],
)
def test_logs_lose_what_a_terminal_would_obey(data: bytes) -> None:
    assert clean_stream(data) == b"red"


def test_logs_keep_lines_tabs_and_text() -> None:
    assert clean_stream("a\tb\r\nä\n".encode()) == "a\tb\r\nä\n".encode()


@pytest.mark.parametrize("form", ["json", "yaml", "name"])
def test_programs_get_what_they_asked_for(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    render.show([{"name": "a", "count": 1}], form, TABLE)
    expected = {
        "json": '[\n  {\n    "name": "a",\n    "count": 1\n  }\n]\n',
        "yaml": "name: a\ncount: 1\n",
        "name": "a\n",
    }
    assert capsys.readouterr().out == expected[form]


def test_nothing_is_said_to_be_nothing_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    render.show([], "table", TABLE)
    assert capsys.readouterr() == ("", "no things\n")


class Terminal(io.StringIO):
    """Says it is one."""

    def isatty(self) -> bool:
        return True


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert render.colours(Terminal())
    assert not render.colours(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not render.colours(Terminal())


def test_progress_of_one_says_how_far_it_is() -> None:
    assert line({"web": Progress("fetching", 0.5)}, 0, 3.2).endswith("web: fetching 50% (3s)")


def test_progress_of_many_counts_them() -> None:
    states = {"a": Progress("booting"), "b": Progress("booting"), "c": Progress("running")}
    assert "2 booting, 1 running" in line(states, 0, 1)
