"""The processes of a network, in real namespaces and asked by real clients, for a daemon run by root and by an ordinary user."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 (an ordinary user may not read where it is)
import contextlib
import encodings.idna  # noqa: F401 (the same)
import json
import os
import shutil
import signal
import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from roost import guest as guest_programs
from roost.host.paths import Paths
from roost.model.network import Subnet
from roost.network import metadata_server, plan, resolving
from roost.network.base import Attachment, Published, Wanted
from roost.network.metadata import Instance
from roost.network.services import Services
from tests.needs import needs_program
from tests.ordinary import WHO, run_as
from tests.spaces import ACCOUNT, Space, guest, space

MAC = "52:54:00:00:00:01"
KEY = "ssh-ed25519 AAAA somebody"
METADATA = "169.254.169.254"
PORTS = "/proc/sys/net/ipv4/ip_unprivileged_port_start"

pytestmark = [needs_program("dnsmasq"), needs_program("busybox"), needs_program("ip")]


@pytest.fixture(scope="module", autouse=True)
def _readable() -> Iterator[None]:
    """The checkout, and the test's own directory, may be where only root can read."""
    place = Path(tempfile.mkdtemp(prefix="roost-test-"))
    place.chmod(0o755)
    shutil.copytree(Path(guest_programs.__file__).parent / "bin", place / "bin")
    script = place / "metadata_server.py"
    shutil.copy(str(metadata_server.__file__), script)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guest_programs, "_HERE", place)
        patch.setattr(metadata_server, "__file__", str(script))
        yield
    shutil.rmtree(place)


class Lab(NamedTuple):
    """A network with its services, and two guests with the same MAC address."""

    space: Space
    guests: tuple[Space, Space]
    services: Services
    wanted: Wanted
    changed: asyncio.Queue[str]
    paths: Paths

    async def ensure(self, **changes: Any) -> dict[str, int]:
        """The process numbers of what serves the network with these changes."""
        wanted = self.wanted._replace(**changes)
        served = await self.services.ensure(wanted, plan.fabric(wanted), self.space, ACCOUNT)
        return {name: process.pid for name, process in served.alive.items()}


def _wanted() -> Wanted:
    ports = (
        Attachment("web", "uid-web", "shop", "lan", MAC, ("10.20.0.11", "fd11::11"), "tap00000001"),
        Attachment("db", "uid-db", "shop", "lan", MAC, ("10.20.0.12", "fd11::12"), "tap00000002"),
    )
    subnets = (Subnet(cidr="10.20.0.0/24", gateway="10.20.0.1"), Subnet(cidr="fd11::/64", gateway="fd11::1"))
    transfer = ("100.64.0.1", "100.64.0.0", "fd22::1", "fd22::0")
    return Wanted(
        "net-test-services",
        "shop",
        "lan",
        "nat",
        subnets,
        1500,
        "shop.internal",
        "kernel",
        transfer=transfer,
        ports=ports,
    )


def _instance(uid: str) -> Instance:
    return Instance(uid, uid.removeprefix("uid-"), (KEY,), "#cloud-config\n")


@contextlib.asynccontextmanager
async def _lab() -> AsyncIterator[Lab]:
    paths = Paths(Path(os.environ.get("TMPDIR", "/tmp")), Path(os.environ["LAB"]))
    changed: asyncio.Queue[str] = asyncio.Queue()
    wanted = _wanted()
    paths.network(wanted.uid).directory.mkdir(parents=True, mode=0o700)
    with contextlib.ExitStack() as stack:
        there = stack.enter_context(space())
        there.shell(
            "ip link set lo up; ip addr add 169.254.169.254/32 dev lo; ip addr add 10.20.0.1/32 dev lo;"
            "ip addr add fd11::1/128 dev lo; echo 0 >/proc/sys/net/ipv4/ip_unprivileged_port_start"
        )
        guests = []
        for port in wanted.ports:
            guests.append(stack.enter_context(guest(there, port.interface, MAC)))
            there.shell(
                f"ip addr add 10.20.0.1/32 dev {port.interface};"
                f"ip addr add fd11::1/64 dev {port.interface} nodad noprefixroute;"
                + "".join(f"ip route add {address} dev {port.interface};" for address in port.addresses)
            )
        services = Services(paths, _Facts(), changed.put_nowait, _instance)
        try:
            yield Lab(there, (guests[0], guests[1]), services, wanted, changed, paths)
        finally:
            await services.stop(wanted.uid)


