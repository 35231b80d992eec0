"""The hostile stand-in in the jail of a hypervisor: nothing gets out, and nothing it does uses up the host."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost import guest
from roost.host import escapes, jail
from roost.host.escapes import Report
from roost.host.jail import Bind, Jail, Limits
from tests.needs import needs_program, needs_root
from tests.ordinary import WHO, run_as

MACHINE = os.uname().machine
QEMU = Path(f"/usr/bin/qemu-system-{MACHINE}")

pytestmark = needs_program(QEMU.name)


@pytest.fixture
def stand_in() -> Iterator[Path]:
    """A copy that an ordinary user can read."""
    with tempfile.TemporaryDirectory(prefix="roost-test-") as directory:
        Path(directory).chmod(0o755)
        path = Path(directory) / "escape"
        path.write_bytes(guest.binary(MACHINE, "escape").read_bytes())
        path.chmod(0o755)
        yield path


@pytest.mark.fault(62)
@pytest.mark.parametrize("who", WHO)
def test_no_attempt_of_a_hostile_hypervisor_gets_out(who: str, stand_in: Path) -> None:
    async def main() -> Report:
        return await escapes.probe(stand_in, binds=jail.program_binds(QEMU), uid=jail.FIRST_UID + 8)

    report = run_as(who, main)
    assert report.escapes == ()
    assert len(report.attempts) > 110


@pytest.mark.fault(68)
@pytest.mark.parametrize("who", WHO)
def test_a_fork_bomb_ends_at_the_bound_of_the_machine(who: str, stand_in: Path) -> None:
    async def main() -> bytes:
        # A program that may fork, so that not the filter but the limits have to stop it.
        words = ["/escape", "only", "resources: 400 processes"]
        bomb = Jail("test-bomb", words, [Bind(stand_in, "/escape")], uid=jail.FIRST_UID + 9, sandboxes_itself=True)
        return (await jail.run_to_end(bomb._replace(limits=Limits(processes=20)), 60))[1].stdout

    _, verdict, detail = run_as(who, main).decode().split("\t")
    assert verdict == "held"
    assert 0 < int(detail.split()[0]) < 20


@needs_root
@pytest.mark.fault(68)
async def test_a_memory_bomb_is_stopped_by_the_control_group(stand_in: Path) -> None:
    bomb = Jail("test-memory", ["/escape", "memory", str(1 << 30)], [Bind(stand_in, "/escape")])
    jailed, finished = await jail.run_to_end(bomb._replace(limits=Limits(memory=64 << 20)), 60)
    assert jailed.cgroup is not None or pytest.skip("this host has no memory controller for us")
    assert (finished.code, finished.stdout) == (-9, b"")


@pytest.mark.parametrize("who", WHO)
def test_a_memory_bomb_is_stopped_without_a_control_group_too(who: str, stand_in: Path) -> None:
    async def main() -> bytes:
        bomb = Jail("test-heap", ["/escape", "memory", str(1 << 30)], [Bind(stand_in, "/escape")])
        return (await jail.run_to_end(bomb._replace(limits=Limits(heap=64 << 20)), 60))[1].stdout

    assert run_as(who, main).startswith(b"resources: memory without end\theld")
