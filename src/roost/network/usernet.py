"""The network that needs no privilege: passt opens ordinary sockets for the guest, behind a fence that keeps the host itself out of reach."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from roost import guest, log
from roost.errors import Conflict, Unavailable
from roost.host import jail, processes
from roost.host.jail import Bind, Jail, Jailed, Limits
from roost.model.facts import HostFacts
from roost.model.machine import Publish
from roost.model.meta import MiB
from roost.network import userplan

_ANSWER_SECONDS = 10.0
_UNPRIVILEGED = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
_RESOLVERS = Path("/etc/resolv.conf")
_LINK, _GUEST_SIDE, _WORLD_SIDE = 3, 3, 4

_MAC = bytes.fromhex("020000000001")
_QUESTION = (
    b"\xff" * 6 + _MAC + bytes.fromhex("0806 0001 0800 06 04 0001")
    + _MAC + socket.inet_aton(userplan.ADDRESS) + bytes(6) + socket.inet_aton(userplan.GATEWAY)
)  # fmt: skip
"""An ARP question for the gateway (RFC 826): its answer shows that the network works, ports bound and all."""
_SHORTEST, _LONGEST = 42, 1514


class UserNetwork:
    """Makes one network for one machine: passt and a fence (guest/fence.c), each in its own jail; both end with the machine."""

    def __init__(self, facts: HostFacts) -> None:
        self._facts = facts

    async def connect(
        self, uid: str, account: int, publish: Sequence[Publish], ends: tuple[socket.socket, socket.socket]
    ) -> tuple[tuple[Jailed, ...], tuple[str, ...]]:
        """The processes that are the network of machine `uid`, and the machine's addresses, once the network has answered.

        `ends` are the machine's and the network's end of a pair of stream sockets.

        Raises Conflict (port taken), Invalid (port that can not be published), Unavailable; then nothing is left behind.
        """
        if self._facts.passt is None:
            fix = "sudo apt-get install --no-install-recommends passt, or launch with --network none"
            raise Unavailable("the machine has no network", "passt is not installed", fix)
        argv = userplan.passt(self._facts.passt, publish, _LINK)
        for entry in publish:
            _try_port(entry)
        async with contextlib.AsyncExitStack() as undo:
            inner, outer = socket.socketpair()
            with inner, outer:
                sides = {_GUEST_SIDE: ends[1].fileno(), _WORLD_SIDE: inner.fileno()}
                passt, fence = await _enter_all(
                    (_passt(uid, account, argv, outer.fileno()), _fence(uid, account, sides)), undo
                )
            await _answer(ends[0], passt)
            undo.pop_all()
        return (passt, fence), (userplan.ADDRESS,)


async def _enter_all(jails: Sequence[Jail], undo: contextlib.AsyncExitStack) -> list[Jailed]:
    """Start them side by side; whichever has started ends with the stack. Raises the first failure."""

    async def enter(one: Jail) -> Jailed:
        jailed = await jail.enter(one)
        undo.push_async_callback(jail.end, jailed)
        return jailed

    answers = await asyncio.gather(*map(enter, jails), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return [answer for answer in answers if isinstance(answer, Jailed)]


def _fence(uid: str, account: int, descriptors: dict[int, int]) -> Jail:
    binary = guest.binary(os.uname().machine, "fence")
    return Jail(
        name=f"{uid}-fence",
        argv=("/fence",),
        binds=(Bind(binary, "/fence"),),
        fds=descriptors,
        limits=Limits(memory=16 * MiB, processes=4, files=16, file_size=0),
        uid=account,
    )


def _passt(uid: str, account: int, argv: Sequence[str], link: int) -> Jail:
    resolvers = (Bind(_RESOLVERS.resolve(), str(_RESOLVERS)),) if _RESOLVERS.is_file() else ()
    return Jail(
        name=f"{uid}-passt",
        argv=argv,
        binds=(*jail.program_binds(Path(argv[0])), *resolvers),
        fds={_LINK: link},
        limits=Limits(memory=512 * MiB, processes=8, files=4096),
        network="host",
        uid=account,
        sandboxes_itself=True,
    )


def _try_port(entry: Publish) -> None:
    """Bind it for a moment: the answer is better than what passt could tell. passt itself has the last word."""
    what = f"port {entry.host_port} of {entry.host_ip} can not be published"
    first = int(_UNPRIVILEGED.read_text()) if _UNPRIVILEGED.exists() else 1024
    if entry.host_port < first:
        fix = f"publish a port from {first} on, or: sudo sysctl net.ipv4.ip_unprivileged_port_start={entry.host_port}"
        raise Unavailable(
            what, f"programs without privileges, as the one in the jail, may use ports from {first} on", fix
        )
    kind = socket.SOCK_STREAM if entry.protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as probe:
        if entry.protocol == "tcp":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((entry.host_ip, entry.host_port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise _taken(entry) from None
            raise Unavailable(
                what, str(error.strerror), "publish on an address of this host: ip -brief address"
            ) from None


def _taken(entry: Publish) -> Conflict:
    fix = f"publish another port, or end what uses it: ss -ltnup 'sport = :{entry.host_port}'"
    return Conflict(f"port {entry.host_port} of {entry.host_ip} can not be published", "another process uses it", fix)


async def _answer(link: socket.socket, passt: Jailed) -> None:
    """Wait until the network answers. Raises Unavailable when passt ends instead or says nothing."""
    link.setblocking(False)
    what = "the machine has no network"
    ended = log.spawn_task(processes.wait_exit(passt.pidfd), "end of passt")
    asked = log.spawn_task(_ask(link), "first answer of passt")
    try:
        await asyncio.wait([ended, asked], timeout=_ANSWER_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if asked.done() and asked.result():
            return
        why = (
            "passt ended at once: a port was taken meanwhile, or this host has no IPv4 route"
            if ended.done()
            else "passt does not answer"
        )
        raise Unavailable(what, why, "try again, or launch with --network none")
    finally:
        for task in (ended, asked):
            task.cancel()
        await asyncio.wait([ended, asked])


async def _ask(link: socket.socket) -> bool:
    """Whether the gateway answered; the stream is left between two frames."""
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_sendall(link, len(_QUESTION).to_bytes(4, "big") + _QUESTION)
        length = int.from_bytes(await _exactly(link, 4), "big")
        return _SHORTEST <= length <= _LONGEST and len(await _exactly(link, length)) == length
    except OSError:
        return False


async def _exactly(link: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await asyncio.get_running_loop().sock_recv(link, size - len(data))
        if not more:
            break
        data += more
    return data
