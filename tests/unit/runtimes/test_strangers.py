"""What a stranger's program names of the host is not followed with the daemon's rights."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost.errors import Forbidden
from roost.runtimes import strangers
from roost.runtimes.base import Request
from roost.runtimes.detect import detect


def _script(directory: Path, first: str) -> Path:
    file = directory / "program.sh"
    file.write_text(f"{first}\necho hello\n")
    file.chmod(0o755)
    return file


def _check(file: Path) -> None:
    strangers.check(detect(str(file)), Request(str(file)), str(file.parent / "cache"))


@pytest.mark.parametrize("line", ["#!/bin/sh", "#!/usr/bin/env sh"])
def test_interpreters_of_the_system_are_everybodys(tmp_path: Path, line: str) -> None:
    _check(_script(tmp_path, line))


@pytest.mark.parametrize("present", [True, False], ids=["there", "missing"])
def test_an_interpreter_in_somebodys_directory_is_refused_whether_it_is_there_or_not(
    tmp_path: Path, present: bool
) -> None:
    private = tmp_path / "private"
    private.mkdir()
    interpreter = private / "interpreter"
    _script(private, "#!/bin/sh").rename(interpreter) if present else None
    with pytest.raises(Forbidden, match="was not started") as refused:
        _check(_script(tmp_path, f"#!{interpreter}"))
    assert str(interpreter) in refused.value.why


@pytest.mark.fault(79)
@pytest.mark.parametrize("path", ["/usr/../etc/shadow", "/etc/shadow", "/usr/bin/../../root/python"])
def test_names_are_judged_by_where_they_lead(tmp_path: Path, path: str) -> None:
    with pytest.raises(Forbidden):
        _check(_script(tmp_path, f"#!{path}"))


def test_nobody_is_told_which_files_there_are() -> None:
    told = (
        "connect to 10.0.0.1:80; allow it with --net 10.0.0.1:80",
        "/root/key is not visible; allow it with --fs /root/key:ro",
    )
    assert strangers.without_hints(told) == told[:1]
