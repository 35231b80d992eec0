"""The checkout as data: its files, its Python sources as syntax trees, its tests by name."""

from __future__ import annotations

import ast
import os
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
_SKIPPED = {".git", ".venv", ".cache", "__pycache__", "dist", "build", "node_modules"}


class Marked(NamedTuple):
    """A test that carries `@pytest.mark.fault(row)`: its file (relative to the checkout) and its name."""

    row: int
    file: str
    name: str


@cache
def files() -> tuple[Path, ...]:
    """Every file of the checkout that is, or is about to be, under version control."""
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    ) if (ROOT / ".git").exists() else None  # fmt: skip
    if listed is None or listed.returncode:
        return tuple(sorted(_walk()))
    names = (name for name in listed.stdout.decode().split("\0") if name)
    return tuple(sorted(path for name in names if (path := ROOT / name).is_file()))


def _walk() -> Iterator[Path]:
    """A checkout without git (a copy, an unpacked archive): everything but what is made by tools."""
    for directory, inner, names in os.walk(ROOT):
        inner[:] = [name for name in inner if name not in _SKIPPED and not (name.startswith(".") and name != ".ci")]
        yield from (Path(directory) / name for name in names)


def relative(path: Path) -> str:
    """The path as documents write it."""
    return path.relative_to(ROOT).as_posix()


def python_files(*tops: str) -> list[Path]:
    """The Python files below the given top directories."""
    return [path for path in files() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in tops]


@cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a Python file."""
    return ast.parse(path.read_text(), str(path))


def module_name(path: Path) -> str:
    """`src/roost/host/system.py` -> `roost.host.system`."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """The full names a file imports, at any depth of nesting: `a.b` of `import a.b`, `a.b.c` of `from a.b import c`."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of a file."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@cache
def tests_in(name: str) -> frozenset[str]:
    """The names of the tests in the file `name` (relative to the checkout); empty when there is no such file."""
    path = ROOT / name
    if not path.is_file():
        return frozenset()
    return frozenset(function.name for function in functions(path) if function.name.startswith("test"))


def exists(reference: str) -> bool:
    """Whether `tests/x.py::test_y`, `tests/x.py::TestZ::test_y[case]`, `tests/x.py` or `bench/x.py` exists."""
    file, _, rest = reference.partition("::")
    if not rest:
        return (ROOT / file).is_file()
    return rest.split("[")[0].split("::")[-1] in tests_in(file)


def fault_marks() -> list[Marked]:
    """Every test that holds a row of the fault catalogue."""
    return [
        Marked(row, relative(path), function.name)
        for path in python_files("tests")
        for function in functions(path)
        for decorator in function.decorator_list
        for row in _rows(decorator)
    ]


def _rows(decorator: ast.expr) -> Iterator[int]:
    """The rows of `pytest.mark.fault(1, 2)`."""
    if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.fault":
        for argument in decorator.args:
            yield int(ast.literal_eval(argument))
