"""What the documents promise is held by something that runs."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

from roost.host.failpoints import POINTS
from tests.checkout import ROOT, exists, fault_marks, python_files, relative, tree

SPECIFICATION = (ROOT / "SPECIFICATION.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MUTATIONS = sorted((ROOT / "tests" / "mutations").glob("*.toml"))
REFERENCE = re.compile(r"`((?:tests|bench)/[\w./-]+\.py(?:::[\w:\[\]-]+)?)`")


def rows() -> list[str]:
    """The body rows of every table of SPECIFICATION.md."""
    lines = [line for line in SPECIFICATION.splitlines() if line.startswith("|")]
    rules = [index for index, line in enumerate(lines) if set(line) <= set("|-: ")]
    heads = {index for rule in rules for index in (rule - 1, rule)}
    return [line for index, line in enumerate(lines) if index not in heads]


def fault_rows() -> dict[int, set[str]]:
    """Row number of the fault table -> the tests it names."""
    return {
        int(match[1]): set(REFERENCE.findall(row)) for row in rows() if (match := re.match(r"\|\s*(\d+)\s*\|", row))
    }


def dependencies() -> set[str]:
    lines = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    return {re.split(r"[<>=!~\[; ]", line)[0].lower() for line in lines}


def reached_failpoints() -> list[re.Pattern[str]]:
    """What the product gives to `failpoints.reach(...)`; the fields of an f-string stand for any word."""
    calls = [node for path in python_files("src") for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    given = [call.args[0] for call in calls if ast.unparse(call.func) in ("reach", "failpoints.reach")]
    return [re.compile(pattern_of(argument)) for argument in given]


def pattern_of(argument: ast.expr) -> str:
    parts = argument.values if isinstance(argument, ast.JoinedStr) else [argument]
    return "".join(re.escape(str(part.value)) if isinstance(part, ast.Constant) else r"[\w.-]+" for part in parts)


def test_every_line_of_the_specification_names_what_holds_it() -> None:
    assert [row for row in rows() if not REFERENCE.search(row)] == []


def test_every_test_and_benchmark_that_the_specification_names_exists() -> None:
    assert [name for name in REFERENCE.findall(SPECIFICATION) if not exists(name)] == []


def test_the_fault_table_lists_exactly_the_faults_that_tests_hold() -> None:
    assert sorted(fault_rows()) == sorted({mark.row for mark in fault_marks()})


def test_every_fault_row_names_a_test_that_carries_its_mark() -> None:
    marks = {(mark.row, f"{mark.file}::{mark.name}") for mark in fault_marks()}
    assert [(row, name) for row, names in fault_rows().items() for name in names if (row, name) not in marks] == []


def test_every_held_fault_has_a_mutation_that_switches_its_defence_off() -> None:
    mutated = {int(re.match(r"\d+", path.stem)[0]) for path in MUTATIONS}
    assert sorted({mark.row for mark in fault_marks()} - mutated) == []


@pytest.mark.parametrize("path", MUTATIONS, ids=lambda path: path.stem)
def test_a_mutation_fits_the_sources(path: Path) -> None:
    mutation = tomllib.loads(path.read_text())
    assert exists(mutation["test"]), f"{mutation['test']} does not exist"
    counts = {edit["file"]: (ROOT / edit["file"]).read_text().count(edit["old"]) for edit in mutation["edit"]}
    assert set(counts.values()) == {1}, f"the old text must occur once: {counts}"
    assert all(edit["old"] != edit["new"] for edit in mutation["edit"])


def test_every_dependency_has_its_reason() -> None:
    reasons = (ROOT / "docs/decisions/0002-dependencies.md").read_text().lower()
    assert [name for name in sorted(dependencies()) if f"`{name}`" not in reasons] == []


def test_the_list_of_failpoints_is_what_the_product_reaches() -> None:
    reached = reached_failpoints()
    assert [name for name in POINTS if not any(pattern.fullmatch(name) for pattern in reached)] == []
    assert [pattern.pattern for pattern in reached if not any(pattern.fullmatch(name) for name in POINTS)] == []


def test_every_failpoint_is_exercised() -> None:
    exercised = "\n".join(path.read_text() for path in python_files("tests") if path != Path(__file__))
    assert "failpoints.POINTS" in exercised or [name for name in POINTS if f'"{name}' not in exercised] == []


def test_decisions_are_numbered_without_gaps_or_doubles() -> None:
    numbers = sorted(int(path.name[:4]) for path in (ROOT / "docs/decisions").glob("[0-9]*.md"))
    assert numbers == list(range(1, len(numbers) + 1))


def test_the_changelog_knows_the_version() -> None:
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_named_script_exists() -> None:
    documents = [path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "ARCHITECTURE.md")]
    named = {name for path in documents for name in re.findall(r"`(scripts/[\w-]+)", path.read_text())}
    assert sorted(name for name in named if not (ROOT / name).is_file()) == []
    assert relative(ROOT / "scripts" / "quickstart") in named
