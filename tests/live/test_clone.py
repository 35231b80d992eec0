"""Copies of running machines: each whole, each somebody else, and the parent none the worse."""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import pytest

from roost.host.paths import Paths
from tests.daemon import Daemon
from tests.live.copies import (
    Counter,
    chain,
    check_disk,
    inside,
    jail_gaps,
    network_of,
    recalls,
    record,
    remember,
    status,
    together,
    uid,
)
from tests.live.test_network import GATEWAY, LEASE, Service, own_address
from tests.live.test_usernet import free_port
from tests.needs import needs_program, needs_root

pytestmark = [needs_program("qemu-system-x86_64", "passt"), pytest.mark.timeout(1200)]

SAMPLES = "dd if=/dev/urandom bs=32 count=400 2>/dev/null | base64 -w 0"
"""Shell: 400 reads of 32 bytes. Each is a step of the kernel's generator: two that go on from one state give the same ones."""

RESEED = "import fcntl; fcntl.ioctl(open('/dev/random', 'rb'), 0x5207)"
"""Python: the kernel takes a new seed now (RNDRESEEDCRNG), so that it takes none by itself while the copies are asked."""


def launch(daemon: Daemon, name: str, *options: str) -> str:
    """A tiny machine that knows a nonce."""
    daemon.roost("launch", "tiny", name, "--memory", "128MiB", *options, timeout=300)
    return remember(daemon, name)


# ---------------------------------------------------------------------- eight copies of a Debian


class Family(NamedTuple):
    """A Debian, what was written into it just before, and its copies with the first that each said."""

    daemon: Daemon
    parent: str
    memory: str
    disk: str
    kids: list[str]
    samples: list[set[bytes]]
    counter: Counter


@pytest.fixture(scope="module")
def family(shared_daemon: Daemon) -> Iterator[Family]:
    """Eight copies of a machine in which something counts all the time."""
    daemon, parent, kids = shared_daemon, "parent", [f"kid-{number}" for number in range(1, 9)]
    daemon.roost("launch", "debian:12", parent, timeout=1200)
    inside(daemon, parent, "for i in $(seq 90); do test -s /run/sshd.pid && break; sleep 1; done", timeout=200)
    counter = Counter(daemon, parent)
    try:
        memory, disk = remember(daemon, parent), secrets.token_hex(16)
        inside(daemon, parent, f"echo {disk} >/var/nonce")
        time.sleep(1)
        inside(daemon, parent, f'python3 -ISc "{RESEED}"')
        daemon.roost("clone", parent, "kid", "--count", "8", timeout=180)
        samples = together(lambda name: draw(daemon, name), [*kids, parent])
        yield Family(daemon, parent, memory, disk, kids, samples, counter)
    finally:
        counter.close()
        for name in (parent, *kids):
            daemon.roost("delete", name, "--yes", check=False)


def draw(daemon: Daemon, name: str) -> set[bytes]:
    """What the kernel's random number generator gives a machine."""
    data = base64.b64decode(inside(daemon, name, SAMPLES))
    assert len(data) == 400 * 32
    return {data[start : start + 32] for start in range(0, len(data), 32)}


@needs_program("mmdebstrap")
def test_all_copies_know_what_was_written_into_memory_and_on_disk_a_second_before(family: Family) -> None:
    assert together(lambda name: recalls(family.daemon, name), family.kids) == [family.memory] * 8
    read = "echo 3 >/proc/sys/vm/drop_caches; cat /var/nonce"
    assert together(lambda name: inside(family.daemon, name, read), family.kids) == [family.disk] * 8
    assert recalls(family.daemon, family.parent) == family.memory


@needs_program("mmdebstrap")
def test_the_parent_goes_on_without_a_loss(family: Family) -> None:
    family.counter.wait(20)
    pause = status(family.daemon, "kid-1")["timing"]["pause"]
    assert family.counter.lost() == []
    assert 0 < pause < 5
    # Eight machines came up beside it meanwhile: what is promised of the pause is measured by the benchmark.
    assert family.counter.longest_silence() < pause + 10


@needs_program("mmdebstrap")
def test_how_it_came_to_be_is_shown(family: Family) -> None:
    told = [status(family.daemon, name) for name in family.kids]
    assert {one["timing"]["path"] for one in told} == {"clone"}
    assert len({one["timing"]["pause"] for one in told}) == 1
    assert {one["cloning"] for one in told} == {"in-place"}
    assert {one["origin"] for one in told} == {f"machine {family.parent}"}
    assert [text for one in told for text in one["warnings"] if "emulated" not in text] == []


