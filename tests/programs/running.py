"""Runs a program as `roost run` does, in this process, with its output captured."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from roost.runtimes import execution
from roost.runtimes.base import Policy, Request, Result


def run(
    file: str | Path, *arguments: str, stdin: bytes = b"", name: str = "", cwd: str = "/", vm: str = "", **policy: Any
) -> Result:
    """The result of one run; `policy` are fields of `Policy`. Raises RoostError when it did not begin."""
    request = Request(os.path.abspath(file), arguments, Policy(**policy), cwd, vm, name)  # noqa: PTH100 - links stay
    with open(os.memfd_create("stdin"), "w+b") as given:
        given.write(stdin)
        given.seek(0)
        return execution.run(request, stdin=given.fileno(), capture=True)


def said(result: Result) -> str:
    """What a program that ended with 0 printed."""
    assert result.ending.code == 0, (result.ending, result.stderr[-500:])
    return result.stdout.decode()