class _Facts:
    passt = shutil.which("passt")


def _in_lab(who: str, tmp_path: Path, test: Callable[[Lab], Any]) -> Any:
    async def main() -> Any:
        home = Path(os.environ["HOME"]) if who == "user" else tmp_path
        os.environ["LAB"] = str(home / "run")
        async with _lab() as lab:
            return await test(lab)

    return run_as(who, main)


def _lease(guest: Space) -> dict[str, str]:
    """What a DHCP client in the guest was given; the card has it then."""
    script = "/tmp/lease-$$.sh"
    text = guest.shell(
        f"printf '%s\\n' '#!/bin/sh' '[ \"$1\" != bound ] || env' >{script}; chmod +x {script};"
        f"busybox udhcpc -f -q -n -t 4 -T 1 -i eth0 -s {script} 2>&1; rm {script}"
    )
    lease = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    guest.shell(
        f"ip addr add {lease['ip']}/32 dev eth0; ip route add 10.20.0.1 dev eth0; ip route add default via 10.20.0.1"
    )
    return lease


def _ask(name: str, server: str = "10.20.0.1", tcp: bool = False) -> str:
    """The first address that a DNS server gives for the name, or the answer's code."""
    query = struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0)
    query += b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0\0\1\0\1"
    kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as client:
        client.settimeout(5)
        client.connect((server, 53))
        client.sendall(struct.pack("!H", len(query)) + query if tcp else query)
        data = client.recv(4096)
        data = (data[2:] or client.recv(4096)) if tcp else data
    return socket.inet_ntoa(data[-4:]) if struct.unpack("!H", data[6:8])[0] else f"code {data[3] & 15}"


@pytest.mark.parametrize("who", WHO)
def test_guests_of_one_mac_address_lease_each_its_own_and_find_each_other_by_name(who: str, tmp_path: Path) -> None:
    async def test(lab: Lab) -> Any:
        await lab.ensure()
        leases = [await asyncio.to_thread(_lease, guest) for guest in lab.guests]
        names = [lab.guests[0].run(lambda tcp=tcp: _ask("db.shop.internal", tcp=tcp)) for tcp in (False, True)]
        return [(lease["ip"], lease["dns"]) for lease in leases], names

    leases, names = _in_lab(who, tmp_path, test)
    assert leases == [("10.20.0.11", "10.20.0.1"), ("10.20.0.12", "10.20.0.1")]
    assert names == ["10.20.0.12"] * 2


@pytest.mark.parametrize("who", WHO)
def test_a_new_name_holds_without_a_new_process(who: str, tmp_path: Path) -> None:
    async def test(lab: Lab) -> Any:
        before = await lab.ensure()
        await asyncio.to_thread(_lease, lab.guests[0])
        port = lab.wanted.ports[1]._replace(machine="later")
        after = await lab.ensure(ports=(lab.wanted.ports[0], port))
        await asyncio.sleep(0.3)
        return before, after, lab.guests[0].run(lambda: _ask("later.shop.internal"))

    before, after, address = _in_lab(who, tmp_path, test)
    assert before == after
    assert address == "10.20.0.12"


@pytest.mark.parametrize("who", WHO)
def test_what_is_killed_is_told_of_and_started_again_and_the_rest_is_left(who: str, tmp_path: Path) -> None:
    async def test(lab: Lab) -> Any:
        before = await lab.ensure()
        os.kill(before["dnsmasq"], signal.SIGKILL)
        async with asyncio.timeout(5):
            uid = await lab.changed.get()
        return before, await lab.ensure(), uid

    before, after, changed = _in_lab(who, tmp_path, test)
    assert before["dnsmasq"] != after["dnsmasq"]
    assert before["relay"] == after["relay"]
    assert changed.startswith("net-")


