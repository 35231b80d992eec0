"""`--learn`: what a trusted program used becomes the least policy, and with that policy it runs again."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from pathlib import Path

import pytest
import yaml

from roost.runtimes import doors, execution, learning, native, policy  # noqa: F401 - all of it, before a user can no longer read it
from roost.runtimes.base import Policy, Request
from tests.needs import needs_program
from tests.ordinary import WHO, run_as
from tests.programs.build import program

pytestmark = [pytest.mark.live, needs_program("python3")]

PYTHON = "/usr/bin/python3"
PROGRAM = """
import os, socket, sys
with open("input/words.txt") as file:
    words = file.read()
with open("out/result.txt", "w") as file:
    file.write(words.upper())
os.path.exists("never/there")
with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 10) as peer:
    peer.sendall(b"hi")
    print(peer.recv(2).decode(), open("out/result.txt").read())
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "input").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "private.txt").write_text("not looked at")
    (tmp_path / "input/words.txt").write_text("some words")
    return tmp_path


@pytest.fixture
def port() -> int:
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for _ in range(2):
            with server.accept()[0] as peer:
                peer.sendall(peer.recv(2))
        server.close()

    threading.Thread(target=serve, daemon=True).start()
    number: int = server.getsockname()[1]
    return number


def test_what_it_used_becomes_a_policy_with_which_it_runs_again(
    place: Path, port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    request = Request(PYTHON, ("-Ic", PROGRAM, str(port)), Policy(), str(place))
    learned = learning.learn(request, str(place / "policy.yaml"))
    assert learned.ending.code == 0
    printed = capfd.readouterr()
    assert printed.out == "hi SOME WORDS\n"
    assert "only for programs that you trust" in printed.err
    found = yaml.safe_load((place / "policy.yaml").read_text())
    granted = [line.partition(":")[0] + line[-3:] for line in found["fs"]]
    assert granted == [f"{place}/input/words.txt:ro", f"{place}/out:rw"]
    assert found["net"] == [f"127.0.0.1:{port}"]
    (place / "out/result.txt").unlink()
    again = execution.run(request._replace(policy=policy.from_mapping(found)), capture=True)
    assert (again.ending.code, again.stdout) == (0, b"hi SOME WORDS\n"), again


def test_the_flags_say_the_same_as_the_file(place: Path, port: int, capfd: pytest.CaptureFixture[str]) -> None:
    learning.learn(Request(PYTHON, ("-Ic", PROGRAM, str(port)), Policy(), str(place)))
    text = capfd.readouterr().err.partition("trust\n")[2]
    line = next(line for line in text.splitlines() if line.startswith("# roost run "))
    parsed = policy.parse(line.removeprefix("# roost run ").split())
    assert parsed.policy == policy.from_mapping(yaml.safe_load(text))
    assert parsed.file == PYTHON


@pytest.mark.parametrize("who", WHO)
def test_whoever_runs_it_may_learn(who: str) -> None:
    code = "import os, sys\nprint(open('/etc/hostname').read() != '', os.path.exists('/etc/shadow'), file=sys.stderr)"

    async def main() -> tuple[int, str]:
        with tempfile.TemporaryDirectory(dir=os.environ["HOME"]) as directory:
            place = Path(directory) / "policy.yaml"
            result = learning.learn(Request(PYTHON, ("-Ic", code), Policy(), "/"), str(place))
            return result.ending.code, place.read_text()

    ended, text = run_as(who, main)
    assert ended == 0
    assert [line.strip() for line in text.splitlines() if "/etc/hostname" in line and line.startswith("  -")], text


@pytest.mark.parametrize("who", WHO)
def test_a_webassembly_program_needs_what_it_opened_and_nothing_on_the_way(who: str) -> None:
    module = program("probe", "wasm").read_bytes()

    async def main() -> tuple[bytes, list[str]]:
        with tempfile.TemporaryDirectory(dir=os.environ["HOME"]) as directory:
            home = Path(directory)
            (home / "data").mkdir()
            (home / "data/in.txt").write_text("in")
            (home / "probe.wasm").write_bytes(module)
            request = Request(str(home / "probe.wasm"), ("read", "data/in.txt"), Policy(), str(home))
            learning.learn(request, str(home / "policy.yaml"))
            found = yaml.safe_load((home / "policy.yaml").read_text())
            again = execution.run(request._replace(policy=policy.from_mapping(found)), capture=True)
            return again.stdout, [line.replace(str(home), "") for line in found["fs"]]

    said, granted = run_as(who, main)
    assert said == b"in"
    assert granted == ["/data/in.txt:/data/in.txt:ro"]
