"""Documents from files, without YAML's traps."""

from __future__ import annotations

import pytest

from roost.cli.documents import load
from roost.errors import Invalid


def test_several_documents_are_read_and_empty_ones_left_out() -> None:
    assert load("a: 1\n---\n---\nb: [2]\n", "f") == [{"a": 1}, {"b": [2]}]


def test_json_is_read_too() -> None:
    assert load('{"kind": "machine", "spec": {"cpus": 2}}', "f") == [{"kind": "machine", "spec": {"cpus": 2}}]


@pytest.mark.parametrize(
    "text", ["a: [", "a: 1\na: 2", "a: &x 1\nb: *x", "!!python/object/apply:os.getcwd []", "[" * 1200, "a: \x07"]
)
def test_what_is_broken_or_a_trap_is_refused_with_the_files_name(text: str) -> None:
    with pytest.raises(Invalid, match=r"file\.yaml can not be read"):
        load(text, "file.yaml")


@pytest.mark.fault(86)
def test_a_few_lines_can_not_become_gigabytes() -> None:
    laughs = "a0: &a0 [x]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(9))
    with pytest.raises(Invalid, match="can not be read"):
        load(laughs, "file.yaml")
