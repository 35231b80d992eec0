"""What the DHCP client of a tiny machine does with a lease: the resolvers and the way into the world are the machine's, not a card's."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.needs import needs_program

pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="links can be made by root only"),
    needs_program("unshare", "ip", "busybox"),
]

SCRIPT = Path(__file__).parents[2] / "guest/udhcpc.script"
LINKS = """\
set -e
ip link set lo up
ip link add eth0 type veth peer name c0; ip link set c0 up; ip link set eth0 up
ip link add eth1 type veth peer name c1; ip link set c1 up; ip link set eth1 up
"""
FIRST = "interface=eth0 ip=10.20.0.5 mask=24 router=10.20.0.1 dns=10.20.0.1 domain=shop.internal lease bound"
SECOND = "interface=eth1 ip=10.30.0.5 mask=24 router=10.30.0.1 dns=10.30.0.1 domain=back.internal lease bound"
OWN = "search shop.internal\nnameserver 10.20.0.1\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The least of a root file system of a tiny machine."""
    for name in ("etc", "run/roost", "bin", "sys", "dev"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "etc/resolv.conf").write_text("nameserver 192.0.2.1\n")
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, tmp_path / "bin/busybox")
    for name in ("sh", "ip", "cat", "mv", "grep"):
        (tmp_path / "bin" / name).symlink_to("busybox")
    shutil.copy(SCRIPT, tmp_path / "lease")
    return tmp_path


def _leased(root: Path, *steps: str) -> tuple[str, str]:
    """The default routes and the resolvers after these steps."""
    lease = f'lease() {{ export interface ip mask router dns domain; chroot {root} /bin/sh /lease "$1"; }}\n'
    script = f"{LINKS}mount -t sysfs sysfs {root}/sys\n{lease}{chr(10).join(steps)}\nip route show default"
    done = subprocess.run(
        ["unshare", "-nm", "bash", "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stderr == ""
    return done.stdout, (root / "etc/resolv.conf").read_text()


def test_a_first_card_gives_the_machine_its_resolvers_and_its_way_into_the_world(root: Path) -> None:
    assert _leased(root, FIRST) == ("default via 10.20.0.1 dev eth0 \n", OWN)


def test_a_second_card_takes_neither(root: Path) -> None:
    assert _leased(root, FIRST, SECOND) == ("default via 10.20.0.1 dev eth0 \n", OWN)
    assert _leased(root, FIRST, SECOND, FIRST) == ("default via 10.20.0.1 dev eth0 \n", OWN)


def test_those_of_a_card_that_is_gone_are_replaced(root: Path) -> None:
    seen, resolvers = _leased(root, FIRST, "ip link delete eth0", SECOND)
    assert (seen, resolvers) == ("default via 10.30.0.1 dev eth1 \n", "search back.internal\nnameserver 10.30.0.1\n")


def test_a_card_without_a_gateway_leaves_the_way_to_the_next(root: Path) -> None:
    seen, _ = _leased(root, FIRST.replace("router=10.20.0.1", "router="), SECOND)
    assert seen == "default via 10.30.0.1 dev eth1 \n"


def test_what_the_agent_said_stays(root: Path) -> None:
    (root / "run/roost/resolvers").write_text("machine\n")
    assert _leased(root, FIRST)[1] == "nameserver 192.0.2.1\n"
    (root / "run/roost/card-52:54:00:00:00:01").touch()
    assert _leased(root, "ip link set eth1 address 52:54:00:00:00:01", SECOND)[0] == ""
