"""The shipped agent gives a network card its addresses: a real one, in a network namespace, before a root that shows it as a card."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from roost.hypervisor.agentwire import encode_setup
from roost.hypervisor.base import CardSetup, Setup
from roost.hypervisor.setupscript import setup_script
from tests.guest.native import shipped
from tests.needs import needs_program

pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="links can be made by root only"), needs_program("unshare", "ip")
]  # fmt: skip

ID = "0123456789abcdef0123456789abcdef"
MAC = "52:54:00:00:00:07"
CARD = CardSetup(
    MAC, ("10.20.0.5/24", "fd11::5/64"), ("10.20.0.1", "fd11::1"), ("10.20.0.1", "fd11::1"), "shop.internal", 1400
)
BEFORE = f"""\
ip link set lo up; ip link add eth0 type veth peer name cable; ip link set cable up; ip link set eth0 address {MAC} up
ip addr add 10.20.0.4/24 dev eth0; ip addr add 10.20.0.3/24 dev eth0; ip addr add fd11::4/64 dev eth0 nodad
ip route add default via 10.20.0.9; ip route add default via fd11::9; ip route add 192.0.2.0/24 via 10.20.0.9
"""
AFTER = "ip -o addr show dev eth0; ip route; ip -6 route"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The least of a root file system that was set up before, with a card."""
    for name in ("etc", "var/lib/roost", "proc", "run", "sys/class/net/eth0/device"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "var/lib/roost/setup").write_text(f"{ID}\n")
    (tmp_path / "sys/class/net/eth0/address").write_text(f"{MAC}\n")
    (tmp_path / "etc/resolv.conf").write_text("nameserver 192.0.2.1\n")
    shutil.copy(shipped(), tmp_path / "agent")
    return tmp_path