@pytest.mark.fault(44)
@needs_program("mmdebstrap")
def test_no_two_are_the_same_machine(family: Family) -> None:
    names = [*family.kids, family.parent]
    script = "cat /etc/machine-id; hostname; cat /etc/hostname"
    told = [text.split() for text in together(lambda name: inside(family.daemon, name, script), names)]
    uids = [uid(family.daemon, name) for name in names]
    assert [identity for identity, _, _ in told] == [name.replace("-", "") for name in uids]
    assert [(host, written) for _, host, written in told] == [(name, name) for name in names]
    assert len(set(uids)) == 9


@pytest.mark.fault(44)
@needs_program("mmdebstrap")
def test_no_two_draw_the_same_random_numbers(family: Family) -> None:
    assert len(set().union(*family.samples)) == sum(map(len, family.samples)) == 9 * 400


@pytest.mark.fault(44)
@needs_program("mmdebstrap")
def test_no_two_show_the_same_ssh_host_key(family: Family) -> None:
    shown = together(lambda name: served(family.daemon, name), [*family.kids, family.parent])
    assert [len(keys) for keys in shown] == [2] * 9
    assert len(set().union(*shown)) == 18


def served(daemon: Daemon, name: str) -> set[str]:
    """The host keys that a machine's SSH server shows to who connects, once it is back after its keys were changed."""
    scan = "ssh-keyscan -T 30 -t ed25519,ecdsa localhost 2>/dev/null"
    script = f'for i in 1 2 3 4 5 6; do KEYS="$({scan})"; test "$(echo "$KEYS" | wc -l)" = 2 && break; sleep 1; done; echo "$KEYS"'
    return {line.partition(" ")[2] for line in inside(daemon, name, script, timeout=120).splitlines()}


@needs_program("mmdebstrap")
def test_each_reaches_out_through_a_network_of_its_own(family: Family) -> None:
    service = Service(own_address())
    try:
        ask = f"exec 3<>/dev/tcp/{own_address()}/{service.port} && cat <&3"
        again = f"for i in $(seq 30); do bash -c '{ask}' 2>/dev/null && break; sleep 0.5; done"
        told = together(lambda name: inside(family.daemon, name, again), family.kids)
    finally:
        service.close()
    assert told == [service.nonce] * 8
    networks = [tuple(network_of(family.daemon, name)) for name in (*family.kids, family.parent)]
    assert len({pid for pids in networks for pid in pids}) == sum(map(len, networks)) >= 9


@needs_root
@needs_program("mmdebstrap")
def test_every_layer_of_the_jail_holds_a_copy(family: Family) -> None:
    names = ("kid-1", "kid-8", family.parent)
    told = [status(family.daemon, name) for name in names]
    assert [jail_gaps(family.daemon, name) for name in names] == [[]] * 3
    assert [one["isolation"]["boundary"] for one in told] == ["jail"] * 3
    assert [one["isolation"]["missing"] for one in told] == [[]] * 3


@needs_program("mmdebstrap")
def test_a_copy_of_a_stopped_machine_has_its_disk_and_boots_as_somebody_else(family: Family) -> None:
    daemon = family.daemon
    daemon.roost("stop", "kid-7", "--force")
    daemon.roost("clone", "kid-7", "still")
    assert status(daemon, "still")["phase"] == "stopped"
    try:
        daemon.roost("start", "still", timeout=300)
        script = "cat /var/nonce; hostname; cat /etc/machine-id"
        identity = uid(daemon, "still").replace("-", "")
        assert inside(daemon, "still", script).split() == [family.disk, "still", identity]
        assert served(daemon, "still").isdisjoint(served(daemon, family.parent))
    finally:
        daemon.roost("delete", "still", "--yes", check=False)


@needs_program("mmdebstrap")
def test_parent_and_copies_end_without_each_other(family: Family, tmp_path: Path) -> None:
    daemon = family.daemon
    daemon.roost("delete", "kid-8", "--yes")
    assert recalls(daemon, family.parent) == family.memory
    whole = "echo 3 >/proc/sys/vm/drop_caches; cat /var/nonce; find /usr/bin /usr/lib -type f -exec cat {} + | md5sum"
    before = inside(daemon, family.parent, whole, timeout=150)
    family.counter.close()
    daemon.roost("stop", family.parent, "--force")
    check_disk(chain(daemon, family.parent), tmp_path)
    daemon.roost("delete", family.parent, "--yes")
    assert recalls(daemon, "kid-1") == family.memory
    assert inside(daemon, "kid-1", whole, timeout=150) == before
    for name in ("kid-1", "kid-2", "kid-7"):
        daemon.roost("stop", name, "--force")
        check_disk(chain(daemon, name), tmp_path)
    assert recalls(daemon, "kid-3") == family.memory