@pytest.mark.parametrize("who", WHO)
def test_another_daemon_takes_them_over_and_ends_them(who: str, tmp_path: Path) -> None:
    async def test(lab: Lab) -> Any:
        before = await lab.ensure()
        await lab.services.close()
        later = lab._replace(services=Services(lab.paths, _Facts(), lab.changed.put_nowait, _instance))
        after = await later.ensure()
        await later.services.stop(lab.wanted.uid)
        shared = [path.name for path in lab.paths.run.glob("services/*")]
        left = [name for name, pid in after.items() if Path(f"/proc/{pid}").exists()]
        return before, after, left, shared

    before, after, left, shared = _in_lab(who, tmp_path, test)
    assert before == after
    assert (left, shared) == ([], [])


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_published_port_of_the_host_leads_to_the_guest(who: str, protocol: str, tmp_path: Path) -> None:
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM

    async def test(lab: Lab) -> Any:
        with socket.socket(socket.AF_INET, kind) as probe:
            probe.bind(("127.0.0.1", 0))
            number = probe.getsockname()[1]
        entry = Published("one", "127.0.0.1", number, protocol, "10.20.0.11", 7000, "tap00000001")
        await lab.ensure(published=(entry,))
        await asyncio.to_thread(_lease, lab.guests[0])
        server = socket.socket(fileno=_descriptor_of(lab.guests[0], kind))
        with server, socket.socket(socket.AF_INET, kind) as client:
            server.settimeout(5)
            client.settimeout(5)
            client.connect(("127.0.0.1", number))
            client.sendall(b"hello")
            peer = server.accept()[0] if kind == socket.SOCK_STREAM else server
            data, sender = peer.recvfrom(100)
            peer.sendto(data.upper(), sender) if kind == socket.SOCK_DGRAM else peer.sendall(data.upper())
            answer = client.recv(100)
            peer.close()
        await lab.ensure(published=())
        with socket.socket(socket.AF_INET, kind) as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(kind == socket.SOCK_STREAM))
            again.bind(("127.0.0.1", number))
        return answer

    assert _in_lab(who, tmp_path, test) == b"HELLO"


def _descriptor_of(there: Space, kind: int) -> int:
    """A socket at port 7000 made in the guest."""
    ours, theirs = socket.socketpair()

    def make() -> None:
        with socket.socket(socket.AF_INET, kind) as listener:
            listener.bind(("0.0.0.0", 7000))
            if kind == socket.SOCK_STREAM:
                listener.listen(5)
            socket.send_fds(theirs, [b"x"], [listener.fileno()])

    there.run(make)
    with ours, theirs:
        return socket.recv_fds(ours, 1, 1)[1][0]


@pytest.mark.parametrize("who", WHO)
def test_a_port_that_is_taken_is_said_and_keeps_nothing_else_from_working(who: str, tmp_path: Path) -> None:
    async def test(lab: Lab) -> Any:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            entry = Published("one", "127.0.0.1", other.getsockname()[1], "tcp", "10.20.0.11", 7000, "tap00000001")
            wanted = lab.wanted._replace(published=(entry,))
            served = await lab.services.ensure(wanted, plan.fabric(wanted), lab.space, ACCOUNT)
            return served.warnings, sorted(served.alive)

    warnings, alive = _in_lab(who, tmp_path, test)
    assert len(warnings) == 1
    assert "another process uses it" in warnings[0]
    assert alive == ["dnsmasq", "relay"]


