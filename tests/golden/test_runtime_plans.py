"""The sandbox of every kind of run: a change of what a program sees or may do shows as a change of a file here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from roost.host.box import Box
from roost.runtimes.base import Command, Grant, MiB, Mount, Peer, Policy, Published, Request
from roost.runtimes.plan import Facts, box

GOLDEN = Path(__file__).parent / "runtimes"
UPDATE = os.environ.get("ROOST_GOLDEN_UPDATE") == "1"

FACTS = Facts(pid=4711, fds={0: 0, 1: 1, 2: 2}, certificates=True)
APP = Mount("/home/me/app", "/app/app", lent=True)
NATIVE = Command(argv=("./app", "one", "two words"), program="/app/app", mounts=(APP,), system=True)
FOREIGN = Command(
    argv=("/.emulator", "/app/app"), mounts=(Mount("/usr/bin/emulator", "/.emulator"), APP), env={"LANG": "C"}
)
PREFIX = Command(
    argv=("/usr/bin/wine", "/app/app.exe"), mounts=(Mount("/var/cache/prefix", "/prefix", "overlay", lent=True),), memory=1536 * MiB,
    files={"/etc/machine-id": b"0\n"}, calls=("modify_ldt",), layers=("-Xmx",), system=True,
)  # fmt: skip
PEERS = (Peer("api.example.org", 443), Peer("api.example.org", 80), Peer("192.0.2.9", 443), Peer("localhost", 5432))
PINNED = {
    "api.example.org": ("192.0.2.7", "2001:db8::7"),
    "192.0.2.9": ("192.0.2.9",),
    "localhost": ("127.0.0.1", "::1"),
}
NETWORK = Policy(net=PEERS, publish=(Published("127.0.0.1", 8080, 80),))
FILES = Policy(
    fs=(Grant("/srv/out", "/out", writable=True), Grant("/srv/data", "/data"), Grant("/srv/deep", "/out/deep/"))
)


class Case(NamedTuple):
    """A run on a host."""

    name: str
    policy: Policy
    command: Command
    facts: Facts = FACTS


CASES = (
    Case("nothing", Policy(), NATIVE),
    Case("files", FILES, NATIVE),
    Case("environment", Policy(env=(("LANG", "de_DE.UTF-8"), ("PATH", "/data/bin"), ("KEY", "a=b"))), FOREIGN),
    Case("network", NETWORK, NATIVE, FACTS._replace(pinned=PINNED)),
    Case("network-without-system", NETWORK, FOREIGN, FACTS._replace(pinned=PINNED)),
    Case("limits", Policy(memory=64 * MiB, cpu_time=1.5, processes=7, files=33, tmp=MiB, wall=9.0, output=5), NATIVE),
    Case("runtime", Policy(require=("seccomp", "-Xmx", "watchdog")), PREFIX),
    Case("terminal", Policy(), FOREIGN, FACTS._replace(tty=True, fds={0: 0, 1: 7, 2: 9})),
    Case("learning", Policy(fs=(Grant("/etc", "/etc", writable=True),)), NATIVE, FACTS._replace(watch="learn")),
)


def render(planned: Box) -> str:
    return "\n".join(_lines(planned)) + "\n"


def _lines(planned: Box) -> Iterator[str]:
    for name, value in planned._asdict().items():
        if isinstance(value, tuple) and value and isinstance(value[0], tuple):
            yield from (f"{name}: {' '.join(map(str, item))}" for item in value)
        elif isinstance(value, dict):
            yield from (f"{name}: {key} = {item}" for key, item in sorted(value.items()))
        else:
            yield f"{name}: {value}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_sandbox_of(case: Case) -> None:
    request = Request("/home/me/app", policy=case.policy, cwd="/home/me")
    planned = render(box(request, case.command, case.facts))
    path = GOLDEN / f"{case.name}.txt"
    if UPDATE:
        path.write_text(planned)
    assert planned == path.read_text()


def test_every_file_has_its_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == {case.name for case in CASES}
