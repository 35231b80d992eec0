"""Rules of style that a machine can see in the text of a file."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.checkout import ROOT, files, imports, python_files, relative, tree

PYTHON = python_files("src", "tests", "bench", "guest", "scripts")
BINARY = {".png", ".qcow2", ".gz", ".zst", ".xz", ".iso", ".bin", ".ico", ".woff2"}
SHELL = [path for path in files() if path.parent in (ROOT / "scripts", ROOT / ".ci") or path.suffix == ".sh"]
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XXX|HACK)\b")
VAGUE = {"util", "utils", "helper", "helpers", "common", "misc", "manager"}

PRIVATE = re.compile(
    r"""
      pypi\.org | pythonhosted\.org | registry\.npmjs\.org | proxy\.golang\.org | crates\.io | deb\.debian\.org | security\.debian\.org
    | snapshot\.debian\.org | archive\.ubuntu\.com | (?<![\w.~}/-])/(?:work|opt)/ | /tmp/(?:team|bash_jobs)
    """,
    re.VERBOSE,
)
"""Hosts of package registries and paths of one computer: both belong to the configuration of a host, never into the repository."""


def text_files() -> Iterable[tuple[Path, str]]:
    for path in files():
        if path.suffix not in BINARY and path != Path(__file__):
            yield path, path.read_text(errors="replace")


def test_every_module_begins_with_a_sentence() -> None:
    first = {relative(path): (ast.get_docstring(tree(path)) or "").split("\n")[0] for path in PYTHON}
    assert [name for name, line in first.items() if not re.search(r"[.!?]\)?$", line)] == []


def test_nothing_is_left_unfinished() -> None:
    assert [relative(path) for path, text in text_files() if path.suffix != ".md" and UNFINISHED.search(text)] == []


def test_no_import_is_hidden_from_the_import_graph() -> None:
    assert [relative(path) for path in python_files("src") if "typing.TYPE_CHECKING" in imports(path)] == []


def test_imports_are_absolute() -> None:
    relative_ones = [
        f"{relative(path)}:{node.lineno}"
        for path in PYTHON
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative_ones == []


def test_fakes_are_used_never_mocks() -> None:
    found = [relative(path) for path in PYTHON if any(name.startswith("unittest.mock") for name in imports(path))]
    assert found == []


def test_file_names_say_what_a_file_is_about() -> None:
    assert [relative(path) for path in PYTHON if path.stem in VAGUE] == []


def test_no_file_names_a_registry_or_a_path_of_one_computer() -> None:
    found = {relative(path): match[0] for path, text in text_files() if (match := PRIVATE.search(text))}
    assert found == {}


def test_no_large_file_is_kept_in_the_repository() -> None:
    large = {relative(path): path.stat().st_size for path in files() if path.stat().st_size > 512 << 10}
    assert large == {}


def test_links_between_documents_lead_somewhere() -> None:
    link = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
    broken = [
        f"{relative(path)} -> {target}"
        for path in files()
        if path.suffix == ".md"
        for target in link.findall(path.read_text())
        if "://" not in target and not (path.parent / target).exists()
    ]
    assert broken == []


def test_shell_scripts_stop_at_the_first_error() -> None:
    assert [relative(path) for path in SHELL if path.suffix == "" and "set -euo pipefail" not in path.read_text()] == []
    assert [relative(path) for path in SHELL if path.suffix == "" and not path.stat().st_mode & 0o100] == []


@pytest.mark.parametrize("script", SHELL, ids=relative)
def test_a_shell_script_is_understood_by_bash(script: Path) -> None:
    checked = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shell_scripts_pass_shellcheck() -> None:
    command = ["shellcheck", "-x", "-P", "SCRIPTDIR", *(relative(path) for path in SHELL)]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
