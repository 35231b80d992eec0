"""The size ratchet: files and functions stay small, and the list of exceptions may only shrink."""

from __future__ import annotations

from tests.checkout import functions, python_files, relative

FILE_LINES = 500
FUNCTION_LINES = 50

LONG_FILES: dict[str, int] = {}
"""Files over the limit, with the lines they may have. Never add one: split the file."""

LONG_FUNCTIONS: dict[str, int] = {}
"""Functions over the limit (`file:name`), with the lines they may have. Never add one."""


def file_lines() -> dict[str, int]:
    return {
        relative(path): len(path.read_text().splitlines())
        for path in python_files("src", "tests", "bench", "guest", "scripts")
    }


def function_lines() -> dict[str, int]:
    return {
        f"{relative(path)}:{function.name}": (function.end_lineno or function.lineno) - function.lineno + 1
        for path in python_files("src", "bench", "guest", "scripts")
        for function in functions(path)
    }


def over(sizes: dict[str, int], limit: int, allowed: dict[str, int]) -> dict[str, int]:
    return {name: size for name, size in sizes.items() if size > allowed.get(name, limit)}


def test_files_are_short() -> None:
    assert over(file_lines(), FILE_LINES, LONG_FILES) == {}


def test_functions_are_short() -> None:
    assert over(function_lines(), FUNCTION_LINES, LONG_FUNCTIONS) == {}


def test_the_exceptions_are_still_needed_and_no_larger_than_needed() -> None:
    sizes = {**file_lines(), **function_lines()}
    loose = {name: size for name, size in {**LONG_FILES, **LONG_FUNCTIONS}.items() if sizes.get(name) != size}
    assert loose == {}, "lower the number, or drop the line"