@needs_program("mmdebstrap")
def test_uefi_variables_are_copied(daemon: Daemon) -> None:
    daemon.roost("launch", "debian:12", "uefi", "--firmware", "uefi", timeout=1200)
    variable = f"/sys/firmware/efi/efivars/Nonce-{secrets.token_hex(4)}-0000-4000-8000-000000000000"
    nonce = secrets.token_hex(16)
    inside(daemon, "uefi", f"/usr/bin/printf '\\x07\\x00\\x00\\x00{nonce}' >{variable}")
    daemon.roost("clone", "uefi", "firm")
    assert inside(daemon, "firm", f"tail -c 32 {variable}; hostname") == f"{nonce}firm"
    paths = Paths(daemon.state, daemon.run)
    files = [paths.machine(uid(daemon, name)).variables for name in ("uefi", "firm")]
    assert [nonce.encode() in path.read_bytes() for path in files] == [True, True]
    inside(daemon, "firm", f"chattr -i {variable}; rm {variable}")
    assert nonce in inside(daemon, "uefi", f"cat {variable} | tr -d '\\0'")


# ---------------------------------------------------------------------- tiny ones


def test_copies_of_copies_and_one_after_the_other_hold_their_own_moment(daemon: Daemon) -> None:
    nonce = launch(daemon, "a")
    marks = []
    for name in ("one", "two", "three"):
        marks.append(inside(daemon, "a", "dd if=/dev/urandom of=/dev/big bs=1M count=12 2>/dev/null; md5sum </dev/big"))
        daemon.roost("clone", "a", name)
    daemon.roost("clone", "three", "four")
    daemon.roost("clone", "four", "five")
    names = ("one", "two", "three", "four", "five", "a")
    assert [inside(daemon, name, "md5sum </dev/big") for name in names] == [*marks, *[marks[-1]] * 3]
    assert [recalls(daemon, name) for name in names] == [nonce] * 6
    inside(daemon, "four", "dd if=/dev/zero of=/dev/big bs=1M count=12 2>/dev/null")
    daemon.roost("delete", "a", "three", "--yes")
    assert [inside(daemon, name, "md5sum </dev/big") for name in ("one", "two", "five")] == [*marks[:2], marks[2]]
    assert recalls(daemon, "five") == nonce
    assert inside(daemon, "five", "hostname") == "five"


def test_a_machine_with_two_cpus(daemon: Daemon) -> None:
    nonce = launch(daemon, "a", "--cpus", "2")
    inside(daemon, "a", "for i in 1 2; do (while :; do :; done) </dev/null >/dev/null 2>&1 & done")
    daemon.roost("clone", "a", "pair", "--count", "2")
    assert [recalls(daemon, name) for name in ("a", "pair-1", "pair-2")] == [nonce] * 3
    assert inside(daemon, "pair-2", "nproc") == "2"


def test_a_paused_machine_stays_paused_and_so_do_its_copies(daemon: Daemon) -> None:
    nonce = launch(daemon, "a")
    daemon.roost("pause", "a")
    daemon.roost("clone", "a", "kid")
    daemon.roost("clone", "a", "awake", "--start")
    assert [status(daemon, name)["phase"] for name in ("a", "kid", "awake")] == ["paused", "paused", "running"]
    assert [recalls(daemon, "awake"), inside(daemon, "awake", "hostname")] == [nonce, "awake"]
    for name in ("kid", "a"):
        daemon.roost("resume", name)
    wait_for_host_name(daemon, "kid")
    assert [recalls(daemon, name) for name in ("a", "kid")] == [nonce] * 2
    assert inside(daemon, "a", "hostname") == "a"
    daemon.roost("clone", "a", "later")
    assert recalls(daemon, "later") == nonce


def wait_for_host_name(daemon: Daemon, name: str) -> None:
    """Until a machine that was resumed has been made somebody."""
    deadline = time.monotonic() + 60
    while inside(daemon, name, "hostname") != name:
        assert time.monotonic() < deadline, f"{name} was never set up"


def test_an_exact_copy_is_its_parent_without_a_network(daemon: Daemon) -> None:
    nonce = launch(daemon, "a")
    who = f"{LEASE}; hostname; cat /etc/machine-id /sys/class/net/eth0/address; ip -4 -o addr show dev eth0"
    before = inside(daemon, "a", who)
    daemon.roost("clone", "a", "twin", "--keep-identity")
    assert recalls(daemon, "twin") == nonce
    assert inside(daemon, "twin", who) == before
    flags = inside(daemon, "twin", "cat /sys/class/net/eth0/carrier; ip link show eth0")
    assert flags.startswith("0")
    assert "LOWER_UP" not in flags
    assert "0 response" in inside(daemon, "twin", f"arping -c 1 -w 2 -I eth0 {GATEWAY} 2>&1; true").replace("(s)", "")
    assert network_of(daemon, "twin") == []
    assert status(daemon, "twin")["addresses"] == []
    assert inside(daemon, "a", "cat /sys/class/net/eth0/carrier") == "1"


