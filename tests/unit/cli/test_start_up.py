"""The command starts fast because a verb imports nothing that it does not use; the time itself is printed, never asserted."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.client.served import Served

SLOW = (
    "asyncio",
    "msgspec",
    "yaml",
    "wsproto",
    "structlog",
    "litestar",
    "uvicorn",
    "subprocess",
    "threading",
    "ssl",
    "http",
    "tarfile",
)
# `doctor` answers 6 on a machine that lacks something, as a new one does.
PROBE = """
import sys
from roost.cli.main import main

code = main(sys.argv[1:])
print(*sorted(sys.modules), file=sys.stderr)
sys.exit(code not in (0, 6))
"""


def modules(served: Served, *words: str) -> set[str]:
    environment = {**os.environ, "ROOST_HOST": f"unix:{served.socket}"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *words], env=environment, capture_output=True, text=True, check=True
    )
    return set(done.stderr.split())


@pytest.mark.parametrize("words", [("list",), ("list", "-o", "json"), ("--version",), ("doctor", "-o", "json")])
def test_a_verb_imports_nothing_that_it_does_not_use(words: tuple[str, ...], daemon: Served) -> None:
    assert sorted(modules(daemon, *words) & set(SLOW)) == []


def test_list_imports_no_other_verb(daemon: Served) -> None:
    ours = {name for name in modules(daemon, "list") if name.startswith("roost.cli.")}
    assert ours == {
        f"roost.cli.{name}" for name in ("context", "dispatch", "look", "main", "options", "output", "render", "verbs")
    }


def test_the_time_of_list_is_told(daemon: Served) -> None:
    environment = {**os.environ, "ROOST_HOST": f"unix:{daemon.socket}"}
    took = []
    for _ in range(5):
        begin = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "roost.cli.main", "list"], env=environment, capture_output=True, check=True
        )
        took.append(time.perf_counter() - begin)
    print(f"roost list: {min(took) * 1000:.0f} ms (best of {len(took)})")


def test_a_run_imports_neither_parser_nor_formats(tmp_path: Path) -> None:
    program = tmp_path / "empty.wasm"
    program.write_bytes(b"\0asm\1\0\0\0")
    code = "import sys; from roost.cli import main, run; from roost.runtimes import native, wasm_call\n"
    code += "run._accept(sys.argv[1:])\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", code, str(program)], capture_output=True, text=True, check=True)
    heavy = {
        *("argparse", "asyncio", "collections", "collections.abc", "contextlib", "dataclasses", "enum", "functools"),
        *("importlib", "inspect", "json", "msgspec", "pathlib", "re", "signal", "socket", "subprocess", "tempfile"),
        *("threading", "traceback", "typing", "warnings", "roost.cli.dispatch", "roost.runtimes.doors"),
    }
    assert sorted(heavy & set(done.stdout.split())) == []


def test_the_way_to_the_zygote_imports_nothing_but_a_socket(tmp_path: Path) -> None:
    program = tmp_path / "empty.wasm"
    program.write_bytes(b"\0asm\1\0\0\0")
    code = "import sys; from roost.runtimes import zygote_client; before = set(sys.modules)\n"
    code += "print(zygote_client.offer(sys.argv[1:]), *sorted(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(program)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "None\n"
    code = "import sys; before = set(sys.modules); from roost.runtimes import zygote_client\nprint(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["_socket", "roost", "roost.runtimes", "roost.runtimes.zygote_client"]