def _get(path: str, *headers: str, method: str = "GET", token: str = "") -> tuple[int, str]:
    """Status and body of a question to the metadata service."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 169.254.169.254", *headers]
    lines += [f"X-aws-ec2-metadata-token: {token}"] if token else []
    with socket.create_connection(("169.254.169.254", 80), timeout=5) as client:
        client.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
        data = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


def _token(*headers: str) -> tuple[int, str]:
    return _get("/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds: 60", *headers, method="PUT")


def _crawl() -> dict[str, tuple[int, str]]:
    token = _token()[1]
    paths = ("/", "/latest/meta-data/", "/latest/meta-data/instance-id", "/latest/user-data", "/nocloud/meta-data")
    keys = ("/2009-04-04/meta-data/public-keys/0/openssh-key", "/latest/meta-data/public-keys/", "/latest/none")
    return {path: _get(path, token=token) for path in (*paths, *keys)}


@pytest.mark.fault(76)
@pytest.mark.parametrize("who", WHO)
def test_the_metadata_service_knows_a_guest_by_its_port_and_tells_it_alone(who: str, tmp_path: Path) -> None:
    async def test(lab: Lab) -> Any:
        await lab.ensure()
        for one in lab.guests:
            await asyncio.to_thread(_lease, one)
        first, second = lab.guests
        answers = await asyncio.to_thread(first.run, _crawl)
        stolen = second.run(lambda: _token()[1])
        # The second takes the first's address, and its token.
        second.shell(
            "ip addr add 10.20.0.11/32 dev eth0; ip route replace 169.254.169.254 dev eth0 via 10.20.0.1 src 10.20.0.12"
        )
        other = await asyncio.to_thread(second.run, lambda: _get("/latest/meta-data/instance-id", token=_token()[1]))
        refused = {
            "no token": first.run(lambda: _get("/latest/meta-data/"))[0],
            "another's token": first.run(lambda: _get("/latest/meta-data/", token=stolen))[0],
            "forwarded": first.run(lambda: _token("X-Forwarded-For: 10.20.0.12"))[0],
            "another host": first.run(lambda: _get("/", "Host: evil.example"))[0],
            "post": first.run(lambda: _get("/", method="POST"))[0],
            "body": first.run(lambda: _token("Content-Length: 5"))[0],
            "long": first.run(lambda: _get("/", "X: " + "x" * 9000))[0],
        }
        return answers, other, refused

    answers, other, refused = _in_lab(who, tmp_path, test)
    assert answers["/latest/meta-data/instance-id"] == (200, "uid-web")
    assert "local-hostname" in answers["/latest/meta-data/"][1].splitlines()
    assert answers["/latest/user-data"] == (200, "#cloud-config\n")
    assert answers["/2009-04-04/meta-data/public-keys/0/openssh-key"] == (200, KEY)
    assert answers["/latest/meta-data/public-keys/"] == (200, "0=roost-0")
    assert '"instance-id": "uid-web"' in answers["/nocloud/meta-data"][1]
    assert answers["/latest/none"][0] == 404
    assert other == (200, "uid-db")
    assert refused == {
        "no token": 401, "another's token": 401, "forwarded": 403, "another host": 400, "post": 405, "body": 413, "long": 400,
    }  # fmt: skip


@pytest.mark.fault(76)
@pytest.mark.parametrize("who", WHO)
def test_an_answer_of_the_metadata_service_goes_one_hop(who: str, tmp_path: Path) -> None:
    async def test(lab: Lab) -> Any:
        await lab.ensure()
        await asyncio.to_thread(_lease, lab.guests[0])

        def ttl() -> int:
            with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)) as sniffer:
                sniffer.bind(("eth0", 0x0800))
                _token()
                packets = [sniffer.recv(2000) for _ in range(3)]
            return next(packet[8] for packet in packets if packet[12:16] == socket.inet_aton("169.254.169.254"))

        return lab.guests[0].run(ttl)

    assert _in_lab(who, tmp_path, test) == 1


@pytest.mark.parametrize("who", WHO)
def test_a_metadata_service_that_was_killed_is_there_again(who: str, tmp_path: Path) -> None:
    async def test(lab: Lab) -> Any:
        await lab.ensure()
        await asyncio.to_thread(_lease, lab.guests[0])
        record = json.loads(lab.paths.services.process("metadata").read_text())
        os.kill(record["process"]["pid"], signal.SIGKILL)
        async with asyncio.timeout(5):
            await lab.changed.get()
        await lab.ensure()
        return lab.guests[0].run(_token)[0]

    assert _in_lab(who, tmp_path, test) == 200


@pytest.mark.parametrize("who", WHO)
def test_guests_that_say_nothing_or_too_much_keep_nobody_else_from_an_answer(who: str, tmp_path: Path) -> None:
    async def test(lab: Lab) -> Any:
        await lab.ensure()
        for one in lab.guests:
            await asyncio.to_thread(_lease, one)

        def crowd() -> int:
            silent = [socket.create_connection(("169.254.169.254", 80), timeout=5) for _ in range(200)]
            for one in silent:
                one.setblocking(False)
                with contextlib.suppress(OSError):
                    one.send(b"GET")
            return len(silent)

        crowded = await asyncio.to_thread(lab.guests[1].run, crowd)
        return crowded, lab.guests[0].run(_token)[0]

    assert _in_lab(who, tmp_path, test) == (200, 200)


@pytest.mark.skipif(os.getuid() != 0, reason="a resolver of the host listens at port 53")
def test_what_the_network_does_not_know_is_asked_of_the_hosts_resolver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolving, "of_host", lambda: ("127.0.0.77",))

    async def test(lab: Lab) -> Any:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver:
            resolver.bind(("127.0.0.77", 53))
            resolver.settimeout(5)
            await lab.ensure()
            await asyncio.to_thread(_lease, lab.guests[0])
            asked = asyncio.create_task(asyncio.to_thread(lab.guests[0].run, lambda: _ask("far.example.com")))
            query, sender = await asyncio.to_thread(resolver.recvfrom, 4096)
            end = query.index(b"\0\0\1\0\1", 12) + 5
            answer = query[:2] + struct.pack("!5H", 0x8180, 1, 1, 0, 0) + query[12:end]
            resolver.sendto(answer + b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\xcb\0\x71\x07", sender)
            return await asked

    assert _in_lab("root", tmp_path, test) == "203.0.113.7"


@needs_program("pasta")
@pytest.mark.parametrize("who", WHO)
def test_pasta_is_a_door_that_leads_out(who: str, tmp_path: Path) -> None:
    async def test(lab: Lab) -> Any:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
            route.connect(("192.0.2.254", 9))
            outside = route.getsockname()[0]
        alive = await lab.ensure(door="pasta", transfer=())
        with socket.create_server((outside, 0)) as server:
            where = server.getsockname()
            lab.space.shell("until ip -4 route show default | grep -q up0; do sleep 0.05; done")

            def call() -> bytes:
                with socket.create_connection(where, timeout=5) as client:
                    return client.recv(10)

            called = asyncio.create_task(asyncio.to_thread(lab.space.run, call))
            peer, _ = await asyncio.to_thread(server.accept)
            with peer:
                peer.sendall(b"outside")
            return sorted(alive), await called

    assert _in_lab(who, tmp_path, test) == (["dnsmasq", "door", "relay"], b"outside")


@pytest.mark.parametrize("who", WHO)
def test_a_network_that_nobody_is_in_yet_is_served(who: str, tmp_path: Path) -> None:
    async def main() -> list[str]:
        home = Path(os.environ["HOME"]) if who == "user" else tmp_path
        paths = Paths(home, home / "run")
        wanted = _wanted()._replace(ports=())
        paths.network(wanted.uid).directory.mkdir(parents=True, mode=0o700)
        services = Services(paths, _Facts(), lambda uid: None, _instance)
        with space() as there:
            there.shell(f"ip link set lo up; ip addr add {METADATA}/32 dev lo; echo 0 >{PORTS}")
            try:
                return sorted((await services.ensure(wanted, plan.fabric(wanted), there, ACCOUNT)).alive)
            finally:
                await services.stop(wanted.uid)

    assert run_as(who, main) == ["dnsmasq", "relay"]