@pytest.mark.parametrize("end", [Daemon.stop, Daemon.kill], ids=["SIGTERM", "SIGKILL"])
def test_a_daemon_that_came_back_goes_on_copying(
    new_daemon: Callable[..., Daemon], end: Callable[[Daemon], None]
) -> None:
    daemon = new_daemon().start()
    nonce = launch(daemon, "a")
    for name in ("one", "two"):
        daemon.roost("clone", "a", name)
        end(daemon)
        daemon.start()
    inside(daemon, "a", "dd if=/dev/urandom of=/dev/big bs=1M count=12 2>/dev/null")
    daemon.roost("clone", "a", "three", "--count", "2")
    daemon.roost("clone", "one", "four")
    names = ("a", "one", "two", "three-1", "three-2", "four")
    assert [recalls(daemon, name) for name in names] == [nonce] * 6
    assert [inside(daemon, name, "hostname") for name in names] == list(names)


# ---------------------------------------------------------------------- networks and jails of all that is forked


@pytest.fixture
def forking(new_daemon: Callable[..., Daemon]) -> Daemon:
    """A daemon whose launches go on from a template."""
    daemon = new_daemon()
    daemon.cold = False
    return daemon.start()


def serve(daemon: Daemon, name: str) -> str:
    """Let a web server in the machine say a nonce."""
    nonce = secrets.token_hex(16)
    inside(daemon, name, f"{LEASE}; mkdir -p /srv && echo {nonce} >/srv/nonce && httpd -p 80 -h /srv")
    return nonce


def fetch(port: int) -> str:
    """What the server behind a published port says; a machine that was just plugged in takes a moment."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with urlopen(f"http://127.0.0.1:{port}/nonce", timeout=3) as answer:
                return str(answer.read().decode().strip())
        except OSError:
            assert time.monotonic() < deadline, "nobody answers behind the published port"
            time.sleep(0.2)


def test_a_published_port_leads_into_a_warm_launch_and_into_what_was_restored(forking: Daemon) -> None:
    daemon = forking
    launch(daemon, "first")
    port = free_port()
    memory = launch(daemon, "web", "--publish", f"{port}:80")
    assert status(daemon, "web")["timing"]["path"] == "warm"
    nonce = serve(daemon, "web")
    assert fetch(port) == nonce
    daemon.roost("snapshot", "web", "ready")
    inside(daemon, "web", "echo changed >/srv/nonce")
    daemon.roost("restore", "web", "web.ready", "--yes")
    assert fetch(port) == nonce
    assert recalls(daemon, "web") == memory
    daemon.roost("clone", "web", "kid")
    assert "nothing is published" in " ".join(status(daemon, "kid")["warnings"])
    assert "1 response" in inside(daemon, "kid", f"arping -c 1 -w 5 -I eth0 {GATEWAY}").replace("(s)", "")
    assert inside(daemon, "kid", "cat /srv/nonce") == nonce
    assert fetch(port) == nonce
    daemon.roost("delete", "snapshot", "web.ready", "--yes")


@needs_root
def test_every_layer_of_the_jail_holds_what_was_forked_and_what_was_a_spare(forking: Daemon) -> None:
    daemon = forking
    launch(daemon, "forked")
    assert record(daemon, "forked")["identity"] == ""
    assert status(daemon, "forked")["timing"]["path"] == "warm"
    port = free_port()
    name = launch_spare(daemon, port)
    nonce = serve(daemon, name)
    assert fetch(port) == nonce
    daemon.roost("clone", name, "kid")
    names = ("forked", name, "kid")
    told = [status(daemon, one) for one in names]
    assert [jail_gaps(daemon, one) for one in names] == [[]] * 3
    assert [one["isolation"]["missing"] for one in told] == [[]] * 3


def launch_spare(daemon: Daemon, port: int) -> str:
    """A machine whose QEMU had been waiting for it."""
    for number in range(10):
        time.sleep(4)
        name = f"spare-{number}"
        launch(daemon, name, "--publish", f"{port}:80")
        if record(daemon, name)["identity"] not in ("", uid(daemon, name)):
            return name
        daemon.roost("delete", name, "--yes")
    raise AssertionError(f"no spare is ever taken\n{daemon.log()[-3000:]}")
