"""A jail in the namespaces of a network: it lives in them, and has no more power there than it was given."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from roost.host import jail, system
from roost.host.jail import Entrance, Jail, Limits
from tests.ordinary import WHO, run_as
from tests.spaces import ACCOUNT, space

CAP_NET_RAW = 13
NAMES = ("user", "net", "mnt", "pid", "ipc", "uts", "cgroup")


async def _look(capabilities: tuple[int, ...], at: str = "") -> dict[str, object]:
    """The status and the namespaces of a program in a jail inside a space, and those of the space."""
    with space() as there:
        sleeper = system.find_program("sleep")
        entrance = Entrance(there.user, there.net, capabilities, at)
        inside = await jail.enter(
            Jail(
                "test-entrance",
                [str(sleeper), "60"],
                jail.program_binds(sleeper),
                limits=Limits(files=64),
                uid=ACCOUNT,
                entrance=entrance,
            )
        )
        proc = Path(f"/proc/{inside.process.pid}")
        try:
            return {
                "status": (proc / "status").read_text(),
                "inside": {name: (proc / "ns" / name).stat().st_ino for name in NAMES},
                "space": {name: os.fstat(fd).st_ino for name, fd in (("user", there.user), ("net", there.net))},
                "host": {name: Path(f"/proc/self/ns/{name}").stat().st_ino for name in NAMES},
                "layers": inside.layers,
                "missing": inside.missing,
            }
        finally:
            await jail.end(inside)


def _capabilities(seen: dict[str, object]) -> set[str]:
    return set(re.findall(r"Cap(?:Inh|Prm|Eff|Amb|Bnd):\s(\w+)", str(seen["status"])))


@pytest.mark.parametrize("who", WHO)
def test_it_enters_the_network_and_has_no_power_over_it(who: str) -> None:
    seen = run_as(who, lambda: _look(()))
    assert seen["inside"]["net"] == seen["space"]["net"]
    assert seen["inside"]["user"] not in (seen["space"]["user"], seen["host"]["user"])
    assert not {seen["inside"][name] for name in NAMES} & set(seen["host"].values())
    assert _capabilities(seen) == {"0" * 16}
    assert {"landlock", "seccomp", "no new privileges", "no capabilities"} <= set(seen["layers"])


@pytest.mark.parametrize("who", WHO)
def test_it_keeps_the_one_capability_it_was_given_in_the_networks_user_namespace(who: str) -> None:
    seen = run_as(who, lambda: _look((CAP_NET_RAW,)))
    assert (seen["inside"]["net"], seen["inside"]["user"]) == (seen["space"]["net"], seen["space"]["user"])
    assert not {seen["inside"][name] for name in NAMES} & set(seen["host"].values())
    assert _capabilities(seen) == {f"{1 << CAP_NET_RAW:016x}"}
    assert {"landlock", "seccomp", "no new privileges", "few capabilities"} <= set(seen["layers"])


@pytest.mark.parametrize("who", WHO)
def test_one_that_enters_the_network_itself_stays_in_the_hosts(who: str) -> None:
    seen = run_as(who, lambda: _look((CAP_NET_RAW,), at="/network"))
    assert seen["inside"]["net"] == seen["host"]["net"]
    assert seen["inside"]["user"] == seen["space"]["user"]