def _set_up(root: Path, *cards: CardSetup, before: str = BEFORE, lines: str = "") -> tuple[str, str]:
    """What the network looks like after it, and the complaints."""
    (root / "lines").write_text(lines or encode_setup(Setup("kid", ID, cards=cards), 0).decode())
    script = f"{before}\nmount -t proc proc {root}/proc; chroot {root} /agent setup <{root}/lines || true; {AFTER}"
    done = subprocess.run(
        ["unshare", "-nm", "sh", "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    return done.stdout, done.stderr


def test_what_it_had_goes_and_what_it_is_given_holds_at_once_also_in_a_machine_that_was_set_up(root: Path) -> None:
    seen, complaints = _set_up(root, CARD)
    assert complaints == ""
    assert "inet 10.20.0.5/24" in seen
    assert "inet6 fd11::5/64" in seen
    assert "tentative" not in "".join(line for line in seen.splitlines() if "fd11" in line)
    assert "default via 10.20.0.1 dev eth0" in seen
    assert "default via fd11::1 dev eth0" in seen
    assert "fd11::/64" not in seen
    assert not [
        old for old in ("10.20.0.4", "10.20.0.3", "fd11::4", "10.20.0.9", "fd11::9", "192.0.2.0") if old in seen
    ]
    assert (root / "etc/resolv.conf").read_text() == "search shop.internal\nnameserver 10.20.0.1\nnameserver fd11::1\n"


def test_a_second_card_does_not_take_the_way_into_the_world_from_the_first(root: Path) -> None:
    first = "ip link set lo up; ip link add eth1 type veth peer name other; ip link set other up; ip link set eth1 up\n"
    first += "ip addr add 10.9.0.2/24 dev eth1; ip route add default via 10.9.0.1; ip route add default via fe80::1 dev eth1\n"
    seen, _ = _set_up(root, CARD._replace(resolvers=()), before=first + BEFORE.replace("add default", "add 9.9.9.9"))
    assert "default via 10.9.0.1 dev eth1" in seen
    assert "default via fe80::1 dev eth1" in seen
    assert "default via 10.20.0.1" not in seen
    assert (root / "etc/resolv.conf").read_text() == "nameserver 192.0.2.1\n"


def test_resolvers_are_left_to_the_service_that_has_them(root: Path) -> None:
    (root / "etc/resolv.conf").unlink()
    (root / "etc/resolv.conf").symlink_to("../run/stub")
    _set_up(root, CARD)
    assert not (root / "run/stub").exists()


def test_the_client_of_a_tiny_machine_is_kept_from_the_card(root: Path) -> None:
    (root / "run/roost").mkdir()
    (root / "run/roost/init").touch()
    _set_up(root, CARD)
    assert (root / f"run/roost/card-{MAC}").exists()
    assert (root / "run/roost/resolvers").read_text() == "machine\n"


def test_a_card_that_a_system_has_no_driver_for_yet_is_left_to_its_client(root: Path) -> None:
    assert _set_up(root, lines=f"machine-id {ID}\ncard 52:54:00:00:00:99 1400 - - - -\n")[1] == ""


def test_in_a_tiny_machine_it_is_given_its_addresses_when_it_comes(root: Path) -> None:
    (root / "run/roost").mkdir()
    (root / "run/roost/init").touch()
    (root / "sys/class/net/eth0").rename(root / "later")
    lines = encode_setup(Setup("kid", ID, cards=(CARD,)), 0).decode()
    (root / "lines").write_text(lines)
    coming = f"chroot {root} /agent setup <{root}/lines; mv {root}/later {root}/sys/class/net/eth0; sleep 0.3"
    script = f"{BEFORE}\nmount -t proc proc {root}/proc; {coming}; {AFTER}"
    done = subprocess.run(
        ["unshare", "-nm", "sh", "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert "inet 10.20.0.5/24" in done.stdout
    assert "inet6 fd11::5/64" in done.stdout


def test_a_card_that_was_just_plugged_in_is_waited_for(root: Path) -> None:
    card = root / "sys/class/net/eth0"
    card.rename(root / "later")
    coming = f"{BEFORE}\n(sleep 0.3; mv {root}/later {card}) &"
    lines = encode_setup(Setup("kid", ID, cards=(CARD,), plugged=True), 0).decode()
    seen, complaints = _set_up(root, before=coming, lines=lines)
    assert complaints == ""
    assert "inet 10.20.0.5/24" in seen


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (f"card {MAC} 1400 10.20.0.5/33 - - -", "10.20.0.5: Invalid argument"),
        (f"card {MAC} 1400 nonsense - - -", "nonsense: Invalid argument"),
        (f"card {MAC} 1400 - x - -", "x: Invalid argument"),
        (f"card {MAC} 1400 - -", "card: Invalid argument"),
        ("card x 1400 - - - -", "card: Invalid argument"),
        ("plugged 52:54:00:00:00:99 1400 - - - -", "card: No such device"),
        (f"card {MAC} 1400 {'1,' * 900} - - -", "card: Invalid argument"),
    ],
)
def test_what_it_can_not_do_it_complains_of(root: Path, line: str, complaint: str) -> None:
    assert complaint in _set_up(root, lines=f"machine-id {ID}\n{line}\n")[1]


@pytest.mark.parametrize("plugged", [False, True])
def test_a_guest_without_our_agent_is_given_the_same_by_a_script(root: Path, plugged: bool) -> None:
    script = setup_script(Setup("kid", ID, cards=(CARD,), plugged=plugged))
    prefix = f"{BEFORE}\nmkdir -p /var/lib/roost; mount -t tmpfs none /var/lib; mkdir /var/lib/roost; echo {ID} >/var/lib/roost/setup\n"
    prefix += f"mount --bind {root}/sys/class/net /sys/class/net; mount --bind {root}/etc /etc\n"
    done = subprocess.run(
        ["unshare", "-nm", "sh", "-c", f"{prefix}\nsh; umount /etc; {AFTER}"],
        input=script,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert "inet 10.20.0.5/24" in done.stdout, done.stderr
    assert "inet6 fd11::5/64" in done.stdout
    assert "default via 10.20.0.1 dev eth0" in done.stdout
    assert "10.20.0.4" not in done.stdout
    assert (root / "etc/resolv.conf").read_text() == "search shop.internal\nnameserver 10.20.0.1\nnameserver fd11::1\n"
